//! Copies between local pieces and a run of a region.
//!
//! Large cold copies go around the caches where the processor has instructions for it: plain stores would first
//! fetch every line of the target only to overwrite it. Whether a copy is cold is found out by looking at a few of
//! its lines ([`CopyMode::Auto`]); small and cache-hot ones are a plain memcpy.

mod heat;
mod kernel;

use std::ptr;

use memcache_types::{Piece, ScatterList};

use crate::region::RawRegion;

pub use kernel::Kernel;

/// Copies below this many bytes stay in the caches whatever they are: they are over before it matters.
const STREAM_BYTES_MIN: u64 = 256 << 10;

/// Copies whose pieces are shorter than this on average gain nothing: setting up each costs what it saves.
const STREAM_PIECE_MIN: u64 = 4 << 10;

/// How to copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyMode {
    /// Around the caches if the copy is large and not all of it is in them.
    #[default]
    Auto,
    /// Always a plain memcpy.
    Plain,
    /// Always with this kernel, on processors that have it.
    Streaming(Kernel),
}

/// The place and length of a piece, as this process sees it.
pub(crate) fn pointer(piece: Piece) -> (*mut u8, usize) {
    #[allow(clippy::cast_possible_truncation, reason = "addresses and lengths of this process fit in a usize")]
    let (address, bytes) = (piece.address as usize, piece.bytes as usize);
    (ptr::with_exposed_provenance_mut(address), bytes)
}

/// Copies the pieces of `local`, in order, to the start of `target`.
///
/// # Safety
/// Every piece is readable and overlaps the bytes written nowhere, and nobody writes to it meanwhile. Others may
/// read or write `target` meanwhile; what they then see is for the trailer to decide.
///
/// Panics if `target` is shorter than `local`.
pub unsafe fn gather(local: &ScatterList, target: RawRegion<'_>) {
    // SAFETY: the same contract.
    unsafe { gather_with(CopyMode::Auto, local, target) }
}

/// Copies the start of `source` to the pieces of `local`, in order.
///
/// # Safety
/// Every piece is writable and overlaps neither the bytes read nor another piece, and nobody else touches it
/// meanwhile. Others may write `source` meanwhile; what was then copied is for the trailer to decide.
///
/// Panics if `source` is shorter than `local`.
pub unsafe fn scatter(source: RawRegion<'_>, local: &ScatterList) {
    // SAFETY: the same contract.
    unsafe { scatter_with(CopyMode::Auto, source, local) }
}

/// [`gather`] in a chosen way.
///
/// # Safety
/// As [`gather`].
pub unsafe fn gather_with(mode: CopyMode, local: &ScatterList, target: RawRegion<'_>) {
    assert!(local.bytes() <= target.bytes(), "{} bytes do not fit in {}", local.bytes(), target.bytes());
    let mut at = target.base().as_ptr();
    let moves = local.pieces().iter().map(move |piece| {
        let (start, bytes) = pointer(*piece);
        let target = at;
        at = at.wrapping_add(bytes);
        Move { target, source: start.cast_const(), bytes }
    });
    // SAFETY: the pieces are readable by contract; the lengths add up to at most `target`'s, checked above.
    unsafe { copy_all(mode, local.bytes(), moves) }
}

/// [`scatter`] in a chosen way.
///
/// # Safety
/// As [`scatter`].
pub unsafe fn scatter_with(mode: CopyMode, source: RawRegion<'_>, local: &ScatterList) {
    assert!(local.bytes() <= source.bytes(), "{} bytes are not in {}", local.bytes(), source.bytes());
    let mut at = source.base().as_ptr().cast_const();
    let moves = local.pieces().iter().map(move |piece| {
        let (target, bytes) = pointer(*piece);
        let source = at;
        at = at.wrapping_add(bytes);
        Move { target, source, bytes }
    });
    // SAFETY: the pieces are writable by contract; the lengths add up to at most `source`'s, checked above.
    unsafe { copy_all(mode, local.bytes(), moves) }
}

/// One contiguous copy.
#[derive(Clone, Copy)]
struct Move {
    target: *mut u8,
    source: *const u8,
    bytes: usize,
}

