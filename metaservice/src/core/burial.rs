//! What is left of segments whose nodes are gone is forgotten in steps: a node may hold millions of objects, and the
//! loss of many nodes at once must not stop the service.
//!
//! Such a segment is void at once: nothing in it is found, and nothing is placed in it. Only the memory that its
//! objects take up here is freed later.

use super::Core;
use super::index::Entry;
use super::object::Object;
use super::record::Name;
use super::segment::Segment;
use super::slab::Slot;

impl Core {
    /// Makes a segment void.
    pub(super) fn give_up(&mut self, slot: Slot<Segment>) {
        self.segments[slot].gone = true;
        self.lent_bytes -= self.segments[slot].space.bytes();
        self.policy.lent(self.lent_bytes);
        self.close_places(slot);
        self.segment_ids.remove(&self.segments[slot].id);
        self.untold.remove(&self.segments[slot].id);
        for reservation in std::mem::take(&mut self.segments[slot].reservations) {
            let reservation = self.remove_reservation(reservation);
            let name = Name { hash: self.index.get(reservation.entry).hash(), generation: reservation.serial.get() };
            // Its record may stand already. A put may take effect when its key was removed, a copy may not.
            if reservation.copy && self.covers(name) {
                self.note_hidden(name);
            }
            self.forget_writer(reservation.entry);
            self.forget_held(reservation.held);
        }
        self.forget_resting(slot);
        self.forget_table(slot);
        self.graves.push_back(slot);
    }

    /// Forgets about so many objects of void segments, then of keys under a floor. True: there are more.
    pub(super) fn bury(&mut self, mut budget: usize) -> bool {
        while let Some(slot) = self.graves.front().copied() {
            while let Some(object) = self.segments[slot].leased.oldest() {
                if budget == 0 {
                    return true;
                }
                budget -= 1;
                self.lose(object);
                self.segments[slot].leased.unlink(&mut self.objects, object);
                self.objects[object].segment = None;
            }
            let any = |core: &Self| {
                let segment = &core.segments[slot];
                segment.surplus.oldest().or(segment.idle.any()).or(segment.pinned.any())
            };
            while let Some(object) = any(self) {
                if budget == 0 {
                    return true;
                }
                budget -= 1;
                self.lose(object);
            }
            self.segments.remove(slot);
            self.rows.remove(&slot);
            self.graves.pop_front();
        }
        self.sweep_some(budget)
    }

    /// Forgets the void replicas of one key ahead of their turn. True: it is known still.
    pub(super) fn bury_of(&mut self, entry: Slot<Entry>) -> bool {
        if !self.has_void() {
            return true;
        }
        if self.index.get(entry).object.is_some() && self.is_void(entry) {
            self.forget_void(entry);
            return self.index.knows(entry);
        }
        let mut next = self.index.get(entry).object;
        while let Some(slot) = next {
            next = self.objects[slot].sibling;
            if !self.is_live(slot) {
                self.lose(slot);
            }
        }
        self.index.knows(entry)
    }

    /// Loses the replica of a key that has this generation in this segment; whether there was one.
    pub(super) fn lose_replica(&mut self, key: &[u8], segment: Slot<Segment>, generation: u64) -> bool {
        let Some(entry) = self.index.find(key).filter(|entry| self.bury_of(*entry)) else { return false };
        let found = self.chain(entry).find(|slot| {
            let object = &self.objects[*slot];
            (object.segment, object.serial.get()) == (Some(segment), generation)
        });
        if let Some(object) = found {
            self.lose(object);
        }
        found.is_some()
    }

    /// One replica is lost; its key gets another if it has one left to copy.
    pub(super) fn lose(&mut self, slot: Slot<Object>) {
        let entry = self.objects[slot].entry;
        self.remove_object(slot);
        if let Some(entry) = entry
            && self.index.knows(entry)
        {
            self.restore(entry);
        }
    }
}
