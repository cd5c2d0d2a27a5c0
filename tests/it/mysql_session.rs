//! Sessions of MySQL clients before real servers: what is carried, what pins, what is told.

use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable;
use pointsman::{
    demo::servers::APP,
    mysql::{
        command::code,
        packet::{self, capability as can},
    },
    sql::{Dialect, functions::builtin},
};

use crate::{
    both_makes,
    support::{
        eventually,
        mysql::{BASIC, Make, ONE, Session, Stage, client, create_schema, each_time_anew},
    },
};

both_makes!(
    reads_use_replicas_and_writes_the_primary,
    reads_with_spatial_functions_use_replicas_by_old_names_and_new,
    writes_are_read_back_at_once_and_reads_return_to_replicas,
    a_value_for_a_parameter_that_is_not_there_fails_nobody_else,
    a_write_that_was_taken_for_a_read_never_happens_on_a_replica,
    several_statements_and_several_results_pass,
    a_dump_is_restored,
    a_name_means_the_statement_that_was_prepared_last,
    a_prepared_statement_names_the_tables_of_its_own_sessions_schema,
    a_prepared_statement_is_read_by_its_own_sessions_settings,
    a_prepared_statement_is_judged_by_what_is_known_when_it_is_executed,
    what_a_string_did_before_it_failed_reaches_nobody_else,
    a_statement_is_deallocated_wherever_also_when_its_table_is_gone,
    a_definition_is_shown_as_it_is,
    kill_ends_what_another_session_runs_and_the_session,
    commands_of_every_kind_are_answered,
    a_client_that_pings_is_not_idle,
    a_statement_that_is_not_there_is_named_as_by_the_server,
    a_file_of_the_clients_is_loaded_and_long_statements_pass,
);

async fn reads_use_replicas_and_writes_the_primary(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT)", &[]).await;
    let mut session = stage.session().await;

    for _ in 0..20 {
        assert!(stage.is_replica(session.port().await));
    }
    assert_eq!(session.run("INSERT INTO t (x) VALUES (7)").await.insert_id, 1);
    for sql in ["SELECT @@port FROM t FOR UPDATE", "SELECT @@port FROM t LOCK IN SHARE MODE"] {
        assert_eq!(session.value(sql).await, stage.primary_port().to_string(), "{sql}");
    }
    assert_eq!(session.value("SELECT x FROM t").await, "7");
    assert_eq!(session.version.contains("MariaDB"), make == Make::MariaDb, "{}", session.version);
}

#[tokio::test]
async fn every_function_of_the_servers_own_is_known() {
    let node = Make::MariaDb.shared().node(0);
    // The word SCHEMAS is in that list by mistake.
    let names = "SELECT LOWER(function) FROM information_schema.sql_functions WHERE function <> 'SCHEMAS'";
    let names = node.sql("", names).expect("it answers");
    let unknown: Vec<&str> = names.lines().filter(|name| builtin(Dialect::Mysql, name).is_none()).collect();
    assert!(names.lines().count() > 200, "{names}");
    assert_eq!(unknown, [""; 0]);
}

async fn reads_with_spatial_functions_use_replicas_by_old_names_and_new(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    let mut session = stage.session().await;
    let old = "SELECT @@port + 0 * X(GeomFromText(AsText(PointFromWKB(AsBinary(POINT(1, 2))))))";
    let new = "SELECT @@port + 0 * ST_X(ST_PointFromWKB(ST_AsBinary(POINT(1, 2))))";
    let names = if make == Make::MariaDb {
        vec![old, new]
    } else {
        vec![new, "SELECT @@port, VERSION_WITH_UPDATE()"]
    };
    for sql in names {
        let port = session.value(sql).await.parse::<f64>().expect("a port is a number");
        assert!(stage.is_replica(port as u16), "{sql}");
    }
}

async fn writes_are_read_back_at_once_and_reads_return_to_replicas(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let mut session = stage.session().await;
    let mut on_replicas = 0;
    for x in 1..=100 {
        session.run(&format!("INSERT INTO t VALUES ({x})")).await;
        let row = session.run("SELECT MAX(x), @@port FROM t").await.results[0][0].clone();
        assert_eq!(row[0].as_deref(), Some(x.to_string().as_str()));
        on_replicas +=
            u32::from(stage.is_replica(row[1].as_deref().and_then(|port| port.parse().ok()).unwrap_or(0)));
    }
    eprintln!("{on_replicas} of 100 reads after a write ran on a replica");
    let primary = stage.primary_port();
    let session = tokio::sync::Mutex::new(session);
    eventually("reads use replicas again", async || session.lock().await.port().await != primary).await;
}

