//! Runs one request: on a connection to a node, again on another where that is right, and takes note
//! of the answer.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use smallvec::SmallVec;

use super::{
    Session,
    cancel::{Call, Entry},
    consistency::Noted,
    definitions::Committing,
    own::Way,
    state::{Run, ends_transaction},
};
use crate::{
    cluster::{Cluster, Doubt},
    pool::{Fate, Held},
    protocol::{
        Backend, Fault, Frontend as _, MayRefuse, Protocol, Refused, Reply, Request, Terms, Transaction,
    },
    recent::Routed,
    refusal::{Refusal, RefusalKind},
    route::{Policy, Why},
    sql::{
        Access, Effect, Hints, Intent, PinReason, Reason,
        effects::{Discard, Ending, Ends},
        hints::Target,
    },
    standing::{self, Watch},
    topology::{NodeId, Role, board::Traffic},
};

/// Attempts at one request, the first included: a node each, then the primary.
const MAX_ATTEMPTS: usize = 8;

/// One request on its way.
pub(super) struct Attempt {
    pub run: Run,
    /// That of the moment in which the request came.
    pub policy: Policy,
    pub began: Instant,
    /// Time spent before anything was sent.
    pub waited: Duration,
    pub exclude: SmallVec<[NodeId; 4]>,
    /// Of the last node's error, for when no other node can be asked.
    pub refused: Option<Refused>,
    pub why: Option<Why>,
    /// A refusal or loss sent it to another node before.
    pub again: bool,
    /// A server that was stopping has had it before (hard case 6: once).
    pub resent: bool,
    /// It runs on the connection that the session keeps.
    pub kept: bool,
    /// It asks for what the last statement left, which was nothing.
    pub forget_last: bool,
    /// How many new definitions the catalog told of when it was judged, or a moment later.
    pub definitions: u64,
}

impl Attempt {
    pub fn way(&self) -> Way {
        Way { why: self.why, reason: self.run.reason, waited: self.waited }
    }
}

/// What comes after an attempt that did not answer.
pub(super) enum Next {
    Again,
    Over(Result<(), Fault>),
}

impl<P: Protocol> Session<P> {
    pub(super) async fn execute(
        &mut self,
        request: &Request<P::Wire>,
        run: Run,
        began: Instant,
    ) -> Result<(), Fault> {
        // Of a transaction whose end nobody saw.
        self.publish_changed(None);
        self.deadline = self.config.load().limits.statement_timeout.map(|limit| began + limit);
        let mut attempt = Attempt {
            run,
            policy: self.config.load().policy(),
            began,
            waited: Duration::ZERO,
            exclude: SmallVec::new(),
            refused: None,
            why: None,
            again: false,
            resent: false,
            kept: false,
            forget_last: false,
            definitions: self.database.code.known(),
        };
        self.apply_hint(request, &mut attempt.run);
        if !request.intent.hints.unknown.is_empty() {
            self.tell_of_misspelt_hints(&request.intent.hints);
        }
        self.mind_new_names(&request.intent, &mut attempt.run);
        if request.intent.reason == Reason::Ddl {
            self.leave_databases(&request.intent);
        }
        self.apply_last(&request.intent, &mut attempt);
        for _ in 0..MAX_ATTEMPTS {
            let mut held = match self.acquire(request, &mut attempt).await {
                Ok(held) => held,
                Err(refusal) => return Box::pin(self.give_up(request, attempt, refusal)).await,
            };
            let noted = match held.role {
                Role::Primary => self.begin_writes(&request.intent, attempt.run.reason == Reason::Learned),
                _ => Noted::nothing(),
            };
            let committing = match request.intent.effects.is_empty() {
                true => None,
                false => self.begin_definitions(&request.intent),
            };
            let doubt = committing.as_ref().and_then(Committing::doubt);
            match self.exchange(request, &mut held, &attempt, &noted, doubt).await {
                Ok(reply) => {
                    self.learn(request, &attempt, &reply, held, noted).await;
                    return Ok(());
                }
                Err(fault) => match Box::pin(self.recover(request, &mut attempt, fault, held)).await {
                    Next::Again => attempt.again = true,
                    Next::Over(result) => return result,
                },
            }
        }
        let refusal = Refusal::new(RefusalKind::ServerLost, "no server could answer the statement");
        Box::pin(self.give_up(request, attempt, refusal)).await
    }

