//! A simulated cluster: a thousand nodes, a hundred of them joining at once, a hundred falling silent at once, and the
//! copies that follow, with look-ups going on all the while. Time is simulated, the core is real; one thread, no sockets.
//! Prints how long each phase took, its longest single call (what everybody else would have waited for), and memory.
//!
//! `cargo run --release -p memcache-meta --example cluster -- 100000 1000000 10000000`

#![allow(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a command whose purpose is to print figures, of numbers that are small"
)]

use std::collections::BTreeSet;

use memcache_meta::core::{
    Core, Effect, EvictionPolicy, JoinRequest, Millis, ReserveRequest, SearchLimits, SegmentOffer, Settings, limits,
};
use memcache_proto::pb::{LocateOutcome, SealOutcome};
use memcache_types::{ClientId, Epoch, HoldingsPlace, Incarnation, KeyBatch, NodeId, Tier, extent_bytes};
use rustix::time::{ClockId, clock_gettime};

const CLIENT: ClientId = ClientId::new(1);
const KEY_BYTES: usize = 48;
const PAYLOAD_BYTES: u64 = 4096;
const NODES: u64 = 1000;
const JOINING: u64 = 100;
const LOST: u64 = 100;
/// One key in so many has two replicas, the others one.
const REPLICATED: usize = 5;
const CALL_KEYS: usize = 64;
const TICK_MS: u64 = 100;

const SETTINGS: Settings = Settings {
    reservation_ttl_ms: 20_000,
    lease_ms: 10_000,
    heartbeat_ms: 1000,
    node_dead_ms: 5000,
    high_watermark_ppm: 950_000,
    low_watermark_ppm: 900_000,
    hard_pin_ppm: 250_000,
    hot_replica_bytes: 0,
    removals_max: limits::REMOVALS_MAX,
    step: limits::CALL_BURIALS_MAX,
    policy: EvictionPolicy::Adaptive,
    search: SearchLimits::DEFAULT,
};

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

fn key(number: usize) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    let mut mix = Mix(number as u64);
    for part in key.chunks_mut(8) {
        part.copy_from_slice(&mix.next().to_le_bytes());
    }
    key
}

fn resident_bytes() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = pages.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0.0);
    pages * 4096.0
}

/// Milliseconds this thread was on a processor: others on the same machine do not count.
fn processor_ms() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

/// A core, its clock, and how long calls took since the last phase began.
struct Cluster {
    core: Core,
    now: u64,
    effects: Vec<Effect>,
    alive: BTreeSet<u64>,
    took: Vec<f64>,
    lookups: Vec<f64>,
    mix: Mix,
    keys: usize,
}

impl Cluster {
    fn timed<R>(&mut self, call: impl FnOnce(&mut Core, Millis, &mut Vec<Effect>) -> R) -> R {
        let started = processor_ms();
        let result = call(&mut self.core, Millis::new(self.now), &mut self.effects);
        self.took.push(processor_ms() - started);
        result
    }

    fn join(&mut self, node: u64, bytes: u64) {
        let offer =
            SegmentOffer { bytes, tier: Tier::Dram, descriptor: Box::default(), holdings: HoldingsPlace::default() };
        let request = JoinRequest {
            node: NodeId::new(node),
            incarnation: Incarnation::new(1),
            name: "n",
            offers: vec![offer],
            previous_epoch: Epoch::new(0),
            lists: false,
            floor: 0,
        };
        let joined = self.timed(|core, now, effects| core.join(now, request, effects));
        joined.expect("a node within the limits");
        self.alive.insert(node);
    }

