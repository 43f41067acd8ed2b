//! Random bad days of a whole pool: nodes in processes of their own that are killed and stopped in the middle of puts and
//! gets and come back as another life, connections that a proxy damages, a `MetaService` that starts again, writers that
//! vanish, objects whose memory changes behind the book's back. Whatever happens: no wrong bytes, no call that outlives
//! its deadline, no reservation, lease, byte, thread, descriptor or mapping left behind.
//!
//! `FAULTS=1000 FAULTS_SEED=3 cargo test --release -p memcache-client --test faults -- --nocapture`

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on stops; processes talk on stdout"
)]

mod node;
mod objects;

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use memcache_client::book::Book;
use memcache_client::{PutOptions, Store};
use memcache_config::{Endpoint, MetaConfig};
use memcache_memory::Trailer;
use memcache_meta::MetaServer;
use memcache_proto::pack::keys_to_wire;
use memcache_proto::pb::{self, reply, request};
use memcache_testkit::proxy::{Mischief, Plan, Proxy};
use memcache_testkit::rng::Rng;
use memcache_transport::{Fabric, FabricOptions, ProtocolChoice, ReadOp, RegionDescriptor, WriteOp};
use memcache_types::{
    Extent, Generation, GetStatus, GlobalAddress, NodeId, PutStatus, ScatterList, SegmentId, extent_bytes,
};

use crate::node::{FILES, Node, file_of, open};
use crate::objects::{get, keys, put, value, values};

const TTL_MS: u64 = 500;
const FAULTS_USUAL: u64 = 24;
const NODES: usize = 2;
/// What reservations and leases last where the machine must not be the reason that they run out.
const LONG_MS: u64 = 20_000;
/// What a call may take beyond its deadline: one copy, on a machine that does other things as well.
const MARGIN: Duration = Duration::from_secs(3);

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |value| value.parse().unwrap())
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

#[derive(Debug, Default)]
struct Counts {
    /// Faults of each kind; those of a proxy only where its place in the stream was reached.
    faults: BTreeMap<&'static str, u64>,
    stored: u64,
    hits: u64,
    misses: u64,
    failures: u64,
    corrupt: u64,
    slowest_beyond_deadline: Duration,
}

struct Pool {
    meta: Option<MetaServer>,
    address: Endpoint,
    book: Arc<Book>,
    nodes: Vec<Option<Node>>,
    /// One over shared memory, one over TCP.
    stores: [Arc<Store>; 2],
    /// Objects that were stored at some time.
    known: Vec<u64>,
    next: u64,
    counts: Counts,
}

#[test]
fn a_pool_survives_random_mischief() {
    let (faults, seed) = (setting("FAULTS", FAULTS_USUAL), setting("FAULTS_SEED", 1));
    // First, for threads that a process keeps once it has had a store are no leak.
    a_stopped_node_delays_nobody_else();
    let before = settled(None);
    println!("seed {seed}, {faults} faults over host_shm and host_tcp");
    let mut pool = Pool::open();
    let mut tries = 0;
    while pool.counts.faults.values().sum::<u64>() < faults {
        pool.one_fault(seed.wrapping_mul(1_000_003) ^ tries);
        tries += 1;
        assert!(tries < 10 * faults + 100, "most faults never happen: {:#?}", pool.counts);
    }
    pool.wait_until_nothing_is_held();
    println!("{:#?}", pool.counts);
    let Counts { hits, stored, failures, misses, .. } = pool.counts;
    assert!(hits > faults / 4 && stored > faults / 4 && failures + misses > 0, "nothing happened");
    drop(pool);
    assert_eq!(settled(Some(before)), before, "threads, descriptors and mappings: some were left behind");
}

fn a_stopped_node_delays_nobody_else() {
    let mut pool = Pool::open_with(LONG_MS);
    for store in pool.stores.clone() {
        pool.comes_beside_a_stopped_node(&store);
    }
}

/// Threads and descriptors of this process, and segments mapped by it, when they are as expected or do not change.
fn settled(expected: Option<(usize, usize, usize)>) -> (usize, usize, usize) {
    let entries = |folder: &str| fs::read_dir(folder).unwrap().count();
    let census = || {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let segments = maps.lines().filter(|line| line.contains("memcache-segment") || line.contains(FILES)).count();
        (entries("/proc/self/task"), entries("/proc/self/fd"), segments)
    };
    let until = Instant::now() + Duration::from_secs(if expected.is_some() { 20 } else { 3 });
    while Some(census()) != expected && Instant::now() < until {
        thread::sleep(Duration::from_millis(50));
    }
    census()
}

