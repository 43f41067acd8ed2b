//! The orders between which the adaptive policy chooses, as shelves by class of use count give them.

use super::hazard::class_of;
use super::{Rank, Shelved, Shelves};
use crate::core::Millis;
use crate::core::slab::{Slab, Slot};

/// Number of orders.
pub(super) const ORDERS: usize = 3;
/// What was used once is to hold one part in so many of the bytes, as the small queue of S3-FIFO does.
const ONCE_PART: u64 = 10;

/// Which objects go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The least recently used one.
    Use,
    /// The one whose keeping is worth least.
    Value,
    /// Of those used once the oldest, while they hold a tenth of the bytes or more; else the least recently used one of
    /// the others. As near to S3-FIFO as lists by last use come.
    OnceFirst,
}

impl Order {
    pub(super) const ALL: [Self; ORDERS] = [Self::Use, Self::Value, Self::OnceFirst];

    /// Part of all uses by which a played cache must be ahead of the one that is followed before its order is. What is in a
    /// pool is that of the order before, so a change costs something at first; and where the orders are about equal, one more
    /// to change to is one more to be misled to.
    pub(super) const fn lead(self) -> f64 {
        match self {
            Self::Use | Self::Value => 0.002,
            Self::OnceFirst => 0.004,
        }
    }

    /// Shelves that are enough for this order alone.
    pub(super) fn shelves<T: Shelved>(self) -> Shelves<T> {
        match self {
            Self::Use => Shelves::new(|_| 0, false),
            Self::Value => Shelves::new(class_of, true),
            Self::OnceFirst => Shelves::new(|mark| class_of(mark).min(1), false),
        }
    }

    /// The object that goes first. `value` by class and age; `version` changes when it does.
    pub(super) fn victim<T: Shelved>(
        self,
        shelves: &mut Shelves<T>,
        slab: &Slab<T>,
        now: Millis,
        version: u64,
        value: impl Fn(usize, u64) -> f64,
    ) -> Option<(Rank, Slot<T>)> {
        let by_use = |slot: Slot<T>| ((0, slab[slot].used()), slot);
        match self {
            Self::Use => shelves.least_recently_used(slab, 0).map(by_use),
            Self::OnceFirst => shelves.once_first(slab, ONCE_PART).map(by_use),
            // Numbers that are not negative are in the order of their bits.
            Self::Value => shelves
                .least(slab, now, version, value)
                .map(|(value, slot)| ((value.to_bits(), slab[slot].used()), slot)),
        }
    }

    /// The objects in the order in which they would go now.
    pub(super) fn all<'a, T: Shelved>(
        self,
        shelves: &'a Shelves<T>,
        slab: &'a Slab<T>,
        now: Millis,
        value: impl Fn(usize, u64) -> f64,
    ) -> impl Iterator<Item = Slot<T>> + 'a {
        let by_use = (self == Self::Use).then(|| shelves.by_use(slab, 0));
        let by_value = (self == Self::Value).then(|| shelves.by_value(slab, now, value));
        let once_first = (self == Self::OnceFirst).then(|| shelves.by_once_first(slab, ONCE_PART));
        by_use.into_iter().flatten().chain(by_value.into_iter().flatten()).chain(once_first.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::list::{Links, linked};
    use crate::core::policy::shelves::shelved;
    use crate::core::policy::{MARK_MAX, Mark};

    #[derive(Debug)]
    struct Item {
        links: Links<Item>,
        used: u64,
        mark: Mark,
        bytes: u64,
    }

    linked!(Item);
    shelved!(Item);

    /// The marks of what goes, one after the other, from shelves that hold items of these marks, oldest first.
    fn victims(order: Order, mut shelves: Shelves<Item>, marks: &[Mark]) -> Vec<(u64, Mark)> {
        let mut slab = Slab::new();
        let at = |used: u64| Millis::new(used * 3000);
        for (used, mark) in (1..).zip(marks) {
            let slot = slab.insert(Item { links: Links::new(), used, mark: *mark, bytes: 100 });
            shelves.push(&mut slab, slot, at(used));
        }
        let less_with_age = |age: u64| 1e3 / f64::from(u32::try_from(age).unwrap_or(u32::MAX));
        let (now, value) = (at(1000), |class: usize, age: u64| if class == 2 { 0.5 } else { less_with_age(age) });
        let foretold: Vec<_> = order.all(&shelves, &slab, now, value).collect();
        let mut gone = Vec::new();
        while let Some((_, slot)) = order.victim(&mut shelves, &slab, now, 0, value) {
            assert_eq!(foretold[gone.len()], slot, "{order:?}");
            gone.push((slab[slot].used, slab[slot].mark));
            shelves.unlink(&mut slab, slot);
            slab.remove(slot);
        }
        assert_eq!((gone.len(), foretold.len()), (marks.len(), marks.len()), "{order:?}");
        gone
    }

    #[test]
    fn what_was_used_once_goes_first_while_it_holds_a_tenth() {
        let marks: Vec<Mark> = [2, 1, 9].into_iter().chain((0..26).map(|_| 3)).chain([1, 1, 1, MARK_MAX]).collect();
        let gone = victims(Order::OnceFirst, Order::Value.shelves(), &marks);
        // 4 of 33 are more than a tenth, 3 of 32 are not; and when few are left they are again.
        assert_eq!(gone[..5], [(2, 1), (1, 2), (3, 9), (30, 1), (4, 3)]);
        let others: Vec<_> = gone.iter().filter(|(_, mark)| *mark > 1).collect();
        assert!(others.is_sorted(), "the others by last use: {gone:?}");
        assert_eq!(gone.last(), Some(&(33, MARK_MAX)));
    }

    #[test]
    fn each_order_is_the_same_in_its_own_shelves_and_in_those_of_the_pool() {
        let marks: Vec<Mark> = (0..60u16).map(|number| 1 + number * 7 % 11 / 3 * (number % 5)).collect();
        for order in Order::ALL {
            let gone = victims(order, order.shelves(), &marks);
            assert_eq!(gone, victims(order, Order::Value.shelves(), &marks), "{order:?}");
            assert_eq!(gone.is_sorted(), order == Order::Use, "{order:?}");
        }
    }
}
