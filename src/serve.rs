//! The running proxy: clusters, workers, doors, reload and drain.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
};

use crate::{
    admin::{
        self, console,
        control::{Control, Managed, ReloadRequest},
    },
    cluster::{AuthQuery, Cluster},
    config::{self, Config, Engine, HostPort, reload},
    listener,
    logging::LogLevel,
    metrics::Metrics,
    monitor, mysql,
    observe::{self, Observed},
    postgres,
    protocol::{Protocol, VerifierSource},
    runtime::{Places, Workers},
    session::cancel::Call,
    shutdown::{Ending, Notice, Shutdown, notify},
    sockets::{Sharing, Sockets},
    takeover::Legacy,
    tls::TlsError,
};

/// How long a process that takes over looks for primaries, and how often.
const READY_WITHIN: Duration = Duration::from_secs(10);
const READY_POLL: Duration = Duration::from_millis(20);

/// Why the proxy could not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("cannot listen on {address}: {error}")]
    Listen { address: HostPort, error: io::Error },
    #[error("cluster {cluster}: {error}")]
    Tls { cluster: Arc<str>, error: Box<TlsError> },
    #[error("the service manager's sockets cannot be taken over: {0}")]
    Inherited(io::Error),
    #[error("cannot start the worker threads: {0}")]
    Workers(io::Error),
}

/// A proxy that listens and serves.
pub struct Proxy {
    workers: Arc<Workers>,
    clusters: Vec<Box<dyn Running>>,
    config: Config,
    pub metrics: Arc<Metrics>,
    shutdown: Shutdown,
    /// Where the HTTP door is, if it is open.
    pub http: Option<SocketAddr>,
    control: Control,
    /// Until the doors are open.
    sockets: Option<Sockets>,
    reloads: mpsc::Receiver<ReloadRequest>,
}

/// One cluster, whichever protocol it speaks.
trait Running: Send + Sync {
    fn name(&self) -> &Arc<str>;
    fn addresses(&self) -> &[SocketAddr];
    /// Applies a configuration, or says why it cannot be.
    fn check(&self, config: &config::Cluster) -> Result<(), StartError>;
    fn apply(&self, config: &config::Cluster) -> Result<(), StartError>;
    /// Applies what is not a cluster's own but concerns its statements.
    fn set_watched(&self, config: &Config);
    fn call(&self, call: Call);
    fn sessions(&self) -> usize;
    /// Clients that are no session yet.
    fn arriving(&self) -> usize;
    fn managed(&self) -> Arc<dyn Managed>;
}

/// A cluster, and how its parts are made from a configuration.
struct Service<P: Protocol, F> {
    cluster: Arc<Cluster<P>>,
    addresses: Vec<SocketAddr>,
    parts: F,
}

type MadeParts<P> = Result<(crate::cluster::Parts<P>, Option<Arc<AuthQuery<P>>>), TlsError>;

impl<P: Protocol, F: Fn(&config::Cluster) -> MadeParts<P> + Send + Sync> Running for Service<P, F> {
    fn name(&self) -> &Arc<str> {
        &self.cluster.name
    }

    fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    fn check(&self, config: &config::Cluster) -> Result<(), StartError> {
        let made = (self.parts)(config);
        made.map(drop).map_err(|error| StartError::Tls { cluster: config.name.clone(), error: error.into() })
    }

    fn apply(&self, config: &config::Cluster) -> Result<(), StartError> {
        let (parts, query) = (self.parts)(config)
            .map_err(|error| StartError::Tls { cluster: config.name.clone(), error: error.into() })?;
        if let Some(query) = query {
            query.attach(&self.cluster);
        }
        self.cluster.reconfigure(config.clone(), parts);
        Ok(())
    }

    fn set_watched(&self, config: &Config) {
        self.cluster.set_slow(config.log.statements_over);
        self.cluster.recent.set_limit(config.admin.recent_statements);
    }

    fn call(&self, call: Call) {
        self.cluster.call_all(call);
    }

    fn sessions(&self) -> usize {
        self.cluster.sessions.len()
    }

    fn arriving(&self) -> usize {
        self.cluster.arrivals.len()
    }

