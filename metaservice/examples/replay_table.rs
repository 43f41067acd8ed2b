//! Hit rates of all policies on a trace, if one is given, and on the generated workloads.
//!
//! `cargo run --release -p memcache-meta --example replay_table -- [--seeds 1,2,11-16] [--held-out] [--varied]
//! [--shapes any-scan,zipf] [--parts 0.01,0.1] [--no-workloads] [TRACE]`

#![allow(clippy::print_stdout, reason = "a command whose purpose is to print a table")]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small numbers"
)]

use std::ops::RangeInclusive;
use std::time::Instant;

use memcache_meta::replay::{HELD_OUT, ReplayPolicy, Trace, VARIED, WORKLOADS, replay, workload};

/// Capacities of the table of a trace, in blocks.
const CAPACITIES: [u64; 6] = [1000, 5859, 10_000, 30_000, 50_000, 100_000];
/// Capacities for a generated workload, as parts of its distinct blocks.
const PARTS: [f64; 5] = [0.01, 0.03, 0.1, 0.2, 0.4];
const CAPACITY_MIN: u64 = 300;
/// How far under the better of LRU and S3-FIFO a cell may be.
const MISS: f64 = 0.005;

fn main() {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let (mut seeds, mut shapes, mut traces) = ("1".to_owned(), owned(&WORKLOADS), Vec::new());
    let mut parts = PARTS.to_vec();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seeds" => seeds = arguments.next().expect("seeds after --seeds"),
            "--held-out" => shapes = owned(&HELD_OUT),
            "--varied" => shapes = owned(&VARIED),
            "--shapes" => {
                let names = arguments.next().expect("shapes after --shapes");
                shapes = names.split(',').map(str::to_owned).collect();
            }
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
    let mut leads = Vec::new();
    for path in traces {
        let text = std::fs::read_to_string(&path).expect("a readable trace");
        table(&path, &Trace::parse(&text).expect("a trace"), &CAPACITIES, &mut leads);
    }
    for name in shapes {
        for seed in seeds.split(',').flat_map(range) {
            let trace = workload(&name, seed).expect("a known shape");
            let distinct = trace.distinct_blocks() as f64;
            let capacities: Vec<u64> = parts.iter().map(|part| ((distinct * part) as u64).max(CAPACITY_MIN)).collect();
            table(&format!("{name}, seed {seed}"), &trace, &capacities, &mut leads);
        }
    }
    let misses = leads.iter().filter(|lead| **lead < -MISS).count();
    let worst = leads.iter().copied().fold(f64::INFINITY, f64::min);
    let mean = leads.iter().sum::<f64>() / leads.len() as f64;
    println!("{} cells, {misses} under by more than {MISS}, worst {worst:+.4}, mean {mean:+.4}", leads.len());
}

/// `7` or `11-16`.
fn range(seeds: &str) -> RangeInclusive<u64> {
    let (first, last) = seeds.split_once('-').unwrap_or((seeds, seeds));
    first.parse().expect("a number")..=last.parse().expect("a number")
}

fn table(name: &str, trace: &Trace, capacities: &[u64], leads: &mut Vec<f64>) {
    for capacity in capacities {
        let started = Instant::now();
        let [lru, s3fifo, adaptive, clairvoyant] =
            ReplayPolicy::ALL.map(|policy| replay(trace, policy, *capacity).hit_rate());
        let lead = adaptive - lru.max(s3fifo);
        leads.push(lead);
        let short = name.rsplit('/').next().unwrap_or(name);
        println!(
            "{short:<28} {capacity:>8} {lru:>8.4} {s3fifo:>8.4} {adaptive:>9.4} {clairvoyant:>12.4} {lead:>+22.4} {:>6.1} s{}",
            started.elapsed().as_secs_f64(),
            if lead < -MISS { "  !" } else { "" }
        );
    }
}
