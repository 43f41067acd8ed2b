//! One lane: a connection on which one caller at a time waits for its answer, with no other thread in between.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use memcache_config::Endpoint;
use memcache_proto::lane::{Eagerness, GREETING_BYTES_MAX, Incoming, PREFACE, push_frame};
use memcache_proto::{MESSAGE_BYTES_MAX, pb};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::mailbox::Mailbox;
use crate::connect::connect_abstract;

/// How long the kernel lets a caller wait before it looks at its deadline and at the state of the session again.
const LOOK: Duration = Duration::from_millis(20);

/// Room for frames to send that is kept from one exchange to the next.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// An open lane.
pub(super) struct Lane {
    way: Way,
    incoming: Incoming,
    outgoing: Vec<u8>,
    eager: Eagerness,
}

/// How frames travel.
enum Way {
    Socket(OwnedFd),
    Mailbox(Mailbox),
}

/// How an exchange ended without a reply. The lane is of no use any more.
#[derive(Debug)]
pub(super) enum Broken {
    /// Not a byte of the request was sent.
    Unsent,
    /// It may have been served or not.
    Interrupted(String),
    /// No answer before the deadline.
    Late,
}

impl Lane {
    /// A lane to the service at `endpoint`. An error also where the service knows no lanes, or has no more of them.
    pub(super) async fn open(endpoint: &Endpoint) -> io::Result<Self> {
        let (socket, incoming, mailbox) = match endpoint {
            Endpoint::Tcp { host, port } => {
                let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let (incoming, epoch) = greet(&mut stream).await?;
                let mailbox = Mailbox::beside_tcp(&stream, epoch).await;
                (blocking(stream.into_std()?, std::net::TcpStream::set_nonblocking)?, incoming, mailbox)
            }
            Endpoint::Unix(path) => {
                let (socket, incoming, epoch) = Self::over_unix(UnixStream::connect(path).await?).await?;
                (socket, incoming, Mailbox::open(UnixStream::connect(path).await?, epoch).await)
            }
            Endpoint::UnixAbstract(name) => {
                let (socket, incoming, epoch) = Self::over_unix(connect_abstract(name)?).await?;
                (socket, incoming, Mailbox::open(connect_abstract(name)?, epoch).await)
            }
        };
        // What the service cannot or will not put in memory goes over the socket.
        let way = mailbox.map_or_else(
            |why| {
                tracing::debug!(address = %endpoint, %why, "a lane without a mailbox");
                Way::Socket(socket)
            },
            Way::Mailbox,
        );
        let (Way::Socket(socket) | Way::Mailbox(Mailbox { socket, .. })) = &way;
        sockopt::set_socket_timeout(socket, Timeout::Recv, Some(LOOK))?;
        sockopt::set_socket_timeout(socket, Timeout::Send, Some(LOOK))?;
        let incoming = incoming.with_limit(MESSAGE_BYTES_MAX);
        Ok(Self { way, incoming, outgoing: Vec::new(), eager: Eagerness::new() })
    }

    async fn over_unix(mut stream: UnixStream) -> io::Result<(OwnedFd, Incoming, u64)> {
        let (incoming, epoch) = greet(&mut stream).await?;
        let socket = blocking(stream.into_std()?, std::os::unix::net::UnixStream::set_nonblocking)?;
        Ok((socket, incoming, epoch))
    }

    /// Adds a request that goes with the next exchange and whose reply nobody waits for.
    pub(super) fn add(&mut self, request: &pb::Request) -> bool {
        push_frame(request, &mut self.outgoing)
    }

    /// Whether a request that is sent now wakes the service up for the next one.
    pub(super) fn can_rouse(&self) -> bool {
        matches!(&self.way, Way::Mailbox(mailbox) if mailbox.can_rouse())
    }

