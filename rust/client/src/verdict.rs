//! What a reader makes of what it found, and telling the book of damage.

use std::time::{Duration, Instant};

use memcache_memory::{Checksum, Trailer};
use memcache_proto::pack::keys_to_wire;
use memcache_proto::pb::{self, request};
use memcache_types::{GetStatus, KeyBatch};

use crate::book::Book;
use crate::get::Place;
use crate::ways::Found;

/// How long the book may take to hear of damage. Nobody waits for it.
const TELL_TIMEOUT: Duration = Duration::from_secs(5);

/// What was found where an object should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The object, as far as anybody looked.
    Sound,
    /// Nobody can tell, where telling matters.
    Unknown,
    /// The trailer of something else, or none.
    Overwritten,
    /// The trailer of the object, over other bytes.
    Corrupt,
}

impl Verdict {
    pub(crate) const fn status(self) -> GetStatus {
        match self {
            Self::Sound => GetStatus::Hit,
            Self::Unknown | Self::Overwritten => GetStatus::Miss,
            Self::Corrupt => GetStatus::Corrupt,
        }
    }
}

/// Compares what was found with what the book named: the trailer in every part, the payload by its sum where there is one.
pub(crate) fn judge((trailer, sum): &Found, place: &Place, key: &[u8]) -> Verdict {
    let Some(found) = Trailer::decode(trailer).filter(|found| found.generation == place.generation) else {
        return Verdict::Overwritten;
    };
    let sound = match (found.checksum, sum) {
        (Checksum::Crc32c(want), Some(sum)) => want == *sum,
        (Checksum::None, _) | (_, None) if place.rests => return Verdict::Unknown,
        (Checksum::None, _) | (_, None) => true,
    };
    let described = Trailer { checksum: Checksum::None, ..found } == place.trailer(key);
    if described && sound {
        return Verdict::Sound;
    }
    tracing::warn!(segment = %place.extent.segment(), offset = place.extent.offset(), described, sound,
        "an object does not match its trailer; treated as a miss");
    Verdict::Corrupt
}

/// Replicas that were found damaged while the lease on them was good.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    keys: KeyBatch,
    segments: Vec<u64>,
    generations: Vec<u64>,
}

impl Damage {
    /// Takes note of a verdict. Nobody may write where a lease is good, so other bytes there are not on their way: they
    /// stay, and every reader would meet them.
    pub(crate) fn note(&mut self, verdict: Verdict, place: &Place, key: &[u8]) {
        // The key came from a batch, and there are no more of them than in that one.
        if matches!(verdict, Verdict::Overwritten | Verdict::Corrupt) && self.keys.push(key).is_ok() {
            self.segments.push(place.extent.segment().get());
            self.generations.push(place.generation.get());
        }
    }

    /// Tells the book, so that a key whose replicas are all damaged can be put anew and others get theirs back. Not
    /// heard, it is told by the next reader.
    pub(crate) fn tell(&mut self, book: &Book) {
        if self.segments.is_empty() {
            return;
        }
        let Self { keys, segments, generations } = std::mem::take(self);
        let damaged = pb::Damaged { keys: Some(keys_to_wire(&keys)), segments, generations };
        book.submit(request::Body::Damaged(damaged), Instant::now() + TELL_TIMEOUT, drop);
    }
}
