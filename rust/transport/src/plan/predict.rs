//! How long steps take: the schedule of the executors, played against the costs.
//!
//! A device copies beside the calling thread, one batch after the other on each leg; a staging slot is filled again
//! when both legs are done with it. Links and checksums keep the calling thread busy. What an executor does must be
//! what is played here: the twin device checks that in virtual time.

use std::collections::HashMap;

use super::cost::{CORRECTION_UNIT, CostModel, Leg};
use super::input::LocalView;
use super::{Path, Step, Way};

/// Nanoseconds from the first submission to the last byte, corrected by experience. `summed`: the processor makes
/// a checksum of every payload.
pub fn predict(way: Way, path: Path, steps: &[Step], local: &LocalView, costs: &CostModel, summed: bool) -> u64 {
    let mut clock = Clock { costs, local, summed, now: 0, free: HashMap::new(), end: 0 };
    let is_direct = path == Path::Direct || (local.cpu_touches && path == Path::Host);
    match (local.cpu_touches, is_direct) {
        (true, true) => clock.link_only(way, steps),
        (true, false) => clock.over_link(way, steps, Leg::DeviceLocal),
        (false, true) => clock.direct(way, steps),
        (false, false) if path == Path::Host => {
            let leg = if way == Way::Get { Leg::HostToDevice } else { Leg::DeviceToHost };
            clock.over_link(way, steps, leg);
        }
        (false, false) if path == Path::Relay && way == Way::Get => clock.relayed_get(steps),
        (false, false) if path == Path::Relay => clock.relayed_put(steps),
        (false, false) => clock.staged(way, steps),
    }
    let total = clock.now.max(clock.end);
    let corrected = u128::from(total) * u128::from(costs.correction(path)) / u128::from(CORRECTION_UNIT);
    u64::try_from(corrected).unwrap_or(u64::MAX)
}

struct Clock<'a> {
    costs: &'a CostModel,
    local: &'a LocalView,
    summed: bool,
    /// The calling thread's time.
    now: u64,
    /// When each engine is free.
    free: HashMap<Leg, u64>,
    /// When the last copy beside the calling thread ends.
    end: u64,
}

