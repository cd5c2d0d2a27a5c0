//! Server connections for reuse: one pool per node, user and database.
//!
//! deadpool bounds and queues; which connection is used, and what becomes of one whose session
//! left it in a state, is decided here.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use deadpool::managed::{self, Metrics, Object, RecycleResult};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    protocol::{Backend, ConnectFault, Identity, Protocol},
    runtime,
    session::cancel::{Call, CancelTarget, Entry},
    standing::Standing,
    topology::{Load, Node, NodeId, Role},
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
///
/// deadpool hands out places, in the order of asking and no more than `size` of them. Which
/// connection fills a place is chosen here: one that is registered with the asking worker, then
/// another worker's, then a new one. A wake-up that crosses threads, or a registration that moves,
/// costs more than all the rest of a checkout. Whoever holds a place holds one connection, and
/// takes an idle one before opening another: so there are never more connections than places.
///
/// While nobody waits, an idle connection keeps the place of whoever used it last: taking it again
/// is a matter of the worker's own shelf. Its place goes back to deadpool as soon as somebody waits.
pub struct NodePool<P: Protocol> {
    pub share: Arc<NodeShare>,
    places: managed::Pool<Places>,
    idle: Vec<Shelf<P>>,
    identity: Arc<ArcSwap<Identity<P>>>,
    link: Arc<ArcSwap<P::Link>>,
    role: Role,
    siblings: Siblings<P>,
    /// Who waits for a connection, be it that one is being opened.
    waiters: AtomicUsize,
    /// Those among them who wait for somebody else to give one back.
    wanting: AtomicUsize,
    /// Sessions that keep a connection only until somebody waits for one.
    lenders: Mutex<VecDeque<Arc<Entry>>>,
    limits: Limits,
    closed: AtomicBool,
    /// Whether the node may still answer on the connections of this pool.
    pub standing: Standing,
}

/// One worker's idle connections, the one used last on top. On a cache line of its own.
#[repr(align(128))]
struct Shelf<P: Protocol>(Mutex<Vec<Box<Pooled<P>>>>);

impl<P: Protocol> Shelf<P> {
    /// The connection used last among those that are wanted.
    fn take(&self, wanted: impl Fn(&Pooled<P>) -> bool) -> Option<Box<Pooled<P>>> {
        let mut shelf = self.0.lock();
        let at = shelf.iter().rposition(|pooled| wanted(pooled))?;
        Some(shelf.remove(at))
    }
}

/// What came to whoever waited.
enum Ready<P: Protocol> {
    Place(Object<Places>),
    /// With its place.
    Connection(Box<Pooled<P>>),
}

/// What deadpool manages: the right to one connection.
struct Places;

/// One such right.
struct Place;

impl managed::Manager for Places {
    type Type = Place;
    type Error = std::convert::Infallible;

    async fn create(&self) -> Result<Place, Self::Error> {
        Ok(Place)
    }

    async fn recycle(&self, _: &mut Place, _: &Metrics) -> RecycleResult<Self::Error> {
        Ok(())
    }
}

/// The other pools of the same node, which may have to give up an idle connection.
type Siblings<P> = Arc<Mutex<Vec<std::sync::Weak<NodePool<P>>>>>;

/// A server connection and its share of the node's.
struct Pooled<P: Protocol> {
    backend: P::Backend,
    /// What a cancel request needs to know.
    target: Arc<CancelTarget>,
    expires: Option<Instant>,
    opened: Instant,
    /// It is known to be to the server that probes measure.
    vouched: bool,
    idle_since: Instant,
    _share: OwnedSemaphorePermit,
    /// Of an idle connection that can be taken without asking deadpool. The last field: the
    /// connection goes before its place does, so that there are never more than places.
    place: Option<Object<Places>>,
}

impl<P: Protocol> Pooled<P> {
    /// A look at flags: whatever needs a round trip was done when the connection came back.
    fn is_usable(&mut self, now: Instant) -> bool {
        self.expires.is_none_or(|expires| now < expires) && self.backend.is_fresh()
    }
}

impl<P: Protocol> NodePool<P> {
    fn new(
        share: Arc<NodeShare>,
        identity: Arc<ArcSwap<Identity<P>>>,
        link: Arc<ArcSwap<P::Link>>,
        role: Role,
        siblings: Siblings<P>,
        shared: &Shares<P>,
    ) -> Self {
        let limits = Limits::clone(&shared.limits());
        let places = managed::Pool::builder(Places)
            .max_size(limits.size)
            .runtime(deadpool::Runtime::Tokio1)
            .build()
            .expect("a runtime is named, which is all that building asks for");
        // One more for the control plane's thread.
        let idle = (0..=shared.workers).map(|_| Shelf(Mutex::new(Vec::new()))).collect();
        Self {
            share,
            places,
            idle,
            identity,
            link,
            role,
            siblings,
            waiters: AtomicUsize::new(0),
            wanting: AtomicUsize::new(0),
            lenders: Mutex::default(),
            limits,
            closed: AtomicBool::new(false),
            standing: Standing::default(),
        }
    }

