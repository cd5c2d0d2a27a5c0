//! What the tests stand on: real servers, the real binary, links that can be cut.

pub mod both;
pub mod client;
pub mod cluster;
pub mod drivers;
pub mod link;
pub mod mysql;
pub mod mysql_frames;
pub mod mysql_servers;
pub mod patroni;
pub mod proxy;
pub mod wire;

use std::time::{Duration, Instant};

pub use client::{Session, code, ports};
pub use cluster::Database;
pub use proxy::Proxy;

use pointsman::demo::servers::{APP, PgCluster, PgNode};

/// What most tests begin with: the shared servers, a database of the test's own, a proxy.
pub struct Stage {
    pub cluster: &'static PgCluster,
    pub database: Database<'static>,
    pub proxy: Proxy,
}

impl Stage {
    /// A database in which `sql` was run, and a proxy with `settings` (see [`Proxy::start`]).
    pub async fn set(sql: &str, settings: &[&str]) -> Self {
        let cluster = cluster::shared();
        let database = Database::with(cluster, sql);
        let proxy = Proxy::start(cluster, settings).await;
        Self { cluster, database, proxy }
    }

    /// A session of the user `app` in the test's database, through the proxy.
    pub async fn session(&self) -> Session {
        self.proxy.session(&self.database.name).await
    }

    /// A bare connection of the user `app` in the test's database, through the proxy.
    pub async fn wire(&self) -> wire::Wire {
        wire::Wire::login(self.proxy.port(), APP, &self.database.name).await
    }

    pub fn primary_port(&self) -> u16 {
        self.cluster.node(0).port()
    }

    pub fn replica_ports(&self) -> Vec<u16> {
        self.cluster.nodes()[1..].iter().map(PgNode::port).collect()
    }

    pub fn is_replica(&self, port: u16) -> bool {
        self.replica_ports().contains(&port)
    }
}

/// Longer than anything that works may take on a busy two-core machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until `condition` holds and panics with `what` when it does not within [`PATIENCE`].
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Bounds a step that could hang; panics with `what` when it takes longer than [`PATIENCE`].
pub async fn soon<T>(what: &str, step: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, step).await {
        Ok(value) => value,
        Err(_) => panic!("took longer than {PATIENCE:?}: {what}"),
    }
}
