//! A batch of operations on its way over one connection: requests are made while there is room for them, and completions
//! are dealt with in the order in which the requests were posted.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use memcache_memory::RawRegion;
use memcache_transport::TransportError;
use memcache_types::limits::{TRAILER_BYTES, TRAILER_LEN};

use super::{Direction, Job, Lane, Outcome, RING_START, SLOTS};
use crate::abi::{SEND_SIGNALED, SendRequest, Sge, WC_SUCCESS, WR_RDMA_READ, WR_RDMA_WRITE, WorkCompletion};
use crate::failure::{Failure, broken};
use crate::plan::{Cursor, RingCopy, RingPlace};
use crate::queue::Woken;

/// Requests handed to the device at once.
const CHAIN: usize = 16;
/// Longest wait for the device to give up what is under way. Then the queue pair is destroyed with it.
const DRAIN: Duration = Duration::from_secs(2);

/// A request the device has, in the order it was posted.
#[derive(Clone, Copy, Debug)]
struct Posted {
    id: u64,
    job: usize,
    step: Step,
    ring_bytes: u64,
    copies: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Retract,
    Payload { is_last: bool },
    Trailer,
}

/// The operation whose requests are being made.
#[derive(Clone, Copy, Debug)]
struct Current {
    job: usize,
    cursor: Cursor,
    is_retracted: bool,
}

/// Requests that are handed over together.
#[derive(Debug, Default)]
struct Chain {
    requests: Vec<SendRequest>,
    /// First piece of each.
    starts: Vec<usize>,
    sges: Vec<Sge>,
}

pub(super) struct Run<'l, 'a> {
    lane: &'l mut Lane,
    direction: Direction,
    jobs: &'a [Job<'a>],
    outcomes: Vec<Option<Outcome>>,
    current: Option<Current>,
    begun: usize,
    /// Operations that are over, in order: trailers complete in the order of their operations.
    finished: usize,
    /// Reads whose payload has arrived and whose trailer has not been asked for.
    arrived: VecDeque<usize>,
    posted: VecDeque<Posted>,
    /// Copies out of the ring, those of the oldest request first.
    copies: VecDeque<RingCopy>,
    chain: Chain,
    completions: Vec<WorkCompletion>,
}

