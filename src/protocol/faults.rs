//! How logins, connections and exchanges fail.

use std::{fmt, io, sync::Arc};

use crate::{refusal::Refusal, topology::ProbeFault};

/// An error that a server gave and the client has not seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The error as the server's protocol has it, whole.
    pub raw: Vec<u8>,
    pub cause: RefusedCause,
    /// SQLSTATE, for logs.
    pub code: [u8; 5],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedCause {
    /// The statement writes (25006, 1290, 1792, 1836): worth remembering.
    Writes,
    /// A standby cannot do this, or cancelled it (recovery conflict): the primary can.
    Standby,
    /// A newer copy might not give this error.
    MaybeStale,
    /// A carried setting or a statement sent ahead failed: the request did not run.
    Setting,
    /// The prepared statement has to be prepared anew; nothing was done.
    Replan,
    /// The server is stopping; a plain statement has provably not been committed.
    Stopping,
}

/// How an exchange failed.
#[derive(Debug)]
pub enum Fault {
    /// The client's connection is gone or speaks nonsense; what there was to say has been said.
    Client(io::Error),
    /// The client broke the protocol: it is told, then closed.
    Protocol(Refusal),
    /// The server's connection broke. `sent`: some of the request had left.
    Server { error: io::Error, sent: bool, forwarded: Forwarded },
    /// Nothing was forwarded; another node may be asked.
    Refused(Refused),
}

/// How much of an answer had reached the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    Nothing,
    /// Whole messages: an error may follow.
    Some,
    /// The last message was cut off: nothing that follows would be understood.
    Torn,
}

/// Why a server connection could not be opened.
#[derive(Debug)]
pub enum ConnectFault {
    /// Not reached, refused, or broken off.
    Unreachable(io::Error),
    /// It is starting or stopping.
    NotReady,
    /// It has no connection left to give: wait and shrink, do not call it down.
    TooMany,
    /// It refused this user or database: `raw` is its error as its protocol has it.
    Refused { raw: Vec<u8>, code: [u8; 5] },
}

impl fmt::Display for ConnectFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(error) => write!(f, "cannot be reached: {error}"),
            Self::NotReady => {
                f.write_str("is starting or stopping, or takes no connections (hot_standby = off?)")
            }
            Self::TooMany => f.write_str("has no connection left to give"),
            Self::Refused { raw, code } => write_error(f, raw, *code),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_error(f, &self.raw, self.code)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(error) => write!(f, "the client is lost: {error}"),
            Self::Protocol(refusal) => f.write_str(&refusal.message),
            Self::Server { error, .. } => write!(f, "the connection broke: {error}"),
            Self::Refused(refused) => refused.fmt(f),
        }
    }
}

/// A server's text is foreign: it must not begin a line of its own.
fn write_error(f: &mut fmt::Formatter<'_>, raw: &[u8], code: [u8; 5]) -> fmt::Result {
    let message = String::from_utf8_lossy(message(raw)).replace(char::is_control, " ");
    write!(f, "{message} ({})", String::from_utf8_lossy(&code))
}

/// The text of a server's error, in either protocol.
fn message(raw: &[u8]) -> &[u8] {
    /// Of an ERR packet: header, marker, number, `#` and SQLSTATE.
    const BEFORE_MESSAGE: usize = 4 + 1 + 2 + 6;
    if raw.first() == Some(&b'E') {
        // An ErrorResponse: fields of a letter and a text; M is the message.
        let fields = raw.get(5..).unwrap_or_default().split(|byte| *byte == 0);
        return fields.filter_map(|field| field.strip_prefix(b"M")).next().unwrap_or_default();
    }
    raw.get(BEFORE_MESSAGE..).unwrap_or_default()
}

/// A probe that failed, and how in the server's or the system's words.
#[derive(Clone, Debug)]
pub struct Missed {
    pub fault: ProbeFault,
    pub detail: Option<Arc<str>>,
}

impl Missed {
    pub fn said(&self) -> Arc<str> {
        self.detail.clone().unwrap_or_else(|| self.fault.label().into())
    }

    /// A question that failed. `is_not_ready`: whether a SQLSTATE says that the server starts or stops.
    pub fn by(fault: Fault, is_not_ready: impl FnOnce(&[u8; 5]) -> bool) -> Self {
        match fault {
            Fault::Refused(refused) if is_not_ready(&refused.code) => ProbeFault::NotReady.into(),
            Fault::Refused(refused) => {
                let detail = format!("{}: {refused}", ProbeFault::Refused.label());
                Self { fault: ProbeFault::Refused, detail: Some(detail.into()) }
            }
            _ => ProbeFault::Unreachable.into(),
        }
    }
}

impl From<ProbeFault> for Missed {
    fn from(fault: ProbeFault) -> Self {
        Self { fault, detail: None }
    }
}

impl From<ConnectFault> for Missed {
    fn from(fault: ConnectFault) -> Self {
        let detail = Some(fault.to_string().into());
        let fault = match fault {
            ConnectFault::Unreachable(_) => ProbeFault::Unreachable,
            ConnectFault::NotReady => ProbeFault::NotReady,
            ConnectFault::TooMany => ProbeFault::Full,
            ConnectFault::Refused { .. } => ProbeFault::Refused,
        };
        Self { fault, detail }
    }
}

/// Why a client did not get in. It has been told what it should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoginFault {
    Password,
    UnknownUser,
    Protocol,
    Tls,
    /// The connection broke.
    Closed,
    TimedOut,
    /// It had said nothing yet, and made room for others.
    Crowded,
    Forbidden,
    /// Servers that would know the verifier cannot be reached.
    Unavailable,
    /// A server refused the user or the database.
    Refused,
    /// It asked of the proxy what there is not, by a setting of the proxy's own.
    Setting,
}

/// A client that did not get in, and the detail for the log: what it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnedAway {
    pub fault: LoginFault,
    pub detail: String,
}

impl TurnedAway {
    pub fn told(fault: LoginFault, what: impl fmt::Display) -> Self {
        Self { fault, detail: what.to_string() }
    }
}

impl From<LoginFault> for TurnedAway {
    fn from(fault: LoginFault) -> Self {
        Self { fault, detail: String::new() }
    }
}

impl LoginFault {
    /// The value of the label `result` of `pointsman_logins_total`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Password => "wrong_password",
            Self::UnknownUser => "unknown_user",
            Self::Protocol => "protocol",
            Self::Tls => "tls",
            Self::Closed => "closed",
            Self::TimedOut => "timeout",
            Self::Crowded => "crowded",
            Self::Forbidden => "too_many_clients",
            Self::Unavailable => "unavailable",
            Self::Refused => "refused_by_server",
            Self::Setting => "invalid_setting",
        }
    }
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        Fault::Refused(refused)
    }
}
