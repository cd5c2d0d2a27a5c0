//! One real PostgreSQL server: its data folder, its port and, while it runs, its process.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    binaries::{Binaries, run},
    ports::Port,
    process::{Keeper, POLL, RunAs, Signal, kill_tree, signal, signal_tree, wait_for_exit},
    servers::{SUPERUSER, ServerError},
};

/// A server that takes longer than this to start or stop is taken for broken.
const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// What is shown of the log of a server that did not start.
const LOG_TAIL_LINES: usize = 12;

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Sessions are ended with `57P01`, everything is sent to the replicas first.
    Fast,
    /// Every process quits at once (`57P02`); the next start replays from the last checkpoint.
    Immediate,
    /// SIGKILL to every process: nobody says goodbye.
    Kill,
}

/// One server; the cluster that it belongs to starts it.
#[derive(Debug)]
pub struct PgNode {
    pub(super) port: Port,
    pub(super) name: String,
    pub(super) data: PathBuf,
    pub(super) sockets: PathBuf,
    pub(super) log: PathBuf,
    pub(super) binaries: Binaries,
    pub(super) run_as: RunAs,
    process: Mutex<Option<Child>>,
}

impl PgNode {
    /// A server that is not running yet; its data lives at `folder/name`.
    pub(super) fn new(
        name: String,
        folder: &Path,
        binaries: Binaries,
        run_as: RunAs,
    ) -> Result<Self, ServerError> {
        Ok(Self {
            port: Port::claim()?,
            data: folder.join(&name),
            log: folder.join(format!("{name}.log")),
            sockets: folder.to_path_buf(),
            name,
            binaries,
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

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Everything the server has written to its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The postmaster's process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.lock().as_ref().map(Child::id)
    }

    /// Starts the server, its command changed by `change`, and waits until it accepts connections (a
    /// standby: reads, unless it was told to take none).
    pub(super) fn start(
        &self,
        keeper: &Keeper,
        change: impl FnOnce(&mut Command),
    ) -> Result<(), ServerError> {
        let mut process = self.process.lock();
        if process.is_some() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = self.binaries.command("postgres");
        command.arg("-D").arg(&self.data).stdout(log.try_clone()?).stderr(log);
        self.run_as.apply(&mut command);
        change(&mut command);
        let mut child = keeper.spawn(command, Signal::Quit)?;
        let started = self.wait_until_ready(&mut child);
        if started.is_err() {
            kill_tree(child.id());
            let _ = child.wait();
        } else {
            *process = Some(child);
        }
        started
    }

    /// `postmaster.pid` says in its first line whose it is and in its eighth what pg_ctl waits for.
    fn wait_until_ready(&self, child: &mut Child) -> Result<(), ServerError> {
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            if child.try_wait()?.is_some() {
                break;
            }
            let file = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
            let mut lines = file.lines();
            let ours = lines.next().is_some_and(|pid| pid.trim() == child.id().to_string());
            let status = lines.nth(6).unwrap_or_default().trim();
            // `standby`: replays, and takes no connections.
            if ours && matches!(status, "ready" | "standby") {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        Err(ServerError::DidNotStart { node: self.name.clone(), log: tail(&self.log()) })
    }

    /// Stops the server and waits for its end; one that is not running is left alone.
    pub fn stop(&self, how: Stop) -> Result<(), ServerError> {
        let Some(mut child) = self.process.lock().take() else { return Ok(()) };
        // A frozen process takes no other signal than SIGKILL.
        signal_tree(child.id(), Signal::Continue);
        match how {
            Stop::Fast => signal(child.id(), Signal::Interrupt),
            Stop::Immediate => signal(child.id(), Signal::Quit),
            Stop::Kill => kill_tree(child.id()),
        }
        if wait_for_exit(&mut child, STOP_LIMIT) {
            return Ok(());
        }
        kill_tree(child.id());
        let _ = child.wait();
        Err(ServerError::DidNotStop { node: self.name.clone() })
    }

    /// Freezes every process of the server (SIGSTOP): it holds its connections and answers nothing.
    pub fn freeze(&self) {
        if let Some(pid) = self.pid() {
            signal_tree(pid, Signal::Stop);
        }
    }

    /// Ends [`PgNode::freeze`].
    pub fn thaw(&self) {
        if let Some(pid) = self.pid() {
            signal_tree(pid, Signal::Continue);
        }
    }

    /// Makes the server read its configuration and `pg_hba.conf` again.
    pub fn reload(&self) {
        if let Some(pid) = self.pid() {
            signal(pid, Signal::HangUp);
        }
    }

    /// Runs SQL as the superuser over the unix socket and returns psql's unaligned output.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String, ServerError> {
        let mut psql = self.binaries.command("psql");
        psql.args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-U", SUPERUSER.name, "-d", database])
            .arg("-h")
            .arg(&self.sockets)
            .args(["-p", &self.port().to_string(), "-c", sql]);
        run(psql, RunAs::Myself)
    }

    /// Changes one setting on the running server. Takes effect at once where the server allows it,
    /// otherwise at its next start.
    pub fn set(&self, setting: &str, value: &str) -> Result<(), ServerError> {
        self.sql("postgres", &format!("ALTER SYSTEM SET {setting} = '{}'", value.replace('\'', "''")))?;
        self.sql("postgres", "SELECT pg_reload_conf()").map(drop)
    }
}

impl Drop for PgNode {
    fn drop(&mut self) {
        // The data goes too, so there is nothing to bring in order.
        let _ = self.stop(Stop::Immediate);
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}