impl Clock<'_> {
    fn cost(&self, leg: Leg, pieces: usize, bytes: u64) -> u64 {
        // Links take any number of operations a call.
        let batch_max = match leg {
            Leg::NetworkRead | Leg::NetworkWrite | Leg::Checksum | Leg::Relay => usize::MAX,
            _ => self.local.batch_copies_max.max(1),
        };
        self.costs.leg(leg).time_ns(pieces.div_ceil(batch_max) as u64, pieces as u64, bytes)
    }

    /// Submits copies that may start at `ready`; when they end.
    fn submit(&mut self, leg: Leg, pieces: usize, bytes: u64, ready: u64) -> u64 {
        let free = self.free.get(&leg).copied().unwrap_or(0);
        let end = ready.max(free).max(self.now).saturating_add(self.cost(leg, pieces, bytes));
        self.free.insert(leg, end);
        self.end = self.end.max(end);
        if !self.local.runs_beside {
            self.now = self.now.max(end);
        }
        end
    }

    fn sum(&mut self, bytes: u64) {
        if self.summed {
            self.now = self.now.saturating_add(self.cost(Leg::Checksum, 1, bytes));
        }
    }

    fn link(&mut self, way: Way, pieces: usize, bytes: u64) {
        let leg = if way == Way::Get { Leg::NetworkRead } else { Leg::NetworkWrite };
        self.now = self.now.saturating_add(self.cost(leg, pieces, bytes));
        self.sum(bytes);
    }

    /// The link reads or writes the pieces by itself.
    fn link_only(&mut self, way: Way, steps: &[Step]) {
        for step in steps {
            self.link(way, step.copies.len().max(step.parts.len()), step.bytes());
        }
    }

    /// The link fills staging, copies empty it; or the other way round.
    fn over_link(&mut self, way: Way, steps: &[Step], leg: Leg) {
        let slots = slot_count(steps);
        let mut free = vec![0; slots];
        if way == Way::Get {
            for (at, step) in steps.iter().enumerate() {
                self.now = self.now.max(free[at % slots]);
                self.link(way, step.parts.len(), step.bytes());
                free[at % slots] = self.submit(leg, step.copies.len(), step.bytes(), 0);
            }
            return;
        }
        let gather = |clock: &mut Self, step: &Step| clock.submit(leg, step.copies.len(), step.bytes(), 0);
        for at in 0..slots.min(steps.len()) {
            free[at] = gather(self, &steps[at]);
        }
        for (at, step) in steps.iter().enumerate() {
            self.now = self.now.max(free[at % slots]);
            self.link(way, step.parts.len(), step.bytes());
            if let Some(next) = steps.get(at + slots) {
                free[at % slots] = gather(self, next);
            }
        }
    }

    /// The copy engine moves each piece.
    fn direct(&mut self, way: Way, steps: &[Step]) {
        let leg = if way == Way::Get { Leg::PeerToDevice } else { Leg::DeviceToPeer };
        let ends: Vec<u64> = steps.iter().map(|step| self.submit(leg, step.copies.len(), step.bytes(), 0)).collect();
        self.sum_all(way, steps, &ends);
    }

    /// The copy engine moves contiguous runs on one leg and local pieces on another.
    fn staged(&mut self, way: Way, steps: &[Step]) {
        let slots = slot_count(steps);
        let mut free = vec![0; slots];
        let mut ends = Vec::with_capacity(steps.len());
        for (at, step) in steps.iter().enumerate() {
            let (bytes, parts, pieces) = (step.bytes(), step.parts.len(), step.copies.len());
            let ready = free[at % slots];
            let end = if way == Way::Get {
                let arrived = self.submit(Leg::PeerToDevice, parts, bytes, ready);
                self.submit(Leg::DeviceLocal, pieces, bytes, arrived)
            } else {
                let gathered = self.submit(Leg::DeviceLocal, pieces, bytes, ready);
                self.submit(Leg::DeviceToPeer, parts, bytes, gathered)
            };
            free[at % slots] = end;
            ends.push(end);
        }
        self.sum_all(way, steps, &ends);
    }

    /// The owner does what a request sent at `sent` asks for, one after the other; when its answer is here. It sums a
    /// get beside its copy, a put after it.
    fn relay(&mut self, way: Way, step: &Step, sent: u64) -> u64 {
        let (parts, bytes) = (step.parts.len(), step.bytes());
        let copying = self.cost(Leg::Relay, parts, bytes);
        let summing = if self.summed { self.cost(Leg::Checksum, 1, bytes) } else { 0 };
        let cost = if way == Way::Get { copying.max(summing) } else { copying.saturating_add(summing) };
        let free = self.free.get(&Leg::Relay).copied().unwrap_or(0);
        let end = sent.max(free).saturating_add(cost);
        self.free.insert(Leg::Relay, end);
        end
    }

    /// The owner fills its slots, the link copies them here, local pieces follow. A slot there is asked for again when
    /// the link has emptied it.
    fn relayed_get(&mut self, steps: &[Step]) {
        let slots = slot_count(steps);
        let (mut free, mut sent) = (vec![0; slots], vec![0; steps.len()]);
        for (at, step) in steps.iter().enumerate() {
            let staged = self.relay(Way::Get, step, sent[at]);
            self.now = self.now.max(staged);
            let linked = self.submit(Leg::LinkToDevice, step.parts.len(), step.bytes(), free[at % slots]);
            free[at % slots] = self.submit(Leg::DeviceLocal, step.copies.len(), step.bytes(), linked);
            if let Some(next) = sent.get_mut(at + slots) {
                self.now = self.now.max(linked);
                *next = self.now;
            }
        }
    }

    /// Pieces are gathered here, the link copies them to the owner's slots, the owner empties those.
    fn relayed_put(&mut self, steps: &[Step]) {
        let slots = slot_count(steps);
        let mut gathered: Vec<u64> = Vec::with_capacity(steps.len());
        let mut stored: Vec<u64> = Vec::with_capacity(steps.len());
        let mut linked = vec![0; slots];
        for (slot, step) in steps.iter().take(slots).enumerate() {
            gathered.push(self.submit(Leg::DeviceLocal, step.copies.len(), step.bytes(), 0));
            linked[slot] = self.submit(Leg::DeviceToLink, step.parts.len(), step.bytes(), gathered[slot]);
        }
        for (at, step) in steps.iter().enumerate() {
            if at >= slots {
                self.now = self.now.max(stored[at - slots]);
                linked[at % slots] = self.submit(Leg::DeviceToLink, step.parts.len(), step.bytes(), gathered[at]);
            }
            self.now = self.now.max(linked[at % slots]);
            let end = self.relay(Way::Put, step, self.now);
            stored.push(end);
            if let Some(next) = steps.get(at + slots) {
                gathered.push(self.submit(Leg::DeviceLocal, next.copies.len(), next.bytes(), 0));
            }
        }
        self.now = self.now.max(stored.into_iter().max().unwrap_or(0));
    }

    /// A get is summed beside its copies, a put object by object once its bytes are there.
    fn sum_all(&mut self, way: Way, steps: &[Step], ends: &[u64]) {
        if !self.summed {
            return;
        }
        for (step, end) in steps.iter().zip(ends) {
            if way == Way::Put {
                self.now = self.now.max(*end);
            }
            self.sum(step.bytes());
        }
    }
}

fn slot_count(steps: &[Step]) -> usize {
    steps.iter().filter_map(|step| step.slot).max().map_or(1, |slot| slot + 1)
}
