//! One-sided reads and writes of a batch: cut into tasks that several threads share, every object with its own result.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use memcache_memory::{Part, Trailer, checksum_bytes, checksum_combine, parts_of};
use memcache_transport::{Link, Parts, Protocol, TransportError};
use memcache_types::{Extent, SegmentId};
use parking_lot::Mutex;
use thiserror::Error;

use crate::buffer::Buffers;
use crate::errands::{Errands, Whom};
use crate::jobs::{Kind, Workers};
use crate::pace::Pace;
use crate::path::Paths;
use crate::record::Record;
use crate::stats::{Stats, add};
use crate::tasks::{Task, TaskSet};
use crate::ways::Way;

/// Tasks a thread that copies gets on average, so that one that comes late or is interrupted leaves little behind.
const TASKS_PER_THREAD: u64 = 4;

/// Limits of a task's length in bytes. Shorter ones cost more than they even out. Longer ones make a cancelled
/// transfer wait: 4 MiB take about half a millisecond.
const TASK_BYTES_MIN: u64 = 256 << 10;
const TASK_BYTES_MAX: u64 = 4 << 20;

/// One object to move: where it is in the pool, and which of the buffers it goes to or comes from.
pub(crate) struct Move {
    pub(crate) index: usize,
    /// What its result is told under: one buffer may go to several places.
    pub(crate) tag: usize,
    pub(crate) extent: Extent,
    /// What a write puts at the end of the extent, its checksum aside; what a read expects there.
    pub(crate) trailer: Trailer,
    /// Whether to make a checksum on the way.
    pub(crate) summed: bool,
    /// What a write leaves in the segment's table.
    pub(crate) record: Option<Record>,
}

/// All objects of a batch that go over one link.
pub(crate) struct Group {
    pub(crate) link: Arc<dyn Link>,
    pub(crate) moves: Vec<Move>,
}

/// A batch by link.
#[derive(Default)]
pub(crate) struct Groups(HashMap<SegmentId, Group>);

impl Groups {
    /// Adds an object that goes over the link to its segment.
    pub(crate) fn push(&mut self, link: &Arc<dyn Link>, one: Move) {
        let new = || Group { link: Arc::clone(link), moves: Vec::new() };
        self.0.entry(one.extent.segment()).or_insert_with(new).moves.push(one);
    }

    pub(crate) fn into_vec(self) -> Vec<Group> {
        self.0.into_values().collect()
    }
}

/// Why an object was not moved.
#[derive(Debug, Error)]
pub(crate) enum MoveError {
    /// The transfer was cancelled before this object's turn, or in the middle of it.
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// Result of one move.
pub(crate) struct Moved<T> {
    /// The move's tag.
    pub(crate) tag: usize,
    /// How it went there.
    pub(crate) protocol: Protocol,
    /// When it was over: others of its call may take longer.
    pub(crate) ended: Instant,
    pub(crate) outcome: Result<T, MoveError>,
}

/// Threads that move bytes for all calls of a store.
#[derive(Debug)]
pub(crate) struct Crew {
    pub(crate) workers: Workers,
    pub(crate) errands: Errands,
}

/// The transfer of one call: what all its tasks share.
pub(crate) struct Transfer<W: Way> {
    pub(crate) stats: Arc<Stats>,
    pub(crate) buffers: Buffers,
    pub(crate) deadline: Instant,
    /// Set to have no further task begin.
    pub(crate) stop: Arc<AtomicBool>,
    /// Who moves what the links cannot scatter to by themselves; `None`: there is no such memory.
    paths: Option<Arc<Paths>>,
    results: Mutex<Vec<Moved<W::Found>>>,
}

/// What a transfer is made of.
pub(crate) struct Tasks {
    /// Copying, for every thread there is.
    shared: Vec<Task>,
    /// Calls that wait for a peer.
    waiting: Vec<(Whom, Task)>,
}

impl Crew {
    /// Runs tasks on this thread and as many others as help, and returns when all have ended.
    pub(crate) fn run(&self, tasks: Tasks, kind: Kind) {
        let Tasks { mut shared, mut waiting } = tasks;
        match (shared.len(), waiting.len()) {
            (1, 0) => return shared.remove(0)(),
            (0, 1) => return waiting.remove(0).1(),
            _ => {}
        }
        let set = self.start(Tasks { shared, waiting }, kind, 1, Box::new(|| {}));
        set.work();
        // Calls that no thread has begun are made here: this one never waits for a thread to be free.
        set.work_all();
        set.wait_until(None);
    }

