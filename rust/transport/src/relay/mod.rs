//! Path 1: an owner copies between its region and the staging of its own device, a peer's device between that staging
//! and its own. What goes over a link between devices needs no access to the owner's memory from outside.
//!
//! The requests travel over the owner's TCP data server, on connections of their own:
//!
//! | request | answer |
//! |---|---|
//! | [`Offer`](RelayRequest::Offer) | how to reach the staging |
//! | [`Lease`](RelayRequest::Lease) | a set of slots that is this connection's, or [`Busy`](RelayReply::Busy) |
//! | [`Fetch`](RelayRequest::Fetch) | runs of extents are in a slot; their trailers and checksums as found afterwards |
//! | [`Store`](RelayRequest::Store) | a slot is in runs of extents; trailers taken away before, written after |
//! | [`Release`](RelayRequest::Release) | none: no copy of the peer touches the set any more |
//!
//! The owner's processor keeps the law of trailers (ADR 0001) on both ways and makes the checksums: it sees the region,
//! the peer need not. The staging of a peer that went without a word rests until its last deadline has passed and
//! its device has had time to stop (ADR 0015).

mod client;
mod frame;
mod link;
mod session;

use std::fmt::Debug;
use std::time::Instant;

use memcache_types::limits::TRAILER_LEN;

use crate::plan::Way;

pub use client::{RelayCall, RelayClient};
pub(crate) use link::RelayedLink;
pub(crate) use session::RelaySession;

pub(crate) use frame::{RELAY_BODY_MAX, decode_request, encode_reply};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use frame::{decode_reply, encode_request};

/// Most runs of one step.
pub const RELAY_RUNS_MAX: usize = 1024;

/// What an owner offers to devices that have a link to its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayOffer {
    /// What the owner's device exported: all sets of slots, one after the other.
    pub export: Vec<u8>,
    /// Length of a slot in bytes.
    pub slot_bytes: u64,
    /// Slots of a set.
    pub slots: u32,
    /// Number of sets.
    pub sets: u32,
}

/// A contiguous run of an object's payload, in its extent and in a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayRun {
    /// Where the object's extent begins in the region, in bytes.
    pub offset: u64,
    /// Length of the extent in bytes, its trailer included.
    pub extent_bytes: u64,
    /// Where the run begins in the extent, in bytes; a multiple of 64.
    pub start: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// Where it lies in the slot, in bytes; a multiple of 64.
    pub staging_offset: u64,
    /// The object ends with it: what a store writes as its trailer. A fetch ignores what is in there.
    pub trailer: Option<[u8; TRAILER_LEN]>,
}

/// What is copied at a time: one filling of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayStep {
    /// Which slot of the leased set.
    pub slot: u32,
    /// Whether the owner makes the CRC-32C of every run; a store puts it into the trailers.
    pub summed: bool,
    /// 1 to [`RELAY_RUNS_MAX`] runs, those of one object in order.
    pub runs: Vec<RelayRun>,
}

/// What a peer asks of an owner that relays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayRequest {
    /// How to reach its staging.
    Offer,
    /// A set of slots.
    Lease,
    /// From extents to a slot.
    Fetch(RelayStep),
    /// From a slot to extents.
    Store(RelayStep),
    /// The set is the owner's again.
    Release,
}

/// What a fetch found once a run was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The last 64 bytes of the extent.
    pub trailer: [u8; TRAILER_LEN],
    /// CRC-32C of the run; 0 if it was not asked for.
    pub sum: u32,
}

/// What the owner says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayReply {
    /// How to reach its staging.
    Offer(RelayOffer),
    /// Which set is leased.
    Lease {
        /// Position of the set in the staging.
        set: u32,
    },
    /// One for each run.
    Fetched(Vec<Fetched>),
    /// Everything is where it belongs.
    Stored,
    /// All sets are leased. Nothing was done.
    Busy,
    /// The owner's device did not do it. Nothing moves for it any more.
    Failed {
        /// What it said.
        why: String,
    },
    /// The owner's device did not do it and did not stop either: bytes may still land in the extents of a store.
    Lost {
        /// What it said.
        why: String,
    },
}

/// Why a host does not relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayRefusal {
    /// All sets are leased, or resting.
    Busy,
    /// The device did not do it. Nothing moves for it any more.
    Failed {
        /// What it said.
        why: String,
    },
    /// The device did not do it and does not stop.
    Lost {
        /// What it said.
        why: String,
    },
}

/// An owner's device, as the data server sees it. Crates above this one implement it.
pub trait RelayHost: Send + Sync + Debug {
    /// What peers are told.
    fn offer(&self) -> &RelayOffer;

    /// A set of slots, if one is free. Never waits.
    ///
    /// # Errors
    /// [`RelayRefusal`].
    fn lease(&self) -> Result<Box<dyn RelayLease>, RelayRefusal>;

    /// Where a simulated device is in time, in nanoseconds; 0 for real ones.
    fn clock_ns(&self) -> u64 {
        0
    }

    /// A request was sent at this time of another simulated device.
    fn hear_clock(&self, ns: u64) {
        let _ = ns;
    }
}

/// A set of slots in the hands of one peer. If it is dropped without [`release`](Self::release), copies of the peer may
/// still touch it: the set rests until [`deadline`](Self::rest_until) and a while longer.
pub trait RelayLease: Send + Debug {
    /// Position of the set in the staging.
    fn set(&self) -> u32;

    /// Begins to copy runs between the region and a slot: to the slot for a get, from it for a put. The runs have been
    /// checked against the region and the slot.
    ///
    /// # Errors
    /// [`RelayRefusal`]: then nothing was begun.
    fn begin(&mut self, way: Way, slot: u32, runs: &[RelayRun]) -> Result<(), RelayRefusal>;

    /// Waits until all that was begun has ended.
    ///
    /// # Errors
    /// [`RelayRefusal::Failed`] if the device failed or the deadline passed, and no byte moves for it any more;
    /// [`RelayRefusal::Lost`] if some may.
    fn end(&mut self, deadline: Instant) -> Result<(), RelayRefusal>;

    /// The peer may use the set until then.
    fn rest_until(&mut self, deadline: Instant);

    /// The peer has said that it touches the set no more.
    fn release(self: Box<Self>);
}
