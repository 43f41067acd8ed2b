//! Records: what a writer leaves in a segment's table beside its object, and how records are taken away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::Trailer;
use memcache_memory::holdings::{RecordHead, floor_trailer, record_payload, record_trailer};
use memcache_proto::pack::{WireError, expect_length};
use memcache_proto::pb;
use memcache_transport::{Link, ReadOp, TransportError, WriteOp};
use memcache_types::holdings::{FLOOR_BYTES, RECORD_BYTES};
use memcache_types::limits::TRAILER_LEN;
use memcache_types::{Epoch, Extent, Generation, GlobalAddress, KeyDigest, ScatterList, SegmentId};

use crate::directory::LinkError;
use crate::error::StoreError;
use crate::store::Inner;

/// Pauses between two questions whether nodes have told what they hold: the first, and the longest.
const ASK_PAUSE: Duration = Duration::from_millis(5);
const ASK_PAUSE_MAX: Duration = Duration::from_millis(100);

const RESTARTED: &str = "the MetaService restarted meanwhile";

/// A record to be written together with its object.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) extent: Extent,
    pub(crate) trailer: Trailer,
    /// The payload, and a list that leads to it.
    _payload: Vec<u8>,
    pub(crate) local: ScatterList,
}

impl Record {
    pub(crate) fn new(extent: Extent, head: &RecordHead, key: &[u8], generation: Generation) -> Self {
        let payload = record_payload(head, key);
        let trailer = record_trailer(&payload, KeyDigest::of(key), generation);
        let local = ScatterList::single(payload.as_ptr() as u64, payload.len() as u64);
        Self { extent, trailer, _payload: payload, local }
    }
}

/// The extent of a record.
pub(crate) fn record_extent(segment: SegmentId, offset: u64) -> Result<Extent, WireError> {
    small_extent(segment, offset, RECORD_BYTES)
}

fn small_extent(segment: SegmentId, offset: u64, bytes: u64) -> Result<Extent, WireError> {
    Extent::new(GlobalAddress::new(segment, offset), bytes).map_err(|_| WireError::Missing { field: "valid offset" })
}

/// Takes records away.
pub(crate) fn clear(link: &dyn Link, records: &[Extent], deadline: Instant) -> Result<(), TransportError> {
    put_trailers(link, records, &Trailer::RETRACTED, deadline)
}

/// Writes extents that are only a trailer.
fn put_trailers(
    link: &dyn Link,
    extents: &[Extent],
    trailer: &[u8; TRAILER_LEN],
    deadline: Instant,
) -> Result<(), TransportError> {
    let nothing = ScatterList::new();
    let ops: Vec<WriteOp<'_>> =
        extents.iter().map(|extent| WriteOp { extent: *extent, payload_bytes: 0, local: &nothing, trailer }).collect();
    // SAFETY: there are no pieces.
    unsafe { link.write(&ops, deadline) }.into_iter().collect()
}

/// Takes records away that still are of these generations: their places may have gone to other objects by now.
fn clear_if_still(link: &dyn Link, records: &[(Extent, Generation)], deadline: Instant) -> Result<(), TransportError> {
    let nothing = ScatterList::new();
    let ops: Vec<ReadOp<'_>> =
        records.iter().map(|(extent, _)| ReadOp { extent: *extent, payload_bytes: 0, local: &nothing }).collect();
    // SAFETY: there are no pieces.
    let found = unsafe { link.read(&ops, deadline) };
    let mut standing = Vec::new();
    for ((extent, generation), found) in records.iter().zip(found) {
        if Trailer::decode(&found?).is_some_and(|found| found.generation == *generation) {
            standing.push(*extent);
        }
    }
    clear(link, &standing, deadline)
}

impl Inner {
    /// Clears the records of removed objects, so that no restart of the `MetaService` brings them back. `asked_in`: the
    /// life of the service that removed them. Waits for nodes that have not told it what they hold: it refuses what was
    /// removed, and they clear the records.
    pub(crate) fn forget_records(
        &self,
        removed: &pb::RemoveReply,
        asked_in: Epoch,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let pb::RemoveReply { segments, offsets, generations, untold, .. } = removed;
        expect_length("offsets", offsets.len(), segments.len())?;
        expect_length("generations", generations.len(), segments.len())?;
        let records = segments.iter().zip(offsets).zip(generations).map(|((segment, offset), generation)| {
            Ok((record_extent(SegmentId::new(*segment), *offset)?, Generation::new(*generation)))
        });
        let records: Vec<(Extent, Generation)> = records.collect::<Result<_, WireError>>()?;
        let segment_of = |record: &(Extent, Generation)| record.0.segment();
        self.in_every_segment(&records, segment_of, asked_in, deadline, |link, own| {
            clear_if_still(link, own, deadline)
        })?;
        self.wait_told(untold.clone(), asked_in, deadline)
    }

