//! A node is emptied into a pool without room for all that it holds. What is hottest stays, wherever it is: the next
//! victim of all is evicted, here or there, until what is left here fits there.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Core;
use super::evict::Cause;
use super::hole::Hole;
use super::limits::REPLY_EVICTIONS_MAX;
use super::node::{Drain, Node};
use super::object::Object;
use super::place::Order;
use super::search::Search;
use super::segment::Segment;
use super::slab::Slot;

/// Looking for neighbours to evict costs as much as evicting so many one by one.
const HOLE_COST: usize = 16;

/// What one reply may still evict, and what is to be evicted first.
#[derive(Debug)]
pub(super) struct Squeeze {
    /// Segments that take copies and those that are emptied this way, by their next victims. A victim that has changed
    /// since comes later than it says.
    coldest: BinaryHeap<Reverse<(Order, Slot<Segment>)>>,
    /// How many of them take copies.
    takers: usize,
    /// Bytes to move that the room for copies falls short of.
    excess: u64,
    /// Longest extent that the node that asks is known to be able to hold.
    holds: u64,
    budget: usize,
}

impl Squeeze {
    pub(super) fn new(core: &mut Core) -> Self {
        let (mut to_move, mut spare) = (0_u64, 0_u64);
        let mut squeeze =
            Self { coldest: BinaryHeap::new(), takers: 0, excess: 0, holds: 0, budget: REPLY_EVICTIONS_MAX };
        for node in core.node_ids.values().copied().collect::<Vec<_>>() {
            let segments = core.nodes[node].segments.clone();
            if core.nodes[node].drain == Some(Drain::Evict) {
                to_move += segments.iter().map(|slot| core.segments[*slot].movable_bytes()).sum::<u64>();
            } else if core.nodes[node].drain.is_none() && segments.iter().any(|slot| core.is_open(*slot)) {
                spare += core.spare_of(node);
            } else {
                continue;
            }
            for slot in segments {
                squeeze.look(core, slot);
            }
        }
        squeeze.excess = to_move.saturating_sub(spare);
        squeeze
    }

    /// Puts a segment in its place; whether it has a victim.
    fn look(&mut self, core: &mut Core, slot: Slot<Segment>) {
        let takes = core.is_open(slot);
        if !takes && !core.is_draining(core.segments[slot].node) {
            return;
        }
        if let Some((order, _)) = core.victim_of(slot) {
            self.takers += usize::from(takes);
            self.coldest.push(Reverse((order, slot)));
        }
    }

    fn note_evicted(&mut self, bytes: u64) {
        self.excess = self.excess.saturating_sub(bytes);
        self.budget = self.budget.saturating_sub(1);
    }
}

impl Segment {
    /// Extents of objects that nobody reads.
    const fn movable_bytes(&self) -> u64 {
        self.idle_bytes + self.pinned.soft_idle_bytes + self.pinned.hard_idle_bytes
    }
}

impl Core {
    /// How many bytes of copies a node may take: up to its high watermark.
    pub(super) fn spare_of(&self, node: Slot<Node>) -> u64 {
        let used: u64 = self.nodes[node].segments.iter().map(|slot| self.segments[*slot].space.used_bytes()).sum();
        self.high_watermark_of(node).saturating_sub(used)
    }

    fn high_watermark_of(&self, node: Slot<Node>) -> u64 {
        let own = self.nodes[node].segments.iter().map(|slot| self.segments[*slot].space.bytes());
        let mark = own.map(u128::from).sum::<u128>() * u128::from(self.settings.high_watermark_ppm) / 1_000_000;
        u64::try_from(mark).unwrap_or(u64::MAX)
    }

    fn has_spare(&self, node: Slot<Node>, bytes: u64) -> bool {
        self.spare_of(node) >= bytes && self.roomiest_of(node, bytes).is_some()
    }

    /// Whether a node could hold an object of this length if it evicted enough, now or when leases and soft pins end.
    fn could_hold(&mut self, node: Slot<Node>, bytes: u64) -> bool {
        if self.nodes[node].drain.is_some() || self.high_watermark_of(node) < bytes {
            return false;
        }
        self.nodes[node].segments.clone().into_iter().any(|slot| {
            let segment = &self.segments[slot];
            let ends = || segment.is_busy() || segment.pinned.soft_bytes > 0;
            segment.space.bytes() >= bytes
                && (segment.space.longest_run() >= bytes || ends() || self.hole_for_copy(slot, bytes) != Hole::Never)
        })
    }

