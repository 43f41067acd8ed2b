//! The client's side of a batch: requests out and replies in over several connections, driven by the calling thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use memcache_types::limits::TRAILER_LEN;
use memcache_types::{Extent, ScatterList};
use rustix::event::{PollFd, PollFlags};

use crate::error::TransportError;
use crate::net::{More, PieceCursor, Runs, receive, send, wait_any};
use crate::tcp::frame::{NotAFrame, Op, REPLY_BYTES, REQUEST_BYTES, Reply, Request, Status, TEXT_BYTES_MAX};

/// System calls on one connection before the others get their turn.
const TURN: usize = 4;
/// Requests that go out in one system call at most.
const BURST_JOBS: usize = 64;
/// No further request is added to a system call that writes more than this many bytes.
const BURST_BYTES: u64 = 64 << 10;

/// One operation, and where its result goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job<'a> {
    pub(crate) index: usize,
    pub(crate) op: Op,
    pub(crate) extent: Option<Extent>,
    pub(crate) local: &'a ScatterList,
    /// What a write puts at the end of the extent.
    pub(crate) trailer: &'a [u8; TRAILER_LEN],
}

/// Result of one operation: the trailer a read found, or [`Job::trailer`] again.
pub(crate) type Outcome = Result<[u8; TRAILER_LEN], TransportError>;

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
    token: u128,
    deadline: Instant,
    first_id: u64,
    sending: Sending,
    receiving: Receiving,
    /// Jobs whose reply is complete.
    answered: usize,
    failed: Option<TransportError>,
}

/// How much of the requests is out.
#[derive(Debug, Default)]
struct Sending {
    job: usize,
    /// Headers of this job and those that go out with it.
    headers: Vec<[u8; REQUEST_BYTES]>,
    header_done: usize,
    pieces: PieceCursor,
    trailer_done: usize,
}

/// How much of the next reply is in.
#[derive(Debug)]
struct Receiving {
    header: [u8; REPLY_BYTES],
    header_done: usize,
    body: Body,
    pieces: PieceCursor,
    trailer: [u8; TRAILER_LEN],
    trailer_done: usize,
    text: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    /// The header is not complete yet.
    Unknown,
    Payload,
    Text {
        status: Status,
        bytes: usize,
    },
}

