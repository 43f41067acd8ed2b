//! What an owner offers on path 1: its device copies between the segment and staging that peers' devices reach.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memcache_device::{Allocation, Copy, Device, DeviceError, Direction, Event, HostRange, Keep, Queue, Reach, Space};
use memcache_memory::Segment;
use memcache_transport::plan::Way;
use memcache_transport::{RelayHost, RelayLease, RelayOffer, RelayRefusal, RelayRun};
use memcache_types::limits::EXTENT_ALIGN;
use parking_lot::Mutex;

use crate::error::StoreError;
use crate::path::StagingOptions;

/// How long the device may take to stop after a deadline or an error.
const STOP_WAIT: Duration = Duration::from_secs(1);
/// How long a set rests after the last deadline of a peer that went without a word: its device has that long to stop.
const REST: Duration = Duration::from_secs(2);

/// A device for peers to come through.
#[derive(Clone, Debug)]
pub struct RelayOptions {
    /// The device. It reaches the segment, and has a link to the devices of peers.
    pub device: Arc<dyn Device>,
    /// Its staging: `transfers_max` sets of slots, allocated at the start. A peer that finds all of them in use takes
    /// another path or waits.
    pub staging: StagingOptions,
}

/// An owner's device with its staging.
pub(crate) struct RelayOwner {
    offer: RelayOffer,
    shared: Arc<Shared>,
}

struct Shared {
    device: Arc<dyn Device>,
    reach: Reach,
    staging: Allocation,
    slot_bytes: u64,
    slots: u32,
    sets: Mutex<Sets>,
    /// It did not stop when told to, and is not used again.
    lost: AtomicBool,
}

#[derive(Default)]
struct Sets {
    free: Vec<u32>,
    /// Sets of peers that went without a word, and until when their copies may still touch them.
    resting: Vec<(Instant, u32)>,
    queues: Vec<Box<dyn Queue>>,
}

impl RelayOwner {
    /// Makes the segment addressable for the device, and its staging for others.
    pub(crate) fn open(options: &RelayOptions, segment: &Arc<Segment>) -> Result<Self, StoreError> {
        let RelayOptions { device, staging } = options;
        let unsupported = |what| DeviceError::Unsupported { device: device.id().to_string(), what };
        if !device.links_devices() {
            return Err(unsupported("relaying without a link to other devices").into());
        }
        if device.capabilities().align > EXTENT_ALIGN {
            return Err(unsupported("relaying extents, which are aligned to 64 bytes").into());
        }
        let slot_bytes = staging.slot_bytes.max(EXTENT_ALIGN).next_multiple_of(EXTENT_ALIGN);
        let slots = u32::try_from(staging.slots.max(1)).unwrap_or(u32::MAX);
        let sets = u32::try_from(staging.transfers_max.max(1)).unwrap_or(u32::MAX);
        let bytes = slot_bytes.saturating_mul(u64::from(slots)).saturating_mul(u64::from(sets));
        let range = HostRange { base: segment.base(), bytes: segment.bytes() };
        // SAFETY: the segment stays mapped, readable and writable, for as long as it lives, and the keep holds it.
        let reach = unsafe { device.reach(range, Arc::clone(segment) as Keep) }?;
        let staging = device.allocate(Space::Device, bytes)?;
        let offer = RelayOffer { export: device.export(&staging)?, slot_bytes, slots, sets };
        let sets = Mutex::new(Sets { free: (0..sets).rev().collect(), ..Sets::default() });
        let device = Arc::clone(device);
        let shared = Shared { device, reach, staging, slot_bytes, slots, sets, lost: AtomicBool::new(false) };
        Ok(Self { offer, shared: Arc::new(shared) })
    }

    /// Which device.
    pub(crate) fn device(&self) -> String {
        self.shared.device.id().to_string()
    }
}

impl RelayHost for RelayOwner {
    fn offer(&self) -> &RelayOffer {
        &self.offer
    }

    fn lease(&self) -> Result<Box<dyn RelayLease>, RelayRefusal> {
        let shared = &self.shared;
        if shared.lost.load(Ordering::Acquire) {
            return Err(RelayRefusal::Failed {
                why: "the owner's device did not stop when told to, earlier".to_owned(),
            });
        }
        let (set, idle) = {
            let mut sets = shared.sets.lock();
            let now = Instant::now();
            let rested: Vec<_> = sets.resting.extract_if(.., |(until, _)| *until <= now).collect();
            sets.free.extend(rested.into_iter().map(|(_, set)| set));
            (sets.free.pop().ok_or(RelayRefusal::Busy)?, sets.queues.pop())
        };
        let queue = match idle.map_or_else(|| shared.device.open_queue(), Ok) {
            Ok(queue) => queue,
            Err(error) => {
                shared.sets.lock().free.push(set);
                return Err(failed(&error));
            }
        };
        Ok(Box::new(Lease {
            shared: Arc::clone(shared),
            set,
            queue: Some(queue),
            begun: None,
            rest_until: Instant::now(),
        }))
    }

    fn clock_ns(&self) -> u64 {
        self.shared.device.clock_ns()
    }

    fn hear_clock(&self, ns: u64) {
        self.shared.device.hear_clock(ns);
    }
}

impl fmt::Debug for RelayOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayOwner").field("device", &self.shared.device.id()).field("offer", &self.offer).finish()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let until = self.sets.get_mut().resting.iter().map(|(until, _)| *until).max();
        let Some(rest) =
            until.map(|until| until.saturating_duration_since(Instant::now())).filter(|rest| !rest.is_zero())
        else {
            return;
        };
        // Copies of peers may touch the staging until then: nobody else is to get it.
        let staging = self.staging.clone();
        let thread = std::thread::Builder::new().name("memcache-rest".to_owned());
        if let Err(error) = thread.spawn(move || {
            std::thread::sleep(rest);
            drop(staging);
        }) {
            tracing::warn!(%error, "staging is given back while peers may still copy to it");
        }
    }
}

