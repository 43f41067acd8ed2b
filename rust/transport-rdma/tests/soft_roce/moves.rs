//! Bytes arrive, in as few work requests as the device allows.

use std::any::Any;
use std::process::Command;
use std::sync::Arc;

use memcache_testkit::rng::{Rng, pattern};
use memcache_testkit::transport_suite;
use memcache_transport::{
    Fabric, FabricOptions, HostId, Link, Protocol, ProtocolChoice, ReadOp, RegionDescriptor, Road, WriteOp,
};
use memcache_transport_rdma::RdmaRoad;
use memcache_types::ScatterList;

use crate::owner::{Owner, fabric, get, place, put, road, serve, soon, trailer};

#[test]
#[ignore = "needs an RDMA device"]
fn the_suite_over_rdma() {
    let owner = Owner::start(ProtocolChoice::HostRdma);
    let fabric = fabric(ProtocolChoice::HostRdma);
    transport_suite::run(&|| fabric.link(&owner.descriptor, soon()).unwrap());
}

/// Memory in the shape of a KV cache, with a promise that it stays.
struct Cache {
    memory: Vec<u8>,
    pieces: Vec<(usize, usize)>,
    _promise: Option<Box<dyn Any + Send + Sync>>,
}

impl Cache {
    fn new(road: Option<&RdmaRoad>, lengths: &[usize]) -> Self {
        let mut at = 0;
        let pieces = lengths
            .iter()
            .map(|bytes| {
                let start = at;
                at += bytes + 192;
                (start, *bytes)
            })
            .collect();
        let memory = vec![0xeeu8; at];
        let address = memory.as_ptr().expose_provenance() as u64;
        // SAFETY: the vector is never resized and lives as long as the promise.
        let promise = road.map(|road| unsafe { road.prepare(address, memory.len() as u64) });
        Self { memory, pieces, _promise: promise }
    }

    fn list(&mut self) -> ScatterList {
        let base = self.memory.as_mut_ptr().expose_provenance() as u64;
        let mut list = ScatterList::new();
        for (at, bytes) in &self.pieces {
            list.push(base + *at as u64, *bytes as u64);
        }
        list
    }

    fn fill(&mut self, object: &[u8]) {
        let mut rest = object;
        for (at, bytes) in &self.pieces {
            self.memory[*at..at + bytes].copy_from_slice(&rest[..*bytes]);
            rest = &rest[*bytes..];
        }
    }

