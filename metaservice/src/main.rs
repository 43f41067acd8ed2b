//! The `memcache-meta` command.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    memcache_meta::run_cli(std::env::args_os()).into()
}
