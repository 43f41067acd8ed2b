//! A node is emptied before it leaves: it gets nothing new, and what it holds moves to other nodes or goes.

use memcache_types::NodeId;

use super::Core;
use super::clock::Millis;
use super::effect::{Effect, GoneReason};
use super::index::Entry;
use super::limits::{REPLY_REPAIRS_SEEN_MAX, TICK_DRAINED_MAX};
use super::node::{Amount, Drain, Node};
use super::object::Object;
use super::repair::Hand;
use super::segment::Segment;
use super::slab::Slot;
use super::squeeze::Squeeze;

/// How far a node is with being emptied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// How it is being emptied; `None` if it is not.
    pub drain: Option<Drain>,
    /// Readable objects that it still holds.
    pub objects: u64,
    /// What is taken of its memory still: extents of objects, reservations, and what rests or is read.
    pub bytes: u64,
    /// What has left it since this began and is in the pool still: readable on another node.
    pub moved: Amount,
    /// What has left it since then and is lost: it was the last of its key.
    pub dropped: Amount,
    /// Whether nothing is left, neither objects nor reservations nor anything that is read.
    pub is_empty: bool,
    /// It is no longer in the pool, and why; the rest says how it was when it went.
    pub gone: Option<GoneReason>,
}

impl Core {
    /// Begins to empty a node, or changes how, or with `None` ends it: the node takes new objects again. `None` in the
    /// answer: there is no such node.
    pub fn drain(
        &mut self,
        now: Millis,
        node: NodeId,
        drain: Option<Drain>,
        effects: &mut Vec<Effect>,
    ) -> Option<DrainReport> {
        self.advance(now, effects);
        let slot = self.node_ids.get(&node).copied()?;
        if self.nodes[slot].drain != drain {
            let known = &mut self.nodes[slot];
            if known.drain.is_none() {
                (known.moved, known.dropped) = (Amount::default(), Amount::default());
            }
            known.drain = drain;
            if drain.is_some() {
                self.draining.insert(slot);
            } else {
                self.draining.remove(&slot);
            }
            for segment in self.nodes[slot].segments.clone() {
                self.reshelve(segment);
            }
            effects.push(Effect::Draining { node, drain });
            self.drain_step();
        }
        Some(self.drain_report(slot))
    }

    /// How far a node is with being emptied, or was when it went; `None`: there is and was no such node, or it went
    /// before a restart or too long ago.
    pub fn drain_state(&mut self, now: Millis, node: NodeId, effects: &mut Vec<Effect>) -> Option<DrainReport> {
        self.advance(now, effects);
        let joined = self.node_ids.get(&node).map(|slot| self.drain_report(*slot));
        joined.or_else(|| self.departed.get(&node).map(|gone| gone.last))
    }

    /// How far a node is with being emptied.
    pub(super) fn drain_report(&self, slot: Slot<Node>) -> DrainReport {
        let node = &self.nodes[slot];
        let segments = || node.segments.iter().map(|slot| &self.segments[*slot]);
        let bytes = segments().map(|segment| segment.space.used_bytes()).sum();
        DrainReport {
            drain: node.drain,
            objects: segments().map(Segment::readable_objects).sum(),
            bytes,
            moved: node.moved,
            dropped: node.dropped,
            is_empty: bytes == 0,
            gone: None,
        }
    }

    /// An object is about to be lost, evicted or let go: it counts if its node is being emptied.
    pub(super) fn count_drained(&mut self, object: Slot<Object>) {
        let Some(node) = self.node_of(object).filter(|node| self.is_draining(*node)) else { return };
        let Some(entry) = self.objects[object].entry else { return };
        let bytes = self.objects[object].extent_bytes();
        let is_elsewhere = self.chain(entry).any(|other| other != object && self.is_live(other));
        let node = &mut self.nodes[node];
        if is_elsewhere { node.moved.add(bytes) } else { node.dropped.add(bytes) }
    }

    pub(super) fn is_draining(&self, node: Slot<Node>) -> bool {
        self.draining.contains(&node)
    }

