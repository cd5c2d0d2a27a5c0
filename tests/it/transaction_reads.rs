//! `routing.transaction_reads = "replica"`: a transaction reads on a replica until it writes.

use pointsman::demo::servers::Stop;

use crate::support::{Database, Proxy, Session, Stage, cluster, eventually, link::Link, mysql};

const TABLE: &str = "CREATE TABLE t (x int)";
const REPLICA: &str = "cluster.routing.transaction_reads = 'replica'";

/// Two reads of one transaction: simple and extended.
async fn read_twice(session: &Session) -> [u16; 2] {
    let row = session.query_one("SELECT inet_server_port()", &[]).await.expect("it is a read");
    [session.port().await, u16::try_from(row.get::<_, i32>(0)).expect("a port has 16 bits")]
}

#[tokio::test]
async fn a_transaction_reads_on_one_replica_until_it_writes() {
    let stage = Stage::set(TABLE, &[REPLICA]).await;
    let session = stage.session().await;
    let primary = stage.primary_port();

    session.run("BEGIN").await;
    let before = read_twice(&session).await;
    session.run("INSERT INTO t VALUES (1)").await;
    let after = read_twice(&session).await;
    session.run("COMMIT").await;
    let reader = stage.session().await;
    reader.run("BEGIN").await;
    let only = read_twice(&reader).await;
    reader.run("COMMIT").await;

    assert!(stage.is_replica(before[0]) && before[0] == before[1], "{before:?}");
    assert_eq!(after, [primary; 2]);
    assert!(stage.is_replica(only[0]), "{only:?}");
    assert_eq!(stage.database.ask(0, "SELECT count(*) FROM t"), "1");
}

#[tokio::test]
async fn what_needs_one_snapshot_or_a_setting_stays_on_the_primary() {
    let stage = Stage::set(TABLE, &[REPLICA]).await;
    let session = stage.session().await;

    for begin in [
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
        "BEGIN READ WRITE",
        "BEGIN|SET LOCAL work_mem = '1MB'",
        "BEGIN|SAVEPOINT s",
        "BEGIN|SELECT x FROM t FOR UPDATE",
        "SET default_transaction_isolation = 'repeatable read'|BEGIN",
    ] {
        for statement in begin.split('|') {
            session.run(statement).await;
        }
        assert_eq!(read_twice(&session).await, [stage.primary_port(); 2], "{begin}");
        session.run("ROLLBACK").await;
    }
}

#[tokio::test]
async fn reads_of_a_transaction_are_never_behind_what_its_session_wrote() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let proxy = Proxy::start(&cluster, &[REPLICA]).await;
    let (session, other) = (proxy.session(&database.name).await, proxy.session(&database.name).await);
    other.run("SET pointsman.consistency = 'global'").await;
    for replica in [1, 2] {
        cluster.pause_replay(replica).expect("replay can be paused");
    }

    // Begun on a replica, and then others write what it has to see.
    other.run("BEGIN").await;
    assert_eq!(other.value("SELECT count(*) FROM t").await, "0");
    for x in 1..=3 {
        session.run(&format!("INSERT INTO t VALUES ({x})")).await;
        session.run("BEGIN").await;
        assert_eq!(session.value("SELECT count(*) FROM t").await, x.to_string());
        session.run("ROLLBACK").await;
        assert_eq!(other.value("SELECT count(*) FROM t").await, x.to_string());
    }
    other.run("COMMIT").await;
}

#[tokio::test]
async fn a_write_that_was_taken_for_a_read_moves_the_transaction_to_the_primary() {
    let stage = Stage::set(
        "CREATE TABLE t (x int);
         CREATE FUNCTION hidden(int) RETURNS int LANGUAGE plpgsql AS
         'BEGIN INSERT INTO t VALUES ($1); RETURN $1; END'",
        &[REPLICA, "cluster.routing.read_functions = ['hidden']"],
    )
    .await;
    let session = stage.session().await;

    session.run("BEGIN").await;
    assert!(stage.is_replica(session.port().await));
    assert_eq!(session.value("SELECT hidden(5)").await, "5");
    assert_eq!(session.port().await, stage.primary_port());
    session.run("COMMIT").await;

    assert_eq!(stage.database.ask(0, "SELECT x FROM t"), "5");
}

