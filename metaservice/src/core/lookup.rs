//! Reading: find objects, keep them in place while they are read, let go.

use memcache_proto::pb::LocateOutcome;
use memcache_types::{ClientId, Generation, GlobalAddress, KeyBatch, LeaseId, NodeId, SegmentId};

use super::Core;
use super::clock::Millis;
use super::effect::Effect;
use super::index::{CHUNK, Entry};
use super::limits::{CALL_ENDED_MAX, CLIENT_LEASED_MAX, CLIENT_LEASES_MAX, LEASE_LENGTHS_MAX, LEASED_MAX, LEASES_MAX};
use super::list::{Links, linked};
use super::node::Node;
use super::object::Object;
use super::refusal::Refusal;
use super::reserve::{check_count, hash_id};
use super::slab::Slot;

/// A promise that some objects stay in place.
#[derive(Debug)]
pub(super) struct Lease {
    links: Links<Lease>,
    serial: u64,
    pub(super) client: ClientId,
    deadline: Millis,
    /// No renewal goes beyond.
    latest: Millis,
    pub(super) objects: Box<[Slot<Object>]>,
}

linked!(Lease);

/// The leases of one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Leasing {
    pub(super) leases: usize,
    /// Objects that they name, counted once a lease.
    pub(super) objects: usize,
}

/// Where a readable object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// First byte.
    pub address: GlobalAddress,
    /// Length of the payload.
    pub payload_bytes: u64,
    /// What its trailer must hold.
    pub generation: Generation,
}

impl Found {
    fn new(object: &Object, segment: SegmentId) -> Self {
        Self {
            address: GlobalAddress::new(segment, object.offset),
            payload_bytes: object.payload_bytes,
            generation: object.generation(),
        }
    }
}

/// What became of a locate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocateReply {
    /// One a key.
    pub outcomes: Vec<LocateOutcome>,
    /// A replica of each key that is `Located`, in key order: the one on the reader's node, if it has one.
    pub found: Vec<Found>,
    /// The other replicas: position in `found`, and where it is.
    pub others: Vec<(usize, Found)>,
    /// The lease on all of them; `None` when there are none.
    pub lease: Option<LeaseId>,
    /// Segments named here in which writers of an earlier life may still be at work.
    pub resting: Vec<SegmentId>,
}

/// How much of the beginning of a list of keys is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixReply {
    /// Leading keys that are readable.
    pub present: usize,
    /// Leading keys that are readable or being written.
    pub pending: usize,
}

impl Core {
    /// Finds objects and keeps all their replicas in place under one lease of bounded length. `near` is the reader's
    /// node.
    pub fn locate(
        &mut self,
        now: Millis,
        client: ClientId,
        keys: &KeyBatch,
        near: Option<NodeId>,
        effects: &mut Vec<Effect>,
    ) -> Result<LocateReply, Refusal> {
        self.advance(now, effects);
        while self.lease_room(client, keys.len()).is_err() && self.are_leases_late() {
            self.expire_leases();
        }
        let room = self.lease_room(client, keys.len())?;
        let mut reply = LocateReply {
            outcomes: Vec::with_capacity(keys.len()),
            found: Vec::with_capacity(keys.len()),
            others: Vec::new(),
            lease: None,
            resting: Vec::new(),
        };
        let near = near.and_then(|id| self.node_ids.get(&id).copied());
        let mut objects = Vec::with_capacity(keys.len());
        for start in (0..keys.len()).step_by(CHUNK) {
            let chunk = self.index.find_chunk(keys, start);
            self.warm_moves(chunk.iter().flatten().map(|(entry, _)| *entry));
            for known in &chunk[..CHUNK.min(keys.len() - start)] {
                let (outcome, first) = self.judge(*known);
                reply.outcomes.push(outcome);
                if let (Some((entry, hash)), Some(first)) = (*known, first) {
                    self.find_replicas(first, near, room, &mut reply, &mut objects);
                    self.count_read(entry, hash);
                    if self.hot.is_some()
                        && let Some(node) = near
                    {
                        self.count_remote(entry, node);
                    }
                }
            }
        }
        if !objects.is_empty() {
            reply.lease = Some(self.new_lease(client, objects.into_boxed_slice()));
        }
        reply.resting.sort_unstable();
        reply.resting.dedup();
        Ok(reply)
    }

