//! All paths against the twin device, through a real pool: byte-exact both ways, trailers and checksums kept, and nothing
//! written after a call has ended.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_client::path::StagingOptions;
use memcache_client::path::costs::CostSource;

use memcache_client::{Buffers, Checksums, LocalOptions, PutOptions, RelayOptions, Store, StoreOptions};
use memcache_config::{Endpoint, MetaConfig};
use memcache_device::{Device, Direction, Space, TwinDevice, TwinFault, TwinOptions, TwinTime};
use memcache_meta::MetaServer;
use memcache_testkit::rng::{Rng, pattern};
use memcache_transport::ProtocolChoice;
use memcache_transport::plan::{CostModel, Leg, LegCost, Path, PathChoice, Way};
use memcache_types::{GetStatus, KeyBatch, Piece, PutStatus, ScatterList};

const ARENA: u64 = 64 << 20;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn meta() -> MetaServer {
    let listen = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
    MetaServer::start(&MetaConfig { listen, ..MetaConfig::default() }).unwrap()
}

fn options(meta: &MetaServer, lend: u64) -> StoreOptions {
    let lend = (lend > 0).then(|| LocalOptions {
        name: "test".to_owned(),
        prefault: false,
        records: 16,
        repair_bytes_per_s: 1 << 30,
        ..LocalOptions::new(lend)
    });
    StoreOptions {
        lend,
        transfer_threads: 2,
        costs: CostSource::Fixed(Box::default()),
        staging: STAGING,
        ..StoreOptions::new(meta.address().clone())
    }
}

const STAGING: StagingOptions = StagingOptions { slot_bytes: 256 << 10, slots: 2, transfers_max: 2 };

/// An owner that relays through this device.
fn relaying(meta: &MetaServer, lend: u64, device: &TwinDevice) -> StoreOptions {
    let mut options = options(meta, lend);
    let relay = RelayOptions { device: Arc::new(device.clone()), staging: STAGING };
    options.lend = options.lend.map(|lend| LocalOptions { relay: Some(relay), ..lend });
    options
}

/// The device of an owner.
fn other_twin() -> TwinDevice {
    let time = TwinTime::Virtual;
    TwinDevice::new(TwinOptions { ordinal: 1, arena_bytes: 8 << 20, time, ..TwinOptions::default() }).unwrap()
}

fn twin(batch_copies_max: usize) -> TwinDevice {
    let time = TwinTime::Virtual;
    TwinDevice::new(TwinOptions { arena_bytes: ARENA, batch_copies_max, time, ..TwinOptions::default() }).unwrap()
}

/// Tensors in a twin: one allocation, objects in pieces of any length with gaps between them.
struct Tensors {
    lists: Vec<ScatterList>,
    memory: memcache_device::Allocation,
    device: TwinDevice,
}

impl Tensors {
    fn new(device: &TwinDevice, shapes: &[(usize, usize)], rng: &mut Rng) -> Self {
        let total: usize = shapes.iter().map(|(bytes, pieces)| bytes + pieces * 70).sum();
        let memory = device.allocate(Space::Device, total as u64).unwrap();
        device.plant(memory.address(), &vec![0xa5; total]);
        let mut at = memory.address();
        let lists = shapes
            .iter()
            .map(|(bytes, pieces)| {
                let mut cuts: Vec<usize> = (1..*pieces).map(|_| rng.index(bytes + 1)).collect();
                cuts.extend([0, *bytes]);
                cuts.sort_unstable();
                let piece = |cut: &[usize]| {
                    let piece = Piece { address: at + rng.below(70), bytes: (cut[1] - cut[0]) as u64 };
                    at = piece.address + piece.bytes;
                    piece
                };
                cuts.windows(2).map(piece).collect()
            })
            .collect();
        Self { lists, memory, device: device.clone() }
    }

    fn buffers(&self) -> Buffers {
        // SAFETY: the allocation is held by its keep, and nobody else uses it during a call.
        unsafe { Buffers::on_device(self.lists.clone(), self.memory.keep(), Arc::new(self.device.clone())) }
    }

