//! MySQL and MariaDB servers that die and change their role.

use pointsman::demo::servers::{APP, Stop};

use crate::{
    both_makes,
    support::{
        PATIENCE, eventually,
        mysql::{self, BASIC, Make, Session},
    },
};

both_makes!(
    a_killed_replica_fails_no_reads_and_is_taken_back,
    a_promoted_replica_gets_the_writes_and_the_old_primary_none,
    reads_after_a_write_wait_for_no_replica_and_never_see_old_data,
);

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
