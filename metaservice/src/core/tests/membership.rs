use ReserveOutcome::{ReserveNoSpace, Reserved};
use SealOutcome::SealLost;

use super::*;

#[test]
fn a_newer_incarnation_replaces_the_old_one_at_once() {
    let mut pool = Pool::new(&[MIB, MIB]);
    let old = pool.reserve_as(ALICE, &["a", "w"], &[10], Some(1), false).unwrap().tickets;
    pool.seal(ALICE, &old[..1]);
    let lease = pool.locate(BOB, &["a"]).lease;
    let segment = pool.join(1, 2, MIB, 0).unwrap();
    assert_ne!(segment, old[0].address.segment());
    assert!(!pool.is_there("a"));
    assert_eq!(pool.exist("w"), LocateOutcome::LocateAbsent);
    assert_eq!(pool.seal(ALICE, &old[1..]), [SealLost]);
    assert_eq!(pool.status().nodes[0].used_bytes, 0);
    pool.release(BOB, lease);
    let gone = |effect: &Effect| matches!(effect, Effect::NodeGone { reason: GoneReason::Replaced, objects: 1, .. });
    assert!(pool.effects.iter().any(gone));
}

#[test]
fn claims_of_an_earlier_life_are_stale() {
    let mut pool = Pool::new(&[]);
    pool.join(1, 5, MIB, 0).unwrap();
    let stale = Refusal::Stale { node: NodeId::new(1), claimed: Incarnation::new(4), current: Incarnation::new(5) };
    assert_eq!(pool.join(1, 4, MIB, 0), Err(stale.clone()));
    assert_eq!(pool.heartbeat(1, 4), Err(stale.clone()));
    assert_eq!(pool.leave(1, 4), Err(stale.clone()));
    pool.leave(1, 5).unwrap();
    assert_eq!(pool.join(1, 4, MIB, 0), Err(stale), "also when the later life is over");
    assert!(pool.join(1, 5, MIB, 999).is_ok());
}

#[test]
fn joining_again_is_told_the_same_segments() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a"], 10);
    let segment = pool.join(1, 1, MIB, 0).unwrap();
    assert_eq!(pool.locate(ALICE, &["a"]).found[0].address.segment(), segment);
    assert!(matches!(pool.join(1, 1, 2 * MIB, 0), Err(Refusal::Changed { .. })));
    assert!(pool.is_there("a"));
}

#[test]
fn a_heartbeat_of_an_unknown_node_tells_it_to_join() {
    let mut pool = Pool::new(&[MIB]);
    assert_eq!(pool.heartbeat(1, 1), Ok(true));
    assert_eq!(pool.heartbeat(2, 1), Ok(false));
    assert_eq!(pool.heartbeat(1, 2), Ok(false), "a life that has not joined");
    assert!(pool.leave(2, 1).is_ok());
}

#[test]
fn a_node_whose_join_came_late_is_told_to_join_and_hears_the_new_names() {
    let mut pool = Pool::new(&[]);
    let first = pool.join(1, 1, MIB, 0).unwrap();
    assert_eq!(pool.heartbeat_as(1, 1, &[first.get()]), Ok(true));
    pool.pass(DEAD);
    pool.tick();
    let late = pool.join(1, 1, MIB, 1).unwrap();
    assert_ne!(late, first);
    assert_eq!(pool.heartbeat_as(1, 1, &[first.get()]), Ok(false), "it knows the old name");
    assert_eq!(pool.join(1, 1, MIB, 1), Ok(late));
    assert_eq!(pool.heartbeat_as(1, 1, &[late.get()]), Ok(true));
    assert_eq!(pool.heartbeat_as(1, 1, &[late.get(), first.get()]), Ok(false));
}

#[test]
fn a_silent_node_is_gone_and_may_come_back() {
    let mut pool = Pool::new(&[MIB, MIB]);
    let ticket = pool.reserve_as(ALICE, &["a"], &[10], Some(1), false).unwrap().tickets[0];
    pool.seal(ALICE, &[ticket]);
    pool.pass(DEAD - 1);
    pool.heartbeat(2, 1).unwrap();
    assert!(pool.is_there("a"));
    pool.pass(1);
    assert!(!pool.is_there("a"));
    assert_eq!(pool.status().nodes.len(), 1);
    assert_eq!(pool.heartbeat(1, 1), Ok(false));
    let again = pool.join(1, 1, MIB, pool.core.epoch().get()).unwrap();
    assert_ne!(again, ticket.address.segment());
    let gone = |effect: &Effect| matches!(effect, Effect::NodeGone { reason: GoneReason::Silent, objects: 1, .. });
    assert!(pool.effects.iter().any(gone));
}

#[test]
fn silence_while_the_service_itself_was_held_up_is_excused() {
    let mut pool = Pool::new(&[MIB]);
    pool.now = 10 * DEAD;
    let now = Millis::new(pool.now);
    pool.core.excuse_silence(now);
    pool.tick();
    assert_eq!(pool.status().nodes.len(), 1);
    pool.pass(DEAD);
    assert_eq!(pool.status().nodes.len(), 0);
}

#[test]
fn leaving_takes_the_objects_along() {
    let mut pool = Pool::new(&[MIB]);
    pool.put(&["a"], 10);
    pool.leave(1, 1).unwrap();
    assert!(!pool.is_there("a"));
    let status = pool.status();
    assert_eq!((status.nodes.len(), status.objects), (0, 0));
    assert_eq!(pool.reserve(&["b"], 10).outcomes, [ReserveNoSpace]);
}

