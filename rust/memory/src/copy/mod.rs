//! Copies between local pieces and a run of a region.
//!
//! Large cold copies go around the caches where the processor has instructions for it: plain stores would first
//! fetch every line of the target only to overwrite it. Whether a copy is cold is found out by looking at a few of
//! its lines ([`CopyMode::Auto`]); small and cache-hot ones are a plain memcpy.

mod choice;
mod heat;
mod kernel;
mod part;
#[cfg(target_arch = "x86_64")]
mod runs;
mod summed;

use std::ptr;

use memcache_types::{Piece, ScatterList};

use crate::region::RawRegion;

pub use kernel::Kernel;
pub use part::{Part, parts_of};
pub use summed::{gather_part_summed, gather_summed, scatter_part_summed, scatter_summed};

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
    // SAFETY: the same contract.
    unsafe { gather_part(mode, local, Part::whole(local), target) }
}

/// [`scatter`] in a chosen way.
///
/// # Safety
/// As [`scatter`].
pub unsafe fn scatter_with(mode: CopyMode, source: RawRegion<'_>, local: &ScatterList) {
    // SAFETY: the same contract.
    unsafe { scatter_part(mode, source, local, Part::whole(local)) }
}

/// Copies one part of the pieces of `local` to its place in `target`, which begins with the object's first byte.
/// Nothing of it waits in a store buffer of this core when this returns.
///
/// # Safety
/// As [`gather`], for the bytes of the part.
///
/// Panics if `target` ends before the part does.
pub unsafe fn gather_part(mode: CopyMode, local: &ScatterList, part: Part, target: RawRegion<'_>) {
    // SAFETY: the pieces are readable by contract, and the moves lie in `target`.
    unsafe { copy_all(mode, Size::of(local, part), gather_moves(local, part, target)) }
}

/// Copies one part of an object, whose first byte is the first of `source`, to its place in the pieces of `local`.
///
/// # Safety
/// As [`scatter`], for the bytes of the part.
///
/// Panics if `source` ends before the part does.
pub unsafe fn scatter_part(mode: CopyMode, source: RawRegion<'_>, local: &ScatterList, part: Part) {
    // SAFETY: the pieces are writable by contract, and the moves lie in `source`.
    unsafe { copy_all(mode, Size::of(local, part), scatter_moves(source, local, part)) }
}

/// The copies that gather a part of `local`. Panics if `target` is shorter.
fn gather_moves(local: &ScatterList, part: Part, target: RawRegion<'_>) -> impl Iterator<Item = Move> + Clone {
    let mut at = part.start_in(target);
    part.pieces(local).map(move |(start, bytes)| {
        let target = at;
        at = at.wrapping_add(bytes);
        Move { target, source: start.cast_const(), bytes }
    })
}

/// The copies that scatter to a part of `local`. Panics if `source` is shorter.
fn scatter_moves(source: RawRegion<'_>, local: &ScatterList, part: Part) -> impl Iterator<Item = Move> + Clone {
    let mut at = part.start_in(source).cast_const();
    part.pieces(local).map(move |(target, bytes)| {
        let source = at;
        at = at.wrapping_add(bytes);
        Move { target, source, bytes }
    })
}

/// How large a copy is, for the choice of its kernel.
#[derive(Clone, Copy)]
struct Size {
    /// Bytes of the whole object: a part of a large one is treated as large.
    object: u64,
    /// Bytes of the part.
    part: u64,
    /// Mean length of the object's pieces.
    piece: u64,
}

impl Size {
    fn of(local: &ScatterList, part: Part) -> Self {
        let object = local.bytes();
        Self { object, part: part.bytes(), piece: object / local.pieces().len().max(1) as u64 }
    }
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
unsafe fn kernel_for(mode: CopyMode, size: Size, moves: impl Iterator<Item = Move> + Clone) -> Option<Kernel> {
    match mode {
        CopyMode::Plain => None,
        CopyMode::Streaming(kernel) => kernel.is_available().then_some(kernel),
        CopyMode::Auto => {
            let is_large = size.object >= STREAM_BYTES_MIN && size.piece >= STREAM_PIECE_MIN;
            // SAFETY: by this function's contract.
            if is_large && !unsafe { heat::is_hot(size.part, moves) } { Kernel::best() } else { None }
        }
    }
}

/// # Safety
/// Each target is writable, each source readable, and neither overlaps the other.
unsafe fn copy_all(mode: CopyMode, size: Size, moves: impl Iterator<Item = Move> + Clone) {
    // SAFETY: sources and targets can be read, by this function's contract.
    let kernel = unsafe { kernel_for(mode, size, moves.clone()) };
    let mut moves = moves.peekable();
    while let Some(one) = moves.next() {
        if let (Some(_), Some(next)) = (kernel, moves.peek()) {
            kernel::expect(next.target, next.bytes);
        }
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
    use crate::checksum::{checksum_bytes, checksum_combine};

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
                let target = view(&mut region).sub(offset as u64, object.len() as u64).unwrap();
                target.write_from(&vec![0; object.len()]);
                let parts_of_list = parts_of(&list, 3);
                // SAFETY: as above.
                let sums = parts_of_list.iter().rev().map(|part| unsafe { gather_part_summed(mode, &list, *part, target) });
                let sums: Vec<u32> = sums.collect();
                prop_assert!(region == expected, "gather in parts with {mode:?}");
                let sum = parts_of_list.iter().zip(sums.iter().rev());
                let sum = sum.fold(checksum_bytes(b""), |sum, (part, next)| checksum_combine(sum, *next, part.bytes()));
                prop_assert!(sum == checksum_bytes(&object), "sum of parts with {mode:?}");

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
                local = bytes(1);
                let list = list_of(local.as_mut_ptr(), &parts);
                let payload = region[offset..end].to_vec();
                let source = view(&mut region).sub(offset as u64, payload.len() as u64).unwrap();
                for part in parts_of(&list, 3).into_iter().rev() {
                    // SAFETY: as above.
                    let sum = unsafe { scatter_part_summed(mode, source, &list, part) };
                    let from = usize::try_from(part.offset()).unwrap();
                    let to = from + usize::try_from(part.bytes()).unwrap();
                    prop_assert_eq!(sum, checksum_bytes(&payload[from..to]));
                }
                prop_assert!(local == expected, "scatter in parts with {mode:?}");
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
