//! Servers that die, freeze and change their role.

use std::time::Duration;

use pointsman::demo::servers::{APP, PgCluster, Stop};

use crate::support::{
    Database, Proxy, cluster, eventually,
    link::Link,
    wire::{Batch, Wire},
};

const WHERE: &str = "SELECT inet_server_port()";

#[tokio::test]
async fn a_killed_replica_fails_no_reads_and_is_taken_back() {
    let cluster = cluster::own();
    let database = Database::create(&cluster);
    let proxy = Proxy::start(&cluster, &["cluster.routing.slow_start = '0s'"]).await;
    let session = proxy.session(&database.name).await;
    let lost = cluster.node(1).port();

    cluster.stop(1, Stop::Kill).expect("it dies");
    for port in session.ports(WHERE, 100).await {
        assert_eq!(port, cluster.node(2).port());
    }
    cluster.start_node(1).expect("it recovers");

    eventually("reads use it again", async || session.port().await == lost).await;
}

#[tokio::test]
async fn without_replicas_reads_use_the_primary() {
    let cluster = cluster::own();
    let database = Database::create(&cluster);
    let proxy = Proxy::start(&cluster, &[]).await;
    let session = proxy.session(&database.name).await;

    for replica in [1, 2] {
        cluster.stop(replica, Stop::Immediate).expect("it stops");
    }

    assert_eq!(session.ports(WHERE, 20).await, vec![cluster.node(0).port(); 20]);
}

#[tokio::test]
async fn a_promoted_replica_gets_the_writes() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let proxy = Proxy::start(&cluster, &[]).await;
    let session = proxy.session(&database.name).await;
    session.run("INSERT INTO t VALUES (1)").await;
    cluster.wait_until_caught_up(0).expect("replicas follow");

    cluster.stop(0, Stop::Kill).expect("it dies");
    cluster.promote(1).expect("a replica takes over");
    cluster.follow(2, 1).expect("the other follows it");

    eventually("writes go on", async || session.try_run("INSERT INTO t VALUES (2)").await.is_ok()).await;
    assert_eq!(session.value("SELECT count(DISTINCT x) FROM t").await, "2");
    assert_eq!(cluster.node(1).sql(&database.name, "SELECT max(x) FROM t").expect("it answers"), "2");
    let other = cluster.node(2).port();
    eventually("the other replica reads", async || session.port().await == other).await;
}

#[tokio::test]
async fn a_transaction_on_a_server_that_dies_ends_with_a_connection_error() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let proxy = Proxy::start(&cluster, &[]).await;
    let session = proxy.session(&database.name).await;
    session.run("BEGIN; INSERT INTO t VALUES (1)").await;

    cluster.restart(0, Stop::Kill).expect("it recovers");
    let code = session.error("INSERT INTO t VALUES (2)").await;
    let after = session.error("SELECT 1").await;

    // The server may find the time to say that its postmaster is gone.
    assert!(["08006", "57P01"].contains(&code.as_str()), "{code}");
    assert_eq!(after, "25P02");
    session.run("ROLLBACK").await;
    eventually("the session lives on", async || session.try_run("INSERT INTO t VALUES (3)").await.is_ok())
        .await;
    assert_eq!(session.value("SELECT string_agg(x::text, ',') FROM t").await, "3");
}

/// The client hears of it, by an error or by the end of its connection, and the others go on.
/// A proxy that has the primary behind a link, and one replica.
async fn behind_a_link(cluster: &PgCluster, settings: &[&str]) -> (Proxy, Link) {
    let link = Link::to(&cluster.node(0).address());
    let proxy = Proxy::start_unready(&[link.address(), cluster.node(1).address()], settings);
    proxy.wait_until_reads_use(&[cluster.node(1).port()]).await;
    (proxy, link)
}

#[tokio::test]
async fn a_server_that_vanishes_in_the_middle_of_an_answer_takes_only_that_with_it() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let (proxy, link) = behind_a_link(&cluster, &[]).await;
    let other = proxy.session(&database.name).await;
    let rows = "generate_series(1, 100000000)";
    let insert = Batch::new().run("INSERT INTO t VALUES (1)", &[]);

    for (batch, begins) in [
        (Batch::new().query("COPY t FROM STDIN").copy_data("1\n"), b'G'),
        (Batch::new().query(&format!("/* pointsman: primary */ SELECT {rows}")), b'T'),
        (Batch::new().query(&format!("/* pointsman: primary */ COPY (SELECT {rows}) TO STDOUT")), b'H'),
        (insert.flush().run("SELECT pg_sleep(60)", &[]).sync(), b'1'),
    ] {
        let mut wire = Wire::login(proxy.port(), APP, &database.name).await;
        wire.send(&batch).await;
        assert_eq!(wire.recv().await.tag, begins);
        link.cut();

        let mut error = None;
        while let Ok(frame) = wire.next().await {
            match frame.tag {
                b'E' => error = Some(frame.code()),
                b'Z' => break,
                _ => {}
            }
        }
        if let Some(code) = error {
            assert!(["08006", "08007"].contains(&code.as_str()), "{code} behind {}", char::from(begins));
        }
        eventually("others write", async || other.try_run("INSERT INTO t VALUES (2)").await.is_ok()).await;
    }
    assert_eq!(database.ask(0, "SELECT count(*) FROM t WHERE x = 1"), "0");
}