impl<'a> Lane<'a> {
    pub(crate) fn new(connection: Connection, jobs: Vec<Job<'a>>, token: u128, deadline: Instant) -> Self {
        let first_id = connection.next_id;
        let receiving = Receiving {
            header: [0; REPLY_BYTES],
            header_done: 0,
            body: Body::Unknown,
            pieces: PieceCursor::default(),
            trailer: [0; TRAILER_LEN],
            trailer_done: 0,
            text: Vec::new(),
        };
        Self {
            connection,
            jobs,
            token,
            deadline,
            first_id,
            sending: Sending::default(),
            receiving,
            answered: 0,
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
        self.answered < self.jobs.len()
    }

    /// A refused write goes on to be sent after its answer has come, or the connection would be of no use.
    fn has_unsent(&self) -> bool {
        self.sending.job < self.jobs.len()
    }

    /// What became of the connection: itself, if it can be used again, and otherwise why not.
    pub(crate) fn finish(mut self, outcomes: &mut [Option<Outcome>]) -> Result<Connection, TransportError> {
        let Some(error) = self.failed else {
            self.connection.next_id = self.first_id + self.jobs.len() as u64;
            return Ok(self.connection);
        };
        for job in &self.jobs {
            outcomes[job.index].get_or_insert_with(|| Err(error.clone()));
        }
        Err(error)
    }

    /// Sends what the socket takes; false if it took nothing.
    fn advance_sending(&mut self, runs: &mut Runs) -> Result<bool, TransportError> {
        let mut moved = false;
        for _ in 0..TURN {
            if !self.has_unsent() {
                break;
            }
            runs.clear();
            self.fill_requests(runs)?;
            // SAFETY: headers and trailers live in `self` and in the jobs; pieces are readable by the contract of
            // `Link::write`, under which the jobs were made.
            let sent = unsafe { send(self.fd(), runs, More::Nothing) };
            match sent.map_err(|error| TransportError::from_io("sendmsg", &error))? {
                Some(sent) => self.note_sent(sent),
                None => break,
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Adds the rest of the job that is going out, and the next ones as long as they are small. Fails with the
    /// deadline if none has begun and none may begin any more.
    fn fill_requests(&mut self, runs: &mut Runs) -> Result<(), TransportError> {
        self.encode_headers()?;
        let sending = &self.sending;
        let (mut header_done, mut pieces, mut trailer_done) =
            (sending.header_done, sending.pieces, sending.trailer_done);
        for (job, header) in self.jobs[sending.job..].iter().zip(&sending.headers) {
            runs.push_slice(&header[header_done..]);
            if job.op == Op::Write {
                if !pieces.fill(job.local.pieces(), runs) {
                    break;
                }
                runs.push_slice(&job.trailer[trailer_done..]);
            }
            (header_done, pieces, trailer_done) = (0, PieceCursor::default(), 0);
        }
        Ok(())
    }

    /// Makes the headers of one burst. A header that is not on its way yet is made anew each time, since it says how
    /// much time is left.
    fn encode_headers(&mut self) -> Result<(), TransportError> {
        self.sending.headers.truncate(usize::from(self.sending.header_done > 0));
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return if self.sending.headers.is_empty() { Err(TransportError::Timeout) } else { Ok(()) };
        }
        let mut bytes = 0;
        for (number, job) in self.jobs.iter().enumerate().skip(self.sending.job).take(BURST_JOBS) {
            if number >= self.sending.job + self.sending.headers.len() {
                let request = Request {
                    op: job.op,
                    id: self.first_id + number as u64,
                    token: self.token,
                    offset: job.extent.map_or(0, Extent::offset),
                    payload_bytes: job.local.bytes(),
                    extent_bytes: job.extent.map_or(0, Extent::bytes),
                    budget_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1),
                };
                self.sending.headers.push(request.encode());
            }
            bytes += if job.op == Op::Write { job.local.bytes() } else { 0 };
            if bytes > BURST_BYTES {
                break;
            }
        }
        Ok(())
    }

    fn note_sent(&mut self, mut sent: usize) {
        let mut finished = 0;
        while sent > 0 && self.has_unsent() {
            let job = self.jobs[self.sending.job];
            let sending = &mut self.sending;
            let of_header = sent.min(REQUEST_BYTES - sending.header_done);
            sending.header_done += of_header;
            sent -= of_header;
            let mut is_done = sending.header_done == REQUEST_BYTES;
            if is_done && job.op == Op::Write {
                #[allow(clippy::cast_possible_truncation, reason = "at most what was handed to one system call")]
                let rest = sending.pieces.advance(job.local.pieces(), sent as u64) as usize;
                let of_trailer = rest.min(TRAILER_LEN - sending.trailer_done);
                sending.trailer_done += of_trailer;
                sent = rest - of_trailer;
                is_done = sending.trailer_done == TRAILER_LEN;
            }
            if is_done {
                finished += 1;
                (sending.header_done, sending.pieces, sending.trailer_done) = (0, PieceCursor::default(), 0);
                sending.job += 1;
            }
        }
        self.sending.headers.drain(..finished);
    }

    /// Receives what has come; false if nothing has.
    fn advance_receiving(&mut self, runs: &mut Runs, outcomes: &mut [Option<Outcome>]) -> Result<bool, TransportError> {
        let mut moved = false;
        for _ in 0..TURN {
            if !self.has_unanswered() {
                break;
            }
            runs.clear();
            self.fill_replies(runs);
            // SAFETY: the header, trailer and text buffers live in `self`, borrowed exclusively; pieces are writable
            // by the contract of `Link::read`, under which the jobs were made.
            let received = unsafe { receive(self.fd(), runs) };
            match received.map_err(|error| TransportError::from_io("recvmsg", &error))? {
                Some(0) => return Err(TransportError::PeerGone),
                Some(received) => self.note_received(received, outcomes)?,
                None => break,
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Adds room for the rest of the reply that is coming in and, where its length is known, the header after it.
    fn fill_replies(&mut self, runs: &mut Runs) {
        let job = self.jobs[self.answered];
        let last = self.answered + 1 == self.jobs.len();
        let receiving = &mut self.receiving;
        match receiving.body {
            Body::Unknown => {
                let rest = &mut receiving.header[receiving.header_done..];
                runs.push(rest.as_mut_ptr(), rest.len());
            }
            Body::Text { bytes, .. } => {
                let done = receiving.text.len();
                receiving.text.reserve_exact(bytes - done);
                let spare = receiving.text.spare_capacity_mut();
                runs.push(spare.as_mut_ptr().cast(), bytes - done);
            }
            Body::Payload => {
                if receiving.pieces.fill(job.local.pieces(), runs) {
                    let rest = &mut receiving.trailer[receiving.trailer_done..];
                    runs.push(rest.as_mut_ptr(), rest.len());
                    if !last {
                        runs.push(receiving.header.as_mut_ptr(), REPLY_BYTES);
                    }
                }
            }
        }
    }

    fn note_received(&mut self, received: usize, outcomes: &mut [Option<Outcome>]) -> Result<(), TransportError> {
        let job = self.jobs[self.answered];
        let receiving = &mut self.receiving;
        match receiving.body {
            Body::Unknown => receiving.header_done += received,
            Body::Text { status, bytes } => {
                let length = receiving.text.len() + received;
                // SAFETY: the kernel has filled these bytes of the spare capacity reserved for it.
                unsafe { receiving.text.set_len(length) };
                if length == bytes {
                    return self.refused(status, outcomes);
                }
                return Ok(());
            }
            Body::Payload => {
                let rest = receiving.pieces.advance(job.local.pieces(), received as u64);
                #[allow(clippy::cast_possible_truncation, reason = "at most what was handed to one system call")]
                let rest = rest as usize;
                let of_trailer = rest.min(TRAILER_LEN - receiving.trailer_done);
                receiving.trailer_done += of_trailer;
                if receiving.trailer_done < TRAILER_LEN {
                    return Ok(());
                }
                outcomes[job.index] = Some(Ok(receiving.trailer));
                self.next_reply(rest - of_trailer);
            }
        }
        self.note_header(outcomes)
    }

    fn next_reply(&mut self, header_done: usize) {
        self.answered += 1;
        let receiving = &mut self.receiving;
        receiving.header_done = header_done;
        receiving.body = Body::Unknown;
        receiving.pieces = PieceCursor::default();
        receiving.trailer_done = 0;
        receiving.text.clear();
    }

    /// Looks at the header of the next reply, if it is complete.
    fn note_header(&mut self, outcomes: &mut [Option<Outcome>]) -> Result<(), TransportError> {
        if self.receiving.header_done < REPLY_BYTES {
            return Ok(());
        }
        let reply = Reply::decode(&self.receiving.header).map_err(|NotAFrame(what)| nonsense(what))?;
        if reply.status == Status::Refused && reply.body_bytes <= TEXT_BYTES_MAX as u64 {
            // A refusal closes the connection and may answer no request in particular.
        } else if reply.id != self.first_id + self.answered as u64 || self.answered > self.sending.job {
            return Err(nonsense("a reply to another request"));
        }
        let job = self.jobs[self.answered];
        match reply.status {
            Status::Done => match job.op {
                Op::Read if reply.body_bytes == job.local.bytes() => self.receiving.body = Body::Payload,
                Op::Read => return Err(nonsense("a payload of another length")),
                Op::Ping | Op::Write => {
                    outcomes[job.index] = Some(Ok(*job.trailer));
                    self.next_reply(0);
                }
            },
            status => match usize::try_from(reply.body_bytes) {
                Ok(0) => return self.refused(status, outcomes),
                Ok(bytes) if bytes <= TEXT_BYTES_MAX => self.receiving.body = Body::Text { status, bytes },
                _ => return Err(nonsense("an endless refusal")),
            },
        }
        Ok(())
    }

    fn refused(&mut self, status: Status, outcomes: &mut [Option<Outcome>]) -> Result<(), TransportError> {
        let text = String::from_utf8_lossy(&self.receiving.text).into_owned();
        if status == Status::Refused {
            return Err(TransportError::refused(text));
        }
        outcomes[self.jobs[self.answered].index] = Some(Err(TransportError::invalid(text)));
        self.next_reply(0);
        Ok(())
    }
}

fn nonsense(what: &str) -> TransportError {
    TransportError::from_io("data protocol", &io::Error::new(io::ErrorKind::InvalidData, what))
}

/// Drives all lanes until each job has its outcome or its lane has failed.
///
/// # Safety
/// The pieces of all read jobs are writable and unshared, those of all write jobs readable and unwritten, until
/// this returns.
pub(crate) unsafe fn drive(lanes: &mut [Lane<'_>], outcomes: &mut [Option<Outcome>], deadline: Instant) {
    let mut runs = Runs::default();
    while lanes.iter().any(Lane::is_active) {
        let mut moved = false;
        for lane in lanes.iter_mut().filter(|lane| lane.is_active()) {
            let turn = lane
                .advance_receiving(&mut runs, outcomes)
                .and_then(|received| lane.advance_sending(&mut runs).map(|sent| received || sent));
            match turn {
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
