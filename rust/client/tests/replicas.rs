//! Replicas, repair and drains with a real `MetaService`, real segments and real sockets in one process.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_client::{Buffers, Checksums, LocalOptions, Presence, PutOptions, Store, StoreOptions};
use memcache_config::{Endpoint, MetaConfig};
use memcache_meta::MetaServer;
use memcache_proto::pb::drain::Mode;
use memcache_proto::pb::{self, reply, request};
use memcache_transport::{Fabric, FabricOptions, ProtocolChoice, RegionDescriptor, WriteOp};
use memcache_types::{
    ByteCount, Extent, GetStatus, GlobalAddress, KeyBatch, PutStatus, ScatterList, SegmentId, extent_bytes,
};

const LENT: u64 = 8 << 20;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn meta() -> MetaServer {
    let listen = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
    MetaServer::start(&MetaConfig { listen, heartbeat_ms: 100, ..MetaConfig::default() }).unwrap()
}

fn store(meta: &MetaServer, lend: u64, repair_bytes_per_s: u64) -> Store {
    let lend = (lend > 0).then(|| LocalOptions {
        name: "test".to_owned(),
        prefault: false,
        repair_bytes_per_s,
        ..LocalOptions::new(lend)
    });
    let options = StoreOptions {
        lend,
        protocol: ProtocolChoice::Auto,
        checksums: Checksums::Always,
        transfer_threads: 2,
        ..StoreOptions::new(meta.address().clone())
    };
    Store::open(&options).unwrap()
}

fn lender(meta: &MetaServer) -> Store {
    store(meta, LENT, 1 << 30)
}

fn name(number: usize) -> String {
    format!("key {number}")
}

fn value(number: usize) -> Vec<u8> {
    (0..3000 + number).map(|at| u8::try_from((at * 7 + number) % 251).unwrap()).collect()
}

fn put(store: &Store, count: usize, replicas: usize) {
    let keys = KeyBatch::from_keys((0..count).map(name)).unwrap();
    let values = Buffers::from_owned((0..count).map(value).collect());
    let options = PutOptions { replicas: Some(replicas), ..PutOptions::default() };
    let statuses = store.put(&keys, &values, &options, soon()).unwrap();
    assert_eq!(statuses, vec![PutStatus::Stored; count]);
}

/// Reads every key by itself and all bytes of it.
fn check(store: &Store, count: usize) {
    for number in 0..count {
        check_one(store, number);
    }
}

fn check_one(store: &Store, number: usize) {
    read(store, &[number]);
}