    /// Sends what was added. Nobody waits for the replies.
    pub(super) fn rouse(&mut self) -> Result<(), Broken> {
        let Way::Mailbox(mailbox) = &mut self.way else { return Ok(()) };
        // Replies to what was sent so before: nobody else may come to take them for a while.
        mailbox.take(&mut self.incoming)?;
        while self.incoming.message::<pb::Reply>().map_err(|error| broke(&error))?.is_some() {}
        let patience = Patience::new(Instant::now(), &|| None);
        mailbox.send(&self.outgoing, &mut self.incoming, &mut self.eager, &patience)?;
        self.outgoing.clear();
        Ok(())
    }

    /// Sends a request, and what was added before, and waits for its reply. `is_over` says why the wait is pointless.
    pub(super) fn exchange(
        &mut self,
        request: &pb::Request,
        deadline: Instant,
        is_over: impl Fn() -> Option<String>,
    ) -> Result<pb::Reply, Broken> {
        if !push_frame(request, &mut self.outgoing) {
            return Err(Broken::Unsent); // the session says why
        }
        let patience = Patience::new(deadline, &is_over);
        match &mut self.way {
            Way::Socket(socket) => send(socket, &self.outgoing, &patience)?,
            Way::Mailbox(mailbox) => mailbox.send(&self.outgoing, &mut self.incoming, &mut self.eager, &patience)?,
        }
        self.outgoing.clear();
        if self.outgoing.capacity() > KEPT_BYTES_MAX {
            self.outgoing = Vec::new();
        }
        let mut has_waited = false;
        loop {
            match self.incoming.message::<pb::Reply>() {
                // Others are replies to what was added to this or earlier exchanges.
                Ok(Some(reply)) if reply.request_id != request.request_id => {}
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) => {
                    // What came was not the reply, or not all of it: there may be no end to that.
                    if std::mem::replace(&mut has_waited, true) {
                        patience.is_left()?;
                    }
                    match &mut self.way {
                        Way::Socket(socket) => receive(socket, &mut self.incoming, &mut self.eager, &patience)?,
                        Way::Mailbox(mailbox) => mailbox.receive(&mut self.incoming, &mut self.eager, &patience)?,
                    }
                }
                Err(error) => return Err(broke(&error)),
            }
        }
    }
}

/// How long a caller goes on waiting.
pub(super) struct Patience<'a> {
    deadline: Instant,
    /// Why it would be pointless, if it is.
    is_over: &'a dyn Fn() -> Option<String>,
}

impl<'a> Patience<'a> {
    pub(super) const fn new(deadline: Instant, is_over: &'a dyn Fn() -> Option<String>) -> Self {
        Self { deadline, is_over }
    }

    /// Whether to go on after a wait that brought nothing.
    pub(super) fn is_left(&self) -> Result<(), Broken> {
        if Instant::now() >= self.deadline {
            return Err(Broken::Late);
        }
        (self.is_over)().map_or(Ok(()), |why| Err(Broken::Interrupted(why)))
    }

    /// Whether to go on after a system call that did nothing.
    pub(super) fn is_left_after(&self, error: Errno) -> Result<(), Broken> {
        if matches!(error, Errno::AGAIN | Errno::INTR) { self.is_left() } else { Err(broke(&error)) }
    }
}

pub(super) fn broke(why: &impl std::fmt::Display) -> Broken {
    Broken::Interrupted(format!("the connection broke: {why}"))
}

pub(super) fn hung_up() -> Broken {
    Broken::Interrupted("the service ended the connection".to_owned())
}

fn send(socket: &OwnedFd, bytes: &[u8], patience: &Patience<'_>) -> Result<(), Broken> {
    let mut sent = 0;
    while sent < bytes.len() {
        match rustix::net::send(socket, &bytes[sent..], SendFlags::NOSIGNAL) {
            Ok(more) => sent += more,
            Err(error) => patience.is_left_after(error).map_err(|broken| match broken {
                Broken::Interrupted(_) if sent == 0 => Broken::Unsent,
                other => other,
            })?,
        }
    }
    Ok(())
}

