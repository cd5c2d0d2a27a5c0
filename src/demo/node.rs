//! One real PostgreSQL server: its data folder, its port and, while it runs, its process.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    binaries::{Binaries, run},
    ports::Port,
    process::{Keeper, RunAs, Signal, kill_tree, signal},
    server_process::ServerProcess,
    servers::{SUPERUSER, ServerError},
};

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
    pub(super) binaries: Binaries,
    pub(super) run_as: RunAs,
    process: ServerProcess,
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
            process: ServerProcess::new(&name, folder),
            data: folder.join(&name),
            sockets: folder.to_path_buf(),
            name,
            binaries,
            run_as,
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
        self.process.log()
    }

    /// The postmaster's process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Starts the server, its command changed by `change`, and waits until it accepts connections (a
    /// standby: reads, unless it was told to take none).
    pub(super) fn start(
        &self,
        keeper: &Keeper,
        change: impl FnOnce(&mut Command),
    ) -> Result<(), ServerError> {
        let command = || {
            let mut command = self.binaries.command("postgres");
            command.arg("-D").arg(&self.data);
            self.run_as.apply(&mut command);
            change(&mut command);
            Ok(command)
        };
        self.process.start(keeper, Signal::Quit, command, |pid| self.is_ready(pid))
    }

    /// `postmaster.pid` says in its first line whose it is and in its eighth what pg_ctl waits for.
    fn is_ready(&self, pid: u32) -> bool {
        let file = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let mut lines = file.lines();
        let ours = lines.next().is_some_and(|first| first.trim() == pid.to_string());
        let status = lines.nth(6).unwrap_or_default().trim();
        // `standby`: replays, and takes no connections.
        ours && matches!(status, "ready" | "standby")
    }

    /// Stops the server and waits for its end; one that is not running is left alone.
    pub fn stop(&self, how: Stop) -> Result<(), ServerError> {
        self.process.stop(|pid| match how {
            Stop::Fast => signal(pid, Signal::Interrupt),
            Stop::Immediate => signal(pid, Signal::Quit),
            Stop::Kill => kill_tree(pid),
        })
    }

    /// Freezes every process of the server (SIGSTOP): it holds its connections and answers nothing.
    pub fn freeze(&self) {
        self.process.freeze();
    }

    /// Ends [`PgNode::freeze`].
    pub fn thaw(&self) {
        self.process.thaw();
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
