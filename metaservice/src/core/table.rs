//! A hash table from hashes to slots, one cache line at a time.
//!
//! What it asks of memory is one line a look-up, nearly always, and which one is known before any is read. So a caller
//! with many keys can ask for all lines first ([`Table::warm`]) and look into them then.

use super::slab::Slot;

/// Places of one line: as many as fit in 64 bytes.
const PLACES: usize = 10;

/// A table grows when more than so many places of a line are taken on average.
const FILL: usize = 8;

/// Lines of the smallest table.
const LINES_MIN: usize = 1;

/// Which entries have their home here, or passed by on the way from a home that was full.
#[derive(Debug)]
#[repr(C, align(64))]
struct Line<T> {
    /// Part of the hash of each; entries with another one need no look.
    tags: [u16; PLACES],
    /// Entries that found this line full and stand further on. A look-up ends at a line that none has passed.
    passed: u32,
    slots: [Option<Slot<T>>; PLACES],
}

const _: () = assert!(size_of::<Line<u8>>() == 64, "a line of the table is a line of the cache");

impl<T> Line<T> {
    const fn new() -> Self {
        Self { tags: [0; PLACES], passed: 0, slots: [None; PLACES] }
    }

    /// The places with this tag, a bit each. Without a branch: which place it is nobody can predict.
    fn alike(&self, tag: u16) -> u32 {
        self.tags.iter().enumerate().fold(0, |alike, (place, known)| alike | u32::from(*known == tag) << place)
    }
}

/// Slots by hash. Equal hashes are allowed.
#[derive(Debug)]
pub(super) struct Table<T> {
    /// A power of two of them.
    lines: Box<[Line<T>]>,
    len: usize,
}

/// Bits of a hash that do not say which line is home.
#[allow(clippy::cast_possible_truncation, reason = "some of the bits are what is asked for")]
const fn tag(hash: u64) -> u16 {
    (hash >> 48) as u16
}

impl<T> Table<T> {
    pub(super) fn new() -> Self {
        Self { lines: (0..LINES_MIN).map(|_| Line::new()).collect(), len: 0 }
    }

    #[allow(clippy::cast_possible_truncation, reason = "the low bits are what is asked for")]
    const fn home(&self, hash: u64) -> usize {
        hash as usize & (self.lines.len() - 1)
    }

    const fn after(&self, line: usize) -> usize {
        (line + 1) & (self.lines.len() - 1)
    }

    /// Reads the line that a look-up will read first. The value means nothing: it is there to be waited for together
    /// with others.
    pub(super) fn warm(&self, hash: u64) -> usize {
        self.lines[self.home(hash)].passed as usize
    }

    /// The slot with this hash that `is_it`, if there is one.
    pub(super) fn find(&self, hash: u64, is_it: impl FnMut(Slot<T>) -> bool) -> Option<Slot<T>> {
        self.locate(hash, is_it).map(|(_, _, slot)| slot)
    }

    fn locate(&self, hash: u64, mut is_it: impl FnMut(Slot<T>) -> bool) -> Option<(usize, usize, Slot<T>)> {
        let (home, tag) = (self.home(hash), tag(hash));
        let mut at = home;
        loop {
            let line = &self.lines[at];
            let mut alike = line.alike(tag);
            while alike != 0 {
                let place = alike.trailing_zeros() as usize;
                if let Some(slot) = line.slots[place]
                    && is_it(slot)
                {
                    return Some((at, place, slot));
                }
                alike &= alike - 1;
            }
            at = self.after(at);
            if line.passed == 0 || at == home {
                return None;
            }
        }
    }

    /// Adds a slot; `hashes_of` tells the hashes of slots in the table.
    pub(super) fn insert(&mut self, hash: u64, slot: Slot<T>, hashes_of: impl FnOnce(&[Slot<T>]) -> Vec<u64>) {
        if self.len >= self.lines.len() * FILL {
            self.grow(hashes_of);
        }
        self.add(hash, slot);
        self.len += 1;
    }

    /// There is room: a table never gets full.
    fn add(&mut self, hash: u64, slot: Slot<T>) {
        let mut at = self.home(hash);
        loop {
            let line = &mut self.lines[at];
            if let Some(place) = line.slots.iter().position(Option::is_none) {
                (line.tags[place], line.slots[place]) = (tag(hash), Some(slot));
                return;
            }
            line.passed += 1;
            at = self.after(at);
        }
    }

    fn grow(&mut self, hashes_of: impl FnOnce(&[Slot<T>]) -> Vec<u64>) {
        let lines = (0..self.lines.len() * 2).map(|_| Line::new()).collect();
        let old = std::mem::replace(&mut self.lines, lines);
        let slots: Vec<_> = old.iter().flat_map(|line| line.slots).flatten().collect();
        for (hash, slot) in hashes_of(&slots).into_iter().zip(slots) {
            self.add(hash, slot);
        }
    }

    /// Takes a slot out, if it is there.
    pub(super) fn remove(&mut self, hash: u64, slot: Slot<T>) {
        let Some((at, place, _)) = self.locate(hash, |other| other == slot) else { return };
        (self.lines[at].tags[place], self.lines[at].slots[place]) = (0, None);
        self.len -= 1;
        let mut passed = self.home(hash);
        while passed != at {
            self.lines[passed].passed -= 1;
            passed = self.after(passed);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use std::collections::BTreeMap;

    use super::super::slab::Slab;
    use super::*;

    /// Few different homes and tags, so that lines overflow and tags are alike.
    const fn crowded(number: u64) -> u64 {
        (number % 7) | ((number % 3) << 48)
    }

    fn play(hash_of: fn(u64) -> u64) {
        let (mut slab, mut table, mut model) = (Slab::<u64>::new(), Table::new(), BTreeMap::new());
        let mut state = 1u64;
        for step in 0..4000u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = (state >> 33) % 300;
            if let Some(slot) = model.remove(&number) {
                table.remove(hash_of(number), slot);
                slab.remove(slot);
            } else {
                let slot = slab.insert(number);
                table.insert(hash_of(number), slot, |all| all.iter().map(|other| hash_of(slab[*other])).collect());
                model.insert(number, slot);
            }
            if step.is_multiple_of(50) {
                for number in 0..300 {
                    let found = table.find(hash_of(number), |slot| slab[slot] == number);
                    assert_eq!(found, model.get(&number).copied(), "{number} after {step}");
                }
            }
        }
        assert_eq!(table.len, model.len());
        for (number, slot) in model {
            table.remove(hash_of(number), slot);
        }
        assert!(table.lines.iter().all(|line| line.passed == 0 && line.slots.iter().all(Option::is_none)));
    }

    #[test]
    fn finds_what_was_put_and_nothing_that_was_removed() {
        play(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        play(crowded);
        play(|_| 0);
    }
}
