//! What clients notice of a failover and of a planned switchover under load.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use pointsman::demo::{
    Port,
    servers::{APP, PgCluster, PgNode, Stop},
};
use tokio::task::JoinHandle;

use crate::support::{
    Database, Proxy, Session, cluster, code, eventually,
    wire::{Batch, Wire},
};

/// Sessions that write, and as many that read.
const SESSIONS: usize = 10;
/// Between two statements of one session: 100 of each kind per second with ten sessions.
const PACE: Duration = Duration::from_millis(100);
/// Failovers, of whose gaps the median counts.
const ROUNDS: usize = 5;
const TABLE: &str = "CREATE TABLE t (session int, x int)";

/// One statement: when it began, when it was answered, and its SQLSTATE if it failed.
struct Operation {
    ended: Instant,
    failed: Option<String>,
}

/// Sessions that read and write at a steady pace until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    reads: Vec<JoinHandle<Vec<Operation>>>,
    writes: Vec<JoinHandle<Vec<Operation>>>,
}

impl Load {
    async fn start(proxy: &Proxy, database: &str, write: fn(usize, usize) -> String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        for session in 0..SESSIONS {
            let read = |_, _| "SELECT count(*) FROM t".to_owned();
            reads.push(run(proxy, database, session, stop.clone(), read).await);
            writes.push(run(proxy, database, session, stop.clone(), write).await);
        }
        Self { stop, reads, writes }
    }

    /// Ends the load and returns reads and writes.
    async fn end(self) -> (Vec<Operation>, Vec<Operation>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = (Vec::new(), Vec::new());
        for task in self.reads {
            all.0.extend(task.await.expect("sessions do not panic"));
        }
        for task in self.writes {
            all.1.extend(task.await.expect("sessions do not panic"));
        }
        all
    }
}

async fn run(
    proxy: &Proxy,
    database: &str,
    number: usize,
    stop: Arc<AtomicBool>,
    statement: fn(usize, usize) -> String,
) -> JoinHandle<Vec<Operation>> {
    let session = proxy.session(database).await;
    tokio::spawn(async move {
        let mut operations = Vec::new();
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !stop.load(Ordering::Relaxed) {
            pace.tick().await;
            let statement = statement(number, operations.len());
            // Half of them as most drivers send it: Parse, Bind and Execute.
            let result = match number % 2 {
                0 => session.try_run(&statement).await.map(drop),
                _ if statement.contains(';') => session.try_run(&statement).await.map(drop),
                _ => session.execute(&statement, &[]).await.map(drop),
            };
            let failed = result.err().map(|error| code(&error));
            operations.push(Operation { ended: Instant::now(), failed });
        }
        operations
    })
}

fn failures(operations: &[Operation]) -> Vec<&str> {
    operations.iter().filter_map(|operation| operation.failed.as_deref()).collect()
}

fn insert(session: usize, x: usize) -> String {
    format!("INSERT INTO t VALUES ({session}, {x})")
}

/// Runs something that blocks without keeping the sessions of this test from going on.
async fn aside<T: Send + 'static>(
    cluster: &Arc<PgCluster>,
    step: impl FnOnce(&PgCluster) -> T + Send + 'static,
) -> T {
    let cluster = cluster.clone();
    tokio::task::spawn_blocking(move || step(&cluster)).await.expect("the step does not panic")
}

