//! The book as simply as it can be said: plain maps, no free lists, everything searched. It does not choose where
//! objects go or who is evicted; it judges the choices of the core.

use std::collections::{BTreeMap, BTreeSet};

use memcache_proto::pb::{LocateOutcome, PinOutcome, ReserveOutcome, SealOutcome};
use memcache_types::extent_bytes;

use super::{DEAD, LEASE, SETTINGS, TTL};

/// Segment, first byte, length.
type Run = (u64, u64, u64);

#[derive(Clone, Debug)]
pub(super) struct Ticket {
    pub(super) client: u64,
    key: String,
    run: Run,
    payload_bytes: u64,
    deadline: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) key: String,
    pub(super) run: Run,
    pub(super) payload_bytes: u64,
    leases: u32,
    used: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) client: u64,
    deadline: u64,
    generations: Vec<u64>,
}

#[derive(Clone, Debug)]
struct Lent {
    incarnation: u64,
    segment: u64,
    bytes: u64,
    usable_from: u64,
    heard: u64,
}

/// Above the rank of every object without a pin.
pub(super) const WITHOUT_PINS: (u8, u64, u64) = (1, 0, 0);
/// Above the rank of every object that may go at all.
pub(super) const ALL_THAT_MAY_GO: (u8, u64, u64) = (2, 0, 0);

#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) now: u64,
    uses: u64,
    /// By reservation, which is also the generation.
    pub(super) tickets: BTreeMap<u64, Ticket>,
    /// By generation, readable or only held for readers.
    pub(super) stored: BTreeMap<u64, Stored>,
    pub(super) readable: BTreeMap<String, u64>,
    pub(super) leases: BTreeMap<u64, Lease>,
    resting: Vec<(u64, Run)>,
    nodes: BTreeMap<u64, Lent>,
    newest: BTreeMap<u64, u64>,
    /// By key: until when, if not for ever, and a number that tells pins of one time apart.
    pub(super) pins: BTreeMap<String, (Option<u64>, u64)>,
    /// The core does not look at all objects in the order in which they would go: newer ones may go than would have to.
    pub(super) any_age: bool,
}

impl Model {
    pub(super) fn advance(&mut self, now: u64) {
        self.now = now;
        let expired: Vec<u64> = self.tickets.iter().filter(|(_, t)| t.deadline <= now).map(|(id, _)| *id).collect();
        for id in expired {
            let ticket = self.tickets.remove(&id).unwrap();
            self.resting.push((ticket.deadline + TTL, ticket.run));
        }
        self.resting.retain(|(until, _)| *until > now);
        let over: Vec<u64> = self.leases.iter().filter(|(_, l)| l.deadline <= now).map(|(id, _)| *id).collect();
        for id in over {
            self.end_lease(id);
        }
        let mut over: Vec<(u64, u64, String)> = self
            .pins
            .iter()
            .filter_map(|(key, (until, number))| until.map(|until| (until, *number, key.clone())))
            .filter(|(until, ..)| *until <= now)
            .collect();
        over.sort_unstable();
        for (_, _, key) in over {
            self.unpin(&key);
        }
        let silent: Vec<u64> = self.nodes.iter().filter(|(_, n)| n.heard + DEAD <= now).map(|(id, _)| *id).collect();
        for node in silent {
            self.drop_node(node);
        }
    }

    fn end_lease(&mut self, id: u64) {
        for generation in self.leases.remove(&id).unwrap().generations.into_iter().rev() {
            let Some(stored) = self.stored.get_mut(&generation) else { continue };
            stored.leases -= 1;
            if stored.leases > 0 {
                continue;
            }
            if self.readable.get(&stored.key) == Some(&generation) {
                self.touch(generation);
            } else {
                self.stored.remove(&generation);
            }
        }
    }

    fn touch(&mut self, generation: u64) {
        let stored = self.stored.get_mut(&generation).unwrap();
        if stored.leases == 0 {
            self.uses += 1;
            stored.used = self.uses;
        }
    }

    /// Ends a pin; whether there was one. That is a use.
    pub(super) fn unpin(&mut self, key: &str) -> bool {
        let pinned = self.pins.remove(key).is_some();
        if pinned {
            self.touch(self.readable[key]);
        }
        pinned
    }

