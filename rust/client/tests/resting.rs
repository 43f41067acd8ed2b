//! While nodes tell a restarted `MetaService` what they hold, and their memory rests: what is removed stays away, and
//! nobody reads what a writer of the earlier life may be at.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_client::{
    Book, Buffers, Checksums, LocalOptions, LocalService, PutOptions, Store, StoreError, StoreOptions,
};
use memcache_config::{Endpoint, MetaConfig};
use memcache_meta::MetaServer;
use memcache_proto::pb::{self, reply, request};
use memcache_transport::ProtocolChoice;
use memcache_types::holdings::{RECORD_BYTES, RECORD_HEAD_BYTES};
use memcache_types::limits::{TRAILER_BYTES, TRAILER_LEN};
use memcache_types::{GetStatus, KeyBatch, PutStatus};

const LENT: u64 = 4 << 20;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn serve(listen: Endpoint, rest_ms: u64) -> MetaServer {
    let config = MetaConfig {
        listen,
        reservation_ttl_ms: rest_ms,
        lease_ms: rest_ms,
        heartbeat_ms: 50,
        node_dead_ms: 60_000,
        ..MetaConfig::default()
    };
    MetaServer::start(&config).unwrap()
}

fn meta(rest_ms: u64) -> MetaServer {
    serve(Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 0 }, rest_ms)
}

fn restart(meta: &MetaServer, rest_ms: u64) -> MetaServer {
    let address = meta.address().clone();
    assert!(meta.stop(Duration::from_secs(2)));
    serve(address, rest_ms)
}

/// A node on a file that the test can look into.
struct Node {
    path: PathBuf,
    node: LocalService,
}

impl Node {
    fn start(meta: &MetaServer, test: &str) -> Self {
        let path = PathBuf::from(format!("/dev/shm/memcache-resting-{test}-{}", std::process::id()));
        let options = LocalOptions {
            name: "kept".to_owned(),
            prefault: false,
            persist: Some(path.clone()),
            repair_bytes_per_s: 0,
            ..LocalOptions::new(LENT)
        };
        let node = LocalService::start(Book::open(meta.address().clone()).unwrap(), &options).unwrap();
        assert!(node.wait_joined(soon()));
        Self { path, node }
    }

    /// Where these bytes are in the file.
    fn find(&self, bytes: &[u8]) -> u64 {
        let all = std::fs::read(&self.path).unwrap();
        all.windows(bytes.len()).position(|window| window == bytes).unwrap() as u64
    }

    fn write(&self, bytes: &[u8], offset: u64) {
        OpenOptions::new().write(true).open(&self.path).unwrap().write_all_at(bytes, offset).unwrap();
    }

    /// As a writer of an earlier life that was told to clear the record of a key does, if it stalls after some bytes.
    fn overwrite(&self, number: usize, clears: bool) {
        if clears {
            let record = self.find(name_of(number).as_bytes()) - RECORD_HEAD_BYTES as u64;
            self.write(&[0; TRAILER_LEN], record + RECORD_BYTES - TRAILER_BYTES);
        }
        let object = self.find(&value(number));
        self.write(b"other bytes", object + 100);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.node.stop(Instant::now());
        drop(std::fs::remove_file(&self.path));
    }
}

fn store(meta: &MetaServer, checksums: Checksums, protocol: ProtocolChoice) -> Store {
    let options = StoreOptions { protocol, checksums, ..StoreOptions::new(meta.address().clone()) };
    Store::open(&options).unwrap()
}

fn name_of(number: usize) -> String {
    format!("key number {number:04} of this test")
}

fn value(number: usize) -> Vec<u8> {
    (0..3000 + number % 500).map(|at| u8::try_from((at * 31 + number * 7 + at / 251) % 251).unwrap()).collect()
}

fn keys(numbers: &[usize]) -> KeyBatch {
    KeyBatch::from_keys(numbers.iter().map(|number| name_of(*number))).unwrap()
}

fn put(store: &Store, numbers: &[usize]) -> Vec<PutStatus> {
    let values = Buffers::from_owned(numbers.iter().map(|number| value(*number)).collect());
    store.put(&keys(numbers), &values, &PutOptions::default(), soon()).unwrap()
}

/// What a get of one key says, and whether the bytes are right.
fn get(store: &Store, number: usize) -> (GetStatus, bool) {
    let mut target = vec![0; value(number).len()];
    let list = memcache_types::ScatterList::single(target.as_mut_ptr() as u64, target.len() as u64);
    // SAFETY: the vector outlives the call and nothing else touches it meanwhile.
    let buffers = unsafe { Buffers::new(vec![list], Arc::new(())) };
    let status = store.get(&keys(&[number]), &buffers, soon()).unwrap()[0];
    (status, target == value(number))
}

