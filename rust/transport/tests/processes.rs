//! Owner and peers in different processes: the suite, and owners that die.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on stops; the owner talks on stdout"
)]

use std::fs::{DirEntry, read_dir, read_to_string};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use memcache_memory::{Checksum, Segment, SegmentOptions, Trailer};
use memcache_testkit::arena::Arena;
use memcache_testkit::rng::{Rng, pattern};
use memcache_testkit::transport_suite;
use memcache_transport::{
    Fabric, FabricOptions, Link, Protocol, ProtocolChoice, ReadOp, RegionDescriptor, RegionServer, ServerOptions,
    TransportError, WriteOp,
};
use memcache_types::{Extent, Generation, GlobalAddress, KeyDigest, SegmentId, extent_bytes};

const ROLE: &str = "MEMCACHE_TEST_OWNER_PROTOCOL";

/// Not a test: the process that lends memory, started by the tests below. Prints its descriptor and serves until
/// its stdin ends.
#[test]
#[ignore = "run by the other tests as a process of its own"]
fn owner_process() {
    let protocols = std::env::var(ROLE).expect("started by a test").parse().unwrap();
    let options = SegmentOptions { huge_pages: false, prefault: false };
    let segment = Arc::new(Segment::create(transport_suite::REGION_BYTES_MIN, &options).unwrap());
    let server = RegionServer::start(segment, &ServerOptions { protocols, ..ServerOptions::default() }).unwrap();
    let bytes: Vec<String> = server.descriptor().encode().iter().map(u8::to_string).collect();
    println!("\ndescriptor {}", bytes.join(" "));
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing).unwrap();
}

/// A running owner. Killed when dropped.
struct Owner {
    child: Child,
    descriptor: RegionDescriptor,
    /// Kept open, or its last words would be an error.
    _stdout: BufReader<ChildStdout>,
}

