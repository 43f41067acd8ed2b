//! Reading a batch: locate, read, verify, release.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memcache_memory::{Checksum, Trailer};
use memcache_proto::pack::{WireError, expect_length, keys_to_wire, outcomes_from_wire};
use memcache_proto::pb;
use memcache_transport::TransportError;
use memcache_types::{Extent, Generation, GetStatus, GlobalAddress, KeyBatch, KeyDigest, SegmentId, extent_bytes};

use crate::book::{Answer, Book, BookError};
use crate::buffer::Buffers;
use crate::directory::{LinkError, Links};
use crate::error::{InvalidCall, StoreError};
use crate::stats::{Stats, add, add_time};
use crate::store::{Inner, check_call};
use crate::sums::Sums;
use crate::transfer::{Group, Groups, Move, MoveError, Moved, Transfer};
use crate::verdict::{Damage, Verdict, judge};
use crate::ways::{Found, Reads};

/// Where the objects of a batch are, held in place by a lease until this is dropped or its time is up.
pub struct Located {
    places: Vec<Option<Place>>,
    /// Other replicas, by position of their key, which never falls.
    others: Vec<(usize, Place)>,
    lease: u64,
    /// A read that ends later than this may have seen other bytes.
    valid_until: Instant,
    book: Arc<Book>,
}

#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) extent: Extent,
    pub(crate) payload_bytes: u64,
    pub(crate) generation: Generation,
    /// Writers of an earlier life of the book may be at work there: only the checksum tells, whatever the policy.
    pub(crate) rests: bool,
}

impl Located {
    /// Payload bytes of each key's object; `None` where there is none.
    pub fn payload_bytes(&self) -> impl ExactSizeIterator<Item = Option<u64>> + '_ {
        self.places.iter().map(|place| place.map(|place| place.payload_bytes))
    }

    /// Segments of all replicas.
    pub(crate) fn segments(&self) -> impl Iterator<Item = SegmentId> + '_ {
        let all = self.places.iter().flatten().chain(self.others.iter().map(|(_, place)| place));
        all.map(|place| place.extent.segment())
    }

    /// Holds the objects in place for the full time of a lease again. False: that could not be had, and the former time
    /// goes on.
    pub fn renew(&mut self, deadline: Instant) -> bool {
        let body = pb::request::Body::Renew(pb::Renew { leases: vec![self.lease] });
        let answer = self.book.call(body, deadline);
        if let Ok(answer) = answer
            && let pb::reply::Body::Renew(reply) = answer.body
            && reply.renewed == [1]
        {
            self.valid_until = answer.sent + Duration::from_millis(u64::from(reply.lease_ms));
            return true;
        }
        false
    }
}

impl Drop for Located {
    fn drop(&mut self) {
        if self.lease != 0 {
            self.book.release(self.lease);
        }
    }
}

impl fmt::Debug for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = self.places.iter().filter(|place| place.is_some()).count();
        write!(f, "Located({found} of {} objects)", self.places.len())
    }
}

impl Inner {
    /// Reads one object a key; see [`Store::get`](crate::Store::get).
    pub(crate) fn get(
        &self,
        keys: &KeyBatch,
        targets: &Buffers,
        deadline: Instant,
    ) -> Result<Vec<GetStatus>, StoreError> {
        check_call(keys, targets)?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        match self.locate_raw(keys, deadline) {
            Ok(located) => self.read(&located, keys, targets, deadline),
            Err(error) => self.not_located(error, keys.len()),
        }
    }

    pub(crate) fn locate_raw(&self, keys: &KeyBatch, deadline: Instant) -> Result<Located, BookError> {
        let started = Instant::now();
        let answer = self.book.call(self.locate_request(keys), deadline);
        add_time(&self.stats.get_locate_ns, started);
        add_time(&self.stats.get_ns, started);
        self.located(answer?, keys.len())
    }

    pub(crate) fn locate_request(&self, keys: &KeyBatch) -> pb::request::Body {
        pb::request::Body::Locate(pb::Locate { keys: Some(keys_to_wire(keys)), near: self.near() })
    }

