//! How fast this machine gathers objects into a segment, by kernel, shape and what is in the caches.
//!
//! `cargo run --release -p memcache-memory --example copy_kernels`
//!
//! Prints GB/s (10^9 bytes), medians of nine rounds in which all kernels take turns. "cold": objects one after the
//! other through 350 MB on each side; "hot": the same object again and again. `auto` is what the transports use.
//!
//! `... copy_kernels -- limits` prints only the ceilings that `benchmarks/bench_transfer.py` compares with, one line a
//! shape and direction: memcpy and the fastest kernel, cold, on one thread and on two that each have their own objects.

#![allow(clippy::print_stdout, reason = "a benchmark talks")]
#![allow(clippy::cast_precision_loss, reason = "rates with two digits")]

use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use memcache_memory::{
    CopyMode, Kernel, MemoryError, RawRegion, Segment, SegmentOptions, checksum_bytes, checksum_pieces, gather_summed,
    gather_with, scatter_summed, scatter_with,
};
use memcache_types::ScatterList;

const POOL_BYTES: usize = 350 << 20;
const ROUNDS: usize = 9;

struct Shape {
    name: &'static str,
    pieces: Vec<usize>,
}

fn shapes() -> Vec<Shape> {
    vec![
        Shape { name: "61x128K+61x16K", pieces: [128 << 10, 16 << 10].repeat(61) },
        Shape { name: "64x32K", pieces: vec![32 << 10; 64] },
        Shape { name: "64x4K", pieces: vec![4 << 10; 64] },
        Shape { name: "4096x256", pieces: vec![256; 4096] },
        Shape { name: "1x8784K", pieces: vec![8784 << 10] },
    ]
}

#[derive(Clone, Copy)]
enum Direction {
    Gather,
    Scatter,
}

fn main() -> ExitCode {
    let only_limits = std::env::args().nth(1).as_deref() == Some("limits");
    match if only_limits { limits() } else { run() } {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), MemoryError> {
    let segment = Segment::create(POOL_BYTES as u64, &SegmentOptions::default())?;
    let mut local = vec![1u8; POOL_BYTES];
    let modes: Vec<(String, CopyMode)> = [("memcpy".to_owned(), CopyMode::Plain), ("auto".to_owned(), CopyMode::Auto)]
        .into_iter()
        .chain(
            Kernel::ALL
                .into_iter()
                .filter(|kernel| kernel.is_available())
                .map(|kernel| (kernel.to_string(), CopyMode::Streaming(kernel))),
        )
        .collect();
    println!("kernel of this process: {}", Kernel::best().map_or("none", Kernel::name));
    for turn in 1..=3 {
        let started = Instant::now();
        let times = Kernel::trial();
        print!("trial {turn} ({} us):", started.elapsed().as_micros());
        for (kernel, took) in times {
            print!(" {kernel} {} us", took.as_micros());
        }
        println!();
    }
    print!("{:<16} {:<8} {:<6}", "shape", "", "");
    for (name, _) in &modes {
        print!("{name:>18}");
    }
    println!();
    for shape in shapes() {
        let bytes: usize = shape.pieces.iter().sum();
        for (heat, objects) in [("cold", POOL_BYTES / (bytes + 64 * shape.pieces.len())), ("hot", 1)] {
            let lists = lists(&mut local, &shape.pieces, objects);
            for (name, direction) in [("gather", Direction::Gather), ("scatter", Direction::Scatter)] {
                let rates = measure(&segment, &lists, bytes, &modes, direction);
                print!("{:<16} {name:<8} {heat:<6}", shape.name);
                for rate in rates {
                    print!("{rate:>18.1}");
                }
                println!();
            }
        }
    }
    let pieces = [128 << 10, 16 << 10].repeat(61);
    let bytes: usize = pieces.iter().sum();
    sums(&segment, &lists(&mut local, &pieces, POOL_BYTES / (bytes + 64 * pieces.len())), bytes);
    Ok(())
}

/// What memory allows: the bars for everything above the kernels.
fn limits() -> Result<(), MemoryError> {
    let segment = Segment::create(POOL_BYTES as u64, &SegmentOptions::default())?;
    let mut local = vec![1u8; POOL_BYTES];
    for shape in shapes() {
        let bytes: usize = shape.pieces.iter().sum();
        let lists = lists(&mut local, &shape.pieces, POOL_BYTES / (bytes + 64 * shape.pieces.len()));
        for (name, direction) in [("gather", Direction::Gather), ("scatter", Direction::Scatter)] {
            let plain = best(&segment, &lists, bytes, &[CopyMode::Plain], direction, 1);
            let mut modes = vec![CopyMode::Plain];
            modes.extend(Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()).map(CopyMode::Streaming));
            let one = best(&segment, &lists, bytes, &modes, direction, 1);
            let two = best(&segment, &lists, bytes, &modes, direction, 2);
            println!("limit {} {name} memcpy {plain:.2} kernel {one:.2} kernel_on_two {two:.2}", shape.name);
        }
    }
    Ok(())
}

