//! CRC-32C with the processor's own instructions.

use crc_fast::{CrcAlgorithm, Digest, crc32_iscsi};
use memcache_types::ScatterList;

use crate::copy::pointer;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_check_value() {
        assert_eq!(checksum_bytes(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn pieces_give_the_checksum_of_the_whole() {
        let whole: Vec<u8> = (0..100_000u32).map(|at| (at * 7 % 251) as u8).collect();
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
