//! Replays of traces for Python: files in, plain values out.

use std::path::PathBuf;

use memcache_meta::replay::{BLOCK_TOKENS, CAPACITY_BLOCKS_MAX, CAPACITY_BLOCKS_MIN, ReplayPolicy, Trace, replay};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::errors::InvalidArgument;

/// Whether `policy` is one, and `tokens` a size that a replayed cache may have, in blocks.
fn checked(policy: &str, tokens: u64) -> Result<(ReplayPolicy, u64), String> {
    let policy = ReplayPolicy::named(policy)
        .ok_or_else(|| format!("unknown policy {policy:?}: want lru, s3fifo, adaptive or clairvoyant"))?;
    let blocks = tokens / BLOCK_TOKENS;
    if !(CAPACITY_BLOCKS_MIN..=CAPACITY_BLOCKS_MAX).contains(&blocks) {
        let (least, most) = (CAPACITY_BLOCKS_MIN * BLOCK_TOKENS, CAPACITY_BLOCKS_MAX * BLOCK_TOKENS);
        return Err(format!("capacity of {tokens} tokens; want {least} to {most}"));
    }
    Ok((policy, blocks))
}

/// Replays a trace through the core of the service. `step(policy, capacity_tokens)` is called before each of the rows.
#[pyfunction]
#[pyo3(signature = (path, policies, capacities_tokens, step))]
pub(crate) fn replay_trace<'py>(
    py: Python<'py>,
    path: PathBuf,
    policies: Vec<String>,
    capacities_tokens: Vec<u64>,
    step: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyList>> {
    let mut wanted = Vec::new();
    for tokens in capacities_tokens {
        for policy in &policies {
            let (policy, blocks) = checked(policy, tokens).map_err(InvalidArgument::new_err)?;
            wanted.push((policy, tokens, blocks));
        }
    }
    let invalid = |text: String| InvalidArgument::new_err(format!("{}: {text}", path.display()));
    let trace = py.detach(|| -> Result<Trace, String> {
        let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
        Trace::parse(&text).map_err(|error| error.to_string())
    });
    let trace = trace.map_err(invalid)?;
    let rows = PyList::empty(py);
    for (policy, tokens, blocks) in wanted {
        if let Some(step) = &step {
            step.call1((policy.as_str(), tokens))?;
        }
        py.check_signals()?;
        let row = py.detach(|| replay(&trace, policy, blocks));
        let found = PyDict::new(py);
        found.set_item("policy", policy.as_str())?;
        found.set_item("capacity_tokens", tokens)?;
        found.set_item("capacity_blocks", row.capacity_blocks)?;
        found.set_item("requests", row.requests)?;
        found.set_item("tokens", row.tokens)?;
        found.set_item("hit_tokens", row.hit_tokens)?;
        found.set_item("hit_rate", row.hit_rate())?;
        found.set_item("blocks", row.blocks)?;
        found.set_item("hit_blocks", row.hit_blocks)?;
        found.set_item("evicted_blocks", row.evicted_blocks)?;
        rows.append(found)?;
    }
    Ok(rows)
}
