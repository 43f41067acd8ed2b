//! Looking again and again for a moment before sleeping.

use std::thread::available_parallelism;
use std::time::Duration;

/// Shortest and longest look before sleeping. To wake a sleeping processor takes 20 us, on virtual machines 40 to 60, and
/// where both ends slept, twice that.
const LOOK_MIN: Duration = Duration::from_micros(50);
const LOOK_MAX: Duration = Duration::from_micros(120);

/// What comes sooner than this after one has gone to sleep was waiting for the processor: a longer look would not have
/// helped, it would have been in the way.
const SWITCH: Duration = Duration::from_micros(25);

/// Most waits in a row that sleep at once because looking did not help, and fewest.
const SKIP_MAX: u32 = 1024;
const SKIP_MIN: u32 = 4;

/// Whether it is worth while to look for what one waits for instead of sleeping at once: as long as it nearly always
/// comes in time, for a look in vain costs more than one that helps saves. After a look in vain the next 4 waits sleep at
/// once, then 8, and so on up to 1024; about 5 looks that helped make up for one in vain. So somebody who waits long, or
/// shares a processor with those who answer, looks once in a thousand times.
///
/// How long a look is follows what came after looks in vain: long if it came within the longest look, short again if not.
#[derive(Debug)]
pub struct Eagerness {
    skip: u32,
    penalty: u32,
    never: bool,
    long: bool,
}

impl Eagerness {
    /// Looks at first; never where there is only one processor.
    pub fn new() -> Self {
        let never = available_parallelism().map_or(1, usize::from) < 2;
        Self { skip: 0, penalty: 0, never, long: false }
    }

    /// How long to look before this wait sleeps; `None`: not at all. Say afterwards whether it helped.
    pub fn looks(&mut self) -> Option<Duration> {
        if self.never || self.skip > 0 {
            self.skip = self.skip.saturating_sub(1);
            return None;
        }
        Some(if self.long { LOOK_MAX } else { LOOK_MIN })
    }

    /// After a look in vain: what was waited for came when the look and the sleep after it had taken so long.
    pub fn came(&mut self, looked: Duration, slept: Duration) {
        let long = looked + slept <= LOOK_MAX && slept >= SWITCH;
        if long && !self.long {
            // The next look is another one than the one that was in vain.
            (self.skip, self.penalty) = (0, self.penalty / 2);
        }
        self.long = long;
    }

    /// What was waited for came while looking, or did not.
    pub fn helped(&mut self, helped: bool) {
        self.penalty =
            if helped { self.penalty - self.penalty.div_ceil(8) } else { (self.penalty * 2).clamp(SKIP_MIN, SKIP_MAX) };
        self.skip = if helped { 0 } else { self.penalty };
    }
}

impl Default for Eagerness {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> Eagerness {
        Eagerness { skip: 0, penalty: 0, never: false, long: false }
    }

    #[test]
    fn who_looks_in_vain_looks_ever_more_rarely() {
        let mut eager = fresh();
        let mut looks = 0;
        for _ in 0..100_000 {
            if eager.looks().is_some() {
                looks += 1;
                eager.helped(false);
            }
        }
        assert!((100..130).contains(&looks), "{looks}");
    }

    #[test]
    fn who_finds_goes_on_looking_and_recovers_from_a_bad_time() {
        let mut eager = fresh();
        for _ in 0..10_000 {
            if eager.looks().is_some() {
                eager.helped(false);
            }
        }
        let mut looks = 0;
        for _ in 0..10_000 {
            if eager.looks().is_some() {
                looks += 1;
                eager.helped(true);
            }
        }
        assert!(looks > 8_000, "{looks}");
    }

    #[test]
    fn who_finds_every_other_time_looks_rarely_who_misses_now_and_then_goes_on() {
        for (every, few, many) in [(2, 0, 500), (20, 7_000, 10_000)] {
            let (mut eager, mut looks) = (fresh(), 0);
            for _ in 0..10_000 {
                if eager.looks().is_some() {
                    looks += 1;
                    eager.helped(looks % every != 0);
                }
            }
            assert!((few..=many).contains(&looks), "{every}: {looks}");
        }
    }

    #[test]
    fn one_processor_is_not_kept_from_those_who_answer() {
        let mut eager = Eagerness { never: true, ..fresh() };
        assert!((0..100).all(|_| eager.looks().is_none()));
    }

    #[test]
    fn looks_are_long_where_long_looks_help_and_short_where_they_do_not() {
        let us = Duration::from_micros;
        let mut eager = fresh();
        assert_eq!(eager.looks(), Some(LOOK_MIN));
        eager.helped(false);
        eager.came(LOOK_MIN, us(60));
        // At once, although the last look was in vain.
        assert_eq!(eager.looks(), Some(LOOK_MAX));
        eager.helped(true);
        assert_eq!(eager.looks(), Some(LOOK_MAX));
        eager.helped(false);
        eager.came(LOOK_MAX, us(60));
        let looks: Vec<_> = (0..10).map(|_| eager.looks()).collect();
        assert_eq!((looks[0], looks[9]), (None, Some(LOOK_MIN)));
        for slept in [us(5), us(500)] {
            let mut eager = fresh();
            eager.helped(false);
            eager.came(LOOK_MIN, slept);
            let next = (0..10).find_map(|_| eager.looks());
            assert_eq!(next, Some(LOOK_MIN), "slept {slept:?}");
        }
    }

    #[test]
    fn a_look_that_is_always_in_vain_is_rare_whatever_comes_after_it() {
        let mut eager = fresh();
        let mut looks = 0;
        for _ in 0..100_000 {
            if let Some(long) = eager.looks() {
                looks += 1;
                eager.helped(false);
                eager.came(long, Duration::from_micros(45));
            }
        }
        assert!(looks < 1000, "{looks}");
    }
}
