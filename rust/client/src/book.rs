//! The kept conversation with a `MetaService`.
//!
//! Requests go out on one stream and may be answered in any order. While the service is away calls fail at once
//! instead of waiting: the cache says "miss" and the engine goes on. A background task reconnects.
//!
//! Callers that wait, and do so often, get a lane: a connection of their own beside the session, on which they send and
//! receive themselves instead of waking other threads twice.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memcache_config::Endpoint;
use memcache_proto::pack::WireError;
use memcache_proto::pb::{self, request::Body};
use memcache_types::{ClientId, Epoch};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{Notify, mpsc};
use tokio::time::{interval, sleep, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;

mod lane;
mod lanes;
mod mailbox;
mod releases;

use self::lane::{Broken, Lane};
use self::lanes::Lanes;
use self::releases::Releases;
use crate::completion::completion;
use crate::connect::{CONNECT_TIMEOUT, connect};
use crate::error::StoreError;
use crate::random::random_id;
use crate::runtime;

/// Most requests of one client that may be unanswered.
const PENDING_MAX: usize = 65_536;

/// Pause before the second connection attempt; doubled up to [`BACK_OFF_MAX`].
const BACK_OFF_MIN: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// How often unanswered requests are checked against their deadlines.
const SWEEP: Duration = Duration::from_millis(20);

/// How long the answer to a release is waited for. Nothing depends on it.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a client that closes waits for its last leases to be released.
const LAST_RELEASE_TIMEOUT: Duration = Duration::from_millis(100);

const CLOSED: &str = "the connection was closed";

/// How long a blocked caller waits past its deadline for the sweep before it gives up on its own.
const GRACE: Duration = Duration::from_millis(500);

/// Why one exchange failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BookError {
    /// Nobody there: the request was not sent.
    #[error("{0}")]
    Unavailable(String),
    /// The connection broke before the answer: the request may have been served or not.
    #[error("{0}")]
    Interrupted(String),
    /// No answer before the deadline.
    #[error("no answer within {waited_ms} ms")]
    Timeout {
        /// How long was waited.
        waited_ms: u64,
    },
    /// The service says the request is wrong.
    #[error("{0}")]
    Refused(String),
    /// The reply makes no sense.
    #[error("malformed reply: {0}")]
    Malformed(#[from] WireError),
    /// The service keeps so much, for this client or for all, and there is no room for more now.
    #[error("{0}")]
    Limit(String),
}

impl BookError {
    /// The reply is not one to what was asked.
    pub(crate) const fn not_a(want: &'static str) -> Self {
        Self::Malformed(WireError::Reply { want })
    }
}

/// The answer to one request.
#[derive(Debug)]
pub struct Answer {
    /// Which life of the service answered.
    pub epoch: Epoch,
    /// What it said. Never a failure.
    pub body: pb::reply::Body,
    /// When the request was handed over: leases and tickets count from here.
    pub sent: Instant,
}

type Outcome = Result<Answer, BookError>;
type Then = Box<dyn FnOnce(Outcome) + Send>;

/// A connection to one `MetaService`, shared by everything in the process that needs it.
pub struct Book {
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: Endpoint,
    client: ClientId,
    next: AtomicU64,
    epoch: AtomicU64,
    closed: AtomicBool,
    wake: Notify,
    /// Lock order: `line` before `pending`.
    line: Mutex<Line>,
    pending: Mutex<HashMap<u64, Waiter>>,
    lanes: Arc<Lanes>,
    releases: Releases,
}

/// Where a request goes.
enum Line {
    /// First attempt under way: requests wait for it.
    Connecting(Vec<pb::Request>),
    Up(mpsc::UnboundedSender<pb::Request>),
    Down(String),
}

struct Waiter {
    sent: Instant,
    deadline: Instant,
    then: Then,
}

impl Book {
    /// A connection to `endpoint`, made in the background.
    ///
    /// Each is a client of its own to the service: an owner of reservations and leases that nobody else is.
    pub fn open(endpoint: Endpoint) -> Result<Arc<Self>, StoreError> {
        let runtime = runtime::handle()?;
        let client = ClientId::new(random_id()?);
        let shared = Arc::new(Shared {
            lanes: Lanes::new(endpoint.clone(), runtime.clone()),
            releases: Releases::default(),
            endpoint,
            client,
            next: AtomicU64::new(1),
            epoch: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            wake: Notify::new(),
            line: Mutex::new(Line::Connecting(Vec::new())),
            pending: Mutex::new(HashMap::new()),
        });
        runtime.spawn(keep_connected(Arc::clone(&shared)));
        runtime.spawn(sweep(Arc::clone(&shared)));
        runtime.spawn(release(Arc::clone(&shared)));
        Ok(Arc::new(Self { shared }))
    }

    /// Where the service is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.shared.endpoint
    }

    /// Which life of the service answered last; `None` before the first answer.
    pub fn epoch(&self) -> Option<Epoch> {
        Some(self.shared.epoch.load(Ordering::Acquire)).filter(|epoch| *epoch != 0).map(Epoch::new)
    }

    /// Whether the connection is believed to be up.
    pub fn is_up(&self) -> bool {
        matches!(*self.shared.line.lock(), Line::Up(_))
    }

    /// Sends a request; `then` runs exactly once, on a thread of the runtime, and must not block.
    pub fn submit(&self, body: Body, deadline: Instant, then: impl FnOnce(Outcome) + Send + 'static) {
        self.shared.submit(body, deadline, Box::new(then));
    }

    /// Sends a request and waits for the answer.
    pub fn call(&self, body: Body, deadline: Instant) -> Result<Answer, BookError> {
        let started = Instant::now();
        let body = match self.shared.call_on_lane(body, started, deadline) {
            Ok(outcome) => return outcome,
            Err(body) => body,
        };
        self.shared.release_on_session();
        let (resolver, done) = completion();
        self.submit(body, deadline, move |outcome| resolver.resolve(Mutex::new(Some(outcome))));
        done.wait_until(deadline + GRACE);
        let outcome = done.with(|slot| slot.and_then(|outcome| outcome.lock().take()));
        outcome.unwrap_or_else(|| Err(BookError::Timeout { waited_ms: millis(started.elapsed()) }))
    }

    /// Lets go of a lease, without waiting and soon: together with the next request, or within milliseconds.
    pub(crate) fn release(&self, lease: u64) {
        self.shared.releases.add(lease);
        self.shared.rouse();
    }

    /// Ends the conversation: unanswered requests fail, later ones too.
    pub fn close(&self) {
        self.shared.release_now();
        self.shared.closed.store(true, Ordering::Release);
        self.shared.go_down(CLOSED);
        self.shared.wake.notify_waiters();
    }

    /// The error a whole call fails with.
    pub(crate) fn error(&self, error: BookError) -> StoreError {
        let address = self.shared.endpoint.to_string();
        match error {
            BookError::Unavailable(why) | BookError::Interrupted(why) => StoreError::Unavailable { address, why },
            BookError::Timeout { waited_ms } => StoreError::Timeout { address, waited_ms },
            BookError::Refused(message) | BookError::Limit(message) => StoreError::Refused { address, message },
            BookError::Malformed(error) => StoreError::Wire(error),
        }
    }
}

