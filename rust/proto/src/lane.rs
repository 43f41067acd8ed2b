//! Lanes: the messages of the session without HTTP/2 around them, for a caller that waits for its answer.
//!
//! A connection to the address of the service that begins with [`PREFACE`] is a lane. The service greets with a
//! [`pb::Reply`] of request 0 that has no body, or a `Failure` that says why not, after which it hangs up. From then on
//! requests and replies are frames: the length of a message in four bytes, lowest first, and the message. Replies come
//! in the order of their requests.

mod eager;

use prost::Message;
use thiserror::Error;

pub use self::eager::Eagerness;

use crate::{MESSAGE_BYTES_MAX, pb};

/// What a client sends first. No HTTP/2 connection begins with its first byte.
pub const PREFACE: &[u8; 16] = b"memcache-lane/1\n";

/// What a client sends first that asks for a mailbox: the greeting then comes with the memory of one, and all frames go
/// through that. Only over Unix sockets. A service that knows no mailboxes hangs up.
pub const MAILBOX_PREFACE: &[u8; 16] = b"memcache-mail/1\n";

/// Where a service that listens on a TCP port hands out mailboxes: the name of a Unix socket in the abstract namespace.
/// Services of one network namespace never share one.
pub fn mailbox_name(epoch: u64, port: u16) -> String {
    format!("memcache-mail-{epoch:x}-{port}")
}

/// Longest greeting a client reads: enough for any reason, and less than what an HTTP/2 service says read as a length.
pub const GREETING_BYTES_MAX: usize = 4096;

/// Length of the length.
const HEADER_BYTES: usize = 4;

/// Room a fresh buffer has, and one that was emptied after something large.
const ROOM_BYTES: usize = 16 << 10;