/// Reads keys in one call, and all bytes of them.
fn read(store: &Store, numbers: &[usize]) {
    let mut targets: Vec<Vec<u8>> = numbers.iter().map(|number| vec![0; value(*number).len()]).collect();
    let list = |target: &mut Vec<u8>| ScatterList::single(target.as_mut_ptr() as u64, target.len() as u64);
    // SAFETY: the vectors outlive the call and nothing else touches them meanwhile.
    let buffers = unsafe { Buffers::new(targets.iter_mut().map(list).collect(), Arc::new(())) };
    let keys = KeyBatch::from_keys(numbers.iter().map(|number| name(*number))).unwrap();
    assert_eq!(store.get(&keys, &buffers, soon()).unwrap(), vec![GetStatus::Hit; numbers.len()], "keys {numbers:?}");
    let right = numbers.iter().zip(&targets).all(|(number, target)| value(*number) == *target);
    assert!(right, "one of keys {numbers:?} came back as other bytes");
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = soon();
    while !is_so() {
        assert!(Instant::now() < until, "never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn status(store: &Store) -> pb::StatusReply {
    store.status(soon()).unwrap().1
}

#[test]
fn a_lost_node_costs_no_object_and_the_count_is_restored() {
    let meta = meta();
    let nodes = [lender(&meta), lender(&meta), lender(&meta)];
    let reader = store(&meta, 0, 0);
    put(&reader, 60, 2);
    assert_eq!((status(&reader).objects, status(&reader).replicas), (60, 120));
    assert!(nodes[0].close(soon()));
    check(&reader, 60);
    wait("the lost replicas", || status(&reader).replicas == 120);
    assert!(status(&reader).copied > 0);
    // The next loss shows that the copies are good: for some keys they are all that is left.
    assert!(nodes[1].close(soon()));
    check(&reader, 60);
    assert_eq!(reader.stats().get_corrupt, 0);
}

#[test]
fn a_damaged_replica_is_passed_over_for_a_good_one_and_made_again() {
    let meta = meta();
    let _nodes = [lender(&meta), lender(&meta)];
    let reader = store(&meta, 0, 0);
    put(&reader, 2, 2);
    let body = |body| reader.book().call(body, soon()).unwrap().body;
    let keys = KeyBatch::from_keys([name(0)]).unwrap();
    let locate = pb::Locate { keys: Some(memcache_proto::pack::keys_to_wire(&keys)), near: 0 };
    let reply::Body::Locate(found) = body(request::Body::Locate(locate)) else { panic!("not a Locate reply") };
    assert_eq!((found.segments.len(), found.other_segments.len()), (1, 1));
    let places = [(found.segments[0], found.offsets[0]), (found.other_segments[0], found.other_offsets[0])];
    let fabric = Fabric::new(FabricOptions { choice: ProtocolChoice::HostTcp, ..FabricOptions::default() });
    let damage = |(segment, offset)| {
        let describe = request::Body::Describe(pb::Describe { segments: vec![segment] });
        let reply::Body::Describe(described) = body(describe) else { panic!("not a Describe reply") };
        let descriptor = RegionDescriptor::decode(&described.segments[0].descriptor).unwrap();
        let payload_bytes = found.payload_bytes[0];
        let address = GlobalAddress::new(SegmentId::new(segment), offset);
        let extent = Extent::new(address, extent_bytes(payload_bytes)).unwrap();
        let payload = vec![1u8; usize::try_from(payload_bytes).unwrap()];
        let local = ScatterList::single(payload.as_ptr() as u64, payload_bytes);
        let ops = [WriteOp { extent, payload_bytes, local: &local, trailer: &[0; 64] }];
        // SAFETY: the vector outlives the call and nothing else touches it meanwhile.
        let written = unsafe { fabric.link(&descriptor, soon()).unwrap().write(&ops, soon()) };
        assert_eq!(written, [Ok(())]);
    };
    damage(places[0]);
    let before = found.generations[0];
    wait("a new replica", || {
        // Of equally near replicas a different one is read first at each place of a batch.
        read(&reader, &[0, 1]);
        read(&reader, &[1, 0]);
        let replicas = reader.info(&keys, soon()).unwrap().remove(0).replicas;
        replicas.len() == 2 && replicas.iter().all(|replica| replica.generation != before)
    });
    assert!(reader.stats().get_fallbacks > 0);
}

#[test]
fn a_drained_node_leaves_and_every_object_stays() {
    let meta = meta();
    let leaving = lender(&meta);
    let others = [lender(&meta), lender(&meta)];
    put(&leaving, 200, 1);
    let reader = store(&meta, 0, 0);
    let own = leaving.node().unwrap();
    let before = reader.drain(own, Mode::Look, soon()).unwrap();
    assert_eq!((before.known, before.state(), before.objects), (true, pb::DrainState::NotDraining, 200));
    assert!(leaving.drain_own(soon()).unwrap());
    assert_eq!(status(&reader).nodes.len(), 2);
    let after = reader.drain(own, Mode::Look, soon()).unwrap();
    assert_eq!((after.known, after.gone, after.state(), after.objects), (true, true, pb::DrainState::Drained, 0));
    assert!(!reader.drain(own, Mode::Move, soon()).unwrap().known, "there is nothing to empty any more");
    check(&reader, 200);
    assert_eq!((status(&reader).objects, status(&reader).copied), (200, 200));
    put(&leaving, 0, 1);
    check(&leaving, 5);
    drop(others);
}

#[test]
fn a_drain_without_room_elsewhere_waits_and_can_be_cancelled() {
    let meta = meta();
    let full = store(&meta, LENT, 0);
    put(&full, 200, 1);
    let own = full.node().unwrap();
    assert!(!full.drain_own(Instant::now() + Duration::from_millis(300)).unwrap(), "there is nowhere to go");
    let seen = full.drain(own, Mode::Look, soon()).unwrap();
    assert_eq!((seen.state(), seen.objects), (pb::DrainState::Draining, 200));
    let cancelled = full.drain(own, Mode::Cancel, soon()).unwrap();
    assert_eq!(cancelled.state(), pb::DrainState::NotDraining);
    check(&full, 200);
    full.drain(own, Mode::Drop, soon()).unwrap();
    wait("the end of the drain", || status(&full).nodes.is_empty());
    assert_eq!(status(&full).objects, 0);
}

#[test]
fn replicas_out_of_range_are_refused_by_name() {
    let meta = meta();
    let node = lender(&meta);
    let keys = KeyBatch::from_keys(["k"]).unwrap();
    for replicas in [0, 9] {
        let options = PutOptions { replicas: Some(replicas), ..PutOptions::default() };
        let refused = node.put(&keys, &Buffers::from_owned(vec![vec![1]]), &options, soon()).unwrap_err();
        assert_eq!(refused.to_string(), format!("{replicas} replicas; a key has 1 to 8"));
    }
}

#[test]
fn a_lease_can_be_renewed_and_read_under() {
    let listen = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
    let meta = MetaServer::start(&MetaConfig { listen, lease_ms: 1000, ..MetaConfig::default() }).unwrap();
    let node = lender(&meta);
    put(&node, 1, 1);
    let keys = KeyBatch::from_keys([name(0)]).unwrap();
    let mut located = node.locate(&keys, soon()).unwrap();
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(300));
        assert!(located.renew(soon()));
    }
    assert_eq!(status(&node).leases, 1);
    let mut target = vec![0u8; value(0).len()];
    let list = ScatterList::single(target.as_mut_ptr() as u64, target.len() as u64);
    // SAFETY: the vector outlives the call and nothing else touches it meanwhile.
    let targets = unsafe { Buffers::new(vec![list], Arc::new(())) };
    assert_eq!(node.read(&located, &keys, &targets, soon()).unwrap(), [GetStatus::Hit]);
    std::thread::sleep(Duration::from_millis(1100));
    assert!(!located.renew(soon()), "it is over");
}

