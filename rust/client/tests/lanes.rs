//! Callers that wait get connections of their own; nothing but the speed depends on them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use memcache_client::book::{Book, BookError};
use memcache_config::{Endpoint, MetaConfig};
use memcache_meta::MetaServer;
use memcache_proto::lane::{PREFACE, mailbox_name};
use memcache_proto::pack::keys_to_wire;
use memcache_proto::pb::{self, reply, request};
use memcache_types::KeyBatch;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn meta(listen: &Endpoint) -> MetaServer {
    MetaServer::start(&MetaConfig { listen: listen.clone(), ..MetaConfig::default() }).unwrap()
}

fn loopback(port: u16) -> Endpoint {
    Endpoint::Tcp { host: "127.0.0.1".to_owned(), port }
}

fn ask(book: &Book) -> Result<u64, BookError> {
    let answer = book.call(request::Body::Status(pb::Status {}), soon())?;
    match answer.body {
        reply::Body::Status(_) => Ok(answer.epoch.get()),
        other => panic!("{other:?}"),
    }
}

/// What becomes of lanes on their way to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lanes {
    /// They reach it.
    Pass,
    /// As a service does that speaks nothing but HTTP/2.
    Settings,
    /// The connection is closed at once.
    Close,
    /// Nothing is ever said.
    Silence,
    /// They reach it until told otherwise; then nothing comes back any more, and nothing is closed.
    Swallow,
    /// As [`Swallow`](Self::Swallow), and in both directions, for all connections that were opened until then.
    SwallowAll,
}

/// A middleman in front of the service that counts connections.
struct Proxy {
    endpoint: Endpoint,
    lanes: Arc<AtomicUsize>,
    sessions: Arc<AtomicUsize>,
    swallow: Arc<AtomicBool>,
}

impl Proxy {
    fn start(server: &MetaServer, treat: Lanes) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = loopback(listener.local_addr().unwrap().port());
        let proxy = Self { endpoint, lanes: Arc::default(), sessions: Arc::default(), swallow: Arc::default() };
        let (lanes, sessions, swallow) =
            (Arc::clone(&proxy.lanes), Arc::clone(&proxy.sessions), Arc::clone(&proxy.swallow));
        let Endpoint::Tcp { port, .. } = *server.address() else { panic!("not TCP") };
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (lanes, sessions, swallow) = (Arc::clone(&lanes), Arc::clone(&sessions), Arc::clone(&swallow));
                std::thread::spawn(move || serve(&stream, port, treat, &lanes, &sessions, &swallow));
            }
        });
        proxy
    }
}

fn serve(
    stream: &TcpStream,
    port: u16,
    treat: Lanes,
    lanes: &AtomicUsize,
    sessions: &AtomicUsize,
    swallow: &Arc<AtomicBool>,
) {
    let mut first = [0; 1];
    if stream.peek(&mut first).is_err() {
        return;
    }
    let is_lane = first[0] == PREFACE[0];
    let counter = if is_lane { lanes } else { sessions };
    counter.fetch_add(1, Ordering::SeqCst);
    match treat {
        Lanes::Settings if is_lane => {
            drop((&*stream).write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]));
            let mut rest = Vec::new();
            drop((&*stream).read_to_end(&mut rest));
        }
        Lanes::Close if is_lane => {}
        Lanes::Silence if is_lane => {
            let mut rest = Vec::new();
            drop((&*stream).read_to_end(&mut rest));
        }
        _ => {
            let Ok(onward) = TcpStream::connect(("127.0.0.1", port)) else { return };
            stream.set_nodelay(true).unwrap();
            onward.set_nodelay(true).unwrap();
            let (from, to) = (stream.try_clone().unwrap(), onward.try_clone().unwrap());
            let is_new = swallow.load(Ordering::SeqCst);
            let both = (treat == Lanes::SwallowAll && !is_new).then(|| Arc::clone(swallow));
            let back = if treat == Lanes::Swallow && is_lane { Some(Arc::clone(swallow)) } else { both.clone() };
            let back = std::thread::spawn(move || pump(&onward, &from, back.as_deref()));
            pump(stream, &to, both.as_deref());
            drop(back.join());
        }
    }
}

/// Copies until one side ends, then ends the other.
fn pump(mut from: &TcpStream, mut to: &TcpStream, swallow: Option<&AtomicBool>) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if swallow.is_some_and(|swallow| swallow.load(Ordering::SeqCst)) {
            continue;
        }
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
}

