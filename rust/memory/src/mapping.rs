//! A peer's segment, mapped into this process.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};

use crate::error::MemoryError;
use crate::mapped::Mapped;
use crate::persist::is_kept_by_owner;
use crate::prefault;
use crate::region::RawRegion;

/// The memory of a peer's [`Segment`](crate::Segment), reachable by address.
///
/// It stays valid when the peer dies: the kernel keeps the memory as long as anyone maps it.
#[derive(Debug)]
pub struct Mapping {
    mapped: Mapped,
    bytes: u64,
    /// Whether the peer has given every page its memory, so that touching one here takes none.
    is_populated: bool,
}

/// Bytes that [`Mapping::warm`] enters into the page tables at a time.
pub const WARM_BYTES: u64 = 32 << 20;

impl Mapping {
    /// Maps `bytes` bytes of a memfd that a peer handed over.
    ///
    /// # Errors
    /// [`MemoryError::Short`] if it has fewer bytes, [`MemoryError::Unsealed`] if it could still shrink
    /// (a later access would raise SIGBUS), [`MemoryError::System`] if it cannot be mapped.
    #[allow(clippy::needless_pass_by_value, reason = "the mapping takes the place of the descriptor")]
    pub fn from_fd(fd: OwnedFd, bytes: u64) -> Result<Self, MemoryError> {
        let status = fstat(&fd).map_err(|source| MemoryError::system("fstat", bytes, source))?;
        let actual = u64::try_from(status.st_size).unwrap_or(0);
        if actual < bytes {
            return Err(MemoryError::Short { actual, promised: bytes });
        }
        // Files cannot be sealed.
        let is_sealed = fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        if !is_sealed && !is_kept_by_owner(&fd, &status) {
            return Err(MemoryError::Unsealed);
        }
        // Blocks are 512 bytes whatever the page size.
        let is_populated = u64::try_from(status.st_blocks).is_ok_and(|blocks| blocks.saturating_mul(512) >= bytes);
        // Huge pages can only be mapped whole. What is rounded up was never promised and is not shown.
        let page = u64::try_from(status.st_blksize).unwrap_or(1).max(1);
        let whole = bytes.checked_next_multiple_of(page).unwrap_or(bytes).min(actual);
        Ok(Self { mapped: Mapped::new(fd.as_fd(), whole)?, bytes, is_populated })
    }

    /// Enters up to [`WARM_BYTES`] bytes from `offset` into this process's page tables, which otherwise costs every
    /// first access to a page several times its copy. Returns where to go on; `None` when there is nothing left.
    ///
    /// Does nothing where the owner has not touched its memory yet: that would take memory from the system.
    pub fn warm(&self, offset: u64) -> Option<u64> {
        let part = WARM_BYTES.min(self.bytes().checked_sub(offset).filter(|left| *left > 0)?);
        if !self.is_populated {
            return None;
        }
        match prefault::populate(&self.mapped, offset, part) {
            Ok(()) => Some(offset + part),
            Err(error) => {
                tracing::debug!(%error, "cannot enter a peer's memory into the page tables ahead of use");
                None
            }
        }
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// First byte.
    pub fn base(&self) -> NonNull<u8> {
        self.mapped.base()
    }

    /// A view of all of it.
    pub fn region(&self) -> RawRegion<'_> {
        let whole = self.mapped.region();
        whole.sub(0, self.bytes).unwrap_or(whole)
    }
}
