//! What the planner is told.

use memcache_types::{Extent, ScatterList};

use super::cost::CostModel;
use crate::capabilities::Capabilities;

/// One object to move.
#[derive(Clone, Copy, Debug)]
pub struct PlanObject<'a> {
    /// Position among the request's peers.
    pub peer: usize,
    /// Where the object is in the peer's region.
    pub extent: Extent,
    /// Payload length in bytes; the local pieces hold as many.
    pub payload_bytes: u64,
    /// Its pieces in the address space of the device, in the order of the payload.
    pub local: &'a ScatterList,
}

/// A region and the link to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// Name for tables.
    pub name: String,
    /// What the link can do.
    pub capabilities: Capabilities,
    /// Whether the device's copy engine can address the region; if not, why.
    pub reach: Result<(), String>,
    /// The staging of the owner's device, if it relays through one that this device has a link to; if not, why.
    pub relay: Result<Staging, String>,
    /// Whether the processor makes a checksum of every payload.
    pub summed: bool,
    /// Whether the processor can read the region by address, to sum what the device copies by itself.
    pub cpu_sees_region: bool,
    /// What the legs between it and the device cost.
    pub costs: CostModel,
}

/// Slots that staged transfers go through in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staging {
    /// Length of one slot in bytes.
    pub slot_bytes: u64,
    /// Number of slots; two let both legs of a transfer run at the same time.
    pub slots: usize,
}

/// Where the local pieces are, and what moves them there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalView {
    /// Name of the device for tables.
    pub name: String,
    /// Whether links may read and write the pieces by themselves.
    pub cpu_touches: bool,
    /// Whether copies run beside the calling thread.
    pub runs_beside: bool,
    /// Most copies of one batch, at least 1.
    pub batch_copies_max: usize,
    /// Longest single copy in bytes, at least 64.
    pub copy_bytes_max: u64,
    /// What addresses, offsets and lengths of copies must be a multiple of, in bytes; 1 where anything goes.
    pub align: u64,
    /// Staging in pinned host memory, for path 0.
    pub pinned: Option<Staging>,
    /// Staging in the device, for paths 1 and 2.
    pub staging: Option<Staging>,
}

impl LocalView {
    /// Host memory with this staging for path 2.
    pub fn host(staging: Option<Staging>) -> Self {
        Self {
            name: "host".to_owned(),
            cpu_touches: true,
            runs_beside: false,
            batch_copies_max: usize::MAX,
            copy_bytes_max: u64::MAX,
            align: 1,
            pinned: staging,
            staging,
        }
    }
}