async fn a_value_for_a_parameter_that_is_not_there_fails_nobody_else(make: Make) {
    let stage = Stage::on(make, "", &["cluster.pool.size = 1"]).await;
    let (mut faulty, mut other) = (stage.session().await, stage.session().await);
    let prepare = b"SELECT ? /* pointsman: primary */";
    for session in [&mut faulty, &mut other] {
        session.exchange(code::STMT_PREPARE, prepare).await.expect("it is legal");
    }
    let execution = [&1_u32.to_le_bytes()[..], &[0, 1, 0, 0, 0, 0, 1, 253, 0, 1, b'v']].concat();
    for argument in [&[1, 0, 0, 0, 9, 0, b'x'][..], &[1, 0, 0, 0, 9]] {
        // The second is too short, which MySQL answers.
        faulty.send(code::STMT_SEND_LONG_DATA, argument).await;
        if argument.len() < 6 && make == Make::Mysql9 {
            assert_eq!(faulty.receive().await.expect_err("it is too short").errno, 1835);
        }
        let answer = faulty.exchange(code::STMT_EXECUTE, &execution).await.expect("an answer");
        assert_eq!((answer[0][1], &answer[0][2..4]), (packet::ERR, &1210_u16.to_le_bytes()[..]));
        for _ in 0..3 {
            let answer = other.exchange(code::STMT_EXECUTE, &execution).await.expect("an answer");
            assert_eq!(answer[0][1], 1, "{answer:?}");
        }
    }
    assert_eq!(other.value("SELECT 7").await, "7");
}

async fn a_write_that_was_taken_for_a_read_never_happens_on_a_replica(make: Make) {
    let stage = Stage::on(
        make,
        "CREATE TABLE t (x INT);
         CREATE FUNCTION sneaky() RETURNS INT DETERMINISTIC NO SQL RETURN 1;",
        &["cluster.routing.read_functions = ['sneaky']"],
    )
    .await;
    let mut session = stage.session().await;
    assert!(stage.is_replica(session.port().await));
    assert_eq!(session.value("SELECT sneaky()").await, "1");

    // As root on the replicas' side would: the function's body changes behind the proxy's back.
    stage
        .cluster
        .node(0)
        .sql(&stage.schema, "DROP FUNCTION sneaky; CREATE FUNCTION sneaky() RETURNS INT DETERMINISTIC BEGIN INSERT INTO t VALUES (1); RETURN 2; END")
        .expect("the body is legal");
    stage.cluster.wait_until_caught_up(0).expect("replicas follow");
    assert_eq!(session.value("SELECT sneaky()").await, "2");
    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "1");
    for node in 1..3 {
        let count =
            stage.cluster.node(node).sql(&stage.schema, "SELECT COUNT(*) FROM t").expect("it answers");
        assert!(count == "1" || count == "0", "{count}");
    }
    assert!(stage.proxy.metric("pointsman_reroutes_total", &["writes"]) >= 1.0);
}

