//! No session reads behind its own writes, whatever the servers go through.

use std::time::Duration;

use pointsman::demo::{Signal, servers::Stop, signal};

use crate::support::{Database, Proxy, Session, Stage, cluster, eventually, link::Link};

/// Writes and reads back at once, a number of times.
async fn read_back(session: &Session, times: u32, what: &str) {
    for x in 1..=times {
        session.run(&format!("INSERT INTO t VALUES ({x})")).await;
        assert_eq!(session.value("SELECT max(x) FROM t").await, x.to_string(), "{what}");
    }
}

#[tokio::test]
async fn writes_of_every_kind_are_read_back() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let session = stage.session().await;

    for x in 1..=20_i32 {
        session.execute("INSERT INTO t VALUES ($1)", &[&x]).await.expect("an extended write");
        assert_eq!(session.value("SELECT max(x) FROM t").await, x.to_string());
        session.run("BEGIN; UPDATE t SET x = -x; COMMIT").await;
        assert_eq!(session.value("SELECT min(x) FROM t").await, (-x).to_string());
        session.run("DO $$ BEGIN UPDATE t SET x = abs(x); END $$").await;
        assert_eq!(session.value("SELECT min(x) FROM t").await, "1");
        session.run(&format!("CREATE TABLE t{x} AS SELECT {x} AS x")).await;
        assert_eq!(session.value(&format!("SELECT x FROM t{x}")).await, x.to_string());
    }
}

#[tokio::test]
async fn a_write_committed_without_waiting_for_the_disk_is_read_back() {
    // Its commit record ends behind every position that is written or flushed yet.
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let session = stage.session().await;

    session.run("SET synchronous_commit = off").await;

    read_back(&session, 100, "synchronous_commit = off").await;
}

#[tokio::test]
async fn after_a_change_of_the_wal_segment_reads_use_replicas_again() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let proxy = Proxy::start(&cluster, &[]).await;
    let session = proxy.session(&database.name).await;
    session.run("INSERT INTO t VALUES (1)").await;

    // From here on the insert position of the idle primary stands just behind a page header, where
    // no replica ever gets.
    cluster.node(0).sql("postgres", "SELECT pg_switch_wal()").expect("the superuser may");
    session.run("/* pointsman: primary */ SELECT txid_current()").await;
    cluster.node(0).sql("postgres", "SELECT pg_switch_wal()").expect("the superuser may");

    let primary = cluster.node(0).port();
    eventually("reads use replicas", async || session.port().await != primary).await;
    eventually("no lag", async || proxy.metric("pointsman_replica_lag_seconds", &[]) == 0.0).await;
}

#[tokio::test]
async fn a_replica_that_comes_back_from_a_crash_behind_its_former_self_is_not_believed() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let proxy = Proxy::start(&cluster, &["cluster.routing.slow_start = '0s'"]).await;
    let session = proxy.session(&database.name).await;
    for round in 1..=3 {
        session.run(&format!("INSERT INTO t VALUES ({round})")).await;
        cluster.wait_until_caught_up(0).expect("replicas follow");
        for replica in [1, 2] {
            // Started anew it opens for reads at its last restart point and replays slowly.
            cluster.delay_replay(replica, Duration::from_secs(600)).expect("replay can be delayed");
            cluster.restart(replica, Stop::Immediate).expect("it recovers");
            for _ in 0..50 {
                assert_eq!(session.value("SELECT max(x) FROM t").await, round.to_string());
            }
            cluster.delay_replay(replica, Duration::ZERO).expect("and again at once");
        }
    }
}

#[tokio::test]
async fn a_replica_whose_processes_crash_is_not_believed_to_be_where_it_was() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    // What was known of its position would be believed for long.
    let settings = [
        "cluster.routing.slow_start = '0s'",
        "cluster.monitor.interval = '5s'",
        "cluster.monitor.fast_interval = '100ms'",
    ];
    let proxy = Proxy::start(&cluster, &settings).await;
    let session = proxy.session(&database.name).await;
    let mut behind = false;
    for round in 1..=3 {
        session.run(&format!("INSERT INTO t VALUES ({round})")).await;
        cluster.wait_until_caught_up(0).expect("replicas follow");
        let replicas = [cluster.node(1).port(), cluster.node(2).port()];
        for port in replicas {
            eventually("its floor is met", async || session.port().await == port).await;
        }
        for replica in [1, 2] {
            cluster.delay_replay(replica, Duration::from_secs(600)).expect("replay can be delayed");
            // The postmaster starts its processes anew, and says that it never stopped.
            let pid = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'";
            let pid = cluster.node(replica).sql("postgres", pid).expect("it answers");
            signal(pid.parse().expect("a process"), Signal::Kill);
            let back = || cluster.node(replica).sql("postgres", "SELECT 1").is_ok();
            eventually("it is back", async || back()).await;
            // It may have forgotten the table as well.
            let newest = cluster.node(replica).sql(&database.name, "SELECT max(x) FROM t");
            behind |= !newest.is_ok_and(|newest| newest == round.to_string());
            for _ in 0..50 {
                assert_eq!(session.value("SELECT max(x) FROM t").await, round.to_string());
            }
            cluster.delay_replay(replica, Duration::ZERO).expect("and again at once");
        }
    }
    assert!(behind, "no replica came back behind its former self");
}

