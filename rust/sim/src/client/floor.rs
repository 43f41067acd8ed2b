//! Makes the removal of everything last: a floor goes to every segment.

use memcache_proto::pb::{self, request};

use super::{Client, Op, Reach};
use crate::invariants::{Violation, removed};
use crate::ledger::Ledger;
use crate::scenario::Sabotage;

/// How long a remover tries.
const PATIENCE_MS: u64 = 500;

/// A removal of everything that is to last.
#[derive(Debug)]
pub(super) struct Raising {
    /// The request that removed all.
    request: u64,
    /// The life of the book that served it.
    epoch: u64,
    floor: u64,
    /// Segment and offset.
    places: Vec<(u64, u64)>,
    /// Whether the book is to be asked if it is still the same.
    asks: bool,
    until: u64,
}

impl Raising {
    pub(super) fn new(request: u64, epoch: u64, reply: &pb::RemoveAllReply, now: u64) -> Self {
        let places: Vec<_> = reply.segments.iter().copied().zip(reply.offsets.iter().copied()).collect();
        let asks = !places.is_empty();
        Self { request, epoch, floor: reply.floor, places, asks, until: now + PATIENCE_MS }
    }

    pub(super) fn segments(&self) -> Vec<u64> {
        self.places.iter().map(|(segment, _)| *segment).collect()
    }

    /// Whether the book that answered now is the one that removed all.
    pub(super) const fn is_same(&self, epoch: u64) -> bool {
        self.epoch == epoch
    }

    pub(super) fn asked(self) -> Self {
        Self { asks: false, ..self }
    }
}

impl Client {
    /// One step: a floor is written, the book is asked, or all is done.
    pub(super) fn raise(
        &mut self,
        reach: &mut Reach<'_>,
        ledger: &Ledger,
        mut raising: Raising,
    ) -> Result<(), Violation> {
        if let Some((segment, offset)) = raising.places.pop() {
            let memory = self.directory.get(&segment).and_then(|place| reach.memories.memory(*place));
            if let Some(memory) = memory.filter(|_| reach.net.scenario.sabotage != Sabotage::FloorsLeft) {
                memory.write_floor(offset, raising.floor);
            }
            let ms = super::copy::step_ms(reach.net, PATIENCE_MS);
            self.op = Op::Raise(raising);
            self.wake_after(reach.net, ms);
        } else if reach.net.now > raising.until {
            self.pause(reach.net); // it is told that this may not last
        } else if raising.asks {
            let body = request::Body::Describe(pb::Describe { segments: Vec::new() });
            self.ask(reach.net, body, Op::AskSame(raising));
        } else {
            removed::check(ledger, reach.truth, reach.memories, raising.request)?;
            self.pause(reach.net);
        }
        Ok(())
    }

    pub(super) fn raise_soon(&mut self, reach: &mut Reach<'_>, raising: Raising) {
        self.op = Op::Raise(raising);
        self.wake_after(reach.net, 0);
    }
}
