//! Records: what stands in the table of a segment, and what may still stand there when its object is gone.
//!
//! The book moves no bytes, so a record cannot vanish with its object. It stays bound to the space that its object had
//! ([`Stale`]) until a writer has got that space and sealed: that writer's ticket says what to clear before the first
//! byte is written. Otherwise a recovery could find an old record, an old trailer that the new object did not cover,
//! and a payload that is half of each.
//!
//! A ticket for exactly the space of one stale record takes over its place in the table: there the writer takes away the
//! old trailer before anything else, as every writer does, and the old record means nothing from then on. So a pool of
//! equal blocks never clears anything.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use memcache_types::{Generation, HoldingsPlace, SegmentId};

use super::Core;
use super::segment::Segment;
use super::slab::Slot;

/// A place in the table of a segment. Four bytes, also as an `Option`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordSlot(NonZeroU32);

impl RecordSlot {
    pub(super) fn new(number: u32) -> Option<Self> {
        number.checked_add(1).and_then(NonZeroU32::new).map(Self)
    }

    pub(super) const fn number(self) -> u32 {
        self.0.get() - 1
    }
}

/// The table of one segment: which places are in use, and which bytes of the segment have stale records.
///
/// Invariants: ranges do not overlap; every stale record of the segment that was neither cleared nor taken over nor is
/// still held is in the range that covers its former space.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) place: HoldingsPlace,
    /// Places from here on were never handed out, except the claimed ones.
    fresh: u32,
    free: Vec<RecordSlot>,
    /// Places in use when their node listed them; one bit each.
    claimed: Vec<u64>,
    ranges: BTreeMap<u64, Range>,
}

/// Bytes whose next writer has to clear some records.
#[derive(Debug)]
struct Range {
    end: u64,
    first: Slot<Stale>,
}

/// A record that may still stand although its object is gone, or was never sealed.
#[derive(Debug)]
pub(super) struct Stale {
    segment: Slot<Segment>,
    slot: RecordSlot,
    /// What the record may say. A second name: a writer took the place over and ended without a seal.
    names: (Name, Option<Name>),
    /// Tickets that were told to clear it and whose writers may still do so.
    claims: u32,
    /// Nothing stands there any more; the place is free when the last claim has ended.
    cleared: bool,
    /// What is said there under either name was removed.
    removed: [bool; 2],
    /// Start of the range it is in.
    range: Option<u64>,
    next: Option<Slot<Stale>>,
}

/// Which object a record speaks of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    pub(super) hash: u64,
    pub(super) generation: u64,
}

/// What a ticket has to do with records.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Where its own record goes.
    pub(super) slot: Option<RecordSlot>,
    /// What stood there before.
    taken_over: Option<Slot<Stale>>,
    /// What is to be cleared first.
    clears: Box<[Slot<Stale>]>,
}

/// What is left of a ticket that ended without a seal, while its space rests.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    stale: Option<Slot<Stale>>,
    clears: Box<[Slot<Stale>]>,
}

/// A record that is to be cleared if it still speaks of this generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordAt {
    /// The segment it is in.
    pub segment: SegmentId,
    /// Its first byte.
    pub offset: u64,
    /// What it spoke of.
    pub generation: Generation,
}

impl Table {
    pub(super) fn new(place: HoldingsPlace) -> Self {
        Self { place, fresh: 0, free: Vec::new(), claimed: Vec::new(), ranges: BTreeMap::new() }
    }

    fn take(&mut self) -> Option<RecordSlot> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        while self.fresh < self.place.records {
            let number = self.fresh;
            self.fresh += 1;
            if !self.is_claimed(number) {
                return RecordSlot::new(number);
            }
        }
        None
    }

    /// Takes the place that a listing names, before any other is handed out. `None`: it is no place, or taken.
    pub(super) fn claim(&mut self, number: u32) -> Option<RecordSlot> {
        if number >= self.place.records || self.is_claimed(number) {
            return None;
        }
        let word = number as usize / 64;
        if self.claimed.len() <= word {
            self.claimed.resize(word + 1, 0);
        }
        self.claimed[word] |= 1 << (number % 64);
        RecordSlot::new(number)
    }

    pub(super) fn is_claimed(&self, number: u32) -> bool {
        self.claimed.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// Starts of the ranges that have a byte in common with these.
    fn met(&self, start: u64, end: u64) -> Vec<u64> {
        self.ranges.range(..end).rev().take_while(|(_, range)| range.end > start).map(|(start, _)| *start).collect()
    }
}

