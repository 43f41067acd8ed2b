//! Puts and gets that nobody waits for: many at once, cancelled at any moment, and stores that close under them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memcache_client::{Buffers, Checksums, LocalOptions, PutOptions, Store, StoreError, StoreOptions};
use memcache_config::{Endpoint, MetaConfig};
use memcache_meta::MetaServer;
use memcache_transport::ProtocolChoice;
use memcache_types::{GetStatus, KeyBatch, PutStatus, ScatterList};

const MIB: usize = 1 << 20;
const LENT: u64 = 96 << 20;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn meta() -> MetaServer {
    let listen = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
    MetaServer::start(&MetaConfig { listen, ..MetaConfig::default() }).unwrap()
}

fn store(endpoint: &Endpoint, lend: u64, protocol: ProtocolChoice) -> Store {
    let lend = (lend > 0).then(|| LocalOptions {
        name: "test".to_owned(),
        prefault: false,
        repair_bytes_per_s: 0,
        ..LocalOptions::new(lend)
    });
    let (endpoint, checksums, meta_address) = (endpoint.clone(), Checksums::Always, endpoint.clone());
    Store::open(&StoreOptions {
        endpoint,
        lend,
        protocol,
        checksums,
        replicas: 1,
        transfer_threads: 2,
        rdma_device: String::new(),
        ..StoreOptions::new(meta_address)
    })
    .unwrap()
}

fn keys(count: usize) -> KeyBatch {
    KeyBatch::from_keys((0..count).map(|key| format!("key-{key}"))).unwrap()
}

fn key(key: usize) -> KeyBatch {
    KeyBatch::from_keys([format!("key-{key}")]).unwrap()
}

fn value(seed: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 7).wrapping_add(seed).to_le_bytes()[0]).collect()
}

/// Local memory that transfers are given by address, so that a test may touch it while it thinks it may.
struct Memory(Vec<Vec<u8>>);

impl Memory {
    fn new(objects: usize, bytes: usize) -> Self {
        Self((0..objects).map(|_| vec![0; bytes]).collect())
    }

    fn buffers(&mut self) -> Buffers {
        let list = |object: &mut Vec<u8>| {
            let (middle, bytes) = (object.len() / 3, object.len() as u64);
            let base = object.as_mut_ptr().expose_provenance() as u64;
            let mut list = ScatterList::new();
            // Two pieces in the wrong order, so that they do not merge.
            list.push(base + middle as u64, bytes - middle as u64);
            list.push(base, middle as u64);
            list
        };
        // SAFETY: every test keeps its memory alive until the transfers on it have ended or were cancelled.
        unsafe { Buffers::new(self.0.iter_mut().map(list).collect(), Arc::new(())) }
    }

    fn fill(&mut self, byte: u8) {
        for object in &mut self.0 {
            object.fill(byte);
        }
    }

    fn is_all(&self, byte: u8) -> bool {
        self.0.iter().all(|object| object.iter().all(|found| *found == byte))
    }

    /// The object as its pieces make it up.
    fn object(&self, at: usize) -> Vec<u8> {
        let middle = self.0[at].len() / 3;
        [&self.0[at][middle..], &self.0[at][..middle]].concat()
    }

    fn set(&mut self, at: usize, object: &[u8]) {
        let end = object.len() - object.len() / 3;
        let (tail, head) = object.split_at(end);
        self.0[at] = [head, tail].concat();
    }
}

/// Threads of this process whose name begins so.
fn threads_named(prefix: &str) -> usize {
    let name = |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter(|task| name(task.as_ref().unwrap()).starts_with(prefix))
        .count()
}

/// A small generator, so that cancels come at other moments each round.
fn pause(round: u64) -> Duration {
    Duration::from_micros(round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52)
}

/// Pauses that meet every part of a transfer, however long it takes on this machine at present: longer ones after one that
/// came too early, shorter ones after one that came too late.
struct Moments {
    longest: Duration,
}

impl Moments {
    fn new() -> Self {
        Self { longest: Duration::from_millis(4) }
    }

