//! What every link must do, whatever road it takes.
//!
//! A transport runs all of it from its own tests:
//!
//! ```ignore
//! memcache_testkit::transport_suite::run(&|| fabric.link(&descriptor, deadline).unwrap());
//! ```

mod moves;
mod refusals;
mod torture;

use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::{Checksum, Trailer};
use memcache_transport::{Link, ReadOp, TransportError, WriteOp};
use memcache_types::limits::TRAILER_LEN;
use memcache_types::{Extent, Generation, GlobalAddress, KeyDigest, SegmentId, extent_bytes};

use crate::arena::Arena;

/// Least length of the region behind a link under test, in bytes.
pub const REGION_BYTES_MIN: u64 = 32 << 20;

/// Far more than any case needs, even on a busy machine; a link that hangs fails instead of blocking the tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A rule, and the check of it.
type Case = (&'static str, fn(&dyn Link));

const CASES: [Case; 9] = [
    ("what was written is read, from and to any pieces", moves::any_pieces),
    ("checksums are those of the bytes that moved", moves::summed),
    ("a batch is many single operations", moves::batches),
    ("the trailer stands at the end of the extent and is replaced", moves::trailers),
    ("random operations agree with a model", moves::against_a_model),
    ("operations that make no sense touch nothing", refusals::senseless_operations),
    ("one bad operation leaves the others alone", refusals::mixed_batches),
    ("after the deadline nothing happens", refusals::past_deadline),
    ("callers do not disturb each other", torture::many_callers),
];

/// Runs the suite. `make_link` gives a link to one and the same region of at least [`REGION_BYTES_MIN`] bytes,
/// which nobody else uses meanwhile. Panics with the first thing that is not as it should be.
pub fn run(make_link: &dyn Fn() -> Arc<dyn Link>) {
    let link = make_link();
    assert!(link.capabilities().region_bytes >= REGION_BYTES_MIN, "the suite needs a larger region");
    assert_eq!(link.capabilities().protocol, link.protocol());
    for (name, case) in CASES {
        tell(&*link, name);
        case(&*link);
    }
    tell(&*link, "readers never take mixed bytes for an object");
    torture::mixed_bytes(&*link, &*make_link());
    assert!(link.is_open(), "a link that works says that it is closed");
}

/// Says what is being checked; seen only when it fails.
#[allow(clippy::print_stderr, reason = "the test harness keeps it for failures")]
fn tell(link: &dyn Link, name: &str) {
    eprintln!("{}: {name}", link.protocol());
}

pub(crate) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// The extent of a payload of this length at this offset.
pub(crate) fn extent(offset: u64, payload_bytes: usize) -> Extent {
    extent_of(offset, extent_bytes(payload_bytes as u64))
}

pub(crate) fn extent_of(offset: u64, bytes: u64) -> Extent {
    Extent::new(GlobalAddress::new(SegmentId::new(1), offset), bytes).expect("a test extent is not empty")
}

pub(crate) fn trailer(generation: u64, payload_bytes: usize) -> Trailer {
    Trailer {
        digest: KeyDigest::of(&generation.to_le_bytes()),
        generation: Generation::new(generation),
        payload_bytes: payload_bytes as u64,
        checksum: Checksum::None,
    }
}

/// Writes the content of one arena.
pub(crate) fn write(
    link: &dyn Link,
    extent: Extent,
    from: &mut Arena,
    trailer: &Trailer,
) -> Result<(), TransportError> {
    let local = from.list();
    let op = WriteOp { extent, payload_bytes: local.bytes(), local: &local, trailer: &trailer.encode() };
    // SAFETY: the arena is exclusively borrowed until the call is over.
    only(unsafe { link.write(&[op], soon()) })
}

/// Reads into one arena and returns the trailer found.
pub(crate) fn read(link: &dyn Link, extent: Extent, to: &mut Arena) -> Result<[u8; TRAILER_LEN], TransportError> {
    let local = to.list();
    let op = ReadOp { extent, payload_bytes: local.bytes(), local: &local };
    // SAFETY: the arena is exclusively borrowed until the call is over.
    only(unsafe { link.read(&[op], soon()) })
}

fn only<T>(results: Vec<Result<T, TransportError>>) -> Result<T, TransportError> {
    let [result] = <[_; 1]>::try_from(results).unwrap_or_else(|all| panic!("{} results for one operation", all.len()));
    result
}

/// Reads the object at `extent` and panics unless it is exactly this one.
pub(crate) fn expect_object(link: &dyn Link, extent: Extent, object: &[u8], trailer: &Trailer) {
    let mut arena = Arena::cut(object.len(), 1, &mut crate::rng::Rng::new(extent.offset()));
    let found = read(link, extent, &mut arena).expect("a read of an object that is there");
    assert_eq!(Trailer::decode(&found).as_ref(), Some(trailer), "trailer at {}", extent.offset());
    assert!(arena.object() == object, "other bytes than were written at {}", extent.offset());
}
