//! Real Patroni agents before real servers, with a real etcd, all on free ports of 127.0.0.1.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::Duration,
};

use pointsman::demo::{
    Keeper, Port, Signal,
    servers::{APP, Binaries, MONITOR, REPLICATION, SUPERUSER},
    signal, signal_tree, wait_for_exit,
};
use tempfile::TempDir;

use super::eventually;

const SCOPE: &str = "it";

/// Three servers under Patroni. Whoever owns it may block the thread: its steps do.
pub struct Patroni {
    // In this order: agents end before etcd, and all of them before the thread that they hang on.
    agents: Vec<Agent>,
    etcd: Child,
    etcd_port: Port,
    keeper: Keeper,
    folder: TempDir,
    _etcd_peer: Port,
}

struct Agent {
    name: String,
    rest: Port,
    postgres: Port,
    process: Option<Child>,
}

impl Patroni {
    /// Whether Debian's packages `patroni` and `etcd-server` are there.
    pub fn is_installed() -> bool {
        let runs = |program: &str| Command::new(program).arg("--version").output().is_ok();
        runs("patroni") && runs("etcd")
    }

    /// Starts `count` members and waits until one leads and the others follow it.
    pub async fn start(count: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        let keeper = Keeper::start().expect("threads are to be had");
        let (etcd_port, peer) = (claim(), claim());
        let etcd = spawn_etcd(&keeper, folder.path(), etcd_port.number(), peer.number());
        let agents = (0..count)
            .map(|at| Agent { name: format!("member{at}"), rest: claim(), postgres: claim(), process: None })
            .collect();
        let mut patroni = Self { agents, etcd, etcd_port, keeper, folder, _etcd_peer: peer };
        for at in 0..count {
            patroni.start_agent(at);
            if at == 0 {
                // The first to come makes the cluster: the others shall not race for it.
                eventually("a leader", async || patroni.leader().is_some()).await;
            }
        }
        eventually("replicas", async || {
            patroni.list().matches("streaming").count() >= count - 1
                || patroni.list().matches("running").count() >= count
        })
        .await;
        patroni.sql(&format!(
            "CREATE ROLE {} LOGIN PASSWORD '{}' IN ROLE pg_monitor;
             CREATE ROLE {} LOGIN PASSWORD '{}' CREATEDB;",
            MONITOR.name, MONITOR.password, APP.name, APP.password
        ));
        patroni.sql(&format!("CREATE DATABASE {0} OWNER {0}", APP.name));
        patroni
    }

    /// Where the members' REST APIs are.
    pub fn endpoints(&self) -> Vec<String> {
        self.agents.iter().map(|agent| format!("http://127.0.0.1:{}", agent.rest.number())).collect()
    }

    pub fn ports(&self) -> Vec<u16> {
        self.agents.iter().map(|agent| agent.postgres.number()).collect()
    }

    /// The member that leads, by Patroni's own list.
    pub fn leader(&self) -> Option<usize> {
        let list: serde_json::Value = serde_json::from_str(&self.list()).ok()?;
        let leads = |member: &&serde_json::Value| member["Role"] == "Leader" && member["State"] == "running";
        let name = list.as_array()?.iter().find(leads)?["Member"].as_str()?;
        self.agents.iter().position(|agent| agent.name == name)
    }

    fn list(&self) -> String {
        String::from_utf8_lossy(&self.ctl(&["list", "-f", "json"]).stdout).into_owned()
    }

