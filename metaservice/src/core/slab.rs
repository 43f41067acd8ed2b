//! Items in one growing array, named by small typed numbers.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU32;
use std::ops::{Index, IndexMut};

/// Names an item of a [`Slab`] for as long as the item is there. Four bytes, also as an `Option`.
pub(super) struct Slot<T> {
    number: NonZeroU32,
    of: PhantomData<fn() -> T>,
}

impl<T> Slot<T> {
    fn new(index: usize) -> Self {
        let number = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
        Self { number: number.expect("limits keep every slab below 2^32 items"), of: PhantomData }
    }

    /// The item at the same position of another slab.
    pub(super) const fn beside<U>(self) -> Slot<U> {
        Slot { number: self.number, of: PhantomData }
    }

    fn index(self) -> usize {
        self.number.get() as usize - 1
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slot<T> {}

impl<T> PartialEq for Slot<T> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl<T> Eq for Slot<T> {}

impl<T> PartialOrd for Slot<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Slot<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.number.cmp(&other.number)
    }
}

impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.number)
    }
}

/// Reads many things before any of them is needed. Each read waits for memory, and nothing here depends on what was
/// read, so the waits overlap.
pub(super) fn warm(reads: impl Iterator<Item = usize>) {
    std::hint::black_box(reads.fold(0, |all, one| all ^ one));
}

/// Items of one kind. Slots of removed items are used again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    /// All but the last hold [`PART`] items. So growth moves none but the first few.
    parts: Vec<Vec<Option<T>>>,
    free: Vec<Slot<T>>,
}

/// Items of one part: many huge pages, of which the first and the last are seldom whole.
const PART: usize = 1 << 19;

/// Items of the first part that are moved as it grows. Then it has room for all of its items, most of which nobody
/// touches yet.
const FEW: usize = 1 << 12;

/// Items of the first part that have pages of their own size, so that small books take up little.
const SMALL: usize = 1 << 15;

impl<T> Slab<T> {
    pub(super) const fn new() -> Self {
        Self { parts: Vec::new(), free: Vec::new() }
    }

    /// Positions, used or free.
    fn positions(&self) -> usize {
        self.parts.last().map_or(0, |last| (self.parts.len() - 1) * PART + last.len())
    }

    fn position(&self, index: usize) -> Option<&T> {
        self.parts.get(index / PART)?.get(index % PART)?.as_ref()
    }

    fn position_mut(&mut self, index: usize) -> Option<&mut Option<T>> {
        self.parts.get_mut(index / PART)?.get_mut(index % PART)
    }

    pub(super) fn len(&self) -> usize {
        self.positions() - self.free.len()
    }

    pub(super) fn insert(&mut self, item: T) -> Slot<T> {
        if let Some(slot) = self.free.pop() {
            *self.position_mut(slot.index()).expect("slots name positions") = Some(item);
            return slot;
        }
        let index = self.positions();
        if index.is_multiple_of(PART) {
            self.parts.push(Vec::new());
        }
        let last = self.parts.last_mut().expect("there is one now");
        if last.len() == last.capacity() && index >= FEW {
            last.reserve_exact(PART - last.len());
            let small = if index < PART { SMALL.saturating_sub(last.len()) } else { 0 };
            memcache_pages::want_huge(&mut last.spare_capacity_mut()[small..]);
        }
        last.push(Some(item));
        Slot::new(index)
    }

    /// Takes an item out. Panics if it is gone already: a slot has one owner.
    pub(super) fn remove(&mut self, slot: Slot<T>) -> T {
        let item = self.position_mut(slot.index()).and_then(Option::take).expect("a slot in use");
        self.free.push(slot);
        item
    }

    pub(super) fn get(&self, slot: Slot<T>) -> Option<&T> {
        self.position(slot.index())
    }

    /// Reads something of an item. The value means nothing.
    pub(super) fn warm(&self, slot: Slot<T>) -> usize {
        usize::from(self.get(slot).is_some())
    }

    /// The slots in use among `count` positions from `start` on, and where to go on; `None` at the end.
    pub(super) fn walk(&self, start: usize, count: usize) -> (impl Iterator<Item = Slot<T>> + '_, Option<usize>) {
        let end = start.saturating_add(count).min(self.positions());
        let slots = (start.min(end)..end).filter(|index| self.position(*index).is_some()).map(Slot::new);
        (slots, (end < self.positions()).then_some(end))
    }

    /// The items with their slots, in slot order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot<T>, &T)> {
        let items = self.parts.iter().flatten().enumerate();
        items.filter_map(|(index, item)| Some((Slot::new(index), item.as_ref()?)))
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.parts.iter_mut().flatten().flatten()
    }
}

impl<T> Index<Slot<T>> for Slab<T> {
    type Output = T;

    fn index(&self, slot: Slot<T>) -> &T {
        self.position(slot.index()).expect("a slot in use")
    }
}

impl<T> IndexMut<Slot<T>> for Slab<T> {
    fn index_mut(&mut self, slot: Slot<T>) -> &mut T {
        self.position_mut(slot.index()).and_then(Option::as_mut).expect("a slot in use")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_items_take_no_whole_part() {
        let mut slab = Slab::new();
        for number in 0..FEW {
            slab.insert(number);
        }
        assert!(slab.parts[0].capacity() < 2 * FEW);
        slab.insert(FEW);
        assert_eq!(slab.parts[0].capacity(), PART);
    }

    #[test]
    fn items_of_all_parts_are_found_walked_and_replaced() {
        let mut slab = Slab::new();
        let slots: Vec<_> = (0..2 * PART + 5).map(|number| slab.insert(number)).collect();
        assert_eq!(slab.len(), 2 * PART + 5);
        assert!(slots.iter().enumerate().all(|(number, slot)| slab[*slot] == number));
        for number in [0, PART - 1, PART, 2 * PART + 4] {
            assert_eq!(slab.remove(slots[number]), number);
            assert_eq!(slab.get(slots[number]), None);
        }
        let left: Vec<_> = slab.iter().map(|(slot, number)| (slot.index(), *number)).collect();
        assert_eq!(left.len(), slab.len());
        assert!(left.iter().all(|(index, number)| index == number));
        let (mut walked, mut next) = (Vec::new(), Some(0));
        while let Some(start) = next {
            let (slots, after) = slab.walk(start, PART - 3);
            walked.extend(slots);
            next = after;
        }
        assert_eq!(walked, slab.iter().map(|(slot, _)| slot).collect::<Vec<_>>());
        assert_eq!(slab.insert(7), slots[2 * PART + 4]);
        slab.values_mut().for_each(|number| *number += 1);
        assert_eq!((slab[slots[2 * PART + 4]], slab[slots[PART + 1]]), (8, PART + 2));
        assert_eq!(slab.len(), 2 * PART + 2);
    }
}
