//! One cluster: its handles, resolved once.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge};

use super::{
    Metrics,
    cells::Histogram,
    nodes::{ACCESSES, Connections, NodeGauges, NodeMetrics, index},
    series::{Histograms, StatementSeries},
};
use crate::{
    protocol::{LoginFault, TransactionFate},
    refusal::RefusalKind,
    sql::{Access, PinReason},
    topology::Snapshot,
};

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

impl ClusterMetrics {
    pub(super) fn new(all: &Metrics, name: &Arc<str>) -> Self {
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
    pub(super) fn begin(&self) {
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

    /// A login has failed, and its client heard why if that is not the server's word.
    pub fn turned_away(&self, fault: LoginFault) {
        self.login(fault.label());
        if let Some(kind) = told_at_the_door(fault) {
            self.error(kind.label());
        }
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
        self.gauges.show_pools(&self.name, node, connections);
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
            self.gauges.show(&self.name, node);
        }
    }
}

/// What a client heard before it was known who it is.
fn told_at_the_door(fault: LoginFault) -> Option<RefusalKind> {
    match fault {
        LoginFault::Password | LoginFault::UnknownUser => Some(RefusalKind::Authentication),
        LoginFault::Protocol => Some(RefusalKind::Protocol),
        _ => None,
    }
}
