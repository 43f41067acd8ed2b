//! A few milliseconds of copies that say what each leg costs. Nothing is written to the pool.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_device::{Copy, DeviceError, Direction, Keep, Queue, Space};
use memcache_memory::checksum_bytes;
use memcache_transport::plan::{CostModel, Leg, LegCost};
use memcache_transport::{Link, ReadOp, RelayClient, RelayReply, RelayRequest, RelayRun, RelayStep, TransportError};
use memcache_types::limits::TRAILER_BYTES;
use memcache_types::{Extent, GlobalAddress, Piece, ScatterList, SegmentId};

use super::relay::Relayed;
use super::state::DeviceState;

/// Longest copy of a measurement, in bytes.
const LONG: u64 = 1 << 20;
/// Copies of two batches that tell what one more costs. Both are long enough that an engine that has to be woken is awake
/// before they end: what a wake-up hides of a single short copy would be missing from the difference to that.
const MANY: [u64; 2] = [64, 256];
/// The shorter of two copies that tell what a byte costs, as a part of the longer one.
const SHORTER: u64 = 4;
/// The best of so many is taken: whatever disturbs makes it longer, never shorter.
const ROUNDS: usize = 15;
/// No further round begins after this.
const ROUNDS_TIME: Duration = Duration::from_millis(2);
/// Past this a leg is left at its default.
const PATIENCE: Duration = Duration::from_millis(50);

/// What the legs between a link and a device cost. Legs that cannot be measured keep their defaults; writing to a
/// region is taken to cost what reading from it does, until transfers say otherwise.
pub(super) fn measure(link: &Arc<dyn Link>, state: &DeviceState) -> CostModel {
    let started = Instant::now();
    let mut costs = CostModel::default();
    match network(link) {
        Ok(cost) => costs = costs.with(Leg::NetworkRead, cost).with(Leg::NetworkWrite, cost),
        Err(error) => tracing::debug!(%error, protocol = %link.protocol(), "cannot measure a link"),
    }
    let pairs = [
        (Direction::Local, Leg::DeviceLocal, None),
        (Direction::HostToDevice, Leg::HostToDevice, None),
        (Direction::DeviceToHost, Leg::DeviceToHost, None),
        (Direction::PeerToDevice, Leg::PeerToDevice, Some(Leg::DeviceToPeer)),
    ];
    for (direction, leg, also) in pairs {
        match engine(link, state, direction) {
            Ok(cost) => {
                costs = costs.with(leg, cost);
                costs = also.map_or(costs, |also| costs.with(also, cost));
            }
            Err(error) => tracing::debug!(%error, direction = direction.name(), "cannot measure a device"),
        }
    }
    if let (Ok(relayed), Some(client)) = (state.relay(link), link.relay()) {
        match relay(link, &relayed, client) {
            Ok(cost) => costs = costs.with(Leg::Relay, cost),
            Err(error) => tracing::debug!(%error, device = client.device(), "cannot measure a relay"),
        }
        match engine(link, state, Direction::LinkToDevice) {
            Ok(cost) => costs = costs.with(Leg::LinkToDevice, cost).with(Leg::DeviceToLink, cost),
            Err(error) => tracing::debug!(%error, device = client.device(), "cannot measure a link between devices"),
        }
    }
    costs = costs.with(Leg::Checksum, checksum());
    tracing::debug!(took = ?started.elapsed(), protocol = %link.protocol(), device = %state.device.id(), "measured costs");
    costs
}

/// What was timed of a leg.
struct Times {
    /// One short copy.
    one: Duration,
    /// Batches of short copies, and of how many: the shorter one first.
    many: [(u64, Duration); 2],
    /// Single copies, and of how many bytes: the shorter one first.
    long: [(u64, Duration); 2],
}

