//! What must hold, one rule a file.

pub mod accounts;
pub mod bytes;
pub mod damage;
pub mod generations;
pub mod incarnation;
pub mod kept;
pub mod leases;
pub mod overlap;
pub mod reclaim;
pub mod removed;
pub mod replicas;
pub mod rest;
pub mod settled;
pub mod tables;

use std::fmt;

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The file of the rule.
    pub rule: &'static str,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// Fails with words when a rule does not hold.
pub(crate) fn hold(rule: &'static str, holds: bool, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { rule, what: what() }) }
}
