//! A configuration as a flat list of keys and values: what the console shows and a reload compares.

use std::{collections::HashSet, path::Path, path::PathBuf, sync::Arc, time::Duration};

use super::{
    Admin, Auth, Choice, ClientTls, Cluster, Config, Endpoint, Failover, HostPort, Identity, Limits, Log,
    Members, Monitor, PatroniSource, PemFile, Pool, Routing, Secret, ServerTls, Tls, User,
};
use crate::sql::catalog::FunctionRules;

/// One key and its value. Two entries are equal when nothing changed, secrets included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `cluster.shop.pool.size`
    pub key: String,
    /// For people; a secret shows as `…`, what is not set as `-`.
    pub value: String,
    /// What `value` does not show.
    pub secret: Option<Secret>,
}

impl Config {
    /// Every key and its value, in the order of the file. No secret shows.
    pub fn entries(&self) -> Vec<Entry> {
        let mut list = List { path: String::new(), entries: Vec::new() };
        let Self { workers, shutdown_timeout, log, admin, clusters } = self;
        list.add("workers", &workers.get());
        list.add("shutdown_timeout", shutdown_timeout);
        let Log { format, level, statements_over } = log;
        list.path = "log.".to_owned();
        list.add("format", format);
        list.add("level", level);
        list.add("statements_over", statements_over);
        let Admin { http, postgres, mysql, users, recent_statements } = admin;
        list.path = "admin.".to_owned();
        for (name, door) in [("http", http), ("postgres", postgres), ("mysql", mysql)] {
            list.add(name, door);
        }
        list.users(users);
        list.add("recent_statements", recent_statements);
        for cluster in clusters {
            list.cluster(cluster);
        }
        list.entries
    }
}

struct List {
    /// Of the table, with a dot at its end.
    path: String,
    entries: Vec<Entry>,
}

impl List {
    fn push(&mut self, name: &str, value: String, secret: Option<Secret>) {
        self.entries.push(Entry { key: format!("{}{name}", self.path), value, secret });
    }

    fn add(&mut self, name: &str, value: &impl Shown) {
        self.push(name, value.shown(), None);
    }

    fn secret(&mut self, name: &str, secret: &Option<Secret>) {
        let value = secret.as_ref().map_or(UNSET.to_owned(), Secret::to_string);
        self.push(name, value, secret.clone());
    }

    /// Shows where it is; what is in it counts for whether it changed.
    fn pem(&mut self, name: &str, file: Option<&PemFile>) {
        let value = file.map_or(UNSET.to_owned(), |file| file.path().display().to_string());
        self.push(name, value, file.map(|file| Secret::new(hex::encode(file.digest()))));
    }

    fn users(&mut self, users: &[User]) {
        for User { name, password } in users {
            self.secret(&format!("users.{name}"), password);
        }
    }

    fn cluster(&mut self, cluster: &Cluster) {
        // Taken apart whole, here and below: a new key is listed, or this does not compile.
        let Cluster {
            name,
            engine,
            listen,
            peers,
            members,
            users,
            monitor,
            auth: Auth { query, trust_loopback },
            pool,
            routing,
            failover: Failover { hold, hold_limit, commit_outcome, state_file },
            limits,
            tls,
        } = cluster;
        let path = format!("cluster.{name}.");
        self.path = path.clone();
        self.add("engine", engine);
        self.add("listen", listen);
        self.add("peers", peers);
        self.members(members);
        self.users(users);
        self.monitor(&path, monitor);
        self.path = format!("{path}auth.");
        self.add("query", query);
        self.add("trust_loopback", trust_loopback);
        self.pool(&path, pool);
        self.routing(&path, routing);
        self.path = format!("{path}failover.");
        self.add("hold", hold);
        self.add("hold_limit", hold_limit);
        self.add("commit_outcome", commit_outcome);
        self.add("state_file", state_file);
        self.limits(&path, limits);
        self.tls(&path, tls);
    }

    fn members(&mut self, members: &Members) {
        match members {
            Members::Nodes(nodes) => {
                for node in nodes {
                    let zone = node.zone.as_ref().map_or(String::new(), |zone| format!(", zone {zone}"));
                    let value = format!("weight {}{zone}", node.weight);
                    self.push(&format!("nodes.{}", node.address), value, None);
                }
            }
            Members::Patroni(PatroniSource { endpoints, ca }) => {
                let urls: Vec<String> = endpoints.iter().map(Endpoint::to_string).collect();
                let logins = endpoints.iter().filter_map(|endpoint| endpoint.authorization());
                let logins: Vec<&str> = logins.map(Secret::expose).collect();
                let secret = (!logins.is_empty()).then(|| Secret::new(logins.join(", ")));
                self.push("discovery.patroni", urls.join(", "), secret);
                if let Some(ca) = ca {
                    self.push("discovery.ca", ca.display().to_string(), None);
                }
            }
        }
    }

    fn monitor(&mut self, path: &str, monitor: &Monitor) {
        let Monitor { user, password, database, interval, fast_interval, timeout, failures, catalog_refresh } =
            monitor;
        self.path = format!("{path}monitor.");
        self.add("user", user);
        self.secret("password", password);
        self.add("database", database);
        self.add("interval", interval);
        self.add("fast_interval", fast_interval);
        self.add("timeout", timeout);
        self.add("failures", &(*failures as usize));
        self.add("catalog_refresh", catalog_refresh);
    }

