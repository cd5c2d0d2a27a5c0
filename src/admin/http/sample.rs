//! What the dashboard draws: one sample a second, and the last minutes of them.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::{
    admin::control::{Control, Managed},
    recent::Routed,
    route::Why,
    sql::Access,
    topology::State,
};

/// Between two samples.
const INTERVAL: Duration = Duration::from_secs(1);

/// Samples kept for pages that are opened later: five minutes.
const KEPT: usize = 300;

/// Samples that a slow page may be behind before it misses some.
const QUEUE: usize = 16;

/// Routed statements that a page is told of.
const STATEMENTS: usize = 50;

/// Events that every sample carries.
const EVENTS: usize = 50;

const ACCESSES: [(Access, &str); 2] = [(Access::Read, "read"), (Access::Write, "write")];

/// One event for open pages: its name, and a JSON text.
pub type Told = (&'static str, Arc<str>);

/// The samples so far and those to come, each a JSON text.
pub struct Recorder {
    kept: Mutex<VecDeque<Arc<str>>>,
    fresh: broadcast::Sender<Told>,
}

impl Recorder {
    /// Samples until the proxy stops.
    pub fn start(control: Control) -> Arc<Self> {
        let (fresh, _) = broadcast::channel(QUEUE);
        let recorder = Arc::new(Self { kept: Mutex::default(), fresh });
        tokio::spawn(run(recorder.clone(), control));
        recorder
    }

    /// What is kept, and what comes from now on: nothing lies between the two.
    pub fn follow(&self) -> (Vec<Arc<str>>, broadcast::Receiver<Told>) {
        let kept = self.kept.lock();
        (kept.iter().cloned().collect(), self.fresh.subscribe())
    }

    fn add(&self, sample: Arc<str>) {
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(sample.clone());
        // Nobody may be looking.
        let _ = self.fresh.send(("sample", sample));
    }

    /// Tells open pages of the last routed statements, where they are kept.
    fn tell_statements(&self, control: &Control) {
        let keeps = |cluster: &&Arc<dyn Managed>| cluster.recent_limit() > 0;
        if self.fresh.receiver_count() == 0 || !control.clusters().iter().any(|cluster| keeps(&cluster)) {
            return;
        }
        let clusters = control.clusters().iter().filter(keeps);
        let all: serde_json::Map<String, Value> =
            clusters.map(|cluster| (cluster.name().to_string(), statements(&**cluster))).collect();
        let _ = self.fresh.send(("statements", Value::Object(all).to_string().into()));
    }
}

async fn run(recorder: Arc<Recorder>, control: Control) {
    let mut before: Vec<Before> = control.clusters().iter().map(|cluster| Before::of(&**cluster)).collect();
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            () = control.shutdown().stopping() => return,
            _ = tick.tick() => {}
        }
        let clusters: Vec<Value> = control
            .clusters()
            .iter()
            .zip(&mut before)
            .map(|(cluster, before)| sample(&**cluster, before))
            .collect();
        let sample = json!({
            "time": unix_millis(SystemTime::now()),
            "version": env!("CARGO_PKG_VERSION"),
            "phase": format!("{:?}", control.shutdown().phase()).to_lowercase(),
            "clusters": clusters,
        });
        recorder.add(sample.to_string().into());
        recorder.tell_statements(&control);
    }
}

/// Counts at the last sample, that rates are made from.
struct Before {
    at: Instant,
    /// By node, access and reason.
    statements: HashMap<(Arc<str>, &'static str, &'static str), u64>,
    latency: [Vec<u64>; 2],
}

impl Before {
    fn of(cluster: &dyn Managed) -> Self {
        let mut statements = HashMap::new();
        for node in cluster.snapshot().nodes.iter() {
            for (access, reason, count) in cluster.metrics().node(&node.address).counts() {
                statements.insert((node.address.clone(), access, reason.label()), count);
            }
        }
        let latency = ACCESSES.map(|(access, _)| cluster.metrics().seconds(access).counts());
        Self { at: Instant::now(), statements, latency }
    }
}