    /// Takes from nodes that are being emptied what need not be moved. True: one step was not enough.
    pub(super) fn drain_step(&mut self) -> bool {
        if self.sweep.is_on() {
            return true;
        }
        let mut budget = TICK_DRAINED_MAX;
        for node in self.draining.iter().copied().collect::<Vec<_>>() {
            let drop = self.nodes[node].drain == Some(Drain::Drop);
            for segment in self.nodes[node].segments.clone() {
                let lists = |core: &Self| {
                    let segment = &core.segments[segment];
                    if !drop {
                        return segment.surplus.oldest();
                    }
                    segment.surplus.oldest().or(segment.idle.any()).or(segment.pinned.any())
                };
                // Objects under leases follow when those are over.
                while let Some(object) = lists(self) {
                    if budget == 0 {
                        return true;
                    }
                    budget -= 1;
                    let Some(entry) = self.objects[object].entry else { break };
                    if drop || self.lasting(entry) > 0 {
                        self.count_drained(object);
                        self.lose(object);
                    } else if self.bury_of(entry) && !self.is_alone(object) {
                        break; // its siblings are on nodes that are being emptied too
                    }
                }
                if !drop {
                    budget -= self.leave_pinned(segment, budget);
                }
            }
        }
        false
    }

    /// Pinned replicas stand in lists of their own: those of keys that have others elsewhere need not be moved either. How
    /// many went.
    fn leave_pinned(&mut self, segment: Slot<Segment>, budget: usize) -> usize {
        let has_others =
            |object: &Slot<Object>| self.objects[*object].entry.is_some_and(|entry| self.lasting(entry) > 0);
        let leaving: Vec<_> =
            self.segments[segment].pinned.iter(&self.objects).filter(has_others).take(budget).collect();
        for object in &leaving {
            self.count_drained(*object);
            self.lose(*object);
        }
        leaving.len()
    }

    /// A key has a replica that stays: those on nodes that are being emptied go.
    pub(super) fn leave_draining(&mut self, entry: Slot<Entry>) {
        if self.draining.is_empty() || self.lasting(entry) == 0 {
            return;
        }
        let leaving: Vec<Slot<Object>> = self
            .chain(entry)
            .filter(|object| self.node_of(*object).is_some_and(|node| self.is_draining(node)))
            .collect();
        for object in leaving {
            self.count_drained(object);
            self.remove_object(object);
        }
    }

    /// Whether any node's objects are to be moved.
    pub(super) fn moves_wanted(&self) -> bool {
        self.draining.iter().any(|node| {
            let node = &self.nodes[*node];
            matches!(node.drain, Some(Drain::Move | Drain::Evict))
                && node.segments.iter().any(|slot| self.segments[*slot].objects > 0)
        })
    }

    /// Hands out copies of objects on nodes that are being emptied, those used last first. An object under a lease, as
    /// the sources of copies are, has its turn when the lease is over.
    pub(super) fn hand_out_moves(&mut self, hand: &mut Hand) {
        if self.sweep.is_on() {
            return;
        }
        let nodes = self.draining.iter().map(|node| &self.nodes[*node]).filter(|node| node.drain != Some(Drain::Drop));
        let segments: Vec<_> = nodes
            .flat_map(|node| node.segments.iter().map(|segment| (*segment, node.drain == Some(Drain::Evict))))
            .collect();
        let mut squeeze = None;
        for (segment, evicts) in segments {
            let Segment { surplus, idle, pinned, .. } = &self.segments[segment];
            let rest = surplus.iter(&self.objects).chain(idle.iter(&self.objects));
            let objects: Vec<Slot<Object>> =
                pinned.iter(&self.objects).chain(rest).take(REPLY_REPAIRS_SEEN_MAX).collect();
            for object in objects {
                if !hand.has_room() {
                    return;
                }
                // One that was looked at before may have made room.
                let Some(entry) = self.objects.get(object).and_then(|object| object.entry) else { continue };
                // Handing out the copy of one replica puts its siblings under a lease, too.
                if self.objects[object].leases == 0 && self.index.get(entry).writers() == 0 && self.lasting(entry) == 0
                {
                    let is_out = self.hand_out(hand, entry);
                    if !is_out && evicts {
                        let squeeze = squeeze.get_or_insert_with(|| Squeeze::new(self));
                        if self.squeeze(squeeze, hand.node, object) {
                            self.hand_out(hand, entry);
                        }
                    }
                }
            }
        }
    }
}
