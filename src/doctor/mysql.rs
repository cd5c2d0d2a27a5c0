//! What MySQL and MariaDB servers say of their replication, and what follows from it.

pub mod group;
mod semi_sync;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{Finding, Severity, shared};
use crate::{config::Pool, mysql::Backend, protocol::Fault};

/// What the monitor's user needs, for both.
pub const GRANTS: &str = "GRANT REPLICATION CLIENT, PROCESS, SHOW_ROUTINE, SHOW VIEW, TRIGGER ON *.* TO the monitor's user \
 (MariaDB: REPLICA MONITOR, PROCESS, SHOW VIEW, TRIGGER ON *.* and SELECT ON mysql.*)";

/// One server: its facts and the time of a round trip, or why there are none.
#[derive(Clone, Debug)]
pub struct Node {
    pub address: Arc<str>,
    pub answer: Result<(Facts, Duration), String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// System variables, and status variables of semi-synchronous replication, by their names in
    /// lower case.
    pub variables: HashMap<String, String>,
    /// Its clock less ours, in seconds.
    pub skew: f64,
    /// Privileges that the monitor's user lacks to see what code in the database does.
    pub lacks: Vec<&'static str>,
    /// What it replicates; `None`: nothing. The error: it may not be asked.
    pub source: Result<Option<Source>, String>,
    pub group: group::Group,
}

/// A row of SHOW SLAVE STATUS.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    pub receives: String,
    pub applies: String,
    pub error: String,
    /// It goes by the source's files and positions, not by GTIDs (MariaDB).
    pub by_file: bool,
    /// How far behind it stays on purpose, in seconds.
    pub delay: u64,
}

impl Source {
    fn read(row: &[Option<String>], mariadb: bool) -> Self {
        let text = |at: usize| row.get(at).cloned().flatten().unwrap_or_default();
        let delay = if mariadb { MARIADB_DELAY } else { MYSQL_DELAY };
        Self {
            receives: text(RECEIVES),
            applies: text(APPLIES),
            error: text(LAST_ERROR),
            by_file: mariadb && text(MARIADB_USING_GTID) == "No",
            delay: text(delay).parse().unwrap_or_default(),
        }
    }
}

impl Default for Facts {
    /// A server that says nothing and replicates nothing.
    fn default() -> Self {
        Self {
            variables: HashMap::new(),
            skew: 0.0,
            lacks: Vec::new(),
            source: Ok(None),
            group: group::Group::None,
        }
    }
}

impl Facts {
    fn is(&self, name: &str, value: &str) -> bool {
        self.variables.get(name).is_some_and(|found| found.eq_ignore_ascii_case(value))
    }

    fn is_replica(&self) -> bool {
        matches!(self.source, Ok(Some(_)))
    }
}

const VARIABLES: &str = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('server_id', 'server_uuid', 'version', 'log_bin', \
 'log_slave_updates', 'log_replica_updates', 'read_only', 'super_read_only', 'gtid_mode', 'sync_binlog', \
 'innodb_flush_log_at_trx_commit', 'binlog_format', 'binlog_expire_logs_seconds', 'expire_logs_days', \
 'max_connections') \
 OR Variable_name LIKE 'rpl_semi_sync_%'";

const STATUS: &str = "SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_%'";

/// Columns of SHOW SLAVE STATUS; their places are the same in all versions of both.
const RECEIVES: usize = 10;
const APPLIES: usize = 11;
const LAST_ERROR: usize = 19;
/// … and from here on they differ.
const MARIADB_USING_GTID: usize = 42;
const MARIADB_DELAY: usize = 47;
const MYSQL_DELAY: usize = 42;

/// A replica that is away for longer than binary logs are kept has to be made anew: a weekend's repair,
/// in seconds.
const SHORT_EXPIRY: f64 = 3.0 * 86_400.0;

