//! Real MariaDB servers in a temporary folder: a primary and its GTID replicas, on free ports of
//! 127.0.0.1. The counterpart of [`super::servers`], with the same operations.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tempfile::TempDir;

use super::{
    binaries::run,
    node::Stop,
    ports::Port,
    process::{Keeper, POLL, RunAs, Signal, signal, signal_tree, wait_for_exit},
    servers::{APP, CHANGE_LIMIT, MONITOR, REPLICATION, ServerError, copy_folder, eventually},
};

/// A server that takes longer than this to start or stop is taken for broken.
const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// What is shown of the log of a server that did not start.
const LOG_TAIL_LINES: usize = 12;

/// How a cluster is to be made.
#[derive(Clone, Debug, Default)]
pub struct MariaOptions {
    pub replicas: usize,
    /// A folder made by [`MariaCluster::make_template`]: data is copied from there.
    pub template: Option<PathBuf>,
    /// Arguments for every server, after the defaults of this module: `--sync-binlog=1`.
    pub arguments: Vec<String>,
}

/// A primary (node 0 at the start) and its replicas.
#[derive(Debug)]
pub struct MariaCluster {
    // In this order: servers stop before the thread that they hang on ends, and the folder goes last.
    nodes: Vec<MariaNode>,
    keeper: Keeper,
    folder: TempDir,
}

/// One server; the cluster that it belongs to starts it.
#[derive(Debug)]
pub struct MariaNode {
    port: Port,
    name: String,
    number: usize,
    data: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    statements: PathBuf,
    temporary: PathBuf,
    arguments: Vec<String>,
    run_as: RunAs,
    process: Mutex<Option<Child>>,
}

impl MariaCluster {
    /// Starts a primary and `options.replicas` replicas and waits until all of them serve reads.
    ///
    /// # Errors
    /// When MariaDB is not installed or does not start.
    pub fn start(options: MariaOptions) -> Result<Self, ServerError> {
        let folder = tempfile::Builder::new().prefix("pointsman-maria-").tempdir()?;
        let run_as = RunAs::choose()?;
        run_as.own(folder.path())?;
        let nodes = (0..=options.replicas)
            .map(|number| MariaNode::new(number, folder.path(), &options.arguments, run_as))
            .collect::<Result<_, _>>()?;
        let cluster = Self { nodes, keeper: Keeper::start()?, folder };
        for node in &cluster.nodes {
            match &options.template {
                Some(template) => {
                    copy_folder(template, &node.data)?;
                    run_as.own(&node.data)?;
                }
                None => node.install()?,
            }
            node.start(&cluster.keeper)?;
            if options.template.is_none() {
                node.create_users()?;
            }
        }
        for index in 1..cluster.nodes.len() {
            cluster.follow(index, 0)?;
        }
        cluster.node(0).sql("", &format!("CREATE DATABASE {}", APP.name))?;
        cluster.wait_until_caught_up(0)?;
        Ok(cluster)
    }