/// Asks until a lane has been opened, and some more.
fn ask_often(book: &Book, lanes: &AtomicUsize) {
    let until = soon();
    while lanes.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < until, "no lane was ever asked for");
        ask(book).unwrap();
    }
    for _ in 0..100 {
        ask(book).unwrap();
    }
}

#[test]
fn callers_that_ask_often_get_a_lane_and_one_is_enough_for_one() {
    let server = meta(&loopback(0));
    let proxy = Proxy::start(&server, Lanes::Pass);
    let book = Book::open(proxy.endpoint.clone()).unwrap();
    for _ in 0..3 {
        ask(&book).unwrap();
        std::thread::sleep(Duration::from_millis(120));
    }
    assert_eq!(proxy.lanes.load(Ordering::SeqCst), 0, "rare calls need no lane");
    ask_often(&book, &proxy.lanes);
    assert_eq!((proxy.lanes.load(Ordering::SeqCst), proxy.sessions.load(Ordering::SeqCst)), (1, 1));
}

#[test]
fn many_threads_share_few_lanes_and_all_are_answered() {
    let server = meta(&loopback(0));
    let proxy = Proxy::start(&server, Lanes::Pass);
    let book = Book::open(proxy.endpoint.clone()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                for _ in 0..200 {
                    assert_eq!(ask(&book), Ok(server.epoch().get()));
                }
            });
        }
    });
    let lanes = proxy.lanes.load(Ordering::SeqCst);
    assert!((1..=8).contains(&lanes), "{lanes}");
}

#[test]
fn a_service_that_knows_no_lanes_is_used_without() {
    for treat in [Lanes::Settings, Lanes::Close, Lanes::Silence] {
        let server = meta(&loopback(0));
        let proxy = Proxy::start(&server, treat);
        let book = Book::open(proxy.endpoint.clone()).unwrap();
        ask_often(&book, &proxy.lanes);
        assert_eq!(proxy.lanes.load(Ordering::SeqCst), 1, "{treat:?}: asked again and again");
        assert!(book.is_up());
    }
}

#[test]
fn a_lane_that_goes_silent_ends_its_call_at_the_deadline_and_is_not_used_again() {
    let server = meta(&loopback(0));
    let proxy = Proxy::start(&server, Lanes::Swallow);
    let book = Book::open(proxy.endpoint.clone()).unwrap();
    ask_often(&book, &proxy.lanes);
    proxy.swallow.store(true, Ordering::SeqCst);
    let asked = Instant::now();
    let late = book.call(request::Body::Status(pb::Status {}), asked + Duration::from_millis(200));
    assert!(matches!(late, Err(BookError::Timeout { .. })), "{late:?}");
    let waited = asked.elapsed();
    assert!((Duration::from_millis(200)..Duration::from_secs(5)).contains(&waited), "{waited:?}");
    assert!(ask(&book).is_ok(), "the session goes on");
}

#[test]
fn a_silent_lane_ends_its_call_when_the_session_is_lost() {
    let server = meta(&loopback(0));
    let proxy = Proxy::start(&server, Lanes::Swallow);
    let book = Book::open(proxy.endpoint.clone()).unwrap();
    ask_often(&book, &proxy.lanes);
    proxy.swallow.store(true, Ordering::SeqCst);
    let asked = Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| book.call(request::Body::Status(pb::Status {}), asked + Duration::from_secs(60)));
        std::thread::sleep(Duration::from_millis(50));
        assert!(server.stop(Duration::from_secs(2)));
        let ended = waiting.join().unwrap();
        assert!(matches!(ended, Err(BookError::Interrupted(_))), "{ended:?}");
    });
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
}

