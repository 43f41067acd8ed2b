//! The book was asked for everything: what it says must be what it holds.

use std::collections::{BTreeMap, BTreeSet};

use memcache_proto::pb;

use super::{Extent, Ledger, State};
use crate::invariants::{Violation, accounts, kept, leases, reclaim, replicas};
use crate::truth::Truth;

impl Ledger {
    /// The longest run of a segment in which nothing lies.
    pub fn longest_hole(&self, segment: u64) -> u64 {
        let bytes = self.segments.get(&segment).map_or(0, |segment| segment.bytes);
        let own = self.extents.values().filter(|extent| extent.segment == segment);
        let mut taken: Vec<(u64, u64)> = own.map(|extent| (extent.offset, extent.bytes)).collect();
        taken.push((bytes, 0));
        taken.sort_unstable();
        let (mut end, mut longest) = (0, 0);
        for (offset, bytes) in taken {
            longest = longest.max(offset - end);
            end = offset + bytes;
        }
        longest
    }

    /// A replica went although nobody removed it: evicted, or from a node that is being emptied.
    fn went(&mut self, truth: &mut Truth, generation: u64, info: &pb::KeyInfo) -> Result<(), Violation> {
        truth.kept.remove(&generation);
        let node =
            self.extents.get(&generation).and_then(|known| self.segments.get(&known.segment)).map(|one| one.place.0);
        if node.is_some_and(|node| self.draining.contains(&node)) {
            let stays = info.replicas.iter().any(|replica| !replica.draining);
            crate::invariants::hold("replicas", stays || self.may_evict(generation), || {
                format!("{generation:x} left a node that is being emptied, but nothing of it stays: {info:?}")
            })?;
            // Eviction may have taken it, too; nobody can tell from here.
            self.uncertain += 1;
            if let Some(extent) = self.extents.get_mut(&generation) {
                extent.state = State::Removed;
            }
            return Ok(());
        }
        leases::check_gone(self, generation)?;
        self.extents.remove(&generation);
        if self.settings.hot_replica_bytes > 0 && info.replicas.len() >= info.wanted as usize {
            // An extra one: evicted, or not used for long.
            self.uncertain += 1;
        } else {
            self.evicted += 1;
        }
        Ok(())
    }

    /// The book was asked for everything: what is readable of `keys`, and how much of what there is.
    pub fn audit(
        &mut self,
        truth: &mut Truth,
        keys: &[u64],
        infos: &pb::InfoReply,
        status: &pb::StatusReply,
    ) -> Result<(), Violation> {
        let present: BTreeMap<u64, u64> = status.nodes.iter().map(|node| (node.node, node.incarnation)).collect();
        let gone: Vec<u64> = self.nodes.keys().copied().filter(|node| !present.contains_key(node)).collect();
        for node in &gone {
            self.drop_node(*node);
        }
        for (segment, dropped, taken) in std::mem::take(&mut self.replaced) {
            if self.segments.contains_key(&segment) && self.could_order(truth, dropped) {
                kept::check_later(truth, taken, dropped)?;
            }
        }
        for (key, info) in keys.iter().zip(&infos.keys) {
            let there: BTreeSet<u64> = info.replicas.iter().map(|replica| replica.generation).collect();
            let of_key = |known: &Extent| known.key == *key && known.is_sealed();
            let known = self.extents.iter().filter(|(_, known)| of_key(known)).map(|(generation, _)| *generation);
            let gone: Vec<u64> = known.filter(|generation| !there.contains(generation)).collect();
            for generation in gone {
                self.went(truth, generation, info)?;
            }
            replicas::check(self, truth, *key, info)?;
        }
        self.sweep();
        let (said, noticed) = (status.evicted_objects - self.evicted_said, self.evicted);
        let uncertain = std::mem::take(&mut self.uncertain);
        (self.evicted_said, self.evicted) = (status.evicted_objects, 0);
        let counts = (noticed..=noticed + uncertain).contains(&said) || (said > noticed && !gone.is_empty());
        crate::invariants::hold("leases", counts, || format!("{said} objects were evicted, but {noticed} are gone"))?;
        truth.extras = truth.extras.max(status.extra_replicas);
        replicas::check_budget(status, self.settings.hot_replica_bytes, self.lowered)?;
        reclaim::check(self, status.reservations)?;
        leases::check_count(self, status.leases)?;
        accounts::check(self, status)
    }
}
