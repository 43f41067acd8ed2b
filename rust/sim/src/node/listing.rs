//! A node tells what its memory holds, in parts, as `memcache-client` does.

use std::collections::BTreeMap;

use memcache_proto::pb::{self, request};

use crate::client::keys_to_wire;
use crate::memory::{LINE_BYTES, Memory, Record, payload_of};
use crate::scenario::Sabotage;
use crate::truth::Truth;

/// What is said of the objects of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Say {
    There,
    Gone,
    Told,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    All(bool),
    Look,
    Late,
    Sweep,
    End,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Next {
    /// To be asked.
    Ask(Box<request::Body>),
    /// Nothing before that time.
    Pause(u64),
    /// All is told.
    Nothing,
}

/// How far the telling has come.
#[derive(Debug)]
pub(super) struct Listing {
    segment: u64,
    holdings: Vec<(u32, Record)>,
    say: Say,
    told: usize,
    part: usize,
    /// What the request under way says.
    asked: Option<Say>,
    kept: BTreeMap<u32, u64>,
    late: Vec<(u32, Record)>,
    rest_until: u64,
    stage: Stage,
    sabotage: Sabotage,
    over: bool,
}

impl Listing {
    pub(super) fn new(memory: &mut Memory, segment: u64, rest_until: u64, part: usize, sabotage: Sabotage) -> Self {
        let found = memory.scan();
        let all = found.iter().all(|(_, _, summed)| *summed);
        let silent = sabotage == Sabotage::NothingListed;
        let found = if silent { Vec::new() } else { found };
        let holdings = found.into_iter().filter(|(_, _, summed)| *summed).map(|(at, one, _)| (at, one)).collect();
        Self {
            segment,
            holdings,
            say: Say::There,
            told: 0,
            part,
            asked: None,
            kept: BTreeMap::new(),
            late: Vec::new(),
            rest_until,
            stage: Stage::All(all),
            sabotage,
            over: false,
        }
    }

    /// What is to be said now.
    pub(super) fn next(&mut self, memory: &mut Memory, now: u64, node: u64, incarnation: u64) -> Next {
        while !self.over {
            if self.told < self.holdings.len() {
                let part = &self.holdings[self.told..(self.told + self.part).min(self.holdings.len())];
                self.asked = Some(self.say);
                return Next::Ask(Box::new(self.body(part, self.say, node, incarnation)));
            }
            self.stage = match self.stage {
                Stage::All(true) => {
                    self.asked = Some(Say::Told);
                    return Next::Ask(Box::new(self.body(&[], Say::Told, node, incarnation)));
                }
                Stage::All(false) => Stage::Look,
                Stage::Look if now < self.rest_until => return Next::Pause(self.rest_until - now),
                Stage::Look => {
                    self.look_again(memory);
                    Stage::Late
                }
                Stage::Late => {
                    (self.holdings, self.say, self.told) = (std::mem::take(&mut self.late), Say::There, 0);
                    Stage::Sweep
                }
                Stage::Sweep => {
                    for (place, slot) in (0..).zip(memory.records.clone()) {
                        if slot.is_some_and(|record| self.kept.get(&place) != Some(&record.generation)) {
                            memory.clear(place);
                        }
                    }
                    Stage::End
                }
                Stage::End => {
                    self.asked = Some(Say::Done);
                    return Next::Ask(Box::new(self.body(&[], Say::Done, node, incarnation)));
                }
            };
        }
        Next::Nothing
    }

    fn look_again(&mut self, memory: &mut Memory) {
        let found = memory.scan();
        let there: BTreeMap<u32, u64> = found.iter().map(|(at, one, _)| (*at, one.generation)).collect();
        let is_kept = |(at, one): &(u32, Record)| self.kept.get(at) == Some(&one.generation);
        let late = found.into_iter().filter(|(_, _, summed)| !summed).map(|(at, one, _)| (at, one));
        self.late = late.filter(|one| !is_kept(one)).collect();
        let blind = self.sabotage == Sabotage::NotLookedAgain;
        let told = std::mem::take(&mut self.holdings);
        let is_gone = |one: &(u32, Record)| !blind && is_kept(one) && there.get(&one.0) != Some(&one.1.generation);
        self.holdings = told.into_iter().filter(is_gone).collect();
        (self.say, self.told) = (Say::Gone, 0);
    }

    /// The book answered.
    pub(super) fn answered(&mut self, memory: &mut Memory, truth: &mut Truth, kept: &[u8]) {
        match self.asked.take() {
            Some(Say::There | Say::Gone) => {
                let part = &self.holdings[self.told..(self.told + self.part).min(self.holdings.len())];
                for ((place, record), kept) in part.iter().zip(kept) {
                    if *kept == 1 {
                        self.kept.insert(*place, record.generation);
                    } else {
                        self.kept.remove(place);
                        memory.clear(*place);
                        truth.refuse(record.generation);
                    }
                }
                self.told += part.len();
            }
            Some(Say::Told) => self.stage = Stage::Look,
            Some(Say::Done) => self.over = true,
            None => {}
        }
    }

    fn body(&self, part: &[(u32, Record)], say: Say, node: u64, incarnation: u64) -> request::Body {
        let keys: Vec<u64> = part.iter().map(|(_, one)| one.key).collect();
        request::Body::Holdings(pb::Holdings {
            node,
            incarnation,
            segment: self.segment,
            keys: keys_to_wire(&keys),
            offsets: part.iter().map(|(_, one)| one.first * LINE_BYTES).collect(),
            payload_bytes: part.iter().map(|(_, one)| payload_of(one.lines)).collect(),
            generations: part.iter().map(|(_, one)| one.generation).collect(),
            origins: part.iter().map(|(_, one)| one.origin).collect(),
            wanted: part.iter().map(|(_, one)| one.wanted).collect(),
            records: part.iter().map(|(place, _)| *place).collect(),
            done: say == Say::Done,
            told: say == Say::Told,
            gone: say == Say::Gone,
        })
    }
}
