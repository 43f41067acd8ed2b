//! Storing a batch: reserve, write, seal.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::holdings::RecordHead;
use memcache_memory::{Checksum, Trailer};
use memcache_proto::pack::{expect_length, keys_to_wire, outcomes_from_wire};
use memcache_proto::pb;
use memcache_transport::{Protocol, TransportError};
use memcache_types::limits::REPLICAS_MAX;
use memcache_types::{
    Extent, Generation, GlobalAddress, KeyBatch, KeyDigest, NodeId, PutStatus, ReservationId, SegmentId, extent_bytes,
};

use crate::book::BookError;
use crate::buffer::Buffers;
use crate::directory::LinkError;
use crate::error::{InvalidCall, StoreError};
use crate::record::{Record, clear, record_extent};
use crate::stats::{add, add_time};
use crate::store::{Inner, check_call};
use crate::transfer::{Group, Move};

/// How to put, beside what and where to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// Leave a key that another writer holds to that writer ([`PutStatus::Pending`]) instead of racing it.
    pub exclusive: bool,
    /// Replicas of each key, on distinct nodes, 1 to [`REPLICAS_MAX`]; `None` for the store's own setting.
    pub replicas: Option<usize>,
    /// Nodes to prefer before all others, in this order, where they have free space.
    pub preferred: Vec<NodeId>,
}

/// Of the time left, the part that the writes of several replicas may take: a replica that hangs must leave time to
/// seal the others.
const WRITE_PART: (u32, u32) = (3, 4);

/// Space granted for one replica.
struct Ticket {
    index: usize,
    reservation: ReservationId,
    extent: Extent,
    generation: Generation,
    /// The lowest generation among the tickets of its key.
    origin: Generation,
    /// Where its record goes.
    record: Option<Extent>,
    /// Records that go before the first byte is written.
    clears: Vec<Extent>,
}

/// What the book granted: a status for every key it did not grant, and tickets for the others.
struct Granted {
    statuses: Vec<PutStatus>,
    tickets: Vec<Ticket>,
    /// Replicas that each key should have.
    wanted: u32,
    /// No write may start after this: the space may go to somebody else some time later.
    write_until: Instant,
}

impl Inner {
    /// Stores one object a key; see [`Store::put`](crate::Store::put).
    pub(crate) fn put(
        &self,
        keys: &KeyBatch,
        sources: &Buffers,
        options: &PutOptions,
        deadline: Instant,
    ) -> Result<Vec<PutStatus>, StoreError> {
        check_call(keys, sources)?;
        self.check_put(options)?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let started = Instant::now();
        let granted = self.reserve(keys, sources, options, deadline);
        add_time(&self.stats.put_reserve_ns, started);
        let statuses = match granted {
            Ok(granted) => self.fill(keys, sources, granted, deadline)?,
            Err(BookError::Refused(message)) => return Err(self.book.error(BookError::Refused(message))),
            Err(error) => vec![put_failure(&error); keys.len()],
        };
        self.count_put(sources, &statuses, started);
        Ok(statuses)
    }

    pub(crate) fn check_put(&self, options: &PutOptions) -> Result<(), StoreError> {
        let replicas = options.replicas.unwrap_or(self.replicas);
        if !(1..=REPLICAS_MAX).contains(&replicas) {
            return Err(InvalidCall::Replicas { replicas, limit: REPLICAS_MAX }.into());
        }
        Ok(())
    }

