//! One object's move, and the checks every road makes before it.

use memcache_memory::{Checksum, OutOfBounds, RawRegion, Trailer};
use memcache_types::limits::{EXTENT_ALIGN, TRAILER_BYTES, TRAILER_LEN};
use memcache_types::{Extent, ScatterList};

use crate::error::TransportError;

/// Reads the payload of an extent into local pieces.
#[derive(Clone, Copy, Debug)]
pub struct ReadOp<'a> {
    /// Where the object is. Its segment id is the caller's affair: a link leads to one region.
    pub extent: Extent,
    /// Payload length in bytes; may be 0.
    pub payload_bytes: u64,
    /// Where the payload goes: exactly `payload_bytes` bytes.
    pub local: &'a ScatterList,
}

/// Writes local pieces and a trailer to an extent.
#[derive(Clone, Copy, Debug)]
pub struct WriteOp<'a> {
    /// Where the object goes.
    pub extent: Extent,
    /// Payload length in bytes; may be 0.
    pub payload_bytes: u64,
    /// Where the payload comes from: exactly `payload_bytes` bytes.
    pub local: &'a ScatterList,
    /// What stands at the end of the extent once all of the payload is there.
    pub trailer: &'a [u8; TRAILER_LEN],
}

/// Writes local pieces to an extent, and a trailer that carries their checksum.
#[derive(Clone, Copy, Debug)]
pub struct SummedWriteOp<'a> {
    /// Where the object goes.
    pub extent: Extent,
    /// Where the payload comes from: exactly as many bytes as the trailer says.
    pub local: &'a ScatterList,
    /// What stands at the end of the extent, with the checksum put in place of its own.
    pub trailer: &'a Trailer,
}

impl<'a> SummedWriteOp<'a> {
    /// The trailer with this CRC-32C.
    pub(crate) fn seal(&self, crc32c: u32) -> [u8; TRAILER_LEN] {
        Trailer { checksum: Checksum::Crc32c(crc32c), ..*self.trailer }.encode()
    }

    /// The same write with a trailer that is already made.
    pub(crate) fn with_trailer(&self, trailer: &'a [u8; TRAILER_LEN]) -> WriteOp<'a> {
        WriteOp { extent: self.extent, payload_bytes: self.trailer.payload_bytes, local: self.local, trailer }
    }
}

impl ReadOp<'_> {
    /// Whether the operation makes sense in a region of this many bytes.
    ///
    /// # Errors
    /// [`TransportError::InvalidOp`] naming the rule it breaks.
    pub fn check(&self, region_bytes: u64) -> Result<(), TransportError> {
        check(self.extent, self.payload_bytes, self.local, region_bytes)
    }
}

impl WriteOp<'_> {
    /// Whether the operation makes sense in a region of this many bytes.
    ///
    /// # Errors
    /// [`TransportError::InvalidOp`] naming the rule it breaks.
    pub fn check(&self, region_bytes: u64) -> Result<(), TransportError> {
        check(self.extent, self.payload_bytes, self.local, region_bytes)
    }
}

fn check(extent: Extent, payload_bytes: u64, local: &ScatterList, region_bytes: u64) -> Result<(), TransportError> {
    check_range(extent.offset(), extent.bytes(), payload_bytes, region_bytes)?;
    if local.bytes() != payload_bytes {
        return Err(TransportError::invalid(format!(
            "the local pieces hold {} bytes, the payload has {payload_bytes}",
            local.bytes()
        )));
    }
    if !local.is_within_limits() {
        return Err(TransportError::invalid(format!("{} pieces in one operation", local.pieces().len())));
    }
    Ok(())
}

/// The rules for an extent of a region, the same on both ends of a connection.
pub(crate) fn check_range(
    offset: u64,
    bytes: u64,
    payload_bytes: u64,
    region_bytes: u64,
) -> Result<(), TransportError> {
    if offset.checked_add(bytes).is_none_or(|end| end > region_bytes) {
        return Err(TransportError::invalid(OutOfBounds { offset, bytes, limit: region_bytes }.to_string()));
    }
    if !offset.is_multiple_of(EXTENT_ALIGN) || !bytes.is_multiple_of(EXTENT_ALIGN) {
        return Err(TransportError::invalid(format!(
            "extent {offset}..+{bytes} is not aligned to {EXTENT_ALIGN} bytes"
        )));
    }
    if payload_bytes.checked_add(TRAILER_BYTES).is_none_or(|needed| needed > bytes) {
        return Err(TransportError::invalid(format!(
            "a payload of {payload_bytes} bytes and its trailer do not fit in an extent of {bytes}"
        )));
    }
    Ok(())
}

/// The extent as a view. Call it with a range that [`check_range`] has passed.
pub(crate) fn view(region: RawRegion<'_>, offset: u64, bytes: u64) -> Result<RawRegion<'_>, TransportError> {
    region.sub(offset, bytes).map_err(|outside| TransportError::invalid(outside.to_string()))
}
