//! What the book must hold, told from its answers alone. One ledger for each life of the book.

mod audit;
mod listed;

use std::collections::{BTreeMap, BTreeSet};

use memcache_meta::core::Settings;
use memcache_proto::pb::{self, LocateOutcome, ReserveOutcome, SealOutcome, reply, request};
use memcache_types::extent_bytes;

use crate::invariants::{Violation, generations, incarnation, leases, overlap, rest};
use crate::memory::Place;
use crate::truth::{Promise, Truth};

/// How far an extent has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Being written.
    Reserved {
        /// When the reservation is over.
        until: u64,
    },
    /// Its reservation ran out.
    Resting {
        /// When the space is free.
        until: u64,
    },
    /// Readable.
    Sealed,
    /// Removed; kept for those who read it.
    Removed,
}

/// Space that was granted.
#[derive(Clone, Debug)]
pub struct Extent {
    /// For which key.
    pub key: u64,
    /// Where.
    pub segment: u64,
    /// First byte.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
    /// To whom.
    pub client: u64,
    /// How far it has come.
    pub state: State,
}

impl Extent {
    /// Whether it is readable.
    pub fn is_sealed(&self) -> bool {
        self.state == State::Sealed
    }

    /// Whether both have a byte in common.
    pub fn meets(&self, other: &Self) -> bool {
        self.segment == other.segment
            && self.offset < other.offset + other.bytes
            && other.offset < self.offset + self.bytes
    }
}

/// Memory that is lent.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Which memory it is.
    pub place: Place,
    /// Its length.
    pub bytes: u64,
}

/// A lease that was given.
#[derive(Clone, Debug)]
pub struct Lease {
    client: u64,
    until: u64,
    /// Segment and generation: the same writing may come back in another segment.
    objects: BTreeSet<(u64, u64)>,
}

/// What the book must hold.
#[derive(Debug)]
pub struct Ledger {
    settings: Settings,
    now: u64,
    /// Lent memory.
    pub segments: BTreeMap<u64, Segment>,
    /// Nodes and their present incarnation.
    pub nodes: BTreeMap<u64, u64>,
    /// Nodes that are being emptied.
    pub draining: BTreeSet<u64>,
    /// Those of them for which copies may evict.
    evicting: BTreeSet<u64>,
    /// Segments whose nodes have not told all, or whose memory has not rested.
    listing: BTreeSet<u64>,
    /// Space that is not free, by generation.
    pub extents: BTreeMap<u64, Extent>,
    /// Leases that are not over.
    pub leases: BTreeMap<u64, Lease>,
    /// Replicas may be extra that nobody made so: nodes told of them, or a drain left a key fewer than were wanted, which is
    /// what it wants from then on.
    lowered: bool,
    /// Everything that was put under this generation or an older one was removed.
    floor: u64,
    /// What was removed may have space still.
    pub sweeps: bool,
    /// Removals noted, and the last of them that is forgotten, before the present call.
    turns: (u64, u64),
    /// Removals noted when a node went: those before do not concern it.
    seen: BTreeMap<u64, u64>,
    /// How many objects had ever been sealed when a key was removed last, in this life of the book.
    removed_at: BTreeMap<u64, u64>,
    /// Segment and generation of objects that are gone since the last audit, and what was taken up in their place.
    replaced: Vec<(u64, u64, u64)>,
    /// Nodes that have joined, ever.
    met: BTreeSet<u64>,
    /// Latest life of the book that a node told of; `None` where clocks go right, and nobody needs to tell.
    told_of: Option<u64>,
    /// How many numbers had been issued when this life of the book began.
    began: u64,
    /// Evictions noticed since the book was last asked how many there were.
    evicted: u64,
    /// How many there were then.
    evicted_said: u64,
    /// Replicas that left nodes that are being emptied since then: evicted or not.
    uncertain: u64,
}

