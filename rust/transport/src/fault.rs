//! A link on which things go wrong by script, for tests of everything above it.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use memcache_memory::{RawRegion, Trailer, gather};
use memcache_types::ScatterList;
use memcache_types::limits::TRAILER_LEN;
use parking_lot::Mutex;

use crate::capabilities::Capabilities;
use crate::error::TransportError;
use crate::link::Link;
use crate::ops::{ReadOp, WriteOp};
use crate::protocol::Protocol;

/// What happens to one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: it goes through.
    Pass,
    /// It is lost on the way: not done, and [`TransportError::Timeout`] without the wait.
    Drop,
    /// It is done, but its answer is lost: [`TransportError::Timeout`] without the wait.
    LoseReply,
    /// It goes through later, or at the deadline if that comes first.
    Delay(Duration),
    /// One bit is flipped on the way: in byte `at` of payload and trailer together, counted round.
    Corrupt {
        /// Which byte.
        at: u64,
    },
    /// The peer dies after this many bytes of the payload: [`TransportError::PeerGone`].
    Cut {
        /// How many bytes still moved.
        after: u64,
    },
}

/// Passes operations to another link, doing to each what the next line of the script says. After the last line
/// everything passes.
#[derive(Debug)]
pub struct FaultLink {
    inner: Arc<dyn Link>,
    script: Mutex<VecDeque<Fault>>,
}

impl FaultLink {
    /// Wraps `inner`. Operations take lines of the script in the order they are given to the link.
    pub fn new(inner: Arc<dyn Link>, script: impl IntoIterator<Item = Fault>) -> Self {
        Self { inner, script: Mutex::new(script.into_iter().collect()) }
    }

    /// Lines of the script that are still to come.
    pub fn remaining(&self) -> usize {
        self.script.lock().len()
    }

    fn next(&self) -> Fault {
        self.script.lock().pop_front().unwrap_or(Fault::Pass)
    }

    /// # Safety
    /// As [`Link::read`], for one operation.
    unsafe fn read_one(&self, op: &ReadOp<'_>, deadline: Instant) -> Result<[u8; TRAILER_LEN], TransportError> {
        // SAFETY: the same contract; a shorter operation touches a part of the same pieces.
        let pass = |op: ReadOp<'_>| single(unsafe { self.inner.read(&[op], deadline) });
        match self.next() {
            Fault::Pass => pass(*op),
            Fault::Drop => Err(TransportError::Timeout),
            Fault::LoseReply => pass(*op).and(Err(TransportError::Timeout)),
            Fault::Delay(delay) => {
                sleep_until(delay, deadline);
                pass(*op)
            }
            Fault::Corrupt { at } => {
                let mut trailer = pass(*op)?;
                let at = at % (op.payload_bytes + TRAILER_LEN as u64);
                match address_of(op.local, at) {
                    // SAFETY: a byte of a piece that is writable and unshared by this function's contract.
                    Some(address) => unsafe { *std::ptr::with_exposed_provenance_mut::<u8>(address) ^= 1 },
                    None => flip(&mut trailer, at - op.payload_bytes),
                }
                Ok(trailer)
            }
            Fault::Cut { after } => {
                let payload_bytes = after.min(op.payload_bytes);
                let local = prefix(op.local, payload_bytes);
                pass(ReadOp { payload_bytes, local: &local, ..*op }).and(Err(TransportError::PeerGone))
            }
        }
    }

    /// # Safety
    /// As [`Link::write`], for one operation.
    unsafe fn write_one(&self, op: &WriteOp<'_>, deadline: Instant) -> Result<(), TransportError> {
        // SAFETY: the same contract; other operations made here read a part of the same pieces, or a copy.
        let pass = |op: WriteOp<'_>| single(unsafe { self.inner.write(&[op], deadline) });
        match self.next() {
            Fault::Pass => pass(*op),
            Fault::Drop => Err(TransportError::Timeout),
            Fault::LoseReply => pass(*op).and(Err(TransportError::Timeout)),
            Fault::Delay(delay) => {
                sleep_until(delay, deadline);
                pass(*op)
            }
            Fault::Corrupt { at } => {
                let mut trailer = *op.trailer;
                // SAFETY: the pieces are readable by this function's contract.
                let mut payload = unsafe { copy_of(op.local) };
                let at = at % (op.payload_bytes + TRAILER_LEN as u64);
                match usize::try_from(at).ok().and_then(|at| payload.get_mut(at)) {
                    Some(byte) => *byte ^= 1,
                    None => flip(&mut trailer, at - op.payload_bytes),
                }
                let local = ScatterList::single(payload.as_ptr().expose_provenance() as u64, payload.len() as u64);
                pass(WriteOp { local: &local, trailer: &trailer, ..*op })
            }
            Fault::Cut { after } => {
                let payload_bytes = after.min(op.payload_bytes);
                let local = prefix(op.local, payload_bytes);
                pass(WriteOp { payload_bytes, local: &local, trailer: &Trailer::RETRACTED, ..*op })
                    .and(Err(TransportError::PeerGone))
            }
        }
    }
}

impl Link for FaultLink {
    fn protocol(&self) -> Protocol {
        self.inner.protocol()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    unsafe fn read(&self, ops: &[ReadOp<'_>], deadline: Instant) -> Vec<Result<[u8; TRAILER_LEN], TransportError>> {
        // SAFETY: the same contract, for each.
        ops.iter().map(|op| unsafe { self.read_one(op, deadline) }).collect()
    }

    unsafe fn write(&self, ops: &[WriteOp<'_>], deadline: Instant) -> Vec<Result<(), TransportError>> {
        // SAFETY: the same contract, for each.
        ops.iter().map(|op| unsafe { self.write_one(op, deadline) }).collect()
    }

    fn is_open(&self) -> bool {
        self.inner.is_open()
    }
}

fn single<T>(results: Vec<Result<T, TransportError>>) -> Result<T, TransportError> {
    results.into_iter().next().unwrap_or(Err(TransportError::PeerGone))
}

fn sleep_until(delay: Duration, deadline: Instant) {
    thread::sleep(delay.min(deadline.saturating_duration_since(Instant::now())));
}

fn flip(trailer: &mut [u8; TRAILER_LEN], at: u64) {
    if let Some(byte) = usize::try_from(at).ok().and_then(|at| trailer.get_mut(at)) {
        *byte ^= 1;
    }
}

/// The local address of byte `at` of a list; `None` past its end.
fn address_of(list: &ScatterList, mut at: u64) -> Option<usize> {
    for piece in list.pieces() {
        if at < piece.bytes {
            return usize::try_from(piece.address + at).ok();
        }
        at -= piece.bytes;
    }
    None
}

/// The first `bytes` bytes of a list.
fn prefix(list: &ScatterList, mut bytes: u64) -> ScatterList {
    let mut short = ScatterList::new();
    for piece in list.pieces() {
        let part = piece.bytes.min(bytes);
        short.push(piece.address, part);
        bytes -= part;
    }
    short
}

/// # Safety
/// All pieces are readable, and nobody writes to them meanwhile.
unsafe fn copy_of(list: &ScatterList) -> Vec<u8> {
    let mut bytes = vec![0u8; usize::try_from(list.bytes()).unwrap_or(0)];
    let Some(first) = bytes.first_mut() else { return bytes };
    // SAFETY: the whole vector, alive and not otherwise used while the view is.
    let target = unsafe { RawRegion::new(NonNull::from(first), bytes.len()) };
    // SAFETY: the pieces are readable by this function's contract and the vector is fresh.
    unsafe { gather(list, target) };
    bytes
}