    fn object(&self) -> Vec<u8> {
        let mut between = self.memory.clone();
        for (at, bytes) in &self.pieces {
            between[*at..at + bytes].fill(0xee);
        }
        assert!(between.iter().all(|byte| *byte == 0xee), "bytes between the pieces changed");
        self.pieces.iter().flat_map(|(at, bytes)| &self.memory[*at..at + bytes]).copied().collect()
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_block_of_122_pieces_takes_as_few_work_requests_as_the_device_allows() {
    let owner = Owner::start(ProtocolChoice::HostRdma);
    let road = road();
    let options = FabricOptions { choice: ProtocolChoice::HostRdma, ..FabricOptions::default() };
    let fabric = Fabric::with_rdma(options, Some(Arc::clone(&road) as Arc<dyn Road>));
    let link = fabric.link(&owner.descriptor, soon()).unwrap();
    // The ratio of a DeepSeek-R1 block, an eighth of its size: 61 x 16 KiB and 61 x 2 KiB.
    let lengths = [16 << 10, 2 << 10].repeat(61);
    let bytes: usize = lengths.iter().sum();
    let object = pattern(1, bytes);
    let (mut source, mut target) = (Cache::new(Some(&road), &lengths), Cache::new(Some(&road), &lengths));
    source.fill(&object);
    let (from, to, end) = (source.list(), target.list(), trailer(1, bytes));
    assert_eq!(from.pieces().len(), 122);
    let allowed = 122_u64.div_ceil(road.pieces_per_request().unwrap() as u64);

    let at_start = road.work_requests();
    let op = WriteOp { extent: place(0, bytes), payload_bytes: bytes as u64, local: &from, trailer: &end };
    // SAFETY: the memory lives and is not touched during the call.
    assert_eq!(unsafe { link.write(&[op], soon()) }, [Ok(())]);
    let after_put = road.work_requests();
    let op = ReadOp { extent: place(0, bytes), payload_bytes: bytes as u64, local: &to };
    // SAFETY: as above.
    assert_eq!(unsafe { link.read(&[op], soon()) }, [Ok(end)]);
    let after_get = road.work_requests();

    println!(
        "122 pieces, {} a work request: put {} + {} for the trailer, get {} + {} (at most {allowed} + 2, {allowed} + 1)",
        road.pieces_per_request().unwrap(),
        after_put.payload - at_start.payload,
        after_put.trailer - at_start.trailer,
        after_get.payload - after_put.payload,
        after_get.trailer - after_put.trailer,
    );
    assert!(after_put.payload - at_start.payload <= allowed && after_get.payload - after_put.payload <= allowed);
    assert_eq!((after_put.trailer - at_start.trailer, after_get.trailer - after_put.trailer), (2, 1));
    assert!(target.object() == object, "other bytes than were put");
}

/// Promised, unpromised, and pieces of both kinds side by side, also after a promise has been taken back.
#[test]
#[ignore = "needs an RDMA device"]
fn registered_and_copied_pieces_make_one_object() {
    let owner = Owner::start(ProtocolChoice::HostRdma);
    let road = road();
    let options = FabricOptions { choice: ProtocolChoice::HostRdma, ..FabricOptions::default() };
    let fabric = Fabric::with_rdma(options, Some(Arc::clone(&road) as Arc<dyn Road>));
    let link = fabric.link(&owner.descriptor, soon()).unwrap();
    let mut rng = Rng::new(7);
    for round in 1..=40u64 {
        let lengths = |rng: &mut Rng| (0..=rng.index(40)).map(|_| 1 + rng.index(9000)).collect::<Vec<usize>>();
        let (first, second) = (lengths(&mut rng), lengths(&mut rng));
        let (first_bytes, second_bytes) = (first.iter().sum(), second.iter().sum());
        let objects = [pattern(round, first_bytes), pattern(!round, second_bytes)];
        let mut promised = Cache::new(Some(&road), &first);
        let mut plain = Cache::new((round % 3 == 0).then_some(&*road), &second);
        promised.fill(&objects[0]);
        plain.fill(&objects[1]);
        let list = alternate(&promised.list(), &plain.list());
        let (extent, payload_bytes) = (place(rng.below(1000) * 64, first_bytes + second_bytes), list.bytes());
        let end = trailer(round, first_bytes + second_bytes);
        let op = WriteOp { extent, payload_bytes, local: &list, trailer: &end };
        // SAFETY: the memory lives and is not touched during the call.
        assert_eq!(unsafe { link.write(&[op], soon()) }, [Ok(())]);
        promised.fill(&vec![0; first_bytes]);
        plain.fill(&vec![0; second_bytes]);
        let op = ReadOp { extent, payload_bytes, local: &list };
        // SAFETY: as above.
        assert_eq!(unsafe { link.read(&[op], soon()) }, [Ok(end)]);
        assert!([promised.object(), plain.object()] == objects, "round {round}");
    }
}

/// The pieces of both in turn.
fn alternate(first: &ScatterList, second: &ScatterList) -> ScatterList {
    let most = first.pieces().len().max(second.pieces().len());
    (0..most).flat_map(|index| [first.pieces().get(index), second.pieces().get(index)]).flatten().copied().collect()
}

/// A piece long enough to be registered for the one call.
#[test]
#[ignore = "needs an RDMA device"]
fn a_long_piece_is_registered_for_the_call() {
    let owner = Owner::start(ProtocolChoice::HostRdma);
    let link = fabric(ProtocolChoice::HostRdma).link(&owner.descriptor, soon()).unwrap();
    let bytes = 5 << 20;
    let object = pattern(5, bytes);
    let (mut source, mut target) = (Cache::new(None, &[bytes]), Cache::new(None, &[bytes]));
    source.fill(&object);
    let (from, to, end) = (source.list(), target.list(), trailer(5, bytes));
    let op = WriteOp { extent: place(0, bytes), payload_bytes: bytes as u64, local: &from, trailer: &end };
    // SAFETY: the memory lives and is not touched during the call.
    assert_eq!(unsafe { link.write(&[op], soon()) }, [Ok(())]);
    let op = ReadOp { extent: place(0, bytes), payload_bytes: bytes as u64, local: &to };
    // SAFETY: as above.
    assert_eq!(unsafe { link.read(&[op], soon()) }, [Ok(end)]);
    assert!(target.object() == object, "other bytes than were put");
}

#[test]
#[ignore = "needs an RDMA device"]
fn auto_takes_rdma_between_hosts_and_tcp_where_it_does_not_lead() {
    let owner = Owner::start(ProtocolChoice::Auto);
    let elsewhere = RegionDescriptor { host: HostId::UNKNOWN, ..owner.descriptor.clone() };
    let reached = |descriptor: &RegionDescriptor| {
        let link = fabric(ProtocolChoice::Auto).link(descriptor, soon()).unwrap();
        let object = put(&*link, 1, 10_000).unwrap();
        assert!(get(&*link, 1, 10_000, soon()).unwrap() == object);
        link.protocol()
    };
    assert_eq!(reached(&owner.descriptor), Protocol::HostShm);
    assert_eq!(reached(&elsewhere), Protocol::HostRdma);
    assert_eq!(reached(&RegionDescriptor { rdma: None, ..elsewhere.clone() }), Protocol::HostTcp);
    // An address at which something else answers: the TCP data server, which hangs up on what is no frame.
    let misled = RegionDescriptor { rdma: elsewhere.tcp.clone(), ..elsewhere };
    assert_eq!(reached(&misled), Protocol::HostTcp);
}

/// Queue pairs, completion queues and registrations of the whole machine, as the kernel counts them.
fn resources() -> String {
    let output = Command::new("rdma").args(["resource", "show"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs an RDMA device"]
fn links_and_doors_leave_nothing_behind() {
    let before = resources();
    for round in 0..3 {
        let server = serve(ProtocolChoice::HostRdma);
        let road = road();
        let options = FabricOptions { choice: ProtocolChoice::HostRdma, ..FabricOptions::default() };
        let fabric = Fabric::with_rdma(options, Some(Arc::clone(&road) as Arc<dyn Road>));
        let link: Arc<dyn Link> = fabric.link(server.descriptor(), soon()).unwrap();
        let cache = Cache::new(Some(&road), &[4096]);
        put(&*link, round, 100_000).unwrap();
        get(&*link, round, 100_000, soon()).unwrap();
        assert!(resources() != before, "resources are not counted: {before}");
        drop((cache, server));
        assert!(get(&*link, round, 100_000, soon()).is_err(), "a door that was closed lets somebody in");
    }
    assert_eq!(resources(), before);
}
