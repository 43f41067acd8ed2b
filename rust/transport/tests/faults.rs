//! Random bad days of a TCP link: a proxy between client and server that cuts, damages, repeats, loses, reorders, stalls
//! or falls silent, at any byte of either direction. Whatever happens: no wrong bytes, no call that outlives its
//! deadline, nothing left behind.
//!
//! `FAULTS=10000 FAULTS_SEED=3 cargo test --release -p memcache-transport --test faults -- --nocapture`

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on stops; a long one says how it goes"
)]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memcache_memory::{Checksum, Segment, SegmentOptions, Trailer};
use memcache_testkit::arena::Arena;
use memcache_testkit::proxy::{Plan, Proxy};
use memcache_testkit::rng::{Rng, pattern};
use memcache_transport::{
    Fabric, FabricOptions, Link, ProtocolChoice, ReadOp, RegionServer, ServerOptions, SummedWriteOp, TransportError,
};
use memcache_types::{Extent, Generation, GlobalAddress, KeyDigest, SegmentId, extent_bytes};

const WORKERS: u64 = 3;
const SLOTS: u64 = 4;
const SLOT_BYTES: u64 = 4 << 20;
/// What a call may take beyond its deadline: one copy, on a machine that does other things as well.
const MARGIN: Duration = Duration::from_secs(3);
/// Time for what nothing is done to.
const UNDISTURBED: Duration = Duration::from_secs(20);
const FAULTS_USUAL: u64 = 300;

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |value| value.parse().unwrap())
}

#[derive(Debug, Default)]
struct Counts {
    faults: AtomicU64,
    /// Reads that were believed, and were right.
    hits: AtomicU64,
    /// Reads whose trailer or checksum gave them away.
    misses: AtomicU64,
    errors: AtomicU64,
    /// Reads without mischief right after a write that went well: these have to succeed.
    controls: AtomicU64,
}

/// One worker's memory: what may stand in each slot.
struct Slot {
    extent: Extent,
    bytes: usize,
    /// The last generation, where no write was disturbed.
    certain: Option<u64>,
}

#[test]
fn a_link_survives_random_mischief() {
    let (faults, seed) = (setting("FAULTS", FAULTS_USUAL), setting("FAULTS_SEED", 1));
    println!("seed {seed}, {faults} faults over host_tcp");
    let before = census();
    let segment = Segment::create(WORKERS * SLOTS * SLOT_BYTES, &SegmentOptions { huge_pages: false, prefault: false });
    let options = ServerOptions { protocols: ProtocolChoice::HostTcp, ..ServerOptions::default() };
    let server = RegionServer::start(Arc::new(segment.unwrap()), &options).unwrap();
    let counts = Counts::default();
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (server, counts) = (&server, &counts);
            scope.spawn(move || {
                let mut slots: Vec<Slot> = (0..SLOTS).map(|slot| slot_at(worker * SLOTS + slot)).collect();
                for fault in (worker..faults).step_by(usize::try_from(WORKERS).unwrap()) {
                    one_fault(server, &mut slots, seed.wrapping_mul(1_000_003) ^ fault, counts);
                }
            });
        }
    });
    drop(server);
    let until = Instant::now() + Duration::from_secs(10);
    while census() != before && Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
    }
    println!("{counts:?}");
    assert_eq!(census(), before, "threads, descriptors and mappings: some were left behind");
    assert_eq!(counts.faults.into_inner(), faults);
    assert!(counts.hits.into_inner() > faults / 4 && counts.misses.into_inner() > 0, "nothing happened");
    assert!(counts.controls.into_inner() > faults / 4, "too few undisturbed reads");
}

/// Threads and descriptors of this process, and segments mapped by it.
fn census() -> (usize, usize, usize) {
    let entries = |folder: &str| fs::read_dir(folder).unwrap().count();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    (
        entries("/proc/self/task"),
        entries("/proc/self/fd"),
        maps.lines().filter(|line| line.contains("memcache-segment")).count(),
    )
}

fn slot_at(number: u64) -> Slot {
    let extent = Extent::new(GlobalAddress::new(SegmentId::new(1), number * SLOT_BYTES), 64).unwrap();
    Slot { extent, bytes: 0, certain: None }
}

fn one_fault(server: &RegionServer, slots: &mut [Slot], seed: u64, counts: &Counts) {
    let mut rng = Rng::new(seed);
    let connections = 1 + rng.index(3);
    let (calm, rest) = slots.split_first_mut().unwrap();
    let index = rng.index(rest.len());
    let slot = &mut rest[index];
    let patience = Duration::from_millis(20 + rng.below(130));
    let plan = Plan::random(&mut rng, connections, 2 * slot.bytes.max(1000), patience);
    let proxy = Proxy::start(server.descriptor().tcp.as_deref().unwrap(), plan).unwrap();
    let mut descriptor = server.descriptor().clone();
    descriptor.tcp = Some(proxy.address());
    let options = FabricOptions { choice: ProtocolChoice::HostTcp, connections_per_peer: connections };
    let (door, straight) = (Fabric::new(options), Fabric::new(options));
    let context = format!("seed {seed}, {plan:?}");
    counts.faults.fetch_add(1, Ordering::Relaxed);
    for _ in 0..=rng.index(3) {
        let Some(link) = timed(&context, patience, |deadline| door.link(&descriptor, deadline).ok()) else {
            counts.errors.fetch_add(1, Ordering::Relaxed);
            break;
        };
        if rng.below(3) == 0 {
            write(&*link, slot, &mut rng, patience, &context, false);
        } else {
            read(&*link, slot, &mut rng, patience, &context, counts);
        }
    }
    // Without a proxy: what stands there is believed or not, and right if it is.
    let link = straight.link(server.descriptor(), Instant::now() + UNDISTURBED).unwrap();
    read(&*link, slot, &mut rng, UNDISTURBED, &context, counts);
    // A write that was given up may still land, so what must be there is in memory that no mischief ever reaches.
    if rng.below(2) == 0 || calm.certain.is_none() {
        write(&*link, calm, &mut rng, UNDISTURBED, &context, true);
    }
    assert!(read(&*link, calm, &mut rng, UNDISTURBED, &context, counts), "{context}: what was written is not there");
    counts.controls.fetch_add(1, Ordering::Relaxed);
    outside(&*link, &context);
}

