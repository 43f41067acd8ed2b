//! Copies between local pieces and a run of a region.
//!
//! Large cold copies go around the caches where the processor has instructions for it: plain stores would first
//! fetch every line of the target only to overwrite it. Whether a copy is cold is found out by looking at a few of
//! its lines ([`CopyMode::Auto`]); small and cache-hot ones are a plain memcpy.

mod heat;
mod kernel;
mod summed;

use std::ptr;

use memcache_types::{Piece, ScatterList};

use crate::region::RawRegion;

pub use kernel::Kernel;
pub use summed::{gather_summed, scatter_summed};

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
    // SAFETY: the pieces are readable by contract, and the moves lie in `target`.
    unsafe { copy_all(mode, local.bytes(), gather_moves(local, target)) }
}

/// [`scatter`] in a chosen way.
///
/// # Safety
/// As [`scatter`].
pub unsafe fn scatter_with(mode: CopyMode, source: RawRegion<'_>, local: &ScatterList) {
    // SAFETY: the pieces are writable by contract, and the moves lie in `source`.
    unsafe { copy_all(mode, local.bytes(), scatter_moves(source, local)) }
}

/// The copies that gather `local`. Panics if `target` is shorter.
fn gather_moves(local: &ScatterList, target: RawRegion<'_>) -> impl ExactSizeIterator<Item = Move> + Clone {
    assert!(local.bytes() <= target.bytes(), "{} bytes do not fit in {}", local.bytes(), target.bytes());
    let mut at = target.base().as_ptr();
    local.pieces().iter().map(move |piece| {
        let (start, bytes) = pointer(*piece);
        let target = at;
        at = at.wrapping_add(bytes);
        Move { target, source: start.cast_const(), bytes }
    })
}

/// The copies that scatter to `local`. Panics if `source` is shorter.
fn scatter_moves(source: RawRegion<'_>, local: &ScatterList) -> impl ExactSizeIterator<Item = Move> + Clone {
    assert!(local.bytes() <= source.bytes(), "{} bytes are not in {}", local.bytes(), source.bytes());
    let mut at = source.base().as_ptr().cast_const();
    local.pieces().iter().map(move |piece| {
        let (target, bytes) = pointer(*piece);
        let source = at;
        at = at.wrapping_add(bytes);
        Move { target, source, bytes }
    })
}

/// One contiguous copy.
#[derive(Clone, Copy)]
struct Move {
    target: *mut u8,
    source: *const u8,
    bytes: usize,
}

/// The kernel for these copies; `None` is memcpy.
///
/// # Safety
/// All sources and targets are readable.
unsafe fn kernel_for(mode: CopyMode, total: u64, moves: impl ExactSizeIterator<Item = Move> + Clone) -> Option<Kernel> {
    match mode {
        CopyMode::Plain => None,
        CopyMode::Streaming(kernel) => kernel.is_available().then_some(kernel),
        CopyMode::Auto => {
            let is_large = total >= STREAM_BYTES_MIN && total / moves.len().max(1) as u64 >= STREAM_PIECE_MIN;
            // SAFETY: by this function's contract.
            Kernel::best().filter(|_| is_large && !unsafe { heat::is_hot(total, moves) })
        }
    }
}

/// # Safety
/// Each target is writable, each source readable, and neither overlaps the other.
unsafe fn copy_all(mode: CopyMode, total: u64, moves: impl ExactSizeIterator<Item = Move> + Clone) {
    // SAFETY: sources and targets can be read, by this function's contract.
    let kernel = unsafe { kernel_for(mode, total, moves.clone()) };
    for one in moves {
        // SAFETY: by this function's contract.
        unsafe { copy_one(kernel, one) }
    }
    if kernel.is_some() {
        kernel::drain();
    }
}

/// # Safety
/// The target is writable, the source readable, they do not overlap, and the processor has the kernel.
unsafe fn copy_one(kernel: Option<Kernel>, one: Move) {
    match kernel {
        // SAFETY: by this function's contract.
        Some(kernel) => unsafe { kernel.copy(one.target, one.source, one.bytes) },
        // SAFETY: by this function's contract.
        None => unsafe { ptr::copy_nonoverlapping(one.source, one.target, one.bytes) },
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::ptr::NonNull;

    use proptest::prelude::*;

    use super::*;
    use crate::checksum::checksum_bytes;

    const BYTES: usize = 100_000;

    fn modes() -> Vec<CopyMode> {
        let streaming = Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()).map(CopyMode::Streaming);
        [CopyMode::Auto, CopyMode::Plain].into_iter().chain(streaming).collect()
    }

    fn bytes(seed: u8) -> Vec<u8> {
        (0..BYTES).map(|at| at.wrapping_mul(0x9e37_79b9).to_le_bytes()[2] ^ seed).collect()
    }

    fn list_of(base: *mut u8, parts: &[Range<usize>]) -> ScatterList {
        let address = |part: &Range<usize>| base.wrapping_add(part.start).expose_provenance() as u64;
        parts.iter().map(|part| Piece { address: address(part), bytes: part.len() as u64 }).collect()
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
                let (mut at, mut parts) = (0, Vec::new());
                for (gap, length) in &cuts {
                    let length = (*length).min(BYTES - 200 - (at + gap).min(BYTES - 200));
                    let start = (at + gap).min(BYTES - 200);
                    parts.push(start..start + length);
                    at = start + length;
                }
                let list = list_of(base, &parts);
                let object: Vec<u8> = parts.iter().flat_map(|part| local[part.clone()].to_vec()).collect();
                let end = offset + object.len();
                let mut expected = region.clone();
                expected[offset..end].copy_from_slice(&object);
                let target = view(&mut region).sub(offset as u64, object.len() as u64).unwrap();
                // SAFETY: two buffers of their own, alive and otherwise untouched.
                unsafe { gather_with(mode, &list, target) };
                prop_assert!(region == expected, "gather with {mode:?}");
                let target = view(&mut region).sub(offset as u64, object.len() as u64).unwrap();
                target.write_from(&vec![0; object.len()]);
                // SAFETY: as above.
                let sum = unsafe { gather_summed(mode, &list, target) };
                prop_assert!(region == expected && sum == checksum_bytes(&object), "summed gather with {mode:?}");

                let mut region = bytes(3);
                let mut expected = local.clone();
                let mut from = offset;
                for part in parts.clone() {
                    let length = part.len();
                    expected[part].copy_from_slice(&region[from..from + length]);
                    from += length;
                }
                let source = view(&mut region).sub(offset as u64, object.len() as u64).unwrap();
                // SAFETY: as above.
                unsafe { scatter_with(mode, source, &list) };
                prop_assert!(local == expected, "scatter with {mode:?}");
                local = bytes(1);
                let base = local.as_mut_ptr();
                let list = list_of(base, &parts);
                // SAFETY: as above.
                let sum = unsafe { scatter_summed(mode, source, &list) };
                prop_assert!(local == expected, "summed scatter with {mode:?}");
                prop_assert_eq!(sum, checksum_bytes(&region[offset..end]));
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
