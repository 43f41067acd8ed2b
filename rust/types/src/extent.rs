//! How long the run of bytes is that an object takes up in a segment.

use crate::limits::{EXTENT_ALIGN, OBJECT_BYTES_MAX, TRAILER_BYTES};

/// Bytes of the extent that holds a payload of `payload_bytes` bytes: the payload rounded up to
/// [`EXTENT_ALIGN`], then the trailer. The trailer is the last [`TRAILER_BYTES`] bytes of the extent.
///
/// Saturates instead of overflowing: no segment is that long.
pub const fn extent_bytes(payload_bytes: u64) -> u64 {
    match payload_bytes.checked_next_multiple_of(EXTENT_ALIGN) {
        Some(rounded) => rounded.saturating_add(TRAILER_BYTES),
        None => u64::MAX,
    }
}

/// Largest payload in bytes that a segment of `segment_bytes` bytes could ever hold, and the pool accepts.
pub const fn payload_bytes_max(segment_bytes: u64) -> u64 {
    let room = segment_bytes.saturating_sub(TRAILER_BYTES);
    let room = room - room % EXTENT_ALIGN;
    if room < OBJECT_BYTES_MAX { room } else { OBJECT_BYTES_MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_is_whole_lines_and_a_trailer() {
        for (payload, extent) in [(0, 64), (1, 128), (64, 128), (65, 192), (u64::MAX, u64::MAX)] {
            assert_eq!(extent_bytes(payload), extent, "{payload}");
        }
    }

    #[test]
    fn the_largest_payload_fits_and_one_byte_more_does_not() {
        for segment in [64, 127, 128, 1 << 20, (1 << 20) + 63] {
            let largest = payload_bytes_max(segment);
            assert!(extent_bytes(largest) <= segment, "{segment}");
            assert!(extent_bytes(largest + 1) > segment, "{segment}");
        }
        assert_eq!(payload_bytes_max(0), 0);
        assert_eq!(payload_bytes_max(u64::MAX), OBJECT_BYTES_MAX);
    }
}
