//! The shell around the core: one thread with its own event loop, sockets, a clock and ticks.
//!
//! Nothing here touches signals or other state of the whole process, so that any process may host a service.

mod http;
mod lane;
mod listen;
mod mailbox;
mod metrics;
mod service;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod turns;
mod vigil;

use std::fmt;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memcache_config::{Endpoint, MetaConfig};
use memcache_mailbox::take_short_turns;
use memcache_types::Epoch;
use parking_lot::{Condvar, Mutex};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tracing::{debug, error, info};

use self::listen::{Listener, bind_doorman};
use self::service::Book;
use crate::error::MetaError;

/// How often deadlines and watermarks are looked at when nobody asks.
const TICK: Duration = Duration::from_millis(50);

/// How long open connections get to finish when the service stops.
const DRAIN: Duration = Duration::from_millis(500);

/// How long a dropped service may take to stop.
const DROP_TIMEOUT: Duration = Duration::from_secs(2);

/// A running `MetaService`. Dropping it stops it.
pub struct MetaServer {
    address: Endpoint,
    epoch: Epoch,
    /// The process that has the thread: a forked child has only the memory.
    process: u32,
    stop: watch::Sender<bool>,
    ended: Arc<Ended>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Whether the service's thread is done.
#[derive(Default)]
struct Ended {
    done: Mutex<bool>,
    changed: Condvar,
}

/// Says that the thread is done, also when it panics.
struct EndedOnDrop(Arc<Ended>);

impl Drop for EndedOnDrop {
    fn drop(&mut self) {
        *self.0.done.lock() = true;
        self.0.changed.notify_all();
    }
}

impl MetaServer {
    /// Starts a service on a thread of its own. When this returns, clients can connect.
    pub fn start(config: &MetaConfig) -> Result<Self, MetaError> {
        let listener = Listener::bind(&config.listen)?;
        let address = listener.address().clone();
        let runtime = Builder::new_current_thread().enable_all().build().map_err(MetaError::Thread)?;
        let (stop, stopped) = watch::channel(false);
        let ended = Arc::new(Ended::default());
        let guard = EndedOnDrop(Arc::clone(&ended));
        let (epoch, doorman) = draw_epoch(&address, config.mailboxes_max > 0);
        let listener = listener.with_doorman(doorman);
        let book = Book::new(config, epoch);
        let thread = thread::Builder::new()
            .name("memcache-meta".to_owned())
            .spawn(move || {
                // Last to be dropped: "ended" also means that the address is free again.
                let _guard = guard;
                // All clients wait for this thread, each time for microseconds.
                if let Err(error) = take_short_turns() {
                    debug!(%error, "the service has turns as long as everybody's");
                }
                run(&runtime, listener, &book, stopped);
                runtime.shutdown_timeout(Duration::from_millis(100));
            })
            .map_err(MetaError::Thread)?;
        info!(%address, %epoch, "serving");
        let process = std::process::id();
        Ok(Self { address, epoch, process, stop, ended, thread: Mutex::new(Some(thread)) })
    }

    /// Where it really listens: the port is never 0.
    pub const fn address(&self) -> &Endpoint {
        &self.address
    }

    /// Which life of the service this is, as it was drawn at the start. Replies may carry a later one, where the clock was
    /// set back.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Stops serving: open streams end, their connections are closed, the address is free. True: all that was done
    /// within `timeout`. Calling it again is harmless. In a forked child there is no service: nothing is done, and true.
    pub fn stop(&self, timeout: Duration) -> bool {
        if self.is_elsewhere() {
            return true;
        }
        self.stop.send_replace(true);
        if !self.wait(Some(timeout)) {
            return false;
        }
        if let Some(thread) = self.thread.lock().take() {
            // The thread has nothing left to do but to return. It reported its own panic, if any.
            let _ = thread.join();
        }
        true
    }

    /// Waits until the service has stopped, at most `timeout`; `None` waits for as long as it takes. True: it has.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        if self.is_elsewhere() {
            return true;
        }
        let mut done = self.ended.done.lock();
        let Some(timeout) = timeout else {
            self.ended.changed.wait_while(&mut done, |done| !*done);
            return true;
        };
        self.ended.changed.wait_while_for(&mut done, |done| !*done, timeout);
        *done
    }

    fn is_elsewhere(&self) -> bool {
        std::process::id() != self.process
    }
}

impl Drop for MetaServer {
    fn drop(&mut self) {
        if !self.stop(DROP_TIMEOUT) {
            error!(address = %self.address, "the service did not stop in time");
        }
    }
}

impl fmt::Debug for MetaServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetaServer").field("address", &self.address).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// The wall clock at start: what follows when that was set back is told in `core::lives`. Never the same twice in one
/// process or, for one port, in one network namespace. And where mailboxes are handed out, for a service on TCP.
fn draw_epoch(address: &Endpoint, has_mailboxes: bool) -> (Epoch, Option<UnixListener>) {
    static LAST: AtomicU64 = AtomicU64::new(0);
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now = u64::try_from(now).unwrap_or(u64::MAX).max(1);
        let before = LAST.fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| Some(now.max(last + 1)));
        let epoch = Epoch::new(now.max(before.unwrap_or(0) + 1));
        match address {
            Endpoint::Tcp { port, .. } if has_mailboxes => match bind_doorman(epoch, *port) {
                Ok(doorman) => return (epoch, Some(doorman)),
                // Another service, on the same port of another address, was started in the same millisecond.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => {
                    info!(%error, "no mailboxes: clients on this host use sockets");
                    return (epoch, None);
                }
            },
            _ => return (epoch, None),
        }
    }
}

fn run(runtime: &Runtime, listener: Listener, book: &Arc<Book>, stopped: watch::Receiver<bool>) {
    let outcome: io::Result<()> = runtime.block_on(async {
        let ticks = tokio::spawn(tick(Arc::clone(book), stopped.clone()));
        let served = tokio::select! {
            served = listener.serve(Arc::clone(book), stopped) => served,
            () = book.broken() => Err(io::Error::other("a call panicked in the middle of a change")),
        };
        ticks.abort();
        served
    });
    match outcome {
        Ok(()) => info!("stopped"),
        Err(error) => error!(%error, "the service ended"),
    }
}

async fn tick(book: Arc<Book>, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        while book.tick() {
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail, and this one panics on purpose")]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_call_that_panics_ends_the_service_instead_of_leaving_half_a_change() {
        let config = MetaConfig { listen: "127.0.0.1:0".parse().unwrap(), ..MetaConfig::default() };
        let listener = Listener::bind(&config.listen).unwrap();
        let book = Book::new(&config, Epoch::new(1));
        let (_stop, stopped) = watch::channel(false);
        let (told, ended) = mpsc::channel();
        let served = Arc::clone(&book);
        thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            run(&runtime, listener, &served, stopped);
            told.send(()).unwrap();
        });
        let call = |panics: bool| {
            catch_unwind(AssertUnwindSafe(|| book.with(|_, _, _| assert!(!panics, "as a fault in the core would"))))
        };
        assert!(call(false).is_ok());
        assert!(call(true).is_err());
        assert!(call(false).is_err(), "the core was used after it broke");
        ended.recv_timeout(Duration::from_secs(10)).expect("the service goes on");
    }
}
