//! Finding the road to a region, and keeping it.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::Segment;
use parking_lot::Mutex;

use crate::descriptor::RegionDescriptor;
use crate::error::TransportError;
use crate::host::HostId;
use crate::link::Link;
use crate::mapped::MappedLink;
use crate::protocol::{Protocol, ProtocolChoice};
use crate::relay::{RelayClient, RelayedLink};
use crate::road::Road;
use crate::server::RegionServer;
use crate::shm::client::attach;
use crate::shm::companion::accompany;
use crate::tcp::client::TcpLink;

/// First pause after a region could not be reached; doubles with every failure.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Failures remembered; past it those that are over are dropped.
const FAILURES_MAX: usize = 4096;

/// How peers are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FabricOptions {
    /// Which road. Segments of this process are always reached directly.
    pub choice: ProtocolChoice,
    /// TCP connections one call may use to one peer, at least 1.
    pub connections_per_peer: usize,
}

impl Default for FabricOptions {
    fn default() -> Self {
        Self { choice: ProtocolChoice::Auto, connections_per_peer: 2 }
    }
}

/// Gives links to regions and keeps them, one a region.
#[derive(Debug)]
pub struct Fabric {
    options: FabricOptions,
    host: HostId,
    rdma: Option<Arc<dyn Road>>,
    routes: Arc<Mutex<Routes>>,
}

#[derive(Debug, Default)]
struct Routes {
    links: HashMap<u128, Arc<dyn Link>>,
    failures: HashMap<u128, Failure>,
}

/// A region that could not be reached, and when to try again.
#[derive(Clone, Debug)]
struct Failure {
    error: TransportError,
    retry_at: Instant,
    pause: Duration,
}

/// What is known about a region.
enum Known {
    Link(Arc<dyn Link>),
    /// It could not be reached a moment ago.
    Failure(TransportError),
    Nothing {
        /// The link there was, to be dropped by the caller.
        closed: Option<Arc<dyn Link>>,
    },
}

impl Fabric {
    /// A fabric that knows no region yet.
    pub fn new(options: FabricOptions) -> Self {
        Self::with_rdma(options, None)
    }

    /// The same with a road over RDMA, taken where the choice allows it and the peer has one too.
    pub fn with_rdma(options: FabricOptions, rdma: Option<Arc<dyn Road>>) -> Self {
        Self { options, host: HostId::current(), rdma, routes: Arc::default() }
    }

    /// Makes the segment of a server of this process reachable directly.
    pub fn register_local(&self, server: &RegionServer) {
        self.register_segment(server.descriptor().token, Arc::clone(server.segment()));
    }

    /// Makes a segment of this process reachable directly, under the token of its descriptor.
    pub fn register_segment(&self, token: u128, segment: Arc<Segment>) {
        let mut routes = self.routes.lock();
        routes.failures.remove(&token);
        routes.links.insert(token, Arc::new(MappedLink::local(segment)));
    }

    /// The link to a region, opened if there is none.
    ///
    /// # Errors
    /// [`TransportError::PeerGone`] or [`TransportError::Timeout`] if nobody answers,
    /// [`TransportError::Refused`] if someone else does, [`TransportError::Unavailable`] if no permitted road
    /// leads there. After a failure the same error comes back at once until a pause is over, which grows from
    /// 50 ms to 5 s.
    pub fn link(&self, descriptor: &RegionDescriptor, deadline: Instant) -> Result<Arc<dyn Link>, TransportError> {
        // Links are dropped without the lock: the end of a large mapping takes its time.
        let closed = match self.routes.lock().known(descriptor.token) {
            Known::Link(link) => return Ok(link),
            Known::Failure(error) => return Err(error),
            Known::Nothing { closed } => closed,
        };
        drop(closed);
        // Nor is one opened under it: a peer that does not answer holds up only those who want it.
        let opened = self.open(descriptor, deadline).map(|link| with_relay(link, descriptor));
        let mut routes = self.routes.lock();
        let (result, _dropped_last) = match opened {
            Ok(link) => {
                routes.failures.remove(&descriptor.token);
                // Those whose owners are gone are looked for by nobody any more.
                let closed: Vec<_> = routes.links.extract_if(|_, link| !link.is_open()).collect();
                let kept = routes.links.entry(descriptor.token).or_insert(link);
                (Ok(Arc::clone(kept)), closed)
            }
            Err(error) => {
                routes.note_failure(descriptor.token, &error);
                (Err(error), Vec::new())
            }
        };
        drop(routes);
        result
    }

