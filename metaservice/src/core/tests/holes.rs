//! Holes among more objects than are looked at in the order in which they would go.

use std::collections::BTreeSet;

use ReserveOutcome::{ReserveNoSpace, Reserved};

use super::*;

const OBJECTS: usize = 8 * limits::HOLE_OBJECTS_MAX / 4;
/// Bytes of each with its trailer; together they fill the segment.
const EACH: u64 = 1024;
/// Of so many neighbours one is in the way.
const APART: usize = 500;
/// Longer than any run between two that are in the way.
const TOO_LONG: u64 = APART as u64 * EACH - 64;
const FITS: u64 = 400 * EACH - 64;

/// A segment full of small objects that were used in no order of their places.
struct Full {
    pool: Pool,
    names: Vec<String>,
}

impl Full {
    fn new(writing: bool) -> Self {
        let mut pool = Pool::new(&[]);
        pool.core.settings.high_watermark_ppm = 1_000_000;
        pool.join(1, 1, OBJECTS as u64 * EACH, 0).unwrap();
        let names: Vec<String> = (0..OBJECTS).map(|number| format!("{number:05}")).collect();
        let mut full = Self { pool, names };
        let tickets = full.reserve_all();
        let ids = tickets.iter().enumerate().filter(|(at, _)| !(writing && at % APART == 0));
        let ids: Vec<u64> = ids.map(|(_, ticket)| ticket.reservation.get()).collect();
        let Pool { core, now, effects } = &mut full.pool;
        core.seal(Millis::new(*now), ALICE, &ids, effects).unwrap();
        // In steps of the golden ratio: those used first are spread evenly.
        for step in 0..OBJECTS {
            let key = batch(&[&full.names[step * 5063 % OBJECTS]]);
            core.match_prefix(Millis::new(*now), &key, effects);
        }
        core.check();
        full
    }

    fn reserve_all(&mut self) -> Vec<Ticket> {
        let keys = batch(&self.names);
        let request = ReserveRequest {
            keys: &keys,
            payload_bytes: &[EACH - 64],
            near: None,
            exclusive: false,
            replicas: 1,
            preferred: &[],
        };
        let reply = self.pool.with(|core, now, effects| core.reserve(now, ALICE, &request, effects)).unwrap();
        let offsets: Vec<u64> = reply.tickets.iter().map(|ticket| ticket.address.offset()).collect();
        assert!(
            offsets.iter().zip(0..).all(|(offset, at)| *offset == at * EACH),
            "they lie in the order of their names"
        );
        reply.tickets
    }

    fn some(&self) -> Vec<&str> {
        self.names.iter().step_by(APART).map(String::as_str).collect()
    }

    /// The places of objects that are gone.
    fn gone(&mut self) -> BTreeSet<usize> {
        let keys = batch(&self.names);
        let outcomes = self.pool.with(|core, now, effects| core.exist(now, &keys, effects));
        let gone = outcomes.iter().enumerate().filter(|(_, outcome)| **outcome == LocateOutcome::LocateAbsent);
        gone.map(|(at, _)| at).collect()
    }

    /// What does not fit between those in the way costs nothing, and what fits costs as many neighbours as it is long.
    fn check(&mut self) {
        assert_eq!(self.pool.reserve(&["long"], TOO_LONG).outcomes, [ReserveNoSpace]);
        assert_eq!(self.pool.reserve(&["whole"], OBJECTS as u64 / 2 * EACH).outcomes, [ReserveNoSpace]);
        assert_eq!(self.pool.status().evicted_objects, 0, "nothing goes in vain");
        let before = self.gone();
        assert_eq!(self.pool.reserve(&["fits"], FITS).outcomes, [Reserved]);
        let gone = &self.gone() - &before;
        let (first, last) = (*gone.first().unwrap(), *gone.last().unwrap());
        assert_eq!((gone.len(), last - first), (400, 399), "neighbours, and as few as can be");
        assert_eq!(first / APART, last / APART, "none of them in the way");
    }
}

#[test]
fn nothing_goes_in_vain_among_many_objects_some_of_which_are_read() {
    let mut full = Full::new(false);
    let some: Vec<String> = full.some().into_iter().map(str::to_owned).collect();
    let some: Vec<&str> = some.iter().map(String::as_str).collect();
    full.pool.locate(BOB, &some);
    full.check();
    full.pool.pass(LEASE);
    assert_eq!(full.pool.reserve(&["long"], TOO_LONG).outcomes, [Reserved]);
}

