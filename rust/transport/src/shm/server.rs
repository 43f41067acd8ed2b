//! The owner's side: hand the memfd to whoever knows the token and is the same user.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use memcache_memory::Segment;
use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recvmsg, sendmsg, socket_with,
};
use rustix::process::{Uid, geteuid};

use crate::error::TransportError;
use crate::net::{Waker, wait_any};
use crate::shm::{FOREIGN_USER, FULL, HELLO_BYTES, MALFORMED, UNKNOWN_TOKEN, WELCOME, hello, welcome};

/// Most peers at the same time; each holds one silent connection.
const PEERS_MAX: usize = 1024;
/// A peer says what it wants within this, or is hung up on.
const HELLO_MAX: Duration = Duration::from_secs(1);
const BACKLOG: i32 = 128;

/// A listening abstract socket and the thread that answers on it.
#[derive(Debug)]
pub(crate) struct ShmServer {
    doorman: Arc<Doorman>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Doorman {
    segment: Arc<Segment>,
    token: u128,
    waker: Waker,
    stopping: AtomicBool,
}

struct Peer {
    socket: OwnedFd,
    /// By when it must have said hello; `None` once it has the memfd.
    hello_by: Option<Instant>,
}

impl ShmServer {
    /// Starts to hand out `segment` on the abstract socket `name`.
    pub(crate) fn start(name: &str, segment: Arc<Segment>, token: u128) -> Result<Self, TransportError> {
        let failed = |operation| move |error: Errno| TransportError::from_io(operation, &error.into());
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(failed("socket name"))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(failed("socket"))?;
        bind(&listener, &address).map_err(failed("bind"))?;
        listen(&listener, BACKLOG).map_err(failed("listen"))?;
        let doorman = Arc::new(Doorman { segment, token, waker: Waker::new()?, stopping: AtomicBool::new(false) });
        let thread = thread::Builder::new()
            .name("memcache-shm".to_owned())
            .spawn({
                let doorman = Arc::clone(&doorman);
                move || doorman.run(&listener)
            })
            .map_err(|error| TransportError::from_io("spawn", &error))?;
        Ok(Self { doorman, thread: Some(thread) })
    }

    /// Ends the thread, which never waits for a peer. Only for the process that started it.
    pub(crate) fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.doorman.stopping.store(true, Ordering::Release);
        self.doorman.waker.wake();
        if thread.join().is_err() {
            tracing::error!("the thread that shares memory panicked");
        }
    }

    /// Leaves the thread alone: it belongs to the process this one was forked from.
    pub(crate) fn abandon(&mut self) {
        self.thread = None;
    }
}

impl Doorman {
    fn run(&self, listener: &OwnedFd) {
        let mut peers: Vec<Peer> = Vec::new();
        while !self.stopping.load(Ordering::Acquire) {
            let now = Instant::now();
            let next = peers.iter().filter_map(|peer| peer.hello_by).min().unwrap_or(now + Duration::from_secs(60));
            let ready: Vec<bool> = {
                let mut fds = vec![
                    PollFd::from_borrowed_fd(self.waker.as_fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
                ];
                fds.extend(peers.iter().map(|peer| PollFd::from_borrowed_fd(peer.socket.as_fd(), PollFlags::IN)));
                if let Err(error) = wait_any(&mut fds, next) {
                    tracing::error!(%error, "memory is no longer shared with new peers");
                    return;
                }
                fds.iter().skip(1).map(|fd| !fd.revents().is_empty()).collect()
            };
            let now = Instant::now();
            let mut ready_peers = ready.iter().skip(1);
            peers.retain_mut(|peer| {
                let is_ready = ready_peers.next().copied().unwrap_or(false);
                match peer.hello_by {
                    Some(_) if is_ready => self.greet(peer),
                    Some(by) => now < by,
                    // Whatever it says after the handshake, it is a goodbye.
                    None => !is_ready,
                }
            });
            if ready.first() == Some(&true) {
                self.admit(listener, &mut peers);
            }
        }
    }

    fn admit(&self, listener: &OwnedFd, peers: &mut Vec<Peer>) {
        let socket = match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            Err(error) => {
                // Out of descriptors, most likely: the peer stays queued, so do not spin on it.
                tracing::warn!(%error, "cannot accept a peer that wants to map memory");
                let mut fds = [PollFd::from_borrowed_fd(self.waker.as_fd(), PollFlags::IN)];
                let _ = wait_any(&mut fds, Instant::now() + Duration::from_millis(100));
                return;
            }
        };
        let is_trusted = socket_peercred(&socket).is_ok_and(|peer| peer.uid == geteuid() || peer.uid == Uid::ROOT);
        if !is_trusted {
            tracing::warn!("another user asked for this node's memory");
            answer(&socket, FOREIGN_USER);
        } else if peers.len() >= PEERS_MAX {
            tracing::warn!(limit = PEERS_MAX, "too many peers map this node's memory");
            answer(&socket, FULL);
        } else {
            peers.push(Peer { socket, hello_by: Some(Instant::now() + HELLO_MAX) });
        }
    }

    /// Answers a peer that has said something; false if that is the end of it.
    fn greet(&self, peer: &mut Peer) -> bool {
        let mut bytes = [0; HELLO_BYTES + 1];
        // No room for descriptors: a peer that sends one has it closed by the kernel.
        let mut control = RecvAncillaryBuffer::default();
        let received = recvmsg(&peer.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let received = match received {
            Ok(message) => message.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return true,
            Err(_) => return false,
        };
        if received == 0 {
            return false;
        }
        if received != HELLO_BYTES || bytes[..8] != hello(0)[..8] {
            answer(&peer.socket, MALFORMED);
            return false;
        }
        if bytes[..HELLO_BYTES] != hello(self.token) {
            answer(&peer.socket, UNKNOWN_TOKEN);
            return false;
        }
        peer.hello_by = None;
        let fds = [self.segment.fd()];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let welcome = welcome(WELCOME, self.segment.bytes());
        control.push(SendAncillaryMessage::ScmRights(&fds))
            && sendmsg(&peer.socket, &[IoSlice::new(&welcome)], &mut control, SendFlags::NOSIGNAL).is_ok()
    }
}

/// Says no. A peer that does not listen misses nothing else.
fn answer(socket: &OwnedFd, status: u8) {
    let bytes = welcome(status, 0);
    let _ = sendmsg(socket, &[IoSlice::new(&bytes)], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL);
}
