//! What every device promises.

use std::any::Any;
use std::fmt::{self, Debug};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Instant;

use crate::address::{Copy, Direction, Space};
use crate::error::DeviceError;

/// Whatever must stay as it is while something uses it: memory, a mapping, a registration.
pub type Keep = Arc<dyn Any + Send + Sync>;

/// Longest text of [`Device::export`], in bytes.
pub const EXPORT_BYTES_MAX: usize = 1024;

/// Which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId {
    /// What kind: `host`, `twin`, later `ascend`, `cuda`.
    pub kind: &'static str,
    /// Which one of its kind.
    pub ordinal: u32,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.ordinal)
    }
}

/// What a device can do. Fixed when it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceCapabilities {
    /// Whether addresses of [`Space::Device`] are pointers that the processor may follow.
    pub cpu_touches: bool,
    /// Whether copies run beside the calling thread; if not, they are over when `submit` returns.
    pub runs_beside: bool,
    /// Whether [`Device::reach`] can work.
    pub reaches_peers: bool,
    /// Most copies of one batch, at least 1.
    pub batch_copies_max: usize,
    /// Longest single copy in bytes, at least 64.
    pub copy_bytes_max: u64,
    /// What addresses and lengths must be a multiple of, in bytes; a power of two, 1 where anything goes.
    pub align: u64,
}

/// Host memory by address, for [`Device::reach`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRange {
    /// First byte.
    pub base: NonNull<u8>,
    /// Length in bytes.
    pub bytes: u64,
}

// SAFETY: an address and a length; nothing is accessed through it but by the contract of `reach`.
unsafe impl Send for HostRange {}
// SAFETY: as above.
unsafe impl Sync for HostRange {}

/// Memory and the engine that copies to and from it.
///
/// Everything may be called from any thread; an implementation whose driver binds state to threads (the contexts of
/// Ascend and CUDA) sets that state at the start of each call. Nothing but [`Event::wait`] and [`Queue::cancel`]
/// waits, and those have deadlines.
pub trait Device: Send + Sync + Debug {
    /// Which one. Within a process two devices of one id are the same device.
    fn id(&self) -> DeviceId;

    /// Its limits.
    fn capabilities(&self) -> &DeviceCapabilities;

    /// Memory for staging, freed when dropped. Aligned to 64 bytes and to the device's own alignment. Slow: callers
    /// keep what they get.
    fn allocate(&self, space: Space, bytes: u64) -> Result<Allocation, DeviceError>;

    /// A queue of its own for copies. Slow: callers keep it.
    fn open_queue(&self) -> Result<Box<dyn Queue>, DeviceError>;

    /// Makes memory of this process, such as a peer's segment mapped here, addressable for the engine in the
    /// directions [`Direction::PeerToDevice`] and [`Direction::DeviceToPeer`]. Undone when dropped. Slow.
    ///
    /// # Safety
    /// The range stays mapped, readable and writable while `keep` lives. Others may read and write it at any time.
    unsafe fn reach(&self, range: HostRange, keep: Keep) -> Result<Reach, DeviceError>;

    /// Whether [`export`](Self::export) and [`import`](Self::import) can work: there is a link between devices.
    fn links_devices(&self) -> bool {
        false
    }

    /// Lets devices of other nodes copy from and to this memory of [`Space::Device`] for as long as it is allocated: the
    /// bytes that tell them how, at most [`EXPORT_BYTES_MAX`]. Whoever has them can.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] where there is no link between devices, or the memory is of another kind.
    fn export(&self, memory: &Allocation) -> Result<Vec<u8>, DeviceError> {
        let _ = memory;
        Err(DeviceError::Unsupported { device: self.id().to_string(), what: "a link between devices" })
    }

    /// Makes memory that another device exported addressable for the engine in the directions
    /// [`Direction::LinkToDevice`] and [`Direction::DeviceToLink`]. Undone when dropped. Slow. Whoever exported it may
    /// change it at any time; when it stopped being what it was is for the two nodes to agree on.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] where there is no link between devices; [`DeviceError::BadExport`] if the bytes
    /// lead nowhere. Any bytes may be given.
    fn import(&self, export: &[u8]) -> Result<Reach, DeviceError> {
        let _ = export;
        Err(DeviceError::Unsupported { device: self.id().to_string(), what: "a link between devices" })
    }

    /// Where a simulated device's calling thread is in time, in nanoseconds; 0 for devices whose time is real. Messages
    /// between nodes carry it, so that what two simulated devices do after one another is accounted so.
    fn clock_ns(&self) -> u64 {
        0
    }

