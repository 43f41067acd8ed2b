//! Devices of `MemCache`: memory that a processor may or may not touch, and the engine that copies to and from it.
//!
//! A [`Device`] gives memory ([`Allocation`]), makes memory of others reachable for its engine ([`Reach`]), and opens
//! [`Queue`]s. A queue takes batches of copies, runs them in order beside the calling thread, and marks places in
//! that order with [`Event`]s that others wait for, each with a deadline.
//!
//! | implementation | memory | copies |
//! |---|---|---|
//! | [`host`] | the CPU touches it | by the calling thread, with the kernels of `memcache-memory` |
//! | [`twin`] | a private arena behind addresses that are no pointers | by its own engine, at the speed it is told |
//!
//! The twin stands for hardware that is not there: it moves real bytes, enforces limits and fails on demand. What
//! every implementation must do is written at [`Device`] and [`Queue`] and checked by the conformance suite of
//! `memcache-testkit`.
//!
//! How hardware fits (ADR 0007): a queue is a stream; [`Queue::submit`] is one `aclrtMemcpyBatchAsync` or
//! `cuMemcpyBatchAsync` a batch, or a loop of single asynchronous copies where the direction has no batch form
//! (Ascend: device to device); [`Queue::wait_for`] is `aclrtStreamWaitEvent` or `cuStreamWaitEvent`; [`Space::Pinned`]
//! is `aclrtMallocHost` or `cuMemHostAlloc`; [`Device::reach`] registers mapped host memory. Both bind a context to a
//! thread, so an implementation sets it at the start of each call.

pub mod address;
mod check;
pub mod device;
pub mod error;
pub mod host;
pub mod staging;
pub mod twin;

pub use address::{Copy, Direction, Space};
pub use device::{
    Allocation, Device, DeviceCapabilities, DeviceId, EXPORT_BYTES_MAX, Event, HostRange, Keep, Queue, Reach,
};
pub use error::DeviceError;
pub use host::HostDevice;
pub use staging::{StagingPool, StagingSet};
pub use twin::{TwinCost, TwinDevice, TwinFault, TwinOptions, TwinTime};
