//! What stands behind the headers of relay requests and their replies. All numbers are little endian.

use memcache_types::limits::TRAILER_LEN;

use super::{Fetched, RELAY_RUNS_MAX, RelayOffer, RelayReply, RelayRequest, RelayRun, RelayStep};
use crate::tcp::frame::{NotAFrame, TEXT_BYTES_MAX};

/// Bytes of a run without its trailer.
const RUN_BYTES: usize = 41;
/// Longest export of a device, in bytes.
const EXPORT_BYTES_MAX: usize = 1024;
/// Longest request or reply behind its header, in bytes.
pub(crate) const RELAY_BODY_MAX: usize = 64 + EXPORT_BYTES_MAX + RELAY_RUNS_MAX * (RUN_BYTES + TRAILER_LEN);

/// A request that was sent at this time of a simulated device.
pub(crate) fn encode_request(clock_ns: u64, request: &RelayRequest) -> Vec<u8> {
    let (kind, step) = match request {
        RelayRequest::Offer => (0, None),
        RelayRequest::Lease => (1, None),
        RelayRequest::Fetch(step) => (2, Some(step)),
        RelayRequest::Store(step) => (3, Some(step)),
        RelayRequest::Release => (4, None),
    };
    let mut bytes = vec![kind];
    bytes.extend(clock_ns.to_le_bytes());
    let Some(step) = step else { return bytes };
    bytes.push(u8::from(step.summed));
    bytes.extend(step.slot.to_le_bytes());
    // Steps come from the planner, which keeps the limit; a longer one is refused by the other end.
    bytes.extend(u32::try_from(step.runs.len()).unwrap_or(u32::MAX).to_le_bytes());
    for run in &step.runs {
        for number in [run.offset, run.extent_bytes, run.start, run.bytes, run.staging_offset] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.push(u8::from(run.trailer.is_some()));
        bytes.extend(run.trailer.iter().flatten());
    }
    bytes
}

/// When a request was sent, and the request. Any bytes may be given.
pub(crate) fn decode_request(bytes: &[u8]) -> Result<(u64, RelayRequest), NotAFrame> {
    let mut reader = Reader { rest: bytes };
    let kind = reader.byte()?;
    let clock_ns = reader.long()?;
    let request = match kind {
        0 => RelayRequest::Offer,
        1 => RelayRequest::Lease,
        2 => RelayRequest::Fetch(reader.step()?),
        3 => RelayRequest::Store(reader.step()?),
        4 => RelayRequest::Release,
        _ => return Err(NotAFrame("unknown relay request")),
    };
    reader.end()?;
    Ok((clock_ns, request))
}

/// A reply that was sent at this time of a simulated device.
pub(crate) fn encode_reply(clock_ns: u64, reply: &RelayReply) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(clock_ns.to_le_bytes());
    bytes[0] = match reply {
        RelayReply::Offer(offer) => {
            bytes.extend(offer.slot_bytes.to_le_bytes());
            bytes.extend(offer.slots.to_le_bytes());
            bytes.extend(offer.sets.to_le_bytes());
            bytes.extend(&offer.export);
            0
        }
        RelayReply::Lease { set } => {
            bytes.extend(set.to_le_bytes());
            1
        }
        RelayReply::Fetched(found) => {
            for one in found {
                bytes.extend(one.trailer);
                bytes.extend(one.sum.to_le_bytes());
            }
            2
        }
        RelayReply::Stored => 3,
        RelayReply::Busy => 4,
        RelayReply::Failed { why } | RelayReply::Lost { why } => {
            let mut end = why.len().min(TEXT_BYTES_MAX);
            while !why.is_char_boundary(end) {
                end -= 1;
            }
            bytes.extend(&why.as_bytes()[..end]);
            if matches!(reply, RelayReply::Failed { .. }) { 5 } else { 6 }
        }
    };
    bytes
}

