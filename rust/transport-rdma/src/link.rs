//! A link over RDMA: a few connections to one region, each used by one call at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use memcache_transport::{Capabilities, Link, Protocol, ReadOp, TransportError, WriteOp};
use memcache_types::limits::{OBJECT_BYTES_MAX, PIECES_MAX, TRAILER_LEN};
use memcache_types::{Extent, ScatterList};
use parking_lot::{Condvar, Mutex};

use crate::control::{Target, connect};
use crate::device::Device;
use crate::failure::Failure;
use crate::lane::{Counters, Direction, Job, Lane, Outcome};
use crate::memory::{Access, Registered};
use crate::plan::Part;
use crate::ranges::Ranges;
use crate::road::Registering;

/// Most connections to one region.
const LANES_MAX: usize = 4;
/// An unpromised piece of this many bytes is registered for the call; copying a shorter one is quicker than pinning
/// its pages.
const REGISTER_BYTES_MIN: u64 = 4 << 20;
/// Stands in for the trailer of operations that write none.
const NO_TRAILER: [u8; TRAILER_LEN] = [0; TRAILER_LEN];

/// Connections to the memory of one region.
#[derive(Debug)]
pub(crate) struct RdmaLink {
    device: Arc<Device>,
    target: Target,
    capabilities: Capabilities,
    ranges: Arc<Ranges<Registering>>,
    counters: Arc<Counters>,
    pool: Mutex<Pool>,
    returned: Condvar,
    gone: AtomicBool,
}

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Lane>,
    /// Idle ones and those in use.
    open: usize,
}

/// What keeps local memory registered during a call.
#[derive(Debug)]
enum Held {
    /// Cached with its promise.
    Promised {
        _registration: Arc<Registered>,
    },
    ForThisCall {
        _registration: Registered,
    },
}

impl RdmaLink {
    /// Connects to a region, to see whether it is there.
    pub(crate) fn open(
        device: Arc<Device>,
        target: Target,
        ranges: Arc<Ranges<Registering>>,
        counters: Arc<Counters>,
        deadline: Instant,
    ) -> Result<Self, TransportError> {
        let capabilities = Capabilities {
            protocol: Protocol::HostRdma,
            region_bytes: target.region_bytes,
            pieces_max: PIECES_MAX,
            payload_bytes_max: OBJECT_BYTES_MAX.min(target.region_bytes),
            copies_on_caller: false,
            connections: LANES_MAX,
        };
        let first = connect(&device, &target, &counters, deadline)?;
        let pool = Mutex::new(Pool { idle: vec![first], open: 1 });
        let (returned, gone) = (Condvar::new(), AtomicBool::new(false));
        Ok(Self { device, target, capabilities, ranges, counters, pool, returned, gone })
    }

