//! What is counted and timed, and how it is shown to Prometheus. `docs/metrics.md` lists it; a test compares the two.

mod amounts;

use std::array;
use std::fmt::Write as _;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use memcache_proto::pb::{self, reply, request};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use self::amounts::Amounts;
use crate::core::{Effect, GoneReason, Report};

/// Upper bounds of the time buckets: 2 us, doubled up to about a second.
const BUCKET_MIN_S: f64 = 2e-6;
const BUCKETS: u16 = 20;

/// The requests, in the order of [`rpc_of`].
const RPCS: [&str; 23] = [
    "reserve",
    "seal",
    "abort",
    "locate",
    "release",
    "match_prefix",
    "exist",
    "remove",
    "remove_all",
    "join",
    "heartbeat",
    "leave",
    "describe",
    "register_fingerprint",
    "status",
    "work",
    "drain",
    "holdings",
    "info",
    "renew",
    "pin",
    "unpin",
    "damaged",
];

/// Which request this is; `None` for one this version does not know.
pub(super) const fn rpc_of(request: &pb::Request) -> Option<usize> {
    let Some(body) = &request.body else { return None };
    Some(match body {
        request::Body::Reserve(_) => 0,
        request::Body::Seal(_) => 1,
        request::Body::Abort(_) => 2,
        request::Body::Locate(_) => 3,
        request::Body::Release(_) => 4,
        request::Body::MatchPrefix(_) => 5,
        request::Body::Exist(_) => 6,
        request::Body::Remove(_) => 7,
        request::Body::RemoveAll(_) => 8,
        request::Body::Join(_) => 9,
        request::Body::Heartbeat(_) => 10,
        request::Body::Leave(_) => 11,
        request::Body::Describe(_) => 12,
        request::Body::RegisterFingerprint(_) => 13,
        request::Body::Status(_) => 14,
        request::Body::Work(_) => 15,
        request::Body::Drain(_) => 16,
        request::Body::Holdings(_) => 17,
        request::Body::Info(_) => 18,
        request::Body::Renew(_) => 19,
        request::Body::Pin(_) => 20,
        request::Body::Unpin(_) => 21,
        request::Body::Damaged(_) => 22,
    })
}