    pub(crate) fn located(&self, answer: Answer, keys: usize) -> Result<Located, BookError> {
        let pb::reply::Body::Locate(reply) = answer.body else {
            return Err(BookError::not_a("Locate"));
        };
        let places = places(&reply, keys)?;
        let valid_until = answer.sent + Duration::from_millis(u64::from(reply.lease_ms));
        let others = others(&reply, &places)?;
        Ok(Located { places, others, lease: reply.lease, valid_until, book: Arc::clone(&self.book) })
    }

    /// What a get of which nothing is known returns.
    pub(crate) fn not_located(&self, error: BookError, keys: usize) -> Result<Vec<GetStatus>, StoreError> {
        if let BookError::Limit(limit) = &error {
            tracing::warn!(limit, keys, "a get finds nothing: the MetaService gives no more leases");
        }
        if matches!(error, BookError::Refused(_) | BookError::Malformed(_)) {
            return Err(self.book.error(error));
        }
        add(&self.stats.get_failures, keys as u64);
        Ok(vec![get_failure(&error); keys])
    }

    /// Reads what was located into the targets; the target of an absent key is left alone.
    pub(crate) fn read(
        &self,
        located: &Located,
        keys: &KeyBatch,
        targets: &Buffers,
        deadline: Instant,
    ) -> Result<Vec<GetStatus>, StoreError> {
        if located.places.len() != keys.len() || targets.len() != keys.len() {
            return Err(InvalidCall::Count { keys: keys.len(), others: targets.len(), what: "buffers" }.into());
        }
        let started = Instant::now();
        let mut reading = self.reading(located, targets, deadline);
        self.read_rest(&mut reading, keys, targets, &Arc::default());
        reading.tell_damage(located);
        count_get(&self.stats, targets, &reading.statuses, started);
        Ok(reading.statuses)
    }

    /// What is to be read from where, the nearest replica first. Waits only where the book has to be asked how far a
    /// replica is.
    pub(crate) fn reading(&self, located: &Located, targets: &Buffers, deadline: Instant) -> Reading {
        let mut statuses = vec![GetStatus::Miss; located.places.len()];
        let mut wanted: Vec<(usize, Place)> = Vec::with_capacity(located.places.len());
        for (index, place) in located.places.iter().enumerate() {
            match place {
                Some(place) if place.payload_bytes == targets.list(index).bytes() => wanted.push((index, *place)),
                Some(_) => statuses[index] = GetStatus::SizeMismatch,
                None => {}
            }
        }
        let until = deadline.min(located.valid_until);
        let choices = self.order(located, &mut wanted, until);
        let damage = Damage::default();
        Reading { statuses, wanted, choices, until, valid_until: located.valid_until, damage }
    }

    /// Puts the nearest replica of each key into `wanted`; the others, nearest last, by key.
    fn order(&self, located: &Located, wanted: &mut [(usize, Place)], deadline: Instant) -> HashMap<usize, Vec<Place>> {
        if located.others.is_empty() {
            return HashMap::new();
        }
        let distances = self.directory.distances(&self.book, &self.fabric, located.segments(), deadline);
        let mut choices: HashMap<usize, Vec<Place>> = HashMap::new();
        for (index, place) in &located.others {
            choices.entry(*index).or_default().push(*place);
        }
        for (index, place) in wanted {
            let Some(others) = choices.get_mut(index) else { continue };
            others.insert(0, *place);
            // Of equally near ones a different one a key: readers spread over them.
            let turn = *index % others.len();
            others.rotate_left(turn);
            others.sort_by_key(|place| Reverse(distances.get(&place.extent.segment()).copied()));
            if let Some(nearest) = others.pop() {
                *place = nearest;
            }
        }
        choices
    }

    /// Reads from one replica after the other until everything is read or nobody is left. Waits; `stop` cancels it.
    pub(crate) fn read_rest(&self, reading: &mut Reading, keys: &KeyBatch, targets: &Buffers, stop: &Arc<AtomicBool>) {
        loop {
            let until = reading.attempt();
            let links = self.directory.links(&self.book, &self.fabric, reading.segments(), until);
            let groups = reading.groups(keys, &links, &self.sums);
            let transfer = Transfer::<Reads>::new(Some(&self.paths), &self.stats, targets, until, Arc::clone(stop));
            let moving = Instant::now();
            let moved = transfer.run(&self.crew, groups);
            add_time(&self.stats.get_move_ns, moving);
            reading.absorb(moved, keys, &self.sums);
            if stop.load(Ordering::Acquire) || !reading.turn_to_others(&self.stats) {
                break;
            }
        }
    }
}

