//! A twin's queue: a thread that moves the bytes of one batch after the other.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Inner;
use super::arena::Move;
use super::event::TwinEvent;
use crate::address::{Copy, Direction};
use crate::device::{DeviceId, Event, Keep, Queue};
use crate::error::DeviceError;

/// Bytes moved between two looks at whether to stop.
const CHUNK: usize = 1 << 20;
/// Between two looks at whether to stop, of a thread that waits.
const LOOK: Duration = Duration::from_millis(1);
/// How long a dropped queue waits for the copy that runs.
const DROP_WAIT: Duration = Duration::from_secs(2);

/// What becomes of one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TwinFault {
    /// Nothing: it is copied.
    Pass,
    /// Half of it is copied, then the engine reports an error.
    Fail,
    /// It does not end until it is cancelled.
    Stall,
    /// It does not end, and cancelling does not help, until [`unwedge`](super::TwinDevice::unwedge).
    Wedge,
}

/// Faults to come, shared by all queues of a device.
#[derive(Debug, Default)]
pub(super) struct Faults {
    script: Mutex<VecDeque<TwinFault>>,
    /// How often wedged batches were let go.
    unwedged: AtomicU64,
}

impl Faults {
    pub(super) fn add(&self, faults: impl IntoIterator<Item = TwinFault>) {
        self.script.lock().extend(faults);
    }

    pub(super) fn unwedge(&self) {
        self.unwedged.fetch_add(1, Ordering::Release);
    }
}

pub(super) struct TwinQueue {
    device: Arc<Inner>,
    shared: Arc<Shared>,
    /// When everything submitted so far is due.
    tail_ns: u64,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    device: DeviceId,
    state: Mutex<State>,
    changed: Condvar,
    /// Tells the thread to give up what it is doing.
    cancelling: AtomicBool,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    is_busy: bool,
    is_closed: bool,
    /// How often the queue was cancelled: what failed before that is over.
    cancels: u64,
}

enum Job {
    Batch { moves: Vec<Move>, fault: TwinFault, held: (Vec<Keep>, Keep) },
    Mark(Arc<TwinEvent>),
    Wait(Event),
}

impl TwinQueue {
    pub(super) fn open(device: Arc<Inner>) -> Result<Self, DeviceError> {
        let shared = Arc::new(Shared {
            device: device.id,
            state: Mutex::default(),
            changed: Condvar::new(),
            cancelling: AtomicBool::new(false),
        });
        let (theirs, inner) = (Arc::clone(&shared), Arc::clone(&device));
        let thread = std::thread::Builder::new()
            .name(format!("memcache-{}", device.id))
            .spawn(move || theirs.serve(&inner.faults))
            .map_err(|error| DeviceError::Lost { device: device.id.to_string(), why: error.to_string() })?;
        Ok(Self { device, shared, tail_ns: 0, thread: Some(thread) })
    }

    fn push(&self, job: Job) {
        self.shared.state.lock().jobs.push_back(job);
        self.shared.changed.notify_all();
    }
}

impl Queue for TwinQueue {
    unsafe fn submit(&mut self, direction: Direction, copies: &[Copy], keep: Keep) -> Result<(), DeviceError> {
        let (moves, held) = self.device.arena.resolve(&self.device.capabilities, direction, copies)?;
        let bytes = copies.iter().map(|copy| copy.bytes).sum();
        let cost = self.device.options.costs[direction as usize].time_ns(copies.len(), bytes);
        self.tail_ns = self.device.timeline.book(direction, copies.len(), self.tail_ns, cost);
        let fault = self.device.faults.script.lock().pop_front().unwrap_or(TwinFault::Pass);
        self.push(Job::Batch { moves, fault, held: (held, keep) });
        Ok(())
    }

    fn record(&mut self) -> Result<Event, DeviceError> {
        let event = TwinEvent::new(self.device.id, Arc::clone(&self.device.timeline), self.tail_ns);
        let event = Arc::new(event);
        self.push(Job::Mark(Arc::clone(&event)));
        Ok(Event::new(event))
    }

    fn wait_for(&mut self, event: &Event) -> Result<(), DeviceError> {
        let Some(twin) = event.source().as_any().downcast_ref::<TwinEvent>() else {
            return Err(DeviceError::Unsupported {
                device: self.device.id.to_string(),
                what: "waiting for another kind of device's event",
            });
        };
        self.tail_ns = self.tail_ns.max(twin.due_ns);
        self.push(Job::Wait(event.clone()));
        Ok(())
    }

