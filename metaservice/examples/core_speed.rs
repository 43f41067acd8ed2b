//! How fast the core alone is and how much memory an object takes, by number of objects. One thread, no sockets.
//!
//! `cargo run --release -p memcache-meta --example core_speed -- 10000 100000 1000000 [--policy lru]`

#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "a command whose purpose is to print rates")]

use memcache_meta::core::{
    Core, EvictionPolicy, JoinRequest, Millis, ReserveRequest, SearchLimits, SegmentOffer, Settings, limits,
};
use memcache_types::{ClientId, Epoch, HoldingsPlace, Incarnation, KeyBatch, NodeId, Tier};
use rustix::time::{ClockId, clock_gettime};

const CLIENT: ClientId = ClientId::new(1);
const KEY_BYTES: usize = 48;
const PAYLOAD_BYTES: u64 = 4096;
const NODES: u64 = 4;
const CALL_KEYS: usize = 64;
const LOOKUPS: usize = 2_000_000;

/// Locates before the first of their leases is let go: a reader holds one while it reads, and there are many readers.
const CALLS_LEASED: usize = 64;

const SETTINGS: Settings = Settings {
    reservation_ttl_ms: 20_000,
    lease_ms: 10_000,
    heartbeat_ms: 1000,
    node_dead_ms: u32::MAX,
    high_watermark_ppm: 1_000_000,
    low_watermark_ppm: 900_000,
    hard_pin_ppm: 250_000,
    hot_replica_bytes: 0,
    removals_max: limits::REMOVALS_MAX,
    step: limits::CALL_BURIALS_MAX,
    policy: EvictionPolicy::Adaptive,
    search: SearchLimits::DEFAULT,
};

const POLICIES: [EvictionPolicy; 3] = [EvictionPolicy::Adaptive, EvictionPolicy::Lru, EvictionPolicy::S3Fifo];

fn main() {
    let mut counts: Vec<String> = std::env::args().skip(1).collect();
    let mut policy = EvictionPolicy::Adaptive;
    if let Some(at) = counts.iter().position(|argument| argument == "--policy") {
        let named = counts.drain(at..).take(2).nth(1);
        policy = POLICIES.into_iter().find(|policy| Some(policy.as_str()) == named.as_deref()).expect("a known policy");
    }
    if let [count] = counts.as_slice() {
        return measure(count.parse().expect("a number of objects"), policy);
    }
    println!("millions a second of processor time on one thread; keys of {KEY_BYTES} bytes in random order,");
    println!("{CALL_KEYS} a call unless said");
    println!(
        "{:>10} {:>13} {:>8} {:>10} {:>17} {:>8} {:>16} {:>23}",
        "objects",
        "reserve+seal",
        "exist",
        "exist 512",
        "match_prefix 512",
        "locate",
        "locate+release",
        "bytes an object + key"
    );
    let defaults = || ["10000", "100000", "1000000"].map(str::to_owned).to_vec();
    for count in if counts.is_empty() { defaults() } else { counts } {
        // A process each: memory that one has freed would hide what the next one takes.
        let own = std::env::current_exe().expect("this program");
        std::process::Command::new(own)
            .args([&count, "--policy", policy.as_str()])
            .status()
            .expect("this program runs");
    }
}

/// Each call comes a millisecond after the one before it: uses of one second count as one, and that must not be all.
struct Clock(u64);

impl Clock {
    const fn next(&mut self) -> Millis {
        self.0 += 1;
        Millis::new(self.0)
    }
}

/// Numbers that look random, the same in every run.
struct Mix(u64);

impl Mix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn key(number: u64) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    let mut mix = Mix(number);
    for part in key.chunks_mut(8) {
        part.copy_from_slice(&mix.next().to_le_bytes());
    }
    key
}

fn batches(count: usize, call_keys: usize, wanted: usize) -> Vec<KeyBatch> {
    let mut mix = Mix(42);
    let random = |mix: &mut Mix| key(mix.next() % count as u64);
    (0..wanted.div_ceil(call_keys))
        .map(|_| KeyBatch::from_keys((0..call_keys).map(|_| random(&mut mix))).expect("keys within the limits"))
        .collect()
}

fn resident_bytes() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = pages.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0.0);
    pages * 4096.0
}