impl Drop for Book {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Book").field("endpoint", &self.shared.endpoint).field("up", &self.is_up()).finish()
    }
}

impl Shared {
    fn submit(&self, body: Body, deadline: Instant, then: Then) {
        let request = self.request(body);
        let waiter = Waiter { sent: Instant::now(), deadline, then };
        if let Err((waiter, why)) = self.enqueue(request, waiter) {
            (waiter.then)(Err(BookError::Unavailable(why)));
        }
    }

    /// Sends a request on a lane and waits for the answer there; gives it back, unsent, where no lane is free.
    #[allow(clippy::result_large_err, reason = "no error: what was not sent goes back to the caller")]
    fn call_on_lane(&self, body: Body, sent: Instant, deadline: Instant) -> Result<Outcome, Body> {
        let Some(mut taken) = self.lanes.take(sent) else { return Err(body) };
        self.add_releases(&mut taken.lane);
        let mut request = self.request(body);
        let session = taken.session();
        let is_over = || self.lanes.is_over(session).then(|| "the connection was lost meanwhile".to_owned());
        match taken.lane.exchange(&request, deadline, is_over) {
            Ok(reply) => {
                self.lanes.give_back(taken);
                Ok(self.outcome(reply, sent))
            }
            Err(broken) => {
                self.lanes.lose(taken);
                match (broken, request.body.take()) {
                    (Broken::Unsent, Some(body)) => Err(body),
                    (Broken::Late, _) => Ok(Err(BookError::Timeout { waited_ms: millis(sent.elapsed()) })),
                    (Broken::Interrupted(why), _) => Ok(Err(BookError::Interrupted(why))),
                    (Broken::Unsent, None) => Ok(Err(BookError::Unavailable("nothing to send".to_owned()))),
                }
            }
        }
    }

