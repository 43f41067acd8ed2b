//! A node: joins, sends heartbeats, joins again when the book has forgotten it.

use memcache_proto::pb::{self, reply, request};

use crate::memory::{LINE_BYTES, LINES, Place};
use crate::net::{Actor, Event, Net};

/// Longest wait for an answer.
const ANSWER_MS: u64 = 60;

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
    wake: u64,
}

impl Node {
    /// One that never ran.
    pub const fn new(index: usize) -> Self {
        Self { index, incarnation: 0, up: false, joined: None, previous: 0, waits_for: None, wake: 0 }
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

    /// An answer arrives.
    pub fn on_reply(&mut self, net: &mut Net, answer: &pb::Reply) {
        if !self.up || self.waits_for != Some(answer.request_id) {
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
