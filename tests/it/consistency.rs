//! What each level of consistency promises, and that the checks would notice if it did not hold.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use pointsman::demo::servers::{PgCluster, Stop};

use crate::support::{Database, Proxy, Session, Stage, cluster, eventually};

const SESSIONS: usize = 16;
const PAIRS: usize = 3_000;
const FEW: usize = 480;
const DELAY: Duration = Duration::from_millis(500);

/// Servers of which one replica applies commits half a second late, and a table with a row per
/// session.
fn delayed() -> (PgCluster, String) {
    let cluster = cluster::own();
    let rows = format!("CREATE TABLE pair AS SELECT id, 0 AS x FROM generate_series(0, {SESSIONS}) AS id");
    let name = Database::with(&cluster, &rows).name;
    cluster.delay_replay(1, DELAY).expect("replay can be delayed");
    (cluster, name)
}

/// Writes on one session of each pair and reads on the other; returns how many reads were stale.
async fn stale_reads(proxy: &Proxy, database: &str, level: &str, across: bool, pairs: usize) -> usize {
    let mut tasks = Vec::new();
    for id in 0..SESSIONS {
        let writer = proxy.session(database).await;
        let reader = if across { Some(proxy.session(database).await) } else { None };
        reader.as_ref().unwrap_or(&writer).run(&format!("SET pointsman.consistency = '{level}'")).await;
        tasks.push(tokio::spawn(async move {
            let mut stale = 0;
            for x in 1..=pairs / SESSIONS {
                writer.run(&format!("UPDATE pair SET x = {x} WHERE id = {id}")).await;
                let read = format!("SELECT x FROM pair WHERE id = {id}");
                let seen = reader.as_ref().unwrap_or(&writer).value(&read).await;
                stale += usize::from(seen != x.to_string());
            }
            stale
        }));
    }
    let mut stale = 0;
    for task in tasks {
        stale += task.await.expect("sessions do not panic");
    }
    stale
}

#[tokio::test]
async fn no_read_is_behind_a_write_that_its_level_makes_it_see() {
    let (cluster, database) = delayed();
    let proxy = Proxy::start(&cluster, &["cluster.routing.lag_half_weight = '0s'"]).await;

    assert_eq!(stale_reads(&proxy, &database, "session", false, PAIRS).await, 0, "session");
    assert_eq!(stale_reads(&proxy, &database, "global", true, PAIRS).await, 0, "global");
    assert_eq!(stale_reads(&proxy, &database, "user", true, FEW).await, 0, "user");
    // The check can fail.
    assert_ne!(stale_reads(&proxy, &database, "eventual", false, FEW).await, 0, "eventual");
    assert_ne!(stale_reads(&proxy, &database, "session", true, FEW).await, 0, "across sessions");
}

/// The share of reads that did not use the primary.
async fn replica_share(session: &Session, primary: u16, statement: impl Fn(usize) -> String) -> f64 {
    let mut replica = 0;
    for turn in 0..200 {
        let port: u16 = session.value(&statement(turn)).await.parse().expect("a port is a number");
        replica += usize::from(port != primary);
    }
    replica as f64 / 200.0
}

#[tokio::test]
async fn reads_of_sessions_and_tables_that_nobody_just_wrote_use_replicas() {
    let tables: String = (0..10).map(|table| format!("CREATE TABLE t{table} (x int);")).collect();
    let stage = Stage::set(&tables, &[]).await;
    let (writer, reader) = (stage.session().await, stage.session().await);
    let primary = stage.primary_port();
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let stop = stop.clone();
        async move {
            while !stop.load(Ordering::Relaxed) {
                writer.run("INSERT INTO t0 VALUES (1)").await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });

    let others =
        |turn: usize| format!("SELECT inet_server_port() FROM (SELECT count(*) FROM t{}) x", 1 + turn % 9);
    for level in ["session", "global", "user"] {
        reader.run(&format!("SET pointsman.consistency = '{level}'")).await;
        let share = replica_share(&reader, primary, others).await;
        assert!(share >= 0.9, "{level}: {share}");
    }
    let share = replica_share(&reader, primary, |_| {
        "SELECT inet_server_port() FROM (SELECT count(*) FROM t0) x".into()
    })
    .await;
    println!("of the table that is written, {share} of the reads use replicas");
    stop.store(true, Ordering::Relaxed);
    writing.await.expect("the writer does not panic");
}

#[tokio::test]
async fn a_global_read_sees_what_a_view_a_trigger_or_a_cascade_changed() {
    let sql = "CREATE TABLE parent (id int PRIMARY KEY);
               CREATE TABLE child (id int REFERENCES parent ON DELETE CASCADE);
               CREATE VIEW children AS SELECT * FROM child;
               CREATE TABLE log (id int);
               CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN INSERT INTO log VALUES (new.id); RETURN new; END';
               CREATE TRIGGER note AFTER INSERT ON parent FOR EACH ROW EXECUTE FUNCTION note();";
    let cluster = cluster::own();
    let database = Database::with(&cluster, sql);
    for replica in [1, 2] {
        cluster.delay_replay(replica, DELAY).expect("replay can be delayed");
    }
    let proxy = Proxy::start(&cluster, &["cluster.routing.consistency = 'global'"]).await;
    let (writer, reader) = (proxy.session(&database.name).await, proxy.session(&database.name).await);

    for id in 1..=5 {
        writer.run(&format!("INSERT INTO parent VALUES ({id})")).await;
        assert_eq!(reader.value("SELECT max(id) FROM log").await, id.to_string());
        writer.run(&format!("BEGIN; INSERT INTO child VALUES ({id}); COMMIT")).await;
        assert_eq!(reader.value("SELECT max(id) FROM children").await, id.to_string());
        writer.run("BEGIN").await;
        writer.run(&format!("DELETE FROM parent WHERE id = {id}")).await;
        writer.run("COMMIT").await;
        assert_eq!(reader.value("SELECT count(*) FROM child").await, "0");
    }
}

