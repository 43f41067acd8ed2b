//! Copy loops that store around the caches, and which of them suits this processor.

use std::fmt;
use std::ptr;
use std::sync::OnceLock;

/// A copy loop with non-temporal stores.
///
/// Which one is fastest differs between makers: some processors want one stream of full lines, others several
/// pages at a time so that their prefetchers and write-combining buffers all have work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// 32-byte stores in one stream.
    Avx2Lines,
    /// 32-byte stores over two pages at a time.
    Avx2Pages,
    /// 64-byte stores over four pages at a time.
    Avx512Pages,
}

const LINE: usize = 64;
const PAGE: usize = 4096;

impl Kernel {
    /// All kernels there are, whether or not this processor has them.
    pub const ALL: [Self; 3] = [Self::Avx2Lines, Self::Avx2Pages, Self::Avx512Pages];

    /// The name used in logs and benchmarks.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avx2Lines => "avx2-nt-lines",
            Self::Avx2Pages => "avx2-nt-2-pages",
            Self::Avx512Pages => "avx512-nt-4-pages",
        }
    }

    /// The fastest kernel of this processor, if it has any. Asked for once.
    pub fn best() -> Option<Self> {
        static BEST: OnceLock<Option<Kernel>> = OnceLock::new();
        *BEST.get_or_init(Self::choose)
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
        let step = self.step();
        let body = (bytes - head) / step * step;
        let done = head + body;
        // SAFETY: head + body <= bytes, and the loops move a whole number of their steps.
        unsafe {
            ptr::copy_nonoverlapping(source, target, head);
            if body > 0 {
                self.stream(target.add(head), source.add(head), body);
            }
            ptr::copy_nonoverlapping(source.add(done), target.add(done), bytes - done);
        }
    }

    /// As [`copy`](Self::copy), for bytes that are read once more at once: also asks for what follows them in
    /// memory, up to as many bytes again, so that the next copy finds it in the first-level cache.
    ///
    /// # Safety
    /// As [`copy`](Self::copy). What follows the source need not exist.
    pub(super) unsafe fn copy_ahead(self, target: *mut u8, source: *const u8, bytes: usize) {
        if self == Self::Avx2Lines && target.align_offset(LINE) == 0 && bytes.is_multiple_of(self.step()) {
            // SAFETY: whole steps from the start of a line; the rest by this function's contract.
            unsafe { self.stream_ahead(target, source, bytes) }
        } else {
            // SAFETY: the same contract.
            unsafe { self.copy(target, source, bytes) }
        }
    }

    /// Bytes that one round of the loop moves.
    const fn step(self) -> usize {
        match self {
            Self::Avx2Lines => 2 * LINE,
            Self::Avx2Pages => 2 * PAGE,
            Self::Avx512Pages => 4 * PAGE,
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

    use super::{Kernel, LINE, PAGE};

    impl Kernel {
        /// Whether this processor has the instructions.
        pub fn is_available(self) -> bool {
            match self {
                Self::Avx2Lines | Self::Avx2Pages => is_x86_feature_detected!("avx2"),
                Self::Avx512Pages => is_x86_feature_detected!("avx512f"),
            }
        }

        pub(super) fn choose() -> Option<Self> {
            // Measured: Intel gains nothing from one stream and most from four pages; AMD the other way round.
            let ranking: &[Self] = if is_intel() { &[Self::Avx512Pages, Self::Avx2Pages] } else { &[Self::Avx2Lines] };
            ranking.iter().copied().find(|kernel| kernel.is_available())
        }

        /// # Safety
        /// As [`copy`](Self::copy); `target` starts a line and `bytes` is a multiple of the step.
        pub(super) unsafe fn stream(self, target: *mut u8, source: *const u8, bytes: usize) {
            for offset in (0..bytes).step_by(self.step().max(PAGE)) {
                // SAFETY: each round stays within `bytes`: the page loops move whole steps, and the line loop is
                // told how much is left.
                unsafe {
                    let (target, source) = (target.add(offset), source.add(offset));
                    match self {
                        Self::Avx2Lines => avx2::<1, false>(target, source, PAGE.min(bytes - offset), 0),
                        Self::Avx2Pages => avx2::<2, false>(target, source, PAGE, 0),
                        Self::Avx512Pages => avx512_4_pages(target, source),
                    }
                }
            }
        }

        /// # Safety
        /// As [`stream`](Self::stream), for the line kernel.
        pub(super) unsafe fn stream_ahead(self, target: *mut u8, source: *const u8, bytes: usize) {
            debug_assert_eq!(self, Self::Avx2Lines);
            // SAFETY: by this function's contract.
            unsafe { avx2::<1, true>(target, source, bytes, bytes) }
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

    /// Moves the first `bytes` bytes of each of `PAGES` adjacent pages, two lines of each in turn. With `AHEAD` also
    /// asks for the lines `ahead` bytes after those it moves.
    ///
    /// # Safety
    /// All of the pages, as far as they are moved, are readable at `source` and writable at `target`, which starts
    /// a line; `bytes` is a multiple of two lines; the processor has AVX2.
    #[target_feature(enable = "avx2")]
    #[allow(clippy::cast_ptr_alignment, reason = "loads are unaligned ones, and targets start a line")]
    unsafe fn avx2<const PAGES: usize, const AHEAD: bool>(
        target: *mut u8,
        source: *const u8,
        bytes: usize,
        ahead: usize,
    ) {
        for offset in (0..bytes).step_by(2 * LINE) {
            if AHEAD {
                let next = source.wrapping_add(offset + ahead);
                #[allow(unused_unsafe, reason = "newer compilers know that asking is safe")]
                // SAFETY: a prefetch reads nothing and never faults.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(next.cast());
                    _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(LINE).cast());
                }
            }
            for page in 0..PAGES {
                // SAFETY: within the pages, by contract; unaligned loads, and stores at multiples of 32.
                unsafe {
                    let from = source.add(page * PAGE + offset).cast::<__m256i>();
                    let to = target.add(page * PAGE + offset).cast::<__m256i>();
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
    }

    /// Moves four adjacent pages, two lines of each in turn. Assembly, since the intrinsics are younger than the
    /// oldest compiler this crate builds with.
    ///
    /// # Safety
    /// Four pages are readable at `source` and writable at `target`, which starts a line; the processor has AVX-512F.
    unsafe fn avx512_4_pages(target: *mut u8, source: *const u8) {
        // SAFETY: 32 rounds of two lines in each of four pages: exactly the four pages. All vector registers may be
        // lost in a call, which is what clobber_abi says; flags are not preserved.
        unsafe {
            asm!(
                "2:",
                "vmovdqu64 zmm0, [rsi]",
                "vmovdqu64 zmm1, [rsi + 64]",
                "vmovdqu64 zmm2, [rsi + 4096]",
                "vmovdqu64 zmm3, [rsi + 4160]",
                "vmovdqu64 zmm4, [rsi + 8192]",
                "vmovdqu64 zmm5, [rsi + 8256]",
                "vmovdqu64 zmm6, [rsi + 12288]",
                "vmovdqu64 zmm7, [rsi + 12352]",
                "vmovntdq [rdi], zmm0",
                "vmovntdq [rdi + 64], zmm1",
                "vmovntdq [rdi + 4096], zmm2",
                "vmovntdq [rdi + 4160], zmm3",
                "vmovntdq [rdi + 8192], zmm4",
                "vmovntdq [rdi + 8256], zmm5",
                "vmovntdq [rdi + 12288], zmm6",
                "vmovntdq [rdi + 12352], zmm7",
                "add rsi, 128",
                "add rdi, 128",
                "dec rcx",
                "jnz 2b",
                "vzeroupper",
                inout("rsi") source => _,
                inout("rdi") target => _,
                inout("rcx") PAGE / (2 * LINE) => _,
                clobber_abi("sysv64"),
                options(nostack),
            );
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::{bring, drain};

#[cfg(not(target_arch = "x86_64"))]
mod portable {
    use super::Kernel;

    impl Kernel {
        /// Whether this processor has the instructions.
        pub const fn is_available(self) -> bool {
            false
        }

        pub(super) const fn choose() -> Option<Self> {
            None
        }

        /// # Safety
        /// As [`copy`](Self::copy).
        pub(super) unsafe fn stream(self, target: *mut u8, source: *const u8, bytes: usize) {
            // SAFETY: the same contract.
            unsafe { std::ptr::copy_nonoverlapping(source, target, bytes) }
        }

        /// # Safety
        /// As [`copy`](Self::copy).
        pub(super) unsafe fn stream_ahead(self, target: *mut u8, source: *const u8, bytes: usize) {
            // SAFETY: the same contract.
            unsafe { std::ptr::copy_nonoverlapping(source, target, bytes) }
        }
    }

    /// # Safety
    /// `source` is readable and `target` writable for `bytes` bytes, and they do not overlap.
    pub(in super::super) unsafe fn bring(target: *mut u8, source: *const u8, bytes: usize) {
        // SAFETY: the same contract.
        unsafe { std::ptr::copy_nonoverlapping(source, target, bytes) }
    }

    pub(in super::super) const fn drain() {}
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) use portable::{bring, drain};
