//! One cluster wired together: topology, pools, databases, sessions, and how they are configured.

mod database;
mod published;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

pub use self::{
    database::{Database, Doubt},
    published::Topology,
};
use crate::{
    arrivals::Arrivals,
    config,
    floors::SharedFloors,
    line::Line,
    metrics::{ClusterMetrics, Connections},
    misspelt::Misspelt,
    operator::Operator,
    pool::{Fate, Limits, Pools, Shares},
    protocol::{Backend, Identity, Protocol, VerifierSource},
    recent::Recent,
    route::Floor,
    session::cancel::{Call, Cancelling, Entry, Registry},
    shutdown::Shutdown,
    split::Split,
    sql::{cache::Classifier, effects::Ending},
    topology::{self, Resolved, Snapshot, board::Remembered},
};

/// Everything that the sessions of one cluster share.
pub struct Cluster<P: Protocol> {
    pub name: Arc<str>,
    pub config: Arc<ArcSwap<config::Cluster>>,
    pub gate: ArcSwap<P::Gate>,
    pub link: Arc<ArcSwap<P::Link>>,
    /// What the monitor logs in to servers as.
    pub monitor_identity: ArcSwap<Identity<P>>,
    /// The same for `auth.query`, which is the operator's text.
    verifier_identity: ArcSwap<Identity<P>>,
    pub topology: Topology,
    /// The last election of a process that this one relieves.
    pub inherited: Option<Remembered>,
    /// Tells the last election, once the monitor runs.
    pub memory: OnceLock<Box<dyn Fn() -> Option<Remembered> + Send + Sync>>,
    pub shares: Arc<Shares<P>>,
    pools: Mutex<HashMap<PoolKey, Arc<Pools<P>>>>,
    databases: Mutex<HashMap<Arc<str>, Arc<Database>>>,
    databases_so_far: AtomicU64,
    pub classifier: Arc<Classifier>,
    pub sessions: Arc<Registry>,
    /// Clients that are no session yet.
    pub arrivals: Arc<Arrivals>,
    pub metrics: Arc<ClusterMetrics>,
    pub shutdown: Shutdown,
    /// Statements waiting for a node.
    pub line: Line,
    pub operator: Operator,
    pub recent: Recent,
    /// `log.statements_over`, in microseconds.
    slow_over: AtomicU64,
    /// What `user` reads must not be behind of.
    user_floors: Mutex<HashMap<UserKey, Arc<SharedFloors>>>,
    /// What logins find was changed, and not every node is known to have the change.
    logins: Mutex<Option<LoginsChanged>>,
    pub split: Split,
    pub misspelt: Misspelt,
}

/// User and database.
type UserKey = (Arc<str>, Arc<str>);

/// User, database and flavour.
type PoolKey = (Arc<str>, Arc<str>, u64);

/// A change of what logins find on its way to the nodes.
#[derive(Debug)]
struct LoginsChanged {
    floor: Floor,
    /// Where the connections of before are replaced already. Bounded by the number of nodes.
    done: HashSet<Arc<str>>,
}

/// How a cluster's parts are made from its configuration; each protocol brings its own.
pub struct Parts<P: Protocol> {
    pub gate: P::Gate,
    pub link: P::Link,
    pub monitor_identity: Identity<P>,
    pub verifier_identity: Identity<P>,
}

impl<P: Protocol> Cluster<P> {
    /// `workers`: threads of the data plane.
    pub fn new(
        config: config::Cluster,
        parts: Parts<P>,
        metrics: Arc<ClusterMetrics>,
        shutdown: Shutdown,
        workers: usize,
    ) -> Self {
        let classifier = Classifier::new(
            P::DIALECT,
            config.routing.functions.clone(),
            crate::sql::cache::DEFAULT_CAPACITY,
        );
        Self {
            name: config.name.clone(),
            gate: ArcSwap::from_pointee(parts.gate),
            link: Arc::new(ArcSwap::from_pointee(parts.link)),
            monitor_identity: ArcSwap::from_pointee(parts.monitor_identity),
            verifier_identity: ArcSwap::from_pointee(parts.verifier_identity),
            topology: Topology::default(),
            inherited: None,
            memory: OnceLock::new(),
            shares: Arc::new(Shares::new(pool_limits(&config.pool), workers)),
            config: Arc::new(ArcSwap::from_pointee(config)),
            pools: Mutex::default(),
            databases: Mutex::default(),
            databases_so_far: AtomicU64::new(0),
            classifier: Arc::new(classifier),
            sessions: Arc::default(),
            arrivals: Arc::default(),
            metrics,
            shutdown,
            line: Line::default(),
            operator: Operator::default(),
            recent: Recent::default(),
            slow_over: AtomicU64::new(u64::MAX),
            user_floors: Mutex::default(),
            logins: Mutex::default(),
            split: Split::default(),
            misspelt: Misspelt::default(),
        }
    }

