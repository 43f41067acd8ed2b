//! The requests of a lane on their way out.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use memcache_types::Extent;
use memcache_types::limits::TRAILER_LEN;

use crate::error::TransportError;
use crate::net::{More, PieceCursor, Runs, send};
use crate::tcp::exchange::{Ending, Job, NO_TRAILER, TURN};
use crate::tcp::frame::{Op, REQUEST_BYTES, Request};
use crate::tcp::sum::{SUM_STEP, Sum};

/// Requests that go out in one system call at most.
const BURST_JOBS: usize = 64;
/// No further request is added to a system call that writes more than this many bytes.
const BURST_BYTES: u64 = 64 << 10;

/// How much of the requests is out.
#[derive(Debug, Default)]
pub(super) struct Sending {
    job: usize,
    /// Of this job and those that go out with it.
    heads: Vec<Head>,
    header_done: usize,
    pieces: PieceCursor,
    trailer_done: usize,
    /// Of the payload of this job, where it is summed as it goes.
    sum: Sum,
}

/// What goes out before and after a payload.
#[derive(Debug)]
struct Head {
    header: [u8; REQUEST_BYTES],
    /// Of a write whose payload has been summed, if it is to be.
    trailer: [u8; TRAILER_LEN],
}

/// What all requests of a lane have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Common {
    pub(super) token: u128,
    pub(super) deadline: Instant,
    /// Id of the first request.
    pub(super) first_id: u64,
}

/// Whether a write is summed step by step, each just before it is sent, rather than all at once.
fn is_summed_in_steps(job: &Job<'_>) -> bool {
    job.op == Op::Write && job.summed && job.local.bytes() > SUM_STEP
}