    /// Puts keys, of which some have two replicas.
    fn fill(&mut self) {
        for first in (0..self.keys).step_by(CALL_KEYS) {
            let own = first..(first + CALL_KEYS).min(self.keys);
            let keys = KeyBatch::from_keys(own.map(key)).expect("keys within the limits");
            let request = ReserveRequest {
                keys: &keys,
                payload_bytes: &[PAYLOAD_BYTES],
                near: Some(NodeId::new(self.mix.next() % NODES + 1)),
                exclusive: false,
                replicas: if (first / CALL_KEYS).is_multiple_of(REPLICATED) { 2 } else { 1 },
                preferred: &[],
            };
            let reserved = self.timed(|core, now, effects| core.reserve(now, CLIENT, &request, effects));
            let ids: Vec<u64> =
                reserved.expect("within the limits").tickets.iter().map(|ticket| ticket.reservation.get()).collect();
            let sealed = self.timed(|core, now, effects| core.seal(now, CLIENT, &ids, effects));
            assert!(sealed.expect("within the limits").iter().all(|outcome| *outcome == SealOutcome::Sealed));
        }
    }

    /// One look-up of random keys.
    fn look_up(&mut self) {
        let keys: Vec<_> = (0..CALL_KEYS).map(|_| key((self.mix.next() % self.keys as u64) as usize)).collect();
        let keys = KeyBatch::from_keys(keys).expect("keys within the limits");
        self.timed(|core, now, effects| core.exist(now, &keys, effects));
        self.lookups.extend(self.took.last());
    }

    /// A tick of the service, the heartbeats that are due, and look-ups in between. Whether there is more to do at once.
    fn step(&mut self) -> bool {
        let more = self.timed(Core::tick);
        for _ in 0..4 {
            self.look_up();
        }
        if !more {
            self.now += TICK_MS;
            let slice = self.now / TICK_MS % (u64::from(SETTINGS.heartbeat_ms) / TICK_MS);
            let due: Vec<u64> = self.alive.iter().copied().filter(|node| node % 10 == slice).collect();
            for node in due {
                let who = (NodeId::new(node), Incarnation::new(1));
                let beat = self.timed(|core, now, effects| core.heartbeat(now, who.0, who.1, &[], effects));
                assert!(beat.expect("a node of this life").joined, "node {node} lives and was forgotten");
            }
        }
        more
    }

    /// A node asks for copies and makes all of them; how many.
    fn repair(&mut self, node: u64) -> usize {
        let (client, who) = (ClientId::new(100 + node), (NodeId::new(node), Incarnation::new(1)));
        let work = self.timed(|core, now, effects| core.work(now, client, who, (256, 64 << 20), effects));
        let work = work.expect("a node of this life");
        let ids: Vec<u64> = work.tasks.iter().map(|task| task.ticket.reservation.get()).collect();
        let sealed = self.timed(|core, now, effects| core.seal(now, client, &ids, effects)).expect("within the limits");
        let leases: Vec<u64> = work.lease.iter().map(|lease| lease.get()).collect();
        self.timed(|core, now, effects| core.release(now, client, &leases, effects)).expect("within the limits");
        sealed.iter().filter(|outcome| **outcome == SealOutcome::Sealed).count()
    }

    fn report(&mut self, phase: &str) {
        let total: f64 = self.took.iter().sum();
        let longest = self.took.iter().copied().fold(0.0, f64::max);
        self.lookups.sort_by(f64::total_cmp);
        let part = |part: f64| {
            let at = (self.lookups.len() as f64 * part) as usize;
            self.lookups.get(at.min(self.lookups.len().saturating_sub(1))).map_or(0.0, |ms| ms * 1e3)
        };
        println!(
            "{:>10} {phase:<28} {total:>10.0} {:>10} {longest:>12.2} {:>12.0} {:>12.0} {:>9.0}",
            self.keys,
            self.took.len(),
            part(0.5),
            part(0.999),
            resident_bytes() / f64::from(1 << 20)
        );
        self.took.clear();
        self.lookups.clear();
    }

    fn readable(&mut self) -> usize {
        let mut count = 0;
        for first in (0..self.keys).step_by(4096) {
            let keys = KeyBatch::from_keys((first..(first + 4096).min(self.keys)).map(key)).expect("within the limits");
            let found = self.core.exist(Millis::new(self.now), &keys, &mut self.effects);
            count += found.iter().filter(|outcome| **outcome == LocateOutcome::Located).count();
        }
        count
    }
}

