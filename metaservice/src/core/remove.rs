//! Objects change lists, become invisible and give their space back.

use memcache_types::KeyBatch;

use super::Core;
use super::clock::Millis;
use super::effect::Effect;
use super::object::Object;
use super::slab::Slot;

impl Core {
    /// Removes keys; true where a key was readable. Reservations of the keys are untouched.
    pub fn remove(&mut self, now: Millis, keys: &KeyBatch, effects: &mut Vec<Effect>) -> Vec<bool> {
        self.advance(now, effects);
        keys.iter()
            .map(|key| {
                let object = self.index.find(key).and_then(|entry| self.index.get(entry).object);
                if let Some(object) = object {
                    self.remove_object(object);
                }
                object.is_some()
            })
            .collect()
    }

    /// Removes every readable key; how many there were.
    pub fn remove_all(&mut self, now: Millis, effects: &mut Vec<Effect>) -> u64 {
        self.advance(now, effects);
        let readable: Vec<_> =
            self.objects.iter().filter(|(_, object)| object.entry.is_some()).map(|(slot, _)| slot).collect();
        for object in &readable {
            self.remove_object(*object);
        }
        readable.len() as u64
    }

    /// Makes a readable object invisible at once. Its space is free when nobody holds a lease on it any more.
    pub(super) fn remove_object(&mut self, slot: Slot<Object>) {
        let object = &mut self.objects[slot];
        let leased = object.leases > 0;
        if let Some(entry) = object.entry.take() {
            self.index.get_mut(entry).object = None;
            self.index.forget_if_idle(entry);
            self.readable -= 1;
            if let Some(segment) = object.segment {
                self.segments[segment].objects -= 1;
            }
        }
        if !leased {
            self.leave_idle(slot);
            self.free_object(slot);
        }
    }

    /// Forgets an object that is in no list, and gives its space back.
    pub(super) fn free_object(&mut self, slot: Slot<Object>) {
        let object = self.objects.remove(slot);
        if let Some(segment) = object.segment {
            self.segments[segment].space.give_back(object.offset, object.extent_bytes());
        }
    }

    /// Puts an object that is in no list among the idle ones, as used just now.
    pub(super) fn make_idle(&mut self, slot: Slot<Object>) {
        self.objects[slot].used = self.next_use();
        let object = &self.objects[slot];
        if let Some(segment) = object.segment {
            let segment = &mut self.segments[segment];
            segment.idle_bytes += object.extent_bytes();
            segment.idle.push(&mut self.objects, slot);
        }
    }

    /// Takes an object out of the idle ones.
    pub(super) fn leave_idle(&mut self, slot: Slot<Object>) {
        let object = &self.objects[slot];
        if let Some(segment) = object.segment {
            let segment = &mut self.segments[segment];
            segment.idle_bytes -= object.extent_bytes();
            segment.idle.unlink(&mut self.objects, slot);
        }
    }

    /// Marks an object as used just now. A leased one is marked when its last lease ends.
    pub(super) fn touch(&mut self, slot: Slot<Object>) {
        if self.objects[slot].leases == 0 {
            self.leave_idle(slot);
            self.make_idle(slot);
        }
    }
}
