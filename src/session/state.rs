//! What one session is in the middle of: transaction, pins, defaults. Pure.

mod lost;
mod modes;
mod outdone;
mod pins;
mod reading;
mod temporary;

use self::{
    modes::merge,
    pins::bit,
    temporary::{Behind, Temporaries},
};
use super::own::Overrides;
use crate::{
    config::TransactionReads,
    protocol::{Begins, Transaction},
    route::Floor,
    sql::{
        Access, Dialect, Effect, Intent, Isolation, PinReason, Reason, Tables,
        effects::{Discard, Ending, ProxyCommand, Scope, TransactionModes, Whom},
    },
};

/// Most statements that are kept back behind a held BEGIN; one more opens the transaction.
const MAX_HELD: usize = 64;

/// Session state the engine keeps; what a server keeps is tracked by the protocols.
#[derive(Debug, Default)]
pub struct State {
    /// As the server reported it last, or as the client was told while nothing has been sent.
    pub transaction: Transaction,
    /// A transaction the client believes open and no server knows of.
    held: Option<Held>,
    /// What begins the transaction again on the primary, while it has only read on a replica.
    reading: Option<Held>,
    /// `routing.transaction_reads`.
    pub transaction_reads: TransactionReads,
    /// The modes of the transaction that is open.
    modes: TransactionModes,
    /// A statement of the open transaction may have written.
    wrote: bool,
    /// To these tables.
    written: Option<Tables>,
    pins: u16,
    temporary: Temporaries,
    /// Cursors declared WITH HOLD and not closed.
    held_cursors: Vec<Box<str>>,
    /// `default_transaction_read_only` and `default_transaction_isolation` as they apply here.
    pub defaults: TransactionModes,
    /// The defaults the session started with: what RESET goes back to.
    pub startup_defaults: TransactionModes,
    /// MySQL's `autocommit = 0`: every statement begins a transaction if none is open.
    pub implicit: bool,
    /// A savepoint stands where no table was used since: the server tells of no transaction, and keeps it.
    savepoint: bool,
    pub startup_implicit: bool,
    /// `SET TRANSACTION` is for the next transaction, as in MySQL, not for the current one.
    pub sets_next: bool,
    /// What a transaction goes by that begins within another one.
    pub begins: Begins,
    /// What is held back waits for a later statement than the one that runs now.
    deferred: bool,
    /// The session's settings of the proxy's own.
    pub own: Overrides,
    pub floor: Floor,
    lost: Option<Lost>,
}

/// A transaction whose server went away: the client has to end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// It went while the client was silent: its next request gets the error.
    Untold,
    /// The client has had the error.
    Told,
}

#[derive(Clone, Debug, Default)]
struct Held {
    modes: TransactionModes,
    statements: Vec<Box<str>>,
    /// Those among them, as effects: a later ROLLBACK TO goes back to them.
    savepoints: Vec<Effect>,
    /// There is more than BEGIN and the transaction's modes: the transaction's own settings.
    local: bool,
    /// The client has begun a transaction; otherwise it has only said what the next one is to be.
    begun: bool,
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Run(Run),
    Answer(Own),
}

/// An answer that no server has to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    /// The client is told that it is done.
    Done,
    /// A setting or a question for the proxy.
    Proxy(ProxyCommand),
    /// End another session, or what it is running.
    Kill { whom: Whom, ending: Ending },
    /// The end of a transaction that had failed.
    RolledBack,
    /// The transaction was lost with its server: the client is told now.
    Lost,
    /// It was told before, or the transaction has failed, and the client has not ended it yet.
    Aborted,
    /// What only the proxy can answer stands among other statements: it says what.
    Among(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub access: Access,
    /// Why, for the metrics.
    pub reason: Reason,
    /// It belongs to, or begins, a transaction: the connection is kept afterwards as the server
    /// says, and the statement may not be asked again elsewhere.
    pub in_transaction: bool,
    /// The client itself asked for read-only: a refusal to write is its answer.
    pub asked_read_only: bool,
}

impl State {
    pub fn of(dialect: Dialect) -> Self {
        Self { sets_next: dialect == Dialect::Mysql, ..Self::default() }
    }

