//! Copies of objects into this node's own memory: what others have lost, and what nodes that are being emptied hold.
//!
//! The book hands copies out to nodes that ask; each is a reservation as any other. Payload comes one-sided from a
//! replica straight into its place, is checked as a get checks it, and only then gets a trailer and is sealed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::holdings::RecordHead;
use memcache_memory::{Segment, Trailer};
use memcache_proto::pb::{self, CopyTask, reply, request};
use memcache_transport::{Fabric, FabricOptions, Road};
use memcache_types::{Extent, Generation, GlobalAddress, ScatterList, SegmentId, extent_bytes};

use crate::book::BookError;
use crate::buffer::Buffers;
use crate::directory::Directory;
use crate::errands::Errands;
use crate::get::Place;
use crate::jobs::Workers;
use crate::local_service::LocalOptions;
use crate::member::Member;
use crate::stats::Stats;
use crate::transfer::{Crew, Groups, Move, Moved, Transfer};
use crate::verdict::{Damage, Verdict, judge};
use crate::ways::Reads;

/// Longest wait for an answer of the book.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Most copies asked for at a time.
const TASKS_MAX: u32 = 256;

/// Most bytes asked for at a time, but for one object that is longer.
const BYTES_MAX: u64 = 64 << 20;

/// Rounds a second that the budget is spent in.
const ROUNDS_PER_S: u64 = 8;

/// Pause after a round in which no copy worked out.
const FAILURE_PAUSE: Duration = Duration::from_millis(500);

/// Makes copies for one node.
pub(crate) struct Copier {
    member: Arc<Member>,
    segment: Arc<Segment>,
    fabric: Fabric,
    directory: Directory,
    crew: Crew,
    stats: Arc<Stats>,
    bytes_per_s: u64,
}

/// What one round came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Round {
    tasks: usize,
    sealed: usize,
    bytes: u64,
}

/// One copy that is to be made.
struct Copy {
    task: pb::CopyTask,
    target: Extent,
    /// Where it may come from, the best last.
    sources: Vec<Place>,
    done: bool,
}

impl Copier {
    pub(crate) fn new(
        member: Arc<Member>,
        segment: Arc<Segment>,
        rdma: Option<Arc<dyn Road>>,
        options: &LocalOptions,
    ) -> Self {
        let choice = FabricOptions { choice: options.protocol, ..FabricOptions::default() };
        Self {
            member,
            segment,
            fabric: Fabric::with_rdma(choice, rdma),
            directory: Directory::new(),
            // One thread, this one: copies for others must not take the cores from the engine.
            crew: Crew { workers: Workers::new("memcache-repair-copy", 1, None), errands: Errands::new() },
            stats: Arc::default(),
            bytes_per_s: options.repair_bytes_per_s,
        }
    }

    /// Works until the node stops.
    pub(crate) fn run(&self) {
        while self.wait_for_work() {
            let started = Instant::now();
            match self.round() {
                Ok(Round { tasks: 0, .. }) => self.member.state.lock().work = false,
                Ok(round) => {
                    tracing::debug!(?round, "made copies");
                    let worth = Duration::from_micros(round.bytes.saturating_mul(1_000_000) / self.bytes_per_s);
                    let pause = worth.saturating_sub(started.elapsed());
                    self.sleep(if round.sealed == 0 { pause.max(FAILURE_PAUSE) } else { pause });
                }
                Err(error) => {
                    tracing::debug!(%error, "no copies to be had from the MetaService");
                    self.sleep(FAILURE_PAUSE);
                }
            }
        }
    }

    /// False: the node stops.
    fn wait_for_work(&self) -> bool {
        let mut state = self.member.state.lock();
        while !(state.stopping || state.work && state.joined.is_some()) {
            self.member.changed.wait(&mut state);
        }
        !state.stopping
    }

    fn sleep(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut state = self.member.state.lock();
        while !state.stopping && !self.member.changed.wait_until(&mut state, until).timed_out() {}
    }

