//! Every metric of the proxy, declared once, in [`families`].
//!
//! Handles are resolved when a session or a node begins, so that counting is an addition.

mod cells;
pub mod families;
#[cfg(test)]
mod reference;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use prometheus::{
    Encoder, Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    core::{Collector, Desc},
    process_collector::ProcessCollector,
    proto,
};

pub use self::cells::Histogram;
use self::{cells::Cells, families::Family};
use crate::{
    protocol::TransactionFate,
    refusal::RefusalKind,
    sql::{Access, PinReason, Reason},
    topology::{Node, Role, Snapshot, State},
};

/// All families, on one registry.
pub struct Metrics {
    registry: Registry,
    statements: Statements,
    statement_seconds: Histograms,
    statement_wait_seconds: Histograms,
    statement_server_seconds: Histograms,
    errors: IntCounterVec,
    nodes: NodeGauges,
    failovers: IntCounterVec,
    failover_seconds: GaugeVec,
    without_primary_seconds: GaugeVec,
    held: IntGaugeVec,
    paused: IntGaugeVec,
    retries: IntCounterVec,
    reroutes: IntCounterVec,
    causal_fallbacks: IntCounterVec,
    commits_settled: IntCounterVec,
    lost_positions: IntCounterVec,
    pool_wait_seconds: Histograms,
    clients: IntGaugeVec,
    pins: IntCounterVec,
    statement_cache: IntCounterVec,
    parse_failures: IntCounterVec,
    probe_failures: IntCounterVec,
    logins: IntCounterVec,
    reloads: IntCounterVec,
    pub reload_success: IntGauge,
    reload_time: Gauge,
    clusters: Mutex<HashMap<Arc<str>, Arc<ClusterMetrics>>>,
}

/// The proof that registering cannot fail.
const DECLARED: &str = "every family is declared once, with a good name: a test registers them all";

fn register<C: Collector + Clone + 'static>(registry: &Registry, family: prometheus::Result<C>) -> C {
    let family = family.expect(DECLARED);
    registry.register(Box::new(family.clone())).expect(DECLARED);
    family
}

fn counter(registry: &Registry, of: &Family) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(of.name, of.meaning), of.labels))
}

fn gauge(registry: &Registry, of: &Family) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(of.name, of.meaning), of.labels))
}

fn float(registry: &Registry, of: &Family) -> GaugeVec {
    register(registry, GaugeVec::new(Opts::new(of.name, of.meaning), of.labels))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Declares all families on a registry of its own.
    pub fn new() -> Self {
        use families as f;
        let r = Registry::new();
        gauge(&r, &f::BUILD_INFO).with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        r.register(Box::new(ProcessCollector::for_self())).expect(DECLARED);
        Self {
            statements: Statements::on(&r),
            statement_seconds: Histograms::on(&r, &f::STATEMENT_SECONDS),
            statement_wait_seconds: Histograms::on(&r, &f::STATEMENT_WAIT_SECONDS),
            statement_server_seconds: Histograms::on(&r, &f::STATEMENT_SERVER_SECONDS),
            errors: counter(&r, &f::ERRORS),
            nodes: NodeGauges::on(&r),
            failovers: counter(&r, &f::FAILOVERS),
            failover_seconds: float(&r, &f::FAILOVER_SECONDS),
            without_primary_seconds: float(&r, &f::WITHOUT_PRIMARY_SECONDS),
            held: gauge(&r, &f::HELD),
            paused: gauge(&r, &f::PAUSED),
            retries: counter(&r, &f::RETRIES),
            reroutes: counter(&r, &f::REROUTES),
            causal_fallbacks: counter(&r, &f::CAUSAL_FALLBACKS),
            commits_settled: counter(&r, &f::COMMITS_SETTLED),
            lost_positions: counter(&r, &f::LOST_POSITIONS),
            pool_wait_seconds: Histograms::on(&r, &f::POOL_WAIT_SECONDS),
            clients: gauge(&r, &f::CLIENTS),
            pins: counter(&r, &f::PINS),
            statement_cache: counter(&r, &f::STATEMENT_CACHE),
            parse_failures: counter(&r, &f::PARSE_FAILURES),
            probe_failures: counter(&r, &f::PROBE_FAILURES),
            logins: counter(&r, &f::LOGINS),
            reloads: counter(&r, &f::RELOADS),
            reload_success: register(&r, IntGauge::new(f::RELOAD_SUCCESS.name, f::RELOAD_SUCCESS.meaning)),
            reload_time: register(&r, Gauge::new(f::RELOAD_TIME.name, f::RELOAD_TIME.meaning)),
            clusters: Mutex::new(HashMap::new()),
            registry: r,
        }
    }

    /// The handles of one cluster; the same ones every time.
    pub fn cluster(&self, name: &Arc<str>) -> Arc<ClusterMetrics> {
        let make = || {
            let made = ClusterMetrics::new(self, name);
            made.begin();
            Arc::new(made)
        };
        self.clusters.lock().entry(name.clone()).or_insert_with(make).clone()
    }

    /// The configuration the proxy started with is in force.
    pub fn configured(&self) {
        for result in ["applied", "refused"] {
            self.reloads.with_label_values(&[result]).inc_by(0);
        }
        self.reload_success.set(1);
        self.reload_time.set(unix_seconds());
    }

    pub fn reloaded(&self, applied: bool) {
        self.reloads.with_label_values(&[if applied { "applied" } else { "refused" }]).inc();
        self.reload_success.set(i64::from(applied));
        if applied {
            self.reload_time.set(unix_seconds());
        }
    }

    /// Everything in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out).expect("writing to memory cannot fail");
        String::from_utf8(out).expect("the text format is UTF-8")
    }
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A family whose numbers are kept outside of the `prometheus` package.
struct Own<T> {
    of: &'static Family,
    desc: Desc,
    series: Arc<Mutex<Vec<T>>>,
}

