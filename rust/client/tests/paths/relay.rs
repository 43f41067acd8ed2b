//! What can go wrong on path 1, and must not become wrong bytes, a hang or a leak.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use memcache_client::path::StagingOptions;
use memcache_client::{Checksums, LocalOptions, PutOptions, RelayOptions, Store, StoreOptions};
use memcache_config::Endpoint;
use memcache_device::{Direction, TwinDevice, TwinFault};
use memcache_meta::MetaServer;
use memcache_testkit::rng::{Rng, pattern};
use memcache_transport::ProtocolChoice;
use memcache_transport::plan::{Path, PathChoice, Way};
use memcache_types::{GetStatus, PutStatus};

use crate::pool::{STAGING, Tensors, meta, names, options, other_twin, relaying, soon, twin};

const FORCED: PathChoice = PathChoice::Forced(Path::Relay);

fn reader(meta: &MetaServer, path: PathChoice) -> Store {
    Store::open(&StoreOptions { path, ..options(meta, 0) }).unwrap()
}

/// One object of 600,000 bytes in 50 pieces, with these bytes in its tensors.
fn tensors(device: &TwinDevice, object: &[u8]) -> Tensors {
    let tensors = Tensors::new(device, &[(object.len(), 50)], &mut Rng::new(2));
    tensors.fill(0, object);
    tensors
}

fn put(store: &Store, name: &str, tensors: &Tensors, until: Instant) -> PutStatus {
    store.put(&names(name, 1), &tensors.buffers(), &PutOptions::default(), until).unwrap()[0]
}

fn get(store: &Store, name: &str, tensors: &Tensors, until: Instant) -> GetStatus {
    store.get(&names(name, 1), &tensors.buffers(), until).unwrap()[0]
}

/// Waits for something that threads elsewhere bring about.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = soon();
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_forced_relay_that_is_not_there_is_an_error_that_says_so() {
    let meta = meta();
    let _owner = Store::open(&options(&meta, 16 << 20)).unwrap();
    let device = twin(4096);
    let object = pattern(1, 1000);
    let source = Tensors::new(&device, &[(1000, 3)], &mut Rng::new(1));
    source.fill(0, &object);
    let store = reader(&meta, FORCED);
    assert_eq!(put(&store, "k", &source, soon()), PutStatus::Invalid);
    let said = store.explain_plan(Way::Get, &source.buffers()).unwrap_err().to_string();
    assert!(said.contains("path 1 to host_shm is not possible: its owner offers no relay"), "{said}");
    assert_eq!(put(&reader(&meta, PathChoice::Auto), "k", &source, soon()), PutStatus::Stored);
}

#[test]
fn what_an_owner_cannot_relay_through_is_refused_when_it_starts() {
    let meta = meta();
    let offer = |device: &TwinDevice, protocol| {
        let mut options = relaying(&meta, 16 << 20, device);
        options.lend = options.lend.map(|lend| LocalOptions { protocol, ..lend });
        Store::open(&options).map(drop).map_err(|error| error.to_string())
    };
    let said = offer(&other_twin(), ProtocolChoice::HostShm).unwrap_err();
    assert!(said.contains("host_tcp"), "{said}");
    let narrow = memcache_device::TwinOptions { ordinal: 2, links: false, ..Default::default() };
    let said = offer(&TwinDevice::new(narrow).unwrap(), ProtocolChoice::Auto).unwrap_err();
    assert!(said.contains("link to other devices"), "{said}");
    let small = memcache_device::TwinOptions { ordinal: 2, arena_bytes: 1 << 20, ..Default::default() };
    let device = TwinDevice::new(small).unwrap();
    let mut options = relaying(&meta, 16 << 20, &device);
    let staging = StagingOptions { transfers_max: 100, ..STAGING };
    let relay = RelayOptions { device: Arc::new(device.clone()), staging };
    options.lend = options.lend.map(|lend| LocalOptions { relay: Some(relay), ..lend });
    let said = Store::open(&options).map(drop).unwrap_err().to_string();
    assert!(said.contains("no room"), "{said}");
    assert_eq!(device.used_bytes(), 0);
}

