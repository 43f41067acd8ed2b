//! Telling the book what this node's segment holds: after a restart of either, after a time apart.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use memcache_memory::holdings::{Holding, Holdings};
use memcache_proto::pack::{WireError, expect_length, keys_to_wire};
use memcache_proto::pb::{self, reply, request};
use memcache_types::{Generation, KeyBatch};

use crate::book::BookError;
use crate::member::Member;

/// Longest wait for the answer to one part.
const PART_TIMEOUT: Duration = Duration::from_secs(2);

/// Objects told in one message: below a megabyte with the longest keys, and milliseconds of the book's time.
const PART: usize = 2048;

/// Pause after a part that was not answered.
const PAUSE: Duration = Duration::from_millis(100);

/// What a part says of its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Say {
    /// They are there.
    There,
    /// They were kept, and are there no longer.
    Gone,
    /// Everything was told that the table named at the start. Of nothing.
    Told,
    /// And the memory has rested. Of nothing.
    Done,
}

/// What comes next.
pub(crate) enum Next {
    /// To go on after that time.
    Pause(Duration),
    /// All is told.
    Nothing,
    /// The segment has another name by now, as a join that came late gave it: ask for the name after that time.
    Join(Duration),
}

impl Next {
    /// How long to wait, at most for a heartbeat's period.
    pub(crate) fn pause(&self, period: Duration) -> Duration {
        match self {
            Self::Pause(pause) | Self::Join(pause) => period.min(*pause),
            Self::Nothing => period,
        }
    }
}

/// How far the telling has come.
pub(crate) struct Listing {
    segment: u64,
    /// To be told of, and as what; those from `told` on.
    holdings: Vec<Holding>,
    say: Say,
    told: usize,
    /// What the book took up: place in the table to generation.
    kept: HashMap<u32, Generation>,
    /// To be told after that.
    late: Vec<Holding>,
    /// Writers of an earlier life may write until then.
    rest_until: Instant,
    stage: Stage,
}

/// What comes next when all holdings at hand are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// That this was all. `false`: it was not, because objects without checksums wait until the memory has rested.
    All(bool),
    /// A second look, when the memory has rested: first what is gone is told.
    Look,
    /// Then what had to wait.
    Late,
    /// Whatever was not taken up is cleared. Only once: if the answer to "all" is lost, others write here already.
    Sweep,
    /// That the memory may be used.
    End,
    Ended,
}

impl Listing {
    /// What stands in the table now; all other records are cleared.
    pub(crate) fn new(table: &Holdings<'_>, segment: u64, rest_until: Instant) -> Self {
        let started = Instant::now();
        // A writer of an earlier life may still be at an object that was evicted for it. Whoever reads that meanwhile sees
        // it by the checksum; objects that have none wait until the memory has rested.
        let (holdings, unsummed): (Vec<_>, Vec<_>) = table.scan().into_iter().partition(|holding| holding.summed);
        tracing::info!(objects = holdings.len(), took = ?started.elapsed(), "looked through what this memory holds");
        let stage = Stage::All(unsummed.is_empty());
        let (kept, late) = (HashMap::new(), Vec::new());
        Self { segment, holdings, say: Say::There, told: 0, kept, late, rest_until, stage }
    }

    /// Tells what can be told now. A part that was not answered is told again.
    pub(crate) fn go_on(&mut self, member: &Member) -> Next {
        loop {
            match self.step(member) {
                Ok(None) if self.stage == Stage::Ended => return Next::Nothing,
                Ok(None) => {}
                Ok(Some(pause)) => return Next::Pause(pause),
                Err(BookError::Refused(why)) => {
                    tracing::info!(why, "the MetaService wants to hear nothing of this segment; joining again");
                    return Next::Join(PAUSE);
                }
                Err(error) => {
                    tracing::debug!(%error, told = self.told, of = self.holdings.len(), stage = ?self.stage,
                        "not all is told yet");
                    return Next::Pause(PAUSE);
                }
            }
        }
    }

