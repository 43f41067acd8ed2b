//! Memory one node lends.

use memcache_types::{SegmentId, Tier};

use super::clock::Millis;
use super::list::List;
use super::node::Node;
use super::object::Object;
use super::slab::Slot;
use super::space::SpaceMap;

/// One piece of lent memory under one incarnation of its node.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: SegmentId,
    pub(super) node: Slot<Node>,
    /// Length as lent.
    pub(super) bytes: u64,
    pub(super) tier: Tier,
    pub(super) descriptor: Box<[u8]>,
    pub(super) space: SpaceMap,
    /// Nothing is placed here before: writers of an earlier life may still write.
    pub(super) usable_from: Millis,
    /// Objects without leases, which may be evicted, by last use.
    pub(super) idle: List<Object>,
    /// Extents of the `idle` objects.
    pub(super) idle_bytes: u64,
    /// Objects with leases, readable or not.
    pub(super) leased: List<Object>,
    /// Readable objects.
    pub(super) objects: u64,
}
