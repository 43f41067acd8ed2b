//! A link over TCP: a few connections, several operations in flight on each, no thread of its own.

use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memcache_types::ScatterList;
use memcache_types::limits::{OBJECT_BYTES_MAX, PIECES_MAX, TRAILER_LEN};
use parking_lot::{Condvar, Mutex};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_linger, socket_error};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use crate::capabilities::Capabilities;
use crate::error::TransportError;
use crate::link::Link;
use crate::net::{is_quiet, wait_for};
use crate::ops::{ReadOp, WriteOp};
use crate::protocol::Protocol;
use crate::tcp::exchange::{Connection, Job, Lane, Outcome, drive};
use crate::tcp::frame::Op;
use crate::tcp::server::tune;

/// Connections all callers together may open, as a multiple of what one call uses.
const SHARE: usize = 4;
/// Bytes that make another connection worth its while.
const LANE_BYTES_MIN: u64 = 256 << 10;
/// Stands in for the trailer of operations that write none.
const NO_TRAILER: [u8; TRAILER_LEN] = [0; TRAILER_LEN];

/// Connections to the data server of one region.
#[derive(Debug)]
pub(crate) struct TcpLink {
    address: SocketAddr,
    token: u128,
    capabilities: Capabilities,
    pool: Mutex<Pool>,
    returned: Condvar,
    gone: AtomicBool,
}

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Connection>,
    /// Idle ones and those in use.
    open: usize,
}

impl TcpLink {
    /// Connects to `address` and asks whether the region of `token` is there.
    pub(crate) fn open(
        address: &str,
        token: u128,
        region_bytes: u64,
        connections: usize,
        deadline: Instant,
    ) -> Result<Self, TransportError> {
        let unavailable = |why: String| TransportError::Unavailable { protocol: Protocol::HostTcp, why };
        let address = address
            .to_socket_addrs()
            .map_err(|error| unavailable(format!("cannot resolve {address}: {error}")))?
            .next()
            .ok_or_else(|| unavailable(format!("{address} has no address")))?;
        let capabilities = Capabilities {
            protocol: Protocol::HostTcp,
            region_bytes,
            pieces_max: PIECES_MAX,
            payload_bytes_max: OBJECT_BYTES_MAX.min(region_bytes),
            one_sided: false,
            copies_on_caller: false,
            connections: connections.max(1),
        };
        let (pool, returned, gone) = (Mutex::default(), Condvar::new(), AtomicBool::new(false));
        let link = Self { address, token, capabilities, pool, returned, gone };
        let nothing = ScatterList::new();
        let ping = Job { index: 0, op: Op::Ping, extent: None, local: &nothing, trailer: &NO_TRAILER };
        // SAFETY: a ping has no pieces.
        let answer = unsafe { link.run(vec![ping], 1, deadline) };
        match answer.into_iter().next() {
            Some(Ok(_)) => Ok(link),
            Some(Err(error)) => Err(error),
            None => Err(TransportError::PeerGone),
        }
    }

