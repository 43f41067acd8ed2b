//! Every bound the system promises, in one place. A value past its bound is refused by name.

/// Longest object key, in bytes. The shortest is one byte.
pub const KEY_BYTES_MAX: usize = 256;

/// Most keys one call may carry. Larger batches are the caller's to split.
pub const BATCH_KEYS_MAX: usize = 65_536;

/// Largest object payload, in bytes (1 TiB): anything larger is an arithmetic slip, not a block.
pub const OBJECT_BYTES_MAX: u64 = 1 << 40;

/// Smallest segment a node may lend, in bytes.
pub const SEGMENT_BYTES_MIN: u64 = 1 << 20;

/// Largest segment a node may lend, in bytes (256 TiB, the user half of a 48-bit address space is half of that).
pub const SEGMENT_BYTES_MAX: u64 = 1 << 48;

/// Alignment of every extent inside a segment, in bytes: a cache line, so that two objects never share one.
pub const EXTENT_ALIGN: u64 = 64;

/// Bytes at the end of every extent that say what it holds. One cache line.
pub const TRAILER_BYTES: u64 = TRAILER_LEN as u64;

/// [`TRAILER_BYTES`] as an array length.
pub const TRAILER_LEN: usize = 64;

/// Most pieces one object may be gathered from or scattered to.
pub const PIECES_MAX: usize = 1 << 20;

/// Most replicas of one key.
pub const REPLICAS_MAX: usize = 8;

/// Most segments one node may lend.
pub const NODE_SEGMENTS_MAX: usize = 64;

/// Largest opaque region descriptor, in bytes.
pub const DESCRIPTOR_BYTES_MAX: usize = 4096;

/// Longest human-readable node name, in bytes.
pub const NODE_NAME_BYTES_MAX: usize = 256;

/// Most fields of one registered fingerprint.
pub const FINGERPRINT_FIELDS_MAX: usize = 64;

/// Longest name or value of one fingerprint field, in bytes.
pub const FINGERPRINT_FIELD_BYTES_MAX: usize = 4096;
