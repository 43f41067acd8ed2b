//! A running operation, as Python sees it.

use std::time::{Duration, Instant};

use memcache_client::lookup::Shared;
use memcache_client::{Completion as Done, Matched, Presence};
use memcache_types::{GetStatus, PutStatus};
use numpy::PyArray1;
use pyo3::prelude::*;

use crate::arguments::deadline;
use crate::errors::{Timeout, store_error};

/// A running operation. Resolves exactly once; dropping it does not cancel the operation.
#[pyclass(frozen, module = "memcache._core")]
pub(crate) struct Completion {
    kind: Kind,
    default_wait: Duration,
}

pub(crate) enum Kind {
    Put(Done<Shared<Vec<PutStatus>>>),
    Get(Done<Shared<Vec<GetStatus>>>),
    Match(Done<Shared<Matched>>),
    Exist(Done<Shared<Vec<Presence>>>),
}

impl Completion {
    pub(crate) fn new(kind: Kind, default_wait: Duration) -> Self {
        Self { kind, default_wait }
    }

    fn wait_until(&self, py: Python<'_>, deadline: Instant) -> bool {
        py.detach(|| match &self.kind {
            Kind::Put(done) => done.wait_until(deadline),
            Kind::Get(done) => done.wait_until(deadline),
            Kind::Match(done) => done.wait_until(deadline),
            Kind::Exist(done) => done.wait_until(deadline),
        })
    }
}

#[pymethods]
impl Completion {
    /// Whether the result is there.
    fn done(&self) -> bool {
        match &self.kind {
            Kind::Put(done) => done.is_done(),
            Kind::Get(done) => done.is_done(),
            Kind::Match(done) => done.is_done(),
            Kind::Exist(done) => done.is_done(),
        }
    }

    /// Waits; whether the result is there.
    #[pyo3(signature = (timeout_ms=None))]
    fn wait(&self, py: Python<'_>, timeout_ms: Option<u64>) -> PyResult<bool> {
        Ok(self.wait_until(py, deadline(timeout_ms, self.default_wait)?))
    }

    /// Stops the operation and waits until it touches no memory; whether that is so.
    #[pyo3(signature = (timeout_ms=None))]
    fn cancel(&self, py: Python<'_>, timeout_ms: Option<u64>) -> PyResult<bool> {
        let until = deadline(timeout_ms, self.default_wait)?;
        // Without the interpreter's lock: what keeps the memory alive may be let go here.
        py.detach(|| match &self.kind {
            Kind::Put(done) => done.cancel(until),
            Kind::Get(done) => done.cancel(until),
            Kind::Match(done) => done.cancel(until),
            Kind::Exist(done) => done.cancel(until),
        })
        .map_err(|error| store_error(&error))
    }

    /// Waits for the result and returns it, or raises what made the call fail.
    #[pyo3(signature = (timeout_ms=None))]
    fn result(&self, py: Python<'_>, timeout_ms: Option<u64>) -> PyResult<Py<PyAny>> {
        let started = Instant::now();
        self.wait_until(py, deadline(timeout_ms, self.default_wait)?);
        let missing = || Timeout::new_err(format!("not done within {} ms", started.elapsed().as_millis()));
        match &self.kind {
            Kind::Put(done) => read(&done.result().ok_or_else(missing)?, |value| Ok(put_array(py, value))),
            Kind::Get(done) => read(&done.result().ok_or_else(missing)?, |value| Ok(get_array(py, value))),
            Kind::Match(done) => read(&done.result().ok_or_else(missing)?, |value| {
                Ok((value.present, value.pending).into_pyobject(py)?.into_any().unbind())
            }),
            Kind::Exist(done) => read(&done.result().ok_or_else(missing)?, |value| {
                let codes = value.iter().map(|presence| presence_code(*presence)).collect();
                Ok(PyArray1::from_vec(py, codes).into_any().unbind())
            }),
        }
    }
}

fn read<T>(shared: &Shared<T>, show: impl FnOnce(&T) -> PyResult<Py<PyAny>>) -> PyResult<Py<PyAny>> {
    match &**shared {
        Ok(value) => show(value),
        Err(error) => Err(store_error(error)),
    }
}

fn presence_code(presence: Presence) -> u8 {
    match presence {
        Presence::Absent => 0,
        Presence::Present => 1,
        Presence::Pending => 2,
    }
}

/// Statuses as an `int32` array.
pub(crate) fn put_array(py: Python<'_>, statuses: &[PutStatus]) -> Py<PyAny> {
    PyArray1::from_vec(py, statuses.iter().map(|status| status.code()).collect()).into_any().unbind()
}

/// Statuses as an `int32` array.
pub(crate) fn get_array(py: Python<'_>, statuses: &[GetStatus]) -> Py<PyAny> {
    PyArray1::from_vec(py, statuses.iter().map(|status| status.code()).collect()).into_any().unbind()
}
