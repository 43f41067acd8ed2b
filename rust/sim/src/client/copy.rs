//! The copies: they take time, and every step may stall.

use memcache_proto::pb::{self, request};

use super::{Client, Op, Piece, Probe, Reach};
use crate::invariants::{Violation, bytes};
use crate::memory::{Line, Tail};
use crate::net::Net;
use crate::scenario::Sabotage;

/// Tickets that are being filled, one after the other.
#[derive(Debug)]
pub(super) struct Writing {
    /// Reservation and where it leads.
    tickets: Vec<(u64, Piece)>,
    /// No write may start later.
    start_until: u64,
    at: usize,
    /// Next step: the old trailer, then the lines, then the new trailer.
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
}

impl Writing {
    pub(super) fn new(tickets: Vec<(u64, Piece)>, start_until: u64) -> Self {
        Self { tickets, start_until, at: 0, step: 0, end_until: 0, sealable: Vec::new(), given_up: Vec::new() }
    }

    pub(super) fn pieces(&self) -> Vec<Piece> {
        self.tickets.iter().map(|(_, piece)| *piece).collect()
    }

    pub(super) fn reservations(&self) -> Vec<u64> {
        self.tickets.iter().map(|(reservation, _)| *reservation).collect()
    }

    fn next(&mut self, written: bool) {
        let list = if written { &mut self.sealable } else { &mut self.given_up };
        list.push(self.tickets[self.at].0);
        self.at += 1;
        self.step = 0;
    }
}

impl Reading {
    pub(super) fn of(pieces: Vec<Piece>, lease: u64, valid_until: u64) -> Self {
        Self { pieces, lease, valid_until, at: 0, seen: Vec::new() }
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
        let Some((_, piece)) = writing.tickets.get(writing.at).copied() else {
            return self.end_writing(reach.net, writing);
        };
        if writing.step == 0 {
            if reach.net.now > writing.start_until {
                writing.next(false);
                return self.go_on_writing(reach.net, writing, 0);
            }
            writing.end_until = reach.net.now + reach.net.scenario.write_ms_max;
        }
        let last = piece.first + piece.lines - 1;
        let (line, step) = match writing.step {
            0 => (last, Step::Retract),
            step if step <= piece.lines => (piece.first + step - 1, Step::Payload),
            _ => (last, Step::Publish),
        };
        let place = self.directory.get(&piece.segment);
        let Some(found) = place.and_then(|place| reach.memories.line(*place, line)) else {
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
            Step::Publish => found.tail = Tail::Trailer { generation: piece.generation, key: piece.key },
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
                self.judge(reach, &reading, piece, found.tail)?;
                reading.next();
            }
        }
        let ms = step_ms(reach.net, 2 * u64::from(reach.net.scenario.settings.lease_ms));
        self.op = Op::Read(reading);
        self.wake_after(reach.net, ms);
        Ok(())
    }

    /// Decides as a client does whether what was read is a hit, and asks the oracle about hits.
    fn judge(&mut self, reach: &mut Reach<'_>, reading: &Reading, piece: Piece, tail: Tail) -> Result<(), Violation> {
        let trusting = reach.net.scenario.sabotage == Sabotage::TrailerIgnored;
        let in_time = reach.net.now < reading.valid_until;
        let trailer_fits = tail == Tail::Trailer { generation: piece.generation, key: piece.key };
        let accepts = trusting || (in_time && trailer_fits);
        if !accepts {
            return Ok(());
        }
        let sound = bytes::is_whole(piece.generation, &reading.seen);
        if reach.net.scenario.checksum && !sound && !trusting {
            reach.truth.count_caught_by_checksum();
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

#[derive(Clone, Copy, Debug)]
enum Step {
    Retract,
    Payload,
    Publish,
}
