use memcache_types::extent_bytes;
use proptest::prelude::*;

use super::*;
use crate::core::limits::{HOT_HALF_LIFE_MS, HOT_READS, HOT_UNUSED_MS};

const BYTES: u64 = 1000;

/// A pool whose hot keys may have extra replicas of so many extents of [`BYTES`].
fn pool(segments: &[u64], extras: u64) -> Pool {
    let hot_replica_bytes = extras * extent_bytes(BYTES);
    Pool::of(Settings { hot_replica_bytes, node_dead_ms: 1 << 30, ..SETTINGS }, segments)
}

/// A client of a node reads a key so many times.
fn read(pool: &mut Pool, node: u64, key: &str, times: u8) {
    for _ in 0..times {
        let (keys, near) = (batch(&[key]), Some(NodeId::new(node)));
        let reply = pool.with(|core, now, effects| core.locate(now, BOB, &keys, near, effects)).unwrap();
        pool.release(BOB, reply.lease);
    }
}

fn extras(pool: &mut Pool) -> (u64, u64) {
    let status = pool.status();
    (status.extra_replicas, status.extra_bytes)
}

fn wanted(pool: &mut Pool, key: &str) -> usize {
    let keys = batch(&[key]);
    pool.with(|core, now, effects| core.info(now, &keys, effects))[0].wanted
}

#[test]
fn a_key_read_from_afar_gets_an_extra_replica_at_its_reader() {
    let mut pool = pool(&[MIB; 3], 10);
    pool.put_replicas(&["hot", "cold"], BYTES, 1, &[1]);
    read(&mut pool, 2, "hot", HOT_READS - 1);
    assert!(!pool.heartbeat_works(2));
    read(&mut pool, 2, "hot", 1);
    assert!(pool.heartbeat_works(2) && !pool.heartbeat_works(3));
    assert_eq!((pool.repair(1), pool.repair(3), pool.repair(2)), (0, 0, 1));
    assert!(!pool.heartbeat_works(2));
    assert_eq!((pool.nodes_of("hot"), pool.nodes_of("cold")), (vec![1, 2], vec![1]));
    assert_eq!((extras(&mut pool), wanted(&mut pool, "hot")), ((1, extent_bytes(BYTES)), 1));
    read(&mut pool, 2, "hot", 2 * HOT_READS);
    read(&mut pool, 1, "hot", 2 * HOT_READS);
    assert_eq!(pool.repair(1) + pool.repair(2) + pool.repair(3), 0, "those were reads at home");
}

#[test]
fn without_a_budget_nothing_is_counted() {
    let mut pool = pool(&[MIB; 2], 0);
    pool.put_replicas(&["hot"], BYTES, 1, &[1]);
    read(&mut pool, 2, "hot", 3 * HOT_READS);
    assert!(pool.core.hot.is_none() && !pool.heartbeat_works(2));
    assert_eq!((pool.repair(2), pool.nodes_of("hot")), (0, vec![1]));
}

#[test]
fn reads_of_long_ago_do_not_count() {
    let mut pool = pool(&[MIB; 2], 10);
    pool.put_replicas(&["slow"], BYTES, 1, &[1]);
    for _ in 0..20 {
        read(&mut pool, 2, "slow", HOT_READS / 2 - 1);
        pool.pass(HOT_HALF_LIFE_MS);
    }
    assert_eq!(pool.repair(2), 0);
    read(&mut pool, 2, "slow", HOT_READS);
    assert_eq!(pool.repair(2), 1);
}

#[test]
fn the_budget_holds_for_many_hot_keys() {
    let mut pool = pool(&[MIB; 2], 3);
    let names: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    for name in &names {
        pool.put_replicas(&[name], BYTES, 1, &[1]);
        read(&mut pool, 2, name, HOT_READS);
    }
    let work = pool.work(2);
    assert_eq!(work.tasks.len(), 3, "those under way count");
    for (at, task) in work.tasks.iter().enumerate() {
        if at == 0 {
            pool.abort(ClientId::new(102), task.ticket);
        } else {
            assert_eq!(pool.seal(ClientId::new(102), &[task.ticket]), [SealOutcome::Sealed]);
        }
    }
    pool.release(ClientId::new(102), work.lease);
    assert_eq!(extras(&mut pool), (2, 2 * extent_bytes(BYTES)));
    for name in &names {
        read(&mut pool, 2, name, HOT_READS);
    }
    assert_eq!((pool.repair(2), extras(&mut pool).0), (1, 3));
    assert_eq!(pool.status().repairs_waiting, 0, "the one given up is no lack");
}

