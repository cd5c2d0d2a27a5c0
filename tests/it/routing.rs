//! Which server runs which statement.

use std::collections::HashSet;

use crate::support::{Database, Proxy, Stage, cluster, eventually, ports};

const WHERE: &str = "SELECT inet_server_port()";

#[tokio::test]
async fn autocommit_reads_are_shared_by_the_replicas_and_spare_the_primary() {
    let stage = Stage::set("", &[]).await;
    let session = stage.session().await;

    let simple = session.ports(WHERE, 40).await;
    let mut extended = Vec::new();
    for _ in 0..40 {
        extended.extend(ports(&session.query(WHERE, &[]).await.expect("a read is answered")));
    }

    let replicas: HashSet<u16> = stage.replica_ports().into_iter().collect();
    assert_eq!(simple.into_iter().collect::<HashSet<u16>>(), replicas, "simple protocol");
    assert_eq!(extended.into_iter().collect::<HashSet<u16>>(), replicas, "extended protocol");
}

#[tokio::test]
async fn every_write_runs_on_the_primary_and_no_replica_ever_refuses_one() {
    let stage = Stage::set(
        "CREATE TABLE t (id serial PRIMARY KEY, x int); CREATE SEQUENCE s;
         INSERT INTO t (x) VALUES (1);
         CREATE FUNCTION writes(int) RETURNS int LANGUAGE sql AS 'INSERT INTO t (x) VALUES ($1) RETURNING x';
         CREATE PROCEDURE does(int) LANGUAGE sql AS 'INSERT INTO t (x) VALUES ($1)';
         CREATE VIEW v AS SELECT writes(4) AS x; CREATE UNLOGGED TABLE u (x int)",
        &[],
    )
    .await;
    let writes = [
        "INSERT INTO t (x) VALUES (2)",
        "UPDATE t SET x = x + 1",
        "DELETE FROM t WHERE x < 0",
        "WITH d AS (DELETE FROM t WHERE x < 0 RETURNING x) SELECT count(*) FROM d",
        "WITH a AS (SELECT 1 AS x) INSERT INTO t (x) SELECT x FROM a",
        "MERGE INTO t USING (VALUES (1)) w (x) ON t.x = w.x WHEN MATCHED THEN DO NOTHING",
        "SELECT x FROM t FOR UPDATE",
        "SELECT x FROM t FOR KEY SHARE",
        "SELECT x INTO t2 FROM t",
        "CREATE TABLE t3 AS SELECT 1 AS x",
        "TRUNCATE t3",
        "ALTER TABLE t3 ADD y int",
        "COMMENT ON TABLE t3 IS 'three'",
        "DROP TABLE t3",
        "SELECT nextval('s')",
        "SELECT setval('s', 10)",
        "SELECT writes(3)",
        "SELECT x FROM v",
        "SELECT count(*) FROM u",
        "CALL does(5)",
        "DO $$ BEGIN INSERT INTO t (x) VALUES (6); END $$",
        "EXPLAIN ANALYZE UPDATE t SET x = 0",
        "ANALYZE t",
        "VACUUM t",
        "GRANT SELECT ON t TO pointsman",
        "SELECT pg_advisory_lock(1), pg_advisory_unlock(1)",
        "SELECT txid_current()",
        "SELECT lo_unlink(lo_create(0))",
        "LOCK TABLE t",
    ];

    let session = stage.session().await;
    for sql in writes {
        // LOCK TABLE alone fails as on the server: outside a transaction it makes no sense.
        let outcome = session.try_run(sql).await;
        assert_eq!(outcome.is_err(), sql.starts_with("LOCK"), "{sql}: {outcome:?}");
        if !sql.contains("t3") && !sql.contains("INTO t2") && !sql.starts_with("LOCK") {
            let outcome = session.query(sql, &[]).await;
            assert!(outcome.is_ok(), "{sql} in the extended protocol: {outcome:?}");
        }
    }

    assert_eq!(stage.database.errors_on_replicas(), Vec::<String>::new());
}

#[tokio::test]
async fn what_tells_a_primary_apart_is_answered_by_the_primary() {
    let stage = Stage::set("", &[]).await;
    let session = stage.session().await;

    for _ in 0..10 {
        assert_eq!(session.value("SELECT pg_is_in_recovery()").await, "f");
        assert_eq!(session.value("SHOW transaction_read_only").await, "off");
        assert_eq!(session.value("SHOW in_hot_standby").await, "off");
    }
}