#[test]
fn an_owners_device_that_fails_or_stalls_fails_the_call_and_works_again() {
    let meta = meta();
    let theirs = other_twin();
    let _owner = Store::open(&relaying(&meta, 16 << 20, &theirs)).unwrap();
    let store = reader(&meta, FORCED);
    let device = twin(4096);
    let object = pattern(9, 600_000);
    let tensors = tensors(&device, &object);
    // Every batch in turn fails or stalls: three steps a transfer.
    for (at, fault) in (0..3).flat_map(|at| [(at, TwinFault::Fail), (at, TwinFault::Stall)]) {
        let name = format!("{at}{fault:?}");
        let faults = || vec![TwinFault::Pass; at].into_iter().chain([fault.clone()]);
        theirs.inject(faults());
        let asked = Instant::now();
        let wait = Duration::from_millis(200);
        let broken = put(&store, &name, &tensors, asked + wait);
        assert!(matches!(broken, PutStatus::Unavailable | PutStatus::Timeout), "{name}: {broken:?}");
        assert_eq!(put(&store, &name, &tensors, soon()), PutStatus::Stored, "{name}");
        theirs.inject(faults());
        let broken = get(&store, &name, &tensors, Instant::now() + wait);
        assert!(!matches!(broken, GetStatus::Hit), "{name}: {broken:?}");
        assert_eq!(get(&store, &name, &tensors, soon()), GetStatus::Hit, "{name}");
        assert!(tensors.object(0) == object, "{name}");
        assert!(asked.elapsed() < Duration::from_secs(10), "{name}: a stalled device held up the call");
    }
    // A get that may take any path takes another one.
    theirs.inject([TwinFault::Fail; 1]);
    let auto = reader(&meta, PathChoice::Auto);
    assert_eq!(get(&auto, "0Fail", &tensors, soon()), GetStatus::Hit);
    assert!(tensors.object(0) == object);
}

#[test]
fn a_device_that_stops_answering_under_an_owner_is_not_relayed_through_again() {
    let meta = meta();
    let theirs = other_twin();
    let _owner = Store::open(&relaying(&meta, 16 << 20, &theirs)).unwrap();
    let store = reader(&meta, FORCED);
    let device = twin(4096);
    let tensors = tensors(&device, &pattern(9, 600_000));
    assert_eq!(put(&store, "before", &tensors, soon()), PutStatus::Stored);
    theirs.inject([TwinFault::Wedge]);
    let broken = put(&store, "k", &tensors, Instant::now() + Duration::from_millis(100));
    assert_ne!(broken, PutStatus::Stored);
    until("the owner has given its device up", || get(&store, "before", &tensors, soon()) != GetStatus::Hit);
    theirs.unwedge();
    let auto = reader(&meta, PathChoice::Auto);
    assert_eq!(get(&auto, "before", &tensors, soon()), GetStatus::Hit, "there are other paths");
}

#[test]
fn an_owner_that_goes_in_the_middle_ends_the_call_and_keeps_nothing() {
    let meta = meta();
    let device = twin(4096);
    let object = pattern(9, 600_000);
    let tensors = tensors(&device, &object);
    let used = device.used_bytes();
    for is_put in [true, false] {
        let theirs = other_twin();
        let owner = Store::open(&relaying(&meta, 16 << 20, &theirs)).unwrap();
        let store = reader(&meta, FORCED);
        if !is_put {
            assert_eq!(put(&store, "k", &tensors, soon()), PutStatus::Stored);
        }
        theirs.inject([TwinFault::Pass, TwinFault::Stall]);
        let before = theirs.submitted(Direction::PeerToDevice).0 + theirs.submitted(Direction::DeviceToPeer).0;
        thread::scope(|scope| {
            let caller = scope.spawn(|| {
                let deadline = Instant::now() + Duration::from_millis(500);
                if is_put {
                    assert_ne!(put(&store, "k", &tensors, deadline), PutStatus::Stored);
                } else {
                    assert_ne!(get(&store, "k", &tensors, deadline), GetStatus::Hit);
                }
            });
            until("the second batch is under way", || {
                theirs.submitted(Direction::PeerToDevice).0 + theirs.submitted(Direction::DeviceToPeer).0 >= before + 2
            });
            owner.close(Instant::now() + Duration::from_millis(100));
            caller.join().unwrap();
        });
        drop((owner, store));
        until("the owner's staging is freed", || theirs.used_bytes() == 0);
        assert_eq!(device.used_bytes(), used, "staging of a store that is gone");
    }
}

