//! What every policy promises.

use ReserveOutcome::Reserved;

use super::*;

const POLICIES: [EvictionPolicy; 3] = [EvictionPolicy::Adaptive, EvictionPolicy::Lru, EvictionPolicy::S3Fifo];
const SLICE: u64 = MIB / 16 - 64;

fn pool_of(policy: EvictionPolicy) -> Pool {
    Pool::of(Settings { policy, ..SETTINGS }, &[MIB; 2])
}

/// Lets time pass in which the nodes are heard.
fn rest(pool: &mut Pool, ms: u64) {
    pool.now += ms;
    pool.core.excuse_silence(Millis::new(pool.now));
    pool.with(Core::advance);
}

/// The victims of each segment, taken one after the other, come in the order that was foretold.
fn foretold(mut pool: Pool) {
    // Longer than a choice of the adaptive policy stands.
    rest(&mut pool, 1000);
    let Core { segments, objects, policy, now, .. } = &mut pool.core;
    let slots: Vec<_> = segments.iter().map(|(slot, _)| slot).collect();
    let mut count = 0;
    for slot in slots {
        let shelves = &mut segments[slot].idle;
        let order: Vec<_> = policy.order(*now, shelves, objects).collect();
        assert_eq!(order.len(), shelves.iter(objects).count(), "{policy:?}");
        for (place, want) in order.iter().enumerate() {
            let victim = policy.victim(*now, shelves, objects).map(|(_, victim)| victim);
            assert_eq!(victim, Some(*want), "{policy:?}: victim {place} of {}", order.len());
            shelves.unlink(objects, *want);
        }
        count += order.len();
    }
    assert!(count > 10, "{count} objects were there to compare");
}

#[test]
fn every_policy_foretells_its_victims() {
    for policy in POLICIES {
        foretold(busy(policy).0);
        foretold(scans(policy, 100).0);
    }
}

/// A long mix of puts, reads, looks and pauses; what was there at the end.
fn busy(policy: EvictionPolicy) -> (Pool, Vec<bool>) {
    let mut pool = pool_of(policy);
    let name = |number: u64| format!("{number}");
    let mut state = 7u64;
    for _ in 0..3000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (kind, number) = (state >> 61, (state >> 33) % 60);
        let key = name(number * number / 40);
        match kind {
            0 | 1 => {
                let held = pool.locate(ALICE, &[&key]).lease;
                // Room is made beside what is read.
                let reply = pool.reserve(&[&name(1000 + number)], SLICE);
                assert_eq!(reply.outcomes.len(), 1);
                pool.seal(ALICE, &reply.tickets);
                if let Some(lease) = held {
                    assert!(pool.is_there(&key), "{policy:?}: {key} was evicted under a lease");
                    pool.release(ALICE, Some(lease));
                }
            }
            2 => {
                pool.prefix(&[&key]);
            }
            3 => rest(&mut pool, state >> 40 & 0x7ff),
            4 => {
                pool.tick();
            }
            _ => {
                let reply = pool.reserve(&[&key], SLICE);
                pool.seal(ALICE, &reply.tickets);
            }
        }
    }
    let there = (0..2000).map(|number| pool.is_there(&name(number))).collect();
    (pool, there)
}

#[test]
fn every_policy_spares_what_is_read_and_does_the_same_for_the_same_calls() {
    for policy in POLICIES {
        let first = busy(policy).1;
        assert!(first == busy(policy).1, "{policy:?}");
        assert!(first.iter().filter(|there| **there).count() > 20, "{policy:?}");
    }
}

#[test]
fn every_policy_makes_room_for_whatever_could_fit() {
    for policy in POLICIES {
        let mut pool = pool_of(policy);
        for round in 0..100 {
            let key = format!("{round}");
            pool.put(&[&key], SLICE * (1 + round % 9));
            pool.pass(700);
        }
        assert_eq!(pool.reserve(&["all"], memcache_types::payload_bytes_max(MIB)).outcomes, [Reserved], "{policy:?}");
    }
}

#[test]
fn s3fifo_spares_what_was_used_twice_and_drops_what_passes_by() {
    let mut pool = pool_of(EvictionPolicy::S3Fifo);
    pool.put(&["hot"], SLICE);
    for _ in 0..3 {
        pool.pass(2000);
        pool.prefix(&["hot"]);
    }
    for number in 0..200 {
        pool.put(&[&format!("{number}")], SLICE);
    }
    assert!(pool.is_there("hot"));
}

/// The same eight keys again and again, each time before a scan that is longer than the pool; how often they were there.
fn scans(policy: EvictionPolicy, rounds: u64) -> (Pool, u64) {
    let mut pool = pool_of(policy);
    let mut hits = 0;
    for round in 0..rounds {
        rest(&mut pool, 5000);
        for number in 0..8 {
            let key = format!("hot {number}");
            if pool.prefix(&[&key]).0 == 1 {
                hits += 1;
            } else {
                pool.put(&[&key], SLICE);
            }
        }
        for number in 0..40 {
            pool.put(&[&format!("{round} {number}")], SLICE);
        }
    }
    (pool, hits)
}

#[test]
fn adaptive_learns_that_a_scan_is_of_no_use() {
    let rounds = 400;
    let rates = [EvictionPolicy::Lru, EvictionPolicy::Adaptive].map(|policy| scans(policy, rounds).1);
    assert_eq!(rates[0], 0, "each scan is longer than the pool");
    assert!(rates[1] > 8 * rounds / 3, "{rates:?}");
}
