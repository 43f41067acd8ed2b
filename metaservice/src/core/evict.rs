//! Objects go to make room, and why.

use super::Core;
use super::effect::Effect;
use super::limits::TICK_EVICTIONS_MAX;
use super::node::Amount;
use super::object::Object;
use super::policy::Shelved;
use super::segment::Segment;
use super::slab::Slot;

/// Why an object was evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its node was above the high watermark.
    Watermark,
    /// A put had no room, and it was the next to go.
    Put,
    /// A put had no run of bytes that was long enough, and it lay where one could be made.
    Hole,
    /// The same, and it or others there were under soft pins.
    Pin,
    /// A node is being emptied into a full pool.
    Drain,
}

impl Cause {
    /// All of them, with their names for people.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Watermark, "watermark"),
        (Self::Put, "put"),
        (Self::Hole, "hole"),
        (Self::Pin, "pin"),
        (Self::Drain, "drain"),
    ];
}

/// What was evicted, by cause.
pub type Evictions = [Amount; Cause::ALL.len()];

impl Core {
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
                self.evict(victim, Cause::Watermark);
            }
            if objects > 0 {
                effects.push(Effect::Evicted { node: self.nodes[slot].id, objects, bytes });
            }
        }
        budget == 0
    }

    /// The next victim among some segments.
    fn oldest_of(&mut self, segments: &[Slot<Segment>]) -> Option<Slot<Object>> {
        let victims: Vec<_> = segments.iter().filter_map(|slot| self.victim_of(*slot)).collect();
        victims.into_iter().min_by_key(|(rank, _)| *rank).map(|(_, victim)| victim)
    }

    /// Evicts one replica. There was no room for as many as its key should have: it is to have those that are left.
    pub(super) fn evict(&mut self, victim: Slot<Object>, cause: Cause) {
        self.count_drained(victim);
        self.evicted[cause as usize].add(self.objects[victim].extent_bytes());
        let entry = self.objects[victim].entry;
        if let Some(entry) = entry
            && self.is_alone(victim)
        {
            let eviction = self.use_of(self.index.get(entry).hash(), victim);
            self.policy.evicted(eviction, self.objects[victim].mark());
        }
        self.remove_object(victim);
        if let Some(entry) = entry
            && self.index.knows(entry)
            && self.index.get(entry).object.is_some()
        {
            self.want_what_is_left(entry);
        }
    }
}
