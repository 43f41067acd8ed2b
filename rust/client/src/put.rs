//! Storing a batch: reserve, write, seal.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::holdings::RecordHead;
use memcache_memory::{Checksum, Trailer};
use memcache_proto::pack::{expect_length, keys_to_wire, outcomes_from_wire};
use memcache_proto::pb;
use memcache_transport::{Protocol, TransportError};
use memcache_types::limits::REPLICAS_MAX;
use memcache_types::{
    Extent, Generation, GlobalAddress, KeyBatch, KeyDigest, NodeId, PutStatus, ReservationId, ScatterList, SegmentId,
    extent_bytes,
};

use crate::book::{Answer, Book, BookError};
use crate::buffer::Buffers;
use crate::directory::{LinkError, Links};
use crate::error::{InvalidCall, StoreError};
use crate::record::{Record, clear, record_extent};
use crate::stats::{Stats, add, add_time};
use crate::store::{Inner, check_call};
use crate::transfer::{Group, Groups, Move, MoveError, Moved, Transfer};
use crate::ways::Writes;

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
pub(crate) struct Granted {
    pub(crate) statuses: Vec<PutStatus>,
    pub(crate) tickets: Tickets,
    /// Replicas that each key should have.
    wanted: u32,
    /// No write may start after this: the space may go to somebody else some time later.
    pub(crate) write_until: Instant,
}

/// Tickets that nobody has begun to write to. Dropped, they are given back.
pub(crate) struct Tickets {
    open: Vec<Ticket>,
    book: Arc<Book>,
}

/// What became of the writes.
pub(crate) struct Written {
    /// Index and reservation of every replica that is whole.
    pub(crate) sealable: Vec<(usize, u64)>,
    /// Reservations whose space nobody writes to any more.
    pub(crate) abandoned: Vec<u64>,
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
        let answer = self.book.call(self.reserve_request(keys, sources, options), deadline);
        let granted = answer.and_then(|answer| self.granted(answer, sources, self.replicas_of(options)));
        add_time(&self.stats.put_reserve_ns, started);
        let statuses = match granted {
            Ok(granted) => self.fill(keys, sources, granted, deadline)?,
            Err(error) => self.not_granted(error, keys.len())?,
        };
        count_put(&self.stats, &bytes_of(sources), &statuses, started);
        Ok(statuses)
    }

    pub(crate) fn check_put(&self, options: &PutOptions) -> Result<(), StoreError> {
        let replicas = options.replicas.unwrap_or(self.replicas);
        if !(1..=REPLICAS_MAX).contains(&replicas) {
            return Err(InvalidCall::Replicas { replicas, limit: REPLICAS_MAX }.into());
        }
        Ok(())
    }

    pub(crate) fn reserve_request(
        &self,
        keys: &KeyBatch,
        sources: &Buffers,
        options: &PutOptions,
    ) -> pb::request::Body {
        let mut payload_bytes = bytes_of(sources);
        if payload_bytes.iter().all(|bytes| *bytes == payload_bytes[0]) {
            payload_bytes.truncate(1);
        }
        pb::request::Body::Reserve(pb::Reserve {
            keys: Some(keys_to_wire(keys)),
            payload_bytes,
            near: self.near(),
            exclusive: options.exclusive,
            replicas: self.replicas_of(options),
            preferred: options.preferred.iter().map(|node| node.get()).collect(),
        })
    }

    /// Replicas that each key should have.
    pub(crate) fn replicas_of(&self, options: &PutOptions) -> u32 {
        u32::try_from(options.replicas.unwrap_or(self.replicas)).unwrap_or(u32::MAX)
    }

    pub(crate) fn granted(&self, answer: Answer, sources: &Buffers, wanted: u32) -> Result<Granted, BookError> {
        let pb::reply::Body::Reserve(reply) = answer.body else {
            return Err(BookError::not_a("Reserve"));
        };
        Ok(grants(&reply, sources, wanted, answer.sent, &self.book)?)
    }

    /// What a put that was granted nothing returns.
    pub(crate) fn not_granted(&self, error: BookError, keys: usize) -> Result<Vec<PutStatus>, StoreError> {
        match error {
            BookError::Refused(_) | BookError::Malformed(_) | BookError::Limit(_) => Err(self.book.error(error)),
            error => Ok(vec![put_failure(&error); keys]),
        }
    }

    /// Writes what was granted and seals what was written.
    fn fill(
        &self,
        keys: &KeyBatch,
        sources: &Buffers,
        mut granted: Granted,
        deadline: Instant,
    ) -> Result<Vec<PutStatus>, StoreError> {
        if granted.tickets.is_empty() {
            return Ok(std::mem::take(&mut granted.statuses));
        }
        let until = granted.write_deadline(deadline);
        let links = self.directory.links(&self.book, &self.fabric, granted.tickets.segments(), until);
        granted.clear_records(&links, until);
        let (groups, places) = self.plan_writes(&mut granted, keys, sources, &links);
        let Granted { mut statuses, tickets, .. } = granted;
        let transfer = Transfer::<Writes>::new(Some(&self.paths), &self.stats, sources, until, Arc::default());
        let moving = Instant::now();
        let moved = transfer.run(&self.crew, groups);
        add_time(&self.stats.put_move_ns, moving);
        drop(tickets);
        let Written { sealable, abandoned } = written(moved, &places, &mut statuses);
        abort(&self.book, abandoned);
        if !sealable.is_empty() {
            let sealing = Instant::now();
            let outcome = self.book.call(seal_request(&sealable), deadline);
            read_seal(&self.book, outcome, &sealable, &mut statuses)?;
            add_time(&self.stats.put_seal_ns, sealing);
        }
        Ok(statuses)
    }

    /// Which objects to write over which link, and by tag index and reservation of each. Tickets for nodes that cannot be
    /// reached stay behind, their statuses told.
    pub(crate) fn plan_writes(
        &self,
        granted: &mut Granted,
        keys: &KeyBatch,
        sources: &Buffers,
        links: &Links,
    ) -> (Vec<Group>, Vec<(usize, u64)>) {
        let Granted { statuses, tickets, wanted, .. } = granted;
        let mut groups = Groups::default();
        let mut places = Vec::with_capacity(tickets.open.len());
        tickets.open.retain(|ticket| {
            match links.get(&ticket.extent.segment()) {
                Some(Ok(link)) => {
                    let sum = self.sums.of_put();
                    groups.push(link, write_of(places.len(), ticket, *wanted, keys, sources, sum));
                    places.push((ticket.index, ticket.reservation.get()));
                    return false;
                }
                Some(Err(error)) => statuses[ticket.index] = unreachable_status(error),
                None => {}
            }
            true
        });
        (groups.into_vec(), places)
    }
}

