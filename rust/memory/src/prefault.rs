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
            .map(|offset| scope.spawn(move || touch(mapped, offset, part.min(whole - offset))))
            .collect();
        let first = touch(mapped, 0, part);
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

fn touch(mapped: &Mapped, offset: usize, bytes: usize) -> io::Result<()> {
    match populate(mapped, offset as u64, bytes as u64) {
        // Kernels before 5.14 do not know this advice.
        Err(Errno::INVAL) => {}
        done => return done.map_err(io::Error::from),
    }
    // SAFETY: offset < length of the mapping.
    let start = unsafe { mapped.base().add(offset) };
    for page in (0..bytes).step_by(PAGE_BYTES) {
        // SAFETY: page < bytes. The segment is not yet shared with anyone, so adding zero races with nobody.
        unsafe {
            let byte = start.add(page).as_ptr();
            byte.write_volatile(byte.read_volatile());
        }
    }
    Ok(())
}

/// Has the kernel give pages their memory and enter them into the page tables, without changing a byte.
pub(crate) fn populate(mapped: &Mapped, offset: u64, bytes: u64) -> rustix::io::Result<()> {
    let Ok(part) = mapped.region().sub(offset, bytes) else { return Err(Errno::RANGE) };
    loop {
        // SAFETY: the range lies in the mapping, as just checked; populating changes no byte.
        match unsafe { madvise(part.base().as_ptr().cast(), part.len(), Advice::LinuxPopulateWrite) } {
            Err(Errno::INTR | Errno::AGAIN) => {}
            done => return done,
        }
    }
}
