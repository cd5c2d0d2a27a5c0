//! MySQL and MariaDB servers that die and change their role.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use pointsman::{
    demo::{
        mysql::{MysqlCluster, MysqlNode},
        servers::{APP, Stop},
    },
    mysql::{command::code, packet},
    topology::GtidSet,
};

use crate::{
    both_makes,
    support::{
        PATIENCE, Proxy, eventually,
        link::Link,
        mysql::{self, BASIC, Make, Refused, Session},
        soon,
    },
};

both_makes!(
    a_failover_with_semi_synchronous_replication_keeps_every_acknowledged_write,
    a_killed_replica_fails_no_reads_and_is_taken_back,
    a_planned_switchover_refuses_no_autocommit_write_and_no_transaction_that_begins_after_it,
    a_promoted_replica_gets_the_writes_and_the_old_primary_none,
    an_old_primary_that_others_write_to_is_not_the_newer_one_for_that,
    an_old_primary_that_has_more_does_not_take_the_role_back_from_an_idle_successor,
    reads_after_a_write_wait_for_no_replica_and_never_see_old_data,
    a_write_whose_answer_is_lost_is_never_sent_twice_whatever_was_said_of_the_next_transaction,
    a_first_write_whose_server_is_lost_is_sent_again_only_where_a_rollback_undoes_it,
    an_error_behind_the_first_rows_has_the_number_of_the_next_packet,
);

/// Sessions that write at the same time.
const WRITERS: usize = 4;
/// Acknowledged writes of each before the primary dies.
const WRITES: usize = 25;

/// Writes until a write fails; returns how many were acknowledged.
async fn write_until_it_fails(mut session: Session, writer: usize, acknowledged: Arc<AtomicUsize>) -> usize {
    for x in 0.. {
        if session.query(&format!("INSERT INTO t VALUES ({writer}, {x})")).await.is_err() {
            return x;
        }
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    unreachable!("the numbers do not end before the primary")
}

async fn a_failover_with_semi_synchronous_replication_keeps_every_acknowledged_write(make: Make) {
    let cluster = make.own_semi_synchronous();
    let schema = mysql::create_schema(&cluster, "CREATE TABLE t (writer INT, x INT)");
    // Where nobody is to write, a write fails soon.
    let proxy = mysql::proxy(&cluster, &["cluster.failover.hold = '100ms'"]).await;
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let session = Session::open(proxy.port(), APP, &schema).await;
        writers.push(tokio::spawn(write_until_it_fails(session, writer, acknowledged.clone())));
    }
    eventually("they write", async || acknowledged.load(Ordering::Relaxed) >= WRITERS * WRITES).await;

    cluster.stop(0, Stop::Kill).expect("it dies");
    let mut counts = Vec::new();
    for writer in writers {
        counts.push(writer.await.expect("writers do not panic"));
    }
    // Whoever has more of what both received.
    let reached = |node: usize| {
        cluster.apply_received(node).expect("it applies what it has");
        let reached = cluster.node(node).sql("", cluster.flavour().written()).expect("it answers");
        reached.parse::<GtidSet>().expect("a GTID set")
    };
    let (heir, other) = if reached(1).covers(&reached(2)) { (1, 2) } else { (2, 1) };
    cluster.wait_for_replicas(heir).expect("it obeys");
    cluster.promote(heir).expect("it takes over");
    cluster.follow(other, heir).expect("the other follows");

    let mut session = Session::open(proxy.port(), APP, &schema).await;
    eventually("writes go on, acknowledged by the other", async || {
        Session::open(proxy.port(), APP, &schema).await.query("INSERT INTO t VALUES (-1, 0)").await.is_ok()
    })
    .await;
    for (writer, count) in counts.into_iter().enumerate() {
        let kept = session
            .value(&format!(
                "/* pointsman: primary */ SELECT COUNT(DISTINCT x) FROM t WHERE writer = {writer} AND x < {count}"
            ))
            .await;
        assert_eq!(kept, count.to_string(), "of writer {writer}");
    }
}