    pub(super) fn pin(&mut self, key: &str, ttl_ms: Option<u64>) -> PinOutcome {
        let Some(generation) = self.readable.get(key).copied() else { return PinOutcome::PinAbsent };
        let until = ttl_ms.map(|ms| self.now + ms);
        match (self.pins.get(key), until) {
            (Some((None, _)), _) => return PinOutcome::Pinned,
            (Some((Some(before), _)), Some(until)) if *before > until => return PinOutcome::Pinned,
            _ => {}
        }
        let own = &self.stored[&generation];
        if until.is_none() {
            let is_hard = |key: &str| self.pins.get(key).is_some_and(|(until, _)| until.is_none());
            let others = self.readable.iter().filter(|(key, _)| is_hard(key)).map(|(_, other)| self.stored[other].run);
            let held: u64 = others.filter(|run| run.0 == own.run.0).map(|run| run.2).sum();
            let lent = self.nodes.values().find(|lent| lent.segment == own.run.0).expect("a segment of the pool");
            if held + own.run.2 > lent.bytes * u64::from(SETTINGS.hard_pin_ppm) / 1_000_000 {
                return PinOutcome::PinOverQuota;
            }
        }
        self.uses += 1;
        self.pins.insert(key.to_owned(), (until, self.uses));
        self.touch(generation);
        PinOutcome::Pinned
    }

    /// Pins of keys that are no longer readable are over.
    fn forget_pins(&mut self) {
        self.pins.retain(|key, _| self.readable.contains_key(key));
    }

    /// When an object goes, among all that may: without a pin by last use, then under soft pins by their end.
    fn rank(&self, stored: &Stored) -> Option<(u8, u64, u64)> {
        if stored.leases > 0 {
            return None;
        }
        let readable = self.readable.get(&stored.key).is_some_and(|own| self.stored[own].run == stored.run);
        match self.pins.get(&stored.key).filter(|_| readable) {
            None => Some((0, stored.used, 0)),
            Some((None, _)) => None,
            Some((Some(until), number)) => Some((1, *until, *number)),
        }
    }

    pub(super) fn look(&self, key: &str) -> LocateOutcome {
        match self.readable.contains_key(key) {
            true => LocateOutcome::Located,
            false if self.tickets.values().any(|ticket| ticket.key == key) => LocateOutcome::LocatePending,
            false => LocateOutcome::LocateAbsent,
        }
    }

    /// What a reservation must come to, if that does not depend on space.
    pub(super) fn reserve_without_space(&mut self, key: &str, payload: u64, exclusive: bool) -> Option<ReserveOutcome> {
        match self.look(key) {
            LocateOutcome::Located => {
                self.touch(self.readable[key]);
                Some(ReserveOutcome::ReservePresent)
            }
            LocateOutcome::LocatePending if exclusive => Some(ReserveOutcome::ReservePending),
            _ if self.nodes.is_empty() => Some(ReserveOutcome::ReserveNoSpace),
            _ if self.nodes.values().all(|lent| extent_bytes(payload) > lent.bytes) => {
                Some(ReserveOutcome::ReserveTooLarge)
            }
            _ => None,
        }
    }

    /// Runs in use without those of objects of a rank below this.
    fn taken_without(&self, rank: Option<(u8, u64, u64)>) -> Vec<Run> {
        let stays = |stored: &&Stored| rank.is_none_or(|rank| self.rank(stored).is_none_or(|own| own >= rank));
        let stored = self.stored.values().filter(stays).map(|stored| stored.run);
        stored
            .chain(self.tickets.values().map(|ticket| ticket.run))
            .chain(self.resting.iter().map(|(_, run)| *run))
            .collect()
    }

    fn taken(&self) -> Vec<Run> {
        self.taken_without(None)
    }

    fn longest_hole(&self, lent: &Lent, taken: &[Run]) -> u64 {
        let mut own: Vec<Run> = taken.iter().copied().filter(|run| run.0 == lent.segment).collect();
        own.push((lent.segment, lent.bytes, 0));
        own.sort_unstable();
        let mut end = 0;
        let mut longest = 0;
        for (_, offset, bytes) in own {
            longest = longest.max(offset - end);
            end = offset + bytes;
        }
        if lent.usable_from <= self.now { longest } else { 0 }
    }

    /// Whether an extent fits somewhere, on one node or on any, without the objects of a rank below this.
    pub(super) fn fits(&self, payload: u64, node: Option<u64>, without: Option<(u8, u64, u64)>) -> bool {
        let taken = self.taken_without(without);
        let asked = self.nodes.iter().filter(|(id, _)| node.is_none_or(|node| node == **id));
        asked.into_iter().any(|(_, lent)| self.longest_hole(lent, &taken) >= extent_bytes(payload))
    }

    pub(super) fn node_of(&self, segment: u64) -> Option<u64> {
        self.nodes.iter().find(|(_, lent)| lent.segment == segment).map(|(id, _)| *id)
    }

