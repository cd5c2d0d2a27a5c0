//! Settings that a session carries from one server connection to the next.

use std::{collections::BTreeMap, sync::Arc};

use xxhash_rust::xxh3::Xxh3;

use crate::sql::{
    Effect, TURNED_AROUND,
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
    lexing: Arc<Lexing>,
    /// What sets other variables, by the variable's name; user variables with their `@`.
    values: BTreeMap<Box<str>, Value>,
    hash: u128,
    reading: u128,
}

/// The statements that set what text is read by: character sets and `sql_mode`. They read the same
/// whatever was set before.
type Lexing = BTreeMap<Box<str>, Box<str>>;

/// What sets a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Value {
    statement: Box<str>,
    /// What its text was read by. `None`: it reads the same by anything.
    read_by: Option<Arc<Lexing>>,
}

/// How a connection is brought from one set of settings to another.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// In this order, each waiting for the one before.
    pub statements: Vec<Box<str>>,
    /// Ahead of the statements, under [`SCHEMAS_CHARSET`], if it has other characters than ASCII's; else behind.
    pub schema: Option<Box<str>>,
    /// The session has no default schema and the connection has one: only a new login forgets it.
    pub forget_schema: bool,
    pub multi_statements: Option<bool>,
}

/// Lets a server read the name of a schema as it is kept here; the session's own character set comes behind.
pub const SCHEMAS_CHARSET: &str = "SET SESSION character_set_client = utf8mb4";
const CLIENT: &str = "character_set_client";

/// Character set and collation.
pub const NAMES: &str = "names";

const SQL_MODE: &str = "sql_mode";

/// Each sets the other, too.
const CONNECTION: &str = "character_set_connection";
const COLLATION: &str = "collation_connection";

/// What `SET NAMES` and `SET CHARACTER SET` set together.
const PARTS_OF_NAMES: [&str; 4] = [CLIENT, CONNECTION, "character_set_results", COLLATION];

/// Setting it back takes more than a default.
const ROLE: &str = "role";

impl Settings {
    pub fn with(&self, name: &str, statement: &str) -> Self {
        let mut settings = self.clone();
        // `SET NAMES` and `SET CHARACTER SET` overwrite each other's variables.
        let name = if name == "character set" { NAMES } else { name };
        if is_lexing(name) {
            let lexing = Arc::make_mut(&mut settings.lexing);
            forget_lexing(lexing, name);
            lexing.insert(name.into(), statement.into());
        } else {
            let quotes = name.starts_with('@') && statement.contains(['\'', '"']);
            let read_by = (quotes || !statement.is_ascii()).then(|| self.lexing.clone());
            settings.values.insert(name.into(), Value { statement: statement.into(), read_by });
        }
        settings.hashed()
    }

    /// A variable has the server's default.
    pub fn without(&self, name: &str) -> Self {
        let mut settings = self.clone();
        if is_lexing(name) {
            let lexing = Arc::make_mut(&mut settings.lexing);
            forget_lexing(lexing, name);
            if lexing.contains_key(NAMES) && PARTS_OF_NAMES.contains(&name) {
                // NAMES had set it to something else.
                lexing.insert(name.into(), format!("SET SESSION {name} = DEFAULT").into());
            }
        } else {
            settings.values.remove(name);
        }
        settings.hashed()
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
        Self { values, schema, lexing: then.lexing.clone(), ..self.clone() }.hashed()
    }

