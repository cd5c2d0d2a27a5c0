//! A look at a cluster for a moment: who is who now, and what one database says of its functions.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    cluster::{Cluster, Parts},
    config,
    metrics::Metrics,
    monitor,
    protocol::Protocol,
    shutdown::Shutdown,
    sql::catalog::Catalog,
    topology::{Role, Snapshot, State},
};

/// What was seen.
#[derive(Clone, Debug)]
pub struct Observed {
    pub snapshot: Arc<Snapshot>,
    /// When the snapshot was taken up.
    pub at: Instant,
    /// Of the database asked for; not loaded where no server could say.
    pub catalog: Arc<Catalog>,
}

/// How many times `monitor.timeout`, and how many times `monitor.interval`, a look may take.
const PATIENCE: (u32, u32) = (2, 5);

/// Runs a cluster's monitor, without listeners, until every node is known or patience runs out.
pub async fn look<P: Protocol>(config: &config::Cluster, parts: Parts<P>, database: &Arc<str>) -> Observed {
    let shutdown = Shutdown::new();
    let metrics = Metrics::new().cluster(&config.name);
    let cluster = Arc::new(Cluster::new(config.clone(), parts, metrics, shutdown.clone(), 1));
    let database = cluster.database(database);
    let watching = tokio::spawn(monitor::run(cluster.clone()));
    let all_known = async {
        loop {
            let changed = cluster.topology.changed.notified();
            if is_settled(&cluster.topology.load()) {
                return;
            }
            changed.await;
        }
    };
    // What is not known by then stays unknown, and the snapshot says so.
    let _ = tokio::time::timeout(patience(&config.monitor), async {
        tokio::join!(all_known, database.settled())
    })
    .await;
    let seen = Observed {
        snapshot: cluster.topology.load_full(),
        at: Instant::now(),
        catalog: Arc::clone(&database.catalog()),
    };
    shutdown.stop();
    // A monitor that panicked has told its story already.
    let _ = watching.await;
    seen
}

fn patience(monitor: &config::Monitor) -> Duration {
    let (timeouts, intervals) = PATIENCE;
    monitor.timeout.saturating_mul(timeouts).saturating_add(monitor.interval.saturating_mul(intervals))
}

/// Whether further probes would only repeat what is known.
fn is_settled(snapshot: &Snapshot) -> bool {
    let settled = |node: &crate::topology::Node| match (&node.state, node.role) {
        (State::New | State::Suspect, _) => false,
        (State::Up, Role::Replica) => node.lag.is_some(),
        _ => true,
    };
    snapshot.primary.is_some() && snapshot.nodes.iter().all(settled)
}
