//! From block ids to local pieces: all address arithmetic of the block forms, done once.

use std::fmt;

use thiserror::Error;

use crate::limits::{OBJECT_BYTES_MAX, PIECES_MAX};
use crate::scatter::{Piece, ScatterList};

/// Number of a block in an engine's KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(u32);

impl BlockId {
    /// The block with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// One tensor of a KV cache as memory: the first dimension counts blocks, strides are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorView {
    /// Address of element zero.
    pub address: u64,
    /// Length of each dimension, the block dimension first.
    pub shape: Vec<u64>,
    /// Bytes from one index to the next, for each dimension.
    pub strides: Vec<u64>,
    /// Bytes of one element.
    pub item_bytes: u64,
}

impl TensorView {
    /// Where these tensors lie: first byte and length of each run of memory, in order, those that overlap or touch
    /// joined. Tensors without elements, or that no memory holds, lie nowhere.
    pub fn spans(views: &[Self]) -> Vec<(u64, u64)> {
        let mut spans: Vec<(u64, u64)> = views.iter().filter_map(Self::span).collect();
        spans.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(spans.len());
        for (start, bytes) in spans {
            match joined.last_mut() {
                Some((first, length)) if *first + *length >= start => *length = (*length).max(start + bytes - *first),
                _ => joined.push((start, bytes)),
            }
        }
        joined
    }

    fn span(&self) -> Option<(u64, u64)> {
        let mut bytes = self.item_bytes;
        for (length, stride) in self.shape.iter().zip(&self.strides) {
            bytes = bytes.checked_add(length.checked_sub(1)?.checked_mul(*stride)?)?;
        }
        self.address.checked_add(bytes)?;
        (bytes > 0).then_some((self.address, bytes))
    }
}

/// Why some tensors are not a KV cache, or a number not a block of it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// No tensor at all.
    #[error("a layout needs at least one tensor")]
    NoTensors,
    /// Shape and strides do not describe memory.
    #[error("tensor {tensor}: shape {shape:?} with strides {strides:?} and items of {item_bytes} bytes: {why}")]
    BadTensor {
        /// Position among the tensors.
        tensor: usize,
        /// Its shape.
        shape: Vec<u64>,
        /// Its strides in bytes.
        strides: Vec<u64>,
        /// Bytes of an element.
        item_bytes: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The tensors have different numbers of blocks.
    #[error("tensor {tensor} has {rows} rows, not a multiple of {blocks} blocks")]
    BlockCount {
        /// Position among the tensors.
        tensor: usize,
        /// Length of its first dimension.
        rows: u64,
        /// Number of blocks of the layout.
        blocks: u64,
    },
    /// Too many pieces for one object.
    #[error("a block of {pieces} pieces; the limit is {PIECES_MAX}")]
    TooManyPieces {
        /// Pieces of one block.
        pieces: usize,
    },
    /// Too many bytes for one object.
    #[error("a block of {bytes} bytes; the limit is {OBJECT_BYTES_MAX}")]
    TooLarge {
        /// Bytes of one block.
        bytes: u64,
    },
    /// A block id past the end.
    #[error("block id {id} at position {position} is outside the layout's 0..{blocks}")]
    OutOfRange {
        /// The id given.
        id: i64,
        /// Where in the list.
        position: usize,
        /// Number of blocks of the layout.
        blocks: u64,
    },
}

/// A run of bytes that every block has, at `first + block * stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u64,
    stride: u64,
    bytes: u64,
}

/// Where each block of a KV cache lies, validated once: every id below [`num_blocks`](Self::num_blocks)
/// gives addresses inside the tensors it was made from.
///
/// The bytes of a block's object are the tensors in the order given, and inside a tensor the order of
/// memory (dimensions by falling stride). [`byte_order`](Self::byte_order) names that order: caches with
/// equal geometry and equal byte order can read each other's objects whatever their physical layout.
#[derive(Clone, PartialEq, Eq)]
pub struct KvLayout {
    runs: Vec<Run>,
    num_blocks: u64,
    block_bytes: u64,
    byte_order: String,
}

