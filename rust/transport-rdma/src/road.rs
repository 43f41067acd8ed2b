//! RDMA as a road: opened when it is first needed.

use std::any::Any;
use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use memcache_memory::Segment;
use parking_lot::Mutex;

use memcache_transport::{Door, Link, Protocol, Road, TransportError};

use crate::control::{Target, resolve, unavailable};
use crate::device::{Device, Wanted};
use crate::door::RdmaDoor;
use crate::lane::Counters;
use crate::link::RdmaLink;
use crate::memory::{Access, Registered};
use crate::ranges::{Ranges, Registrar};

/// How RDMA is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdmaOptions {
    /// `"device"`, `"device:port"` or `"device:port:gid_index"`. Empty: the first device with an active port, and on
    /// Ethernet its RoCE v2 address on the network of the control connection, else the first IPv4 one.
    pub device: String,
    /// Most bytes of local memory that stay registered between calls. Memory of this process that is lent to the pool
    /// does not count.
    pub registered_bytes_max: u64,
}

impl Default for RdmaOptions {
    fn default() -> Self {
        Self { device: String::new(), registered_bytes_max: 1 << 40 }
    }
}

/// Work requests posted by one road since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkRequests {
    /// Those that moved payload.
    pub payload: u64,
    /// Those that moved a trailer: one for each read, two for each write.
    pub trailer: u64,
}

/// The road over RDMA. Making one touches nothing; the library and the device are opened with the first region that
/// is served or reached.
#[derive(Debug)]
pub struct RdmaRoad {
    wanted: Wanted,
    device: Arc<OnceLock<Result<Arc<Device>, String>>>,
    ranges: Arc<Ranges<Registering>>,
    counters: Arc<Counters>,
}

/// Registers promised memory with the device, once that is open.
#[derive(Clone, Debug)]
pub(crate) struct Registering(Arc<OnceLock<Result<Arc<Device>, String>>>);

impl Registrar for Registering {
    type Registration = Registered;

    fn register(&self, address: u64, bytes: u64) -> Option<Registered> {
        let device = self.0.get()?.as_ref().ok()?;
        // SAFETY: `Ranges` asks only for promised ranges and drops the registration with the promise.
        match unsafe { Registered::new(device, address, bytes, Access::Local) } {
            Ok(registered) => Some(registered),
            Err(error) => {
                tracing::warn!(
                    %error, bytes, device = device.name,
                    "memory is not registered with the RDMA device, so its bytes are copied once more; see ulimit -l"
                );
                None
            }
        }
    }
}

impl RdmaRoad {
    /// A road over the device that the options name.
    ///
    /// # Errors
    /// [`TransportError::Unavailable`] for a name that is none.
    pub fn new(options: &RdmaOptions) -> Result<Self, TransportError> {
        let wanted = options.device.parse().map_err(|why: String| unavailable(why))?;
        let device = Arc::default();
        let ranges = Arc::new(Ranges::new(Registering(Arc::clone(&device)), options.registered_bytes_max));
        Ok(Self { wanted, device, ranges, counters: Arc::default() })
    }

    /// The road over this device that the whole process shares: one device, and one registration of local memory,
    /// for all who use it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn shared(options: &RdmaOptions) -> Result<Arc<Self>, TransportError> {
        // With the process id: a forked child must not use what it inherits.
        type Roads = HashMap<(u32, String, u64), Weak<RdmaRoad>>;
        static ROADS: Mutex<Option<Roads>> = Mutex::new(None);
        let key = (std::process::id(), options.device.clone(), options.registered_bytes_max);
        let mut roads = ROADS.lock();
        let roads = roads.get_or_insert_default();
        if let Some(road) = roads.get(&key).and_then(Weak::upgrade) {
            return Ok(road);
        }
        let road = Arc::new(Self::new(options)?);
        roads.retain(|_, road| road.strong_count() > 0);
        roads.insert(key, Arc::downgrade(&road));
        Ok(road)
    }

    /// Opens the device, unless it is open.
    ///
    /// # Errors
    /// [`TransportError::Unavailable`] with what was searched if there is no library or no device.
    pub fn check(&self) -> Result<(), TransportError> {
        self.device().map(drop)
    }

    /// What has been posted so far.
    pub fn work_requests(&self) -> WorkRequests {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        WorkRequests { payload: read(&self.counters.payload), trailer: read(&self.counters.trailer) }
    }

    /// Most local pieces of one work request.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn pieces_per_request(&self) -> Result<usize, TransportError> {
        self.device().map(|device| device.limits.pieces)
    }

    fn device(&self) -> Result<&Arc<Device>, TransportError> {
        let opened = self.device.get_or_init(|| {
            let opened = Device::open(&self.wanted);
            if let Ok(device) = &opened {
                tracing::info!(device = device.name, port = device.port.number, "RDMA device opened");
            }
            opened
        });
        opened.as_ref().map_err(|why| unavailable(why.clone()))
    }
}

impl Road for RdmaRoad {
    fn protocol(&self) -> Protocol {
        Protocol::HostRdma
    }

    fn serve(
        &self,
        segment: Arc<Segment>,
        token: u128,
        listener: TcpListener,
    ) -> Result<Box<dyn Door>, TransportError> {
        Ok(Box::new(RdmaDoor::open(self.device()?, segment, token, listener)?))
    }

    fn open(
        &self,
        address: &str,
        token: u128,
        region_bytes: u64,
        deadline: Instant,
    ) -> Result<Arc<dyn Link>, TransportError> {
        let device = Arc::clone(self.device()?);
        let target = Target { address: resolve(address)?, token, region_bytes };
        let (ranges, counters) = (Arc::clone(&self.ranges), Arc::clone(&self.counters));
        Ok(Arc::new(RdmaLink::open(device, target, ranges, counters, deadline)?))
    }

    unsafe fn prepare(&self, address: u64, bytes: u64) -> Box<dyn Any + Send + Sync> {
        // SAFETY: the same promise.
        let promise = unsafe { self.ranges.promise(address, bytes) };
        // Where RDMA is in use already, the first transfer need not wait for it.
        if self.device.get().is_some_and(Result::is_ok) {
            drop(self.ranges.find(address, bytes));
        }
        Box::new(promise)
    }
}