async fn a_killed_replica_fails_no_reads_and_is_taken_back(make: Make) {
    let cluster = make.own();
    let proxy = mysql::proxy(&cluster, &["cluster.routing.slow_start = '0s'"]).await;
    let mut session = Session::open(proxy.port(), APP, "app").await;
    let lost = cluster.node(1).port();

    cluster.stop(1, Stop::Kill).expect("it dies");
    for _ in 0..100 {
        assert_eq!(session.port().await, cluster.node(2).port());
    }
    cluster.start_node(1).expect("it recovers");

    let session = tokio::sync::Mutex::new(session);
    eventually("reads use it again", async || session.lock().await.port().await == lost).await;
}

/// As people do it: the old primary is made read-only, and lives on as a replica. A write that it
/// acknowledges while nobody is known to have the role is in doubt.
async fn a_planned_switchover_refuses_no_autocommit_write_and_no_transaction_that_begins_after_it(
    make: Make,
) {
    let cluster = make.own();
    let schema = mysql::create_schema(&cluster, "CREATE TABLE t (writer INT, x INT)");
    let proxy = mysql::proxy(&cluster, &[]).await;
    let (written, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let mut session = Session::open(proxy.port(), APP, &schema).await;
        let (written, over) = (written.clone(), over.clone());
        writers.push(tokio::spawn(async move {
            let mut in_doubt = 0;
            while !over.load(Ordering::Relaxed) {
                let x = written.load(Ordering::Relaxed);
                match session.query(&format!("INSERT INTO t VALUES ({writer}, {x})")).await {
                    Ok(_) => drop(written.fetch_add(1, Ordering::Relaxed)),
                    Err(refused) if refused.sqlstate == "08007" => in_doubt += 1,
                    Err(refused) => return Err::<usize, Refused>(refused),
                }
            }
            Ok(in_doubt)
        }));
    }
    eventually("they write", async || written.load(Ordering::Relaxed) >= WRITES).await;
    let mut late = Session::open(proxy.port(), APP, &schema).await;
    late.run("BEGIN").await;

    cluster.node(0).sql("", "SET GLOBAL read_only = 1").expect("it obeys");
    let late = tokio::spawn(async move {
        late.run("INSERT INTO t VALUES (-1, 0)").await;
        late.run("COMMIT").await;
    });
    let cluster = tokio::task::spawn_blocking(move || {
        cluster.wait_until_caught_up(0).expect("replicas follow");
        cluster.promote(1).expect("a replica takes over");
        cluster.follow(2, 1).expect("the other follows it");
        cluster.follow(0, 1).expect("and the old one");
        cluster
    })
    .await
    .expect("no panic");
    late.await.expect("it was held until there was a primary again");
    let before = written.load(Ordering::Relaxed);
    eventually("writes go on", async || written.load(Ordering::Relaxed) >= before + WRITES).await;
    over.store(true, Ordering::Relaxed);

    let mut in_doubt = 0;
    for writer in writers {
        in_doubt += writer.await.expect("writers do not panic").expect("no write was refused");
    }
    let rows = cluster.node(1).sql(&schema, "SELECT COUNT(*) FROM t").expect("it answers");
    let (rows, done) = (rows.parse::<usize>().expect("a number"), written.load(Ordering::Relaxed) + 1);
    assert!((done..=done + in_doubt).contains(&rows), "{rows} rows of {done} and {in_doubt} in doubt");
}

