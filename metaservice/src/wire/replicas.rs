//! Copies and drains, between the wire and the core.

use memcache_proto::{pack, pb};
use memcache_types::{ClientId, Incarnation, KeyBatch, LeaseId, NodeId};

use super::{Fault, drain_progress, drain_state};
use crate::core::{CopyTask, Core, Drain, Effect, KeyReport, Millis, PinReport, ReplicaReport};

pub(super) fn work(
    core: &mut Core,
    now: Millis,
    client: ClientId,
    request: &pb::Work,
    effects: &mut Vec<Effect>,
) -> Result<pb::WorkReply, Fault> {
    let who = (NodeId::new(request.node), Incarnation::new(request.incarnation));
    let found = core.work(now, client, who, (request.tasks_max as usize, request.bytes_max), effects)?;
    Ok(pb::WorkReply {
        tasks: found.tasks.into_iter().map(task).collect(),
        lease: found.lease.map_or(0, LeaseId::get),
        // As with any ticket: what begins then has as long again before its space may go elsewhere.
        lease_ms: core.settings().lease_ms.min(core.settings().reservation_ttl_ms / 2),
        waiting: found.waiting,
    })
}

fn task(task: CopyTask) -> pb::CopyTask {
    let CopyTask { ticket, key, sources, clears, origin, wanted } = task;
    pb::CopyTask {
        key: key.into(),
        payload_bytes: sources.first().map_or(0, |source| source.payload_bytes),
        reservation: ticket.reservation.get(),
        segment: ticket.address.segment().get(),
        offset: ticket.address.offset(),
        generation: ticket.generation.get(),
        source_segments: sources.iter().map(|source| source.address.segment().get()).collect(),
        source_offsets: sources.iter().map(|source| source.address.offset()).collect(),
        source_generations: sources.iter().map(|source| source.generation.get()).collect(),
        record: ticket.record.unwrap_or(0),
        clears,
        origin,
        wanted: u32::try_from(wanted).unwrap_or(1),
    }
}

pub(super) fn drain(core: &mut Core, now: Millis, request: pb::Drain, effects: &mut Vec<Effect>) -> pb::DrainReply {
    let node = NodeId::new(request.node);
    let report = match request.mode() {
        pb::drain::Mode::Look => core.drain_state(now, node, effects),
        pb::drain::Mode::Move => core.drain(now, node, Some(Drain::Move), effects),
        pb::drain::Mode::Evict => core.drain(now, node, Some(Drain::Evict), effects),
        pb::drain::Mode::Drop => core.drain(now, node, Some(Drain::Drop), effects),
        pb::drain::Mode::Cancel => core.drain(now, node, None, effects),
    };
    report.map_or_else(pb::DrainReply::default, |report| pb::DrainReply {
        known: true,
        state: drain_state(report),
        objects: report.objects,
        progress: Some(drain_progress(report)),
        gone: report.gone.is_some(),
    })
}

pub(super) fn pin(
    core: &mut Core,
    now: Millis,
    request: pb::Pin,
    effects: &mut Vec<Effect>,
) -> Result<pb::PinReply, Fault> {
    let ttl_ms = Some(request.ttl_ms).filter(|ms| *ms != 0);
    let outcomes = core.pin(now, &pack::keys_from_wire(request.keys)?, ttl_ms, effects)?;
    Ok(pb::PinReply { outcomes: pack::outcomes_to_wire(&outcomes) })
}

pub(super) fn unpin(
    core: &mut Core,
    now: Millis,
    request: pb::Unpin,
    effects: &mut Vec<Effect>,
) -> Result<pb::UnpinReply, Fault> {
    let unpinned = core.unpin(now, &pack::keys_from_wire(request.keys)?, effects);
    Ok(pb::UnpinReply { unpinned: unpinned.into_iter().map(u8::from).collect() })
}

pub(super) fn info(core: &mut Core, now: Millis, keys: &KeyBatch, effects: &mut Vec<Effect>) -> pb::InfoReply {
    pb::InfoReply { keys: core.info(now, keys, effects).into_iter().map(key_info).collect() }
}

fn key_info(key: KeyReport) -> pb::KeyInfo {
    let outcome = match (key.replicas.first(), key.writers) {
        (Some(_), _) => pb::LocateOutcome::Located,
        (None, 0) => pb::LocateOutcome::LocateAbsent,
        (None, _) => pb::LocateOutcome::LocatePending,
    };
    let replica = |replica: ReplicaReport| pb::ReplicaInfo {
        node: replica.node.get(),
        name: replica.name.into(),
        segment: replica.found.address.segment().get(),
        offset: replica.found.address.offset(),
        generation: replica.found.generation.get(),
        leases: replica.leases,
        draining: replica.draining,
    };
    pb::KeyInfo {
        outcome: outcome.into(),
        payload_bytes: key.replicas.first().map_or(0, |replica| replica.found.payload_bytes),
        writers: key.writers,
        wanted: u32::try_from(key.wanted).unwrap_or(0),
        hard_pin: key.pin == Some(PinReport::Hard),
        soft_pin: matches!(key.pin, Some(PinReport::Soft { .. })),
        pin_left_ms: if let Some(PinReport::Soft { left_ms }) = key.pin { left_ms } else { 0 },
        replicas: key.replicas.into_iter().map(replica).collect(),
    }
}
