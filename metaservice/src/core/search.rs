//! How far one call looks for room where no run of free bytes is long enough.

use std::collections::BTreeMap;

use super::limits::{CALL_LOOKS_MAX, HOLE_OBJECTS_MAX, ROW_STEP, SEGMENTS_TRIED_MAX};
use super::node::Node;
use super::slab::Slot;

/// The bounds of such a search. What is not found within them is not there: the put has no room, and nothing is evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SearchLimits {
    /// Objects of one segment looked at in the order in which they would go.
    pub in_order: usize,
    /// Objects looked at by one call, in that order and in the order in which they lie.
    pub looks: usize,
    /// Segments in which room is looked for, for one replica of one key.
    pub segments: usize,
    /// Places of objects that one step goes through to learn in which order those of a segment lie.
    pub row_step: usize,
}

impl SearchLimits {
    /// As in service.
    pub const DEFAULT: Self =
        Self { in_order: HOLE_OBJECTS_MAX, looks: CALL_LOOKS_MAX, segments: SEGMENTS_TRIED_MAX, row_step: ROW_STEP };
}

/// What a call has left to look for room, and what it knows.
#[derive(Debug)]
pub(super) struct Search {
    /// Objects that it may still look at.
    looks: usize,
    /// The shortest extent that found no room, by the nodes that were left out.
    nowhere: BTreeMap<Vec<Slot<Node>>, u64>,
}

impl Search {
    pub(super) const fn new(looks: usize) -> Self {
        Self { looks, nowhere: BTreeMap::new() }
    }

    pub(super) const fn looks_left(&self) -> usize {
        self.looks
    }

    /// Takes so many looks.
    pub(super) const fn spend(&mut self, looks: usize) {
        self.looks = self.looks.saturating_sub(looks);
    }

    /// One more look; false: there is none left.
    pub(super) const fn look(&mut self) -> bool {
        let is_left = self.looks > 0;
        self.looks -= is_left as usize;
        is_left
    }

    /// Whether this call has looked for so much room in vain, and may not find any now: what it evicts it takes up itself,
    /// and what may be evicted becomes no more.
    pub(super) fn is_vain(&self, bytes: u64, not_on: &[Slot<Node>]) -> bool {
        let known = |nodes: &[Slot<Node>]| self.nowhere.get(nodes).is_some_and(|shortest| bytes >= *shortest);
        !self.nowhere.is_empty() && (known(&[]) || known(&in_order(not_on)))
    }

    pub(super) fn was_vain(&mut self, bytes: u64, not_on: &[Slot<Node>]) {
        let shortest = self.nowhere.entry(in_order(not_on)).or_insert(bytes);
        *shortest = bytes.min(*shortest);
    }

    /// A pin was given up: replicas elsewhere may go now.
    pub(super) fn forget(&mut self) {
        self.nowhere.clear();
    }
}

fn in_order(nodes: &[Slot<Node>]) -> Vec<Slot<Node>> {
    let mut nodes = nodes.to_vec();
    nodes.sort_unstable();
    nodes
}
