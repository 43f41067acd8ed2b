//! The two fixed-length headers of the data protocol. All numbers are little endian.

use memcache_memory::checksum_bytes;

/// Length of a request header in bytes.
pub(crate) const REQUEST_BYTES: usize = 72;
/// Length of a reply header in bytes.
pub(crate) const REPLY_BYTES: usize = 32;
/// Longest text of a refusal, in bytes.
pub(crate) const TEXT_BYTES_MAX: usize = 512;

const REQUEST_MAGIC: [u8; 4] = *b"MCQ\x02";
const REPLY_MAGIC: [u8; 4] = *b"MCA\x02";
const VERSION: u16 = 2;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Ping,
    Read,
    Write,
    /// A [`RelayRequest`](crate::relay::RelayRequest) of `payload_bytes` bytes follows.
    Relay,
}

/// The start of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) op: Op,
    pub(crate) id: u64,
    pub(crate) token: u128,
    pub(crate) offset: u64,
    /// Bytes of the payload that this request moves.
    pub(crate) payload_bytes: u64,
    pub(crate) extent_bytes: u64,
    /// Where in the extent they begin: more than 0 for the later parts of an object that several connections move.
    pub(crate) start: u64,
    /// Milliseconds the sender still waits: the receiver gives up a transfer that takes longer.
    pub(crate) budget_ms: u32,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Done,
    Invalid,
    Refused,
}

/// The start of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: Status,
    pub(crate) id: u64,
    /// Bytes that follow: of a read's payload (its trailer comes on top), or of the text of a refusal.
    pub(crate) body_bytes: u64,
}

/// Bytes that are no frame: the connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAFrame(pub(crate) &'static str);

impl Request {
    pub(crate) fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6] = match self.op {
            Op::Ping => 0,
            Op::Read => 1,
            Op::Write => 2,
            Op::Relay => 3,
        };
        bytes[8..16].copy_from_slice(&self.id.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.token.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.offset.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.extent_bytes.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.budget_ms.to_le_bytes());
        bytes[60..68].copy_from_slice(&self.start.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, NotAFrame> {
        open(bytes, REQUEST_MAGIC)?;
        let op = match bytes[6] {
            0 => Op::Ping,
            1 => Op::Read,
            2 => Op::Write,
            3 => Op::Relay,
            _ => return Err(NotAFrame("unknown operation")),
        };
        Ok(Self {
            op,
            id: u64::from_le_bytes(field(bytes, 8)),
            token: u128::from_le_bytes(field(bytes, 16)),
            offset: u64::from_le_bytes(field(bytes, 32)),
            payload_bytes: u64::from_le_bytes(field(bytes, 40)),
            extent_bytes: u64::from_le_bytes(field(bytes, 48)),
            budget_ms: u32::from_le_bytes(field(bytes, 56)),
            start: u64::from_le_bytes(field(bytes, 60)),
        })
    }
}

impl Reply {
    pub(crate) fn encode(&self) -> [u8; REPLY_BYTES] {
        let mut bytes = [0; REPLY_BYTES];
        bytes[0..4].copy_from_slice(&REPLY_MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6] = match self.status {
            Status::Done => 0,
            Status::Invalid => 1,
            Status::Refused => 2,
        };
        bytes[8..16].copy_from_slice(&self.id.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.body_bytes.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; REPLY_BYTES]) -> Result<Self, NotAFrame> {
        open(bytes, REPLY_MAGIC)?;
        let status = match bytes[6] {
            0 => Status::Done,
            1 => Status::Invalid,
            2 => Status::Refused,
            _ => return Err(NotAFrame("unknown status")),
        };
        Ok(Self { status, id: u64::from_le_bytes(field(bytes, 8)), body_bytes: u64::from_le_bytes(field(bytes, 16)) })
    }
}

/// Puts the checksum of a header in its last four bytes.
fn seal<const N: usize>(bytes: &mut [u8; N]) {
    let checksum = checksum_bytes(&bytes[..N - 4]);
    bytes[N - 4..].copy_from_slice(&checksum.to_le_bytes());
}

fn open<const N: usize>(bytes: &[u8; N], magic: [u8; 4]) -> Result<(), NotAFrame> {
    if bytes[0..4] != magic {
        return Err(NotAFrame("wrong magic"));
    }
    if u16::from_le_bytes(field(bytes, 4)) != VERSION {
        return Err(NotAFrame("another version"));
    }
    if u32::from_le_bytes(field(bytes, N - 4)) != checksum_bytes(&bytes[..N - 4]) {
        return Err(NotAFrame("damaged header"));
    }
    Ok(())
}

fn field<const N: usize, const M: usize>(bytes: &[u8; N], at: usize) -> [u8; M] {
    std::array::from_fn(|index| bytes[at + index])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn requests() -> impl Strategy<Value = Request> {
        let op = prop_oneof![Just(Op::Ping), Just(Op::Read), Just(Op::Write), Just(Op::Relay)];
        let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
        (op, any::<u128>(), numbers, any::<u32>()).prop_map(
            |(op, token, (id, offset, payload_bytes, extent_bytes, start), budget_ms)| Request {
                op,
                id,
                token,
                offset,
                payload_bytes,
                extent_bytes,
                start,
                budget_ms,
            },
        )
    }

    proptest! {
        #[test]
        fn headers_lose_nothing(request in requests(), id in any::<u64>(), body_bytes in any::<u64>()) {
            prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
            for status in [Status::Done, Status::Invalid, Status::Refused] {
                let reply = Reply { status, id, body_bytes };
                prop_assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
            }
        }

        #[test]
        fn a_changed_bit_is_noticed(request in requests(), bit in 0usize..REQUEST_BYTES * 8) {
            let mut bytes = request.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Request::decode(&bytes).is_err());
        }

        #[test]
        fn noise_is_no_frame(noise in prop::collection::vec(any::<u8>(), REQUEST_BYTES)) {
            prop_assert!(Request::decode(noise.first_chunk().unwrap()).is_err());
            prop_assert!(Reply::decode(noise.first_chunk().unwrap()).is_err());
        }
    }
}
