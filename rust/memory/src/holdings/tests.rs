use super::*;
use crate::segment::{Segment, SegmentOptions};

const LENT: u64 = 1 << 20;

fn segment(shape: Shape) -> Segment {
    Segment::create(shape.region_bytes, &SegmentOptions { huge_pages: false, prefault: false }).unwrap()
}

/// Writes an object's trailer and its record, as a client does.
fn write(holdings: &Holdings<'_>, record: u32, offset: u64, payload_bytes: u64, generation: u64, key: &[u8]) {
    let (digest, generation) = (KeyDigest::of(key), Generation::new(generation));
    let object = holdings.extent(offset, extent_bytes(payload_bytes)).unwrap();
    let trailer = Trailer { digest, generation, payload_bytes, checksum: Checksum::None };
    object.publish_trailer(&trailer.encode());
    let head = RecordHead { offset, payload_bytes, origin: generation, wanted: 1 };
    holdings.write_at(holdings.shape.place.record_offset(record), &head, key, generation);
}

#[test]
fn shapes_hold_what_they_promise() {
    for (lent, records, page) in [(LENT, 0, 1), (LENT + 1, 7, 4096), (1 << 30, 0, 2 << 20), (5 << 20, 100_000, 1)] {
        let shape = Shape::new(lent, records, page);
        assert!(shape.place.is_behind(lent), "{shape:?}");
        assert!(shape.region_bytes.is_multiple_of(page.max(4096)));
        assert!(records == 0 || shape.place.records == records);
    }
    assert_eq!(Shape::new(1 << 30, 0, 1).place.records, 1 << 14);
    assert_eq!(Shape::new(64 << 20, 0, 1).place.records, 1024);
    assert_eq!(Shape::new(LENT, 0, 1).place.records, 256);
}

#[test]
fn a_segment_knows_who_it_is_and_other_memory_is_no_segment() {
    let shape = Shape::new(LENT, 10, 1);
    let memory = segment(shape);
    assert_eq!(identity(memory.region()), Err(NotASegment::Blank));
    let holdings = Holdings::new(memory.region(), shape);
    holdings.write_identity(77);
    assert_eq!(identity(memory.region()), Ok(Identity { shape, node: 77 }));
    let header = memory.region().sub(shape.header(), 16).unwrap();
    let mut bytes = [0; 16];
    header.read_into(&mut bytes);
    bytes[8] += 1;
    header.write_from(&bytes);
    assert_eq!(identity(memory.region()), Err(NotASegment::Version(2)));
    bytes[8] -= 1;
    bytes[12] += 1;
    header.write_from(&bytes);
    assert_eq!(identity(memory.region()), Err(NotASegment::Foreign), "a changed number");
    header.write_from(&[7; 16]);
    assert_eq!(identity(memory.region()), Err(NotASegment::Foreign));
}

#[test]
fn numbers_of_the_header_are_kept_apart_and_floors_only_rise() {
    let shape = Shape::new(LENT, 10, 1);
    let memory = segment(shape);
    let holdings = Holdings::new(memory.region(), shape);
    assert_eq!((holdings.epoch(), holdings.incarnation(), holdings.floor()), (0, 0, 0));
    holdings.set_epoch(5);
    holdings.set_incarnation(6);
    for floor in [9, 30, 20] {
        holdings.raise_floor(floor);
    }
    for floor in 31..70 {
        holdings.raise_floor(floor);
    }
    assert_eq!((holdings.epoch(), holdings.incarnation(), holdings.floor()), (5, 6, 69));
}

#[test]
fn only_whole_objects_above_the_floor_are_found_oldest_first() {
    let shape = Shape::new(LENT, 32, 1);
    let memory = segment(shape);
    let holdings = Holdings::new(memory.region(), shape);
    write(&holdings, 0, 0, 100, 9, b"newer");
    write(&holdings, 5, 4096, 5000, 7, &[0; KEY_BYTES_MAX]);
    write(&holdings, 6, 16384, 0, 8, b"empty");
    write(&holdings, 7, 20480, 10, 3, b"below the floor");
    write(&holdings, 8, 24576, 10, 10, b"retracted");
    holdings.extent(24576, 128).unwrap().retract_trailer();
    write(&holdings, 9, 28672, 10, 11, b"written over");
    write(&holdings, 10, 28672, 10, 12, b"writer");
    write(&holdings, 11, LENT, 10, 13, b"beyond");
    write(&holdings, 12, 32768, 10, 14, b"torn");
    holdings.record(12).unwrap().write_from(&[1]);
    holdings.raise_floor(3);
    let found = holdings.scan();
    let generations: Vec<u64> = found.iter().map(|holding| holding.generation.get()).collect();
    assert_eq!(generations, [7, 8, 9, 12]);
    assert_eq!((found[0].record, found[0].offset, found[0].payload_bytes), (5, 4096, 5000));
    assert_eq!(*found[0].key, [0; KEY_BYTES_MAX]);
    assert_eq!(holdings.read(8), None, "what is not there is cleared");
    let kept = HashMap::from([(5, Generation::new(7)), (0, Generation::new(8))]);
    holdings.keep_only(&kept);
    let left: Vec<u32> = holdings.scan().iter().map(|holding| holding.record).collect();
    assert_eq!(left, [5]);
}

#[test]
fn of_objects_that_meet_the_later_written_one_stays() {
    let shape = Shape::new(LENT, 32, 1);
    let memory = segment(shape);
    let holdings = Holdings::new(memory.region(), shape);
    // The trailers do not touch: only the payloads do.
    write(&holdings, 0, 0, 1000, 5, b"old");
    write(&holdings, 1, 0, 100, 6, b"new");
    write(&holdings, 2, 4096, 100, 8, b"first half of");
    write(&holdings, 3, 4096, 1000, 7, b"an old one");
    let found: Vec<u64> = holdings.scan().iter().map(|holding| holding.generation.get()).collect();
    assert_eq!(found, [6, 8]);
    assert_eq!(holdings.read(0), None);
}
