//! Whether the bytes of a copy are in the caches already.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::Move;

/// Places looked at, one line on each side. Enough that one chance hit does not decide; few enough to cost about
/// half a microsecond when all of them come from memory.
const SAMPLES: usize = 4;

/// Places that take longer than this on average came from memory, or from a shared cache that is hardly faster. The core's
/// own caches answer within a few tens of nanoseconds, page walk included; AMD's shared ones as well, and memcpy wins in
/// all of those. On a virtual machine of Intel's the shared cache takes 150 to 300 and memory 500 to 900, and the kernels win
/// in both (measured, a place of the source and one of the target).
const PLACE_MAX: Duration = Duration::from_nanos(60);

/// Looks at a few places, one after the other, and says whether sources and targets came quickly.
///
/// # Safety
/// All sources and targets are readable.
pub(super) unsafe fn is_hot(total: u64, moves: impl Iterator<Item = Move>) -> bool {
    let (places, known) = choose(total, moves);
    let limit = PLACE_MAX * u32::try_from(known).unwrap_or(u32::MAX);
    let started = Instant::now();
    let mut zero = 0;
    for (at, (source, target)) in places[..known].iter().enumerate() {
        // SAFETY: places within sources and targets, readable by contract; `zero` is 0.
        let (from, to) = unsafe { (source.add(zero).read_volatile(), target.add(zero).read_volatile()) };
        // The next address waits for these values, so that the waits add up.
        zero = black_box(usize::from(from) | usize::from(to)) >> 8;
        // What comes from memory mostly shows at the first place. Asking for the time costs more than a place in a cache.
        if at == 0 && started.elapsed() > limit {
            return false;
        }
    }
    black_box(zero);
    started.elapsed() <= limit
}

/// The middles of [`SAMPLES`] equal parts of the object, as places in sources and targets.
fn choose(total: u64, moves: impl Iterator<Item = Move>) -> ([(*const u8, *const u8); SAMPLES], usize) {
    let mut places = [(std::ptr::null(), std::ptr::null()); SAMPLES];
    let (mut known, mut start) = (0, 0);
    for one in moves {
        let end = start + one.bytes as u64;
        while known < SAMPLES {
            let wanted = total * (2 * known as u64 + 1) / (2 * SAMPLES as u64);
            let Some(at) = usize::try_from(wanted - start).ok().filter(|_| wanted < end) else { break };
            places[known] = (one.source.wrapping_add(at), one.target.cast_const().wrapping_add(at));
            known += 1;
        }
        start = end;
    }
    (places, known)
}
