//! What nodes that were away bring back, and what they do not.

use super::*;

/// An object that was put here, as its node lists it.
type Listed = (&'static str, Ticket);

impl Pool {
    /// A pool that remembers so many removals.
    fn forgetful(segments: &[u64], removals_max: u32) -> Self {
        let core = Core::new(Settings { removals_max, ..SETTINGS }, Epoch::new(1000), Millis::new(0));
        let mut pool = Self { core, now: 0, effects: Vec::new() };
        for (node, bytes) in (1..).zip(segments) {
            pool.join(node, 1, *bytes, 0).unwrap();
        }
        pool
    }

    /// Removes so many keys that there never were.
    fn remove_absent(&mut self, name: &str, count: usize) {
        let keys: Vec<String> = (0..count).map(|number| format!("{name} {number}")).collect();
        for keys in keys.chunks(60_000) {
            let now = Millis::new(self.now);
            self.core.remove(now, &batch(keys), &mut self.effects);
        }
        self.core.check();
    }

    /// A node comes back with memory that was lent in this life of the service, or an earlier one; its segment.
    fn come_back(&mut self, node: u64, incarnation: u64, before: u64) -> SegmentId {
        let request = JoinRequest { lists: true, ..join_request(node, incarnation, MIB, before) };
        self.with(|core, now, effects| core.join(now, request, effects)).unwrap().segments[0]
    }

    fn tell_of(
        &mut self,
        node: u64,
        incarnation: u64,
        segment: SegmentId,
        objects: &[Listed],
        done: bool,
    ) -> Vec<bool> {
        let keys: Vec<&str> = objects.iter().map(|(key, _)| *key).collect();
        let numbers = |of: fn(&Ticket) -> u64| objects.iter().map(|(_, ticket)| of(ticket)).collect::<Vec<u64>>();
        let generations = numbers(|ticket| ticket.generation.get());
        let table = place(MIB);
        let number = |ticket: &Ticket| {
            (0..RECORDS).find(|at| Some(table.record_offset(*at)) == ticket.record).expect("a place of the table")
        };
        let holdings = Holdings {
            node: NodeId::new(node),
            incarnation: Incarnation::new(incarnation),
            segment,
            keys: &batch(&keys),
            offsets: &numbers(|ticket| ticket.address.offset()),
            payload_bytes: &vec![100; objects.len()],
            generations: &generations,
            origins: &generations,
            wanted: &vec![1; objects.len()],
            records: &objects.iter().map(|(_, ticket)| number(ticket)).collect::<Vec<u32>>(),
            done,
            told: done,
            gone: false,
        };
        self.with(|core, now, effects| core.take_holdings(now, &holdings, effects)).unwrap().kept
    }

    fn doubtful(&self) -> u64 {
        let objects =
            self.effects.iter().map(|effect| if let Effect::Doubtful { objects, .. } = effect { *objects } else { 0 });
        objects.sum()
    }
}

#[test]
fn a_node_that_is_replaced_keeps_everything_after_tens_of_thousands_of_removals() {
    let mut pool = Pool::new(&[MIB]);
    let ticket = pool.put(&["a", "b", "c"], 100);
    pool.remove_absent("before", 70_000);
    assert_eq!(pool.remove(&["b"]), [true]);
    let segment = pool.come_back(1, 2, 1000);
    assert!(!pool.is_there("a"));
    pool.remove_absent("meanwhile", 70_000);
    let objects = [("a", ticket[0]), ("b", ticket[1]), ("c", ticket[2])];
    assert_eq!(pool.tell_of(1, 2, segment, &objects, true), [true, false, true]);
    assert_eq!(pool.doubtful(), 0);
}

#[test]
fn memory_of_an_earlier_life_of_the_service_is_kept_after_tens_of_thousands_of_removals() {
    let mut pool = Pool::new(&[MIB]);
    let tickets = pool.put(&["a", "b"], 100);
    pool.remove_absent("any", 70_000);
    pool.remove(&["b"]);
    let segment = pool.come_back(2, 1, 5);
    let objects = [("a", tickets[0]), ("b", tickets[1])];
    pool.leave(1, 1).unwrap();
    assert_eq!(pool.tell_of(2, 1, segment, &objects, true), [true, false]);
}

#[test]
fn removals_that_are_forgotten_cost_nothing_that_was_there_when_they_were_served() {
    let mut pool = Pool::forgetful(&[MIB], 4);
    let tickets = pool.put(&["a", "b", "c"], 100);
    // Its record is not cleared: its remover died.
    pool.remove(&["b"]);
    let mut objects = vec![("a", tickets[0]), ("b", tickets[1]), ("c", tickets[2])];
    let mut kept = vec![true, false, true];
    for incarnation in 2..5 {
        pool.remove_absent(&format!("any {incarnation}"), 100);
        let segment = pool.come_back(1, incarnation, 1000);
        assert_eq!(pool.tell_of(1, incarnation, segment, &objects, true), kept, "{incarnation}");
        // The node clears the record of what is refused.
        objects.retain(|(key, _)| *key != "b");
        kept = vec![true; 2];
        pool.pass(TTL);
    }
    assert_eq!(pool.doubtful(), 0);
    assert!(pool.effects.iter().any(|effect| matches!(effect, Effect::RemovalsForgotten { .. })));
}

#[test]
fn more_removals_than_can_be_remembered_while_a_node_is_away_cost_objects_and_bring_none_back() {
    let mut pool = Pool::forgetful(&[MIB, MIB], 4);
    let old = pool.put_replicas(&["old"], 100, 1, &[1])[0];
    pool.leave(1, 1).unwrap();
    pool.remove(&["old"]);
    pool.remove_absent("any", 4);
    let young = pool.put_replicas(&["young"], 100, 1, &[2])[0];
    pool.leave(2, 1).unwrap();
    let (first, second) = (pool.come_back(1, 2, 1000), pool.come_back(2, 2, 1000));
    assert_eq!(pool.tell_of(1, 2, first, &[("old", old)], true), [false]);
    assert_eq!(pool.tell_of(2, 2, second, &[("young", young)], true), [true], "it was put later");
    assert_eq!(pool.doubtful(), 1);
}

#[test]
fn who_is_away_again_before_it_has_told_all_is_as_if_it_had_not_come() {
    let mut pool = Pool::forgetful(&[MIB], 4);
    let ticket = pool.put(&["old"], 100)[0];
    pool.leave(1, 1).unwrap();
    pool.remove(&["old"]);
    pool.come_back(1, 2, 1000);
    pool.remove_absent("any", 100);
    pool.leave(1, 2).unwrap();
    let segment = pool.come_back(1, 3, 1000);
    assert_eq!(pool.tell_of(1, 3, segment, &[("old", ticket)], true), [false]);
    assert_eq!(pool.doubtful(), 1);
}

#[test]
fn a_copy_of_a_removed_key_does_not_come_back_with_the_node_that_made_it() {
    let mut pool = Pool::forgetful(&[MIB], 64);
    pool.put_replicas(&["k"], 100, 2, &[]);
    pool.join(2, 1, MIB, 0).unwrap();
    let task = pool.work(2).tasks.remove(0);
    pool.remove(&["k"]);
    pool.leave(2, 1).unwrap();
    pool.remove_absent("any", 50);
    let segment = pool.come_back(2, 2, 1000);
    assert_eq!(pool.tell_of(2, 2, segment, &[("k", task.ticket)], true), [false]);
    assert_eq!(pool.doubtful(), 0);
}
