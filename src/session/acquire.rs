//! Finds a node and a connection for a request, and waits for them.

use std::{
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use rand::Rng;

use super::{
    Session,
    cancel::{Activity, Call, Entry},
    execute::Attempt,
};
use crate::{
    cluster::Cluster,
    line::{Line, Ticket},
    pool::{CheckoutFault, Fate, Held, NodePool},
    protocol::{
        Backend, ConnectFault, Frontend, MayRefuse, Protocol, Refused, RefusedCause, Request, Terms,
        Transaction,
    },
    refusal::{Refusal, RefusalKind},
    route::{self, Choice, Consistency, Floor, Nowhere, Policy, Question, Why},
    sql::{Access, Intent, hints::Target},
    standing::Watch,
    topology::{Incarnation, Node, NodeId, Role, Snapshot, State, board::Traffic},
};

/// Why a connection was not to be had.
enum TakeFault {
    NextNode,
    /// The topology has changed meanwhile.
    LookAgain,
    Refusal(Box<Refusal>),
}

/// What the kept connection is to an attempt.
enum Fit<P: Protocol> {
    Serves(Held<P>),
    /// Another one serves it; this one is kept for later.
    Stays(Held<P>),
    /// What a pipeline has read there is answered; the rest of it writes (hard case 13).
    EndsUnit(Held<P>),
    Gone,
}

/// Whether a new connection is to the server that probes measure.
enum Vouched {
    Yes,
    /// A probe will tell.
    NotYet,
    /// It could not be asked.
    Broken,
}

impl From<Refusal> for TakeFault {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(Box::new(refusal))
    }
}

impl<P: Protocol> Session<P> {
    /// The connection to run on: the kept one, or one from a pool.
    pub(super) async fn acquire(
        &mut self,
        request: &Request<P::Wire>,
        attempt: &mut Attempt,
    ) -> Result<Held<P>, Refusal> {
        attempt.kept = false;
        if self.cluster.operator.pause.is_paused() && !self.holds_transaction() {
            // Rare and long, as below.
            Box::pin(self.wait_for_resume(attempt)).await?;
        }
        if let Some(aside) = self.take_aside(&request.intent, attempt) {
            return Ok(aside);
        }
        if attempt.forget_last {
            return self.checkout(request, attempt).await;
        }
        if let Some(kept) = self.kept.take() {
            match self.fit(kept, request, attempt)? {
                Fit::Serves(held) => {
                    attempt.kept = true;
                    return Ok(held);
                }
                Fit::Stays(kept) => self.kept = Some(kept),
                Fit::EndsUnit(kept) => {
                    if let Some(failed) = Box::pin(self.end_unit(kept, &request.intent)).await? {
                        attempt.kept = true;
                        return Ok(failed);
                    }
                }
                Fit::Gone => {}
            }
        }
        self.checkout(request, attempt).await
    }

    /// Waits until the console's RESUME, as long as for a primary that is missing.
    async fn wait_for_resume(&mut self, attempt: &mut Attempt) -> Result<(), Refusal> {
        let cluster = self.cluster.clone();
        let entry = self.registered.entry.clone();
        let pause = &cluster.operator.pause;
        let hold = Hold::begin(&cluster, Nowhere::NoPrimary).map_err(|_| {
            let text = "the cluster is paused, and as many statements wait as failover.hold_limit allows";
            Refusal::new(RefusalKind::NoPrimary, text)
        })?;
        loop {
            entry.set_activity(Activity::Idle);
            let resumed = pause.resumed.notified();
            if pause.is_paused() && self.patiently(hold.until, resumed).await?.is_none() {
                let text = "the cluster was paused, and not resumed in time";
                return Err(Refusal::new(RefusalKind::NoPrimary, text));
            }
            entry.set_activity(Activity::Active);
            // PAUSE waits for whom it sees active: look again after having said so.
            if !pause.is_paused() {
                attempt.waited = attempt.began.elapsed();
                return Ok(());
            }
        }
    }

