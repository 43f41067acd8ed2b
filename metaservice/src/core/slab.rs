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
    items: Vec<Option<T>>,
    free: Vec<Slot<T>>,
}

impl<T> Slab<T> {
    pub(super) const fn new() -> Self {
        Self { items: Vec::new(), free: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, item: T) -> Slot<T> {
        if let Some(slot) = self.free.pop() {
            self.items[slot.index()] = Some(item);
            return slot;
        }
        self.items.push(Some(item));
        Slot::new(self.items.len() - 1)
    }

    /// Takes an item out. Panics if it is gone already: a slot has one owner.
    pub(super) fn remove(&mut self, slot: Slot<T>) -> T {
        let item = self.items[slot.index()].take().expect("a slot in use");
        self.free.push(slot);
        item
    }

    pub(super) fn get(&self, slot: Slot<T>) -> Option<&T> {
        self.items.get(slot.index())?.as_ref()
    }

    /// Reads something of an item. The value means nothing.
    pub(super) fn warm(&self, slot: Slot<T>) -> usize {
        usize::from(self.get(slot).is_some())
    }

    /// The slots in use among `count` positions from `start` on, and where to go on; `None` at the end.
    pub(super) fn walk(&self, start: usize, count: usize) -> (impl Iterator<Item = Slot<T>> + '_, Option<usize>) {
        let end = start.saturating_add(count).min(self.items.len());
        let slots = (start.min(end)..end).filter(|index| self.items[*index].is_some()).map(Slot::new);
        (slots, (end < self.items.len()).then_some(end))
    }

    /// The items with their slots, in slot order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot<T>, &T)> {
        self.items.iter().enumerate().filter_map(|(index, item)| Some((Slot::new(index), item.as_ref()?)))
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.items.iter_mut().flatten()
    }
}

impl<T> Index<Slot<T>> for Slab<T> {
    type Output = T;

    fn index(&self, slot: Slot<T>) -> &T {
        self.items[slot.index()].as_ref().expect("a slot in use")
    }
}

impl<T> IndexMut<Slot<T>> for Slab<T> {
    fn index_mut(&mut self, slot: Slot<T>) -> &mut T {
        self.items[slot.index()].as_mut().expect("a slot in use")
    }
}
