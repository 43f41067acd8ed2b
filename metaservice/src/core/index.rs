//! From keys to what is known about them.

use hashbrown::HashTable;
use memcache_types::KeyDigest;

use super::object::Object;
use super::slab::{Slab, Slot};

/// What is known about one key. There is an entry exactly while the key is readable or somebody writes it.
#[derive(Debug)]
pub(super) struct Entry {
    key: Box<[u8]>,
    hash: u64,
    /// The readable object.
    pub(super) object: Option<Slot<Object>>,
    /// Live reservations.
    pub(super) writers: u32,
}

/// All entries, found by key. The hash only narrows the search: whole keys are compared.
#[derive(Debug)]
pub(super) struct KeyIndex {
    table: HashTable<Slot<Entry>>,
    entries: Slab<Entry>,
}

impl KeyIndex {
    pub(super) const fn new() -> Self {
        Self { table: HashTable::new(), entries: Slab::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn find(&self, key: &[u8]) -> Option<Slot<Entry>> {
        self.find_hashed(key, KeyDigest::of(key).low())
    }

    fn find_hashed(&self, key: &[u8], hash: u64) -> Option<Slot<Entry>> {
        self.table
            .find(hash, |slot| {
                let entry = &self.entries[*slot];
                entry.hash == hash && *entry.key == *key
            })
            .copied()
    }

    /// The entry of a key, made if there is none.
    pub(super) fn find_or_insert(&mut self, key: &[u8]) -> Slot<Entry> {
        let hash = KeyDigest::of(key).low();
        if let Some(slot) = self.find_hashed(key, hash) {
            return slot;
        }
        let slot = self.entries.insert(Entry { key: key.into(), hash, object: None, writers: 0 });
        let entries = &self.entries;
        self.table.insert_unique(hash, slot, |other| entries[*other].hash);
        slot
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
        if entry.object.is_some() || entry.writers > 0 {
            return;
        }
        if let Ok(occupied) = self.table.find_entry(entry.hash, |other| *other == slot) {
            occupied.remove();
        }
        self.entries.remove(slot);
    }
}
