//! Used and free bytes make up the capacity, and every used byte has its reason.

use memcache_proto::pb;

use super::{Violation, hold};
use crate::ledger::Ledger;

/// The book counted itself.
pub fn check(ledger: &Ledger, status: &pb::StatusReply) -> Result<(), Violation> {
    for node in &status.nodes {
        let own = |segment: &u64| {
            ledger.segments.get(segment).is_some_and(|segment| segment.place == (node.node, node.incarnation))
        };
        let capacity: u64 = ledger.segments.iter().filter(|(id, _)| own(id)).map(|(_, segment)| segment.bytes).sum();
        let used: u64 = ledger.extents.values().filter(|extent| own(&extent.segment)).map(|extent| extent.bytes).sum();
        let is_used = node.used_bytes == used || ledger.sweeps && node.used_bytes > used;
        hold("accounts", node.capacity_bytes == capacity && is_used, || {
            format!(
                "node {}: {} of {} bytes used, want {used} of {capacity}",
                node.node, node.used_bytes, node.capacity_bytes
            )
        })?;
    }
    Ok(())
}
