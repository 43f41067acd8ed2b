use memcache_types::extent_bytes;

use super::*;

/// One object as a node lists it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object {
    key: &'static str,
    offset: u64,
    payload_bytes: u64,
    generation: u64,
    origin: u64,
    wanted: u32,
    record: u32,
}

pub(super) const fn object(key: &'static str, offset: u64, generation: u64, record: u32) -> Object {
    Object { key, offset, payload_bytes: 100, generation, origin: generation, wanted: 1, record }
}

impl Pool {
    /// Node 1 joins with memory of an earlier life of the book.
    fn rejoin(&mut self, node: u64, floor: u64) -> JoinReply {
        let request = JoinRequest { lists: true, floor, ..join_request(node, 1, MIB, 5) };
        self.with(|core, now, effects| core.join(now, request, effects)).unwrap()
    }

    pub(super) fn list(&mut self, node: u64, segment: SegmentId, objects: &[Object], done: bool) -> Vec<bool> {
        self.tell(node, segment, objects, (done, false, false))
    }

    /// `what`: all and rested, all, the other way round.
    fn tell(&mut self, node: u64, segment: SegmentId, objects: &[Object], what: (bool, bool, bool)) -> Vec<bool> {
        let keys: Vec<&str> = objects.iter().map(|object| object.key).collect();
        let keys = batch(&keys);
        let numbers = |of: fn(&Object) -> u64| objects.iter().map(of).collect::<Vec<u64>>();
        let (offsets, payload_bytes) = (numbers(|object| object.offset), numbers(|object| object.payload_bytes));
        let (generations, origins) = (numbers(|object| object.generation), numbers(|object| object.origin));
        let wanted: Vec<u32> = objects.iter().map(|object| object.wanted).collect();
        let records: Vec<u32> = objects.iter().map(|object| object.record).collect();
        let holdings = Holdings {
            node: NodeId::new(node),
            incarnation: Incarnation::new(1),
            segment,
            keys: &keys,
            offsets: &offsets,
            payload_bytes: &payload_bytes,
            generations: &generations,
            origins: &origins,
            wanted: &wanted,
            records: &records,
            done: what.0,
            told: what.1,
            gone: what.2,
        };
        self.with(|core, now, effects| core.take_holdings(now, &holdings, effects)).unwrap().kept
    }
}

#[test]
fn what_a_node_lists_is_readable_at_once_and_where_it_was() {
    let mut pool = Pool::new(&[]);
    let joined = pool.rejoin(1, 0);
    assert!(joined.lists && joined.rest_ms == TTL);
    assert_eq!(pool.list(1, joined.segments[0], &[object("a", 0, 7, 3), object("b", 4096, 9, 0)], false), [true, true]);
    let found = pool.locate(BOB, &["a", "b"]).found;
    let places: Vec<_> = found.iter().map(|found| (found.address.offset(), found.generation.get())).collect();
    assert_eq!(places, [(0, 7), (4096, 9)]);
    assert_eq!(pool.used_bytes(), 2 * extent_bytes(100));
}

#[test]
fn nothing_is_placed_before_the_listing_is_done_and_the_memory_has_rested() {
    let mut pool = Pool::new(&[]);
    let joined = pool.rejoin(1, 0);
    pool.pass(2 * TTL);
    pool.heartbeat(1, 1).unwrap();
    let nothing = pool.reserve(&["x"], 100);
    assert_eq!(nothing.outcomes, [ReserveOutcome::ReserveNoSpace]);
    assert!(pool.status().nodes[0].listing);
    pool.list(1, joined.segments[0], &[object("a", 0, 7, 0)], true);
    assert!(!pool.status().nodes[0].listing);
    let ticket = pool.ticket(ALICE, "x", 100);
    assert!(ticket.generation.get() > 7 && ticket.address.offset() >= extent_bytes(100));
    assert_ne!(ticket.record, Some(place(MIB).record_offset(0)), "the place is in use");

    let early = pool.rejoin(2, 0);
    pool.list(2, early.segments[0], &[], true);
    let near = |pool: &mut Pool| pool.reserve_as(ALICE, &["n"], &[MIB - 64], Some(2), false).unwrap().outcomes[0];
    assert_eq!(near(&mut pool), ReserveOutcome::ReserveNoSpace, "it was all, but writers may still write");
    pool.pass(TTL);
    assert_eq!(near(&mut pool), ReserveOutcome::Reserved);
}