    fn cancel(&mut self, deadline: Instant) -> Result<(), DeviceError> {
        let shared = &self.shared;
        let mut state = shared.state.lock();
        shared.cancelling.store(true, Ordering::Release);
        let dropped = std::mem::take(&mut state.jobs);
        shared.changed.notify_all();
        let mut stopped = true;
        while state.is_busy {
            if shared.changed.wait_until(&mut state, deadline).timed_out() {
                stopped = !state.is_busy;
                break;
            }
        }
        if stopped {
            shared.cancelling.store(false, Ordering::Release);
            state.cancels += 1;
        }
        drop(state);
        for job in dropped {
            if let Job::Mark(event) = job {
                event.resolve(Err(shared.cancelled()));
            }
        }
        self.device.timeline.call_off();
        self.tail_ns = self.device.timeline.now_ns();
        if stopped {
            return Ok(());
        }
        Err(DeviceError::Lost {
            device: shared.device.to_string(),
            why: "a copy did not stop when cancelled".to_owned(),
        })
    }
}

impl Drop for TwinQueue {
    fn drop(&mut self) {
        let ended = self.cancel(Instant::now() + DROP_WAIT);
        self.shared.state.lock().is_closed = true;
        self.shared.changed.notify_all();
        match (ended, self.thread.take()) {
            (Ok(()), Some(thread)) => drop(thread.join()),
            (Err(error), _) => tracing::error!(%error, "a queue is left behind"),
            (Ok(()), None) => {}
        }
    }
}

impl Shared {
    fn cancelled(&self) -> DeviceError {
        DeviceError::Cancelled { device: self.device.to_string() }
    }

    fn serve(&self, faults: &Faults) {
        let mut outcome: Result<(), DeviceError> = Ok(());
        let mut state = self.state.lock();
        let mut cancels = state.cancels;
        loop {
            if cancels != state.cancels {
                cancels = state.cancels;
                outcome = Ok(());
            }
            if let Some(job) = state.jobs.pop_front() {
                state.is_busy = true;
                drop(state);
                outcome = self.run(job, outcome, faults);
                state = self.state.lock();
                state.is_busy = false;
                if self.cancelling.load(Ordering::Acquire) {
                    self.changed.notify_all();
                }
            } else if state.is_closed {
                return;
            } else {
                self.changed.wait(&mut state);
            }
        }
    }

    fn run(&self, job: Job, before: Result<(), DeviceError>, faults: &Faults) -> Result<(), DeviceError> {
        match job {
            Job::Mark(event) => event.resolve(before.clone()),
            Job::Wait(event) => return before.and_then(|()| self.wait(&event)),
            Job::Batch { moves, fault, held } => {
                let outcome = before.and_then(|()| self.copy(&moves, &fault, faults));
                drop(held);
                return outcome;
            }
        }
        before
    }

    fn wait(&self, event: &Event) -> Result<(), DeviceError> {
        let Some(event) = event.source().as_any().downcast_ref::<TwinEvent>() else { return Ok(()) };
        loop {
            if let Some(outcome) = event.moved_within(LOOK) {
                return outcome;
            }
            if self.cancelling.load(Ordering::Acquire) {
                return Err(self.cancelled());
            }
        }
    }

    fn copy(&self, moves: &[Move], fault: &TwinFault, faults: &Faults) -> Result<(), DeviceError> {
        let count = if *fault == TwinFault::Fail { moves.len() / 2 } else { moves.len() };
        match fault {
            TwinFault::Stall => {
                while !self.cancelling.load(Ordering::Acquire) {
                    std::thread::sleep(LOOK);
                }
                return Err(self.cancelled());
            }
            TwinFault::Wedge => {
                let before = faults.unwedged.load(Ordering::Acquire);
                while faults.unwedged.load(Ordering::Acquire) == before {
                    std::thread::sleep(LOOK);
                }
            }
            TwinFault::Pass | TwinFault::Fail => {}
        }
        for one in &moves[..count] {
            for offset in (0..one.bytes()).step_by(CHUNK) {
                if self.cancelling.load(Ordering::Acquire) {
                    return Err(self.cancelled());
                }
                // SAFETY: the batch holds what `resolve` and the submitter gave it; the rest is `submit`'s contract.
                unsafe { one.part(offset, CHUNK).run() }
            }
        }
        if *fault == TwinFault::Fail {
            let why = format!("injected after {count} of {} copies", moves.len());
            return Err(DeviceError::Failed { device: self.device.to_string(), why });
        }
        Ok(())
    }
}

impl fmt::Debug for TwinQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TwinQueue")
            .field("device", &self.device.id)
            .field("waiting", &self.shared.state.lock().jobs.len())
            .finish_non_exhaustive()
    }
}
