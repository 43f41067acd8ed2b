//! Pins: keys that are kept from eviction, for a time ("soft") or until they are unpinned ("hard").
//!
//! A pin belongs to a key and holds all its replicas, those that are copied later included. What there is to know of it is
//! in tables of their own: a key without one pays a bit. Idle pinned objects stand in no list that eviction looks at.

use std::collections::{BTreeMap, BTreeSet};

use memcache_proto::pb::PinOutcome;
use memcache_types::KeyBatch;

use super::Core;
use super::clock::Millis;
use super::effect::Effect;
use super::index::Entry;
use super::limits::{CALL_PINS_ENDED_MAX, PIN_MS_MAX, PINS_MAX};
use super::list::List;
use super::node::Node;
use super::object::Object;
use super::refusal::Refusal;
use super::slab::Slot;

/// How long a key is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pin {
    /// `None`: until it is unpinned.
    until: Option<Millis>,
    /// Of pins that end at the same time those of lower number go first: a chain from its tail.
    number: u64,
}

/// When the soft pin of an object ends and its number: the order in which such pins are given up.
pub(super) type Turn = (Millis, u64);

impl Pin {
    pub(super) const fn is_soft(&self) -> bool {
        self.until.is_some()
    }
}

/// All pins.
#[derive(Debug, Default)]
pub(super) struct Pins {
    by_entry: BTreeMap<Slot<Entry>, Pin>,
    /// The soft ones by when they end.
    ends: BTreeSet<(Millis, u64, Slot<Entry>)>,
    /// Soft pins that ended early because a put had no room.
    pub(super) given_up: u64,
}

impl Pins {
    pub(super) fn soft(&self) -> u64 {
        self.ends.len() as u64
    }

    pub(super) fn hard(&self) -> u64 {
        (self.by_entry.len() - self.ends.len()) as u64
    }
}

/// The pinned objects of one segment.
#[derive(Debug)]
pub(super) struct Pinned {
    /// Without leases, under soft pins, in the order in which they are given up.
    soft: BTreeSet<(Millis, u64, Slot<Object>)>,
    /// Their extents.
    pub(super) soft_idle_bytes: u64,
    /// Without leases, under hard pins.
    hard: List<Object>,
    /// Their extents.
    pub(super) hard_idle_bytes: u64,
    /// Extents of all readable objects under soft and under hard pins.
    pub(super) soft_bytes: u64,
    /// See `soft_bytes`.
    pub(super) hard_bytes: u64,
}

impl Pinned {
    pub(super) const fn new() -> Self {
        Self {
            soft: BTreeSet::new(),
            soft_idle_bytes: 0,
            hard: List::new(),
            hard_idle_bytes: 0,
            soft_bytes: 0,
            hard_bytes: 0,
        }
    }

    /// When the first soft pin of an idle object ends, and the object.
    pub(super) fn first_soft(&self) -> Option<(Millis, Slot<Object>)> {
        self.soft.first().map(|(until, _, object)| (*until, *object))
    }

    /// Idle objects under soft pins, in the order in which they are given up.
    pub(super) fn iter_soft(&self) -> impl Iterator<Item = Slot<Object>> + '_ {
        self.soft.iter().map(|(_, _, object)| *object)
    }

    /// The same, each with its turn: those of lesser turns go before.
    pub(super) fn iter_soft_turns(&self) -> impl Iterator<Item = (Turn, Slot<Object>)> + '_ {
        self.soft.iter().map(|(until, number, object)| ((*until, *number), *object))
    }

    /// All idle ones.
    pub(super) fn iter<'a>(&'a self, slab: &'a super::Slab<Object>) -> impl Iterator<Item = Slot<Object>> + 'a {
        self.hard.iter(slab).chain(self.iter_soft())
    }

    /// Any idle one.
    pub(super) fn any(&self) -> Option<Slot<Object>> {
        self.hard.oldest().or_else(|| self.iter_soft().next())
    }
}

/// The pin of a key, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinReport {
    /// It ends in so many milliseconds, or when a put has no room otherwise.
    Soft {
        /// How many.
        left_ms: u64,
    },
    /// It lasts until it is unpinned.
    Hard,
}

