//! The rules of the book, one test each; what holds after every step; and a naive model beside it.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test may fail, and its numbers are small")]

mod damage;
mod draining;
mod evicting;
mod holes;
mod hot;
mod invariants;
mod listing;
mod lives;
mod membership;
mod model;
mod pins;
mod policies;
mod reading;
mod records;
mod removals;
mod replicas;
mod scopes;
mod sequences;
mod sweeping;
mod writing;

use memcache_proto::pb::{LocateOutcome, ReserveOutcome, SealOutcome};
use memcache_types::{
    ClientId, Epoch, Generation, HoldingsPlace, Incarnation, KeyBatch, LeaseId, NodeId, SegmentId, Tier,
};

use super::*;

pub(super) const TTL: u64 = 1000;
pub(super) const LEASE: u64 = 400;
pub(super) const DEAD: u64 = 100_000;
pub(super) const MIB: u64 = 1 << 20;

pub(super) const SETTINGS: Settings = Settings {
    reservation_ttl_ms: TTL as u32,
    lease_ms: LEASE as u32,
    heartbeat_ms: 1000,
    node_dead_ms: DEAD as u32,
    high_watermark_ppm: 950_000,
    low_watermark_ppm: 900_000,
    hard_pin_ppm: 250_000,
    hot_replica_bytes: 0,
    removals_max: limits::REMOVALS_MAX,
    step: limits::CALL_BURIALS_MAX,
    policy: EvictionPolicy::Lru,
    search: SearchLimits::DEFAULT,
};

pub(super) const ALICE: ClientId = ClientId::new(1);
pub(super) const BOB: ClientId = ClientId::new(2);

/// Records of every segment here: few enough for some tests to run out of them.
pub(super) const RECORDS: u32 = 24;

/// Where a segment of this length has its table.
pub(super) fn place(bytes: u64) -> HoldingsPlace {
    HoldingsPlace { table_offset: bytes.next_multiple_of(64), records: RECORDS, floors_offset: bytes + (1 << 20) }
}

/// A node that lends one segment.
pub(super) fn join_request(node: u64, incarnation: u64, bytes: u64, before: u64) -> JoinRequest<'static> {
    let descriptor = node.to_le_bytes().into();
    JoinRequest {
        node: NodeId::new(node),
        incarnation: Incarnation::new(incarnation),
        name: "node",
        offers: vec![SegmentOffer { bytes, tier: Tier::Dram, descriptor, holdings: place(bytes) }],
        previous_epoch: Epoch::new(before),
        lists: false,
        floor: 0,
    }
}

/// A core, a clock and short words for what tests do with them. Invariants are checked after every call.
pub(super) struct Pool {
    pub(super) core: Core,
    pub(super) now: u64,
    pub(super) effects: Vec<Effect>,
}

pub(super) fn batch<K: AsRef<[u8]>>(keys: &[K]) -> KeyBatch {
    KeyBatch::from_keys(keys).unwrap()
}

impl Pool {
    /// A pool of nodes 1, 2, ... that lend one segment of so many bytes each.
    pub(super) fn new(segments: &[u64]) -> Self {
        Self::of(SETTINGS, segments)
    }

    pub(super) fn of(settings: Settings, segments: &[u64]) -> Self {
        let core = Core::new(settings, Epoch::new(1000), Millis::new(0));
        let mut pool = Self { core, now: 0, effects: Vec::new() };
        for (node, bytes) in (1..).zip(segments) {
            pool.join(node, 1, *bytes, 0).unwrap();
        }
        pool
    }

    pub(super) fn with<R>(&mut self, call: impl FnOnce(&mut Core, Millis, &mut Vec<Effect>) -> R) -> R {
        let result = call(&mut self.core, Millis::new(self.now), &mut self.effects);
        self.core.check();
        result
    }

    pub(super) fn join(&mut self, node: u64, incarnation: u64, bytes: u64, before: u64) -> Result<SegmentId, Refusal> {
        self.with(|core, now, effects| core.join(now, join_request(node, incarnation, bytes, before), effects))
            .map(|joined| joined.segments[0])
    }

