//! Measures every possible path of a get over a grid of pieces and piece lengths, against the twin device in real time
//! and a real segment of shared memory, and says how often the planner took the fastest. Twice: as twins are, and with an
//! owner whose device and link are fast, so that relaying pays.
//!
//! `cargo run --release -p memcache-client --example path_grid [-- ROUNDS]`

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program to look at")]
#![allow(clippy::cast_precision_loss, reason = "times and shares for people")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_client::path::StagingOptions;
use memcache_client::path::costs::CostSource;
use memcache_client::{Buffers, Checksums, LocalOptions, PutOptions, RelayOptions, Store, StoreOptions};
use memcache_config::{Endpoint, MetaConfig};
use memcache_device::{Allocation, Device, Direction, Space, TwinDevice, TwinOptions};
use memcache_meta::MetaServer;
use memcache_transport::ProtocolChoice;
use memcache_transport::plan::{Path, PathChoice, Way};
use memcache_types::{GetStatus, KeyBatch, Piece, PutStatus, ScatterList};

const PIECES: [u64; 9] = [1, 2, 4, 16, 64, 122, 256, 1024, 4096];
const LENGTHS: [u64; 7] = [256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];
/// Longer objects are left out: they would say the same at the speed of bandwidth.
const OBJECT_MAX: u64 = 32 << 20;
const PATHS: [Path; 4] = Path::ALL;
/// How much slower than the fastest a choice may be and still count as good.
const MARGIN: f64 = 1.1;
/// Bytes a second of what is fast.
const FAST: u64 = 4_000_000_000;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

struct Bench {
    device: TwinDevice,
    memory: Allocation,
    auto: Store,
    forced: Vec<(Path, Store)>,
}

fn main() {
    let rounds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(9);
    let usual = TwinOptions { arena_bytes: 256 << 20, ..TwinOptions::default() };
    println!("get over host_shm, checksums off; best of {rounds} rounds, microseconds of moving\n");
    grid("twins as they are", usual, 2_000_000_000, rounds);
    let mut fast = usual;
    fast.costs[Direction::LinkToDevice as usize].bytes_per_s = FAST;
    fast.costs[Direction::LinkToDevice as usize].copy_ns = 300;
    // The way from the host is what a fast link between devices goes round.
    fast.costs[Direction::PeerToDevice as usize].bytes_per_s = 1_000_000_000;
    fast.costs[Direction::HostToDevice as usize].bytes_per_s = 1_000_000_000;
    grid("\na fast owner's device and a fast link, slow copies from hosts", fast, FAST, rounds);
}

/// One grid: the options of the reader's twin, and how fast the owner's reads the region.
fn grid(title: &str, options: TwinOptions, far_bytes_per_s: u64, rounds: usize) {
    let listen = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
    let meta = MetaServer::start(&MetaConfig { listen, ..MetaConfig::default() }).unwrap();
    let mut far = TwinOptions { ordinal: 1, ..TwinOptions::default() };
    far.costs[Direction::PeerToDevice as usize].bytes_per_s = far_bytes_per_s;
    let _owner = Store::open(&owner(&meta, TwinDevice::new(far).unwrap())).unwrap();
    let device = TwinDevice::new(options).unwrap();
    let memory = device.allocate(Space::Device, OBJECT_MAX + 4096 * 128).unwrap();
    let store = |path| {
        let checksums = Checksums::Off;
        Store::open(&StoreOptions { path, checksums, ..reader(&meta) }).unwrap()
    };
    let forced = PATHS.map(|path| (path, store(PathChoice::Forced(path)))).into();
    let bench = Bench { device, memory, auto: store(PathChoice::Auto), forced };
    println!("{title}");
    for (direction, cost) in Direction::ALL.iter().zip(options.costs) {
        println!("  {:<26} {:?}", direction.name(), cost);
    }
    println!("  {:<26} {:?}", "owner's: peer to device", far.costs[Direction::PeerToDevice as usize]);
    println!(
        "{:>6} {:>8} {:>10} {:>10} {:>10} {:>10}  chosen     of the fastest",
        "pieces", "bytes", "0 host", "1 relay", "2 staged", "3 direct"
    );
    let mut tally = Tally::default();
    for pieces in PIECES {
        for bytes in LENGTHS.into_iter().filter(|bytes| pieces * bytes <= OBJECT_MAX) {
            let (times, predicted, chosen) = bench.cell(pieces, bytes, rounds);
            tally.add(pieces, bytes, &times, &predicted, chosen);
        }
    }
    tally.tell();
}

/// What the cells of a grid say.
#[derive(Default)]
struct Tally {
    cells: u32,
    good: u32,
    chosen: [u32; 4],
    fastest: [u32; 4],
    /// Pieces, bytes, and how many times longer path 3 takes than path 2.
    staged: Vec<(u64, u64, f64)>,
}

