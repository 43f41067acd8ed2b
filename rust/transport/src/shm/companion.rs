//! The thread that goes with a peer's mapped memory: makes it quick to use, and lets go of it when its owner is gone.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::mapped::MappedLink;

/// How often the thread looks whether the link is still wanted.
const LOOK: Duration = Duration::from_secs(1);

/// Starts the thread. It fills the page tables while the first transfers already run, then waits for the owner to
/// hang up and calls `when_gone`. It ends without a call when the link is dropped.
///
/// Without it a node that dies would keep its memory for as long as some process had once read it.
pub(crate) fn accompany(link: &Arc<MappedLink>, when_gone: impl FnOnce() + Send + 'static) {
    let link = Arc::downgrade(link);
    let spawned = thread::Builder::new().name("memcache-mapped".to_owned()).spawn(move || {
        warm(&link);
        while let Some(strong) = link.upgrade() {
            let Some((_, owner)) = strong.peer() else { return };
            let owner = owner.clone();
            drop(strong);
            if owner.wait_for_end(Instant::now() + LOOK) {
                return when_gone();
            }
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread to watch over a peer's memory: it is kept until it is looked for again");
    }
}

fn warm(link: &Weak<MappedLink>) {
    let mut next = Some(0);
    while let Some(offset) = next {
        let Some(link) = link.upgrade() else { return };
        next = link.peer().and_then(|(mapping, _)| mapping.warm(offset));
    }
}
