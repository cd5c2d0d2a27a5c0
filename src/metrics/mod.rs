//! Every metric of the proxy, declared once, in [`families`].
//!
//! Handles are resolved when a session or a node begins, so that counting is an addition.

mod cells;
mod cluster;
pub mod families;
mod nodes;
#[cfg(test)]
mod reference;
mod series;

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use parking_lot::Mutex;
use prometheus::{
    Encoder, Gauge, GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    core::Collector, process_collector::ProcessCollector,
};

pub use self::{
    cells::Histogram,
    cluster::ClusterMetrics,
    nodes::{Connections, NodeMetrics},
};
use self::{
    families::Family,
    nodes::NodeGauges,
    series::{Histograms, Statements},
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
