//! Where a segment writes down what it holds.
//!
//! ```text
//!  0            bytes lent         table_offset          ...            floors_offset
//!  | objects ...            | gap | record | record | ... | header page: ..., floors |
//! ```
//!
//! A record is a small extent of [`RECORD_BYTES`] bytes: place and key of one object, and a trailer with the object's
//! generation. A floor is an extent that is only a trailer: nothing of its generation or an older one may come back.

use crate::limits::{EXTENT_ALIGN, KEY_BYTES_MAX, TRAILER_BYTES};

/// Bytes of one record's extent: four numbers, the longest key, a trailer.
pub const RECORD_BYTES: u64 = RECORD_LEN as u64;

/// [`RECORD_BYTES`] as an array length.
pub const RECORD_LEN: usize = 384;

/// Bytes of a record before its key: offset and payload length of the object, the put that its bytes come from, and how
/// many replicas its key should have.
pub const RECORD_HEAD_BYTES: usize = 32;

/// Bytes of one floor: a trailer.
pub const FLOOR_BYTES: u64 = TRAILER_BYTES;

/// Floors a segment keeps. So many calls may write theirs at the same time without one undoing another.
pub const FLOORS: u32 = 16;

/// Most records of one segment.
pub const RECORDS_MAX: u32 = 1 << 30;

const _: () = assert!(RECORD_BYTES >= (RECORD_HEAD_BYTES + KEY_BYTES_MAX) as u64 + TRAILER_BYTES);
const _: () = assert!(RECORD_BYTES.is_multiple_of(EXTENT_ALIGN));

/// Where the records and floors of a segment are. Offsets in bytes from the start of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HoldingsPlace {
    /// First record.
    pub table_offset: u64,
    /// Number of records; 0: this segment writes nothing down.
    pub records: u32,
    /// First floor.
    pub floors_offset: u64,
}

impl HoldingsPlace {
    /// Offset of a record.
    pub const fn record_offset(self, record: u32) -> u64 {
        self.table_offset + record as u64 * RECORD_BYTES
    }

    /// Offset of a floor; numbers past the last begin again at the first.
    pub const fn floor_offset(self, turn: u64) -> u64 {
        self.floors_offset + (turn % FLOORS as u64) * FLOOR_BYTES
    }

    /// Whether all of it lies behind `bytes` lent bytes, aligned, and below 2^63.
    pub fn is_behind(self, bytes: u64) -> bool {
        let table = u64::from(self.records) * RECORD_BYTES;
        let floors = u64::from(FLOORS) * FLOOR_BYTES;
        let ends_in_range = |start: u64, length: u64| start.checked_add(length).is_some_and(|end| end < 1 << 63);
        self.records <= RECORDS_MAX
            && self.table_offset >= bytes
            && self.table_offset.is_multiple_of(EXTENT_ALIGN)
            && self.floors_offset.is_multiple_of(EXTENT_ALIGN)
            && ends_in_range(self.table_offset, table)
            && ends_in_range(self.floors_offset, floors)
            && self.floors_offset >= self.table_offset + table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_floors_stand_behind_what_is_lent() {
        let place = HoldingsPlace { table_offset: 4096, records: 2, floors_offset: 8192 };
        assert!(place.is_behind(4096) && !place.is_behind(4097));
        assert_eq!((place.record_offset(1), place.floor_offset(17)), (4096 + RECORD_BYTES, 8192 + FLOOR_BYTES));
        assert!(!HoldingsPlace { records: 11, ..place }.is_behind(0), "the floors begin inside the table");
        assert!(!HoldingsPlace { table_offset: 4095, ..place }.is_behind(0));
        assert!(!HoldingsPlace { floors_offset: u64::MAX - 63, ..place }.is_behind(0));
        assert!(!HoldingsPlace { table_offset: u64::MAX - 63, ..place }.is_behind(0));
    }
}