    pub(super) fn reserve_as(
        &mut self,
        client: ClientId,
        keys: &[&str],
        payload_bytes: &[u64],
        near: Option<u64>,
        exclusive: bool,
    ) -> Result<ReserveReply, Refusal> {
        let keys = batch(keys);
        let request = ReserveRequest {
            keys: &keys,
            payload_bytes,
            near: near.map(NodeId::new),
            exclusive,
            replicas: 1,
            preferred: &[],
        };
        self.with(|core, now, effects| core.reserve(now, client, &request, effects))
    }

    /// Reserves replicas of keys, those of `nodes` first.
    pub(super) fn reserve_replicas(
        &mut self,
        client: ClientId,
        keys: &[&str],
        bytes: u64,
        replicas: usize,
        nodes: &[u64],
    ) -> ReserveReply {
        let (keys, preferred) = (batch(keys), nodes.iter().copied().map(NodeId::new).collect::<Vec<_>>());
        let request = ReserveRequest {
            keys: &keys,
            payload_bytes: &[bytes],
            near: None,
            exclusive: false,
            replicas,
            preferred: &preferred,
        };
        self.with(|core, now, effects| core.reserve(now, client, &request, effects)).unwrap()
    }

    /// Puts replicas of keys all the way, those of `nodes` first.
    pub(super) fn put_replicas(&mut self, keys: &[&str], bytes: u64, replicas: usize, nodes: &[u64]) -> Vec<Ticket> {
        let reply = self.reserve_replicas(ALICE, keys, bytes, replicas, nodes);
        assert_eq!(reply.outcomes, vec![ReserveOutcome::Reserved; keys.len()], "{keys:?}");
        assert_eq!(self.seal(ALICE, &reply.tickets), vec![SealOutcome::Sealed; reply.tickets.len()]);
        reply.tickets
    }

    /// Copies that a node gets to make.
    pub(super) fn work(&mut self, node: u64) -> WorkReply {
        let who = (NodeId::new(node), Incarnation::new(1));
        let client = ClientId::new(100 + node);
        self.with(|core, now, effects| core.work(now, client, who, (100, 1 << 40), effects)).unwrap()
    }

    /// A node makes all the copies it gets; how many.
    pub(super) fn repair(&mut self, node: u64) -> usize {
        let reply = self.work(node);
        let client = ClientId::new(100 + node);
        let tickets: Vec<Ticket> = reply.tasks.iter().map(|task| task.ticket).collect();
        assert_eq!(self.seal(client, &tickets), vec![SealOutcome::Sealed; tickets.len()]);
        if reply.lease.is_some() {
            self.release(client, reply.lease);
        }
        tickets.len()
    }

    pub(super) fn drain(&mut self, node: u64, drain: Option<Drain>) -> DrainReport {
        self.with(|core, now, effects| core.drain(now, NodeId::new(node), drain, effects)).expect("a node")
    }

    pub(super) fn drained(&mut self, node: u64) -> DrainReport {
        self.with(|core, now, effects| core.drain_state(now, NodeId::new(node), effects)).expect("a node")
    }

    /// Nodes that hold a replica of a key, by segment order of the pool's making.
    pub(super) fn nodes_of(&mut self, key: &str) -> Vec<u64> {
        let reply = self.locate(BOB, &[key]);
        if reply.lease.is_some() {
            self.release(BOB, reply.lease);
        }
        let others = reply.others.iter().map(|(_, found)| found);
        let segments: Vec<u64> = reply.found.iter().chain(others).map(|found| found.address.segment().get()).collect();
        let described = self.with(|core, now, effects| core.describe(now, &segments, effects)).unwrap();
        let mut nodes: Vec<u64> = described.iter().map(|found| found.node.get()).collect();
        nodes.sort_unstable();
        nodes
    }

    pub(super) fn reserve(&mut self, keys: &[&str], payload_bytes: u64) -> ReserveReply {
        self.reserve_as(ALICE, keys, &[payload_bytes], None, false).unwrap()
    }

    /// Reserves one key, which must succeed.
    pub(super) fn ticket(&mut self, client: ClientId, key: &str, payload_bytes: u64) -> Ticket {
        let reply = self.reserve_as(client, &[key], &[payload_bytes], None, false).unwrap();
        assert_eq!(reply.outcomes, [ReserveOutcome::Reserved], "{key}");
        reply.tickets[0]
    }

