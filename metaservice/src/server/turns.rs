//! How much of a client that never stops is served before others have their turn: all clients share one thread.

use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use memcache_config::MetaConfig;
use memcache_mailbox::{End, receive, ring};
use memcache_proto::lane::{MAILBOX_PREFACE, PREFACE, push_frame};
use memcache_proto::pb;
use memcache_proto::pb::meta_server::Meta;
use memcache_types::Epoch;
use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio_stream::Stream;
use tonic::codec::Codec;
use tonic_prost::ProstCodec;

use super::lane::{LaneCount, serve_lane};
use super::mailbox::REQUESTS_MAX;
use super::service::{Book, Handler};

/// As many operations as the runtime lets one task do at a time.
const OPERATIONS_MAX: usize = 128;

/// Requests that fit into a mailbox, as do their replies: more than anybody serves in the time of a turn.
const REQUESTS: usize = 2000;

const COUNT: &str = "memcache_meta_request_seconds_count{rpc=\"exist\"}";

/// Turns that a task with work gets in a test.
const TURNS: usize = 200;

fn book() -> Arc<Book> {
    Book::new(&MetaConfig::default(), Epoch::new(1))
}

fn run<F: Future>(test: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

/// One turn of a task that does not end.
async fn turn(task: &mut Pin<&mut impl Future>) {
    let is_over = std::future::poll_fn(|context| Poll::Ready(task.as_mut().poll(context).is_ready())).await;
    assert!(!is_over, "the service has hung up");
    yield_now().await;
}

fn request() -> pb::Request {
    let keys = Some(pb::Keys { data: b"a".to_vec(), lengths: vec![1] });
    pb::Request { request_id: 1, client: 1, body: Some(pb::request::Body::Exist(pb::Exist { keys })) }
}

fn frames(count: usize) -> Vec<u8> {
    let mut frames = Vec::new();
    assert!(push_frame(&request(), &mut frames));
    frames.repeat(count)
}

/// How many of these requests the book has served.
fn served(book: &Book) -> usize {
    let text = book.metrics_text();
    let mut counts = text.lines().filter_map(|line| line.strip_prefix(COUNT));
    counts.next().unwrap().trim().parse().unwrap()
}

/// A client's socket of a lane, what serves it, and what may not be dropped before.
fn lane(book: &Arc<Book>, lanes: &Arc<LaneCount>) -> (StdUnixStream, impl Future, watch::Sender<bool>) {
    let (here, there) = StdUnixStream::pair().unwrap();
    here.set_nonblocking(true).unwrap();
    there.set_nonblocking(true).unwrap();
    let (stop, stopped) = watch::channel(false);
    let there = UnixStream::from_std(there).unwrap();
    (here, serve_lane(there, Arc::clone(book), Arc::clone(lanes), stopped), stop)
}

/// A mailbox full of requests.
async fn full_mailbox(here: &mut StdUnixStream, task: &mut Pin<&mut impl Future>) -> End {
    here.write_all(MAILBOX_PREFACE).unwrap();
    let memory = loop {
        turn(task).await;
        match receive(here, &mut [0; 64]) {
            Ok((_greeting, memory)) => break memory.unwrap(),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    };
    let mut end = End::attach(&memory).unwrap();
    let requests = frames(REQUESTS);
    assert_eq!(end.write(&requests).unwrap(), requests.len());
    end
}

#[test]
fn rings_without_end_are_no_more_turns_of_a_mailbox() {
    run(async {
        let (book, lanes) = (book(), LaneCount::new(8));
        let (mut here, task, _stop) = lane(&book, &lanes);
        let mut task = pin!(task);
        let _end = full_mailbox(&mut here, &mut task).await;
        for _ in 0..TURNS {
            for _ in 0..200 {
                ring(&here).unwrap();
            }
            turn(&mut task).await;
        }
        // The first ring is for a turn; from then on the vigil gives them, and it does not run here.
        assert_eq!(served(&book), REQUESTS_MAX);
    });
}

#[test]
fn a_mailbox_that_is_never_empty_lets_others_have_their_turn() {
    run(async {
        let (book, lanes) = (book(), LaneCount::new(8));
        let (mut here, task, _stop) = lane(&book, &lanes);
        let mut task = pin!(task);
        let _end = full_mailbox(&mut here, &mut task).await;
        ring(&here).unwrap();
        while served(&book) == 0 {
            turn(&mut task).await;
        }
        let mut vigil = pin!(lanes.vigil().keep(&book));
        turn(&mut vigil).await;
        assert!(served(&book) < REQUESTS, "all requests in one turn");
        while served(&book) < REQUESTS {
            turn(&mut vigil).await;
        }
    });
}

#[test]
fn a_lane_that_is_never_empty_lets_others_have_their_turn() {
    run(async {
        let (book, lanes) = (book(), LaneCount::new(8));
        let (mut here, task, _stop) = lane(&book, &lanes);
        let mut task = pin!(task);
        here.write_all(PREFACE).unwrap();
        let (frames, mut sent, mut before) = (frames(TURNS * OPERATIONS_MAX), 0, 0);
        for _ in 0..TURNS {
            sent += here.write(&frames[sent..]).unwrap_or(0);
            turn(&mut task).await;
            while here.read(&mut [0; 4096]).is_ok() {}
            let served = served(&book);
            assert!(served - before <= OPERATIONS_MAX, "{} requests in one turn", served - before);
            before = served;
        }
        assert!(before > TURNS, "only {before} requests");
    });
}

#[test]
fn a_session_that_is_never_empty_lets_others_have_their_turn() {
    run(async {
        let message = request().encode_to_vec();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let body = [&[0][..], &length, &message].concat().repeat(TURNS * OPERATIONS_MAX);
        let decoder = ProstCodec::<pb::Reply, pb::Request>::default().decoder();
        let requests = tonic::Streaming::new_request(decoder, axum::body::Body::from(body), None, None);
        let book = book();
        let (_stop, stopped) = watch::channel(false);
        let handler = Handler { book: Arc::clone(&book), stopped };
        let session = handler.session(tonic::Request::new(requests)).await.unwrap();
        let mut session = pin!(session.into_inner());
        let mut before = 0;
        for _ in 0..TURNS {
            std::future::poll_fn(|context| {
                while matches!(session.as_mut().poll_next(context), Poll::Ready(Some(_))) {}
                Poll::Ready(())
            })
            .await;
            yield_now().await;
            let served = served(&book);
            assert!(served - before <= OPERATIONS_MAX, "{} requests in one turn", served - before);
            before = served;
        }
        assert!(before > TURNS, "only {before} requests");
    });
}