impl Core {
    /// Keeps readable keys from eviction: for `ttl_ms`, or with `None` until they are unpinned, as far as the quota of
    /// every node with a replica allows. A pin that is there already never becomes shorter or softer.
    pub fn pin(
        &mut self,
        now: Millis,
        keys: &KeyBatch,
        ttl_ms: Option<u64>,
        effects: &mut Vec<Effect>,
    ) -> Result<Vec<PinOutcome>, Refusal> {
        self.advance(now, effects);
        if let Some(value) = ttl_ms.filter(|ms| !(1..=PIN_MS_MAX).contains(ms)) {
            return Err(Refusal::Value { what: "ttl_ms", value, want: "1 to 2592000000 (30 days)" });
        }
        if self.pins.by_entry.len() + keys.len() > PINS_MAX {
            self.finish_sweep();
        }
        let all = self.pins.by_entry.len() + keys.len();
        if all > PINS_MAX {
            return Err(Refusal::Limit { what: "pins", found: all as u64, limit: PINS_MAX as u64 });
        }
        let until = ttl_ms.map(|ms| self.now.plus(ms));
        if until.is_none() {
            // A batch is a chain: where the quota does not reach for all of it the head counts.
            return Ok(keys.iter().map(|key| self.pin_one(key, until)).collect());
        }
        // Its tail goes before its head.
        let mut outcomes: Vec<_> = (0..keys.len()).rev().map(|at| self.pin_one(keys.get(at), until)).collect();
        outcomes.reverse();
        Ok(outcomes)
    }

    fn pin_one(&mut self, key: &[u8], until: Option<Millis>) -> PinOutcome {
        let known = self.index.find(key).filter(|entry| self.bury_of(*entry));
        let Some(entry) = known.filter(|entry| self.index.get(*entry).object.is_some()) else {
            return PinOutcome::PinAbsent;
        };
        let before = self.pins.by_entry.get(&entry).copied();
        let stays = match (before, until) {
            (Some(Pin { until: None, .. }), _) => true,
            (Some(Pin { until: Some(before), .. }), Some(until)) => before > until,
            _ => false,
        };
        if stays {
            return PinOutcome::Pinned;
        }
        if until.is_none() && !self.has_quota(entry) {
            self.finish_sweep();
        }
        if until.is_none() && !self.has_quota(entry) {
            return PinOutcome::PinOverQuota;
        }
        let number = self.next_use();
        self.change_pin(entry, Some(Pin { until, number }));
        PinOutcome::Pinned
    }

    /// Ends pins; whether each key had one.
    pub fn unpin(&mut self, now: Millis, keys: &KeyBatch, effects: &mut Vec<Effect>) -> Vec<bool> {
        self.advance(now, effects);
        let mut unpinned = vec![false; keys.len()];
        for position in (0..keys.len()).rev() {
            let entry = self.index.find(keys.get(position)).filter(|entry| self.bury_of(*entry));
            if let Some(entry) = entry.filter(|entry| self.index.get(*entry).is_pinned()) {
                self.change_pin(entry, None);
                unpinned[position] = true;
            }
        }
        unpinned
    }

    /// Whether a hard pin of a key stays within the quota of every node that has a replica of it.
    fn has_quota(&self, entry: Slot<Entry>) -> bool {
        self.chain(entry).all(|object| {
            let Some(node) = self.node_of(object) else { return true };
            self.hard_bytes_of(node) + self.objects[object].extent_bytes() <= self.pin_quota_of(node)
        })
    }

    fn hard_bytes_of(&self, node: Slot<Node>) -> u64 {
        self.nodes[node].segments.iter().map(|slot| self.segments[*slot].pinned.hard_bytes).sum()
    }

    /// What hard pins may hold of a node's memory, in bytes.
    pub(super) fn pin_quota_of(&self, node: Slot<Node>) -> u64 {
        let own = self.nodes[node].segments.iter().map(|slot| self.segments[*slot].space.bytes());
        let quota = own.map(u128::from).sum::<u128>() * u128::from(self.settings.hard_pin_ppm) / 1_000_000;
        u64::try_from(quota).unwrap_or(u64::MAX)
    }

    /// The pin that holds an object.
    fn pin_of(&self, slot: Slot<Object>) -> Option<Pin> {
        if self.pins.by_entry.is_empty() {
            return None;
        }
        let entry = self.objects[slot].entry.filter(|entry| self.index.get(*entry).is_pinned())?;
        self.pins.by_entry.get(&entry).copied()
    }

    /// Whether an object may be evicted now; of those under soft pins those whose turn comes by `turn`.
    pub(super) fn may_go(&self, slot: Slot<Object>, turn: Option<Turn>) -> bool {
        let pin_may_go = |pin: Pin| pin.until.zip(turn).is_some_and(|(until, turn)| (until, pin.number) <= turn);
        self.is_idle(slot) && self.pin_of(slot).is_none_or(pin_may_go)
    }

