//! A client: reserves, writes and seals; locates, reads and lets go. As `memcache-client` does, one batch at a time.

mod copy;
mod forget;

use std::collections::BTreeMap;

use memcache_proto::pb::{self, LocateOutcome, ReserveOutcome, SealOutcome, reply, request};
use memcache_types::extent_bytes;

pub use self::copy::Damage;
use self::copy::{Reading, Ticket, Writing};
use self::forget::Forgetting;
use crate::invariants::Violation;
use crate::ledger::Ledger;
use crate::memory::{LINE_BYTES, Memories, Place, payload_of};
use crate::net::{Actor, Event, Net};
use crate::truth::Truth;

/// Longest wait for an answer.
const ANSWER_MS: u64 = 60;

/// One piece of memory that an object has or gets.
#[derive(Clone, Copy, Debug)]
struct Piece {
    key: u64,
    segment: u64,
    first: u64,
    lines: u64,
    generation: u64,
    /// Whoever reads it compares checksums.
    rests: bool,
}

#[derive(Debug)]
enum Op {
    Idle,
    Reserve {
        keys: Vec<u64>,
        lines: Vec<u64>,
        sent: u64,
    },
    Locate {
        keys: Vec<u64>,
        sent: u64,
    },
    Describe(Copy),
    Write(Writing),
    Read(Reading),
    Seal {
        keys: usize,
    },
    Remove,
    Forget(Forgetting),
    AskTold(Forgetting),
    /// Anything whose answer is not acted on.
    Other,
}

/// What a client is about to do when it knows where the memory is.
#[derive(Debug)]
enum Copy {
    Write(Writing),
    Read(Reading),
    Forget(Forgetting),
}

/// What a client can reach.
#[derive(Debug)]
pub struct Reach<'a> {
    /// The book, by messages.
    pub net: &'a mut Net,
    /// Lent memory, by address.
    pub memories: &'a mut Memories,
    /// Nothing: this is for the checks.
    pub truth: &'a mut Truth,
}

/// One who puts and gets.
#[derive(Debug)]
pub struct Client {
    index: usize,
    life: u64,
    wake: u64,
    op: Op,
    waits_for: Option<u64>,
    epoch: u64,
    directory: BTreeMap<u64, Place>,
    /// After the calm: a key of its own to put and get, and how far it has come.
    probe: Probe,
}

/// How far a client has come with the key it puts and gets when all is calm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Not asked to.
    Off,
    /// It is to put.
    Put,
    /// It has put and is to get.
    Get,
    /// It has got what it put.
    Done,
}

/// A key as it travels.
pub fn key_bytes(key: u64) -> [u8; 8] {
    key.to_le_bytes()
}

/// Keys as they travel.
pub fn keys_to_wire(keys: &[u64]) -> Option<pb::Keys> {
    Some(pb::Keys { data: keys.iter().flat_map(|key| key_bytes(*key)).collect(), lengths: vec![8; keys.len()] })
}

impl Client {
    /// One that has done nothing yet.
    pub const fn new(index: usize) -> Self {
        Self {
            index,
            life: 0,
            wake: 0,
            op: Op::Idle,
            waits_for: None,
            epoch: 0,
            directory: BTreeMap::new(),
            probe: Probe::Off,
        }
    }

    /// Its name for the book, in its present life.
    fn id(&self) -> u64 {
        self.index as u64 + 1 + 100 * self.life
    }

    /// The key it puts and gets when all is calm.
    pub const fn probe_key(&self) -> u64 {
        1000 + self.index as u64
    }

    /// How far it has come with it.
    pub const fn probe(&self) -> Probe {
        self.probe
    }

    /// Begins a new life; what it was doing stays undone.
    pub fn start(&mut self, net: &mut Net) {
        *self = Self { life: self.life + 1, wake: self.wake, ..Self::new(self.index) };
        self.rest(net, 5);
    }

