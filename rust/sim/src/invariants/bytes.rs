//! Nothing sealed is read as other bytes.

use super::{Violation, hold};
use crate::memory::{Line, Tail};
use crate::truth::Truth;

/// Whether all lines come from one writing.
pub fn is_whole(generation: u64, seen: &[Line]) -> bool {
    let last = seen.len().saturating_sub(1);
    seen.iter()
        .enumerate()
        .all(|(index, line)| line.body == generation && (index == last || line.tail == Tail::Payload(generation)))
}

/// A hit holds the bytes that were put under this key, all of them.
pub fn check(truth: &Truth, key: u64, generation: u64, seen: &[Line]) -> Result<(), Violation> {
    hold("bytes", truth.key_of.get(&generation) == Some(&key), || {
        format!("key {key} was read as generation {generation:x}, which belongs to another key")
    })?;
    hold("bytes", is_whole(generation, seen), || format!("key {key}, generation {generation:x} was read as {seen:x?}"))
}
