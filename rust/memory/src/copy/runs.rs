//! A copy over two runs of lines at a time, with AVX2, that can sum what it moves on the way.
//!
//! What it adds to the other kernels: it asks for lines ahead of what it reads, without room for them in the outer caches
//! (they will not be read again), and it loads the next line of a run before it stores the one at hand. A load that follows
//! a store to the same place within a page, in another page, waits for it on some processors.
//!
//! With a sum each register is stored and summed, so that the source is read once. The sum of a run is four lanes of 16
//! bytes, each of which is moved on by a line (multiplied by `x^512`) before the next line is added: two multiplications
//! without carries for 16 bytes. The instruction for CRC-32C itself is left out of the loop: it took 3 cycles for 8
//! bytes on the processor this was made for, and no mixture of both was faster there than multiplications alone.

use std::arch::x86_64::{
    __m128i, __m256i, _MM_HINT_NTA, _mm_clmulepi64_si128, _mm_crc32_u8, _mm_crc32_u64, _mm_cvtsi32_si128,
    _mm_cvtsi128_si64, _mm_extract_epi64, _mm_prefetch, _mm_set_epi64x, _mm_setzero_si128, _mm_xor_si128,
    _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_stream_si256,
};
use std::ptr;

use super::kernel::LINE;
use crate::checksum::{power_of_x, product};

/// Runs moved at a time.
const RUNS: usize = 2;

/// A run's length at most. Half a piece of 128 KiB; longer ones were not faster.
const RUN_MAX: usize = 64 << 10;

/// How far ahead lines are asked for, in bytes. Measured on Zen 1: 384 to 1024 are equal within the noise, 128 and 2048 slower.
const AHEAD: usize = 512;
/// The same with a sum, which takes longer.
const AHEAD_SUMMED: usize = 1024;

/// Moves as many bytes as make up pairs of runs, and says how many that were. With `SUM` also takes the state of a CRC-32C on
/// over them; without it returns the state as it is.
///
/// # Safety
/// `source` is readable and `target` writable for `bytes` bytes, they do not overlap, `target` starts a line unless there
/// are no bytes, and the processor has AVX2 and carry-less multiplication.
pub(super) unsafe fn stream<const SUM: bool>(
    target: *mut u8,
    source: *const u8,
    bytes: usize,
    mut state: u32,
) -> (usize, u32) {
    let mut done = 0;
    loop {
        let run = ((bytes - done) / RUNS / LINE * LINE).min(RUN_MAX);
        if run == 0 {
            return (done, state);
        }
        // SAFETY: two runs of whole lines are no more than what is left.
        state = unsafe { two_runs::<SUM>(target.add(done), source.add(done), run, state) };
        done += RUNS * run;
    }
}

/// Copies `bytes` bytes, the middle of them around the caches, and takes the state of a CRC-32C on over them. The source is
/// read once.
///
/// # Safety
/// As [`stream`]; `target` may start anywhere.
pub(super) unsafe fn copy_summed(target: *mut u8, source: *const u8, bytes: usize, state: u32) -> u32 {
    let head = target.align_offset(LINE).min(bytes);
    // SAFETY: head <= bytes, and `stream` says how far it came: to less than two lines before the end.
    unsafe {
        let state = edge(target, source, head, state);
        let (done, state) = stream::<true>(target.add(head), source.add(head), bytes - head, state);
        let done = head + done;
        edge(target.add(done), source.add(done), bytes - done, state)
    }
}

/// Copies and sums less than two lines.
///
/// # Safety
/// As [`stream`]; `bytes` is less than two lines.
#[target_feature(enable = "sse4.2")]
unsafe fn edge(target: *mut u8, source: *const u8, bytes: usize, mut state: u32) -> u32 {
    let mut near = [0u8; 2 * LINE];
    // SAFETY: by this function's contract; the buffer is longer. Others may write to the source, so only the copy is summed.
    unsafe {
        ptr::copy_nonoverlapping(source, near.as_mut_ptr(), bytes);
        ptr::copy_nonoverlapping(near.as_ptr(), target, bytes);
    }
    let (words, rest) = near[..bytes].as_chunks();
    for word in words {
        state = low(_mm_crc32_u64(state.into(), u64::from_le_bytes(*word)));
    }
    rest.iter().fold(state, |state, byte| _mm_crc32_u8(state, *byte))
}

