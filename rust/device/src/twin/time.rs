//! When copies start and end: computed as they are submitted.

use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::address::Direction;

/// How late a sleeping thread may wake up; the rest is spun.
const WAKE_UP: Duration = Duration::from_micros(120);

/// What a twin's costs are paid in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TwinTime {
    /// Real time: whoever waits for an event waits until it is due.
    #[default]
    Real,
    /// A number: waiting sets the calling thread's time to when the event is due.
    Virtual,
}

#[derive(Debug)]
pub(super) struct Timeline {
    time: TwinTime,
    started: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The calling thread's time, in virtual time.
    now: u64,
    /// When the engine of each direction is free.
    free: [u64; Direction::ALL.len()],
    /// Batches and copies by direction.
    submitted: [(u64, u64); Direction::ALL.len()],
}

impl Timeline {
    pub(super) fn new(time: TwinTime) -> Self {
        Self { time, started: Instant::now(), state: Mutex::default() }
    }

    pub(super) fn now_ns(&self) -> u64 {
        match self.time {
            TwinTime::Real => nanos(self.started.elapsed()),
            TwinTime::Virtual => self.state.lock().now,
        }
    }

    /// In virtual time: what happens from here on happens after `ns`.
    pub(super) fn hear(&self, ns: u64) {
        if self.time == TwinTime::Virtual {
            let mut state = self.state.lock();
            state.now = state.now.max(ns);
        }
    }

    pub(super) fn is_virtual(&self) -> bool {
        self.time == TwinTime::Virtual
    }

    pub(super) fn submitted(&self, direction: Direction) -> (u64, u64) {
        self.state.lock().submitted[direction as usize]
    }

    /// Books `cost_ns` of the engine of a direction, not before `ready`; when it ends.
    pub(super) fn book(&self, direction: Direction, copies: usize, ready: u64, cost_ns: u64) -> u64 {
        let real = nanos(self.started.elapsed());
        let mut state = self.state.lock();
        let now = if self.time == TwinTime::Real { real } else { state.now };
        let end = now.max(ready).max(state.free[direction as usize]).saturating_add(cost_ns);
        state.free[direction as usize] = end;
        let (batches, all) = &mut state.submitted[direction as usize];
        (*batches, *all) = (*batches + 1, *all + copies as u64);
        end
    }

    /// What was booked for the future is called off.
    pub(super) fn call_off(&self) {
        let now = self.now_ns();
        for free in &mut self.state.lock().free {
            *free = (*free).min(now);
        }
    }

    /// Whether this time has come.
    pub(super) fn is_due(&self, at: u64) -> bool {
        self.time == TwinTime::Virtual || self.now_ns() >= at
    }

    /// Waits until this time; false if the deadline comes first.
    pub(super) fn wait_until(&self, at: u64, deadline: Instant) -> bool {
        if self.time == TwinTime::Virtual {
            let mut state = self.state.lock();
            state.now = state.now.max(at);
            return true;
        }
        let due = self.started + Duration::from_nanos(at);
        let until = due.min(deadline);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return due <= deadline;
            }
            match left.checked_sub(WAKE_UP) {
                Some(long) => thread::sleep(long),
                None => std::hint::spin_loop(),
            }
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
