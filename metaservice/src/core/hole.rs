//! Which objects to evict so that a hole of a given length appears, where single free runs are too short.

use std::collections::BTreeMap;

use super::Core;
use super::object::Object;
use super::pins::Turn;
use super::search::Search;
use super::segment::Segment;
use super::slab::Slot;

/// What it takes to make a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hole {
    /// These go.
    Of(Vec<Slot<Object>>),
    /// There is none to be had: what may not be evicted is in the way everywhere.
    Never,
    /// Not among those that were looked at. Nothing goes on a guess.
    Unknown,
}

/// Free runs that there would be without some objects, neighbours merged: first byte and end.
#[derive(Debug, Default)]
struct Merged {
    by_start: BTreeMap<u64, u64>,
    by_end: BTreeMap<u64, u64>,
}

impl Merged {
    /// Adds a run, with what is free beside it; the run it becomes.
    fn add(&mut self, segment: &Segment, mut start: u64, mut end: u64) -> (u64, u64) {
        loop {
            let (from, to) = (start, end);
            if let Some(before) = self.by_end.remove(&start) {
                self.by_start.remove(&before);
                start = before;
            }
            if let Some(after) = self.by_start.remove(&end) {
                self.by_end.remove(&after);
                end = after;
            }
            // Not before: the runs that are here already have what was free beside them.
            if let Some(before) = segment.space.free_run_before(start) {
                start = before;
            }
            if let Some(after) = segment.space.free_run_from(end) {
                end = after;
            }
            if (from, to) == (start, end) {
                self.by_start.insert(start, end);
                self.by_end.insert(end, start);
                return (start, end);
            }
        }
    }
}

/// Objects of a segment by their first byte, with their ends.
type Taken = BTreeMap<u64, (u64, Slot<Object>)>;

impl Core {
    /// The objects of a segment to evict for a hole of `bytes` bytes; nothing is evicted. With `pinned` those under soft pins
    /// follow.
    ///
    /// Objects are taken in the order in which they would be evicted anyway until there is a hole among them: by last
    /// use, the newest of them is as old as it can be. Only those go that make the hole, and of those the fewest bytes.
    /// Where that takes too many, the hole is made beside the first of them beside which one can be.
    pub(super) fn find_hole(&mut self, slot: Slot<Segment>, bytes: u64, pinned: bool, search: &mut Search) -> Hole {
        if bytes >= self.segments[slot].no_hole[usize::from(pinned)] {
            return Hole::Never;
        }
        let now = self.now;
        let is_scattered = self.segments[slot].row.as_ref().is_some_and(|row| row.is_scattered(bytes, now));
        let mut hole = if is_scattered { Hole::Unknown } else { self.hole_in_order(slot, bytes, pinned, search) };
        if hole == Hole::Unknown && search.looks_left() > 0 {
            let is_whole = self.extend_row(slot, search);
            if let Some(row) = self.segments[slot].row.as_mut().filter(|_| !is_scattered) {
                row.note_scattered(bytes, now);
            }
            if is_whole {
                hole = if pinned {
                    self.hole_beside_pins(slot, bytes, search)
                } else {
                    self.hole_beside(slot, bytes, search)
                };
            }
        }
        if hole == Hole::Never {
            self.segments[slot].no_hole[usize::from(pinned)] = bytes;
        }
        hole
    }

    fn hole_in_order(&self, slot: Slot<Segment>, bytes: u64, pinned: bool, search: &mut Search) -> Hole {
        let segment = &self.segments[slot];
        let soft = pinned.then(|| segment.pinned.iter_soft()).into_iter().flatten();
        let mut merged = Merged::default();
        let mut taken = Taken::new();
        for victim in self.victims_of(segment).chain(soft) {
            if taken.len() >= self.settings.search.in_order || !search.look() {
                return Hole::Unknown;
            }
            let object = &self.objects[victim];
            let end = object.offset + object.extent_bytes();
            taken.insert(object.offset, (end, victim));
            let (from, to) = merged.add(segment, object.offset, end);
            if to - from >= bytes {
                return Hole::Of(cheapest(&taken, from, to, bytes));
            }
        }
        Hole::Never
    }

    /// Objects of a segment in the order in which they would be evicted.
    fn victims_of<'a>(&'a self, segment: &'a Segment) -> impl Iterator<Item = Slot<Object>> + 'a {
        let idle = self.policy.order(self.now, &segment.idle, &self.objects);
        segment.surplus.iter_oldest(&self.objects).chain(idle)
    }