#[test]
fn nothing_goes_in_vain_among_many_objects_some_of_which_are_under_hard_pins() {
    let mut full = Full::new(false);
    let some: Vec<String> = full.some().into_iter().map(str::to_owned).collect();
    let some: Vec<&str> = some.iter().map(String::as_str).collect();
    full.pool.pin(&some, None);
    full.check();
    full.pool.unpin(&some[4..9]);
    assert_eq!(full.pool.reserve(&["long"], TOO_LONG).outcomes, [Reserved]);
}

#[test]
fn nothing_goes_in_vain_among_many_objects_beside_some_that_are_being_written_or_whose_memory_rests() {
    Full::new(true).check();
    let mut full = Full::new(true);
    full.pool.pass(TTL);
    full.check();
    full.pool.pass(TTL);
    assert_eq!(full.pool.reserve(&["long"], TOO_LONG).outcomes, [Reserved]);
}

#[test]
fn among_many_objects_only_the_soft_pins_that_end_soonest_are_given_up() {
    let mut full = Full::new(false);
    let some: Vec<String> = full.some().into_iter().map(str::to_owned).collect();
    for (at, name) in some.iter().enumerate() {
        full.pool.pin(&[name], Some(10_000 + (at as u64 * 5 + 3) % some.len() as u64));
    }
    full.pool.reserve(&["fits"], FITS);
    assert_eq!(full.pool.status().pins_given_up, 0);
    full.pool.put(&["long"], TOO_LONG);
    let ends = |at: usize| (at * 5 + 3) % some.len();
    let soonest = (1..some.len()).min_by_key(|at| ends(*at)).unwrap();
    assert_eq!(full.pool.status().pins_given_up, 1);
    assert!(!full.pool.is_there(&some[soonest]), "{soonest} ends first of those with room on both sides");
}

#[test]
fn a_batch_of_long_objects_among_many_short_ones_looks_at_few_for_each() {
    let mut full = Full::new(false);
    assert_eq!(full.pool.reserve(&["first"], FITS).outcomes, [Reserved]);
    let before = full.pool.core.looked;
    let names: Vec<String> = (0..9).map(|number| format!("long{number}")).collect();
    let reply = full.pool.reserve(&names.iter().map(String::as_str).collect::<Vec<_>>(), FITS);
    assert_eq!(reply.outcomes, [Reserved; 9]);
    // Those to either side, and some that lie where there is no room any more.
    assert!(full.pool.core.looked - before < 9 * limits::HOLE_OBJECTS_MAX as u64 / 2);
    assert_eq!(full.pool.status().evicted_objects, 10 * 400);
}

#[test]
fn the_order_of_places_is_learnt_in_steps_and_forgotten_when_nobody_asks() {
    let mut full = Full::new(false);
    full.pool.core.settings.search.row_step = 1000;
    assert_eq!(full.pool.reserve(&["long"], TOO_LONG).outcomes, [ReserveNoSpace], "not known yet");
    // What comes and goes meanwhile is known as well.
    full.pool.remove(&["00001", "08000"]);
    full.pool.put(&["new"], EACH - 64);
    let ticks = std::iter::from_fn(|| full.pool.tick().then_some(())).take(100).count();
    assert_eq!((ticks, full.pool.status().evicted_objects), (OBJECTS.div_ceil(1000) - 2, 0));
    full.pool.put(&["long"], TOO_LONG);
    assert_eq!(full.pool.status().evicted_objects as usize, APART);
    full.pool.pass(limits::ROW_UNASKED_MS);
    while full.pool.tick() {}
    assert!(full.pool.core.rows.is_empty());
    full.pool.core.settings.search.row_step = limits::ROW_STEP;
    full.pool.put(&["again"], TOO_LONG);
}

/// Nodes whose memory hard pins break up: between two of them three slices fit.
fn broken_up(nodes: u64) -> Pool {
    let mut pool = Pool::new(&vec![MIB; nodes as usize]);
    for node in 1..=nodes {
        for number in 0..64 {
            let key = format!("{node}-{number}");
            pool.put_replicas(&[&key], SLICE, 1, &[node]);
            if number % 4 == 0 {
                pool.pin(&[&key], None);
            }
        }
    }
    pool
}

/// 64 of these fill a MiB.
const SLICE: u64 = MIB / 64 - 64;
const SHORT: u64 = 3 * MIB / 64 - 64;
const LONG: u64 = 4 * MIB / 64 - 64;
/// Objects of a node that may go.
const IDLE: u64 = 48;

