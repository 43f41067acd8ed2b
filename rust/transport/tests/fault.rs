//! The faulty link does what its script says, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::{Checksum, Segment, SegmentOptions, Trailer};
use memcache_testkit::arena::Arena;
use memcache_testkit::rng::{Rng, pattern};
use memcache_transport::{
    Fabric, FabricOptions, Fault, FaultLink, Link, ReadOp, RegionServer, ServerOptions, TransportError, WriteOp,
};
use memcache_types::{Extent, Generation, GlobalAddress, KeyDigest, SegmentId, extent_bytes};

const BYTES: usize = 5000;

fn plain_link() -> Arc<dyn Link> {
    let segment = Segment::create(1 << 20, &SegmentOptions { huge_pages: false, prefault: false }).unwrap();
    let server = RegionServer::start(Arc::new(segment), &ServerOptions::default()).unwrap();
    let fabric = Fabric::new(FabricOptions::default());
    fabric.register_local(&server);
    fabric.link(server.descriptor(), soon()).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn place() -> Extent {
    Extent::new(GlobalAddress::new(SegmentId::new(1), 128), extent_bytes(BYTES as u64)).unwrap()
}

fn trailer(generation: u64) -> Trailer {
    Trailer {
        digest: KeyDigest::of(b"key"),
        generation: Generation::new(generation),
        payload_bytes: BYTES as u64,
        checksum: Checksum::None,
    }
}

fn put(link: &dyn Link, generation: u64) -> Result<(), TransportError> {
    let mut arena = Arena::cut(BYTES, 4, &mut Rng::new(generation));
    arena.fill(&pattern(generation, BYTES));
    let local = arena.list();
    let op =
        WriteOp { extent: place(), payload_bytes: BYTES as u64, local: &local, trailer: &trailer(generation).encode() };
    // SAFETY: the arena lives and is not touched during the call.
    unsafe { link.write(&[op], soon()) }.remove(0)
}

fn get(link: &dyn Link) -> (Result<Option<Trailer>, TransportError>, Vec<u8>) {
    let mut arena = Arena::cut(BYTES, 4, &mut Rng::new(99));
    let local = arena.list();
    let op = ReadOp { extent: place(), payload_bytes: BYTES as u64, local: &local };
    // SAFETY: the arena lives and is not touched during the call.
    let result = unsafe { link.read(&[op], soon()) }.remove(0);
    (result.map(|bytes| Trailer::decode(&bytes)), arena.object())
}

#[test]
fn writes_go_wrong_by_script() {
    let plain = plain_link();
    let script = [
        Fault::Drop,
        Fault::LoseReply,
        Fault::Delay(Duration::from_millis(1)),
        Fault::Corrupt { at: 4321 },
        Fault::Corrupt { at: BYTES as u64 + 9 },
        Fault::Cut { after: 1000 },
    ];
    let link = FaultLink::new(Arc::clone(&plain), script);
    put(&*plain, 1).unwrap();

    assert_eq!(put(&link, 2), Err(TransportError::Timeout));
    assert!(get(&*plain) == (Ok(Some(trailer(1))), pattern(1, BYTES)), "a dropped write was done");
    assert_eq!(put(&link, 3), Err(TransportError::Timeout));
    assert!(get(&*plain) == (Ok(Some(trailer(3))), pattern(3, BYTES)), "a write without an answer was not done");
    assert_eq!(put(&link, 4), Ok(()));
    assert!(get(&*plain) == (Ok(Some(trailer(4))), pattern(4, BYTES)), "a delayed write was not done");

    assert_eq!(put(&link, 5), Ok(()));
    let mut flawed = pattern(5, BYTES);
    flawed[4321] ^= 1;
    assert!(get(&*plain) == (Ok(Some(trailer(5))), flawed), "not exactly one bit is wrong");
    assert_eq!(put(&link, 6), Ok(()));
    assert!(get(&*plain) == (Ok(None), pattern(6, BYTES)), "the trailer is not the part that is wrong");

    assert_eq!(put(&link, 7), Err(TransportError::PeerGone));
    let half = [&pattern(7, BYTES)[..1000], &pattern(6, BYTES)[1000..]].concat();
    assert!(get(&*plain) == (Ok(None), half), "a cut write left something else");
    assert_eq!(link.remaining(), 0);
    assert_eq!(put(&link, 8), Ok(()));
    assert!(get(&link) == (Ok(Some(trailer(8))), pattern(8, BYTES)), "after the script something still goes wrong");
}

#[test]
fn reads_go_wrong_by_script() {
    let plain = plain_link();
    put(&*plain, 1).unwrap();
    let object = pattern(1, BYTES);
    let script = [
        Fault::Drop,
        Fault::LoseReply,
        Fault::Corrupt { at: 4321 },
        Fault::Corrupt { at: BYTES as u64 + 9 },
        Fault::Cut { after: 1000 },
        Fault::Pass,
    ];
    let link = FaultLink::new(plain, script);
    let (result, found) = get(&link);
    assert!(result == Err(TransportError::Timeout) && found != object, "a dropped read was done");
    assert!(get(&link) == (Err(TransportError::Timeout), object.clone()), "a read without an answer was not done");
    let mut flawed = object.clone();
    flawed[4321] ^= 1;
    assert!(get(&link) == (Ok(Some(trailer(1))), flawed), "not exactly one bit is wrong");
    assert!(get(&link) == (Ok(None), object.clone()), "the trailer is not the part that is wrong");
    let (result, found) = get(&link);
    assert_eq!(result, Err(TransportError::PeerGone));
    assert!(found[..1000] == object[..1000] && found[1000..] != object[1000..], "a cut read moved something else");
    assert!(get(&link) == (Ok(Some(trailer(1))), object), "a read that passes went wrong");
}
