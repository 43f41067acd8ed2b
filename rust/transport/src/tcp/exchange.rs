//! The client's side of a batch: requests out and replies in over several connections.

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Instant;

use memcache_types::limits::TRAILER_LEN;
use memcache_types::{Extent, ScatterList};
use rustix::event::{PollFd, PollFlags};

use crate::error::TransportError;
use crate::net::{Runs, wait_any};
use crate::ops::SummedWriteOp;
use crate::tcp::frame::Op;
use crate::tcp::receiving::{Ledger, Receiving};
use crate::tcp::sending::{Common, Sending};

/// System calls on one connection before the others get their turn.
pub(super) const TURN: usize = 4;
/// Stands in for the trailer of operations that write none.
pub(super) const NO_TRAILER: [u8; TRAILER_LEN] = [0; TRAILER_LEN];

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Job<'a> {
    pub(crate) op: Op,
    pub(crate) extent: Option<Extent>,
    /// Where in the extent the payload of this request starts.
    pub(crate) start: u64,
    pub(crate) local: Cow<'a, ScatterList>,
    pub(crate) ending: Ending<'a>,
    /// Whether to make the CRC-32C of the payload.
    pub(crate) summed: bool,
}

/// What follows the payload of a write.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending<'a> {
    /// Nothing: it is no write.
    Nothing,
    /// These bytes.
    Ready(&'a [u8; TRAILER_LEN]),
    /// The trailer of this operation with the checksum of the payload.
    Sealed(&'a SummedWriteOp<'a>),
}

/// What a request brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// What a read found behind the payload.
    pub(crate) trailer: [u8; TRAILER_LEN],
    /// CRC-32C of the payload, if it was asked for.
    pub(crate) sum: u32,
}

/// Result of one request.
pub(crate) type Outcome = Result<Arrived, TransportError>;

/// A connection that has been opened, with the next free request id.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    pub(crate) next_id: u64,
}

/// One connection and the jobs it carries.
#[derive(Debug)]
pub(crate) struct Lane<'a> {
    connection: Connection,
    jobs: Vec<Job<'a>>,
    common: Common,
    sending: Sending,
    receiving: Receiving,
    sums: Vec<u32>,
    outcomes: Vec<Option<Outcome>>,
    failed: Option<TransportError>,
}

impl<'a> Lane<'a> {
    pub(crate) fn new(connection: Connection, jobs: Vec<Job<'a>>, token: u128, deadline: Instant) -> Self {
        let first_id = connection.next_id;
        Self {
            connection,
            common: Common { token, deadline, first_id },
            sending: Sending::default(),
            receiving: Receiving::new(first_id),
            sums: vec![0; jobs.len()],
            outcomes: vec![None; jobs.len()],
            jobs,
            failed: None,
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.connection.socket.as_fd()
    }

    fn is_active(&self) -> bool {
        self.failed.is_none() && (self.has_unanswered() || self.has_unsent())
    }

    fn has_unanswered(&self) -> bool {
        !self.receiving.is_done(&self.jobs)
    }

    fn has_unsent(&self) -> bool {
        !self.sending.is_done(&self.jobs)
    }

    /// What became of each job, and of the connection: itself, if it can be used again, and otherwise why not.
    pub(crate) fn finish(mut self) -> (Vec<Outcome>, Result<Connection, TransportError>) {
        let rest = self.failed.clone().unwrap_or(TransportError::PeerGone);
        let outcomes = self.outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(rest.clone()))).collect();
        self.connection.next_id = self.common.first_id + self.jobs.len() as u64;
        (outcomes, self.failed.map_or(Ok(self.connection), Err))
    }

    /// Receives and sends what goes without waiting; false if that was nothing.
    fn advance(&mut self, runs: &mut Runs) -> Result<bool, TransportError> {
        let (fd, jobs) = (self.connection.socket.as_fd(), &self.jobs[..]);
        let mut ledger = Ledger { jobs, sums: &self.sums, outcomes: &mut self.outcomes, sending: &self.sending };
        let received = self.receiving.advance(fd, &mut ledger, runs)?;
        let sent = self.sending.advance(fd, jobs, &self.common, &mut self.sums, runs)?;
        Ok(received || sent)
    }
}

/// Drives all lanes until each job has its outcome or its lane has failed; with `parallel`, each on its own thread,
/// all of which end before this returns.
///
/// # Safety
/// The pieces of all read jobs are writable and unshared, those of all write jobs readable and unwritten, until
/// this returns.
pub(crate) unsafe fn drive(lanes: &mut [Lane<'_>], parallel: bool, deadline: Instant) {
    if parallel && let Some((own, others)) = lanes.split_first_mut() {
        thread::scope(|scope| {
            for lane in others {
                // Where no thread is to be had, the lane is left for later.
                let named = thread::Builder::new().name("memcache-tcp".to_owned());
                let _ = named.spawn_scoped(scope, || drive_here(std::slice::from_mut(lane), deadline));
            }
            drive_here(std::slice::from_mut(own), deadline);
        });
    }
    drive_here(lanes, deadline);
}

fn drive_here(lanes: &mut [Lane<'_>], deadline: Instant) {
    let mut runs = Runs::default();
    while lanes.iter().any(Lane::is_active) {
        let mut moved = false;
        for lane in lanes.iter_mut().filter(|lane| lane.is_active()) {
            match lane.advance(&mut runs) {
                Ok(progress) => moved |= progress,
                Err(error) => lane.failed = Some(error),
            }
        }
        let failure = match Instant::now() >= deadline {
            true => Err(TransportError::Timeout),
            false if moved => continue,
            false => wait_for_lanes(lanes, deadline),
        };
        if let Err(error) = failure {
            for lane in lanes.iter_mut().filter(|lane| lane.is_active()) {
                lane.failed = Some(error.clone());
            }
        }
    }
}

fn wait_for_lanes(lanes: &[Lane<'_>], deadline: Instant) -> Result<(), TransportError> {
    let mut fds: Vec<PollFd<'_>> = lanes
        .iter()
        .filter(|lane| lane.is_active())
        .map(|lane| {
            let (reading, writing) = (lane.has_unanswered(), lane.has_unsent());
            let interest = if reading { PollFlags::IN } else { PollFlags::empty() }
                | if writing { PollFlags::OUT } else { PollFlags::empty() };
            PollFd::from_borrowed_fd(lane.fd(), interest)
        })
        .collect();
    if fds.is_empty() || wait_any(&mut fds, deadline)? { Ok(()) } else { Err(TransportError::Timeout) }
}