    /// Decides on a request; `statement` is its text when it is a single one sent by itself.
    pub fn plan(&mut self, intent: &Intent, text: Option<&str>) -> Step {
        if intent.effects.is_empty() {
            return self.plan_for_servers(intent, text);
        }
        match &intent.effects[..] {
            [Effect::Proxy(_)] if intent.statements == 1 && self.has_failed() => {
                return self.lost.map_or(Step::Answer(Own::Aborted), |lost| self.plan_lost(intent, lost));
            }
            [Effect::Proxy(command)] if intent.statements == 1 => {
                return Step::Answer(Own::Proxy(command.clone()));
            }
            [Effect::Kill { whom, ending }] if intent.statements == 1 => {
                return Step::Answer(Own::Kill { whom: *whom, ending: *ending });
            }
            effects => {
                if let Some(what) = effects.iter().find_map(only_the_proxy_can) {
                    return Step::Answer(Own::Among(what));
                }
            }
        }
        let sets_own = intent.effects.iter().any(|effect| matches!(effect, Effect::Proxy(_)));
        let step = self.plan_for_servers(intent, text);
        if sets_own { self.with_newest_data(step) } else { step }
    }

    /// Whether nothing is answered any more but the end of the transaction, as by PostgreSQL.
    fn has_failed(&self) -> bool {
        !self.sets_next && (self.transaction == Transaction::Failed || self.lost.is_some())
    }

    /// Where settings of the proxy's own stand among other statements, those behind them go by what was
    /// set: the primary satisfies all.
    fn with_newest_data(&self, step: Step) -> Step {
        match step {
            Step::Run(run)
                if run.access == Access::Read
                    && (!run.in_transaction || self.transaction == Transaction::Unit) =>
            {
                Step::Run(Run { access: Access::Write, reason: Reason::State, ..run })
            }
            other => other,
        }
    }

    fn plan_for_servers(&mut self, intent: &Intent, text: Option<&str>) -> Step {
        self.deferred = false;
        if let Some(lost) = self.lost {
            return self.plan_lost(intent, lost);
        }
        if intent.statements == 0 && matches!(self.transaction, Transaction::Idle) {
            return Step::Answer(Own::Done);
        }
        if self.held.is_some() {
            return self.plan_held(intent, text);
        }
        if self.transaction == Transaction::Unit {
            // A pipeline that has only read stays where it is until it writes (hard case 13).
            return Step::Run(self.run(intent, intent.access, true));
        }
        if self.transaction != Transaction::Idle {
            if self.is_reading() {
                return self.plan_reading(intent);
            }
            return Step::Run(self.run(intent, self.transaction_access(), true));
        }
        match (&intent.effects[..], text) {
            ([Effect::Begin(modes)], Some(text)) if intent.statements == 1 => {
                self.hold(*modes, text, true);
                self.transaction = Transaction::Open;
                Step::Answer(Own::Done)
            }
            ([Effect::SetTransaction(modes)], Some(text)) if self.sets_next && intent.statements == 1 => {
                self.hold(*modes, text, false);
                Step::Answer(Own::Done)
            }
            ([Effect::Commit { chain: false } | Effect::Rollback { chain: false }], _)
                if intent.statements == 1 =>
            {
                // There is nothing to end, which any server can say.
                Step::Run(Run { access: Access::Read, ..self.run_idle(intent) })
            }
            _ if self.implicit && intent.reason != Reason::Session => Step::Run(self.plan_implicit(intent)),
            _ => Step::Run(self.run_idle(intent)),
        }
    }

    fn hold(&mut self, modes: TransactionModes, text: &str, begun: bool) {
        self.held = Some(Held { modes, statements: vec![text.into()], begun, ..Held::default() });
    }