fn serve(listen: Endpoint, ttl_ms: u64) -> MetaServer {
    let (reservation_ttl_ms, lease_ms, heartbeat_ms) = (ttl_ms, ttl_ms, 100);
    MetaServer::start(&MetaConfig { listen, reservation_ttl_ms, lease_ms, heartbeat_ms, ..MetaConfig::default() })
        .unwrap()
}

impl Pool {
    fn open() -> Self {
        Self::open_with(TTL_MS)
    }

    fn open_with(ttl_ms: u64) -> Self {
        let meta = serve(Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 0 }, ttl_ms);
        let address = meta.address().clone();
        let book = Book::open(address.clone()).unwrap();
        let stores = [ProtocolChoice::HostShm, ProtocolChoice::HostTcp].map(|one| Arc::new(open(&address, None, one)));
        let nodes = (0..NODES).map(|_| None).collect();
        let (known, counts) = (Vec::new(), Counts::default());
        let mut pool = Self { meta: Some(meta), address, book, nodes, stores, known, next: 1, counts };
        for index in 0..NODES {
            pool.start(index);
        }
        pool
    }

    /// A node that was killed comes back: as another life of itself, with what it held, or as another one, empty.
    fn start(&mut self, index: usize) {
        self.nodes[index] = Some(Node::start(&format!("node-{index}"), &self.address));
    }

    fn one_fault(&mut self, seed: u64) {
        let mut rng = Rng::new(seed);
        let victim = rng.index(NODES);
        let kind = match rng.index(24) {
            0..=2 => Some(self.kill(&mut rng, seed, victim)),
            3..=6 => Some(self.stop(&mut rng, seed, victim)),
            7..=13 => self.spoil_data(&mut rng, seed),
            14..=17 => self.spoil_control(&mut rng, seed),
            18 => Some(self.restart_meta(&mut rng, seed)),
            19 | 20 => Some(self.abandon(&mut rng, seed)),
            _ => self.change_memory(&mut rng, seed),
        };
        if let Some(kind) = kind {
            *self.counts.faults.entry(kind).or_default() += 1;
        }
        let store = self.store(&mut rng);
        self.call(&store, &mut rng, seed);
    }

    fn store(&self, rng: &mut Rng) -> Arc<Store> {
        Arc::clone(&self.stores[rng.index(2)])
    }

    /// Killed in the middle of a call, missed by another, and started again.
    fn kill(&mut self, rng: &mut Rng, seed: u64, victim: usize) -> &'static str {
        let (pause, node, store) = (some_pause(rng), self.nodes[victim].take(), self.store(rng));
        self.call_while(&store, rng, seed, move || {
            thread::sleep(pause);
            drop(node);
        });
        self.call(&store, rng, seed);
        self.start(victim);
        self.maybe_settle(rng);
        "node killed and started again"
    }

    /// Stopped for a while, which may be longer than the call waits.
    fn stop(&mut self, rng: &mut Rng, seed: u64, victim: usize) -> &'static str {
        let (pause, stop, store) = (some_pause(rng), Duration::from_millis(rng.below(150)), self.store(rng));
        let node = self.nodes[victim].take().unwrap();
        self.call_while(&store, rng, seed, || {
            thread::sleep(pause);
            node.signal("-STOP");
            thread::sleep(stop);
            node.signal("-CONT");
        });
        self.nodes[victim] = Some(node);
        "node stopped for a while"
    }

    /// The service starts again, knowing nothing, in the middle of a call.
    fn restart_meta(&mut self, rng: &mut Rng, seed: u64) -> &'static str {
        let (pause, address, store) = (some_pause(rng), self.address.clone(), self.store(rng));
        let meta = self.meta.take().unwrap();
        self.meta = Some(self.call_while(&store, rng, seed, move || {
            thread::sleep(pause);
            assert!(meta.stop(Duration::from_secs(5)), "the service does not stop");
            drop(meta);
            serve(address, TTL_MS)
        }));
        self.maybe_settle(rng);
        "MetaService started again"
    }

    /// Mostly waits until the pool works again, so that the next fault happens to one that does.
    fn maybe_settle(&self, rng: &mut Rng) {
        if rng.below(4) > 0 {
            self.wait_until_whole();
        }
    }

    fn wait_until_whole(&self) {
        let until = soon();
        loop {
            let status = self.stores.iter().map(|store| store.status(soon()));
            let whole = |status: pb::StatusReply| {
                let alive = status.nodes.iter().filter(|node| node.heartbeat_age_ms < 200 && !node.listing);
                alive.count() == NODES
            };
            if status.into_iter().all(|status| status.is_ok_and(|(_, status)| whole(status))) && self.book.is_up() {
                return;
            }
            assert!(Instant::now() < until, "the pool does not come back: {:?}", self.stores[0].status(soon()));
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A new store whose TCP connections to one node go through a proxy that does anything at all to them.
    fn spoil_data(&mut self, rng: &mut Rng, seed: u64) -> Option<&'static str> {
        let straight = self.known.iter().rev().take(10).find_map(|number| self.place(*number)?.0.tcp)?;
        let plan = Plan::random(rng, 2, 30_000, Duration::from_millis(100));
        let data = Proxy::start(&straight, plan).unwrap();
        let pass = Plan { mischief: Mischief::Pass, ..plan };
        let control = Proxy::start_with(&self.told(), pass, vec![(straight, data.address())]).unwrap();
        self.through(&control, rng, seed);
        data.has_struck().then(|| data_kind(plan.mischief))
    }

    /// A new store whose connections to the `MetaService` are cut, stalled or fall silent.
    fn spoil_control(&mut self, rng: &mut Rng, seed: u64) -> Option<&'static str> {
        let plan = loop {
            let plan = Plan::random(rng, 2, 800, Duration::from_millis(100));
            // Of what TCP lets through: bytes do not change on the way.
            if !matches!(plan.mischief, Mischief::Flip(_) | Mischief::Repeat(_) | Mischief::Lose(_) | Mischief::Swap(_))
            {
                break plan;
            }
        };
        let control = Proxy::start(&self.told(), plan).unwrap();
        self.through(&control, rng, seed);
        control.has_struck().then_some("control connection cut, stalled or silent")
    }

    fn through(&mut self, control: &Proxy, rng: &mut Rng, seed: u64) {
        let protocol = if rng.below(4) == 0 { ProtocolChoice::Auto } else { ProtocolChoice::HostTcp };
        let store = open(&control.address().parse().unwrap(), None, protocol);
        for _ in 0..2 + rng.index(3) {
            self.call(&store, rng, seed);
        }
        let started = Instant::now();
        store.close(started + Duration::from_millis(200));
        assert!(
            started.elapsed() < Duration::from_millis(200) + MARGIN,
            "seed {seed}: close took {:?}",
            started.elapsed()
        );
    }

    /// Where the service is, as an address without a scheme.
    fn told(&self) -> String {
        let Endpoint::Tcp { host, port } = &self.address else { panic!("not over TCP") };
        format!("{host}:{port}")
    }

    /// A writer that reserves and a reader that leases, and are never heard of again.
    fn abandon(&mut self, rng: &mut Rng, seed: u64) -> &'static str {
        let gone = Book::open(self.address.clone()).unwrap();
        let numbers = [self.next, self.next + 1];
        self.next += 2;
        let payload_bytes = numbers.iter().map(|number| value(*number).len() as u64).collect();
        let reserve =
            pb::Reserve { keys: Some(keys_to_wire(&keys(&numbers))), payload_bytes, ..pb::Reserve::default() };
        let answered = gone.call(request::Body::Reserve(reserve), soon());
        assert!(answered.is_ok(), "seed {seed}: {answered:?}");
        if let Some(number) = self.known.last() {
            let acquire = pb::Locate { keys: Some(keys_to_wire(&keys(&[*number]))), near: 0 };
            assert!(gone.call(request::Body::Locate(acquire), soon()).is_ok(), "seed {seed}");
        }
        // Some say goodbye, some just never seal.
        if rng.below(2) == 0 {
            gone.close();
        }
        "writer gone between reserve and seal"
    }

    fn call(&mut self, store: &Store, rng: &mut Rng, seed: u64) {
        self.call_while(store, rng, seed, || {});
    }

    /// A put or a get of some objects, with something else going on.
    fn call_while<T: Send>(&mut self, store: &Store, rng: &mut Rng, seed: u64, other: impl FnOnce() -> T + Send) -> T {
        let patience = Duration::from_millis(30 + rng.below(400));
        let is_put = self.known.is_empty() || rng.below(2) == 0;
        let numbers: Vec<u64> = (0..=rng.index(8))
            .map(|at| if is_put { self.next + at as u64 } else { self.known[rng.index(self.known.len())] })
            .collect();
        if is_put {
            self.next += numbers.len() as u64;
        }
        let sources = values(if is_put { &numbers } else { &[] });
        let (outcome, took, result) = thread::scope(|scope| {
            let other = scope.spawn(other);
            let started = Instant::now();
            let outcome = if is_put {
                Ok(store.put(&keys(&numbers), &sources, &PutOptions::default(), started + patience).unwrap())
            } else {
                Err(get(store, &numbers, started + patience))
            };
            (outcome, started.elapsed(), other.join().unwrap())
        });
        assert!(took < patience + MARGIN, "seed {seed}: a call of {patience:?} took {took:?}");
        let slowest = &mut self.counts.slowest_beyond_deadline;
        *slowest = (*slowest).max(took.saturating_sub(patience));
        match outcome {
            Ok(statuses) => self.note_put(&numbers, &statuses),
            Err(found) => self.note_get(&numbers, &found, seed),
        }
        result
    }

    fn note_put(&mut self, numbers: &[u64], statuses: &[PutStatus]) {
        for (number, status) in numbers.iter().zip(statuses) {
            if status.is_readable() {
                self.counts.stored += 1;
                self.known.push(*number);
            } else {
                self.counts.failures += 1;
            }
        }
        let len = self.known.len();
        self.known.drain(..len.saturating_sub(200));
    }

    fn note_get(&mut self, numbers: &[u64], found: &[(GetStatus, Vec<u8>)], seed: u64) {
        for (number, (status, bytes)) in numbers.iter().zip(found) {
            match status {
                GetStatus::Hit => {
                    assert!(*bytes == value(*number), "seed {seed}: wrong bytes of object {number}");
                    self.counts.hits += 1;
                }
                GetStatus::Miss => self.counts.misses += 1,
                GetStatus::Corrupt => self.counts.corrupt += 1,
                _ => self.counts.failures += 1,
            }
        }
    }

    /// Writes other bytes, or another generation, over an object behind everybody's back: it must not be read again.
    fn change_memory(&mut self, rng: &mut Rng, seed: u64) -> Option<&'static str> {
        let number = self.next;
        self.next += 1;
        let stored = put(&self.stores[0], &[number], &PutOptions::default(), soon());
        let (descriptor, extent) = self.place(number).filter(|_| stored == [PutStatus::Stored])?;
        let mut wrong = value(number);
        let options = FabricOptions { choice: ProtocolChoice::HostTcp, ..FabricOptions::default() };
        let link = Fabric::new(options).link(&descriptor, soon()).unwrap();
        let mut before = vec![0u8; wrong.len()];
        let into = ScatterList::single(before.as_mut_ptr().expose_provenance() as u64, before.len() as u64);
        let read = ReadOp { extent, payload_bytes: before.len() as u64, local: &into };
        // SAFETY: the vector outlives the call and nothing else touches it meanwhile.
        let mut trailer = unsafe { link.read(&[read], soon()) }.remove(0).unwrap();
        let kind = if rng.below(2) == 0 {
            let at = rng.index(wrong.len());
            wrong[at] ^= 1 << rng.index(8);
            "a bit of an object changed"
        } else {
            let mut found = Trailer::decode(&trailer).unwrap();
            found.generation = Generation::new(found.generation.get() ^ (1 << rng.index(20)));
            trailer = found.encode();
            "another generation in an object's place"
        };
        let local = ScatterList::single(wrong.as_ptr().expose_provenance() as u64, wrong.len() as u64);
        let op = WriteOp { extent, payload_bytes: wrong.len() as u64, local: &local, trailer: &trailer };
        // SAFETY: as above.
        assert_eq!(unsafe { link.write(&[op], soon()) }, [Ok(())]);
        for store in &self.stores {
            let (status, _) = get(store, &[number], soon()).remove(0);
            assert!(matches!(status, GetStatus::Corrupt | GetStatus::Miss), "seed {seed}: object {number}: {status:?}");
            self.counts.corrupt += 1;
        }
        Some(kind)
    }

    /// Where an object is, if it is anywhere.
    fn place(&self, number: u64) -> Option<(RegionDescriptor, Extent)> {
        let body = request::Body::Locate(pb::Locate { keys: Some(keys_to_wire(&keys(&[number]))), near: 0 });
        let reply::Body::Locate(found) = self.book.call(body, soon()).ok()?.body else { panic!("not Locate") };
        let segment = *found.segments.first().filter(|segment| **segment != 0)?;
        let body = request::Body::Describe(pb::Describe { segments: vec![segment] });
        let reply::Body::Describe(described) = self.book.call(body, soon()).ok()?.body else { panic!("not Describe") };
        let address = GlobalAddress::new(SegmentId::new(segment), found.offsets[0]);
        let extent = Extent::new(address, extent_bytes(found.payload_bytes[0])).unwrap();
        Some((RegionDescriptor::decode(&described.segments.first()?.descriptor).ok()?, extent))
    }

    fn status(&self) -> pb::StatusReply {
        match self.book.call(request::Body::Status(pb::Status {}), soon()).unwrap().body {
            reply::Body::Status(status) => status,
            other => panic!("not a Status reply: {other:?}"),
        }
    }

    fn node_id(&self, index: usize) -> NodeId {
        let name = format!("node-{index}");
        // Of several lives, the one that was heard of last.
        let nodes = self.status().nodes;
        let lives = nodes.iter().filter(|node| node.name == name);
        NodeId::new(lives.min_by_key(|node| node.heartbeat_age_ms).unwrap().node)
    }

    /// One batch with objects of two nodes, one of which is stopped until the other's objects have come.
    fn comes_beside_a_stopped_node(&mut self, store: &Store) {
        let numbers: Vec<u64> = (0..8).map(|at| self.next + at).collect();
        self.next += 8;
        for (index, number) in numbers.iter().enumerate() {
            let preferred = vec![self.node_id(index % NODES)];
            let options = PutOptions { preferred, ..PutOptions::default() };
            assert_eq!(put(store, &[*number], &options, soon()), [PutStatus::Stored]);
        }
        let healthy = numbers.iter().skip(1).step_by(NODES).map(|number| value(*number).len() as u64).sum::<u64>();
        let moved = || store.stats().host_shm_bytes + store.stats().host_tcp_bytes;
        let all = moved() + healthy;
        let node = self.nodes[0].as_ref().unwrap();
        node.signal("-STOP");
        let (came, found) = thread::scope(|scope| {
            let reader = scope.spawn(|| get(store, &numbers, soon()));
            while moved() < all && !reader.is_finished() {
                thread::sleep(Duration::from_millis(1));
            }
            let came = moved() >= all;
            node.signal("-CONT");
            (came, reader.join().unwrap())
        });
        assert!(came, "the healthy node's objects did not come while the other was stopped: {:?}", store.stats());
        for (index, (number, (status, bytes))) in numbers.iter().zip(&found).enumerate() {
            assert!(*status != GetStatus::Hit || *bytes == value(*number), "wrong bytes of {number}");
            assert!(index % NODES == 0 || *status == GetStatus::Hit, "an object of the healthy node: {status:?}");
        }
    }

    /// All objects are removed; what the book still counts then, beyond the time of a lease, is a leak.
    fn wait_until_nothing_is_held(&self) {
        self.wait_until_whole();
        let until = soon();
        loop {
            self.stores[0].remove_all(soon()).unwrap();
            let status = self.status();
            if [status.reservations, status.leases, status.objects, status.used_bytes] == [0; 4] {
                return;
            }
            assert!(Instant::now() < until, "left behind: {status:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.nodes.clear();
        for store in &self.stores {
            store.close(soon());
        }
        self.book.close();
        self.meta.take().unwrap().stop(Duration::from_secs(5));
        (0..NODES).filter_map(|index| file_of(&format!("node-{index}"))).for_each(|file| drop(fs::remove_file(file)));
    }
}

fn some_pause(rng: &mut Rng) -> Duration {
    Duration::from_micros(rng.below(4_000))
}

const fn data_kind(mischief: Mischief) -> &'static str {
    match mischief {
        Mischief::Flip(_) => "data connection: a bit changed",
        Mischief::Repeat(_) | Mischief::Lose(_) | Mischief::Swap(_) => {
            "data connection: bytes repeated, lost or swapped"
        }
        Mischief::Stall(_) => "data connection stalled",
        Mischief::Pass | Mischief::Silence | Mischief::NeverAnswer => "data connection silent",
        Mischief::Cut | Mischief::Truncate | Mischief::HalfOpen => "data connection cut or half open",
    }
}
