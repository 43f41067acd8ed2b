//! How near `host_tcp` comes to what sockets give: a bare loop that only moves bytes, and our link, in one run.
//!
//! `cargo run --release -p memcache-transport --example tcp_ceiling [ROUNDS]`
//!
//! The bare loop sends 24 bytes that name a range and then reads or writes the same pieces with `readv` and
//! `writev`, one blocking thread a connection on either side: no frames, no checks, no deadlines, no results. Bare and
//! ours take turns, call by call. Every row is the median of its calls; "best" is the fastest bare variant of
//! the row's shape and direction, and the ratios are to it. CPU is that of both processes together.

#![allow(clippy::print_stdout, reason = "a benchmark talks")]
#![allow(clippy::cast_precision_loss, reason = "rates with two digits")]

use std::error::Error;
use std::fs;
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use memcache_memory::{Checksum, Segment, SegmentOptions, Trailer};
use memcache_transport::{
    Fabric, FabricOptions, Link, ProtocolChoice, ReadOp, RegionDescriptor, RegionServer, ServerOptions, SummedWriteOp,
    WriteOp,
};
use memcache_types::{Extent, Generation, GlobalAddress, KeyDigest, Piece, ScatterList, SegmentId, extent_bytes};

const OWNER: &str = "owner";
const POOL_BYTES: u64 = 640 << 20;
const GET: u64 = 0;
const PUT: u64 = 1;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    match std::env::args().nth(1).as_deref() {
        Some(OWNER) => own(),
        rounds => compare(rounds.map_or(Ok(9), str::parse)?),
    }
}

/// Lends memory, over both doors, until stdin ends.
fn own() -> Outcome<()> {
    let segment = Arc::new(Segment::create(POOL_BYTES, &SegmentOptions::default())?);
    let server = RegionServer::start(Arc::clone(&segment), &ServerOptions::default())?;
    let bare = TcpListener::bind("127.0.0.1:0")?;
    let bytes: Vec<String> = server.descriptor().encode().iter().map(u8::to_string).collect();
    println!("{} {}", bare.local_addr()?, bytes.join(" "));
    std::thread::spawn(move || {
        for stream in bare.incoming().map_while(Result::ok) {
            let segment = Arc::clone(&segment);
            std::thread::spawn(move || bare_serve(stream, &segment));
        }
    });
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn bare_serve(mut stream: TcpStream, segment: &Segment) -> io::Result<()> {
    tune(&stream);
    let mut request = [0u8; 24];
    while stream.read_exact(&mut request).is_ok() {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| request[at * 8 + index]));
        let Ok(range) = segment.region().sub(word(1), word(2)) else { return Ok(()) };
        // SAFETY: the range lies in the segment, and the benchmark moves one direction at a time.
        let bytes = unsafe { std::slice::from_raw_parts_mut(range.base().as_ptr(), range.len()) };
        if word(0) == GET {
            stream.write_all(bytes)?;
        } else {
            stream.read_exact(bytes)?;
            stream.write_all(&[1])?;
        }
    }
    Ok(())
}

/// What our link sets as well.
fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_tcp_congestion(stream.as_fd(), "reno");
}

/// A range of the pool and the local pieces that belong to it.
type Share = Vec<(u64, Vec<Piece>)>;

/// What a thread of a bare connection is told to do, and how it says whether that went well.
type Orders = (SyncSender<(u64, Share)>, Receiver<bool>);

/// Bare connections: the first is driven by the caller, the others by a thread each.
struct Bare {
    first: TcpStream,
    others: Vec<Orders>,
}

impl Bare {
    fn open(address: &str, connections: usize) -> io::Result<Self> {
        let connect = || TcpStream::connect(address).inspect(tune);
        let others = (1..connections).map(|_| {
            let mut stream = connect()?;
            let (give, take) = sync_channel::<(u64, Share)>(1);
            let (done, wait) = sync_channel(1);
            std::thread::spawn(move || {
                for (op, share) in take {
                    let _ = done.send(bare_move(&mut stream, op, &share).is_ok());
                }
            });
            Ok((give, wait))
        });
        Ok(Self { first: connect()?, others: others.collect::<io::Result<_>>()? })
    }

