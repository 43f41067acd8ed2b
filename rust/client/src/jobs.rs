//! Threads that do the work of calls: copying for one call in parallel, and whole calls nobody waits for.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads with one bounded queue.
pub(crate) struct Workers {
    name: &'static str,
    threads: usize,
    queue_max: usize,
    process: u32,
    shared: Arc<Shared>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    running: usize,
    stopping: bool,
}

impl Workers {
    /// Workers whose threads start with the first job.
    pub(crate) fn new(name: &'static str, threads: usize, queue_max: usize) -> Self {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        Self { name, threads, queue_max, process: std::process::id(), shared, handles: Mutex::default() }
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Queues a job; gives it back when the queue is full or the workers stop.
    pub(crate) fn submit(&self, job: Job) -> Result<(), Job> {
        if self.ensure_threads().is_err() {
            return Err(job);
        }
        let mut state = self.shared.state.lock();
        if state.stopping || state.queue.len() >= self.queue_max {
            return Err(job);
        }
        state.queue.push_back(job);
        drop(state);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Runs all tasks, on this thread and as many workers as are free, and returns when every one has ended.
    pub(crate) fn run_all(&self, tasks: Vec<Job>) {
        let others = tasks.len().min(self.threads).saturating_sub(1);
        if others == 0 {
            for task in tasks {
                task();
            }
            return;
        }
        let open = tasks.len();
        let set = Arc::new(TaskSet { state: Mutex::new((tasks.into(), open)), done: Condvar::new() });
        for _ in 0..others {
            let helper = Arc::clone(&set);
            if self.submit(Box::new(move || helper.work())).is_err() {
                break; // busy: this thread does what is left
            }
        }
        set.work();
        set.wait();
    }

    /// Refuses new jobs, drops queued ones and waits for running ones until the deadline; says whether all ended.
    pub(crate) fn stop(&self, deadline: Instant) -> bool {
        let mut state = self.shared.state.lock();
        state.stopping = true;
        let dropped = std::mem::take(&mut state.queue);
        self.shared.changed.notify_all();
        let inherited = self.process != std::process::id();
        while state.running > 0 && !inherited {
            if self.shared.changed.wait_until(&mut state, deadline).timed_out() {
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

impl Shared {
    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                state.running += 1;
                drop(state);
                job();
                state = self.state.lock();
                state.running -= 1;
                if state.stopping {
                    self.changed.notify_all();
                }
            } else if state.stopping {
                return;
            } else {
                self.changed.wait(&mut state);
            }
        }
    }
}

/// The tasks of one call and how many have not ended.
struct TaskSet {
    state: Mutex<(VecDeque<Job>, usize)>,
    done: Condvar,
}

impl TaskSet {
    fn work(&self) {
        loop {
            let task = self.state.lock().0.pop_front();
            let Some(task) = task else { return };
            task();
            let mut state = self.state.lock();
            state.1 -= 1;
            if state.1 == 0 {
                self.done.notify_all();
            }
        }
    }

    /// Every task carries its own deadline, so this ends.
    fn wait(&self) {
        let mut state = self.state.lock();
        while state.1 > 0 {
            self.done.wait(&mut state);
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

    #[test]
    fn every_task_of_a_call_runs_once_even_when_workers_are_busy() {
        let workers = Workers::new("test", 2, 4);
        let count = Arc::new(AtomicUsize::new(0));
        for _ in 0..50 {
            let tasks = (0..7)
                .map(|_| {
                    let count = Arc::clone(&count);
                    Box::new(move || {
                        count.fetch_add(1, Ordering::Relaxed);
                    }) as Job
                })
                .collect();
            workers.run_all(tasks);
        }
        assert_eq!(count.load(Ordering::Relaxed), 350);
        assert!(workers.stop(Instant::now() + Duration::from_secs(10)));
    }

    #[test]
    fn a_full_queue_gives_the_job_back_and_stop_waits_for_the_running_one() {
        let workers = Workers::new("test", 1, 1);
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let (started, start) = std::sync::mpsc::channel::<()>();
        assert!(
            workers
                .submit(Box::new(move || {
                    started.send(()).unwrap();
                    gate.recv_timeout(Duration::from_secs(10)).unwrap();
                }))
                .is_ok()
        );
        start.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(workers.submit(Box::new(|| {})).is_ok());
        assert!(workers.submit(Box::new(|| {})).is_err());
        assert!(!workers.stop(Instant::now() + Duration::from_millis(5)));
        release.send(()).unwrap();
        assert!(workers.stop(Instant::now() + Duration::from_secs(10)));
        assert!(workers.submit(Box::new(|| {})).is_err());
    }
}
