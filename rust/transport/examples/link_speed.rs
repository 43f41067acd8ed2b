//! How fast links between two processes of this machine are, by protocol, shape and objects a call.
//!
//! `cargo run --release -p memcache-transport --example link_speed`
//!
//! Prints GB/s (10^9 bytes): medians of seven calls over objects that are in no cache, by one calling thread, and
//! the least time of a single 4 KiB object. "memcpy" is a plain copy between the same places in the same run.

#![allow(clippy::print_stdout, reason = "a benchmark talks")]
#![allow(clippy::cast_precision_loss, reason = "rates with two digits")]

use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::{CopyMode, Segment, SegmentOptions, gather_with, scatter_with};
use memcache_transport::{
    Fabric, FabricOptions, Link, ProtocolChoice, ReadOp, RegionDescriptor, RegionServer, ServerOptions, WriteOp,
};
use memcache_types::{Extent, GlobalAddress, ScatterList, SegmentId, extent_bytes};

const OWNER: &str = "owner";
const POOL_BYTES: u64 = 640 << 20;
const ROUNDS: usize = 7;
const LATENCY_ROUNDS: usize = 2000;

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().nth(1).as_deref() == Some(OWNER) { own() } else { compare() }
}

/// Lends memory until stdin ends.
fn own() -> Result<(), Box<dyn Error>> {
    let segment = Arc::new(Segment::create(POOL_BYTES, &SegmentOptions::default())?);
    let server = RegionServer::start(segment, &ServerOptions::default())?;
    let bytes: Vec<String> = server.descriptor().encode().iter().map(u8::to_string).collect();
    println!("{}", bytes.join(" "));
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn compare() -> Result<(), Box<dyn Error>> {
    let mut owner =
        Command::new(std::env::current_exe()?).arg(OWNER).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(owner.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
    let bytes: Vec<u8> = line.trim().split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let descriptor = RegionDescriptor::decode(&bytes)?;
    let mut local = vec![1u8; usize::try_from(POOL_BYTES)?];
    let own = Segment::create(POOL_BYTES, &SegmentOptions::default())?;

    let mut links = Vec::new();
    for (road, choice, connections_per_peer) in [
        ("host_shm", ProtocolChoice::HostShm, 1),
        ("host_tcp", ProtocolChoice::HostTcp, 1),
        ("host_tcpx2", ProtocolChoice::HostTcp, 2),
    ] {
        let fabric = Fabric::new(FabricOptions { choice, connections_per_peer });
        links.push((road, fabric.link(&descriptor, soon())?));
    }
    // Until the page tables are filled in the background.
    std::thread::sleep(Duration::from_secs(1));

    println!("{:<16} {:>7} {:<10} {:>8} {:>8}", "shape", "objects", "road", "put", "get");
    let shapes: [(&str, Vec<u64>); 3] =
        [("61x128K+61x16K", [128 << 10, 16 << 10].repeat(61)), ("64x32K", vec![32 << 10; 64]), ("1x4K", vec![4 << 10])];
    for (name, pieces) in &shapes {
        for count in [1, 8, 32] {
            let objects = Objects::new(&mut local, pieces, count);
            println!(
                "{name:<16} {count:>7} {:<9} {:>8.1} {:>8.1}",
                "memcpy",
                objects.plain(&own, true),
                objects.plain(&own, false)
            );
            for (road, link) in &links {
                let (put, get) = (objects.put(&**link)?, objects.get(&**link)?);
                println!("{name:<16} {count:>7} {road:<10} {put:>8.1} {get:>8.1}");
            }
        }
    }
    for (road, link) in &links {
        let objects = Objects::new(&mut local, &[4096], 1);
        let (put, get) = objects.latency(&**link)?;
        println!("one 4 KiB object over {road}: put {put:.1} us, get {get:.1} us (medians)");
    }
    drop(owner.stdin.take());
    owner.wait()?;
    Ok(())
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Objects of one shape, in several sets, so that a call never meets what the one before left in the caches.
struct Objects {
    sets: Vec<Vec<(Extent, ScatterList)>>,
    bytes: u64,
}

impl Objects {
    fn new(local: &mut [u8], pieces: &[u64], count: usize) -> Self {
        let bytes: u64 = pieces.iter().sum();
        let extent = extent_bytes(bytes);
        let sets = (POOL_BYTES / (extent + 64 * pieces.len() as u64) / count as u64).min(ROUNDS as u64 * 4);
        let (mut at, mut offset) = (local.as_mut_ptr().expose_provenance() as u64, 0);
        let sets = (0..sets)
            .map(|_| {
                (0..count)
                    .filter_map(|_| {
                        let mut list = ScatterList::with_capacity(pieces.len());
                        for bytes in pieces {
                            list.push(at, *bytes);
                            at += bytes + 64;
                        }
                        let place = Extent::new(GlobalAddress::new(SegmentId::new(1), offset), extent).ok()?;
                        offset += extent;
                        Some((place, list))
                    })
                    .collect()
            })
            .collect();
        Self { sets, bytes: bytes * count as u64 }
    }

    /// GB/s of `act` over one set after the other.
    fn rate(
        &self,
        mut act: impl FnMut(&[(Extent, ScatterList)]) -> Result<(), Box<dyn Error>>,
    ) -> Result<f64, Box<dyn Error>> {
        let mut rates = Vec::new();
        for round in 0..ROUNDS.max(self.sets.len()) {
            let set = &self.sets[round % self.sets.len()];
            let started = Instant::now();
            act(set)?;
            rates.push(self.bytes as f64 / started.elapsed().as_secs_f64() / 1e9);
        }
        rates.sort_by(f64::total_cmp);
        Ok(rates[rates.len() / 2])
    }

    fn plain(&self, own: &Segment, is_put: bool) -> f64 {
        self.rate(|set| {
            for (extent, local) in set {
                let region = own.region().sub(extent.offset(), extent.bytes())?;
                // SAFETY: the pieces lie in the buffer of `compare`, which nobody else uses.
                unsafe {
                    if is_put {
                        gather_with(CopyMode::Plain, local, region);
                    } else {
                        scatter_with(CopyMode::Plain, region, local);
                    }
                }
            }
            Ok(())
        })
        .unwrap_or(0.0)
    }

    fn put(&self, link: &dyn Link) -> Result<f64, Box<dyn Error>> {
        self.rate(|set| {
            let ops: Vec<WriteOp<'_>> = set
                .iter()
                .map(|(extent, local)| WriteOp {
                    extent: *extent,
                    payload_bytes: local.bytes(),
                    local,
                    trailer: &[7; 64],
                })
                .collect();
            // SAFETY: the pieces lie in the buffer of `compare`, which nobody else uses.
            unsafe { link.write(&ops, soon()) }.into_iter().collect::<Result<(), _>>().map_err(Into::into)
        })
    }

    fn get(&self, link: &dyn Link) -> Result<f64, Box<dyn Error>> {
        self.rate(|set| {
            let ops: Vec<ReadOp<'_>> = set
                .iter()
                .map(|(extent, local)| ReadOp { extent: *extent, payload_bytes: local.bytes(), local })
                .collect();
            // SAFETY: the pieces lie in the buffer of `compare`, which nobody else uses.
            unsafe { link.read(&ops, soon()) }.into_iter().collect::<Result<Vec<_>, _>>()?;
            Ok(())
        })
    }

    /// Microseconds of a put and a get of the first set.
    fn latency(&self, link: &dyn Link) -> Result<(f64, f64), Box<dyn Error>> {
        let one = Self { sets: vec![self.sets[0].clone()], bytes: self.bytes };
        let median = |act: &dyn Fn() -> Result<f64, Box<dyn Error>>| -> Result<f64, Box<dyn Error>> {
            let mut times = (0..LATENCY_ROUNDS / ROUNDS).map(|_| act()).collect::<Result<Vec<_>, _>>()?;
            times.sort_by(f64::total_cmp);
            Ok(self.bytes as f64 / times[times.len() / 2] / 1e3)
        };
        Ok((median(&|| one.put(link))?, median(&|| one.get(link))?))
    }
}
