//! A transaction that is gone with its server, and what the client has to hear of it.

use super::{Lost, Own, State, Step, ends_transaction};
use crate::{
    protocol::Transaction,
    sql::{Effect, Intent, effects::TransactionModes},
};

impl State {
    /// What becomes of a request in a transaction that no server has any more.
    pub(super) fn plan_lost(&mut self, intent: &Intent, lost: Lost) -> Step {
        let single = if intent.statements == 1 { intent.effects.first() } else { None };
        match (lost, single) {
            (_, Some(Effect::Rollback { chain })) | (Lost::Told, Some(Effect::Commit { chain })) => {
                self.end_lost();
                if *chain {
                    self.hold(TransactionModes::default(), "BEGIN", true);
                    self.transaction = Transaction::Open;
                }
                Step::Answer(Own::RolledBack)
            }
            (Lost::Untold, Some(Effect::Commit { .. } | Effect::PrepareTransaction | Effect::CommitXa)) => {
                self.end_lost();
                Step::Answer(Own::Lost)
            }
            (Lost::Untold, _) => {
                self.mark_told();
                Step::Answer(Own::Lost)
            }
            (Lost::Told, _) if intent.statements == 0 => Step::Answer(Own::Done),
            (Lost::Told, _) => Step::Answer(Own::Aborted),
        }
    }

    /// The server ended the open transaction with its connection, and the client was told so.
    pub fn abort_lost(&mut self) {
        self.forget_server();
        self.lost = Some(Lost::Told);
        self.transaction = Transaction::Failed;
    }

    fn end_lost(&mut self) {
        self.lost = None;
        self.own.end(false);
        self.transaction = Transaction::Idle;
    }

    fn mark_told(&mut self) {
        if self.transaction == Transaction::Unit {
            // Over with the Sync that the client sends anyway.
            self.end_lost();
        } else {
            self.lost = Some(Lost::Told);
            self.transaction = Transaction::Failed;
        }
    }

    /// The server of the open transaction is gone. The client hears of it in answer to the request
    /// of `intent`, or else to its next one.
    pub fn lose_transaction(&mut self, intent: Option<&Intent>) {
        let was = self.transaction;
        self.forget_server();
        if was == Transaction::Idle {
            return;
        }
        self.transaction = was;
        match intent {
            None => self.lost = Some(Lost::Untold),
            Some(intent) if ends_transaction(intent) => self.end_lost(),
            Some(_) => self.mark_told(),
        }
    }

    /// What was held back could not be begun on a server, and the client hears of it in answer to the
    /// request of `intent`. What a server keeps for the session stays.
    pub fn lose_unseen(&mut self, intent: &Intent) {
        self.held = None;
        self.reading = None;
        self.modes = TransactionModes::default();
        match self.transaction {
            // It only said what the next transaction is to be.
            Transaction::Idle => {}
            _ if ends_transaction(intent) => self.end_lost(),
            _ => self.mark_told(),
        }
    }
}
