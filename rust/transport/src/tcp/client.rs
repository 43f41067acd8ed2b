//! A link over TCP: a few connections, several operations in flight on each. A call that moves much has a thread for
//! each connection it uses, until it returns; there is no other.

use std::borrow::Cow;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memcache_memory::Trailer;
use memcache_types::limits::{OBJECT_BYTES_MAX, PIECES_MAX, TRAILER_LEN};
use memcache_types::{Extent, ScatterList};
use parking_lot::{Condvar, Mutex};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_linger, socket_error};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use crate::capabilities::Capabilities;
use crate::error::TransportError;
use crate::link::Link;
use crate::net::{is_quiet, wait_for};
use crate::ops::{ReadOp, SummedWriteOp, WriteOp};
use crate::protocol::Protocol;
use crate::tcp::deal::{Hand, Joined, deal};
use crate::tcp::exchange::{Connection, Ending, Job, Lane, Outcome, drive};
use crate::tcp::frame::Op;
use crate::tcp::server::tune;

/// Connections all callers together may open, as a multiple of what one call uses.
const SHARE: usize = 4;
/// Bytes that make another connection worth its while.
const LANE_BYTES_MIN: u64 = 512 << 10;
/// Bytes a call has to move before its connections get a thread each: starting one takes some 30 us.
const PARALLEL_BYTES_MIN: u64 = 2 << 20;

