//! No two live extents overlap, and none reaches beyond its segment.

use super::{Violation, hold};
use crate::ledger::{Extent, Ledger};

/// The book granted `new` for a copy: copies evict nothing, but for nodes that are emptied that way.
pub fn check_free(ledger: &Ledger, new: &Extent) -> Result<(), Violation> {
    let met = ledger.extents.iter().find(|(_, other)| other.meets(new));
    hold("overlap", met.is_none(), || format!("a copy {new:?} was granted over {met:?}"))
}

/// The book granted `new`: nothing that must stay may share a byte with it.
pub fn check(ledger: &Ledger, new: &Extent) -> Result<(), Violation> {
    let bytes = ledger.segments.get(&new.segment).map_or(0, |segment| segment.bytes);
    hold("overlap", new.offset + new.bytes <= bytes, || format!("{new:?} reaches beyond {bytes} bytes"))?;
    for (generation, other) in ledger.extents.iter().filter(|(_, other)| other.meets(new)) {
        hold("overlap", ledger.may_evict(*generation), || format!("{new:?} was granted over {other:?}"))?;
    }
    Ok(())
}
