//! What a transaction is: its isolation, and whether it may write.

use super::{Held, State};
use crate::{
    protocol::Transaction,
    sql::{
        Effect, Intent, Isolation,
        effects::{TransactionModes, said_of_next},
    },
};

impl State {
    /// A statement failed before it could begin a transaction: what was said of the next one is still to come.
    pub fn spare_next(&mut self) {
        self.deferred |= self.held.as_ref().is_some_and(|held| !held.begun);
    }

    /// Takes note of what a server was told of the next transaction, beside other statements: it is said again
    /// wherever that one begins.
    pub(super) fn say_next(&mut self, effects: &[Effect]) {
        let Some(said) = said_of_next(effects).filter(|_| self.sets_next) else { return };
        if self.transaction != Transaction::Idle {
            return;
        }
        let modes = self.held.as_ref().map_or(said, |held| held.modes.with(said));
        self.held = set_transaction(modes).map(|statement| Held {
            modes,
            statements: vec![statement],
            ..Held::default()
        });
    }

    pub(super) fn adopt_modes(&mut self, intent: &Intent) {
        for effect in &intent.effects {
            if let Effect::Begin(modes) | Effect::SetTransaction(modes) | Effect::SetNext(modes) = effect {
                merge(&mut self.modes, *modes);
            }
        }
    }

    /// Follows a setting that decides where transactions may run.
    pub fn set_default(&mut self, name: &str, value: &str) {
        match name {
            "default_transaction_read_only" => self.defaults.read_only = parse_bool(value),
            "default_transaction_isolation" => self.defaults.isolation = Isolation::parse(value),
            // PostgreSQL's variables of these names are the current transaction's own.
            "transaction_read_only" if self.sets_next => self.defaults.read_only = parse_bool(value),
            "transaction_isolation" if self.sets_next => self.defaults.isolation = Isolation::parse(value),
            "autocommit" if self.sets_next => self.implicit = parse_bool(value) == Some(false),
            _ => {}
        }
    }

    /// A setting of all transactions to come outdoes what was said of the next one (MySQL).
    pub(super) fn outdo_next(&mut self, name: &str) {
        let Some(held) = self.held.as_mut().filter(|held| self.sets_next && !held.begun) else { return };
        held.modes = held.modes.outdone_by(name);
        held.statements = set_transaction(held.modes).into_iter().collect();
        if held.statements.is_empty() {
            self.held = None;
        }
    }
}

/// MySQL's statement that says so of the next transaction; `None` if there is nothing to say.
fn set_transaction(modes: TransactionModes) -> Option<Box<str>> {
    let isolation = modes.isolation.map(|isolation| format!("ISOLATION LEVEL {}", isolation.words()));
    let access = modes.read_only.map(|only| if only { "READ ONLY" } else { "READ WRITE" }.to_owned());
    let said: Vec<String> = [isolation, access].into_iter().flatten().collect();
    (!said.is_empty()).then(|| format!("SET TRANSACTION {}", said.join(", ")).into())
}

pub(super) fn merge(into: &mut TransactionModes, from: TransactionModes) {
    *into = into.with(from);
}

fn parse_bool(value: &str) -> Option<bool> {
    match value.trim_matches('\'').to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" | "t" | "y" => Some(true),
        "off" | "false" | "no" | "0" | "f" | "n" => Some(false),
        _ => None,
    }
}

impl Isolation {
    /// As SQL has it.
    fn words(self) -> &'static str {
        match self {
            Self::ReadUncommitted => "READ UNCOMMITTED",
            Self::ReadCommitted => "READ COMMITTED",
            Self::RepeatableRead => "REPEATABLE READ",
            Self::Serializable => "SERIALIZABLE",
        }
    }

    /// Reads the value of `default_transaction_isolation` or `transaction_isolation`.
    pub fn parse(value: &str) -> Option<Self> {
        match value.trim_matches('\'').to_ascii_lowercase().replace('-', " ").as_str() {
            "read uncommitted" => Some(Self::ReadUncommitted),
            "read committed" => Some(Self::ReadCommitted),
            "repeatable read" => Some(Self::RepeatableRead),
            "serializable" => Some(Self::Serializable),
            _ => None,
        }
    }
}
