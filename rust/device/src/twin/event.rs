//! A place in a twin's queue.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::time::Timeline;
use crate::device::{DeviceId, EventSource};
use crate::error::DeviceError;

#[derive(Debug)]
pub(super) struct TwinEvent {
    device: DeviceId,
    timeline: Arc<Timeline>,
    /// When everything before it is due.
    pub(super) due_ns: u64,
    /// `None` until the bytes before it have moved.
    outcome: Mutex<Option<Result<(), DeviceError>>>,
    resolved: Condvar,
}

impl TwinEvent {
    pub(super) fn new(device: DeviceId, timeline: Arc<Timeline>, due_ns: u64) -> Self {
        Self { device, timeline, due_ns, outcome: Mutex::new(None), resolved: Condvar::new() }
    }

    pub(super) fn resolve(&self, outcome: Result<(), DeviceError>) {
        let mut state = self.outcome.lock();
        if state.is_none() {
            *state = Some(outcome);
            self.resolved.notify_all();
        }
    }

    /// Waits a moment for the bytes, whatever the time; `None` if they are not there yet.
    pub(super) fn moved_within(&self, wait: Duration) -> Option<Result<(), DeviceError>> {
        let mut state = self.outcome.lock();
        if state.is_none() {
            self.resolved.wait_for(&mut state, wait);
        }
        state.clone()
    }
}

impl EventSource for TwinEvent {
    fn wait(&self, deadline: Instant) -> Result<(), DeviceError> {
        let timeout = || DeviceError::Timeout { device: self.device.to_string() };
        let mut state = self.outcome.lock();
        while state.is_none() {
            if self.resolved.wait_until(&mut state, deadline).timed_out() && state.is_none() {
                return Err(timeout());
            }
        }
        let outcome = state.clone();
        drop(state);
        match outcome {
            Some(Err(error)) => Err(error),
            _ if self.timeline.wait_until(self.due_ns, deadline) => Ok(()),
            _ => Err(timeout()),
        }
    }

    fn is_done(&self) -> bool {
        let outcome = self.outcome.lock();
        match &*outcome {
            None => false,
            Some(Err(_)) => true,
            Some(Ok(())) => self.timeline.is_due(self.due_ns),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
