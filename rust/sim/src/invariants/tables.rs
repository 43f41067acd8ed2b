//! No place of a table leaks: when everything is removed and all of a segment was written anew, all places are free.

use memcache_meta::core::{Core, Millis};
use memcache_meta::wire;
use memcache_proto::pb::{self, reply, request};

use super::{Violation, hold};
use crate::client::keys_to_wire;
use crate::memory::{LINES, payload_of};

/// Longer than anything runs on, in milliseconds.
const LATER: u64 = 1_000_000;

/// Empties a book at the end of its world, and fills it again.
pub fn check(core: &mut Core, now: u64, keys: &[u64], nodes: &[u64], records: u32) -> Result<(), Violation> {
    core.excuse_silence(Millis::new(now + LATER));
    let mut ask = |body| {
        let request = pb::Request { request_id: 0, client: 77, body: Some(body) };
        wire::serve(core, Millis::new(now + LATER), request, &mut Vec::new()).body
    };
    let remove = |keys: &[u64]| request::Body::Remove(pb::Remove { keys: keys_to_wire(keys) });
    ask(remove(keys));
    for node in nodes {
        // All of it at once, so that every record that may stand there is cleared.
        let whole = fill(&mut ask, *node, &[1_000_000 + node], LINES)?;
        ask(remove(&[1_000_000 + node]));
        let small: Vec<u64> = (0..LINES).map(|line| 2_000_000 + 100 * node + line).collect();
        let recorded = fill(&mut ask, *node, &small, 1)?;
        // The place of the large one, if there was any left, waits until the first of them is sealed.
        let want = LINES.min(u64::from(records) - whole);
        hold("tables", recorded == want, || format!("node {node} has places for {recorded} records, want {want}"))?;
    }
    Ok(())
}

/// Puts objects of so many lines; how many got a record.
fn fill(
    ask: &mut impl FnMut(request::Body) -> Option<reply::Body>,
    node: u64,
    keys: &[u64],
    lines: u64,
) -> Result<u64, Violation> {
    let reserve = pb::Reserve {
        keys: keys_to_wire(keys),
        payload_bytes: vec![payload_of(lines)],
        near: node,
        replicas: 1,
        ..pb::Reserve::default()
    };
    let Some(reply::Body::Reserve(reply)) = ask(request::Body::Reserve(reserve)) else {
        return hold("tables", false, || "no reservation".to_owned()).map(|()| 0);
    };
    let all = reply.reservations.len() == keys.len();
    hold("tables", all, || format!("node {node} took {} of {} objects", reply.reservations.len(), keys.len()))?;
    ask(request::Body::Seal(pb::Seal { reservations: reply.reservations }));
    Ok(reply.records.iter().filter(|record| **record != 0).count() as u64)
}
