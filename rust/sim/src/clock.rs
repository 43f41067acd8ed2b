//! The time of day: what lives of the book and of nodes are numbered by. It may be set back; all else is timed by clocks that
//! only go on.

use crate::rng::Rng;

/// The time of day at the start of a world.
const START: u64 = 1_000_000;

/// The same in a world where it may be set back by decades.
const START_SET_BACK: u64 = 1_790_000_000_000;

/// Longest time that it is set back by, other than by decades.
const BACK_MS: u64 = 3000;

/// A clock on the wall.
#[derive(Debug)]
pub struct WallClock {
    /// Its time when the world began.
    zero: u64,
    /// Numbers of its own: a world is the same in all else.
    rng: Option<Rng>,
    /// What lives of the book began with.
    epochs: Vec<u64>,
}

impl WallClock {
    /// The clock of a seed.
    pub fn new(seed: u64, set_back: bool) -> Self {
        let zero = if set_back { START_SET_BACK } else { START };
        Self { zero, rng: set_back.then(|| Rng::new(seed.rotate_left(16) ^ START)), epochs: Vec::new() }
    }

    fn read(&self, now: u64) -> u64 {
        self.zero + now
    }

    fn set(&mut self, now: u64, to: u64) {
        self.zero = to.saturating_sub(now);
    }

    /// The book starts; its epoch. Before that its machine may have lost the time.
    pub fn draw_epoch(&mut self, now: u64) -> u64 {
        let time = self.read(now);
        if let Some(rng) = &mut self.rng {
            let earlier = self.epochs.get(usize::try_from(rng.below(8)).unwrap_or(0)).copied();
            let to = match rng.below(8) {
                0 | 1 => time.saturating_sub(rng.between(1, BACK_MS)),
                // As when a machine begins at the same snapshot once more.
                2 => earlier.unwrap_or(time),
                3 => earlier.map_or(time, |epoch| epoch + rng.between(1, 3)),
                // A machine without a battery.
                4 => 1 + rng.below(100),
                5 => START_SET_BACK + now,
                _ => time,
            };
            self.set(now, to);
        }
        let epoch = self.read(now).max(1);
        self.epochs.push(epoch);
        epoch
    }

    /// Which of so many nodes the book meets before all others, and for how long, if it was started with a clock set back.
    pub fn draw_newcomer(&mut self, nodes: usize) -> Option<(usize, u64)> {
        let latest = self.epochs.iter().max() > self.epochs.last();
        let rng = self.rng.as_mut().filter(|_| latest && nodes > 1)?;
        let first = usize::try_from(rng.below(nodes as u64)).unwrap_or(0);
        (rng.below(2) == 0).then(|| (first, rng.between(20, 300)))
    }

    /// A node starts, on a machine with a clock of its own: the number of its life, if `latest` was that of the one before.
    pub fn draw_incarnation(&mut self, now: u64, latest: u64, by_clock: bool) -> u64 {
        let time = self.read(now);
        let Some(rng) = &mut self.rng else { return latest + 1 };
        let own = time.saturating_sub(rng.below(BACK_MS));
        if by_clock { own } else { own.max(latest + 1) }
    }
}
