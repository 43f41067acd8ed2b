//! Plans as Python sees them: dictionaries, and a table to print.

use memcache_client::explain::{Question, device_by_name, explain};
use memcache_client::path::costs::CostSource;
use memcache_transport::Protocol;
use memcache_transport::plan::{Path, PathChoice, TransferPlan, UnknownPath, Way};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::errors::{InvalidArgument, store_error};

/// How objects of one shape would move: no pool is needed, nothing moves.
#[pyfunction]
#[pyo3(signature = (pieces, payload_bytes, objects, protocol, device, path, way, costs, checksum, relay))]
#[allow(clippy::too_many_arguments, reason = "the Python side gives them names")]
pub(crate) fn explain_shape<'py>(
    py: Python<'py>,
    pieces: u64,
    payload_bytes: u64,
    objects: usize,
    protocol: &str,
    device: &str,
    path: &str,
    way: &str,
    costs: Option<std::path::PathBuf>,
    checksum: bool,
    relay: bool,
) -> PyResult<Bound<'py, PyDict>> {
    let roads = [Protocol::Local, Protocol::HostShm, Protocol::HostRdma, Protocol::HostTcp];
    let protocol = roads.into_iter().find(|road| road.name() == protocol).ok_or_else(|| {
        InvalidArgument::new_err(format!(
            "unknown protocol {protocol:?}: want \"local\", \"host_shm\", \"host_rdma\" or \"host_tcp\""
        ))
    })?;
    let question = Question {
        way: way_of(way)?,
        objects,
        pieces,
        payload_bytes,
        protocol,
        relay,
        device: device_by_name(device).map_err(|error| store_error(&error))?,
        choice: path.parse::<PathChoice>().map_err(|error: UnknownPath| InvalidArgument::new_err(error.to_string()))?,
        costs: costs.map_or(CostSource::Measured, CostSource::File),
        summed: checksum,
    };
    let (plan, costs) = py.detach(|| explain(&question)).map_err(|error| store_error(&error))?;
    let result = plan_dict(py, &plan)?;
    result.set_item("costs", costs)?;
    Ok(result)
}

pub(crate) fn way_of(way: &str) -> PyResult<Way> {
    match way {
        "get" => Ok(Way::Get),
        "put" => Ok(Way::Put),
        _ => Err(InvalidArgument::new_err(format!("unknown way {way:?}: want \"get\" or \"put\""))),
    }
}

#[allow(clippy::cast_precision_loss, reason = "microseconds for people")]
fn micros(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

/// A plan as plain values, with the printed table under `text`.
pub(crate) fn plan_dict<'py>(py: Python<'py>, plan: &TransferPlan) -> PyResult<Bound<'py, PyDict>> {
    let kinds = PyList::empty(py);
    for one in &plan.considered {
        let kind = PyDict::new(py);
        kind.set_item("peer", &one.peer_name)?;
        kind.set_item("device", &one.local_name)?;
        kind.set_item("objects", one.objects)?;
        kind.set_item("pieces", one.pieces)?;
        kind.set_item("payload_bytes", one.payload_bytes)?;
        kind.set_item("chosen", one.chosen.number())?;
        kind.set_item("forced", one.is_forced)?;
        let paths = PyList::empty(py);
        for path in Path::ALL {
            let entry = PyDict::new(py);
            let time = &one.times_ns[path.number()];
            entry.set_item("path", path.number())?;
            entry.set_item("name", path.name())?;
            entry.set_item("predicted_us", time.as_ref().ok().map(|ns| micros(*ns)))?;
            entry.set_item("impossible", time.as_ref().err())?;
            paths.append(entry)?;
        }
        kind.set_item("paths", paths)?;
        kinds.append(kind)?;
    }
    let groups = PyList::empty(py);
    for group in &plan.groups {
        let entry = PyDict::new(py);
        entry.set_item("path", group.path.number())?;
        entry.set_item("objects", group.objects.len())?;
        entry.set_item("steps", group.steps.len())?;
        entry.set_item("copies", group.steps.iter().map(|step| step.copies.len()).sum::<usize>())?;
        entry.set_item("bytes", group.steps.iter().map(memcache_transport::plan::Step::bytes).sum::<u64>())?;
        entry.set_item("predicted_us", micros(group.predicted_ns))?;
        groups.append(entry)?;
    }
    let result = PyDict::new(py);
    result.set_item("way", plan.way.to_string())?;
    result.set_item("predicted_us", micros(plan.predicted_ns()))?;
    result.set_item("kinds", kinds)?;
    result.set_item("groups", groups)?;
    result.set_item("text", plan.to_string())?;
    Ok(result)
}
