//! How far one call looks for room where no run of free bytes is long enough.

use super::limits::{CALL_LOOKS_MAX, HOLE_OBJECTS_MAX, ROW_STEP};

/// The bounds of such a search. What is not found within them is not there: the put has no room, and nothing is evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SearchLimits {
    /// Objects of one segment looked at in the order in which they would go.
    pub in_order: usize,
    /// Objects looked at by one call, in that order and in the order in which they lie.
    pub looks: usize,
    /// Places of objects that one step goes through to learn in which order those of a segment lie.
    pub row_step: usize,
}

impl SearchLimits {
    /// As in service.
    pub const DEFAULT: Self = Self { in_order: HOLE_OBJECTS_MAX, looks: CALL_LOOKS_MAX, row_step: ROW_STEP };
}

/// What a call has left to look for room.
#[derive(Debug)]
pub(super) struct Search {
    /// Objects that it may still look at.
    looks: usize,
}

impl Search {
    pub(super) const fn new(looks: usize) -> Self {
        Self { looks }
    }

    /// One more look; false: there is none left.
    pub(super) const fn look(&mut self) -> bool {
        let is_left = self.looks > 0;
        self.looks -= is_left as usize;
        is_left
    }
}
