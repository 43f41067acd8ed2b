//! Which objects to evict so that a hole of a given length appears, where single free runs are too short.

use std::collections::BTreeMap;

use super::Core;
use super::limits::HOLE_OBJECTS_MAX;
use super::object::Object;
use super::segment::Segment;
use super::slab::Slot;

/// What it takes to make a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hole {
    /// These go.
    Of(Vec<Slot<Object>>),
    /// There is none to be had: what may not be evicted is in the way everywhere.
    Never,
    /// Not among those that were looked at.
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

impl Core {
    /// The objects of a segment to evict for a hole of `bytes` bytes. Objects are taken in the order in which they would
    /// be evicted anyway until there is a hole among them: by last use, the newest of them is as old as it
    /// can be. Only those go that make the hole, and of those the fewest bytes. With `pinned` those under soft pins follow.
    pub(super) fn hole(&self, slot: Slot<Segment>, bytes: u64, pinned: bool) -> Hole {
        let segment = &self.segments[slot];
        let idle = self.policy.order(self.now, &segment.idle, &self.objects);
        let soft = pinned.then(|| segment.pinned.iter_soft()).into_iter().flatten();
        let victims = segment.surplus.iter_oldest(&self.objects).chain(idle).chain(soft);
        let mut merged = Merged::default();
        let mut taken: BTreeMap<u64, (u64, Slot<Object>)> = BTreeMap::new();
        for victim in victims {
            if taken.len() >= HOLE_OBJECTS_MAX {
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
}

/// The window of neighbours with the fewest bytes that makes a hole of `bytes` bytes within a run that is long enough.
fn cheapest(taken: &BTreeMap<u64, (u64, Slot<Object>)>, from: u64, to: u64, bytes: u64) -> Vec<Slot<Object>> {
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
