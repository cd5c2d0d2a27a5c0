//! Every metric of the proxy, declared once.
//!
//! Handles are resolved when a session or a node begins, so that counting is an addition.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use prometheus::{
    Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder, core::Collector,
};

use crate::{
    sql::{Access, PinReason, Reason},
    topology::{Role, Snapshot, State},
};

/// Upper bounds of the latency histograms, in seconds: 50 µs to 10 s.
const BUCKETS: [f64; 16] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0,
];

/// All families, on one registry.
pub struct Metrics {
    registry: Registry,
    statements: IntCounterVec,
    statement_seconds: HistogramVec,
    statement_wait_seconds: HistogramVec,
    statement_server_seconds: HistogramVec,
    errors: IntCounterVec,
    replica_lag_seconds: GaugeVec,
    replica_lag_bytes: GaugeVec,
    node_weight: GaugeVec,
    node_role: IntGaugeVec,
    node_state: IntGaugeVec,
    failovers: IntCounterVec,
    failover_seconds: GaugeVec,
    held: IntGaugeVec,
    retries: IntCounterVec,
    reroutes: IntCounterVec,
    causal_fallbacks: IntCounterVec,
    lost_positions: IntCounterVec,
    pool_connections: IntGaugeVec,
    pool_waiters: IntGaugeVec,
    pool_wait_seconds: HistogramVec,
    clients: IntGaugeVec,
    pins: IntCounterVec,
    statement_cache: IntCounterVec,
    parse_failures: IntCounterVec,
    logins: IntCounterVec,
    reloads: IntCounterVec,
    pub reload_success: IntGauge,
    pub reload_time: Gauge,
    clusters: Mutex<HashMap<Arc<str>, Arc<ClusterMetrics>>>,
}

/// Registers a family that was just made.
fn register<C: Collector + Clone + 'static>(registry: &Registry, family: prometheus::Result<C>) -> C {
    let family = family.expect("names and labels are constants that a test registers");
    registry.register(Box::new(family.clone())).expect("every name is declared once");
    family
}

