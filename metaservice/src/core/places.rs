//! Which segments take new objects, in the order in which they are asked.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use memcache_types::SegmentId;

use super::Core;
use super::clock::Millis;
use super::limits::PLACES_TRIED_MAX;
use super::node::Node;
use super::segment::Segment;
use super::slab::Slot;

type Shelf = BTreeSet<(u64, Reverse<SegmentId>, Slot<Segment>)>;

/// Segments by free bytes and by longest free run, so that a place is found without a look at all of them.
#[derive(Debug, Default)]
pub(super) struct Places {
    by_free: Shelf,
    by_run: Shelf,
    /// Segments whose memory rests, by when it does no longer.
    resting: BTreeSet<(Millis, Slot<Segment>)>,
    /// How many segments have each length.
    lengths: BTreeMap<u64, u32>,
}

impl Places {
    /// Length of the longest segment.
    pub(super) fn longest_segment(&self) -> Option<u64> {
        self.lengths.last_key_value().map(|(bytes, _)| *bytes)
    }
}

impl Core {
    /// A new segment takes objects as soon as its memory has rested.
    pub(super) fn open_places(&mut self, slot: Slot<Segment>) {
        let segment = &self.segments[slot];
        *self.places.lengths.entry(segment.bytes).or_default() += 1;
        if segment.usable_from > self.now {
            self.places.resting.insert((segment.usable_from, slot));
        }
        self.reshelve(slot);
    }

    /// A segment is gone.
    pub(super) fn close_places(&mut self, slot: Slot<Segment>) {
        let segment = &self.segments[slot];
        self.places.resting.remove(&(segment.usable_from, slot));
        if let Some(count) = self.places.lengths.get_mut(&segment.bytes) {
            *count -= 1;
            if *count == 0 {
                self.places.lengths.remove(&segment.bytes);
            }
        }
        self.reshelve(slot);
    }

    /// What a segment holds is known now: it takes objects when its memory has rested.
    pub(super) fn end_listing(&mut self, slot: Slot<Segment>, usable_from: Millis) {
        self.places.resting.remove(&(self.segments[slot].usable_from, slot));
        self.segments[slot].usable_from = usable_from;
        if usable_from > self.now {
            self.places.resting.insert((usable_from, slot));
        }
        self.reshelve(slot);
    }

    pub(super) fn end_rests(&mut self) {
        while let Some((until, slot)) = self.places.resting.first().copied()
            && until <= self.now
        {
            self.places.resting.pop_first();
            self.reshelve(slot);
        }
    }

    /// Whether new objects may be placed here.
    pub(super) fn is_open(&self, slot: Slot<Segment>) -> bool {
        let segment = &self.segments[slot];
        !segment.gone && segment.usable_from <= self.now && !self.is_draining(segment.node)
    }

    /// Brings a segment to where its free space and its state put it.
    pub(super) fn reshelve(&mut self, slot: Slot<Segment>) {
        let open = self.is_open(slot);
        let segment = &mut self.segments[slot];
        let now = open.then(|| (segment.space.free_bytes(), segment.space.longest_run()));
        let before = std::mem::replace(&mut segment.shelved, now);
        if before == now {
            return;
        }
        let id = Reverse(segment.id);
        let Places { by_free, by_run, .. } = &mut self.places;
        if let Some((free, run)) = before {
            by_free.remove(&(free, id, slot));
            by_run.remove(&(run, id, slot));
        }
        if let Some((free, run)) = now {
            by_free.insert((free, id, slot));
            by_run.insert((run, id, slot));
        }
    }

    /// Takes a run of a segment, if there is one that long; its offset.
    pub(super) fn take_run(&mut self, slot: Slot<Segment>, bytes: u64) -> Option<u64> {
        let offset = self.segments[slot].space.take(bytes)?;
        self.reshelve(slot);
        Some(offset)
    }

    /// Gives a run of a segment back.
    pub(super) fn give_run_back(&mut self, slot: Slot<Segment>, offset: u64, bytes: u64) {
        self.segments[slot].space.give_back(offset, bytes);
        self.segments[slot].may_have_holes();
        self.reshelve(slot);
    }

    /// An open segment with room for the extent on none of the nodes `not_on`: the one with the most free bytes, unless
    /// a good number of those are too fragmented; then the one with the longest free run.
    pub(super) fn roomiest(&self, bytes: u64, not_on: &[Slot<Node>]) -> Option<Slot<Segment>> {
        let fits = |(room, _, slot): &(u64, Reverse<SegmentId>, Slot<Segment>)| {
            let segment = &self.segments[*slot];
            *room >= bytes && segment.space.longest_run() >= bytes && !not_on.contains(&segment.node)
        };
        let first = self.places.by_free.iter().rev().take_while(|(free, ..)| *free >= bytes);
        let found = first.take(PLACES_TRIED_MAX + not_on.len()).find(|place| fits(place));
        let longest =
            || self.places.by_run.iter().rev().take_while(|(run, ..)| *run >= bytes).find(|place| fits(place));
        found.or_else(longest).map(|(_, _, slot)| *slot)
    }
}
