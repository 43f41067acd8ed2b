//! Lent memory as tags: each line remembers which writing its bytes come from; and a table of records behind it.

use std::collections::BTreeMap;

use memcache_types::HoldingsPlace;
use memcache_types::holdings::{FLOOR_BYTES, FLOORS, RECORD_BYTES};
use memcache_types::limits::TRAILER_BYTES;

/// Bytes of one line; objects take whole lines here.
pub const LINE_BYTES: u64 = 64 << 10;

/// Lines of a segment: the smallest segment there is.
pub const LINES: u64 = memcache_types::limits::SEGMENT_BYTES_MIN / LINE_BYTES;

/// Payload that takes this many lines.
pub const fn payload_of(lines: u64) -> u64 {
    lines * LINE_BYTES - TRAILER_BYTES
}

/// The last 64 bytes of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tail {
    /// Zeroes.
    #[default]
    Blank,
    /// Payload of a writing.
    Payload(u64),
    /// The trailer of an object.
    Trailer {
        /// Its writing.
        generation: u64,
        /// Its key.
        key: u64,
        /// Whether it carries a checksum of the payload.
        summed: bool,
    },
}

/// One line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Line {
    /// Writing that the bytes before the tail come from; 0 for zeroes.
    pub body: u64,
    /// What its last 64 bytes hold.
    pub tail: Tail,
}

/// One object in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its key.
    pub key: u64,
    /// Its writing.
    pub generation: u64,
    /// The put its bytes come from.
    pub origin: u64,
    /// How many replicas there should be.
    pub wanted: u32,
    /// Its first line.
    pub first: u64,
    /// Its lines.
    pub lines: u64,
}

/// One piece of memory: a life of a node, or a node with a file (life 0) over all its lives.
pub type Place = (u64, u64);

/// What is in it.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    lines: Vec<Line>,
    /// The table.
    pub records: Vec<Option<Record>>,
    /// What everything put under them or an older generation is removed by.
    floors: [u64; FLOORS as usize],
    /// Life of the book that it was lent under last; 0 for none.
    pub epoch: u64,
    /// Life of the node that lent it last; 0 for none.
    pub incarnation: u64,
}

/// Where a segment has a table of so many records; none: nowhere.
pub fn table_place(records: u32) -> HoldingsPlace {
    let table_offset = if records == 0 { 0 } else { LINES * LINE_BYTES };
    let floors_offset = table_offset + u64::from(records) * RECORD_BYTES;
    HoldingsPlace { table_offset, records, floors_offset }
}

/// The place in the table that an offset of the wire names; 0 names none.
pub fn record_at(offset: u64) -> Option<usize> {
    let at = offset.checked_sub(LINES * LINE_BYTES)? / RECORD_BYTES;
    usize::try_from(at).ok()
}

impl Memory {
    /// The trailer of the object that a record speaks of, if it stands there: whether it carries a checksum.
    pub fn summed(&self, record: &Record) -> Option<bool> {
        match self.lines.get(usize::try_from(record.first + record.lines - 1).ok()?)?.tail {
            Tail::Trailer { generation, key, summed } if (generation, key) == (record.generation, record.key) => {
                Some(summed)
            }
            _ => None,
        }
    }

    /// Nothing that was put under this generation or an older one is to come back.
    pub fn floor(&self) -> u64 {
        self.floors.into_iter().max().unwrap_or(0)
    }

    /// As `memcache_memory::holdings::Holdings::raise_floor`.
    pub fn raise_floor(&mut self, floor: u64) {
        if floor > self.floor()
            && let Some(lowest) = self.floors.iter_mut().min()
        {
            *lowest = floor;
        }
    }

    /// Writes a floor to the place that an offset names, whatever stands there.
    pub fn write_floor(&mut self, offset: u64, floor: u64) {
        let place = offset.checked_sub(table_place(u32::try_from(self.records.len()).unwrap_or(0)).floors_offset);
        let slot = place.and_then(|bytes| self.floors.get_mut(usize::try_from(bytes / FLOOR_BYTES).ok()?));
        if let Some(slot) = slot {
            *slot = floor;
        }
    }

    /// As `memcache_memory::holdings::Holdings::scan`: records whose objects are there, oldest first, with their places
    /// and whether they carry checksums. Other records are cleared.
    pub fn scan(&mut self) -> Vec<(u32, Record, bool)> {
        let mut found: Vec<(u32, Record, bool)> = Vec::new();
        for (place, slot) in (0..).zip(self.records.clone()) {
            let lasting = slot.filter(|record| record.origin > self.floor());
            match lasting.and_then(|record| Some((record, self.summed(&record)?))) {
                Some((record, summed)) => found.push((place, record, summed)),
                None => self.clear(place),
            }
        }
        found.sort_unstable_by_key(|(_, record, _)| std::cmp::Reverse(record.generation));
        let mut kept: Vec<(u32, Record, bool)> = Vec::new();
        for (place, record, summed) in found {
            let meets =
                |other: &Record| record.first < other.first + other.lines && other.first < record.first + record.lines;
            if kept.iter().any(|(_, other, _)| meets(other)) {
                self.clear(place);
            } else {
                kept.push((place, record, summed));
            }
        }
        kept.reverse();
        kept
    }

    /// Takes a record away.
    pub fn clear(&mut self, place: u32) {
        if let Some(slot) = self.records.get_mut(place as usize) {
            *slot = None;
        }
    }
}

/// All memory that can be reached now.
#[derive(Debug, Default)]
pub struct Memories(BTreeMap<Place, Memory>);

impl Memories {
    /// A node starts: new memory, all zeroes, unless it is there still.
    pub fn create(&mut self, place: Place, records: u32) {
        self.0.entry(place).or_insert_with(|| Memory {
            lines: vec![Line::default(); usize::try_from(LINES).unwrap_or(0)],
            records: vec![None; records as usize],
            floors: [0; FLOORS as usize],
            epoch: 0,
            incarnation: 0,
        });
    }

    /// A node ends, and its memory with it.
    pub fn destroy(&mut self, place: Place) {
        self.0.remove(&place);
    }

    /// One piece; `None` when its node is gone.
    pub fn memory(&mut self, place: Place) -> Option<&mut Memory> {
        self.0.get_mut(&place)
    }

    /// One line; `None` when its node is gone.
    pub fn line(&mut self, place: Place, line: u64) -> Option<&mut Line> {
        self.0.get_mut(&place)?.lines.get_mut(usize::try_from(line).ok()?)
    }

    /// The place in its table that an offset names; `None` when its node is gone.
    pub fn record(&mut self, place: Place, offset: u64) -> Option<&mut Option<Record>> {
        self.0.get_mut(&place)?.records.get_mut(record_at(offset)?)
    }
}
