//! The truth about one key of a call. Numbers are part of the Python and C interfaces and never change.

/// What became of one key of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum PutStatus {
    /// Written and sealed by this call.
    Stored = 0,
    /// Already readable, or another writer sealed it first. Nothing of this call's value was kept.
    Present = 1,
    /// Another writer holds a reservation and this call asked not to race with it.
    Pending = 2,
    /// No node has room, even after eviction.
    NoSpace = -1,
    /// Larger than any segment of the pool.
    TooLarge = -2,
    /// The `MetaService` or the node that was to hold it cannot be reached.
    Unavailable = -3,
    /// The call's deadline passed first.
    Timeout = -4,
    /// The request for this key was malformed.
    Invalid = -5,
    /// The reservation ran out before the value was sealed.
    Lost = -6,
    /// The call was cancelled before the value was sealed; nothing of it was kept.
    Cancelled = -8,
}

/// What became of one key of a get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum GetStatus {
    /// The bytes are in place and verified.
    Hit = 0,
    /// Not in the pool, or gone before the read was over.
    Miss = 1,
    /// In the pool with another length than the destination; nothing was written.
    SizeMismatch = -1,
    /// The `MetaService` or the node that holds it cannot be reached.
    Unavailable = -3,
    /// The call's deadline passed first.
    Timeout = -4,
    /// The request for this key was malformed.
    Invalid = -5,
    /// The trailer or the checksum did not match: to be treated as a miss. The destination holds no usable data.
    Corrupt = -7,
    /// The call was cancelled before the bytes were in place.
    Cancelled = -8,
}

/// What became of one key that was to be pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum PinStatus {
    /// Kept from eviction.
    Pinned = 0,
    /// Not readable, and not pinned.
    Absent = 1,
    /// Not pinned: hard pins hold their part of a node's memory (`hard_pin_quota`) already.
    OverQuota = -1,
}

impl PinStatus {
    /// The number of the Python interface.
    pub const fn code(self) -> i32 {
        self as i32
    }
}

impl PutStatus {
    /// The number of the Python and C interfaces.
    pub const fn code(self) -> i32 {
        self as i32
    }

    /// Whether a get of this key may succeed now.
    pub const fn is_readable(self) -> bool {
        matches!(self, Self::Stored | Self::Present)
    }
}

impl GetStatus {
    /// The number of the Python and C interfaces.
    pub const fn code(self) -> i32 {
        self as i32
    }
}
