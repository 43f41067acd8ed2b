//! Registered memory.

use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use memcache_memory::RawRegion;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::abi::{ACCESS_LOCAL_WRITE, ACCESS_REMOTE_READ, ACCESS_REMOTE_WRITE, MemoryRegion};
use crate::device::Device;

/// What the device may do with registered memory.
///
/// Never with relaxed ordering: that a trailer appears after its payload rests on writes landing in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Send from it.
    Source,
    /// Send from it and receive into it.
    Local,
    /// Let peers read and write it.
    Remote,
}

/// A registration; undone when dropped, which waits until the device has let go.
#[derive(Debug)]
pub(crate) struct Registered {
    device: Arc<Device>,
    region: NonNull<MemoryRegion>,
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
    pub(crate) bytes: u64,
}

// SAFETY: a handle that any thread may use and drop; the library locks what it must.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

impl Registered {
    /// Registers `bytes` bytes from `address`: their pages stay where they are until this is dropped.
    ///
    /// # Safety
    /// Until then the range stays mapped as it is. The device reads and writes it only as work requests or, with
    /// [`Access::Remote`], peers say.
    pub(crate) unsafe fn new(device: &Arc<Device>, address: u64, bytes: u64, access: Access) -> io::Result<Self> {
        let too_long = || io::Error::new(io::ErrorKind::InvalidInput, format!("{bytes} bytes at {address:#x}"));
        let length = usize::try_from(bytes).map_err(|_| too_long())?;
        let start = std::ptr::with_exposed_provenance_mut(usize::try_from(address).map_err(|_| too_long())?);
        let flags = match access {
            Access::Source => 0,
            Access::Local => ACCESS_LOCAL_WRITE,
            Access::Remote => ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_WRITE,
        };
        // SAFETY: the library checks the range against what is mapped; what the device may do is in the contract.
        let region = unsafe { (device.verbs.ibv_reg_mr)(device.pd().as_ptr(), start, length, flags) };
        let region = NonNull::new(region).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: just returned.
        let (lkey, rkey) = unsafe { (region.as_ref().lkey, region.as_ref().rkey) };
        Ok(Self { device: Arc::clone(device), region, lkey, rkey, bytes })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if !self.device.is_ours() {
            return;
        }
        // SAFETY: made by `new`, undone once.
        let failed = unsafe { (self.device.verbs.ibv_dereg_mr)(self.region.as_ptr()) };
        if failed != 0 {
            let error = io::Error::from_raw_os_error(failed);
            tracing::error!(%error, bytes = self.bytes, "memory stays registered with the RDMA device");
        }
    }
}

/// Memory of our own that the device may use: zeros, trailers, and room to copy through.
#[derive(Debug)]
pub(crate) struct Scratch {
    // Before the mapping, so that it is undone first.
    registered: Registered,
    mapping: Mapping,
}

impl Scratch {
    pub(crate) fn new(device: &Arc<Device>, bytes: usize) -> io::Result<Self> {
        let mapping = Mapping::new(bytes)?;
        // SAFETY: the mapping outlives the registration: it is the field after it.
        let registered = unsafe { Registered::new(device, mapping.address(), bytes as u64, Access::Local)? };
        Ok(Self { registered, mapping })
    }

    pub(crate) fn address(&self) -> u64 {
        self.mapping.address()
    }

    pub(crate) fn lkey(&self) -> u32 {
        self.registered.lkey
    }

    pub(crate) fn region(&self) -> RawRegion<'_> {
        // SAFETY: mapped, readable and writable for as long as `self` lives.
        unsafe { RawRegion::new(self.mapping.base, self.mapping.bytes) }
    }
}

/// Private zeroed memory, page-aligned. Not handed to forked children, whose writes would copy it away.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    process: u32,
}

// SAFETY: the mapping belongs to the process; access goes through `RawRegion`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(bytes: usize) -> io::Result<Self> {
        // SAFETY: fresh memory at an address the kernel chooses.
        let base = unsafe { mmap_anonymous(null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)? };
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        let mapping = Self { base, bytes, process: std::process::id() };
        // SAFETY: our own mapping; changes what a fork does, not what it holds.
        unsafe { madvise(base.as_ptr().cast(), bytes, Advice::LinuxDontFork)? };
        Ok(mapping)
    }

    fn address(&self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return; // a forked child never had it, and may have something else there by now
        }
        // SAFETY: exactly what `new` mapped; views borrow `self`, so none is left.
        if let Err(error) = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) } {
            tracing::warn!(%error, bytes = self.bytes, "munmap failed");
        }
    }
}