/// Nanoseconds this thread was on a processor: others on the same machine do not count.
fn processor_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

fn rate(operations: usize, run: impl FnOnce()) -> f64 {
    let started = processor_ns();
    run();
    operations as f64 * 1e3 / (processor_ns() - started)
}

fn measure(count: usize, policy: EvictionPolicy) {
    let before = resident_bytes();
    let mut core = Core::new(Settings { policy, ..SETTINGS }, Epoch::new(1), Millis::new(0));
    let mut clock = Clock(0);
    let effects = &mut Vec::new();
    let segment_bytes = (count as u64 * (PAYLOAD_BYTES + 64) / NODES * 11 / 10).max(1 << 20);
    for node in 1..=NODES {
        let place = HoldingsPlace {
            table_offset: segment_bytes.next_multiple_of(64),
            records: u32::try_from(segment_bytes / (PAYLOAD_BYTES + 64)).expect("a table within the limits"),
            floors_offset: 2 * segment_bytes.next_multiple_of(64),
        };
        let offer =
            SegmentOffer { bytes: segment_bytes, tier: Tier::Dram, descriptor: Box::default(), holdings: place };
        let request = JoinRequest {
            node: NodeId::new(node),
            incarnation: Incarnation::new(1),
            name: "node",
            offers: vec![offer],
            previous_epoch: Epoch::new(0),
            lists: false,
            floor: 0,
        };
        core.join(clock.next(), request, effects).expect("a node within the limits");
    }
    let put = rate(count, || {
        for first in (0..count).step_by(CALL_KEYS) {
            let own = first..(first + CALL_KEYS).min(count);
            let keys = KeyBatch::from_keys(own.map(|number| key(number as u64))).expect("keys within the limits");
            let request = ReserveRequest {
                keys: &keys,
                payload_bytes: &[PAYLOAD_BYTES],
                near: None,
                exclusive: false,
                replicas: 1,
                preferred: &[],
            };
            let reserved = core.reserve(clock.next(), CLIENT, &request, effects).expect("a request within the limits");
            let ids: Vec<u64> = reserved.tickets.iter().map(|ticket| ticket.reservation.get()).collect();
            core.seal(clock.next(), CLIENT, &ids, effects).expect("a request within the limits");
        }
    });
    let bytes = (resident_bytes() - before) / count as f64;
    assert_eq!(core.status(clock.next(), effects).objects, count as u64, "all fit");
    let (few, many) = (batches(count, CALL_KEYS, LOOKUPS), batches(count, 512, LOOKUPS));
    let mut found = 0;
    let exist = rate(LOOKUPS, || few.iter().for_each(|keys| found += core.exist(clock.next(), keys, effects).len()));
    let exist_many =
        rate(LOOKUPS, || many.iter().for_each(|keys| found += core.exist(clock.next(), keys, effects).len()));
    let prefix =
        rate(LOOKUPS, || many.iter().for_each(|keys| found += core.match_prefix(clock.next(), keys, effects).present));
    let (mut locate_ns, mut release_ns) = (0.0, 0.0);
    for calls in few.chunks(CALLS_LEASED) {
        let started = processor_ns();
        let leases: Vec<_> = calls.iter().map(|keys| locate(&mut core, clock.next(), keys)).collect();
        let located = processor_ns();
        for lease in leases {
            core.release(clock.next(), CLIENT, &[lease], effects).expect("a request within the limits");
        }
        locate_ns += located - started;
        release_ns += processor_ns() - located;
    }
    let per_second = |ns: f64| LOOKUPS as f64 * 1e3 / ns;
    let (located, both) = (per_second(locate_ns), per_second(locate_ns + release_ns));
    assert!(found >= 3 * LOOKUPS, "all were found");
    println!(
        "{count:>10} {put:>13.2} {exist:>8.2} {exist_many:>10.2} {prefix:>17.2} {located:>8.2} {both:>16.2} {bytes:>23.0}"
    );
}

/// The lease on keys that are all there.
fn locate(core: &mut Core, now: Millis, keys: &KeyBatch) -> u64 {
    let found = core.locate(now, CLIENT, keys, None, &mut Vec::new()).expect("a request within the limits");
    found.lease.expect("all are there").get()
}
