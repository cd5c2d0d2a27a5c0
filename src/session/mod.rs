//! One client's life: from its login to its last statement.

mod acquire;
mod calls;
pub mod cancel;
mod checkout;
mod consistency;
mod definitions;
mod execute;
mod hold;
mod last;
mod outcome;
mod own;
mod recover;
mod soft;
pub mod state;

use std::{
    future::{Future, poll_fn},
    io,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Cache};
use rand::{SeedableRng, rngs::SmallRng};

use self::{
    cancel::{Activity, Call, Registered},
    own::LastRoute,
    state::{Own, State, Step},
};
pub use self::{
    consistency::check_token,
    own::{Overrides, OwnSettings},
};
use crate::{
    cluster::{Cluster, Database},
    config,
    floors::{self, SharedFloors},
    metrics::NodeMetrics,
    pool::{Fate, Held, NodePool, Pools},
    protocol::{
        Answer, Backend, Fault, Frontend, Identity, Protocol, Refused, Request, Transaction, Welcomed,
    },
    refusal::{Refusal, RefusalKind},
    route::Floor,
    runtime,
    split::{ADVICE, Tally},
    sql::PinReason,
    topology::{Role, Snapshot},
};

/// A client that is in.
pub struct Session<P: Protocol> {
    frontend: P::Frontend,
    cluster: Arc<Cluster<P>>,
    /// The cluster's, kept at hand: no statement waits for a reload.
    config: Cache<Arc<ArcSwap<config::Cluster>>, Arc<config::Cluster>>,
    pools: Arc<Pools<P>>,
    database: Arc<Database>,
    registered: Registered,
    state: State,
    /// The server connection this session keeps: an open transaction's, or a pinned one.
    kept: Option<Held<P>>,
    /// The connection in which the last statement left what the next one may ask for.
    aside: Option<Held<P>>,
    last: last::Last,
    /// Pool and counters of the nodes used so far.
    nodes: Vec<Known<P>>,
    route: LastRoute,
    previous: soft::Previous,
    random: SmallRng,
    /// Since when its client has had nothing running, while there is a limit to that.
    quiet_since: Option<Instant>,
    /// What the server of a lost transaction said when it ended.
    last_words: Option<Refused>,
    /// What the last monotonic read may have seen, until it is sampled.
    seen: Option<consistency::Seen>,
    /// The causal token that the client gave.
    adopted: Floor,
    /// A read was routed since the last write.
    reads: bool,
    /// When the statement at hand has taken too long, its waiting included.
    deadline: Option<Instant>,
    /// What `user` reads must not be behind of.
    user_floors: Arc<SharedFloors>,
    tally: Tally,
    changed: definitions::Changed,
}

/// A node as a session knows it: what it would otherwise look up for every statement.
struct Known<P: Protocol> {
    address: Arc<str>,
    role: Role,
    pool: Arc<NodePool<P>>,
    meter: Arc<NodeMetrics>,
}

/// What comes after a session has run.
pub enum After<P: Protocol> {
    Over,
    /// Its client has become another user.
    Renewed(Identity<P>),
    /// It goes on on the worker of this number, which adopts it.
    Moves(usize),
}

/// A client that leaves its session to go on as another user.
pub struct Client<P: Protocol> {
    pub frontend: P::Frontend,
    pub peer: String,
    /// What it must not read behind, whoever it is.
    pub floor: Floor,
}

/// How a session came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client left.
    Left,
    /// Its connection broke, or it broke the protocol.
    Broken,
    /// The proxy is stopping, or somebody ended it.
    Ended,
}

/// What the session waits for between requests.
enum Event {
    /// One has come, or its client has left.
    Request(Result<bool, Fault>),
    /// Somebody wants something of it.
    Called,
    /// The kept server connection has something to say.
    Server,
    /// The client took too long.
    Idle(RefusalKind, &'static str),
}

impl<P: Protocol> Session<P> {
    pub fn new(
        frontend: P::Frontend,
        cluster: Arc<Cluster<P>>,
        identity: &Identity<P>,
        registered: Registered,
    ) -> Self {
        let pools = cluster.pools(identity);
        let database = cluster.database(&identity.database);
        let mut state = State::of(P::DIALECT);
        if cluster.config.load().pool.mode == crate::config::PoolMode::Session {
            state.pin(PinReason::SessionMode);
        }
        Self {
            frontend,
            pools,
            database,
            registered,
            state,
            kept: None,
            aside: None,
            last: last::Last::default(),
            nodes: Vec::new(),
            route: LastRoute::default(),
            previous: soft::Previous::default(),
            random: SmallRng::from_os_rng(),
            quiet_since: None,
            last_words: None,
            seen: None,
            adopted: Floor::None,
            reads: true,
            deadline: None,
            user_floors: cluster.user_floors(identity),
            tally: Tally::default(),
            changed: definitions::Changed::default(),
            config: Cache::new(cluster.config.clone()),
            cluster,
        }
    }