#[test]
fn an_object_read_from_afar_again_and_again_gets_a_replica_at_its_reader() {
    let listen = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
    let budget = ByteCount::new(2 * extent_bytes(4096));
    let config = MetaConfig { listen, heartbeat_ms: 100, hot_replica_bytes: budget, ..MetaConfig::default() };
    let meta = MetaServer::start(&config).unwrap();
    let [writer, near, far] = [lender(&meta), lender(&meta), lender(&meta)];
    put(&writer, 8, 1);
    // All eight are hot there, and the budget holds two.
    wait("extra replicas", || {
        check(&near, 8);
        status(&near).extra_replicas == 2
    });
    let seen = status(&far);
    assert_eq!((seen.objects, seen.replicas, seen.repairs_waiting), (8, 10, 0));
    assert!(seen.extra_bytes > 0 && seen.extra_bytes <= budget.get(), "{} bytes", seen.extra_bytes);
    let own = near.node().unwrap().get();
    assert_eq!(seen.nodes.iter().find(|one| one.node == own).unwrap().objects, 2);
    check(&far, 8);
    // Where the originals are lost the extra ones are all there is, and good.
    assert!(writer.close(soon()));
    let left = status(&far);
    assert_eq!((left.objects, left.extra_replicas), (2, 0));
    let keys = KeyBatch::from_keys((0..8).map(name)).unwrap();
    let there = far.exist(&keys, soon()).unwrap();
    for number in (0..8).filter(|number| there[*number] == Presence::Present) {
        check_one(&far, number);
    }
    assert_eq!(far.stats().get_corrupt, 0);
}