    fn round(&self) -> Result<Round, BookError> {
        let work = pb::Work {
            node: self.member.node.get(),
            incarnation: self.member.incarnation.get(),
            tasks_max: TASKS_MAX,
            bytes_max: (self.bytes_per_s / ROUNDS_PER_S).clamp(1, BYTES_MAX),
        };
        let answer = self.member.book.call(request::Body::Work(work), Instant::now() + ANSWER_TIMEOUT)?;
        let reply::Body::Work(reply) = answer.body else {
            return Err(BookError::not_a("Work"));
        };
        let until = answer.sent + Duration::from_millis(u64::from(reply.lease_ms));
        let own = self.member.state.lock().segments.clone();
        let (mut copies, mut void) = (Vec::with_capacity(reply.tasks.len()), Vec::new());
        let tasks = reply.tasks.len();
        for task in reply.tasks {
            let reservation = task.reservation;
            match self.prepare(task, &own) {
                Some(copy) => copies.push(copy),
                None => void.push(reservation),
            }
        }
        self.copy(&mut copies, until);
        let in_time = Instant::now() < until;
        let (done, failed): (Vec<_>, Vec<_>) = copies.into_iter().partition(|copy| copy.done && in_time);
        let round =
            Round { tasks, sealed: self.seal(&done)?, bytes: done.iter().map(|copy| copy.task.payload_bytes).sum() };
        // Reads into this memory have ended, all of them: the space may go to anybody.
        void.extend(failed.iter().map(|copy| copy.task.reservation));
        self.tell(request::Body::Abort(pb::Abort { reservations: void }));
        self.tell(request::Body::Release(pb::Release { leases: vec![reply.lease] }));
        Ok(round)
    }

    fn tell(&self, body: request::Body) {
        self.member.book.submit(body, Instant::now() + ANSWER_TIMEOUT, drop);
    }

    /// How many copies became replicas.
    fn seal(&self, done: &[Copy]) -> Result<usize, BookError> {
        if done.is_empty() {
            return Ok(0);
        }
        let reservations = done.iter().map(|copy| copy.task.reservation).collect();
        let seal = request::Body::Seal(pb::Seal { reservations });
        let answer = self.member.book.call(seal, Instant::now() + ANSWER_TIMEOUT)?;
        let reply::Body::Seal(reply) = answer.body else {
            return Err(BookError::not_a("Seal"));
        };
        let sealed = |outcome: &u8| i32::from(*outcome) == i32::from(pb::SealOutcome::Sealed);
        // What did not become a replica is of a key that was removed or put anew: no restart may bring it back.
        for (copy, _) in done.iter().zip(&reply.outcomes).filter(|(_, outcome)| !sealed(outcome)) {
            self.member.table().clear_at_if(copy.task.record, Generation::new(copy.task.generation));
        }
        Ok(reply.outcomes.iter().filter(|outcome| sealed(outcome)).count())
    }

    /// A task whose places exist: its target in this very memory. Nothing there is valid from now on.
    fn prepare(&self, task: pb::CopyTask, own: &[u64]) -> Option<Copy> {
        if own != [task.segment] {
            return None;
        }
        let bytes = extent_bytes(task.payload_bytes);
        let target = Extent::new(GlobalAddress::new(SegmentId::new(task.segment), task.offset), bytes).ok()?;
        let region = self.segment.region().sub(task.offset, bytes).ok()?;
        let places = task.source_segments.iter().zip(&task.source_offsets).zip(&task.source_generations);
        let mut sources: Vec<Place> = places
            .filter_map(|((segment, offset), generation)| {
                let address = GlobalAddress::new(SegmentId::new(*segment), *offset);
                let extent = Extent::new(address, bytes).ok()?;
                let generation = Generation::new(*generation);
                // Copies compare checksums always; objects without them are told when the memory has rested.
                Some(Place { extent, payload_bytes: task.payload_bytes, generation, rests: false })
            })
            .collect();
        sources.reverse();
        let table = self.member.table();
        for offset in &task.clears {
            table.clear_at(*offset);
        }
        region.retract_trailer();
        Some(Copy { task, target, sources, done: false })
    }

