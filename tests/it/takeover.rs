//! `pointsman run --take-over`: a new process relieves the one that listens there.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use pointsman::demo::{Keeper, Signal, servers::Stop, signal, wait_for_exit};
use tempfile::TempDir;

use crate::support::{Database, PATIENCE, Proxy, client, cluster, code, eventually};

/// Asks whether the endpoint is ready until told to stop; fails when nobody listens, or whoever
/// answers is not. How often it was.
fn ask_readiness(port: u16, over: &AtomicBool) -> usize {
    let mut ready = 0;
    while !over.load(Ordering::Relaxed) {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("somebody listens");
        let mut answer = String::new();
        let asked = stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n");
        // Whoever was not yet accepted by the old process when it closed is reset, and asks again.
        if asked.and_then(|()| stream.read_to_string(&mut answer)).is_ok() && !answer.is_empty() {
            assert!(answer.contains(" 200 "), "{answer}");
            ready += 1;
        }
    }
    ready
}

#[tokio::test]
async fn a_new_process_takes_over_and_no_client_is_refused() {
    let cluster = cluster::shared();
    let database = Database::with(cluster, "CREATE TABLE t (x int)");
    let mut old = Proxy::start(cluster, &[]).await;
    let transaction = old.session(&database.name).await;
    transaction.run("BEGIN").await;
    transaction.run("INSERT INTO t VALUES (1)").await;
    let (over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (dsn, over, served) = (old.dsn(&database.name), over.clone(), served.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    match client::connect(&dsn).await {
                        Ok(session) => match session.try_run("SELECT 1").await {
                            Ok(_) => drop(served.fetch_add(1, Ordering::Relaxed)),
                            // Idle just when the old process drained: drivers connect again. What comes
                            // between two statements this driver keeps from who sends the next one.
                            Err(error) => assert!(error.is_closed() || code(&error) == "57P01", "{error:?}"),
                        },
                        Err(error) => assert_eq!(code(&error), "57P01", "{error:?}"),
                    }
                }
            })
        })
        .collect();
    eventually("they are served", async || served.load(Ordering::Relaxed) > 20).await;

    let http = old.http_port();
    let readiness = std::thread::spawn({
        let over = over.clone();
        move || ask_readiness(http, &over)
    });
    let keeper = Keeper::start().expect("threads are to be had");
    let mut command = Command::new(env!("CARGO_BIN_EXE_pointsman"));
    command.args(["run", "--take-over", "-c"]).arg(old.config_path());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut new = keeper.spawn(command, Signal::Kill).expect("the binary was built");
    old.wait_for_log("another process takes over").await;

    // What was open may end, and then the old process does.
    transaction.run("COMMIT").await;
    assert!(old.wait().success(), "{}", old.log());
    let before = served.load(Ordering::Relaxed);
    eventually("the new one serves", async || served.load(Ordering::Relaxed) > before + 20).await;
    over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("nobody was refused");
    }
    assert!(readiness.join().expect("it is ready all the time") > 20);
    assert_eq!(database.ask(0, "SELECT count(*) FROM t"), "1");
    signal(new.id(), Signal::Kill);
    let _ = new.wait();
}

/// A process that is to relieve the one that listens there.
struct Successor {
    child: Child,
    // The process hangs on the keeper's thread.
    _keeper: Keeper,
    folder: TempDir,
}

impl Successor {
    fn of(old: &Proxy) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let keeper = Keeper::start().expect("threads are to be had");
        let log = File::create(folder.path().join("log")).expect("the folder is ours");
        let mut command = Command::new(env!("CARGO_BIN_EXE_pointsman"));
        command.args(["run", "--take-over", "-c"]).arg(old.config_path()).stdout(Stdio::null()).stderr(log);
        let child = keeper.spawn(command, Signal::Kill).expect("the binary was built");
        Self { child, _keeper: keeper, folder }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    async fn wait_for_log(&self, words: &str) {
        eventually(words, async || self.log().contains(words)).await;
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_process_that_waits_to_take_over_obeys_signals() {
    let cluster = cluster::own();
    let mut old = Proxy::start(&cluster, &[]).await;
    cluster.stop(0, Stop::Kill).expect("it dies");

    // Without a primary it waits; told to end, it ends, and the old one has heard nothing.
    let mut told = Successor::of(&old);
    told.wait_for_log("listening").await;
    signal(told.child.id(), Signal::Terminate);
    assert!(wait_for_exit(&mut told.child, PATIENCE), "it does not end: {}", told.log());
    assert!(told.child.wait().expect("it has ended").success(), "{}", told.log());
    assert!(!told.log().contains("without having found a primary"), "{}", told.log());
    assert!(old.is_running() && !old.log().contains("another process takes over"), "{}", old.log());

    // A reload that is asked for meanwhile is made once it has taken over.
    let patient = Successor::of(&old);
    patient.wait_for_log("listening").await;
    old.change(&["log.level = 'info'"]);
    signal(patient.child.id(), Signal::HangUp);
    cluster.start_node(0).expect("it comes back");
    patient.wait_for_log("has taken over").await;
    patient.wait_for_log("reloaded: log.level").await;
    assert!(old.wait().success(), "{}", old.log());
}

#[tokio::test]
async fn a_taken_address_stays_taken_without_being_told_to_take_over() {
    let cluster = cluster::shared();
    let mut proxy = Proxy::start(cluster, &[]).await;

    let second = Command::new(env!("CARGO_BIN_EXE_pointsman"))
        .args(["run", "-c"])
        .arg(proxy.config_path())
        .output()
        .expect("the binary was built");

    assert_eq!(second.status.code(), Some(69), "{}", String::from_utf8_lossy(&second.stderr));
    assert!(proxy.is_running());
}

#[tokio::test]
async fn a_process_that_takes_over_knows_which_of_two_primaries_was_elected() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let mut old = Proxy::start(&cluster, &[]).await;
    cluster.stop(0, Stop::Kill).expect("it dies");
    cluster.promote(1).expect("it is promoted");
    let session = old.session(&database.name).await;
    session.run("INSERT INTO t VALUES (1)").await;
    // On the same timeline as the other: the servers cannot tell who is the older.
    cluster.promote(2).expect("it is promoted");
    let label = format!("node=\"{}\"", cluster.node(2).address());
    eventually("the second is fenced", async || {
        old.metric("pointsman_node_state", &[&label, "state=\"fenced\""]) == 1.0
    })
    .await;

    let new = Successor::of(&old);

    new.wait_for_log("has taken over").await;
    assert!(old.wait().success(), "{}", old.log());
    assert!(!new.log().contains("without having found a primary"), "{}", new.log());
    let session = old.session(&database.name).await;
    session.run("INSERT INTO t VALUES (2)").await;
    assert_eq!(database.ask(1, "SELECT count(*) FROM t"), "2");
}

#[tokio::test]
async fn a_process_that_finds_no_primary_where_the_old_one_has_one_takes_nothing_over() {
    let cluster = cluster::shared();
    let database = Database::with(cluster, "CREATE TABLE t (x int)");
    let mut old = Proxy::start(cluster, &[]).await;
    old.change(&["cluster.monitor.password = 'wrong'"]);

    let mut new = Successor::of(&old);

    let ended = wait_for_exit(&mut new.child, PATIENCE);
    assert!(ended, "it does not end: {}", new.log());
    assert_eq!(new.child.wait().expect("it has ended").code(), Some(69), "{}", new.log());
    assert!(old.is_running() && !old.log().contains("another process takes over"), "{}", old.log());
    old.session(&database.name).await.run("INSERT INTO t VALUES (1)").await;
}