fn wait_for(what: &str, mut reached: impl FnMut() -> bool) {
    let until = soon();
    while !reached() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn listing(store: &Store) -> Option<bool> {
    store.status(soon()).unwrap().1.nodes.first().map(|node| node.listing)
}

#[test]
fn readers_compare_checksums_of_memory_that_rests_whatever_their_setting() {
    for protocol in [ProtocolChoice::HostShm, ProtocolChoice::HostTcp] {
        let meta = meta(60_000);
        let node = Node::start(&meta, &format!("verify-{protocol}"));
        let writer = store(&meta, Checksums::Always, protocol);
        assert_eq!(put(&writer, &[1, 2, 3]), [PutStatus::Stored; 3]);
        let meta = restart(&meta, 60_000);
        wait_for("all are back", || (1..4).all(|number| get(&writer, number) == (GetStatus::Hit, true)));
        assert_eq!(listing(&writer), Some(true), "the memory rests");
        // One each: who meets damage tells the book, which forgets the object.
        for (checksums, damaged) in [(Checksums::Off, 1), (Checksums::Sampled { one_in: u32::MAX }, 3)] {
            node.overwrite(damaged, false);
            let reader = store(&meta, checksums, protocol);
            assert_eq!(get(&reader, damaged).0, GetStatus::Corrupt, "{checksums:?} over {protocol}");
            assert_eq!(get(&reader, 2), (GetStatus::Hit, true));
        }
    }
}

#[test]
fn what_was_overwritten_while_memory_rested_is_gone_when_it_is_used_again() {
    let rest_ms = 1000;
    let mut meta = meta(rest_ms);
    let node = Node::start(&meta, "gone");
    let writer = store(&meta, Checksums::Always, ProtocolChoice::Auto);
    let numbers: Vec<usize> = (0..20).collect();
    put(&writer, &numbers);
    // On a slow machine the memory may have rested before it is overwritten: then another object in another life.
    let overwritten = numbers.iter().copied().find(|number| {
        meta = restart(&meta, rest_ms);
        wait_for("it is back", || get(&writer, *number) == (GetStatus::Hit, true));
        node.overwrite(*number, true);
        listing(&writer) == Some(true)
    });
    let number = overwritten.expect("memory that rests long enough");
    wait_for("it has rested", || listing(&writer) == Some(false));
    let reader = store(&meta, Checksums::Off, ProtocolChoice::Auto);
    assert_eq!(get(&reader, number).0, GetStatus::Miss);
    assert_eq!(put(&writer, &[number]), [PutStatus::Stored], "the key is free");
    assert_eq!(get(&reader, number), (GetStatus::Hit, true));
    assert_eq!(get(&reader, number + 1), (GetStatus::Hit, true), "nobody was there");
}

#[test]
fn objects_without_checksums_come_back_when_the_memory_has_rested() {
    let meta = meta(300);
    let _node = Node::start(&meta, "unsummed");
    let store = store(&meta, Checksums::Off, ProtocolChoice::Auto);
    put(&store, &[1, 2]);
    let _meta = restart(&meta, 300);
    wait_for("the node is back", || store.status(soon()).is_ok_and(|(_, status)| status.nodes.len() == 1));
    assert_eq!(store.remove(&keys(&[2]), soon()).unwrap().len(), 1, "waits until they are told");
    wait_for("the other is back", || get(&store, 1) == (GetStatus::Hit, true));
    wait_for("all is told", || listing(&store) == Some(false));
    assert_eq!(get(&store, 2).0, GetStatus::Miss);
}

#[test]
fn a_removal_waits_for_nodes_that_have_not_told_what_they_hold() {
    let meta = meta(60_000);
    let book = Book::open(meta.address().clone()).unwrap();
    let store = store(&meta, Checksums::Always, ProtocolChoice::Auto);
    let segment = pb::JoinSegment { bytes: 1 << 20, tier: 2, descriptor: vec![1], ..pb::JoinSegment::default() };
    let join = pb::Join {
        node: 1,
        incarnation: 1,
        name: "slow to tell".to_owned(),
        segments: vec![segment],
        previous_epoch: 1,
        lists: true,
        floor: 0,
    };
    let reply::Body::Join(joined) = book.call(request::Body::Join(join), soon()).unwrap().body else {
        panic!("no join reply");
    };
    let not_told = store.remove(&keys(&[1]), Instant::now() + Duration::from_millis(100));
    assert!(matches!(not_told, Err(StoreError::NotForgotten { .. })), "{not_told:?}");
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| store.remove(&keys(&[1]), soon()));
        let told = pb::Holdings {
            node: 1,
            incarnation: 1,
            segment: joined.segments[0],
            keys: Some(pb::Keys::default()),
            told: true,
            ..pb::Holdings::default()
        };
        book.call(request::Body::Holdings(told), soon()).unwrap();
        assert_eq!(removal.join().unwrap().unwrap(), [false]);
    });
    // Nobody is waited for any more, although the memory rests.
    assert_eq!(store.remove(&keys(&[1]), Instant::now() + Duration::from_secs(5)).unwrap(), [false]);
    assert_eq!(listing(&store), Some(true));
}
