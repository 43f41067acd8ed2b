//! One object moved in parts, by several threads at the same time.

use std::fmt::Debug;
use std::time::Instant;

use memcache_memory::Part;
use memcache_types::limits::TRAILER_LEN;
use memcache_types::{Extent, ScatterList};

use crate::error::TransportError;

/// What a link on which the caller copies offers beyond whole operations ([`Link::parts`](crate::Link::parts)).
///
/// A read or write begins once, then its parts are copied by any threads in any order, then it ends once. Who ends it
/// has seen every part end (an acquire of what each thread released after its part), so that payload and trailer keep
/// the order that [`Link`](crate::Link) promises. An operation that is not ended leaves a read without meaning, and a
/// write without a trailer.
pub trait Parts: Send + Sync + Debug {
    /// Checks a read, as [`Link::read`](crate::Link::read) would, and touches nothing.
    fn begin_read(&self, extent: Extent, local: &ScatterList, deadline: Instant) -> Result<(), TransportError>;

    /// Copies one part of the payload into its pieces; with `summed` returns the CRC-32C of the bytes that arrived.
    /// Does not start after the deadline.
    ///
    /// # Safety
    /// As [`Link::read`](crate::Link::read), for the bytes of the part.
    unsafe fn read_part(
        &self,
        extent: Extent,
        local: &ScatterList,
        part: Part,
        summed: bool,
        deadline: Instant,
    ) -> Result<Option<u32>, TransportError>;

    /// The trailer bytes found now that all parts have been copied.
    fn end_read(&self, extent: Extent) -> Result<[u8; TRAILER_LEN], TransportError>;

    /// Checks a write, as [`Link::write`](crate::Link::write) would, and takes the extent's trailer away.
    fn begin_write(&self, extent: Extent, local: &ScatterList, deadline: Instant) -> Result<(), TransportError>;

    /// Copies one part of the pieces to its place in the extent; with `summed` returns the CRC-32C of its bytes.
    /// Does not start after the deadline.
    ///
    /// # Safety
    /// As [`Link::write`](crate::Link::write), for the bytes of the part.
    unsafe fn write_part(
        &self,
        extent: Extent,
        local: &ScatterList,
        part: Part,
        summed: bool,
        deadline: Instant,
    ) -> Result<Option<u32>, TransportError>;

    /// Puts the trailer in place now that all parts have been copied.
    fn end_write(&self, extent: Extent, trailer: &[u8; TRAILER_LEN]) -> Result<(), TransportError>;
}