fn measure(keys: usize) {
    let replicas = keys as u64 + keys as u64 / REPLICATED as u64;
    let segment_bytes = (replicas * extent_bytes(PAYLOAD_BYTES) / NODES * 2).max(1 << 20);
    let core = Core::new(SETTINGS, Epoch::new(1), Millis::new(0));
    let mut cluster = Cluster {
        core,
        now: 0,
        effects: Vec::new(),
        alive: BTreeSet::new(),
        took: Vec::new(),
        lookups: Vec::new(),
        mix: Mix(7),
        keys,
    };
    (1..=NODES).for_each(|node| cluster.join(node, segment_bytes));
    cluster.report("1000 nodes join");
    cluster.fill();
    cluster.report("fill");
    (0..100).for_each(|_| _ = cluster.step());
    cluster.report("10 s of calm");
    (NODES + 1..=NODES + JOINING).for_each(|node| cluster.join(node, segment_bytes));
    (0..10).for_each(|_| _ = cluster.step());
    cluster.report("100 nodes join at once");

    let before = cluster.core.status(Millis::new(cluster.now), &mut cluster.effects);
    let silent: Vec<u64> = cluster.alive.iter().copied().filter(|node| node % 10 == 3).take(LOST as usize).collect();
    cluster.alive.retain(|node| !silent.contains(node));
    let lost: u64 = before.nodes.iter().filter(|node| silent.contains(&node.node.get())).map(|node| node.objects).sum();
    cluster.effects.clear();
    let gone = |cluster: &Cluster| cluster.effects.iter().any(|effect| matches!(effect, Effect::NodeGone { .. }));
    while !gone(&cluster) {
        cluster.step();
    }
    while cluster.step() {}
    (0..10).for_each(|_| _ = cluster.step());
    let after = cluster.core.status(Millis::new(cluster.now), &mut cluster.effects);
    assert_eq!((after.nodes.len() as u64, before.replicas - after.replicas), (NODES + JOINING - LOST, lost));
    cluster.report("100 nodes fall silent at once");

    let (mut copied, mut rounds) = (0, 0);
    while cluster.core.status(Millis::new(cluster.now), &mut cluster.effects).repairs_waiting > 0 {
        for node in cluster.alive.clone() {
            copied += cluster.repair(node);
        }
        cluster.step();
        rounds += 1;
        assert!(rounds < 10_000, "repairs do not end");
    }
    cluster.report("replicas made again");
    let end = cluster.core.status(Millis::new(cluster.now), &mut cluster.effects);
    let readable = cluster.readable();
    assert_eq!((readable as u64, end.copies), (end.objects, 0));
    println!(
        "{keys:>10} lost {lost} replicas, {} keys had no other; {copied} copies in {rounds} rounds; {readable} keys readable",
        before.objects - end.objects
    );
}

fn main() {
    let counts: Vec<String> = std::env::args().skip(1).collect();
    if let [count] = counts.as_slice() {
        return measure(count.parse().expect("a number of keys"));
    }
    println!("{NODES} nodes, keys of {KEY_BYTES} bytes, one in {REPLICATED} with two replicas, {CALL_KEYS} a call;");
    println!("processor time of one thread. look-ups are of {CALL_KEYS} keys, in microseconds");
    println!(
        "{:>10} {:<28} {:>10} {:>10} {:>12} {:>12} {:>12} {:>9}",
        "keys", "phase", "ms", "calls", "longest ms", "look-up p50", "p99.9", "MiB"
    );
    let defaults = || ["100000", "1000000"].map(str::to_owned).to_vec();
    for count in if counts.is_empty() { defaults() } else { counts } {
        // A process each: memory that one has freed would hide what the next one takes.
        let own = std::env::current_exe().expect("this program");
        let ended = std::process::Command::new(own).arg(count).status().expect("this program runs");
        assert!(ended.success(), "a cluster failed");
    }
}
