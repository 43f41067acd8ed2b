//! Pages of 2 MiB for memory that a program looks at in no order: one entry of the processor's table of pages then stands
//! for 512 small ones, and is there more often.
//!
//! A crate of its own because asking takes unsafe code, and who asks, the book, has none.

use std::mem::MaybeUninit;

/// Length of a huge page, in bytes.
const HUGE_BYTES: usize = 2 << 20;

/// Asks for huge pages wherever whole ones fit into memory that nothing was written to yet. Each is taken, and is zero, at
/// the first write to it. Where there are none, pages have the usual size.
pub fn want_huge<T>(spare: &mut [MaybeUninit<T>]) {
    let start = spare.as_mut_ptr().cast::<u8>();
    let first = start.addr().next_multiple_of(HUGE_BYTES);
    let end = (start.addr() + size_of_val(spare)) / HUGE_BYTES * HUGE_BYTES;
    if first < end {
        advise(start.wrapping_add(first - start.addr()), end - first);
    }
}

#[cfg(target_os = "linux")]
fn advise(first: *mut u8, bytes: usize) {
    use rustix::mm::{Advice, madvise};
    // SAFETY: the range is part of a slice that the caller borrows; this advice changes no byte of it and unmaps nothing.
    let advised = unsafe { madvise(first.cast(), bytes, Advice::LinuxHugepage) };
    // A kernel that knows no huge pages says so, and nothing is different.
    let _ = advised;
}

#[cfg(not(target_os = "linux"))]
fn advise(_: *mut u8, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_stays_and_what_is_written_is_there() {
        let mut numbers = Vec::with_capacity(3 * HUGE_BYTES / size_of::<usize>());
        numbers.extend(0..1000);
        want_huge(numbers.spare_capacity_mut());
        numbers.extend(1000..numbers.capacity());
        want_huge(numbers.spare_capacity_mut());
        assert!(numbers.iter().enumerate().all(|(position, number)| position == *number));
    }

    #[test]
    fn memory_without_a_whole_huge_page_is_passed_over() {
        want_huge::<u64>(&mut []);
        want_huge::<()>(Vec::with_capacity(5).spare_capacity_mut());
        want_huge::<u8>(Vec::with_capacity(HUGE_BYTES - 1).spare_capacity_mut());
    }

    /// The flags of the mapping that a byte is in: `hg` stands for huge pages asked for.
    #[cfg(target_os = "linux")]
    fn flags_at(byte: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("Linux says what is mapped");
        let mut lines = maps.lines().skip_while(|line| {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let ends = range.map(|(first, end)| [first, end].map(|end| usize::from_str_radix(end, 16)));
            !matches!(ends, Some([Ok(first), Ok(end)]) if (first..end).contains(&byte))
        });
        lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap_or_default().to_owned()
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn whole_huge_pages_are_asked_for_and_nothing_else() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            return;
        }
        let mut bytes = Vec::<u8>::with_capacity(4 * HUGE_BYTES);
        want_huge(bytes.spare_capacity_mut());
        let start = bytes.as_ptr().addr();
        let first = start.next_multiple_of(HUGE_BYTES);
        assert!(flags_at(first).contains(" hg"), "{}", flags_at(first));
        assert!(first == start || !flags_at(first - 1).contains(" hg"), "{}", flags_at(first - 1));
    }
}
