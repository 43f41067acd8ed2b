//! One-sided reads and writes of a batch: grouped by link, split over threads, every object with its own result.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use memcache_memory::Trailer;
use memcache_transport::{Link, Protocol, ReadOp, SummedWriteOp, TransportError, WriteOp};
use memcache_types::limits::TRAILER_LEN;
use memcache_types::{Extent, ScatterList};
use parking_lot::Mutex;

use crate::buffer::Buffers;
use crate::jobs::Workers;
use crate::record::Record;
use crate::stats::{Stats, add};

/// Below this many bytes a second thread costs more than it saves.
const SPLIT_BYTES_MIN: u64 = 512 << 10;

/// One object to move: where it is in the pool, and which of the buffers it goes to or comes from.
pub(crate) struct Move {
    pub(crate) index: usize,
    /// What its result is told under: one buffer may go to several places.
    pub(crate) tag: usize,
    pub(crate) extent: Extent,
    /// What a write puts at the end of the extent, its checksum aside; what a read expects there.
    pub(crate) trailer: Trailer,
    /// What a write leaves in the segment's table.
    pub(crate) record: Option<Record>,
}

/// All objects of a batch that go over one link.
pub(crate) struct Group {
    pub(crate) link: Arc<dyn Link>,
    pub(crate) moves: Vec<Move>,
}

/// Result of one move, by its tag, and how it went there.
pub(crate) type Moved<T> = (usize, Protocol, Result<T, TransportError>);

/// What a read found: the trailer behind the payload, and the payload's CRC-32C if sums were asked for.
pub(crate) type Found = ([u8; TRAILER_LEN], Option<u32>);

/// With the buffer it was about.
type Results<T> = Arc<Mutex<Vec<(usize, Moved<T>)>>>;

/// Moves the objects of one call. With `summed`, checksums are made in the copy pass where the link copies itself.
pub(crate) struct Transfer<'a> {
    pub(crate) workers: &'a Workers,
    pub(crate) stats: &'a Stats,
    pub(crate) buffers: &'a Buffers,
    pub(crate) summed: bool,
    pub(crate) deadline: Instant,
}

impl Transfer<'_> {
    /// Reads every object into its buffer.
    pub(crate) fn read(&self, groups: Vec<Group>) -> Vec<Moved<Found>> {
        let (summed, deadline) = (self.summed, self.deadline);
        run(self, groups, move |link, moves, buffers| {
            let ops: Vec<ReadOp<'_>> = moves
                .iter()
                .map(|one| ReadOp {
                    extent: one.extent,
                    payload_bytes: one.trailer.payload_bytes,
                    local: buffers.list(one.index),
                })
                .collect();
            if summed {
                // SAFETY: `Buffers` was made under the promise that its pieces may be written until the transfer ends,
                // and the task holds its owner until then.
                let found = unsafe { link.read_summed(&ops, deadline) };
                found.into_iter().map(|one| one.map(|(trailer, sum)| (trailer, Some(sum)))).collect()
            } else {
                // SAFETY: as above.
                let found = unsafe { link.read(&ops, deadline) };
                found.into_iter().map(|one| one.map(|trailer| (trailer, None))).collect()
            }
        })
    }

    /// Writes every object from its buffer, trailer last, and its record.
    pub(crate) fn write(&self, groups: Vec<Group>) -> Vec<Moved<()>> {
        let (summed, deadline) = (self.summed, self.deadline);
        run(self, groups, move |link, moves, buffers| {
            if summed {
                let parts = parts(moves, buffers);
                let ops = parts.map(|(extent, local, trailer)| SummedWriteOp { extent, local, trailer });
                let ops: Vec<SummedWriteOp<'_>> = ops.collect();
                // SAFETY: `Buffers` was made under the promise that its pieces may be read until the transfer ends, and
                // the task holds its owner until then; records own theirs.
                return with_records(moves, unsafe { link.write_summed(&ops, deadline) });
            }
            let trailers: Vec<[u8; TRAILER_LEN]> =
                parts(moves, buffers).map(|(_, _, trailer)| trailer.encode()).collect();
            let ops: Vec<WriteOp<'_>> = parts(moves, buffers)
                .zip(&trailers)
                .map(|((extent, local, said), trailer)| WriteOp {
                    extent,
                    payload_bytes: said.payload_bytes,
                    local,
                    trailer,
                })
                .collect();
            // SAFETY: as above.
            with_records(moves, unsafe { link.write(&ops, deadline) })
        })
    }
}

