//! Reading a batch: locate, read, verify, release.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::{Checksum, Trailer};
use memcache_proto::pack::{WireError, expect_length, keys_to_wire, outcomes_from_wire};
use memcache_proto::pb;
use memcache_transport::TransportError;
use memcache_types::{Extent, Generation, GetStatus, GlobalAddress, KeyBatch, KeyDigest, SegmentId, extent_bytes};

use crate::book::{Book, BookError};
use crate::buffer::Buffers;
use crate::directory::LinkError;
use crate::error::{InvalidCall, StoreError};
use crate::stats::{add, add_time};
use crate::store::{Inner, check_call};
use crate::transfer::{Found, Group, Move};

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
}

impl Located {
    /// Payload bytes of each key's object; `None` where there is none.
    pub fn payload_bytes(&self) -> impl ExactSizeIterator<Item = Option<u64>> + '_ {
        self.places.iter().map(|place| place.map(|place| place.payload_bytes))
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
            Err(BookError::Refused(message)) => Err(self.book.error(BookError::Refused(message))),
            Err(error) => {
                add(&self.stats.get_failures, keys.len() as u64);
                Ok(vec![get_failure(&error); keys.len()])
            }
        }
    }

    pub(crate) fn locate_raw(&self, keys: &KeyBatch, deadline: Instant) -> Result<Located, BookError> {
        let request = pb::Locate { keys: Some(keys_to_wire(keys)), near: self.near() };
        let started = Instant::now();
        let answer = self.book.call(pb::request::Body::Locate(request), deadline);
        add_time(&self.stats.get_locate_ns, started);
        add_time(&self.stats.get_ns, started);
        let answer = answer?;
        let pb::reply::Body::Locate(reply) = answer.body else {
            return Err(BookError::Refused("not a Locate reply".to_owned()));
        };
        let places = places(&reply, keys.len()).map_err(|error| BookError::Refused(error.to_string()))?;
        let valid_until = answer.sent + Duration::from_millis(u64::from(reply.lease_ms));
        let others = others(&reply, &places).map_err(|error| BookError::Refused(error.to_string()))?;
        Ok(Located { places, others, lease: reply.lease, valid_until, book: Arc::clone(&self.book) })
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
        let mut statuses = vec![GetStatus::Miss; keys.len()];
        let mut wanted: Vec<(usize, Place)> = Vec::with_capacity(keys.len());
        for (index, place) in located.places.iter().enumerate() {
            match place {
                Some(place) if place.payload_bytes == targets.list(index).bytes() => wanted.push((index, *place)),
                Some(_) => statuses[index] = GetStatus::SizeMismatch,
                None => {}
            }
        }
        let deadline = deadline.min(located.valid_until);
        let mut choices = self.order(located, &mut wanted, deadline);
        loop {
            self.read_once(located, &wanted, keys, targets, &mut statuses, attempt(deadline, !choices.is_empty()));
            wanted.retain(|(index, _)| statuses[*index] != GetStatus::Hit);
            // Who has another replica left is read again from that one.
            wanted = wanted.iter().filter_map(|(index, _)| Some((*index, choices.get_mut(index)?.pop()?))).collect();
            if wanted.is_empty() || Instant::now() >= deadline {
                break;
            }
            add(&self.stats.get_fallbacks, wanted.len() as u64);
        }
        self.count_get(targets, &statuses, started);
        Ok(statuses)
    }

    /// Puts the nearest replica of each key into `wanted`; the others, nearest last, by key.
    fn order(&self, located: &Located, wanted: &mut [(usize, Place)], deadline: Instant) -> HashMap<usize, Vec<Place>> {
        if located.others.is_empty() {
            return HashMap::new();
        }
        let all = located.places.iter().flatten().chain(located.others.iter().map(|(_, place)| place));
        let segments = all.map(|place| place.extent.segment());
        let distances = self.directory.distances(&self.book, &self.fabric, segments, deadline);
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

    fn read_once(
        &self,
        located: &Located,
        wanted: &[(usize, Place)],
        keys: &KeyBatch,
        targets: &Buffers,
        statuses: &mut [GetStatus],
        deadline: Instant,
    ) {
        let groups = self.plan_reads(wanted, keys, statuses, deadline);
        let transfer = self.transfer(targets, deadline);
        let moving = Instant::now();
        let moved = transfer.read(groups);
        let in_time = add_time(&self.stats.get_move_ns, moving) < located.valid_until;
        for (tag, protocol, outcome) in moved {
            let (index, place) = &wanted[tag];
            statuses[*index] = match outcome {
                Ok(found) if in_time => verify(&found, place, keys.get(*index)),
                Ok(_) => GetStatus::Miss, // outlived its lease
                Err(error) => {
                    tracing::debug!(%error, %protocol, "a get could not read");
                    read_failure(&error)
                }
            };
        }
    }

    fn plan_reads(
        &self,
        wanted: &[(usize, Place)],
        keys: &KeyBatch,
        statuses: &mut [GetStatus],
        deadline: Instant,
    ) -> Vec<Group> {
        let segments = wanted.iter().map(|(_, place)| place.extent.segment());
        let links = self.directory.links(&self.book, &self.fabric, segments, deadline);
        let mut groups: HashMap<SegmentId, Group> = HashMap::new();
        for (tag, (index, place)) in wanted.iter().enumerate() {
            let index = *index;
            match links.get(&place.extent.segment()) {
                Some(Ok(link)) => {
                    let group = groups
                        .entry(place.extent.segment())
                        .or_insert_with(|| Group { link: Arc::clone(link), moves: Vec::new() });
                    let trailer = place.trailer(keys.get(index));
                    group.moves.push(Move { index, tag, extent: place.extent, trailer, record: None });
                }
                Some(Err(LinkError::Book(error))) => statuses[index] = get_failure(error),
                Some(Err(LinkError::Transport(error))) => statuses[index] = read_failure(error),
                // The node left: a miss.
                Some(Err(LinkError::Gone)) | None => statuses[index] = GetStatus::Miss,
            }
        }
        groups.into_values().collect()
    }

    fn count_get(&self, targets: &Buffers, statuses: &[GetStatus], started: Instant) {
        let stats = &self.stats;
        for (list, status) in targets.lists().iter().zip(statuses) {
            match status {
                GetStatus::Hit => {
                    add(&stats.get_objects, 1);
                    add(&stats.get_bytes, list.bytes());
                }
                GetStatus::Miss => add(&stats.get_misses, 1),
                GetStatus::Corrupt => add(&stats.get_corrupt, 1),
                _ => add(&stats.get_failures, 1),
            }
        }
        add_time(&stats.get_ns, started);
    }
}

