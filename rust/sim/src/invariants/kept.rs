//! What was readable and recorded is readable again when its node has told all.

use super::{Violation, hold};
use crate::ledger::Ledger;
use crate::truth::Truth;

/// The book refused, or was told all, and this was readable before: it is, or something that was put later.
pub fn check(ledger: &Ledger, truth: &Truth, generation: u64) -> Result<(), Violation> {
    let Some(kept) = truth.kept.get(&generation) else { return Ok(()) };
    // A put that was under way when its key was removed may take effect, and may not last; nor may copies of it.
    if truth.removed_until.get(&kept.key).is_some_and(|until| truth.turn(generation) <= *until) {
        return Ok(());
    }
    let mut own = ledger.extents.iter().filter(|(_, extent)| extent.key == kept.key && extent.is_sealed());
    let could_order = ledger.could_order(truth, generation);
    let is_later = |other: u64| {
        truth.turn(other) >= truth.turn(generation) || !could_order && truth.origin(other) >= truth.origin(generation)
    };
    hold("kept", own.any(|(other, _)| is_later(*other)), || {
        format!("{generation:x} of key {} is lost, which {:?} holds", kept.key, kept.place)
    })
}

/// The book took up what a node listed, and dropped another object of its key for it.
pub fn check_later(truth: &Truth, generation: u64, dropped: u64) -> Result<(), Violation> {
    hold("kept", truth.turn(generation) > truth.turn(dropped), || {
        format!("{generation:x} was taken up in place of {dropped:x}, which was put later")
    })
}

/// A node has told all.
pub fn check_all(ledger: &Ledger, truth: &Truth, segment: u64) -> Result<(), Violation> {
    let place = ledger.segments.get(&segment).map(|segment| truth.memory_of(segment.place));
    let own = truth.kept.iter().filter(|(_, kept)| Some(kept.place) == place);
    own.map(|(generation, _)| *generation).try_for_each(|generation| check(ledger, truth, generation))
}
