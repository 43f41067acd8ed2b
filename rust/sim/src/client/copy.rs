//! The copies: they take time, and every step may stall.

use memcache_proto::pb::{self, request};

use super::{Client, Op, Piece, Probe, Reach, keys_to_wire};
use crate::invariants::{Violation, bytes};
use crate::memory::{Line, Record, Tail};
use crate::net::Net;
use crate::scenario::Sabotage;

/// Where to write one object, and what else.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    pub(super) reservation: u64,
    pub(super) piece: Piece,
    /// Where its record goes; 0: nowhere.
    pub(super) record: u64,
    /// Records to be cleared before the first byte.
    pub(super) clears: Vec<u64>,
    pub(super) origin: u64,
    pub(super) wanted: u32,
    pub(super) summed: bool,
}

/// Tickets that are being filled, one after the other.
#[derive(Debug)]
pub(super) struct Writing {
    tickets: Vec<Ticket>,
    /// No write may start later.
    start_until: u64,
    at: usize,
    /// Next step: records to clear, then the old trailer, then the lines and the record, then the new trailer.
    step: u64,
    /// When the present write must be over.
    end_until: u64,
    sealable: Vec<u64>,
    given_up: Vec<u64>,
}

/// Objects that are being read, one after the other.
#[derive(Debug)]
pub(super) struct Reading {
    pieces: Vec<Piece>,
    lease: u64,
    /// What ends later counts as a miss.
    valid_until: u64,
    at: usize,
    seen: Vec<Line>,
    damage: Damage,
}

/// Replicas that were found damaged under a good lease.
#[derive(Debug, Default)]
pub struct Damage {
    keys: Vec<u64>,
    segments: Vec<u64>,
    generations: Vec<u64>,
}

impl Damage {
    /// One of them.
    pub fn note(&mut self, reach: &mut Reach<'_>, key: u64, segment: u64, generation: u64) {
        if reach.net.calm {
            reach.truth.damaged.insert((segment, generation));
        }
        if reach.net.scenario.sabotage == Sabotage::DamageUntold {
            return;
        }
        self.keys.push(key);
        self.segments.push(segment);
        self.generations.push(generation);
    }

    /// What the book is told, if there is anything to tell.
    pub fn into_request(self) -> Option<request::Body> {
        let Self { keys, segments, generations } = self;
        let told = pb::Damaged { keys: keys_to_wire(&keys), segments, generations };
        (!keys.is_empty()).then_some(request::Body::Damaged(told))
    }
}

impl Writing {
    pub(super) fn new(tickets: Vec<Ticket>, start_until: u64) -> Self {
        Self { tickets, start_until, at: 0, step: 0, end_until: 0, sealable: Vec::new(), given_up: Vec::new() }
    }

    pub(super) fn pieces(&self) -> Vec<Piece> {
        self.tickets.iter().map(|ticket| ticket.piece).collect()
    }

    pub(super) fn reservations(&self) -> Vec<u64> {
        self.tickets.iter().map(|ticket| ticket.reservation).collect()
    }

    fn next(&mut self, written: bool) {
        let list = if written { &mut self.sealable } else { &mut self.given_up };
        list.push(self.tickets[self.at].reservation);
        self.at += 1;
        self.step = 0;
    }
}

impl Reading {
    pub(super) fn of(pieces: Vec<Piece>, lease: u64, valid_until: u64) -> Self {
        Self { pieces, lease, valid_until, at: 0, seen: Vec::new(), damage: Damage::default() }
    }

    pub(super) fn pieces(&self) -> Vec<Piece> {
        self.pieces.clone()
    }
}

/// How long a step takes, at most `most` milliseconds.
pub(super) fn step_ms(net: &mut Net, most: u64) -> u64 {
    let ms = if !net.calm && net.rng.chance(net.scenario.stall) { net.rng.below(most + 1) } else { net.rng.below(2) };
    ms.min(most)
}

impl Client {
    /// One step of writing.
    pub(super) fn write(&mut self, reach: &mut Reach<'_>, mut writing: Writing) {
        let Some(ticket) = writing.tickets.get(writing.at).cloned() else {
            return self.end_writing(reach.net, writing);
        };
        let piece = ticket.piece;
        if writing.step == 0 {
            if reach.net.now > writing.start_until {
                writing.next(false);
                return self.go_on_writing(reach.net, writing, 0);
            }
            writing.end_until = reach.net.now + reach.net.scenario.write_ms_max;
        }
        let last = piece.first + piece.lines - 1;
        let (line, step) = ticket.step(writing.step);
        let place = self.directory.get(&piece.segment).copied();
        if let (Some(place), Step::Clear(offset) | Step::Record(offset)) = (place, step)
            && let Some(slot) = reach.memories.record(place, offset)
        {
            *slot = matches!(step, Step::Record(_)).then(|| ticket.record());
        }
        let Some(found) = place.and_then(|place| reach.memories.line(place, line)) else {
            writing.next(false); // the node is gone
            return self.go_on_writing(reach.net, writing, 0);
        };
        match step {
            Step::Retract => found.tail = Tail::Blank,
            Step::Payload => {
                found.body = piece.generation;
                if line != last {
                    found.tail = Tail::Payload(piece.generation);
                }
            }
            Step::Publish => {
                let (generation, key, summed) = (piece.generation, piece.key, ticket.summed);
                found.tail = Tail::Trailer { generation, key, summed };
            }
            Step::Clear(_) | Step::Record(_) => {}
        }
        reach.net.note(format_args!("client {} {step:?} line {line} as {:x}", self.index, piece.generation));
        writing.step += 1;
        if matches!(step, Step::Publish) {
            writing.next(true);
        }
        let left = if writing.step == 0 { 5 } else { writing.end_until.saturating_sub(reach.net.now) };
        let ms = step_ms(reach.net, left);
        self.go_on_writing(reach.net, writing, ms);
    }