    fn fill(&self, index: usize, object: &[u8]) {
        let mut rest = object;
        for piece in self.lists[index].pieces() {
            let (part, after) = rest.split_at(usize::try_from(piece.bytes).unwrap());
            self.device.plant(piece.address, part);
            rest = after;
        }
    }

    fn object(&self, index: usize) -> Vec<u8> {
        let pieces = self.lists[index].pieces().iter();
        pieces.flat_map(|piece| self.device.inspect(piece.address, usize::try_from(piece.bytes).unwrap())).collect()
    }

    /// Panics if a byte outside the pieces has changed.
    fn check_guards(&self) {
        let mut all = self.device.inspect(self.memory.address(), usize::try_from(self.memory.bytes()).unwrap());
        for piece in self.lists.iter().flat_map(ScatterList::pieces) {
            let start = usize::try_from(piece.address - self.memory.address()).unwrap();
            all[start..start + usize::try_from(piece.bytes).unwrap()].fill(0xa5);
        }
        assert!(all.iter().all(|byte| *byte == 0xa5), "bytes outside the pieces were written");
    }
}

fn names(prefix: &str, count: usize) -> KeyBatch {
    let names: Vec<String> = (0..count).map(|at| format!("{prefix}/{at}")).collect();
    KeyBatch::from_keys(&names).unwrap()
}

const SHAPES: [(usize, usize); 9] =
    [(0, 1), (1, 1), (63, 3), (64, 1), (4096, 122), (100_000, 7), (262_144, 1), (1_000_003, 122), (700_000, 900)];

fn round_trip(path: Path, protocol: ProtocolChoice, checksums: Checksums, batch: usize) {
    let meta = meta();
    let theirs = other_twin();
    let _owner = Store::open(&relaying(&meta, 16 << 20, &theirs)).unwrap();
    let choice = PathChoice::Forced(path);
    let store = Store::open(&StoreOptions { path: choice, protocol, checksums, ..options(&meta, 0) }).unwrap();
    let device = twin(batch);
    let mut rng = Rng::new(path.number() as u64);
    let keys = names("object", SHAPES.len());
    let objects: Vec<Vec<u8>> = SHAPES.iter().map(|(bytes, _)| pattern(*bytes as u64, *bytes)).collect();
    let sources = Tensors::new(&device, &SHAPES, &mut rng);
    objects.iter().enumerate().for_each(|(at, object)| sources.fill(at, object));
    let put = store.put(&keys, &sources.buffers(), &PutOptions::default(), soon()).unwrap();
    assert_eq!(put, [PutStatus::Stored; SHAPES.len()], "{path} {protocol}");

    // Into other pieces of the device, and into host memory by a store that knows no device.
    let targets = Tensors::new(&device, &SHAPES, &mut rng);
    let got = store.get(&keys, &targets.buffers(), soon()).unwrap();
    assert_eq!(got, [GetStatus::Hit; SHAPES.len()], "{path} {protocol}");
    for (at, object) in objects.iter().enumerate() {
        assert!(&targets.object(at) == object, "object {at} over {path} came back otherwise");
    }
    targets.check_guards();
    sources.check_guards();
    let plain = Store::open(&StoreOptions { checksums: Checksums::Always, ..options(&meta, 0) }).unwrap();
    let mut host: Vec<Vec<u8>> = objects.iter().map(|object| vec![0; object.len()]).collect();
    let lists = host.iter_mut().map(|one| ScatterList::single(one.as_mut_ptr() as u64, one.len() as u64)).collect();
    // SAFETY: the vectors outlive the call and nothing else touches them meanwhile.
    let into = unsafe { Buffers::new(lists, Arc::new(())) };
    assert_eq!(plain.get(&keys, &into, soon()).unwrap(), [GetStatus::Hit; SHAPES.len()]);
    assert!(host == objects, "the pool holds other bytes than the device had");
    let stats = store.stats();
    let moved = [stats.path0_bytes, stats.path1_bytes, stats.path2_bytes, stats.path3_bytes];
    let bytes: usize = SHAPES.iter().map(|(bytes, _)| 2 * bytes).sum();
    assert_eq!(moved[path.number()], bytes as u64);
    assert_eq!(moved.iter().sum::<u64>(), bytes as u64, "another path was taken");
    let staging = device.used_bytes()
        - sources.memory.bytes().next_multiple_of(256)
        - targets.memory.bytes().next_multiple_of(256);
    assert!(staging <= 2 * 2 * (256 << 10), "{staging} bytes of staging");
}

