//! What is done in steps: nobody sees how far it has come.

use super::*;

/// A pool that forgets one object a call.
fn slow(segments: &[u64]) -> Pool {
    let core = Core::new(Settings { step: 1, ..SETTINGS }, Epoch::new(1000), Millis::new(0));
    let mut pool = Pool { core, now: 0, effects: Vec::new() };
    for (node, bytes) in (1..).zip(segments) {
        pool.join(node, 1, *bytes, 0).unwrap();
    }
    pool
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("key {number}")).collect()
}

fn refs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

impl Pool {
    fn finish(&mut self) {
        let mut ticks = 0;
        while self.core.sweeps() {
            self.tick();
            ticks += 1;
            assert!(ticks < 1000, "a sweep that does not end");
        }
    }

    fn remove_all(&mut self) -> u64 {
        self.with(Core::remove_all).removed
    }

    fn info_of(&mut self, keys: &[&str]) -> Vec<KeyReport> {
        let keys = batch(keys);
        self.with(|core, now, effects| core.info(now, &keys, effects))
    }
}

#[test]
fn what_a_removal_of_everything_leaves_is_forgotten_in_steps_and_at_once_for_everybody() {
    let mut pool = slow(&[MIB, MIB]);
    let (many, pinned) = (names(150), batch(&["key 3", "key 149"]));
    pool.put_replicas(&refs(&many), 100, 2, &[]);
    pool.with(|core, now, effects| core.pin(now, &pinned, None, effects)).unwrap();
    let lease = pool.locate(BOB, &["key 140"]).lease;
    assert_eq!(pool.remove_all(), 150);
    assert!(pool.core.sweeps() && pool.core.index.len() > 100, "it takes more than one step");
    let status = pool.status();
    assert_eq!((status.objects, status.replicas, status.hard_pins), (0, 0, 0));
    assert!(status.nodes.iter().all(|node| node.objects == 0 && node.drain.objects == 0));
    assert_eq!(pool.exist("key 149"), LocateOutcome::LocateAbsent);
    assert_eq!(pool.prefix(&["key 149", "key 148"]), (0, 0));
    assert_eq!(pool.locate(BOB, &["key 141", "key 142"]).lease, None);
    assert_eq!(pool.remove(&["key 147"]), [false]);
    let pin = pool.with(|core, now, effects| core.pin(now, &pinned, Some(5), effects)).unwrap();
    assert!(pin.iter().all(|outcome| *outcome == memcache_proto::pb::PinOutcome::PinAbsent));
    assert_eq!(pool.info_of(&["key 146"])[0], KeyReport::default());
    assert_eq!(pool.work(1).tasks, [], "nothing of it is copied");
    pool.put(&["key 145", "key 144"], 100);
    assert!(pool.core.sweeps());
    assert_eq!((pool.status().objects, pool.prefix(&["key 145", "key 144", "key 143"])), (2, (2, 2)));
    pool.release(BOB, lease);
    pool.finish();
    assert_eq!((pool.status().objects, pool.core.index.len()), (2, 2));
    assert_eq!(pool.used_bytes(), 2 * memcache_types::extent_bytes(100));
    assert_eq!(pool.status().evicted_objects, 0);
}

#[test]
fn a_put_that_finds_no_room_frees_what_was_removed_and_evicts_nothing() {
    let mut pool = slow(&[MIB]);
    let many = names(64);
    let each = MIB / 64 - 64;
    pool.put(&refs(&many), each);
    pool.remove_all();
    pool.put(&["new"], 10);
    assert!(pool.core.sweeps());
    pool.put(&["whole"], MIB - 64 - 128);
    assert!(pool.is_there("new") && pool.is_there("whole"));
    assert_eq!(pool.status().evicted_objects, 0);
}

#[test]
fn a_put_under_way_when_everything_was_removed_stays() {
    let mut pool = slow(&[MIB]);
    let many = names(100);
    let early = pool.ticket(ALICE, "early", 10);
    pool.put(&refs(&many), 10);
    let again = pool.ticket(ALICE, "again", 10);
    assert_eq!(pool.remove_all(), 100);
    assert_eq!(pool.seal(ALICE, &[early, again]), [SealOutcome::Sealed; 2]);
    assert!(pool.core.sweeps());
    pool.finish();
    assert!(pool.is_there("early") && pool.is_there("again"));
    assert_eq!(pool.status().objects, 2);
}