impl Tally {
    fn add(&mut self, pieces: u64, bytes: u64, times: &[f64], predicted: &[u64; 4], chosen: Path) {
        let fastest = times.iter().copied().fold(f64::MAX, f64::min);
        let share = times[chosen.number()] / fastest;
        let mark = if share <= MARGIN { String::new() } else { format!("  <- slower; predicted {predicted:?}") };
        println!(
            "{pieces:>6} {bytes:>8} {:>10.1} {:>10.1} {:>10.1} {:>10.1}  {chosen:<9} {share:>8.3}{mark}",
            times[0], times[1], times[2], times[3]
        );
        self.cells += 1;
        self.good += u32::from(share <= MARGIN);
        self.chosen[chosen.number()] += 1;
        if let Some(at) = times.iter().position(|time| *time <= fastest) {
            self.fastest[at] += 1;
        }
        if times[2] < times[3] {
            self.staged.push((pieces, bytes, times[3] / times[2]));
        }
    }

    fn tell(&self) {
        println!(
            "\nwithin {:.0} % of the fastest measured path: {} of {} cells ({:.1} %)",
            (MARGIN - 1.0) * 100.0,
            self.good,
            self.cells,
            f64::from(self.good) * 100.0 / f64::from(self.cells)
        );
        println!("cells by path 0 to 3: fastest {:?}, chosen {:?}", self.fastest, self.chosen);
        println!("\nwhere path 2 beats path 3 (times path 3 is slower), rows: pieces, columns: bytes of a piece");
        print!("{:>6}", "");
        for bytes in LENGTHS {
            print!("{bytes:>9}");
        }
        println!();
        for pieces in PIECES {
            print!("{pieces:>6}");
            for bytes in LENGTHS {
                match self.staged.iter().find(|cell| (cell.0, cell.1) == (pieces, bytes)) {
                    Some((.., factor)) => print!("{factor:>9.2}"),
                    None if pieces * bytes > OBJECT_MAX => print!("{:>9}", ""),
                    None => print!("{:>9}", "-"),
                }
            }
            println!();
        }
    }
}

impl Bench {
    /// Best times of the paths in microseconds, what was predicted, and the path the planner takes.
    fn cell(&self, pieces: u64, bytes: u64, rounds: usize) -> (Vec<f64>, [u64; 4], Path) {
        let stride = bytes + 64;
        let base = self.memory.address();
        let list: ScatterList = (0..pieces).map(|at| Piece { address: base + at * stride, bytes }).collect();
        // SAFETY: the allocation is held by its keep, and nobody else uses it.
        let buffers = unsafe {
            Buffers::on_device(vec![list], self.memory.keep(), Arc::new(self.device.clone()) as Arc<dyn Device>)
        };
        let keys = KeyBatch::from_keys([format!("{pieces}/{bytes}")]).unwrap();
        let put = self.auto.put(&keys, &buffers, &PutOptions::default(), soon()).unwrap();
        assert!(matches!(put[0], PutStatus::Stored | PutStatus::Present), "{put:?}");
        let mut times: Vec<Vec<u64>> = vec![Vec::new(); PATHS.len()];
        // One round to warm up; the paths take turns, so that what disturbs disturbs all of them.
        for round in 0..=rounds {
            for (at, (_, store)) in self.forced.iter().enumerate() {
                let took = moving(store, &keys, &buffers);
                if round > 0 {
                    times[at].push(took);
                }
            }
        }
        let moved = |stats: memcache_client::StatsSnapshot| {
            [stats.path0_bytes, stats.path1_bytes, stats.path2_bytes, stats.path3_bytes]
        };
        let plan = self.auto.explain_plan(Way::Get, &buffers).unwrap().remove(0);
        let predicted = plan.considered[0].times_ns.clone().map(|time| time.unwrap_or(0) / 1000);
        let before = moved(self.auto.stats());
        moving(&self.auto, &keys, &buffers);
        let after = moved(self.auto.stats());
        let chosen = Path::ALL.into_iter().find(|path| after[path.number()] > before[path.number()]).unwrap();
        // What disturbs makes a transfer longer, never shorter.
        let best = |all: Vec<u64>| all.into_iter().min().unwrap_or(u64::MAX) as f64 / 1000.0;
        let times = times.into_iter().map(best).collect();
        assert_eq!(self.auto.remove(&keys, soon()).unwrap(), [true]);
        (times, predicted, chosen)
    }
}

/// Nanoseconds a get spends moving.
fn moving(store: &Store, keys: &KeyBatch, buffers: &Buffers) -> u64 {
    let before = store.stats().get_move_ns;
    let got = store.get(keys, buffers, soon()).unwrap();
    assert_eq!(got, [GetStatus::Hit], "{:?}", store.stats());
    store.stats().get_move_ns - before
}

fn reader(meta: &MetaServer) -> StoreOptions {
    StoreOptions {
        protocol: ProtocolChoice::HostShm,
        costs: CostSource::Measured,
        staging: StagingOptions::default(),
        ..StoreOptions::new(meta.address().clone())
    }
}

fn owner(meta: &MetaServer, device: TwinDevice) -> StoreOptions {
    let lend = LocalOptions {
        name: "owner".to_owned(),
        prefault: true,
        records: 1024,
        repair_bytes_per_s: 0,
        relay: Some(RelayOptions { device: Arc::new(device), staging: StagingOptions::default() }),
        ..LocalOptions::new(256 << 20)
    };
    StoreOptions { lend: Some(lend), ..StoreOptions::new(meta.address().clone()) }
}
