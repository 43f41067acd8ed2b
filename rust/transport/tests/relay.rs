//! An owner that relays, met by peers that lie, hang up and ask for what cannot be; and a peer met by such owners.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memcache_memory::{Checksum, Segment, SegmentOptions, Trailer, checksum_bytes};
use memcache_testkit::rng::pattern;
use memcache_transport::plan::Way;
use memcache_transport::{
    RegionServer, RelayCall, RelayClient, RelayHost, RelayLease, RelayOffer, RelayRefusal, RelayReply, RelayRequest,
    RelayRun, RelayStep, ServerOptions, TransportError,
};
use memcache_types::{Generation, KeyDigest};
use parking_lot::Mutex;

const REGION: u64 = 1 << 20;
const SLOT: u64 = 4096;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// A device of plain memory with one set of two slots.
#[derive(Debug)]
struct Memory {
    offer: RelayOffer,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    segment: Arc<Segment>,
    slots: Mutex<[Vec<u8>; 2]>,
    leased: AtomicUsize,
    /// Leases that ended without a word.
    dropped: AtomicUsize,
}

#[derive(Debug)]
struct Set(Arc<Shared>, bool);

impl RelayHost for Memory {
    fn offer(&self) -> &RelayOffer {
        &self.offer
    }

    fn lease(&self) -> Result<Box<dyn RelayLease>, RelayRefusal> {
        if self.shared.leased.swap(1, Ordering::SeqCst) == 1 {
            return Err(RelayRefusal::Busy);
        }
        Ok(Box::new(Set(Arc::clone(&self.shared), false)))
    }
}

impl RelayLease for Set {
    fn set(&self) -> u32 {
        0
    }

    fn begin(&mut self, way: Way, slot: u32, runs: &[RelayRun]) -> Result<(), RelayRefusal> {
        let slot = &mut self.0.slots.lock()[slot as usize];
        for run in runs {
            let part = self.0.segment.region().sub(run.offset + run.start, run.bytes).unwrap();
            let start = usize::try_from(run.staging_offset).unwrap();
            let staged = &mut slot[start..start + part.len()];
            match way {
                Way::Get => part.read_into(staged),
                Way::Put => part.write_from(staged),
            }
        }
        Ok(())
    }

    fn end(&mut self, _deadline: Instant) -> Result<(), RelayRefusal> {
        Ok(())
    }

    fn rest_until(&mut self, _deadline: Instant) {}

    fn release(mut self: Box<Self>) {
        self.1 = true;
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        self.0.leased.store(0, Ordering::SeqCst);
        self.0.dropped.fetch_add(usize::from(!self.1), Ordering::SeqCst);
    }
}

struct Owner {
    server: RegionServer,
    shared: Arc<Shared>,
    client: Arc<RelayClient>,
}

fn owner() -> Owner {
    let options = SegmentOptions { huge_pages: false, prefault: false };
    let segment = Arc::new(Segment::create(REGION, &options).unwrap());
    let slots = Mutex::new([vec![0; 4096], vec![0; 4096]]);
    let shared = Arc::new(Shared { segment: Arc::clone(&segment), slots, leased: 0.into(), dropped: 0.into() });
    let offer = RelayOffer { export: vec![7; 40], slot_bytes: SLOT, slots: 2, sets: 1 };
    let host = Arc::new(Memory { offer, shared: Arc::clone(&shared) });
    let server =
        RegionServer::start_relaying(segment, &ServerOptions::default(), None, Some(("memory:0", host))).unwrap();
    let descriptor = server.descriptor();
    assert_eq!(descriptor.relay.as_deref(), Some("memory:0"));
    let client = RelayClient::new(descriptor.tcp.as_deref().unwrap(), descriptor.token, "memory:0");
    Owner { server, shared, client: Arc::new(client) }
}

fn ask(call: &mut RelayCall, request: &RelayRequest) -> Result<RelayReply, TransportError> {
    call.send(0, request, soon())?;
    call.receive(soon()).map(|(_, reply)| reply)
}

fn leased(owner: &Owner) -> RelayCall {
    let mut call = owner.client.call(soon()).unwrap();
    assert_eq!(ask(&mut call, &RelayRequest::Lease).unwrap(), RelayReply::Lease { set: 0 });
    call
}

fn trailer(bytes: u64) -> Trailer {
    let (digest, generation) = (KeyDigest::from_u128(5), Generation::new(9));
    Trailer { digest, generation, payload_bytes: bytes, checksum: Checksum::None }
}

