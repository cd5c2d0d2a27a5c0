//! Everything the proxy itself may say to a client instead of a server's answer.

use std::borrow::Cow;

/// An error of the proxy's own. Each protocol gives it its SQLSTATE or errno.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub kind: RefusalKind,
    pub message: Cow<'static, str>,
    pub detail: Option<String>,
    pub hint: Option<Cow<'static, str>>,
    /// The connection ends after it.
    pub fatal: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    /// No primary, or no node that may answer, within the time a statement may wait.
    NoPrimary,
    /// No replica may answer and the configuration keeps reads off the primary.
    NoReplica,
    /// No server connection within `pool.checkout_timeout`.
    PoolTimeout,
    /// The server went away before it answered anything, or in mid-answer.
    ServerLost,
    /// The server went away while its answer would have told whether something was committed.
    InDoubt,
    /// The transaction that the statement belongs to is lost; the client has been told so.
    FailedTransaction,
    /// Too many clients, or too many of this user.
    TooManyClients,
    /// The proxy is stopping.
    ShuttingDown,
    /// What the client sent is not the protocol.
    Protocol,
    /// One message of it makes no sense; those that follow may.
    Malformed,
    /// What is compressed cannot be unpacked.
    Compression,
    /// The protocol has it, the proxy does not.
    Unsupported,
    /// A wrong password or an unknown user.
    Authentication,
    /// No such database.
    UnknownDatabase,
    /// A value of `pointsman.…` that makes no sense.
    InvalidSetting,
    /// `pointsman.…` that does not exist.
    UnknownSetting,
    /// A prepared statement of this name does not exist.
    UnknownStatement,
    /// A prepared statement of this name exists already.
    DuplicateStatement,
    /// Nobody has this session number (KILL).
    UnknownSession,
    /// The client was idle for too long.
    IdleTimeout,
    /// The client was idle for too long in a transaction.
    IdleInTransaction,
    /// `limits.statement_timeout`, or a cancel request while waiting.
    Cancelled,
    /// A hint names a node that does not exist or may not be used.
    UnknownNode,
    /// The client is not allowed to do that here.
    Forbidden,
    /// A fault of the proxy.
    Internal,
}

impl RefusalKind {
    pub const ALL: [Self; 25] = [
        Self::NoPrimary,
        Self::NoReplica,
        Self::PoolTimeout,
        Self::ServerLost,
        Self::InDoubt,
        Self::FailedTransaction,
        Self::TooManyClients,
        Self::ShuttingDown,
        Self::Protocol,
        Self::Malformed,
        Self::Compression,
        Self::Unsupported,
        Self::Authentication,
        Self::UnknownDatabase,
        Self::InvalidSetting,
        Self::UnknownSetting,
        Self::UnknownStatement,
        Self::DuplicateStatement,
        Self::UnknownSession,
        Self::IdleTimeout,
        Self::IdleInTransaction,
        Self::Cancelled,
        Self::UnknownNode,
        Self::Forbidden,
        Self::Internal,
    ];

    /// The value of the label `kind` of `pointsman_errors_total`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoPrimary => "no_primary",
            Self::NoReplica => "no_replica",
            Self::PoolTimeout => "pool_timeout",
            Self::ServerLost => "server_lost",
            Self::InDoubt => "in_doubt",
            Self::FailedTransaction => "failed_transaction",
            Self::TooManyClients => "too_many_clients",
            Self::ShuttingDown => "shutting_down",
            Self::Protocol => "protocol",
            Self::Malformed => "malformed",
            Self::Compression => "compression",
            Self::Unsupported => "unsupported",
            Self::Authentication => "authentication",
            Self::UnknownDatabase => "unknown_database",
            Self::InvalidSetting => "invalid_setting",
            Self::UnknownSetting => "unknown_setting",
            Self::UnknownStatement => "unknown_statement",
            Self::DuplicateStatement => "duplicate_statement",
            Self::UnknownSession => "unknown_session",
            Self::IdleTimeout => "idle_timeout",
            Self::IdleInTransaction => "idle_in_transaction",
            Self::Cancelled => "cancelled",
            Self::UnknownNode => "unknown_node",
            Self::Forbidden => "forbidden",
            Self::Internal => "internal",
        }
    }
}

impl Refusal {
    pub fn new(kind: RefusalKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: message.into(), detail: None, hint: None, fatal: false }
    }

    pub fn fatal(kind: RefusalKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { fatal: true, ..Self::new(kind, message) }
    }

    pub fn with_detail(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }

    pub fn with_hint(self, hint: impl Into<Cow<'static, str>>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}
