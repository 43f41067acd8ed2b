//! Memory that transfers go through: a few slots, taken and given back.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::address::Space;
use crate::device::{Allocation, Device, Keep};
use crate::error::DeviceError;

/// Sets of slots of one kind of memory. Bounded: whoever wants more waits for somebody to give back.
///
/// A set serves one transfer: two slots let both legs of it run at the same time. Memory is taken from the device
/// with the first use of each set and kept.
pub struct StagingPool {
    device: Arc<dyn Device>,
    space: Space,
    slot_bytes: u64,
    slots: usize,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    returned: Condvar,
    sets_max: usize,
}

#[derive(Default)]
struct State {
    idle: Vec<Allocation>,
    /// Sets that exist, idle or not.
    made: usize,
}

impl StagingPool {
    /// A pool of at most `sets_max` sets of `slots` slots of `slot_bytes` bytes, each a multiple of 64.
    pub fn new(device: Arc<dyn Device>, space: Space, slot_bytes: u64, slots: usize, sets_max: usize) -> Self {
        let shared = Shared { state: Mutex::default(), returned: Condvar::new(), sets_max: sets_max.max(1) };
        Self { device, space, slot_bytes: slot_bytes.next_multiple_of(64), slots, shared: Arc::new(shared) }
    }

    /// Length of a slot in bytes.
    pub fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// Slots of a set.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Sets that are in use now.
    pub fn in_use(&self) -> usize {
        let state = self.shared.state.lock();
        state.made - state.idle.len()
    }

    /// A set of slots for one transfer.
    ///
    /// # Errors
    /// [`DeviceError::Timeout`] if none comes back before the deadline, [`DeviceError::NoMemory`] if the device has
    /// no memory for the first of them.
    pub fn take(&self, deadline: Instant) -> Result<StagingSet, DeviceError> {
        let mut state = self.shared.state.lock();
        let memory = loop {
            if let Some(memory) = state.idle.pop() {
                break memory;
            }
            if state.made < self.shared.sets_max {
                match self.device.allocate(self.space, self.slot_bytes * self.slots as u64) {
                    Ok(memory) => {
                        state.made += 1;
                        break memory;
                    }
                    // Somebody else's set will do as well.
                    Err(error) if state.made == 0 => return Err(error),
                    Err(error) => tracing::debug!(%error, "waiting for staging instead of allocating more"),
                }
            }
            if self.shared.returned.wait_until(&mut state, deadline).timed_out() {
                return Err(DeviceError::Timeout { device: self.device.id().to_string() });
            }
        };
        drop(state);
        let home = Home { memory, shared: Arc::clone(&self.shared) };
        Ok(StagingSet { home: Arc::new(home), slot_bytes: self.slot_bytes, slots: self.slots })
    }
}

/// Brings the memory back when nobody uses it any more.
struct Home {
    memory: Allocation,
    shared: Arc<Shared>,
}

impl Drop for Home {
    fn drop(&mut self) {
        self.shared.state.lock().idle.push(self.memory.clone());
        self.shared.returned.notify_one();
    }
}

/// A set of slots; goes back to its pool when it and all copies that were given its [`keep`](Self::keep) are over.
pub struct StagingSet {
    home: Arc<Home>,
    slot_bytes: u64,
    slots: usize,
}

impl StagingSet {
    /// Address of the first byte of slot `index`, counted round.
    pub fn address(&self, index: usize) -> u64 {
        self.home.memory.address() + (index % self.slots) as u64 * self.slot_bytes
    }

    /// Length of each slot in bytes.
    pub fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// What holds the memory, to be given along with copies.
    pub fn keep(&self) -> Keep {
        Arc::clone(&self.home) as Keep
    }
}

impl fmt::Debug for StagingSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StagingSet({} x {} bytes of {:?})", self.slots, self.slot_bytes, self.home.memory)
    }
}

impl fmt::Debug for StagingPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StagingPool")
            .field("device", &self.device.id())
            .field("space", &self.space)
            .field("slot_bytes", &self.slot_bytes)
            .field("slots", &self.slots)
            .field("in_use", &self.in_use())
            .finish_non_exhaustive()
    }
}
