//! The words of `MemCache`: identities, addresses, sizes and the pure arithmetic over them.
//!
//! Everything here is data. Nothing in this crate waits, allocates memory for the pool, reads a
//! clock or touches a socket, and nothing in it is unsafe: a local address is a number until the
//! `memory` and `transport` crates give it a meaning.
//!
//! | module | words |
//! |---|---|
//! | [`ids`] | `NodeId`, `Incarnation`, `SegmentId`, `ClientId`, `Epoch`, `Generation`, `ReservationId`, `LeaseId` |
//! | [`key`] | `KeyDigest`, `KeyBatch` |
//! | [`address`] | `GlobalAddress`, `Extent`, `Tier` |
//! | [`extent`] | how many bytes an object takes up in a segment |
//! | [`bytes`] | `ByteCount` |
//! | [`scatter`] | `Piece`, `ScatterList` |
//! | [`layout`] | `BlockId`, `TensorView`, `KvLayout` |
//! | [`status`] | `PutStatus`, `GetStatus`, `PinStatus`: the truth about one key of a call |
//! | [`holdings`] | where a segment writes down what it holds |
//! | [`limits`] | every bound the system promises |

#![forbid(unsafe_code)]

pub mod address;
pub mod bytes;
pub mod extent;
pub mod holdings;
pub mod ids;
pub mod key;
pub mod layout;
pub mod limits;
pub mod scatter;
pub mod status;

pub use address::{Extent, GlobalAddress, RangeError, Tier};
pub use bytes::{ByteCount, ByteCountError};
pub use extent::{extent_bytes, payload_bytes_max};
pub use holdings::HoldingsPlace;
pub use ids::{ClientId, Epoch, Generation, Incarnation, LeaseId, NodeId, ReservationId, SegmentId};
pub use key::{KeyBatch, KeyDigest, KeyError};
pub use layout::{BlockId, KvLayout, LayoutError, TensorView};
pub use scatter::{Piece, ScatterList};
pub use status::{GetStatus, PinStatus, PutStatus};
