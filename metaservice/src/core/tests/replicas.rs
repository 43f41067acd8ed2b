use LocateOutcome::{LocateAbsent, Located};
use SealOutcome::{SealPresent, Sealed};

use super::*;
use crate::core::limits::{CALL_BURIALS_MAX, REPLY_COPIES_MAX};

const QUARTER: u64 = MIB / 4 - 64;

#[test]
fn replicas_are_on_distinct_nodes_and_all_are_found() {
    let mut pool = Pool::new(&[MIB, MIB, MIB]);
    let tickets = pool.put_replicas(&["a", "b"], 100, 2, &[]);
    assert_eq!(tickets.len(), 4);
    for key in ["a", "b"] {
        let nodes = pool.nodes_of(key);
        assert_eq!(nodes.len(), 2, "{key}: {nodes:?}");
        assert_ne!(nodes[0], nodes[1], "{key}");
    }
    assert_eq!((pool.status().objects, pool.status().replicas), (2, 4));
}

#[test]
fn fewer_nodes_give_fewer_replicas_and_the_reply_says_so() {
    let mut pool = Pool::new(&[MIB, MIB]);
    let reply = pool.reserve_replicas(ALICE, &["a"], 100, 8, &[]);
    assert_eq!((reply.replicas, reply.tickets.len()), (vec![2], 2));
    let refused = |replicas| {
        let keys = batch(&["x"]);
        let request =
            ReserveRequest { keys: &keys, payload_bytes: &[1], near: None, exclusive: false, replicas, preferred: &[] };
        let mut core = Core::new(SETTINGS, Epoch::new(1), Millis::new(0));
        core.reserve(Millis::new(0), ALICE, &request, &mut Vec::new()).unwrap_err().to_string()
    };
    assert_eq!(refused(9), "replicas = 9: want 1 to 8");
    assert_eq!(refused(0), "replicas = 0: want 1 to 8");
}

#[test]
fn preferred_nodes_come_first_in_their_order() {
    let mut pool = Pool::new(&[MIB; 5]);
    pool.put_replicas(&["a"], 100, 3, &[4, 2, 5]);
    assert_eq!(pool.nodes_of("a"), [2, 4, 5]);
    pool.put_replicas(&["b"], 100, 2, &[9, 3]);
    assert!(pool.nodes_of("b").contains(&3), "an unknown node is passed over");
    pool.put_replicas(&["c"], 100, 1, &[5]);
    assert_eq!(pool.nodes_of("c"), [5]);
}

#[test]
fn the_reader_s_own_replica_is_found_first() {
    let mut pool = Pool::new(&[MIB; 3]);
    pool.put_replicas(&["a"], 100, 3, &[1, 2, 3]);
    for node in 1..=3 {
        let keys = batch(&["a"]);
        let near = Some(NodeId::new(node));
        let reply = pool.with(|core, now, effects| core.locate(now, BOB, &keys, near, effects)).unwrap();
        let first = reply.found[0].address.segment().get();
        let described = pool.with(|core, now, effects| core.describe(now, &[first], effects)).unwrap();
        assert_eq!((described[0].node.get(), reply.others.len()), (node, 2));
    }
}

#[test]
fn one_sealed_replica_is_enough_and_the_others_follow() {
    let mut pool = Pool::new(&[MIB, MIB]);
    let tickets = pool.reserve_replicas(ALICE, &["a"], 100, 2, &[]).tickets;
    assert_eq!(pool.seal(ALICE, &tickets[..1]), [Sealed]);
    assert!(pool.is_there("a"));
    assert_eq!(pool.status().repairs_waiting, 0, "its writer may still bring the other one");
    pool.abort(ALICE, tickets[1]);
    assert_eq!(pool.status().repairs_waiting, 1);
    assert_eq!(pool.repair(1) + pool.repair(2), 1);
    assert_eq!(pool.nodes_of("a"), [1, 2]);
}

