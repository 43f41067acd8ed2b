//! Extra replicas of keys that are read from afar again and again, near a reader: out of a budget of bytes, and only
//! where there is free space. Off with a budget of 0.
//!
//! Extra is what a key has beyond the number that its writer asked for. No replica is marked as such: when one of the
//! others is lost, an extra one simply counts. It is made as any copy is. Where space is needed, keys with extra replicas
//! lose one first; and one goes when its key was not used for a while. Nobody makes a lost one again.

use std::collections::{BTreeMap, VecDeque};

use memcache_types::NodeId;
use memcache_types::limits::REPLICAS_MAX;

use super::Core;
use super::clock::Millis;
use super::index::Entry;
use super::limits::{HOT_ASKED_MAX, HOT_HALF_LIFE_MS, HOT_READS, HOT_UNUSED_MS, TICK_EXTRAS_SEEN_MAX};
use super::node::Node;
use super::object::Object;
use super::repair::Hand;
use super::slab::Slot;

/// Counters a row; a row has one for each key, and many keys have the same.
const WIDTH: usize = 1 << 15;

/// The multipliers that choose a key's counter in each row: odd, and unlike each other.
const ROWS: [u64; 4] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0xd6e8_feb8_6659_fd93, 0xa076_1d64_78bd_642f];

/// About how often each key was read of late, in 128 KiB: never less than it was but for [`Sketch::forget`].
#[derive(Debug)]
struct Sketch {
    counts: Box<[u8]>,
    halved: Millis,
}

impl Sketch {
    fn new(now: Millis) -> Self {
        Self { counts: vec![0; ROWS.len() * WIDTH].into_boxed_slice(), halved: now }
    }

    #[allow(clippy::cast_possible_truncation, reason = "fifteen bits are left")]
    fn places(hash: u64) -> [usize; ROWS.len()] {
        let mut row = 0;
        ROWS.map(|multiplier| {
            row += WIDTH;
            row - WIDTH + (hash.wrapping_mul(multiplier) >> 49) as usize
        })
    }

    fn least(&self, places: [usize; ROWS.len()]) -> u8 {
        places.map(|place| self.counts[place]).into_iter().min().unwrap_or(0)
    }

    /// One more read of a key; how many there were.
    fn count(&mut self, now: Millis, hash: u64) -> u8 {
        self.decay(now);
        let places = Self::places(hash);
        let more = self.least(places).saturating_add(1);
        for place in places {
            // Only the counters that others have not raised: they tell most.
            self.counts[place] = self.counts[place].max(more);
        }
        more
    }

    /// A key was asked for: it begins again.
    fn forget(&mut self, hash: u64) {
        let places = Self::places(hash);
        let known = self.least(places);
        for place in places {
            self.counts[place] -= known;
        }
    }

    fn decay(&mut self, now: Millis) {
        let halves = now.since(self.halved) / HOT_HALF_LIFE_MS;
        if halves > 0 {
            self.halved = self.halved.plus(halves * HOT_HALF_LIFE_MS);
            let shift = u32::try_from(halves).unwrap_or(u32::MAX);
            for count in &mut self.counts {
                *count = count.checked_shr(shift).unwrap_or(0);
            }
        }
    }
}

/// A replica that was extra when it came.
#[derive(Clone, Copy, Debug)]
struct Made {
    entry: Slot<Entry>,
    serial: u64,
    /// Its last use, when it was looked at.
    used: u64,
    seen: Millis,
}

/// Which keys are read from afar, and what was made of it.
#[derive(Debug)]
pub(super) struct Hot {
    sketch: Sketch,
    /// Keys, with their hashes, to be copied by each node: one may be gone, and its slot another's.
    asked: BTreeMap<NodeId, Vec<(Slot<Entry>, u64)>>,
    /// Extra replicas in the order in which they are looked at; one may be gone, or extra no longer.
    made: VecDeque<Made>,
}

impl Hot {
    pub(super) fn new(now: Millis) -> Self {
        Self { sketch: Sketch::new(now), asked: BTreeMap::new(), made: VecDeque::new() }
    }
}

/// Replicas beyond what was asked for, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extras {
    pub(super) replicas: u64,
    pub(super) bytes: u64,
}

impl Core {
    /// What a key has beyond what was asked for. Replicas on nodes that are gone count until they are forgotten.
    pub(super) fn extras_of(&self, entry: Slot<Entry>) -> Extras {
        let replicas = self.chain(entry).count().saturating_sub(self.index.get(entry).wanted()) as u64;
        let bytes = self.chain(entry).next().map_or(0, |first| self.objects[first].extent_bytes());
        Extras { replicas, bytes: replicas * bytes }
    }

