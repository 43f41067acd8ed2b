//! Doors for the fuzzer (`fuzz/`) to what the public surface does not show. Each takes any bytes and panics if what they
//! did breaks a promise. The kept corpus is replayed by a test of this module.

mod relay;

use std::borrow::Cow;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::{Segment, SegmentOptions};
use memcache_types::limits::SEGMENT_BYTES_MIN;
use memcache_types::{Extent, GlobalAddress, Piece, ScatterList, SegmentId};

use crate::descriptor::RegionDescriptor;
use crate::ops::check_range;
use crate::tcp::exchange::{Connection, Ending, Job, Lane, drive};
use crate::tcp::frame::{Op, REPLY_BYTES, REQUEST_BYTES, Reply, Request, Status};
use crate::tcp::session::Session;

pub use relay::relay;

const TOKEN: u128 = 0x6d65_6d63_6163_6865;
/// Steps of one script: all that they make either end send fits into the socket's buffer.
const STEPS_MAX: usize = 8;
const SHORT_MASK: u64 = 0x7fff;
/// Longest a conversation may take whose other end has hung up.
const PATIENCE: Duration = Duration::from_secs(5);

/// A request header.
pub fn request(bytes: &[u8]) {
    if let Some(Ok(request)) = bytes.first_chunk::<REQUEST_BYTES>().map(Request::decode) {
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
}

/// A reply header.
pub fn reply(bytes: &[u8]) {
    if let Some(Ok(reply)) = bytes.first_chunk::<REPLY_BYTES>().map(Reply::decode) {
        assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
    }
}

/// A region descriptor.
pub fn descriptor(bytes: &[u8]) {
    if let Ok(descriptor) = RegionDescriptor::decode(bytes) {
        assert_eq!(descriptor.encode(), bytes, "another descriptor means the same");
    }
}

/// Numbers and runs of bytes taken from the front of an input; zeros after its end.
struct Script<'a> {
    rest: &'a [u8],
    steps: usize,
}

impl<'a> Script<'a> {
    fn new(rest: &'a [u8]) -> Self {
        Self { rest, steps: 0 }
    }

    /// The next step, if there is one.
    fn step(&mut self) -> Option<u8> {
        self.steps += 1;
        (self.steps <= STEPS_MAX && !self.rest.is_empty()).then(|| self.byte())
    }

    fn run(&mut self, bytes: usize) -> &'a [u8] {
        let (run, rest) = self.rest.split_at(bytes.min(self.rest.len()));
        self.rest = rest;
        run
    }

    fn byte(&mut self) -> u8 {
        self.run(1).first().copied().unwrap_or(0)
    }

    fn short(&mut self) -> u64 {
        u64::from(self.byte()) | u64::from(self.byte()) << 8
    }

    /// A number that makes sense, unless `wild`.
    fn number(&mut self, wild: bool, unit: u64) -> u64 {
        if !wild {
            return (self.short() & SHORT_MASK) * unit;
        }
        let mut bytes = [0; 8];
        let run = self.run(8);
        bytes[..run.len()].copy_from_slice(run);
        u64::from_le_bytes(bytes) | 1 << 40
    }
}

/// A connection to a data server: raw bytes, sealed requests with any fields, payloads. Nothing outside the extents that
/// were asked for rightly may change, and the session ends when the peer hangs up.
pub fn session(input: &[u8]) {
    thread_local! {
        static SEGMENT: Arc<Segment> = Arc::new(
            Segment::create(SEGMENT_BYTES_MIN, &SegmentOptions { huge_pages: false, prefault: true }).expect("a segment"),
        );
    }
    let segment = SEGMENT.with(Arc::clone);
    let (bytes, written) = requests(input);
    let (mut peer, socket) = pair();
    if peer.write_all(&bytes).is_err() {
        return; // more than the system takes without a reader
    }
    peer.shutdown(std::net::Shutdown::Write).expect("a socket can be closed");
    let started = Instant::now();
    Session::new(Arc::new(socket), Arc::clone(&segment), TOKEN, None).run("fuzzer");
    assert!(started.elapsed() < PATIENCE, "the session outlived its peer");
    let mut replies = Vec::new();
    // Ends in a reset where the session hung up on bytes that it had not read.
    let _ = peer.read_to_end(&mut replies);
    if let Some(first) = replies.first_chunk::<REPLY_BYTES>() {
        assert!(Reply::decode(first).is_ok(), "the first reply is no frame");
    }
    clear_and_check(&segment, &written);
}

