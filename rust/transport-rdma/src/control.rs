//! The TCP connection on which an RDMA connection is agreed on, from the asking side.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_transport::{Protocol, TransportError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

use crate::device::Device;
use crate::handshake::{HELLO_BYTES, Hello, Malformed, Verdict, WELCOME_BYTES, Welcome};
use crate::lane::{Counters, ENTRIES, Lane, Remote};
use crate::queue::{Queue, Role};

/// A silent connection is probed after this, that often, that many times: a host that went away without a word is
/// noticed within half a minute also while nothing is transferred.
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_PERIOD: Duration = Duration::from_secs(5);
const PROBES: u32 = 4;

/// The region to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) token: u128,
    pub(crate) region_bytes: u64,
}

/// RDMA is not to be had, for this reason.
pub(crate) fn unavailable(why: impl Into<String>) -> TransportError {
    TransportError::Unavailable { protocol: Protocol::HostRdma, why: why.into() }
}

/// The first address of `host:port`.
pub(crate) fn resolve(address: &str) -> Result<SocketAddr, TransportError> {
    let mut found =
        address.to_socket_addrs().map_err(|error| unavailable(format!("cannot resolve {address}: {error}")))?;
    found.next().ok_or_else(|| unavailable(format!("{address} has no address")))
}

/// Opens a connection to the region within the deadline.
pub(crate) fn connect(
    device: &Arc<Device>,
    target: &Target,
    counters: &Arc<Counters>,
    deadline: Instant,
) -> Result<Lane, TransportError> {
    let failed = |operation| move |error: io::Error| TransportError::from_io(operation, &error);
    let mut stream = TcpStream::connect_timeout(&target.address, left(deadline)?).map_err(failed("connect"))?;
    tune(&stream).map_err(failed("setsockopt"))?;
    let local = stream.local_addr().ok().map(|address| address.ip());
    let gid = device.gid_for(local).map_err(unavailable)?;
    let queue = Queue::new(device, gid, Role::Asking, ENTRIES).map_err(failed("ibv_create_qp"))?;
    let hello = Hello { token: target.token, terms: queue.terms() };
    stream.set_write_timeout(Some(left(deadline)?)).map_err(failed("setsockopt"))?;
    stream.write_all(&hello.encode()).map_err(failed("write"))?;
    let mut answer = [0; WELCOME_BYTES];
    read_by(&mut stream, &mut answer, deadline)?;
    let welcome = check(&answer, target)?;
    queue.connect(&welcome.terms).map_err(|error| {
        unavailable(format!(
            "{} cannot reach {} ({:?} there, {gid:?} here): {error}",
            device.name, target.address, welcome.terms
        ))
    })?;
    let remote = Remote { base: welcome.base, rkey: welcome.rkey };
    Lane::new(device, queue, stream, remote, Arc::clone(counters)).map_err(failed("ibv_reg_mr"))
}

fn check(answer: &[u8; WELCOME_BYTES], target: &Target) -> Result<Welcome, TransportError> {
    let welcome = Welcome::decode(answer)
        .map_err(|Malformed(what)| TransportError::refused(format!("its RDMA answer is none: {what}")))?;
    match welcome.verdict {
        Verdict::Welcome if welcome.region_bytes == target.region_bytes => Ok(welcome),
        Verdict::Welcome => Err(TransportError::refused(format!(
            "it lends {} bytes where {} were announced",
            welcome.region_bytes, target.region_bytes
        ))),
        Verdict::UnknownToken => Err(TransportError::refused("this is not the memory you look for")),
        Verdict::Full => Err(TransportError::refused("too many RDMA connections")),
        Verdict::OtherNetwork => Err(unavailable("one side has InfiniBand and the other Ethernet".to_owned())),
        Verdict::Failed => Err(unavailable("the peer's device refused the connection; its log says why".to_owned())),
    }
}

/// What is left until the deadline; an error if that is nothing.
fn left(deadline: Instant) -> Result<Duration, TransportError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(TransportError::Timeout) } else { Ok(left) }
}

fn read_by(stream: &mut TcpStream, mut rest: &mut [u8], deadline: Instant) -> Result<(), TransportError> {
    while !rest.is_empty() {
        let timeout = left(deadline)?;
        stream.set_read_timeout(Some(timeout)).map_err(|error| TransportError::from_io("setsockopt", &error))?;
        match stream.read(rest) {
            Ok(0) => return Err(TransportError::PeerGone),
            Ok(count) => rest = &mut rest[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(TransportError::Timeout),
            Err(error) => return Err(TransportError::from_io("read", &error)),
        }
    }
    Ok(())
}

/// No waiting for full packets, and probes while it is silent.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_PERIOD)?;
    Ok(sockopt::set_tcp_keepcnt(stream, PROBES)?)
}

/// Whether a connection is whole and has nothing to say.
pub(crate) fn is_quiet(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN | PollFlags::RDHUP)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

const _: () = assert!(HELLO_BYTES < 1 << 10 && WELCOME_BYTES < 1 << 10, "messages fit in any socket buffer");
