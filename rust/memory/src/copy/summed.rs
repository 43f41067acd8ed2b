//! Copies that give the CRC-32C of what they copied, in the same pass: each part is summed while it is in the
//! first-level cache, so that memory is read once.

use std::slice;

use crc_fast::{CrcAlgorithm, Digest};
use memcache_types::ScatterList;

use super::{CopyMode, Kernel, Move, copy_one, gather_moves, kernel, kernel_for, scatter_moves};
use crate::region::RawRegion;

/// Bytes summed at a time: they stay in the first-level cache between sum and copy.
const PART_BYTES: usize = 4 << 10;
/// The same for kernels that move several pages at a time.
const PAGES_PART_BYTES: usize = 16 << 10;

/// As [`gather_with`](super::gather_with); returns the CRC-32C of the bytes copied.
///
/// # Safety
/// As [`gather`](super::gather).
pub unsafe fn gather_summed(mode: CopyMode, local: &ScatterList, target: RawRegion<'_>) -> u32 {
    let moves = gather_moves(local, target);
    // SAFETY: the pieces are readable by contract, and the moves lie in `target`.
    let kernel = unsafe { kernel_for(mode, local.bytes(), moves.clone()) };
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for part in moves.flat_map(|one| parts(one, part_bytes(kernel))) {
        // SAFETY: nobody writes to the pieces meanwhile, so they may be looked at; the rest as above.
        unsafe {
            digest.update(slice::from_raw_parts(part.source, part.bytes));
            copy_one(kernel, part);
        }
    }
    finish(kernel, &digest)
}

/// As [`scatter_with`](super::scatter_with); returns the CRC-32C of the bytes that arrived in the pieces.
///
/// # Safety
/// As [`scatter`](super::scatter).
pub unsafe fn scatter_summed(mode: CopyMode, source: RawRegion<'_>, local: &ScatterList) -> u32 {
    let moves = scatter_moves(source, local);
    // SAFETY: the pieces are writable by contract, and the moves lie in `source`.
    let kernel = unsafe { kernel_for(mode, local.bytes(), moves.clone()) };
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    let mut bounce = Bounce([0; PAGES_PART_BYTES]);
    for part in moves.flat_map(|one| parts(one, part_bytes(kernel))) {
        // Others may write to the source at any time, so it is read once and only the copy is summed. Plainly copied
        // bytes are in the cache where they arrived; those that go around it are copied to a buffer in it first.
        let near = if kernel.is_some() { bounce.0.as_mut_ptr() } else { part.target };
        // SAFETY: a part is no longer than the buffer; buffer and pieces are touched by nobody else.
        unsafe {
            copy_one(None, Move { target: near, ..part });
            digest.update(slice::from_raw_parts(near, part.bytes));
            if kernel.is_some() {
                copy_one(kernel, Move { source: near, ..part });
            }
        }
    }
    finish(kernel, &digest)
}

/// A buffer that starts a line.
#[repr(align(64))]
struct Bounce([u8; PAGES_PART_BYTES]);

const fn part_bytes(kernel: Option<Kernel>) -> usize {
    match kernel {
        None | Some(Kernel::Avx2Lines) => PART_BYTES,
        Some(Kernel::Avx2Pages | Kernel::Avx512Pages) => PAGES_PART_BYTES,
    }
}

/// A copy in parts of at most `bytes` bytes.
fn parts(one: Move, bytes: usize) -> impl Iterator<Item = Move> {
    (0..one.bytes).step_by(bytes).map(move |at| Move {
        target: one.target.wrapping_add(at),
        source: one.source.wrapping_add(at),
        bytes: bytes.min(one.bytes - at),
    })
}

fn finish(kernel: Option<Kernel>, digest: &Digest) -> u32 {
    if kernel.is_some() {
        kernel::drain();
    }
    #[allow(clippy::cast_possible_truncation, reason = "a CRC-32 has 32 bits")]
    let value = digest.finalize() as u32;
    value
}
