//! Host memory as a device: the calling thread copies, with the kernels of `memcache-memory`.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Instant;

use memcache_memory::{RawRegion, gather, scatter};
use memcache_types::ScatterList;

use crate::address::{Copy, Direction, Space};
use crate::check::check_batch;
use crate::device::{
    Allocation, Device, DeviceCapabilities, DeviceId, Event, EventSource, HostRange, Keep, Queue, Reach,
};
use crate::error::DeviceError;

/// Pages, so that large copies start on one.
const ALIGN: usize = 4096;

const ID: DeviceId = DeviceId { kind: "host", ordinal: 0 };

const CAPABILITIES: DeviceCapabilities = DeviceCapabilities {
    cpu_touches: true,
    runs_beside: false,
    reaches_peers: true,
    batch_copies_max: usize::MAX,
    copy_bytes_max: u64::MAX,
    align: 1,
};

/// The memory of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostDevice;

impl Device for HostDevice {
    fn id(&self) -> DeviceId {
        ID
    }

    fn capabilities(&self) -> &DeviceCapabilities {
        &CAPABILITIES
    }

    fn allocate(&self, space: Space, bytes: u64) -> Result<Allocation, DeviceError> {
        let block = Arc::new(Block::new(&ID.to_string(), bytes)?);
        Ok(Allocation::new(space, block.address(), bytes, block))
    }

    fn open_queue(&self) -> Result<Box<dyn Queue>, DeviceError> {
        Ok(Box::new(HostQueue))
    }

    unsafe fn reach(&self, range: HostRange, keep: Keep) -> Result<Reach, DeviceError> {
        Ok(Reach::new(range.base.as_ptr().expose_provenance() as u64, range.bytes, keep))
    }
}

/// Zeroed host memory on page boundaries.
#[derive(Debug)]
pub(crate) struct Block {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: plain memory that belongs to the process; accesses go by address under the contract of `Queue::submit`.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    pub(crate) fn new(device: &str, bytes: u64) -> Result<Self, DeviceError> {
        let none = |why: &str| DeviceError::NoMemory {
            device: device.to_owned(),
            bytes,
            what: "host memory",
            why: why.to_owned(),
        };
        let layout = usize::try_from(bytes.max(1))
            .ok()
            .and_then(|bytes| Layout::from_size_align(bytes, ALIGN).ok())
            .ok_or_else(|| none("more than an address space holds"))?;
        // SAFETY: the layout is not empty.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(|| none("the allocator has none"))?;
        Ok(Self { base, layout })
    }

    pub(crate) fn address(&self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed once.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

#[derive(Debug)]
struct HostQueue;

/// Everything before it has ended: `submit` does not return earlier.
#[derive(Debug)]
struct Over;

impl EventSource for Over {
    fn wait(&self, _deadline: Instant) -> Result<(), DeviceError> {
        Ok(())
    }

    fn is_done(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Queue for HostQueue {
    unsafe fn submit(&mut self, direction: Direction, copies: &[Copy], _keep: Keep) -> Result<(), DeviceError> {
        check_batch(ID, &CAPABILITIES, direction, copies)?;
        let mut rest = copies;
        while let [first, ..] = rest {
            let (scattered, gathered) = (run(rest, |copy| copy.source), run(rest, |copy| copy.target));
            let (count, is_scatter) = if scattered >= gathered { (scattered, true) } else { (gathered, false) };
            let (these, after) = rest.split_at(count);
            let mut list = ScatterList::with_capacity(count);
            for copy in these {
                list.push(if is_scatter { copy.target } else { copy.source }, copy.bytes);
            }
            let base = if is_scatter { first.source } else { first.target };
            if let Some(view) = view(base, list.bytes()) {
                if is_scatter {
                    // SAFETY: readable and writable by this function's contract, and copies do not overlap.
                    unsafe { scatter(view, &list) };
                } else {
                    // SAFETY: as above.
                    unsafe { gather(&list, view) };
                }
            }
            rest = after;
        }
        Ok(())
    }

    fn record(&mut self) -> Result<Event, DeviceError> {
        Ok(Event::new(Arc::new(Over)))
    }

    fn wait_for(&mut self, event: &Event) -> Result<(), DeviceError> {
        if event.is_done() {
            return Ok(());
        }
        Err(DeviceError::Unsupported { device: ID.to_string(), what: "waiting for another device's event" })
    }

    fn cancel(&mut self, _deadline: Instant) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// How many of the first copies follow one another at one end.
fn run(copies: &[Copy], end: impl Fn(&Copy) -> u64) -> usize {
    copies.windows(2).take_while(|pair| end(&pair[0]) + pair[0].bytes == end(&pair[1])).count() + 1
}

/// The memory at an address; `None` if there is nothing to copy.
fn view(address: u64, bytes: u64) -> Option<RawRegion<'static>> {
    let (address, bytes) = (usize::try_from(address).ok()?, usize::try_from(bytes).ok()?);
    let base = NonNull::new(ptr::with_exposed_provenance_mut::<u8>(address))?;
    // SAFETY: the callers of `submit` promise that the range is valid until it returns; the view does not live longer.
    (bytes > 0).then(|| unsafe { RawRegion::new(base, bytes) })
}
