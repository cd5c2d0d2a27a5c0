//! Settings that a session carries from one server connection to the next.

use std::{collections::BTreeMap, sync::Arc};

use xxhash_rust::xxh3::Xxh3;

use crate::sql::{
    Effect,
    effects::{Discard, Scope},
};

/// A session's settings beyond what server connections start with. Immutable and shared: a server
/// connection remembers which of them it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The default schema.
    pub schema: Option<Box<str>>,
    /// Several statements in one string (`CLIENT_MULTI_STATEMENTS`, `COM_SET_OPTION`).
    pub multi_statements: bool,
    /// The statements that set variables, by the variable's name; user variables with their `@`.
    values: BTreeMap<Box<str>, Box<str>>,
    hash: u128,
    reading: u128,
}

/// How a connection is brought from one set of settings to another.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// In this order, each waiting for the one before.
    pub statements: Vec<Box<str>>,
    pub schema: Option<Box<str>>,
    /// The session has no default schema and the connection has one: only a new login forgets it.
    pub forget_schema: bool,
    pub multi_statements: Option<bool>,
}

/// Character set and collation: set before all else, since other statements are read by it.
pub const NAMES: &str = "names";

/// Setting it back takes more than a default.
const ROLE: &str = "role";

impl Settings {
    pub fn with(&self, name: &str, statement: &str) -> Self {
        let mut values = self.values.clone();
        // `SET NAMES` and `SET CHARACTER SET` overwrite each other's variables.
        let name = if name == "character set" { NAMES } else { name };
        values.insert(name.into(), statement.into());
        Self { values, ..self.clone() }.hashed()
    }

    /// Takes `name` from `other`, or drops it where `other` has none.
    pub fn with_from(&self, name: &str, other: &Self) -> Self {
        let mut values = self.values.clone();
        match other.values.get(name) {
            Some(value) => values.insert(name.into(), value.clone()),
            None => values.remove(name),
        };
        Self { values, ..self.clone() }.hashed()
    }

    pub fn with_schema(&self, schema: Option<&str>) -> Self {
        Self { schema: schema.map(Into::into), ..self.clone() }.hashed()
    }

    pub fn with_multi_statements(&self, on: bool) -> Self {
        Self { multi_statements: on, ..self.clone() }.hashed()
    }

    /// These settings, but text is read as it was when `then` held. A schema is never given up.
    pub fn reading_as(&self, then: &Self) -> Self {
        let of = |settings: &Self, reading: bool| {
            let values = settings.values.clone().into_iter();
            values.filter(move |(name, _)| decides_reading(name) == reading)
        };
        let values = of(self, false).chain(of(then, true)).collect();
        let schema = then.schema.clone().or_else(|| self.schema.clone());
        Self { values, schema, ..self.clone() }.hashed()
    }

    fn hashed(mut self) -> Self {
        let reading = self.values.iter().filter(|(name, _)| decides_reading(name));
        self.reading = hash_of(false, self.schema.as_deref(), reading);
        self.hash = hash_of(self.multi_statements, self.schema.as_deref(), self.values.iter());
        self
    }

    /// Equal for equal settings.
    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// Equal where a text means the same statement.
    pub fn reading(&self) -> u128 {
        self.reading
    }

