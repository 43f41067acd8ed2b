//! A result that is not there yet.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::error::StoreError;

/// A running operation. Resolves exactly once; clones watch the same operation.
///
/// Dropping it does not cancel the operation: what it reads or writes is held until it has ended.
pub struct Completion<T> {
    inner: Arc<Inner<T>>,
    /// Gone once the operation has ended.
    operation: Option<Weak<dyn Cancel>>,
}

/// What can be stopped.
pub(crate) trait Cancel: Send + Sync {
    /// See [`Completion::cancel`].
    fn cancel(&self, deadline: Instant) -> Result<bool, StoreError>;
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
    (Resolver { inner: Arc::clone(&inner) }, Completion { inner, operation: None })
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
    /// Stops the operation as far as it can still be stopped, and waits until it no longer touches the caller's memory.
    ///
    /// When this returns true, no byte of the memory given to the operation is read or written any more, and none will
    /// be: it may be freed or used for something else. Copies that had not begun never do; those under way are waited
    /// for, over shared memory at most one part of an object (about half a millisecond), over a network until the
    /// operation's own deadline. False: the deadline came first and the memory is still in use; ask again.
    ///
    /// Leases and reservations are given back. The result tells the truth about every key: what had arrived before is a
    /// hit, what was sealed is stored, the rest is cancelled. Where the answer of the book is all that is still missing,
    /// the result comes when it does. An operation that moves nothing is left alone, and an ended one stays as it is.
    ///
    /// # Errors
    /// [`StoreError::Forked`] in a child of the process that started the operation: nothing runs there, nothing is
    /// stopped, and the parent's operation goes on.
    pub fn cancel(&self, deadline: Instant) -> Result<bool, StoreError> {
        self.operation.as_ref().and_then(Weak::upgrade).map_or(Ok(true), |operation| operation.cancel(deadline))
    }

    pub(crate) fn of_operation(self, operation: Weak<dyn Cancel>) -> Self {
        Self { operation: Some(operation), ..self }
    }

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
        Self { inner: Arc::clone(&self.inner), operation: self.operation.clone() }
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
