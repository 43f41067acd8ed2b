//! Lanes: connections without HTTP/2, for callers that wait for each answer.

use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use memcache_proto::lane::{Eagerness, Incoming, PREFACE, greeting, push_frame};
use memcache_proto::{MESSAGE_BYTES_MAX, pb};
use rustix::net::sockopt;
use rustix::process::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::debug;

use super::listen::until_stopped;
use super::service::Book;

/// How long a new connection may take to say what it is, and a frame from its first byte to its last.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Silence after which the kernel asks a peer whether it is there, how often it asks again, and how many times.
const PROBE_AFTER: Duration = Duration::from_secs(5);
const PROBE_EVERY: Duration = Duration::from_secs(2);
const PROBES: u32 = 3;

/// Replies are sent when they have come to this many bytes, also while more requests wait.
const REPLIES_BYTES: usize = 256 << 10;

/// Which part of the file descriptors of the process lanes may take: every client has a session as well.
const DESCRIPTORS_PART: u64 = 4;

/// Keeps the thread of the service from sleeping while lanes ask one thing after the other.
#[derive(Debug)]
struct Vigil {
    served: AtomicU64,
    is_asleep: AtomicBool,
    wake: Notify,
}

impl Vigil {
    fn new() -> Self {
        Self { served: AtomicU64::new(0), is_asleep: AtomicBool::new(false), wake: Notify::new() }
    }

    /// A lane was answered.
    fn answered(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
        if self.is_asleep.swap(false, Ordering::AcqRel) {
            self.wake.notify_one();
        }
    }

    /// Runs beside all other tasks of the thread: each turn lets them all go on and looks at all sockets.
    async fn keep(&self) {
        let mut eager = Eagerness::new();
        loop {
            let served = self.served.load(Ordering::Relaxed);
            let answered = Instant::now();
            let mut helped = false;
            let look = eager.looks();
            if let Some(long) = look {
                while !helped && answered.elapsed() < long {
                    tokio::task::yield_now().await;
                    helped = self.served.load(Ordering::Relaxed) != served;
                }
                eager.helped(helped);
            }
            if !helped {
                let (looked, asleep) = (answered.elapsed(), Instant::now());
                self.is_asleep.store(true, Ordering::Release);
                self.wake.notified().await;
                if look.is_some() {
                    eager.came(looked, asleep.elapsed());
                }
            }
        }
    }
}

/// How many lanes there are, and may be. Past it clients use their sessions.
#[derive(Debug)]
pub(super) struct LaneCount {
    open: AtomicUsize,
    limit: usize,
    vigil: Vigil,
}

impl LaneCount {
    /// A limit that leaves most file descriptors to sessions.
    pub(super) fn new() -> Arc<Self> {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let limit = usize::try_from(descriptors / DESCRIPTORS_PART).unwrap_or(usize::MAX);
        Arc::new(Self { open: AtomicUsize::new(0), limit, vigil: Vigil::new() })
    }

    /// Keeps the thread awake while lanes need it. Never ends.
    pub(super) async fn keep_vigil(&self) {
        self.vigil.keep().await;
    }

    fn enter(self: &Arc<Self>) -> Result<Entered, String> {
        if self.open.fetch_add(1, Ordering::AcqRel) < self.limit {
            return Ok(Entered(Arc::clone(self)));
        }
        self.open.fetch_sub(1, Ordering::AcqRel);
        Err(format!("{} lanes are open, the limit", self.limit))
    }
}

/// One lane that counts, as long as this is kept.
struct Entered(Arc<LaneCount>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves one lane until its client hangs up, breaks the protocol, or the service stops.
pub(super) async fn serve_lane<S>(stream: S, book: Arc<Book>, lanes: Arc<LaneCount>, stopped: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + AsFd + Unpin,
{
    let stop = pin!(until_stopped(stopped));
    tokio::select! {
        biased;
        ended = converse(stream, &book, &lanes) => {
            if let Err(error) = ended {
                debug!(%error, "a lane ended");
            }
        }
        () = stop => {}
    }
}

async fn converse<S>(mut stream: S, book: &Book, lanes: &Arc<LaneCount>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + AsFd + Unpin,
{
    let mut preface = [0; PREFACE.len()];
    timeout(PATIENCE, stream.read_exact(&mut preface)).await??;
    if preface != *PREFACE {
        return Err(bad(format!("a preface of {preface:?}")));
    }
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

fn bad(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn refusal(message: String) -> pb::Reply {
    let code = pb::failure::Code::Unavailable.into();
    let body = Some(pb::reply::Body::Failure(pb::Failure { code, message }));
    pb::Reply { request_id: 0, epoch: 0, body }
}

fn push(reply: &pb::Reply, replies: &mut Vec<u8>) {
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
        sockopt::set_socket_keepalive(stream, true)
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
        let lanes = Arc::new(LaneCount { open: AtomicUsize::new(0), limit: 2, vigil: Vigil::new() });
        let (first, _second) = (lanes.enter().unwrap(), lanes.enter().unwrap());
        let Err(refused) = lanes.enter() else { panic!("a third lane") };
        assert_eq!(refused, "2 lanes are open, the limit");
        drop(first);
        assert!(lanes.enter().is_ok());
    }
}
