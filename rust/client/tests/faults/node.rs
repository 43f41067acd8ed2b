//! Nodes of the fault run: processes of their own.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use memcache_client::{Checksums, LocalOptions, Store, StoreOptions};
use memcache_config::Endpoint;
use memcache_transport::ProtocolChoice;

const ROLE: &str = "MEMCACHE_TEST_FAULTS_NODE";
const LENT: u64 = 32 << 20;
/// How the files of nodes that keep their memory begin.
pub(crate) const FILES: &str = "/dev/shm/memcache-faults-";

/// What a node keeps its memory in, so that its next life finds it: the second of two has none.
pub(crate) fn file_of(name: &str) -> Option<PathBuf> {
    let parent = if std::env::var(ROLE).is_ok() { std::os::unix::process::parent_id() } else { std::process::id() };
    name.ends_with('0').then(|| format!("{FILES}{parent}-{name}").into())
}

pub(crate) fn open(endpoint: &Endpoint, lend: Option<&str>, protocol: ProtocolChoice) -> Store {
    let lend = lend.map(|name| LocalOptions {
        name: name.to_owned(),
        prefault: false,
        persist: file_of(name),
        repair_bytes_per_s: 0,
        ..LocalOptions::new(LENT)
    });
    let usual = StoreOptions::new(endpoint.clone());
    let options = StoreOptions { lend, protocol, checksums: Checksums::Always, transfer_threads: 2, ..usual };
    Store::open(&options).unwrap()
}

/// Not a test: a node, started by the test. Lends memory until its stdin ends.
#[test]
#[ignore = "run by the other test as a process of its own"]
fn node_process() {
    let role = std::env::var(ROLE).expect("started by a test");
    let (name, endpoint) = role.split_once(' ').unwrap();
    let store = open(&endpoint.parse().unwrap(), Some(name), ProtocolChoice::Auto);
    assert!(store.node().is_some(), "lends");
    println!("\nready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// A node in a process of its own. Killed when dropped.
pub(crate) struct Node {
    child: Child,
    _stdout: BufReader<ChildStdout>,
}

impl Node {
    pub(crate) fn start(name: &str, endpoint: &Endpoint) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "node::node_process", "--ignored", "--nocapture"])
            .env(ROLE, format!("{name} {endpoint}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        assert!(stdout.by_ref().lines().map_while(Result::ok).any(|line| line == "ready"), "the node did not start");
        Self { child, _stdout: stdout }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
