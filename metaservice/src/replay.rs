//! What a cache of a given size and policy would have served of recorded or generated requests.
//!
//! A replay drives the very [`Core`] that serves a pool, with the time of the requests: one node lends one segment of as
//! many blocks as the cache is to hold. For each request its blocks are matched, which is a use, and those that are not there
//! are reserved and sealed, all at one instant. So no reservation runs out; nothing is leased, as an object under a lease
//! loses its place in the queues of S3-FIFO; and watermarks are out of play: room is made on demand, for what comes in.
//!
//! A request hits its leading blocks that are there when it comes. The hit rate is over tokens: those of the hit blocks by
//! those of all requests, where the last block of a request may be a part of one. What a request writes itself, and what a
//! model answers, is no hit and is not stored.

mod clairvoyant;
mod trace;
mod workloads;

use memcache_types::{ClientId, Epoch, HoldingsPlace, Incarnation, KeyBatch, NodeId, Tier, extent_bytes};

pub use self::trace::{BLOCK_TOKENS, Request, Trace, TraceError};
pub use self::workloads::{HELD_OUT, VARIED, WORKLOADS, workload};

use crate::core::{
    Core, EvictionPolicy, JoinRequest, Millis, ReserveRequest, SearchLimits, SegmentOffer, Settings, limits,
};

const CLIENT: ClientId = ClientId::new(1);
const PAYLOAD_BYTES: u64 = (64 << 10) - 64;

/// Nothing runs out, and nothing is evicted before there is need.
const SETTINGS: Settings = Settings {
    reservation_ttl_ms: u32::MAX,
    lease_ms: u32::MAX,
    heartbeat_ms: 1000,
    node_dead_ms: u32::MAX,
    high_watermark_ppm: 1_000_000,
    low_watermark_ppm: 1_000_000,
    hard_pin_ppm: 250_000,
    hot_replica_bytes: 0,
    removals_max: limits::REMOVALS_MAX,
    step: limits::CALL_BURIALS_MAX,
    policy: EvictionPolicy::Lru,
    search: SearchLimits::DEFAULT,
};

/// Fewest blocks a replayed cache may hold: what the smallest segment holds.
pub const CAPACITY_BLOCKS_MIN: u64 = memcache_types::limits::SEGMENT_BYTES_MIN / extent_bytes(PAYLOAD_BYTES);
/// Most blocks a replayed cache may hold.
pub const CAPACITY_BLOCKS_MAX: u64 = 1 << 30;

/// Who decides what stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayPolicy {
    /// A policy of the service.
    Real(EvictionPolicy),
    /// The block whose next use is farthest goes first. It knows the future: a line to compare with.
    Clairvoyant,
}

impl ReplayPolicy {
    /// All, in the order of tables.
    pub const ALL: [Self; 4] = [
        Self::Real(EvictionPolicy::Lru),
        Self::Real(EvictionPolicy::S3Fifo),
        Self::Real(EvictionPolicy::Adaptive),
        Self::Clairvoyant,
    ];

    /// Its name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Real(policy) => policy.as_str(),
            Self::Clairvoyant => "clairvoyant",
        }
    }

    /// The policy of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == name)
    }
}

/// What one policy served at one capacity.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Who decided.
    pub policy: ReplayPolicy,
    /// Blocks the cache could hold.
    pub capacity_blocks: u64,
    /// Requests in all.
    pub requests: u64,
    /// Tokens of all requests.
    pub tokens: u64,
    /// Tokens of hit blocks.
    pub hit_tokens: u64,
    /// Blocks of all requests.
    pub blocks: u64,
    /// Hit blocks.
    pub hit_blocks: u64,
    /// Blocks evicted.
    pub evicted_blocks: u64,
}

impl Row {
    /// Part of the tokens that was hit.
    #[allow(clippy::cast_precision_loss, reason = "a rate needs no last digit")]
    pub fn hit_rate(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.hit_tokens as f64 / self.tokens as f64 }
    }
}