#[test]
fn the_same_claims_again_have_the_same_answer() {
    let mut pool = Pool::new(&[]);
    let segment = pool.rejoin(1, 0).segments[0];
    let objects = [object("a", 0, 7, 3), object("b", 0, 8, 4)];
    assert_eq!(pool.list(1, segment, &objects, false), [true, false]);
    assert_eq!(pool.list(1, segment, &objects, false), [true, false]);
    assert_eq!(pool.rejoin(1, 0).segments, [segment], "an answer got lost");
    assert_eq!(pool.list(1, segment, &objects, true), [true, false]);
    assert_eq!(pool.list(1, segment, &[object("late", 4096, 9, 9)], true), [false], "it was all");
}

#[test]
fn claims_that_cannot_be_are_refused_one_by_one() {
    let mut pool = Pool::new(&[]);
    let segment = pool.rejoin(1, 0).segments[0];
    let sound = object("sound", 4096, 7, 3);
    let future = u64::MAX; // no clock was ever set back so far
    let claims = [
        sound,
        Object { key: "beyond", offset: MIB - 64, ..object("", 0, 8, 4) },
        Object { payload_bytes: u64::MAX, ..object("huge", 0, 8, 4) },
        object("crooked", 4096 + 1024 + 1, 8, 4),
        object("meets", 4096 - 64, 8, 4),
        object("future", 0, future, 4),
        object("nothing", 0, 0, 4),
        Object { origin: 9, ..object("older than its put", 0, 8, 4) },
        Object { origin: 0, ..object("never put", 0, 8, 4) },
        object("no place", 0, 8, RECORDS),
        object("same place", 0, 8, 3),
        object("sound", 0, 6, 4),
    ];
    let kept = pool.list(1, segment, &claims, false);
    assert_eq!(kept.iter().position(|kept| *kept), Some(0));
    assert_eq!(kept.iter().filter(|kept| **kept).count(), 1, "{kept:?}");
    let other = SegmentId::new(segment.get() + 1);
    let keys = batch(&["k"]);
    let short = Holdings {
        node: NodeId::new(1),
        incarnation: Incarnation::new(1),
        segment,
        keys: &keys,
        offsets: &[],
        payload_bytes: &[1],
        generations: &[1],
        origins: &[1],
        wanted: &[1],
        records: &[1],
        done: false,
        told: false,
        gone: false,
    };
    let refused = pool.with(|core, now, effects| core.take_holdings(now, &short, effects));
    assert!(matches!(refused, Err(Refusal::Length { .. })), "{refused:?}");
    let whole = Holdings { offsets: &[0], ..short };
    for strange in [Holdings { segment: other, ..whole }, Holdings { node: NodeId::new(2), ..whole }] {
        let refused = pool.with(|core, now, effects| core.take_holdings(now, &strange, effects));
        assert!(
            matches!(refused, Err(Refusal::NotLent { .. })),
            "a node clears what is refused one by one: {refused:?}"
        );
    }
    let stale = Holdings { incarnation: Incarnation::new(0), ..whole };
    let refused = pool.with(|core, now, effects| core.take_holdings(now, &stale, effects));
    assert!(matches!(refused, Err(Refusal::Stale { .. })), "{refused:?}");
}

