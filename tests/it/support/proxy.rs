//! The real binary with a configuration of its own, before a cluster.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, ExitStatus},
    sync::mpsc,
    time::{Duration, Instant},
};

use pointsman::demo::{
    Keeper, Port, Signal,
    servers::{APP, Login, MONITOR, PgCluster},
    signal, wait_for_exit,
};
use tempfile::TempDir;

use super::{PATIENCE, Session, client, eventually};

/// The longest test, five thousand logins of a slow build among them, on a busy machine.
const TEST_LIMIT: Duration = Duration::from_secs(600);

/// A running `pointsman run`.
pub struct Proxy {
    child: Child,
    port: Port,
    http: Port,
    config: toml::Table,
    folder: TempDir,
    /// Its end tells the watchdog that the test is over.
    watched: mpsc::Sender<()>,
    // The binary hangs on the keeper's thread, so it must be the last to go.
    keeper: Keeper,
}

impl Proxy {
    /// Starts the proxy before all nodes of `cluster` and waits until it serves and every running
    /// replica takes reads. Each of `settings` is a TOML line of the configuration, with `cluster`
    /// for the only cluster: `cluster.pool.size = 2`.
    pub async fn start(cluster: &PgCluster, settings: &[&str]) -> Self {
        let proxy = Self::start_unready(&cluster.addresses(), settings);
        let replicas: Vec<u16> =
            cluster.nodes()[1..].iter().filter(|node| node.pid().is_some()).map(|node| node.port()).collect();
        proxy.wait_until_reads_use(&replicas).await;
        proxy
    }

    /// Starts the proxy before `nodes` and waits only until it listens.
    pub fn start_unready(nodes: &[String], settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let keeper = Keeper::start().expect("threads are to be had");
        let port = Port::claim().expect("ports are to be had");
        let http = Port::claim().expect("ports are to be had");
        let config = configuration(nodes, port.number(), http.number(), settings);
        write_config(&folder, &config);
        let child = spawn(&keeper, &folder);
        let watched = watch(child.id(), TEST_LIMIT);
        let mut proxy = Self { child, port, http, config, folder, watched, keeper };
        proxy.wait_until_listening();
        proxy
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn http_port(&self) -> u16 {
        self.http.number()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// libpq's connection string for the user `app`.
    pub fn dsn(&self, database: &str) -> String {
        self.dsn_of(APP, database)
    }

    pub fn dsn_of(&self, login: Login, database: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user={} password='{}' dbname={database}",
            self.port(),
            login.name,
            login.password
        )
    }

    /// A session of the user `app`.
    pub async fn session(&self, database: &str) -> Session {
        Session::open(&self.dsn(database)).await
    }

    /// For tests that take longer than the others.
    pub fn let_live_for(&mut self, limit: Duration) {
        self.watched = watch(self.pid(), limit);
    }

    /// The file that it was started with.
    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("pointsman.toml")
    }

    /// What the proxy has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Changes settings (as in [`Proxy::start`]) in the file and asks for a reload (SIGHUP).
    pub fn reload(&mut self, settings: &[&str]) {
        self.change(settings);
        signal(self.pid(), Signal::HangUp);
    }

    /// Changes settings in the file and tells nobody.
    pub fn change(&mut self, settings: &[&str]) {
        for line in settings {
            apply(&mut self.config, line);
        }
        write_config(&self.folder, &self.config);
    }

    /// Puts a text into the file as it is and asks for a reload.
    pub fn reload_text(&self, text: &str) {
        self.write_text(text);
        signal(self.pid(), Signal::HangUp);
    }

    /// Puts a text into the file as it is.
    pub fn write_text(&self, text: &str) {
        fs::write(self.folder.path().join("pointsman.toml"), text).expect("the folder is ours");
    }

