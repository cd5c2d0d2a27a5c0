//! One MariaDB or MySQL server.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{Flavour, MysqlOptions};
use crate::demo::{
    binaries::run,
    node::Stop,
    ports::Port,
    process::{Keeper, RunAs, Signal, signal, signal_tree},
    server_process::ServerProcess,
    servers::{ServerError, copy_folder},
};

/// Between the server_id of a server and of the one in its place: more than a cluster has servers.
const IDS_APART: usize = 100;

/// One server; the cluster that it belongs to starts it.
#[derive(Debug)]
pub struct MysqlNode {
    port: Port,
    pub(super) name: String,
    server_id: AtomicUsize,
    pub(super) data: PathBuf,
    socket: PathBuf,
    statements: PathBuf,
    temporary: PathBuf,
    arguments: Vec<String>,
    flavour: Flavour,
    run_as: RunAs,
    process: ServerProcess,
}

impl MysqlNode {
    pub(super) fn new(number: usize, folder: &Path, options: &MysqlOptions) -> Result<Self, ServerError> {
        let name = format!("node{number}");
        Ok(Self {
            port: Port::claim()?,
            process: ServerProcess::new(&name, folder),
            data: folder.join(&name),
            socket: folder.join(format!("{name}.sock")),
            statements: folder.join(format!("{name}.statements")),
            temporary: folder.join(format!("{name}.tmp")),
            server_id: AtomicUsize::new(number + 1),
            name,
            arguments: options.arguments.clone(),
            run_as: options.flavour.run_as()?,
            flavour: options.flavour.clone(),
        })
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// `127.0.0.1:PORT`, as it stands in the proxy's configuration.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// The unix socket by which root needs no password.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Everything the server has written to its error log so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Every statement the server was sent so far (the general log).
    pub fn statements(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.statements).unwrap_or_default()).into_owned()
    }

    /// The server's process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    pub(super) fn install(&self) -> Result<(), ServerError> {
        let mut installer = self.flavour.installer(&self.data)?;
        // As below: also the server that fills the folder has temporary tables.
        self.make_temporary()?;
        installer.stdin(Stdio::null()).env("TMPDIR", &self.temporary);
        fs::create_dir_all(&self.data)?;
        self.run_as.own(&self.data)?;
        run(installer, self.run_as).map(drop)
    }

    /// Takes the data of a stopped server, with an identity of its own.
    pub(super) fn copy_from(&self, template: &Path) -> Result<(), ServerError> {
        copy_folder(template, &self.data)?;
        self.run_as.own(&self.data).map_err(Into::into)
    }

    fn make_temporary(&self) -> Result<(), ServerError> {
        if !self.temporary.exists() {
            fs::create_dir(&self.temporary)?;
            self.run_as.own(&self.temporary)?;
        }
        Ok(())
    }

    /// Forgets that it has ever been a server: of the events of its former self it would receive none,
    /// as replication leaves out those with a server's own id.
    pub(super) fn become_another(&self) {
        self.server_id.fetch_add(IDS_APART, Ordering::Relaxed);
    }

    pub(super) fn create_users(&self) -> Result<(), ServerError> {
        self.sql("", &self.flavour.users()).map(drop)
    }

    pub(super) fn start(
        &self,
        keeper: &Keeper,
        change: impl FnOnce(&mut Command),
    ) -> Result<(), ServerError> {
        let command = || {
            self.make_temporary()?;
            let mut command = self.flavour.server()?;
            command
                .arg(format!("--datadir={}", self.data.display()))
                // A server that starts removes every `#sql…` file from its tmpdir: in a shared one it takes
                // the temporary tables of the others, which may crash them (seen on MariaDB 10.11.19).
                .arg(format!("--tmpdir={}", self.temporary.display()))
                .arg(format!("--socket={}", self.socket.display()))
                .arg(format!("--pid-file={}", self.data.join("pid").display()))
                .arg(format!("--general-log-file={}", self.statements.display()))
                .arg(format!("--port={}", self.port()))
                .arg(format!("--server-id={}", self.server_id.load(Ordering::Relaxed)))
                .args(&self.arguments);
            self.run_as.apply(&mut command);
            change(&mut command);
            Ok(command)
        };
        self.process.start(keeper, Signal::Kill, command, |_| self.sql("", "SELECT 1").is_ok())
    }

    /// Stops the server and waits for its end; one that is not running is left alone.
    ///
    /// # Errors
    /// When it has to be killed.
    pub fn stop(&self, how: Stop) -> Result<(), ServerError> {
        self.process.stop(|pid| match how {
            Stop::Fast => signal(pid, Signal::Terminate),
            // There is nothing between an orderly shutdown and none.
            Stop::Immediate | Stop::Kill => signal_tree(pid, Signal::Kill),
        })
    }

    /// Freezes the server (SIGSTOP): it holds its connections and answers nothing.
    pub fn freeze(&self) {
        self.process.freeze();
    }

    /// Ends [`MysqlNode::freeze`].
    pub fn thaw(&self) {
        self.process.thaw();
    }

    /// Runs SQL as root over the unix socket and returns the client's output: columns apart by
    /// tabs, rows by line ends.
    ///
    /// # Errors
    /// With what the client says.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String, ServerError> {
        let mut client = self.flavour.client()?;
        client.args(["-N", "-B", "-u", "root", "--delimiter=$$", "-S"]).arg(&self.socket).args(["-e", sql]);
        if !database.is_empty() {
            client.arg(database);
        }
        client.stdin(Stdio::null());
        run(client, RunAs::Myself)
    }
}

impl Drop for MysqlNode {
    fn drop(&mut self) {
        // The data goes too, so there is nothing to bring in order.
        let _ = self.stop(Stop::Kill);
    }
}