    /// A replica came beside others: it is watched while it is extra.
    pub(super) fn watch_extra(&mut self, entry: Slot<Entry>, object: Slot<Object>) {
        if self.extras_of(entry).replicas > 0
            && let Some(hot) = &mut self.hot
        {
            let serial = self.objects[object].serial.get();
            hot.made.push_back(Made { entry, serial, used: 0, seen: self.now });
        }
    }

    /// There is no room for as many replicas as a key should have: it is to have those that are left, and no more than
    /// before.
    pub(super) fn want_what_is_left(&mut self, entry: Slot<Entry>) {
        let before = self.standing(entry);
        let left = self.lasting(entry).min(self.index.get(entry).wanted());
        self.index.get_mut(entry).want(left);
        self.change_standing(entry, before);
    }

    /// A client of a node located a key: if the node has no replica of it, that counts.
    pub(super) fn count_remote(&mut self, entry: Slot<Entry>, node: Slot<Node>) {
        if self.holds(node, entry) {
            return;
        }
        let hash = self.index.get(entry).hash();
        let Some(hot) = &mut self.hot else { return };
        if hot.sketch.count(self.now, hash) < HOT_READS {
            return;
        }
        hot.sketch.forget(hash);
        if !self.may_extend(entry, hash) {
            return;
        }
        let id = self.nodes[node].id;
        if let Some(hot) = &mut self.hot {
            let asked = hot.asked.entry(id).or_default();
            if asked.len() < HOT_ASKED_MAX && asked.iter().all(|(other, _)| *other != entry) {
                asked.push((entry, hash));
            }
        }
    }

    /// Whether a key may have one more replica than it should have. Pinned ones may not: what a pin holds does not go.
    fn may_extend(&self, entry: Slot<Entry>, hash: u64) -> bool {
        if !self.index.knows(entry) {
            return false;
        }
        let known = self.index.get(entry);
        let Some(first) = known.object.filter(|_| known.hash() == hash) else { return false };
        let bytes = self.extras.bytes + self.extras_coming + self.objects[first].extent_bytes();
        known.writers() == 0
            && !known.is_pinned()
            && !self.lacks(entry)
            && self.chain(entry).count() < REPLICAS_MAX
            && bytes <= self.settings.hot_replica_bytes
    }

    /// Whether a node is to make extra replicas.
    pub(super) fn extras_asked_of(&self, node: NodeId) -> bool {
        self.hot.as_ref().is_some_and(|hot| hot.asked.contains_key(&node))
    }

    /// A node is gone.
    pub(super) fn forget_asked(&mut self, node: NodeId) {
        if let Some(hot) = &mut self.hot {
            hot.asked.remove(&node);
        }
    }

    /// Hands out copies of hot keys to a node whose clients read them. What finds no room is counted anew.
    pub(super) fn hand_out_extras(&mut self, hand: &mut Hand) {
        let id = self.nodes[hand.node].id;
        let Some(asked) = self.hot.as_mut().and_then(|hot| hot.asked.remove(&id)) else { return };
        hand.extra = true;
        let mut rest = asked.into_iter();
        while hand.has_room()
            && let Some((entry, hash)) = rest.next()
        {
            if self.index.knows(entry) && self.bury_of(entry) && self.may_extend(entry, hash) {
                self.hand_out(hand, entry);
            }
        }
        hand.extra = false;
        let rest: Vec<_> = rest.collect();
        if let Some(hot) = self.hot.as_mut().filter(|_| !rest.is_empty()) {
            hot.asked.insert(id, rest);
        }
    }

    /// Extra replicas whose keys were not used for a while go.
    pub(super) fn retire_extras(&mut self) {
        for _ in 0..TICK_EXTRAS_SEEN_MAX {
            let Some(hot) = &mut self.hot else { return };
            let due = hot.made.front().copied().filter(|made| made.seen.plus(HOT_UNUSED_MS) <= self.now);
            let Some(Made { entry, serial, used, .. }) = due else { return };
            hot.made.pop_front();
            if !self.index.knows(entry) || !self.bury_of(entry) || self.extras_of(entry).replicas == 0 {
                continue;
            }
            let Some(slot) = self.chain(entry).find(|slot| self.objects[*slot].serial.get() == serial) else {
                continue;
            };
            let object = &self.objects[slot];
            let is_used = object.leases > 0 || object.used() != used || self.index.get(entry).is_pinned();
            if !is_used && self.is_lasting(slot) && self.lasting(entry) > self.index.get(entry).wanted() {
                self.remove_object(slot);
                continue;
            }
            let made = Made { entry, serial, used: object.used(), seen: self.now };
            if let Some(hot) = &mut self.hot {
                hot.made.push_back(made);
            }
        }
    }
}
