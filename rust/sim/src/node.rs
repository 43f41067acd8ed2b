//! A node: joins, sends heartbeats, joins again when the book has forgotten it.

mod listing;

use std::collections::BTreeMap;

use memcache_proto::pb::{self, reply, request};
use memcache_types::extent_bytes;

use self::listing::{Listing, Next};
use crate::client::{Damage, Reach};
use crate::clock::WallClock;
use crate::invariants::bytes::is_whole;
use crate::ledger::Segment;
use crate::memory::{LINE_BYTES, LINES, Line, Memories, Place, Record, Tail, record_at, table_place};
use crate::net::{Actor, Event, Net};
use crate::scenario::Sabotage;

/// Longest wait for an answer.
const ANSWER_MS: u64 = 60;

/// How long a node that was emptied stays away.
const REST_MS: u64 = 100;

/// Pause between attempts.
const PAUSE_MS: u64 = 10;

/// One who lends memory.
#[derive(Debug)]
pub struct Node {
    index: usize,
    /// Which life of it, counted.
    life: u64,
    /// The same for the book.
    pub incarnation: u64,
    /// Whether its process runs.
    pub up: bool,
    joined: Option<u64>,
    /// What the book called its segments when it joined.
    segments: Vec<u64>,
    /// Life of the book that its memory was last lent under, as far as it knows; 0 if it never asked to lend it.
    previous: u64,
    waits_for: Option<u64>,
    /// A request for copies to make, and when it was sent.
    asked_for_work: Option<(u64, u64)>,
    /// A seal of copies, and the lease on their sources.
    sealing: Option<(u64, u64)>,
    /// Copies whose seal was sent, as they lie in this memory.
    copies: BTreeMap<u64, (u64, Option<usize>)>,
    listing: Option<Listing>,
    wake: u64,
}

impl Node {
    const EMPTY: Self = Self {
        index: 0,
        life: 0,
        incarnation: 0,
        up: false,
        joined: None,
        segments: Vec::new(),
        previous: 0,
        waits_for: None,
        asked_for_work: None,
        sealing: None,
        copies: BTreeMap::new(),
        listing: None,
        wake: 0,
    };

    /// One that never ran.
    pub const fn new(index: usize) -> Self {
        let mut node = Self::EMPTY;
        node.index = index;
        node
    }

    /// Its name for the book.
    pub fn id(&self) -> u64 {
        self.index as u64 + 1
    }

    /// The memory of its present life, or of all of them.
    pub fn place(&self, net: &Net) -> Place {
        (self.id(), if net.scenario.files { 0 } else { self.incarnation })
    }

    /// A new life. As `memcache-client` does, its number is greater than that which stands in a file that it lends; other
    /// memory is that of a new node there.
    pub fn start(&mut self, net: &mut Net, memories: &mut Memories, clock: &mut WallClock) {
        let (life, latest) = (self.life + 1, self.incarnation);
        *self = Self { life, incarnation: latest + 1, up: true, wake: self.wake, ..Self::new(self.index) };
        if net.scenario.files {
            let latest = memories.memory(self.place(net)).map_or(0, |memory| memory.incarnation);
            let by_clock = net.scenario.sabotage == Sabotage::LivesByClock;
            self.incarnation = clock.draw_incarnation(net.now, latest, by_clock);
        }
        let place = self.place(net);
        memories.create(place, net.scenario.records);
        if let Some(memory) = memories.memory(place) {
            self.previous = memory.epoch;
            memory.incarnation = self.incarnation;
        }
        self.sleep(net, 0);
    }

    /// The process ends. Who leaves says so.
    pub fn stop(&mut self, net: &mut Net, leaves: bool) {
        self.up = false;
        self.waits_for = None;
        if leaves {
            let leave = pb::Leave { node: self.id(), incarnation: self.incarnation };
            net.ask(Actor::Node(self.index), 0, request::Body::Leave(leave));
        }
    }

