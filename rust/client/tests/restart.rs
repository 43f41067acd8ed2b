//! What the pool holds outlives its `MetaService`: real services, real segments, real restarts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_client::{Book, Buffers, Checksums, LocalOptions, LocalService, PutOptions, Store, StoreOptions};
use memcache_config::{Endpoint, MetaConfig};
use memcache_meta::MetaServer;
use memcache_transport::ProtocolChoice;
use memcache_types::{GetStatus, KeyBatch, PutStatus, ScatterList};

const LENT: u64 = 8 << 20;
const REST_MS: u64 = 500;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn serve(listen: Endpoint) -> MetaServer {
    let config = MetaConfig {
        listen,
        reservation_ttl_ms: REST_MS,
        lease_ms: REST_MS,
        heartbeat_ms: 100,
        ..MetaConfig::default()
    };
    MetaServer::start(&config).unwrap()
}

fn meta() -> MetaServer {
    serve(Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 0 })
}

/// Another life of the same service, which knows nothing.
fn restart(meta: &MetaServer) -> MetaServer {
    let address = meta.address().clone();
    assert!(meta.stop(Duration::from_secs(2)));
    serve(address)
}

fn lending(meta: &MetaServer, records: u32, protocol: ProtocolChoice) -> Store {
    open(meta, LENT, records, protocol)
}

fn open(meta: &MetaServer, lend: u64, records: u32, protocol: ProtocolChoice) -> Store {
    let lend = (lend > 0).then(|| LocalOptions {
        name: "test".to_owned(),
        prefault: false,
        records,
        repair_bytes_per_s: 1 << 30,
        ..LocalOptions::new(lend)
    });
    let checksums = Checksums::Always;
    Store::open(&StoreOptions {
        lend,
        protocol,
        checksums,
        transfer_threads: 2,
        ..StoreOptions::new(meta.address().clone())
    })
    .unwrap()
}

fn name_of(number: usize) -> String {
    format!("key number {number}")
}

/// A value that only this key has, of a length that others have not.
fn value(number: usize) -> Vec<u8> {
    (0..3000 + number % 500).map(|at| u8::try_from((at * 31 + number * 7) % 251).unwrap()).collect()
}

fn put(store: &Store, numbers: &[usize]) -> Vec<PutStatus> {
    let keys = KeyBatch::from_keys(numbers.iter().map(|number| name_of(*number))).unwrap();
    let values = Buffers::from_owned(numbers.iter().map(|number| value(*number)).collect());
    store.put(&keys, &values, &PutOptions::default(), soon()).unwrap()
}

/// Whether each is there; its bytes must be right.
fn found(store: &Store, numbers: &[usize]) -> Vec<bool> {
    let keys = KeyBatch::from_keys(numbers.iter().map(|number| name_of(*number))).unwrap();
    let mut targets: Vec<Vec<u8>> = numbers.iter().map(|number| vec![0; value(*number).len()]).collect();
    let lists = targets.iter_mut().map(|target| ScatterList::single(target.as_mut_ptr() as u64, target.len() as u64));
    // SAFETY: the vectors outlive the call and nothing else touches them meanwhile.
    let buffers = unsafe { Buffers::new(lists.collect(), Arc::new(())) };
    let statuses = store.get(&keys, &buffers, soon()).unwrap();
    for ((number, status), target) in numbers.iter().zip(&statuses).zip(&targets) {
        assert!(*status != GetStatus::Hit || *target == value(*number), "other bytes under {}", name_of(*number));
    }
    statuses.iter().map(|status| *status == GetStatus::Hit).collect()
}