    /// An idle connection that nobody has to be asked for.
    fn take_at_once(&self, now: Instant) -> Option<Box<Pooled<P>>> {
        self.take_idle(now, |pooled| pooled.place.is_some())
    }

    /// Takes a connection, or waits for one in the order of asking. It holds its place.
    async fn wait(&self, now: Instant) -> Result<Box<Pooled<P>>, CheckoutFault> {
        let _waiting = Count::up(&self.waiters);
        let deadline = now + self.limits.checkout_timeout;
        let attempt = async {
            let place = match self.place().await? {
                Ready::Connection(pooled) => return Ok(pooled),
                Ready::Place(place) => place,
            };
            let mut pooled = match self.take_idle(Instant::now(), |_| true) {
                Some(pooled) => pooled,
                None => self.open().await.map_err(CheckoutFault::Connect)?,
            };
            pooled.place = Some(place);
            Ok(pooled)
        };
        tokio::time::timeout_at(deadline.into(), attempt).await.unwrap_or(Err(CheckoutFault::TimedOut))
    }

    /// The right to a connection, in the order of asking; a session that keeps one only softly is
    /// asked for it.
    async fn place(&self) -> Result<Ready<P>, CheckoutFault> {
        let mut place = std::pin::pin!(self.places.get());
        let place = match futures_util::poll!(place.as_mut()) {
            Poll::Ready(place) => place,
            Poll::Pending => {
                let _wanting = Count::up(&self.wanting);
                // From here on who puts one back gives up its place; before that it may have kept it.
                if let Some(pooled) = self.take_at_once(Instant::now()) {
                    return Ok(Ready::Connection(pooled));
                }
                self.ask_back();
                place.await
            }
        };
        place.map(Ready::Place).map_err(|_| CheckoutFault::Closed)
    }

    /// The idle connection used last that may still be used and is wanted: this worker's first.
    fn take_idle(&self, now: Instant, wanted: impl Fn(&Pooled<P>) -> bool) -> Option<Box<Pooled<P>>> {
        let count = self.idle.len();
        let here = runtime::worker().min(count - 1);
        for turn in 0..count {
            let shelf = &self.idle[(here + turn) % count];
            while let Some(mut pooled) = shelf.take(&wanted) {
                if pooled.is_usable(now) && pooled.backend.adopt().is_ok() {
                    return Some(pooled);
                }
            }
        }
        None
    }

    async fn open(&self) -> Result<Box<Pooled<P>>, ConnectFault> {
        let share = self.take_share().await?;
        let identity = self.identity.load_full();
        let link = self.link.load_full();
        let backend = P::Backend::connect(&self.share.address, &link, &identity, self.role).await?;
        let target = CancelTarget { address: self.share.address.clone(), key: backend.cancel_key() };
        let now = Instant::now();
        let expires = self
            .limits
            .max_lifetime
            .map(|life| now + life.mul_f64(1.0 - LIFETIME_JITTER * rand::random::<f64>()));
        Ok(Box::new(Pooled {
            backend,
            target: Arc::new(target),
            expires,
            opened: now,
            vouched: false,
            idle_since: now,
            _share: share,
            place: None,
        }))
    }

    /// A share of the node's connections: a free one, or that of another pool's idle connection.
    async fn take_share(&self) -> Result<OwnedSemaphorePermit, ConnectFault> {
        if let Ok(permit) = self.share.permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let siblings: Vec<_> = self.siblings.lock().iter().filter_map(std::sync::Weak::upgrade).collect();
        for sibling in siblings {
            if sibling.give_up_idle() || sibling.ask_back() {
                break;
            }
        }
        // Whoever gives one back first; the caller's deadline bounds the wait.
        self.share.permits.clone().acquire_owned().await.map_err(|_| ConnectFault::TooMany)
    }

