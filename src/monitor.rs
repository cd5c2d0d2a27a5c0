//! Asks every node who it is and how far it has come, and publishes what follows from that.

mod catalogs;
mod logins;
mod members;
mod memory;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use logins::{Login, Logins};
use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinHandle};

use crate::{
    cluster::Cluster,
    config::{self, Engine, Members},
    discovery::Membership,
    operator::Order,
    protocol::{Backend, Identity, Missed, Protocol},
    topology::{
        self, Incarnation, Probe, ProbeFault, Role,
        board::{Board, Event, NodeConfig, Settings},
    },
};

/// Share of a server's connections that the pools may take unless `pool.node_connections` says
/// otherwise: the rest is for people, backups and other programs.
const SHARE_OF_CONNECTIONS: f64 = 0.8;

/// How often idle connections and gauges are looked after.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// How many different failures of one node are logged between two of its answers.
const MAX_SAID: usize = 8;

/// One cluster's monitor: a task per node, one that publishes, one that looks after the rest.
struct Monitor<P: Protocol> {
    cluster: Arc<Cluster<P>>,
    board: Mutex<Board>,
    /// Held while a snapshot is made and published, so that none overtakes a later one.
    publishing: Mutex<()>,
    /// Wakes the nodes' tasks when probes are wanted sooner.
    hurry: Notify,
    /// Patroni's last word, where it is asked.
    members: Mutex<Option<Membership>>,
}

/// Watches a cluster until the proxy stops.
pub async fn run<P: Protocol>(cluster: Arc<Cluster<P>>) {
    let config = cluster.config.load_full();
    let mut board = Board::new(nodes(&config, None), settings(&config), Instant::now(), SystemTime::now());
    if let Some(remembered) = cluster.inherited.clone().or_else(|| memory::read(&config)) {
        board.recall(remembered);
    }
    let monitor = Arc::new(Monitor {
        cluster: cluster.clone(),
        board: Mutex::new(board),
        publishing: Mutex::default(),
        hurry: Notify::new(),
        members: Mutex::default(),
    });
    let watched = Arc::downgrade(&monitor);
    let memory = move || watched.upgrade().and_then(|monitor| monitor.board.lock().remembered());
    // Set once: a cluster has one monitor.
    let _ = cluster.memory.set(Box::new(memory));
    monitor.publish();
    let mut tasks: HashMap<Arc<str>, JoinHandle<()>> = HashMap::new();
    let housekeeping = tokio::spawn(housekeeping(cluster.clone()));
    let catalogs = tokio::spawn(catalogs::run(cluster.clone()));
    let mut discovery = monitor.start_discovery(&config);
    let mut applied = config;
    monitor.start_nodes(&mut tasks);
    loop {
        tokio::select! {
            () = cluster.shutdown.stopping() => break,
            () = cluster.topology.nudge.notified() => {}
        }
        let current = cluster.config.load_full();
        if !Arc::ptr_eq(&current, &applied) {
            if current.members != applied.members {
                discovery.abort();
                *monitor.members.lock() = None;
                discovery = monitor.start_discovery(&current);
            }
            monitor.reconfigure();
            applied = current;
        }
        monitor.start_nodes(&mut tasks);
        monitor.take_reports();
        monitor.take_orders();
        monitor.hurry.notify_waiters();
    }
    if let Some(remembered) = monitor.board.lock().remembered() {
        memory::save(&cluster.config.load(), &remembered);
    }
    for task in tasks.into_values().chain([housekeeping, catalogs, discovery]) {
        task.abort();
    }
}

/// The nodes that a configuration names, or Patroni.
fn nodes(config: &config::Cluster, members: Option<&Membership>) -> Vec<NodeConfig> {
    match &config.members {
        Members::Nodes(nodes) => nodes
            .iter()
            .map(|node| NodeConfig {
                address: node.address.clone(),
                weight: node.weight,
                zone: node.zone.clone(),
                no_load_balance: false,
            })
            .collect(),
        Members::Patroni(_) => members.map(|members| members.nodes.clone()).unwrap_or_default(),
    }
}

