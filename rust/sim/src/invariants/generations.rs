//! No number is issued twice, over all lives of the book: generations, leases and segments.

use super::{Violation, hold};
use crate::ledger::Ledger;
use crate::truth::Truth;

/// Ids of one life begin at its epoch times so many.
const IDS_OF_ONE: u64 = 1 << 22;

/// The book issued this number. Where wall clocks are set back it cannot know of a life that nobody told it of: such a world
/// is of no more use.
pub fn check(ledger: &Ledger, truth: &mut Truth, number: u64) -> Result<(), Violation> {
    let is_new = truth.issue(number);
    let could_know = ledger.could_know(number / IDS_OF_ONE);
    truth.is_lost |= !is_new && !could_know;
    hold("generations", is_new || !could_know, || format!("{number:x} was issued twice"))
}
