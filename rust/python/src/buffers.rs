//! Python objects as local memory: their address and length, and a reference that keeps them.

use std::sync::Arc;

use memcache_client::Buffers;
use memcache_types::ScatterList;
use numpy::PyUntypedArray;
use pyo3::buffer::PyUntypedBuffer;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyTuple};

use crate::errors::InvalidArgument;

/// Whether a buffer is only read or also written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Memory of Python objects with the references that keep it, one list an object of the pool.
#[derive(Default)]
pub(crate) struct Collector {
    lists: Vec<ScatterList>,
    kept: Vec<Kept>,
}

/// What keeps memory alive: an exported buffer (the object cannot resize while it is held) or a plain reference.
#[allow(dead_code, reason = "held, never read")]
enum Kept {
    Buffer(PyUntypedBuffer),
    Object(Py<PyAny>),
}

impl Collector {
    pub(crate) fn with_capacity(objects: usize) -> Self {
        Self { lists: Vec::with_capacity(objects), kept: Vec::with_capacity(objects) }
    }

    /// One object of one piece.
    pub(crate) fn add(&mut self, value: &Bound<'_, PyAny>, access: Access) -> PyResult<()> {
        let (address, bytes) = self.memory_of(value, access)?;
        self.lists.push(ScatterList::single(address, bytes));
        Ok(())
    }

    /// One object gathered from, or scattered to, several Python objects in order.
    pub(crate) fn add_layers(&mut self, layers: &Bound<'_, PyAny>, access: Access) -> PyResult<()> {
        let mut list = ScatterList::new();
        for layer in layers.try_iter()? {
            let (address, bytes) = self.memory_of(&layer?, access)?;
            list.push(address, bytes);
        }
        self.lists.push(list);
        Ok(())
    }

    /// One object with no memory: the target of a key that is not there.
    pub(crate) fn add_nothing(&mut self) {
        self.lists.push(ScatterList::new());
    }

    /// A fresh `bytes` object of this length as the target of a read. Nothing else may see it before the read is over.
    pub(crate) fn add_new_bytes<'py>(&mut self, py: Python<'py>, bytes: u64) -> PyResult<Bound<'py, PyBytes>> {
        let length = isize::try_from(bytes)
            .map_err(|_| InvalidArgument::new_err(format!("a value of {bytes} bytes does not fit in memory")))?;
        // SAFETY: a null pointer asks for uninitialised contents; the result is a new reference or null with an error set.
        let object = unsafe {
            Bound::from_owned_ptr_or_err(py, pyo3::ffi::PyBytes_FromStringAndSize(std::ptr::null(), length))?
        };
        let object = object.cast_into::<PyBytes>()?;
        self.lists.push(ScatterList::single(object.as_bytes().as_ptr() as u64, bytes));
        self.kept.push(Kept::Object(object.clone().into_any().unbind()));
        Ok(object)
    }

    pub(crate) fn finish(self) -> Buffers {
        // SAFETY: every list was made from memory that the kept references hold in place, checked to be writable where
        // it is the target of a read. That nothing else touches it meanwhile is the caller's part of the bargain, as
        // the manual of every call says.
        unsafe { Buffers::new(self.lists, Arc::new(self.kept)) }
    }

    fn memory_of(&mut self, value: &Bound<'_, PyAny>, access: Access) -> PyResult<(u64, u64)> {
        if let Some(found) = tensor_memory(value)? {
            self.kept.push(Kept::Object(value.clone().unbind()));
            return Ok(found);
        }
        let buffer = PyUntypedBuffer::get(value).map_err(|error| {
            let kind = value.get_type();
            InvalidArgument::new_err(format!("a {kind} is not memory ({error}): give bytes, an array or a CPU tensor"))
        })?;
        if !buffer.is_c_contiguous() {
            return Err(InvalidArgument::new_err(format!(
                "the buffer of shape {:?} with strides {:?} is not contiguous: make it so first, or register a layout",
                buffer.shape(),
                buffer.strides()
            )));
        }
        if access == Access::Write && buffer.readonly() {
            let kind = value.get_type();
            return Err(InvalidArgument::new_err(format!("a {kind} that is read-only cannot be the target of a get")));
        }
        let found = (buffer.buf_ptr() as u64, buffer.len_bytes() as u64);
        self.kept.push(Kept::Buffer(buffer));
        Ok(found)
    }
}

