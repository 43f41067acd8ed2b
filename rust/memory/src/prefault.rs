//! Touching memory before it is needed: the first access to a page costs several times the copy itself.

use std::io;
use std::thread;

use rustix::io::Errno;
use rustix::mm::{Advice, madvise};

use crate::error::MemoryError;
use crate::mapped::Mapped;

/// Threads that touch at the same time. More gain nothing: the kernel zeroes pages at memory speed.
const THREADS: usize = 2;

/// Parts smaller than this are not worth a second thread, in bytes.
const PART_BYTES_MIN: usize = 64 << 20;

/// Step of the fallback, in bytes: the smallest page there is.
const PAGE_BYTES: usize = 4096;

/// Gives every page of `mapped` its memory, keeping its content.
pub(crate) fn prefault(mapped: &Mapped) -> Result<(), MemoryError> {
    let whole = mapped.len();
    let part = if whole < 2 * PART_BYTES_MIN { whole } else { whole.div_ceil(THREADS).next_multiple_of(2 << 20) };
    let results: Vec<io::Result<()>> = thread::scope(|scope| {
        let rest: Vec<_> = (part..whole)
            .step_by(part)
            .map(|offset| scope.spawn(move || populate(mapped, offset, part.min(whole - offset))))
            .collect();
        let first = populate(mapped, 0, part);
        let joined = rest
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a prefault thread panicked"))));
        std::iter::once(first).chain(joined).collect()
    });
    results.into_iter().collect::<io::Result<()>>().map_err(|source| MemoryError::System {
        operation: "prefault",
        bytes: whole as u64,
        source,
    })
}

fn populate(mapped: &Mapped, offset: usize, bytes: usize) -> io::Result<()> {
    // SAFETY: offset < length of the mapping.
    let start = unsafe { mapped.base().add(offset) };
    loop {
        // SAFETY: `start..start + bytes` lies in the mapping; populating changes no byte.
        match unsafe { madvise(start.as_ptr().cast(), bytes, Advice::LinuxPopulateWrite) } {
            Ok(()) => return Ok(()),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // Kernels before 5.14 do not know this advice.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    for page in (0..bytes).step_by(PAGE_BYTES) {
        // SAFETY: page < bytes. The segment is not yet shared with anyone, so adding zero races with nobody.
        unsafe {
            let byte = start.add(page).as_ptr();
            byte.write_volatile(byte.read_volatile());
        }
    }
    Ok(())
}
