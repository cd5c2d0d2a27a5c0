//! Settings that a session carries from one server connection to the next.

use std::{collections::BTreeMap, sync::Arc};

use xxhash_rust::xxh3::Xxh3;

use super::parameters::Told;
use crate::{
    protocol::Transaction,
    sql::{
        Effect,
        effects::{Discard, Scope},
    },
};

/// A session's settings beyond what its server connections start with. Immutable and shared:
/// a server connection remembers which of them it has.
#[derive(Debug, Default)]
pub struct Settings {
    values: BTreeMap<Box<str>, Value>,
    hash: u128,
    plan_key: u64,
}

#[derive(Clone, Debug)]
struct Value {
    /// As text, for what depends on it: some key prepared statements.
    value: Box<str>,
    /// Sets it, ready to be sent.
    statement: Box<str>,
}

/// Ahead of statements of ours, makes their transaction one that a standby runs, too: it takes no snapshot
/// under SERIALIZABLE, and the default counts also for the transaction in which it is changed. It says
/// nothing of the next one; SET LOCAL would warn.
pub const RUN_ANYWHERE: &str = "SET transaction_isolation = 'read committed'";

/// Settings that count for the transaction they are set in only from the next one on, so that
/// they cannot ride in the same implicit transaction as the statement they are meant for.
const NEXT_TRANSACTION: [&str; 3] =
    ["default_transaction_deferrable", "default_transaction_isolation", "default_transaction_read_only"];

/// What a Parse depends on besides its text: the names in it, and how its literals are read. PostgreSQL
/// makes values of them at once, so that a statement prepared for one session holds that session's time
/// zone.
const READ_BY_PARSE: [&str; 13] = [
    "array_nulls",
    "backslash_quote",
    "client_encoding",
    "datestyle",
    "intervalstyle",
    "lc_monetary",
    "role",
    "search_path",
    "session_authorization",
    "standard_conforming_strings",
    "timezone",
    "transform_null_equals",
    "xmloption",
];

/// Set after all others, in this order, and reset before: they take rights away.
const IDENTITY: [&str; 2] = ["session_authorization", "role"];

/// The one setting whose value may be given in part.
const DATE_STYLE: &str = "datestyle";

impl Settings {
    /// The settings with one more, or another value.
    pub fn with(&self, name: &str, value: &str, statement: &str) -> Self {
        let mut values = self.values.clone();
        values.insert(name.into(), Value { value: value.into(), statement: statement.into() });
        Self::new(values)
    }

    /// Takes `name` from `other`, or drops it where `other` has none.
    pub fn with_from(&self, name: &str, other: &Self) -> Self {
        let mut values = self.values.clone();
        match other.values.get(name) {
            Some(value) => values.insert(name.into(), value.clone()),
            None => values.remove(name),
        };
        Self::new(values)
    }

    /// A copy.
    pub fn copied(&self) -> Self {
        Self { values: self.values.clone(), hash: self.hash, plan_key: self.plan_key }
    }

