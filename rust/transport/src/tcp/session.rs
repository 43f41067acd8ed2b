//! One connection of the data server: requests in, replies out, bytes straight between socket and segment.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::{RawRegion, Segment};
use memcache_types::limits::TRAILER_LEN;
use rustix::event::PollFlags;

use crate::error::TransportError;
use crate::net::{More, Runs, receive, send, wait_for};
use crate::ops::{check_range, view};
use crate::tcp::frame::{NotAFrame, Op, REQUEST_BYTES, Reply, Request, Status, TEXT_BYTES_MAX};

/// A connection that asks for nothing this long is closed; the peer opens a new one when it needs one.
const IDLE: Duration = Duration::from_secs(300);
/// Longest a single transfer may take, whatever the peer's budget says.
const TRANSFER_MAX: Duration = Duration::from_secs(120);
/// A request header that has begun must be whole within this.
const HEADER_MAX: Duration = Duration::from_secs(10);

/// Serves one peer until it hangs up, misbehaves or is hung up on.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) segment: Arc<Segment>,
    pub(crate) token: u128,
}

/// Why a session ends.
enum End {
    /// The peer hung up between requests, or was idle for long.
    Quiet,
    Broken(TransportError),
    Hostile(NotAFrame),
}

impl From<TransportError> for End {
    fn from(error: TransportError) -> Self {
        Self::Broken(error)
    }
}

