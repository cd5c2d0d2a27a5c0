//! What a statement does to the session it runs in.

/// One change of session or transaction state, in statement order.
///
/// Names are folded as the server folds them; raw text is a slice of the statement as sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// `BEGIN`, `START TRANSACTION` in an exactly recognised form: may be held back (hard case 22).
    Begin(TransactionModes),
    /// A BEGIN with something unknown in it: opens the transaction on the primary at once.
    BeginUnknown,
    Commit {
        chain: bool,
    },
    Rollback {
        chain: bool,
    },
    /// `SAVEPOINT x`, `RELEASE x`: may be held behind a held BEGIN.
    Savepoint(Box<str>),
    Release(Box<str>),
    RollbackTo(Box<str>),
    /// `PREPARE TRANSACTION`, XA PREPARE: ends the transaction of this session without ending its work.
    PrepareTransaction,
    /// XA COMMIT: ends a transaction that XA START began, here or in another session, and no other.
    CommitXa,
    /// `SET TRANSACTION …` for the current (PostgreSQL) or next (MySQL) transaction.
    SetTransaction(TransactionModes),
    /// MySQL's `SET @@transaction_read_only = …`, which says the same of the next transaction. Not every server has
    /// a variable of that name: it is held back for none.
    SetNext(TransactionModes),
    /// MySQL: a statement of a string, behind one that sets what the next transaction is, uses a table: that is
    /// the next one.
    UsesNext,
    /// `SET CONSTRAINTS …`: may be held behind a held BEGIN.
    SetConstraints,
    /// A session setting to be carried to other server connections. `statement` is the whole
    /// statement that sets it, ready to be sent again.
    Set {
        name: Box<str>,
        value: Box<str>,
        statement: Box<str>,
        scope: Scope,
    },
    /// `RESET x`, `SET x TO DEFAULT`.
    Reset {
        name: Box<str>,
    },
    ResetAll,
    Discard(Discard),
    /// SQL-level `PREPARE name AS …` (`statement` whole), `DEALLOCATE`, `EXECUTE`.
    Prepare {
        name: Box<str>,
        statement: Box<str>,
        inner: Box<super::Intent>,
    },
    /// MySQL's `PREPARE name FROM @text`: only the server knows what has the name now.
    PreparesHere {
        name: Box<str>,
    },
    /// The statement's own access is that of its arguments; what it runs is what was prepared.
    Execute {
        name: Box<str>,
    },
    /// `None`: ALL.
    Deallocate {
        name: Option<Box<str>>,
    },
    /// Leaves state that cannot be carried: the server connection stays with the session.
    Pin(PinReason),
    /// The name of a temporary relation that the pin of that reason is for.
    Temporary {
        name: Box<str>,
        /// ON COMMIT DROP.
        until_end: bool,
    },
    /// Drops relations of these bare names.
    Drops(Box<[Box<str>]>),
    /// Declares a cursor WITH HOLD of this name (with its pin), or closes a cursor.
    HoldsCursor(Box<str>),
    ClosesCursor(Box<str>),
    /// Ends every pin of this reason (`UNLISTEN *`, `pg_advisory_unlock_all()`, `CLOSE ALL`, `UNLOCK TABLES`).
    Unpin(PinReason),
    /// May draw a value from a sequence: `currval`/`lastval` of this connection now means something.
    /// MySQL: LAST_INSERT_ID() or, behind SQL_CALC_FOUND_ROWS, FOUND_ROWS().
    DrawsSequence,
    /// Asks for what the previous statement left in its connection: lastval, currval,
    /// LAST_INSERT_ID().
    NeedsPrevious,
    /// Asks for what the very last statement, whatever it was, left in its connection.
    NeedsLast(Left),
    /// Asks for what another session may have left, unless an earlier statement of its own string leaves
    /// that itself: LAST_INSERT_ID() behind an INSERT.
    AsksItself,
    /// The same of FOUND_ROWS().
    AsksFoundItself,
    /// Is prepared here, and asks for that when it is executed.
    AsksLater(Left),
    /// Opens, moves or closes a cursor: stays on the connection of the open transaction, or of the
    /// session where it is pinned by `WITH HOLD`. In a transaction that may write: the primary.
    Cursor,
    /// Shows the names of prepared statements or portals of the connection.
    ShowsPrepared,
    /// Runs code whose effects on the session are not known (user functions, CALL, DO).
    Touches,
    /// Calls a procedure (MySQL): any number of results, and LAST_INSERT_ID() is what it left.
    Calls,
    /// Changes the catalog: what is known of functions and relations is read again.
    Ddl,
    /// Makes or changes something that only a fresh catalog tells from an ordinary table (a sequence, a
    /// view, a function, a new name): until it was read, reads that name tables use the primary.
    Redefines,
    /// Changes what a login finds: accounts, what they may do and their settings, or MySQL's defaults of a schema or
    /// of all sessions. Connections keep a part of it as it was when they were opened or chose the schema.
    Logins,
    /// Fails as long as anybody is connected to that database: PostgreSQL's DROP DATABASE and its like.
    NeedsAlone {
        database: Box<str>,
    },
    /// `USE db`.
    UseDatabase(Box<str>),
    /// `KILL`: answered by the proxy, since numbers of sessions are its own.
    Kill {
        whom: Whom,
        ending: Ending,
    },
    /// Sets a variable to a value that the server computes from what it was; what it became is carried.
    SetComputed {
        name: Box<str>,
    },
    /// Gives a user variable a value that only the connection knows. On the primary that connection stays with
    /// the session; from another, which ran it for a READ ONLY transaction or because the statement before had
    /// left the value there, it is carried on.
    Assigns {
        name: Box<str>,
    },
    /// Calls CONNECTION_ID(), which means the client's connection.
    AsksConnectionId,
    /// MySQL's `COMMIT RELEASE`: the server ends the connection behind its answer.
    Leave,
    /// A setting or question for the proxy itself.
    Proxy(ProxyCommand),
}

