//! Server connections that a session keeps softly: until another one needs them.
//!
//! What a statement left in its connection is lost when the next one runs elsewhere: MySQL's
//! LAST_INSERT_ID(), ROW_COUNT() and FOUND_ROWS(), without an error, and PostgreSQL's lastval() and
//! currval(), which a column's default may ask for where no statement shows it. A session that has
//! drawn a value therefore keeps its connection, as long as nobody waits for one (hard case 23).

use std::{sync::atomic::Ordering, time::Instant};

use super::{Session, cancel::Call, last::asks_previous};
use crate::{
    pool::{Fate, Held},
    protocol::{Backend, Protocol, Transaction},
    refusal::{Refusal, RefusalKind},
    sql::{Access, Effect, Intent, Reason},
    topology::Role,
};

/// What a session knows of the values its statements left behind.
#[derive(Debug, Default)]
pub(super) struct Previous {
    /// The kept connection, or the one about to be, has some.
    here: bool,
    /// The connection that had them was given to another session.
    lost: bool,
    /// The kept connection may be asked for.
    lent: bool,
}

impl<P: Protocol> Session<P> {
    /// Takes note of a statement that ran on the primary.
    pub(super) fn note_previous(&mut self, intent: &Intent, role: Role, told_id: bool) {
        if role != Role::Primary || intent.access == Access::Read {
            return;
        }
        let counts_rows = P::FORGETS_PREVIOUS && intent.reason == Reason::Dml;
        let draws = told_id || intent.effects.contains(&Effect::DrawsSequence);
        self.previous.here |= draws || counts_rows;
        // An UPDATE leaves LAST_INSERT_ID() as it was, which is where it was.
        self.previous.lost &= !draws;
    }

    /// Whether its statements have left values that a question means.
    pub(super) fn has_drawn(&self) -> bool {
        self.previous.here || self.previous.lost
    }

    /// Keeps a connection that nobody else wants now; gives it back otherwise.
    pub(super) fn keep_softly(&mut self, mut held: Held<P>) -> Option<Held<P>> {
        if !self.previous.here || held.role != Role::Primary || self.kept.is_some() {
            return Some(held);
        }
        if held.pool.is_wanted() || !held.backend().is_clean() {
            self.lose_previous(&held);
            return Some(held);
        }
        if !self.previous.lent {
            held.pool.lend(&self.registered.entry);
            self.previous.lent = true;
            // Who began to wait in between has not seen this offer.
            if held.pool.is_wanted() {
                self.lose_previous(&held);
                return Some(held);
            }
        }
        self.kept = Some(held);
        None
    }

    /// The connection with the values of before goes elsewhere, or is gone.
    pub(super) fn lose_previous(&mut self, held: &Held<P>) {
        if self.kept.is_some() {
            // Another one is meant: that with the values stays.
            return;
        }
        self.previous.lost |= std::mem::take(&mut self.previous.here);
        if std::mem::take(&mut self.previous.lent) {
            held.pool.take_back(&self.registered.entry);
        }
    }

    /// The session has given up what its statements left behind (DISCARD ALL, COM_RESET_CONNECTION);
    /// `held` is the connection that it did so on.
    pub(super) fn forget_previous(&mut self, held: &Held<P>) {
        if self.is_kept_softly()
            && let Some(kept) = self.kept.take()
        {
            self.lose_previous(&kept);
            kept.release(Fate::Reset, Instant::now());
        } else if self.kept.is_none() && std::mem::take(&mut self.previous.lent) {
            held.pool.take_back(&self.registered.entry);
        }
        self.previous.here = false;
        self.previous.lost = false;
    }

    /// Another session waits for a connection.
    pub(super) fn yield_kept(&mut self) {
        let entry = self.registered.entry.clone();
        if !entry.take(Call::Yield) {
            return;
        }
        self.release_aside();
        if !self.is_kept_softly() {
            // Asked in vain: it is offered again when the transaction is over.
            self.previous.lent = false;
            return;
        }
        if let Some(mut held) = self.kept.take() {
            self.lose_previous(&held);
            let fate = if held.backend().is_fresh() { Fate::Reuse } else { Fate::Close };
            held.release(fate, Instant::now());
        }
    }

    /// Nothing but the values of before holds the connection.
    pub(super) fn is_kept_softly(&self) -> bool {
        let idle = self.state.transaction == Transaction::Idle || self.state.is_holding();
        self.previous.lent && idle && !self.state.is_pinned()
    }

    /// A statement that asks for values that are lost gets an error, never another session's; from
    /// then on sessions keep their connections firmly.
    pub(super) fn lost_for(&mut self, intent: &Intent) -> Option<Refusal> {
        if let Some(refusal) = self.last_lost(intent) {
            return Some(refusal);
        }
        // PostgreSQL says by itself that there is no such value yet (55000).
        let silent = P::FORGETS_PREVIOUS && self.previous.lost;
        if !silent || !asks_previous(intent) {
            return None;
        }
        self.database.sequences_matter.store(true, Ordering::Relaxed);
        let refusal = Refusal::new(
            RefusalKind::Internal,
            "what the previous statement left in its server connection was lost: another session needed the connection",
        );
        Some(refusal.with_hint("Sessions keep their connections from now on."))
    }
}
