//! What there is now: read off the core when a scraper asks, not counted as it happens.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::core::{Cause, NodeReport, Report};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabels {
    node: String,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

type NodeGauges = Family<NodeLabels, Gauge>;

#[derive(Debug)]
pub(super) struct Amounts {
    objects: Gauge,
    replicas: Gauge,
    repairs_waiting: Gauge,
    copies: Gauge,
    copied: Counter,
    extra_replicas: Gauge,
    extra_bytes: Gauge,
    reservations: Gauge,
    leases: Gauge,
    soft_pins: Gauge,
    hard_pins: Gauge,
    pins_given_up: Counter,
    uptime: Gauge<f64, AtomicU64>,
    evicted_objects: Counter,
    evicted_bytes: Counter,
    evictions: Family<CauseLabel, Counter>,
    eviction_bytes: Family<CauseLabel, Counter>,
    looked: Counter,
    capacity: NodeGauges,
    used: NodeGauges,
    longest_free: NodeGauges,
    held: NodeGauges,
    unrecorded: NodeGauges,
    listing: NodeGauges,
    soft_pinned: NodeGauges,
    hard_pinned: NodeGauges,
    heard: Family<NodeLabels, Gauge<f64, AtomicU64>>,
    nodes: Gauge,
    memory: Gauge,
}