/// The bytes a script stands for, and the extents that its writes may change.
fn requests(input: &[u8]) -> (Vec<u8>, Vec<(u64, u64)>) {
    let (mut script, mut bytes, mut written) = (Script::new(input), Vec::new(), Vec::new());
    while let Some(step) = script.step() {
        match step & 3 {
            0 => {
                let length = usize::from(script.byte());
                bytes.extend_from_slice(script.run(length));
            }
            1 => {
                let (wild, flags) = (step >> 2, script.byte());
                let request = Request {
                    op: [Op::Ping, Op::Read, Op::Write, Op::Write][usize::from(flags & 3)],
                    id: script.steps as u64,
                    token: if flags & 4 == 0 { TOKEN } else { TOKEN ^ 1 },
                    offset: script.number(wild & 1 != 0, if flags & 8 == 0 { 64 } else { 1 }),
                    payload_bytes: script.number(wild & 2 != 0, 1),
                    extent_bytes: script.number(wild & 4 != 0, if flags & 16 == 0 { 64 } else { 1 }),
                    start: script.number(wild & 8 != 0, 1),
                    budget_ms: if flags & 32 == 0 { 1000 } else { 0 },
                };
                let end = request.start.saturating_add(request.payload_bytes);
                let sense = check_range(request.offset, request.extent_bytes, end, SEGMENT_BYTES_MIN);
                if request.op == Op::Write && sense.is_ok() && request.token == TOKEN {
                    written.push((request.offset, request.extent_bytes));
                }
                bytes.extend_from_slice(&request.encode());
            }
            2 => bytes.resize(bytes.len() + usize::try_from(script.short() & SHORT_MASK).unwrap_or(0), 0xee),
            _ => bytes.extend_from_slice(&[0x33; 64]),
        }
    }
    (bytes, written)
}

/// Checks that nothing but `written` has changed, and makes that zero again.
fn clear_and_check(segment: &Segment, written: &[(u64, u64)]) {
    for (offset, bytes) in written {
        let extent = segment.region().sub(*offset, *bytes).expect("checked when it was asked for");
        extent.write_from(&vec![0; extent.len()]);
    }
    let mut all = vec![1; segment.region().len()];
    segment.region().read_into(&mut all);
    assert!(all.iter().all(|byte| *byte == 0), "a byte outside the extents has changed");
}

/// Replies to a client with two reads, a write and a ping under way. Nothing outside the pieces may change, and the call
/// ends when the peer hangs up.
pub fn replies(input: &[u8]) {
    const GUARD: u8 = 0xa5;
    let (mut peer, socket) = pair();
    let mut arena = vec![GUARD; 4096];
    let base = arena.as_mut_ptr().expose_provenance() as u64;
    let list = |pieces: &[(u64, u64)]| -> ScatterList {
        pieces.iter().map(|(start, bytes)| Piece { address: base + start, bytes: *bytes }).collect()
    };
    let lists = [list(&[(10, 100), (200, 1), (300, 899)]), list(&[(2000, 64)]), list(&[(3000, 500)])];
    let extent = Extent::new(GlobalAddress::new(SegmentId::new(1), 0), 1088).ok();
    let job = |op, local, summed| Job { op, extent, start: 0, local, ending: Ending::Nothing, summed };
    let jobs = vec![
        job(Op::Read, Cow::Borrowed(&lists[0]), true),
        job(Op::Read, Cow::Borrowed(&lists[1]), false),
        Job { ending: Ending::Ready(&[0x44; 64]), ..job(Op::Write, Cow::Borrowed(&lists[2]), false) },
        job(Op::Ping, Cow::Owned(ScatterList::new()), false),
    ];
    if peer.write_all(&answers(input, &[1000, 64, 0, 0])).is_err() {
        return; // more than the system takes without a reader
    }
    peer.shutdown(std::net::Shutdown::Write).expect("a socket can be closed");
    let started = Instant::now();
    let mut lanes = [Lane::new(Connection { socket, next_id: 1 }, jobs, TOKEN, started + PATIENCE)];
    // SAFETY: the arena lives and nobody else touches it meanwhile.
    unsafe { drive(&mut lanes, false, started + PATIENCE) };
    assert!(started.elapsed() < PATIENCE, "the call outlived its peer");
    let [lane] = lanes;
    assert_eq!(lane.finish().0.len(), 4);
    let is_target = |at: usize| matches!(at, 10..110 | 200 | 300..1199 | 2000..2064);
    assert!((0..4096).all(|at| is_target(at) || arena[at] == GUARD), "a byte outside the targets has changed");
}

