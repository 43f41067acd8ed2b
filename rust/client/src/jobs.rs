//! Threads that copy. A fixed number, started with the first job, for all transfers of a store.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::crowd::Crowd;
use crate::pace::Pace;
use crate::tasks::{Task, TaskSet};

/// Which queue a job stands in. The threads take from both in turn, so that neither waits for the other to run dry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Reads: an engine waits for them.
    Load = 0,
    /// Writes.
    Save = 1,
}

/// A fixed number of threads.
pub(crate) struct Workers {
    name: &'static str,
    threads: usize,
    process: u32,
    pace: Arc<Pace>,
    /// Whom they give way to; `None`: to nobody.
    crowd: Option<Arc<Crowd>>,
    shared: Arc<Shared>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A job was queued, or the workers stop.
    work: Condvar,
    /// A running job ended while the workers stop.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    queues: [VecDeque<Task>; 2],
    /// The queue to look at first.
    turn: usize,
    running: usize,
    stopping: bool,
}

impl Workers {
    /// Workers whose threads start with the first job.
    pub(crate) fn new(name: &'static str, threads: usize, crowd: Option<Crowd>) -> Self {
        let (pace, shared, handles) = (Arc::default(), Arc::default(), Mutex::default());
        Self { name, threads, process: std::process::id(), pace, crowd: crowd.map(Arc::new), shared, handles }
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// How fast each of them copies.
    pub(crate) fn pace(&self) -> &Arc<Pace> {
        &self.pace
    }

    /// Has up to `count` threads work on a set, besides whoever else does. Says whether at least one will, unless the
    /// workers stop first.
    pub(crate) fn help(&self, set: &Arc<TaskSet>, count: usize, kind: Kind) -> bool {
        if count == 0 || self.ensure_threads().is_err() {
            return false;
        }
        let mut state = self.shared.state.lock();
        if state.stopping {
            return false;
        }
        for _ in 0..count.min(self.threads) {
            let (set, crowd) = (Arc::clone(set), self.crowd.clone());
            state.queues[kind as usize].push_back(Box::new(move || match crowd {
                Some(crowd) => set.help(&crowd),
                None => set.work(),
            }));
        }
        drop(state);
        if count == 1 {
            self.shared.work.notify_one();
        } else {
            self.shared.work.notify_all();
        }
        true
    }

    /// Refuses new jobs, drops queued ones and waits for running ones until the deadline; says whether all ended.
    pub(crate) fn stop(&self, deadline: Instant) -> bool {
        let mut state = self.shared.state.lock();
        state.stopping = true;
        let dropped = std::mem::take(&mut state.queues);
        self.shared.work.notify_all();
        let inherited = self.process != std::process::id();
        while state.running > 0 && !inherited {
            if self.shared.idle.wait_until(&mut state, deadline).timed_out() {
                return false;
            }
        }
        drop(state);
        drop(dropped);
        if !inherited {
            // Every thread is between jobs and sees `stopping` next: the joins end at once.
            self.handles.lock().drain(..).for_each(|handle| drop(handle.join()));
        }
        true
    }

    fn ensure_threads(&self) -> std::io::Result<()> {
        let mut handles = self.handles.lock();
        while handles.len() < self.threads {
            let shared = Arc::clone(&self.shared);
            let name = format!("{}-{}", self.name, handles.len());
            handles.push(std::thread::Builder::new().name(name).spawn(move || shared.serve())?);
        }
        Ok(())
    }
}

impl State {
    fn next(&mut self) -> Option<Task> {
        let first = self.turn;
        self.turn = 1 - first;
        self.queues[first].pop_front().or_else(|| self.queues[1 - first].pop_front())
    }
}

impl Shared {
    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.next() {
                state.running += 1;
                drop(state);
                job();
                state = self.state.lock();
                state.running -= 1;
                if state.stopping {
                    self.idle.notify_all();
                }
            } else if state.stopping {
                return;
            } else {
                self.work.wait(&mut state);
            }
        }
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").field("name", &self.name).field("threads", &self.threads).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn helpers_run_what_the_caller_leaves() {
        let workers = Workers::new("test", 2, None);
        let count = Arc::new(AtomicUsize::new(0));
        for kind in [Kind::Load, Kind::Save].repeat(25) {
            let one = |_| {
                let count = Arc::clone(&count);
                Box::new(move || {
                    count.fetch_add(1, Ordering::Relaxed);
                }) as Task
            };
            let set = Arc::new(TaskSet::new((0..7).map(one).collect(), Vec::new(), Box::new(|| {})));
            assert!(workers.help(&set, 2, kind));
            assert!(set.wait_until(Some(soon())), "nobody ran the tasks");
        }
        assert_eq!(count.load(Ordering::Relaxed), 350);
        assert!(workers.stop(soon()));
    }

    #[test]
    fn stop_waits_for_the_running_job_and_ends_the_queued_ones() {
        let workers = Workers::new("test", 1, None);
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let (started, start) = std::sync::mpsc::channel::<()>();
        let slow = Box::new(move || {
            started.send(()).unwrap();
            gate.recv_timeout(Duration::from_secs(10)).unwrap();
        });
        let running = Arc::new(TaskSet::new(vec![slow], Vec::new(), Box::new(|| {})));
        assert!(workers.help(&running, 1, Kind::Save));
        start.recv_timeout(Duration::from_secs(10)).unwrap();
        let (told, ended) = std::sync::mpsc::channel::<()>();
        let queued =
            TaskSet::new(vec![Box::new(|| panic!("ran"))], Vec::new(), Box::new(move || told.send(()).unwrap()));
        assert!(workers.help(&Arc::new(queued), 1, Kind::Load));
        assert!(!workers.stop(Instant::now() + Duration::from_millis(5)));
        release.send(()).unwrap();
        assert!(workers.stop(soon()));
        ended.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(!workers.help(&running, 1, Kind::Save));
    }
}