#[test]
fn of_two_objects_of_one_key_the_later_put_one_stays() {
    let mut pool = Pool::new(&[]);
    let (first, second) = (pool.rejoin(1, 0).segments[0], pool.rejoin(2, 0).segments[0]);
    assert_eq!(pool.list(1, first, &[object("k", 0, 7, 0)], true), [true]);
    assert_eq!(pool.list(2, second, &[object("k", 64, 9, 0)], true), [true]);
    assert_eq!(pool.locate(BOB, &["k"]).found[0].generation.get(), 9);
    let third = pool.rejoin(3, 0).segments[0];
    let (older, newer) = (object("k", 0, 8, 0), object("k", 4096, 10, 1));
    assert_eq!(pool.list(3, third, &[older, newer], true), [false, true]);
    let fourth = pool.rejoin(4, 0).segments[0];
    let (older, newer) = (object("k", 0, 11, 0), object("k", 4096, 12, 1));
    assert_eq!(pool.list(4, fourth, &[older, newer], true), [true, true], "also on one node");
    assert_eq!(pool.locate(BOB, &["k"]).found[0].generation.get(), 12);
    assert_eq!((pool.status().objects, pool.status().replicas), (1, 1));
}

#[test]
fn replicas_of_one_put_are_found_again_and_so_is_how_many_there_should_be() {
    let mut pool = Pool::new(&[]);
    let (first, second) = (pool.rejoin(1, 0).segments[0], pool.rejoin(2, 0).segments[0]);
    let replica = |generation| Object { origin: 7, wanted: 3, ..object("k", 0, generation, 0) };
    assert_eq!(pool.list(1, first, &[replica(7)], true), [true]);
    // A copy that was made later: the same bytes all the same.
    assert_eq!(pool.list(2, second, &[replica(30)], true), [true]);
    assert_eq!(pool.list(2, second, &[Object { offset: 4096, record: 1, ..replica(31) }], true), [false], "one a node");
    assert_eq!((pool.status().objects, pool.status().replicas), (1, 2));
    let third = pool.rejoin(3, 0).segments[0];
    pool.list(3, third, &[], true);
    pool.pass(TTL);
    let copies = pool.work(3).tasks;
    assert_eq!(copies.len(), 1, "the third is restored");
    assert_eq!((copies[0].origin, copies[0].wanted), (7, 3));
    pool.with(Core::remove_all);
    assert_eq!(pool.status().replicas, 0);
}

#[test]
fn a_floor_counts_for_copies_of_what_was_put_before_it() {
    let mut pool = Pool::new(&[]);
    let segment = pool.rejoin(1, 0).segments[0];
    let copy = Object { origin: 7, ..object("k", 0, 30, 0) };
    assert_eq!(pool.list(1, segment, &[copy], false), [true]);
    pool.rejoin(2, 10);
    assert!(!pool.is_there("k"));
    assert_eq!(pool.list(1, segment, &[Object { key: "l", offset: 4096, record: 1, ..copy }], false), [false]);
}

#[test]
fn what_was_removed_is_not_taken_back() {
    let mut pool = Pool::new(&[]);
    let segment = pool.rejoin(1, 0).segments[0];
    assert_eq!(pool.list(1, segment, &[object("k", 0, 7, 0)], false), [true]);
    assert_eq!(pool.remove(&["k", "away"]), [true, false]);
    let claims = [object("k", 0, 7, 0), object("away", 4096, 8, 1), object("other", 8192, 8, 2)];
    assert_eq!(pool.list(1, segment, &claims, false), [false, false, true]);
    pool.with(Core::remove_all);
    assert_eq!(pool.list(1, segment, &[object("third", 4096, 9, 3)], false), [false]);
}

#[test]
fn the_newest_floor_that_any_node_brings_counts_for_all() {
    let mut pool = Pool::new(&[]);
    let segment = pool.rejoin(1, 0).segments[0];
    assert_eq!(pool.list(1, segment, &[object("old", 0, 7, 0), object("new", 4096, 20, 1)], true), [true, true]);
    assert_eq!(pool.rejoin(2, 10).floor, 10);
    assert!(!pool.is_there("old") && pool.is_there("new"));
    assert_eq!(pool.rejoin(3, 8).floor, 10, "told to those that were away");
    let request = JoinRequest { floor: u64::MAX, ..join_request(4, 1, MIB, 5) };
    let refused = pool.with(|core, now, effects| core.join(now, request, effects));
    assert!(matches!(refused, Err(Refusal::Value { what: "floor", .. })), "{refused:?}");
}

