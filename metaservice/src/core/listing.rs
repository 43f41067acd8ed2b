//! Nodes tell what their memory holds: after a restart of the service, after a partition, after a restart of theirs.

use std::num::NonZeroU64;

use memcache_types::limits::{EXTENT_ALIGN, OBJECT_BYTES_MAX};
use memcache_types::{Incarnation, KeyBatch, KeyDigest, NodeId, SegmentId, extent_bytes};

use super::Core;
use super::clock::Millis;
use super::effect::Effect;
use super::limits::KEYS_MAX;
use super::object::Object;
use super::refusal::Refusal;
use super::segment::Segment;
use super::slab::Slot;

/// Some of what a segment holds. The arrays run parallel to the keys.
#[derive(Clone, Copy, Debug)]
pub struct Holdings<'a> {
    /// Whose.
    pub node: NodeId,
    /// In which life.
    pub incarnation: Incarnation,
    /// The segment.
    pub segment: SegmentId,
    /// The keys, those written first before the others.
    pub keys: &'a KeyBatch,
    /// First bytes.
    pub offsets: &'a [u64],
    /// Lengths of the payloads.
    pub payload_bytes: &'a [u64],
    /// What the trailers say.
    pub generations: &'a [u64],
    /// Generations of the puts that the bytes come from.
    pub origins: &'a [u64],
    /// How many replicas the keys should have.
    pub wanted: &'a [u32],
    /// Places of the records in the table.
    pub records: &'a [u32],
    /// This was all, and the node has cleared every other record of its table: the segment may be used when it has rested.
    pub done: bool,
    /// Everything that the table named when the node joined was told, and the records of what was not kept are cleared.
    pub told: bool,
    /// The other way round: these were kept, and are no longer there.
    pub gone: bool,
}

/// What became of [`Holdings`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Whether each is readable now, just as it was listed. The node clears the records of the others.
    pub kept: Vec<bool>,
}

/// One object as listed.
struct Claim<'a> {
    key: &'a [u8],
    offset: u64,
    payload_bytes: u64,
    serial: NonZeroU64,
    origin: u64,
    wanted: u32,
    record: u32,
}

