//! A process that lends memory, and what tests do with it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::{Checksum, Segment, SegmentOptions, Trailer};
use memcache_testkit::arena::Arena;
use memcache_testkit::rng::{Rng, pattern};
use memcache_testkit::transport_suite;
use memcache_transport::{
    Fabric, FabricOptions, Link, ProtocolChoice, ReadOp, RegionDescriptor, RegionServer, ServerOptions, TransportError,
    WriteOp,
};
use memcache_transport_rdma::{RdmaOptions, RdmaRoad};
use memcache_types::{Extent, Generation, GlobalAddress, KeyDigest, SegmentId, extent_bytes};

const ROLE: &str = "MEMCACHE_TEST_OWNER_PROTOCOL";

/// Not a test: the process that lends memory. Prints its descriptor and serves until its stdin ends.
#[test]
#[ignore = "run by the other tests as a process of its own"]
fn owner_process() {
    let Ok(protocols) = std::env::var(ROLE) else { return };
    let server = serve(protocols.parse().unwrap());
    let bytes: Vec<String> = server.descriptor().encode().iter().map(u8::to_string).collect();
    println!("\ndescriptor {}", bytes.join(" "));
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing).unwrap();
}

pub(crate) fn serve(protocols: ProtocolChoice) -> RegionServer {
    let options = SegmentOptions { huge_pages: false, prefault: false };
    let segment = Arc::new(Segment::create(transport_suite::REGION_BYTES_MIN, &options).unwrap());
    let options = ServerOptions { protocols, ..ServerOptions::default() };
    RegionServer::start_with(segment, &options, Some(&*road())).unwrap()
}

pub(crate) fn road() -> Arc<RdmaRoad> {
    Arc::new(RdmaRoad::new(&RdmaOptions::default()).unwrap())
}

pub(crate) fn fabric(choice: ProtocolChoice) -> Fabric {
    Fabric::with_rdma(FabricOptions { choice, ..FabricOptions::default() }, Some(road()))
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// A running owner. Killed when dropped.
pub(crate) struct Owner {
    child: Child,
    pub(crate) descriptor: RegionDescriptor,
    _stdin: ChildStdin,
    _stdout: BufReader<ChildStdout>,
}

impl Owner {
    pub(crate) fn start(protocols: ProtocolChoice) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "owner::owner_process", "--ignored", "--nocapture"])
            .env(ROLE, protocols.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut stdout = BufReader::new(stdout);
        let line = stdout.by_ref().lines().map_while(Result::ok).find(|line| line.starts_with("descriptor ")).unwrap();
        let bytes: Vec<u8> = line.split(' ').skip(1).map(|byte| byte.parse().unwrap()).collect();
        let descriptor = RegionDescriptor::decode(&bytes).unwrap();
        Self { child, descriptor, _stdin: stdin, _stdout: stdout }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
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

pub(crate) fn place(offset: u64, bytes: usize) -> Extent {
    Extent::new(GlobalAddress::new(SegmentId::new(1), offset), extent_bytes(bytes as u64)).unwrap()
}

pub(crate) fn trailer(generation: u64, bytes: usize) -> [u8; 64] {
    let digest = KeyDigest::of(&generation.to_le_bytes());
    let generation = Generation::new(generation);
    Trailer { digest, generation, payload_bytes: bytes as u64, checksum: Checksum::None }.encode()
}

/// Puts an object at the start of the region, from pieces that are not registered.
pub(crate) fn put(link: &dyn Link, generation: u64, bytes: usize) -> Result<Vec<u8>, TransportError> {
    let object = pattern(generation, bytes);
    let mut arena = Arena::cut(bytes, 5, &mut Rng::new(1));
    arena.fill(&object);
    let (local, trailer) = (arena.list(), trailer(generation, bytes));
    let op = WriteOp { extent: place(0, bytes), payload_bytes: bytes as u64, local: &local, trailer: &trailer };
    // SAFETY: the arena lives and is not touched during the call.
    unsafe { link.write(&[op], soon()) }.remove(0).map(|()| object)
}

/// Gets it, and checks that the trailer is that of the generation.
pub(crate) fn get(
    link: &dyn Link,
    generation: u64,
    bytes: usize,
    deadline: Instant,
) -> Result<Vec<u8>, TransportError> {
    let mut arena = Arena::cut(bytes, 5, &mut Rng::new(2));
    let local = arena.list();
    let op = ReadOp { extent: place(0, bytes), payload_bytes: bytes as u64, local: &local };
    // SAFETY: the arena lives and is not touched during the call.
    let found = unsafe { link.read(&[op], deadline) }.remove(0)?;
    assert_eq!(found, trailer(generation, bytes), "another trailer than was written");
    Ok(arena.object())
}
