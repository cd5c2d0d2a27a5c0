//! Reads the catalogs of databases that have clients: at the first login, after DDL that passed
//! through, and every `catalog_refresh`.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};

use super::one_line;
use crate::{
    cluster::{Cluster, Database},
    protocol::{Backend, ConnectFault, Fault, Identity, Protocol},
    sql::catalog::Catalog,
    topology::{Node, Role, State},
};

/// Shortest time between two readings of one catalog, however much DDL passes through.
const SPACING: Duration = Duration::from_millis(100);

/// How long after an attempt to read a catalog that failed comes the next.
const RETRY: Duration = Duration::from_secs(1);

/// Catalogs that are read at a time: a slow one does not keep the others waiting, and all together
/// are no burden to the server.
const MOST_AT_ONCE: usize = 4;

/// How many know a database without clients: the cluster and who goes over its databases.
const UNUSED: usize = 2;

/// There is no such database, any more or at all. MySQL's connections need none.
const UNKNOWN_DATABASE: [u8; 5] = *b"3D000";

/// What is known of the readings of one catalog.
struct Reading {
    stage: Stage,
    /// People were told why it cannot be read.
    told: bool,
}

enum Stage {
    Running,
    Read(Instant),
    Failed(Instant),
}

/// Why a catalog was not read.
enum Unread {
    NoNode,
    /// The monitor's user may not, or it takes too long: nobody is to wait for the next attempt.
    Hopeless(String),
    Failed(String),
}

/// A reading that is over.
struct Ended {
    database: Arc<Database>,
    /// What the catalog shows of them, if it was read.
    redefinitions: u64,
    result: Result<(), Unread>,
}

impl Reading {
    fn is_due(&self, database: &Arc<Database>, refresh: Option<Duration>) -> bool {
        let (at, after) = match self.stage {
            Stage::Running => return false,
            Stage::Read(at) => (at, refresh),
            // For those who use it: it may have been dropped.
            Stage::Failed(at) => (at, (Arc::strong_count(database) > UNUSED).then_some(RETRY)),
        };
        database.stale.load(Ordering::Acquire) || after.is_some_and(|after| at.elapsed() >= after)
    }
}

pub(super) async fn run<P: Protocol>(cluster: Arc<Cluster<P>>) {
    let mut known: HashMap<Arc<str>, Reading> = HashMap::new();
    let mut running = FuturesUnordered::new();
    let mut tick = tokio::time::interval(SPACING);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Some(ended) = running.next(), if !running.is_empty() => {
                note(&cluster, &mut known, ended);
                continue;
            }
        }
        let refresh = cluster.config.load().monitor.catalog_refresh;
        let databases = cluster.databases();
        if known.len() > databases.len() {
            known.retain(|name, _| databases.iter().any(|database| database.name == *name));
        }
        for database in databases {
            let reading = known.get(&database.name);
            let due = reading.is_none_or(|reading| reading.is_due(&database, refresh));
            if due && running.len() < MOST_AT_ONCE {
                let told = reading.is_some_and(|reading| reading.told);
                known.insert(database.name.clone(), Reading { stage: Stage::Running, told });
                running.push(read(&cluster, database));
            }
        }
    }
}

async fn read<P: Protocol>(cluster: &Cluster<P>, database: Arc<Database>) -> Ended {
    database.stale.store(false, Ordering::Release);
    let redefinitions = database.redefinitions();
    let result = ask(cluster, &database).await.map(|catalog| database.set_catalog(catalog));
    Ended { database, redefinitions, result }
}

/// Reads one database's catalog, on the primary if there is one.
async fn ask<P: Protocol>(cluster: &Cluster<P>, database: &Database) -> Result<Catalog, Unread> {
    let snapshot = cluster.topology.load_full();
    let up = |node: &&Node| matches!(node.state, State::Up);
    let node = snapshot.primary().filter(up).or_else(|| snapshot.nodes.iter().find(up));
    let node = node.ok_or(Unread::NoNode)?;
    let identity = cluster.monitor_identity.load_full();
    let identity = Identity { database: database.name.clone(), ..Identity::clone(&identity) };
    let link = cluster.link.load_full();
    let timeout = cluster.config.load().monitor.catalog_timeout();
    let reading = async {
        let mut backend = P::Backend::connect(&node.address, &link, &identity, Role::Unknown).await?;
        Ok(backend.catalog().await?)
    };
    let Ok(read) = tokio::time::timeout(timeout, reading).await else {
        return Err(Unread::Hopeless(format!("it took longer than {timeout:?}")));
    };
    read
}

impl From<ConnectFault> for Unread {
    fn from(fault: ConnectFault) -> Self {
        let said = one_line(&fault.to_string());
        match fault {
            ConnectFault::Refused { code, .. } if code != UNKNOWN_DATABASE => Self::Hopeless(said),
            _ => Self::Failed(said),
        }
    }
}

impl From<Fault> for Unread {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(refused) => Self::Hopeless(one_line(&refused.to_string())),
            Fault::Client(error) | Fault::Server { error, .. } => Self::Failed(error.to_string()),
            Fault::Protocol(refusal) => Self::Failed(refusal.message.into()),
        }
    }
}

fn note<P: Protocol>(cluster: &Cluster<P>, known: &mut HashMap<Arc<str>, Reading>, ended: Ended) {
    let Ended { database, redefinitions, result } = ended;
    // Where nobody has ever been able to read it, nobody waits for it.
    if result.is_ok() || database.readings() == 0 {
        database.knows(redefinitions);
    }
    let name = &database.name;
    let told = known.get(name).is_some_and(|reading| reading.told);
    let now = Instant::now();
    let reading = match result {
        Ok(()) => Reading { stage: Stage::Read(now), told: false },
        Err(Unread::NoNode) => {
            // Looked for again at the next tick.
            known.remove(name);
            return;
        }
        Err(Unread::Hopeless(why)) => {
            if !told {
                tracing::warn!(
                    cluster = %cluster.name, database = %name, why,
                    "the catalog cannot be read: sessions that call functions or write keep their connections"
                );
            }
            database.give_up();
            Reading { stage: Stage::Failed(now), told: true }
        }
        Err(Unread::Failed(why)) => {
            tracing::debug!(cluster = %cluster.name, database = %name, why, "the catalog could not be read");
            Reading { stage: Stage::Failed(now), told }
        }
    };
    known.insert(name.clone(), reading);
}
