//! Readers tell of damage: what lies in a place is not what was sealed there.

use memcache_types::{KeyBatch, SegmentId};

use super::Core;
use super::clock::Millis;
use super::effect::Effect;
use super::refusal::Refusal;

impl Core {
    /// Forgets replicas that a reader found damaged while its lease was good; whether each was known. Only the replica of
    /// exactly this generation in this segment goes: whatever was put there since stays. A key that has another replica
    /// gets this one back, copied from that; one that has none is absent, so that the next put of it is stored.
    pub fn take_damage(
        &mut self,
        now: Millis,
        keys: &KeyBatch,
        segments: &[u64],
        generations: &[u64],
        effects: &mut Vec<Effect>,
    ) -> Result<Vec<bool>, Refusal> {
        self.advance(now, effects);
        for numbers in [segments, generations] {
            if numbers.len() != keys.len() {
                let (found, want) = (numbers.len(), keys.len());
                return Err(Refusal::Length { what: "an array of the damage", found, want });
            }
        }
        let claims = keys.iter().zip(segments).zip(generations);
        let forgotten: Vec<bool> =
            claims.map(|((key, segment), generation)| self.forget_damaged(key, *segment, *generation)).collect();
        let replicas = forgotten.iter().filter(|known| **known).count() as u64;
        if replicas > 0 {
            effects.push(Effect::Damaged { replicas });
        }
        Ok(forgotten)
    }

    fn forget_damaged(&mut self, key: &[u8], segment: u64, generation: u64) -> bool {
        let lent = self.segment_ids.get(&SegmentId::new(segment)).copied();
        lent.is_some_and(|segment| self.lose_replica(key, segment, generation))
    }
}
