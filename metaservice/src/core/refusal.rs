//! Why a whole request is not served.

use memcache_types::{Incarnation, NodeId, SegmentId};
use thiserror::Error;

/// Why a whole request is not served. Trouble with one key is told in that key's outcome instead.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// A bound of the service.
    #[error("{what}: {found} is over the limit of {limit}")]
    Limit {
        /// What there would be too much of.
        what: &'static str,
        /// How much there would be.
        found: u64,
        /// The bound.
        limit: u64,
    },
    /// A number outside its range.
    #[error("{what} = {value}: want {want}")]
    Value {
        /// The field.
        what: &'static str,
        /// What it holds.
        value: u64,
        /// What it may hold.
        want: &'static str,
    },
    /// Parallel arrays of different lengths.
    #[error("{what} has {found} elements, want {want}")]
    Length {
        /// The array.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length it must have.
        want: usize,
    },
    /// A claim of an earlier life of a node.
    #[error("node {node}: incarnation {claimed} is over, the present one is {current}")]
    Stale {
        /// The node.
        node: NodeId,
        /// The life the claim was made under.
        claimed: Incarnation,
        /// The life that counts.
        current: Incarnation,
    },
    /// A join that was sent before the node was first heard of, and comes when it is gone again: what it says of its
    /// memory is no longer so.
    #[error("node {node}: incarnation {incarnation} joined before, and this join was sent before that")]
    Late {
        /// The node.
        node: NodeId,
        /// The life it joined under.
        incarnation: Incarnation,
    },
    /// A node speaks of a segment that is not lent any more: it was dropped meanwhile, and should join again.
    #[error("node {node}: segment {segment} is not lent")]
    NotLent {
        /// The node.
        node: NodeId,
        /// The segment.
        segment: SegmentId,
    },
    /// A node that has joined comes again with other memory under the same incarnation.
    #[error("node {node}: incarnation {incarnation} has already joined with other segments")]
    Changed {
        /// The node.
        node: NodeId,
        /// The life it joined under.
        incarnation: Incarnation,
    },
}
