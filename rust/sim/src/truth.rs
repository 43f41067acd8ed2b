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

/// One readable object that has a record.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Which memory it is in.
    pub place: Place,
    /// Its key.
    pub key: u64,
}

/// What stood when a removal was served.
#[derive(Clone, Debug)]
pub struct Removal {
    /// The keys.
    pub keys: Vec<u64>,
    /// Writings that were readable some time before.
    pub sealed: u64,
    /// Segments that were lent.
    pub segments: BTreeSet<u64>,
}

/// What really happened.
#[derive(Debug, Default)]
pub struct Truth {
    /// The memory of nodes is a file each.
    pub files: bool,
    /// No writer is ever so late that it damages what is not its own.
    pub exact: bool,
    /// Key of every writing.
    pub key_of: BTreeMap<u64, u64>,
    /// The put that the bytes of a writing come from: copies have that of what they copied.
    pub origin_of: BTreeMap<u64, u64>,
    /// Segments and writings in them that somebody with a good lease found damaged when nothing went wrong any more.
    pub damaged: BTreeSet<(u64, u64)>,
    /// Copies that became replicas.
    pub copied: u64,
    /// Every number ever issued, in the order in which they were: a later life of the book may issue lower ones.
    pub issued: BTreeMap<u64, u64>,
    /// Tickets whose writer may still write, by generation.
    pub writers: BTreeMap<u64, Promise>,
    /// Leases whose holder may still read, by lease.
    pub readers: BTreeMap<u64, Vec<Promise>>,
    /// The book had no way to know what it would have had to know.
    pub is_lost: bool,
    /// Reads that were hits.
    pub hits: u64,
    /// Reads that only the checksum turned into misses.
    pub caught_by_checksum: u64,
    /// Tickets that have a place in a table.
    pub recorded: BTreeSet<u64>,
    /// Writings whose record their node cleared because the book refused them. A telling that comes late may make them
    /// readable once more, until their node has to tell again.
    pub refused: BTreeSet<u64>,
    /// Writings that the book called readable, in the order in which they became so first.
    pub sealed: BTreeMap<u64, u64>,
    /// Those that are readable, or were when the book or their node was there last, and have a record.
    pub kept: BTreeMap<u64, Kept>,
    /// What stood when removals were served, by request.
    pub removals: BTreeMap<u64, Removal>,
    /// How many numbers had been issued when a key was removed last: puts with them had begun.
    pub removed_until: BTreeMap<u64, u64>,
    /// Promised to stay away: memory and writing.
    pub removed: BTreeSet<(Place, u64)>,
    /// Most replicas at a time that nobody had asked for.
    pub extras: u64,
    /// Removals whose remover was told success.
    pub forgotten: u64,
    /// Objects that nodes told of in vain when removals were forgotten.
    pub doubtful: u64,
    /// Objects that were readable again after they were listed.
    pub listed: u64,
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

    /// Which memory a life of a node lends.
    pub fn memory_of(&self, life: Place) -> Place {
        if self.files { (life.0, 0) } else { life }
    }

    /// The book called a writing readable.
    pub fn seal(&mut self, generation: u64, key: u64, life: Place) {
        let next = self.sealed.len() as u64;
        self.sealed.entry(generation).or_insert(next);
        if self.recorded.contains(&generation) {
            self.kept.insert(generation, Kept { place: self.memory_of(life), key });
        }
    }

    /// A node cleared the record of a writing that the book refused.
    pub fn refuse(&mut self, generation: u64) {
        self.refused.insert(generation);
        self.recorded.remove(&generation);
        self.kept.remove(&generation);
    }

    /// The put that the bytes of a writing come from: a copy's is that of what it copied.
    pub fn origin(&self, generation: u64) -> u64 {
        self.origin_of.get(&generation).copied().unwrap_or(generation)
    }

    /// When the put began that the bytes of a writing come from: its turn among all numbers issued.
    pub fn turn(&self, generation: u64) -> u64 {
        self.issued.get(&self.origin(generation)).copied().unwrap_or(0)
    }

    /// A number is issued; false: it was before.
    pub fn issue(&mut self, number: u64) -> bool {
        let turn = self.issued_so_far() + 1;
        self.issued.insert(number, turn).is_none()
    }

    /// Every key that was ever put.
    pub fn all_keys(&self) -> Vec<u64> {
        self.key_of.values().copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// How many numbers were issued.
    pub fn issued_so_far(&self) -> u64 {
        self.issued.len() as u64
    }

    /// Nobody is promised any more that this key comes back; nor are those who are putting it at this moment.
    pub fn drop_key(&mut self, key: u64) {
        self.kept.retain(|_, kept| kept.key != key);
        self.removed_until.insert(key, self.issued_so_far());
    }

    /// Nobody is promised any more that what was put under this generation or an older one comes back.
    pub fn drop_up_to(&mut self, floor: u64) {
        let covered: Vec<u64> = self.kept.keys().copied().filter(|one| self.origin(*one) <= floor).collect();
        for generation in covered {
            self.kept.remove(&generation);
        }
    }

    /// A memory is gone.
    pub fn drop_memory(&mut self, place: Place) {
        self.kept.retain(|_, kept| kept.place != place);
    }
}
