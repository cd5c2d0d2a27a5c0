//! `pointsman doctor` and `check --connect`: what is wrong with the replication set-up itself, and
//! how to mend it.
//!
//! Facts are read from every server first; what follows from them is worked out without servers.

mod diagnosis;
pub mod facts;

use std::{fmt, io::Write, sync::Arc, time::Duration};

use self::facts::Node;
use crate::{
    cli::Exit,
    config::{self, Config, Engine, Members, SecretForm},
    postgres,
    protocol::{Backend as _, ConnectFault, Identity},
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

/// Inspects every cluster of a configuration and says what it found, the worst first.
///
/// # Errors
/// When `out` cannot be written to.
pub async fn run(config: &Config, out: &mut impl Write) -> std::io::Result<Exit> {
    let mut worst = Severity::Note;
    for cluster in &config.clusters {
        let findings = examine(cluster).await;
        let asked = addresses(cluster).len();
        writeln!(out, "cluster {}: {asked} nodes asked, {} findings", cluster.name, findings.len())?;
        for finding in &findings {
            worst = worst.min(finding.severity);
            writeln!(out, "{finding}")?;
        }
    }
    Ok(if worst == Severity::Problem { Exit::Unavailable } else { Exit::Done })
}

/// What is wrong with one cluster, the worst first.
pub async fn examine(cluster: &config::Cluster) -> Vec<Finding> {
    let mut findings = match cluster.engine {
        Engine::Postgres => {
            let mut nodes = Vec::new();
            for address in addresses(cluster) {
                nodes.push(read(cluster, address).await);
            }
            diagnosis::diagnose(cluster, &nodes)
        }
        Engine::Mysql => vec![Finding {
            severity: Severity::Note,
            node: None,
            what: "this build cannot inspect MySQL and MariaDB".to_owned(),
            mend: "SHOW REPLICA STATUS on each server says what its replication is at".to_owned(),
        }],
    };
    findings.sort_by_key(|finding| finding.severity);
    findings
}

fn addresses(cluster: &config::Cluster) -> Vec<Arc<str>> {
    match &cluster.members {
        Members::Nodes(nodes) => nodes.iter().map(|node| node.address.clone()).collect(),
        // Patroni watches its own; its nodes are known only while the proxy runs.
        Members::Patroni(_) => Vec::new(),
    }
}

async fn read(cluster: &config::Cluster, address: Arc<str>) -> Node {
    let answer = tokio::time::timeout(PATIENCE, async {
        let (mut server, took) = connect(cluster, &address).await?;
        let facts = facts::read(&mut server).await?;
        Ok::<_, String>((facts, took))
    })
    .await
    .unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")));
    Node { address, answer }
}

/// As the monitor; also says how long a round trip takes.
async fn connect(cluster: &config::Cluster, address: &str) -> Result<(postgres::Backend, Duration), String> {
    let shared = Arc::new(postgres::Shared::default());
    let parts = postgres::parts(cluster, &shared, None).map_err(|error| error.to_string())?;
    let mut server = postgres::Backend::connect(address, &parts.link, &parts.monitor_identity, Role::Unknown)
        .await
        .map_err(said)?;
    let asked = std::time::Instant::now();
    server.ping().await.map_err(|fault| format!("{fault:?}"))?;
    Ok((server, asked.elapsed()))
}

/// A server's refusal in words.
fn said(fault: ConnectFault) -> String {
    match fault {
        ConnectFault::Unreachable(error) => format!("cannot be reached: {error}"),
        ConnectFault::NotReady => {
            "is starting or stopping, or takes no connections (hot_standby = off?)".to_owned()
        }
        ConnectFault::TooMany => "has no connection left to give".to_owned(),
        ConnectFault::Refused { raw, code } => {
            // An ErrorResponse: fields of a letter and a text; M is the message.
            let message = raw.get(5..).unwrap_or_default().split(|byte| *byte == 0);
            let message = message.filter_map(|field| field.strip_prefix(b"M")).next().unwrap_or_default();
            format!("{} ({})", String::from_utf8_lossy(message), String::from_utf8_lossy(&code))
        }
    }
}

/// `check --connect`: whether every server can be reached as the monitor and as each user whose
/// password is known.
///
/// # Errors
/// When `out` cannot be written to.
pub async fn try_logins(config: &Config, out: &mut impl Write) -> std::io::Result<Exit> {
    let mut exit = Exit::Done;
    for cluster in config.clusters.iter().filter(|cluster| cluster.engine == Engine::Postgres) {
        for address in addresses(cluster) {
            let node = read(cluster, address.clone()).await;
            match &node.answer {
                Ok((facts, took)) => {
                    let role = if facts.standby { "replica" } else { "primary" };
                    let version = facts.setting("server_version").unwrap_or("?");
                    writeln!(
                        out,
                        "{address}: ok, {role}, PostgreSQL {version}, {:.1} ms",
                        took.as_secs_f64() * 1e3
                    )?;
                    if !facts.monitors {
                        exit = Exit::Unavailable;
                        writeln!(out, "{address}: {}", grant(&cluster.monitor.user))?;
                    }
                }
                Err(why) => {
                    exit = Exit::Unavailable;
                    writeln!(out, "{address}: the monitor's login failed: {why}")?;
                    continue;
                }
            }
            for (user, why) in refused_users(cluster, &address).await {
                exit = Exit::Unavailable;
                writeln!(out, "{address}: user {user}: {why}")?;
            }
        }
    }
    Ok(exit)
}

/// What the monitor's user is allowed to see too little without.
fn grant(user: &str) -> String {
    format!("GRANT pg_monitor TO {user}; -- on the primary; replicas follow")
}

async fn refused_users(cluster: &config::Cluster, address: &str) -> Vec<(Arc<str>, String)> {
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
        let shared = Arc::new(postgres::Shared::default());
        let Ok(parts) = postgres::parts(&as_user, &shared, None) else { continue };
        let identity: Identity<postgres::Postgres> = parts.monitor_identity;
        let connecting = postgres::Backend::connect(address, &parts.link, &identity, Role::Unknown);
        match tokio::time::timeout(PATIENCE, connecting).await {
            Ok(Ok(_)) => {}
            // The user may have no business in the monitor's database.
            Ok(Err(ConnectFault::Refused { code, .. })) if code == *b"42501" => {}
            Ok(Err(fault)) => refused.push((user.name.clone(), said(fault))),
            Err(_) => refused.push((user.name.clone(), format!("no answer within {PATIENCE:?}"))),
        }
    }
    refused
}
