//! A sample of the keys, watched whether they are stored or evicted, and caches that are played with it.
//!
//! Keys are sampled by their hash alone, so the blocks of every chain are sampled alike, and a cache of one part of the
//! keys with the same part of the memory has about the hit rate of the whole one. Blocks of a chain leave from its tail,
//! so a block that is there nearly always has all before it there, and counting blocks counts prefixes.

use std::collections::VecDeque;

use hashbrown::HashTable;

use super::hazard::{BUCKETS, Hazards, class_of};
use super::shelves::{Shelved, Shelves};
use super::{Mark, Use};
use crate::core::Millis;
use crate::core::list::{Links, List, linked};
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
/// A policy takes over when it is ahead by this part of all uses.
const LEAD: f64 = 0.002;

/// A key of the sample.
#[derive(Debug)]
struct Watched {
    hash: u64,
    at: Millis,
    /// Number of its last use.
    number: u64,
    uses: Mark,
    in_lru: Option<Slot<Played>>,
    in_valued: Option<Slot<Played>>,
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

impl Shelved for Played {
    fn used(&self) -> u64 {
        self.used
    }

    fn mark(&self) -> Mark {
        self.mark
    }

    fn set_mark(&mut self, mark: Mark) {
        self.mark = mark;
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
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
    lru: List<Played>,
    lru_bytes: u64,
    valued: Shelves<Played>,
    valued_bytes: u64,
    hazards: Hazards,
    /// Version of the values.
    version: u64,
    score: Score,
}

/// Bytes of uses that played caches served, the newer the more.
#[derive(Debug, Default)]
struct Score {
    all: f64,
    lru: f64,
    valued: f64,
    /// Whether the order of use is to be followed.
    follow_lru: bool,
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
            lru: List::new(),
            lru_bytes: 0,
            valued: Shelves::new(class_of, true),
            valued_bytes: 0,
            hazards: Hazards::new(),
            version: 0,
            score: Score { follow_lru: true, ..Score::default() },
        }
    }

    pub(super) const fn lent(&mut self, bytes: u64) {
        self.lent = bytes;
    }

    /// What the values were when they last changed, and whether to follow the order of use instead.
    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    pub(super) const fn follows_lru(&self) -> bool {
        self.score.follow_lru
    }

    pub(super) fn value(&self, class: usize, age_ms: u64) -> f64 {
        self.hazards.value(class, age_ms)
    }

    const fn samples(&self, hash: u64) -> bool {
        self.shift == 0 || spread(hash) >> (64 - self.shift) == 0
    }

    /// Watches a use, if the key is in the sample. `uses`: this one included.
    #[allow(clippy::cast_precision_loss, reason = "weights need no last digit")]
    pub(super) fn watch(&mut self, usage: Use, uses: Mark) {
        if !self.samples(usage.hash) {
            return;
        }
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
        let new = Watched { hash, at: Millis::new(0), number: 0, uses: 0, in_lru: None, in_valued: None };
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
        if watched.in_lru.is_some() {
            self.score.lru += usage.bytes as f64;
        }
        if watched.in_valued.is_some() {
            self.score.valued += usage.bytes as f64;
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

    /// Plays the use in both caches.
    fn play(&mut self, key: Slot<Watched>, usage: Use) {
        self.leave(key);
        let watched = &self.keys[key];
        let new = |watched: &Watched| Played {
            links: Links::new(),
            key,
            used: watched.number,
            mark: watched.uses,
            bytes: usage.bytes,
        };
        let (in_lru, in_valued) = (self.played.insert(new(watched)), self.played.insert(new(watched)));
        self.lru.push(&mut self.played, in_lru);
        self.valued.push(&mut self.played, in_valued, usage.now);
        let watched = &mut self.keys[key];
        (watched.in_lru, watched.in_valued) = (Some(in_lru), Some(in_valued));
        self.lru_bytes += usage.bytes;
        self.valued_bytes += usage.bytes;
        let room = self.lent >> self.shift;
        while self.lru_bytes > room
            && let Some(slot) = self.lru.oldest()
        {
            self.leave_lru(self.played[slot].key);
        }
        while self.valued_bytes > room {
            let hazards = &self.hazards;
            let least =
                self.valued.least(&self.played, usage.now, self.version, |class, age| hazards.value(class, age));
            let Some((_, slot)) = least else { break };
            self.leave_valued(self.played[slot].key);
        }
    }

    fn leave(&mut self, key: Slot<Watched>) {
        self.leave_lru(key);
        self.leave_valued(key);
    }

    fn leave_lru(&mut self, key: Slot<Watched>) {
        if let Some(slot) = self.keys[key].in_lru.take() {
            self.lru.unlink(&mut self.played, slot);
            self.lru_bytes -= self.played.remove(slot).bytes;
        }
    }

    fn leave_valued(&mut self, key: Slot<Watched>) {
        if let Some(slot) = self.keys[key].in_valued.take() {
            self.valued.unlink(&mut self.played, slot);
            self.valued_bytes -= self.played.remove(slot).bytes;
        }
    }

    /// Keeps the sample within its bounds.
    fn forget(&mut self) {
        if self.played.len() > 2 * PLAYED_MAX {
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
        self.leave(key);
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
        let lead = LEAD * self.all;
        if self.lru > self.valued + lead {
            self.follow_lru = true;
        } else if self.valued > self.lru + lead {
            self.follow_lru = false;
        }
    }

    fn fade(&mut self, part: f64) {
        self.all *= part;
        self.lru *= part;
        self.valued *= part;
    }
}
