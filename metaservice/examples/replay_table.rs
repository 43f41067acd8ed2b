//! Hit rates of all policies on a trace, if one is given, and on the generated workloads.
//!
//! `cargo run --release -p memcache-meta --example replay_table -- [--seeds 1,2,3] [--held-out] [--varied]
//! [--parts 0.01,0.1] [--no-workloads] [TRACE]`

#![allow(clippy::print_stdout, reason = "a command whose purpose is to print a table")]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small numbers"
)]

use std::time::Instant;

use memcache_meta::replay::{HELD_OUT, ReplayPolicy, Trace, VARIED, WORKLOADS, replay, workload};

/// Capacities of the table of a trace, in blocks.
const CAPACITIES: [u64; 6] = [1000, 5859, 10_000, 30_000, 50_000, 100_000];
/// Capacities for a generated workload, as parts of its distinct blocks.
const PARTS: [f64; 5] = [0.01, 0.03, 0.1, 0.2, 0.4];
const CAPACITY_MIN: u64 = 300;

fn main() {
    let (mut seeds, mut shapes, mut traces) = ("1".to_owned(), WORKLOADS.to_vec(), Vec::new());
    let mut parts = PARTS.to_vec();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seeds" => seeds = arguments.next().expect("seeds after --seeds"),
            "--held-out" => shapes = HELD_OUT.to_vec(),
            "--varied" => shapes = VARIED.to_vec(),
            "--parts" => {
                let list = arguments.next().expect("parts after --parts");
                parts = list.split(',').map(|part| part.parse().expect("a part, such as 0.1")).collect();
            }
            "--no-workloads" => shapes.clear(),
            _ => traces.push(argument),
        }
    }
    println!(
        "{:<28} {:>8} {:>8} {:>8} {:>9} {:>12} {:>22}",
        "requests", "blocks", "lru", "s3fifo", "adaptive", "clairvoyant", "adaptive - best of two"
    );
    for path in traces {
        let text = std::fs::read_to_string(&path).expect("a readable trace");
        table(&path, &Trace::parse(&text).expect("a trace"), &CAPACITIES);
    }
    for name in shapes {
        for seed in seeds.split(',') {
            let trace = workload(name, seed.parse().expect("a number")).expect("a known shape");
            let distinct = trace.distinct_blocks() as f64;
            let capacities: Vec<u64> = parts.iter().map(|part| ((distinct * part) as u64).max(CAPACITY_MIN)).collect();
            table(&format!("{name}, seed {seed}"), &trace, &capacities);
        }
    }
}

fn table(name: &str, trace: &Trace, capacities: &[u64]) {
    for capacity in capacities {
        let started = Instant::now();
        let [lru, s3fifo, adaptive, clairvoyant] =
            ReplayPolicy::ALL.map(|policy| replay(trace, policy, *capacity).hit_rate());
        let lead = adaptive - lru.max(s3fifo);
        let short = name.rsplit('/').next().unwrap_or(name);
        println!(
            "{short:<28} {capacity:>8} {lru:>8.4} {s3fifo:>8.4} {adaptive:>9.4} {clairvoyant:>12.4} {lead:>+22.4} {:>6.1} s{}",
            started.elapsed().as_secs_f64(),
            if lead < -0.005 { "  !" } else { "" }
        );
    }
}
