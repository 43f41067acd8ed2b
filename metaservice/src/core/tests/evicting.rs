use ReserveOutcome::{ReserveNoSpace, ReservePresent, Reserved};
use memcache_types::payload_bytes_max;

use super::*;

/// Four of these fill a segment of one MiB.
const QUARTER: u64 = MIB / 4 - 64;

#[test]
fn the_least_recently_used_object_makes_room() {
    let mut pool = Pool::new(&[MIB]);
    for key in ["a", "b", "c", "d"] {
        pool.put(&[key], QUARTER);
    }
    pool.prefix(&["a"]);
    pool.put(&["e"], QUARTER);
    assert!(!pool.is_there("b"));
    for key in ["a", "c", "d", "e"] {
        assert!(pool.is_there(key), "{key}");
    }
    assert_eq!((pool.status().evicted_objects, pool.status().evicted_bytes), (1, MIB / 4));
}

#[test]
fn looking_is_not_using_but_reading_and_putting_again_are() {
    let mut pool = Pool::new(&[MIB]);
    for key in ["a", "b", "c", "d"] {
        pool.put(&[key], QUARTER);
    }
    assert!(pool.is_there("c"));
    let lease = pool.locate(ALICE, &["a"]).lease;
    pool.release(ALICE, lease);
    pool.reserve(&["b"], QUARTER);
    pool.put(&["e"], QUARTER);
    assert!(!pool.is_there("c") && pool.is_there("a") && pool.is_there("b"));
}

#[test]
fn a_chain_is_dropped_from_its_tail() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["0", "1", "2", "3"], QUARTER);
    pool.put(&["x"], QUARTER);
    assert_eq!(pool.prefix(&["0", "1", "2", "3"]), (3, 3));
    pool.put(&["y"], QUARTER);
    assert!(!pool.is_there("x"), "the chain was used after it");
    pool.locate(ALICE, &["y", "0", "1", "2"]);
    pool.pass(LEASE);
    pool.put(&["z"], QUARTER);
    assert_eq!(pool.prefix(&["0", "1", "2"]), (2, 2));
}

#[test]
fn a_chain_that_is_put_again_is_dropped_from_its_tail() {
    for policy in [EvictionPolicy::Lru, EvictionPolicy::Adaptive] {
        let mut pool = Pool::of(Settings { policy, ..SETTINGS }, &[MIB]);
        let chain = ["0", "1", "2", "3"];
        pool.put(&chain, QUARTER);
        assert_eq!(pool.reserve(&chain, QUARTER).outcomes, [ReservePresent; 4]);
        pool.put(&["x"], QUARTER);
        pool.put(&["y"], QUARTER);
        assert_eq!(pool.prefix(&chain), (2, 2), "{policy:?}");
        // What is there is not taken to make room for what comes behind it in the same call.
        assert_eq!(pool.reserve(&chain, QUARTER).outcomes[..3], [ReservePresent, ReservePresent, Reserved]);
    }
}

#[test]
fn leased_objects_are_never_victims() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a", "b", "c", "d"], QUARTER);
    pool.locate(ALICE, &["a", "b", "c", "d"]);
    assert_eq!(pool.reserve(&["e"], QUARTER).outcomes, [ReserveNoSpace]);
    pool.tick();
    assert_eq!(pool.status().objects, 4);
    pool.pass(LEASE);
    assert_eq!(pool.reserve(&["e"], QUARTER).outcomes, [Reserved]);
}

#[test]
fn unsealed_objects_are_never_victims() {
    let mut pool = Pool::new(&[MIB]);
    let tickets = pool.reserve(&["a", "b", "c", "d"], QUARTER).tickets;
    assert_eq!(pool.reserve(&["e"], QUARTER).outcomes, [ReserveNoSpace]);
    pool.tick();
    assert_eq!(pool.seal(ALICE, &tickets), vec![SealOutcome::Sealed; 4]);
}

#[test]
fn nothing_is_evicted_where_room_cannot_be_made() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a"], QUARTER);
    pool.ticket(ALICE, "w", QUARTER);
    assert_eq!(pool.reserve(&["b"], payload_bytes_max(MIB)).outcomes, [ReserveNoSpace]);
    assert!(pool.is_there("a"));
}