#[test]
fn a_link_that_is_half_open_is_noticed_and_another_is_made() {
    let server = meta(&loopback(0));
    let proxy = Proxy::start(&server, Lanes::SwallowAll);
    let book = Book::open(proxy.endpoint.clone()).unwrap();
    ask_often(&book, &proxy.lanes);
    let before = proxy.sessions.load(Ordering::SeqCst);
    proxy.swallow.store(true, Ordering::SeqCst);
    let (asked, until) = (Instant::now(), Instant::now() + Duration::from_secs(60));
    loop {
        let answer = book.call(request::Body::Status(pb::Status {}), Instant::now() + Duration::from_millis(300));
        match answer {
            Ok(_) => break,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    }
    assert!(proxy.sessions.load(Ordering::SeqCst) > before, "answered over a link that is half open");
    // Two seconds without a word, two for the answer to a probe, and what a busy machine adds.
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
}

#[test]
fn lanes_come_back_after_the_service_was_away() {
    let first = meta(&loopback(0));
    let address = first.address().clone();
    let book = Book::open(address.clone()).unwrap();
    let until = soon();
    for turn in 0.. {
        assert!(Instant::now() < until);
        if turn > 200 {
            break;
        }
        ask(&book).unwrap();
    }
    let before = first.epoch().get();
    assert!(first.stop(Duration::from_secs(2)));
    let away = Instant::now();
    while book.is_up() {
        assert!(away.elapsed() < Duration::from_secs(10), "never noticed");
        assert_ne!(ask(&book).ok(), Some(0));
    }
    assert!(matches!(ask(&book), Err(BookError::Unavailable(_))));
    let second = meta(&address);
    let until = soon();
    while ask(&book) != Ok(second.epoch().get()) {
        assert!(Instant::now() < until, "never found the new service");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_ne!(second.epoch().get(), before);
    for _ in 0..200 {
        assert_eq!(ask(&book), Ok(second.epoch().get()), "an answer of an earlier life, or none");
    }
}

#[test]
fn closing_ends_calls_that_wait_on_a_lane() {
    let server = meta(&loopback(0));
    let proxy = Proxy::start(&server, Lanes::Swallow);
    let book = Book::open(proxy.endpoint.clone()).unwrap();
    ask_often(&book, &proxy.lanes);
    proxy.swallow.store(true, Ordering::SeqCst);
    let asked = Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| book.call(request::Body::Status(pb::Status {}), asked + Duration::from_secs(60)));
        std::thread::sleep(Duration::from_millis(50));
        book.close();
        assert!(matches!(waiting.join().unwrap(), Err(BookError::Interrupted(_))));
    });
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert!(matches!(ask(&book), Err(BookError::Unavailable(_))));
}

/// Connections to the place where a service hands out mailboxes.
fn mailboxes(server: &MetaServer) -> usize {
    let Endpoint::Tcp { port, .. } = *server.address() else { panic!("not TCP") };
    let name = format!("@{}", mailbox_name(server.epoch().get(), port));
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    // One more line is the listening socket's.
    sockets.lines().filter(|line| line.ends_with(&name)).count().saturating_sub(1)
}

fn ask_until_there_is_a_mailbox(book: &Book, server: &MetaServer) {
    let until = soon();
    while mailboxes(server) == 0 {
        assert!(Instant::now() < until, "no mailbox was ever asked for");
        ask(book).unwrap();
    }
    for _ in 0..100 {
        ask(book).unwrap();
    }
}

#[test]
fn a_lane_to_a_service_on_the_same_host_goes_through_a_mailbox() {
    let server = meta(&loopback(0));
    let book = Book::open(server.address().clone()).unwrap();
    ask_until_there_is_a_mailbox(&book, &server);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..500 {
                    assert_eq!(ask(&book), Ok(server.epoch().get()));
                }
            });
        }
    });
    assert!((1..=8).contains(&mailboxes(&server)), "{}", mailboxes(&server));
    // Rare calls find the service asleep, and sleep themselves.
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(ask(&book), Ok(server.epoch().get()));
    }
    book.close();
    let until = soon();
    while mailboxes(&server) > 0 {
        assert!(Instant::now() < until, "mailboxes are left behind");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn batches_of_megabytes_go_through_a_mailbox() {
    let server = meta(&loopback(0));
    let book = Book::open(server.address().clone()).unwrap();
    ask_until_there_is_a_mailbox(&book, &server);
    for count in [1u32, 5000, 65_536] {
        let keys = KeyBatch::from_keys((0..count).map(|key| key.to_le_bytes().repeat(30))).unwrap();
        let body = request::Body::Exist(pb::Exist { keys: Some(keys_to_wire(&keys)) });
        let answer = book.call(body, soon()).unwrap();
        let reply::Body::Exist(exist) = answer.body else { panic!("{answer:?}") };
        assert_eq!(exist.outcomes.len(), count as usize);
    }
    assert_eq!(mailboxes(&server), 1, "it is still in use");
}