    /// The pools of a user and database, with the newest credentials.
    pub fn pools(&self, identity: &Identity<P>) -> Arc<Pools<P>> {
        let key = (identity.user.clone(), identity.database.clone(), identity.flavour);
        let mut pools = self.pools.lock();
        match pools.get(&key) {
            Some(found) => {
                found.identity.store(Arc::new(identity.clone()));
                found.clone()
            }
            None => {
                let made = Arc::new(Pools::new(identity.clone(), self.link.clone(), self.shares.clone()));
                pools.insert(key, made.clone());
                made
            }
        }
    }

    /// Forgets what was made for a login that came to nothing: whoever may log in could name any number of
    /// databases that there are not. What somebody uses stays, and so does what sessions have left.
    pub fn forget_unused(&self, identity: &Identity<P>) {
        let key = (identity.user.clone(), identity.database.clone(), identity.flavour);
        let mut pools = self.pools.lock();
        let unused = |pools: &Arc<Pools<P>>| Arc::strong_count(pools) == 1 && pools.is_empty();
        if pools.get(&key).is_some_and(unused) {
            pools.remove(&key);
        }
        drop(pools);
        self.forget_unentered();
    }

    /// Forgets databases where no session has begun and nobody is about to.
    pub fn forget_unentered(&self) {
        let pools = self.pools.lock();
        self.databases.lock().retain(|name, database| {
            database.was_entered()
                || Arc::strong_count(database) > 1
                || pools.keys().any(|(_, of_pools, _)| of_pools == name)
        });
    }

    /// Who may end what a session runs: its own user, for the monitor's need not have the right to
    /// (MySQL's KILL).
    pub fn identity_of(&self, entry: &Entry) -> Arc<Identity<P>> {
        let pools = self.pools.lock();
        let own =
            pools.iter().find(|((user, database, _), _)| *user == entry.user && *database == entry.database);
        own.map_or_else(|| self.monitor_identity.load_full(), |(_, pools)| pools.identity.load_full())
    }

    /// The floors that all sessions of a user in a database share.
    pub fn user_floors(&self, identity: &Identity<P>) -> Arc<SharedFloors> {
        let key = (identity.user.clone(), identity.database.clone());
        self.user_floors.lock().entry(key).or_default().clone()
    }

    /// Publishes a snapshot: what it forbids is fenced before anybody is told, and those who wait
    /// look again in their order. `roles`: a node's role or state has changed.
    pub fn publish(&self, snapshot: Snapshot, roles: bool) {
        let version = snapshot.version;
        self.follow_logins(&snapshot);
        let elected = snapshot.primary().map(|primary| primary.address.clone());
        let before = self.topology.load().primary().map(|primary| primary.address.clone());
        self.topology.store(snapshot);
        if elected.is_some() && elected != before {
            // It may be of another version, or configured otherwise.
            P::forget_greetings(&self.gate.load());
        }
        if roles {
            self.apply_standings();
            // Sessions that hold a connection look whether it may still be used.
            self.call_all(Call::Look);
        }
        self.line.wake(version);
        self.topology.changed.notify_waiters();
    }

    /// A statement on the node at `address` changed what logins find; `floor` bounds it. Connections keep as it was
    /// when they were opened: MySQL's global privileges, those on their schema and their roles, PostgreSQL's
    /// settings of their role and database. On each node they are replaced as soon as it has the
    /// change. What a session keeps stays, as a server's own sessions do.
    pub fn logins_changed(&self, address: &Arc<str>, floor: Floor) {
        let snapshot = self.topology.load();
        let done = HashSet::from([address.clone()]);
        {
            let mut logins = self.logins.lock();
            let before = logins.take().map_or(Floor::None, |before| before.floor);
            let floor = crate::floors::higher(floor, before, &snapshot);
            // From here on the primary alone is asked what new sessions are told.
            *logins = Some(LoginsChanged { floor, done });
        }
        self.replace_connections(address);
    }

    /// Whether what logins find was changed and not every node has that yet.
    pub fn changes_logins(&self) -> bool {
        self.logins.lock().is_some()
    }

    /// Before the snapshot can tell anybody that a node has the change.
    fn follow_logins(&self, snapshot: &Snapshot) {
        let mut logins = self.logins.lock();
        let Some(LoginsChanged { floor, done }) = &mut *logins else { return };
        let resolved = snapshot.resolve(floor);
        let has_it = |node: &topology::Node| match &resolved {
            Resolved::Pending => false,
            Resolved::At(position) => {
                node.position.as_ref().is_some_and(|has| snapshot.covers(has, position) == Some(true))
            }
            Resolved::None | Resolved::Lost { .. } => true,
        };
        for node in snapshot.nodes.iter().filter(|node| has_it(node)) {
            if done.insert(node.address.clone()) {
                self.replace_connections(&node.address);
            }
        }
        if snapshot.nodes.iter().all(|node| done.contains(&node.address)) {
            *logins = None;
        }
    }

