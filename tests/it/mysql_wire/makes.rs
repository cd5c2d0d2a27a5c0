//! Commands that MariaDB and MySQL answer each in its own way, and the proxy before them in the same.

use super::{execute, of_statement, prepare, queries, same};
use crate::{
    both_makes,
    support::mysql::{Make, Stage},
};
use pointsman::mysql::command::code;

both_makes!(
    what_ends_a_read_only_transaction_is_answered_as_by_the_server,
    writes_in_a_read_only_transaction_are_answered_as_by_the_server,
    statements_of_xa_are_answered_as_by_the_server,
    what_is_no_statement_is_answered_as_by_the_server,
    a_fetch_without_a_cursor_is_answered_as_by_the_server,
    values_for_a_parameter_that_is_not_there_are_answered_as_by_the_server,
    what_the_statement_before_left_is_kept_in_variables,
);

const TABLE: &str = "CREATE TABLE t (x INT, UNIQUE (x)); INSERT INTO t VALUES (1), (2), (3)";

const READ: &str = "SELECT x FROM t FORCE INDEX (x) WHERE x = 1";

async fn what_ends_a_read_only_transaction_is_answered_as_by_the_server(make: Make) {
    let stage = Stage::on(make, TABLE, &[]).await;
    let mut scripts = Vec::new();
    for begin in [
        &["START TRANSACTION READ ONLY", READ][..],
        &["START TRANSACTION READ ONLY"],
        &["SET TRANSACTION READ ONLY", "BEGIN", READ],
        &["SET TRANSACTION READ ONLY"],
        &["SET autocommit = 0", "SET TRANSACTION READ ONLY", READ],
    ] {
        for behind in [
            &["CREATE TABLE made (x INT)", "INSERT INTO made VALUES (1)", "COMMIT", "DROP TABLE made"][..],
            &["CREATE TABLE made (x INT); INSERT INTO made VALUES (1)", "COMMIT", "DROP TABLE made"],
            &["CREATE TABLE t (x INT)", "SELECT 1", "COMMIT"],
            &["LOCK TABLES t WRITE", "DELETE FROM t WHERE x > 90", "UNLOCK TABLES", "COMMIT"],
            &["FLUSH TABLES", "DELETE FROM t WHERE x > 90", "COMMIT"],
            &["ANALYZE TABLE t", "DELETE FROM t WHERE x > 90", "COMMIT"],
            &["START TRANSACTION READ WRITE", "DELETE FROM t WHERE x > 90", "ROLLBACK"],
            &["COMMIT; DELETE FROM t WHERE x > 90", "COMMIT"],
        ] {
            scripts.push((begin[0], queries(&[begin, behind].concat())));
        }
    }
    for again in ["BEGIN", "START TRANSACTION", "START TRANSACTION READ ONLY"] {
        scripts.push((again, queries(&["START TRANSACTION READ ONLY", again, READ, "COMMIT", READ])));
        scripts.push((again, queries(&["START TRANSACTION READ ONLY", READ, again, READ, "COMMIT", READ])));
        scripts.push((again, queries(&["SET SESSION TRANSACTION READ ONLY", again, READ, "COMMIT", READ])));
    }
    same(&stage, scripts).await;
}

async fn writes_in_a_read_only_transaction_are_answered_as_by_the_server(make: Make) {
    let stage = Stage::on(make, TABLE, &[]).await;
    const WRITES: [&str; 5] = [
        "INSERT INTO t VALUES (9)",
        "UPDATE t SET x = 9 WHERE x = 1",
        "DELETE FROM t",
        "INSERT INTO missing VALUES (9)",
        "SELECT 1; DELETE FROM t; SELECT 2",
    ];
    let mut scripts = Vec::new();
    for write in WRITES {
        for (begin, end) in [
            (&["START TRANSACTION READ ONLY", READ][..], "COMMIT"),
            (&["START TRANSACTION READ ONLY"], "ROLLBACK"),
            (&["SET TRANSACTION READ ONLY", "BEGIN", READ], "COMMIT"),
            (&["SET TRANSACTION READ ONLY"], READ),
            (&["SET SESSION TRANSACTION READ ONLY"], "SET SESSION TRANSACTION READ WRITE"),
            (&["SET SESSION TRANSACTION READ ONLY", "BEGIN"], "COMMIT"),
        ] {
            scripts.push((begin[0], queries(&[begin, &[write, "SHOW WARNINGS", write, end, READ]].concat())));
        }
    }
    let begin = (code::QUERY, b"START TRANSACTION READ ONLY".to_vec());
    scripts.push(("prepared", vec![prepare("DELETE FROM t"), begin, execute(1, 0, &[]), execute(1, 0, &[])]));
    same(&stage, scripts).await;
}

