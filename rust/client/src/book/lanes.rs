//! The lanes of one connection to a `MetaService`: opened when callers wait often, closed when they do not.
//!
//! Lanes only make waiting cheaper. The session says whether the service is there; without it there are no lanes, and
//! whoever finds no lane free uses the session.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_config::Endpoint;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::lane::Lane;
use crate::connect::CONNECT_TIMEOUT;

/// Most lanes of one client. More threads than this that wait at once share the session.
const LANES_MAX: usize = 8;

/// Calls that follow each other within this time are worth a lane. Heartbeats are not.
const OFTEN: Duration = Duration::from_millis(100);

/// A call that follows a get within this time gains from a service that was woken when the get ended.
const SOON: Duration = Duration::from_millis(1);

/// A lane that nobody used for this long is closed.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// How long no lane is asked for after the service gave none: it is too old, or has too many.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

pub(super) struct Lanes {
    endpoint: Endpoint,
    runtime: Handle,
    /// The process whose connections these are.
    process: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Number of the session that is up, or was last. Lanes do not outlive theirs.
    session: u64,
    is_up: bool,
    /// Free lanes; the one used last is last.
    idle: VecDeque<(Lane, Instant)>,
    /// Lanes of this session that are open or being opened, free or not.
    count: usize,
    opening: bool,
    last_call: Option<Instant>,
    /// When a get ended after which nothing was asked yet.
    ended: Option<Instant>,
    /// The call after the last get came soon.
    follows: bool,
    not_before: Option<Instant>,
}

/// A lane in use, and the session it belongs to.
pub(super) struct Taken {
    pub(super) lane: Lane,
    session: u64,
}

impl Lanes {
    pub(super) fn new(endpoint: Endpoint, runtime: Handle) -> Arc<Self> {
        Arc::new(Self { endpoint, runtime, process: std::process::id(), state: Mutex::default() })
    }

    /// The session is up: lanes may be opened.
    pub(super) fn session_is_up(&self) {
        let mut state = self.state.lock();
        *state = State { session: state.session + 1, is_up: true, ..State::default() };
    }

    /// The session is gone: free lanes are closed, and whoever waits on another learns that it is over.
    pub(super) fn session_is_gone(&self) {
        let mut state = self.state.lock();
        let none = State { session: state.session, ..State::default() };
        let gone = std::mem::replace(&mut *state, none);
        drop(state);
        drop(gone);
    }

    /// Whether the session of a lane is gone.
    pub(super) fn is_over(&self, session: u64) -> bool {
        let state = self.state.lock();
        !state.is_up || state.session != session
    }

    /// A get ended at `now`: a free lane, if the next call is likely to follow soon.
    pub(super) fn take_before_next(&self, now: Instant) -> Option<Taken> {
        let mut state = self.state.lock();
        state.ended = Some(now);
        if !state.follows || !state.is_up || self.process != std::process::id() {
            return None;
        }
        let session = state.session;
        state.idle.pop_back().map(|(lane, _)| Taken { lane, session })
    }

    /// A free lane for a call at `now`. Where there is none, and calls come often, one is opened for later calls.
    pub(super) fn take(self: &Arc<Self>, now: Instant) -> Option<Taken> {
        let mut state = self.state.lock();
        if let Some(ended) = state.ended.take() {
            state.follows = now.saturating_duration_since(ended) < SOON;
        }
        let often = state.last_call.replace(now).is_some_and(|last| now - last < OFTEN);
        if !state.is_up || self.process != std::process::id() {
            return None;
        }
        let session = state.session;
        if let Some((lane, _)) = state.idle.pop_back() {
            return Some(Taken { lane, session });
        }
        let may_ask = state.not_before.is_none_or(|moment| now >= moment);
        if often && may_ask && !state.opening && state.count < LANES_MAX {
            state.opening = true;
            state.count += 1;
            let lanes = Arc::clone(self);
            self.runtime.spawn(async move { lanes.open(session).await });
        }
        None
    }

    /// Takes a lane back after an exchange that ended well.
    pub(super) fn give_back(&self, taken: Taken) {
        let mut state = self.state.lock();
        if state.is_up && state.session == taken.session {
            state.idle.push_back((taken.lane, Instant::now()));
        }
    }

    /// A lane was of no use any more.
    pub(super) fn lose(&self, taken: Taken) {
        let Taken { lane, session } = taken;
        drop(lane);
        let mut state = self.state.lock();
        if state.is_up && state.session == session {
            state.count -= 1;
        }
    }

    /// Closes lanes that nobody has used for a while.
    pub(super) fn close_idle(&self, now: Instant) {
        let mut state = self.state.lock();
        let mut closed = Vec::new();
        while state.idle.front().is_some_and(|(_, since)| now.saturating_duration_since(*since) >= IDLE_MAX) {
            closed.extend(state.idle.pop_front());
            state.count -= 1;
        }
        drop(state);
        drop(closed);
    }

    async fn open(&self, session: u64) {
        let opened = match timeout(CONNECT_TIMEOUT, Lane::open(&self.endpoint)).await {
            Ok(opened) => opened.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no greeting within {} ms", CONNECT_TIMEOUT.as_millis())),
        };
        let now = Instant::now();
        let mut state = self.state.lock();
        if !state.is_up || state.session != session {
            return;
        }
        state.opening = false;
        match opened {
            Ok(lane) => state.idle.push_back((lane, now)),
            Err(why) => {
                state.count -= 1;
                state.not_before = Some(now + REFUSED_PAUSE);
                drop(state);
                tracing::debug!(address = %self.endpoint, why, "no lane; the session carries all calls");
            }
        }
    }
}

impl Taken {
    pub(super) const fn session(&self) -> u64 {
        self.session
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_uses_no_lane_of_its_parent() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let endpoint: Endpoint = "127.0.0.1:1".parse().unwrap();
        let child = Arc::new(Lanes {
            endpoint,
            runtime: runtime.handle().clone(),
            process: std::process::id() + 1,
            state: Mutex::default(),
        });
        child.session_is_up();
        child.state.lock().last_call = Some(Instant::now());
        child.state.lock().follows = true;
        assert!(child.take(Instant::now()).is_none() && child.take_before_next(Instant::now()).is_none());
        assert!(!child.state.lock().opening, "it opens none either");
    }

    #[test]
    fn the_service_is_woken_early_only_for_callers_that_come_back_soon() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let lanes = Lanes::new("127.0.0.1:1".parse().unwrap(), runtime.handle().clone());
        lanes.session_is_up();
        let start = Instant::now();
        for (pause, follows) in [(Duration::ZERO, true), (SOON, false), (SOON / 2, true)] {
            lanes.take_before_next(start);
            lanes.take(start + pause);
            assert_eq!(lanes.state.lock().follows, follows, "{pause:?}");
            lanes.take(start + 10 * SOON);
            assert_eq!(lanes.state.lock().follows, follows, "only the call after the get counts");
        }
    }
}
