//! What becomes of floors, tokens and replicas whose history a failover or a crash throws away
//! (hard case 5).

use pointsman::demo::{
    Signal,
    servers::{PgCluster, Stop},
    signal,
};

use crate::support::{Database, Proxy, cluster, eventually};

const TABLE: &str = "CREATE TABLE t AS SELECT 1 AS x";
/// More than a promotion writes by itself: what is lost ends beyond the new primary's first position.
const WRITE: &str = "INSERT INTO t SELECT generate_series(2, 20000)";
const NEWEST: &str = "SELECT max(x) FROM t";

/// Lets replicas stream from nobody, one after the other: what is written from now on is on the primary alone.
/// The server may write a little by itself meanwhile: who is to take over comes last, and has what the others have.
async fn detach(cluster: &PgCluster, replicas: &[usize]) {
    cluster.wait_until_caught_up(0).expect("replicas follow");
    for &replica in replicas {
        cluster.follow_address(replica, "127.0.0.1", 1).expect("it streams from nobody");
        let streams = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        let streams = || cluster.node(replica).sql("postgres", streams);
        eventually("the stream ends", async || streams().is_ok_and(|count| count == "0")).await;
        let feeds =
            format!("SELECT count(*) FROM pg_stat_replication WHERE application_name = 'node{replica}'");
        let feeds = || cluster.node(0).sql("postgres", &feeds);
        eventually("the primary feeds it no more", async || feeds().is_ok_and(|count| count == "0")).await;
    }
}

#[tokio::test]
async fn a_floor_beyond_the_fork_is_lowered_to_it_and_so_is_a_token() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let proxy = Proxy::start(&cluster, &["cluster.routing.slow_start = '0s'"]).await;
    let (session, other) = (proxy.session(&database.name).await, proxy.session(&database.name).await);
    let lost = || proxy.metric("pointsman_lost_positions_total", &[]);
    detach(&cluster, &[2, 1]).await;
    session.run(WRITE).await;
    let token = session.value("SHOW pointsman.position").await;
    assert_eq!(session.value(NEWEST).await, "20000");

    cluster.stop(0, Stop::Kill).expect("it dies with what nobody else has");
    cluster.promote(1).expect("a replica takes over");
    cluster.follow(2, 1).expect("the other follows");

    // The floor is met by whoever has what is left: the session does not stick to the primary.
    assert_eq!(session.value(NEWEST).await, "1");
    let replica = cluster.node(2).port();
    eventually("its reads use the replica", async || session.port().await == replica).await;
    assert_eq!(lost(), 1.0);
    proxy.wait_for_log("a session's floor lay in history that a failover threw away").await;
    let left = session.value("SHOW pointsman.position").await;
    assert!(left.contains(":2:") && token.contains(":1:"), "{left} is left of {token}");

    // A token of before is worth as much, and counts as one more.
    other.run(&format!("SET pointsman.position = '{token}'")).await;
    assert_eq!(other.value(NEWEST).await, "1");
    eventually("its reads use the replica", async || other.port().await == replica).await;
    assert_eq!(lost(), 2.0);

    // To a proxy that has not seen the failover as well.
    let late = Proxy::start_unready(&[cluster.node(1).address(), cluster.node(2).address()], &[]);
    late.wait_until_reads_use(&[replica]).await;
    let session = late.session(&database.name).await;
    session.run(&format!("SET pointsman.position = '{token}'")).await;
    assert_eq!(session.value(NEWEST).await, "1");
    eventually("its reads use the replica", async || session.port().await == replica).await;
    session.run("INSERT INTO t VALUES (30000)").await;
    assert_eq!(session.value(NEWEST).await, "30000");
}