    /// One part, or what comes when all parts are told. A pause: there is nothing to do before.
    fn step(&mut self, member: &Member) -> Result<Option<Duration>, BookError> {
        if self.told < self.holdings.len() {
            self.tell_part(member)?;
            return Ok(None);
        }
        self.stage = match self.stage {
            Stage::All(all) => {
                if all {
                    self.send(member, &[], Say::Told)?;
                }
                Stage::Look
            }
            Stage::Look => {
                let now = Instant::now();
                if now < self.rest_until {
                    return Ok(Some(self.rest_until - now));
                }
                self.look_again(member.table().scan());
                Stage::Late
            }
            Stage::Late => {
                (self.holdings, self.say, self.told) = (std::mem::take(&mut self.late), Say::There, 0);
                Stage::Sweep
            }
            Stage::Sweep => {
                // Nobody writes here now: what stands in the table and was not taken up came from a writer of an earlier
                // life, and the space it speaks of goes to others from now on.
                member.table().keep_only(&self.kept);
                Stage::End
            }
            Stage::End => {
                self.send(member, &[], Say::Done)?;
                tracing::info!(kept = self.kept.len(), "told what this memory holds");
                self.kept = HashMap::new();
                Stage::Ended
            }
            Stage::Ended => Stage::Ended,
        };
        Ok(None)
    }

    fn tell_part(&mut self, member: &Member) -> Result<(), BookError> {
        let end = (self.told + PART).min(self.holdings.len());
        let part = &self.holdings[self.told..end];
        let kept = self.send(member, part, self.say)?;
        let table = member.table();
        for (holding, kept) in part.iter().zip(kept) {
            if kept == 1 {
                self.kept.insert(holding.record, holding.generation);
            } else {
                self.kept.remove(&holding.record);
                table.clear(holding.record);
            }
        }
        self.told = end;
        Ok(())
    }

    /// The memory has rested. Writers of earlier lives take away records, or the trailers they speak of, before anything
    /// else: what is still whole was not touched by any of them, and is sound from now on without its checksum.
    fn look_again(&mut self, found: Vec<Holding>) {
        let there: HashMap<u32, Generation> = found.iter().map(|one| (one.record, one.generation)).collect();
        let is_kept = |one: &Holding| self.kept.get(&one.record) == Some(&one.generation);
        self.late = found.into_iter().filter(|one| !one.summed && !is_kept(one)).collect();
        let told = std::mem::take(&mut self.holdings);
        let is_gone = |one: &Holding| is_kept(one) && there.get(&one.record) != Some(&one.generation);
        self.holdings = told.into_iter().filter(is_gone).collect();
        (self.say, self.told) = (Say::Gone, 0);
    }

    fn send(&self, member: &Member, part: &[Holding], say: Say) -> Result<Vec<u8>, BookError> {
        let keys = KeyBatch::from_keys(part.iter().map(|holding| &holding.key)).map_err(WireError::from)?;
        let holdings = pb::Holdings {
            node: member.node.get(),
            incarnation: member.incarnation.get(),
            segment: self.segment,
            keys: Some(keys_to_wire(&keys)),
            offsets: part.iter().map(|holding| holding.offset).collect(),
            payload_bytes: part.iter().map(|holding| holding.payload_bytes).collect(),
            generations: part.iter().map(|holding| holding.generation.get()).collect(),
            origins: part.iter().map(|holding| holding.origin.get()).collect(),
            wanted: part.iter().map(|holding| holding.wanted).collect(),
            records: part.iter().map(|holding| holding.record).collect(),
            done: say == Say::Done,
            told: say == Say::Told,
            gone: say == Say::Gone,
        };
        let answer = member.book.call(request::Body::Holdings(holdings), Instant::now() + PART_TIMEOUT)?;
        let reply::Body::Holdings(reply) = answer.body else {
            return Err(BookError::not_a("Holdings"));
        };
        expect_length("kept", reply.kept.len(), part.len())?;
        Ok(reply.kept)
    }
}