    fn hashed(mut self) -> Self {
        let reading = self.values.iter().filter(|(name, _)| decides_reading(name));
        self.reading = hash_of(false, self.schema.as_deref(), &self.lexing, reading);
        self.hash = hash_of(self.multi_statements, self.schema.as_deref(), &self.lexing, self.values.iter());
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

    /// What brings a connection that has `had` to these settings. On a replica the access mode
    /// that the connection was opened with stays (hard case 10).
    pub fn steps_from(&self, had: &Settings, on_replica: bool) -> Steps {
        let mut steps = Steps::default();
        if self.hash == had.hash {
            return steps;
        }
        let kept = |name: &str| on_replica && name == "transaction_read_only";
        let mut sets = Sets { now: had.lexing.clone(), ..Sets::default() };
        if self.schema != had.schema && self.schema.as_ref().is_some_and(|schema| !schema.is_ascii()) {
            Arc::make_mut(&mut sets.now).insert(CLIENT.into(), SCHEMAS_CHARSET.into());
        }
        for name in had.values.keys().filter(|name| !self.values.contains_key(*name) && !kept(name)) {
            match &**name {
                ROLE => sets.apart.push("SET ROLE NONE".into()),
                name if name.starts_with('@') => sets.add(&format!("{name} = NULL")),
                "transaction_isolation" | "transaction_read_only" => {
                    sets.apart.push(default_transaction(name))
                }
                name if TURNED_AROUND.contains(&name) => {
                    sets.add(&format!("SESSION {name} = @@GLOBAL.{name}"))
                }
                name => sets.add(&format!("SESSION {name} = DEFAULT")),
            }
        }
        let changed = self.values.iter().filter(|(name, value)| had.values.get(*name) != Some(*value));
        let (bound, free): (Vec<_>, Vec<_>) =
            changed.filter(|(name, _)| !kept(name)).partition(|(_, value)| value.read_by.is_some());
        for (name, value) in free {
            sets.add_value(name, value);
        }
        // What was read by something else is read by it again, before the session's own comes last.
        let (last, mut earlier): (Vec<_>, Vec<_>) =
            bound.into_iter().partition(|(_, value)| value.read_by.as_ref() == Some(&self.lexing));
        earlier.sort_by(|(_, one), (_, other)| one.read_by.cmp(&other.read_by));
        for (name, value) in earlier.into_iter().chain(last) {
            sets.add_value(name, value);
        }
        steps.statements = sets.end(&self.lexing);
        if self.schema != had.schema {
            steps.schema.clone_from(&self.schema);
            steps.forget_schema = self.schema.is_none();
        }
        steps.multi_statements =
            (self.multi_statements != had.multi_statements).then_some(self.multi_statements);
        steps
    }
}

/// The SET statements between two sets of settings.
#[derive(Debug, Default)]
struct Sets {
    statements: Vec<Box<str>>,
    /// Those that stand beside nothing else.
    apart: Vec<Box<str>>,
    /// Assignments of the statement that is being written.
    open: String,
    /// What the statements so far let the next one be read by; that being written is read by `read_by`
    /// if that matters.
    now: Arc<Lexing>,
}

impl Sets {
    fn add(&mut self, assignment: &str) {
        if !self.open.is_empty() {
            self.open.push_str(", ");
        }
        self.open.push_str(assignment);
    }

    fn add_value(&mut self, name: &str, value: &Value) {
        if let Some(lexing) = &value.read_by {
            self.read_by(lexing);
        }
        match value.statement.get(..4).filter(|_| is_assignment(name)) {
            Some(lead) if lead.eq_ignore_ascii_case("SET ") => self.add(&value.statement[4..]),
            _ => self.apart.push(value.statement.clone()),
        }
    }

    /// What is added from here on is read by `lexing`: that begins with the next statement.
    fn read_by(&mut self, lexing: &Arc<Lexing>) {
        if *lexing == self.now {
            return;
        }
        let had = std::mem::replace(&mut self.now, lexing.clone());
        let names = |lexing: &Lexing| {
            let parts = lexing.iter().filter(|(name, _)| &***name != SQL_MODE);
            parts.map(|(_, statement)| statement.clone()).collect::<Vec<_>>()
        };
        if names(lexing) != names(&had) {
            // NAMES goes first: it overwrites the others.
            self.add(lexing.get(NAMES).map_or("NAMES DEFAULT", |statement| assignment_in(statement)));
            for (_, statement) in lexing.iter().filter(|(name, _)| PARTS_OF_NAMES.contains(&&***name)) {
                self.add(assignment_in(statement));
            }
        }
        if lexing.get(SQL_MODE) != had.get(SQL_MODE) {
            let mode = lexing.get(SQL_MODE);
            self.add(mode.map_or("SESSION sql_mode = DEFAULT", |statement| assignment_in(statement)));
        }
        self.close();
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.statements.push(format!("SET {}", std::mem::take(&mut self.open)).into());
        }
    }

    fn end(mut self, lexing: &Arc<Lexing>) -> Vec<Box<str>> {
        self.read_by(lexing);
        self.close();
        self.statements.append(&mut self.apart);
        self.statements
    }
}

/// What follows SET.
fn assignment_in(statement: &str) -> &str {
    statement.get(4..).unwrap_or_default()
}

/// Whether text is read by it.
fn is_lexing(name: &str) -> bool {
    name == NAMES || name == SQL_MODE || PARTS_OF_NAMES.contains(&name)
}

/// Forgets what `name` overwrites.
fn forget_lexing(lexing: &mut Lexing, name: &str) {
    match name {
        NAMES => lexing.retain(|other, _| &**other == SQL_MODE),
        CONNECTION | COLLATION => lexing.retain(|other, _| ![CONNECTION, COLLATION].contains(&&**other)),
        _ => {
            lexing.remove(name);
        }
    }
}

