//! Puts and gets under way that no thread waits for.
//!
//! A flight first asks the book, then moves bytes, and a put then tells the book. Each step is started by the end of
//! the one before it: by the book's answer, by the last task of the transfer. What can be stopped at which step, and who
//! gives back what, is decided in one place, under the lock of [`Flight::state`].

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use memcache_types::KeyBatch;
use parking_lot::{Condvar, Mutex};

use crate::buffer::Buffers;
use crate::completion::{Cancel, Completion, Resolver, completion};
use crate::error::StoreError;
use crate::lookup::Shared;
use crate::tasks::TaskSet;

/// Most puts and gets of one store that may be under way without a waiting caller.
pub(crate) const FLIGHTS_MAX: usize = 8192;

/// What a call was given.
pub(crate) struct Request {
    pub(crate) keys: KeyBatch,
    pub(crate) buffers: Buffers,
}

/// All flights of a store.
#[derive(Default)]
pub(crate) struct Flights {
    state: Mutex<Open>,
    /// The last flight has ended.
    none_left: Condvar,
}

#[derive(Default)]
struct Open {
    next: u64,
    by_id: HashMap<u64, Weak<dyn Halt>>,
}

/// How a closing store ends flights.
trait Halt: Send + Sync {
    /// Resolves a flight that has not begun to move bytes; leaves others alone.
    fn ground(&self);

    /// Has a flight begin no further task.
    fn halt(&self);
}

/// One put or get.
pub(crate) struct Flight<T: Clone + Send + Sync + 'static> {
    id: u64,
    process: u32,
    flights: Arc<Flights>,
    state: Mutex<State>,
    /// Set to have no further task begin.
    pub(crate) stop: Arc<AtomicBool>,
    resolver: Mutex<Option<Resolver<Shared<T>>>>,
    /// The results of a flight that was cancelled before it moved anything, and of one that the store ended.
    cancelled: T,
    refused: T,
}