/// Room past which an empty buffer is made small again.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// Why some bytes are not a frame. The connection is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// A length over the limit.
    #[error("a frame of {bytes} bytes; the limit is {limit}")]
    TooLong {
        /// The length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A frame that holds no message.
    #[error("a frame that holds no message: {0}")]
    Malformed(#[from] prost::DecodeError),
}

/// Adds a message as a frame. False, and nothing added: it is longer than either end accepts.
#[must_use]
pub fn push_frame(message: &impl Message, frames: &mut Vec<u8>) -> bool {
    let bytes = message.encoded_len();
    let Some(length) = u32::try_from(bytes).ok().filter(|_| bytes <= MESSAGE_BYTES_MAX) else { return false };
    frames.reserve(HEADER_BYTES + bytes);
    frames.extend_from_slice(&length.to_le_bytes());
    message.encode_raw(frames);
    true
}

/// The greeting that accepts a lane.
pub fn greeting(epoch: u64) -> pb::Reply {
    pb::Reply { request_id: 0, epoch, body: None }
}

/// Bytes as they arrive, and the frames in them. Takes up no more room than twice what has really arrived, whatever
/// length a frame claims.
#[derive(Debug)]
pub struct Incoming {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    limit: usize,
}

impl Incoming {
    /// Nothing yet; frames longer than `limit` bytes will be refused.
    pub const fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, end: 0, limit }
    }

    /// The same bytes under another limit.
    #[must_use]
    pub const fn with_limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Where the next bytes go; never empty. Tell [`Self::arrived`] how many did.
    pub fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > KEPT_BYTES_MAX {
                self.buffer = Vec::new();
            }
        }
        if self.end * 2 >= self.buffer.len() && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end * 2 >= self.buffer.len() {
            self.buffer.resize((self.buffer.len() * 2).max(ROOM_BYTES), 0);
        }
        &mut self.buffer[self.end..]
    }

    /// So many bytes were put at the beginning of the room.
    pub fn arrived(&mut self, bytes: usize) {
        self.end = (self.end + bytes).min(self.buffer.len());
    }

    /// How many bytes lie here that no message took.
    pub const fn held(&self) -> usize {
        self.end - self.start
    }

    /// Whether a frame has begun and not ended.
    pub const fn is_within_frame(&self) -> bool {
        self.start < self.end
    }

    /// The next whole message, if it is there.
    pub fn message<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let there = &self.buffer[self.start..self.end];
        let Some((header, rest)) = there.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let bytes = u32::from_le_bytes(*header) as usize;
        if bytes > self.limit {
            return Err(FrameError::TooLong { bytes, limit: self.limit });
        }
        let Some(frame) = rest.get(..bytes) else { return Ok(None) };
        let message = M::decode(frame)?;
        self.start += HEADER_BYTES + bytes;
        Ok(Some(message))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(request_id: u64, bytes: usize) -> pb::Request {
        let keys = Some(pb::Keys { data: vec![7; bytes], lengths: vec![1] });
        pb::Request { request_id, client: 5, body: Some(pb::request::Body::Exist(pb::Exist { keys })) }
    }

    fn feed(incoming: &mut Incoming, mut bytes: &[u8], step: usize) -> Result<Vec<pb::Request>, FrameError> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let room = incoming.room();
            let count = step.min(bytes.len()).min(room.len());
            room[..count].copy_from_slice(&bytes[..count]);
            incoming.arrived(count);
            bytes = &bytes[count..];
            while let Some(message) = incoming.message()? {
                found.push(message);
            }
        }
        Ok(found)
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_anything_is_kept_for_it() {
        let mut incoming = Incoming::new(100);
        let refused = feed(&mut incoming, &[101, 0, 0, 0], 4);
        assert_eq!(refused, Err(FrameError::TooLong { bytes: 101, limit: 100 }));
        let mut incoming = Incoming::new(MESSAGE_BYTES_MAX);
        let mut claimed = u32::try_from(MESSAGE_BYTES_MAX).unwrap().to_le_bytes().to_vec();
        claimed.resize(30_000, 0);
        assert_eq!(feed(&mut incoming, &claimed, 1000), Ok(vec![]));
        assert!(incoming.is_within_frame() && incoming.buffer.len() <= 1 << 16, "{}", incoming.buffer.len());
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        let refused = feed(&mut Incoming::new(100), &[2, 0, 0, 0, 0xff, 0xff], 6);
        assert!(matches!(refused, Err(FrameError::Malformed(_))), "{refused:?}");
    }

    #[test]
    fn what_an_http2_service_says_is_no_greeting() {
        // The first frame of a service: SETTINGS, of any length up to the largest; and GOAWAY.
        for kind in [4, 7] {
            for length in [0u8, 6, 24, 36] {
                let mut incoming = Incoming::new(GREETING_BYTES_MAX);
                let said = [0, 0, length, kind, 0, 0, 0, 0, 0];
                assert!(matches!(feed(&mut incoming, &said, 9), Err(FrameError::TooLong { .. })), "{kind} {length}");
            }
        }
    }

    #[test]
    fn room_is_given_back_after_something_large() {
        let mut incoming = Incoming::new(MESSAGE_BYTES_MAX);
        let mut bytes = Vec::new();
        assert!(push_frame(&request(1, 1 << 20), &mut bytes));
        assert_eq!(feed(&mut incoming, &bytes, 1 << 16).unwrap().len(), 1);
        incoming.room();
        assert_eq!(incoming.buffer.len(), ROOM_BYTES);
    }

    #[test]
    fn a_stream_that_never_pauses_between_frames_takes_bounded_room() {
        let mut one = Vec::new();
        assert!(push_frame(&request(1, 5000), &mut one));
        let mut incoming = Incoming::new(MESSAGE_BYTES_MAX);
        feed(&mut incoming, &one[..1], 1).unwrap();
        let next = [&one[1..], &one[..1]].concat();
        for _ in 0..1000 {
            assert_eq!(feed(&mut incoming, &next, 3000).unwrap().len(), 1);
        }
        assert!(incoming.buffer.len() <= 2 * ROOM_BYTES, "{}", incoming.buffer.len());
    }

    #[test]
    fn a_message_nobody_would_accept_is_not_sent() {
        let mut bytes = Vec::new();
        assert!(!push_frame(&request(1, MESSAGE_BYTES_MAX), &mut bytes));
        assert!(bytes.is_empty());
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(sizes in prop::collection::vec(0usize..40_000, 1..6), step in 1usize..5000) {
            let sent: Vec<pb::Request> = sizes.iter().zip(1..).map(|(bytes, id)| request(id, *bytes)).collect();
            let mut bytes = Vec::new();
            for one in &sent {
                prop_assert!(push_frame(one, &mut bytes));
            }
            let mut incoming = Incoming::new(MESSAGE_BYTES_MAX);
            prop_assert_eq!(feed(&mut incoming, &bytes, step).unwrap(), sent);
            prop_assert!(!incoming.is_within_frame());
        }

        #[test]
        fn any_bytes_end_in_messages_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300), step in 1usize..50) {
            let _ = feed(&mut Incoming::new(1 << 16), &bytes, step);
        }
    }
}