#[test]
fn path_0_over_shared_memory() {
    round_trip(Path::Host, ProtocolChoice::HostShm, Checksums::Always, 4096);
    round_trip(Path::Host, ProtocolChoice::HostShm, Checksums::Off, 64);
}

#[test]
fn path_0_over_tcp() {
    round_trip(Path::Host, ProtocolChoice::HostTcp, Checksums::Always, 4096);
    round_trip(Path::Host, ProtocolChoice::HostTcp, Checksums::Off, 64);
}

#[test]
fn path_1() {
    for protocol in [ProtocolChoice::HostShm, ProtocolChoice::HostTcp] {
        round_trip(Path::Relay, protocol, Checksums::Always, 4096);
        round_trip(Path::Relay, protocol, Checksums::Off, 64);
    }
}

#[test]
fn path_2() {
    round_trip(Path::Staged, ProtocolChoice::HostShm, Checksums::Always, 4096);
    round_trip(Path::Staged, ProtocolChoice::HostShm, Checksums::Off, 64);
}

#[test]
fn path_3() {
    round_trip(Path::Direct, ProtocolChoice::HostShm, Checksums::Always, 4096);
    round_trip(Path::Direct, ProtocolChoice::HostShm, Checksums::Off, 64);
}

#[test]
fn a_path_that_does_not_lead_there_fails_and_auto_takes_another() {
    let meta = meta();
    let owner = Store::open(&options(&meta, 16 << 20)).unwrap();
    let device = twin(4096);
    let source = Tensors::new(&device, &[(1000, 3)], &mut Rng::new(1));
    source.fill(0, &pattern(1, 1000));
    let keys = names("k", 1);
    for path in [Path::Relay, Path::Direct, Path::Staged] {
        let choice = PathChoice::Forced(path);
        let tcp = StoreOptions { path: choice, protocol: ProtocolChoice::HostTcp, ..options(&meta, 0) };
        let store = Store::open(&tcp).unwrap();
        let put = store.put(&keys, &source.buffers(), &PutOptions::default(), soon()).unwrap();
        assert_eq!(put, [PutStatus::Invalid], "{path}");
    }
    let store = Store::open(&StoreOptions { protocol: ProtocolChoice::HostTcp, ..options(&meta, 0) }).unwrap();
    assert_eq!(store.put(&keys, &source.buffers(), &PutOptions::default(), soon()).unwrap(), [PutStatus::Stored]);
    assert_eq!(store.stats().path0_bytes, 1000);
    drop(owner);
}

#[test]
fn host_memory_can_be_staged_too() {
    let meta = meta();
    let _owner = Store::open(&options(&meta, 16 << 20)).unwrap();
    let choice = PathChoice::Forced(Path::Staged);
    let store = Store::open(&StoreOptions { path: choice, ..options(&meta, 0) }).unwrap();
    let object = pattern(3, 1_000_003);
    let keys = names("k", 1);
    let sources = Buffers::from_owned(vec![object.clone()]);
    assert_eq!(store.put(&keys, &sources, &PutOptions::default(), soon()).unwrap(), [PutStatus::Stored]);
    let mut target = vec![0u8; object.len()];
    let base = target.as_mut_ptr() as u64;
    let list = [(300_000, 700_003), (0, 300_000)].map(|(at, bytes)| Piece { address: base + at, bytes });
    // SAFETY: the vector outlives the call and nothing else touches it meanwhile.
    let into = unsafe { Buffers::new(vec![list.into_iter().collect()], Arc::new(())) };
    assert_eq!(store.get(&keys, &into, soon()).unwrap(), [GetStatus::Hit]);
    assert!(target[300_000..] == object[..700_003] && target[..300_000] == object[700_003..]);
    assert_eq!(store.stats().path2_bytes, 2 * 1_000_003);
}

