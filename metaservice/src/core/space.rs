//! Which bytes of one segment are taken.

use std::collections::{BTreeMap, BTreeSet};

use memcache_types::limits::EXTENT_ALIGN;

/// Free runs of one segment. Hands out the smallest run that fits, the lowest among equals; neighbours grow together
/// again when they come back. Costs the logarithm of the number of free runs; taken runs cost no memory here.
///
/// Invariants: free runs neither overlap nor touch; their lengths add up to `free_bytes`; both maps hold the same runs.
#[derive(Debug)]
pub(super) struct SpaceMap {
    bytes: u64,
    free_bytes: u64,
    by_offset: BTreeMap<u64, u64>,
    by_length: BTreeSet<(u64, u64)>,
}

impl SpaceMap {
    /// All of a segment of `bytes` bytes, rounded down to [`EXTENT_ALIGN`].
    pub(super) fn new(bytes: u64) -> Self {
        let bytes = bytes - bytes % EXTENT_ALIGN;
        let mut space = Self { bytes, free_bytes: 0, by_offset: BTreeMap::new(), by_length: BTreeSet::new() };
        if bytes > 0 {
            space.insert(0, bytes);
        }
        space
    }

    /// Length of the segment.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) const fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    pub(super) const fn used_bytes(&self) -> u64 {
        self.bytes - self.free_bytes
    }

    /// Longest run that could be taken now.
    pub(super) fn longest_run(&self) -> u64 {
        self.by_length.last().map_or(0, |(length, _)| *length)
    }

    /// Takes a run of `bytes` bytes, a multiple of [`EXTENT_ALIGN`]; its offset.
    pub(super) fn take(&mut self, bytes: u64) -> Option<u64> {
        debug_assert!(bytes > 0 && bytes.is_multiple_of(EXTENT_ALIGN), "extents are whole lines");
        let (length, offset) = *self.by_length.range((bytes, 0)..).next()?;
        self.remove(offset, length);
        if length > bytes {
            self.insert(offset + bytes, length - bytes);
        }
        Some(offset)
    }

    /// Takes exactly this run of whole lines. False: not all of it is free.
    pub(super) fn take_at(&mut self, offset: u64, bytes: u64) -> bool {
        debug_assert!(bytes > 0 && bytes.is_multiple_of(EXTENT_ALIGN), "extents are whole lines");
        let Some((start, length)) = self.by_offset.range(..=offset).next_back().map(|(o, l)| (*o, *l)) else {
            return false;
        };
        let (end, free_end) = (offset + bytes, start + length);
        if end > free_end {
            return false;
        }
        self.remove(start, length);
        if start < offset {
            self.insert(start, offset - start);
        }
        if end < free_end {
            self.insert(end, free_end - end);
        }
        true
    }

    /// Gives a taken run back.
    pub(super) fn give_back(&mut self, offset: u64, bytes: u64) {
        let (mut start, mut end) = (offset, offset + bytes);
        if let Some((before, length)) = self.by_offset.range(..=offset).next_back().map(|(o, l)| (*o, *l)) {
            assert!(before + length <= offset, "bytes {offset}..+{bytes} were free already");
            if before + length == offset {
                self.remove(before, length);
                start = before;
            }
        }
        if let Some((after, length)) = self.by_offset.range(offset..).next().map(|(o, l)| (*o, *l)) {
            assert!(end <= after, "bytes {offset}..+{bytes} were free already");
            if after == end {
                self.remove(after, length);
                end = after + length;
            }
        }
        self.insert(start, end - start);
    }

    /// First byte of the free run that ends where a taken one begins.
    pub(super) fn free_run_before(&self, end: u64) -> Option<u64> {
        let (offset, length) = self.by_offset.range(..end).next_back()?;
        (offset + length == end).then_some(*offset)
    }

    /// End of the free run that begins where a taken one ends.
    pub(super) fn free_run_from(&self, start: u64) -> Option<u64> {
        self.by_offset.get(&start).map(|length| start + length)
    }

    fn insert(&mut self, offset: u64, length: u64) {
        self.by_offset.insert(offset, length);
        self.by_length.insert((length, offset));
        self.free_bytes += length;
    }

    fn remove(&mut self, offset: u64, length: u64) {
        self.by_offset.remove(&offset);
        self.by_length.remove(&(length, offset));
        self.free_bytes -= length;
    }
}

#[cfg(test)]
mod tests;
