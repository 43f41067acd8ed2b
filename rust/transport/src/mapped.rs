//! The link for memory that is mapped here: this process's own, or another's of this host.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use memcache_memory::{
    CopyMode, Mapping, Part, RawRegion, Segment, Trailer, gather, gather_part, gather_part_summed, gather_summed,
    scatter, scatter_part, scatter_part_summed, scatter_summed,
};
use memcache_types::limits::{OBJECT_BYTES_MAX, PIECES_MAX, TRAILER_LEN};
use memcache_types::{Extent, ScatterList};

use crate::capabilities::Capabilities;
use crate::error::TransportError;
use crate::link::Link;
use crate::ops::{ReadOp, SummedWriteOp, WriteOp, view};
use crate::parts::Parts;
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

    fn view(&self) -> RawRegion<'_> {
        match &self.backing {
            Backing::Own(segment) => segment.region(),
            Backing::Peer { mapping, .. } => mapping.region(),
        }
    }

    /// The extent of an operation that makes sense and may still start.
    fn admit(
        &self,
        extent: Extent,
        check: impl FnOnce(u64) -> Result<(), TransportError>,
        deadline: Instant,
    ) -> Result<RawRegion<'_>, TransportError> {
        let region = self.view();
        check(region.bytes())?;
        if Instant::now() >= deadline {
            return Err(TransportError::Timeout);
        }
        view(region, extent.offset(), extent.bytes())
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
        let one = |op: &ReadOp<'_>| {
            let extent = self.admit(op.extent, |region_bytes| op.check(region_bytes), deadline)?;
            // SAFETY: the pieces are writable and unshared by contract; the extent holds the payload.
            unsafe { scatter(extent, op.local) };
            Ok(extent.load_trailer())
        };
        ops.iter().map(one).collect()
    }

    unsafe fn write(&self, ops: &[WriteOp<'_>], deadline: Instant) -> Vec<Result<(), TransportError>> {
        let one = |op: &WriteOp<'_>| {
            let extent = self.admit(op.extent, |region_bytes| op.check(region_bytes), deadline)?;
            extent.retract_trailer();
            // SAFETY: the pieces are readable and unwritten by contract; the extent holds the payload.
            unsafe { gather(op.local, extent) };
            extent.publish_trailer(op.trailer);
            Ok(())
        };
        ops.iter().map(one).collect()
    }

    unsafe fn read_summed(
        &self,
        ops: &[ReadOp<'_>],
        deadline: Instant,
    ) -> Vec<Result<([u8; TRAILER_LEN], u32), TransportError>> {
        let one = |op: &ReadOp<'_>| {
            let extent = self.admit(op.extent, |region_bytes| op.check(region_bytes), deadline)?;
            // SAFETY: the pieces are writable and unshared by contract; the extent holds the payload.
            let sum = unsafe { scatter_summed(CopyMode::Auto, extent, op.local) };
            Ok((extent.load_trailer(), sum))
        };
        ops.iter().map(one).collect()
    }

    unsafe fn write_summed(&self, ops: &[SummedWriteOp<'_>], deadline: Instant) -> Vec<Result<(), TransportError>> {
        let one = |op: &SummedWriteOp<'_>| {
            let check = |region_bytes| op.with_trailer(&Trailer::RETRACTED).check(region_bytes);
            let extent = self.admit(op.extent, check, deadline)?;
            extent.retract_trailer();
            // SAFETY: the pieces are readable and unwritten by contract; the extent holds the payload.
            let sum = unsafe { gather_summed(CopyMode::Auto, op.local, extent) };
            extent.publish_trailer(&op.seal(sum));
            Ok(())
        };
        ops.iter().map(one).collect()
    }

    fn parts(&self) -> Option<&dyn Parts> {
        Some(self)
    }

    fn region(&self) -> Option<RawRegion<'_>> {
        Some(self.view())
    }

    fn is_open(&self) -> bool {
        match &self.backing {
            Backing::Own(_) => true,
            Backing::Peer { owner, .. } => owner.is_alive(),
        }
    }
}

impl MappedLink {
    /// The extent of an operation on these pieces, if it makes sense and may still start.
    fn admit_parts(
        &self,
        extent: Extent,
        local: &ScatterList,
        until: Instant,
    ) -> Result<RawRegion<'_>, TransportError> {
        let op = ReadOp { extent, payload_bytes: local.bytes(), local };
        self.admit(extent, |region_bytes| op.check(region_bytes), until)
    }

    fn extent(&self, extent: Extent) -> Result<RawRegion<'_>, TransportError> {
        view(self.view(), extent.offset(), extent.bytes())
    }
}

impl Parts for MappedLink {
    fn begin_read(&self, extent: Extent, local: &ScatterList, deadline: Instant) -> Result<(), TransportError> {
        self.admit_parts(extent, local, deadline).map(drop)
    }

    unsafe fn read_part(
        &self,
        extent: Extent,
        local: &ScatterList,
        part: Part,
        summed: bool,
        deadline: Instant,
    ) -> Result<Option<u32>, TransportError> {
        let extent = self.admit_parts(extent, local, deadline)?;
        // SAFETY: the pieces are writable and unshared by contract; the extent holds the payload.
        unsafe {
            if summed {
                return Ok(Some(scatter_part_summed(CopyMode::Auto, extent, local, part)));
            }
            scatter_part(CopyMode::Auto, extent, local, part);
        }
        Ok(None)
    }

    fn end_read(&self, extent: Extent) -> Result<[u8; TRAILER_LEN], TransportError> {
        Ok(self.extent(extent)?.load_trailer())
    }

    fn begin_write(&self, extent: Extent, local: &ScatterList, deadline: Instant) -> Result<(), TransportError> {
        self.admit_parts(extent, local, deadline)?.retract_trailer();
        Ok(())
    }

    unsafe fn write_part(
        &self,
        extent: Extent,
        local: &ScatterList,
        part: Part,
        summed: bool,
        deadline: Instant,
    ) -> Result<Option<u32>, TransportError> {
        let extent = self.admit_parts(extent, local, deadline)?;
        // SAFETY: the pieces are readable and unwritten by contract; the extent holds the payload.
        unsafe {
            if summed {
                return Ok(Some(gather_part_summed(CopyMode::Auto, local, part, extent)));
            }
            gather_part(CopyMode::Auto, local, part, extent);
        }
        Ok(None)
    }

    fn end_write(&self, extent: Extent, trailer: &[u8; TRAILER_LEN]) -> Result<(), TransportError> {
        self.extent(extent)?.publish_trailer(trailer);
        Ok(())
    }
}

fn capabilities(protocol: Protocol, region_bytes: u64) -> Capabilities {
    Capabilities {
        protocol,
        region_bytes,
        pieces_max: PIECES_MAX,
        payload_bytes_max: OBJECT_BYTES_MAX.min(region_bytes),
        copies_on_caller: true,
        connections: 0,
    }
}
