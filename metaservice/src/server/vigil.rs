//! Keeps the thread of the service from sleeping while lanes ask one thing after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memcache_proto::lane::Eagerness;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::mailbox::Mailbox;
use super::service::Book;

/// How long mailboxes are watched before all other tasks of the thread have their turn.
const TURN: Duration = Duration::from_micros(20);

/// A mailbox that brought nothing for this long is not watched any more: its client rings.
const FORGET: Duration = Duration::from_millis(1);

/// How many times mailboxes are looked at before the clock is.
const LOOKS: u32 = 8;

#[derive(Debug, Default)]
pub(super) struct Vigil {
    served: AtomicU64,
    is_asleep: AtomicBool,
    wake: Notify,
    /// Mailboxes whose clients need not ring, for somebody watches.
    watched: Mutex<Vec<Watched>>,
}

#[derive(Debug)]
struct Watched {
    mailbox: Arc<Mailbox>,
    used: Instant,
    was_used: bool,
}

impl Vigil {
    /// A lane was answered.
    pub(super) fn answered(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
        if self.is_asleep.swap(false, Ordering::AcqRel) {
            self.wake.notify_one();
        }
    }

    /// A mailbox that nobody watches, was rung for, and may bring more.
    pub(super) fn watch(&self, mailbox: &Arc<Mailbox>) {
        mailbox.set_watched(true);
        self.watched.lock().push(Watched { mailbox: Arc::clone(mailbox), used: Instant::now(), was_used: false });
        self.answered();
    }

    /// Runs beside all other tasks of the thread: each turn lets them all go on, looks at all sockets, and at the
    /// memory of mailboxes in between.
    pub(super) async fn keep(&self, book: &Book) {
        let mut eager = Eagerness::new();
        let mut turn = Instant::now();
        loop {
            if turn.elapsed() >= TURN {
                tokio::task::yield_now().await;
                turn = Instant::now();
            }
            let served = self.served.load(Ordering::Relaxed);
            let answered = Instant::now();
            let mut helped = false;
            let look = eager.looks();
            if let Some(long) = look {
                while !helped && answered.elapsed() < long {
                    helped = self.look_until(book, turn + TURN);
                    if !helped {
                        tokio::task::yield_now().await;
                        turn = Instant::now();
                        helped = self.served.load(Ordering::Relaxed) != served;
                    }
                }
                eager.helped(helped);
            }
            if !helped && self.dismiss(book) {
                let (looked, asleep) = (answered.elapsed(), Instant::now());
                self.is_asleep.store(true, Ordering::Release);
                self.wake.notified().await;
                turn = Instant::now();
                if look.is_some() {
                    eager.came(looked, asleep.elapsed());
                }
            }
        }
    }

    /// Serves what comes in mailboxes until something did, or until then. Where there are none, does nothing.
    fn look_until(&self, book: &Book, then: Instant) -> bool {
        let mut watched = self.watched.lock();
        let mut helped = false;
        while !watched.is_empty() && !helped {
            for _ in 0..LOOKS {
                for one in watched.iter_mut().filter(|one| one.mailbox.serve(book)) {
                    (helped, one.was_used) = (true, true);
                }
                if helped {
                    break;
                }
                std::hint::spin_loop();
            }
            let now = Instant::now();
            watched.retain_mut(|one| {
                if std::mem::take(&mut one.was_used) {
                    one.used = now;
                }
                now.saturating_duration_since(one.used) < FORGET || !one.mailbox.lie_down()
            });
            if now >= then {
                break;
            }
        }
        helped
    }

    /// Lets clients ring from now on. False: something came meanwhile, and was served.
    fn dismiss(&self, book: &Book) -> bool {
        let mut watched = self.watched.lock();
        watched.retain(|one| !one.mailbox.lie_down());
        for one in watched.iter() {
            one.mailbox.serve(book);
        }
        watched.is_empty()
    }
}
