//! The object whose keeping is worth least goes first, or the least recently used one, or what was used once: whichever
//! serves most.
//!
//! All [orders](super::order::Order) are played on a sample of the keys all the time, and the objects themselves stand so that
//! any of them can be followed from one victim to the next.

use super::ghosts::Ghosts;
use super::hazard::class_of;
use super::tracker::Tracker;
use super::{MARK_MAX, Mark, Policy, Rank, Shelved, Shelves, Use};
use crate::core::Millis;
use crate::core::slab::{Slab, Slot};

/// Marks count uses. They are remembered when an object is evicted, and go on when it comes back.
#[derive(Debug)]
pub(in crate::core) struct Adaptive {
    tracker: Tracker,
    ghosts: Ghosts,
}

impl Default for Adaptive {
    fn default() -> Self {
        Self { tracker: Tracker::new(), ghosts: Ghosts::default() }
    }
}

impl Policy for Adaptive {
    const MOVES: bool = true;
    const AGES: bool = true;

    fn sealed(&mut self, seal: Use) -> Mark {
        let before = self.ghosts.take(seal.hash, u64::MAX).unwrap_or(0);
        let mark = before.saturating_add(1).min(MARK_MAX);
        self.tracker.watch(seal, mark);
        mark
    }

    fn used(&mut self, usage: Use, mark: Mark) -> Mark {
        let mark = mark.saturating_add(1).min(MARK_MAX);
        self.tracker.watch(usage, mark);
        mark
    }

    fn evicted(&mut self, eviction: Use, mark: Mark) {
        self.ghosts.add(eviction.hash, mark, eviction.keys);
    }

    fn lent(&mut self, bytes: u64) {
        self.tracker.lent(bytes);
    }

    fn shelf_of(mark: Mark) -> usize {
        class_of(mark)
    }

    fn victim<T: Shelved>(
        &mut self,
        now: Millis,
        shelves: &mut Shelves<T>,
        slab: &mut Slab<T>,
    ) -> Option<(Rank, Slot<T>)> {
        let tracker = &self.tracker;
        let value = |class, age| tracker.value(class, age);
        tracker.follows().victim(shelves, slab, now, tracker.version(), value)
    }

    fn order<'a, T: Shelved>(
        &'a self,
        now: Millis,
        shelves: &'a Shelves<T>,
        slab: &'a Slab<T>,
    ) -> impl Iterator<Item = Slot<T>> + 'a {
        self.tracker.follows().all(shelves, slab, now, |class, age| self.tracker.value(class, age))
    }
}
