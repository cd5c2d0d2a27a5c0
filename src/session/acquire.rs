//! Finds the connection for a request: the one that its session keeps, or one from a pool.

use std::time::Instant;

use super::{
    Session,
    execute::Attempt,
    hold::GRACE,
    last::{asks_previous, keeps_last},
};
use crate::{
    pool::{Fate, Held},
    protocol::{Backend, Frontend, Protocol, Request, Terms, Transaction},
    refusal::{Refusal, RefusalKind},
    sql::{Access, Intent, hints::Target},
    standing::Watch,
    topology::{Node, Role, State},
};

/// What the kept connection is to an attempt.
enum Fit<P: Protocol> {
    Serves(Held<P>),
    /// Another one serves it; this one is kept for later.
    Stays(Held<P>),
    /// What a pipeline has read there is answered; the rest of it writes (hard case 13).
    EndsUnit(Held<P>),
    Gone,
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
        if self.aside_owes() && !keeps_last(&request.intent) {
            Box::pin(self.give_up_aside()).await;
        }
        if let Some(aside) = self.take_aside(&request.intent, attempt) {
            return Ok(aside);
        }
        if attempt.forget_last && !asks_previous(&request.intent) {
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
        // Nearly always it is as it was for the transaction's statement before.
        if !kept.is_fit_in(self.cluster.topology.version()) && self.is_barred(&mut kept) {
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
                    || self.still_serves(&kept, &request.intent, attempt));
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

    /// Whether the kept connection's node may not be used any more, or not for this.
    fn is_barred(&self, kept: &mut Held<P>) -> bool {
        let snapshot = self.cluster.topology.load();
        if snapshot.forbids(kept.address(), kept.role) {
            return true;
        }
        let draining = |node: &Node| matches!(node.state, State::Draining);
        if snapshot.find(kept.address()).is_some_and(draining) {
            // Draining waits for transactions, not for what a session keeps between them.
            return self.state.transaction == Transaction::Idle;
        }
        kept.note_fit_in(snapshot.version);
        false
    }

    /// Ends a pipeline that has only read. Its connection comes back where it has failed: nothing of the
    /// rest may run.
    ///
    /// # Errors
    /// When an answer that is due was lost.
    async fn end_unit(&mut self, mut kept: Held<P>, intent: &Intent) -> Result<Option<Held<P>>, Refusal> {
        let pool = kept.pool.clone();
        let entry = self.registered.entry.clone();
        let terms = Terms::of_rest(entry.id, Watch::new(&pool.standing, &entry));
        match kept.backend().settle_unit(&mut self.frontend, &terms).await {
            Ok(true) => return Ok(Some(kept)),
            Ok(false) => {}
            Err(_) => {
                drop(kept);
                return Err(self.lose_kept(Some(intent)));
            }
        }
        let fate = if finish_unit(&mut kept).await { Fate::Reuse } else { Fate::Close };
        kept.release(fate, Instant::now());
        self.state.transaction = Transaction::Idle;
        Ok(None)
    }

    /// The read-only transaction on a replica has ended: what comes is no part of it. On the primary the
    /// server ends it by itself.
    pub(super) async fn leave_outdone(&mut self) {
        let away = self.kept.take_if(|kept| kept.role != Role::Primary);
        if away.is_none() && !self.state.is_holding() {
            return;
        }
        self.state.outdo();
        self.forget_last();
        if let Some(mut kept) = away {
            if kept.backend().owes() {
                self.hand_over(&mut kept).await;
            }
            // Nobody waits for what was read to end.
            tokio::spawn(end_reading(kept));
        }
    }

    /// Whether the replica that a transaction reads from may still serve its reads: others may have
    /// written what they have to see.
    fn still_serves(&mut self, kept: &Held<P>, intent: &Intent, attempt: &Attempt) -> bool {
        let snapshot = self.snapshot();
        self.renew_floors(&snapshot);
        let target = Target::Node((&**kept.address()).into());
        let choice = self.ask_route(intent, attempt, &snapshot, Some(&target), Instant::now());
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
}

/// Ends a transaction that has only read and goes on elsewhere.
async fn end_reading<P: Protocol>(mut held: Held<P>) {
    let ended = finish_unit(&mut held).await;
    let fate = if ended && held.backend().is_clean() { Fate::Reuse } else { Fate::Close };
    held.release(fate, Instant::now());
}

/// Ends what is open on a connection, as [`Backend::finish_unit`] does. `false`: it could not be in time.
pub(super) async fn finish_unit<P: Protocol>(held: &mut Held<P>) -> bool {
    matches!(tokio::time::timeout(GRACE, held.backend().finish_unit()).await, Ok(Ok(())))
}
