//! The store, as Python sees it: keys and memory in, statuses out, the interpreter lock released in between.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use memcache_client::lookup::FieldDifference;
use memcache_client::{Buffers, PutOptions, Store as Client, StoreOptions};
use memcache_config::StoreConfig;
use memcache_meta::MetaServer;
use memcache_proto::pb::drain::Mode;
use memcache_types::{GetStatus, KeyBatch, NodeId, PinStatus, PutStatus};
use numpy::PyArray1;
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::arguments::{deadline, key_batch};
use crate::buffers::{Access, Collector};
use crate::completion::{Completion, Kind, get_array, put_array};
use crate::config::{Overrides, store_config};
use crate::embedded::host_or_find;
use crate::errors::{InvalidArgument, store_error};
use crate::layout::KvLayout;
use crate::report::{drain_name, drain_progress, key_info, status_dict};

/// A client of one pool.
#[pyclass(frozen, module = "memcache._core")]
pub(crate) struct Store {
    client: Client,
    config: StoreConfig,
    timeout: Duration,
    /// The service this process hosts, in embedded mode; stopped after the client.
    hosted: Mutex<Option<MetaServer>>,
    embedded: bool,
}

type FoundFields = Vec<(String, String, String)>;

#[pymethods]
impl Store {
    /// Opens a store from a file, the environment and overrides.
    #[new]
    #[pyo3(signature = (path, overrides))]
    fn new(py: Python<'_>, path: Option<PathBuf>, overrides: Overrides) -> PyResult<Self> {
        let config = store_config(path.as_deref(), &overrides)?;
        py.detach(|| Self::open(config))
    }

    /// Puts one object a key. `layered`: each value is a sequence of buffers that make up one object.
    #[pyo3(signature = (keys, values, layered, exclusive, timeout_ms=None, replica_num=None, preferred_nodes=None))]
    #[allow(clippy::too_many_arguments, reason = "Python passes each by itself")]
    fn put(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        values: &Bound<'_, PyAny>,
        layered: bool,
        exclusive: bool,
        timeout_ms: Option<u64>,
        replica_num: Option<usize>,
        preferred_nodes: Option<Vec<String>>,
    ) -> PyResult<Py<PyAny>> {
        let options = put_options(exclusive, replica_num, preferred_nodes)?;
        let keys = key_batch(keys)?;
        let sources = collect(values, layered, Access::Read)?;
        let statuses = self.put_now(py, &keys, &sources, &options, timeout_ms)?;
        Ok(put_array(py, &statuses))
    }

    /// Gets one object a key into the given memory. `layered`: as for `put`.
    #[pyo3(signature = (keys, targets, layered, timeout_ms=None))]
    fn get_into(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        targets: &Bound<'_, PyAny>,
        layered: bool,
        timeout_ms: Option<u64>,
    ) -> PyResult<Py<PyAny>> {
        let keys = key_batch(keys)?;
        let targets = collect(targets, layered, Access::Write)?;
        let until = deadline(timeout_ms, self.timeout)?;
        let statuses = py.detach(|| self.client.get(&keys, &targets, until)).map_err(|error| store_error(&error))?;
        Ok(get_array(py, &statuses))
    }

