//! A result that is not there yet.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// A running operation. Resolves exactly once; clones watch the same operation.
///
/// Dropping it does not cancel the operation.
pub struct Completion<T> {
    inner: Arc<Inner<T>>,
}

/// The other end: whoever holds it resolves the completion.
pub(crate) struct Resolver<T> {
    inner: Arc<Inner<T>>,
}

struct Inner<T> {
    value: Mutex<Option<T>>,
    resolved: Condvar,
}

/// A completion and the end that resolves it.
pub(crate) fn completion<T>() -> (Resolver<T>, Completion<T>) {
    let inner = Arc::new(Inner { value: Mutex::new(None), resolved: Condvar::new() });
    (Resolver { inner: Arc::clone(&inner) }, Completion { inner })
}

impl<T> Resolver<T> {
    pub(crate) fn resolve(self, value: T) {
        *self.inner.value.lock() = Some(value);
        self.inner.resolved.notify_all();
    }
}

impl<T> Completion<T> {
    /// Whether the result is there.
    pub fn is_done(&self) -> bool {
        self.inner.value.lock().is_some()
    }

    /// Waits until the result is there or the deadline has passed; says which.
    pub fn wait_until(&self, deadline: Instant) -> bool {
        let mut value = self.inner.value.lock();
        while value.is_none() {
            if self.inner.resolved.wait_until(&mut value, deadline).timed_out() {
                return value.is_some();
            }
        }
        true
    }
}

impl<T> Completion<T> {
    /// Looks at the result, if it is there.
    pub(crate) fn with<R>(&self, look: impl FnOnce(Option<&T>) -> R) -> R {
        look(self.inner.value.lock().as_ref())
    }
}

impl<T: Clone> Completion<T> {
    /// The result, if it is there.
    pub fn result(&self) -> Option<T> {
        self.inner.value.lock().clone()
    }
}

impl<T> Clone for Completion<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<T> fmt::Debug for Completion<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion").field("done", &self.is_done()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn resolves_once_for_every_watcher() {
        let (resolver, first) = completion();
        let second = first.clone();
        assert!(!first.wait_until(Instant::now() + Duration::from_millis(1)));
        assert_eq!(first.result(), None);
        let waiter = std::thread::spawn(move || second.wait_until(Instant::now() + Duration::from_secs(10)));
        resolver.resolve(7);
        assert!(waiter.join().unwrap());
        assert_eq!(first.result(), Some(7));
        assert!(first.is_done());
    }
}