/// Address and bytes of a torch tensor (or anything with its interface); `None` for other objects. Tensors are asked
/// directly because the buffer protocol knows no bfloat16 and no float8.
fn tensor_memory(value: &Bound<'_, PyAny>) -> PyResult<Option<(u64, u64)>> {
    let py = value.py();
    // To ask these takes longer than all the rest: the answer is an exception.
    if value.is_instance_of::<PyBytes>()
        || value.is_instance_of::<PyByteArray>()
        || value.cast::<PyUntypedArray>().is_ok()
    {
        return Ok(None);
    }
    let Ok(pointer) = value.getattr(pyo3::intern!(py, "data_ptr")) else { return Ok(None) };
    require_host(value)?;
    if !value.call_method0(pyo3::intern!(py, "is_contiguous"))?.extract::<bool>()? {
        let shape = value.getattr(pyo3::intern!(py, "shape"))?;
        let strides = value.call_method0(pyo3::intern!(py, "stride"))?;
        return Err(InvalidArgument::new_err(format!(
            "the tensor of shape {shape} with strides {strides} is not contiguous: make it so first, or register a layout"
        )));
    }
    let items: u64 = value.call_method0(pyo3::intern!(py, "numel"))?.extract()?;
    let item_bytes: u64 = value.call_method0(pyo3::intern!(py, "element_size"))?.extract()?;
    Ok(Some((pointer.call0()?.extract()?, items * item_bytes)))
}

/// Refuses a tensor the CPU cannot reach.
pub(crate) fn require_host(tensor: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = tensor.py();
    let device = tensor.getattr(pyo3::intern!(py, "device"))?;
    let kind: String = match device.getattr(pyo3::intern!(py, "type")) {
        Ok(kind) => kind.extract()?,
        Err(_) => device.str()?.to_string(),
    };
    if kind == "cpu" {
        return Ok(());
    }
    Err(InvalidArgument::new_err(format!("the tensor is on device {kind:?}; only host memory is supported so far")))
}

/// A numpy array's or tensor's memory as numbers: address, shape, strides in bytes, bytes of an item.
pub(crate) type Strided = (u64, Vec<u64>, Vec<u64>, u64);

/// Memory of any strides. Numpy arrays, torch CPU tensors, or the four numbers themselves in a tuple.
pub(crate) fn strided(value: &Bound<'_, PyAny>) -> PyResult<Strided> {
    let py = value.py();
    if let Ok(numbers) = value.cast::<PyTuple>() {
        return numbers.extract::<Strided>().map_err(|_| {
            InvalidArgument::new_err("a tensor as numbers is (address, shape, strides in bytes, bytes of an item)")
        });
    }
    if let Ok(pointer) = value.getattr(pyo3::intern!(py, "data_ptr")) {
        require_host(value)?;
        let item_bytes: u64 = value.call_method0(pyo3::intern!(py, "element_size"))?.extract()?;
        let shape: Vec<u64> = value.getattr(pyo3::intern!(py, "shape"))?.extract()?;
        let strides: Vec<u64> = value.call_method0(pyo3::intern!(py, "stride"))?.extract()?;
        let strides = strides.into_iter().map(|stride| stride * item_bytes).collect();
        return Ok((pointer.call0()?.extract()?, shape, strides, item_bytes));
    }
    let Ok(interface) = value.getattr(pyo3::intern!(py, "__array_interface__")) else {
        let kind = value.get_type();
        return Err(InvalidArgument::new_err(format!("a {kind} is no tensor: give an array, a CPU tensor or numbers")));
    };
    let (address, read_only): (u64, bool) = interface.get_item("data")?.extract()?;
    if read_only {
        return Err(InvalidArgument::new_err("a read-only array cannot be registered: gets write into it"));
    }
    let strides: Vec<i64> = value.getattr(pyo3::intern!(py, "strides"))?.extract()?;
    let strides: Vec<u64> = strides
        .iter()
        .map(|stride| u64::try_from(*stride))
        .collect::<Result<_, _>>()
        .map_err(|_| InvalidArgument::new_err(format!("strides {strides:?} are negative; they must not be")))?;
    let item_bytes: u64 = value.getattr(pyo3::intern!(py, "itemsize"))?.extract()?;
    Ok((address, value.getattr(pyo3::intern!(py, "shape"))?.extract()?, strides, item_bytes))
}