async fn a_prepared_statement_is_judged_by_what_is_known_when_it_is_executed(make: Make) {
    // Names of its own: each counts for what it does in any schema. And a view that is hidden from the monitor
    // would leave what any function on these servers leaves.
    let sql = "CREATE TABLE t (x INT); CREATE FUNCTION beholds() RETURNS INT READS SQL DATA RETURN 1;
               CREATE FUNCTION jots() RETURNS INT DETERMINISTIC BEGIN INSERT INTO t VALUES (1); RETURN 2; END;
               CREATE VIEW overlook AS SELECT 1 AS x; GRANT SELECT ON overlook TO pointsman@'%'";
    // Or the connection would stay with the session.
    let clean = "cluster.routing.clean_functions = ['beholds']";
    let mut stage = Stage::on(make, sql, &[clean]).await;
    let session = tokio::sync::Mutex::new(stage.session().await);
    // Whether the primary ran it, prepared by either way.
    let on_primary = async |stage: &Stage, id: u32, name: &str| {
        let mut session = session.lock().await;
        let execution = [&id.to_le_bytes()[..], &[0], &1_u32.to_le_bytes()].concat();
        session.exchange(code::STMT_EXECUTE, &execution).await.expect("it runs");
        let by_id = session.value("SELECT @pointsman_route").await;
        session.run(&format!("EXECUTE {name}")).await;
        let by_name = session.value("SELECT @pointsman_route").await;
        [by_id, by_name].map(|route| route.contains(&format!(":{} ", stage.primary_port())))
    };
    for (name, text) in [("beholds", "SELECT beholds()"), ("looks_at", "SELECT x FROM overlook")] {
        let mut session = session.lock().await;
        session.exchange(code::STMT_PREPARE, text.as_bytes()).await.expect("it is prepared");
        session.run(&format!("PREPARE {name} FROM '{text}'")).await;
    }
    let mut other = stage.session().await;

    let reads = async |stage: &Stage| on_primary(stage, 1, "beholds").await == [false; 2];
    eventually("the catalog says that it reads", async || reads(&stage).await).await;
    stage.proxy.reload(&["cluster.routing.write_functions = ['beholds']"]);
    let writes = async || on_primary(&stage, 1, "beholds").await == [true; 2];
    eventually("the file says that it writes", writes).await;
    stage.proxy.reload(&["cluster.routing.write_functions = []"]);
    eventually("the file says so no more", async || reads(&stage).await).await;

    eventually("the view reads", async || on_primary(&stage, 2, "looks_at").await == [false; 2]).await;
    let reroutes = || stage.proxy.metric("pointsman_reroutes_total", &["writes"]);
    let before = reroutes();
    other.run("CREATE OR REPLACE VIEW overlook AS SELECT jots() AS x").await;
    assert_eq!(on_primary(&stage, 2, "looks_at").await, [true; 2]);
    assert_eq!(reroutes(), before);
}

async fn several_statements_and_several_results_pass(make: Make) {
    let stage = Stage::on(
        make,
        "CREATE TABLE t (x INT); CREATE PROCEDURE p() BEGIN SELECT 1; SELECT 2, 3; INSERT INTO t VALUES (9); END",
        &[],
    )
    .await;
    for extra in [0, can::DEPRECATE_EOF, can::SESSION_TRACK, can::DEPRECATE_EOF | can::SESSION_TRACK] {
        let mut session = Session::connect(stage.proxy.port(), APP, &stage.schema, BASIC | extra)
            .await
            .expect("it logs in");
        let answer = session.run("SELECT 1; SELECT @@port; INSERT INTO t VALUES (1)").await;
        assert_eq!(answer.results.len(), 2);
        assert_eq!(answer.results[1][0][0].as_deref(), Some(stage.primary_port().to_string().as_str()));
        let answer = session.run("CALL p()").await;
        assert_eq!(answer.results.len(), 2);
        assert_eq!(answer.results[1][0].len(), 2);
        assert_eq!(session.error("SELECT 1; SELECT nope").await, 1054);
        assert_eq!(session.value("SELECT 5").await, "5");
    }
    let mut single = Session::connect(stage.proxy.port(), APP, &stage.schema, BASIC & !can::MULTI_STATEMENTS)
        .await
        .expect("it logs in");
    assert_eq!(single.error("SELECT 1; SELECT 2").await, 1064);
}

async fn a_dump_is_restored(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    let mut session = stage.session().await;
    // As the mariadb client sends what mariadb-dump has written.
    for sql in [
        "/*M!999999 enable the sandbox mode */ \n/*!40101 SET @saved_cs_client     = @@character_set_client */",
        "/*!40101 SET character_set_client = utf8mb4 */",
        "CREATE TABLE `t` (`x` int DEFAULT NULL)",
        "/*!40101 SET character_set_client = @saved_cs_client */",
        "INSERT INTO `t` VALUES (1)",
    ] {
        session.run(sql).await;
    }
    assert_eq!(session.value("SELECT x FROM t").await, "1");
}

