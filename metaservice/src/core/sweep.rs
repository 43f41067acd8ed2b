//! A floor takes what was put before it out of sight at once; what that takes up is freed in steps, as what is left of
//! nodes that are gone: there may be millions of keys, and everybody waits meanwhile.
//!
//! Each key has the colour of the time in which it became readable, and a floor begins a new time. While keys of former
//! colours stand, [`Core::is_void`] tells who is out of sight: all of them where everything was removed; where a node
//! brought a floor those put before it, and the others get the present colour as the sweep comes by.

use super::Core;
use super::index::Entry;
use super::limits::SWEEP_SEEN_MAX;
use super::pins::Pin;
use super::segment::Segment;
use super::slab::Slot;

/// How many colours there are.
const COLOURS: u32 = 4;

/// What a sweep has to do.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// Of keys that become readable now.
    colour: u32,
    /// Colours of keys that are void, a bit each.
    void: u8,
    /// Colours of keys that are void if they were put before the floor.
    under_floor: u8,
    /// Where it has come to among the entries.
    at: usize,
    /// How often it has to come to their end.
    ends: u32,
    hidden: Hidden,
}

/// What is counted although everything was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hidden {
    pub(super) keys: u64,
    pub(super) replicas: u64,
    pub(super) soft_pins: u64,
    pub(super) hard_pins: u64,
}

impl Sweep {
    pub(super) const fn is_on(&self) -> bool {
        (self.void | self.under_floor) != 0
    }

    pub(super) const fn colour(&self) -> u32 {
        self.colour
    }

    pub(super) const fn hidden(&self) -> &Hidden {
        &self.hidden
    }
}

impl Core {
    /// Everything that is readable is out of sight: as with a floor that covers all of it.
    pub(super) fn hide_all(&mut self) {
        self.change_colour();
        self.sweep.void |= self.sweep.under_floor | 1 << self.former_colour();
        self.sweep.under_floor = 0;
        let (soft_pins, hard_pins) = (self.pins.soft(), self.pins.hard());
        self.sweep.hidden = Hidden { keys: self.readable, replicas: self.replicas, soft_pins, hard_pins };
        for segment in self.segments.values_mut() {
            segment.hidden = segment.objects;
        }
    }

    /// The floor was raised: what was put before it is out of sight.
    pub(super) fn hide_under_floor(&mut self) {
        self.change_colour();
        self.sweep.under_floor |= 1 << self.former_colour();
    }

    fn change_colour(&mut self) {
        let next = (self.sweep.colour + 1) % COLOURS;
        if (self.sweep.void | self.sweep.under_floor) >> next & 1 == 1 {
            self.finish_sweep();
        }
        self.sweep.colour = next;
        // What lies before the place it has come to may have been passed before.
        self.sweep.ends = if self.sweep.at == 0 { 1 } else { 2 };
    }

    const fn former_colour(&self) -> u32 {
        (self.sweep.colour + COLOURS - 1) % COLOURS
    }

    /// Whether a key is out of sight, if it is readable at all.
    pub(super) fn is_void(&self, entry: Slot<Entry>) -> bool {
        if !self.sweep.is_on() {
            return false;
        }
        let colour = self.index.get(entry).colour();
        self.is_hidden(entry)
            || self.sweep.under_floor >> colour & 1 == 1 && self.index.origin(entry) <= self.removals.floor()
    }

    /// Whether a key is out of sight and known to be among what is hidden.
    pub(super) fn is_hidden(&self, entry: Slot<Entry>) -> bool {
        self.sweep.void >> self.index.get(entry).colour() & 1 == 1
    }

    /// A replica of a key is about to go, perhaps its last.
    pub(super) fn count_hidden(&mut self, entry: Slot<Entry>, segment: Option<Slot<Segment>>, is_last: bool) {
        if !self.is_hidden(entry) {
            return;
        }
        self.sweep.hidden.replicas -= 1;
        self.sweep.hidden.keys -= u64::from(is_last);
        if let Some(segment) = segment {
            self.segments[segment].hidden -= 1;
        }
    }

    /// The pin of a key is over.
    pub(super) fn count_hidden_pin(&mut self, entry: Slot<Entry>, pin: Pin) {
        if self.is_hidden(entry) {
            let hidden = &mut self.sweep.hidden;
            *(if pin.is_soft() { &mut hidden.soft_pins } else { &mut hidden.hard_pins }) -= 1;
        }
    }

    /// Whether a removal of everything, or a floor, has left something to forget.
    pub const fn sweeps(&self) -> bool {
        self.sweep.is_on()
    }

    /// Readable keys. Those on nodes that are gone count until they are forgotten.
    pub(super) const fn readable_keys(&self) -> u64 {
        self.readable - self.sweep.hidden.keys
    }

    /// Whether anything is out of sight and not forgotten.
    pub(super) fn has_void(&self) -> bool {
        self.sweep.is_on() || !self.graves.is_empty()
    }

    /// Forgets about so many objects of keys that are out of sight. True: there are more.
    pub(super) fn sweep_some(&mut self, mut budget: usize) -> bool {
        while self.sweep.is_on() {
            if budget == 0 {
                return true;
            }
            let (entries, next) = self.index.walk(self.sweep.at, budget.min(SWEEP_SEEN_MAX));
            let entries: Vec<_> = entries.collect();
            budget = budget.saturating_sub(1);
            for entry in entries {
                if self.index.get(entry).object.is_none() {
                    continue;
                }
                if self.is_void(entry) {
                    budget = budget.saturating_sub(self.forget_void(entry));
                } else {
                    self.index.get_mut(entry).set_colour(self.sweep.colour);
                }
            }
            self.sweep.at = next.unwrap_or(0);
            self.sweep.ends -= u32::from(next.is_none());
            if self.sweep.ends == 0 {
                debug_assert_eq!(self.sweep.hidden, Hidden::default(), "all that was hidden is forgotten");
                (self.sweep.void, self.sweep.under_floor) = (0, 0);
            }
        }
        false
    }

    /// Forgets all at once, where the answer depends on what is out of sight still.
    pub(super) fn finish_sweep(&mut self) {
        while self.sweep_some(usize::MAX) {}
    }

    /// Forgets a key that is out of sight; how many replicas it had.
    pub(super) fn forget_void(&mut self, entry: Slot<Entry>) -> usize {
        let mut next = self.index.get(entry).object;
        let mut count = 0;
        while let Some(slot) = next {
            next = self.objects[slot].sibling;
            self.remove_object(slot);
            count += 1;
        }
        count
    }

    /// Whether something whose time is over has not ended: there is too much of it for one call.
    pub(super) fn is_late(&self) -> bool {
        self.are_reservations_late() || self.are_leases_late() || self.is_rest_late()
    }

    pub(super) fn is_rest_late(&self) -> bool {
        self.quarantine.front().is_some_and(|front| front.until <= self.now)
    }
}
