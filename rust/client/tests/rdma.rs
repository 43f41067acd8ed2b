//! A pool whose members reach each other over RDMA: in the virtual machine of `make test-rdma`. And stores that ask
//! for it where it is not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_client::{Buffers, Checksums, LocalOptions, PutOptions, Store, StoreError, StoreOptions};
use memcache_config::{Endpoint, MetaConfig};
use memcache_meta::MetaServer;
use memcache_transport::{Protocol, ProtocolChoice, TransportError};
use memcache_types::{GetStatus, KeyBatch, PutStatus, ScatterList};

const PIECES: usize = 122;
const PIECE_BYTES: usize = 4 << 10;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn meta() -> MetaServer {
    let listen = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
    MetaServer::start(&MetaConfig { listen, ..MetaConfig::default() }).unwrap()
}

fn options(meta: &MetaServer, lend: u64, protocol: ProtocolChoice, device: &str) -> StoreOptions {
    let lend = (lend > 0).then(|| {
        let local = LocalOptions::from_config(&memcache_config::LocalConfig {
            meta_address: meta.address().clone(),
            lend_bytes: memcache_types::ByteCount::new(lend),
            rdma_device: device.to_owned(),
            ..memcache_config::LocalConfig::default()
        });
        LocalOptions { protocol, ..local }
    });
    StoreOptions {
        endpoint: meta.address().clone(),
        lend,
        protocol,
        rdma_device: device.to_owned(),
        checksums: Checksums::Always,
        replicas: 1,
        transfer_threads: 2,
        ..StoreOptions::new(meta.address().clone())
    }
}

/// Memory of one engine: block `b` is piece `b` of each of the layers.
struct Cache(Vec<u8>);

impl Cache {
    const BLOCKS: usize = 4;

    fn new(fill: impl Fn(usize) -> u8) -> Self {
        Self((0..PIECES * Self::BLOCKS * PIECE_BYTES).map(fill).collect())
    }

    fn address(&self) -> u64 {
        self.0.as_ptr().expose_provenance() as u64
    }

    fn buffers(&mut self) -> Buffers {
        let base = self.0.as_mut_ptr().expose_provenance() as u64;
        let block = |block: usize| {
            let mut list = ScatterList::new();
            for layer in 0..PIECES {
                list.push(base + ((layer * Self::BLOCKS + block) * PIECE_BYTES) as u64, PIECE_BYTES as u64);
            }
            list
        };
        // SAFETY: the vector outlives the calls and nothing else touches it meanwhile.
        unsafe { Buffers::new((0..Self::BLOCKS).map(block).collect(), Arc::new(())) }
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn blocks_travel_between_stores_over_rdma() {
    let meta = meta();
    let lender = Store::open(&options(&meta, 16 << 20, ProtocolChoice::HostRdma, "")).unwrap();
    let engine = Store::open(&options(&meta, 0, ProtocolChoice::HostRdma, "")).unwrap();
    let mut source = Cache::new(|at| (at / 7 % 251).to_le_bytes()[0]);
    let mut target = Cache::new(|_| 0);
    // SAFETY: both vectors stay as they are until the end of the test.
    let _prepared = [&source, &target].map(|cache| unsafe { engine.prepare(cache.address(), cache.0.len() as u64) });
    let keys = KeyBatch::from_keys(["a", "b", "c", "d"]).unwrap();
    assert_eq!(engine.put(&keys, &source.buffers(), &PutOptions::default(), soon()).unwrap(), [PutStatus::Stored; 4]);
    assert_eq!(engine.get(&keys, &target.buffers(), soon()).unwrap(), [GetStatus::Hit; 4]);
    assert!(source.0 == target.0, "other bytes than were put");
    // The lender's own process reads the same objects where they lie.
    let mut target = Cache::new(|_| 0);
    assert_eq!(lender.get(&keys, &target.buffers(), soon()).unwrap(), [GetStatus::Hit; 4]);
    assert!(source.0 == target.0, "other bytes than were put");
    let bytes = (PIECES * Cache::BLOCKS * PIECE_BYTES) as u64;
    let stats = engine.stats();
    assert_eq!((stats.host_rdma_bytes, stats.host_tcp_bytes, stats.host_shm_bytes), (2 * bytes, 0, 0));
    drop(lender);
    let gone = engine.get(&keys, &target.buffers(), soon()).unwrap();
    assert!(gone.iter().all(|status| *status != GetStatus::Hit), "memory that is gone was read: {gone:?}");
}

/// The device exists nowhere, so this holds on machines with RDMA as well.
#[test]
fn a_store_that_asks_for_rdma_in_vain_is_told_what_was_searched() {
    let meta = meta();
    for lend in [0, 1 << 20] {
        let error = Store::open(&options(&meta, lend, ProtocolChoice::HostRdma, "none_such")).unwrap_err();
        let StoreError::Transport(TransportError::Unavailable { protocol: Protocol::HostRdma, why }) = &error else {
            panic!("{error:?}");
        };
        assert!(why.contains("libibverbs") || why.contains("none_such") || why.contains("RDMA subsystem"), "{why}");
        assert!(Store::open(&options(&meta, lend, ProtocolChoice::Auto, "none_such")).is_ok());
    }
}