    /// # Safety
    /// As [`drive`].
    unsafe fn run(&self, jobs: Vec<Job<'_>>, count: usize, deadline: Instant) -> Vec<Outcome> {
        let mut outcomes: Vec<Option<Outcome>> = vec![None; count];
        if Instant::now() >= deadline {
            outcomes.fill(Some(Err(TransportError::Timeout)));
        } else if !jobs.is_empty() {
            match self.lease(self.lanes_for(&jobs), deadline) {
                Ok(connections) => {
                    let mut lanes = self.deal(connections, jobs, deadline);
                    // SAFETY: the same contract.
                    unsafe { drive(&mut lanes, &mut outcomes, deadline) };
                    self.settle(lanes, &mut outcomes);
                }
                Err(error) => {
                    for job in jobs {
                        outcomes[job.index] = Some(Err(error.clone()));
                    }
                }
            }
        }
        outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(TransportError::PeerGone))).collect()
    }

    fn lanes_for(&self, jobs: &[Job<'_>]) -> usize {
        let bytes: u64 = jobs.iter().map(|job| job.local.bytes()).sum();
        let worth = usize::try_from(bytes / LANE_BYTES_MIN).unwrap_or(usize::MAX);
        worth.min(jobs.len()).clamp(1, self.capabilities.connections)
    }

    /// Gives each job to the connection with the fewest bytes so far.
    fn deal<'a>(&self, connections: Vec<Connection>, jobs: Vec<Job<'a>>, deadline: Instant) -> Vec<Lane<'a>> {
        let mut hands: Vec<(u64, Vec<Job<'a>>)> = connections.iter().map(|_| (0, Vec::new())).collect();
        for job in jobs {
            if let Some((bytes, hand)) = hands.iter_mut().min_by_key(|(bytes, _)| *bytes) {
                *bytes += job.local.bytes() + 1;
                hand.push(job);
            }
        }
        connections
            .into_iter()
            .zip(hands)
            .map(|(connection, (_, hand))| Lane::new(connection, hand, self.token, deadline))
            .collect()
    }

    /// Takes back the connections that are whole and hangs up the others.
    fn settle(&self, lanes: Vec<Lane<'_>>, outcomes: &mut [Option<Outcome>]) {
        let mut whole = Vec::with_capacity(lanes.len());
        let mut lost = 0;
        for lane in lanes {
            match lane.finish(outcomes) {
                Ok(connection) => whole.push(connection),
                Err(error) => {
                    lost += 1;
                    if error == TransportError::PeerGone {
                        self.gone.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
        let mut pool = self.pool.lock();
        pool.open -= lost;
        pool.idle.append(&mut whole);
        drop(pool);
        self.returned.notify_all();
    }

    /// Takes up to `wanted` connections, at least one, opening what is missing.
    fn lease(&self, wanted: usize, deadline: Instant) -> Result<Vec<Connection>, TransportError> {
        let cap = self.capabilities.connections * SHARE;
        let mut taken = Vec::with_capacity(wanted);
        let missing = {
            let mut pool = self.pool.lock();
            loop {
                while let Some(connection) = pool.idle.pop_if(|_| taken.len() < wanted) {
                    // One that the server closed while it was idle is replaced without a word.
                    if is_quiet(connection.socket.as_fd()) { taken.push(connection) } else { pool.open -= 1 }
                }
                let missing = (wanted - taken.len()).min(cap.saturating_sub(pool.open));
                if missing > 0 || !taken.is_empty() {
                    pool.open += missing;
                    break missing;
                }
                if self.returned.wait_until(&mut pool, deadline).timed_out() {
                    return Err(TransportError::Timeout);
                }
            }
        };
        let opened: Vec<_> = (0..missing).map(|_| connect_to(self.address, deadline)).collect();
        let failed = opened.iter().filter(|result| result.is_err()).count();
        if failed > 0 {
            self.pool.lock().open -= failed;
            self.returned.notify_all();
        }
        let mut error = None;
        for result in opened {
            match result {
                Ok(socket) => taken.push(Connection { socket, next_id: 1 }),
                Err(reason) => error = Some(reason),
            }
        }
        match error {
            Some(error) if taken.is_empty() => {
                self.gone.store(true, Ordering::Relaxed);
                Err(error)
            }
            _ => Ok(taken),
        }
    }
}

impl Link for TcpLink {
    fn protocol(&self) -> Protocol {
        Protocol::HostTcp
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    unsafe fn read(&self, ops: &[ReadOp<'_>], deadline: Instant) -> Vec<Result<[u8; TRAILER_LEN], TransportError>> {
        let checked = ops.iter().map(|op| op.check(self.capabilities.region_bytes));
        let (jobs, refused) = sort(checked.zip(ops).enumerate(), |index, op| Job {
            index,
            op: Op::Read,
            extent: Some(op.extent),
            local: op.local,
            trailer: &NO_TRAILER,
        });
        // SAFETY: the pieces are writable and unshared by the contract of this function.
        let mut outcomes = unsafe { self.run(jobs, ops.len(), deadline) };
        for (index, error) in refused {
            outcomes[index] = Err(error);
        }
        outcomes
    }

    unsafe fn write(&self, ops: &[WriteOp<'_>], deadline: Instant) -> Vec<Result<(), TransportError>> {
        let checked = ops.iter().map(|op| op.check(self.capabilities.region_bytes));
        let (jobs, refused) = sort(checked.zip(ops).enumerate(), |index, op| Job {
            index,
            op: Op::Write,
            extent: Some(op.extent),
            local: op.local,
            trailer: op.trailer,
        });
        // SAFETY: the pieces are readable and unwritten by the contract of this function.
        let mut outcomes = unsafe { self.run(jobs, ops.len(), deadline) };
        for (index, error) in refused {
            outcomes[index] = Err(error);
        }
        outcomes.into_iter().map(|outcome| outcome.map(drop)).collect()
    }

    fn is_open(&self) -> bool {
        !self.gone.load(Ordering::Relaxed)
            && self.pool.lock().idle.iter().all(|connection| is_quiet(connection.socket.as_fd()))
    }
}

type Refusals = Vec<(usize, TransportError)>;

/// Parts operations that make sense from those that do not.
fn sort<'a, O: 'a>(
    checked: impl Iterator<Item = (usize, (Result<(), TransportError>, &'a O))>,
    job: impl Fn(usize, &'a O) -> Job<'a>,
) -> (Vec<Job<'a>>, Refusals) {
    let (mut jobs, mut refused) = (Vec::new(), Vec::new());
    for (index, (check, op)) in checked {
        match check {
            Ok(()) => jobs.push(job(index, op)),
            Err(error) => refused.push((index, error)),
        }
    }
    (jobs, refused)
}

/// Opens one connection within the deadline.
fn connect_to(address: SocketAddr, deadline: Instant) -> Result<OwnedFd, TransportError> {
    if Instant::now() >= deadline {
        return Err(TransportError::Timeout);
    }
    let failed = |operation| move |error: Errno| TransportError::from_io(operation, &error.into());
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None).map_err(failed("socket"))?;
    tune(&socket, Some(address)).map_err(failed("setsockopt"))?;
    match connect(&socket, &address) {
        Ok(()) => {}
        Err(Errno::INPROGRESS | Errno::INTR) => {
            wait_for(socket.as_fd(), PollFlags::OUT, deadline)?;
            socket_error(&socket).map_err(failed("getsockopt"))?.map_err(failed("connect"))?;
        }
        Err(error) => return Err(failed("connect")(error)),
    }
    // A connection that is dropped half-way shall not keep sending what is still queued for it.
    set_socket_linger(&socket, Some(Duration::ZERO)).map_err(failed("setsockopt"))?;
    Ok(socket)
}