    fn pool(&mut self, path: &str, pool: &Pool) {
        let Pool {
            mode,
            size,
            node_connections,
            min_idle,
            checkout_timeout,
            idle_timeout,
            max_lifetime,
            prepared_statements,
        } = pool;
        self.path = format!("{path}pool.");
        self.add("mode", mode);
        self.add("size", size);
        self.add("node_connections", node_connections);
        self.add("min_idle", min_idle);
        self.add("checkout_timeout", checkout_timeout);
        self.add("idle_timeout", idle_timeout);
        self.add("max_lifetime", max_lifetime);
        self.add("prepared_statements", prepared_statements);
    }

    fn routing(&mut self, path: &str, routing: &Routing) {
        let Routing {
            consistency,
            max_lag,
            lag_half_weight,
            slow_start,
            primary_reads,
            transaction_reads,
            zone,
            functions: FunctionRules { read, write, clean },
        } = routing;
        self.path = format!("{path}routing.");
        self.add("consistency", consistency);
        self.add("max_lag", max_lag);
        self.add("lag_half_weight", lag_half_weight);
        self.add("slow_start", slow_start);
        self.add("primary_reads", primary_reads);
        self.add("transaction_reads", transaction_reads);
        self.add("zone", zone);
        self.add("read_functions", read);
        self.add("write_functions", write);
        self.add("clean_functions", clean);
    }

    fn limits(&mut self, path: &str, limits: &Limits) {
        let Limits {
            clients,
            clients_per_user,
            login_timeout,
            idle_client_timeout,
            idle_transaction_timeout,
            statement_timeout,
        } = limits;
        self.path = format!("{path}limits.");
        self.add("clients", clients);
        self.add("clients_per_user", clients_per_user);
        self.add("login_timeout", login_timeout);
        self.add("idle_client_timeout", idle_client_timeout);
        self.add("idle_transaction_timeout", idle_transaction_timeout);
        self.add("statement_timeout", statement_timeout);
    }

    fn tls(&mut self, path: &str, tls: &Tls) {
        let Tls {
            client: ClientTls { mode: client_mode, identity: client_identity, ca: client_ca },
            server: ServerTls { mode: server_mode, ca: server_ca, identity: server_identity },
        } = tls;
        let sides = [
            ("client", client_mode, client_identity, client_ca),
            ("server", server_mode, server_identity, server_ca),
        ];
        for (side, mode, identity, ca) in sides {
            self.path = format!("{path}tls.{side}.");
            let parts = identity.as_ref().map(|Identity { certificate, key }| (certificate, key));
            self.add("mode", mode);
            self.pem("certificate", parts.map(|(certificate, _)| certificate));
            self.pem("key", parts.map(|(_, key)| key));
            self.pem("ca", ca.as_ref());
        }
    }
}

/// What is not set, in the console and in the log.
const UNSET: &str = "-";

/// How a value is shown to people.
trait Shown {
    fn shown(&self) -> String;
}

impl<T: Choice> Shown for T {
    fn shown(&self) -> String {
        self.name().to_owned()
    }
}

macro_rules! shown {
    ($($type:ty: $value:ident => $text:expr;)+) => {
        $(impl Shown for $type {
            fn shown(&self) -> String {
                let $value = self;
                $text
            }
        })+
    };
}

shown! {
    usize: number => number.to_string();
    bool: flag => flag.to_string();
    String: text => text.clone();
    Arc<str>: text => text.to_string();
    Duration: duration => humantime::format_duration(*duration).to_string();
    PathBuf: path => Path::display(path).to_string();
    HostPort: address => address.to_string();
    Vec<HostPort>: addresses => addresses.iter().map(HostPort::to_string).collect::<Vec<_>>().join(", ");
    HashSet<Box<str>>: names => {
        let mut names: Vec<&str> = names.iter().map(|name| &**name).collect();
        names.sort_unstable();
        names.join(", ")
    };
}

impl<T: Shown> Shown for Option<T> {
    fn shown(&self) -> String {
        self.as_ref().map_or(UNSET.to_owned(), T::shown)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::keys::{Shape, TABLES};

    #[test]
    fn every_key_of_the_schema_is_listed_and_no_secret_shows() {
        let config = Config::from_url("postgres://app:hush@a,b/db", None).expect("a good URL");

        let entries = config.entries();

        assert!(!format!("{entries:?}").contains("hush"));
        let listed: BTreeSet<String> =
            entries.iter().map(|entry| entry.key.replacen("cluster.main.", "cluster.", 1)).collect();
        for table in TABLES.iter().filter(|table| table.shape != Shape::Inline) {
            for key in table.keys {
                // Lists of tables have an entry per element; the name is in every other key.
                let apart = ["users", "nodes", "discovery", "name"].contains(&key.name);
                let path = [table.path, key.name].join(".");
                let path = path.trim_start_matches('.');
                assert!(apart || listed.contains(path), "{path} is not listed");
            }
        }
        for path in ["cluster.users.app", "cluster.nodes.a:5432", "cluster.nodes.b:5432"] {
            assert!(listed.contains(path), "{path} is not listed");
        }
    }
}
