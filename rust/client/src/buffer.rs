//! Local memory a transfer may touch: the one place where numbers become promises.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use memcache_device::{Device, Keep};
use memcache_types::ScatterList;

/// Pieces of local memory, one list an object, with whatever keeps them alive.
///
/// The owner is held until the last transfer that uses the buffers has ended, also when the caller has long
/// given up waiting.
#[derive(Clone)]
pub struct Buffers {
    lists: Vec<ScatterList>,
    owner: Arc<dyn Any + Send + Sync>,
    /// Whose addresses the pieces are; `None`: host memory.
    device: Option<Arc<dyn Device>>,
}

impl Buffers {
    /// Buffers over these pieces.
    ///
    /// # Safety
    ///
    /// While `owner` is alive, every piece must be mapped memory of this process that may be read, and written if
    /// the buffers are the destination of a get. Until the transfer ends nothing else may write to the pieces, and
    /// for a get nothing else may read them.
    pub unsafe fn new(lists: Vec<ScatterList>, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { lists, owner, device: None }
    }

    /// Buffers over pieces in the memory of a device. Memory the CPU may touch is host memory, whatever the device.
    ///
    /// # Safety
    ///
    /// As [`new`](Self::new), in the address space of the device.
    pub unsafe fn on_device(
        lists: Vec<ScatterList>,
        owner: Arc<dyn Any + Send + Sync>,
        device: Arc<dyn Device>,
    ) -> Self {
        let device = (!device.capabilities().cpu_touches).then_some(device);
        Self { lists, owner, device }
    }

    /// Buffers over memory that this value owns, one object a vector: the source of a put, never the destination
    /// of a get.
    pub fn from_owned(values: Vec<Vec<u8>>) -> Self {
        let lists = values.iter().map(|value| ScatterList::single(value.as_ptr() as u64, value.len() as u64)).collect();
        Self { lists, owner: Arc::new(values), device: None }
    }

    /// The piece lists, one an object.
    pub fn lists(&self) -> &[ScatterList] {
        &self.lists
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.lists.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// The device whose memory the pieces are, if it is not the host's.
    pub fn device(&self) -> Option<&Arc<dyn Device>> {
        self.device.as_ref()
    }

    /// What keeps the pieces alive.
    pub(crate) fn keep(&self) -> Keep {
        Arc::clone(&self.owner)
    }

    pub(crate) fn list(&self, index: usize) -> &ScatterList {
        &self.lists[index]
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffers({} objects)", self.lists.len())
    }
}
