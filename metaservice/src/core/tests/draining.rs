use ReserveOutcome::Reserved;
use SealOutcome::SealPresent;

use super::*;

/// Sixteen of them are a segment, of which fifteen fit under the high watermark.
const SIXTEENTH: u64 = MIB / 16 - 64;
const EXTENT: u64 = MIB / 16;

fn name(number: u64) -> String {
    format!("key {number}")
}

/// Three full nodes with fifteen keys each, in turn: key 0 is the coldest, and on node 1 as every third after it.
fn full() -> Pool {
    let mut pool = Pool::new(&[MIB; 3]);
    for number in 0..45 {
        pool.put_replicas(&[&name(number)], SIXTEENTH, 1, &[1 + number % 3]);
    }
    assert_eq!(pool.status().evicted_objects, 0);
    pool
}

/// The others copy until node 1 is empty. Panics if that has no end.
fn finish(pool: &mut Pool) -> DrainReport {
    for _ in 0..100 {
        let report = pool.drained(1);
        if report.is_empty {
            return report;
        }
        pool.repair(2);
        pool.repair(3);
        pool.tick();
    }
    panic!("the drain does not end: {:?}", pool.drained(1));
}

fn there(pool: &mut Pool) -> Vec<u64> {
    (0..45).filter(|number| pool.is_there(&name(*number))).collect()
}

fn amount(objects: u64) -> Amount {
    Amount { objects, bytes: objects * EXTENT }
}

#[test]
fn a_drain_into_a_full_pool_waits_unless_it_may_evict() {
    let mut pool = full();
    let report = pool.drain(1, Some(Drain::Move));
    assert_eq!((report.objects, report.bytes), (15, 15 * EXTENT));
    assert_eq!(pool.repair(2) + pool.repair(3), 0);
    pool.drain(1, Some(Drain::Evict));
    assert!(pool.repair(2) + pool.repair(3) > 0, "how it is emptied can change");
}

#[test]
fn a_drain_that_evicts_keeps_what_is_hottest_of_all() {
    let mut pool = full();
    pool.drain(1, Some(Drain::Evict));
    let report = finish(&mut pool);
    assert_eq!(there(&mut pool), (15..45).collect::<Vec<_>>());
    assert_eq!(pool.status().evicted_objects, 15, "and nothing beyond");
    // Of the fifteen coldest five were here.
    assert_eq!((report.objects, report.bytes, report.moved, report.dropped), (0, 0, amount(10), amount(5)));
}

#[test]
fn a_drain_that_evicts_drops_what_is_colder_than_all_elsewhere() {
    let mut pool = Pool::new(&[MIB; 3]);
    for number in 0..45 {
        pool.put_replicas(&[&name(number)], SIXTEENTH, 1, &[1 + number / 15]);
    }
    pool.drain(1, Some(Drain::Evict));
    let report = finish(&mut pool);
    assert_eq!(there(&mut pool), (15..45).collect::<Vec<_>>());
    assert_eq!((report.moved, report.dropped), (amount(0), amount(15)));
}

#[test]
fn a_drain_that_evicts_uses_free_room_first() {
    let mut pool = Pool::new(&[MIB; 3]);
    for number in 0..30 {
        pool.put_replicas(&[&name(number)], SIXTEENTH, 1, &[1 + number % 2]);
    }
    pool.drain(1, Some(Drain::Evict));
    assert_eq!(pool.repair(2), 0, "it is full, and all fits on node 3");
    let report = finish(&mut pool);
    assert_eq!((report.moved, report.dropped), (amount(15), amount(0)));
    assert_eq!((pool.status().evicted_objects, pool.status().objects), (0, 30));
}

#[test]
fn a_drain_that_evicts_moves_pinned_objects_however_cold() {
    let mut pool = full();
    let keys = [name(0), name(3), name(6)];
    let hard = keys[..2].iter().map(String::as_str).collect::<Vec<_>>();
    let pin = |pool: &mut Pool, keys: &KeyBatch, ttl| {
        pool.with(|core, now, effects| core.pin(now, keys, ttl, effects)).unwrap();
    };
    pin(&mut pool, &batch(&hard), None);
    pin(&mut pool, &batch(&[&keys[2]]), Some(1_000_000));
    pool.drain(1, Some(Drain::Evict));
    finish(&mut pool);
    let left = there(&mut pool);
    assert!([0, 3, 6].iter().all(|number| left.contains(number)), "{left:?}");
    assert_eq!(left.len(), 30);
    assert_eq!(left.iter().filter(|number| **number > 17).count(), 27, "no more of the hot than had to: {left:?}");
    assert_eq!((pool.status().hard_pins, pool.status().soft_pins), (2, 1));
}

#[test]
fn a_drain_that_evicts_leaves_what_is_read_or_written() {
    let mut pool = full();
    let read = [name(0), name(1), name(2)];
    let lease = pool.locate(BOB, &read.iter().map(String::as_str).collect::<Vec<_>>()).lease;
    pool.drain(1, Some(Drain::Evict));
    for _ in 0..20 {
        pool.repair(2);
        pool.repair(3);
    }
    assert_eq!(pool.drained(1).objects, 1, "the one that is read here");
    assert!(read.iter().all(|key| pool.is_there(key)));
    pool.release(BOB, lease);
    finish(&mut pool);
    assert!(read.iter().all(|key| pool.is_there(key)), "to be read is to be hot");
}

