//! What a statement leaves for the next one in MySQL: ids, warnings, numbers of rows.

use mysql_async::prelude::Queryable;
use pointsman::{demo::servers::APP, mysql::command::code};

use crate::{
    both_makes,
    support::{
        eventually,
        mysql::{Make, ONE, Session, Stage, each_time_anew},
    },
};

both_makes!(
    a_prepared_question_is_about_the_statement_before,
    the_last_insert_id_is_the_sessions_own,
    a_session_that_keeps_its_connection_for_its_ids_is_counted_once,
    the_last_insert_id_is_told_beside_what_the_statement_before_left,
    no_last_insert_id_is_told_beside_what_a_read_left,
    an_id_that_was_given_is_the_sessions_own,
    what_draws_no_id_leaves_nobody_elses,
    warnings_are_of_the_sessions_own_statements,
    commands_that_are_no_statements_tell_of_no_other_sessions_warnings,
    found_rows_are_never_another_sessions,
    a_string_answers_what_it_asks_of_itself,
    an_insert_under_locked_tables_leaves_its_id,
    an_id_is_nobody_elses_however_its_variable_is_written,
);

async fn an_id_is_nobody_elses_however_its_variable_is_written(make: Make) {
    let table = "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT); INSERT INTO t VALUES (40, 1);
        CREATE FUNCTION id_there() RETURNS INT READS SQL DATA RETURN @@session . identity";
    let stage = Stage::on(make, table, ONE).await;
    for asks in
        ["@@session.last_insert_id", "@@session . last_insert_id", "@@local. `identity`", "id_there()"]
    {
        let mut session = stage.session().await;
        let id = session.run("INSERT INTO t (x) VALUES (1)").await.insert_id;
        assert_eq!(session.value(&format!("SELECT {asks}")).await, id.to_string(), "{asks}");
        drop(session);
        let mut other = stage.session().await;
        other.run("/* pointsman: primary */ SELECT 1").await;
        assert_eq!(other.value(&format!("SELECT {asks}")).await, "0", "{asks}");
    }
}

/// Only MariaDB has sequences.
#[tokio::test]
async fn a_function_tells_a_sequences_last_value_as_the_session_has_it() {
    let code = "CREATE SEQUENCE s;
        CREATE FUNCTION last_one() RETURNS INT READS SQL DATA RETURN LASTVAL(s);
        CREATE FUNCTION previous_one() RETURNS INT READS SQL DATA RETURN PREVIOUS VALUE FOR s";
    let stage = Stage::on(Make::MariaDb, code, &[]).await;
    let (mut session, mut other) = (stage.session().await, stage.session().await);

    for _ in 0..4 {
        let drawn = session.value("SELECT NEXTVAL(s)").await;
        other.run("SELECT NEXTVAL(s)").await;
        assert_eq!(session.value("SELECT last_one()").await, drawn);
        assert_eq!(session.value("SELECT previous_one()").await, drawn);
    }
}

async fn a_prepared_question_is_about_the_statement_before(make: Make) {
    let rows = "CREATE TABLE t (x INT); INSERT INTO t VALUES (1), (2), (3), (4), (5)";
    let stage = Stage::on(make, rows, &[]).await;
    let mut client = each_time_anew(&stage).await;
    for round in 0..10 {
        let wanted = 1 + round % 5;
        let read: Vec<u32> = client.exec("SELECT x FROM t WHERE x <= ?", (wanted,)).await.expect("rows");
        assert_eq!(read.len(), wanted);
        let found: Result<Option<usize>, _> = client.exec_first("SELECT FOUND_ROWS()", ()).await;
        match found {
            Ok(found) => assert_eq!(found, Some(wanted), "round {round}"),
            // Who asks for the first time may come too late, and is told so.
            Err(error) => assert_eq!(round, 0, "{error}"),
        }
    }
}

async fn the_last_insert_id_is_the_sessions_own(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT)", &[]).await;
    let mut sessions = Vec::new();
    for _ in 0..5 {
        sessions.push(stage.session().await);
    }
    for round in 0..4 {
        let mut ids = Vec::new();
        for session in &mut sessions {
            ids.push(session.run("INSERT INTO t (x) VALUES (1)").await.insert_id);
        }
        for (session, id) in sessions.iter_mut().zip(ids) {
            assert_eq!(session.value("SELECT LAST_INSERT_ID()").await, id.to_string(), "round {round}");
        }
    }
}

