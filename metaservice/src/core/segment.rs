//! Memory one node lends.

use memcache_types::{SegmentId, Tier};

use super::clock::Millis;
use super::list::List;
use super::node::Node;
use super::object::Object;
use super::pins::Pinned;
use super::policy::Shelves;
use super::record::Table;
use super::replicas::Surplus;
use super::reserve::Reservation;
use super::row::Row;
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
    /// The far end of time while its node has not told all that it holds.
    pub(super) usable_from: Millis,
    /// Until when it rests, while its node has not told all that it holds.
    pub(super) listing: Option<Millis>,
    /// Of removals noted up to here it holds nothing, or nothing that is not noted again: it was here.
    pub(super) seen: u64,
    /// Where it writes down what it holds.
    pub(super) table: Table,
    /// Readable objects without a record, because the table was full or there is none.
    pub(super) unrecorded: u64,
    /// Objects without leases that are the last of their key, as the policy wants them. They may be evicted.
    pub(super) idle: Shelves<Object>,
    /// Objects without leases whose key has other replicas. They are evicted before any of `idle`.
    pub(super) surplus: Surplus,
    /// Extents of the `idle` and `surplus` objects.
    pub(super) idle_bytes: u64,
    /// Objects that are kept from eviction. Those without leases are in neither `idle` nor `surplus`.
    pub(super) pinned: Pinned,
    /// Objects with leases, readable or not.
    pub(super) leased: List<Object>,
    /// Readable objects.
    pub(super) objects: u64,
    /// Those of them that are counted although everything was removed.
    pub(super) hidden: u64,
    /// Its objects in the order in which they lie, where that was asked for.
    pub(super) row: Option<Box<Row>>,
    /// Shortest extents for which no hole can be made here, without giving up pins and with the soft ones given up. Not
    /// known any more when something here may go that might not before.
    pub(super) no_hole: [u64; 2],
    /// Live reservations here, in no order; each knows its position.
    pub(super) reservations: Vec<Slot<Reservation>>,
    /// Its node is gone: nothing here is readable any more, and what is left is forgotten in steps.
    pub(super) gone: bool,
    /// Free bytes and longest free run under which it stands among those that take new objects; `None`: it takes none.
    pub(super) shelved: Option<(u64, u64)>,
}

impl Segment {
    /// Objects here, but for what was removed and is not forgotten yet.
    pub(super) const fn readable_objects(&self) -> u64 {
        self.objects - self.hidden
    }

    /// Something may go that might not before, or is free.
    pub(super) const fn may_have_holes(&mut self) {
        self.no_hole = [u64::MAX; 2];
    }
}
