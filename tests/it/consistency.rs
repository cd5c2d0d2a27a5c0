//! What each level of consistency promises, and that the checks would notice if it did not hold.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use pointsman::demo::servers::{PgCluster, Stop};

use crate::support::{Database, Proxy, Session, Stage, cluster, code, eventually};

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

    let fallbacks = || proxy.metric("pointsman_causal_fallbacks_total", &[]);
    assert_eq!(stale_reads(&proxy, &database, "session", false, PAIRS).await, 0, "session");
    assert!(fallbacks() > 0.0, "no read had to leave the late replica");
    let before = fallbacks();
    assert_eq!(stale_reads(&proxy, &database, "global", true, PAIRS).await, 0, "global");
    assert_eq!(stale_reads(&proxy, &database, "user", true, FEW).await, 0, "user");
    // The check can fail.
    assert!(fallbacks() > before, "nor for what another session wrote");
    let before = fallbacks();
    assert_ne!(stale_reads(&proxy, &database, "eventual", false, FEW).await, 0, "eventual");
    assert_eq!(fallbacks(), before, "eventual reads have no floor");
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

/// Relations whose rows change by writes to others.
const RELATED: &str = "\
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE, x int PRIMARY KEY);
CREATE TABLE grandchild (x int REFERENCES child ON DELETE SET NULL);
CREATE TABLE cut (x int);
CREATE FUNCTION note_cut() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN INSERT INTO cut VALUES (new.x); RETURN new; END';
CREATE TRIGGER note_cut AFTER INSERT ON grandchild FOR EACH ROW EXECUTE FUNCTION note_cut();
CREATE VIEW children AS SELECT * FROM child;
CREATE TABLE log (id int);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN INSERT INTO log VALUES (new.id); RETURN new; END';
CREATE TRIGGER note AFTER INSERT ON parent FOR EACH ROW EXECUTE FUNCTION note();
CREATE TABLE event (y int, m int) PARTITION BY LIST (y);
CREATE TABLE event_1 PARTITION OF event FOR VALUES IN (1) PARTITION BY LIST (m);
CREATE TABLE event_1_5 PARTITION OF event_1 FOR VALUES IN (5);
CREATE TABLE event_2 PARTITION OF event FOR VALUES IN (2);
CREATE TABLE noted (m int);
CREATE FUNCTION note_event() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN INSERT INTO noted VALUES (new.m); RETURN new; END';
CREATE TRIGGER note_event AFTER INSERT ON event_2 FOR EACH ROW EXECUTE FUNCTION note_event();
CREATE TABLE city (name text);
CREATE TABLE capital (country text) INHERITS (city);
CREATE TABLE secret (id int);
CREATE TABLE clearance (level int);
INSERT INTO secret VALUES (7);
ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
CREATE POLICY cleared ON secret USING (id <= (SELECT max(level) FROM clearance));
ALTER TABLE secret FORCE ROW LEVEL SECURITY;
CREATE TABLE ruled (x int);
CREATE TABLE by_rule (x int);
CREATE RULE aside AS ON INSERT TO ruled DO INSTEAD INSERT INTO by_rule VALUES (new.x);
CREATE SCHEMA other;
CREATE TABLE plain (x int);
CREATE TABLE other.plain (x int);
CREATE TABLE promised (x int);";

/// What another session writes, and a read that has to see it.
const SEEN: [(&str, &str, &str); 20] = [
    ("INSERT INTO parent VALUES (1), (2)", "SELECT max(id) FROM log", "2"),
    ("INSERT INTO child VALUES (1, 10), (2, 20)", "SELECT max(x) FROM children", "20"),
    ("INSERT INTO grandchild VALUES (10), (20)", "SELECT count(*) FROM cut", "2"),
    ("UPDATE parent SET id = 3 WHERE id = 2", "SELECT max(id) FROM child", "3"),
    ("DELETE FROM parent WHERE id = 1", "SELECT min(x) FROM child", "20"),
    ("DELETE FROM parent WHERE id = 3", "SELECT count(x) FROM grandchild", "0"),
    ("INSERT INTO children VALUES (NULL, 30)", "SELECT max(x) FROM child", "30"),
    ("INSERT INTO event VALUES (1, 5)", "SELECT count(*) FROM event_1_5", "1"),
    ("INSERT INTO event_1_5 VALUES (1, 5)", "SELECT count(*) FROM event", "2"),
    ("UPDATE event_1 SET m = 5", "SELECT count(*) FROM event_1_5", "2"),
    ("INSERT INTO event VALUES (2, 9)", "SELECT max(m) FROM noted", "9"),
    ("INSERT INTO capital VALUES ('Abuja', 'Nigeria')", "SELECT max(name) FROM city", "Abuja"),
    ("UPDATE city SET name = 'Accra'", "SELECT max(name) FROM capital", "Accra"),
    ("INSERT INTO clearance VALUES (9)", "SELECT max(id) FROM secret", "7"),
    ("INSERT INTO ruled VALUES (4)", "SELECT max(x) FROM by_rule", "4"),
    ("INSERT INTO other.plain VALUES (6)", "SELECT max(x) FROM other.plain", "6"),
    ("SELECT 1; INSERT INTO plain VALUES (8)", "SELECT max(x) FROM plain", "8"),
    ("COPY plain FROM PROGRAM 'echo 11'", "SELECT max(x) FROM plain", "11"),
    ("DO 'BEGIN INSERT INTO plain VALUES (12); END'", "SELECT max(x) FROM plain", "12"),
    ("TRUNCATE child CASCADE", "SELECT count(*) FROM grandchild", "0"),
];

