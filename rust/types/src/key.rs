//! Object keys: 1 to 256 bytes, any bytes, checked once and hashed once.

use std::fmt;

use thiserror::Error;
use xxhash_rust::xxh3::xxh3_128;

use crate::limits::{BATCH_KEYS_MAX, KEY_BYTES_MAX};

/// XXH3-128 of a key. The same in every process, so it can stand in trailers and on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyDigest(u128);

impl KeyDigest {
    /// The digest of `key`.
    pub fn of(key: &[u8]) -> Self {
        Self(xxh3_128(key))
    }

    /// The digest with this value, as read from a trailer.
    pub const fn from_u128(value: u128) -> Self {
        Self(value)
    }

    /// All 128 bits.
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// The low 64 bits, for hash tables.
    #[allow(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
    pub const fn low(self) -> u64 {
        self.0 as u64
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyDigest({:032x})", self.0)
    }
}

/// Why some bytes are not a key, or some keys not a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// A key of no bytes.
    #[error("key {index} of the batch is empty; a key has 1 to {KEY_BYTES_MAX} bytes")]
    Empty {
        /// Position in the batch.
        index: usize,
    },
    /// A key over the limit.
    #[error("key {index} of the batch has {bytes} bytes; the limit is {KEY_BYTES_MAX}")]
    TooLong {
        /// Position in the batch.
        index: usize,
        /// Its length.
        bytes: usize,
    },
    /// A batch over the limit.
    #[error("a batch of {count} keys; the limit is {BATCH_KEYS_MAX}")]
    TooMany {
        /// Number of keys.
        count: usize,
    },
    /// Packed lengths and packed data disagree.
    #[error("packed keys: the lengths add up to {lengths} bytes, the data has {data}")]
    Ragged {
        /// Sum of the lengths.
        lengths: u64,
        /// Bytes of data.
        data: usize,
    },
}

/// Keys of one call, packed: all bytes in one buffer, with the end of each.
///
/// Every key in it has passed the length checks, so code below never checks again.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KeyBatch {
    data: Vec<u8>,
    ends: Vec<u32>,
}

impl KeyBatch {
    /// An empty batch.
    pub const fn new() -> Self {
        Self { data: Vec::new(), ends: Vec::new() }
    }

    /// An empty batch with room for `keys` keys of about `key_bytes` bytes.
    pub fn with_capacity(keys: usize, key_bytes: usize) -> Self {
        Self { data: Vec::with_capacity(keys * key_bytes), ends: Vec::with_capacity(keys) }
    }

    /// A batch of these keys, in order.
    pub fn from_keys<K: AsRef<[u8]>>(keys: impl IntoIterator<Item = K>) -> Result<Self, KeyError> {
        let mut batch = Self::new();
        for key in keys {
            batch.push(key.as_ref())?;
        }
        Ok(batch)
    }

    /// A batch from its packed form. One length stands for all keys; otherwise there is one a key.
    /// `data` that is empty with no length is an empty batch.
    pub fn from_packed(data: Vec<u8>, lengths: &[u32]) -> Result<Self, KeyError> {
        let total: u64 = match lengths {
            [uniform] => {
                let uniform = *uniform as usize;
                check_length(0, uniform)?;
                if data.is_empty() || !data.len().is_multiple_of(uniform) {
                    return Err(KeyError::Ragged { lengths: uniform as u64, data: data.len() });
                }
                data.len() as u64
            }
            each => {
                for (index, length) in each.iter().enumerate() {
                    check_length(index, *length as usize)?;
                }
                each.iter().map(|length| u64::from(*length)).sum()
            }
        };
        if total != data.len() as u64 {
            return Err(KeyError::Ragged { lengths: total, data: data.len() });
        }
        let count = match lengths {
            [uniform] => data.len() / *uniform as usize,
            each => each.len(),
        };
        if count > BATCH_KEYS_MAX {
            return Err(KeyError::TooMany { count });
        }
        let mut end = 0u32;
        let ends = (0..count)
            .map(|index| {
                end += if let [uniform] = lengths { *uniform } else { lengths[index] };
                end
            })
            .collect();
        Ok(Self { data, ends })
    }

    /// The packed form: the data, and one length if all keys have the same, else one a key.
    pub fn to_packed(&self) -> (Vec<u8>, Vec<u32>) {
        let mut start = 0;
        let mut lengths: Vec<u32> = Vec::with_capacity(self.ends.len());
        for end in &self.ends {
            lengths.push(end - start);
            start = *end;
        }
        if lengths.windows(2).all(|pair| pair[0] == pair[1]) {
            lengths.truncate(1);
        }
        (self.data.clone(), lengths)
    }

    /// Adds one key, checked.
    pub fn push(&mut self, key: &[u8]) -> Result<(), KeyError> {
        let index = self.ends.len();
        check_length(index, key.len())?;
        if index == BATCH_KEYS_MAX {
            return Err(KeyError::TooMany { count: index + 1 });
        }
        self.data.extend_from_slice(key);
        #[allow(clippy::cast_possible_truncation, reason = "BATCH_KEYS_MAX * KEY_BYTES_MAX fits in 32 bits")]
        self.ends.push(self.data.len() as u32);
        Ok(())
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Key number `index`. Panics past the end, as a slice does.
    #[inline]
    pub fn get(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        &self.data[start..self.ends[index] as usize]
    }

    /// The keys in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> + '_ {
        (0..self.len()).map(|index| self.get(index))
    }
}

impl fmt::Debug for KeyBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyBatch({} keys, {} bytes)", self.len(), self.data.len())
    }
}

fn check_length(index: usize, bytes: usize) -> Result<(), KeyError> {
    match bytes {
        0 => Err(KeyError::Empty { index }),
        1..=KEY_BYTES_MAX => Ok(()),
        _ => Err(KeyError::TooLong { index, bytes }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_keys_outside_the_limits_by_name() {
        assert_eq!(KeyBatch::from_keys([b"a".as_slice(), b""]), Err(KeyError::Empty { index: 1 }));
        assert_eq!(KeyBatch::from_keys([[7u8; 257]]), Err(KeyError::TooLong { index: 0, bytes: 257 }));
        assert!(KeyBatch::from_keys([[0u8; 256]]).is_ok());
        assert!(KeyBatch::from_packed(vec![1, 2, 3], &[2]).is_err());
        assert!(KeyBatch::from_packed(vec![1, 2, 3], &[1, 1]).is_err());
        assert!(KeyBatch::from_packed(vec![], &[0]).is_err());
    }

    #[test]
    fn a_uniform_batch_packs_one_length() {
        let batch = KeyBatch::from_keys([[1u8; 16], [2u8; 16]]).unwrap();
        assert_eq!(batch.to_packed().1, vec![16]);
    }

    proptest! {
        #[test]
        fn packing_loses_nothing(keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..30)) {
            let batch = KeyBatch::from_keys(&keys).unwrap();
            let (data, lengths) = batch.to_packed();
            let back = KeyBatch::from_packed(data, &lengths).unwrap();
            prop_assert_eq!(&back, &batch);
            let read: Vec<Vec<u8>> = back.iter().map(<[u8]>::to_vec).collect();
            prop_assert_eq!(read, keys);
        }

        #[test]
        fn decoding_never_panics(data in prop::collection::vec(any::<u8>(), 0..64), lengths in prop::collection::vec(0u32..300, 0..8)) {
            let _ = KeyBatch::from_packed(data, &lengths);
        }
    }
}