fn counter(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauge(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

fn float(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    register(registry, GaugeVec::new(Opts::new(name, help), labels))
}

fn histogram(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    register(registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()), labels))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Declares all families on a registry of its own.
    pub fn new() -> Self {
        let r = Registry::new();
        let version = gauge(&r, "pointsman_build_info", "Always 1; the version is a label.", &["version"]);
        version.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self {
            statements: counter(
                &r,
                "pointsman_statements_total",
                "Statements by node, access and reason.",
                &["cluster", "node", "access", "reason"],
            ),
            statement_seconds: histogram(
                &r,
                "pointsman_statement_seconds",
                "Time from a statement's arrival to the end of its answer.",
                &["cluster", "access"],
            ),
            statement_wait_seconds: histogram(
                &r,
                "pointsman_statement_wait_seconds",
                "Part of that spent waiting for a node or a connection.",
                &["cluster", "access"],
            ),
            statement_server_seconds: histogram(
                &r,
                "pointsman_statement_server_seconds",
                "Part of that spent on the server's answer.",
                &["cluster", "access"],
            ),
            errors: counter(
                &r,
                "pointsman_errors_total",
                "Errors that the proxy itself gave to clients.",
                &["cluster", "kind"],
            ),
            replica_lag_seconds: float(
                &r,
                "pointsman_replica_lag_seconds",
                "Age of the oldest primary position not replayed; absent when unknown.",
                &["cluster", "node"],
            ),
            replica_lag_bytes: float(
                &r,
                "pointsman_replica_lag_bytes",
                "WAL bytes (MySQL: transactions) not replayed; absent when unknown.",
                &["cluster", "node"],
            ),
            node_weight: float(
                &r,
                "pointsman_node_weight",
                "Share of reads a node is drawn with, relative to the others.",
                &["cluster", "node"],
            ),
            node_role: gauge(
                &r,
                "pointsman_node_role",
                "1 for the role a node has.",
                &["cluster", "node", "role"],
            ),
            node_state: gauge(
                &r,
                "pointsman_node_state",
                "1 for the state a node is in.",
                &["cluster", "node", "state"],
            ),
            failovers: counter(
                &r,
                "pointsman_failovers_total",
                "Times another node became primary.",
                &["cluster"],
            ),
            failover_seconds: float(
                &r,
                "pointsman_failover_seconds",
                "How long the last failover left the cluster without primary.",
                &["cluster"],
            ),
            held: gauge(&r, "pointsman_held_statements", "Statements waiting for a primary.", &["cluster"]),
            retries: counter(
                &r,
                "pointsman_retries_total",
                "Statements run again on another node.",
                &["cluster", "reason"],
            ),
            reroutes: counter(
                &r,
                "pointsman_reroutes_total",
                "Statements a replica refused that the primary ran.",
                &["cluster", "reason"],
            ),
            causal_fallbacks: counter(
                &r,
                "pointsman_causal_fallbacks_total",
                "Reads the primary served because no replica had caught up with the session.",
                &["cluster"],
            ),
            lost_positions: counter(
                &r,
                "pointsman_lost_positions_total",
                "Floors that lay in history a failover threw away.",
                &["cluster"],
            ),
            pool_connections: gauge(
                &r,
                "pointsman_pool_connections",
                "Server connections by node and state.",
                &["cluster", "node", "state"],
            ),
            pool_waiters: gauge(
                &r,
                "pointsman_pool_waiters",
                "Sessions waiting for a server connection.",
                &["cluster", "node"],
            ),
            pool_wait_seconds: histogram(
                &r,
                "pointsman_pool_wait_seconds",
                "Time sessions waited for a server connection when none was free.",
                &["cluster"],
            ),
            clients: gauge(&r, "pointsman_clients", "Client connections.", &["cluster"]),
            pins: counter(
                &r,
                "pointsman_pins_total",
                "Times a session had to keep its server connection.",
                &["cluster", "reason"],
            ),
            statement_cache: counter(
                &r,
                "pointsman_statement_cache_total",
                "Look-ups in the cache of classified statements.",
                &["cluster", "result"],
            ),
            parse_failures: counter(
                &r,
                "pointsman_parse_failures_total",
                "Statements that were not understood and so went to the primary.",
                &["cluster"],
            ),
            logins: counter(
                &r,
                "pointsman_logins_total",
                "Logins of clients by result.",
                &["cluster", "result"],
            ),
            reloads: counter(
                &r,
                "pointsman_config_reloads_total",
                "Reloads of the configuration by result.",
                &["result"],
            ),
            reload_success: register(
                &r,
                IntGauge::new("pointsman_config_last_reload_success", "1 if the last reload was applied."),
            ),
            reload_time: register(
                &r,
                Gauge::new(
                    "pointsman_config_last_reload_success_timestamp_seconds",
                    "When the configuration was last applied, in Unix time.",
                ),
            ),
            clusters: Mutex::new(HashMap::new()),
            registry: r,
        }
    }

    /// The handles of one cluster; the same ones every time.
    pub fn cluster(&self, name: &Arc<str>) -> Arc<ClusterMetrics> {
        self.clusters
            .lock()
            .entry(name.clone())
            .or_insert_with(|| Arc::new(ClusterMetrics::new(self, name)))
            .clone()
    }

    pub fn reloaded(&self, applied: bool) {
        self.reloads.with_label_values(&[if applied { "applied" } else { "refused" }]).inc();
        self.reload_success.set(i64::from(applied));
    }

    /// Everything in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out).expect("writing to memory cannot fail");
        String::from_utf8(out).expect("the text format is UTF-8")
    }
}

