//! How soon a thread that was woken runs, where more threads than processors want to.

use std::io;
use std::mem::size_of;

/// The shortest turn that Linux gives, in nanoseconds.
const SHORT_NS: u64 = 100_000;

/// Has this thread take short turns: it is given no more of the processors, but its turn comes sooner, for a thread that
/// wakes goes before those with longer turns. Otherwise it waits for one of theirs to end, which takes up to 4 ms.
/// For a thread that works for some microseconds each time it is woken, while others wait for what it does.
///
/// Linux knows this from 6.12 on and ignores it before. True: it was asked for; false: whoever started the thread chose another
/// policy for it, which stays. Threads that this one starts later take short turns as well.
pub fn take_short_turns() -> io::Result<bool> {
    let mut turns = turns()?;
    if turns.sched_policy != libc::SCHED_OTHER.cast_unsigned() {
        return Ok(false);
    }
    turns.sched_runtime = SHORT_NS;
    // SAFETY: a system call that reads a structure that lives here; 0 is this thread, and there are no flags.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const turns, 0) })?;
    Ok(true)
}

/// What was chosen for this thread so far.
fn turns() -> io::Result<libc::sched_attr> {
    // SAFETY: a structure of numbers, all of which may be zero.
    let mut turns: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: a system call that writes to a structure that lives here, and no more than its size; 0 is this thread.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut turns, size_of::<libc::sched_attr>(), 0) })?;
    Ok(turns)
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;

    #[test]
    fn only_the_length_of_a_turn_changes_and_only_here() {
        // On a thread of its own: the others of this process keep what they have.
        std::thread::spawn(|| {
            let before = turns().unwrap();
            assert!(take_short_turns().unwrap());
            let after = turns().unwrap();
            assert_eq!((after.sched_policy, after.sched_nice), (before.sched_policy, before.sched_nice));
            // Kernels that do not know it say 0 before and after.
            assert_eq!(after.sched_runtime, if before.sched_runtime == 0 { 0 } else { SHORT_NS });
        })
        .join()
        .unwrap();
        assert_ne!(turns().unwrap().sched_runtime, SHORT_NS);
    }

    #[test]
    fn another_policy_stays() {
        std::thread::spawn(|| {
            let mut batch = turns().unwrap();
            batch.sched_policy = libc::SCHED_BATCH.cast_unsigned();
            // SAFETY: as in `take_short_turns`.
            check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const batch, 0) }).unwrap();
            assert!(!take_short_turns().unwrap());
            assert_eq!(turns().unwrap().sched_policy, batch.sched_policy);
        })
        .join()
        .unwrap();
    }
}
