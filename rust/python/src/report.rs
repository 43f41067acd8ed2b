//! Reports of the MetaService as Python dicts.

use memcache_proto::pb::{DrainProgress, DrainState, KeyInfo, LocateOutcome, StatusReply};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

/// The state of the pool.
pub(crate) fn status_dict<'py>(py: Python<'py>, epoch: u64, reply: &StatusReply) -> PyResult<Bound<'py, PyDict>> {
    let status = PyDict::new(py);
    let nodes = PyList::empty(py);
    for node in &reply.nodes {
        let entry = PyDict::new(py);
        entry.set_item("node", format!("{:x}", node.node))?;
        entry.set_item("name", &node.name)?;
        entry.set_item("capacity_bytes", node.capacity_bytes)?;
        entry.set_item("used_bytes", node.used_bytes)?;
        entry.set_item("longest_free_bytes", node.longest_free_bytes)?;
        entry.set_item("objects", node.objects)?;
        entry.set_item("heartbeat_age_ms", node.heartbeat_age_ms)?;
        entry.set_item("drain", drain_name(node.drain()))?;
        if let Some(progress) = &node.progress {
            let found = PyDict::new(py);
            drain_progress(&found, progress)?;
            entry.set_item("drain_progress", found)?;
        } else {
            entry.set_item("drain_progress", py.None())?;
        }
        entry.set_item("unrecorded", node.unrecorded)?;
        entry.set_item("listing", node.listing)?;
        entry.set_item("soft_pinned_bytes", node.soft_pinned_bytes)?;
        entry.set_item("hard_pinned_bytes", node.hard_pinned_bytes)?;
        entry.set_item("pin_quota_bytes", node.pin_quota_bytes)?;
        nodes.append(entry)?;
    }
    status.set_item("epoch", epoch)?;
    status.set_item("nodes", nodes)?;
    status.set_item("objects", reply.objects)?;
    status.set_item("capacity_bytes", reply.capacity_bytes)?;
    status.set_item("used_bytes", reply.used_bytes)?;
    status.set_item("reservations", reply.reservations)?;
    status.set_item("leases", reply.leases)?;
    status.set_item("evicted_objects", reply.evicted_objects)?;
    status.set_item("evicted_bytes", reply.evicted_bytes)?;
    status.set_item("uptime_ms", reply.uptime_ms)?;
    status.set_item("replicas", reply.replicas)?;
    status.set_item("repairs_waiting", reply.repairs_waiting)?;
    status.set_item("copies", reply.copies)?;
    status.set_item("copied", reply.copied)?;
    status.set_item("extra_replicas", reply.extra_replicas)?;
    status.set_item("extra_bytes", reply.extra_bytes)?;
    status.set_item("soft_pins", reply.soft_pins)?;
    status.set_item("hard_pins", reply.hard_pins)?;
    status.set_item("pins_given_up", reply.pins_given_up)?;
    status.set_item("unrecorded", reply.unrecorded)?;
    Ok(status)
}

pub(crate) fn key_info<'py>(py: Python<'py>, info: &KeyInfo) -> PyResult<Bound<'py, PyDict>> {
    let replicas = PyList::empty(py);
    for replica in &info.replicas {
        let entry = PyDict::new(py);
        entry.set_item("node", format!("{:x}", replica.node))?;
        entry.set_item("name", &replica.name)?;
        entry.set_item("segment", format!("{:x}", replica.segment))?;
        entry.set_item("offset", replica.offset)?;
        entry.set_item("generation", format!("{:x}", replica.generation))?;
        entry.set_item("leases", replica.leases)?;
        entry.set_item("draining", replica.draining)?;
        replicas.append(entry)?;
    }
    let found = PyDict::new(py);
    let state = match info.outcome() {
        LocateOutcome::Located => "readable",
        LocateOutcome::LocatePending => "being written",
        LocateOutcome::LocateAbsent | LocateOutcome::LocateUnknown => "absent",
    };
    found.set_item("state", state)?;
    found.set_item("payload_bytes", info.payload_bytes)?;
    found.set_item("writers", info.writers)?;
    found.set_item("replica_num", info.wanted)?;
    found.set_item("pin", pin_name(info))?;
    found.set_item("pin_left_ms", info.soft_pin.then_some(info.pin_left_ms))?;
    found.set_item("replicas", replicas)?;
    Ok(found)
}

/// What is left of a node that is being emptied, and what became of the rest.
pub(crate) fn drain_progress(found: &Bound<'_, PyDict>, progress: &DrainProgress) -> PyResult<()> {
    found.set_item("left_bytes", progress.left_bytes)?;
    found.set_item("moved_objects", progress.moved_objects)?;
    found.set_item("moved_bytes", progress.moved_bytes)?;
    found.set_item("dropped_objects", progress.dropped_objects)?;
    found.set_item("dropped_bytes", progress.dropped_bytes)
}

pub(crate) const fn drain_name(state: DrainState) -> &'static str {
    match state {
        DrainState::NotDraining => "no",
        DrainState::Draining => "draining",
        DrainState::Drained => "drained",
        DrainState::Left => "left",
        DrainState::Lost => "lost",
    }
}

const fn pin_name(info: &KeyInfo) -> Option<&'static str> {
    if info.hard_pin {
        return Some("hard");
    }
    if info.soft_pin { Some("soft") } else { None }
}
