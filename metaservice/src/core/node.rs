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
    /// They go.
    Drop,
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
    /// When it last joined or sent a heartbeat.
    pub(super) heard: Millis,
}
