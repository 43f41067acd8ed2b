//! Requests to an owner that relays.

use std::sync::Arc;
use std::time::Instant;

use memcache_memory::{RawRegion, Segment, SegmentOptions, Trailer};
use memcache_types::limits::SEGMENT_BYTES_MIN;

use super::{PATIENCE, Script, clear_and_check};
use crate::error::TransportError;
use crate::plan::Way;
use crate::relay::{
    RelayHost, RelayLease, RelayOffer, RelayRefusal, RelayReply, RelayRequest, RelayRun, RelaySession, RelayStep,
    decode_reply, decode_request, encode_reply, encode_request,
};

const SLOT_BYTES: u64 = 64 << 10;
const STAGED: u8 = 0xee;

/// Requests and replies as bytes, then a session of requests with any numbers. Nothing but the extents of stores that were
/// accepted may change, and a slot is never left.
pub fn relay(input: &[u8]) {
    if let Ok((clock_ns, request)) = decode_request(input) {
        assert_eq!(encode_request(clock_ns, &request), input, "another request means the same");
    }
    if let Ok((clock_ns, reply)) = decode_reply(input) {
        assert_eq!(decode_reply(&encode_reply(clock_ns, &reply)), Ok((clock_ns, reply)));
    }
    thread_local! {
        static SEGMENT: Arc<Segment> = Arc::new(
            Segment::create(SEGMENT_BYTES_MIN, &SegmentOptions { huge_pages: false, prefault: true }).expect("a segment"),
        );
    }
    let segment = SEGMENT.with(Arc::clone);
    let offer = RelayOffer { export: Vec::new(), slot_bytes: SLOT_BYTES, slots: 2, sets: 1 };
    let mut session = RelaySession::new(Arc::new(Host { offer, segment: Arc::clone(&segment) }));
    let (mut script, mut written) = (Script::new(input), Vec::new());
    while let Some(step) = script.step() {
        let request = request(step, &mut script);
        // What is served is what comes out of the decoder.
        let bytes = encode_request(0, &request);
        let Ok((_, request)) = decode_request(&bytes) else { continue };
        let answer = session.serve(0, &request, segment.region(), Instant::now() + PATIENCE);
        match (&request, answer) {
            (RelayRequest::Release, answer) => assert_eq!(answer, Ok(None)),
            (RelayRequest::Store(step), Ok(Some(RelayReply::Stored))) => {
                written.extend(step.runs.iter().map(|run| (run.offset, run.extent_bytes)));
            }
            (RelayRequest::Fetch(step), Ok(Some(RelayReply::Fetched(found)))) => {
                assert_eq!(found.len(), step.runs.len());
            }
            (_, Ok(Some(_)) | Err(TransportError::InvalidOp { .. })) => {}
            (request, answer) => panic!("{answer:?} to {request:?}"),
        }
    }
    clear_and_check(&segment, &written);
}

fn request(step: u8, script: &mut Script<'_>) -> RelayRequest {
    match step & 7 {
        0 => RelayRequest::Offer,
        1 | 2 => RelayRequest::Lease,
        3 => RelayRequest::Release,
        kind => {
            let wild = script.byte();
            let (slot, summed) = (u32::from(wild >> 6), wild & 1 != 0);
            let runs = (0..=step >> 6).map(|_| run(script, wild)).collect();
            let step = RelayStep { slot, summed, runs };
            if kind < 6 { RelayRequest::Fetch(step) } else { RelayRequest::Store(step) }
        }
    }
}

fn run(script: &mut Script<'_>, wild: u8) -> RelayRun {
    let ends = script.byte();
    let trailer = match ends & 3 {
        0 => None,
        1 => Some([ends; 64]),
        _ => Some(
            Trailer {
                digest: memcache_types::KeyDigest::from_u128(u128::from(ends)),
                generation: memcache_types::Generation::new(1),
                payload_bytes: 1,
                checksum: memcache_memory::Checksum::None,
            }
            .encode(),
        ),
    };
    RelayRun {
        offset: script.number(wild & 2 != 0, 64),
        extent_bytes: script.number(wild & 4 != 0, 64),
        start: script.number(wild & 8 != 0, 64),
        bytes: script.number(wild & 16 != 0, 1),
        staging_offset: script.number(wild & 32 != 0, 64),
        trailer,
    }
}

/// A device whose staging holds the same byte everywhere.
#[derive(Debug)]
struct Host {
    offer: RelayOffer,
    segment: Arc<Segment>,
}

impl RelayHost for Host {
    fn offer(&self) -> &RelayOffer {
        &self.offer
    }

    fn lease(&self) -> Result<Box<dyn RelayLease>, RelayRefusal> {
        Ok(Box::new(Lease { segment: Arc::clone(&self.segment) }))
    }
}

#[derive(Debug)]
struct Lease {
    segment: Arc<Segment>,
}

impl RelayLease for Lease {
    fn set(&self) -> u32 {
        0
    }

    fn begin(&mut self, way: Way, slot: u32, runs: &[RelayRun]) -> Result<(), RelayRefusal> {
        assert!(slot < 2 && !runs.is_empty());
        for run in runs {
            assert!(run.staging_offset + run.bytes <= SLOT_BYTES, "a run that leaves its slot");
            let extent = self.segment.region().sub(run.offset, run.extent_bytes).expect("checked");
            let part: RawRegion<'_> = extent.sub(run.start, run.bytes).expect("checked");
            if way == Way::Put {
                part.write_from(&vec![STAGED; part.len()]);
            }
        }
        Ok(())
    }

    fn end(&mut self, _deadline: Instant) -> Result<(), RelayRefusal> {
        Ok(())
    }

    fn rest_until(&mut self, _deadline: Instant) {}

    fn release(self: Box<Self>) {}
}
