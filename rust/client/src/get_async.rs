//! A get that no thread waits for: each step is started by the end of the one before it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

use memcache_types::{GetStatus, KeyBatch, SegmentId};

use crate::buffer::Buffers;
use crate::completion::Completion;
use crate::directory::Links;
use crate::errands::Whom;
use crate::error::StoreError;
use crate::flight::{Flight, Request};
use crate::get::{Located, Reading, count_get};
use crate::jobs::Kind;
use crate::lookup::Shared;
use crate::stats::{Stats, add_time};
use crate::store::{Inner, check_call};
use crate::sums::Sums;
use crate::tasks::TaskSet;
use crate::transfer::Transfer;
use crate::ways::Reads;

/// Starts a get; see [`Store::get_async`](crate::Store::get_async).
pub(crate) fn get_async(
    inner: &Arc<Inner>,
    keys: KeyBatch,
    targets: Buffers,
    deadline: Instant,
) -> Result<Completion<Shared<Vec<GetStatus>>>, StoreError> {
    check_call(&keys, &targets)?;
    let (started, count) = (Instant::now(), keys.len());
    let body = inner.locate_request(&keys);
    let (cancelled, refused) = (vec![GetStatus::Cancelled; count], vec![GetStatus::Unavailable; count]);
    let (flight, done) = Flight::start(&inner.flights, Request { keys, buffers: targets }, cancelled, refused)?;
    if count == 0 {
        flight.end_early(Ok(Vec::new()));
        return Ok(done);
    }
    // Callbacks do not own the store: its last owner must not be a thread of the runtime, which may not wait.
    let owner = Arc::downgrade(inner);
    inner.book.submit(body, deadline, move |outcome| {
        let Some(inner) = owner.upgrade() else { return };
        add_time(&inner.stats.get_locate_ns, started);
        // Read even if nobody wants it any more: what was located gives its lease back when dropped.
        match outcome.and_then(|answer| inner.located(answer, count)) {
            Ok(located) => Start { flight, located, deadline, started }.find_links(&inner),
            Err(error) => drop(flight.end_early(inner.not_located(error, count))),
        }
    });
    Ok(done)
}

/// A get between the book's answer and its first byte.
struct Start {
    flight: Arc<Flight<Vec<GetStatus>>>,
    located: Located,
    deadline: Instant,
    started: Instant,
}

impl Start {
    /// Goes on at once where everything about the segments is known and open; finds out on a thread that may wait where
    /// not.
    fn find_links(self, inner: &Arc<Inner>) {
        if let Some(unknown) = inner.directory.first_unknown(&inner.book, self.located.segments()) {
            return self.find_links_later(inner, unknown);
        }
        let Some(reading) = self.reading(inner) else { return };
        match inner.directory.links_now(&inner.book, &inner.fabric, reading.segments()) {
            Ok(links) => self.take_off(inner, reading, &links),
            Err(segment) => self.find_links_later(inner, segment),
        }
    }

    fn find_links_later(self, inner: &Arc<Inner>, segment: SegmentId) {
        let owner = Arc::downgrade(inner);
        let find = move || {
            let Some(inner) = owner.upgrade().filter(|_| !self.flight.is_over()) else { return };
            // Asks the book where that is needed; what is known then is read below without waiting.
            inner.directory.distances(&inner.book, &inner.fabric, self.located.segments(), self.deadline);
            let Some(reading) = self.reading(&inner) else { return };
            let until = reading.attempt();
            let links = inner.directory.links(&inner.book, &inner.fabric, reading.segments(), until);
            self.take_off(&inner, reading, &links);
        };
        // Where no thread can be had the flight is let go, which resolves it.
        drop(inner.crew.errands.submit(Whom::Open(segment), Box::new(find)));
    }

    /// `None` where the flight is over.
    fn reading(&self, inner: &Inner) -> Option<Reading> {
        self.flight.with_request(|request| inner.reading(&self.located, &request.buffers, self.deadline))
    }

    fn take_off(self, inner: &Arc<Inner>, mut reading: Reading, links: &Links) {
        let Self { flight, located, started, .. } = self;
        let landing = Arc::clone(&flight);
        flight.take_off(|Request { keys, buffers }| {
            let groups = reading.groups(&keys, links, &inner.sums);
            let (until, stop) = (reading.attempt(), Arc::clone(&landing.stop));
            let transfer = Transfer::<Reads>::new(Some(&inner.paths), &inner.stats, &buffers, until, stop);
            let tasks = transfer.tasks(groups, &inner.crew.workers);
            let (owner, moving) = (Arc::downgrade(inner), Instant::now());
            let (stats, sums) = (Arc::clone(&inner.stats), Arc::clone(&inner.sums));
            let mut rest = Landing { flight: landing, located, reading, keys, buffers, owner, stats, sums, started };
            let then = Box::new(move || {
                add_time(&rest.stats.get_move_ns, moving);
                rest.reading.absorb(transfer.take_results(), &rest.keys, &rest.sums);
                rest.land();
            });
            inner.crew.start(tasks, Kind::Load, 0, then)
        });
    }
}

/// A get whose first attempt is over.
struct Landing {
    flight: Arc<Flight<Vec<GetStatus>>>,
    located: Located,
    reading: Reading,
    keys: KeyBatch,
    buffers: Buffers,
    owner: Weak<Inner>,
    stats: Arc<Stats>,
    sums: Arc<Sums>,
    started: Instant,
}

impl Landing {
    /// Ends the get, or turns to other replicas where there are any.
    fn land(mut self) {
        let is_cancelled = self.flight.stop.load(Ordering::Acquire);
        if is_cancelled || !self.reading.turn_to_others(&self.stats) {
            return self.resolve();
        }
        let (flight, owner) = (Arc::clone(&self.flight), Weak::clone(&self.owner));
        let (Some(inner), Some(segment)) = (owner.upgrade(), self.reading.segments().next()) else {
            return self.resolve();
        };
        let mut this = Some(self);
        flight.go_on(|| {
            let rest = this.take();
            let own: Box<dyn FnOnce() + Send> = Box::new(move || {
                if let Some(rest) = rest {
                    rest.read_from_others();
                }
            });
            let set = Arc::new(TaskSet::new(Vec::new(), vec![own], Box::new(|| {})));
            let call = Arc::clone(&set);
            // Where no thread can be had the flight is let go, which resolves it.
            drop(inner.crew.errands.submit(Whom::Open(segment), Box::new(move || call.run(0))));
            set
        });
        if let Some(mut cancelled) = this {
            cancelled.reading.give_up();
            cancelled.resolve();
        }
    }

    /// Tries the other replicas; on a thread that may wait.
    fn read_from_others(mut self) {
        let owner = self.owner.upgrade();
        match owner.filter(|_| !self.flight.stop.load(Ordering::Acquire)) {
            Some(inner) => inner.read_rest(&mut self.reading, &self.keys, &self.buffers, &self.flight.stop),
            None => self.reading.give_up(),
        }
        self.resolve();
    }

    fn resolve(self) {
        let Self { flight, located, mut reading, buffers, stats, started, .. } = self;
        reading.tell_damage(&located);
        count_get(&stats, &buffers, &reading.statuses, started);
        drop((located, buffers));
        flight.resolve(Ok(reading.statuses));
    }
}
