//! Why a whole call failed.

use memcache_device::DeviceError;
use memcache_memory::MemoryError;
use memcache_proto::pack::WireError;
use memcache_transport::TransportError;
use memcache_transport::plan::PlanError;
use memcache_types::{KeyError, LayoutError};
use thiserror::Error;

use crate::path::costs::CostsError;

/// Why a whole call failed. Trouble with single keys is told in their statuses instead.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A key breaks a limit.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A layout or block id is wrong.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Arguments that do not fit together.
    #[error("{0}")]
    Invalid(InvalidCall),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// Too much is under way already.
    #[error("{in_flight} puts and gets are under way, the limit; wait for some of them to end")]
    Busy {
        /// How many.
        in_flight: usize,
        /// Most allowed.
        limit: usize,
    },
    /// The process forked after the store was opened.
    #[error(
        "the store was opened in process {opened} and is used in process {used}: after a fork, open a new one in the child"
    )]
    Forked {
        /// Process that opened it.
        opened: u32,
        /// Process that calls.
        used: u32,
    },
    /// The `MetaService` cannot be reached.
    #[error("no MetaService at {address}: {why}")]
    Unavailable {
        /// Where it was looked for.
        address: String,
        /// What happened.
        why: String,
    },
    /// The deadline passed.
    #[error("no answer from the MetaService at {address} within {waited_ms} ms")]
    Timeout {
        /// Where it was looked for.
        address: String,
        /// How long was waited.
        waited_ms: u64,
    },
    /// The `MetaService` refused the request.
    #[error("the MetaService at {address} refused: {message}")]
    Refused {
        /// Who refused.
        address: String,
        /// Why.
        message: String,
    },
    /// Objects are removed, but a restart of the `MetaService` could bring some of them back.
    #[error("removed, but not everywhere for good, so that a restart of the MetaService may bring some back: {why}")]
    NotForgotten {
        /// Why the memory of a node could not be told.
        why: String,
    },
    /// The reply makes no sense.
    #[error("malformed reply: {0}")]
    Wire(#[from] WireError),
    /// Lending memory failed.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A transport could not start.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The costs of paths cannot be read.
    #[error(transparent)]
    Costs(#[from] CostsError),
    /// No plan for a transfer.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The process cannot start a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Arguments that do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidCall {
    /// Lists of different lengths.
    #[error("{keys} keys but {others} {what}")]
    Count {
        /// Number of keys.
        keys: usize,
        /// Number of the other things.
        others: usize,
        /// What they are.
        what: &'static str,
    },
    /// An object over the limit.
    #[error("value {index} has {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// Position in the batch.
        index: usize,
        /// Its size.
        bytes: u64,
        /// Largest allowed.
        limit: u64,
    },
    /// A device nobody knows.
    #[error("unknown device {name:?}: want \"host\" or \"twin\"")]
    Device {
        /// What was given.
        name: String,
    },
    /// A segment outside the limits.
    #[error("lend_bytes is {bytes}; a segment has {min} to {max} bytes")]
    SegmentSize {
        /// What was asked for.
        bytes: u64,
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
    /// A number of replicas outside the limits.
    #[error("{replicas} replicas; a key has 1 to {limit}")]
    Replicas {
        /// What was asked for.
        replicas: usize,
        /// Most allowed.
        limit: usize,
    },
    /// Too many pieces for one object.
    #[error("value {index} has {pieces} pieces; the limit is {limit}")]
    TooManyPieces {
        /// Position in the batch.
        index: usize,
        /// Its pieces.
        pieces: usize,
        /// Most allowed.
        limit: usize,
    },
}

impl From<InvalidCall> for StoreError {
    fn from(call: InvalidCall) -> Self {
        Self::Invalid(call)
    }
}