impl<T> Own<T> {
    fn new(of: &'static Family, series: Arc<Mutex<Vec<T>>>) -> Self {
        let labels = of.labels.iter().map(|label| (*label).to_owned()).collect();
        let desc =
            Desc::new(of.name.to_owned(), of.meaning.to_owned(), labels, HashMap::new()).expect(DECLARED);
        Self { of, desc, series }
    }

    fn family(&self, kind: proto::MetricType, metrics: Vec<proto::Metric>) -> Vec<proto::MetricFamily> {
        if metrics.is_empty() {
            return Vec::new();
        }
        let mut family = proto::MetricFamily::default();
        family.set_name(self.of.name.to_owned());
        family.set_help(self.of.meaning.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        vec![family]
    }

    fn labelled(&self, values: &[&str]) -> proto::Metric {
        let labels = self.of.labels.iter().zip(values).map(|(name, value)| {
            let mut label = proto::LabelPair::default();
            label.set_name((*name).to_owned());
            label.set_value((*value).to_owned());
            label
        });
        let mut metric = proto::Metric::default();
        metric.set_label(labels.collect());
        metric
    }
}

/// A histogram and its labels' values.
type HistogramSeries = (Vec<String>, Arc<Histogram>);

/// A family of histograms.
struct Histograms(Arc<Mutex<Vec<HistogramSeries>>>);

impl Histograms {
    fn on(registry: &Registry, of: &'static Family) -> Self {
        let series = Arc::default();
        registry.register(Box::new(Own::<HistogramSeries>::new(of, Arc::clone(&series)))).expect(DECLARED);
        Self(series)
    }

    fn with(&self, labels: &[&str]) -> Arc<Histogram> {
        let made = Arc::<Histogram>::default();
        self.0.lock().push((labels.iter().map(|label| (*label).to_owned()).collect(), made.clone()));
        made
    }
}

impl Collector for Own<HistogramSeries> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let series = self.series.lock();
        let metrics = series.iter().map(|(values, histogram)| {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let mut metric = self.labelled(&values);
            metric.set_histogram(histogram.metric());
            metric
        });
        let metrics = metrics.collect();
        self.family(proto::MetricType::HISTOGRAM, metrics)
    }
}

/// A node's counters, with its cluster's name and its own.
type StatementSeries = (Arc<str>, Arc<str>, Arc<NodeMetrics>);

struct Statements(Arc<Mutex<Vec<StatementSeries>>>);

impl Statements {
    fn on(registry: &Registry) -> Self {
        let series = Arc::default();
        let own = Own::<StatementSeries>::new(&families::STATEMENTS, Arc::clone(&series));
        registry.register(Box::new(own)).expect(DECLARED);
        Self(series)
    }
}