async fn a_name_means_the_statement_that_was_prepared_last(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let mut session = stage.session().await;
    for round in 0..3 {
        session.run("PREPARE s FROM 'SELECT 1'").await;
        assert_eq!(session.value("EXECUTE s").await, "1");
        session.run(&format!("SET @text = 'SELECT 2 + {round}'")).await;
        session.run("PREPARE s FROM @text").await;
        assert_eq!(session.value("EXECUTE s").await, (2 + round).to_string());
        session.run("INSERT INTO t VALUES (1)").await;
        assert_eq!(session.value("EXECUTE s").await, (2 + round).to_string());
        session.run("DEALLOCATE PREPARE s").await;
        assert_eq!(session.error("EXECUTE s").await, 1243);
    }
    let mut session = stage.session().await;
    session.run("PREPARE s FROM 'DELETE FROM t'").await;
    // A faulty statement leaves nothing under the name.
    assert_eq!(session.error("PREPARE s FROM 'SELECT * FROM missing'").await, 1146);
    assert_eq!(session.error("EXECUTE s").await, 1243);
    // Another session wrote: its rows are certain on the primary alone.
    assert_eq!(session.value("/* pointsman: primary */ SELECT COUNT(*) FROM t").await, "3");
}

async fn a_prepared_statement_names_the_tables_of_its_own_sessions_schema(make: Make) {
    const TABLE: &str = "CREATE TABLE t (x INT)";
    let stage = Stage::on(make, TABLE, ONE).await;
    let other_schema = create_schema(stage.cluster, TABLE);
    let mut session = stage.session().await;
    let mut other = Session::open(stage.proxy.port(), APP, &other_schema).await;

    for (session, value) in [(&mut session, 1), (&mut other, 2)] {
        session.run("PREPARE s FROM 'INSERT INTO t VALUES (?)'").await;
        session.run(&format!("SET @v = {value}")).await;
    }
    for _ in 0..3 {
        session.run("EXECUTE s USING @v").await;
        other.run("EXECUTE s USING @v").await;
    }
    // A schema that is chosen later is not the statement's.
    session.run(&format!("USE {other_schema}")).await;
    for _ in 0..3 {
        session.run("EXECUTE s USING @v").await;
        assert_eq!(session.value("SELECT DATABASE() FROM t FOR UPDATE").await, other_schema);
        other.run("EXECUTE s USING @v").await;
    }

    let asked = "/* pointsman: primary */ SELECT GROUP_CONCAT(x) FROM";
    assert_eq!(other.value(&format!("{asked} {}.t", stage.schema)).await, "1,1,1,1,1,1");
    assert_eq!(other.value(&format!("{asked} {other_schema}.t")).await, "2,2,2,2,2,2");
}

async fn a_prepared_statement_is_read_by_its_own_sessions_settings(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT); INSERT INTO t VALUES (7)", ONE).await;
    let settings = [
        ("SET NAMES utf8mb4", "SET NAMES latin1", "SELECT CONCAT(CHAR_LENGTH('é'))", ["1", "2"]),
        (
            "SET NAMES utf8mb4 COLLATE utf8mb4_general_ci",
            "SET collation_connection = utf8mb4_bin",
            "SELECT CONCAT('a' = 'A')",
            ["1", "0"],
        ),
        ("SET sql_mode = ''", "SET sql_mode = 'ANSI_QUOTES'", r#"SELECT CONCAT("x") FROM t"#, ["x", "7"]),
        (
            "SET default_week_format = 0",
            "SET default_week_format = 3",
            "SELECT CONCAT(WEEK('2008-01-01'))",
            ["0", "1"],
        ),
    ];
    for (first, second, text, meant) in settings {
        let (mut binary, mut sql) = (Vec::new(), Vec::new());
        let prepare = format!("PREPARE s FROM '{}'", text.replace('\'', "''"));
        for setting in [first, second] {
            let mut session = client(&stage, 32).await;
            session.query_drop(setting).await.expect("it sets");
            let statement = session.prep(text).await.expect("it prepares");
            binary.push((session, statement));
            let mut session = stage.session().await;
            let mut direct = Session::open(stage.primary_port(), APP, &stage.schema).await;
            for session in [&mut session, &mut direct] {
                session.run(setting).await;
                session.run(&prepare).await;
            }
            // MySQL converts such a text once more than it should.
            sql.push((session, direct.value("EXECUTE s").await));
        }
        for _ in 0..6 {
            for ((session, statement), meant) in binary.iter_mut().zip(meant) {
                let found: Option<String> = session.exec_first(&*statement, ()).await.expect("it executes");
                assert_eq!(found.as_deref(), Some(meant), "{text} behind {first}, {second}");
            }
            for (session, meant) in &mut sql {
                assert_eq!(session.value("EXECUTE s").await, *meant, "{text} behind {first}, {second}");
            }
        }
    }

    let mut session = stage.session().await;
    session.run("SET NAMES utf8mb4").await;
    session.run("PREPARE s FROM 'SELECT CHAR_LENGTH(''é''), @@character_set_client'").await;
    session.run("SET NAMES latin1").await;
    for _ in 0..6 {
        let row = session.run("EXECUTE s").await.results[0][0].clone();
        assert_eq!(row, [Some("1".into()), Some("latin1".into())]);
    }
}

