//! Lanes: connections without HTTP/2, for callers that wait for each answer.

use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use memcache_proto::lane::{Incoming, MAILBOX_PREFACE, PREFACE, greeting, push_frame};
use memcache_proto::{MESSAGE_BYTES_MAX, pb};
use rustix::net::sockopt;
use rustix::process::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::coop::consume_budget;
use tokio::time::timeout;
use tracing::debug;

use super::listen::until_stopped;
use super::mailbox;
use super::service::Book;
use super::vigil::Vigil;

/// How long a new connection may take to say what it is, and a frame from its first byte to its last.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Silence after which the kernel asks a peer whether it is there, how often it asks again, and how many times.
const PROBE_AFTER: Duration = Duration::from_secs(5);
const PROBE_EVERY: Duration = Duration::from_secs(2);
const PROBES: u32 = 3;

/// Replies are sent when they have come to this many bytes, also while more requests wait.
pub(super) const REPLIES_BYTES: usize = 256 << 10;

/// Which part of the file descriptors of the process lanes may take: every client has a session as well.
const DESCRIPTORS_PART: u64 = 4;

/// How many lanes there are, and may be. Past it clients use their sessions.
#[derive(Debug)]
pub(super) struct LaneCount {
    open: AtomicUsize,
    limit: usize,
    with_mailbox: AtomicUsize,
    mailboxes_max: usize,
    vigil: Vigil,
}

impl LaneCount {
    /// A limit that leaves most file descriptors to sessions, and so many with a mailbox.
    pub(super) fn new(mailboxes_max: usize) -> Arc<Self> {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let limit = usize::try_from(descriptors / DESCRIPTORS_PART).unwrap_or(usize::MAX);
        Arc::new(Self::with_limits(limit, mailboxes_max))
    }

    fn with_limits(limit: usize, mailboxes_max: usize) -> Self {
        let (open, with_mailbox) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { open, limit, with_mailbox, mailboxes_max, vigil: Vigil::default() }
    }

    /// What keeps the thread awake while lanes need it.
    pub(super) const fn vigil(&self) -> &Vigil {
        &self.vigil
    }

    fn enter(self: &Arc<Self>) -> Result<Entered, String> {
        if self.open.fetch_add(1, Ordering::AcqRel) < self.limit {
            return Ok(Entered { lanes: Arc::clone(self), has_mailbox: false });
        }
        self.open.fetch_sub(1, Ordering::AcqRel);
        Err(format!("{} lanes are open, the limit", self.limit))
    }

    /// For a lane with a mailbox, which takes memory.
    pub(super) fn enter_with_mailbox(self: &Arc<Self>) -> Result<Entered, String> {
        let mut entered = self.enter()?;
        if self.with_mailbox.fetch_add(1, Ordering::AcqRel) >= self.mailboxes_max {
            self.with_mailbox.fetch_sub(1, Ordering::AcqRel);
            return Err(format!("{} mailboxes are open, the limit", self.mailboxes_max));
        }
        entered.has_mailbox = true;
        Ok(entered)
    }
}

