//! What follows from the facts.

use std::{collections::HashSet, sync::Arc, time::Duration};

use super::{
    Finding, Severity, connect_grants,
    facts::{Facts, Node},
    grant, shared,
};
use crate::{
    cli::count,
    config::{Cluster, Members},
};

/// WAL that an unused slot keeps before it is worth a warning.
const SLOT_BYTES: u64 = 64 * 1024 * 1024;

/// What a replica needs at least as much of as its primary.
const LIMITS_LIKE_THE_PRIMARYS: [&str; 5] = [
    "max_connections",
    "max_wal_senders",
    "max_worker_processes",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// Findings about one cluster, as they come.
struct Chart<'a> {
    cluster: &'a Cluster,
    findings: Vec<Finding>,
}

/// A node that answered.
type Seen<'a> = (&'a Arc<str>, &'a Facts);

/// Works out what is wrong.
pub fn diagnose(cluster: &Cluster, nodes: &[Node]) -> Vec<Finding> {
    let mut chart = Chart { cluster, findings: Vec::new() };
    if matches!(cluster.members, Members::Patroni(_)) {
        chart.whole(
            Severity::Note,
            "Patroni keeps these servers, and undoes changes that it has not made".to_owned(),
            "what is named below by patronictl edit-config, and patronictl restart where a restart is needed"
                .to_owned(),
        );
    }
    for node in nodes {
        match &node.answer {
            Ok((facts, took)) => {
                chart.node(&node.address, facts, *took);
            }
            Err(why) => chart.at(
                &node.address,
                Severity::Problem,
                format!("the monitor cannot ask it: {why}"),
                "see that the server runs (a replica with hot_standby = on), that pg_hba.conf lets the proxy in, and that monitor.user and password are right".to_owned(),
            ),
        }
    }
    let seen: Vec<Seen<'_>> =
        nodes.iter().filter_map(|node| Some((&node.address, &node.answer.as_ref().ok()?.0))).collect();
    chart.together(&seen);
    chart.findings
}

