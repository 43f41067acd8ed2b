//! Real memory rests: space whose writer did not say that it is done goes to nobody else during the life of the
//! ticket, and space that is read during the lease, whatever happened to the book or the node's membership meanwhile.

use super::{Violation, hold};
use crate::ledger::Extent;
use crate::truth::{Promise, Truth};

/// The book granted `new`. `listing`: the node has not told all that the segment holds, or its memory has not rested.
pub fn check_listed(listing: bool, new: &Extent) -> Result<(), Violation> {
    hold("rest", !listing, || format!("{new:?} was granted in memory whose node has not told all"))
}

/// The book granted `new`.
pub fn check(truth: &Truth, now: u64, new: &Promise) -> Result<(), Violation> {
    for (generation, writer) in &truth.writers {
        hold("rest", writer.until <= now || !writer.meets(new), || {
            format!("{new:?} was granted, but the writer of {generation:x} may still write: {writer:?}")
        })?;
    }
    for (lease, objects) in &truth.readers {
        let met = objects.iter().find(|object| object.until > now && object.meets(new));
        hold("rest", met.is_none(), || format!("{new:?} was granted, but is read under lease {lease:x}: {met:?}"))?;
    }
    Ok(())
}
