//! Makes removals last: records of what was removed are cleared, or a floor goes to every segment where all was. Then waits
//! for nodes that have not told what they hold.

use memcache_proto::pb::{self, request};

use super::{Client, Op, Reach};
use crate::invariants::{Violation, removed};
use crate::ledger::Ledger;
use crate::scenario::Sabotage;

/// How long a remover waits.
const PATIENCE_MS: u64 = 500;
const PAUSE_MS: u64 = 10;

/// What is left to be written to a segment.
#[derive(Clone, Copy, Debug)]
struct Mark {
    segment: u64,
    offset: u64,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// Nothing in the place of a record, if it is still that of this generation.
    Gone(u64),
    /// This floor.
    Floor(u64),
}

/// A removal that is to last.
#[derive(Debug)]
pub(super) struct Forgetting {
    /// The request that removed the keys.
    request: u64,
    /// The life of the book that served it.
    epoch: u64,
    marks: Vec<Mark>,
    untold: Vec<u64>,
    asks: bool,
    until: u64,
}

impl Forgetting {
    pub(super) fn new(request: u64, epoch: u64, reply: &pb::RemoveReply, now: u64) -> Self {
        let gone = reply.generations.iter().map(|generation| What::Gone(*generation));
        let marks = marks(&reply.segments, &reply.offsets, gone);
        let asks = !marks.is_empty() || !reply.untold.is_empty();
        Self { request, epoch, marks, untold: reply.untold.clone(), asks, until: now + PATIENCE_MS }
    }

    /// Everything was removed.
    pub(super) fn of_all(request: u64, epoch: u64, reply: &pb::RemoveAllReply, now: u64) -> Self {
        let marks = marks(&reply.segments, &reply.offsets, std::iter::repeat(What::Floor(reply.floor)));
        let asks = !marks.is_empty();
        Self { request, epoch, marks, untold: Vec::new(), asks, until: now + PATIENCE_MS }
    }

    pub(super) fn segments(&self) -> Vec<u64> {
        self.marks.iter().map(|mark| mark.segment).collect()
    }

    /// The book described segments; whether it is the one that removed the keys.
    pub(super) fn told(&mut self, epoch: u64, reply: &pb::DescribeReply) -> bool {
        self.untold = reply.segments.iter().filter(|one| one.untold).map(|one| one.segment).collect();
        self.asks = !self.untold.is_empty();
        epoch == self.epoch
    }
}

fn marks(segments: &[u64], offsets: &[u64], what: impl Iterator<Item = What>) -> Vec<Mark> {
    let places = segments.iter().zip(offsets).zip(what);
    places.map(|((segment, offset), what)| Mark { segment: *segment, offset: *offset, what }).collect()
}

impl Client {
    /// One step: a mark is written, the book is asked, or all is done.
    pub(super) fn forget(
        &mut self,
        reach: &mut Reach<'_>,
        ledger: &Ledger,
        mut forgetting: Forgetting,
    ) -> Result<(), Violation> {
        if let Some(mark) = forgetting.marks.pop() {
            self.write_mark(reach, mark);
            let ms = super::copy::step_ms(reach.net, PATIENCE_MS);
            self.op = Op::Forget(forgetting);
            self.wake_after(reach.net, ms);
        } else if reach.net.now > forgetting.until {
            self.pause(reach.net); // it is told that this may not last
        } else if forgetting.asks {
            let body = request::Body::Describe(pb::Describe { segments: forgetting.untold.clone() });
            self.ask(reach.net, body, Op::AskTold(forgetting));
        } else {
            removed::check(ledger, reach.truth, reach.memories, forgetting.request)?;
            self.pause(reach.net);
        }
        Ok(())
    }

    fn write_mark(&self, reach: &mut Reach<'_>, mark: Mark) {
        let Some(place) = self.directory.get(&mark.segment).copied() else { return };
        match (mark.what, reach.net.scenario.sabotage) {
            (What::Gone(_), Sabotage::RecordsLeft) | (What::Floor(_), Sabotage::FloorsLeft) => {}
            (What::Gone(generation), _) => {
                if let Some(slot) = reach.memories.record(place, mark.offset)
                    && slot.is_some_and(|record| record.generation == generation)
                {
                    *slot = None;
                }
            }
            (What::Floor(floor), _) => {
                if let Some(memory) = reach.memories.memory(place) {
                    memory.write_floor(mark.offset, floor);
                }
            }
        }
    }

    pub(super) fn forget_soon(&mut self, reach: &mut Reach<'_>, forgetting: Forgetting) {
        let ms = if forgetting.asks { PAUSE_MS } else { 0 };
        self.op = Op::Forget(forgetting);
        self.wake_after(reach.net, ms);
    }
}
