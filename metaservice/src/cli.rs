//! The command: the same for the binary, the installed command and `python -m memcache.meta`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use memcache_config::MetaConfig;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::error::MetaError;
use crate::server::MetaServer;

/// Exit code of a service that was asked to stop and did.
const STOPPED: u8 = 0;
/// Exit code of a service that could not start, or ended on its own.
const FAILED: u8 = 1;
/// Exit code of a command line that makes no sense.
const USAGE: u8 = 2;

/// How long the service may take to stop after a signal.
const STOP_TIMEOUT: Duration = Duration::from_millis(1500);

/// How often the command looks whether the service is still there.
const LOOK: Duration = Duration::from_millis(200);

/// Serves the book of a `MemCache` pool until SIGTERM or SIGINT.
#[derive(Debug, Parser)]
#[command(name = "memcache-meta", version, after_help = keys_help())]
struct Arguments {
    /// File with settings; see conf/meta.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, over file and environment. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = pair)]
    sets: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("want KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

fn keys_help() -> String {
    let mut text = "Keys (also as environment variables MEMCACHE_META_<KEY>):\n".to_owned();
    let defaults = MetaConfig::default();
    for (info, (_, value)) in MetaConfig::keys().iter().zip(defaults.entries()) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {} = {value}\n      {}", info.name, info.doc);
    }
    text
}

/// Runs the command with these arguments, the first being its name, until SIGTERM or SIGINT. The exit code: 0 stopped
/// as asked, 1 could not start or failed, 2 bad arguments or settings. Prints one line to stdout when it serves.
///
/// This is for a process that is nothing but this service: it takes over the two signals and the log.
pub fn run_cli(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version go to stdout with code 0. There is nobody to tell if the terminal is gone.
            let _ = error.print();
            return if error.use_stderr() { USAGE } else { STOPPED };
        }
    };
    let config = match MetaConfig::load(arguments.config.as_deref(), std::env::vars(), &arguments.sets) {
        Ok(config) => config,
        Err(error) => return complain(USAGE, &error),
    };
    let filter = match EnvFilter::try_new(&config.log) {
        Ok(filter) => filter,
        Err(error) => return complain(USAGE, &format!("log = {:?}: {error}", config.log)),
    };
    // Where the host process has a log already, ours goes there.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let _ = if config.log_format == "json" {
        log.json().try_init()
    } else {
        log.with_ansi(io::stderr().is_terminal()).try_init()
    };
    match serve(&config) {
        Ok(code) => code,
        Err(error) => complain(FAILED, &error),
    }
}

fn complain(code: u8, error: &dyn std::fmt::Display) -> u8 {
    // There is nobody to tell if stderr is closed.
    let _ = writeln!(io::stderr(), "memcache-meta: {error}");
    code
}

fn serve(config: &MetaConfig) -> Result<u8, MetaError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(MetaError::Thread)?;
    // Signals are caught before anybody can know that the service is up.
    let signals = {
        let _in_runtime = runtime.enter();
        (catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?)
    };
    allow_many_connections();
    let server = MetaServer::start(config)?;
    let mut stdout = io::stdout().lock();
    // The line is for whoever waits for it; the service does not depend on it.
    let _ = writeln!(stdout, "memcache-meta: serving on {}", server.address()).and_then(|()| stdout.flush());
    drop(stdout);
    runtime.block_on(until_signal(&server, signals));
    if server.wait(Some(Duration::ZERO)) {
        return Ok(FAILED);
    }
    Ok(if server.stop(STOP_TIMEOUT) { STOPPED } else { FAILED })
}

/// Raises the number of file descriptors to what the process may have: every client takes one, or a few.
fn allow_many_connections() {
    let limits = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, maximum: limits.maximum }) {
        tracing::debug!(%error, ?limits, "the number of file descriptors stays as it is");
    }
}

fn catch(kind: SignalKind) -> Result<Signal, MetaError> {
    signal(kind).map_err(MetaError::Thread)
}

async fn until_signal(server: &MetaServer, (mut terminate, mut interrupt): (Signal, Signal)) {
    loop {
        tokio::select! {
            _ = terminate.recv() => return,
            _ = interrupt.recv() => return,
            () = tokio::time::sleep(LOOK) => {
                if server.wait(Some(Duration::ZERO)) {
                    return;
                }
            }
        }
    }
}
