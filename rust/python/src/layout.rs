//! A registered KV cache.

use std::sync::Arc;

use memcache_client::{Buffers, Prepared, Store, StoreError};
use memcache_types::{KvLayout as Layout, ScatterList, TensorView};
use pyo3::prelude::*;

use crate::arguments::block_ids;
use crate::buffers::strided;
use crate::errors::store_error;

/// Where each block of a KV cache lies; made by `Store.register_layout`.
#[pyclass(frozen, module = "memcache._core")]
pub(crate) struct KvLayout {
    layout: Arc<Registered>,
}

/// The layout and the tensors it points into.
struct Registered {
    layout: Layout,
    // Before the tensors: transports let go of the memory before it is freed.
    #[allow(dead_code, reason = "keeps the memory ready for transfers")]
    prepared: Vec<Prepared>,
    #[allow(dead_code, reason = "keeps the tensors alive")]
    tensors: Vec<Py<PyAny>>,
}

impl KvLayout {
    pub(crate) fn register(store: &Store, tensors: &Bound<'_, PyAny>, num_blocks: Option<u64>) -> PyResult<Self> {
        let mut views = Vec::new();
        let mut kept = Vec::new();
        for tensor in tensors.try_iter()? {
            let tensor = tensor?;
            let (address, shape, strides, item_bytes) = strided(&tensor)?;
            views.push(TensorView { address, shape, strides, item_bytes });
            kept.push(tensor.unbind());
        }
        let layout = Layout::new(&views, num_blocks).map_err(|error| store_error(&error.into()))?;
        let span = |(address, bytes)| {
            // SAFETY: the tensors are held as long as what is prepared and are let go after it; that tensors given as
            // numbers stay is the caller's promise, as the manual says.
            unsafe { store.prepare(address, bytes) }.map_err(|error| store_error(&error))
        };
        let prepared =
            tensors.py().detach(|| TensorView::spans(&views).into_iter().map(span).collect::<PyResult<_>>())?;
        Ok(Self { layout: Arc::new(Registered { layout, prepared, tensors: kept }) })
    }

    /// The pieces of these blocks.
    pub(crate) fn buffers(&self, ids: &Bound<'_, PyAny>) -> PyResult<Buffers> {
        let lists = self.lists(ids)?;
        let owner = Arc::clone(&self.layout);
        // SAFETY: the layout was validated against the tensors it holds, and every id against the layout. That nothing
        // else touches the blocks meanwhile is the caller's part of the bargain, as the manual of the calls says.
        Ok(unsafe { Buffers::new(lists, owner) })
    }

    fn lists(&self, ids: &Bound<'_, PyAny>) -> PyResult<Vec<ScatterList>> {
        let layout = &self.layout.layout;
        let lists = layout
            .check_ids(block_ids(ids)?)
            .and_then(|blocks| blocks.into_iter().map(|block| layout.scatter(block)).collect());
        lists.map_err(|error| store_error(&StoreError::from(error)))
    }
}

#[pymethods]
impl KvLayout {
    /// Number of blocks; ids run from 0 to one less.
    #[getter]
    fn num_blocks(&self) -> u64 {
        self.layout.layout.num_blocks()
    }

    /// Bytes of one block's object.
    #[getter]
    fn block_bytes(&self) -> u64 {
        self.layout.layout.block_bytes()
    }

    /// Pieces of one block, adjacent ones merged.
    #[getter]
    fn pieces_per_block(&self) -> usize {
        self.layout.layout.pieces_per_block()
    }

    /// Name of the order of an object's bytes.
    #[getter]
    fn byte_order(&self) -> String {
        self.layout.layout.byte_order().to_owned()
    }

    /// The pieces of one block as (address, bytes), in the order of the object.
    fn pieces(&self, block_id: i64) -> PyResult<Vec<(u64, u64)>> {
        let layout = &self.layout.layout;
        let list = layout
            .check_ids([block_id])
            .and_then(|blocks| layout.scatter(blocks[0]))
            .map_err(|error| store_error(&StoreError::from(error)))?;
        Ok(list.pieces().iter().map(|piece| (piece.address, piece.bytes)).collect())
    }

    /// Builds the scatter lists of these blocks and moves nothing; the number of pieces.
    fn plan(&self, block_ids: &Bound<'_, PyAny>) -> PyResult<usize> {
        Ok(self.lists(block_ids)?.iter().map(|list| list.pieces().len()).sum())
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.layout.layout)
    }
}
