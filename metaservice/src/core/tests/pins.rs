use ReserveOutcome::{ReserveNoSpace, Reserved};
use memcache_proto::pb::PinOutcome::{self, PinAbsent, PinOverQuota, Pinned};

use super::*;
use crate::core::limits::PIN_MS_MAX;

const QUARTER: u64 = MIB / 4 - 64;

impl Pool {
    /// Pins keys, softly for so long, or hard.
    pub(super) fn pin(&mut self, keys: &[&str], ttl_ms: Option<u64>) -> Vec<PinOutcome> {
        let keys = batch(keys);
        self.with(|core, now, effects| core.pin(now, &keys, ttl_ms, effects)).unwrap()
    }

    pub(super) fn unpin(&mut self, keys: &[&str]) -> Vec<bool> {
        let keys = batch(keys);
        self.with(|core, now, effects| core.unpin(now, &keys, effects))
    }

    fn pin_of(&mut self, key: &str) -> Option<PinReport> {
        let keys = batch(&[key]);
        self.with(|core, now, effects| core.info(now, &keys, effects))[0].pin
    }

    /// Hard and soft bytes of a node, in the order of joining.
    fn pinned_bytes(&mut self, node: usize) -> (u64, u64) {
        let node = &self.status().nodes[node - 1];
        (node.hard_pinned_bytes, node.soft_pinned_bytes)
    }
}

#[test]
fn a_soft_pin_keeps_a_key_from_eviction_for_its_time() {
    let mut pool = Pool::new(&[MIB]);
    for key in ["a", "b", "c", "d"] {
        pool.put(&[key], QUARTER);
    }
    assert_eq!(pool.pin(&["a", "gone"], Some(100)), [Pinned, PinAbsent]);
    assert_eq!(pool.pin_of("a"), Some(PinReport::Soft { left_ms: 100 }));
    pool.tick();
    pool.put(&["e"], QUARTER);
    assert!(pool.is_there("a") && !pool.is_there("b"), "the oldest one without a pin");
    pool.pass(99);
    assert_eq!(pool.pin_of("a"), Some(PinReport::Soft { left_ms: 1 }));
    pool.pass(1);
    assert_eq!((pool.pin_of("a"), pool.status().soft_pins, pool.pinned_bytes(1)), (None, 0, (0, 0)));
    pool.put(&["f", "g", "h"], QUARTER);
    pool.put(&["i"], QUARTER);
    assert!(!pool.is_there("a"));
}

#[test]
fn soft_pins_are_given_up_before_a_put_has_no_room_the_first_to_end_first() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a", "b", "c", "d"], QUARTER);
    pool.pin(&["a"], Some(300));
    pool.pin(&["b"], Some(100));
    pool.pin(&["c"], Some(200));
    pool.pin(&["d"], None);
    pool.put(&["e"], QUARTER);
    assert!(pool.is_there("a") && !pool.is_there("b") && pool.is_there("c") && pool.is_there("d"));
    assert_eq!(pool.status().pins_given_up, 1);
    pool.pin(&["e"], Some(1000));
    pool.put(&["f"], QUARTER);
    assert!(pool.is_there("a") && !pool.is_there("c") && pool.is_there("e"));
    assert_eq!((pool.status().pins_given_up, pool.status().soft_pins), (2, 2));
}

#[test]
fn of_a_pinned_chain_the_tail_is_given_up_first_and_goes_first_when_its_time_is_over() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["0", "1", "2", "3"], QUARTER);
    pool.pin(&["0", "1", "2", "3"], Some(100));
    pool.put(&["x"], QUARTER);
    assert_eq!(pool.prefix(&["0", "1", "2", "3"]), (3, 3));
    pool.remove(&["x"]);
    pool.pass(100);
    pool.put(&["y", "z"], QUARTER);
    assert_eq!(pool.prefix(&["0", "1", "2"]), (2, 2));
}

#[test]
fn a_pin_is_not_given_up_for_a_further_replica() {
    let mut pool = Pool::new(&[MIB, MIB]);
    pool.put_replicas(&["a", "b", "c", "d"], QUARTER, 1, &[1]);
    pool.pin(&["a", "b", "c", "d"], Some(1000));
    let reply = pool.reserve_replicas(ALICE, &["twice"], QUARTER, 2, &[]);
    assert_eq!((reply.replicas, pool.status().pins_given_up), (vec![1], 0));
}

