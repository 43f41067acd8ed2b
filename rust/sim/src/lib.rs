//! A world in which the `MetaService` is tried: the real book, simulated nodes, clients, memory, messages and time.
//! One seed is one world; the same seed is the same world, to the byte.
//!
//! | module | what |
//! |---|---|
//! | [`scenario`] | what a seed stands for, and rules that can be broken on purpose |
//! | [`world`] | the loop, the book, and what goes wrong |
//! | [`net`] | time and messages |
//! | [`clock`] | the time of day, which lives are numbered by |
//! | [`node`], [`client`] | those who take part |
//! | [`memory`] | lent memory: which writing each line comes from |
//! | [`ledger`], [`truth`] | what must be, told from the book's answers and from what really happened |
//! | [`invariants`] | the rules, one a file |

#![forbid(unsafe_code)]

pub mod client;
pub mod clock;
pub mod invariants;
pub mod ledger;
pub mod memory;
pub mod net;
pub mod node;
pub mod rng;
pub mod scenario;
pub mod truth;
pub mod world;

pub use scenario::Sabotage;
pub use world::{Ended, World};

/// Runs the world of a seed to its end, or to the first rule that does not hold.
pub fn run(seed: u64, sabotage: Sabotage) -> Ended {
    World::new(seed, sabotage, false).run()
}

/// As [`run`], and keeps what happened in words.
pub fn replay(seed: u64, sabotage: Sabotage) -> Ended {
    World::new(seed, sabotage, true).run()
}

/// The command that replays a seed with its trace.
pub fn replay_command(seed: u64) -> String {
    format!("cargo run -p memcache-sim -- --seeds 1 --first {seed} --trace")
}