fn reserve_many(pool: &mut Pool, name: &str, bytes: &[u64], replicas: usize) -> Vec<ReserveOutcome> {
    let names: Vec<String> = (0..500).map(|number| format!("{name}{number}")).collect();
    let keys = batch(&names);
    let bytes: Vec<u64> = bytes.iter().copied().cycle().take(500).collect();
    let (near, exclusive, preferred) = (None, false, [].as_slice());
    let request = ReserveRequest { keys: &keys, payload_bytes: &bytes, near, exclusive, replicas, preferred };
    pool.with(|core, now, effects| core.reserve(now, ALICE, &request, effects)).unwrap().outcomes
}

#[test]
fn what_finds_no_room_is_looked_for_once_until_more_may_go() {
    let mut pool = broken_up(8);
    assert_eq!(reserve_many(&mut pool, "a", &[LONG], 1), vec![ReserveNoSpace; 500]);
    assert_eq!(pool.core.looked, 8 * IDLE);
    assert_eq!(reserve_many(&mut pool, "b", &[2 * LONG, LONG], 1), vec![ReserveNoSpace; 500]);
    assert_eq!(pool.core.looked, 8 * IDLE, "not again in a later call");
    assert_eq!(reserve_many(&mut pool, "c", &[LONG - 64, LONG], 1), vec![ReserveNoSpace; 500]);
    assert_eq!(pool.core.looked, 16 * IDLE, "what is shorter is something else");
    pool.unpin(&["5-8"]);
    assert_eq!(pool.reserve(&["d"], LONG).outcomes, [Reserved]);
    assert!(pool.core.looked <= 17 * IDLE + 1, "only where one may go more than before");
}

#[test]
fn what_finds_room_does_not_make_what_found_none_look_again() {
    let mut pool = broken_up(8);
    let outcomes = reserve_many(&mut pool, "a", &[LONG, SHORT], 1);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Reserved).count(), 8 * 16);
    // Each that finds room looks at what is beside no more than once a time; those that find none look once in all.
    let found = pool.core.looked - 8 * IDLE;
    assert!(found <= 8 * 16 * IDLE + 8 * IDLE, "{found}");
}

#[test]
fn a_further_replica_that_finds_no_room_is_looked_for_once() {
    let mut pool = broken_up(1);
    pool.join(2, 1, 64 * MIB, 0).unwrap();
    assert_eq!(reserve_many(&mut pool, "a", &[LONG], 2), vec![Reserved; 500]);
    assert_eq!(pool.core.looked, IDLE);
}

#[test]
fn a_key_looks_in_few_segments_and_later_ones_in_others() {
    let mut pool = broken_up(8);
    pool.unpin(&["8-4"]);
    pool.core.settings.search.segments = 3;
    // Those whose next victims are oldest come first.
    let outcomes: Vec<_> = (0..3).map(|number| pool.reserve(&[&format!("{number}")], LONG).outcomes[0]).collect();
    assert_eq!(outcomes, [ReserveNoSpace, ReserveNoSpace, Reserved]);
    assert_eq!(pool.status().evicted_objects, 4);
}

#[test]
fn one_call_looks_at_a_bounded_number_of_objects() {
    let mut pool = broken_up(8);
    pool.core.settings.search.looks = 100;
    let lengths: Vec<u64> = (0..500).map(|shorter| 8 * LONG - 64 * shorter).collect();
    assert_eq!(reserve_many(&mut pool, "a", &lengths, 1), vec![ReserveNoSpace; 500]);
    assert_eq!((pool.core.looked, pool.status().evicted_objects), (100, 0));
}

#[test]
fn pins_given_up_for_one_key_make_room_for_replicas_of_those_after_it() {
    let mut pool = Pool::new(&[MIB; 4]);
    let all = MIB - 64;
    pool.put_replicas(&["pinned"], all, 3, &[1, 2, 4]);
    pool.pin(&["pinned"], Some(50_000));
    let (keys, quarter) = (batch(&["a", "b", "c"]), MIB / 4 - 64);
    let (near, exclusive, preferred) = (None, false, [].as_slice());
    let payload_bytes = &[quarter, all, quarter];
    let request = ReserveRequest { keys: &keys, payload_bytes, near, exclusive, replicas: 2, preferred };
    let reply = pool.with(|core, now, effects| core.reserve(now, ALICE, &request, effects)).unwrap();
    assert_eq!(reply.replicas, [1, 2, 2], "no pin is given up for a further replica, but one was for the second key");
    assert_eq!((pool.status().pins_given_up, pool.status().evicted_objects), (1, 3));
}
