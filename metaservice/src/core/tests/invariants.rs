//! What holds between all parts of the state after every call.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::index::Entry;
use crate::core::list::Linked;
use crate::core::lookup::Leasing;
use crate::core::record::RecordSlot;
use crate::core::replicas::Shelf;
use crate::core::slab::Slot;
use crate::core::sweep::Hidden;
use crate::core::{Core, EvictionPolicy, Extras, List, Object, PinReport, Segment, Slab};
use memcache_types::extent_bytes;

impl Core {
    /// Panics if the state contradicts itself.
    pub(super) fn check(&self) {
        self.check_space();
        self.check_rows();
        self.check_records();
        self.check_entries();
        self.check_leases();
        self.check_nodes();
        self.check_hidden();
    }

    fn check_space(&self) {
        let lists = |id| self.segment_ids.get(id).is_some_and(|slot| self.segments[*slot].listing.is_some());
        assert!(self.untold.iter().all(lists), "who has rested has told");
        for (slot, segment) in self.segments.iter().filter(|(_, segment)| !segment.gone) {
            let mut positions = segment.reservations.iter().zip(0..);
            assert!(positions.all(|(own, position)| self.reservations[*own].position == position));
            let placed = self.reservations.iter().filter(|(_, reservation)| reservation.segment == slot).count();
            assert_eq!(placed, segment.reservations.len());
            let place = (segment.space.free_bytes(), segment.space.longest_run());
            assert_eq!(segment.shelved, self.is_open(slot).then_some(place), "where new objects go");
            let reserved = self
                .reservations
                .iter()
                .filter(|(_, reservation)| reservation.segment == slot)
                .map(|(_, reservation)| (reservation.offset, extent_bytes(reservation.payload_bytes)));
            let objects = self
                .objects
                .iter()
                .filter(|(_, object)| object.segment == Some(slot))
                .map(|(_, object)| (object.offset, object.extent_bytes()));
            let resting = self.quarantine.iter().filter(|resting| resting.segment == segment.id);
            let resting = resting.map(|resting| (resting.offset, resting.bytes));
            let mut taken: Vec<(u64, u64)> = reserved.chain(objects).chain(resting).collect();
            taken.sort_unstable();
            for pair in taken.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "two live extents overlap: {pair:?}");
            }
            let used: u64 = taken.iter().map(|(_, bytes)| bytes).sum();
            assert_eq!(used, segment.space.used_bytes(), "bytes in use");
            assert_eq!(segment.space.used_bytes() + segment.space.free_bytes(), segment.space.bytes());
            let alone: Vec<_> = segment.idle.iter(&self.objects).collect();
            let (extra, rest) =
                (members(&segment.surplus.extra, &self.objects), members(&segment.surplus.rest, &self.objects));
            let has_extras = |slot: &Slot<Object>| self.shelf_of(*slot) == Shelf::Extra;
            assert!(extra.iter().all(has_extras) && !rest.iter().any(has_extras));
            let surplus = [extra.clone(), rest.clone()].concat();
            assert!(alone.iter().all(|slot| self.is_alone(*slot)));
            assert!(surplus.iter().all(|slot| !self.is_alone(*slot)));
            let by_use = if self.settings.policy == EvictionPolicy::Lru {
                vec![&alone, &extra, &rest]
            } else {
                vec![&extra, &rest]
            };
            for list in by_use {
                let order: Vec<u64> = list.iter().map(|slot| self.objects[*slot].used()).collect();
                assert!(order.is_sorted_by(|newer, older| newer > older), "idle objects are in the order of their use");
            }
            let pinned: Vec<_> = segment.pinned.iter(&self.objects).collect();
            let idle = [alone, surplus].concat();
            self.check_pinned(segment, &idle, &pinned);
            let leased = members(&segment.leased, &self.objects);
            assert!(idle.iter().all(|slot| self.objects[*slot].leases == 0 && self.objects[*slot].entry.is_some()));
            assert!(leased.iter().all(|slot| self.objects[*slot].leases > 0));
            let own = self.objects.iter().filter(|(_, object)| object.segment == Some(slot)).count();
            assert_eq!(idle.len() + pinned.len() + leased.len(), own, "an object is in one list of its segment");
            assert_eq!(idle.iter().map(|slot| self.objects[*slot].extent_bytes()).sum::<u64>(), segment.idle_bytes);
        }
    }

    fn check_pinned(&self, segment: &Segment, idle: &[Slot<Object>], pinned: &[Slot<Object>]) {
        let is_pinned =
            |slot: &Slot<Object>| self.objects[*slot].entry.is_some_and(|entry| self.index.get(entry).is_pinned());
        assert!(pinned.iter().all(|slot| is_pinned(slot) && self.objects[*slot].leases == 0));
        assert!(!idle.iter().any(is_pinned), "a pinned object stands among victims");
        let bytes = |hard: bool, idle_only: bool| -> u64 {
            let own = self.objects.iter().filter(|(slot, object)| {
                object.segment.is_some_and(|own| self.segments[own].id == segment.id)
                    && object
                        .entry
                        .is_some_and(|entry| self.pin_report(entry).is_some_and(|pin| (pin == PinReport::Hard) == hard))
                    && (!idle_only || pinned.contains(slot))
            });
            own.map(|(_, object)| object.extent_bytes()).sum()
        };
        let counted = (segment.pinned.hard_bytes, segment.pinned.soft_bytes);
        assert_eq!(counted, (bytes(true, false), bytes(false, false)), "pinned bytes");
        let idle = (segment.pinned.hard_idle_bytes, segment.pinned.soft_idle_bytes);
        assert_eq!(idle, (bytes(true, true), bytes(false, true)), "pinned bytes that nobody reads");
    }

    /// Every place of a table is free, or has one reason not to be.
    fn check_records(&self) {
        for (slot, segment) in self.segments.iter().filter(|(_, segment)| !segment.gone) {
            let objects = self.objects.iter().filter(|(_, object)| object.segment == Some(slot));
            let objects = objects.filter_map(|(_, object)| object.record);
            let tickets = self.reservations.iter().filter(|(_, reservation)| reservation.segment == slot);
            let tickets = tickets.filter_map(|(_, reservation)| reservation.held.own_slot());
            let stale = self.stale.iter().filter(|(_, stale)| stale.segment() == slot).map(|(_, stale)| stale.slot());
            let mut numbers: Vec<u32> = objects.chain(tickets).chain(stale).map(RecordSlot::number).collect();
            numbers.extend(segment.table.free_numbers());
            numbers.sort_unstable();
            let all: Vec<u32> = (0..segment.table.place.records).collect();
            assert_eq!(numbers, all, "places of the table");
            let unrecorded = self.objects.iter().filter(|(_, object)| {
                object.segment == Some(slot) && object.entry.is_some() && object.record.is_none()
            });
            assert_eq!(unrecorded.count() as u64, segment.unrecorded);
        }
        self.check_stale();
    }

    fn check_entries(&self) {
        let mut writers: BTreeMap<String, u32> = BTreeMap::new();
        for (_, reservation) in self.reservations.iter() {
            *writers.entry(format!("{:?}", reservation.entry)).or_default() += 1;
        }
        let readable: Vec<_> = self.objects.iter().filter(|(_, object)| object.entry.is_some()).collect();
        for (slot, object) in &readable {
            let entry = object.entry.expect("filtered");
            assert!(self.chain(entry).any(|replica| replica == *slot), "a replica that its key does not know");
            let node = self.node_of(*slot);
            let beside = self.chain(entry).filter(|replica| node.is_some() && self.node_of(*replica) == node).count();
            assert!(beside <= 1, "two replicas on one node");
            let known = self.index.get(entry);
            // Replicas on nodes that are gone count when they are forgotten, moves are found on the node that is drained.
            let settled = self.chain(entry).all(|replica| self.is_lasting(replica));
            assert!(!settled || !self.lacks(entry) || known.is_queued(), "a key lacks replicas and waits for none");
            writers.entry(format!("{entry:?}")).or_default();
        }
        let extras = |amount: fn(&Extras) -> u64| -> u64 {
            let known: BTreeSet<Slot<Entry>> = readable.iter().filter_map(|(_, object)| object.entry).collect();
            known.iter().map(|entry| amount(&self.extras_of(*entry))).sum()
        };
        assert_eq!(extras(|one| one.replicas), self.extras.replicas);
        assert_eq!(extras(|one| one.bytes), self.extras.bytes);
        let coming = self.reservations.iter().filter(|(_, reservation)| reservation.extra);
        let coming: u64 = coming.map(|(_, reservation)| extent_bytes(reservation.payload_bytes)).sum();
        assert_eq!(coming, self.extras_coming);
        assert_eq!(writers.len(), self.index.len(), "a key is known while it is readable or being written");
        for (_, reservation) in self.reservations.iter() {
            let count = writers[&format!("{:?}", reservation.entry)];
            assert_eq!(self.index.get(reservation.entry).writers(), count);
        }
        let keys: BTreeSet<String> = readable.iter().map(|(_, object)| format!("{:?}", object.entry)).collect();
        assert_eq!((readable.len() as u64, keys.len() as u64), (self.replicas, self.readable));
        assert_eq!(self.reservations.iter().filter(|(_, reservation)| reservation.copy).count(), self.copies);
        let by_client: u64 = self.client_reservations.values().map(|count| u64::from(*count)).sum();
        assert_eq!(by_client, self.reservations.len() as u64);
        assert!(self.client_reservations.values().all(|count| *count > 0));
        assert_eq!(self.reservation_ids.len(), self.reservations.len());
        assert_eq!(members(&self.reservation_order, &self.reservations).len(), self.reservations.len());
    }

    fn check_leases(&self) {
        let mut named: BTreeMap<String, u32> = BTreeMap::new();
        let mut by_client = BTreeMap::<_, Leasing>::new();
        for (_, lease) in self.leases.iter() {
            let own = by_client.entry(lease.client).or_default();
            own.leases += 1;
            own.objects += lease.objects.len();
            for object in &lease.objects {
                *named.entry(format!("{object:?}")).or_default() += 1;
            }
        }
        assert_eq!(by_client, self.client_leases);
        assert_eq!(named.values().map(|count| *count as usize).sum::<usize>(), self.leased);
        for (slot, object) in self.objects.iter() {
            let count = named.get(&format!("{slot:?}")).copied().unwrap_or(0);
            assert_eq!(object.leases, count);
            assert!(count > 0 || object.entry.is_some(), "an object nobody can reach");
        }
        assert_eq!(self.lease_ids.len(), self.leases.len());
        assert_eq!(members(&self.lease_order, &self.leases).len(), self.leases.len());
    }

    fn check_hidden(&self) {
        let hidden = |object: &&Object| object.entry.is_some_and(|entry| self.is_hidden(entry));
        let replicas: Vec<_> = self.objects.iter().map(|(_, object)| object).filter(hidden).collect();
        let keys: BTreeSet<_> = replicas.iter().filter_map(|object| object.entry).collect();
        let pins = |hard: bool| {
            let report = |entry: &&Slot<Entry>| self.pin_report(**entry);
            keys.iter().filter(|entry| report(entry).is_some_and(|pin| (pin == PinReport::Hard) == hard)).count() as u64
        };
        let counted = Hidden {
            keys: keys.len() as u64,
            replicas: replicas.len() as u64,
            soft_pins: pins(false),
            hard_pins: pins(true),
        };
        assert_eq!(counted, *self.sweep.hidden());
        for (slot, segment) in self.segments.iter() {
            let own = replicas.iter().filter(|object| object.segment == Some(slot)).count();
            assert_eq!(own as u64, segment.hidden);
        }
    }

    fn check_nodes(&self) {
        let gone = self.segments.iter().filter(|(_, segment)| segment.gone).count();
        assert_eq!(gone, self.graves.len());
        assert_eq!(self.segment_ids.len() + gone, self.segments.len());
        assert_eq!(self.node_ids.len(), self.nodes.len());
        let lent: usize = self.nodes.iter().map(|(_, node)| node.segments.len()).sum();
        assert_eq!(lent + gone, self.segments.len());
        let visible: u64 = self.segments.iter().map(|(_, segment)| segment.objects).sum();
        assert_eq!(visible, self.replicas);
    }
}

fn members<T: Linked>(list: &List<T>, slab: &Slab<T>) -> Vec<Slot<T>> {
    list.iter(slab).collect()
}