async fn what_a_string_did_before_it_failed_reaches_nobody_else(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", ONE).await;
    let other_schema = create_schema(stage.cluster, "CREATE TABLE t (x INT)");
    let lock = format!("lock_of_{}", stage.schema);
    let asks = format!(
        "/* pointsman: primary */ SELECT CONCAT(DATABASE(), ' ', @@SESSION.default_week_format, ' ', IS_FREE_LOCK('{lock}'))"
    );
    let mut next = stage.session().await;
    let nothing = next.value(&asks).await;

    for leaves in [
        format!("USE {other_schema}; SELECT nope FROM t"),
        "SET SESSION default_week_format = 3; SELECT nope FROM t".to_owned(),
        "PREPARE mine FROM 'SELECT 7'; SELECT nope FROM t".to_owned(),
    ] {
        let mut one = stage.session().await;
        assert_eq!(one.error(&format!("/* pointsman: primary */ {leaves}")).await, 1054, "{leaves}");
        if leaves.starts_with("USE") {
            let database = "/* pointsman: primary */ SELECT DATABASE()";
            assert_eq!(one.value(database).await, other_schema, "as on the server");
        }
        assert_eq!(next.value(&asks).await, nothing, "{leaves}");
        assert_eq!(next.error("EXECUTE mine").await, 1243, "{leaves}");
    }

    let mut one = stage.session().await;
    one.run(&format!("PREPARE locks FROM 'SELECT GET_LOCK(''{lock}'', 0)'; EXECUTE locks")).await;
    drop((one, next));
    eventually("the lock is free", async || {
        let mut next = stage.session().await;
        next.value(&asks).await == nothing
    })
    .await;
}

async fn a_statement_is_deallocated_wherever_also_when_its_table_is_gone(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let mut session = stage.session().await;
    let names: Vec<String> = (0..20).map(|number| format!("s{number}")).collect();
    for name in &names {
        session.run(&format!("PREPARE {name} FROM 'SELECT * FROM t'")).await;
    }
    session.run("DROP TABLE t").await;
    for name in &names {
        session.run(&format!("DEALLOCATE PREPARE {name}")).await;
        assert_eq!(session.error(&format!("EXECUTE {name}")).await, 1243);
        assert_eq!(session.error(&format!("DEALLOCATE PREPARE {name}")).await, 1243);
    }
}

async fn a_definition_is_shown_as_it_is(make: Make) {
    let stage = Stage::on(make, "CREATE VIEW v AS SELECT 0 AS x", &[]).await;
    let mut session = stage.session().await;
    let mut reader = each_time_anew(&stage).await;

    for round in 1..=12 {
        session.run(&format!("CREATE OR REPLACE VIEW v AS SELECT {round} AS x")).await;
        let position = session.value("SELECT @pointsman_position").await;
        reader.query_drop(format!("SET @pointsman_position = '{position}'")).await.expect("it is taken");
        let shown: Option<(String, String, String, String)> =
            reader.exec_first("SHOW CREATE VIEW v", ()).await.expect("it is shown");
        let definition = shown.expect("a row").1;
        assert!(definition.ends_with(&format!("select {round} AS `x`")), "{round}: {definition}");
    }
}

