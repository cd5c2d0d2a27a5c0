//! Runs one request: finds a node and a connection, and decides what an answer, an error or a
//! lost server means.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rand::Rng;
use smallvec::SmallVec;

use super::{Session, cancel::Call, state::Run};
use crate::{
    pool::{CheckoutFault, Fate, Held},
    protocol::{
        Backend, ConnectFault, Fault, Forwarded, Frontend, MayRefuse, Protocol, Refused, RefusedCause, Reply,
        Request, Terms, Transaction,
    },
    refusal::{Refusal, RefusalKind},
    route::{self, Consistency, Floor, Nowhere, Question, Why},
    sql::{Access, Effect, PinReason, Reason},
    topology::{NodeId, Resolved, Role, Snapshot, State, board::Traffic},
};

/// Attempts at one request, the first included: a node each, then the primary.
const MAX_ATTEMPTS: usize = 8;

/// How long a stopping server may take to be seen as stopped before its 57P01 is taken to have
/// been meant for the client.
const STOP_SEEN_WITHIN: Duration = Duration::from_secs(1);

/// One request on its way.
struct Attempt {
    run: Run,
    began: Instant,
    /// Time spent before anything was sent.
    waited: Duration,
    exclude: SmallVec<[NodeId; 4]>,
    /// Of the last node's error, for when no other node can be asked.
    refused: Option<Refused>,
    why: Option<Why>,
    /// A refusal or loss sent it to another node before.
    again: bool,
}

/// What comes after an attempt that did not answer.
enum Next {
    Again,
    Over(Result<(), Fault>),
}

impl<P: Protocol> Session<P> {
    pub(super) async fn execute(
        &mut self,
        request: Request<P::Wire>,
        run: Run,
        began: Instant,
    ) -> Result<(), Fault> {
        let mut attempt = Attempt {
            run,
            began,
            waited: Duration::ZERO,
            exclude: SmallVec::new(),
            refused: None,
            why: None,
            again: false,
        };
        self.apply_hint(&request, &mut attempt.run);
        let mut request = Some(request);
        for _ in 0..MAX_ATTEMPTS {
            let current = request.take().expect("put back after every attempt that is followed by another");
            let mut held = match self.acquire(&current, &mut attempt).await {
                Ok(held) => held,
                Err(refusal) => return self.give_up(current, attempt, refusal).await,
            };
            let result = self.exchange(&current, &mut held, &attempt).await;
            match result {
                Ok(reply) => {
                    self.learn(&current, &attempt, &reply, held).await;
                    return Ok(());
                }
                Err(fault) => {
                    match Box::pin(self.recover(current, &mut attempt, fault, held, &mut request)).await {
                        Next::Again => attempt.again = true,
                        Next::Over(result) => return result,
                    }
                }
            }
        }
        let current = request.take().expect("put back by the last attempt");
        let refusal = Refusal::new(RefusalKind::ServerLost, "no server could answer the statement");
        self.give_up(current, attempt, refusal).await
    }

    /// `/* pointsman: primary */` outranks what the statement is; `replica` cannot make a write a
    /// read.
    fn apply_hint(&self, request: &Request<P::Wire>, run: &mut Run) {
        use crate::sql::hints::Target;
        if request.intent.hints.target == Some(Target::Primary)
            && !run.in_transaction
            && run.access == Access::Read
        {
            run.access = Access::Write;
            run.reason = Reason::Hint;
        }
    }

    /// The connection to run on: the kept one, or one from a pool.
    async fn acquire(
        &mut self,
        request: &Request<P::Wire>,
        attempt: &mut Attempt,
    ) -> Result<Held<P>, Refusal> {
        if let Some(kept) = self.kept.take() {
            match self.fit(kept, attempt).await? {
                Ok(held) => return Ok(held),
                Err(kept) => self.kept = kept,
            }
        }
        self.checkout(request, attempt).await
    }