/// A line of a run, in registers.
type Line = [__m256i; 2];

/// Four lanes of a run's sum.
type Lanes = [__m128i; 4];

/// Moves two adjacent runs, a line of each in turn, and sums them with `SUM`.
///
/// # Safety
/// Two runs are readable at `source` and writable at `target`, which starts a line. `run` is a multiple of a line, no more
/// than [`RUN_MAX`] and not 0. The processor has the instructions.
#[target_feature(enable = "avx2,pclmulqdq")]
unsafe fn two_runs<const SUM: bool>(target: *mut u8, source: *const u8, run: usize, state: u32) -> u32 {
    let ahead = const { if SUM { AHEAD_SUMMED } else { AHEAD } };
    let mut lanes: [Lanes; RUNS] = [[_mm_setzero_si128(); 4]; RUNS];
    // The state so far is added to the first bytes of the first run, which moves it on with them.
    let mut first = _mm_cvtsi32_si128(state.cast_signed());
    // SAFETY: the first line of each run.
    let mut loaded: [Line; RUNS] = unsafe { [load(source), load(source.add(run))] };
    for offset in (0..run - LINE).step_by(LINE) {
        for at in 0..RUNS {
            let place = at * run + offset;
            // Past the end of the second run lies what is likely to be read next; past that of the first, what was read.
            let asked = if at + 1 < RUNS { (offset + ahead).min(run - LINE) } else { run + offset + ahead };
            _mm_prefetch::<_MM_HINT_NTA>(source.wrapping_add(asked).cast());
            // SAFETY: two lines that follow each other in a run, the second of which is not past its end.
            let next = unsafe {
                let next = load(source.add(place + LINE));
                store(target.add(place), loaded[at]);
                next
            };
            if SUM {
                lanes[at] = moved_on(lanes[at], loaded[at], first);
                first = _mm_setzero_si128();
            }
            loaded[at] = next;
        }
    }
    for at in 0..RUNS {
        // SAFETY: the last line of each run.
        unsafe { store(target.add(at * run + run - LINE), loaded[at]) };
        if SUM {
            lanes[at] = moved_on(lanes[at], loaded[at], first);
            first = _mm_setzero_si128();
        }
    }
    if SUM { multiplied(reduced(lanes[0]), SHIFTS[run / LINE]) ^ reduced(lanes[1]) } else { state }
}

/// # Safety
/// A line can be read here.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(clippy::cast_ptr_alignment, reason = "the loads are unaligned ones")]
unsafe fn load(from: *const u8) -> Line {
    // SAFETY: by this function's contract.
    unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(LINE / 2).cast())] }
}

/// # Safety
/// A line starts here and can be written.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(clippy::cast_ptr_alignment, reason = "lines are aligned")]
unsafe fn store(to: *mut u8, line: Line) {
    // SAFETY: by this function's contract.
    unsafe {
        _mm256_stream_si256(to.cast(), line[0]);
        _mm256_stream_si256(to.add(LINE / 2).cast(), line[1]);
    }
}

/// The lanes of a sum after a line, to whose first bytes `first` is added.
#[inline]
#[target_feature(enable = "avx2,pclmulqdq")]
fn moved_on(lanes: Lanes, line: Line, first: __m128i) -> Lanes {
    let by = pair(const { folding(LINE) });
    let [a, b] = line;
    [
        folded(lanes[0], by, _mm_xor_si128(_mm256_castsi256_si128(a), first)),
        folded(lanes[1], by, _mm256_extracti128_si256::<1>(a)),
        folded(lanes[2], by, _mm256_castsi256_si128(b)),
        folded(lanes[3], by, _mm256_extracti128_si256::<1>(b)),
    ]
}

