//! The link for memory that is mapped here: this process's own, or another's of this host.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use memcache_memory::{Mapping, RawRegion, Segment, gather, scatter};
use memcache_types::limits::{OBJECT_BYTES_MAX, PIECES_MAX, TRAILER_LEN};

use crate::capabilities::Capabilities;
use crate::error::TransportError;
use crate::link::Link;
use crate::ops::{ReadOp, WriteOp, view};
use crate::protocol::Protocol;
use crate::shm::client::OwnerWatch;

/// What keeps the memory mapped.
#[derive(Debug)]
enum Backing {
    Own(Arc<Segment>),
    Peer { mapping: Mapping, owner: OwnerWatch },
}

/// A link that copies by address.
#[derive(Debug)]
pub(crate) struct MappedLink {
    backing: Backing,
    capabilities: Capabilities,
}

impl MappedLink {
    pub(crate) fn local(segment: Arc<Segment>) -> Self {
        let capabilities = capabilities(Protocol::Local, segment.bytes());
        Self { backing: Backing::Own(segment), capabilities }
    }

    pub(crate) fn shared(mapping: Mapping, owner: OwnerWatch) -> Self {
        let capabilities = capabilities(Protocol::HostShm, mapping.bytes());
        Self { backing: Backing::Peer { mapping, owner }, capabilities }
    }

    /// The mapping of a peer's memory and the connection to its owner.
    pub(crate) fn peer(&self) -> Option<(&Mapping, &OwnerWatch)> {
        match &self.backing {
            Backing::Own(_) => None,
            Backing::Peer { mapping, owner } => Some((mapping, owner)),
        }
    }

    fn region(&self) -> RawRegion<'_> {
        match &self.backing {
            Backing::Own(segment) => segment.region(),
            Backing::Peer { mapping, .. } => mapping.region(),
        }
    }

    /// # Safety
    /// As [`Link::read`], for one operation.
    unsafe fn read_one(&self, op: &ReadOp<'_>, deadline: Instant) -> Result<[u8; TRAILER_LEN], TransportError> {
        let region = self.region();
        op.check(region.bytes())?;
        check_deadline(deadline)?;
        let extent = view(region, op.extent.offset(), op.extent.bytes())?;
        // SAFETY: the pieces are writable and unshared by this function's contract; the extent holds the payload.
        unsafe { scatter(extent, op.local) };
        Ok(extent.load_trailer())
    }

    /// # Safety
    /// As [`Link::write`], for one operation.
    unsafe fn write_one(&self, op: &WriteOp<'_>, deadline: Instant) -> Result<(), TransportError> {
        let region = self.region();
        op.check(region.bytes())?;
        check_deadline(deadline)?;
        let extent = view(region, op.extent.offset(), op.extent.bytes())?;
        extent.retract_trailer();
        // SAFETY: the pieces are readable and unwritten by this function's contract; the extent holds the payload.
        unsafe { gather(op.local, extent) };
        extent.publish_trailer(op.trailer);
        Ok(())
    }
}

impl Link for MappedLink {
    fn protocol(&self) -> Protocol {
        self.capabilities.protocol
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    unsafe fn read(&self, ops: &[ReadOp<'_>], deadline: Instant) -> Vec<Result<[u8; TRAILER_LEN], TransportError>> {
        // SAFETY: the same contract, for each.
        ops.iter().map(|op| unsafe { self.read_one(op, deadline) }).collect()
    }

    unsafe fn write(&self, ops: &[WriteOp<'_>], deadline: Instant) -> Vec<Result<(), TransportError>> {
        // SAFETY: the same contract, for each.
        ops.iter().map(|op| unsafe { self.write_one(op, deadline) }).collect()
    }

    fn is_open(&self) -> bool {
        match &self.backing {
            Backing::Own(_) => true,
            Backing::Peer { owner, .. } => owner.is_alive(),
        }
    }
}

fn capabilities(protocol: Protocol, region_bytes: u64) -> Capabilities {
    Capabilities {
        protocol,
        region_bytes,
        pieces_max: PIECES_MAX,
        payload_bytes_max: OBJECT_BYTES_MAX.min(region_bytes),
        one_sided: true,
        copies_on_caller: true,
        connections: 0,
    }
}

fn check_deadline(deadline: Instant) -> Result<(), TransportError> {
    if Instant::now() >= deadline { Err(TransportError::Timeout) } else { Ok(()) }
}
