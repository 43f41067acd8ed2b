//! Paths 2 and 3: the device's copy engine reaches into the region by itself.
//!
//! The processor only looks after the trailers: gone before the engine writes, back after its event, looked at after
//! its event. The checksum is made over the region between the same two looks.

use std::sync::Arc;

use memcache_device::{Copy, DeviceError, Direction, Event, Keep, Reach, StagingSet};
use memcache_memory::{RawRegion, checksum_region};
use memcache_transport::TransportError;
use memcache_transport::plan::Step;

use super::state::Queues;
use super::{Job, Outcome, copy, sealed};
use crate::transfer::Move;
use crate::ways::Found;

pub(super) fn read(job: &Job<'_>, queues: &mut Queues) -> Result<Vec<Outcome<Found>>, DeviceError> {
    let work = Engine::new(job)?;
    let mut last = None;
    let mut free: Vec<Option<Event>> = vec![None; work.slots()];
    for step in &job.group.steps {
        let Some(slot) = step.slot else {
            work.submit(queues, Leg::First, Direction::PeerToDevice, &work.pieces_of(step, None, true))?;
            last = Some(queues.first.record()?);
            continue;
        };
        if let Some(event) = &free[slot] {
            queues.first.wait_for(event)?;
        }
        work.submit(queues, Leg::First, Direction::PeerToDevice, &work.parts_of(step, slot, true))?;
        let arrived = queues.first.record()?;
        queues.second.wait_for(&arrived)?;
        work.submit(queues, Leg::Second, Direction::Local, &work.pieces_of(step, Some(slot), true))?;
        let scattered = queues.second.record()?;
        free[slot] = Some(scattered.clone());
        last = Some(scattered);
    }
    // Beside the copies: the engine and the processor read the same bytes, and the trailer speaks for both.
    let sums: Vec<Option<u32>> = job.group.objects.iter().map(|at| work.sum(&job.moves[*at])).collect();
    if let Some(last) = last {
        last.wait(job.deadline)?;
    }
    let found =
        job.group.objects.iter().zip(sums).map(|(at, sum)| Ok((work.extent(&job.moves[*at])?.load_trailer(), sum)));
    Ok(found.collect())
}

pub(super) fn write(job: &Job<'_>, queues: &mut Queues) -> Result<Vec<Outcome<()>>, DeviceError> {
    let work = Engine::new(job)?;
    for at in &job.group.objects {
        if let Ok(extent) = work.extent(&job.moves[*at]) {
            extent.retract_trailer();
        }
    }
    let mut free: Vec<Option<Event>> = vec![None; work.slots()];
    let mut ends: Vec<Event> = Vec::with_capacity(job.group.steps.len());
    for step in &job.group.steps {
        let Some(slot) = step.slot else {
            work.submit(queues, Leg::First, Direction::DeviceToPeer, &work.pieces_of(step, None, false))?;
            ends.push(queues.first.record()?);
            continue;
        };
        if let Some(event) = &free[slot] {
            queues.first.wait_for(event)?;
        }
        work.submit(queues, Leg::First, Direction::Local, &work.pieces_of(step, Some(slot), false))?;
        let gathered = queues.first.record()?;
        queues.second.wait_for(&gathered)?;
        work.submit(queues, Leg::Second, Direction::DeviceToPeer, &work.parts_of(step, slot, false))?;
        let sent = queues.second.record()?;
        free[slot] = Some(sent.clone());
        ends.push(sent);
    }
    let mut outcomes: Vec<Outcome<()>> = vec![Err(TransportError::Timeout); job.group.objects.len()];
    for (step, end) in job.group.steps.iter().zip(ends) {
        end.wait(job.deadline)?;
        for part in step.parts.iter().filter(|part| part.is_last) {
            let one = &job.moves[part.object];
            let published = work.extent(one).map(|extent| {
                extent.publish_trailer(&sealed(&one.trailer, work.sum(one)).encode());
            });
            if let Ok(at) = job.group.objects.binary_search(&part.object) {
                outcomes[at] = published;
            }
        }
    }
    Ok(outcomes)
}

/// Which queue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leg {
    First,
    Second,
}

struct Engine<'a> {
    job: &'a Job<'a>,
    reach: Arc<Reach>,
    region: RawRegion<'a>,
    staging: Option<StagingSet>,
    /// Holds the tensors, the region and the staging until the last copy has ended.
    keep: Keep,
}

impl<'a> Engine<'a> {
    fn new(job: &'a Job<'a>) -> Result<Self, DeviceError> {
        let reach = job.state.reach(job.link)?;
        let region = job.link.region().ok_or_else(|| DeviceError::Unsupported {
            device: job.state.device.id().to_string(),
            what: "a region that is not mapped",
        })?;
        let is_staged = job.group.steps.iter().any(|step| step.slot.is_some());
        let staging = if is_staged { Some(job.state.staging.take(job.deadline)?) } else { None };
        let keep = Arc::new((job.buffers.keep(), reach.keep(), staging.as_ref().map(StagingSet::keep)));
        Ok(Self { job, reach, region, staging, keep })
    }

    fn slots(&self) -> usize {
        self.job.group.steps.iter().filter_map(|step| step.slot).max().map_or(0, |slot| slot + 1)
    }

    fn submit(&self, queues: &mut Queues, leg: Leg, direction: Direction, copies: &[Copy]) -> Result<(), DeviceError> {
        if copies.is_empty() {
            return Ok(());
        }
        let queue = if leg == Leg::First { &mut queues.first } else { &mut queues.second };
        // SAFETY: `Buffers` was made under the promise that its pieces may be read or written until the transfer ends,
        // and the keep holds their owner, the region and the staging until the last copy has ended.
        unsafe { queue.submit(direction, copies, Arc::clone(&self.keep)) }
    }

    /// Copies between the region and a slot.
    fn parts_of(&self, step: &Step, slot: usize, inward: bool) -> Vec<Copy> {
        let base = self.slot(slot);
        let copies = step.parts.iter().filter(|part| part.bytes > 0).map(|part| {
            let offset = self.job.moves[part.object].extent.offset() + part.payload_offset;
            copy(self.reach.address() + offset, base + part.staging_offset, part.bytes, inward)
        });
        copies.collect()
    }

    /// Copies between the pieces and a slot, or the region where there is no slot.
    fn pieces_of(&self, step: &Step, slot: Option<usize>, inward: bool) -> Vec<Copy> {
        let base = slot.map_or(self.reach.address(), |slot| self.slot(slot));
        step.copies.iter().map(|piece| copy(base + piece.offset, piece.local, piece.bytes, inward)).collect()
    }

    fn slot(&self, slot: usize) -> u64 {
        self.staging.as_ref().map_or(0, |staging| staging.address(slot))
    }

    fn extent(&self, one: &Move) -> Result<RawRegion<'a>, TransportError> {
        let outside = |error: memcache_memory::OutOfBounds| TransportError::InvalidOp { why: error.to_string() };
        self.region.sub(one.extent.offset(), one.extent.bytes()).map_err(outside)
    }

    /// The checksum of an object's payload as it stands in the region.
    fn sum(&self, one: &Move) -> Option<u32> {
        if !self.job.summed {
            return None;
        }
        self.region.sub(one.extent.offset(), one.trailer.payload_bytes).ok().map(checksum_region)
    }
}
