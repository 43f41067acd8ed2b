//! All paths against the twin device, through a real pool: byte-exact both ways, trailers and checksums kept, and nothing
//! written after a call has ended.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on says where; an owner in a process of its own talks on stdout"
)]

#[path = "paths/pool.rs"]
mod pool;
#[path = "paths/relay.rs"]
mod relay;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_client::path::costs::CostSource;
use memcache_client::{Buffers, Checksums, PutOptions, Store, StoreOptions};
use memcache_device::{Direction, TwinCost, TwinDevice, TwinFault, TwinOptions, TwinTime};
use memcache_testkit::rng::{Rng, pattern};
use memcache_transport::ProtocolChoice;
use memcache_transport::plan::{CostModel, Leg, LegCost, Path, PathChoice, Way};
use memcache_types::{GetStatus, Piece, PutStatus, ScatterList};

use pool::{ARENA, Tensors, meta, names, options, other_twin, relaying, soon, twin};

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
    let _owner = Store::open(&relaying(&meta, 16 << 20, &other_twin())).unwrap();
    for path in Path::ALL {
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
        (Leg::LinkToDevice, Direction::LinkToDevice),
        (Leg::DeviceToLink, Direction::DeviceToLink),
    ];
    for (leg, direction) in legs {
        costs = costs.with(leg, cost_of(options.costs[direction as usize]));
    }
    costs
}

fn cost_of(TwinCost { batch_ns, copy_ns, bytes_per_s }: TwinCost) -> LegCost {
    LegCost { batch_ns, piece_ns: copy_ns, bytes_per_s }
}

/// Whether the plans' times are those the device accounts, with an owner's device that copies at this speed and a link that
/// does at that; the paths chosen.
fn predicted_is_accounted(far_bytes_per_s: u64, link_bytes_per_s: u64) -> BTreeSet<Path> {
    let meta = meta();
    let time = TwinTime::Virtual;
    let mut twin_options = TwinOptions { arena_bytes: ARENA, batch_copies_max: 1000, time, ..TwinOptions::default() };
    let mut far_options = TwinOptions { ordinal: 1, ..twin_options };
    for direction in [Direction::PeerToDevice, Direction::DeviceToPeer] {
        far_options.costs[direction as usize].bytes_per_s = far_bytes_per_s;
    }
    for direction in [Direction::LinkToDevice, Direction::DeviceToLink] {
        twin_options.costs[direction as usize].bytes_per_s = link_bytes_per_s;
    }
    let (device, far) = (TwinDevice::new(twin_options).unwrap(), TwinDevice::new(far_options).unwrap());
    let _owner = Store::open(&relaying(&meta, 24 << 20, &far)).unwrap();
    let relay = cost_of(far_options.costs[Direction::PeerToDevice as usize]);
    let costs = CostSource::Fixed(Box::new(costs_of(&twin_options).with(Leg::Relay, relay)));
    let store = |path| {
        let (costs, checksums) = (costs.clone(), Checksums::Off);
        Store::open(&StoreOptions { path, costs, checksums, ..options(&meta, 0) }).unwrap()
    };
    let auto = store(PathChoice::Auto);
    let forced = Path::ALL.map(|path| (path, store(PathChoice::Forced(path))));
    let mut chosen = BTreeSet::new();
    for (number, (bytes, pieces)) in
        [(256, 1), (1 << 20, 1), (122 * 1024, 122), (1 << 20, 1024), (1 << 20, 4096), (4 << 20, 4), (3_000_001, 122)]
            .into_iter()
            .enumerate()
    {
        let tensors = Tensors::new(&device, &[(bytes, pieces); 3], &mut Rng::new(number as u64));
        let buffers = tensors.buffers();
        let keys = names(&number.to_string(), 3);
        let mut fastest = u64::MAX;
        for (path, store) in &forced {
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
        assert_eq!(auto.put(&keys, &buffers, &PutOptions::default(), soon()).unwrap(), [PutStatus::Stored; 3]);
        let plan = &auto.explain_plan(Way::Get, &buffers).unwrap()[0];
        assert_eq!(plan.predicted_ns(), fastest, "another path than the fastest:\n{plan}");
        chosen.extend(plan.groups.iter().map(|group| group.path));
        assert_eq!(auto.remove(&keys, soon()).unwrap(), [true; 3]);
    }
    chosen
}

#[test]
fn what_is_predicted_is_what_the_device_accounts() {
    let chosen = predicted_is_accounted(2_000_000_000, 3_000_000_000);
    assert!(chosen.len() > 1, "one path was best everywhere: {chosen:?}");
    let chosen = predicted_is_accounted(20_000_000_000, 20_000_000_000);
    assert!(chosen.contains(&Path::Relay), "a fast link was never taken: {chosen:?}");
}