#[test]
fn the_first_sealed_writer_wins_with_all_its_replicas() {
    let mut pool = Pool::new(&[MIB; 4]);
    let alices = pool.reserve_replicas(ALICE, &["a"], 100, 2, &[1, 2]).tickets;
    let bobs = pool.reserve_replicas(BOB, &["a"], 100, 2, &[3, 4]).tickets;
    assert_eq!(pool.seal(ALICE, &alices[1..]), [Sealed]);
    assert_eq!(pool.seal(BOB, &bobs), [SealPresent, SealPresent], "other bytes never become replicas");
    assert_eq!(pool.seal(ALICE, &alices[..1]), [Sealed]);
    assert_eq!(pool.nodes_of("a"), [1, 2]);
}

#[test]
fn a_copy_of_a_removed_object_does_not_become_a_replica_of_the_next_one() {
    let mut pool = Pool::new(&[MIB; 3]);
    pool.put_replicas(&["a"], 100, 2, &[1, 2]);
    pool.leave(2, 1).unwrap();
    let work = pool.work(3);
    assert_eq!(work.tasks.len(), 1);
    pool.remove(&["a"]);
    pool.put_replicas(&["a"], 100, 1, &[1]);
    assert_eq!(pool.seal(ClientId::new(103), &[work.tasks[0].ticket]), [SealPresent]);
    assert_eq!(pool.nodes_of("a"), [1]);
    pool.remove(&["a"]);
    assert_eq!(pool.exist("a"), LocateAbsent);
}

#[test]
fn a_lost_node_s_keys_get_their_replicas_back() {
    let mut pool = Pool::new(&[MIB; 3]);
    pool.put_replicas(&["a", "b", "c"], 100, 2, &[1, 2]);
    pool.put_replicas(&["alone"], 100, 1, &[2]);
    pool.leave(2, 1).unwrap();
    for key in ["a", "b", "c"] {
        assert_eq!(pool.nodes_of(key), [1], "{key}");
    }
    assert_eq!(pool.exist("alone"), LocateAbsent);
    assert_eq!(pool.status().repairs_waiting, 3);
    assert_eq!(pool.repair(1), 0, "it has them all");
    assert_eq!(pool.repair(3), 3);
    for key in ["a", "b", "c"] {
        assert_eq!(pool.nodes_of(key), [1, 3], "{key}");
    }
    let status = pool.status();
    assert_eq!((status.repairs_waiting, status.copies, status.copied), (0, 0, 3));
}

#[test]
fn a_copy_that_is_not_made_is_handed_out_again() {
    let mut pool = Pool::new(&[MIB; 4]);
    pool.put_replicas(&["a"], 100, 2, &[1, 2]);
    pool.leave(1, 1).unwrap();
    let first = pool.work(3);
    assert_eq!((first.tasks.len(), pool.work(4).tasks.len()), (1, 0), "one copy at a time");
    assert_eq!(pool.status().copies, 1);
    pool.leave(3, 1).unwrap();
    assert_eq!(pool.status().copies, 0);
    let second = pool.work(4);
    assert_eq!(second.tasks.len(), 1);
    pool.pass(TTL);
    assert_eq!(pool.repair(4), 1, "its reservation ran out");
    assert_eq!(pool.nodes_of("a"), [2, 4]);
}

#[test]
fn copies_evict_nothing_and_do_not_push_a_node_over_its_watermark() {
    let mut pool = Pool::new(&[MIB; 3]);
    pool.put_replicas(&["a"], QUARTER, 2, &[1, 2]);
    pool.put_replicas(&["x", "y", "z"], QUARTER, 1, &[3]);
    pool.leave(2, 1).unwrap();
    assert_eq!(pool.work(3).tasks.len(), 0, "one more quarter would fill it");
    pool.remove(&["x"]);
    assert_eq!(pool.repair(3), 1);
}