    fn reserve(
        &self,
        keys: &KeyBatch,
        sources: &Buffers,
        options: &PutOptions,
        deadline: Instant,
    ) -> Result<Granted, BookError> {
        let mut payload_bytes: Vec<u64> = sources.lists().iter().map(memcache_types::ScatterList::bytes).collect();
        if payload_bytes.iter().all(|bytes| *bytes == payload_bytes[0]) {
            payload_bytes.truncate(1);
        }
        let replicas = u32::try_from(options.replicas.unwrap_or(self.replicas)).unwrap_or(u32::MAX);
        let request = pb::Reserve {
            keys: Some(keys_to_wire(keys)),
            payload_bytes,
            near: self.near(),
            exclusive: options.exclusive,
            replicas,
            preferred: options.preferred.iter().map(|node| node.get()).collect(),
        };
        let answer = self.book.call(pb::request::Body::Reserve(request), deadline)?;
        let pb::reply::Body::Reserve(reply) = answer.body else {
            return Err(BookError::Refused("not a Reserve reply".to_owned()));
        };
        grants(&reply, sources, replicas, answer.sent).map_err(|error| BookError::Refused(error.to_string()))
    }

    /// Writes what was granted and seals what was written.
    fn fill(
        &self,
        keys: &KeyBatch,
        sources: &Buffers,
        granted: Granted,
        deadline: Instant,
    ) -> Result<Vec<PutStatus>, StoreError> {
        let Granted { mut statuses, tickets, wanted, write_until } = granted;
        if tickets.is_empty() {
            return Ok(statuses);
        }
        let until = deadline.min(write_until);
        let until = if tickets.len() > statuses.iter().filter(|status| is_granted(**status)).count() {
            let now = Instant::now();
            now + until.saturating_duration_since(now) * WRITE_PART.0 / WRITE_PART.1
        } else {
            until
        };
        let segments = tickets.iter().map(|ticket| ticket.extent.segment());
        let mut links = self.directory.links(&self.book, &self.fabric, segments, until);
        let mut groups: HashMap<SegmentId, Group> = HashMap::new();
        let mut abandoned: Vec<u64> = Vec::new();
        for (tag, ticket) in tickets.iter().enumerate() {
            match links.get_mut(&ticket.extent.segment()) {
                Some(Ok(link)) => {
                    if let Err(error) = clear(&**link, &ticket.clears, until) {
                        tracing::debug!(%error, "a put could not clear old records");
                        statuses[ticket.index] = write_failure(&error);
                        if writer_is_done(link.protocol()) {
                            abandoned.push(ticket.reservation.get());
                        }
                        continue;
                    }
                    let one = write_of(tag, ticket, wanted, keys, sources);
                    let group = groups
                        .entry(ticket.extent.segment())
                        .or_insert_with(|| Group { link: Arc::clone(link), moves: Vec::new() });
                    group.moves.push(one);
                }
                Some(Err(error)) => {
                    statuses[ticket.index] = unreachable_status(error);
                    abandoned.push(ticket.reservation.get());
                }
                None => abandoned.push(ticket.reservation.get()),
            }
        }
        let groups = groups.into_values().collect();
        let mut sealable: Vec<(usize, u64)> = Vec::with_capacity(tickets.len());
        let transfer = self.transfer(sources, until);
        let moving = Instant::now();
        let written = transfer.write(groups);
        add_time(&self.stats.put_move_ns, moving);
        for (tag, protocol, outcome) in written {
            let Ticket { index, reservation, .. } = tickets[tag];
            match outcome {
                Ok(()) => sealable.push((index, reservation.get())),
                Err(error) => {
                    tracing::debug!(%error, %protocol, "a put could not write");
                    statuses[index] = write_failure(&error);
                    if writer_is_done(protocol) {
                        abandoned.push(reservation.get());
                    }
                }
            }
        }
        // The keys of a batch are a chain, and the replicas of a key go together.
        sealable.sort_unstable();
        self.abort(abandoned);
        let sealing = Instant::now();
        self.seal(&sealable, &mut statuses, deadline)?;
        add_time(&self.stats.put_seal_ns, sealing);
        Ok(statuses)
    }

