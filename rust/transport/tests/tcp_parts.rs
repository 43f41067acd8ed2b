//! Objects that several TCP connections move together.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memcache_memory::{Checksum, Segment, SegmentOptions, Trailer, checksum_bytes};
use memcache_testkit::arena::Arena;
use memcache_testkit::rng::{Rng, pattern};
use memcache_transport::{
    Fabric, FabricOptions, Link, ProtocolChoice, ReadOp, RegionServer, ServerOptions, SummedWriteOp, TransportError,
    WriteOp,
};
use memcache_types::{Extent, Generation, GlobalAddress, KeyDigest, ScatterList, SegmentId, extent_bytes};

const REGION: u64 = 32 << 20;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn serve() -> RegionServer {
    let segment = Segment::create(REGION, &SegmentOptions { huge_pages: false, prefault: false }).unwrap();
    let options = ServerOptions { protocols: ProtocolChoice::HostTcp, ..ServerOptions::default() };
    RegionServer::start(Arc::new(segment), &options).unwrap()
}

fn link(server: &RegionServer, connections_per_peer: usize) -> Arc<dyn Link> {
    let fabric = Fabric::new(FabricOptions { choice: ProtocolChoice::HostTcp, connections_per_peer });
    fabric.link(server.descriptor(), soon()).unwrap()
}

fn trailer(generation: u64, payload_bytes: usize) -> Trailer {
    Trailer {
        digest: KeyDigest::of(b"key"),
        generation: Generation::new(generation),
        payload_bytes: payload_bytes as u64,
        checksum: Checksum::None,
    }
}

fn place(offset: u64, bytes: usize) -> Extent {
    Extent::new(GlobalAddress::new(SegmentId::new(1), offset), extent_bytes(bytes as u64)).unwrap()
}

/// Batches of few and many objects, small and large, over any number of connections, with and without checksums.
#[test]
fn what_was_written_in_parts_is_read_in_other_parts() {
    let server = serve();
    let mut rng = Rng::new(71);
    let links: Vec<_> = [1, 2, 3, 5].map(|connections| link(&server, connections)).into();
    let batches: [&[usize]; 6] = [
        &[9_000_000],
        &[2_100_000, 1],
        &[700_000, 5_000_001, 0, 3],
        &[1 << 20; 9],
        &[300_000; 12],
        &[0, 4096, 6 << 20, 100],
    ];
    for (round, lengths) in batches.into_iter().enumerate() {
        for (at, writer) in links.iter().enumerate() {
            let reader = &links[(at + 1 + round) % links.len()];
            check(&**writer, &**reader, lengths, &mut rng);
        }
    }
}

fn check(writer: &dyn Link, reader: &dyn Link, lengths: &[usize], rng: &mut Rng) {
    let summed = rng.below(2) == 0;
    let mut offset = 0;
    let objects: Vec<(Extent, Vec<u8>, Trailer)> = lengths
        .iter()
        .map(|bytes| {
            let extent = place(offset, *bytes);
            offset += extent.bytes();
            (extent, pattern(rng.next(), *bytes), trailer(rng.next() | 1, *bytes))
        })
        .collect();
    let mut arenas: Vec<Arena> = objects.iter().map(|(_, bytes, _)| arena(bytes.len(), rng)).collect();
    let lists: Vec<ScatterList> = arenas
        .iter_mut()
        .zip(&objects)
        .map(|(arena, (_, bytes, _))| {
            arena.fill(bytes);
            arena.list()
        })
        .collect();
    let trailers: Vec<[u8; 64]> = objects.iter().map(|(_, _, trailer)| trailer.encode()).collect();
    let (mut sealed, mut ready) = (Vec::new(), Vec::new());
    for (((extent, bytes, trailer), local), encoded) in objects.iter().zip(&lists).zip(&trailers) {
        sealed.push(SummedWriteOp { extent: *extent, local, trailer });
        ready.push(WriteOp { extent: *extent, payload_bytes: bytes.len() as u64, local, trailer: encoded });
    }
    // SAFETY: the arenas live and are not touched during the call.
    let written = unsafe { if summed { writer.write_summed(&sealed, soon()) } else { writer.write(&ready, soon()) } };
    assert!(written.iter().all(Result::is_ok), "{lengths:?}: {written:?}");
    read_back(reader, &objects, summed, rng);
}

fn read_back(reader: &dyn Link, objects: &[(Extent, Vec<u8>, Trailer)], summed: bool, rng: &mut Rng) {
    let mut arenas: Vec<Arena> = objects.iter().map(|(_, bytes, _)| arena(bytes.len(), rng)).collect();
    let lists: Vec<ScatterList> = arenas.iter_mut().map(Arena::list).collect();
    let mut ops = Vec::new();
    for ((extent, _, _), local) in objects.iter().zip(&lists) {
        ops.push(ReadOp { extent: *extent, payload_bytes: local.bytes(), local });
    }
    // SAFETY: the arenas live and are not touched during the calls.
    let (plain, found) = unsafe { (reader.read(&ops, soon()), reader.read_summed(&ops, soon())) };
    for ((arena, (_, bytes, trailer)), (plain, found)) in arenas.iter().zip(objects).zip(plain.iter().zip(&found)) {
        let crc32c = checksum_bytes(bytes);
        let checksum = if summed { Checksum::Crc32c(crc32c) } else { Checksum::None };
        let expected = Trailer { checksum, ..*trailer }.encode();
        assert_eq!(plain, &Ok(expected), "trailer of {} bytes", bytes.len());
        assert_eq!(found, &Ok((expected, crc32c)), "checksum of {} bytes", bytes.len());
        assert!(arena.object() == *bytes, "other bytes than were written, of {}", bytes.len());
        arena.check_guards();
    }
}