/// Back to where [`SEEN`] begins.
const FORGET: &str = "TRUNCATE parent, child, grandchild, cut, log, event, noted, city, clearance, ruled, \
by_rule, plain, other.plain, promised";

/// Stops replay on both replicas, for a scene in which nothing that is written reaches them.
fn pause(cluster: &PgCluster) {
    for replica in [1, 2] {
        cluster.pause_replay(replica).expect("replay can be paused");
    }
}

fn resume(cluster: &PgCluster) {
    for replica in [1, 2] {
        cluster.resume_replay(replica).expect("replay goes on");
    }
    cluster.wait_until_caught_up(0).expect("replicas follow");
}

#[tokio::test]
async fn a_shared_floor_holds_for_whatever_a_write_changed_by_way_of_others() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, RELATED);
    let grant = "GRANT pg_execute_server_program TO app";
    cluster.node(0).sql(&database.name, grant).expect("the superuser may");
    cluster.wait_until_caught_up(0).expect("replicas follow");
    let proxy = Proxy::start(&cluster, &[]).await;
    let (writer, reader) = (proxy.session(&database.name).await, proxy.session(&database.name).await);
    let pins = || proxy.metric("pointsman_pins_total", &["reason=\"function\""]);
    eventually("the catalog says that a table has no triggers", async || {
        let before = pins();
        let session = proxy.session(&database.name).await;
        session.run("DELETE FROM promised").await;
        // What comes behind it is answered when it has been counted.
        session.run("SELECT 1").await;
        pins() == before
    })
    .await;
    let primary = cluster.node(0).port().to_string();
    // A view may show any table: it has to meet the floor of all.
    let all = "SELECT inet_server_port() FROM (SELECT count(*) FROM children) AS x";

    for level in ["global", "user"] {
        reader.run(&format!("SET pointsman.consistency = '{level}'")).await;
        for (write, read, seen) in SEEN {
            eventually("replicas have all that was written", async || reader.value(all).await != primary)
                .await;
            pause(&cluster);
            writer.run(write).await;
            assert_eq!(reader.value(read).await, seen, "{level}: {write}: {read}");
            resume(&cluster);
        }
        // The one that prepares a transaction is not the one that commits it.
        writer.run("BEGIN; INSERT INTO promised VALUES (1); PREPARE TRANSACTION 'later'").await;
        eventually("replicas have all that was written", async || reader.value(all).await != primary).await;
        pause(&cluster);
        proxy.session(&database.name).await.run("COMMIT PREPARED 'later'").await;
        assert_eq!(reader.value("SELECT count(*) FROM promised").await, "1", "{level}");
        resume(&cluster);
        writer.run(FORGET).await;
    }
}

#[tokio::test]
async fn what_a_function_writes_is_read_back_whatever_else_its_statement_asks_for() {
    let sql = "CREATE TABLE t (x bigint); CREATE SEQUENCE s START 2;
               CREATE FUNCTION add(y bigint) RETURNS bigint LANGUAGE sql AS
                 'INSERT INTO t VALUES (y) RETURNING x'";
    let cluster = cluster::own();
    let database = Database::with(&cluster, sql);
    let proxy = Proxy::start(&cluster, &[]).await;
    pause(&cluster);

    for (write, written) in [
        ("SELECT add(1)", "1"),
        ("SELECT add(nextval('s'))", "2"),
        ("SELECT pg_advisory_xact_lock(1), add(3)", "3"),
        ("SELECT add(4) WHERE NOT pg_is_in_recovery()", "4"),
        ("BEGIN; SELECT add(nextval('s') + 2); COMMIT", "5"),
        ("CREATE TEMP TABLE mine AS SELECT add(6)", "6"),
    ] {
        // One that has written nothing before.
        let session = proxy.session(&database.name).await;
        session.run(write).await;
        assert_eq!(session.value("SELECT max(x) FROM t").await, written, "{write}");
    }
    resume(&cluster);
}

