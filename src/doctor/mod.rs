//! `pointsman doctor` and `check --connect`: what is wrong with the replication set-up itself, and
//! how to mend it.
//!
//! Facts are read from every server first; what follows from them is worked out without servers.

mod diagnosis;
pub mod facts;
pub mod mysql;
mod shared;

use std::{
    fmt::{self, Write as _},
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use self::{facts::Node, mysql::group::Group};
use crate::{
    cli::{Exit, count},
    cluster::Parts,
    config::{self, Config, Engine, Members, SecretForm},
    discovery::Patroni,
    postgres,
    protocol::{Backend, Identity, Protocol},
    topology::Role,
};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something does not work, or will lose data.
    Problem,
    /// It works until something happens.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Problem => "problem",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// A node's address; `None`: the cluster as a whole.
    pub node: Option<Arc<str>>,
    /// What is the matter, and what comes of it.
    pub what: String,
    /// What to do.
    pub mend: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.node.as_deref().unwrap_or("cluster");
        writeln!(out, "{} {node}: {}", self.severity.label(), self.what)?;
        write!(out, "  mend: {}", self.mend)
    }
}

/// Longest time that one server may take to answer everything.
const PATIENCE: Duration = Duration::from_secs(10);

/// Round trips of which the shortest counts: one alone also measures what this machine does meanwhile.
const ROUND_TRIPS: u32 = 3;

/// Inspects every cluster of a configuration and says what it found, the worst first.
///
/// # Errors
/// When `out` cannot be written to.
pub async fn run(config: &Config, out: &mut impl Write) -> std::io::Result<Exit> {
    let mut worst = Severity::Note;
    for cluster in &config.clusters {
        let (asked, findings) = match addresses(cluster).await {
            Ok(addresses) => (addresses.len(), examine(cluster, addresses).await),
            Err(why) => (0, vec![without_nodes(why)]),
        };
        writeln!(out, "{}", heading(&cluster.name, asked, findings.len()))?;
        for finding in &findings {
            worst = worst.min(finding.severity);
            writeln!(out, "{finding}")?;
        }
    }
    Ok(if worst == Severity::Problem { Exit::Unavailable } else { Exit::Done })
}

fn heading(cluster: &str, asked: usize, found: usize) -> String {
    format!("cluster {cluster}: {} asked, {}", count(asked, "node"), count(found, "finding"))
}

fn without_nodes(why: String) -> Finding {
    Finding {
        severity: Severity::Problem,
        node: None,
        what: why,
        mend: "see that the agents run, and that discovery.patroni names their REST API".to_owned(),
    }
}