    fn new(values: BTreeMap<Box<str>, Value>) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        let mut hasher = Xxh3::new();
        for (name, value) in &values {
            for part in [name, &value.statement] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part.as_bytes());
            }
        }
        // 0 is the empty set's.
        let plan_key = plan_key(&values);
        Self { values, hash: hasher.digest128() | 1, plan_key }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|value| &*value.value)
    }

    /// Equal for equal settings.
    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// Of what prepared statements depend on besides their text.
    pub fn plan_key(&self) -> u64 {
        self.plan_key
    }

    /// The statements that bring a connection that has `had` to these settings.
    pub fn statements_from(&self, had: &Settings) -> Vec<Box<str>> {
        if self.hash == had.hash {
            return Vec::new();
        }
        let mut statements = Vec::new();
        let changes = |name: &str| {
            let (has, had) = (self.values.get(name), had.values.get(name));
            has.map(|value| &value.statement) != had.map(|value| &value.statement)
        };
        let identity_changes = IDENTITY.iter().any(|name| changes(name));
        if identity_changes {
            for name in IDENTITY.iter().rev().filter(|name| had.values.contains_key(**name)) {
                statements.push(reset(name));
            }
        }
        for name in had.values.keys().filter(|name| !IDENTITY.contains(&&***name)) {
            if !self.values.contains_key(name) {
                statements.push(reset(name));
            }
        }
        for (name, value) in self.values.iter().filter(|(name, _)| !IDENTITY.contains(&&***name)) {
            if changes(name) {
                statements.push(value.statement.clone());
            }
        }
        if identity_changes {
            statements.extend(
                IDENTITY
                    .iter()
                    .filter_map(|name| self.values.get(*name))
                    .map(|value| value.statement.clone()),
            );
        }
        statements
    }

    /// [`Self::statements_from`], to be sent in a transaction of their own.
    pub fn statements_apart_from(&self, had: &Settings) -> Vec<Box<str>> {
        let mut statements = self.statements_from(had);
        // What a startup packet asked for is selected, whatever sessions begin with.
        let selects = statements.iter().any(|statement| statement.starts_with("SELECT"));
        if selects || (had.get("default_transaction_isolation").is_some() && !statements.is_empty()) {
            statements.insert(0, RUN_ANYWHERE.into());
        }
        statements
    }

    /// Whether going from `had` to these may share the implicit transaction of the statement
    /// behind it.
    pub fn may_join(&self, had: &Settings) -> bool {
        NEXT_TRANSACTION.iter().all(|name| self.get(name) == had.get(name))
    }
}

fn reset(name: &str) -> Box<str> {
    match name {
        "role" => "RESET ROLE".into(),
        "session_authorization" => "RESET SESSION AUTHORIZATION".into(),
        // Names of extensions' settings hold a dot and are written as they are; the others are
        // plain identifiers, or were quoted by whoever set them and are folded here.
        _ => format!("RESET {}", quote_name(name)).into(),
    }
}

/// Whether a byte may stand in the name of an extension's setting.
fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$')
}

/// 0 where nothing is set, as for the empty set.
fn plan_key(values: &BTreeMap<Box<str>, Value>) -> u64 {
    let mut hasher = Xxh3::new();
    let mut any = false;
    for name in READ_BY_PARSE {
        if let Some(Value { value, .. }) = values.get(name) {
            hasher.update(name.as_bytes());
            hasher.update(value.as_bytes());
            any = true;
        }
    }
    if any { hasher.digest() } else { 0 }
}

/// Writes a setting's name so that the server reads exactly it.
pub fn quote_name(name: &str) -> String {
    name.split('.').map(|part| format!("\"{}\"", part.replace('"', "\"\""))).collect::<Vec<_>>().join(".")
}

/// Writes a value as a literal that reads the same whatever `standard_conforming_strings` says.
pub fn quote_literal(value: &str) -> String {
    if value.contains('\\') {
        format!("E'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", value.replace('\'', "''"))
    }
}

/// The settings of a session, or of a server connection, and what a ROLLBACK would make of them.
///
/// Both follow the same statements; they differ in what RESET goes back to: the client's startup
/// values here, the connection's there.
#[derive(Debug, Default)]
pub struct Carried {
    now: Arc<Settings>,
    /// What RESET goes back to: the client's startup values.
    startup: Arc<Settings>,
    at_begin: Option<Arc<Settings>>,
    savepoints: Vec<(Box<str>, Arc<Settings>)>,
}

/// How many savepoints are followed; below that, ROLLBACK TO a deeper one is taken for the oldest.
const MAX_SAVEPOINTS: usize = 1024;

impl Carried {
    pub fn new(startup: Settings) -> Self {
        let startup = Arc::new(startup);
        Self { now: startup.clone(), startup, ..Self::default() }
    }

