//! A test double for hardware that is not there: a device whose memory only its own engine can reach.
//!
//! It moves real bytes: its arena is a memfd, mapped here under an address it tells nobody. What it hands out are
//! device addresses that are no pointers (following one is a fault), and it refuses every copy from or to memory it
//! was not told about. It takes as long as its [`TwinCost`]s say, in real time or, for tests without a clock, in
//! virtual time; and it fails when told to.
//!
//! Copies are scheduled as they are submitted: a batch starts when its queue, the engine of its direction and the
//! calling thread have come that far. Twins reach each other's memory over links: what one exports names its memfd.
//! One direction is one engine: batches of several queues share its bandwidth.

mod arena;
mod event;
mod export;
mod queue;
mod time;

use std::sync::Arc;

use crate::address::{Direction, Space};
use crate::device::{Allocation, Device, DeviceCapabilities, DeviceId, HostRange, Keep, Queue, Reach};
use crate::error::DeviceError;

use arena::{Arena, Far};
use queue::TwinQueue;
use time::Timeline;

pub use queue::TwinFault;
pub use time::TwinTime;

/// What copies in one direction cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwinCost {
    /// Each batch, in nanoseconds.
    pub batch_ns: u64,
    /// Each copy, in nanoseconds.
    pub copy_ns: u64,
    /// Bytes a second.
    pub bytes_per_s: u64,
}

impl TwinCost {
    fn time_ns(self, copies: usize, bytes: u64) -> u64 {
        let copying = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s.max(1));
        let setup = self.batch_ns.saturating_add((copies as u64).saturating_mul(self.copy_ns));
        setup.saturating_add(u64::try_from(copying).unwrap_or(u64::MAX))
    }
}

/// How a twin behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwinOptions {
    /// Number among its kind; each device of a process needs its own.
    pub ordinal: u32,
    /// Length of its memory in bytes, at least 1 MiB.
    pub arena_bytes: u64,
    /// Cost by direction, in the order of [`Direction::ALL`].
    pub costs: [TwinCost; Direction::ALL.len()],
    /// Most copies of one batch.
    pub batch_copies_max: usize,
    /// Longest copy in bytes.
    pub copy_bytes_max: u64,
    /// Alignment of addresses and lengths, a power of two.
    pub align: u64,
    /// Whether there is a link to other twins, of this process or another of the same user and host.
    pub links: bool,
    /// Whether its costs take real time.
    pub time: TwinTime,
}

impl Default for TwinOptions {
    /// Slow enough that the bytes really are moved in the time: about a tenth of an accelerator of today, with
    /// far copies that are dear to set up and near ones that are not.
    fn default() -> Self {
        let cost = |batch_ns, copy_ns, bytes_per_s| TwinCost { batch_ns, copy_ns, bytes_per_s };
        Self {
            ordinal: 0,
            arena_bytes: 64 << 20,
            costs: [
                cost(10_000, 1_000, 2_000_000_000),
                cost(10_000, 1_000, 2_000_000_000),
                cost(5_000, 300, 4_000_000_000),
                cost(10_000, 3_000, 2_000_000_000),
                cost(10_000, 3_000, 2_000_000_000),
                cost(10_000, 1_000, 3_000_000_000),
                cost(10_000, 1_000, 3_000_000_000),
            ],
            batch_copies_max: 4096,
            copy_bytes_max: 4 << 30,
            align: 1,
            links: true,
            time: TwinTime::Real,
        }
    }
}

/// A simulated device.
#[derive(Clone, Debug)]
pub struct TwinDevice(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: DeviceId,
    options: TwinOptions,
    capabilities: DeviceCapabilities,
    arena: Arc<Arena>,
    timeline: Arc<Timeline>,
    faults: queue::Faults,
}

impl TwinDevice {
    /// A device with an empty arena.
    pub fn new(options: TwinOptions) -> Result<Self, DeviceError> {
        let id = DeviceId { kind: "twin", ordinal: options.ordinal };
        let capabilities = DeviceCapabilities {
            cpu_touches: false,
            runs_beside: true,
            reaches_peers: true,
            batch_copies_max: options.batch_copies_max.max(1),
            copy_bytes_max: options.copy_bytes_max.max(64),
            align: options.align.max(1),
        };
        let arena = Arc::new(Arena::new(id, options.arena_bytes, options.align)?);
        let timeline = Arc::new(Timeline::new(options.time));
        let faults = queue::Faults::default();
        Ok(Self(Arc::new(Inner { id, options, capabilities, arena, timeline, faults })))
    }

    /// What becomes of the next batches, one each, before the device works again.
    pub fn inject(&self, faults: impl IntoIterator<Item = TwinFault>) {
        self.0.faults.add(faults);
    }

    /// Lets batches that were wedged go on.
    pub fn unwedge(&self) {
        self.0.faults.unwedge();
    }

    /// The time of the calling thread as the device accounts it, in nanoseconds since the device was made.
    pub fn now_ns(&self) -> u64 {
        self.0.timeline.now_ns()
    }

    /// Bytes of the arena that are allocated.
    pub fn used_bytes(&self) -> u64 {
        self.0.arena.used_bytes()
    }

    /// Batches that were accepted so far, and copies in them, by direction.
    pub fn submitted(&self, direction: Direction) -> (u64, u64) {
        self.0.timeline.submitted(direction)
    }

    /// For tests: writes to the arena behind everybody's back. Panics outside an allocation.
    pub fn plant(&self, address: u64, bytes: &[u8]) {
        self.0.arena.plant(address, bytes);
    }

    /// For tests: reads the arena behind everybody's back. Panics outside an allocation.
    pub fn inspect(&self, address: u64, bytes: usize) -> Vec<u8> {
        self.0.arena.inspect(address, bytes)
    }
}

impl TwinDevice {
    fn linked(&self) -> Result<(), DeviceError> {
        if self.0.options.links {
            return Ok(());
        }
        Err(DeviceError::Unsupported { device: self.0.id.to_string(), what: "a link between devices" })
    }
}

impl Device for TwinDevice {
    fn id(&self) -> DeviceId {
        self.0.id
    }

    fn capabilities(&self) -> &DeviceCapabilities {
        &self.0.capabilities
    }

    fn allocate(&self, space: Space, bytes: u64) -> Result<Allocation, DeviceError> {
        match space {
            Space::Device => Arena::allocate(&self.0.arena, bytes),
            Space::Pinned => self.0.arena.allocate_pinned(bytes),
        }
    }

    fn open_queue(&self) -> Result<Box<dyn Queue>, DeviceError> {
        Ok(Box::new(TwinQueue::open(Arc::clone(&self.0))?))
    }

    unsafe fn reach(&self, range: HostRange, keep: Keep) -> Result<Reach, DeviceError> {
        Ok(self.0.arena.reach(range, Far::Host, keep))
    }

    fn links_devices(&self) -> bool {
        self.0.options.links
    }

    fn export(&self, memory: &Allocation) -> Result<Vec<u8>, DeviceError> {
        self.linked()?;
        export::export(self.0.id, &self.0.arena, memory)
    }

    fn import(&self, export: &[u8]) -> Result<Reach, DeviceError> {
        self.linked()?;
        export::import(self.0.id, &self.0.arena, export)
    }

    fn clock_ns(&self) -> u64 {
        if self.0.timeline.is_virtual() { self.0.timeline.now_ns() } else { 0 }
    }

    fn hear_clock(&self, ns: u64) {
        self.0.timeline.hear(ns);
    }
}
