//! Lanes through shared memory: the suite of lanes over them, and clients that do to the memory what they like.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memcache_config::Endpoint;
use memcache_mailbox::{Change, End, RING_BYTES, receive, ring};
use memcache_meta::MetaServer;
use memcache_proto::lane::{Incoming, MAILBOX_PREFACE, mailbox_name, push_frame};
use memcache_proto::pb::{self, reply, request};
use memcache_proto::{MESSAGE_BYTES_MAX, pack};
use memcache_types::KeyBatch;
use rustix::io::pwrite;

use crate::client::{Client, DEADLINE, exist, server};
use crate::lanes::{Lane, exist_request, one_round, request, tcp};

/// A client's end, used like a stream.
struct Mailbox {
    end: End,
    socket: UnixStream,
    memory: OwnedFd,
}

fn connect(server: &MetaServer) -> UnixStream {
    let Endpoint::Tcp { port, .. } = server.address() else { panic!("not TCP") };
    let name = SocketAddr::from_abstract_name(mailbox_name(server.epoch().get(), *port)).unwrap();
    UnixStream::connect_addr(&name).unwrap()
}

fn open_over(mut socket: UnixStream) -> Lane<Mailbox> {
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.write_all(MAILBOX_PREFACE).unwrap();
    let mut incoming = Incoming::new(MESSAGE_BYTES_MAX);
    let until = Instant::now() + DEADLINE;
    let (bytes, memory) = loop {
        match receive(&socket, incoming.room()) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(1));
            }
            received => break received.unwrap(),
        }
    };
    incoming.arrived(bytes);
    let greeting: pb::Reply = incoming.message().unwrap().expect("a greeting");
    assert!(greeting.request_id == 0 && greeting.epoch > 0 && greeting.body.is_none(), "{greeting:?}");
    let memory = memory.expect("memory");
    let end = End::attach(&memory).unwrap();
    Lane { stream: Mailbox { end, socket, memory }, incoming }
}

fn open(server: &MetaServer) -> Lane<Mailbox> {
    open_over(connect(server))
}

impl Mailbox {
    fn wait(&self, wanted: Change) -> io::Result<()> {
        if self.end.lie_down(wanted) {
            let rung = (&self.socket).read(&mut [0; 64]);
            self.end.get_up();
            if rung? == 0 && !self.end.is_there(wanted) {
                return Err(ErrorKind::ConnectionAborted.into());
            }
        }
        Ok(())
    }

    fn changed(&self, what: Change) {
        if self.end.must_ring(what) {
            drop(ring(&self.socket));
        }
    }

    /// Writes nonsense where the ends tell each other how far they are.
    fn scribble(&self, offset: u64, word: u64) {
        pwrite(&self.memory, &word.to_ne_bytes(), offset).unwrap();
    }
}

impl Read for Mailbox {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        loop {
            let bytes = self.end.read(target)?;
            if bytes > 0 {
                self.changed(Change::ROOM);
                return Ok(bytes);
            }
            self.wait(Change::BYTES)?;
        }
    }
}

