//! The data server: accepts connections and gives each a thread.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use memcache_memory::Segment;
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags};
use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_congestion, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_nodelay,
    set_tcp_user_timeout,
};
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};

use crate::error::TransportError;
use crate::net::{Waker, wait_any};
use crate::relay::RelayHost;
use crate::tcp::session::Session;

/// Most connections of one server at the same time. A peer uses a handful.
pub(crate) const CONNECTIONS_MAX: usize = 512;
/// A peer whose host has answered nothing for this many milliseconds is gone. Idle or not: keep-alive is set to the same.
const VANISHED_MS: u32 = 25_000;
/// Longest [`TcpServer::stop`] waits for its threads.
const STOP_MAX: Duration = Duration::from_secs(2);

/// A listening socket, the thread that accepts, and one thread a connection.
#[derive(Debug)]
pub(crate) struct TcpServer {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    segment: Arc<Segment>,
    token: u128,
    connections_max: usize,
    relay: Option<Arc<dyn RelayHost>>,
    waker: Waker,
    sessions: Mutex<Sessions>,
    changed: Condvar,
}

/// Open connections, so that they can be hung up on, and whether new ones are welcome.
#[derive(Debug, Default)]
struct Sessions {
    open: HashMap<u64, Arc<OwnedFd>>,
    next: u64,
    stopping: bool,
}

impl TcpServer {
    /// Starts to serve `segment` on a bound listener, to at most `connections_max` connections at a time.
    pub(crate) fn start(
        listener: TcpListener,
        segment: Arc<Segment>,
        token: u128,
        connections_max: usize,
        relay: Option<Arc<dyn RelayHost>>,
    ) -> Result<Self, TransportError> {
        listener.set_nonblocking(true).map_err(|error| TransportError::from_io("listen", &error))?;
        let shared = Arc::new(Shared {
            segment,
            token,
            connections_max,
            relay,
            waker: Waker::new()?,
            sessions: Mutex::default(),
            changed: Condvar::new(),
        });
        let acceptor = thread::Builder::new()
            .name("memcache-tcp".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.accept_all(&listener)
            })
            .map_err(|error| TransportError::from_io("spawn", &error))?;
        Ok(Self { shared, acceptor: Some(acceptor) })
    }

    /// Hangs up on everyone and waits for the threads, at most two seconds. Only for the process that started it.
    pub(crate) fn stop(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        {
            let mut sessions = self.shared.sessions.lock();
            sessions.stopping = true;
            for socket in sessions.open.values() {
                // Fails if the peer was faster, which is as good.
                let _ = shutdown(socket, Shutdown::Both);
            }
        }
        self.shared.waker.wake();
        if acceptor.join().is_err() {
            tracing::error!("the accepting thread of the data server panicked");
        }
        let deadline = Instant::now() + STOP_MAX;
        let mut sessions = self.shared.sessions.lock();
        while !sessions.open.is_empty() {
            if self.shared.changed.wait_until(&mut sessions, deadline).timed_out() {
                tracing::warn!(connections = sessions.open.len(), "data connections did not end in time");
                return;
            }
        }
    }

    /// Leaves the threads alone: they belong to the process this one was forked from.
    pub(crate) fn abandon(&mut self) {
        self.acceptor = None;
    }
}

