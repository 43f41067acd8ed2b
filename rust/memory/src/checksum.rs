//! CRC-32C with the processor's own instructions.

use crc_fast::{CrcAlgorithm, Digest, crc32_iscsi};
use memcache_types::ScatterList;

use crate::copy::pointer;
use crate::region::RawRegion;

/// CRC-32C of `bytes`.
pub fn checksum_bytes(bytes: &[u8]) -> u32 {
    crc32_iscsi(bytes)
}

/// CRC-32C of the bytes of all pieces of `list`, in order.
///
/// # Safety
/// Every piece of `list` is readable, and nobody writes to it meanwhile.
pub unsafe fn checksum_pieces(list: &ScatterList) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for piece in list.pieces() {
        let (start, bytes) = pointer(*piece);
        // SAFETY: readable and unchanged meanwhile, by this function's contract.
        digest.update(unsafe { std::slice::from_raw_parts(start, bytes) });
    }
    #[allow(clippy::cast_possible_truncation, reason = "a CRC-32 has 32 bits")]
    let value = digest.finalize() as u32;
    value
}

/// The polynomial of CRC-32C, lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// `x` to the power of 8 * 2^n modulo the polynomial, for n up to 63.
const SHIFTS: [u32; 64] = shifts();

/// CRC-32C of two runs of bytes laid end to end, from that of each and the length of the second. About 0.1 us.
///
/// A CRC is linear: the first one is moved on by as many zero bytes as the second run is long, and added.
pub fn checksum_combine(first: u32, second: u32, second_bytes: u64) -> u32 {
    let mut moved = first;
    let mut left = second_bytes;
    while left > 0 {
        moved = product(SHIFTS[left.trailing_zeros() as usize], moved);
        left &= left - 1;
    }
    moved ^ second
}

/// `x` to this power modulo the polynomial.
#[cfg(target_arch = "x86_64")]
pub(crate) const fn power_of_x(mut power: u64) -> u32 {
    // x^0, and the squares of x.
    let (mut result, mut square) = (1 << 31, 1 << 30);
    while power > 0 {
        if power & 1 == 1 {
            result = product(result, square);
        }
        square = product(square, square);
        power >>= 1;
    }
    result
}

/// The product of two polynomials modulo CRC-32C's.
pub(crate) const fn product(first: u32, mut second: u32) -> u32 {
    let mut sum = 0;
    let mut bit = 1 << 31;
    while bit != 0 {
        if first & bit != 0 {
            sum ^= second;
        }
        second = if second & 1 == 0 { second >> 1 } else { (second >> 1) ^ POLYNOMIAL };
        bit >>= 1;
    }
    sum
}

const fn shifts() -> [u32; 64] {
    let mut table = [0; 64];
    // x^8, and then the square of the one before.
    table[0] = 1 << (31 - 8);
    let mut at = 1;
    while at < table.len() {
        table[at] = product(table[at - 1], table[at - 1]);
        at += 1;
    }
    table
}

/// Bytes copied out of a region at a time before they are summed: they stay in the caches.
const SUM_BYTES: usize = 16 << 10;

/// CRC-32C of all of `region`. Others may write to it meanwhile; what the sum is worth then is for the trailer to decide.
pub fn checksum_region(region: RawRegion<'_>) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    // Copied first: a digest reads a slice, and memory that changes must never be one.
    let mut part = [0u8; SUM_BYTES];
    let mut offset = 0;
    while let Ok(rest) = region.sub(offset, region.bytes() - offset)
        && !rest.is_empty()
    {
        let bytes = rest.len().min(SUM_BYTES);
        rest.read_into(&mut part[..bytes]);
        digest.update(&part[..bytes]);
        offset += bytes as u64;
    }
    #[allow(clippy::cast_possible_truncation, reason = "a CRC-32 has 32 bits")]
    let value = digest.finalize() as u32;
    value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_combine_to_the_checksum_of_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..5000),
            cuts in prop::collection::vec(0usize..5000, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let parts = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]);
            let sum = parts.fold(checksum_bytes(b""), |sum, part| {
                checksum_combine(sum, checksum_bytes(part), part.len() as u64)
            });
            prop_assert_eq!(sum, checksum_bytes(&bytes));
        }

        /// Lengths no test can allocate, against the checksum crate's own way.
        #[test]
        fn long_runs_combine_like_the_crate_says(first: u32, second: u32, bytes: u64) {
            let want = crc_fast::checksum_combine(CrcAlgorithm::Crc32Iscsi, first.into(), second.into(), bytes);
            prop_assert_eq!(u64::from(checksum_combine(first, second, bytes)), want);
        }
    }

    #[test]
    fn matches_the_published_check_value() {
        assert_eq!(checksum_bytes(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_region_gives_the_checksum_of_its_bytes() {
        for bytes in [1, 64, SUM_BYTES, 100_003] {
            let mut whole: Vec<u8> = (0..bytes).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
            let sum = checksum_bytes(&whole);
            let base = std::ptr::NonNull::from(&mut whole[0]);
            // SAFETY: the vector outlives the view and is not touched otherwise meanwhile.
            assert_eq!(checksum_region(unsafe { RawRegion::new(base, whole.len()) }), sum);
        }
    }

    #[test]
    fn pieces_give_the_checksum_of_the_whole() {
        let whole: Vec<u8> = (0..100_000u32).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
        let base = whole.as_ptr() as u64;
        for cuts in [vec![0, 100_000], vec![0, 1, 64, 65, 4096, 70_001, 100_000]] {
            // Pieces in order but pushed so that they do not merge: copies at other places.
            let copies: Vec<Vec<u8>> = cuts.windows(2).map(|cut| whole[cut[0]..cut[1]].to_vec()).collect();
            let list: ScatterList = copies
                .iter()
                .map(|copy| memcache_types::Piece { address: copy.as_ptr() as u64, bytes: copy.len() as u64 })
                .collect();
            // SAFETY: the copies live and are not written.
            assert_eq!(unsafe { checksum_pieces(&list) }, checksum_bytes(&whole));
        }
        // SAFETY: `whole` lives and is not written.
        assert_eq!(unsafe { checksum_pieces(&ScatterList::single(base, 100_000)) }, checksum_bytes(&whole));
        // SAFETY: there is no piece.
        assert_eq!(unsafe { checksum_pieces(&ScatterList::new()) }, checksum_bytes(b""));
    }
}
