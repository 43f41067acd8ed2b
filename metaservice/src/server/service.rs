//! The rpcs: each request goes through the core under its lock, at once, in the order of arrival.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use memcache_config::MetaConfig;
use memcache_proto::pb;
use memcache_proto::pb::meta_server::Meta;
use memcache_types::Epoch;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::coop::poll_proceed;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::TICK;
use super::metrics::{Metrics, SessionGuard, prefix_keys, rpc_of};
use crate::core::{Core, Effect, GoneReason, Millis, Report, SearchLimits, Settings, limits};
use crate::wire;

/// The core, its lock and its clock.
pub(super) struct Book {
    state: Mutex<State>,
    metrics: Metrics,
    epoch: Epoch,
    started: Instant,
    /// A longer gap between two looks at the clock means that this process did not run.
    gap_ms_max: u64,
    mailboxes_max: usize,
    /// Something panicked in the middle of the core: what it holds may be half a change.
    is_broken: AtomicBool,
    broke: Notify,
}

/// Says so when a call on the core panics.
struct Watched<'a>(&'a Book);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.is_broken.store(true, Ordering::Release);
            self.0.broke.notify_one();
        }
    }
}

struct State {
    core: Core,
    /// When the core last heard the time: at most a tick ago, unless this process was held up.
    last: Millis,
}

impl Book {
    pub(super) fn new(config: &MetaConfig, epoch: Epoch) -> Arc<Self> {
        let last = Millis::new(0);
        Arc::new(Self {
            state: Mutex::new(State { core: Core::new(settings(config), epoch, last), last }),
            metrics: Metrics::new(),
            epoch,
            started: Instant::now(),
            gap_ms_max: config.node_dead_ms / 2 + millis(TICK).get(),
            mailboxes_max: usize::try_from(config.mailboxes_max).unwrap_or(usize::MAX),
            is_broken: AtomicBool::new(false),
            broke: Notify::new(),
        })
    }

    /// Waits until something has panicked in the middle of the core. Whoever uses it after that panics too: the service ends
    /// and loses nothing by it, for its next life asks the nodes.
    pub(super) async fn broken(&self) {
        while !self.is_broken.load(Ordering::Acquire) {
            self.broke.notified().await;
        }
    }

    /// Runs something on the core, with the time.
    pub(super) fn with<R>(&self, run: impl FnOnce(&mut Core, Millis, &mut Vec<Effect>) -> R) -> R {
        assert!(!self.is_broken.load(Ordering::Acquire), "this service is ending: a call before this one panicked");
        let _watched = Watched(self);
        let mut effects = Vec::new();
        let (result, gap_ms) = {
            let mut state = self.state.lock();
            let now = millis(self.started.elapsed());
            let gap_ms = now.since(std::mem::replace(&mut state.last, now));
            if gap_ms > self.gap_ms_max {
                // Whatever the nodes sent meanwhile is still in the sockets.
                state.core.excuse_silence(now);
            }
            (run(&mut state.core, now, &mut effects), gap_ms)
        };
        if gap_ms > self.gap_ms_max {
            warn!(gap_ms, "this process was held up; no node is blamed for its silence");
        }
        for effect in &effects {
            self.metrics.happened(effect);
        }
        log(effects);
        result
    }

    pub(super) fn serve(&self, request: pb::Request) -> pb::Reply {
        let (rpc, prefix_keys, arrived) = (rpc_of(&request), prefix_keys(&request), Instant::now());
        let reply = self.with(|core, now, effects| wire::serve(core, now, request, effects));
        self.metrics.served(rpc, prefix_keys, &reply, arrived.elapsed());
        reply
    }

    /// A lane was opened; the guard ends its count.
    pub(super) fn lane_opened(&self) -> SessionGuard {
        self.metrics.lane()
    }

    /// A mailbox was handed out; the guard ends its count.
    pub(super) fn mailbox_opened(&self) -> SessionGuard {
        self.metrics.mailbox()
    }

    /// Most mailboxes at a time.
    pub(super) const fn mailboxes_max(&self) -> usize {
        self.mailboxes_max
    }

    /// Which life of the service this is, as it was drawn at the start: a name for greetings and mailboxes. Replies carry
    /// that of the core, which goes past earlier lives that turn out to have had a later one.
    pub(super) const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Everything, counted.
    pub(super) fn report(&self) -> Report {
        self.with(Core::status)
    }

    /// What a scraper reads.
    pub(super) fn metrics_text(&self) -> String {
        self.metrics.text(&self.report())
    }