    fn hole_for_copy(&mut self, slot: Slot<Segment>, bytes: u64) -> Hole {
        let mut search = Search::new(4 * self.settings.search.in_order);
        self.find_hole(slot, bytes, false, &mut search)
    }

    /// Makes room on a node for a copy of `next`, which is on one that is being emptied. False: there is none now.
    pub(super) fn squeeze(&mut self, squeeze: &mut Squeeze, node: Slot<Node>, next: Slot<Object>) -> bool {
        let bytes = self.objects[next].extent_bytes();
        if squeeze.budget == 0 {
            return false;
        }
        if bytes > squeeze.holds && !self.could_hold(node, bytes) {
            squeeze.budget = squeeze.budget.saturating_sub(HOLE_COST);
            self.drop_if_homeless(squeeze, next, bytes);
            return false;
        }
        squeeze.holds = squeeze.holds.max(bytes);
        while squeeze.budget > 0 && self.objects.get(next).is_some() {
            if self.has_spare(node, bytes) {
                return true;
            }
            if squeeze.excess == 0 && self.nodes.iter().any(|(other, _)| self.takes_copies(other, bytes)) {
                // All that is left fits, and this one elsewhere.
                squeeze.budget = 0;
            } else if self.spare_of(node) < bytes || !self.evict_neighbours(squeeze, node, bytes) {
                self.evict_coldest(squeeze);
            }
        }
        squeeze.budget > 0 && self.objects.get(next).is_some()
    }

    fn takes_copies(&self, node: Slot<Node>, bytes: u64) -> bool {
        self.nodes[node].drain.is_none() && self.has_spare(node, bytes)
    }

    /// An object that is too long for every node that stays goes, unless it is pinned.
    fn drop_if_homeless(&mut self, squeeze: &mut Squeeze, object: Slot<Object>, bytes: u64) {
        let is_pinned = self.objects[object].entry.is_some_and(|entry| self.index.get(entry).is_pinned());
        let nodes: Vec<_> = self.nodes.iter().map(|(node, _)| node).collect();
        if !is_pinned && !nodes.into_iter().any(|node| self.could_hold(node, bytes)) {
            self.evict(object, Cause::Drain);
            squeeze.note_evicted(bytes);
        }
    }

    /// A node has room enough, but in pieces: evicts what joins some of them. False: nothing did.
    fn evict_neighbours(&mut self, squeeze: &mut Squeeze, node: Slot<Node>, bytes: u64) -> bool {
        for slot in self.nodes[node].segments.clone() {
            squeeze.budget = squeeze.budget.saturating_sub(HOLE_COST);
            if self.is_open(slot)
                && let Hole::Of(victims) = self.hole_for_copy(slot, bytes)
                && !victims.is_empty()
            {
                for victim in victims {
                    squeeze.note_evicted(self.objects[victim].extent_bytes());
                    self.evict(victim, Cause::Drain);
                }
                return true;
            }
        }
        false
    }

    /// Evicts the next victim of all nodes that take copies or are emptied this way.
    fn evict_coldest(&mut self, squeeze: &mut Squeeze) {
        let Some(Reverse((order, slot))) = squeeze.coldest.pop() else {
            squeeze.budget = 0;
            return;
        };
        let takes = self.is_open(slot);
        if !takes && squeeze.takers == 0 && self.segments.iter().any(|(slot, one)| self.is_open(slot) && one.is_busy())
        {
            // What is read or written there now may be colder when it no longer is.
            squeeze.budget = 0;
            return;
        }
        squeeze.takers -= usize::from(takes);
        if let Some((now, victim)) = self.victim_of(slot)
            && now <= order
        {
            squeeze.note_evicted(self.objects[victim].extent_bytes());
            self.evict(victim, Cause::Drain);
        } else {
            squeeze.budget = squeeze.budget.saturating_sub(1);
        }
        squeeze.look(self, slot);
    }
}

impl Segment {
    /// Whether anything here is read or written now.
    const fn is_busy(&self) -> bool {
        self.leased.oldest().is_some() || !self.reservations.is_empty()
    }
}