    /// Adopts what the login found, and what the client asked of the proxy; `adopted` is the position
    /// that its reads must not be behind of.
    pub fn start(&mut self, welcomed: &Welcomed, own: OwnSettings, adopted: Floor) {
        self.adopted = adopted;
        self.state.defaults = welcomed.defaults;
        self.state.startup_defaults = welcomed.defaults;
        self.state.implicit = welcomed.implicit_transactions;
        self.state.begins = welcomed.begins;
        self.state.startup_implicit = welcomed.implicit_transactions;
        self.state.own = Overrides::at_startup(own);
        self.state.learn_part(&welcomed.first, false);
    }

    /// Serves the client until it leaves or has to, becomes another user, or goes on elsewhere.
    pub async fn run(&mut self) -> After<P> {
        loop {
            let request = match self.wait().await {
                Event::Request(Ok(true)) => match self.frontend.take().await {
                    Ok(Some(request)) => request,
                    Ok(None) => {
                        self.quiet_since = None;
                        continue;
                    }
                    Err(fault) => return Box::pin(self.broken(fault)).await,
                },
                Event::Request(Ok(false)) => return self.leave(End::Left),
                Event::Request(Err(fault)) => return Box::pin(self.broken(fault)).await,
                Event::Called => match Box::pin(self.heed()).await {
                    Some(end) => return self.leave(end),
                    None => continue,
                },
                Event::Server => match Box::pin(self.hear_server()).await {
                    Some(end) => return self.leave(end),
                    None => continue,
                },
                Event::Idle(kind, why) => {
                    let refusal = Refusal::fatal(kind, why);
                    Box::pin(self.dismiss(&refusal)).await;
                    return self.leave(End::Ended);
                }
            };
            if let Some(identity) = self.frontend.new_identity() {
                return After::Renewed(identity);
            }
            if let Err(end) = self.serve(&request).await {
                return self.leave(end);
            }
            if let Some(to) = runtime::departure(|| self.is_movable()) {
                return After::Moves(to);
            }
        }
    }

    /// Whether it can go on on another worker, with all that it holds.
    fn is_movable(&self) -> bool {
        self.is_between_transactions() && self.frontend.is_movable()
    }

    /// Goes on on the calling worker.
    ///
    /// # Errors
    /// When a connection cannot be registered there: the session is over.
    pub fn adopt(&mut self) -> io::Result<()> {
        for held in [&mut self.kept, &mut self.aside].into_iter().flatten() {
            held.backend().adopt()?;
        }
        self.frontend.adopt()
    }

    /// Waits for the client, and for whoever else may want something.
    async fn wait(&mut self) -> Event {
        let timeout = self.idle_timeout();
        let idle = async {
            match timeout {
                Some((after, kind, why)) => {
                    tokio::time::sleep(after).await;
                    (kind, why)
                }
                None => std::future::pending().await,
            }
        };
        let entry = &self.registered.entry;
        let keeps = self.kept.is_some() || self.aside.is_some();
        let calls: &[Call] = match (self.is_between_transactions(), keeps) {
            (true, false) => &[Call::Drain, Call::Kill, Call::Limits],
            (true, true) => &[Call::Drain, Call::Kill, Call::Limits, Call::Look, Call::Yield],
            (false, _) => &[Call::Kill, Call::Limits, Call::Look, Call::Yield],
        };
        let (mut next, mut idle) = (pin!(self.frontend.arrives()), pin!(idle));
        let stirred = async {
            match &mut self.kept {
                Some(held) => held.backend().stirred().await,
                None => std::future::pending().await,
            }
        };
        let mut stirred = pin!(stirred);
        poll_fn(|context| {
            // Whoever was killed runs nothing more, however quickly it asks.
            if entry.is_called(Call::Kill) {
                return Poll::Ready(Event::Called);
            }
            if let Poll::Ready(request) = next.as_mut().poll(context) {
                return Poll::Ready(Event::Request(request));
            }
            if entry.poll_called(context, calls).is_ready() {
                return Poll::Ready(Event::Called);
            }
            if stirred.as_mut().poll(context).is_ready() {
                return Poll::Ready(Event::Server);
            }
            idle.as_mut().poll(context).map(|(kind, why)| Event::Idle(kind, why))
        })
        .await
    }

