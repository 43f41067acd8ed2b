//! One connection of the data server: requests in, replies out.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::{RawRegion, Segment};
use memcache_types::limits::TRAILER_LEN;

use crate::error::TransportError;
use crate::net::More;
use crate::ops::{check_range, view};
use crate::relay::{RELAY_BODY_MAX, RelayHost, RelaySession, decode_request, encode_reply};
use crate::tcp::frame::{NotAFrame, Op, REQUEST_BYTES, Reply, Request, Status, TEXT_BYTES_MAX};
use crate::tcp::stream::Stream;

/// A connection that asks for nothing this long is closed; the peer opens a new one when it needs one.
const IDLE: Duration = Duration::from_secs(300);
/// Longest a single transfer may take, whatever the peer's budget says.
const TRANSFER_MAX: Duration = Duration::from_secs(120);
/// A request header that has begun must be whole within this.
const HEADER_MAX: Duration = Duration::from_secs(10);
/// Payloads up to this many bytes are sent together with others; a copy is cheaper than a system call of their own.
const SMALL_BYTES: u64 = 16 << 10;

/// Serves one peer until it hangs up, misbehaves or is hung up on.
#[derive(Debug)]
pub(crate) struct Session {
    stream: Stream,
    segment: Arc<Segment>,
    token: u128,
    /// Whether the peer has shown the token. Until then it is not waited for long.
    is_known: bool,
    /// Where the owner relays through a device: what this peer has of it.
    relay: Option<RelaySession>,
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
    pub(crate) fn new(
        socket: Arc<OwnedFd>,
        segment: Arc<Segment>,
        token: u128,
        relay: Option<Arc<dyn RelayHost>>,
    ) -> Self {
        Self { stream: Stream::new(socket), segment, token, is_known: false, relay: relay.map(RelaySession::new) }
    }

    pub(crate) fn run(&mut self, peer: &str) {
        let segment = Arc::clone(&self.segment);
        loop {
            match self.serve_one(segment.region()) {
                Ok(()) => {}
                Err(End::Quiet) => {
                    // A peer that only closed its sending half still gets what it asked for.
                    let _ = self.stream.flush(More::Nothing, Instant::now() + HEADER_MAX);
                    return;
                }
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

    fn serve_one(&mut self, region: RawRegion<'_>) -> Result<(), End> {
        let patience = if self.is_known { IDLE } else { HEADER_MAX };
        if !self.stream.has_more(Instant::now() + patience).map_err(|_| End::Quiet)? {
            return Err(End::Quiet);
        }
        let mut header = [0; REQUEST_BYTES];
        self.stream.read_exact(&mut header, Instant::now() + HEADER_MAX)?;
        let request = Request::decode(&header).map_err(End::Hostile)?;
        let deadline = Instant::now() + Duration::from_millis(u64::from(request.budget_ms)).min(TRANSFER_MAX);
        if request.token != self.token {
            self.refuse(&request, Status::Refused, "this is not the memory you look for", deadline)?;
            return Err(End::Hostile(NotAFrame("unknown token")));
        }
        self.is_known = true;
        match request.op {
            Op::Ping => self.done(&request, 0, deadline)?,
            Op::Read => match extent(region, &request) {
                Ok(extent) => self.read(&request, extent, deadline)?,
                Err(error) => self.refuse(&request, Status::Invalid, &error.to_string(), deadline)?,
            },
            Op::Write => match extent(region, &request) {
                Ok(extent) => self.write(&request, extent, deadline)?,
                Err(error) => self.refuse_write(&request, region.bytes(), &error, deadline)?,
            },
            Op::Relay => self.relay(&request, region, deadline)?,
        }
        Ok(())
    }

    fn read(&mut self, request: &Request, extent: RawRegion<'_>, deadline: Instant) -> Result<(), TransportError> {
        self.done(request, request.payload_bytes, deadline)?;
        let payload = view(extent, request.start, request.payload_bytes)?;
        if request.payload_bytes <= SMALL_BYTES {
            self.stream.write_copy(payload, deadline)?;
        } else {
            self.stream.write_region(payload, deadline)?;
        }
        // The last byte of the payload has been copied: what the trailer says now holds for all of it.
        let trailer = extent.load_trailer();
        self.stream.write(&trailer, deadline)
    }

    fn write(&mut self, request: &Request, extent: RawRegion<'_>, deadline: Instant) -> Result<(), TransportError> {
        extent.retract_trailer();
        self.stream.read_region(view(extent, request.start, request.payload_bytes)?, deadline)?;
        let mut trailer = [0; TRAILER_LEN];
        self.stream.read_exact(&mut trailer, deadline)?;
        extent.publish_trailer(&trailer);
        self.done(request, 0, deadline)
    }

    fn relay(&mut self, request: &Request, region: RawRegion<'_>, deadline: Instant) -> Result<(), End> {
        let length = usize::try_from(request.payload_bytes).unwrap_or(usize::MAX);
        if length > RELAY_BODY_MAX {
            self.refuse(request, Status::Invalid, "a relay request longer than any", deadline)?;
            return Err(End::Hostile(NotAFrame("a relay request longer than any")));
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body, deadline)?;
        let Some(relay) = &mut self.relay else {
            return Ok(self.refuse(request, Status::Invalid, "this owner offers no relay", deadline)?);
        };
        let (clock_ns, asked) = decode_request(&body).map_err(End::Hostile)?;
        match relay.serve(clock_ns, &asked, region, deadline) {
            Ok(None) => return Ok(()),
            Ok(Some(answer)) => {
                let body = encode_reply(relay.clock_ns(), &answer);
                self.done(request, body.len() as u64, deadline)?;
                self.stream.write(&body, deadline)?;
            }
            Err(error) => self.refuse(request, Status::Invalid, &error.to_string(), deadline)?,
        }
        // At once: the peer's device is to copy while this one fills the next slot.
        Ok(self.stream.flush(More::Nothing, deadline)?)
    }

    /// Answers a write that makes no sense. Its payload is on its way whatever the answer: a sane length is read and
    /// dropped, so that the requests behind it live on.
    fn refuse_write(
        &mut self,
        request: &Request,
        region_bytes: u64,
        error: &TransportError,
        deadline: Instant,
    ) -> Result<(), End> {
        self.refuse(request, Status::Invalid, &error.to_string(), deadline)?;
        if request.payload_bytes > region_bytes {
            return Err(End::Hostile(NotAFrame("a payload longer than the segment")));
        }
        Ok(self.stream.discard(request.payload_bytes + TRAILER_LEN as u64, deadline)?)
    }

    fn done(&mut self, request: &Request, body_bytes: u64, deadline: Instant) -> Result<(), TransportError> {
        self.stream.write(&Reply { status: Status::Done, id: request.id, body_bytes }.encode(), deadline)
    }

    fn refuse(
        &mut self,
        request: &Request,
        status: Status,
        why: &str,
        deadline: Instant,
    ) -> Result<(), TransportError> {
        let text = &why.as_bytes()[..why.len().min(TEXT_BYTES_MAX)];
        let reply = Reply { status, id: request.id, body_bytes: text.len() as u64 };
        self.stream.write(&[&reply.encode()[..], text].concat(), deadline)?;
        self.stream.flush(More::Nothing, deadline)
    }
}

/// The extent a request names, if it makes sense: what it moves must end before the trailer.
fn extent<'a>(region: RawRegion<'a>, request: &Request) -> Result<RawRegion<'a>, TransportError> {
    let end = request.start.saturating_add(request.payload_bytes);
    check_range(request.offset, request.extent_bytes, end, region.bytes())?;
    view(region, request.offset, request.extent_bytes)
}
