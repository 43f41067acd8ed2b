//! Where new objects go, and which old ones make room.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Core;
use super::evict::Cause;
use super::hole::Hole;
use super::node::Node;
use super::object::Object;
use super::policy::Rank;
use super::search::Search;
use super::segment::Segment;
use super::slab::Slot;

/// The order in which victims of several segments go, the least first: replicas of keys that have others before the last.
pub(super) type Order = (bool, Rank);

/// The next victim of a segment.
type Next = (Order, Slot<Segment>, Slot<Object>);

/// Where a writer would like its object to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    /// Before all others, in this order.
    pub(super) preferred: &'a [Slot<Node>],
    /// Then here.
    pub(super) near: Option<Slot<Node>>,
}

/// What came of a search for room without pins.
#[derive(Clone, Copy, Debug)]
enum Place {
    At(Slot<Segment>, u64),
    /// There is none.
    Nowhere,
    /// None was found, but not everything was looked at: no pin is given up for that.
    Unknown,
}

impl Core {
    /// Takes space for an extent on none of the nodes `not_on`. Free space on preferred nodes comes first, then near the
    /// writer, then the segment with the most free bytes, then the one whose next victim comes before those of all others:
    /// that one evicts until the extent fits.
    pub(super) fn place(
        &mut self,
        bytes: u64,
        wish: Wish<'_>,
        not_on: &[Slot<Node>],
        search: &mut Search,
    ) -> Option<(Slot<Segment>, u64)> {
        let mut slot = self.roomiest_wished(bytes, wish, not_on);
        if slot.is_none() && self.sweep.is_on() {
            // What was removed may be in the way there. One step is no more than a tick takes.
            self.catch_up();
        }
        slot = slot.or_else(|| self.roomiest_for(bytes, wish, not_on));
        while slot.is_none() && self.catch_up() {
            slot = self.roomiest_for(bytes, wish, not_on);
        }
        if let Some(slot) = slot {
            return self.take_run(slot, bytes).map(|offset| (slot, offset));
        }
        if search.looks_left() == 0 || search.is_vain(bytes, not_on) {
            return None;
        }
        let place = match self.place_by_eviction(bytes, not_on, search) {
            Place::At(slot, offset) => Some((slot, offset)),
            // A further replica is not worth a pin.
            Place::Nowhere if not_on.is_empty() => self.place_over_pins(bytes, search),
            Place::Nowhere | Place::Unknown => None,
        };
        if place.is_none() {
            search.was_vain(bytes, not_on);
        }
        place
    }

    fn roomiest_for(&self, bytes: u64, wish: Wish<'_>, not_on: &[Slot<Node>]) -> Option<Slot<Segment>> {
        self.roomiest_wished(bytes, wish, not_on).or_else(|| self.roomiest(bytes, not_on))
    }

    fn roomiest_wished(&self, bytes: u64, wish: Wish<'_>, not_on: &[Slot<Node>]) -> Option<Slot<Segment>> {
        let wished = wish.preferred.iter().copied().chain(wish.near);
        wished.filter(|node| !not_on.contains(node)).find_map(|node| self.roomiest_of(node, bytes))
    }

    /// There is no room, but there may be some: one more step of what is done in steps. False: all is done.
    fn catch_up(&mut self) -> bool {
        let may = self.sweep.is_on() || self.are_leases_late() || self.is_rest_late();
        if may {
            self.end_quarantine();
            self.expire_leases();
            self.sweep_some(self.tick_step());
        }
        may
    }

    /// The segment of a node with the most free bytes among those where the extent fits now.
    pub(super) fn roomiest_of(&self, node: Slot<Node>, bytes: u64) -> Option<Slot<Segment>> {
        let own = self.nodes[node].segments.iter().copied();
        own.filter(|slot| self.is_open(*slot) && self.segments[*slot].space.longest_run() >= bytes)
            .max_by_key(|slot| (self.segments[*slot].space.free_bytes(), Reverse(self.segments[*slot].id)))
    }

