//! Carries out a plan: group by group, each over its path.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_device::DeviceError;
use memcache_transport::plan::{Path, PathChoice, PlanObject, PlannedGroup, Way};
use memcache_transport::{Link, RelayCall, TransportError};

use super::relay::{Relayed, Trouble};
use super::state::{DeviceState, Queues};
use super::{Job, Outcome, Paths, check, engine, host, object, relay};
use crate::buffer::Buffers;
use crate::stats::{Stats, add};
use crate::transfer::Move;
use crate::ways::Found;

/// Between two tries for the staging of an owner that relays, where no other path may be taken.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
/// Longest transfer over a relay, whatever its deadline: the owner's staging rests after a peer that vanished only as long
/// as requests may take there, 120 s.
const RELAY_MAX: Duration = Duration::from_secs(60);
/// How long it may take to say that an owner's staging is free again.
const RELEASE_WAIT: Duration = Duration::from_millis(500);

/// What moves the objects of a group over path 1.
type OverRelay<T> = fn(&Job<'_>, &mut Queues, &Relayed, &mut RelayCall) -> Result<Vec<Outcome<T>>, Trouble>;
/// What moves them over the others.
type OverDevice<T> = fn(&Job<'_>, &mut Queues) -> Result<Vec<Outcome<T>>, DeviceError>;

/// The executors of one way.
struct Executors<T> {
    way: Way,
    host: OverDevice<T>,
    engine: OverDevice<T>,
    relay: OverRelay<T>,
}

/// A batch on its way over one link.
struct Batch<'a> {
    counters: &'a Stats,
    link: &'a Arc<dyn Link>,
    state: &'a DeviceState,
    moves: &'a [Move],
    buffers: &'a Buffers,
    summed: bool,
    deadline: Instant,
}

impl Paths {
    /// Reads objects over one link into the buffers.
    pub(crate) fn read(
        &self,
        counters: &Stats,
        link: &Arc<dyn Link>,
        moves: &[Move],
        buffers: &Buffers,
        summed: bool,
        deadline: Instant,
    ) -> Vec<Outcome<Found>> {
        let reading = Executors { way: Way::Get, host: host::read, engine: engine::read, relay: relay::read };
        let state = self.state(buffers.device());
        self.run(&reading, &Batch { counters, link, state: &state, moves, buffers, summed, deadline })
    }

    /// Writes objects over one link from the buffers, trailers last.
    pub(crate) fn write(
        &self,
        counters: &Stats,
        link: &Arc<dyn Link>,
        moves: &[Move],
        buffers: &Buffers,
        summed: bool,
        deadline: Instant,
    ) -> Vec<Outcome<()>> {
        let writing = Executors { way: Way::Put, host: host::write, engine: engine::write, relay: relay::write };
        let state = self.state(buffers.device());
        self.run(&writing, &Batch { counters, link, state: &state, moves, buffers, summed, deadline })
    }

    fn run<T: Clone>(&self, executors: &Executors<T>, batch: &Batch<'_>) -> Vec<Outcome<T>> {
        let fail = |error: TransportError| vec![Err(error); batch.moves.len()];
        if let Err(error) = batch.moves.iter().try_for_each(|one| check(batch.link, one, batch.buffers)) {
            return fail(error);
        }
        let objects: Vec<PlanObject<'_>> = batch.moves.iter().map(|one| object(one, batch.buffers)).collect();
        let plan = match self.plan(executors.way, batch.link, batch.state, &objects, batch.summed) {
            Ok(plan) => plan,
            Err(error) => {
                tracing::warn!(%error, "a transfer cannot be planned");
                return fail(TransportError::InvalidOp { why: error.to_string() });
            }
        };
        let mut outcomes = fail(TransportError::Timeout);
        for group in &plan.groups {
            self.run_group(executors, batch, group, &objects, &mut outcomes);
        }
        outcomes
    }

    /// Moves a group, over another path if its owner has no room and any path will do.
    fn run_group<T: Clone>(
        &self,
        executors: &Executors<T>,
        batch: &Batch<'_>,
        group: &PlannedGroup,
        objects: &[PlanObject<'_>],
        outcomes: &mut [Outcome<T>],
    ) {
        let Batch { link, state, moves, buffers, summed, deadline, .. } = *batch;
        let job = Job { link, state, moves, buffers, group, summed, deadline };
        let started = Instant::now();
        let found = if group.path == Path::Relay {
            self.over_relay(executors, &job)
        } else {
            let over_link = group.path == Path::Host || state.touches();
            let execute = if over_link { executors.host } else { executors.engine };
            state.with_queues(deadline, |queues| execute(&job, queues).map_err(Trouble::Device))
        };
        let took = started.elapsed();
        match found {
            Ok(found) => {
                // Puts touch memory for the first time too often to teach anything.
                if executors.way == Way::Get && found.iter().all(Result::is_ok) {
                    self.costs.learn(link, state, group, took);
                }
                for (object, outcome) in group.objects.iter().zip(found) {
                    if outcome.is_ok() {
                        add(batch.counters.path_bytes(group.path), moves[*object].trailer.payload_bytes);
                    }
                    outcomes[*object] = outcome;
                }
            }
            Err(trouble) => {
                if let Some(why) = elsewhere(&trouble, executors.way).filter(|_| self.choice == PathChoice::Auto) {
                    return self.run_without_relay(executors, batch, &job, objects, why, outcomes);
                }
                let error = error_of(trouble, executors.way, group.path);
                for object in &group.objects {
                    outcomes[*object] = Err(error.clone());
                }
            }
        }
    }

    fn run_without_relay<T: Clone>(
        &self,
        executors: &Executors<T>,
        batch: &Batch<'_>,
        job: &Job<'_>,
        objects: &[PlanObject<'_>],
        why: String,
        outcomes: &mut [Outcome<T>],
    ) {
        tracing::debug!(why, objects = job.group.objects.len(), "another path instead of a relay");
        let left: Vec<PlanObject<'_>> = job.group.objects.iter().map(|at| objects[*at]).collect();
        let plan = match self.plan_without_relay(executors.way, job, &left, why) {
            Ok(plan) => plan,
            Err(error) => {
                let error = TransportError::InvalidOp { why: error.to_string() };
                job.group.objects.iter().for_each(|at| outcomes[*at] = Err(error.clone()));
                return;
            }
        };
        for mut group in plan.groups {
            // Positions among those that are left, as positions in the batch.
            let place = |at: &mut usize| *at = job.group.objects[*at];
            group.objects.iter_mut().for_each(place);
            group.steps.iter_mut().flat_map(|step| &mut step.parts).for_each(|part| place(&mut part.object));
            self.run_group(executors, batch, &group, objects, outcomes);
        }
    }

    /// Moves a group through the owner's device. Where no other path may be taken, waits for room there.
    fn over_relay<T>(&self, executors: &Executors<T>, job: &Job<'_>) -> Result<Vec<Outcome<T>>, Trouble> {
        let relayed = job.state.relay(job.link).map_err(TransportError::refused)?;
        let client = job.link.relay().ok_or(TransportError::PeerGone)?;
        loop {
            let job = Job { deadline: job.deadline.min(Instant::now() + RELAY_MAX), ..*job };
            let mut call = client.call(job.deadline)?;
            let found =
                job.state.with_queues(job.deadline, |queues| (executors.relay)(&job, queues, &relayed, &mut call));
            // Nothing here copies any more, unless the device was lost: then the owner's staging rests.
            if job.state.is_sound() {
                call.release(Instant::now() + RELEASE_WAIT);
            }
            match found {
                Err(Trouble::Busy) if self.choice != PathChoice::Auto && Instant::now() < job.deadline => {
                    std::thread::sleep(BUSY_PAUSE);
                }
                found => return found,
            }
        }
    }
}

/// Why the same may be tried over another path at once; `None` if it may not.
fn elsewhere(trouble: &Trouble, way: Way) -> Option<String> {
    match trouble {
        Trouble::Busy => Some("all staging of its owner's device is in use".to_owned()),
        // A get that failed has left nothing in the pool.
        Trouble::Failed(why) if way == Way::Get => Some(format!("its owner's relay: {why}")),
        _ => None,
    }
}

/// What trouble means for the objects of a transfer.
fn error_of(trouble: Trouble, way: Way, path: Path) -> TransportError {
    tracing::warn!(?trouble, %path, "a batch was not moved");
    let io = |why: String| TransportError::Io { operation: "device", kind: std::io::ErrorKind::Other, message: why };
    match trouble {
        Trouble::Transport(error) => error,
        Trouble::Busy => TransportError::Timeout,
        Trouble::Lost(why) if way == Way::Put => TransportError::Unfinished { why },
        Trouble::Lost(why) | Trouble::Failed(why) => io(why),
        Trouble::Device(error) => match error {
            DeviceError::Timeout { .. } => TransportError::Timeout,
            DeviceError::Lost { .. } => TransportError::Unfinished { why: error.to_string() },
            DeviceError::InvalidCopy { .. } => TransportError::InvalidOp { why: error.to_string() },
            _ => io(error.to_string()),
        },
    }
}