#[test]
fn a_hard_pin_lasts_until_it_is_unpinned() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a", "b", "c", "d"], QUARTER);
    assert_eq!(pool.pin(&["a"], None), [Pinned]);
    assert_eq!(pool.pin(&["a"], Some(1)), [Pinned], "never softer");
    pool.pass(1_000);
    assert_eq!(pool.pin_of("a"), Some(PinReport::Hard));
    for _ in 0..3 {
        pool.tick();
        pool.put(&["x", "y", "z"], QUARTER);
        pool.remove(&["x", "y", "z"]);
    }
    assert!(pool.is_there("a"));
    assert_eq!(pool.reserve(&["whole"], MIB - 64).outcomes, [ReserveNoSpace]);
    assert_eq!(pool.unpin(&["a", "b"]), [true, false]);
    assert_eq!(pool.reserve(&["whole"], MIB - 64).outcomes, [Reserved]);
    assert!(!pool.is_there("a"));
}

#[test]
fn hard_pins_hold_at_most_their_quota_of_each_node() {
    let mut pool = Pool::new(&[MIB, MIB]);
    pool.put_replicas(&["a", "b"], MIB / 8 - 64, 1, &[1]);
    pool.put_replicas(&["c"], 1, 1, &[1]);
    pool.put_replicas(&["d"], 1, 1, &[2]);
    pool.put_replicas(&["both"], 1, 2, &[1, 2]);
    assert_eq!(pool.pin(&["a", "c", "b", "d"], None), [Pinned, Pinned, PinOverQuota, Pinned], "from the head");
    pool.unpin(&["c"]);
    assert_eq!(pool.pin(&["b", "both"], None), [Pinned, PinOverQuota], "on every node");
    assert_eq!(pool.pin(&["c"], Some(100)), [Pinned], "soft pins have no quota");
    assert_eq!((pool.pinned_bytes(1), pool.pinned_bytes(2)), ((MIB / 4, 128), (128, 0)));
    assert_eq!(pool.status().nodes[0].pin_quota_bytes, MIB / 4);
    pool.unpin(&["b"]);
    assert_eq!(pool.pin(&["c", "both"], None), [Pinned, Pinned]);
    assert_eq!((pool.status().hard_pins, pool.status().soft_pins), (4, 0));
}

#[test]
fn a_pin_is_renewed_and_never_made_shorter() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a"], 1);
    pool.pin(&["a"], Some(100));
    pool.pass(50);
    pool.pin(&["a"], Some(100));
    pool.pin(&["a"], Some(10));
    pool.pass(99);
    assert_eq!(pool.pin_of("a"), Some(PinReport::Soft { left_ms: 1 }));
    let keys = batch(&["a"]);
    for ms in [0, PIN_MS_MAX + 1] {
        let refused = pool.with(|core, now, effects| core.pin(now, &keys, Some(ms), effects)).unwrap_err();
        assert_eq!(refused.to_string(), format!("ttl_ms = {ms}: want 1 to 2592000000 (30 days)"));
    }
}

#[test]
fn a_pinned_key_is_removed_as_any_other_and_its_pin_is_over() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a", "b"], 100);
    pool.pin(&["a"], None);
    pool.pin(&["b"], Some(1000));
    let lease = pool.locate(BOB, &["a"]).lease;
    assert_eq!(pool.remove(&["a"]), [true]);
    pool.release(BOB, lease);
    assert_eq!(pool.with(Core::remove_all).removed, 1);
    assert_eq!((pool.status().hard_pins, pool.status().soft_pins, pool.used_bytes()), (0, 0, 0));
    pool.put(&["a"], 100);
    assert_eq!(pool.pin_of("a"), None);
}

#[test]
fn a_drain_moves_pinned_objects_with_their_pins() {
    let mut pool = Pool::new(&[MIB, MIB, MIB]);
    pool.put_replicas(&["hard", "soft"], 100, 1, &[1]);
    pool.put_replicas(&["twice"], 100, 2, &[1, 2]);
    pool.pin(&["hard", "twice"], None);
    pool.pin(&["soft"], Some(1000));
    pool.drain(1, Some(Drain::Move));
    while pool.repair(2) + pool.repair(3) > 0 {}
    assert!(pool.drained(1).is_empty);
    assert_eq!(pool.pin_of("hard"), Some(PinReport::Hard));
    assert_eq!(pool.pin_of("soft"), Some(PinReport::Soft { left_ms: 1000 }));
    assert_eq!(pool.nodes_of("twice"), [2, 3]);
    let (two, three) = (pool.pinned_bytes(2), pool.pinned_bytes(3));
    assert_eq!((two.0 + three.0, two.1 + three.1), (3 * 192, 192));
    pool.drain(2, Some(Drain::Drop));
    pool.drain(3, Some(Drain::Drop));
    assert_eq!((pool.status().objects, pool.status().hard_pins), (0, 0));
}

