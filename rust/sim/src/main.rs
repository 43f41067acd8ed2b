//! Runs worlds by their seeds until one breaks a rule.
#![expect(clippy::print_stdout, reason = "printing is what this command is for")]

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use memcache_sim::{Sabotage, replay, replay_command, run};

/// Runs worlds by their seeds until one breaks a rule.
#[derive(Debug, Parser)]
struct Args {
    /// How many worlds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Seed of the first.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// A rule to break on purpose.
    #[arg(long, value_enum, default_value_t)]
    sabotage: Sabotage,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let started = Instant::now();
    let (mut hits, mut caught, mut copied, mut forgotten, mut listed) = (0, 0, 0, 0, 0);
    for seed in args.first..args.first.saturating_add(args.seeds) {
        let ended = if args.trace { replay(seed, args.sabotage) } else { run(seed, args.sabotage) };
        for line in &ended.trace {
            println!("{line}");
        }
        if let Some(violation) = ended.violation {
            println!("seed {seed} breaks a rule: {violation}\nreplay it: {}", replay_command(seed));
            return ExitCode::FAILURE;
        }
        hits += ended.hits;
        caught += ended.caught_by_checksum;
        copied += ended.copied;
        forgotten += ended.forgotten;
        listed += ended.listed;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} seeds in {seconds:.1} s, {:.0} seeds/s",
        args.seeds,
        f64::from(u32::try_from(args.seeds).unwrap_or(u32::MAX)) / seconds
    );
    println!("{hits} hits, all with the right bytes; {caught} reads were misses by their checksum alone");
    println!("{copied} copies became replicas");
    println!("{listed} objects came back with what their nodes told; {forgotten} removals were for good");
    ExitCode::SUCCESS
}