#[test]
fn memory_of_an_earlier_life_rests_before_it_is_used() {
    let mut pool = Pool::new(&[]);
    pool.join(1, 1, MIB, 999).unwrap();
    assert_eq!(pool.reserve(&["a"], 10).outcomes, [ReserveNoSpace]);
    pool.pass(TTL - 1);
    assert_eq!(pool.reserve(&["a"], 10).outcomes, [ReserveNoSpace]);
    pool.pass(1);
    assert_eq!(pool.reserve(&["a"], 10).outcomes, [Reserved]);
    assert!(pool.effects.iter().any(|effect| matches!(effect, Effect::NodeJoined { rests: true, .. })));
}

#[test]
fn memory_of_an_earlier_life_rests_while_it_may_be_read() {
    let mut pool = Pool::new(&[]);
    pool.core.settings.lease_ms = 3 * TTL as u32;
    pool.join(1, 1, MIB, 999).unwrap();
    pool.pass(3 * TTL - 1);
    assert_eq!(pool.reserve(&["a"], 10).outcomes, [ReserveNoSpace]);
    pool.pass(1);
    assert_eq!(pool.reserve(&["a"], 10).outcomes, [Reserved]);
}

#[test]
fn a_join_that_comes_late_does_not_make_old_memory_new() {
    let mut pool = Pool::new(&[MIB]);
    pool.ticket(ALICE, "a", 10);
    pool.pass(DEAD);
    assert_eq!(pool.status().nodes.len(), 0, "silent for too long");
    let late = Refusal::Late { node: NodeId::new(1), incarnation: Incarnation::new(1) };
    assert_eq!(pool.join(1, 1, MIB, 0), Err(late), "it names no life in which its memory was lent");
    assert_eq!(pool.status().nodes.len(), 0);
    pool.join(1, 1, MIB, pool.core.epoch().get()).unwrap();
    assert_eq!(pool.reserve(&["b"], 10).outcomes, [ReserveNoSpace]);
    pool.pass(TTL);
    assert_eq!(pool.reserve(&["b"], 10).outcomes, [Reserved]);
}

#[test]
fn a_segment_id_is_never_issued_twice() {
    let mut pool = Pool::new(&[]);
    let mut seen = std::collections::BTreeSet::new();
    for incarnation in 1..20 {
        assert!(seen.insert(pool.join(1, incarnation, MIB, 0).unwrap()));
    }
    assert_eq!(pool.status().nodes.len(), 1);
}

#[test]
fn describe_leaves_out_what_is_gone() {
    let mut pool = Pool::new(&[MIB]);
    let gone = pool.join(2, 1, MIB, 0).unwrap();
    let here = pool.join(3, 1, 2 * MIB, 0).unwrap();
    pool.leave(2, 1).unwrap();
    let asked = [gone.get(), here.get(), 42];
    let known = pool.with(|core, now, effects| core.describe(now, &asked, effects)).unwrap();
    assert_eq!(known.len(), 1);
    assert_eq!((known[0].segment, known[0].node, known[0].bytes), (here, NodeId::new(3), 2 * MIB));
    assert_eq!(*known[0].descriptor, 3u64.to_le_bytes());
}

#[test]
fn offers_out_of_bounds_are_refused_by_name() {
    let mut pool = Pool::new(&[]);
    let mut join = |node: u64, name: &str, offers: Vec<SegmentOffer>| {
        let request = JoinRequest { name, offers, ..join_request(node, 1, MIB, 0) };
        pool.with(|core, now, effects| core.join(now, request, effects)).unwrap_err().to_string()
    };
    let offer = |bytes, descriptor: usize| SegmentOffer {
        bytes,
        tier: Tier::Dram,
        descriptor: vec![0; descriptor].into(),
        holdings: HoldingsPlace::default(),
    };
    let holdings = HoldingsPlace { table_offset: MIB - 64, records: 1, floors_offset: 2 * MIB };
    assert!(join(1, "", vec![SegmentOffer { holdings, ..offer(MIB, 0) }]).contains("table_offset = 1048512"));
    assert!(join(0, "", vec![]).contains("node = 0"));
    assert!(join(1, &"x".repeat(257), vec![]).contains("node name"));
    assert!(join(1, "", vec![offer(MIB, 4097)]).contains("descriptor"));
    assert!(join(1, "", vec![offer(MIB - 1, 0)]).contains("bytes of a segment"));
    assert!(join(1, "", vec![offer(MIB, 0); 65]).contains("segments of the node"));
}

#[test]
fn a_node_may_lend_several_segments() {
    let mut pool = Pool::new(&[]);
    let offer = |bytes| join_request(1, 1, bytes, 0).offers.remove(0);
    let request = JoinRequest { offers: vec![offer(MIB), offer(2 * MIB)], ..join_request(1, 1, MIB, 0) };
    let joined = pool.with(|core, now, effects| core.join(now, request, effects)).unwrap();
    let larger = pool.put(&["a"], MIB + 1)[0];
    assert_eq!(larger.address.segment(), joined.segments[1]);
    assert_eq!(pool.put(&["b"], MIB - 64)[0].address.segment(), joined.segments[0]);
    assert_eq!(pool.status().nodes[0].capacity_bytes, 3 * MIB);
    pool.leave(1, 1).unwrap();
    assert_eq!(pool.status().objects, 0);
}