    pub fn now(&self) -> &Arc<Settings> {
        &self.now
    }

    /// Says that the settings were brought to these, outside of any transaction of the client's.
    pub fn bring(&mut self, settings: &Arc<Settings>) {
        self.now = settings.clone();
    }

    /// Takes note of savepoints that were held back and sent ahead of a request, before
    /// [`Self::learn`] does of the request.
    pub fn learn_ahead(&mut self, savepoints: &[Effect]) {
        for savepoint in savepoints {
            self.apply(savepoint, false);
        }
    }

    /// Takes note of an answered request. `failed`: it ended in an error; `rolled_back`: its last
    /// COMMIT was answered with ROLLBACK.
    pub fn learn(&mut self, effects: &[Effect], failed: bool, transaction: Transaction, rolled_back: bool) {
        let before = self.now.clone();
        if !failed {
            for effect in effects {
                self.apply(effect, rolled_back);
            }
        }
        match transaction {
            // BEGIN may have been sent ahead, or a pipeline have begun by itself.
            Transaction::Open | Transaction::Failed => {
                self.at_begin.get_or_insert(before);
            }
            Transaction::Unit => {
                let begin = self.at_begin.get_or_insert(before).clone();
                if failed {
                    self.now = begin;
                }
            }
            Transaction::Idle => {
                if let Some(begin) = self.at_begin.take()
                    && failed
                {
                    self.now = begin;
                }
                self.savepoints.clear();
            }
        }
    }

    /// Replaces a value that is only a part of a setting by the whole that the server reports:
    /// `SET datestyle TO ymd` leaves the output style as it is, on another connection another one.
    pub fn complete(&mut self, effects: &[Effect], told: &Told) {
        let sets = |effect: &Effect| matches!(effect, Effect::Set { name, scope: Scope::Session, .. } if &**name == DATE_STYLE);
        if !effects.iter().any(sets) || self.now.get(DATE_STYLE).is_none() {
            return;
        }
        if let Some(whole) = told.get("DateStyle") {
            let statement = format!("SET {DATE_STYLE} TO {}", quote_literal(whole));
            self.now = Arc::new(self.now.with(DATE_STYLE, whole, &statement));
        }
    }

    /// Drops the settings that an error names: the server removes what was set under a prefix that
    /// an extension, loaded later, turns out to own.
    pub fn drop_named_in(&mut self, error: &[u8]) {
        // The quotation marks are those of the server's language.
        let is_named = |name: &str| {
            let ends_name = |byte: Option<&u8>| !byte.is_some_and(|byte| is_of_name(*byte));
            name.contains('.')
                && memchr::memmem::find_iter(error, name)
                    .any(|at| ends_name(error[..at].last()) && ends_name(error.get(at + name.len())))
        };
        let names: Vec<Box<str>> = self.now.values.keys().filter(|name| is_named(name)).cloned().collect();
        for name in names {
            self.now = Arc::new(self.now.with_from(&name, &Settings::default()));
        }
    }

    fn apply(&mut self, effect: &Effect, rolled_back: bool) {
        match effect {
            Effect::Begin(_) | Effect::BeginUnknown => self.at_begin = Some(self.now.clone()),
            Effect::Commit { chain } if !rolled_back => {
                self.savepoints.clear();
                self.at_begin = chain.then(|| self.now.clone());
            }
            Effect::Commit { chain } | Effect::Rollback { chain } => {
                if let Some(before) = self.at_begin.take() {
                    self.now = before;
                }
                self.savepoints.clear();
                self.at_begin = chain.then(|| self.now.clone());
            }
            Effect::PrepareTransaction => {
                self.at_begin = None;
                self.savepoints.clear();
            }
            Effect::Savepoint(name) if self.savepoints.len() < MAX_SAVEPOINTS => {
                self.savepoints.push((name.clone(), self.now.clone()));
            }
            Effect::Release(name) => {
                if let Some(at) = self.savepoints.iter().rposition(|(other, _)| other == name) {
                    self.savepoints.truncate(at);
                }
            }
            Effect::RollbackTo(name) => {
                if let Some(at) = self.savepoints.iter().rposition(|(other, _)| other == name) {
                    self.now = self.savepoints[at].1.clone();
                    self.savepoints.truncate(at + 1);
                }
            }
            Effect::Set { name, value, statement, scope: Scope::Session } => {
                self.now = Arc::new(self.now.with(name, value, statement));
                self.follow_identity(name);
            }
            Effect::Reset { name } => {
                self.now = Arc::new(self.now.with_from(name, &self.startup));
                self.follow_identity(name);
            }
            Effect::ResetAll => self.reset_all(),
            Effect::Discard(Discard::All) => self.now = self.startup.clone(),
            _ => {}
        }
    }

