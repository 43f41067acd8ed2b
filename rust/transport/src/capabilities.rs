//! What a link can do, as data.

use crate::protocol::Protocol;

/// Limits and properties of one link. Fixed when it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The road.
    pub protocol: Protocol,
    /// Length of the region behind the link, in bytes.
    pub region_bytes: u64,
    /// Most local pieces of one operation.
    pub pieces_max: usize,
    /// Longest payload of one operation, in bytes.
    pub payload_bytes_max: u64,
    /// Whether the calling thread itself copies every byte, so that more threads may move more.
    pub copies_on_caller: bool,
    /// Connections one call may use at the same time; 0 where there are none.
    pub connections: usize,
}
