//! A request message in, a reply message out: checks, the core, and the packed forms in between.

use memcache_proto::pack::{self, WireError};
use memcache_proto::pb::{self, reply, request};
use memcache_types::{ClientId, Epoch, HoldingsPlace, Incarnation, KeyBatch, NodeId, Tier};

use crate::core::{Core, DrainReport, Effect, GoneReason, JoinRequest, Millis, Refusal, ReserveRequest, SegmentOffer};

/// Answers one request. Trouble with the whole request becomes a `Failure` that names it; nothing here panics on bad
/// input. What the shell should log is added to `effects`.
pub fn serve(core: &mut Core, now: Millis, request: pb::Request, effects: &mut Vec<Effect>) -> pb::Reply {
    let pb::Request { request_id, client, body } = request;
    let body = match body {
        None => Err(Fault::Wire(WireError::Missing { field: "body that this version knows" })),
        Some(body) => answer(core, now, ClientId::new(client), body, effects),
    };
    let body = body.unwrap_or_else(|fault| reply::Body::Failure(fault.into_failure()));
    pb::Reply { request_id, epoch: core.epoch().get(), body: Some(body) }
}

/// Why a request gets a `Failure`.
enum Fault {
    Wire(WireError),
    Refused(Refusal),
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Fault {
    fn into_failure(self) -> pb::Failure {
        let (code, message) = match self {
            Self::Wire(error) => (pb::failure::Code::Invalid, error.to_string()),
            Self::Refused(refusal @ (Refusal::Stale { .. } | Refusal::Late { .. } | Refusal::NotLent { .. })) => {
                (pb::failure::Code::Stale, refusal.to_string())
            }
            Self::Refused(refusal @ Refusal::Limit { .. }) => (pb::failure::Code::Limit, refusal.to_string()),
            Self::Refused(refusal) => (pb::failure::Code::Invalid, refusal.to_string()),
        };
        pb::Failure { code: code.into(), message }
    }
}

fn answer(
    core: &mut Core,
    now: Millis,
    client: ClientId,
    body: request::Body,
    effects: &mut Vec<Effect>,
) -> Result<reply::Body, Fault> {
    Ok(match body {
        request::Body::Reserve(request) => reply::Body::Reserve(reserve(core, now, client, request, effects)?),
        request::Body::Seal(pb::Seal { reservations }) => {
            let outcomes = core.seal(now, client, &reservations, effects)?;
            reply::Body::Seal(pb::SealReply { outcomes: pack::outcomes_to_wire(&outcomes) })
        }
        request::Body::Abort(pb::Abort { reservations }) => {
            core.abort(now, client, &reservations, effects)?;
            reply::Body::Abort(pb::AbortReply {})
        }
        request::Body::Locate(pb::Locate { keys, near }) => {
            let near = Some(near).filter(|node| *node != 0).map(NodeId::new);
            reply::Body::Locate(locate(core, now, client, &pack::keys_from_wire(keys)?, near, effects)?)
        }
        request::Body::Release(pb::Release { leases }) => {
            core.release(now, client, &leases, effects)?;
            reply::Body::Release(pb::ReleaseReply {})
        }
        request::Body::Damaged(request) => reply::Body::Damaged(holdings::damaged(core, now, request, effects)?),
        request::Body::MatchPrefix(pb::MatchPrefix { keys }) => {
            let found = core.match_prefix(now, &pack::keys_from_wire(keys)?, effects);
            reply::Body::MatchPrefix(pb::MatchPrefixReply {
                present: key_count(found.present),
                pending: key_count(found.pending),
            })
        }
        request::Body::Exist(pb::Exist { keys }) => {
            let outcomes = core.exist(now, &pack::keys_from_wire(keys)?, effects);
            reply::Body::Exist(pb::ExistReply { outcomes: pack::outcomes_to_wire(&outcomes) })
        }
        request::Body::Remove(pb::Remove { keys }) => {
            reply::Body::Remove(holdings::remove(core, now, &pack::keys_from_wire(keys)?, effects))
        }
        request::Body::RemoveAll(pb::RemoveAll {}) => reply::Body::RemoveAll(holdings::remove_all(core, now, effects)),
        request::Body::Join(request) => reply::Body::Join(join(core, now, request, effects)?),
        request::Body::Holdings(request) => reply::Body::Holdings(holdings::list(core, now, request, effects)?),
        request::Body::Heartbeat(pb::Heartbeat { node, incarnation, segments }) => {
            let beat = core.heartbeat(now, NodeId::new(node), Incarnation::new(incarnation), &segments, effects)?;
            let drain = drain_state(beat.drain);
            reply::Body::Heartbeat(pb::HeartbeatReply {
                joined: beat.joined,
                work: beat.work,
                drain,
                floor: beat.floor,
            })
        }
        request::Body::Leave(pb::Leave { node, incarnation }) => {
            core.leave(now, NodeId::new(node), Incarnation::new(incarnation), effects)?;
            reply::Body::Leave(pb::LeaveReply {})
        }
        request::Body::Describe(pb::Describe { segments }) => {
            reply::Body::Describe(describe(core, now, &segments, effects)?)
        }
        request::Body::RegisterFingerprint(pb::RegisterFingerprint { scope, fields }) => {
            reply::Body::RegisterFingerprint(register_fingerprint(core, scope, fields)?)
        }
        request::Body::Work(request) => reply::Body::Work(replicas::work(core, now, client, &request, effects)?),
        request::Body::Renew(pb::Renew { leases }) => {
            let renewed = core.renew(now, client, &leases, effects)?.into_iter().map(u8::from).collect();
            reply::Body::Renew(pb::RenewReply { renewed, lease_ms: core.settings().lease_ms })
        }
        request::Body::Info(pb::Info { keys }) => {
            reply::Body::Info(replicas::info(core, now, &pack::keys_from_wire(keys)?, effects))
        }
        request::Body::Pin(request) => reply::Body::Pin(replicas::pin(core, now, request, effects)?),
        request::Body::Unpin(request) => reply::Body::Unpin(replicas::unpin(core, now, request, effects)?),
        request::Body::Drain(request) => reply::Body::Drain(replicas::drain(core, now, request, effects)),
        request::Body::Status(pb::Status {}) => reply::Body::Status(status(core, now, effects)),
    })
}

fn register_fingerprint(
    core: &mut Core,
    scope: String,
    fields: Vec<pb::Field>,
) -> Result<pb::RegisterFingerprintReply, Fault> {
    let fields = fields.into_iter().map(|field| (field.name, field.value));
    let differences = core.register_fingerprint(scope, fields)?;
    let differences = differences
        .into_iter()
        .map(|difference| pb::FieldDifference {
            name: difference.name,
            ours: difference.ours,
            theirs: difference.theirs,
        })
        .collect();
    Ok(pb::RegisterFingerprintReply { differences })
}

/// A batch has at most 2^16 keys.
fn key_count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn reserve(
    core: &mut Core,
    now: Millis,
    client: ClientId,
    request: pb::Reserve,
    effects: &mut Vec<Effect>,
) -> Result<pb::ReserveReply, Fault> {
    let keys = pack::keys_from_wire(request.keys)?;
    let near = Some(request.near).filter(|node| *node != 0).map(NodeId::new);
    let preferred: Vec<NodeId> = request.preferred.iter().copied().map(NodeId::new).collect();
    let request = ReserveRequest {
        keys: &keys,
        payload_bytes: &request.payload_bytes,
        near,
        exclusive: request.exclusive,
        replicas: request.replicas.max(1) as usize,
        preferred: &preferred,
    };
    let found = core.reserve(now, client, &request, effects)?;
    let tickets = &found.tickets;
    Ok(pb::ReserveReply {
        outcomes: pack::outcomes_to_wire(&found.outcomes),
        reservations: tickets.iter().map(|ticket| ticket.reservation.get()).collect(),
        segments: tickets.iter().map(|ticket| ticket.address.segment().get()).collect(),
        offsets: tickets.iter().map(|ticket| ticket.address.offset()).collect(),
        generations: tickets.iter().map(|ticket| ticket.generation.get()).collect(),
        ttl_ms: core.settings().reservation_ttl_ms,
        largest_bytes: found.largest_bytes,
        records: tickets.iter().map(|ticket| ticket.record.unwrap_or(0)).collect(),
        clear_tickets: found.clears.iter().map(|clear| clear.ticket).collect(),
        clears: found.clears.iter().map(|clear| clear.offset).collect(),
        // One each goes without saying.
        replicas: if request.replicas > 1 { found.replicas } else { Vec::new() },
    })
}

fn locate(
    core: &mut Core,
    now: Millis,
    client: ClientId,
    keys: &KeyBatch,
    near: Option<NodeId>,
    effects: &mut Vec<Effect>,
) -> Result<pb::LocateReply, Fault> {
    let located = core.locate(now, client, keys, near, effects)?;
    let (found, others) = (&located.found, &located.others);
    Ok(pb::LocateReply {
        outcomes: pack::outcomes_to_wire(&located.outcomes),
        segments: found.iter().map(|found| found.address.segment().get()).collect(),
        offsets: found.iter().map(|found| found.address.offset()).collect(),
        payload_bytes: found.iter().map(|found| found.payload_bytes).collect(),
        generations: found.iter().map(|found| found.generation.get()).collect(),
        lease: located.lease.map_or(0, memcache_types::LeaseId::get),
        lease_ms: core.settings().lease_ms,
        other_of: others.iter().map(|(position, _)| key_count(*position)).collect(),
        other_segments: others.iter().map(|(_, found)| found.address.segment().get()).collect(),
        other_offsets: others.iter().map(|(_, found)| found.address.offset()).collect(),
        other_generations: others.iter().map(|(_, found)| found.generation.get()).collect(),
        resting: located.resting.iter().map(|segment| segment.get()).collect(),
    })
}

fn join(core: &mut Core, now: Millis, request: pb::Join, effects: &mut Vec<Effect>) -> Result<pb::JoinReply, Fault> {
    let offers = request.segments.into_iter().map(offer).collect::<Result<Vec<_>, Refusal>>()?;
    let request = JoinRequest {
        node: NodeId::new(request.node),
        incarnation: Incarnation::new(request.incarnation),
        name: &request.name,
        offers,
        previous_epoch: Epoch::new(request.previous_epoch),
        lists: request.lists,
        floor: request.floor,
    };
    let joined = core.join(now, request, effects)?;
    Ok(pb::JoinReply {
        segments: joined.segments.iter().map(|segment| segment.get()).collect(),
        heartbeat_ms: core.settings().heartbeat_ms,
        lists: joined.lists,
        rest_ms: joined.rest_ms,
        floor: joined.floor,
    })
}

fn offer(segment: pb::JoinSegment) -> Result<SegmentOffer, Refusal> {
    let tier = match segment.tier {
        1 => Tier::Hbm,
        2 => Tier::Dram,
        3 => Tier::Ssd,
        other => {
            return Err(Refusal::Value { what: "tier", value: other.into(), want: "1 (HBM), 2 (DRAM) or 3 (SSD)" });
        }
    };
    let pb::JoinSegment { table_offset, records, floors_offset, .. } = segment;
    let holdings = HoldingsPlace { table_offset, records, floors_offset };
    Ok(SegmentOffer { bytes: segment.bytes, tier, descriptor: segment.descriptor.into(), holdings })
}

fn describe(
    core: &mut Core,
    now: Millis,
    segments: &[u64],
    effects: &mut Vec<Effect>,
) -> Result<pb::DescribeReply, Fault> {
    let segments = core
        .describe(now, segments, effects)?
        .into_iter()
        .map(|known| pb::SegmentInfo {
            segment: known.segment.get(),
            node: known.node.get(),
            bytes: known.bytes,
            descriptor: known.descriptor.into(),
            untold: known.untold,
        })
        .collect();
    Ok(pb::DescribeReply { segments })
}

fn status(core: &mut Core, now: Millis, effects: &mut Vec<Effect>) -> pb::StatusReply {
    let report = core.status(now, effects);
    pb::StatusReply {
        objects: report.objects,
        capacity_bytes: report.nodes.iter().map(|node| node.capacity_bytes).sum(),
        used_bytes: report.nodes.iter().map(|node| node.used_bytes).sum(),
        reservations: report.reservations,
        leases: report.leases,
        evicted_objects: report.evicted_objects,
        evicted_bytes: report.evicted_bytes,
        uptime_ms: report.uptime_ms,
        unrecorded: report.nodes.iter().map(|node| node.unrecorded).sum(),
        replicas: report.replicas,
        repairs_waiting: report.repairs_waiting,
        copies: report.copies,
        copied: report.copied,
        extra_replicas: report.extra_replicas,
        extra_bytes: report.extra_bytes,
        soft_pins: report.soft_pins,
        hard_pins: report.hard_pins,
        pins_given_up: report.pins_given_up,
        nodes: report
            .nodes
            .into_iter()
            .map(|node| pb::NodeStatus {
                node: node.node.get(),
                incarnation: node.incarnation.get(),
                name: node.name.into(),
                capacity_bytes: node.capacity_bytes,
                used_bytes: node.used_bytes,
                objects: node.objects,
                heartbeat_age_ms: node.heartbeat_age_ms,
                unrecorded: node.unrecorded,
                listing: node.listing,
                soft_pinned_bytes: node.soft_pinned_bytes,
                hard_pinned_bytes: node.hard_pinned_bytes,
                pin_quota_bytes: node.pin_quota_bytes,
                longest_free_bytes: node.longest_free_bytes,
                drain: drain_state(node.drain),
                progress: node.drain.drain.map(|_| drain_progress(node.drain)),
            })
            .collect(),
    }
}

fn drain_progress(report: DrainReport) -> pb::DrainProgress {
    pb::DrainProgress {
        left_bytes: report.bytes,
        moved_objects: report.moved.objects,
        moved_bytes: report.moved.bytes,
        dropped_objects: report.dropped.objects,
        dropped_bytes: report.dropped.bytes,
    }
}

fn drain_state(report: DrainReport) -> i32 {
    let state = match (report.drain, report.is_empty, report.gone) {
        // Whatever it went of then, nothing went with it.
        (Some(_), true, _) => pb::DrainState::Drained,
        (_, _, Some(GoneReason::Left)) => pb::DrainState::Left,
        (_, _, Some(GoneReason::Silent | GoneReason::Replaced)) => pb::DrainState::Lost,
        (Some(_), false, None) => pb::DrainState::Draining,
        (None, _, None) => pb::DrainState::NotDraining,
    };
    state.into()
}

mod holdings;
mod replicas;
#[cfg(test)]
mod tests;
