//! Bytes arrive where they should, and nowhere else.

use memcache_memory::{Checksum, Trailer, checksum_bytes};
use memcache_transport::{Link, ReadOp, SummedWriteOp, WriteOp};
use memcache_types::ScatterList;

use super::{REGION_BYTES_MIN, expect_object, extent, extent_of, read, soon, trailer, write};
use crate::arena::Arena;
use crate::rng::{Rng, pattern};

/// Payload lengths in bytes, and the most pieces on either side.
const SHAPES: [(usize, usize); 14] = [
    (0, 1),
    (1, 1),
    (2, 2),
    (63, 3),
    (64, 1),
    (65, 4),
    (127, 127),
    (4095, 7),
    (4096, 1),
    (100_000, 33),
    (1 << 20, 256),
    ((1 << 20) + 13, 4096),
    (4096 * 3, 4096),
    (8784 << 10, 122),
];

pub(super) fn any_pieces(link: &dyn Link) {
    let mut rng = Rng::new(1);
    for (round, (bytes, pieces)) in SHAPES.into_iter().enumerate() {
        let generation = round as u64 + 1;
        let object = pattern(generation, bytes);
        let place = extent(rng.below(1000) * 64, bytes);
        let mut from = Arena::cut(bytes, pieces, &mut rng);
        from.fill(&object);
        write(link, place, &mut from, &trailer(generation, bytes)).expect("write");
        assert!(from.object() == object, "a write changed its source");

        let mut to = Arena::cut(bytes, pieces, &mut rng);
        let found = read(link, place, &mut to).expect("read");
        assert_eq!(Trailer::decode(&found), Some(trailer(generation, bytes)), "{bytes} bytes in {pieces} pieces");
        assert!(to.object() == object, "{bytes} bytes in {pieces} pieces came back otherwise");
        to.check_guards();
    }
}

/// The same with checksums: the sum of what was copied comes back, and stands in the trailer.
pub(super) fn summed(link: &dyn Link) {
    let mut rng = Rng::new(7);
    for (generation, (bytes, pieces)) in (1..).zip(SHAPES) {
        let object = pattern(generation + 100, bytes);
        let (place, sum) = (extent(rng.below(1000) * 64, bytes), checksum_bytes(&object));
        let mut from = Arena::cut(bytes, pieces, &mut rng);
        from.fill(&object);
        let (local, plain) = (from.list(), trailer(generation, bytes));
        let op = SummedWriteOp { extent: place, local: &local, trailer: &plain };
        // SAFETY: the arena lives and is not touched during the call.
        assert_eq!(unsafe { link.write_summed(&[op], soon()) }, [Ok(())]);
        let end = Trailer { checksum: Checksum::Crc32c(sum), ..plain };
        expect_object(link, place, &object, &end);

        let mut to = Arena::cut(bytes, pieces, &mut rng);
        let local = to.list();
        let op = ReadOp { extent: place, payload_bytes: bytes as u64, local: &local };
        // SAFETY: as above.
        assert_eq!(unsafe { link.read_summed(&[op], soon()) }, [Ok((end.encode(), sum))], "{bytes} bytes");
        assert!(to.object() == object, "{bytes} bytes in {pieces} pieces came back otherwise");
        to.check_guards();
    }
}

