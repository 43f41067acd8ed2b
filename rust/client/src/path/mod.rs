//! Transfers to and from memory the links cannot scatter to by themselves: planned, then carried out step by step.
//!
//! | module | what |
//! |---|---|
//! | `state` | what is kept for each device: queues, staging, the regions it reaches |
//! | `host` | path 0: over the link and pinned staging |
//! | `relay` | path 1: through the owner's device, over a link between devices |
//! | `engine` | paths 2 and 3: the device's copy engine reaches into the region |
//! | `costs` | what the legs cost: measured once, cached, corrected by experience |
//!
//! Host memory takes the links' own scatter and gather (paths 0 and 3 are the same there) and never comes here, unless
//! path 2 is forced.

pub mod costs;
mod engine;
mod host;
mod measure;
mod relay;
mod run;
mod state;

use std::sync::Arc;
use std::time::Instant;

use memcache_device::{Copy, Device, HostDevice};
use memcache_memory::Trailer;
use memcache_transport::plan::{
    LocalView, Path, PathChoice, PeerView, PlanError, PlanObject, PlanRequest, PlannedGroup, TransferPlan, Way, plan,
};
use memcache_transport::{Link, ReadOp, TransportError};
use parking_lot::Mutex;

use crate::buffer::Buffers;
use crate::transfer::Move;
use costs::Costs;
use state::DeviceState;
pub(crate) use state::view_of;

/// A copy from far to near, or back.
fn copy(far: u64, near: u64, bytes: u64, inward: bool) -> Copy {
    if inward { Copy { source: far, target: near, bytes } } else { Copy { source: near, target: far, bytes } }
}

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
        let mut peer = self.peer(link, state, &local, summed);
        if let Some(one) = objects.first() {
            peer.name = format!("segment {} over {}", one.extent.segment(), peer.name);
        }
        plan(&PlanRequest { way, choice: self.choice, peers: &[peer], local: &local, objects })
    }

    /// The same where the owner's relay has no room.
    fn plan_without_relay(
        &self,
        way: Way,
        job: &Job<'_>,
        objects: &[PlanObject<'_>],
        why: String,
    ) -> Result<TransferPlan, PlanError> {
        let local = job.state.view();
        let peers = [PeerView { relay: Err(why), ..self.peer(job.link, job.state, &local, job.summed) }];
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
        let relay = if local.cpu_touches {
            Err("the pieces are host memory".to_owned())
        } else {
            state.relay(link).map(|relayed| relayed.staging())
        };
        PeerView {
            name: link.protocol().to_string(),
            capabilities: *link.capabilities(),
            reach,
            relay,
            summed,
            cpu_sees_region: link.region().is_some(),
            costs: self.costs.between(link, state),
        }
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