    /// Gets objects of unknown size as new `bytes`; `None` where there is none.
    #[pyo3(signature = (keys, timeout_ms=None))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        keys: &Bound<'py, PyAny>,
        timeout_ms: Option<u64>,
    ) -> PyResult<Bound<'py, PyList>> {
        let keys = key_batch(keys)?;
        let until = deadline(timeout_ms, self.timeout)?;
        let located = py.detach(|| self.client.locate(&keys, until)).map_err(|error| store_error(&error))?;
        let mut collector = Collector::with_capacity(keys.len());
        let mut values: Vec<Option<Bound<'py, PyBytes>>> = Vec::with_capacity(keys.len());
        for bytes in located.payload_bytes() {
            if let Some(bytes) = bytes {
                values.push(Some(collector.add_new_bytes(py, bytes)?));
            } else {
                collector.add_nothing();
                values.push(None);
            }
        }
        let targets = collector.finish();
        let statuses =
            py.detach(|| self.client.read(&located, &keys, &targets, until)).map_err(|error| store_error(&error))?;
        let found = values.into_iter().zip(statuses).map(|(value, status)| value.filter(|_| status == GetStatus::Hit));
        PyList::new(py, found.collect::<Vec<_>>())
    }

    /// Whether each key is readable: a `bool` array.
    #[pyo3(signature = (keys, timeout_ms=None))]
    fn exist(&self, py: Python<'_>, keys: &Bound<'_, PyAny>, timeout_ms: Option<u64>) -> PyResult<Py<PyAny>> {
        let keys = key_batch(keys)?;
        let until = deadline(timeout_ms, self.timeout)?;
        let found = py.detach(|| self.client.exist(&keys, until)).map_err(|error| store_error(&error))?;
        let found = found.iter().map(|presence| *presence == memcache_client::Presence::Present).collect();
        Ok(PyArray1::from_vec(py, found).into_any().unbind())
    }

    /// What is known of each key, without waiting.
    #[pyo3(signature = (keys, timeout_ms=None))]
    fn exist_async(&self, keys: &Bound<'_, PyAny>, timeout_ms: Option<u64>) -> PyResult<Completion> {
        let keys = key_batch(keys)?;
        let until = deadline(timeout_ms, self.timeout)?;
        let done = self.client.exist_async(&keys, until).map_err(|error| store_error(&error))?;
        Ok(Completion::new(Kind::Exist(done), self.timeout))
    }

    /// Removes keys; a `bool` array of those that were readable.
    #[pyo3(signature = (keys, timeout_ms=None))]
    fn remove(&self, py: Python<'_>, keys: &Bound<'_, PyAny>, timeout_ms: Option<u64>) -> PyResult<Py<PyAny>> {
        let keys = key_batch(keys)?;
        let until = deadline(timeout_ms, self.timeout)?;
        let removed = py.detach(|| self.client.remove(&keys, until)).map_err(|error| store_error(&error))?;
        Ok(PyArray1::from_vec(py, removed).into_any().unbind())
    }

    /// Removes everything from the pool; the number of objects that were there.
    #[pyo3(signature = (timeout_ms=None))]
    fn remove_all(&self, py: Python<'_>, timeout_ms: Option<u64>) -> PyResult<u64> {
        let until = deadline(timeout_ms, self.timeout)?;
        py.detach(|| self.client.remove_all(until)).map_err(|error| store_error(&error))
    }

    /// Keeps keys from eviction: for `ttl_ms` milliseconds, or with `None` until they are unpinned; an `int32` array.
    #[pyo3(signature = (keys, ttl_ms, timeout_ms=None))]
    fn pin(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        ttl_ms: Option<NonZeroU64>,
        timeout_ms: Option<u64>,
    ) -> PyResult<Py<PyAny>> {
        let keys = key_batch(keys)?;
        let until = deadline(timeout_ms, self.timeout)?;
        let found = py.detach(|| self.client.pin(&keys, ttl_ms, until)).map_err(|error| store_error(&error))?;
        let codes: Vec<i32> = found.into_iter().map(PinStatus::code).collect();
        Ok(PyArray1::from_vec(py, codes).into_any().unbind())
    }

    /// Ends pins; which keys had one.
    #[pyo3(signature = (keys, timeout_ms=None))]
    fn unpin(&self, py: Python<'_>, keys: &Bound<'_, PyAny>, timeout_ms: Option<u64>) -> PyResult<Py<PyAny>> {
        let keys = key_batch(keys)?;
        let until = deadline(timeout_ms, self.timeout)?;
        let unpinned = py.detach(|| self.client.unpin(&keys, until)).map_err(|error| store_error(&error))?;
        Ok(PyArray1::from_vec(py, unpinned).into_any().unbind())
    }

    /// How many leading keys are (readable, readable or being written).
    #[pyo3(signature = (keys, timeout_ms=None))]
    fn match_prefix(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        timeout_ms: Option<u64>,
    ) -> PyResult<(usize, usize)> {
        let keys = key_batch(keys)?;
        let until = deadline(timeout_ms, self.timeout)?;
        let matched = py.detach(|| self.client.match_prefix(&keys, until)).map_err(|error| store_error(&error))?;
        Ok((matched.present, matched.pending))
    }

    /// `match_prefix` without waiting.
    #[pyo3(signature = (keys, timeout_ms=None))]
    fn match_prefix_async(&self, keys: &Bound<'_, PyAny>, timeout_ms: Option<u64>) -> PyResult<Completion> {
        let keys = key_batch(keys)?;
        let until = deadline(timeout_ms, self.timeout)?;
        let done = self.client.match_prefix_async(&keys, until).map_err(|error| store_error(&error))?;
        Ok(Completion::new(Kind::Match(done), self.timeout))
    }

    /// Registers the tensors of a KV cache.
    #[pyo3(signature = (tensors, num_blocks=None))]
    fn register_layout(&self, tensors: &Bound<'_, PyAny>, num_blocks: Option<u64>) -> PyResult<KvLayout> {
        KvLayout::register(&self.client, tensors, num_blocks)
    }

    /// Puts blocks of a KV cache, one object a key.
    #[pyo3(signature = (layout, keys, block_ids, exclusive, timeout_ms=None, replica_num=None, preferred_nodes=None))]
    #[allow(clippy::too_many_arguments, reason = "Python passes each by itself")]
    fn put_blocks(
        &self,
        py: Python<'_>,
        layout: &KvLayout,
        keys: &Bound<'_, PyAny>,
        block_ids: &Bound<'_, PyAny>,
        exclusive: bool,
        timeout_ms: Option<u64>,
        replica_num: Option<usize>,
        preferred_nodes: Option<Vec<String>>,
    ) -> PyResult<Py<PyAny>> {
        let options = put_options(exclusive, replica_num, preferred_nodes)?;
        let (keys, sources) = blocks(layout, keys, block_ids)?;
        let statuses = self.put_now(py, &keys, &sources, &options, timeout_ms)?;
        Ok(put_array(py, &statuses))
    }

    /// `put_blocks` without waiting.
    #[pyo3(signature = (layout, keys, block_ids, exclusive, timeout_ms=None, replica_num=None, preferred_nodes=None))]
    #[allow(clippy::too_many_arguments, reason = "Python passes each by itself")]
    fn put_blocks_async(
        &self,
        layout: &KvLayout,
        keys: &Bound<'_, PyAny>,
        block_ids: &Bound<'_, PyAny>,
        exclusive: bool,
        timeout_ms: Option<u64>,
        replica_num: Option<usize>,
        preferred_nodes: Option<Vec<String>>,
    ) -> PyResult<Completion> {
        let options = put_options(exclusive, replica_num, preferred_nodes)?;
        let (keys, sources) = blocks(layout, keys, block_ids)?;
        let until = deadline(timeout_ms, self.timeout)?;
        let done = self.client.put_async(keys, sources, &options, until).map_err(|error| store_error(&error))?;
        Ok(Completion::new(Kind::Put(done), self.timeout))
    }

    /// Gets blocks of a KV cache, one object a key.
    #[pyo3(signature = (layout, keys, block_ids, timeout_ms=None))]
    fn get_blocks(
        &self,
        py: Python<'_>,
        layout: &KvLayout,
        keys: &Bound<'_, PyAny>,
        block_ids: &Bound<'_, PyAny>,
        timeout_ms: Option<u64>,
    ) -> PyResult<Py<PyAny>> {
        let (keys, targets) = blocks(layout, keys, block_ids)?;
        let until = deadline(timeout_ms, self.timeout)?;
        let statuses = py.detach(|| self.client.get(&keys, &targets, until)).map_err(|error| store_error(&error))?;
        Ok(get_array(py, &statuses))
    }

    /// `get_blocks` without waiting.
    #[pyo3(signature = (layout, keys, block_ids, timeout_ms=None))]
    fn get_blocks_async(
        &self,
        layout: &KvLayout,
        keys: &Bound<'_, PyAny>,
        block_ids: &Bound<'_, PyAny>,
        timeout_ms: Option<u64>,
    ) -> PyResult<Completion> {
        let (keys, targets) = blocks(layout, keys, block_ids)?;
        let until = deadline(timeout_ms, self.timeout)?;
        let done = self.client.get_async(keys, targets, until).map_err(|error| store_error(&error))?;
        Ok(Completion::new(Kind::Get(done), self.timeout))
    }

    /// Registers a fingerprint; (field, ours, theirs) of each field that differs from what others registered.
    #[pyo3(signature = (scope, fields, timeout_ms=None))]
    fn register_fingerprint(
        &self,
        py: Python<'_>,
        scope: &str,
        fields: Vec<(String, String)>,
        timeout_ms: Option<u64>,
    ) -> PyResult<FoundFields> {
        let until = deadline(timeout_ms, self.timeout)?;
        let found = py
            .detach(|| self.client.register_fingerprint(scope, &fields, until))
            .map_err(|error| store_error(&error))?;
        Ok(found.into_iter().map(|FieldDifference { name, ours, theirs }| (name, ours, theirs)).collect())
    }

    /// The state of the pool.
    #[pyo3(signature = (timeout_ms=None))]
    fn status<'py>(&self, py: Python<'py>, timeout_ms: Option<u64>) -> PyResult<Bound<'py, PyDict>> {
        let until = deadline(timeout_ms, self.timeout)?;
        let (epoch, reply) = py.detach(|| self.client.status(until)).map_err(|error| store_error(&error))?;
        status_dict(py, epoch, &reply)
    }

    /// Everything that is known of each key: a dict a key.
    #[pyo3(signature = (keys, timeout_ms=None))]
    fn info<'py>(
        &self,
        py: Python<'py>,
        keys: &Bound<'py, PyAny>,
        timeout_ms: Option<u64>,
    ) -> PyResult<Bound<'py, PyList>> {
        let keys = key_batch(keys)?;
        let until = deadline(timeout_ms, self.timeout)?;
        let found = py.detach(|| self.client.info(&keys, until)).map_err(|error| store_error(&error))?;
        let infos = found.iter().map(|info| key_info(py, info)).collect::<PyResult<Vec<_>>>()?;
        PyList::new(py, infos)
    }

    /// Begins to empty a node ("move", "evict" or "drop"), cancels it ("cancel"), or looks ("look"); what there is to know.
    #[pyo3(signature = (node, mode, timeout_ms=None))]
    fn drain<'py>(
        &self,
        py: Python<'py>,
        node: &str,
        mode: &str,
        timeout_ms: Option<u64>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let node = node_id(node)?;
        let wanted = match mode {
            "look" => Mode::Look,
            "move" => Mode::Move,
            "evict" => Mode::Evict,
            "drop" => Mode::Drop,
            "cancel" => Mode::Cancel,
            _ => {
                let message = format!("mode = {mode:?}: want \"move\", \"evict\", \"drop\", \"cancel\" or \"look\"");
                return Err(InvalidArgument::new_err(message));
            }
        };
        let until = deadline(timeout_ms, self.timeout)?;
        let reply = py.detach(|| self.client.drain(node, wanted, until)).map_err(|error| store_error(&error))?;
        if !reply.known {
            return Err(InvalidArgument::new_err(format!("node = {node}: no such node in the pool")));
        }
        let found = PyDict::new(py);
        found.set_item("node", node.to_string())?;
        found.set_item("state", drain_name(reply.state()))?;
        found.set_item("in_pool", !reply.gone)?;
        found.set_item("objects", reply.objects)?;
        drain_progress(&found, &reply.progress.unwrap_or_default())?;
        Ok(found)
    }

    /// Has others copy what only this store's own memory holds, and leaves with it; whether nothing was left in time.
    #[pyo3(signature = (timeout_ms=None))]
    fn drain_own(&self, py: Python<'_>, timeout_ms: Option<u64>) -> PyResult<bool> {
        let until = deadline(timeout_ms, self.timeout)?;
        py.detach(|| self.client.drain_own(until)).map_err(|error| store_error(&error))
    }

    /// The node this store lends memory as, in hexadecimal, if it does.
    #[getter]
    fn node_id(&self) -> Option<String> {
        self.client.node().map(|node| node.to_string())
    }

    /// How blocks would move between the pool and their memory, and why; nothing moves.
    #[pyo3(signature = (layout, block_ids, way))]
    fn explain_plan<'py>(
        &self,
        py: Python<'py>,
        layout: &KvLayout,
        block_ids: &Bound<'py, PyAny>,
        way: &str,
    ) -> PyResult<Bound<'py, PyList>> {
        let (buffers, way) = (layout.buffers(block_ids)?, crate::plan::way_of(way)?);
        let plans = py.detach(|| self.client.explain_plan(way, &buffers)).map_err(|error| store_error(&error))?;
        let plans = plans.iter().map(|plan| crate::plan::plan_dict(py, plan)).collect::<PyResult<Vec<_>>>()?;
        PyList::new(py, plans)
    }

    /// Counters of this client by name.
    fn stats(&self) -> Vec<(&'static str, u64)> {
        self.client.stats().entries()
    }

    /// Whether the connection to the `MetaService` is believed to be up.
    fn available(&self) -> bool {
        self.client.book().is_up()
    }

    /// Where the `MetaService` is.
    #[getter]
    fn meta_address(&self) -> String {
        self.client.book().endpoint().to_string()
    }

    /// Whether no address was configured: this process or a sibling hosts the `MetaService`.
    #[getter]
    fn embedded(&self) -> bool {
        self.embedded
    }

    /// Every setting as (key, value as text).
    fn settings(&self) -> Vec<(&'static str, String)> {
        self.config.entries()
    }

    /// Ends the store; whether every running transfer had ended within the time.
    #[pyo3(signature = (timeout_ms=None))]
    fn close(&self, py: Python<'_>, timeout_ms: Option<u64>) -> PyResult<bool> {
        let until = deadline(timeout_ms, self.timeout)?;
        Ok(py.detach(|| {
            let ended = self.client.close(until);
            drop(self.hosted.lock().take());
            ended
        }))
    }

    /// Parses keys and block ids, builds the scatter lists and moves nothing: what the Python call itself costs.
    #[pyo3(signature = (layout, keys, block_ids))]
    #[allow(clippy::unused_self, reason = "measured as a method, as the calls it stands for")]
    fn plan_blocks(&self, layout: &KvLayout, keys: &Bound<'_, PyAny>, block_ids: &Bound<'_, PyAny>) -> PyResult<usize> {
        let (_, buffers) = blocks(layout, keys, block_ids)?;
        Ok(buffers.lists().iter().map(|list| list.pieces().len()).sum())
    }
}