    fn managed(&self) -> Arc<dyn Managed> {
        self.cluster.clone()
    }
}

impl Proxy {
    /// Binds everything and starts serving. The servers need not be there yet. Beside a process that
    /// is being relieved the admin doors stay closed until [`Self::open_doors`]: until this one is
    /// ready, the other's answers are the right ones. `legacy`: what that one remembers.
    ///
    /// # Errors
    /// When an address cannot be listened on, or a TLS file cannot be used.
    pub async fn start(
        config: Config,
        shutdown: Shutdown,
        sharing: Sharing,
        legacy: &Legacy,
    ) -> Result<Self, StartError> {
        let mut sockets = Sockets::inherited(sharing).map_err(StartError::Inherited)?;
        let workers = Arc::new(Workers::start(config.workers).map_err(StartError::Workers)?);
        spawn(workers.places().clone().balance());
        let metrics = Arc::new(Metrics::new());
        let mut clusters = Vec::new();
        for cluster in &config.clusters {
            let listeners = bind_all(&cluster.listen, &mut sockets).await?;
            let making = Making { workers: &workers, metrics: &metrics, shutdown: &shutdown, legacy };
            clusters.push(start_cluster(cluster, listeners, making).await?);
        }
        for running in &clusters {
            running.set_watched(&config);
        }
        let managed = clusters.iter().map(|running| running.managed()).collect();
        let (control, reloads) = Control::new(managed, config.clone(), metrics.clone(), shutdown.clone());
        metrics.configured();
        let sockets = Some(sockets);
        let mut proxy =
            Self { workers, clusters, config, metrics, shutdown, http: None, control, sockets, reloads };
        if sharing == Sharing::Alone {
            proxy.open_doors().await?;
        }
        Ok(proxy)
    }