#[test]
fn a_lost_extra_is_not_made_again_and_a_lost_original_is_replaced_by_it() {
    let mut pool = pool(&[MIB; 4], 10);
    pool.put_replicas(&["a"], BYTES, 2, &[1, 2]);
    read(&mut pool, 3, "a", HOT_READS);
    assert_eq!((pool.repair(3), extras(&mut pool).0), (1, 1));
    pool.leave(3, 1).unwrap();
    pool.tick();
    assert_eq!((extras(&mut pool), pool.status().repairs_waiting), ((0, 0), 0));
    read(&mut pool, 4, "a", HOT_READS);
    assert_eq!((pool.repair(4), extras(&mut pool).0), (1, 1));
    pool.leave(1, 1).unwrap();
    pool.tick();
    assert_eq!((pool.nodes_of("a"), wanted(&mut pool, "a")), (vec![2, 4], 2));
    assert_eq!((extras(&mut pool), pool.status().repairs_waiting), ((0, 0), 0));
    pool.leave(2, 1).unwrap();
    assert_eq!(pool.status().repairs_waiting, 1, "now it lacks one");
}

#[test]
fn extras_go_before_all_that_was_asked_for() {
    let mut pool = pool(&[2 * MIB; 2], 1000);
    let quarter = MIB / 4 - 64;
    pool.put_replicas(&["twice"], quarter, 2, &[1, 2]);
    pool.put_replicas(&["hot"], quarter, 1, &[1]);
    read(&mut pool, 2, "hot", HOT_READS);
    assert_eq!((pool.repair(2), extras(&mut pool)), (1, (1, MIB / 4)));
    for number in 0..12 {
        pool.put_replicas(&[&format!("fill {number}")], quarter, 1, &[1 + number % 2]);
    }
    read(&mut pool, 2, "hot", 1);
    pool.put_replicas(&["new"], quarter, 1, &[]);
    assert_eq!((extras(&mut pool), pool.nodes_of("hot").len(), wanted(&mut pool, "hot")), ((0, 0), 1, 1));
    assert_eq!((pool.nodes_of("twice"), wanted(&mut pool, "twice")), (vec![1, 2], 2));
    pool.put_replicas(&["newer"], quarter, 1, &[]);
    assert_eq!((pool.nodes_of("twice").len(), wanted(&mut pool, "twice")), (1, 1));
    assert!(pool.is_there("hot") && pool.is_there("fill 0"), "each key keeps its last replica");
}

#[test]
fn an_evicted_extra_does_not_change_how_many_there_should_be() {
    let mut pool = pool(&[MIB; 3], 1000);
    let quarter = MIB / 4 - 64;
    pool.put_replicas(&["hot"], quarter, 1, &[1]);
    for node in [2, 3] {
        read(&mut pool, node, "hot", HOT_READS);
        assert_eq!(pool.repair(node), 1);
    }
    for number in 0..9 {
        pool.put_replicas(&[&format!("fill {number}")], quarter, 1, &[1 + number % 3]);
    }
    assert_eq!(extras(&mut pool).0, 2);
    pool.put_replicas(&["new"], quarter, 1, &[]);
    assert_eq!((extras(&mut pool).0, wanted(&mut pool, "hot")), (1, 1));
}

#[test]
fn copies_of_hot_keys_evict_nothing_and_stop_at_the_watermark() {
    let mut pool = pool(&[MIB, MIB], 1000);
    let quarter = MIB / 4 - 64;
    pool.put_replicas(&["hot"], quarter, 1, &[1]);
    pool.put_replicas(&["x", "y", "z"], quarter, 1, &[2]);
    read(&mut pool, 2, "hot", HOT_READS);
    assert_eq!(pool.repair(2), 0, "one more quarter would fill it");
    assert!(!pool.heartbeat_works(2), "it is not asked again before there are more reads");
    pool.remove(&["x"]);
    read(&mut pool, 2, "hot", HOT_READS);
    assert_eq!(pool.repair(2), 1);
}

#[test]
fn extras_that_are_not_used_go_and_give_their_bytes_back() {
    let mut pool = pool(&[MIB; 2], 1);
    pool.put_replicas(&["first", "second"], BYTES, 1, &[1]);
    read(&mut pool, 2, "first", HOT_READS);
    assert_eq!(pool.repair(2), 1);
    for _ in 0..6 {
        pool.pass(HOT_UNUSED_MS / 2);
        read(&mut pool, 1, "first", 1);
        pool.tick();
    }
    assert_eq!(extras(&mut pool).0, 1, "it is used");
    for _ in 0..4 {
        pool.pass(HOT_UNUSED_MS / 2);
        pool.tick();
    }
    assert_eq!((extras(&mut pool), pool.nodes_of("first")), ((0, 0), vec![1]));
    read(&mut pool, 2, "second", HOT_READS);
    assert_eq!((pool.repair(2), pool.nodes_of("second")), (1, vec![1, 2]));
}

