//! Where bytes are in the pool: a segment and an offset, never a pointer.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::SegmentId;

/// Which kind of memory a segment is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Memory of an accelerator.
    Hbm,
    /// Host memory.
    Dram,
    /// A local drive.
    Ssd,
}

/// A place in the pool: a segment and a byte offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GlobalAddress {
    segment: SegmentId,
    offset: u64,
}

impl GlobalAddress {
    /// The place `offset` bytes into `segment`.
    pub const fn new(segment: SegmentId, offset: u64) -> Self {
        Self { segment, offset }
    }

    /// The segment.
    pub const fn segment(self) -> SegmentId {
        self.segment
    }

    /// Bytes from the start of the segment.
    pub const fn offset(self) -> u64 {
        self.offset
    }
}

/// A run of bytes inside one segment. Never empty, never past the end of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    address: GlobalAddress,
    bytes: u64,
}

/// Why a run of bytes is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RangeError {
    /// The run holds no byte.
    #[error("an extent of 0 bytes at offset {offset} of segment {segment}")]
    Empty {
        /// Segment the run was to lie in.
        segment: SegmentId,
        /// Its first byte.
        offset: u64,
    },
    /// The run ends past the end of its segment.
    #[error("bytes {offset}..+{bytes} lie outside segment {segment} of {limit} bytes")]
    Outside {
        /// Segment the run was to lie in.
        segment: SegmentId,
        /// Its first byte.
        offset: u64,
        /// Its length in bytes.
        bytes: u64,
        /// Length of the segment in bytes.
        limit: u64,
    },
}

impl Extent {
    /// A run of `bytes` bytes from `address`.
    pub const fn new(address: GlobalAddress, bytes: u64) -> Result<Self, RangeError> {
        if bytes == 0 {
            return Err(RangeError::Empty { segment: address.segment, offset: address.offset });
        }
        if address.offset.checked_add(bytes).is_none() {
            return Err(RangeError::Outside {
                segment: address.segment,
                offset: address.offset,
                bytes,
                limit: u64::MAX,
            });
        }
        Ok(Self { address, bytes })
    }

    /// The same run, checked to lie in a segment of `segment_bytes` bytes.
    pub const fn within(self, segment_bytes: u64) -> Result<Self, RangeError> {
        if self.end() > segment_bytes {
            return Err(RangeError::Outside {
                segment: self.address.segment,
                offset: self.address.offset,
                bytes: self.bytes,
                limit: segment_bytes,
            });
        }
        Ok(self)
    }

    /// First byte.
    pub const fn address(self) -> GlobalAddress {
        self.address
    }

    /// The segment it lies in.
    pub const fn segment(self) -> SegmentId {
        self.address.segment
    }

    /// Offset of the first byte.
    pub const fn offset(self) -> u64 {
        self.address.offset
    }

    /// Length in bytes, at least 1.
    #[allow(clippy::len_without_is_empty, reason = "an extent is never empty")]
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// Offset one past the last byte.
    pub const fn end(self) -> u64 {
        self.address.offset + self.bytes
    }
}
