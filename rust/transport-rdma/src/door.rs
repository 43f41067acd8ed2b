//! The owner's side: a registered segment, and one thread that agrees on connections to it.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use memcache_memory::Segment;
use memcache_transport::{Door, TransportError};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::control::{tune, unavailable};
use crate::device::Device;
use crate::handshake::{HELLO_BYTES, Hello, Malformed, Verdict, Welcome};
use crate::memory::{Access, Registered};
use crate::queue::{Queue, Role};

/// Most connections to one region; each holds a queue pair and a socket.
const PEERS_MAX: usize = 4096;
/// A peer says what it wants within this, or is hung up on.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// Longest sleep, when nobody is expected.
const LOOK: Duration = Duration::from_secs(60);
/// Pause after the system could not accept a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket, the thread behind it, and what peers are given access to.
#[derive(Debug)]
pub(crate) struct RdmaDoor {
    doorman: Option<Arc<Doorman>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Doorman {
    device: Arc<Device>,
    // Before the segment, so that it is undone first.
    registered: Registered,
    segment: Arc<Segment>,
    token: u128,
    waker: OwnedFd,
    stopping: AtomicBool,
}

#[derive(Debug)]
struct Peer {
    /// Gone with the peer: nobody writes to the segment through it after that.
    queue: Option<Queue>,
    stream: TcpStream,
    hello: [u8; HELLO_BYTES],
    received: usize,
    /// By when it must have said hello; `None` once it is connected.
    hello_by: Option<Instant>,
}

impl RdmaDoor {
    pub(crate) fn open(
        device: &Arc<Device>,
        segment: Arc<Segment>,
        token: u128,
        listener: TcpListener,
    ) -> Result<Self, TransportError> {
        let failed = |operation| move |error: io::Error| TransportError::from_io(operation, &error);
        let address = segment.base().as_ptr().expose_provenance() as u64;
        // SAFETY: the doorman keeps the segment longer than the registration. Peers read and write it as raw memory,
        // which is what segments are for.
        let registered = unsafe { Registered::new(device, address, segment.bytes(), Access::Remote) };
        let registered = registered.map_err(|error| {
            unavailable(format!(
                "{} does not register {} bytes: {error}; the limit on locked memory (ulimit -l) must allow it",
                device.name,
                segment.bytes()
            ))
        })?;
        listener.set_nonblocking(true).map_err(failed("fcntl"))?;
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| TransportError::from_io("eventfd", &error.into()))?;
        let stopping = AtomicBool::new(false);
        let device = Arc::clone(device);
        let doorman = Arc::new(Doorman { device, registered, segment, token, waker, stopping });
        let runner = Arc::clone(&doorman);
        let thread = thread::Builder::new()
            .name("memcache-rdma".to_owned())
            .spawn(move || runner.run(&listener))
            .map_err(failed("spawn"))?;
        Ok(Self { doorman: Some(doorman), thread: Some(thread) })
    }
}

impl Door for RdmaDoor {
    fn stop(&mut self) {
        let (Some(thread), Some(doorman)) = (self.thread.take(), self.doorman.take()) else { return };
        doorman.stopping.store(true, Ordering::Release);
        // Fails only when the counter is full, which means that it has been woken long ago.
        let _ = rustix::io::write(&doorman.waker, &1u64.to_ne_bytes());
        if thread.join().is_err() {
            tracing::error!("the thread that agrees on RDMA connections panicked");
        }
    }

    fn abandon(&mut self) {
        self.thread = None;
        // What belongs to the other process is not destroyed: every handle knows its process.
        self.doorman = None;
    }
}

impl Drop for RdmaDoor {
    fn drop(&mut self) {
        let is_ours = self.doorman.as_ref().is_some_and(|doorman| doorman.device.is_ours());
        if is_ours { self.stop() } else { self.abandon() }
    }
}