#[tokio::test]
async fn what_a_lagging_replica_does_not_know_yet_is_asked_of_the_primary() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TYPE mood AS ENUM ('glad')");
    let proxy = Proxy::start(&cluster, &[]).await;
    let (writer, reader) = (proxy.session(&database.name).await, proxy.session(&database.name).await);
    for replica in [1, 2] {
        cluster.pause_replay(replica).expect("replay can be paused");
    }

    writer.run("CREATE TABLE fresh AS SELECT 1 AS x; ALTER TYPE mood ADD VALUE 'sad'; CREATE SCHEMA s").await;
    writer.run("CREATE FUNCTION s.one() RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1'").await;

    // 42P01, 22P02, 3F000 and 42883 of a replica that is behind say nothing.
    assert_eq!(reader.value("SELECT x FROM fresh").await, "1");
    assert_eq!(reader.value("SELECT 'sad'::mood").await, "sad");
    assert_eq!(reader.value("SELECT s.one()").await, "1");
    assert_eq!(reader.error("SELECT x FROM never").await, "42P01");
    for replica in [1, 2] {
        cluster.resume_replay(replica).expect("replay goes on");
    }
}

#[tokio::test]
async fn a_read_that_a_replica_cancels_for_its_replay_is_answered_by_the_primary() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS x");
    for replica in [1, 2] {
        cluster.node(replica).set("max_standby_streaming_delay", "0").expect("the superuser may");
    }
    let proxy = Proxy::start(&cluster, &[]).await;
    let session = proxy.session(&database.name).await;

    let reading = tokio::spawn(async move {
        let mut answers = Vec::new();
        for _ in 0..10 {
            // An aggregate: nothing of its answer is sent before the conflict strikes.
            answers
                .push(session.try_run("SELECT count(*), max(pg_sleep(0.0002)::text) FROM t").await.is_ok());
        }
        answers
    });
    for _ in 0..20 {
        // DDL takes a lock on the table that replay will not wait for.
        cluster.node(0).sql(&database.name, "ALTER TABLE t ALTER x SET DEFAULT 50").expect("done");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    assert_eq!(reading.await.expect("it does not panic"), vec![true; 10]);
    let conflicts = |node: usize| cluster.node(node).log().matches("conflict with recovery").count();
    assert!(conflicts(1) + conflicts(2) > 0, "no conflict was provoked");
}

#[tokio::test]
async fn an_eventual_reader_may_read_old_data_and_a_hint_bounds_its_age() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let proxy = Proxy::start(&cluster, &[]).await;
    let session = proxy.session(&database.name).await;
    for replica in [1, 2] {
        cluster.pause_replay(replica).expect("replay can be paused");
    }

    session.run("SET pointsman.consistency = 'eventual'").await;
    session.run("INSERT INTO t VALUES (1)").await;

    assert_eq!(session.value("SELECT count(*) FROM t").await, "0");
    assert_eq!(session.value("/* pointsman: consistency=session */ SELECT count(*) FROM t").await, "1");
    eventually("the replicas are too old for the hint", async || {
        session.value("/* pointsman: max_lag=300ms */ SELECT count(*) FROM t").await == "1"
    })
    .await;
    // In a hint no time at all is none, in a setting no bound.
    for hint in ["max_lag=0", "max_lag=0ms"] {
        let read = format!("/* pointsman: {hint} */ SELECT count(*) FROM t");
        assert_eq!(session.value(&read).await, "1", "{hint}");
    }
    session.run("SET pointsman.max_lag = '0'").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await, "0");
    for replica in [1, 2] {
        cluster.resume_replay(replica).expect("replay goes on");
    }
}

#[tokio::test]
async fn a_bound_on_staleness_holds_while_the_primary_is_cut_off() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let link = Link::to(&cluster.node(0).address());
    let nodes = [link.address(), cluster.node(1).address(), cluster.node(2).address()];
    let replicas = [cluster.node(1).port(), cluster.node(2).port()];
    let settings = ["cluster.failover.hold = '300ms'", "cluster.monitor.timeout = '200ms'"];
    let proxy = Proxy::start_unready(&nodes, &settings);
    proxy.wait_until_reads_use(&replicas).await;
    let session = proxy.session(&database.name).await;
    let bounded = "/* pointsman: max_lag=2s */ SELECT count(*) FROM t";
    assert_eq!(session.value(bounded).await, "0");

    // Neither the proxy nor the replicas hear of what the primary goes on writing.
    for replica in [1, 2] {
        cluster.pause_replay(replica).expect("replay can be paused");
    }
    link.stall();
    cluster.node(0).sql(&database.name, "INSERT INTO t VALUES (1)").expect("it goes on");
    proxy.wait_for_log("no primary").await;

    // Whoever asks for no bound reads on; to the others nobody is fresh enough, ever.
    eventually("the bound is passed", async || session.try_run(bounded).await.is_err()).await;
    for _ in 0..3 {
        assert_eq!(session.error(bounded).await, "57P03");
        assert_eq!(session.value("SELECT count(*) FROM t").await, "0");
    }
    session.run("SET pointsman.max_lag = '2s'").await;
    assert_eq!(session.error("SELECT count(*) FROM t").await, "57P03");
    link.resume();
    eventually("the primary is back", async || {
        session.try_run("SELECT count(*) FROM t").await.is_ok_and(|rows| rows[0][0].as_deref() == Some("1"))
    })
    .await;
    for replica in [1, 2] {
        cluster.resume_replay(replica).expect("replay goes on");
    }
}