    /// The core evicted these keys so that a payload fits: never a leased one, all on one segment; the newest of them is
    /// as old as it can be, and none went in vain.
    pub(super) fn evict_for(&mut self, keys: &BTreeSet<String>, payload: u64) {
        let victims: Vec<Stored> = keys.iter().map(|key| self.stored[&self.readable[key]].clone()).collect();
        assert!(victims.iter().all(|victim| self.rank(victim).is_some()), "a leased or hard-pinned object went");
        let Some(newest) = victims.iter().filter_map(|victim| self.rank(victim)).max() else { return };
        assert!(newest.0 == 0 || !self.fits(payload, None, Some(WITHOUT_PINS)), "a pin was given up in vain");
        let segment = victims[0].run.0;
        assert!(victims.iter().all(|victim| victim.run.0 == segment));
        let lent = self.nodes.values().find(|lent| lent.segment == segment).expect("a segment of the pool");
        let hole_without = |gone: &dyn Fn(&Stored) -> bool| {
            let kept = self.stored.values().filter(|stored| !gone(stored)).map(|stored| stored.run);
            let others = self.taken().into_iter().filter(|run| self.stored.values().all(|stored| stored.run != *run));
            self.longest_hole(lent, &kept.chain(others).collect::<Vec<_>>())
        };
        let older = hole_without(&|stored| self.rank(stored).is_some_and(|rank| rank < newest));
        let any_age = self.any_age && newest.0 == 0;
        assert!(any_age || older < extent_bytes(payload), "a newer object went than had to");
        for spared in keys {
            let without =
                hole_without(&|stored| keys.contains(&stored.key) && stored.leases == 0 && stored.key != *spared);
            assert!(without < extent_bytes(payload), "{spared} went in vain");
        }
        for key in keys {
            let generation = self.readable.remove(key).unwrap();
            self.stored.remove(&generation);
        }
        self.forget_pins();
    }

    /// The core evicted these keys: never a leased one, and of each segment the least recently used.
    pub(super) fn evict(&mut self, keys: &BTreeSet<String>) {
        for key in keys {
            let victim = self.stored[&self.readable[key]].clone();
            assert!(self.rank(&victim).is_some_and(|rank| rank.0 == 0), "{key} was evicted under a lease or pin");
            let may_go = |other: &&Stored| self.rank(other).is_some_and(|rank| rank.0 == 0);
            for other in self.stored.values().filter(may_go).filter(|other| other.run.0 == victim.run.0) {
                assert!(other.used >= victim.used || keys.contains(&other.key), "{key} went before {}", other.key);
            }
        }
        for key in keys {
            let generation = self.readable.remove(key).unwrap();
            self.stored.remove(&generation);
        }
    }

    pub(super) fn reserved(&mut self, id: u64, client: u64, key: &str, run: Run, payload_bytes: u64) {
        let lent = self.nodes.values().find(|lent| lent.segment == run.0).expect("a segment of the pool");
        assert!(lent.usable_from <= self.now && run.1 + run.2 <= lent.bytes && run.1.is_multiple_of(64));
        for (segment, offset, bytes) in self.taken() {
            assert!(segment != run.0 || offset + bytes <= run.1 || run.1 + run.2 <= offset, "space given out twice");
        }
        let ticket = Ticket { client, key: key.to_owned(), run, payload_bytes, deadline: self.now + TTL };
        assert!(self.tickets.insert(id, ticket).is_none());
    }

    pub(super) fn seal(&mut self, client: u64, ids: &[u64]) -> Vec<SealOutcome> {
        let mut sealed = Vec::new();
        let outcomes = ids.iter().map(|id| {
            if self.tickets.get(id).is_none_or(|ticket| ticket.client != client) {
                return SealOutcome::SealLost;
            }
            let Ticket { key, run, payload_bytes, .. } = self.tickets.remove(id).unwrap();
            if self.readable.contains_key(&key) {
                return SealOutcome::SealPresent;
            }
            self.readable.insert(key.clone(), *id);
            self.stored.insert(*id, Stored { key, run, payload_bytes, leases: 0, used: 0 });
            sealed.push(*id);
            SealOutcome::Sealed
        });
        let outcomes = outcomes.collect();
        for generation in sealed.into_iter().rev() {
            self.touch(generation);
        }
        outcomes
    }

    pub(super) fn abort(&mut self, client: u64, ids: &[u64]) {
        self.tickets.retain(|id, ticket| ticket.client != client || !ids.contains(id));
    }

    /// The generations a locate must find, in order.
    pub(super) fn locate(&mut self, client: u64, keys: &[String], lease: Option<u64>) -> Vec<u64> {
        let generations: Vec<u64> = keys.iter().filter_map(|key| self.readable.get(key)).copied().collect();
        for generation in &generations {
            self.stored.get_mut(generation).unwrap().leases += 1;
        }
        assert_eq!(lease.is_some(), !generations.is_empty());
        if let Some(lease) = lease {
            let held = Lease { client, deadline: self.now + LEASE, generations: generations.clone() };
            self.leases.insert(lease, held);
        }
        generations
    }