impl<'l, 'a> Run<'l, 'a> {
    pub(super) fn new(lane: &'l mut Lane, direction: Direction, jobs: &'a [Job<'a>]) -> Self {
        Self {
            lane,
            direction,
            jobs,
            outcomes: vec![None; jobs.len()],
            current: None,
            begun: 0,
            finished: 0,
            arrived: VecDeque::new(),
            posted: VecDeque::new(),
            copies: VecDeque::new(),
            chain: Chain::default(),
            completions: Vec::new(),
        }
    }

    /// # Safety
    /// As [`Lane::run`].
    pub(super) unsafe fn drive(&mut self, deadline: Instant) -> Option<Failure> {
        let failure = loop {
            // SAFETY: by contract.
            if let Err(failure) = unsafe { self.fill_and_post(deadline) } {
                break failure;
            }
            if self.posted.is_empty() {
                if self.begun < self.jobs.len() {
                    // Nothing under way and still operations that were not begun: their time is over. The connection
                    // is none the worse for it.
                    self.outcomes[self.begun..].fill(Some(Err(TransportError::Timeout)));
                }
                return None;
            }
            let control = self.lane.control.as_fd();
            match self.lane.queue.wait(&mut self.completions, Some(control), deadline) {
                Ok(Woken::Completed) => {
                    // SAFETY: by contract.
                    if let Some((job, failure)) = unsafe { self.settle() } {
                        self.outcomes[job].get_or_insert_with(|| Err(failure.own()));
                        break failure;
                    }
                    // However quickly completions follow each other.
                    if !self.is_idle() && Instant::now() >= deadline {
                        break Failure::Deadline;
                    }
                }
                Ok(Woken::Deadline) => break Failure::Deadline,
                Ok(Woken::HungUp) => break Failure::PeerGone,
                Err(error) => break Failure::Request(broken("completion queue", error.to_string())),
            }
        };
        // SAFETY: by contract.
        unsafe { self.drain() };
        Some(failure)
    }

    /// Whether all operations that were begun are over.
    fn is_idle(&self) -> bool {
        self.posted.is_empty() && self.current.is_none() && self.arrived.is_empty()
    }

    /// Makes requests while there is room and hands them over.
    ///
    /// # Safety
    /// As [`Lane::run`].
    unsafe fn fill_and_post(&mut self, deadline: Instant) -> Result<(), Failure> {
        loop {
            let room = usize::try_from(self.lane.queue.entries).unwrap_or(1).saturating_sub(self.posted.len());
            // SAFETY: by contract.
            while self.chain.requests.len() < room.min(CHAIN) && unsafe { self.add_one(deadline) } {}
            if self.chain.requests.is_empty() {
                return Ok(());
            }
            // SAFETY: by contract.
            unsafe { self.post() }?;
        }
    }

    /// Adds the next request to the chain, or begins the next operation; false if there is nothing to add now.
    ///
    /// # Safety
    /// As [`Lane::run`].
    unsafe fn add_one(&mut self, deadline: Instant) -> bool {
        if let Some(job) = self.arrived.pop_front() {
            self.add_trailer(job);
            return true;
        }
        let Some(current) = self.current else {
            if self.begun == self.jobs.len() || self.begun - self.finished >= SLOTS || Instant::now() >= deadline {
                return false;
            }
            self.current = Some(Current { job: self.begun, cursor: Cursor::default(), is_retracted: false });
            self.begun += 1;
            return true;
        };
        let job = &self.jobs[current.job];
        if self.direction == Direction::Write && !current.is_retracted {
            self.current = Some(Current { is_retracted: true, ..current });
            self.add_retract(current.job);
            return true;
        }
        if !current.cursor.is_done(&job.parts) {
            // SAFETY: by contract.
            return unsafe { self.add_payload(current) };
        }
        self.current = None;
        match self.direction {
            Direction::Write => self.add_trailer(current.job),
            Direction::Read if job.parts.is_empty() => self.arrived.push_back(current.job),
            Direction::Read => {}
        }
        true
    }

    /// # Safety
    /// As [`Lane::run`].
    unsafe fn add_payload(&mut self, current: Current) -> bool {
        let Current { job, mut cursor, .. } = current;
        let lane = &mut *self.lane;
        let place = RingPlace { address: lane.scratch.address() + RING_START, lkey: lane.scratch.lkey() };
        let mut copies = Vec::new();
        let (parts, sges) = (&self.jobs[job].parts, &mut self.chain.sges);
        let Some(request) = cursor.next(parts, lane.limits, &mut lane.ring, place, sges, &mut copies) else {
            return false;
        };
        for copy in copies.iter().filter(|_| self.direction == Direction::Write) {
            let ring = lane.scratch_at(RING_START + copy.at, copy.bytes);
            // SAFETY: the part is mapped and unwritten by contract; the ring's room is ours since it was taken.
            unsafe { copy_between(copy.address, ring, Direction::Write) };
        }
        let is_last = cursor.is_done(parts);
        let (remote, count) = (self.jobs[job].offset + request.offset, copies.len());
        self.copies.extend(copies);
        self.current = Some(Current { cursor, ..current });
        let posted =
            Posted { id: 0, job, step: Step::Payload { is_last }, ring_bytes: request.ring_bytes, copies: count };
        self.add(posted, remote, request.sges.start);
        true
    }

    fn add_retract(&mut self, job: usize) {
        let at = self.jobs[job].offset + self.jobs[job].bytes - TRAILER_BYTES;
        let start = self.add_scratch_piece(0);
        self.add(Posted { id: 0, job, step: Step::Retract, ring_bytes: 0, copies: 0 }, at, start);
    }

    fn add_trailer(&mut self, job: usize) {
        let at = self.jobs[job].offset + self.jobs[job].bytes - TRAILER_BYTES;
        if self.direction == Direction::Write {
            self.lane.scratch_at(Lane::slot(job), TRAILER_BYTES).write_from(self.jobs[job].trailer);
        }
        let start = self.add_scratch_piece(Lane::slot(job));
        self.add(Posted { id: 0, job, step: Step::Trailer, ring_bytes: 0, copies: 0 }, at, start);
    }

    /// A piece of the length of a trailer.
    fn add_scratch_piece(&mut self, at: u64) -> usize {
        let (addr, lkey) = (self.lane.scratch.address() + at, self.lane.scratch.lkey());
        self.chain.sges.push(Sge { addr, length: 64, lkey });
        self.chain.sges.len() - 1
    }

    /// A request whose pieces begin at `start` and are the last of the chain.
    fn add(&mut self, posted: Posted, remote: u64, start: usize) {
        let is_asked_about = matches!(posted.step, Step::Trailer)
            || self.direction == Direction::Read && posted.step == Step::Payload { is_last: true };
        let id = self.lane.next_id;
        self.lane.next_id += 1;
        self.chain.starts.push(start);
        self.chain.requests.push(SendRequest {
            wr_id: id,
            next: null_mut(),
            sg_list: null_mut(),
            num_sge: i32::try_from(self.chain.sges.len() - start).unwrap_or(0),
            opcode: if self.direction == Direction::Read { WR_RDMA_READ } else { WR_RDMA_WRITE },
            send_flags: if is_asked_about { SEND_SIGNALED } else { 0 },
            imm_data: 0,
            remote_addr: self.lane.remote.base + remote,
            rkey: self.lane.remote.rkey,
            unused: [0; 9],
        });
        self.posted.push_back(Posted { id, ..posted });
    }

    /// Hands the chain to the device. Its last request always says when it is done: whatever it was that stopped the
    /// filling will be free again then.
    ///
    /// # Safety
    /// As [`Lane::run`].
    unsafe fn post(&mut self) -> Result<(), Failure> {
        let Chain { requests, starts, sges } = &mut self.chain;
        let count = requests.len();
        if let Some(last) = requests.last_mut() {
            last.send_flags |= SEND_SIGNALED;
        }
        let (first_request, first_piece) = (requests.as_mut_ptr(), sges.as_mut_ptr());
        for (index, start) in starts.iter().enumerate() {
            // SAFETY: both indices are within their vectors, which do not move before the device has taken the list.
            unsafe {
                let request = first_request.add(index);
                (*request).sg_list = first_piece.add(*start);
                (*request).next = if index + 1 < count { first_request.add(index + 1) } else { null_mut() };
            }
        }
        let counters = &self.lane.counters;
        for posted in self.posted.iter().rev().take(count) {
            let is_payload = matches!(posted.step, Step::Payload { .. });
            let counter = if is_payload { &counters.payload } else { &counters.trailer };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the list was just linked; the parts are registered and stay untouched by contract, the scratch
        // memory belongs to the lane. `drive` does not return before all of it has completed or the queue failed.
        let result = unsafe { self.lane.queue.post(first_request) };
        let taken = result.as_ref().map_or_else(|(_, bad)| index_of(first_request, *bad, count), |()| count);
        self.posted.truncate(self.posted.len() - (count - taken));
        requests.clear();
        starts.clear();
        sges.clear();
        result.map_err(|(error, _)| Failure::Request(broken("ibv_post_send", error.to_string())))
    }

    /// Deals with the completions that were taken; what the first bad one says, and of which operation.
    ///
    /// # Safety
    /// As [`Lane::run`].
    unsafe fn settle(&mut self) -> Option<(usize, Failure)> {
        let mut failure = None;
        for completion in std::mem::take(&mut self.completions) {
            let is_good = completion.status == WC_SUCCESS;
            while let Some(posted) = self.posted.front().copied().filter(|posted| posted.id <= completion.wr_id) {
                self.posted.pop_front();
                // Requests before the one that is reported were done: they complete in order, and bad ones always
                // report.
                let is_done = is_good || posted.id < completion.wr_id;
                // SAFETY: by contract.
                unsafe { self.complete(posted, is_done) };
                if !is_done && failure.is_none() {
                    failure = Some((posted.job, Failure::of(&completion, self.lane.device.verbs)));
                }
            }
        }
        failure
    }

    /// # Safety
    /// As [`Lane::run`].
    unsafe fn complete(&mut self, posted: Posted, is_done: bool) {
        for _ in 0..posted.copies {
            let Some(copy) = self.copies.pop_front() else { break };
            if is_done && self.direction == Direction::Read {
                let ring = self.lane.scratch_at(RING_START + copy.at, copy.bytes);
                // SAFETY: the part is writable and ours by contract; the device has filled this room and let go.
                unsafe { copy_between(copy.address, ring, Direction::Read) };
            }
        }
        self.lane.ring.give(posted.ring_bytes);
        if !is_done {
            return;
        }
        match posted.step {
            Step::Payload { is_last: true } if self.direction == Direction::Read => {
                self.arrived.push_back(posted.job);
            }
            Step::Trailer => {
                let mut trailer = [0; TRAILER_LEN];
                self.lane.scratch_at(Lane::slot(posted.job), TRAILER_BYTES).read_into(&mut trailer);
                self.outcomes[posted.job] = Some(Ok(trailer));
                self.finished += 1;
            }
            Step::Retract | Step::Payload { .. } => {}
        }
    }

    /// Makes the device give up what is under way and waits until it has.
    ///
    /// # Safety
    /// As [`Lane::run`].
    unsafe fn drain(&mut self) {
        if let Err(error) = self.lane.queue.fail() {
            tracing::warn!(%error, "a queue pair cannot be stopped; it is destroyed");
            return;
        }
        let until = Instant::now() + DRAIN;
        while !self.posted.is_empty() {
            match self.lane.queue.wait(&mut self.completions, None, until) {
                // SAFETY: by contract. That requests fail now is no news.
                Ok(Woken::Completed) => drop(unsafe { self.settle() }),
                Ok(Woken::Deadline | Woken::HungUp) | Err(_) => {
                    tracing::warn!(requests = self.posted.len(), "a device keeps requests of a stopped queue pair");
                    return;
                }
            }
        }
    }

    pub(super) fn outcomes(&mut self, failure: Option<&Failure>) -> Vec<Outcome> {
        let other = || failure.map_or(TransportError::PeerGone, Failure::others);
        std::mem::take(&mut self.outcomes).into_iter().map(|one| one.unwrap_or_else(|| Err(other()))).collect()
    }
}

/// Which of the `count` requests from `first` this is; the first if it is none of them.
fn index_of(first: *mut SendRequest, bad: *mut SendRequest, count: usize) -> usize {
    (0..count).find(|index| first.wrapping_add(*index) == bad).unwrap_or(0)
}

/// Copies between the ring and memory that is not registered.
///
/// # Safety
/// As many bytes from `address` as the ring part has are readable (a write) or writable and unshared (a read).
unsafe fn copy_between(address: u64, ring: RawRegion<'_>, direction: Direction) {
    let Ok(address) = usize::try_from(address) else { return };
    let local = std::ptr::with_exposed_provenance_mut::<u8>(address);
    let (ring, bytes): (NonNull<u8>, usize) = (ring.base(), ring.len());
    // SAFETY: by contract; the ring is memory of the lane that nothing else uses meanwhile, so they do not overlap.
    unsafe {
        match direction {
            Direction::Write => std::ptr::copy_nonoverlapping(local, ring.as_ptr(), bytes),
            Direction::Read => std::ptr::copy_nonoverlapping(ring.as_ptr(), local, bytes),
        }
    }
}