/// Fails over under load and returns how long after the promotion's end the first write succeeded.
async fn fail_over(
    cluster: &Arc<PgCluster>,
    proxy: &Proxy,
    database: &str,
    from: usize,
    to: usize,
) -> Duration {
    let load = Load::start(proxy, database, insert).await;
    tokio::time::sleep(Duration::from_millis(700)).await;

    let killed = Instant::now();
    let promoted = aside(cluster, move |cluster| {
        cluster.stop(from, Stop::Kill).expect("it dies");
        std::thread::sleep(Duration::from_millis(300));
        cluster.node(to).sql("postgres", "SELECT pg_promote(true, 30)").expect("it is promoted");
        Instant::now()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let (reads, writes) = load.end().await;

    assert_eq!(failures(&reads), Vec::<&str>::new(), "of {} reads", reads.len());
    // What was on its way to the dead server is in doubt; whatever had not been sent goes through.
    let failed = failures(&writes);
    assert!(failed.iter().all(|code| *code == "08007"), "{failed:?}");
    // A session may send once more before the loss of its first connection has told of the others'.
    assert!(failed.len() <= 2 * SESSIONS, "{failed:?}");
    let succeeded = writes
        .iter()
        .filter(|write| write.failed.is_none() && write.ended > killed + Duration::from_millis(200));
    let first = succeeded.map(|write| write.ended).min().expect("writes go on");
    first.saturating_duration_since(promoted)
}

#[tokio::test]
async fn a_killed_primary_fails_no_read_and_no_write_that_was_not_sent() {
    let cluster = Arc::new(cluster::own());
    let database = Database::with(&cluster, TABLE);
    let name = database.name.clone();
    let proxy = Proxy::start(&cluster, &["cluster.monitor.interval = '200ms'"]).await;
    let mut gaps = Vec::new();

    // The replica that is promoted and the one that stays behind take turns.
    for round in 0..ROUNDS {
        let (from, to) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
        aside(&cluster, move |cluster| {
            // It never has more than the one that takes over.
            cluster.follow(2, to).expect("a replica can stream from another");
            cluster.wait_until_caught_up(from).expect("all follow");
        })
        .await;
        gaps.push(fail_over(&cluster, &proxy, &name, from, to).await);
        aside(&cluster, move |cluster| {
            cluster.start_node(from).expect("it recovers");
            cluster.stop(from, Stop::Fast).expect("and stops cleanly");
            cluster.rejoin(from, to).expect("and becomes a replica");
            cluster.wait_until_caught_up(to).expect("all follow");
        })
        .await;
        let log = proxy.log().matches("primary elected").count();
        assert!(log >= 2 + round, "{log} elections");
    }

    let rounds = ROUNDS as f64;
    assert_eq!(proxy.metric("pointsman_failovers_total", &[]), rounds);
    // Each time nobody was promoted for 300 ms, of which some went by before the loss was seen.
    let last = proxy.metric("pointsman_failover_seconds", &[]);
    assert!(last > 0.0 && last < 30.0, "{last}");
    assert_eq!(proxy.metric("pointsman_held_statements", &[]), 0.0);
    assert_eq!(proxy.metric("pointsman_without_primary_seconds", &[]), 0.0);
    gaps.sort();
    println!("first write after the promotion's end: {gaps:?}");
    assert!(gaps[gaps.len() / 2] < Duration::from_millis(150), "{gaps:?}");
}

/// Stops the primary as an administrator does, then promotes node 1.
async fn switch_over(cluster: &Arc<PgCluster>) {
    aside(cluster, |cluster| {
        cluster.stop(0, Stop::Fast).expect("it stops");
        cluster.promote(1).expect("a replica takes over");
        cluster.follow(2, 1).expect("the other follows");
    })
    .await;
}

#[tokio::test]
async fn a_planned_switchover_fails_no_autocommit_statement() {
    let cluster = Arc::new(cluster::own());
    let database = Database::with(&cluster, TABLE);
    let proxy = Proxy::start(&cluster, &[]).await;
    // A catalog that is not read yet knows of no table that it is free of triggers.
    let load = Load::start(&proxy, &database.name, insert).await;
    tokio::time::sleep(Duration::from_millis(700)).await;

    switch_over(&cluster).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let (reads, writes) = load.end().await;

    assert_eq!(failures(&reads), Vec::<&str>::new());
    assert_eq!(failures(&writes), Vec::<&str>::new());
    let rows = cluster.node(1).sql(&database.name, "SELECT count(*), count(DISTINCT (session, x)) FROM t");
    assert_eq!(rows.expect("it answers"), format!("{0}|{0}", writes.len()), "lost or run twice");
}

#[tokio::test]
async fn a_transaction_begun_after_the_stop_of_a_switchover_waits_for_the_new_primary() {
    let cluster = Arc::new(cluster::own());
    let database = Database::with(&cluster, TABLE);
    let proxy = Proxy::start(&cluster, &[]).await;
    let (before, after) = (proxy.session(&database.name).await, proxy.session(&database.name).await);
    before.run("BEGIN").await;
    before.run("INSERT INTO t VALUES (0, 0)").await;
    after.run("INSERT INTO t VALUES (1, 1)").await;
    after.run("BEGIN").await;

    let switch = switch_over(&cluster);
    let go_on = async {
        proxy.wait_for_log("monitor: no primary").await;
        for x in 2..6 {
            after.run(&format!("INSERT INTO t VALUES (1, {x})")).await;
        }
        after.run("COMMIT").await;
    };
    tokio::join!(switch, go_on);

    // The one that was open at the stop is lost, and says so.
    assert_eq!(before.error("INSERT INTO t VALUES (0, 1)").await, "57P01");
    assert_eq!(before.error("SELECT 1").await, "25P02");
    before.run("ROLLBACK").await;
    assert_eq!(cluster.node(1).sql(&database.name, "SELECT count(*) FROM t").expect("it answers"), "5");
}

#[tokio::test]
async fn writes_that_wait_for_a_primary_run_in_the_order_they_came() {
    let cluster = Arc::new(cluster::own());
    let database = Database::with(&cluster, "CREATE TABLE t (x int, at serial)");
    let proxy = Proxy::start(&cluster, &["cluster.pool.size = 1"]).await;
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(proxy.session(&database.name).await);
    }
    cluster.stop(0, Stop::Kill).expect("it dies");
    proxy.wait_for_log("monitor: no primary").await;

    let mut tasks = Vec::new();
    for (x, session) in sessions.into_iter().enumerate() {
        tasks.push(tokio::spawn(async move {
            session.try_run(&format!("INSERT INTO t (x) VALUES ({x})")).await.is_ok()
        }));
        eventually("it waits", async || proxy.metric("pointsman_held_statements", &[]) == (x + 1) as f64)
            .await;
    }
    aside(&cluster, |cluster| cluster.promote(1).expect("a replica takes over")).await;
    for task in tasks {
        assert!(task.await.expect("sessions do not panic"));
    }

    let order = cluster.node(1).sql(&database.name, "SELECT string_agg(x::text, ',' ORDER BY at) FROM t");
    let expected: Vec<String> = (0..20).map(|x| x.to_string()).collect();
    assert_eq!(order.expect("it answers"), expected.join(","));
}

#[tokio::test]
async fn a_statement_whose_client_went_away_while_it_waited_is_never_sent() {
    let cluster = Arc::new(cluster::own());
    let database = Database::with(&cluster, TABLE);
    let proxy = Proxy::start(&cluster, &[]).await;
    let mut gone = Wire::login(proxy.port(), APP, &database.name).await;
    let stays = proxy.session(&database.name).await;
    cluster.stop(0, Stop::Kill).expect("it dies");
    proxy.wait_for_log("monitor: no primary").await;
    let held = || proxy.metric("pointsman_held_statements", &[]);

    gone.send(&Batch::new().query("INSERT INTO t VALUES (1, 1)")).await;
    eventually("it waits", async || held() == 1.0).await;
    drop(gone);
    eventually("it is dropped", async || held() == 0.0).await;
    let stays = tokio::spawn(async move { stays.try_run("INSERT INTO t VALUES (2, 2)").await.is_ok() });
    aside(&cluster, |cluster| cluster.promote(1).expect("a replica takes over")).await;

    assert!(stays.await.expect("the session does not panic"));
    assert_eq!(cluster.node(1).sql(&database.name, "SELECT session FROM t").expect("it answers"), "2");
}

#[tokio::test]
async fn without_a_primary_writes_are_refused_after_the_hold_and_beyond_its_limit() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let settings = ["cluster.failover.hold = '5s'", "cluster.failover.hold_limit = 1"];
    let proxy = Proxy::start(&cluster, &settings).await;
    let (first, second) = (proxy.session(&database.name).await, proxy.session(&database.name).await);
    cluster.stop(0, Stop::Kill).expect("it dies");
    proxy.wait_for_log("monitor: no primary").await;

    let began = Instant::now();
    let held = tokio::spawn(async move { first.error("INSERT INTO t VALUES (1, 1)").await });
    let waiting = || proxy.metric("pointsman_held_statements", &[]);
    eventually("it waits", async || waiting() == 1.0).await;
    assert_eq!(second.error("INSERT INTO t VALUES (2, 2)").await, "57P03");
    assert!(!held.is_finished(), "the second one waited as long as the first");
    assert_eq!(held.await.expect("the session does not panic"), "57P03");
    assert!(began.elapsed() >= Duration::from_secs(5));
    let ports: Vec<u16> = cluster.nodes()[1..].iter().map(PgNode::port).collect();
    assert!(ports.contains(&second.port().await), "reads go on");
}

