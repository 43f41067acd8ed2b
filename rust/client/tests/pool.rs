//! A real `MetaService`, real segments and real sockets in one process; peers that misbehave are played through the
//! wire and the links themselves.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_client::book::Book;
use memcache_client::{Buffers, Checksums, LocalOptions, PutOptions, Store, StoreOptions};
use memcache_config::{Endpoint, MetaConfig};
use memcache_meta::MetaServer;
use memcache_proto::pack::keys_to_wire;
use memcache_proto::pb::{self, reply, request};
use memcache_transport::{Fabric, FabricOptions, Link, ProtocolChoice, ReadOp, RegionDescriptor, WriteOp};
use memcache_types::{Extent, GetStatus, GlobalAddress, KeyBatch, PutStatus, ScatterList, SegmentId, extent_bytes};

const LENT: u64 = 8 << 20;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// Leases are as short as reservations: after a restart memory rests for the longer of the two.
fn meta(reservation_ttl_ms: u64) -> MetaServer {
    let listen = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
    MetaServer::start(&MetaConfig { listen, reservation_ttl_ms, lease_ms: reservation_ttl_ms, ..MetaConfig::default() })
        .unwrap()
}

fn store(meta: &MetaServer, lend: u64, protocol: ProtocolChoice) -> Store {
    let lend = (lend > 0).then(|| LocalOptions {
        name: "test".to_owned(),
        prefault: false,
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

fn options(exclusive: bool) -> PutOptions {
    PutOptions { exclusive, ..PutOptions::default() }
}

fn keys(names: &[&str]) -> KeyBatch {
    KeyBatch::from_keys(names).unwrap()
}

fn values(values: &[&[u8]]) -> Buffers {
    Buffers::from_owned(values.iter().map(|value| value.to_vec()).collect())
}

fn put(store: &Store, key: &str, value: &[u8], exclusive: bool) -> PutStatus {
    store.put(&keys(&[key]), &values(&[value]), &options(exclusive), soon()).unwrap()[0]
}

/// Reads one object of a known size.
fn get(store: &Store, key: &str, bytes: usize) -> (GetStatus, Vec<u8>) {
    let mut target = vec![0u8; bytes];
    let list = ScatterList::single(target.as_mut_ptr() as u64, bytes as u64);
    // SAFETY: the vector outlives the call and nothing else touches it meanwhile.
    let targets = unsafe { Buffers::new(vec![list], Arc::new(())) };
    let status = store.get(&keys(&[key]), &targets, soon()).unwrap()[0];
    (status, target)
}

/// Where an object is, as any peer learns it, and a link to it.
fn reach(book: &Book, key: &str) -> (Arc<dyn Link>, Extent, u64) {
    let body = request::Body::Locate(pb::Locate { keys: Some(keys_to_wire(&keys(&[key]))), near: 0 });
    let reply::Body::Locate(found) = book.call(body, soon()).unwrap().body else { panic!("not a Locate reply") };
    let segment = SegmentId::new(found.segments[0]);
    let body = request::Body::Describe(pb::Describe { segments: found.segments.clone() });
    let reply::Body::Describe(described) = book.call(body, soon()).unwrap().body else { panic!("not Describe") };
    let descriptor = RegionDescriptor::decode(&described.segments[0].descriptor).unwrap();
    let fabric = Fabric::new(FabricOptions { choice: ProtocolChoice::HostTcp, ..FabricOptions::default() });
    let payload = found.payload_bytes[0];
    let extent = Extent::new(GlobalAddress::new(segment, found.offsets[0]), extent_bytes(payload)).unwrap();
    (fabric.link(&descriptor, soon()).unwrap(), extent, payload)
}

/// Overwrites an object's payload behind everybody's back, leaving the trailer as `change` makes it.
fn damage(book: &Book, key: &str, payload: &[u8], change: impl Fn(&mut [u8; 64])) {
    let (link, extent, payload_bytes) = reach(book, key);
    let mut before = vec![0u8; payload.len()];
    let into = ScatterList::single(before.as_mut_ptr() as u64, payload_bytes);
    // SAFETY: the vector outlives the call and nothing else touches it meanwhile.
    let read = unsafe { link.read(&[ReadOp { extent, payload_bytes, local: &into }], soon()) };
    let mut trailer = read[0].clone().unwrap();
    change(&mut trailer);
    let from = ScatterList::single(payload.as_ptr() as u64, payload_bytes);
    // SAFETY: the slice outlives the call and nothing else touches it meanwhile.
    let written = unsafe { link.write(&[WriteOp { extent, payload_bytes, local: &from, trailer: &trailer }], soon()) };
    assert_eq!(written, [Ok(())]);
}

#[test]
fn a_value_comes_back_over_every_protocol() {
    let meta = meta(20_000);
    let owner = store(&meta, LENT, ProtocolChoice::Auto);
    assert_eq!(put(&owner, "k", b"value", false), PutStatus::Stored);
    for protocol in [ProtocolChoice::Auto, ProtocolChoice::HostShm, ProtocolChoice::HostTcp] {
        let reader = store(&meta, 0, protocol);
        assert_eq!(get(&reader, "k", 5), (GetStatus::Hit, b"value".to_vec()), "{protocol}");
        assert_eq!(get(&reader, "k", 6).0, GetStatus::SizeMismatch, "{protocol}");
        assert_eq!(get(&reader, "absent", 5).0, GetStatus::Miss, "{protocol}");
    }
}

#[test]
fn a_writer_that_dies_between_reserve_and_seal_leaves_the_key_free() {
    let meta = meta(20_000);
    let owner = store(&meta, LENT, ProtocolChoice::Auto);
    let dying = Book::open(meta.address().clone()).unwrap();
    let reserve = pb::Reserve {
        keys: Some(keys_to_wire(&keys(&["k"]))),
        payload_bytes: vec![5],
        near: 0,
        exclusive: false,
        ..pb::Reserve::default()
    };
    let reply::Body::Reserve(granted) = dying.call(request::Body::Reserve(reserve), soon()).unwrap().body else {
        panic!("not a Reserve reply")
    };
    assert_eq!(granted.reservations.len(), 1);
    dying.close();
    assert_eq!(get(&owner, "k", 5).0, GetStatus::Miss);
    assert_eq!(put(&owner, "k", b"later", true), PutStatus::Pending, "asked not to race");
    assert_eq!(put(&owner, "k", b"later", false), PutStatus::Stored, "the key can be put again at once");
    assert_eq!(get(&owner, "k", 5), (GetStatus::Hit, b"later".to_vec()));
}

#[test]
fn a_reservation_that_ran_out_no_longer_holds_the_key() {
    let meta = meta(1_000);
    let owner = store(&meta, LENT, ProtocolChoice::Auto);
    let dying = Book::open(meta.address().clone()).unwrap();
    let reserve = pb::Reserve {
        keys: Some(keys_to_wire(&keys(&["k"]))),
        payload_bytes: vec![5],
        near: 0,
        exclusive: true,
        ..pb::Reserve::default()
    };
    dying.call(request::Body::Reserve(reserve), soon()).unwrap();
    dying.close();
    assert_eq!(put(&owner, "k", b"value", true), PutStatus::Pending);
    let until = soon();
    while put(&owner, "k", b"value", true) == PutStatus::Pending {
        assert!(Instant::now() < until, "the reservation never ran out");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(get(&owner, "k", 5), (GetStatus::Hit, b"value".to_vec()));
}

#[test]
fn other_bytes_under_the_right_trailer_are_corrupt_not_returned() {
    let meta = meta(20_000);
    let owner = store(&meta, LENT, ProtocolChoice::Auto);
    put(&owner, "k", b"value", false);
    damage(owner.book(), "k", b"wrong", |_| {});
    assert_eq!(get(&owner, "k", 5).0, GetStatus::Corrupt);
    assert_eq!(owner.stats().get_corrupt, 1);
}

/// Otherwise the key would be there for every put and for no get, until it is evicted.
#[test]
fn a_damaged_object_is_told_to_the_book_and_can_be_put_again() {
    let meta = meta(20_000);
    let owner = store(&meta, LENT, ProtocolChoice::Auto);
    for (trailer, met) in [(true, GetStatus::Corrupt), (false, GetStatus::Miss)] {
        assert_eq!(put(&owner, "k", b"value", false), PutStatus::Stored);
        damage(owner.book(), "k", b"wrong", |found| found[0] ^= u8::from(!trailer));
        assert_eq!(get(&owner, "k", 5).0, met);
        let until = soon();
        while put(&owner, "k", b"later", false) == PutStatus::Present {
            assert!(Instant::now() < until, "the book was never told");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(get(&owner, "k", 5), (GetStatus::Hit, b"later".to_vec()));
        owner.remove(&keys(&["k"]), soon()).unwrap();
    }
}

#[test]
fn memory_that_is_being_overwritten_is_a_miss() {
    let meta = meta(20_000);
    let owner = store(&meta, LENT, ProtocolChoice::Auto);
    put(&owner, "k", b"value", false);
    damage(owner.book(), "k", b"value", |trailer| trailer.fill(0));
    assert_eq!(get(&owner, "k", 5).0, GetStatus::Miss);
}

#[test]
fn duplicates_within_a_batch_and_across_writers_are_told_the_truth() {
    let meta = meta(20_000);
    let owner = store(&meta, LENT, ProtocolChoice::Auto);
    let statuses =
        owner.put(&keys(&["a", "a", "b"]), &values(&[b"first", b"later", b"b"]), &options(false), soon()).unwrap();
    assert_eq!(statuses, [PutStatus::Stored, PutStatus::Present, PutStatus::Stored]);
    assert_eq!(get(&owner, "a", 5).1, b"first");
    let other = store(&meta, 0, ProtocolChoice::HostTcp);
    assert_eq!(put(&other, "a", b"again", false), PutStatus::Present);
}

#[test]
fn asynchronous_forms_resolve_also_when_the_store_closes_first() {
    let meta = meta(20_000);
    let owner = store(&meta, LENT, ProtocolChoice::Auto);
    let done = owner.put_async(keys(&["k"]), values(&[b"value"]), &options(true), soon()).unwrap();
    assert!(done.wait_until(soon()));
    let outcome = done.result().unwrap();
    assert_eq!(*outcome.as_ref().as_ref().unwrap(), [PutStatus::Stored]);
    let late: Vec<_> =
        (0..200).map(|_| owner.put_async(keys(&["l"]), values(&[b"value"]), &options(true), soon()).unwrap()).collect();
    assert!(owner.close(soon()));
    assert!(late.iter().all(|one| one.wait_until(soon())), "a completion was lost");
    assert!(owner.put_async(keys(&["m"]), values(&[b"value"]), &options(true), soon()).is_err());
}

#[test]
fn a_service_that_goes_away_fails_calls_at_once_and_is_found_again() {
    let first = meta(1_000);
    let address = first.address().clone();
    let owner = store(&first, LENT, ProtocolChoice::Auto);
    assert_eq!(put(&owner, "k", b"value", false), PutStatus::Stored);
    assert!(first.stop(Duration::from_secs(2)));
    let until = soon();
    while owner.book().is_up() {
        assert!(Instant::now() < until, "never noticed");
        std::thread::sleep(Duration::from_millis(10));
    }
    let asked = Instant::now();
    assert_eq!(get(&owner, "k", 5).0, GetStatus::Unavailable);
    assert_eq!(put(&owner, "k", b"value", false), PutStatus::Unavailable);
    assert!(asked.elapsed() < Duration::from_secs(5), "calls waited for their deadline");
    let config = MetaConfig { listen: address, reservation_ttl_ms: 1_000, lease_ms: 1_000, ..MetaConfig::default() };
    let _second = MetaServer::start(&config).unwrap();
    let until = soon();
    while put(&owner, "l", b"again", false) != PutStatus::Stored {
        assert!(Instant::now() < until, "never found the new service");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(get(&owner, "l", 5), (GetStatus::Hit, b"again".to_vec()));
}

#[test]
fn a_full_pool_says_so_per_key() {
    let meta = meta(20_000);
    let owner = store(&meta, 1 << 20, ProtocolChoice::Auto);
    let large = vec![7u8; 2 << 20];
    assert_eq!(put(&owner, "large", &large, false), PutStatus::TooLarge);
    let empty = store(&meta, 0, ProtocolChoice::Auto);
    assert_eq!(put(&empty, "k", b"v", false), PutStatus::Stored);
    let nobody = self::meta(20_000);
    let alone = store(&nobody, 0, ProtocolChoice::Auto);
    assert!(!put(&alone, "k", b"v", false).is_readable());
}

#[test]
fn leases_are_let_go_of_soon_after_a_get_and_before_a_store_is_gone() {
    let meta = meta(20_000);
    let owner = store(&meta, LENT, ProtocolChoice::Auto);
    assert_eq!(put(&owner, "k", b"value", false), PutStatus::Stored);
    let reader = store(&meta, 0, ProtocolChoice::HostShm);
    let leases = || owner.status(soon()).unwrap().1.leases;
    for turn in 0..200 {
        assert_eq!(get(&reader, "k", 5).0, GetStatus::Hit);
        assert!(leases() <= 10, "turn {turn}: leases pile up");
    }
    let until = Instant::now() + Duration::from_secs(1);
    while leases() > 0 {
        assert!(Instant::now() < until, "a lease waits for a request that never comes");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(get(&reader, "k", 5).0, GetStatus::Hit);
    assert!(reader.close(soon()));
    assert_eq!(leases(), 0, "left for the service to reclaim");
}

#[test]
fn a_get_past_the_limit_of_leases_is_a_miss_and_passes() {
    let meta = meta(120_000);
    let store = store(&meta, LENT, ProtocolChoice::Auto);
    assert_eq!(put(&store, "a", b"value", false), PutStatus::Stored);
    let keys = keys(&["a"]);
    let mut held: Vec<_> = (0..1 << 16).map(|_| store.locate(&keys, soon()).unwrap()).collect();
    let refused = store.locate(&keys, soon()).unwrap_err().to_string();
    assert!(refused.contains("leases of this client") && refused.contains("65536"), "{refused}");
    assert_eq!(get(&store, "a", 5).0, GetStatus::Miss);
    held.clear();
    let until = soon();
    while get(&store, "a", 5) != (GetStatus::Hit, b"value".to_vec()) {
        assert!(Instant::now() < until, "leases that were let go still count");
        std::thread::sleep(Duration::from_millis(1));
    }
}