impl KvLayout {
    /// The layout of these tensors.
    ///
    /// `num_blocks` is the number of blocks the engine counts; by default the first dimension of the first
    /// tensor. A tensor with `k` times as many rows is one whose kernel splits each block into `k` rows.
    pub fn new(tensors: &[TensorView], num_blocks: Option<u64>) -> Result<Self, LayoutError> {
        let first = tensors.first().ok_or(LayoutError::NoTensors)?;
        let num_blocks = num_blocks.or_else(|| first.shape.first().copied()).unwrap_or(0);
        let mut runs: Vec<Run> = Vec::new();
        let mut orders: Vec<String> = Vec::new();
        for (index, tensor) in tensors.iter().enumerate() {
            let dims = block_dims(index, tensor, num_blocks)?;
            orders.push(dims.order());
            for run in dims.runs() {
                push_run(&mut runs, run);
                if runs.len() > PIECES_MAX {
                    return Err(LayoutError::TooManyPieces { pieces: runs.len() });
                }
            }
        }
        let block_bytes =
            runs.iter().try_fold(0u64, |sum, run| sum.checked_add(run.bytes)).filter(|sum| *sum <= OBJECT_BYTES_MAX);
        let block_bytes = block_bytes.ok_or(LayoutError::TooLarge { bytes: u64::MAX })?;
        orders.dedup();
        Ok(Self { runs, num_blocks, block_bytes, byte_order: orders.join(",") })
    }

    /// Number of blocks; ids run from 0 to one less.
    pub const fn num_blocks(&self) -> u64 {
        self.num_blocks
    }

    /// Bytes of one block's object.
    pub const fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// Pieces of one block, adjacent ones merged.
    pub fn pieces_per_block(&self) -> usize {
        self.runs.len()
    }

    /// The order of an object's bytes: for each tensor the non-block dimensions by falling stride
    /// (`1` the first one after the block dimension, `k` the rows of a split block with their count).
    /// Runs of equal tensors are named once.
    pub fn byte_order(&self) -> &str {
        &self.byte_order
    }

    /// Checks raw ids, naming the first bad one.
    pub fn check_ids(&self, ids: impl IntoIterator<Item = i64>) -> Result<Vec<BlockId>, LayoutError> {
        ids.into_iter()
            .enumerate()
            .map(|(position, id)| {
                u32::try_from(id)
                    .ok()
                    .filter(|number| u64::from(*number) < self.num_blocks)
                    .map(BlockId)
                    .ok_or(LayoutError::OutOfRange { id, position, blocks: self.num_blocks })
            })
            .collect()
    }

    /// The pieces of one block, in the order of its object's bytes.
    pub fn scatter(&self, block: BlockId) -> Result<ScatterList, LayoutError> {
        let number = u64::from(block.0);
        if number >= self.num_blocks {
            return Err(LayoutError::OutOfRange { id: i64::from(block.0), position: 0, blocks: self.num_blocks });
        }
        let pieces = self.runs.iter().map(|run| Piece { address: run.first + number * run.stride, bytes: run.bytes });
        Ok(ScatterList::from_merged(pieces.collect(), self.block_bytes))
    }
}

impl fmt::Debug for KvLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvLayout")
            .field("num_blocks", &self.num_blocks)
            .field("block_bytes", &self.block_bytes)
            .field("pieces_per_block", &self.runs.len())
            .field("byte_order", &self.byte_order)
            .finish()
    }
}

/// Merges a run into the one before it where they touch in every block.
fn push_run(runs: &mut Vec<Run>, run: Run) {
    if let Some(last) = runs.last_mut()
        && last.stride == run.stride
        && last.first + last.bytes == run.first
        && last.bytes + run.bytes <= run.stride
    {
        last.bytes += run.bytes;
        return;
    }
    runs.push(run);
}

