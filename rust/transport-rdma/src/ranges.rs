//! Local memory that is known to stay: registered once, for all transfers that use it.
//!
//! Only ranges that somebody has promised to keep mapped are cached. An address alone says nothing: memory that was
//! freed and mapped anew has the same address and other pages, and a device that still wrote to the old ones would
//! leave wrong bytes where the caller looks. Everything else is registered for one call or copied.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Promised ranges that start before an address and are looked at for it: nested layouts are rare and few.
const NESTING_MAX: usize = 8;
/// A range that could not be registered is not tried again for this long.
const RETRY: Duration = Duration::from_secs(10);

/// Makes registrations. The device in earnest, a counter in tests.
pub(crate) trait Registrar: Send + Sync + Debug {
    /// What keeps a range registered until it is dropped.
    type Registration: Send + Sync + Debug;

    /// Registers a promised range; `None` where the system refuses.
    fn register(&self, address: u64, bytes: u64) -> Option<Self::Registration>;
}

/// Promised ranges and their registrations: bounded in bytes, those unused longest dropped first.
#[derive(Debug)]
pub(crate) struct Ranges<R: Registrar> {
    registrar: R,
    bytes_max: u64,
    state: Mutex<State<R::Registration>>,
}

#[derive(Debug)]
struct State<G> {
    /// By first byte and length.
    promised: BTreeMap<(u64, u64), Promised<G>>,
    registered_bytes: u64,
    clock: u64,
}

#[derive(Debug)]
struct Promised<G> {
    /// Tells it from an earlier promise of the same addresses.
    id: u64,
    holders: usize,
    registration: Option<Arc<G>>,
    used: u64,
    /// Nobody else tries to register it before this.
    not_before: Option<Instant>,
}

/// The promise that a range stays; taken back when dropped.
#[derive(Debug)]
pub(crate) struct Promise<R: Registrar> {
    ranges: Weak<Ranges<R>>,
    key: (u64, u64),
}

impl<R: Registrar> Ranges<R> {
    /// At most `bytes_max` bytes are registered at the same time.
    pub(crate) fn new(registrar: R, bytes_max: u64) -> Self {
        let state = Mutex::new(State { promised: BTreeMap::new(), registered_bytes: 0, clock: 0 });
        Self { registrar, bytes_max, state }
    }

    /// Notes that a range stays mapped until the promise is dropped. It is registered when it is first looked for.
    ///
    /// # Safety
    /// It does.
    pub(crate) unsafe fn promise(self: &Arc<Self>, address: u64, bytes: u64) -> Promise<R> {
        let key = (address, bytes);
        {
            let mut state = self.state.lock();
            state.clock += 1;
            let new = Promised { id: state.clock, holders: 0, registration: None, used: 0, not_before: None };
            state.promised.entry(key).or_insert(new).holders += 1;
        }
        Promise { ranges: Arc::downgrade(self), key }
    }

    /// The registration of the promised range that holds all of these bytes, made now if there is none.
    pub(crate) fn find(&self, address: u64, bytes: u64) -> Option<Arc<R::Registration>> {
        let end = address.checked_add(bytes)?;
        let mut dropped = Vec::new();
        let (key, id) = {
            let mut state = self.state.lock();
            state.clock += 1;
            let clock = state.clock;
            let mut candidates = state.promised.range_mut(..=(address, u64::MAX)).rev().take(NESTING_MAX);
            let (key, range) = candidates.find(|((start, length), _)| start + length >= end)?;
            let key = *key;
            range.used = clock;
            if let Some(registration) = &range.registration {
                return Some(Arc::clone(registration));
            }
            let now = Instant::now();
            if range.not_before.is_some_and(|until| now < until) || key.1 > self.bytes_max {
                return None;
            }
            range.not_before = Some(now + RETRY);
            let id = range.id;
            if !state.make_room(key.1, self.bytes_max, &mut dropped) {
                return None;
            }
            state.registered_bytes += key.1;
            (key, id)
        };
        // Neither the end of a registration nor a new one, which pins every page, happens under the lock.
        drop(dropped);
        let made = self.registrar.register(key.0, key.1).map(Arc::new);
        let mut state = self.state.lock();
        match (made, state.promised.get_mut(&key)) {
            (Some(made), Some(range)) if range.id == id => {
                range.registration = Some(Arc::clone(&made));
                range.not_before = None;
                Some(made)
            }
            // Refused; or the promise was taken back meanwhile, and what was registered may be other memory by now.
            _ => {
                state.registered_bytes -= key.1;
                None
            }
        }
    }

    /// Bytes registered now.
    #[cfg(test)]
    pub(crate) fn registered_bytes(&self) -> u64 {
        self.state.lock().registered_bytes
    }

    fn release(&self, key: (u64, u64)) {
        let mut state = self.state.lock();
        let Some(range) = state.promised.get_mut(&key) else { return };
        range.holders -= 1;
        if range.holders > 0 {
            return;
        }
        let registration = state.promised.remove(&key).and_then(|range| range.registration);
        if registration.is_some() {
            state.registered_bytes -= key.1;
        }
        drop(state);
        drop(registration);
    }
}

impl<G> State<G> {
    /// Drops registrations that nobody uses, the oldest first, until `bytes` more fit.
    fn make_room(&mut self, bytes: u64, bytes_max: u64, dropped: &mut Vec<Arc<G>>) -> bool {
        while self.registered_bytes + bytes > bytes_max {
            let idle = self.promised.iter_mut().filter(|(_, range)| {
                range.registration.as_ref().is_some_and(|registration| Arc::strong_count(registration) == 1)
            });
            let Some((key, range)) = idle.min_by_key(|(_, range)| range.used) else { return false };
            dropped.extend(range.registration.take());
            self.registered_bytes -= key.1;
        }
        true
    }
}