/// One peer's set of slots, and the queue that fills and empties it.
struct Lease {
    shared: Arc<Shared>,
    set: u32,
    /// `None` once it did not stop.
    queue: Option<Box<dyn Queue>>,
    begun: Option<Event>,
    rest_until: Instant,
}

impl Lease {
    fn copies(&self, way: Way, slot: u32, runs: &[RelayRun]) -> Vec<Copy> {
        let Shared { reach, staging, slot_bytes, slots, device, .. } = &*self.shared;
        let limits = device.capabilities();
        let longest = (limits.copy_bytes_max / EXTENT_ALIGN).max(1) * EXTENT_ALIGN;
        let base = staging.address() + (u64::from(self.set) * u64::from(*slots) + u64::from(slot)) * slot_bytes;
        let mut copies = Vec::with_capacity(runs.len());
        for run in runs {
            let (far, near) = (reach.address() + run.offset + run.start, base + run.staging_offset);
            // Payloads are followed by what is left of 64 bytes, then by their trailer.
            let whole = run.bytes.next_multiple_of(limits.align);
            for at in (0..whole).step_by(usize::try_from(longest).unwrap_or(usize::MAX)) {
                let bytes = longest.min(whole - at);
                copies.push(match way {
                    Way::Get => Copy { source: far + at, target: near + at, bytes },
                    Way::Put => Copy { source: near + at, target: far + at, bytes },
                });
            }
        }
        copies
    }

    /// Nothing moves for this lease afterwards, or the device is lost.
    fn stop(&mut self, why: &DeviceError) -> RelayRefusal {
        self.begun = None;
        let Some(queue) = &mut self.queue else { return failed(why) };
        match queue.cancel(Instant::now() + STOP_WAIT) {
            Ok(()) => failed(why),
            Err(error) => {
                tracing::error!(%error, "a device relays no more");
                self.shared.lost.store(true, Ordering::Release);
                self.queue = None;
                RelayRefusal::Lost { why: error.to_string() }
            }
        }
    }
}

impl RelayLease for Lease {
    fn set(&self) -> u32 {
        self.set
    }

    fn begin(&mut self, way: Way, slot: u32, runs: &[RelayRun]) -> Result<(), RelayRefusal> {
        let copies = self.copies(way, slot, runs);
        let direction = if way == Way::Get { Direction::PeerToDevice } else { Direction::DeviceToPeer };
        let keep: Keep = Arc::new((self.shared.reach.keep(), self.shared.staging.keep()));
        let batch = self.shared.device.capabilities().batch_copies_max.max(1);
        let queue = self.queue.as_mut().ok_or_else(|| RelayRefusal::Failed { why: "the device is lost".to_owned() })?;
        let submitted = copies.chunks(batch).try_for_each(|batch| {
            // SAFETY: the set is this lease's alone, the region is memory that others may share, and the keep holds both.
            unsafe { queue.submit(direction, batch, Arc::clone(&keep)) }
        });
        match submitted.and_then(|()| queue.record()) {
            Ok(event) => {
                self.begun = Some(event);
                Ok(())
            }
            Err(error) => Err(self.stop(&error)),
        }
    }

    fn end(&mut self, deadline: Instant) -> Result<(), RelayRefusal> {
        match self.begun.take().map_or(Ok(()), |event| event.wait(deadline)) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.stop(&error)),
        }
    }

    fn rest_until(&mut self, deadline: Instant) {
        self.rest_until = self.rest_until.max(deadline + REST);
    }

    fn release(mut self: Box<Self>) {
        self.rest_until = Instant::now();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.begun.is_some() {
            // Only a session that ended in the middle comes here.
            self.stop(&DeviceError::Cancelled { device: self.shared.device.id().to_string() });
        }
        // A set that a lost device may still write to is never given out again.
        let Some(queue) = self.queue.take() else { return };
        let mut sets = self.shared.sets.lock();
        sets.queues.push(queue);
        sets.resting.push((self.rest_until, self.set));
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("device", &self.shared.device.id())
            .field("set", &self.set)
            .finish_non_exhaustive()
    }
}

fn failed(error: &DeviceError) -> RelayRefusal {
    RelayRefusal::Failed { why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use memcache_device::{TwinDevice, TwinOptions};
    use memcache_memory::SegmentOptions;

    use super::*;

    #[test]
    fn a_set_that_was_not_given_back_rests_and_outlives_its_owner() {
        let options = SegmentOptions { huge_pages: false, prefault: false };
        let segment = Arc::new(Segment::create(1 << 20, &options).unwrap());
        let device = TwinDevice::new(TwinOptions { arena_bytes: 1 << 20, ..TwinOptions::default() }).unwrap();
        let staging = StagingOptions { slot_bytes: 4096, slots: 2, transfers_max: 2 };
        let owner = RelayOwner::open(&RelayOptions { device: Arc::new(device.clone()), staging }, &segment).unwrap();
        let mut vanished = owner.lease().unwrap();
        vanished.rest_until(Instant::now());
        drop(vanished);
        let released = owner.lease().unwrap();
        assert_eq!(owner.lease().map(drop), Err(RelayRefusal::Busy), "a set whose peer may still copy to it");
        released.release();
        drop(owner);
        assert!(device.used_bytes() > 0, "staging was freed under a peer");
        let until = Instant::now() + Duration::from_secs(10);
        while device.used_bytes() > 0 {
            assert!(Instant::now() < until, "staging was never freed");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
