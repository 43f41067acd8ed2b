//! One shared mapping, unmapped when dropped.

use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::error::MemoryError;
use crate::region::RawRegion;

/// A shared, readable and writable mapping of a whole memfd.
#[derive(Debug)]
pub(crate) struct Mapped {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; `base` never changes and every access
// goes through raw copies whose callers answer for races (see `RawRegion`).
unsafe impl Send for Mapped {}
// SAFETY: as above; `&Mapped` only hands out the address.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps the first `bytes` bytes of `fd`.
    pub(crate) fn new(fd: BorrowedFd<'_>, bytes: u64) -> Result<Self, MemoryError> {
        let length = usize::try_from(bytes)
            .ok()
            .filter(|length| isize::try_from(*length).is_ok())
            .ok_or(MemoryError::Size { bytes, min: 1, max: isize::MAX as u64 })?;
        // SAFETY: a fresh mapping at an address the kernel chooses; nothing in this process is replaced.
        let base = unsafe { mmap(null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0) }
            .map_err(|source| MemoryError::system("mmap", bytes, source))?;
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| MemoryError::system("mmap", bytes, std::io::Error::other("mapped at address 0")))?;
        Ok(Self { base, bytes: length })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn region(&self) -> RawRegion<'_> {
        // SAFETY: `base..base + bytes` stays mapped, readable and writable for as long as `self` lives.
        unsafe { RawRegion::new(self.base, self.bytes) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: exactly the range `new` mapped; views borrow `self`, so none is left.
        if let Err(error) = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) } {
            tracing::warn!(%error, bytes = self.bytes, "munmap failed");
        }
    }
}