impl Core {
    /// What the ticket for this space, just taken, has to do with records.
    pub(super) fn hold_records(&mut self, segment: Slot<Segment>, offset: u64, bytes: u64) -> Held {
        let table = &mut self.segments[segment].table;
        let met = table.met(offset, offset + bytes);
        if let [start] = met[..]
            && let range = &table.ranges[&start]
            && (start, range.end) == (offset, offset + bytes)
            && let first = range.first
            && let stale = &self.stale[first]
            && (stale.next, stale.claims) == (None, 0)
            && stale.names.1.is_none()
        {
            table.ranges.remove(&start);
            let stale = &mut self.stale[first];
            stale.range = None;
            return Held { slot: Some(stale.slot), taken_over: Some(first), clears: Box::default() };
        }
        let mut clears = Vec::new();
        for start in met {
            let mut next = Some(table.ranges[&start].first);
            while let Some(slot) = next {
                let stale = &mut self.stale[slot];
                stale.claims += 1;
                next = stale.next;
                clears.push(slot);
            }
        }
        Held { slot: table.take(), taken_over: None, clears: clears.into() }
    }

    /// Offsets of what the ticket is to clear first.
    pub(super) fn clears_of<'a>(&'a self, held: &'a Held) -> impl Iterator<Item = u64> + 'a {
        held.clears.iter().map(|slot| self.record_offset(self.stale[*slot].segment, self.stale[*slot].slot))
    }

    pub(super) fn record_offset(&self, segment: Slot<Segment>, slot: RecordSlot) -> u64 {
        self.segments[segment].table.place.record_offset(slot.number())
    }

    /// The ticket's writer has sealed, so it has cleared what it was told to. Where its own record is.
    pub(super) fn settle_records(&mut self, held: Held) -> Option<RecordSlot> {
        if let Some(slot) = held.taken_over {
            self.unname(slot);
            self.stale.remove(slot);
        }
        for slot in held.clears {
            if !self.stale[slot].cleared {
                self.stale[slot].cleared = true;
                self.unname(slot);
                self.leave_range(slot);
            }
            self.end_claim(slot);
        }
        held.slot
    }

    /// The ticket ended without a seal. Whether its writer wrote a record is not known.
    pub(super) fn leave_records(&mut self, segment: Slot<Segment>, held: Held, hash: u64, generation: u64) -> Leftover {
        let stale = match (held.taken_over, held.slot) {
            (Some(slot), _) => {
                let name = Name { hash, generation };
                self.stale[slot].names.1 = Some(name);
                self.name(slot, name);
                self.mark_if_removed(slot);
                Some(slot)
            }
            (None, Some(record)) => {
                let stale = self.new_stale(segment, record, hash, generation);
                self.mark_if_removed(stale);
                Some(stale)
            }
            (None, None) => None,
        };
        Leftover { stale, clears: held.clears }
    }

    /// The space that a ticket left is free now.
    pub(super) fn lay_records(&mut self, leftover: Leftover, offset: u64, bytes: u64) {
        if let Some(slot) = leftover.stale {
            self.lay(slot, offset, bytes);
        }
        for slot in leftover.clears {
            self.end_claim(slot);
        }
    }

    /// The segment is gone, and with it whatever stood in its table.
    pub(super) fn forget_held(&mut self, held: Held) {
        self.forget_leftover(Leftover { stale: held.taken_over, clears: held.clears });
    }

    pub(super) fn forget_leftover(&mut self, leftover: Leftover) {
        if let Some(slot) = leftover.stale {
            self.forget_stale(slot);
        }
        for slot in leftover.clears {
            self.end_claim(slot);
        }
    }