    /// Whether the kept connection serves this attempt.
    ///
    /// # Errors
    /// When what was open or kept there is lost.
    fn fit(
        &mut self,
        mut kept: Held<P>,
        request: &Request<P::Wire>,
        attempt: &Attempt,
    ) -> Result<Fit<P>, Refusal> {
        if self.is_kept_softly() && !kept.backend().is_fresh() {
            // Its server has ended it: nothing but the values of before is lost.
            self.lose_previous(&kept);
            return Ok(Fit::Gone);
        }
        let snapshot = self.cluster.topology.load();
        let draining = |node: &Node| matches!(node.state, State::Draining);
        // Draining waits for transactions, not for what a session keeps between them.
        let drained = self.state.transaction == Transaction::Idle
            && snapshot.find(kept.address()).is_some_and(draining);
        if drained || snapshot.forbids(kept.address(), kept.role) {
            if self.state.is_reading() {
                self.state.begin_again();
                return Ok(Fit::Gone);
            }
            self.lose_previous(&kept);
            drop(kept);
            if self.state.transaction == Transaction::Idle && !self.state.is_pinned() {
                // Kept softly: nothing is lost but what a next statement may ask for.
                return Ok(Fit::Gone);
            }
            return Err(self.lose_kept(Some(&request.intent)));
        }
        if self.state.is_reading() && kept.role != Role::Primary {
            let stays = attempt.run.access == Access::Read
                && (self.state.transaction == Transaction::Failed
                    || request.intent.access == Access::Write
                    || self.still_serves(&kept, &request.intent, attempt, &snapshot));
            if !stays {
                self.state.begin_again();
                // Nobody waits for what was read to end.
                tokio::spawn(end_reading(kept));
                return Ok(Fit::Gone);
            }
            return Ok(Fit::Serves(kept));
        }
        Ok(match self.state.transaction {
            Transaction::Unit if kept.role != Role::Primary && attempt.run.access == Access::Write => {
                Fit::EndsUnit(kept)
            }
            Transaction::Idle
                if attempt.run.access == Access::Read
                    && !attempt.run.in_transaction
                    && self.state.roams(&request.intent)
                    // Its session would keep two connections, and has room for one.
                    && !self.frontend.goes_on(request) =>
            {
                Fit::Stays(kept)
            }
            Transaction::Idle if kept.role != Role::Primary && attempt.run.access == Access::Write => {
                kept.release(Fate::Reset, Instant::now());
                Fit::Gone
            }
            _ => Fit::Serves(kept),
        })
    }

    /// Ends a pipeline that has only read. Its connection comes back where it has failed: nothing of the
    /// rest may run.
    ///
    /// # Errors
    /// When an answer that is due was lost.
    async fn end_unit(&mut self, mut kept: Held<P>, intent: &Intent) -> Result<Option<Held<P>>, Refusal> {
        let pool = kept.pool.clone();
        let entry = self.registered.entry.clone();
        let terms = Terms {
            ahead: &[],
            ahead_savepoints: &[],
            ahead_sets_modes: false,
            may_refuse: MayRefuse::No,
            wants_id: false,
            session: entry.id,
            forget_last: false,
            watch: Watch::new(&pool.standing, &entry),
        };
        match kept.backend().settle_unit(&mut self.frontend, &terms).await {
            Ok(true) => return Ok(Some(kept)),
            Ok(false) => {}
            Err(_) => {
                drop(kept);
                return Err(self.lose_kept(Some(intent)));
            }
        }
        let ended = kept.backend().finish_unit().await;
        kept.release(if ended.is_ok() { Fate::Reuse } else { Fate::Close }, Instant::now());
        self.state.transaction = Transaction::Idle;
        Ok(None)
    }

    /// Whether the replica that a transaction reads from may still serve its reads: others may have
    /// written what they have to see.
    fn still_serves(
        &mut self,
        kept: &Held<P>,
        intent: &Intent,
        attempt: &Attempt,
        snapshot: &Snapshot,
    ) -> bool {
        self.renew_floors(snapshot);
        let target = Target::Node((&**kept.address()).into());
        let choice = self.ask_route(intent, attempt, snapshot, Some(&target), Instant::now());
        choice.is_ok_and(|choice| *snapshot.node(choice.node).address == **kept.address())
    }

    /// The server of the kept connection, which is closed already, may not be used any more.
    /// `intent`: the request that finds out; the client hears of it with the next one otherwise.
    pub(super) fn lose_kept(&mut self, intent: Option<&Intent>) -> Refusal {
        let text = "the server of this session may not be used any more";
        if self.state.is_pinned() {
            // What was kept for the client there is gone.
            self.state.forget_server();
            return Refusal::fatal(RefusalKind::ServerLost, text);
        }
        self.state.lose_transaction(intent);
        Refusal::new(RefusalKind::ServerLost, text)
    }

