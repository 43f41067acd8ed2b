//! What can be wrong with a mailbox.

use std::io;

use thiserror::Error;

/// Why a mailbox is of no use.
#[derive(Debug, Error)]
pub enum MailboxError {
    /// The operating system refused something.
    #[error("{operation}: {source}")]
    System {
        /// What was asked for.
        operation: &'static str,
        /// The answer.
        source: io::Error,
    },
    /// What was handed over is not the memory of a mailbox, or could still shrink under whoever maps it.
    #[error("this is not the memory of a mailbox: {0}")]
    Foreign(&'static str),
    /// The other end says that it has written or read what it cannot have.
    #[error("the other end claims {claimed} bytes in a ring of {limit}")]
    Corrupt {
        /// How many bytes would lie in the ring.
        claimed: u64,
        /// How many can.
        limit: u64,
    },
}

impl MailboxError {
    pub(crate) fn system(operation: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |error| Self::System { operation, source: error.into() }
    }
}

impl From<MailboxError> for io::Error {
    fn from(error: MailboxError) -> Self {
        match error {
            MailboxError::System { source, .. } => source,
            other => Self::new(io::ErrorKind::InvalidData, other.to_string()),
        }
    }
}
