//! The replicas of a key: a chain of objects on distinct nodes.

use super::Core;
use super::hot::Extras;
use super::index::Entry;
use super::list::List;
use super::node::Node;
use super::object::Object;
use super::segment::Segment;
use super::slab::{Slab, Slot};

/// Where the replicas of a key stand that nobody reads, in the order in which they are evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shelf {
    /// With those of keys that have more than they should.
    Extra,
    /// With those of keys that have others.
    Surplus,
    /// With the last ones of their keys.
    Last,
}

/// How the replicas of a key stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    among: Shelf,
    extras: Extras,
}

/// Replicas of one segment whose keys have others, by last use; those of keys that have more than they should go first.
#[derive(Debug)]
pub(super) struct Surplus {
    pub(super) extra: List<Object>,
    pub(super) rest: List<Object>,
}

impl Surplus {
    pub(super) const fn new() -> Self {
        Self { extra: List::new(), rest: List::new() }
    }

    pub(super) fn oldest(&self) -> Option<Slot<Object>> {
        self.extra.oldest().or_else(|| self.rest.oldest())
    }

    pub(super) fn iter<'a>(&'a self, slab: &'a Slab<Object>) -> impl Iterator<Item = Slot<Object>> + 'a {
        self.rest.iter(slab).chain(self.extra.iter(slab))
    }

    pub(super) fn iter_oldest<'a>(&'a self, slab: &'a Slab<Object>) -> impl Iterator<Item = Slot<Object>> + 'a {
        self.extra.iter_oldest(slab).chain(self.rest.iter_oldest(slab))
    }
}

impl Core {
    /// The replicas of a key, those on nodes that are gone included.
    pub(super) fn chain(&self, entry: Slot<Entry>) -> impl Iterator<Item = Slot<Object>> + '_ {
        std::iter::successors(self.index.get(entry).object, |slot| self.objects[*slot].sibling)
    }

    /// Whether an object can be read: its node is there, and no floor is above it.
    pub(super) fn is_live(&self, slot: Slot<Object>) -> bool {
        self.live_segment(&self.objects[slot]).is_some()
    }

    /// The segment of an object that can be read.
    pub(super) fn live_segment(&self, object: &Object) -> Option<&Segment> {
        let own = object.segment.map(|segment| &self.segments[segment]).filter(|segment| !segment.gone);
        own.filter(|_| !object.entry.is_some_and(|entry| self.is_void(entry)))
    }

    /// The node of a replica, if that is there.
    pub(super) fn node_of(&self, slot: Slot<Object>) -> Option<Slot<Node>> {
        self.live_segment(&self.objects[slot]).map(|segment| segment.node)
    }

    /// Whether a replica can be read and stays: its node is there and is not being drained.
    pub(super) fn is_lasting(&self, slot: Slot<Object>) -> bool {
        self.node_of(slot).is_some_and(|node| !self.is_draining(node))
    }

    /// Replicas that can be read and stay.
    pub(super) fn lasting(&self, entry: Slot<Entry>) -> usize {
        self.chain(entry).filter(|object| self.is_lasting(*object)).count()
    }

    /// Whether a node has a replica of a key.
    pub(super) fn holds(&self, node: Slot<Node>, entry: Slot<Entry>) -> bool {
        self.chain(entry).any(|object| self.node_of(object) == Some(node))
    }

    /// Whether an object has no siblings.
    pub(super) fn is_alone(&self, slot: Slot<Object>) -> bool {
        let object = &self.objects[slot];
        object.sibling.is_none() && object.entry.is_none_or(|entry| self.index.get(entry).object == Some(slot))
    }

    /// Adds a replica that is in no list yet.
    pub(super) fn attach(&mut self, entry: Slot<Entry>, slot: Slot<Object>) {
        let first = self.index.get(entry).object;
        let before = first.map(|_| self.standing(entry));
        self.objects[slot].entry = Some(entry);
        self.objects[slot].sibling = first;
        self.index.get_mut(entry).object = Some(slot);
        if first.is_none() {
            let colour = self.sweep.colour();
            self.index.get_mut(entry).set_colour(colour);
            self.readable += 1;
        }
        self.replicas += 1;
        if let Some(before) = before {
            self.change_standing(entry, before);
            self.watch_extra(entry, slot);
        }
        self.count_pinned(slot, true);
        let object = &self.objects[slot];
        if let Some(segment) = object.segment {
            let segment = &mut self.segments[segment];
            segment.objects += 1;
            segment.unrecorded += u64::from(object.record.is_none());
            segment.add_to_row(object.offset, slot);
        }
    }

    /// Takes a replica that is in no list of idle objects out of its chain: nobody finds it any more.
    pub(super) fn detach(&mut self, entry: Slot<Entry>, slot: Slot<Object>) {
        self.count_pinned(slot, false);
        let standing = (!self.is_alone(slot)).then(|| self.standing(entry));
        let next = self.objects[slot].sibling.take();
        self.objects[slot].entry = None;
        let before = self.chain_before(entry, slot);
        match before {
            Some(before) => self.objects[before].sibling = next,
            None => self.index.get_mut(entry).object = next,
        }
        self.count_hidden(entry, self.objects[slot].segment, standing.is_none());
        self.replicas -= 1;
        if let Some(segment) = self.objects[slot].segment {
            self.segments[segment].objects -= 1;
        }
        if let Some(standing) = standing {
            self.change_standing(entry, standing);
        } else {
            self.readable -= 1;
            self.forget_pin(entry);
            self.index.forget_if_idle(entry);
        }
    }

    /// How the replicas of a readable key stand: before they change, or how many there should be does.
    pub(super) fn standing(&self, entry: Slot<Entry>) -> Standing {
        let extras = self.extras_of(entry);
        let is_alone = self.chain(entry).nth(1).is_none();
        let among = match extras.replicas {
            _ if is_alone => Shelf::Last,
            0 => Shelf::Surplus,
            _ => Shelf::Extra,
        };
        Standing { among, extras }
    }

    /// The replicas of a readable key, or how many there should be, changed: all go where they belong now. One that was
    /// sealed in this very call is in no list.
    pub(super) fn change_standing(&mut self, entry: Slot<Entry>, before: Standing) {
        let after = self.standing(entry);
        self.extras.replicas = self.extras.replicas + after.extras.replicas - before.extras.replicas;
        self.extras.bytes = self.extras.bytes + after.extras.bytes - before.extras.bytes;
        if after.among == before.among {
            return;
        }
        let mut next = self.index.get(entry).object;
        while let Some(slot) = next {
            next = self.objects[slot].sibling;
            if self.is_idle(slot) {
                self.leave_idle_of(slot, before.among);
                self.make_idle(slot);
            }
        }
    }

    /// Where a replica stands, or would, when nobody reads it.
    pub(super) fn shelf_of(&self, slot: Slot<Object>) -> Shelf {
        match self.objects[slot].entry {
            Some(entry) if !self.is_alone(slot) => self.standing(entry).among,
            _ => Shelf::Last,
        }
    }

    fn chain_before(&self, entry: Slot<Entry>, slot: Slot<Object>) -> Option<Slot<Object>> {
        let first = self.index.get(entry).object.filter(|first| *first != slot)?;
        std::iter::successors(Some(first), |object| self.objects[*object].sibling)
            .find(|object| self.objects[*object].sibling == Some(slot))
    }

    /// Whether an object stands in one of the lists of idle objects: not leased, and not sealed in this very call.
    pub(super) fn is_idle(&self, slot: Slot<Object>) -> bool {
        let object = &self.objects[slot];
        object.leases == 0 && object.used() != 0
    }
}