    /// All is calm: put a key and get it.
    pub fn start_probe(&mut self, net: &mut Net) {
        self.probe = Probe::Put;
        self.rest(net, 1);
    }

    fn rest(&mut self, net: &mut Net, ms: u64) {
        self.op = Op::Idle;
        self.waits_for = None;
        self.wake_after(net, ms);
    }

    fn wake_after(&mut self, net: &mut Net, ms: u64) {
        self.wake += 1;
        net.after(ms, Event::Wake(Actor::Client(self.index), self.wake));
    }

    fn ask(&mut self, net: &mut Net, body: request::Body, op: Op) {
        self.op = op;
        self.waits_for = Some(net.ask(Actor::Client(self.index), self.id(), body));
        self.wake_after(net, ANSWER_MS);
    }

    fn tell(&self, net: &mut Net, body: request::Body) {
        net.ask(Actor::Client(self.index), self.id(), body);
    }

    /// A pause is over, a wait for an answer, or a step of a copy is due.
    pub fn on_wake(&mut self, reach: &mut Reach<'_>, ledger: &Ledger, wake: u64) -> Result<(), Violation> {
        if wake != self.wake {
            return Ok(());
        }
        match std::mem::replace(&mut self.op, Op::Idle) {
            Op::Idle => self.begin(reach.net),
            Op::Write(writing) => self.write(reach, writing),
            Op::Read(reading) => return self.read(reach, reading),
            Op::Forget(forgetting) => return self.forget(reach, ledger, forgetting),
            Op::Describe(Copy::Write(writing)) => {
                // Nothing was written: the space may go to anybody.
                let reservations = writing.reservations();
                self.tell(reach.net, request::Body::Abort(pb::Abort { reservations }));
                self.rest(reach.net, 5);
            }
            Op::Reserve { .. }
            | Op::Locate { .. }
            | Op::Describe(Copy::Read(_) | Copy::Forget(_))
            | Op::Seal { .. }
            | Op::Remove
            | Op::AskTold(_)
            | Op::Other => self.rest(reach.net, 5),
        }
        Ok(())
    }

    fn begin(&mut self, net: &mut Net) {
        let (key, now) = (self.probe_key(), net.now);
        match self.probe {
            Probe::Put => return self.reserve(net, vec![key], vec![1]),
            Probe::Get => {
                let body = request::Body::Locate(pb::Locate { keys: keys_to_wire(&[key]), near: 0 });
                return self.ask(net, body, Op::Locate { keys: vec![key], sent: now });
            }
            Probe::Done => return,
            Probe::Off if net.calm => return,
            Probe::Off => {}
        }
        let count = net.rng.between(1, 3);
        let all = net.scenario.keys;
        let keys: Vec<u64> = (0..count).map(|_| net.rng.below(all)).collect();
        if net.scenario.clears && net.rng.chance(2) {
            return self.ask(net, request::Body::RemoveAll(pb::RemoveAll {}), Op::Remove);
        }
        match net.rng.below(100) {
            0..45 => {
                let lines = keys.iter().map(|_| net.rng.between(1, 6)).collect();
                self.reserve(net, keys, lines);
            }
            45..85 => {
                let near = if net.scenario.extends() { net.rng.between(1, net.scenario.nodes) } else { 0 };
                let body = request::Body::Locate(pb::Locate { keys: keys_to_wire(&keys), near });
                self.ask(net, body, Op::Locate { keys, sent: now });
            }
            85..90 => {
                let body = request::Body::MatchPrefix(pb::MatchPrefix { keys: keys_to_wire(&keys) });
                self.ask(net, body, Op::Other);
            }
            90..97 => {
                self.ask(net, request::Body::Remove(pb::Remove { keys: keys_to_wire(&keys) }), Op::Remove);
            }
            _ => self.start(net),
        }
    }

