//! The replicas of a key: a chain of objects on distinct nodes.

use super::Core;
use super::index::Entry;
use super::node::Node;
use super::object::Object;
use super::segment::Segment;
use super::slab::Slot;

impl Core {
    /// The replicas of a key, those on nodes that are gone included.
    pub(super) fn chain(&self, entry: Slot<Entry>) -> impl Iterator<Item = Slot<Object>> + '_ {
        std::iter::successors(self.index.get(entry).object, |slot| self.objects[*slot].sibling)
    }

    /// Whether an object can be read: its node is there.
    pub(super) fn is_live(&self, slot: Slot<Object>) -> bool {
        self.segment_of(slot).is_some_and(|segment| !segment.gone)
    }

    fn segment_of(&self, slot: Slot<Object>) -> Option<&Segment> {
        self.objects[slot].segment.map(|segment| &self.segments[segment])
    }

    /// The node of a replica, if that is there.
    pub(super) fn node_of(&self, slot: Slot<Object>) -> Option<Slot<Node>> {
        self.segment_of(slot).filter(|segment| !segment.gone).map(|segment| segment.node)
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
        // The first one is alone no longer. One that was sealed in this very call is in no list.
        let listed = first.filter(|first| self.objects[*first].sibling.is_none() && self.is_idle(*first));
        if let Some(first) = listed {
            self.leave_idle(first);
        }
        self.objects[slot].entry = Some(entry);
        self.objects[slot].sibling = first;
        self.index.get_mut(entry).object = Some(slot);
        if let Some(first) = listed {
            self.make_idle(first);
        }
        if first.is_none() {
            self.readable += 1;
        }
        self.replicas += 1;
        self.count_pinned(slot, true);
        if let Some(segment) = self.objects[slot].segment {
            self.segments[segment].objects += 1;
            self.segments[segment].unrecorded += u64::from(self.objects[slot].record.is_none());
        }
    }

    /// Takes a replica that is in no list of idle objects out of its chain: nobody finds it any more.
    pub(super) fn detach(&mut self, entry: Slot<Entry>, slot: Slot<Object>) {
        self.count_pinned(slot, false);
        let next = self.objects[slot].sibling.take();
        self.objects[slot].entry = None;
        let before = self.chain_before(entry, slot);
        match before {
            Some(before) => self.objects[before].sibling = next,
            None => self.index.get_mut(entry).object = next,
        }
        self.replicas -= 1;
        if let Some(segment) = self.objects[slot].segment {
            self.segments[segment].objects -= 1;
        }
        match self.index.get(entry).object {
            None => {
                self.readable -= 1;
                self.forget_pin(entry);
                self.index.forget_if_idle(entry);
            }
            Some(last) if self.objects[last].sibling.is_none() && self.is_idle(last) => {
                // It stood among those with siblings.
                self.leave_idle_of(last, true);
                self.make_idle(last);
            }
            Some(_) => {}
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