    /// Prepares local memory that many transfers will use, until the returned value is dropped. `None` where no road
    /// needs that.
    ///
    /// # Safety
    /// Until then the range stays mapped as it is: not unmapped, not moved, not replaced by other memory.
    pub unsafe fn prepare(&self, address: u64, bytes: u64) -> Option<Box<dyn Any + Send + Sync>> {
        // SAFETY: the same promise.
        self.rdma.as_ref().map(|road| unsafe { road.prepare(address, bytes) })
    }

    /// How far away a region is, without a try to reach it: 0 in this process, 1 on this host, 2 elsewhere, 3 where it
    /// could not be reached a moment ago.
    pub fn distance(&self, descriptor: &RegionDescriptor) -> u8 {
        let known = self.routes.lock().known(descriptor.token);
        match known {
            Known::Link(link) if link.protocol() == Protocol::Local => 0,
            Known::Failure(_) => 3,
            Known::Link(_) | Known::Nothing { .. } if self.host.is_same_host(&descriptor.host) => 1,
            Known::Link(_) | Known::Nothing { .. } => 2,
        }
    }

    /// As [`link`](Self::link) without opening anything: `None` where that would be needed. Never waits.
    pub fn link_now(&self, descriptor: &RegionDescriptor) -> Option<Result<Arc<dyn Link>, TransportError>> {
        let routes = self.routes.lock();
        match routes.links.get(&descriptor.token) {
            Some(link) => link.is_open().then(|| Ok(Arc::clone(link))),
            None => routes.failure(descriptor.token).map(Err),
        }
    }

    /// The links that are open now.
    pub fn links(&self) -> Vec<Arc<dyn Link>> {
        self.routes.lock().links.values().filter(|link| link.is_open()).map(Arc::clone).collect()
    }

    /// Drops the link to a region; calls under way on it end as they will. Frees the mapping or connections.
    pub fn forget(&self, token: u128) {
        let link = self.routes.lock().links.remove(&token);
        drop(link);
    }

    fn open(&self, descriptor: &RegionDescriptor, deadline: Instant) -> Result<Arc<dyn Link>, TransportError> {
        let is_near = self.host.is_same_host(&descriptor.host);
        match self.options.choice {
            ProtocolChoice::HostShm => self.open_shm(descriptor, deadline),
            ProtocolChoice::Auto if is_near && descriptor.shm.is_some() => {
                self.open_shm(descriptor, deadline).or_else(|error| {
                    if descriptor.tcp.is_none() {
                        return Err(error);
                    }
                    if error != TransportError::PeerGone {
                        tracing::warn!(%error, pid = descriptor.pid, "cannot share memory with a peer of this host, trying TCP");
                    }
                    self.open_tcp(descriptor, deadline)
                })
            }
            ProtocolChoice::HostRdma => self.open_rdma(descriptor, deadline),
            ProtocolChoice::Auto if !is_near && descriptor.rdma.is_some() && self.rdma.is_some() => {
                self.open_rdma(descriptor, deadline).or_else(|error| {
                    if descriptor.tcp.is_none() {
                        return Err(error);
                    }
                    if error != TransportError::PeerGone {
                        tracing::warn!(%error, "a peer offers RDMA that does not lead there, trying TCP");
                    }
                    self.open_tcp(descriptor, deadline)
                })
            }
            ProtocolChoice::Auto | ProtocolChoice::HostTcp => self.open_tcp(descriptor, deadline),
        }
    }

