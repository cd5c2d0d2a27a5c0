//! What `global` sees where one table's change is another's too.

use pointsman::demo::{mysql::MysqlCluster, servers::APP};

use crate::{
    both_makes,
    support::{
        Proxy,
        mysql::{self, Make, Session},
    },
};

both_makes!(
    a_global_read_sees_what_a_view_a_trigger_or_a_cascade_changed,
    a_global_read_sees_what_turning_autocommit_on_committed,
    a_global_read_sees_what_text_and_functions_wrote_that_nobody_read,
);

const TABLES: &str = "\
CREATE TABLE parent (id INT PRIMARY KEY);
CREATE TABLE child (id INT, FOREIGN KEY (id) REFERENCES parent (id) ON DELETE CASCADE);
CREATE VIEW children AS SELECT * FROM child;
CREATE TABLE log (id INT);
CREATE TABLE plain (id INT);
INSERT INTO plain VALUES (1);
CREATE TABLE other (id INT);
INSERT INTO other VALUES (1);
CREATE TRIGGER note AFTER INSERT ON parent FOR EACH ROW INSERT INTO log VALUES (NEW.id)";

async fn a_global_read_sees_what_a_view_a_trigger_or_a_cascade_changed(make: Make) {
    let cluster = make.own();
    let schema = mysql::create_schema(&cluster, TABLES);
    let function = "CREATE FUNCTION harmless() RETURNS INT DETERMINISTIC NO SQL RETURN 7";
    cluster.node(0).sql(&schema, function).expect("it is legal");
    cluster.wait_until_caught_up(0).expect("replicas follow");
    let proxy = mysql::proxy(&cluster, &["cluster.routing.consistency = 'global'"]).await;
    let mut writer = Session::open(proxy.port(), APP, &schema).await;
    let mut reader = Session::open(proxy.port(), APP, &schema).await;
    // The catalog is there as soon as a function that only reads is known to.
    let primary = cluster.node(0).port().to_string();
    let reader_cell = tokio::sync::Mutex::new(&mut reader);
    crate::support::eventually("the catalog is known", async || {
        reader_cell.lock().await.value("SELECT @@port + 0 * harmless()").await != primary
    })
    .await;
    cluster.pause_replay(1).expect("it pauses");
    cluster.pause_replay(2).expect("it pauses");

    for (write, read, seen) in [
        // A word before the table's name is not its name.
        ("UPDATE IGNORE plain SET id = 2", "SELECT id FROM plain", "2"),
        ("UPDATE LOW_PRIORITY other SET id = 3", "SELECT id FROM other", "3"),
        ("INSERT INTO parent VALUES (1)", "SELECT COUNT(*) FROM log", "1"),
        ("INSERT INTO child VALUES (1)", "SELECT COUNT(*) FROM children", "1"),
        ("DELETE FROM parent WHERE id = 1", "SELECT COUNT(*) FROM child", "0"),
    ] {
        writer.run(write).await;
        assert_eq!(reader.value(read).await, seen, "{write}: {read}");
    }
}

/// A proxy and two sessions that are to see what anybody wrote, while no replica follows any more.
async fn before_paused_replicas(cluster: &MysqlCluster, schema: &str) -> (Proxy, Session, Session) {
    cluster.wait_until_caught_up(0).expect("replicas follow");
    let proxy = mysql::proxy(cluster, &["cluster.routing.consistency = 'global'"]).await;
    let writer = Session::open(proxy.port(), APP, schema).await;
    let mut reader = Session::open(proxy.port(), APP, schema).await;
    let replicas = [1, 2].map(|replica| cluster.node(replica).port().to_string());
    assert!(replicas.contains(&reader.value("SELECT @@port").await), "reads use replicas");
    for replica in [1, 2] {
        cluster.pause_replay(replica).expect("it pauses");
    }
    (proxy, writer, reader)
}

/// `SET autocommit = 1` commits; drivers say it where an app goes back to single statements.
async fn a_global_read_sees_what_turning_autocommit_on_committed(make: Make) {
    let cluster = make.own();
    let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT)");
    let (_proxy, mut writer, mut reader) = before_paused_replicas(&cluster, &schema).await;

    let ways = [
        "SET autocommit = 1",
        "SET @@session.autocommit := ON, @a = 1",
        "SET autocommit = DEFAULT",
        "SET autocommit = @on",
    ];
    for (at, on) in ways.into_iter().enumerate() {
        writer.run("SET @on = 1, autocommit = 0").await;
        writer.run("INSERT INTO t VALUES (1)").await;
        writer.run(on).await;
        for session in [&mut writer, &mut reader] {
            assert_eq!(session.value("SELECT COUNT(*) FROM t").await, (at + 1).to_string(), "{on}");
        }
    }
}

async fn a_global_read_sees_what_text_and_functions_wrote_that_nobody_read(make: Make) {
    let cluster = make.own();
    let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT)");
    let adds = "CREATE FUNCTION adds() RETURNS INT DETERMINISTIC MODIFIES SQL DATA
        BEGIN INSERT INTO t VALUES (1); RETURN 1; END";
    cluster.node(0).sql(&schema, adds).expect("it is legal");
    // Its definition is not the monitor's to see.
    cluster.node(0).sql(&schema, "CREATE VIEW hidden AS SELECT adds() AS x").expect("it is legal");
    let (_proxy, mut writer, mut reader) = before_paused_replicas(&cluster, &schema).await;

    writer.run("SET @text = 'INSERT INTO t VALUES (1)'").await;
    writer.run("PREPARE p FROM @text").await;
    let mut ways = vec!["EXECUTE p", "SET @x = adds()", "SET @x = (SELECT adds())", "SELECT x FROM hidden"];
    if make == Make::MariaDb {
        ways.push("EXECUTE IMMEDIATE @text");
    } else {
        ways.push("SET SESSION sort_buffer_size = 300000 + adds()");
    }
    for (at, write) in ways.into_iter().enumerate() {
        writer.run(write).await;
        assert_eq!(reader.value("SELECT COUNT(*) FROM t").await, (at + 1).to_string(), "{write}");
    }
}
