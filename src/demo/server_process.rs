//! The process of one server, whichever database it serves: started, frozen and stopped.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    process::{Keeper, POLL, Signal, kill_tree, signal_tree, wait_for_exit},
    servers::ServerError,
};

/// A server that takes longer than this to start or stop is taken for broken.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// What is shown of the log of a server that did not start.
const LOG_TAIL_LINES: usize = 12;

#[derive(Debug)]
pub(super) struct ServerProcess {
    name: String,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl ServerProcess {
    /// A server that is not running yet; its log is `folder/name.log`.
    pub(super) fn new(name: &str, folder: &Path) -> Self {
        Self { name: name.to_owned(), log: folder.join(format!("{name}.log")), child: Mutex::new(None) }
    }

    /// Everything the server has written to its log so far.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The process id while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.lock().as_ref().map(Child::id)
    }

    /// Starts what `command` makes and waits until it is `ready`, by its process id; a server that runs
    /// is left alone. `last`: what it gets should this process die first.
    pub(super) fn start(
        &self,
        keeper: &Keeper,
        last: Signal,
        command: impl FnOnce() -> Result<Command, ServerError>,
        ready: impl Fn(u32) -> bool,
    ) -> Result<(), ServerError> {
        let mut running = self.child.lock();
        if running.is_some() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = command()?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = keeper.spawn(command, last)?;
        if self.wait_until(&mut child, ready)? {
            *running = Some(child);
            return Ok(());
        }
        kill_tree(child.id());
        let _ = child.wait();
        Err(ServerError::DidNotStart { node: self.name.clone(), log: tail(&self.log()) })
    }

    fn wait_until(&self, child: &mut Child, ready: impl Fn(u32) -> bool) -> Result<bool, ServerError> {
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline && child.try_wait()?.is_none() {
            if ready(child.id()) {
                return Ok(true);
            }
            std::thread::sleep(POLL);
        }
        Ok(false)
    }

    /// Has `ask` tell the process to end, and waits for that; one that is not running is left alone.
    ///
    /// # Errors
    /// When it has to be killed.
    pub(super) fn stop(&self, ask: impl FnOnce(u32)) -> Result<(), ServerError> {
        let Some(mut child) = self.child.lock().take() else { return Ok(()) };
        // A frozen process takes no other signal than SIGKILL.
        signal_tree(child.id(), Signal::Continue);
        ask(child.id());
        if wait_for_exit(&mut child, STOP_LIMIT) {
            return Ok(());
        }
        kill_tree(child.id());
        let _ = child.wait();
        Err(ServerError::DidNotStop { node: self.name.clone() })
    }

    /// Freezes it with all its children (SIGSTOP): it holds its connections and answers nothing.
    pub(super) fn freeze(&self) {
        self.signal(Signal::Stop);
    }

    /// Ends [`Self::freeze`].
    pub(super) fn thaw(&self) {
        self.signal(Signal::Continue);
    }

    fn signal(&self, what: Signal) {
        if let Some(pid) = self.pid() {
            signal_tree(pid, what);
        }
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}
