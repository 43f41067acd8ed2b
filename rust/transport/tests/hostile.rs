//! Peers that do not keep to the protocol, on both ends of a connection. Frames are built here by hand, from the
//! documented layout, so that a change of the wire is noticed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use memcache_memory::{Segment, SegmentOptions, checksum_bytes};
use memcache_testkit::rng::{Rng, pattern};
use memcache_transport::{
    Fabric, FabricOptions, HostId, Protocol, ProtocolChoice, ReadOp, RegionDescriptor, RegionServer, ServerOptions,
    TransportError, WriteOp,
};
use memcache_types::{Extent, GlobalAddress, ScatterList, SegmentId};

const REGION: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn serve(protocols: ProtocolChoice) -> RegionServer {
    let segment = Segment::create(REGION, &SegmentOptions { huge_pages: false, prefault: false }).unwrap();
    RegionServer::start(Arc::new(segment), &ServerOptions { protocols, ..ServerOptions::default() }).unwrap()
}

fn fabric(choice: ProtocolChoice) -> Fabric {
    Fabric::new(FabricOptions { choice, connections_per_peer: 1 })
}

fn tcp_descriptor(address: &str) -> RegionDescriptor {
    RegionDescriptor {
        region_bytes: REGION,
        token: 42,
        host: HostId::UNKNOWN,
        pid: 0,
        shm: None,
        tcp: Some(address.to_owned()),
        rdma: None,
        relay: None,
    }
}

struct Frame {
    op: u8,
    token: u128,
    offset: u64,
    payload: u64,
    extent: u64,
    budget_ms: u32,
    start: u64,
}

impl Frame {
    fn new(op: u8, server: &RegionServer) -> Self {
        Self { op, token: server.descriptor().token, offset: 0, payload: 128, extent: 192, budget_ms: 20_000, start: 0 }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"MCQ\x02\x02\x00".to_vec();
        bytes.extend([self.op, 0]);
        bytes.extend(7u64.to_le_bytes());
        bytes.extend(self.token.to_le_bytes());
        bytes.extend(self.offset.to_le_bytes());
        bytes.extend(self.payload.to_le_bytes());
        bytes.extend(self.extent.to_le_bytes());
        bytes.extend(self.budget_ms.to_le_bytes());
        bytes.extend(self.start.to_le_bytes());
        let checksum = checksum_bytes(&bytes);
        bytes.extend(checksum.to_le_bytes());
        bytes
    }
}

const PING: u8 = 0;
const READ: u8 = 1;
const WRITE: u8 = 2;

