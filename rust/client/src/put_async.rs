//! A put that no thread waits for: each step is started by the end of the one before it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use memcache_proto::pb;
use memcache_types::{KeyBatch, PutStatus};

use crate::book::{Answer, Book};
use crate::buffer::Buffers;
use crate::completion::Completion;
use crate::directory::Links;
use crate::errands::Whom;
use crate::error::StoreError;
use crate::flight::{Flight, Request};
use crate::jobs::Kind;
use crate::lookup::Shared;
use crate::put::{Granted, PutOptions, Written, abort, bytes_of, count_put, read_seal, seal_request, written};
use crate::stats::{Stats, add_time};
use crate::store::{Inner, check_call};
use crate::transfer::Transfer;
use crate::ways::Writes;

/// Starts a put; see [`Store::put_async`](crate::Store::put_async).
pub(crate) fn put_async(
    inner: &Arc<Inner>,
    keys: KeyBatch,
    sources: Buffers,
    options: &PutOptions,
    deadline: Instant,
) -> Result<Completion<Shared<Vec<PutStatus>>>, StoreError> {
    check_call(&keys, &sources)?;
    inner.check_put(options)?;
    let (started, count) = (Instant::now(), keys.len());
    let (cancelled, refused) = (vec![PutStatus::Cancelled; count], vec![PutStatus::Unavailable; count]);
    if count == 0 {
        let (flight, done) = Flight::start(&inner.flights, Request { keys, buffers: sources }, cancelled, refused)?;
        flight.end_early(Ok(Vec::new()));
        return Ok(done);
    }
    let (body, wanted) = (inner.reserve_request(&keys, &sources, options), inner.replicas_of(options));
    let (flight, done) = Flight::start(&inner.flights, Request { keys, buffers: sources }, cancelled, refused)?;
    // Callbacks do not own the store: its last owner must not be a thread of the runtime, which may not wait.
    let owner = Arc::downgrade(inner);
    inner.book.submit(body, deadline, move |outcome| {
        let Some(inner) = owner.upgrade() else { return };
        add_time(&inner.stats.put_reserve_ns, started);
        match outcome {
            Ok(answer) => on_granted(&inner, flight, answer, wanted, (deadline, started)),
            Err(error) => drop(flight.end_early(inner.not_granted(error, count))),
        }
    });
    Ok(done)
}

fn on_granted(
    inner: &Arc<Inner>,
    flight: Arc<Flight<Vec<PutStatus>>>,
    answer: Answer,
    wanted: u32,
    (deadline, started): (Instant, Instant),
) {
    let reservations = match &answer.body {
        pb::reply::Body::Reserve(reply) => reply.reservations.clone(),
        _ => Vec::new(),
    };
    match flight.with_request(|request| inner.granted(answer, &request.buffers, wanted)) {
        None => abort(&inner.book, reservations), // cancelled meanwhile
        Some(Ok(granted)) => Start { flight, granted, deadline, started }.find_links(inner),
        Some(Err(error)) => drop(flight.end_early(inner.not_granted(error, 0))),
    }
}

/// A put between the book's answer and its first byte.
struct Start {
    flight: Arc<Flight<Vec<PutStatus>>>,
    granted: Granted,
    deadline: Instant,
    started: Instant,
}

impl Start {
    /// Goes on at once where all links are open; opens them on a thread that may wait where not.
    fn find_links(mut self, inner: &Arc<Inner>) {
        let segments = self.granted.tickets.segments();
        let segment = match inner.directory.links_now(&inner.book, &inner.fabric, segments) {
            Ok(links) if self.granted.clears_at_once(&links) => {
                self.granted.clear_records(&links, self.granted.write_deadline(self.deadline));
                return self.take_off(inner, &links);
            }
            Ok(_) => self.granted.tickets.segments().next(),
            Err(segment) => Some(segment),
        };
        let Some(segment) = segment else { return };
        let owner = Arc::downgrade(inner);
        let find = move || {
            let Some(inner) = owner.upgrade().filter(|_| !self.flight.is_over()) else { return };
            let until = self.granted.write_deadline(self.deadline);
            let links = inner.directory.links(&inner.book, &inner.fabric, self.granted.tickets.segments(), until);
            self.granted.clear_records(&links, until);
            self.take_off(&inner, &links);
        };
        // Where no thread can be had the flight is let go, which resolves it.
        drop(inner.crew.errands.submit(Whom::Open(segment), Box::new(find)));
    }

    fn take_off(self, inner: &Arc<Inner>, links: &Links) {
        let Self { flight, mut granted, deadline, started } = self;
        let landing = Arc::clone(&flight);
        flight.take_off(|Request { keys, buffers }| {
            let until = granted.write_deadline(deadline);
            let (groups, places) = inner.plan_writes(&mut granted, &keys, &buffers, links);
            let Granted { mut statuses, tickets, .. } = granted;
            let transfer =
                Transfer::<Writes>::new(Some(&inner.paths), &inner.stats, &buffers, until, Arc::clone(&landing.stop));
            let tasks = transfer.tasks(groups, &inner.crew.workers);
            let (book, stats, bytes) = (Arc::clone(&inner.book), Arc::clone(&inner.stats), bytes_of(&buffers));
            let moving = Instant::now();
            let then = Box::new(move || {
                add_time(&stats.put_move_ns, moving);
                let landed = written(transfer.take_results(), &places, &mut statuses);
                drop((tickets, transfer, buffers));
                Landing { flight: landing, book, stats, bytes, statuses, started }.seal(landed, deadline);
            });
            inner.crew.start(tasks, Kind::Save, 0, then)
        });
    }
}

/// A put whose bytes are written.
struct Landing {
    flight: Arc<Flight<Vec<PutStatus>>>,
    book: Arc<Book>,
    stats: Arc<Stats>,
    bytes: Vec<u64>,
    statuses: Vec<PutStatus>,
    started: Instant,
}

impl Landing {
    /// Seals what is whole and resolves the flight with the book's answer. A put that was cancelled keeps nothing.
    fn seal(mut self, written: Written, deadline: Instant) {
        let Written { sealable, mut abandoned } = written;
        let is_cancelled = self.flight.stop.load(Ordering::Acquire);
        if is_cancelled {
            for (index, reservation) in &sealable {
                self.statuses[*index] = PutStatus::Cancelled;
                abandoned.push(*reservation);
            }
        }
        abort(&self.book, abandoned);
        if is_cancelled || sealable.is_empty() {
            return self.resolve(Ok(()));
        }
        let (book, sealing) = (Arc::clone(&self.book), Instant::now());
        book.submit(seal_request(&sealable), deadline, move |outcome| {
            add_time(&self.stats.put_seal_ns, sealing);
            let read = read_seal(&self.book, outcome, &sealable, &mut self.statuses);
            self.resolve(read);
        });
    }

    fn resolve(self, read: Result<(), StoreError>) {
        count_put(&self.stats, &self.bytes, &self.statuses, self.started);
        self.flight.resolve(read.map(|()| self.statuses));
    }
}