/// Asks which privileges are missing for the catalog of triggers, views and routines.
async fn lacks(server: &mut Backend) -> Result<Vec<&'static str>, Fault> {
    let held = server.privileges().await?;
    let has = |wanted: &str| held.iter().any(|name| &**name == wanted);
    let mut lacks: Vec<_> = ["TRIGGER", "SHOW VIEW"].into_iter().filter(|wanted| !has(wanted)).collect();
    let routine = if !server.is_mariadb() {
        (!has("SHOW_ROUTINE") && !has("SELECT")).then_some("SHOW_ROUTINE")
    } else {
        // MariaDB shows bodies of routines to whoever may read the table that they are in.
        match server.query_all("SELECT 1 FROM mysql.proc LIMIT 0").await {
            Ok(_) => None,
            Err(Fault::Refused(_)) => Some("SELECT ON mysql.*"),
            Err(fault) => return Err(fault),
        }
    };
    lacks.extend(routine);
    Ok(lacks)
}

/// Asks a server for everything.
///
/// # Errors
/// In words, when it does not answer.
pub async fn read(server: &mut Backend) -> Result<Facts, String> {
    let asked = |fault: Fault| fault.to_string();
    let clock = server.query_all("SELECT UNIX_TIMESTAMP(NOW(6))").await.map_err(asked)?;
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let theirs = clock.first().and_then(|row| row.first()?.as_deref()?.parse::<f64>().ok());
    let mut variables = server.query_all(VARIABLES).await.map_err(asked)?;
    variables.extend(server.query_all(STATUS).await.map_err(asked)?);
    let variables = variables
        .into_iter()
        .filter_map(|row| Some((row.first()?.clone()?.to_ascii_lowercase(), row.get(1)?.clone()?)));
    // MySQL 8.4 knows only the new words, MariaDB before 10.5 only the old ones.
    let status = match server.query_all("SHOW SLAVE STATUS").await {
        Ok(rows) => Ok(rows),
        Err(_) => server.query_all("SHOW REPLICA STATUS").await.map_err(asked),
    };
    let source = status.map(|rows| rows.first().map(|row| Source::read(row, server.is_mariadb())));
    let skew = theirs.map_or(0.0, |theirs| theirs - now);
    let lacks = lacks(server).await.map_err(asked)?;
    let group = group::read(server).await.map_err(asked)?;
    Ok(Facts { variables: variables.collect(), skew, lacks, source, group })
}

/// Works out what is wrong.
pub fn diagnose(pool: &Pool, nodes: &[Node]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in nodes {
        match &node.answer {
            Ok((facts, took)) => {
                let connections = facts.variables.get("max_connections").and_then(|count| count.parse().ok());
                findings.extend(shared::remarks(facts.skew, *took, pool, connections).map(|remark| Finding {
                    severity: remark.severity,
                    node: Some(node.address.clone()),
                    what: remark.what,
                    mend: remark.mend.to_owned(),
                }));
                examine(&node.address, facts, &mut findings);
            }
            Err(why) => findings.push(Finding {
                severity: Severity::Problem,
                node: Some(node.address.clone()),
                what: format!("the monitor cannot ask it: {why}"),
                mend: "see that the server runs, lets the proxy's address in, and that monitor.user and password are right".to_owned(),
            }),
        }
    }
    let seen: Vec<(&Arc<str>, &Facts)> =
        nodes.iter().filter_map(|node| Some((&node.address, &node.answer.as_ref().ok()?.0))).collect();
    together(&seen, &mut findings);
    semi_sync::compare(&seen, &mut findings);
    findings
}