    fn reserve(&mut self, net: &mut Net, keys: Vec<u64>, lines: Vec<u64>) {
        let near = net.rng.below(net.scenario.nodes + 1);
        let exclusive = net.rng.chance(30);
        let payload_bytes = lines.iter().map(|lines| payload_of(*lines)).collect();
        let replicas = if net.rng.chance(40) { u32::try_from(net.rng.between(2, 3)).unwrap_or(2) } else { 1 };
        let preferred = if net.rng.chance(20) { vec![net.rng.between(1, net.scenario.nodes)] } else { Vec::new() };
        let keys_wire = keys_to_wire(&keys);
        let body = pb::Reserve { keys: keys_wire, payload_bytes, near, exclusive, replicas, preferred };
        let sent = net.now;
        self.ask(net, request::Body::Reserve(body), Op::Reserve { keys, lines, sent });
    }

    /// An answer arrives.
    pub fn on_reply(&mut self, reach: &mut Reach<'_>, answer: pb::Reply) {
        if self.waits_for != Some(answer.request_id) {
            return;
        }
        self.waits_for = None;
        if std::mem::replace(&mut self.epoch, answer.epoch) != answer.epoch {
            self.directory.clear();
        }
        match (std::mem::replace(&mut self.op, Op::Idle), answer.body) {
            (Op::Reserve { keys, lines, sent }, Some(reply::Body::Reserve(granted))) => {
                let unsummed = reach.net.scenario.unsummed;
                let summed = unsummed == 0 || !reach.net.rng.chance(unsummed);
                let writing = tickets(&keys, &lines, sent, summed, &granted);
                self.describe(reach, Copy::Write(writing));
            }
            (Op::Locate { keys, sent }, Some(reply::Body::Locate(located))) => {
                if self.probe == Probe::Get && is(located.outcomes[0], LocateOutcome::LocateAbsent.into()) {
                    // Evicted for the keys of others: it is put again.
                    self.probe = Probe::Put;
                }
                let choice = reach.net.rng.draw();
                let reading = Reading::new(&keys, sent, &located, choice);
                self.describe(reach, Copy::Read(reading));
            }
            (Op::Describe(copy), Some(reply::Body::Describe(described))) => {
                for info in described.segments {
                    if let Some(place) = place_of(&info.descriptor) {
                        self.directory.insert(info.segment, place);
                    }
                }
                self.copy(reach, copy);
            }
            (Op::Remove, Some(reply::Body::Remove(removed))) => {
                let forgetting = Forgetting::new(answer.request_id, answer.epoch, &removed, reach.net.now);
                self.describe(reach, Copy::Forget(forgetting));
            }
            (Op::AskTold(mut forgetting), Some(reply::Body::Describe(described))) => {
                if forgetting.told(answer.epoch, &described) {
                    self.forget_soon(reach, forgetting);
                } else {
                    self.pause(reach.net); // the book restarted meanwhile: this may not last
                }
            }
            (Op::Remove, Some(reply::Body::RemoveAll(removed))) => {
                let forgetting = Forgetting::of_all(answer.request_id, answer.epoch, &removed, reach.net.now);
                self.describe(reach, Copy::Forget(forgetting));
            }
            (Op::Seal { keys }, Some(reply::Body::Seal(sealed))) => {
                let stored = sealed.outcomes.iter().filter(|outcome| is(**outcome, SealOutcome::Sealed.into())).count();
                if self.probe == Probe::Put && stored > 0 && keys > 0 {
                    self.probe = Probe::Get;
                }
                self.pause(reach.net);
            }
            _ => self.pause(reach.net),
        }
    }

    fn pause(&mut self, net: &mut Net) {
        let ms = net.rng.between(1, 20);
        self.rest(net, ms);
    }

    /// Asks where the memory is that it does not know yet.
    fn describe(&mut self, reach: &mut Reach<'_>, copy: Copy) {
        let of = |pieces: Vec<Piece>| pieces.iter().map(|piece| piece.segment).collect::<Vec<_>>();
        let mut unknown: Vec<u64> = match &copy {
            Copy::Write(writing) => of(writing.pieces()),
            Copy::Read(reading) => of(reading.pieces()),
            Copy::Forget(forgetting) => forgetting.segments(),
        };
        unknown.retain(|segment| !self.directory.contains_key(segment));
        if unknown.is_empty() {
            return self.copy(reach, copy);
        }
        let body = request::Body::Describe(pb::Describe { segments: unknown });
        self.ask(reach.net, body, Op::Describe(copy));
    }

