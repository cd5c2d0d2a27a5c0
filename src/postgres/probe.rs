//! What a PostgreSQL server says of its role, position and identity.

use super::{backend::Backend, settings::RUN_ANYWHERE};
use crate::{
    protocol::{Fault, Missed, TransactionFate},
    topology::{Claim, Facts, Incarnation, Lsn, Position, ProbeFault},
};

/// When the server's present life began, in microseconds. A postmaster whose processes crash starts
/// them anew and goes on itself, and a replica is then further back than before (hard case 4); but
/// the statistics do not survive that. Before version 15 asking for them cost reading a file.
macro_rules! started {
    () => {
        "(extract(epoch FROM greatest(pg_postmaster_start_time(), \
 CASE WHEN current_setting('server_version_num')::int >= 150000 \
 THEN pg_catalog.pg_stat_get_bgwriter_stat_reset_time() END)) * 1000000)::bigint"
    };
}

/// One row with everything a probe wants, on a primary and on a standby alike.
///
/// The insert position bounds all that was acknowledged, also under `synchronous_commit = off`;
/// the timeline in the control file lags behind a promotion, so it comes from the WAL file's name
/// on a primary and from the receiver on a standby (hard cases 3 and 9). The snapshot whose bound
/// of transaction ids is told was taken before the statement looked whether it is in recovery.
///
/// The connection idles until the next probe: `idle_session_timeout`, which is there from version 14 on,
/// is not for it.
const PROBE: &str = concat!(
    "\
SELECT pg_is_in_recovery(), \
 CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_insert_lsn() END, \
 CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_flush_lsn() END, \
 CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END, \
 CASE WHEN pg_is_in_recovery() \
   THEN (SELECT received_tli::text FROM pg_catalog.pg_stat_wal_receiver) \
   ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END, \
 (SELECT system_identifier FROM pg_catalog.pg_control_system()), \
 ",
    started!(),
    ", \
 current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int, \
 current_setting('server_version_num'), \
 CASE WHEN pg_is_in_recovery() THEN txid_snapshot_xmax(txid_current_snapshot()) END, \
 CASE WHEN current_setting('server_version_num')::int >= 140000 THEN set_config('idle_session_timeout', '0', false) END"
);

pub(super) async fn probe(server: &mut Backend) -> Result<Facts, Missed> {
    let is_not_ready = |code: &[u8; 5]| code.starts_with(b"57P");
    let rows = server.query_all(PROBE).await.map_err(|fault| Missed::by(fault, is_not_ready))?;
    let [row] = &rows[..] else { return Err(ProbeFault::Nonsense.into()) };
    read(row).ok_or(ProbeFault::Nonsense.into())
}

/// What became of a transaction: its id is of a server whose history this one has.
pub(super) async fn fate(server: &mut Backend, transaction: u64) -> Result<TransactionFate, Fault> {
    match server.query_all(&format!("SELECT pg_catalog.txid_status({transaction})")).await {
        Ok(rows) => {
            let status = rows.into_iter().next().and_then(|row| row.into_iter().next().flatten());
            Ok(match status.as_deref() {
                Some("committed") => TransactionFate::Committed,
                Some("aborted") => TransactionFate::RolledBack,
                _ => TransactionFate::Unknown,
            })
        }
        Err(Fault::Refused(refused)) if refused.code == IN_THE_FUTURE => Ok(TransactionFate::RolledBack),
        Err(Fault::Refused(_)) => Ok(TransactionFate::Unknown),
        Err(fault) => Err(fault),
    }
}

/// `txid_status` of an id that the server has not given to anybody yet: invalid_parameter_value.
const IN_THE_FUTURE: [u8; 5] = *b"22023";

/// When the server was started, in the probe's unit. Asked by a user's connection, which may be
/// serializable by default.
pub(super) async fn started(server: &mut Backend) -> Result<Option<i64>, Fault> {
    let rows = server.query_all(&format!("{RUN_ANYWHERE}; {STARTED}")).await?;
    let first = rows.into_iter().next().and_then(|row| row.into_iter().next().flatten());
    Ok(first.and_then(|micros| micros.parse().ok()))
}

const STARTED: &str = concat!("SELECT ", started!());

/// Reads the probe's row; `None` when it makes no sense.
fn read(row: &[Option<String>]) -> Option<Facts> {
    let text = |column: usize| row.get(column)?.as_deref();
    let standby = match text(0)? {
        "t" => true,
        "f" => false,
        _ => return None,
    };
    let timeline = match text(4) {
        Some(decimal) if standby => Some(decimal.parse().ok()?),
        Some(hexadecimal) => Some(u32::from_str_radix(hexadecimal, 16).ok()?),
        None => None,
    };
    let system = text(5)?;
    let position = |lsn: Lsn| Position::Postgres {
        // The identifier is an unsigned number that SQL shows as a signed one.
        system: system.parse::<i64>().map(|id| id as u64).unwrap_or_default(),
        timeline: timeline.unwrap_or(0),
        lsn,
    };
    let lsn = |column: usize| text(column).map(|text| text.parse::<Lsn>().ok());
    let written = match lsn(1) {
        Some(lsn) => Some(position(lsn?)),
        None => None,
    };
    let flushed = match lsn(2) {
        Some(lsn) => Some(position(lsn?)),
        None => None,
    };
    let replayed = match lsn(3) {
        Some(lsn) => Some(position(lsn?)),
        None => None,
    };
    Some(Facts {
        incarnation: Incarnation { system: system.into(), started: text(6)?.parse().ok()? },
        claim: if standby { Claim::Replica } else { Claim::Primary },
        timeline,
        shown: written.clone().or_else(|| replayed.clone()),
        written,
        flushed,
        replayed,
        writers: None,
        horizon: text(9).and_then(|text| text.parse().ok()),
        connections: text(7).and_then(|text| text.parse().ok()),
        server_id: None,
        group: None,
        version: text(8)?.parse().ok()?,
    })
}
