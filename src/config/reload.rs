//! What a new configuration changes, and what of it can come into force without a restart.

use std::{collections::HashMap, fmt};

use super::{Admin, Cluster, Config, Log, Members, choice::Choice as _, entries::Entry};

/// The differences between the running configuration and a new one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Comes into force at once.
    pub live: Vec<Difference>,
    /// Stays as it is until a restart.
    pub restart: Vec<Difference>,
}

/// One key whose value is another. Printed for the log, secrets unseen:
/// `cluster.shop.pool.size: 20 → 40`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub key: String,
    /// `None`: the key is new.
    pub old: Option<String>,
    /// `None`: the key is gone.
    pub new: Option<String>,
}

impl Changes {
    /// Compares key by key.
    pub fn between(running: &Config, new: &Config) -> Self {
        let then = effective(running, new);
        let mut restart = differences(&shared(&then, new).entries(), &shared(new, &then).entries());
        restart.extend(come_and_gone(running, new));
        Self { live: differences(&running.entries(), &then.entries()), restart }
    }

    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.restart.is_empty()
    }
}

/// A configuration without the clusters that the other does not have.
fn shared(config: &Config, other: &Config) -> Config {
    let clusters = config.clusters.iter().filter(|cluster| has(other, cluster)).cloned().collect();
    Config { clusters, ..config.clone() }
}

/// A cluster that only one of the two has is one line, not one for each of its keys.
fn come_and_gone(running: &Config, new: &Config) -> Vec<Difference> {
    let difference = |cluster: &Cluster, old: Option<String>, new: Option<String>| Difference {
        key: format!("cluster.{}", cluster.name),
        old,
        new,
    };
    let engine = |cluster: &Cluster| Some(cluster.engine.name().to_owned());
    let come = new.clusters.iter().filter(|cluster| !has(running, cluster));
    let gone = running.clusters.iter().filter(|cluster| !has(new, cluster));
    come.map(|cluster| difference(cluster, None, engine(cluster)))
        .chain(gone.map(|cluster| difference(cluster, engine(cluster), None)))
        .collect()
}

fn has(config: &Config, cluster: &Cluster) -> bool {
    config.clusters.iter().any(|other| other.name == cluster.name)
}

/// In the order of the new entries; what is gone comes last.
fn differences(old: &[Entry], new: &[Entry]) -> Vec<Difference> {
    let by_key = |entries: &'_ [Entry]| -> HashMap<String, Entry> {
        entries.iter().map(|entry| (entry.key.clone(), entry.clone())).collect()
    };
    let (before, after) = (by_key(old), by_key(new));
    let changed = new.iter().filter(|entry| before.get(&entry.key) != Some(entry));
    let gone = old.iter().filter(|entry| !after.contains_key(&entry.key));
    let difference = |entry: &Entry| Difference {
        key: entry.key.clone(),
        old: before.get(&entry.key).map(|entry| entry.value.clone()),
        new: after.get(&entry.key).map(|entry| entry.value.clone()),
    };
    changed.chain(gone).map(difference).collect()
}

/// The configuration to run with after a reload: the new one, except where a change needs a restart.
///
/// Listeners, doors and threads stay; clusters come and go at a restart only.
pub fn effective(running: &Config, new: &Config) -> Config {
    let clusters = running.clusters.iter().map(|old| {
        match new.clusters.iter().find(|new| new.name == old.name && new.engine == old.engine) {
            Some(new) => effective_cluster(old, new),
            None => old.clone(),
        }
    });
    Config {
        workers: running.workers,
        shutdown_timeout: new.shutdown_timeout,
        log: Log { format: running.log.format, ..new.log.clone() },
        admin: Admin {
            users: new.admin.users.clone(),
            recent_statements: new.admin.recent_statements,
            ..running.admin.clone()
        },
        clusters: clusters.collect(),
    }
}

/// Keys outside clusters that [`effective`] keeps.
const KEPT: [&str; 5] = ["workers", "log.format", "admin.http", "admin.postgres", "admin.mysql"];

/// Whether a change of this key, an [`Entry`]'s, comes into force without a restart.
pub fn is_live(key: &str) -> bool {
    let mut parts = key.rsplit('.');
    let last = parts.next().unwrap_or_default();
    let of_cluster = key.starts_with("cluster.")
        && (["engine", "listen"].contains(&last) || parts.next() == Some("discovery"));
    !of_cluster && !KEPT.contains(&key)
}

fn effective_cluster(old: &Cluster, new: &Cluster) -> Cluster {
    let members = match (&old.members, &new.members) {
        (Members::Nodes(_), Members::Nodes(_)) => &new.members,
        _ => &old.members,
    };
    Cluster { listen: old.listen.clone(), members: members.clone(), ..new.clone() }
}

impl fmt::Display for Difference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.old, &self.new) {
            (Some(old), Some(new)) if old == new => write!(out, "{}: changed", self.key),
            (Some(old), Some(new)) => write!(out, "{}: {old} → {new}", self.key),
            (None, Some(new)) => write!(out, "{}: added ({new})", self.key),
            (Some(_), None) | (None, None) => write!(out, "{}: removed", self.key),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const FILE: &str = r#"
workers = 2
[log]
format = "text"
[[cluster]]
name = "shop"
engine = "postgres"
listen = ["127.0.0.1:6432"]
nodes = ["a", { address = "b", weight = 2.0 }]
users = [{ name = "app", password = "first" }]
monitor = { user = "m", password = "hush" }
pool = { size = 20 }
"#;