/// Whose session `KILL` is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    Number(u64),
    /// `CONNECTION_ID()`.
    Itself,
    /// A value that only a server could compute, or MariaDB's `USER name`: it would mean the server's own
    /// connections, which serve anybody.
    Computed,
}

/// What is to end of what a session runs, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    pub ends: Ends,
    pub force: Force,
}

impl Ending {
    pub const STATEMENT: Self = Self { ends: Ends::Statement, force: Force::Hard };
    pub const SESSION: Self = Self { ends: Ends::Session, force: Force::Hard };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ends {
    /// The one that runs now; what stands behind it in the same string may go on.
    Statement,
    /// All that the session was to run, and itself.
    Session,
}

/// MariaDB's HARD and SOFT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    Hard,
    /// What would leave a table in between goes on.
    Soft,
}

/// What a statement of MySQL leaves for the next one to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// SHOW WARNINGS, `@@warning_count`.
    Diagnostics,
    /// ROW_COUNT().
    Counts,
    /// FOUND_ROWS(), which many statements leave as it was.
    Found,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Session,
    /// `SET LOCAL`: until the end of the transaction; not carried.
    Local,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransactionModes {
    /// `Some(true)` for READ ONLY, `Some(false)` for READ WRITE.
    pub read_only: Option<bool>,
    pub isolation: Option<Isolation>,
    pub deferrable: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    ReadUncommitted,
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    All,
    Plans,
    Sequences,
    Temp,
}

/// Why a server connection has to stay with a session. The label of `pointsman_pins_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PinReason {
    TempTable,
    HoldCursor,
    Listen,
    AdvisoryLock,
    TableLock,
    NamedLock,
    /// LOCK INSTANCE FOR BACKUP, BACKUP STAGE, BACKUP LOCK.
    BackupLock,
    UserVariable,
    /// lastval/currval, LAST_INSERT_ID() …, from their first use on.
    Sequence,
    /// A user function, CALL or DO ran whose body may leave state behind.
    Function,
    /// LOAD 'library'.
    Library,
    /// A cursor of MySQL's protocol.
    Cursor,
    /// HANDLER … OPEN.
    Handler,
    /// `pool.mode = "session"`.
    SessionMode,
    /// A setting that cannot be sent again (its value is not literal, or lexing depends on it).
    Setting,
}

/// `SET pointsman.x = …` and `SHOW pointsman.x`; `SET @pointsman_x`, `SELECT @pointsman_x`.
///
/// Names come without the prefix, values without their quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProxyCommand {
    Set {
        name: Box<str>,
        value: Box<str>,
        scope: Scope,
        /// What its column is to be called, where it is answered by a row (`set_config`).
        column: Option<Box<str>>,
    },
    /// To what only a server could compute, or what is bound.
    SetComputed {
        name: Box<str>,
    },
    Reset {
        name: Box<str>,
    },
    /// One at least: MySQL's SELECT names several.
    Show {
        shown: Box<[Shown]>,
    },
    /// Reads or sets one where only a server could, to which it means nothing: MySQL's variables are NULL there.
    Misplaced {
        name: Box<str>,
    },
}

/// A setting that is asked for, and what its column is to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub name: Box<str>,
    pub column: Box<str>,
    /// No error where there is no such setting, but NULL: `current_setting(…, true)`.
    pub missing_ok: bool,
}

