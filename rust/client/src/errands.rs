//! Threads for calls that wait: for a peer to answer, for a connection to open.
//!
//! Calls to one peer form a queue, and a queue has a few threads at most: a peer that is slow or dead delays the calls
//! of its own queue and no others.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_types::SegmentId;
use parking_lot::{Condvar, Mutex};

use crate::tasks::Task;

/// Calls of one queue that run at the same time: enough that small ones do not wait for each other's round trips.
const QUEUE_THREADS_MAX: usize = 4;

/// Threads of all errands together. They exist only while there are calls for them.
const THREADS_MAX: usize = 128;

/// A thread without a call ends after this.
const IDLE: Duration = Duration::from_secs(5);

/// What the calls of a queue wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Whom {
    /// A way to this segment.
    Open(SegmentId),
    /// Reads over the link at this address.
    Read(usize),
    /// Writes over the link at this address.
    Write(usize),
}

/// Calls by queue, and the threads that make them.
pub(crate) struct Errands {
    process: u32,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A queue became ready, or the errands stop.
    work: Condvar,
    /// A thread ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    errands: HashMap<Whom, Queue>,
    /// Errands with a call that may start, once for each such call.
    ready: VecDeque<Whom>,
    threads: usize,
    idle: usize,
    stopping: bool,
}

#[derive(Default)]
struct Queue {
    calls: VecDeque<Task>,
    /// Entries of `ready`: as many calls of the queue may start.
    announced: usize,
    running: usize,
}

impl Errands {
    pub(crate) fn new() -> Self {
        Self { process: std::process::id(), shared: Arc::default() }
    }

    /// Queues a call; gives it back when no thread can be had or the errands stop.
    pub(crate) fn submit(&self, queue: Whom, call: Task) -> Result<(), Task> {
        let mut state = self.shared.state.lock();
        if state.stopping {
            return Err(call);
        }
        let entry = state.errands.get(&queue);
        let may_start = entry.is_none_or(|entry| entry.announced + entry.running < QUEUE_THREADS_MAX);
        if may_start && state.idle <= state.ready.len() && state.threads < THREADS_MAX {
            let shared = Arc::clone(&self.shared);
            match std::thread::Builder::new().name("memcache-errand".to_owned()).spawn(move || shared.serve()) {
                Ok(_) => state.threads += 1,
                Err(_) if state.threads == 0 => return Err(call),
                Err(_) => {} // those there are will come to it
            }
        }
        let entry = state.errands.entry(queue).or_default();
        entry.calls.push_back(call);
        if may_start {
            entry.announced += 1;
            state.ready.push_back(queue);
            self.shared.work.notify_one();
        }
        Ok(())
    }

    /// Refuses new calls, drops queued ones and waits for running ones until the deadline; says whether all ended.
    pub(crate) fn stop(&self, deadline: Instant) -> bool {
        let mut state = self.shared.state.lock();
        state.stopping = true;
        let dropped = std::mem::take(&mut state.errands);
        state.ready.clear();
        self.shared.work.notify_all();
        let inherited = self.process != std::process::id();
        while state.threads > 0 && !inherited {
            if self.shared.ended.wait_until(&mut state, deadline).timed_out() {
                return false;
            }
        }
        drop(state);
        drop(dropped);
        true
    }
}

impl Shared {
    fn serve(&self) {
        let mut state = self.state.lock();
        while !state.stopping {
            let Some(queue) = state.ready.pop_front() else {
                state.idle += 1;
                let timed_out = self.work.wait_for(&mut state, IDLE).timed_out();
                state.idle -= 1;
                if timed_out && state.ready.is_empty() {
                    break;
                }
                continue;
            };
            let Some(call) = state.errands.get_mut(&queue).and_then(Queue::start) else { continue };
            drop(state);
            call();
            state = self.state.lock();
            state.end_of_call(queue);
        }
        state.threads -= 1;
        self.ended.notify_all();
    }
}

impl Queue {
    fn start(&mut self) -> Option<Task> {
        self.announced -= 1;
        self.running += 1;
        self.calls.pop_front()
    }
}

impl State {
    fn end_of_call(&mut self, queue: Whom) {
        let Some(entry) = self.errands.get_mut(&queue) else { return }; // stopped meanwhile
        entry.running -= 1;
        if entry.calls.len() > entry.announced {
            entry.announced += 1;
            self.ready.push_back(queue);
        } else if entry.calls.is_empty() && entry.running == 0 {
            self.errands.remove(&queue);
        }
    }
}

impl fmt::Debug for Errands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        write!(f, "Errands({} with calls, {} threads)", state.errands.len(), state.threads)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    /// Calls that wait on a gate, as many as a queue lets run and some more.
    fn block(errands: &Errands, queue: Whom, count: usize) -> (Vec<std::sync::mpsc::Sender<()>>, Receiver<usize>) {
        let (told, ended) = channel();
        let gates = (0..count)
            .map(|at| {
                let (open, gate) = channel::<()>();
                let told = told.clone();
                let call = Box::new(move || {
                    gate.recv_timeout(LONG).unwrap();
                    told.send(at).unwrap();
                });
                assert!(errands.submit(queue, call).is_ok());
                open
            })
            .collect();
        (gates, ended)
    }

    #[test]
    fn a_lane_that_is_stuck_delays_no_other() {
        let errands = Errands::new();
        let (gates, ended) = block(&errands, Whom::Read(1), 10);
        for round in 0..100 {
            let (told, done) = channel();
            assert!(errands.submit(Whom::Read(2 + round % 3), Box::new(move || told.send(()).unwrap())).is_ok());
            done.recv_timeout(LONG).expect("a call of another queue waited");
        }
        // A thread that is between two calls does not count as idle yet, so there may be a few more than needed.
        assert!(errands.shared.state.lock().threads < 30, "a thread for each call");
        for gate in &gates {
            gate.send(()).unwrap();
        }
        let mut all: Vec<usize> = (0..10).map(|_| ended.recv_timeout(LONG).unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
        assert!(errands.stop(Instant::now() + LONG));
        assert!(errands.shared.state.lock().errands.is_empty());
        assert!(errands.submit(Whom::Read(1), Box::new(|| {})).is_err());
    }

    #[test]
    fn stop_says_whether_calls_still_run() {
        let errands = Errands::new();
        let (gates, ended) = block(&errands, Whom::Write(1), 1);
        while !errands.shared.state.lock().ready.is_empty() {
            std::thread::yield_now();
        }
        assert!(!errands.stop(Instant::now() + Duration::from_millis(5)));
        gates[0].send(()).unwrap();
        ended.recv_timeout(LONG).unwrap();
        assert!(errands.stop(Instant::now() + LONG));
    }
}