async fn what_the_statement_before_left_is_kept_in_variables(make: Make) {
    let stage = Stage::on(make, TABLE, &[]).await;
    const CONDITION: &str =
        "GET DIAGNOSTICS CONDITION 1 @c = MYSQL_ERRNO, @s = RETURNED_SQLSTATE, @m = MESSAGE_TEXT";
    // Not of the types that they have: a literal is signed, and NULL of any.
    const TOLD: &str = "SELECT CAST(CONCAT_WS(' ', IFNULL(@n, '-'), IFNULL(@c, '-'), IFNULL(@s, '-'), IFNULL(@m, '-'), \
         IFNULL(@w, '-'), @n + 1) AS CHAR(200))";
    let mut scripts = Vec::new();
    for statement in [
        "SELECT 1/0",
        "SELECT CAST('it''s \"x\" \\\\' AS SIGNED)",
        "SELECT 1",
        READ,
        "SELECT * FROM missing",
        "INSERT INTO t VALUES (1)",
        "INSERT IGNORE INTO t VALUES (1)",
    ] {
        for asks in [
            &["GET DIAGNOSTICS @n = NUMBER"][..],
            &["GET DIAGNOSTICS @n = NUMBER", CONDITION, "SHOW WARNINGS"],
            &["GET DIAGNOSTICS @n = NUMBER", CONDITION, "BEGIN", TOLD, "COMMIT"],
            &["SELECT @@warning_count, @@error_count INTO @w, @n"],
            &["SET @w = @@warning_count"],
            &["SET @w = @@error_count + 1, @n = 'n'"],
        ] {
            let texts = [&[statement], asks, &[TOLD, READ, TOLD]].concat();
            scripts.push((statement, queries(&texts)));
            let within = [&["START TRANSACTION READ ONLY", statement], asks, &["COMMIT", TOLD]].concat();
            // MariaDB keeps what was there where a statement uses no table.
            if !statement.starts_with("INSERT") && !asks.contains(&"BEGIN") && statement != "SELECT 1" {
                scripts.push((statement, queries(&within)));
            }
        }
    }
    scripts.push((
        "nothing",
        queries(&["GET DIAGNOSTICS @n = NUMBER", TOLD, "GET DIAGNOSTICS @w = NUMBER", TOLD]),
    ));
    let rows = ["DELETE FROM t WHERE x > 90", "GET DIAGNOSTICS @n = ROW_COUNT, @w = NUMBER", TOLD];
    scripts.push(("rows", queries(&[&rows[..], &[READ, rows[1], TOLD]].concat())));
    same(&stage, scripts).await;
}

async fn statements_of_xa_are_answered_as_by_the_server(make: Make) {
    let stage = Stage::on(make, TABLE, &[]).await;
    let mut scripts = Vec::new();
    for begin in [&[][..], &["BEGIN"], &["BEGIN", READ], &["START TRANSACTION READ ONLY"]] {
        for statement in [
            "XA START 'x'",
            "XA END 'x'",
            "XA PREPARE 'x'",
            "XA COMMIT 'x'",
            "XA COMMIT 'x' ONE PHASE",
            "XA ROLLBACK 'x'",
        ] {
            let end = ["XA END 'x'", "XA ROLLBACK 'x'", "ROLLBACK", READ];
            scripts.push((statement, queries(&[begin, &[statement], &end].concat())));
        }
    }
    for inside in
        ["BEGIN", "COMMIT", "ROLLBACK", "CREATE TABLE made (x INT)", "SAVEPOINT a", "XA START 'y'", READ]
    {
        let texts = ["XA START 'x'", inside, "XA END 'x'", inside, "XA COMMIT 'x' ONE PHASE", READ];
        scripts.push((inside, queries(&texts)));
    }
    same(&stage, scripts).await;
}

async fn what_is_no_statement_is_answered_as_by_the_server(make: Make) {
    let stage = Stage::on(make, TABLE, &[]).await;
    let texts =
        ["", ";", "; ;", "/* a */", "/* a */;", "/* a */ ; /* b */", "-- a", "/*! */", "/*! ; */", " /* a"];
    let mut scripts = Vec::new();
    for text in texts {
        scripts.push((text, queries(&[text, "BEGIN", text, READ, text, "COMMIT", text])));
        scripts.push((text, vec![prepare(text), prepare(READ), execute(1, 0, &[])]));
    }
    same(&stage, scripts).await;
}

async fn a_fetch_without_a_cursor_is_answered_as_by_the_server(make: Make) {
    const READ_ONLY: u8 = 1;
    let stage = Stage::on(make, TABLE, &[]).await;
    let fetch = || of_statement(code::STMT_FETCH, 1, &10_u32.to_le_bytes());
    let behind = vec![prepare(READ), execute(1, READ_ONLY, &[]), fetch(), fetch()];
    same(&stage, vec![("never opened", vec![prepare(READ), fetch()]), ("behind the last row", behind)]).await;
}

async fn values_for_a_parameter_that_is_not_there_are_answered_as_by_the_server(make: Make) {
    let stage = Stage::on(make, TABLE, &[]).await;
    let long = |parameter: u16, data: &[u8]| {
        of_statement(code::STMT_SEND_LONG_DATA, 1, &[&parameter.to_le_bytes()[..], data].concat())
    };
    let reset = || of_statement(code::STMT_RESET, 1, b"");
    let (word, ping) = (|| execute(1, 0, &[Some("word")]), || (code::PING, Vec::new()));
    same(
        &stage,
        vec![
            ("alone", vec![prepare("SELECT ?"), long(1, b"x"), ping(), word(), word(), reset(), word()]),
            (
                "beside a good one",
                vec![prepare("SELECT ?"), long(0, b"x"), long(7, b"x"), word(), reset(), word()],
            ),
            ("before a good one", vec![prepare("SELECT ?"), long(7, b"x"), long(0, b"x"), word(), word()]),
            (
                "without parameters",
                vec![prepare("SELECT 1"), long(0, b"x"), execute(1, 0, &[]), execute(1, 0, &[])],
            ),
        ],
    )
    .await;
}