/// The bytes a script of replies stands for.
fn answers(input: &[u8], lengths: &[u64; 4]) -> Vec<u8> {
    let (mut script, mut bytes, mut next) = (Script::new(input), Vec::new(), 0usize);
    while let Some(step) = script.step() {
        match step & 3 {
            0 => {
                let length = usize::from(script.byte());
                bytes.extend_from_slice(script.run(length));
            }
            1 => {
                let flags = script.byte();
                let body_bytes = if flags & 4 == 0 { lengths[next % 4] } else { script.number(flags & 8 != 0, 1) };
                let id = if flags & 16 == 0 { next as u64 + 1 } else { script.short() };
                let status = [Status::Done, Status::Done, Status::Invalid, Status::Refused][usize::from(flags & 3)];
                bytes.extend_from_slice(&Reply { status, id, body_bytes }.encode());
                next += 1;
            }
            2 => bytes.resize(bytes.len() + usize::try_from(script.short() & SHORT_MASK).unwrap_or(0), 0xee),
            _ => bytes.extend_from_slice(&[0x33; 64]),
        }
    }
    bytes
}

/// Two ends of a connection; the first one blocks for a while at most, the second never.
fn pair() -> (UnixStream, OwnedFd) {
    let (peer, socket) = UnixStream::pair().expect("a pair of sockets");
    peer.set_write_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.set_nonblocking(true).expect("a socket that does not block");
    (peer, socket.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Every input that is kept, and each with its end cut off and with a byte changed.
    fn replay(target: &str, run: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        let mut inputs = 0;
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let mut bytes = fs::read(entry.expect("an entry").path()).expect("an input can be read");
            run(&bytes);
            run(&bytes[..bytes.len() / 2]);
            if let Some(byte) = bytes.last_mut() {
                *byte ^= 0x10;
            }
            run(&bytes);
            inputs += 1;
        }
        assert!(inputs > 2, "only {inputs} inputs in {}", folder.display());
    }

    #[test]
    fn the_kept_inputs_break_no_promise() {
        replay("request", request);
        replay("reply", reply);
        replay("descriptor", descriptor);
        replay("session", session);
        replay("replies", replies);
        replay("relay", relay);
    }

    /// The scripts reach what they are there for.
    #[test]
    fn scripts_speak_the_protocol() {
        // A write of 4 bytes into an extent of 128 at 64, its payload, and its trailer.
        let write = [1, 2, 1, 0, 4, 0, 2, 0, 0, 0, 2, 4, 0, 3];
        let (bytes, written) = requests(&write);
        assert_eq!((bytes.len(), written), (REQUEST_BYTES + 4 + 64, vec![(64, 128)]));
        session(&write);
        let answer = [1, 0, 2, 232, 3, 3, 1, 0, 3, 3];
        assert_eq!(answers(&answer, &[1000, 64, 0, 0]).len(), 2 * REPLY_BYTES + 1000 + 3 * 64);
        replies(&answer);
    }
}
