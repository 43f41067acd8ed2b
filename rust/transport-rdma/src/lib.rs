//! RDMA for `MemCache`: one-sided reads and writes of a peer's memory over verbs. Verbs stop here.
//!
//! `libibverbs` is opened at run time; where it or a device is missing, [`RdmaRoad`] says what was searched, and
//! everything else works on. See `docs/adr/0008-verbs-at-run-time.md`.
//!
//! ```text
//!  road      what a Fabric and the RegionServers are given; opens the device when first needed
//!  link      the connections to one region, one call on each          door     the owner's side, one thread
//!  lane      one connection and the batch on it: payload, then trailer
//!  plan      pieces -> work requests (plain arithmetic)               ranges   local memory that stays registered
//!  control   agreeing on a connection (handshake: the messages)
//!  queue     queue pair, completion queue, sleep                      failure  what a bad completion means
//!  device    devices, ports, limits    gid   addresses                memory   registrations
//!  library   opening libibverbs        abi   its layouts
//! ```

mod abi;
mod control;
mod device;
mod door;
mod failure;
mod gid;
mod handshake;
mod lane;
mod library;
mod link;
mod memory;
mod plan;
mod queue;
mod random;
mod ranges;
mod road;

pub use road::{RdmaOptions, RdmaRoad, WorkRequests};