    fn copy(&mut self, reach: &mut Reach<'_>, copy: Copy) {
        let net = &mut *reach.net;
        self.op = match copy {
            Copy::Write(writing) => Op::Write(writing),
            Copy::Read(reading) => Op::Read(reading),
            Copy::Forget(forgetting) => return self.forget_soon(reach, forgetting),
        };
        let late = copy::step_ms(net, u64::from(net.scenario.settings.reservation_ttl_ms));
        self.wake_after(net, late);
    }
}

fn is(outcome: u8, wanted: i32) -> bool {
    i32::from(outcome) == wanted
}

fn place_of(descriptor: &[u8]) -> Option<Place> {
    let (node, incarnation) = descriptor.split_at_checked(8)?;
    Some((u64::from_le_bytes(node.try_into().ok()?), u64::from_le_bytes(incarnation.try_into().ok()?)))
}

fn tickets(keys: &[u64], lines: &[u64], sent: u64, summed: bool, reply: &pb::ReserveReply) -> Writing {
    let granted =
        reply.outcomes.iter().enumerate().filter(|(_, outcome)| is(**outcome, ReserveOutcome::Reserved.into()));
    let each = granted.zip(0..).flat_map(|((index, _), at)| {
        let at: usize = at;
        std::iter::repeat_n(index, reply.replicas.get(at).map_or(1, |count| usize::from(*count)))
    });
    let mut origin = BTreeMap::new();
    let tickets = each.zip(0..).map(|(index, at)| {
        let at: usize = at;
        let generation = reply.generations[at];
        let origin = *origin.entry(index).or_insert(generation);
        let clears = reply.clear_tickets.iter().zip(&reply.clears).filter(|(of, _)| **of as usize == at);
        let clears = clears.map(|(_, offset)| *offset).collect();
        let record = reply.records.get(at).copied().unwrap_or(0);
        let piece = Piece {
            key: keys[index],
            segment: reply.segments[at],
            first: reply.offsets[at] / LINE_BYTES,
            lines: lines[index],
            generation,
            rests: false,
        };
        let wanted = reply.replicas.get(at).map_or(1, |count| u32::from(*count));
        Ticket { reservation: reply.reservations[at], piece, record, clears, origin, wanted, summed }
    });
    Writing::new(tickets.collect(), sent + u64::from(reply.ttl_ms) / 2)
}

impl Reading {
    /// Reads one of the replicas of each key.
    fn new(keys: &[u64], sent: u64, reply: &pb::LocateReply, choice: u64) -> Self {
        let found =
            reply.outcomes.iter().enumerate().filter(|(_, outcome)| is(**outcome, LocateOutcome::Located.into()));
        let pieces = found.zip(0..).map(|((index, _), at)| {
            let at: usize = at;
            let mut places = vec![(reply.segments[at], reply.offsets[at], reply.generations[at])];
            let others = (0..reply.other_of.len()).filter(|other| reply.other_of[*other] as usize == at);
            places.extend(others.map(|other| {
                (reply.other_segments[other], reply.other_offsets[other], reply.other_generations[other])
            }));
            let chosen = usize::try_from(choice % places.len() as u64).unwrap_or(0);
            let (segment, offset, generation) = places[chosen];
            Piece {
                key: keys[index],
                segment,
                first: offset / LINE_BYTES,
                lines: extent_bytes(reply.payload_bytes[at]) / LINE_BYTES,
                generation,
                rests: reply.resting.contains(&segment),
            }
        });
        Self::of(pieces.collect(), reply.lease, sent + u64::from(reply.lease_ms))
    }
}