    /// Waits until the nodes of these segments have told what they hold, or are gone.
    fn wait_told(&self, mut untold: Vec<u64>, asked_in: Epoch, deadline: Instant) -> Result<(), StoreError> {
        let mut pause = ASK_PAUSE;
        while !untold.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let why = format!("the nodes of {} segments have not told yet what they hold", untold.len());
                return Err(StoreError::NotForgotten { why });
            }
            std::thread::sleep(pause.min(left));
            pause = (2 * pause).min(ASK_PAUSE_MAX);
            let (epoch, known) = self.describe(untold, deadline)?;
            if epoch != asked_in {
                return Err(StoreError::NotForgotten { why: RESTARTED.to_owned() });
            }
            untold = known.into_iter().filter(|one| one.untold).map(|one| one.segment).collect();
        }
        Ok(())
    }

    /// Writes a floor to every segment, so that no restart of the `MetaService` brings back what is older.
    pub(crate) fn raise_floors(
        &self,
        removed: &pb::RemoveAllReply,
        asked_in: Epoch,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let pb::RemoveAllReply { floor, segments, offsets, .. } = removed;
        expect_length("offsets", offsets.len(), segments.len())?;
        let floors = segments.iter().zip(offsets);
        let floors = floors.map(|(segment, offset)| small_extent(SegmentId::new(*segment), *offset, FLOOR_BYTES));
        let floors: Vec<Extent> = floors.collect::<Result<_, WireError>>()?;
        let trailer = floor_trailer(Generation::new(*floor)).encode();
        self.in_every_segment(
            &floors,
            |floor| floor.segment(),
            asked_in,
            deadline,
            |link, own| put_trailers(link, own, &trailer, deadline),
        )
    }

    /// Does something to items in the segments they belong to. The book remembers for memory that is gone, as long as it
    /// lives itself.
    fn in_every_segment<T: Copy>(
        &self,
        items: &[T],
        segment_of: impl Fn(&T) -> SegmentId + Copy,
        asked_in: Epoch,
        deadline: Instant,
        act: impl Fn(&dyn Link, &[T]) -> Result<(), TransportError>,
    ) -> Result<(), StoreError> {
        let links = self.directory.links(&self.book, &self.fabric, items.iter().map(segment_of), deadline);
        let mut failed: Option<String> = None;
        for (segment, link) in links {
            let own: Vec<T> = items.iter().copied().filter(|item| segment_of(item) == segment).collect();
            let outcome = match link {
                Ok(link) => act(Arc::as_ref(&link), &own).map_err(|error| error.to_string()),
                Err(LinkError::Gone | LinkError::Transport(TransportError::PeerGone)) => Ok(()),
                Err(LinkError::Transport(error)) => Err(error.to_string()),
                Err(LinkError::Book(error)) => Err(error.to_string()),
            };
            if let Err(why) = outcome {
                tracing::warn!(%segment, why, "cannot make a removal last in this segment");
                failed.get_or_insert(why);
            }
        }
        if failed.is_none() && !items.is_empty() && self.describe(Vec::new(), deadline)?.0 != asked_in {
            // A later life may have been told of the objects before they were forgotten, and names segments otherwise.
            failed = Some(RESTARTED.to_owned());
        }
        failed.map_or(Ok(()), |why| Err(StoreError::NotForgotten { why }))
    }

    /// Which life of the service answers now, and what it says of these segments.
    fn describe(&self, segments: Vec<u64>, deadline: Instant) -> Result<(Epoch, Vec<pb::SegmentInfo>), StoreError> {
        let describe = pb::request::Body::Describe(pb::Describe { segments });
        let answer = self.book.call(describe, deadline).map_err(|error| StoreError::NotForgotten {
            why: format!("the MetaService does not say that it is still the same: {error}"),
        })?;
        match answer.body {
            pb::reply::Body::Describe(reply) => Ok((answer.epoch, reply.segments)),
            _ => Err(StoreError::NotForgotten { why: "the MetaService gave no Describe reply".to_owned() }),
        }
    }
}