impl Effect {
    /// The name of a SQL PREPARE that means something else from then on, or nothing: MySQL drops what had it
    /// before also where the new statement is faulty.
    pub fn replaced_name(&self) -> Option<&str> {
        match self {
            Self::Prepare { name, .. }
            | Self::PreparesHere { name }
            | Self::Deallocate { name: Some(name) } => Some(name),
            _ => None,
        }
    }

    /// Whether the proxy alone can answer for it.
    pub fn is_the_proxys(&self) -> bool {
        matches!(self, Self::Kill { .. } | Self::Proxy(_))
    }

    /// Whether a statement with it may use no table all the same, and is no transaction's (MySQL).
    pub(super) fn begins_none(&self) -> bool {
        matches!(
            self,
            Self::Set { .. }
                | Self::SetTransaction(_)
                | Self::SetNext(_)
                | Self::Reset { .. }
                | Self::UseDatabase(_)
                | Self::NeedsPrevious
                | Self::NeedsLast(_)
                | Self::AsksItself
                | Self::AsksConnectionId
                | Self::Pin(PinReason::NamedLock)
                | Self::Unpin(_)
        )
    }

    /// Whether a transaction ends by it, and how if all goes well.
    pub fn ends_as_committed(&self) -> Option<bool> {
        match self {
            Self::Commit { .. } | Self::PrepareTransaction | Self::CommitXa => Some(true),
            Self::Rollback { .. } => Some(false),
            _ => None,
        }
    }

    /// What it does to the session, for people and for JSON: `set search_path`, `pin listen`.
    pub fn describe(&self) -> String {
        match self {
            Self::Begin(modes) => format!("begin{}", modes.describe()),
            Self::BeginUnknown => "begin, on the primary at once".into(),
            Self::Commit { chain } => if *chain { "commit and chain" } else { "commit" }.into(),
            Self::Rollback { chain } => if *chain { "rollback and chain" } else { "rollback" }.into(),
            Self::Savepoint(name) => format!("savepoint {name}"),
            Self::Release(name) => format!("release {name}"),
            Self::RollbackTo(name) => format!("rollback to {name}"),
            Self::PrepareTransaction => "prepare transaction".into(),
            Self::CommitXa => "commit a transaction of XA".into(),
            Self::SetTransaction(modes) | Self::SetNext(modes) => {
                format!("set transaction{}", modes.describe())
            }
            Self::UsesNext => "a transaction of what was set".into(),
            Self::SetConstraints => "set constraints".into(),
            Self::Set { name, scope: Scope::Session, .. } => format!("set {name}"),
            Self::Set { name, scope: Scope::Local, .. } => format!("set local {name}"),
            Self::Reset { name } => format!("reset {name}"),
            Self::ResetAll => "reset all".into(),
            Self::Discard(Discard::All) => "discard all".into(),
            Self::Discard(Discard::Plans) => "discard plans".into(),
            Self::Discard(Discard::Sequences) => "discard sequences".into(),
            Self::Discard(Discard::Temp) => "discard temp".into(),
            Self::Prepare { name, .. } => format!("prepare {name}"),
            Self::PreparesHere { name } => format!("prepare {name}, as the server has it"),
            Self::Execute { name } => format!("execute {name}"),
            Self::Deallocate { name: Some(name) } => format!("deallocate {name}"),
            Self::Deallocate { name: None } => "deallocate all".into(),
            Self::Pin(reason) => format!("pin {}", reason.label()),
            Self::Temporary { name, .. } => format!("temporary relation {name}"),
            Self::Drops(names) => format!("drops {}", names.join(", ")),
            Self::HoldsCursor(name) => format!("cursor {name} with hold"),
            Self::ClosesCursor(name) => format!("close cursor {name}"),
            Self::Unpin(reason) => format!("unpin {}", reason.label()),
            Self::DrawsSequence => "may draw from a sequence".into(),
            Self::NeedsPrevious => "asks for what the previous statement left behind".into(),
            Self::NeedsLast(Left::Diagnostics) => "asks for warnings of the statement before".into(),
            Self::NeedsLast(Left::Counts | Left::Found) => {
                "asks for numbers of rows of the statement before".into()
            }
            Self::AsksItself => "asks for what an earlier statement of its own leaves".into(),
            Self::AsksFoundItself => "asks for the rows that were found before, in its own string".into(),
            Self::AsksLater(_) => "is to ask for what a statement before leaves".into(),
            Self::Cursor => "cursor".into(),
            Self::ShowsPrepared => "shows prepared statements or cursors".into(),
            Self::Touches => "may leave state behind".into(),
            Self::Calls => "calls a procedure".into(),
            Self::Ddl => "changes the catalog".into(),
            Self::Redefines => "changes what a name stands for".into(),
            Self::Logins => "changes accounts or what their sessions begin with".into(),
            Self::NeedsAlone { database } => format!("closes idle connections to {database}"),
            Self::UseDatabase(name) => format!("use {name}"),
            Self::SetComputed { name } => format!("set {name}, computed"),
            Self::Assigns { name } => format!("set {name}, to what its connection knows"),
            Self::AsksConnectionId => "asks for the connection's number".into(),
            Self::Leave => "leaves the server".into(),
            Self::Kill { whom, ending } => format!("kill{}{}", ending.describe(), whom.describe()),
            Self::Proxy(ProxyCommand::Set { name, .. } | ProxyCommand::SetComputed { name }) => {
                format!("set pointsman.{name}")
            }
            Self::Proxy(ProxyCommand::Misplaced { name }) => {
                format!("pointsman.{name}, which no server knows")
            }
            Self::Proxy(ProxyCommand::Reset { name }) => format!("reset pointsman.{name}"),
            Self::Proxy(ProxyCommand::Show { shown }) => {
                let names: Vec<&str> = shown.iter().map(|shown| &*shown.name).collect();
                format!("show pointsman.{}", names.join(", pointsman."))
            }
        }
    }
}

