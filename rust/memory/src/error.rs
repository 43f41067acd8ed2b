//! Why memory could not be had.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a segment could not be made or mapped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The asked length is outside the limits.
    #[error("a segment of {bytes} bytes: want {min} to {max} bytes")]
    Size {
        /// What was asked for.
        bytes: u64,
        /// Smallest legal length in bytes.
        min: u64,
        /// Largest legal length in bytes.
        max: u64,
    },
    /// The system refused.
    #[error("{operation} of {bytes} bytes failed: {source}")]
    System {
        /// The call that failed.
        operation: &'static str,
        /// Length of the memory in bytes.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
    /// Memory cannot be had on a NUMA node.
    #[error("no memory on NUMA node {node}: {why}")]
    Node {
        /// Number of the node.
        node: u32,
        /// What is wrong.
        why: String,
    },
    /// A file that was to be lent cannot be.
    #[error("cannot lend the memory in {}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A file descriptor handed over by a peer is shorter than the peer said.
    #[error("the peer's memory holds {actual} bytes, {promised} were promised")]
    Short {
        /// Bytes the descriptor has.
        actual: u64,
        /// Bytes the peer promised.
        promised: u64,
    },
    /// A file descriptor handed over by a peer could still shrink under its readers.
    #[error("the peer's memory is not sealed against shrinking: reading it could kill this process")]
    Unsealed,
}

impl MemoryError {
    pub(crate) fn system(operation: &'static str, bytes: u64, source: impl Into<io::Error>) -> Self {
        Self::System { operation, bytes, source: source.into() }
    }
}