    fn sleep(&mut self, net: &mut Net, ms: u64) {
        self.wake += 1;
        net.after(ms, Event::Wake(Actor::Node(self.index), self.wake));
    }

    /// A pause is over, or a wait for an answer.
    pub fn on_wake(&mut self, net: &mut Net, memories: &mut Memories, wake: u64) {
        if !self.up || wake != self.wake {
            return;
        }
        if self.waits_for.take().is_some() {
            return self.sleep(net, PAUSE_MS);
        }
        let body = if self.joined.is_some() {
            let segments = self.segments.clone();
            request::Body::Heartbeat(pb::Heartbeat { node: self.id(), incarnation: self.incarnation, segments })
        } else {
            let previous_epoch = self.previous;
            // Whatever becomes of this request: from now on the memory may have been lent.
            self.previous = self.previous.max(1);
            self.note_epoch(net, memories, self.previous);
            request::Body::Join(self.join(net, memories, previous_epoch))
        };
        self.waits_for = Some(net.ask(Actor::Node(self.index), 0, body));
        self.sleep(net, ANSWER_MS);
    }

    /// Under which life of the book the memory is lent stands in the memory.
    fn note_epoch(&self, net: &Net, memories: &mut Memories, epoch: u64) {
        if let Some(memory) = memories.memory(self.place(net)) {
            memory.epoch = epoch;
        }
    }

    fn join(&self, net: &Net, memories: &mut Memories, previous_epoch: u64) -> pb::Join {
        let place = self.place(net);
        let floor = memories.memory(place).map_or(0, |memory| memory.floor());
        let descriptor = [place.0.to_le_bytes(), place.1.to_le_bytes()].concat();
        let table = table_place(net.scenario.records);
        let segment = pb::JoinSegment {
            bytes: LINES * LINE_BYTES,
            tier: 2,
            descriptor,
            table_offset: table.table_offset,
            records: table.records,
            floors_offset: table.floors_offset,
        };
        pb::Join {
            node: self.id(),
            incarnation: self.incarnation,
            segments: vec![segment],
            previous_epoch,
            lists: previous_epoch != 0 && net.scenario.records > 0,
            floor,
            ..pb::Join::default()
        }
    }

    fn raise_floor(&self, net: &Net, memories: &mut Memories, floor: u64) {
        if let Some(memory) = memories.memory(self.place(net)).filter(|_| net.scenario.records > 0) {
            memory.raise_floor(floor);
        }
    }

    /// Who makes its copies, for the book.
    fn copier(&self) -> u64 {
        10_000 * (self.index as u64 + 1) + self.life
    }

    /// An answer arrives. `segments`: where memory is.
    pub fn on_reply(&mut self, reach: &mut Reach<'_>, segments: &BTreeMap<u64, Segment>, answer: &pb::Reply) {
        if !self.up {
            return;
        }
        match &answer.body {
            Some(reply::Body::Work(work)) => {
                if let Some((id, sent)) = self.asked_for_work.take_if(|(id, _)| *id == answer.request_id) {
                    debug_assert_eq!(id, answer.request_id);
                    self.copy(reach, segments, work, sent + u64::from(work.lease_ms));
                }
                return;
            }
            Some(reply::Body::Seal(sealed)) => {
                if let Some((_, lease)) = self.sealing.take_if(|(id, _)| *id == answer.request_id) {
                    reach.truth.copied += sealed.outcomes.iter().map(|outcome| u64::from(*outcome == 1)).sum::<u64>();
                    self.take_back(reach, &sealed.outcomes);
                    let release = request::Body::Release(pb::Release { leases: vec![lease] });
                    reach.net.ask(Actor::Node(self.index), self.copier(), release);
                }
                return;
            }
            _ => {}
        }
        self.on_membership(reach, answer);
    }