    /// Opens the control plane's doors, once.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub async fn open_doors(&mut self) -> Result<(), StartError> {
        let Some(mut sockets) = self.sockets.take() else { return Ok(()) };
        self.http = open_doors(&self.config.admin, &self.control, &mut sockets).await?;
        for address in sockets.unclaimed() {
            tracing::warn!(%address, "the service manager listens there, but nothing here does");
        }
        Ok(())
    }

    /// Where its sessions run.
    pub fn places(&self) -> &Arc<Places> {
        self.workers.places()
    }

    /// Where each cluster listens, by its name.
    pub fn addresses(&self) -> Vec<(Arc<str>, Vec<SocketAddr>)> {
        self.clusters.iter().map(|cluster| (cluster.name().clone(), cluster.addresses().to_vec())).collect()
    }

    /// The clusters as the control plane sees them.
    pub fn managed(&self) -> Vec<Arc<dyn Managed>> {
        self.clusters.iter().map(|running| running.managed()).collect()
    }

    /// Waits until every cluster has a primary, but no longer than a process that takes over may
    /// keep the old one waiting. Returns the names of those that have none.
    pub async fn wait_until_ready(&self) -> Vec<Arc<str>> {
        let without = || {
            let lacks = |cluster: &&Arc<dyn Managed>| cluster.snapshot().primary().is_none();
            self.managed().iter().filter(lacks).map(|cluster| cluster.name().clone()).collect::<Vec<_>>()
        };
        let ready = async {
            while !without().is_empty() {
                tokio::time::sleep(READY_POLL).await;
            }
        };
        // Asked again below, whatever became of it.
        let _ = tokio::time::timeout(READY_WITHIN, ready).await;
        without()
    }

    /// Serves until told to stop; reloads from `file` when `reload` is notified.
    pub async fn run(mut self, file: Option<PathBuf>, reload: Arc<Notify>, level: LogLevel) -> Ending {
        notify(Notice::Ready);
        loop {
            tokio::select! {
                () = self.shutdown.draining() => break,
                () = reload.notified() => drop(self.reload(file.as_deref(), &level)),
                Some(wish) = self.reloads.recv() => {
                    let result = self.reload(file.as_deref(), &level);
                    // Whoever asked may have left.
                    let _ = wish.send(result);
                }
            }
        }
        notify(Notice::Stopping);
        for cluster in &self.clusters {
            cluster.call(Call::Drain);
        }
        let timeout = self.config.shutdown_timeout;
        let ending = self.shutdown.clone().finish(self.emptied(LOGIN_GRACE), timeout).await;
        for cluster in &self.clusters {
            cluster.managed().kill_all();
        }
        // The last words have to leave before the threads end.
        let _ = tokio::time::timeout(LAST_WORDS, self.emptied(Duration::ZERO)).await;
        let workers = self.workers.clone();
        drop(self);
        // Joining the threads must not block a runtime: this is its last act.
        std::thread::spawn(move || drop(workers)).join().ok();
        ending
    }

    /// Waits for the end of all sessions; for `grace` also for clients that are becoming one, and then
    /// hear that the proxy ends.
    async fn emptied(&self, grace: Duration) {
        let patience = Instant::now() + grace;
        let waited_for = |cluster: &dyn Running| {
            cluster.sessions() > 0 || (cluster.arriving() > 0 && Instant::now() < patience)
        };
        while self.clusters.iter().any(|cluster| waited_for(&**cluster)) {
            for cluster in &self.clusters {
                cluster.call(Call::Drain);
            }
            tokio::time::sleep(EMPTY_POLL).await;
        }
    }

    /// Applies the file as a whole, or not at all.
    fn reload(&mut self, file: Option<&Path>, level: &LogLevel) -> Result<(), String> {
        notify(Notice::Reloading);
        let applied = match file {
            Some(file) => self.apply(file, level),
            None => Err("there is no configuration file to reload".to_owned()),
        };
        if let Err(why) = &applied {
            for fault in why.lines() {
                tracing::error!("the configuration was not reloaded, nothing has changed: {fault}");
            }
        }
        self.metrics.reloaded(applied.is_ok());
        notify(Notice::Ready);
        applied
    }

    fn apply(&mut self, file: &Path, level: &LogLevel) -> Result<(), String> {
        let new = Config::load(file).map_err(|faults| faults.to_string())?;
        let changes = reload::Changes::between(&self.config, &new);
        let effective = reload::effective(&self.config, &new);
        let pairs: Vec<_> = self
            .clusters
            .iter()
            .filter_map(|running| {
                let config = effective.clusters.iter().find(|cluster| cluster.name == *running.name())?;
                Some((running, config))
            })
            .collect();
        for (running, config) in &pairs {
            running.check(config).map_err(|error| error.to_string())?;
        }
        for (running, config) in pairs {
            running
                .apply(config)
                .map_err(|error| format!("a file changed while it was being reloaded: {error}"))?;
        }
        for running in &self.clusters {
            running.set_watched(&effective);
        }
        if changes.is_empty() {
            tracing::info!("reloaded: nothing has changed");
        }
        for change in &changes.live {
            tracing::info!("reloaded: {change}");
        }
        for change in &changes.restart {
            tracing::warn!("takes effect after a restart: {change}");
        }
        if let Err(error) = level.set(&effective.log) {
            tracing::warn!(%error, "the log goes on as before");
        }
        self.control.set_config(effective.clone());
        self.config = effective;
        Ok(())
    }
}

/// How often a draining proxy looks whether its sessions have ended.
const EMPTY_POLL: Duration = Duration::from_millis(20);

/// How long a draining proxy waits for clients in the middle of their login. Some never say anything.
const LOGIN_GRACE: Duration = Duration::from_secs(2);

/// How long sessions that are ended by force have for saying so.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Opens the control plane's doors. Returns where the HTTP door is.
async fn open_doors(
    admin: &config::Admin,
    control: &Control,
    sockets: &mut Sockets,
) -> Result<Option<SocketAddr>, StartError> {
    let listen = |at: &HostPort| {
        let address = at.clone();
        move |error| StartError::Listen { address, error }
    };
    for (at, door) in [(&admin.postgres, console::Door::Postgres), (&admin.mysql, console::Door::Mysql)] {
        if let Some(at) = at {
            let listeners = sockets.bind(at).await.map_err(listen(at))?;
            console::open(listeners, door, control);
        }
    }
    match &admin.http {
        Some(at) => {
            let listeners = sockets.bind(at).await.map_err(listen(at))?;
            admin::http::open(listeners, control).map(Some).map_err(listen(at))
        }
        None => Ok(None),
    }
}

