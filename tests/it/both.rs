//! What the engine promises, on PostgreSQL, MariaDB and MySQL from one text.

use pointsman::demo::servers::Stop;

use crate::{
    both_databases,
    support::{
        both::{Engine, Servers, Stage},
        eventually,
    },
};

both_databases!(
    reads_use_replicas_and_writes_the_primary,
    a_session_reads_its_own_writes,
    a_transaction_stays_on_one_server,
    a_read_only_transaction_uses_one_replica,
    a_table_that_a_replica_has_not_replayed_is_found,
    a_hint_chooses_the_node,
    few_connections_serve_many_sessions,
    a_killed_replica_fails_no_reads,
    writes_are_held_until_there_is_a_primary,
    a_replica_that_stands_still_shows_no_old_data,
);

const TABLE: &str = "CREATE TABLE t (x int)";

async fn reads_use_replicas_and_writes_the_primary(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    for _ in 0..20 {
        assert!(stage.is_replica(session.port().await));
    }
    session.value("INSERT INTO t VALUES (1)").await;
    let port: u16 = session.value("SELECT $port FROM t FOR UPDATE").await.parse().expect("a port");
    assert!(!stage.is_replica(port));
}

async fn a_session_reads_its_own_writes(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    for x in 1..=50 {
        session.value(&format!("INSERT INTO t VALUES ({x})")).await;
        assert_eq!(session.value("SELECT max(x) FROM t").await, x.to_string());
    }
}

async fn a_transaction_stays_on_one_server(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    session.value("BEGIN").await;
    let port = session.port().await;
    assert!(!stage.is_replica(port));
    session.value("INSERT INTO t VALUES (1)").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await, "1");
    assert_eq!(session.port().await, port);
    session.value("ROLLBACK").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await, "0");
}

async fn a_read_only_transaction_uses_one_replica(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    session.value("START TRANSACTION READ ONLY").await;
    let port = session.port().await;
    assert!(stage.is_replica(port));
    for _ in 0..5 {
        assert_eq!(session.port().await, port);
    }
    assert!(session.ask("INSERT INTO t VALUES (1)").await.is_err());
    session.value("ROLLBACK").await;
}

async fn a_table_that_a_replica_has_not_replayed_is_found(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &["cluster.routing.consistency = 'eventual'"]).await;
    let mut session = stage.session().await;
    for number in 0..20 {
        session.value(&format!("CREATE TABLE t{number} (x int)")).await;
        assert_eq!(session.value(&format!("SELECT count(*) FROM t{number}")).await, "0");
    }
    assert!(session.ask("SELECT * FROM never_made").await.is_err());
}

async fn a_hint_chooses_the_node(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    for _ in 0..5 {
        let port: u16 = session.value("/* pointsman: primary */ SELECT $port").await.parse().expect("a port");
        assert!(!stage.is_replica(port));
    }
}

async fn few_connections_serve_many_sessions(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &["cluster.pool.size = 2"]).await;
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(stage.session().await);
    }
    for (x, session) in sessions.iter_mut().enumerate() {
        session.value(&format!("INSERT INTO t VALUES ({x})")).await;
        session.value("SELECT 1").await;
    }
    let count = sessions[0].value("/* pointsman: primary */ SELECT count(*) FROM t").await;
    assert_eq!(count, "20");
}

async fn a_killed_replica_fails_no_reads(engine: Engine) {
    let servers = Servers::own(engine);
    let (proxy, database) = servers.proxy(TABLE, &["cluster.routing.slow_start = '0s'"]).await;
    let mut session = servers.session(&proxy, &database).await.expect("it logs in");
    servers.stop(1, Stop::Kill);
    for _ in 0..100 {
        assert_eq!(session.port().await, servers.port(2));
    }
    servers.start(1);
    let (session, lost) = (tokio::sync::Mutex::new(session), servers.port(1));
    eventually("reads use it again", async || session.lock().await.port().await == lost).await;
}

async fn writes_are_held_until_there_is_a_primary(engine: Engine) {
    let servers = Servers::own(engine);
    let (proxy, database) = servers.proxy(TABLE, &[]).await;
    let mut session = servers.session(&proxy, &database).await.expect("it logs in");
    assert!(servers.session(&proxy, &database).await.is_ok());
    servers.stop(0, Stop::Kill);
    // Reads go on while nobody takes writes.
    assert_ne!(session.port().await, servers.port(0));
    let held = tokio::spawn(async move {
        let answer = session.ask("INSERT INTO t VALUES (1)").await;
        (session, answer)
    });
    servers.promote(1, &[2]);
    let (mut session, answer) = held.await.expect("it does not panic");
    assert_eq!(answer, Ok(String::new()));
    assert_eq!(session.value("SELECT max(x) FROM t").await, "1");
}

async fn a_replica_that_stands_still_shows_no_old_data(engine: Engine) {
    let servers = Servers::own(engine);
    let (proxy, database) = servers.proxy(TABLE, &[]).await;
    let mut session = servers.session(&proxy, &database).await.expect("it logs in");
    servers.pause_replay(1);
    servers.pause_replay(2);
    for x in 1..=10 {
        session.value(&format!("INSERT INTO t VALUES ({x})")).await;
        assert_eq!(session.value("SELECT max(x) FROM t").await, x.to_string());
        assert_eq!(session.port().await, servers.port(0));
    }
    servers.resume_replay(2);
    let (session, fresh) = (tokio::sync::Mutex::new(session), servers.port(2));
    eventually("the one that has caught up reads", async || session.lock().await.port().await == fresh).await;
}
