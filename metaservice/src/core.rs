//! The book: where every object is, who lends what, who may be evicted.
//!
//! Pure: a request and the time go in, a reply comes out, and what the shell should tell people is added to a list of
//! [`Effect`]s. No clock, no randomness, no environment, no waiting; the same calls give the same answers. Decisions
//! never depend on the order of a hash table.
//!
//! One `Core` is one shard under one lock. Everything that belongs to a key (entry, reservations, object) depends on
//! its hash alone, and everything that belongs to space depends on its segment: those would be the two families of
//! locks, keys before segments, if one lock became too few.
//!
//! `CONTRACT.md` lists what it promises and the test of each promise.

mod burial;
mod clock;
mod damage;
mod drain;
mod effect;
mod evict;
mod fingerprints;
mod hole;
mod hot;
mod index;
pub mod limits;
mod list;
mod listing;
mod lives;
mod lookup;
mod membership;
mod node;
mod object;
mod pins;
mod place;
mod places;
mod policy;
mod record;
mod refusal;
mod removals;
mod remove;
mod repair;
mod replicas;
mod reserve;
mod row;
mod search;
mod segment;
mod slab;
mod space;
mod squeeze;
mod status;
mod sweep;
mod table;
mod using;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hashbrown::HashTable;
pub use memcache_config::EvictionPolicy;
use memcache_types::{ClientId, Epoch, NodeId, SegmentId};

pub use self::clock::Millis;
pub use self::drain::DrainReport;
pub use self::effect::{Effect, GoneReason};
pub use self::evict::{Cause, Evictions};
pub use self::fingerprints::Difference;
pub use self::listing::{Holdings, Listed};
pub use self::lookup::{Found, LocateReply, PrefixReply};
pub use self::membership::{Beat, JoinReply, JoinRequest, SegmentDescription, SegmentOffer};
pub use self::node::{Amount, Drain};
pub use self::pins::PinReport;
pub use self::record::RecordAt;
pub use self::refusal::Refusal;
pub use self::remove::{Removed, RemovedAll};
pub use self::repair::{CopyTask, WorkReply};
pub use self::reserve::{Clear, ReserveReply, ReserveRequest, Ticket};
pub use self::search::SearchLimits;
pub use self::status::{KeyReport, NodeReport, ReplicaReport, Report};

use self::fingerprints::Fingerprints;
use self::hot::{Extras, Hot};
use self::index::KeyIndex;
use self::limits::TICK_STEPS;
use self::list::List;
use self::lives::OwnIds;
use self::lookup::{Lease, Leasing};
use self::membership::Departed;
use self::node::Node;
use self::object::Object;
use self::pins::Pins;
use self::places::Places;
use self::policy::AnyPolicy;
use self::record::Stale;
use self::removals::Removals;
use self::repair::Repairs;
use self::reserve::{Quarantine, Reservation};
use self::segment::Segment;
use self::slab::{Slab, Slot};
use self::sweep::Sweep;
use self::using::Second;

/// How the core behaves. Lengths of time in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a reservation may stay unsealed, and how long space rests after one ran out.
    pub reservation_ttl_ms: u32,
    /// How long a lease keeps objects in place.
    pub lease_ms: u32,
    /// How often nodes are asked to send a heartbeat.
    pub heartbeat_ms: u32,
    /// Silence after which a node is gone.
    pub node_dead_ms: u32,
    /// Eviction starts above this many millionths of a node's memory.
    pub high_watermark_ppm: u32,
    /// Eviction stops at this many millionths of a node's memory.
    pub low_watermark_ppm: u32,
    /// What hard pins may hold, in millionths of a node's memory.
    pub hard_pin_ppm: u32,
    /// What all extra replicas of hot keys may hold, in bytes; 0: there are none.
    pub hot_replica_bytes: u64,
    /// How many removals are remembered, for nodes that are away.
    pub removals_max: u32,
    /// How many objects that are out of sight, because of a removal of everything or on nodes that are gone, one call
    /// forgets; a tick forgets 16 times as many.
    pub step: u32,
    /// Which objects go first.
    pub policy: EvictionPolicy,
    /// How far it looks for room.
    pub search: SearchLimits,
}

/// Ids that no two lives of the service share: a life that lasts T milliseconds may issue 2^22 ids in each of them
/// before it could reach the first id of the life after it.
const EPOCH_SHIFT: u32 = 22;