async fn kill_ends_what_another_session_runs_and_the_session(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let mut victim = stage.session().await;
    let mut killer = stage.session().await;
    let number = victim.number;

    victim.send(3, b"SELECT SLEEP(30), 1").await;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    killer.run(&format!("KILL QUERY {number}")).await;
    // An interrupted SLEEP returns 1 instead of failing in some versions.
    match victim.answer().await {
        Ok(answer) => assert_eq!(answer.value(), "1"),
        Err(error) => assert_eq!(error.errno, 1317),
    }
    assert_eq!(victim.value("SELECT 2").await, "2");

    killer.run(&format!("KILL {number}")).await;
    assert!(victim.query("SELECT 3").await.is_err());
    assert_eq!(killer.error("KILL 4000000000").await, 1094);
}

#[tokio::test]
async fn connection_id_is_the_number_that_the_client_was_told() {
    let stage = Stage::set("CREATE TABLE t (id BIGINT)", &[]).await;
    let mut session = stage.session().await;
    let number = session.number.to_string();

    for sql in [
        "SELECT CONNECTION_ID()",
        "SELECT connection_id() FROM t RIGHT JOIN (SELECT 1 AS one) o ON TRUE",
        "/* pointsman: primary */ SELECT CONNECTION_ID() AS own",
        "SELECT 1 IN (SELECT 1), CONNECTION_ID(); SELECT 1",
    ] {
        let row = session.run(sql).await.results[0][0].clone();
        assert_eq!(row.last().cloned().flatten().as_deref(), Some(number.as_str()), "{sql}");
    }
    session.run("INSERT INTO t VALUES (CONNECTION_ID())").await;
    assert_eq!(session.value("SELECT id FROM t").await, number);
    session.run("SET @own = CONNECTION_ID()").await;
    assert_eq!(session.value("SELECT @own").await, number);
    session.run("BEGIN").await;
    assert_eq!(session.value("SELECT CONNECTION_ID() FROM t").await, number);
    session.run("COMMIT").await;

    let prepared = session.exchange(0x16, b"SELECT CONNECTION_ID()").await.expect("it is prepared");
    assert_eq!(prepared[0][1], packet::OK);
    let executed = session.exchange(0x17, &[1, 0, 0, 0, 0, 1, 0, 0, 0]).await.expect("it runs");
    let row = &executed[3];
    assert_eq!(row[3..7], session.number.to_le_bytes(), "{executed:?}");
    let mut direct = Session::open(stage.primary_port(), APP, &stage.schema).await;
    let question = b"SELECT CONNECTION_ID()";
    let told = direct.exchange(3, question).await.expect("it answers")[1].clone();
    let ours = session.exchange(3, question).await.expect("it answers")[1].clone();
    // Name, type and flags; the width in front of the type is that of the number.
    assert_eq!((&ours[..28], &ours[32..]), (&told[..28], &told[32..]));
    // KILL takes what it says, and only that.
    let mut killer = stage.session().await;
    killer.run(&format!("KILL {number}")).await;
    assert!(session.query("SELECT 1").await.is_err());
    // The client hears of its end before its number is free.
    let killer = tokio::sync::Mutex::new(killer);
    eventually("nobody has the number", async || {
        let again = killer.lock().await.query(&format!("KILL {number}")).await;
        again.is_err_and(|error| error.errno == 1094)
    })
    .await;
}

async fn a_client_that_pings_is_not_idle(make: Make) {
    let stage = Stage::on(make, "", &["cluster.limits.idle_client_timeout = '2s'"]).await;
    let mut session = stage.session().await;

    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        session.command(code::PING, b"").await.expect("it is served");
        // The client has nothing else to do.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    assert_eq!(session.value("SELECT 'alive'").await, "alive");
}

async fn a_statement_that_is_not_there_is_named_as_by_the_server(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    let mut direct = Session::open(stage.primary_port(), APP, "").await;
    let mut session = stage.session().await;

    for (command, rest) in [
        (code::STMT_EXECUTE, &[0, 1, 0, 0, 0][..]),
        (code::STMT_FETCH, &[1, 0, 0, 0]),
        (code::STMT_RESET, &[]),
    ] {
        let argument = [&99_u32.to_le_bytes(), rest].concat();
        let of_server = direct.command(command, &argument).await.expect_err("there is none");
        let of_proxy = session.command(command, &argument).await.expect_err("there is none");
        assert_eq!((of_proxy.errno, of_proxy.message), (of_server.errno, of_server.message));
    }
}