#[tokio::test]
async fn reads_without_a_name_of_a_table_go_to_replicas_too() {
    let stage = Stage::set("CREATE TABLE t AS SELECT 1 AS x", &[]).await;
    let session = stage.session().await;

    for read in [
        "SELECT inet_server_port(), random(), now(), clock_timestamp()",
        "WITH a AS (SELECT x FROM t) SELECT inet_server_port() FROM a",
        "SELECT inet_server_port() FROM t WHERE x IN (SELECT x FROM t) UNION ALL SELECT inet_server_port() LIMIT 1",
        "VALUES (inet_server_port())",
        "SELECT inet_server_port() /* FOR UPDATE */ -- INSERT INTO t",
        "SELECT inet_server_port(), 'INSERT INTO t; DELETE FROM t', $$ DROP TABLE t $$, version()",
    ] {
        for port in session.ports(read, 4).await {
            assert!(stage.is_replica(port), "{read}");
        }
    }
}

#[tokio::test]
async fn a_transaction_runs_on_the_primary_and_a_read_only_one_on_one_replica() {
    let stage = Stage::set("", &[]).await;
    let session = stage.session().await;

    session.run("BEGIN").await;
    assert_eq!(session.ports(WHERE, 5).await, vec![stage.primary_port(); 5]);
    session.run("COMMIT").await;

    let mut used = HashSet::new();
    for _ in 0..20 {
        session.run("BEGIN READ ONLY").await;
        let ports = session.ports(WHERE, 3).await;
        session.run("COMMIT").await;
        assert!(ports.iter().all(|port| *port == ports[0] && stage.is_replica(*port)), "{ports:?}");
        used.insert(ports[0]);
    }
    assert_eq!(used.len(), 2, "read-only transactions use both replicas");
}

#[tokio::test]
async fn a_write_in_a_read_only_transaction_is_refused_as_the_server_does() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let session = stage.session().await;

    session.run("START TRANSACTION READ ONLY").await;
    assert_eq!(session.error("INSERT INTO t VALUES (1)").await, "25006");
    assert_eq!(session.error("SELECT 1").await, "25P02");
    session.run("ROLLBACK").await;

    assert_eq!(session.value("SELECT count(*) FROM t").await, "0");
}

#[tokio::test]
async fn a_serializable_transaction_runs_on_the_primary() {
    let stage = Stage::set("", &[]).await;
    let session = stage.session().await;

    session.run("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY").await;
    assert_eq!(session.port().await, stage.primary_port());
    session.run("COMMIT").await;

    session.run("SET default_transaction_isolation = serializable").await;
    assert_eq!(session.port().await, stage.primary_port());
}

#[tokio::test]
async fn several_statements_in_one_string_stay_together() {
    let stage = Stage::set("CREATE TABLE t (port int)", &[]).await;
    let session = stage.session().await;

    session.run("INSERT INTO t VALUES (inet_server_port()); INSERT INTO t SELECT inet_server_port()").await;
    // Another session: this one has written and may have to use the primary for a moment.
    let reader = stage.session().await;
    let rows = reader.run("SELECT inet_server_port(); SELECT inet_server_port()").await;
    let mixed =
        session.run("SELECT inet_server_port(); UPDATE t SET port = port; SELECT inet_server_port()").await;

    assert_eq!(rows[0], rows[1]);
    assert!(stage.is_replica(rows[0][0].as_deref().and_then(|port| port.parse().ok()).expect("a port")));
    let primary = Some(stage.primary_port().to_string());
    assert_eq!(mixed, vec![vec![primary.clone()], vec![primary]]);
}

#[tokio::test]
async fn comments_can_name_the_server() {
    let stage = Stage::set("", &[]).await;
    let session = stage.session().await;
    let second = stage.cluster.node(2);

    let primary = session.ports("/* pointsman: primary */ SELECT inet_server_port()", 5).await;
    let node = format!("SELECT /* pointsman: node={} */ inet_server_port()", second.address());
    let named = session.ports(&node, 5).await;

    assert_eq!(primary, vec![stage.primary_port(); 5]);
    assert_eq!(named, vec![second.port(); 5]);
}

#[tokio::test]
async fn the_route_of_the_last_statement_can_be_asked_for() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let session = stage.session().await;

    session.run("INSERT INTO t VALUES (1)").await;
    let route = session.value("SHOW pointsman.route").await;

    assert!(route.contains(&stage.cluster.node(0).address()), "{route}");
}