    /// Puts the data folder of a fresh, stopped server at `target`, for [`MariaOptions::template`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn make_template(target: &Path) -> Result<(), ServerError> {
        let folder = tempfile::Builder::new().prefix("pointsman-maria-").tempdir()?;
        let run_as = RunAs::choose()?;
        run_as.own(folder.path())?;
        let keeper = Keeper::start()?;
        let node = MariaNode::new(0, folder.path(), &[], run_as)?;
        node.install()?;
        node.start(&keeper)?;
        node.create_users()?;
        node.stop(Stop::Fast)?;
        copy_folder(&node.data, target)
    }

    pub fn node(&self, index: usize) -> &MariaNode {
        &self.nodes[index]
    }

    pub fn nodes(&self) -> &[MariaNode] {
        &self.nodes
    }

    /// `host:port` of every server, in the order of their numbers.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(MariaNode::address).collect()
    }

    /// Where the servers' files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a stopped server; one that runs is left alone.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_node(&self, index: usize) -> Result<(), ServerError> {
        self.node(index).start(&self.keeper)
    }

    /// # Errors
    /// When it has to be killed.
    pub fn stop(&self, index: usize, how: Stop) -> Result<(), ServerError> {
        self.node(index).stop(how)
    }

    /// Stops every server, for owners whose destructors do not run.
    pub fn stop_all(&self) {
        for node in self.nodes.iter().rev() {
            let _ = node.stop(Stop::Kill);
        }
    }

    /// Turns a replica into a primary. The others keep following the old one until
    /// [`MariaCluster::follow`] is called.
    ///
    /// # Errors
    /// When the server says no.
    pub fn promote(&self, index: usize) -> Result<(), ServerError> {
        let promote = "STOP ALL SLAVES; RESET SLAVE ALL; SET GLOBAL read_only = 0";
        self.node(index).sql("", promote).map(drop)
    }

    /// Makes a running server a replica of another one.
    ///
    /// # Errors
    /// When the server says no.
    pub fn follow(&self, index: usize, primary: usize) -> Result<(), ServerError> {
        let change = format!(
            "STOP SLAVE; SET GLOBAL read_only = 1; \
             CHANGE MASTER TO master_host = '127.0.0.1', master_port = {}, master_user = '{}', master_password = '{}', \
             master_use_gtid = current_pos, master_connect_retry = 1; START SLAVE",
            self.node(primary).port(),
            REPLICATION.name,
            REPLICATION.password
        );
        self.node(index).sql("", &change).map(drop)
    }

    /// Starts a stopped former primary as a replica of `primary`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn rejoin(&self, index: usize, primary: usize) -> Result<(), ServerError> {
        self.start_node(index)?;
        self.follow(index, primary)
    }

    /// Stops a replica's replay; it goes on receiving.
    ///
    /// # Errors
    /// When the server says no.
    pub fn pause_replay(&self, index: usize) -> Result<(), ServerError> {
        self.node(index).sql("", "STOP SLAVE SQL_THREAD").map(drop)
    }

    /// # Errors
    /// When the server says no.
    pub fn resume_replay(&self, index: usize) -> Result<(), ServerError> {
        self.node(index).sql("", "START SLAVE SQL_THREAD").map(drop)
    }

    /// Makes a replica apply transactions `delay` (whole seconds) after they were made.
    ///
    /// # Errors
    /// When the server says no.
    pub fn delay_replay(&self, index: usize, delay: Duration) -> Result<(), ServerError> {
        let change = format!(
            "STOP SLAVE SQL_THREAD; CHANGE MASTER TO master_delay = {}; START SLAVE SQL_THREAD",
            delay.as_secs()
        );
        self.node(index).sql("", &change).map(drop)
    }

    /// Waits until every other running server has replayed what `primary` has written by now.
    ///
    /// # Errors
    /// When one has not in half a minute.
    pub fn wait_until_caught_up(&self, primary: usize) -> Result<(), ServerError> {
        let written = self.node(primary).sql("", "SELECT @@GLOBAL.gtid_binlog_pos")?;
        let running = |node: &&MariaNode| node.pid().is_some() && node.port() != self.node(primary).port();
        for node in self.nodes.iter().filter(running) {
            eventually(&format!("{} to replay {written}", node.name), CHANGE_LIMIT, || {
                Ok(node.sql("", &format!("SELECT MASTER_GTID_WAIT('{written}', 1)"))? == "0")
            })?;
        }
        Ok(())
    }
}