impl Collector for Own<StatementSeries> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let mut metrics = Vec::new();
        for (cluster, node, counters) in self.series.lock().iter() {
            for (access, reason, count) in counters.counts().filter(|(_, _, count)| *count > 0) {
                let mut metric = self.labelled(&[cluster, node, access, reason.label()]);
                let mut counter = proto::Counter::default();
                counter.set_value(count as f64);
                metric.set_counter(counter);
                metrics.push(metric);
            }
        }
        self.family(proto::MetricType::COUNTER, metrics)
    }
}

/// One cluster's handles.
pub struct ClusterMetrics {
    name: Arc<str>,
    all_statements: Arc<Mutex<Vec<StatementSeries>>>,
    nodes: Mutex<HashMap<Arc<str>, Arc<NodeMetrics>>>,
    seconds: [Arc<Histogram>; 2],
    wait_seconds: [Arc<Histogram>; 2],
    server_seconds: [Arc<Histogram>; 2],
    errors: IntCounterVec,
    gauges: NodeGauges,
    /// Nodes that the gauges show.
    shown: Mutex<HashSet<Arc<str>>>,
    pub failovers: IntCounter,
    failover_seconds: GaugeVec,
    without_primary_seconds: Gauge,
    pub held: IntGauge,
    pub paused: IntGauge,
    retries: IntCounterVec,
    reroutes: IntCounterVec,
    pub causal_fallbacks: IntCounter,
    commits_settled: IntCounterVec,
    pub lost_positions: IntCounter,
    pub pool_wait_seconds: Arc<Histogram>,
    pub clients: IntGauge,
    pins: IntCounterVec,
    cache_hits: Mirror,
    cache_misses: Mirror,
    parse_failures: Mirror,
    probe_failures: IntCounterVec,
    logins: IntCounterVec,
}

#[derive(Clone)]
struct NodeGauges {
    lag_seconds: GaugeVec,
    lag_bytes: GaugeVec,
    weight: GaugeVec,
    role: IntGaugeVec,
    state: IntGaugeVec,
    timeline: IntGaugeVec,
    in_flight: IntGaugeVec,
    connections: IntGaugeVec,
    limit: IntGaugeVec,
    waiters: IntGaugeVec,
}

impl NodeGauges {
    fn on(r: &Registry) -> Self {
        use families as f;
        Self {
            lag_seconds: float(r, &f::REPLICA_LAG_SECONDS),
            lag_bytes: float(r, &f::REPLICA_LAG_BYTES),
            weight: float(r, &f::NODE_WEIGHT),
            role: gauge(r, &f::NODE_ROLE),
            state: gauge(r, &f::NODE_STATE),
            timeline: gauge(r, &f::NODE_TIMELINE),
            in_flight: gauge(r, &f::NODE_IN_FLIGHT),
            connections: gauge(r, &f::POOL_CONNECTIONS),
            limit: gauge(r, &f::POOL_LIMIT),
            waiters: gauge(r, &f::POOL_WAITERS),
        }
    }

    /// A node that is configured no more.
    fn forget(&self, cluster: &str, node: &str) {
        // What was not there need not go: both answers of a removal are fine.
        let of = [cluster, node];
        for family in [&self.lag_seconds, &self.lag_bytes, &self.weight] {
            let _ = family.remove_label_values(&of);
        }
        for family in [&self.timeline, &self.in_flight, &self.limit, &self.waiters] {
            let _ = family.remove_label_values(&of);
        }
        let parts: [(&IntGaugeVec, &[&str]); 3] = [
            (&self.role, &Role::ALL.map(Role::label)),
            (&self.state, &State::LABELS),
            (&self.connections, &CONNECTION_STATES),
        ];
        for (family, labels) in parts {
            for label in labels {
                let _ = family.remove_label_values(&[cluster, node, label]);
            }
        }
    }
}

const CONNECTION_STATES: [&str; 2] = ["idle", "in_use"];

/// A node's server connections at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    pub idle: usize,
    pub in_use: usize,
    pub waiters: usize,
    /// What all pools of the node may have together.
    pub limit: usize,
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

/// Errors that somebody has to look at.
const ALERTED_ERRORS: [RefusalKind; 5] = [
    RefusalKind::InDoubt,
    RefusalKind::NoPrimary,
    RefusalKind::NoReplica,
    RefusalKind::PoolTimeout,
    RefusalKind::ServerLost,
];