    /// A new session authorization begins without a role.
    fn follow_identity(&mut self, name: &str) {
        if name != "session_authorization" {
            return;
        }
        self.now = Arc::new(match self.startup.get("role") {
            Some(_) => self.now.with("role", "none", "SET ROLE NONE"),
            None => self.now.with_from("role", &Settings::default()),
        });
    }

    /// RESET ALL leaves role and session authorization alone.
    fn reset_all(&mut self) {
        let kept = IDENTITY.iter().fold(self.startup.copied(), |now, name| now.with_from(name, &self.now));
        self.now = Arc::new(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(value: &str) -> Effect {
        Effect::Set {
            name: "work_mem".into(),
            value: value.into(),
            statement: format!("SET work_mem TO {value}").into(),
            scope: Scope::Session,
        }
    }

    fn after(steps: &[(&[Effect], bool, Transaction)]) -> Option<String> {
        let mut carried = Carried::default();
        for (effects, failed, transaction) in steps {
            carried.learn(effects, *failed, *transaction, false);
        }
        carried.now().get("work_mem").map(str::to_owned)
    }

    #[test]
    fn a_name_is_found_in_an_error_of_any_language() {
        for (error, is_dropped) in [
            ("invalid configuration parameter name \"a.b\"", true),
            ("ungültiger Konfigurationsparametername »a.b«", true),
            ("nom du paramètre de configuration « a.b » invalide", true),
            ("設定パラメータ名\"a.b\"は不正です", true),
            ("invalid configuration parameter name \"a.b.c\"", false),
            ("invalid configuration parameter name \"aa.b\"", false),
        ] {
            let mut carried = Carried::new(Settings::default());
            carried.bring(&Arc::new(Settings::default().with("a.b", "1", "SET a.b TO 1")));
            carried.drop_named_in(error.as_bytes());
            assert_eq!(carried.now().get("a.b").is_none(), is_dropped, "{error}");
        }
    }

    #[test]
    fn a_transaction_that_is_rolled_back_takes_its_settings_with_it() {
        use Transaction::{Idle, Open, Unit};
        let (commit, rollback) = (Effect::Commit { chain: false }, Effect::Rollback { chain: false });

        assert_eq!(after(&[(&[set("1")], false, Idle)]).as_deref(), Some("1"));
        // The BEGIN was sent ahead of the SET: it is no effect of any request.
        assert_eq!(
            after(&[(&[set("1")], false, Open), (std::slice::from_ref(&rollback), false, Idle)]),
            None
        );
        assert_eq!(
            after(&[(&[set("1")], false, Open), (std::slice::from_ref(&commit), false, Idle)]).as_deref(),
            Some("1")
        );
        assert_eq!(after(&[(&[set("1")], false, Open), (&[commit], true, Idle)]), None);
        assert_eq!(after(&[(&[set("1")], false, Unit), (&[], false, Idle)]).as_deref(), Some("1"));
        assert_eq!(after(&[(&[set("1")], false, Unit), (&[], true, Unit), (&[], false, Idle)]), None);
    }
}