#[test]
fn a_device_that_fails_or_stalls_fails_the_call_and_works_again() {
    let meta = meta();
    let _owner = Store::open(&options(&meta, 16 << 20)).unwrap();
    for path in [Path::Host, Path::Staged, Path::Direct] {
        let choice = PathChoice::Forced(path);
        let store = Store::open(&StoreOptions { path: choice, ..options(&meta, 0) }).unwrap();
        let device = twin(4096);
        let tensors = Tensors::new(&device, &[(600_000, 50)], &mut Rng::new(2));
        let object = pattern(9, 600_000);
        tensors.fill(0, &object);
        let keys = names(path.name(), 1);
        device.inject([TwinFault::Fail]);
        let put = |until| store.put(&keys, &tensors.buffers(), &PutOptions::default(), until).unwrap()[0];
        assert_eq!(put(soon()), PutStatus::Unavailable, "{path}");
        device.inject([TwinFault::Pass, TwinFault::Stall]);
        let asked = Instant::now();
        let stalled = put(asked + Duration::from_millis(200));
        if path == Path::Direct {
            // One batch: the fault that stalls is still to come.
            assert_eq!(stalled, PutStatus::Stored);
            let got = store.get(&keys, &tensors.buffers(), Instant::now() + Duration::from_millis(200)).unwrap();
            assert_eq!(got, [GetStatus::Timeout]);
        } else {
            assert_eq!(stalled, PutStatus::Timeout, "{path}");
            assert_eq!(put(soon()), PutStatus::Stored, "{path}: the key is free and the device works");
        }
        assert!(asked.elapsed() < Duration::from_secs(10), "{path}: a stalled device held up the call");
        assert_eq!(store.get(&keys, &tensors.buffers(), soon()).unwrap(), [GetStatus::Hit], "{path}");
        assert!(tensors.object(0) == object, "{path}");
    }
}