/// A cache that is asked for requests, one after the other.
trait Cache {
    /// Leading blocks of a request that are there; then all of it is.
    fn request(&mut self, request: &Request) -> usize;

    fn evicted(&mut self) -> u64;
}

/// Replays a trace. Panics if the capacity is not from [`CAPACITY_BLOCKS_MIN`] to [`CAPACITY_BLOCKS_MAX`].
pub fn replay(trace: &Trace, policy: ReplayPolicy, capacity_blocks: u64) -> Row {
    let within = (CAPACITY_BLOCKS_MIN..=CAPACITY_BLOCKS_MAX).contains(&capacity_blocks);
    assert!(within, "{capacity_blocks} blocks are not {CAPACITY_BLOCKS_MIN} to {CAPACITY_BLOCKS_MAX}");
    let mut cache: Box<dyn Cache> = match policy {
        ReplayPolicy::Real(policy) => Box::new(CoreCache::new(policy, capacity_blocks)),
        ReplayPolicy::Clairvoyant => Box::new(clairvoyant::Clairvoyant::new(trace, capacity_blocks)),
    };
    let mut row = Row {
        policy,
        capacity_blocks,
        requests: trace.requests.len() as u64,
        tokens: 0,
        hit_tokens: 0,
        blocks: 0,
        hit_blocks: 0,
        evicted_blocks: 0,
    };
    for request in &trace.requests {
        let hits = cache.request(request) as u64;
        row.tokens += request.tokens;
        row.hit_tokens += (hits * BLOCK_TOKENS).min(request.tokens);
        row.blocks += request.blocks.len() as u64;
        row.hit_blocks += hits;
    }
    row.evicted_blocks = cache.evicted();
    row
}

/// The core of the service, as a cache of blocks.
struct CoreCache {
    core: Core,
}

impl CoreCache {
    fn new(policy: EvictionPolicy, capacity_blocks: u64) -> Self {
        let mut core = Core::new(Settings { policy, ..SETTINGS }, Epoch::new(1), Millis::new(0));
        let bytes = capacity_blocks * extent_bytes(PAYLOAD_BYTES);
        let holdings = HoldingsPlace::default();
        let offer = SegmentOffer { bytes, tier: Tier::Dram, descriptor: Box::default(), holdings };
        let request = JoinRequest {
            node: NodeId::new(1),
            incarnation: Incarnation::new(1),
            name: "replay",
            offers: vec![offer],
            previous_epoch: Epoch::new(0),
            lists: false,
            floor: 0,
        };
        let joined = core.join(Millis::new(0), request, &mut Vec::new());
        joined.expect("a segment within the limits");
        Self { core }
    }
}

fn keys_of(blocks: &[u64]) -> KeyBatch {
    KeyBatch::from_keys(blocks.iter().map(|block| block.to_le_bytes())).expect("a trace has checked their number")
}

impl Cache for CoreCache {
    fn request(&mut self, request: &Request) -> usize {
        let (core, now, effects) = (&mut self.core, Millis::new(request.at_ms), &mut Vec::new());
        let all = keys_of(&request.blocks);
        let hits = core.match_prefix(now, &all, effects).present;
        if hits < request.blocks.len() {
            let rest = keys_of(&request.blocks[hits..]);
            let wanted = ReserveRequest {
                keys: &rest,
                payload_bytes: &[PAYLOAD_BYTES],
                near: None,
                replicas: 1,
                preferred: &[],
                exclusive: false,
            };
            let reserved = core.reserve(now, CLIENT, &wanted, effects).expect("a request within the limits");
            let ids: Vec<u64> = reserved.tickets.iter().map(|ticket| ticket.reservation.get()).collect();
            core.seal(now, CLIENT, &ids, effects).expect("a request within the limits");
        }
        hits
    }

    fn evicted(&mut self) -> u64 {
        self.core.status(Millis::new(0), &mut Vec::new()).evicted_objects
    }
}

#[cfg(test)]
mod tests;
