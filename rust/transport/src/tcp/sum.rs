//! Checksums that keep step with a transfer, so that bytes are summed while they are in the cache.

use memcache_memory::{checksum_combine, checksum_pieces};
use memcache_types::Piece;

use crate::net::PieceCursor;

/// Bytes moved between two looks at them: they stay in the second-level cache, next to what the kernel needs there.
pub(super) const SUM_STEP: u64 = 256 << 10;

/// CRC-32C of the first bytes of some pieces.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    summed: PieceCursor,
    crc32c: u32,
}

impl Sum {
    /// How many bytes have been summed.
    pub(super) const fn bytes(&self) -> u64 {
        self.summed.moved()
    }

    pub(super) const fn crc32c(&self) -> u32 {
        self.crc32c
    }

    /// Goes on up to byte `end`; does nothing if that lies behind.
    ///
    /// # Safety
    /// The pieces are readable up to there, and nobody writes to them meanwhile.
    pub(super) unsafe fn extend_to(&mut self, pieces: &[Piece], end: u64) {
        let bytes = end.saturating_sub(self.bytes());
        let ahead = self.summed.ahead(pieces, bytes);
        if ahead.is_empty() {
            return;
        }
        // SAFETY: these are bytes of the pieces before `end`, readable and unwritten by contract.
        let next = unsafe { checksum_pieces(&ahead) };
        self.crc32c = checksum_combine(self.crc32c, next, ahead.bytes());
        self.summed.advance(pieces, ahead.bytes());
    }
}

#[cfg(test)]
mod tests {
    use memcache_memory::checksum_bytes;
    use memcache_types::ScatterList;

    use super::*;

    #[test]
    fn steps_of_any_length_give_the_checksum_of_the_whole() {
        let bytes: Vec<u8> = (0..9_000u32).map(|at| (at * 31 % 253) as u8).collect();
        let mut list = ScatterList::new();
        let base = bytes.as_ptr().expose_provenance() as u64;
        // Out of order in memory, so that nothing merges.
        for (start, length) in [(6_000, 3_000), (0, 1), (1, 5_999)] {
            list.push(base + start, length);
        }
        let whole: Vec<u8> = [&bytes[6_000..], &bytes[..6_000]].concat();
        for step in [1usize, 7, 3_000, 3_001, 8_999, 20_000] {
            let mut sum = Sum::default();
            for end in (0..9_000 + step as u64).step_by(step) {
                // SAFETY: the vector lives and is not written.
                unsafe { sum.extend_to(list.pieces(), end) };
            }
            assert_eq!((sum.bytes(), sum.crc32c()), (9_000, checksum_bytes(&whole)), "step {step}");
        }
    }
}
