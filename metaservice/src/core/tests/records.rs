use memcache_types::extent_bytes;

use super::*;

/// A segment that holds four extents of 64 KiB payload.
const PAYLOAD: u64 = (MIB / 4) - 64;

fn clears(reply: &ReserveReply) -> Vec<(u32, u64)> {
    reply.clears.iter().map(|clear| (clear.ticket, clear.offset)).collect()
}

fn records_of(pool: &mut Pool, keys: &[&str]) -> Vec<(u64, u64)> {
    let keys = batch(keys);
    let found = pool.with(|core, now, effects| core.remove(now, &keys, effects));
    found.records.iter().map(|record| (record.offset, record.generation.get())).collect()
}

#[test]
fn every_ticket_has_a_record_of_its_own_in_the_table() {
    let mut pool = Pool::new(&[MIB]);
    let tickets = pool.put(&["a", "b", "c"], 100);
    let mut offsets: Vec<u64> = tickets.iter().map(|ticket| ticket.record.unwrap()).collect();
    offsets.sort_unstable();
    let place = place(MIB);
    assert_eq!(offsets, [place.record_offset(0), place.record_offset(1), place.record_offset(2)]);
}

#[test]
fn objects_beyond_the_table_are_stored_and_counted_as_unrecorded() {
    let mut pool = Pool::new(&[MIB]);
    let names: Vec<String> = (0..RECORDS + 2).map(|number| format!("k{number}")).collect();
    let keys: Vec<&str> = names.iter().map(String::as_str).collect();
    let tickets = pool.put(&keys, 100);
    assert_eq!(tickets.iter().filter(|ticket| ticket.record.is_none()).count(), 2);
    assert_eq!(pool.status().nodes[0].unrecorded, 2);
    let last = keys[keys.len() - 1];
    assert_eq!(pool.remove(&[last]), [true]);
    assert_eq!(pool.status().nodes[0].unrecorded, 1);
}

#[test]
fn equal_blocks_take_over_places_and_clear_nothing() {
    let mut pool = Pool::new(&[MIB]);
    let old = pool.put(&["a", "b", "c", "d"], PAYLOAD);
    let reply = pool.reserve(&["e"], PAYLOAD);
    let ticket = reply.tickets[0];
    assert_eq!(clears(&reply), []);
    let evicted = old.iter().find(|old| old.address == ticket.address).unwrap();
    assert_eq!(ticket.record, evicted.record, "the same space, the same place in the table");
}

#[test]
fn who_gets_other_space_than_an_old_object_had_clears_its_record_first() {
    let mut pool = Pool::new(&[MIB]);
    let old = pool.put(&["a", "b", "c", "d"], PAYLOAD);
    let reply = pool.reserve(&["large"], 2 * PAYLOAD);
    let ticket = reply.tickets[0];
    let start = ticket.address.offset();
    let end = start + extent_bytes(2 * PAYLOAD);
    let covered = old.iter().filter(|old| old.address.offset() < end && start < old.address.offset() + MIB / 4);
    let mut expected: Vec<(u32, u64)> = covered.map(|old| (0, old.record.unwrap())).collect();
    expected.sort_unstable();
    let mut found = clears(&reply);
    found.sort_unstable();
    assert_eq!(found, expected);
    assert!(expected.len() >= 2 && expected.iter().all(|(_, offset)| Some(*offset) != ticket.record));
}