    fn go_on_writing(&mut self, net: &mut Net, writing: Writing, ms: u64) {
        self.op = Op::Write(writing);
        self.wake_after(net, ms);
    }

    fn end_writing(&mut self, net: &mut Net, mut writing: Writing) {
        if !net.calm && net.rng.chance(8) {
            return self.start(net); // dies before it seals
        }
        if !net.calm && net.rng.chance(8) {
            writing.given_up.append(&mut writing.sealable);
        }
        if !writing.given_up.is_empty() {
            self.tell(net, request::Body::Abort(pb::Abort { reservations: writing.given_up }));
        }
        if writing.sealable.is_empty() {
            return self.pause(net);
        }
        let keys = writing.sealable.len();
        self.ask(net, request::Body::Seal(pb::Seal { reservations: writing.sealable }), Op::Seal { keys });
    }

    /// One step of reading: lines first to last, then what stands in the trailer.
    pub(super) fn read(&mut self, reach: &mut Reach<'_>, mut reading: Reading) -> Result<(), Violation> {
        let Some(piece) = reading.pieces.get(reading.at).copied() else {
            if let Some(damaged) = std::mem::take(&mut reading.damage).into_request() {
                self.tell(reach.net, damaged);
            }
            if reading.lease != 0 {
                self.tell(reach.net, request::Body::Release(pb::Release { leases: vec![reading.lease] }));
            }
            self.pause(reach.net);
            return Ok(());
        };
        let line = piece.first + (reading.seen.len() as u64).min(piece.lines - 1);
        let place = self.directory.get(&piece.segment);
        match place.and_then(|place| reach.memories.line(*place, line)).copied() {
            None => reading.next(), // the node is gone: a miss
            Some(found) if (reading.seen.len() as u64) < piece.lines => reading.seen.push(found),
            Some(found) => {
                self.judge(reach, &mut reading, piece, found.tail)?;
                reading.next();
            }
        }
        let ms = step_ms(reach.net, 2 * u64::from(reach.net.scenario.settings.lease_ms));
        self.op = Op::Read(reading);
        self.wake_after(reach.net, ms);
        Ok(())
    }

    /// Decides as a client does whether what was read is a hit, and asks the oracle about hits.
    fn judge(
        &mut self,
        reach: &mut Reach<'_>,
        reading: &mut Reading,
        piece: Piece,
        tail: Tail,
    ) -> Result<(), Violation> {
        let trusting = reach.net.scenario.sabotage == Sabotage::TrailerIgnored;
        let in_time = reach.net.now < reading.valid_until;
        let summed = match tail {
            Tail::Trailer { generation, key, summed } if (generation, key) == (piece.generation, piece.key) => {
                Some(summed)
            }
            _ => None,
        };
        // Where memory rests, what nobody can check is a miss.
        let rests = piece.rests && reach.net.scenario.sabotage != Sabotage::RestHidden;
        let trailer_fits = summed.is_some_and(|summed| summed || !rests);
        let accepts = trusting || (in_time && trailer_fits);
        if !accepts {
            if in_time && summed.is_none() {
                reading.damage.note(reach, piece.key, piece.segment, piece.generation);
            }
            return Ok(());
        }
        let sound = bytes::is_whole(piece.generation, &reading.seen);
        if (reach.net.scenario.checksum || rests) && !sound && !trusting {
            reach.truth.count_caught_by_checksum();
            reading.damage.note(reach, piece.key, piece.segment, piece.generation);
            return Ok(());
        }
        bytes::check(reach.truth, piece.key, piece.generation, &reading.seen)?;
        reach.truth.count_hit();
        reach.net.note(format_args!("client {} got {:x}", self.index, piece.generation));
        if self.probe == Probe::Get {
            self.probe = Probe::Done;
        }
        Ok(())
    }
}

impl Reading {
    fn next(&mut self) {
        self.at += 1;
        self.seen.clear();
    }
}

impl Ticket {
    /// A line that is concerned, and what is done.
    fn step(&self, step: u64) -> (u64, Step) {
        let (piece, clears) = (self.piece, self.clears.len() as u64);
        let last = piece.first + piece.lines - 1;
        if let Some(offset) = self.clears.get(usize::try_from(step).unwrap_or(usize::MAX)) {
            return (last, Step::Clear(*offset));
        }
        match step - clears {
            0 => (last, Step::Retract),
            step if step <= piece.lines => (piece.first + step - 1, Step::Payload),
            step if step == piece.lines + 1 && self.record != 0 => (last, Step::Record(self.record)),
            _ => (last, Step::Publish),
        }
    }

    fn record(&self) -> Record {
        let Piece { key, generation, first, lines, .. } = self.piece;
        Record { key, generation, origin: self.origin, wanted: self.wanted, first, lines }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Clear(u64),
    Record(u64),
    Retract,
    Payload,
    Publish,
}
