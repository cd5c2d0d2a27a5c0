//! Real Patroni agents before real servers, with a real etcd, all on free ports of 127.0.0.1.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    sync::Arc,
    time::{Duration, Instant},
};

use pointsman::demo::{
    Keeper, Port, Signal,
    servers::{APP, Binaries, MONITOR, REPLICATION, SUPERUSER},
    signal, signal_tree, wait_for_exit,
};
use tempfile::TempDir;

/// Longer than anything of this may take on a busy machine: each agent is a Python program that
/// starts others, makes a database or copies one.
pub const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(100);
/// How long an agent's REST API may take to answer.
const REST_TIMEOUT: Duration = Duration::from_secs(5);

const SCOPE: &str = "it";

/// A leader that cannot renew its lock for this long, in seconds, is replaced: long enough that a
/// busy machine does not do that to one that lives.
const TTL: u32 = 15;
/// The least that Patroni takes for it: `loop_wait` and twice this are at most `TTL`.
const RETRY_TIMEOUT: u32 = 7;

/// Waits, in steps that block, until `condition` holds.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// Servers under Patroni. Its steps block: an async test hands them to threads of their own.
pub struct Patroni {
    // In this order: agents end before etcd, and all of them before the thread that they hang on.
    agents: Vec<Agent>,
    etcd: Child,
    etcd_port: Port,
    keeper: Keeper,
    folder: TempDir,
    _etcd_peer: Port,
    /// How to ask the agents, where they speak https.
    tls: Option<Arc<rustls::ClientConfig>>,
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
    pub fn start(count: usize) -> Self {
        Self::start_as(count, false)
    }

    /// As [`Patroni::start`]; the agents' REST APIs speak https, with the certificate in
    /// [`Patroni::certificate`].
    pub fn start_with_https(count: usize) -> Self {
        Self::start_as(count, true)
    }

