//! A participant that lends memory.

use memcache_types::{Incarnation, NodeId};

use super::clock::Millis;
use super::segment::Segment;
use super::slab::Slot;

/// A node that has joined.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) name: Box<str>,
    pub(super) segments: Vec<Slot<Segment>>,
    /// When it last joined or sent a heartbeat.
    pub(super) heard: Millis,
}
