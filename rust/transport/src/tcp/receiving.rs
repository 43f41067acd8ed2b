//! The replies of a lane on their way in.

use std::io;
use std::os::fd::BorrowedFd;

use memcache_types::limits::TRAILER_LEN;

use crate::error::TransportError;
use crate::net::{PieceCursor, Runs, receive};
use crate::tcp::exchange::{Arrived, Job, NO_TRAILER, Outcome, TURN};
use crate::tcp::frame::{NotAFrame, Op, REPLY_BYTES, Reply, Status, TEXT_BYTES_MAX};
use crate::tcp::sending::Sending;
use crate::tcp::sum::{SUM_STEP, Sum};

/// How much of the replies is in.
#[derive(Debug)]
pub(super) struct Receiving {
    /// Id of the first reply.
    first_id: u64,
    /// Jobs whose reply is complete.
    answered: usize,
    header: [u8; REPLY_BYTES],
    header_done: usize,
    body: Body,
    pieces: PieceCursor,
    trailer: [u8; TRAILER_LEN],
    trailer_done: usize,
    text: Vec<u8>,
    /// Of the payload that is coming in, if it is summed.
    sum: Sum,
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

/// What a lane knows besides: its jobs, what became of them, and what has been sent.
#[derive(Debug)]
pub(super) struct Ledger<'a, 'b> {
    pub(super) jobs: &'b [Job<'a>],
    pub(super) sums: &'b [u32],
    pub(super) outcomes: &'b mut [Option<Outcome>],
    pub(super) sending: &'b Sending,
}

impl Receiving {
    pub(super) fn new(first_id: u64) -> Self {
        Self {
            first_id,
            answered: 0,
            header: [0; REPLY_BYTES],
            header_done: 0,
            body: Body::Unknown,
            pieces: PieceCursor::default(),
            trailer: NO_TRAILER,
            trailer_done: 0,
            text: Vec::new(),
            sum: Sum::default(),
        }
    }