impl Granted {
    /// Whether taking away the old records over these links waits for no peer.
    pub(crate) fn clears_at_once(&self, links: &Links) -> bool {
        let with_records = self.tickets.open.iter().filter(|ticket| !ticket.clears.is_empty());
        with_records
            .filter_map(|ticket| links.get(&ticket.extent.segment()))
            .all(|link| link.as_ref().map_or(true, |link| link.capabilities().copies_on_caller))
    }

    /// Takes away the records of objects that were in the granted space before, as long as no byte of it has changed.
    /// Where that fails nothing is written.
    pub(crate) fn clear_records(&mut self, links: &Links, until: Instant) {
        let mut failed = Vec::new();
        let statuses = &mut self.statuses;
        self.tickets.open.retain_mut(|ticket| {
            let Some(Ok(link)) = links.get(&ticket.extent.segment()) else { return true };
            let clears = std::mem::take(&mut ticket.clears);
            let Err(error) = clear(&**link, &clears, until) else { return true };
            tracing::debug!(%error, "a put could not clear old records");
            statuses[ticket.index] = write_failure(&error);
            if writer_is_done(link.protocol(), &error) {
                failed.push(ticket.reservation.get());
            }
            false
        });
        abort(&self.tickets.book, failed);
    }

    /// When the writes must be over.
    pub(crate) fn write_deadline(&self, deadline: Instant) -> Instant {
        let until = deadline.min(self.write_until);
        if self.tickets.open.len() <= self.statuses.iter().filter(|status| is_granted(**status)).count() {
            return until;
        }
        let now = Instant::now();
        now + until.saturating_duration_since(now) * WRITE_PART.0 / WRITE_PART.1
    }
}

impl Tickets {
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(crate) fn segments(&self) -> impl Iterator<Item = SegmentId> + '_ {
        self.open.iter().map(|ticket| ticket.extent.segment())
    }
}

impl Drop for Tickets {
    fn drop(&mut self) {
        abort(&self.book, self.open.iter().map(|ticket| ticket.reservation.get()).collect());
    }
}

