//! Statement text → [`Intent`]: what a statement does, as far as routing and session state care.
//!
//! Pure: no sockets, no clock, no runtime. A statement that cannot be understood is a write.

pub mod body;
pub mod cache;
pub mod catalog;
mod classify;
pub mod connection_id;
pub mod effects;
pub mod functions;
pub mod hints;
pub(crate) mod lexer;

use std::{ops::Range, sync::Arc};

pub use classify::{
    TURNED_AROUND, bound_set_config, bound_variable, classify, shows_definition, split, system_view,
};
pub use effects::{Effect, Isolation, PinReason};
pub use hints::Hints;
use lexer::{Kind, tokens::Tokens};

/// Whose SQL is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    Postgres,
    /// MySQL and MariaDB: one lexer and parser, the union of their functions.
    Mysql,
}

/// How the names of MySQL's variables begin that are the proxy's own.
const PROXY_VARIABLES: &str = "pointsman_";

/// Where the parameters of a statement stand (`$1`, in MySQL `?`), in order; `None` for a text that
/// cannot be read. By the modes of a fresh session.
pub fn placeholders(text: &str, dialect: Dialect) -> Option<Vec<Range<usize>>> {
    let tokens = Tokens::of(text.as_bytes(), dialect, LexModes::default_of(dialect));
    let parameters = tokens.list.iter().filter(|token| token.kind == Kind::Param);
    tokens.scan.clean.then(|| parameters.map(|token| token.start..token.end).collect())
}

/// Whether this keyword stands in a statement of MySQL's, outside of comments, quotes and literals.
pub fn says_word(text: &str, modes: LexModes, word: &str) -> bool {
    let tokens = Tokens::of(text.as_bytes(), Dialect::Mysql, modes);
    let mut words = tokens.list.iter().filter(|token| token.kind == Kind::Word);
    words.any(|token| text[token.start..token.end].eq_ignore_ascii_case(word))
}

/// Session settings that change how text is split into tokens.
///
/// A session in any mode but the default is either lexed by these rules or its statements go to
/// the primary unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LexModes {
    /// PostgreSQL `standard_conforming_strings`; MySQL's inverse of `NO_BACKSLASH_ESCAPES` is
    /// `false` here (backslash escapes in plain strings).
    pub standard_strings: bool,
    /// MySQL `ANSI_QUOTES`: `"x"` is an identifier.
    pub ansi_quotes: bool,
    /// A client encoding in which a byte below 0x80 may be half of a character (SJIS, BIG5, GBK,
    /// GB18030, UHC): only text of ASCII alone is parsed.
    pub unreadable: bool,
    /// A PostgreSQL client encoding in which letters beyond ASCII are other bytes than in the catalog's
    /// UTF-8: names that have some are not found there.
    pub foreign_letters: bool,
    /// A MySQL mode with a grammar that is not known here (sql_mode ORACLE, MSSQL): nothing is parsed.
    pub foreign: bool,
}

impl LexModes {
    /// What a fresh session of this dialect has.
    pub const fn default_of(dialect: Dialect) -> Self {
        Self {
            standard_strings: matches!(dialect, Dialect::Postgres),
            ansi_quotes: false,
            unreadable: false,
            foreign_letters: false,
            foreign: false,
        }
    }
}

impl LexModes {
    /// The modes that hold for this very text: in encodings without ASCII safety a text of ASCII alone
    /// reads like any other, for the first half of a character is beyond it. (In MySQL's of two bytes or
    /// more for each character it does not, and no client can have them: 1231.)
    pub(crate) fn for_text(self, text: &[u8]) -> Self {
        Self { unreadable: self.unreadable && !text.is_ascii(), ..self }
    }

    /// Whether anything can be read.
    pub(crate) fn are_known(self) -> bool {
        !self.unreadable && !self.foreign
    }

    /// The modes behind `SET sql_mode = value`.
    pub(crate) fn with_sql_mode(self, value: &str) -> Self {
        let value = value.to_ascii_lowercase();
        let has = |wanted: &[&str]| value.split(',').any(|mode| wanted.contains(&mode.trim()));
        Self {
            // ANSI and its like are combinations that hold ANSI_QUOTES.
            ansi_quotes: has(&["ansi_quotes", "ansi", "db2", "maxdb", "mssql", "oracle", "postgresql"]),
            standard_strings: has(&["no_backslash_escapes"]),
            // One has blocks of its own; to the other `[x]` is an identifier.
            foreign: has(&["oracle", "mssql"]),
            ..self
        }
    }

