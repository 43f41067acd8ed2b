//! A sample of the keys, watched whether they are stored or evicted, and caches that are played with it.
//!
//! Keys are sampled by their hash alone, so the blocks of every chain are sampled alike, and a cache of one part of the
//! keys with the same part of the memory has about the hit rate of the whole one. Blocks of a chain leave from its tail,
//! so a block that is there nearly always has all before it there, and counting blocks counts prefixes.

use std::collections::VecDeque;

use hashbrown::HashTable;

use super::hazard::{BUCKETS, Hazards, class_of};
use super::order::{ORDERS, Order};
use super::shelves::{Shelves, shelved};
use super::{Mark, Use};
use crate::core::Millis;
use crate::core::list::{Links, linked};
use crate::core::slab::{Slab, Slot};

/// Most keys watched.
const WATCHED_MAX: usize = 1 << 16;
/// Most keys in one played cache. Many more are watched, so that returns are seen that a larger cache would serve.
const PLAYED_MAX: usize = WATCHED_MAX / 8;
/// Most entries of the log of uses.
const LOG_MAX: usize = 4 * WATCHED_MAX;
/// Values are computed anew after so many uses.
const SOLVE_USES: u64 = 512;
/// After so many uses, a use counts little more than a third in the comparison of the played caches.
const MEMORY_USES: f64 = 16_384.0;

/// A key of the sample.
#[derive(Debug)]
struct Watched {
    hash: u64,
    at: Millis,
    /// Number of its last use.
    number: u64,
    uses: Mark,
    /// Where it stands in each played cache.
    places: [Option<Slot<Played>>; ORDERS],
}

/// An object of a played cache.
#[derive(Debug)]
struct Played {
    links: Links<Played>,
    key: Slot<Watched>,
    used: u64,
    mark: Mark,
    bytes: u64,
}

linked!(Played);
shelved!(Played);

/// A cache that is played with the sample.
#[derive(Debug)]
struct Cache {
    shelves: Shelves<Played>,
    bytes: u64,
}

/// A use as it was logged. Void when its key has been used again.
#[derive(Clone, Copy, Debug)]
struct Logged {
    key: Slot<Watched>,
    number: u64,
}

/// The sample, and what is learnt from it.
#[derive(Debug)]
pub(super) struct Tracker {
    /// One key in `2^shift` is sampled.
    shift: u32,
    keys: Slab<Watched>,
    by_hash: HashTable<Slot<Watched>>,
    log: VecDeque<Logged>,
    /// Number of entries that have left the log.
    forgotten: u64,
    /// For each bucket, how many entries of the log have reached its age, forgotten ones included.
    reached: [u64; BUCKETS],
    uses: u64,
    lent: u64,
    played: Slab<Played>,
    /// One for each order.
    caches: [Cache; ORDERS],
    hazards: Hazards,
    /// Version of the values.
    version: u64,
    score: Score,
}

/// Bytes of uses that played caches served, the newer the more.
#[derive(Debug)]
struct Score {
    all: f64,
    /// Of each order.
    served: [f64; ORDERS],
    follow: Order,
}