/// How many keys a prefix lookup asks about; 0 for other requests.
pub(super) fn prefix_keys(request: &pb::Request) -> u64 {
    let Some(request::Body::MatchPrefix(pb::MatchPrefix { keys: Some(keys) })) = &request.body else { return 0 };
    let count = match keys.lengths.as_slice() {
        [one] => keys.data.len().checked_div(*one as usize).unwrap_or(0),
        each => each.len(),
    };
    count as u64
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabel {
    rpc: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    rpc: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// One kind of request.
#[derive(Debug)]
struct Rpc {
    seconds: Histogram,
    failures: Counter,
}

/// Per-key outcomes of one kind of request; the place in the array is the outcome's number on the wire.
#[derive(Debug)]
struct Outcomes<const N: usize>([Counter; N]);

impl<const N: usize> Outcomes<N> {
    fn new(family: &Family<OutcomeLabels, Counter>, rpc: &'static str, names: [&'static str; N]) -> Self {
        Self(array::from_fn(|at| family.get_or_create_owned(&OutcomeLabels { rpc, outcome: names[at] })))
    }

    fn count(&self, outcomes: &[u8]) {
        let mut counts = [0; N];
        for outcome in outcomes {
            if let Some(count) = counts.get_mut(usize::from(*outcome)) {
                *count += 1;
            }
        }
        for (counter, count) in self.0.iter().zip(counts) {
            if count > 0 {
                counter.inc_by(count);
            }
        }
    }
}

/// Everything that is counted. Times and outcomes are added as requests are served, amounts when somebody asks.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    rpcs: [Rpc; RPCS.len()],
    reserved: Outcomes<6>,
    sealed: Outcomes<4>,
    located: Outcomes<4>,
    exist: Outcomes<4>,
    matched: Counter,
    unmatched: Counter,
    joined: Counter,
    gone: Family<ReasonLabel, Counter>,
    expired: Counter,
    damaged: Counter,
    doubtful: Counter,
    sessions: Gauge,
    lanes: Gauge,
    mailboxes: Gauge,
    /// One scrape at a time: gauges of nodes are cleared and set.
    amounts: Mutex<Amounts>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("memcache_meta");
        let seconds = Family::<RpcLabel, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(BUCKET_MIN_S, 2.0, BUCKETS))
        });
        let failures = Family::<RpcLabel, Counter>::default();
        let keys = Family::<OutcomeLabels, Counter>::default();
        let gone = Family::<ReasonLabel, Counter>::default();
        for reason in ["left", "silent", "replaced"] {
            // A rate over a series that is not there yet is nothing, not zero.
            drop(gone.get_or_create(&ReasonLabel { reason }));
        }
        let rpcs = array::from_fn(|at| {
            let label = RpcLabel { rpc: RPCS[at] };
            Rpc { seconds: seconds.get_or_create_owned(&label), failures: failures.get_or_create_owned(&label) }
        });
        let (joined, expired, damaged) = (Counter::default(), Counter::default(), Counter::default());
        let doubtful = Counter::default();
        let (sessions, lanes, mailboxes) = (Gauge::default(), Gauge::default(), Gauge::default());
        registry.register_with_unit("request", "Time from a request's arrival to its reply", Unit::Seconds, seconds);
        registry.register("request_failures", "Requests refused as a whole", failures);
        registry.register("keys", "Keys by what became of them", keys.clone());
        registry.register("nodes_joined", "Joins of nodes", joined.clone());
        registry.register("nodes_gone", "Nodes that went, by reason", gone.clone());
        registry.register("reservations_expired", "Reservations that ran out unsealed", expired.clone());
        registry.register("damaged_replicas", "Replicas that readers found damaged", damaged.clone());
        let help = "Objects of nodes that were away, refused because they may have been removed";
        registry.register("doubtful_objects_refused", help, doubtful.clone());
        registry.register("sessions", "Connected sessions", sessions.clone());
        registry.register("lanes", "Open lanes", lanes.clone());
        registry.register("mailboxes", "Open lanes through shared memory", mailboxes.clone());
        let amounts = Mutex::new(Amounts::register(&mut registry));
        let lookup = ["unknown", "located", "absent", "pending"];
        let matched = |outcome| keys.get_or_create_owned(&OutcomeLabels { rpc: "match_prefix", outcome });
        Self {
            reserved: Outcomes::new(
                &keys,
                "reserve",
                ["unknown", "reserved", "present", "pending", "no_space", "too_large"],
            ),
            sealed: Outcomes::new(&keys, "seal", ["unknown", "sealed", "present", "lost"]),
            located: Outcomes::new(&keys, "locate", lookup),
            exist: Outcomes::new(&keys, "exist", lookup),
            matched: matched("matched"),
            unmatched: matched("unmatched"),
            registry,
            rpcs,
            joined,
            gone,
            expired,
            damaged,
            doubtful,
            sessions,
            lanes,
            mailboxes,
            amounts,
        }
    }

    /// A request was served. `prefix_keys` is what [`prefix_keys`] said of it.
    pub(super) fn served(&self, rpc: Option<usize>, prefix_keys: u64, reply: &pb::Reply, took: Duration) {
        let Some(rpc) = rpc.and_then(|at| self.rpcs.get(at)) else { return };
        rpc.seconds.observe(took.as_secs_f64());
        match &reply.body {
            Some(reply::Body::Failure(_)) => drop(rpc.failures.inc()),
            Some(reply::Body::Reserve(reply)) => self.reserved.count(&reply.outcomes),
            Some(reply::Body::Seal(reply)) => self.sealed.count(&reply.outcomes),
            Some(reply::Body::Locate(reply)) => self.located.count(&reply.outcomes),
            Some(reply::Body::Exist(reply)) => self.exist.count(&reply.outcomes),
            Some(reply::Body::MatchPrefix(reply)) => {
                self.matched.inc_by(reply.present.into());
                self.unmatched.inc_by(prefix_keys.saturating_sub(reply.present.into()));
            }
            _ => {}
        }
    }

    /// Something happened in the core.
    pub(super) fn happened(&self, effect: &Effect) {
        match effect {
            Effect::NodeJoined { .. } => drop(self.joined.inc()),
            Effect::NodeGone { reason, .. } => {
                let reason = match reason {
                    GoneReason::Left => "left",
                    GoneReason::Silent => "silent",
                    GoneReason::Replaced => "replaced",
                };
                self.gone.get_or_create(&ReasonLabel { reason }).inc();
            }
            Effect::ReservationsExpired { count } => drop(self.expired.inc_by(*count)),
            Effect::Damaged { replicas } => drop(self.damaged.inc_by(*replicas)),
            Effect::Doubtful { objects, .. } => drop(self.doubtful.inc_by(*objects)),
            // The core counts evictions on demand as well; drains and listings show in the amounts of their nodes.
            Effect::Evicted { .. }
            | Effect::Draining { .. }
            | Effect::Listed { .. }
            | Effect::RemovalsForgotten { .. } => {}
        }
    }

    /// A session began; the guard ends it.
    pub(super) fn session(&self) -> SessionGuard {
        self.sessions.inc();
        SessionGuard(self.sessions.clone())
    }

    /// A lane began; the guard ends it.
    pub(super) fn lane(&self) -> SessionGuard {
        self.lanes.inc();
        SessionGuard(self.lanes.clone())
    }

    /// A lane through shared memory began; the guard ends it.
    pub(super) fn mailbox(&self) -> SessionGuard {
        self.mailboxes.inc();
        SessionGuard(self.mailboxes.clone())
    }

    /// The text a scraper reads, with the amounts of now.
    pub(super) fn text(&self, report: &Report) -> String {
        let amounts = self.amounts.lock();
        amounts.set(report);
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            // Writing to a String does not fail; if it ever does, the scraper sees a comment.
            let _ = write!(text, "# {error}");
        }
        text
    }
}

