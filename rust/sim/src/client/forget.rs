//! Clears the records of what was removed, and waits for nodes that have not told what they hold.

use memcache_proto::pb::{self, request};

use super::{Client, Op, Reach};
use crate::invariants::{Violation, removed};
use crate::ledger::Ledger;
use crate::scenario::Sabotage;

/// How long a remover waits.
const PATIENCE_MS: u64 = 500;
const PAUSE_MS: u64 = 10;

/// A removal that is to last.
#[derive(Debug)]
pub(super) struct Forgetting {
    /// The request that removed the keys.
    request: u64,
    /// The life of the book that served it.
    epoch: u64,
    /// Segment, offset and generation.
    pub(super) records: Vec<(u64, u64, u64)>,
    untold: Vec<u64>,
    asks: bool,
    until: u64,
}

impl Forgetting {
    pub(super) fn new(request: u64, epoch: u64, reply: &pb::RemoveReply, now: u64) -> Self {
        let places = reply.segments.iter().zip(&reply.offsets).zip(&reply.generations);
        let records: Vec<_> = places.map(|((segment, offset), generation)| (*segment, *offset, *generation)).collect();
        let asks = !records.is_empty() || !reply.untold.is_empty();
        Self { request, epoch, records, untold: reply.untold.clone(), asks, until: now + PATIENCE_MS }
    }

    /// The book described segments; whether it is the one that removed the keys.
    pub(super) fn told(&mut self, epoch: u64, reply: &pb::DescribeReply) -> bool {
        self.untold = reply.segments.iter().filter(|one| one.untold).map(|one| one.segment).collect();
        self.asks = !self.untold.is_empty();
        epoch == self.epoch
    }
}

impl Client {
    /// One step: a record is cleared, the book is asked, or all is done.
    pub(super) fn forget(
        &mut self,
        reach: &mut Reach<'_>,
        ledger: &Ledger,
        mut forgetting: Forgetting,
    ) -> Result<(), Violation> {
        if let Some((segment, offset, generation)) = forgetting.records.pop() {
            let place = self.directory.get(&segment).copied();
            let clears = reach.net.scenario.sabotage != Sabotage::RecordsLeft;
            if let Some(slot) = place.and_then(|place| reach.memories.record(place, offset))
                && clears
                && slot.is_some_and(|record| record.generation == generation)
            {
                *slot = None;
            }
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

    pub(super) fn forget_soon(&mut self, reach: &mut Reach<'_>, forgetting: Forgetting) {
        let ms = if forgetting.asks { PAUSE_MS } else { 0 };
        self.op = Op::Forget(forgetting);
        self.wake_after(reach.net, ms);
    }
}
