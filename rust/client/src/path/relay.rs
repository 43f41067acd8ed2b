//! Path 1: the owner's device copies between the region and its own staging, ours between that staging and our own.
//!
//! The owner looks after trailers and checksums. Requests run ahead by as many steps as there are slots, so that the
//! three copies of one step run beside those of others.

use std::sync::Arc;

use memcache_device::{Copy, DeviceError, Direction, Event, Keep, Queue, Reach, StagingSet};
use memcache_memory::{Trailer, checksum_combine};
use memcache_transport::plan::{Part, Staging, Step};
use memcache_transport::{RelayCall, RelayOffer, RelayReply, RelayRequest, RelayRun, RelayStep, TransportError};

use super::state::Queues;
use super::{Job, Outcome, copy};
use crate::ways::Found;

/// An owner's staging, as this device addresses it.
#[derive(Debug)]
pub(crate) struct Relayed {
    pub(super) reach: Reach,
    pub(super) offer: Arc<RelayOffer>,
}

/// Why a transfer over a relay ended.
#[derive(Debug)]
pub(super) enum Trouble {
    Device(DeviceError),
    Transport(TransportError),
    /// All of the owner's staging is in use.
    Busy,
    /// The owner's device did not do it; nothing moves for it any more.
    Failed(String),
    /// The owner's device did not do it, and may still.
    Lost(String),
}

impl From<DeviceError> for Trouble {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

impl From<TransportError> for Trouble {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

impl Relayed {
    /// An offer that fits what was imported.
    pub(super) fn new(reach: Reach, offer: Arc<RelayOffer>) -> Result<Self, String> {
        let RelayOffer { slot_bytes, slots, sets, .. } = *offer;
        let bytes = slot_bytes.checked_mul(u64::from(slots)).and_then(|bytes| bytes.checked_mul(u64::from(sets)));
        if bytes.is_none_or(|bytes| bytes > reach.bytes()) || slots == 0 || !slot_bytes.is_multiple_of(64) {
            let have = reach.bytes();
            return Err(format!("its owner offers {sets} x {slots} slots of {slot_bytes} bytes in {have} bytes"));
        }
        Ok(Self { reach, offer })
    }

    pub(super) fn staging(&self) -> Staging {
        Staging { slot_bytes: self.offer.slot_bytes, slots: self.offer.slots as usize }
    }

