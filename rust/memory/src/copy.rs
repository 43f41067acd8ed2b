//! Copies between local pieces and a run of a region.

use std::ptr;

use memcache_types::{Piece, ScatterList};

use crate::region::RawRegion;

/// The place and length of a piece, as this process sees it.
pub(crate) fn pointer(piece: Piece) -> (*mut u8, usize) {
    #[allow(clippy::cast_possible_truncation, reason = "addresses and lengths of this process fit in a usize")]
    let (address, bytes) = (piece.address as usize, piece.bytes as usize);
    (ptr::with_exposed_provenance_mut(address), bytes)
}

/// Copies the pieces of `local`, in order, to the start of `target`.
///
/// # Safety
/// Every piece is readable and overlaps `target` nowhere, and nobody writes to it meanwhile. Others
/// may read or write `target` meanwhile; what they then see is for the trailer to decide.
///
/// Panics if `target` is shorter than `local`.
pub unsafe fn gather(local: &ScatterList, target: RawRegion<'_>) {
    assert!(local.bytes() <= target.bytes(), "{} bytes do not fit in {}", local.bytes(), target.bytes());
    let mut at = target.base().as_ptr();
    for piece in local.pieces() {
        let (start, bytes) = pointer(*piece);
        // SAFETY: the piece is readable by contract; the lengths add up to at most `target`'s, checked above.
        unsafe {
            ptr::copy_nonoverlapping(start, at, bytes);
            at = at.add(bytes);
        }
    }
}

/// Copies the start of `source` to the pieces of `local`, in order.
///
/// # Safety
/// Every piece is writable and overlaps neither `source` nor another piece, and nobody else touches it
/// meanwhile. Others may write `source` meanwhile; what was then copied is for the trailer to decide.
///
/// Panics if `source` is shorter than `local`.
pub unsafe fn scatter(source: RawRegion<'_>, local: &ScatterList) {
    assert!(local.bytes() <= source.bytes(), "{} bytes are not in {}", local.bytes(), source.bytes());
    let mut at = source.base().as_ptr();
    for piece in local.pieces() {
        let (start, bytes) = pointer(*piece);
        // SAFETY: the piece is writable by contract; the lengths add up to at most `source`'s, checked above.
        unsafe {
            ptr::copy_nonoverlapping(at, start, bytes);
            at = at.add(bytes);
        }
    }
}