    /// Puts an idle object among the pinned ones if it is pinned; whether it is.
    pub(super) fn keep_idle(&mut self, slot: Slot<Object>) -> bool {
        let Some(Pin { until, number }) = self.pin_of(slot) else { return false };
        let object = &self.objects[slot];
        let bytes = object.extent_bytes();
        if let Some(segment) = object.segment {
            let pinned = &mut self.segments[segment].pinned;
            if let Some(until) = until {
                pinned.soft.insert((until, number, slot));
                pinned.soft_idle_bytes += bytes;
            } else {
                pinned.hard.push(&mut self.objects, slot);
                pinned.hard_idle_bytes += bytes;
            }
        }
        true
    }

    /// Takes an idle object out of the pinned ones if it is pinned; whether it is.
    pub(super) fn release_idle(&mut self, slot: Slot<Object>) -> bool {
        let Some(Pin { until, number }) = self.pin_of(slot) else { return false };
        let object = &self.objects[slot];
        let bytes = object.extent_bytes();
        if let Some(segment) = object.segment {
            let pinned = &mut self.segments[segment].pinned;
            if let Some(until) = until {
                pinned.soft.remove(&(until, number, slot));
                pinned.soft_idle_bytes -= bytes;
            } else {
                pinned.hard.unlink(&mut self.objects, slot);
                pinned.hard_idle_bytes -= bytes;
            }
        }
        true
    }

    /// A replica of a key is there from now on, or no longer: it counts where it is if it is pinned.
    pub(super) fn count_pinned(&mut self, slot: Slot<Object>, there: bool) {
        let Some(pin) = self.pin_of(slot) else { return };
        let bytes = self.objects[slot].extent_bytes();
        let Some(segment) = self.objects[slot].segment else { return };
        let pinned = &mut self.segments[segment].pinned;
        let count = if pin.until.is_some() { &mut pinned.soft_bytes } else { &mut pinned.hard_bytes };
        *count = if there { *count + bytes } else { *count - bytes };
    }

    /// Gives a key another pin, or none. That is a use.
    fn change_pin(&mut self, entry: Slot<Entry>, pin: Option<Pin>) {
        let chain: Vec<Slot<Object>> = self.chain(entry).collect();
        let idle: Vec<bool> = chain.iter().map(|object| self.is_idle(*object)).collect();
        for (object, idle) in chain.iter().zip(&idle) {
            if *idle {
                self.leave_idle(*object);
            }
            self.count_pinned(*object, false);
        }
        self.forget_pin(entry);
        if let Some(pin) = pin {
            self.index.get_mut(entry).set_pinned(true);
            self.pins.by_entry.insert(entry, pin);
            if let Some(until) = pin.until {
                self.pins.ends.insert((until, pin.number, entry));
            }
        }
        for (object, idle) in chain.iter().zip(&idle) {
            self.count_pinned(*object, true);
            if *idle {
                self.make_idle(*object);
            }
        }
    }

    /// A key is no longer readable, and its pin is over.
    pub(super) fn forget_pin(&mut self, entry: Slot<Entry>) {
        if !self.index.get(entry).is_pinned() {
            return;
        }
        self.index.get_mut(entry).set_pinned(false);
        let Some(pin) = self.pins.by_entry.remove(&entry) else { return };
        self.count_hidden_pin(entry, pin);
        if let Pin { until: Some(until), number } = pin {
            self.pins.ends.remove(&(until, number, entry));
        }
    }

    /// Pins whose time is over end.
    pub(super) fn end_pins(&mut self) {
        for _ in 0..CALL_PINS_ENDED_MAX {
            let Some((until, _, entry)) = self.pins.ends.first().copied() else { return };
            if until > self.now {
                return;
            }
            self.change_pin(entry, None);
        }
    }

    /// The pin of an object that is about to be evicted is given up: there is no room otherwise.
    pub(super) fn give_pin_up(&mut self, slot: Slot<Object>) {
        if let Some(entry) = self.objects[slot].entry
            && self.index.get(entry).is_pinned()
        {
            self.pins.given_up += 1;
            self.change_pin(entry, None);
        }
    }

    pub(super) fn pin_report(&self, entry: Slot<Entry>) -> Option<PinReport> {
        let pin = self.pins.by_entry.get(&entry)?;
        Some(pin.until.map_or(PinReport::Hard, |until| PinReport::Soft { left_ms: until.since(self.now) }))
    }
}