/// Ends the count of a session or a lane.
#[derive(Debug)]
pub(super) struct SessionGuard(Gauge<i64, AtomicI64>);

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use memcache_types::{Epoch, HoldingsPlace, Incarnation, NodeId, Tier};

    use super::*;
    use crate::core::{
        Amount, Cause, Core, EvictionPolicy, Evictions, JoinRequest, Millis, SearchLimits, SegmentOffer, Settings,
        limits,
    };

    const DOCUMENT: &str = include_str!("../../../docs/metrics.md");

    /// Name and type of each row of the table.
    fn documented() -> BTreeMap<String, String> {
        let rows = DOCUMENT.lines().filter_map(|line| line.strip_prefix("| `memcache_"));
        rows.map(|row| {
            let mut cells = row.split('|').map(str::trim);
            let (name, kind) = (cells.next().unwrap(), cells.next().unwrap());
            (format!("memcache_{}", name.trim_end_matches('`')), kind.to_owned())
        })
        .collect()
    }

    /// A pool of one node, with some of its numbers set.
    fn report() -> Report {
        let settings = Settings {
            reservation_ttl_ms: 1000,
            lease_ms: 1000,
            heartbeat_ms: 1000,
            node_dead_ms: 5000,
            high_watermark_ppm: 900_000,
            low_watermark_ppm: 800_000,
            hard_pin_ppm: 250_000,
            hot_replica_bytes: 0,
            removals_max: limits::REMOVALS_MAX,
            step: limits::CALL_BURIALS_MAX,
            policy: EvictionPolicy::Adaptive,
            search: SearchLimits::DEFAULT,
        };
        let (mut core, now) = (Core::new(settings, Epoch::new(1), Millis::new(0)), Millis::new(0));
        let holdings = HoldingsPlace::default();
        let offer = SegmentOffer { bytes: 1 << 20, tier: Tier::Dram, descriptor: Box::default(), holdings };
        let request = JoinRequest {
            node: NodeId::new(7),
            incarnation: Incarnation::new(1),
            name: "seven",
            offers: vec![offer],
            previous_epoch: Epoch::new(0),
            lists: false,
            floor: 0,
        };
        core.join(now, request, &mut Vec::new()).unwrap();
        let mut evicted = Evictions::default();
        evicted[Cause::Hole as usize] = Amount { objects: 2, bytes: 256 };
        Report {
            objects: 3,
            evicted_objects: 5,
            evicted_bytes: 640,
            evicted,
            looked: 17,
            ..core.status(now, &mut Vec::new())
        }
    }

    #[test]
    fn the_document_lists_exactly_what_is_exported() {
        let text = Metrics::new().text(&report());
        let exported: BTreeMap<String, String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .map(|line| line.split_once(' ').unwrap())
            .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
            .collect();
        assert_eq!(documented(), exported);
    }

    #[test]
    fn requests_are_timed_and_their_keys_counted_by_outcome() {
        let metrics = Metrics::new();
        let reply = |body| pb::Reply { request_id: 1, epoch: 1, body: Some(body) };
        let request = pb::Request {
            body: Some(request::Body::MatchPrefix(pb::MatchPrefix {
                keys: Some(pb::Keys { data: vec![0; 40], lengths: vec![8] }),
            })),
            ..pb::Request::default()
        };
        let found = reply(reply::Body::MatchPrefix(pb::MatchPrefixReply { present: 3, pending: 3 }));
        metrics.served(rpc_of(&request), prefix_keys(&request), &found, Duration::from_micros(5));
        let outcomes = [pb::LocateOutcome::Located, pb::LocateOutcome::LocateAbsent, pb::LocateOutcome::Located];
        let outcomes = outcomes.map(|outcome| u8::try_from(i32::from(outcome)).unwrap()).to_vec();
        let located = reply(reply::Body::Locate(pb::LocateReply { outcomes, ..pb::LocateReply::default() }));
        metrics.served(Some(3), 0, &located, Duration::from_micros(5));
        let failure = reply(reply::Body::Failure(pb::Failure::default()));
        metrics.served(Some(3), 0, &failure, Duration::from_micros(5));
        let text = metrics.text(&report());
        for line in [
            "memcache_meta_keys_total{rpc=\"match_prefix\",outcome=\"matched\"} 3",
            "memcache_meta_keys_total{rpc=\"match_prefix\",outcome=\"unmatched\"} 2",
            "memcache_meta_keys_total{rpc=\"locate\",outcome=\"located\"} 2",
            "memcache_meta_keys_total{rpc=\"locate\",outcome=\"absent\"} 1",
            "memcache_meta_request_failures_total{rpc=\"locate\"} 1",
            "memcache_meta_request_seconds_count{rpc=\"locate\"} 2",
            "memcache_meta_evicted_bytes_total 640",
            "memcache_meta_evictions_total{cause=\"hole\"} 2",
            "memcache_meta_eviction_bytes_total{cause=\"hole\"} 256",
            "memcache_meta_evictions_total{cause=\"watermark\"} 0",
            "memcache_meta_objects_looked_at_total 17",
            "memcache_meta_node_longest_free_bytes{node=\"7\",name=\"seven\"} 1048576",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn nodes_that_are_gone_leave_the_list_and_names_are_escaped() {
        let metrics = Metrics::new();
        let mut two = report();
        two.nodes[0].name = "a\"b\\c\nd".into();
        let text = metrics.text(&two);
        assert!(text.contains("name=\"a\\\"b\\\\c\\nd\""), "{text}");
        let text = metrics.text(&Report { nodes: Vec::new(), ..report() });
        assert!(!text.contains("node_used_bytes{"), "{text}");
    }

    #[test]
    fn every_request_has_a_name() {
        // A request this version does not know is counted nowhere.
        assert_eq!(rpc_of(&pb::Request::default()), None);
        let status = pb::Request { body: Some(request::Body::Status(pb::Status {})), ..pb::Request::default() };
        assert_eq!(rpc_of(&status).map(|at| RPCS[at]), Some("status"));
        let reserve =
            pb::Request { body: Some(request::Body::Reserve(pb::Reserve::default())), ..pb::Request::default() };
        assert_eq!(rpc_of(&reserve).map(|at| RPCS[at]), Some("reserve"));
    }
}
