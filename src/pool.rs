//! Server connections for reuse: one pool per node, user and database.
//!
//! deadpool counts and queues; what is reused, and what becomes of a connection whose session
//! left it in a state, is decided here.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult, Timeouts};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    protocol::{Backend, ConnectFault, Identity, Protocol},
    session::cancel::CancelTarget,
    topology::{Load, NodeId, Role},
};

/// Shares of its lifetime by which a connection's end is spread, so that connections opened
/// together do not end together.
const LIFETIME_JITTER: f64 = 0.2;

/// How long a connection may take to forget a session's state before it is closed instead.
const RESET_TIMEOUT: Duration = Duration::from_secs(5);

/// What bounds pools; from `[cluster.pool]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub size: usize,
    pub min_idle: usize,
    pub checkout_timeout: Duration,
    pub idle_timeout: Option<Duration>,
    pub max_lifetime: Option<Duration>,
}

/// What becomes of a connection that a session gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Serves the next session as it is.
    Reuse,
    /// Forgets what the session left, then serves the next.
    Reset,
    /// In an unknown state: closed.
    Close,
}

/// Why no connection was to be had.
#[derive(Debug)]
pub enum CheckoutFault {
    /// All were busy for `checkout_timeout`.
    TimedOut,
    Connect(ConnectFault),
    /// The pool was replaced or is closing: look again.
    Closed,
}

/// All connections of one node, whoever's: bounded together.
pub struct NodeShare {
    pub address: Arc<str>,
    permits: Arc<Semaphore>,
    /// Permits that exist, taken ones included.
    limit: AtomicUsize,
    limit_known: AtomicBool,
}

/// Before a server has said how many connections it has.
const UNKNOWN_LIMIT: usize = 100;

impl NodeShare {
    pub fn new(address: Arc<str>) -> Self {
        Self {
            address,
            permits: Arc::new(Semaphore::new(UNKNOWN_LIMIT)),
            limit: AtomicUsize::new(UNKNOWN_LIMIT),
            limit_known: AtomicBool::new(false),
        }
    }

    /// Sets how many connections there may be. Connections beyond a lowered limit are not closed,
    /// but not replaced either.
    pub fn set_limit(&self, limit: usize) {
        let limit = limit.max(1);
        self.limit_known.store(true, Ordering::Relaxed);
        let before = self.limit.swap(limit, Ordering::Relaxed);
        if limit > before {
            self.permits.add_permits(limit - before);
        } else {
            self.permits.forget_permits(before - limit);
        }
    }

    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }
}

/// One node's connections of one user and database.
pub struct NodePool<P: Protocol> {
    pub share: Arc<NodeShare>,
    pool: managed::Pool<Manager<P>>,
    waiters: AtomicUsize,
    limits: Limits,
}

/// How a pool makes connections.
pub struct Manager<P: Protocol> {
    share: Arc<NodeShare>,
    identity: Arc<ArcSwap<Identity<P>>>,
    link: Arc<ArcSwap<P::Link>>,
    role: Role,
    max_lifetime: Option<Duration>,
    siblings: Siblings<P>,
}

/// The other pools of the same node, which may have to give up an idle connection.
type Siblings<P> = Arc<Mutex<Vec<std::sync::Weak<NodePool<P>>>>>;

/// A pooled connection and its place among the node's.
pub struct Pooled<P: Protocol> {
    backend: P::Backend,
    /// What a cancel request needs to know.
    target: Arc<CancelTarget>,
    expires: Option<Instant>,
    _place: OwnedSemaphorePermit,
}

impl<P: Protocol> managed::Manager for Manager<P> {
    type Type = Box<Pooled<P>>;
    type Error = ConnectFault;

