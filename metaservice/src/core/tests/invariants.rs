//! What holds between all parts of the state after every call.

use std::collections::BTreeMap;

use crate::core::list::Linked;
use crate::core::slab::Slot;
use crate::core::{Core, List, Slab};
use memcache_types::extent_bytes;

impl Core {
    /// Panics if the state contradicts itself.
    pub(super) fn check(&self) {
        self.check_space();
        self.check_entries();
        self.check_leases();
        self.check_nodes();
    }

    fn check_space(&self) {
        for (slot, segment) in self.segments.iter() {
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
            let idle = members(&segment.idle, &self.objects);
            let leased = members(&segment.leased, &self.objects);
            assert!(idle.iter().all(|slot| self.objects[*slot].leases == 0 && self.objects[*slot].entry.is_some()));
            assert!(leased.iter().all(|slot| self.objects[*slot].leases > 0));
            let own = self.objects.iter().filter(|(_, object)| object.segment == Some(slot)).count();
            assert_eq!(idle.len() + leased.len(), own, "an object is in one list of its segment");
            assert_eq!(idle.iter().map(|slot| self.objects[*slot].extent_bytes()).sum::<u64>(), segment.idle_bytes);
            let order: Vec<u64> = idle.iter().map(|slot| self.objects[*slot].used).collect();
            assert!(order.is_sorted_by(|newer, older| newer > older), "idle objects are in the order of their use");
        }
    }

    fn check_entries(&self) {
        let mut writers: BTreeMap<String, u32> = BTreeMap::new();
        for (_, reservation) in self.reservations.iter() {
            *writers.entry(format!("{:?}", reservation.entry)).or_default() += 1;
        }
        let readable: Vec<_> = self.objects.iter().filter(|(_, object)| object.entry.is_some()).collect();
        for (slot, object) in &readable {
            let entry = object.entry.expect("filtered");
            assert_eq!(self.index.get(entry).object, Some(*slot));
            writers.entry(format!("{entry:?}")).or_default();
        }
        assert_eq!(writers.len(), self.index.len(), "a key is known while it is readable or being written");
        for (_, reservation) in self.reservations.iter() {
            let count = writers[&format!("{:?}", reservation.entry)];
            assert_eq!(self.index.get(reservation.entry).writers, count);
        }
        assert_eq!(readable.len() as u64, self.readable);
        let by_client: u64 = self.client_reservations.values().map(|count| u64::from(*count)).sum();
        assert_eq!(by_client, self.reservations.len() as u64);
        assert!(self.client_reservations.values().all(|count| *count > 0));
        assert_eq!(self.reservation_ids.len(), self.reservations.len());
        assert_eq!(members(&self.reservation_order, &self.reservations).len(), self.reservations.len());
    }

    fn check_leases(&self) {
        let mut named: BTreeMap<String, u32> = BTreeMap::new();
        for (_, lease) in self.leases.iter() {
            for object in &lease.objects {
                *named.entry(format!("{object:?}")).or_default() += 1;
            }
        }
        assert_eq!(named.values().map(|count| *count as usize).sum::<usize>(), self.leased);
        for (slot, object) in self.objects.iter() {
            let count = named.get(&format!("{slot:?}")).copied().unwrap_or(0);
            assert_eq!(object.leases, count);
            assert!(count > 0 || object.entry.is_some(), "an object nobody can reach");
        }
        assert_eq!(self.lease_ids.len(), self.leases.len());
        assert_eq!(members(&self.lease_order, &self.leases).len(), self.leases.len());
    }

    fn check_nodes(&self) {
        assert_eq!(self.segment_ids.len(), self.segments.len());
        assert_eq!(self.node_ids.len(), self.nodes.len());
        let lent: usize = self.nodes.iter().map(|(_, node)| node.segments.len()).sum();
        assert_eq!(lent, self.segments.len());
        let visible: u64 = self.segments.iter().map(|(_, segment)| segment.objects).sum();
        assert_eq!(visible, self.readable);
    }
}

fn members<T: Linked>(list: &List<T>, slab: &Slab<T>) -> Vec<Slot<T>> {
    list.iter(slab).collect()
}
