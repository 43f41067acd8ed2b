//! Writing: reserve space, fill it, seal it or give it back.

use std::num::NonZeroU64;
use std::ops::Range;

use memcache_proto::pb::{ReserveOutcome, SealOutcome};
use memcache_types::limits::{OBJECT_BYTES_MAX, REPLICAS_MAX};
use memcache_types::{
    ClientId, Generation, GlobalAddress, KeyBatch, NodeId, ReservationId, SegmentId, extent_bytes, payload_bytes_max,
};

use super::Core;
use super::clock::Millis;
use super::effect::Effect;
use super::index::{CHUNK, Entry};
use super::limits::{BATCH_NUMBERS_MAX, CALL_ENDED_MAX, CLIENT_RESERVATIONS_MAX, KEYS_MAX, RESERVATIONS_MAX};
use super::list::{Links, linked};
use super::object::Object;
use super::place::Wish;
use super::record::{Held, Leftover};
use super::refusal::Refusal;
use super::search::Search;
use super::segment::Segment;
use super::slab::Slot;

/// A ticket to fill one extent: who holds it, for which key, until when.
#[derive(Debug)]
pub(super) struct Reservation {
    pub(super) links: Links<Reservation>,
    /// Reservation id and generation at once: one writing, one number.
    pub(super) serial: NonZeroU64,
    pub(super) client: ClientId,
    pub(super) entry: Slot<Entry>,
    pub(super) segment: Slot<Segment>,
    pub(super) offset: u64,
    pub(super) payload_bytes: u64,
    pub(super) deadline: Millis,
    /// Where it stands in the list of its segment.
    pub(super) position: u32,
    /// Serials of the objects with the same bytes: this becomes a replica beside them, and beside no others.
    pub(super) kin: Range<u64>,
    /// How many replicas the key should have if this is the first.
    pub(super) wanted: u8,
    /// It copies a replica that is there.
    pub(super) copy: bool,
    /// It is a copy beyond the replicas that the key should have.
    pub(super) extra: bool,
    /// What it has to do with records.
    pub(super) held: Held,
}

linked!(Reservation);

/// Space whose writer did not say that it is done: it may still write.
#[derive(Debug)]
pub(super) struct Quarantine {
    pub(super) until: Millis,
    pub(super) segment: SegmentId,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) records: Leftover,
}

/// What a writer wants.
#[derive(Clone, Copy, Debug)]
pub struct ReserveRequest<'a> {
    /// The keys.
    pub keys: &'a KeyBatch,
    /// Payload bytes: one for all keys, or one a key.
    pub payload_bytes: &'a [u64],
    /// Node whose memory to prefer: the writer's own.
    pub near: Option<NodeId>,
    /// Replicas of each key, on distinct nodes: 1 to [`REPLICAS_MAX`].
    pub replicas: usize,
    /// Nodes whose memory to prefer before any other, in this order, where they have free space.
    pub preferred: &'a [NodeId],
    /// Do not race a writer that already holds a key.
    pub exclusive: bool,
}

/// Where to write one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// What to seal or give back.
    pub reservation: ReservationId,
    /// First byte.
    pub address: GlobalAddress,
    /// What goes into the trailer.
    pub generation: Generation,
    /// Where the object's record goes; `None`: nowhere.
    pub record: Option<u64>,
}

/// A record that the holder of a ticket clears before it writes the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clear {
    /// Position of the ticket in the reply.
    pub ticket: u32,
    /// First byte of the record, in the ticket's segment.
    pub offset: u64,
}

/// What became of a [`ReserveRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReserveReply {
    /// One a key.
    pub outcomes: Vec<ReserveOutcome>,
    /// One to [`ReserveRequest::replicas`] for each key that is `Reserved`, in key order.
    pub tickets: Vec<Ticket>,
    /// By ticket.
    pub clears: Vec<Clear>,
    /// How many tickets each key has that is `Reserved`: fewer than asked for where fewer nodes have room.
    pub replicas: Vec<u8>,
    /// Largest payload any segment could ever hold, in bytes.
    pub largest_bytes: u64,
}