/// Median over rounds of the mode that is fastest by it, with this many threads.
fn best(
    segment: &Segment,
    lists: &[ScatterList],
    bytes: usize,
    modes: &[CopyMode],
    direction: Direction,
    threads: usize,
) -> f64 {
    let share = lists.len().div_ceil(threads);
    let median = |mode: &CopyMode| {
        let mut rates: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let started = Instant::now();
                thread::scope(|scope| {
                    for (lists, number) in lists.chunks(share).zip(0u64..) {
                        let first = number * share as u64;
                        scope.spawn(move || copy_each(segment, lists, first, bytes, *mode, direction));
                    }
                });
                rate((lists.len() * bytes) as u64, started)
            })
            .collect();
        rates.sort_by(f64::total_cmp);
        rates[ROUNDS / 2]
    };
    modes.iter().map(median).fold(0.0, f64::max)
}

/// Copies each list to or from its own place, the first of them at place `first`.
fn copy_each(segment: &Segment, lists: &[ScatterList], first: u64, bytes: usize, mode: CopyMode, direction: Direction) {
    for (list, number) in lists.iter().zip(first..) {
        let Ok(extent) = segment.region().sub(number * bytes as u64, bytes as u64) else { continue };
        // SAFETY: the pieces lie in `local`, which outlives this; each list is copied by one thread.
        unsafe {
            match direction {
                Direction::Gather => gather_with(mode, list, extent),
                Direction::Scatter => scatter_with(mode, extent, list),
            }
        }
    }
}

/// Lists of pieces, one an object, with a line between pieces so that they do not merge.
fn lists(local: &mut [u8], pieces: &[usize], objects: usize) -> Vec<ScatterList> {
    let mut at = local.as_mut_ptr().expose_provenance() as u64;
    (0..objects)
        .map(|_| {
            let mut list = ScatterList::with_capacity(pieces.len());
            for bytes in pieces {
                list.push(at, *bytes as u64);
                at += *bytes as u64 + if pieces.len() > 1 { 64 } else { 0 };
            }
            list
        })
        .collect()
}

fn measure(
    segment: &Segment,
    lists: &[ScatterList],
    bytes: usize,
    modes: &[(String, CopyMode)],
    direction: Direction,
) -> Vec<f64> {
    let mut rates = vec![Vec::new(); modes.len()];
    let repeats = (POOL_BYTES / bytes / lists.len()).clamp(1, 200);
    for _ in 0..ROUNDS {
        for ((_, mode), rates) in modes.iter().zip(&mut rates) {
            let started = Instant::now();
            for _ in 0..repeats {
                copy_each(segment, lists, 0, bytes, *mode, direction);
            }
            rates.push(rate((repeats * lists.len() * bytes) as u64, started));
        }
    }
    rates
        .into_iter()
        .map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates[ROUNDS / 2]
        })
        .collect()
}

/// What a checksum costs: alone, in a second pass, in the same pass.
fn sums(segment: &Segment, lists: &[ScatterList], bytes: usize) {
    type Act = unsafe fn(&ScatterList, RawRegion<'_>) -> u32;
    #[allow(clippy::undocumented_unsafe_blocks, reason = "all under the contract of `Act`, kept below")]
    let ways: [(&str, Act); 7] = [
        ("sum", |list, _| unsafe { checksum_pieces(list) }),
        ("scatter", |list, extent| unsafe {
            scatter_with(CopyMode::Auto, extent, list);
            0
        }),
        ("scatter, then sum", |list, extent| unsafe {
            scatter_with(CopyMode::Auto, extent, list);
            checksum_pieces(list)
        }),
        ("scatter and sum", |list, extent| unsafe { scatter_summed(CopyMode::Auto, extent, list) }),
        ("gather", |list, extent| unsafe {
            gather_with(CopyMode::Auto, list, extent);
            0
        }),
        ("sum, then gather", |list, extent| unsafe {
            let sum = checksum_pieces(list);
            gather_with(CopyMode::Auto, list, extent);
            sum
        }),
        ("gather and sum", |list, extent| unsafe { gather_summed(CopyMode::Auto, list, extent) }),
    ];
    for (name, act) in ways {
        let median = |threads: usize| {
            let share = lists.len().div_ceil(threads);
            let each = |lists: &[ScatterList], first: u64| {
                for (list, number) in lists.iter().zip(first..) {
                    let Ok(extent) = segment.region().sub(number * bytes as u64, bytes as u64) else { continue };
                    // SAFETY: as said above.
                    std::hint::black_box(unsafe { act(list, extent) });
                }
            };
            let mut rates: Vec<f64> = (0..ROUNDS)
                .map(|_| {
                    let started = Instant::now();
                    thread::scope(|scope| {
                        for (lists, number) in lists.chunks(share).zip(0u64..) {
                            scope.spawn(move || each(lists, number * share as u64));
                        }
                    });
                    rate((lists.len() * bytes) as u64, started)
                })
                .collect();
            rates.sort_by(f64::total_cmp);
            rates[ROUNDS / 2]
        };
        println!("61x128K+61x16K cold, {name:<18} {:>6.1}  on two threads {:>6.1}", median(1), median(2));
    }
    let near = vec![1u8; 16 << 10];
    let started = Instant::now();
    for _ in 0..10_000 {
        std::hint::black_box(checksum_bytes(std::hint::black_box(&near)));
    }
    println!("sum of 16 KiB in the first-level cache {:>6.1}", rate(10_000 * near.len() as u64, started));
}

fn rate(bytes: u64, started: Instant) -> f64 {
    bytes as f64 / started.elapsed().as_secs_f64() / 1e9
}
