//! Time, messages and what goes wrong with them.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use memcache_proto::pb;

use crate::rng::Rng;
use crate::scenario::Scenario;

/// Who takes part, the book aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Actor {
    /// Lends memory.
    Node(usize),
    /// Puts and gets.
    Client(usize),
}

/// What happens next.
#[derive(Clone, Debug)]
pub enum Event {
    /// An actor asked to be woken; the number says for what.
    Wake(Actor, u64),
    /// A request arrives, on a connection to this life of the book.
    Request(Actor, u64, pb::Request),
    /// A reply arrives.
    Reply(Actor, pb::Reply),
    /// The book does what is to be done now and then.
    Tick,
    /// Something breaks.
    Fault,
    /// The book is back.
    BookUp,
    /// A node is back.
    NodeUp(usize),
    /// Nothing breaks any more.
    Calm,
    /// The last message that was sent before has arrived.
    Healed,
    /// All that ran on is over.
    Settled,
    /// The last look.
    End,
}

/// What happened, as a sum and, on demand, in words.
#[derive(Debug)]
pub struct Trace {
    digest: u64,
    lines: Option<Vec<String>>,
}

impl Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // FNV-1a.
        for byte in text.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

impl Trace {
    /// Nothing has happened yet. `keep`: remember the words.
    pub fn new(keep: bool) -> Self {
        Self { digest: 0xcbf2_9ce4_8422_2325, lines: keep.then(Vec::new) }
    }

    /// Sum over everything that happened.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The words, if they were kept.
    pub fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}

/// Longest time that a message which comes late adds to its way.
const LATE_MS: u64 = 300;

/// Longest time that a slow actor adds to it.
const SLOW_MS: u64 = 100;

/// After so long every message has arrived or is lost.
pub const WAY_MS: u64 = 3 + LATE_MS + SLOW_MS;

/// Time, messages and what goes wrong with them.
#[derive(Debug)]
pub struct Net {
    /// Milliseconds since the start.
    pub now: u64,
    /// What the seed stands for.
    pub scenario: Scenario,
    /// The row of numbers of the seed.
    pub rng: Rng,
    /// Nothing goes wrong any more.
    pub calm: bool,
    /// Which life of the book connections lead to.
    pub book_life: u64,
    /// What happened.
    pub trace: Trace,
    /// Who cannot be reached, until when.
    pub cut_off: BTreeMap<Actor, u64>,
    /// Whose messages are slow, until when.
    pub slow: BTreeMap<Actor, u64>,
    queue: BTreeMap<(u64, u64), Event>,
    serial: u64,
    requests: u64,
}

impl Net {
    /// A world in which nothing has happened yet.
    pub fn new(scenario: Scenario, rng: Rng, keep_trace: bool) -> Self {
        Self {
            now: 0,
            scenario,
            rng,
            calm: false,
            book_life: 0,
            trace: Trace::new(keep_trace),
            cut_off: BTreeMap::new(),
            slow: BTreeMap::new(),
            queue: BTreeMap::new(),
            serial: 0,
            requests: 0,
        }
    }

    /// The next thing that happens; time moves on to it.
    pub fn pop(&mut self) -> Option<Event> {
        let ((at, _), event) = self.queue.pop_first()?;
        self.now = at;
        self.note(format_args!("{event:?}"));
        Some(event)
    }

    /// Writes down what happened.
    pub fn note(&mut self, what: fmt::Arguments<'_>) {
        let now = self.now;
        // Writing to a sum cannot fail.
        let _ = write!(self.trace, "{now} {what}");
        if let Some(lines) = &mut self.trace.lines {
            lines.push(format!("{now:6} {what}"));
        }
    }

    /// Lets an event happen after some milliseconds.
    pub fn after(&mut self, ms: u64, event: Event) {
        self.serial += 1;
        self.queue.insert((self.now + ms, self.serial), event);
    }

    /// Sends a request to the book; its id.
    pub fn ask(&mut self, from: Actor, client: u64, body: pb::request::Body) -> u64 {
        self.requests += 1;
        let request = pb::Request { request_id: self.requests, client, body: Some(body) };
        let life = self.book_life;
        self.travel(from, &Event::Request(from, life, request));
        self.requests
    }

    /// Sends a reply to an actor.
    pub fn reply(&mut self, to: Actor, reply: pb::Reply) {
        self.travel(to, &Event::Reply(to, reply));
    }

    fn travel(&mut self, actor: Actor, message: &Event) {
        if self.calm {
            let ms = self.rng.between(1, 3);
            return self.after(ms, message.clone());
        }
        let (drop, duplicate, delay) = (self.scenario.drop, self.scenario.duplicate, self.scenario.delay);
        let until = |map: &BTreeMap<Actor, u64>| map.get(&actor).copied().unwrap_or(0);
        let lost = until(&self.cut_off) > self.now;
        let slow = until(&self.slow) > self.now;
        let copies = 1 + u64::from(self.rng.chance(duplicate));
        for _ in 0..copies {
            let mut ms = self.rng.between(1, 3);
            if self.rng.chance(delay) {
                ms += self.rng.between(1, LATE_MS);
            }
            if slow {
                ms += self.rng.between(20, SLOW_MS);
            }
            if !lost && !self.rng.chance(drop) {
                self.after(ms, message.clone());
            }
        }
    }
}
