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

use crate::connect::connect_abstract;

/// How long the kernel lets a caller wait before it looks at its deadline and at the state of the session again.
const LOOK: Duration = Duration::from_millis(20);

/// Room for frames to send that is kept from one exchange to the next.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// An open lane.
pub(super) struct Lane {
    socket: OwnedFd,
    incoming: Incoming,
    outgoing: Vec<u8>,
    eager: Eagerness,
}

/// How an exchange ended without a reply. The lane is of no use any more.
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
        let (socket, incoming) = match endpoint {
            Endpoint::Tcp { host, port } => {
                let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let incoming = greet(&mut stream).await?;
                (blocking(stream.into_std()?, std::net::TcpStream::set_nonblocking)?, incoming)
            }
            Endpoint::Unix(path) => Self::over_unix(UnixStream::connect(path).await?).await?,
            Endpoint::UnixAbstract(name) => Self::over_unix(connect_abstract(name)?).await?,
        };
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(LOOK))?;
        sockopt::set_socket_timeout(&socket, Timeout::Send, Some(LOOK))?;
        Ok(Self {
            socket,
            incoming: incoming.with_limit(MESSAGE_BYTES_MAX),
            outgoing: Vec::new(),
            eager: Eagerness::new(),
        })
    }

    async fn over_unix(mut stream: UnixStream) -> io::Result<(OwnedFd, Incoming)> {
        let incoming = greet(&mut stream).await?;
        Ok((blocking(stream.into_std()?, std::os::unix::net::UnixStream::set_nonblocking)?, incoming))
    }

    /// Adds a request that goes with the next exchange and whose reply nobody waits for.
    pub(super) fn add(&mut self, request: &pb::Request) -> bool {
        push_frame(request, &mut self.outgoing)
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
        self.send(deadline, &is_over)?;
        loop {
            match self.incoming.message::<pb::Reply>() {
                // Others are replies to what was added to this or earlier exchanges.
                Ok(Some(reply)) if reply.request_id != request.request_id => {}
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) => self.receive(deadline, &is_over)?,
                Err(error) => return Err(Broken::Interrupted(format!("the connection broke: {error}"))),
            }
        }
    }

    fn send(&mut self, deadline: Instant, is_over: &impl Fn() -> Option<String>) -> Result<(), Broken> {
        let mut sent = 0;
        while sent < self.outgoing.len() {
            match rustix::net::send(&self.socket, &self.outgoing[sent..], SendFlags::NOSIGNAL) {
                Ok(bytes) => sent += bytes,
                Err(error) => look_again(error, deadline, is_over).map_err(|broken| match broken {
                    Broken::Interrupted(_) if sent == 0 => Broken::Unsent,
                    other => other,
                })?,
            }
        }
        self.outgoing.clear();
        if self.outgoing.capacity() > KEPT_BYTES_MAX {
            self.outgoing = Vec::new();
        }
        Ok(())
    }

    /// Looks for bytes without sleeping for so long; `None` when there are none in that time.
    fn look_for_bytes(&mut self, long: Duration) -> Option<Received> {
        let started = Instant::now();
        let mut received = Err(Errno::AGAIN);
        while received == Err(Errno::AGAIN) && started.elapsed() < long {
            std::hint::spin_loop();
            received = rustix::net::recv(&self.socket, self.incoming.room(), RecvFlags::DONTWAIT);
        }
        let helped = received != Err(Errno::AGAIN);
        self.eager.helped(helped);
        helped.then_some(received)
    }

    fn receive(&mut self, deadline: Instant, is_over: &impl Fn() -> Option<String>) -> Result<(), Broken> {
        let look = self.eager.looks();
        let received = look.and_then(|long| self.look_for_bytes(long)).unwrap_or_else(|| {
            let asleep = Instant::now();
            let received = rustix::net::recv(&self.socket, self.incoming.room(), RecvFlags::empty());
            if let Some(long) = look {
                self.eager.came(long, asleep.elapsed());
            }
            received
        });
        match received {
            Ok((0, _)) => Err(Broken::Interrupted("the service ended the connection".to_owned())),
            Ok((bytes, _)) => {
                self.incoming.arrived(bytes);
                Ok(())
            }
            Err(error) => look_again(error, deadline, is_over),
        }
    }
}

/// What one system call received.
type Received = Result<(usize, usize), Errno>;

/// Whether to go on after a system call that did nothing.
fn look_again(error: Errno, deadline: Instant, is_over: &impl Fn() -> Option<String>) -> Result<(), Broken> {
    if !matches!(error, Errno::AGAIN | Errno::INTR) {
        return Err(Broken::Interrupted(format!("the connection broke: {error}")));
    }
    if Instant::now() >= deadline {
        return Err(Broken::Late);
    }
    is_over().map_or(Ok(()), |why| Err(Broken::Interrupted(why)))
}

/// Says that this is to be a lane and hears whether it is.
async fn greet(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<Incoming> {
    let refused = |why: String| io::Error::new(io::ErrorKind::ConnectionRefused, why);
    stream.write_all(PREFACE).await?;
    let mut incoming = Incoming::new(GREETING_BYTES_MAX);
    loop {
        match incoming.message::<pb::Reply>().map_err(|error| refused(format!("not a greeting: {error}")))? {
            Some(pb::Reply { request_id: 0, body: None, .. }) => return Ok(incoming),
            Some(pb::Reply { body: Some(pb::reply::Body::Failure(failure)), .. }) => {
                return Err(refused(failure.message));
            }
            Some(_) => return Err(refused("not a greeting".to_owned())),
            None => {}
        }
        let bytes = stream.read(incoming.room()).await?;
        if bytes == 0 {
            return Err(refused("the service hung up".to_owned()));
        }
        incoming.arrived(bytes);
    }
}

fn blocking<S: Into<OwnedFd>>(stream: S, set: impl Fn(&S, bool) -> io::Result<()>) -> io::Result<OwnedFd> {
    set(&stream, false)?;
    Ok(stream.into())
}