fn settings(config: &config::Cluster) -> Settings {
    Settings {
        engine: match config.engine {
            Engine::Postgres => topology::Engine::Postgres,
            Engine::Mysql => topology::Engine::Mysql,
        },
        interval: config.monitor.interval,
        fast_interval: config.monitor.fast_interval,
        failures: config.monitor.failures,
        max_lag: config.routing.max_lag.unwrap_or_default(),
        lag_half_weight: config.routing.lag_half_weight.unwrap_or_default(),
        slow_start: config.routing.slow_start.unwrap_or_default(),
        zone: config.routing.zone.clone(),
    }
}

impl<P: Protocol> Monitor<P> {
    /// Starts a task for every node that has none, and ends those of nodes that are gone.
    fn start_nodes(self: &Arc<Self>, tasks: &mut HashMap<Arc<str>, JoinHandle<()>>) {
        let snapshot = self.board.lock().snapshot(Instant::now());
        tasks.retain(|address, task| {
            let kept = snapshot.find(address).is_some();
            if !kept {
                task.abort();
            }
            kept
        });
        for node in snapshot.nodes.iter() {
            tasks
                .entry(node.address.clone())
                .or_insert_with(|| tokio::spawn(watch(self.clone(), node.address.clone())));
        }
    }

    /// Applies the configuration and the list of nodes.
    fn reconfigure(&self) {
        let config = self.cluster.config.load_full();
        let nodes = nodes(&config, self.members.lock().as_ref());
        self.board.lock().reconfigure(nodes, settings(&config), Instant::now());
        self.publish();
    }

    fn take_reports(&self) {
        let now = Instant::now();
        let reports = self.cluster.topology.take_reports();
        if reports.is_empty() {
            return;
        }
        let mut board = self.board.lock();
        for (address, traffic) in reports {
            if let Some(id) = board.id_of(&address) {
                board.report(id, traffic, now);
            }
        }
        drop(board);
        self.publish();
    }

    /// What people asked for in the console.
    fn take_orders(&self) {
        let now = Instant::now();
        let orders = self.cluster.operator.take_orders();
        if orders.is_empty() {
            return;
        }
        let mut board = self.board.lock();
        for (node, order) in &orders {
            tracing::warn!(cluster = %self.cluster.name, %node, ?order, "ordered by a person");
            // A node that has gone since needs no order.
            let _ = match order {
                Order::Drain => board.drain(node, now),
                Order::Undrain => board.undrain(node, now),
                Order::Ban => board.ban(node, now),
                Order::Unban => board.unban(node, now),
            };
        }
        drop(board);
        self.publish();
    }

    fn observe(&self, address: &str, probe: Probe) {
        let mut board = self.board.lock();
        if let Some(id) = board.id_of(address) {
            board.observe(id, probe);
        }
        drop(board);
        self.publish();
    }

    /// Publishes what is known now, and says what has changed.
    fn publish(&self) {
        let _alone = self.publishing.lock();
        let mut board = self.board.lock();
        let snapshot = board.snapshot(Instant::now());
        let events = board.take_events();
        let counters = board.counters();
        let elected = events.iter().any(|event| matches!(event, Event::Elected { .. }));
        let remembered = if elected { board.remembered() } else { None };
        drop(board);
        if let Some(remembered) = remembered {
            let config = self.cluster.config.load_full();
            tokio::task::spawn_blocking(move || memory::save(&config, &remembered));
        }
        for event in &events {
            self.announce(event);
            self.cluster.operator.record(event.clone());
        }
        if let Some((_, took)) = counters.last_failover {
            self.cluster.metrics.failover_took(took.as_secs_f64());
        }
        let roles = |event: &Event| matches!(event, Event::Elected { .. } | Event::Changed { .. });
        let roles = events.iter().any(roles);
        self.cluster.publish(snapshot, roles);
        if roles || events.iter().any(|event| matches!(event, Event::NoPrimary { .. })) {
            // Probes that were to come at leisure may be due now.
            self.hurry.notify_waiters();
        }
        if !events.is_empty() {
            self.cluster.refresh_metrics();
        }
    }