    fn put_back(&self, mut pooled: Box<Pooled<P>>, now: Instant) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        pooled.idle_since = now;
        let here = &self.idle[runtime::worker().min(self.idle.len() - 1)];
        if self.is_waited_for() {
            let place = pooled.place.take();
            here.0.lock().push(pooled);
            drop(place);
            return;
        }
        here.0.lock().push(pooled);
        // Who began to wait meanwhile may have looked before it lay there.
        if self.is_waited_for() {
            let place = here.0.lock().iter_mut().find_map(|pooled| pooled.place.take());
            drop(place);
        }
    }

    /// Whether somebody waits for a place. Sequentially consistent, as is the waiters' counting:
    /// either they find what was put back before, or are found.
    fn is_waited_for(&self) -> bool {
        self.wanting.load(Ordering::SeqCst) > 0
    }

    /// A session keeps a connection softly: it may be asked for.
    pub fn lend(&self, entry: &Arc<Entry>) {
        self.lenders.lock().push_back(entry.clone());
    }

    /// The session has given the connection back.
    pub fn take_back(&self, entry: &Arc<Entry>) {
        let mut lenders = self.lenders.lock();
        // It may have lent a second one.
        if let Some(at) = lenders.iter().position(|other| Arc::ptr_eq(other, entry)) {
            lenders.remove(at);
        }
    }

    /// Asks the session that lent first for its connection.
    fn ask_back(&self) -> bool {
        let lender = self.lenders.lock().pop_front();
        lender.is_some_and(|lender| {
            lender.call(Call::Yield);
            true
        })
    }

    /// Somebody waits for a connection of this pool, or for a share of the node's.
    pub fn is_wanted(&self) -> bool {
        self.wanting.load(Ordering::Relaxed) > 0 || self.share.permits.available_permits() == 0
    }

    /// Closes one idle connection for another pool's sake.
    fn give_up_idle(&self) -> bool {
        self.idle.iter().any(|shelf| {
            let mut shelf = shelf.0.lock();
            !shelf.is_empty() && {
                drop(shelf.remove(0));
                true
            }
        })
    }

    fn idle_count(&self) -> usize {
        self.idle.iter().map(|shelf| shelf.0.lock().len()).sum()
    }

    /// Closes connections that were idle for too long, but for `min_idle`.
    pub fn reap(&self, now: Instant) {
        let Some(timeout) = self.limits.idle_timeout else { return };
        let mut spare = self.idle_count().saturating_sub(self.limits.min_idle);
        for shelf in &self.idle {
            let mut shelf = shelf.0.lock();
            // The ones idle for longest lie at the bottom.
            let old =
                shelf.iter().take_while(|pooled| now.duration_since(pooled.idle_since) >= timeout).count();
            let closed: Vec<_> = shelf.drain(..old.min(spare)).collect();
            drop(shelf);
            spare -= closed.len();
        }
    }

    /// Opens connections up to `min_idle`.
    pub async fn warm(&self) {
        while self.status().total() < self.limits.min_idle.min(self.limits.size) {
            match self.open().await {
                Ok(pooled) => self.put_back(pooled, Instant::now()),
                Err(_) => return,
            }
        }
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Process number and idle time of every idle connection.
    pub fn idle_connections(&self, now: Instant) -> Vec<(u32, Duration)> {
        let mut idle = Vec::new();
        for shelf in &self.idle {
            let shelf = shelf.0.lock();
            idle.extend(
                shelf.iter().map(|pooled| (pooled.target.key.process, now.duration_since(pooled.idle_since))),
            );
        }
        idle
    }

    pub fn status(&self) -> Status {
        let places = self.places.status();
        let waiters = self.waiters.load(Ordering::Relaxed);
        let (mut idle, mut kept) = (0, 0);
        for shelf in &self.idle {
            let shelf = shelf.0.lock();
            idle += shelf.len();
            kept += shelf.iter().filter(|pooled| pooled.place.is_some()).count();
        }
        // What is taken or put back meanwhile may be counted twice.
        let in_use = (places.size - places.available).saturating_sub(kept);
        Status { idle, in_use, waiters }
    }

    /// Closes every idle connection; those in use are closed when they come back.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.places.close();
        for shelf in &self.idle {
            let idle = std::mem::take(&mut *shelf.0.lock());
            drop(idle);
        }
    }
}

/// How many connections a pool has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub idle: usize,
    pub in_use: usize,
    pub waiters: usize,
}

impl Status {
    pub const fn total(self) -> usize {
        self.idle + self.in_use
    }
}

struct Count<'a>(&'a AtomicUsize);

