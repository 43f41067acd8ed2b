//! The tasks of one transfer: run once each, by whoever comes first, and what happens when all have ended.

use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::crowd::Crowd;

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
    /// Threads that run tasks for everybody, or are about to.
    present: AtomicUsize,
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
            present: AtomicUsize::new(0),
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
        self.present.fetch_add(1, Ordering::Relaxed);
        while self.run_next() {}
        self.end_if_empty();
    }

    /// As [`work`](Self::work), but others come first: where threads wait for a processor while another works on the
    /// set, this one gives way, and rests as long as that is not enough.
    pub(crate) fn help(&self, crowd: &Crowd) {
        self.present.fetch_add(1, Ordering::Relaxed);
        // Who has just answered the caller may not be off its processor yet: at first what was seen last counts.
        let mut waits = crowd.waited();
        while !self.have_begun() {
            if waits && self.present.load(Ordering::Relaxed) > 1 {
                std::thread::yield_now();
                if crowd.waits_now() && self.leave() {
                    crowd.rest();
                    self.present.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            }
            self.run_next();
            waits = crowd.waits();
        }
        self.end_if_empty();
    }

    fn run_next(&self) -> bool {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        if at < self.shared {
            self.run(at);
        }
        at < self.shared
    }

    /// Whether all tasks for everybody have begun.
    fn have_begun(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.shared
    }

    /// Leaves the rest to the other threads that are present; false if there are none.
    fn leave(&self) -> bool {
        let others = |present: usize| (present > 1).then(|| present - 1);
        self.present.fetch_update(Ordering::Relaxed, Ordering::Relaxed, others).is_ok()
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
    use crate::stats::Stats;

    const LONG: Duration = Duration::from_secs(10);

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

    /// A machine on which threads always wait for a processor.
    fn crowd(stats: &Arc<Stats>) -> Crowd {
        let file = rustix::fs::memfd_create("loadavg", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::io::pwrite(&file, b"0.00 0.00 0.00 2/9 1\n", 0).unwrap();
        Crowd::of(Some(file.into()), 1, stats)
    }

    #[test]
    fn a_helper_rests_while_others_wait_and_another_works() {
        let (count, stats) = (Arc::new(AtomicUsize::new(0)), Arc::new(Stats::default()));
        let crowd = crowd(&stats);
        assert!(crowd.waits_now());
        let rests = || stats.copy_rests.load(Ordering::Relaxed);
        // Begins once the helper rests, so that only the helper could have run the others before.
        let mut tasks: Vec<Task> = counting(&count, 50);
        let (told, rested) = std::sync::mpsc::channel();
        let (go, gate) = std::sync::mpsc::channel();
        tasks.insert(
            0,
            Box::new(move || {
                told.send(()).unwrap();
                gate.recv_timeout(LONG).unwrap();
            }),
        );
        let set = TaskSet::new(tasks, Vec::new(), Box::new(|| {}));
        std::thread::scope(|scope| {
            scope.spawn(|| set.work());
            rested.recv_timeout(LONG).unwrap();
            scope.spawn(|| set.help(&crowd));
            let until = Instant::now() + LONG;
            while rests() < 3 && Instant::now() < until {
                std::thread::yield_now();
            }
            assert_eq!(count.load(Ordering::Relaxed), 0, "the helper worked");
            go.send(()).unwrap();
            assert!(set.wait_until(Some(until)));
        });
        assert_eq!(count.load(Ordering::Relaxed), 50);
        assert!(rests() >= 3);
    }

    #[test]
    fn helpers_without_a_caller_do_all_whoever_waits() {
        let (count, stats) = (Arc::new(AtomicUsize::new(0)), Arc::new(Stats::default()));
        let crowd = crowd(&stats);
        for helpers in 1..4 {
            let set = TaskSet::new(counting(&count, 50), Vec::new(), Box::new(|| {}));
            std::thread::scope(|scope| {
                (0..helpers).for_each(|_| drop(scope.spawn(|| set.help(&crowd))));
                assert!(set.wait_until(Some(Instant::now() + LONG)));
            });
        }
        assert_eq!(count.load(Ordering::Relaxed), 150);
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