impl Shared {
    fn accept_all(self: &Arc<Self>, listener: &TcpListener) {
        while !self.sessions.lock().stopping {
            let mut fds = [
                PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.waker.as_fd(), PollFlags::IN),
            ];
            // Anything but a wait that ran out is looked at by accepting.
            if let Ok(false) = wait_any(&mut fds, Instant::now() + Duration::from_secs(60)) {
                continue;
            }
            if self.sessions.lock().stopping {
                return;
            }
            match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => self.admit(socket),
                Err(error)
                    if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {}
                Err(error) => {
                    // Out of descriptors, most likely: the connection stays queued, so do not spin on it.
                    tracing::warn!(%error, "cannot accept a data connection");
                    let mut fds = [PollFd::from_borrowed_fd(self.waker.as_fd(), PollFlags::IN)];
                    let _ = wait_any(&mut fds, Instant::now() + Duration::from_millis(100));
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, socket: OwnedFd) {
        let address =
            rustix::net::getpeername(&socket).ok().flatten().and_then(|address| SocketAddr::try_from(address).ok());
        let peer = address.map_or_else(|| "a peer that hung up".to_owned(), |address| address.to_string());
        if let Err(error) = tune(&socket, address) {
            tracing::debug!(peer, %error, "cannot tune a data connection");
        }
        let socket = Arc::new(socket);
        let number = {
            let mut sessions = self.sessions.lock();
            if sessions.stopping || sessions.open.len() >= self.connections_max {
                tracing::warn!(peer, limit = self.connections_max, "too many data connections, closing a new one");
                return;
            }
            sessions.next += 1;
            let number = sessions.next;
            sessions.open.insert(number, Arc::clone(&socket));
            number
        };
        let shared = Arc::clone(self);
        let spawned = thread::Builder::new().name("memcache-tcp".to_owned()).spawn(move || {
            let _open = Open { shared: Arc::clone(&shared), number };
            Session::new(socket, Arc::clone(&shared.segment), shared.token, shared.relay.clone()).run(&peer);
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a data connection");
            self.close(number);
        }
    }

    fn close(&self, number: u64) {
        self.sessions.lock().open.remove(&number);
        self.changed.notify_all();
    }
}

/// Strikes a connection off the list however its thread ends.
struct Open {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.close(self.number);
    }
}

/// What both ends set: no waiting for company, and notice when the other end's host vanishes.
pub(crate) fn tune(socket: &OwnedFd, peer: Option<SocketAddr>) -> rustix::io::Result<()> {
    if peer.is_some_and(|peer| peer.ip().is_loopback()) {
        // Within a host there is no congestion, and an algorithm that paces costs up to a third of the rate. On real
        // networks the system's choice stands. Not there on every system, which is no harm.
        let _ = set_tcp_congestion(socket, "reno");
    }
    set_tcp_nodelay(socket, true)?;
    set_socket_keepalive(socket, true)?;
    set_tcp_keepidle(socket, Duration::from_secs(10))?;
    set_tcp_keepintvl(socket, Duration::from_secs(5))?;
    set_tcp_keepcnt(socket, 3)?;
    // Keep-alive looks only at idle connections: what was sent and is not acknowledged counts as lost just as soon.
    set_tcp_user_timeout(socket, VANISHED_MS)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use memcache_memory::SegmentOptions;

    use super::*;
    use crate::tcp::frame::{Op, REPLY_BYTES, Request};

    const TOKEN: u128 = 1;

    /// Whether the server answers on this connection, rather than hanging up.
    fn is_served(stream: &mut TcpStream) -> bool {
        let ping = Request {
            op: Op::Ping,
            id: 1,
            token: TOKEN,
            offset: 0,
            payload_bytes: 0,
            extent_bytes: 0,
            start: 0,
            budget_ms: 20_000,
        };
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&ping.encode()).is_ok() && stream.read_exact(&mut [0; REPLY_BYTES]).is_ok()
    }

    #[test]
    fn one_connection_too_many_is_turned_away_until_another_ends() {
        let segment = Segment::create(1 << 20, &SegmentOptions { huge_pages: false, prefault: false }).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = TcpServer::start(listener, Arc::new(segment), TOKEN, 2, None).unwrap();
        let connect = || TcpStream::connect(address).unwrap();
        let (mut first, mut second) = (connect(), connect());
        assert!(is_served(&mut first) && is_served(&mut second));
        assert!(!is_served(&mut connect()), "more connections than the limit");
        drop(first);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_served(&mut connect()) {
            assert!(Instant::now() < deadline, "the place of a connection that ended stays taken");
            thread::sleep(Duration::from_millis(1));
        }
        server.stop();
        assert!(!is_served(&mut second));
    }
}