impl Amounts {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let amounts = Self {
            objects: Gauge::default(),
            replicas: Gauge::default(),
            repairs_waiting: Gauge::default(),
            copies: Gauge::default(),
            copied: Counter::default(),
            extra_replicas: Gauge::default(),
            extra_bytes: Gauge::default(),
            reservations: Gauge::default(),
            leases: Gauge::default(),
            soft_pins: Gauge::default(),
            hard_pins: Gauge::default(),
            pins_given_up: Counter::default(),
            uptime: Gauge::default(),
            evicted_objects: Counter::default(),
            evicted_bytes: Counter::default(),
            evictions: Family::default(),
            eviction_bytes: Family::default(),
            looked: Counter::default(),
            capacity: NodeGauges::default(),
            used: NodeGauges::default(),
            longest_free: NodeGauges::default(),
            held: NodeGauges::default(),
            unrecorded: NodeGauges::default(),
            listing: NodeGauges::default(),
            soft_pinned: NodeGauges::default(),
            hard_pinned: NodeGauges::default(),
            heard: Family::default(),
            nodes: Gauge::default(),
            memory: Gauge::default(),
        };
        registry.register("objects", "Readable objects", amounts.objects.clone());
        registry.register("replicas", "Replicas of readable objects", amounts.replicas.clone());
        let waiting = "Objects that wait for replicas they lack";
        registry.register("repairs_waiting", waiting, amounts.repairs_waiting.clone());
        registry.register("copies_running", "Copies between nodes under way", amounts.copies.clone());
        registry.register("copies", "Copies between nodes that were made", amounts.copied.clone());
        let extra = "Replicas of hot objects beyond those asked for";
        registry.register("extra_replicas", extra, amounts.extra_replicas.clone());
        registry.register_with_unit("extra_replica", "Extents of those", Unit::Bytes, amounts.extra_bytes.clone());
        registry.register("reservations", "Live reservations", amounts.reservations.clone());
        registry.register("leases", "Live leases", amounts.leases.clone());
        registry.register("soft_pins", "Objects under soft pins", amounts.soft_pins.clone());
        registry.register("hard_pins", "Objects under hard pins", amounts.hard_pins.clone());
        let given_up = "Soft pins given up because a put had no room";
        registry.register("soft_pins_given_up", given_up, amounts.pins_given_up.clone());
        registry.register("nodes", "Nodes in the pool", amounts.nodes.clone());
        registry.register_with_unit("uptime", "Time since the start", Unit::Seconds, amounts.uptime.clone());
        registry.register("evicted_objects", "Objects evicted", amounts.evicted_objects.clone());
        registry.register_with_unit(
            "evicted",
            "Extents of evicted objects",
            Unit::Bytes,
            amounts.evicted_bytes.clone(),
        );
        registry.register("evictions", "Objects evicted, by cause", amounts.evictions.clone());
        let bytes = "Extents of evicted objects, by cause";
        registry.register_with_unit("eviction", bytes, Unit::Bytes, amounts.eviction_bytes.clone());
        registry.register("objects_looked_at", "Objects looked at to find room for puts", amounts.looked.clone());
        amounts.register_nodes(registry);
        registry.register_with_unit("resident", "Memory of this process", Unit::Bytes, amounts.memory.clone());
        amounts
    }

    fn register_nodes(&self, registry: &mut Registry) {
        registry.register_with_unit("node_capacity", "Memory a node lends", Unit::Bytes, self.capacity.clone());
        let used = "Memory of a node in use: sealed, reserved, resting or held for readers";
        registry.register_with_unit("node_used", used, Unit::Bytes, self.used.clone());
        let longest = "Longest free run of a node's memory";
        registry.register_with_unit("node_longest_free", longest, Unit::Bytes, self.longest_free.clone());
        registry.register("node_objects", "Readable objects on a node", self.held.clone());
        let unrecorded = "Readable objects on a node without a record: a restart would lose them";
        registry.register("node_unrecorded_objects", unrecorded, self.unrecorded.clone());
        let listing = "1 while a node has not told all that its memory holds";
        registry.register("node_listing", listing, self.listing.clone());
        let soft = "Extents on a node under soft pins";
        registry.register_with_unit("node_soft_pinned", soft, Unit::Bytes, self.soft_pinned.clone());
        let pinned = "Extents on a node under hard pins";
        registry.register_with_unit("node_hard_pinned", pinned, Unit::Bytes, self.hard_pinned.clone());
        let heard = "Time since a node was last heard of";
        registry.register_with_unit("node_heartbeat_age", heard, Unit::Seconds, self.heard.clone());
    }

    pub(super) fn set(&self, report: &Report) {
        self.objects.set(signed(report.objects));
        self.replicas.set(signed(report.replicas));
        self.repairs_waiting.set(signed(report.repairs_waiting));
        self.copies.set(signed(report.copies));
        raise(&self.copied, report.copied);
        self.extra_replicas.set(signed(report.extra_replicas));
        self.extra_bytes.set(signed(report.extra_bytes));
        self.reservations.set(signed(report.reservations));
        self.leases.set(signed(report.leases));
        self.soft_pins.set(signed(report.soft_pins));
        self.hard_pins.set(signed(report.hard_pins));
        raise(&self.pins_given_up, report.pins_given_up);
        self.nodes.set(signed(report.nodes.len() as u64));
        self.uptime.set(seconds(report.uptime_ms));
        raise(&self.evicted_objects, report.evicted_objects);
        raise(&self.evicted_bytes, report.evicted_bytes);
        for ((_, cause), amount) in Cause::ALL.into_iter().zip(report.evicted) {
            raise(&self.evictions.get_or_create(&CauseLabel { cause }), amount.objects);
            raise(&self.eviction_bytes.get_or_create(&CauseLabel { cause }), amount.bytes);
        }
        raise(&self.looked, report.looked);
        self.memory.set(signed(resident_bytes()));
        // Nodes that are gone must not stay in the list.
        self.capacity.clear();
        self.used.clear();
        self.longest_free.clear();
        self.held.clear();
        self.unrecorded.clear();
        self.listing.clear();
        self.soft_pinned.clear();
        self.hard_pinned.clear();
        self.heard.clear();
        for node in &report.nodes {
            self.set_node(node);
        }
    }

    fn set_node(&self, node: &NodeReport) {
        let labels = NodeLabels { node: node.node.to_string(), name: node.name.to_string() };
        self.capacity.get_or_create(&labels).set(signed(node.capacity_bytes));
        self.used.get_or_create(&labels).set(signed(node.used_bytes));
        self.longest_free.get_or_create(&labels).set(signed(node.longest_free_bytes));
        self.held.get_or_create(&labels).set(signed(node.objects));
        self.unrecorded.get_or_create(&labels).set(signed(node.unrecorded));
        self.listing.get_or_create(&labels).set(node.listing.into());
        self.soft_pinned.get_or_create(&labels).set(signed(node.soft_pinned_bytes));
        self.hard_pinned.get_or_create(&labels).set(signed(node.hard_pinned_bytes));
        self.heard.get_or_create(&labels).set(seconds(node.heartbeat_age_ms));
    }
}

/// Lets a counter catch up with a total that is kept elsewhere.
fn raise(counter: &Counter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

/// Resident memory of this process in bytes; 0 where the system does not say.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