    /// Whether the kept connection serves this attempt. `Err(Some)`: it is kept for later.
    async fn fit(
        &mut self,
        mut kept: Held<P>,
        attempt: &Attempt,
    ) -> Result<Result<Held<P>, Option<Held<P>>>, Refusal> {
        let snapshot = self.snapshot();
        let fenced = snapshot.find(kept.address()).is_none_or(|node| matches!(node.state, State::Fenced(_)));
        let demoted = kept.role == Role::Primary
            && snapshot.primary().is_some_and(|primary| primary.address != *kept.address());
        if fenced || demoted {
            self.lose_previous(&kept);
            // Closed, so that nothing more is written there; what was in it is lost.
            let in_transaction = self.state.transaction != Transaction::Idle;
            drop(kept);
            let pinned = self.state.is_pinned();
            self.state.forget_server();
            return if in_transaction || pinned {
                Err(Refusal::fatal(
                    RefusalKind::ServerLost,
                    "the server of this session is no longer the primary",
                ))
            } else {
                Ok(Err(None))
            };
        }
        match self.state.transaction {
            Transaction::Unit if kept.role != Role::Primary && attempt.run.access == Access::Write => {
                // What this pipeline read is answered; the rest of it writes (hard case 13).
                let ended = kept.backend().finish_unit().await;
                kept.release(if ended.is_ok() { Fate::Reuse } else { Fate::Close }, Instant::now());
                self.state.transaction = Transaction::Idle;
                Ok(Err(None))
            }
            Transaction::Idle if attempt.run.access == Access::Read && self.state.reads_roam() => {
                Ok(Err(Some(kept)))
            }
            Transaction::Idle if kept.role != Role::Primary && attempt.run.access == Access::Write => {
                kept.release(Fate::Reset, Instant::now());
                Ok(Err(None))
            }
            _ => Ok(Ok(kept)),
        }
    }

    /// A connection from a pool of the node that routing chooses, waiting for a node as long as
    /// statements may wait.
    async fn checkout(
        &mut self,
        request: &Request<P::Wire>,
        attempt: &mut Attempt,
    ) -> Result<Held<P>, Refusal> {
        let snapshot = self.snapshot();
        if let Ok(node) = self.choose(request, attempt, &snapshot) {
            match self.take_from_pool(&snapshot, node, attempt).await {
                Ok(held) => return Ok(held),
                Err(TakeFault::NextNode) => attempt.exclude.push(node),
                Err(TakeFault::Refusal(refusal)) => return Err(refusal),
            }
        }
        // Rare and long: its state is kept out of every statement's future.
        Box::pin(self.checkout_patiently(request, attempt)).await
    }

