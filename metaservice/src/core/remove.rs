//! Objects change lists, become invisible and give their space back.

use memcache_types::KeyBatch;

use super::Core;
use super::clock::Millis;
use super::effect::Effect;
use super::index::Entry;
use super::object::Object;
use super::slab::Slot;

impl Core {
    /// Removes keys; true where a key was readable. Reservations of the keys are untouched.
    pub fn remove(&mut self, now: Millis, keys: &KeyBatch, effects: &mut Vec<Effect>) -> Vec<bool> {
        self.advance(now, effects);
        keys.iter().map(|key| self.index.find(key).is_some_and(|entry| self.remove_key(entry))).collect()
    }

    /// Removes all replicas of a key; whether it was readable.
    fn remove_key(&mut self, entry: Slot<Entry>) -> bool {
        if !self.bury_of(entry) {
            return false;
        }
        let mut next = self.index.get(entry).object;
        let was_readable = next.is_some();
        while let Some(slot) = next {
            next = self.objects[slot].sibling;
            self.remove_object(slot);
        }
        was_readable
    }

    /// Removes every readable key; how many there were.
    pub fn remove_all(&mut self, now: Millis, effects: &mut Vec<Effect>) -> u64 {
        self.advance(now, effects);
        while self.bury(usize::MAX) {}
        let count = self.readable;
        let replicas: Vec<_> =
            self.objects.iter().filter(|(_, object)| object.entry.is_some()).map(|(slot, _)| slot).collect();
        for object in replicas {
            self.remove_object(object);
        }
        count
    }

    /// Makes one replica invisible at once. Its space is free when nobody holds a lease on it any more.
    pub(super) fn remove_object(&mut self, slot: Slot<Object>) {
        let leased = self.objects[slot].leases > 0;
        if !leased {
            self.leave_idle(slot);
        }
        if let Some(entry) = self.objects[slot].entry {
            self.detach(entry, slot);
        }
        if !leased {
            self.free_object(slot);
        }
    }

    /// Forgets an object that is in no list, and gives its space back.
    pub(super) fn free_object(&mut self, slot: Slot<Object>) {
        let object = self.objects.remove(slot);
        if let Some(segment) = object.segment {
            self.give_run_back(segment, object.offset, object.extent_bytes());
        }
    }

    /// Puts an object that is in no list among the idle ones, as used just now.
    pub(super) fn make_idle(&mut self, slot: Slot<Object>) {
        self.objects[slot].used = self.next_use();
        let alone = self.is_alone(slot);
        let object = &self.objects[slot];
        if let Some(segment) = object.segment {
            let segment = &mut self.segments[segment];
            segment.idle_bytes += object.extent_bytes();
            let list = if alone { &mut segment.idle } else { &mut segment.surplus };
            list.push(&mut self.objects, slot);
        }
    }

    /// Takes an object out of the idle ones.
    pub(super) fn leave_idle(&mut self, slot: Slot<Object>) {
        self.leave_idle_of(slot, !self.is_alone(slot));
    }

    /// Takes an object out of the idle ones, where it is known whether it stands among those with siblings.
    pub(super) fn leave_idle_of(&mut self, slot: Slot<Object>, surplus: bool) {
        let object = &self.objects[slot];
        if let Some(segment) = object.segment {
            let segment = &mut self.segments[segment];
            segment.idle_bytes -= object.extent_bytes();
            let list = if surplus { &mut segment.surplus } else { &mut segment.idle };
            list.unlink(&mut self.objects, slot);
        }
    }
}
