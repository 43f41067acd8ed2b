//! The shared memory: where what lies in it, and how it is touched.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull, null_mut};
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::RING_BYTES;
use crate::error::MailboxError;

/// Words that different processors write lie so far apart: processors fetch lines of 64 bytes, and some fetch pairs.
const APART: usize = 128;

/// The rings begin on a page of their own.
const HEAD_BYTES: usize = 4096;

pub(crate) const BYTES: usize = HEAD_BYTES + 2 * RING_BYTES;

const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Which way the bytes of a ring go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToService,
    ToClient,
}

/// A word that both ends see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Bytes written to a ring since the beginning.
    Written(Way),
    /// Bytes read from a ring since the beginning.
    Read(Way),
    /// What an end sleeps for: the one that reads what goes this way.
    Asleep(Way),
    /// The processor that this end ran on last, plus one.
    Processor(Way),
}

impl Word {
    const fn offset(self) -> usize {
        let (kind, way) = match self {
            Self::Written(way) => (0, way),
            Self::Read(way) => (1, way),
            Self::Asleep(way) => (2, way),
            Self::Processor(way) => (3, way),
        };
        (kind * 2 + way as usize) * APART
    }
}

/// A mapping of a mailbox's memory.
#[derive(Debug)]
pub(crate) struct Memory {
    base: NonNull<u8>,
}

// SAFETY: the mapping belongs to the process, not to a thread; words are atomics and bytes are only copied.
unsafe impl Send for Memory {}
// SAFETY: as above; which of two threads copies when is decided by `End`, whose methods that copy take `&mut self`.
unsafe impl Sync for Memory {}

impl Memory {
    /// Fresh memory, all zeros, that can neither grow nor shrink.
    pub(crate) fn create() -> Result<(OwnedFd, Self), MailboxError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = memfd_create("memcache-mailbox", flags).map_err(MailboxError::system("memfd_create"))?;
        ftruncate(&fd, BYTES as u64).map_err(MailboxError::system("ftruncate"))?;
        fcntl_add_seals(&fd, SEALS).map_err(MailboxError::system("sealing"))?;
        let memory = Self::map(fd.as_fd())?;
        Ok((fd, memory))
    }

    /// The memory that the other end handed over.
    pub(crate) fn attach(fd: BorrowedFd<'_>) -> Result<Self, MailboxError> {
        // Only memfds have seals. Of one that can shrink, an access past the end would end this process.
        let seals = fcntl_get_seals(fd).map_err(|_| MailboxError::Foreign("it has no seals"))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(MailboxError::Foreign("it could shrink"));
        }
        let status = fstat(fd).map_err(MailboxError::system("fstat"))?;
        if usize::try_from(status.st_size) != Ok(BYTES) {
            return Err(MailboxError::Foreign("its size is another"));
        }
        Self::map(fd)
    }

    fn map(fd: BorrowedFd<'_>) -> Result<Self, MailboxError> {
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a fresh mapping at an address the kernel chooses; nothing in this process is replaced.
        let base = unsafe { mmap(null_mut(), BYTES, ProtFlags::READ | ProtFlags::WRITE, flags, fd, 0) }
            .map_err(MailboxError::system("mmap"))?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(MailboxError::Foreign("mapped at address 0"))?;
        Ok(Self { base })
    }

    pub(crate) fn word(&self, word: Word) -> &AtomicU64 {
        before_touch();
        // SAFETY: inside the first page of the mapping, which lives as long as `self`; aligned, for the mapping starts
        // on a page and words lie at multiples of 128; every access of either end to it is an atomic one.
        unsafe { AtomicU64::from_ptr(self.base.cast::<u64>().add(word.offset() / size_of::<u64>()).as_ptr()) }
    }

    /// First byte of a ring.
    const fn ring(&self, way: Way) -> NonNull<u8> {
        // SAFETY: both rings lie inside the mapping.
        unsafe { self.base.add(HEAD_BYTES + way as usize * RING_BYTES) }
    }

    /// Copies `source` into a ring, from where byte number `place` of its stream lies. Panics past the ring's length.
    pub(crate) fn copy_in(&self, way: Way, place: u64, source: &[u8]) {
        assert!(source.len() <= RING_BYTES, "{} bytes at once", source.len());
        before_touch();
        let at = offset(place);
        let (first, second) = source.split_at(source.len().min(RING_BYTES - at));
        let ring = self.ring(way).as_ptr();
        // SAFETY: at + first.len() <= RING_BYTES and second.len() < RING_BYTES: both lie in the ring, and a live slice is
        // not part of memory that others write. The ring never becomes a reference: the other end may touch it any time.
        unsafe {
            ptr::copy_nonoverlapping(first.as_ptr(), ring.add(at), first.len());
            ptr::copy_nonoverlapping(second.as_ptr(), ring, second.len());
        }
    }

    /// Copies from a ring, from where byte number `place` of its stream lies. Panics past the ring's length.
    pub(crate) fn copy_out(&self, way: Way, place: u64, target: &mut [u8]) {
        assert!(target.len() <= RING_BYTES, "{} bytes at once", target.len());
        before_touch();
        let at = offset(place);
        let length = target.len().min(RING_BYTES - at);
        let (first, second) = target.split_at_mut(length);
        let ring = self.ring(way).as_ptr();
        // SAFETY: as in `copy_in`; `target` is exclusively borrowed and thus no part of the ring. What the other end
        // writes meanwhile may be torn; any byte is a byte, and whoever parses them expects all of them.
        unsafe {
            ptr::copy_nonoverlapping(ring.add(at), first.as_mut_ptr(), first.len());
            ptr::copy_nonoverlapping(ring, second.as_mut_ptr(), second.len());
        }
    }
}

/// The other end may change anything between two touches: here the fuzzer has it do so.
#[inline]
fn before_touch() {
    #[cfg(any(test, feature = "fuzzing"))]
    crate::fuzzing::other_acts();
}

#[allow(clippy::cast_possible_truncation, reason = "smaller than a ring")]
const fn offset(place: u64) -> usize {
    (place % RING_BYTES as u64) as usize
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: exactly the range `map` mapped; words and copies borrow `self`, so nobody uses it any more. It cannot
        // fail for such a range, and there would be nothing to do about it.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), BYTES) };
    }
}