pub(super) fn batches(link: &dyn Link) {
    let mut rng = Rng::new(2);
    for (count, bytes_max) in [(1usize, 40_000), (2, 40_000), (7, 2_000_000), (200, 40_000), (1000, 600)] {
        let lengths: Vec<usize> = (0..count).map(|_| rng.index(bytes_max)).collect();
        let mut offset = 0;
        let places: Vec<_> = lengths
            .iter()
            .map(|bytes| {
                let place = extent(offset, *bytes);
                offset = place.end();
                place
            })
            .collect();
        let objects: Vec<Vec<u8>> = lengths.iter().map(|bytes| pattern(rng.next(), *bytes)).collect();
        let mut sources: Vec<Arena> = lengths.iter().map(|bytes| Arena::cut(*bytes, 5, &mut rng)).collect();
        for (source, object) in sources.iter_mut().zip(&objects) {
            source.fill(object);
        }
        let lists: Vec<ScatterList> = sources.iter_mut().map(Arena::list).collect();
        let trailers: Vec<_> =
            (1..).zip(&lengths).map(|(generation, bytes)| trailer(generation, *bytes).encode()).collect();
        let ops: Vec<WriteOp<'_>> = (0..count)
            .map(|at| WriteOp {
                extent: places[at],
                payload_bytes: lengths[at] as u64,
                local: &lists[at],
                trailer: &trailers[at],
            })
            .collect();
        // SAFETY: the arenas live and are not touched during the call.
        let results = unsafe { link.write(&ops, soon()) };
        assert_eq!(results, vec![Ok(()); count], "results of {count} writes");

        let mut targets: Vec<Arena> = lengths.iter().map(|bytes| Arena::cut(*bytes, 9, &mut rng)).collect();
        let lists: Vec<ScatterList> = targets.iter_mut().map(Arena::list).collect();
        let ops: Vec<ReadOp<'_>> = (0..count)
            .map(|at| ReadOp { extent: places[at], payload_bytes: lengths[at] as u64, local: &lists[at] })
            .collect();
        // SAFETY: as above, and the pieces do not overlap.
        let results = unsafe { link.read(&ops, soon()) };
        assert_eq!(results, trailers.iter().copied().map(Ok).collect::<Vec<_>>(), "results of {count} reads");
        for (target, object) in targets.iter().zip(&objects) {
            assert!(target.object() == *object, "an object of a batch of {count} came back otherwise");
            target.check_guards();
        }
    }
    // SAFETY: no operation, no piece.
    assert!(unsafe { link.read(&[], soon()) }.is_empty() && unsafe { link.write(&[], soon()) }.is_empty());
}

pub(super) fn trailers(link: &dyn Link) {
    let mut rng = Rng::new(3);
    // Longer than needed: the trailer stands in the last 64 bytes all the same.
    let place = extent_of(640, 4096);
    for (generation, bytes) in [(1, 4032), (2, 100), (3, 0)] {
        let object = pattern(generation, bytes);
        let mut from = Arena::cut(bytes, 3, &mut rng);
        from.fill(&object);
        write(link, place, &mut from, &trailer(generation, bytes)).expect("write");
        expect_object(link, place, &object, &trailer(generation, bytes));
        let mut end = Arena::cut(0, 1, &mut rng);
        let found = read(link, extent_of(640 + 4096 - 64, 64), &mut end).expect("read of the trailer alone");
        assert_eq!(Trailer::decode(&found), Some(trailer(generation, bytes)));
    }
}

/// Random writes to random places, remembered in a plain array: afterwards both hold the same bytes everywhere.
pub(super) fn against_a_model(link: &dyn Link) {
    const MODEL_BYTES: usize = 1 << 20;
    let mut rng = Rng::new(4);
    let mut model = vec![0u8; MODEL_BYTES];
    let base = REGION_BYTES_MIN - MODEL_BYTES as u64 - 64;
    let mut whole = Arena::cut(MODEL_BYTES, 1, &mut rng);
    whole.fill(&model);
    write(link, extent(base, MODEL_BYTES), &mut whole, &trailer(1, MODEL_BYTES)).expect("write of zeros");
    for generation in 2..200u64 {
        let bytes = rng.index(20_000);
        let place = extent(base + rng.below((MODEL_BYTES - 20_200) as u64 / 64) * 64, bytes);
        let object = pattern(generation, bytes);
        let mut from = Arena::cut(bytes, 1 + rng.index(6), &mut rng);
        from.fill(&object);
        write(link, place, &mut from, &trailer(generation, bytes)).expect("write");
        let at = usize::try_from(place.offset() - base).expect("an offset within the model");
        let end = usize::try_from(place.end() - base).expect("an offset within the model");
        model[at..at + bytes].copy_from_slice(&object);
        model[end - 64..end].copy_from_slice(&trailer(generation, bytes).encode());
    }
    let mut found = Arena::cut(MODEL_BYTES, 3, &mut rng);
    read(link, extent(base, MODEL_BYTES), &mut found).expect("read of everything");
    assert!(found.object() == model, "the region holds other bytes than the model");
}
