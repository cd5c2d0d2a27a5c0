//! A small app: one session writes, four read, each through the database's own client; every statement says which
//! server ran it.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    thread,
    time::Duration,
};

use super::{servers::ServerError, stage::Servers};

pub(super) const WRITES: u32 = 40;
const WRITE_PAUSE: Duration = Duration::from_millis(75);
const READERS: u32 = 4;
const READS_PER_READER: u32 = 50;
const READ_PAUSE: Duration = Duration::from_millis(60);

/// How many statements a server ran, by its own word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub reads: u32,
    pub writes: u32,
}

/// Counts by the server's port.
pub type Counts = BTreeMap<u16, Count>;

/// A session of the database's own client, one statement at a time.
pub(super) struct Client {
    child: Child,
    statements: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Client {
    /// Opens a session of the user `app` at a port of 127.0.0.1.
    pub(super) fn open(servers: &Servers, port: u16) -> Result<Self, ServerError> {
        let mut command = servers.client(port)?;
        command
            // A terminal's ^C is for the proxy, which then ends these sessions in order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn()?;
        let (Some(statements), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the client's pipes were not opened").into());
        };
        Ok(Self { child, statements, answers: BufReader::new(answers) })
    }

    /// Runs a statement that answers one row and returns its first column, the server's port; errs
    /// when the client ends because the statement failed.
    pub(super) fn port(&mut self, statement: &str) -> io::Result<u16> {
        writeln!(self.statements, "{statement}")?;
        self.statements.flush()?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let port = line.trim().split(['|', '\t']).next().and_then(|port| port.parse().ok());
        port.ok_or_else(|| io::Error::other(format!("no answer to: {statement}")))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs all sessions side by side, once; errs when one of them got no answer.
pub(super) fn run(servers: &Servers, port: u16) -> Result<Counts, ServerError> {
    thread::scope(|scope| {
        let writer = scope.spawn(|| session(servers, port, servers.statements().write, WRITES, WRITE_PAUSE));
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                scope
                    .spawn(|| session(servers, port, servers.statements().read, READS_PER_READER, READ_PAUSE))
            })
            .collect();
        let mut counts = Counts::new();
        for port in joined(writer)? {
            counts.entry(port).or_default().writes += 1;
        }
        for reader in readers {
            for port in joined(reader)? {
                counts.entry(port).or_default().reads += 1;
            }
        }
        Ok(counts)
    })
}

fn session(
    servers: &Servers,
    port: u16,
    statement: &str,
    times: u32,
    pause: Duration,
) -> Result<Vec<u16>, ServerError> {
    let mut client = Client::open(servers, port)?;
    (0..times)
        .map(|_| {
            thread::sleep(pause);
            Ok(client.port(statement)?)
        })
        .collect()
}

fn joined(
    session: thread::ScopedJoinHandle<'_, Result<Vec<u16>, ServerError>>,
) -> Result<Vec<u16>, ServerError> {
    session.join().unwrap_or_else(|_| Err(io::Error::other("a session of the workload panicked").into()))
}
