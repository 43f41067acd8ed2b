//! What segments hold, and what is not to come back, between the wire and the core.

use memcache_proto::{pack, pb};
use memcache_types::{Incarnation, KeyBatch, NodeId, SegmentId};

use super::Fault;
use crate::core::{Core, Effect, Holdings, Millis};

pub(super) fn remove(core: &mut Core, now: Millis, keys: &KeyBatch, effects: &mut Vec<Effect>) -> pb::RemoveReply {
    let found = core.remove(now, keys, effects);
    pb::RemoveReply {
        removed: found.removed.into_iter().map(u8::from).collect(),
        segments: found.records.iter().map(|record| record.segment.get()).collect(),
        offsets: found.records.iter().map(|record| record.offset).collect(),
        generations: found.records.iter().map(|record| record.generation.get()).collect(),
        untold: found.untold.iter().map(|segment| segment.get()).collect(),
    }
}

pub(super) fn remove_all(core: &mut Core, now: Millis, effects: &mut Vec<Effect>) -> pb::RemoveAllReply {
    let all = core.remove_all(now, effects);
    pb::RemoveAllReply {
        removed: all.removed,
        floor: all.floor.get(),
        segments: all.floors.iter().map(|(segment, _)| segment.get()).collect(),
        offsets: all.floors.iter().map(|(_, offset)| *offset).collect(),
    }
}

pub(super) fn damaged(
    core: &mut Core,
    now: Millis,
    request: pb::Damaged,
    effects: &mut Vec<Effect>,
) -> Result<pb::DamagedReply, Fault> {
    let pb::Damaged { keys, segments, generations } = request;
    let forgotten = core.take_damage(now, &pack::keys_from_wire(keys)?, &segments, &generations, effects)?;
    Ok(pb::DamagedReply { forgotten: forgotten.into_iter().map(u8::from).collect() })
}

pub(super) fn list(
    core: &mut Core,
    now: Millis,
    request: pb::Holdings,
    effects: &mut Vec<Effect>,
) -> Result<pb::HoldingsReply, Fault> {
    let keys = pack::keys_from_wire(request.keys)?;
    let holdings = Holdings {
        node: NodeId::new(request.node),
        incarnation: Incarnation::new(request.incarnation),
        segment: SegmentId::new(request.segment),
        keys: &keys,
        offsets: &request.offsets,
        payload_bytes: &request.payload_bytes,
        generations: &request.generations,
        origins: &request.origins,
        wanted: &request.wanted,
        records: &request.records,
        done: request.done,
        told: request.told,
        gone: request.gone,
    };
    let listed = core.take_holdings(now, &holdings, effects)?;
    Ok(pb::HoldingsReply { kept: listed.kept.into_iter().map(u8::from).collect() })
}
