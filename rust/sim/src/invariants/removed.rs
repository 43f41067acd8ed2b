//! A removed key does not come back once its remover was told success.

use super::{Violation, hold};
use crate::ledger::Ledger;
use crate::memory::{Memories, Record};
use crate::truth::Truth;

/// A remover was told success: no record speaks any more of what was readable when the book served it, in memory that was
/// lent then and ever since.
pub fn check(ledger: &Ledger, truth: &mut Truth, memories: &mut Memories, request: u64) -> Result<(), Violation> {
    let Some(removal) = truth.removals.remove(&request) else { return Ok(()) };
    truth.forgotten += 1;
    let lent = ledger.segments.iter().filter(|(id, _)| removal.segments.contains(id));
    let places: Vec<_> = lent.map(|(_, segment)| truth.memory_of(segment.place)).collect();
    for place in places {
        let was_readable = |generation: &u64| truth.sealed.get(generation).is_some_and(|order| *order < removal.sealed);
        if let Some(memory) = memories.memory(place) {
            let of_key = memory.records.iter().flatten().filter(|record| removal.keys.contains(&record.key));
            let lasts = |record: &&Record| record.origin > memory.floor() && memory.summed(record).is_some();
            let standing = of_key.filter(|record| was_readable(&record.generation)).filter(lasts);
            let standing: Vec<_> = standing.collect();
            hold("removed", standing.is_empty(), || {
                format!("removed from {place:?}, and still recorded: {standing:x?}")
            })?;
        }
        let removed = truth.sealed.keys().filter(|one| was_readable(one));
        let removed = removed.filter(|one| truth.key_of.get(one).is_some_and(|key| removal.keys.contains(key)));
        let promised: Vec<_> = removed.map(|generation| (place, *generation)).collect();
        truth.removed.extend(promised);
    }
    Ok(())
}

/// The book took up what a node listed.
pub fn check_listed(ledger: &Ledger, truth: &Truth, segment: u64, key: u64, generation: u64) -> Result<(), Violation> {
    let place = ledger.segments.get(&segment).map_or((0, 0), |segment| truth.memory_of(segment.place));
    hold("removed", !truth.removed.contains(&(place, generation)), || {
        format!("{generation:x} came back from {place:?}, and its remover was told success")
    })?;
    hold("removed", !ledger.was_removed(truth, key, generation), || {
        format!("{generation:x} came back from {place:?}, which this life of the book removed")
    })
}
