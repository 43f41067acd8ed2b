//! Runs of an object's payload that are copied on their own, so that several threads can work on one object.

use memcache_types::ScatterList;

use super::pointer;
use crate::region::RawRegion;

/// Parts begin at multiples of this, so that no two threads share a page of the region.
const ALIGN: u64 = 4096;

/// A run of an object's payload, and where in the list of its local pieces it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The piece that holds the first byte, and how many bytes of it come before.
    piece: usize,
    skip: u64,
    /// Offset of the first byte in the payload.
    offset: u64,
    bytes: u64,
}

impl Part {
    /// All of an object.
    pub const fn whole(local: &ScatterList) -> Self {
        Self { piece: 0, skip: 0, offset: 0, bytes: local.bytes() }
    }

    /// Offset of the first byte in the payload.
    pub const fn offset(self) -> u64 {
        self.offset
    }

    /// Length in bytes.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// Where the part begins in a region that begins with the object. Panics if the region ends before the part does.
    pub(super) fn start_in(self, region: RawRegion<'_>) -> *mut u8 {
        match region.sub(self.offset, self.bytes) {
            Ok(run) => run.base().as_ptr(),
            Err(outside) => panic!("a part of an object that its region does not hold: {outside}"),
        }
    }

    /// The runs of local memory that make up the part.
    pub(super) fn pieces(self, local: &ScatterList) -> impl Iterator<Item = (*mut u8, usize)> + Clone {
        let (mut skip, mut left) = (self.skip, self.bytes);
        local.pieces()[self.piece.min(local.pieces().len())..].iter().map_while(move |piece| {
            if left == 0 {
                return None;
            }
            let (start, bytes) = pointer(*piece);
            #[allow(clippy::cast_possible_truncation, reason = "lengths of this process fit in a usize")]
            let (before, wanted) = (skip as usize, left as usize);
            let bytes = (bytes - before).min(wanted);
            skip = 0;
            left -= bytes as u64;
            Some((start.wrapping_add(before), bytes))
        })
    }
}

/// Cuts an object into `count` parts of about the same length; fewer where it is short.
///
/// Every byte is in exactly one part, and the parts are in the order of the bytes. An empty object has no part.
pub fn parts_of(local: &ScatterList, count: usize) -> Vec<Part> {
    let total = local.bytes();
    let length = total.div_ceil(count.max(1) as u64).next_multiple_of(ALIGN);
    let mut parts = Vec::with_capacity(count);
    let (mut piece, mut skip, mut offset) = (0, 0, 0);
    while offset < total {
        let bytes = length.min(total - offset);
        parts.push(Part { piece, skip, offset, bytes });
        offset += bytes;
        skip += bytes;
        while let Some(run) = local.pieces().get(piece).filter(|run| run.bytes <= skip) {
            skip -= run.bytes;
            piece += 1;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Laid end to end, the parts are the object: same memory, same order, nothing twice.
        #[test]
        fn parts_make_up_the_object(lengths in prop::collection::vec(1u64..30_000, 0..40), count in 1usize..20) {
            let mut list = ScatterList::new();
            let mut address = 4096;
            for bytes in &lengths {
                list.push(address, *bytes);
                address += bytes + 64;
            }
            let parts = parts_of(&list, count);
            prop_assert!(parts.len() <= count);
            let mut glued = ScatterList::new();
            let mut offset = 0;
            for part in &parts {
                prop_assert_eq!(part.offset(), offset);
                prop_assert!(part.bytes() > 0 && part.offset() % ALIGN == 0);
                offset += part.bytes();
                let mut bytes_seen = 0;
                for (start, bytes) in part.pieces(&list) {
                    glued.push(start.addr() as u64, bytes as u64);
                    bytes_seen += bytes as u64;
                }
                prop_assert_eq!(bytes_seen, part.bytes());
            }
            prop_assert_eq!(glued, list);
        }
    }
}
