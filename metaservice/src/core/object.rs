//! One sealed object.

use std::num::NonZeroU64;

use memcache_types::{Generation, extent_bytes};

use super::index::Entry;
use super::list::{Links, linked};
use super::policy::{MARK_BITS, Mark, Shelved};
use super::record::RecordSlot;
use super::segment::Segment;
use super::slab::Slot;

/// A sealed object, one replica of its key: readable while it has an entry, in place while it is readable or leased.
///
/// It is in exactly one list of its segment: `leased` while anybody holds a lease on it, else in `surplus` while its key
/// has other replicas, else `idle`. Kept small: there are many of them.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Object {
    pub(super) links: Links<Object>,
    /// `None`: removed, and kept only for those who still read it.
    pub(super) entry: Option<Slot<Entry>>,
    /// The next replica of the same key.
    pub(super) sibling: Option<Slot<Object>>,
    /// `None`: its node is gone, and it is kept only for the leases that name it.
    pub(super) segment: Option<Slot<Segment>>,
    pub(super) leases: u32,
    /// Where its record is. `None`: it has none, or it is no longer readable.
    pub(super) record: Option<RecordSlot>,
    pub(super) offset: u64,
    pub(super) payload_bytes: u64,
    pub(super) serial: NonZeroU64,
    /// Number of the last use and mark of the policy, packed. A number of 0: not used yet.
    stamp: u64,
}

linked!(Object);

impl Object {
    /// A replica that is in no list yet.
    pub(super) const fn new(
        segment: Slot<Segment>,
        offset: u64,
        payload_bytes: u64,
        serial: NonZeroU64,
        record: Option<RecordSlot>,
    ) -> Self {
        Self {
            links: Links::new(),
            entry: None,
            sibling: None,
            segment: Some(segment),
            leases: 0,
            record,
            offset,
            payload_bytes,
            serial,
            stamp: 0,
        }
    }

    /// Number of the last use; greater is later, over all objects.
    pub(super) const fn used(&self) -> u64 {
        self.stamp >> MARK_BITS
    }

    /// Ten million uses a second have numbers for ten years.
    pub(super) fn set_used(&mut self, number: u64) {
        self.stamp = number << MARK_BITS | u64::from(self.mark());
    }

    pub(super) const fn extent_bytes(&self) -> u64 {
        extent_bytes(self.payload_bytes)
    }

    pub(super) const fn generation(&self) -> Generation {
        Generation::new(self.serial.get())
    }
}

impl Shelved for Object {
    fn used(&self) -> u64 {
        self.used()
    }

    #[allow(clippy::cast_possible_truncation, reason = "the low bits are what is asked for")]
    fn mark(&self) -> Mark {
        self.stamp as Mark & ((1 << MARK_BITS) - 1)
    }

    fn set_mark(&mut self, mark: Mark) {
        self.stamp = self.used() << MARK_BITS | u64::from(mark);
    }

    fn bytes(&self) -> u64 {
        self.extent_bytes()
    }
}

const _: () = assert!(size_of::<Option<Object>>() <= 64, "objects are kept small");