#[tokio::test]
async fn an_error_on_the_replica_fails_the_transaction_as_on_a_server() {
    let stage = Stage::set(TABLE, &[REPLICA]).await;
    let session = stage.session().await;

    session.run("BEGIN").await;
    session.port().await;
    assert_eq!(session.error("SELECT 1 / 0").await, "22012");
    assert_eq!(session.error("INSERT INTO t VALUES (1)").await, "25P02");
    session.run("ROLLBACK").await;
    session.run("INSERT INTO t VALUES (2)").await;

    assert_eq!(stage.database.ask(0, "SELECT x FROM t"), "2");
}

#[tokio::test]
async fn a_transaction_that_has_only_read_survives_its_replica() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let proxy = Proxy::start(&cluster, &[REPLICA]).await;
    let session = proxy.session(&database.name).await;

    session.run("BEGIN").await;
    let port = session.port().await;
    let lost = cluster.nodes().iter().position(|node| node.port() == port).expect("it is a node");
    assert_ne!(lost, 0);
    cluster.stop(lost, Stop::Kill).expect("it dies");
    assert_ne!(session.port().await, port);
    session.run("INSERT INTO t VALUES (1)").await;
    session.run("COMMIT").await;

    assert_eq!(cluster.node(0).sql(&database.name, "SELECT x FROM t").expect("it answers"), "1");
}

#[tokio::test]
async fn repeatable_read_of_mysql_does_so_only_where_it_was_asked_for() {
    for (setting, reads_on_replica) in [("replica", false), ("replica-repeatable-read", true)] {
        let setting = format!("cluster.routing.transaction_reads = '{setting}'");
        let stage = mysql::Stage::set("CREATE TABLE t (x INT) ENGINE = InnoDB", &[&setting]).await;
        for begin in ["BEGIN", "SET autocommit = 0"] {
            let mut session = stage.session().await;
            session.run(begin).await;
            assert_eq!(stage.is_replica(session.port().await), reads_on_replica, "{begin}");
            session.run("INSERT INTO t VALUES (1)").await;
            assert_eq!(session.port().await, stage.primary_port());
            session.run("COMMIT").await;
        }
        let mut session = stage.session().await;
        assert_eq!(session.value("/* pointsman: primary */ SELECT COUNT(*) FROM t").await, "2");
    }
}

#[tokio::test]
async fn a_rollback_whose_server_is_lost_has_succeeded() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let link = Link::to(&cluster.node(0).address());
    let nodes = [link.address(), cluster.node(1).address()];
    let proxy = Proxy::start_unready(&nodes, &[]);
    proxy.wait_until_reads_use(&[cluster.node(1).port()]).await;
    let session = proxy.session(&database.name).await;
    session.run("BEGIN; INSERT INTO t VALUES (1)").await;

    link.stall();
    let rollback = tokio::spawn(async move { (session.try_run("ROLLBACK").await.is_ok(), session) });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    link.cut();
    link.resume();

    let (succeeded, session) = rollback.await.expect("the session does not panic");
    assert!(succeeded);
    session.run("INSERT INTO t VALUES (2)").await;
    assert_eq!(cluster.node(0).sql(&database.name, "SELECT x FROM t").expect("it answers"), "2");
}

#[tokio::test]
async fn a_user_whose_reads_all_stand_in_transactions_is_told_of_the_drivers_switch() {
    let stage = Stage::set(TABLE, &[]).await;
    let session = stage.session().await;
    let read = async || {
        for _ in 0..250 {
            session.run("BEGIN").await;
            session.run("SELECT count(*) FROM t").await;
            session.run("COMMIT").await;
        }
    };
    let told = || stage.proxy.log().matches("most reads of this user run on the primary").count();
    // The stage was waited for with any number of reads that stood alone.
    eventually("it is said", async || {
        read().await;
        told() > 0
    })
    .await;
    read().await;
    assert_eq!(told(), 1, "it is said once");
    assert!(stage.proxy.log().contains("autocommit=True"));
}
