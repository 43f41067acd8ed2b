//! The peer's side of a relay: connections to an owner, and the requests of one transfer over one of them.

use std::collections::VecDeque;
use std::fmt;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::sockopt::set_socket_linger;

use super::frame::{RELAY_BODY_MAX, decode_reply, encode_request};
use super::{RelayOffer, RelayReply, RelayRequest};
use crate::error::TransportError;
use crate::net::{More, is_quiet};
use crate::protocol::Protocol;
use crate::tcp::client::connect_to;
use crate::tcp::frame::{NotAFrame, Op, REPLY_BYTES, Reply, Request, Status};
use crate::tcp::stream::Stream;

/// After an owner could not say what it offers it is not asked again for this long.
const PAUSE: Duration = Duration::from_secs(1);
/// Idle connections kept.
const IDLE_MAX: usize = 8;

/// An owner that relays, as its peers reach it. Opens nothing until it is used.
pub struct RelayClient {
    address: String,
    token: u128,
    /// What the owner's descriptor calls its device.
    device: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    idle: Vec<Connection>,
    offer: Option<Arc<RelayOffer>>,
    /// When not to ask before, and why.
    failure: Option<(Instant, TransportError)>,
}

/// Between calls: nothing is under way on it.
struct Connection {
    socket: Arc<OwnedFd>,
    next_id: u64,
}

impl RelayClient {
    /// The relay behind the data server at `address` (`host:port`), over the device of this name.
    pub fn new(address: &str, token: u128, device: &str) -> Self {
        Self { address: address.to_owned(), token, device: device.to_owned(), state: Mutex::default() }
    }

    /// The owner's device, such as `twin:0`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// What the owner offers; asked once.
    ///
    /// # Errors
    /// A [`TransportError`]; the same comes back at once for a second.
    pub fn offer(self: &Arc<Self>, deadline: Instant) -> Result<Arc<RelayOffer>, TransportError> {
        {
            let state = self.state.lock();
            match (&state.offer, &state.failure) {
                (Some(offer), _) => return Ok(Arc::clone(offer)),
                (None, Some((until, error))) if Instant::now() < *until => return Err(error.clone()),
                _ => {}
            }
        }
        // Without the lock: an owner that does not answer holds up only those who ask.
        let asked = self.ask(deadline);
        let mut state = self.state.lock();
        match asked {
            Ok(offer) => Ok(Arc::clone(state.offer.get_or_insert_with(|| Arc::new(offer)))),
            Err(error) => {
                state.failure = Some((Instant::now() + PAUSE, error.clone()));
                Err(error)
            }
        }
    }

    fn ask(self: &Arc<Self>, deadline: Instant) -> Result<RelayOffer, TransportError> {
        let mut call = self.call(deadline)?;
        call.send(0, &RelayRequest::Offer, deadline)?;
        match call.receive(deadline)?.1 {
            RelayReply::Offer(offer) => {
                call.release(deadline);
                Ok(offer)
            }
            other => Err(out_of_turn(&other)),
        }
    }

    /// A connection for one transfer.
    ///
    /// # Errors
    /// [`TransportError::PeerGone`], [`TransportError::Timeout`] or what the system says.
    pub fn call(self: &Arc<Self>, deadline: Instant) -> Result<RelayCall, TransportError> {
        let idle = {
            let mut state = self.state.lock();
            // One that the owner closed meanwhile is replaced without a word.
            std::iter::from_fn(|| state.idle.pop()).find(|connection| is_quiet(connection.socket.as_fd()))
        };
        let connection = match idle {
            Some(connection) => connection,
            None => self.connect(deadline)?,
        };
        let stream = Some(Stream::new(Arc::clone(&connection.socket)));
        Ok(RelayCall { client: Arc::clone(self), connection, stream, waiting: VecDeque::new() })
    }

    fn connect(&self, deadline: Instant) -> Result<Connection, TransportError> {
        let unavailable = |why: String| TransportError::Unavailable { protocol: Protocol::HostTcp, why };
        let address = (self.address.to_socket_addrs())
            .map_err(|error| unavailable(format!("cannot resolve {}: {error}", self.address)))?
            .next()
            .ok_or_else(|| unavailable(format!("{} has no address", self.address)))?;
        let socket = connect_to(address, deadline)?;
        // What was said last, that the staging is free, shall arrive.
        set_socket_linger(&socket, None).map_err(|error| TransportError::from_io("setsockopt", &error.into()))?;
        Ok(Connection { socket: Arc::new(socket), next_id: 1 })
    }
}

impl fmt::Debug for RelayClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayClient")
            .field("address", &self.address)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// The requests of one transfer. Answers come in the order of the requests; several may be under way.