#[tokio::test]
async fn a_position_that_is_not_sampled_is_waited_for_and_never_an_older_one() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let mut proxy = Proxy::start(&cluster, &["cluster.monitor.timeout = '300ms'"]).await;
    let session = proxy.session(&database.name).await;
    // Only once reads use the replicas: those that had not replayed all at the first probe would wait
    // for the second.
    proxy.reload(&["cluster.monitor.interval = '60s'", "cluster.monitor.fast_interval = '60s'"]);
    proxy.wait_for_log("reloaded: cluster").await;

    // A probe that was due before the reload may still see the first write.
    let mut written = 0;
    let (began, said) = loop {
        session.run("INSERT INTO t VALUES (1)").await;
        written += 1;
        let began = Instant::now();
        match session.try_run("SHOW pointsman.position").await {
            Ok(_) => assert!(written < 10, "the nodes are still probed"),
            Err(said) => break (began, said),
        }
    };

    assert_eq!(code(&said), "57P03");
    assert!(began.elapsed() >= Duration::from_millis(300), "it did not wait");
    // Nor does anybody but the primary answer what the session wrote.
    assert_eq!(session.value("SELECT count(*) FROM t").await, written.to_string());
    assert_eq!(session.port().await, cluster.node(0).port());
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
        // A connection may bring it along.
        let dsn = format!("{} options='-c pointsman.position={token}'", proxies[1].dsn(&database.name));
        assert_eq!(Session::open(&dsn).await.value("SELECT max(x) FROM t").await, x.to_string());
    }

    assert_eq!(other.error("SET pointsman.position = 'yesterday'").await, "22023");
    let said = other.try_run("SET pointsman.position = 'yesterday'").await.expect_err("it is none");
    assert!(format!("{said:?}").contains("expected system:timeline:location"), "{said:?}");
    assert_eq!(other.error("SET pointsman.position = '42:1:0/1'").await, "22023");
    let token = writer.value("SHOW pointsman.position").await;
    let system = token.split(':').next().expect("it begins with the system");
    // Replicas have not reached a timeline that there is not, and never will.
    assert_eq!(other.error(&format!("SET pointsman.position = '{system}:0:0/1'")).await, "22023");
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

    // A synchronous commit is seen on a replica before it is on the primary (hard case 19).
    for synchronous in ["", "ANY 1 (*)"] {
        cluster.node(0).set("synchronous_standby_names", synchronous).expect("it can be set");
        assert_eq!(steps_back(&proxy, &database, "monotonic").await, 0, "{synchronous:?}");
        // The check can fail.
        assert_ne!(steps_back(&proxy, &database, "session").await, 0, "{synchronous:?}");
    }
}

#[tokio::test]
async fn what_was_read_on_the_primary_for_another_reason_counts_for_monotonic_reads_too() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let proxy = Proxy::start(&cluster, &[]).await;
    let (writer, reader) = (proxy.session(&database.name).await, proxy.session(&database.name).await);
    for replica in [1, 2] {
        cluster.pause_replay(replica).expect("replay can be paused");
    }
    for (x, reads) in [
        (1, &["BEGIN", "SELECT max(x) FROM t", "COMMIT"][..]),
        (2, &["/* pointsman: primary */ SELECT max(x) FROM t"]),
        (3, &["BEGIN", "SELECT x FROM t FOR UPDATE", "ROLLBACK"]),
    ] {
        writer.run(&format!("INSERT INTO t VALUES ({x})")).await;
        reader.run("SET pointsman.consistency = 'eventual'").await;
        assert_ne!(reader.value("SELECT coalesce(max(x), 0) FROM t").await, x.to_string());
        reader.run("SET pointsman.consistency = 'monotonic'").await;
        for read in reads {
            reader.run(read).await;
        }
        assert_eq!(reader.value("SELECT coalesce(max(x), 0) FROM t").await, x.to_string(), "{reads:?}");
    }
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