fn examine(address: &Arc<str>, facts: &Facts, findings: &mut Vec<Finding>) {
    let mut add = |severity, what: String, mend: &str| {
        findings.push(Finding { severity, node: Some(address.clone()), what, mend: mend.to_owned() });
    };
    if !facts.lacks.is_empty() {
        let what = format!(
            "the monitor's user lacks {}: what triggers, views and functions do is not known; reads of `global` and \
             `user` may show old data, and calls of functions use the primary",
            facts.lacks.join(" and ")
        );
        add(Severity::Warning, what, GRANTS);
    }
    if facts.is("gtid_mode", "OFF") {
        let what =
            "GTIDs are off: positions of writes are not known, and a failover cannot be told from divergence";
        add(
            Severity::Problem,
            what.to_owned(),
            "gtid_mode = ON and enforce_gtid_consistency = ON on every server",
        );
    }
    if facts.is("log_bin", "OFF") {
        let what =
            "it writes no binary log: nothing can replicate from it, now or after a failover".to_owned();
        add(Severity::Problem, what, "log_bin in my.cnf, then restart");
    } else if facts.is("log_slave_updates", "OFF") || facts.is("log_replica_updates", "OFF") {
        let what =
            "it does not log what it replicates: after its promotion others cannot follow it".to_owned();
        add(Severity::Warning, what, "log_replica_updates = ON (MariaDB: log_slave_updates), then restart");
    }
    if facts.is("binlog_format", "STATEMENT") {
        let what =
            "binlog_format is STATEMENT: functions with other values on each server make replicas differ"
                .to_owned();
        add(Severity::Warning, what, "binlog_format = ROW");
    }
    if let Some(kept) = binlogs_kept(facts).filter(|kept| *kept < SHORT_EXPIRY) {
        let what = format!(
            "binary logs are removed after {:.1} days: a replica that is away for longer has to be made anew",
            kept / 86_400.0
        );
        add(Severity::Warning, what, "SET GLOBAL binlog_expire_logs_seconds = 604800, and in my.cnf");
    }
    group::examine(facts, &mut add);
    if facts.source.is_ok() && !facts.is_member() {
        semi_sync::examine(facts, &mut add);
    }
    match &facts.source {
        // Members of a group have channels of its own, which rest between two recoveries.
        Ok(Some(_)) if facts.is_member() => {}
        Err(why) => add(Severity::Problem, format!("the monitor may not see its replication: {why}"), GRANTS),
        Ok(Some(source)) => replica(facts, source, &mut add),
        Ok(None) => {
            for name in ["sync_binlog", "innodb_flush_log_at_trx_commit"] {
                if facts.variables.get(name).is_some_and(|value| value != "1") {
                    let what = format!("{name} is not 1: a crash loses commits that were acknowledged");
                    add(Severity::Note, what, &format!("SET GLOBAL {name} = 1, and in my.cnf"));
                }
            }
        }
    }
}

/// How long binary logs are kept, in seconds; `None`: for ever.
fn binlogs_kept(facts: &Facts) -> Option<f64> {
    let number = |name: &str| facts.variables.get(name)?.parse::<f64>().ok().filter(|number| *number > 0.0);
    // Where both are there, they show the same.
    number("binlog_expire_logs_seconds").or_else(|| number("expire_logs_days").map(|days| days * 86_400.0))
}

fn replica(facts: &Facts, source: &Source, add: &mut impl FnMut(Severity, String, &str)) {
    let error = if source.error.is_empty() { String::new() } else { format!(": {}", source.error) };
    if source.applies != "Yes" {
        let what = format!("it applies nothing{error}");
        add(
            Severity::Problem,
            what,
            "mend what its error names, then START REPLICA (START SLAVE); else make a new copy",
        );
    }
    if source.receives != "Yes" {
        let what = format!("it receives nothing ({}){error}", source.receives);
        add(
            Severity::Problem,
            what,
            "see whether its source runs, and the replication user's password and grants",
        );
    }
    if source.by_file {
        let what =
            "it follows its source by file and position (Using_Gtid: No): after a failover it cannot be \
            pointed at the new primary"
                .to_owned();
        add(Severity::Warning, what, "STOP SLAVE; CHANGE MASTER TO MASTER_USE_GTID = slave_pos; START SLAVE");
    }
    if source.delay > 0 {
        let what = format!(
            "it applies with a delay of {} s on purpose: it serves reads only within routing.max_lag",
            source.delay
        );
        add(Severity::Note, what, "none is needed if that is meant; MASTER_DELAY = 0 (SOURCE_DELAY) if not");
    }
    if facts.is("read_only", "OFF") {
        let what =
            "it accepts writes though it is a replica: one stray write, and histories differ".to_owned();
        add(Severity::Warning, what, "SET GLOBAL read_only = 1 (MySQL: super_read_only = 1), and in my.cnf");
    }
}