#[tokio::test]
async fn a_primary_that_takes_no_connections_is_not_beset_by_those_who_wait() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let (proxy, link) = behind_a_link(&cluster, &["cluster.failover.hold = '1s'"]).await;
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(proxy.session(&database.name).await);
    }
    // Connections that were opened meanwhile end; the monitor's stays.
    cluster
        .node(0)
        .sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
        .expect("it obeys");
    link.refuse();

    let writes: Vec<_> = sessions
        .into_iter()
        .map(|session| tokio::spawn(async move { session.error("INSERT INTO t VALUES (1)").await }))
        .collect();
    for write in writes {
        assert_eq!(write.await.expect("it does not panic"), "57P03");
    }

    // At first up to pool.size of them ask at the same time.
    assert!((1..60).contains(&link.refused()), "it was asked {} times", link.refused());
    link.mend();
    proxy.session(&database.name).await.run("INSERT INTO t VALUES (2)").await;
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_in_doubt() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let (proxy, link) = behind_a_link(&cluster, &[]).await;
    let session = proxy.session(&database.name).await;
    session.run("BEGIN; INSERT INTO t VALUES (1)").await;

    link.stall();
    let commit = tokio::spawn(async move { session.error("COMMIT").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    link.break_down();
    link.resume();

    assert_eq!(commit.await.expect("the session does not panic"), "08007");
}

#[tokio::test]
async fn an_autocommit_write_whose_answer_is_lost_is_never_sent_twice() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let (proxy, link) = behind_a_link(&cluster, &[]).await;
    let session = proxy.session(&database.name).await;
    session.run("INSERT INTO t VALUES (0)").await;

    // The server runs it, but the answer comes too late to pass.
    let insert =
        tokio::spawn(async move { session.error("INSERT INTO t SELECT 1 FROM pg_sleep(0.5)").await });
    let asked = || {
        cluster.node(0).sql(
            "postgres",
            "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'INSERT INTO t SELECT 1 .*sleep'",
        )
    };
    eventually("the server has the statement", async || asked().is_ok_and(|count| count.trim() == "2")).await;
    link.cut();

    assert_eq!(insert.await.expect("the session does not panic"), "08007");
    let written = || cluster.node(0).sql(&database.name, "SELECT string_agg(x::text, ',') FROM t");
    eventually("the server is done", async || written().is_ok_and(|rows| rows == "0,1")).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(written().expect("it answers"), "0,1", "run a second time");
}

#[tokio::test]
async fn a_frozen_replica_is_left_and_its_read_is_answered_by_another() {
    let cluster = cluster::own();
    let database = Database::create(&cluster);
    let proxy = Proxy::start(&cluster, &["cluster.monitor.timeout = '200ms'"]).await;
    let session = proxy.session(&database.name).await;
    let frozen = cluster.node(1).port();

    cluster.node(1).freeze();
    for _ in 0..100 {
        assert_ne!(session.port().await, frozen);
    }
    cluster.node(1).thaw();

    eventually("it is taken back", async || session.port().await == frozen).await;
}

#[tokio::test]
async fn the_proxy_starts_before_its_servers() {
    let cluster = cluster::own();
    let database = Database::create(&cluster);
    for node in [0, 1, 2] {
        cluster.stop(node, Stop::Fast).expect("it stops");
    }

    let mut proxy = Proxy::start_unready(&cluster.addresses(), &[]);
    assert!(proxy.is_running());
    for node in [0, 1, 2] {
        cluster.start_node(node).expect("it starts");
    }

    proxy.wait_until_reads_use(&[cluster.node(1).port(), cluster.node(2).port()]).await;
    assert_eq!(proxy.session(&database.name).await.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn a_statement_that_an_administrator_terminates_is_not_run_again() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let proxy = Proxy::start(&cluster, &[]).await;
    let session = proxy.session(&database.name).await;

    let statement = "INSERT INTO t SELECT 1 FROM pg_sleep(30)";
    let running = tokio::spawn(async move { (session.error(statement).await, session) });
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                     WHERE query LIKE 'INSERT INTO t SELECT 1%' AND state = 'active'";
    let terminated = || cluster.node(0).sql("postgres", terminate).expect("the superuser may");
    eventually("it is terminated", async || terminated() == "1").await;

    // The server goes on serving, so the 57P01 was meant for the client.
    let (code, session) = running.await.expect("the session does not panic");
    assert_eq!(code, "57P01");
    assert_eq!(session.value("/* pointsman: primary */ SELECT count(*) FROM t").await, "0");
    assert_eq!(terminated(), "0", "it was run again");
}

#[tokio::test]
async fn a_server_whose_login_takes_longer_than_a_probe_may_is_found_all_the_same() {
    let cluster = cluster::own();
    let link = Link::to(&cluster.node(0).address());
    // A login goes to and fro four times, a question once.
    link.delay(Duration::from_millis(200));

    let proxy = Proxy::start_unready(&[link.address()], &["cluster.monitor.timeout = '1s'"]);

    proxy.wait_for_log("primary elected").await;
}
