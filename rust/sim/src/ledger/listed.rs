//! What the book must hold of memory whose nodes tell what is in it.

use memcache_proto::pb;
use memcache_types::extent_bytes;

use super::{Extent, Ledger, State, key_numbers};
use crate::invariants::{Violation, hold, kept, overlap, removed};
use crate::truth::{Removal, Truth};

impl Ledger {
    /// Whether the book could know of a life of this epoch.
    pub fn could_know(&self, epoch: u64) -> bool {
        self.told_of.is_none_or(|told_of| epoch <= told_of)
    }

    /// Whether the book could know what of other lives was put before this: of objects of two earlier ones it sees the
    /// numbers alone.
    pub fn could_order(&self, truth: &Truth, generation: u64) -> bool {
        self.told_of.is_none() || truth.turn(generation) > self.began
    }

    /// Whether an object was removed in this life of the book. A put that was under way may still take effect.
    pub fn was_removed(&self, truth: &Truth, key: u64, generation: u64) -> bool {
        let sealed = truth.sealed.get(&generation);
        self.removed_at.get(&key).zip(sealed).is_some_and(|(before, own)| own < before)
    }

    /// A removal was served: what it is to last for. Only the first time: a request may arrive twice.
    pub fn note_removal(&self, truth: &mut Truth, request: u64, asked: &pb::Remove) {
        self.note_removal_of(truth, request, key_numbers(asked.keys.as_ref()));
    }

    /// As [`Self::note_removal`], of every key that there ever was.
    pub fn note_removal_of_all(&self, truth: &mut Truth, request: u64) {
        self.note_removal_of(truth, request, truth.all_keys());
    }

    fn note_removal_of(&self, truth: &mut Truth, request: u64, keys: Vec<u64>) {
        let (sealed, segments) = (truth.sealed.len() as u64, self.segments.keys().copied().collect());
        truth.removals.entry(request).or_insert(Removal { keys, sealed, segments });
    }

    /// Everything readable was removed whose bytes come from a put of this generation or an older one.
    pub(super) fn removed_up_to(&mut self, truth: &mut Truth, floor: u64) {
        self.floor = self.floor.max(floor);
        // Floors know no lives: a floor of one with greater numbers takes what was put since.
        truth.drop_up_to(floor);
        let covered =
            |(generation, extent): &(&u64, &mut Extent)| extent.is_sealed() && truth.origin(**generation) <= floor;
        for (_, extent) in self.extents.iter_mut().filter(covered) {
            extent.state = State::Removed;
        }
        self.sweep();
    }

    /// The book was told of damage, and forgot just that.
    pub(super) fn forgotten(
        &mut self,
        truth: &mut Truth,
        asked: &pb::Damaged,
        reply: &pb::DamagedReply,
    ) -> Result<(), Violation> {
        for ((segment, generation), forgotten) in asked.segments.iter().zip(&asked.generations).zip(&reply.forgotten) {
            if *forgotten == 0 {
                continue; // unknown, or gone with its node at this very moment: the audit tells
            }
            let own = self.extents.get_mut(generation).filter(|one| one.segment == *segment && one.is_sealed());
            hold("damage", own.is_some(), || format!("{generation:x} in {segment:x} was forgotten, and never known"))?;
            if let Some(extent) = own {
                extent.state = State::Removed;
                truth.kept.remove(generation);
            }
        }
        self.sweep();
        Ok(())
    }

    /// The book answered a part of a listing.
    pub(super) fn listed(
        &mut self,
        truth: &mut Truth,
        asked: &pb::Holdings,
        reply: &pb::HoldingsReply,
    ) -> Result<(), Violation> {
        for (at, key) in key_numbers(asked.keys.as_ref()).into_iter().enumerate() {
            let generation = asked.generations[at];
            if asked.gone {
                if let Some(extent) = self.extents.get_mut(&generation).filter(|one| one.segment == asked.segment) {
                    extent.state = State::Removed;
                    truth.kept.remove(&generation);
                }
            } else if reply.kept[at] == 1 {
                self.take_up(truth, asked, at, key)?;
            } else {
                if self.forgot(asked) {
                    truth.doubtful += 1;
                } else if !self.extents.contains_key(&generation) && truth.exact {
                    kept::check(self, truth, generation)?;
                }
                truth.kept.remove(&generation);
            }
        }
        if asked.done {
            self.listing.remove(&asked.segment);
            if truth.exact {
                kept::check_all(self, truth, asked.segment)?;
            }
            let life = self.segments.get(&asked.segment).map_or((0, 0), |segment| segment.place);
            for (generation, extent) in self.extents.iter().filter(|(_, one)| one.segment == asked.segment) {
                if extent.is_sealed() {
                    truth.seal(*generation, extent.key, life);
                }
            }
        }
        self.sweep();
        Ok(())
    }

    /// Whether removals are forgotten that were served while this node was away.
    fn forgot(&self, asked: &pb::Holdings) -> bool {
        self.turns.1 > self.seen.get(&asked.node).copied().unwrap_or(0)
    }

    fn take_up(&mut self, truth: &mut Truth, asked: &pb::Holdings, at: usize, key: u64) -> Result<(), Violation> {
        let (generation, segment, offset) = (asked.generations[at], asked.segment, asked.offsets[at]);
        removed::check_listed(self, truth, segment, key, generation)?;
        hold("bytes", truth.key_of.get(&generation) == Some(&key), || {
            format!("{generation:x} was listed as key {key}, and is of another")
        })?;
        let bytes = extent_bytes(asked.payload_bytes[at]);
        let new = Extent { key, segment, offset, bytes, client: 0, state: State::Sealed };
        if !self.extents.get(&generation).is_some_and(Extent::is_sealed) {
            overlap::check_free(self, &new)?;
            truth.listed += 1;
            self.lowered = true;
            let own = truth.origin(generation);
            // Of several puts the latest stays.
            let other = |(other, extent): &(&u64, &mut Extent)| {
                extent.key == key && extent.is_sealed() && truth.origin(**other) != own
            };
            let mut gone = Vec::new();
            for (older, extent) in self.extents.iter_mut().filter(other) {
                extent.state = State::Removed;
                gone.push((*older, extent.segment));
            }
            for (older, segment) in gone {
                truth.kept.remove(&older);
                self.replaced.push((segment, older, generation));
            }
            self.extents.insert(generation, new);
        }
        // It may have been evicted before: until the memory has rested the writer it went for may be at work there.
        let next = truth.sealed.len() as u64;
        truth.sealed.entry(generation).or_insert(next);
        if !truth.refused.contains(&generation) {
            truth.recorded.insert(generation);
        }
        Ok(())
    }
}
