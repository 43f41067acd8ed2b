//! The Python door: `memcache._core`. Thin on purpose: it turns arguments into the words of the client crate,
//! releases the interpreter lock around everything that moves or waits, and maps errors. Names, defaults and
//! manuals for users live in the Python package `memcache`.

#![allow(clippy::needless_pass_by_value, reason = "functions for Python take what Python hands over")]

mod arguments;
mod buffers;
mod completion;
mod config;
mod embedded;
mod errors;
mod layout;
mod plan;
mod replay;
mod report;
mod services;
mod store;

use pyo3::prelude::*;

/// Native half of the package `memcache`; private.
#[pymodule(gil_used = true)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<store::Store>()?;
    module.add_class::<layout::KvLayout>()?;
    module.add_class::<completion::Completion>()?;
    module.add_class::<services::MetaService>()?;
    module.add_class::<services::LocalService>()?;
    module.add_function(wrap_pyfunction!(config::store_settings, module)?)?;
    module.add_function(wrap_pyfunction!(plan::explain_shape, module)?)?;
    module.add_function(wrap_pyfunction!(replay::replay_trace, module)?)?;
    module.add_function(wrap_pyfunction!(services::run_meta, module)?)?;
    module.add_function(wrap_pyfunction!(services::log_local, module)?)?;
    Ok(())
}