fn wait_for(what: &str, mut reached: impl FnMut() -> bool) {
    let until = soon();
    while !reached() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until every node has told what it holds and its memory has rested.
fn wait_listed(store: &Store, nodes: usize) {
    wait_for("all nodes are back and have told all", || {
        let status = store.status(soon());
        status.is_ok_and(|(_, status)| status.nodes.len() == nodes && status.nodes.iter().all(|node| !node.listing))
    });
}

#[test]
fn everything_sealed_is_readable_again_after_a_restart_with_empty_memory() {
    let meta = meta();
    let (first, second) = (lending(&meta, 1000, ProtocolChoice::Auto), lending(&meta, 1000, ProtocolChoice::HostTcp));
    let numbers: Vec<usize> = (0..1500).collect();
    for (part, store) in numbers.chunks(250).zip([&first, &second].into_iter().cycle()) {
        assert!(put(store, part).iter().all(|status| *status == PutStatus::Stored));
    }
    let before = first.status(soon()).unwrap().1;
    assert!(before.nodes.iter().all(|node| node.objects > 100 && node.unrecorded == 0), "{before:?}");
    let meta = restart(&meta);
    let reader = open(&meta, 0, 0, ProtocolChoice::HostTcp);
    wait_for("all is readable", || found(&reader, &numbers).iter().all(|found| *found));
    let after = reader.status(soon()).unwrap().1;
    assert_eq!((after.objects, after.used_bytes), (before.objects, before.used_bytes));
    // And life goes on, over another restart too.
    wait_listed(&reader, 2);
    assert_eq!(put(&reader, &[5000]), [PutStatus::Stored]);
    let _meta = restart(&meta);
    wait_for("all is readable again", || found(&reader, &numbers).iter().all(|found| *found));
    wait_for("what came later too", || found(&reader, &[5000]) == [true]);
}

#[test]
fn what_was_removed_stays_away_after_a_restart() {
    let meta = meta();
    let owner = lending(&meta, 0, ProtocolChoice::Auto);
    let remover = open(&meta, 0, 0, ProtocolChoice::HostTcp);
    put(&owner, &[1, 2, 3]);
    let keys = KeyBatch::from_keys([name_of(1), name_of(2)]).unwrap();
    assert_eq!(remover.remove(&keys, soon()).unwrap(), [true, true]);
    let meta = restart(&meta);
    wait_for("the third is back", || found(&owner, &[3]) == [true]);
    wait_listed(&owner, 1);
    assert_eq!(found(&owner, &[1, 2]), [false, false]);
    put(&owner, &[1]);
    assert_eq!(remover.remove_all(soon()).unwrap(), 2);
    assert_eq!(put(&owner, &[4]), [PutStatus::Stored]);
    let _meta = restart(&meta);
    wait_for("what came later is back", || found(&owner, &[4]) == [true]);
    wait_listed(&owner, 1);
    assert_eq!(found(&owner, &[1, 2, 3]), [false; 3]);
}

#[test]
fn evicted_objects_come_back_whole_or_not_at_all() {
    let meta = meta();
    let owner = lending(&meta, 4000, ProtocolChoice::Auto);
    // Lengths differ, so that new objects cover old ones in part; several times what the segment holds.
    let numbers: Vec<usize> = (0..8000).collect();
    for part in numbers.chunks(500) {
        put(&owner, part);
    }
    let before = owner.status(soon()).unwrap().1;
    assert!(before.evicted_objects > 3000, "{before:?}");
    let _meta = restart(&meta);
    wait_listed(&owner, 1);
    // The service takes up all that is whole, and evicts what is too much as it always does.
    let after = owner.status(soon()).unwrap().1;
    assert!(after.objects + after.evicted_objects >= before.objects, "{after:?}, before {before:?}");
    let back = found(&owner, &numbers).iter().filter(|found| **found).count() as u64;
    assert_eq!(back, after.objects, "what is listed is readable, and whole");
    assert_eq!(owner.stats().get_corrupt, 0, "a record led to an object that is no longer whole");
}

#[test]
fn objects_without_a_record_are_counted_and_lost() {
    let meta = meta();
    let owner = lending(&meta, 10, ProtocolChoice::Auto);
    let numbers: Vec<usize> = (0..30).collect();
    put(&owner, &numbers);
    let status = owner.status(soon()).unwrap().1;
    assert_eq!((status.objects, status.unrecorded), (30, 20));
    let _meta = restart(&meta);
    wait_listed(&owner, 1);
    assert_eq!(found(&owner, &numbers).iter().filter(|found| **found).count(), 10);
}

/// A name in memory that goes when the test ends.
struct Name(std::path::PathBuf);

impl Name {
    fn new(test: &str) -> Self {
        Self(format!("/dev/shm/memcache-restart-{test}-{}", std::process::id()).into())
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

/// A standalone node on a file.
fn node_on(meta: &MetaServer, name: &Name) -> (LocalService, Arc<Book>) {
    let book = Book::open(meta.address().clone()).unwrap();
    let options = LocalOptions {
        name: "kept".to_owned(),
        prefault: false,
        persist: Some(name.0.clone()),
        repair_bytes_per_s: 0,
        ..LocalOptions::new(LENT)
    };
    let node = LocalService::start(Arc::clone(&book), &options).unwrap();
    assert!(node.wait_joined(soon()));
    (node, book)
}

#[test]
fn a_node_that_starts_again_on_the_same_memory_brings_it_back() {
    for protocol in [ProtocolChoice::HostShm, ProtocolChoice::HostTcp] {
        let (meta, name) = (meta(), Name::new(&protocol.to_string()));
        let (first, book) = node_on(&meta, &name);
        let client = open(&meta, 0, 0, protocol);
        let numbers: Vec<usize> = (0..100).collect();
        assert!(put(&client, &numbers).iter().all(|status| *status == PutStatus::Stored));
        let id = first.node();
        first.stop(soon());
        drop((first, book));
        wait_for("it has left", || found(&client, &numbers).iter().all(|found| !found));
        let (second, _book) = node_on(&meta, &name);
        assert_eq!(second.node(), id, "the same node in a new life");
        wait_for("all is back", || found(&client, &numbers).iter().all(|found| *found));
        wait_listed(&client, 1);
        assert_eq!(put(&client, &[1000]), [PutStatus::Stored]);
        second.stop(soon());
    }
}

#[test]
fn what_is_removed_while_a_node_is_away_does_not_come_back_with_it() {
    let (meta, name) = (meta(), Name::new("away"));
    let (first, book) = node_on(&meta, &name);
    let client = open(&meta, 0, 0, ProtocolChoice::Auto);
    put(&client, &[1, 2]);
    first.stop(soon());
    drop((first, book));
    let keys = KeyBatch::from_keys([name_of(1)]).unwrap();
    assert_eq!(client.remove(&keys, soon()).unwrap(), [false]);
    let (second, book) = node_on(&meta, &name);
    wait_for("the other is back", || found(&client, &[2]) == [true]);
    assert_eq!(found(&client, &[1]), [false]);
    second.stop(soon());
    drop((second, book));
    assert_eq!(client.remove_all(soon()).unwrap(), 0);
    let (_third, _book) = node_on(&meta, &name);
    wait_listed(&client, 1);
    assert_eq!(found(&client, &[1, 2]), [false, false]);
}
