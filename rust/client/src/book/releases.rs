//! Leases to let go of: they go along with the next request instead of one by one.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

/// How long a lease may wait for a request to go along with.
const WAIT: Duration = Duration::from_millis(2);

/// How many times in a row nothing was waiting before the watch ends.
const WATCHES: u32 = 50;

/// Most leases in one message.
const LEASES_MAX: usize = 1024;

#[derive(Default)]
pub(super) struct Releases {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    leases: Vec<u64>,
    /// Somebody looks after leases that nothing takes along.
    is_watched: bool,
}

impl Releases {
    /// Adds a lease.
    pub(super) fn add(&self, lease: u64) {
        let mut state = self.state.lock();
        state.leases.push(lease);
        if !std::mem::replace(&mut state.is_watched, true) {
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Leases for one message.
    pub(super) fn take(&self) -> Vec<u64> {
        let mut state = self.state.lock();
        if state.leases.len() <= LEASES_MAX {
            return std::mem::take(&mut state.leases);
        }
        let rest = state.leases.split_off(LEASES_MAX);
        std::mem::replace(&mut state.leases, rest)
    }

    /// Sends what nothing took along in time, until there was nothing for a while; then waits for the next lease.
    pub(super) async fn watch(&self, mut send: impl FnMut(Vec<u64>)) {
        self.wake.notified().await;
        let mut quiet = 0;
        loop {
            sleep(WAIT).await;
            let leases = self.take();
            if leases.is_empty() {
                quiet += 1;
            } else {
                quiet = 0;
                send(leases);
            }
            let mut state = self.state.lock();
            if quiet >= WATCHES && state.leases.is_empty() {
                state.is_watched = false;
                return;
            }
        }
    }
}