/// Spreads consecutive ids over a hash table.
pub(super) const fn hash_id(id: u64) -> u64 {
    id.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

impl Core {
    /// Reserves space for the keys that are not readable yet.
    pub fn reserve(
        &mut self,
        now: Millis,
        client: ClientId,
        request: &ReserveRequest<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<ReserveReply, Refusal> {
        self.advance(now, effects);
        let count = request.keys.len();
        if request.payload_bytes.len() != count && request.payload_bytes.len() != 1 {
            return Err(Refusal::Length { what: "payload_bytes", found: request.payload_bytes.len(), want: count });
        }
        if !(1..=REPLICAS_MAX).contains(&request.replicas) {
            return Err(Refusal::Value { what: "replicas", value: request.replicas as u64, want: "1 to 8" });
        }
        check_count("preferred nodes", request.preferred.len())?;
        let more = count.saturating_mul(request.replicas);
        while self.check_reservation_limits(client, more).is_err() && self.are_reservations_late() {
            self.expire_reservations(effects);
        }
        self.check_reservation_limits(client, more)?;
        let largest_bytes = self.places.longest_segment().map_or(0, payload_bytes_max);
        let mut reply = ReserveReply { outcomes: Vec::with_capacity(count), largest_bytes, ..ReserveReply::default() };
        let nodes = |ids: &[NodeId]| ids.iter().filter_map(|id| self.node_ids.get(id).copied()).collect::<Vec<_>>();
        let (preferred, near) = (nodes(request.preferred), nodes(request.near.as_slice()));
        let wish = Wish { preferred: &preferred, near: near.first().copied() };
        let mut search = Search::new(self.settings.search.looks);
        for (position, key) in request.keys.iter().enumerate() {
            if position.is_multiple_of(CHUNK) {
                self.index.warm_chunk(request.keys, position);
            }
            let payload_bytes = match request.payload_bytes {
                [uniform] => *uniform,
                each => each[position],
            };
            let outcome = self.reserve_one(client, key, payload_bytes, request, (wish, &mut search), &mut reply);
            reply.outcomes.push(outcome.err().unwrap_or(ReserveOutcome::Reserved));
        }
        self.touch_present(request.keys, &reply.outcomes);
        self.looked += (self.settings.search.looks - search.looks_left()) as u64;
        Ok(reply)
    }

    /// Touches the keys that were there once more, as the chain they are. Each was touched when its turn came, so that the
    /// room for those behind it was not made from it.
    fn touch_present(&mut self, keys: &KeyBatch, outcomes: &[ReserveOutcome]) {
        let present = keys.iter().zip(outcomes).filter(|(_, outcome)| **outcome == ReserveOutcome::ReservePresent);
        let known = present.filter_map(|(key, _)| {
            let entry = self.index.find(key)?;
            let known = self.index.get(entry);
            known.object.map(|_| (entry, known.hash()))
        });
        let entries: Vec<_> = known.collect();
        if entries.len() > 1 {
            self.touch_all(&entries);
        }
    }

    fn check_reservation_limits(&self, client: ClientId, more: usize) -> Result<(), Refusal> {
        let all = self.reservations.len() + more;
        if all > RESERVATIONS_MAX {
            return Err(Refusal::Limit { what: "reservations", found: all as u64, limit: RESERVATIONS_MAX as u64 });
        }
        let own = u64::from(self.client_reservations.get(&client).copied().unwrap_or(0)) + more as u64;
        if own > u64::from(CLIENT_RESERVATIONS_MAX) {
            let limit = u64::from(CLIENT_RESERVATIONS_MAX);
            return Err(Refusal::Limit { what: "reservations of this client", found: own, limit });
        }
        Ok(())
    }

    fn reserve_one(
        &mut self,
        client: ClientId,
        key: &[u8],
        payload_bytes: u64,
        request: &ReserveRequest<'_>,
        (wish, search): (Wish<'_>, &mut Search),
        reply: &mut ReserveReply,
    ) -> Result<(), ReserveOutcome> {
        if let Some(entry) = self.index.find(key).filter(|entry| self.bury_of(*entry)) {
            let known = self.index.get(entry);
            if known.object.is_some() {
                let hash = known.hash();
                self.touch(entry, hash);
                return Err(ReserveOutcome::ReservePresent);
            }
            if request.exclusive && known.writers() > 0 {
                return Err(ReserveOutcome::ReservePending);
            }
        } else if self.index.len() >= KEYS_MAX {
            return Err(ReserveOutcome::ReserveNoSpace);
        }
        let no_segments = self.places.longest_segment().is_none();
        if payload_bytes > OBJECT_BYTES_MAX || (payload_bytes > reply.largest_bytes && !no_segments) {
            return Err(ReserveOutcome::ReserveTooLarge);
        }
        let mut places = [None; REPLICAS_MAX];
        let mut nodes = Vec::with_capacity(if request.replicas > 1 { request.replicas } else { 0 });
        let mut count = 0;
        while count < request.replicas
            && let Some((segment, offset)) = self.place(extent_bytes(payload_bytes), wish, &nodes, search)
        {
            places[count] = Some((segment, offset));
            count += 1;
            if request.replicas > 1 {
                nodes.push(self.segments[segment].node);
            }
        }
        if count == 0 {
            return Err(ReserveOutcome::ReserveNoSpace);
        }
        let entry = self.index.find_or_insert(key);
        let first = self.serial + 1;
        for (segment, offset) in places.into_iter().flatten() {
            let reservation = Reservation {
                links: Links::new(),
                serial: NonZeroU64::MIN,
                client,
                entry,
                segment,
                offset,
                payload_bytes,
                deadline: self.now.plus(self.settings.reservation_ttl_ms.into()),
                position: 0,
                kin: first..first + count as u64,
                wanted: u8::try_from(request.replicas).unwrap_or(1),
                copy: false,
                extra: false,
                held: Held::default(),
            };
            let number = u32::try_from(reply.tickets.len()).unwrap_or(u32::MAX);
            let clears = &mut reply.clears;
            let ticket = self.add_reservation(reservation, |offset| clears.push(Clear { ticket: number, offset }));
            reply.tickets.push(ticket);
        }
        reply.replicas.push(u8::try_from(count).unwrap_or(1));
        Ok(())
    }

    /// Registers a reservation under a new serial, for space that was taken; says what is to be cleared first.
    pub(super) fn add_reservation(&mut self, reservation: Reservation, clear: impl FnMut(u64)) -> Ticket {
        let Reservation { client, entry, segment, offset, payload_bytes, copy, extra, .. } = reservation;
        let held = self.hold_records(segment, offset, extent_bytes(payload_bytes));
        self.clears_of(&held).for_each(clear);
        let record = held.slot.map(|slot| self.record_offset(segment, slot));
        let serial = NonZeroU64::MIN.saturating_add(self.next_serial() - 1);
        let own = &mut self.segments[segment].reservations;
        let position = u32::try_from(own.len()).unwrap_or(u32::MAX);
        let slot = self.reservations.insert(Reservation { serial, position, held, ..reservation });
        own.push(slot);
        self.index.get_mut(entry).add_writer();
        self.reservation_order.push(&mut self.reservations, slot);
        let reservations = &self.reservations;
        self.reservation_ids
            .insert_unique(hash_id(serial.get()), slot, |other| hash_id(reservations[*other].serial.get()));
        *self.client_reservations.entry(client).or_default() += 1;
        self.copies += usize::from(copy);
        self.extras_coming += if extra { extent_bytes(payload_bytes) } else { 0 };
        Ticket {
            reservation: ReservationId::new(serial.get()),
            address: GlobalAddress::new(self.segments[segment].id, offset),
            generation: Generation::new(serial.get()),
            record,
        }
    }

    /// Makes filled reservations readable. The first sealed of a key wins.
    pub fn seal(
        &mut self,
        now: Millis,
        client: ClientId,
        reservations: &[u64],
        effects: &mut Vec<Effect>,
    ) -> Result<Vec<SealOutcome>, Refusal> {
        self.advance(now, effects);
        check_count("reservations", reservations.len())?;
        let mut sealed = Vec::with_capacity(reservations.len());
        let mut outcomes = Vec::with_capacity(reservations.len());
        for id in reservations {
            let outcome = match self.take_reservation(client, *id) {
                None => SealOutcome::SealLost,
                Some(reservation) => match self.seal_one(reservation) {
                    Some(object) => {
                        sealed.push(object);
                        SealOutcome::Sealed
                    }
                    None => SealOutcome::SealPresent,
                },
            };
            outcomes.push(outcome);
        }
        // A batch is a chain from head to tail, and what was used last goes last: the head.
        for object in sealed.iter().rev() {
            self.count_seal(*object);
            self.make_idle(*object);
        }
        let entries: Vec<_> = sealed.iter().filter_map(|object| self.objects[*object].entry).collect();
        for entry in entries {
            self.settle(entry);
        }
        Ok(outcomes)
    }

    /// The new object, in no list yet. `None`: another writer was first, or a copy is needed no longer, and the space is
    /// free again.
    fn seal_one(&mut self, mut reservation: Reservation) -> Option<Slot<Object>> {
        let entry = reservation.entry;
        self.bury_of(entry);
        self.index.get_mut(entry).remove_writer();
        let record = self.settle_records(std::mem::take(&mut reservation.held));
        if !self.may_seal(&reservation) {
            let (segment, offset) = (reservation.segment, reservation.offset);
            let bytes = extent_bytes(reservation.payload_bytes);
            if let Some(record) = record {
                let hash = self.index.get(entry).hash();
                let stale = self.new_stale(segment, record, hash, reservation.serial.get());
                self.mark_if_removed(stale);
                self.lay(stale, offset, bytes);
            }
            self.give_run_back(segment, offset, bytes);
            self.end_writing(entry);
            return None;
        }
        let object = self.objects.insert(Object::new(
            reservation.segment,
            reservation.offset,
            reservation.payload_bytes,
            reservation.serial,
            record,
        ));
        if self.index.get(entry).object.is_none() {
            self.index.get_mut(entry).want(reservation.wanted.into());
            self.index.set_origin(entry, reservation.kin.start);
        }
        self.attach(entry, object);
        self.repairs.copied += u64::from(reservation.copy);
        Some(object)
    }

    /// Whether this is the first replica of its key, or has the same bytes as those that are there, on a node that has
    /// none yet.
    fn may_seal(&self, reservation: &Reservation) -> bool {
        if self.index.get(reservation.entry).object.is_none() {
            return !reservation.copy;
        }
        let node = self.segments[reservation.segment].node;
        let is_kin =
            self.chain(reservation.entry).any(|slot| reservation.kin.contains(&self.objects[slot].serial.get()));
        is_kin
            && !self.holds(node, reservation.entry)
            && (!reservation.copy
                || reservation.extra && self.chain(reservation.entry).count() < REPLICAS_MAX
                || self.lasting(reservation.entry) < self.index.get(reservation.entry).wanted())
    }

    /// A writer of a key is done.
    fn end_writing(&mut self, entry: Slot<Entry>) {
        self.index.forget_if_idle(entry);
        if self.index.knows(entry) {
            self.restore(entry);
        }
    }

    /// Gives reservations back. Their owner is done writing, so the space is free at once. Others' and unknown
    /// reservations are passed over.
    pub fn abort(
        &mut self,
        now: Millis,
        client: ClientId,
        reservations: &[u64],
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        self.advance(now, effects);
        check_count("reservations", reservations.len())?;
        for id in reservations {
            if let Some(reservation) = self.take_reservation(client, *id) {
                if reservation.copy && !reservation.extra {
                    self.defer_repair(reservation.entry);
                }
                let (segment, offset) = (reservation.segment, reservation.offset);
                let bytes = extent_bytes(reservation.payload_bytes);
                let records = self.leave_ticket(reservation);
                self.lay_records(records, offset, bytes);
                self.give_run_back(segment, offset, bytes);
            }
        }
        Ok(())
    }

    /// Takes out a reservation if this client owns it. Its entry still counts the writer.
    fn take_reservation(&mut self, client: ClientId, id: u64) -> Option<Reservation> {
        let reservations = &self.reservations;
        let slot = *self.reservation_ids.find(hash_id(id), |slot| reservations[*slot].serial.get() == id)?;
        // One whose time is over may be still there: its turn comes.
        if reservations[slot].client != client || reservations[slot].deadline <= self.now {
            return None;
        }
        Some(self.remove_reservation(slot))
    }

    /// Takes out any reservation. Its entry still counts the writer.
    pub(super) fn remove_reservation(&mut self, slot: Slot<Reservation>) -> Reservation {
        self.reservation_order.unlink(&mut self.reservations, slot);
        let reservation = self.reservations.remove(slot);
        let own = &mut self.segments[reservation.segment].reservations;
        // A segment that is gone has let go of all at once.
        if !own.is_empty() {
            own.swap_remove(reservation.position as usize);
            if let Some(moved) = own.get(reservation.position as usize) {
                self.reservations[*moved].position = reservation.position;
            }
        }
        self.copies -= usize::from(reservation.copy);
        self.extras_coming -= if reservation.extra { extent_bytes(reservation.payload_bytes) } else { 0 };
        if let Ok(occupied) = self.reservation_ids.find_entry(hash_id(reservation.serial.get()), |other| *other == slot)
        {
            occupied.remove();
        }
        if let Some(count) = self.client_reservations.get_mut(&reservation.client) {
            *count -= 1;
            if *count == 0 {
                self.client_reservations.remove(&reservation.client);
            }
        }
        reservation
    }

    /// A reservation that was taken out ends without a seal. What its writer may have left in the table.
    fn leave_ticket(&mut self, reservation: Reservation) -> Leftover {
        let hash = self.index.get(reservation.entry).hash();
        self.forget_writer(reservation.entry);
        self.leave_records(reservation.segment, reservation.held, hash, reservation.serial.get())
    }

    pub(super) fn forget_writer(&mut self, entry: Slot<Entry>) {
        self.index.get_mut(entry).remove_writer();
        self.end_writing(entry);
    }

    pub(super) fn are_reservations_late(&self) -> bool {
        self.reservation_order.oldest().is_some_and(|slot| self.reservations[slot].deadline <= self.now)
    }

    pub(super) fn expire_reservations(&mut self, effects: &mut Vec<Effect>) {
        let mut count = 0;
        while count < CALL_ENDED_MAX as u64
            && let Some(slot) = self.reservation_order.oldest()
            && self.reservations[slot].deadline <= self.now
        {
            let reservation = self.remove_reservation(slot);
            let until = reservation.deadline.plus(self.settings.reservation_ttl_ms.into());
            let segment = self.segments[reservation.segment].id;
            let (offset, bytes) = (reservation.offset, extent_bytes(reservation.payload_bytes));
            let records = self.leave_ticket(reservation);
            self.quarantine.push_back(Quarantine { until, segment, offset, bytes, records });
            count += 1;
        }
        if count > 0 {
            effects.push(Effect::ReservationsExpired { count });
        }
    }

    /// Space of a segment no longer rests: its node is gone.
    pub(super) fn forget_resting(&mut self, slot: Slot<Segment>) {
        let id = self.segments[slot].id;
        if !self.quarantine.iter().any(|resting| resting.segment == id) {
            return;
        }
        let all = std::mem::take(&mut self.quarantine);
        let (gone, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|resting| resting.segment == id);
        self.quarantine = kept.into();
        for resting in gone {
            self.forget_leftover(resting.records);
        }
    }

    pub(super) fn end_quarantine(&mut self) {
        for _ in 0..CALL_ENDED_MAX {
            if !self.is_rest_late() {
                return;
            }
            let Some(rested) = self.quarantine.pop_front() else { return };
            if let Some(slot) = self.segment_ids.get(&rested.segment).copied() {
                self.give_run_back(slot, rested.offset, rested.bytes);
                self.lay_records(rested.records, rested.offset, rested.bytes);
            }
        }
    }
}

pub(super) fn check_count(what: &'static str, count: usize) -> Result<(), Refusal> {
    if count > BATCH_NUMBERS_MAX {
        return Err(Refusal::Limit { what, found: count as u64, limit: BATCH_NUMBERS_MAX as u64 });
    }
    Ok(())
}
