//! Objects change lists, become invisible and give their space back; what was removed does not come back.

use std::collections::{BTreeMap, VecDeque};

use memcache_types::{Generation, KeyBatch, KeyDigest, SegmentId};

use super::Core;
use super::clock::Millis;
use super::effect::Effect;
use super::index::Entry;
use super::limits::REMOVALS_MAX;
use super::object::Object;
use super::record::RecordAt;
use super::replicas::Shelf;
use super::slab::Slot;

/// What became of a remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Whether each key was readable.
    pub removed: Vec<bool>,
    /// Records that may speak of the keys: cleared by the caller, lest the keys come back with the next life of the
    /// service.
    pub records: Vec<RecordAt>,
    /// Segments whose nodes have not told all that they hold, and may hold the keys: until they have, a restart of the
    /// service brings the keys back. In the present life they are refused and their records cleared.
    pub untold: Vec<SegmentId>,
}

/// What became of a removal of everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedAll {
    /// Objects that were readable.
    pub removed: u64,
    /// No object of this generation or an older one may come back: to be written by the caller wherever it can.
    pub floor: Generation,
    /// Where: segment and offset.
    pub floors: Vec<(SegmentId, u64)>,
}

/// What was removed in this life, and up to which generation.
#[derive(Debug)]
pub(super) struct Removals {
    by_hash: BTreeMap<u64, u64>,
    order: VecDeque<(u64, u64)>,
    /// Everything up to here was removed.
    floor: u64,
    /// Some removed key up to here was forgotten.
    forgotten: u64,
    /// Calls that removed everything.
    turns: u64,
}

impl Removals {
    pub(super) const fn new() -> Self {
        Self { by_hash: BTreeMap::new(), order: VecDeque::new(), floor: 0, forgotten: 0, turns: 0 }
    }

    fn note(&mut self, hash: u64, serial: u64) {
        self.by_hash.insert(hash, serial);
        self.order.push_back((hash, serial));
        if self.order.len() > REMOVALS_MAX
            && let Some((hash, serial)) = self.order.pop_front()
        {
            self.forgotten = serial;
            if self.by_hash.get(&hash) == Some(&serial) {
                self.by_hash.remove(&hash);
            }
        }
    }

    /// Whether an object of this generation may have been removed. Whatever this life removed, it removed after all that
    /// earlier ones had put, also where their numbers are greater.
    pub(super) fn may_cover(&self, hash: u64, generation: u64, is_own: bool) -> bool {
        let own = self.by_hash.get(&hash).copied();
        let was_here = own.is_some() || self.forgotten > 0 || self.turns > 0;
        generation <= self.floor.max(self.forgotten).max(own.unwrap_or(0)) || !is_own && was_here
    }

    pub(super) const fn floor(&self) -> u64 {
        self.floor
    }
}

