//! Why bytes did not move.

use std::io;

use thiserror::Error;

use crate::protocol::Protocol;

/// Why an operation or a connection failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The process that lends the memory is no longer there, or it hung up.
    #[error("the peer is gone")]
    PeerGone,
    /// The deadline passed. A write may or may not have happened.
    #[error("the deadline passed")]
    Timeout,
    /// The peer answered no.
    #[error("the peer refused: {reason}")]
    Refused {
        /// What it said.
        reason: String,
    },
    /// The address to serve on belongs to someone else.
    #[error("address {address} is already in use")]
    AddressInUse {
        /// Host and port.
        address: String,
    },
    /// The operation makes no sense and was not tried.
    #[error("invalid operation: {why}")]
    InvalidOp {
        /// Which rule it breaks.
        why: String,
    },
    /// This road does not lead there.
    #[error("{protocol} is not available: {why}")]
    Unavailable {
        /// The road.
        protocol: Protocol,
        /// What is missing.
        why: String,
    },
    /// It failed, and bytes of it may still land where they were sent.
    #[error("not finished: {why}")]
    Unfinished {
        /// What does not answer any more.
        why: String,
    },
    /// The system failed.
    #[error("{operation}: {message}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// Kind of the system's error.
        kind: io::ErrorKind,
        /// What the system said.
        message: String,
    },
}

impl TransportError {
    /// Whether the same operation may succeed if tried again, perhaps over a new link.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::PeerGone | Self::Timeout | Self::Io { .. } => true,
            Self::Unfinished { .. }
            | Self::Refused { .. }
            | Self::AddressInUse { .. }
            | Self::InvalidOp { .. }
            | Self::Unavailable { .. } => false,
        }
    }

    pub(crate) fn invalid(why: impl Into<String>) -> Self {
        Self::InvalidOp { why: why.into() }
    }

    /// The peer said no, for this reason.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into() }
    }

    /// What a failed system call on a connection means.
    pub fn from_io(operation: &'static str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof => Self::PeerGone,
            io::ErrorKind::TimedOut => Self::Timeout,
            kind => Self::Io { operation, kind, message: error.to_string() },
        }
    }
}