    fn seal(&self, sealable: &[(usize, u64)], statuses: &mut [PutStatus], deadline: Instant) -> Result<(), StoreError> {
        if sealable.is_empty() {
            return Ok(());
        }
        let reservations = sealable.iter().map(|(_, reservation)| *reservation).collect();
        let answer = match self.book.call(pb::request::Body::Seal(pb::Seal { reservations }), deadline) {
            Ok(answer) => answer,
            Err(error) => {
                for (index, _) in sealable {
                    statuses[*index] = put_failure(&error);
                }
                return Ok(());
            }
        };
        let pb::reply::Body::Seal(reply) = answer.body else {
            return Err(self.book.error(BookError::Refused("not a Seal reply".to_owned())));
        };
        let outcomes = outcomes_from_wire::<pb::SealOutcome>("outcomes", &reply.outcomes, sealable.len())?;
        for ((index, _), outcome) in sealable.iter().zip(outcomes) {
            let status = &mut statuses[*index];
            *status = match (outcome, *status) {
                // One replica is enough; the pool makes the others.
                (pb::SealOutcome::Sealed, _) | (_, PutStatus::Stored) => PutStatus::Stored,
                (pb::SealOutcome::SealPresent, _) | (_, PutStatus::Present) => PutStatus::Present,
                (pb::SealOutcome::SealLost | pb::SealOutcome::SealUnknown, _) => PutStatus::Lost,
            };
        }
        Ok(())
    }

    /// Gives space back without waiting: if the message is lost the reservation runs out by itself.
    fn abort(&self, reservations: Vec<u64>) {
        if !reservations.is_empty() {
            let body = pb::request::Body::Abort(pb::Abort { reservations });
            self.book.submit(body, Instant::now() + Duration::from_secs(1), drop);
        }
    }

    fn count_put(&self, sources: &Buffers, statuses: &[PutStatus], started: Instant) {
        let stats = &self.stats;
        for (list, status) in sources.lists().iter().zip(statuses) {
            match status {
                PutStatus::Stored => {
                    add(&stats.put_objects, 1);
                    add(&stats.put_bytes, list.bytes());
                }
                PutStatus::Present | PutStatus::Pending => add(&stats.put_present, 1),
                _ => add(&stats.put_failures, 1),
            }
        }
        add_time(&stats.put_ns, started);
    }
}

/// The write that fills what was granted, and its record; the checksum comes with the copy.
fn write_of(tag: usize, ticket: &Ticket, wanted: u32, keys: &KeyBatch, sources: &Buffers) -> Move {
    let trailer = Trailer {
        digest: KeyDigest::of(keys.get(ticket.index)),
        generation: ticket.generation,
        payload_bytes: sources.list(ticket.index).bytes(),
        checksum: Checksum::None,
    };
    let head = RecordHead {
        offset: ticket.extent.offset(),
        payload_bytes: trailer.payload_bytes,
        origin: ticket.origin,
        wanted,
    };
    let key = keys.get(ticket.index);
    let record = ticket.record.map(|extent| Record::new(extent, &head, key, ticket.generation));
    Move { index: ticket.index, tag, extent: ticket.extent, trailer, record }
}