#[tokio::test]
async fn a_switchover_under_pause_fails_nothing() {
    let cluster = Arc::new(cluster::own());
    let database = Database::with(&cluster, TABLE);
    let console = Port::claim().expect("ports are to be had");
    let door = format!("admin.postgres = '127.0.0.1:{}'", console.number());
    let users = "admin.users = [{ name = 'root', password = 'secret' }]";
    let proxy = Proxy::start(&cluster, &[&door, users]).await;
    let dsn = format!("host=127.0.0.1 port={} user=root password=secret dbname=x", console.number());
    let admin = Session::open(&dsn).await;
    let pins = || proxy.metric("pointsman_pins_total", &["reason=\"function\""]);
    eventually("the catalog says that the table has no triggers", async || {
        let before = pins();
        proxy.session(&database.name).await.run("INSERT INTO t VALUES (-1, 0)").await;
        pins() == before
    })
    .await;
    let load = Load::start(&proxy, &database.name, transaction).await;
    tokio::time::sleep(Duration::from_millis(700)).await;

    admin.run("PAUSE").await;
    switch_over(&cluster).await;
    admin.run("RESUME").await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let (reads, writes) = load.end().await;

    assert_eq!(failures(&reads), Vec::<&str>::new());
    assert_eq!(failures(&writes), Vec::<&str>::new());
    let rows =
        cluster.node(1).sql(&database.name, "SELECT count(*) FROM t WHERE session >= 0").expect("it answers");
    assert_eq!(rows, (2 * writes.len()).to_string(), "lost or run twice");
}

fn transaction(session: usize, x: usize) -> String {
    format!("BEGIN; INSERT INTO t VALUES ({session}, {x}); INSERT INTO t VALUES ({session}, -{x}); COMMIT")
}
