//! What the core asks its shell to do: today, to tell people.

use memcache_types::{Incarnation, NodeId};

use super::node::Drain;

/// Something that happened and that the shell should log and count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A node lends memory from now on.
    NodeJoined {
        /// The node.
        node: NodeId,
        /// Which life of it.
        incarnation: Incarnation,
        /// Its name for humans.
        name: Box<str>,
        /// How much it lends.
        bytes: u64,
        /// Whether its memory rests first, because writers of an earlier life may still write to it.
        rests: bool,
    },
    /// A node has told all that its memory holds.
    Listed {
        /// The node.
        node: NodeId,
        /// Which life of it.
        incarnation: Incarnation,
        /// Readable objects there now.
        objects: u64,
    },
    /// Objects that a node told of were refused: they may have been removed while it was away, which is forgotten.
    Doubtful {
        /// The node.
        node: NodeId,
        /// Which life of it.
        incarnation: Incarnation,
        /// How many.
        objects: u64,
    },
    /// More was removed than is remembered: memory that was away since before loses what is older.
    RemovalsForgotten {
        /// How many removals there were.
        removals: u64,
    },
    /// A node's memory is no longer part of the pool.
    NodeGone {
        /// The node.
        node: NodeId,
        /// Which life of it.
        incarnation: Incarnation,
        /// Its name for humans.
        name: Box<str>,
        /// Why.
        reason: GoneReason,
        /// Readable objects that went with it.
        objects: u64,
    },
    /// A node's use passed the high watermark and objects were evicted.
    Evicted {
        /// The node.
        node: NodeId,
        /// How many.
        objects: u64,
        /// Extents they took up.
        bytes: u64,
    },
    /// A node begins to be emptied, or `None`: it does no longer.
    Draining {
        /// The node.
        node: NodeId,
        /// How.
        drain: Option<Drain>,
    },
    /// Readers found replicas damaged, which are forgotten.
    Damaged {
        /// How many.
        replicas: u64,
    },
    /// Reservations ran out before they were sealed.
    ReservationsExpired {
        /// How many.
        count: u64,
    },
}

/// Why a node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoneReason {
    /// It said so.
    Left,
    /// No heartbeat for too long.
    Silent,
    /// It joined again in a newer life.
    Replaced,
}