/// When a reply was sent, and the reply. Any bytes may be given.
pub(crate) fn decode_reply(bytes: &[u8]) -> Result<(u64, RelayReply), NotAFrame> {
    let mut reader = Reader { rest: bytes };
    let kind = reader.byte()?;
    let clock_ns = reader.long()?;
    let reply = match kind {
        0 => {
            let (slot_bytes, slots, sets) = (reader.long()?, reader.word()?, reader.word()?);
            let export = reader.all(EXPORT_BYTES_MAX)?.to_vec();
            RelayReply::Offer(RelayOffer { export, slot_bytes, slots, sets })
        }
        1 => RelayReply::Lease { set: reader.word()? },
        2 => {
            let mut found = Vec::new();
            while !reader.rest.is_empty() {
                if found.len() >= RELAY_RUNS_MAX {
                    return Err(NotAFrame("too many runs in a relay reply"));
                }
                found.push(Fetched { trailer: reader.take()?, sum: reader.word()? });
            }
            RelayReply::Fetched(found)
        }
        3 => RelayReply::Stored,
        4 => RelayReply::Busy,
        5 | 6 => {
            let text =
                std::str::from_utf8(reader.all(TEXT_BYTES_MAX)?).map_err(|_| NotAFrame("a text that is none"))?;
            let why = text.to_owned();
            if kind == 5 { RelayReply::Failed { why } } else { RelayReply::Lost { why } }
        }
        _ => return Err(NotAFrame("unknown relay reply")),
    };
    reader.end()?;
    Ok((clock_ns, reply))
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], NotAFrame> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(NotAFrame("a relay message that ends early"))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, NotAFrame> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn word(&mut self) -> Result<u32, NotAFrame> {
        self.take().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Result<u64, NotAFrame> {
        self.take().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Result<bool, NotAFrame> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(NotAFrame("a flag that is neither")),
        }
    }

    fn all(&mut self, bytes_max: usize) -> Result<&'a [u8], NotAFrame> {
        if self.rest.len() > bytes_max {
            return Err(NotAFrame("a relay message that is too long"));
        }
        Ok(std::mem::take(&mut self.rest))
    }

    fn step(&mut self) -> Result<RelayStep, NotAFrame> {
        let (summed, slot) = (self.flag()?, self.word()?);
        let count = self.word()? as usize;
        if count == 0 || count > RELAY_RUNS_MAX || self.rest.len() < count * RUN_BYTES {
            return Err(NotAFrame("runs that cannot be"));
        }
        let runs = (0..count).map(|_| self.run()).collect::<Result<_, _>>()?;
        Ok(RelayStep { slot, summed, runs })
    }

    fn run(&mut self) -> Result<RelayRun, NotAFrame> {
        Ok(RelayRun {
            offset: self.long()?,
            extent_bytes: self.long()?,
            start: self.long()?,
            bytes: self.long()?,
            staging_offset: self.long()?,
            trailer: if self.flag()? { Some(self.take()?) } else { None },
        })
    }

    fn end(&self) -> Result<(), NotAFrame> {
        if self.rest.is_empty() { Ok(()) } else { Err(NotAFrame("a relay message that goes on")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn steps() -> impl Strategy<Value = RelayStep> {
        let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
        let trailer = prop::option::of(any::<[u8; 32]>())
            .prop_map(|half| half.map(|half| std::array::from_fn(|at| half[at % 32])));
        let run = (numbers, trailer).prop_map(|((offset, extent_bytes, start, bytes, staging_offset), trailer)| {
            RelayRun { offset, extent_bytes, start, bytes, staging_offset, trailer }
        });
        (any::<u32>(), any::<bool>(), prop::collection::vec(run, 1..9)).prop_map(|(slot, summed, runs)| RelayStep {
            slot,
            summed,
            runs,
        })
    }

    fn requests() -> impl Strategy<Value = RelayRequest> {
        prop_oneof![
            Just(RelayRequest::Offer),
            Just(RelayRequest::Lease),
            Just(RelayRequest::Release),
            steps().prop_map(RelayRequest::Fetch),
            steps().prop_map(RelayRequest::Store),
        ]
    }

    fn replies() -> impl Strategy<Value = RelayReply> {
        let offer = (prop::collection::vec(any::<u8>(), 0..100), any::<u64>(), any::<u32>(), any::<u32>());
        let offer = offer.prop_map(|(export, slot_bytes, slots, sets)| RelayOffer { export, slot_bytes, slots, sets });
        let fetched = any::<u32>().prop_map(|sum| Fetched { trailer: [sum.to_le_bytes()[0]; TRAILER_LEN], sum });
        prop_oneof![
            offer.prop_map(RelayReply::Offer),
            any::<u32>().prop_map(|set| RelayReply::Lease { set }),
            prop::collection::vec(fetched, 0..9).prop_map(RelayReply::Fetched),
            Just(RelayReply::Stored),
            Just(RelayReply::Busy),
            "[a-zä]{0,40}".prop_map(|why| RelayReply::Failed { why }),
            "[a-zä]{0,40}".prop_map(|why| RelayReply::Lost { why }),
        ]
    }

    proptest! {
        #[test]
        fn messages_lose_nothing(clock in any::<u64>(), request in requests(), reply in replies()) {
            let bytes = encode_request(clock, &request);
            prop_assert!(bytes.len() <= RELAY_BODY_MAX);
            prop_assert_eq!(decode_request(&bytes), Ok((clock, request)));
            prop_assert_eq!(decode_reply(&encode_reply(clock, &reply)), Ok((clock, reply)));
        }

        #[test]
        fn a_cut_or_lengthened_request_is_refused(request in requests(), cut in any::<prop::sample::Index>()) {
            let mut bytes = encode_request(0, &request);
            prop_assert!(decode_request(&bytes[..cut.index(bytes.len())]).is_err());
            bytes.push(0);
            prop_assert!(decode_request(&bytes).is_err());
        }

        #[test]
        fn decoding_never_panics(request in requests(), at in any::<prop::sample::Index>(), byte in any::<u8>(), noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_request(&noise);
            let _ = decode_reply(&noise);
            let mut bytes = encode_request(7, &request);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = decode_request(&bytes);
        }
    }

    #[test]
    fn the_longest_messages_fit() {
        let run =
            RelayRun { offset: 0, extent_bytes: 0, start: 0, bytes: 0, staging_offset: 0, trailer: Some([0; 64]) };
        let step = |count| RelayStep { slot: 0, summed: true, runs: vec![run.clone(); count] };
        let longest = encode_request(0, &RelayRequest::Store(step(RELAY_RUNS_MAX)));
        assert!(longest.len() <= RELAY_BODY_MAX && decode_request(&longest).is_ok());
        assert!(decode_request(&encode_request(0, &RelayRequest::Store(step(RELAY_RUNS_MAX + 1)))).is_err());
        assert!(decode_request(&encode_request(0, &RelayRequest::Store(step(0)))).is_err());
        let found = vec![Fetched { trailer: [1; 64], sum: 1 }; RELAY_RUNS_MAX];
        assert!(encode_reply(0, &RelayReply::Fetched(found)).len() <= RELAY_BODY_MAX);
    }
}