const FATES: [TransactionFate; 3] =
    [TransactionFate::Committed, TransactionFate::RolledBack, TransactionFate::Unknown];

/// The value of the label `outcome`.
const fn outcome(fate: TransactionFate) -> &'static str {
    match fate {
        TransactionFate::Committed => "committed",
        TransactionFate::RolledBack => "rolled_back",
        TransactionFate::Unknown => "unknown",
    }
}

const RETRIES: [&str; 3] = ["stopping", "server_lost", "read_only"];
const REROUTES: [&str; 4] = ["writes", "standby", "stale", "setting"];
const LOGINS: [&str; 2] = ["ok", "wrong_password"];

const ACCESSES: [&str; 2] = ["read", "write"];

const fn index(access: Access) -> usize {
    match access {
        Access::Read => 0,
        Access::Write => 1,
    }
}

impl ClusterMetrics {
    fn new(all: &Metrics, name: &Arc<str>) -> Self {
        let n: &str = name;
        let by_access = |family: &Histograms| ACCESSES.map(|access| family.with(&[n, access]));
        Self {
            name: name.clone(),
            all_statements: all.statements.0.clone(),
            nodes: Mutex::new(HashMap::new()),
            seconds: by_access(&all.statement_seconds),
            wait_seconds: by_access(&all.statement_wait_seconds),
            server_seconds: by_access(&all.statement_server_seconds),
            errors: all.errors.clone(),
            gauges: all.nodes.clone(),
            shown: Mutex::default(),
            failovers: all.failovers.with_label_values(&[n]),
            failover_seconds: all.failover_seconds.clone(),
            without_primary_seconds: all.without_primary_seconds.with_label_values(&[n]),
            held: all.held.with_label_values(&[n]),
            paused: all.paused.with_label_values(&[n]),
            retries: all.retries.clone(),
            reroutes: all.reroutes.clone(),
            causal_fallbacks: all.causal_fallbacks.with_label_values(&[n]),
            commits_settled: all.commits_settled.clone(),
            lost_positions: all.lost_positions.with_label_values(&[n]),
            pool_wait_seconds: all.pool_wait_seconds.with(&[n]),
            clients: all.clients.with_label_values(&[n]),
            pins: all.pins.clone(),
            cache_hits: Mirror::new(all.statement_cache.with_label_values(&[n, "hit"])),
            cache_misses: Mirror::new(all.statement_cache.with_label_values(&[n, "miss"])),
            parse_failures: Mirror::new(all.parse_failures.with_label_values(&[n])),
            probe_failures: all.probe_failures.clone(),
            logins: all.logins.clone(),
        }
    }

    /// Shows at 0 what alerts ask the rate of: the step from absent to 1 is none.
    fn begin(&self) {
        let n = &*self.name;
        let families: [(&IntCounterVec, Vec<&str>); 6] = [
            (&self.errors, ALERTED_ERRORS.map(RefusalKind::label).to_vec()),
            (&self.retries, RETRIES.to_vec()),
            (&self.commits_settled, FATES.map(outcome).to_vec()),
            (&self.reroutes, REROUTES.to_vec()),
            (&self.pins, PinReason::ALL.iter().map(|reason| reason.label()).collect()),
            (&self.logins, LOGINS.to_vec()),
        ];
        for (family, labels) in families {
            for label in labels {
                family.with_label_values(&[n, label]).inc_by(0);
            }
        }
        self.failover_took(0.0);
    }

    /// The counters of one node; the same ones every time.
    pub fn node(&self, address: &Arc<str>) -> Arc<NodeMetrics> {
        let make = || {
            let made = Arc::<NodeMetrics>::default();
            self.all_statements.lock().push((self.name.clone(), address.clone(), made.clone()));
            made
        };
        self.nodes.lock().entry(address.clone()).or_insert_with(make).clone()
    }

    /// One answered statement. `waited`: before it was sent.
    pub fn answered(&self, access: Access, waited: Duration, total: Duration) {
        let at = index(access);
        self.seconds[at].observe(total);
        if !waited.is_zero() {
            self.wait_seconds[at].observe(waited);
        }
        self.server_seconds[at].observe(total.saturating_sub(waited));
    }

    /// How long statements of an access took, waits included.
    pub fn seconds(&self, access: Access) -> &Histogram {
        &self.seconds[index(access)]
    }

