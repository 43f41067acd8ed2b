//! A reservation that nobody seals is reclaimed when its time is over.

use super::{Violation, hold};
use crate::ledger::{Ledger, State};

/// The book counts the reservations whose time is not over.
pub fn check(ledger: &Ledger, found: u64) -> Result<(), Violation> {
    let want = ledger.extents.values().filter(|extent| matches!(extent.state, State::Reserved { .. })).count() as u64;
    hold("reclaim", found == want, || format!("{found} reservations, want {want}"))
}