async fn commands_of_every_kind_are_answered(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let mut session = stage.session().await;
    session.command(0x0E, b"").await.expect("COM_PING");
    session.command(0x02, stage.schema.as_bytes()).await.expect("COM_INIT_DB");
    session.command(0x1B, &[1, 0]).await.expect("COM_SET_OPTION");
    assert_eq!(session.error("SELECT 1; SELECT 2").await, 1064);
    session.command(0x1B, &[0, 0]).await.expect("COM_SET_OPTION");
    session.run("SELECT 1; SELECT 2").await;
    session.run("SET @x = 3, wait_timeout = 99").await;
    session.command(0x1F, b"").await.expect("COM_RESET_CONNECTION");
    assert_eq!(session.run("SELECT @x").await.results[0][0][0], None);
    assert_ne!(session.value("SELECT @@wait_timeout").await, "99");
    assert_eq!(session.value("SELECT DATABASE()").await, stage.schema);
    session.send(0x09, b"").await;
    let (_, statistics) = session.receive().await.expect("COM_STATISTICS");
    assert!(statistics.starts_with(b"Uptime"), "{}", String::from_utf8_lossy(&statistics));
    session.send(0x04, b"t\0").await;
    let (_, column) = session.receive().await.expect("COM_FIELD_LIST");
    assert!(column.starts_with(b"\x03def"));
    session.receive().await.expect("its end");
    for (code, what) in
        [(0x12, "COM_BINLOG_DUMP"), (0x15, "COM_REGISTER_SLAVE"), (0x1E, "COM_BINLOG_DUMP_GTID")]
    {
        let error = session.command(code, &[0; 10]).await.expect_err(what);
        assert_eq!(error.errno, 1235, "{what}");
        assert!(error.message.contains("binary log"), "{what}: {}", error.message);
    }
    assert_eq!(session.value("SELECT 1").await, "1");
}

async fn a_file_of_the_clients_is_loaded_and_long_statements_pass(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT, y LONGTEXT)", &[]).await;
    let mut session = stage.session().await;
    session.send(3, b"LOAD DATA LOCAL INFILE 'x' INTO TABLE t").await;
    let (sequence, request) = session.receive().await.expect("it asks for the file");
    assert_eq!((sequence, request[0]), (1, packet::LOCAL_INFILE));
    let mut file = Vec::new();
    packet::put(&mut file, 2, |out| out.extend_from_slice(b"1\tone\n2\ttwo\n"));
    packet::put(&mut file, 3, |_| {});
    session.write(&file).await;
    session.answer().await.expect("it is loaded");
    assert_eq!(session.value("SELECT SUM(x) FROM t").await, "3");

    for megabytes in [1, 15] {
        let text = "y".repeat(megabytes << 20);
        session.run(&format!("REPLACE INTO t VALUES (7, '{text}')")).await;
        let value = session.value("SELECT y FROM t WHERE x = 7 ORDER BY LENGTH(y) DESC LIMIT 1").await;
        assert_eq!(value.len(), megabytes << 20);
    }
}

/// MySQL 9 has no mysql_native_password any more.
#[tokio::test]
async fn a_verifier_lets_its_user_in_and_opens_servers() {
    use sha1::{Digest, Sha1};
    let verifier = hex::encode_upper(Sha1::digest(Sha1::digest(APP.password)));
    let users = format!("cluster.users = [{{ name = '{}', password = '*{verifier}' }}]", APP.name);
    let stage = Stage::set("CREATE TABLE t (x INT)", &[&users]).await;

    let mut session = stage.session().await;
    session.run("INSERT INTO t VALUES (1)").await;
    assert_eq!(session.value("SELECT x FROM t").await, "1");

    let wrong = pointsman::demo::servers::Login { name: APP.name, password: "wrong" };
    let Err(refused) = Session::connect(stage.proxy.port(), wrong, "", BASIC).await else {
        panic!("it got in")
    };
    assert_eq!(refused.errno, 1045);
    let nobody = pointsman::demo::servers::Login { name: "nobody", password: "wrong" };
    let Err(refused) = Session::connect(stage.proxy.port(), nobody, "", BASIC).await else {
        panic!("it got in")
    };
    assert_eq!(refused.errno, 1045);
}
