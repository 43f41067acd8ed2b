//! Whether threads wait for a processor on this machine: then copying with a further thread takes time from somebody.

use std::fmt;
use std::fs::{File, read_to_string};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::stats::{Stats, add};

/// Where Linux says how many threads run or want to (proc_pid_loadavg(5)). It asks every processor: 0.7 us for two.
const WANTING: &str = "/proc/loadavg";

/// The processors that are switched on, as ranges (Documentation/admin-guide/cputopology.rst).
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// Looks take at most one part in so many of the time.
const SHARE: u32 = 50;

/// A look that took longer was interrupted.
const LOOK_MAX: Duration = Duration::from_micros(50);

/// How long a thread rests. Two or three tasks of a transfer take as long.
const REST: Duration = Duration::from_micros(200);

/// Looks at how many threads want to run. Where the system does not say, nobody ever waits.
///
/// It counts those of the whole machine: a process that may use some of its processors only, or some of their time,
/// waits more often than is seen here.
pub(crate) struct Crowd {
    file: Option<File>,
    processors: usize,
    born: Instant,
    /// When to look next, in nanoseconds since then. Until then what was seen last is the answer.
    due: AtomicU64,
    waited: AtomicBool,
    stats: Arc<Stats>,
}

impl Crowd {
    /// Counts rests in `stats`.
    pub(crate) fn new(stats: &Arc<Stats>) -> Self {
        let processors = read_to_string(ONLINE).ok().and_then(|ranges| count(ranges.trim()));
        let file = processors.and_then(|_| File::open(WANTING).ok());
        Self::of(file, processors.unwrap_or(usize::MAX), stats)
    }

    pub(crate) fn of(file: Option<File>, processors: usize, stats: &Arc<Stats>) -> Self {
        let (due, waited) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { file, processors, born: Instant::now(), due, waited, stats: Arc::clone(stats) }
    }

    /// Leaves the processor to others for a while.
    pub(crate) fn rest(&self) {
        add(&self.stats.copy_rests, 1);
        std::thread::sleep(REST);
    }

    /// Whether more threads want to run than there are processors, this one among them; as seen lately.
    pub(crate) fn waits(&self) -> bool {
        if nanos(self.born.elapsed()) < self.due.load(Ordering::Relaxed) { self.waited() } else { self.waits_now() }
    }

    /// What was seen last.
    pub(crate) fn waited(&self) -> bool {
        self.waited.load(Ordering::Relaxed)
    }

    /// Whether more threads want to run than there are processors, this one among them.
    pub(crate) fn waits_now(&self) -> bool {
        let Some(file) = &self.file else { return false };
        let began = Instant::now();
        let waits = look(file).is_some_and(|wanting| wanting > self.processors);
        let pause = began.elapsed().min(LOOK_MAX) * SHARE;
        self.waited.store(waits, Ordering::Relaxed);
        self.due.store(nanos(self.born.elapsed() + pause), Ordering::Relaxed);
        waits
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn look(file: &File) -> Option<usize> {
    let mut text = [0; 64];
    let length = file.read_at(&mut text, 0).ok()?;
    wanting(&text[..length])
}

impl fmt::Debug for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Crowd({} processors)", self.processors)
    }
}

/// The threads that want to run, out of a line such as `0.20 0.18 0.12 1/80 11206`.
fn wanting(line: &[u8]) -> Option<usize> {
    let field = std::str::from_utf8(line).ok()?.split(' ').nth(3)?;
    field.split_once('/')?.0.parse().ok()
}

/// How many numbers there are in ranges such as `0-3,5,8-11`.
fn count(ranges: &str) -> Option<usize> {
    let one = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    ranges.split(',').map(one).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_understood() {
        assert_eq!(wanting(b"0.20 0.18 0.12 1/80 11206\n"), Some(1));
        assert_eq!(wanting(b"0.20 0.18 0.12 37/8000 1\n"), Some(37));
        for odd in [&b""[..], b"0.20 0.18 0.12", b"0.20 0.18 0.12 x/80 1", b"0.20 0.18 0.12 1 1", b"\xff"] {
            assert_eq!(wanting(odd), None);
        }
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("0-3,5,8-11"), Some(9));
        for odd in ["", "a", "3-1", "0-18446744073709551615", "1,", "0-"] {
            assert_eq!(count(odd), None, "{odd}");
        }
    }

    #[test]
    fn more_threads_than_processors_are_a_crowd() {
        let crowd = Crowd::new(&Arc::default());
        if crowd.file.is_none() {
            return; // a system that does not say
        }
        let enough = AtomicBool::new(false);
        let seen = std::thread::scope(|scope| {
            for _ in 0..crowd.processors {
                scope.spawn(|| {
                    while !enough.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let until = Instant::now() + Duration::from_secs(10);
            let mut seen = false;
            while !seen && Instant::now() < until {
                seen = crowd.waits();
            }
            enough.store(true, Ordering::Relaxed);
            seen
        });
        assert!(seen);
    }
}