async fn a_session_that_keeps_its_connection_for_its_ids_is_counted_once(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT)", ONE).await;
    let (mut session, mut other) = (stage.session().await, stage.session().await);

    session.run("INSERT INTO t (x) VALUES (1)").await;
    other.run("INSERT INTO t (x) VALUES (1)").await;
    assert_eq!(session.error("SELECT LAST_INSERT_ID()").await, 1105, "another session needed the connection");
    for _ in 0..2 {
        session.run("INSERT INTO t (x) VALUES (1)").await;
    }
    // What comes behind it is answered when it has been counted.
    session.run("SELECT 1").await;

    assert_eq!(stage.proxy.metric("pointsman_pins_total", &["reason=\"sequence\""]), 1.0);
}

async fn what_draws_no_id_leaves_nobody_elses(make: Make) {
    const TABLE: &str = "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT)";
    const ASKS: &str = "SELECT LAST_INSERT_ID()";
    let stage = Stage::on(make, TABLE, ONE).await;
    let mut other = stage.session().await;
    for (number, (statements, wanted)) in [
        (&["INSERT INTO t VALUES (1000, 1)"][..], "0"),
        (&["UPDATE t SET x = x + 1 LIMIT 1"], "0"),
        (&["INSERT INTO t (x) VALUES (1); INSERT INTO t VALUES (2000, 1)", "SELECT 1"], "the first"),
        (&["INSERT INTO t (x) VALUES (1); SELECT 1"], "the first"),
        (&["INSERT INTO t (x) VALUES (1)", "INSERT INTO t VALUES (3000, 1)"], "the first"),
    ]
    .into_iter()
    .enumerate()
    {
        let drawn = other.run("INSERT INTO t (x) VALUES (1)").await.insert_id;
        let mut session = stage.session().await;
        for statement in statements {
            session.run(statement).await;
        }
        let wanted = if wanted == "0" { "0".to_owned() } else { (drawn + 1).to_string() };
        assert_eq!(session.value(ASKS).await, wanted, "{number}");
        other.run("DELETE FROM t WHERE id >= 1000").await;
        other.run("ALTER TABLE t AUTO_INCREMENT = 10").await;
    }

    let mut session = stage.session().await;
    session.run("INSERT INTO t (x) VALUES (1)").await;
    other.run("INSERT INTO t (x) VALUES (1)").await;
    session.run("UPDATE t SET x = x + 1 LIMIT 1").await;
    assert_eq!(session.error(ASKS).await, 1105, "its value was lost, and is not the other's");

    let mut session = stage.session().await;
    session.run("SELECT LAST_INSERT_ID(7)").await;
    assert_eq!(session.value(ASKS).await, "7");
    drop(session);
    let mut next = stage.session().await;
    assert_eq!(next.value(ASKS).await, "0");
}

async fn the_last_insert_id_is_told_beside_what_the_statement_before_left(make: Make) {
    const TABLE: &str = "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT)";
    let stage = Stage::on(make, TABLE, ONE).await;
    for asked in ["ROW_COUNT()", "@@warning_count"] {
        for between in [&["BEGIN", "COMMIT"][..], &["SET @a = 1"], &["BEGIN", "SET @a = 1", "ROLLBACK"]] {
            let mut rows = Vec::new();
            for port in [stage.primary_port(), stage.proxy.port()] {
                let mut session = Session::open(port, APP, &stage.schema).await;
                let id = session.run("INSERT INTO t (x) VALUES (1)").await.insert_id;
                for text in between {
                    session.run(text).await;
                }
                rows.push(session.run(&format!("SELECT LAST_INSERT_ID() - {id}, {asked}")).await.results);
            }
            assert_eq!(rows[1], rows[0], "{between:?}, {asked}");
        }
    }
}

