//! Lives of the service, and the ids of each.
//!
//! A life counts its ids on from its epoch, which is the wall clock at its start: the one place where a time of day
//! decides anything here. If that clock was set back meanwhile (a step of NTP, a machine without a battery, a virtual one
//! put back to a snapshot), the ids of this life would be lower than those of an earlier one, or the same. So:
//!
//! - Whatever shows that there was a life with such ids moves us past all of them: the epoch that a node's memory was lent
//!   under, a floor in it, the generation of an object that it holds. Clients see a new epoch and start over.
//! - What we issued before we saw it stays ours. Greater numbers of earlier lives are older all the same: they do not
//!   replace what this life has put, and do not bring back what it removed.
//!
//! Two lives that start in the very same millisecond are told apart by the nodes of the first alone. A life whose clock
//! was set back, and which meets no node of an earlier one, cannot know of it; nor can the next, where it meets the nodes
//! of both: what was put with the greater numbers counts as later then.

use std::ops::Range;

use memcache_types::Epoch;

use super::refusal::Refusal;
use super::{Core, EPOCH_SHIFT};

/// How far a wall clock may plausibly be set back between two lives of the service: about two years.
const CLOCK_SET_BACK_MS_MAX: u64 = 1 << 36;

/// Until the year 2039 a clock may be set back to any time, be it 1970: it is not set yet on a machine without a battery.
const ANY_CLOCK_MS: u64 = 1 << 41;

/// How far past the epoch of an earlier life we go if the clock was set back: room for 2^46 ids of that life, which are a
/// million a second for two years.
const OUTLIVED_MS: u64 = 1 << 24;

/// Past this there would be too few ids: about the year 2109.
const EPOCH_MAX: u64 = (1 << (u64::BITS - EPOCH_SHIFT)) - 2 * OUTLIVED_MS;

/// Most rows of own ids that are remembered; the ids of the first are forgotten first.
const ROWS_MAX: usize = 64;

/// Which ids this life issued: an earlier one may have issued greater ones.
#[derive(Debug)]
pub(super) struct OwnIds {
    /// Rows that we left behind.
    rows: Vec<Range<u64>>,
    /// The present row begins after this.
    after: u64,
}

impl OwnIds {
    pub(super) const fn new(after: u64) -> Self {
        Self { rows: Vec::new(), after }
    }

    /// Goes on after `next`; `last` was the last id so far.
    fn skip(&mut self, last: u64, next: u64) {
        if last > self.after {
            if self.rows.len() == ROWS_MAX {
                self.rows.remove(0);
            }
            self.rows.push(self.after + 1..last + 1);
        }
        self.after = next;
    }

    fn have(&self, id: u64) -> bool {
        id > self.after || self.rows.iter().any(|row| row.contains(&id))
    }
}

impl Core {
    /// A node's memory was lent under `previous`. `known`: the node has joined in this life. If it has not, and tells our
    /// own epoch, another life had it.
    pub(super) fn outlive(&mut self, previous: Epoch, known: bool) -> Result<(), Refusal> {
        if previous < self.epoch || previous == self.epoch && known {
            return Ok(());
        }
        self.go_past("previous_epoch", previous.get(), previous)
    }

    /// Some life issued this id. If it cannot have been ours, we go past the ids of that life.
    pub(super) fn outlive_id(&mut self, what: &'static str, id: u64) -> Result<(), Refusal> {
        if id <= self.serial {
            return Ok(());
        }
        self.go_past(what, id, Epoch::new(id >> EPOCH_SHIFT))
    }

    fn go_past(&mut self, what: &'static str, value: u64, previous: Epoch) -> Result<(), Refusal> {
        let latest = (self.epoch.get() + CLOCK_SET_BACK_MS_MAX).clamp(ANY_CLOCK_MS, EPOCH_MAX);
        if previous.get() > latest {
            return Err(Refusal::Value { what, value, want: "of a time at most two years past the present epoch" });
        }
        self.epoch = Epoch::new(previous.max(self.epoch).get() + OUTLIVED_MS);
        let next = self.serial.max(self.epoch.get() << EPOCH_SHIFT);
        self.own.skip(self.serial, next);
        self.serial = next;
        Ok(())
    }

    /// Whether this life issued an id, which is not greater than the last one.
    pub(super) fn is_own(&self, id: u64) -> bool {
        self.own.have(id)
    }

    /// Whether the put of this generation came after the other one.
    pub(super) fn is_later(&self, generation: u64, than: u64) -> bool {
        (self.is_own(generation), generation) > (self.is_own(than), than)
    }
}
