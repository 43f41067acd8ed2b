//! A node: joins, sends heartbeats, joins again when the book has forgotten it.

use std::collections::BTreeMap;

use memcache_proto::pb::{self, reply, request};
use memcache_types::extent_bytes;

use crate::client::Reach;
use crate::invariants::bytes::is_whole;
use crate::ledger::Segment;
use crate::memory::{LINE_BYTES, LINES, Line, Place, Tail};
use crate::net::{Actor, Event, Net};

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
    /// Which life of it.
    pub incarnation: u64,
    /// Whether its process runs.
    pub up: bool,
    joined: Option<u64>,
    /// Life of the book that its memory was last lent under, as far as it knows; 0 if it never asked to lend it.
    previous: u64,
    waits_for: Option<u64>,
    /// A request for copies to make, and when it was sent.
    asked_for_work: Option<(u64, u64)>,
    /// A seal of copies, and the lease on their sources.
    sealing: Option<(u64, u64)>,
    wake: u64,
}

impl Node {
    const EMPTY: Self = Self {
        index: 0,
        incarnation: 0,
        up: false,
        joined: None,
        previous: 0,
        waits_for: None,
        asked_for_work: None,
        sealing: None,
        wake: 0,
    };

    /// One that never ran.
    pub const fn new(index: usize) -> Self {
        Self { index, incarnation: 0, up: false, joined: None, previous: 0, ..Self::EMPTY }
    }

    /// Its name for the book.
    pub fn id(&self) -> u64 {
        self.index as u64 + 1
    }

    /// The memory of its present life.
    pub fn place(&self) -> Place {
        (self.id(), self.incarnation)
    }

    /// A new life.
    pub fn start(&mut self, net: &mut Net) {
        *self = Self { incarnation: self.incarnation + 1, up: true, wake: self.wake, ..Self::new(self.index) };
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
    pub fn on_wake(&mut self, net: &mut Net, wake: u64) {
        if !self.up || wake != self.wake {
            return;
        }
        if self.waits_for.take().is_some() {
            return self.sleep(net, PAUSE_MS);
        }
        let body = if self.joined.is_some() {
            request::Body::Heartbeat(pb::Heartbeat { node: self.id(), incarnation: self.incarnation })
        } else {
            let previous_epoch = self.previous;
            // Whatever becomes of this request: from now on the memory may have been lent.
            self.previous = self.previous.max(1);
            request::Body::Join(self.join(previous_epoch))
        };
        self.waits_for = Some(net.ask(Actor::Node(self.index), 0, body));
        self.sleep(net, ANSWER_MS);
    }

    fn join(&self, previous_epoch: u64) -> pb::Join {
        let descriptor = [self.id().to_le_bytes(), self.incarnation.to_le_bytes()].concat();
        let segment = pb::JoinSegment { bytes: LINES * LINE_BYTES, tier: 2, descriptor, ..pb::JoinSegment::default() };
        pb::Join {
            node: self.id(),
            incarnation: self.incarnation,
            segments: vec![segment],
            previous_epoch,
            ..pb::Join::default()
        }
    }

    /// Who makes its copies, for the book.
    fn copier(&self) -> u64 {
        10_000 * (self.index as u64 + 1) + self.incarnation
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
                    let release = request::Body::Release(pb::Release { leases: vec![lease] });
                    reach.net.ask(Actor::Node(self.index), self.copier(), release);
                }
                return;
            }
            _ => {}
        }
        self.on_membership(reach.net, answer);
    }

    /// Makes the copies that were handed out, all at once.
    fn copy(&mut self, reach: &mut Reach<'_>, segments: &BTreeMap<u64, Segment>, work: &pb::WorkReply, until: u64) {
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for task in &work.tasks {
            let in_time = reach.net.now < until;
            let copied = in_time && (0..task.source_segments.len()).any(|at| self.copy_one(reach, segments, task, at));
            if copied { done.push(task.reservation) } else { failed.push(task.reservation) }
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
    ) -> bool {
        let Some(source) = segments.get(&task.source_segments[at]) else { return false };
        let key = task.key.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let (generation, lines) = (task.source_generations[at], extent_bytes(task.payload_bytes) / LINE_BYTES);
        let first = task.source_offsets[at] / LINE_BYTES;
        let seen: Option<Vec<Line>> =
            (first..first + lines).map(|line| reach.memories.line(source.place, line).copied()).collect();
        let Some(seen) = seen else { return false };
        let last = seen.last().map(|line| line.tail);
        if last != Some(Tail::Trailer { generation, key }) || !is_whole(generation, &seen) {
            return false;
        }
        let own = task.offset / LINE_BYTES;
        for line in own..own + lines {
            let Some(found) = reach.memories.line(self.place(), line) else { return false };
            found.body = task.generation;
            found.tail = if line + 1 < own + lines {
                Tail::Payload(task.generation)
            } else {
                Tail::Trailer { generation: task.generation, key }
            };
        }
        let origin = reach.truth.origin_of.get(&generation).copied().unwrap_or(generation);
        reach.truth.origin_of.insert(task.generation, origin);
        true
    }

    fn on_membership(&mut self, net: &mut Net, answer: &pb::Reply) {
        if self.waits_for != Some(answer.request_id) {
            return;
        }
        self.waits_for = None;
        let pause = match &answer.body {
            Some(reply::Body::Join(joined)) => {
                self.joined = Some(answer.epoch);
                self.previous = answer.epoch;
                u64::from(joined.heartbeat_ms)
            }
            Some(reply::Body::Heartbeat(beat)) if beat.joined && self.joined == Some(answer.epoch) => {
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
                u64::from(net.scenario.settings.heartbeat_ms)
            }
            Some(reply::Body::Heartbeat(_)) => {
                self.joined = None;
                0
            }
            _ => PAUSE_MS,
        };
        self.sleep(net, pause);
    }
}