#[test]
fn a_wedged_device_keeps_the_tensors_and_is_not_used_again() {
    let meta = meta();
    let _owner = Store::open(&options(&meta, 16 << 20)).unwrap();
    let store = Store::open(&StoreOptions { path: PathChoice::Forced(Path::Direct), ..options(&meta, 0) }).unwrap();
    let device = twin(4096);
    let tensors = Tensors::new(&device, &[(1000, 2)], &mut Rng::new(2));
    let token = Arc::new(());
    let owner = Arc::new((Arc::clone(&token), tensors.memory.keep()));
    // SAFETY: the allocation is held by its keep, and nobody else uses it.
    let buffers = unsafe { Buffers::on_device(tensors.lists.clone(), owner, Arc::new(device.clone())) };
    device.inject([TwinFault::Wedge]);
    let keys = names("k", 1);
    let until = Instant::now() + Duration::from_millis(100);
    let put = store.put(&keys, &buffers, &PutOptions::default(), until).unwrap();
    assert_ne!(put, [PutStatus::Stored]);
    drop(buffers);
    assert_eq!(Arc::strong_count(&token), 2, "tensors let go while the device may still read them");
    device.unwedge();
    let until = soon();
    while Arc::strong_count(&token) > 1 {
        assert!(Instant::now() < until, "never let go");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn automatic_choice_moves_each_object_its_own_way() {
    let meta = meta();
    let _owner = Store::open(&options(&meta, 16 << 20)).unwrap();
    let store = Store::open(&StoreOptions { checksums: Checksums::Off, ..options(&meta, 0) }).unwrap();
    let device = twin(4096);
    let shapes = [(1 << 20, 1), (200_000, 1000)];
    let tensors = Tensors::new(&device, &shapes, &mut Rng::new(5));
    let keys = names("k", 2);
    assert_eq!(store.put(&keys, &tensors.buffers(), &PutOptions::default(), soon()).unwrap(), [PutStatus::Stored; 2]);
    let stats = store.stats();
    assert_eq!((stats.path2_bytes, stats.path3_bytes), (200_000, 1 << 20));
}

/// The costs a twin has, as a model of the legs to and from it; links and checksums cost nothing in virtual time.
fn costs_of(options: &TwinOptions) -> CostModel {
    let mut costs = CostModel::uniform(LegCost::FREE);
    let legs = [
        (Leg::HostToDevice, Direction::HostToDevice),
        (Leg::DeviceToHost, Direction::DeviceToHost),
        (Leg::DeviceLocal, Direction::Local),
        (Leg::PeerToDevice, Direction::PeerToDevice),
        (Leg::DeviceToPeer, Direction::DeviceToPeer),
    ];
    for (leg, direction) in legs {
        let cost = options.costs[direction as usize];
        let (batch_ns, piece_ns, bytes_per_s) = (cost.batch_ns, cost.copy_ns, cost.bytes_per_s);
        costs = costs.with(leg, LegCost { batch_ns, piece_ns, bytes_per_s });
    }
    costs
}

#[test]
fn what_is_predicted_is_what_the_device_accounts() {
    let meta = meta();
    let _owner = Store::open(&options(&meta, 24 << 20)).unwrap();
    let time = TwinTime::Virtual;
    let twin_options = TwinOptions { arena_bytes: ARENA, batch_copies_max: 1000, time, ..TwinOptions::default() };
    let device = TwinDevice::new(twin_options).unwrap();
    let costs = CostSource::Fixed(Box::new(costs_of(&twin_options)));
    let store = |path| {
        let (costs, checksums) = (costs.clone(), Checksums::Off);
        Store::open(&StoreOptions { path, costs, checksums, ..options(&meta, 0) }).unwrap()
    };
    let auto = store(PathChoice::Auto);
    let mut chosen = BTreeSet::new();
    for (number, (bytes, pieces)) in
        [(256, 1), (1 << 20, 1), (122 * 1024, 122), (1 << 20, 1024), (1 << 20, 4096), (4 << 20, 4), (3_000_001, 122)]
            .into_iter()
            .enumerate()
    {
        let shapes = vec![(bytes, pieces); 3];
        let tensors = Tensors::new(&device, &shapes, &mut Rng::new(number as u64));
        let buffers = tensors.buffers();
        let keys = names(&number.to_string(), 3);
        let mut fastest = u64::MAX;
        for path in [Path::Host, Path::Staged, Path::Direct] {
            let store = store(PathChoice::Forced(path));
            for way in [Way::Put, Way::Get] {
                let before = device.now_ns();
                match way {
                    Way::Put => {
                        let put = store.put(&keys, &buffers, &PutOptions::default(), soon()).unwrap();
                        assert_eq!(put, [PutStatus::Stored; 3]);
                    }
                    Way::Get => assert_eq!(store.get(&keys, &buffers, soon()).unwrap(), [GetStatus::Hit; 3]),
                }
                let took = device.now_ns() - before;
                let plans = store.explain_plan(way, &buffers).unwrap();
                assert_eq!(plans[0].predicted_ns(), took, "{way} of 3 x {bytes} bytes in {pieces} pieces over {path}");
                if way == Way::Get {
                    fastest = fastest.min(took);
                }
            }
            assert_eq!(store.remove(&keys, soon()).unwrap(), [true; 3]);
        }
        let plan = &auto.explain_plan(Way::Get, &buffers).unwrap()[0];
        assert_eq!(plan.predicted_ns(), fastest, "another path than the fastest:\n{plan}");
        chosen.extend(plan.groups.iter().map(|group| group.path));
    }
    assert!(chosen.len() > 1, "one path was best everywhere: {chosen:?}");
}
