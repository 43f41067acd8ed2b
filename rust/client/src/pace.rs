//! How fast a thread copies here, as its transfers show: whether a call is long enough to wake another thread for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Calls shorter than this on one thread stay there. Waking a thread takes 30 to 50 us until it copies. Measured on 2
/// cores: calls of 80 us became 15 % slower with it (2 MiB, AMD), calls of 200 us 45 % faster (2 MiB, Intel).
const ALONE_MAX: Duration = Duration::from_micros(150);

/// Calls of fewer bytes stay there whatever was seen.
const SPLIT_BYTES_MIN: u64 = 1 << 20;

/// Tasks of fewer bytes say more about what is around the copy than about the copy.
const NOTED_BYTES_MIN: u64 = 128 << 10;

/// The nanoseconds that a MiB takes: before anything was seen, and at most. A thread that was interrupted looks slow.
const START_NS: u64 = 36_000;
const LIMIT_NS: u64 = 500_000;

const MIB: u64 = 1 << 20;

/// Nanoseconds that one thread takes for a MiB.
#[derive(Debug)]
pub(crate) struct Pace(AtomicU64);

impl Default for Pace {
    fn default() -> Self {
        Self(AtomicU64::new(START_NS))
    }
}

impl Pace {
    /// Takes in what a task of this many bytes took. Of two at the same time one may get lost.
    pub(crate) fn note(&self, bytes: u64, took: Duration) {
        if bytes < NOTED_BYTES_MIN {
            return;
        }
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let seen = (took.saturating_mul(MIB) / bytes).min(LIMIT_NS);
        let before = self.0.load(Ordering::Relaxed);
        self.0.store((7 * before + seen) / 8, Ordering::Relaxed);
    }

    /// Whether a call that copies this many bytes gains from another thread.
    pub(crate) fn splits(&self, bytes: u64) -> bool {
        let alone = bytes.saturating_mul(self.0.load(Ordering::Relaxed)) / MIB;
        bytes >= SPLIT_BYTES_MIN && u128::from(alone) >= ALONE_MAX.as_nanos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_split_where_copies_are_slow() {
        let pace = Pace::default();
        assert!(!pace.splits(4 * MIB) && pace.splits(5 * MIB), "before anything was seen");
        for _ in 0..50 {
            pace.note(2 * MIB, Duration::from_micros(200));
        }
        assert!(pace.splits(2 * MIB) && !pace.splits(MIB), "slow memory");
        for _ in 0..50 {
            pace.note(2 * MIB, Duration::from_micros(60));
        }
        assert!(!pace.splits(4 * MIB) && pace.splits(8 * MIB), "fast memory");
    }

    #[test]
    fn small_calls_stay_and_interruptions_fade() {
        let pace = Pace::default();
        pace.note(4096, Duration::from_secs(1));
        assert!(!pace.splits(4 * MIB), "a small task says nothing");
        pace.note(2 * MIB, Duration::from_secs(1));
        assert!(!pace.splits(SPLIT_BYTES_MIN - 1));
        for _ in 0..30 {
            pace.note(2 * MIB, Duration::from_micros(60));
        }
        assert!(!pace.splits(4 * MIB), "one interruption stays for ever");
    }
}