    pub(super) fn seal(&mut self, client: ClientId, tickets: &[Ticket]) -> Vec<SealOutcome> {
        let ids: Vec<u64> = tickets.iter().map(|ticket| ticket.reservation.get()).collect();
        self.with(|core, now, effects| core.seal(now, client, &ids, effects)).unwrap()
    }

    pub(super) fn abort(&mut self, client: ClientId, ticket: Ticket) {
        let id = ticket.reservation.get();
        self.with(|core, now, effects| core.abort(now, client, &[id], effects)).unwrap();
    }

    /// Puts keys all the way; their tickets.
    pub(super) fn put(&mut self, keys: &[&str], payload_bytes: u64) -> Vec<Ticket> {
        let reply = self.reserve(keys, payload_bytes);
        assert_eq!(reply.outcomes, vec![ReserveOutcome::Reserved; keys.len()], "{keys:?}");
        assert_eq!(self.seal(ALICE, &reply.tickets), vec![SealOutcome::Sealed; keys.len()]);
        reply.tickets
    }

    pub(super) fn locate(&mut self, client: ClientId, keys: &[&str]) -> LocateReply {
        let keys = batch(keys);
        self.with(|core, now, effects| core.locate(now, client, &keys, None, effects)).unwrap()
    }

    pub(super) fn release(&mut self, client: ClientId, lease: Option<LeaseId>) {
        let lease = lease.expect("a lease").get();
        self.with(|core, now, effects| core.release(now, client, &[lease], effects)).unwrap();
    }

    pub(super) fn prefix(&mut self, keys: &[&str]) -> (usize, usize) {
        let keys = batch(keys);
        let found = self.with(|core, now, effects| core.match_prefix(now, &keys, effects));
        (found.present, found.pending)
    }

    pub(super) fn remove(&mut self, keys: &[&str]) -> Vec<bool> {
        let keys = batch(keys);
        self.with(|core, now, effects| core.remove(now, &keys, effects)).removed
    }

    pub(super) fn exist(&mut self, key: &str) -> LocateOutcome {
        let keys = batch(&[key]);
        self.with(|core, now, effects| core.exist(now, &keys, effects))[0]
    }

    pub(super) fn is_there(&mut self, key: &str) -> bool {
        self.exist(key) == LocateOutcome::Located
    }

    pub(super) fn heartbeat(&mut self, node: u64, incarnation: u64) -> Result<bool, Refusal> {
        self.heartbeat_as(node, incarnation, &[])
    }

    /// As a node that has been told the names of its segments.
    pub(super) fn heartbeat_as(&mut self, node: u64, incarnation: u64, segments: &[u64]) -> Result<bool, Refusal> {
        let (node, incarnation) = (NodeId::new(node), Incarnation::new(incarnation));
        self.with(|core, now, effects| core.heartbeat(now, node, incarnation, segments, effects))
            .map(|beat| beat.joined)
    }

    /// Whether a node in its first life is told that there is work.
    pub(super) fn heartbeat_works(&mut self, node: u64) -> bool {
        let node = NodeId::new(node);
        self.with(|core, now, effects| core.heartbeat(now, node, Incarnation::new(1), &[], effects)).unwrap().work
    }

    pub(super) fn leave(&mut self, node: u64, incarnation: u64) -> Result<(), Refusal> {
        let (node, incarnation) = (NodeId::new(node), Incarnation::new(incarnation));
        self.with(|core, now, effects| core.leave(now, node, incarnation, effects))
    }

    pub(super) fn pass(&mut self, ms: u64) {
        self.now += ms;
        self.with(Core::advance);
    }

    pub(super) fn tick(&mut self) -> bool {
        self.with(Core::tick)
    }

    pub(super) fn status(&mut self) -> Report {
        self.with(Core::status)
    }

    pub(super) fn used_bytes(&mut self) -> u64 {
        self.status().nodes.iter().map(|node| node.used_bytes).sum()
    }
}

/// Tells generations apart in assertions.
pub(super) fn generation(ticket: &Ticket) -> Generation {
    ticket.generation
}