/// Where a session has no id, it is asked for in the connection that has the read's warnings.
async fn no_last_insert_id_is_told_beside_what_a_read_left(make: Make) {
    const TABLE: &str = "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT)";
    let stage = Stage::on(make, TABLE, ONE).await;
    let asks = "SELECT LAST_INSERT_ID(), @@warning_count";
    let in_one = format!("SELECT 1/0; {asks}");
    for texts in [
        &["SELECT 1/0", asks][..],
        &["START TRANSACTION READ ONLY", "SELECT 1/0", asks, "COMMIT"],
        &["SELECT 1/0", asks, asks],
        &[&in_one],
    ] {
        let mut told = Vec::new();
        for port in [stage.primary_port(), stage.proxy.port()] {
            // Whose id the connections have until then.
            let mut other = Session::open(port, APP, &stage.schema).await;
            other.run("INSERT INTO t (x) VALUES (1)").await;
            other.run("SELECT 1").await;
            other.send(code::QUIT, b"").await;
            let mut session = Session::open(port, APP, &stage.schema).await;
            let mut answers = Vec::new();
            for text in texts {
                let answer = session.query(text).await;
                answers.push(answer.map(|answer| answer.results).map_err(|error| error.errno));
            }
            told.push(answers);
        }
        assert_eq!(told[1], told[0], "{texts:?}");
    }
    // The id is in another connection, or it is another session's.
    let mut session = stage.session().await;
    stage.session().await.run("INSERT INTO t (x) VALUES (1)").await;
    session.run("/* pointsman: primary */ SELECT 1/0").await;
    assert_eq!(session.error(asks).await, 1105);
    session.run("INSERT INTO t (x) VALUES (2)").await;
    eventually("reads use replicas again", async || {
        let mut reader = stage.session().await;
        stage.is_replica(reader.port().await)
    })
    .await;
    session.run("/* pointsman: consistency=eventual */ SELECT 1/0").await;
    assert_eq!(session.error(asks).await, 1105);
}

/// `SELECT LAST_INSERT_ID(500)`, of which no answer tells.
async fn an_id_that_was_given_is_the_sessions_own(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT)", &[]).await;
    let (mut session, mut other) = (stage.session().await, stage.session().await);
    assert_eq!(session.value("SELECT LAST_INSERT_ID(500)").await, "500");
    for _ in 0..5 {
        other.run("INSERT INTO t (x) VALUES (1)").await;
        other.run("/* pointsman: primary */ SELECT 1").await;
        assert_eq!(session.value("SELECT LAST_INSERT_ID()").await, "500");
        assert_ne!(other.value("SELECT LAST_INSERT_ID()").await, "500");
    }
}

/// MariaDB keeps them until a statement uses a table.
async fn warnings_are_of_the_sessions_own_statements(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", ONE).await;
    let leaves = ["SELECT 1/0 /* pointsman: primary */", "INSERT INTO missing VALUES (1)", "SELECT 1/0"];
    let asks: [&[&str]; 5] = [
        &["BEGIN", "SELECT 1", "SHOW WARNINGS", "SELECT @@warning_count", "ROLLBACK"],
        &["START TRANSACTION READ ONLY", "SELECT 1", "SHOW WARNINGS", "ROLLBACK"],
        &["BEGIN", "SELECT 1/0", "SELECT 1", "SHOW WARNINGS", "SELECT x FROM t", "SHOW WARNINGS", "ROLLBACK"],
        &["DO GET_LOCK('warnings', 0)", "SHOW WARNINGS", "DO RELEASE_LOCK('warnings')"],
        &["SET SESSION max_error_count = 1000", "BEGIN", "DO 1", "SHOW WARNINGS", "COMMIT"],
    ];
    for texts in asks {
        for left in leaves {
            let mut answers = Vec::new();
            for port in [stage.primary_port(), stage.proxy.port()] {
                let mut other = Session::open(port, APP, &stage.schema).await;
                // Some are errors.
                let _ = other.query(left).await;
                other.run("SET @a = 1").await;
                let mut session = Session::open(port, APP, &stage.schema).await;
                let mut told = Vec::new();
                for text in texts {
                    told.push(session.run(text).await.results);
                }
                answers.push(told);
            }
            assert_eq!(answers[0], answers[1], "{texts:?} behind another session's {left}");
        }
    }
}

/// SET_OPTION goes ahead of strings of several statements in PHP.
async fn commands_that_are_no_statements_tell_of_no_other_sessions_warnings(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", ONE).await;
    let leaves: [(u8, &[u8]); 3] = [
        (code::INIT_DB, b"missing"),
        (code::STMT_PREPARE, b"SELECT x FROM missing"),
        (code::FIELD_LIST, b"missing\0"),
    ];
    let commands: [(u8, &[u8]); 2] = [(code::SET_OPTION, &[0, 0]), (code::INIT_DB, stage.schema.as_bytes())];
    // Whichever replica they come to.
    for round in 0..5 {
        for (code, argument) in leaves {
            for (command, told) in commands {
                let (mut other, mut session) = (stage.session().await, stage.session().await);
                other.command(code, argument).await.expect_err("there is none");
                session.command(command, told).await.expect("it is done");
                let warnings = session.run("SHOW WARNINGS").await.results;
                assert_eq!(warnings, [Vec::<Vec<_>>::new()], "{round}: {command} behind {code}");
            }
        }
    }
}