    /// Copies from one source after the other until one of them is good.
    fn copy(&self, copies: &mut [Copy], until: Instant) {
        while copies.iter().any(|copy| !copy.done && !copy.sources.is_empty()) && Instant::now() < until {
            let mut tried: HashMap<usize, Place> = HashMap::new();
            for (index, copy) in copies.iter_mut().enumerate().filter(|(_, copy)| !copy.done) {
                tried.extend(copy.sources.pop().map(|place| (index, place)));
            }
            let now = Instant::now();
            let last = copies.iter().all(|copy| copy.sources.is_empty());
            let attempt = if last { until } else { now + until.saturating_duration_since(now) / 2 };
            self.copy_once(copies, &tried, attempt);
        }
    }

    fn copy_once(&self, copies: &mut [Copy], tried: &HashMap<usize, Place>, until: Instant) {
        let base = self.segment.base().as_ptr() as u64;
        let lists = copies
            .iter()
            .map(|copy| ScatterList::single(base + copy.target.offset(), copy.task.payload_bytes))
            .collect();
        // SAFETY: the places lie in the segment, which the owner keeps mapped; the book gave each of them to this copy
        // alone, and nobody reads an extent whose trailer is retracted as anything but a miss.
        let targets = unsafe { Buffers::new(lists, Arc::clone(&self.segment) as _) };
        let segments = tried.values().map(|place| place.extent.segment());
        let links = self.directory.links(&self.member.book, &self.fabric, segments, until);
        let mut groups = Groups::default();
        for (index, place) in tried {
            match links.get(&place.extent.segment()) {
                Some(Ok(link)) => {
                    let trailer = place.trailer(&copies[*index].task.key);
                    let (index, extent) = (*index, place.extent);
                    groups.push(link, Move { index, tag: index, extent, trailer, summed: true, record: None });
                }
                other => tracing::debug!(source = %place.extent.segment(), ?other, "a copy cannot reach its source"),
            }
        }
        let transfer = Transfer::<Reads>::new(None, &self.stats, &targets, until, Arc::default());
        let mut damage = Damage::default();
        for Moved { tag: index, protocol, ended, outcome } in transfer.run(&self.crew, groups.into_vec()) {
            let (copy, place) = (&mut copies[index], &tried[&index]);
            match outcome {
                Ok(found) => {
                    let verdict = judge(&found, place, &copy.task.key);
                    copy.done = verdict == Verdict::Sound && self.publish(copy, &found.0);
                    if ended < until {
                        damage.note(verdict, place, &copy.task.key);
                    }
                }
                Err(error) => tracing::debug!(%error, %protocol, "a copy could not read"),
            }
        }
        damage.tell(&self.member.book);
    }

    /// Gives a copy its trailer: that of its source, but for the generation.
    fn publish(&self, copy: &Copy, source: &[u8; memcache_types::limits::TRAILER_LEN]) -> bool {
        let Some(source) = Trailer::decode(source) else { return false };
        let trailer = Trailer { generation: Generation::new(copy.task.generation), ..source };
        let place = self.segment.region().sub(copy.target.offset(), extent_bytes(copy.task.payload_bytes));
        place.is_ok_and(|region| {
            region.publish_trailer(&trailer.encode());
            if copy.task.record != 0 {
                let CopyTask { record, offset, payload_bytes, origin, wanted, .. } = copy.task;
                let head = RecordHead { offset, payload_bytes, origin: Generation::new(origin), wanted };
                self.member.table().write_at(record, &head, &copy.task.key, trailer.generation);
            }
            true
        })
    }
}
