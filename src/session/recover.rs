//! What an error, a refusal or a lost server means for a request: another attempt, or an answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Session,
    acquire::finish_unit,
    cancel::Call,
    execute::{Attempt, Next},
    state::ends_transaction,
};
use crate::{
    pool::{Fate, Held},
    protocol::{
        Answer, Backend, Fault, Forwarded, Frontend, Protocol, Refused, RefusedCause, Request, Transaction,
    },
    refusal::{Refusal, RefusalKind},
    route::Floor,
    sql::{Access, Dialect, Effect, Intent, Reason},
    standing,
    topology::{Position, Role, State, board::Traffic},
};

/// How long a stopping server may take to be seen as stopped before its 57P01 is taken to have
/// been meant for the client.
const STOP_SEEN_WITHIN: Duration = Duration::from_secs(5);

impl<P: Protocol> Session<P> {
    /// Decides what a failed attempt means.
    pub(super) async fn recover(
        &mut self,
        request: &Request<P::Wire>,
        attempt: &mut Attempt,
        fault: Fault,
        held: Held<P>,
    ) -> Next {
        match fault {
            fault @ (Fault::Refused(_) | Fault::Server { .. }) if self.is_killed() => {
                self.end_killed(fault, held).await
            }
            Fault::Refused(refused) => self.refused(request, attempt, refused, held).await,
            Fault::Server { sent, forwarded, error } => {
                self.server_lost(request, attempt, Loss { sent, forwarded, error }, held).await
            }
            other => Next::Over(Err(other)),
        }
    }

    /// What was begun ahead of a statement goes ahead of its next attempt, too: on a connection that is kept it
    /// is ended before. `false`: it could not be.
    async fn ends_what_went_ahead(&self, held: &mut Held<P>) -> bool {
        let begun = self.state.is_holding() && held.backend().transaction() != Transaction::Idle;
        !begun || finish_unit(held).await
    }

    fn is_killed(&self) -> bool {
        self.registered.entry.is_called(Call::Kill)
    }

    /// Says why to a client that was killed. MySQL's servers and MariaDB's say nothing.
    pub(super) async fn tell_killed(&mut self) {
        if P::DIALECT == Dialect::Postgres {
            self.dismiss(&killed_refusal()).await;
        }
    }

    /// Somebody has ended the session: its statement is not asked again.
    async fn end_killed(&mut self, fault: Fault, held: Held<P>) -> Next {
        self.lose_previous(&held);
        drop(held);
        let torn = matches!(fault, Fault::Server { forwarded: Forwarded::Torn, .. });
        if !torn {
            self.tell_killed().await;
        }
        Next::Over(Err(fault))
    }

    async fn refused(
        &mut self,
        request: &Request<P::Wire>,
        attempt: &mut Attempt,
        refused: Refused,
        mut held: Held<P>,
    ) -> Next {
        let (node, address, role) = (held.node, held.address().clone(), held.role);
        self.lose_previous(&held);
        if self.ran_unread_code(attempt.definitions) {
            held.doubt();
        }
        let on_primary = role == Role::Primary;
        let elsewhere = match refused.cause {
            RefusedCause::Stopping => {
                drop(held);
                if self.state.is_reading() {
                    self.state.begin_again();
                }
                self.cluster.topology.report(&address, Traffic::Broken);
                self.is_seen_to_yield(&address, role).await
            }
            cause => {
                let elsewhere = self.another_may_differ(cause, attempt, &held).await;
                let yields = cause == RefusedCause::Writes && on_primary && !self.state.is_pinned();
                if !elsewhere {
                    self.settle_refused(held, attempt, &request.intent);
                } else if attempt.kept && !yields {
                    if !self.ends_what_went_ahead(&mut held).await {
                        drop(held);
                        let refusal = self.lose_kept(Some(&request.intent));
                        return Next::Over(self.refuse(request, refusal).await);
                    }
                    self.kept = Some(held);
                    self.note_last_kept(&request.intent);
                } else {
                    // What was begun ahead of the statement is open there.
                    let backend = held.backend();
                    let clean = backend.is_clean() && backend.transaction() == Transaction::Idle;
                    held.release(if clean { Fate::Reuse } else { Fate::Reset }, Instant::now());
                }
                elsewhere
            }
        };
        if !elsewhere {
            self.count(&request.intent, attempt, &address, role);
            let transaction = self.after_refusal(&refused, &request.intent);
            return Next::Over(self.frontend.deliver(request, refused, transaction).await);
        }
        match refused.cause {
            RefusedCause::Stopping => {
                self.cluster.metrics.retry("stopping");
                attempt.resent = true;
                attempt.exclude.push(node);
            }
            RefusedCause::Writes if on_primary => {
                self.cluster.metrics.retry("read_only");
                attempt.resent = true;
            }
            RefusedCause::Writes => {
                let text = self.frontend.raw_text(request).to_vec();
                self.cluster.classifier.learn(self.database.id(), &text, Instant::now());
                self.reroute(attempt, "writes", Reason::Learned);
            }
            RefusedCause::Standby => self.reroute(attempt, "standby", attempt.run.reason),
            RefusedCause::MaybeStale => self.reroute(attempt, "stale", attempt.run.reason),
            RefusedCause::Setting => self.reroute(attempt, "setting", attempt.run.reason),
            RefusedCause::Replan => self.cluster.metrics.retry("replan"),
        }
        attempt.refused = Some(refused);
        Next::Again
    }

