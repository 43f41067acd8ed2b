//! Nodes come, live and go.

use memcache_types::limits::{
    DESCRIPTOR_BYTES_MAX, NODE_NAME_BYTES_MAX, NODE_SEGMENTS_MAX, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN,
};
use memcache_types::{Epoch, HoldingsPlace, Incarnation, NodeId, SegmentId, Tier};

use super::Core;
use super::clock::Millis;
use super::drain::DrainReport;
use super::effect::{Effect, GoneReason};
use super::limits::{DEPARTED_MAX, NODES_MAX};
use super::list::List;
use super::node::{Amount, Node};
use super::pins::Pinned;
use super::record::Table;
use super::refusal::Refusal;
use super::replicas::Surplus;
use super::reserve::check_count;
use super::segment::Segment;
use super::slab::Slot;
use super::space::SpaceMap;

/// Memory a node offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentOffer {
    /// Its length.
    pub bytes: u64,
    /// What it is made of.
    pub tier: Tier,
    /// What a peer needs to reach it; opaque here.
    pub descriptor: Box<[u8]>,
    /// Where it writes down what it holds, behind its `bytes`.
    pub holdings: HoldingsPlace,
}

/// A node that wants to lend memory.
#[derive(Clone, Debug)]
pub struct JoinRequest<'a> {
    /// Who.
    pub node: NodeId,
    /// In which life.
    pub incarnation: Incarnation,
    /// Its name for humans.
    pub name: &'a str,
    /// What it lends.
    pub offers: Vec<SegmentOffer>,
    /// Under which life of the service its memory was last lent; 0: never.
    pub previous_epoch: Epoch,
    /// It will tell what its memory holds.
    pub lists: bool,
    /// Nothing that was put under this generation or an older one may come back.
    pub floor: u64,
}

/// What a node is told when it has joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinReply {
    /// One for each offer, in order.
    pub segments: Vec<SegmentId>,
    /// The service waits to be told what the memory holds.
    pub lists: bool,
    /// Until the memory may be used again.
    pub rest_ms: u64,
    /// Nothing that was put under this generation or an older one may come back.
    pub floor: u64,
}

/// What a node is told that tells that it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Whether it is known, and its segments by the names that it gave. If not, it should join again.
    pub joined: bool,
    /// Whether there may be copies to make: it should ask.
    pub work: bool,
    /// How far it is with being emptied.
    pub drain: DrainReport,
    /// Nothing that was put under this generation or an older one may come back.
    pub floor: u64,
}

/// What is remembered of a node that is gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departed {
    /// Its newest life.
    incarnation: Incarnation,
    /// How far it was with being emptied, and why it is gone.
    pub(super) last: DrainReport,
    /// As of its segments.
    seen: u64,
}

/// What a reader needs to know about a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentDescription {
    /// Which one.
    pub segment: SegmentId,
    /// Whose.
    pub node: NodeId,
    /// Its length.
    pub bytes: u64,
    /// How to reach it.
    pub descriptor: Box<[u8]>,
    /// Its node has not told all that it holds.
    pub untold: bool,
}