async fn a_promoted_replica_gets_the_writes_and_the_old_primary_none(make: Make) {
    let cluster = make.own();
    let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT)");
    let proxy = mysql::proxy(&cluster, &[]).await;
    let mut session = Session::open(proxy.port(), APP, &schema).await;
    session.run("INSERT INTO t VALUES (1)").await;
    cluster.wait_until_caught_up(0).expect("replicas follow");

    cluster.stop(0, Stop::Kill).expect("it dies");
    // Held until there is a primary again.
    let held = tokio::spawn(async move {
        let answer = session.query("INSERT INTO t VALUES (2)").await;
        (session, answer)
    });
    cluster.promote(1).expect("a replica takes over");
    cluster.follow(2, 1).expect("the other follows it");
    let (mut session, answer) =
        tokio::time::timeout(PATIENCE, held).await.expect("it is answered").expect("no panic");
    match answer {
        Ok(_) => {}
        // The loss was noticed by this very statement.
        Err(error) => assert_eq!(error.errno, 2013, "{error:?}"),
    }
    let mut answered = session.query("INSERT INTO t VALUES (3)").await;
    if answered.is_err() {
        session = Session::open(proxy.port(), APP, &schema).await;
        answered = session.query("INSERT INTO t VALUES (3)").await;
    }
    answered.expect("writes go on");
    assert_eq!(session.value("SELECT MAX(x) FROM t").await, "3");

    // It comes back as it died: writable, and without a source.
    cluster.start_node(0).expect("it recovers");
    for x in 4..30 {
        session.run(&format!("INSERT INTO t VALUES ({x})")).await;
        assert_eq!(session.value("SELECT MAX(x) FROM t").await, x.to_string());
    }
    assert_eq!(cluster.node(0).sql(&schema, "SELECT MAX(x) FROM t").expect("it answers"), "1");
    assert_eq!(cluster.node(1).sql(&schema, "SELECT MAX(x) FROM t").expect("it answers"), "29");

    cluster.follow(0, 1).expect("it becomes a replica");
    let old = cluster.node(0).port();
    let session = tokio::sync::Mutex::new(session);
    eventually("it serves reads as a replica", async || session.lock().await.port().await == old).await;
}

/// Hard case 8. The old primary counts further than the new one, but with transactions of its own.
async fn an_old_primary_that_others_write_to_is_not_the_newer_one_for_that(make: Make) {
    let cluster = make.own();
    let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT)");
    let proxy = mysql::proxy(&cluster, &[]).await;
    let old = cluster.node(0);
    let asked_again = async || asked_again(old).await;
    cluster.stop(0, Stop::Kill).expect("it dies");
    cluster.promote(1).expect("a replica takes over");
    cluster.follow(2, 1).expect("the other follows it");
    let mut session = Session::open(proxy.port(), APP, &schema).await;
    session.run("INSERT INTO t VALUES (1)").await;

    cluster.start_node(0).expect("it recovers");
    proxy.wait_for_log("fenced").await;
    old.sql(&schema, &"INSERT INTO t VALUES (-1);".repeat(100)).expect("it takes writes");
    asked_again().await;
    session.run("INSERT INTO t VALUES (2)").await;
    assert_eq!(session.value("SELECT GROUP_CONCAT(x ORDER BY x) FROM t").await, "1,2");
    assert_eq!(
        session.value("/* pointsman: primary */ SELECT @@port").await,
        cluster.node(1).port().to_string()
    );

    // A position of MariaDB's does not tell that this replica lacks all that came since.
    cluster.follow(0, 1).expect("it obeys");
    asked_again().await;
    if make == Make::MariaDb {
        proxy.wait_for_log("it has transactions that the primary lacks").await;
    }
    for x in 3..20 {
        session.run(&format!("INSERT INTO t VALUES ({x})")).await;
        assert_eq!(session.value("SELECT MAX(x) FROM t").await, x.to_string());
    }
}

/// Hard case 8. All that the successor has is in its history, and more that nobody was told of by the
/// proxy: for a claimer that never had the role that would be enough.
async fn an_old_primary_that_has_more_does_not_take_the_role_back_from_an_idle_successor(make: Make) {
    let cluster = make.own();
    let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT)");
    let proxy = mysql::proxy(&cluster, &[]).await;
    let (old, successor) = (cluster.node(0), cluster.node(1));
    cluster.stop(0, Stop::Kill).expect("it dies");
    cluster.promote(1).expect("a replica takes over");
    cluster.follow(2, 1).expect("the other follows it");
    proxy.wait_for_log("failover=true").await;

    cluster.start_node(0).expect("it recovers");
    proxy.wait_for_log("fenced").await;
    old.sql(&schema, &"INSERT INTO t VALUES (-1);".repeat(100)).expect("it takes writes");
    asked_again(old).await;
    asked_again(successor).await;
    let has_more =
        cluster.has_all_of(0, 1).expect("they answer") && !cluster.has_all_of(1, 0).expect("they answer");
    assert!(has_more, "its history contains the successor's");

    let mut session = Session::open(proxy.port(), APP, &schema).await;
    for x in 1..20 {
        session.run(&format!("INSERT INTO t VALUES ({x})")).await;
        assert_eq!(session.value("SELECT MAX(x) FROM t").await, x.to_string());
    }
    assert_eq!(old.sql(&schema, "SELECT MAX(x) FROM t").expect("it answers"), "-1", "it got a write");
    assert_eq!(session.value("/* pointsman: primary */ SELECT @@port").await, successor.port().to_string());
}