impl Doorman {
    fn run(&self, listener: &TcpListener) {
        let mut peers: Vec<Peer> = Vec::new();
        while !self.stopping.load(Ordering::Acquire) {
            let now = Instant::now();
            let next = peers.iter().filter_map(|peer| peer.hello_by).min().unwrap_or(now + LOOK);
            let ready = match self.wait(listener, &peers, next) {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, "no further RDMA connections to this segment");
                    return;
                }
            };
            let now = Instant::now();
            let mut ready_peers = ready.iter().skip(1);
            peers.retain_mut(|peer| {
                let is_ready = ready_peers.next().copied().unwrap_or(false);
                match peer.hello_by {
                    Some(by) => now < by && (!is_ready || self.greet(peer)),
                    // Whatever it says after the handshake, it is a goodbye.
                    None => !is_ready,
                }
            });
            if ready.first() == Some(&true) {
                self.admit(listener, &mut peers);
            }
        }
    }

    /// Sleeps until something happens; whether the listener and each peer have something.
    fn wait(&self, listener: &TcpListener, peers: &[Peer], until: Instant) -> io::Result<Vec<bool>> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.waker.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
        ];
        let interest = PollFlags::IN | PollFlags::RDHUP;
        fds.extend(peers.iter().map(|peer| PollFd::from_borrowed_fd(peer.stream.as_fd(), interest)));
        let left = until.saturating_duration_since(Instant::now()).min(LOOK);
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(fds.iter().skip(1).map(|fd| !fd.revents().is_empty()).collect()),
            Err(error) => Err(error.into()),
        }
    }

    fn admit(&self, listener: &TcpListener, peers: &mut Vec<Peer>) {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = stream.set_nonblocking(true).and_then(|()| tune(&stream)) {
                    tracing::debug!(%error, "an RDMA peer was gone at once");
                    return;
                }
                if peers.len() >= PEERS_MAX {
                    tracing::warn!(limit = PEERS_MAX, "too many RDMA connections to this segment");
                    answer(&stream, &Welcome::refusal(Verdict::Full));
                    return;
                }
                let hello_by = Some(Instant::now() + HELLO_MAX);
                peers.push(Peer { queue: None, stream, hello: [0; HELLO_BYTES], received: 0, hello_by });
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // Out of descriptors, most likely: the peer stays queued, so do not spin on it.
                tracing::warn!(%error, "cannot accept an RDMA peer");
                let mut fds = [PollFd::from_borrowed_fd(self.waker.as_fd(), PollFlags::IN)];
                let timeout = Timespec::try_from(ACCEPT_PAUSE).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
                let _ = poll(&mut fds, Some(&timeout));
            }
        }
    }

    /// Takes what a peer has said and answers once it is whole; false if that is the end of it.
    fn greet(&self, peer: &mut Peer) -> bool {
        match peer.stream.read(&mut peer.hello[peer.received..]) {
            Ok(0) => return false,
            Ok(count) => peer.received += count,
            Err(error) => {
                return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            }
        }
        if peer.received < HELLO_BYTES {
            return true;
        }
        let hello = match Hello::decode(&peer.hello) {
            Ok(hello) => hello,
            Err(Malformed(what)) => {
                tracing::warn!(what, "hung up on an RDMA peer that does not speak the protocol");
                return false;
            }
        };
        if hello.token != self.token {
            answer(&peer.stream, &Welcome::refusal(Verdict::UnknownToken));
            return false;
        }
        if hello.terms.link_layer != self.device.port.link_layer {
            answer(&peer.stream, &Welcome::refusal(Verdict::OtherNetwork));
            return false;
        }
        match self.connect(peer, &hello) {
            Ok((queue, welcome)) => {
                peer.queue = Some(queue);
                peer.hello_by = None;
                answer(&peer.stream, &welcome)
            }
            Err(why) => {
                tracing::warn!(why, "cannot agree on an RDMA connection");
                answer(&peer.stream, &Welcome::refusal(Verdict::Failed));
                false
            }
        }
    }

    fn connect(&self, peer: &Peer, hello: &Hello) -> Result<(Queue, Welcome), String> {
        let local = peer.stream.local_addr().ok().map(|address| address.ip());
        let gid = self.device.gid_for(local)?;
        let queue = Queue::new(&self.device, gid, Role::Answering, 1).map_err(|error| error.to_string())?;
        queue.connect(&hello.terms).map_err(|error| format!("{:?}: {error}", hello.terms))?;
        let welcome = Welcome {
            verdict: Verdict::Welcome,
            terms: queue.terms(),
            rkey: self.registered.rkey,
            base: self.segment.base().as_ptr().expose_provenance() as u64,
            region_bytes: self.segment.bytes(),
        };
        Ok((queue, welcome))
    }
}

/// Sends an answer; false if the peer is gone. It is shorter than any socket buffer, and the first thing sent.
fn answer(mut stream: &TcpStream, welcome: &Welcome) -> bool {
    stream.write_all(&welcome.encode()).is_ok()
}
