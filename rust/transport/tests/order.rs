//! The order of payload and trailer, seen without luck: pieces that lie in the very trailer of the extent that is
//! moved, and a reader that lets the owner wait.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::{Segment, SegmentOptions, checksum_bytes};
use memcache_testkit::in_parts::InParts;
use memcache_transport::{
    Fabric, FabricOptions, Link, Protocol, ProtocolChoice, ReadOp, RegionServer, ServerOptions, WriteOp,
};
use memcache_types::{Extent, GlobalAddress, ScatterList, SegmentId};

const REGION: u64 = 64 << 20;

fn serve() -> RegionServer {
    let segment = Segment::create(REGION, &SegmentOptions { huge_pages: false, prefault: false }).unwrap();
    RegionServer::start(Arc::new(segment), &ServerOptions::default()).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Links that copy on the calling thread, over addresses of their own where that is possible.
fn copying_links(server: &RegionServer) -> Vec<Arc<dyn Link>> {
    let local = Fabric::new(FabricOptions::default());
    local.register_local(server);
    let shared = Fabric::new(FabricOptions { choice: ProtocolChoice::HostShm, ..FabricOptions::default() });
    let whole = [local, shared].map(|fabric| fabric.link(server.descriptor(), soon()).unwrap());
    let in_parts = whole.each_ref().map(|link| Arc::new(InParts::new(Arc::clone(link))) as Arc<dyn Link>);
    whole.into_iter().chain(in_parts).collect()
}

/// Payload in the first 64 bytes, trailer in the next.
fn place() -> Extent {
    Extent::new(GlobalAddress::new(SegmentId::new(1), 0), 128).unwrap()
}

/// The trailer of [`place`] as if it were someone's local memory.
fn trailer_as_piece(server: &RegionServer) -> ScatterList {
    ScatterList::single(server.segment().base().as_ptr().expose_provenance() as u64 + 64, 64)
}

fn bytes_at(server: &RegionServer, offset: u64) -> [u8; 64] {
    let mut bytes = [0; 64];
    server.segment().region().sub(offset, 64).unwrap().read_into(&mut bytes);
    bytes
}

#[test]
fn a_write_copies_after_the_old_trailer_is_gone() {
    let server = serve();
    let links = copying_links(&server);
    let protocols = [Protocol::Local, Protocol::HostShm].repeat(2);
    assert_eq!(links.iter().map(|link| link.protocol()).collect::<Vec<_>>(), protocols);
    for link in links {
        server.segment().region().sub(0, 128).unwrap().publish_trailer(&[0x11; 64]);
        let local = trailer_as_piece(&server);
        let op = WriteOp { extent: place(), payload_bytes: 64, local: &local, trailer: &[0x22; 64] };
        // SAFETY: the source is mapped, and disjoint from the payload it is copied to.
        assert_eq!(unsafe { link.write(&[op], soon()) }, [Ok(())]);
        assert_eq!(bytes_at(&server, 0), [0; 64], "{}: what the trailer held during the copy", link.protocol());
        assert_eq!(bytes_at(&server, 64), [0x22; 64]);
    }
}

#[test]
fn a_read_looks_at_the_trailer_after_its_copy() {
    let server = serve();
    for link in copying_links(&server) {
        let extent = server.segment().region().sub(0, 128).unwrap();
        extent.publish_trailer(&[0x11; 64]);
        extent.write_from(&[0x33; 64]);
        let local = trailer_as_piece(&server);
        let op = ReadOp { extent: place(), payload_bytes: 64, local: &local };
        // SAFETY: the target is mapped, and disjoint from the payload that is copied to it.
        let found = unsafe { link.read(&[op], soon()) };
        assert_eq!(found, [Ok([0x33; 64])], "{}: a trailer from before the copy", link.protocol());
    }
}

/// Over TCP the owner sends a payload that no socket buffer holds; while it waits for the reader, the trailer changes.
#[test]
fn the_owner_looks_at_the_trailer_after_the_last_byte_is_sent() {
    const PAYLOAD: u64 = 48 << 20;
    let server = serve();
    let extent = server.segment().region().sub(0, PAYLOAD + 64).unwrap();
    extent.publish_trailer(&[0x11; 64]);
    let mut request = b"MCQ\x02\x02\x00\x01\x00".to_vec();
    request.extend(7u64.to_le_bytes());
    request.extend(server.descriptor().token.to_le_bytes());
    for number in [0, PAYLOAD, PAYLOAD + 64] {
        request.extend(number.to_le_bytes());
    }
    request.extend(60_000u32.to_le_bytes());
    request.extend([0; 8]);
    request.extend(checksum_bytes(&request).to_le_bytes());

    let mut stream = TcpStream::connect(server.descriptor().tcp.as_deref().unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(&request).unwrap();
    let mut header = [0; 32];
    stream.read_exact(&mut header).unwrap();
    // The reply has begun, so the owner is past its first look at the extent.
    extent.publish_trailer(&[0x22; 64]);
    let mut rest = vec![0; usize::try_from(PAYLOAD).unwrap() + 64];
    stream.read_exact(&mut rest).unwrap();
    assert_eq!(rest[rest.len() - 64..], [0x22; 64], "the trailer is older than the payload");
}