    /// Time statements have waited for a node or a connection, all together, in seconds.
    pub fn waited_seconds(&self) -> f64 {
        self.wait_seconds.iter().map(|histogram| histogram.totals().1).sum()
    }

    pub fn probe_failed(&self, node: &str) {
        self.probe_failures.with_label_values(&[&*self.name, node]).inc();
    }

    pub fn error(&self, kind: &str) {
        self.errors.with_label_values(&[&*self.name, kind]).inc();
    }

    pub fn retry(&self, reason: &str) {
        self.retries.with_label_values(&[&*self.name, reason]).inc();
    }

    pub fn commit_settled(&self, fate: TransactionFate) {
        self.commits_settled.with_label_values(&[&*self.name, outcome(fate)]).inc();
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

    /// What a node's pools have just now.
    pub fn pool(&self, node: &str, connections: Connections) {
        let of = [&*self.name, node];
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (state, count) in CONNECTION_STATES.into_iter().zip([connections.idle, connections.in_use]) {
            self.gauges.connections.with_label_values(&[of[0], of[1], state]).set(number(count));
        }
        self.gauges.waiters.with_label_values(&of).set(number(connections.waiters));
        self.gauges.limit.with_label_values(&of).set(number(connections.limit));
    }

    /// Shows a snapshot in the gauges, and takes away what is no longer in it.
    pub fn show(&self, snapshot: &Snapshot) {
        let without = snapshot.without_primary_since.map_or(Duration::ZERO, |(since, _)| since.elapsed());
        self.without_primary_seconds.set(without.as_secs_f64());
        let mut shown = self.shown.lock();
        for gone in shown.extract_if(|address| snapshot.find(address).is_none()) {
            self.gauges.forget(&self.name, &gone);
        }
        for node in snapshot.nodes.iter() {
            if !shown.contains(&node.address) {
                shown.insert(node.address.clone());
                self.probe_failures.with_label_values(&[&*self.name, &*node.address]).inc_by(0);
            }
            self.show_node(node);
        }
    }

    fn show_node(&self, node: &Node) {
        let of: [&str; 2] = [&self.name, &node.address];
        match node.lag {
            Some(lag) => self.gauges.lag_seconds.with_label_values(&of).set(lag.as_secs_f64()),
            None => drop(self.gauges.lag_seconds.remove_label_values(&of)),
        }
        match node.lag_distance {
            Some(bytes) => self.gauges.lag_bytes.with_label_values(&of).set(bytes as f64),
            None => drop(self.gauges.lag_bytes.remove_label_values(&of)),
        }
        match node.timeline {
            Some(timeline) => self.gauges.timeline.with_label_values(&of).set(i64::from(timeline)),
            None => drop(self.gauges.timeline.remove_label_values(&of)),
        }
        let in_flight = i64::try_from(node.load.in_flight()).unwrap_or(i64::MAX);
        self.gauges.in_flight.with_label_values(&of).set(in_flight);
        self.gauges.weight.with_label_values(&of).set(node.weight);
        for role in Role::ALL {
            let value = i64::from(node.role == role);
            self.gauges.role.with_label_values(&[of[0], of[1], role.label()]).set(value);
        }
        for label in State::LABELS {
            let value = i64::from(node.state.label() == label);
            self.gauges.state.with_label_values(&[of[0], of[1], label]).set(value);
        }
    }
}

type Counts = [[AtomicU64; Reason::ALL.len()]; 2];

/// One node's statement counters.
#[derive(Default)]
pub struct NodeMetrics(Cells<Counts>);

impl NodeMetrics {
    pub fn statement(&self, access: Access, reason: Reason) {
        self.0.mine()[index(access)][reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Reads or writes counted so far.
    pub fn total(&self, access: Access) -> u64 {
        self.counts()
            .filter(|(label, _, _)| *label == ACCESSES[index(access)])
            .map(|(_, _, count)| count)
            .sum()
    }

    /// Every access and reason with its count.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, Reason, u64)> {
        ACCESSES.into_iter().enumerate().flat_map(move |(at, access)| {
            Reason::ALL.into_iter().map(move |reason| {
                let cells = self.0.all().map(|cell| cell[at][reason as usize].load(Ordering::Relaxed));
                (access, reason, cells.sum())
            })
        })
    }
}
