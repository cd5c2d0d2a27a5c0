//! `pointsman demo`: real servers, the proxy before them and a small workload.
//!
//! [`servers`] is also what the tests stand on.

mod binaries;
pub mod mysql;
mod node;
mod ports;
mod process;
mod server_process;
pub mod servers;
mod stage;
mod workload;

use std::{
    io::{self, Write},
    thread,
    time::{Duration, Instant},
};

pub use ports::Port;
pub use process::{Keeper, RunAs, Signal, signal, signal_tree, wait_for_exit};
use servers::{APP, MONITOR, ServerError};
pub use stage::DemoEngine;
use stage::Servers;
use workload::Client;
pub use workload::{Count, Counts};

const REPLICAS: usize = 2;
/// The proxy has found its servers by then, or never will.
const READY_LIMIT: Duration = Duration::from_secs(30);
const READY_PAUSE: Duration = Duration::from_millis(50);
/// Between a session that the proxy has closed and the proxy's own end.
const END_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error(transparent)]
    Servers(#[from] ServerError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the proxy ended: {0}")]
    Proxy(String),
    #[error("the proxy sent no read to a replica within {READY_LIMIT:?}")]
    NotReady,
}

/// The proxy as the demo knows it.
pub struct Proxy<S, E> {
    /// Serves a configuration (TOML text) and returns when the proxy has ended. Called once, on a
    /// thread of its own.
    pub serve: S,
    /// Makes `serve` return soon.
    pub stop: E,
}

/// Runs the demo. With `once`, one round of the workload is run and its counts go to `out`, a line
/// per node; otherwise rounds follow each other until the proxy ends (by a signal, say).
///
/// # Errors
/// When the servers or the proxy do not start, or a statement of the workload gets no answer.
pub fn run<S, E>(
    engine: DemoEngine,
    once: bool,
    proxy: Proxy<S, E>,
    out: &mut dyn Write,
) -> Result<(), DemoError>
where
    S: FnOnce(&str) -> Result<(), String> + Send,
    E: Fn(),
{
    writeln!(io::stderr(), "starting a primary and {REPLICAS} replicas …")?;
    let servers = Servers::start(engine, REPLICAS)?;
    let stage = Stage { port: Port::claim()?, http: Port::claim()?, servers };
    let config = stage.configuration();
    let Proxy { serve, stop } = proxy;
    thread::scope(|scope| {
        let served = scope.spawn(move || serve(&config));
        let shown = stage.show(once, &|| served.is_finished(), out);
        stop();
        let ended = served.join().unwrap_or_else(|_| Err("it panicked".to_owned()));
        // A proxy that failed explains why the workload did.
        ended.map_err(DemoError::Proxy).and(shown)
    })
}

struct Stage {
    port: Port,
    http: Port,
    servers: Servers,
}

impl Stage {
    /// What anybody would write who puts the proxy before these servers.
    fn configuration(&self) -> String {
        let nodes: Vec<String> = self.servers.addresses().iter().map(|node| format!("{node:?}")).collect();
        format!(
            r#"[log]
level = "warn"

[admin]
http = "127.0.0.1:{http}"
recent_statements = 100

[[cluster]]
name = "demo"
engine = "{engine}"
listen = ["127.0.0.1:{port}"]
nodes = [{nodes}]
users = [{{ name = "{app}", password = "{app_password}" }}]

[cluster.monitor]
user = "{monitor}"
password = "{monitor_password}"
"#,
            http = self.http.number(),
            engine = self.servers.engine(),
            port = self.port.number(),
            nodes = nodes.join(", "),
            app = APP.name,
            app_password = APP.password,
            monitor = MONITOR.name,
            monitor_password = MONITOR.password,
        )
    }

    fn show(&self, once: bool, ended: &dyn Fn() -> bool, out: &mut dyn Write) -> Result<(), DemoError> {
        self.wait_until_ready(ended)?;
        self.introduce()?;
        loop {
            let counts = match workload::run(&self.servers, self.port.number()) {
                // Told to end, the proxy closes its sessions and is gone a moment later.
                Err(_) if !once && soon(ended) => return Ok(()),
                // Somebody tries what becomes of a server that stops.
                Err(error) if !once => {
                    writeln!(io::stderr(), "a session of the workload ended: {error}; it begins anew")?;
                    continue;
                }
                counts => counts?,
            };
            self.print(&counts, out)?;
            if once || ended() {
                return Ok(());
            }
        }
    }