    /// Lets time pass. True: there is more to do right away.
    pub(super) fn tick(&self) -> bool {
        self.with(Core::tick)
    }
}

fn millis(duration: Duration) -> Millis {
    Millis::new(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn settings(config: &MetaConfig) -> Settings {
    // The configuration bounds every length of time far below 2^32 ms.
    let ms = |ms: u64| u32::try_from(ms).unwrap_or(u32::MAX);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the configuration bounds it by 0 and 1"
    )]
    let ppm = |part: f64| (part * 1e6).round() as u32;
    Settings {
        reservation_ttl_ms: ms(config.reservation_ttl_ms),
        lease_ms: ms(config.lease_ms),
        heartbeat_ms: ms(config.heartbeat_ms),
        node_dead_ms: ms(config.node_dead_ms),
        high_watermark_ppm: ppm(config.eviction_high_watermark),
        low_watermark_ppm: ppm(config.eviction_low_watermark),
        hard_pin_ppm: ppm(config.hard_pin_quota),
        hot_replica_bytes: config.hot_replica_bytes.get(),
        removals_max: limits::REMOVALS_MAX,
        step: limits::CALL_BURIALS_MAX,
        policy: config.eviction_policy,
        search: SearchLimits::DEFAULT,
    }
}

fn log(effects: Vec<Effect>) {
    for effect in effects {
        match effect {
            Effect::NodeJoined { node, incarnation, name, bytes, rests } => {
                info!(%node, %incarnation, name, bytes, rests, "node joined");
            }
            Effect::Listed { node, incarnation, objects } => {
                info!(%node, %incarnation, objects, "node told what its memory holds");
            }
            Effect::NodeGone { node, incarnation, name, reason: GoneReason::Left, objects } => {
                info!(%node, %incarnation, name, objects, "node left");
            }
            Effect::NodeGone { node, incarnation, name, reason, objects } => {
                warn!(%node, %incarnation, name, objects, ?reason, "node gone");
            }
            Effect::Doubtful { node, incarnation, objects } => {
                warn!(%node, %incarnation, objects, "refused objects that may have been removed while their node was away");
            }
            Effect::RemovalsForgotten { removals } => {
                warn!(
                    removals,
                    "the oldest of so many removals are forgotten; nodes that were away since then lose what is older"
                );
            }
            Effect::Draining { node, drain } => info!(%node, ?drain, "draining"),
            Effect::Damaged { replicas } => warn!(replicas, "a reader found replicas damaged; they are forgotten"),
            Effect::Evicted { node, objects, bytes } => debug!(%node, objects, bytes, "evicted"),
            Effect::ReservationsExpired { count } => info!(count, "reservations ran out unsealed"),
        }
    }
}

/// What tonic calls.
pub(super) struct Handler {
    pub(super) book: Arc<Book>,
    pub(super) stopped: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl Meta for Handler {
    type SessionStream = Replies;

    async fn call(&self, request: Request<pb::Request>) -> Result<Response<pb::Reply>, Status> {
        Ok(Response::new(self.book.serve(request.into_inner())))
    }

    async fn session(&self, request: Request<Streaming<pb::Request>>) -> Result<Response<Replies>, Status> {
        let mut stopped = self.stopped.clone();
        let stop = Box::pin(async move {
            // An error means that the service is gone altogether.
            let _ = stopped.wait_for(|stop| *stop).await;
        });
        let counted = self.book.metrics.session();
        Ok(Response::new(Replies {
            requests: request.into_inner(),
            book: Arc::clone(&self.book),
            stop,
            _counted: counted,
        }))
    }
}

/// The replies of one session. There is no queue: a reply is made when the connection can take it, so a client that
/// does not read is not read from either.
pub(super) struct Replies {
    requests: Streaming<pb::Request>,
    book: Arc<Book>,
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
    _counted: SessionGuard,
}

impl Stream for Replies {
    type Item = Result<pb::Reply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.stop.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        // A window of requests may lie here; others have their turn after some of them.
        let turn = ready!(poll_proceed(context));
        match Pin::new(&mut self.requests).poll_next(context) {
            Poll::Ready(Some(Ok(request))) => {
                turn.made_progress();
                Poll::Ready(Some(Ok(self.book.serve(request))))
            }
            Poll::Ready(Some(Err(status))) => {
                debug!(%status, "a session ended");
                Poll::Ready(Some(Err(status)))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}