    /// A connection from a pool of the node that routing chooses, waiting for a node as long as
    /// statements may wait.
    async fn checkout(
        &mut self,
        request: &Request<P::Wire>,
        attempt: &mut Attempt,
    ) -> Result<Held<P>, Refusal> {
        let snapshot = self.snapshot();
        if let Ok(node) = self.choose(&request.intent, attempt, &snapshot)
            && (self.cluster.line.is_empty() || snapshot.primary != Some(node))
        {
            match self.take_from_pool(&request.intent, &snapshot, node, attempt, &mut None).await {
                Ok(held) => return Ok(held),
                Err(TakeFault::NextNode) => attempt.exclude.push(node),
                Err(TakeFault::LookAgain) => {}
                Err(TakeFault::Refusal(refusal)) => return Err(*refusal),
            }
        }
        // Rare and long: its state is kept out of every statement's future.
        Box::pin(self.checkout_patiently(&request.intent, attempt)).await
    }

    async fn checkout_patiently(
        &mut self,
        intent: &Intent,
        attempt: &mut Attempt,
    ) -> Result<Held<P>, Refusal> {
        let cluster = self.cluster.clone();
        let mut hold: Option<Hold<'_>> = None;
        loop {
            let snapshot = cluster.topology.load_full();
            match self.choose(intent, attempt, &snapshot) {
                Ok(node) => {
                    if snapshot.primary == Some(node)
                        && !self.has_turn(&cluster, &mut hold, &snapshot).await?
                    {
                        continue;
                    }
                    match self.take_from_pool(intent, &snapshot, node, attempt, &mut hold).await {
                        Ok(held) => return Ok(held),
                        Err(TakeFault::NextNode) => attempt.exclude.push(node),
                        Err(TakeFault::LookAgain) => {}
                        Err(TakeFault::Refusal(refusal)) => return Err(*refusal),
                    }
                }
                Err(Nowhere::UnknownNode) => {
                    return Err(Refusal::new(
                        RefusalKind::UnknownNode,
                        "the hint names no node that may be used",
                    ));
                }
                Err(nowhere) => {
                    let hold = match &mut hold {
                        Some(hold) => hold,
                        None => hold.insert(Hold::begin(&cluster, nowhere)?),
                    };
                    hold.nowhere = nowhere;
                    cluster.topology.want_position();
                    // A node that failed this attempt may be back when the topology has changed.
                    attempt.exclude.clear();
                    let until = hold.until;
                    let ticket = hold.ticket(&cluster.line);
                    self.patiently(until, ticket.changed(snapshot.version))
                        .await?
                        .ok_or_else(|| hold.refusal(&cluster.topology.load()))?;
                    attempt.waited = attempt.began.elapsed();
                }
            }
        }
    }