/// Reads the packed reply into tickets and statuses.
fn grants(
    reply: &pb::ReserveReply,
    sources: &Buffers,
    wanted: u32,
    sent: Instant,
) -> Result<Granted, memcache_proto::pack::WireError> {
    let outcomes = outcomes_from_wire::<pb::ReserveOutcome>("outcomes", &reply.outcomes, sources.len())?;
    let granted = outcomes.iter().filter(|outcome| **outcome == pb::ReserveOutcome::Reserved).count();
    if !reply.replicas.is_empty() {
        expect_length("replicas", reply.replicas.len(), granted)?;
    }
    let count = match reply.replicas.as_slice() {
        [] => granted,
        each => each.iter().map(|count| usize::from(*count)).sum(),
    };
    expect_length("reservations", reply.reservations.len(), count)?;
    expect_length("segments", reply.segments.len(), count)?;
    expect_length("offsets", reply.offsets.len(), count)?;
    expect_length("generations", reply.generations.len(), count)?;
    expect_length("records", reply.records.len(), count)?;
    expect_length("clear_tickets", reply.clear_tickets.len(), reply.clears.len())?;
    let mut replicas = reply.replicas.iter().map(|count| usize::from(*count));
    let mut statuses = Vec::with_capacity(outcomes.len());
    let mut tickets = Vec::with_capacity(count);
    for (index, outcome) in outcomes.into_iter().enumerate() {
        statuses.push(match outcome {
            pb::ReserveOutcome::Reserved | pb::ReserveOutcome::ReserveUnknown => PutStatus::Unavailable,
            pb::ReserveOutcome::ReservePresent => PutStatus::Present,
            pb::ReserveOutcome::ReservePending => PutStatus::Pending,
            pb::ReserveOutcome::ReserveNoSpace => PutStatus::NoSpace,
            pb::ReserveOutcome::ReserveTooLarge => PutStatus::TooLarge,
        });
        if outcome != pb::ReserveOutcome::Reserved {
            continue;
        }
        let first = tickets.len();
        for at in tickets.len()..tickets.len() + replicas.next().unwrap_or(1) {
            let address = GlobalAddress::new(SegmentId::new(reply.segments[at]), reply.offsets[at]);
            let Ok(extent) = Extent::new(address, extent_bytes(sources.list(index).bytes())) else {
                return Err(memcache_proto::pack::WireError::Missing { field: "valid offset" });
            };
            tickets.push(Ticket {
                index,
                reservation: ReservationId::new(reply.reservations[at]),
                extent,
                generation: Generation::new(reply.generations[at]),
                origin: Generation::new(reply.generations[first]),
                record: match reply.records[at] {
                    0 => None,
                    offset => Some(record_extent(address.segment(), offset)?),
                },
                clears: Vec::new(),
            });
        }
    }
    for (ticket, offset) in reply.clear_tickets.iter().zip(&reply.clears) {
        if let Some(ticket) = tickets.get_mut(*ticket as usize) {
            ticket.clears.push(record_extent(ticket.extent.segment(), *offset)?);
        }
    }
    // Half of the ticket's life: a write that starts then has as long again before the space can go elsewhere.
    let write_until = sent + Duration::from_millis(u64::from(reply.ttl_ms)) / 2;
    Ok(Granted { statuses, tickets, wanted, write_until })
}

/// Whether this is what a granted key has until its write is over.
fn is_granted(status: PutStatus) -> bool {
    status == PutStatus::Unavailable
}

fn put_failure(error: &BookError) -> PutStatus {
    match error {
        BookError::Unavailable(_) | BookError::Interrupted(_) => PutStatus::Unavailable,
        BookError::Timeout { .. } => PutStatus::Timeout,
        BookError::Refused(_) => PutStatus::Invalid,
    }
}

fn unreachable_status(error: &LinkError) -> PutStatus {
    match error {
        LinkError::Book(error) => put_failure(error),
        LinkError::Transport(TransportError::Timeout) => PutStatus::Timeout,
        LinkError::Gone | LinkError::Transport(_) => PutStatus::Unavailable,
    }
}

fn write_failure(error: &TransportError) -> PutStatus {
    match error {
        TransportError::Timeout => PutStatus::Timeout,
        TransportError::InvalidOp { .. } => PutStatus::Invalid,
        _ => PutStatus::Unavailable,
    }
}

/// Whether no byte of a failed write can still land: then its space may be given back at once. Bytes on their way
/// through a socket may; that space waits until the reservation has run out and been kept aside.
fn writer_is_done(protocol: Protocol) -> bool {
    match protocol {
        Protocol::Local | Protocol::HostShm => true,
        // Packets on their way may still arrive, also after the connection was given up.
        Protocol::HostRdma | Protocol::HostTcp => false,
    }
}
