//! The server's end of a connection: small things collected, large ones straight between socket and memory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use memcache_memory::RawRegion;
use rustix::event::PollFlags;

use crate::error::TransportError;
use crate::net::{More, Runs, receive, send, wait_for};

/// Bytes read ahead at most. What of a payload comes along with its header is copied once more; the rest is not.
const INPUT_BYTES: usize = 8 << 10;
/// Bytes of replies collected at most before they are sent.
const OUTPUT_BYTES: usize = 64 << 10;

/// A non-blocking socket with a little input read ahead and some output held back.
///
/// Output is sent at the latest when the stream would have to wait for input.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: Arc<OwnedFd>,
    input: Box<[u8; INPUT_BYTES]>,
    /// Where unread input starts and ends.
    unread: (usize, usize),
    output: Vec<u8>,
    runs: Runs,
}

impl Stream {
    pub(crate) fn new(socket: Arc<OwnedFd>) -> Self {
        Self {
            socket,
            input: Box::new([0; INPUT_BYTES]),
            unread: (0, 0),
            output: Vec::with_capacity(OUTPUT_BYTES),
            runs: Runs::default(),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Waits for the first byte of something; false if the peer has hung up instead.
    pub(crate) fn has_more(&mut self, deadline: Instant) -> Result<bool, TransportError> {
        if self.unread.0 < self.unread.1 {
            return Ok(true);
        }
        self.refill(deadline)
    }

    /// Reads exactly `buffer.len()` bytes.
    pub(crate) fn read_exact(&mut self, buffer: &mut [u8], deadline: Instant) -> Result<(), TransportError> {
        let mut done = 0;
        while done < buffer.len() {
            let part = self.take(buffer.len() - done);
            buffer[done..done + part.len()].copy_from_slice(part);
            done += part.len();
            if done < buffer.len() && !self.refill(deadline)? {
                return Err(TransportError::PeerGone);
            }
        }
        Ok(())
    }

    /// Reads all of `target`, the most of it without another copy.
    pub(crate) fn read_region(&mut self, target: RawRegion<'_>, deadline: Instant) -> Result<(), TransportError> {
        let part = self.take(target.len());
        target.write_from(part);
        let mut done = part.len();
        while done < target.len() {
            self.runs.clear();
            // SAFETY: done < target.len(), so this stays inside.
            self.runs.push(unsafe { target.base().add(done) }.as_ptr(), target.len() - done);
            // SAFETY: the region stays mapped while `target` lives, and is never seen through a reference.
            match unsafe { receive(self.socket.as_fd(), &self.runs) } {
                Ok(Some(0)) => return Err(TransportError::PeerGone),
                Ok(Some(received)) => done += received,
                Ok(None) => self.wait_for_input(deadline)?,
                Err(error) => return Err(TransportError::from_io("recvmsg", &error)),
            }
        }
        Ok(())
    }

    /// Reads `bytes` bytes and drops them.
    pub(crate) fn discard(&mut self, mut bytes: u64, deadline: Instant) -> Result<(), TransportError> {
        while bytes > 0 {
            let part = self.take(usize::try_from(bytes).unwrap_or(usize::MAX)).len();
            bytes -= part as u64;
            if bytes > 0 && !self.refill(deadline)? {
                return Err(TransportError::PeerGone);
            }
        }
        Ok(())
    }

    /// Holds these bytes back until there are more.
    pub(crate) fn write(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), TransportError> {
        if self.output.len() + bytes.len() > OUTPUT_BYTES {
            self.flush(More::Follows, deadline)?;
        }
        self.output.extend_from_slice(bytes);
        Ok(())
    }

    /// Holds a copy of `source` back.
    pub(crate) fn write_copy(&mut self, source: RawRegion<'_>, deadline: Instant) -> Result<(), TransportError> {
        if self.output.len() + source.len() > OUTPUT_BYTES {
            self.flush(More::Follows, deadline)?;
        }
        let start = self.output.len();
        self.output.resize(start + source.len(), 0);
        source.read_into(&mut self.output[start..]);
        Ok(())
    }

    /// Sends what is held back and then all of `source`, without a copy. When it returns, the kernel has taken the
    /// last byte.
    pub(crate) fn write_region(&mut self, source: RawRegion<'_>, deadline: Instant) -> Result<(), TransportError> {
        let head = self.output.len();
        let (mut done, total) = (0, head + source.len());
        while done < total {
            self.runs.clear();
            self.runs.push_slice(&self.output[done.min(head)..]);
            let sent = done.saturating_sub(head);
            // SAFETY: sent <= source.len(), so this stays in the region or is one past its end.
            self.runs.push(unsafe { source.base().add(sent) }.as_ptr(), source.len() - sent);
            // SAFETY: the output is not touched meanwhile and the region stays mapped while `source` lives.
            match unsafe { send(self.socket.as_fd(), &self.runs, More::Follows) } {
                Ok(Some(sent)) => done += sent,
                Ok(None) => wait_for(self.fd(), PollFlags::OUT, deadline)?,
                Err(error) => return Err(TransportError::from_io("sendmsg", &error)),
            }
        }
        self.output.clear();
        Ok(())
    }

    /// Sends what is held back.
    pub(crate) fn flush(&mut self, more: More, deadline: Instant) -> Result<(), TransportError> {
        let mut done = 0;
        while done < self.output.len() {
            self.runs.clear();
            self.runs.push_slice(&self.output[done..]);
            // SAFETY: the output is not touched meanwhile.
            match unsafe { send(self.socket.as_fd(), &self.runs, more) } {
                Ok(Some(sent)) => done += sent,
                Ok(None) => wait_for(self.fd(), PollFlags::OUT, deadline)?,
                Err(error) => return Err(TransportError::from_io("sendmsg", &error)),
            }
        }
        self.output.clear();
        Ok(())
    }

    /// Up to `bytes` bytes of what was read ahead.
    fn take(&mut self, bytes: usize) -> &[u8] {
        let (start, end) = self.unread;
        let part = bytes.min(end - start);
        self.unread.0 += part;
        &self.input[start..start + part]
    }

    /// Reads ahead, waiting if nothing has come; false at the end of the stream. Call it when all input is taken.
    fn refill(&mut self, deadline: Instant) -> Result<bool, TransportError> {
        loop {
            self.runs.clear();
            self.runs.push(self.input.as_mut_ptr(), INPUT_BYTES);
            // SAFETY: the input buffer, which nobody looks at meanwhile.
            match unsafe { receive(self.socket.as_fd(), &self.runs) } {
                Ok(Some(received)) => {
                    self.unread = (0, received);
                    return Ok(received > 0);
                }
                Ok(None) => self.wait_for_input(deadline)?,
                Err(error) => return Err(TransportError::from_io("recvmsg", &error)),
            }
        }
    }

    fn wait_for_input(&mut self, deadline: Instant) -> Result<(), TransportError> {
        self.flush(More::Nothing, deadline)?;
        wait_for(self.fd(), PollFlags::IN, deadline)
    }
}