    /// Whether the statement may go to another server after this one's error, or to this one again.
    async fn another_may_differ(&self, cause: RefusedCause, attempt: &Attempt, held: &Held<P>) -> bool {
        let (address, role) = (held.address(), held.role);
        match cause {
            RefusedCause::Replan => true,
            RefusedCause::Writes if role == Role::Primary => {
                if attempt.run.asked_read_only || self.state.defaults.read_only == Some(true) {
                    return false;
                }
                self.cluster.topology.report(address, Traffic::ReadOnly);
                self.is_seen_to_yield(address, role).await
            }
            cause => role != Role::Primary && self.primary_may_differ(cause, attempt, address),
        }
    }

    /// The refusal is the client's answer. A transaction that was begun ahead of it is open, or has
    /// failed, where it is.
    fn settle_refused(&mut self, mut held: Held<P>, attempt: &Attempt, intent: &Intent) {
        let open = self.state.is_begun_unseen() && held.backend().transaction() != Transaction::Idle;
        let goes_on = open && P::DIALECT == Dialect::Mysql;
        if open && (goes_on || attempt.kept) {
            let transaction = if goes_on { Transaction::Open } else { Transaction::Failed };
            self.state.learn(intent, transaction, true, held.role == Role::Primary);
        }
        if attempt.kept || goes_on {
            self.kept = Some(held);
            self.note_last_kept(intent);
        } else if let Some(held) = self.set_aside(held, intent, true) {
            held.release(Fate::Reuse, Instant::now());
        }
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
                let Some(has) = node.and_then(|node| node.position.as_ref()) else { return true };
                let behind = |position: &Position| snapshot.covers(has, position) != Some(true);
                // What the session itself has written may be newer than what probes have seen.
                let behind_session = match &self.state.floor {
                    Floor::None => false,
                    Floor::At(position) => behind(position),
                    _ => true,
                };
                behind_session || snapshot.newest().is_none_or(behind)
            }
            RefusedCause::Stopping | RefusedCause::Replan => false,
        }
    }

    /// Whether a server that ended a statement with 57P01, or refused it as read-only, is then seen
    /// to stop or to lose its role; if it goes on serving, the error was meant for the client (hard
    /// case 6).
    async fn is_seen_to_yield(&self, address: &str, role: Role) -> bool {
        let topology = &self.cluster.topology;
        let before = topology.probes.current();
        let deadline = tokio::time::Instant::now() + STOP_SEEN_WITHIN;
        loop {
            let changed = topology.changed.notified();
            let snapshot = topology.load_full();
            let Some(node) = snapshot.find(address) else { return true };
            if node.role != role || matches!(node.state, State::Down | State::Fenced(_)) {
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

    /// The connection broke, or its server may no longer be used.
    async fn server_lost(
        &mut self,
        request: &Request<P::Wire>,
        attempt: &mut Attempt,
        loss: Loss,
        mut held: Held<P>,
    ) -> Next {
        let (node, address, role) = (held.node, held.address().clone(), held.role);
        let commit = self.lost_commit(request, &mut held);
        self.lose_previous(&held);
        drop(held);
        self.cluster.topology.report(&address, Traffic::Broken);
        tracing::debug!(%address, error = %loss.error, "lost a server connection");
        if self.state.is_reading() {
            self.state.begin_again();
        }
        let intent = &request.intent;
        // Of a transaction that is only begun nothing can have been committed.
        let first = self.state.is_holding();
        let open = (attempt.run.in_transaction || self.state.transaction != Transaction::Idle) && !first;
        let pin_lost = attempt.kept && self.state.is_pinned();
        let begun = self.state.is_begun_unseen();
        let undone = begun && intent.plain && intent.statements == 1 && !ends_transaction(intent);
        let harmless = attempt.run.access == Access::Read || !loss.sent || role != Role::Primary || undone;
        if !open && !pin_lost && harmless && loss.forwarded == Forwarded::Nothing {
            self.cluster.metrics.retry("server_lost");
            if attempt.run.access == Access::Read {
                attempt.exclude.push(node);
            }
            return Next::Again;
        }
        if open && !pin_lost && is_rollback(intent) && loss.forwarded == Forwarded::Nothing {
            // Whatever the server heard of it: the transaction is gone.
            self.state.forget_server();
            return Next::Over(
                self.frontend.answer(request, Answer::RolledBack, self.state.transaction).await,
            );
        }
        // What a replica refused as a write writes, whatever it was taken for.
        let learned = attempt.run.reason == Reason::Learned && !open;
        let commits = learned || self.state.commits(intent).is_some();
        let in_doubt = loss.sent && role == Role::Primary && commits;
        if let Some(commit) = commit
            && in_doubt
            && !pin_lost
            && loss.forwarded == Forwarded::Nothing
        {
            return self.settle_commit(request, attempt, commit).await;
        }
        let refusal = if in_doubt { in_doubt_refusal(&address) } else { lost_refusal(&address) };
        if loss.forwarded == Forwarded::Torn {
            self.state.forget_server();
            return Next::Over(Err(Fault::Client(loss.error)));
        }
        if pin_lost {
            self.state.forget_server();
            let refusal = Refusal { fatal: true, ..refusal };
            self.dismiss(&refusal).await;
            return Next::Over(Err(Fault::Client(loss.error)));
        }
        if open || first {
            self.state.lose_transaction(Some(intent));
        }
        Next::Over(self.refuse(request, refusal).await)
    }

    /// After an error that was kept back: what that makes of a transaction no server has begun, or that
    /// has only read.
    fn after_refusal(&mut self, refused: &Refused, intent: &Intent) -> Transaction {
        let failed = P::DIALECT == Dialect::Postgres;
        if self.state.is_holding() && (failed || refused.cause == RefusedCause::Setting) {
            self.state.lose_unseen(intent);
        } else if self.state.is_reading() && failed {
            // It has failed on its replica, and is ended there.
            self.state.transaction = Transaction::Failed;
        }
        self.state.transaction
    }

    pub(super) fn count(&mut self, intent: &Intent, attempt: &Attempt, address: &Arc<str>, role: Role) {
        self.known(address, role).meter.statement(attempt.run.access, attempt.run.reason);
        self.cluster.metrics.answered(attempt.run.access, attempt.waited, attempt.began.elapsed());
        self.route.note(address, intent.fingerprint, attempt.way());
    }

    /// No node could answer: the client gets a server's own error if there was one.
    pub(super) async fn give_up(
        &mut self,
        request: &Request<P::Wire>,
        attempt: Attempt,
        refusal: Refusal,
    ) -> Result<(), Fault> {
        if refusal.fatal {
            self.dismiss(&refusal).await;
            return Err(Fault::Client(std::io::ErrorKind::ConnectionAborted.into()));
        }
        match attempt.refused {
            Some(refused) => {
                self.route.note_refused(&refusal);
                let transaction = self.after_refusal(&refused, &request.intent);
                self.frontend.deliver(request, refused, transaction).await
            }
            None => self.refuse(request, refusal).await,
        }
    }

    /// Answers with an error of the proxy's own.
    pub(super) async fn refuse(&mut self, request: &Request<P::Wire>, refusal: Refusal) -> Result<(), Fault> {
        if P::DIALECT == Dialect::Postgres && self.registered.entry.is_called(Call::Kill) {
            // As from a server: who is killed hears of that, and of nothing else.
            self.tell_killed().await;
            return Err(standing::unsent());
        }
        self.cluster.metrics.error(refusal.kind.label());
        let asks_proxy = matches!(request.intent.effects[..], [Effect::Proxy(_)]);
        if !(asks_proxy && request.intent.statements == 1) {
            self.route.note_refused(&refusal);
        }
        tracing::info!(
            cluster = %self.cluster.name,
            user = %self.registered.entry.user,
            kind = refusal.kind.label(),
            "refused a statement: {}", refusal.message
        );
        let ends = match self.state.is_holding() {
            // To MySQL an error is no reason to give up what a server has not even begun.
            true => P::DIALECT == Dialect::Postgres,
            false => self.state.transaction == Transaction::Open,
        };
        if self.kept.is_none() && ends {
            // As after any error in a transaction; no server has anything of this one.
            self.state.lose_transaction(Some(&request.intent));
        }
        self.frontend.refuse(request, &refusal, self.state.transaction).await
    }
}

fn is_rollback(intent: &Intent) -> bool {
    intent.statements == 1 && matches!(intent.effects[..], [Effect::Rollback { chain: false }])
}

struct Loss {
    sent: bool,
    forwarded: Forwarded,
    error: std::io::Error,
}

pub(super) fn in_doubt_refusal(address: &str) -> Refusal {
    Refusal::new(
        RefusalKind::InDoubt,
        format!("the server {address} was lost before it said whether the statement was committed"),
    )
    .with_hint("Look whether it took effect before sending it again.")
}

fn killed_refusal() -> Refusal {
    Refusal::fatal(RefusalKind::ShuttingDown, "terminating connection due to administrator command")
}

fn lost_refusal(address: &str) -> Refusal {
    Refusal::new(RefusalKind::ServerLost, format!("the connection to the server {address} was lost"))
}