    fn call(&mut self, op: u64, objects: &Objects) -> Outcome<()> {
        let mut shares = self.deal(objects).into_iter();
        let own = shares.next().unwrap_or_default();
        for ((give, _), share) in self.others.iter().zip(shares) {
            give.send((op, share))?;
        }
        bare_move(&mut self.first, op, &own)?;
        for (_, wait) in &self.others {
            if !wait.recv()? {
                return Err("a bare connection broke".into());
            }
        }
        Ok(())
    }

    /// Whole objects in turn; fewer objects than connections are cut at their pieces.
    fn deal(&self, objects: &Objects) -> Vec<Share> {
        let lanes = self.others.len() + 1;
        let mut shares = vec![Vec::new(); lanes];
        let parts = lanes.div_ceil(objects.len()).min(2 * lanes);
        let mut next = 0;
        for (extent, list) in objects {
            let pieces = list.pieces();
            let mut offset = extent.offset();
            for part in pieces.chunks(pieces.len().div_ceil(parts)) {
                shares[next % lanes].push((offset, part.to_vec()));
                offset += part.iter().map(|piece| piece.bytes).sum::<u64>();
                next += 1;
            }
        }
        shares
    }
}

fn bare_move(stream: &mut TcpStream, op: u64, share: &Share) -> io::Result<()> {
    let header = |offset: u64, pieces: &[Piece]| -> Vec<u8> {
        let bytes: u64 = pieces.iter().map(|piece| piece.bytes).sum();
        [op, offset, bytes].iter().flat_map(|word| word.to_le_bytes()).collect()
    };
    if op == GET {
        let requests: Vec<u8> = share.iter().flat_map(|(offset, pieces)| header(*offset, pieces)).collect();
        stream.write_all(&requests)?;
    }
    for (offset, pieces) in share {
        // SAFETY: the pieces lie in the buffer of `compare`, one lane each, and nobody else uses them meanwhile.
        let mut slices: Vec<&mut [u8]> = pieces.iter().map(|piece| unsafe { slice(*piece) }).collect();
        if op == GET {
            let mut slices: Vec<IoSliceMut<'_>> = slices.iter_mut().map(|slice| IoSliceMut::new(slice)).collect();
            let mut rest = &mut slices[..];
            while !rest.is_empty() {
                let read = stream.read_vectored(rest)?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                IoSliceMut::advance_slices(&mut rest, read);
            }
        } else {
            let header = header(*offset, pieces);
            let mut slices: Vec<IoSlice<'_>> =
                std::iter::once(&header[..]).chain(slices.iter().map(|slice| &**slice)).map(IoSlice::new).collect();
            let mut rest = &mut slices[..];
            while !rest.is_empty() {
                let written = stream.write_vectored(rest)?;
                IoSlice::advance_slices(&mut rest, written);
            }
        }
    }
    if op == PUT {
        stream.read_exact(&mut vec![0; share.len()])?;
    }
    Ok(())
}

/// # Safety
/// The piece is memory of this process that nobody else uses meanwhile.
unsafe fn slice<'a>(piece: Piece) -> &'a mut [u8] {
    #[allow(clippy::cast_possible_truncation, reason = "addresses and lengths of this process fit in a usize")]
    let (address, bytes) = (piece.address as usize, piece.bytes as usize);
    // SAFETY: this function's contract.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(address), bytes) }
}

type Objects = [(Extent, ScatterList)];
type Act = Box<dyn FnMut(&Objects) -> Outcome<()>>;

/// One way to move a set of objects, with what its calls took.
struct Variant {
    name: String,
    is_bare: bool,
    act: Act,
    rates: Vec<f64>,
    cpu: Duration,
    bytes: u64,
}

