//! A bounds-checked view of shared memory, and the order in which trailer and payload change.

use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use memcache_types::limits::TRAILER_LEN as TRAILER;
use thiserror::Error;

const WORDS: usize = TRAILER / 8;

/// A range that does not lie in its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("bytes {offset}..+{bytes} lie outside a region of {limit} bytes")]
pub struct OutOfBounds {
    /// First byte of the range.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// Length of the region in bytes.
    pub limit: u64,
}

/// A run of shared memory that stays mapped for `'a`.
///
/// Other threads and other processes may change it at any time. That is why it never becomes a
/// reference or a slice: it is only copied from and to, and what was copied means nothing until the
/// trailer of its extent has been checked afterwards.
#[derive(Clone, Copy, Debug)]
pub struct RawRegion<'a> {
    base: NonNull<u8>,
    bytes: usize,
    mapped: PhantomData<&'a ()>,
}

// SAFETY: a view is an address and a length; what may happen through it is the same from any thread.
unsafe impl Send for RawRegion<'_> {}
// SAFETY: as above.
unsafe impl Sync for RawRegion<'_> {}

impl<'a> RawRegion<'a> {
    /// A view of `bytes` bytes from `base`.
    ///
    /// # Safety
    /// The range stays mapped, readable and writable for `'a`, and `bytes` fits in an `isize`.
    pub const unsafe fn new(base: NonNull<u8>, bytes: usize) -> Self {
        Self { base, bytes, mapped: PhantomData }
    }

    /// First byte.
    pub const fn base(self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes.
    pub const fn bytes(self) -> u64 {
        self.bytes as u64
    }

    /// Length in bytes, as an in-memory size.
    pub const fn len(self) -> usize {
        self.bytes
    }

    /// Whether it holds no byte.
    pub const fn is_empty(self) -> bool {
        self.bytes == 0
    }

    /// The part of `bytes` bytes from `offset`.
    pub fn sub(self, offset: u64, bytes: u64) -> Result<Self, OutOfBounds> {
        let outside = OutOfBounds { offset, bytes, limit: self.bytes() };
        let end = offset.checked_add(bytes).ok_or(outside)?;
        if end > self.bytes() {
            return Err(outside);
        }
        let (Ok(start), Ok(length)) = (usize::try_from(offset), usize::try_from(bytes)) else {
            return Err(outside);
        };
        // SAFETY: start + length <= self.bytes, checked above, so it stays inside one mapping.
        Ok(Self { base: unsafe { self.base.add(start) }, bytes: length, mapped: PhantomData })
    }

    /// Copies the first `target.len()` bytes out. Panics if the region is shorter.
    pub fn read_into(self, target: &mut [u8]) {
        assert!(target.len() <= self.bytes, "a read of {} bytes from a region of {}", target.len(), self.bytes);
        // SAFETY: the length was checked; `target` is exclusively borrowed and thus not part of shared memory.
        unsafe { ptr::copy_nonoverlapping(self.base.as_ptr(), target.as_mut_ptr(), target.len()) }
    }

    /// Copies all of `source` to the start. Panics if the region is shorter.
    pub fn write_from(self, source: &[u8]) {
        assert!(source.len() <= self.bytes, "a write of {} bytes to a region of {}", source.len(), self.bytes);
        // SAFETY: the length was checked; a live shared slice is not part of memory that others write.
        unsafe { ptr::copy_nonoverlapping(source.as_ptr(), self.base.as_ptr(), source.len()) }
    }

    /// Makes the extent that this region is say "nothing valid here", before its payload changes.
    ///
    /// No later store to the payload, non-temporal ones included, becomes visible before this.
    /// Panics unless the region can hold a trailer and is aligned to 8 bytes at both ends; links
    /// check both before they come here.
    pub fn retract_trailer(self) {
        let words = self.trailer_words();
        for word in words {
            word.store(0, Ordering::Relaxed);
        }
        fence(Ordering::Release);
        store_fence();
    }

    /// Writes `trailer` after everything that was written before.
    ///
    /// A reader that sees it also sees the payload. Panics as [`retract_trailer`](Self::retract_trailer) does.
    pub fn publish_trailer(self, trailer: &[u8; TRAILER]) {
        store_fence();
        fence(Ordering::Release);
        let words = self.trailer_words();
        // The first word holds the magic: until it is there, the others mean nothing.
        for (word, bytes) in words.iter().zip(trailer.as_chunks::<8>().0).rev() {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Release);
        }
    }

    /// Reads the trailer after everything that was read before.
    ///
    /// If it carries a generation that was known to be published before the first byte of the payload
    /// was read, no byte that was read belongs to a later writing. A trailer that is changing while it
    /// is read comes out torn, which [`Trailer::decode`](crate::Trailer::decode) detects. Panics as
    /// [`retract_trailer`](Self::retract_trailer) does.
    pub fn load_trailer(self) -> [u8; TRAILER] {
        fence(Ordering::Acquire);
        let mut trailer = [0; TRAILER];
        for (word, bytes) in self.trailer_words().iter().zip(trailer.as_chunks_mut::<8>().0) {
            *bytes = word.load(Ordering::Acquire).to_ne_bytes();
        }
        trailer
    }

    fn trailer_words(self) -> &'a [AtomicU64; WORDS] {
        assert!(self.bytes >= TRAILER, "an extent of {} bytes holds no trailer", self.bytes);
        // SAFETY: at least TRAILER bytes long, so this stays inside.
        let start = unsafe { self.base.add(self.bytes - TRAILER) };
        assert!(start.cast::<AtomicU64>().is_aligned(), "a trailer at an address that is not a multiple of 8");
        // SAFETY: mapped for 'a, aligned as just checked, and trailers are only ever touched as atomics here.
        unsafe { start.cast::<[AtomicU64; WORDS]>().as_ref() }
    }
}

/// Drains non-temporal stores, which the memory model's fences do not order on x86.
fn store_fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86_64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backing() -> Vec<u64> {
        vec![0x1111_1111_1111_1111; 32]
    }

    fn view(backing: &mut [u64]) -> RawRegion<'_> {
        // SAFETY: the vector outlives the view and is not touched otherwise meanwhile.
        unsafe { RawRegion::new(NonNull::from(&mut backing[0]).cast(), backing.len() * 8) }
    }

    #[test]
    fn ranges_are_checked() {
        let mut backing = backing();
        let region = view(&mut backing);
        assert!(region.sub(0, 256).is_ok());
        assert!(region.sub(256, 0).is_ok());
        for (offset, bytes) in [(0, 257), (256, 1), (u64::MAX, 1), (1, u64::MAX), (200, 57)] {
            assert_eq!(region.sub(offset, bytes).unwrap_err(), OutOfBounds { offset, bytes, limit: 256 });
        }
        assert!(region.sub(100, 10).unwrap().sub(5, 6).is_err());
    }

    #[test]
    fn trailers_stand_at_the_end_and_can_be_taken_back() {
        let mut backing = backing();
        let region = view(&mut backing);
        let extent = region.sub(64, 128).unwrap();
        let trailer: [u8; 64] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        extent.publish_trailer(&trailer);
        assert_eq!(extent.load_trailer(), trailer);
        let mut bytes = [0; 256];
        region.read_into(&mut bytes);
        assert_eq!(bytes[128..192], trailer);
        assert!(bytes[..128].iter().chain(&bytes[192..]).all(|byte| *byte == 0x11), "bytes beside the trailer changed");
        extent.retract_trailer();
        assert_eq!(extent.load_trailer(), [0; 64]);
    }
}
