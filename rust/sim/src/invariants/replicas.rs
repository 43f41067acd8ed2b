//! The replicas of a key are on distinct nodes and hold the bytes of one put; what is lost comes back where there is room.

use std::collections::BTreeSet;

use memcache_proto::pb;

use super::{Violation, hold};
use crate::ledger::Ledger;
use crate::truth::Truth;

/// What the book says of a key.
pub fn check(ledger: &Ledger, truth: &Truth, key: u64, info: &pb::KeyInfo) -> Result<(), Violation> {
    let nodes: BTreeSet<u64> = info.replicas.iter().map(|replica| replica.node).collect();
    hold("replicas", nodes.len() == info.replicas.len(), || format!("key {key} has two replicas on a node: {info:?}"))?;
    let origins: BTreeSet<_> = info.replicas.iter().map(|replica| truth.origin_of.get(&replica.generation)).collect();
    hold("replicas", origins.len() <= 1, || format!("key {key} has the bytes of several puts: {info:?}, {origins:?}"))?;
    for replica in &info.replicas {
        let known = ledger.extents.get(&replica.generation);
        let fits = known.is_some_and(|known| {
            known.is_sealed() && (known.key, known.segment, known.offset) == (key, replica.segment, replica.offset)
        });
        hold("replicas", fits, || format!("key {key} has {replica:?}, but the ledger has {known:?}"))?;
    }
    Ok(())
}

/// The book says how much the replicas take that nobody asked for. `lowered`: some of them were asked for once.
pub fn check_budget(status: &pb::StatusReply, budget: u64, lowered: bool) -> Result<(), Violation> {
    hold("replicas", lowered || status.extra_bytes <= budget, || {
        format!("{} bytes of extra replicas, and a budget of {budget}", status.extra_bytes)
    })
}

/// All is calm for a while: a key lacks replicas only where no other node has room for one more.
pub fn check_restored(ledger: &Ledger, key: u64, info: &pb::KeyInfo, high_ppm: u32) -> Result<(), Violation> {
    if info.replicas.is_empty() || info.replicas.len() >= info.wanted as usize {
        return Ok(());
    }
    let bytes = ledger.extents.get(&info.replicas[0].generation).map_or(0, |known| known.bytes);
    let has_room = ledger.segments.iter().find(|(id, segment)| {
        let holds = info.replicas.iter().any(|replica| replica.node == segment.place.0);
        let used: u64 =
            ledger.extents.values().filter(|extent| extent.segment == **id).map(|extent| extent.bytes).sum();
        !holds && used + bytes <= segment.bytes * u64::from(high_ppm) / 1_000_000 && ledger.longest_hole(**id) >= bytes
    });
    hold("replicas", has_room.is_none(), || format!("key {key} lacks replicas, but {has_room:?} has room: {info:?}"))
}