    /// `/* pointsman: primary */` outranks what the statement is; `replica` cannot make a write a
    /// read.
    fn apply_hint(&self, request: &Request<P::Wire>, run: &mut Run) {
        if request.intent.hints.target == Some(Target::Primary)
            && !run.in_transaction
            && run.access == Access::Read
        {
            run.access = Access::Write;
            run.reason = Reason::Hint;
        }
    }

    /// Once for each, however many sessions say it.
    #[cold]
    fn tell_of_misspelt_hints(&self, hints: &Hints) {
        for item in hints.unknown.iter().filter_map(|item| self.cluster.misspelt.first(item)) {
            let user = &self.registered.entry.user;
            tracing::warn!(cluster = %self.cluster.name, %user, hint = ?item, "a hint is not understood: it does nothing");
        }
    }

    /// While names may stand for something that the catalog does not tell yet (a sequence, a view over
    /// a function that writes), reads of tables use the primary.
    fn mind_new_names(&self, intent: &Intent, run: &mut Run) {
        let reads_tables = run.access == Access::Read && !run.in_transaction && !intent.tables.is_empty();
        if reads_tables && self.database.names.has_new() {
            run.access = Access::Write;
            run.reason = Reason::Relation;
        }
    }

    /// Connections that wait for a next session keep nobody from dropping or renaming their database.
    fn leave_databases(&self, intent: &Intent) {
        for effect in &intent.effects {
            if let Effect::NeedsAlone { database } = effect {
                self.cluster.leave_database(database);
            }
        }
    }