    pub(super) fn is_done(&self, jobs: &[Job<'_>]) -> bool {
        self.answered >= jobs.len()
    }

    /// Receives what has come; false if nothing has.
    pub(super) fn advance(
        &mut self,
        fd: BorrowedFd<'_>,
        ledger: &mut Ledger<'_, '_>,
        runs: &mut Runs,
    ) -> Result<bool, TransportError> {
        let mut moved = false;
        for _ in 0..TURN {
            if self.is_done(ledger.jobs) {
                break;
            }
            runs.clear();
            self.fill(ledger.jobs, runs);
            // SAFETY: the header, trailer and text buffers live in `self`, borrowed exclusively; pieces are writable
            // by the contract of `Link::read`, under which the jobs were made.
            let received = unsafe { receive(fd, runs) };
            match received.map_err(|error| TransportError::from_io("recvmsg", &error))? {
                Some(0) => return Err(TransportError::PeerGone),
                Some(received) => self.note_received(received, ledger)?,
                None => break,
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Adds room for the rest of the reply that is coming in and, where its length is known, the header after it.
    fn fill(&mut self, jobs: &[Job<'_>], runs: &mut Runs) {
        let job = &jobs[self.answered];
        match self.body {
            Body::Unknown => {
                let rest = &mut self.header[self.header_done..];
                runs.push(rest.as_mut_ptr(), rest.len());
            }
            Body::Text { bytes, .. } => {
                let done = self.text.len();
                self.text.reserve_exact(bytes - done);
                let spare = self.text.spare_capacity_mut();
                runs.push(spare.as_mut_ptr().cast(), bytes - done);
            }
            Body::Payload => {
                let limit = if job.summed { SUM_STEP } else { u64::MAX };
                if self.pieces.fill(job.local.pieces(), limit, runs) {
                    let rest = &mut self.trailer[self.trailer_done..];
                    runs.push(rest.as_mut_ptr(), rest.len());
                    if self.answered + 1 < jobs.len() {
                        runs.push(self.header.as_mut_ptr(), REPLY_BYTES);
                    }
                }
            }
        }
    }

    fn note_received(&mut self, received: usize, ledger: &mut Ledger<'_, '_>) -> Result<(), TransportError> {
        match self.body {
            Body::Unknown => self.header_done += received,
            Body::Text { status, bytes } => {
                let length = self.text.len() + received;
                // SAFETY: the kernel has filled these bytes of the spare capacity reserved for it.
                unsafe { self.text.set_len(length) };
                if length == bytes {
                    return self.refused(status, ledger);
                }
                return Ok(());
            }
            Body::Payload => {
                let job = &ledger.jobs[self.answered];
                let rest = self.pieces.advance(job.local.pieces(), received as u64);
                if job.summed {
                    self.sum_what_came(job);
                }
                #[allow(clippy::cast_possible_truncation, reason = "at most what was handed to one system call")]
                let rest = rest as usize;
                let of_trailer = rest.min(TRAILER_LEN - self.trailer_done);
                self.trailer_done += of_trailer;
                if self.trailer_done < TRAILER_LEN {
                    return Ok(());
                }
                let arrived = Arrived { trailer: self.trailer, sum: self.sum.crc32c() };
                ledger.outcomes[self.answered] = Some(Ok(arrived));
                self.next(rest - of_trailer);
            }
        }
        self.note_header(ledger)
    }

    /// Sums in long steps, and the rest at the end.
    fn sum_what_came(&mut self, job: &Job<'_>) {
        let moved = self.pieces.moved();
        if moved == job.local.bytes() || moved - self.sum.bytes() >= SUM_STEP / 2 {
            // SAFETY: the kernel is done with these bytes, and by the contract of `Link::read` they are ours until the
            // call returns.
            unsafe { self.sum.extend_to(job.local.pieces(), moved) };
        }
    }

    fn next(&mut self, header_done: usize) {
        self.answered += 1;
        self.header_done = header_done;
        self.body = Body::Unknown;
        self.pieces = PieceCursor::default();
        self.trailer_done = 0;
        self.text.clear();
        self.sum = Sum::default();
    }

    /// Looks at the header of the next reply, if it is complete.
    fn note_header(&mut self, ledger: &mut Ledger<'_, '_>) -> Result<(), TransportError> {
        if self.header_done < REPLY_BYTES {
            return Ok(());
        }
        let reply = Reply::decode(&self.header).map_err(|NotAFrame(what)| nonsense(what))?;
        if reply.status == Status::Refused && reply.body_bytes <= TEXT_BYTES_MAX as u64 {
            // A refusal closes the connection and may answer no request in particular.
        } else if reply.id != self.first_id + self.answered as u64 || !ledger.sending.has_begun(self.answered) {
            return Err(nonsense("a reply to another request"));
        }
        let job = &ledger.jobs[self.answered];
        match reply.status {
            Status::Done => match job.op {
                Op::Read if reply.body_bytes == job.local.bytes() => self.body = Body::Payload,
                Op::Read => return Err(nonsense("a payload of another length")),
                Op::Write if !ledger.sending.has_ended(self.answered) => {
                    return Err(nonsense("a write that is done before it was sent"));
                }
                Op::Relay => return Err(nonsense("an answer that nobody here asked for")),
                Op::Ping | Op::Write => {
                    let arrived = Arrived { trailer: NO_TRAILER, sum: ledger.sums[self.answered] };
                    ledger.outcomes[self.answered] = Some(Ok(arrived));
                    self.next(0);
                }
            },
            status => match usize::try_from(reply.body_bytes) {
                Ok(0) => return self.refused(status, ledger),
                Ok(bytes) if bytes <= TEXT_BYTES_MAX => self.body = Body::Text { status, bytes },
                _ => return Err(nonsense("an endless refusal")),
            },
        }
        Ok(())
    }

    fn refused(&mut self, status: Status, ledger: &mut Ledger<'_, '_>) -> Result<(), TransportError> {
        let text = String::from_utf8_lossy(&self.text).into_owned();
        if status == Status::Refused {
            return Err(TransportError::refused(text));
        }
        ledger.outcomes[self.answered] = Some(Err(TransportError::invalid(text)));
        self.next(0);
        Ok(())
    }
}

fn nonsense(what: &str) -> TransportError {
    TransportError::from_io("data protocol", &io::Error::new(io::ErrorKind::InvalidData, what))
}