    fn hole_beside(&self, slot: Slot<Segment>, bytes: u64, search: &mut Search) -> Hole {
        let mut too_short = BTreeMap::new();
        for victim in self.victims_of(&self.segments[slot]) {
            if !search.look() {
                return Hole::Unknown;
            }
            let offset = self.objects[victim].offset;
            if too_short.range(..=offset).next_back().is_some_and(|(_, end)| offset < *end) {
                continue;
            }
            match self.gap_around(slot, victim, bytes, None, search) {
                Some((from, to, taken)) if to - from >= bytes => {
                    return Hole::Of(cheapest(&taken, from, to, bytes));
                }
                Some((from, to, _)) => too_short.insert(from, to),
                None => return Hole::Unknown,
            };
        }
        Hole::Never
    }

    /// There is no hole among objects without pins. One with the pins that end soonest: without the last of them there
    /// is none, so it lies around that one.
    fn hole_beside_pins(&self, slot: Slot<Segment>, bytes: u64, search: &mut Search) -> Hole {
        for (turn, victim) in self.segments[slot].pinned.iter_soft_turns() {
            match self.gap_around(slot, victim, bytes, Some(turn), search) {
                Some((from, to, taken)) if to - from >= bytes => {
                    return Hole::Of(cheapest(&taken, from, to, bytes));
                }
                Some(_) => {}
                None => return Hole::Unknown,
            }
        }
        Hole::Never
    }

    /// The run around an object that there would be without all objects that may go, up to `bytes` bytes to either side,
    /// and those objects. `None`: it takes too many looks.
    fn gap_around(
        &self,
        slot: Slot<Segment>,
        middle: Slot<Object>,
        bytes: u64,
        turn: Option<Turn>,
        search: &mut Search,
    ) -> Option<(u64, u64, Taken)> {
        let segment = &self.segments[slot];
        let row = segment.row.as_ref().filter(|row| row.is_whole())?;
        let end_of = |object: Slot<Object>| self.objects[object].offset + self.objects[object].extent_bytes();
        let (begin, end) = (self.objects[middle].offset, end_of(middle));
        let free_before = |from: u64| segment.space.free_run_before(from).unwrap_or(from);
        let free_after = |to: u64| segment.space.free_run_from(to).unwrap_or(to);
        let mut taken = Taken::from([(begin, (end, middle))]);
        let (mut from, mut to) = (free_before(begin), free_after(end));
        for (offset, object) in row.before(begin) {
            let its_end = end_of(object);
            if begin - from >= bytes || its_end != from || !self.may_go(object, turn) {
                break;
            }
            if !search.look() {
                return None;
            }
            taken.insert(offset, (its_end, object));
            from = free_before(offset);
        }
        for (offset, object) in row.from(end) {
            if to - end >= bytes || offset != to || !self.may_go(object, turn) {
                break;
            }
            if !search.look() {
                return None;
            }
            let its_end = end_of(object);
            taken.insert(offset, (its_end, object));
            to = free_after(its_end);
        }
        Some((from, to, taken))
    }
}

/// The window of neighbours with the fewest bytes that makes a hole of `bytes` bytes within a run that is long enough.
fn cheapest(taken: &Taken, from: u64, to: u64, bytes: u64) -> Vec<Slot<Object>> {
    let row: Vec<(u64, u64, Slot<Object>)> =
        taken.range(from..to).map(|(start, (end, object))| (*start, *end, *object)).collect();
    let hole_from = |first: usize| if first == 0 { from } else { row[first - 1].1 };
    let (mut best, mut last, mut cost) = (None, 0, 0);
    for first in 0..row.len() {
        // The window grows until the hole is long enough; then it loses its first object.
        while last < row.len() && (last <= first || row.get(last).map_or(to, |next| next.0) - hole_from(first) < bytes)
        {
            cost += row[last].1 - row[last].0;
            last += 1;
        }
        if row.get(last).map_or(to, |next| next.0) - hole_from(first) >= bytes
            && best.is_none_or(|(least, _, _)| cost < least)
        {
            best = Some((cost, first, last));
        }
        cost -= row[first].1 - row[first].0;
    }
    best.map_or_else(Vec::new, |(_, first, last)| row[first..last].iter().map(|(_, _, object)| *object).collect())
}