impl<R: Registrar> Drop for Promise<R> {
    fn drop(&mut self) {
        if let Some(ranges) = self.ranges.upgrade() {
            ranges.release(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    /// Counts registrations made and alive; refuses while told to.
    #[derive(Clone, Debug, Default)]
    struct Counter {
        made: Arc<AtomicUsize>,
        alive: Arc<AtomicUsize>,
        refuses: bool,
    }

    #[derive(Debug)]
    struct Alive(Arc<AtomicUsize>);

    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    impl Registrar for Counter {
        type Registration = Alive;

        fn register(&self, _: u64, _: u64) -> Option<Alive> {
            self.made.fetch_add(1, Ordering::Relaxed);
            if self.refuses {
                return None;
            }
            self.alive.fetch_add(1, Ordering::Relaxed);
            Some(Alive(Arc::clone(&self.alive)))
        }
    }

    fn ranges(bytes_max: u64) -> (Arc<Ranges<Counter>>, Counter) {
        let counter = Counter::default();
        (Arc::new(Ranges::new(counter.clone(), bytes_max)), counter)
    }

    fn promise(ranges: &Arc<Ranges<Counter>>, address: u64, bytes: u64) -> Promise<Counter> {
        // SAFETY: the counter looks at no memory.
        let promise = unsafe { ranges.promise(address, bytes) };
        drop(ranges.find(address, bytes));
        promise
    }

    fn made(counter: &Counter) -> (usize, usize) {
        (counter.made.load(Ordering::Relaxed), counter.alive.load(Ordering::Relaxed))
    }

    #[test]
    fn a_promised_range_is_registered_once_for_all_its_pieces() {
        let (ranges, counter) = ranges(1 << 20);
        assert!(ranges.find(1000, 10).is_none());
        let kept = promise(&ranges, 1000, 500);
        for (address, bytes) in [(1000, 500), (1000, 1), (1499, 1), (1200, 100)] {
            assert!(ranges.find(address, bytes).is_some(), "{address}+{bytes}");
        }
        for (address, bytes) in [(999, 1), (999, 10), (1499, 2), (1500, 1), (u64::MAX, 2)] {
            assert!(ranges.find(address, bytes).is_none(), "{address}+{bytes}");
        }
        assert_eq!(made(&counter), (1, 1));
        drop(kept);
        assert!(ranges.find(1000, 1).is_none());
        assert_eq!((made(&counter), ranges.registered_bytes()), ((1, 0), 0));
    }

    #[test]
    fn a_range_promised_twice_stays_until_both_let_go() {
        let (ranges, counter) = ranges(1 << 20);
        let (first, second) = (promise(&ranges, 64, 64), promise(&ranges, 64, 64));
        drop(first);
        assert!(ranges.find(64, 64).is_some());
        drop(second);
        assert!(ranges.find(64, 64).is_none());
        assert_eq!(made(&counter), (1, 0));
    }

    #[test]
    fn ranges_within_ranges_are_found() {
        let (ranges, _) = ranges(1 << 20);
        let _kept = [promise(&ranges, 0, 10_000), promise(&ranges, 100, 50), promise(&ranges, 100, 10)];
        assert!(ranges.find(120, 5).is_some());
        assert!(ranges.find(140, 1000).is_some());
    }

    #[test]
    fn the_registration_unused_longest_makes_room_and_one_in_use_never_does() {
        let (ranges, counter) = ranges(300);
        let kept: Vec<_> = (0..4).map(|range| promise(&ranges, range * 1000, 100)).collect();
        // The fourth took the place of the first.
        assert_eq!((made(&counter), ranges.registered_bytes()), ((4, 3), 300));
        let in_use = ranges.find(1000, 100);
        assert!(ranges.find(0, 100).is_some(), "the promise still holds");
        assert_eq!(made(&counter), (5, 3));
        let (second, third) = (ranges.find(0, 1), ranges.find(3000, 1));
        assert!(ranges.find(2000, 1).is_none(), "everything is in use");
        assert_eq!(counter.alive.load(Ordering::Relaxed), 3);
        drop((in_use, second, third, kept));
        assert_eq!((counter.alive.load(Ordering::Relaxed), ranges.registered_bytes()), (0, 0));
    }

    #[test]
    fn what_is_larger_than_the_bound_is_never_registered() {
        let (ranges, counter) = ranges(300);
        let _kept = promise(&ranges, 0, 301);
        assert!(ranges.find(0, 1).is_none());
        assert_eq!(made(&counter), (0, 0));
    }

    #[test]
    fn a_refusal_is_not_asked_for_again_at_once_and_takes_no_room() {
        let counter = Counter { refuses: true, ..Counter::default() };
        let ranges = Arc::new(Ranges::new(counter.clone(), 1000));
        let kept = promise(&ranges, 0, 100);
        for _ in 0..10 {
            assert!(ranges.find(0, 1).is_none());
        }
        assert_eq!((made(&counter), ranges.registered_bytes()), ((1, 0), 0));
        drop(kept);
    }

    #[test]
    fn many_threads_leave_no_registration_behind() {
        let (ranges, counter) = ranges(2000);
        thread::scope(|scope| {
            for thread in 0..4u64 {
                let ranges = &ranges;
                scope.spawn(move || {
                    for round in 0..500u64 {
                        let address = (round * 7 + thread) % 5 * 1000;
                        let kept = promise(ranges, address, 900);
                        let found = ranges.find(address + 10, 10);
                        drop(kept);
                        drop(found);
                    }
                });
            }
        });
        assert_eq!((counter.alive.load(Ordering::Relaxed), ranges.registered_bytes()), (0, 0));
    }
}