    /// SIGTERM: begin to drain.
    pub fn terminate(&self) {
        signal(self.pid(), Signal::Terminate);
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        assert!(wait_for_exit(&mut self.child, PATIENCE), "the proxy does not end; its log:\n{}", self.log());
        self.child.wait().expect("it has ended")
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends the process at once and starts another with the same configuration.
    pub fn restart(&mut self) {
        self.terminate();
        self.terminate();
        self.wait();
        self.child = spawn(&self.keeper, &self.folder);
        self.wait_until_listening();
    }

    /// The address of a page of the HTTP door.
    pub fn http_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.http.number())
    }

    /// The body of a page of the HTTP door.
    pub fn http(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http.number())).expect("the door is open");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero");
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it listens");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers in UTF-8");
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
    }

    /// The sum of all samples of a metric whose labels contain every one of `labels`, such as
    /// `access="read"`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = self.http("/metrics");
        page.lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|rest| rest.starts_with(['{', ' ']) && labels.iter().all(|label| rest.contains(label)))
            .filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.trim().parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
    }

    /// Waits until reads have been answered by each of the servers on `ports`.
    pub async fn wait_until_reads_use(&self, ports: &[u16]) {
        let session = Session::retry(&self.dsn(APP.name)).await;
        let mut missing = ports.to_vec();
        let limit = Instant::now() + PATIENCE;
        while !missing.is_empty() {
            assert!(Instant::now() < limit, "no reads on {missing:?}; the proxy's log:\n{}", self.log());
            match session.try_port().await {
                Ok(port) => missing.retain(|p| *p != port),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Waits until the log contains `text`.
    pub async fn wait_for_log(&self, text: &str) {
        eventually(&format!("`{text}` in the log"), async || self.log().contains(text)).await;
    }

    fn wait_until_listening(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port())).is_err() {
            let alive = self.is_running() && Instant::now() < deadline;
            assert!(alive, "the proxy does not listen; its log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Twice: to end at once, without waiting for clients.
        self.terminate();
        self.terminate();
        if !wait_for_exit(&mut self.child, Duration::from_secs(5)) {
            signal(self.pid(), Signal::Kill);
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the proxy's log ---\n{}", self.log());
        }
        let _ = &self.keeper;
    }
}

pub fn configuration(nodes: &[String], port: u16, http: u16, settings: &[&str]) -> toml::Table {
    let nodes: Vec<String> = nodes.iter().map(|node| format!("\"{node}\"")).collect();
    let text = format!(
        r#"
        [log]
        level = "debug"
        [admin]
        http = "127.0.0.1:{http}"
        [[cluster]]
        name = "it"
        engine = "postgres"
        listen = ["127.0.0.1:{port}"]
        {nodes}
        users = [{{ name = "{app}", password = "{app_password}" }}]
        [cluster.monitor]
        user = "{monitor}"
        password = "{monitor_password}"
        "#,
        // Without nodes a setting has to say who discovers them.
        nodes = if nodes.is_empty() { String::new() } else { format!("nodes = [{}]", nodes.join(", ")) },
        app = APP.name,
        app_password = APP.password,
        monitor = MONITOR.name,
        monitor_password = MONITOR.password,
    );
    let mut config: toml::Table = text.parse().expect("the text above is TOML");
    for line in settings {
        apply(&mut config, line);
    }
    config
}

/// Merges a line such as `cluster.pool.size = 2` into the configuration.
fn apply(config: &mut toml::Table, line: &str) {
    let mut change: toml::Table = line.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
    if let Some(toml::Value::Table(cluster)) = change.remove("cluster") {
        let first = config.get_mut("cluster").and_then(|clusters| clusters.get_mut(0));
        merge(first.and_then(toml::Value::as_table_mut).expect("there is one cluster"), cluster);
    }
    merge(config, change);
}

fn merge(into: &mut toml::Table, change: toml::Table) {
    for (key, value) in change {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

fn write_config(folder: &TempDir, config: &toml::Table) {
    let text = toml::to_string(config).expect("what was TOML stays TOML");
    fs::write(folder.path().join("pointsman.toml"), text).expect("the folder is ours");
}

fn spawn(keeper: &Keeper, folder: &TempDir) -> Child {
    let log = File::create(folder.path().join("log")).expect("the folder is ours");
    let mut command = Command::new(env!("CARGO_BIN_EXE_pointsman"));
    command.args(["run", "-c"]).arg(folder.path().join("pointsman.toml"));
    command.stdout(log.try_clone().expect("descriptors are to be had")).stderr(log);
    command.env("RUST_BACKTRACE", "1").env_remove("RUST_LOG");
    keeper.spawn(command, Signal::Kill).expect("the binary was built")
}

/// Kills a proxy whose test takes longer than any may: a test that hangs then fails.
fn watch(pid: u32, limit: Duration) -> mpsc::Sender<()> {
    let (watched, over) = mpsc::channel();
    std::thread::spawn(move || {
        if over.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            signal(pid, Signal::Kill);
        }
    });
    watched
}

/// The SQLSTATE with which a login fails.
pub async fn login_error(dsn: &str) -> String {
    match client::connect(dsn).await {
        Ok(_) => panic!("the login succeeded"),
        Err(error) => client::code(&error),
    }
}