/// Returns when a server has answered three more probes.
async fn asked_again(node: &MysqlNode) {
    let probes = || node.statements().matches("UNIX_TIMESTAMP(SYSDATE(6))").count();
    let before = probes();
    eventually("it is asked again", async || probes() > before + 2).await;
}

async fn reads_after_a_write_wait_for_no_replica_and_never_see_old_data(make: Make) {
    let cluster = make.own();
    let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT)");
    let proxy = mysql::proxy(&cluster, &[]).await;
    let mut session = Session::open(proxy.port(), APP, &schema).await;
    cluster.pause_replay(1).expect("it pauses");
    cluster.pause_replay(2).expect("it pauses");

    for x in 1..=20 {
        session.run(&format!("INSERT INTO t VALUES ({x})")).await;
        assert_eq!(session.value("SELECT MAX(x) FROM t").await, x.to_string());
        assert_eq!(session.port().await, cluster.node(0).port());
    }
    cluster.resume_replay(2).expect("it goes on");
    let fresh = cluster.node(2).port();
    let session = tokio::sync::Mutex::new(session);
    eventually("the replica that has caught up reads", async || session.lock().await.port().await == fresh)
        .await;
    let mut other = Session::connect(proxy.port(), APP, &schema, BASIC).await.expect("it logs in");
    assert_eq!(other.value("/* pointsman: consistency=eventual */ SELECT 1").await, "1");
}

/// One server behind a link, with the rows `(1, 0)` in an InnoDB table `t` and a MyISAM table `m`,
/// and a proxy that knows both.
async fn behind_a_link(cluster: &MysqlCluster) -> (Proxy, Link, String) {
    let tables = "CREATE TABLE t (id INT PRIMARY KEY, x INT); INSERT INTO t VALUES (1, 0);
                  CREATE TABLE m (id INT PRIMARY KEY, x INT) ENGINE = MyISAM; INSERT INTO m VALUES (1, 0)";
    let schema = mysql::create_schema(cluster, tables);
    let link = Link::to(&cluster.node(0).address());
    let settings = [mysql::ENGINE, "cluster.monitor.catalog_refresh = '200ms'"];
    let proxy = Proxy::start_unready(&[link.address()], &settings);
    eventually("it lets clients in", async || {
        Session::connect(proxy.port(), APP, &schema, BASIC).await.is_ok()
    })
    .await;
    let pins = || proxy.metric("pointsman_pins_total", &["reason=\"function\""]);
    eventually("the catalog says that the table has no triggers", async || {
        let before = pins();
        let mut session = Session::open(proxy.port(), APP, &schema).await;
        session.run("UPDATE t SET x = 0").await;
        // What comes behind it is answered when it has been counted.
        session.run("SELECT 1").await;
        pins() == before
    })
    .await;
    (proxy, link, schema)
}

/// How many statements that begin like this one are at the server.
fn running(cluster: &MysqlCluster, statement: &str) -> String {
    let sql = format!("SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE '{statement}%'");
    cluster.node(0).sql("", &sql).expect("it answers")
}

/// The youngest connection that runs such a statement.
fn newest(cluster: &MysqlCluster, statement: &str) -> u64 {
    let sql = format!(
        "SELECT COALESCE(MAX(id), 0) FROM information_schema.processlist WHERE info LIKE '{statement}%'"
    );
    cluster.node(0).sql("", &sql).expect("it answers").parse().expect("a number")
}