    fn plan_held(&mut self, intent: &Intent, text: Option<&str>) -> Step {
        let held = self.held.as_mut().expect("the caller has looked");
        if intent.statements == 0 {
            return Step::Answer(Own::Done);
        }
        let sets = text.is_some() && matches!(intent.effects[..], [Effect::SetTransaction(_)]);
        if !held.begun && intent.begins_none() && !sets {
            // What was said of the next transaction stays said.
            self.deferred = true;
            let implicit = self.implicit && intent.reason != Reason::Session;
            let run = if implicit { self.plan_implicit(intent) } else { self.run_idle(intent) };
            return Step::Run(run);
        }
        if let (1, [effect], Some(text)) = (intent.statements, &intent.effects[..], text) {
            match effect {
                // What was said of the next transaction was said of none, and is over with it.
                Effect::Commit { chain: false } | Effect::Rollback { chain: false } if !held.begun => {
                    self.held = None;
                    return Step::Answer(Own::Done);
                }
                Effect::Begin(modes) if !held.begun => {
                    merge(&mut held.modes, *modes);
                    held.statements.push(text.into());
                    held.begun = true;
                    self.transaction = Transaction::Open;
                    return Step::Answer(Own::Done);
                }
                Effect::Commit { chain: false } | Effect::Rollback { chain: false } => {
                    self.own.end(matches!(effect, Effect::Commit { .. }));
                    self.held = None;
                    self.reading = None;
                    self.transaction = Transaction::Idle;
                    return Step::Answer(Own::Done);
                }
                // Behind a savepoint the server refuses it, MySQL's in every transaction: that answer is
                // the server's to give.
                Effect::SetTransaction(modes)
                    if held.statements.len() < MAX_HELD
                        && held.savepoints.is_empty()
                        && !(held.begun && self.sets_next) =>
                {
                    merge(&mut held.modes, *modes);
                    held.statements.push(text.into());
                    return Step::Answer(Own::Done);
                }
                Effect::Savepoint(_) | Effect::SetConstraints | Effect::Set { scope: Scope::Local, .. }
                    if held.statements.len() < MAX_HELD =>
                {
                    if let Effect::Savepoint(name) = effect {
                        held.savepoints.push(effect.clone());
                        if held.begun && !self.sets_next {
                            self.own.save(name);
                        }
                    }
                    held.local = true;
                    held.statements.push(text.into());
                    return Step::Answer(Own::Done);
                }
                _ => {}
            }
        }
        self.modes = held.modes;
        Step::Run(self.plan_first(intent))
    }

    /// The statements that have to run before the next one, oldest first.
    pub fn held_statements(&self) -> &[Box<str>] {
        self.held.as_ref().filter(|_| !self.deferred).map_or(&[], |held| &held.statements)
    }

    /// The savepoints among them.
    pub fn held_savepoints(&self) -> &[Effect] {
        self.held.as_ref().filter(|_| !self.deferred).map_or(&[], |held| &held.savepoints)
    }

