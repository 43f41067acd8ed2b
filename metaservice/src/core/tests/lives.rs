//! The wall clock was set back between two lives of the service.

use super::listing::{Object, object};
use super::*;

/// An id of an earlier life whose epoch was this.
const fn id_of(epoch: u64, count: u64) -> u64 {
    (epoch << EPOCH_SHIFT) + count
}

impl Pool {
    /// A node that lent its memory under an earlier life joins and will tell what it holds; its segment.
    fn comes_back(&mut self, node: u64, before: u64, floor: u64) -> Result<SegmentId, Refusal> {
        let request = JoinRequest { lists: true, floor, ..join_request(node, 1, MIB, before) };
        self.with(|core, now, effects| core.join(now, request, effects)).map(|joined| joined.segments[0])
    }
}

#[test]
fn a_wall_clock_set_back_does_not_issue_old_ids() {
    let mut pool = Pool::new(&[]);
    pool.join(1, 1, MIB, 5000).unwrap();
    assert!(pool.core.epoch() > Epoch::new(5000));
    pool.pass(TTL);
    // Whatever that life issued in a day.
    let issued = id_of(5000, 86_400 * 1_000_000);
    assert!(pool.ticket(ALICE, "a", 1).generation.get() > issued);
}

#[test]
fn a_life_that_began_in_the_same_millisecond_does_not_issue_old_ids() {
    let mut pool = Pool::new(&[]);
    let epoch = pool.core.epoch();
    pool.join(1, 1, MIB, epoch.get()).unwrap();
    assert!(pool.core.epoch() > epoch);
    let ours = pool.core.epoch();
    pool.join(1, 2, MIB, ours.get()).unwrap();
    pool.leave(1, 2).unwrap();
    pool.join(1, 3, MIB, ours.get()).unwrap();
    assert_eq!(pool.core.epoch(), ours, "a node that was here tells our own");
}

#[test]
fn a_floor_of_later_ids_is_of_an_earlier_life() {
    let mut pool = Pool::new(&[]);
    // Within the first millisecond, as it were: the epochs alone do not show it.
    let floor = id_of(pool.core.epoch().get(), 5);
    let segment = pool.comes_back(1, 999, floor).unwrap();
    assert!(segment.get() > floor);
    assert!(pool.core.epoch() > Epoch::new(1000));
}

#[test]
fn a_node_that_did_not_hear_of_our_later_epoch_brings_all_it_holds() {
    let mut pool = Pool::new(&[]);
    let segment = pool.comes_back(1, 999, 0).unwrap();
    let later = id_of(1 << 30, 7);
    assert_eq!(pool.list(1, segment, &[object("a", 0, later, 0)], false), [true]);
    assert!(pool.core.serial > later && pool.core.epoch().get() > 1 << 30);
    assert!(pool.is_there("a"));
}

#[test]
fn a_clock_that_is_not_set_yet_keeps_nobody_out() {
    let mut pool = Pool::new(&[]);
    let today = 1_790_000_000_000;
    assert!(pool.core.epoch().get() < 10_000, "1970");
    pool.comes_back(1, today, id_of(today, 5)).unwrap();
    assert!(pool.core.epoch().get() > today);
}

#[test]
fn times_that_cannot_be_are_refused_by_name() {
    let mut pool = Pool::new(&[]);
    for (before, floor, name) in
        [(u64::MAX, 0, "previous_epoch"), (1 << 42, 0, "previous_epoch"), (5, u64::MAX, "floor")]
    {
        let refused = pool.comes_back(1, before, floor).unwrap_err();
        assert!(refused.to_string().contains(name), "{refused}");
    }
    assert_eq!(pool.core.epoch(), Epoch::new(1000));
    // Nobody leads it to the end of all numbers, in however many steps.
    let mut before = (1 << 41) - 1;
    let mut node = 1;
    while pool.comes_back(node, before, 0).is_ok() {
        assert!(pool.core.serial >> EPOCH_SHIFT == pool.core.epoch().get());
        (before, node) = (pool.core.epoch().get() + (1 << 36), node + 1);
    }
    assert!(pool.core.epoch().get() < 1 << 42);
}

#[test]
fn what_was_put_before_an_earlier_life_showed_is_later_all_the_same() {
    let mut pool = Pool::new(&[2 * MIB]);
    let new = pool.put(&["a"], 100)[0];
    let segment = pool.comes_back(2, 5000, 0).unwrap();
    let old = id_of(5000, 3);
    assert!(new.generation.get() < old && old < pool.core.serial);
    let told = [object("a", 0, old, 0), object("b", 4096, old + 1, 1)];
    assert_eq!(pool.list(2, segment, &told, true), [false, true]);
    assert_eq!(pool.locate(BOB, &["a"]).found[0].generation, new.generation);
}

#[test]
fn what_was_put_before_an_earlier_life_showed_comes_back_in_place_of_what_is_older() {
    let mut pool = Pool::new(&[MIB]);
    let new = pool.put(&["a"], 100)[0].generation.get();
    pool.leave(1, 1).unwrap();
    let segment = pool.comes_back(2, 5000, 0).unwrap();
    assert_eq!(pool.list(2, segment, &[object("a", 0, id_of(5000, 3), 0)], true), [true]);
    let segment = pool.comes_back(1, 1000, 0).unwrap();
    assert_eq!(pool.list(1, segment, &[object("a", 0, new, 0)], true), [true]);
    assert_eq!(pool.locate(BOB, &["a"]).found[0].generation.get(), new);
}

#[test]
fn what_was_removed_before_an_earlier_life_showed_does_not_come_back() {
    let told = [object("a", 0, id_of(5000, 3), 0), object("b", 4096, id_of(5000, 4), 1)];
    let bring = |pool: &mut Pool, told: &[Object]| {
        let segment = pool.comes_back(2, 5000, 0).unwrap();
        pool.list(2, segment, told, true)
    };
    let mut pool = Pool::new(&[2 * MIB]);
    pool.put(&["a"], 100);
    assert_eq!(pool.remove(&["a"]), [true]);
    assert_eq!(bring(&mut pool, &told), [false, true]);
    let mut pool = Pool::new(&[2 * MIB]);
    pool.with(Core::remove_all);
    assert_eq!(bring(&mut pool, &told), [false, false]);
}