impl Store {
    fn open(config: StoreConfig) -> PyResult<Self> {
        let (endpoint, hosted, embedded) = if let Some(endpoint) = &config.meta_address {
            (endpoint.clone(), None, false)
        } else {
            let found = host_or_find(&config.pool_id)?;
            (found.endpoint, found.server, true)
        };
        let options = StoreOptions::from_config(&config, endpoint);
        let client = Client::open(&options).map_err(|error| store_error(&error))?;
        let timeout = Duration::from_millis(config.timeout_ms);
        Ok(Self { client, config, timeout, hosted: Mutex::new(hosted), embedded })
    }

    fn put_now(
        &self,
        py: Python<'_>,
        keys: &KeyBatch,
        sources: &Buffers,
        options: &PutOptions,
        timeout_ms: Option<u64>,
    ) -> PyResult<Vec<PutStatus>> {
        let until: Instant = deadline(timeout_ms, self.timeout)?;
        py.detach(|| self.client.put(keys, sources, options, until)).map_err(|error| store_error(&error))
    }
}

/// A node as status and settings name it.
fn node_id(text: &str) -> PyResult<NodeId> {
    let number = u64::from_str_radix(text, 16).ok().filter(|number| *number != 0);
    let want = "want a node id of the pool's status, in hexadecimal";
    number.map(NodeId::new).ok_or_else(|| InvalidArgument::new_err(format!("node {text:?}: {want}")))
}

fn put_options(exclusive: bool, replicas: Option<usize>, preferred: Option<Vec<String>>) -> PyResult<PutOptions> {
    let preferred = preferred.unwrap_or_default().iter().map(|node| node_id(node)).collect::<PyResult<_>>()?;
    Ok(PutOptions { exclusive, replicas, preferred })
}

fn collect(values: &Bound<'_, PyAny>, layered: bool, access: Access) -> PyResult<Buffers> {
    let mut collector = Collector::with_capacity(values.len().unwrap_or(0));
    for value in values.try_iter()? {
        let value = value?;
        if layered {
            collector.add_layers(&value, access)?;
        } else {
            collector.add(&value, access)?;
        }
    }
    Ok(collector.finish())
}

fn blocks(layout: &KvLayout, keys: &Bound<'_, PyAny>, ids: &Bound<'_, PyAny>) -> PyResult<(KeyBatch, Buffers)> {
    let keys = key_batch(keys)?;
    let buffers = layout.buffers(ids)?;
    if keys.len() != buffers.len() {
        return Err(InvalidArgument::new_err(format!("{} keys but {} block ids", keys.len(), buffers.len())));
    }
    Ok((keys, buffers))
}