impl MariaNode {
    fn new(number: usize, folder: &Path, arguments: &[String], run_as: RunAs) -> Result<Self, ServerError> {
        let name = format!("node{number}");
        Ok(Self {
            port: Port::claim()?,
            data: folder.join(&name),
            socket: folder.join(format!("{name}.sock")),
            log: folder.join(format!("{name}.log")),
            statements: folder.join(format!("{name}.statements")),
            temporary: folder.join(format!("{name}.tmp")),
            number,
            name,
            arguments: arguments.to_vec(),
            run_as,
            process: Mutex::new(None),
        })
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// `127.0.0.1:PORT`, as it stands in the proxy's configuration.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// Everything the server has written to its error log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Every statement the server was sent so far (the general log).
    pub fn statements(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.statements).unwrap_or_default()).into_owned()
    }

    /// The server's process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.lock().as_ref().map(Child::id)
    }

    fn install(&self) -> Result<(), ServerError> {
        let mut install = Command::new(program("mariadb-install-db")?);
        install
            .arg("--no-defaults")
            .arg(format!("--datadir={}", self.data.display()))
            .args(["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"])
            .stdin(Stdio::null());
        if let RunAs::Myself = self.run_as {
            return run(install, self.run_as).map(drop);
        }
        fs::create_dir_all(&self.data)?;
        self.run_as.own(&self.data)?;
        run(install, self.run_as).map(drop)
    }

    fn create_users(&self) -> Result<(), ServerError> {
        let user = |login: super::servers::Login| {
            format!("CREATE USER {}@'%' IDENTIFIED BY '{}';", login.name, login.password)
        };
        let sql = format!(
            "{} {} {}
             GRANT REPLICATION SLAVE ON *.* TO {replication}@'%';
             GRANT REPLICA MONITOR, BINLOG MONITOR, PROCESS, SELECT, SHOW VIEW, EXECUTE ON *.* TO {monitor}@'%';
             GRANT ALL ON *.* TO {app}@'%'; REVOKE SUPER, READ ONLY ADMIN ON *.* FROM {app}@'%';
             RESET MASTER",
            user(REPLICATION),
            user(MONITOR),
            user(APP),
            replication = REPLICATION.name,
            monitor = MONITOR.name,
            app = APP.name,
        );
        self.sql("", &sql).map(drop)
    }

    fn start(&self, keeper: &Keeper) -> Result<(), ServerError> {
        let mut process = self.process.lock();
        if process.is_some() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        if !self.temporary.exists() {
            fs::create_dir(&self.temporary)?;
            self.run_as.own(&self.temporary)?;
        }
        let mut command = Command::new(program("mariadbd")?);
        command
            .arg("--no-defaults")
            .arg(format!("--datadir={}", self.data.display()))
            // A server that starts removes every `#sql…` file from its tmpdir: in a shared one it takes
            // the temporary tables of the others, which may crash them (seen on MariaDB 10.11.19).
            .arg(format!("--tmpdir={}", self.temporary.display()))
            .arg(format!("--socket={}", self.socket.display()))
            .arg(format!("--pid-file={}", self.data.join("pid").display()))
            .arg(format!("--general-log-file={}", self.statements.display()))
            .arg(format!("--port={}", self.port()))
            .arg(format!("--server-id={}", self.number + 1))
            .args(ARGUMENTS)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.run_as.apply(&mut command);
        let mut child = keeper.spawn(command, Signal::Kill)?;
        let started = self.wait_until_ready(&mut child);
        if started.is_err() {
            signal_tree(child.id(), Signal::Kill);
            let _ = child.wait();
        } else {
            *process = Some(child);
        }
        started
    }

    fn wait_until_ready(&self, child: &mut Child) -> Result<(), ServerError> {
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            if child.try_wait()?.is_some() {
                break;
            }
            if self.sql("", "SELECT 1").is_ok() {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let log = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
        Err(ServerError::DidNotStart { node: self.name.clone(), log })
    }

    /// Stops the server and waits for its end; one that is not running is left alone.
    ///
    /// # Errors
    /// When it has to be killed.
    pub fn stop(&self, how: Stop) -> Result<(), ServerError> {
        let Some(mut child) = self.process.lock().take() else { return Ok(()) };
        // A frozen process takes no other signal than SIGKILL.
        signal_tree(child.id(), Signal::Continue);
        match how {
            Stop::Fast => signal(child.id(), Signal::Terminate),
            // There is nothing between an orderly shutdown and none.
            Stop::Immediate | Stop::Kill => signal_tree(child.id(), Signal::Kill),
        }
        if wait_for_exit(&mut child, STOP_LIMIT) {
            return Ok(());
        }
        signal_tree(child.id(), Signal::Kill);
        let _ = child.wait();
        Err(ServerError::DidNotStop { node: self.name.clone() })
    }

    /// Freezes the server (SIGSTOP): it holds its connections and answers nothing.
    pub fn freeze(&self) {
        if let Some(pid) = self.pid() {
            signal_tree(pid, Signal::Stop);
        }
    }

    /// Ends [`MariaNode::freeze`].
    pub fn thaw(&self) {
        if let Some(pid) = self.pid() {
            signal_tree(pid, Signal::Continue);
        }
    }

    /// Runs SQL as root over the unix socket and returns the client's output: columns apart by
    /// tabs, rows by line ends.
    ///
    /// # Errors
    /// With what the client says.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String, ServerError> {
        let mut client = Command::new(program("mariadb")?);
        client
            .args(["--no-defaults", "-N", "-B", "-u", "root", "--delimiter=$$", "-S"])
            .arg(&self.socket)
            .args(["-e", sql]);
        if !database.is_empty() {
            client.arg(database);
        }
        client.stdin(Stdio::null());
        run(client, RunAs::Myself)
    }
}