/// What is to be written: for each object its record, if it gets one, and itself.
fn parts<'a>(moves: &'a [Move], buffers: &'a Buffers) -> impl Iterator<Item = (Extent, &'a ScatterList, &'a Trailer)> {
    moves.iter().flat_map(|one| {
        let record = one.record.as_ref().map(|record| (record.extent, &record.local, &record.trailer));
        record.into_iter().chain([(one.extent, buffers.list(one.index), &one.trailer)])
    })
}

/// One result for each object: the trouble of its record is its own.
fn with_records(moves: &[Move], results: Vec<Result<(), TransportError>>) -> Vec<Result<(), TransportError>> {
    let mut results = results.into_iter();
    let mut next = || results.next().unwrap_or(Err(TransportError::PeerGone));
    moves
        .iter()
        .map(|one| {
            let record = one.record.as_ref().map_or(Ok(()), |_| next());
            next().and(record)
        })
        .collect()
}

fn run<T: Send + 'static>(
    transfer: &Transfer<'_>,
    groups: Vec<Group>,
    execute: impl Fn(&dyn Link, &[Move], &Buffers) -> Vec<Result<T, TransportError>> + Send + Sync + 'static,
) -> Vec<Moved<T>> {
    let Transfer { workers, stats, buffers, .. } = transfer;
    let execute = Arc::new(execute);
    let results: Results<T> = Arc::default();
    let mut tasks: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for group in groups {
        for (link, moves) in split(group, workers.threads()) {
            let (execute, results, buffers) = (Arc::clone(&execute), Arc::clone(&results), (*buffers).clone());
            tasks.push(Box::new(move || {
                let outcomes = execute(&*link, &moves, &buffers);
                let protocol = link.protocol();
                results
                    .lock()
                    .extend(moves.iter().zip(outcomes).map(|(one, outcome)| (one.index, (one.tag, protocol, outcome))));
            }));
        }
    }
    workers.run_all(tasks);
    let results = std::mem::take(&mut *results.lock());
    for (index, (_, protocol, _)) in results.iter().filter(|(_, (_, _, outcome))| outcome.is_ok()) {
        add(moved_bytes(stats, *protocol), buffers.list(*index).bytes());
    }
    results.into_iter().map(|(_, moved)| moved).collect()
}

fn moved_bytes(stats: &Stats, protocol: Protocol) -> &AtomicU64 {
    match protocol {
        Protocol::Local => &stats.local_bytes,
        Protocol::HostShm => &stats.host_shm_bytes,
        Protocol::HostRdma => &stats.host_rdma_bytes,
        Protocol::HostTcp => &stats.host_tcp_bytes,
    }
}

/// Cuts a group into shares of about equal bytes where the calling thread does the copying. A TCP link keeps all
/// its connections busy from one thread and is left whole.
fn split(group: Group, threads: usize) -> Vec<(Arc<dyn Link>, Vec<Move>)> {
    let total: u64 = group.moves.iter().map(|one| one.trailer.payload_bytes).sum();
    if !group.link.capabilities().copies_on_caller || threads < 2 || total < SPLIT_BYTES_MIN || group.moves.len() < 2 {
        return vec![(group.link, group.moves)];
    }
    let share = total.div_ceil(threads as u64);
    let mut shares: Vec<(Arc<dyn Link>, Vec<Move>)> = Vec::with_capacity(threads);
    let mut filled = share;
    for one in group.moves {
        if filled >= share && shares.len() < threads {
            shares.push((Arc::clone(&group.link), Vec::new()));
            filled = 0;
        }
        filled += one.trailer.payload_bytes;
        if let Some((_, moves)) = shares.last_mut() {
            moves.push(one);
        }
    }
    shares
}
