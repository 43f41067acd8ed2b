//! What a store keeps for each device it moves to and from.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memcache_device::{Device, DeviceError, HostRange, Keep, Queue, Reach, Space, StagingPool};
use memcache_transport::Link;
use memcache_transport::plan::{LocalView, Staging};
use parking_lot::Mutex;

use super::StagingOptions;
use super::relay::Relayed;

/// How long a device may take to stop after a deadline or an error.
const STOP_WAIT: Duration = Duration::from_secs(1);

/// Two queues: the legs of a staged transfer run beside each other.
pub(crate) struct Queues {
    pub(super) first: Box<dyn Queue>,
    pub(super) second: Box<dyn Queue>,
}

/// How long an owner may take to say what it offers.
const OFFER_WAIT: Duration = Duration::from_millis(500);

/// A link and its region as the device addresses it.
type Reached = (Arc<dyn Link>, Arc<Reach>);
/// A link and the staging of its owner's device as this device addresses it.
type Linked = (Arc<dyn Link>, Arc<Relayed>);

pub(crate) struct DeviceState {
    pub(crate) device: Arc<dyn Device>,
    pub(super) pinned: StagingPool,
    pub(super) staging: StagingPool,
    queues: Mutex<Vec<Queues>>,
    /// Regions made addressable, with the links that keep them mapped.
    reached: Mutex<Vec<Reached>>,
    /// The staging of owners that relay.
    relayed: Mutex<Vec<Linked>>,
    /// It did not stop when told to: bytes may still land where they were sent.
    lost: AtomicBool,
}

impl DeviceState {
    pub(super) fn new(device: Arc<dyn Device>, options: StagingOptions) -> Self {
        let align = device.capabilities().align.max(64);
        let slot_bytes = options.slot_bytes.next_multiple_of(align);
        let pool = |space| {
            StagingPool::new(Arc::clone(&device), space, slot_bytes, options.slots.max(1), options.transfers_max)
        };
        Self {
            pinned: pool(Space::Pinned),
            staging: pool(Space::Device),
            device,
            queues: Mutex::default(),
            reached: Mutex::default(),
            relayed: Mutex::default(),
            lost: AtomicBool::new(false),
        }
    }

    /// Whether the CPU may follow the addresses of the pieces.
    pub(super) fn touches(&self) -> bool {
        self.device.capabilities().cpu_touches
    }

    pub(crate) fn view(&self) -> LocalView {
        let slots =
            StagingOptions { slot_bytes: self.staging.slot_bytes(), slots: self.staging.slots(), transfers_max: 1 };
        view_of(&*self.device, slots)
    }

    /// The region behind a link, addressable for the device. Regions of owners that are gone are let go.
    pub(super) fn reach(&self, link: &Arc<dyn Link>) -> Result<Arc<Reach>, DeviceError> {
        let mut reached = self.reached.lock();
        let gone: Vec<_> = reached.extract_if(.., |(known, _)| !known.is_open() && !Arc::ptr_eq(known, link)).collect();
        let found = reached.iter().find(|(known, _)| Arc::ptr_eq(known, link)).map(|(_, reach)| Arc::clone(reach));
        let result = match (found, link.region()) {
            (Some(reach), _) => Ok(reach),
            (None, None) => Err(DeviceError::Unsupported {
                device: self.device.id().to_string(),
                what: "a region that is not mapped",
            }),
            (None, Some(region)) => {
                let range = HostRange { base: region.base(), bytes: region.bytes() };
                // SAFETY: the link keeps its region mapped, readable and writable for as long as it lives.
                let made = unsafe { self.device.reach(range, Arc::new(Arc::clone(link)) as Keep) };
                made.map(|reach| {
                    let reach = Arc::new(reach);
                    reached.push((Arc::clone(link), Arc::clone(&reach)));
                    reach
                })
            }
        };
        drop(reached);
        drop(gone);
        result
    }

    /// The staging of the owner behind a link, addressable for the device; if there is none, why.
    pub(super) fn relay(&self, link: &Arc<dyn Link>) -> Result<Arc<Relayed>, String> {
        let client = link.relay().ok_or("its owner offers no relay")?;
        let id = self.device.id();
        if !self.device.links_devices() {
            return Err(format!("{id} has no link to other devices"));
        }
        if client.device().split(':').next() != Some(id.kind) {
            return Err(format!("{id} has no link to its owner's {}", client.device()));
        }
        let gone: Vec<_> = {
            let mut relayed = self.relayed.lock();
            if let Some((_, known)) = relayed.iter().find(|(known, _)| Arc::ptr_eq(known, link)) {
                return Ok(Arc::clone(known));
            }
            relayed.extract_if(.., |(known, _)| !known.is_open()).collect()
        };
        drop(gone);
        let offer = client.offer(Instant::now() + OFFER_WAIT).map_err(|error| format!("its owner's relay: {error}"))?;
        let reach = self.device.import(&offer.export).map_err(|error| error.to_string())?;
        let made = Arc::new(Relayed::new(reach, offer)?);
        let mut relayed = self.relayed.lock();
        // Somebody may have been faster.
        if let Some((_, known)) = relayed.iter().find(|(known, _)| Arc::ptr_eq(known, link)) {
            return Ok(Arc::clone(known));
        }
        relayed.push((Arc::clone(link), Arc::clone(&made)));
        Ok(made)
    }

    /// Whether the device stopped when told to, so far.
    pub(super) fn is_sound(&self) -> bool {
        !self.lost.load(Ordering::Acquire)
    }

    /// Runs a transfer on queues of its own. Whatever comes of it, no byte moves for it afterwards; if the device does
    /// not stop, it is not used again.
    pub(super) fn with_queues<T, E: From<DeviceError>>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&mut Queues) -> Result<T, E>,
    ) -> Result<T, E> {
        let lost = |why: &str| DeviceError::Lost { device: self.device.id().to_string(), why: why.to_owned() };
        if self.lost.load(Ordering::Acquire) {
            return Err(lost("it did not stop when told to, earlier").into());
        }
        if Instant::now() >= deadline {
            return Err(DeviceError::Timeout { device: self.device.id().to_string() }.into());
        }
        let idle = self.queues.lock().pop();
        let mut queues = match idle {
            Some(queues) => queues,
            None => Queues { first: self.device.open_queue()?, second: self.device.open_queue()? },
        };
        let result = work(&mut queues);
        if result.is_err() {
            let until = Instant::now() + STOP_WAIT;
            let stopped = queues.second.cancel(until).and(queues.first.cancel(until));
            if let Err(error) = stopped {
                self.lost.store(true, Ordering::Release);
                tracing::error!(%error, "a device is no longer used");
                return Err(error.into());
            }
        }
        self.queues.lock().push(queues);
        result
    }
}

/// A device as the planner sees it.
pub(crate) fn view_of(device: &dyn Device, options: StagingOptions) -> LocalView {
    let limits = device.capabilities();
    let staging = Some(Staging { slot_bytes: options.slot_bytes, slots: options.slots });
    LocalView {
        name: device.id().to_string(),
        cpu_touches: limits.cpu_touches,
        runs_beside: limits.runs_beside,
        batch_copies_max: limits.batch_copies_max,
        copy_bytes_max: limits.copy_bytes_max,
        align: limits.align,
        pinned: staging,
        staging,
    }
}

impl fmt::Debug for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceState")
            .field("device", &self.device.id())
            .field("reached", &self.reached.lock().len())
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}