#[test]
fn a_record_is_cleared_by_everybody_until_one_has_sealed() {
    let mut pool = Pool::new(&[MIB]);
    let whole = pool.put(&["whole"], MIB - 64)[0];
    pool.remove(&["whole"]);
    let first = pool.reserve(&["x"], 100);
    let second = pool.reserve(&["y"], 100);
    let old = whole.record.unwrap();
    assert_eq!((clears(&first), clears(&second)), (vec![(0, old)], vec![(0, old)]));
    pool.abort(ALICE, first.tickets[0]);
    let third = pool.reserve(&["z"], 100);
    assert!(clears(&third).contains(&(0, old)), "nobody has sealed");
    pool.seal(ALICE, &second.tickets);
    let fourth = pool.reserve(&["w"], 100);
    assert!(!clears(&fourth).contains(&(0, old)), "somebody has");
    // The place is used again only when nobody may still clear it.
    assert_ne!(fourth.tickets[0].record, Some(old));
    pool.seal(ALICE, &third.tickets);
    let next = pool.reserve(&["v"], 100);
    assert_eq!(next.tickets[0].record, Some(old));
}

#[test]
fn remove_names_the_records_of_evicted_and_unsealed_objects_too() {
    let mut pool = Pool::new(&[MIB]);
    let evicted = pool.put(&["evicted"], PAYLOAD)[0];
    let other = pool.reserve(&["other"], MIB - 64).tickets[0];
    assert!(!pool.is_there("evicted"));
    let expected = (evicted.record.unwrap(), evicted.generation.get());
    assert_eq!(records_of(&mut pool, &["evicted"]), [expected], "while the space is being written");
    assert_eq!(records_of(&mut pool, &["other"]), [], "a put that is under way may still take effect");
    pool.abort(ALICE, other);
    assert_eq!(records_of(&mut pool, &["evicted"]), [expected], "and afterwards");
    assert_eq!(records_of(&mut pool, &["other"]), [(other.record.unwrap(), other.generation.get())]);
    let sealed = pool.put(&["evicted"], MIB - 64)[0];
    assert_eq!(records_of(&mut pool, &["evicted"]), [(sealed.record.unwrap(), sealed.generation.get())]);
}

#[test]
fn a_place_that_was_taken_over_in_vain_may_speak_of_either() {
    let mut pool = Pool::new(&[MIB]);
    let old = pool.put(&["old"], MIB - 64)[0];
    let new = pool.ticket(ALICE, "new", MIB - 64);
    assert_eq!(new.record, old.record);
    pool.pass(TTL);
    assert_eq!(records_of(&mut pool, &["old"]), [(old.record.unwrap(), old.generation.get())], "while it rests");
    pool.pass(TTL);
    assert_eq!(records_of(&mut pool, &["new"]), [(new.record.unwrap(), new.generation.get())]);
    let next = pool.reserve(&["next"], MIB - 64);
    assert_eq!(clears(&next), [(0, old.record.unwrap())]);
    assert_ne!(next.tickets[0].record, old.record);
    pool.seal(ALICE, &next.tickets);
    assert_eq!(records_of(&mut pool, &["old", "new"]), []);
}

#[test]
fn records_of_leased_and_departed_objects_are_kept_track_of() {
    let mut pool = Pool::new(&[MIB]);
    let ticket = pool.put(&["k"], PAYLOAD)[0];
    let lease = pool.locate(BOB, &["k"]).lease;
    let expected = (ticket.record.unwrap(), ticket.generation.get());
    assert_eq!(records_of(&mut pool, &["k"]), [expected]);
    assert_eq!(records_of(&mut pool, &["k"]), [expected], "still leased");
    pool.leave(1, 1).unwrap();
    assert_eq!(records_of(&mut pool, &["k"]), []);
    pool.release(BOB, lease);
}

#[test]
fn remove_all_names_a_floor_in_every_segment() {
    let mut pool = Pool::new(&[MIB, MIB]);
    let ticket = pool.put(&["a"], 100)[0];
    let all = pool.with(Core::remove_all);
    assert_eq!((all.removed, all.floors.len()), (1, 2));
    assert!(all.floor >= ticket.generation);
    let later = pool.ticket(ALICE, "b", 100);
    assert!(later.generation > all.floor);
    let again = pool.with(Core::remove_all);
    assert_ne!(again.floors, all.floors, "two calls at once do not overwrite each other");
}
