//! Sockets without buffers in between: vectors of raw memory in and out, and waits that end.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use memcache_types::{Piece, ScatterList};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::error::TransportError;

/// Most runs of memory handed to the kernel at once.
const RUNS_MAX: usize = 512;

/// Runs of memory for one system call.
///
/// Holds plain addresses: whoever adds one answers for it until the call is made (see [`send`] and [`receive`]).
#[derive(Debug, Default)]
pub(crate) struct Runs {
    runs: Vec<libc::iovec>,
}

impl Runs {
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
    }

    pub(crate) fn is_full(&self) -> bool {
        self.runs.len() >= RUNS_MAX
    }

    pub(crate) fn push(&mut self, start: *mut u8, bytes: usize) {
        if bytes > 0 {
            self.runs.push(libc::iovec { iov_base: start.cast(), iov_len: bytes });
        }
    }

    pub(crate) fn push_slice(&mut self, bytes: &[u8]) {
        self.push(bytes.as_ptr().cast_mut(), bytes.len());
    }
}

/// How far a transfer has come within an ordered list of pieces.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PieceCursor {
    index: usize,
    /// Bytes of the current piece, and of all pieces, that lie behind.
    done: u64,
    moved: u64,
}

impl PieceCursor {
    /// Bytes that lie behind.
    pub(crate) const fn moved(&self) -> u64 {
        self.moved
    }

    /// Adds what is left of `pieces`, at most `limit` bytes, as far as it fits; true if all of it did.
    pub(crate) fn fill(&self, pieces: &[Piece], mut limit: u64, runs: &mut Runs) -> bool {
        let mut done = self.done;
        for piece in &pieces[self.index..] {
            if runs.is_full() || limit == 0 {
                return false;
            }
            let (address, bytes) = (piece.address + done, piece.bytes - done);
            let part = bytes.min(limit);
            #[allow(clippy::cast_possible_truncation, reason = "addresses and lengths of this process fit in a usize")]
            let (start, length) = (address as usize, part as usize);
            runs.push(std::ptr::with_exposed_provenance_mut(start), length);
            if part < bytes {
                return false;
            }
            limit -= part;
            done = 0;
        }
        true
    }

    /// The next `bytes` bytes of `pieces`, or what there is of them.
    pub(crate) fn ahead(&self, pieces: &[Piece], mut bytes: u64) -> ScatterList {
        let (mut list, mut done) = (ScatterList::new(), self.done);
        for piece in &pieces[self.index..] {
            let part = (piece.bytes - done).min(bytes);
            if part == 0 {
                break;
            }
            list.push(piece.address + done, part);
            bytes -= part;
            done = 0;
        }
        list
    }

    /// Moves on by up to `bytes` bytes and returns how many of them lie after the last piece.
    pub(crate) fn advance(&mut self, pieces: &[Piece], mut bytes: u64) -> u64 {
        while let Some(piece) = pieces.get(self.index) {
            let left = piece.bytes - self.done;
            if bytes < left {
                self.done += bytes;
                self.moved += bytes;
                return 0;
            }
            bytes -= left;
            self.moved += left;
            self.index += 1;
            self.done = 0;
        }
        bytes
    }

    #[cfg(test)]
    fn is_done(&self, pieces: &[Piece]) -> bool {
        self.index == pieces.len()
    }
}

/// Whether more bytes of the same frame follow at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum More {
    Follows,
    Nothing,
}

/// Sends from `runs` as much as the socket takes now; `None` if it takes nothing.
///
/// # Safety
/// All runs are readable. Others may write to them meanwhile.
pub(crate) unsafe fn send(fd: BorrowedFd<'_>, runs: &Runs, more: More) -> io::Result<Option<usize>> {
    let message = message(runs);
    let more = if more == More::Follows { libc::MSG_MORE } else { 0 };
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | more;
    // SAFETY: `message` points to `runs`, whose entries are readable by this function's contract.
    without_waiting(|| unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) })
}

/// Receives into `runs` what has come; `None` if nothing has, `Some(0)` at the end of the stream.
///
/// # Safety
/// All runs are writable, and nothing in this process holds a reference to them.
pub(crate) unsafe fn receive(fd: BorrowedFd<'_>, runs: &Runs) -> io::Result<Option<usize>> {
    let mut message = message(runs);
    // SAFETY: `message` points to `runs`, whose entries are writable by this function's contract.
    without_waiting(|| unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) })
}

fn message(runs: &Runs) -> libc::msghdr {
    // SAFETY: a msghdr of zeros is a message without address, data and control.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = runs.runs.as_ptr().cast_mut();
    message.msg_iovlen = runs.runs.len();
    message
}

/// The bytes that a call moved; `None` if it would have had to wait.
fn without_waiting(mut call: impl FnMut() -> isize) -> io::Result<Option<usize>> {
    loop {
        if let Ok(moved) = usize::try_from(call()) {
            return Ok(Some(moved));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Ok(None),
            _ => return Err(error),
        }
    }
}

/// Waits until one of `fds` is ready; false if the deadline came first.
pub(crate) fn wait_any(fds: &mut [PollFd<'_>], deadline: Instant) -> Result<bool, TransportError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(fds, Some(&timespec(left))) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(TransportError::from_io("poll", &error.into())),
        }
    }
}

/// Waits until `fd` is ready for `interest` (or broken), or fails with [`TransportError::Timeout`].
pub(crate) fn wait_for(fd: BorrowedFd<'_>, interest: PollFlags, deadline: Instant) -> Result<(), TransportError> {
    if wait_any(&mut [PollFd::from_borrowed_fd(fd, interest)], deadline)? {
        Ok(())
    } else {
        Err(TransportError::Timeout)
    }
}

/// Whether an idle connection is still whole: nothing to read, not hung up.
pub(crate) fn is_quiet(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN | PollFlags::RDHUP)];
    matches!(poll(&mut fds, Some(&timespec(Duration::ZERO))), Ok(0))
}

fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 })
}

/// Wakes a thread that polls.
#[derive(Debug)]
pub(crate) struct Waker(OwnedFd);

impl Waker {
    pub(crate) fn new() -> Result<Self, TransportError> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map(Self)
            .map_err(|error| TransportError::from_io("eventfd", &error.into()))
    }

    pub(crate) fn wake(&self) {
        // Fails only when the counter is full, which means that it has been woken long ago.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_walks_over_pieces_in_any_steps() {
        let pieces = [(100u64, 3u64), (200, 1), (300, 6)].map(|(address, bytes)| Piece { address, bytes });
        for step in 1..=12 {
            let (mut cursor, mut moved, mut beyond) = (PieceCursor::default(), 0, 0);
            while !cursor.is_done(&pieces) {
                let mut runs = Runs::default();
                assert!(cursor.fill(&pieces, u64::MAX, &mut runs));
                assert_eq!(cursor.ahead(&pieces, 2).bytes(), 2.min(10 - moved));
                let left: usize = runs.runs.iter().map(|run| run.iov_len).sum();
                assert_eq!(left as u64, 10 - moved, "step {step}");
                runs.clear();
                assert_eq!(cursor.fill(&pieces, step, &mut runs), left as u64 <= step, "step {step}");
                let limited: usize = runs.runs.iter().map(|run| run.iov_len).sum();
                assert_eq!(limited as u64, step.min(left as u64), "step {step}");
                beyond = cursor.advance(&pieces, step);
                moved += step;
                assert_eq!(cursor.moved(), moved.min(10), "step {step}");
            }
            assert_eq!(moved - beyond, 10, "step {step}");
        }
    }
}
