//! A pool, a twin, and tensors in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_client::path::StagingOptions;
use memcache_client::path::costs::CostSource;
use memcache_client::{Buffers, LocalOptions, RelayOptions, StoreOptions};
use memcache_config::{Endpoint, MetaConfig};
use memcache_device::{Device, Space, TwinDevice, TwinOptions, TwinTime};
use memcache_meta::MetaServer;
use memcache_testkit::rng::Rng;
use memcache_types::{KeyBatch, Piece, ScatterList};

pub(crate) const ARENA: u64 = 64 << 20;

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(crate) fn meta() -> MetaServer {
    let listen = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
    MetaServer::start(&MetaConfig { listen, ..MetaConfig::default() }).unwrap()
}

pub(crate) fn options(meta: &MetaServer, lend: u64) -> StoreOptions {
    let lend = (lend > 0).then(|| LocalOptions {
        name: "test".to_owned(),
        prefault: false,
        records: 16,
        repair_bytes_per_s: 1 << 30,
        ..LocalOptions::new(lend)
    });
    StoreOptions {
        lend,
        transfer_threads: 2,
        costs: CostSource::Fixed(Box::default()),
        staging: STAGING,
        ..StoreOptions::new(meta.address().clone())
    }
}

pub(crate) const STAGING: StagingOptions = StagingOptions { slot_bytes: 256 << 10, slots: 2, transfers_max: 2 };

/// An owner that relays through this device.
pub(crate) fn relaying(meta: &MetaServer, lend: u64, device: &TwinDevice) -> StoreOptions {
    let mut options = options(meta, lend);
    let relay = RelayOptions { device: Arc::new(device.clone()), staging: STAGING };
    options.lend = options.lend.map(|lend| LocalOptions { relay: Some(relay), ..lend });
    options
}

/// The device of an owner.
pub(crate) fn other_twin() -> TwinDevice {
    let time = TwinTime::Virtual;
    TwinDevice::new(TwinOptions { ordinal: 1, arena_bytes: 8 << 20, time, ..TwinOptions::default() }).unwrap()
}

pub(crate) fn twin(batch_copies_max: usize) -> TwinDevice {
    let time = TwinTime::Virtual;
    TwinDevice::new(TwinOptions { arena_bytes: ARENA, batch_copies_max, time, ..TwinOptions::default() }).unwrap()
}

/// Tensors in a twin: one allocation, objects in pieces of any length with gaps between them.
pub(crate) struct Tensors {
    pub(crate) lists: Vec<ScatterList>,
    pub(crate) memory: memcache_device::Allocation,
    pub(crate) device: TwinDevice,
}

impl Tensors {
    pub(crate) fn new(device: &TwinDevice, shapes: &[(usize, usize)], rng: &mut Rng) -> Self {
        let total: usize = shapes.iter().map(|(bytes, pieces)| bytes + pieces * 70).sum();
        let memory = device.allocate(Space::Device, total as u64).unwrap();
        device.plant(memory.address(), &vec![0xa5; total]);
        let mut at = memory.address();
        let lists = shapes
            .iter()
            .map(|(bytes, pieces)| {
                let mut cuts: Vec<usize> = (1..*pieces).map(|_| rng.index(bytes + 1)).collect();
                cuts.extend([0, *bytes]);
                cuts.sort_unstable();
                let piece = |cut: &[usize]| {
                    let piece = Piece { address: at + rng.below(70), bytes: (cut[1] - cut[0]) as u64 };
                    at = piece.address + piece.bytes;
                    piece
                };
                cuts.windows(2).map(piece).collect()
            })
            .collect();
        Self { lists, memory, device: device.clone() }
    }

    pub(crate) fn buffers(&self) -> Buffers {
        // SAFETY: the allocation is held by its keep, and nobody else uses it during a call.
        unsafe { Buffers::on_device(self.lists.clone(), self.memory.keep(), Arc::new(self.device.clone())) }
    }

    pub(crate) fn fill(&self, index: usize, object: &[u8]) {
        let mut rest = object;
        for piece in self.lists[index].pieces() {
            let (part, after) = rest.split_at(usize::try_from(piece.bytes).unwrap());
            self.device.plant(piece.address, part);
            rest = after;
        }
    }

    pub(crate) fn object(&self, index: usize) -> Vec<u8> {
        let pieces = self.lists[index].pieces().iter();
        pieces.flat_map(|piece| self.device.inspect(piece.address, usize::try_from(piece.bytes).unwrap())).collect()
    }

    /// Panics if a byte outside the pieces has changed.
    pub(crate) fn check_guards(&self) {
        let mut all = self.device.inspect(self.memory.address(), usize::try_from(self.memory.bytes()).unwrap());
        for piece in self.lists.iter().flat_map(ScatterList::pieces) {
            let start = usize::try_from(piece.address - self.memory.address()).unwrap();
            all[start..start + usize::try_from(piece.bytes).unwrap()].fill(0xa5);
        }
        assert!(all.iter().all(|byte| *byte == 0xa5), "bytes outside the pieces were written");
    }
}

pub(crate) fn names(prefix: &str, count: usize) -> KeyBatch {
    let names: Vec<String> = (0..count).map(|at| format!("{prefix}/{at}")).collect();
    KeyBatch::from_keys(&names).unwrap()
}