/// Reads keys back.
fn key_numbers(keys: Option<&pb::Keys>) -> Vec<u64> {
    let data = keys.map_or(&[][..], |keys| &keys.data);
    data.chunks_exact(8).map(|key| key.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))).collect()
}

fn is(outcome: u8, wanted: i32) -> bool {
    i32::from(outcome) == wanted
}

impl Ledger {
    /// The ledger of a book that knows nothing, and of which so many numbers were issued before. `set_back`: it needs to be
    /// told of lives with later epochs than its own.
    pub fn new(settings: Settings, set_back: bool, began: u64) -> Self {
        Self {
            settings,
            now: 0,
            segments: BTreeMap::new(),
            nodes: BTreeMap::new(),
            draining: BTreeSet::new(),
            evicting: BTreeSet::new(),
            listing: BTreeSet::new(),
            extents: BTreeMap::new(),
            leases: BTreeMap::new(),
            lowered: false,
            floor: 0,
            sweeps: false,
            turns: (0, 0),
            seen: BTreeMap::new(),
            removed_at: BTreeMap::new(),
            replaced: Vec::new(),
            met: BTreeSet::new(),
            told_of: set_back.then_some(0),
            began,
            evicted: 0,
            evicted_said: 0,
            uncertain: 0,
        }
    }

    /// Whether this object may go when space is needed.
    pub fn may_evict(&self, generation: u64) -> bool {
        let sealed = self.extents.get(&generation).filter(|extent| extent.state == State::Sealed);
        sealed.is_some_and(|extent| {
            !self.leases.values().any(|lease| lease.objects.contains(&(extent.segment, generation)))
        })
    }

    /// The book's clock has come this far.
    pub fn advance(&mut self, now: u64) {
        self.now = now;
        let rest = u64::from(self.settings.reservation_ttl_ms);
        for extent in self.extents.values_mut() {
            if let State::Reserved { until } = extent.state
                && until <= now
            {
                extent.state = State::Resting { until: until + rest };
            }
        }
        self.leases.retain(|_, lease| lease.until > now);
        self.sweep();
    }

    /// Forgets space that nobody has a reason to keep.
    fn sweep(&mut self) {
        let (now, leases) = (self.now, &self.leases);
        self.extents.retain(|generation, extent| match extent.state {
            State::Resting { until } => until > now,
            State::Removed => leases.values().any(|lease| lease.objects.contains(&(extent.segment, *generation))),
            State::Reserved { .. } | State::Sealed => true,
        });
    }

    /// How many removals the book has noted, and which it has forgotten.
    pub fn note_turns(&mut self, turns: (u64, u64)) {
        self.turns = turns;
    }

    /// Which removals it has forgotten by now.
    pub fn note_forgotten(&mut self, turn: u64) {
        self.turns.1 = turn;
    }

    fn drop_node(&mut self, node: u64) {
        let own = |segment: &u64| self.segments.get(segment).is_some_and(|one| one.place.0 == node);
        if self.segments.keys().any(own) && !self.listing.iter().any(own) {
            self.seen.insert(node, self.turns.0);
        }
        self.nodes.remove(&node);
        self.draining.remove(&node);
        self.evicting.remove(&node);
        self.segments.retain(|_, segment| segment.place.0 != node);
        let segments = &self.segments;
        self.extents.retain(|_, extent| segments.contains_key(&extent.segment));
    }

