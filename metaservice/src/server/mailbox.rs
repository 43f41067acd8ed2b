//! Lanes through shared memory, for clients on the same host.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use memcache_mailbox::{Change, End, pass, ring, watch};
use memcache_proto::MESSAGE_BYTES_MAX;
use memcache_proto::lane::{Incoming, greeting};
use parking_lot::Mutex;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::lane::{LaneCount, PATIENCE, REPLIES_BYTES, bad, push, refusal};
use super::service::Book;

/// Most requests of one client that are served before others have their turn.
pub(super) const REQUESTS_MAX: usize = 16;

/// A client's mailbox, and the socket to ring through.
#[derive(Debug)]
pub(super) struct Mailbox {
    /// Watched for what comes alone: a client that takes a ring out of it makes room, which would wake this thread.
    socket: AsyncFd<StdUnixStream>,
    traffic: Mutex<Traffic>,
    is_watched: AtomicBool,
}

#[derive(Debug)]
struct Traffic {
    end: End,
    incoming: Incoming,
    /// What of these the ring had no room for yet.
    replies: Vec<u8>,
    sent: usize,
    /// There may be whole requests among what has come.
    has_more: bool,
    /// Bytes that ever came.
    arrived: u64,
    /// Why the mailbox is of no use any more.
    broken: Option<io::Error>,
}

impl Mailbox {
    pub(super) fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Relaxed)
    }

    pub(super) fn set_watched(&self, is_watched: bool) {
        self.is_watched.store(is_watched, Ordering::Relaxed);
    }

    /// Serves what has come, some of it if it is much. False: there was nothing to do.
    pub(super) fn serve(&self, book: &Book) -> bool {
        let mut traffic = self.traffic.lock();
        if traffic.broken.is_some() {
            return false;
        }
        match traffic.step(book) {
            Ok(Change::NONE) => false,
            Ok(changed) => {
                if traffic.end.must_ring(changed)
                    && let Err(error) = ring(self.socket.get_ref())
                {
                    self.end(&mut traffic, error);
                }
                if traffic.end.shares_processor() {
                    std::thread::yield_now();
                }
                true
            }
            Err(error) => {
                self.end(&mut traffic, error);
                true
            }
        }
    }

    /// Whoever waits on the socket, here and there, sees the end.
    fn end(&self, traffic: &mut Traffic, why: io::Error) {
        traffic.broken.get_or_insert(why);
        // It fails where the client has hung up already.
        let _ = shutdown(self.socket.get_ref(), Shutdown::Both);
    }

    /// Waits for the client to ring; false when it has hung up.
    async fn rung(&self) -> io::Result<bool> {
        let mut rings = [0; 64];
        let read = |socket: &StdUnixStream| Ok(recv(socket, &mut rings[..], RecvFlags::DONTWAIT)?);
        let (rings, _) = self.socket.async_io(Interest::READABLE, read).await?;
        Ok(rings > 0)
    }

    /// From now on the client must ring. False: there is something to do first.
    pub(super) fn lie_down(&self) -> bool {
        let traffic = self.traffic.lock();
        let wanted = if traffic.is_full() { Change::ROOM } else { Change::BYTES };
        let lies =
            traffic.broken.is_some() || ((!traffic.has_more || traffic.is_full()) && traffic.end.lie_down(wanted));
        if lies {
            self.set_watched(false);
        }
        lies
    }
}

/// A mailbox as long as its connection lasts.
struct Open(Arc<Mailbox>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.end(&mut self.0.traffic.lock(), io::ErrorKind::ConnectionAborted.into());
    }
}

/// Serves a client that asked for a mailbox until it hangs up or breaks the protocol.
pub(super) async fn converse(mut stream: UnixStream, book: &Book, lanes: &Arc<LaneCount>) -> io::Result<()> {
    let entered = lanes.enter_with_mailbox();
    let made = entered.and_then(|entered| match End::create() {
        Ok((memory, end)) => Ok((entered, memory, end)),
        Err(error) => Err(error.to_string()),
    });
    let mut hello = Vec::new();
    let (_entered, memory, end) = match made {
        Ok(made) => made,
        Err(why) => {
            push(&refusal(why), &mut hello);
            return stream.write_all(&hello).await;
        }
    };
    push(&greeting(book.epoch().get()), &mut hello);
    let _counted = (book.lane_opened(), book.mailbox_opened());
    // Nobody watches yet: the first request rings.
    end.lie_down(Change::BYTES);
    pass(&stream, &hello, &memory)?;
    drop(memory);
    let traffic = Traffic {
        end,
        incoming: Incoming::new(MESSAGE_BYTES_MAX),
        replies: Vec::new(),
        sent: 0,
        has_more: false,
        arrived: 0,
        broken: None,
    };
    let open = Open(Arc::new(Mailbox {
        socket: watch(stream.into_std()?)?,
        traffic: Mutex::new(traffic),
        is_watched: AtomicBool::new(false),
    }));
    attend(&open.0, book, lanes).await
}

/// Serves a mailbox whenever it is rung for, and has it watched for what comes next.
async fn attend(mailbox: &Arc<Mailbox>, book: &Book, lanes: &LaneCount) -> io::Result<()> {
    let mut arrived = 0;
    loop {
        let Ok(rung) = timeout(PATIENCE, mailbox.rung()).await else {
            let traffic = mailbox.traffic.lock();
            if traffic.incoming.is_within_frame() && traffic.arrived == arrived {
                return Err(io::ErrorKind::TimedOut.into());
            }
            arrived = traffic.arrived;
            continue;
        };
        if !rung? {
            let broken = mailbox.traffic.lock().broken.take();
            return broken.map_or(Ok(()), Err);
        }
        // One that is watched has its turns without a ring: more rings are no more turns.
        if !mailbox.is_watched() {
            mailbox.serve(book);
            lanes.vigil().watch(mailbox);
        }
    }
}

impl Traffic {
    /// Whether replies wait for room.
    fn is_full(&self) -> bool {
        self.sent < self.replies.len()
    }

    fn step(&mut self, book: &Book) -> io::Result<Change> {
        let mut changed = self.send()?;
        if self.is_full() {
            return Ok(changed); // who takes no replies is not read from
        }
        if self.end.is_there(Change::BYTES) {
            let arrived = self.end.read(self.incoming.room())?;
            self.incoming.arrived(arrived);
            self.arrived += arrived as u64;
            changed = changed.or(Change::ROOM);
        }
        self.has_more = true;
        for _ in 0..REQUESTS_MAX {
            let Some(request) = self.incoming.message().map_err(|error| bad(error.to_string()))? else {
                self.has_more = false;
                break;
            };
            push(&book.serve(request), &mut self.replies);
            if self.replies.len() >= REPLIES_BYTES {
                break;
            }
        }
        Ok(changed.or(self.send()?))
    }

    fn send(&mut self) -> io::Result<Change> {
        if self.replies.is_empty() {
            return Ok(Change::NONE);
        }
        let sent = self.end.write(&self.replies[self.sent..])?;
        self.sent += sent;
        if self.sent == self.replies.len() {
            self.sent = 0;
            self.replies.clear();
            self.replies.shrink_to(REPLIES_BYTES);
        }
        Ok(if sent > 0 { Change::BYTES } else { Change::NONE })
    }
}
