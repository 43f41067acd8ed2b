//! A participant that lends memory.

use memcache_types::{Incarnation, NodeId};

use super::clock::Millis;
use super::segment::Segment;
use super::slab::Slot;

/// What becomes of the objects of a node that is being emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Those that are the last of their key are copied to other nodes first.
    Move,
    /// The same, and where no node has room the coldest objects of all make some: those here or those there.
    Evict,
    /// They go.
    Drop,
}

/// Objects that left a node, and their extents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub objects: u64,
    /// Bytes of their extents.
    pub bytes: u64,
}

impl Amount {
    pub(super) const fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// A node that has joined.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) name: Box<str>,
    pub(super) segments: Vec<Slot<Segment>>,
    /// How it is being emptied, if it is.
    pub(super) drain: Option<Drain>,
    /// What has left it since that began and is elsewhere.
    pub(super) moved: Amount,
    /// What has left it since then and is lost: the last of their keys.
    pub(super) dropped: Amount,
    /// When it last joined or sent a heartbeat.
    pub(super) heard: Millis,
}
