//! Writing: reserve space, fill it, seal it or give it back.

use std::num::NonZeroU64;

use memcache_proto::pb::{ReserveOutcome, SealOutcome};
use memcache_types::limits::OBJECT_BYTES_MAX;
use memcache_types::{
    ClientId, Generation, GlobalAddress, KeyBatch, NodeId, ReservationId, SegmentId, extent_bytes, payload_bytes_max,
};

use super::Core;
use super::clock::Millis;
use super::effect::Effect;
use super::index::Entry;
use super::limits::{BATCH_NUMBERS_MAX, CLIENT_RESERVATIONS_MAX, KEYS_MAX, RESERVATIONS_MAX};
use super::list::{Links, linked};
use super::object::Object;
use super::refusal::Refusal;
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
}

linked!(Reservation);

/// Space whose writer did not say that it is done: it may still write.
#[derive(Debug)]
pub(super) struct Quarantine {
    pub(super) until: Millis,
    pub(super) segment: SegmentId,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// What a writer wants.
#[derive(Clone, Copy, Debug)]
pub struct ReserveRequest<'a> {
    /// The keys.
    pub keys: &'a KeyBatch,
    /// Payload bytes: one for all keys, or one a key.
    pub payload_bytes: &'a [u64],
    /// Node whose memory to prefer.
    pub near: Option<NodeId>,
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
}

