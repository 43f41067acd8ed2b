//! From the pieces of an object to work requests: plain arithmetic, no device.
//!
//! A work request joins one contiguous range of the peer's memory with up to `pieces` local ones. Pieces that the
//! device may use take part directly; the others go through a [`Ring`] of registered memory.

use std::ops::Range;

use crate::abi::Sge;

/// Least part of the ring worth a work request of its own, as a fraction of the ring.
const RING_SHARE: u64 = 4;

/// A run of local memory, and the key it is registered under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) address: u64,
    pub(crate) bytes: u64,
    /// `None`: not registered, to be copied through the ring.
    pub(crate) lkey: Option<u32>,
}

/// What one work request can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestLimits {
    /// Local pieces, at least 1.
    pub(crate) pieces: usize,
    /// Bytes, at least 1 and no more than a piece's length field holds.
    pub(crate) message_bytes: u64,
}

/// One work request: `sges` is its range within the list they were appended to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Offset of its first byte within the object.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) sges: Range<usize>,
    /// Bytes taken from the ring, given back in the same order.
    pub(crate) ring_bytes: u64,
}

/// A copy between the ring and memory that is not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingCopy {
    /// Where in the ring.
    pub(crate) at: u64,
    /// Where in the caller's memory.
    pub(crate) address: u64,
    pub(crate) bytes: u64,
}

/// Room in a run of memory, taken at one end and given back at the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring {
    bytes: u64,
    taken: u64,
    given: u64,
}

impl Ring {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { bytes, taken: 0, given: 0 }
    }

    fn free(&self) -> u64 {
        self.bytes - (self.taken - self.given)
    }

    /// Takes up to `wanted` bytes in one run. Nothing while less is free than is wanted or worth it.
    fn take(&mut self, wanted: u64) -> Option<(u64, u64)> {
        let free = self.free();
        if free < wanted.min(self.bytes / RING_SHARE).max(1) {
            return None;
        }
        let at = self.taken % self.bytes;
        let bytes = wanted.min(free).min(self.bytes - at);
        self.taken += bytes;
        Some((at, bytes))
    }

    /// Gives back the oldest `bytes` bytes.
    pub(crate) fn give(&mut self, bytes: u64) {
        debug_assert!(self.given + bytes <= self.taken, "more given back than taken");
        self.given += bytes;
    }
}

/// Where in the ring's memory a device finds it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingPlace {
    pub(crate) address: u64,
    pub(crate) lkey: u32,
}

/// How far an object has been turned into requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    part: usize,
    done: u64,
    offset: u64,
}

impl Cursor {
    /// Whether all of `parts` is in requests.
    pub(crate) fn is_done(&self, parts: &[Part]) -> bool {
        self.part == parts.len()
    }

    /// The next request, its pieces appended to `sges` and its copies to `copies`. `None` while the ring has no room
    /// for its first byte, and when nothing is left.
    pub(crate) fn next(
        &mut self,
        parts: &[Part],
        limits: RequestLimits,
        ring: &mut Ring,
        place: RingPlace,
        sges: &mut Vec<Sge>,
        copies: &mut Vec<RingCopy>,
    ) -> Option<Request> {
        let (first, offset) = (sges.len(), self.offset);
        let (mut bytes, mut ring_bytes) = (0, 0);
        while let Some(part) = parts.get(self.part) {
            let wanted = (part.bytes - self.done).min(limits.message_bytes - bytes);
            if wanted == 0 && part.bytes > self.done {
                break;
            }
            let address = part.address + self.done;
            let taken = match part.lkey {
                _ if wanted == 0 => 0,
                Some(lkey) if push(sges, first, limits.pieces, address, wanted, lkey) => wanted,
                Some(_) => break,
                None => {
                    // One more piece, unless it goes on where the last one ends; asked first, taken after.
                    let next = place.address + ring.taken % ring.bytes;
                    if sges.len() - first == limits.pieces && !follows(sges, next, place.lkey) {
                        break;
                    }
                    let Some((at, run)) = ring.take(wanted) else { break };
                    push(sges, first, limits.pieces, place.address + at, run, place.lkey);
                    copies.push(RingCopy { at, address, bytes: run });
                    ring_bytes += run;
                    run
                }
            };
            bytes += taken;
            self.done += taken;
            if self.done == part.bytes {
                self.part += 1;
                self.done = 0;
            }
        }
        self.offset += bytes;
        (bytes > 0).then_some(Request { offset, bytes, sges: first..sges.len(), ring_bytes })
    }
}

fn follows(sges: &[Sge], address: u64, lkey: u32) -> bool {
    sges.last().is_some_and(|last| last.lkey == lkey && last.addr + u64::from(last.length) == address)
}

/// Adds a run to the request that starts at `first`; false if it has no room for one more.
fn push(sges: &mut Vec<Sge>, first: usize, pieces: usize, addr: u64, bytes: u64, lkey: u32) -> bool {
    // Within the message limit, which fits in the field; the sum of a merged piece as well.
    let length = u32::try_from(bytes).unwrap_or(u32::MAX);
    if sges.len() > first
        && follows(sges, addr, lkey)
        && let Some(last) = sges.last_mut()
        && let Some(sum) = last.length.checked_add(length)
    {
        last.length = sum;
        return true;
    }
    if sges.len() - first == pieces {
        return false;
    }
    sges.push(Sge { addr, length, lkey });
    true
}

#[cfg(test)]
mod tests;
