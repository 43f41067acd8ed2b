//! S3-FIFO (Yang et al., SOSP 2023): a small queue that new objects leave quickly unless they are used, a main queue, and
//! a memory of what left the small one.

use std::collections::VecDeque;

use super::ghosts::Ghosts;
use super::{Mark, Policy, Rank, Shelved, Shelves, Use};
use crate::core::Millis;
use crate::core::slab::{Slab, Slot};

/// Uses are counted up to this.
const USES_MAX: Mark = 0b11;
/// Bit of a mark: in the main queue.
const MAIN: Mark = 0b100;
/// The small queue is to hold one part in so many of the bytes.
const SMALL_PART: u64 = 10;

/// Marks hold the queue and the uses since the object came to it. Queues are kept per segment, memories per book.
///
/// An object under a lease is in no queue, and goes to the newest end of its own when the lease ends.
#[derive(Debug, Default)]
pub(in crate::core) struct S3Fifo {
    ghosts: Ghosts,
}

impl Policy for S3Fifo {
    const MOVES: bool = false;
    const AGES: bool = false;

    fn sealed(&mut self, seal: Use) -> Mark {
        if self.ghosts.take(seal.hash, seal.keys).is_some() { MAIN } else { 0 }
    }

    fn used(&mut self, _: Use, mark: Mark) -> Mark {
        mark & MAIN | (mark & USES_MAX).saturating_add(1).min(USES_MAX)
    }

    fn evicted(&mut self, eviction: Use, mark: Mark) {
        if mark & MAIN == 0 {
            self.ghosts.add(eviction.hash, mark, eviction.keys);
        }
    }

    fn lent(&mut self, _: u64) {}

    fn shelf_of(mark: Mark) -> usize {
        usize::from(mark & MAIN != 0)
    }

    fn victim<T: Shelved>(
        &mut self,
        now: Millis,
        shelves: &mut Shelves<T>,
        slab: &mut Slab<T>,
    ) -> Option<(Rank, Slot<T>)> {
        loop {
            let (small, main) = (shelves.bytes_of(0), shelves.bytes_of(1));
            let from_small = shelves.oldest_of(0).filter(|_| small >= (small + main) / SMALL_PART);
            let slot = from_small.or_else(|| shelves.oldest_of(1)).or_else(|| shelves.oldest_of(0))?;
            let mark = slab[slot].mark();
            let uses = mark & USES_MAX;
            // Each step takes a use away or moves an object to the main queue, so there is an end.
            let next = match mark & MAIN != 0 {
                true if uses > 0 => MAIN | (uses - 1),
                false if uses > 1 => MAIN,
                _ => return Some(((0, slab[slot].used()), slot)),
            };
            shelves.unlink(slab, slot);
            slab[slot].set_mark(next);
            shelves.push(slab, slot, now);
        }
    }

    fn order<'a, T: Shelved>(
        &'a self,
        _: Millis,
        shelves: &'a Shelves<T>,
        slab: &'a Slab<T>,
    ) -> impl Iterator<Item = Slot<T>> + 'a {
        let mut small = shelves.iter_oldest_of(0, slab).map(|slot| (slot, slab[slot].mark())).peekable();
        let mut main = shelves.iter_oldest_of(1, slab).map(|slot| (slot, slab[slot].mark()));
        let (mut small_bytes, mut main_bytes) = (shelves.bytes_of(0), shelves.bytes_of(1));
        // What would go to the newest end of the main queue on the way.
        let mut moved = VecDeque::new();
        std::iter::from_fn(move || {
            loop {
                let from_small = small.next_if(|_| small_bytes >= (small_bytes + main_bytes) / SMALL_PART);
                let next = from_small.or_else(|| main.next()).or_else(|| moved.pop_front()).or_else(|| small.next());
                let (slot, mark) = next?;
                let (bytes, uses) = (slab[slot].bytes(), mark & USES_MAX);
                if mark & MAIN != 0 {
                    if uses == 0 {
                        main_bytes -= bytes;
                        return Some(slot);
                    }
                    moved.push_back((slot, MAIN | (uses - 1)));
                } else {
                    small_bytes -= bytes;
                    if uses <= 1 {
                        return Some(slot);
                    }
                    main_bytes += bytes;
                    moved.push_back((slot, MAIN));
                }
            }
        })
    }
}