#[tokio::test]
async fn a_token_carries_what_was_written_to_another_session_and_another_proxy() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let proxies = [Proxy::start(&cluster, &[]).await, Proxy::start(&cluster, &[]).await];
    let (writer, other) =
        (proxies[0].session(&database.name).await, proxies[1].session(&database.name).await);
    for replica in [1, 2] {
        cluster.delay_replay(replica, DELAY).expect("replay can be delayed");
    }
    assert_eq!(writer.value("SHOW pointsman.position").await, "");

    for x in 1..=5 {
        writer.run(&format!("INSERT INTO t VALUES ({x})")).await;
        let token = writer.value("SHOW pointsman.position").await;
        other.run(&format!("SET pointsman.position = '{token}'")).await;
        assert_eq!(other.value("SELECT max(x) FROM t").await, x.to_string(), "{token}");
    }

    assert_eq!(other.error("SET pointsman.position = 'yesterday'").await, "22023");
    assert_eq!(other.error("SET pointsman.position = '42:1:0/1'").await, "22023");
}

/// Reads a counter while it grows; returns how often it went backwards.
async fn steps_back(proxy: &Proxy, database: &str, level: &str) -> usize {
    let (writer, reader) = (proxy.session(database).await, proxy.session(database).await);
    reader.run(&format!("SET pointsman.consistency = '{level}'")).await;
    let (mut last, mut back) = (0_u64, 0);
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        writer.run("UPDATE pair SET x = x + 1 WHERE id = 0").await;
        for _ in 0..4 {
            let seen = reader.value("SELECT x FROM pair WHERE id = 0").await.parse().expect("a number");
            back += usize::from(seen < last);
            last = seen;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    back
}

#[tokio::test]
async fn monotonic_reads_never_go_backwards() {
    let (cluster, database) = delayed();
    let proxy = Proxy::start(&cluster, &["cluster.routing.lag_half_weight = '0s'"]).await;

    assert_eq!(steps_back(&proxy, &database, "monotonic").await, 0);
    // The check can fail.
    assert_ne!(steps_back(&proxy, &database, "session").await, 0);
}

#[tokio::test]
async fn a_read_whose_floor_nobody_meets_waits_even_where_reads_avoid_the_primary() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let settings = ["cluster.routing.primary_reads = 'never'", "cluster.pool.checkout_timeout = '500ms'"];
    let proxy = Proxy::start(&cluster, &settings).await;
    let session = proxy.session(&database.name).await;
    for replica in [1, 2] {
        cluster.pause_replay(replica).expect("replay can be paused");
    }

    session.run("INSERT INTO t VALUES (1)").await;
    let began = Instant::now();
    assert_eq!(session.error("SELECT count(*) FROM t").await, "57P03");
    assert!(began.elapsed() >= Duration::from_millis(500), "it did not wait");
    for replica in [1, 2] {
        cluster.resume_replay(replica).expect("replay goes on");
    }
    eventually("a replica meets the floor", async || session.try_run("SELECT count(*) FROM t").await.is_ok())
        .await;
    assert_eq!(session.value("SELECT count(*) FROM t").await, "1");
}

#[tokio::test]
async fn a_read_of_a_session_that_wrote_just_before_the_crash_waits_for_its_write() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let proxy = Proxy::start(&cluster, &[]).await;
    let session = proxy.session(&database.name).await;
    for replica in [1, 2] {
        cluster.pause_replay(replica).expect("replay can be paused");
    }
    session.run("INSERT INTO t VALUES (1)").await;
    eventually("its position is known", async || session.try_run("SHOW pointsman.position").await.is_ok())
        .await;
    // The replicas have it, but do not show it yet.
    let sent = cluster.node(0).sql("postgres", "SELECT pg_current_wal_lsn()").expect("it answers");
    let received = format!("SELECT pg_last_wal_receive_lsn() >= '{sent}'");
    eventually("it is received", async || {
        [1, 2].iter().all(|&node| cluster.node(node).sql("postgres", &received).is_ok_and(|yes| yes == "t"))
    })
    .await;
    cluster.stop(0, Stop::Kill).expect("it dies");
    proxy.wait_for_log("no primary").await;

    let read = tokio::spawn(async move { session.value("SELECT count(*) FROM t").await });
    eventually("it waits", async || proxy.metric("pointsman_held_statements", &[]) == 1.0).await;
    // It replays all that it has received before it takes over.
    cluster.promote(2).expect("a replica takes over");

    assert_eq!(read.await.expect("the session does not panic"), "1");
}