    /// Sends what waits to be released to a service that sleeps, if the next call is likely to follow soon: the service would
    /// be woken for that within milliseconds anyway; now, it is awake when the next request comes.
    fn rouse(&self) {
        let Some(mut taken) = self.lanes.take_before_next(Instant::now()) else { return };
        if taken.lane.can_rouse() {
            self.add_releases(&mut taken.lane);
            if taken.lane.rouse().is_err() {
                return self.lanes.lose(taken);
            }
        }
        self.lanes.give_back(taken);
    }

    /// Adds what waits to be released to what is sent next.
    fn add_releases(&self, lane: &mut Lane) {
        let leases = self.releases.take();
        if !leases.is_empty() {
            // Short enough to be added.
            lane.add(&self.request(Body::Release(pb::Release { leases })));
        }
    }

    /// Sends what waits to be released ahead of a request.
    fn release_on_session(&self) {
        let leases = self.releases.take();
        if !leases.is_empty() {
            self.submit_release(leases);
        }
    }

    fn submit_release(&self, leases: Vec<u64>) {
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        self.submit(Body::Release(pb::Release { leases }), deadline, Box::new(drop));
    }

    /// Sends what is left to release. Whoever comes next may need the space.
    fn release_now(&self) {
        loop {
            let leases = self.releases.take();
            if leases.is_empty() {
                return;
            }
            let deadline = Instant::now() + LAST_RELEASE_TIMEOUT;
            if let Err(body) = self.call_on_lane(Body::Release(pb::Release { leases }), Instant::now(), deadline) {
                self.submit(body, deadline, Box::new(drop));
            }
        }
    }

    fn request(&self, body: Body) -> pb::Request {
        let request_id = self.next.fetch_add(1, Ordering::Relaxed);
        pb::Request { request_id, client: self.client.get(), body: Some(body) }
    }

    /// Hands a request to the line, or gives the waiter back with the reason.
    fn enqueue(&self, request: pb::Request, waiter: Waiter) -> Result<(), (Waiter, String)> {
        let mut line = self.line.lock();
        let mut pending = self.pending.lock();
        if self.is_closed() {
            return Err((waiter, CLOSED.to_owned()));
        }
        if pending.len() >= PENDING_MAX {
            return Err((waiter, format!("{PENDING_MAX} requests are unanswered, the limit")));
        }
        let request_id = request.request_id;
        match &mut *line {
            Line::Connecting(queue) => queue.push(request),
            Line::Up(sender) => {
                if sender.send(request).is_err() {
                    return Err((waiter, "the connection broke".to_owned()));
                }
            }
            Line::Down(why) => return Err((waiter, why.clone())),
        }
        pending.insert(request_id, waiter);
        Ok(())
    }

    fn answer(&self, reply: pb::Reply) {
        let Some(waiter) = self.pending.lock().remove(&reply.request_id) else {
            return; // timed out before
        };
        let outcome = self.outcome(reply, waiter.sent);
        (waiter.then)(outcome);
    }

    fn outcome(&self, reply: pb::Reply, sent: Instant) -> Outcome {
        self.epoch.store(reply.epoch, Ordering::Release);
        match reply.body {
            None => Err(BookError::Malformed(WireError::Missing { field: "body" })),
            Some(pb::reply::Body::Failure(failure)) => Err(match failure.code() {
                pb::failure::Code::Unavailable => BookError::Unavailable(failure.message),
                pb::failure::Code::Limit => BookError::Limit(failure.message),
                _ => BookError::Refused(failure.message),
            }),
            Some(body) => Ok(Answer { epoch: Epoch::new(reply.epoch), body, sent }),
        }
    }