impl Core {
    /// Takes up what a node says its memory holds. Each claim is judged alone and none is trusted: one that reaches
    /// beyond the segment, meets another, names an impossible generation or a removed object is refused. Of two objects
    /// of one key that do not come from the same put the later put one stays. The same claim again has the same answer.
    pub fn take_holdings(
        &mut self,
        now: Millis,
        holdings: &Holdings<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<Listed, Refusal> {
        self.advance(now, effects);
        let count = holdings.keys.len();
        let numbers = [holdings.offsets, holdings.payload_bytes, holdings.generations, holdings.origins];
        let lengths = numbers.map(<[u64]>::len).into_iter().chain([holdings.wanted.len(), holdings.records.len()]);
        if let Some(found) = lengths.into_iter().find(|found| *found != count) {
            return Err(Refusal::Length { what: "the arrays of the holdings", found, want: count });
        }
        let slot = self.lent_segment(holdings)?;
        let mut kept = Vec::with_capacity(count);
        let doubtful = self.doubtful;
        for (at, key) in holdings.keys.iter().enumerate() {
            let serial = NonZeroU64::new(holdings.generations[at]);
            let claim = serial.map(|serial| Claim {
                key,
                offset: holdings.offsets[at],
                payload_bytes: holdings.payload_bytes[at],
                serial,
                origin: holdings.origins[at],
                wanted: holdings.wanted[at],
                record: holdings.records[at],
            });
            kept.push(claim.is_some_and(|claim| {
                if self.outlive_id("generations", claim.serial.get()).is_err() {
                    return false;
                }
                if holdings.gone { self.drop_claim(slot, &claim) } else { self.take_claim(slot, &claim) }
            }));
        }
        let objects = self.doubtful - doubtful;
        if objects > 0 {
            effects.push(Effect::Doubtful { node: holdings.node, incarnation: holdings.incarnation, objects });
        }
        if holdings.told || holdings.done {
            self.untold.remove(&holdings.segment);
        }
        if holdings.done
            && let Some(rest_until) = self.segments[slot].listing.take()
        {
            self.end_listing(slot, rest_until);
            let (node, objects) = (holdings.node, self.segments[slot].readable_objects());
            effects.push(Effect::Listed { node, incarnation: holdings.incarnation, objects });
        }
        Ok(Listed { kept })
    }

    /// The segment if it is this node's.
    fn lent_segment(&mut self, holdings: &Holdings<'_>) -> Result<Slot<Segment>, Refusal> {
        let (node, claimed) = (holdings.node, holdings.incarnation);
        self.check_incarnation(node, claimed)?;
        // Not an answer to the claims: a node clears the records of what is refused.
        let not_lent = Refusal::NotLent { node, segment: holdings.segment };
        let Some(slot) = self.segment_ids.get(&holdings.segment).copied() else { return Err(not_lent) };
        let owner = &mut self.nodes[self.segments[slot].node];
        if (owner.id, owner.incarnation) != (node, claimed) {
            return Err(not_lent);
        }
        owner.heard = self.now;
        Ok(slot)
    }

    fn take_claim(&mut self, segment: Slot<Segment>, claim: &Claim<'_>) -> bool {
        let entry = self.index.find(claim.key).filter(|entry| self.bury_of(*entry));
        if let Some(entry) = entry {
            if let Some(same) = self.chain(entry).find(|slot| self.objects[*slot].serial == claim.serial) {
                let object = &self.objects[same];
                return (object.segment, object.offset) == (Some(segment), claim.offset)
                    && object.record.is_some_and(|record| record.number() == claim.record);
            }
            let (node, origin) = (self.segments[segment].node, self.index.origin(entry));
            let is_there = self.is_later(origin, claim.origin) || origin == claim.origin && self.holds(node, entry);
            if self.index.get(entry).object.is_some() && is_there {
                return false;
            }
        }
        let is_new_key = entry.is_none();
        if !self.is_sound(segment, claim) || (is_new_key && self.index.len() >= KEYS_MAX) {
            return false;
        }
        let hash = entry.map_or_else(|| KeyDigest::of(claim.key).low(), |entry| self.index.get(entry).hash());
        let is_own = self.is_own(claim.origin);
        if self.removals.cover(hash, claim.origin, is_own) {
            return false;
        }
        if self.removals.forgot(self.segments[segment].seen, claim.origin, is_own) {
            self.doubtful += 1;
            return false;
        }
        if !self.segments[segment].space.take_at(claim.offset, extent_bytes(claim.payload_bytes)) {
            return false;
        }
        self.insert_claim(segment, claim);
        true
    }

    /// A writer of an earlier life was at work in the space of an object that was taken up: its node looked again when
    /// the memory had rested. False: it is not readable.
    fn drop_claim(&mut self, segment: Slot<Segment>, claim: &Claim<'_>) -> bool {
        if self.segments[segment].listing.is_some() {
            self.lose_replica(claim.key, segment, claim.serial.get());
        }
        false
    }

    fn is_sound(&self, segment: Slot<Segment>, claim: &Claim<'_>) -> bool {
        let lent = &self.segments[segment];
        let bytes = extent_bytes(claim.payload_bytes);
        lent.listing.is_some()
            && claim.origin != 0
            && claim.origin <= claim.serial.get()
            && claim.payload_bytes <= OBJECT_BYTES_MAX
            && claim.offset.is_multiple_of(EXTENT_ALIGN)
            && claim.offset.checked_add(bytes).is_some_and(|end| end <= lent.space.bytes())
            && claim.record < lent.table.place.records
            && !lent.table.is_claimed(claim.record)
    }

    fn insert_claim(&mut self, segment: Slot<Segment>, claim: &Claim<'_>) {
        let entry = self.index.find_or_insert(claim.key);
        let is_later = self.index.get(entry).object.is_some() && self.is_later(claim.origin, self.index.origin(entry));
        let older: Vec<_> = if is_later { self.chain(entry).collect() } else { Vec::new() };
        // The key stays known meanwhile.
        self.index.get_mut(entry).add_writer();
        for object in older {
            self.remove_object(object);
        }
        self.index.get_mut(entry).remove_writer();
        if self.index.get(entry).object.is_none() {
            self.index.set_origin(entry, claim.origin);
            self.index.get_mut(entry).want(claim.wanted as usize);
        }
        let record = self.segments[segment].table.claim(claim.record);
        let object = self.objects.insert(Object::new(segment, claim.offset, claim.payload_bytes, claim.serial, record));
        self.attach(entry, object);
        // Listed from the first to the last written: that stands for the order of use, which nobody knows any more.
        self.count_seal(object);
        self.make_idle(object);
        self.settle(entry);
    }
}