#[test]
fn free_space_elsewhere_comes_before_eviction_near() {
    let mut pool = Pool::new(&[MIB, MIB]);
    let near = |pool: &mut Pool, key: &str| {
        let reply = pool.reserve_as(ALICE, &[key], &[QUARTER], Some(1), false).unwrap();
        pool.seal(ALICE, &reply.tickets);
    };
    for key in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        near(&mut pool, key);
    }
    assert_eq!(pool.status().objects, 8);
    near(&mut pool, "i");
    assert!(!pool.is_there("a"), "then the oldest of all nodes goes");
}

#[test]
fn the_node_with_the_oldest_victim_makes_room() {
    let mut pool = Pool::new(&[MIB, MIB]);
    for (key, near) in [("a", 1), ("b", 2)] {
        let reply = pool.reserve_as(ALICE, &[key], &[payload_bytes_max(MIB)], Some(near), false).unwrap();
        pool.seal(ALICE, &reply.tickets);
    }
    pool.prefix(&["a"]);
    pool.put(&["c"], 10);
    assert!(pool.is_there("a") && !pool.is_there("b"));
}

#[test]
fn a_tick_evicts_from_the_high_to_the_low_watermark() {
    let mut pool = Pool::new(&[MIB, MIB]);
    let names: Vec<String> = (0..31).map(|number| format!("{number:02}")).collect();
    for name in &names {
        let reply = pool.reserve_as(ALICE, &[name], &[MIB / 32 - 64], Some(1), false).unwrap();
        pool.seal(ALICE, &reply.tickets);
    }
    pool.put(&["other"], MIB / 2);
    assert!(!pool.tick());
    let nodes = pool.status().nodes;
    assert_eq!(nodes[0].used_bytes, 28 * MIB / 32, "the last step below 90 %");
    assert_eq!(nodes[1].objects, 1, "each node by itself");
    assert!(!pool.is_there("00") && !pool.is_there("02") && pool.is_there("03"));
    pool.tick();
    assert_eq!(pool.status().nodes[0].objects, 28, "below the high watermark nothing happens");
    assert!(pool.effects.iter().any(|effect| matches!(effect, Effect::Evicted { objects: 3, .. })));
}

