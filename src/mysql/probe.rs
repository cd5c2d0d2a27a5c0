//! What a MySQL or MariaDB server says of its role, position and identity.

use std::sync::Arc;

use super::{
    backend::{Backend, Row},
    group::{self, Membership},
};
use crate::{
    protocol::{Fault, Missed},
    topology::{Claim, Facts, GtidSet, Incarnation, Position, ProbeFault, Writers},
};

/// `gtid_current_pos` is what the replication has applied and what the server itself has written;
/// `gtid_binlog_pos` bounds what it has acknowledged as a primary, and what a replica shows that writes
/// a binary log; `gtid_binlog_state` names everybody who wrote it.
const MARIADB: &str = "\
SELECT @@GLOBAL.read_only, @@GLOBAL.server_id, @@GLOBAL.max_connections, @@version, \
 (SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'UPTIME'), \
 UNIX_TIMESTAMP(SYSDATE(6)) * 1000000, '', @@GLOBAL.gtid_current_pos, @@GLOBAL.gtid_binlog_pos, \
 @@GLOBAL.server_id, @@GLOBAL.gtid_binlog_state, @@GLOBAL.log_slave_updates, 0";

/// Readers see a transaction before `gtid_executed` has it (a group of commits is added at its end):
/// until then its GTID is owned. Asked for first: what leaves the one meanwhile is in the other.
const MYSQL: &str = "\
SELECT @@GLOBAL.read_only OR @@GLOBAL.super_read_only, @@GLOBAL.server_id, @@GLOBAL.max_connections, @@version, \
 (SELECT variable_value FROM performance_schema.global_status WHERE variable_name = 'Uptime'), \
 UNIX_TIMESTAMP(SYSDATE(6)) * 1000000, @@GLOBAL.gtid_owned, @@GLOBAL.gtid_executed, '', \
 @@GLOBAL.server_uuid, '', 1, \
 (SELECT COUNT(*) FROM information_schema.plugins \
   WHERE plugin_name = 'group_replication' AND plugin_status = 'ACTIVE')";

/// Rows only where a source is configured, also while its threads are stopped (hard case 10).
const MARIADB_SOURCES: &str = "SHOW ALL SLAVES STATUS";
const MYSQL_SOURCES: &str = "SHOW REPLICA STATUS";
/// Before MySQL 8.0.22.
const OLD_SOURCES: &str = "SHOW SLAVE STATUS";

pub(super) async fn probe(server: &mut Backend) -> Result<Facts, Missed> {
    let mariadb = server.is_mariadb();
    let rows = server.query_all(if mariadb { MARIADB } else { MYSQL }).await.map_err(missed)?;
    let [row] = &rows[..] else { return Err(ProbeFault::Nonsense.into()) };
    let version = text(row, 3).and_then(read_version).ok_or(ProbeFault::Nonsense)?;
    let sources = match (mariadb, version) {
        (true, _) => MARIADB_SOURCES,
        (false, 80022..) => MYSQL_SOURCES,
        (false, _) => OLD_SOURCES,
    };
    let has_source = server.count_rows(sources).await.map_err(missed)? > 0;
    let (membership, group) = match (text(row, 12), text(row, 9)) {
        (Some("1"), Some(uuid)) => group::ask(server, uuid).await.map_err(missed)?,
        _ => (Membership::None, None),
    };
    let mut facts = read(row, version, has_source, membership).ok_or(ProbeFault::Nonsense)?;
    facts.group = group;
    facts.incarnation.started = server.shared.steady_start(&server.address, facts.incarnation.started);
    Ok(facts)
}

/// When the server of this connection was started, as every user may ask; `None`: it does not say.
pub(super) async fn started(server: &mut Backend) -> Result<Option<i64>, Fault> {
    let status = server.query_all("SHOW GLOBAL STATUS LIKE 'Uptime'").await?;
    let clock = server.query_all("SELECT UNIX_TIMESTAMP(SYSDATE(6)) * 1000000").await?;
    let number = |rows: &[Row], column| text(rows.first()?, column)?.split('.').next()?.parse::<i64>().ok();
    let read = number(&clock, 0).zip(number(&status, 1)).map(|(now, uptime)| now - uptime * 1_000_000);
    Ok(read.map(|read| server.shared.steady_start(&server.address, read)))
}

fn missed(fault: Fault) -> Missed {
    Missed::by(fault, |code| code == b"08S01")
}

fn text(row: &Row, column: usize) -> Option<&str> {
    row.get(column)?.as_deref()
}

