//! Settings from Python: keyword arguments as text, the environment, a file.

use std::path::{Path, PathBuf};

use memcache_config::{LocalConfig, MetaConfig, StoreConfig};
use pyo3::prelude::*;

use crate::errors::config_error;

/// Keys and values as Python gives them; values as text.
pub(crate) type Overrides = Vec<(String, String)>;

/// Settings of a store: defaults, then the file (also the one `MEMCACHE_CONFIG` names), then the environment, then these.
pub(crate) fn store_config(path: Option<&Path>, overrides: &Overrides) -> PyResult<StoreConfig> {
    StoreConfig::load_or_env_file(path, std::env::vars(), overrides).map_err(|error| config_error(&error))
}

/// Settings of a `MetaService`, in the same order.
pub(crate) fn meta_config(path: Option<&Path>, overrides: &Overrides) -> PyResult<MetaConfig> {
    MetaConfig::load(path, std::env::vars(), overrides).map_err(|error| config_error(&error))
}

/// Settings of a `LocalService`, in the same order.
pub(crate) fn local_config(path: Option<&Path>, overrides: &Overrides) -> PyResult<LocalConfig> {
    LocalConfig::load(path, std::env::vars(), overrides).map_err(|error| config_error(&error))
}

/// Every setting of a store as (key, value as text), checked.
#[pyfunction]
#[pyo3(signature = (path, overrides))]
pub(crate) fn store_settings(path: Option<PathBuf>, overrides: Overrides) -> PyResult<Vec<(&'static str, String)>> {
    Ok(store_config(path.as_deref(), &overrides)?.entries())
}