    /// Waits until those who came earlier have been served by the primary of `snapshot`. `false`:
    /// that took a while, look again.
    async fn has_turn<'c>(
        &mut self,
        cluster: &'c Arc<Cluster<P>>,
        hold: &mut Option<Hold<'c>>,
        snapshot: &Snapshot,
    ) -> Result<bool, Refusal> {
        if cluster.line.is_empty() {
            return Ok(true);
        }
        let hold = match hold {
            Some(hold) => hold,
            None => hold.insert(Hold::begin(cluster, Nowhere::NoPrimary)?),
        };
        let until = hold.until;
        let ticket = hold.ticket(&cluster.line);
        self.patiently(until, ticket.turn(snapshot.version))
            .await?
            .ok_or_else(|| hold.refusal(&cluster.topology.load()))?;
        Ok(cluster.topology.load().version == snapshot.version)
    }

    /// Waits for `event` as long as the client does, and until a deadline: then `None`.
    ///
    /// # Errors
    /// When the client has gone or has cancelled, and when `limits.statement_timeout` is over.
    pub(super) async fn patiently<T>(
        &mut self,
        until: Instant,
        event: impl Future<Output = T>,
    ) -> Result<Option<T>, Refusal> {
        let entry = self.registered.entry.clone();
        entry.set_waiting(true);
        let deadline = self.deadline.filter(|deadline| *deadline < until);
        let result = tokio::select! {
            happened = event => Ok(Some(happened)),
            () = tokio::time::sleep_until(deadline.unwrap_or(until).into()) => match deadline {
                None => Ok(None),
                Some(_) => {
                    let text = "canceling statement due to statement timeout";
                    Err(Refusal::new(RefusalKind::Cancelled, text))
                }
            },
            () = self.frontend.gone() => Err(Refusal::fatal(RefusalKind::Cancelled, "the client has gone")),
            () = entry.called(&[Call::Cancel, Call::Kill]) => {
                entry.take(Call::Cancel);
                Err(Refusal::new(RefusalKind::Cancelled, "canceling statement due to user request"))
            }
        };
        entry.set_waiting(false);
        result
    }

    fn choose(
        &mut self,
        intent: &Intent,
        attempt: &mut Attempt,
        snapshot: &Snapshot,
    ) -> Result<NodeId, Nowhere> {
        // A clock read less for the many that neither waited nor are asked again.
        let now = if attempt.waited.is_zero() && !attempt.again { attempt.began } else { Instant::now() };
        let consistency = self.consistency(intent, &attempt.policy);
        self.renew_floors(snapshot);
        self.reads |= attempt.run.access == Access::Read;
        if attempt.run.access == Access::Read && self.seen.is_some() {
            self.settle_seen(snapshot);
            if consistency != Consistency::Monotonic || intent.hints.target.is_some() {
                self.leave_seen(snapshot);
            } else if let Some(target) = self.seen.as_ref().map(|seen| seen.target.clone()) {
                match self.ask_route(intent, attempt, snapshot, Some(&target), now) {
                    Ok(choice) => return Ok(self.chosen(attempt, choice)),
                    Err(_) => self.leave_seen(snapshot),
                }
            }
        }
        let choice = self.ask_route(intent, attempt, snapshot, intent.hints.target.as_ref(), now)?;
        Ok(self.chosen(attempt, choice))
    }

    fn ask_route(
        &mut self,
        intent: &Intent,
        attempt: &Attempt,
        snapshot: &Snapshot,
        target: Option<&Target>,
        now: Instant,
    ) -> Result<Choice, Nowhere> {
        let consistency = self.consistency(intent, &attempt.policy);
        let mut random = self.random.clone();
        let floor = self.floor_of(intent, consistency, snapshot);
        let question = Question {
            access: attempt.run.access,
            target,
            consistency,
            floor: &floor,
            max_lag: intent.hints.max_lag.or(self.state.own.now.max_lag),
            exclude: &attempt.exclude,
        };
        let choice = route::choose(&question, snapshot, &attempt.policy, now, &mut || random.random::<f64>());
        drop(floor);
        self.random = random;
        choice
    }

    fn chosen(&self, attempt: &mut Attempt, choice: Choice) -> NodeId {
        if choice.why == Why::Floor {
            self.cluster.metrics.causal_fallbacks.inc();
            self.cluster.topology.want_position();
        }
        attempt.why = Some(choice.why);
        choice.node
    }

    /// Takes a connection to a node. The place in the line is given up as soon as there is one in
    /// the pool's queue.
    async fn take_from_pool(
        &mut self,
        intent: &Intent,
        snapshot: &Snapshot,
        id: NodeId,
        attempt: &mut Attempt,
        hold: &mut Option<Hold<'_>>,
    ) -> Result<Held<P>, TakeFault> {
        let node = snapshot.node(id);
        if let Some(kept) = self.take_kept_at(node) {
            if let Some(hold) = hold {
                hold.ticket = None;
            }
            attempt.kept = true;
            return Ok(kept);
        }
        let asked = if attempt.again || !attempt.waited.is_zero() { Instant::now() } else { attempt.began };
        let pool = &self.known(&node.address, node.role).pool;
        let mut held = match Held::take_at_once(pool, node, asked) {
            Some(held) => {
                if let Some(hold) = hold {
                    hold.ticket = None;
                }
                held
            }
            None => Box::pin(self.wait_for_pool(node, asked, attempt, hold)).await?,
        };
        // The pool may have been made anew while the topology changed: whoever changes its standing
        // finds it from now on, or has published before.
        let topology = &self.cluster.topology;
        if !topology.is_current(snapshot) && !topology.load().allows(held.address(), held.role) {
            held.release(Fate::Reuse, Instant::now());
            return Err(TakeFault::LookAgain);
        }
        if held.is_new() && self.relies_on_position(intent, snapshot, &attempt.policy) {
            match Box::pin(self.vouch(&mut held, node)).await {
                Vouched::Yes => {}
                Vouched::NotYet => {
                    held.release(Fate::Reuse, Instant::now());
                    return Err(TakeFault::NextNode);
                }
                Vouched::Broken => return Err(TakeFault::NextNode),
            }
        }
        Ok(held)
    }

    /// Opens a connection, or waits in the pool's queue for one.
    async fn wait_for_pool(
        &mut self,
        node: &Node,
        asked: Instant,
        attempt: &mut Attempt,
        hold: &mut Option<Hold<'_>>,
    ) -> Result<Held<P>, TakeFault> {
        let pool = self.known(&node.address, node.role).pool.clone();
        let mut checkout = std::pin::pin!(Held::wait(pool.clone(), node, asked));
        let first = futures_util::poll!(checkout.as_mut());
        if let Some(hold) = hold {
            hold.ticket = None;
        }
        let taken = match first {
            Poll::Ready(taken) => taken,
            Poll::Pending => {
                // The pool's own deadline is earlier.
                let until = asked + self.config.load().pool.checkout_timeout + GRACE;
                let entry = self.registered.entry.clone();
                let checkout = while_usable(&pool, &entry, checkout);
                let taken = self.patiently(until, checkout).await?;
                attempt.waited = attempt.began.elapsed();
                self.cluster.metrics.pool_wait_seconds.observe(asked.elapsed());
                match taken {
                    Some(taken) => taken.unwrap_or(Err(CheckoutFault::Closed)),
                    None => Err(CheckoutFault::TimedOut),
                }
            }
        };
        taken.map_err(|fault| self.checkout_fault(fault, node, attempt))
    }

    /// The kept connection, where it is to the node that a read may use anyway: with another one the
    /// session could wait for what it holds itself.
    fn take_kept_at(&mut self, node: &Node) -> Option<Held<P>> {
        let topology = &self.cluster.topology;
        self.kept.take_if(|kept| {
            *kept.address() == node.address
                && kept.role == node.role
                && !topology.load().forbids(kept.address(), kept.role)
        })
    }

    /// Whether the choice of the node rests on how far it is.
    fn relies_on_position(&self, intent: &Intent, snapshot: &Snapshot, policy: &Policy) -> bool {
        let bounded = intent.hints.max_lag.or(self.state.own.now.max_lag).is_some();
        bounded || *self.floor_of(intent, self.consistency(intent, policy), snapshot) != Floor::None
    }

    /// Whether what is known of a replica's position holds for this new connection: it may be to
    /// a server that was restarted, further back than its former self (hard case 4).
    async fn vouch(&self, held: &mut Held<P>, node: &Node) -> Vouched {
        if held.role == Role::Primary {
            held.vouch();
            return Vouched::Yes;
        }
        let known = node.incarnation.as_ref();
        let (pool, timeout) = (held.pool.clone(), self.cluster.config.load().monitor.timeout);
        let asked = while_usable(&pool, &self.registered.entry, held.backend().started());
        let Ok(Some(Ok(started))) = tokio::time::timeout(timeout, asked).await else {
            return Vouched::Broken;
        };
        let same = match started {
            Some(started) => {
                if let Some(known) = known.filter(|known| known.started != started) {
                    let other = Incarnation { system: known.system.clone(), started };
                    self.cluster.topology.report(&node.address, Traffic::Opened(other));
                }
                known.is_some_and(|known| known.started == started)
            }
            // The server does not say: a probe sent after the connection was opened does.
            None => node.measured.is_some_and(|(sent, _)| sent > held.opened()),
        };
        if same {
            held.vouch();
            return Vouched::Yes;
        }
        self.cluster.topology.want_position();
        Vouched::NotYet
    }

    fn checkout_fault(&self, fault: CheckoutFault, node: &Node, attempt: &mut Attempt) -> TakeFault {
        match fault {
            CheckoutFault::Closed => TakeFault::LookAgain,
            CheckoutFault::TimedOut => Refusal::new(
                RefusalKind::PoolTimeout,
                format!("no connection to {} became free within pool.checkout_timeout", node.address),
            )
            .into(),
            CheckoutFault::Connect(ConnectFault::TooMany | ConnectFault::Paused { .. }) => {
                TakeFault::NextNode
            }
            CheckoutFault::Connect(ConnectFault::Refused { raw, code }) => {
                attempt.refused = Some(Refused { raw, cause: RefusedCause::MaybeStale, code });
                let is_primary = self.cluster.topology.load().primary == Some(node.id);
                if is_primary || attempt.run.access == Access::Write {
                    Refusal::new(RefusalKind::ServerLost, "the server refused the login").into()
                } else {
                    TakeFault::NextNode
                }
            }
            CheckoutFault::Connect(ConnectFault::NotReady | ConnectFault::Unreachable(_)) => {
                self.cluster.topology.report(&node.address, Traffic::Refused);
                TakeFault::NextNode
            }
        }
    }
}