impl Whom {
    fn describe(self) -> String {
        match self {
            Self::Number(number) => format!(" {number}"),
            Self::Itself => " itself".into(),
            Self::Computed => ", computed".into(),
        }
    }
}

impl Ending {
    const fn describe(self) -> &'static str {
        match self.ends {
            Ends::Statement => " query",
            Ends::Session => "",
        }
    }
}

/// What statements leave said of the next transaction (MySQL); `None` if they leave nothing.
pub fn said_of_next(effects: &[Effect]) -> Option<TransactionModes> {
    effects.iter().fold(None, |said, effect| match effect {
        Effect::SetTransaction(modes) | Effect::SetNext(modes) => Some(said.unwrap_or_default().with(*modes)),
        Effect::Set { name, .. } => said.map(|said| said.outdone_by(name)),
        Effect::Begin(_) | Effect::BeginUnknown | Effect::UsesNext | Effect::Execute { .. } => None,
        effect if effect.ends_as_committed().is_some() => None,
        _ => said,
    })
}

impl TransactionModes {
    /// What a setting of all transactions to come leaves said of the next one (MySQL).
    #[must_use]
    pub fn outdone_by(self, name: &str) -> Self {
        match name {
            "transaction_isolation" => Self { isolation: None, ..self },
            "transaction_read_only" => Self { read_only: None, ..self },
            _ => self,
        }
    }

    /// With what `newer` says.
    #[must_use]
    pub fn with(self, newer: Self) -> Self {
        Self {
            read_only: newer.read_only.or(self.read_only),
            isolation: newer.isolation.or(self.isolation),
            deferrable: newer.deferrable.or(self.deferrable),
        }
    }

    fn describe(self) -> String {
        let isolation = self.isolation.map(|isolation| match isolation {
            Isolation::ReadUncommitted => " read uncommitted",
            Isolation::ReadCommitted => " read committed",
            Isolation::RepeatableRead => " repeatable read",
            Isolation::Serializable => " serializable",
        });
        let read_only = self.read_only.map(|only| if only { " read only" } else { " read write" });
        let deferrable = self.deferrable.map(|yes| if yes { " deferrable" } else { " not deferrable" });
        [isolation, read_only, deferrable].into_iter().flatten().collect()
    }
}

impl PinReason {
    pub const ALL: [PinReason; 15] = [
        Self::TempTable,
        Self::HoldCursor,
        Self::Listen,
        Self::AdvisoryLock,
        Self::TableLock,
        Self::NamedLock,
        Self::BackupLock,
        Self::UserVariable,
        Self::Sequence,
        Self::Function,
        Self::Library,
        Self::Cursor,
        Self::Handler,
        Self::SessionMode,
        Self::Setting,
    ];

    /// The value of the metric's label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TempTable => "temp_table",
            Self::HoldCursor => "hold_cursor",
            Self::Listen => "listen",
            Self::AdvisoryLock => "advisory_lock",
            Self::TableLock => "table_lock",
            Self::NamedLock => "named_lock",
            Self::BackupLock => "backup_lock",
            Self::UserVariable => "user_variable",
            Self::Sequence => "sequence",
            Self::Function => "function",
            Self::Library => "library",
            Self::Cursor => "cursor",
            Self::Handler => "handler",
            Self::SessionMode => "session_mode",
            Self::Setting => "setting",
        }
    }
}