fn arena(bytes: usize, rng: &mut Rng) -> Arena {
    let pieces = [1, 2, 122, 3000][rng.index(4)];
    Arena::cut(bytes, pieces, rng)
}

/// The law of the trailer, for an object whose parts take different ways: a read that shows a generation shows only
/// that generation's bytes.
#[test]
fn parts_of_different_writings_are_never_taken_for_one_object() {
    let server = serve();
    let bytes = 3 << 20;
    let (over, published) = (AtomicBool::new(false), AtomicU64::new(0));
    let objects: Vec<Vec<u8>> = (0..4u64).map(|seed| vec![u8::try_from(seed).unwrap() + 1; bytes]).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            let link = link(&server, 3);
            for generation in 1.. {
                let object = &objects[generation % objects.len()];
                let local = ScatterList::single(object.as_ptr().expose_provenance() as u64, bytes as u64);
                let trailer = trailer(generation as u64, bytes).encode();
                let op =
                    WriteOp { extent: place(0, bytes), payload_bytes: bytes as u64, local: &local, trailer: &trailer };
                // SAFETY: the objects live and are not written.
                assert_eq!(unsafe { link.write(&[op], soon()) }, [Ok(())]);
                published.store(generation as u64, Ordering::SeqCst);
                if over.load(Ordering::SeqCst) {
                    return;
                }
                // Some rest, so that some reads find the object whole.
                thread::sleep(Duration::from_millis(generation as u64 % 3 * 2));
            }
        });
        let link = link(&server, 2);
        let (mut whole, mut torn) = (0, 0);
        let until = soon();
        while (whole < 30 || torn < 5) && Instant::now() < until {
            let before = published.load(Ordering::SeqCst);
            let mut target = vec![0u8; bytes];
            let local = ScatterList::single(target.as_mut_ptr().expose_provenance() as u64, bytes as u64);
            let op = ReadOp { extent: place(0, bytes), payload_bytes: bytes as u64, local: &local };
            // SAFETY: the target lives and is not touched during the call.
            let found = unsafe { link.read(&[op], soon()) }.remove(0).unwrap();
            match Trailer::decode(&found) {
                Some(found) if found.generation.get() == before => {
                    let index = usize::try_from(before).unwrap() % objects.len();
                    assert!(target == objects[index], "generation {before} with other bytes");
                    whole += 1;
                }
                _ => torn += 1,
            }
        }
        over.store(true, Ordering::SeqCst);
        assert!(whole >= 30, "only {whole} reads met a whole object, {torn} a changing one");
    });
}

/// A door that lets `good` connections through to the server and cuts the next one after some bytes.
fn cutting_door(server: &RegionServer, good: usize, bytes: usize) -> String {
    let address = server.descriptor().tcp.clone().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let door = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for (number, client) in listener.incoming().map_while(Result::ok).enumerate() {
            let server = TcpStream::connect(&address).unwrap();
            let limit = if number == good { bytes } else { usize::MAX };
            let (client_in, server_in) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || pass(&client_in, &server, limit));
            thread::spawn(move || pass(&server_in, &client, limit));
        }
    });
    door
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, mut left: usize) {
    let mut buffer = vec![0; 64 << 10];
    while left > 0 {
        let part = buffer.len().min(left);
        match from.read(&mut buffer[..part]) {
            Ok(read @ 1..) if to.write_all(&buffer[..read]).is_ok() => left -= read,
            _ => break,
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[test]
fn one_connection_that_breaks_fails_the_object_and_leaves_no_trailer() {
    let server = serve();
    let bytes = 8 << 20;
    let object = pattern(3, bytes);
    let local = ScatterList::single(object.as_ptr().expose_provenance() as u64, bytes as u64);
    let sealed = trailer(1, bytes);
    let encoded = sealed.encode();
    let extent = place(0, bytes);
    server.segment().region().sub(0, extent.bytes()).unwrap().publish_trailer(&encoded);
    // The first connection carries one part, the second breaks within the other.
    let mut descriptor = server.descriptor().clone();
    descriptor.tcp = Some(cutting_door(&server, 1, 1 << 20));
    let fabric = Fabric::new(FabricOptions { choice: ProtocolChoice::HostTcp, connections_per_peer: 2 });
    let door = fabric.link(&descriptor, soon()).unwrap();
    let op = WriteOp { extent, payload_bytes: bytes as u64, local: &local, trailer: &encoded };
    // SAFETY: the object lives and is not written.
    let written = unsafe { door.write(&[op], soon()) };
    assert_eq!(written, [Err(TransportError::PeerGone)]);
    assert_eq!(server.segment().region().sub(0, extent.bytes()).unwrap().load_trailer(), [0; 64]);
    // The link is closed, the fabric opens another, and the same write goes through.
    assert!(!door.is_open());
    let again = fabric.link(&descriptor, soon()).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { again.write(&[op], soon()) }, [Ok(())]);
    assert_eq!(server.segment().region().sub(0, extent.bytes()).unwrap().load_trailer(), encoded);
}