/// Reads the probe's row; `None` when it makes no sense.
fn read(row: &Row, version: u32, has_source: bool, membership: Membership) -> Option<Facts> {
    let read_only = text(row, 0)? != "0";
    let uptime: i64 = text(row, 4)?.parse().ok()?;
    let now = text(row, 5)?.split('.').next()?.parse::<i64>().ok()?;
    let owned = owned(text(row, 6)?)?;
    let executed: GtidSet = text(row, 7)?.parse().ok()?;
    let written = executed.union(&text(row, 8)?.parse().ok()?);
    let shown = written.union(&owned);
    let writers: Option<Writers> = match text(row, 10)? {
        "" => None,
        state => Some(state.parse().ok()?),
    };
    let writers = writers.map(|writers| Arc::new(writers.with(&executed)));
    let is_replica = has_source || read_only || membership == Membership::Other;
    let tells = !is_replica || text(row, 11)? == "1";
    let position = |set: GtidSet| Some(Position::Mysql(Arc::new(set)));
    Some(Facts {
        incarnation: Incarnation { system: text(row, 9)?.into(), started: now - uptime * 1_000_000 },
        claim: if is_replica { Claim::Replica } else { Claim::Primary },
        timeline: None,
        written: if is_replica { None } else { position(written.clone()) },
        flushed: if is_replica { None } else { position(written) },
        shown: if tells { position(shown) } else { None },
        replayed: if is_replica { position(executed) } else { None },
        writers,
        horizon: None,
        connections: text(row, 2).and_then(|text| text.parse().ok()),
        server_id: text(row, 1).and_then(|text| text.parse().ok()),
        group: None,
        version,
    })
}

/// Reads `gtid_owned`, where each number has its owner behind it: `uuid:7#31:8#40`.
fn owned(text: &str) -> Option<GtidSet> {
    let mut parts = text.split('#');
    let mut gtids = parts.next()?.to_owned();
    for part in parts {
        gtids.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    gtids.parse().ok()
}

/// `8.0.36` → 80036, `10.11.19-MariaDB` → 101119.
fn read_version(text: &str) -> Option<u32> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (major, minor, patch) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    (major < 1000 && minor < 100 && patch < 100).then_some(major * 10_000 + minor * 100 + patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(read_only: &str, current: &str, binlog: &str) -> Row {
        [
            read_only,
            "7",
            "151",
            "10.11.19-MariaDB-log",
            "100",
            "1700000000000000.5",
            "",
            current,
            binlog,
            "7",
            binlog,
            "1",
            "0",
        ]
        .map(|value| Some(value.to_owned()))
        .to_vec()
    }

    #[test]
    fn a_server_with_a_source_is_a_replica_even_when_it_takes_writes() {
        for (read_only, has_source, membership, claim) in [
            ("0", false, Membership::None, Claim::Primary),
            ("0", true, Membership::None, Claim::Replica),
            ("1", false, Membership::None, Claim::Replica),
            ("1", true, Membership::None, Claim::Replica),
            ("0", false, Membership::Writer, Claim::Primary),
            // It takes writes as all members of its group do, or is cut off from them.
            ("0", false, Membership::Other, Claim::Replica),
            // A group that follows another group.
            ("1", true, Membership::Writer, Claim::Replica),
        ] {
            let facts = read(&row(read_only, "0-1-5", ""), 101_119, has_source, membership)
                .expect("it is well-formed");
            assert_eq!(facts.claim, claim);
            assert_eq!(
                (facts.written.is_some(), facts.replayed.is_some()),
                (claim == Claim::Primary, claim == Claim::Replica)
            );
        }
    }

    #[test]
    fn what_a_primary_has_written_is_all_that_its_binlog_has() {
        let facts = read(&row("0", "0-1-5,1-2-9", "0-1-7"), 101_119, false, Membership::None)
            .expect("it is well-formed");
        assert_eq!(facts.written.map(|position| position.to_string()).as_deref(), Some("0-1-7,1-2-9"));
        assert_eq!(facts.incarnation.started, 1_699_999_900_000_000);
    }

    #[test]
    fn readers_may_have_seen_what_is_in_commit_and_where_nothing_tells_it_is_unknown() {
        let shown = |owned: &str, tells: &str, has_source| {
            let mut row = row("0", "0-1-5", "");
            (row[6], row[11]) = (Some(owned.to_owned()), Some(tells.to_owned()));
            let facts = read(&row, 101_119, has_source, Membership::None)?;
            Some(facts.shown.map(|position| position.to_string()))
        };
        assert_eq!(shown("", "1", true), Some(Some("0-1-5".to_owned())));
        assert_eq!(shown("", "0", true), Some(None));
        assert_eq!(shown("", "0", false), Some(Some("0-1-5".to_owned())));
        assert_eq!(shown("nonsense#3", "1", true), None);
        let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
        for (owned_text, gtids) in [
            (format!("{uuid}:7#31"), format!("{uuid}:7")),
            (format!("{uuid}:7#31:8#40"), format!("{uuid}:7-8")),
            (format!("{uuid}:7#31,\n{uuid}:nightly:1#2"), format!("{uuid}:7:nightly:1")),
        ] {
            assert_eq!(owned(&owned_text).map(|set| set.to_string()), Some(gtids), "{owned_text}");
        }
    }

    #[test]
    fn versions_become_numbers() {
        for (text, number) in [
            ("8.0.36", Some(80_036)),
            ("10.11.19-MariaDB-0+deb12u1", Some(101_119)),
            ("9.1.0-commercial", Some(90_100)),
            ("x", None),
            ("8.0", None),
        ] {
            assert_eq!(read_version(text), number, "{text}");
        }
    }
}