    /// Has others run the tasks; `then` runs once, after the last one. `present`: threads that will work on the set
    /// without being asked.
    pub(crate) fn start(&self, tasks: Tasks, kind: Kind, present: usize, then: Task) -> Arc<TaskSet> {
        let (whom, own): (Vec<Whom>, Vec<Task>) = tasks.waiting.into_iter().unzip();
        let set = Arc::new(TaskSet::new(tasks.shared, own, then));
        let shared = set.shared();
        for (whom, at) in whom.into_iter().zip(shared..) {
            let own = Arc::clone(&set);
            // Where no thread can be had the call stays in the set: for a caller that waits, or to count as not made.
            drop(self.errands.submit(whom, Box::new(move || own.run(at))));
        }
        let wanted = shared.min(self.workers.threads()).saturating_sub(present);
        self.workers.help(&set, wanted, kind);
        set
    }
}

impl<W: Way> Transfer<W> {
    pub(crate) fn new(
        paths: Option<&Arc<Paths>>,
        stats: &Arc<Stats>,
        buffers: &Buffers,
        deadline: Instant,
        stop: Arc<AtomicBool>,
    ) -> Arc<Self> {
        let paths = paths.filter(|paths| paths.takes(buffers)).cloned();
        let (stats, buffers) = (Arc::clone(stats), buffers.clone());
        Arc::new(Self { stats, buffers, deadline, stop, paths, results: Mutex::default() })
    }

    /// Moves all objects and returns what became of each.
    pub(crate) fn run(self: &Arc<Self>, crew: &Crew, groups: Vec<Group>) -> Vec<Moved<W::Found>> {
        crew.run(self.tasks(groups, &crew.workers), W::KIND);
        self.take_results()
    }

    /// What has become of the objects so far.
    pub(crate) fn take_results(&self) -> Vec<Moved<W::Found>> {
        std::mem::take(&mut *self.results.lock())
    }

    /// The tasks that move these objects with these threads. Links on which the caller copies get tasks of about
    /// equal bytes, large objects cut into several; the others keep all their connections busy from one call.
    pub(crate) fn tasks(self: &Arc<Self>, groups: Vec<Group>, workers: &Workers) -> Tasks {
        let (threads, pace) = (workers.threads(), workers.pace());
        let copied = groups.iter().filter(|group| group.link.capabilities().copies_on_caller);
        let total = copied.flat_map(|group| &group.moves).map(|one| one.trailer.payload_bytes).sum();
        let length = if pace.splits(total) { task_bytes(total, threads) } else { u64::MAX };
        let mut tasks = Tasks { shared: Vec::new(), waiting: Vec::new() };
        for Group { link, moves } in groups {
            if self.paths.is_some() && link.capabilities().copies_on_caller {
                tasks.shared.push(self.share(&link, moves, None));
                continue;
            }
            if !link.capabilities().copies_on_caller {
                let address = Arc::as_ptr(&link).cast::<()>().addr();
                tasks.waiting.push((W::whom(address), self.share(&link, moves, None)));
                continue;
            }
            let (mut share, mut filled) = (Vec::new(), 0);
            for one in moves {
                let bytes = one.trailer.payload_bytes;
                if threads > 1 && bytes / 2 >= length && link.parts().is_some() {
                    self.cut(&link, one, bytes.div_ceil(length), pace, &mut tasks.shared);
                    continue;
                }
                share.push(one);
                filled += bytes;
                if filled >= length {
                    tasks.shared.push(self.share(&link, std::mem::take(&mut share), Some(pace)));
                    filled = 0;
                }
            }
            if !share.is_empty() {
                tasks.shared.push(self.share(&link, share, Some(pace)));
            }
        }
        tasks
    }

    /// One task that moves whole objects; one that copies them by itself says how fast.
    fn share(self: &Arc<Self>, link: &Arc<dyn Link>, moves: Vec<Move>, pace: Option<&Arc<Pace>>) -> Task {
        let (transfer, link, pace) = (Arc::clone(self), Arc::clone(link), pace.cloned());
        Box::new(move || {
            let (summed, plain): (Vec<Move>, Vec<Move>) = moves.into_iter().partition(|one| one.summed);
            for moves in [summed, plain].into_iter().filter(|moves| !moves.is_empty()) {
                let started = Instant::now();
                let outcomes = if transfer.is_stopped() {
                    moves.iter().map(|_| Err(MoveError::Cancelled)).collect()
                } else {
                    match &transfer.paths {
                        None => W::whole(&*link, &moves, &transfer.buffers, transfer.deadline),
                        Some(paths) => W::planned(paths, &transfer, &link, &moves),
                    }
                };
                let ended = Instant::now();
                if let Some(pace) = pace.as_ref().filter(|_| !transfer.is_stopped()) {
                    pace.note(moves.iter().map(|one| one.trailer.payload_bytes).sum(), ended - started);
                }
                for (one, outcome) in moves.iter().zip(outcomes) {
                    transfer.tell(one, link.protocol(), ended, outcome);
                }
            }
        })
    }

