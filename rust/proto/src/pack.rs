//! Packed forms: many keys as one run of bytes, many outcomes as one byte each.

use memcache_types::{KeyBatch, KeyError};
use thiserror::Error;

use crate::pb;

/// Why a message is not what it claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The packed keys break a limit.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// A part that must be there is not.
    #[error("the message has no {field}")]
    Missing {
        /// Name of the part.
        field: &'static str,
    },
    /// Parallel arrays of different lengths.
    #[error("{field} has {found} elements, want {want}")]
    Length {
        /// Name of the array.
        field: &'static str,
        /// Its length.
        found: usize,
        /// The length it must have.
        want: usize,
    },
    /// An outcome byte that names no outcome.
    #[error("{field}: {value} is not an outcome")]
    Outcome {
        /// Name of the array.
        field: &'static str,
        /// The byte.
        value: u8,
    },
    /// The reply to another request.
    #[error("not a {want} reply")]
    Reply {
        /// What was asked.
        want: &'static str,
    },
}

/// Keys as they travel.
pub fn keys_to_wire(keys: &KeyBatch) -> pb::Keys {
    let (data, lengths) = keys.to_packed();
    pb::Keys { data, lengths }
}

/// Keys as they arrive, checked.
pub fn keys_from_wire(keys: Option<pb::Keys>) -> Result<KeyBatch, WireError> {
    let keys = keys.ok_or(WireError::Missing { field: "keys" })?;
    Ok(KeyBatch::from_packed(keys.data, &keys.lengths)?)
}

/// One number a key from an array that has one for all or one a key.
pub fn spread(field: &'static str, values: &[u64], want: usize) -> Result<Vec<u64>, WireError> {
    match values {
        [uniform] => Ok(vec![*uniform; want]),
        each if each.len() == want => Ok(each.to_vec()),
        each => Err(WireError::Length { field, found: each.len(), want }),
    }
}

/// Checks that a parallel array has the length its outcomes promise.
pub fn expect_length(field: &'static str, found: usize, want: usize) -> Result<(), WireError> {
    if found == want { Ok(()) } else { Err(WireError::Length { field, found, want }) }
}

/// Outcomes as they travel: one byte each.
pub fn outcomes_to_wire<O: Into<i32> + Copy>(outcomes: &[O]) -> Vec<u8> {
    outcomes.iter().map(|outcome| u8::try_from((*outcome).into()).unwrap_or(0)).collect()
}

/// Outcomes as they arrive, checked; `want` is the number of keys asked about.
pub fn outcomes_from_wire<O: TryFrom<i32>>(
    field: &'static str,
    bytes: &[u8],
    want: usize,
) -> Result<Vec<O>, WireError> {
    expect_length(field, bytes.len(), want)?;
    bytes
        .iter()
        .map(|byte| {
            Some(*byte)
                .filter(|value| *value != 0)
                .and_then(|value| O::try_from(i32::from(value)).ok())
                .ok_or(WireError::Outcome { field, value: *byte })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_round_trip_and_refuse_strangers() {
        let outcomes = [pb::ReserveOutcome::Reserved, pb::ReserveOutcome::ReserveTooLarge];
        let wire = outcomes_to_wire(&outcomes);
        assert_eq!(outcomes_from_wire::<pb::ReserveOutcome>("outcomes", &wire, 2), Ok(outcomes.to_vec()));
        assert!(outcomes_from_wire::<pb::ReserveOutcome>("outcomes", &wire, 3).is_err());
        assert!(outcomes_from_wire::<pb::ReserveOutcome>("outcomes", &[0], 1).is_err());
        assert!(outcomes_from_wire::<pb::ReserveOutcome>("outcomes", &[77], 1).is_err());
    }

    #[test]
    fn one_number_stands_for_all() {
        assert_eq!(spread("payload_bytes", &[7], 3), Ok(vec![7, 7, 7]));
        assert_eq!(spread("payload_bytes", &[1, 2], 2), Ok(vec![1, 2]));
        assert!(spread("payload_bytes", &[1, 2], 3).is_err());
    }
}