    /// How many objects one more lease of a client may name: at least those of so many keys.
    fn lease_room(&self, client: ClientId, keys: usize) -> Result<usize, Refusal> {
        let own = self.client_leases.get(&client).copied().unwrap_or_default();
        for (what, found, limit) in [
            ("leases of this client", own.leases + 1, CLIENT_LEASES_MAX),
            ("leases", self.leases.len() + 1, LEASES_MAX),
            ("objects under leases of this client", own.objects + keys, CLIENT_LEASED_MAX),
            ("objects under leases", self.leased + keys, LEASED_MAX),
        ] {
            if found > limit {
                return Err(Refusal::Limit { what, found: found as u64, limit: limit as u64 });
            }
        }
        Ok((CLIENT_LEASED_MAX - own.objects).min(LEASED_MAX - self.leased))
    }

    /// Adds the replicas of a key, from the first on, to a reply and to the objects under its lease. Where there is no room
    /// under leases for all replicas, one must do.
    fn find_replicas(
        &mut self,
        first: Slot<Object>,
        near: Option<Slot<Node>>,
        room: usize,
        reply: &mut LocateReply,
        objects: &mut Vec<Slot<Object>>,
    ) {
        let (mut next, position) = (Some(first), reply.found.len());
        while let Some(slot) = next {
            let object = &self.objects[slot];
            next = object.sibling;
            let Some(segment) = self.live_segment(object) else { continue };
            let is_first = reply.found.len() == position;
            if !is_first && objects.len() >= room {
                return;
            }
            let found = Found::new(object, segment.id);
            reply.resting.extend(segment.listing.map(|_| segment.id));
            if is_first {
                reply.found.push(found);
            } else if Some(segment.node) == near {
                reply.others.push((position, std::mem::replace(&mut reply.found[position], found)));
            } else {
                reply.others.push((position, found));
            }
            self.add_lease(slot);
            objects.push(slot);
        }
    }

    /// Where a replica is whose node is there.
    pub(super) fn found(&self, slot: Slot<Object>) -> Found {
        let object = &self.objects[slot];
        Found::new(object, object.segment.map_or(SegmentId::new(0), |segment| self.segments[segment].id))
    }

    pub(super) fn new_lease(&mut self, client: ClientId, objects: Box<[Slot<Object>]>) -> LeaseId {
        let serial = self.next_serial();
        self.leased += objects.len();
        let own = self.client_leases.entry(client).or_default();
        own.leases += 1;
        own.objects += objects.len();
        let length = u64::from(self.settings.lease_ms);
        let (deadline, latest) = (self.now.plus(length), self.now.plus(length.saturating_mul(LEASE_LENGTHS_MAX)));
        let slot = self.leases.insert(Lease { links: Links::new(), serial, client, deadline, latest, objects });
        self.lease_order.push(&mut self.leases, slot);
        let leases = &self.leases;
        self.lease_ids.insert_unique(hash_id(serial), slot, |other| hash_id(leases[*other].serial));
        LeaseId::new(serial)
    }

    /// Lets go of leases before their time. Others' and unknown leases are passed over.
    pub fn release(
        &mut self,
        now: Millis,
        client: ClientId,
        leases: &[u64],
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        self.advance(now, effects);
        check_count("leases", leases.len())?;
        for id in leases {
            let found = self.lease_ids.find(hash_id(*id), |slot| self.leases[*slot].serial == *id).copied();
            if let Some(slot) = found
                && self.leases[slot].client == client
            {
                self.end_lease(slot);
            }
        }
        Ok(())
    }

    /// Lets leases last for their full time again; true where the lease was this client's and not over. Where that would go
    /// past its latest end it ends when it would have.
    pub fn renew(
        &mut self,
        now: Millis,
        client: ClientId,
        leases: &[u64],
        effects: &mut Vec<Effect>,
    ) -> Result<Vec<bool>, Refusal> {
        self.advance(now, effects);
        check_count("leases", leases.len())?;
        let deadline = self.now.plus(self.settings.lease_ms.into());
        let mut renewed = Vec::with_capacity(leases.len());
        for id in leases {
            let found = self.lease_ids.find(hash_id(*id), |slot| self.leases[*slot].serial == *id).copied();
            let own = found.filter(|slot| {
                let lease = &self.leases[*slot];
                lease.client == client && lease.deadline > self.now && deadline <= lease.latest
            });
            if let Some(slot) = own {
                self.leases[slot].deadline = deadline;
                self.lease_order.unlink(&mut self.leases, slot);
                self.lease_order.push(&mut self.leases, slot);
            }
            renewed.push(own.is_some());
        }
        Ok(renewed)
    }

