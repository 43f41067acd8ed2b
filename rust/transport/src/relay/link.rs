//! A link to a region whose owner relays: any other link, with the way to the relay.

use std::sync::Arc;
use std::time::Instant;

use memcache_memory::RawRegion;
use memcache_types::limits::TRAILER_LEN;

use super::RelayClient;
use crate::capabilities::Capabilities;
use crate::error::TransportError;
use crate::link::Link;
use crate::ops::{ReadOp, SummedWriteOp, WriteOp};
use crate::parts::Parts;
use crate::protocol::Protocol;

#[derive(Debug)]
pub(crate) struct RelayedLink {
    pub(crate) link: Arc<dyn Link>,
    pub(crate) relay: Arc<RelayClient>,
}

impl Link for RelayedLink {
    fn protocol(&self) -> Protocol {
        self.link.protocol()
    }

    fn capabilities(&self) -> &Capabilities {
        self.link.capabilities()
    }

    unsafe fn read(&self, ops: &[ReadOp<'_>], deadline: Instant) -> Vec<Result<[u8; TRAILER_LEN], TransportError>> {
        // SAFETY: the same contract.
        unsafe { self.link.read(ops, deadline) }
    }

    unsafe fn write(&self, ops: &[WriteOp<'_>], deadline: Instant) -> Vec<Result<(), TransportError>> {
        // SAFETY: the same contract.
        unsafe { self.link.write(ops, deadline) }
    }

    unsafe fn read_summed(
        &self,
        ops: &[ReadOp<'_>],
        deadline: Instant,
    ) -> Vec<Result<([u8; TRAILER_LEN], u32), TransportError>> {
        // SAFETY: the same contract.
        unsafe { self.link.read_summed(ops, deadline) }
    }

    unsafe fn write_summed(&self, ops: &[SummedWriteOp<'_>], deadline: Instant) -> Vec<Result<(), TransportError>> {
        // SAFETY: the same contract.
        unsafe { self.link.write_summed(ops, deadline) }
    }

    fn parts(&self) -> Option<&dyn Parts> {
        self.link.parts()
    }

    fn region(&self) -> Option<RawRegion<'_>> {
        self.link.region()
    }

    fn relay(&self) -> Option<&Arc<RelayClient>> {
        Some(&self.relay)
    }

    fn is_open(&self) -> bool {
        self.link.is_open()
    }
}
