//! Reads the catalogs of databases that have clients: at the first login, after DDL that passed
//! through, and every `catalog_refresh`.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};

use crate::{
    cluster::{Cluster, Database},
    protocol::{Backend, ConnectFault, Fault, Identity, Protocol},
    sql::{catalog::Catalog, effects::Ending},
    topology::{Node, Role, State},
};

/// Shortest time between two readings of one catalog, however much DDL passes through.
const SPACING: Duration = Duration::from_millis(100);

/// How long after an attempt to read a catalog that failed comes the next.
const RETRY: Duration = Duration::from_secs(1);
/// The same where the next one will hardly do better.
const LATER: Duration = Duration::from_secs(10);
/// Failures in a row after which nobody waits for the next attempt.
const PATIENCE: u32 = 2;

/// Catalogs that are read at a time: a slow one does not keep the others waiting, and all together
/// are no burden to the server.
const MOST_AT_ONCE: usize = 4;

/// How many know a database without clients: the cluster and who goes over its databases.
const UNUSED: usize = 2;

/// Classes of SQLSTATE that say nothing of the next attempt: out of resources, stopping, a conflict, a
/// definition that changed meanwhile.
const PASSING: [&[u8; 2]; 4] = [b"53", b"57", b"40", b"XX"];
/// MySQL's connections need no database.
const UNKNOWN_DATABASE: [u8; 5] = *b"3D000";

/// What is known of the readings of one catalog.
struct Reading {
    stage: Stage,
    /// Failures in a row.
    failures: u32,
    /// People were told why it cannot be read.
    told: bool,
}

enum Stage {
    /// No node was up.
    Due,
    Running,
    Read(Instant),
    Failed {
        at: Instant,
        again: Duration,
    },
}

/// Why a catalog was not read.
enum Unread {
    NoNode,
    /// The monitor's user may not, or it takes too long: nobody is to wait for the next attempt.
    Hopeless(String),
    /// There is no such database, any more or at all: who logs in to it is told by the server.
    NoDatabase(String),
    Failed(String),
}

/// A reading that is over.
struct Ended {
    database: Arc<Database>,
    /// What the catalog shows of its names and of its code, if it was read.
    shown: (u64, u64),
    begun: Instant,
    result: Result<Told, Unread>,
}

/// Who told a catalog, and what beside it.
struct Told {
    address: Arc<str>,
    /// `false`: a replica beside a primary, which may have newer ones.
    is_newest: bool,
    session_defaults: Option<u64>,
    configured: Option<Box<str>>,
}

/// What sessions begin with, as a catalog told last; since when it is known.
struct SessionDefaults {
    digest: u64,
    since: Instant,
}

/// The server whose configuration files were last asked for, and when it read them.
type Configured = (Arc<str>, Box<str>);

impl Default for Reading {
    fn default() -> Self {
        Self { stage: Stage::Due, failures: 0, told: false }
    }
}

impl Reading {
    fn is_due(&self, database: &Arc<Database>, refresh: Option<Duration>) -> bool {
        let (at, after) = match self.stage {
            Stage::Due => return true,
            Stage::Running => return false,
            Stage::Read(at) => (at, refresh),
            // For those who use it: it may have been dropped.
            Stage::Failed { at, again } => (at, (Arc::strong_count(database) > UNUSED).then_some(again)),
        };
        database.stale.load(Ordering::Acquire) || after.is_some_and(|after| at.elapsed() >= after)
    }
}

pub(super) async fn run<P: Protocol>(cluster: Arc<Cluster<P>>) {
    let mut known: HashMap<Arc<str>, Reading> = HashMap::new();
    let mut running = FuturesUnordered::new();
    let mut session_defaults: Option<SessionDefaults> = None;
    let mut configured: Option<Configured> = None;
    let mut tick = tokio::time::interval(SPACING);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Some(ended) = running.next(), if !running.is_empty() => {
                note_session_defaults(&cluster, &mut session_defaults, &ended);
                note_configured(&cluster, &mut configured, &ended);
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
                known.entry(database.name.clone()).or_default().stage = Stage::Running;
                running.push(read(&cluster, database));
            }
        }
    }
}

async fn read<P: Protocol>(cluster: &Cluster<P>, database: Arc<Database>) -> Ended {
    database.stale.store(false, Ordering::Release);
    let shown = (database.names.so_far(), database.code.so_far());
    let begun = Instant::now();
    let result = ask(cluster, &database).await.map(|(catalog, told)| {
        database.set_catalog(catalog);
        told
    });
    Ended { database, shown, begun, result }
}

/// Reads one database's catalog, on the primary if there is one.
async fn ask<P: Protocol>(cluster: &Cluster<P>, database: &Database) -> Result<(Catalog, Told), Unread> {
    let snapshot = cluster.topology.load_full();
    // A suspect one answers, more often than not.
    let usable = |node: &&Node| matches!(node.state, State::Up | State::Suspect);
    let primary = snapshot.primary().filter(usable);
    let node = primary.or_else(|| snapshot.nodes.iter().find(usable)).ok_or(Unread::NoNode)?;
    let is_newest = primary.is_some() || snapshot.primary().is_none();
    let identity = cluster.monitor_identity.load_full();
    let identity = Identity { database: database.name.clone(), ..Identity::clone(&identity) };
    let link = cluster.link.load_full();
    let config = cluster.config.load_full();
    let timeout = config.monitor.catalog_timeout();
    let deadline = tokio::time::Instant::now() + timeout;
    let too_long = || Unread::Hopeless(format!("it took longer than {timeout:?}"));
    let login = P::Backend::connect(&node.address, &link, &identity, Role::Unknown);
    let mut backend = tokio::time::timeout_at(deadline, login).await.map_err(|_| too_long())??;
    match tokio::time::timeout_at(deadline, backend.catalog(&config.routing.functions)).await {
        Ok(read) => {
            let catalog = read?;
            let (session_defaults, configured) = (catalog.session_defaults, catalog.configured.clone());
            Ok((catalog, Told { address: node.address.clone(), is_newest, session_defaults, configured }))
        }
        Err(_) => {
            cancel(cluster, &node.address, &identity, &backend).await;
            Err(too_long())
        }
    }
}

