//! One sealed object.

use std::num::NonZeroU64;

use memcache_types::{Generation, extent_bytes};

use super::index::Entry;
use super::list::{Links, linked};
use super::record::RecordSlot;
use super::segment::Segment;
use super::slab::Slot;

/// A sealed object, one replica of its key: readable while it has an entry, in place while it is readable or leased.
///
/// It is in exactly one list of its segment: `leased` while anybody holds a lease on it, else `surplus` while its key
/// has other replicas, else `idle`. Kept small: there are many of them.
#[derive(Debug)]
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
    /// Number of the last use; greater is later, over all objects.
    pub(super) used: u64,
}

linked!(Object);

impl Object {
    pub(super) const fn extent_bytes(&self) -> u64 {
        extent_bytes(self.payload_bytes)
    }

    pub(super) const fn generation(&self) -> Generation {
        Generation::new(self.serial.get())
    }
}

const _: () = assert!(size_of::<Option<Object>>() <= 64, "objects are kept small");
