//! One place where Rust errors become Python exceptions.

use memcache_client::StoreError;
use memcache_meta::MetaError;
use memcache_transport::TransportError;
use pyo3::import_exception;
use pyo3::prelude::*;

import_exception!(memcache.errors, AddressInUse);
import_exception!(memcache.errors, Busy);
import_exception!(memcache.errors, Closed);
import_exception!(memcache.errors, ConfigError);
import_exception!(memcache.errors, ForkError);
import_exception!(memcache.errors, InvalidArgument);
import_exception!(memcache.errors, MemCacheError);
import_exception!(memcache.errors, Timeout);
import_exception!(memcache.errors, Unavailable);

/// The exception for a call that failed as a whole.
pub(crate) fn store_error(error: &StoreError) -> PyErr {
    let text = error.to_string();
    match error {
        StoreError::Key(_)
        | StoreError::Layout(_)
        | StoreError::Invalid(_)
        | StoreError::Plan(_)
        | StoreError::Costs(_)
        | StoreError::Refused { .. } => InvalidArgument::new_err(text),
        StoreError::Busy { .. } => Busy::new_err(text),
        StoreError::Closed => Closed::new_err(text),
        StoreError::Forked { .. } => ForkError::new_err(text),
        StoreError::Unavailable { .. } | StoreError::NotForgotten { .. } => Unavailable::new_err(text),
        StoreError::Timeout { .. } => Timeout::new_err(text),
        StoreError::Transport(TransportError::AddressInUse { .. }) => AddressInUse::new_err(text),
        StoreError::Wire(_)
        | StoreError::Memory(_)
        | StoreError::Transport(_)
        | StoreError::Device(_)
        | StoreError::Thread(_) => MemCacheError::new_err(text),
    }
}

/// The exception for a bad configuration.
pub(crate) fn config_error(error: &memcache_config::ConfigError) -> PyErr {
    self::ConfigError::new_err(error.to_string())
}

/// The exception for a `MetaService` that cannot start or stop.
pub(crate) fn meta_error(error: &MetaError) -> PyErr {
    match error {
        MetaError::AddressInUse { .. } => AddressInUse::new_err(error.to_string()),
        _ => MemCacheError::new_err(error.to_string()),
    }
}
