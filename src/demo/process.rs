//! Child processes that end with this one, and the user they run as.

use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// How often a process or a file is looked at while waiting for it.
pub(super) const POLL: Duration = Duration::from_millis(10);

/// Starts processes from one thread that lives as long as the keeper.
///
/// Linux sends the parent-death signal when the *thread* that started the child ends, so children
/// started from a passing thread (a test's, say) would die with it. Dropping the keeper ends its
/// thread, and with it whatever it started and nobody has stopped.
#[derive(Debug)]
pub struct Keeper {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Job {
    command: Command,
    answer: mpsc::Sender<io::Result<Child>>,
}

impl Keeper {
    /// Starts the keeper's thread; errs when the system has no thread to give.
    pub fn start() -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = thread::Builder::new().name("keeper".into()).spawn(move || {
            for Job { mut command, answer } in queue {
                // Nobody waits for the answer only if the asking thread panicked.
                let _ = answer.send(command.spawn());
            }
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Starts `command` in a process group of its own (a terminal's ^C does not reach it); it gets
    /// `death_signal` should this process die first.
    pub fn spawn(&self, mut command: Command, death_signal: Signal) -> io::Result<Child> {
        command.process_group(0);
        die_with_parent(&mut command, death_signal);
        let (answer, reply) = mpsc::channel();
        let gone = || io::Error::other("the keeper's thread has ended");
        self.jobs.as_ref().ok_or_else(gone)?.send(Job { command, answer }).map_err(|_| gone())?;
        reply.recv().map_err(|_| gone())?
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The signals that servers are steered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// PostgreSQL: smart shutdown. Others: end in order.
    Terminate,
    /// PostgreSQL: fast shutdown.
    Interrupt,
    /// PostgreSQL: immediate shutdown.
    Quit,
    Kill,
    Stop,
    Continue,
    HangUp,
}

impl Signal {
    fn number(self) -> libc::c_int {
        match self {
            Self::Terminate => libc::SIGTERM,
            Self::Interrupt => libc::SIGINT,
            Self::Quit => libc::SIGQUIT,
            Self::Kill => libc::SIGKILL,
            Self::Stop => libc::SIGSTOP,
            Self::Continue => libc::SIGCONT,
            Self::HangUp => libc::SIGHUP,
        }
    }
}

/// Sends a signal to one process; a process that is gone is no error.
#[expect(unsafe_code, reason = "kill(2) has no wrapper in std")]
pub fn signal(pid: u32, signal: Signal) {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return };
    // Zero and negative numbers mean process groups.
    if pid > 0 {
        // SAFETY: kill takes plain numbers and touches no memory of ours.
        unsafe { libc::kill(pid, signal.number()) };
    }
}

/// Sends a signal to a process and to all its descendants, the ancestor first, so that a stopped
/// server starts no new process meanwhile.
pub fn signal_tree(pid: u32, what: Signal) {
    signal(pid, what);
    for child in children(pid) {
        signal_tree(child, what);
    }
}

/// Kills a process and all its descendants. They are stopped first: whoever sees its parent die has
/// no time left to say goodbye, and nobody escapes to another parent.
pub fn kill_tree(pid: u32) {
    signal_tree(pid, Signal::Stop);
    for member in tree(pid) {
        signal(member, Signal::Kill);
    }
}

/// A process and its descendants, ancestors first.
fn tree(root: u32) -> Vec<u32> {
    let below = children(root).into_iter().flat_map(tree);
    std::iter::once(root).chain(below).collect()
}

/// The direct children of a process, from `/proc`.
fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| parent_of(*pid) == Some(parent))
        .collect()
}

/// The fourth field of `/proc/PID/stat`; the second one may hold spaces and parentheses.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Waits for a child's end; `false` when it still runs at the deadline.
pub fn wait_for_exit(child: &mut Child, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(_)) | Err(_) => return true,
            Ok(None) if Instant::now() >= deadline => return false,
            Ok(None) => thread::sleep(POLL),
        }
    }
}

#[expect(unsafe_code, reason = "code between fork and exec cannot be checked by the compiler")]
fn die_with_parent(command: &mut Command, signal: Signal) {
    let parent = std::process::id();
    let number = signal.number();
    // SAFETY: the closure only makes the async-signal-safe calls prctl and getppid. It runs after
    // std's own setuid, which would clear the parent-death signal.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, number) != 0 {
                return Err(io::Error::last_os_error());
            }
            if libc::getppid().cast_unsigned() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// The user that servers run as: database servers refuse to run as root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunAs {
    /// Whoever runs this process.
    Myself,
    Other {
        uid: u32,
        gid: u32,
    },
}

/// Tried in this order when running as root.
const UNPRIVILEGED_USERS: [&str; 2] = ["postgres", "nobody"];

impl RunAs {
    /// Ourselves unless that is root, then the first unprivileged user that exists.
    pub fn choose() -> io::Result<Self> {
        if id(&["-u"])? != 0 {
            return Ok(Self::Myself);
        }
        UNPRIVILEGED_USERS
            .iter()
            .find_map(|name| Some(Self::Other { uid: id(&["-u", name]).ok()?, gid: id(&["-g", name]).ok()? }))
            .ok_or_else(|| {
                io::Error::other("root may not run a database server, and no other user was found")
            })
    }

    /// Makes `command` run as this user.
    pub fn apply(self, command: &mut Command) {
        if let Self::Other { uid, gid } = self {
            command.uid(uid).gid(gid);
        }
    }

    /// Gives a file or a whole folder to this user, in which servers may be running.
    pub fn own(self, path: &Path) -> io::Result<()> {
        let Self::Other { uid, gid } = self else { return Ok(()) };
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
        if fs::symlink_metadata(path)?.is_dir() {
            for entry in fs::read_dir(path)? {
                match self.own(&entry?.path()) {
                    // They remove files of their own meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    owned => owned?,
                }
            }
        }
        Ok(())
    }
}

fn id(arguments: &[&str]) -> io::Result<u32> {
    let output = Command::new("id").args(arguments).output()?;
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .map_err(|_| io::Error::other(format!("id {} gave no number", arguments.join(" "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it_and_ends_with_its_keeper() {
        let keeper = Keeper::start().expect("threads are to be had");
        let mut child = thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let mut sleep = Command::new("sleep");
                sleep.arg("60");
                keeper.spawn(sleep, Signal::Kill).expect("sleep(1) exists")
            });
            asking.join().expect("it does not panic")
        });
        assert!(!wait_for_exit(&mut child, Duration::from_millis(100)), "died with the asking thread");

        drop(keeper);

        assert!(wait_for_exit(&mut child, Duration::from_secs(5)), "outlived its keeper");
    }

    #[test]
    fn the_parent_of_this_process_is_read_from_proc() {
        assert_eq!(parent_of(std::process::id()), Some(std::os::unix::process::parent_id()));
    }
}