#[test]
fn a_floor_takes_what_is_older_at_once_and_nothing_else() {
    let mut pool = slow(&[MIB]);
    let (old, new) = (names(60), (0..60).map(|number| format!("new {number}")).collect::<Vec<_>>());
    let floor = pool.put(&refs(&old), 10).last().unwrap().generation.get();
    pool.put(&refs(&new), 10);
    let request = JoinRequest { floor, ..join_request(2, 1, MIB, 0) };
    pool.with(|core, now, effects| core.join(now, request, effects)).unwrap();
    assert!(pool.core.sweeps());
    let there = |pool: &mut Pool, keys: &[String]| keys.iter().filter(|key| pool.is_there(key)).count();
    assert!(!pool.is_there("key 59") && !pool.is_there("key 0") && pool.is_there("new 59"));
    assert!(pool.put(&["key 59"], 10)[0].generation.get() > floor, "its key can be put again");
    pool.finish();
    assert_eq!((there(&mut pool, &old), there(&mut pool, &new), pool.status().objects), (1, 60, 61));
}

#[test]
fn everything_can_be_removed_again_and_again() {
    let mut pool = slow(&[MIB, MIB]);
    let many = names(90);
    pool.put(&refs(&many), 10);
    assert_eq!(pool.remove_all(), 90);
    for turn in 0..9 {
        let keys = [format!("one {turn}"), format!("two {turn}"), "same".to_owned()];
        pool.put_replicas(&refs(&keys), 10, 2, &[]);
        assert_eq!((pool.status().objects, pool.remove_all(), pool.status().objects), (3, 3, 0), "{turn}");
        assert!(!pool.is_there("same") && !pool.is_there("one 0"));
    }
    pool.put(&["last"], 10);
    pool.finish();
    assert_eq!((pool.status().objects, pool.core.index.len()), (1, 1));
}

#[test]
fn a_drain_and_the_loss_of_a_node_go_on_while_what_was_removed_is_forgotten() {
    let mut pool = slow(&[MIB, MIB, MIB]);
    let many = names(100);
    pool.put_replicas(&refs(&many), 10, 2, &[]);
    pool.remove_all();
    pool.put_replicas(&["a", "b"], 10, 2, &[1, 2]);
    pool.leave(2, 1).unwrap();
    pool.drain(1, Some(Drain::Move));
    assert!(pool.core.sweeps());
    for _ in 0..200 {
        pool.tick();
        pool.repair(3);
    }
    assert!(pool.drained(1).is_empty && pool.is_there("a") && pool.is_there("b"));
    assert_eq!(pool.drained(1).moved.objects, 2, "what was removed counts as nothing");
    assert_eq!(pool.status().objects, 2);
}

#[test]
fn many_reservations_that_run_out_together_end_in_steps() {
    let mut pool = Pool::new(&[16 * MIB]);
    let many = names(limits::CALL_ENDED_MAX + 100);
    let keys = batch(&many);
    let request =
        ReserveRequest { keys: &keys, payload_bytes: &[10], near: None, replicas: 1, preferred: &[], exclusive: false };
    let tickets = pool.core.reserve(Millis::new(0), ALICE, &request, &mut Vec::new()).unwrap().tickets;
    let last = tickets.last().unwrap().reservation.get();
    let at = Millis::new(TTL);
    assert_eq!(pool.core.seal(at, ALICE, &[last], &mut Vec::new()).unwrap(), [SealOutcome::SealLost]);
    assert_eq!(pool.core.reservations.len(), 100, "some are left for the next call");
    assert!(pool.core.tick(at, &mut Vec::new()) || pool.core.reservations.len() == 0);
    pool.core.advance(at, &mut Vec::new());
    assert_eq!((pool.core.reservations.len(), pool.core.index.len()), (0, 0));
    let rested = Millis::new(2 * TTL);
    while pool.core.tick(rested, &mut Vec::new()) {}
    assert_eq!(pool.core.status(rested, &mut Vec::new()).nodes[0].used_bytes, 0);
}

#[test]
fn many_leases_that_end_together_end_in_steps() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a"], MIB - 64);
    let (now, keys) = (Millis::new(0), batch(&["a"]));
    for _ in 0..=limits::CALL_ENDED_MAX {
        pool.core.locate(now, ALICE, &keys, None, &mut Vec::new()).unwrap();
    }
    let last = pool.core.locate(now, ALICE, &keys, None, &mut Vec::new()).unwrap().lease.unwrap().get();
    let at = Millis::new(LEASE);
    assert_eq!(pool.core.renew(at, ALICE, &[last], &mut Vec::new()).unwrap(), [false], "its time is over");
    assert_eq!(pool.core.leases.len(), 2);
    let request = ReserveRequest {
        keys: &batch(&["b"]),
        payload_bytes: &[MIB - 64],
        near: None,
        replicas: 1,
        preferred: &[],
        exclusive: false,
    };
    pool.core.remove(at, &keys, &mut Vec::new());
    let reply = pool.core.reserve(at, BOB, &request, &mut Vec::new()).unwrap();
    assert_eq!((reply.outcomes, pool.core.leases.len()), (vec![ReserveOutcome::Reserved], 0));
}
