//! What the very last statement left in its connection, for the next one to ask for.
//!
//! In MySQL SHOW WARNINGS, ROW_COUNT() and FOUND_ROWS() speak of the statement before, wherever it
//! ran: a read on a replica as well. A connection in which it left warnings or an error is set
//! aside until the next statement, as long as nobody waits for one; where numbers of rows were
//! asked for before, every one is.

use std::{sync::atomic::Ordering, time::Instant};

use super::{Session, execute::Attempt};
use crate::{
    pool::{Fate, Held},
    protocol::{Backend, Protocol, Transaction},
    refusal::{Refusal, RefusalKind},
    sql::{
        Access, Effect, Intent,
        effects::{Discard, Left},
    },
    topology::{Node, Snapshot, State},
};

/// Where the last statement's diagnostics are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Last {
    /// No server has run one, or the proxy answered it.
    #[default]
    Nothing,
    /// In the connection that the session keeps for other reasons.
    Kept,
    /// In the connection set aside.
    Aside,
    /// In one that was given back; `warned`: there was something to see.
    Gone { warned: bool },
}

/// What a request asks for of the statement before.
pub(super) fn asks_last(intent: &Intent) -> Option<Left> {
    intent.effects.iter().find_map(|effect| match effect {
        Effect::NeedsLast(left) => Some(*left),
        _ => None,
    })
}

/// Whether a request asks for LAST_INSERT_ID(), which outlives other statements.
pub(super) fn asks_previous(intent: &Intent) -> bool {
    intent.effects.contains(&Effect::NeedsPrevious)
}

/// Whether a request leaves alone what the statement before left: it asks for that, or prepares a
/// statement that will, which has to be done where it is.
pub(super) fn keeps_last(intent: &Intent) -> bool {
    asks_last(intent).is_some() || intent.effects.iter().any(|effect| matches!(effect, Effect::AsksLater(_)))
}

impl<P: Protocol> Session<P> {
    /// The proxy answered a statement by itself: it left nothing.
    pub(super) fn forget_last(&mut self) {
        self.release_aside();
        self.last = Last::Nothing;
    }

    /// Gives back the connection that was set aside.
    pub(super) fn release_aside(&mut self) {
        if let Some(mut held) = self.aside.take() {
            held.pool.take_back(&self.registered.entry);
            let forgotten = held.backend().is_fresh() && !held.backend().owes();
            let fate = if forgotten { Fate::Reuse } else { Fate::Close };
            held.release(fate, Instant::now());
            self.last = Last::Gone { warned: true };
        }
    }

    /// Whether the connection that was set aside has something that is to be carried on.
    pub(super) fn aside_owes(&mut self) -> bool {
        self.aside.as_mut().is_some_and(|held| held.backend().owes())
    }

    /// As [`Self::release_aside`], behind what is to be carried on. Not earlier: asking for that wipes out what
    /// the last statement left.
    pub(super) async fn give_up_aside(&mut self) {
        if let Some(mut held) = self.aside.take() {
            self.hand_over(&mut held).await;
            self.aside = Some(held);
        }
        self.release_aside();
    }

    /// Carries on what was left in a connection. Where its server is gone, so is that, as it would be for a
    /// client of that server.
    pub(super) async fn hand_over(&mut self, held: &mut Held<P>) {
        let timeout = self.config.load().monitor.timeout;
        let handed = tokio::time::timeout(timeout, held.backend().hand_over(&mut self.frontend)).await;
        if !matches!(handed, Ok(Ok(()))) {
            tracing::info!(cluster = %self.cluster.name, node = %held.address(), "lost what a statement had left there");
        }
    }

    /// A node that is drained, or may not be used any more, gets its connection back.
    pub(super) fn release_aside_if_barred(&mut self, snapshot: &Snapshot) {
        let Some(held) = &self.aside else { return };
        let draining = |node: &Node| matches!(node.state, State::Draining);
        if snapshot.forbids(held.address(), held.role) || snapshot.find(held.address()).is_some_and(draining)
        {
            self.release_aside();
        }
    }