#[test]
fn one_tick_evicts_a_bounded_number_and_says_that_there_is_more() {
    let mut pool = Pool::new(&[MIB]);
    let names: Vec<String> = (0..16_384).map(|number| format!("{number:05}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let keys = batch(&names);
    let request =
        ReserveRequest { keys: &keys, payload_bytes: &[0], near: None, exclusive: false, replicas: 1, preferred: &[] };
    let (now, effects) = (Millis::new(0), &mut Vec::new());
    let reply = pool.core.reserve(now, ALICE, &request, effects).unwrap();
    let ids: Vec<u64> = reply.tickets.iter().map(|ticket| ticket.reservation.get()).collect();
    assert_eq!(ids.len(), 16_384);
    pool.core.seal(now, ALICE, &ids, effects).unwrap();
    pool.core.settings.low_watermark_ppm = 500_000;
    assert!(pool.core.tick(now, effects));
    assert_eq!(pool.core.readable, 16_384 - limits::TICK_EVICTIONS_MAX as u64);
    pool.core.settings.high_watermark_ppm = 600_000;
    while pool.core.tick(now, effects) {}
    assert_eq!(pool.core.readable, 8192);
}

/// Sixteen of these fill a segment of one MiB.
const SIXTEENTH: u64 = MIB / 16 - 64;

#[test]
fn only_the_objects_that_make_the_hole_are_evicted() {
    let mut pool = Pool::new(&[MIB]);
    let names: Vec<String> = (0..16).map(|number| number.to_string()).collect();
    for name in &names {
        pool.put(&[name], SIXTEENTH);
    }
    // Every other one is newer now: the older ones lie between them.
    for name in names.iter().skip(1).step_by(2) {
        pool.prefix(&[name]);
    }
    pool.put(&["long"], MIB / 4 - 64);
    let left: Vec<bool> = names.iter().map(|name| pool.is_there(name)).collect();
    assert_eq!(left.iter().filter(|there| !**there).count(), 4, "{left:?}: four neighbours made the room of four");
    assert_eq!(pool.status().evicted_objects, 4);
    assert!(left[8..].iter().all(|there| *there), "the oldest that are neighbours went: {left:?}");
}

#[test]
fn what_fits_in_free_bytes_but_not_in_one_run_is_placed_at_the_least_cost() {
    let mut pool = Pool::new(&[MIB]);
    let names: Vec<String> = (0..16).map(|number| number.to_string()).collect();
    for name in &names {
        pool.put(&[name], SIXTEENTH);
    }
    let holes: Vec<&str> = names.iter().skip(1).step_by(2).map(String::as_str).collect();
    pool.remove(&holes);
    assert_eq!(pool.used_bytes(), MIB / 2);
    pool.put(&["long"], 3 * MIB / 16 - 64);
    assert_eq!(pool.status().evicted_objects, 1, "one object between two holes");
}

#[test]
fn nothing_is_evicted_where_no_hole_can_be_made() {
    let mut pool = Pool::new(&[MIB]);
    let names: Vec<String> = (0..16).map(|number| number.to_string()).collect();
    for name in &names {
        pool.put(&[name], SIXTEENTH);
    }
    let held: Vec<&str> = names.iter().step_by(4).map(String::as_str).collect();
    pool.locate(ALICE, &held);
    assert_eq!(pool.reserve(&["long"], MIB / 4 - 64).outcomes, [ReserveNoSpace]);
    assert_eq!(pool.status().evicted_objects, 0);
    pool.put(&["short"], 3 * MIB / 16 - 64);
    assert_eq!(pool.status().evicted_objects, 3);
}

#[test]
fn random_batches_leave_nodes_within_one_object_of_each_other() {
    let mut pool = Pool::new(&[8 * MIB; 6]);
    let (mut seed, mut largest, mut number) = (1_u64, 0, 0);
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    while pool.used_bytes() < 30 * MIB {
        let count = 1 + random(32);
        let names: Vec<String> = (0..count).map(|at| format!("{number}-{at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let bytes = random(100_000);
        largest = largest.max(memcache_types::extent_bytes(bytes));
        pool.put(&names, bytes);
        number += 1;
        let used: Vec<u64> = pool.status().nodes.iter().map(|node| node.used_bytes).collect();
        let spread = used.iter().max().unwrap() - used.iter().min().unwrap();
        assert!(spread <= largest, "{used:?} differ by more than {largest}");
    }
    assert_eq!(pool.status().evicted_objects, 0);
}

#[test]
fn evictions_are_counted_by_cause_and_the_longest_free_run_is_told() {
    let mut pool = Pool::new(&[MIB]);
    assert_eq!(pool.status().nodes[0].longest_free_bytes, MIB);
    let mut names: Vec<String> = (0..16).map(|number| number.to_string()).collect();
    for name in &names {
        pool.put(&[name], SIXTEENTH);
    }
    pool.remove(&["3", "5"]);
    assert_eq!(pool.status().nodes[0].longest_free_bytes, MIB / 16);
    pool.put(&["3", "5", "next"], SIXTEENTH);
    pool.put(&["long"], MIB / 4 - 64);
    names.extend(["next", "long"].map(str::to_owned));
    names.retain(|name| pool.is_there(name));
    pool.pin(&names.iter().map(String::as_str).collect::<Vec<_>>(), Some(100_000));
    pool.put(&["four", "where", "it", "was"], SIXTEENTH);
    pool.tick();
    let report = pool.status();
    let counted = |cause: Cause| report.evicted[cause as usize].objects;
    assert_eq!([Cause::Put, Cause::Hole, Cause::Pin, Cause::Watermark].map(counted), [1, 4, 1, 2]);
    assert_eq!((report.evicted_objects, report.evicted.iter().map(|amount| amount.objects).sum()), (8, 8_u64));
}