/// Connections to the data server of one region.
#[derive(Debug)]
pub(crate) struct TcpLink {
    address: SocketAddr,
    token: u128,
    capabilities: Capabilities,
    pool: Mutex<Pool>,
    returned: Condvar,
    gone: AtomicBool,
    /// Whether several threads of this process can run at the same time.
    has_cores: bool,
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
            copies_on_caller: false,
            connections: connections.max(1),
        };
        let (pool, returned, gone) = (Mutex::default(), Condvar::new(), AtomicBool::new(false));
        let has_cores = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
        let link = Self { address, token, capabilities, pool, returned, gone, has_cores };
        let local = Cow::Owned(ScatterList::new());
        let ping = Job { op: Op::Ping, extent: None, start: 0, local, ending: Ending::Nothing, summed: false };
        // SAFETY: a ping has no pieces.
        let answer = unsafe { link.run(vec![(0, ping)], 1, deadline) };
        answer.into_iter().next().unwrap_or(Err(TransportError::PeerGone)).map(|_| link)
    }

    /// Runs the jobs of `count` operations, each with the number of its own, and returns what became of each
    /// operation. Those without a job come out as [`TransportError::PeerGone`].
    ///
    /// # Safety
    /// As [`drive`].
    unsafe fn run(&self, jobs: Vec<(usize, Job<'_>)>, count: usize, deadline: Instant) -> Vec<Outcome> {
        let endings: Vec<_> = jobs.iter().map(|(number, job)| (*number, job.extent, job.ending)).collect();
        // SAFETY: the same contract.
        let mut joined = unsafe { self.exchange(jobs, count, deadline) };
        // What was written in parts gets its trailer now that all of them are there.
        let sealed: Vec<_> = endings
            .iter()
            .filter(|(_, _, ending)| !matches!(ending, Ending::Nothing))
            .filter_map(|(number, extent, ending)| {
                let trailer = ending.trailer(joined[*number].is_whole_again()?.sum);
                Some((*number, *extent, trailer))
            })
            .collect();
        let mut jobs = Vec::with_capacity(sealed.len());
        for (number, extent, trailer) in &sealed {
            let (local, ending) = (Cow::Owned(ScatterList::new()), Ending::Ready(trailer));
            jobs.push((*number, Job { op: Op::Write, extent: *extent, start: 0, local, ending, summed: false }));
        }
        if !jobs.is_empty() {
            // SAFETY: these jobs have no pieces.
            let mut seals = unsafe { self.exchange(jobs, count, deadline) };
            for (number, ..) in &sealed {
                joined[*number] = std::mem::take(&mut seals[*number]);
            }
        }
        joined.into_iter().map(Joined::into_outcome).collect()
    }

    /// # Safety
    /// As [`drive`].
    unsafe fn exchange(&self, jobs: Vec<(usize, Job<'_>)>, count: usize, deadline: Instant) -> Vec<Joined> {
        let mut joined: Vec<Joined> = (0..count).map(|_| Joined::default()).collect();
        let bytes = jobs.iter().map(|(_, job)| job.local.bytes()).sum();
        let leased = match Instant::now() >= deadline {
            true => Err(TransportError::Timeout),
            false if jobs.is_empty() => return joined,
            false => self.lease(self.lanes_for(bytes), deadline),
        };
        let connections = match leased {
            Ok(connections) => connections,
            Err(error) => {
                for (number, _) in &jobs {
                    joined[*number].add(0, Err(error.clone()));
                }
                return joined;
            }
        };
        let (mut lanes, mut labels) = (Vec::with_capacity(connections.len()), Vec::with_capacity(connections.len()));
        let hands = deal(jobs, connections.len());
        for (connection, Hand { operations, jobs }) in connections.into_iter().zip(hands) {
            let lengths: Vec<u64> = jobs.iter().map(|job| job.local.bytes()).collect();
            labels.push((operations, lengths));
            lanes.push(Lane::new(connection, jobs, self.token, deadline));
        }
        let parallel = lanes.len() > 1 && bytes >= PARALLEL_BYTES_MIN && self.has_cores;
        // SAFETY: the same contract.
        unsafe { drive(&mut lanes, parallel, deadline) };
        let (mut whole, mut lost) = (Vec::with_capacity(lanes.len()), 0);
        for (lane, (operations, lengths)) in lanes.into_iter().zip(labels) {
            let (outcomes, connection) = lane.finish();
            for ((number, bytes), outcome) in operations.into_iter().zip(lengths).zip(outcomes) {
                joined[number].add(bytes, outcome);
            }
            match connection {
                Ok(connection) => whole.push(connection),
                Err(error) => {
                    lost += 1;
                    if error == TransportError::PeerGone {
                        self.gone.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
        self.give_back(whole, lost);
        joined
    }

    fn lanes_for(&self, bytes: u64) -> usize {
        let worth = usize::try_from(bytes / LANE_BYTES_MIN).unwrap_or(usize::MAX);
        worth.clamp(1, self.capabilities.connections)
    }

    /// Takes back the connections that are whole; the others have been hung up.
    fn give_back(&self, mut whole: Vec<Connection>, lost: usize) {
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

impl TcpLink {
    /// # Safety
    /// As [`Link::read`].
    unsafe fn read_all(&self, ops: &[ReadOp<'_>], summed: bool, deadline: Instant) -> Vec<Outcome> {
        let jobs = ops.iter().map(|op| {
            op.check(self.capabilities.region_bytes)?;
            let (extent, local) = (Some(op.extent), Cow::Borrowed(op.local));
            Ok(Job { op: Op::Read, extent, start: 0, local, ending: Ending::Nothing, summed })
        });
        // SAFETY: the pieces are writable and unshared by contract.
        unsafe { self.run_checked(jobs, deadline) }
    }

    /// Runs the operations that make sense; the others have failed already.
    ///
    /// # Safety
    /// As [`drive`].
    unsafe fn run_checked<'a>(
        &self,
        checked: impl ExactSizeIterator<Item = Result<Job<'a>, TransportError>>,
        deadline: Instant,
    ) -> Vec<Outcome> {
        let count = checked.len();
        let (mut jobs, mut refused) = (Vec::with_capacity(count), Vec::new());
        for (number, job) in checked.enumerate() {
            match job {
                Ok(job) => jobs.push((number, job)),
                Err(error) => refused.push((number, error)),
            }
        }
        // SAFETY: the same contract.
        let mut outcomes = unsafe { self.run(jobs, count, deadline) };
        for (number, error) in refused {
            outcomes[number] = Err(error);
        }
        outcomes
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
        // SAFETY: the same contract.
        let outcomes = unsafe { self.read_all(ops, false, deadline) };
        outcomes.into_iter().map(|outcome| outcome.map(|arrived| arrived.trailer)).collect()
    }

    unsafe fn read_summed(
        &self,
        ops: &[ReadOp<'_>],
        deadline: Instant,
    ) -> Vec<Result<([u8; TRAILER_LEN], u32), TransportError>> {
        // SAFETY: the same contract.
        let outcomes = unsafe { self.read_all(ops, true, deadline) };
        outcomes.into_iter().map(|outcome| outcome.map(|arrived| (arrived.trailer, arrived.sum))).collect()
    }

    unsafe fn write(&self, ops: &[WriteOp<'_>], deadline: Instant) -> Vec<Result<(), TransportError>> {
        let checked = ops.iter().map(|op| op.check(self.capabilities.region_bytes));
        let jobs = checked
            .zip(ops)
            .map(|(check, op)| check.map(|()| write_job(op.extent, op.local, Ending::Ready(op.trailer))));
        // SAFETY: the pieces are readable and unwritten by the contract of this function.
        unsafe { self.run_checked(jobs, deadline) }.into_iter().map(|outcome| outcome.map(drop)).collect()
    }

    unsafe fn write_summed(&self, ops: &[SummedWriteOp<'_>], deadline: Instant) -> Vec<Result<(), TransportError>> {
        let check = |op: &SummedWriteOp<'_>| op.with_trailer(&Trailer::RETRACTED).check(self.capabilities.region_bytes);
        let jobs = ops.iter().map(|op| check(op).map(|()| write_job(op.extent, op.local, Ending::Sealed(op))));
        // SAFETY: as above.
        unsafe { self.run_checked(jobs, deadline) }.into_iter().map(|outcome| outcome.map(drop)).collect()
    }

    fn is_open(&self) -> bool {
        !self.gone.load(Ordering::Relaxed)
            && self.pool.lock().idle.iter().all(|connection| is_quiet(connection.socket.as_fd()))
    }
}

fn write_job<'a>(extent: Extent, local: &'a ScatterList, ending: Ending<'a>) -> Job<'a> {
    let summed = matches!(ending, Ending::Sealed(_));
    Job { op: Op::Write, extent: Some(extent), start: 0, local: Cow::Borrowed(local), ending, summed }
}

/// Opens one connection within the deadline.
pub(crate) fn connect_to(address: SocketAddr, deadline: Instant) -> Result<OwnedFd, TransportError> {
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