    fn wait(&self, round: u64) {
        let part = u32::try_from(round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52).unwrap();
        thread::sleep(self.longest * part / 4096);
    }

    fn was_early(&mut self, early: bool) {
        let next = if early { self.longest * 5 / 4 } else { self.longest * 3 / 4 };
        self.longest = next.clamp(Duration::from_micros(200), Duration::from_secs(1));
    }
}

#[test]
fn a_thousand_gets_are_under_way_on_a_few_threads() {
    let meta = meta();
    let owner = store(meta.address(), LENT, ProtocolChoice::Auto);
    let values: Vec<Vec<u8>> = (0..50).map(|seed| value(seed, 40_000)).collect();
    let stored = owner.put(&keys(50), &Buffers::from_owned(values.clone()), &PutOptions::default(), soon()).unwrap();
    assert_eq!(stored, vec![PutStatus::Stored; 50]);
    for protocol in [ProtocolChoice::HostShm, ProtocolChoice::HostTcp] {
        let reader = store(meta.address(), 0, protocol);
        let mut targets: Vec<Memory> = (0..1000).map(|_| Memory::new(1, 40_000)).collect();
        let start =
            |(at, target): (usize, &mut Memory)| reader.get_async(key(at % 50), target.buffers(), soon()).unwrap();
        let gets: Vec<_> = targets.iter_mut().enumerate().map(start).collect();
        let errands = threads_named("memcache-errand");
        for get in &gets {
            assert!(get.wait_until(soon()), "{protocol}: a get is lost");
            assert_eq!(*get.result().unwrap().as_ref().as_ref().unwrap(), [GetStatus::Hit], "{protocol}");
        }
        for (at, target) in targets.iter().enumerate() {
            assert!(target.object(0) == values[at % 50], "{protocol}: get {at} has other bytes");
        }
        // One store here copies with two threads; the others are for TCP and for opening links, a few for the one peer. Other
        // tests may run stores of their own in this process.
        assert!(threads_named("memcache-copy") <= 50 && errands <= 100, "{protocol}: a thread for each transfer");
        assert_eq!(reader.in_flight(), 0);
    }
}

#[test]
fn there_is_a_limit_and_cancelling_makes_room() {
    // Somebody who accepts and never speaks: requests wait for the connection.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: silent.local_addr().unwrap().port() };
    let reader = store(&endpoint, 0, ProtocolChoice::Auto);
    let mut target = Memory::new(1, 64);
    let mut gets = Vec::new();
    let refused = loop {
        match reader.get_async(key(0), target.buffers(), soon()) {
            Ok(get) => gets.push(get),
            Err(error) => break error,
        }
        assert!(gets.len() < 100_000, "there is no limit");
    };
    let StoreError::Busy { in_flight, limit } = refused else { panic!("{refused}") };
    assert_eq!((in_flight, limit), (gets.len(), gets.len()));
    assert_eq!(
        refused.to_string(),
        format!("{limit} puts and gets are under way, the limit; wait for some of them to end")
    );
    for get in gets.drain(..) {
        assert!(get.cancel(Instant::now()).unwrap(), "nothing runs, so nothing is waited for");
        assert_eq!(*get.result().unwrap().as_ref().as_ref().unwrap(), [GetStatus::Cancelled]);
    }
    assert_eq!(reader.in_flight(), 0);
    let put = reader.put_async(key(0), target.buffers(), &PutOptions::default(), soon()).unwrap();
    assert!(put.cancel(Instant::now()).unwrap() && put.cancel(Instant::now()).unwrap(), "twice is as good as once");
    assert_eq!(*put.result().unwrap().as_ref().as_ref().unwrap(), [PutStatus::Cancelled]);
}