    /// Tasks that move one object, a part each; the last to end looks at, or writes, the trailer.
    fn cut(self: &Arc<Self>, link: &Arc<dyn Link>, one: Move, count: u64, pace: &Arc<Pace>, tasks: &mut Vec<Task>) {
        let list = self.buffers.list(one.index);
        let parts = parts_of(list, usize::try_from(count).unwrap_or(usize::MAX));
        let begun = link.parts().map(|moving| W::begin(moving, &one, list, self.deadline));
        if let Some(Err(error)) = begun {
            return self.tell(&one, link.protocol(), Instant::now(), Err(error.into()));
        }
        let cut = Arc::new(Cut {
            transfer: Arc::clone(self),
            link: Arc::clone(link),
            pace: Arc::clone(pace),
            sums: parts.iter().map(|_| AtomicU32::new(0)).collect(),
            open: AtomicUsize::new(parts.len()),
            failed: Mutex::new(None),
            parts,
            one,
        });
        tasks.extend((0..cut.parts.len()).map(|at| {
            let cut = Arc::clone(&cut);
            Box::new(move || cut.run(at)) as Task
        }));
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn tell(&self, one: &Move, protocol: Protocol, ended: Instant, outcome: Result<W::Found, MoveError>) {
        if outcome.is_ok() {
            add(moved_bytes(&self.stats, protocol), self.buffers.list(one.index).bytes());
        }
        self.results.lock().push(Moved { tag: one.tag, protocol, ended, outcome });
    }
}

/// An object that is moved in parts.
struct Cut<W: Way> {
    transfer: Arc<Transfer<W>>,
    link: Arc<dyn Link>,
    pace: Arc<Pace>,
    one: Move,
    parts: Vec<Part>,
    /// CRC-32C of each part, where one was wanted.
    sums: Vec<AtomicU32>,
    open: AtomicUsize,
    failed: Mutex<Option<MoveError>>,
}

impl<W: Way> Cut<W> {
    fn run(&self, at: usize) {
        if let Some(moving) = self.link.parts() {
            if self.failed.lock().is_none()
                && let Err(error) = self.copy(moving, at)
            {
                self.failed.lock().get_or_insert(error);
            }
            // Whoever is last sees what the others have copied before they counted down.
            if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
                let outcome = self.end(moving);
                self.transfer.tell(&self.one, self.link.protocol(), Instant::now(), outcome);
            }
        }
    }

    fn copy(&self, moving: &dyn Parts, at: usize) -> Result<(), MoveError> {
        let transfer = &self.transfer;
        if transfer.is_stopped() {
            return Err(MoveError::Cancelled);
        }
        let list = transfer.buffers.list(self.one.index);
        let started = Instant::now();
        if let Some(sum) = W::part(moving, &self.one, list, self.parts[at], transfer.deadline)? {
            self.sums[at].store(sum, Ordering::Relaxed);
        }
        self.pace.note(self.parts[at].bytes(), started.elapsed());
        Ok(())
    }

    fn end(&self, moving: &dyn Parts) -> Result<W::Found, MoveError> {
        if let Some(error) = self.failed.lock().take() {
            return Err(error);
        }
        let sum = self.one.summed.then(|| {
            self.parts.iter().zip(&self.sums).fold(checksum_bytes(b""), |whole, (part, sum)| {
                checksum_combine(whole, sum.load(Ordering::Relaxed), part.bytes())
            })
        });
        Ok(W::end(&*self.link, moving, &self.one, sum, self.transfer.deadline)?)
    }
}

/// How long tasks should be, given what one call copies with several threads.
fn task_bytes(total: u64, threads: usize) -> u64 {
    (total / (threads as u64 * TASKS_PER_THREAD)).clamp(TASK_BYTES_MIN, TASK_BYTES_MAX)
}

fn moved_bytes(stats: &Stats, protocol: Protocol) -> &AtomicU64 {
    match protocol {
        Protocol::Local => &stats.local_bytes,
        Protocol::HostShm => &stats.host_shm_bytes,
        Protocol::HostRdma => &stats.host_rdma_bytes,
        Protocol::HostTcp => &stats.host_tcp_bytes,
    }
}
