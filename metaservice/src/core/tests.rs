//! The rules of the book, one test each; what holds after every step; and a naive model beside it.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test may fail, and its numbers are small")]

mod evicting;
mod invariants;
mod membership;
mod model;
mod reading;
mod scopes;
mod sequences;
mod writing;

use memcache_proto::pb::{LocateOutcome, ReserveOutcome, SealOutcome};
use memcache_types::{ClientId, Epoch, Generation, Incarnation, KeyBatch, LeaseId, NodeId, SegmentId, Tier};

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
};

pub(super) const ALICE: ClientId = ClientId::new(1);
pub(super) const BOB: ClientId = ClientId::new(2);

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
        let core = Core::new(SETTINGS, Epoch::new(1000), Millis::new(0));
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
        let offer = SegmentOffer { bytes, tier: Tier::Dram, descriptor: node.to_le_bytes().into() };
        let who = (NodeId::new(node), Incarnation::new(incarnation));
        self.with(|core, now, effects| core.join(now, who, "node", vec![offer], Epoch::new(before), effects))
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
        let request = ReserveRequest { keys: &keys, payload_bytes, near: near.map(NodeId::new), exclusive };
        self.with(|core, now, effects| core.reserve(now, client, &request, effects))
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
        self.with(|core, now, effects| core.locate(now, client, &keys, effects)).unwrap()
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
        self.with(|core, now, effects| core.remove(now, &keys, effects))
    }

    pub(super) fn exist(&mut self, key: &str) -> LocateOutcome {
        let keys = batch(&[key]);
        self.with(|core, now, effects| core.exist(now, &keys, effects))[0]
    }

    pub(super) fn is_there(&mut self, key: &str) -> bool {
        self.exist(key) == LocateOutcome::Located
    }

    pub(super) fn heartbeat(&mut self, node: u64, incarnation: u64) -> Result<bool, Refusal> {
        let (node, incarnation) = (NodeId::new(node), Incarnation::new(incarnation));
        self.with(|core, now, effects| core.heartbeat(now, node, incarnation, effects))
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
