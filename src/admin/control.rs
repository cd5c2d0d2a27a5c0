//! What the doors may ask of the running proxy: plain data, whichever protocol a cluster speaks.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use crate::{
    cluster::Cluster,
    config::{self, Config},
    metrics::{ClusterMetrics, Connections, Metrics},
    operator::{Order, Recorded},
    protocol::Protocol,
    recent::Routed,
    session::cancel::{Activity, Call, Entry},
    shutdown::Shutdown,
    sql::effects::Ending,
    topology::{Role, Snapshot, board::Remembered},
};

/// Reloads that may wait for their turn.
const RELOADS: usize = 8;

/// One cluster, whichever protocol it speaks.
pub trait Managed: Send + Sync {
    fn name(&self) -> &Arc<str>;
    fn config(&self) -> Arc<config::Cluster>;
    fn snapshot(&self) -> Arc<Snapshot>;
    fn metrics(&self) -> &ClusterMetrics;
    /// The last election, for a process that takes over.
    fn remembered(&self) -> Option<Remembered>;
    /// Users most of whose reads the primary gets because they stand in transactions.
    fn unsplit_users(&self) -> Vec<Arc<str>>;
    /// Brings gauges up to date that follow what is kept elsewhere.
    fn refresh_metrics(&self);
    /// Server connections by node.
    fn connections(&self) -> HashMap<Arc<str>, Connections>;
    /// What all pools of a node may have together.
    fn connection_limit(&self, node: &Arc<str>) -> usize;
    fn pools(&self) -> Vec<PoolView>;
    fn clients(&self) -> Vec<Arc<Entry>>;
    /// What happened lately, oldest first.
    fn events(&self) -> Vec<Recorded>;
    /// The last routed statements, oldest first, each with its text without literals.
    fn recent(&self) -> Vec<(Routed, Option<Arc<str>>)>;
    /// How many of them are kept; 0: none.
    fn recent_limit(&self) -> usize;
    /// `false`: the monitor does not keep up with orders.
    fn order(&self, node: Arc<str>, order: Order) -> bool;
    fn set_paused(&self, paused: bool);
    fn is_paused(&self) -> bool;
    /// Ends a client's connection, and what it runs on a server. `false`: there is no such client.
    fn kill(self: Arc<Self>, process: u32) -> bool;
    /// Ends every client, and what runs for it.
    fn kill_all(self: Arc<Self>);
}

/// One pool, as it is just now.
#[derive(Clone, Debug)]
pub struct PoolView {
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub node: Arc<str>,
    pub role: Role,
    pub in_use: usize,
    pub waiters: usize,
    /// Process number and idle time of every idle connection.
    pub idle: Vec<(u32, Duration)>,
}

impl<P: Protocol> Managed for Cluster<P> {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn config(&self) -> Arc<config::Cluster> {
        self.config.load_full()
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.topology.load_full()
    }

    fn metrics(&self) -> &ClusterMetrics {
        &self.metrics
    }

    fn unsplit_users(&self) -> Vec<Arc<str>> {
        self.split.users()
    }

    fn refresh_metrics(&self) {
        Cluster::refresh_metrics(self);
    }

    fn remembered(&self) -> Option<Remembered> {
        self.memory.get().and_then(|memory| memory())
    }

    fn connections(&self) -> HashMap<Arc<str>, Connections> {
        Cluster::connections(self)
    }

    fn connection_limit(&self, node: &Arc<str>) -> usize {
        self.shares.share(node).limit()
    }

    fn pools(&self) -> Vec<PoolView> {
        let mut views = Vec::new();
        let now = Instant::now();
        for ((user, database, _), pools) in self.all_pools() {
            for ((node, role), pool) in pools.all() {
                let status = pool.status();
                views.push(PoolView {
                    user: user.clone(),
                    database: database.clone(),
                    node,
                    role,
                    in_use: status.in_use,
                    waiters: status.waiters,
                    idle: pool.idle_connections(now),
                });
            }
        }
        views.sort_by(|a, b| (&a.database, &a.user, &a.node).cmp(&(&b.database, &b.user, &b.node)));
        views
    }

