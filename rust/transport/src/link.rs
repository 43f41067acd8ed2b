//! What every road promises.

use std::fmt::Debug;
use std::time::Instant;

use memcache_types::limits::TRAILER_LEN;

use crate::capabilities::Capabilities;
use crate::error::TransportError;
use crate::ops::{ReadOp, WriteOp};
use crate::protocol::Protocol;

/// A way into one region of memory, owned by this process or another.
///
/// Extents start and end at multiples of 64 bytes and hold payload and trailer; the local pieces add up to the
/// payload. An operation that breaks this, or lies outside the region, is [`TransportError::InvalidOp`] and
/// touches nothing. Each operation has its own result, in the order given; one that fails leaves the others
/// alone unless the connection dies under them. Calls may come from many threads at once and never outlast
/// their deadline by more than one copy.
pub trait Link: Send + Sync + Debug {
    /// The road.
    fn protocol(&self) -> Protocol;

    /// Its limits.
    fn capabilities(&self) -> &Capabilities;

    /// Copies payloads into local pieces and returns, for each, the 64 trailer bytes found **after** the last
    /// byte of its payload was copied.
    ///
    /// A trailer that carries a generation known to be published before the call says that the payload is that
    /// generation's, whole. Anything else says that the local bytes mean nothing.
    ///
    /// # Safety
    /// Until the call returns, all pieces are writable, overlap nothing else that is accessed, and nobody else
    /// touches them. They hold undefined content afterwards where the operation failed.
    unsafe fn read(&self, ops: &[ReadOp<'_>], deadline: Instant) -> Vec<Result<[u8; TRAILER_LEN], TransportError>>;

    /// Copies local pieces to extents. The trailer of an extent is zeroed before the first byte of its payload
    /// changes, and the new one appears after the last.
    ///
    /// No operation starts after the deadline. One that failed may have left any payload, and no trailer; one
    /// that ended in [`TransportError::Timeout`] or [`TransportError::PeerGone`] may also have been done.
    ///
    /// # Safety
    /// Until the call returns, all pieces are readable and nobody writes to them.
    unsafe fn write(&self, ops: &[WriteOp<'_>], deadline: Instant) -> Vec<Result<(), TransportError>>;

    /// Whether the owner was still there when last heard of. Asks the system, not the owner: never waits.
    fn is_open(&self) -> bool {
        true
    }
}