/// What is wrong with one cluster of these servers, the worst first.
async fn examine(cluster: &config::Cluster, addresses: Vec<Arc<str>>) -> Vec<Finding> {
    let mut findings = match cluster.engine {
        Engine::Postgres => {
            let mut nodes = Vec::new();
            for address in addresses {
                nodes.push(read(cluster, address).await);
            }
            diagnosis::diagnose(cluster, &nodes)
        }
        Engine::Mysql => {
            let mut nodes = Vec::new();
            for address in addresses {
                nodes.push(read_mysql(cluster, address).await);
            }
            mysql::diagnose(&cluster.pool, &nodes)
        }
    };
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// The servers of a cluster; an error when Patroni should name them and cannot be asked.
async fn addresses(cluster: &config::Cluster) -> Result<Vec<Arc<str>>, String> {
    let source = match &cluster.members {
        Members::Nodes(nodes) => return Ok(nodes.iter().map(|node| node.address.clone()).collect()),
        Members::Patroni(source) => source.clone(),
    };
    match Patroni::new(source).ask(PATIENCE).await {
        Ok(membership) => Ok(membership.nodes.into_iter().map(|node| node.address).collect()),
        Err(faults) => {
            let said = faults.iter().map(|(endpoint, fault)| format!("{endpoint} {fault}"));
            Err(format!("Patroni names no nodes: {}", said.collect::<Vec<_>>().join("; ")))
        }
    }
}

async fn read(cluster: &config::Cluster, address: Arc<str>) -> Node {
    let answer = tokio::time::timeout(PATIENCE, async {
        let parts = postgres_parts(cluster)?;
        let mut server = open(&parts.link, &parts.monitor_identity, &address).await?;
        let took = round_trip(&mut server).await?;
        Ok((facts::read(&mut server).await?, took))
    })
    .await
    .unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")));
    Node { address, answer }
}

async fn read_mysql(cluster: &config::Cluster, address: Arc<str>) -> mysql::Node {
    let answer = tokio::time::timeout(PATIENCE, async {
        let parts = mysql_parts(cluster)?;
        let mut server = open(&parts.link, &parts.monitor_identity, &address).await?;
        let took = round_trip(&mut server).await?;
        Ok((mysql::read(&mut server).await?, took))
    })
    .await
    .unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")));
    mysql::Node { address, answer }
}

/// How far away a server is.
async fn round_trip<P: Protocol>(server: &mut impl Backend<P>) -> Result<Duration, String> {
    let mut shortest = Duration::MAX;
    for _ in 0..ROUND_TRIPS {
        let asked = Instant::now();
        server.ping().await.map_err(|fault| fault.to_string())?;
        shortest = shortest.min(asked.elapsed());
    }
    Ok(shortest)
}

fn postgres_parts(cluster: &config::Cluster) -> Result<Parts<postgres::Postgres>, String> {
    postgres::parts(cluster, &Arc::default(), None).map_err(|error| error.to_string())
}

fn mysql_parts(cluster: &config::Cluster) -> Result<Parts<crate::mysql::Mysql>, String> {
    crate::mysql::parts(cluster, &Arc::default(), None).map_err(|error| error.to_string())
}

/// A connection to a server.
async fn open<P: Protocol>(
    link: &P::Link,
    identity: &Identity<P>,
    address: &str,
) -> Result<P::Backend, String> {
    let connecting = P::Backend::connect(address, link, identity, Role::Unknown);
    match tokio::time::timeout(PATIENCE, connecting).await {
        Ok(connected) => connected.map_err(|fault| fault.to_string()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

/// `check --connect`: whether every server can be reached as the monitor and as each user whose
/// password is known, and whether it knows an answer to `auth.query`.
///
/// # Errors
/// When `out` cannot be written to.
pub async fn try_logins(config: &Config, out: &mut impl Write) -> std::io::Result<Exit> {
    let mut exit = Exit::Done;
    for cluster in &config.clusters {
        let addresses = match addresses(cluster).await {
            Ok(addresses) => addresses,
            Err(why) => {
                exit = Exit::Unavailable;
                writeln!(out, "cluster {}: {why}", cluster.name)?;
                continue;
            }
        };
        for address in addresses {
            let faults = match answer(cluster, address.clone()).await {
                Ok(said) => {
                    writeln!(out, "{address}: ok, {said}")?;
                    faults(cluster, &address).await
                }
                Err(Blind::Grants(grants)) => {
                    exit = Exit::Unavailable;
                    writeln!(out, "{address}: the monitor sees too little: {grants}")?;
                    faults(cluster, &address).await
                }
                Err(Blind::Out(why)) => {
                    exit = Exit::Unavailable;
                    writeln!(out, "{address}: the monitor's login failed: {why}")?;
                    refused_users(cluster, &address, Some(&why)).await
                }
            };
            for fault in faults {
                exit = Exit::Unavailable;
                writeln!(out, "{address}: {fault}")?;
            }
        }
    }
    Ok(exit)
}

/// What keeps the monitor from seeing a server.
enum Blind {
    /// It gets in, and lacks these.
    Grants(String),
    /// It does not get in.
    Out(String),
}

/// What a server says to the monitor, in a few words.
async fn answer(cluster: &config::Cluster, address: Arc<str>) -> Result<String, Blind> {
    match cluster.engine {
        Engine::Postgres => {
            let (facts, took) = read(cluster, address).await.answer.map_err(Blind::Out)?;
            if !facts.monitors {
                return Err(Blind::Grants(grant(&cluster.monitor.user)));
            }
            let role = if facts.standby { "replica" } else { "primary" };
            let version = facts.setting("server_version").unwrap_or("?");
            let mut said = format!("{role}, PostgreSQL {version}, {:.1} ms", took.as_secs_f64() * 1e3);
            if !facts.closed.is_empty() {
                let grants = connect_grants(&facts.closed, &cluster.monitor.user);
                let _ = write!(said, "; the monitor cannot read {}: {grants}", facts.closed.join(", "));
            }
            Ok(said)
        }
        Engine::Mysql => {
            let (facts, took) = read_mysql(cluster, address).await.answer.map_err(Blind::Out)?;
            let role = match &facts.source {
                Ok(_) if let Group::Member(view) = &facts.group => {
                    if view.role == "PRIMARY" {
                        "primary"
                    } else {
                        "replica"
                    }
                }
                Ok(Some(_)) => "replica",
                Ok(None) => "primary",
                Err(_) => return Err(Blind::Grants(mysql::GRANTS.to_owned())),
            };
            let version = facts.variables.get("version").map_or("?", String::as_str);
            let mut said = format!("{role}, {version}, {:.1} ms", took.as_secs_f64() * 1e3);
            if !facts.lacks.is_empty() {
                let _ = write!(said, "; the monitor lacks {}: {}", facts.lacks.join(" and "), mysql::GRANTS);
            }
            if facts.group == Group::Hidden {
                let _ = write!(said, "; the monitor may not see its group: {}", mysql::group::GRANT);
            }
            Ok(said)
        }
    }
}

/// What the monitor's user is allowed to see too little without.
fn grant(user: &str) -> String {
    format!("GRANT pg_monitor TO {user}; -- on the primary; replicas follow")
}

/// What opens databases to the monitor's user.
fn connect_grants(databases: &[String], user: &str) -> String {
    let grant = |database: &String| format!("GRANT CONNECT ON DATABASE \"{database}\" TO {user};");
    databases.iter().map(grant).collect::<Vec<_>>().join(" ")
}

/// What else than the monitor's own login fails at a server.
async fn faults(cluster: &config::Cluster, address: &str) -> Vec<String> {
    let mut faults = refused_users(cluster, address, None).await;
    let looked_up = match (&cluster.auth.query, cluster.engine) {
        (None, _) => Ok(()),
        (Some(query), Engine::Postgres) => match postgres_parts(cluster) {
            Ok(parts) => look_up(&parts, address, query, &cluster.monitor.user).await,
            Err(why) => Err(why),
        },
        (Some(query), Engine::Mysql) => match mysql_parts(cluster) {
            Ok(parts) => look_up(&parts, address, query, &cluster.monitor.user).await,
            Err(why) => Err(why),
        },
    };
    faults.extend(looked_up.err().map(|why| format!("auth.query: {why}")));
    faults
}

async fn as_monitor<P: Protocol>(parts: &Parts<P>, address: &str) -> Result<(), String> {
    open::<P>(&parts.link, &parts.monitor_identity, address).await.map(drop)
}

/// Runs `auth.query` for some user; that it is not one of those found is no fault.
async fn look_up<P: Protocol>(
    parts: &Parts<P>,
    address: &str,
    query: &str,
    user: &str,
) -> Result<(), String> {
    let mut server = open(&parts.link, &parts.verifier_identity, address).await?;
    match tokio::time::timeout(PATIENCE, server.verifier(query, user)).await {
        Ok(found) => found.map(drop).map_err(|fault| fault.to_string()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

/// Each user whom a server does not let in, and why. Where that is what it told the monitor, `known`,
/// it is no word on the user, nor will it be on the next.
async fn refused_users(cluster: &config::Cluster, address: &str, known: Option<&str>) -> Vec<String> {
    let mut refused = Vec::new();
    for user in &cluster.users {
        let Some(password) =
            user.password.as_ref().filter(|secret| secret.form(cluster.engine) == SecretForm::Plain)
        else {
            continue;
        };
        // The same login as the monitor's, under another name.
        let mut as_user = cluster.clone();
        as_user.monitor.user = user.name.clone();
        as_user.monitor.password = Some(password.clone());
        let tried = match cluster.engine {
            Engine::Postgres => match postgres_parts(&as_user) {
                Ok(parts) => as_monitor(&parts, address).await,
                Err(why) => Err(why),
            },
            Engine::Mysql => match mysql_parts(&as_user) {
                Ok(parts) => as_monitor(&parts, address).await,
                Err(why) => Err(why),
            },
        };
        match tried {
            Err(why) if known == Some(why.as_str()) && user.name != cluster.monitor.user => break,
            // The user may have no business in the monitor's database.
            Err(why) if !why.ends_with("(42501)") => refused.push(format!("user {}: {why}", user.name)),
            _ => {}
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!(heading("shop", 1, 1), "cluster shop: 1 node asked, 1 finding");
        assert_eq!(heading("shop", 3, 0), "cluster shop: 3 nodes asked, 0 findings");
    }
}