    fn is_between_transactions(&self) -> bool {
        self.state.transaction == Transaction::Idle && !self.state.is_holding()
    }

    /// Whether a transaction is open on a server: it is let through where new statements wait.
    fn holds_transaction(&self) -> bool {
        self.kept.is_some() && self.state.transaction != Transaction::Idle
    }

    fn idle_timeout(&mut self) -> Option<(Duration, RefusalKind, &'static str)> {
        let between = self.is_between_transactions();
        let limits = &self.config.load().limits;
        let (after, kind, why) = if between {
            let why = "terminating connection due to idle-session timeout";
            (limits.idle_client_timeout?, RefusalKind::IdleTimeout, why)
        } else {
            let why = "terminating connection due to idle-in-transaction timeout";
            (limits.idle_transaction_timeout?, RefusalKind::IdleInTransaction, why)
        };
        // What others want of the session interrupts the wait, and is no word of the client's.
        let since = *self.quiet_since.get_or_insert_with(Instant::now);
        Some((after.saturating_sub(since.elapsed()), kind, why))
    }

    /// Says why the connection ends.
    pub(super) async fn dismiss(&mut self, refusal: &Refusal) {
        self.cluster.metrics.error(refusal.kind.label());
        // Who does not read is not waited for.
        let _ = tokio::time::timeout(LAST_WORDS, self.frontend.farewell(refusal)).await;
    }

    async fn broken(&mut self, fault: Fault) -> After<P> {
        if let Fault::Protocol(refusal) = fault {
            tracing::info!(peer = %self.registered.entry.peer, %refusal.message, "client broke the protocol");
            self.dismiss(&refusal).await;
        }
        self.leave(End::Broken)
    }

    /// The client, to go on as somebody else with nothing of what this session was on its servers.
    pub fn into_client(mut self) -> Client<P> {
        let snapshot = self.snapshot();
        self.leave_seen(&snapshot);
        self.release_aside();
        if let Some(held) = self.kept.take() {
            self.lose_previous(&held);
            held.release(Fate::Reset, Instant::now());
        }
        let peer = self.registered.entry.peer.clone();
        let floor = floors::higher(self.state.floor, self.adopted, &snapshot);
        Client { frontend: self.frontend, peer, floor }
    }

    /// Reads behind nothing that its client has seen or written as somebody else.
    pub fn goes_on_from(&mut self, floor: Floor) {
        self.state.floor = floor;
    }

    /// Gives back what the session holds.
    fn leave(&mut self, end: End) -> After<P> {
        tracing::trace!(peer = %self.registered.entry.peer, ?end, "a session ends");
        self.tell_of_reads();
        self.publish_changed(None);
        self.release_aside();
        if let Some(mut held) = self.kept.take() {
            self.lose_previous(&held);
            // An open transaction is rolled back and the state forgotten, by a task that keeps the
            // connection's place; answers under way cannot be told apart: closed.
            let fate = match self.state.transaction {
                Transaction::Unit => Fate::Close,
                Transaction::Idle if held.backend().is_clean() && held.backend().is_fresh() => Fate::Reuse,
                _ => Fate::Reset,
            };
            held.release(fate, Instant::now());
        }
        After::Over
    }

