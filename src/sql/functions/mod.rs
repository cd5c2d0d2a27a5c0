//! What is known of built-in functions.

mod mysql;
mod postgres;

use super::Dialect;

/// Settings of PostgreSQL's by which an app finds out whether it talks to a primary.
pub(super) const PRIMARY_SETTINGS: [&str; 3] =
    ["transaction_read_only", "in_hot_standby", "default_transaction_read_only"];

/// What a call of a built-in function means for routing and for the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Builtin {
    /// Reads its arguments and what the statement names.
    Pure,
    /// Reads tables that the statement does not name.
    ReadsAll,
    /// Changes data or the server, or runs code that may.
    Writes,
    /// Asks about the server itself.
    Server,
    /// Reads or changes state of the server session, without leaving any behind that needs a pin.
    State,
    /// Draws from a sequence.
    Draws,
    /// Asks for what the previous statement left behind.
    Previous,
    /// ROW_COUNT().
    Counts,
    /// FOUND_ROWS().
    Found,
    AdvisoryLock,
    AdvisoryUnlockAll,
    NamedLock,
    ReleaseAllLocks,
    /// Sets something that only this server connection has.
    SetConfig,
    CurrentSetting,
    ShowsPrepared,
}

impl Builtin {
    /// Leaves state in the session, or shows what was left there.
    pub const fn keeps_state(self) -> bool {
        matches!(self, Self::SetConfig | Self::AdvisoryLock | Self::Previous)
    }
}

/// What calling the built-in function of this folded, bare name means; `None` if it is not one.
pub fn builtin(dialect: Dialect, name: &str) -> Option<Builtin> {
    match dialect {
        Dialect::Postgres => postgres::builtin(name),
        Dialect::Mysql => mysql::builtin(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volatile_functions_that_do_not_write_are_reads() {
        for name in ["random", "clock_timestamp", "pg_sleep", "timeofday", "gen_random_uuid", "now", "lower"]
        {
            assert_eq!(builtin(Dialect::Postgres, name), Some(Builtin::Pure), "{name}");
        }
        for name in ["rand", "uuid", "sleep", "now", "version", "connection_id"] {
            assert_eq!(builtin(Dialect::Mysql, name), Some(Builtin::Pure), "{name}");
        }
    }

    #[test]
    fn functions_that_write_or_run_text_are_not_reads() {
        for name in ["lo_unlink", "pg_notify", "query_to_xml", "ts_stat", "pg_switch_wal", "txid_current"] {
            assert_eq!(builtin(Dialect::Postgres, name), Some(Builtin::Writes), "{name}");
        }
        assert_eq!(builtin(Dialect::Postgres, "dblink_exec"), None);
        assert_eq!(builtin(Dialect::Mysql, "sys_exec"), None);
    }
}