async fn a_write_whose_answer_is_lost_is_never_sent_twice_whatever_was_said_of_the_next_transaction(
    make: Make,
) {
    let cluster = make.own();
    let (proxy, link, schema) = behind_a_link(&cluster).await;
    let direct = mysql::proxy(&cluster, &[]).await;
    let mut session = Session::open(proxy.port(), APP, &schema).await;
    // The server runs the write, but not before its answer can no longer pass.
    let mut holder = Session::open(direct.port(), APP, &schema).await;
    holder.run("BEGIN").await;
    holder.run("SELECT * FROM t WHERE id = 1 FOR UPDATE").await;

    // It says how the next transaction is to be, and begins none.
    session.run("SET TRANSACTION ISOLATION LEVEL READ COMMITTED").await;
    const UPDATE: &str = "UPDATE t SET x = x + 1";
    let update = tokio::spawn(async move { session.error(UPDATE).await });
    eventually("it waits for the row", async || running(&cluster, UPDATE) == "1").await;
    link.cut();
    let code = tokio::time::timeout(PATIENCE, update).await.expect("it is answered").expect("no panic");
    holder.run("COMMIT").await;

    assert_eq!(code, 2013);
    eventually("nothing waits any more", async || running(&cluster, UPDATE) == "0").await;
    assert_eq!(cluster.node(0).sql(&schema, "SELECT x FROM t").expect("it answers"), "1", "run twice");
}

async fn a_first_write_whose_server_is_lost_is_sent_again_only_where_a_rollback_undoes_it(make: Make) {
    let cluster = make.own();
    let (proxy, link, schema) = behind_a_link(&cluster).await;
    let direct = mysql::proxy(&cluster, &[]).await;
    let row_lock = ["BEGIN", "SELECT * FROM t FOR UPDATE", "COMMIT"];
    let table_lock = ["BEGIN", "LOCK TABLES m WRITE", "UNLOCK TABLES"];
    for (table, [begin, lock, unlock], code) in [("t", row_lock, None), ("m", table_lock, Some(2013))] {
        let mut session = Session::open(proxy.port(), APP, &schema).await;
        let mut holder = Session::open(direct.port(), APP, &schema).await;
        holder.run(begin).await;
        holder.run(lock).await;
        let update = format!("UPDATE {table} SET x = x + 1");
        session.run("BEGIN").await;
        let first = update.clone();
        let first = tokio::spawn(async move {
            let answer = session.query(&first).await;
            (answer.err().map(|refused| refused.errno), session)
        });
        eventually("it waits for the lock", async || running(&cluster, &update) == "1").await;
        let lost = newest(&cluster, &update);

        link.cut();
        if code.is_none() {
            eventually("it is sent again", async || newest(&cluster, &update) > lost).await;
        }
        holder.run(unlock).await;

        let (answer, mut session) =
            tokio::time::timeout(PATIENCE, first).await.expect("it is answered").expect("no panic");
        assert_eq!(answer, code, "{table}");
        if code.is_none() {
            session.run("COMMIT").await;
        }
        eventually("nothing runs any more", async || running(&cluster, &update) == "0").await;
        let x = cluster.node(0).sql(&schema, &format!("SELECT x FROM {table}")).expect("it answers");
        assert!(x == "1" || (x == "0" && code.is_some()), "{table}: {x}");
    }
}

async fn an_error_behind_the_first_rows_has_the_number_of_the_next_packet(make: Make) {
    let cluster = make.own();
    let (proxy, link, schema) = behind_a_link(&cluster).await;
    let mut session = Session::open(proxy.port(), APP, &schema).await;

    // The first row is too long for the server to keep it back.
    session.send(code::QUERY, b"SELECT REPEAT('x', 200000) UNION ALL SELECT SLEEP(60)").await;
    let mut next = 1;
    loop {
        let frame = soon("a packet", session.frame()).await.expect("it goes on");
        assert_eq!(frame[0], next);
        next += 1;
        if frame.len() > 200_000 {
            break;
        }
    }
    link.cut();

    let error = soon("the error", session.frame()).await.expect("it is told");
    assert_eq!((error[0], error[1]), (next, packet::ERR));
}
