//! What there is, counted.

use memcache_types::{Epoch, Incarnation, KeyBatch, NodeId};

use super::Core;
use super::clock::Millis;
use super::drain::DrainReport;
use super::effect::Effect;
use super::evict::Evictions;
use super::index::Entry;
use super::lookup::Found;
use super::pins::PinReport;
use super::segment::Segment;
use super::slab::Slot;

/// One node, counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    /// Which one.
    pub node: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Its name for humans.
    pub name: Box<str>,
    /// What it lends.
    pub capacity_bytes: u64,
    /// What is sealed, reserved, resting or still held for readers.
    pub used_bytes: u64,
    /// The longest run of its memory that is free: an object longer than that needs evictions, however much is free.
    pub longest_free_bytes: u64,
    /// Readable objects: replicas of keys.
    pub objects: u64,
    /// Those of them that the node will not know any more after a restart of the service: its table is full.
    pub unrecorded: u64,
    /// It has not yet told all that its memory holds.
    pub listing: bool,
    /// Extents of its readable objects under soft pins.
    pub soft_pinned_bytes: u64,
    /// The same under hard pins.
    pub hard_pinned_bytes: u64,
    /// What hard pins may hold of it.
    pub pin_quota_bytes: u64,
    /// How far it is with being emptied.
    pub drain: DrainReport,
    /// Time since it was last heard of.
    pub heartbeat_age_ms: u64,
}

/// The whole pool, counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// By node id.
    pub nodes: Vec<NodeReport>,
    /// Readable keys.
    pub objects: u64,
    /// Their replicas.
    pub replicas: u64,
    /// Keys that wait for replicas that they lack.
    pub repairs_waiting: u64,
    /// Copies under way.
    pub copies: u64,
    /// Copies made since the start.
    pub copied: u64,
    /// Replicas beyond those that were asked for.
    pub extra_replicas: u64,
    /// Extents of those.
    pub extra_bytes: u64,
    /// Keys under soft pins.
    pub soft_pins: u64,
    /// Keys under hard pins.
    pub hard_pins: u64,
    /// Soft pins given up for puts since the start.
    pub pins_given_up: u64,
    /// Live reservations.
    pub reservations: u64,
    /// Live leases.
    pub leases: u64,
    /// Objects evicted since the start.
    pub evicted_objects: u64,
    /// Extents of those.
    pub evicted_bytes: u64,
    /// The same by [cause](super::Cause), in the order of [`Cause::ALL`](super::Cause::ALL).
    pub evicted: Evictions,
    /// Objects looked at since the start to find room for puts.
    pub looked: u64,
    /// Which life of the service it is, by now.
    pub epoch: Epoch,
    /// Time since the start.
    pub uptime_ms: u64,
}

/// One replica, as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaReport {
    /// Whose memory it is in.
    pub node: NodeId,
    /// The node's name for humans.
    pub name: Box<str>,
    /// Where it is.
    pub found: Found,
    /// Leases on it.
    pub leases: u32,
    /// Its node is being emptied.
    pub draining: bool,
}

/// One key, as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyReport {
    /// Live reservations, copies under way included.
    pub writers: u32,
    /// How many replicas there should be.
    pub wanted: usize,
    /// Its pin.
    pub pin: Option<PinReport>,
    /// Those that can be read.
    pub replicas: Vec<ReplicaReport>,
}

impl Core {
    /// Everything that is known about some keys; nothing of it changes.
    pub fn info(&mut self, now: Millis, keys: &KeyBatch, effects: &mut Vec<Effect>) -> Vec<KeyReport> {
        self.advance(now, effects);
        let mut reports = Vec::with_capacity(keys.len());
        for key in keys.iter() {
            let known = self.index.find(key).filter(|entry| self.bury_of(*entry));
            reports.push(known.map_or_else(KeyReport::default, |entry| self.key_report(entry)));
        }
        reports
    }

    fn key_report(&self, entry: Slot<Entry>) -> KeyReport {
        let replicas = self.chain(entry).filter_map(|object| {
            let slot = self.node_of(object)?;
            let node = &self.nodes[slot];
            Some(ReplicaReport {
                node: node.id,
                name: node.name.clone(),
                found: self.found(object),
                leases: self.objects[object].leases,
                draining: self.is_draining(slot),
            })
        });
        let known = self.index.get(entry);
        let (writers, wanted, pin) = (known.writers(), known.wanted(), self.pin_report(entry));
        KeyReport { writers, wanted, pin, replicas: replicas.collect() }
    }

    /// Counts everything.
    pub fn status(&mut self, now: Millis, effects: &mut Vec<Effect>) -> Report {
        self.advance(now, effects);
        let nodes = self
            .node_ids
            .values()
            .map(|slot| {
                let node = &self.nodes[*slot];
                let segments = || node.segments.iter().map(|slot| &self.segments[*slot]);
                NodeReport {
                    node: node.id,
                    incarnation: node.incarnation,
                    name: node.name.clone(),
                    capacity_bytes: segments().map(|segment| segment.space.bytes()).sum(),
                    used_bytes: segments().map(|segment| segment.space.used_bytes()).sum(),
                    longest_free_bytes: segments().map(|segment| segment.space.longest_run()).max().unwrap_or(0),
                    objects: segments().map(Segment::readable_objects).sum(),
                    unrecorded: segments().map(|segment| segment.unrecorded).sum(),
                    listing: segments().any(|segment| segment.listing.is_some()),
                    soft_pinned_bytes: segments().map(|segment| segment.pinned.soft_bytes).sum(),
                    hard_pinned_bytes: segments().map(|segment| segment.pinned.hard_bytes).sum(),
                    pin_quota_bytes: self.pin_quota_of(*slot),
                    drain: self.drain_report(*slot),
                    heartbeat_age_ms: self.now.since(node.heard),
                }
            })
            .collect();
        let hidden = self.sweep.hidden();
        Report {
            nodes,
            objects: self.readable_keys(),
            replicas: self.replicas - hidden.replicas,
            repairs_waiting: self.repairs.waiting() as u64,
            copies: self.copies as u64,
            copied: self.repairs.copied,
            extra_replicas: self.extras.replicas,
            extra_bytes: self.extras.bytes,
            soft_pins: self.pins.soft() - hidden.soft_pins,
            hard_pins: self.pins.hard() - hidden.hard_pins,
            pins_given_up: self.pins.given_up,
            reservations: self.reservations.len() as u64,
            leases: self.leases.len() as u64,
            evicted_objects: self.evicted.iter().map(|amount| amount.objects).sum(),
            evicted_bytes: self.evicted.iter().map(|amount| amount.bytes).sum(),
            evicted: self.evicted,
            looked: self.looked,
            epoch: self.epoch,
            uptime_ms: self.now.since(self.started),
        }
    }
}