/// One cluster's handles.
pub struct ClusterMetrics {
    name: Arc<str>,
    statements: IntCounterVec,
    nodes: Mutex<HashMap<Arc<str>, Arc<NodeMetrics>>>,
    seconds: [prometheus::Histogram; 2],
    wait_seconds: [prometheus::Histogram; 2],
    server_seconds: [prometheus::Histogram; 2],
    errors: IntCounterVec,
    gauges: NodeGauges,
    pub failovers: IntCounter,
    failover_seconds: GaugeVec,
    pub held: IntGauge,
    retries: IntCounterVec,
    reroutes: IntCounterVec,
    pub causal_fallbacks: IntCounter,
    pub lost_positions: IntCounter,
    pub pool_wait_seconds: prometheus::Histogram,
    pub clients: IntGauge,
    pins: IntCounterVec,
    cache_hits: Mirror,
    cache_misses: Mirror,
    parse_failures: Mirror,
    logins: IntCounterVec,
}

struct NodeGauges {
    lag_seconds: GaugeVec,
    lag_bytes: GaugeVec,
    weight: GaugeVec,
    role: IntGaugeVec,
    state: IntGaugeVec,
    connections: IntGaugeVec,
    waiters: IntGaugeVec,
}

/// A counter that follows a count kept elsewhere.
struct Mirror {
    counter: IntCounter,
    seen: AtomicU64,
}

impl Mirror {
    fn new(counter: IntCounter) -> Self {
        Self { counter, seen: AtomicU64::new(0) }
    }

    fn follow(&self, count: u64) {
        let before = self.seen.swap(count, Ordering::Relaxed);
        self.counter.inc_by(count.saturating_sub(before));
    }
}

const fn index(access: Access) -> usize {
    match access {
        Access::Read => 0,
        Access::Write => 1,
    }
}

impl ClusterMetrics {
    fn new(all: &Metrics, name: &Arc<str>) -> Self {
        let n: &str = name;
        let by_access =
            |family: &HistogramVec| ["read", "write"].map(|access| family.with_label_values(&[n, access]));
        Self {
            name: name.clone(),
            statements: all.statements.clone(),
            nodes: Mutex::new(HashMap::new()),
            seconds: by_access(&all.statement_seconds),
            wait_seconds: by_access(&all.statement_wait_seconds),
            server_seconds: by_access(&all.statement_server_seconds),
            errors: all.errors.clone(),
            gauges: NodeGauges {
                lag_seconds: all.replica_lag_seconds.clone(),
                lag_bytes: all.replica_lag_bytes.clone(),
                weight: all.node_weight.clone(),
                role: all.node_role.clone(),
                state: all.node_state.clone(),
                connections: all.pool_connections.clone(),
                waiters: all.pool_waiters.clone(),
            },
            failovers: all.failovers.with_label_values(&[n]),
            failover_seconds: all.failover_seconds.clone(),
            held: all.held.with_label_values(&[n]),
            retries: all.retries.clone(),
            reroutes: all.reroutes.clone(),
            causal_fallbacks: all.causal_fallbacks.with_label_values(&[n]),
            lost_positions: all.lost_positions.with_label_values(&[n]),
            pool_wait_seconds: all.pool_wait_seconds.with_label_values(&[n]),
            clients: all.clients.with_label_values(&[n]),
            pins: all.pins.clone(),
            cache_hits: Mirror::new(all.statement_cache.with_label_values(&[n, "hit"])),
            cache_misses: Mirror::new(all.statement_cache.with_label_values(&[n, "miss"])),
            parse_failures: Mirror::new(all.parse_failures.with_label_values(&[n])),
            logins: all.logins.clone(),
        }
    }

    /// The counters of one node; the same ones every time.
    pub fn node(&self, address: &Arc<str>) -> Arc<NodeMetrics> {
        self.nodes.lock().entry(address.clone()).or_insert_with(|| Arc::new(self.make_node(address))).clone()
    }

    fn make_node(&self, address: &str) -> NodeMetrics {
        let counters = |access: &str| {
            Reason::ALL.map(|reason| {
                self.statements.with_label_values(&[&self.name, address, access, reason.label()])
            })
        };
        NodeMetrics { statements: [counters("read"), counters("write")] }
    }