impl Session {
    pub(crate) fn run(&self, peer: &str) {
        loop {
            match self.serve_one() {
                Ok(()) => {}
                Err(End::Quiet) => return,
                Err(End::Broken(error)) => {
                    tracing::debug!(peer, %error, "data connection ended");
                    return;
                }
                Err(End::Hostile(NotAFrame(what))) => {
                    tracing::warn!(peer, what, "closed a data connection that does not speak the protocol");
                    return;
                }
            }
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn serve_one(&self) -> Result<(), End> {
        let mut header = [0; REQUEST_BYTES];
        wait_for(self.fd(), PollFlags::IN, Instant::now() + IDLE).map_err(|_| End::Quiet)?;
        if !self.receive_exact(&mut header, Instant::now() + HEADER_MAX)? {
            return Err(End::Quiet);
        }
        let request = Request::decode(&header).map_err(End::Hostile)?;
        let deadline = Instant::now() + Duration::from_millis(u64::from(request.budget_ms)).min(TRANSFER_MAX);
        if request.token != self.token {
            self.refuse(&request, Status::Refused, "this is not the memory you look for", deadline)?;
            return Err(End::Hostile(NotAFrame("unknown token")));
        }
        match request.op {
            Op::Ping => self.reply(&Reply { status: Status::Done, id: request.id, body_bytes: 0 }, deadline)?,
            Op::Read => self.read(&request, deadline)?,
            Op::Write => self.write(&request, deadline)?,
        }
        Ok(())
    }

    fn extent(&self, request: &Request) -> Result<RawRegion<'_>, TransportError> {
        check_range(request.offset, request.extent_bytes, request.payload_bytes, self.segment.bytes())?;
        view(self.segment.region(), request.offset, request.extent_bytes)
    }

    fn read(&self, request: &Request, deadline: Instant) -> Result<(), End> {
        let extent = match self.extent(request) {
            Ok(extent) => extent,
            Err(error) => return self.refuse(request, Status::Invalid, &error.to_string(), deadline),
        };
        let reply = Reply { status: Status::Done, id: request.id, body_bytes: request.payload_bytes }.encode();
        let payload = view(extent, 0, request.payload_bytes)?;
        self.send_all(&reply, payload, More::Follows, deadline)?;
        // The kernel has copied the last byte of the payload: what the trailer says now holds for all of it.
        let trailer = extent.load_trailer();
        self.send_all(&trailer, view(extent, 0, 0)?, More::Nothing, deadline)?;
        Ok(())
    }

    fn write(&self, request: &Request, deadline: Instant) -> Result<(), End> {
        let extent = match self.extent(request) {
            Ok(extent) => extent,
            Err(error) => {
                // The payload is on its way whatever we say. A sane length is read and dropped, so that the
                // requests behind it live on.
                self.refuse(request, Status::Invalid, &error.to_string(), deadline)?;
                if request.payload_bytes > self.segment.bytes() {
                    return Err(End::Hostile(NotAFrame("a payload longer than the segment")));
                }
                return self.discard(request.payload_bytes + TRAILER_LEN as u64, deadline);
            }
        };
        extent.retract_trailer();
        self.receive_payload(view(extent, 0, request.payload_bytes)?, deadline)?;
        let mut trailer = [0; TRAILER_LEN];
        if !self.receive_exact(&mut trailer, deadline)? {
            return Err(TransportError::PeerGone.into());
        }
        extent.publish_trailer(&trailer);
        self.reply(&Reply { status: Status::Done, id: request.id, body_bytes: 0 }, deadline)?;
        Ok(())
    }

    fn reply(&self, reply: &Reply, deadline: Instant) -> Result<(), TransportError> {
        self.send_all(&reply.encode(), view(self.segment.region(), 0, 0)?, More::Nothing, deadline)
    }

    fn refuse(&self, request: &Request, status: Status, why: &str, deadline: Instant) -> Result<(), End> {
        let text = &why.as_bytes()[..why.len().min(TEXT_BYTES_MAX)];
        let reply = Reply { status, id: request.id, body_bytes: text.len() as u64 };
        let bytes = [&reply.encode()[..], text].concat();
        self.send_all(&bytes, view(self.segment.region(), 0, 0)?, More::Nothing, deadline)?;
        Ok(())
    }

    /// Sends `head`, then all of `body`.
    fn send_all(&self, head: &[u8], body: RawRegion<'_>, more: More, deadline: Instant) -> Result<(), TransportError> {
        let (mut done, total) = (0, head.len() + body.len());
        let mut runs = Runs::default();
        while done < total {
            runs.clear();
            if done < head.len() {
                runs.push_slice(&head[done..]);
            }
            let sent_of_body = done.saturating_sub(head.len());
            // SAFETY: sent_of_body <= body.len(), so this stays in the region or is one past its end.
            runs.push(unsafe { body.base().add(sent_of_body) }.as_ptr(), body.len() - sent_of_body);
            // SAFETY: `head` is borrowed and the region stays mapped while `body` lives.
            match unsafe { send(self.fd(), &runs, more) }.map_err(|error| TransportError::from_io("sendmsg", &error))? {
                Some(sent) => done += sent,
                None => wait_for(self.fd(), PollFlags::OUT, deadline)?,
            }
        }
        Ok(())
    }

    /// Receives `buffer.len()` bytes; false if the stream ends before the first of them.
    fn receive_exact(&self, buffer: &mut [u8], deadline: Instant) -> Result<bool, TransportError> {
        // SAFETY: an exclusively borrowed buffer, of this length.
        unsafe { self.receive_raw(buffer.as_mut_ptr(), buffer.len(), deadline) }
    }

    fn receive_payload(&self, payload: RawRegion<'_>, deadline: Instant) -> Result<(), TransportError> {
        // SAFETY: the region stays mapped while `payload` lives, and is never seen through a reference.
        let whole = unsafe { self.receive_raw(payload.base().as_ptr(), payload.len(), deadline) }?;
        if whole || payload.is_empty() { Ok(()) } else { Err(TransportError::PeerGone) }
    }

    /// # Safety
    /// `bytes` bytes from `start` are writable, and nothing in this process holds another reference to them.
    unsafe fn receive_raw(&self, start: *mut u8, bytes: usize, deadline: Instant) -> Result<bool, TransportError> {
        let mut done = 0;
        let mut runs = Runs::default();
        while done < bytes {
            runs.clear();
            // SAFETY: done < bytes, so this stays inside.
            runs.push(unsafe { start.add(done) }, bytes - done);
            // SAFETY: writable by this function's contract.
            match unsafe { receive(self.fd(), &runs) }.map_err(|error| TransportError::from_io("recvmsg", &error))? {
                Some(0) if done == 0 => return Ok(false),
                Some(0) => return Err(TransportError::PeerGone),
                Some(received) => done += received,
                None => wait_for(self.fd(), PollFlags::IN, deadline)?,
            }
        }
        Ok(true)
    }

    fn discard(&self, mut bytes: u64, deadline: Instant) -> Result<(), End> {
        let mut sink = [0; 16 << 10];
        while bytes > 0 {
            let part = usize::try_from(bytes).unwrap_or(usize::MAX).min(sink.len());
            if !self.receive_exact(&mut sink[..part], deadline)? {
                return Err(TransportError::PeerGone.into());
            }
            bytes -= part as u64;
        }
        Ok(())
    }
}