    fn clients(&self) -> Vec<Arc<Entry>> {
        let mut clients = self.sessions.all();
        clients.sort_by_key(|entry| entry.id);
        clients
    }

    fn events(&self) -> Vec<Recorded> {
        self.operator.recorded()
    }

    fn recent(&self) -> Vec<(Routed, Option<Arc<str>>)> {
        let classifier = &self.classifier;
        let with_text = |routed: Routed| {
            let text = classifier.shape(routed.fingerprint);
            (routed, text)
        };
        self.recent.all().into_iter().map(with_text).collect()
    }

    fn recent_limit(&self) -> usize {
        self.recent.limit()
    }

    fn order(&self, node: Arc<str>, order: Order) -> bool {
        let taken = self.operator.order(node, order);
        self.topology.nudge.notify_one();
        taken
    }

    fn set_paused(&self, paused: bool) {
        self.metrics.paused.set(i64::from(paused));
        self.operator.pause.set(paused);
    }

    fn is_paused(&self) -> bool {
        self.operator.pause.is_paused()
    }

    fn kill(self: Arc<Self>, process: u32) -> bool {
        let Some(entry) = self.sessions.by_process(process) else { return false };
        end(self, entry);
        true
    }

    fn kill_all(self: Arc<Self>) {
        for entry in self.sessions.all() {
            end(self.clone(), entry);
        }
    }
}

/// Ends a session, and what runs for it on a server: that is of no use to anybody.
fn end<P: Protocol>(cluster: Arc<Cluster<P>>, entry: Arc<Entry>) {
    entry.call(Call::Kill);
    if entry.is_running() {
        let identity = cluster.identity_of(&entry);
        tokio::spawn(async move { cluster.interrupt(&entry, &identity, Ending::SESSION).await });
    }
}

/// The running proxy as the doors know it. Clones are the same one.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

struct Inner {
    clusters: Vec<Arc<dyn Managed>>,
    config: ArcSwap<Config>,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    reloads: mpsc::Sender<ReloadRequest>,
    started: SystemTime,
}

/// A wish to reload; answered with what changed, or why nothing did.
pub type ReloadRequest = oneshot::Sender<Result<(), String>>;

impl Control {
    /// The handle, and where wishes to reload arrive.
    pub fn new(
        clusters: Vec<Arc<dyn Managed>>,
        config: Config,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> (Self, mpsc::Receiver<ReloadRequest>) {
        let (reloads, wishes) = mpsc::channel(RELOADS);
        let config = ArcSwap::from_pointee(config);
        let inner = Inner { clusters, config, metrics, shutdown, reloads, started: SystemTime::now() };
        (Self(Arc::new(inner)), wishes)
    }

    pub fn clusters(&self) -> &[Arc<dyn Managed>] {
        &self.0.clusters
    }

    pub fn cluster(&self, name: &str) -> Option<&Arc<dyn Managed>> {
        self.0.clusters.iter().find(|cluster| &**cluster.name() == name)
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.0.config.load_full()
    }

    pub fn set_config(&self, config: Config) {
        self.0.config.store(Arc::new(config));
    }

    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// `/metrics`, with every gauge up to date.
    pub fn metrics_text(&self) -> String {
        for cluster in self.clusters() {
            cluster.refresh_metrics();
        }
        self.0.metrics.text()
    }

    pub fn shutdown(&self) -> &Shutdown {
        &self.0.shutdown
    }

    pub fn started(&self) -> SystemTime {
        self.0.started
    }

    /// Reads the configuration again.
    ///
    /// # Errors
    /// Why nothing has changed.
    pub async fn reload(&self) -> Result<(), String> {
        let gone = || "the proxy is stopping".to_owned();
        let (done, answer) = oneshot::channel();
        self.0.reloads.send(done).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Clients that a pause of these clusters has to wait for.
    pub fn busy(clusters: &[Arc<dyn Managed>]) -> usize {
        let clients = clusters.iter().flat_map(|cluster| cluster.clients());
        clients.filter(|entry| entry.activity() != Activity::Idle).count()
    }
}