/// Bits that the index of the book does not use as they are.
const fn spread(hash: u64) -> u64 {
    hash.wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Tracker {
    pub(super) fn new() -> Self {
        Self {
            shift: 0,
            keys: Slab::new(),
            by_hash: HashTable::new(),
            log: VecDeque::new(),
            forgotten: 0,
            reached: [0; BUCKETS],
            uses: 0,
            lent: 0,
            played: Slab::new(),
            caches: Order::ALL.map(|order| Cache { shelves: order.shelves(), bytes: 0 }),
            hazards: Hazards::new(),
            version: 0,
            score: Score { all: 0.0, served: [0.0; ORDERS], follow: Order::Use },
        }
    }

    pub(super) const fn lent(&mut self, bytes: u64) {
        self.lent = bytes;
    }

    /// Changes when the values do.
    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    /// The order to follow.
    pub(super) const fn follows(&self) -> Order {
        self.score.follow
    }

    pub(super) fn value(&self, class: usize, age_ms: u64) -> f64 {
        self.hazards.value(class, age_ms)
    }

    const fn samples(&self, hash: u64) -> bool {
        self.shift == 0 || spread(hash) >> (64 - self.shift) == 0
    }

    /// Watches a use, if the key is in the sample. `uses`: this one included.
    #[inline]
    pub(super) fn watch(&mut self, usage: Use, uses: Mark) {
        if self.samples(usage.hash) {
            self.watch_sampled(usage, uses);
        }
    }

    /// Apart, as most uses in a large pool are not sampled.
    #[inline(never)]
    #[allow(clippy::cast_precision_loss, reason = "weights need no last digit")]
    fn watch_sampled(&mut self, usage: Use, uses: Mark) {
        self.let_pass(usage.now);
        self.uses += 1;
        let number = self.uses;
        self.score.all += usage.bytes as f64;
        let found = self.by_hash.find(usage.hash, |key| self.keys[*key].hash == usage.hash).copied();
        let key = match found {
            Some(key) => {
                self.returned(key, usage);
                key
            }
            None => self.add(usage.hash),
        };
        let watched = &mut self.keys[key];
        (watched.at, watched.number, watched.uses) = (usage.now, number, uses);
        self.hazards.enter(class_of(uses), 0);
        self.log.push_back(Logged { key, number });
        self.play(key, usage);
        self.forget();
        if number.is_multiple_of(SOLVE_USES) {
            self.learn();
        }
    }

    fn add(&mut self, hash: u64) -> Slot<Watched> {
        let new = Watched { hash, at: Millis::new(0), number: 0, uses: 0, places: [None; ORDERS] };
        let key = self.keys.insert(new);
        let keys = &self.keys;
        self.by_hash.insert_unique(hash, key, |other| keys[*other].hash);
        key
    }

    /// A watched key is used again.
    #[allow(clippy::cast_precision_loss, reason = "weights need no last digit")]
    fn returned(&mut self, key: Slot<Watched>, usage: Use) {
        let watched = &self.keys[key];
        self.hazards.use_in(class_of(watched.uses), self.hazards.bucket_of(usage.now.since(watched.at)));
        for (served, place) in self.score.served.iter_mut().zip(watched.places) {
            *served += if place.is_some() { usage.bytes as f64 } else { 0.0 };
        }
    }

    /// Logged uses reach the ages at which buckets begin.
    fn let_pass(&mut self, now: Millis) {
        for bucket in 1..BUCKETS {
            let edge = self.hazards.edge(bucket);
            let mut reached = self.reached[bucket].max(self.forgotten);
            while let Some(logged) = usize::try_from(reached - self.forgotten).ok().and_then(|at| self.log.get(at)) {
                if let Some(key) = self.keys.get(logged.key).filter(|key| key.number == logged.number) {
                    if now.since(key.at) < edge {
                        break;
                    }
                    self.hazards.enter(class_of(key.uses), bucket);
                }
                reached += 1;
            }
            self.reached[bucket] = reached;
            if reached == self.forgotten {
                break; // Nothing is as old as the next bucket.
            }
        }
    }

    /// Plays the use in all caches.
    fn play(&mut self, key: Slot<Watched>, usage: Use) {
        let room = self.lent >> self.shift;
        for order in Order::ALL {
            let watched = &mut self.keys[key];
            let (used, mark, bytes) = (watched.number, watched.uses, usage.bytes);
            let cache = &mut self.caches[order as usize];
            let place = &mut watched.places[order as usize];
            let slot = if let Some(slot) = *place {
                cache.shelves.unlink(&mut self.played, slot);
                let there = &mut self.played[slot];
                cache.bytes -= there.bytes;
                (there.used, there.mark, there.bytes) = (used, mark, bytes);
                slot
            } else {
                *place.insert(self.played.insert(Played { links: Links::new(), key, used, mark, bytes }))
            };
            cache.bytes += bytes;
            cache.shelves.push(&mut self.played, slot, usage.now);
            while self.caches[order as usize].bytes > room {
                let (hazards, shelves) = (&self.hazards, &mut self.caches[order as usize].shelves);
                let value = |class, age| hazards.value(class, age);
                let Some((_, slot)) = order.victim(shelves, &self.played, usage.now, self.version, value) else {
                    break;
                };
                self.leave(self.played[slot].key, order);
            }
        }
    }

    /// Takes a key out of one of the played caches.
    fn leave(&mut self, key: Slot<Watched>, order: Order) {
        if let Some(slot) = self.keys[key].places[order as usize].take() {
            let cache = &mut self.caches[order as usize];
            cache.shelves.unlink(&mut self.played, slot);
            cache.bytes -= self.played.remove(slot).bytes;
        }
    }

    /// Keeps the sample within its bounds.
    fn forget(&mut self) {
        if self.played.len() > ORDERS * PLAYED_MAX {
            self.thin_out();
        }
        while self.log.len() > LOG_MAX || self.keys.len() > WATCHED_MAX || self.front_is_void() {
            let Some(front) = self.log.pop_front() else { break };
            self.forgotten += 1;
            if self.keys.get(front.key).is_some_and(|key| key.number == front.number) {
                self.remove(front.key);
            }
        }
    }

    fn front_is_void(&self) -> bool {
        self.log.front().is_some_and(|front| self.keys.get(front.key).is_none_or(|key| key.number != front.number))
    }

    fn remove(&mut self, key: Slot<Watched>) {
        for order in Order::ALL {
            self.leave(key, order);
        }
        let hash = self.keys.remove(key).hash;
        if let Ok(found) = self.by_hash.find_entry(hash, |other| *other == key) {
            found.remove();
        }
    }

    /// Samples half as many keys from now on.
    fn thin_out(&mut self) {
        self.shift += 1;
        let out: Vec<_> = self.keys.iter().filter(|(_, key)| !self.samples(key.hash)).map(|(slot, _)| slot).collect();
        for key in out {
            self.remove(key);
        }
        self.hazards.fade(0.5);
        self.score.fade(0.5);
    }

    fn learn(&mut self) {
        self.hazards.solve(1.0 / f64::from(1u32 << self.shift.min(31)));
        self.version += 1;
        self.score.judge();
        #[allow(clippy::cast_precision_loss, reason = "small numbers")]
        self.score.fade(1.0 - SOLVE_USES as f64 / MEMORY_USES);
    }
}

impl Score {
    fn judge(&mut self) {
        let served = |order: Order| self.served[order as usize];
        let ahead = |order: &Order| served(*order) > served(self.follow) + order.lead() * self.all;
        let best = Order::ALL.into_iter().filter(ahead).max_by(|one, other| served(*one).total_cmp(&served(*other)));
        self.follow = best.unwrap_or(self.follow);
    }

    fn fade(&mut self, part: f64) {
        self.all *= part;
        for served in &mut self.served {
            *served *= part;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(served: [f64; ORDERS], follow: Order) -> Order {
        let mut score = Score { all: 1000.0, served, follow };
        score.judge();
        score.follow
    }

    #[test]
    fn the_order_that_is_ahead_by_its_lead_is_followed() {
        use Order::{OnceFirst, Use, Value};
        assert_eq!(score([500.0, 502.5, 500.0], Use), Value);
        assert_eq!(score([500.0, 501.5, 500.0], Use), Use, "not far enough");
        assert_eq!(score([500.0, 500.0, 503.0], Use), Use, "not far enough for it");
        assert_eq!(score([500.0, 500.0, 505.0], Value), OnceFirst);
        assert_eq!(score([500.0, 506.0, 505.0], Use), Value, "the best of two that are");
        assert_eq!(score([503.0, 500.0, 500.0], OnceFirst), Use);
    }
}
