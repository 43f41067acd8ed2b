//! The wire: generated messages, and the only place where they turn into the words of `memcache-types`.
//!
//! [`pb`] is what `prost` and `tonic` make of `proto/meta.proto`. [`pack`] has the packed forms both ends share, [`lane`] the
//! lean connection for callers that wait.

#![forbid(unsafe_code)]

pub mod lane;
pub mod pack;

/// Messages and services generated from `proto/meta.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the protocol file is its documentation"
)]
pub mod pb {
    tonic::include_proto!("memcache.v1");
}

/// Largest message either end accepts, in bytes: a full batch of the longest keys with its arrays fits.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
