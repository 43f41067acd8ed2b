//! The roads of `MemCache`: moving bytes between local pieces and memory that another process lends.
//!
//! A node serves its segment with a [`RegionServer`] and publishes the server's [`RegionDescriptor`]. Another
//! process gives that descriptor to its [`Fabric`] and gets a [`Link`]: one-sided reads and writes of extents,
//! over whichever road reaches the memory.
//!
//! | protocol | when | how |
//! |---|---|---|
//! | [`Protocol::Local`] | the segment belongs to this process | copies |
//! | [`Protocol::HostShm`] | owner and reader share a host | the owner hands out its memfd once, then copies |
//! | [`Protocol::HostRdma`] | anywhere with RDMA devices | a [`Road`] that a crate above brings |
//! | [`Protocol::HostTcp`] | anywhere | frames over TCP, straight between socket and memory on both sides |
//!
//! What all of them promise is written at [`Link`] and checked by one conformance suite in `memcache-testkit`.

pub mod capabilities;
pub mod descriptor;
pub mod error;
pub mod fabric;
pub mod fault;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod host;
pub mod link;
mod mapped;
mod net;
pub mod ops;
pub mod parts;
pub mod plan;
pub mod protocol;
pub mod relay;
pub mod road;
pub mod server;
mod shm;
mod tcp;

pub use capabilities::Capabilities;
pub use descriptor::{DescriptorError, RegionDescriptor};
pub use error::TransportError;
pub use fabric::{Fabric, FabricOptions};
pub use fault::{Fault, FaultLink};
pub use host::HostId;
pub use link::Link;
pub use ops::{ReadOp, SummedWriteOp, WriteOp};
pub use parts::Parts;
pub use protocol::{Protocol, ProtocolChoice, UnknownProtocol};
pub use relay::{
    Fetched, RELAY_RUNS_MAX, RelayCall, RelayClient, RelayHost, RelayLease, RelayOffer, RelayRefusal, RelayReply,
    RelayRequest, RelayRun, RelayStep,
};
pub use road::{Door, Road};
pub use server::{RegionServer, ServerOptions};