#[test]
fn pinned_keys_and_keys_with_eight_replicas_get_no_more() {
    let mut pool = pool(&[MIB; 9], 10);
    pool.put_replicas(&["pinned"], BYTES, 1, &[1]);
    pool.put_replicas(&["eight"], BYTES, 8, &[1, 2, 3, 4, 5, 6, 7, 8]);
    pool.pin(&["pinned"], None);
    for key in ["pinned", "eight"] {
        read(&mut pool, 9, key, HOT_READS);
    }
    assert_eq!(pool.repair(9), 0);
}

#[test]
fn a_node_with_an_extra_can_be_drained() {
    let mut pool = pool(&[MIB; 3], 10);
    pool.put_replicas(&["a", "b"], BYTES, 1, &[1]);
    for key in ["a", "b"] {
        read(&mut pool, 2, key, HOT_READS);
    }
    assert_eq!(pool.repair(2), 2);
    pool.drain(1, Some(Drain::Move));
    assert!(pool.drained(1).is_empty);
    assert_eq!((pool.nodes_of("a"), extras(&mut pool)), (vec![2], (0, 0)));
}

#[derive(Clone, Debug)]
enum Step {
    Put { key: u8, replicas: usize, bytes: u64 },
    Read { key: u8, node: u64, times: u8 },
    Repair { node: u64 },
    Leave { node: u64 },
    Drain { node: u64, on: bool },
    Remove { key: u8 },
    Pin { key: u8 },
    Pass { ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let (key, node) = (|| 0u8..6, || 1u64..5);
    prop_oneof![
        4 => (key(), 1usize..4, 1u64..200_000).prop_map(|(key, replicas, bytes)| Step::Put { key, replicas, bytes }),
        6 => (key(), node(), 1..2 * HOT_READS).prop_map(|(key, node, times)| Step::Read { key, node, times }),
        4 => node().prop_map(|node| Step::Repair { node }),
        1 => node().prop_map(|node| Step::Leave { node }),
        1 => (node(), any::<bool>()).prop_map(|(node, on)| Step::Drain { node, on }),
        1 => key().prop_map(|key| Step::Remove { key }),
        1 => key().prop_map(|key| Step::Pin { key }),
        1 => (0..2 * HOT_UNUSED_MS).prop_map(|ms| Step::Pass { ms }),
    ]
}

fn run(pool: &mut Pool, step: &Step, life: u64) {
    let name = |key: u8| format!("key {key}");
    match *step {
        Step::Put { key, replicas, bytes } => {
            let tickets = pool.reserve_replicas(ALICE, &[&name(key)], bytes, replicas, &[]).tickets;
            pool.seal(ALICE, &tickets);
        }
        Step::Read { key, node, times } if pool.is_there(&name(key)) => read(pool, node, &name(key), times),
        Step::Repair { node } => {
            let who = (NodeId::new(node), Incarnation::new(life));
            let work = pool.with(|core, now, effects| core.work(now, ALICE, who, (8, 1 << 20), effects));
            if let Ok(work) = work {
                let tickets: Vec<Ticket> = work.tasks.iter().map(|task| task.ticket).collect();
                pool.seal(ALICE, &tickets);
            }
        }
        Step::Drain { node, on } if pool.status().nodes.iter().any(|known| known.node.get() == node) => {
            pool.drain(node, on.then_some(Drain::Move));
        }
        Step::Remove { key } => drop(pool.remove(&[&name(key)])),
        Step::Pin { key } => drop(pool.pin(&[&name(key)], Some(LEASE))),
        Step::Pass { ms } => {
            pool.pass(ms);
            pool.tick();
        }
        Step::Leave { .. } | Step::Read { .. } | Step::Drain { .. } => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_calls_break_the_budget_or_the_book(steps in prop::collection::vec(step(), 1..80)) {
        let budget = 300_000;
        let settings = Settings { hot_replica_bytes: budget, node_dead_ms: 1 << 30, ..SETTINGS };
        let mut pool = Pool::of(settings, &[MIB; 4]);
        let mut lives = [1u64; 5];
        for step in steps {
            let life = match step {
                Step::Repair { node } => lives[node as usize],
                Step::Leave { node } => {
                    let life = &mut lives[node as usize];
                    pool.leave(node, *life).unwrap();
                    *life += 1;
                    pool.join(node, *life, MIB, 0).unwrap();
                    *life
                }
                _ => 1,
            };
            run(&mut pool, &step, life);
            let bytes = pool.core.extras.bytes + pool.core.extras_coming;
            prop_assert!(bytes <= budget || !pool.core.draining.is_empty(), "{bytes} bytes");
        }
    }
}