fn compare(rounds: usize) -> Outcome<()> {
    let mut owner =
        Command::new(std::env::current_exe()?).arg(OWNER).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(owner.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
    let (bare, bytes) = line.trim().split_once(' ').ok_or("no descriptor")?;
    let bytes: Vec<u8> = bytes.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let descriptor = RegionDescriptor::decode(&bytes)?;
    let mut local = vec![1u8; usize::try_from(POOL_BYTES)?];
    println!(
        "{:<15} {:>7} {:<22} {:>6} {:>7} {:>6} {:>9}",
        "shape", "objects", "way", "GB/s", "spread", "ratio", "CPU s/GB"
    );
    let blocks = [128u64 << 10, 16 << 10].repeat(61);
    for (shape, pieces, counts) in [
        ("61x128K+61x16K", blocks, &[1usize, 8, 32][..]),
        ("64x32K", vec![32 << 10; 64], &[1, 8]),
        ("64x4K", vec![4 << 10; 64], &[1, 8]),
        ("4096x256B", vec![256; 4096], &[1, 8]),
        ("1x4K", vec![4 << 10], &[1, 32]),
    ] {
        for count in counts {
            let sets = sets(&mut local, &pieces, *count);
            for put in [false, true] {
                let mut variants = variants(bare, &descriptor, put)?;
                measure(&mut variants, &sets, rounds, owner.id())?;
                print(shape, *count, &mut variants);
            }
        }
    }
    drop(owner.stdin.take());
    owner.wait()?;
    Ok(())
}

fn variants(bare: &str, descriptor: &RegionDescriptor, put: bool) -> Outcome<Vec<Variant>> {
    let verb = if put { "put" } else { "get" };
    let mut all = Vec::new();
    let mut add = |name: String, is_bare, act| {
        all.push(Variant { name, is_bare, act, rates: Vec::new(), cpu: Duration::ZERO, bytes: 0 });
    };
    for connections in [1, 2, 4] {
        let mut bare = Bare::open(bare, connections)?;
        let op = if put { PUT } else { GET };
        add(format!("bare {verb} x{connections}"), true, Box::new(move |set: &Objects| bare.call(op, set)) as Act);
    }
    for connections_per_peer in [1, 2, 4] {
        let choice = ProtocolChoice::HostTcp;
        let link = Fabric::new(FabricOptions { choice, connections_per_peer }).link(descriptor, soon())?;
        let summed = Arc::clone(&link);
        let act: Act =
            if put { Box::new(move |set| ours_put(&*link, set)) } else { Box::new(move |set| ours_get(&*link, set)) };
        add(format!("{verb} x{connections_per_peer}"), false, act);
        let act: Act = if put {
            Box::new(move |set| ours_put_summed(&*summed, set))
        } else {
            Box::new(move |set| ours_get_summed(&*summed, set))
        };
        add(format!("{verb} x{connections_per_peer} checksum"), false, act);
    }
    Ok(all)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Objects of one shape, in several sets, so that a call never meets what the one before left in the caches.
fn sets(local: &mut [u8], pieces: &[u64], count: usize) -> Vec<Vec<(Extent, ScatterList)>> {
    let extent = extent_bytes(pieces.iter().sum());
    let sets = (POOL_BYTES / (extent + 64 * pieces.len() as u64) / count as u64).min(16);
    let (mut at, mut offset) = (local.as_mut_ptr().expose_provenance() as u64, 0);
    let mut object = || {
        let mut list = ScatterList::with_capacity(pieces.len());
        for bytes in pieces {
            list.push(at, *bytes);
            at += bytes + 64;
        }
        let place = Extent::new(GlobalAddress::new(SegmentId::new(1), offset), extent).ok()?;
        offset += extent;
        Some((place, list))
    };
    (0..sets).map(|_| (0..count).filter_map(|_| object()).collect()).collect()
}

fn measure(variants: &mut [Variant], sets: &[Vec<(Extent, ScatterList)>], rounds: usize, owner: u32) -> Outcome<()> {
    let bytes: u64 = sets[0].iter().map(|(_, list)| list.bytes()).sum();
    // Small calls are repeated, or one interruption would be the whole measurement.
    let calls = usize::try_from((8u64 << 20) / bytes)?.clamp(1, 200);
    let mut next = 0;
    for round in 0..=rounds {
        for variant in &mut *variants {
            let (cpu, started) = (cpu_of(std::process::id()) + cpu_of(owner), Instant::now());
            for _ in 0..calls {
                next += 1;
                (variant.act)(&sets[next % sets.len()])?;
            }
            if round > 0 {
                let moved = bytes * calls as u64;
                variant.rates.push(moved as f64 / started.elapsed().as_secs_f64() / 1e9);
                variant.cpu += (cpu_of(std::process::id()) + cpu_of(owner)).saturating_sub(cpu);
                variant.bytes += moved;
            }
        }
    }
    Ok(())
}

/// Processor time of all threads of a process.
fn cpu_of(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let times = tasks.filter_map(|task| {
        fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(times.sum())
}

fn print(shape: &str, count: usize, variants: &mut [Variant]) {
    for variant in &mut *variants {
        variant.rates.sort_by(f64::total_cmp);
    }
    let median = |variant: &Variant| variant.rates[variant.rates.len() / 2];
    let best = variants.iter().filter(|one| one.is_bare).map(median).fold(0.0, f64::max);
    for one in variants.iter() {
        let (low, high) = (one.rates[one.rates.len() / 4], one.rates[one.rates.len() * 3 / 4]);
        println!(
            "{shape:<15} {count:>7} {:<22} {:>6.2} {low:>3.1}-{high:<3.1} {:>6.2} {:>9.2}",
            one.name,
            median(one),
            median(one) / best,
            one.cpu.as_secs_f64() / (one.bytes as f64 / 1e9),
        );
    }
}

fn ours_get(link: &dyn Link, set: &Objects) -> Outcome<()> {
    // SAFETY: the pieces lie in the buffer of `compare`, which nobody else uses.
    unsafe { link.read(&reads(set), soon()) }.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(())
}

fn ours_get_summed(link: &dyn Link, set: &Objects) -> Outcome<()> {
    // SAFETY: as above.
    unsafe { link.read_summed(&reads(set), soon()) }.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(())
}

fn reads(set: &Objects) -> Vec<ReadOp<'_>> {
    set.iter().map(|(extent, local)| ReadOp { extent: *extent, payload_bytes: local.bytes(), local }).collect()
}

fn ours_put(link: &dyn Link, set: &Objects) -> Outcome<()> {
    let ops: Vec<WriteOp<'_>> = set
        .iter()
        .map(|(extent, local)| WriteOp { extent: *extent, payload_bytes: local.bytes(), local, trailer: &[7; 64] })
        .collect();
    // SAFETY: the pieces lie in the buffer of `compare`, which nobody else uses.
    unsafe { link.write(&ops, soon()) }.into_iter().collect::<Result<(), _>>().map_err(Into::into)
}

fn ours_put_summed(link: &dyn Link, set: &Objects) -> Outcome<()> {
    let trailer = Trailer {
        digest: KeyDigest::of(b"key"),
        generation: Generation::new(1),
        payload_bytes: set.first().map_or(0, |(_, local)| local.bytes()),
        checksum: Checksum::None,
    };
    let ops: Vec<SummedWriteOp<'_>> =
        set.iter().map(|(extent, local)| SummedWriteOp { extent: *extent, local, trailer: &trailer }).collect();
    // SAFETY: the pieces lie in the buffer of `compare`, which nobody else uses.
    unsafe { link.write_summed(&ops, soon()) }.into_iter().collect::<Result<(), _>>().map_err(Into::into)
}
