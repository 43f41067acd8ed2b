//! Python arguments as words of the client crate.

use std::time::{Duration, Instant};

use memcache_types::KeyBatch;
use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::errors::{InvalidArgument, store_error};

/// Longest wait a caller may ask for: a day. Anything longer is a slip.
const TIMEOUT_MS_MAX: u64 = 24 * 3600 * 1000;

/// One key: `bytes`, or `str` as UTF-8.
fn push_key(batch: &mut KeyBatch, key: &Bound<'_, PyAny>) -> PyResult<()> {
    let pushed = if let Ok(bytes) = key.cast::<PyBytes>() {
        batch.push(bytes.as_bytes())
    } else if let Ok(text) = key.cast::<PyString>() {
        batch.push(text.to_string_lossy().as_bytes())
    } else {
        let found = key.get_type().name()?;
        return Err(InvalidArgument::new_err(format!("key {} is a {found}; a key is bytes or str", batch.len())));
    };
    pushed.map_err(|error| store_error(&error.into()))
}

/// Keys of a batch: a sequence of `bytes` or `str`, or a `uint8` array of shape `(keys, key_bytes)`.
pub(crate) fn key_batch(keys: &Bound<'_, PyAny>) -> PyResult<KeyBatch> {
    if let Ok(array) = keys.extract::<PyReadonlyArray2<'_, u8>>() {
        let mut batch = KeyBatch::with_capacity(array.shape()[0], array.shape()[1]);
        for row in array.as_array().outer_iter() {
            let pushed = match row.as_slice() {
                Some(key) => batch.push(key),
                None => batch.push(&row.to_vec()),
            };
            pushed.map_err(|error| store_error(&error.into()))?;
        }
        return Ok(batch);
    }
    if keys.is_instance_of::<PyBytes>() || keys.is_instance_of::<PyString>() {
        return Err(InvalidArgument::new_err("keys is one key; give a sequence of keys"));
    }
    let mut batch = KeyBatch::with_capacity(keys.len().unwrap_or(0), 48);
    for key in keys.try_iter()? {
        push_key(&mut batch, &key?)?;
    }
    Ok(batch)
}

/// Block ids: a one-dimensional integer array, or a sequence of `int`.
pub(crate) fn block_ids(ids: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
    if let Ok(array) = ids.extract::<PyReadonlyArray1<'_, i64>>() {
        return Ok(array.as_array().iter().copied().collect());
    }
    if let Ok(array) = ids.extract::<PyReadonlyArray1<'_, i32>>() {
        return Ok(array.as_array().iter().map(|id| i64::from(*id)).collect());
    }
    if let Ok(array) = ids.extract::<PyReadonlyArray1<'_, u32>>() {
        return Ok(array.as_array().iter().map(|id| i64::from(*id)).collect());
    }
    ids.extract::<Vec<i64>>().map_err(|_| {
        let found = ids.get_type();
        InvalidArgument::new_err(format!(
            "block_ids is a {found}; give a one-dimensional int64, int32 or uint32 array, or a sequence of int"
        ))
    })
}

/// The moment a call must be over.
pub(crate) fn deadline(timeout_ms: Option<u64>, default: Duration) -> PyResult<Instant> {
    match timeout_ms {
        None => Ok(Instant::now() + default),
        Some(ms) if ms <= TIMEOUT_MS_MAX => Ok(Instant::now() + Duration::from_millis(ms)),
        Some(ms) => Err(InvalidArgument::new_err(format!("timeout_ms is {ms}; the limit is {TIMEOUT_MS_MAX}"))),
    }
}
