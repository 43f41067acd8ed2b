//! Path 0: the link moves contiguous runs to and from host staging, the device the pieces. The same for path 2 where the
//! pieces are host memory: then the copies are the processor's own.
//!
//! An object longer than a slot goes in parts. Each part is an operation on a smaller extent: what stands behind it is
//! the next part, until the last one ends with the real trailer. A writer takes that trailer away before the first part.

use std::sync::Arc;

use memcache_device::{Copy, DeviceError, Direction, Event, Keep, StagingSet};
use memcache_memory::{Trailer, checksum_combine, checksum_pieces};
use memcache_transport::plan::{Part, Step};
use memcache_transport::{ReadOp, SummedWriteOp, TransportError, WriteOp};
use memcache_types::limits::{TRAILER_BYTES, TRAILER_LEN};
use memcache_types::{Extent, GlobalAddress, ScatterList};

use super::state::Queues;
use super::{Job, Outcome, sealed};
use crate::ways::Found;

/// How far one object has come.
#[derive(Clone, Default)]
struct Progress {
    /// Sum of the parts so far.
    sum: Option<u32>,
    trailer: Option<[u8; TRAILER_LEN]>,
    error: Option<TransportError>,
}

pub(super) fn read(job: &Job<'_>, queues: &mut Queues) -> Result<Vec<Outcome<Found>>, DeviceError> {
    let mut work = Staged::new(job, true)?;
    let mut free: Vec<Option<Event>> = vec![None; work.slots];
    for (at, step) in job.group.steps.iter().enumerate() {
        let slot = at % work.slots;
        if let Some(event) = free[slot].take() {
            event.wait(job.deadline)?;
        }
        for run in runs(&step.parts) {
            work.read_run(slot, run);
        }
        work.copy(queues, slot, step)?;
        free[slot] = Some(queues.first.record()?);
    }
    for event in free.into_iter().flatten() {
        event.wait(job.deadline)?;
    }
    let found = work.progress.into_iter().map(|one| match (one.error, one.trailer) {
        (Some(error), _) => Err(error),
        (None, Some(trailer)) => Ok((trailer, one.sum)),
        (None, None) => Err(TransportError::Timeout),
    });
    Ok(found.collect())
}

pub(super) fn write(job: &Job<'_>, queues: &mut Queues) -> Result<Vec<Outcome<()>>, DeviceError> {
    let mut work = Staged::new(job, false)?;
    work.retract();
    let steps = &job.group.steps;
    let mut gathered: Vec<Option<Event>> = vec![None; work.slots];
    for (slot, step) in steps.iter().take(work.slots).enumerate() {
        work.copy(queues, slot, step)?;
        gathered[slot] = Some(queues.first.record()?);
    }
    for (at, step) in steps.iter().enumerate() {
        let slot = at % work.slots;
        if let Some(event) = gathered[slot].take() {
            event.wait(job.deadline)?;
        }
        for run in runs(&step.parts) {
            work.write_run(slot, run);
        }
        if let Some(next) = steps.get(at + work.slots) {
            work.copy(queues, slot, next)?;
            gathered[slot] = Some(queues.first.record()?);
        }
    }
    let written = work.progress.into_iter().map(|one| match (one.error, one.trailer) {
        (Some(error), _) => Err(error),
        (None, Some(_)) => Ok(()),
        (None, None) => Err(TransportError::Timeout),
    });
    Ok(written.collect())
}

struct Staged<'a> {
    job: &'a Job<'a>,
    staging: StagingSet,
    slots: usize,
    direction: Direction,
    inward: bool,
    keep: Keep,
    /// One for each of the group's objects.
    progress: Vec<Progress>,
}

impl<'a> Staged<'a> {
    fn new(job: &'a Job<'a>, inward: bool) -> Result<Self, DeviceError> {
        let (pool, direction) = match (job.state.touches(), inward) {
            (true, _) => (&job.state.staging, Direction::Local),
            (false, true) => (&job.state.pinned, Direction::HostToDevice),
            (false, false) => (&job.state.pinned, Direction::DeviceToHost),
        };
        let staging = pool.take(job.deadline)?;
        let keep: Keep = Arc::new((job.buffers.keep(), staging.keep()));
        let progress = vec![Progress::default(); job.group.objects.len()];
        Ok(Self { job, staging, slots: pool.slots(), direction, inward, keep, progress })
    }