impl<'a> Count<'a> {
    fn up(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::SeqCst);
        Self(counter)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Address and role: a replica's connections are opened otherwise than a primary's.
pub type NodeKey = (Arc<str>, Role);

/// A node's limit, and the pools that it bounds.
type SharedNode<P> = (Arc<NodeShare>, Siblings<P>);

/// The pools of one user and database, on every node.
pub struct Pools<P: Protocol> {
    pub identity: Arc<ArcSwap<Identity<P>>>,
    link: Arc<ArcSwap<P::Link>>,
    nodes: ArcSwap<HashMap<NodeKey, Arc<NodePool<P>>>>,
    shared: Arc<Shares<P>>,
}

/// What the pools of all users share.
pub struct Shares<P: Protocol> {
    limits: ArcSwap<Limits>,
    /// Threads that connections are kept apart by.
    workers: usize,
    nodes: Mutex<HashMap<Arc<str>, SharedNode<P>>>,
}

impl<P: Protocol> Shares<P> {
    pub fn new(limits: Limits, workers: usize) -> Self {
        Self { limits: ArcSwap::from_pointee(limits), workers, nodes: Mutex::new(HashMap::new()) }
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

    fn entry(&self, address: &Arc<str>) -> SharedNode<P> {
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
        let made = Arc::new(NodePool::new(
            share,
            self.identity.clone(),
            self.link.clone(),
            role,
            siblings.clone(),
            &self.shared,
        ));
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

    pub fn all(&self) -> Vec<(NodeKey, Arc<NodePool<P>>)> {
        self.nodes.load().iter().map(|(key, pool)| (key.clone(), pool.clone())).collect()
    }

    /// As [`Self::replace`], and nothing more is sent or handed on on connections in use either.
    pub fn fence(&self, fenced: impl Fn(&str, Role) -> bool) {
        for ((address, role), pool) in self.nodes.load().iter() {
            if fenced(address, *role) {
                pool.standing.fence();
            }
        }
        self.replace(fenced);
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
    pub async fn checkout(&self, node: &Node) -> Result<Held<P>, CheckoutFault> {
        let pool = self.node(&node.address, node.role);
        Held::take(pool, node, Instant::now()).await
    }
}

/// A checked-out connection. Dropped without being released it is closed: whatever it was in the
/// middle of, nobody else gets to see it.
pub struct Held<P: Protocol> {
    /// With its place.
    pooled: Option<Box<Pooled<P>>>,
    pub node: NodeId,
    pub role: Role,
    pub pool: Arc<NodePool<P>>,
    load: Arc<Load>,
    busy: bool,
    /// A cancel request was sent to it: it has to show that it is done with that.
    cancelled: bool,
}

impl<P: Protocol> Held<P> {
    /// Takes a connection from `pool`, which is that of `node`.
    ///
    /// # Errors
    /// As [`Pools::checkout`].
    pub async fn take(pool: Arc<NodePool<P>>, node: &Node, now: Instant) -> Result<Self, CheckoutFault> {
        match pool.take_at_once(now) {
            Some(pooled) => Ok(Self::new(pooled, pool, node)),
            None => Self::wait(pool, node, now).await,
        }
    }

    /// The same without waiting: `None` where a connection has to be opened or waited for.
    pub fn take_at_once(pool: &Arc<NodePool<P>>, node: &Node, now: Instant) -> Option<Self> {
        pool.take_at_once(now).map(|pooled| Self::new(pooled, pool.clone(), node))
    }

    /// The same where there is none to be had at once.
    ///
    /// # Errors
    /// As [`Pools::checkout`].
    pub async fn wait(pool: Arc<NodePool<P>>, node: &Node, now: Instant) -> Result<Self, CheckoutFault> {
        let pooled = pool.wait(now).await?;
        Ok(Self::new(pooled, pool, node))
    }

    fn new(pooled: Box<Pooled<P>>, pool: Arc<NodePool<P>>, node: &Node) -> Self {
        Self {
            pooled: Some(pooled),
            node: node.id,
            role: node.role,
            pool,
            load: node.load.clone(),
            busy: false,
            cancelled: false,
        }
    }

    fn pooled(&self) -> &Pooled<P> {
        self.pooled.as_ref().expect("held until released")
    }

    pub fn backend(&mut self) -> &mut P::Backend {
        &mut self.pooled.as_mut().expect("held until released").backend
    }

    pub fn address(&self) -> &Arc<str> {
        &self.pool.share.address
    }

    pub fn cancel_target(&self) -> Arc<CancelTarget> {
        self.pooled().target.clone()
    }

    /// Whether nobody has vouched yet that it is to the server that probes measure.
    pub fn is_new(&self) -> bool {
        !self.pooled().vouched
    }

    pub fn vouch(&mut self) {
        self.pooled.as_mut().expect("held until released").vouched = true;
    }

    pub fn opened(&self) -> Instant {
        self.pooled().opened
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
    pub fn release(mut self, fate: Fate, now: Instant) {
        self.set_busy(false);
        let Some(pooled) = self.pooled.take() else { return };
        match fate {
            Fate::Reuse => self.pool.put_back(pooled, now),
            Fate::Close => drop(pooled),
            Fate::Reset => {
                // With its place: nobody waits for less than it has.
                tokio::spawn(reset(pooled, self.pool.clone()));
            }
        }
    }
}

async fn reset<P: Protocol>(mut pooled: Box<Pooled<P>>, pool: Arc<NodePool<P>>) {
    let done = tokio::time::timeout(RESET_TIMEOUT, pooled.backend.reset()).await;
    if matches!(done, Ok(Ok(()))) {
        pool.put_back(pooled, Instant::now());
    }
}

impl<P: Protocol> Drop for Held<P> {
    fn drop(&mut self) {
        self.set_busy(false);
    }
}
