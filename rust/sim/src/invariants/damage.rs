//! Damage that somebody met does not last.

use super::{Violation, hold};
use crate::ledger::Ledger;
use crate::truth::Truth;

/// What was found damaged when nothing went wrong any more is not readable.
pub fn check(ledger: &Ledger, truth: &Truth) -> Result<(), Violation> {
    for (segment, generation) in &truth.damaged {
        let readable = ledger.extents.get(generation).filter(|one| one.segment == *segment && one.is_sealed());
        hold("damage", readable.is_none(), || {
            format!("{generation:x} was found damaged and is still there: {readable:?}")
        })?;
    }
    Ok(())
}