#[test]
fn what_was_written_first_goes_first_after_a_listing() {
    let mut pool = Pool::new(&[]);
    let segment = pool.rejoin(1, 0).segments[0];
    let half = MIB / 2;
    let large = |key, offset, generation, record| Object {
        payload_bytes: half - 64,
        ..object(key, offset, generation, record)
    };
    pool.list(1, segment, &[large("older", half, 7, 0), large("newer", 0, 9, 1)], true);
    pool.pass(TTL);
    pool.ticket(ALICE, "x", half - 64);
    assert!(!pool.is_there("older") && pool.is_there("newer"));
}

#[test]
fn a_removal_names_the_segments_that_may_hold_the_key_and_have_not_told() {
    let mut pool = Pool::new(&[MIB]);
    let (first, second) = (pool.rejoin(2, 0).segments[0], pool.rejoin(3, 0).segments[0]);
    let untold = |pool: &mut Pool| {
        let removed = pool.with(|core, now, effects| core.remove(now, &batch(&["k"]), effects));
        let described = pool.with(|core, now, effects| core.describe(now, &[first.get(), second.get()], effects));
        let said: Vec<SegmentId> = described.unwrap().iter().filter(|one| one.untold).map(|one| one.segment).collect();
        assert_eq!(said, removed.untold, "a description says the same");
        said
    };
    assert_eq!(untold(&mut pool), [first, second]);
    pool.list(2, first, &[object("other", 0, 7, 3)], false);
    assert_eq!(untold(&mut pool), [first, second], "a part is not all");
    assert_eq!(pool.tell(2, first, &[object("k", 4096, 8, 4)], (false, true, false)), [false], "it was removed");
    assert_eq!(untold(&mut pool), [second], "told, although it still rests");
    assert!(pool.status().nodes[1].listing);
    pool.leave(3, 1).unwrap();
    assert_eq!(untold(&mut pool), []);
    let third = pool.rejoin(3, 0).segments[0];
    pool.list(3, third, &[], true);
    assert_eq!(untold(&mut pool), [], "all and rested is more than all");
}

#[test]
fn what_is_read_in_memory_that_rests_is_named_as_such() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["new"], 100);
    let segment = pool.rejoin(2, 0).segments[0];
    pool.tell(2, segment, &[object("old", 0, 7, 3), object("older", 4096, 6, 4)], (false, true, false));
    assert_eq!(pool.locate(BOB, &["new", "old", "older"]).resting, [segment]);
    assert_eq!(pool.locate(BOB, &["new"]).resting, []);
    pool.pass(TTL);
    assert_eq!(pool.locate(BOB, &["old"]).resting, [segment], "its node has not looked again");
    pool.list(2, segment, &[], true);
    assert_eq!(pool.locate(BOB, &["old"]).resting, []);
}

#[test]
fn what_is_no_longer_there_when_the_memory_has_rested_is_forgotten() {
    let mut pool = Pool::new(&[]);
    let segment = pool.rejoin(1, 0).segments[0];
    let (good, bad) = (object("good", 0, 7, 3), object("bad", 4096, 8, 4));
    assert_eq!(pool.list(1, segment, &[good, bad], false), [true, true]);
    let lease = pool.locate(BOB, &["bad"]).lease;
    let strange = [Object { generation: 9, ..good }, object("unknown", 0, 7, 3)];
    assert_eq!(pool.tell(1, segment, &strange, (false, false, true)), [false, false]);
    assert!(pool.is_there("good") && pool.is_there("bad"));
    assert_eq!(pool.tell(1, segment, &[bad], (false, false, true)), [false]);
    assert_eq!(pool.tell(1, segment, &[bad], (false, false, true)), [false], "once more");
    assert!(pool.is_there("good") && !pool.is_there("bad"));
    pool.release(BOB, lease);
    assert_eq!(pool.used_bytes(), extent_bytes(100));
    pool.list(1, segment, &[], true);
    pool.tell(1, segment, &[good], (false, false, true));
    assert!(pool.is_there("good"), "writers of this life are at work");
}