    fn open_rdma(&self, descriptor: &RegionDescriptor, deadline: Instant) -> Result<Arc<dyn Link>, TransportError> {
        let unavailable = |why: &str| TransportError::Unavailable { protocol: Protocol::HostRdma, why: why.to_owned() };
        let road = self.rdma.as_ref().ok_or_else(|| unavailable("this process was built without RDMA"))?;
        let address = descriptor.rdma.as_deref().ok_or_else(|| unavailable("the peer is not reachable over RDMA"))?;
        road.open(address, descriptor.token, descriptor.region_bytes, deadline)
    }

    fn open_shm(&self, descriptor: &RegionDescriptor, deadline: Instant) -> Result<Arc<dyn Link>, TransportError> {
        let protocol = Protocol::HostShm;
        let name = descriptor.shm.as_deref().ok_or_else(|| TransportError::Unavailable {
            protocol,
            why: "the peer does not share its memory".to_owned(),
        })?;
        if !self.host.is_same_host(&descriptor.host) {
            return Err(TransportError::Unavailable { protocol, why: "the peer is on another host".to_owned() });
        }
        let (mapping, owner) = attach(name, descriptor.token, descriptor.region_bytes, deadline)?;
        let link = Arc::new(MappedLink::shared(mapping, owner));
        let (routes, token) = (Arc::downgrade(&self.routes), descriptor.token);
        accompany(&link, move || {
            if let Some(routes) = routes.upgrade() {
                let link = routes.lock().take_closed(token);
                drop(link);
            }
        });
        Ok(link)
    }

    fn open_tcp(&self, descriptor: &RegionDescriptor, deadline: Instant) -> Result<Arc<dyn Link>, TransportError> {
        let address = descriptor.tcp.as_deref().ok_or_else(|| TransportError::Unavailable {
            protocol: Protocol::HostTcp,
            why: "the peer has no TCP data server".to_owned(),
        })?;
        let connections = self.options.connections_per_peer;
        TcpLink::open(address, descriptor.token, descriptor.region_bytes, connections, deadline)
            .map(|link| Arc::new(link) as Arc<dyn Link>)
    }
}

/// The link with the way to its owner's relay, if there is one.
fn with_relay(link: Arc<dyn Link>, descriptor: &RegionDescriptor) -> Arc<dyn Link> {
    match (&descriptor.relay, &descriptor.tcp) {
        (Some(device), Some(address)) => {
            let relay = Arc::new(RelayClient::new(address, descriptor.token, device));
            Arc::new(RelayedLink { link, relay })
        }
        _ => link,
    }
}

impl Routes {
    fn known(&mut self, token: u128) -> Known {
        match self.links.get(&token) {
            Some(link) if link.is_open() => Known::Link(Arc::clone(link)),
            Some(_) => Known::Nothing { closed: self.links.remove(&token) },
            None => self.failure(token).map_or(Known::Nothing { closed: None }, Known::Failure),
        }
    }

    /// Why a region is not tried again yet.
    fn failure(&self, token: u128) -> Option<TransportError> {
        let failure = self.failures.get(&token)?;
        (Instant::now() < failure.retry_at).then(|| failure.error.clone())
    }

    fn take_closed(&mut self, token: u128) -> Option<Arc<dyn Link>> {
        if self.links.get(&token)?.is_open() { None } else { self.links.remove(&token) }
    }

    fn note_failure(&mut self, token: u128, error: &TransportError) {
        let now = Instant::now();
        if self.failures.len() >= FAILURES_MAX {
            self.failures.retain(|_, failure| now < failure.retry_at);
        }
        let pause = self.failures.get(&token).map_or(PAUSE_MIN, |failure| (failure.pause * 2).min(PAUSE_MAX));
        self.failures.insert(token, Failure { error: error.clone(), retry_at: now + pause, pause });
    }
}
