//! What a PostgreSQL server says of its replication.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::postgres::Backend;

/// One server: its facts and the time of a round trip, or why there are none.
#[derive(Clone, Debug)]
pub struct Node {
    pub address: Arc<str>,
    pub answer: Result<(Facts, Duration), String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub standby: bool,
    /// `pg_control_system()`.
    pub system: String,
    /// Its clock less ours, in seconds.
    pub skew: f64,
    /// Whether the monitor's user is a member of `pg_monitor`.
    pub monitors: bool,
    /// Databases that the monitor's user may not connect to.
    pub closed: Vec<String>,
    pub replay_paused: bool,
    pub settings: HashMap<String, String>,
    /// Replicas that stream from it: state and sync_state.
    pub senders: Vec<(String, String)>,
    /// Its slots: name, whether somebody uses it, bytes of WAL that it keeps.
    pub slots: Vec<Slot>,
    /// `pg_stat_wal_receiver.status`, on a replica that has one.
    pub receiver: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slot {
    pub name: String,
    pub active: bool,
    pub kept_bytes: u64,
}

impl Facts {
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }

    /// How many connections ordinary users may have together.
    pub fn connections(&self) -> Option<u32> {
        let reserved = self.number("superuser_reserved_connections").unwrap_or(0);
        u32::try_from(self.number("max_connections")? - reserved).ok()
    }

    /// A setting that is a number.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.setting(name)?.parse().ok()
    }
}

const STATE: &str = "SELECT pg_is_in_recovery(), \
 (SELECT system_identifier FROM pg_catalog.pg_control_system()), \
 extract(epoch FROM clock_timestamp()), \
 pg_has_role(current_user, 'pg_monitor', 'USAGE'), \
 CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END, \
 (SELECT status FROM pg_catalog.pg_stat_wal_receiver)";

const SETTINGS: &str = "SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN (\
 'server_version', 'wal_level', 'max_wal_senders', 'max_replication_slots', 'hot_standby', 'wal_keep_size', \
 'synchronous_standby_names', 'synchronous_commit', 'max_connections', 'superuser_reserved_connections', \
 'recovery_min_apply_delay', 'hot_standby_feedback', 'wal_log_hints', 'data_checksums', 'fsync', 'full_page_writes', \
 'primary_slot_name', 'max_slot_wal_keep_size', 'max_worker_processes', 'max_prepared_transactions', \
 'max_locks_per_transaction')";

const SENDERS: &str =
    "SELECT coalesce(state, ''), coalesce(sync_state, '') FROM pg_catalog.pg_stat_replication";

const SLOTS: &str = "SELECT slot_name, active, CASE WHEN pg_is_in_recovery() THEN 0 \
 ELSE coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0) END::bigint FROM pg_catalog.pg_replication_slots";

const CLOSED: &str = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate \
 AND NOT has_database_privilege(current_user, datname, 'CONNECT') ORDER BY datname";

type Row = Vec<Option<String>>;

/// Asks a server for everything.
///
/// # Errors
/// In words, when it does not answer or the answer makes no sense.
pub async fn read(server: &mut Backend) -> Result<Facts, String> {
    let state = ask(server, STATE).await?;
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let settings = ask(server, SETTINGS).await?;
    let senders = ask(server, SENDERS).await?;
    let slots = ask(server, SLOTS).await?;
    let closed = ask(server, CLOSED).await?;
    let row = state.first().ok_or("the server answered nothing")?;
    let flag = |at: usize| text(row, at) == "t";
    Ok(Facts {
        standby: flag(0),
        system: text(row, 1).to_owned(),
        skew: text(row, 2).parse::<f64>().map_or(0.0, |theirs| theirs - now),
        monitors: flag(3),
        closed: closed.iter().map(|row| text(row, 0).to_owned()).collect(),
        replay_paused: flag(4),
        receiver: row.get(5).cloned().flatten(),
        settings: settings.iter().map(|row| (text(row, 0).to_owned(), text(row, 1).to_owned())).collect(),
        senders: senders.iter().map(|row| (text(row, 0).to_owned(), text(row, 1).to_owned())).collect(),
        slots: slots
            .iter()
            .map(|row| Slot {
                name: text(row, 0).to_owned(),
                active: text(row, 1) == "t",
                kept_bytes: text(row, 2).parse().unwrap_or(0),
            })
            .collect(),
    })
}

fn text(row: &Row, at: usize) -> &str {
    row.get(at).and_then(Option::as_deref).unwrap_or_default()
}

async fn ask(server: &mut Backend, sql: &str) -> Result<Vec<Row>, String> {
    server.query_all(sql).await.map_err(|fault| fault.to_string())
}