/// What all clusters of a process are made with.
#[derive(Clone, Copy)]
struct Making<'a> {
    workers: &'a Arc<Workers>,
    metrics: &'a Arc<Metrics>,
    shutdown: &'a Shutdown,
    legacy: &'a Legacy,
}

/// The one place where a protocol is chosen.
async fn start_cluster(
    config: &config::Cluster,
    listeners: Vec<TcpListener>,
    making: Making<'_>,
) -> Result<Box<dyn Running>, StartError> {
    match config.engine {
        Engine::Postgres => {
            let shared = Arc::new(postgres::Shared::default());
            let parts = move |config: &config::Cluster| {
                let query = config.auth.query.clone().map(AuthQuery::new);
                let source = query.clone().map(|query| query as Arc<dyn VerifierSource>);
                Ok((postgres::parts(config, &shared, source)?, query))
            };
            start_service::<postgres::Postgres, _>(config, parts, listeners, making).await
        }
        Engine::Mysql => {
            let shared = Arc::new(mysql::Shared::default());
            let parts = move |config: &config::Cluster| {
                let query = config.auth.query.clone().map(AuthQuery::new);
                let source = query.clone().map(|query| query as Arc<dyn VerifierSource>);
                Ok((mysql::parts(config, &shared, source)?, query))
            };
            start_service::<mysql::Mysql, _>(config, parts, listeners, making).await
        }
    }
}

/// Looks at a cluster's servers for a moment, without serving anybody.
///
/// # Errors
/// When a TLS file cannot be used.
pub async fn observe(config: &config::Cluster, database: &Arc<str>) -> Result<Observed, StartError> {
    match config.engine {
        Engine::Postgres => {
            let parts = postgres::parts(config, &Arc::default(), None)
                .map_err(|error| StartError::Tls { cluster: config.name.clone(), error: error.into() })?;
            Ok(observe::look::<postgres::Postgres>(config, parts, database).await)
        }
        Engine::Mysql => {
            let parts = mysql::parts(config, &Arc::default(), None)
                .map_err(|error| StartError::Tls { cluster: config.name.clone(), error: error.into() })?;
            // One catalog holds all schemas.
            Ok(observe::look::<mysql::Mysql>(config, parts, &"".into()).await)
        }
    }
}

async fn start_service<P: Protocol, F>(
    config: &config::Cluster,
    parts: F,
    listeners: Vec<TcpListener>,
    Making { workers, metrics, shutdown, legacy }: Making<'_>,
) -> Result<Box<dyn Running>, StartError>
where
    F: Fn(&config::Cluster) -> MadeParts<P> + Send + Sync + 'static,
{
    let (made, query) = parts(config)
        .map_err(|error| StartError::Tls { cluster: config.name.clone(), error: error.into() })?;
    let addresses = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
    let metrics = metrics.cluster(&config.name);
    let mut cluster = Cluster::new(config.clone(), made, metrics, shutdown.clone(), workers.count());
    cluster.inherited = legacy.of_cluster(&config.name).election;
    let cluster = Arc::new(cluster);
    if let Some(query) = query {
        query.attach(&cluster);
    }
    spawn(monitor::run(cluster.clone()));
    for listener in listeners {
        spawn(listener::accept(listener, cluster.clone(), workers.places().clone()));
    }
    Ok(Box::new(Service { cluster, addresses, parts }))
}

fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    let boxed: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(future);
    tokio::spawn(boxed);
}

async fn bind_all(listen: &[HostPort], sockets: &mut Sockets) -> Result<Vec<TcpListener>, StartError> {
    let mut listeners = Vec::new();
    for at in listen {
        let bound =
            sockets.bind(at).await.map_err(|error| StartError::Listen { address: at.clone(), error })?;
        for listener in bound {
            if let Ok(address) = listener.local_addr() {
                tracing::info!(%address, "listening");
            }
            listeners.push(listener);
        }
    }
    Ok(listeners)
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shutdown.stop();
        for cluster in &self.clusters {
            cluster.managed().refresh_metrics();
        }
    }
}