    /// Copies that did not become replicas are void: their keys may have been removed meanwhile.
    fn take_back(&mut self, reach: &mut Reach<'_>, outcomes: &[u8]) {
        let place = self.place(reach.net);
        for ((generation, record), outcome) in std::mem::take(&mut self.copies).into_values().zip(outcomes) {
            let Some(memory) = reach.memories.memory(place).filter(|_| *outcome != 1) else { continue };
            if let Some(slot) = record.and_then(|at| memory.records.get_mut(at))
                && slot.is_some_and(|one| one.generation == generation)
            {
                *slot = None;
                // Where its seal arrived twice and the second answer was the faster, the copy is a replica all the
                // same, until its node has to tell of it.
                reach.truth.kept.remove(&generation);
            }
        }
    }

    /// Makes the copies that were handed out, all at once.
    fn copy(&mut self, reach: &mut Reach<'_>, segments: &BTreeMap<u64, Segment>, work: &pb::WorkReply, until: u64) {
        self.copies.clear();
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        let mut damage = Damage::default();
        for task in &work.tasks {
            let in_time = reach.net.now < until;
            let mut sources = 0..task.source_segments.len();
            let copied = in_time && sources.any(|at| self.copy_one(reach, segments, task, at, &mut damage));
            if copied {
                done.push(task.reservation);
            } else {
                failed.push(task.reservation);
            }
            if copied {
                self.copies.insert(task.reservation, (task.generation, record_at(task.record)));
            }
        }
        if let Some(damaged) = damage.into_request() {
            reach.net.ask(Actor::Node(self.index), self.copier(), damaged);
        }
        if !failed.is_empty() {
            let abort = request::Body::Abort(pb::Abort { reservations: failed });
            reach.net.ask(Actor::Node(self.index), self.copier(), abort);
        }
        if done.is_empty() && work.lease != 0 {
            let release = request::Body::Release(pb::Release { leases: vec![work.lease] });
            reach.net.ask(Actor::Node(self.index), self.copier(), release);
        }
        if !done.is_empty() {
            let seal = request::Body::Seal(pb::Seal { reservations: done });
            self.sealing = Some((reach.net.ask(Actor::Node(self.index), self.copier(), seal), work.lease));
        }
    }

    /// Copies one object from one of its sources; whether it was there, whole.
    fn copy_one(
        &self,
        reach: &mut Reach<'_>,
        segments: &BTreeMap<u64, Segment>,
        task: &pb::CopyTask,
        at: usize,
        damage: &mut Damage,
    ) -> bool {
        let Some(source) = segments.get(&task.source_segments[at]) else { return false };
        let key = task.key.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let (generation, lines) = (task.source_generations[at], extent_bytes(task.payload_bytes) / LINE_BYTES);
        let first = task.source_offsets[at] / LINE_BYTES;
        let place = reach.truth.memory_of(source.place);
        let seen: Option<Vec<Line>> =
            (first..first + lines).map(|line| reach.memories.line(place, line).copied()).collect();
        let Some(seen) = seen else { return false };
        let summed = match seen.last().map(|line| line.tail) {
            Some(Tail::Trailer { generation: found, key: of, summed }) if (found, of) == (generation, key) => {
                Some(summed)
            }
            _ => None,
        };
        let Some(summed) = summed.filter(|summed| !summed || is_whole(generation, &seen)) else {
            damage.note(reach, key, task.source_segments[at], generation);
            return false;
        };
        let own_place = self.place(reach.net);
        for offset in &task.clears {
            if let Some(slot) = reach.memories.record(own_place, *offset) {
                *slot = None;
            }
        }
        let own = task.offset / LINE_BYTES;
        for line in own..own + lines {
            // Bytes that are not those of the source are not those of the copy either.
            let sound = seen[usize::try_from(line - own).unwrap_or(0)].body == generation;
            let Some(found) = reach.memories.line(own_place, line) else { return false };
            found.body = if sound { task.generation } else { 0 };
            found.tail = if line + 1 < own + lines {
                Tail::Payload(task.generation)
            } else {
                Tail::Trailer { generation: task.generation, key, summed }
            };
        }
        if let Some(slot) = reach.memories.record(own_place, task.record) {
            let (generation, origin, wanted) = (task.generation, task.origin, task.wanted);
            *slot = Some(Record { key, generation, origin, wanted, first: own, lines });
        }
        let origin = reach.truth.origin(generation);
        reach.truth.origin_of.insert(task.generation, origin);
        true
    }

