//! What was removed, remembered for memory that is not here now: a node that was away must not bring it back.
//!
//! Keys that are not known are noted as any others: memory that nobody has told of yet, or that was lent to an earlier
//! life of the service, may hold them. Notes are kept in parts, and the oldest part goes as a whole. That costs memory
//! objects only if it was away when one of those removals was served: each note has a number, and a segment knows up to
//! which of them nothing concerns it ([`Removals::turn`] when its node went).

use std::collections::VecDeque;

use hashbrown::HashTable;

use super::Core;
use super::effect::Effect;
use super::record::Name;

/// In how many parts notes are kept: so much of them goes at a time.
const PARTS: u32 = 16;

/// What was removed in this life, and up to which generation.
#[derive(Debug)]
pub(super) struct Removals {
    /// The oldest first.
    parts: VecDeque<Part>,
    parts_max: usize,
    part_max: usize,
    /// Notes taken.
    turn: u64,
    /// The last note that is kept no longer, and the last generation issued before it was taken.
    forgotten: (u64, u64),
    /// Everything up to here was removed.
    pub(super) floor: u64,
    /// Calls that removed everything.
    pub(super) floors: u64,
}

/// Some notes that were taken one after the other.
#[derive(Debug, Default)]
struct Part {
    /// Hash of a key, and the last generation that was removed.
    notes: HashTable<(u64, u64)>,
    /// As `forgotten`, of the last of them.
    last: (u64, u64),
}

impl Removals {
    pub(super) fn new(notes_max: u32) -> Self {
        let parts = notes_max.clamp(1, PARTS);
        Self {
            parts: VecDeque::new(),
            parts_max: parts as usize,
            part_max: (notes_max / parts).max(1) as usize,
            turn: 0,
            forgotten: (0, 0),
            floor: 0,
            floors: 0,
        }
    }

    /// Everything of a key was removed that has this generation or an older one. True: others are forgotten for it.
    fn note(&mut self, hash: u64, generation: u64, serial: u64) -> bool {
        self.turn += 1;
        let newest = self.parts.back_mut();
        if let Some(known) = newest.and_then(|part| part.notes.find_mut(hash, |(other, _)| *other == hash)) {
            known.1 = known.1.max(generation);
            self.note_last(serial);
            return false;
        }
        let is_full = self.parts.back().is_none_or(|part| part.notes.len() >= self.part_max);
        let forgets = is_full && self.parts.len() >= self.parts_max;
        if forgets && let Some(oldest) = self.parts.pop_front() {
            self.forgotten = oldest.last;
        }
        if is_full {
            self.parts.push_back(Part::default());
        }
        if let Some(newest) = self.parts.back_mut() {
            newest.notes.insert_unique(hash, (hash, generation), |(hash, _)| *hash);
        }
        self.note_last(serial);
        forgets
    }

    fn note_last(&mut self, serial: u64) {
        if let Some(newest) = self.parts.back_mut() {
            newest.last = (self.turn, serial);
        }
    }

    /// How many notes were taken.
    pub(super) const fn turn(&self) -> u64 {
        self.turn
    }

    /// Whether an object of this generation is known to be removed. Whatever this life removed, it removed after all that
    /// earlier ones had put, also where their numbers are greater.
    pub(super) fn cover(&self, hash: u64, generation: u64, is_own: bool) -> bool {
        let known = |part: &Part| part.notes.find(hash, |(other, _)| *other == hash).map(|(_, removed)| *removed);
        generation <= self.floor
            || !is_own && self.floors > 0
            || self.parts.iter().filter_map(known).any(|removed| !is_own || generation <= removed)
    }

    /// Whether it may have been removed after so many notes, and that is forgotten.
    pub(super) const fn forgot(&self, turn: u64, generation: u64, is_own: bool) -> bool {
        self.forgotten.0 > turn && (!is_own || generation <= self.forgotten.1)
    }

    pub(super) const fn floor(&self) -> u64 {
        self.floor
    }
}

impl Core {
    /// Whether what a record speaks of is known to be removed.
    pub(super) fn covers(&self, name: Name) -> bool {
        self.removals.cover(name.hash, name.generation, self.is_own(name.generation))
    }

    /// Notes that a key was removed, and all that was put before.
    pub(super) fn note_removal(&mut self, hash: u64, effects: &mut Vec<Effect>) {
        let serial = self.serial;
        if self.removals.note(hash, serial, serial) {
            effects.push(Effect::RemovalsForgotten { removals: self.removals.turn() });
        }
    }

    /// A record that may speak of something removed is out of sight: its node is gone.
    pub(super) fn note_hidden(&mut self, name: Name) {
        self.removals.note(name.hash, name.generation, self.serial);
    }

    /// Removals noted so far, and the last of them that is forgotten.
    pub const fn removals_noted(&self) -> (u64, u64) {
        (self.removals.turn, self.removals.forgotten.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_notes_the_oldest_are_forgotten_and_memory_that_was_there_is_not_concerned() {
        let mut removals = Removals::new(3);
        for (hash, serial) in [(1, 10), (2, 11), (1, 12), (3, 13)] {
            removals.note(hash, serial, serial);
        }
        assert!(removals.forgot(0, 10, true) && !removals.forgot(0, 11, true), "the first note");
        assert!(!removals.forgot(1, 10, true), "it had been taken before this memory went");
        assert!(removals.cover(1, 12, true) && !removals.cover(1, 13, true) && removals.cover(2, 11, true));
        assert!(!removals.note(3, 14, 14), "the same key again");
        assert!(removals.note(4, 15, 15));
        assert!(!removals.cover(2, 11, true) && removals.forgot(1, 11, true) && !removals.forgot(2, 11, true));
    }

    #[test]
    fn most_notes_are_kept_whatever_the_bound() {
        for most in [1, 2, 15, 16, 17, 40, 1000] {
            let mut removals = Removals::new(most);
            let all = u64::from(most) * 2;
            for serial in 1..=all {
                removals.note(serial, serial, serial);
            }
            let kept = (1..=all).filter(|serial| removals.cover(*serial, *serial, true)).count() as u64;
            let most = u64::from(most);
            assert!(kept <= most && kept > 0 && kept + most / 16 + 16 >= most, "{kept} of {most}");
            let known = |serial: u64| removals.cover(serial, serial, true) || removals.forgot(0, serial, true);
            assert!((1..=all).all(known), "no note goes unnoticed");
        }
    }
}
