//! Real servers in a temporary folder: a primary and its streaming replicas, on free ports of
//! 127.0.0.1. `pointsman demo` shows the proxy before them and the tests run against them.
//!
//! Nothing is left behind: servers are stopped by the process ids they were started with, also when
//! the owner panics, and the system ends them when this process dies.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use tempfile::TempDir;

pub use super::{
    binaries::Binaries,
    node::{PgNode, Stop},
};
use super::{
    binaries::run,
    process::{Keeper, POLL, RunAs},
};

/// A role that every cluster started here has. These servers listen on 127.0.0.1 only and live for
/// minutes: the passwords are no secrets.
#[derive(Clone, Copy, Debug)]
pub struct Login {
    pub name: &'static str,
    pub password: &'static str,
}

pub const SUPERUSER: Login = Login { name: "postgres", password: "postgres-pw" };
/// What the proxy's monitor logs in as: a member of `pg_monitor`.
pub const MONITOR: Login = Login { name: "pointsman", password: "pointsman-pw" };
/// An ordinary user who may create databases and owns the database of the same name.
pub const APP: Login = Login { name: "app", password: "app-pw" };
/// What replicas stream as.
pub const REPLICATION: Login = Login { name: "replicator", password: "replicator-pw" };

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(
        "PostgreSQL's server programs (initdb, postgres, pg_basebackup, psql) were found neither in PATH nor under \
         /usr/lib/postgresql; on Debian: apt-get install postgresql-15"
    )]
    NotInstalled,
    #[error(
        "MariaDB's programs (mariadbd, mariadb-install-db, mariadb) were found neither in PATH nor under /usr/sbin; \
         on Debian: apt-get install mariadb-server"
    )]
    MariaNotInstalled,
    #[error("there is no MySQL under {root}; scripts/mysql9 puts it there")]
    MysqlNotUnpacked { root: String },
    #[error("{program} failed: {said}")]
    Program { program: String, said: String },
    #[error("server {node} did not start; the end of its log:\n{log}")]
    DidNotStart { node: String, log: String },
    #[error("server {node} did not stop when asked to and was killed")]
    DidNotStop { node: String },
    #[error("waited {waited:?} in vain for {what}")]
    TimedOut { what: String, waited: Duration },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A server's TLS files, in PEM.
#[derive(Clone, Debug)]
pub struct ServerTls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Whom client certificates must be signed by.
    pub ca: PathBuf,
}

/// How a cluster is to be made.
#[derive(Clone, Debug, Default)]
pub struct PgOptions {
    pub replicas: usize,
    /// A folder made by [`PgCluster::make_template`]: data is copied from there, which takes a
    /// fraction of the time. Without it `initdb` and `pg_basebackup` run, and the cluster has a
    /// system identifier of its own.
    pub template: Option<PathBuf>,
    /// Lines for every server's `postgresql.conf`, after the defaults of this module.
    pub settings: Vec<(String, String)>,
    /// Lines for the top of every server's `pg_hba.conf`, where they win.
    pub hba: Vec<String>,
    pub tls: Option<ServerTls>,
}

/// A primary (node 0 at the start) and its replicas.
#[derive(Debug)]
pub struct PgCluster {
    // In this order: servers stop before the thread that they hang on ends, and the folder goes last.
    nodes: Vec<PgNode>,
    keeper: Keeper,
    options: PgOptions,
    folder: TempDir,
}

impl PgCluster {
    /// Starts a primary and `options.replicas` replicas and waits until all of them serve reads.
    pub fn start(options: PgOptions) -> Result<Self, ServerError> {
        let binaries = Binaries::find()?;
        let run_as = RunAs::choose()?;
        let folder = tempfile::Builder::new().prefix("pointsman-pg-").tempdir()?;
        run_as.own(folder.path())?;
        let nodes = (0..=options.replicas)
            .map(|index| PgNode::new(format!("node{index}"), folder.path(), binaries.clone(), run_as))
            .collect::<Result<_, _>>()?;
        let cluster = Self { nodes, keeper: Keeper::start()?, options, folder };
        cluster.make_primary()?;
        for index in 1..cluster.nodes.len() {
            cluster.make_replica(index)?;
        }
        Ok(cluster)
    }

    /// Puts the data folder of a fresh, stopped primary at `target`, for [`PgOptions::template`].
    pub fn make_template(target: &Path) -> Result<(), ServerError> {
        let cluster = Self::start(PgOptions::default())?;
        cluster.stop(0, Stop::Fast)?;
        copy_folder(&cluster.node(0).data, target)?;
        Ok(())
    }

    pub fn node(&self, index: usize) -> &PgNode {
        &self.nodes[index]
    }

