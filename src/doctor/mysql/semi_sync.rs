//! Semi-synchronous replication: where it would hang, degrade without a word, or end with a failover.
//!
//! MariaDB has it built in, with the words master and slave; MySQL by two plugins, with source and
//! replica. Sources: MySQL's manual, "Semisynchronous Replication"; MariaDB's of the same name.

use std::sync::Arc;

use super::{Facts, Finding, Severity};
use crate::cli::count;

/// A commit that waits this long for an acknowledgement hangs, as far as an app can tell; one that
/// waits less is acknowledged without, in milliseconds.
const HANGS: u64 = 3_600_000;

/// A primary's settings and state.
struct Waiting {
    acknowledging: u64,
    wanted: u64,
    timeout: u64,
    is_on: bool,
}

/// What is wrong on one server.
pub(super) fn examine(facts: &Facts, add: &mut impl FnMut(Severity, String, &str)) {
    if facts.is_replica() {
        return examine_replica(facts, add);
    }
    if !facts.waits_for_replicas() {
        let what = "replication is asynchronous: a failover may lose the last commits".to_owned();
        let mend = "semi-synchronous replication (rpl_semi_sync_source_enabled, MariaDB: _master_enabled) if that may not be";
        return add(Severity::Note, what, mend);
    }
    Waiting::of(facts).examine(add);
    if facts.any_is(["rpl_semi_sync_source_wait_no_replica", "rpl_semi_sync_master_wait_no_slave"], "OFF") {
        let what =
            "with too few replicas commits wait for none of them: a failover then loses acknowledged writes";
        let mend = "SET GLOBAL rpl_semi_sync_source_wait_no_replica = ON (MariaDB: _master_wait_no_slave)";
        add(Severity::Warning, what.to_owned(), mend);
    }
    if facts.any_is(["rpl_semi_sync_source_wait_point", "rpl_semi_sync_master_wait_point"], "AFTER_COMMIT") {
        let what = "commits are seen by others before a replica has them: what was read may be gone after a failover";
        let mend = "SET GLOBAL rpl_semi_sync_source_wait_point = AFTER_SYNC (MariaDB: _master_wait_point)";
        add(Severity::Warning, what.to_owned(), mend);
    }
}

/// A replica that logs what it applies commits as a primary does: it waits too (seen on MariaDB 10.11
/// and MySQL 9.7).
fn examine_replica(facts: &Facts, add: &mut impl FnMut(Severity, String, &str)) {
    let waiting = Waiting::of(facts);
    if facts.waits_for_replicas() && waiting.is_on && waiting.lacks() && waiting.timeout >= HANGS {
        let what =
            "its replay waits for replicas of its own to acknowledge, and it has none: it stands still";
        let mend =
            "SET GLOBAL rpl_semi_sync_source_enabled = OFF (MariaDB: _master_enabled) until its promotion";
        add(Severity::Problem, what.to_owned(), mend);
    }
}

impl Waiting {
    fn of(facts: &Facts) -> Self {
        let clients = ["rpl_semi_sync_source_clients", "rpl_semi_sync_master_clients"];
        let timeout = ["rpl_semi_sync_source_timeout", "rpl_semi_sync_master_timeout"];
        Self {
            acknowledging: facts.number(clients).unwrap_or(0),
            // MariaDB always waits for one.
            wanted: facts.number(["rpl_semi_sync_source_wait_for_replica_count"; 2]).unwrap_or(1),
            timeout: facts.number(timeout).unwrap_or(0),
            is_on: facts.any_is(["rpl_semi_sync_source_status", "rpl_semi_sync_master_status"], "ON"),
        }
    }

    fn lacks(&self) -> bool {
        self.acknowledging < self.wanted
    }

    fn examine(&self, add: &mut impl FnMut(Severity, String, &str)) {
        let Self { acknowledging, wanted, timeout, is_on } = *self;
        let seconds = timeout / 1000;
        if self.lacks() && timeout >= HANGS {
            let needed = count(wanted as usize, "replica");
            let what = format!("{needed} must acknowledge a commit and {acknowledging} can: commits hang");
            add(
                Severity::Problem,
                what,
                "bring replicas back, with rpl_semi_sync_replica_enabled (MariaDB: _slave_enabled)",
            );
        } else if !is_on || self.lacks() {
            let what = format!(
                "semi-synchronous replication has fallen back to asynchronous ({acknowledging} of {wanted} replicas \
                 acknowledge): a failover may lose acknowledged writes"
            );
            add(
                Severity::Problem,
                what,
                "bring replicas back, with rpl_semi_sync_replica_enabled (MariaDB: _slave_enabled)",
            );
        } else if timeout < HANGS {
            let what = format!(
                "a commit that no replica acknowledges within {seconds} s is acknowledged all the same, and those \
                 behind it: a failover then loses acknowledged writes"
            );
            add(
                Severity::Warning,
                what,
                "a timeout longer than any outage, and more replicas than must acknowledge",
            );
        } else if acknowledging == wanted {
            let what = format!(
                "every acknowledging replica ({wanted}) is needed for a commit: one that stops stops all writes"
            );
            add(Severity::Warning, what, "more replicas than must acknowledge let one be away");
        }
    }
}

/// Replicas that do not take part though the primary waits for them.
pub(super) fn compare(seen: &[(&Arc<str>, &Facts)], findings: &mut Vec<Finding>) {
    let waits = |(_, facts): &&(&Arc<str>, &Facts)| !facts.is_replica() && facts.waits_for_replicas();
    if seen.iter().find(waits).is_none() {
        return;
    }
    for (address, facts) in seen.iter().filter(|(_, facts)| facts.is_replica()) {
        let mut add = |severity, what: &str, mend: &str| {
            let node = Some(Arc::clone(address));
            findings.push(Finding { severity, node, what: what.to_owned(), mend: mend.to_owned() });
        };
        if !facts.any_is(["rpl_semi_sync_replica_enabled", "rpl_semi_sync_slave_enabled"], "ON") {
            let what = "it acknowledges no commits, though its primary waits for replicas that do";
            let mend =
                "rpl_semi_sync_replica_enabled = ON (MariaDB: _slave_enabled), then restart its receiver";
            add(Severity::Warning, what, mend);
        }
    }
}

impl Facts {
    /// Semi-synchronous replication is on for its own commits.
    fn waits_for_replicas(&self) -> bool {
        self.any_is(["rpl_semi_sync_source_enabled", "rpl_semi_sync_master_enabled"], "ON")
    }

    fn any_is(&self, names: [&str; 2], value: &str) -> bool {
        names.iter().any(|name| self.is(name, value))
    }

    fn number(&self, names: [&str; 2]) -> Option<u64> {
        names.iter().find_map(|name| self.variables.get(*name)?.parse().ok())
    }
}