impl Write for Mailbox {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let written = self.end.write(bytes)?;
            if written > 0 {
                self.changed(Change::BYTES);
                return Ok(written);
            }
            self.wait(Change::ROOM)?;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn mailboxes_are_served_beside_lanes_and_sessions() {
    let server = server(&[]);
    one_round(open(&server));
    let mut lanes: Vec<Lane<Mailbox>> = (0..5).map(|_| open(&server)).collect();
    for turn in 1..2000 {
        for lane in &mut lanes {
            lane.send(&[exist_request(turn, &["a"])]);
        }
        for lane in &mut lanes {
            let reply = lane.receive().unwrap();
            assert_eq!((reply.request_id, reply.epoch), (turn, server.epoch().get()));
        }
    }
}

#[test]
fn mailboxes_are_handed_out_over_unix_sockets_too() {
    let path = std::env::temp_dir().join(format!("memcache-meta-test-{}-mailbox.sock", std::process::id()));
    let server = server(&[("listen", &format!("unix:{}", path.display()))]);
    one_round(open_over(UnixStream::connect(&path).unwrap()));
    drop(server);
}

#[test]
fn a_mailbox_that_slept_is_served_when_it_rings() {
    let server = server(&[]);
    let mut lane = open(&server);
    for turn in 1..20 {
        lane.send(&[exist_request(turn, &["a"])]);
        assert_eq!(lane.receive().unwrap().request_id, turn);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn replies_in_a_mailbox_come_in_the_order_of_their_requests() {
    let server = server(&[]);
    let mut lane = open(&server);
    // More than the ring for replies holds, asked before any is read: both sides wait for room.
    let requests: Vec<pb::Request> = (1..3000).map(|id| exist_request(id, &["a"])).collect();
    lane.send(&requests);
    for id in 1..3000 {
        assert_eq!(lane.receive().unwrap().request_id, id);
    }
}

#[test]
fn frames_longer_than_the_ring_flow_through_it() {
    let server = server(&[]);
    let mut lane = open(&server);
    for (keys, length) in [(10_000u32, 4), (65_536, 60)] {
        let many = KeyBatch::from_keys((0..keys).map(|key| key.to_le_bytes().repeat(length / 4))).unwrap();
        let body = request::Body::Exist(pb::Exist { keys: Some(pack::keys_to_wire(&many)) });
        let asked: Vec<pb::Request> = (0..10).map(|turn| request(turn, Some(body.clone()))).collect();
        for one in &asked {
            lane.send(std::slice::from_ref(one));
            let reply = lane.receive().unwrap();
            let Some(reply::Body::Exist(exist)) = reply.body else { panic!("{reply:?}") };
            assert_eq!((reply.request_id, exist.outcomes.len()), (one.request_id, keys as usize));
            assert!(keys < 65_536 || exist.outcomes.len() >= RING_BYTES, "the reply is longer than the ring as well");
        }
    }
}

#[test]
fn broken_frames_end_their_mailbox_and_nothing_else() {
    let server = server(&[]);
    let mut well = open(&server);
    for hostile in [
        &[0xff, 0xff, 0xff, 0xff, 1, 2, 3][..], // a length of 4 GiB
        &[0x01, 0x00, 0x00, 0x04, 0][..],       // one byte over the limit
        &[2, 0, 0, 0, 0xff, 0xff][..],          // not a message
        &[3, 0, 0, 0, 0x0a, 0x7f, 0][..],       // a message that ends inside a field
    ] {
        let mut lane = open(&server);
        lane.stream.write_all(hostile).unwrap();
        assert!(lane.receive().is_none(), "{hostile:?}");
        well.send(&[exist_request(1, &["a"])]);
        assert!(well.receive().is_some());
    }
}

#[test]
fn nonsense_in_the_shared_words_ends_its_mailbox_and_nothing_else() {
    let server = server(&[]);
    let mut well = open(&server);
    for offset in (0..1024).step_by(128) {
        for word in [1 << 40, u64::MAX, RING_BYTES as u64 + 1, 3] {
            let mut lane = open(&server);
            lane.send(&[exist_request(1, &["a"])]);
            assert!(lane.receive().is_some());
            lane.stream.scribble(offset, word);
            drop(ring(&lane.stream.socket));
            // It ends, or goes on where the word could be true; it may never be answered.
            well.send(&[exist_request(2, &["a"])]);
            assert_eq!(well.receive().unwrap().request_id, 2, "{offset} {word}");
        }
    }
    // What it claims to have written cannot be: the lane ends.
    let mut lane = open(&server);
    lane.stream.scribble(0, 1 << 40);
    drop(ring(&lane.stream.socket));
    assert!(lane.receive().is_none());
}

#[test]
fn clients_that_scribble_without_a_pause_stop_nobody() {
    let server = server(&[]);
    let mut well = open(&server);
    let wild: Vec<Lane<Mailbox>> = (0..4).map(|_| open(&server)).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for turn in 1..3000 {
        for lane in &wild {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let offset = (random >> 33) % 70_000;
            lane.stream.scribble(offset, random % 70_000);
            drop(ring(&lane.stream.socket));
        }
        well.send(&[exist_request(turn, &["a"])]);
        assert_eq!(well.receive().unwrap().request_id, turn);
    }
    assert!(server.stop(DEADLINE));
}

#[test]
fn half_frames_and_silence_in_mailboxes_do_not_stop_others() {
    let server = server(&[]);
    let halves: Vec<Lane<Mailbox>> = (0..50)
        .map(|_| {
            let mut lane = open(&server);
            lane.stream.write_all(&[0, 0, 0, 2, 1, 2, 3]).unwrap(); // 32 MiB are to follow
            lane
        })
        .collect();
    let silent: Vec<UnixStream> = (0..50).map(|_| connect(&server)).collect();
    one_round(open(&server));
    assert!(server.stop(DEADLINE));
    drop((silent, halves));
}

#[test]
fn a_mailbox_whose_client_does_not_read_does_not_stop_others() {
    let server = server(&[]);
    let mut greedy = open(&server);
    let many = KeyBatch::from_keys((0..60_000u32).map(u32::to_le_bytes)).unwrap();
    let body = request::Body::Exist(pb::Exist { keys: Some(pack::keys_to_wire(&many)) });
    let mut frames = Vec::new();
    assert!(push_frame(&request(1, Some(body)), &mut frames));
    let until = Instant::now() + DEADLINE;
    let (mut at, mut stuck) = (0, 0);
    while stuck < 50 {
        assert!(Instant::now() < until, "the service takes in requests for ever");
        let written = greedy.stream.end.write(&frames[at..]).unwrap();
        greedy.stream.changed(Change::BYTES);
        (at, stuck) = ((at + written) % frames.len(), if written > 0 { 0 } else { stuck + 1 });
        if written == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    one_round(open(&server));
    let asked = Instant::now();
    assert!(server.stop(Duration::from_secs(2)), "took {:?}", asked.elapsed());
}

/// Ends what other threads do, also when the test fails.
struct OverOnDrop<'a>(&'a AtomicBool);

impl Drop for OverOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Keeps a mailbox full and rings all the time; says how many requests were answered.
fn flood(greedy: &mut Mailbox, is_over: &AtomicBool) -> usize {
    let mut frames = Vec::new();
    for id in 1..1000 {
        assert!(push_frame(&exist_request(id, &["a", "b"]), &mut frames));
    }
    let (mut at, mut answered, mut replies) = (0, 0, Incoming::new(MESSAGE_BYTES_MAX));
    greedy.socket.set_nonblocking(true).unwrap();
    while !is_over.load(Ordering::Acquire) {
        at = (at + greedy.end.write(&frames[at..]).unwrap()) % frames.len();
        let bytes = greedy.end.read(replies.room()).unwrap();
        replies.arrived(bytes);
        answered += std::iter::from_fn(|| replies.message::<pb::Reply>().unwrap()).count();
        ring(&greedy.socket).unwrap();
        while (&greedy.socket).read(&mut [0; 64]).is_ok_and(|bytes| bytes > 0) {}
    }
    answered
}

#[test]
fn clients_that_keep_their_mailboxes_full_starve_nobody() {
    const ROUNDS: u64 = 300;
    let server = server(&[]);
    let mut greedy = [open(&server), open(&server)];
    let (mut watched, mut sleepy) = (open(&server), open(&server));
    let mut lane = Lane::open(tcp(&server));
    let mut session = Client::connect(server.address(), 1);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let floods = greedy.each_mut().map(|one| scope.spawn(|| flood(&mut one.stream, &is_over)));
        let over = OverOnDrop(&is_over);
        for round in 1..=ROUNDS {
            watched.send(&[exist_request(round, &["a"])]);
            assert_eq!(watched.receive().unwrap().request_id, round);
            lane.send(&[exist_request(round, &["a"])]);
            assert_eq!(lane.receive().unwrap().request_id, round);
            assert_eq!(exist(&mut session, &["a"]), [2]);
            if round % 50 == 0 {
                // Nobody has watched this one for some time.
                sleepy.send(&[exist_request(round, &["a"])]);
                assert_eq!(sleepy.receive().unwrap().request_id, round);
                one_round(Lane::open(tcp(&server)));
                one_round(open(&server));
            }
        }
        drop(over);
        for answered in floods.map(|one| one.join().unwrap()) {
            assert!(answered > 0, "the flood was no flood");
        }
    });
}

#[test]
fn stopping_ends_mailboxes_also_those_in_use() {
    let server = server(&[]);
    let mut lane = open(&server);
    let mut busy = open(&server);
    std::thread::scope(|scope| {
        let asking = scope.spawn(move || {
            for turn in 1.. {
                let mut frames = Vec::new();
                assert!(push_frame(&exist_request(turn, &["a"]), &mut frames));
                if busy.stream.write_all(&frames).is_err() || busy.receive().is_none() {
                    return turn;
                }
            }
            0
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(server.stop(Duration::from_secs(2)));
        assert!(lane.receive().is_none());
        assert!(asking.join().unwrap() > 1);
    });
}

#[test]
fn what_asks_for_a_mailbox_over_tcp_is_hung_up_on() {
    let server = server(&[]);
    let Endpoint::Tcp { host, port } = server.address() else { panic!("not TCP") };
    let mut stream = std::net::TcpStream::connect((host.as_str(), *port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(MAILBOX_PREFACE).unwrap();
    let mut rest = Vec::new();
    drop(stream.read_to_end(&mut rest));
    assert!(rest.is_empty(), "{rest:?}");
}

#[test]
fn a_service_without_mailboxes_hands_out_none() {
    let server = server(&[("mailboxes_max", "0")]);
    let Endpoint::Tcp { port, .. } = server.address() else { panic!("not TCP") };
    let name = SocketAddr::from_abstract_name(mailbox_name(server.epoch().get(), *port)).unwrap();
    assert!(UnixStream::connect_addr(&name).is_err());
}
