//! What every road promises.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use memcache_memory::{RawRegion, checksum_pieces};
use memcache_types::limits::TRAILER_LEN;

use crate::capabilities::Capabilities;
use crate::error::TransportError;
use crate::ops::{ReadOp, SummedWriteOp, WriteOp};
use crate::parts::Parts;
use crate::protocol::Protocol;
use crate::relay::RelayClient;

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
    /// byte of its payload was copied. A link that copies parts of one payload at the same time looks behind each part
    /// and returns zeros unless it found the same every time.
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

    /// As [`read`](Self::read), and also returns the CRC-32C of each payload as it arrived in the pieces. Links make it
    /// while the bytes are in the cache, unless they have nothing better than this second pass.
    ///
    /// # Safety
    /// As [`read`](Self::read).
    unsafe fn read_summed(
        &self,
        ops: &[ReadOp<'_>],
        deadline: Instant,
    ) -> Vec<Result<([u8; TRAILER_LEN], u32), TransportError>> {
        // SAFETY: the same contract.
        let results = unsafe { self.read(ops, deadline) };
        // SAFETY: the pieces are readable and touched by nobody else until this returns.
        let sum = |op: &ReadOp<'_>| unsafe { checksum_pieces(op.local) };
        results.into_iter().zip(ops).map(|(result, op)| result.map(|trailer| (trailer, sum(op)))).collect()
    }

    /// As [`write`](Self::write), with the CRC-32C of each payload put into its trailer.
    ///
    /// # Safety
    /// As [`write`](Self::write).
    unsafe fn write_summed(&self, ops: &[SummedWriteOp<'_>], deadline: Instant) -> Vec<Result<(), TransportError>> {
        // SAFETY: the pieces are readable and unwritten until this returns.
        let trailers: Vec<_> = ops.iter().map(|op| op.seal(unsafe { checksum_pieces(op.local) })).collect();
        let ops: Vec<WriteOp<'_>> = ops.iter().zip(&trailers).map(|(op, trailer)| op.with_trailer(trailer)).collect();
        // SAFETY: the same contract.
        unsafe { self.write(&ops, deadline) }
    }

    /// Moves in parts, where the calling thread does the copying and several may work on one object.
    fn parts(&self) -> Option<&dyn Parts> {
        None
    }

    /// The region as this process sees it, where it is mapped here: what a device can be told to reach into. Valid, as
    /// memory of others is, for as long as the link lives.
    fn region(&self) -> Option<RawRegion<'_>> {
        None
    }

    /// The way to the owner's device, where the owner relays through one.
    fn relay(&self) -> Option<&Arc<RelayClient>> {
        None
    }

    /// Whether the owner was still there when last heard of. Asks the system, not the owner: never waits.
    fn is_open(&self) -> bool {
        true
    }
}