    fn parse(text: &str) -> Config {
        Config::parse(text, Path::new("p.toml"), &|_| None).unwrap_or_else(|faults| panic!("{faults}"))
    }

    fn words(differences: &[Difference]) -> Vec<String> {
        differences.iter().map(Difference::to_string).collect()
    }

    #[test]
    fn every_change_is_told_and_said_when_it_comes_into_force() {
        let cases: &[(&str, &str, &[&str], &[&str])] = &[
            ("size = 20", "size = 20", &[], &[]),
            ("size = 20", "size = 40", &["cluster.shop.pool.size: 20 → 40"], &[]),
            ("size = 20", "max_lifetime = 0", &["cluster.shop.pool.max_lifetime: 1h → -"], &[]),
            ("\"first\"", "\"second\"", &["cluster.shop.users.app: changed"], &[]),
            ("\"hush\"", "\"hush!\"", &["cluster.shop.monitor.password: changed"], &[]),
            (
                "name = \"app\"",
                "name = \"api\"",
                &["cluster.shop.users.api: added (…)", "cluster.shop.users.app: removed"],
                &[],
            ),
            (
                "nodes = [\"a\", { address = \"b\", weight = 2.0 }]",
                "nodes = [\"b\", { address = \"c\", zone = \"z\" }]",
                &[
                    "cluster.shop.nodes.b:5432: weight 2 → weight 1",
                    "cluster.shop.nodes.c:5432: added (weight 1, zone z)",
                    "cluster.shop.nodes.a:5432: removed",
                ],
                &[],
            ),
            ("workers = 2", "workers = 4", &[], &["workers: 2 → 4"]),
            ("\"text\"", "\"json\"", &[], &["log.format: text → json"]),
            ("127.0.0.1:6432", "0.0.0.0:6432", &[], &["cluster.shop.listen: 127.0.0.1:6432 → 0.0.0.0:6432"]),
        ];
        let old = parse(FILE);
        for (line, instead, live, restart) in cases {
            let new = parse(&FILE.replacen(line, instead, 1));
            let changes = Changes::between(&old, &new);
            assert_eq!(
                (words(&changes.live), words(&changes.restart)),
                (
                    live.iter().map(|line| line.to_string()).collect(),
                    restart.iter().map(|line| line.to_string()).collect(),
                ),
                "{instead}"
            );
            assert!(changes.live.iter().all(|difference| is_live(&difference.key)), "{instead}");
            assert!(!changes.restart.iter().any(|difference| is_live(&difference.key)), "{instead}");
        }
    }

    #[test]
    fn the_keys_that_need_a_restart_are_those_that_are_kept() {
        let text = format!(
            "{FILE}[[cluster]]\nname = 'other'\nengine = 'postgres'\nlisten = ['127.0.0.1:6433']\n\
             discovery = {{ patroni = ['http://p:8008'] }}\nmonitor = {{ user = 'm' }}\n\
             users = [{{ name = 'app', password = 'first' }}]\n"
        );
        let text = text.replacen("[log]", "[admin]\nhttp = '127.0.0.1:9187'\n[log]", 1);
        let kept: Vec<String> =
            parse(&text).entries().into_iter().map(|entry| entry.key).filter(|key| !is_live(key)).collect();
        assert_eq!(
            kept,
            [
                "workers",
                "log.format",
                "admin.http",
                "admin.postgres",
                "admin.mysql",
                "cluster.shop.engine",
                "cluster.shop.listen",
                "cluster.other.engine",
                "cluster.other.listen",
                "cluster.other.discovery.patroni",
            ]
        );
    }

    #[test]
    fn what_needs_a_restart_stays_and_what_does_not_is_taken() {
        let old = parse(FILE);
        let text = FILE
            .replace("workers = 2", "workers = 8")
            .replace(":6432", ":7000")
            .replace("size = 20", "size = 40");

        let effective = effective(&old, &parse(&text));

        assert_eq!(effective.workers, old.workers);
        assert_eq!(effective.clusters[0].listen, old.clusters[0].listen);
        assert_eq!(effective.clusters[0].pool.size, 40);
        let told = Changes::between(&old, &effective);
        assert_eq!(
            (words(&told.live), told.restart.len()),
            (vec!["cluster.shop.pool.size: 20 → 40".to_owned()], 0)
        );
    }

    #[test]
    fn a_cluster_changes_where_its_nodes_come_from_at_a_restart_only() {
        let old = parse(FILE);
        let nodes = "nodes = [\"a\", { address = \"b\", weight = 2.0 }]";
        let new = parse(&FILE.replace(nodes, "discovery = { patroni = [\"http://p:8008\"] }"));

        let changes = Changes::between(&old, &new);

        assert_eq!(changes.live, []);
        let told = words(&changes.restart);
        assert_eq!(told[0], "cluster.shop.discovery.patroni: added (http://p:8008/)");
        assert_eq!(told[1..], ["cluster.shop.nodes.a:5432: removed", "cluster.shop.nodes.b:5432: removed"]);
    }

    #[test]
    fn a_cluster_comes_and_goes_at_a_restart_only() {
        let old = parse(FILE);
        let new = parse(&FILE.replace("\"shop\"", "\"store\""));

        let changes = Changes::between(&old, &new);

        assert!(changes.live.is_empty(), "{:?}", words(&changes.live));
        assert_eq!(words(&changes.restart), ["cluster.store: added (postgres)", "cluster.shop: removed"]);
        assert_eq!(effective(&old, &new), old);
    }
}