    pub fn statement_of(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|statement| &**statement)
    }

    /// What brings a connection that has `had` to these settings. On a replica the access mode
    /// that the connection was opened with stays (hard case 10).
    pub fn steps_from(&self, had: &Settings, on_replica: bool) -> Steps {
        let mut steps = Steps::default();
        if self.hash == had.hash {
            return steps;
        }
        let kept = |name: &str| on_replica && name == "transaction_read_only";
        let mut assignments = String::new();
        let mut separate = Vec::new();
        for name in had.values.keys().filter(|name| !self.values.contains_key(*name) && !kept(name)) {
            match &**name {
                ROLE => separate.push("SET ROLE NONE".into()),
                NAMES => join(&mut assignments, "NAMES DEFAULT"),
                name if name.starts_with('@') => join(&mut assignments, &format!("{name} = NULL")),
                "transaction_isolation" | "transaction_read_only" => separate.push(default_transaction(name)),
                name => join(&mut assignments, &format!("SESSION {name} = DEFAULT")),
            }
        }
        let changed = |name: &str, value: &str| had.statement_of(name) != Some(value) && !kept(name);
        let names_first = self.values.get_key_value(NAMES).into_iter();
        let others = self.values.iter().filter(|(name, _)| &***name != NAMES);
        for (name, statement) in names_first.chain(others).filter(|(name, value)| changed(name, value)) {
            match statement.get(..4).filter(|_| is_assignment(name)) {
                Some(lead) if lead.eq_ignore_ascii_case("SET ") => join(&mut assignments, &statement[4..]),
                _ => separate.push(statement.clone()),
            }
        }
        if !assignments.is_empty() {
            steps.statements.push(format!("SET {assignments}").into());
        }
        steps.statements.append(&mut separate);
        if self.schema != had.schema {
            steps.schema.clone_from(&self.schema);
            steps.forget_schema = self.schema.is_none();
        }
        steps.multi_statements =
            (self.multi_statements != had.multi_statements).then_some(self.multi_statements);
        steps
    }
}

/// 0 for no settings at all.
fn hash_of<'a>(
    multi_statements: bool,
    schema: Option<&str>,
    values: impl Iterator<Item = (&'a Box<str>, &'a Box<str>)>,
) -> u128 {
    let mut hasher = Xxh3::new();
    let mut empty = !multi_statements && schema.is_none();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(&[u8::from(multi_statements), u8::from(schema.is_some())]);
    part(schema.unwrap_or_default().as_bytes());
    for (name, statement) in values {
        empty = false;
        part(name.as_bytes());
        part(statement.as_bytes());
    }
    if empty { 0 } else { hasher.digest128() | 1 }
}

/// Whether what a prepared statement does may depend on the variable's value at the time when it was
/// prepared: of character sets and `sql_mode` the parser knows, but also `time_zone`, `lc_time_names`,
/// `default_week_format` and others are looked at just once. Unknown ones count: that costs sharing only.
/// Those that do not are also those that must not change in an open transaction.
fn decides_reading(name: &str) -> bool {
    const NEVER: [&str; 9] = [
        "autocommit",
        "completion_type",
        "foreign_key_checks",
        "max_execution_time",
        "max_statement_time",
        "pseudo_slave_mode",
        "sql_log_bin",
        "sql_safe_updates",
        "unique_checks",
    ];
    const PREFIXES: [&str; 5] = ["@", "binlog_", "gtid_", "session_track_", "transaction_"];
    let never = NEVER.contains(&name)
        || name.ends_with("_timeout")
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    !never
}

/// Whether its statement is `SET assignment`, which can stand beside others.
fn is_assignment(name: &str) -> bool {
    !matches!(name, ROLE | "transaction_isolation" | "transaction_read_only")
}

fn join(assignments: &mut String, assignment: &str) {
    if !assignments.is_empty() {
        assignments.push_str(", ");
    }
    assignments.push_str(assignment);
}

/// MariaDB up to 11.0 calls these variables `tx_…`: the statement is the same everywhere.
fn default_transaction(name: &str) -> Box<str> {
    match name {
        "transaction_read_only" => "SET SESSION TRANSACTION READ WRITE".into(),
        _ => "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ".into(),
    }
}

/// The settings of a session. MySQL's are not undone by ROLLBACK.
#[derive(Debug, Default)]
pub struct Carried {
    now: Arc<Settings>,
    /// What a reset leaves: MariaDB's has the character set of the login, MySQL's the server's own.
    reset: Settings,
}

impl Carried {
    pub fn new(startup: Settings, reset: Settings) -> Self {
        Self { now: Arc::new(startup), reset }
    }

    pub fn now(&self) -> &Arc<Settings> {
        &self.now
    }

