//! What a session changes that others are judged by: definitions and accounts. It counts from when it
//! is committed.

use std::sync::{Arc, atomic::Ordering};

use super::Session;
use crate::{
    protocol::{Protocol, Reply, Transaction},
    sql::{Effect, Intent},
};

/// What the statements of the transaction at hand have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// The catalog has to be read again.
    catalog: bool,
    /// A name may stand for something that the catalog does not tell.
    names: bool,
    accounts: bool,
}

impl<P: Protocol> Session<P> {
    pub(super) fn note_changed(&mut self, intent: &Intent, reply: &Reply) {
        for effect in reply.effects(intent) {
            match effect {
                Effect::Ddl => self.changed.catalog = true,
                Effect::Redefines => self.changed.names = true,
                Effect::Accounts => self.changed.accounts = true,
                _ => {}
            }
        }
    }

    /// Whether a statement may have run code that nobody had read when it was judged; `known`: how many
    /// new definitions the catalog told of then.
    pub(super) fn ran_unread_code(&self, known: u64) -> bool {
        self.changed.names || self.database.redefinitions() > known
    }

    /// Others go by what was changed once no transaction is open any more, whether it was committed or not:
    /// of one that was lost nobody knows. `address`: where; else on the primary.
    pub(super) fn publish_changed(&mut self, address: Option<&Arc<str>>) {
        if self.changed == Changed::default() || self.state.transaction != Transaction::Idle {
            return;
        }
        let changed = std::mem::take(&mut self.changed);
        if changed.names {
            self.database.redefined();
        }
        if changed.catalog {
            self.database.stale.store(true, Ordering::Release);
            self.cluster.topology.nudge.notify_one();
        }
        if changed.accounts {
            let snapshot = self.snapshot();
            let primary = || snapshot.primary().map(|primary| &primary.address);
            if let Some(address) = address.or_else(primary) {
                self.cluster.accounts_changed(address, self.state.floor.clone());
            }
        }
    }
}