    /// Whether they give their transaction an isolation, or make it read-only or deferrable.
    pub fn held_sets_modes(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.modes != TransactionModes::default())
    }

    /// Whether an end of a transaction is to come that undoes settings of the proxy's own. MySQL's
    /// user variables, which stand for them there, know no transaction.
    pub fn undoes_own_settings(&self) -> bool {
        !self.sets_next && (self.transaction != Transaction::Idle || self.is_begun_unseen())
    }

    /// A transaction is held that no server knows of.
    pub fn is_holding(&self) -> bool {
        self.held.is_some()
    }

    /// What is held begins a transaction: what runs behind it is not committed by itself. It may
    /// also only say what the next one is to be (MySQL's `SET TRANSACTION`).
    pub fn is_begun_unseen(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.begun)
    }

    /// Where the open transaction belongs.
    fn transaction_access(&self) -> Access {
        let read_only = self.modes.read_only.or(self.defaults.read_only).unwrap_or(false);
        let isolation = self.modes.isolation.or(self.defaults.isolation);
        // A standby cannot run serializable transactions, read-only ones included.
        if read_only && isolation != Some(Isolation::Serializable) { Access::Read } else { Access::Write }
    }

    fn run_idle(&self, intent: &Intent) -> Run {
        if let Some(Effect::Begin(modes)) = intent.effects.iter().find(|e| matches!(e, Effect::Begin(_))) {
            let mut all = self.defaults;
            merge(&mut all, *modes);
            let read = all.read_only == Some(true) && all.isolation != Some(Isolation::Serializable);
            let access = if read { Access::Read } else { Access::Write };
            return self.run(intent, access, true);
        }
        let serializable = self.defaults.isolation == Some(Isolation::Serializable);
        let asked_read_only = self.defaults.read_only == Some(true);
        let access = match intent.access {
            Access::Read if serializable && intent.reason != Reason::Session => Access::Write,
            other => other,
        };
        let reason = if access == intent.access { intent.reason } else { Reason::Transaction };
        Run { access, reason, in_transaction: false, asked_read_only }
    }

    fn run(&self, intent: &Intent, access: Access, in_transaction: bool) -> Run {
        let reason = match (access, intent.access) {
            (Access::Write, Access::Read) => Reason::Transaction,
            _ => intent.reason,
        };
        Run { access, reason, in_transaction, asked_read_only: access == Access::Read }
    }

    /// Takes note of an answered request. Returns whether something was committed that later
    /// reads must see.
    pub fn learn(
        &mut self,
        intent: &Intent,
        transaction: Transaction,
        failed: bool,
        on_primary: bool,
    ) -> bool {
        let was_open = self.transaction != Transaction::Idle;
        let had_failed = self.transaction == Transaction::Failed;
        if !self.deferred {
            self.held = None;
        }
        let transaction = self.with_savepoint(intent, transaction, failed);
        self.transaction = transaction;
        if on_primary || transaction == Transaction::Idle {
            self.reading = None;
        }
        if on_primary && may_write(intent) {
            self.wrote = true;
            if transaction != Transaction::Idle {
                self.written = Some(all_of(self.written.take(), &touched(intent)));
            }
        }
        for effect in &intent.effects {
            self.apply(effect, failed);
            match effect {
                Effect::Assigns { .. } if on_primary => self.pin(PinReason::UserVariable),
                _ => {}
            }
        }
        if !failed && !intent.effects.is_empty() {
            self.say_next(&intent.effects);
        }
        let ended = intent.effects.iter().rev().find_map(Effect::ends_as_committed);
        let committed = ended.unwrap_or(true) && !failed && !had_failed;
        if transaction == Transaction::Idle || ended.is_some() {
            self.own.end(committed);
        }
        if self.is_pinned_by(PinReason::TempTable) {
            let (open, undoes) = (transaction != Transaction::Idle, !self.sets_next);
            let behind = Behind { failed, open, ended: ended.is_some(), committed, undoes };
            self.temporary.learn(intent, behind);
            if self.temporary.is_over() {
                self.unpin(PinReason::TempTable);
            }
        }
        if transaction == Transaction::Idle {
            self.modes = TransactionModes::default();
            // A failed autocommit statement may still have written: a procedure that committed
            // half its work, a statement of several.
            self.written = None;
            return std::mem::take(&mut self.wrote);
        }
        if !was_open {
            self.adopt_modes(intent);
            return false;
        }
        // What it has done itself may be still open: the end of that counts again.
        self.wrote && self.may_commit(intent)
    }

    /// The transaction as it is to a session: with `autocommit = 0` a savepoint begins one, of which a server tells
    /// when a table is used.
    fn with_savepoint(&mut self, intent: &Intent, told: Transaction, failed: bool) -> Transaction {
        let has = |what: fn(&Effect) -> bool| intent.effects.iter().any(what);
        let ends = !self.implicit
            || told != Transaction::Idle
            || has(|effect| effect.ends_as_committed().is_some() || *effect == Effect::Ddl);
        if ends {
            self.savepoint = false;
        } else if !failed {
            self.savepoint |= has(|effect| matches!(effect, Effect::Savepoint(_)));
        }
        if self.savepoint { Transaction::Open } else { told }
    }

    /// Takes note of what the first statements of a string did that then failed. `begun_none`: by a statement that
    /// came to no transaction.
    pub fn learn_part(&mut self, done: &[Effect], begun_none: bool) {
        for effect in done {
            self.apply(effect, false);
        }
        if !done.is_empty() && self.is_pinned_by(PinReason::TempTable) {
            self.temporary.lose_track();
        }
        if begun_none {
            self.say_next(done);
        }
    }

    /// The tables of which others may see new rows once this request is answered; `None` where it
    /// commits nothing.
    pub fn commits(&self, intent: &Intent) -> Option<Tables> {
        let writes = may_write(intent);
        let stays_open =
            matches!(self.transaction, Transaction::Open | Transaction::Failed) && !self.may_commit(intent);
        if stays_open || !(writes || self.wrote) {
            return None;
        }
        Some(match (&self.written, writes) {
            (None, true) => touched(intent),
            (Some(written), false) => written.clone(),
            (written, _) => all_of(written.clone(), &touched(intent)),
        })
    }

    /// The statement being answered wrote, whatever it was taken for.
    pub fn note_write(&mut self) {
        self.wrote = true;
        self.written = Some(Tables::All);
    }

    fn apply(&mut self, effect: &Effect, failed: bool) {
        match effect {
            // A pin is kept even when the statement failed: part of it may have run.
            Effect::Pin(reason) => self.pin(*reason),
            Effect::Touches => self.pin(PinReason::Function),
            // A cursor was closed before, whatever became of the request that tells of it.
            Effect::Unpin(PinReason::Cursor) => self.unpin(PinReason::Cursor),
            Effect::Unpin(reason) if !failed => self.unpin(*reason),
            Effect::HoldsCursor(name) if !failed => self.held_cursors.push(name.clone()),
            Effect::ClosesCursor(name) if !failed => {
                self.held_cursors.retain(|held| held != name);
                if self.held_cursors.is_empty() {
                    self.unpin(PinReason::HoldCursor);
                }
            }
            Effect::Set { name, value, scope: Scope::Session, .. } if !failed => {
                self.set_default(name, value);
                self.outdo_next(name);
            }
            Effect::Reset { name } if !failed => match &**name {
                "default_transaction_read_only" => self.defaults.read_only = self.startup_defaults.read_only,
                "default_transaction_isolation" => self.defaults.isolation = self.startup_defaults.isolation,
                "transaction_read_only" if self.sets_next => {
                    self.defaults.read_only = self.startup_defaults.read_only;
                }
                "transaction_isolation" if self.sets_next => {
                    self.defaults.isolation = self.startup_defaults.isolation;
                }
                "autocommit" if self.sets_next => self.implicit = self.startup_implicit,
                _ => {}
            },
            Effect::ResetAll if !failed => {
                self.defaults = self.startup_defaults;
                self.own.reset_all(self.transaction != Transaction::Idle);
            }
            Effect::Discard(Discard::All) if !failed => {
                self.own.reset_all(false);
                self.held = None;
                self.defaults = self.startup_defaults;
                self.implicit = self.startup_implicit;
                self.pins &= bit(PinReason::SessionMode);
                self.temporary = Temporaries::default();
                self.held_cursors.clear();
            }
            Effect::Proxy(ProxyCommand::Set { name, value, scope, .. }) if !failed => {
                // Among other statements, where a server has obeyed it. What makes no sense to the proxy
                // changes nothing.
                let _ = self.own.set(name, value, *scope, self.undoes_own_settings());
            }
            Effect::Savepoint(name) if !failed && self.undoes_own_settings() => self.own.save(name),
            Effect::Release(name) if !failed => self.own.release(name),
            Effect::RollbackTo(name) if !failed => self.own.roll_back_to(name),
            Effect::Discard(Discard::Temp) if !failed => self.unpin(PinReason::TempTable),
            Effect::Discard(Discard::Sequences) if !failed => self.unpin(PinReason::Sequence),
            _ => {}
        }
    }

    /// The server connection is gone, and with it all that it held for this session.
    pub fn forget_server(&mut self) {
        self.held = None;
        self.savepoint = false;
        self.reading = None;
        self.transaction = Transaction::Idle;
        self.modes = TransactionModes::default();
        self.wrote = false;
        self.written = None;
        self.lost = None;
        self.own.end(false);
        self.pins = 0;
        self.temporary = Temporaries::default();
        self.held_cursors.clear();
    }
}