/// One lane that counts, as long as this is kept.
pub(super) struct Entered {
    lanes: Arc<LaneCount>,
    has_mailbox: bool,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.lanes.open.fetch_sub(1, Ordering::AcqRel);
        if self.has_mailbox {
            self.lanes.with_mailbox.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Serves one lane until its client hangs up, breaks the protocol, or the service stops.
pub(super) async fn serve_lane<S>(stream: S, book: Arc<Book>, lanes: Arc<LaneCount>, stopped: watch::Receiver<bool>)
where
    S: Connection,
{
    let stop = pin!(until_stopped(stopped));
    tokio::select! {
        biased;
        ended = begin(stream, &book, &lanes) => {
            if let Err(error) = ended {
                debug!(%error, "a lane ended");
            }
        }
        () = stop => {}
    }
}

/// A connection of either kind of socket.
pub(super) trait Connection: AsyncRead + AsyncWrite + AsFd + Unpin {
    /// What memory can be handed over through.
    fn into_unix(self) -> Option<UnixStream>;
}

impl Connection for TcpStream {
    fn into_unix(self) -> Option<UnixStream> {
        None
    }
}

impl Connection for UnixStream {
    fn into_unix(self) -> Option<UnixStream> {
        Some(self)
    }
}

async fn begin(mut stream: impl Connection, book: &Book, lanes: &Arc<LaneCount>) -> io::Result<()> {
    let mut preface = [0; PREFACE.len()];
    timeout(PATIENCE, stream.read_exact(&mut preface)).await??;
    if preface == *PREFACE {
        return converse(stream, book, lanes).await;
    }
    match stream.into_unix().filter(|_| preface == *MAILBOX_PREFACE) {
        Some(stream) => mailbox::converse(stream, book, lanes).await,
        None => Err(bad(format!("a preface of {preface:?}"))),
    }
}

async fn converse(mut stream: impl Connection, book: &Book, lanes: &Arc<LaneCount>) -> io::Result<()> {
    let entered = lanes.enter();
    let mut replies = Vec::new();
    let hello = match &entered {
        Ok(_) => greeting(book.epoch().get()),
        Err(why) => refusal(why.clone()),
    };
    push(&hello, &mut replies);
    stream.write_all(&replies).await?;
    let Ok(_entered) = entered else { return Ok(()) };
    let _counted = book.lane_opened();
    probe_when_silent(&stream);
    let mut incoming = Incoming::new(MESSAGE_BYTES_MAX);
    loop {
        replies.clear();
        while let Some(request) = incoming.message().map_err(|error| bad(error.to_string()))? {
            consume_budget().await; // others have their turn after some
            push(&book.serve(request), &mut replies);
            if replies.len() >= REPLIES_BYTES {
                stream.write_all(&replies).await?;
                replies = Vec::new();
            }
        }
        if !replies.is_empty() {
            stream.write_all(&replies).await?;
            lanes.vigil.answered();
        }
        let arrived = if incoming.is_within_frame() {
            timeout(PATIENCE, stream.read(incoming.room())).await??
        } else {
            stream.read(incoming.room()).await?
        };
        if arrived == 0 {
            return Ok(());
        }
        incoming.arrived(arrived);
    }
}

pub(super) fn bad(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

pub(super) fn refusal(message: String) -> pb::Reply {
    let code = pb::failure::Code::Unavailable.into();
    let body = Some(pb::reply::Body::Failure(pb::Failure { code, message }));
    pb::Reply { request_id: 0, epoch: 0, body }
}

pub(super) fn push(reply: &pb::Reply, replies: &mut Vec<u8>) {
    if !push_frame(reply, replies) {
        let message = format!("the reply is longer than {MESSAGE_BYTES_MAX} bytes, the limit");
        // Short enough to be pushed.
        let _ =
            push_frame(&pb::Reply { request_id: reply.request_id, epoch: reply.epoch, ..refusal(message) }, replies);
    }
}

/// A peer that vanished without a word must not be kept for ever. Unix sockets know when their peer dies.
fn probe_when_silent(stream: &impl AsFd) {
    let set = || -> rustix::io::Result<()> {
        sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
        sockopt::set_tcp_keepintvl(stream, PROBE_EVERY)?;
        sockopt::set_tcp_keepcnt(stream, PROBES)?;
        sockopt::set_socket_keepalive(stream, true)?;
        // Probes stop while a reply is on its way that nobody takes: that may last as long as they would.
        let silent = (PROBE_AFTER + PROBE_EVERY * PROBES).as_millis();
        sockopt::set_tcp_user_timeout(stream, u32::try_from(silent).unwrap_or(u32::MAX))
    };
    if let Err(error) = set() {
        debug!(%error, "a lane without probes: it is not TCP");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;

    #[test]
    fn lanes_past_the_limit_are_refused_by_name_until_one_ends() {
        let lanes = Arc::new(LaneCount::with_limits(2, 1));
        let (first, _second) = (lanes.enter().unwrap(), lanes.enter().unwrap());
        let Err(refused) = lanes.enter() else { panic!("a third lane") };
        assert_eq!(refused, "2 lanes are open, the limit");
        drop(first);
        assert!(lanes.enter().is_ok());
    }

    #[test]
    fn mailboxes_past_the_limit_are_refused_by_name_and_lanes_are_not() {
        let lanes = Arc::new(LaneCount::with_limits(2, 1));
        let first = lanes.enter_with_mailbox().unwrap();
        let Err(refused) = lanes.enter_with_mailbox() else { panic!("a second mailbox") };
        assert_eq!(refused, "1 mailboxes are open, the limit");
        let second = lanes.enter().unwrap();
        drop((first, second));
        let _third = lanes.enter_with_mailbox().unwrap();
        assert!(lanes.enter().is_ok(), "a lane that was refused a mailbox still counts");
    }
}
