use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use memcache_proto::pb::{self, reply, request};

use crate::client::{Client, DEADLINE, config, join, put, server};

/// What a graceful stop may take.
const STOP: Duration = Duration::from_secs(2);

#[test]
fn stops_in_time_with_open_sessions_and_ends_them() {
    let server = server(&[]);
    let mut clients: Vec<Client> = (1..5).map(|id| Client::connect(server.address(), id)).collect();
    clients[0].ask(join(5, 1));
    put(&mut clients[0], &["a"], 1);
    assert!(server.stop(STOP));
    for client in &mut clients {
        assert!(client.receive().is_none());
    }
    assert!(server.stop(STOP), "a second stop is harmless");
}

#[test]
fn stops_in_time_with_a_client_that_never_reads() {
    let server = server(&[]);
    let mut client = Client::connect(server.address(), 1);
    for _ in 0..1000 {
        client.send(Some(request::Body::Status(pb::Status {})));
    }
    assert!(server.stop(STOP));
}

#[test]
fn dropping_stops_and_frees_the_address() {
    let first = server(&[]);
    let address = first.address().to_string();
    let _client = Client::connect(first.address(), 1);
    drop(first);
    drop(memcache_meta::MetaServer::start(&config(&[("listen", &address)])).unwrap());
}

#[test]
fn waiting_tells_whether_it_has_stopped() {
    let server = server(&[]);
    assert!(!server.wait(Some(Duration::from_millis(10))));
    assert!(server.stop(STOP));
    assert!(server.wait(Some(Duration::ZERO)));
    assert!(server.wait(None));
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memcache-meta"));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn the_command_serves_says_where_and_stops_on_either_signal() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let mut child = command()
            .args(["--config", concat!(env!("CARGO_MANIFEST_DIR"), "/../conf/meta.toml")])
            .args(["--set", "listen=127.0.0.1:0", "--set", "log=warn"])
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("memcache-meta: serving on ").expect("the line").parse().unwrap();
        let mut client = Client::connect(&address, 1);
        assert!(matches!(client.ask(request::Body::Status(pb::Status {})), reply::Body::Status(_)));
        let asked = Instant::now();
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        assert!(client.receive().is_none(), "the session is ended");
        while child.try_wait().unwrap().is_none() {
            assert!(asked.elapsed() < DEADLINE, "still running");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn the_command_names_what_is_wrong_with_its_arguments() {
    let taken = server(&[]);
    let in_use = format!("listen={}", taken.address());
    for (arguments, code, named) in [
        (vec!["--set", "leese_ms=5"], 2, "lease_ms"),
        (vec!["--set", "lease_ms"], 2, "KEY=VALUE"),
        (vec!["--set", "log=meta=loud"], 2, "log"),
        (vec!["--config", "no/such.toml"], 2, "no/such.toml"),
        (vec!["--set", in_use.as_str()], 1, "in use"),
    ] {
        let output = command().args(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(named), "{said:?} does not name {named:?}");
    }
    let output = command().env("MEMCACHE_META_LISTN", "x").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("\"listen\""));
}