    fn start_as(count: usize, https: bool) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        let keeper = Keeper::start().expect("threads are to be had");
        let (etcd_port, peer) = (claim(), claim());
        let etcd = spawn_etcd(&keeper, folder.path(), etcd_port.number(), peer.number());
        let tls = https.then(|| make_certificate(folder.path()));
        let agents = Vec::new();
        let mut patroni = Self { agents, etcd, etcd_port, keeper, folder, _etcd_peer: peer, tls };
        patroni.add_agent();
        // The first to come makes the cluster: the others shall not race for it.
        wait_until("a leader", || patroni.leader().is_some());
        for _ in 1..count {
            patroni.add_agent();
        }
        patroni.wait_for_replicas();
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
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        self.agents.iter().map(|agent| format!("{scheme}://127.0.0.1:{}", agent.rest.number())).collect()
    }

    /// Who signed the certificates of the REST APIs, as a PEM file; `None` where they speak http.
    pub fn certificate(&self) -> Option<PathBuf> {
        self.tls.as_ref().map(|_| self.folder.path().join("rest.crt"))
    }

    pub fn ports(&self) -> Vec<u16> {
        self.agents.iter().map(|agent| agent.postgres.number()).collect()
    }

    /// The member that leads, by Patroni's own list.
    pub fn leader(&self) -> Option<usize> {
        let leads = |member: &serde_json::Value| member["role"] == "leader" && member["state"] == "running";
        let leaders = self.cluster()?.into_iter().find(leads);
        let name = leaders?["name"].as_str()?.to_owned();
        self.agents.iter().position(|agent| agent.name == name)
    }

    /// Waits until a member other than `than` leads, and all running ones follow it.
    pub fn wait_for_another_leader(&self, than: usize) {
        wait_until("another leader", || self.leader().is_some_and(|leader| leader != than));
    }

    /// Waits until every member that runs follows the leader and has what there is now. A copy that is not
    /// behind a checkpoint for long is up before it streams.
    pub fn wait_for_replicas(&self) {
        let running = self.agents.iter().filter(|agent| agent.process.is_some()).count();
        let follows = |member: &&serde_json::Value| {
            member["role"] == "replica" && (member["state"] == "streaming" || member["state"] == "running")
        };
        wait_until("replicas", || {
            let following = self.cluster().map(|members| members.iter().filter(follows).count());
            following == Some(running - 1)
        });
        let ask = |sql: &str| self.try_sql_in("postgres", sql).ok();
        let mut written = None;
        wait_until("the replicas have it all", || {
            written = written.take().or_else(|| ask("SELECT pg_current_wal_lsn()"));
            let Some(written) = &written else { return false };
            let have = format!("SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= '{written}'");
            ask(&have).is_some_and(|count| count == (running - 1).to_string())
        });
    }

    /// The members, as the first agent that answers knows them. `patronictl list` says the same and
    /// takes a second of CPU for it.
    fn cluster(&self) -> Option<Vec<serde_json::Value>> {
        let running = self.agents.iter().filter(|agent| agent.process.is_some());
        let answer = running.filter_map(|agent| self.ask(agent, "/cluster").ok()).next()?;
        let answer: serde_json::Value = serde_json::from_str(&answer).ok()?;
        answer["members"].as_array().cloned()
    }

    /// The body of an agent's answer.
    fn ask(&self, agent: &Agent, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", agent.rest.number()))?;
        stream.set_read_timeout(Some(REST_TIMEOUT))?;
        let answer = match &self.tls {
            None => exchange(&mut stream, path)?,
            Some(tls) => {
                let name = "127.0.0.1".try_into().expect("an address is a name");
                let session = rustls::ClientConnection::new(tls.clone(), name).map_err(io::Error::other)?;
                exchange(&mut rustls::StreamOwned::new(session, stream), path)?
            }
        };
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        body.ok_or_else(|| io::ErrorKind::InvalidData.into())
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

    /// One more member, which copies the leader and follows it.
    pub fn add_agent(&mut self) {
        let name = format!("member{}", self.agents.len());
        self.agents.push(Agent { name, rest: claim(), postgres: claim(), process: None });
        self.start_agent(self.agents.len() - 1);
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
restapi: {{ listen: "127.0.0.1:{rest}", connect_address: "127.0.0.1:{rest}"{certificate} }}
ctl: {{ insecure: true }}
etcd: {{ host: "127.0.0.1:{etcd}" }}
bootstrap:
  dcs:
    ttl: {TTL}
    loop_wait: 1
    retry_timeout: {RETRY_TIMEOUT}
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
  # A copy waits for a checkpoint, which is spread over minutes otherwise.
  basebackup: [{{ checkpoint: fast }}]
  parameters: {{ unix_socket_directories: "{folder}", password_encryption: scram-sha-256 }}
  pg_hba:
    - local all all trust
    - host replication all 127.0.0.1/32 scram-sha-256
    - host all all 127.0.0.1/32 scram-sha-256
"#,
            name = agent.name,
            certificate = match &self.tls {
                Some(_) =>
                    format!(", certfile: {0}/rest.crt, keyfile: {0}/rest.key", self.folder.path().display()),
                None => String::new(),
            },
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
        self.try_sql_in(database, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    fn try_sql_in(&self, database: &str, sql: &str) -> Result<String, String> {
        let leader = self.leader().ok_or("there is no leader")?;
        let port = self.agents[leader].postgres.number().to_string();
        let mut psql = Command::new("psql");
        psql.args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-U", SUPERUSER.name, "-d", database])
            .args(["-h", "127.0.0.1", "-p", &port, "-c", sql])
            .env("PGPASSWORD", SUPERUSER.password);
        let output = psql.output().expect("psql is installed");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
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

fn exchange(stream: &mut (impl Read + Write), path: &str) -> io::Result<String> {
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    stream.flush()?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // Python closes TLS connections without a word.
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
        _ => Ok(String::from_utf8_lossy(&answer).into_owned()),
    }
}

/// Makes `rest.crt` and `rest.key`, and what a client that trusts them goes by.
fn make_certificate(folder: &Path) -> Arc<rustls::ClientConfig> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("it can be made");
    fs::write(folder.join("rest.crt"), made.cert.pem()).expect("the folder is ours");
    let key = folder.join("rest.key");
    fs::write(&key, made.signing_key.serialize_pem()).expect("the folder is ours");
    // The agents run as another user.
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("it is a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
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
