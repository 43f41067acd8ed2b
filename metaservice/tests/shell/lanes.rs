//! Connections without HTTP/2: well-behaved clients, and others.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use memcache_config::Endpoint;
use memcache_meta::MetaServer;
use memcache_proto::lane::{Incoming, PREFACE, push_frame};
use memcache_proto::pb::{self, reply, request};
use memcache_proto::{MESSAGE_BYTES_MAX, pack};
use memcache_types::KeyBatch;

use crate::client::{Client, DEADLINE, exist, join, keys, put, server};

pub(crate) fn tcp(server: &MetaServer) -> TcpStream {
    let Endpoint::Tcp { host, port } = server.address() else { panic!("not TCP") };
    let stream = TcpStream::connect((host.as_str(), *port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A lane that was greeted.
pub(crate) struct Lane<S> {
    pub(crate) stream: S,
    pub(crate) incoming: Incoming,
}

impl<S: Read + Write> Lane<S> {
    pub(crate) fn open(mut stream: S) -> Self {
        stream.write_all(PREFACE).unwrap();
        let mut lane = Self { stream, incoming: Incoming::new(MESSAGE_BYTES_MAX) };
        let greeting = lane.receive().expect("a greeting");
        assert!(greeting.request_id == 0 && greeting.epoch > 0 && greeting.body.is_none(), "{greeting:?}");
        lane
    }

    pub(crate) fn send(&mut self, requests: &[pb::Request]) {
        let mut frames = Vec::new();
        for request in requests {
            assert!(push_frame(request, &mut frames));
        }
        self.stream.write_all(&frames).unwrap();
    }

    /// The next reply; `None` when the service has hung up.
    pub(crate) fn receive(&mut self) -> Option<pb::Reply> {
        loop {
            if let Some(reply) = self.incoming.message().unwrap() {
                return Some(reply);
            }
            let bytes = self.stream.read(self.incoming.room()).ok().filter(|bytes| *bytes > 0)?;
            self.incoming.arrived(bytes);
        }
    }
}

pub(crate) fn request(request_id: u64, body: Option<request::Body>) -> pb::Request {
    pb::Request { request_id, client: 1, body }
}

pub(crate) fn exist_request(request_id: u64, names: &[&str]) -> pb::Request {
    request(request_id, Some(request::Body::Exist(pb::Exist { keys: keys(names) })))
}

pub(crate) fn one_round(mut lane: Lane<impl Read + Write>) {
    lane.send(&[request(1, Some(join(5, 1))), exist_request(2, &["a", "b"])]);
    assert_eq!(lane.receive().unwrap().request_id, 1);
    let reply = lane.receive().unwrap();
    assert_eq!((reply.request_id, reply.body), (2, Some(reply::Body::Exist(pb::ExistReply { outcomes: vec![2, 2] }))));
}

#[test]
fn lanes_are_served_beside_sessions_on_one_address() {
    let server = server(&[]);
    let mut client = Client::connect(server.address(), 1);
    client.ask(join(5, 1));
    put(&mut client, &["a"], 3);
    let mut lane = Lane::open(tcp(&server));
    for turn in 1..100 {
        lane.send(&[exist_request(turn, &["a", "b"])]);
        let reply = lane.receive().unwrap();
        assert_eq!((reply.request_id, reply.epoch), (turn, server.epoch().get()));
        assert_eq!(reply.body, Some(reply::Body::Exist(pb::ExistReply { outcomes: vec![1, 2] })));
        assert_eq!(exist(&mut client, &["a"]), [1]);
    }
}

#[test]
fn lanes_are_served_over_unix_sockets_too() {
    let path = std::env::temp_dir().join(format!("memcache-meta-test-{}-lane.sock", std::process::id()));
    let server = server(&[("listen", &format!("unix:{}", path.display()))]);
    one_round(Lane::open(UnixStream::connect(&path).unwrap()));
    drop(server);
}

#[test]
fn replies_on_a_lane_come_in_the_order_of_their_requests() {
    let server = server(&[]);
    let mut lane = Lane::open(tcp(&server));
    let requests: Vec<pb::Request> = (1..2000).map(|id| exist_request(id, &["a"])).collect();
    lane.send(&requests);
    for id in 1..2000 {
        assert_eq!(lane.receive().unwrap().request_id, id);
    }
}

#[test]
fn a_request_of_a_later_version_is_refused_and_the_lane_goes_on() {
    let server = server(&[]);
    let mut lane = Lane::open(tcp(&server));
    // Field 999, a message, is no body this version knows; an unknown field beside a known body is passed over.
    let mut unknown = vec![0x08, 9];
    unknown.extend([0xba, 0x3e, 2, 0x08, 1]);
    let mut frame = u32::try_from(unknown.len()).unwrap().to_le_bytes().to_vec();
    frame.extend(unknown);
    lane.stream.write_all(&frame).unwrap();
    let reply = lane.receive().unwrap();
    let Some(reply::Body::Failure(failure)) = reply.body else { panic!("{reply:?}") };
    assert_eq!((reply.request_id, failure.code()), (9, pb::failure::Code::Invalid));
    lane.send(&[exist_request(10, &["a"])]);
    assert_eq!(lane.receive().unwrap().request_id, 10);
}

#[test]
fn broken_frames_end_their_lane_and_nothing_else() {
    let server = server(&[]);
    let mut well = Lane::open(tcp(&server));
    for hostile in [
        &[0xff, 0xff, 0xff, 0xff, 1, 2, 3][..], // a length of 4 GiB
        &[0x01, 0x00, 0x00, 0x04, 0][..],       // one byte over the limit
        &[2, 0, 0, 0, 0xff, 0xff][..],          // not a message
        &[3, 0, 0, 0, 0x0a, 0x7f, 0][..],       // a message that ends inside a field
    ] {
        let mut lane = Lane::open(tcp(&server));
        lane.stream.write_all(hostile).unwrap();
        assert!(lane.receive().is_none(), "{hostile:?}");
        well.send(&[exist_request(1, &["a"])]);
        assert!(well.receive().is_some());
    }
}

#[test]
fn a_connection_that_is_neither_is_hung_up_on() {
    let server = server(&[]);
    for said in [&b"memcache-lane/2\n"[..], b"mmmmmmmmmmmmmmmmmmmm", b"memcache"] {
        let mut stream = tcp(&server);
        stream.write_all(said).unwrap();
        // Whoever was hung up on already cannot say that it is done; and a reset says the same as an end.
        drop(stream.shutdown(Shutdown::Write));
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest));
        assert!(rest.is_empty(), "{rest:?}");
    }
    one_round(Lane::open(tcp(&server)));
}

#[test]
fn silent_connections_and_half_frames_do_not_stop_others() {
    let server = server(&[]);
    let silent: Vec<TcpStream> = (0..100).map(|_| tcp(&server)).collect();
    let halves: Vec<Lane<TcpStream>> = (0..100)
        .map(|_| {
            let mut lane = Lane::open(tcp(&server));
            lane.stream.write_all(&[0, 0, 0, 2, 1, 2, 3]).unwrap(); // 32 MiB are to follow
            lane
        })
        .collect();
    one_round(Lane::open(tcp(&server)));
    assert!(server.stop(DEADLINE));
    drop((silent, halves));
}

#[test]
fn a_lane_whose_client_does_not_read_does_not_stop_others() {
    let server = server(&[]);
    let mut greedy = Lane::open(tcp(&server));
    let many = KeyBatch::from_keys((0..60_000u32).map(u32::to_le_bytes)).unwrap();
    let body = request::Body::Exist(pb::Exist { keys: Some(pack::keys_to_wire(&many)) });
    let mut frames = Vec::new();
    assert!(push_frame(&request(1, Some(body)), &mut frames));
    greedy.stream.set_nonblocking(true).unwrap();
    let until = Instant::now() + DEADLINE;
    let (mut at, mut stuck) = (0, 0);
    while stuck < 50 {
        assert!(Instant::now() < until, "the service takes in requests for ever");
        let written = greedy.stream.write(&frames[at..]);
        if let Ok(bytes) = written {
            (at, stuck) = ((at + bytes) % frames.len(), 0);
        } else {
            assert_eq!(written.unwrap_err().kind(), ErrorKind::WouldBlock, "the lane is open");
            stuck += 1;
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    one_round(Lane::open(tcp(&server)));
    let asked = Instant::now();
    assert!(server.stop(Duration::from_secs(2)), "took {:?}", asked.elapsed());
}

#[test]
fn stopping_ends_open_lanes() {
    let server = server(&[]);
    let mut lane = Lane::open(tcp(&server));
    assert!(server.stop(Duration::from_secs(2)));
    assert!(lane.receive().is_none());
}