/// What became of a [`ReserveRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReserveReply {
    /// One a key.
    pub outcomes: Vec<ReserveOutcome>,
    /// One for each key that is `Reserved`, in key order.
    pub tickets: Vec<Ticket>,
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
        self.check_reservation_limits(client, count)?;
        let largest_bytes =
            self.segments.iter().map(|(_, segment)| payload_bytes_max(segment.bytes)).max().unwrap_or(0);
        let mut reply = ReserveReply { outcomes: Vec::with_capacity(count), tickets: Vec::new(), largest_bytes };
        for (position, key) in request.keys.iter().enumerate() {
            let payload_bytes = match request.payload_bytes {
                [uniform] => *uniform,
                each => each[position],
            };
            let outcome = match self.reserve_one(client, key, payload_bytes, request, largest_bytes) {
                Ok(ticket) => {
                    reply.tickets.push(ticket);
                    ReserveOutcome::Reserved
                }
                Err(outcome) => outcome,
            };
            reply.outcomes.push(outcome);
        }
        Ok(reply)
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
        largest_bytes: u64,
    ) -> Result<Ticket, ReserveOutcome> {
        if let Some(entry) = self.index.find(key) {
            let known = self.index.get(entry);
            if let Some(object) = known.object {
                self.touch(object);
                return Err(ReserveOutcome::ReservePresent);
            }
            if request.exclusive && known.writers > 0 {
                return Err(ReserveOutcome::ReservePending);
            }
        } else if self.index.len() >= KEYS_MAX {
            return Err(ReserveOutcome::ReserveNoSpace);
        }
        let no_segments = self.segments.len() == 0;
        if payload_bytes > OBJECT_BYTES_MAX || (payload_bytes > largest_bytes && !no_segments) {
            return Err(ReserveOutcome::ReserveTooLarge);
        }
        let (segment, offset) =
            self.place(extent_bytes(payload_bytes), request.near).ok_or(ReserveOutcome::ReserveNoSpace)?;
        let entry = self.index.find_or_insert(key);
        self.index.get_mut(entry).writers += 1;
        let serial = NonZeroU64::MIN.saturating_add(self.next_serial() - 1);
        let slot = self.reservations.insert(Reservation {
            links: Links::new(),
            serial,
            client,
            entry,
            segment,
            offset,
            payload_bytes,
            deadline: self.now.plus(self.settings.reservation_ttl_ms.into()),
        });
        self.reservation_order.push(&mut self.reservations, slot);
        let reservations = &self.reservations;
        self.reservation_ids
            .insert_unique(hash_id(serial.get()), slot, |other| hash_id(reservations[*other].serial.get()));
        *self.client_reservations.entry(client).or_default() += 1;
        Ok(Ticket {
            reservation: ReservationId::new(serial.get()),
            address: GlobalAddress::new(self.segments[segment].id, offset),
            generation: Generation::new(serial.get()),
        })
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
                Some(reservation) => match self.seal_one(&reservation) {
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
        for object in sealed.into_iter().rev() {
            self.make_idle(object);
        }
        Ok(outcomes)
    }

    /// The new object, in no list yet. `None`: another writer was first, and the space is free again.
    fn seal_one(&mut self, reservation: &Reservation) -> Option<Slot<Object>> {
        let entry = self.index.get_mut(reservation.entry);
        entry.writers -= 1;
        if entry.object.is_some() {
            self.segments[reservation.segment]
                .space
                .give_back(reservation.offset, extent_bytes(reservation.payload_bytes));
            return None;
        }
        let object = self.objects.insert(Object {
            links: Links::new(),
            entry: Some(reservation.entry),
            segment: Some(reservation.segment),
            leases: 0,
            offset: reservation.offset,
            payload_bytes: reservation.payload_bytes,
            serial: reservation.serial,
            used: 0,
        });
        entry.object = Some(object);
        self.segments[reservation.segment].objects += 1;
        self.readable += 1;
        Some(object)
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
                self.forget_writer(reservation.entry);
                let bytes = extent_bytes(reservation.payload_bytes);
                self.segments[reservation.segment].space.give_back(reservation.offset, bytes);
            }
        }
        Ok(())
    }

    /// Takes out a reservation if this client owns it. Its entry still counts the writer.
    fn take_reservation(&mut self, client: ClientId, id: u64) -> Option<Reservation> {
        let reservations = &self.reservations;
        let slot = *self.reservation_ids.find(hash_id(id), |slot| reservations[*slot].serial.get() == id)?;
        if reservations[slot].client != client {
            return None;
        }
        Some(self.remove_reservation(slot))
    }

    /// Takes out any reservation. Its entry still counts the writer.
    pub(super) fn remove_reservation(&mut self, slot: Slot<Reservation>) -> Reservation {
        self.reservation_order.unlink(&mut self.reservations, slot);
        let reservation = self.reservations.remove(slot);
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

    pub(super) fn forget_writer(&mut self, entry: Slot<Entry>) {
        self.index.get_mut(entry).writers -= 1;
        self.index.forget_if_idle(entry);
    }

    pub(super) fn expire_reservations(&mut self, effects: &mut Vec<Effect>) {
        let mut count = 0;
        while let Some(slot) = self.reservation_order.oldest()
            && self.reservations[slot].deadline <= self.now
        {
            let reservation = self.remove_reservation(slot);
            self.forget_writer(reservation.entry);
            self.quarantine.push_back(Quarantine {
                until: reservation.deadline.plus(self.settings.reservation_ttl_ms.into()),
                segment: self.segments[reservation.segment].id,
                offset: reservation.offset,
                bytes: extent_bytes(reservation.payload_bytes),
            });
            count += 1;
        }
        if count > 0 {
            effects.push(Effect::ReservationsExpired { count });
        }
    }

    pub(super) fn end_quarantine(&mut self) {
        while let Some(front) = self.quarantine.front()
            && front.until <= self.now
        {
            if let Some(slot) = self.segment_ids.get(&front.segment) {
                self.segments[*slot].space.give_back(front.offset, front.bytes);
            }
            self.quarantine.pop_front();
        }
    }
}

pub(super) fn check_count(what: &'static str, count: usize) -> Result<(), Refusal> {
    if count > BATCH_NUMBERS_MAX {
        return Err(Refusal::Limit { what, found: count as u64, limit: BATCH_NUMBERS_MAX as u64 });
    }
    Ok(())
}
