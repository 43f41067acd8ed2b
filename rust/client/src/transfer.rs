//! One-sided reads and writes of a batch: grouped by link, split over threads, every object with its own result.

use std::sync::Arc;
use std::time::Instant;

use memcache_transport::{Link, Protocol, ReadOp, TransportError, WriteOp};
use memcache_types::Extent;
use memcache_types::limits::TRAILER_LEN;
use parking_lot::Mutex;

use crate::buffer::Buffers;
use crate::jobs::Workers;
use crate::stats::{Stats, add};

/// Below this many bytes a second thread costs more than it saves.
const SPLIT_BYTES_MIN: u64 = 512 << 10;

/// One object to move: where it is in the pool, and which of the buffers it goes to or comes from.
pub(crate) struct Move {
    pub(crate) index: usize,
    pub(crate) extent: Extent,
    pub(crate) payload_bytes: u64,
    /// What a write puts at the end of the extent; ignored by a read.
    pub(crate) trailer: [u8; TRAILER_LEN],
}

/// All objects of a batch that go over one link.
pub(crate) struct Group {
    pub(crate) link: Arc<dyn Link>,
    pub(crate) moves: Vec<Move>,
}

/// Result of one object: the trailer found by a read, or nothing for a write, and how it went there.
pub(crate) type Moved<T> = (usize, Protocol, Result<T, TransportError>);

/// Reads every object into its buffer and returns the trailers found behind them.
pub(crate) fn read(
    workers: &Workers,
    stats: &Stats,
    groups: Vec<Group>,
    buffers: &Buffers,
    deadline: Instant,
) -> Vec<Moved<[u8; TRAILER_LEN]>> {
    run(workers, stats, groups, buffers, move |link, moves, buffers| {
        let ops: Vec<ReadOp<'_>> = moves
            .iter()
            .map(|one| ReadOp { extent: one.extent, payload_bytes: one.payload_bytes, local: buffers.list(one.index) })
            .collect();
        // SAFETY: `Buffers` was made under the promise that its pieces may be written until the transfer ends, and the
        // task holds its owner until then.
        unsafe { link.read(&ops, deadline) }
    })
}

/// Writes every object from its buffer, trailer last.
pub(crate) fn write(
    workers: &Workers,
    stats: &Stats,
    groups: Vec<Group>,
    buffers: &Buffers,
    deadline: Instant,
) -> Vec<Moved<()>> {
    run(workers, stats, groups, buffers, move |link, moves, buffers| {
        let ops: Vec<WriteOp<'_>> = moves
            .iter()
            .map(|one| WriteOp {
                extent: one.extent,
                payload_bytes: one.payload_bytes,
                local: buffers.list(one.index),
                trailer: &one.trailer,
            })
            .collect();
        // SAFETY: `Buffers` was made under the promise that its pieces may be read until the transfer ends, and the
        // task holds its owner until then.
        unsafe { link.write(&ops, deadline) }
    })
}

fn run<T: Send + 'static>(
    workers: &Workers,
    stats: &Stats,
    groups: Vec<Group>,
    buffers: &Buffers,
    execute: impl Fn(&dyn Link, &[Move], &Buffers) -> Vec<Result<T, TransportError>> + Send + Sync + 'static,
) -> Vec<Moved<T>> {
    let execute = Arc::new(execute);
    let results: Arc<Mutex<Vec<Moved<T>>>> = Arc::default();
    let mut tasks: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for group in groups {
        let counter = match group.link.protocol() {
            Protocol::Local => &stats.local_bytes,
            Protocol::HostShm => &stats.host_shm_bytes,
            Protocol::HostTcp => &stats.host_tcp_bytes,
        };
        add(counter, group.moves.iter().map(|one| one.payload_bytes).sum());
        for (link, moves) in split(group, workers.threads()) {
            let (execute, results, buffers) = (Arc::clone(&execute), Arc::clone(&results), buffers.clone());
            tasks.push(Box::new(move || {
                let outcomes = execute(&*link, &moves, &buffers);
                let protocol = link.protocol();
                results.lock().extend(moves.iter().zip(outcomes).map(|(one, outcome)| (one.index, protocol, outcome)));
            }));
        }
    }
    workers.run_all(tasks);
    std::mem::take(&mut *results.lock())
}

/// Cuts a group into shares of about equal bytes where the calling thread does the copying. A TCP link keeps all
/// its connections busy from one thread and is left whole.
fn split(group: Group, threads: usize) -> Vec<(Arc<dyn Link>, Vec<Move>)> {
    let total: u64 = group.moves.iter().map(|one| one.payload_bytes).sum();
    let copies_itself = matches!(group.link.protocol(), Protocol::Local | Protocol::HostShm);
    if !copies_itself || threads < 2 || total < SPLIT_BYTES_MIN || group.moves.len() < 2 {
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
        filled += one.payload_bytes;
        if let Some((_, moves)) = shares.last_mut() {
            moves.push(one);
        }
    }
    shares
}
