//! From keys to what is known about them.

use std::num::NonZeroU64;

use memcache_types::{KeyBatch, KeyDigest};

use super::object::Object;
use super::slab::{Slab, Slot, warm};
use super::table::Table;

/// Keys looked up together. Each step of a look-up waits for memory; doing one step for many keys before the next
/// step lets those waits overlap.
pub(super) const CHUNK: usize = 64;

/// What is known about one key. There is an entry exactly while the key is readable or somebody writes it. One line of the
/// cache each: there are many of them.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Entry {
    key: Key,
    /// The first of its replicas, which are a chain of siblings.
    pub(super) object: Option<Slot<Object>>,
    /// Live reservations, replicas wanted and marks, packed.
    state: u32,
}

const _: () = assert!(size_of::<Option<Entry>>() == 64, "an entry is a line of the cache");

/// Longest key that is kept within its entry: a digest, a model and a slot fit.
const SHORT_BYTES: usize = 54;

/// A key, within its entry if it is short: the comparison then waits for no more memory.
#[derive(Debug)]
enum Key {
    Short(u8, [u8; SHORT_BYTES]),
    Long(Box<[u8]>),
}

impl Key {
    fn new(bytes: &[u8]) -> Self {
        match u8::try_from(bytes.len()) {
            Ok(length) if bytes.len() <= SHORT_BYTES => {
                let mut short = [0; SHORT_BYTES];
                short[..bytes.len()].copy_from_slice(bytes);
                Self::Short(length, short)
            }
            _ => Self::Long(bytes.into()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short(length, bytes) => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

/// Bits of [`Entry::state`] that count live reservations. There are never more of them.
const WRITERS: u32 = (1 << 24) - 1;
const _: () = assert!(super::limits::RESERVATIONS_MAX <= WRITERS as usize);
const WANTED_SHIFT: u32 = 24;
const WANTED: u32 = 0b1111 << WANTED_SHIFT;
const _: () = assert!(memcache_types::limits::REPLICAS_MAX <= 0b1111);
const QUEUED: u32 = 1 << 28;
const PINNED: u32 = 1 << 29;
const COLOUR_SHIFT: u32 = 30;

impl Entry {
    /// Live reservations.
    pub(super) const fn writers(&self) -> u32 {
        self.state & WRITERS
    }

    pub(super) const fn add_writer(&mut self) {
        self.state += 1;
    }

    pub(super) fn remove_writer(&mut self) {
        debug_assert!(self.writers() > 0, "a reservation has its writer");
        self.state -= 1;
    }

    /// How many replicas there should be. Means something only while there is one.
    pub(super) const fn wanted(&self) -> usize {
        ((self.state & WANTED) >> WANTED_SHIFT) as usize
    }

    pub(super) fn want(&mut self, replicas: usize) {
        let replicas = u32::try_from(replicas).unwrap_or(1).clamp(1, WANTED >> WANTED_SHIFT);
        self.state = self.state & !WANTED | replicas << WANTED_SHIFT;
    }

    /// Whether it waits to be given the replicas that it lacks.
    pub(super) const fn is_queued(&self) -> bool {
        self.state & QUEUED != 0
    }

    pub(super) const fn set_queued(&mut self, queued: bool) {
        self.state = if queued { self.state | QUEUED } else { self.state & !QUEUED };
    }

    /// Of the time in which it became readable. Means something only while there is an object.
    pub(super) const fn colour(&self) -> u32 {
        self.state >> COLOUR_SHIFT
    }

    pub(super) const fn set_colour(&mut self, colour: u32) {
        self.state = self.state & !(0b11 << COLOUR_SHIFT) | colour << COLOUR_SHIFT;
    }

    /// Whether it is kept from eviction.
    pub(super) const fn is_pinned(&self) -> bool {
        self.state & PINNED != 0
    }

    pub(super) const fn set_pinned(&mut self, pinned: bool) {
        self.state = if pinned { self.state | PINNED } else { self.state & !PINNED };
    }

    /// Computed anew: room for it would take the entry beyond its line.
    pub(super) fn hash(&self) -> u64 {
        KeyDigest::of(self.key()).low()
    }

    pub(super) fn key(&self) -> &[u8] {
        self.key.bytes()
    }
}

/// All entries, found by key. Hashes only narrow the search: whole keys are compared.
#[derive(Debug)]
pub(super) struct KeyIndex {
    /// Many tables, each for its part of the hashes: one grows at a time, and a small one grows in a short time.
    tables: Box<[Table<Entry>]>,
    entries: Slab<Entry>,
    /// Of each entry, at the same position: the put that its bytes come from, which is the lowest generation of the tickets
    /// of that put. Means something only while there is an object. Look-ups do without it.
    origins: Slab<NonZeroU64>,
}

/// How many tables there are: one of 2^24 keys then holds up its caller for as long as one of 2^16 does.
const TABLES: usize = 256;

/// Which table a hash belongs to. Mixed, because the tables use all of its bits themselves.
#[allow(clippy::cast_possible_truncation, reason = "eight bits are left")]
const fn table_of(hash: u64) -> usize {
    ((hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize
}

/// The hashes of entries. Each stands at another place in memory, and so many are waited for together.
fn hashes_of(entries: &Slab<Entry>, slots: &[Slot<Entry>]) -> Vec<u64> {
    let mut hashes = Vec::with_capacity(slots.len());
    for some in slots.chunks(CHUNK) {
        warm(some.iter().map(|slot| entries.warm(*slot)));
        hashes.extend(some.iter().map(|slot| entries[*slot].hash()));
    }
    hashes
}

impl KeyIndex {
    pub(super) fn new() -> Self {
        Self { tables: (0..TABLES).map(|_| Table::new()).collect(), entries: Slab::new(), origins: Slab::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn find(&self, key: &[u8]) -> Option<Slot<Entry>> {
        self.find_hashed(key, KeyDigest::of(key).low())
    }

    fn find_hashed(&self, key: &[u8], hash: u64) -> Option<Slot<Entry>> {
        self.tables[table_of(hash)].find(hash, |slot| self.entries[slot].key() == key)
    }

    /// Reads the lines that look-ups of up to [`CHUNK`] keys of a batch will read first; the hashes of the keys, and how
    /// many there are.
    pub(super) fn warm_chunk(&self, keys: &KeyBatch, start: usize) -> ([u64; CHUNK], usize) {
        let count = keys.len().saturating_sub(start).min(CHUNK);
        let mut hashes = [0; CHUNK];
        for (offset, hash) in hashes[..count].iter_mut().enumerate() {
            *hash = KeyDigest::of(keys.get(start + offset)).low();
        }
        warm(hashes[..count].iter().map(|hash| self.tables[table_of(*hash)].warm(*hash)));
        (hashes, count)
    }

    /// The entries of up to [`CHUNK`] keys of a batch, from position `start` on, and the hashes of those keys.
    pub(super) fn find_chunk(&self, keys: &KeyBatch, start: usize) -> [Option<(Slot<Entry>, u64)>; CHUNK] {
        let (hashes, count) = self.warm_chunk(keys, start);
        let hashes = &hashes[..count];
        let mut found = [None; CHUNK];
        for (candidate, hash) in found.iter_mut().zip(hashes) {
            *candidate = self.tables[table_of(*hash)].find(*hash, |_| true).map(|slot| (slot, *hash));
        }
        warm(found[..count].iter().flatten().map(|(slot, _)| self.entries.warm(*slot)));
        for (offset, candidate) in found[..count].iter_mut().enumerate() {
            let key = keys.get(start + offset);
            // Another key with the same tag is in the way once in thousands of look-ups.
            if candidate.is_some_and(|(slot, _)| self.entries[slot].key() != key) {
                let hash = hashes[offset];
                *candidate = self.find_hashed(key, hash).map(|slot| (slot, hash));
            }
        }
        found
    }

    /// The entry of a key, made if there is none.
    pub(super) fn find_or_insert(&mut self, key: &[u8]) -> Slot<Entry> {
        let hash = KeyDigest::of(key).low();
        if let Some(slot) = self.find_hashed(key, hash) {
            return slot;
        }
        let slot = self.insert(key);
        let entries = &self.entries;
        self.tables[table_of(hash)].insert(hash, slot, |slots| hashes_of(entries, slots));
        slot
    }

    fn insert(&mut self, key: &[u8]) -> Slot<Entry> {
        let slot = self.entries.insert(Entry { key: Key::new(key), object: None, state: 0 });
        let beside = self.origins.insert(NonZeroU64::MIN);
        debug_assert_eq!(beside, slot.beside(), "both come and go together");
        slot
    }

    /// The put that the bytes of a readable key come from.
    pub(super) fn origin(&self, slot: Slot<Entry>) -> u64 {
        self.origins[slot.beside()].get()
    }

    pub(super) fn set_origin(&mut self, slot: Slot<Entry>, origin: u64) {
        self.origins[slot.beside()] = NonZeroU64::new(origin).expect("no generation is 0");
    }

    /// Whether an entry that was there a moment ago still is.
    pub(super) fn knows(&self, slot: Slot<Entry>) -> bool {
        self.entries.get(slot).is_some()
    }

    /// Up to `count` entries from position `start` on, in no order that means anything, and where to go on; `None` at
    /// the end.
    pub(super) fn walk(&self, start: usize, count: usize) -> (impl Iterator<Item = Slot<Entry>> + '_, Option<usize>) {
        self.entries.walk(start, count)
    }

    pub(super) fn get(&self, slot: Slot<Entry>) -> &Entry {
        &self.entries[slot]
    }

    pub(super) fn get_mut(&mut self, slot: Slot<Entry>) -> &mut Entry {
        &mut self.entries[slot]
    }

    /// Forgets a key that is neither readable nor being written.
    pub(super) fn forget_if_idle(&mut self, slot: Slot<Entry>) {
        let entry = &self.entries[slot];
        if entry.object.is_some() || entry.writers() > 0 {
            return;
        }
        let hash = entry.hash();
        self.tables[table_of(hash)].remove(hash, slot);
        self.entries.remove(slot);
        self.origins.remove(slot.beside());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;

    #[test]
    fn a_batch_finds_what_each_key_finds() {
        let mut index = KeyIndex::new();
        let name = |number: usize| format!("key number {number}").into_bytes();
        for number in (0..300).step_by(3) {
            let slot = index.find_or_insert(&name(number));
            index.get_mut(slot).add_writer();
        }
        let keys = KeyBatch::from_keys((0..200).map(name)).unwrap();
        for start in (0..keys.len()).step_by(CHUNK) {
            let found = index.find_chunk(&keys, start);
            for (offset, found) in found.map(|found| found.map(|(slot, _)| slot)).into_iter().enumerate() {
                let position = start + offset;
                let expected = (position < keys.len()).then(|| index.find(keys.get(position))).flatten();
                assert_eq!(found, expected, "{position}");
                assert!(position >= keys.len() || found.is_some() == position.is_multiple_of(3));
            }
        }
    }

    #[test]
    fn keys_with_the_same_hash_are_told_apart() {
        let mut index = KeyIndex::new();
        let (known, other) = (b"known".as_slice(), b"other".as_slice());
        let hash = KeyDigest::of(other).low();
        let slot = index.insert(known);
        index.get_mut(slot).add_writer();
        index.tables[table_of(hash)].insert(hash, slot, |_| Vec::new());
        let keys = KeyBatch::from_keys([other]).unwrap();
        assert_eq!(index.find_chunk(&keys, 0)[0], None);
        let own = index.find_or_insert(other);
        assert_ne!(own, slot);
        assert_eq!((index.find_chunk(&keys, 0)[0], index.find(other)), (Some((own, hash)), Some(own)));
    }
}
