//! Random sequences of calls by several clients, with jumps of time: the core against the naive model.

use std::collections::BTreeSet;

use memcache_proto::pb::PinOutcome;
use memcache_types::extent_bytes;
use proptest::prelude::*;
use proptest::sample::Index;

use super::model::{ALL_THAT_MAY_GO, Model};
use super::*;

#[derive(Clone, Debug)]
enum Step {
    Reserve { client: u64, key: u8, payload: u64, near: Option<u64>, exclusive: bool },
    Seal { client: u64, which: Vec<Index> },
    Abort { client: u64, which: Vec<Index> },
    Locate { client: u64, keys: Vec<u8> },
    Release { client: u64, which: Index },
    MatchPrefix { keys: Vec<u8> },
    Remove { keys: Vec<u8> },
    Pin { keys: Vec<u8>, ttl_ms: Option<u64> },
    Unpin { keys: Vec<u8> },
    RemoveAll,
    Join { node: u64, incarnation: u64, mib: u64, rests: bool },
    Heartbeat { node: u64, incarnation: u64 },
    Leave { node: u64, incarnation: u64 },
    Pass(u64),
    Tick,
}

const KEYS: u8 = 12;

fn step() -> impl Strategy<Value = Step> {
    let client = || 1u64..4;
    let node = || 1u64..4;
    let keys = || prop::collection::vec(0..KEYS, 1..6);
    let which = || prop::collection::vec(any::<Index>(), 1..5);
    let payload = || prop_oneof![8 => 1u64..400_000, 1 => Just(0), 1 => 1_000_000u64..3_000_000];
    let time = || prop_oneof![6 => 0..LEASE, 2 => 0..2 * TTL, 1 => 0..2 * DEAD];
    prop_oneof![
        8 => (client(), 0..KEYS, payload(), prop::option::of(1u64..5), any::<bool>()).prop_map(
            |(client, key, payload, near, exclusive)| Step::Reserve { client, key, payload, near, exclusive }
        ),
        6 => (client(), which()).prop_map(|(client, which)| Step::Seal { client, which }),
        1 => (client(), which()).prop_map(|(client, which)| Step::Abort { client, which }),
        4 => (client(), keys()).prop_map(|(client, keys)| Step::Locate { client, keys }),
        2 => (client(), any::<Index>()).prop_map(|(client, which)| Step::Release { client, which }),
        2 => keys().prop_map(|keys| Step::MatchPrefix { keys }),
        1 => keys().prop_map(|keys| Step::Remove { keys }),
        3 => (keys(), prop::option::of(1..2 * LEASE)).prop_map(|(keys, ttl_ms)| Step::Pin { keys, ttl_ms }),
        1 => keys().prop_map(|keys| Step::Unpin { keys }),
        1 => Just(Step::RemoveAll),
        2 => (node(), 1u64..4, 1u64..3, any::<bool>()).prop_map(
            |(node, incarnation, mib, rests)| Step::Join { node, incarnation, mib, rests }
        ),
        2 => (node(), 1u64..4).prop_map(|(node, incarnation)| Step::Heartbeat { node, incarnation }),
        1 => (node(), 1u64..4).prop_map(|(node, incarnation)| Step::Leave { node, incarnation }),
        4 => time().prop_map(Step::Pass),
        1 => Just(Step::Tick),
    ]
}

fn name(key: u8) -> String {
    format!("key-{key}")
}

fn names(keys: &[u8]) -> Vec<String> {
    keys.iter().copied().map(name).collect()
}

struct Both {
    pool: Pool,
    model: Model,
    /// The core may find no room where there is some.
    overlooks: bool,
}

impl Both {
    fn new() -> Self {
        Self::with(SETTINGS)
    }

