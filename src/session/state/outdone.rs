//! What ends an open transaction before it runs: MySQL's implicit commits.
//!
//! Where a transaction may write, the server sees to that by itself. A read-only one is a replica's, and what
//! follows it is not: it ends there, and its successor goes where it would go without it.

use super::State;
use crate::{
    protocol::{Begins, Transaction},
    sql::{
        Effect, Intent, Reason,
        effects::{PinReason, TransactionModes},
    },
};

impl State {
    /// Whether a request ends the read-only transaction that is open, and is no part of a read-only one
    /// itself.
    pub fn is_outdone_by(&self, intent: &Intent) -> bool {
        if !intent.outdoes || self.lost.is_some() {
            return false;
        }
        let (modes, begun, open) = match &self.held {
            Some(held) => (held.modes, held.begun, true),
            None => (self.modes, true, self.transaction == Transaction::Open),
        };
        let read_only = modes.read_only.or(self.defaults.read_only) == Some(true);
        open && read_only && self.leaves_read_only(intent, begun)
    }

    /// `begun`: there is more to end than what was said of the next transaction, which BEGIN goes by.
    fn leaves_read_only(&self, intent: &Intent, begun: bool) -> bool {
        match &intent.effects[..] {
            [Effect::Commit { .. } | Effect::Rollback { .. }, ..] => intent.statements > 1,
            [Effect::Begin(modes), ..] => {
                begun && modes.read_only.map_or(self.begins_writing(), |only| !only)
            }
            [Effect::BeginUnknown, ..] => begun && self.begins_writing(),
            _ => true,
        }
    }

    /// Whether a transaction may write that begins within a read-only one and does not say so.
    fn begins_writing(&self) -> bool {
        self.begins == Begins::Anew && self.defaults.read_only != Some(true)
    }

    /// The transaction has ended, and nobody is told.
    pub fn outdo(&mut self) {
        self.held = None;
        self.reading = None;
        self.modes = TransactionModes::default();
        self.transaction = Transaction::Idle;
        self.own.end(true);
    }

    /// Whether a request may commit what the open transaction has done, also where another one is open
    /// behind it.
    pub(in crate::session) fn may_commit(&self, intent: &Intent) -> bool {
        let rolls_back =
            intent.statements == 1 && matches!(intent.effects[..], [Effect::Rollback { .. }, ..]);
        let implicitly = intent.outdoes || (!intent.joins && intent.reason != Reason::Transaction);
        super::ends_transaction(intent)
            || (self.sets_next && ((implicitly && !rolls_back) || may_turn_on_autocommit(intent)))
    }
}

/// `SET autocommit = 1` commits what is open (MySQL). Which variable is set to a value that only the server
/// knows is not told.
fn may_turn_on_autocommit(intent: &Intent) -> bool {
    intent.effects.iter().any(|effect| match effect {
        Effect::Set { name, .. } | Effect::Reset { name } => &**name == "autocommit",
        Effect::Pin(PinReason::Setting) => true,
        _ => false,
    })
}