#[test]
fn work_is_bounded_by_number_and_by_bytes() {
    let mut pool = Pool::new(&[8 * MIB, 8 * MIB, 8 * MIB]);
    let keys: Vec<String> = (0..REPLY_COPIES_MAX + 10).map(|number| number.to_string()).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    pool.put_replicas(&keys, 1000, 2, &[1, 2]);
    pool.leave(2, 1).unwrap();
    while pool.status().repairs_waiting < keys.len() as u64 {}
    let mut ask = |tasks, bytes| {
        let who = (NodeId::new(3), Incarnation::new(1));
        pool.with(|core, now, effects| core.work(now, BOB, who, (tasks, bytes), effects)).unwrap().tasks.len()
    };
    assert_eq!((ask(5, 1 << 40), ask(100, 2500), ask(100, 1), ask(0, 1 << 40)), (5, 3, 1, 0));
}

#[test]
fn surplus_replicas_are_evicted_before_last_ones_and_are_not_made_again() {
    let mut pool = Pool::new(&[MIB, MIB]);
    pool.put_replicas(&["old"], QUARTER, 1, &[1]);
    pool.put_replicas(&["twice"], QUARTER, 2, &[1, 2]);
    pool.put_replicas(&["p", "q"], QUARTER, 1, &[1]);
    pool.put_replicas(&["r", "s", "t"], QUARTER, 1, &[2]);
    pool.put_replicas(&["new"], QUARTER, 1, &[1]);
    assert!(pool.is_there("old") && pool.is_there("twice"));
    assert_eq!(pool.nodes_of("twice").len(), 1);
    assert_eq!(pool.status().repairs_waiting, 0, "there was no room for it");
    pool.put_replicas(&["newer"], QUARTER, 1, &[1]);
    assert!(!pool.is_there("old"), "the oldest of the last ones");
}

#[test]
fn removing_takes_all_replicas_and_readers_finish() {
    let mut pool = Pool::new(&[MIB, MIB]);
    pool.put_replicas(&["a"], 100, 2, &[]);
    let lease = pool.locate(BOB, &["a"]).lease;
    assert_eq!(pool.remove(&["a"]), [true]);
    assert_eq!(pool.exist("a"), LocateAbsent);
    assert!(pool.used_bytes() > 0);
    pool.release(BOB, lease);
    assert_eq!((pool.used_bytes(), pool.status().replicas), (0, 0));
}