    /// Waits until the proxy answers a read by a replica.
    fn wait_until_ready(&self, ended: &dyn Fn() -> bool) -> Result<(), DemoError> {
        let deadline = Instant::now() + READY_LIMIT;
        while Instant::now() < deadline {
            let whereabouts = self.servers.statements().whereabouts;
            let port = Client::open(&self.servers, self.port.number())?.port(whereabouts);
            if port.is_ok_and(|port| port != self.servers.primary_port()) {
                return Ok(());
            }
            if ended() {
                return Err(DemoError::Proxy("before it served".to_owned()));
            }
            thread::sleep(READY_PAUSE);
        }
        Err(DemoError::NotReady)
    }

    fn introduce(&self) -> io::Result<()> {
        let mut out = io::stderr();
        for (index, address) in self.servers.addresses().iter().enumerate() {
            writeln!(out, "  {address}  {}", if index == 0 { "primary" } else { "replica" })?;
        }
        writeln!(
            out,
            "the proxy:     {}\n\
             the dashboard: http://127.0.0.1:{}/\n\
             one session writes, four read; where each statement ran, by the servers' own word:",
            self.servers.invitation(self.port.number()),
            self.http.number()
        )
    }

    fn print(&self, counts: &Counts, out: &mut dyn Write) -> Result<(), DemoError> {
        for (address, port, role) in self.servers.roles() {
            let Count { reads, writes } = counts.get(&port).copied().unwrap_or_default();
            writeln!(out, "{address} {role} reads={reads} writes={writes}")?;
        }
        out.flush().map_err(DemoError::Io)
    }
}

fn soon(condition: &dyn Fn() -> bool) -> bool {
    let deadline = Instant::now() + END_GRACE;
    while !condition() && Instant::now() < deadline {
        thread::sleep(READY_PAUSE);
    }
    condition()
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    use super::*;

    /// A stand-in that gives every session to one of the servers in turn, found in the text.
    fn stand_in(config: &str, ended: &AtomicBool) -> Result<(), String> {
        let line = |key: &str| config.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        let addresses = |text: &str| -> Vec<String> {
            text.split('"').filter(|part| part.contains(':')).map(str::to_owned).collect()
        };
        let nodes = addresses(line("nodes"));
        let listener = TcpListener::bind(&addresses(line("listen"))[0]).map_err(|error| error.to_string())?;
        listener.set_nonblocking(true).map_err(|error| error.to_string())?;
        let mut turn = 0;
        while !ended.load(Ordering::SeqCst) {
            let Ok((client, _)) = listener.accept() else {
                thread::sleep(Duration::from_millis(2));
                continue;
            };
            client.set_nonblocking(false).map_err(|error| error.to_string())?;
            // The first statement of the writer's session would fail on a replica: all sessions go
            // to the primary but the one that asks whether the proxy is ready.
            let server =
                TcpStream::connect(&nodes[usize::from(turn == 0)]).map_err(|error| error.to_string())?;
            turn += 1;
            for (mut from, mut to) in [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))]
                .into_iter()
                .filter_map(|(from, to)| Some((from.ok()?, to.ok()?)))
            {
                thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
        Ok(())
    }

    #[test]
    fn the_demo_counts_where_its_statements_ran_and_ends() {
        let ended = Arc::new(AtomicBool::new(false));
        let proxy = Proxy {
            serve: |config: &str| stand_in(config, &ended),
            stop: || ended.store(true, Ordering::SeqCst),
        };
        let mut out = Vec::new();

        run(DemoEngine::Postgres, true, proxy, &mut out).expect("the demo runs");

        let lines = String::from_utf8(out).expect("it is text");
        let ends: Vec<&str> = lines.lines().filter_map(|line| Some(line.split_once(' ')?.1)).collect();
        assert_eq!(
            ends,
            ["primary reads=200 writes=40", "replica reads=0 writes=0", "replica reads=0 writes=0"]
        );
    }

    #[test]
    fn a_proxy_that_does_not_start_is_the_error() {
        let proxy = Proxy { serve: |_: &str| Err("no port to be had".to_owned()), stop: || {} };

        let error = run(DemoEngine::Postgres, true, proxy, &mut Vec::new()).expect_err("there is no proxy");

        assert_eq!(error.to_string(), "the proxy ended: no port to be had");
    }
}