    pub fn nodes(&self) -> &[PgNode] {
        &self.nodes
    }

    /// `host:port` of every server, in the order of their numbers.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(PgNode::address).collect()
    }

    /// Where the servers' files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a stopped server; one that runs is left alone.
    pub fn start_node(&self, index: usize) -> Result<(), ServerError> {
        self.start_node_with(index, |_| ())
    }

    /// As [`PgCluster::start_node`], with another environment or more arguments.
    pub fn start_node_with(
        &self,
        index: usize,
        change: impl FnOnce(&mut Command),
    ) -> Result<(), ServerError> {
        self.node(index).start(&self.keeper, change)
    }

    pub fn stop(&self, index: usize, how: Stop) -> Result<(), ServerError> {
        self.node(index).stop(how)
    }

    pub fn restart(&self, index: usize, how: Stop) -> Result<(), ServerError> {
        self.stop(index, how)?;
        self.start_node(index)
    }

    /// Stops every server, for owners whose destructors do not run. They can be started again.
    pub fn stop_all(&self) {
        for node in self.nodes.iter().rev() {
            let _ = node.stop(Stop::Immediate);
        }
    }

    /// Turns a replica into a primary and waits until it is one. The others keep following the old
    /// primary until [`PgCluster::follow`] is called.
    pub fn promote(&self, index: usize) -> Result<(), ServerError> {
        self.node(index).sql("postgres", "SELECT pg_promote(true, 30)")?;
        eventually(&format!("the promotion of node {index}"), CHANGE_LIMIT, || {
            Ok(self.node(index).sql("postgres", "SELECT pg_is_in_recovery()")? == "f")
        })
    }

    /// Makes a running replica stream from another server.
    pub fn follow(&self, index: usize, primary: usize) -> Result<(), ServerError> {
        self.follow_address(index, "127.0.0.1", self.node(primary).port())
    }

    /// Makes a running replica stream from an address, such as that of a link that can be cut.
    pub fn follow_address(&self, index: usize, host: &str, port: u16) -> Result<(), ServerError> {
        self.node(index).set("primary_conninfo", &self.conninfo(index, host, port))
    }

    /// Makes a stopped former primary a replica of `primary` by `pg_rewind`, and starts it.
    pub fn rejoin(&self, index: usize, primary: usize) -> Result<(), ServerError> {
        let node = self.node(index);
        // A fresh primary's control file names the old timeline until its next checkpoint, and
        // pg_rewind, which reads it, would find nothing to do.
        self.node(primary).sql("postgres", "CHECKPOINT")?;
        // A server that was not stopped cleanly is recovered by pg_rewind itself.
        let mut rewind = node.binaries.command("pg_rewind");
        rewind.arg("--target-pgdata").arg(&node.data).arg("--source-server").arg(format!(
            "host={} port={} user={} dbname=postgres",
            node.sockets.display(),
            self.node(primary).port(),
            SUPERUSER.name
        ));
        run(rewind, node.run_as)?;
        // The source's files came along: its port and its name among them.
        self.configure(index)?;
        self.point_to(index, primary)?;
        self.start_node(index)
    }

    /// Stops a replica's replay; it goes on receiving.
    pub fn pause_replay(&self, index: usize) -> Result<(), ServerError> {
        self.node(index).sql("postgres", "SELECT pg_wal_replay_pause()")?;
        eventually(&format!("replay to pause on node {index}"), CHANGE_LIMIT, || {
            Ok(self.node(index).sql("postgres", "SELECT pg_get_wal_replay_pause_state()")? == "paused")
        })
    }

    pub fn resume_replay(&self, index: usize) -> Result<(), ServerError> {
        self.node(index).sql("postgres", "SELECT pg_wal_replay_resume()").map(drop)
    }

    /// Makes a replica apply commits `delay` after they were made; zero ends that.
    pub fn delay_replay(&self, index: usize, delay: Duration) -> Result<(), ServerError> {
        self.node(index).set("recovery_min_apply_delay", &format!("{}ms", delay.as_millis()))
    }

    /// Waits until every running replica has replayed what `primary` has written by now.
    pub fn wait_until_caught_up(&self, primary: usize) -> Result<(), ServerError> {
        let written = self.node(primary).sql("postgres", "SELECT pg_current_wal_lsn()")?;
        let running = |node: &&PgNode| node.pid().is_some() && node.port() != self.node(primary).port();
        for node in self.nodes.iter().filter(running) {
            eventually(&format!("{} to replay {written}", node.name), CHANGE_LIMIT, || {
                let caught_up = "SELECT coalesce(pg_last_wal_replay_lsn() >= ";
                Ok(node.sql("postgres", &format!("{caught_up}'{written}', true)"))? == "t")
            })?;
        }
        Ok(())
    }

    fn make_primary(&self) -> Result<(), ServerError> {
        let node = self.node(0);
        if let Some(template) = &self.options.template {
            copy_folder(template, &node.data)?;
            node.run_as.own(&node.data)?;
            self.configure(0)?;
            return self.start_node(0);
        }
        let mut initdb = node.binaries.command("initdb");
        initdb.arg("-D").arg(&node.data).args(INITDB).args(["-U", SUPERUSER.name]);
        run(initdb, node.run_as)?;
        self.configure(0)?;
        self.start_node(0)?;
        self.create_roles()
    }

    fn create_roles(&self) -> Result<(), ServerError> {
        let node = self.node(0);
        let roles = format!(
            "ALTER ROLE {} PASSWORD '{}';
             CREATE ROLE {} LOGIN PASSWORD '{}' IN ROLE pg_monitor;
             CREATE ROLE {} LOGIN PASSWORD '{}' CREATEDB;
             CREATE ROLE {} LOGIN PASSWORD '{}' REPLICATION;",
            SUPERUSER.name,
            SUPERUSER.password,
            MONITOR.name,
            MONITOR.password,
            APP.name,
            APP.password,
            REPLICATION.name,
            REPLICATION.password,
        );
        node.sql("postgres", &roles)?;
        if node.binaries.has_library(STATISTICS) {
            // Databases made later are copies of template1.
            node.sql("template1", &format!("CREATE EXTENSION {STATISTICS}"))?;
            node.sql("postgres", &format!("CREATE EXTENSION {STATISTICS}"))?;
        }
        node.sql("postgres", &format!("CREATE DATABASE {} OWNER {}", APP.name, APP.name))?;
        Ok(())
    }

    fn make_replica(&self, index: usize) -> Result<(), ServerError> {
        let node = self.node(index);
        if let Some(template) = &self.options.template {
            // A cleanly stopped primary's data is as good as a backup: streaming goes on from its
            // last checkpoint.
            copy_folder(template, &node.data)?;
            node.run_as.own(&node.data)?;
        } else {
            let mut backup = node.binaries.command("pg_basebackup");
            backup
                .arg("-D")
                .arg(&node.data)
                .args(["-R", "-X", "stream", "--checkpoint=fast", "-h", "127.0.0.1"])
                .args(["-U", REPLICATION.name, "-p", &self.node(0).port().to_string()])
                .env("PGPASSWORD", REPLICATION.password);
            run(backup, node.run_as)?;
        }
        self.configure(index)?;
        self.point_to(index, 0)?;
        self.start_node(index)
    }

    /// Writes a stopped server's configuration anew.
    fn configure(&self, index: usize) -> Result<(), ServerError> {
        let node = self.node(index);
        let mut lines = vec![
            ("port".to_owned(), node.port().to_string()),
            ("cluster_name".to_owned(), node.name.clone()),
            ("unix_socket_directories".to_owned(), node.sockets.display().to_string()),
        ];
        lines.extend(SETTINGS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        if node.binaries.has_library(STATISTICS) {
            lines.push(("shared_preload_libraries".to_owned(), STATISTICS.to_owned()));
        }
        if let Some(tls) = &self.options.tls {
            let key = self.private_copy(index, &tls.key)?;
            lines.push(("ssl".to_owned(), "on".to_owned()));
            lines.push(("ssl_cert_file".to_owned(), self.private_copy(index, &tls.certificate)?));
            lines.push(("ssl_ca_file".to_owned(), self.private_copy(index, &tls.ca)?));
            lines.push(("ssl_key_file".to_owned(), key));
        }
        lines.extend(self.options.settings.iter().cloned());
        let text: String =
            lines.iter().map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''"))).collect();
        self.write(index, "postgresql.conf", &text)?;
        self.write(index, "postgresql.auto.conf", "")?;
        let hba: Vec<&str> = self.options.hba.iter().map(String::as_str).chain(HBA).collect();
        self.write(index, "pg_hba.conf", &(hba.join("\n") + "\n"))
    }

    /// PostgreSQL wants its key to be its own and unreadable for others.
    fn private_copy(&self, index: usize, file: &Path) -> Result<String, ServerError> {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or("tls.pem").to_owned();
        let text = fs::read_to_string(file)?;
        self.write(index, &name, &text)?;
        let target = self.node(index).data.join(&name);
        fs::set_permissions(&target, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(name)
    }

    /// Makes a stopped server a replica of `primary` at its next start.
    fn point_to(&self, index: usize, primary: usize) -> Result<(), ServerError> {
        let conninfo = self.conninfo(index, "127.0.0.1", self.node(primary).port());
        self.write(index, "standby.signal", "")?;
        self.write(index, "postgresql.auto.conf", &format!("primary_conninfo = '{conninfo}'\n"))
    }

    fn conninfo(&self, index: usize, host: &str, port: u16) -> String {
        format!(
            "host={host} port={port} user={} password={} application_name={}",
            REPLICATION.name,
            REPLICATION.password,
            self.node(index).name
        )
    }

    fn write(&self, index: usize, file: &str, text: &str) -> Result<(), ServerError> {
        let node = self.node(index);
        let path = node.data.join(file);
        fs::File::create(&path)?.write_all(text.as_bytes())?;
        node.run_as.own(&path)?;
        Ok(())
    }
}

/// How long changes of role, replay and the like may take.
pub(super) const CHANGE_LIMIT: Duration = Duration::from_secs(30);
const STATISTICS: &str = "pg_stat_statements";

/// Small WAL segments make a data folder of 25 MB instead of 40, and tests meet segment borders.
const INITDB: [&str; 7] = [
    "--encoding=UTF8",
    "--locale=C",
    "--auth=trust",
    "--no-sync",
    "--no-instructions",
    "--wal-segsize=1",
    "-k",
];

/// Quick to start, quick to fail over, and nothing that depends on the machine.
const SETTINGS: [(&str, &str); 16] = [
    ("listen_addresses", "127.0.0.1"),
    ("password_encryption", "scram-sha-256"),
    ("fsync", "off"),
    ("shared_buffers", "32MB"),
    ("max_connections", "200"),
    ("max_prepared_transactions", "20"),
    ("wal_level", "logical"),
    ("wal_keep_size", "256MB"),
    ("wal_log_hints", "on"),
    ("hot_standby", "on"),
    ("wal_receiver_status_interval", "1s"),
    ("wal_retrieve_retry_interval", "200ms"),
    ("pg_stat_statements.max", "5000"),
    ("log_line_prefix", "%m [%p] %u@%d %a "),
    ("timezone", "UTC"),
    ("jit", "off"),
];

const HBA: [&str; 4] = [
    "local all         all              trust",
    "local replication all              trust",
    "host  all         all 127.0.0.1/32 scram-sha-256",
    "host  replication all 127.0.0.1/32 scram-sha-256",
];

/// Waits until `condition` holds; errs when it does not within `limit`, or errs itself.
pub(super) fn eventually(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<bool, ServerError>,
) -> Result<(), ServerError> {
    let deadline = Instant::now() + limit;
    while !condition()? {
        if Instant::now() >= deadline {
            return Err(ServerError::TimedOut { what: what.to_owned(), waited: limit });
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// `cp -a`, which shares blocks where the file system can.
pub(super) fn copy_folder(from: &Path, to: &Path) -> Result<(), ServerError> {
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto", "-T"]).arg(from).arg(to);
    run(copy, RunAs::Myself).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_with_two_replicas_starts_replicates_fails_over_and_leaves_nothing_behind() {
        let cluster = PgCluster::start(PgOptions { replicas: 2, ..PgOptions::default() }).expect("it starts");
        let folder = cluster.folder().to_path_buf();
        let pids: Vec<u32> = cluster.nodes().iter().filter_map(PgNode::pid).collect();
        assert_eq!(pids.len(), 3);

        cluster.node(0).sql("app", "CREATE TABLE t AS SELECT 1 AS x").expect("the primary takes writes");
        cluster.wait_until_caught_up(0).expect("replicas follow");
        assert_eq!(cluster.node(2).sql("app", "SELECT x FROM t").expect("a replica serves reads"), "1");

        cluster.stop(0, Stop::Kill).expect("it dies");
        cluster.promote(1).expect("a replica takes over");
        cluster.follow(2, 1).expect("the other follows it");
        cluster.node(1).sql("app", "INSERT INTO t VALUES (2)").expect("the new primary takes writes");
        cluster.start_node(0).expect("the old one recovers");
        cluster.stop(0, Stop::Fast).expect("and stops cleanly");
        cluster.rejoin(0, 1).expect("and becomes a replica");
        cluster.wait_until_caught_up(1).expect("all follow the new primary");
        assert_eq!(cluster.node(0).sql("app", "SELECT sum(x) FROM t").expect("it serves reads"), "3");

        cluster.node(2).freeze();
        drop(cluster);
        assert!(!folder.exists(), "the folder stayed");
        for pid in pids {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "server {pid} still runs");
        }
    }
}
