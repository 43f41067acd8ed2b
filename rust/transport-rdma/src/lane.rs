//! One connection to a region, and the batch of operations that is on it.
//!
//! # The order of payload and trailer
//!
//! A **write** is, on one queue pair: zeros over the old trailer, the payload, the new trailer. A reliable connection
//! executes writes in the order they were posted, and the registration of the region never allows relaxed ordering,
//! so that they also land in it: nobody sees payload bytes beside the old trailer, or the new trailer before them.
//!
//! A **read** is the payload, and **after that has arrived** the trailer. Two reads posted together would not do:
//! the answering device fetches both from memory, and such fetches may pass each other on its bus. What has arrived
//! was fetched before the trailer's request was sent, whatever the devices in between do.

mod run;

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use memcache_memory::RawRegion;
use memcache_transport::TransportError;
use memcache_types::limits::{TRAILER_BYTES, TRAILER_LEN};

use crate::device::Device;
use crate::failure::Failure;
use crate::memory::Scratch;
use crate::plan::{Part, RequestLimits, Ring};
use crate::queue::Queue;
use run::Run;

/// Requests under way on one connection.
pub(crate) const ENTRIES: u32 = 256;
/// Trailers under way on one connection.
const SLOTS: usize = 256;
/// Registered memory that unregistered pieces are copied through, in bytes.
const RING_BYTES: u64 = 2 << 20;
/// Where it begins within the scratch memory: after the zeros and the trailers, on a page of its own.
const RING_START: u64 = ((SLOTS as u64 + 1) * TRAILER_BYTES).next_multiple_of(4096);
/// Most bytes of one request, whatever the device allows: the peer may serve others in between.
const MESSAGE_BYTES_MAX: u64 = 1 << 30;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// One operation.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// Where the extent is in the region.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) parts: Vec<Part>,
    /// What a write ends with.
    pub(crate) trailer: &'a [u8; TRAILER_LEN],
}

/// The trailer that was read; of a write, the one that was written.
pub(crate) type Outcome = Result<[u8; TRAILER_LEN], TransportError>;

/// Work requests posted since the road was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) payload: AtomicU64,
    pub(crate) trailer: AtomicU64,
}

/// Where the region is, for the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remote {
    pub(crate) base: u64,
    pub(crate) rkey: u32,
}

/// A connected queue pair with its scratch memory.
#[derive(Debug)]
pub(crate) struct Lane {
    // First, so that the device has let go of everything below when that is dropped.
    queue: Queue,
    scratch: Scratch,
    ring: Ring,
    remote: Remote,
    limits: RequestLimits,
    device: Arc<Device>,
    counters: Arc<Counters>,
    /// Silent while the peer lives.
    control: TcpStream,
    next_id: u64,
}

impl Lane {
    pub(crate) fn new(
        device: &Arc<Device>,
        queue: Queue,
        control: TcpStream,
        remote: Remote,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let bytes = usize::try_from(RING_START + RING_BYTES).map_err(io::Error::other)?;
        let limits = RequestLimits {
            pieces: device.limits.pieces,
            message_bytes: device.limits.message_bytes.min(MESSAGE_BYTES_MAX),
        };
        Ok(Self {
            queue,
            scratch: Scratch::new(device, bytes)?,
            ring: Ring::new(RING_BYTES),
            remote,
            limits,
            device: Arc::clone(device),
            counters,
            control,
            next_id: 0,
        })
    }

    /// Whether the peer has said nothing: it says nothing while it lives.
    pub(crate) fn is_quiet(&self) -> bool {
        crate::control::is_quiet(self.control.as_fd())
    }

    /// Runs the operations. Returns the lane if it is still good. When this returns, the device touches no memory
    /// of the operations any more, however they ended.
    ///
    /// # Safety
    /// Until then the parts are mapped and touched by nobody else (a read) or written by nobody (a write), and those
    /// with a key are registered under it.
    pub(crate) unsafe fn run(
        mut self,
        direction: Direction,
        jobs: &[Job<'_>],
        deadline: Instant,
    ) -> (Option<Self>, Vec<Outcome>, Option<Failure>) {
        let mut run = Run::new(&mut self, direction, jobs);
        // SAFETY: the same contract.
        let failure = unsafe { run.drive(deadline) };
        let outcomes = run.outcomes(failure.as_ref());
        if failure.is_some() {
            drop(self); // destroys the queue pair, should draining it not have been enough
            return (None, outcomes, failure);
        }
        (Some(self), outcomes, None)
    }

    fn slot(job: usize) -> u64 {
        (1 + (job % SLOTS) as u64) * TRAILER_BYTES
    }

    fn scratch_at(&self, at: u64, bytes: u64) -> RawRegion<'_> {
        // Every place is computed from the constants the scratch memory was made with.
        let whole = self.scratch.region();
        whole.sub(at, bytes).unwrap_or(whole)
    }
}
