use LocateOutcome::{LocateAbsent, Located};
use ReserveOutcome::{ReserveNoSpace, ReservePresent, Reserved};
use memcache_types::payload_bytes_max;

use super::*;

impl Pool {
    /// A reader found these replicas damaged.
    fn damage(&mut self, found: &[(&str, Found)]) -> Vec<bool> {
        let keys: Vec<&str> = found.iter().map(|(key, _)| *key).collect();
        let keys = batch(&keys);
        let segments: Vec<u64> = found.iter().map(|(_, found)| found.address.segment().get()).collect();
        let generations: Vec<u64> = found.iter().map(|(_, found)| found.generation.get()).collect();
        self.with(|core, now, effects| core.take_damage(now, &keys, &segments, &generations, effects)).unwrap()
    }

    fn found(&mut self, key: &str) -> Found {
        let located = self.locate(BOB, &[key]);
        self.release(BOB, located.lease);
        located.found[0]
    }
}

#[test]
fn a_key_whose_only_replica_is_damaged_can_be_put_again() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a", "b"], 10);
    assert_eq!(pool.reserve(&["a"], 10).outcomes, [ReservePresent]);
    let found = pool.found("a");
    assert_eq!(pool.damage(&[("a", found)]), [true]);
    assert_eq!((pool.exist("a"), pool.exist("b")), (LocateAbsent, Located));
    assert!(pool.effects.contains(&Effect::Damaged { replicas: 1 }));
    assert_eq!(pool.damage(&[("a", found)]), [false], "told once more");
    assert_eq!(pool.reserve(&["a"], 10).outcomes, [Reserved]);
}

#[test]
fn only_the_very_replica_that_was_read_is_forgotten() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a"], 10);
    let old = pool.found("a");
    pool.remove(&["a"]);
    pool.put(&["a"], 10);
    assert_eq!(pool.damage(&[("a", old), ("x", old)]), [false, false]);
    assert_eq!(pool.exist("a"), Located);
    assert!(!pool.effects.iter().any(|effect| matches!(effect, Effect::Damaged { .. })));
}

#[test]
fn what_others_still_read_keeps_its_space_until_they_let_go() {
    let mut pool = Pool::new(&[MIB]);
    let large = payload_bytes_max(MIB);
    pool.put(&["a"], large);
    let found = pool.found("a");
    let lease = pool.locate(ALICE, &["a"]).lease;
    assert_eq!(pool.damage(&[("a", found)]), [true]);
    assert_eq!(pool.reserve(&["a"], large).outcomes, [ReserveNoSpace]);
    pool.release(ALICE, lease);
    assert_eq!(pool.reserve(&["a"], large).outcomes, [Reserved]);
}

#[test]
fn a_key_with_another_replica_gets_the_damaged_one_back() {
    let mut pool = Pool::new(&[MIB, MIB]);
    let tickets = pool.reserve_replicas(ALICE, &["a"], 100, 2, &[]).tickets;
    assert_eq!(pool.seal(ALICE, &tickets), [SealOutcome::Sealed; 2]);
    let found = pool.found("a");
    assert_eq!(pool.damage(&[("a", found)]), [true]);
    assert_eq!(pool.exist("a"), Located);
    assert_ne!(pool.found("a").generation, found.generation);
    assert!(pool.heartbeat(1, 1).is_ok());
    assert_eq!(pool.status().repairs_waiting, 1);
}

#[test]
fn arrays_of_other_lengths_are_refused_by_name() {
    let mut pool = Pool::new(&[MIB]);
    let keys = batch(&["a", "b"]);
    let refused = pool.with(|core, now, effects| core.take_damage(now, &keys, &[1], &[1, 2], effects)).unwrap_err();
    assert_eq!(refused.to_string(), "an array of the damage has 1 elements, want 2");
}