    async fn create(&self) -> Result<Self::Type, ConnectFault> {
        let place = self.place().await?;
        let identity = self.identity.load_full();
        let link = self.link.load_full();
        let backend = P::Backend::connect(&self.share.address, &link, &identity, self.role).await?;
        let expires = self
            .max_lifetime
            .map(|life| Instant::now() + life.mul_f64(1.0 - LIFETIME_JITTER * rand::random::<f64>()));
        let target =
            Arc::new(CancelTarget { address: self.share.address.clone(), key: backend.cancel_key() });
        Ok(Box::new(Pooled { backend, target, expires, _place: place }))
    }

    /// A look at flags: whatever needs a round trip was done when the connection came back.
    async fn recycle(&self, pooled: &mut Self::Type, _: &Metrics) -> RecycleResult<ConnectFault> {
        if pooled.expires.is_some_and(|expires| Instant::now() >= expires) {
            return Err(RecycleError::message("old"));
        }
        if !pooled.backend.is_fresh() {
            return Err(RecycleError::message("stale"));
        }
        Ok(())
    }
}

impl<P: Protocol> Manager<P> {
    /// A place among the node's connections: a free one, or that of another pool's idle one.
    async fn place(&self) -> Result<OwnedSemaphorePermit, ConnectFault> {
        if let Ok(permit) = self.share.permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let siblings: Vec<_> = self.siblings.lock().iter().filter_map(std::sync::Weak::upgrade).collect();
        for sibling in siblings {
            if sibling.give_up_idle() {
                break;
            }
        }
        // Whoever gives one back first; the caller's deadline bounds the wait.
        self.share.permits.clone().acquire_owned().await.map_err(|_| ConnectFault::TooMany)
    }
}

impl<P: Protocol> NodePool<P> {
    fn new(manager: Manager<P>, limits: Limits) -> Self {
        let share = manager.share.clone();
        let pool = managed::Pool::builder(manager)
            .max_size(limits.size)
            .runtime(deadpool::Runtime::Tokio1)
            // The one used last is the one whose caches are warm, and the others may age out.
            .queue_mode(managed::QueueMode::Lifo)
            .build()
            .expect("a runtime is named, which is all that building asks for");
        Self { share, pool, waiters: AtomicUsize::new(0), limits }
    }

    /// Takes a connection, or waits for one in the order of asking.
    async fn get(&self) -> Result<Object<Manager<P>>, CheckoutFault> {
        const AT_ONCE: Timeouts = Timeouts { wait: Some(Duration::ZERO), create: None, recycle: None };
        let deadline = Instant::now() + self.limits.checkout_timeout;
        match self.bounded(&AT_ONCE, deadline).await {
            Err(CheckoutFault::TimedOut) => {}
            other => return other,
        }
        let _waiting = Count::up(&self.waiters);
        let patient = Timeouts { wait: Some(self.limits.checkout_timeout), create: None, recycle: None };
        self.bounded(&patient, deadline).await
    }

    async fn bounded(
        &self,
        timeouts: &Timeouts,
        deadline: Instant,
    ) -> Result<Object<Manager<P>>, CheckoutFault> {
        let attempt = self.pool.timeout_get(timeouts);
        match tokio::time::timeout_at(deadline.into(), attempt).await {
            Ok(result) => result.map_err(|error| match error {
                PoolError::Backend(fault) => CheckoutFault::Connect(fault),
                PoolError::Closed => CheckoutFault::Closed,
                _ => CheckoutFault::TimedOut,
            }),
            Err(_) => Err(CheckoutFault::TimedOut),
        }
    }

    /// Closes one idle connection for another pool's sake.
    fn give_up_idle(&self) -> bool {
        let mut given = false;
        self.pool.retain(|_, _| std::mem::replace(&mut given, true));
        given
    }

    /// Closes connections that were idle for too long, but for `min_idle`.
    pub fn reap(&self) {
        let Some(timeout) = self.limits.idle_timeout else { return };
        let status = self.pool.status();
        let mut spare = status.available.saturating_sub(self.limits.min_idle);
        self.pool.retain(|_, metrics| {
            let expired = spare > 0 && metrics.last_used() >= timeout;
            spare -= usize::from(expired);
            !expired
        });
    }