/// Cancels gets at every moment of their lives and uses their memory for something else at once.
fn cancel_gets(protocol: ProtocolChoice, rounds: u64) {
    let meta = meta();
    let owner = store(meta.address(), LENT, ProtocolChoice::Auto);
    let values: Vec<Vec<u8>> = (0..4).map(|seed| value(seed, 6 * MIB)).collect();
    assert_eq!(
        owner.put(&keys(4), &Buffers::from_owned(values.clone()), &PutOptions::default(), soon()).unwrap(),
        [PutStatus::Stored; 4]
    );
    let reader = store(meta.address(), 0, protocol);
    let mut target = Memory::new(4, 6 * MIB);
    let (mut cancelled, mut hits) = (0, 0);
    let mut moments = Moments::new();
    for round in 0..rounds {
        let get = reader.get_async(keys(4), target.buffers(), soon()).unwrap();
        moments.wait(round);
        assert!(get.cancel(soon()).unwrap(), "a copy over {protocol} does not end");
        // From here on the memory is ours again.
        assert!(get.is_done(), "a get that was cancelled has a result");
        let result = get.result().unwrap();
        for (at, status) in result.as_ref().as_ref().unwrap().iter().enumerate() {
            match status {
                GetStatus::Hit => assert!(target.object(at) == values[at], "a hit with other bytes, round {round}"),
                GetStatus::Cancelled => {}
                other => panic!("{other:?} in round {round}"),
            }
            hits += u32::from(*status == GetStatus::Hit);
            cancelled += u32::from(*status == GetStatus::Cancelled);
        }
        moments.was_early(result.as_ref().as_ref().unwrap().contains(&GetStatus::Cancelled));
        target.fill(0xab);
        if round % 8 == 0 {
            thread::sleep(Duration::from_millis(2));
        }
        assert!(target.is_all(0xab), "a byte landed after cancel had returned, round {round} over {protocol}");
    }
    assert!(cancelled > 0 && hits > 0, "the moments are badly chosen: {hits} hits, {cancelled} cancelled");
    assert_eq!(reader.in_flight(), 0);
    // A lease that was not given back would keep the old objects' space for its ten seconds.
    owner.remove_all(soon()).unwrap();
    let large = Buffers::from_owned((0..9).map(|seed| value(seed, 10 * MIB)).collect());
    let stored = owner.put(&keys(9), &large, &PutOptions::default(), soon()).unwrap();
    assert_eq!(stored, [PutStatus::Stored; 9], "leases of cancelled gets still hold memory");
}

#[test]
fn no_byte_lands_after_a_get_over_shared_memory_is_cancelled() {
    cancel_gets(ProtocolChoice::HostShm, 150);
}

#[test]
fn no_byte_lands_after_a_get_over_tcp_is_cancelled() {
    cancel_gets(ProtocolChoice::HostTcp, 60);
}

#[test]
fn a_cancelled_put_reads_nothing_more_and_leaves_nothing() {
    let meta = meta();
    let owner = store(meta.address(), LENT, ProtocolChoice::Auto);
    let writer = store(meta.address(), 0, ProtocolChoice::HostShm);
    let value = value(1, 20 * MIB);
    let mut source = Memory::new(1, 20 * MIB);
    let (mut cancelled, mut stored) = (0, 0);
    let mut moments = Moments::new();
    // Each round wants a fifth of the pool: reservations left behind would fill it long before the end.
    for round in 0..60 {
        source.set(0, &value);
        let put = writer.put_async(key(0), source.buffers(), &PutOptions::default(), soon()).unwrap();
        moments.wait(round);
        assert!(put.cancel(soon()).unwrap());
        source.fill(0xcd);
        assert!(put.wait_until(soon()));
        match put.result().unwrap().as_ref().as_ref().unwrap()[0] {
            PutStatus::Stored => {
                stored += 1;
                moments.was_early(false);
                let mut found = Memory::new(1, 20 * MIB);
                assert_eq!(owner.get(&key(0), &found.buffers(), soon()).unwrap(), [GetStatus::Hit]);
                assert!(found.object(0) == value, "what was stored is what the source held before, round {round}");
                assert_eq!(owner.remove(&key(0), soon()).unwrap(), [true]);
            }
            PutStatus::Cancelled => {
                cancelled += 1;
                moments.was_early(true);
                let mut found = Memory::new(1, 20 * MIB);
                assert_eq!(owner.get(&key(0), &found.buffers(), soon()).unwrap(), [GetStatus::Miss]);
            }
            other => panic!("{other:?} in round {round}"),
        }
    }
    assert!(cancelled > 0 && stored > 0, "the moments are badly chosen: {stored} stored, {cancelled} cancelled");
}

