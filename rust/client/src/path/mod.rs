//! Transfers to and from memory the links cannot scatter to by themselves: planned, then carried out step by step.
//!
//! | module | what |
//! |---|---|
//! | `state` | what is kept for each device: queues, staging, the regions it reaches |
//! | `host` | path 0: over the link and pinned staging |
//! | `engine` | paths 2 and 3: the device's copy engine reaches into the region |
//! | `costs` | what the legs cost: measured once, cached, corrected by experience |
//!
//! Host memory takes the links' own scatter and gather (paths 0 and 3 are the same there) and never comes here, unless
//! path 2 is forced.

pub mod costs;
mod engine;
mod host;
mod measure;
mod state;

use std::sync::Arc;
use std::time::Instant;

use memcache_device::{Device, DeviceError, HostDevice};
use memcache_memory::Trailer;
use memcache_transport::plan::{
    LocalView, Path, PathChoice, PeerView, PlanError, PlanObject, PlanRequest, PlannedGroup, TransferPlan, Way, plan,
};
use memcache_transport::{Link, ReadOp, TransportError};
use parking_lot::Mutex;

use crate::buffer::Buffers;
use crate::stats::{Stats, add};
use crate::transfer::Move;
use crate::ways::Found;
use costs::Costs;
pub(crate) use state::view_of;
use state::{DeviceState, Queues};

/// How transfers are staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagingOptions {
    /// Length of one staging slot in bytes.
    pub slot_bytes: u64,
    /// Slots a transfer goes through in turn.
    pub slots: usize,
    /// Transfers that may be staged at the same time, on each device.
    pub transfers_max: usize,
}

impl Default for StagingOptions {
    fn default() -> Self {
        Self { slot_bytes: 8 << 20, slots: 2, transfers_max: 4 }
    }
}

/// Everything a store needs to plan transfers and carry them out.
#[derive(Debug)]
pub(crate) struct Paths {
    choice: PathChoice,
    staging: StagingOptions,
    pub(crate) costs: Costs,
    devices: Mutex<Vec<Arc<DeviceState>>>,
    host: Arc<dyn Device>,
}

/// What one object's move found or failed with.
pub(crate) type Outcome<T> = Result<T, TransportError>;

/// A group on its way: one link, one device, one path.
pub(crate) struct Job<'a> {
    pub(crate) link: &'a Arc<dyn Link>,
    pub(crate) state: &'a DeviceState,
    pub(crate) moves: &'a [Move],
    pub(crate) buffers: &'a Buffers,
    pub(crate) group: &'a PlannedGroup,
    pub(crate) summed: bool,
    pub(crate) deadline: Instant,
}

impl Paths {
    pub(crate) fn new(choice: PathChoice, staging: StagingOptions, costs: Costs) -> Self {
        Self { choice, staging, costs, devices: Mutex::default(), host: Arc::new(HostDevice) }
    }

    /// Whether these buffers are moved from here; otherwise the link does it all.
    pub(crate) fn takes(&self, buffers: &Buffers) -> bool {
        buffers.device().is_some() || matches!(self.choice, PathChoice::Forced(Path::Staged | Path::Relay))
    }

    /// What is kept for the device of these buffers.
    pub(crate) fn state(&self, device: Option<&Arc<dyn Device>>) -> Arc<DeviceState> {
        let device = device.unwrap_or(&self.host);
        let mut devices = self.devices.lock();
        if let Some(known) = devices.iter().find(|known| known.device.id() == device.id()) {
            return Arc::clone(known);
        }
        let state = Arc::new(DeviceState::new(Arc::clone(device), self.staging));
        devices.push(Arc::clone(&state));
        state
    }