    /// Where a slot of a set is.
    pub(super) fn slot(&self, set: u32, slot: usize) -> u64 {
        let RelayOffer { slot_bytes, slots, .. } = *self.offer;
        self.reach.address() + (u64::from(set) * u64::from(slots) + slot as u64) * slot_bytes
    }
}

pub(super) fn read(
    job: &Job<'_>,
    queues: &mut Queues,
    relay: &Relayed,
    call: &mut RelayCall,
) -> Result<Vec<Outcome<Found>>, Trouble> {
    let steps = &job.group.steps;
    let mut work = Work::open(job, relay, call)?;
    work.send(&RelayRequest::Lease)?;
    for step in steps.iter().take(work.slots) {
        work.send(&RelayRequest::Fetch(work.asked(step)))?;
    }
    work.call.flush(job.deadline)?;
    work.leased()?;
    let mut free: Vec<Option<Event>> = vec![None; work.slots];
    let mut found: Vec<Found> = vec![(Trailer::RETRACTED, None); job.group.objects.len()];
    let mut last = None;
    for (at, step) in steps.iter().enumerate() {
        let slot = at % work.slots;
        work.fetched(step, &mut found)?;
        if let Some(event) = &free[slot] {
            queues.first.wait_for(event)?;
        }
        work.submit(&mut *queues.first, Direction::LinkToDevice, &work.linked(step, slot, true))?;
        let linked = queues.first.record()?;
        queues.second.wait_for(&linked)?;
        work.submit(&mut *queues.second, Direction::Local, &work.pieces(step, slot, true))?;
        let scattered = queues.second.record()?;
        free[slot] = Some(scattered.clone());
        last = Some(scattered);
        if let Some(next) = steps.get(at + work.slots) {
            linked.wait(job.deadline)?;
            work.send(&RelayRequest::Fetch(work.asked(next)))?;
            work.call.flush(job.deadline)?;
        }
    }
    if let Some(last) = last {
        last.wait(job.deadline)?;
    }
    // What an owner that stops had leased rests a while; one that died may have left it to others.
    if !work.call.is_open() {
        return Err(TransportError::PeerGone.into());
    }
    Ok(found.into_iter().map(Ok).collect())
}

pub(super) fn write(
    job: &Job<'_>,
    queues: &mut Queues,
    relay: &Relayed,
    call: &mut RelayCall,
) -> Result<Vec<Outcome<()>>, Trouble> {
    let steps = &job.group.steps;
    let mut work = Work::open(job, relay, call)?;
    work.send(&RelayRequest::Lease)?;
    work.call.flush(job.deadline)?;
    let slots = work.slots;
    // Beside the request: gathering needs nothing of the owner.
    let mut gathered: Vec<Option<Event>> = vec![None; slots];
    for (slot, step) in steps.iter().take(slots).enumerate() {
        gathered[slot] = Some(work.gather(queues, step, slot)?);
    }
    work.leased()?;
    let mut linked: Vec<Option<Event>> = vec![None; slots];
    for (slot, step) in steps.iter().take(slots).enumerate() {
        linked[slot] = Some(work.link(queues, step, slot, gathered[slot].as_ref())?);
    }
    for (at, step) in steps.iter().enumerate() {
        let slot = at % slots;
        if at >= slots {
            work.stored()?; // the slot there is empty again
            linked[slot] = Some(work.link(queues, step, slot, gathered[slot].as_ref())?);
        }
        if let Some(event) = &linked[slot] {
            event.wait(job.deadline)?;
        }
        work.send(&RelayRequest::Store(work.asked(step)))?;
        work.call.flush(job.deadline)?;
        if let Some(next) = steps.get(at + slots) {
            gathered[slot] = Some(work.gather(queues, next, slot)?);
        }
    }
    for _ in 0..slots.min(steps.len()) {
        work.stored()?;
    }
    Ok(vec![Ok(()); job.group.objects.len()])
}

struct Work<'a> {
    job: &'a Job<'a>,
    relay: &'a Relayed,
    call: &'a mut RelayCall,
    /// Slots in use, at least 1.
    slots: usize,
    /// Which of the owner's sets is ours.
    set: u32,
    staging: StagingSet,
    /// Holds the tensors, the link and our staging until the last copy has ended.
    keep: Keep,
}

impl<'a> Work<'a> {
    /// Takes staging of this device, before the owner's: who waits for it holds up nobody there.
    fn open(job: &'a Job<'a>, relay: &'a Relayed, call: &'a mut RelayCall) -> Result<Self, Trouble> {
        let slots = job.group.steps.iter().filter_map(|step| step.slot).max().map_or(1, |slot| slot + 1);
        let staging = job.state.staging.take(job.deadline)?;
        let keep = Arc::new((job.buffers.keep(), relay.reach.keep(), staging.keep()));
        Ok(Self { job, relay, call, slots, set: 0, staging, keep })
    }

