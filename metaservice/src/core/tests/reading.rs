use LocateOutcome::{LocateAbsent, LocatePending, Located};
use ReserveOutcome::{ReserveNoSpace, Reserved};
use SealOutcome::Sealed;
use memcache_types::{extent_bytes, payload_bytes_max};

use super::*;

#[test]
fn locate_tells_absent_from_pending_and_leases_what_it_found() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a", "b"], 10);
    pool.ticket(ALICE, "w", 10);
    let reply = pool.locate(BOB, &["a", "x", "w", "b"]);
    assert_eq!(reply.outcomes, [Located, LocateAbsent, LocatePending, Located]);
    assert_eq!(reply.found.len(), 2);
    assert!(reply.lease.is_some());
    assert_eq!(pool.locate(BOB, &["x", "w"]).lease, None);
    assert_eq!(pool.status().leases, 1);
}

#[test]
fn a_removed_object_is_invisible_at_once_and_its_space_waits_for_readers() {
    let mut pool = Pool::new(&[MIB]);
    let large = payload_bytes_max(MIB);
    pool.put(&["a"], large);
    let one = pool.locate(ALICE, &["a"]).lease;
    pool.locate(BOB, &["a"]);
    assert_eq!(pool.remove(&["a", "x"]), [true, false]);
    assert_eq!(pool.exist("a"), LocateAbsent);
    assert_eq!(pool.reserve(&["a"], large).outcomes, [ReserveNoSpace]);
    pool.release(ALICE, one);
    assert_eq!(pool.reserve(&["a"], large).outcomes, [ReserveNoSpace], "the other reader still reads");
    pool.pass(LEASE);
    assert_eq!(pool.reserve(&["a"], large).outcomes, [Reserved]);
}

#[test]
fn a_lease_ends_on_its_own() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a"], 10);
    pool.locate(ALICE, &["a"]);
    pool.remove(&["a"]);
    pool.pass(LEASE - 1);
    assert_eq!(pool.used_bytes(), extent_bytes(10));
    pool.pass(1);
    assert_eq!((pool.used_bytes(), pool.status().leases), (0, 0));
}

#[test]
fn only_the_holder_releases_a_lease() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a"], 10);
    let lease = pool.locate(ALICE, &["a"]).lease;
    pool.release(BOB, lease);
    assert_eq!(pool.status().leases, 1);
    pool.release(ALICE, lease);
    pool.release(ALICE, lease);
    assert_eq!(pool.status().leases, 0);
}

#[test]
fn a_key_can_be_put_again_while_its_removed_object_is_read() {
    let mut pool = Pool::new(&[MIB]);
    let old = pool.put(&["a"], 10)[0];
    let lease = pool.locate(BOB, &["a"]).lease;
    pool.remove(&["a"]);
    let new = pool.put(&["a"], 10)[0];
    assert_ne!(old.address, new.address);
    assert_eq!(pool.locate(ALICE, &["a"]).found[0].generation, generation(&new));
    pool.release(BOB, lease);
    assert!(pool.is_there("a"));
}

#[test]
fn a_late_writer_may_seal_after_the_winner_was_removed() {
    let mut pool = Pool::new(&[MIB]);
    let (one, two) = (pool.ticket(ALICE, "a", 10), pool.ticket(BOB, "a", 10));
    pool.seal(ALICE, &[one]);
    pool.locate(ALICE, &["a"]);
    assert_eq!(pool.remove(&["a"]), [true]);
    assert_eq!(pool.exist("a"), LocatePending);
    assert_eq!(pool.seal(BOB, &[two]), [Sealed]);
    assert_eq!(pool.locate(ALICE, &["a"]).found[0].generation, generation(&two));
}

#[test]
fn remove_all_takes_every_readable_key_and_no_reservation() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a", "b"], 10);
    pool.locate(BOB, &["b"]);
    let ticket = pool.ticket(ALICE, "w", 10);
    assert_eq!(pool.with(Core::remove_all).removed, 2);
    assert_eq!(pool.with(Core::remove_all).removed, 0);
    assert!(!pool.is_there("a") && !pool.is_there("b"));
    assert_eq!(pool.seal(ALICE, &[ticket]), [Sealed]);
}

#[test]
fn match_prefix_counts_leading_keys_only() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a", "b", "d"], 10);
    pool.ticket(ALICE, "w", 10);
    assert_eq!(pool.prefix(&["a", "b", "x", "d"]), (2, 2));
    assert_eq!(pool.prefix(&["a", "w", "b", "x"]), (1, 3));
    assert_eq!(pool.prefix(&["x", "a"]), (0, 0));
    assert_eq!(pool.prefix(&["w", "a"]), (0, 2));
    assert_eq!(pool.prefix(&[]), (0, 0));
}