/// A run of an extent of 448 bytes at 640, at the same place of the slot; `ends`: the object does.
fn run(start: u64, bytes: u64, ends: bool) -> RelayRun {
    let trailer = ends.then(|| trailer(start + bytes).encode());
    RelayRun { offset: 640, extent_bytes: 448, start, bytes, staging_offset: start, trailer }
}

fn step(runs: Vec<RelayRun>) -> RelayStep {
    RelayStep { slot: 1, summed: true, runs }
}

/// Where that extent's trailer is.
fn trailer_of(owner: &Owner) -> Option<Trailer> {
    Trailer::decode(&owner.shared.segment.region().sub(640, 448).unwrap().load_trailer())
}

#[test]
fn parts_of_an_object_get_its_trailer_and_checksum_at_the_end() {
    let owner = owner();
    let mut call = leased(&owner);
    let object = pattern(3, 300);
    owner.shared.slots.lock()[1][..300].copy_from_slice(&object);
    assert_eq!(ask(&mut call, &RelayRequest::Store(step(vec![run(0, 128, false)]))).unwrap(), RelayReply::Stored);
    assert_eq!(trailer_of(&owner), None, "half an object has a trailer");
    let rest = step(vec![run(128, 64, false), run(192, 108, true)]);
    assert_eq!(ask(&mut call, &RelayRequest::Store(rest)).unwrap(), RelayReply::Stored);
    let sealed = Trailer { checksum: Checksum::Crc32c(checksum_bytes(&object)), ..trailer(300) };
    assert_eq!(trailer_of(&owner), Some(sealed));
    owner.shared.slots.lock()[1].fill(0);
    let Ok(RelayReply::Fetched(found)) = ask(&mut call, &RelayRequest::Fetch(step(vec![run(0, 300, true)]))) else {
        panic!("no fetch")
    };
    assert_eq!(found[0].sum, checksum_bytes(&object));
    assert_eq!(Trailer::decode(&found[0].trailer), Some(sealed));
    assert!(owner.shared.slots.lock()[1][..300] == object);
    // A store that begins takes the trailer away.
    assert_eq!(ask(&mut call, &RelayRequest::Store(step(vec![run(0, 64, false)]))).unwrap(), RelayReply::Stored);
    assert_eq!(trailer_of(&owner), None);
}

#[test]
fn what_makes_no_sense_is_refused_and_the_connection_lives() {
    let owner = owner();
    let mut call = leased(&owner);
    let of = |change: fn(&mut RelayRun)| {
        let mut run = run(0, 100, true);
        change(&mut run);
        step(vec![run])
    };
    let wrong = [
        of(|run| run.offset = REGION),
        of(|run| run.offset = u64::MAX - 63),
        of(|run| run.offset += 1),
        of(|run| run.extent_bytes = 1 << 63),
        of(|run| run.extent_bytes = 128),
        of(|run| run.bytes = u64::MAX),
        of(|run| run.bytes = 385),
        of(|run| run.start = u64::MAX - 99),
        of(|run| run.staging_offset = SLOT),
        of(|run| run.staging_offset = SLOT - 64),
        of(|run| run.staging_offset = u64::MAX - 63),
        of(|run| run.staging_offset = 32),
        RelayStep { slot: 2, ..step(vec![run(0, 100, true)]) },
        step(vec![run(64, 64, false), run(0, 64, false)]),
    ];
    for step in wrong {
        for request in [RelayRequest::Fetch(step.clone()), RelayRequest::Store(step)] {
            let answer = ask(&mut call, &request);
            assert!(matches!(answer, Err(TransportError::InvalidOp { .. })), "{answer:?} to {request:?}");
        }
    }
    // Of stores only: parts that nothing led to, and a trailer that is none.
    let torn = RelayRun { trailer: Some([9; 64]), ..run(0, 64, true) };
    for runs in [vec![run(64, 64, true)], vec![run(0, 64, false), run(128, 64, true)], vec![torn]] {
        let answer = ask(&mut call, &RelayRequest::Store(step(runs)));
        assert!(matches!(answer, Err(TransportError::InvalidOp { .. })), "{answer:?}");
    }
    let mut all = vec![1; usize::try_from(REGION).unwrap()];
    owner.shared.segment.region().read_into(&mut all);
    assert!(all.iter().all(|byte| *byte == 0), "a refused store has changed something");
    assert_eq!(ask(&mut call, &RelayRequest::Store(step(vec![run(0, 64, true)]))).unwrap(), RelayReply::Stored);
}

