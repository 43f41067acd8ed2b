//! Copy loops that store around the caches, and which of them is expected to suit this processor.

use std::fmt;
use std::ptr;

/// A copy loop with non-temporal stores.
///
/// Which one is fastest differs between processors: some want one stream of full lines, others several
/// at a time so that their prefetchers and write-combining buffers all have work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// 32-byte stores in one stream.
    Avx2Lines,
    /// 32-byte stores over two runs at a time, each up to 64 KiB long, with loads ahead of them. Sums on the way.
    Avx2Runs,
    /// 64-byte stores over four runs at a time, each up to 32 KiB long.
    Avx512Runs,
}

pub(super) const LINE: usize = 64;
const PAGE: usize = 4096;

impl Kernel {
    /// All kernels there are, whether or not this processor has them.
    pub const ALL: [Self; 3] = [Self::Avx2Lines, Self::Avx2Runs, Self::Avx512Runs];

    /// The name used in logs and benchmarks.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avx2Lines => "avx2-nt-lines",
            Self::Avx2Runs => "avx2-nt-2-runs",
            Self::Avx512Runs => "avx512-nt-4-runs",
        }
    }

    /// Copies `bytes` bytes, the middle of them around the caches.
    ///
    /// Pair it with [`drain`] before anyone else may see the target.
    ///
    /// # Safety
    /// `source` is readable and `target` writable for `bytes` bytes, they do not overlap, and the processor
    /// [has](Self::is_available) the kernel.
    pub(super) unsafe fn copy(self, target: *mut u8, source: *const u8, bytes: usize) {
        // The loops want a target at the start of a line. Only pieces at odd places have a head.
        let head = target.align_offset(LINE).min(bytes);
        // SAFETY: head <= bytes, and the loops move no more than they are told and say how much.
        unsafe {
            ptr::copy_nonoverlapping(source, target, head);
            let done = head + self.stream(target.add(head), source.add(head), bytes - head);
            ptr::copy_nonoverlapping(source.add(done), target.add(done), bytes - done);
        }
    }

    /// As [`copy`](Self::copy), and leaves the same bytes in `near`, which ends up in the cache. The source is read once.
    ///
    /// # Safety
    /// As [`copy`](Self::copy); `near` is writable for `bytes` bytes too, and overlaps neither.
    pub(super) unsafe fn copy_keeping(self, target: *mut u8, source: *const u8, near: *mut u8, bytes: usize) {
        let head = target.align_offset(LINE).min(bytes);
        // SAFETY: by this function's contract; `stream_keeping` says how far it came.
        unsafe {
            ptr::copy_nonoverlapping(source, near, head);
            let done = head + self.stream_keeping(target.add(head), source.add(head), near.add(head), bytes - head);
            bring(near.add(done), source.add(done), bytes - done);
            ptr::copy_nonoverlapping(near, target, head);
            self.copy(target.add(done), near.add(done), bytes - done);
        }
    }

    /// As [`copy`](Self::copy), for bytes that are read once more at once: also asks for what follows them in
    /// memory, up to as many bytes again, so that the next copy finds it in the first-level cache.
    ///
    /// # Safety
    /// As [`copy`](Self::copy). What follows the source need not exist.
    pub(super) unsafe fn copy_ahead(self, target: *mut u8, source: *const u8, bytes: usize) {
        if self == Self::Avx2Lines && target.align_offset(LINE) == 0 && bytes.is_multiple_of(2 * LINE) {
            // SAFETY: whole steps from the start of a line; the rest by this function's contract.
            unsafe { self.stream_ahead(target, source, bytes) }
        } else {
            // SAFETY: the same contract.
            unsafe { self.copy(target, source, bytes) }
        }
    }
}