/// One tensor inside a block: its dimensions but the block one, by falling stride.
struct BlockDims {
    address: u64,
    block_stride: u64,
    item_bytes: u64,
    dims: Vec<Dim>,
}

#[derive(Clone)]
struct Dim {
    name: String,
    stride: u64,
    length: u64,
}

fn block_dims(index: usize, tensor: &TensorView, num_blocks: u64) -> Result<BlockDims, LayoutError> {
    let bad = |why| LayoutError::BadTensor {
        tensor: index,
        shape: tensor.shape.clone(),
        strides: tensor.strides.clone(),
        item_bytes: tensor.item_bytes,
        why,
    };
    if tensor.shape.is_empty() || tensor.shape.len() != tensor.strides.len() {
        return Err(bad("want a block dimension first and one stride a dimension"));
    }
    if tensor.item_bytes == 0 || tensor.shape.contains(&0) {
        return Err(bad("it holds no bytes"));
    }
    let rows = tensor.shape[0];
    if num_blocks == 0 || num_blocks > u64::from(u32::MAX) || !rows.is_multiple_of(num_blocks) {
        return Err(LayoutError::BlockCount { tensor: index, rows, blocks: num_blocks });
    }
    let split = rows / num_blocks;
    let mut dims: Vec<Dim> = Vec::with_capacity(tensor.shape.len());
    if split > 1 {
        dims.push(Dim { name: format!("k{split}"), stride: tensor.strides[0], length: split });
    }
    for (axis, (length, stride)) in tensor.shape.iter().zip(&tensor.strides).enumerate().skip(1) {
        if *length > 1 {
            dims.push(Dim { name: axis.to_string(), stride: *stride, length: *length });
        }
    }
    dims.sort_by_key(|dim| std::cmp::Reverse(dim.stride));
    let block_stride = tensor.strides[0].checked_mul(split).ok_or_else(|| bad("a stride overflows 64 bits"))?;
    let mut all = dims.clone();
    if num_blocks > 1 {
        all.push(Dim { name: String::new(), stride: block_stride, length: num_blocks });
        all.sort_by_key(|dim| std::cmp::Reverse(dim.stride));
    }
    let extent = extent_without_overlap(&all, tensor.item_bytes).map_err(bad)?;
    tensor.address.checked_add(extent).ok_or_else(|| bad("it ends past the end of the address space"))?;
    Ok(BlockDims { address: tensor.address, block_stride, item_bytes: tensor.item_bytes, dims })
}

/// Bytes from the first to the last element, if no two elements share a byte.
fn extent_without_overlap(dims: &[Dim], item_bytes: u64) -> Result<u64, &'static str> {
    let mut extent = item_bytes;
    for dim in dims.iter().rev() {
        if dim.stride < extent {
            return Err("its elements overlap");
        }
        extent = dim
            .stride
            .checked_mul(dim.length - 1)
            .and_then(|reach| reach.checked_add(extent))
            .ok_or("a stride overflows 64 bits")?;
    }
    Ok(extent)
}

impl BlockDims {
    fn order(&self) -> String {
        self.dims.iter().map(|dim| dim.name.as_str()).collect::<Vec<_>>().join(".")
    }

    /// The contiguous runs of block zero, in the order of memory, each repeating at the block stride.
    fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let mut bytes = self.item_bytes;
        let mut outer = self.dims.as_slice();
        while let Some((last, rest)) = outer.split_last() {
            if last.stride != bytes {
                break;
            }
            bytes *= last.length;
            outer = rest;
        }
        let count: u64 = outer.iter().map(|dim| dim.length).product();
        (0..count).map(move |number| {
            let mut rest = number;
            let mut offset = 0;
            for dim in outer.iter().rev() {
                offset += (rest % dim.length) * dim.stride;
                rest /= dim.length;
            }
            Run { first: self.address + offset, stride: self.block_stride, bytes }
        })
    }
}

#[cfg(test)]
mod tests;