    fn go_up(&self) -> mpsc::UnboundedReceiver<pb::Request> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut line = self.line.lock();
        if let Line::Connecting(queue) = &mut *line {
            for request in queue.drain(..) {
                // The receiver is in our hands: the send cannot fail.
                let _ = sender.send(request);
            }
        }
        // A close that came first must end this conversation too: without a sender the stream is over.
        *line = if self.is_closed() { Line::Down(CLOSED.to_owned()) } else { Line::Up(sender) };
        receiver
    }

    fn go_down(&self, why: &str) {
        self.lanes.session_is_gone();
        let line = std::mem::replace(&mut *self.line.lock(), Line::Down(why.to_owned()));
        let lost = std::mem::take(&mut *self.pending.lock());
        for waiter in lost.into_values() {
            (waiter.then)(Err(match line {
                Line::Connecting(_) => BookError::Unavailable(why.to_owned()),
                Line::Up(_) | Line::Down(_) => BookError::Interrupted(why.to_owned()),
            }));
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn expire(&self) {
        let now = Instant::now();
        let late: Vec<Waiter> = {
            let mut pending = self.pending.lock();
            pending.extract_if(|_, waiter| waiter.deadline <= now).map(|(_, waiter)| waiter).collect()
        };
        for waiter in late {
            let waited_ms = millis(now - waiter.sent);
            (waiter.then)(Err(BookError::Timeout { waited_ms }));
        }
    }
}

/// Connects, talks until the connection breaks, pauses, and starts again until the book is closed.
async fn keep_connected(shared: Arc<Shared>) {
    let mut pause = BACK_OFF_MIN;
    let mut was_up = false;
    while !shared.is_closed() {
        let closed = shared.wake.notified();
        let why = tokio::select! {
            why = converse(&shared, &mut pause, &mut was_up) => why,
            () = closed => break,
        };
        if shared.is_closed() {
            break;
        }
        if was_up {
            tracing::warn!(address = %shared.endpoint, %why, "lost the MetaService; going on without the pool");
            was_up = false;
        }
        shared.go_down(&why);
        tokio::select! {
            () = sleep(pause) => {}
            () = shared.wake.notified() => {}
        }
        pause = (pause * 2).min(BACK_OFF_MAX);
    }
    shared.go_down(CLOSED);
}

/// One connection from its making to its end; says why it ended.
async fn converse(shared: &Shared, pause: &mut Duration, was_up: &mut bool) -> String {
    let mut client = match timeout(CONNECT_TIMEOUT, connect(&shared.endpoint)).await {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return describe(&error),
        Err(_) => return format!("no connection within {} ms", CONNECT_TIMEOUT.as_millis()),
    };
    let (first, requests) = {
        let requests = shared.go_up();
        (Instant::now(), UnboundedReceiverStream::new(requests))
    };
    let mut replies = match timeout(CONNECT_TIMEOUT, client.session(requests)).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return format!("the session was refused: {status}"),
        Err(_) => return format!("no session within {} ms", CONNECT_TIMEOUT.as_millis()),
    };
    tracing::debug!(address = %shared.endpoint, took_ms = millis(first.elapsed()), "talking to the MetaService");
    shared.lanes.session_is_up();
    *was_up = true;
    *pause = BACK_OFF_MIN;
    loop {
        match replies.message().await {
            Ok(Some(reply)) => shared.answer(reply),
            Ok(None) => return "the service ended the session".to_owned(),
            Err(status) => return format!("the connection broke: {}", status.message()),
        }
    }
}

/// Fails requests whose deadline has passed.
async fn sweep(shared: Arc<Shared>) {
    let mut ticks = interval(SWEEP);
    while !shared.is_closed() {
        ticks.tick().await;
        shared.expire();
        shared.lanes.close_idle(Instant::now());
    }
}

/// Sends releases that no request took along.
async fn release(shared: Arc<Shared>) {
    loop {
        let closed = shared.wake.notified();
        if shared.is_closed() {
            return;
        }
        tokio::select! {
            () = shared.releases.watch(|leases| shared.submit_release(leases)) => {}
            () = closed => return,
        }
    }
}

/// The innermost cause says most: tonic's own text is "transport error".
fn describe(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