    async fn checkout_patiently(
        &mut self,
        request: &Request<P::Wire>,
        attempt: &mut Attempt,
    ) -> Result<Held<P>, Refusal> {
        let cluster = self.cluster.clone();
        let mut hold: Option<Hold<'_>> = None;
        loop {
            let changed = cluster.topology.changed.notified();
            let snapshot = cluster.topology.load_full();
            match self.choose(request, attempt, &snapshot) {
                Ok(node) => match self.take_from_pool(&snapshot, node, attempt).await {
                    Ok(held) => return Ok(held),
                    Err(TakeFault::NextNode) => attempt.exclude.push(node),
                    Err(TakeFault::Refusal(refusal)) => return Err(refusal),
                },
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
                    // A node that failed this attempt may be back when the topology has changed.
                    attempt.exclude.clear();
                    self.wait_for_change(changed, hold, &snapshot).await?;
                    attempt.waited = attempt.began.elapsed();
                }
            }
        }
    }

    async fn wait_for_change(
        &mut self,
        changed: impl Future<Output = ()>,
        hold: &Hold<'_>,
        snapshot: &Snapshot,
    ) -> Result<(), Refusal> {
        let entry = self.registered.entry.clone();
        entry.set_waiting(true);
        let result = tokio::select! {
            () = changed => Ok(()),
            () = tokio::time::sleep_until(hold.until.into()) => Err(hold.refusal(snapshot)),
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
        request: &Request<P::Wire>,
        attempt: &mut Attempt,
        snapshot: &Snapshot,
    ) -> Result<NodeId, Nowhere> {
        self.renew_floor(snapshot);
        let policy = self.cluster.policy.load();
        let hints = &request.intent.hints;
        let consistency = hints.consistency.or(self.state.consistency).unwrap_or(policy.consistency);
        let floor = if consistency == Consistency::Eventual { &Floor::None } else { &self.state.floor };
        let question = Question {
            access: attempt.run.access,
            target: hints.target.as_ref(),
            consistency,
            floor,
            max_lag: hints.max_lag.or(self.state.max_lag),
            exclude: &attempt.exclude,
        };
        let random = &mut self.random;
        // A clock read less for the many that neither waited nor are asked again.
        let now = if attempt.waited.is_zero() && !attempt.again { attempt.began } else { Instant::now() };
        let choice = route::choose(&question, snapshot, &policy, now, &mut || random.random::<f64>())?;
        if choice.why == Why::Floor {
            self.cluster.metrics.causal_fallbacks.inc();
        }
        attempt.why = Some(choice.why);
        Ok(choice.node)
    }

    /// Replaces a floor that was waiting for a sample by the sample.
    fn renew_floor(&mut self, snapshot: &Snapshot) {
        let renewed = match snapshot.resolve(&self.state.floor) {
            Resolved::At(position) if !matches!(self.state.floor, Floor::At(_)) => position.into_owned(),
            Resolved::Lost { left } => {
                self.cluster.metrics.lost_positions.inc();
                tracing::warn!(cluster = %self.cluster.name, "a session's floor lay in history that a failover threw away");
                left
            }
            _ => return,
        };
        self.state.floor = Floor::At(renewed);
    }

    async fn take_from_pool(
        &mut self,
        snapshot: &Snapshot,
        id: NodeId,
        attempt: &mut Attempt,
    ) -> Result<Held<P>, TakeFault> {
        let node = snapshot.node(id);
        let entry = self.registered.entry.clone();
        let asked = if attempt.again || !attempt.waited.is_zero() { Instant::now() } else { attempt.began };
        let checkout = {
            let pool = self.known(&node.address, node.role).pool.clone();
            Held::take(pool, node, asked)
        };
        let taken = {
            let mut checkout = std::pin::pin!(checkout);
            // The usual case is a connection at once.
            match futures_util::poll!(checkout.as_mut()) {
                std::task::Poll::Ready(taken) => taken,
                std::task::Poll::Pending => {
                    entry.set_waiting(true);
                    let frontend = &mut self.frontend;
                    let taken = Box::pin(async {
                        tokio::select! {
                            taken = checkout => Some(taken),
                            () = frontend.gone() => None,
                            () = entry.called(&[Call::Cancel, Call::Kill]) => None,
                        }
                    })
                    .await;
                    entry.set_waiting(false);
                    let waited = asked.elapsed();
                    attempt.waited = attempt.began.elapsed();
                    self.cluster.metrics.pool_wait_seconds.observe(waited.as_secs_f64());
                    let Some(taken) = taken else {
                        entry.take(Call::Cancel);
                        let refusal =
                            Refusal::new(RefusalKind::Cancelled, "canceling statement due to user request");
                        return Err(TakeFault::Refusal(refusal));
                    };
                    taken
                }
            }
        };
        taken.map_err(|fault| self.checkout_fault(fault, node.address.clone(), id, attempt))
    }

    fn checkout_fault(
        &self,
        fault: CheckoutFault,
        address: Arc<str>,
        id: NodeId,
        attempt: &mut Attempt,
    ) -> TakeFault {
        match fault {
            CheckoutFault::Closed => TakeFault::NextNode,
            CheckoutFault::TimedOut | CheckoutFault::Connect(ConnectFault::TooMany) => {
                TakeFault::Refusal(Refusal::new(
                    RefusalKind::PoolTimeout,
                    format!("no connection to {address} became free within pool.checkout_timeout"),
                ))
            }
            CheckoutFault::Connect(ConnectFault::Refused { raw, code }) => {
                attempt.refused = Some(Refused { raw, cause: RefusedCause::MaybeStale, code });
                let is_primary = self.cluster.topology.load().primary == Some(id);
                if is_primary || attempt.run.access == Access::Write {
                    TakeFault::Refusal(Refusal::new(RefusalKind::ServerLost, "the server refused the login"))
                } else {
                    TakeFault::NextNode
                }
            }
            CheckoutFault::Connect(ConnectFault::NotReady | ConnectFault::Unreachable(_)) => {
                self.cluster.topology.report(id, Traffic::Refused);
                TakeFault::NextNode
            }
        }
    }

    async fn exchange(
        &mut self,
        request: &Request<P::Wire>,
        held: &mut Held<P>,
        attempt: &Attempt,
    ) -> Result<Reply, Fault> {
        let may_refuse = if attempt.run.in_transaction || self.state.transaction != Transaction::Idle {
            MayRefuse::No
        } else if held.role != Role::Primary || attempt.run.access == Access::Read {
            MayRefuse::Any
        } else if request.intent.plain && !attempt.again {
            MayRefuse::Stopping
        } else {
            MayRefuse::No
        };
        self.registered.entry.runs_at(held.cancel_target());
        held.set_busy(true);
        let terms =
            Terms { ahead: self.state.held_statements(), may_refuse, session: self.registered.entry.id };
        let result = held.backend().exchange(request, &mut self.frontend, &terms).await;
        held.set_busy(false);
        if self.registered.entry.runs_no_more() {
            self.wait_for_cancel(held).await;
        }
        result
    }

    /// A cancel request is on its way to this connection: it must have arrived before anybody
    /// else runs a statement there (hard case 25d).
    async fn wait_for_cancel(&mut self, held: &mut Held<P>) {
        let entry = self.registered.entry.clone();
        let timeout = self.cluster.config.load().monitor.timeout;
        let arrived = async {
            while entry.is_being_cancelled() {
                entry.take(Call::Look);
                if !entry.is_being_cancelled() {
                    break;
                }
                entry.called(&[Call::Look]).await;
            }
        };
        let _ = tokio::time::timeout(timeout, arrived).await;
        held.mark_cancelled();
    }

    /// Takes note of an answer and keeps or gives back the connection.
    async fn learn(&mut self, request: &Request<P::Wire>, attempt: &Attempt, reply: &Reply, held: Held<P>) {
        let on_primary = held.role == Role::Primary;
        let pinned_before = self.state.is_pinned();
        if on_primary && (reply.wrote.is_some() || attempt.run.reason == Reason::Learned) {
            // It was taken for a read, and was none.
            self.state.note_write();
        }
        let wrote = self.state.learn(&request.intent, reply.transaction, reply.failed, on_primary);
        if !request.intent.effects.is_empty() {
            self.learn_effects(request, reply.failed, pinned_before);
        }
        if wrote {
            self.set_floor(&held, reply);
        }
        let reason = attempt.run.reason;
        let now = Instant::now();
        self.known(held.address(), held.role).meter.statement(attempt.run.access, reason);
        self.cluster.metrics.answered(attempt.run.access, attempt.waited, now.duration_since(attempt.began));
        self.route.note(held.address(), attempt.why, reason, attempt.waited);
        self.note_previous(&request.intent, held.role);
        self.keep_or_release(held, now).await;
    }

    fn learn_effects(&mut self, request: &Request<P::Wire>, failed: bool, pinned_before: bool) {
        for effect in &request.intent.effects {
            match effect {
                Effect::Ddl if !failed => {
                    self.database.stale.store(true, Ordering::Relaxed);
                    self.cluster.topology.nudge.notify_one();
                }
                Effect::NeedsPrevious if !P::FORGETS_PREVIOUS => self.database.sequences_matter.store(true, Ordering::Relaxed),
                Effect::DrawsSequence if self.database.sequences_matter.load(Ordering::Relaxed) => {
                    self.state.pin(PinReason::Sequence);
                }
                Effect::Pin(reason) => self.cluster.metrics.pin(*reason),
                Effect::Touches if !pinned_before => self.cluster.metrics.pin(PinReason::Function),
                _ => {}
            }
        }
    }

    /// The session must not read behind what it wrote just now.
    fn set_floor(&mut self, held: &Held<P>, reply: &Reply) {
        self.state.floor = match &reply.wrote {
            Some(position) => Floor::At(position.clone()),
            None => {
                let snapshot = self.cluster.topology.load();
                let incarnation = snapshot.find(held.address()).and_then(|node| node.incarnation.clone());
                match incarnation {
                    Some(incarnation) => {
                        Floor::Unsampled { incarnation, after: self.cluster.topology.probes.current() }
                    }
                    None => return,
                }
            }
        };
        self.cluster.topology.want_position();
    }

    async fn keep_or_release(&mut self, mut held: Held<P>, now: Instant) {
        let keeps =
            self.state.transaction != Transaction::Idle || (self.state.is_pinned() && self.kept.is_none());
        if keeps && (self.state.transaction != Transaction::Idle || held.role == Role::Primary) {
            self.kept = Some(held);
            return;
        }
        let cancelled = held.take_cancelled();
        if cancelled && held.backend().ping().await.is_err() {
            held.release(Fate::Close, now);
            return;
        }
        let Some(mut held) = self.keep_softly(held) else { return };
        let fate = if held.backend().is_clean() { Fate::Reuse } else { Fate::Reset };
        held.release(fate, now);
    }

    /// Decides what a failed attempt means. `again` gets the request back for another one.
    async fn recover(
        &mut self,
        request: Request<P::Wire>,
        attempt: &mut Attempt,
        fault: Fault,
        held: Held<P>,
        again: &mut Option<Request<P::Wire>>,
    ) -> Next {
        match fault {
            Fault::Refused(refused) => self.refused(request, attempt, refused, held, again).await,
            Fault::Server { sent, forwarded, error } => {
                self.server_lost(request, attempt, Loss { sent, forwarded, error }, held, again).await
            }
            other => Next::Over(Err(other)),
        }
    }

    async fn refused(
        &mut self,
        request: Request<P::Wire>,
        attempt: &mut Attempt,
        refused: Refused,
        held: Held<P>,
        again: &mut Option<Request<P::Wire>>,
    ) -> Next {
        let (node, address, role) = (held.node, held.address().clone(), held.role);
        self.lose_previous(&held);
        let on_primary = role == Role::Primary;
        let elsewhere = match refused.cause {
            RefusedCause::Stopping => {
                drop(held);
                self.cluster.topology.report(node, Traffic::Broken);
                attempt.run.access == Access::Read || self.is_seen_to_stop(&address).await
            }
            cause => {
                held.release(Fate::Reuse, Instant::now());
                !on_primary && self.primary_may_differ(cause, attempt, &address)
            }
        };
        if !elsewhere {
            self.count(attempt, &address, role);
            let transaction = self.after_refusal();
            return Next::Over(self.frontend.deliver(request, refused, transaction).await);
        }
        match refused.cause {
            RefusedCause::Stopping => {
                self.cluster.metrics.retry("stopping");
                attempt.exclude.push(node);
            }
            RefusedCause::Writes => {
                let text = self.frontend.raw_text(&request).to_vec();
                self.cluster.classifier.load().learn(self.database.id(), &text, Instant::now());
                self.reroute(attempt, "writes", Reason::Learned);
            }
            RefusedCause::Standby => self.reroute(attempt, "standby", attempt.run.reason),
            RefusedCause::MaybeStale => self.reroute(attempt, "stale", attempt.run.reason),
            RefusedCause::Setting => self.reroute(attempt, "setting", attempt.run.reason),
        }
        attempt.refused = Some(refused);
        *again = Some(request);
        Next::Again
    }

    fn reroute(&self, attempt: &mut Attempt, label: &str, reason: Reason) {
        self.cluster.metrics.reroute(label);
        attempt.run.access = Access::Write;
        attempt.run.reason = reason;
    }

    /// Whether the primary could answer otherwise than this replica did.
    fn primary_may_differ(&self, cause: RefusedCause, attempt: &Attempt, address: &str) -> bool {
        match cause {
            // The client asked for read-only: this is its answer.
            RefusedCause::Writes => !attempt.run.asked_read_only,
            RefusedCause::Standby | RefusedCause::Setting => true,
            RefusedCause::MaybeStale => {
                let snapshot = self.cluster.topology.load();
                let node = snapshot.find(address);
                match (node.and_then(|node| node.position.as_ref()), snapshot.newest()) {
                    (Some(has), Some(newest)) => snapshot.covers(has, newest) != Some(true),
                    _ => true,
                }
            }
            RefusedCause::Stopping => false,
        }
    }

    /// Whether a server that ended a statement with 57P01 is then seen to stop; if it goes on
    /// serving, the 57P01 was meant for the client (hard case 6).
    async fn is_seen_to_stop(&self, address: &str) -> bool {
        let topology = &self.cluster.topology;
        let before = topology.probes.current();
        let deadline = tokio::time::Instant::now() + STOP_SEEN_WITHIN;
        loop {
            let changed = topology.changed.notified();
            let snapshot = topology.load_full();
            let Some(node) = snapshot.find(address) else { return true };
            if node.role != Role::Primary || !matches!(node.state, State::Up) {
                return true;
            }
            if node.measured.is_some_and(|(_, number)| number > before) {
                return false;
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return false;
            }
        }
    }

    async fn server_lost(
        &mut self,
        request: Request<P::Wire>,
        attempt: &mut Attempt,
        loss: Loss,
        held: Held<P>,
        again: &mut Option<Request<P::Wire>>,
    ) -> Next {
        let (node, address, role) = (held.node, held.address().clone(), held.role);
        self.lose_previous(&held);
        drop(held);
        self.cluster.topology.report(node, Traffic::Broken);
        tracing::debug!(%address, error = %loss.error, "lost a server connection");
        let alone = !attempt.run.in_transaction
            && self.state.transaction == Transaction::Idle
            && !self.state.is_pinned();
        let harmless = attempt.run.access == Access::Read || !loss.sent || role != Role::Primary;
        if alone && harmless && loss.forwarded == Forwarded::Nothing {
            self.cluster.metrics.retry("server_lost");
            if attempt.run.access == Access::Read {
                attempt.exclude.push(node);
            }
            *again = Some(request);
            return Next::Again;
        }
        let commits = request
            .intent
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Commit { .. } | Effect::PrepareTransaction));
        let in_doubt = loss.sent && attempt.run.access == Access::Write && (alone || commits);
        let ends_session = self.state.is_pinned() || loss.forwarded == Forwarded::Torn;
        self.state.forget_server();
        let refusal = if in_doubt { in_doubt_refusal(&address) } else { lost_refusal(&address) };
        if loss.forwarded == Forwarded::Torn {
            return Next::Over(Err(Fault::Client(loss.error)));
        }
        if ends_session {
            let refusal = Refusal { fatal: true, ..refusal };
            self.frontend.farewell(&refusal).await;
            return Next::Over(Err(Fault::Client(loss.error)));
        }
        Next::Over(self.refuse(request, refusal).await)
    }

    /// After an error that was kept back, the session is where it was before the request.
    fn after_refusal(&mut self) -> Transaction {
        if self.state.is_holding() {
            self.state.forget_held();
        }
        self.state.transaction
    }

    fn count(&mut self, attempt: &Attempt, address: &Arc<str>, role: Role) {
        self.known(address, role).meter.statement(attempt.run.access, attempt.run.reason);
        self.cluster.metrics.answered(attempt.run.access, attempt.waited, attempt.began.elapsed());
        self.route.note(address, attempt.why, attempt.run.reason, attempt.waited);
    }

    /// No node could answer: the client gets a server's own error if there was one.
    async fn give_up(
        &mut self,
        request: Request<P::Wire>,
        attempt: Attempt,
        refusal: Refusal,
    ) -> Result<(), Fault> {
        if refusal.fatal {
            self.cluster.metrics.error(refusal.kind.label());
            self.frontend.farewell(&refusal).await;
            return Err(Fault::Client(std::io::ErrorKind::ConnectionAborted.into()));
        }
        match attempt.refused {
            Some(refused) => {
                let transaction = self.after_refusal();
                self.frontend.deliver(request, refused, transaction).await
            }
            None => self.refuse(request, refusal).await,
        }
    }

    /// Answers with an error of the proxy's own.
    pub(super) async fn refuse(&mut self, request: Request<P::Wire>, refusal: Refusal) -> Result<(), Fault> {
        self.cluster.metrics.error(refusal.kind.label());
        tracing::info!(
            cluster = %self.cluster.name,
            user = %self.registered.entry.user,
            kind = refusal.kind.label(),
            "refused a statement: {}", refusal.message
        );
        if self.state.is_holding() {
            self.state.forget_held();
        }
        if self.state.transaction == Transaction::Open {
            // As a server does after an error in a transaction.
            self.state.transaction =
                if self.kept.is_some() { Transaction::Failed } else { Transaction::Idle };
        }
        self.frontend.refuse(request, &refusal, self.state.transaction).await
    }
}