    fn position(&self, part: &Part) -> usize {
        self.job.group.objects.binary_search(&part.object).unwrap_or(0)
    }

    /// The part in its slot.
    fn staged(&self, slot: usize, part: &Part) -> ScatterList {
        ScatterList::single(self.staging.address(slot) + part.staging_offset, part.bytes)
    }

    /// The part and what stands behind it: the next part, or the trailer.
    fn extent(&self, part: &Part) -> Result<Extent, TransportError> {
        let whole = self.job.moves[part.object].extent;
        let bytes = if part.is_last { whole.bytes() - part.payload_offset } else { part.bytes + TRAILER_BYTES };
        let address = GlobalAddress::new(whole.segment(), whole.offset() + part.payload_offset);
        Extent::new(address, bytes).map_err(|error| TransportError::InvalidOp { why: error.to_string() })
    }

    fn read_run(&mut self, slot: usize, parts: &[Part]) {
        let lists: Vec<ScatterList> = parts.iter().map(|part| self.staged(slot, part)).collect();
        let mut ops: Vec<ReadOp<'_>> = Vec::with_capacity(parts.len());
        let mut sent: Vec<&Part> = Vec::with_capacity(parts.len());
        for (part, local) in parts.iter().zip(&lists) {
            let at = self.position(part);
            match self.extent(part) {
                Ok(extent) if self.progress[at].error.is_none() => {
                    ops.push(ReadOp { extent, payload_bytes: part.bytes, local });
                    sent.push(part);
                }
                Ok(_) => {}
                Err(error) => self.progress[at].error = Some(error),
            }
        }
        let (link, deadline) = (self.job.link, self.job.deadline);
        let results: Vec<Outcome<Found>> = if self.job.summed {
            // SAFETY: the parts lie in a slot that is this transfer's alone, side by side.
            let found = unsafe { link.read_summed(&ops, deadline) };
            found.into_iter().map(|one| one.map(|(trailer, sum)| (trailer, Some(sum)))).collect()
        } else {
            // SAFETY: as above.
            let found = unsafe { link.read(&ops, deadline) };
            found.into_iter().map(|one| one.map(|trailer| (trailer, None))).collect()
        };
        for (part, result) in sent.into_iter().zip(results) {
            let at = self.position(part);
            let one = &mut self.progress[at];
            match result {
                Ok((trailer, sum)) => {
                    one.sum = extend(one.sum, part, sum);
                    one.trailer = part.is_last.then_some(trailer);
                }
                Err(error) => one.error = Some(error),
            }
        }
    }

    /// Takes the trailers of objects in several parts away; the others lose theirs with the write itself.
    fn retract(&mut self) {
        let steps = &self.job.group.steps;
        let split: Vec<&Part> = steps
            .iter()
            .flat_map(|step| &step.parts)
            .filter(|part| part.payload_offset == 0 && !part.is_last)
            .collect();
        let nothing = ScatterList::new();
        for part in split {
            let whole = self.job.moves[part.object].extent;
            let address = GlobalAddress::new(whole.segment(), whole.end() - TRAILER_BYTES);
            let result = match Extent::new(address, TRAILER_BYTES) {
                Ok(extent) => {
                    let op = WriteOp { extent, payload_bytes: 0, local: &nothing, trailer: &Trailer::RETRACTED };
                    // SAFETY: there is no piece.
                    only(unsafe { self.job.link.write(&[op], self.job.deadline) })
                }
                Err(error) => Err(TransportError::InvalidOp { why: error.to_string() }),
            };
            let at = self.position(part);
            self.progress[at].error = result.err();
        }
    }