/// Ends a transaction that has only read and goes on elsewhere.
async fn end_reading<P: Protocol>(mut held: Held<P>) {
    let ended = tokio::time::timeout(GRACE, held.backend().finish_unit()).await;
    let fate =
        if matches!(ended, Ok(Ok(()))) && held.backend().is_clean() { Fate::Reuse } else { Fate::Close };
    held.release(fate, Instant::now());
}

/// Waits for what a node does only as long as it may be used and answers probes.
async fn while_usable<P: Protocol, T>(
    pool: &NodePool<P>,
    entry: &Entry,
    event: impl Future<Output = T>,
) -> Option<T> {
    let watch = Watch::new(&pool.standing, entry);
    let mut event = std::pin::pin!(event);
    std::future::poll_fn(|context| match event.as_mut().poll(context) {
        Poll::Ready(happened) => Poll::Ready(Some(happened)),
        Poll::Pending => watch.poll_over(context, true).map(|()| None),
    })
    .await
}

/// What a wait for a pool may take beyond the pool's own deadline.
const GRACE: Duration = Duration::from_secs(1);

/// A statement that waits for a node: counted, bounded in number and time.
pub(super) struct Hold<'a> {
    pub(super) until: Instant,
    nowhere: Nowhere,
    ticket: Option<Ticket<'a>>,
    /// The place in the line, also while it is left for a pool's queue.
    place: Option<u64>,
    gauge: &'a prometheus::IntGauge,
}