/// The CRC-32C of a run, begun with 0, from its lanes.
#[inline]
#[target_feature(enable = "avx2,pclmulqdq")]
fn reduced(lanes: Lanes) -> u32 {
    let one = pair(const { folding(16) });
    let two = pair(const { folding(32) });
    let all = folded(folded(lanes[0], one, lanes[1]), two, folded(lanes[2], one, lanes[3]));
    let low_half = _mm_crc32_u64(0, _mm_cvtsi128_si64(all).cast_unsigned());
    low(_mm_crc32_u64(low_half, _mm_extract_epi64::<1>(all).cast_unsigned()))
}

/// 16 bytes moved on by as many as `by` says, plus those that are there.
#[inline]
#[target_feature(enable = "avx2,pclmulqdq")]
fn folded(sum: __m128i, by: __m128i, bytes: __m128i) -> __m128i {
    let products = _mm_xor_si128(_mm_clmulepi64_si128::<0x00>(sum, by), _mm_clmulepi64_si128::<0x11>(sum, by));
    _mm_xor_si128(products, bytes)
}

/// The product of a sum and one of [`SHIFTS`].
#[inline]
#[target_feature(enable = "avx2,pclmulqdq")]
fn multiplied(sum: u32, shift: u32) -> u32 {
    let wide = |half: u32| _mm_set_epi64x(0, i64::from(half));
    let both = _mm_clmulepi64_si128::<0x00>(wide(sum), wide(shift));
    low(_mm_crc32_u64(0, _mm_cvtsi128_si64(both).cast_unsigned()))
}

#[inline]
#[target_feature(enable = "avx2")]
fn pair(factors: [u32; 2]) -> __m128i {
    _mm_set_epi64x(i64::from(factors[1]), i64::from(factors[0]))
}

#[allow(clippy::cast_possible_truncation, reason = "the instruction leaves 32 bits")]
const fn low(value: u64) -> u32 {
    value as u32
}

/// What the two halves of 16 bytes are multiplied with to move them on by `bytes` bytes. The first half lies 8 bytes
/// further; a product of two reversed polynomials is one power too high, and of 128 bits 32 are left to be divided.
const fn folding(bytes: usize) -> [u32; 2] {
    let bits = 8 * bytes as u64;
    [power_of_x(bits + 31), power_of_x(bits - 33)]
}

/// What moves a sum on by so many lines: the power for that, less what [`multiplied`] brings.
static SHIFTS: [u32; RUN_MAX / LINE + 1] = {
    let mut table = [0; RUN_MAX / LINE + 1];
    table[1] = power_of_x(8 * LINE as u64 - 33);
    let line = power_of_x(8 * LINE as u64);
    let mut lines = 2;
    while lines < table.len() {
        table[lines] = product(table[lines - 1], line);
        lines += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checksum::checksum_bytes;
    use crate::copy::Kernel;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// Also over several pairs of runs, and from a state that others left.
        #[test]
        fn a_copy_is_exact_and_so_is_its_sum(
            bytes in 0usize..299_000,
            from in 0usize..700,
            to in 0usize..700,
            cut: prop::sample::Index,
        ) {
            if Kernel::Avx2Runs.is_available() {
                let source: Vec<u8> = (0..300_000u32).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
                let mut target = vec![0u8; source.len()];
                let cut = cut.index(bytes + 1);
                let mut state = !0;
                for part in [0..cut, cut..bytes] {
                    // SAFETY: two buffers of their own, longer than what is moved; the processor has the kernel.
                    unsafe {
                        let (to, from) = (target.as_mut_ptr().add(to + part.start), source.as_ptr().add(from + part.start));
                        state = copy_summed(to, from, part.len(), state);
                    }
                }
                super::super::kernel::drain();
                prop_assert!(target[to..to + bytes] == source[from..from + bytes]);
                prop_assert!(target[..to].iter().chain(&target[to + bytes..]).all(|byte| *byte == 0));
                prop_assert_eq!(!state, checksum_bytes(&source[from..from + bytes]));
            }
        }
    }
}