    pub(super) fn are_leases_late(&self) -> bool {
        self.lease_order.oldest().is_some_and(|slot| self.leases[slot].deadline <= self.now)
    }

    pub(super) fn expire_leases(&mut self) {
        let mut ended = 0;
        while ended < CALL_ENDED_MAX
            && let Some(slot) = self.lease_order.oldest()
            && self.leases[slot].deadline <= self.now
        {
            ended += self.leases[slot].objects.len();
            self.end_lease(slot);
        }
    }

    pub(super) fn add_lease(&mut self, slot: Slot<Object>) {
        if self.objects[slot].leases == 0 {
            self.leave_idle(slot);
            if let Some(segment) = self.objects[slot].segment {
                self.segments[segment].leased.push(&mut self.objects, slot);
            }
        }
        self.objects[slot].leases += 1;
    }

    fn end_lease(&mut self, slot: Slot<Lease>) {
        self.lease_order.unlink(&mut self.leases, slot);
        let lease = self.leases.remove(slot);
        if let Ok(occupied) = self.lease_ids.find_entry(hash_id(lease.serial), |other| *other == slot) {
            occupied.remove();
        }
        self.leased -= lease.objects.len();
        if let Some(own) = self.client_leases.get_mut(&lease.client) {
            own.leases -= 1;
            own.objects -= lease.objects.len();
            if own.leases == 0 {
                self.client_leases.remove(&lease.client);
            }
        }
        // A batch is a chain from head to tail, and what was used last goes last: the head.
        for slot in lease.objects.iter().rev().copied() {
            let object = &mut self.objects[slot];
            object.leases -= 1;
            if object.leases > 0 {
                continue;
            }
            let readable = object.entry.is_some();
            if let Some(segment) = object.segment {
                self.segments[segment].leased.unlink(&mut self.objects, slot);
            }
            if readable {
                self.make_idle(slot);
            } else {
                self.free_object(slot);
            }
        }
    }

    /// Counts how many leading keys are there, and marks the readable ones as used.
    pub fn match_prefix(&mut self, now: Millis, keys: &KeyBatch, effects: &mut Vec<Effect>) -> PrefixReply {
        self.advance(now, effects);
        let mut reply = PrefixReply::default();
        let mut readable = Vec::with_capacity(keys.len());
        'keys: for start in (0..keys.len()).step_by(CHUNK) {
            let chunk = self.index.find_chunk(keys, start);
            for known in &chunk[..CHUNK.min(keys.len() - start)] {
                match self.judge(*known) {
                    (LocateOutcome::Located, _) if reply.present == reply.pending => {
                        reply.present += 1;
                        readable.extend(*known);
                    }
                    (LocateOutcome::Located | LocateOutcome::LocatePending, _) => {}
                    _ => break 'keys,
                }
                reply.pending += 1;
            }
        }
        // The head of the chain is to be the last to go.
        self.touch_all(&readable);
        reply
    }

    /// What every key is. Not a use: no lease, no change of order.
    pub fn exist(&mut self, now: Millis, keys: &KeyBatch, effects: &mut Vec<Effect>) -> Vec<LocateOutcome> {
        self.advance(now, effects);
        let mut outcomes = Vec::with_capacity(keys.len());
        for start in (0..keys.len()).step_by(CHUNK) {
            let chunk = self.index.find_chunk(keys, start);
            outcomes.extend(chunk[..CHUNK.min(keys.len() - start)].iter().map(|known| self.judge(*known).0));
        }
        outcomes
    }

    /// What a key is, and the first of its replicas if it is readable: perhaps one that is gone.
    fn judge(&self, known: Option<(Slot<Entry>, u64)>) -> (LocateOutcome, Option<Slot<Object>>) {
        let Some((entry, _)) = known else {
            return (LocateOutcome::LocateAbsent, None);
        };
        let known = self.index.get(entry);
        match known.object {
            Some(_) if self.has_void() && !self.chain(entry).any(|object| self.is_live(object)) => {}
            Some(object) => return (LocateOutcome::Located, Some(object)),
            None => {}
        }
        let written = known.writers() > 0;
        (if written { LocateOutcome::LocatePending } else { LocateOutcome::LocateAbsent }, None)
    }
}