/// Where a session was told no rows itself, or what it ran since leaves FOUND_ROWS() alone.
async fn found_rows_are_never_another_sessions(make: Make) {
    let rows = "CREATE TABLE t (x INT); INSERT INTO t VALUES (1), (2), (3), (4), (5), (6), (7)";
    let stage = Stage::on(make, rows, ONE).await;
    let asks: [(&[&str], &str); 14] = [
        (&["SELECT FOUND_ROWS()"], "0"),
        (&["BEGIN", "SELECT FOUND_ROWS()"], "0"),
        (&["SET autocommit = 0", "SELECT FOUND_ROWS()"], "0"),
        (&["START TRANSACTION READ ONLY", "SELECT FOUND_ROWS()"], "0"),
        (&["CREATE TEMPORARY TABLE mine (x INT)", "SELECT FOUND_ROWS()"], "0"),
        (&["DO GET_LOCK('found', 0)", "SELECT FOUND_ROWS()"], "0"),
        (&["SET @n = FOUND_ROWS()", "SELECT @n"], "0"),
        (&["DELETE FROM t WHERE x > 90", "SELECT FOUND_ROWS()"], "0"),
        (&["DELETE FROM t WHERE x > 90; SELECT FOUND_ROWS()"], "0"),
        (&["PREPARE p FROM 'SELECT FOUND_ROWS()'", "EXECUTE p"], "0"),
        (&["SELECT FOUND_ROWS(), LAST_INSERT_ID()"], "0"),
        (&["BEGIN", "INSERT INTO t SELECT FOUND_ROWS() + 900", "SELECT x FROM t WHERE x >= 900"], "900"),
        // What it was told itself is still there.
        (
            &[
                "/* pointsman: primary */ SELECT x FROM t LIMIT 3",
                "BEGIN",
                "SELECT 1 UNION SELECT 2",
                "DELETE FROM t WHERE x > 90",
                "SELECT FOUND_ROWS()",
            ],
            "2",
        ),
        (&["BEGIN", "SELECT SQL_CALC_FOUND_ROWS x FROM t LIMIT 1", "SELECT FOUND_ROWS()"], "7"),
    ];
    for (texts, wanted) in asks {
        for left in
            ["SELECT SQL_CALC_FOUND_ROWS 1 FROM t LIMIT 1", "SELECT x FROM t /* pointsman: primary */"]
        {
            stage.session().await.run(left).await;
            let mut session = stage.session().await;
            let (last, before) = texts.split_last().expect("there is one");
            for text in before {
                session.run(text).await;
            }
            let answer = session.run(last).await;
            let value = answer.results.last().expect("a result")[0][0].as_deref();
            assert_eq!(value, Some(wanted), "{texts:?} behind another session's {left}");
        }
    }
}

async fn a_string_answers_what_it_asks_of_itself(make: Make) {
    const TABLE: &str = "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT)";
    let stage = Stage::on(make, TABLE, &["cluster.pool.size = 1"]).await;
    let mut other = stage.session().await;
    other.run("INSERT INTO t (x) VALUES (1), (2)").await;
    for (string, wanted) in [
        ("UPDATE t SET x = x + 1 WHERE id < 3; SELECT ROW_COUNT()", "2"),
        ("SELECT SQL_CALC_FOUND_ROWS 3 FROM t LIMIT 1; SELECT FOUND_ROWS()", "4"),
        ("SELECT CAST('x' AS SIGNED); SELECT @@warning_count", "1"),
        ("INSERT INTO t (x) VALUES (4); SELECT LAST_INSERT_ID()", "7"),
    ] {
        // What the session has left before is lost to the other one.
        let mut session = stage.session().await;
        session.run("INSERT INTO t (x) VALUES (3)").await;
        session.run("SELECT x FROM t LIMIT 1").await;
        other.run("UPDATE t SET x = x + 1").await;
        let answer = session.run(string).await;
        let last = answer.results.last().expect("a result")[0][0].as_deref();
        assert_eq!(last, Some(wanted), "{string}");
    }
}

async fn an_insert_under_locked_tables_leaves_its_id(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT)", &[]).await;
    let (mut session, mut other) = (stage.session().await, stage.session().await);
    session.run("LOCK TABLES t WRITE").await;
    let id = session.run("INSERT INTO t (x) VALUES (1)").await.insert_id;
    session.run("UNLOCK TABLES").await;
    other.run("INSERT INTO t (x) VALUES (2)").await;

    assert_eq!(session.value("SELECT LAST_INSERT_ID()").await, id.to_string());
}
