#![no_main]

use libfuzzer_sys::fuzz_target;
use memcache_proto::pack::{expect_length, keys_from_wire, keys_to_wire, outcomes_from_wire, spread};
use memcache_proto::pb::{self, reply, request};
use prost::Message;

// A message of a session, either way, and the packed forms in it.
fuzz_target!(|input: &[u8]| {
    if let Ok(message) = pb::Request::decode(input) {
        let keys = match message.body {
            Some(request::Body::Reserve(body)) => {
                let _ = spread("payload_bytes", &body.payload_bytes, body.payload_bytes.len());
                body.keys
            }
            Some(request::Body::Locate(body)) => body.keys,
            Some(request::Body::MatchPrefix(body)) => body.keys,
            Some(request::Body::Exist(body)) => body.keys,
            _ => None,
        };
        if let Ok(keys) = keys_from_wire(keys) {
            assert!(keys.iter().all(|key| !key.is_empty()), "an empty key");
            assert_eq!(keys_from_wire(Some(keys_to_wire(&keys))).as_ref(), Ok(&keys));
        }
    }
    if let Ok(message) = pb::Reply::decode(input)
        && let Some(reply::Body::Reserve(body)) = message.body
    {
        let outcomes = outcomes_from_wire::<pb::ReserveOutcome>("outcomes", &body.outcomes, body.outcomes.len());
        if let Ok(outcomes) = outcomes {
            assert!(expect_length("outcomes", outcomes.len(), body.outcomes.len()).is_ok());
        }
    }
});