    /// `patronictl switchover` from the leader to another member.
    pub fn switch_over(&self) {
        let leader = self.leader().expect("there is a leader");
        let candidate = &self.agents[(leader + 1) % self.agents.len()].name;
        let from = &self.agents[leader].name;
        let output = self.ctl(&["switchover", "--force", "--master", from, "--candidate", candidate]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("Successfully"),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// kill -9 of a member's agent and of its server.
    pub fn kill(&mut self, at: usize) {
        let pid_file = self.data(at).join("postmaster.pid");
        let postmaster = fs::read_to_string(pid_file).ok().and_then(|text| text.lines().next()?.parse().ok());
        if let Some(mut agent) = self.agents[at].process.take() {
            signal(agent.id(), Signal::Kill);
            let _ = agent.wait();
        }
        if let Some(pid) = postmaster {
            signal_tree(pid, Signal::Kill);
        }
    }

    pub fn start_agent(&mut self, at: usize) {
        let agent = &self.agents[at];
        let config = self.folder.path().join(format!("{}.yml", agent.name));
        fs::write(&config, self.configuration(at)).expect("the folder is ours");
        let log =
            File::create(self.folder.path().join(format!("{}.log", agent.name))).expect("the folder is ours");
        let mut command = Command::new("patroni");
        command.arg(config).stdout(log.try_clone().expect("descriptors are to be had")).stderr(log);
        run_as_postgres(&mut command, self.folder.path());
        self.agents[at].process =
            Some(self.keeper.spawn(command, Signal::Terminate).expect("patroni is installed"));
    }

    fn data(&self, at: usize) -> PathBuf {
        self.folder.path().join("data").join(&self.agents[at].name)
    }

    fn configuration(&self, at: usize) -> String {
        let agent = &self.agents[at];
        let server = Binaries::find().expect("PostgreSQL is installed").program("postgres");
        let bin = server.parent().expect("programs are in a folder");
        format!(
            r#"
scope: {SCOPE}
name: {name}
restapi: {{ listen: "127.0.0.1:{rest}", connect_address: "127.0.0.1:{rest}" }}
etcd: {{ host: "127.0.0.1:{etcd}" }}
bootstrap:
  dcs:
    ttl: 5
    loop_wait: 1
    retry_timeout: 2
    postgresql:
      use_pg_rewind: true
      parameters: {{ wal_keep_size: 256MB, wal_log_hints: "on", fsync: "off", max_connections: 100 }}
  initdb: [{{ encoding: UTF8 }}, {{ locale: C }}, "no-sync"]
postgresql:
  listen: "127.0.0.1:{port}"
  connect_address: "127.0.0.1:{port}"
  data_dir: "{data}"
  bin_dir: "{bin}"
  pgpass: "{folder}/{name}.pgpass"
  authentication:
    superuser: {{ username: {super_name}, password: {super_password} }}
    replication: {{ username: {repl_name}, password: {repl_password} }}
    rewind: {{ username: {super_name}, password: {super_password} }}
  parameters: {{ unix_socket_directories: "{folder}", password_encryption: scram-sha-256 }}
  pg_hba:
    - local all all trust
    - host replication all 127.0.0.1/32 scram-sha-256
    - host all all 127.0.0.1/32 scram-sha-256
"#,
            name = agent.name,
            rest = agent.rest.number(),
            etcd = self.etcd_port.number(),
            port = agent.postgres.number(),
            data = self.data(at).display(),
            bin = bin.display(),
            folder = self.folder.path().display(),
            super_name = SUPERUSER.name,
            super_password = SUPERUSER.password,
            repl_name = REPLICATION.name,
            repl_password = REPLICATION.password,
        )
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        let config = self.folder.path().join(format!("{}.yml", self.agents[0].name));
        let mut command = Command::new("patronictl");
        command.arg("-c").arg(config).args(&arguments[..1]).arg(SCOPE).args(&arguments[1..]);
        command.env("LC_ALL", "C.UTF-8").output().expect("patronictl is installed")
    }

    /// Runs SQL on the leader as the superuser.
    pub fn sql(&self, sql: &str) -> String {
        self.sql_in("postgres", sql)
    }

    pub fn sql_in(&self, database: &str, sql: &str) -> String {
        let leader = self.leader().expect("there is a leader");
        let port = self.agents[leader].postgres.number().to_string();
        let mut psql = Command::new("psql");
        psql.args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-U", SUPERUSER.name, "-d", database])
            .args(["-h", "127.0.0.1", "-p", &port, "-c", sql])
            .env("PGPASSWORD", SUPERUSER.password);
        let output = psql.output().expect("psql is installed");
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Patroni {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for agent in &self.agents {
                let log = fs::read_to_string(self.folder.path().join(format!("{}.log", agent.name)));
                let log = log.unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                eprintln!(
                    "--- {} ---\n{}",
                    agent.name,
                    tail.into_iter().rev().collect::<Vec<_>>().join("\n")
                );
            }
        }
        for at in 0..self.agents.len() {
            self.kill(at);
        }
        signal(self.etcd.id(), Signal::Kill);
        wait_for_exit(&mut self.etcd, Duration::from_secs(5));
    }
}

fn claim() -> Port {
    Port::claim().expect("ports are to be had")
}

fn spawn_etcd(keeper: &Keeper, folder: &Path, client: u16, peer: u16) -> Child {
    let log = File::create(folder.join("etcd.log")).expect("the folder is ours");
    let mut command = Command::new("etcd");
    command
        .arg("--data-dir")
        .arg(folder.join("etcd"))
        .args(["--listen-client-urls", &format!("http://127.0.0.1:{client}")])
        .args(["--advertise-client-urls", &format!("http://127.0.0.1:{client}")])
        .args(["--listen-peer-urls", &format!("http://127.0.0.1:{peer}")])
        .args(["--initial-advertise-peer-urls", &format!("http://127.0.0.1:{peer}")])
        .args(["--initial-cluster", &format!("default=http://127.0.0.1:{peer}")])
        .args(["--enable-v2"])
        .stdout(log.try_clone().expect("descriptors are to be had"))
        .stderr(log);
    keeper.spawn(command, Signal::Kill).expect("etcd is installed")
}

/// Servers refuse to run as root, and so their agents must not.
fn run_as_postgres(command: &mut Command, folder: &Path) {
    let run_as = pointsman::demo::RunAs::choose().expect("there is a user for servers");
    let data = folder.join("data");
    if !data.exists() {
        fs::create_dir(&data).expect("the folder is ours");
    }
    run_as.own(folder).expect("we may give our files away");
    run_as.apply(command);
}
