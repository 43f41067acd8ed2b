//! Lent memory as tags: each line remembers which writing its bytes come from.

use std::collections::BTreeMap;

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

/// One life of a node, which is one piece of memory.
pub type Place = (u64, u64);

/// All memory that can be reached now.
#[derive(Debug, Default)]
pub struct Memories(BTreeMap<Place, Vec<Line>>);

impl Memories {
    /// A node starts: new memory, all zeroes.
    pub fn create(&mut self, place: Place) {
        self.0.insert(place, vec![Line::default(); usize::try_from(LINES).unwrap_or(0)]);
    }

    /// A node ends, and its memory with it.
    pub fn destroy(&mut self, place: Place) {
        self.0.remove(&place);
    }

    /// One line; `None` when its node is gone.
    pub fn line(&mut self, place: Place, line: u64) -> Option<&mut Line> {
        self.0.get_mut(&place)?.get_mut(usize::try_from(line).ok()?)
    }
}
