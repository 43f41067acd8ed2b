//! Which kernel copies in this process: the one that was asked for, or the one that suits the processor.
//!
//! The ranking differs between makers and between processors of one maker, and no name says which one a new processor
//! has. So there is an expectation, from what was measured on some, and a short trial of all kernels at the first large copy, which
//! overrules it where it clearly says otherwise.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::kernel::{Kernel, drain};

/// Bytes that the trial copies at a time. It takes two buffers of these; touching them costs more than a copy.
const TRIAL_BYTES: usize = 512 << 10;

/// Copies that each kernel makes in the trial. The fastest counts: whatever else happens only makes one slower.
const TRIAL_ROUNDS: usize = 4;

/// A kernel is preferred to the expected one if it takes less than this much of its time, in percent. The trial is short, and its
/// memory is near.
const CLEARLY_PERCENT: u32 = 85;

/// What was settled for this process.
static SETTLED: OnceLock<Option<Kernel>> = OnceLock::new();

impl Kernel {
    /// The kernel of this process, if its processor has any: settled at the first call, for good.
    pub fn best() -> Option<Self> {
        *SETTLED.get_or_init(|| {
            let times = Self::trial();
            let chosen = chosen(&times);
            let rate = |took: Duration| TRIAL_BYTES as u128 * 1000 / took.as_nanos().max(1);
            let mb_per_s: Vec<String> =
                times.iter().map(|(kernel, took)| format!("{kernel} {}", rate(*took))).collect();
            tracing::info!(kernel = chosen.map_or("none", Self::name), ?mb_per_s, "how large copies are made");
            chosen
        })
    }

    /// Has this process use a kernel, unless one was settled before or the processor does not have it; says which one it uses then.
    pub fn settle(self) -> Option<Self> {
        if self.is_available() { *SETTLED.get_or_init(|| Some(self)) } else { Self::best() }
    }

    /// What a copy of half a MiB takes with each kernel that this processor has, the expected one first.
    pub fn trial() -> Vec<(Self, Duration)> {
        let mut times: Vec<_> = Self::expected().iter().map(|kernel| (*kernel, Duration::MAX)).collect();
        if times.is_empty() {
            return times;
        }
        let (mut first, mut second) = (vec![1u8; TRIAL_BYTES], vec![2u8; TRIAL_BYTES]);
        for _ in 0..TRIAL_ROUNDS {
            for (kernel, best) in &mut times {
                let started = Instant::now();
                // SAFETY: two buffers of this length; the processor has the kernel.
                unsafe { kernel.copy(first.as_mut_ptr(), second.as_ptr(), TRIAL_BYTES) };
                drain();
                *best = started.elapsed().min(*best);
                // What was stored last is in memory alone, and is read next.
                std::mem::swap(&mut first, &mut second);
            }
        }
        times
    }
}

/// The expected kernel, or another one that is clearly faster.
fn chosen(times: &[(Kernel, Duration)]) -> Option<Kernel> {
    let (expected, its_time) = *times.first()?;
    let (fastest, time) = *times.iter().min_by_key(|(_, took)| *took)?;
    Some(if time * 100 < its_time * CLEARLY_PERCENT { fastest } else { expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clearly_faster_kernel_overrules_the_expected_one() {
        let times = |lines, runs| {
            let times = [(Kernel::Avx2Lines, lines), (Kernel::Avx2Runs, runs)];
            chosen(&times.map(|(kernel, took)| (kernel, Duration::from_micros(took))))
        };
        assert_eq!(times(100, 90), Some(Kernel::Avx2Lines));
        assert_eq!(times(100, 80), Some(Kernel::Avx2Runs));
        assert_eq!(times(80, 100), Some(Kernel::Avx2Lines));
        assert_eq!(chosen(&[]), None);
    }

    #[test]
    fn what_is_settled_stays() {
        let settled = Kernel::best();
        assert!(settled.is_none_or(Kernel::is_available));
        for kernel in Kernel::ALL {
            assert_eq!(kernel.settle(), settled);
        }
        assert_eq!(Kernel::trial().len(), Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()).count());
    }
}