    fn with(settings: Settings) -> Self {
        let search = settings.search;
        let overlooks = search.looks < 1000 || search.row_step < 1000;
        let mut both = Self { pool: Pool::of(settings, &[]), model: Model::default(), overlooks };
        both.model.any_age = search.in_order < KEYS.into();
        for node in 1..3 {
            both.join(node, 1, MIB, false);
        }
        both
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Reserve { client, key, payload, near, exclusive } => {
                self.reserve(ClientId::new(client), &name(key), payload, near, exclusive);
            }
            Step::Seal { client, which } => {
                let ids = self.tickets(&which);
                let now = ClientId::new(client);
                let outcomes = self.pool.with(|core, at, effects| core.seal(at, now, &ids, effects)).unwrap();
                assert_eq!(outcomes, self.model.seal(client, &ids));
            }
            Step::Abort { client, which } => {
                let ids = self.tickets(&which);
                let owner = ClientId::new(client);
                self.pool.with(|core, now, effects| core.abort(now, owner, &ids, effects)).unwrap();
                self.model.abort(client, &ids);
            }
            Step::Locate { client, keys } => self.locate(client, &names(&keys)),
            Step::Release { client, which } if !self.model.leases.is_empty() => {
                let id = *self.model.leases.keys().nth(which.index(self.model.leases.len())).unwrap();
                self.pool.release(ClientId::new(client), Some(LeaseId::new(id)));
                self.model.release(client, id);
            }
            Step::Release { .. } => {}
            Step::MatchPrefix { keys } => {
                let keys = names(&keys);
                let found = self.pool.with(|core, now, effects| core.match_prefix(now, &batch(&keys), effects));
                assert_eq!((found.present, found.pending), self.model.match_prefix(&keys));
            }
            Step::Remove { keys } => {
                let keys = names(&keys);
                let removed = self.pool.with(|core, now, effects| core.remove(now, &batch(&keys), effects)).removed;
                assert_eq!(removed, keys.iter().map(|key| self.model.remove(key)).collect::<Vec<_>>());
            }
            Step::Pin { keys, ttl_ms } => self.pin(&names(&keys), ttl_ms),
            Step::Unpin { keys } => self.unpin(&names(&keys)),
            Step::RemoveAll => {
                let removed = self.pool.with(Core::remove_all).removed;
                let keys: Vec<String> = self.model.readable.keys().cloned().collect();
                assert_eq!(removed, keys.iter().filter(|key| self.model.remove(key)).count() as u64);
            }
            Step::Join { node, incarnation, mib, rests } => self.join(node, incarnation, mib * MIB, rests),
            Step::Heartbeat { node, incarnation } => {
                let told = self.pool.heartbeat(node, incarnation);
                assert_eq!(told.is_err(), self.model.is_stale(node, incarnation));
                assert_eq!(told.unwrap_or(false), self.model.is_joined(node, incarnation));
                if self.model.is_joined(node, incarnation) {
                    self.model.heard(node);
                }
            }
            Step::Leave { node, incarnation } => {
                let told = self.pool.leave(node, incarnation);
                assert_eq!(told.is_err(), self.model.is_stale(node, incarnation));
                if self.model.is_joined(node, incarnation) {
                    self.model.drop_node(node);
                }
            }
            Step::Pass(ms) => {
                self.pool.pass(ms);
                self.model.advance(self.pool.now);
            }
            Step::Tick => {
                while self.pool.tick() {}
                let evicted = self.gone();
                self.model.tick(&evicted);
            }
        }
        self.compare();
    }

    fn unpin(&mut self, keys: &[String]) {
        let asked: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut unpinned: Vec<bool> = keys.iter().rev().map(|key| self.model.unpin(key)).collect();
        unpinned.reverse();
        assert_eq!(self.pool.unpin(&asked), unpinned);
    }

    /// Some tickets, and one that nobody holds.
    fn tickets(&self, which: &[Index]) -> Vec<u64> {
        let known: Vec<u64> = self.model.tickets.keys().copied().chain([7]).collect();
        which.iter().map(|index| known[index.index(known.len())]).collect()
    }

    /// Keys that the model has and the core has no longer.
    fn gone(&mut self) -> BTreeSet<String> {
        let known: Vec<String> = self.model.readable.keys().cloned().collect();
        known.into_iter().filter(|key| !self.pool.is_there(key)).collect()
    }

    fn reserve(&mut self, client: ClientId, key: &str, payload: u64, near: Option<u64>, exclusive: bool) {
        let sweeps = self.pool.core.sweeps();
        let reply = self.pool.reserve_as(client, &[key], &[payload], near, exclusive).unwrap();
        let outcome = reply.outcomes[0];
        if let Some(expected) = self.model.reserve_without_space(key, payload, exclusive) {
            assert_eq!(outcome, expected);
            return;
        }
        let fits = self.model.fits(payload, None, None);
        let fits_evicting = self.model.fits(payload, None, Some(ALL_THAT_MAY_GO));
        let fits_near = near.is_some() && self.model.fits(payload, near, None);
        let reserved = outcome == ReserveOutcome::Reserved;
        assert!(reserved == fits_evicting || self.overlooks && !reserved && !fits, "{outcome:?}");
        let evicted = self.gone();
        assert!(evicted.is_empty() || reserved, "evicted for nothing");
        assert!(evicted.is_empty() || !fits, "evicted although it fits");
        self.model.evict_for(&evicted, payload);
        if let Some(ticket) = reply.tickets.first() {
            let segment = ticket.address.segment().get();
            let run = (segment, ticket.address.offset(), extent_bytes(payload));
            assert!(!fits_near || sweeps || self.model.node_of(segment) == near, "placed away from its writer");
            self.model.reserved(ticket.reservation.get(), client.get(), key, run, payload);
        } else {
            assert_eq!(outcome, ReserveOutcome::ReserveNoSpace);
        }
    }

    /// Soft pins from the tail on, which is to be given up first; hard ones from the head, which is to have the quota.
    fn pin(&mut self, keys: &[String], ttl_ms: Option<u64>) {
        let asked: Vec<&str> = keys.iter().map(String::as_str).collect();
        let outcomes = self.pool.pin(&asked, ttl_ms);
        let expected: Vec<PinOutcome> = if ttl_ms.is_none() {
            keys.iter().map(|key| self.model.pin(key, ttl_ms)).collect()
        } else {
            let from_tail: Vec<_> = keys.iter().rev().map(|key| self.model.pin(key, ttl_ms)).collect();
            from_tail.into_iter().rev().collect()
        };
        assert_eq!(outcomes, expected);
    }

    fn locate(&mut self, client: u64, keys: &[String]) {
        let asked: Vec<&str> = keys.iter().map(String::as_str).collect();
        let reply = self.pool.locate(ClientId::new(client), &asked);
        let expected: Vec<LocateOutcome> = keys.iter().map(|key| self.model.look(key)).collect();
        assert_eq!(reply.outcomes, expected);
        let generations = self.model.locate(client, keys, reply.lease.map(LeaseId::get));
        assert_eq!(reply.found.len(), generations.len());
        for (found, generation) in reply.found.iter().zip(generations) {
            let stored = &self.model.stored[&generation];
            assert_eq!(found.generation.get(), generation);
            assert_eq!((found.address.segment().get(), found.address.offset()), (stored.run.0, stored.run.1));
            assert_eq!(found.payload_bytes, stored.payload_bytes);
        }
    }

    fn join(&mut self, node: u64, incarnation: u64, bytes: u64, rests: bool) {
        let told = self.pool.join(node, incarnation, bytes, u64::from(rests) * 999);
        if self.model.is_stale(node, incarnation) {
            assert!(matches!(told, Err(Refusal::Stale { .. })));
        } else if !rests && self.model.has_left(node, incarnation) {
            assert!(matches!(told, Err(Refusal::Late { .. })));
        } else if self.model.is_joined(node, incarnation) {
            match told {
                Ok(_) => self.model.heard(node),
                Err(refusal) => assert!(matches!(refusal, Refusal::Changed { .. })),
            }
        } else {
            self.model.join(node, incarnation, told.unwrap().get(), bytes, rests);
        }
    }

    fn compare(&mut self) {
        // Objects of nodes that are gone count until they are forgotten.
        while !self.pool.core.graves.is_empty() {
            self.pool.pass(0);
        }
        assert_eq!(self.pool.status().objects, self.model.readable.len() as u64);
        for key in 0..KEYS {
            assert_eq!(self.pool.exist(&name(key)), self.model.look(&name(key)), "key {key}");
        }
        let status = self.pool.status();
        assert_eq!(status.objects, self.model.readable.len() as u64);
        assert_eq!(status.reservations, self.model.tickets.len() as u64);
        let soft = self.model.pins.values().filter(|(until, _)| until.is_some()).count() as u64;
        assert_eq!((status.soft_pins, status.hard_pins), (soft, self.model.pins.len() as u64 - soft));
        assert_eq!(status.leases, self.model.leases.len() as u64);
        let bytes: Vec<(u64, u64)> = status.nodes.iter().map(|node| (node.used_bytes, node.capacity_bytes)).collect();
        // What was removed has its space until it is forgotten.
        let most = |(one, other): (&(u64, u64), &(u64, u64))| one.0 >= other.0 && one.1 == other.1;
        let known = self.model.bytes();
        let sweeps = self.pool.core.sweeps() && known.len() == bytes.len();
        assert!(known == bytes || sweeps && bytes.iter().zip(&known).all(most), "{bytes:?}, want {known:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_core_does_what_the_model_says(steps in prop::collection::vec(step(), 1..120)) {
        let mut both = Both::new();
        for step in steps {
            both.run(step);
        }
    }

    #[test]
    fn the_core_does_what_the_model_says_however_short_its_steps(steps in prop::collection::vec(step(), 1..120)) {
        let mut both = Both::with(Settings { step: 1, ..SETTINGS });
        for step in steps {
            both.run(step);
        }
    }

    #[test]
    fn only_what_makes_a_hole_goes_wherever_the_core_looks(steps in prop::collection::vec(step(), 1..120)) {
        let search = SearchLimits { in_order: 1, ..SearchLimits::DEFAULT };
        let mut both = Both::with(Settings { search, ..SETTINGS });
        for step in steps {
            both.run(step);
        }
    }

    #[test]
    fn nothing_goes_for_nothing_however_little_the_core_looks_at(
        steps in prop::collection::vec(step(), 1..120),
        in_order in 0usize..3,
        looks in 0usize..12,
        segments in 0usize..3,
        row_step in 1usize..8,
    ) {
        let search = SearchLimits { in_order, looks, segments, row_step };
        let mut both = Both::with(Settings { search, ..SETTINGS });
        for step in steps {
            both.run(step);
        }
    }

    #[test]
    fn the_same_calls_give_the_same_answers(steps in prop::collection::vec(step(), 1..60)) {
        let (mut one, mut two) = (Both::new(), Both::new());
        for step in steps {
            one.run(step.clone());
            two.run(step);
        }
        prop_assert_eq!(one.pool.effects, two.pool.effects);
        prop_assert_eq!(format!("{:?}", one.model), format!("{:?}", two.model));
    }
}
