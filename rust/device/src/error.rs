//! Why a device did not do it.

use thiserror::Error;

/// Why a device did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No memory of this kind is left.
    #[error("{device}: no room for {bytes} bytes of {what}: {why}")]
    NoMemory {
        /// Which device.
        device: String,
        /// What was asked for.
        bytes: u64,
        /// Which memory.
        what: &'static str,
        /// What the system said, or what is in use.
        why: String,
    },
    /// A copy that breaks a rule. Nothing of its batch was done.
    #[error("{device}: copy {index} of a batch ({direction}): {why}")]
    InvalidCopy {
        /// Which device.
        device: String,
        /// Which way.
        direction: &'static str,
        /// Position in the batch.
        index: usize,
        /// The rule it breaks, with value and limit.
        why: String,
    },
    /// The deadline passed first. What was waited for goes on.
    #[error("{device}: the deadline passed")]
    Timeout {
        /// Which device.
        device: String,
    },
    /// The copies before this point were cancelled; what they wrote is undefined.
    #[error("{device}: cancelled")]
    Cancelled {
        /// Which device.
        device: String,
    },
    /// A copy failed. What its batch wrote is undefined.
    #[error("{device}: a copy failed: {why}")]
    Failed {
        /// Which device.
        device: String,
        /// What the device said.
        why: String,
    },
    /// The device cannot do this at all.
    #[error("{device}: {what} is not supported")]
    Unsupported {
        /// Which device.
        device: String,
        /// What was asked for.
        what: &'static str,
    },
    /// These bytes are not what a device of this kind exported, or what they name is gone.
    #[error("{device}: an export that leads nowhere: {why}")]
    BadExport {
        /// Which device.
        device: String,
        /// What is wrong with it.
        why: String,
    },
    /// The device no longer answers, or did not stop when told to.
    #[error("{device}: lost: {why}")]
    Lost {
        /// Which device.
        device: String,
        /// What happened.
        why: String,
    },
}
