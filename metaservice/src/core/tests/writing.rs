use ReserveOutcome::{ReserveNoSpace, ReservePending, ReservePresent, ReserveTooLarge, Reserved};
use SealOutcome::{SealLost, SealPresent, Sealed};
use memcache_types::{extent_bytes, payload_bytes_max};

use super::*;

#[test]
fn a_sealed_key_is_readable_where_it_was_written() {
    let mut pool = Pool::new(&[MIB]);
    let ticket = pool.ticket(ALICE, "a", 100);
    assert_eq!(pool.exist("a"), LocateOutcome::LocatePending);
    assert_eq!(pool.seal(ALICE, &[ticket]), [Sealed]);
    let found = pool.locate(BOB, &["a"]).found[0];
    assert_eq!((found.address, found.generation, found.payload_bytes), (ticket.address, ticket.generation, 100));
    assert_eq!(pool.reserve(&["a"], 100).outcomes, [ReservePresent]);
}

#[test]
fn an_empty_value_takes_the_room_of_its_trailer() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a"], 0);
    assert_eq!(pool.used_bytes(), extent_bytes(0));
    assert_eq!(pool.locate(ALICE, &["a"]).found[0].payload_bytes, 0);
}

#[test]
fn the_first_sealed_writer_wins_and_both_are_told() {
    let mut pool = Pool::new(&[MIB]);
    let (one, two) = (pool.ticket(ALICE, "a", 100), pool.ticket(BOB, "a", 200));
    assert_ne!(one.address, two.address);
    assert_eq!(pool.seal(BOB, &[two]), [Sealed]);
    assert_eq!(pool.seal(ALICE, &[one]), [SealPresent]);
    assert_eq!(pool.locate(ALICE, &["a"]).found[0].generation, generation(&two));
    assert_eq!(pool.used_bytes(), extent_bytes(200), "the loser's space is free");
}

#[test]
fn an_exclusive_writer_waits_for_nobody_and_races_nobody() {
    let mut pool = Pool::new(&[MIB]);
    let held = pool.ticket(ALICE, "a", 100);
    let exclusive = |pool: &mut Pool| pool.reserve_as(BOB, &["a", "b"], &[100], None, true).unwrap().outcomes;
    assert_eq!(exclusive(&mut pool), [ReservePending, Reserved]);
    pool.abort(ALICE, held);
    assert_eq!(exclusive(&mut pool), [Reserved, ReservePending], "its own reservation counts as well");
}

#[test]
fn the_same_key_twice_in_a_batch_is_two_writers() {
    let mut pool = Pool::new(&[MIB]);
    let reply = pool.reserve(&["a", "a"], 100);
    assert_eq!(reply.outcomes, [Reserved, Reserved]);
    assert_eq!(pool.seal(ALICE, &reply.tickets), [Sealed, SealPresent]);
    let reply = pool.reserve_as(ALICE, &["b", "b"], &[100], None, true).unwrap();
    assert_eq!(reply.outcomes, [Reserved, ReservePending]);
}

#[test]
fn only_the_owner_seals_or_aborts() {
    let mut pool = Pool::new(&[MIB]);
    let ticket = pool.ticket(ALICE, "a", 100);
    assert_eq!(pool.seal(BOB, &[ticket]), [SealLost]);
    pool.abort(BOB, ticket);
    assert_eq!(pool.seal(ALICE, &[ticket]), [Sealed]);
    assert_eq!(pool.seal(ALICE, &[ticket]), [SealLost], "a ticket is good once");
}

#[test]
fn an_aborted_reservation_gives_its_space_back_at_once() {
    let mut pool = Pool::new(&[MIB]);
    let ticket = pool.ticket(ALICE, "a", 100);
    pool.abort(ALICE, ticket);
    assert_eq!((pool.used_bytes(), pool.exist("a")), (0, LocateOutcome::LocateAbsent));
    assert_eq!(pool.seal(ALICE, &[ticket]), [SealLost]);
}

#[test]
fn an_expired_reservation_frees_its_key_at_once() {
    let mut pool = Pool::new(&[MIB]);
    let ticket = pool.ticket(ALICE, "a", 100);
    pool.pass(TTL - 1);
    assert_eq!(pool.exist("a"), LocateOutcome::LocatePending);
    pool.pass(1);
    assert_eq!(pool.exist("a"), LocateOutcome::LocateAbsent);
    assert_eq!(pool.seal(ALICE, &[ticket]), [SealLost]);
    assert_eq!(pool.reserve_as(BOB, &["a"], &[100], None, true).unwrap().outcomes, [Reserved]);
    assert!(pool.effects.contains(&Effect::ReservationsExpired { count: 1 }));
}