    /// How these objects would move over this link.
    pub(crate) fn plan(
        &self,
        way: Way,
        link: &Arc<dyn Link>,
        state: &DeviceState,
        objects: &[PlanObject<'_>],
        summed: bool,
    ) -> Result<TransferPlan, PlanError> {
        let local = state.view();
        let peers = [self.peer(link, state, &local, summed)];
        plan(&PlanRequest { way, choice: self.choice, peers: &peers, local: &local, objects })
    }

    /// What the user asks for.
    pub(crate) fn choice(&self) -> PathChoice {
        self.choice
    }

    pub(crate) fn peer(&self, link: &Arc<dyn Link>, state: &DeviceState, local: &LocalView, summed: bool) -> PeerView {
        let reach = match link.region() {
            _ if local.cpu_touches => Ok(()),
            Some(_) => state.reach(link).map(drop).map_err(|error| error.to_string()),
            None => Err(format!("{} does not map the region here: the device cannot address it", link.protocol())),
        };
        PeerView {
            name: link.protocol().to_string(),
            capabilities: *link.capabilities(),
            reach,
            relay: Err("its owner offers no relay".to_owned()),
            summed,
            cpu_sees_region: link.region().is_some(),
            costs: self.costs.between(link, state),
        }
    }

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
        self.run(Way::Get, counters, link, moves, buffers, summed, deadline, |job, queues| {
            let over_link = job.group.path == Path::Host || job.state.touches();
            if over_link { host::read(job, queues) } else { engine::read(job, queues) }
        })
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
        self.run(Way::Put, counters, link, moves, buffers, summed, deadline, |job, queues| {
            let over_link = job.group.path == Path::Host || job.state.touches();
            if over_link { host::write(job, queues) } else { engine::write(job, queues) }
        })
    }

    #[allow(clippy::too_many_arguments, reason = "the two callers pass their own arguments through")]
    fn run<T: Clone>(
        &self,
        way: Way,
        counters: &Stats,
        link: &Arc<dyn Link>,
        moves: &[Move],
        buffers: &Buffers,
        summed: bool,
        deadline: Instant,
        execute: impl Fn(&Job<'_>, &mut Queues) -> Result<Vec<Outcome<T>>, DeviceError>,
    ) -> Vec<Outcome<T>> {
        let state = self.state(buffers.device());
        let fail = |error: TransportError| vec![Err(error); moves.len()];
        if let Err(error) = moves.iter().try_for_each(|one| check(link, one, buffers)) {
            return fail(error);
        }
        let objects: Vec<PlanObject<'_>> = moves.iter().map(|one| object(one, buffers)).collect();
        let plan = match self.plan(way, link, &state, &objects, summed) {
            Ok(plan) => plan,
            Err(error) => {
                tracing::warn!(%error, "a transfer cannot be planned");
                return fail(TransportError::InvalidOp { why: error.to_string() });
            }
        };
        let mut outcomes = fail(TransportError::Timeout);
        for group in &plan.groups {
            let job = Job { link, state: &state, moves, buffers, group, summed, deadline };
            let started = Instant::now();
            let found = state.with_queues(deadline, |queues| execute(&job, queues));
            let took = started.elapsed();
            match found {
                Ok(found) => {
                    // Puts touch memory for the first time too often to teach anything.
                    if way == Way::Get && found.iter().all(Result::is_ok) {
                        self.costs.learn(link, &state, group, took);
                    }
                    for (object, outcome) in group.objects.iter().zip(found) {
                        if outcome.is_ok() {
                            add(counters.path_bytes(group.path), moves[*object].trailer.payload_bytes);
                        }
                        outcomes[*object] = outcome;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, path = %group.path, "a device could not move a batch");
                    for object in &group.objects {
                        outcomes[*object] = Err(transport_error(&error));
                    }
                }
            }
        }
        outcomes
    }
}

pub(crate) fn object<'a>(one: &Move, buffers: &'a Buffers) -> PlanObject<'a> {
    let local = buffers.list(one.index);
    PlanObject { peer: 0, extent: one.extent, payload_bytes: one.trailer.payload_bytes, local }
}

/// What every link checks before an operation: extents come from the book, lengths from the caller.
fn check(link: &Arc<dyn Link>, one: &Move, buffers: &Buffers) -> Result<(), TransportError> {
    let (extent, payload_bytes) = (one.extent, one.trailer.payload_bytes);
    ReadOp { extent, payload_bytes, local: buffers.list(one.index) }.check(link.capabilities().region_bytes)
}

/// The trailer with the sum of the payload, if there is one.
fn sealed(trailer: &Trailer, sum: Option<u32>) -> Trailer {
    let checksum = sum.map_or(trailer.checksum, memcache_memory::Checksum::Crc32c);
    Trailer { checksum, ..*trailer }
}

/// What a device's trouble means for a transfer.
fn transport_error(error: &DeviceError) -> TransportError {
    match error {
        DeviceError::Timeout { .. } => TransportError::Timeout,
        DeviceError::Lost { .. } => TransportError::Unfinished { why: error.to_string() },
        DeviceError::InvalidCopy { .. } => TransportError::InvalidOp { why: error.to_string() },
        _ => TransportError::Io { operation: "device", kind: std::io::ErrorKind::Other, message: error.to_string() },
    }
}