    /// The modes of a client whose character set is `charset`.
    pub(crate) fn with_charset(self, charset: &str) -> Self {
        let charset = charset.split_ascii_whitespace().next().unwrap_or_default();
        let charset = charset.trim_matches(['\'', '"']).to_ascii_lowercase();
        Self { unreadable: is_unreadable(&charset), ..self }
    }
}

/// Character sets in which a byte of ASCII's range may be part of another character.
fn is_unreadable(charset: &str) -> bool {
    matches!(charset, "sjis" | "cp932" | "big5" | "gbk" | "gb18030" | "ucs2" | "utf16" | "utf16le" | "utf32")
}

/// Where a statement may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads only: any node whose copy is fresh enough.
    Read,
    /// May write, needs the primary, or was not understood.
    Write,
}

impl Access {
    /// The value of the metric's label, and what `pointsman route` prints.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// Why a statement was given its [`Access`]. The label `reason` of `pointsman_statements_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// SELECT, VALUES, TABLE, WITH of reads, EXPLAIN, COPY TO STDOUT.
    Read,
    /// Only the session's own state is touched (SET, RESET, PREPARE …): any node will do.
    Session,
    /// INSERT, UPDATE, DELETE, MERGE, COPY FROM, REPLACE, LOAD DATA.
    Dml,
    /// Data definition, GRANT, VACUUM and the like.
    Ddl,
    /// FOR UPDATE/SHARE, LOCK, LOCK IN SHARE MODE.
    Lock,
    /// Calls a function that writes or is not known.
    Function,
    /// Asks about the server itself, or reads state that only the primary has.
    Server,
    /// Reads or keeps state of the server session (sequences, user variables, temporary tables).
    State,
    /// Touches a relation whose content a replica does not have.
    Relation,
    /// Begins, ends or belongs to a transaction that may write.
    Transaction,
    /// DO, CALL, several statements with a write, 2PC, LISTEN/NOTIFY and other commands for the primary.
    Command,
    /// The parser did not understand it.
    Unparsed,
    /// Too long to parse.
    TooLong,
    /// The session's encoding or mode keeps it from being read.
    Unreadable,
    /// A replica refused it before.
    Learned,
    /// A hint said so.
    Hint,
}

impl Reason {
    pub const ALL: [Reason; 16] = [
        Self::Read,
        Self::Session,
        Self::Dml,
        Self::Ddl,
        Self::Lock,
        Self::Function,
        Self::Server,
        Self::State,
        Self::Relation,
        Self::Transaction,
        Self::Command,
        Self::Unparsed,
        Self::TooLong,
        Self::Unreadable,
        Self::Learned,
        Self::Hint,
    ];

    /// The value of the metric's label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Session => "session",
            Self::Dml => "dml",
            Self::Ddl => "ddl",
            Self::Lock => "lock",
            Self::Function => "function",
            Self::Server => "server",
            Self::State => "state",
            Self::Relation => "relation",
            Self::Transaction => "transaction",
            Self::Command => "command",
            Self::Unparsed => "unparsed",
            Self::TooLong => "too_long",
            Self::Unreadable => "unreadable",
            Self::Learned => "learned",
            Self::Hint => "hint",
        }
    }

    /// Whether a statement that is a write for this reason may change data that others can see.
    pub const fn changes_data(self) -> bool {
        !matches!(self, Self::Session | Self::Server | Self::State | Self::Transaction | Self::Hint)
    }

    /// One sentence for people.
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::Read => "reads only",
            Self::Session => "concerns the session alone",
            Self::Dml => "changes rows",
            Self::Ddl => "changes definitions or maintains the server",
            Self::Lock => "locks rows or tables",
            Self::Function => "calls a function that writes or is not known",
            Self::Server => "asks about the server itself",
            Self::State => "reads or keeps state of the server session",
            Self::Relation => "names a relation that a replica cannot answer",
            Self::Transaction => "begins, shapes or ends a transaction",
            Self::Command => "a command for the primary",
            Self::Unparsed => "was not understood",
            Self::TooLong => "is too long to be read",
            Self::Unreadable => "the session's encoding or mode keeps it from being read",
            Self::Learned => "a replica refused it before",
            Self::Hint => "a hint vouches for it",
        }
    }
}