#[test]
fn staging_at_the_owner_is_bounded_and_whoever_finds_none_waits_or_goes_elsewhere() {
    let meta = meta();
    let theirs = other_twin();
    let mut lending = relaying(&meta, 16 << 20, &theirs);
    let staging = StagingOptions { transfers_max: 1, ..STAGING };
    let relay = RelayOptions { device: Arc::new(theirs.clone()), staging };
    lending.lend = lending.lend.map(|lend| LocalOptions { relay: Some(relay), ..lend });
    let _owner = Store::open(&lending).unwrap();
    assert_eq!(theirs.used_bytes(), 2 * (256 << 10));
    let (holder, forced, auto) = (reader(&meta, FORCED), reader(&meta, FORCED), reader(&meta, PathChoice::Auto));
    // The holder has a device of its own, which stalls with the owner's only set in its hands.
    let (stalling, device) = (twin(4096), twin(4096));
    let object = pattern(9, 600_000);
    let (held, tensors) = (tensors(&stalling, &object), tensors(&device, &object));
    assert_eq!(put(&forced, "k", &tensors, soon()), PutStatus::Stored);
    stalling.inject([TwinFault::Stall]);
    thread::scope(|scope| {
        let holding = Instant::now() + Duration::from_millis(1500);
        let caller = scope.spawn({
            let (holder, held) = (&holder, &held);
            move || get(holder, "k", held, holding)
        });
        until("the set is taken", || stalling.submitted(Direction::LinkToDevice).0 > 0);
        assert_eq!(get(&forced, "k", &tensors, Instant::now() + Duration::from_millis(50)), GetStatus::Timeout);
        assert_eq!(get(&auto, "k", &tensors, soon()), GetStatus::Hit);
        assert_eq!(auto.stats().path1_bytes, 0, "there was no set for it");
        assert_eq!(get(&forced, "k", &tensors, soon()), GetStatus::Hit, "the set came back within the deadline");
        assert_ne!(caller.join().unwrap(), GetStatus::Hit);
    });
    assert!(tensors.object(0) == object);
    assert_eq!(theirs.used_bytes(), 2 * (256 << 10));
}

#[test]
fn a_damaged_payload_or_trailer_is_no_hit() {
    let meta = meta();
    let theirs = other_twin();
    let file = std::path::PathBuf::from(format!("/dev/shm/memcache-relay-{}", std::process::id()));
    let mut lending = relaying(&meta, 16 << 20, &theirs);
    lending.lend = lending.lend.map(|lend| LocalOptions { persist: Some(file.clone()), ..lend });
    let owner = Store::open(&lending).unwrap();
    let store = Store::open(&StoreOptions { checksums: Checksums::Always, path: FORCED, ..options(&meta, 0) }).unwrap();
    let unsummed = Store::open(&StoreOptions { checksums: Checksums::Off, path: FORCED, ..options(&meta, 0) }).unwrap();
    let device = twin(4096);
    let pool = OpenOptions::new().read(true).write(true).open(&file).unwrap();
    // Where the object lies.
    let stored = |key: &str, object: &[u8], tensors: &Tensors| {
        assert_eq!(put(&store, key, tensors, soon()), PutStatus::Stored);
        assert_eq!(get(&store, key, tensors, soon()), GetStatus::Hit);
        find(&pool, &object[..64])
    };
    let flip = |offset: u64| {
        let mut byte = [0];
        pool.read_exact_at(&mut byte, offset).unwrap();
        pool.write_all_at(&[byte[0] ^ 4], offset).unwrap();
    };
    // A byte of the last step's payload: the checksum is over all parts.
    let object = pattern(77, 600_000);
    let payload = tensors(&device, &object);
    flip(stored("payload", &object, &payload) + 599_999);
    assert_eq!(get(&unsummed, "payload", &payload, soon()), GetStatus::Hit, "nobody looked at the checksum");
    assert_ne!(get(&store, "payload", &payload, soon()), GetStatus::Hit);
    // A byte of the trailer, behind the payload and what is left of 64 bytes.
    let object = pattern(78, 600_000);
    let trailer = tensors(&device, &object);
    flip(stored("trailer", &object, &trailer) + 600_000u64.next_multiple_of(64) + 8);
    assert_ne!(get(&unsummed, "trailer", &trailer, soon()), GetStatus::Hit);
    drop((owner, store, unsummed));
    let _ = std::fs::remove_file(&file);
}