    /// One answered statement. `waited`: before it was sent.
    pub fn answered(&self, access: Access, waited: Duration, total: Duration) {
        let at = index(access);
        self.seconds[at].observe(total.as_secs_f64());
        if !waited.is_zero() {
            self.wait_seconds[at].observe(waited.as_secs_f64());
        }
        self.server_seconds[at].observe(total.saturating_sub(waited).as_secs_f64());
    }

    pub fn error(&self, kind: &str) {
        self.errors.with_label_values(&[&*self.name, kind]).inc();
    }

    pub fn retry(&self, reason: &str) {
        self.retries.with_label_values(&[&*self.name, reason]).inc();
    }

    pub fn reroute(&self, reason: &str) {
        self.reroutes.with_label_values(&[&*self.name, reason]).inc();
    }

    pub fn pin(&self, reason: PinReason) {
        self.pins.with_label_values(&[&*self.name, reason.label()]).inc();
    }

    pub fn login(&self, result: &str) {
        self.logins.with_label_values(&[&*self.name, result]).inc();
    }

    pub fn failover_took(&self, seconds: f64) {
        self.failover_seconds.with_label_values(&[&*self.name]).set(seconds);
    }

    pub fn cache(&self, hits: u64, misses: u64, parse_failures: u64) {
        self.cache_hits.follow(hits);
        self.cache_misses.follow(misses);
        self.parse_failures.follow(parse_failures);
    }

    pub fn pool(&self, node: &str, idle: usize, in_use: usize, waiters: usize) {
        let set = |state: &str, count: usize| {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.gauges.connections.with_label_values(&[&*self.name, node, state]).set(count);
        };
        set("idle", idle);
        set("in_use", in_use);
        let waiters = i64::try_from(waiters).unwrap_or(i64::MAX);
        self.gauges.waiters.with_label_values(&[&*self.name, node]).set(waiters);
    }

    /// Shows a snapshot in the gauges.
    pub fn show(&self, snapshot: &Snapshot) {
        for node in snapshot.nodes.iter() {
            let labels: [&str; 2] = [&self.name, &node.address];
            match node.lag {
                Some(lag) => self.gauges.lag_seconds.with_label_values(&labels).set(lag.as_secs_f64()),
                None => drop(self.gauges.lag_seconds.remove_label_values(&labels)),
            }
            match node.lag_distance {
                Some(bytes) => self.gauges.lag_bytes.with_label_values(&labels).set(bytes as f64),
                None => drop(self.gauges.lag_bytes.remove_label_values(&labels)),
            }
            self.gauges.weight.with_label_values(&labels).set(node.weight);
            for role in [Role::Primary, Role::Replica, Role::Unknown] {
                let value = i64::from(node.role == role);
                self.gauges.role.with_label_values(&[labels[0], labels[1], role_label(role)]).set(value);
            }
            for label in STATES {
                let value = i64::from(state_label(&node.state) == label);
                self.gauges.state.with_label_values(&[labels[0], labels[1], label]).set(value);
            }
        }
    }
}

/// One node's statement counters.
pub struct NodeMetrics {
    statements: [[IntCounter; Reason::ALL.len()]; 2],
}

impl NodeMetrics {
    pub fn statement(&self, access: Access, reason: Reason) {
        self.statements[index(access)][reason as usize].inc();
    }

    /// Reads or writes counted so far.
    pub fn total(&self, access: Access) -> u64 {
        self.statements[index(access)].iter().map(IntCounter::get).sum()
    }
}

pub const STATES: [&str; 7] = ["new", "up", "suspect", "down", "fenced", "draining", "banned"];

pub const fn role_label(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Replica => "replica",
        Role::Unknown => "unknown",
    }
}

pub const fn state_label(state: &State) -> &'static str {
    match state {
        State::New => "new",
        State::Up => "up",
        State::Suspect => "suspect",
        State::Down => "down",
        State::Fenced(_) => "fenced",
        State::Draining => "draining",
        State::Banned => "banned",
    }
}
