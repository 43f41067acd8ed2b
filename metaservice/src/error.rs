//! Why a service does not start.

use memcache_config::Endpoint;
use thiserror::Error;

/// Why a `MetaService` does not start.
#[derive(Debug, Error)]
pub enum MetaError {
    /// Somebody else listens there.
    #[error("{address} is in use")]
    AddressInUse {
        /// The address asked for.
        address: Endpoint,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: Endpoint,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system gave no thread or no event loop.
    #[error("cannot start the service's thread: {0}")]
    Thread(#[source] std::io::Error),
}