#[tokio::test]
async fn a_statement_nobody_can_parse_goes_to_the_primary() {
    let stage = Stage::set("", &[]).await;
    let session = stage.session().await;

    assert_eq!(session.error("SELEC nonsense FRO nowhere").await, "42601");

    assert_eq!(stage.database.errors_on_replicas(), Vec::<String>::new());
    assert!(stage.cluster.node(0).log().contains("SELEC nonsense"));
}

#[tokio::test]
async fn a_hidden_write_refused_by_a_replica_is_done_once_on_the_primary() {
    // Configured as a read: nothing but the replica's refusal can tell.
    let stage = Stage::set(
        "CREATE TABLE t (x int);
         CREATE FUNCTION hidden(int) RETURNS int LANGUAGE plpgsql AS
         'BEGIN INSERT INTO t VALUES ($1); RETURN $1; END'",
        &["cluster.routing.read_functions = ['hidden']"],
    )
    .await;
    let session = stage.session().await;

    for _ in 0..20 {
        assert_eq!(session.value("SELECT hidden(5)").await, "5");
    }

    assert_eq!(stage.database.ask(0, "SELECT count(*), sum(x) FROM t"), "20|100");
    let refused = stage.database.errors_on_replicas().len();
    assert!((1..20).contains(&refused), "refused {refused} times: it is to be learned");
}

#[tokio::test]
async fn a_session_reads_its_own_writes_while_replicas_lag() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let proxy = Proxy::start(&cluster, &[]).await;
    let session = proxy.session(&database.name).await;
    cluster.pause_replay(1).expect("replay can be paused");
    cluster.delay_replay(2, std::time::Duration::from_millis(200)).expect("replay can be delayed");

    for x in 1..=50 {
        session.run(&format!("INSERT INTO t VALUES ({x})")).await;
        assert_eq!(session.value("SELECT max(x) FROM t").await, x.to_string());
    }
    cluster.resume_replay(1).expect("replay goes on");
}

#[tokio::test]
async fn a_replica_that_falls_behind_max_lag_gets_no_reads_until_it_has_caught_up() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let proxy = Proxy::start(&cluster, &["cluster.routing.max_lag = '300ms'"]).await;
    let (writer, reader) = (proxy.session(&database.name).await, proxy.session(&database.name).await);
    let lagging = cluster.node(1).port();
    cluster.pause_replay(1).expect("replay can be paused");

    eventually("the lagging replica is left out", async || {
        writer.run("INSERT INTO t VALUES (1)").await;
        !reader.ports(WHERE, 30).await.contains(&lagging)
    })
    .await;
    cluster.resume_replay(1).expect("replay goes on");

    eventually("it is taken back", async || reader.ports(WHERE, 30).await.contains(&lagging)).await;
}

#[tokio::test]
async fn a_misspelt_hint_is_named_once_in_the_log_and_in_the_route() {
    let stage = Stage::set("", &[]).await;
    let session = stage.session().await;

    for _ in 0..3 {
        session.value("/* pointsman: primry, max_lag=soon */ SELECT 1").await;
    }

    let route = session.value("SHOW pointsman.route").await;
    assert!(route.ends_with(" not_understood=primry not_understood=max_lag=soon"), "{route}");
    stage.proxy.wait_for_log("hint=\"max_lag=soon\"").await;
    assert_eq!(stage.proxy.log().matches("hint=\"primry\"").count(), 1, "{}", stage.proxy.log());
    session.value("/* pointsman: replica */ SELECT 1").await;
    let route = session.value("SHOW pointsman.route").await;
    assert!(!route.contains("not_understood"), "{route}");
}

#[tokio::test]
async fn long_queries_go_where_short_ones_do_and_leave_nothing() {
    let stage = Stage::set("CREATE TABLE t (n int)", &[]).await;
    let session = stage.session().await;
    let rows: Vec<String> = (0..20_000).map(|n| format!("({n})")).collect();
    let ids: Vec<String> = (0..20_000).map(|n| n.to_string()).collect();

    let read = format!("SELECT inet_server_port() WHERE 7 IN ({})", ids.join(", "));
    let read = session.ports(&read, 4).await;
    session.run(&format!("INSERT INTO t VALUES {}", rows.join(", "))).await;

    assert!(read.iter().all(|port| stage.is_replica(*port)), "{read:?}");
    assert_eq!(session.value("SELECT count(*) FROM t").await, "20000");
    assert_eq!(stage.proxy.metric("pointsman_pins_total", &[]), 0.0);
}