#[tokio::test]
async fn a_tables_floor_beyond_the_fork_counts_once_however_many_read_it() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let proxy = Proxy::start(&cluster, &["cluster.routing.slow_start = '0s'"]).await;
    let (writer, reader) = (proxy.session(&database.name).await, proxy.session(&database.name).await);
    writer.run("SET pointsman.consistency = 'eventual'").await;
    reader.run("SET pointsman.consistency = 'global'").await;
    detach(&cluster, &[2, 1]).await;
    writer.run(WRITE).await;
    assert_eq!(reader.value(NEWEST).await, "20000");
    // Waits until the primary was seen at the write's position: only then that can be lost.
    writer.value("SHOW pointsman.position").await;

    cluster.stop(0, Stop::Kill).expect("it dies with what nobody else has");
    cluster.promote(1).expect("a replica takes over");
    cluster.follow(2, 1).expect("the other follows");

    let replica = cluster.node(2).port();
    let from = "SELECT inet_server_port() FROM t LIMIT 1";
    eventually("its reads use the replica", async || reader.value(from).await == replica.to_string()).await;
    assert_eq!(reader.value(NEWEST).await, "1");
    assert_eq!(proxy.metric("pointsman_lost_positions_total", &[]), 1.0, "{}", proxy.log());
}

#[tokio::test]
async fn a_replica_beyond_the_fork_serves_nothing_and_one_before_it_goes_on() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let proxy = Proxy::start(&cluster, &["cluster.routing.slow_start = '0s'"]).await;
    let session = proxy.session(&database.name).await;
    session.run("INSERT INTO t VALUES (2)").await;
    let behind = session.value("SHOW pointsman.position").await;
    detach(&cluster, &[1]).await;

    // Node 2 has replayed what node 1, which takes over, never gets.
    cluster.node(0).sql(&database.name, WRITE).expect("it takes writes");
    let has_all = || cluster.node(2).sql(&database.name, NEWEST);
    eventually("node 2 has it", async || has_all().is_ok_and(|newest| newest == "20000")).await;
    cluster.stop(0, Stop::Kill).expect("it dies");
    cluster.promote(1).expect("a replica takes over");

    proxy.wait_for_log("its history on timeline 1 went on past the fork to the primary's timeline 2").await;
    for level in ["eventual", "session", "global"] {
        session.run(&format!("SET pointsman.consistency = '{level}'")).await;
        for _ in 0..10 {
            assert_eq!(session.value(NEWEST).await, "2", "{level}");
        }
    }
    // What was written before the fork is no loss.
    session.run(&format!("SET pointsman.position = '{behind}'")).await;
    assert_eq!(session.value(NEWEST).await, "2");
    assert_eq!(proxy.metric("pointsman_lost_positions_total", &[]), 0.0);
}

#[tokio::test]
async fn a_replica_that_has_not_heard_of_the_promotion_serves_what_was_before_it() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let proxy = Proxy::start(&cluster, &[]).await;
    let session = proxy.session(&database.name).await;
    session.run("INSERT INTO t VALUES (2)").await;
    let replicas = [cluster.node(1).port(), cluster.node(2).port()];
    for port in replicas {
        eventually("its floor is met", async || session.port().await == port).await;
    }

    cluster.stop(0, Stop::Kill).expect("it dies");
    cluster.promote(1).expect("a replica takes over");
    proxy.wait_for_log("failover=true").await;

    assert_eq!(session.port().await, replicas[1], "a position before the fork counts for nothing");
    assert_eq!(session.value(NEWEST).await, "2");
}

#[tokio::test]
async fn a_crash_that_loses_writes_lowers_their_floors() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let proxy = Proxy::start(&cluster, &["cluster.routing.slow_start = '0s'"]).await;
    let session = proxy.session(&database.name).await;
    session.run("SET synchronous_commit = off").await;
    // What is committed without waiting for the disk stays in memory.
    let pid = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'";
    let pid = cluster.node(0).sql("postgres", pid).expect("it answers").parse().expect("a process");
    signal(pid, Signal::Stop);
    session.run("INSERT INTO t SELECT generate_series(2, 5000)").await;
    let token = session.value("SHOW pointsman.position").await;

    // The postmaster starts all of its processes anew, and goes on itself.
    signal(pid, Signal::Kill);

    proxy.wait_for_log("lost acknowledged positions in a crash").await;
    assert_eq!(session.value(NEWEST).await, "1", "nothing was lost: {token}");
    let primary = cluster.node(0).port();
    eventually("its reads use replicas", async || session.port().await != primary).await;
    assert_eq!(proxy.metric("pointsman_lost_positions_total", &[]), 1.0);
}