#[test]
fn staging_goes_round_and_comes_back_from_peers_that_vanish() {
    let owner = owner();
    assert_eq!(*owner.client.offer(soon()).unwrap().export, [7; 40]);
    let held = leased(&owner);
    let mut other = owner.client.call(soon()).unwrap();
    assert_eq!(ask(&mut other, &RelayRequest::Lease).unwrap(), RelayReply::Busy);
    let unleased = ask(&mut other, &RelayRequest::Fetch(step(vec![run(0, 64, true)])));
    assert_eq!(unleased.unwrap(), RelayReply::Busy, "a step without a set");
    held.release(soon());
    let until = soon();
    while ask(&mut other, &RelayRequest::Lease).unwrap() == RelayReply::Busy {
        assert!(Instant::now() < until, "a set that was released did not come back");
    }
    assert_eq!(owner.shared.dropped.load(Ordering::SeqCst), 0);
    drop(other);
    while owner.shared.leased.load(Ordering::SeqCst) == 1 {
        assert!(Instant::now() < until, "a peer that hung up still has its set");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(owner.shared.dropped.load(Ordering::SeqCst), 1, "it said nothing, so the set must rest");
}

#[test]
fn noise_instead_of_a_request_ends_the_connection() {
    let owner = owner();
    let token = owner.server.descriptor().token;
    let sent = |body: &[u8], length: u64| {
        let mut stream = TcpStream::connect(owner.server.descriptor().tcp.as_deref().unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut bytes = b"MCQ\x02\x02\x00\x03\x00".to_vec();
        bytes.extend(7u64.to_le_bytes());
        bytes.extend(token.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(length.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(20_000u32.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(checksum_bytes(&bytes).to_le_bytes());
        bytes.extend(body);
        stream.write_all(&bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    };
    let lease = [&[1u8][..], &[0; 8]].concat();
    assert_eq!(sent(&lease, 9).len(), 32 + 13, "a lease, to see that the frame is right");
    for (body, length) in [(vec![], 0), (vec![9; 9], 9), (lease.clone(), 8), ([&lease[..], &[0]].concat(), 10)] {
        assert!(sent(&body, length).is_empty(), "{body:?}");
    }
    let told = sent(&[], u64::MAX);
    assert!(String::from_utf8_lossy(&told).contains("longer than any"), "{told:?}");
    // An owner without a device says so.
    let options = SegmentOptions { huge_pages: false, prefault: false };
    let plain = RegionServer::start(Arc::new(Segment::create(REGION, &options).unwrap()), &ServerOptions::default());
    let plain = plain.unwrap();
    let descriptor = plain.descriptor();
    assert_eq!(descriptor.relay, None);
    let client = Arc::new(RelayClient::new(descriptor.tcp.as_deref().unwrap(), descriptor.token, "x"));
    let error = client.offer(soon()).unwrap_err();
    assert!(error.to_string().contains("offers no relay"), "{error}");
}

#[test]
fn an_owner_that_lies_or_says_nothing_is_an_error_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answers: Vec<Vec<u8>> = vec![
        pattern(1, 32),
        reply(2, 0, &[1; 13]),
        reply(1, 0, &[9; 9]),
        reply(1, 0, &[2; 9 + 67]),
        reply(1, 0, &[]),
        header(1, 0, u64::MAX),
        reply(1, 2, b"go away"),
        Vec::new(),
    ];
    let count = answers.len();
    let serving = thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&answer).unwrap();
            if answer.is_empty() {
                thread::sleep(Duration::from_millis(300));
            }
            let mut asked = [0; 81];
            let _ = stream.read_exact(&mut asked);
        }
    });
    for _ in 0..count {
        let client = Arc::new(RelayClient::new(&address, 1, "x"));
        let mut call = client.call(soon()).unwrap();
        let patience = Instant::now() + Duration::from_millis(200);
        call.send(0, &RelayRequest::Lease, patience).unwrap();
        let answer = call.receive(patience);
        assert!(answer.is_err(), "{answer:?}");
        assert!(!matches!(answer, Err(TransportError::InvalidOp { .. })));
        assert!(!call.is_open());
    }
    serving.join().unwrap();
}

fn header(id: u64, status: u8, body_bytes: u64) -> Vec<u8> {
    let mut bytes = b"MCA\x02\x02\x00".to_vec();
    bytes.extend([status, 0]);
    bytes.extend(id.to_le_bytes());
    bytes.extend(body_bytes.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(checksum_bytes(&bytes).to_le_bytes());
    bytes
}

fn reply(id: u64, status: u8, body: &[u8]) -> Vec<u8> {
    [header(id, status, body.len() as u64), body.to_vec()].concat()
}