    async fn exchange(
        &mut self,
        request: &Request<P::Wire>,
        held: &mut Held<P>,
        attempt: &Attempt,
        noted: &Noted,
        doubt: Option<&Doubt>,
    ) -> Result<Reply, Fault> {
        let may_refuse = self.may_refuse(request, held.role, attempt);
        let wants_id = self.wants_id(&request.intent, held.role);
        self.registered.entry.runs_at(held.cancel_target());
        held.set_busy(true);
        let acknowledges = noted.commits() || attempt.run.reason == Reason::Learned;
        let patience = acknowledges.then(|| self.config.load().failover.hold);
        let entry = &self.registered.entry;
        let (backend, standing) = held.serving();
        let watch = Watch::new(standing, entry).acknowledging(patience);
        let terms = Terms {
            ahead: self.state.held_statements(),
            ahead_savepoints: self.state.held_savepoints(),
            ahead_sets_modes: self.state.held_sets_modes(),
            may_refuse,
            wants_id,
            session: entry.id,
            forget_last: attempt.forget_last,
            doubt,
            watch,
        };
        let result = match self.deadline {
            // Whoever was killed runs nothing more; a KILL from now on finds the connection.
            _ if entry.is_called(Call::Kill) => Err(standing::unsent()),
            None => backend.exchange(request, &mut self.frontend, &terms).await,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let exchange = backend.exchange(request, &mut self.frontend, &terms);
                Box::pin(limited(exchange, left, &self.cluster, entry)).await
            }
        };
        held.set_busy(false);
        if let Some(ends) = self.registered.entry.runs_no_more() {
            Box::pin(self.wait_for_cancel(held, ends)).await;
        }
        result
    }

    /// Which errors of the server another attempt might not meet.
    fn may_refuse(&self, request: &Request<P::Wire>, role: Role, attempt: &Attempt) -> MayRefuse {
        // Of a transaction that no server knows of yet there is nothing to lose.
        let first = self.state.is_holding();
        let open = attempt.run.in_transaction || self.state.transaction != Transaction::Idle;
        let reading = self.state.is_reading() && self.state.transaction != Transaction::Failed;
        if open && !first && !reading {
            MayRefuse::No
        } else if role != Role::Primary || attempt.run.access == Access::Read {
            MayRefuse::Any
        } else if request.intent.plain && !attempt.resent && !ends_transaction(&request.intent) {
            MayRefuse::Stopping
        } else {
            MayRefuse::Replan
        }
    }

    /// A cancel request was sent to this connection: it must have arrived before anybody else runs a
    /// statement there (hard case 25d). Where it ends the connection, nobody does.
    async fn wait_for_cancel(&mut self, held: &mut Held<P>, ends: Ends) {
        held.mark_cancelled(ends);
        if ends == Ends::Session {
            return;
        }
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
    }

    /// Whether a connection that was asked to end a statement answers one empty round trip since, in time.
    async fn is_done_with_cancel(&self, held: &mut Held<P>) -> bool {
        let timeout = self.cluster.config.load().monitor.timeout;
        let answered = tokio::time::timeout(timeout, Box::pin(held.backend().ping())).await;
        matches!(answered, Ok(Ok(())))
    }

    /// Takes note of an answer and keeps or gives back the connection.
    async fn learn(
        &mut self,
        request: &Request<P::Wire>,
        attempt: &Attempt,
        reply: &Reply,
        mut held: Held<P>,
        noted: Noted,
    ) {
        let on_primary = held.role == Role::Primary;
        let pinned_before = self.state.is_pinned();
        if on_primary && (reply.wrote.is_some() || attempt.run.reason == Reason::Learned) {
            // Whatever it was taken for.
            self.state.note_write();
        }
        if reply.begun_none {
            self.state.spare_next();
        }
        let wrote = self.state.learn(&request.intent, reply.transaction, reply.failed, on_primary);
        if !request.intent.effects.is_empty() {
            self.state.learn_part(&reply.done, reply.begun_none);
            self.note_changed(&request.intent, reply);
            self.learn_effects(request, reply, pinned_before);
            let done = reply.effects(&request.intent);
            if !done.is_empty() && request.intent.statements > 1 {
                Box::pin(self.adopt_tokens_among(done)).await;
            }
        }
        if wrote {
            self.wrote(&held, reply, noted);
        } else if self.is_monotonic_read(&request.intent, attempt, on_primary) {
            self.read(&held);
        }
        if self.ran_unread_code(attempt.definitions) {
            held.doubt();
        }
        self.publish_changed(Some(held.address()));
        let reason = attempt.run.reason;
        let now = Instant::now();
        if request.intent.access == Access::Read {
            self.count_read(reason == Reason::Transaction);
        }
        self.known(held.address(), held.role).meter.statement(attempt.run.access, reason);
        let took = now.duration_since(attempt.began);
        self.cluster.metrics.answered(attempt.run.access, attempt.waited, took);
        // A driver prepares the question where the last statement went ahead of asking it.
        let fingerprint = request.intent.fingerprint;
        let way = attempt.way();
        if self.frontend.runs_any(request) {
            self.route.note(held.address(), fingerprint, way);
            self.route.note_misspelt(&request.intent.hints.unknown);
        } else {
            let goes_on = self.state.transaction == Transaction::Unit;
            self.route.note_prepared(fingerprint, way, goes_on);
        }
        self.log_if_slow(request, attempt, held.address(), took);
        self.cluster.recent.add(|| Routed {
            at: SystemTime::now(),
            fingerprint,
            node: held.address().clone(),
            access: attempt.run.access,
            reason,
            why: attempt.why,
            waited: attempt.waited,
            took,
        });
        self.note_previous(&request.intent, held.role, reply.told_id);
        if !reply.failed && request.intent.effects.contains(&Effect::Discard(Discard::All)) {
            self.forget_previous(&held);
        }
        if reply.lost {
            self.cluster.topology.report(held.address(), Traffic::Broken);
            drop(held);
            return self.state.abort_lost();
        }
        self.keep_or_release(held, request, reply.warned, now).await;
    }

    /// One line for a statement that took longer than `log.statements_over`: by its fingerprint,
    /// never with its literals.
    fn log_if_slow(&self, request: &Request<P::Wire>, attempt: &Attempt, node: &str, took: Duration) {
        if self.cluster.is_slow(took) {
            tracing::warn!(
                cluster = %self.cluster.name,
                node,
                user = %self.registered.entry.user,
                database = %self.registered.entry.shown_database(),
                access = attempt.run.access.label(),
                reason = attempt.run.reason.label(),
                ?took,
                waited = ?attempt.waited,
                fingerprint = format_args!("{:016x}", request.intent.fingerprint),
                "slow statement"
            );
        }
    }

    fn learn_effects(&mut self, request: &Request<P::Wire>, reply: &Reply, pinned_before: bool) {
        for effect in &request.intent.effects {
            let is_done = || reply.has_done(&request.intent, effect);
            match effect {
                Effect::UseDatabase(name) if is_done() => self.registered.entry.set_schema(name),
                Effect::NeedsPrevious if !P::FORGETS_PREVIOUS => {
                    self.database.sequences_matter.store(true, Ordering::Relaxed);
                }
                Effect::DrawsSequence if self.database.sequences_matter.load(Ordering::Relaxed) => {
                    if !self.state.is_pinned_by(PinReason::Sequence) {
                        self.cluster.metrics.pin(PinReason::Sequence);
                    }
                    self.state.pin(PinReason::Sequence);
                }
                Effect::Pin(reason) => self.cluster.metrics.pin(*reason),
                Effect::Assigns { .. } if self.state.is_pinned_by(PinReason::UserVariable) => {
                    self.cluster.metrics.pin(PinReason::UserVariable);
                }
                Effect::Touches if !pinned_before => self.cluster.metrics.pin(PinReason::Function),
                _ => {}
            }
        }
    }

    async fn keep_or_release(
        &mut self,
        mut held: Held<P>,
        request: &Request<P::Wire>,
        warned: bool,
        now: Instant,
    ) {
        let keeps =
            self.state.transaction != Transaction::Idle || (self.state.is_pinned() && self.kept.is_none());
        let belongs = held.role == Role::Primary || self.state.is_pinned_by(PinReason::HoldCursor);
        if keeps && (self.state.transaction != Transaction::Idle || belongs) {
            self.kept = Some(held);
            self.note_last_kept(&request.intent);
            return;
        }
        if held.take_cancelled().is_some() && !self.is_done_with_cancel(&mut held).await {
            held.release(Fate::Close, now);
            return;
        }
        let Some(held) = self.keep_softly(held) else { return self.note_last_kept(&request.intent) };
        let Some(mut held) = self.set_aside(held, &request.intent, warned) else { return };
        if held.backend().owes() {
            Box::pin(self.hand_over(&mut held)).await;
        }
        let fate = if held.backend().is_clean() { Fate::Reuse } else { Fate::Reset };
        held.release(fate, now);
    }
}

/// `limits.statement_timeout`: the server is asked to cancel what takes longer, and the client gets
/// the server's own error for it.
async fn limited<P: Protocol>(
    exchange: impl Future<Output = Result<Reply, Fault>>,
    left: Duration,
    cluster: &Arc<Cluster<P>>,
    entry: &Arc<Entry>,
) -> Result<Reply, Fault> {
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        result = &mut exchange => return result,
        () = tokio::time::sleep(left) => {}
    }
    // At once, while it is this statement that runs there.
    if let Some(cancelling) = entry.begin_cancel(Ending::STATEMENT.ends) {
        let (cluster, identity) = (cluster.clone(), cluster.identity_of(entry));
        tokio::spawn(async move { cluster.cancel(cancelling, &identity, Ending::STATEMENT).await });
    }
    exchange.await
}