    /// Answers one request.
    async fn serve(&mut self, request: &Request<P::Wire>) -> Result<(), End> {
        let began = Instant::now();
        self.quiet_since = None;
        // A cancel request that came between two statements was for none of them.
        self.registered.entry.take(Call::Cancel);
        if self.state.is_holding() || self.state.implicit {
            self.state.transaction_reads = self.cluster.config.load().routing.transaction_reads;
        }
        if request.intent.outdoes && self.state.is_outdone_by(&request.intent) {
            Box::pin(self.leave_outdone()).await;
        }
        let step = self.state.plan(&request.intent, self.frontend.text(request));
        if !matches!(step, Step::Run(_)) {
            if self.aside_owes() {
                Box::pin(self.give_up_aside()).await;
            }
            self.forget_last();
        }
        let result = match step {
            Step::Run(run) => match self.lost_for(&request.intent) {
                None => {
                    self.registered.entry.set_activity(Activity::Active);
                    let result = self.execute(request, run, began).await;
                    let in_transaction = self.holds_transaction();
                    let activity = if in_transaction { Activity::InTransaction } else { Activity::Idle };
                    self.registered.entry.set_activity(activity);
                    result
                }
                Some(refusal) => Box::pin(self.refuse(request, refusal)).await,
            },
            // Boxed: the future of every statement stays small.
            Step::Answer(own) => Box::pin(self.answer(request, own)).await,
        };
        match result {
            Ok(()) => Ok(()),
            Err(Fault::Protocol(refusal)) => {
                Box::pin(self.dismiss(&refusal)).await;
                Err(End::Broken)
            }
            Err(Fault::Client(_)) => Err(End::Broken),
            Err(Fault::Server { .. } | Fault::Refused(_)) => Err(End::Ended),
        }
    }

    /// Answers what no server has to see.
    async fn answer(&mut self, request: &Request<P::Wire>, own: Own) -> Result<(), Fault> {
        match own {
            Own::Done => self.frontend.answer(request, Answer::Done, self.state.transaction).await,
            Own::Proxy(command) => self.obey(request, command).await,
            Own::RolledBack => {
                self.frontend.answer(request, Answer::RolledBack, self.state.transaction).await
            }
            Own::Lost => match self.last_words.take() {
                Some(words) => self.frontend.deliver(request, words, self.state.transaction).await,
                None => self.refuse(request, lost_transaction()).await,
            },
            Own::Aborted => self.refuse(request, aborted_transaction()).await,
            Own::Among(what) => {
                let text = format!("{what} has to be sent by itself: no server could answer it");
                self.refuse(request, Refusal::new(RefusalKind::Unsupported, text)).await
            }
            Own::Kill { whom, ending } => self.kill(request, whom, ending).await,
        }
    }

    /// Counts a read for the advice to users whose reads nothing splits.
    fn count_read(&mut self, in_transaction: bool) {
        if self.tally.count(in_transaction) {
            self.tell_of_reads();
        }
    }

    fn tell_of_reads(&mut self) {
        let user = &self.registered.entry.user;
        if self.cluster.split.add(user, &mut self.tally) {
            tracing::warn!(
                cluster = %self.cluster.name,
                %user,
                "most reads of this user run on the primary because they stand in transactions that may write; {ADVICE}"
            );
        }
    }

    /// A node's pool and counters.
    fn known(&mut self, address: &Arc<str>, role: Role) -> &Known<P> {
        let same = |known: &Known<P>| Arc::ptr_eq(&known.address, address) && known.role == role;
        let at = match self.nodes.iter().position(same) {
            Some(at) if !self.nodes[at].pool.is_closed() => at,
            stale => {
                if let Some(at) = stale {
                    self.nodes.swap_remove(at);
                } else if self.nodes.len() >= MAX_KNOWN {
                    self.nodes.clear();
                }
                self.nodes.push(Known {
                    address: address.clone(),
                    role,
                    pool: self.pools.node(address, role),
                    meter: self.cluster.metrics.node(address),
                });
                self.nodes.len() - 1
            }
        };
        &self.nodes[at]
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.cluster.topology.load_full()
    }
}

fn lost_transaction() -> Refusal {
    Refusal::new(
        RefusalKind::ServerLost,
        "the server of this transaction was lost, and the transaction with it",
    )
}

fn aborted_transaction() -> Refusal {
    Refusal::new(
        RefusalKind::FailedTransaction,
        "current transaction is aborted, commands ignored until end of transaction block",
    )
}

/// How long a client has for hearing why its session ends.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Nodes that a session remembers; reloads and failovers bring new ones.
const MAX_KNOWN: usize = 16;
