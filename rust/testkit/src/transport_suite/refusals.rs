//! What makes no sense is refused by itself, and touches nothing.

use std::time::{Duration, Instant};

use memcache_memory::Trailer;
use memcache_transport::{Link, ReadOp, SummedWriteOp, TransportError, WriteOp};
use memcache_types::{Extent, ScatterList};

use super::{expect_object, extent, extent_of, soon, trailer, write};
use crate::arena::Arena;
use crate::rng::{Rng, pattern};

const BYTES: usize = 1000;

/// Puts a known object at the start of the region.
fn object_in_place(link: &dyn Link, generation: u64) -> (Extent, Vec<u8>, Trailer) {
    let object = pattern(generation, BYTES);
    let mut from = Arena::cut(BYTES, 2, &mut Rng::new(generation));
    from.fill(&object);
    let (place, end) = (extent(0, BYTES), trailer(generation, BYTES));
    write(link, place, &mut from, &end).expect("write");
    (place, object, end)
}

/// Extents and payload lengths that break a rule, for a list of [`BYTES`] bytes.
fn senseless(link: &dyn Link) -> Vec<(&'static str, Extent, u64)> {
    let region = link.capabilities().region_bytes;
    let bytes = BYTES as u64;
    vec![
        ("ends outside the region", extent_of(region - 1024, 1088), bytes),
        ("starts outside the region", extent_of(region, 1088), bytes),
        ("starts far outside", extent_of(u64::MAX - 4095, 1088), bytes),
        ("starts between lines", extent_of(32, 1088), bytes),
        ("ends between lines", extent_of(0, 1080), bytes),
        ("no room for the trailer", extent_of(0, 1024), bytes),
        ("no room for the payload", extent_of(0, 512), bytes),
        ("shorter than its list", extent(0, BYTES), bytes - 1),
        ("longer than its list", extent_of(0, 4096), bytes + 1),
        ("a length that overflows", extent_of(0, 4096), u64::MAX),
    ]
}

pub(super) fn senseless_operations(link: &dyn Link) {
    let (place, object, end) = object_in_place(link, 10);
    let mut arena = Arena::cut(BYTES, 3, &mut Rng::new(5));
    arena.fill(&pattern(11, BYTES));
    let local = arena.list();
    let new = trailer(11, BYTES).encode();
    for (what, extent, payload_bytes) in senseless(link) {
        let write = WriteOp { extent, payload_bytes, local: &local, trailer: &new };
        // SAFETY: the arena lives and is not touched during the call.
        let results = unsafe { link.write(&[write], soon()) };
        assert!(matches!(results[..], [Err(TransportError::InvalidOp { .. })]), "a write that {what}: {results:?}");
        let read = ReadOp { extent, payload_bytes, local: &local };
        // SAFETY: as above.
        let results = unsafe { link.read(&[read], soon()) };
        assert!(matches!(results[..], [Err(TransportError::InvalidOp { .. })]), "a read that {what}: {results:?}");
        let promised = Trailer { payload_bytes, ..trailer(11, BYTES) };
        let write = SummedWriteOp { extent, local: &local, trailer: &promised };
        // SAFETY: as above.
        let (written, found) = unsafe { (link.write_summed(&[write], soon()), link.read_summed(&[read], soon())) };
        assert!(matches!(written[..], [Err(TransportError::InvalidOp { .. })]), "a write that {what}: {written:?}");
        assert!(matches!(found[..], [Err(TransportError::InvalidOp { .. })]), "a read that {what}: {found:?}");
    }
    assert!(arena.object() == pattern(11, BYTES), "a refused read changed its target");
    expect_object(link, place, &object, &end);
}

pub(super) fn mixed_batches(link: &dyn Link) {
    let (place, object, end) = object_in_place(link, 20);
    let mut arenas: Vec<Arena> = (0..3).map(|seed| Arena::cut(BYTES, 3, &mut Rng::new(seed))).collect();
    let lists: Vec<ScatterList> = arenas.iter_mut().map(Arena::list).collect();
    let outside = extent_of(link.capabilities().region_bytes, 1088);
    let ops: Vec<ReadOp<'_>> = [place, outside, place]
        .into_iter()
        .zip(&lists)
        .map(|(extent, local)| ReadOp { extent, payload_bytes: BYTES as u64, local })
        .collect();
    // SAFETY: the arenas live and are not touched during the call.
    let results = unsafe { link.read(&ops, soon()) };
    assert!(
        matches!(&results[..], [Ok(first), Err(TransportError::InvalidOp { .. }), Ok(last)] if *first == end.encode() && first == last),
        "{results:?}"
    );
    assert!(arenas[0].object() == object && arenas[2].object() == object, "a good read beside a bad one went wrong");

    for (arena, seed) in arenas.iter_mut().zip(21..) {
        arena.fill(&pattern(seed, BYTES));
    }
    let places = [extent(4096, BYTES), outside, extent(8192, BYTES)];
    let trailers = [21, 22, 23].map(|generation| trailer(generation, BYTES).encode());
    let ops: Vec<WriteOp<'_>> = (0..3)
        .map(|at| WriteOp {
            extent: places[at],
            payload_bytes: BYTES as u64,
            local: &lists[at],
            trailer: &trailers[at],
        })
        .collect();
    // SAFETY: as above.
    let results = unsafe { link.write(&ops, soon()) };
    assert!(matches!(results[..], [Ok(()), Err(TransportError::InvalidOp { .. }), Ok(())]), "{results:?}");
    expect_object(link, places[0], &pattern(21, BYTES), &trailer(21, BYTES));
    expect_object(link, places[2], &pattern(23, BYTES), &trailer(23, BYTES));
}

pub(super) fn past_deadline(link: &dyn Link) {
    let (place, object, end) = object_in_place(link, 30);
    let mut arena = Arena::cut(BYTES, 3, &mut Rng::new(6));
    arena.fill(&pattern(31, BYTES));
    let local = arena.list();
    let past = Instant::now().checked_sub(Duration::from_millis(1)).unwrap_or_else(Instant::now);
    let new = trailer(31, BYTES).encode();
    let write = WriteOp { extent: place, payload_bytes: BYTES as u64, local: &local, trailer: &new };
    let read = ReadOp { extent: place, payload_bytes: BYTES as u64, local: &local };
    // SAFETY: the arena lives and is not touched during the calls.
    let (written, found) = unsafe { (link.write(&[write, write], past), link.read(&[read, read], past)) };
    assert_eq!(written, vec![Err(TransportError::Timeout); 2]);
    assert_eq!(found, vec![Err(TransportError::Timeout); 2]);
    let sealed = trailer(31, BYTES);
    let write = SummedWriteOp { extent: place, local: &local, trailer: &sealed };
    // SAFETY: as above.
    let (written, found) = unsafe { (link.write_summed(&[write], past), link.read_summed(&[read], past)) };
    assert_eq!((&written[..], &found[..]), (&[Err(TransportError::Timeout)][..], &[Err(TransportError::Timeout)][..]));
    expect_object(link, place, &object, &end);
}