    fn announce(&self, event: &Event) {
        let cluster = &*self.cluster.name;
        match event {
            Event::Elected { address, timeline, without, failover } => {
                let without = without.map(tracing::field::debug);
                tracing::info!(cluster, node = %address, timeline, without, failover, "primary elected");
                if *failover {
                    self.cluster.metrics.failovers.inc();
                }
            }
            // As every proxy begins.
            Event::NoPrimary { lost: None, why: topology::election::Nobody::NotAllProbed } => {
                tracing::debug!(cluster, "{event}");
            }
            Event::NoPrimary { lost, why } => {
                let lost = lost.as_deref().map(tracing::field::display);
                tracing::warn!(cluster, lost, "no primary: {why}");
            }
            Event::Changed { state: topology::State::Fenced(_), .. } => tracing::warn!(cluster, "{event}"),
            Event::Changed { .. } | Event::Restarted { .. } => tracing::info!(cluster, "{event}"),
            Event::PositionFell { address, from, to } => {
                tracing::warn!(cluster, node = %address, %from, %to, "the primary lost acknowledged positions in a crash");
            }
        }
    }
}

/// Probes one node for as long as the cluster has it.
async fn watch<P: Protocol>(monitor: Arc<Monitor<P>>, address: Arc<str>) {
    let mut door = Door::closed(monitor.cluster.monitor_identity.load_full());
    loop {
        let hurry = monitor.hurry.notified();
        let due = {
            let board = monitor.board.lock();
            let Some(id) = board.id_of(&address) else { return };
            board.probe_due(id, Instant::now(), monitor.cluster.topology.is_wanted())
        };
        if due > Instant::now() {
            tokio::select! {
                () = hurry => continue,
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
        probe(&monitor, &address, &mut door).await;
    }
}

/// The monitor's own way into a server.
struct Door<P: Protocol> {
    identity: Arc<Identity<P>>,
    connection: Option<P::Backend>,
    /// What the bound of the node's connections was reckoned from: the server that said how many it
    /// has, and `pool.node_connections`.
    bound: Option<(Incarnation, Option<usize>)>,
    logins: Logins<P::Backend>,
    /// What was logged of failures since the last answer; [`MAX_SAID`] at most.
    said: Vec<Arc<str>>,
}

impl<P: Protocol> Door<P> {
    fn closed(identity: Arc<Identity<P>>) -> Self {
        Self { identity, connection: None, bound: None, logins: Logins::new(), said: Vec::new() }
    }

    /// The kept connection, or a new one.
    async fn open(
        &mut self,
        cluster: &Arc<Cluster<P>>,
        address: &Arc<str>,
        timeout: Duration,
    ) -> Result<&mut P::Backend, Missed> {
        let identity = cluster.monitor_identity.load_full();
        let mut before = None;
        if !Arc::ptr_eq(&self.identity, &identity) {
            before = self.connection.take();
            (self.identity, self.logins) = (identity, Logins::new());
        }
        let backend = match self.connection.take() {
            Some(kept) => kept,
            None => match (self.log_in(cluster, address, timeout).await, before) {
                (Ok(opened), _) => opened,
                (Err(missed), None) => return Err(missed),
                // A slip in the file is no reason to lose sight of a server.
                (Err(missed), Some(before)) => {
                    let why = missed.said();
                    tracing::warn!(cluster = %cluster.name, node = %address, %why,
                        "the monitor cannot log in anew and keeps its connection of before");
                    self.logins = Logins::new();
                    before
                }
            },
        };
        Ok(self.connection.insert(backend))
    }

    async fn log_in(
        &mut self,
        cluster: &Arc<Cluster<P>>,
        address: &Arc<str>,
        timeout: Duration,
    ) -> Result<P::Backend, Missed> {
        let login = login(cluster, address, &self.identity);
        let opened = self.logins.wait(login, Instant::now(), timeout * logins::PATIENCE);
        tokio::time::timeout(timeout, opened).await.map_err(|_| ProbeFault::TimedOut)?.map_err(Missed::from)
    }

    /// Whether `why` was not logged since the last answer.
    fn is_new(&mut self, why: &Arc<str>) -> bool {
        let new = !self.said.contains(why) && self.said.len() < MAX_SAID;
        if new {
            self.said.push(why.clone());
        }
        new
    }
}

fn login<P: Protocol>(
    cluster: &Arc<Cluster<P>>,
    address: &Arc<str>,
    identity: &Arc<Identity<P>>,
) -> Login<P::Backend> {
    let (link, address, identity) = (cluster.link.load_full(), address.clone(), identity.clone());
    Box::pin(async move { P::Backend::connect(&address, &link, &identity, Role::Unknown).await })
}

/// One probe, on a connection that is kept for the next. `monitor.timeout` bounds the login, if
/// there has to be one, and the question, each.
async fn probe<P: Protocol>(monitor: &Monitor<P>, address: &Arc<str>, door: &mut Door<P>) {
    let cluster = &monitor.cluster;
    let timeout = cluster.config.load().monitor.timeout;
    let number = cluster.topology.probes.next();
    let mut sent = Instant::now();
    let outcome = match door.open(cluster, address, timeout).await {
        Ok(backend) => {
            // What counts is when the question is asked, not when the connection was begun.
            sent = Instant::now();
            let asked = tokio::time::timeout(timeout, backend.probe()).await;
            asked.unwrap_or(Err(ProbeFault::TimedOut.into()))
        }
        Err(missed) => Err(missed),
    };
    match &outcome {
        Ok(facts) => {
            door.said.clear();
            let configured = cluster.config.load().pool.node_connections;
            let bound = Some((facts.incarnation.clone(), configured));
            if door.bound != bound {
                door.bound = bound;
                set_node_limit(cluster, address, configured, facts.connections);
            }
        }
        Err(missed) => {
            let why = missed.said();
            if door.is_new(&why) {
                tracing::warn!(cluster = %cluster.name, node = %address, %why, "a probe failed");
            }
            cluster.metrics.probe_failed(address);
            door.connection = None;
        }
    }
    let detail = outcome.as_ref().err().and_then(|missed| missed.detail.clone());
    let outcome = outcome.map_err(|missed| missed.fault);
    monitor.observe(address, Probe { number, sent, answered: Instant::now(), outcome, detail });
}

/// How many of the connections that a server has for ordinary users all pools together may take.
pub fn share_of_connections(available: u32) -> usize {
    (f64::from(available) * SHARE_OF_CONNECTIONS) as usize
}

fn set_node_limit<P: Protocol>(
    cluster: &Cluster<P>,
    address: &Arc<str>,
    configured: Option<usize>,
    available: Option<u32>,
) {
    let limit = configured.or_else(|| available.map(share_of_connections));
    if let Some(limit) = limit {
        cluster.shares.share(address).set_limit(limit);
    }
}

/// Closes idle connections and those to nodes that were taken away, keeps the wanted ones open, and
/// brings the gauges up to date.
async fn housekeeping<P: Protocol>(cluster: Arc<Cluster<P>>) {
    let mut tick = tokio::time::interval(HOUSEKEEPING);
    loop {
        tick.tick().await;
        let snapshot = cluster.topology.load_full();
        // Nobody knows a node while Patroni is asked for the first time, and then none has gone.
        let gone = |address: &str| !snapshot.nodes.is_empty() && snapshot.find(address).is_none();
        cluster.shares.forget(gone);
        for (_, pools) in cluster.all_pools() {
            pools.replace(|address, _| gone(address));
            for (_, pool) in pools.all() {
                pool.reap(Instant::now());
                pool.warm().await;
            }
        }
        // Those whose catalog was being read when their login came to nothing.
        cluster.forget_unentered();
        cluster.refresh_metrics();
    }
}