#[test]
fn a_drain_that_evicts_can_be_cancelled_in_the_middle() {
    let mut pool = full();
    pool.drain(1, Some(Drain::Evict));
    let work = pool.work(2);
    assert!(!work.tasks.is_empty());
    let report = pool.drain(1, None);
    assert_eq!((report.drain, report.moved), (None, amount(0)));
    let before = (there(&mut pool), pool.status().evicted_objects);
    assert_eq!(before.0.len() as u64 + before.1, 45);
    let client = ClientId::new(102);
    let tickets: Vec<Ticket> = work.tasks.iter().map(|task| task.ticket).collect();
    assert_eq!(pool.seal(client, &tickets), vec![SealPresent; tickets.len()], "nobody needs the copies");
    pool.release(client, work.lease);
    assert_eq!(pool.repair(2) + pool.repair(3), 0);
    assert_eq!((there(&mut pool), pool.status().evicted_objects), before);
    assert_eq!(pool.reserve_replicas(ALICE, &["new"], 64, 1, &[1]).outcomes, [Reserved]);
    // It begins again, and counts again.
    assert_eq!(pool.drain(1, Some(Drain::Evict)).dropped, amount(0));
    pool.pass(TTL);
    pool.pass(TTL);
    finish(&mut pool);
    assert_eq!(there(&mut pool), (15..45).collect::<Vec<_>>());
}

#[test]
fn a_drain_that_evicts_drops_what_is_too_long_for_the_others() {
    let mut pool = Pool::new(&[4 * MIB, MIB, MIB]);
    for number in 0..6 {
        pool.put_replicas(&[&name(number)], SIXTEENTH, 1, &[1 + number % 3]);
    }
    pool.put_replicas(&["long"], 2 * MIB, 1, &[1]);
    pool.drain(1, Some(Drain::Evict));
    let report = finish(&mut pool);
    assert_eq!((there(&mut pool).len(), pool.is_there("long"), report.dropped.objects), (6, false, 1));
}

#[test]
fn a_drain_that_evicts_joins_free_pieces_for_a_long_object() {
    let mut pool = Pool::new(&[MIB, MIB]);
    for number in 0..15 {
        pool.put_replicas(&[&name(number)], SIXTEENTH, 1, &[2]);
    }
    // Every other one is cold.
    let hot: Vec<String> = (1..15).step_by(2).map(name).collect();
    pool.prefix(&hot.iter().map(String::as_str).collect::<Vec<_>>());
    pool.put_replicas(&["long"], MIB / 4 - 64, 1, &[1]);
    pool.drain(1, Some(Drain::Evict));
    for _ in 0..20 {
        pool.repair(2);
    }
    assert!(pool.drained(1).is_empty && pool.is_there("long"));
    assert!(there(&mut pool).len() >= 8, "a hole beside what is free, not all");
}

#[test]
fn a_drain_that_evicts_ends_whatever_goes_on_meanwhile() {
    for seed in 0..60_u64 {
        let policy = [EvictionPolicy::Lru, EvictionPolicy::S3Fifo, EvictionPolicy::Adaptive][seed as usize % 3];
        let mut pool = Pool::of(Settings { policy, ..SETTINGS }, &[MIB; 3]);
        let mut state = seed;
        let mut below = |limit: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % limit
        };
        for step in 0..150 {
            if step == 60 {
                pool.drain(1, Some(Drain::Evict));
            }
            let key = name(below(45));
            match below(12) {
                0..=4 => {
                    let bytes = [100, SIXTEENTH, SIXTEENTH, MIB / 5][below(4) as usize];
                    // Keys with several replicas are in the order of their use with the others only.
                    let more = policy != EvictionPolicy::S3Fifo && below(6) == 0;
                    let replicas = 1 + usize::from(more);
                    let node = 1 + below(3);
                    let tickets = pool.reserve_replicas(ALICE, &[&key], bytes, replicas, &[node]).tickets;
                    pool.seal(ALICE, &tickets[..tickets.len().min(below(9) as usize)]);
                }
                5 | 6 => drop(pool.locate(BOB, &[&key])),
                7 => drop(pool.remove(&[&key])),
                8 => {
                    let (keys, ttl) = (batch(&[&key]), [None, Some(500)][below(2) as usize]);
                    pool.with(|core, now, effects| core.pin(now, &keys, ttl, effects)).unwrap();
                }
                9 => pool.pass(below(300)),
                10 => drop(pool.tick()),
                _ => drop(pool.work(2 + below(2))),
            }
        }
        pool.pass(LEASE);
        pool.pass(TTL);
        pool.pass(TTL);
        let pins = pool.status().hard_pins;
        finish(&mut pool);
        assert_eq!(pool.status().hard_pins, pins, "seed {seed}");
    }
}

#[test]
fn how_a_node_went_is_remembered() {
    let mut pool = Pool::new(&[MIB; 3]);
    for node in 1..=3 {
        pool.put_replicas(&[&name(node)], SIXTEENTH, 1, &[node]);
    }
    pool.drain(1, Some(Drain::Drop));
    pool.leave(1, 1).unwrap();
    let gone = pool.drained(1);
    assert_eq!((gone.gone, gone.is_empty, gone.dropped), (Some(GoneReason::Left), true, amount(1)));
    pool.drain(2, Some(Drain::Move));
    pool.leave(2, 1).unwrap();
    let gone = pool.drained(2);
    assert_eq!((gone.gone, gone.is_empty, gone.objects), (Some(GoneReason::Left), false, 1));
    pool.drain(3, Some(Drain::Move));
    pool.pass(u64::from(SETTINGS.node_dead_ms));
    let gone = pool.drained(3);
    assert_eq!((gone.gone, gone.drain, gone.objects), (Some(GoneReason::Silent), Some(Drain::Move), 1));
    // One that is back is told of as it is now.
    pool.join(3, 2, MIB, 0).unwrap();
    assert_eq!((pool.drained(3).gone, pool.drained(3).drain), (None, None));
    assert_eq!(pool.with(|core, now, effects| core.drain_state(now, NodeId::new(4), effects)), None);
}