/// What only shows when the servers are looked at together.
fn together(seen: &[(&Arc<str>, &Facts)], findings: &mut Vec<Finding>) {
    let mut add = |what, mend: &str| {
        findings.push(Finding { severity: Severity::Problem, node: None, what, mend: mend.to_owned() });
    };
    for name in ["server_id", "server_uuid"] {
        let mut owners: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (address, facts) in seen {
            if let Some(value) = facts.variables.get(name) {
                owners.entry(value).or_default().push(address);
            }
        }
        for (value, addresses) in owners.into_iter().filter(|(_, addresses)| addresses.len() > 1) {
            let what = format!(
                "{} have the same {name} ({value}): they skip each other's transactions",
                addresses.join(" and ")
            );
            let mend = if name == "server_id" {
                "give each its own in my.cnf, then restart"
            } else {
                "remove auto.cnf from the copy's data folder, then restart it"
            };
            add(what, mend);
        }
    }
    let members: Vec<&Facts> =
        seen.iter().map(|(_, facts)| *facts).filter(|facts| facts.is_member()).collect();
    if !members.is_empty() {
        findings.extend(group::without_primary(&members));
        return;
    }
    let primaries: Vec<&str> = seen
        .iter()
        .filter(|(_, facts)| !facts.is_replica() && facts.is("read_only", "OFF"))
        .map(|(address, _)| &***address)
        .collect();
    match primaries.as_slice() {
        [] if !seen.is_empty() => add(
            "no node is primary: all are replicas or read-only".to_owned(),
            "promote one: STOP REPLICA, RESET REPLICA ALL, SET GLOBAL read_only = 0",
        ),
        [] | [_] => {}
        many => add(
            format!("several nodes accept writes and replicate from nobody: {}", many.join(", ")),
            "make all but one replicas of the right one",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn running() -> Source {
        Source { receives: "Yes".to_owned(), applies: "Yes".to_owned(), ..Source::default() }
    }

    fn facts(id: &str, replica: bool) -> Facts {
        let read_only = if replica { "ON" } else { "OFF" };
        let variables = [
            ("server_id", id),
            ("log_bin", "ON"),
            ("log_slave_updates", "ON"),
            ("binlog_format", "ROW"),
            ("read_only", read_only),
            ("sync_binlog", "1"),
            ("innodb_flush_log_at_trx_commit", "1"),
            ("binlog_expire_logs_seconds", "2592000"),
            ("rpl_semi_sync_source_enabled", if replica { "OFF" } else { "ON" }),
            ("rpl_semi_sync_replica_enabled", "ON"),
            ("rpl_semi_sync_source_status", "ON"),
            ("rpl_semi_sync_source_clients", "2"),
            ("rpl_semi_sync_source_wait_for_replica_count", "1"),
            ("rpl_semi_sync_source_wait_point", "AFTER_SYNC"),
            ("rpl_semi_sync_source_wait_no_replica", "ON"),
            ("rpl_semi_sync_source_timeout", "100000000"),
        ];
        let source = running();
        Facts {
            variables: variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            skew: 0.0,
            lacks: Vec::new(),
            source: Ok(replica.then_some(source)),
            group: group::Group::None,
        }
    }

    fn found(change: impl FnOnce(&mut Facts, &mut Facts)) -> Vec<Finding> {
        let (mut primary, mut replica) = (facts("1", false), facts("2", true));
        change(&mut primary, &mut replica);
        let node = |address: &str, facts| Node {
            address: address.into(),
            answer: Ok((facts, Duration::from_millis(1))),
        };
        let config = Config::from_url("mysql://mon:pw@a,b/db", None).expect("a good URL");
        diagnose(&config.clusters[0].pool, &[node("a:3306", primary), node("b:3306", replica)])
    }

    #[test]
    fn a_good_cluster_has_no_findings() {
        assert_eq!(found(|_, _| ()), Vec::new());
    }

    #[test]
    fn asynchronous_replication_is_noted_and_no_more() {
        expect(&[(
            |p, _| set(p, "rpl_semi_sync_source_enabled", "OFF"),
            Severity::Note,
            "replication is asynchronous",
        )]);
    }

    type Change = fn(&mut Facts, &mut Facts);

    fn set(facts: &mut Facts, name: &str, value: &str) {
        facts.variables.insert(name.to_owned(), value.to_owned());
    }

    /// Each change makes one finding: so severe, and with these words.
    fn expect(cases: &[(Change, Severity, &str)]) {
        for &(change, severity, words) in cases {
            let findings = found(change);
            let fits =
                matches!(findings.as_slice(), [one] if one.severity == severity && one.what.contains(words));
            assert!(fits, "{words}: {findings:#?}");
        }
    }

    #[test]
    fn each_fault_is_found_and_nothing_else() {
        expect(&[
            (|_, r| set(r, "server_id", "1"), Severity::Problem, "the same server_id (1)"),
            (
                |p, r| {
                    set(p, "server_uuid", "x");
                    set(r, "server_uuid", "x");
                },
                Severity::Problem,
                "the same server_uuid",
            ),
            (|_, r| r.skew = 9.0, Severity::Warning, "its clock is 9.0 s off"),
            (|p, _| set(p, "max_connections", "24"), Severity::Warning, "pool.size is 20, but of the 24"),
            (|p, _| p.lacks.push("TRIGGER"), Severity::Warning, "lacks TRIGGER:"),
            (|p, _| set(p, "gtid_mode", "OFF"), Severity::Problem, "GTIDs are off"),
            (|p, _| set(p, "log_bin", "OFF"), Severity::Problem, "no binary log"),
            (|_, r| set(r, "log_slave_updates", "OFF"), Severity::Warning, "does not log what it replicates"),
            (|p, _| set(p, "binlog_format", "STATEMENT"), Severity::Warning, "STATEMENT"),
            (|p, _| set(p, "sync_binlog", "0"), Severity::Note, "sync_binlog"),
            (|_, r| set(r, "read_only", "OFF"), Severity::Warning, "accepts writes though"),
            (
                |_, r| {
                    r.source = Ok(Some(Source {
                        applies: "No".to_owned(),
                        error: "duplicate key".to_owned(),
                        ..running()
                    }))
                },
                Severity::Problem,
                "applies nothing: duplicate key",
            ),
            (
                |_, r| r.source = Ok(Some(Source { receives: "Connecting".to_owned(), ..running() })),
                Severity::Problem,
                "receives nothing (Connecting)",
            ),
            (
                |_, r| r.source = Ok(Some(Source { by_file: true, ..running() })),
                Severity::Warning,
                "by file and position",
            ),
            (
                |_, r| r.source = Ok(Some(Source { delay: 60, ..running() })),
                Severity::Note,
                "with a delay of 60 s",
            ),
            (|_, r| r.source = Err("denied".to_owned()), Severity::Problem, "may not see"),
            (|p, _| set(p, "read_only", "ON"), Severity::Problem, "no node is primary"),
            (
                |p, _| set(p, "binlog_expire_logs_seconds", "3600"),
                Severity::Warning,
                "removed after 0.0 days",
            ),
            (
                |p, _| {
                    p.variables.remove("binlog_expire_logs_seconds");
                    set(p, "expire_logs_days", "1");
                },
                Severity::Warning,
                "removed after 1.0 days",
            ),
        ]);
    }

    #[test]
    fn each_fault_of_semi_synchronous_replication_is_found_and_nothing_else() {
        expect(&[
            (|p, _| set(p, "rpl_semi_sync_source_clients", "0"), Severity::Problem, "commits hang"),
            (
                |p, _| {
                    set(p, "rpl_semi_sync_source_clients", "0");
                    set(p, "rpl_semi_sync_source_timeout", "10000");
                },
                Severity::Problem,
                "fallen back to asynchronous (0 of 1",
            ),
            (|p, _| set(p, "rpl_semi_sync_source_status", "OFF"), Severity::Problem, "fallen back"),
            (|p, _| set(p, "rpl_semi_sync_source_timeout", "10000"), Severity::Warning, "within 10 s"),
            (
                |p, _| set(p, "rpl_semi_sync_source_clients", "1"),
                Severity::Warning,
                "one that stops stops all",
            ),
            (
                |p, _| set(p, "rpl_semi_sync_source_wait_no_replica", "OFF"),
                Severity::Warning,
                "wait for none",
            ),
            (
                |p, _| set(p, "rpl_semi_sync_source_wait_point", "AFTER_COMMIT"),
                Severity::Warning,
                "seen by others",
            ),
            (
                |_, r| set(r, "rpl_semi_sync_replica_enabled", "OFF"),
                Severity::Warning,
                "acknowledges no commits",
            ),
            (
                |_, r| {
                    set(r, "rpl_semi_sync_source_enabled", "ON");
                    set(r, "rpl_semi_sync_source_clients", "0");
                },
                Severity::Problem,
                "it stands still",
            ),
        ]);
    }
}