    /// The connection set aside, for who asks for what is in it; given back for everybody else.
    pub(super) fn take_aside(&mut self, intent: &Intent, attempt: &Attempt) -> Option<Held<P>> {
        if self.aside.is_some() && (attempt.again || !keeps_last(intent)) {
            self.release_aside();
        }
        let held = self.aside.take()?;
        held.pool.take_back(&self.registered.entry);
        Some(held)
    }

    /// A question for what the last statement left, which was nothing: any connection that is made
    /// to forget answers it.
    pub(super) fn asks_for_nothing(&self, intent: &Intent) -> bool {
        let none = matches!(self.last, Last::Nothing | Last::Gone { .. });
        none && self.state.transaction == Transaction::Idle && asks_last(intent).is_some()
    }

    /// Whether what a request asks for is lost, and its answer would be another statement's.
    pub(super) fn is_last_lost(&mut self, intent: &Intent) -> bool {
        let Some(left) = asks_last(intent) else { return false };
        if left != Left::Diagnostics {
            self.database.counts_matter.store(true, Ordering::Relaxed);
        }
        let snapshot = self.snapshot();
        self.release_aside_if_barred(&snapshot);
        if self.aside.as_mut().is_some_and(|held| !held.backend().is_fresh()) {
            self.release_aside();
        }
        match self.last {
            Last::Nothing | Last::Kept => false,
            Last::Aside => asks_previous(intent) && !self.tells_no_id_aside(),
            Last::Gone { warned } => warned || left != Left::Diagnostics,
        }
    }

    /// Whether the connection set aside tells of LAST_INSERT_ID() what the session has, which is none: one of its
    /// own is in another connection, or was.
    fn tells_no_id_aside(&mut self) -> bool {
        let session = self.registered.entry.id;
        let none = !self.has_drawn();
        none && self.aside.as_mut().is_some_and(|held| held.backend().has_no_id_of_others(session))
    }

    /// The connection of an answered request that the session keeps anyway has what it left.
    pub(super) fn note_last_kept(&mut self, intent: &Intent) {
        if !keeps_last(intent) {
            self.last = Last::Kept;
        }
    }

    /// Sets the connection of an answered request aside; gives it back if there is no cause to.
    pub(super) fn set_aside(&mut self, mut held: Held<P>, intent: &Intent, warned: bool) -> Option<Held<P>> {
        if !P::FORGETS_PREVIOUS || intent.effects.contains(&Effect::Discard(Discard::All)) {
            self.last = Last::Nothing;
            return Some(held);
        }
        let asks_later = |left| intent.effects.contains(&Effect::AsksLater(left));
        if asks_later(Left::Counts) || asks_later(Left::Found) {
            self.database.counts_matter.store(true, Ordering::Relaxed);
        }
        let asked = keeps_last(intent);
        if asked && self.last != Last::Aside && !warned {
            // It was told that there is nothing.
            return Some(held);
        }
        let has_cause = warned || asked || self.database.counts_matter.load(Ordering::Relaxed);
        self.last = Last::Gone { warned: warned || asked };
        let usable = held.backend().is_clean() || held.backend().owes();
        if !has_cause || !usable || held.pool.is_wanted() {
            return Some(held);
        }
        held.pool.lend(&self.registered.entry);
        // Who began to wait in between has not seen this offer.
        if held.pool.is_wanted() {
            held.pool.take_back(&self.registered.entry);
            return Some(held);
        }
        self.last = Last::Aside;
        self.aside = Some(held);
        None
    }

    /// A question for nothing runs wherever reads do, unless it asks for an id beside it.
    pub(super) fn apply_last(&self, intent: &Intent, attempt: &mut Attempt) {
        attempt.forget_last = self.asks_for_nothing(intent);
        if attempt.forget_last && !asks_previous(intent) {
            attempt.run.access = Access::Read;
        }
    }

    /// A statement that asks for values that are lost gets an error, never another one's.
    pub(super) fn last_lost(&mut self, intent: &Intent) -> Option<Refusal> {
        if !P::FORGETS_PREVIOUS || !self.is_last_lost(intent) {
            return None;
        }
        let refusal = Refusal::new(
            RefusalKind::Internal,
            "what the previous statement left in its server connection was lost: the connection was given back",
        );
        Some(
            refusal
                .with_hint("Sessions keep their connections from now on, as long as nobody waits for one."),
        )
    }
}