#[test]
fn cancelling_from_several_threads_while_the_get_ends_is_safe() {
    let meta = meta();
    let owner = store(meta.address(), LENT, ProtocolChoice::Auto);
    let stored =
        owner.put(&key(0), &Buffers::from_owned(vec![value(3, 3 * MIB)]), &PutOptions::default(), soon()).unwrap();
    assert_eq!(stored, [PutStatus::Stored]);
    let mut target = Memory::new(1, 3 * MIB);
    for round in 0..100 {
        let get = owner.get_async(key(0), target.buffers(), soon()).unwrap();
        thread::scope(|scope| {
            for canceller in 0..3 {
                let get = &get;
                scope.spawn(move || {
                    thread::sleep(pause(round * 3 + canceller) / 4);
                    assert!(get.cancel(soon()).unwrap());
                });
            }
        });
        target.fill(0x11);
        assert!(get.is_done() && target.is_all(0x11), "round {round}");
    }
}

/// Tells when it is dropped.
struct Owned(Arc<AtomicBool>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn a_put_whose_completion_is_dropped_goes_on_and_lets_go_of_its_memory() {
    let meta = meta();
    let owner = store(meta.address(), LENT, ProtocolChoice::Auto);
    let bytes = value(5, 5 * MIB);
    let dropped = Arc::new(AtomicBool::new(false));
    let list = ScatterList::single(bytes.as_ptr().expose_provenance() as u64, bytes.len() as u64);
    // SAFETY: the vector outlives the put, whose end is waited for below.
    let buffers = unsafe { Buffers::new(vec![list], Arc::new(Owned(Arc::clone(&dropped)))) };
    drop(owner.put_async(key(0), buffers, &PutOptions::default(), soon()).unwrap());
    let deadline = soon();
    while owner.in_flight() > 0 || !dropped.load(Ordering::Acquire) {
        assert!(Instant::now() < deadline, "the put never ends, or keeps its memory");
        thread::yield_now();
    }
    let mut found = Memory::new(1, 5 * MIB);
    assert_eq!(owner.get(&key(0), &found.buffers(), soon()).unwrap(), [GetStatus::Hit]);
    assert!(found.object(0) == bytes);
}

#[test]
fn a_store_that_closes_resolves_everything_and_touches_nothing_afterwards() {
    let meta = meta();
    let owner = store(meta.address(), LENT, ProtocolChoice::Auto);
    let stored =
        owner.put(&key(0), &Buffers::from_owned(vec![value(3, 4 * MIB)]), &PutOptions::default(), soon()).unwrap();
    assert_eq!(stored, [PutStatus::Stored]);
    for round in 0..10 {
        let reader = store(meta.address(), 0, ProtocolChoice::HostShm);
        let mut targets: Vec<Memory> = (0..12).map(|_| Memory::new(1, 4 * MIB)).collect();
        let gets: Vec<_> =
            targets.iter_mut().map(|target| reader.get_async(key(0), target.buffers(), soon()).unwrap()).collect();
        thread::sleep(pause(round));
        assert!(reader.close(soon()), "transfers did not end");
        for target in &mut targets {
            target.fill(0x77);
        }
        for get in gets {
            assert!(get.is_done(), "a get of a closed store never ends");
            let result = get.result().unwrap();
            let status = result.as_ref().as_ref().unwrap()[0];
            assert!(matches!(status, GetStatus::Hit | GetStatus::Unavailable), "{status:?}");
        }
        assert!(targets.iter().all(|target| target.is_all(0x77)), "a byte landed after close had returned");
        assert!(matches!(reader.get_async(key(0), targets[0].buffers(), soon()), Err(StoreError::Closed)));
    }
}