enum State {
    /// No byte has moved; whoever takes the request decides what comes next.
    Asking(Request),
    /// Tasks move bytes, or have moved them.
    Moving(Weak<TaskSet>),
    /// The caller's memory is not touched any more.
    Landed,
}

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    /// Registers a flight; the completion resolves in every case, also when the flight is dropped.
    pub(crate) fn start(
        flights: &Arc<Flights>,
        request: Request,
        cancelled: T,
        refused: T,
    ) -> Result<(Arc<Self>, Completion<Shared<T>>), StoreError> {
        let (resolver, done) = completion();
        let mut open = flights.state.lock();
        if open.by_id.len() >= FLIGHTS_MAX {
            return Err(StoreError::Busy { in_flight: open.by_id.len(), limit: FLIGHTS_MAX });
        }
        let id = open.next;
        open.next += 1;
        let flight = Arc::new(Self {
            id,
            process: std::process::id(),
            flights: Arc::clone(flights),
            state: Mutex::new(State::Asking(request)),
            stop: Arc::default(),
            resolver: Mutex::new(Some(resolver)),
            cancelled,
            refused,
        });
        let halt: Weak<dyn Halt> = Arc::downgrade(&flight) as Weak<dyn Halt>;
        open.by_id.insert(id, halt);
        drop(open);
        // Weak: when whatever works for the flight lets go of it, it ends, whoever still watches.
        let operation: Weak<dyn Cancel> = Arc::downgrade(&flight) as Weak<dyn Cancel>;
        Ok((flight, done.of_operation(operation)))
    }

    /// Whether the flight was ended before it moved anything.
    pub(crate) fn is_over(&self) -> bool {
        !matches!(*self.state.lock(), State::Asking(_))
    }

    /// Looks at the request while no byte has moved.
    pub(crate) fn with_request<R>(&self, look: impl FnOnce(&Request) -> R) -> Option<R> {
        match &*self.state.lock() {
            State::Asking(request) => Some(look(request)),
            _ => None,
        }
    }

    /// Begins to move bytes, unless the flight is over. `begin` must not wait.
    pub(crate) fn take_off(&self, begin: impl FnOnce(Request) -> Arc<TaskSet>) {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Landed) {
            State::Asking(request) => {
                let set = begin(request);
                *state = State::Moving(Arc::downgrade(&set));
                drop(state);
                drop(set);
            }
            over => *state = over,
        }
    }

    /// Goes on with another set of tasks, from within the end of the one before. False where the flight was cancelled:
    /// `begin` was not called, and the end is the end. `begin` must not wait.
    pub(crate) fn go_on(&self, begin: impl FnOnce() -> Arc<TaskSet>) -> bool {
        let mut state = self.state.lock();
        if self.stop.load(Ordering::Acquire) {
            return false;
        }
        let set = begin();
        *state = State::Moving(Arc::downgrade(&set));
        drop(state);
        drop(set);
        true
    }

    /// Ends the flight with this result; the first one counts.
    pub(crate) fn resolve(&self, result: Result<T, StoreError>) {
        let Some(resolver) = self.resolver.lock().take() else { return };
        self.flights.remove(self.id);
        resolver.resolve(Arc::new(result));
    }

    /// Ends a flight that has not begun to move bytes with this result. For one that has, returns its tasks.
    pub(crate) fn end_early(&self, result: Result<T, StoreError>) -> Option<Weak<TaskSet>> {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Landed) {
            State::Asking(request) => {
                drop(state);
                drop(request);
                self.resolve(result);
                None
            }
            State::Moving(set) => {
                *state = State::Moving(Weak::clone(&set));
                Some(set)
            }
            State::Landed => None,
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Cancel for Flight<T> {
    fn cancel(&self, deadline: Instant) -> Result<bool, StoreError> {
        if self.process != std::process::id() {
            return Err(StoreError::Forked { opened: self.process, used: std::process::id() });
        }
        self.stop.store(true, Ordering::Release);
        let Some(set) = self.end_early(Ok(self.cancelled.clone())).and_then(|set| set.upgrade()) else {
            return Ok(true);
        };
        // What has not begun ends at once, here; what runs is waited for.
        set.work_all();
        Ok(set.wait_until(Some(deadline)))
    }
}

impl<T: Clone + Send + Sync + 'static> Halt for Flight<T> {
    fn ground(&self) {
        self.end_early(Ok(self.refused.clone()));
    }

    fn halt(&self) {
        self.stop.store(true, Ordering::Release);
    }
}

impl<T: Clone + Send + Sync + 'static> Drop for Flight<T> {
    fn drop(&mut self) {
        // Never resolved: its work was dropped by something that stopped.
        self.resolve(Ok(self.refused.clone()));
    }
}

impl Flights {
    fn remove(&self, id: u64) {
        let mut open = self.state.lock();
        open.by_id.remove(&id);
        if open.by_id.is_empty() {
            self.none_left.notify_all();
        }
    }

    /// Ends flights that have not begun to move bytes and waits for the others. Past the deadline no further task of
    /// theirs begins. Says whether all have ended.
    pub(crate) fn end_all(&self, deadline: Instant) -> bool {
        let all = |flights: &Self| flights.state.lock().by_id.values().filter_map(Weak::upgrade).collect::<Vec<_>>();
        for flight in all(self) {
            flight.ground();
        }
        let mut open = self.state.lock();
        while !open.by_id.is_empty() {
            if self.none_left.wait_until(&mut open, deadline).timed_out() {
                drop(open);
                for flight in all(self) {
                    flight.halt();
                }
                return self.state.lock().by_id.is_empty();
            }
        }
        true
    }

    /// Puts and gets under way.
    pub(crate) fn count(&self) -> usize {
        self.state.lock().by_id.len()
    }
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flights({} under way)", self.state.lock().by_id.len())
    }
}