/// What no server can answer in the proxy's place.
fn only_the_proxy_can(effect: &Effect) -> Option<&'static str> {
    match effect {
        Effect::Proxy(ProxyCommand::Show { .. }) => Some("a question to the proxy"),
        Effect::Proxy(ProxyCommand::SetComputed { .. }) => {
            Some("a setting of the proxy's own by what is bound")
        }
        Effect::Proxy(ProxyCommand::Misplaced { .. }) => Some("a setting of the proxy's own"),
        Effect::Kill { .. } => Some("KILL"),
        _ => None,
    }
}

/// Whether it may end the open transaction with its work done.
pub fn ends_transaction(intent: &Intent) -> bool {
    let ends = |effect: &Effect| {
        matches!(effect, Effect::Commit { .. } | Effect::PrepareTransaction | Effect::CommitXa)
    };
    intent.effects.iter().any(ends)
}

/// Tables of a transaction that are told apart; one with more counts as touching all.
const MAX_WRITTEN: usize = 64;

fn all_of(before: Option<Tables>, more: &Tables) -> Tables {
    let Some(before) = before else { return more.clone() };
    let (Some(before), Some(more)) = (before.names(), more.names()) else { return Tables::All };
    let mut names: Vec<Box<str>> = before.iter().chain(more).cloned().collect();
    names.sort_unstable();
    names.dedup();
    if names.len() > MAX_WRITTEN { Tables::All } else { Tables::Some(names.into()) }
}

/// Whether its success may have changed data that others can see. Text that only the server knows, and code of
/// which nothing is known, may do anything.
fn may_write(intent: &Intent) -> bool {
    let hidden = |effect: &Effect| matches!(effect, Effect::Touches | Effect::Execute { .. });
    intent.access == Access::Write && (intent.reason.changes_data() || intent.effects.iter().any(hidden))
}

/// The tables of a request that may write: of one that names none, as `SET @x = f()`, any.
fn touched(intent: &Intent) -> Tables {
    match intent.tables.names() {
        Some([]) => Tables::All,
        _ => intent.tables.clone(),
    }
}
