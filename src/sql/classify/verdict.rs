//! What is known of one statement of a string, while it is being put together.

use std::collections::BTreeSet;

use crate::sql::{
    Access, Reason, Tables,
    catalog::MAX_RELATIVES,
    effects::{Effect, PinReason},
};

/// Names that are kept per statement; more count as [`Tables::All`].
const MAX_TABLES: usize = MAX_RELATIVES;

#[derive(Clone, Debug)]
pub(super) struct Verdict {
    pub access: Access,
    pub reason: Reason,
    pub effects: Vec<Effect>,
    pub tables: Touched,
    pub plain: bool,
    pub joins: bool,
    /// As [`crate::sql::Intent::outdoes`], of the first statement.
    pub outdoes: bool,
    pub by_text: bool,
}

/// Tables under construction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Touched {
    All,
    Some(BTreeSet<Box<str>>),
}

impl Touched {
    pub fn none() -> Self {
        Self::Some(BTreeSet::new())
    }

    pub fn is_none(&self) -> bool {
        matches!(self, Self::Some(names) if names.is_empty())
    }

    pub fn add(&mut self, name: &str) {
        if let Self::Some(names) = self {
            if names.len() == MAX_TABLES && !names.contains(name) {
                *self = Self::All;
            } else if !names.contains(name) {
                names.insert(name.into());
            }
        }
    }

    fn union(&mut self, other: Self) {
        match other {
            Self::All => *self = Self::All,
            Self::Some(names) => names.iter().for_each(|name| self.add(name)),
        }
    }

    pub fn publish(self) -> Tables {
        match self {
            Self::All => Tables::All,
            Self::Some(names) => Tables::Some(names.into_iter().collect()),
        }
    }
}

impl Verdict {
    /// A read of nothing yet.
    pub fn read() -> Self {
        Self {
            access: Access::Read,
            reason: Reason::Read,
            effects: Vec::new(),
            tables: Touched::none(),
            plain: false,
            joins: true,
            outdoes: false,
            by_text: false,
        }
    }

    /// A write that may touch everything.
    pub fn write(reason: Reason) -> Self {
        Self { access: Access::Write, reason, tables: Touched::All, ..Self::read() }
    }

    /// A statement that concerns the session alone and may run anywhere.
    pub fn session() -> Self {
        Self { reason: Reason::Session, ..Self::read() }
    }

    /// A statement that reads or keeps state of the server session: the primary's, but no table.
    pub fn state() -> Self {
        Self { tables: Touched::none(), ..Self::write(Reason::State) }
    }

    /// A question about the server itself.
    pub fn server() -> Self {
        Self { tables: Touched::none(), ..Self::write(Reason::Server) }
    }

    /// Begins, ends or shapes a transaction.
    pub fn transaction(effect: Effect) -> Self {
        Self { tables: Touched::none(), joins: false, ..Self::write(Reason::Transaction) }.with(effect)
    }

    pub fn with(mut self, effect: Effect) -> Self {
        self.effect(effect);
        self
    }

    /// Runs in a transaction of its own, or commits inside.
    pub fn apart(self) -> Self {
        Self { joins: false, ..self }
    }

    /// As [`Self::apart`], and whatever transaction is open ends first (MySQL's implicit commit).
    pub fn outdoing(self) -> Self {
        Self { outdoes: true, ..self.apart() }
    }

    pub fn effect(&mut self, effect: Effect) {
        if !self.effects.contains(&effect) {
            self.effects.push(effect);
        }
    }

    pub fn pin(&mut self, reason: PinReason) {
        self.effect(Effect::Pin(reason));
    }

    /// Makes a read a write. What is one already keeps its reason, unless that one says less: later
    /// reads must see what a statement changes, whatever else it does.
    pub fn raise(&mut self, reason: Reason) {
        // What was not parsed has been weighed word by word: what is known of it stands.
        let known = reason != Reason::Unparsed;
        let says_more = known && reason.changes_data() && !self.reason.changes_data();
        if self.access == Access::Read || says_more {
            self.access = Access::Write;
            self.reason = reason;
        }
    }

    /// Joins the verdict of the next statement of the same string.
    pub fn then(mut self, next: Self) -> Self {
        let writes = self.access == Access::Write || next.access == Access::Write;
        let reason = match (writes, self.reason, next.reason) {
            (_, first, second) if first == second => first,
            // A pool's reset query: it changes the session and no data, and no read waits for it.
            (true, Reason::State, Reason::Session) | (true, Reason::Session, Reason::State) => Reason::State,
            (true, ..) => Reason::Command,
            (false, Reason::Session, other) | (false, other, Reason::Session) => other,
            (false, ..) => Reason::Read,
        };
        for effect in next.effects {
            // Said once is enough for what has no order.
            match effect {
                Effect::DrawsSequence
                | Effect::Touches
                | Effect::Calls
                | Effect::Ddl
                | Effect::Redefines
                | Effect::Logins => {
                    self.effect(effect);
                }
                effect => self.effects.push(effect),
            }
        }
        self.tables.union(next.tables);
        Self {
            access: if writes { Access::Write } else { Access::Read },
            reason,
            plain: false,
            joins: self.joins && next.joins,
            by_text: self.by_text || next.by_text,
            ..self
        }
    }
}
