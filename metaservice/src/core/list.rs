//! Order among items of a slab, kept inside the items: moving one costs no allocation.

use super::slab::{Slab, Slot};

/// An item's neighbours in the one list it is in.
#[derive(Debug)]
pub(super) struct Links<T> {
    newer: Option<Slot<T>>,
    older: Option<Slot<T>>,
}

impl<T> Links<T> {
    pub(super) const fn new() -> Self {
        Self { newer: None, older: None }
    }
}

/// An item that can stand in a [`List`].
pub(super) trait Linked: Sized {
    fn links(&mut self) -> &mut Links<Self>;
    fn older(&self) -> Option<Slot<Self>>;
    fn newer(&self) -> Option<Slot<Self>>;
}

macro_rules! linked {
    ($item:ty) => {
        impl $crate::core::list::Linked for $item {
            fn links(&mut self) -> &mut $crate::core::list::Links<Self> {
                &mut self.links
            }

            fn older(&self) -> Option<$crate::core::slab::Slot<Self>> {
                self.links.older()
            }

            fn newer(&self) -> Option<$crate::core::slab::Slot<Self>> {
                self.links.newer()
            }
        }
    };
}
pub(super) use linked;

impl<T> Links<T> {
    pub(super) const fn older(&self) -> Option<Slot<T>> {
        self.older
    }

    pub(super) const fn newer(&self) -> Option<Slot<T>> {
        self.newer
    }

    /// Both neighbours.
    pub(super) const fn both(&self) -> [Option<Slot<T>>; 2] {
        [self.newer, self.older]
    }
}

/// From newest to oldest.
#[derive(Debug)]
pub(super) struct List<T> {
    newest: Option<Slot<T>>,
    oldest: Option<Slot<T>>,
}

impl<T: Linked> List<T> {
    pub(super) const fn new() -> Self {
        Self { newest: None, oldest: None }
    }

    pub(super) const fn oldest(&self) -> Option<Slot<T>> {
        self.oldest
    }

    /// Puts an item that is in no list at the newest end.
    pub(super) fn push(&mut self, slab: &mut Slab<T>, slot: Slot<T>) {
        *slab[slot].links() = Links { newer: None, older: self.newest };
        match self.newest {
            Some(newest) => slab[newest].links().newer = Some(slot),
            None => self.oldest = Some(slot),
        }
        self.newest = Some(slot);
    }

    /// Takes an item of this list out of it.
    pub(super) fn unlink(&mut self, slab: &mut Slab<T>, slot: Slot<T>) {
        if unlink_inner(slab, slot) {
            return;
        }
        let Links { newer, older } = std::mem::replace(slab[slot].links(), Links::new());
        match newer {
            Some(newer) => slab[newer].links().older = older,
            None => self.newest = older,
        }
        match older {
            Some(older) => slab[older].links().newer = newer,
            None => self.oldest = newer,
        }
    }

    /// The items from oldest to newest.
    pub(super) fn iter_oldest<'a>(&self, slab: &'a Slab<T>) -> impl Iterator<Item = Slot<T>> + 'a
    where
        T: 'a,
    {
        std::iter::successors(self.oldest, |slot| slab[*slot].newer())
    }

    /// Puts all items of another list, in their order, at the newest end.
    pub(super) fn append_newer(&mut self, slab: &mut Slab<T>, newer: &Self) {
        let (Some(first), Some(newest)) = (newer.oldest, newer.newest) else { return };
        match self.newest {
            Some(last) => {
                slab[last].links().newer = Some(first);
                slab[first].links().older = Some(last);
            }
            None => self.oldest = Some(first),
        }
        self.newest = Some(newest);
    }

    /// The items from newest to oldest.
    pub(super) fn iter<'a>(&self, slab: &'a Slab<T>) -> impl Iterator<Item = Slot<T>> + 'a
    where
        T: 'a,
    {
        std::iter::successors(self.newest, |slot| slab[*slot].older())
    }
}

/// Takes an item out of the list that it is in, whichever that is, unless it stands at one of its ends.
pub(super) fn unlink_inner<T: Linked>(slab: &mut Slab<T>, slot: Slot<T>) -> bool {
    let item = &mut slab[slot];
    let Links { newer: Some(newer), older: Some(older) } = *item.links() else { return false };
    *item.links() = Links::new();
    slab[newer].links().older = Some(older);
    slab[older].links().newer = Some(newer);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Item {
        name: u8,
        links: Links<Item>,
    }

    linked!(Item);

    fn names(list: &List<Item>, slab: &Slab<Item>) -> Vec<u8> {
        list.iter(slab).map(|slot| slab[slot].name).collect()
    }

    #[test]
    fn items_leave_from_the_ends_and_the_middle() {
        let mut slab = Slab::new();
        let mut list = List::new();
        let slots: Vec<_> = (0..4).map(|name| slab.insert(Item { name, links: Links::new() })).collect();
        for slot in &slots {
            list.push(&mut slab, *slot);
        }
        assert_eq!(names(&list, &slab), [3, 2, 1, 0]);
        list.unlink(&mut slab, slots[2]);
        assert_eq!(names(&list, &slab), [3, 1, 0]);
        list.unlink(&mut slab, slots[0]);
        list.unlink(&mut slab, slots[3]);
        assert_eq!((list.oldest(), list.newest), (Some(slots[1]), Some(slots[1])));
        list.unlink(&mut slab, slots[1]);
        assert_eq!(list.oldest(), None);
        list.push(&mut slab, slots[2]);
        assert_eq!(names(&list, &slab), [2]);
        let mut other = List::new();
        other.append_newer(&mut slab, &List::new());
        other.append_newer(&mut slab, &list);
        let mut newer = List::new();
        newer.push(&mut slab, slots[0]);
        newer.push(&mut slab, slots[1]);
        other.append_newer(&mut slab, &newer);
        assert_eq!(names(&other, &slab), [1, 0, 2]);
        other.unlink(&mut slab, slots[0]);
        assert_eq!((names(&other, &slab), other.oldest()), (vec![1, 2], Some(slots[2])));
    }
}