#[test]
fn the_number_of_leases_is_bounded() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a"], 10);
    pool.core.leased = limits::LEASED_MAX;
    let refused = pool.core.locate(Millis::new(0), ALICE, &batch(&["a"]), None, &mut Vec::new()).unwrap_err();
    assert!(refused.to_string().contains("objects under leases"), "{refused}");
    assert!(refused.to_string().contains(&limits::LEASED_MAX.to_string()), "{refused}");
    pool.core.leased = 0;
    let (now, keys) = (Millis::new(0), batch(&["a"]));
    let mut locate = |client| pool.core.locate(now, ClientId::new(client), &keys, None, &mut Vec::new());
    for client in 0..(limits::LEASES_MAX / limits::CLIENT_LEASES_MAX) as u64 {
        (0..limits::CLIENT_LEASES_MAX).for_each(|_| drop(locate(client).unwrap()));
    }
    let found = limits::LEASES_MAX as u64 + 1;
    let limit = limits::LEASES_MAX as u64;
    assert_eq!(locate(1 << 20).unwrap_err(), Refusal::Limit { what: "leases", found, limit });
}

#[test]
fn a_client_that_lets_go_of_no_lease_stands_in_its_own_way_alone() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a"], 10);
    let (now, keys) = (Millis::new(0), batch(&["a"]));
    let mut locate = |client| pool.core.locate(now, client, &keys, None, &mut Vec::new());
    let first = locate(ALICE).unwrap().lease;
    let (found, limit) = (limits::CLIENT_LEASES_MAX as u64 + 1, limits::CLIENT_LEASES_MAX as u64);
    for _ in 1..limits::CLIENT_LEASES_MAX {
        locate(ALICE).unwrap();
    }
    assert_eq!(locate(ALICE).unwrap_err(), Refusal::Limit { what: "leases of this client", found, limit });
    assert!(locate(BOB).unwrap().lease.is_some());
    pool.release(ALICE, first);
    assert!(pool.locate(ALICE, &["a"]).lease.is_some(), "one more for one less");
    pool.pass(LEASE);
    assert!(pool.locate(ALICE, &["a"]).lease.is_some());
}

#[test]
fn the_objects_under_the_leases_of_one_client_are_bounded() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a"], 10);
    let keys = batch(&vec!["a"; 1 << 15]);
    let mut locate = |client| pool.core.locate(Millis::new(0), client, &keys, None, &mut Vec::new());
    for _ in 0..limits::CLIENT_LEASED_MAX >> 15 {
        locate(ALICE).unwrap();
    }
    let (found, limit) = (limits::CLIENT_LEASED_MAX as u64 + (1 << 15), limits::CLIENT_LEASED_MAX as u64);
    let what = "objects under leases of this client";
    assert_eq!(locate(ALICE).unwrap_err(), Refusal::Limit { what, found, limit });
    assert!(locate(BOB).is_ok());
}

#[test]
fn renewals_do_not_keep_an_object_for_ever() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a"], 10);
    let lease = pool.locate(ALICE, &["a"]).lease.expect("a lease").get();
    pool.remove(&["a"]);
    let renew = |pool: &mut Pool| pool.with(|core, now, effects| core.renew(now, ALICE, &[lease], effects)).unwrap();
    let mut renewals = 0;
    while pool.status().leases > 0 {
        renewals += u64::from(renew(&mut pool) == [true]);
        pool.pass(LEASE / 2);
        assert!(pool.now <= LEASE * limits::LEASE_LENGTHS_MAX, "it has gone on for too long");
    }
    assert!(renewals >= limits::LEASE_LENGTHS_MAX, "{renewals}");
    assert_eq!((renew(&mut pool), pool.used_bytes()), (vec![false], 0));
}

#[test]
fn numbers_in_one_request_are_bounded() {
    let mut pool = Pool::new(&[MIB]);
    let many = vec![0; limits::BATCH_NUMBERS_MAX + 1];
    let (now, effects) = (Millis::new(0), &mut Vec::new());
    let core = &mut pool.core;
    for refused in [
        core.seal(now, ALICE, &many, effects).unwrap_err(),
        core.abort(now, ALICE, &many, effects).unwrap_err(),
        core.release(now, ALICE, &many, effects).unwrap_err(),
        core.describe(now, &many, effects).unwrap_err(),
    ] {
        assert!(matches!(refused, Refusal::Limit { found: 65_537, limit: 65_536, .. }), "{refused}");
    }
}

#[test]
fn a_lease_is_renewed_by_its_holder_only_and_while_it_lasts() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a"], 10);
    let lease = pool.locate(ALICE, &["a"]).lease.expect("a lease").get();
    let renew = |pool: &mut Pool, client| pool.with(|core, now, effects| core.renew(now, client, &[lease, 7], effects));
    pool.pass(LEASE - 1);
    assert_eq!(renew(&mut pool, BOB).unwrap(), [false, false]);
    assert_eq!(renew(&mut pool, ALICE).unwrap(), [true, false]);
    pool.pass(LEASE - 1);
    assert_eq!(pool.status().leases, 1, "it lasts for its full time again");
    pool.pass(1);
    assert_eq!(pool.status().leases, 0);
    assert_eq!(renew(&mut pool, ALICE).unwrap(), [false, false], "what is over stays over");
}