impl<'a> Hold<'a> {
    pub(super) fn begin<P: Protocol>(cluster: &'a Cluster<P>, nowhere: Nowhere) -> Result<Self, Refusal> {
        let config = cluster.config.load();
        let wait = match nowhere {
            Nowhere::NoReplica => config.pool.checkout_timeout,
            _ => config.failover.hold,
        };
        let gauge = &cluster.metrics.held;
        gauge.inc();
        let hold = Self { until: Instant::now() + wait, nowhere, ticket: None, place: None, gauge };
        // Those that wait for a RESUME have no place in the line.
        if usize::try_from(gauge.get()).is_ok_and(|held| held > config.failover.hold_limit) {
            return Err(hold.refusal(&cluster.topology.load()));
        }
        Ok(hold)
    }

    /// The place in the line: the same one again after a pool that was replaced meanwhile.
    fn ticket(&mut self, line: &'a Line) -> &Ticket<'a> {
        self.ticket.get_or_insert_with(|| {
            let ticket = self.place.map_or_else(|| line.join(), |place| line.rejoin(place));
            self.place = Some(ticket.number());
            ticket
        })
    }

    fn refusal(&self, snapshot: &Snapshot) -> Refusal {
        if self.nowhere == Nowhere::NoReplica {
            return Refusal::new(
                RefusalKind::NoReplica,
                "no replica may serve this read, and reads do not use the primary",
            );
        }
        let since = snapshot
            .without_primary_since
            .map(|(_, wall)| humantime::format_rfc3339_millis(wall).to_string());
        let text = match (since, snapshot.primary()) {
            (Some(since), _) => format!("there has been no primary since {since}"),
            (None, Some(primary)) => format!("the primary, {}, takes no connections", primary.address),
            (None, None) => "no node may run this statement".to_owned(),
        };
        Refusal::new(RefusalKind::NoPrimary, text)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}