    /// Forgets a record of a segment that is gone; what was removed is remembered. What came next in its range.
    fn forget_stale(&mut self, slot: Slot<Stale>) -> Option<Slot<Stale>> {
        self.unname(slot);
        let stale = self.stale.remove(slot);
        let (first, second) = stale.names;
        for (name, removed) in [Some(first), second].into_iter().zip(stale.removed) {
            if let Some(name) = name.filter(|_| removed) {
                self.note_hidden(name);
            }
        }
        stale.next
    }

    /// Forgets all records of a segment whose node is gone. Its tickets and resting space have gone before.
    pub(super) fn forget_table(&mut self, segment: Slot<Segment>) {
        let id = self.segments[segment].id;
        let lingering: Vec<_> = self.lingering.range((id, 0)..=(id, u64::MAX)).map(|(place, _)| *place).collect();
        for place in lingering {
            let stale = self.lingering.remove(&place);
            self.forget_leftover(Leftover { stale, clears: Box::default() });
        }
        for (_, range) in std::mem::take(&mut self.segments[segment].table.ranges) {
            let mut next = Some(range.first);
            while let Some(slot) = next {
                next = self.forget_stale(slot);
            }
        }
    }

    /// The object that this record speaks of is no longer readable.
    pub(super) fn new_stale(
        &mut self,
        segment: Slot<Segment>,
        slot: RecordSlot,
        hash: u64,
        generation: u64,
    ) -> Slot<Stale> {
        let name = Name { hash, generation };
        let stale = Stale {
            segment,
            slot,
            names: (name, None),
            claims: 0,
            cleared: false,
            removed: [false; 2],
            range: None,
            next: None,
        };
        let slot = self.stale.insert(stale);
        self.name(slot, name);
        slot
    }

    /// The space of a stale record is free now: who gets it has to clear the record.
    pub(super) fn lay(&mut self, slot: Slot<Stale>, offset: u64, bytes: u64) {
        let table = &mut self.segments[self.stale[slot].segment].table;
        let (mut start, mut end) = (offset, offset + bytes);
        let mut members = vec![slot];
        for met in table.met(start, end) {
            if let Some(range) = table.ranges.remove(&met) {
                start = start.min(met);
                end = end.max(range.end);
                let mut next = Some(range.first);
                while let Some(member) = next {
                    members.push(member);
                    next = self.stale[member].next;
                }
            }
        }
        let mut next = None;
        for member in members {
            let stale = &mut self.stale[member];
            (stale.range, stale.next) = (Some(start), next);
            next = Some(member);
        }
        if let Some(first) = next {
            table.ranges.insert(start, Range { end, first });
        }
    }

    fn leave_range(&mut self, slot: Slot<Stale>) {
        let Some(start) = self.stale[slot].range.take() else { return };
        let next = self.stale[slot].next.take();
        let table = &mut self.segments[self.stale[slot].segment].table;
        let Some(range) = table.ranges.get_mut(&start) else { return };
        if range.first == slot {
            match next {
                Some(next) => range.first = next,
                None => drop(table.ranges.remove(&start)),
            }
            return;
        }
        let mut at = range.first;
        while let Some(member) = self.stale[at].next {
            if member == slot {
                self.stale[at].next = next;
                return;
            }
            at = member;
        }
    }

    fn end_claim(&mut self, slot: Slot<Stale>) {
        let stale = &mut self.stale[slot];
        stale.claims -= 1;
        if stale.cleared && stale.claims == 0 {
            let stale = self.stale.remove(slot);
            self.segments[stale.segment].table.free.push(stale.slot);
        }
    }

    fn name(&mut self, slot: Slot<Stale>, name: Name) {
        self.stale_names.insert_unique(name.hash, (name.hash, slot), |(hash, _)| *hash);
    }

    fn unname(&mut self, slot: Slot<Stale>) {
        let (first, second) = self.stale[slot].names;
        for name in std::iter::once(first).chain(second) {
            if let Ok(found) = self.stale_names.find_entry(name.hash, |other| *other == (name.hash, slot)) {
                found.remove();
            }
        }
    }

    /// A writing ended in vain: its key may have been removed meanwhile.
    pub(super) fn mark_if_removed(&mut self, slot: Slot<Stale>) {
        let (first, second) = self.stale[slot].names;
        for (at, name) in [Some(first), second].into_iter().flatten().enumerate() {
            self.stale[slot].removed[at] |= self.covers(name);
        }
    }

