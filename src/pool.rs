//! Server connections for reuse: one pool per node, user and database.
//!
//! deadpool bounds and queues; which connection is used, and what becomes of one whose session
//! left it in a state, is decided here.

mod held;
mod idle;
mod opening;
mod pools;
mod refusals;
mod share;

use std::{
    collections::VecDeque,
    fmt,
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
use tokio::sync::Notify;

use self::idle::{Idle, Pooled};
pub use self::{
    held::Held,
    pools::{NodeKey, Pools, Shares},
    refusals::Pause,
    share::NodeShare,
};
use crate::{
    protocol::{ConnectFault, Identity, Protocol},
    session::cancel::{Call, Entry},
    standing::Standing,
    topology::Role,
};

/// How long a connection serves the waiters of its own pool alone, where another pool of the node waits
/// for a share of the connections: long enough that opening another one is cheap beside it.
const TURN: Duration = Duration::from_secs(1);

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
    /// The node refused others just now and was not asked.
    Paused(Pause),
    /// The pool was replaced or is closing: look again.
    Closed,
}

impl fmt::Display for CheckoutFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str("no connection became free"),
            Self::Connect(fault) => fault.fmt(f),
            Self::Paused(_) => f.write_str("it refused connections just now"),
            Self::Closed => f.write_str("its pool was closed"),
        }
    }
}

impl From<ConnectFault> for CheckoutFault {
    fn from(fault: ConnectFault) -> Self {
        Self::Connect(fault)
    }
}

impl CheckoutFault {
    /// The node has no connection left to give.
    fn is_full(&self) -> bool {
        matches!(self, Self::Connect(ConnectFault::TooMany) | Self::Paused(Pause { full: true, .. }))
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
    idle: Idle<P>,
    identity: Arc<ArcSwap<Identity<P>>>,
    link: Arc<ArcSwap<P::Link>>,
    role: Role,
    siblings: Siblings<P>,
    /// Who waits for a connection, be it that one is being opened.
    waiters: AtomicUsize,
    /// Those among them who wait for somebody else to give one back.
    wanting: AtomicUsize,
    /// Those among them who wait for a share of the node's connections.
    starving: AtomicUsize,
    /// Told of connections that come back while somebody wants one.
    returned: Notify,
    /// Sessions that keep a connection only until somebody waits for one.
    lenders: Mutex<VecDeque<Arc<Entry>>>,
    limits: Limits,
    closed: AtomicBool,
    /// Whether the node may still answer on the connections of this pool.
    pub standing: Standing,
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
        Self {
            share,
            places,
            idle: Idle::for_workers(shared.workers),
            identity,
            link,
            role,
            siblings,
            waiters: AtomicUsize::new(0),
            wanting: AtomicUsize::new(0),
            starving: AtomicUsize::new(0),
            returned: Notify::new(),
            lenders: Mutex::default(),
            limits,
            closed: AtomicBool::new(false),
            standing: Standing::default(),
        }
    }

    /// An idle connection that nobody has to be asked for.
    fn take_at_once(&self, now: Instant) -> Option<Box<Pooled<P>>> {
        self.idle.take(now, |pooled| pooled.place.is_some())
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
            let mut pooled = loop {
                if let Some(pooled) = self.idle.take(Instant::now(), |_| true) {
                    break pooled;
                }
                match self.open().await {
                    Ok(pooled) => break pooled,
                    Err(fault) if fault.is_full() && self.role == Role::Primary => {
                        if let Some(pooled) = self.sit_out().await {
                            break pooled;
                        }
                    }
                    Err(fault) => return Err(fault),
                }
            };
            pooled.place = Some(place);
            Ok(pooled)
        };
        tokio::time::timeout_at(deadline.into(), attempt).await.unwrap_or(Err(CheckoutFault::TimedOut))
    }

    /// Waits until a server that is full may be asked again, or until somebody gives a connection back:
    /// where there is just one node to go to, that is better than an error.
    async fn sit_out(&self) -> Option<Box<Pooled<P>>> {
        let _wanting = Count::up(&self.wanting);
        let returned = self.returned.notified();
        if let Some(pooled) = self.idle.take(Instant::now(), |_| true) {
            return Some(pooled);
        }
        self.ask_back();
        let pause = self.share.refusals.pause(Instant::now()).map_or(Duration::ZERO, |pause| pause.left);
        let _ = tokio::time::timeout(pause, returned).await;
        None
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

    pub fn role(&self) -> Role {
        self.role
    }

    fn put_back(&self, mut pooled: Box<Pooled<P>>, now: Instant) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        pooled.idle_since = now;
        if self.is_waited_for() {
            let others = self.share.is_starved_beyond(self.starving.load(Ordering::SeqCst));
            if others && now.duration_since(pooled.opened) >= TURN {
                // Closed, and so its share is another pool's: those who wait here wait for the next.
                return;
            }
            let place = pooled.place.take();
            self.shelve(pooled);
            self.hand_on(place);
            return;
        }
        self.shelve(pooled);
        // Who began to wait meanwhile may have looked before it lay there.
        if self.is_waited_for() {
            self.hand_on(self.idle.take_place());
        } else if self.share.is_starved() {
            self.idle.close_one();
        }
    }

    fn shelve(&self, pooled: Box<Pooled<P>>) {
        self.idle.put(pooled);
        // Closed meanwhile, it may lie on a shelf that was cleared before.
        if self.closed.load(Ordering::Acquire) {
            self.idle.close_all();
        }
    }

    /// A connection lies on a shelf for whoever waits: its place is deadpool's to give.
    fn hand_on(&self, place: Option<Object<Places>>) {
        drop(place);
        self.returned.notify_waiters();
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
        self.wanting.load(Ordering::Relaxed) > 0 || self.share.is_exhausted()
    }

    /// Closes idle connections at the end of their lifetime, and those that were idle for too long,
    /// but for `min_idle`.
    pub fn reap(&self, now: Instant) {
        self.idle.close_expired(now);
        if let Some(timeout) = self.limits.idle_timeout {
            self.idle.close_old(now, timeout, self.limits.min_idle);
        }
    }

    /// Opens connections up to `min_idle`, as far as the node has some to spare: what is kept for later
    /// is worth no other pool's connection, and no wait.
    pub async fn warm(&self) {
        let wanted = self.limits.min_idle.min(self.limits.size);
        while self.status().total() < wanted && !self.share.is_starved() {
            let Some(share) = self.share.try_permit() else { return };
            match self.open_with(share).await {
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
        self.idle.ages(now)
    }

    pub fn status(&self) -> Status {
        let places = self.places.status();
        let waiters = self.waiters.load(Ordering::Relaxed);
        let (idle, kept) = self.idle.count();
        // What is taken or put back meanwhile may be counted twice.
        let in_use = (places.size - places.available).saturating_sub(kept);
        Status { idle, in_use, waiters }
    }

    /// Closes every idle connection; those in use are closed when they come back.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.places.close();
        self.idle.close_all();
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
