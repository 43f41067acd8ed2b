//! The tasks of one transfer: run once each, by whoever comes first, and what happens when all have ended.

use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// A piece of work. Each carries its own deadline and ends by it.
pub(crate) type Task = Box<dyn FnOnce() + Send>;

/// How long a caller that has nothing left to copy looks for the others to end before it sleeps: about one part.
/// Going to sleep and being woken takes longer than that on a virtual machine.
const SPIN: Duration = Duration::from_micros(50);

/// Tasks that belong together. `then` runs once, after the last of them, on the thread that ran it; also when the set
/// is dropped before all of them ran.
pub(crate) struct TaskSet {
    tasks: Vec<Mutex<Option<Task>>>,
    /// Tasks from here on are run by threads of their own; those before are for everybody who [works](Self::work).
    shared: usize,
    next: AtomicUsize,
    open: AtomicUsize,
    then: Mutex<Option<Task>>,
    has_ended: AtomicBool,
    ended: Mutex<()>,
    changed: Condvar,
}

impl TaskSet {
    pub(crate) fn new(shared: Vec<Task>, own: Vec<Task>, then: Task) -> Self {
        let count = shared.len();
        let tasks: Vec<_> = shared.into_iter().chain(own).map(|task| Mutex::new(Some(task))).collect();
        Self {
            shared: count,
            next: AtomicUsize::new(0),
            open: AtomicUsize::new(tasks.len()),
            then: Mutex::new(Some(then)),
            has_ended: AtomicBool::new(false),
            ended: Mutex::new(()),
            changed: Condvar::new(),
            tasks,
        }
    }

    /// Number of tasks for everybody.
    pub(crate) fn shared(&self) -> usize {
        self.shared
    }

    /// Runs tasks for everybody until all of them have begun.
    pub(crate) fn work(&self) {
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            if at >= self.shared {
                break;
            }
            self.run(at);
        }
        self.end_if_empty();
    }

    /// Runs whatever has not begun, also tasks that would have had a thread of their own.
    pub(crate) fn work_all(&self) {
        (0..self.tasks.len()).for_each(|at| self.run(at));
        self.end_if_empty();
    }

    /// Runs the task at this place, unless it has begun.
    pub(crate) fn run(&self, at: usize) {
        let Some(task) = self.tasks[at].lock().take() else { return };
        if catch_unwind(AssertUnwindSafe(task)).is_err() {
            tracing::error!("a copying task panicked; its objects count as not moved");
        }
        // What the other tasks have done is seen by whoever ends the set.
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.end();
        }
    }

    /// Waits until all tasks and `then` have ended; false if the deadline comes first.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>) -> bool {
        let spin_until = Instant::now() + SPIN;
        while !self.has_ended.load(Ordering::Acquire) {
            if Instant::now() < spin_until {
                spin_loop();
                continue;
            }
            let mut ended = self.ended.lock();
            if self.has_ended.load(Ordering::Acquire) {
                break;
            }
            match deadline {
                None => self.changed.wait(&mut ended),
                Some(deadline) if self.changed.wait_until(&mut ended, deadline).timed_out() => {
                    return self.has_ended.load(Ordering::Acquire);
                }
                Some(_) => {}
            }
        }
        true
    }

    fn end_if_empty(&self) {
        if self.tasks.is_empty() {
            self.end();
        }
    }

    fn end(&self) {
        let then = self.then.lock().take();
        if let Some(then) = then {
            then();
            let _ended = self.ended.lock();
            self.has_ended.store(true, Ordering::Release);
            self.changed.notify_all();
        }
    }
}

impl Drop for TaskSet {
    fn drop(&mut self) {
        self.tasks.clear();
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn counting(count: &Arc<AtomicUsize>, tasks: usize) -> Vec<Task> {
        let one = |_| {
            let count = Arc::clone(count);
            Box::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
            }) as Task
        };
        (0..tasks).map(one).collect()
    }

    #[test]
    fn every_task_runs_once_and_then_comes_last() {
        let (count, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let then = {
            let (count, seen) = (Arc::clone(&count), Arc::clone(&seen));
            Box::new(move || seen.store(count.load(Ordering::Relaxed), Ordering::Relaxed))
        };
        let set = TaskSet::new(counting(&count, 50), counting(&count, 7), then);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| set.work());
            }
            for own in 50..57 {
                let set = &set;
                scope.spawn(move || set.run(own));
            }
            set.work_all();
            assert!(set.wait_until(Some(Instant::now() + Duration::from_secs(10))));
        });
        assert_eq!((count.load(Ordering::Relaxed), seen.load(Ordering::Relaxed)), (57, 57));
    }

    #[test]
    fn then_runs_without_tasks_after_a_panic_and_for_a_dropped_set() {
        let count = Arc::new(AtomicUsize::new(0));
        let then = || counting(&count, 1).remove(0);
        TaskSet::new(Vec::new(), Vec::new(), then()).work();
        assert_eq!(count.load(Ordering::Relaxed), 1);
        TaskSet::new(vec![Box::new(|| panic!("a test panics on purpose"))], Vec::new(), then()).work();
        assert_eq!(count.load(Ordering::Relaxed), 2);
        drop(TaskSet::new(counting(&count, 5), Vec::new(), then()));
        assert_eq!(count.load(Ordering::Relaxed), 3);
    }
}