    fn write_run(&mut self, slot: usize, parts: &[Part]) {
        let open: Vec<(&Part, Extent)> = parts
            .iter()
            .filter_map(|part| {
                let at = self.position(part);
                let extent =
                    self.extent(part).map_err(|error| self.progress[at].error.get_or_insert(error).clone()).ok()?;
                self.progress[at].error.is_none().then_some((part, extent))
            })
            .collect();
        let lists: Vec<ScatterList> = open.iter().map(|(part, _)| self.staged(slot, part)).collect();
        let (link, deadline) = (self.job.link, self.job.deadline);
        let results: Vec<Outcome<()>> = if self.job.summed && open.iter().all(|(part, _)| is_whole(part)) {
            let ops = open.iter().zip(&lists).map(|((part, extent), local)| {
                let trailer = &self.job.moves[part.object].trailer;
                SummedWriteOp { extent: *extent, local, trailer }
            });
            let ops: Vec<SummedWriteOp<'_>> = ops.collect();
            // SAFETY: the parts lie in a slot that is this transfer's alone and that no copy touches now.
            unsafe { link.write_summed(&ops, deadline) }
        } else {
            let trailers: Vec<[u8; TRAILER_LEN]> =
                open.iter().zip(&lists).map(|((part, _), local)| self.trailer_behind(part, local)).collect();
            let ops = open.iter().zip(&lists).zip(&trailers).map(|(((part, extent), local), trailer)| WriteOp {
                extent: *extent,
                payload_bytes: part.bytes,
                local,
                trailer,
            });
            let ops: Vec<WriteOp<'_>> = ops.collect();
            // SAFETY: as above.
            unsafe { link.write(&ops, deadline) }
        };
        for ((part, _), result) in open.into_iter().zip(results) {
            let at = self.position(part);
            match result {
                Ok(()) => self.progress[at].trailer = part.is_last.then_some(Trailer::RETRACTED),
                Err(error) => self.progress[at].error = Some(error),
            }
        }
    }

    /// What a write puts behind a part: nothing valid until the object ends.
    fn trailer_behind(&mut self, part: &Part, local: &ScatterList) -> [u8; TRAILER_LEN] {
        let at = self.position(part);
        if self.job.summed {
            // SAFETY: the part lies in a slot that is this transfer's alone and that no copy touches now.
            let sum = unsafe { checksum_pieces(local) };
            self.progress[at].sum = extend(self.progress[at].sum, part, Some(sum));
        }
        if !part.is_last {
            return Trailer::RETRACTED;
        }
        sealed(&self.job.moves[part.object].trailer, self.progress[at].sum).encode()
    }

    /// Submits the copies between a slot and the pieces, those of failed objects aside.
    fn copy(&self, queues: &mut Queues, slot: usize, step: &Step) -> Result<(), DeviceError> {
        let base = self.staging.address(slot);
        let mut copies: Vec<Copy> = Vec::with_capacity(step.copies.len());
        for part in &step.parts {
            if self.progress[self.position(part)].error.is_some() {
                continue;
            }
            copies.extend(step.copies[part.first_copy..part.first_copy + part.copies].iter().map(|piece| {
                let (staged, local, bytes) = (base + piece.offset, piece.local, piece.bytes);
                let (source, target) = if self.inward { (staged, local) } else { (local, staged) };
                Copy { source, target, bytes }
            }));
        }
        if copies.is_empty() {
            return Ok(());
        }
        // SAFETY: `Buffers` was made under the promise that its pieces may be read or written until the transfer ends,
        // the slot is this transfer's alone, and the keep holds both until the last copy has ended.
        unsafe { queues.first.submit(self.direction, &copies, Arc::clone(&self.keep)) }
    }
}

/// Whether a part is all of its object.
fn is_whole(part: &Part) -> bool {
    part.is_last && part.payload_offset == 0
}

/// The sum of an object's parts so far.
fn extend(before: Option<u32>, part: &Part, sum: Option<u32>) -> Option<u32> {
    match (before, sum) {
        (Some(before), Some(sum)) if part.payload_offset > 0 => Some(checksum_combine(before, sum, part.bytes)),
        _ => sum,
    }
}

/// Runs of parts with no object twice: a link may do the operations of one call in any order, and the trailer must come
/// after all of its payload.
fn runs(parts: &[Part]) -> impl Iterator<Item = &[Part]> {
    parts.chunk_by(|one, next| one.object != next.object)
}

fn only(results: Vec<Outcome<()>>) -> Outcome<()> {
    results.into_iter().next().unwrap_or(Err(TransportError::PeerGone))
}