impl Owner {
    fn start(protocols: ProtocolChoice) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "owner_process", "--ignored", "--nocapture"])
            .env(ROLE, protocols.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let line = stdout.by_ref().lines().map_while(Result::ok).find(|line| line.starts_with("descriptor ")).unwrap();
        let bytes: Vec<u8> = line.split(' ').skip(1).map(|byte| byte.parse().unwrap()).collect();
        Self { child, descriptor: RegionDescriptor::decode(&bytes).unwrap(), _stdout: stdout }
    }

    /// Stops all threads where they are, and waits until they stand still.
    fn freeze(&self) {
        self.signal("-STOP");
        let tasks = format!("/proc/{}/task", self.child.id());
        let is_stopped = |task: std::io::Result<DirEntry>| {
            let state = read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
            state.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        };
        let deadline = soon();
        while !read_dir(&tasks).unwrap().all(is_stopped) {
            assert!(Instant::now() < deadline, "the owner does not stop");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// `kill -9`.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn fabric(choice: ProtocolChoice) -> Fabric {
    Fabric::new(FabricOptions { choice, connections_per_peer: 2 })
}

fn place(bytes: usize) -> Extent {
    Extent::new(GlobalAddress::new(SegmentId::new(1), 0), extent_bytes(bytes as u64)).unwrap()
}

fn put(link: &dyn Link, object: &[u8]) -> Result<[u8; 64], TransportError> {
    let trailer = Trailer {
        digest: KeyDigest::of(b"key"),
        generation: Generation::new(7),
        payload_bytes: object.len() as u64,
        checksum: Checksum::None,
    };
    let mut arena = Arena::cut(object.len(), 5, &mut Rng::new(1));
    arena.fill(object);
    let (local, trailer) = (arena.list(), trailer.encode());
    let op = WriteOp { extent: place(object.len()), payload_bytes: local.bytes(), local: &local, trailer: &trailer };
    // SAFETY: the arena lives and is not touched during the call.
    unsafe { link.write(&[op], soon()) }.remove(0).map(|()| trailer)
}

fn get(link: &dyn Link, bytes: usize, deadline: Instant) -> Result<([u8; 64], Vec<u8>), TransportError> {
    let mut arena = Arena::cut(bytes, 5, &mut Rng::new(2));
    let local = arena.list();
    let op = ReadOp { extent: place(bytes), payload_bytes: local.bytes(), local: &local };
    // SAFETY: the arena lives and is not touched during the call.
    unsafe { link.read(&[op], deadline) }.remove(0).map(|trailer| (trailer, arena.object()))
}

#[test]
fn the_suite_over_shared_memory() {
    let owner = Owner::start(ProtocolChoice::Auto);
    let fabric = fabric(ProtocolChoice::HostShm);
    transport_suite::run(&|| fabric.link(&owner.descriptor, soon()).unwrap());
}

#[test]
fn the_suite_over_tcp() {
    let owner = Owner::start(ProtocolChoice::Auto);
    let fabric = fabric(ProtocolChoice::HostTcp);
    transport_suite::run(&|| fabric.link(&owner.descriptor, soon()).unwrap());
}

#[test]
fn auto_takes_the_best_road_that_is_open() {
    for (served, expected) in [
        (ProtocolChoice::Auto, Protocol::HostShm),
        (ProtocolChoice::HostShm, Protocol::HostShm),
        (ProtocolChoice::HostTcp, Protocol::HostTcp),
    ] {
        let owner = Owner::start(served);
        assert_eq!(fabric(ProtocolChoice::Auto).link(&owner.descriptor, soon()).unwrap().protocol(), expected);
    }
}

/// Two peers, one over each road, see each other's writes.
#[test]
fn roads_lead_to_the_same_memory() {
    let owner = Owner::start(ProtocolChoice::Auto);
    let shm = fabric(ProtocolChoice::HostShm).link(&owner.descriptor, soon()).unwrap();
    let tcp = fabric(ProtocolChoice::HostTcp).link(&owner.descriptor, soon()).unwrap();
    for (writer, reader, seed) in [(&shm, &tcp, 1), (&tcp, &shm, 2)] {
        let object = pattern(seed, 200_001);
        let trailer = put(&**writer, &object).unwrap();
        assert!(get(&**reader, object.len(), soon()).unwrap() == (trailer, object));
    }
}

#[test]
fn what_is_mapped_outlives_its_owner_but_is_not_found_again() {
    let mut owner = Owner::start(ProtocolChoice::Auto);
    let fabric = fabric(ProtocolChoice::Auto);
    let link = fabric.link(&owner.descriptor, soon()).unwrap();
    assert_eq!(link.protocol(), Protocol::HostShm);
    let object = pattern(3, 1 << 20);
    let trailer = put(&*link, &object).unwrap();
    owner.kill();
    assert!(
        get(&*link, object.len(), soon()).unwrap() == (trailer, object),
        "the mapping changed with the owner's death"
    );
    assert!(!link.is_open());
    assert_eq!(fabric.link(&owner.descriptor, soon()).unwrap_err(), TransportError::PeerGone);
    // And again, at once, from the memory of the failure.
    assert_eq!(fabric.link(&owner.descriptor, soon()).unwrap_err(), TransportError::PeerGone);
}

/// Nobody asks for a dead node's memory again, so it must go by itself.
#[test]
fn the_memory_of_a_dead_owner_is_let_go() {
    let mut owner = Owner::start(ProtocolChoice::HostShm);
    let fabric = fabric(ProtocolChoice::HostShm);
    let link = Arc::downgrade(&fabric.link(&owner.descriptor, soon()).unwrap());
    assert!(link.upgrade().is_some(), "a link is not kept");
    owner.kill();
    let deadline = soon();
    while link.upgrade().is_some() {
        assert!(Instant::now() < deadline, "the mapping outlives its owner");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_owner_killed_in_the_middle_of_reads_is_noticed() {
    let mut owner = Owner::start(ProtocolChoice::HostTcp);
    let fabric = fabric(ProtocolChoice::HostTcp);
    let link = fabric.link(&owner.descriptor, soon()).unwrap();
    let object = pattern(4, 8 << 20);
    let trailer = put(&*link, &object).unwrap();
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (link, object) = (Arc::clone(&link), object.clone());
            thread::spawn(move || {
                for reads in 0.. {
                    match get(&*link, object.len(), soon()) {
                        Ok(found) => assert!(found == (trailer, object.clone()), "wrong bytes after {reads} reads"),
                        Err(error) => return (reads, error),
                    }
                }
                unreachable!("reads go on until one fails")
            })
        })
        .collect();
    // Some reads go well first, and then the axe falls into one of them.
    thread::sleep(Duration::from_millis(300));
    owner.kill();
    for reader in readers {
        let (reads, error) = reader.join().unwrap();
        assert_eq!(error, TransportError::PeerGone, "after {reads} reads");
    }
    assert!(!link.is_open());
    assert_eq!(fabric.link(&owner.descriptor, soon()).unwrap_err(), TransportError::PeerGone);
}

#[test]
fn an_owner_that_is_stopped_runs_into_the_deadline() {
    let owner = Owner::start(ProtocolChoice::HostTcp);
    let link = fabric(ProtocolChoice::HostTcp).link(&owner.descriptor, soon()).unwrap();
    put(&*link, &pattern(5, 1000)).unwrap();
    owner.freeze();
    let short = Instant::now() + Duration::from_millis(200);
    assert_eq!(get(&*link, 1000, short).unwrap_err(), TransportError::Timeout);
    assert!(Instant::now() >= short, "a timeout before the deadline");
    owner.thaw();
    // The connection that stood still was given up; a new one works.
    assert!(get(&*link, 1000, soon()).unwrap().1 == pattern(5, 1000));
}

#[test]
fn an_owner_that_ends_closes_its_doors() {
    let mut owner = Owner::start(ProtocolChoice::Auto);
    let (shm, tcp) = (fabric(ProtocolChoice::HostShm), fabric(ProtocolChoice::HostTcp));
    let links = [shm.link(&owner.descriptor, soon()).unwrap(), tcp.link(&owner.descriptor, soon()).unwrap()];
    drop(owner.child.stdin.take());
    assert!(owner.child.wait().unwrap().success(), "the owner did not end by itself");
    assert!(!links[0].is_open());
    assert_eq!(get(&*links[1], 1000, soon()).unwrap_err(), TransportError::PeerGone);
}