/// Sorts results into what can be sealed and what is given up.
pub(crate) fn written(moved: Vec<Moved<()>>, places: &[(usize, u64)], statuses: &mut [PutStatus]) -> Written {
    let mut written = Written { sealable: Vec::with_capacity(moved.len()), abandoned: Vec::new() };
    for Moved { tag, protocol, outcome, .. } in moved {
        let (index, reservation) = places[tag];
        match outcome {
            Ok(()) => written.sealable.push((index, reservation)),
            // Nothing of it is on its way: the transfer was stopped between two copies.
            Err(MoveError::Cancelled) => {
                statuses[index] = PutStatus::Cancelled;
                written.abandoned.push(reservation);
            }
            Err(MoveError::Transport(error)) => {
                tracing::debug!(%error, %protocol, "a put could not write");
                statuses[index] = write_failure(&error);
                if writer_is_done(protocol, &error) {
                    written.abandoned.push(reservation);
                }
            }
        }
    }
    // The keys of a batch are a chain, and the replicas of a key go together.
    written.sealable.sort_unstable();
    written
}

pub(crate) fn seal_request(sealable: &[(usize, u64)]) -> pb::request::Body {
    let reservations = sealable.iter().map(|(_, reservation)| *reservation).collect();
    pb::request::Body::Seal(pb::Seal { reservations })
}

pub(crate) fn read_seal(
    book: &Book,
    outcome: Result<Answer, BookError>,
    sealable: &[(usize, u64)],
    statuses: &mut [PutStatus],
) -> Result<(), StoreError> {
    let answer = match outcome {
        Ok(answer) => answer,
        Err(error) => {
            for (index, _) in sealable {
                statuses[*index] = put_failure(&error);
            }
            return Ok(());
        }
    };
    let pb::reply::Body::Seal(reply) = answer.body else {
        return Err(book.error(BookError::not_a("Seal")));
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

/// Gives space back without waiting: if the message is lost the reservations run out by themselves.
pub(crate) fn abort(book: &Book, reservations: Vec<u64>) {
    if !reservations.is_empty() {
        let body = pb::request::Body::Abort(pb::Abort { reservations });
        book.submit(body, Instant::now() + Duration::from_secs(1), drop);
    }
}

pub(crate) fn bytes_of(sources: &Buffers) -> Vec<u64> {
    sources.lists().iter().map(ScatterList::bytes).collect()
}

pub(crate) fn count_put(stats: &Stats, bytes: &[u64], statuses: &[PutStatus], started: Instant) {
    for (bytes, status) in bytes.iter().zip(statuses) {
        match status {
            PutStatus::Stored => {
                add(&stats.put_objects, 1);
                add(&stats.put_bytes, *bytes);
            }
            PutStatus::Present | PutStatus::Pending => add(&stats.put_present, 1),
            PutStatus::Cancelled => add(&stats.put_cancelled, 1),
            _ => add(&stats.put_failures, 1),
        }
    }
    add_time(&stats.put_ns, started);
}

/// The write that fills what was granted, and its record; the checksum comes with the copy.
fn write_of(tag: usize, ticket: &Ticket, wanted: u32, keys: &KeyBatch, sources: &Buffers, summed: bool) -> Move {
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
    Move { index: ticket.index, tag, extent: ticket.extent, trailer, summed, record }
}

/// Reads the packed reply into tickets and statuses.
fn grants(
    reply: &pb::ReserveReply,
    sources: &Buffers,
    wanted: u32,
    sent: Instant,
    book: &Arc<Book>,
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
    Ok(Granted { statuses, tickets: Tickets { open: tickets, book: Arc::clone(book) }, wanted, write_until })
}

/// Whether this is what a granted key has until its write is over.
fn is_granted(status: PutStatus) -> bool {
    status == PutStatus::Unavailable
}

fn put_failure(error: &BookError) -> PutStatus {
    match error {
        BookError::Unavailable(_) | BookError::Interrupted(_) => PutStatus::Unavailable,
        BookError::Timeout { .. } => PutStatus::Timeout,
        BookError::Refused(_) | BookError::Malformed(_) | BookError::Limit(_) => PutStatus::Invalid,
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
fn writer_is_done(protocol: Protocol, error: &TransportError) -> bool {
    match protocol {
        _ if matches!(error, TransportError::Unfinished { .. }) => false,
        Protocol::Local | Protocol::HostShm => true,
        // Packets on their way may still arrive, also after the connection was given up.
        Protocol::HostRdma | Protocol::HostTcp => false,
    }
}