/// What one statement, or several sent as one string, will do.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    pub access: Access,
    pub reason: Reason,
    /// What it does to the session, in the order of the statements. Empty for most.
    pub effects: Vec<Effect>,
    /// The tables it touches: what `global` and `user` consistency keep floors by.
    pub tables: Tables,
    pub hints: Hints,
    /// A hash of the text with its literals stripped: what logs and metrics call the statement.
    pub fingerprint: u64,
    /// Number of statements in the string; 0 for an empty query.
    pub statements: u32,
    /// One autocommit INSERT, UPDATE, DELETE, MERGE or read on local tables that calls built-in
    /// functions only: a server that ends it with 57P01, or MySQL's 1053, has provably not committed it.
    pub plain: bool,
    /// May be preceded, in one implicit transaction, by settings (not VACUUM, CREATE DATABASE, …,
    /// nor transaction control).
    pub joins: bool,
    /// Its first statement ends a transaction that is open before anything runs, and runs outside of it: MySQL's
    /// implicit commits, and COMMIT and ROLLBACK ahead of other statements.
    pub outdoes: bool,
    /// A literal may stand for a relation or a type (`'t'::regclass`, `pg_relation_size('t')`), or a
    /// type that is not built in is named: what it touches is more than `tables` says.
    pub by_text: bool,
}

impl Intent {
    /// A statement by which the proxy itself is told or asked something.
    pub fn of_proxy(command: effects::ProxyCommand) -> Self {
        Self { effects: vec![Effect::Proxy(command)], ..Self::of_session(1) }
    }

    /// So many statements that concern nothing but the session, any server's part of it.
    pub fn of_session(statements: u32) -> Self {
        Self {
            access: Access::Read,
            reason: Reason::Session,
            effects: Vec::new(),
            tables: Tables::Some(Arc::new([])),
            hints: Hints::default(),
            fingerprint: 0,
            statements,
            plain: false,
            joins: true,
            outdoes: false,
            by_text: false,
        }
    }

    /// Of a string of which only the beginning was read, which is this: anything may stand behind it, another
    /// statement as well. `effects`: those that hold whatever that is.
    pub fn cut_off(&self, effects: impl IntoIterator<Item = Effect>) -> Self {
        let writes = self.access == Access::Write && self.reason.changes_data();
        Self {
            access: Access::Write,
            reason: if writes { self.reason } else { Reason::TooLong },
            effects: effects.into_iter().chain([Effect::DrawsSequence, Effect::Touches]).collect(),
            tables: Tables::All,
            statements: self.statements.saturating_add(1).max(2),
            plain: false,
            joins: false,
            ..self.clone()
        }
    }
}

impl Intent {
    /// MySQL: whether it uses no table and is no transaction's: where none is open it begins none, and what was
    /// said of the next one is still to come. (Tables of the server's own it may use: that is not told apart.)
    pub fn begins_none(&self) -> bool {
        let kind = matches!(self.reason, Reason::Read | Reason::Server | Reason::State | Reason::Command);
        let uses_none = kind && self.tables.is_empty() && self.effects.iter().all(Effect::begins_none);
        self.reason == Reason::Session || (uses_none && !self.outdoes)
    }
}

impl Tables {
    /// The names, sorted; `None` for [`Tables::All`].
    pub fn names(&self) -> Option<&[Box<str>]> {
        match self {
            Self::All => None,
            Self::Some(names) => Some(names),
        }
    }
}

/// Relations a statement names, by bare folded name (all schemas alike).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tables {
    /// Unknown, or more than can be told: counts as touching everything.
    All,
    Some(Arc<[Box<str>]>),
}

impl Tables {
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Some(names) if names.is_empty())
    }
}

impl Default for Tables {
    /// None at all.
    fn default() -> Self {
        Self::Some(Arc::new([]))
    }
}
