//! The objects of one segment in the order in which they lie.
//!
//! Nothing else in the book tells which object lies beside which, and that is asked only where a long run has to be made
//! among many objects. So a row is made when it is asked for the first time, in steps of bounded length, kept as objects
//! come and go, and taken apart in steps when nobody has asked for a while: a pool that never asks pays nothing.

use std::collections::BTreeMap;

use super::Core;
use super::clock::Millis;
use super::limits::{ROW_ALONE_MS, ROW_UNASKED_MS, TICK_ROW_FORGOTTEN_MAX};
use super::object::Object;
use super::search::Search;
use super::segment::Segment;
use super::slab::Slot;

/// Places gone through one after the other in the time of a look at an object.
const PLACES_A_LOOK: usize = 8;

/// First byte and object, for the objects of one segment.
#[derive(Debug)]
pub(super) struct Row {
    objects: BTreeMap<u64, Slot<Object>>,
    /// Where the walk through the objects of the whole book has come; `None`: those of the segment are all here.
    walk: Option<usize>,
    asked: Millis,
    /// Until when extents of this length or longer are not looked for in the order in which objects would go: not long ago
    /// that was no use.
    scattered: (u64, Millis),
}

impl Row {
    /// Whether holes for such an extent are looked for here alone.
    pub(super) fn is_scattered(&self, bytes: u64, now: Millis) -> bool {
        self.is_whole() && bytes >= self.scattered.0 && now < self.scattered.1
    }

    /// There was no hole for such an extent in the order in which objects would go.
    pub(super) fn note_scattered(&mut self, bytes: u64, now: Millis) {
        let shortest = if now < self.scattered.1 { bytes.min(self.scattered.0) } else { bytes };
        self.scattered = (shortest, now.plus(ROW_ALONE_MS));
    }

    /// Whether all objects of the segment are here.
    pub(super) const fn is_whole(&self) -> bool {
        self.walk.is_none()
    }

    /// Objects that begin before a byte, the last one first.
    pub(super) fn before(&self, offset: u64) -> impl Iterator<Item = (u64, Slot<Object>)> + '_ {
        self.objects.range(..offset).rev().map(|(offset, object)| (*offset, *object))
    }

    /// Objects that begin at a byte or after it.
    pub(super) fn from(&self, offset: u64) -> impl Iterator<Item = (u64, Slot<Object>)> + '_ {
        self.objects.range(offset..).map(|(offset, object)| (*offset, *object))
    }
}

impl Segment {
    /// An object lies here from now on.
    pub(super) fn add_to_row(&mut self, offset: u64, object: Slot<Object>) {
        if let Some(row) = &mut self.row {
            row.objects.insert(offset, object);
        }
    }

    /// An object lies here no longer.
    pub(super) fn take_from_row(&mut self, offset: u64) {
        if let Some(row) = &mut self.row {
            row.objects.remove(&offset);
        }
    }
}

impl Core {
    /// Goes on with the row of a segment; whether it is whole now.
    pub(super) fn extend_row(&mut self, slot: Slot<Segment>, search: &mut Search) -> bool {
        let (now, step) = (self.now, self.settings.search.row_step);
        let Self { segments, objects, rows, .. } = self;
        let begin = || {
            rows.insert(slot);
            Box::new(Row { objects: BTreeMap::new(), walk: Some(0), asked: now, scattered: (0, now) })
        };
        let row = segments[slot].row.get_or_insert_with(begin);
        row.asked = now;
        if let Some(start) = row.walk {
            search.spend(step / PLACES_A_LOOK);
            let (seen, next) = objects.walk(start, step);
            let own = seen.filter(|object| objects[*object].segment == Some(slot));
            row.objects.extend(own.map(|object| (objects[object].offset, object)));
            row.walk = next;
        }
        row.is_whole()
    }

    /// Takes rows that nobody has asked for a step further apart, and goes on with those that are not whole. True: one
    /// tick was not enough.
    pub(super) fn tend_rows(&mut self) -> bool {
        let mut more = false;
        for slot in self.rows.iter().copied().collect::<Vec<_>>() {
            let Some(row) = &mut self.segments[slot].row else { continue };
            if self.now.since(row.asked) < ROW_UNASKED_MS {
                let asked = row.asked;
                more |= !row.is_whole() && !self.extend_row(slot, &mut Search::new(0));
                if let Some(row) = &mut self.segments[slot].row {
                    row.asked = asked;
                }
                continue;
            }
            // Who asks now begins anew.
            row.walk = Some(0);
            for _ in 0..TICK_ROW_FORGOTTEN_MAX {
                row.objects.pop_first();
            }
            if row.objects.is_empty() {
                self.segments[slot].row = None;
                self.rows.remove(&slot);
            } else {
                more = true;
            }
        }
        more
    }
}

#[cfg(test)]
impl Core {
    /// Panics if a row says something else than the objects.
    pub(super) fn check_rows(&self) {
        for (slot, segment) in self.segments.iter().filter(|(_, segment)| !segment.gone) {
            assert_eq!(segment.row.is_some(), self.rows.contains(&slot));
            let Some(row) = &segment.row else { continue };
            let own = self.objects.iter().filter(|(_, object)| object.segment == Some(slot));
            let own: BTreeMap<u64, Slot<Object>> = own.map(|(object, of)| (of.offset, object)).collect();
            assert!(
                row.objects.iter().all(|(offset, object)| own.get(offset) == Some(object)),
                "an object that is gone"
            );
            assert!(!row.is_whole() || row.objects.len() == own.len(), "an object is missing");
        }
        assert!(self.rows.iter().all(|slot| self.segments.get(*slot).is_some()));
    }
}