    /// Those in use end when they come back.
    fn replace_connections(&self, address: &Arc<str>) {
        tracing::debug!(cluster = %self.name, node = %address, "accounts or defaults were changed: its connections are replaced");
        for (_, pools) in self.all_pools() {
            pools.replace(|other, _| other == &**address);
        }
        P::forget_greetings(&self.gate.load());
    }

    fn apply_standings(&self) {
        let snapshot = self.topology.load_full();
        let vacant = snapshot.primary().is_none();
        for pool in self.shares.alive() {
            let (address, role) = (&*pool.share.address, pool.role());
            let node = snapshot.find(address);
            if snapshot.forbids(address, role) {
                pool.standing.fence();
            }
            let down = node.is_some_and(|node| node.state == topology::State::Down);
            if pool.standing.set_down(down) && !down {
                pool.share.refusals.forget();
            }
            let open = vacant && role == topology::Role::Primary;
            pool.standing.set_vacant(open && node.is_some_and(|node| node.may_write));
        }
        for (_, pools) in self.all_pools() {
            pools.replace(|address, role| snapshot.forbids(address, role));
        }
    }

    /// Closes the idle connections to a database, and those in use when they come back.
    pub fn leave_database(&self, name: &str) {
        for ((_, database, _), pools) in self.all_pools() {
            if *database == *name {
                pools.replace(|_, _| true);
            }
        }
    }

    pub fn all_pools(&self) -> Vec<(PoolKey, Arc<Pools<P>>)> {
        self.pools.lock().iter().map(|(key, pools)| (key.clone(), pools.clone())).collect()
    }

    /// A database by its name. Its catalog is read soon after the first login to it.
    pub fn database(&self, name: &Arc<str>) -> Arc<Database> {
        let mut databases = self.databases.lock();
        let found = databases.entry(name.clone()).or_insert_with(|| {
            self.topology.nudge.notify_one();
            let id = self.databases_so_far.fetch_add(1, Ordering::Relaxed) + 1;
            Arc::new(Database::new(id, name.clone()))
        });
        found.clone()
    }

    pub fn databases(&self) -> Vec<Arc<Database>> {
        self.databases.lock().values().cloned().collect()
    }

    /// Brings the counters that are kept elsewhere up to date.
    pub fn refresh_metrics(&self) {
        let counts = self.classifier.counts();
        self.metrics.cache(counts.hits, counts.misses, counts.parse_failures);
        let snapshot = self.topology.load_full();
        self.metrics.show(&snapshot);
        let connections = self.connections();
        for node in snapshot.nodes.iter() {
            let mut of_node = connections.get(&node.address).copied().unwrap_or_default();
            of_node.limit = self.shares.share(&node.address).limit();
            self.metrics.pool(&node.address, of_node);
        }
    }

    /// Server connections of all users and databases, by node.
    pub fn connections(&self) -> HashMap<Arc<str>, Connections> {
        let mut by_node: HashMap<Arc<str>, Connections> = HashMap::new();
        for (_, pools) in self.all_pools() {
            for ((address, _), pool) in pools.all() {
                let status = pool.status();
                let sum = by_node.entry(address).or_default();
                sum.idle += status.idle;
                sum.in_use += status.in_use;
                sum.waiters += status.waiters;
            }
        }
        by_node
    }

    /// Ends what a session is waiting for or running, as `identity` where that takes a login.
    pub async fn interrupt(&self, entry: &Arc<Entry>, identity: &Identity<P>, ending: Ending) {
        entry.call(Call::Cancel);
        if let Some(cancelling) = entry.begin_cancel(ending.ends) {
            self.cancel(cancelling, identity, ending).await;
        }
    }

