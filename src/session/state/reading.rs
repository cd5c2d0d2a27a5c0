//! `routing.transaction_reads`: what a transaction reads before it writes, it reads on a replica.
//!
//! The replica has a transaction of its own, begun by the client's BEGIN, so that the client sees
//! nothing but a server's answers. The first statement that is no plain read ends it unseen and
//! begins again on the primary: under READ COMMITTED the reads before it have left nothing behind.

use super::{Held, Run, State, Step};
use crate::{
    config::TransactionReads,
    protocol::Transaction,
    sql::{Access, Effect, Intent, Isolation, Reason, hints::Target},
};

impl State {
    /// The transaction has only read, on a replica.
    pub fn is_reading(&self) -> bool {
        self.reading.is_some() && self.held.is_none()
    }

    /// The transaction's server on the replicas' side is given up: it begins again with its next
    /// statement.
    pub fn begin_again(&mut self) {
        if let Some(held) = &self.reading {
            self.transaction = Transaction::Open;
            self.held = Some(held.clone());
        }
    }

    /// Where a statement of a transaction that is held back belongs.
    pub(super) fn plan_first(&mut self, intent: &Intent) -> Run {
        let held = self.held.as_ref().expect("the caller has looked");
        let reads = self.may_read_ahead(intent) && !held.local && held.modes.read_only.is_none();
        if !reads {
            self.reading = None;
            return self.run(intent, self.transaction_access(), true);
        }
        self.reading = Some(held.clone());
        Run { asked_read_only: false, ..self.run(intent, Access::Read, true) }
    }

    /// As [`Self::plan_first`] where no BEGIN is needed (MySQL's `autocommit = 0`).
    pub(super) fn plan_implicit(&mut self, intent: &Intent) -> Run {
        if !self.may_read_ahead(intent) {
            return self.run(intent, self.transaction_access(), true);
        }
        self.reading = Some(Held { begun: true, ..Held::default() });
        Run { asked_read_only: false, ..self.run(intent, Access::Read, true) }
    }

    /// A statement of a transaction that has only read: it stays, or the transaction moves.
    pub(super) fn plan_reading(&mut self, intent: &Intent) -> Step {
        let ends = matches!(
            intent.effects[..],
            [Effect::Commit { chain: false } | Effect::Rollback { chain: false }]
        ) && intent.statements == 1;
        let stays = ends || self.transaction == Transaction::Failed || is_plain_read(intent);
        let access = if stays { Access::Read } else { self.transaction_access() };
        Step::Run(Run { asked_read_only: false, ..self.run(intent, access, true) })
    }

    fn may_read_ahead(&self, intent: &Intent) -> bool {
        let isolation = self.modes.isolation.or(self.defaults.isolation);
        let snapshot = match isolation {
            // Each dialect's own default.
            None => self.sets_next,
            Some(Isolation::ReadCommitted | Isolation::ReadUncommitted) => false,
            Some(Isolation::RepeatableRead) => true,
            Some(Isolation::Serializable) => return false,
        };
        let allowed = match self.transaction_reads {
            TransactionReads::Primary => false,
            TransactionReads::Replica => !snapshot,
            TransactionReads::ReplicaRepeatableRead => true,
        };
        allowed && self.pins == 0 && self.transaction_access() == Access::Write && is_plain_read(intent)
    }
}

/// Leaves nothing behind that a later statement of the transaction could ask for.
fn is_plain_read(intent: &Intent) -> bool {
    intent.access == Access::Read
        && intent.reason == Reason::Read
        && intent.effects.is_empty()
        && intent.hints.target != Some(Target::Primary)
}