impl Core {
    /// Removes keys. Reservations of the keys are untouched: a put that is under way may still take effect.
    pub fn remove(&mut self, now: Millis, keys: &KeyBatch, effects: &mut Vec<Effect>) -> Removed {
        self.advance(now, effects);
        let untold = self.untold.iter().copied().collect();
        let mut reply = Removed { removed: Vec::with_capacity(keys.len()), records: Vec::new(), untold };
        for key in keys.iter() {
            reply.removed.push(self.index.find(key).is_some_and(|entry| self.remove_key(entry)));
            let hash = KeyDigest::of(key).low();
            self.removals.note(hash, self.serial);
            reply.records.extend(self.stale_records_of(hash));
        }
        reply
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

    /// Removes every readable key.
    pub fn remove_all(&mut self, now: Millis, effects: &mut Vec<Effect>) -> RemovedAll {
        self.advance(now, effects);
        let removed = self.remove_up_to(self.serial);
        self.removals.turns += 1;
        let turn = self.removals.turns;
        let tables = self.segment_ids.iter().map(|(id, slot)| (*id, self.segments[*slot].table.place));
        let floors = tables.filter(|(_, place)| place.records > 0).map(|(id, place)| (id, place.floor_offset(turn)));
        RemovedAll { removed, floor: Generation::new(self.serial), floors: floors.collect() }
    }

    /// Removes every readable key whose bytes come from a put of this generation or an older one, for good; how many
    /// there were.
    pub(super) fn remove_up_to(&mut self, floor: u64) -> u64 {
        self.removals.floor = self.removals.floor.max(floor);
        while self.bury(usize::MAX) {}
        let count = self.readable;
        let is_covered = |object: &Object| object.entry.is_some_and(|entry| self.index.origin(entry) <= floor);
        let covered: Vec<_> =
            self.objects.iter().filter(|(_, object)| is_covered(object)).map(|(slot, _)| slot).collect();
        for object in covered {
            self.remove_object(object);
        }
        count - self.readable
    }

    /// Makes one replica invisible at once. Its space is free when nobody holds a lease on it any more.
    pub(super) fn remove_object(&mut self, slot: Slot<Object>) {
        let leased = self.objects[slot].leases > 0;
        if !leased {
            self.leave_idle(slot);
        }
        if let Some(entry) = self.objects[slot].entry {
            self.leave_record(entry, slot);
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
            let place = (self.segments[segment].id, object.offset);
            if let Some(stale) = self.lingering.remove(&place) {
                self.lay(stale, object.offset, object.extent_bytes());
            }
        }
    }

    /// An object is about to be no longer readable; its record may still stand.
    fn leave_record(&mut self, entry: Slot<Entry>, slot: Slot<Object>) {
        let object = &mut self.objects[slot];
        let (Some(segment), offset, serial) = (object.segment, object.offset, object.serial.get()) else { return };
        let Some(record) = object.record.take() else {
            self.segments[segment].unrecorded -= 1;
            return;
        };
        if !self.segments[segment].gone {
            let stale = self.new_stale(segment, record, self.index.get(entry).hash(), serial);
            self.lingering.insert((self.segments[segment].id, offset), stale);
        }
    }

    /// Puts an object that is in no list among the idle ones, as used just now.
    pub(super) fn make_idle(&mut self, slot: Slot<Object>) {
        self.make_idle_of(slot, self.shelf_of(slot));
    }

    /// Puts an object that is in no list among the idle ones, where it is known with which of them it belongs.
    pub(super) fn make_idle_of(&mut self, slot: Slot<Object>, among: Shelf) {
        let number = self.next_use();
        self.objects[slot].set_used(number);
        if self.keep_idle(slot) {
            return;
        }
        let object = &self.objects[slot];
        if let Some(segment) = object.segment {
            let segment = &mut self.segments[segment];
            segment.idle_bytes += object.extent_bytes();
            match among {
                Shelf::Extra => segment.surplus.extra.push(&mut self.objects, slot),
                Shelf::Surplus => segment.surplus.rest.push(&mut self.objects, slot),
                Shelf::Last => segment.idle.push(&mut self.objects, slot, self.now),
            }
        }
    }

    /// Takes an object out of the idle ones.
    pub(super) fn leave_idle(&mut self, slot: Slot<Object>) {
        self.leave_idle_of(slot, self.shelf_of(slot));
    }

    /// Takes an object out of the idle ones, where it is known which of them it stands with.
    pub(super) fn leave_idle_of(&mut self, slot: Slot<Object>, among: Shelf) {
        if self.release_idle(slot) {
            return;
        }
        let object = &self.objects[slot];
        if let Some(segment) = object.segment {
            let segment = &mut self.segments[segment];
            segment.idle_bytes -= object.extent_bytes();
            match among {
                Shelf::Extra => segment.surplus.extra.unlink(&mut self.objects, slot),
                Shelf::Surplus => segment.surplus.rest.unlink(&mut self.objects, slot),
                Shelf::Last => segment.idle.unlink(&mut self.objects, slot),
            }
        }
    }
}