#[test]
fn a_pinned_key_gets_lost_replicas_back_and_keeps_them() {
    let mut pool = Pool::new(&[MIB, MIB, MIB]);
    pool.put_replicas(&["a"], QUARTER, 2, &[1, 2]);
    pool.pin(&["a"], None);
    pool.leave(1, 1).unwrap();
    assert_eq!(pool.repair(3), 1);
    assert_eq!((pool.pinned_bytes(1), pool.pinned_bytes(2)), ((MIB / 4, 0), (MIB / 4, 0)), "nodes 2 and 3");
    pool.put_replicas(&["p", "q", "r"], QUARTER, 1, &[2]);
    pool.put_replicas(&["s", "t", "u"], QUARTER, 1, &[3]);
    pool.put(&["v", "w"], QUARTER);
    assert_eq!(pool.nodes_of("a"), [2, 3]);
    pool.leave(2, 1).unwrap();
    pool.leave(3, 1).unwrap();
    pool.pass(1);
    assert_eq!((pool.status().hard_pins, pool.pin_of("a")), (0, None), "they went with their last replicas");
}

/// A segment of one MiB: of every 64 KiB the first 16 are under a hard pin, the others are not.
fn broken_up() -> Pool {
    let mut pool = Pool::new(&[MIB]);
    for number in 0..16 {
        pool.put(&[&format!("pin{number}")], MIB / 64 - 64);
        pool.put(&[&format!("other{number}")], 3 * MIB / 64 - 64);
        assert_eq!(pool.pin(&[&format!("pin{number}")], None), [Pinned]);
    }
    pool
}

#[test]
fn between_hard_pins_there_is_room_for_what_fits_there_and_for_the_rest_when_they_end() {
    let mut pool = broken_up();
    pool.put(&["fits"], 3 * MIB / 64 - 64);
    assert_eq!(pool.status().evicted_objects, 1);
    assert_eq!(pool.reserve(&["long"], MIB / 16 - 64).outcomes, [ReserveNoSpace]);
    assert_eq!(pool.status().evicted_objects, 1, "nothing goes in vain");
    pool.unpin(&["pin7"]);
    pool.put(&["long"], MIB / 16 - 64);
    assert_eq!(pool.status().evicted_objects, 3, "one of either kind made the room");
}

#[test]
fn a_drain_puts_pinned_objects_together_and_what_found_no_run_finds_one() {
    let mut pool = broken_up();
    let names: Vec<String> = (0..16).map(|number| format!("other{number}")).collect();
    pool.remove(&names.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(pool.reserve(&["long"], MIB / 16 - 64).outcomes, [ReserveNoSpace], "three quarters are free");
    pool.join(2, 1, MIB, 0).unwrap();
    pool.drain(1, Some(Drain::Move));
    while pool.repair(2) > 0 {}
    assert!(pool.drained(1).is_empty);
    pool.put(&["long"], 3 * MIB / 4 - 64);
    assert_eq!((pool.status().hard_pins, pool.status().evicted_objects), (16, 0));
}

#[test]
fn soft_pins_and_leases_break_space_up_for_no_longer_than_they_last() {
    let mut pool = Pool::new(&[MIB]);
    for number in 0..16 {
        pool.put(&[&format!("pin{number}")], MIB / 64 - 64);
        pool.put(&[&format!("other{number}")], 3 * MIB / 64 - 64);
    }
    let pins: Vec<String> = (0..16).map(|number| format!("pin{number}")).collect();
    let pins: Vec<&str> = pins.iter().map(String::as_str).collect();
    pool.pin(&pins, Some(100_000));
    let lease = pool.locate(BOB, &pins).lease;
    assert!(lease.is_some());
    assert_eq!(pool.reserve(&["long"], MIB / 16 - 64).outcomes, [ReserveNoSpace]);
    pool.pass(LEASE);
    pool.put(&["long"], MIB / 16 - 64);
    assert_eq!(pool.status().pins_given_up, 1);
}
