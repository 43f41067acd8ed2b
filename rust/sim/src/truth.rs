//! What really happened, over all lives of the book. Only the checks look at it.

use std::collections::{BTreeMap, BTreeSet};

use crate::memory::Place;

/// Space that was promised to somebody in real memory.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    /// Which memory.
    pub place: Place,
    /// First byte.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
    /// Until when nobody else may get it.
    pub until: u64,
}

impl Promise {
    /// Whether both name a byte in common.
    pub fn meets(&self, other: &Self) -> bool {
        self.place == other.place && self.offset < other.offset + other.bytes && other.offset < self.offset + self.bytes
    }
}

/// What really happened.
#[derive(Debug, Default)]
pub struct Truth {
    /// Key of every writing.
    pub key_of: BTreeMap<u64, u64>,
    /// The put that the bytes of a writing come from: copies have that of what they copied.
    pub origin_of: BTreeMap<u64, u64>,
    /// Copies that became replicas.
    pub copied: u64,
    /// Every number ever issued.
    pub issued: BTreeSet<u64>,
    /// Tickets whose writer may still write, by generation.
    pub writers: BTreeMap<u64, Promise>,
    /// Leases whose holder may still read, by lease.
    pub readers: BTreeMap<u64, Vec<Promise>>,
    /// Reads that were hits.
    pub hits: u64,
    /// Reads that only the checksum turned into misses.
    pub caught_by_checksum: u64,
}

impl Truth {
    /// A read was a hit.
    pub fn count_hit(&mut self) {
        self.hits += 1;
    }

    /// A read was a miss because of its checksum alone.
    pub fn count_caught_by_checksum(&mut self) {
        self.caught_by_checksum += 1;
    }
}