impl Core {
    /// A node lends memory. A newer incarnation takes the place of the present one at once; the same one with the
    /// same offers is told its segments again. Memory that was lent before (`previous_epoch` is not zero) rests for one
    /// reservation time or lease, whichever is longer, because writers and readers of that life may still use it. If the
    /// node will tell what it holds, nothing is placed there before it has.
    pub fn join(
        &mut self,
        now: Millis,
        request: JoinRequest<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<JoinReply, Refusal> {
        self.advance(now, effects);
        let JoinRequest { node, incarnation, name, offers, previous_epoch, lists, floor } = request;
        check_join(node, name, &offers)?;
        self.check_incarnation(node, incarnation)?;
        let known = self.node_ids.contains_key(&node) || self.departed.contains_key(&node);
        self.outlive(previous_epoch, known)?;
        self.raise_floor(floor)?;
        if let Some(slot) = self.node_ids.get(&node).copied() {
            if self.nodes[slot].incarnation == incarnation {
                return self.join_again(slot, &offers);
            }
            self.drop_node(slot, GoneReason::Replaced, effects);
        } else if self.nodes.len() >= NODES_MAX {
            return Err(Refusal::Limit { what: "nodes", found: NODES_MAX as u64 + 1, limit: NODES_MAX as u64 });
        }
        let rests = lists || previous_epoch.get() != 0;
        // It was in this life last: so it says, or it did not hear how its first join went, and is the process it was.
        let is_back = |departed: &&Departed| previous_epoch == self.epoch || departed.incarnation == incarnation;
        let was_here = self.departed.get(&node).filter(is_back);
        let seen = was_here.map_or(0, |departed| departed.seen);
        // Who comes back under the same incarnation brings the same memory, and says so.
        if !rests && self.departed.get(&node).is_some_and(|departed| departed.incarnation == incarnation) {
            return Err(Refusal::Late { node, incarnation });
        }
        // Readers of the former life need the rest as writers do: a new object that covers the old one in part leaves
        // the old trailer as it was.
        let rest_ms = self.settings.reservation_ttl_ms.max(self.settings.lease_ms);
        let usable_from = if rests { self.now.plus(rest_ms.into()) } else { self.now };
        let bytes = offers.iter().map(|offer| offer.bytes).sum();
        let slot = self.nodes.insert(Node {
            id: node,
            incarnation,
            name: name.into(),
            segments: Vec::new(),
            drain: None,
            moved: Amount::default(),
            dropped: Amount::default(),
            heard: self.now,
        });
        self.node_ids.insert(node, slot);
        self.next_death = self.next_death.min(self.now.plus(self.settings.node_dead_ms.into()));
        for offer in offers {
            self.add_segment(slot, offer, usable_from, lists.then_some(seen));
        }
        effects.push(Effect::NodeJoined { node, incarnation, name: name.into(), bytes, rests });
        Ok(self.join_reply(slot))
    }

    /// `seen`: its node will tell what it holds, of which these removals are no concern.
    fn add_segment(&mut self, node: Slot<Node>, offer: SegmentOffer, usable_from: Millis, seen: Option<u64>) {
        let lists = seen.is_some();
        let id = SegmentId::new(self.next_serial());
        let slot = self.segments.insert(Segment {
            id,
            node,
            bytes: offer.bytes,
            tier: offer.tier,
            descriptor: offer.descriptor,
            space: SpaceMap::new(offer.bytes),
            usable_from: if lists { Millis::NEVER } else { usable_from },
            listing: lists.then_some(usable_from),
            seen: seen.unwrap_or(0),
            table: Table::new(offer.holdings),
            unrecorded: 0,
            idle: self.policy.shelves(),
            surplus: Surplus::new(),
            idle_bytes: 0,
            pinned: Pinned::new(),
            leased: List::new(),
            objects: 0,
            hidden: 0,
            row: None,
            no_hole: [u64::MAX; 2],
            reservations: Vec::new(),
            gone: false,
            shelved: None,
        });
        self.lent_bytes += self.segments[slot].space.bytes();
        self.policy.lent(self.lent_bytes);
        self.segment_ids.insert(id, slot);
        self.nodes[node].segments.push(slot);
        if lists {
            self.untold.insert(id);
        }
        self.open_places(slot);
    }

    /// The reply to a join got lost and the node asks again.
    fn join_again(&mut self, slot: Slot<Node>, offers: &[SegmentOffer]) -> Result<JoinReply, Refusal> {
        let node = &mut self.nodes[slot];
        let segments: Vec<&Segment> = node.segments.iter().map(|slot| &self.segments[*slot]).collect();
        let same = segments.len() == offers.len()
            && segments.iter().zip(offers).all(|(segment, offer)| {
                (segment.bytes, segment.tier, &segment.descriptor, segment.table.place)
                    == (offer.bytes, offer.tier, &offer.descriptor, offer.holdings)
            });
        if !same {
            return Err(Refusal::Changed { node: node.id, incarnation: node.incarnation });
        }
        node.heard = self.now;
        Ok(self.join_reply(slot))
    }

    fn join_reply(&self, slot: Slot<Node>) -> JoinReply {
        let segments: Vec<&Segment> = self.nodes[slot].segments.iter().map(|slot| &self.segments[*slot]).collect();
        let usable_from = |segment: &&Segment| segment.listing.unwrap_or(segment.usable_from);
        JoinReply {
            segments: segments.iter().map(|segment| segment.id).collect(),
            lists: segments.iter().any(|segment| segment.listing.is_some()),
            rest_ms: segments.iter().map(usable_from).max().map_or(0, |from| from.since(self.now)),
            floor: self.removals.floor(),
        }
    }

    /// A node remembers that everything up to here was removed.
    fn raise_floor(&mut self, floor: u64) -> Result<(), Refusal> {
        self.outlive_id("floor", floor)?;
        if floor > self.removals.floor() {
            self.remove_up_to(floor);
        }
        Ok(())
    }

    /// A node tells that it lives, and what its segments are called as far as it knows (none: it does not say). They are
    /// called otherwise when a join of its own arrived late, after it was given up: then it must hear the names, or it
    /// would never tell what they hold.
    pub fn heartbeat(
        &mut self,
        now: Millis,
        node: NodeId,
        incarnation: Incarnation,
        segments: &[u64],
        effects: &mut Vec<Effect>,
    ) -> Result<Beat, Refusal> {
        self.advance(now, effects);
        self.check_incarnation(node, incarnation)?;
        let (work, floor) = (self.has_work(node), self.removals.floor());
        let Some(slot) = self.node_ids.get(&node).copied().filter(|slot| self.nodes[*slot].incarnation == incarnation)
        else {
            return Ok(Beat { joined: false, work, drain: DrainReport::default(), floor });
        };
        self.nodes[slot].heard = self.now;
        let own = self.nodes[slot].segments.iter().map(|segment| self.segments[*segment].id.get());
        let joined = segments.is_empty() || own.eq(segments.iter().copied());
        Ok(Beat { joined, work, drain: self.drain_report(slot), floor })
    }

    /// A node takes its memory back at once. An unknown one has nothing to take.
    pub fn leave(
        &mut self,
        now: Millis,
        node: NodeId,
        incarnation: Incarnation,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        self.advance(now, effects);
        self.check_incarnation(node, incarnation)?;
        if let Some(slot) = self.node_ids.get(&node).copied()
            && self.nodes[slot].incarnation == incarnation
        {
            self.drop_node(slot, GoneReason::Left, effects);
        }
        Ok(())
    }

    /// What is known about some segments; unknown and departed ones are left out.
    pub fn describe(
        &mut self,
        now: Millis,
        segments: &[u64],
        effects: &mut Vec<Effect>,
    ) -> Result<Vec<SegmentDescription>, Refusal> {
        self.advance(now, effects);
        check_count("segments", segments.len())?;
        let known = segments.iter().filter_map(|id| self.segment_ids.get(&SegmentId::new(*id)));
        Ok(known
            .map(|slot| {
                let segment = &self.segments[*slot];
                SegmentDescription {
                    segment: segment.id,
                    node: self.nodes[segment.node].id,
                    bytes: segment.bytes,
                    descriptor: segment.descriptor.clone(),
                    untold: self.untold.contains(&segment.id),
                }
            })
            .collect())
    }

    /// The shell was not listening for a while: no node's silence up to now counts against it.
    pub fn excuse_silence(&mut self, now: Millis) {
        self.now = self.now.max(now);
        for node in self.nodes.values_mut() {
            node.heard = self.now;
        }
    }

    pub(super) fn check_incarnation(&self, node: NodeId, claimed: Incarnation) -> Result<(), Refusal> {
        let joined = self.node_ids.get(&node).map(|slot| self.nodes[*slot].incarnation);
        match joined.or_else(|| self.departed.get(&node).map(|departed| departed.incarnation)) {
            Some(current) if claimed < current => Err(Refusal::Stale { node, claimed, current }),
            _ => Ok(()),
        }
    }

    pub(super) fn drop_silent_nodes(&mut self, effects: &mut Vec<Effect>) {
        let patience = u64::from(self.settings.node_dead_ms);
        let silent: Vec<_> = self
            .node_ids
            .values()
            .copied()
            .filter(|slot| self.now.since(self.nodes[*slot].heard) >= patience)
            .collect();
        for slot in silent {
            self.drop_node(slot, GoneReason::Silent, effects);
        }
        let oldest = self.nodes.iter().map(|(_, node)| node.heard).min();
        self.next_death = oldest.unwrap_or(self.now).plus(patience);
    }

    /// Takes a node's segments out of the pool: its objects and reservations are gone at once. Objects under a lease
    /// are kept only so that the lease can end.
    pub(super) fn drop_node(&mut self, slot: Slot<Node>, reason: GoneReason, effects: &mut Vec<Effect>) {
        let last = DrainReport { gone: Some(reason), ..self.drain_report(slot) };
        self.draining.remove(&slot);
        let segments = std::mem::take(&mut self.nodes[slot].segments);
        let objects = segments.iter().map(|segment| self.segments[*segment].readable_objects()).sum();
        // What was removed while it was here has no record there, or its record is known to stand: see `forget_stale`.
        let turn = self.removals.turn();
        let known = |slot: &Slot<Segment>| self.segments[*slot].listing.map_or(turn, |_| self.segments[*slot].seen);
        let seen = segments.iter().map(known).min().unwrap_or(turn);
        for segment in segments {
            self.give_up(segment);
        }
        let node = self.nodes.remove(slot);
        self.node_ids.remove(&node.id);
        self.forget_asked(node.id);
        self.remember_departed(node.id, Departed { incarnation: node.incarnation, last, seen });
        effects.push(Effect::NodeGone {
            node: node.id,
            incarnation: node.incarnation,
            name: node.name,
            reason,
            objects,
        });
    }

    fn remember_departed(&mut self, node: NodeId, departed: Departed) {
        if self.departed.insert(node, departed).is_none() {
            self.departed_order.push_back(node);
        }
        while self.departed_order.len() > DEPARTED_MAX {
            if let Some(oldest) = self.departed_order.pop_front() {
                self.departed.remove(&oldest);
            }
        }
    }
}

fn check_join(node: NodeId, name: &str, offers: &[SegmentOffer]) -> Result<(), Refusal> {
    if node.get() == 0 {
        return Err(Refusal::Value { what: "node", value: 0, want: "a number that is not 0" });
    }
    let limit = |what, found: usize, limit: usize| {
        if found > limit {
            return Err(Refusal::Limit { what, found: found as u64, limit: limit as u64 });
        }
        Ok(())
    };
    limit("bytes of the node name", name.len(), NODE_NAME_BYTES_MAX)?;
    limit("segments of the node", offers.len(), NODE_SEGMENTS_MAX)?;
    for offer in offers {
        limit("bytes of a segment descriptor", offer.descriptor.len(), DESCRIPTOR_BYTES_MAX)?;
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&offer.bytes) {
            return Err(Refusal::Value { what: "bytes of a segment", value: offer.bytes, want: "2^20 to 2^48" });
        }
        if offer.holdings.records > 0 && !offer.holdings.is_behind(offer.bytes) {
            let want = "a table behind the bytes of the segment, and floors behind the table, at multiples of 64";
            return Err(Refusal::Value { what: "table_offset", value: offer.holdings.table_offset, want });
        }
    }
    Ok(())
}