    pub fn set(&mut self, settings: Settings) {
        self.now = Arc::new(settings);
    }

    /// Takes note of an answered statement that did not fail.
    pub fn learn(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Set { name, statement, scope: Scope::Session, .. } => {
                    self.now = Arc::new(self.now.with(name, statement));
                }
                // DEFAULT is the server's, not what this client began with.
                Effect::Reset { name } => self.now = Arc::new(self.now.with_from(name, &Settings::default())),
                Effect::UseDatabase(name) => self.now = Arc::new(self.now.with_schema(Some(name))),
                Effect::Discard(Discard::All) => {
                    self.now = Arc::new(
                        self.reset
                            .with_schema(self.now.schema.as_deref())
                            .with_multi_statements(self.now.multi_statements),
                    );
                }
                _ => {}
            }
        }
    }
}

/// Writes a value as a literal that reads the same in every `sql_mode`.
pub fn quote_literal(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if !text.contains(['\'', '\\', '"']) => format!("'{text}'"),
        _ => format!("X'{}'", hex::encode(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_brought_to_a_sessions_settings_in_one_statement() {
        let had =
            Settings::default().with("sql_mode", "SET SESSION sql_mode = 'ANSI'").with("@a", "SET @a = 1");
        let wanted = Settings::default()
            .with("wait_timeout", "SET SESSION wait_timeout = 9")
            .with(NAMES, "SET NAMES latin1")
            .with("transaction_isolation", "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            .with_schema(Some("shop"));

        let steps = wanted.steps_from(&had, false);

        assert_eq!(
            steps.statements,
            [
                "SET @a = NULL, SESSION sql_mode = DEFAULT, NAMES latin1, SESSION wait_timeout = 9".into(),
                Box::<str>::from("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            ]
        );
        assert_eq!(steps.schema.as_deref(), Some("shop"));
        assert_eq!(wanted.steps_from(&wanted, false), Steps::default());
    }

    #[test]
    fn a_text_means_the_same_under_settings_that_do_not_concern_it() {
        let plain = Settings::default().with_schema(Some("shop"));
        for (name, same) in [
            ("@a", true),
            ("wait_timeout", true),
            ("transaction_isolation", true),
            ("autocommit", true),
            ("sql_mode", false),
            (NAMES, false),
            ("character_set_connection", false),
            ("time_zone", false),
            ("something_new", false),
        ] {
            let other = plain.with(name, "SET …");
            assert_eq!(plain.reading() == other.reading(), same, "{name}");
            assert_ne!(plain.hash(), other.hash(), "{name}");
        }
        assert_ne!(plain.reading(), plain.with_schema(Some("depot")).reading());
        assert_eq!(plain.reading(), plain.with_multi_statements(true).reading());
        assert_eq!(Settings::default().with("@a", "SET @a = 1").reading(), Settings::default().reading());
    }

    #[test]
    fn text_can_be_read_as_before_without_giving_up_what_was_set_since() {
        let then =
            Settings::default().with_schema(Some("shop")).with("sql_mode", "SET SESSION sql_mode = ''");
        let now = Settings::default()
            .with_schema(Some("depot"))
            .with("time_zone", "SET SESSION time_zone = '+01:00'")
            .with("@a", "SET @a = 1");

        let reading = now.reading_as(&then);

        assert_eq!(reading.reading(), then.reading());
        assert_eq!(reading, then.with("@a", "SET @a = 1"));
        assert_eq!(now.reading_as(&Settings::default()).schema.as_deref(), Some("depot"));
    }

    #[test]
    fn what_a_session_sets_never_lets_a_replica_write() {
        let wanted = Settings::default().with("transaction_read_only", "SET SESSION TRANSACTION READ WRITE");
        assert_eq!(wanted.steps_from(&Settings::default(), true), Steps::default());
        assert_eq!(Settings::default().steps_from(&wanted, true), Steps::default());
        assert_eq!(wanted.steps_from(&Settings::default(), false).statements.len(), 1);
    }
}