    pub(super) fn release(&mut self, client: u64, id: u64) {
        if self.leases.get(&id).is_some_and(|lease| lease.client == client) {
            self.end_lease(id);
        }
    }

    pub(super) fn match_prefix(&mut self, keys: &[String]) -> (usize, usize) {
        let present = keys.iter().take_while(|key| self.look(key) == LocateOutcome::Located).count();
        let pending = keys.iter().take_while(|key| self.look(key) != LocateOutcome::LocateAbsent).count();
        for key in keys[..present].iter().rev() {
            self.touch(self.readable[key]);
        }
        (present, pending)
    }

    pub(super) fn remove(&mut self, key: &str) -> bool {
        let Some(generation) = self.readable.remove(key) else { return false };
        self.pins.remove(key);
        if self.stored[&generation].leases == 0 {
            self.stored.remove(&generation);
        }
        true
    }

    pub(super) fn is_stale(&self, node: u64, incarnation: u64) -> bool {
        self.newest.get(&node).is_some_and(|newest| incarnation < *newest)
    }

    pub(super) fn is_joined(&self, node: u64, incarnation: u64) -> bool {
        self.nodes.get(&node).is_some_and(|lent| lent.incarnation == incarnation)
    }

    /// Whether it was joined, and neither is nor was in a later life.
    pub(super) fn has_left(&self, node: u64, incarnation: u64) -> bool {
        !self.is_joined(node, incarnation) && self.newest.get(&node) == Some(&incarnation)
    }

    pub(super) fn join(&mut self, node: u64, incarnation: u64, segment: u64, bytes: u64, rests: bool) {
        self.drop_node(node);
        let usable_from = if rests { self.now + TTL } else { self.now };
        self.nodes.insert(node, Lent { incarnation, segment, bytes, usable_from, heard: self.now });
        self.newest.insert(node, incarnation);
    }

    pub(super) fn heard(&mut self, node: u64) {
        self.nodes.get_mut(&node).unwrap().heard = self.now;
    }

    pub(super) fn drop_node(&mut self, node: u64) {
        let Some(lent) = self.nodes.remove(&node) else { return };
        self.stored.retain(|_, stored| stored.run.0 != lent.segment);
        self.readable.retain(|_, generation| self.stored.contains_key(generation));
        self.tickets.retain(|_, ticket| ticket.run.0 != lent.segment);
        self.resting.retain(|(_, run)| run.0 != lent.segment);
        self.forget_pins();
    }

    /// Bytes in use and bytes lent of every node.
    pub(super) fn bytes(&self) -> Vec<(u64, u64)> {
        let taken = self.taken();
        let used = |lent: &Lent| taken.iter().filter(|run| run.0 == lent.segment).map(|run| run.2).sum();
        self.nodes.values().map(|lent| (used(lent), lent.bytes)).collect()
    }

    /// A tick evicted these keys: only on nodes above the high watermark, and down to the low one.
    pub(super) fn tick(&mut self, evicted: &BTreeSet<String>) {
        let of = |bytes: u64, ppm: u32| bytes * u64::from(ppm) / 1_000_000;
        let before = self.bytes();
        let segments: Vec<u64> = self.nodes.values().map(|lent| lent.segment).collect();
        let victims: BTreeSet<u64> = evicted.iter().map(|key| self.stored[&self.readable[key]].run.0).collect();
        let smallest = |segment: u64| {
            let own = evicted.iter().map(|key| &self.stored[&self.readable[key]]).filter(|s| s.run.0 == segment);
            own.max_by_key(|stored| stored.used).map_or(0, |last| last.run.2)
        };
        let last: Vec<u64> = segments.iter().map(|segment| smallest(*segment)).collect();
        self.evict(evicted);
        for (index, (used, bytes)) in self.bytes().into_iter().enumerate() {
            let over = before[index].0 > of(bytes, SETTINGS.high_watermark_ppm);
            assert!(over || !victims.contains(&segments[index]), "evicted below the high watermark");
            let low = of(bytes, SETTINGS.low_watermark_ppm);
            let may_go = |stored: &Stored| self.rank(stored).is_some_and(|rank| rank.0 == 0);
            let idle = self.stored.values().any(|stored| stored.run.0 == segments[index] && may_go(stored));
            assert!(!over || used <= low || !idle, "stopped above the low watermark");
            assert!(last[index] == 0 || used + last[index] > low, "evicted more than needed");
        }
    }
}