    /// Says what is to be said of what the memory holds; otherwise the next heartbeat is due after `pause`.
    fn go_on(&mut self, net: &mut Net, memories: &mut Memories, pause: u64) {
        let (node, incarnation, place) = (self.id(), self.incarnation, self.place(net));
        let (Some(listing), Some(memory)) = (&mut self.listing, memories.memory(place)) else {
            return self.sleep(net, pause);
        };
        match listing.next(memory, net.now, node, incarnation) {
            Next::Ask(body) => {
                self.waits_for = Some(net.ask(Actor::Node(self.index), 0, *body));
                self.sleep(net, ANSWER_MS);
            }
            Next::Pause(ms) => self.sleep(net, ms.min(pause)),
            Next::Nothing => {
                self.listing = None;
                self.sleep(net, pause);
            }
        }
    }

    fn on_membership(&mut self, reach: &mut Reach<'_>, answer: &pb::Reply) {
        let (net, memories) = (&mut *reach.net, &mut *reach.memories);
        if self.waits_for != Some(answer.request_id) {
            return;
        }
        self.waits_for = None;
        let pause = match &answer.body {
            Some(reply::Body::Join(joined)) => {
                self.joined = Some(answer.epoch);
                self.segments.clone_from(&joined.segments);
                self.previous = answer.epoch;
                self.note_epoch(net, memories, answer.epoch);
                self.raise_floor(net, memories, joined.floor);
                let place = self.place(net);
                let (part, sabotage) = (net.scenario.part, net.scenario.sabotage);
                let lists = joined.lists.then(|| memories.memory(place)).flatten();
                let rest_until = net.now + joined.rest_ms;
                self.listing = lists.map(|memory| Listing::new(memory, joined.segments[0], rest_until, part, sabotage));
                return self.go_on(net, memories, u64::from(joined.heartbeat_ms));
            }
            Some(reply::Body::Holdings(reply)) => {
                let place = self.place(net);
                if let (Some(listing), Some(memory)) = (&mut self.listing, memories.memory(place)) {
                    listing.answered(memory, reach.truth, &reply.kept);
                }
                let pause = u64::from(net.scenario.settings.heartbeat_ms);
                return self.go_on(net, memories, pause);
            }
            Some(reply::Body::Heartbeat(beat)) if beat.joined && self.joined == Some(answer.epoch) => {
                self.raise_floor(net, memories, beat.floor);
                if beat.drain() == pb::DrainState::Drained {
                    // Nothing is left here: it goes, and comes back some time as anybody.
                    self.stop(net, true);
                    return net.after(REST_MS, Event::NodeUp(self.index));
                }
                let asked = self.asked_for_work.is_some_and(|(_, sent)| net.now < sent + ANSWER_MS);
                if beat.work && !asked {
                    let (node, incarnation) = (self.id(), self.incarnation);
                    let work = pb::Work { node, incarnation, tasks_max: 4, bytes_max: 1 << 20 };
                    let id = net.ask(Actor::Node(self.index), self.copier(), request::Body::Work(work));
                    self.asked_for_work = Some((id, net.now));
                }
                let pause = u64::from(net.scenario.settings.heartbeat_ms);
                return self.go_on(net, memories, pause);
            }
            Some(reply::Body::Heartbeat(_)) => {
                self.joined = None;
                0
            }
            Some(reply::Body::Failure(_)) if self.listing.is_some() => {
                // The segment has another name by now.
                (self.joined, self.listing) = (None, None);
                PAUSE_MS
            }
            _ => PAUSE_MS,
        };
        self.sleep(net, pause);
    }
}
