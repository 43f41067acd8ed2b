//! A leased object stays in place until its deadline, and what is readable is where it was sealed.

use super::{Violation, hold};
use crate::ledger::{Ledger, State};

/// The book says that `key` is readable as this generation at this place.
pub fn check_found(ledger: &Ledger, key: u64, generation: u64, segment: u64, offset: u64) -> Result<(), Violation> {
    let known = ledger.extents.get(&generation);
    let fits = known.is_some_and(|known| {
        (known.key, known.segment, known.offset, known.state) == (key, segment, offset, State::Sealed)
    });
    hold("leases", fits, || {
        format!("key {key} was found as {generation:x} at {segment:x}+{offset:x}, but the ledger has {known:?}")
    })
}

/// An object went although nobody removed it.
pub fn check_gone(ledger: &Ledger, generation: u64) -> Result<(), Violation> {
    hold("leases", ledger.may_evict(generation), || {
        format!("{generation:x} is gone under a lease: {:?}", ledger.extents.get(&generation))
    })
}

/// The book counts the leases that were given.
pub fn check_count(ledger: &Ledger, found: u64) -> Result<(), Violation> {
    let want = ledger.leases.len() as u64;
    hold("leases", found == want, || format!("{found} leases, want {want}"))
}