/// # Safety
/// Each target is writable, each source readable, and neither overlaps the other.
unsafe fn copy_all(mode: CopyMode, total: u64, moves: impl ExactSizeIterator<Item = Move> + Clone) {
    let kernel = match mode {
        CopyMode::Plain => None,
        CopyMode::Streaming(kernel) => kernel.is_available().then_some(kernel),
        CopyMode::Auto => {
            let is_large = total >= STREAM_BYTES_MIN && total / moves.len().max(1) as u64 >= STREAM_PIECE_MIN;
            // SAFETY: sources and targets can be read, by this function's contract.
            Kernel::best().filter(|_| is_large && !unsafe { heat::is_hot(total, moves.clone()) })
        }
    };
    let Some(kernel) = kernel else {
        for one in moves {
            // SAFETY: by this function's contract.
            unsafe { ptr::copy_nonoverlapping(one.source, one.target, one.bytes) }
        }
        return;
    };
    for one in moves {
        // SAFETY: by this function's contract; the processor has been asked for the instructions.
        unsafe { kernel.copy(one.target, one.source, one.bytes) }
    }
    kernel::drain();
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use proptest::prelude::*;

    use super::*;

    const BYTES: usize = 100_000;

    fn modes() -> Vec<CopyMode> {
        let streaming = Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()).map(CopyMode::Streaming);
        [CopyMode::Auto, CopyMode::Plain].into_iter().chain(streaming).collect()
    }

    fn bytes(seed: u8) -> Vec<u8> {
        (0..BYTES).map(|at| at.wrapping_mul(0x9e37_79b9).to_le_bytes()[2] ^ seed).collect()
    }

    fn view(bytes: &mut [u8]) -> RawRegion<'_> {
        // SAFETY: the slice outlives the view and is not touched otherwise meanwhile.
        unsafe { RawRegion::new(NonNull::from(&mut bytes[0]), bytes.len()) }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Pieces of a local buffer, in any order of lengths and gaps, to and from any alignment of a region.
        #[test]
        fn every_kernel_moves_exactly_these_bytes(
            cuts in prop::collection::vec((0usize..300, 0usize..40_000), 1..12),
            offset in 0usize..200,
        ) {
            for mode in modes() {
                let (mut local, mut region) = (bytes(1), bytes(2));
                let base = local.as_mut_ptr();
                let mut list = ScatterList::new();
                let (mut at, mut parts) = (0, Vec::new());
                for (gap, length) in &cuts {
                    let length = (*length).min(BYTES - 200 - (at + gap).min(BYTES - 200));
                    let start = (at + gap).min(BYTES - 200);
                    list.push(base.wrapping_add(start).expose_provenance() as u64, length as u64);
                    parts.push(start..start + length);
                    at = start + length;
                }
                let object: Vec<u8> = parts.iter().flat_map(|part| local[part.clone()].to_vec()).collect();
                let end = offset + object.len();
                let mut expected = region.clone();
                expected[offset..end].copy_from_slice(&object);
                let target = view(&mut region).sub(offset as u64, object.len() as u64).unwrap();
                // SAFETY: two buffers of their own, alive and otherwise untouched.
                unsafe { gather_with(mode, &list, target) };
                prop_assert!(region == expected, "gather with {mode:?}");

                let mut region = bytes(3);
                let mut expected = local.clone();
                let mut from = offset;
                for part in parts {
                    let length = part.len();
                    expected[part].copy_from_slice(&region[from..from + length]);
                    from += length;
                }
                let source = view(&mut region).sub(offset as u64, object.len() as u64).unwrap();
                // SAFETY: as above.
                unsafe { scatter_with(mode, source, &list) };
                prop_assert!(local == expected, "scatter with {mode:?}");
            }
        }
    }

    #[test]
    fn a_large_copy_is_exact_whatever_way_is_chosen() {
        let source: Vec<u8> = (0..4_000_003u32).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
        let mut region = vec![0u8; source.len() + 1];
        let list = ScatterList::single(source.as_ptr().expose_provenance() as u64, source.len() as u64);
        // SAFETY: two buffers of their own, alive and otherwise untouched.
        unsafe { gather(&list, view(&mut region).sub(1, source.len() as u64).unwrap()) };
        assert!(region[1..] == source[..] && region[0] == 0);
    }
}
