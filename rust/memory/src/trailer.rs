//! What stands at the end of every extent: whose bytes these are, which writing, how many.

use memcache_types::limits::TRAILER_LEN;
use memcache_types::{Generation, KeyDigest};

use crate::checksum::checksum_bytes;

const MAGIC: [u8; 4] = *b"MCTR";
const VERSION: u16 = 1;
const CHECKSUM_NONE: u8 = 0;
const CHECKSUM_CRC32C: u8 = 1;

/// A checksum of a payload, if its writer made one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// None was made.
    None,
    /// CRC-32C (Castagnoli) over all payload bytes.
    Crc32c(u32),
}

/// Who wrote an extent, and what.
///
/// | bytes | field |
/// |---|---|
/// | 0..4 | magic `MCTR` |
/// | 4..6 | version of this layout, little endian like all numbers here |
/// | 6 | kind of checksum: 0 none, 1 CRC-32C |
/// | 8..16 | generation |
/// | 16..32 | key digest |
/// | 32..40 | payload length in bytes |
/// | 40..44 | checksum of the payload |
/// | 60..64 | CRC-32C over bytes 0..60 |
///
/// All other bytes are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Digest of the object's key.
    pub digest: KeyDigest,
    /// Which writing of this memory. Never [`Generation::NONE`] in a decoded trailer.
    pub generation: Generation,
    /// Payload length in bytes.
    pub payload_bytes: u64,
    /// Checksum of the payload.
    pub checksum: Checksum,
}

impl Trailer {
    /// What takes a trailer's place while an extent is being written: decodes to nothing.
    pub const RETRACTED: [u8; TRAILER_LEN] = [0; TRAILER_LEN];

    /// The 64 bytes that say this.
    pub fn encode(&self) -> [u8; TRAILER_LEN] {
        let mut bytes = [0; TRAILER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        let (kind, value) = match self.checksum {
            Checksum::None => (CHECKSUM_NONE, 0),
            Checksum::Crc32c(value) => (CHECKSUM_CRC32C, value),
        };
        bytes[6] = kind;
        bytes[8..16].copy_from_slice(&self.generation.get().to_le_bytes());
        bytes[16..32].copy_from_slice(&self.digest.as_u128().to_le_bytes());
        bytes[32..40].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[40..44].copy_from_slice(&value.to_le_bytes());
        let own = checksum_bytes(&bytes[..60]);
        bytes[60..64].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    /// What these 64 bytes say; `None` for anything that was not written whole by
    /// [`encode`](Self::encode): zeros, a torn trailer, payload of someone else, another version.
    pub fn decode(bytes: &[u8; TRAILER_LEN]) -> Option<Self> {
        if bytes[0..4] != MAGIC || u16::from_le_bytes(field(bytes, 4)) != VERSION {
            return None;
        }
        if u32::from_le_bytes(field(bytes, 60)) != checksum_bytes(&bytes[..60]) {
            return None;
        }
        let value = u32::from_le_bytes(field(bytes, 40));
        let checksum = match bytes[6] {
            CHECKSUM_NONE => Checksum::None,
            CHECKSUM_CRC32C => Checksum::Crc32c(value),
            _ => return None,
        };
        let generation = Generation::new(u64::from_le_bytes(field(bytes, 8)));
        if generation == Generation::NONE {
            return None;
        }
        Some(Self {
            digest: KeyDigest::from_u128(u128::from_le_bytes(field(bytes, 16))),
            generation,
            payload_bytes: u64::from_le_bytes(field(bytes, 32)),
            checksum,
        })
    }
}

fn field<const N: usize>(bytes: &[u8; TRAILER_LEN], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trailers() -> impl Strategy<Value = Trailer> {
        let checksum = prop_oneof![Just(Checksum::None), any::<u32>().prop_map(Checksum::Crc32c)];
        (any::<u128>(), 1..=u64::MAX, any::<u64>(), checksum).prop_map(
            |(digest, generation, payload_bytes, checksum)| Trailer {
                digest: KeyDigest::from_u128(digest),
                generation: Generation::new(generation),
                payload_bytes,
                checksum,
            },
        )
    }

    #[test]
    fn zeros_and_no_generation_are_no_trailer() {
        assert_eq!(Trailer::decode(&Trailer::RETRACTED), None);
        let none = Trailer {
            digest: KeyDigest::of(b"key"),
            generation: Generation::NONE,
            payload_bytes: 1,
            checksum: Checksum::None,
        };
        assert_eq!(Trailer::decode(&none.encode()), None);
    }

    proptest! {
        #[test]
        fn encoding_loses_nothing(trailer in trailers()) {
            prop_assert_eq!(Trailer::decode(&trailer.encode()), Some(trailer));
        }

        #[test]
        fn any_changed_bit_is_noticed(trailer in trailers(), bit in 0usize..512) {
            let mut bytes = trailer.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Trailer::decode(&bytes), None);
        }

        #[test]
        fn half_of_one_and_half_of_another_is_neither(old in trailers(), new in trailers(), words in 1usize..8) {
            let (old_bytes, mut torn) = (old.encode(), new.encode());
            torn[..words * 8].copy_from_slice(&old_bytes[..words * 8]);
            let read = Trailer::decode(&torn);
            prop_assert!(read.is_none() || torn == new.encode() || torn == old_bytes, "{:?}", read);
        }

        #[test]
        fn foreign_bytes_are_no_trailer(bytes in prop::collection::vec(any::<u8>(), 64)) {
            let bytes: [u8; 64] = bytes.try_into().unwrap();
            prop_assert_eq!(Trailer::decode(&bytes), None);
        }
    }
}