    /// The book answered. `real_now` is everybody's time, not the book's; `None` where the book's clock jumps: then
    /// nothing that depends on time holds outside of it.
    pub fn note(
        &mut self,
        truth: &mut Truth,
        real_now: Option<u64>,
        client: u64,
        asked: &request::Body,
        answered: &reply::Body,
    ) -> Result<(), Violation> {
        match (asked, answered) {
            (request::Body::Join(asked), reply::Body::Join(reply)) => return self.joined(truth, asked, reply),
            (request::Body::Leave(asked), reply::Body::Leave(_))
                if self.nodes.get(&asked.node) == Some(&asked.incarnation) =>
            {
                self.drop_node(asked.node);
            }
            (request::Body::Reserve(asked), reply::Body::Reserve(reply)) => {
                return self.reserved(truth, real_now, client, asked, reply);
            }
            (request::Body::Seal(asked), reply::Body::Seal(reply)) => self.sealed(truth, client, asked, reply),
            (request::Body::Holdings(asked), reply::Body::Holdings(reply)) => {
                return self.listed(truth, asked, reply);
            }
            (request::Body::Abort(asked), reply::Body::Abort(_)) => {
                self.aborted(truth, client, asked);
            }
            (request::Body::Locate(asked), reply::Body::Locate(reply)) => {
                return self.located(truth, real_now, client, asked, reply);
            }
            (request::Body::Release(asked), reply::Body::Release(_)) => {
                for lease in &asked.leases {
                    if self.leases.get(lease).is_some_and(|lease| lease.client == client) {
                        self.leases.remove(lease);
                        truth.readers.remove(lease);
                    }
                }
                self.sweep();
            }
            (request::Body::Remove(asked), reply::Body::Remove(reply)) => {
                self.removed(truth, asked, reply);
            }
            (request::Body::RemoveAll(_), reply::Body::RemoveAll(reply)) => {
                for key in truth.all_keys() {
                    truth.drop_key(key);
                    self.removed_at.insert(key, truth.sealed.len() as u64);
                }
                self.removed_up_to(truth, reply.floor);
            }
            (request::Body::Damaged(asked), reply::Body::Damaged(reply)) => return self.forgotten(truth, asked, reply),
            (request::Body::Work(_), reply::Body::Work(reply)) => return self.worked(truth, real_now, client, reply),
            (request::Body::Drain(asked), reply::Body::Drain(reply)) if reply.known => self.drained(*asked),
            (_, reply::Body::Describe(reply)) => {
                for info in &reply.segments {
                    incarnation::check(self, info.segment)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn is_own_reservation(&self, generation: u64, client: u64) -> bool {
        let known = self.extents.get(&generation);
        known.is_some_and(|known| known.client == client && matches!(known.state, State::Reserved { .. }))
    }

    fn removed(&mut self, truth: &mut Truth, asked: &pb::Remove, reply: &pb::RemoveReply) {
        for (key, removed) in key_numbers(asked.keys.as_ref()).iter().zip(&reply.removed) {
            truth.drop_key(*key);
            self.removed_at.insert(*key, truth.sealed.len() as u64);
            let own = |extent: &&mut Extent| extent.key == *key && extent.state == State::Sealed;
            if *removed == 1 {
                self.extents.values_mut().filter(own).for_each(|extent| extent.state = State::Removed);
            }
        }
        self.sweep();
    }

    fn aborted(&mut self, truth: &mut Truth, client: u64, asked: &pb::Abort) {
        for generation in &asked.reservations {
            if self.is_own_reservation(*generation, client) {
                self.extents.remove(generation);
                truth.writers.remove(generation);
            }
        }
    }

    fn joined(&mut self, truth: &mut Truth, asked: &pb::Join, reply: &pb::JoinReply) -> Result<(), Violation> {
        if let Some(told_of) = &mut self.told_of
            && self.met.insert(asked.node)
        {
            *told_of = asked.previous_epoch.max(*told_of);
        }
        if asked.floor > self.floor {
            self.removed_up_to(truth, asked.floor);
        }
        let place = (asked.node, asked.incarnation);
        let same = |segment: &u64| self.segments.get(segment).is_some_and(|known| known.place == place);
        if reply.segments.iter().all(same) {
            return Ok(());
        }
        self.drop_node(asked.node);
        self.nodes.insert(asked.node, asked.incarnation);
        for (segment, offer) in reply.segments.iter().zip(&asked.segments) {
            generations::check(self, truth, *segment)?;
            self.segments.insert(*segment, Segment { place, bytes: offer.bytes });
            if reply.lists {
                self.listing.insert(*segment);
            }
        }
        Ok(())
    }

    fn promise(&self, truth: &Truth, extent: &Extent, until: u64) -> Promise {
        let place = self.segments.get(&extent.segment).map_or((0, 0), |segment| truth.memory_of(segment.place));
        Promise { place, offset: extent.offset, bytes: extent.bytes, until }
    }

    fn reserved(
        &mut self,
        truth: &mut Truth,
        real_now: Option<u64>,
        client: u64,
        asked: &pb::Reserve,
        reply: &pb::ReserveReply,
    ) -> Result<(), Violation> {
        let ttl = u64::from(self.settings.reservation_ttl_ms);
        let keys = key_numbers(asked.keys.as_ref());
        let granted = keys.iter().zip(&asked.payload_bytes).zip(&reply.outcomes);
        let granted = granted.filter(|(_, outcome)| is(**outcome, ReserveOutcome::Reserved.into()));
        let mut count = 0;
        let tickets = granted.enumerate().flat_map(|(at, (wanted, _))| {
            let first = count;
            count += reply.replicas.get(at).map_or(1, |count| usize::from(*count));
            (first..count).map(move |at| (at, first, wanted))
        });
        for (at, first, (key, payload_bytes)) in tickets {
            truth.origin_of.insert(reply.generations[at], reply.generations[first]);
            let (segment, offset, generation) = (reply.segments[at], reply.offsets[at], reply.generations[at]);
            let state = State::Reserved { until: self.now + ttl };
            let new = Extent { key: *key, segment, offset, bytes: extent_bytes(*payload_bytes), client, state };
            generations::check(self, truth, generation)?;
            incarnation::check(self, segment)?;
            rest::check_listed(self.listing.contains(&segment), &new)?;
            overlap::check(self, &new)?;
            if reply.records.get(at).is_some_and(|record| *record != 0) {
                truth.recorded.insert(generation);
            }
            self.evict_under(truth, &new);
            if let Some(now) = real_now {
                // The writer keeps to what it was told.
                let promise = self.promise(truth, &new, now + u64::from(reply.ttl_ms));
                rest::check(truth, now, &promise)?;
                truth.writers.insert(generation, promise);
            }
            truth.key_of.insert(generation, *key);
            self.extents.insert(generation, new);
        }
        Ok(())
    }

    fn sealed(&mut self, truth: &mut Truth, client: u64, asked: &pb::Seal, reply: &pb::SealReply) {
        for (generation, outcome) in asked.reservations.iter().zip(&reply.outcomes) {
            if !self.is_own_reservation(*generation, client) {
                continue;
            }
            if is(*outcome, SealOutcome::Sealed.into()) {
                if let Some(extent) = self.extents.get_mut(generation) {
                    extent.state = State::Sealed;
                    let life = self.segments.get(&extent.segment).map_or((0, 0), |segment| segment.place);
                    truth.seal(*generation, extent.key, life);
                }
                truth.writers.remove(generation);
            } else if is(*outcome, SealOutcome::SealPresent.into()) {
                self.extents.remove(generation);
                truth.writers.remove(generation);
            }
        }
    }

    fn located(
        &mut self,
        truth: &mut Truth,
        real_now: Option<u64>,
        client: u64,
        asked: &pb::Locate,
        reply: &pb::LocateReply,
    ) -> Result<(), Violation> {
        let keys = key_numbers(asked.keys.as_ref());
        let found = keys.iter().zip(&reply.outcomes);
        let found = found.filter(|(_, outcome)| is(**outcome, LocateOutcome::Located.into()));
        let found: Vec<u64> = found.map(|(key, _)| *key).collect();
        for (at, key) in found.iter().enumerate() {
            incarnation::check(self, reply.segments[at])?;
            leases::check_found(self, *key, reply.generations[at], reply.segments[at], reply.offsets[at])?;
        }
        for (at, of) in reply.other_of.iter().enumerate() {
            let (segment, offset, generation) =
                (reply.other_segments[at], reply.other_offsets[at], reply.other_generations[at]);
            incarnation::check(self, segment)?;
            leases::check_found(self, found[*of as usize], generation, segment, offset)?;
        }
        if reply.lease == 0 {
            return Ok(());
        }
        generations::check(self, truth, reply.lease)?;
        let lease_ms = u64::from(self.settings.lease_ms);
        let segments = reply.segments.iter().chain(&reply.other_segments).copied();
        let objects: BTreeSet<(u64, u64)> =
            segments.zip(reply.generations.iter().chain(&reply.other_generations).copied()).collect();
        if let Some(now) = real_now {
            let leased = objects.iter().filter_map(|(_, generation)| self.extents.get(generation));
            let promises = leased.map(|extent| self.promise(truth, extent, now + u64::from(reply.lease_ms))).collect();
            truth.readers.retain(|_, objects| objects.iter().any(|object| object.until > now));
            truth.writers.retain(|_, writer| writer.until > now);
            truth.readers.insert(reply.lease, promises);
        }
        self.leases.insert(reply.lease, Lease { client, until: self.now + lease_ms, objects });
        Ok(())
    }

    /// Copies were handed out.
    fn worked(
        &mut self,
        truth: &mut Truth,
        real_now: Option<u64>,
        client: u64,
        reply: &pb::WorkReply,
    ) -> Result<(), Violation> {
        let until = self.now + u64::from(self.settings.reservation_ttl_ms);
        let mut sources = BTreeSet::new();
        for task in &reply.tasks {
            let key = key_numbers(Some(&pb::Keys { data: task.key.clone(), lengths: Vec::new() }))[0];
            let bytes = extent_bytes(task.payload_bytes);
            let state = State::Reserved { until };
            let new = Extent { key, segment: task.segment, offset: task.offset, bytes, client, state };
            generations::check(self, truth, task.generation)?;
            incarnation::check(self, task.segment)?;
            rest::check_listed(self.listing.contains(&task.segment), &new)?;
            if self.evicting.is_empty() {
                overlap::check_free(self, &new)?;
            }
            overlap::check(self, &new)?;
            self.evict_under(truth, &new);
            if task.record != 0 {
                truth.recorded.insert(task.generation);
            }
            if let Some(now) = real_now {
                let promise = self.promise(truth, &new, now + u64::from(reply.lease_ms));
                rest::check(truth, now, &promise)?;
                truth.writers.insert(task.generation, promise);
            }
            truth.key_of.insert(task.generation, key);
            self.extents.insert(task.generation, new);
            for (at, generation) in task.source_generations.iter().enumerate() {
                leases::check_found(self, key, *generation, task.source_segments[at], task.source_offsets[at])?;
                sources.insert((task.source_segments[at], *generation));
            }
        }
        if reply.lease != 0 {
            generations::check(self, truth, reply.lease)?;
            let until = self.now + u64::from(self.settings.lease_ms);
            self.leases.insert(reply.lease, Lease { client, until, objects: sources });
        }
        Ok(())
    }

    /// What the new extent lies on was evicted for it.
    fn evict_under(&mut self, truth: &mut Truth, new: &Extent) {
        let met = self.extents.iter().filter(|(_, other)| other.meets(new));
        let evicted: Vec<u64> = met.map(|(generation, _)| *generation).collect();
        for generation in &evicted {
            self.extents.remove(generation);
            truth.kept.remove(generation);
        }
        self.evicted += evicted.len() as u64;
    }

    fn drained(&mut self, asked: pb::Drain) {
        self.lowered = true;
        match asked.mode() {
            pb::drain::Mode::Look => return,
            pb::drain::Mode::Cancel => self.draining.remove(&asked.node),
            _ => self.draining.insert(asked.node),
        };
        if asked.mode() == pb::drain::Mode::Evict {
            self.evicting.insert(asked.node);
        } else {
            self.evicting.remove(&asked.node);
        }
    }
}