fn sample(cluster: &dyn Managed, before: &mut Before) -> Value {
    let now = Before::of(cluster);
    let seconds = now.at.duration_since(before.at).as_secs_f64().max(0.001);
    let mut reasons: BTreeMap<String, f64> = BTreeMap::new();
    let mut by_node: HashMap<(Arc<str>, &'static str), f64> = HashMap::new();
    for (key, count) in &now.statements {
        let grown = count.saturating_sub(before.statements.get(key).copied().unwrap_or(0));
        if grown > 0 {
            let rate = grown as f64 / seconds;
            *reasons.entry(format!("{} {}", key.1, key.2)).or_default() += rate;
            *by_node.entry((key.0.clone(), key.1)).or_default() += rate;
        }
    }
    let latency: serde_json::Map<String, Value> = ACCESSES
        .iter()
        .zip(&before.latency)
        .map(|((access, name), before)| {
            let histogram = cluster.metrics().seconds(*access);
            let quantile = |share| histogram.quantile(before, share);
            ((*name).to_owned(), json!({ "p50": quantile(0.5), "p99": quantile(0.99) }))
        })
        .collect();
    *before = now;
    let snapshot = cluster.snapshot();
    let events = cluster.events();
    let events: Vec<Value> = events[events.len().saturating_sub(EVENTS)..]
        .iter()
        .map(|recorded| json!({ "time": unix_millis(recorded.at), "text": recorded.event.to_string() }))
        .collect();
    json!({
        "name": &**cluster.name(),
        "paused": cluster.is_paused(),
        "primary": snapshot.primary().map(|node| &*node.address),
        "without_primary_seconds": snapshot.without_primary_since.map(|(since, _)| since.elapsed().as_secs_f64()),
        "clients": cluster.metrics().clients.get(),
        "held": cluster.metrics().held.get(),
        "recent": cluster.recent_limit(),
        "nodes": nodes(cluster, &by_node),
        "reasons": reasons,
        "latency": latency,
        "events": events,
    })
}

/// The last routed statements, newest first.
fn statements(cluster: &dyn Managed) -> Value {
    let one = |(routed, text): (Routed, Option<Arc<str>>)| {
        json!({
            "time": unix_millis(routed.at),
            "node": &*routed.node,
            "access": routed.access.label(),
            "reason": routed.reason.label(),
            "choice": routed.why.map(Why::label),
            "waited": routed.waited.as_secs_f64(),
            "seconds": routed.took.as_secs_f64(),
            "fingerprint": format!("{:016x}", routed.fingerprint),
            "text": text.as_deref(),
        })
    };
    cluster.recent().into_iter().rev().take(STATEMENTS).map(one).collect()
}

fn nodes(cluster: &dyn Managed, rates: &HashMap<(Arc<str>, &'static str), f64>) -> Vec<Value> {
    let connections = cluster.connections();
    let snapshot = cluster.snapshot();
    let rate = |node: &Arc<str>, access| rates.get(&(node.clone(), access)).copied().unwrap_or(0.0);
    snapshot
        .nodes
        .iter()
        .map(|node| {
            let connections = connections.get(&node.address).copied().unwrap_or_default();
            json!({
                "address": &*node.address,
                "role": node.role.label(),
                "state": node.state.label(),
                "why": match &node.state {
                    State::Fenced(why) => Some(&**why),
                    _ => node.trouble.as_deref(),
                },
                "timeline": node.timeline,
                "lag_seconds": node.lag.map(|lag| lag.as_secs_f64()),
                "lag_bytes": node.lag_distance,
                "weight": node.weight,
                "in_flight": node.load.in_flight(),
                "in_use": connections.in_use,
                "idle": connections.idle,
                "waiters": connections.waiters,
                "limit": cluster.connection_limit(&node.address),
                "reads": rate(&node.address, "read"),
                "writes": rate(&node.address, "write"),
            })
        })
        .collect()
}

fn unix_millis(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
