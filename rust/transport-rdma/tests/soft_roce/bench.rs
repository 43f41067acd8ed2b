//! One line of figures, for the record: what Soft-RoCE on an emulated processor moves says nothing about devices.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_transport::{Fabric, FabricOptions, ProtocolChoice, ReadOp, Road, WriteOp};
use memcache_types::ScatterList;

use crate::owner::{Owner, place, road, soon};

#[test]
#[ignore = "needs an RDMA device"]
fn speed_of_one_object() {
    let owner = Owner::start(ProtocolChoice::HostRdma);
    let road = road();
    let options = FabricOptions { choice: ProtocolChoice::HostRdma, ..FabricOptions::default() };
    let link =
        Fabric::with_rdma(options, Some(Arc::clone(&road) as Arc<dyn Road>)).link(&owner.descriptor, soon()).unwrap();
    for (name, pieces, bytes) in
        [("61 x 14 KiB + 61 x 2 KiB", 122usize, 976 << 10), ("1 x 1 MiB", 1, 1 << 20), ("1 x 4 KiB", 1, 4 << 10)]
    {
        let piece = bytes / pieces;
        let memory = vec![1u8; (piece + 64) * pieces];
        let address = memory.as_ptr().expose_provenance() as u64;
        let mut list = ScatterList::new();
        for index in 0..pieces as u64 {
            list.push(address + index * (piece as u64 + 64), piece as u64);
        }
        for is_registered in [true, false] {
            // SAFETY: the vector is never resized and lives longer.
            let promise = is_registered.then(|| unsafe { road.prepare(address, memory.len() as u64) });
            let (extent, payload_bytes) = (place(0, piece * pieces), list.bytes());
            let mut times: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
            for _ in 0..15 {
                let started = Instant::now();
                let op = WriteOp { extent, payload_bytes, local: &list, trailer: &[7; 64] };
                // SAFETY: the vector lives and is not touched during the calls.
                unsafe { link.write(&[op], soon()) }.remove(0).unwrap();
                times[0].push(started.elapsed());
                let started = Instant::now();
                // SAFETY: as above.
                unsafe { link.read(&[ReadOp { extent, payload_bytes, local: &list }], soon()) }.remove(0).unwrap();
                times[1].push(started.elapsed());
            }
            let median = times.map(|mut times| {
                times.sort_unstable();
                times[times.len() / 2]
            });
            println!(
                "bench {name}, {}: put {:?}, get {:?} (medians of 15)",
                if is_registered { "registered" } else { "copied through the ring" },
                median[0],
                median[1]
            );
            drop(promise);
        }
    }
}