#[test]
fn the_space_of_an_expired_reservation_rests_before_it_is_used_again() {
    let mut pool = Pool::new(&[MIB]);
    let large = payload_bytes_max(MIB);
    pool.ticket(ALICE, "a", large);
    pool.pass(2 * TTL - 1);
    assert_eq!(pool.reserve(&["b"], large).outcomes, [ReserveNoSpace]);
    pool.pass(1);
    assert_eq!(pool.reserve(&["b"], large).outcomes, [Reserved]);
}

#[test]
fn a_value_larger_than_any_segment_is_told_with_the_limit() {
    let mut pool = Pool::new(&[MIB, 2 * MIB]);
    let largest = payload_bytes_max(2 * MIB);
    let reply = pool.reserve_as(ALICE, &["a", "b"], &[largest + 1, largest], None, false).unwrap();
    assert_eq!((reply.outcomes, reply.largest_bytes), (vec![ReserveTooLarge, Reserved], largest));
    assert_eq!(pool.reserve(&["c"], u64::MAX).outcomes, [ReserveTooLarge]);
}

#[test]
fn a_pool_without_segments_has_no_space() {
    let mut pool = Pool::new(&[]);
    assert_eq!(pool.reserve(&["a"], 1).outcomes, [ReserveNoSpace]);
    assert_eq!(pool.reserve(&["a"], u64::MAX).outcomes, [ReserveTooLarge]);
}

#[test]
fn sizes_and_keys_must_pair_up() {
    let mut pool = Pool::new(&[MIB]);
    let refused = pool.reserve_as(ALICE, &["a", "b", "c"], &[1, 2], None, false);
    assert_eq!(refused, Err(Refusal::Length { what: "payload_bytes", found: 2, want: 3 }));
}

#[test]
fn no_generation_is_issued_twice_not_even_by_the_next_life() {
    let mut pool = Pool::new(&[MIB]);
    let one = pool.ticket(ALICE, "a", 1).generation;
    pool.remove(&["a"]);
    let two = pool.ticket(ALICE, "a", 1).generation;
    assert!(two > one && one > Generation::NONE);
    let mut next = Core::new(SETTINGS, Epoch::new(1001), Millis::new(0));
    assert!(Generation::new(next.next_serial()) > two);
    assert!(next.serial - pool.core.serial > 4_000_000, "room for the ids of a millisecond");
}

#[test]
fn a_client_holds_a_bounded_number_of_reservations() {
    let mut pool = Pool::new(&[MIB]);
    pool.core.client_reservations.insert(BOB, limits::CLIENT_RESERVATIONS_MAX);
    let keys = batch(&["a"]);
    let request =
        ReserveRequest { keys: &keys, payload_bytes: &[1], near: None, exclusive: false, replicas: 1, preferred: &[] };
    let refused = pool.core.reserve(Millis::new(0), BOB, &request, &mut Vec::new()).unwrap_err();
    assert!(refused.to_string().contains("reservations of this client"), "{refused}");
    assert!(refused.to_string().contains(&limits::CLIENT_RESERVATIONS_MAX.to_string()), "{refused}");
}

#[test]
fn free_space_near_the_writer_comes_first_then_the_most_free() {
    let mut pool = Pool::new(&[MIB, 4 * MIB, 2 * MIB]);
    let node_of = |pool: &mut Pool, key: &str, near| {
        let ticket = pool.reserve_as(ALICE, &[key], &[MIB * 9 / 10], near, false).unwrap().tickets[0];
        let segment = ticket.address.segment().get();
        pool.core.describe(Millis::new(0), &[segment], &mut Vec::new()).unwrap()[0].node.get()
    };
    assert_eq!(node_of(&mut pool, "a", Some(1)), 1);
    assert_eq!(node_of(&mut pool, "b", Some(1)), 2, "no room near");
    assert_eq!(node_of(&mut pool, "c", None), 2);
    assert_eq!(node_of(&mut pool, "d", Some(3)), 3);
    assert_eq!(node_of(&mut pool, "e", Some(77)), 2, "an unknown node is no obstacle");
}