fn connect(server: &RegionServer) -> TcpStream {
    let stream = TcpStream::connect(server.descriptor().tcp.as_deref().unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Status of the next reply and the text or payload with it.
fn reply(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut header = [0; 32];
    stream.read_exact(&mut header).ok()?;
    assert_eq!(header[..6], *b"MCA\x02\x02\x00");
    assert_eq!(header[8..16], 7u64.to_le_bytes());
    let mut body = vec![0; usize::try_from(u64::from_le_bytes(header[16..24].try_into().unwrap())).unwrap()];
    stream.read_exact(&mut body).ok()?;
    Some((header[6], body))
}

/// Whether the other end has hung up without another word.
fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(bytes) => bytes == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// The server still does what it is there for.
fn assert_alive(server: &RegionServer) {
    let mut stream = connect(server);
    stream.write_all(&Frame::new(PING, server).bytes()).unwrap();
    assert_eq!(reply(&mut stream), Some((0, vec![])));
}

fn region_bytes_at(server: &RegionServer, offset: u64, bytes: usize) -> Vec<u8> {
    let mut found = vec![0; bytes];
    server.segment().region().sub(offset, bytes as u64).unwrap().read_into(&mut found);
    found
}

#[test]
fn bytes_that_are_no_frame_end_the_connection() {
    let server = serve(ProtocolChoice::HostTcp);
    let good = Frame::new(READ, &server).bytes();
    let mut version = good.clone();
    version[4] = 9;
    let mut damaged = good.clone();
    damaged[40] ^= 1;
    let unknown_op = Frame { op: 77, ..Frame::new(READ, &server) }.bytes();
    let noise = pattern(1, 4096);
    for (what, bytes) in [
        ("http", b"GET / HTTP/1.1\r\nHost: a\r\n\r\nand enough text to fill a whole header of this protocol".to_vec()),
        ("another version", version),
        ("a damaged header", damaged),
        ("an unknown operation", unknown_op),
        ("noise", noise),
    ] {
        let mut stream = connect(&server);
        stream.write_all(&bytes).unwrap();
        assert!(is_closed(&mut stream), "{what} was answered");
    }
    assert_alive(&server);
}

#[test]
fn a_frame_that_stops_half_way_changes_nothing() {
    let server = serve(ProtocolChoice::HostTcp);
    let frame = Frame::new(WRITE, &server).bytes();
    for cut in [1, 30, frame.len() - 1] {
        connect(&server).write_all(&frame[..cut]).unwrap();
    }
    assert_alive(&server);
    assert_eq!(region_bytes_at(&server, 0, 192), [0; 192]);
}

#[test]
fn hostile_ranges_are_refused_and_the_connection_lives() {
    let server = serve(ProtocolChoice::HostTcp);
    let mut stream = connect(&server);
    for (offset, payload, extent) in [
        (REGION, 128, 192),
        (REGION - 128, 128, 192),
        (u64::MAX - 63, 128, 192),
        (0, 129, 192),
        (0, u64::MAX, 192),
        (0, u64::MAX, u64::MAX - 63),
        (1, 128, 192),
        (0, 1, 65),
        (0, 0, 0),
    ] {
        let hostile = Frame { offset, payload, extent, ..Frame::new(READ, &server) };
        stream.write_all(&hostile.bytes()).unwrap();
        let (status, text) = reply(&mut stream).expect("an answer");
        assert_eq!(status, 1, "{offset} {payload} {extent}: {}", String::from_utf8_lossy(&text));
    }
    for (start, payload) in [(1, 128), (64, 65), (128, 1), (u64::MAX, 1), (u64::MAX - 63, 64), (1 << 40, 0)] {
        let hostile = Frame { payload, start, ..Frame::new(READ, &server) };
        stream.write_all(&hostile.bytes()).unwrap();
        assert_eq!(reply(&mut stream).expect("an answer").0, 1, "{payload} bytes from {start} on");
    }
    // A write is answered as well, and its payload is not taken for the next request.
    let hostile = Frame { offset: REGION, ..Frame::new(WRITE, &server) };
    stream.write_all(&hostile.bytes()).unwrap();
    stream.write_all(&[0xee; 128 + 64]).unwrap();
    assert_eq!(reply(&mut stream).expect("an answer").0, 1);
    stream.write_all(&Frame::new(PING, &server).bytes()).unwrap();
    assert_eq!(reply(&mut stream), Some((0, vec![])));
    // One that says it will send more than there is memory is hung up on.
    let endless = Frame { payload: 1 << 60, ..Frame::new(WRITE, &server) };
    stream.write_all(&endless.bytes()).unwrap();
    assert_eq!(reply(&mut stream).expect("an answer").0, 1);
    assert!(is_closed(&mut stream));
    assert_alive(&server);
}

#[test]
fn a_wrong_token_opens_nothing() {
    let server = serve(ProtocolChoice::Auto);
    let mut stream = connect(&server);
    let wrong = Frame { token: server.descriptor().token ^ 1, ..Frame::new(READ, &server) };
    stream.write_all(&wrong.bytes()).unwrap();
    assert_eq!(reply(&mut stream).expect("an answer").0, 2);
    assert!(is_closed(&mut stream));

    let mut descriptor = server.descriptor().clone();
    descriptor.token ^= 1;
    for choice in [ProtocolChoice::Auto, ProtocolChoice::HostShm, ProtocolChoice::HostTcp] {
        let error = fabric(choice).link(&descriptor, soon()).unwrap_err();
        assert!(matches!(error, TransportError::Refused { .. }), "{choice}: {error}");
    }
}

#[test]
fn a_write_takes_the_trailer_away_first_and_puts_the_new_one_last() {
    let server = serve(ProtocolChoice::HostTcp);
    let region = server.segment().region();
    region.sub(0, 192).unwrap().publish_trailer(&[0x11; 64]);
    let mut stream = connect(&server);
    stream.write_all(&Frame::new(WRITE, &server).bytes()).unwrap();
    stream.write_all(&[0x22; 100]).unwrap();
    let deadline = soon();
    while region_bytes_at(&server, 0, 100) != [0x22; 100] {
        assert!(Instant::now() < deadline, "the payload does not arrive");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(region_bytes_at(&server, 128, 64), [0; 64], "the old trailer stands over new bytes");
    stream.write_all(&[0x22; 28]).unwrap();
    stream.write_all(&[0x33; 63]).unwrap();
    stream.write_all(&[0x44]).unwrap();
    assert_eq!(reply(&mut stream), Some((0, vec![])));
    let trailer = region_bytes_at(&server, 128, 64);
    assert_eq!((&trailer[..63], trailer[63]), (&[0x33; 63][..], 0x44));
}

#[test]
fn parts_of_a_write_leave_no_trailer_until_one_is_brought() {
    let server = serve(ProtocolChoice::HostTcp);
    let region = server.segment().region();
    region.sub(0, 192).unwrap().publish_trailer(&[0x11; 64]);
    let (mut first, mut second) = (connect(&server), connect(&server));
    let write = |stream: &mut TcpStream, start: u64, payload: u64, trailer: u8| {
        let frame = Frame { payload, start, ..Frame::new(WRITE, &server) };
        let bytes = vec![0x20 + u8::try_from(start).unwrap(); usize::try_from(payload).unwrap()];
        stream.write_all(&[frame.bytes(), bytes, vec![trailer; 64]].concat()).unwrap();
        assert_eq!(reply(stream), Some((0, vec![])));
        (region_bytes_at(&server, 0, 128), region_bytes_at(&server, 128, 64))
    };
    // The later part may well come first.
    assert_eq!(write(&mut first, 5, 123, 0), ([vec![0; 5], vec![0x25; 123]].concat(), vec![0; 64]));
    assert_eq!(write(&mut second, 0, 5, 0), ([vec![0x20; 5], vec![0x25; 123]].concat(), vec![0; 64]));
    assert_eq!(write(&mut first, 0, 0, 0x77), ([vec![0x20; 5], vec![0x25; 123]].concat(), vec![0x77; 64]));
    // A part of a read brings the trailer too.
    second.write_all(&Frame { start: 4, payload: 2, ..Frame::new(READ, &server) }.bytes()).unwrap();
    assert_eq!(reply(&mut second), Some((0, vec![0x20, 0x25])));
    let mut trailer = [0; 64];
    second.read_exact(&mut trailer).unwrap();
    assert_eq!(trailer, [0x77; 64]);
}

#[test]
fn a_writer_that_dies_half_way_leaves_no_trailer() {
    let server = serve(ProtocolChoice::HostTcp);
    server.segment().region().sub(0, 192).unwrap().publish_trailer(&[0x11; 64]);
    for (sent, budget_ms) in [(60, 20_000), (128 + 63, 20_000), (60, 50)] {
        let mut stream = connect(&server);
        stream.write_all(&Frame { budget_ms, ..Frame::new(WRITE, &server) }.bytes()).unwrap();
        stream.write_all(&vec![0x22; sent]).unwrap();
        if budget_ms < 1000 {
            // It does not die but stalls: the server gives it up when its time is over.
            assert!(is_closed(&mut stream));
        }
        drop(stream);
    }
    let mut server = server;
    server.stop();
    assert_eq!(region_bytes_at(&server, 128, 64), [0; 64]);
}

/// A server that treats each connection as `behave` says.
fn impostor(behave: impl Fn(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(behave));
    address
}

#[test]
fn a_peer_that_never_answers_costs_no_more_than_the_deadline() {
    let (keep, kept) = std::sync::mpsc::channel();
    let address = impostor(move |stream| keep.send(stream).unwrap());
    let deadline = Instant::now() + Duration::from_millis(150);
    let error = fabric(ProtocolChoice::HostTcp).link(&tcp_descriptor(&address), deadline).unwrap_err();
    assert_eq!(error, TransportError::Timeout);
    assert!(Instant::now() >= deadline);
    drop(kept);
}

#[test]
fn a_peer_that_hangs_up_or_talks_nonsense_is_an_error() {
    let hangs_up = impostor(drop);
    let error = fabric(ProtocolChoice::HostTcp).link(&tcp_descriptor(&hangs_up), soon()).unwrap_err();
    assert_eq!(error, TransportError::PeerGone);
    let babbles = impostor(|mut stream| {
        let _ = stream.write_all(&pattern(9, 512));
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let error = fabric(ProtocolChoice::HostTcp).link(&tcp_descriptor(&babbles), soon()).unwrap_err();
    assert!(matches!(error, TransportError::Io { kind: ErrorKind::InvalidData, .. }), "{error}");
}

/// Answers pings rightly and reads with `answer`, given the request's id and payload length.
fn liar(answer: impl Fn(u64, u64) -> Vec<u8> + Send + 'static) -> String {
    impostor(move |mut stream| {
        let mut request = [0; 72];
        while stream.read_exact(&mut request).is_ok() {
            let id = u64::from_le_bytes(request[8..16].try_into().unwrap());
            let payload = u64::from_le_bytes(request[40..48].try_into().unwrap());
            let bytes = if request[6] == PING { reply_header(0, id, 0) } else { answer(id, payload) };
            if stream.write_all(&bytes).is_err() {
                return;
            }
        }
    })
}

fn reply_header(status: u8, id: u64, body: u64) -> Vec<u8> {
    let mut bytes = b"MCA\x02\x02\x00".to_vec();
    bytes.extend([status, 0]);
    bytes.extend(id.to_le_bytes());
    bytes.extend(body.to_le_bytes());
    bytes.extend([0; 4]);
    let checksum = checksum_bytes(&bytes);
    bytes.extend(checksum.to_le_bytes());
    bytes
}

#[test]
fn replies_that_do_not_fit_the_request_are_errors() {
    type Answer = fn(u64, u64) -> Vec<u8>;
    let lies: [(&str, Answer); 5] = [
        ("another id", |id, payload| reply_header(0, id + 1, payload)),
        ("a replayed id", |id, payload| reply_header(0, id - 1, payload)),
        ("a longer payload", |id, payload| reply_header(0, id, payload + 1)),
        ("an endless refusal", |id, _| reply_header(1, id, 1 << 40)),
        ("an unknown status", |id, payload| reply_header(200, id, payload)),
    ];
    for (what, answer) in lies {
        let address = liar(answer);
        let link = fabric(ProtocolChoice::HostTcp).link(&tcp_descriptor(&address), soon()).unwrap();
        let mut target = vec![0xaa_u8; 1000];
        let local = ScatterList::single(target.as_mut_ptr().expose_provenance() as u64, 1000);
        let extent = Extent::new(GlobalAddress::new(SegmentId::new(1), 0), 1088).unwrap();
        let op = ReadOp { extent, payload_bytes: 1000, local: &local };
        // SAFETY: the buffer lives and is not touched during the call.
        let results = unsafe { link.read(&[op, op], soon()) };
        for result in results {
            assert!(
                matches!(result, Err(TransportError::Io { kind: ErrorKind::InvalidData, .. })),
                "{what}: {result:?}"
            );
        }
        assert_eq!(target, [0xaa; 1000], "{what} touched the target");
    }
}

#[test]
fn what_a_server_refuses_is_told_by_operation() {
    let refusing = liar(|id, _| [reply_header(1, id, 4), b"nope".to_vec()].concat());
    let link = fabric(ProtocolChoice::HostTcp).link(&tcp_descriptor(&refusing), soon()).unwrap();
    let source = vec![1u8; 500];
    let local = ScatterList::single(source.as_ptr().expose_provenance() as u64, 500);
    let extent = Extent::new(GlobalAddress::new(SegmentId::new(1), 0), 1088).unwrap();
    let op = ReadOp { extent, payload_bytes: 500, local: &local };
    // SAFETY: the buffer lives; a refused read writes nothing.
    let results = unsafe { link.read(&[op, op], soon()) };
    assert_eq!(results, vec![Err(TransportError::InvalidOp { why: "nope".to_owned() }); 2]);
}

#[test]
fn a_write_whose_server_vanishes_is_reported() {
    let address = impostor(|mut stream| {
        // Answers the ping, takes a little of the write, and is gone.
        let mut request = [0; 72];
        stream.read_exact(&mut request).unwrap();
        let id = u64::from_le_bytes(request[8..16].try_into().unwrap());
        stream.write_all(&reply_header(0, id, 0)).unwrap();
        let _ = stream.read_exact(&mut request);
    });
    let link = fabric(ProtocolChoice::HostTcp).link(&tcp_descriptor(&address), soon()).unwrap();
    let source = vec![1u8; 900_000];
    let local = ScatterList::single(source.as_ptr().expose_provenance() as u64, 900_000);
    let extent = Extent::new(GlobalAddress::new(SegmentId::new(1), 0), 900_160).unwrap();
    let op = WriteOp { extent, payload_bytes: 900_000, local: &local, trailer: &[1; 64] };
    // SAFETY: the buffer lives and is not written.
    let results = unsafe { link.write(&[op], soon()) };
    assert_eq!(results, [Err(TransportError::PeerGone)]);
    assert!(!link.is_open());
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let data_port = taken.local_addr().unwrap().port();
    let segment = Arc::new(Segment::create(REGION, &SegmentOptions::default()).unwrap());
    let options = ServerOptions { data_port, ..ServerOptions::default() };
    let error = RegionServer::start(segment, &options).unwrap_err();
    assert_eq!(error, TransportError::AddressInUse { address: format!("127.0.0.1:{data_port}") });
}

#[test]
fn a_forced_road_has_no_way_round() {
    let tcp_only = serve(ProtocolChoice::HostTcp);
    let shm_only = serve(ProtocolChoice::HostShm);
    for (server, choice, protocol) in [
        (&tcp_only, ProtocolChoice::HostShm, Protocol::HostShm),
        (&shm_only, ProtocolChoice::HostTcp, Protocol::HostTcp),
    ] {
        let error = fabric(choice).link(server.descriptor(), soon()).unwrap_err();
        assert!(matches!(&error, TransportError::Unavailable { protocol: found, .. } if *found == protocol), "{error}");
    }
}

#[test]
fn the_door_to_shared_memory_takes_no_nonsense() {
    let server = serve(ProtocolChoice::HostShm);
    let name = server.descriptor().shm.clone().unwrap();
    // std has no packet sockets: a stream cannot even connect.
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    assert!(UnixStream::connect_addr(&address).is_err());
    let mut rng = Rng::new(3);
    for bytes in [0usize, 1, 23, 24, 25, 4000] {
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::SEQPACKET, None).unwrap();
        let address = rustix::net::SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        let noise = pattern(rng.next(), bytes);
        rustix::net::send(&socket, &noise, rustix::net::SendFlags::NOSIGNAL).unwrap();
        let mut answer = [0; 64];
        let (received, _) = rustix::net::recv(&socket, &mut answer, rustix::net::RecvFlags::empty()).unwrap();
        assert!(
            received == 0 || (received == 16 && answer[6] != 0),
            "{bytes} bytes of noise got {:?}",
            &answer[..received]
        );
    }
    // One that says nothing does not keep the others out.
    let silent =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::SEQPACKET, None).unwrap();
    let address = rustix::net::SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
    rustix::net::connect(&silent, &address).unwrap();
    assert!(fabric(ProtocolChoice::HostShm).link(server.descriptor(), soon()).is_ok());
}
