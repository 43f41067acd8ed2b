//! Telling the book what this node's segment holds: after a restart of either, after a time apart.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use memcache_memory::holdings::{Holding, Holdings};
use memcache_proto::pack::{expect_length, keys_to_wire};
use memcache_proto::pb::{self, reply, request};
use memcache_types::{Generation, KeyBatch};

use crate::book::BookError;
use crate::local_service::Member;

/// Longest wait for the answer to one part.
const PART_TIMEOUT: Duration = Duration::from_secs(2);

/// Objects told in one message: below a megabyte with the longest keys, and milliseconds of the book's time.
const PART: usize = 2048;

/// Pause after a part that was not answered.
const PAUSE: Duration = Duration::from_millis(100);

/// How far the telling has come.
pub(crate) struct Listing {
    segment: u64,
    holdings: Vec<Holding>,
    /// Holdings told so far.
    told: usize,
    /// What the book took up: place in the table to generation.
    kept: HashMap<u32, Generation>,
    /// Writers of an earlier life may write until then.
    rest_until: Instant,
    /// Objects without checksums are to be told when the memory has rested.
    looks_again: bool,
    /// Whatever was not taken up is cleared. Only once: if the answer to "all" is lost, others write here already.
    swept: bool,
    done: bool,
}

impl Listing {
    /// What stands in the table now; all other records are cleared.
    pub(crate) fn new(table: &Holdings<'_>, segment: u64, rest_until: Instant) -> Self {
        let started = Instant::now();
        // A writer of an earlier life may still be at an object that was evicted for it. Whoever reads that meanwhile sees
        // it by the checksum; objects that have none wait until the memory has rested.
        let (holdings, unsummed): (Vec<_>, Vec<_>) = table.scan().into_iter().partition(|holding| holding.summed);
        tracing::info!(objects = holdings.len(), took = ?started.elapsed(), "looked through what this memory holds");
        Self {
            segment,
            holdings,
            told: 0,
            kept: HashMap::new(),
            rest_until,
            looks_again: !unsummed.is_empty(),
            swept: false,
            done: false,
        }
    }

    /// Tells what can be told now; when to go on, `None` when all is told. A part that was not answered is told again.
    pub(crate) fn go_on(&mut self, member: &Member) -> Option<Duration> {
        if self.done {
            return None;
        }
        while self.told < self.holdings.len() {
            if let Err(error) = self.tell_part(member) {
                tracing::debug!(%error, told = self.told, of = self.holdings.len(), "not all is told yet");
                return Some(PAUSE);
            }
        }
        let now = Instant::now();
        if now < self.rest_until {
            return Some(self.rest_until - now);
        }
        if std::mem::take(&mut self.looks_again) {
            self.holdings = member.table().scan().into_iter().filter(|holding| !holding.summed).collect();
            self.told = 0;
            return Some(Duration::ZERO);
        }
        // Nobody writes here now: what stands in the table and was not taken up came from a writer of an earlier life,
        // and the space it speaks of goes to others from now on.
        if !self.swept {
            member.table().keep_only(&self.kept);
            self.swept = true;
        }
        match self.send(member, &[], true) {
            Ok(_) => {
                tracing::info!(kept = self.kept.len(), of = self.holdings.len(), "told what this memory holds");
                self.done = true;
                self.holdings = Vec::new();
                self.kept = HashMap::new();
                None
            }
            Err(error) => {
                tracing::debug!(%error, "the MetaService did not hear that all is told");
                Some(PAUSE)
            }
        }
    }

    fn tell_part(&mut self, member: &Member) -> Result<(), BookError> {
        let end = (self.told + PART).min(self.holdings.len());
        let part = &self.holdings[self.told..end];
        let kept = self.send(member, part, false)?;
        let table = member.table();
        for (holding, kept) in part.iter().zip(kept) {
            if kept == 1 {
                self.kept.insert(holding.record, holding.generation);
            } else {
                table.clear(holding.record);
            }
        }
        self.told = end;
        Ok(())
    }

    fn send(&self, member: &Member, part: &[Holding], done: bool) -> Result<Vec<u8>, BookError> {
        let refused = |error: &dyn std::fmt::Display| BookError::Refused(error.to_string());
        let keys = KeyBatch::from_keys(part.iter().map(|holding| &holding.key)).map_err(|error| refused(&error))?;
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
            done,
        };
        let answer = member.book.call(request::Body::Holdings(holdings), Instant::now() + PART_TIMEOUT)?;
        let reply::Body::Holdings(reply) = answer.body else {
            return Err(BookError::Refused("not a Holdings reply".to_owned()));
        };
        expect_length("kept", reply.kept.len(), part.len()).map_err(|error| refused(&error))?;
        Ok(reply.kept)
    }
}