/// The whole state of one `MetaService`.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    epoch: Epoch,
    now: Millis,
    started: Millis,
    /// Last id issued: generations, reservations, leases and segments share one row of numbers.
    serial: u64,
    own: OwnIds,
    /// Last use number issued.
    uses: u64,
    second: Second,
    policy: AnyPolicy,
    /// What nodes lend, in bytes.
    lent_bytes: u64,
    index: KeyIndex,
    objects: Slab<Object>,
    /// Keys that are readable, and their replicas; those on nodes that are gone count until they are forgotten.
    readable: u64,
    replicas: u64,
    segments: Slab<Segment>,
    segment_ids: BTreeMap<SegmentId, Slot<Segment>>,
    /// Segments whose nodes have not told of everything that their tables named when they joined.
    untold: BTreeSet<SegmentId>,
    places: Places,
    /// Segments whose objects are known in the order in which they lie, or will be.
    rows: BTreeSet<Slot<Segment>>,
    /// Segments whose nodes are gone, until all their objects are forgotten.
    graves: VecDeque<Slot<Segment>>,
    sweep: Sweep,
    nodes: Slab<Node>,
    /// Nodes that are being emptied.
    draining: BTreeSet<Slot<Node>>,
    repairs: Repairs,
    pins: Pins,
    /// Reservations that copy replicas.
    copies: usize,
    /// Replicas beyond those asked for, and extents of those under way.
    extras: Extras,
    extras_coming: u64,
    /// `None`: hot keys get none.
    hot: Option<Box<Hot>>,
    node_ids: BTreeMap<NodeId, Slot<Node>>,
    /// Nodes that are gone, and the order in which they went.
    departed: BTreeMap<NodeId, Departed>,
    departed_order: VecDeque<NodeId>,
    /// No node can count as dead before.
    next_death: Millis,
    reservations: Slab<Reservation>,
    reservation_ids: HashTable<Slot<Reservation>>,
    /// All reservations; the deadlines are in the same order.
    reservation_order: List<Reservation>,
    client_reservations: BTreeMap<ClientId, u32>,
    /// Space that rests before it is used again, in the order of its release.
    quarantine: VecDeque<Quarantine>,
    /// Records that may still stand although their object is gone.
    stale: Slab<Stale>,
    /// The same by the hashes of the keys they may speak of.
    stale_names: HashTable<(u64, Slot<Stale>)>,
    /// Stale records of objects that are no longer readable and still in place, by segment and offset.
    lingering: BTreeMap<(SegmentId, u64), Slot<Stale>>,
    /// What was removed, lest a node that was away bring it back.
    removals: Removals,
    /// Objects that nodes told of and that were refused because they may have been removed.
    doubtful: u64,
    leases: Slab<Lease>,
    lease_ids: HashTable<Slot<Lease>>,
    client_leases: BTreeMap<ClientId, Leasing>,
    /// All leases; the deadlines are in the same order.
    lease_order: List<Lease>,
    /// Objects named by all leases, counted once a lease.
    leased: usize,
    fingerprints: Fingerprints,
    evicted: Evictions,
    /// Objects looked at to find room for puts.
    looked: u64,
}

impl Core {
    /// A book that knows nothing yet. `epoch` should be greater than that of any service the pool had before, by at
    /// least the milliseconds that one lived: the wall clock at start does it, unless it was set back (`lives.rs`).
    pub fn new(settings: Settings, epoch: Epoch, now: Millis) -> Self {
        Self {
            settings,
            epoch,
            now,
            started: now,
            serial: epoch.get() << EPOCH_SHIFT,
            own: OwnIds::new(epoch.get() << EPOCH_SHIFT),
            uses: 0,
            second: Second::new(now),
            policy: AnyPolicy::new(settings.policy),
            lent_bytes: 0,
            index: KeyIndex::new(),
            objects: Slab::new(),
            readable: 0,
            replicas: 0,
            segments: Slab::new(),
            segment_ids: BTreeMap::new(),
            untold: BTreeSet::new(),
            places: Places::default(),
            rows: BTreeSet::new(),
            graves: VecDeque::new(),
            sweep: Sweep::default(),
            nodes: Slab::new(),
            draining: BTreeSet::new(),
            repairs: Repairs::default(),
            pins: Pins::default(),
            copies: 0,
            extras: Extras::default(),
            extras_coming: 0,
            hot: (settings.hot_replica_bytes > 0).then(|| Box::new(Hot::new(now))),
            node_ids: BTreeMap::new(),
            departed: BTreeMap::new(),
            departed_order: VecDeque::new(),
            next_death: now,
            reservations: Slab::new(),
            reservation_ids: HashTable::new(),
            reservation_order: List::new(),
            client_reservations: BTreeMap::new(),
            quarantine: VecDeque::new(),
            stale: Slab::new(),
            stale_names: HashTable::new(),
            lingering: BTreeMap::new(),
            removals: Removals::new(settings.removals_max),
            doubtful: 0,
            leases: Slab::new(),
            lease_ids: HashTable::new(),
            client_leases: BTreeMap::new(),
            lease_order: List::new(),
            leased: 0,
            fingerprints: Fingerprints::new(),
            evicted: Evictions::default(),
            looked: 0,
        }
    }

    /// Which life of the service this is. It is another number when an earlier life turns out to have had a later one.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How it behaves.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Lets time pass up to `now`: deadlines run out, silent nodes go. Every other call begins with this. Time that
    /// goes backwards stands still.
    pub fn advance(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        self.expire_reservations(effects);
        self.end_quarantine();
        self.expire_leases();
        self.end_pins();
        if self.now >= self.next_death {
            self.drop_silent_nodes(effects);
        }
        self.end_rests();
        self.resume_repairs();
        self.bury(self.settings.step as usize);
    }

    /// How many objects that are out of sight one tick forgets.
    const fn tick_step(&self) -> usize {
        self.settings.step as usize * TICK_STEPS
    }

    /// What is to be done now and then: [`Self::advance`], and eviction down to the low watermark. True: there is
    /// more to evict than one tick may; call again soon.
    pub fn tick(&mut self, now: Millis, effects: &mut Vec<Effect>) -> bool {
        self.advance(now, effects);
        let buries = self.bury(self.tick_step()) || self.is_late();
        if self.sweep.is_on() {
            // What is out of sight still has space and stands among victims: nothing is evicted or moved for it.
            return true;
        }
        let drains = self.drain_step();
        self.find_repairs();
        self.retire_extras();
        let tends = self.tend_rows();
        self.evict_to_watermark(effects) || buries || drains || tends
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }
}

#[cfg(test)]
mod tests;