impl Chart<'_> {
    fn at(&mut self, node: &Arc<str>, severity: Severity, what: String, mend: String) {
        self.findings.push(Finding { severity, node: Some(node.clone()), what, mend });
    }

    fn whole(&mut self, severity: Severity, what: String, mend: String) {
        self.findings.push(Finding { severity, node: None, what, mend });
    }

    /// What a server's own facts show.
    fn node(&mut self, address: &Arc<str>, facts: &Facts, took: Duration) {
        if !facts.monitors {
            let what =
                "the monitor's user may not see replication: timelines and receivers stay unknown".to_owned();
            self.at(address, Severity::Problem, what, grant(&self.cluster.monitor.user));
        }
        // The same on every node: once is enough.
        if !facts.standby && !facts.closed.is_empty() {
            let what = format!(
                "the monitor's user may not connect to {}: what functions and tables there are is not known, and \
                 every call of a function uses the primary",
                facts.closed.join(", ")
            );
            let mend = connect_grants(&facts.closed, &self.cluster.monitor.user);
            self.at(address, Severity::Warning, what, mend);
        }
        for remark in shared::remarks(facts.skew, took, &self.cluster.pool, facts.connections()) {
            self.at(address, remark.severity, remark.what, remark.mend.to_owned());
        }
        for (name, harm) in
            [("fsync", "a crash corrupts it"), ("full_page_writes", "a crash may corrupt pages")]
        {
            if facts.setting(name) == Some("off") {
                self.at(
                    address,
                    Severity::Problem,
                    format!("{name} is off: {harm}"),
                    format!("ALTER SYSTEM SET {name} = on"),
                );
            }
        }
        if facts.standby { self.replica(address, facts) } else { self.primary(address, facts) }
    }

    fn replica(&mut self, address: &Arc<str>, facts: &Facts) {
        match facts.receiver.as_deref() {
            Some("streaming") => {}
            Some(other) => {
                let what = format!("it does not stream: its receiver is {other}");
                self.at(address, Severity::Warning, what, "its log says what it waits for".to_owned());
            }
            None if facts.monitors => {
                let what = "it does not stream: it has no WAL receiver, and falls behind".to_owned();
                let mend = "see primary_conninfo, and whether the primary still has the WAL it asks for (its log says \"requested WAL segment … has already been removed\" if not: make a new copy)".to_owned();
                self.at(address, Severity::Problem, what, mend);
            }
            None => {}
        }
        if facts.replay_paused {
            let what = "replay is paused: it serves older and older data".to_owned();
            self.at(address, Severity::Problem, what, "SELECT pg_wal_replay_resume()".to_owned());
        }
        if facts.number("recovery_min_apply_delay").is_some_and(|delay| delay > 0) {
            let what =
                "it replays with a delay on purpose: it serves reads only within routing.max_lag".to_owned();
            self.at(address, Severity::Note, what, "give it weight = 0 if it is a safety copy".to_owned());
        }
        if facts.setting("hot_standby_feedback") == Some("off") {
            let what =
                "hot_standby_feedback is off: long reads may be cancelled, and are then run on the primary"
                    .to_owned();
            let mend =
                "ALTER SYSTEM SET hot_standby_feedback = on, if the primary can bear some bloat".to_owned();
            self.at(address, Severity::Note, what, mend);
        }
    }

    fn primary(&mut self, address: &Arc<str>, facts: &Facts) {
        if facts.setting("wal_level") == Some("minimal") {
            let mend = "ALTER SYSTEM SET wal_level = replica, then restart".to_owned();
            self.at(
                address,
                Severity::Problem,
                "wal_level is minimal: nothing can replicate from it".to_owned(),
                mend,
            );
        }
        if let Some(senders) = facts.number("max_wal_senders")
            && facts.senders.len() as i64 >= senders
        {
            let what = format!(
                "all WAL senders are taken ({senders}): another replica, or this one after a broken connection, gets none"
            );
            self.at(address, Severity::Warning, what, "raise max_wal_senders and restart".to_owned());
        }
        self.slots(address, facts);
        self.synchronous(address, facts);
        let has_slots = facts.slots.iter().any(|slot| slot.active);
        if facts.number("wal_keep_size") == Some(0) && !has_slots && !facts.senders.is_empty() {
            let what = "neither slots nor wal_keep_size keep WAL for replicas: one that is away for a while cannot come back".to_owned();
            self.at(
                address,
                Severity::Warning,
                what,
                "use replication slots, or set wal_keep_size".to_owned(),
            );
        }
        if facts.setting("wal_log_hints") == Some("off") && facts.setting("data_checksums") == Some("off") {
            let what = "neither wal_log_hints nor checksums: after a failover pg_rewind cannot turn it into a replica".to_owned();
            self.at(
                address,
                Severity::Note,
                what,
                "ALTER SYSTEM SET wal_log_hints = on, then restart".to_owned(),
            );
        }
    }

    fn slots(&mut self, address: &Arc<str>, facts: &Facts) {
        if let Some(most) = facts.number("max_replication_slots")
            && facts.slots.len() as i64 >= most
            && most > 0
        {
            let what = format!("all replication slots are taken ({most})");
            self.at(
                address,
                Severity::Warning,
                what,
                "drop unused ones or raise max_replication_slots".to_owned(),
            );
        }
        let unbounded = facts.number("max_slot_wal_keep_size").is_none_or(|limit| limit < 0);
        for slot in facts.slots.iter().filter(|slot| !slot.active) {
            let kept = slot.kept_bytes / (1024 * 1024);
            let severity =
                if unbounded && slot.kept_bytes > SLOT_BYTES { Severity::Warning } else { Severity::Note };
            let what = format!(
                "nobody uses slot {}: it keeps WAL ({kept} MiB so far) until the disk is full",
                slot.name
            );
            let mend =
                format!("SELECT pg_drop_replication_slot('{}') if its replica will not come back", slot.name);
            self.at(address, severity, what, mend);
        }
    }

    fn synchronous(&mut self, address: &Arc<str>, facts: &Facts) {
        let names = facts.setting("synchronous_standby_names").unwrap_or_default();
        if names.is_empty() {
            let what = "replication is asynchronous: a failover may lose the last commits".to_owned();
            let mend = "synchronous_standby_names = 'ANY 1 (*)' if that may not be".to_owned();
            return self.at(address, Severity::Note, what, mend);
        }
        let present = facts.senders.iter().filter(|(_, sync)| sync == "sync" || sync == "quorum").count();
        let wanted = wanted_standbys(names);
        if present < wanted {
            let what = format!(
                "{} must acknowledge a commit ({names}) and {present} can: commits wait for ever",
                count(wanted, "synchronous standby")
            );
            let mend = "bring the standby back, or name those that are there in synchronous_standby_names"
                .to_owned();
            self.at(address, Severity::Problem, what, mend);
        } else if facts.senders.len() == wanted {
            let what =
                format!("all replicas are needed for a commit ({names}): one that stops stops all writes");
            self.at(
                address,
                Severity::Warning,
                what,
                "ANY n of more replicas than n lets one be away".to_owned(),
            );
        }
    }

    /// What only shows when the nodes are looked at together.
    fn together(&mut self, seen: &[Seen<'_>]) {
        let systems: HashSet<&str> = seen.iter().map(|(_, facts)| facts.system.as_str()).collect();
        if systems.len() > 1 {
            let list = seen.iter().map(|(address, facts)| format!("{address} is of {}", facts.system));
            let what =
                format!("the nodes are copies of different systems: {}", list.collect::<Vec<_>>().join(", "));
            self.whole(
                Severity::Problem,
                what,
                "make the odd one anew with pg_basebackup, or take it out of nodes".to_owned(),
            );
        }
        let primaries: Vec<&Arc<str>> =
            seen.iter().filter(|(_, facts)| !facts.standby).map(|(address, _)| *address).collect();
        match primaries.as_slice() {
            [] if seen.is_empty() => {}
            [] => {
                let mend = "promote a replica (pg_promote()), or name the primary in nodes".to_owned();
                self.whole(Severity::Problem, "no node is primary: nothing can be written".to_owned(), mend);
            }
            [_] => {}
            many => {
                let list = many.iter().map(|address| &***address).collect::<Vec<_>>().join(", ");
                let what = format!("several nodes accept writes: {list}; the proxy fences all but one");
                self.whole(
                    Severity::Problem,
                    what,
                    "make all but one replicas (pg_rewind, then standby.signal)".to_owned(),
                );
            }
        }
        self.replica_limits(seen);
    }

    /// A hot standby stops replaying when these are below the primary's. PostgreSQL's manual, "Hot
    /// Standby", has the list.
    fn replica_limits(&mut self, seen: &[Seen<'_>]) {
        let Some((_, primary)) = seen.iter().find(|(_, facts)| !facts.standby) else { return };
        for (address, facts) in seen.iter().filter(|(_, facts)| facts.standby) {
            for name in LIMITS_LIKE_THE_PRIMARYS {
                if let (Some(theirs), Some(ours)) = (primary.number(name), facts.number(name))
                    && ours < theirs
                {
                    let what = format!(
                        "{name} is {ours}, the primary's is {theirs}: it pauses replay or does not start"
                    );
                    self.at(
                        address,
                        Severity::Problem,
                        what,
                        format!("ALTER SYSTEM SET {name} = {theirs}, then restart"),
                    );
                }
            }
        }
    }
}

/// How many standbys `synchronous_standby_names` asks for: `FIRST n (…)`, `ANY n (…)`, `n (…)`, or
/// a list, which asks for one.
fn wanted_standbys(names: &str) -> usize {
    let head = names.split('(').next().unwrap_or_default().trim();
    head.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, doctor::facts::Slot};

    fn cluster() -> Cluster {
        Config::from_url("postgres://mon:pw@a,b/db", None).expect("a good URL").clusters.remove(0)
    }

    fn good(standby: bool) -> Facts {
        let settings = [
            ("wal_level", "replica"),
            ("max_wal_senders", "10"),
            ("max_replication_slots", "10"),
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("wal_keep_size", "0"),
            ("max_connections", "100"),
            ("data_checksums", "on"),
            ("superuser_reserved_connections", "3"),
            ("synchronous_standby_names", "ANY 1 (*)"),
            ("hot_standby_feedback", "on"),
            ("recovery_min_apply_delay", "0"),
            ("max_slot_wal_keep_size", "-1"),
        ];
        let sender = || ("streaming".to_owned(), "quorum".to_owned());
        Facts {
            standby,
            system: "7".to_owned(),
            monitors: true,
            settings: settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            senders: if standby { Vec::new() } else { vec![sender(), sender()] },
            slots: if standby {
                Vec::new()
            } else {
                vec![Slot { name: "s".to_owned(), active: true, kept_bytes: 0 }]
            },
            receiver: standby.then(|| "streaming".to_owned()),
            ..Facts::default()
        }
    }

    fn found(change: impl FnOnce(&mut Facts, &mut Facts)) -> Vec<Finding> {
        let (mut primary, mut replica) = (good(false), good(true));
        change(&mut primary, &mut replica);
        let node = |address: &str, facts| Node {
            address: address.into(),
            answer: Ok((facts, Duration::from_millis(1))),
        };
        diagnose(&cluster(), &[node("a:5432", primary), node("b:5432", replica)])
    }

    #[test]
    fn a_good_cluster_has_no_findings() {
        assert_eq!(found(|_, _| ()), Vec::new());
    }

    #[test]
    fn each_fault_is_found_and_nothing_else() {
        type Change = fn(&mut Facts, &mut Facts);
        fn set(facts: &mut Facts, name: &str, value: &str) {
            facts.settings.insert(name.to_owned(), value.to_owned());
        }
        let cases: [(Change, Severity, &str); 21] = [
            (|p, _| p.closed = vec!["shop".to_owned()], Severity::Warning, "may not connect to shop"),
            (|_, r| r.monitors = false, Severity::Problem, "may not see replication"),
            (|_, r| r.skew = -9.0, Severity::Warning, "clock"),
            (|p, _| set(p, "fsync", "off"), Severity::Problem, "fsync"),
            (|p, _| set(p, "wal_level", "minimal"), Severity::Problem, "wal_level"),
            (
                |p, r| {
                    set(p, "max_wal_senders", "2");
                    set(r, "max_wal_senders", "2");
                },
                Severity::Warning,
                "WAL senders",
            ),
            (|p, _| set(p, "max_replication_slots", "1"), Severity::Warning, "slots are taken"),
            (
                |p, _| p.slots.push(Slot { name: "old".to_owned(), active: false, kept_bytes: 1 << 30 }),
                Severity::Warning,
                "nobody uses slot old",
            ),
            (|p, _| p.slots.clear(), Severity::Warning, "wal_keep_size"),
            (|p, _| set(p, "synchronous_standby_names", ""), Severity::Note, "asynchronous"),
            (
                |p, _| set(p, "synchronous_standby_names", "FIRST 3 (x, y, z)"),
                Severity::Problem,
                "3 synchronous standbys must acknowledge a commit (FIRST 3 (x, y, z)) and 2 can: commits wait",
            ),
            (|p, _| set(p, "synchronous_standby_names", "2 (x, y)"), Severity::Warning, "stops all writes"),
            (|_, r| r.receiver = None, Severity::Problem, "does not stream"),
            (|_, r| r.receiver = Some("waiting".to_owned()), Severity::Warning, "receiver is waiting"),
            (|_, r| r.replay_paused = true, Severity::Problem, "paused"),
            (|_, r| set(r, "recovery_min_apply_delay", "60000"), Severity::Note, "delay"),
            (|_, r| r.system = "8".to_owned(), Severity::Problem, "different systems"),
            (|_, r| set(r, "max_connections", "50"), Severity::Problem, "max_connections is 50"),
            (
                |p, r| {
                    set(p, "max_prepared_transactions", "8");
                    set(r, "max_prepared_transactions", "0");
                },
                Severity::Problem,
                "max_prepared_transactions is 0",
            ),
            (
                |p, _| set(p, "max_connections", "27"),
                Severity::Warning,
                "pool.size is 20, but of the 24 connections that it gives ordinary users all pools together take 19",
            ),
            (|_, r| set(r, "hot_standby_feedback", "off"), Severity::Note, "hot_standby_feedback"),
        ];
        for (change, severity, words) in cases {
            let findings = found(change);
            let fits =
                matches!(findings.as_slice(), [one] if one.severity == severity && one.what.contains(words));
            assert!(fits, "{words}: {findings:#?}");
        }
    }

    #[test]
    fn two_primaries_and_none_are_problems() {
        let two = found(|_, replica| *replica = good(false));
        assert!(
            two.iter().any(|one| one.what.contains("several nodes accept writes: a:5432, b:5432")),
            "{two:#?}"
        );
        let none = found(|primary, _| *primary = good(true));
        assert!(none.iter().any(|one| one.what.contains("no node is primary")), "{none:#?}");
    }
}