    /// A message came that was sent at this time of another simulated device.
    fn hear_clock(&self, ns: u64) {
        let _ = ns;
    }
}

/// Copies in order, beside the calling thread where the device can.
///
/// One thread uses a queue at a time. When a copy fails, or a queue it waits for does, everything behind it is skipped
/// and all later events tell the error, until [`cancel`](Self::cancel). Dropping a queue cancels what has not started
/// and waits a moment for the copy that runs.
pub trait Queue: Send + Debug {
    /// Appends a batch. Its copies may run in any order among themselves, after everything appended before. They
    /// must not overlap each other. `keep` is held until the last of them has ended, whatever becomes of the caller.
    ///
    /// # Errors
    /// [`DeviceError::InvalidCopy`] if a copy breaks a limit or touches memory the engine cannot address: then
    /// nothing of the batch was appended. Failures while copying are told by the next event.
    ///
    /// # Safety
    /// While `keep` lives all sources are readable and all targets writable, in the sense of the direction, and until
    /// the copies have ended nobody else writes to either or reads the targets. Memory from [`Device::reach`] is
    /// excepted: whoever shares it may change it, and what was copied then is for the trailer to decide.
    unsafe fn submit(&mut self, direction: Direction, copies: &[Copy], keep: Keep) -> Result<(), DeviceError>;

    /// Marks this place: the event resolves when everything appended before has ended.
    fn record(&mut self) -> Result<Event, DeviceError>;

    /// What is appended from here on starts after `event` has resolved. Does not wait itself.
    fn wait_for(&mut self, event: &Event) -> Result<(), DeviceError>;

    /// Drops what has not started and waits until nothing runs any more. Afterwards no byte moves for anything that
    /// was submitted before, and the queue can be used again.
    ///
    /// # Errors
    /// [`DeviceError::Lost`] if the engine did not stop before the deadline: bytes may still land, `keep`s stay held.
    fn cancel(&mut self, deadline: Instant) -> Result<(), DeviceError>;
}

/// What an implementation's event can do.
pub trait EventSource: Send + Sync + Debug {
    /// As [`Event::wait`].
    fn wait(&self, deadline: Instant) -> Result<(), DeviceError>;

    /// As [`Event::is_done`].
    fn is_done(&self) -> bool;

    /// The implementation's own type.
    fn as_any(&self) -> &dyn Any;
}

/// A place in a queue. Clones are the same place.
#[derive(Clone, Debug)]
pub struct Event(Arc<dyn EventSource>);

impl Event {
    /// An event of this kind.
    pub fn new(source: Arc<dyn EventSource>) -> Self {
        Self(source)
    }

    /// Waits until everything before it has ended.
    ///
    /// # Errors
    /// [`DeviceError::Timeout`] if the deadline comes first; [`DeviceError::Failed`] or [`DeviceError::Cancelled`] if
    /// something before it did not end as it should.
    pub fn wait(&self, deadline: Instant) -> Result<(), DeviceError> {
        self.0.wait(deadline)
    }

    /// Whether everything before it has ended, well or not. Never waits.
    pub fn is_done(&self) -> bool {
        self.0.is_done()
    }

    /// The implementation's own type, for its queues.
    pub fn source(&self) -> &dyn EventSource {
        &*self.0
    }
}

/// Memory that was allocated for copies; freed when the last reference goes.
#[derive(Clone)]
pub struct Allocation {
    address: u64,
    bytes: u64,
    space: Space,
    owner: Keep,
}

impl Allocation {
    /// Memory that `owner` frees when it is dropped.
    pub fn new(space: Space, address: u64, bytes: u64, owner: Keep) -> Self {
        Self { address, bytes, space, owner }
    }

    /// First byte, in the address space of its kind.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where it is.
    pub fn space(&self) -> Space {
        self.space
    }

    /// What keeps it, to be given along with copies.
    pub fn keep(&self) -> Keep {
        Arc::clone(&self.owner)
    }
}

impl Debug for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Allocation({:?}, {} bytes at {:#x})", self.space, self.bytes, self.address)
    }
}

/// Memory of others that the engine can address.
pub struct Reach {
    address: u64,
    bytes: u64,
    owner: Keep,
}

impl Reach {
    /// A range that `owner` makes unreachable again when it is dropped.
    pub fn new(address: u64, bytes: u64, owner: Keep) -> Self {
        Self { address, bytes, owner }
    }

    /// Where the engine finds its first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What keeps it, to be given along with copies.
    pub fn keep(&self) -> Keep {
        Arc::clone(&self.owner)
    }
}

impl Debug for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reach({} bytes at {:#x})", self.bytes, self.address)
    }
}
