//! What a session changes that others are judged by: definitions and what logins find. It counts from when it
//! is committed.

use std::sync::{Arc, atomic::Ordering};

use super::Session;
use crate::{
    cluster::{Database, Doubt},
    protocol::{Protocol, Reply, Transaction},
    sql::{Dialect, Effect, Intent},
};

/// What the statements of the transaction at hand have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// The catalog has to be read again.
    catalog: bool,
    /// A name may stand for something that the catalog does not tell.
    names: bool,
    /// Statements may run other code than the catalog tells.
    code: bool,
    logins: bool,
}

impl Changed {
    fn add(&mut self, effect: &Effect, dialect: Dialect) {
        match effect {
            Effect::Ddl => {
                self.catalog = true;
                // A default, a check or an index may call what it likes. MySQL's call no routines.
                self.code |= dialect == Dialect::Postgres;
            }
            Effect::Redefines => (self.names, self.code) = (true, true),
            Effect::Logins => self.logins = true,
            _ => {}
        }
    }

    fn tell(self, database: &Database) {
        if self.names {
            database.names.add();
        }
        if self.code {
            database.code.add();
        }
        if self.catalog {
            database.stale.store(true, Ordering::Release);
        }
    }
}

/// A request that may commit definitions before it is answered, or without ever being. Dropping it tells of them.
pub(super) struct Committing {
    database: Arc<Database>,
    changed: Changed,
    /// What others are in doubt by, until they know.
    doubt: Doubt,
}

impl Committing {
    pub fn doubt(&self) -> Option<&Doubt> {
        self.changed.code.then_some(&self.doubt)
    }
}

impl Drop for Committing {
    fn drop(&mut self) {
        self.changed.tell(&self.database);
    }
}

impl<P: Protocol> Session<P> {
    /// To be kept until a request is over that may commit definitions.
    pub(super) fn begin_definitions(&self, intent: &Intent) -> Option<Committing> {
        let mut changed = self.changed;
        intent.effects.iter().for_each(|effect| changed.add(effect, P::DIALECT));
        if changed == Changed::default() {
            return None;
        }
        let open = self.state.transaction != Transaction::Idle;
        if intent.statements == 1 && open && !self.state.may_commit(intent) {
            return None;
        }
        let doubt = Doubt::of(&self.database);
        // What a server commits shows before it answers. Of what may take hours and changes no code but what a
        // table or an index brings along, others are in doubt from the answer on: it can make its client go on.
        let is_long = intent.statements == 1 && intent.effects.contains(&Effect::Ddl) && !changed.names;
        if !is_long && (changed.code || intent.statements > 1) {
            doubt.begin();
        }
        Some(Committing { database: self.database.clone(), changed, doubt })
    }

    pub(super) fn note_changed(&mut self, intent: &Intent, reply: &Reply) {
        reply.effects(intent).iter().for_each(|effect| self.changed.add(effect, P::DIALECT));
    }

    /// Whether a statement may have run code that nobody had read when it was judged; `known`: how many
    /// new definitions the catalog told of then.
    pub(super) fn ran_unread_code(&self, known: u64) -> bool {
        // In this order: what is not under way any more has been counted.
        self.changed.code
            || self.database.committing.load(Ordering::SeqCst) > 0
            || self.database.code.so_far() > known
    }

    /// Others go by what was changed once no transaction is open any more, whether it was committed or not:
    /// of one that was lost nobody knows. MySQL commits each change by itself. `address`: where; else on the
    /// primary.
    pub(super) fn publish_changed(&mut self, address: Option<&Arc<str>>) {
        let waits = self.state.transaction != Transaction::Idle && P::DIALECT == Dialect::Postgres;
        if self.changed == Changed::default() || waits {
            return;
        }
        let changed = std::mem::take(&mut self.changed);
        changed.tell(&self.database);
        if changed.catalog {
            self.cluster.topology.nudge.notify_one();
        }
        if changed.logins {
            let snapshot = self.snapshot();
            let primary = || snapshot.primary().map(|primary| &primary.address);
            if let Some(address) = address.or_else(primary) {
                self.cluster.logins_changed(address, self.state.floor.clone());
            }
        }
    }
}