enum TakeFault {
    NextNode,
    Refusal(Refusal),
}

struct Loss {
    sent: bool,
    forwarded: Forwarded,
    error: std::io::Error,
}

fn in_doubt_refusal(address: &str) -> Refusal {
    Refusal::new(
        RefusalKind::InDoubt,
        format!("the server {address} was lost before it said whether the statement was committed"),
    )
    .with_hint("Look whether it took effect before sending it again.")
}

fn lost_refusal(address: &str) -> Refusal {
    Refusal::new(RefusalKind::ServerLost, format!("the connection to the server {address} was lost"))
}

/// A statement that waits for a node: counted, bounded in number and time.
struct Hold<'a> {
    until: Instant,
    nowhere: Nowhere,
    count: &'a std::sync::atomic::AtomicUsize,
    gauge: &'a prometheus::IntGauge,
}

impl<'a> Hold<'a> {
    fn begin<P: Protocol>(
        cluster: &'a crate::cluster::Cluster<P>,
        nowhere: Nowhere,
    ) -> Result<Self, Refusal> {
        let config = cluster.config.load();
        let wait = match nowhere {
            Nowhere::NoReplica => config.pool.checkout_timeout,
            _ => config.failover.hold,
        };
        let hold = Self {
            until: Instant::now() + wait,
            nowhere,
            count: &cluster.held,
            gauge: &cluster.metrics.held,
        };
        hold.gauge.inc();
        if hold.count.fetch_add(1, Ordering::Relaxed) >= config.failover.hold_limit {
            return Err(hold.refusal(&cluster.topology.load()));
        }
        Ok(hold)
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
        match since {
            Some(since) => {
                Refusal::new(RefusalKind::NoPrimary, format!("there has been no primary since {since}"))
            }
            None => Refusal::new(RefusalKind::NoPrimary, "no node may run this statement"),
        }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.gauge.dec();
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}