    /// Evicts where the next victim is, and there only what makes a hole that is long enough.
    fn place_by_eviction(&mut self, bytes: u64, not_on: &[Slot<Node>], search: &mut Search) -> Place {
        let mut is_sure = true;
        let mut able = self.by_next_victim(bytes, not_on);
        for _ in 0..self.settings.search.segments {
            let Some(Reverse((_, slot, next))) = able.pop() else { break };
            match self.find_hole(slot, bytes, false, search) {
                Hole::Of(victims) => {
                    let no_hole = self.segments[slot].no_hole;
                    let cause = if victims == [next] { Cause::Put } else { Cause::Hole };
                    for victim in victims {
                        self.evict(victim, cause);
                    }
                    // What is free now might have gone before.
                    self.segments[slot].no_hole = no_hole;
                    if let Some(offset) = self.take_run(slot, bytes) {
                        return Place::At(slot, offset);
                    }
                }
                Hole::Never => {}
                Hole::Unknown => is_sure = false,
            }
        }
        if is_sure && able.is_empty() { Place::Nowhere } else { Place::Unknown }
    }

    /// As the last resort soft pins are given up, where the first of them ends soonest, and there only those that make a
    /// hole that is long enough.
    fn place_over_pins(&mut self, bytes: u64, search: &mut Search) -> Option<(Slot<Segment>, u64)> {
        if self.pins.soft() == 0 {
            return None;
        }
        let room = |segment: &Segment| {
            segment.space.free_bytes() + segment.idle_bytes + segment.pinned.soft_idle_bytes >= bytes
        };
        let able = self.segments.iter().filter(|(_, segment)| {
            segment.shelved.is_some() && bytes < segment.no_hole[usize::from(true)] && room(segment)
        });
        let mut able: Vec<_> =
            able.filter_map(|(slot, segment)| Some((segment.pinned.first_soft()?.0, slot))).collect();
        able.sort_unstable();
        for (_, slot) in able.into_iter().take(self.settings.search.segments) {
            if let Hole::Of(victims) = self.find_hole(slot, bytes, true, search) {
                for victim in victims {
                    self.give_pin_up(victim);
                    self.evict(victim, Cause::Pin);
                }
                search.forget();
                return self.take_run(slot, bytes).map(|offset| (slot, offset));
            }
        }
        None
    }

    /// The segments that may be able to make room for the extent and their next victims, those first that come first.
    fn by_next_victim(&mut self, bytes: u64, not_on: &[Slot<Node>]) -> BinaryHeap<Reverse<Next>> {
        let able = self.segments.iter().filter(|(_, segment)| {
            segment.shelved.is_some()
                && bytes < segment.no_hole[usize::from(false)]
                && segment.space.free_bytes() + segment.idle_bytes >= bytes
                && !not_on.contains(&segment.node)
        });
        let able: Vec<_> = able.map(|(slot, _)| slot).collect();
        let next = able.into_iter().filter_map(|slot| self.victim_of(slot).map(|(order, next)| (order, slot, next)));
        next.map(Reverse).collect()
    }

    /// What a segment would evict next, and the order in which victims of several go: replicas of keys that have
    /// more than they should, then of keys that have others, each the longest unused first, then the last ones of their
    /// keys, as the policy says.
    pub(super) fn victim_of(&mut self, slot: Slot<Segment>) -> Option<(Order, Slot<Object>)> {
        while let Some(object) = self.segments[slot].surplus.oldest() {
            let entry = self.objects[object].entry?;
            let lives = |other: &Slot<Object>| *other != object && self.is_live(*other);
            let is_extra = self.segments[slot].surplus.extra.oldest() == Some(object);
            // Of what was asked for none may go because one on a node that is gone still counts.
            let is_settled = || !is_extra || self.chain(entry).all(|other| self.is_live(other));
            if !self.has_void() || is_settled() && self.chain(entry).any(|other| lives(&other)) {
                return Some(((false, (u64::from(!is_extra), self.objects[object].used())), object));
            }
            // Siblings were on nodes that are gone: it may be the last.
            self.bury_of(entry);
        }
        let victim = self.policy.victim(self.now, &mut self.segments[slot].idle, &mut self.objects);
        victim.map(|(rank, object)| ((true, rank), object))
    }
}