    /// Opens connections up to `min_idle`.
    pub async fn warm(&self) {
        let missing = self.limits.min_idle.saturating_sub(self.pool.status().size);
        let mut opened = Vec::with_capacity(missing);
        for _ in 0..missing {
            match self.get().await {
                Ok(object) => opened.push(object),
                Err(_) => return,
            }
        }
    }

    pub fn status(&self) -> Status {
        let status = self.pool.status();
        let waiters = self.waiters.load(Ordering::Relaxed);
        Status { idle: status.available, in_use: status.size - status.available, waiters }
    }

    /// Closes every idle connection; those in use are closed when they come back.
    pub fn close(&self) {
        self.pool.close();
    }
}

/// How many connections a pool has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub idle: usize,
    pub in_use: usize,
    pub waiters: usize,
}

struct Count<'a>(&'a AtomicUsize);

impl<'a> Count<'a> {
    fn up(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The pools of one user and database, on every node.
pub struct Pools<P: Protocol> {
    pub identity: Arc<ArcSwap<Identity<P>>>,
    link: Arc<ArcSwap<P::Link>>,
    /// By address and role: a replica's connections are opened otherwise than a primary's.
    nodes: ArcSwap<HashMap<(Arc<str>, Role), Arc<NodePool<P>>>>,
    shared: Arc<Shares<P>>,
}

/// What the pools of all users share.
pub struct Shares<P: Protocol> {
    limits: ArcSwap<Limits>,
    nodes: Mutex<HashMap<Arc<str>, (Arc<NodeShare>, Siblings<P>)>>,
}

impl<P: Protocol> Shares<P> {
    pub fn new(limits: Limits) -> Self {
        Self { limits: ArcSwap::from_pointee(limits), nodes: Mutex::new(HashMap::new()) }
    }

    pub fn set_limits(&self, limits: Limits) {
        self.limits.store(Arc::new(limits));
    }

    pub fn limits(&self) -> Arc<Limits> {
        self.limits.load_full()
    }

    pub fn share(&self, address: &Arc<str>) -> Arc<NodeShare> {
        self.entry(address).0
    }

    fn entry(&self, address: &Arc<str>) -> (Arc<NodeShare>, Siblings<P>) {
        self.nodes
            .lock()
            .entry(address.clone())
            .or_insert_with(|| (Arc::new(NodeShare::new(address.clone())), Siblings::default()))
            .clone()
    }
}

impl<P: Protocol> Pools<P> {
    pub fn new(identity: Identity<P>, link: Arc<ArcSwap<P::Link>>, shared: Arc<Shares<P>>) -> Self {
        Self {
            identity: Arc::new(ArcSwap::from_pointee(identity)),
            link,
            nodes: ArcSwap::from_pointee(HashMap::new()),
            shared,
        }
    }

    /// The pool of one node, made at its first use.
    pub fn node(&self, address: &Arc<str>, role: Role) -> Arc<NodePool<P>> {
        let key = (address.clone(), role);
        if let Some(pool) = self.nodes.load().get(&key) {
            return pool.clone();
        }
        let (share, siblings) = self.shared.entry(address);
        let limits = Limits::clone(&self.shared.limits());
        let manager = Manager {
            share,
            identity: self.identity.clone(),
            link: self.link.clone(),
            role,
            max_lifetime: limits.max_lifetime,
            siblings: siblings.clone(),
        };
        let made = Arc::new(NodePool::new(manager, limits));
        self.nodes.rcu(|nodes| {
            let mut nodes = HashMap::clone(nodes);
            nodes.entry(key.clone()).or_insert_with(|| made.clone());
            nodes
        });
        let kept = self.nodes.load().get(&key).cloned().unwrap_or(made);
        let mut siblings = siblings.lock();
        siblings.retain(|sibling| sibling.strong_count() > 0);
        siblings.push(Arc::downgrade(&kept));
        kept
    }

    pub fn all(&self) -> Vec<((Arc<str>, Role), Arc<NodePool<P>>)> {
        self.nodes.load().iter().map(|(key, pool)| (key.clone(), pool.clone())).collect()
    }

    /// Replaces the pools that `stale` picks: connections in use end when they come back.
    pub fn replace(&self, stale: impl Fn(&str, Role) -> bool) {
        let mut dropped = Vec::new();
        self.nodes.rcu(|nodes| {
            dropped.clear();
            let mut kept = HashMap::clone(nodes);
            kept.retain(|(address, role), pool| {
                let stale = stale(address, *role);
                if stale {
                    dropped.push(pool.clone());
                }
                !stale
            });
            kept
        });
        for pool in dropped {
            pool.close();
        }
    }

    /// Takes a connection to a node, on this worker and ready for a request.
    ///
    /// # Errors
    /// When none was to be had within `checkout_timeout`. Dropping the future gives up the place
    /// in the queue.
    pub async fn checkout(
        &self,
        address: &Arc<str>,
        id: NodeId,
        role: Role,
        load: &Arc<Load>,
    ) -> Result<Held<P>, CheckoutFault> {
        let pool = self.node(address, role);
        let mut object = pool.get().await?;
        object.backend.adopt().map_err(|error| CheckoutFault::Connect(ConnectFault::Unreachable(error)))?;
        Ok(Held {
            object: Some(object),
            node: id,
            role,
            pool,
            load: load.clone(),
            busy: false,
            cancelled: false,
        })
    }
}

/// A checked-out connection. Dropped without being released it is closed: whatever it was in the
/// middle of, nobody else gets to see it.
pub struct Held<P: Protocol> {
    object: Option<Object<Manager<P>>>,
    pub node: NodeId,
    pub role: Role,
    pub pool: Arc<NodePool<P>>,
    load: Arc<Load>,
    busy: bool,
    /// A cancel request was sent to it: it has to show that it is done with that.
    cancelled: bool,
}

impl<P: Protocol> Held<P> {
    pub fn backend(&mut self) -> &mut P::Backend {
        let object = self.object.as_mut().expect("held until released");
        &mut object.backend
    }

    pub fn address(&self) -> &Arc<str> {
        &self.pool.share.address
    }

    pub fn cancel_target(&self) -> Arc<CancelTarget> {
        self.object.as_ref().expect("held until released").target.clone()
    }

    /// A statement begins, or has ended, on it: what node selection calls in flight.
    pub fn set_busy(&mut self, busy: bool) {
        if busy != self.busy {
            self.busy = busy;
            if busy { self.load.begin() } else { self.load.end() }
        }
    }

    pub fn mark_cancelled(&mut self) {
        self.cancelled = true;
    }

    pub fn take_cancelled(&mut self) -> bool {
        std::mem::take(&mut self.cancelled)
    }

    /// Gives the connection back.
    pub fn release(mut self, fate: Fate) {
        self.set_busy(false);
        let Some(object) = self.object.take() else { return };
        match fate {
            Fate::Reuse => drop(object),
            Fate::Close => drop(Object::take(object)),
            Fate::Reset => {
                // The task holds the connection's place: nobody waits for less than it has.
                tokio::spawn(reset(object));
            }
        }
    }
}

async fn reset<P: Protocol>(mut object: Object<Manager<P>>) {
    let done = tokio::time::timeout(RESET_TIMEOUT, object.backend.reset()).await;
    match done {
        Ok(Ok(())) => drop(object),
        _ => drop(Object::take(object)),
    }
}

impl<P: Protocol> Drop for Held<P> {
    fn drop(&mut self) {
        self.set_busy(false);
        if let Some(object) = self.object.take() {
            drop(Object::take(object));
        }
    }
}