impl Sending {
    /// A refused write goes on to be sent after its answer has come, or the connection would be of no use.
    pub(super) fn is_done(&self, jobs: &[Job<'_>]) -> bool {
        self.job >= jobs.len()
    }

    /// Whether this request, or a part of it, has gone out.
    pub(super) fn has_begun(&self, job: usize) -> bool {
        job <= self.job
    }

    /// Whether all of this request has gone out.
    pub(super) fn has_ended(&self, job: usize) -> bool {
        job < self.job
    }

    /// Sends what the socket takes; false if it took nothing. `sums` receives the checksums of payloads.
    pub(super) fn advance(
        &mut self,
        fd: BorrowedFd<'_>,
        jobs: &[Job<'_>],
        common: &Common,
        sums: &mut [u32],
        runs: &mut Runs,
    ) -> Result<bool, TransportError> {
        let mut moved = false;
        for _ in 0..TURN {
            if self.is_done(jobs) {
                break;
            }
            self.make_heads(jobs, common, sums)?;
            self.sum_ahead(jobs, sums);
            runs.clear();
            self.fill(jobs, runs);
            // SAFETY: headers and trailers live in `self`; pieces are readable by the contract of `Link::write`, under
            // which the jobs were made.
            let sent = unsafe { send(fd, runs, More::Nothing) };
            match sent.map_err(|error| TransportError::from_io("sendmsg", &error))? {
                Some(sent) => self.note_sent(jobs, sent),
                None => break,
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Makes what one burst needs. A header that is not on its way yet is made anew each time, since it says how much
    /// time is left. Fails with the deadline if none has begun and none may begin any more.
    fn make_heads(&mut self, jobs: &[Job<'_>], common: &Common, sums: &mut [u32]) -> Result<(), TransportError> {
        self.heads.truncate(usize::from(self.header_done > 0));
        let left = common.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return if self.heads.is_empty() { Err(TransportError::Timeout) } else { Ok(()) };
        }
        let mut bytes = 0;
        for (number, job) in jobs.iter().enumerate().skip(self.job).take(BURST_JOBS) {
            if number >= self.job + self.heads.len() {
                let request = Request {
                    op: job.op,
                    id: common.first_id + number as u64,
                    token: common.token,
                    offset: job.extent.map_or(0, Extent::offset),
                    payload_bytes: job.local.bytes(),
                    extent_bytes: job.extent.map_or(0, Extent::bytes),
                    start: job.start,
                    budget_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1),
                };
                let trailer = trailer_of(job, &mut sums[number]);
                self.heads.push(Head { header: request.encode(), trailer });
            }
            bytes += if job.op == Op::Write { job.local.bytes() } else { 0 };
            if bytes > BURST_BYTES {
                break;
            }
        }
        Ok(())
    }

    /// Sums the next step of a long payload, which also brings it into the cache, and completes its trailer with the
    /// last one.
    fn sum_ahead(&mut self, jobs: &[Job<'_>], sums: &mut [u32]) {
        let (Some(job), Some(head)) = (jobs.get(self.job), self.heads.first_mut()) else { return };
        if !is_summed_in_steps(job) || self.sum.bytes() == job.local.bytes() {
            return;
        }
        if self.sum.bytes() <= self.pieces.moved() {
            // SAFETY: the pieces are readable and unwritten by the contract of `Link::write`.
            unsafe { self.sum.extend_to(job.local.pieces(), self.pieces.moved() + SUM_STEP) };
        }
        if self.sum.bytes() == job.local.bytes() {
            sums[self.job] = self.sum.crc32c();
            head.trailer = job.ending.trailer(self.sum.crc32c());
        }
    }

    /// Adds the rest of the job that is going out, and the next ones as long as they are small.
    fn fill(&self, jobs: &[Job<'_>], runs: &mut Runs) {
        let (mut header_done, mut pieces, mut trailer_done) = (self.header_done, self.pieces, self.trailer_done);
        for (number, (job, head)) in jobs[self.job..].iter().zip(&self.heads).enumerate() {
            runs.push_slice(&head.header[header_done..]);
            if job.op == Op::Write {
                let limit = match (is_summed_in_steps(job), number) {
                    (false, _) => u64::MAX,
                    (true, 0) => self.sum.bytes() - pieces.moved(),
                    (true, _) => 0,
                };
                if !pieces.fill(job.local.pieces(), limit, runs) {
                    break;
                }
                runs.push_slice(&head.trailer[trailer_done..]);
            }
            (header_done, pieces, trailer_done) = (0, PieceCursor::default(), 0);
        }
    }

    fn note_sent(&mut self, jobs: &[Job<'_>], mut sent: usize) {
        let mut finished = 0;
        while sent > 0 && !self.is_done(jobs) {
            let job = &jobs[self.job];
            let of_header = sent.min(REQUEST_BYTES - self.header_done);
            self.header_done += of_header;
            sent -= of_header;
            let mut is_done = self.header_done == REQUEST_BYTES;
            if is_done && job.op == Op::Write {
                #[allow(clippy::cast_possible_truncation, reason = "at most what was handed to one system call")]
                let rest = self.pieces.advance(job.local.pieces(), sent as u64) as usize;
                let of_trailer = rest.min(TRAILER_LEN - self.trailer_done);
                self.trailer_done += of_trailer;
                sent = rest - of_trailer;
                is_done = self.trailer_done == TRAILER_LEN;
            }
            if is_done {
                finished += 1;
                (self.header_done, self.pieces, self.trailer_done) = (0, PieceCursor::default(), 0);
                self.sum = Sum::default();
                self.job += 1;
            }
        }
        self.heads.drain(..finished);
    }
}

/// The trailer of a job whose payload is summed at once, or not at all.
fn trailer_of(job: &Job<'_>, sum: &mut u32) -> [u8; TRAILER_LEN] {
    if job.op != Op::Write || is_summed_in_steps(job) {
        return NO_TRAILER;
    }
    if job.summed {
        let mut whole = Sum::default();
        // SAFETY: the pieces are readable and unwritten by the contract of `Link::write`.
        unsafe { whole.extend_to(job.local.pieces(), job.local.bytes()) };
        *sum = whole.crc32c();
    }
    job.ending.trailer(*sum)
}

impl Ending<'_> {
    /// The trailer to write, given the checksum of the payload.
    pub(super) fn trailer(&self, crc32c: u32) -> [u8; TRAILER_LEN] {
        match self {
            Self::Nothing => NO_TRAILER,
            Self::Ready(trailer) => **trailer,
            Self::Sealed(op) => op.seal(crc32c),
        }
    }
}
