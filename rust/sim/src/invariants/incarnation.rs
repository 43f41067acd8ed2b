//! Nobody is sent to memory of an old incarnation, or to memory that is not lent.

use super::{Violation, hold};
use crate::ledger::Ledger;

/// The book named this segment.
pub fn check(ledger: &Ledger, segment: u64) -> Result<(), Violation> {
    let known = ledger.segments.get(&segment);
    hold("incarnation", known.is_some_and(|known| ledger.nodes.get(&known.place.0) == Some(&known.place.1)), || {
        format!("segment {segment:x} was named, {known:?}; nodes {:?}", ledger.nodes)
    })
}
