//! Prints the commented defaults of a component, for its file in `conf/`:
//! `cargo run -p memcache-config --example defaults -- meta > conf/meta.toml`

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command whose purpose is to print")]

use std::process::ExitCode;

use memcache_config::{LocalConfig, MetaConfig, StoreConfig};

fn main() -> ExitCode {
    let text = match std::env::args().nth(1).as_deref() {
        Some("meta") => MetaConfig::default_toml(),
        Some("local") => LocalConfig::default_toml(),
        Some("store") => StoreConfig::default_toml(),
        _ => {
            eprintln!("want one of: meta, local, store");
            return ExitCode::FAILURE;
        }
    };
    print!("{text}");
    ExitCode::SUCCESS
}