    /// The answer to the request for a set.
    fn leased(&mut self) -> Result<(), Trouble> {
        match self.receive()? {
            RelayReply::Lease { set } if set < self.relay.offer.sets => {
                self.set = set;
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    fn send(&mut self, request: &RelayRequest) -> Result<(), Trouble> {
        Ok(self.call.send(self.job.state.device.clock_ns(), request, self.job.deadline)?)
    }

    fn receive(&mut self) -> Result<RelayReply, Trouble> {
        let (clock_ns, reply) = self.call.receive(self.job.deadline)?;
        self.job.state.device.hear_clock(clock_ns);
        match reply {
            RelayReply::Busy => Err(Trouble::Busy),
            RelayReply::Failed { why } => Err(Trouble::Failed(why)),
            RelayReply::Lost { why } => Err(Trouble::Lost(why)),
            other => Ok(other),
        }
    }

    /// A step as the owner is asked for it.
    fn asked(&self, step: &Step) -> RelayStep {
        let runs = step.parts.iter().map(|part| {
            let one = &self.job.moves[part.object];
            RelayRun {
                offset: one.extent.offset(),
                extent_bytes: one.extent.bytes(),
                start: part.payload_offset,
                bytes: part.bytes,
                staging_offset: part.staging_offset,
                trailer: part.is_last.then(|| one.trailer.encode()),
            }
        });
        let slot = u32::try_from(step.slot.unwrap_or(0)).unwrap_or(u32::MAX);
        RelayStep { slot, summed: self.job.summed, runs: runs.collect() }
    }

    /// What the owner found in the runs of a step, once they were copied.
    fn fetched(&mut self, step: &Step, found: &mut [Found]) -> Result<(), Trouble> {
        let fetched = match self.receive()? {
            RelayReply::Fetched(fetched) if fetched.len() == step.parts.len() => fetched,
            other => return Err(unexpected(&other)),
        };
        for (part, one) in step.parts.iter().zip(fetched) {
            let at = self.job.group.objects.binary_search(&part.object).unwrap_or(0);
            let (trailer, sum) = &mut found[at];
            *trailer = one.trailer;
            *sum = match (*sum, self.job.summed) {
                (_, false) => None,
                (Some(before), true) if part.payload_offset > 0 => Some(checksum_combine(before, one.sum, part.bytes)),
                _ => Some(one.sum),
            };
        }
        Ok(())
    }

    fn stored(&mut self) -> Result<(), Trouble> {
        match self.receive()? {
            RelayReply::Stored => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn gather(&self, queues: &mut Queues, step: &Step, slot: usize) -> Result<Event, Trouble> {
        self.submit(&mut *queues.first, Direction::Local, &self.pieces(step, slot, false))?;
        Ok(queues.first.record()?)
    }

    fn link(&self, queues: &mut Queues, step: &Step, slot: usize, after: Option<&Event>) -> Result<Event, Trouble> {
        if let Some(gathered) = after {
            queues.second.wait_for(gathered)?;
        }
        self.submit(&mut *queues.second, Direction::DeviceToLink, &self.linked(step, slot, false))?;
        Ok(queues.second.record()?)
    }

    /// Copies between the owner's slot and ours.
    fn linked(&self, step: &Step, slot: usize, inward: bool) -> Vec<Copy> {
        let (far, near) = (self.relay.slot(self.set, slot), self.staging.address(slot));
        let align = self.job.state.device.capabilities().align;
        let long = |part: &&Part| part.bytes > 0;
        let copies = step.parts.iter().filter(long).map(|part| {
            // What follows in the slot up to the next part is nobody's.
            let bytes = part.bytes.next_multiple_of(align);
            copy(far + part.staging_offset, near + part.staging_offset, bytes, inward)
        });
        copies.collect()
    }

    /// Copies between our slot and the pieces.
    fn pieces(&self, step: &Step, slot: usize, inward: bool) -> Vec<Copy> {
        let base = self.staging.address(slot);
        step.copies.iter().map(|piece| copy(base + piece.offset, piece.local, piece.bytes, inward)).collect()
    }

    fn submit(&self, queue: &mut dyn Queue, direction: Direction, copies: &[Copy]) -> Result<(), DeviceError> {
        if copies.is_empty() {
            return Ok(());
        }
        // SAFETY: `Buffers` was made under the promise that its pieces may be read or written until the transfer ends,
        // our staging is this transfer's alone, the owner's is leased to it, and the keep holds all of it.
        unsafe { queue.submit(direction, copies, Arc::clone(&self.keep)) }
    }
}

fn unexpected(reply: &RelayReply) -> Trouble {
    tracing::warn!(?reply, "a relay answered something else than was asked");
    Trouble::Transport(TransportError::refused("a relay answered something else than was asked"))
}