    /// A key was removed: that counts for records that may still speak of it, also when their segment comes back.
    pub(super) fn mark_removed(&mut self, hash: u64) {
        for (_, slot) in self.stale_names.iter_hash(hash).filter(|(of, _)| *of == hash) {
            let stale = &mut self.stale[*slot];
            stale.removed[0] |= stale.names.0.hash == hash;
            stale.removed[1] |= stale.names.1.is_some_and(|name| name.hash == hash);
        }
    }

    /// Records that may still speak of a key that is not readable.
    pub(super) fn stale_records_of(&self, hash: u64) -> impl Iterator<Item = RecordAt> + '_ {
        self.stale_names.iter_hash(hash).filter(move |(of, _)| *of == hash).flat_map(move |(_, slot)| {
            let stale = &self.stale[*slot];
            let names = std::iter::once(stale.names.0).chain(stale.names.1).filter(move |name| name.hash == hash);
            names.map(|name| RecordAt {
                segment: self.segments[stale.segment].id,
                offset: self.record_offset(stale.segment, stale.slot),
                generation: Generation::new(name.generation),
            })
        })
    }
}

#[cfg(test)]
mod checks {
    use super::{Core, Held, RecordSlot, Segment, Slot, Stale, Table};

    impl Held {
        /// Its place, unless a stale record counts for it.
        pub(in crate::core) fn own_slot(&self) -> Option<RecordSlot> {
            self.slot.filter(|_| self.taken_over.is_none())
        }
    }

    impl Stale {
        pub(in crate::core) fn segment(&self) -> Slot<Segment> {
            self.segment
        }

        pub(in crate::core) fn slot(&self) -> RecordSlot {
            self.slot
        }
    }

    impl Table {
        pub(in crate::core) fn free_numbers(&self) -> Vec<u32> {
            let fresh = (self.fresh..self.place.records).filter(|number| !self.is_claimed(*number));
            self.free.iter().map(|slot| slot.number()).chain(fresh).collect()
        }
    }

    impl Core {
        /// Panics if ranges, claims and names do not fit the stale records.
        pub(in crate::core) fn check_stale(&self) {
            let mut in_ranges = 0;
            for (slot, segment) in self.segments.iter() {
                let mut end = 0;
                for (start, range) in &segment.table.ranges {
                    assert!(end <= *start && *start < range.end, "ranges overlap");
                    end = range.end;
                    let mut next = Some(range.first);
                    while let Some(at) = next {
                        let stale = &self.stale[at];
                        assert_eq!((stale.segment, stale.range, stale.cleared), (slot, Some(*start), false));
                        in_ranges += 1;
                        next = stale.next;
                    }
                }
            }
            let ranged = self.stale.iter().filter(|(_, stale)| stale.range.is_some()).count();
            assert_eq!(in_ranges, ranged, "a stale record is in the range it names");
            let spoken_of = |stale: &Stale| if stale.cleared { 0 } else { 1 + usize::from(stale.names.1.is_some()) };
            let names: usize = self.stale.iter().map(|(_, stale)| spoken_of(stale)).sum();
            assert_eq!(names, self.stale_names.len());
            let tickets = self.reservations.iter().flat_map(|(_, reservation)| reservation.held.clears.iter());
            let resting = self.quarantine.iter().flat_map(|resting| resting.records.clears.iter());
            let mut told: Vec<Slot<Stale>> = tickets.chain(resting).copied().collect();
            for (slot, stale) in self.stale.iter() {
                let own = told.extract_if(.., |other| *other == slot).count();
                assert_eq!(own, stale.claims as usize, "claims of {stale:?}");
            }
            assert_eq!(told, [], "claims on records that are gone");
            let held =
                self.reservations.iter().filter(|(_, reservation)| reservation.held.taken_over.is_some()).count()
                    + self.quarantine.iter().filter(|resting| resting.records.stale.is_some()).count()
                    + self.lingering.len()
                    + self.stale.iter().filter(|(_, stale)| stale.cleared).count();
            assert_eq!(ranged + held, self.stale.len(), "a stale record that nothing leads to");
        }
    }
}