/// Asks for the lines at both ends of a target of which a later [`Kernel::copy`] will only write a part. Such a line must
/// be read first, and the stores behind it wait.
pub(super) fn expect(target: *mut u8, bytes: usize) {
    for edge in [target, target.wrapping_add(bytes)] {
        if edge.align_offset(LINE) != 0 {
            prefetch(edge);
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::asm;
    use std::arch::x86_64::{
        __cpuid, __m256i, _MM_HINT_T0, _mm_prefetch, _mm_sfence, _mm256_loadu_si256, _mm256_storeu_si256,
        _mm256_stream_si256,
    };

    use std::ptr;

    use super::super::runs;
    use super::{Kernel, LINE, PAGE};

    impl Kernel {
        /// Whether this processor has the instructions.
        pub fn is_available(self) -> bool {
            match self {
                Self::Avx2Lines => is_x86_feature_detected!("avx2"),
                Self::Avx2Runs => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("pclmulqdq"),
                Self::Avx512Runs => is_x86_feature_detected!("avx512f"),
            }
        }

        /// The kernels that this processor has, the one that is expected to be fastest first.
        ///
        /// Measured: Intel with AVX-512 wants several runs with the widest stores; AMD's Zen 4 one stream; Zen 1, which has no
        /// AVX-512, two runs.
        pub(in super::super) fn expected() -> Vec<Self> {
            let ranking = match (is_intel(), Self::Avx512Runs.is_available()) {
                (true, _) => [Self::Avx512Runs, Self::Avx2Runs, Self::Avx2Lines],
                (false, true) => [Self::Avx2Lines, Self::Avx2Runs, Self::Avx512Runs],
                (false, false) => [Self::Avx2Runs, Self::Avx2Lines, Self::Avx512Runs],
            };
            ranking.into_iter().filter(|kernel| kernel.is_available()).collect()
        }

        /// Moves what fits in the way of the kernel, and says how many bytes that were.
        ///
        /// # Safety
        /// As [`copy`](Self::copy); `target` starts a line unless there are no bytes.
        pub(super) unsafe fn stream(self, target: *mut u8, source: *const u8, bytes: usize) -> usize {
            let body = bytes / (2 * LINE) * (2 * LINE);
            // SAFETY: by this function's contract; the line loop is told how much it may move.
            unsafe {
                match self {
                    Self::Avx2Lines => lines::<false>(target, source, body, 0),
                    Self::Avx2Runs => return runs::stream::<false>(target, source, bytes, 0).0,
                    Self::Avx512Runs => return in_runs::<PLAIN>(target, source, ptr::null_mut(), bytes),
                }
            }
            body
        }

        /// Moves what fits in the way of the kernel to `target` and `near`, and says how many bytes that were.
        ///
        /// # Safety
        /// As [`copy_keeping`](Self::copy_keeping); `target` starts a line unless there are no bytes.
        pub(super) unsafe fn stream_keeping(
            self,
            target: *mut u8,
            source: *const u8,
            near: *mut u8,
            bytes: usize,
        ) -> usize {
            match self {
                Self::Avx2Lines | Self::Avx2Runs => 0,
                // SAFETY: by this function's contract.
                Self::Avx512Runs => unsafe { in_runs::<KEEP>(target, source, near, bytes) },
            }
        }

        /// # Safety
        /// As [`stream`](Self::stream), for the line kernel.
        pub(super) unsafe fn stream_ahead(self, target: *mut u8, source: *const u8, bytes: usize) {
            debug_assert_eq!(self, Self::Avx2Lines);
            // SAFETY: by this function's contract.
            unsafe { lines::<true>(target, source, bytes, bytes) }
        }
    }

    fn is_intel() -> bool {
        #[allow(unused_unsafe, reason = "newer compilers know that asking is safe")]
        // SAFETY: every x86_64 processor answers leaf 0.
        let leaf = unsafe { __cpuid(0) };
        (leaf.ebx, leaf.edx, leaf.ecx) == (0x756e_6547, 0x4965_6e69, 0x6c65_746e)
    }

    /// Drains what the kernels have stored, which other stores may otherwise overtake.
    pub(in super::super) fn drain() {
        // SAFETY: SSE is part of x86_64.
        unsafe { _mm_sfence() }
    }

    /// Asks for the line of a place. Does nothing where there is no memory.
    pub(super) fn prefetch(place: *const u8) {
        #[allow(unused_unsafe, reason = "newer compilers know that asking is safe")]
        // SAFETY: a prefetch reads nothing and never faults.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(place.cast());
        }
    }

    /// Copies cold bytes into the cache. memcpy turns to string instructions for some of the lengths used here,
    /// which wait for memory instead of reading ahead of it (measured on AMD: half the speed).
    ///
    /// # Safety
    /// `source` is readable and `target` writable for `bytes` bytes, they do not overlap, and the processor has AVX2.
    #[target_feature(enable = "avx2")]
    #[allow(clippy::cast_ptr_alignment, reason = "all loads and stores are unaligned ones")]
    pub(in super::super) unsafe fn bring(target: *mut u8, source: *const u8, bytes: usize) {
        let body = bytes / (2 * LINE) * (2 * LINE);
        for offset in (0..body).step_by(2 * LINE) {
            // SAFETY: two lines of the body; all accesses are unaligned ones.
            unsafe {
                let from = source.add(offset).cast::<__m256i>();
                let to = target.add(offset).cast::<__m256i>();
                let lines = [0, 1, 2, 3].map(|at| _mm256_loadu_si256(from.add(at)));
                for (at, line) in lines.into_iter().enumerate() {
                    _mm256_storeu_si256(to.add(at), line);
                }
            }
        }
        // SAFETY: the rest of both.
        unsafe { std::ptr::copy_nonoverlapping(source.add(body), target.add(body), bytes - body) }
    }

    /// Moves `bytes` bytes, two lines at a time. With `AHEAD` also asks for the lines `ahead` bytes after those it moves.
    ///
    /// # Safety
    /// They are readable at `source` and writable at `target`, which starts a line; `bytes` is a multiple of two lines;
    /// the processor has AVX2.
    #[target_feature(enable = "avx2")]
    #[allow(clippy::cast_ptr_alignment, reason = "loads are unaligned ones, and targets start a line")]
    unsafe fn lines<const AHEAD: bool>(target: *mut u8, source: *const u8, bytes: usize, ahead: usize) {
        for offset in (0..bytes).step_by(2 * LINE) {
            if AHEAD {
                let next = source.wrapping_add(offset + ahead);
                prefetch(next);
                prefetch(next.wrapping_add(LINE));
            }
            // SAFETY: within the bytes, by contract; unaligned loads, and stores at multiples of 32.
            unsafe {
                let from = source.add(offset).cast::<__m256i>();
                let to = target.add(offset).cast::<__m256i>();
                let first = _mm256_loadu_si256(from);
                let second = _mm256_loadu_si256(from.add(1));
                let third = _mm256_loadu_si256(from.add(2));
                let fourth = _mm256_loadu_si256(from.add(3));
                _mm256_stream_si256(to, first);
                _mm256_stream_si256(to.add(1), second);
                _mm256_stream_si256(to.add(2), third);
                _mm256_stream_si256(to.add(3), fourth);
            }
        }
    }

    /// As [`Kernel::copy`], with the kernel that sums on the way.
    ///
    /// # Safety
    /// As [`Kernel::copy`], and the processor has [`Kernel::Avx2Runs`].
    pub(in super::super) unsafe fn copy_summed(target: *mut u8, source: *const u8, bytes: usize, state: u32) -> u32 {
        // SAFETY: by this function's contract.
        unsafe { runs::copy_summed(target, source, bytes, state) }
    }

    /// Runs that [`avx512_4_runs`] moves at a time.
    const RUNS: usize = 4;
    /// A run's length at most. Measured on Intel: runs of 16 or 32 KiB move 8 % faster than runs of a page.
    const RUN_MAX: usize = 32 << 10;

    /// How [`avx512_4_runs`] moves: as it is; asking for what follows, for runs too short for the processor to see
    /// where they lead; leaving a copy behind.
    const PLAIN: u8 = 0;
    const AHEAD: u8 = 1;
    const KEEP: u8 = 2;

    /// Moves as much as there are whole lines for in each run, and says how many bytes that were.
    ///
    /// # Safety
    /// As [`avx512_4_runs`], for that many bytes.
    unsafe fn in_runs<const HOW: u8>(target: *mut u8, source: *const u8, near: *mut u8, bytes: usize) -> usize {
        let mut done = 0;
        loop {
            let left = bytes - done;
            let run = (left / RUNS / LINE * LINE).min(RUN_MAX);
            if run == 0 {
                return done;
            }
            let (target, source, near) =
                (target.wrapping_add(done), source.wrapping_add(done), near.wrapping_add(done));
            // SAFETY: four runs of whole lines are no more than what is left.
            unsafe {
                match HOW {
                    PLAIN if run < PAGE => avx512_4_runs::<AHEAD>(target, source, near, run),
                    PLAIN => avx512_4_runs::<PLAIN>(target, source, near, run / (2 * LINE) * (2 * LINE)),
                    _ => avx512_4_runs::<HOW>(target, source, near, run),
                }
            }
            done += RUNS * if HOW == PLAIN && run >= PAGE { run / (2 * LINE) * (2 * LINE) } else { run };
        }
    }

    /// Moves four adjacent runs of `run` bytes, a line or two of each in turn. Assembly, since the intrinsics are younger than
    /// the oldest compiler this crate builds with.
    ///
    /// # Safety
    /// Four runs are readable at `source` and writable at `target`, which starts a line; with [`KEEP`] also at `near`.
    /// `run` is a multiple of a line, with [`PLAIN`] of two, and not 0. The processor has AVX-512F.
    #[allow(clippy::too_many_lines, reason = "one loop in three ways, an instruction a line")]
    unsafe fn avx512_4_runs<const HOW: u8>(target: *mut u8, source: *const u8, near: *mut u8, run: usize) {
        macro_rules! rounds {
            ($bytes:literal: $($step:literal,)*) => {
                // SAFETY: each round moves `$bytes` bytes of each run, and there are as many rounds as it takes to move
                // all of it. All vector registers may be lost in a call, which is what clobber_abi says; flags are
                // not preserved.
                unsafe {
                    asm!(
                        "2:",
                        $($step,)*
                        concat!("add rsi, ", $bytes),
                        concat!("add rdi, ", $bytes),
                        concat!("add rdx, ", $bytes),
                        "dec rcx",
                        "jnz 2b",
                        "vzeroupper",
                        inout("rsi") source => _,
                        inout("rdi") target => _,
                        inout("rdx") near => _,
                        inout("rcx") run / $bytes => _,
                        in("r8") run,
                        in("r9") 3 * run,
                        clobber_abi("sysv64"),
                        options(nostack),
                    );
                }
            };
        }
        match HOW {
            KEEP => rounds!(
                64:
                "vmovdqu64 zmm0, [rsi]",
                "vmovdqu64 zmm1, [rsi + r8]",
                "vmovdqu64 zmm2, [rsi + 2*r8]",
                "vmovdqu64 zmm3, [rsi + r9]",
                "vmovntdq [rdi], zmm0",
                "vmovntdq [rdi + r8], zmm1",
                "vmovntdq [rdi + 2*r8], zmm2",
                "vmovntdq [rdi + r9], zmm3",
                "vmovdqu64 [rdx], zmm0",
                "vmovdqu64 [rdx + r8], zmm1",
                "vmovdqu64 [rdx + 2*r8], zmm2",
                "vmovdqu64 [rdx + r9], zmm3",
            ),
            AHEAD => rounds!(
                64:
                "prefetcht0 [rsi + 256]",
                "prefetcht0 [rsi + r8 + 256]",
                "prefetcht0 [rsi + 2*r8 + 256]",
                "prefetcht0 [rsi + r9 + 256]",
                "vmovdqu64 zmm0, [rsi]",
                "vmovdqu64 zmm1, [rsi + r8]",
                "vmovdqu64 zmm2, [rsi + 2*r8]",
                "vmovdqu64 zmm3, [rsi + r9]",
                "vmovntdq [rdi], zmm0",
                "vmovntdq [rdi + r8], zmm1",
                "vmovntdq [rdi + 2*r8], zmm2",
                "vmovntdq [rdi + r9], zmm3",
            ),
            _ => rounds!(
                128:
                "vmovdqu64 zmm0, [rsi]",
                "vmovdqu64 zmm1, [rsi + 64]",
                "vmovdqu64 zmm2, [rsi + r8]",
                "vmovdqu64 zmm3, [rsi + r8 + 64]",
                "vmovdqu64 zmm4, [rsi + 2*r8]",
                "vmovdqu64 zmm5, [rsi + 2*r8 + 64]",
                "vmovdqu64 zmm6, [rsi + r9]",
                "vmovdqu64 zmm7, [rsi + r9 + 64]",
                "vmovntdq [rdi], zmm0",
                "vmovntdq [rdi + 64], zmm1",
                "vmovntdq [rdi + r8], zmm2",
                "vmovntdq [rdi + r8 + 64], zmm3",
                "vmovntdq [rdi + 2*r8], zmm4",
                "vmovntdq [rdi + 2*r8 + 64], zmm5",
                "vmovntdq [rdi + r9], zmm6",
                "vmovntdq [rdi + r9 + 64], zmm7",
            ),
        }
    }
}

#[cfg(target_arch = "x86_64")]
use x86_64::prefetch;
#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::{bring, copy_summed, drain};

#[cfg(not(target_arch = "x86_64"))]
mod portable {
    use super::Kernel;

    impl Kernel {
        /// Whether this processor has the instructions.
        pub const fn is_available(self) -> bool {
            false
        }

        pub(in super::super) const fn expected() -> Vec<Self> {
            Vec::new()
        }

        /// # Safety
        /// As [`copy`](Self::copy).
        #[allow(clippy::unused_self, reason = "as on processors that have kernels")]
        pub(super) const unsafe fn stream(self, _: *mut u8, _: *const u8, _: usize) -> usize {
            0
        }

        /// # Safety
        /// As [`copy`](Self::copy).
        pub(super) unsafe fn stream_ahead(self, target: *mut u8, source: *const u8, bytes: usize) {
            // SAFETY: the same contract.
            unsafe { std::ptr::copy_nonoverlapping(source, target, bytes) }
        }

        /// # Safety
        /// As [`copy_keeping`](Self::copy_keeping).
        #[allow(clippy::unused_self, reason = "as on processors that have kernels")]
        pub(super) const unsafe fn stream_keeping(self, _: *mut u8, _: *const u8, _: *mut u8, _: usize) -> usize {
            0
        }
    }

    /// # Safety
    /// `source` is readable and `target` writable for `bytes` bytes, and they do not overlap.
    pub(in super::super) unsafe fn bring(target: *mut u8, source: *const u8, bytes: usize) {
        // SAFETY: the same contract.
        unsafe { std::ptr::copy_nonoverlapping(source, target, bytes) }
    }

    /// # Safety
    /// Never called: there is no kernel.
    pub(in super::super) const unsafe fn copy_summed(_: *mut u8, _: *const u8, _: usize, state: u32) -> u32 {
        state
    }

    pub(super) const fn prefetch(_: *const u8) {}

    pub(in super::super) const fn drain() {}
}

#[cfg(not(target_arch = "x86_64"))]
use portable::prefetch;
#[cfg(not(target_arch = "x86_64"))]
pub(super) use portable::{bring, copy_summed, drain};
