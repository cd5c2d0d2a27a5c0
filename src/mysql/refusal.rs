//! Error numbers: of what the proxy refuses, and what a server's errors mean for another attempt.
//!
//! Source: MySQL's "Server Error Message Reference", MariaDB's "Error Codes".

use super::packet::{self, ErrPacket};
use crate::refusal::{Refusal, RefusalKind};

/// Whose error numbers a client takes from a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numbers {
    #[default]
    All,
    /// Servers' own. To MariaDB's library an error of a server with a number of the library's is a malformed
    /// packet (2027), whatever it says (`ma_net_safe_read`).
    Servers,
}

impl Numbers {
    /// Those that a client takes that calls itself so (`_client_name`).
    pub fn taken_by(client: Option<&[u8]>) -> Self {
        if client == Some(b"libmariadb") { Self::Servers } else { Self::All }
    }
}

/// Appends an error packet.
pub fn put_error(out: &mut Vec<u8>, sequence: u8, refusal: &Refusal, numbers: Numbers) {
    let (errno, sqlstate) = match (error_of(refusal.kind), numbers) {
        // ER_CONNECTION_KILLED: the server's number that drivers take for a broken connection, too.
        ((2013, sqlstate), Numbers::Servers) => (1927, sqlstate),
        (error, _) => error,
    };
    let mut message = refusal.message.to_string();
    for more in [refusal.detail.as_deref(), refusal.hint.as_deref()].into_iter().flatten() {
        message.push_str(". ");
        message.push_str(more);
    }
    packet::put_err(out, sequence, errno, sqlstate, message.as_bytes());
}

/// Error number and SQLSTATE.
pub const fn error_of(kind: RefusalKind) -> (u16, &'static str) {
    match kind {
        // ER_OPTION_PREVENTS_STATEMENT: what apps know from a server that takes no writes now.
        RefusalKind::NoPrimary | RefusalKind::NoReplica => (1290, "HY000"),
        RefusalKind::ShuttingDown => (1053, "08S01"),
        RefusalKind::PoolTimeout | RefusalKind::TooManyClients => (1040, "08004"),
        // CR_SERVER_LOST: drivers take it for a broken connection.
        RefusalKind::ServerLost => (2013, "08S01"),
        RefusalKind::InDoubt => (2013, "08007"),
        RefusalKind::Protocol => (1047, "08S01"),
        RefusalKind::Malformed => (1835, "HY000"),
        RefusalKind::Compression => (1157, "08S01"),
        RefusalKind::Unsupported => (1235, "42000"),
        RefusalKind::Authentication => (1045, "28000"),
        RefusalKind::UnknownDatabase => (1049, "42000"),
        RefusalKind::InvalidSetting => (1231, "42000"),
        RefusalKind::UnknownSetting => (1193, "HY000"),
        RefusalKind::UnknownNode => (1105, "HY000"),
        RefusalKind::UnknownStatement => (1243, "HY000"),
        RefusalKind::DuplicateStatement => (1461, "42000"),
        RefusalKind::UnknownSession => (1094, "HY000"),
        RefusalKind::IdleTimeout | RefusalKind::IdleInTransaction => (4031, "HY000"),
        RefusalKind::Cancelled => (1317, "70100"),
        RefusalKind::Forbidden => (1095, "HY000"),
        RefusalKind::FailedTransaction => (1402, "XA100"),
        RefusalKind::Internal => (1105, "HY000"),
    }
}

/// What an error of a server says about asking another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// It is stopping, or was told to end this connection.
    Stopping,
    /// The statement writes.
    Writes,
    /// A replica cannot do it or had to give it up.
    Standby,
    /// A copy that is further on might not say so.
    MaybeStale,
    /// Every server says so.
    Final,
}

/// Sorts an error. Texts are translated: only of 1290, which stands for many options, the name of
/// the option is looked at, and that is never translated (hard case 10).
pub fn classify(error: &ErrPacket<'_>) -> ErrorClass {
    match error.errno {
        // ER_SERVER_SHUTDOWN, ER_NORMAL_SHUTDOWN, MariaDB's ER_CONNECTION_KILLED, MySQL's
        // ER_SESSION_WAS_KILLED.
        1053 | 1077 | 1927 | 3169 => ErrorClass::Stopping,
        1290 if names_read_only(error.message) => ErrorClass::Writes,
        // ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION, ER_READ_ONLY_MODE, MariaDB's ER_INNODB_READ_ONLY.
        1792 | 1836 | 1874 => ErrorClass::Writes,
        // Locks that the replication threads hold or break.
        1205 | 1213 => ErrorClass::Standby,
        // Tables, columns, databases, routines, keys, views, users and privileges that may be new.
        1044 | 1045 | 1049 | 1054 | 1109 | 1142 | 1143 | 1146 | 1176 | 1227 | 1305 | 1356 | 1370 | 1396 | 1449
        // What a newer definition of a column would take; changed while it was read.
        | 1366 | 1412 | 1064 | 1630 | 1959 | 3530 => ErrorClass::MaybeStale,
        _ => ErrorClass::Final,
    }
}

/// Whether a statement that ends with this error has used no table yet: where no transaction was open it has
/// begun none. What is no error of the text, of a name or of a privilege counts as one that has.
pub const fn precedes_tables(errno: u16, mariadb: bool) -> bool {
    match errno {
        1044 | 1049 | 1064 | 1142 | 1143 | 1146 | 1227 | 1290 | 1305 | 1792 | 1836 => true,
        // MariaDB opens and locks tables before it looks for their columns.
        1054 => !mariadb,
        _ => false,
    }
}

fn names_read_only(message: &[u8]) -> bool {
    const OPTION: &[u8] = b"read-only";
    const VARIABLE: &[u8] = b"read_only";
    let any = |wanted: &[u8]| message.windows(wanted.len()).any(|part| part.eq_ignore_ascii_case(wanted));
    any(OPTION) || any(VARIABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_has_a_number_of_a_clients_own_for_who_takes_none() {
        for kind in RefusalKind::ALL {
            let mut out = Vec::new();
            put_error(&mut out, 1, &Refusal::new(kind, "why"), Numbers::taken_by(Some(b"libmariadb")));
            let errno = u16::from_le_bytes([out[5], out[6]]);
            assert!(!matches!(errno, 2000..3000 | 5000..), "{kind:?}: {errno}");
        }
    }

    #[test]
    fn errors_are_sorted_by_what_another_server_might_say() {
        let read_only =
            b"The MariaDB server is running with the --read-only option so it cannot execute this".as_slice();
        let files = b"The MySQL server is running with the --secure-file-priv option so it cannot".as_slice();
        for (errno, message, class) in [
            (1290, read_only, ErrorClass::Writes),
            (1290, b"running with the --super-read-only option", ErrorClass::Writes),
            (1290, files, ErrorClass::Final),
            (1792, b"", ErrorClass::Writes),
            (1836, b"", ErrorClass::Writes),
            (1146, b"", ErrorClass::MaybeStale),
            (1054, b"", ErrorClass::MaybeStale),
            (1305, b"", ErrorClass::MaybeStale),
            (1062, b"", ErrorClass::Final),
            (1053, b"", ErrorClass::Stopping),
            (1317, b"", ErrorClass::Final),
        ] {
            let error = ErrPacket { errno, sqlstate: *b"HY000", message };
            assert_eq!(classify(&error), class, "{errno}");
        }
    }
}
