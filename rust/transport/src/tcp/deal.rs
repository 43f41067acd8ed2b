//! Which connection moves what: about equal bytes each, large objects cut where a share is full.

use std::borrow::Cow;

use memcache_memory::{Trailer, checksum_combine};
use memcache_types::limits::TRAILER_LEN;

use crate::error::TransportError;
use crate::net::PieceCursor;
use crate::tcp::exchange::{Arrived, Ending, Job, Outcome};
use crate::tcp::frame::Op;

/// A part is at least this long: below, another request costs more than an uneven share.
const PART_BYTES_MIN: u64 = 128 << 10;
/// Parts begin at multiples of this.
const PART_ALIGN: u64 = 64 << 10;

/// What one connection gets: jobs, and the number of the operation that each belongs to.
#[derive(Debug, Default)]
pub(super) struct Hand<'a> {
    pub(super) operations: Vec<usize>,
    pub(super) jobs: Vec<Job<'a>>,
}

/// Deals operations, one job each, to `hands` connections. At most one operation a connection is cut off at its end,
/// and the parts of one operation are in the order of its bytes, hand by hand.
pub(super) fn deal<'a>(operations: Vec<(usize, Job<'a>)>, hands: usize) -> Vec<Hand<'a>> {
    let total: u64 = operations.iter().map(|(_, job)| job.local.bytes()).sum();
    let share = total.div_ceil(hands.max(1) as u64);
    let mut dealt: Vec<Hand<'a>> = (0..hands).map(|_| Hand::default()).collect();
    let (mut hand, mut filled) = (0, 0);
    let mut give = |hand: usize, operation, job| {
        dealt[hand].operations.push(operation);
        dealt[hand].jobs.push(job);
    };
    for (number, job) in operations {
        let bytes = job.local.bytes();
        let (mut start, mut behind) = (0, PieceCursor::default());
        while hand + 1 < hands && bytes - start > (share.saturating_sub(filled)) + PART_BYTES_MIN {
            let room = share.saturating_sub(filled) / PART_ALIGN * PART_ALIGN;
            if room >= PART_BYTES_MIN {
                give(hand, number, cut(&job, &mut behind, room));
                start += room;
            }
            hand += 1;
            filled = 0;
        }
        filled += bytes - start;
        give(hand, number, if start == 0 { job } else { cut(&job, &mut behind, bytes - start) });
    }
    dealt
}

/// The next `bytes` bytes of a job as a job of their own.
fn cut<'a>(job: &Job<'a>, behind: &mut PieceCursor, bytes: u64) -> Job<'a> {
    let (start, pieces) = (behind.moved(), job.local.pieces());
    let local = Cow::Owned(behind.ahead(pieces, bytes));
    behind.advance(pieces, bytes);
    // A write is not to be believed before all of its parts are there.
    let ending = if job.op == Op::Write { Ending::Ready(&Trailer::RETRACTED) } else { Ending::Nothing };
    Job { op: job.op, extent: job.extent, start, local, ending, summed: job.summed }
}

/// What became of one operation, from what became of its parts.
#[derive(Debug, Default)]
pub(super) struct Joined {
    parts: usize,
    outcome: Option<Outcome>,
}

impl Joined {
    /// Adds the next part, of this many bytes.
    pub(super) fn add(&mut self, bytes: u64, outcome: Outcome) {
        self.parts += 1;
        self.outcome = Some(match (self.outcome.take(), outcome) {
            (None, first) => first,
            (Some(Err(error)), _) | (Some(Ok(_)), Err(error)) => Err(error),
            (Some(Ok(before)), Ok(next)) => Ok(Arrived {
                trailer: same(&before.trailer, &next.trailer),
                sum: checksum_combine(before.sum, next.sum, bytes),
            }),
        });
    }

    /// Whether the operation was cut into parts all of which went well.
    pub(super) fn is_whole_again(&self) -> Option<Arrived> {
        self.outcome.clone().filter(|_| self.parts > 1)?.ok()
    }

    pub(super) fn into_outcome(self) -> Outcome {
        self.outcome.unwrap_or(Err(TransportError::PeerGone))
    }
}

/// The trailer that stood behind each of two parts, or none: then the extent changed between them.
fn same(before: &[u8; TRAILER_LEN], next: &[u8; TRAILER_LEN]) -> [u8; TRAILER_LEN] {
    if before == next { *before } else { Trailer::RETRACTED }
}

#[cfg(test)]
mod tests {
    use memcache_types::{Extent, GlobalAddress, ScatterList, SegmentId, extent_bytes};
    use proptest::prelude::*;

    use super::*;

    fn job(list: &ScatterList) -> Job<'_> {
        let extent = Extent::new(GlobalAddress::new(SegmentId::new(1), 0), extent_bytes(list.bytes())).ok();
        let (local, ending) = (Cow::Borrowed(list), Ending::Nothing);
        Job { op: Op::Read, extent, start: 0, local, ending, summed: true }
    }

    proptest! {
        #[test]
        fn every_byte_is_dealt_once_and_shares_are_even(
            lengths in prop::collection::vec(prop_oneof![0u64..5_000, 0u64..9_000_000], 1..20),
            hands in 1usize..6,
        ) {
            let list = |(at, bytes): (usize, &u64)| {
                let half = bytes / 2;
                let mut list = ScatterList::single((at as u64) << 32, half);
                list.push(((at as u64) << 32) + half + 64, bytes - half);
                list
            };
            let lists: Vec<ScatterList> = lengths.iter().enumerate().map(list).collect();
            let dealt = deal(lists.iter().map(job).enumerate().collect(), hands);
            prop_assert_eq!(dealt.len(), hands);
            let mut found: Vec<ScatterList> = lists.iter().map(|_| ScatterList::new()).collect();
            for hand in &dealt {
                prop_assert_eq!(hand.operations.len(), hand.jobs.len());
                for (operation, job) in hand.operations.iter().zip(&hand.jobs) {
                    prop_assert_eq!(job.start, found[*operation].bytes(), "parts out of order");
                    for piece in job.local.pieces() {
                        found[*operation].push(piece.address, piece.bytes);
                    }
                }
            }
            prop_assert_eq!(&found, &lists);
            let share = lengths.iter().sum::<u64>().div_ceil(hands as u64);
            for hand in &dealt {
                let bytes: u64 = hand.jobs.iter().map(|job| job.local.bytes()).sum();
                prop_assert!(bytes <= share + hands as u64 * (PART_BYTES_MIN + PART_ALIGN), "{} of {}", bytes, share);
            }
        }
    }

    #[test]
    fn parts_join_only_if_all_went_well_and_saw_the_same_trailer() {
        let arrived = |mark: u8| Ok(Arrived { trailer: [mark; TRAILER_LEN], sum: 0 });
        let join = |parts: &[Outcome]| {
            let mut joined = Joined::default();
            for part in parts {
                joined.add(1, part.clone());
            }
            (joined.is_whole_again().is_some(), joined.into_outcome())
        };
        assert_eq!(join(&[arrived(1)]), (false, arrived(1)));
        assert_eq!(join(&[arrived(1), arrived(1), arrived(1)]), (true, arrived(1)));
        assert_eq!(join(&[arrived(1), arrived(2)]), (true, arrived(0)));
        assert_eq!(
            join(&[arrived(1), Err(TransportError::Timeout), arrived(1)]),
            (false, Err(TransportError::Timeout))
        );
        assert_eq!(join(&[]), (false, Err(TransportError::PeerGone)));
    }
}