impl Drop for MariaNode {
    fn drop(&mut self) {
        // The data goes too, so there is nothing to bring in order.
        let _ = self.stop(Stop::Kill);
    }
}

/// Quick to start, quick to fail over, and nothing that depends on the machine. The general log is
/// what tells tests where a statement ran.
const ARGUMENTS: [&str; 19] = [
    "--bind-address=127.0.0.1",
    "--skip-name-resolve",
    "--log-bin=binlog",
    "--log-slave-updates=1",
    "--gtid-strict-mode=1",
    "--binlog-format=ROW",
    "--sync-binlog=0",
    // Survives the death of the server, not that of the machine.
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-buffer-pool-size=32M",
    "--innodb-log-file-size=8M",
    "--innodb-use-native-aio=0",
    "--performance-schema=0",
    "--max-connections=200",
    "--slave-net-timeout=5",
    "--local-infile=1",
    "--general-log=1",
    "--character-set-server=utf8mb4",
    "--event-scheduler=0",
    "--default-time-zone=+00:00",
];

/// Debian keeps servers out of an ordinary user's `PATH`.
pub(super) fn program(name: &str) -> Result<PathBuf, ServerError> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/bin".into(), "/usr/local/bin".into()])
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .ok_or(ServerError::MariaNotInstalled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_with_two_replicas_starts_replicates_and_fails_over() {
        let cluster =
            MariaCluster::start(MariaOptions { replicas: 2, ..MariaOptions::default() }).expect("it starts");
        cluster.node(0).sql("app", "CREATE TABLE t AS SELECT 1 AS x").expect("the primary takes writes");
        cluster.wait_until_caught_up(0).expect("replicas follow");
        assert_eq!(cluster.node(2).sql("app", "SELECT x FROM t").expect("a replica serves reads"), "1");

        cluster.stop(0, Stop::Kill).expect("it dies");
        cluster.promote(1).expect("a replica takes over");
        cluster.follow(2, 1).expect("the other follows it");
        cluster.node(1).sql("app", "INSERT INTO t VALUES (2)").expect("the new primary takes writes");
        cluster.rejoin(0, 1).expect("the old one becomes a replica");
        cluster.wait_until_caught_up(1).expect("all follow the new primary");
        assert_eq!(cluster.node(0).sql("app", "SELECT sum(x) FROM t").expect("it serves reads"), "3");
    }
}
