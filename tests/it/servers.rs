//! The tests' own ground: what they assert elsewhere is true of the servers themselves.

use std::time::Duration;

use pointsman::demo::servers::APP;

use crate::support::{
    Database, Session, cluster, code,
    link::Link,
    wire::{self, Batch, Wire, first_columns, tags},
};

fn direct(port: u16, database: &str) -> String {
    format!("host=127.0.0.1 port={port} user={} password={} dbname={database}", APP.name, APP.password)
}

#[tokio::test]
async fn a_database_made_on_the_primary_is_on_every_replica() {
    let cluster = cluster::shared();
    let database = Database::with(cluster, "CREATE TABLE t AS SELECT 7 AS x");

    for node in cluster.nodes() {
        let session = Session::open(&direct(node.port(), &database.name)).await;
        assert_eq!(session.value("SELECT x FROM t").await, "7");
        assert_eq!(session.port().await, node.port());
    }

    let calls = database.calls("SELECT x FROM t");
    assert_eq!((calls.on_primary(), calls.on_replicas()), (1, 2));
}

#[tokio::test]
async fn a_replica_refuses_writes_as_read_only() {
    let cluster = cluster::shared();
    let database = Database::with(cluster, "CREATE TABLE t (x int)");
    let replica = Session::open(&direct(cluster.node(1).port(), &database.name)).await;

    assert_eq!(replica.error("INSERT INTO t VALUES (1)").await, "25006");
    let refused = replica.query("SELECT nextval('pg_class_oid_index')", &[]).await.expect_err("no sequence");
    assert_eq!(code(&refused), "42809");
}

#[tokio::test]
async fn the_bare_client_logs_in_pipelines_and_cancels() {
    let cluster = cluster::shared();
    let port = cluster.node(1).port();
    let mut wire = Wire::login(port, APP, "app").await;
    assert_eq!(wire.parameters["in_hot_standby"], "on");

    let batch = Batch::new().run("SELECT $1::text", &["a"]).run("SELECT 'b'", &[]).sync();
    let answer = wire.ask(&batch).await;
    assert_eq!((tags(&answer).as_str(), first_columns(&answer)), ("12DC12DCZ", vec!["a".into(), "b".into()]));

    wire.send(&Batch::new().query("SELECT pg_sleep(60)")).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    wire::cancel(port, &wire.key).await;
    let answer = wire.until_ready().await;
    assert_eq!((tags(&answer).as_str(), answer[1].code().as_str()), ("TEZ", "57014"));
}

#[tokio::test]
async fn a_link_passes_stalls_and_cuts() {
    let cluster = cluster::shared();
    let link = Link::to(&cluster.node(1).address());
    let session = Session::open(&direct(link.port(), "app")).await;
    assert_eq!(session.port().await, cluster.node(1).port());

    link.stall();
    let stalled = tokio::time::timeout(Duration::from_millis(100), session.port()).await;
    assert!(stalled.is_err(), "an answer passed a stalled link");
    link.resume();
    session.port().await;

    link.break_down();
    assert!(session.try_run("SELECT 1").await.is_err());
    link.mend();
    Session::open(&direct(link.port(), "app")).await.port().await;
}