/// 0 for no settings at all.
fn hash_of<'a>(
    multi_statements: bool,
    schema: Option<&str>,
    lexing: &Lexing,
    values: impl Iterator<Item = (&'a Box<str>, &'a Value)>,
) -> u128 {
    let mut hasher = Xxh3::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    let mut empty = !multi_statements && schema.is_none() && lexing.is_empty();
    part(&[u8::from(multi_statements), u8::from(schema.is_some())]);
    part(schema.unwrap_or_default().as_bytes());
    lexing.iter().flat_map(|(name, statement)| [name, statement]).for_each(|text| part(text.as_bytes()));
    for (name, value) in values {
        empty = false;
        // Sets them apart from what stands before.
        part(&[]);
        part(name.as_bytes());
        part(value.statement.as_bytes());
        let lexing = value.read_by.iter().flat_map(|lexing| lexing.iter());
        lexing.flat_map(|(name, statement)| [name, statement]).for_each(|text| part(text.as_bytes()));
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
                Effect::Reset { name } => self.now = Arc::new(self.now.without(name)),
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
                "SET @a = NULL, SESSION wait_timeout = 9, NAMES latin1, SESSION sql_mode = DEFAULT".into(),
                Box::<str>::from("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            ]
        );
        assert_eq!(steps.schema.as_deref(), Some("shop"));
        assert_eq!(wanted.steps_from(&wanted, false), Steps::default());
    }

    #[test]
    fn a_schema_is_named_under_a_character_set_that_the_sessions_own_follows() {
        let named = Settings::default().with_schema(Some("café"));
        let latin1 = named.with(NAMES, "SET NAMES latin1");
        for (had, wanted, statements) in [
            (Settings::default().with(NAMES, "SET NAMES latin1"), &latin1, vec!["SET NAMES latin1"]),
            (Settings::default(), &named, vec!["SET NAMES DEFAULT"]),
            (named.clone(), &latin1, vec!["SET NAMES latin1"]),
            (latin1.clone(), &latin1, vec![]),
        ] {
            let steps = wanted.steps_from(&had, false);
            assert_eq!(steps.statements, statements.into_iter().map(Box::from).collect::<Vec<Box<str>>>());
            assert_eq!(steps.schema.is_some(), had.schema.is_none());
        }
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
    fn text_is_read_again_by_what_it_was_read_by_before() {
        let had = Settings::default().with(SQL_MODE, "SET SESSION sql_mode = 'NO_BACKSLASH_ESCAPES'");
        let wanted = Settings::default()
            .with("@a", r"SET @a = 'it\'s'")
            .with("@b", "SET @b = 1")
            .with(NAMES, "SET NAMES latin1")
            .with("@c", "SET @c = 'é'");

        assert_eq!(
            wanted.steps_from(&had, false).statements,
            [
                "SET @b = 1, SESSION sql_mode = DEFAULT".into(),
                r"SET @a = 'it\'s', NAMES latin1".into(),
                Box::<str>::from("SET @c = 'é'"),
            ]
        );
        assert_eq!(
            wanted.steps_from(&Settings::default().with(NAMES, "SET NAMES latin1"), false).statements,
            [
                "SET @b = 1, NAMES DEFAULT".into(),
                r"SET @a = 'it\'s', NAMES latin1".into(),
                Box::<str>::from("SET @c = 'é'"),
            ]
        );
    }

    #[test]
    fn of_names_and_its_parts_the_last_word_counts() {
        let bytes =
            Settings::default().with("character_set_results", "SET SESSION character_set_results = binary");
        let plain = Settings::default().with(NAMES, "SET NAMES latin1");
        let of = |settings: &Settings| settings.steps_from(&Settings::default(), false).statements.concat();

        assert_eq!(bytes.with(NAMES, "SET NAMES latin1"), plain);
        assert_eq!(of(&bytes), "SET NAMES DEFAULT, SESSION character_set_results = binary");
        let part = plain.with(CONNECTION, "SET SESSION character_set_connection = utf8mb4");
        assert_eq!(of(&part), "SET NAMES latin1, SESSION character_set_connection = utf8mb4");
        let other = part.with(COLLATION, "SET SESSION collation_connection = utf8mb4_bin");
        assert_eq!(of(&other), "SET NAMES latin1, SESSION collation_connection = utf8mb4_bin");
        assert_eq!(
            of(&other.without(CONNECTION)),
            "SET NAMES latin1, SESSION character_set_connection = DEFAULT"
        );
        assert_eq!(Settings::default().steps_from(&part, false).statements.concat(), "SET NAMES DEFAULT");
        assert_eq!(plain.steps_from(&part, false).statements.concat(), "SET NAMES latin1");
    }

    #[test]
    fn what_a_session_sets_never_lets_a_replica_write() {
        let wanted = Settings::default().with("transaction_read_only", "SET SESSION TRANSACTION READ WRITE");
        assert_eq!(wanted.steps_from(&Settings::default(), true), Steps::default());
        assert_eq!(Settings::default().steps_from(&wanted, true), Steps::default());
        assert_eq!(wanted.steps_from(&Settings::default(), false).statements.len(), 1);
    }
}