/// Looks for bytes without sleeping for so long; `None` when there are none in that time.
fn look_for_bytes(
    socket: &OwnedFd,
    incoming: &mut Incoming,
    eager: &mut Eagerness,
    long: Duration,
) -> Option<Received> {
    let started = Instant::now();
    let mut received = Err(Errno::AGAIN);
    while received == Err(Errno::AGAIN) && started.elapsed() < long {
        std::hint::spin_loop();
        received = rustix::net::recv(socket, incoming.room(), RecvFlags::DONTWAIT);
    }
    let helped = received != Err(Errno::AGAIN);
    eager.helped(helped);
    helped.then_some(received)
}

fn receive(
    socket: &OwnedFd,
    incoming: &mut Incoming,
    eager: &mut Eagerness,
    patience: &Patience<'_>,
) -> Result<(), Broken> {
    let look = eager.looks();
    let received = look.and_then(|long| look_for_bytes(socket, incoming, eager, long)).unwrap_or_else(|| {
        let asleep = Instant::now();
        let received = rustix::net::recv(socket, incoming.room(), RecvFlags::empty());
        if let Some(long) = look {
            eager.came(long, asleep.elapsed());
        }
        received
    });
    match received {
        Ok((0, _)) => Err(hung_up()),
        Ok((bytes, _)) => {
            incoming.arrived(bytes);
            Ok(())
        }
        Err(error) => patience.is_left_after(error),
    }
}

/// What one system call received.
type Received = Result<(usize, usize), Errno>;

/// Says that this is to be a lane and hears whether it is.
async fn greet(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<(Incoming, u64)> {
    stream.write_all(PREFACE).await?;
    let mut incoming = Incoming::new(GREETING_BYTES_MAX);
    loop {
        if let Some(epoch) = greeting(&mut incoming)? {
            return Ok((incoming, epoch));
        }
        let bytes = stream.read(incoming.room()).await?;
        if bytes == 0 {
            return Err(refused("the service hung up".to_owned()));
        }
        incoming.arrived(bytes);
    }
}

/// The epoch of the service that greets, once the greeting is there.
pub(super) fn greeting(incoming: &mut Incoming) -> io::Result<Option<u64>> {
    match incoming.message::<pb::Reply>().map_err(|error| refused(format!("not a greeting: {error}")))? {
        Some(pb::Reply { request_id: 0, body: None, epoch }) => Ok(Some(epoch)),
        Some(pb::Reply { body: Some(pb::reply::Body::Failure(failure)), .. }) => Err(refused(failure.message)),
        Some(_) => Err(refused("not a greeting".to_owned())),
        None => Ok(None),
    }
}

pub(super) fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, why)
}

pub(super) fn blocking<S: Into<OwnedFd>>(stream: S, set: impl Fn(&S, bool) -> io::Result<()>) -> io::Result<OwnedFd> {
    set(&stream, false)?;
    Ok(stream.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream as StdUnixStream;

    use super::*;

    #[test]
    fn answers_to_something_else_do_not_keep_a_caller_past_its_deadline() {
        let (here, mut there) = StdUnixStream::pair().unwrap();
        here.set_read_timeout(Some(LOOK)).unwrap();
        let mut replies = Vec::new();
        for request_id in 100..200 {
            assert!(push_frame(&pb::Reply { request_id, epoch: 1, body: None }, &mut replies));
        }
        let until = Instant::now() + Duration::from_secs(20);
        let talker = std::thread::spawn(move || {
            while there.write_all(&replies).is_ok() {
                assert!(Instant::now() < until, "the caller listens for ever");
            }
        });
        let mut lane = Lane {
            way: Way::Socket(here.into()),
            incoming: Incoming::new(MESSAGE_BYTES_MAX),
            outgoing: Vec::new(),
            eager: Eagerness::new(),
        };
        let asked = pb::Request { request_id: 1, client: 1, body: None };
        let outcome = lane.exchange(&asked, Instant::now() + Duration::from_millis(50), || None);
        assert!(matches!(outcome, Err(Broken::Late)), "{outcome:?}");
        drop(lane);
        talker.join().unwrap();
    }
}
