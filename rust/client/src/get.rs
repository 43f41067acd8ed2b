//! Reading a batch: locate, read, verify, release.

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
use crate::stats::add;
use crate::store::{Inner, check_call};
use crate::transfer::{Found, Group, Move};

/// Where the objects of a batch are, held in place by a lease until this is dropped or its time is up.
pub struct Located {
    places: Vec<Option<Place>>,
    lease: u64,
    /// A read that ends later than this may have seen other bytes.
    valid_until: Instant,
    book: Arc<Book>,
}

#[derive(Clone, Copy)]
struct Place {
    extent: Extent,
    payload_bytes: u64,
    generation: Generation,
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
            let body = pb::request::Body::Release(pb::Release { leases: vec![self.lease] });
            self.book.submit(body, Instant::now() + Duration::from_secs(1), drop);
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
        let answer = self.book.call(pb::request::Body::Locate(request), deadline)?;
        let pb::reply::Body::Locate(reply) = answer.body else {
            return Err(BookError::Refused("not a Locate reply".to_owned()));
        };
        let places = places(&reply, keys.len()).map_err(|error| BookError::Refused(error.to_string()))?;
        let valid_until = answer.sent + Duration::from_millis(u64::from(reply.lease_ms));
        Ok(Located { places, lease: reply.lease, valid_until, book: Arc::clone(&self.book) })
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
        let groups = self.plan_reads(located, keys, targets, &mut statuses, deadline);
        let moved = self.transfer(targets, deadline.min(located.valid_until)).read(groups);
        let in_time = Instant::now() < located.valid_until;
        for (index, protocol, outcome) in moved {
            statuses[index] = match (outcome, located.places[index]) {
                (Ok(found), Some(place)) if in_time => verify(&found, &place, keys.get(index)),
                (Ok(_), _) => GetStatus::Miss, // outlived its lease
                (Err(error), _) => {
                    tracing::debug!(%error, %protocol, "a get could not read");
                    read_failure(&error)
                }
            };
        }
        self.count_get(targets, &statuses, started);
        Ok(statuses)
    }

    fn plan_reads(
        &self,
        located: &Located,
        keys: &KeyBatch,
        targets: &Buffers,
        statuses: &mut [GetStatus],
        deadline: Instant,
    ) -> Vec<Group> {
        let segments = located.places.iter().flatten().map(|place| place.extent.segment());
        let links = self.directory.links(&self.book, &self.fabric, segments, deadline);
        let mut groups: HashMap<SegmentId, Group> = HashMap::new();
        for (index, place) in located.places.iter().enumerate() {
            let Some(place) = place else { continue };
            if place.payload_bytes != targets.list(index).bytes() {
                statuses[index] = GetStatus::SizeMismatch;
                continue;
            }
            match links.get(&place.extent.segment()) {
                Some(Ok(link)) => {
                    let group = groups
                        .entry(place.extent.segment())
                        .or_insert_with(|| Group { link: Arc::clone(link), moves: Vec::new() });
                    group.moves.push(Move { index, extent: place.extent, trailer: place.trailer(keys.get(index)) });
                }
                Some(Err(LinkError::Book(error))) => statuses[index] = get_failure(error),
                Some(Err(LinkError::Transport(error))) => statuses[index] = read_failure(error),
                Some(Err(LinkError::Gone)) | None => {} // the node left: a miss
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
        add(&stats.get_ns, u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
}

/// Whether what was read is what the book named: the trailer in every part, the payload by its sum where there is one.
fn verify((trailer, sum): &Found, place: &Place, key: &[u8]) -> GetStatus {
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
    fn trailer(&self, key: &[u8]) -> Trailer {
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