/// How long one attempt may take. While there is another replica to go to, half of the time that is left.
fn attempt(deadline: Instant, another: bool) -> Instant {
    let now = Instant::now();
    if another { now + deadline.saturating_duration_since(now) / 2 } else { deadline }
}

/// Whether what was read is what the book named: the trailer in every part, the payload by its sum where there is one.
pub(crate) fn verify((trailer, sum): &Found, place: &Place, key: &[u8]) -> GetStatus {
    let Some(found) = Trailer::decode(trailer) else {
        return GetStatus::Miss; // being overwritten
    };
    if found.generation != place.generation {
        return GetStatus::Miss; // another object by now
    }
    let sound = match (found.checksum, sum) {
        (Checksum::Crc32c(want), Some(sum)) => want == *sum,
        (Checksum::None, _) | (_, None) => true,
    };
    let described = Trailer { checksum: Checksum::None, ..found } == place.trailer(key);
    if described && sound {
        return GetStatus::Hit;
    }
    tracing::warn!(segment = %place.extent.segment(), offset = place.extent.offset(), described, sound,
        "an object does not match its trailer; treated as a miss");
    GetStatus::Corrupt
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
            Ok(Some(Place { extent, payload_bytes, generation }))
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
        Some((index, Place { extent, payload_bytes, generation: Generation::new(reply.other_generations[at]) }))
    };
    (0..count).map(|at| other(at).ok_or(WireError::Missing { field: "valid other place" })).collect()
}

fn get_failure(error: &BookError) -> GetStatus {
    match error {
        BookError::Unavailable(_) | BookError::Interrupted(_) => GetStatus::Unavailable,
        BookError::Timeout { .. } => GetStatus::Timeout,
        BookError::Refused(_) => GetStatus::Invalid,
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
