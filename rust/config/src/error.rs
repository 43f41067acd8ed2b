//! What can be wrong with settings.

use std::path::PathBuf;

use thiserror::Error;

/// Why settings cannot be used. Every message names where the trouble was found.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What and where, on one or more lines.
        message: String,
    },
    /// A key that means nothing here.
    #[error("{origin}: unknown key {key:?}{}", did_you_mean(*nearest))]
    UnknownKey {
        /// Where it was found.
        origin: String,
        /// The key.
        key: String,
        /// The known key that looks most like it.
        nearest: Option<&'static str>,
    },
    /// A value that its key cannot have.
    #[error("{origin}: {key} = {value:?}: want {allowed}")]
    BadValue {
        /// Where it was found.
        origin: String,
        /// The key.
        key: &'static str,
        /// The value as written.
        value: String,
        /// What would be accepted.
        allowed: &'static str,
    },
    /// Two settings that cannot stand together.
    #[error("{message}")]
    Conflict {
        /// Both keys, their values and the rule they break.
        message: String,
    },
}

fn did_you_mean(nearest: Option<&'static str>) -> String {
    nearest.map(|key| format!("; the nearest known key is {key:?}")).unwrap_or_default()
}