#[test]
fn a_large_node_is_forgotten_in_steps_and_at_once_for_readers() {
    let mut pool = Pool::new(&[64 * MIB, 64 * MIB]);
    let names: Vec<String> = (0..4 * CALL_BURIALS_MAX).map(|number| number.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    pool.put_replicas(&names, 100, 1, &[1]);
    pool.put_replicas(&["both"], 100, 2, &[1, 2]);
    pool.leave(1, 1).unwrap();
    let keys = batch(&names);
    let outcomes = pool.core.exist(Millis::new(0), &keys, &mut Vec::new());
    assert!(outcomes.iter().all(|outcome| *outcome == LocateAbsent));
    assert!(pool.core.graves.len() == 1, "they are not forgotten yet");
    let (first, last) = (names[0], names[names.len() - 1]);
    assert_eq!(pool.remove(&[last]), [false]);
    pool.put(&[first], 100);
    assert_eq!((pool.exist(first), pool.nodes_of("both")), (Located, vec![2]));
    for _ in 0..8 {
        pool.pass(1);
    }
    assert!(pool.core.graves.is_empty());
    assert_eq!((pool.status().objects, pool.is_there(first)), (2, true));
}

#[test]
fn a_drained_node_ends_empty_and_every_key_stays_readable() {
    let mut pool = Pool::new(&[MIB; 3]);
    pool.put_replicas(&["a", "b", "c"], 100, 1, &[1]);
    pool.put_replicas(&["twice"], 100, 2, &[1, 2]);
    let late = pool.reserve_replicas(ALICE, &["late"], 100, 1, &[1]).tickets;
    let report = pool.drain(1, Some(Drain::Move));
    assert_eq!((report.objects, report.is_empty), (3, false), "one replica had a sibling elsewhere");
    assert_ne!(
        pool.reserve_replicas(ALICE, &["x"], 100, 1, &[1]).tickets[0].address.segment(),
        late[0].address.segment()
    );
    assert_eq!(pool.seal(ALICE, &late), [Sealed]);
    assert_eq!(pool.repair(1), 0, "it gets nothing new");
    let moved = pool.repair(2) + pool.repair(3) + pool.repair(2);
    assert_eq!(moved, 5, "four that were only here, and the sibling");
    let report = pool.drained(1);
    assert_eq!((report.objects, report.is_empty), (0, true));
    for key in ["a", "b", "c", "twice", "late"] {
        assert!(pool.is_there(key) && !pool.nodes_of(key).contains(&1), "{key}");
    }
    assert_eq!(pool.nodes_of("twice"), [2, 3]);
}

#[test]
fn a_drain_that_drops_waits_for_readers_only() {
    let mut pool = Pool::new(&[MIB, MIB]);
    pool.put_replicas(&["a", "b"], 100, 1, &[1]);
    let lease = pool.locate(BOB, &["a"]).lease;
    let report = pool.drain(1, Some(Drain::Drop));
    assert_eq!((report.objects, report.is_empty), (1, false));
    assert!(pool.is_there("a") && !pool.is_there("b"));
    pool.release(BOB, lease);
    pool.tick();
    assert!(pool.drained(1).is_empty && !pool.is_there("a"));
}

#[test]
fn a_drain_can_be_cancelled() {
    let mut pool = Pool::new(&[MIB, MIB]);
    pool.put_replicas(&["a"], 100, 1, &[1]);
    pool.drain(1, Some(Drain::Move));
    assert_eq!(pool.drain(1, None).drain, None);
    assert_eq!(pool.repair(2), 0);
    pool.put_replicas(&["b"], 100, 1, &[1]);
    assert_eq!(pool.nodes_of("b"), [1]);
}

#[test]
fn everything_about_a_key_is_told_and_nothing_changes() {
    let mut pool = Pool::new(&[MIB; 3]);
    pool.put_replicas(&["a"], 100, 2, &[1, 2]);
    pool.reserve_replicas(BOB, &["w"], 100, 1, &[]);
    let lease = pool.locate(BOB, &["a"]).lease;
    pool.drain(2, Some(Drain::Move));
    let keys = batch(&["a", "w", "x"]);
    let infos = pool.with(|core, now, effects| core.info(now, &keys, effects));
    let nodes: Vec<(u64, u32, bool)> =
        infos[0].replicas.iter().map(|one| (one.node.get(), one.leases, one.draining)).collect();
    assert_eq!((infos[0].wanted, nodes), (2, vec![(2, 1, true), (1, 1, false)]));
    assert_eq!((infos[1].writers, infos[1].replicas.len()), (1, 0));
    assert_eq!(infos[2], KeyReport::default());
    pool.release(BOB, lease);
}

#[test]
fn a_copy_that_its_maker_gives_up_has_time() {
    let mut pool = Pool::new(&[MIB; 3]);
    pool.put_replicas(&["a", "b"], 100, 2, &[1, 2]);
    pool.leave(2, 1).unwrap();
    let work = pool.work(3);
    assert_eq!(work.tasks.len(), 2);
    pool.abort(ClientId::new(103), work.tasks[0].ticket);
    assert_eq!(pool.seal(ClientId::new(103), &[work.tasks[1].ticket]), [Sealed]);
    assert_eq!((pool.work(3).tasks.len(), pool.status().repairs_waiting), (0, 1));
    pool.pass(TTL);
    assert_eq!(pool.repair(3), 1);
}