/// Where these bytes are in a file.
fn find(file: &File, bytes: &[u8]) -> u64 {
    let mut all = Vec::new();
    (&*file).rewind().unwrap();
    (&*file).read_to_end(&mut all).unwrap();
    let at = all.chunks(64).position(|chunk| chunk == bytes).expect("the payload, aligned to 64 bytes");
    at as u64 * 64
}

const BOOK: &str = "MEMCACHE_TEST_RELAY_BOOK";

/// Not a test: an owner that relays, in a process of its own. Serves until its stdin ends.
#[test]
#[ignore = "run by another test as a process of its own"]
fn relaying_owner_process() {
    let endpoint: Endpoint = std::env::var(BOOK).expect("started by a test").parse().unwrap();
    let relay = RelayOptions { device: Arc::new(other_twin()), staging: STAGING };
    let lend = LocalOptions { prefault: false, records: 16, relay: Some(relay), ..LocalOptions::new(16 << 20) };
    let _owner = Store::open(&StoreOptions { lend: Some(lend), ..StoreOptions::new(endpoint) }).unwrap();
    println!("\nserving");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn an_owner_in_another_process_relays_until_it_is_killed() {
    let meta = meta();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "relay::relaying_owner_process", "--ignored", "--nocapture"])
        .env(BOOK, meta.address().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "serving"), "the owner did not start");
    let device = twin(4096);
    let object = pattern(9, 600_000);
    let tensors = tensors(&device, &object);
    for protocol in [ProtocolChoice::HostShm, ProtocolChoice::HostTcp] {
        let store = Store::open(&StoreOptions { path: FORCED, protocol, ..options(&meta, 0) }).unwrap();
        let name = protocol.to_string();
        assert_eq!(put(&store, &name, &tensors, soon()), PutStatus::Stored);
        tensors.fill(0, &vec![0; object.len()]);
        assert_eq!(get(&store, &name, &tensors, soon()), GetStatus::Hit);
        assert!(tensors.object(0) == object);
        assert_eq!(store.stats().path1_bytes, 2 * 600_000);
    }
    let store = reader(&meta, FORCED);
    assert_eq!(put(&store, "k", &tensors, soon()), PutStatus::Stored);
    // Our device stalls on the link with the owner's staging in hand; the owner is killed; then it goes on.
    device.inject([TwinFault::Wedge]);
    let asked = Instant::now();
    let before = device.submitted(Direction::LinkToDevice).0;
    thread::scope(|scope| {
        let caller = scope.spawn(|| get(&store, "k", &tensors, Instant::now() + Duration::from_secs(5)));
        until("the link is in use", || device.submitted(Direction::LinkToDevice).0 > before);
        child.kill().unwrap();
        child.wait().unwrap();
        device.unwedge();
        assert_ne!(caller.join().unwrap(), GetStatus::Hit, "staging of an owner that was gone");
    });
    assert!(asked.elapsed() < Duration::from_secs(10));
}
