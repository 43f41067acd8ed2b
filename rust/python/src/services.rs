//! The services, started from Python.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_client::{Book, LocalOptions, LocalService as Node};
use memcache_config::LocalConfig;
use memcache_meta::MetaServer;
use parking_lot::Mutex;
use pyo3::prelude::*;
use tracing_subscriber::EnvFilter;

use crate::arguments::deadline;
use crate::config::{Overrides, local_config, meta_config};
use crate::errors::{ConfigError, meta_error, store_error};

/// How often a waiting service looks whether Python has a signal for it.
const SIGNAL_PERIOD: Duration = Duration::from_millis(100);

/// How long a service may take to stop.
const STOP_DEFAULT: Duration = Duration::from_secs(2);

/// A `MetaService` in this process.
#[pyclass(frozen, module = "memcache._core")]
pub(crate) struct MetaService {
    server: Mutex<Option<MetaServer>>,
    address: String,
}

#[pymethods]
impl MetaService {
    /// Starts one from a file, the environment and overrides. It serves when this returns.
    #[new]
    #[pyo3(signature = (path, overrides))]
    fn new(py: Python<'_>, path: Option<PathBuf>, overrides: Overrides) -> PyResult<Self> {
        let config = meta_config(path.as_deref(), &overrides)?;
        let server = py.detach(|| MetaServer::start(&config)).map_err(|error| meta_error(&error))?;
        let address = server.address().to_string();
        Ok(Self { server: Mutex::new(Some(server)), address })
    }

    /// Where it serves, with the real port where port 0 was asked for.
    #[getter]
    fn address(&self) -> &str {
        &self.address
    }

    /// Whether it serves.
    fn running(&self) -> bool {
        self.server.lock().is_some()
    }

    /// Stops it; open sessions end.
    #[pyo3(signature = (timeout_ms=None))]
    fn stop(&self, py: Python<'_>, timeout_ms: Option<u64>) -> PyResult<()> {
        let until = deadline(timeout_ms, STOP_DEFAULT)?;
        py.detach(|| {
            if let Some(server) = self.server.lock().take() {
                server.stop(until.saturating_duration_since(Instant::now()));
            }
        });
        Ok(())
    }
}

/// A `LocalService` in this process: one lent segment.
#[pyclass(frozen, module = "memcache._core")]
pub(crate) struct LocalService {
    node: Node,
    book: Arc<Book>,
    drain_ms: u64,
}

#[pymethods]
impl LocalService {
    /// Lends memory as a file, the environment and overrides say. The memory is there when this returns; joining the
    /// pool goes on in the background.
    #[new]
    #[pyo3(signature = (path, overrides))]
    fn new(py: Python<'_>, path: Option<PathBuf>, overrides: Overrides) -> PyResult<Self> {
        let config: LocalConfig = local_config(path.as_deref(), &overrides)?;
        py.detach(|| {
            let book = Book::open(config.meta_address.clone())?;
            let node = Node::start(Arc::clone(&book), &LocalOptions::from_config(&config))?;
            Ok(Self { node, book, drain_ms: config.drain_ms })
        })
        .map_err(|error| store_error(&error))
    }

    /// Who it is in the pool, as sixteen hexadecimal digits at most.
    #[getter]
    fn node_id(&self) -> String {
        self.node.node().to_string()
    }

    /// How long the program empties itself when it is told to stop, in milliseconds.
    #[getter]
    fn drain_ms(&self) -> u64 {
        self.drain_ms
    }

    /// Where the `MetaService` is.
    #[getter]
    fn meta_address(&self) -> String {
        self.book.endpoint().to_string()
    }

    /// Waits until the pool has accepted the memory; whether it has.
    #[pyo3(signature = (timeout_ms=None))]
    fn wait_joined(&self, py: Python<'_>, timeout_ms: Option<u64>) -> PyResult<bool> {
        let until = deadline(timeout_ms, SIGNAL_PERIOD)?;
        Ok(py.detach(|| self.node.wait_joined(until)))
    }

    /// Has other nodes copy what is only here and leaves the pool; whether nothing was left in time.
    #[pyo3(signature = (timeout_ms))]
    fn drain(&self, py: Python<'_>, timeout_ms: u64) -> PyResult<bool> {
        let until = deadline(Some(timeout_ms), STOP_DEFAULT)?;
        Ok(py.detach(|| self.node.drain(until)))
    }

    /// Waits until somebody has had this node emptied and it has left; whether it has.
    #[pyo3(signature = (timeout_ms))]
    fn wait_drained(&self, py: Python<'_>, timeout_ms: u64) -> PyResult<bool> {
        let until = deadline(Some(timeout_ms), SIGNAL_PERIOD)?;
        Ok(py.detach(|| self.node.wait_drained(until)))
    }

    /// Leaves the pool; what it held is gone.
    #[pyo3(signature = (timeout_ms=None))]
    fn stop(&self, py: Python<'_>, timeout_ms: Option<u64>) -> PyResult<()> {
        let until = deadline(timeout_ms, STOP_DEFAULT)?;
        py.detach(|| {
            self.node.stop(until);
            self.book.close();
        });
        Ok(())
    }
}

/// Runs the `MetaService` program with these arguments until it is told to stop; its exit code.
#[pyfunction]
pub(crate) fn run_meta(py: Python<'_>, arguments: Vec<String>) -> u8 {
    py.detach(|| memcache_meta::run_cli(arguments))
}

/// Sends the log lines of a `LocalService` program to stderr, as its setting `log` says.
#[pyfunction]
#[pyo3(signature = (path, overrides))]
pub(crate) fn log_local(path: Option<PathBuf>, overrides: Overrides) -> PyResult<()> {
    let LocalConfig { log, log_format, .. } = local_config(path.as_deref(), &overrides)?;
    let filter = EnvFilter::try_new(&log).map_err(|error| ConfigError::new_err(format!("log = {log:?}: {error}")))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A host process that has a log already keeps it.
    let _ = if log_format == "json" {
        lines.json().try_init()
    } else {
        lines.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
    Ok(())
}