/// What a get still wants from where.
pub(crate) struct Reading {
    pub(crate) statuses: Vec<GetStatus>,
    /// Position of the key, and the replica to read.
    wanted: Vec<(usize, Place)>,
    /// Replicas to turn to, nearest last, by position of the key.
    choices: HashMap<usize, Vec<Place>>,
    until: Instant,
    valid_until: Instant,
    /// What the book does not know of yet.
    damage: Damage,
}

impl Reading {
    /// Where the next attempt reads.
    pub(crate) fn segments(&self) -> impl Iterator<Item = SegmentId> + '_ {
        self.wanted.iter().map(|(_, place)| place.extent.segment())
    }

    /// How long the next attempt may take. While there is another replica to go to, half of the time that is left.
    pub(crate) fn attempt(&self) -> Instant {
        let now = Instant::now();
        let left = self.until.saturating_duration_since(now);
        if self.choices.is_empty() { self.until } else { now + left / 2 }
    }

    /// Which objects to read over which link. What is read is unavailable until its result says otherwise.
    pub(crate) fn groups(&mut self, keys: &KeyBatch, links: &Links, sums: &Sums) -> Vec<Group> {
        let mut groups = Groups::default();
        for (tag, (index, place)) in self.wanted.iter().enumerate() {
            self.statuses[*index] = match links.get(&place.extent.segment()) {
                Some(Ok(link)) => {
                    let trailer = place.trailer(keys.get(*index));
                    let summed = sums.of_get() || place.rests;
                    let extent = place.extent;
                    groups.push(link, Move { index: *index, tag, extent, trailer, summed, record: None });
                    GetStatus::Unavailable
                }
                Some(Err(LinkError::Book(error))) => get_failure(error),
                Some(Err(LinkError::Transport(error))) => read_failure(error),
                // The node left: a miss.
                Some(Err(LinkError::Gone)) | None => GetStatus::Miss,
            };
        }
        groups.into_vec()
    }

    /// Takes the results of an attempt.
    pub(crate) fn absorb(&mut self, moved: Vec<Moved<Found>>, keys: &KeyBatch, sums: &Sums) {
        for Moved { tag, protocol, ended, outcome } in moved {
            let (index, place) = &self.wanted[tag];
            self.statuses[*index] = match outcome {
                Ok(found) if ended < self.valid_until => {
                    let verdict = judge(&found, place, keys.get(*index));
                    if found.1.is_some() && matches!(verdict, Verdict::Sound | Verdict::Corrupt) {
                        sums.compared(verdict == Verdict::Sound);
                    }
                    self.damage.note(verdict, place, keys.get(*index));
                    verdict.status()
                }
                Ok(_) => GetStatus::Miss, // outlived its lease
                Err(MoveError::Cancelled) => GetStatus::Cancelled,
                Err(MoveError::Transport(error)) => {
                    tracing::debug!(%error, %protocol, "a get could not read");
                    read_failure(&error)
                }
            };
        }
    }

    /// Turns to other replicas of what was not read; whether there are any, and time for them.
    pub(crate) fn turn_to_others(&mut self, stats: &Stats) -> bool {
        let (statuses, choices) = (&self.statuses, &mut self.choices);
        let missing = self.wanted.iter().filter(|(index, _)| statuses[*index] != GetStatus::Hit);
        self.wanted = missing.filter_map(|(index, _)| Some((*index, choices.get_mut(index)?.pop()?))).collect();
        if self.wanted.is_empty() || Instant::now() >= self.until {
            return false;
        }
        add(&stats.get_fallbacks, self.wanted.len() as u64);
        true
    }

    /// Tells the book what was found damaged.
    pub(crate) fn tell_damage(&mut self, located: &Located) {
        self.damage.tell(&located.book);
    }

    /// Gives up what is still wanted because the get was cancelled.
    pub(crate) fn give_up(&mut self) {
        for (index, _) in self.wanted.drain(..) {
            self.statuses[index] = GetStatus::Cancelled;
        }
    }
}

