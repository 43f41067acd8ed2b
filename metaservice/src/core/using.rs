//! Uses of objects, as the policy sees them.

use super::Core;
use super::clock::Millis;
use super::index::{CHUNK, Entry};
use super::object::Object;
use super::policy::{Mark, Shelved, Use};
use super::slab::{Slot, warm};

/// Uses of a key within so long are one: a look, the read that follows and the put of what comes next.
const SOON_MS: u64 = 1000;

/// When the present second began, and with which use.
#[derive(Debug)]
pub(super) struct Second {
    from: Millis,
    first: u64,
}

impl Second {
    pub(super) const fn new(now: Millis) -> Self {
        Self { from: now, first: 0 }
    }
}

impl Core {
    /// A use of an object whose key has this hash.
    pub(super) fn use_of(&self, hash: u64, object: Slot<Object>) -> Use {
        let bytes = self.objects[object].extent_bytes();
        Use { now: self.now, hash, bytes, keys: self.readable_keys() }
    }

    /// Gives a new object its mark; it is in no list yet. A further replica of a key has that of the others.
    pub(super) fn count_seal(&mut self, slot: Slot<Object>) {
        let Some(entry) = self.objects[slot].entry else { return };
        let known = self.chain(entry).map(|other| self.objects[other].mark()).max().unwrap_or(0);
        let hash = || self.index.get(entry).hash();
        let mark = if known > 0 { known } else { self.policy.sealed(self.use_of(hash(), slot)) };
        self.objects[slot].set_mark(mark);
    }

    /// Marks all replicas of a key with this hash as used just now. Those under a lease, which is a use, move when it ends.
    pub(super) fn touch(&mut self, entry: Slot<Entry>, hash: u64) {
        let Some(mark) = self.count_use(entry, hash) else { return };
        let mut next = self.index.get(entry).object;
        while let Some(slot) = next {
            next = self.objects[slot].sibling;
            if self.is_idle(slot) && self.policy.moves() {
                let among = self.shelf_of(slot);
                self.leave_idle_of(slot, among);
                self.objects[slot].set_mark(mark);
                self.make_idle_of(slot, among);
            } else {
                let number = self.next_use();
                let object = &mut self.objects[slot];
                object.set_mark(mark);
                if object.used() != 0 {
                    object.set_used(number);
                }
            }
        }
    }

    /// Marks keys, each with its hash, as used just now, the first of them last.
    pub(super) fn touch_all(&mut self, entries: &[(Slot<Entry>, u64)]) {
        for some in entries.rchunks(CHUNK) {
            self.warm_moves(some.iter().map(|(entry, _)| *entry));
            for (entry, hash) in some.iter().rev() {
                self.touch(*entry, *hash);
            }
        }
    }

    /// Reads what moving the first replicas of some keys in their lists will need: themselves and their neighbours.
    pub(super) fn warm_moves(&self, entries: impl Iterator<Item = Slot<Entry>>) {
        let mut objects = [None; CHUNK];
        for (object, entry) in objects.iter_mut().zip(entries) {
            *object = self.index.get(entry).object;
        }
        let mut beside = [[None; 2]; CHUNK];
        for (beside, object) in beside.iter_mut().zip(objects.iter().flatten()) {
            *beside = self.objects[*object].links.both();
        }
        warm(beside.iter().flatten().flatten().map(|object| self.objects.warm(*object)));
    }

    /// Gives the replicas of a key that a reader has just leased the mark of one more use.
    pub(super) fn count_read(&mut self, entry: Slot<Entry>, hash: u64) {
        let Some(mark) = self.count_use(entry, hash) else { return };
        let mut next = self.index.get(entry).object;
        while let Some(slot) = next {
            next = self.objects[slot].sibling;
            if self.objects[slot].leases > 0 {
                self.objects[slot].set_mark(mark);
            }
        }
    }

    /// The mark of a readable key that is used now.
    fn count_use(&mut self, entry: Slot<Entry>, hash: u64) -> Option<Mark> {
        let first = self.index.get(entry).object?;
        if self.now.since(self.second.from) >= SOON_MS {
            self.second = Second { from: self.now, first: self.uses + 1 };
        }
        let object = &self.objects[first];
        let mark = object.mark();
        if object.used() >= self.second.first {
            return Some(mark);
        }
        Some(self.policy.used(self.use_of(hash, first), mark))
    }
}