impl Times {
    /// Takes the times, given how to time so many short copies and how to time one copy of so many bytes.
    fn take<E>(
        many_max: u64,
        long: u64,
        mut many: impl FnMut(u64) -> Result<Duration, E>,
        mut single: impl FnMut(u64) -> Result<Duration, E>,
    ) -> Result<Self, E> {
        let one = many(1)?;
        let mut batch = |most: u64| {
            let count = most.min(many_max);
            Ok((count, many(count)?))
        };
        let batches = [batch(MANY[0])?, batch(MANY[1])?];
        let shorter = (long / SHORTER / 64 * 64).max(64);
        Ok(Self { one, many: batches, long: [(shorter, single(shorter)?), (long, single(long)?)] })
    }

    /// As costs.
    fn costs(&self) -> LegCost {
        let piece_ns = match self.many {
            [(1, _), _] => nanos(self.one),
            [few, many] if few.0 < many.0 => nanos(many.1.saturating_sub(few.1)) / (many.0 - few.0),
            [few, _] => nanos(few.1.saturating_sub(self.one)) / (few.0 - 1),
        };
        let (from, to) = match self.long {
            [shorter, long] if shorter.0 < long.0 => (shorter, long),
            [_, long] => ((0, self.one), long),
        };
        let copying = nanos(to.1.saturating_sub(from.1)).max(1);
        let bytes_per_s = u128::from(to.0 - from.0) * 1_000_000_000 / u128::from(copying);
        LegCost {
            batch_ns: nanos(self.one).saturating_sub(piece_ns),
            piece_ns,
            bytes_per_s: u64::try_from(bytes_per_s).unwrap_or(u64::MAX).max(1),
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The shortest of a few rounds.
fn best<E>(mut round: impl FnMut() -> Result<(), E>) -> Result<Duration, E> {
    let (mut least, begun) = (Duration::MAX, Instant::now());
    for done in 0..ROUNDS {
        if done > 2 && begun.elapsed() > ROUNDS_TIME {
            break;
        }
        let started = Instant::now();
        round()?;
        least = least.min(started.elapsed());
    }
    Ok(least)
}

fn network(link: &Arc<dyn Link>) -> Result<LegCost, TransportError> {
    let deadline = Instant::now() + PATIENCE;
    let long = LONG.min((link.capabilities().region_bytes - TRAILER_BYTES) / 64 * 64);
    let long = long.min(link.capabilities().payload_bytes_max);
    let mut memory = vec![0u8; usize::try_from(2 * LONG).unwrap_or(0)];
    let base = memory.as_mut_ptr().expose_provenance() as u64;
    let read = |pieces: ScatterList| {
        let payload_bytes = pieces.bytes();
        let invalid = |error: memcache_types::RangeError| TransportError::InvalidOp { why: error.to_string() };
        let bytes = payload_bytes.next_multiple_of(64) + TRAILER_BYTES;
        let extent = Extent::new(GlobalAddress::new(SegmentId::new(0), 0), bytes).map_err(invalid)?;
        let op = ReadOp { extent, payload_bytes, local: &pieces };
        best(|| {
            // SAFETY: the pieces lie in a vector of our own, side by side, and nobody else touches it.
            let result = unsafe { link.read(&[op], deadline) };
            result.into_iter().next().unwrap_or(Err(TransportError::PeerGone)).map(drop)
        })
    };
    let many = |count: u64| read((0..count).map(|at| Piece { address: base + at * 128, bytes: 64 }).collect());
    let times = Times::take(MANY[1], long, many, |bytes| read(ScatterList::single(base, bytes)))?;
    drop(memory);
    Ok(times.costs())
}

/// What an owner takes for runs of its region, its answer included. Nothing is copied from its staging.
fn relay(link: &Arc<dyn Link>, relayed: &Relayed, client: &Arc<RelayClient>) -> Result<LegCost, TransportError> {
    let deadline = Instant::now() + PATIENCE;
    let mut call = client.call(deadline)?;
    call.send(0, &RelayRequest::Lease, deadline)?;
    match call.receive(deadline)?.1 {
        RelayReply::Lease { .. } => {}
        other => return Err(TransportError::refused(format!("{other:?}"))),
    }
    let region = link.capabilities().region_bytes - TRAILER_BYTES;
    let long = LONG.min(region).min(relayed.offer.slot_bytes) / 64 * 64;
    let run = |at: u64, bytes: u64| RelayRun {
        offset: at * 128,
        extent_bytes: bytes + TRAILER_BYTES,
        start: 0,
        bytes,
        staging_offset: at * 64,
        trailer: None,
    };
    let call = RefCell::new(call);
    let time = |runs: Vec<RelayRun>| {
        let mut call = call.borrow_mut();
        let request = RelayRequest::Fetch(RelayStep { slot: 0, summed: false, runs });
        best(|| {
            call.send(0, &request, deadline)?;
            match call.receive(deadline)?.1 {
                RelayReply::Fetched(_) => Ok(()),
                other => Err(TransportError::refused(format!("{other:?}"))),
            }
        })
    };
    let many = |count: u64| time((0..count).map(|at| run(at, 64)).collect());
    let times = Times::take(MANY[1], long, many, |bytes| time(vec![run(0, bytes)]));
    call.into_inner().release(deadline);
    Ok(times?.costs())
}

fn engine(link: &Arc<dyn Link>, state: &DeviceState, direction: Direction) -> Result<LegCost, DeviceError> {
    let device = &state.device;
    let limits = device.capabilities();
    let far = match direction {
        Direction::PeerToDevice | Direction::DeviceToPeer => {
            let reach = state.reach(link)?;
            (reach.address(), reach.bytes(), reach.keep())
        }
        Direction::LinkToDevice | Direction::DeviceToLink => {
            let lacks = |_| DeviceError::Unsupported { device: device.id().to_string(), what: "this link" };
            let relayed = state.relay(link).map_err(lacks)?;
            (relayed.reach.address(), relayed.reach.bytes(), relayed.reach.keep())
        }
        Direction::Local => of(&device.allocate(Space::Device, LONG)?),
        _ => of(&device.allocate(Space::Pinned, LONG)?),
    };
    let near = of(&device.allocate(Space::Device, LONG)?);
    let keep: Keep = Arc::new((far.2, Arc::clone(&near.2)));
    let mut queue = device.open_queue()?;
    let flip = direction == Direction::DeviceToHost;
    let copy = |offset: u64, bytes: u64| {
        let (source, target) = if flip { (near.0, far.0) } else { (far.0, near.0) };
        Copy { source: source + offset, target: target + offset, bytes }
    };
    let short = limits.align.max(64);
    let long = LONG.min(far.1).min(limits.copy_bytes_max) / short * short;
    let count = (limits.batch_copies_max as u64).min(far.1.min(LONG) / (2 * short)).max(1);
    let queue = RefCell::new(&mut *queue);
    let time = |copies: &[Copy]| run(&mut **queue.borrow_mut(), direction, copies, &keep);
    let many = |count: u64| time(&(0..count).map(|at| copy(at * 2 * short, short)).collect::<Vec<_>>());
    Ok(Times::take(count, long, many, |bytes| time(&[copy(0, bytes.next_multiple_of(short))]))?.costs())
}

fn of(memory: &memcache_device::Allocation) -> (u64, u64, Keep) {
    (memory.address(), memory.bytes(), memory.keep())
}

fn run(queue: &mut dyn Queue, direction: Direction, copies: &[Copy], keep: &Keep) -> Result<Duration, DeviceError> {
    let deadline = Instant::now() + PATIENCE;
    let result = best(|| {
        // SAFETY: both ends are allocations of this measurement, or a region that is only read; the keep holds them.
        unsafe { queue.submit(direction, copies, Arc::clone(keep)) }?;
        queue.record()?.wait(deadline)
    });
    if result.is_err() {
        queue.cancel(Instant::now() + PATIENCE)?;
    }
    result
}

fn checksum() -> LegCost {
    let bytes = vec![1u8; 256 << 10];
    let mut sum = 0;
    let time = best(|| {
        sum ^= checksum_bytes(std::hint::black_box(&bytes));
        Ok::<_, std::convert::Infallible>(())
    });
    std::hint::black_box(sum);
    let nanos = time.map_or(1, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1));
    LegCost { batch_ns: 0, piece_ns: 0, bytes_per_s: (bytes.len() as u64).saturating_mul(1_000_000_000) / nanos }
}