    /// # Safety
    /// As [`Lane::run`].
    unsafe fn run(&self, direction: Direction, jobs: &[Job<'_>], deadline: Instant) -> Vec<Outcome> {
        if jobs.is_empty() {
            return Vec::new();
        }
        if Instant::now() >= deadline {
            return vec![Err(TransportError::Timeout); jobs.len()];
        }
        match self.lease(deadline) {
            Ok(lane) => {
                let place = Place(self);
                // SAFETY: the same contract.
                let (lane, outcomes, failure) = unsafe { lane.run(direction, jobs, deadline) };
                if failure == Some(Failure::PeerGone) {
                    self.gone.store(true, Ordering::Relaxed);
                }
                place.end(lane);
                outcomes
            }
            Err(error) => vec![Err(error); jobs.len()],
        }
    }

    /// An idle connection, or a new one while there are not too many.
    fn lease(&self, deadline: Instant) -> Result<Lane, TransportError> {
        let mut dead = Vec::new();
        let found = {
            let mut pool = self.pool.lock();
            loop {
                let mut found = None;
                while let Some(lane) = pool.idle.pop() {
                    if lane.is_quiet() {
                        found = Some(lane);
                        break;
                    }
                    pool.open -= 1;
                    dead.push(lane);
                }
                if found.is_some() {
                    break found;
                }
                if pool.open < LANES_MAX {
                    pool.open += 1;
                    break None;
                }
                if self.returned.wait_until(&mut pool, deadline).timed_out() {
                    return Err(TransportError::Timeout);
                }
            }
        };
        // Destroying a queue pair takes its time: not under the lock.
        drop(dead);
        if let Some(lane) = found {
            return Ok(lane);
        }
        let place = Place(self);
        let lane = connect(&self.device, &self.target, &self.counters, deadline).inspect_err(|error| {
            if *error == TransportError::PeerGone {
                self.gone.store(true, Ordering::Relaxed);
            }
        })?;
        place.keep();
        Ok(lane)
    }

    /// The pieces with the keys they are registered under, and what keeps them so.
    fn parts(&self, local: &ScatterList, access: Access, held: &mut Vec<Held>) -> Vec<Part> {
        let part = |(address, bytes), held: &mut Vec<Held>| {
            let lkey = if let Some(registration) = self.ranges.find(address, bytes) {
                let lkey = registration.lkey;
                held.push(Held::Promised { _registration: registration });
                Some(lkey)
            } else if bytes >= REGISTER_BYTES_MIN {
                // SAFETY: the piece stays mapped until the call returns, and `held` is dropped before.
                let registered = unsafe { Registered::new(&self.device, address, bytes, access) };
                registered.ok().map(|registration| {
                    let lkey = registration.lkey;
                    held.push(Held::ForThisCall { _registration: registration });
                    lkey
                })
            } else {
                None
            };
            Part { address, bytes, lkey }
        };
        local.pieces().iter().map(|piece| part((piece.address, piece.bytes), held)).collect()
    }

    /// Checks the operations, runs those that make sense, and puts the results in order.
    ///
    /// # Safety
    /// The local pieces are as [`Link::read`] or [`Link::write`] ask.
    unsafe fn transfer<'a>(
        &self,
        direction: Direction,
        ops: impl Iterator<Item = (Result<(), TransportError>, Extent, &'a ScatterList, &'a [u8; TRAILER_LEN])>,
        deadline: Instant,
    ) -> Vec<Outcome> {
        let access = if direction == Direction::Read { Access::Local } else { Access::Source };
        let (mut held, mut jobs, mut results) = (Vec::new(), Vec::new(), Vec::new());
        for (checked, extent, local, trailer) in ops {
            if checked.is_ok() {
                let parts = self.parts(local, access, &mut held);
                jobs.push(Job { offset: extent.offset(), bytes: extent.bytes(), parts, trailer });
            }
            results.push(checked);
        }
        // SAFETY: the same contract, and what is registered is held until the call is over.
        let mut outcomes = unsafe { self.run(direction, &jobs, deadline) }.into_iter();
        drop(held);
        let outcome = |checked: Result<(), TransportError>| {
            checked.and_then(|()| outcomes.next().unwrap_or(Err(TransportError::PeerGone)))
        };
        results.into_iter().map(outcome).collect()
    }
}

/// A connection's place among those that may be open; free again when dropped.
struct Place<'a>(&'a RdmaLink);

impl Place<'_> {
    /// The connection stays in use.
    fn keep(self) {
        let _ = std::mem::ManuallyDrop::new(self);
    }

    /// Gives a connection that is still good back to the others.
    fn end(self, lane: Option<Lane>) {
        let Some(lane) = lane else { return };
        self.0.pool.lock().idle.push(lane);
        self.0.returned.notify_one();
        self.keep();
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.pool.lock().open -= 1;
        self.0.returned.notify_one();
    }
}

impl Link for RdmaLink {
    fn protocol(&self) -> Protocol {
        Protocol::HostRdma
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    unsafe fn read(&self, ops: &[ReadOp<'_>], deadline: Instant) -> Vec<Result<[u8; TRAILER_LEN], TransportError>> {
        let region_bytes = self.target.region_bytes;
        let checked = ops.iter().map(|op| (op.check(region_bytes), op.extent, op.local, &NO_TRAILER));
        // SAFETY: the pieces are writable and unshared by the contract of this function.
        unsafe { self.transfer(Direction::Read, checked, deadline) }
    }

    unsafe fn write(&self, ops: &[WriteOp<'_>], deadline: Instant) -> Vec<Result<(), TransportError>> {
        let region_bytes = self.target.region_bytes;
        let checked = ops.iter().map(|op| (op.check(region_bytes), op.extent, op.local, op.trailer));
        // SAFETY: the pieces are readable and unwritten by the contract of this function.
        let outcomes = unsafe { self.transfer(Direction::Write, checked, deadline) };
        outcomes.into_iter().map(|outcome| outcome.map(drop)).collect()
    }

    fn is_open(&self) -> bool {
        !self.gone.load(Ordering::Relaxed) && self.pool.lock().idle.iter().all(Lane::is_quiet)
    }
}
