//! What this client has done, counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use memcache_transport::plan::Path;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one store, from its opening on.
        #[derive(Debug, Default)]
        pub(crate) struct Stats { $(pub(crate) $name: AtomicU64,)* }

        /// Counters at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct StatsSnapshot { $($(#[$doc])* pub $name: u64,)* }

        impl Stats {
            pub(crate) fn snapshot(&self) -> StatsSnapshot {
                StatsSnapshot { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl StatsSnapshot {
            /// Name and value of every counter.
            pub fn entries(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counters! {
    /// Objects stored.
    put_objects,
    /// Payload bytes stored.
    put_bytes,
    /// Objects that were there already.
    put_present,
    /// Objects that could not be stored, for whatever reason.
    put_failures,
    /// Objects whose put was cancelled.
    put_cancelled,
    /// Nanoseconds spent in puts, summed over calls.
    put_ns,
    /// Nanoseconds of them spent waiting for the book to grant space.
    put_reserve_ns,
    /// Nanoseconds of them spent moving bytes.
    put_move_ns,
    /// Nanoseconds of them spent waiting for the book to make objects readable.
    put_seal_ns,
    /// Objects read.
    get_objects,
    /// Payload bytes read.
    get_bytes,
    /// Keys that were not there.
    get_misses,
    /// Keys whose read failed, for whatever reason.
    get_failures,
    /// Reads whose trailer or checksum did not match.
    get_corrupt,
    /// Keys read from another replica after the nearest one failed.
    get_fallbacks,
    /// Keys whose get was cancelled.
    get_cancelled,
    /// Nanoseconds spent in gets, summed over calls.
    get_ns,
    /// Nanoseconds of them spent waiting for the book to say where objects are.
    get_locate_ns,
    /// Nanoseconds of them spent moving bytes, and checking them where that happens in the same pass.
    get_move_ns,
    /// Times a thread that helps to copy rested for 200 us because others waited for a processor.
    copy_rests,
    /// Questions that move no payload: lookups, removals, pins, what the state is.
    lookups,
    /// Of these, those that failed or timed out.
    lookup_failures,
    /// Payload bytes moved inside this process.
    local_bytes,
    /// Payload bytes moved through shared memory.
    host_shm_bytes,
    /// Payload bytes moved through RDMA.
    host_rdma_bytes,
    /// Payload bytes moved through TCP.
    host_tcp_bytes,
    /// Of these, payload bytes moved to or from a device over the host and its staging.
    path0_bytes,
    /// Payload bytes relayed by their owner's device.
    path1_bytes,
    /// Payload bytes moved through staging at their destination.
    path2_bytes,
    /// Payload bytes that a device moved straight between region and pieces.
    path3_bytes,
}

impl Stats {
    /// The counter of a path.
    pub(crate) fn path_bytes(&self, path: Path) -> &AtomicU64 {
        match path {
            Path::Host => &self.path0_bytes,
            Path::Relay => &self.path1_bytes,
            Path::Staged => &self.path2_bytes,
            Path::Direct => &self.path3_bytes,
        }
    }
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

/// Adds the time since `started` to a counter of nanoseconds.
pub(crate) fn add_time(counter: &AtomicU64, started: Instant) {
    add(counter, u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
}
