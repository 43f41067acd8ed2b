//! Roads that crates above this one build: what needs verbs or a driver lives there and comes in through here.

use std::any::Any;
use std::fmt::Debug;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use memcache_memory::Segment;

use crate::error::TransportError;
use crate::link::Link;
use crate::protocol::Protocol;

/// A way to reach regions, given to a [`Fabric`](crate::Fabric) and to the
/// [`RegionServer`](crate::RegionServer)s of the same process.
pub trait Road: Send + Sync + Debug {
    /// Its name.
    fn protocol(&self) -> Protocol;

    /// Lets peers reach `segment`, those that present `token` at `listener`.
    ///
    /// # Errors
    /// [`TransportError::Unavailable`] with what was searched if this machine lacks what the road needs.
    fn serve(&self, segment: Arc<Segment>, token: u128, listener: TcpListener)
    -> Result<Box<dyn Door>, TransportError>;

    /// The link to the region that is served at `address` (`host:port`) under `token`.
    ///
    /// # Errors
    /// As [`serve`](Self::serve), and as [`Fabric::link`](crate::Fabric::link).
    fn open(
        &self,
        address: &str,
        token: u128,
        region_bytes: u64,
        deadline: Instant,
    ) -> Result<Arc<dyn Link>, TransportError>;

    /// Prepares local memory that many transfers will use, until the returned value is dropped. Never fails: what
    /// cannot be prepared moves more slowly.
    ///
    /// # Safety
    /// Until then the range stays mapped as it is: not unmapped, not moved, not replaced by other memory.
    unsafe fn prepare(&self, address: u64, bytes: u64) -> Box<dyn Any + Send + Sync>;
}

/// A region that peers can reach over a [`Road`].
pub trait Door: Send + Sync + Debug {
    /// Hangs up on all peers, within two seconds: afterwards nobody reaches the region this way. Only for the process
    /// that opened it.
    fn stop(&mut self);

    /// Leaves everything as it is: it belongs to the process this one was forked from.
    fn abandon(&mut self);
}
