//! The one tokio runtime of a process's clients: control messages only, never payload.

use std::sync::OnceLock;

use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};

/// Runtime of this process and the process it was made in.
static RUNTIME: OnceLock<Mutex<Option<(u32, &'static Runtime)>>> = OnceLock::new();

/// A handle to the runtime, started on first use.
///
/// A child that forked after the first use gets a runtime of its own: the threads of the parent's did not come along.
pub(crate) fn handle() -> Result<Handle, std::io::Error> {
    let mut slot = RUNTIME.get_or_init(|| Mutex::new(None)).lock();
    let process = std::process::id();
    if let Some((owner, runtime)) = *slot
        && owner == process
    {
        return Ok(runtime.handle().clone());
    }
    let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("memcache-control").enable_all().build()?;
    // Leaked on purpose: the runtime lives as long as the process, and dropping the copy a fork left behind would
    // wait for threads that do not exist.
    let runtime: &'static Runtime = Box::leak(Box::new(runtime));
    *slot = Some((process, runtime));
    Ok(runtime.handle().clone())
}