///
/// If it is dropped without [`release`](Self::release), the owner keeps what was leased until the deadlines of all
/// requests have passed.
pub struct RelayCall {
    client: Arc<RelayClient>,
    connection: Connection,
    /// `None` once it has failed.
    stream: Option<Stream>,
    /// Requests without an answer so far.
    waiting: VecDeque<u64>,
}

impl RelayCall {
    /// Appends a request, made at this time of a simulated device. It is sent by [`flush`](Self::flush), or when an answer
    /// is waited for.
    ///
    /// # Errors
    /// A [`TransportError`]: then the connection is of no use any more.
    pub fn send(&mut self, clock_ns: u64, request: &RelayRequest, deadline: Instant) -> Result<(), TransportError> {
        let stream = self.stream.as_mut().ok_or(TransportError::PeerGone)?;
        let body = encode_request(clock_ns, request);
        let budget = deadline.saturating_duration_since(Instant::now());
        let header = Request {
            op: Op::Relay,
            id: self.connection.next_id,
            token: self.client.token,
            offset: 0,
            payload_bytes: body.len() as u64,
            extent_bytes: 0,
            start: 0,
            budget_ms: u32::try_from(budget.as_millis()).unwrap_or(u32::MAX),
        };
        let sent = stream.write(&header.encode(), deadline).and_then(|()| stream.write(&body, deadline));
        if let Err(error) = sent {
            self.stream = None;
            return Err(error);
        }
        if *request != RelayRequest::Release {
            self.waiting.push_back(self.connection.next_id);
        }
        self.connection.next_id += 1;
        Ok(())
    }

    /// Sends what was appended.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn flush(&mut self, deadline: Instant) -> Result<(), TransportError> {
        let stream = self.stream.as_mut().ok_or(TransportError::PeerGone)?;
        let flushed = stream.flush(More::Nothing, deadline);
        if flushed.is_err() {
            self.stream = None;
        }
        flushed
    }

    /// The answer to the oldest request without one, and when it was sent in the time of a simulated device.
    ///
    /// # Errors
    /// [`TransportError::InvalidOp`] or [`TransportError::Refused`] with what the owner said; anything else: then the
    /// connection is of no use any more.
    pub fn receive(&mut self, deadline: Instant) -> Result<(u64, RelayReply), TransportError> {
        let stream = self.stream.as_mut().ok_or(TransportError::PeerGone)?;
        let id = self.waiting.pop_front().ok_or_else(|| TransportError::invalid("nothing was asked"))?;
        let received = receive(stream, id, deadline);
        if received.as_ref().is_err_and(|error| !matches!(error, TransportError::InvalidOp { .. })) {
            self.stream = None;
        }
        received
    }

    /// Whether the owner has neither hung up nor said anything that was not asked for. Never waits.
    pub fn is_open(&self) -> bool {
        self.stream.is_some() && (!self.waiting.is_empty() || is_quiet(self.connection.socket.as_fd()))
    }

    /// Tells the owner that no copy of ours touches what was leased any more, and keeps the connection for others.
    pub fn release(mut self, deadline: Instant) {
        let told = self.send(0, &RelayRequest::Release, deadline).and_then(|()| self.flush(deadline));
        if told.is_err() || !self.waiting.is_empty() {
            return; // The owner has heard it or will notice; answers still to come are nobody's.
        }
        let Self { client, connection, .. } = self;
        let mut state = client.state.lock();
        if state.idle.len() < IDLE_MAX {
            state.idle.push(connection);
        }
    }
}

impl fmt::Debug for RelayCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayCall")
            .field("client", &self.client)
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}

fn receive(stream: &mut Stream, id: u64, deadline: Instant) -> Result<(u64, RelayReply), TransportError> {
    let broken = |NotAFrame(what): NotAFrame| {
        TransportError::refused(format!("a relay that does not speak the protocol: {what}"))
    };
    let mut header = [0; REPLY_BYTES];
    stream.read_exact(&mut header, deadline)?;
    let reply = Reply::decode(&header).map_err(broken)?;
    let length = usize::try_from(reply.body_bytes).unwrap_or(usize::MAX);
    if reply.id != id || length > RELAY_BODY_MAX {
        return Err(broken(NotAFrame("a reply to something else")));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body, deadline)?;
    let text = || String::from_utf8_lossy(&body).into_owned();
    match reply.status {
        Status::Done => decode_reply(&body).map_err(broken),
        Status::Invalid => Err(TransportError::invalid(text())),
        Status::Refused => Err(TransportError::refused(text())),
    }
}

/// The owner answered something that was not asked.
fn out_of_turn(reply: &RelayReply) -> TransportError {
    match reply {
        RelayReply::Busy => TransportError::refused("all staging is in use"),
        RelayReply::Failed { why } | RelayReply::Lost { why } => TransportError::refused(why.clone()),
        _ => TransportError::refused("a relay answered something else"),
    }
}