/// Calls with a deadline this far off, and checks that it is kept.
fn timed<T>(context: &str, patience: Duration, call: impl FnOnce(Instant) -> T) -> T {
    let started = Instant::now();
    let result = call(started + patience);
    assert!(started.elapsed() < patience + MARGIN, "{context}: a call of {patience:?} took {:?}", started.elapsed());
    result
}

/// Writes a new generation; `undisturbed`: an answer can be believed to stand for what is in memory.
fn write(link: &dyn Link, slot: &mut Slot, rng: &mut Rng, patience: Duration, context: &str, undisturbed: bool) {
    let bytes = match rng.index(10) {
        0 => 2_200_000 + rng.index(1_000_000),
        1 => rng.index(3),
        _ => rng.index(200_000),
    };
    slot.extent = Extent::new(slot.extent.address(), extent_bytes(bytes as u64)).unwrap();
    (slot.bytes, slot.certain) = (bytes, None);
    let generation = rng.next() | 1;
    let mut arena = Arena::cut(bytes, 1 + rng.index(60), rng);
    arena.fill(&pattern(generation, bytes));
    let (local, trailer) = (arena.list(), trailer(generation, bytes));
    let op = SummedWriteOp { extent: slot.extent, local: &local, trailer: &trailer };
    // SAFETY: the arena lives and is not touched during the call.
    let result = timed(context, patience, |deadline| unsafe { link.write_summed(&[op], deadline) }.remove(0));
    if result.is_ok() && undisturbed {
        slot.certain = Some(generation);
    } else {
        assert!(!undisturbed, "{context}: {result:?}");
    }
}

/// Reads the slot and checks what it finds; true if it was believed.
fn read(link: &dyn Link, slot: &Slot, rng: &mut Rng, patience: Duration, context: &str, counts: &Counts) -> bool {
    let mut arena = Arena::cut(slot.bytes, 1 + rng.index(60), rng);
    let local = arena.list();
    let op = ReadOp { extent: slot.extent, payload_bytes: slot.bytes as u64, local: &local };
    // SAFETY: the arena lives and is not touched during the call.
    let result = timed(context, patience, |deadline| unsafe { link.read_summed(&[op], deadline) }.remove(0));
    arena.check_guards();
    let Ok((found, sum)) = result else {
        counts.errors.fetch_add(1, Ordering::Relaxed);
        return false;
    };
    // As a client believes it: right object, right length, right checksum.
    let believed = Trailer::decode(&found).filter(|found| {
        let is_ours = found.digest == trailer(1, 0).digest && found.payload_bytes == slot.bytes as u64;
        is_ours && found.checksum == Checksum::Crc32c(sum)
    });
    let Some(found) = believed else {
        counts.misses.fetch_add(1, Ordering::Relaxed);
        return false;
    };
    let generation = found.generation.get();
    assert!(arena.object() == pattern(generation, slot.bytes), "{context}: wrong bytes of {generation}");
    assert!(slot.certain.is_none_or(|certain| certain == generation), "{context}: another generation");
    counts.hits.fetch_add(1, Ordering::Relaxed);
    true
}

fn trailer(generation: u64, bytes: usize) -> Trailer {
    Trailer {
        digest: KeyDigest::of(b"a slot of the fault run"),
        generation: Generation::new(generation),
        payload_bytes: bytes as u64,
        checksum: Checksum::None,
    }
}

/// An extent that does not lie in the segment is refused and touches nothing.
fn outside(link: &dyn Link, context: &str) {
    let mut target = [0xaa_u8; 64];
    let local = memcache_types::ScatterList::single(target.as_mut_ptr().expose_provenance() as u64, 64);
    let extent = Extent::new(GlobalAddress::new(SegmentId::new(1), WORKERS * SLOTS * SLOT_BYTES - 64), 128).unwrap();
    let op = ReadOp { extent, payload_bytes: 64, local: &local };
    // SAFETY: the target lives and is not touched during the call.
    let result = unsafe { link.read(&[op], Instant::now() + Duration::from_secs(20)) }.remove(0);
    assert!(matches!(result, Err(TransportError::InvalidOp { .. })), "{context}: {result:?}");
    assert_eq!(target, [0xaa; 64], "{context}: a refused read touched its target");
}
