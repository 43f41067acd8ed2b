//! The least recently used object goes first.

use super::{Mark, Policy, Rank, Shelved, Shelves, Use};
use crate::core::Millis;
use crate::core::slab::{Slab, Slot};

/// Remembers nothing but the order of use.
#[derive(Debug, Default)]
pub(in crate::core) struct Lru;

impl Policy for Lru {
    const MOVES: bool = true;
    const AGES: bool = false;

    fn sealed(&mut self, _: Use) -> Mark {
        0
    }

    fn used(&mut self, _: Use, mark: Mark) -> Mark {
        mark
    }

    fn evicted(&mut self, _: Use, _: Mark) {}

    fn lent(&mut self, _: u64) {}

    fn shelf_of(_: Mark) -> usize {
        0
    }

    fn victim<T: Shelved>(
        &mut self,
        _: Millis,
        shelves: &mut Shelves<T>,
        slab: &mut Slab<T>,
    ) -> Option<(Rank, Slot<T>)> {
        shelves.least_recently_used(slab, 0).map(|slot| ((0, slab[slot].used()), slot))
    }

    fn order<'a, T: Shelved>(
        &'a self,
        _: Millis,
        shelves: &'a Shelves<T>,
        slab: &'a Slab<T>,
    ) -> impl Iterator<Item = Slot<T>> + 'a {
        shelves.by_use(slab, 0)
    }
}