/// Ends a question that nobody waits for any more: a server that waits for a lock goes on waiting, whoever
/// has left, and every attempt would add one.
async fn cancel<P: Protocol>(
    cluster: &Cluster<P>,
    address: &str,
    identity: &Identity<P>,
    asked: &P::Backend,
) {
    let link = cluster.link.load_full();
    let timeout = cluster.config.load().monitor.timeout;
    let key = asked.cancel_key();
    let cancel = P::Backend::cancel(address, &link, identity, &key, Ending::STATEMENT);
    if !matches!(tokio::time::timeout(timeout, cancel).await, Ok(Ok(()))) {
        tracing::info!(cluster = %cluster.name, node = address, "a reading of the catalog could not be cancelled");
    }
}

fn refused(code: [u8; 5], said: String) -> Unread {
    if code == UNKNOWN_DATABASE {
        return Unread::NoDatabase(said);
    }
    let passes = PASSING.iter().any(|class| code.starts_with(*class));
    if passes { Unread::Failed(said) } else { Unread::Hopeless(said) }
}

impl From<ConnectFault> for Unread {
    fn from(fault: ConnectFault) -> Self {
        let said = fault.to_string();
        match fault {
            ConnectFault::Refused { code, .. } => refused(code, said),
            _ => Self::Failed(said),
        }
    }
}

impl From<Fault> for Unread {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(error) => refused(error.code, error.to_string()),
            Fault::Client(error) | Fault::Server { error, .. } => Self::Failed(error.to_string()),
            Fault::Protocol(refusal) => Self::Failed(refusal.message.into()),
        }
    }
}

/// What was set past the proxy counts for connections that are opened from then on: as what passes
/// through, it is to count for all.
fn note_session_defaults<P: Protocol>(
    cluster: &Cluster<P>,
    known: &mut Option<SessionDefaults>,
    ended: &Ended,
) {
    let Ok(told @ Told { is_newest: true, session_defaults: Some(digest), .. }) = &ended.result else {
        return;
    };
    match known {
        // Another database's catalog was read meanwhile, and may show what is newer.
        Some(known) if known.digest == *digest || ended.begun < known.since => return,
        Some(_) => {
            let topology = &cluster.topology;
            let floor = topology.unsampled(&told.address, topology.probes.current());
            cluster.logins_changed(&told.address, floor);
            topology.want_position();
        }
        None => {}
    }
    *known = Some(SessionDefaults { digest: *digest, since: Instant::now() });
}

/// What a server reads anew from its files counts for its open connections as well, but nobody has told
/// of it what new sessions are told.
fn note_configured<P: Protocol>(cluster: &Cluster<P>, known: &mut Option<Configured>, ended: &Ended) {
    let Ok(Told { is_newest: true, address, configured: Some(at), .. }) = &ended.result else { return };
    let told = (address.clone(), at.clone());
    if known.as_ref() != Some(&told) {
        P::forget_greetings(&cluster.gate.load());
        *known = Some(told);
    }
}

fn note<P: Protocol>(cluster: &Cluster<P>, known: &mut HashMap<Arc<str>, Reading>, ended: Ended) {
    let Ended { database, shown, result, .. } = ended;
    // Where nobody has ever been able to read it, nobody waits for it.
    if matches!(result, Ok(Told { is_newest: true, .. })) || database.readings() == 0 {
        database.names.knows(shown.0);
        database.code.knows(shown.1);
    }
    let reading = known.entry(database.name.clone()).or_default();
    let is_missing = matches!(result, Err(Unread::NoDatabase(_)));
    let (why, again) = match result {
        Ok(_) => {
            *reading = Reading { stage: Stage::Read(Instant::now()), ..Reading::default() };
            return;
        }
        Err(Unread::NoNode) => {
            reading.stage = Stage::Due;
            return;
        }
        Err(Unread::Hopeless(why)) => (why, LATER),
        Err(Unread::Failed(why) | Unread::NoDatabase(why)) => (why, RETRY),
    };
    reading.stage = Stage::Failed { at: Instant::now(), again };
    reading.failures += 1;
    if again == RETRY && reading.failures < PATIENCE {
        tracing::debug!(cluster = %cluster.name, database = %database.name, why, "the catalog could not be read");
        return;
    }
    database.give_up();
    if is_missing {
        // Names that clients make up are no news.
        tracing::debug!(cluster = %cluster.name, database = %database.name, "there is no such database, and no catalog");
        return;
    }
    if !std::mem::replace(&mut reading.told, true) {
        let meaning = match database.readings() {
            0 => "sessions that call functions or write keep their connections",
            _ => "functions and triggers are judged by what it said before",
        };
        tracing::warn!(cluster = %cluster.name, database = %database.name, why, "the catalog cannot be read: {meaning}");
    }
}