    /// Asks the server to end what runs there.
    pub async fn cancel(&self, cancelling: Cancelling, identity: &Identity<P>, ending: Ending) {
        let target = &cancelling.target;
        let link = self.link.load_full();
        let timeout = self.config.load().monitor.timeout;
        let cancel = P::Backend::cancel(&target.address, &link, identity, &target.key, ending);
        let sent = tokio::time::timeout(timeout, cancel).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::info!(cluster = %self.name, node = %target.address, "a cancel request could not be handed on");
        }
    }

    /// Statements that take longer are logged; `None`: none are.
    pub fn set_slow(&self, over: Option<Duration>) {
        let micros = over.map_or(u64::MAX, |over| over.as_micros() as u64);
        self.slow_over.store(micros, Ordering::Relaxed);
    }

    pub fn is_slow(&self, took: Duration) -> bool {
        took.as_micros() as u64 > self.slow_over.load(Ordering::Relaxed)
    }

    /// Asks something of every session.
    pub fn call_all(&self, call: Call) {
        for entry in self.sessions.all() {
            entry.call(call);
        }
    }

    /// Passwords that the configuration has changed are good for sessions that stay, too.
    fn renew_credentials(&self, gate: &P::Gate) {
        for ((user, _, _), pools) in self.all_pools() {
            if let Some(credentials) = P::configured_credentials(gate, &user) {
                let identity = Identity::clone(&pools.identity.load());
                pools.identity.store(Arc::new(Identity { credentials, ..identity }));
            }
        }
    }

    /// Applies a new configuration: what is used from now on, without disturbing what runs.
    pub fn reconfigure(&self, config: config::Cluster, parts: Parts<P>) {
        let before = self.config.load_full();
        self.renew_credentials(&parts.gate);
        self.gate.store(Arc::new(parts.gate));
        self.link.store(Arc::new(parts.link));
        // The monitor keeps its connections where they would be the same again.
        if !before.monitor.logs_in_as(&config.monitor) || before.tls.server != config.tls.server {
            self.monitor_identity.store(Arc::new(parts.monitor_identity));
            self.verifier_identity.store(Arc::new(parts.verifier_identity));
        }
        let rules = &config.routing.functions;
        let ruled = (before.routing.functions != *rules).then(|| rules.clone());
        if before.pool != config.pool {
            self.shares.set_limits(pool_limits(&config.pool));
        }
        // deadpool cannot shrink a pool that is not full: new ones take over. And who asks for encryption
        // means connections of before, too.
        if before.pool != config.pool || before.tls.server != config.tls.server {
            for (_, pools) in self.all_pools() {
                pools.replace(|_, _| true);
            }
        }
        let limited = before.limits != config.limits;
        self.config.store(Arc::new(config));
        if let Some(rules) = ruled {
            self.classifier.set_rules(rules);
            // What calls those functions is judged by them, too.
            self.databases().iter().for_each(|database| database.stale.store(true, Ordering::Release));
        }
        if limited {
            self.call_all(Call::Limits);
        }
        self.topology.nudge.notify_one();
    }
}

fn pool_limits(pool: &config::Pool) -> Limits {
    Limits {
        size: pool.size,
        min_idle: pool.min_idle,
        checkout_timeout: pool.checkout_timeout,
        idle_timeout: pool.idle_timeout,
        max_lifetime: pool.max_lifetime,
    }
}

/// A cluster that may be gone.
pub type WeakCluster<P> = Weak<Cluster<P>>;

/// Asks a cluster's own servers for verifiers, as the monitor's user (`auth.query`).
pub struct AuthQuery<P: Protocol> {
    query: Arc<str>,
    cluster: OnceLock<Weak<Cluster<P>>>,
}

impl<P: Protocol> AuthQuery<P> {
    pub fn new(query: Arc<str>) -> Arc<Self> {
        Arc::new(Self { query, cluster: OnceLock::new() })
    }

    /// Says which cluster to ask; nobody can be asked before.
    pub fn attach(&self, cluster: &Arc<Cluster<P>>) {
        // A second cluster would be a fault of ours; the first one stays.
        let _ = self.cluster.set(Arc::downgrade(cluster));
    }

    async fn ask(&self, user: &str) -> Result<Option<String>, String> {
        let cluster = self.cluster.get().and_then(Weak::upgrade).ok_or("the cluster is not up")?;
        let identity = cluster.verifier_identity.load_full();
        let pools = cluster.pools(&identity);
        let snapshot = cluster.topology.load_full();
        let up =
            |node: &&topology::Node| matches!(node.state, topology::State::Up | topology::State::Suspect);
        let primary = snapshot.primary().filter(up);
        let mut failure = "no server is up".to_owned();
        for node in primary.into_iter().chain(snapshot.nodes.iter().filter(up)) {
            match pools.checkout(node).await {
                Ok(mut held) => match held.backend().verifier(&self.query, user).await {
                    Ok(found) => {
                        held.release(Fate::Reuse, Instant::now());
                        return Ok(found);
                    }
                    Err(fault) => failure = format!("{}: {fault}", node.address),
                },
                Err(fault) => failure = format!("{}: {fault}", node.address),
            }
        }
        Err(failure)
    }
}

impl<P: Protocol> VerifierSource for AuthQuery<P> {
    fn verifier<'a>(
        &'a self,
        user: &'a str,
        _database: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, String>> {
        Box::pin(self.ask(user))
    }
}
