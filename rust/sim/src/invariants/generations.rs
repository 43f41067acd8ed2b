//! No number is issued twice, over all lives of the book: generations, leases and segments.

use super::{Violation, hold};
use crate::truth::Truth;

/// The book issued this number.
pub fn check(truth: &mut Truth, number: u64) -> Result<(), Violation> {
    hold("generations", truth.issued.insert(number), || format!("{number:x} was issued twice"))
}