pub(crate) fn count_get(stats: &Stats, targets: &Buffers, statuses: &[GetStatus], started: Instant) {
    for (list, status) in targets.lists().iter().zip(statuses) {
        match status {
            GetStatus::Hit => {
                add(&stats.get_objects, 1);
                add(&stats.get_bytes, list.bytes());
            }
            GetStatus::Miss => add(&stats.get_misses, 1),
            GetStatus::Corrupt => add(&stats.get_corrupt, 1),
            GetStatus::Cancelled => add(&stats.get_cancelled, 1),
            _ => add(&stats.get_failures, 1),
        }
    }
    add_time(&stats.get_ns, started);
}

impl Place {
    /// The trailer that must stand there, its checksum aside.
    pub(crate) fn trailer(&self, key: &[u8]) -> Trailer {
        Trailer {
            digest: KeyDigest::of(key),
            generation: self.generation,
            payload_bytes: self.payload_bytes,
            checksum: Checksum::None,
        }
    }
}

fn places(reply: &pb::LocateReply, keys: usize) -> Result<Vec<Option<Place>>, WireError> {
    let outcomes = outcomes_from_wire::<pb::LocateOutcome>("outcomes", &reply.outcomes, keys)?;
    let found = outcomes.iter().filter(|outcome| **outcome == pb::LocateOutcome::Located).count();
    expect_length("segments", reply.segments.len(), found)?;
    expect_length("offsets", reply.offsets.len(), found)?;
    expect_length("payload_bytes", reply.payload_bytes.len(), found)?;
    expect_length("generations", reply.generations.len(), found)?;
    let mut at = 0;
    outcomes
        .into_iter()
        .map(|outcome| {
            if outcome != pb::LocateOutcome::Located {
                return Ok(None);
            }
            let address = GlobalAddress::new(SegmentId::new(reply.segments[at]), reply.offsets[at]);
            let payload_bytes = reply.payload_bytes[at];
            let generation = Generation::new(reply.generations[at]);
            at += 1;
            let extent = Extent::new(address, extent_bytes(payload_bytes))
                .map_err(|_| WireError::Missing { field: "valid offset" })?;
            let rests = reply.resting.contains(&address.segment().get());
            Ok(Some(Place { extent, payload_bytes, generation, rests }))
        })
        .collect()
}

/// Replicas beside the first of each key.
fn others(reply: &pb::LocateReply, places: &[Option<Place>]) -> Result<Vec<(usize, Place)>, WireError> {
    let count = reply.other_of.len();
    expect_length("other_segments", reply.other_segments.len(), count)?;
    expect_length("other_offsets", reply.other_offsets.len(), count)?;
    expect_length("other_generations", reply.other_generations.len(), count)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let located: Vec<usize> = (0..places.len()).filter(|index| places[*index].is_some()).collect();
    let other = |at: usize| {
        let index = *located.get(reply.other_of[at] as usize)?;
        let payload_bytes = places[index]?.payload_bytes;
        let address = GlobalAddress::new(SegmentId::new(reply.other_segments[at]), reply.other_offsets[at]);
        let extent = Extent::new(address, extent_bytes(payload_bytes)).ok()?;
        let rests = reply.resting.contains(&address.segment().get());
        let generation = Generation::new(reply.other_generations[at]);
        Some((index, Place { extent, payload_bytes, generation, rests }))
    };
    (0..count).map(|at| other(at).ok_or(WireError::Missing { field: "valid other place" })).collect()
}

fn get_failure(error: &BookError) -> GetStatus {
    match error {
        BookError::Unavailable(_) | BookError::Interrupted(_) => GetStatus::Unavailable,
        BookError::Timeout { .. } => GetStatus::Timeout,
        BookError::Refused(_) | BookError::Malformed(_) => GetStatus::Invalid,
        // Nobody may look now; others, or this client's own reads, let go soon.
        BookError::Limit(_) => GetStatus::Miss,
    }
}

/// A node that is gone took its objects along: a miss. Anything else is named.
fn read_failure(error: &TransportError) -> GetStatus {
    match error {
        TransportError::PeerGone => GetStatus::Miss,
        TransportError::Timeout => GetStatus::Timeout,
        TransportError::InvalidOp { .. } => GetStatus::Invalid,
        _ => GetStatus::Unavailable,
    }
}
