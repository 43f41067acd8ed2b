//! Where new objects go, and which old ones make room.

use memcache_types::{NodeId, SegmentId};

use super::Core;
use super::effect::Effect;
use super::limits::TICK_EVICTIONS_MAX;
use super::object::Object;
use super::segment::Segment;
use super::slab::Slot;

impl Core {
    /// Takes space for an extent. Free space near the writer comes first, then the segment with the most free bytes,
    /// then the one whose least recently used object is the oldest: that one evicts until the extent fits.
    pub(super) fn place(&mut self, bytes: u64, near: Option<NodeId>) -> Option<(Slot<Segment>, u64)> {
        let near = near.and_then(|id| self.node_ids.get(&id)).map(|slot| self.nodes[*slot].segments.as_slice());
        let slot = near
            .and_then(|own| self.most_free(own.iter().copied(), bytes))
            .or_else(|| self.most_free(self.segments.iter().map(|(slot, _)| slot), bytes));
        if let Some(slot) = slot {
            return self.segments[slot].space.take(bytes).map(|offset| (slot, offset));
        }
        self.place_by_eviction(bytes)
    }

    /// The segment with the most free bytes among those where the extent fits now.
    fn most_free(&self, slots: impl Iterator<Item = Slot<Segment>>, bytes: u64) -> Option<Slot<Segment>> {
        let mut best: Option<(u64, SegmentId, Slot<Segment>)> = None;
        for slot in slots {
            let segment = &self.segments[slot];
            let free = segment.space.free_bytes();
            let better = best.is_none_or(|(most, id, _)| free > most || (free == most && segment.id < id));
            if better && free >= bytes && segment.usable_from <= self.now && segment.space.longest_run() >= bytes {
                best = Some((free, segment.id, slot));
            }
        }
        best.map(|(_, _, slot)| slot)
    }

    fn place_by_eviction(&mut self, bytes: u64) -> Option<(Slot<Segment>, u64)> {
        // Each round either places the extent or leaves one segment more without victims.
        while let Some(slot) = self.oldest_idle(bytes) {
            while let Some(victim) = self.segments[slot].idle.oldest() {
                self.evict(victim);
                if let Some(offset) = self.segments[slot].space.take(bytes) {
                    return Some((slot, offset));
                }
            }
        }
        None
    }

    /// The segment with the least recently used idle object, among those that could make room for the extent.
    fn oldest_idle(&self, bytes: u64) -> Option<Slot<Segment>> {
        self.segments
            .iter()
            .filter(|(_, segment)| {
                segment.usable_from <= self.now && segment.space.free_bytes() + segment.idle_bytes >= bytes
            })
            .filter_map(|(slot, segment)| Some((self.objects[segment.idle.oldest()?].used, slot)))
            .min_by_key(|(used, _)| *used)
            .map(|(_, slot)| slot)
    }

    /// Evicts on every node above the high watermark down to the low one. True: one tick was not enough.
    pub(super) fn evict_to_watermark(&mut self, effects: &mut Vec<Effect>) -> bool {
        let mut budget = TICK_EVICTIONS_MAX;
        let nodes: Vec<_> = self.node_ids.values().copied().collect();
        for slot in nodes {
            let segments = self.nodes[slot].segments.clone();
            let sum = |core: &Self, part: fn(&Segment) -> u64| -> u128 {
                segments.iter().map(|slot| u128::from(part(&core.segments[*slot]))).sum()
            };
            let capacity = sum(self, |segment| segment.space.bytes());
            let used = sum(self, |segment| segment.space.used_bytes());
            let share = |ppm: u32| capacity * u128::from(ppm) / 1_000_000;
            if used <= share(self.settings.high_watermark_ppm) {
                continue;
            }
            let excess = used - share(self.settings.low_watermark_ppm);
            let (mut objects, mut bytes) = (0, 0);
            while u128::from(bytes) < excess
                && budget > 0
                && let Some(victim) = self.oldest_of(&segments)
            {
                budget -= 1;
                objects += 1;
                bytes += self.objects[victim].extent_bytes();
                self.evict(victim);
            }
            if objects > 0 {
                effects.push(Effect::Evicted { node: self.nodes[slot].id, objects, bytes });
            }
        }
        budget == 0
    }

    /// The least recently used idle object of some segments.
    fn oldest_of(&self, segments: &[Slot<Segment>]) -> Option<Slot<Object>> {
        segments
            .iter()
            .filter_map(|slot| self.segments[*slot].idle.oldest())
            .min_by_key(|object| self.objects[*object].used)
    }

    fn evict(&mut self, victim: Slot<Object>) {
        self.evicted_objects += 1;
        self.evicted_bytes += self.objects[victim].extent_bytes();
        self.remove_object(victim);
    }
}
