//! Every command is answered as the server itself answers it, byte for byte.

mod makes;

use pointsman::{
    demo::servers::APP,
    mysql::{
        command::code,
        packet::{self, capability as can},
    },
};

use crate::support::{
    mysql::{BASIC, Make, Session, Stage},
    mysql_frames::Frame,
};

/// What a client does, on one connection.
type Script = Vec<(u8, Vec<u8>)>;

fn queries(texts: &[&str]) -> Script {
    texts.iter().map(|text| (code::QUERY, text.as_bytes().to_vec())).collect()
}

/// An id that no server has come to: it counts statements over all connections.
const UNKNOWN: u32 = 4_000_000_000;

/// COM_STMT_EXECUTE; `values` are strings.
fn execute(id: u32, cursor: u8, values: &[Option<&str>]) -> (u8, Vec<u8>) {
    let mut argument = id.to_le_bytes().to_vec();
    argument.extend_from_slice(&[cursor, 1, 0, 0, 0]);
    if !values.is_empty() {
        let mut nulls = vec![0_u8; values.len().div_ceil(8)];
        for (at, _) in values.iter().enumerate().filter(|(_, value)| value.is_none()) {
            nulls[at / 8] |= 1 << (at % 8);
        }
        argument.extend_from_slice(&nulls);
        argument.push(1);
        values.iter().for_each(|_| argument.extend_from_slice(&[253, 0]));
        for value in values.iter().flatten() {
            packet::put_lenenc_bytes(&mut argument, value.as_bytes());
        }
    }
    (code::STMT_EXECUTE, argument)
}

fn prepare(text: &str) -> (u8, Vec<u8>) {
    (code::STMT_PREPARE, text.as_bytes().to_vec())
}

fn of_statement(code: u8, id: u32, more: &[u8]) -> (u8, Vec<u8>) {
    (code, [&id.to_le_bytes()[..], more].concat())
}

/// Runs a script on a connection of its own, and returns the packets of each answer. Statements
/// have the numbers in which they were prepared: servers go on counting where another left off.
async fn answers(port: u16, schema: &str, capabilities: u64, script: &Script) -> Vec<Vec<Frame>> {
    let mut session = Session::connect(port, APP, schema, capabilities).await.expect("it logs in");
    let mut ids: Vec<[u8; 4]> = Vec::new();
    let mut answers = Vec::new();
    for (code, argument) in script {
        let mut argument = argument.clone();
        let number = argument.first().copied().filter(|_| is_of_statement(*code));
        let id = number.and_then(|number| ids.get(usize::from(number).checked_sub(1)?).copied());
        if let Some(id) = id {
            argument[..4].copy_from_slice(&id);
        }
        let Ok(mut frames) = session.exchange(*code, &argument).await else {
            answers.push(vec![b"the connection ended".to_vec()]);
            break;
        };
        if *code == code::STMT_PREPARE && frames[0][1] == packet::OK {
            ids.push(frames[0][2..6].try_into().expect("four bytes"));
            frames[0][2..6].copy_from_slice(&(ids.len() as u32).to_le_bytes());
        }
        if let Some((id, number)) = id.zip(number) {
            let told = format!("({})", u32::from_le_bytes(id));
            frames.iter_mut().for_each(|frame| replace(frame, &told, &format!("({number})")));
        }
        answers.push(frames);
    }
    answers
}

fn is_of_statement(code: u8) -> bool {
    use code::{STMT_BULK_EXECUTE, STMT_CLOSE, STMT_EXECUTE, STMT_FETCH, STMT_RESET, STMT_SEND_LONG_DATA};
    [STMT_BULK_EXECUTE, STMT_CLOSE, STMT_EXECUTE, STMT_FETCH, STMT_RESET, STMT_SEND_LONG_DATA].contains(&code)
}

fn replace(frame: &mut Frame, told: &str, by: &str) {
    if let Some(at) = frame.windows(told.len()).position(|part| part == told.as_bytes()) {
        frame.splice(at..at + told.len(), by.bytes());
    }
}

/// Compares the answers of the primary and of the proxy to each script.
async fn same(stage: &Stage, scripts: Vec<(&str, Script)>) {
    same_with(stage, BASIC, scripts).await;
}

async fn same_with(stage: &Stage, capabilities: u64, scripts: Vec<(&str, Script)>) {
    let mut wrong = Vec::new();
    for (what, script) in &scripts {
        for extra in [0, can::DEPRECATE_EOF] {
            let direct = answers(stage.primary_port(), &stage.schema, capabilities | extra, script).await;
            let through = answers(stage.proxy.port(), &stage.schema, capabilities | extra, script).await;
            for (at, (direct, through)) in direct.iter().zip(&through).enumerate() {
                if direct != through {
                    let (code, argument) = &script[at];
                    wrong.push(format!(
                        "{what} ({extra:#x}): {code:#04x} {}\n  server: {}\n  proxy:  {}",
                        String::from_utf8_lossy(argument),
                        shown(direct),
                        shown(through),
                    ));
                }
            }
            if direct.len() != through.len() {
                wrong.push(format!("{what}: {} answers, and {} of the proxy", direct.len(), through.len()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn shown(frames: &[Frame]) -> String {
    let each = |frame: &Frame| {
        let part = &frame[..frame.len().min(200)];
        format!("{:?}", bytes::Bytes::copy_from_slice(part))
    };
    frames.iter().map(each).collect::<Vec<_>>().join(" | ")
}

/// Plans are told by flags: an index is named where statistics could choose otherwise on a replica.
const TABLE: &str = "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT, y VARCHAR(100), UNIQUE (x));
     INSERT INTO t (x, y) VALUES (1, 'one'), (2, 'two'), (3, NULL);
     CREATE PROCEDURE results() BEGIN SELECT 1; SELECT x FROM t FORCE INDEX (x) ORDER BY x; END;
     CREATE PROCEDURE fails() BEGIN SELECT 1; SELECT * FROM missing; SELECT 2; END;
     CREATE PROCEDURE loops() FOR row IN (SELECT x FROM t ORDER BY x) DO SELECT row.x; END FOR;
     CREATE PROCEDURE out_parameter(OUT a INT) BEGIN SET a = 7; END";

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table, an entry per habit of a client")]
async fn statements_of_the_text_protocol_are_answered_as_by_the_server() {
    let stage = Stage::set(TABLE, &[]).await;
    let script = |texts: &[&str]| queries(texts);
    same(
        &stage,
        vec![
            (
                "reads",
                script(&[
                    "SELECT 1",
                    "SELECT x, y FROM t FORCE INDEX (x) ORDER BY x",
                    "SELECT * FROM t WHERE x > 5",
                ]),
            ),
            ("empty", script(&["", " ", ";", "-- nothing", "/* nothing */", "SELECT 2"])),
            ("errors", script(&["SELEC 1", "SELECT * FROM missing", "SELECT nope FROM t", "SELECT 1"])),
            (
                "several",
                script(&["SELECT 1; SELECT 2; SELECT 3", "SELECT 1; SELECT nope; SELECT 3", "SELECT 4"]),
            ),
            ("several with an end", script(&["SELECT 1;", "SELECT 1; ", "SELECT 1;;", "SELECT 1; -- end"])),
            (
                "results of procedures",
                script(&["CALL results()", "CALL fails()", "CALL results()", "CALL loops()", "SELECT 5"]),
            ),
            (
                "writes",
                script(&[
                    "CREATE OR REPLACE TABLE w (id INT AUTO_INCREMENT PRIMARY KEY, x INT UNIQUE)",
                    "INSERT INTO w (x) VALUES (1), (2)",
                    "INSERT INTO w (x) VALUES (1)",
                    "INSERT IGNORE INTO w (x) VALUES (1), (9)",
                    "UPDATE w SET x = x + 10 WHERE x = 2",
                    "UPDATE w SET x = x WHERE x = 12",
                    "REPLACE INTO w VALUES (1, 5)",
                    "INSERT INTO w (x) VALUES (77) RETURNING id",
                    "DELETE FROM w",
                    "DROP TABLE w",
                ]),
            ),
            (
                "transactions",
                script(&[
                    "BEGIN",
                    "SELECT 1",
                    "INSERT INTO t (id, x) VALUES (50, 50)",
                    "SAVEPOINT a",
                    "ROLLBACK TO a",
                    "RELEASE SAVEPOINT a",
                    "ROLLBACK",
                    "COMMIT",
                    "ROLLBACK",
                    "START TRANSACTION READ ONLY",
                    "SELECT x FROM t WHERE x = 1",
                    "COMMIT",
                    "START TRANSACTION WITH CONSISTENT SNAPSHOT",
                    "COMMIT",
                    "SAVEPOINT b",
                    "ROLLBACK TO b",
                    "BEGIN",
                    "BEGIN",
                    "SELECT 2",
                    "COMMIT",
                ]),
            ),
            (
                "modes of a transaction",
                script(&[
                    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
                    "BEGIN",
                    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
                    "SET TRANSACTION READ ONLY",
                    "SELECT 1",
                    "COMMIT",
                    "START TRANSACTION READ ONLY",
                    "SET TRANSACTION READ WRITE",
                    "ROLLBACK",
                    "BEGIN",
                    "INSERT INTO t (id, x) VALUES (51, 51)",
                    "SET TRANSACTION READ ONLY",
                    "ROLLBACK",
                    "SET TRANSACTION READ ONLY",
                    "BEGIN",
                    "COMMIT",
                    "BEGIN",
                    "COMMIT",
                    "SET TRANSACTION READ ONLY",
                    "START TRANSACTION READ WRITE",
                    "COMMIT",
                    "START TRANSACTION READ ONLY, READ WRITE",
                    "SET TRANSACTION READ ONLY",
                    "SET SESSION TRANSACTION READ WRITE",
                    "BEGIN",
                    "INSERT INTO t (id, x) VALUES (52, 52)",
                    "ROLLBACK",
                ]),
            ),
            (
                "chains",
                script(&[
                    "BEGIN",
                    "INSERT INTO t (id, x) VALUES (60, 60)",
                    "ROLLBACK AND CHAIN",
                    "SELECT COUNT(*) FROM t",
                    "COMMIT AND CHAIN",
                    "SELECT 1",
                    "ROLLBACK AND NO CHAIN",
                    "SELECT 1",
                    "BEGIN",
                    "COMMIT AND CHAIN",
                    "SELECT 2",
                    "COMMIT NO RELEASE",
                    "SELECT 3",
                    "COMMIT AND CHAIN",
                    "SELECT 4",
                    "ROLLBACK",
                ]),
            ),
            ("releases", script(&["COMMIT NO RELEASE", "BEGIN", "SELECT 1", "COMMIT RELEASE", "SELECT 1"])),
            ("a release of nothing", script(&["BEGIN", "ROLLBACK RELEASE", "SELECT 1"])),
            ("a release that fails", script(&["COMMIT AND CHAIN RELEASE", "SELECT 1"])),
            (
                "autocommit off",
                script(&[
                    "SET autocommit = 0",
                    "SELECT 1",
                    "SELECT x FROM t WHERE x = 1",
                    "COMMIT",
                    "SET @a = 1",
                    "SELECT nope",
                    "INSERT INTO t (id, x) VALUES (70, 70)",
                    "ROLLBACK",
                    "SET autocommit = 1",
                    "SELECT 1",
                ]),
            ),
            (
                "settings",
                script(&[
                    "SET NAMES latin1",
                    "SELECT 'a'",
                    "SET NAMES utf8mb4 COLLATE utf8mb4_bin",
                    "SELECT 'a'",
                    "SET SESSION sql_mode = 'ANSI_QUOTES'",
                    "SELECT \"x\" FROM t WHERE x = 1",
                    "SET SESSION sql_mode = 'nonsense'",
                    "SET no_such_variable = 1",
                    "SET character_set_results = NULL",
                    "SELECT 'b'",
                    "SET time_zone = '+05:00'",
                    "SELECT @@time_zone",
                    "RESET QUERY CACHE",
                ]),
            ),
            (
                "nonsense in a transaction",
                script(&[
                    "BEGIN",
                    "SELEC 1",
                    "SELECT 1",
                    "RESET nonsense",
                    "SELECT 2",
                    "COMMIT",
                    "BEGIN",
                    "RESET nonsense",
                    "SELECT 3",
                    "ROLLBACK",
                ]),
            ),
            (
                "what is no statement",
                script(&[
                    "RESET",
                    "RESET nonsense",
                    "KILL",
                    "KILL nonsense",
                    "USE",
                    "SHOW NONSENSE",
                    "EXECUTE nope",
                    "DEALLOCATE PREPARE nope",
                ]),
            ),
            (
                "prepared in SQL",
                script(&[
                    "PREPARE p FROM 'SELECT ? + 1'",
                    "SET @a = 4",
                    "EXECUTE p USING @a",
                    "EXECUTE p",
                    "DEALLOCATE PREPARE p",
                    "EXECUTE p USING @a",
                ]),
            ),
            (
                "catalog",
                script(&[
                    "SHOW TABLES",
                    "SHOW COLUMNS FROM t",
                    "SHOW CREATE PROCEDURE fails",
                    "DESCRIBE t",
                    "SHOW DATABASES LIKE 'information%'",
                ]),
            ),
            (
                "use",
                script(&["USE information_schema", "SELECT DATABASE()", "USE nope", "SELECT DATABASE()"]),
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn diagnostics_are_of_the_statement_before() {
    let stage = Stage::set(TABLE, &[]).await;
    let ask =
        ["SHOW WARNINGS", "SHOW ERRORS", "SHOW COUNT(*) WARNINGS", "SELECT @@warning_count, @@error_count"];
    let mut scripts = Vec::new();
    for statement in [
        "SELECT 1/0",
        "SELECT CAST('x' AS SIGNED)",
        "SELECT 1",
        "SELECT * FROM missing",
        "SELECT nope FROM t",
        "SELEC 1",
        "INSERT IGNORE INTO t (x) VALUES (1)",
        "INSERT INTO t (x) VALUES (1)",
        "DROP TABLE IF EXISTS nope",
        "SELECT 1/0; SELECT 1",
        "SELECT 1; SELECT 1/0",
    ] {
        for question in ask {
            let mut texts = vec!["UPDATE t SET y = 1/0 WHERE x = 99", statement, question, question];
            scripts.push((statement, queries(&texts)));
            texts.insert(0, "BEGIN");
            texts.push("ROLLBACK");
            scripts.push((statement, queries(&texts)));
        }
        let texts = [statement, ask[0], "SELECT x FROM t WHERE x = 1", ask[0]];
        scripts.push((statement, queries(&texts)));
    }
    same(&stage, scripts).await;
}

#[tokio::test]
async fn what_the_statement_before_found_is_its_own() {
    let stage = Stage::set(TABLE, &[]).await;
    let mut scripts = Vec::new();
    for statement in
        ["SELECT x FROM t", "SELECT x FROM t LIMIT 1", "DELETE FROM t WHERE x > 90", "SELECT 1", "DO 1"]
    {
        for question in ["SELECT FOUND_ROWS()", "SELECT ROW_COUNT()"] {
            // A first question makes the proxy set aside what may be asked.
            scripts.push((
                statement,
                queries(&["DELETE FROM t WHERE x > 90", "SELECT ROW_COUNT()", statement, question, question]),
            ));
        }
    }
    same(&stage, scripts).await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table, an entry per habit of a client")]
async fn prepared_statements_are_answered_as_by_the_server() {
    let stage = Stage::set(TABLE, &[]).await;
    let close = |id| of_statement(code::STMT_CLOSE, id, b"");
    let fetch = |id, rows: u32| of_statement(code::STMT_FETCH, id, &rows.to_le_bytes());
    let reset = |id| of_statement(code::STMT_RESET, id, b"");
    let long = |id, parameter: u16, data: &[u8]| {
        of_statement(code::STMT_SEND_LONG_DATA, id, &[&parameter.to_le_bytes()[..], data].concat())
    };
    same(
        &stage,
        vec![
            (
                "a read",
                vec![
                    prepare("SELECT x, y, ? FROM t FORCE INDEX (x) ORDER BY x"),
                    execute(1, 0, &[Some("a")]),
                    execute(1, 0, &[None]),
                    close(1),
                    execute(1, 0, &[None]),
                ],
            ),
            (
                "a write",
                vec![
                    prepare("INSERT INTO t (x, y) VALUES (?, ?)"),
                    execute(1, 0, &[Some("1"), None]),
                    prepare("DELETE FROM t WHERE x = ?"),
                    execute(2, 0, &[Some("5")]),
                ],
            ),
            (
                "errors",
                vec![
                    prepare("SELEC ?"),
                    prepare("SELECT * FROM missing"),
                    prepare(""),
                    prepare("SELECT ?"),
                    execute(1, 0, &[Some("x")]),
                ],
            ),
            ("two statements in one", vec![prepare("SELECT 1; SELECT 2"), prepare("SELECT 1;")]),
            (
                "what cannot be prepared",
                vec![prepare("PREPARE p FROM 'SELECT 1'"), prepare("BEGIN"), execute(1, 0, &[])],
            ),
            (
                "cursors",
                vec![
                    prepare("SELECT x FROM t FORCE INDEX (x) ORDER BY x"),
                    execute(1, 1, &[]),
                    fetch(1, 2),
                    fetch(1, 2),
                    fetch(1, 2),
                    execute(1, 1, &[]),
                    fetch(1, 1),
                    reset(1),
                    fetch(1, 1),
                    execute(1, 0, &[]),
                    close(1),
                    fetch(1, 1),
                ],
            ),
            (
                "a cursor that stays open over another statement",
                vec![
                    prepare("SELECT x FROM t FORCE INDEX (x) ORDER BY x"),
                    execute(1, 1, &[]),
                    fetch(1, 1),
                    (code::QUERY, b"SELECT 1".to_vec()),
                    fetch(1, 5),
                    close(1),
                    (code::QUERY, b"SELECT 2".to_vec()),
                ],
            ),
            (
                "a cursor on what has no rows",
                vec![
                    prepare("SELECT x FROM t WHERE x > 1000"),
                    execute(1, 1, &[]),
                    fetch(1, 5),
                    prepare("DO 1"),
                    execute(2, 1, &[]),
                    fetch(2, 1),
                ],
            ),
            (
                "a value in pieces",
                vec![
                    prepare("SELECT ?"),
                    long(1, 0, b"abc"),
                    long(1, 0, b"def"),
                    execute(1, 0, &[None]),
                    execute(1, 0, &[Some("g")]),
                    long(1, 0, b"lost"),
                    reset(1),
                    execute(1, 0, &[Some("h")]),
                ],
            ),
            ("a value of no statement", vec![long(UNKNOWN, 0, b"abc"), (code::QUERY, b"SELECT 1".to_vec())]),
            (
                "resets",
                vec![
                    prepare("SELECT ?"),
                    reset(1),
                    reset(UNKNOWN),
                    execute(1, 0, &[Some("x")]),
                    (code::RESET_CONNECTION, vec![]),
                    execute(1, 0, &[Some("x")]),
                ],
            ),
            (
                "a procedure with a cursor of its own",
                vec![prepare("CALL loops()"), execute(1, 0, &[]), execute(1, 0, &[])],
            ),
            (
                "a procedure",
                vec![
                    prepare("CALL results()"),
                    execute(1, 0, &[]),
                    execute(1, 0, &[]),
                    prepare("CALL out_parameter(?)"),
                    execute(2, 0, &[None]),
                ],
            ),
            (
                "unknown statements",
                vec![execute(UNKNOWN, 0, &[]), fetch(UNKNOWN, 1), reset(UNKNOWN), close(UNKNOWN)],
            ),
        ],
    )
    .await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table, an entry per habit of a client")]
async fn other_commands_are_answered_as_by_the_server() {
    let stage = Stage::set(TABLE, &[]).await;
    let query = |text: &str| (code::QUERY, text.as_bytes().to_vec());
    same(
        &stage,
        vec![
            (
                "ping",
                vec![
                    (code::PING, vec![]),
                    query("BEGIN"),
                    (code::PING, vec![]),
                    query("SELECT 1"),
                    (code::PING, vec![]),
                    query("COMMIT"),
                    (code::PING, vec![]),
                ],
            ),
            (
                "init",
                vec![
                    (code::INIT_DB, b"information_schema".to_vec()),
                    query("SELECT DATABASE()"),
                    (code::INIT_DB, b"nope".to_vec()),
                    (code::INIT_DB, vec![]),
                    query("SELECT DATABASE()"),
                ],
            ),
            (
                "fields",
                vec![
                    (code::FIELD_LIST, b"t\0".to_vec()),
                    (code::FIELD_LIST, b"t\0x%".to_vec()),
                    (code::FIELD_LIST, b"missing\0".to_vec()),
                ],
            ),
            (
                "options",
                vec![
                    (code::SET_OPTION, vec![1, 0]),
                    query("SELECT 1; SELECT 2"),
                    (code::SET_OPTION, vec![0, 0]),
                    query("SELECT 1; SELECT 2"),
                    (code::SET_OPTION, vec![7, 0]),
                    (code::SET_OPTION, vec![]),
                ],
            ),
            (
                "resets",
                vec![
                    query("SET @a = 1, sql_mode = ''"),
                    (code::RESET_CONNECTION, vec![]),
                    query("SELECT @a, @@sql_mode"),
                    query("BEGIN"),
                    query("SELECT 1"),
                    (code::RESET_CONNECTION, vec![]),
                    query("SELECT 1"),
                    query("BEGIN"),
                    (code::RESET_CONNECTION, vec![]),
                    query("SELECT 1"),
                ],
            ),
            (
                "kills",
                vec![
                    (code::PROCESS_KILL, 4_000_000_000_u32.to_le_bytes().to_vec()),
                    query("KILL 4000000000"),
                    query("SELECT 1"),
                ],
            ),
            (
                "what the server does not know",
                vec![
                    (0x00, vec![]),
                    (0x05, b"x".to_vec()),
                    (0x0B, vec![]),
                    (0x0F, vec![]),
                    (0x10, vec![]),
                    (0x7F, vec![]),
                    query("SELECT 1"),
                ],
            ),
            ("debug", vec![(code::DEBUG, vec![]), (code::REFRESH, vec![1]), query("SELECT 1")]),
        ],
    )
    .await;
}

/// Drivers escape the quotes in their parameters by the flags of the answer before.
#[tokio::test]
async fn answers_of_the_proxys_own_tell_how_strings_are_to_be_written() {
    strings_are_told_to_be_written_as_the_server_tells(&Stage::set(TABLE, &[]).await).await;
}

async fn strings_are_told_to_be_written_as_the_server_tells(stage: &Stage) {
    let in_mode = |mode: &str| {
        let mut script = queries(&[&format!("SET SESSION sql_mode = {mode}"), "BEGIN", "SAVEPOINT a"]);
        script.push((code::PING, vec![]));
        script.extend(queries(&["COMMIT", "SELECT x FROM t FORCE INDEX (x)", "START TRANSACTION READ ONLY"]));
        script.extend(queries(&["SELECT x FROM t FORCE INDEX (x)", "ROLLBACK", "SET TRANSACTION READ ONLY"]));
        script.extend([prepare("SELECT 1"), of_statement(code::STMT_RESET, 1, &[])]);
        script.extend([(code::RESET_CONNECTION, vec![]), (code::PING, vec![])]);
        script.extend(queries(&["BEGIN", "COMMIT"]));
        script
    };
    let modes =
        ["'NO_BACKSLASH_ESCAPES'", "'ANSI'", "\"ANSI_QUOTES,NO_BACKSLASH_ESCAPES\"", "1048576", "DEFAULT"];
    same(stage, modes.iter().map(|mode| (*mode, in_mode(mode))).collect()).await;
}

/// `MYSQL_TYPE_STRING`.
const STRING: [u8; 2] = [254, 0];

/// Attributes and parameters: how many, which are NULL, that types follow, types and names, values.
fn bound(sets: bool, bound: &[(&str, Option<&str>)]) -> Vec<u8> {
    let mut out = vec![bound.len() as u8];
    out.extend(sets.then_some(1));
    if bound.is_empty() {
        return out;
    }
    let mut nulls = vec![0_u8; bound.len().div_ceil(8)];
    for (at, _) in bound.iter().enumerate().filter(|(_, (_, value))| value.is_none()) {
        nulls[at / 8] |= 1 << (at % 8);
    }
    out.extend_from_slice(&nulls);
    out.push(1);
    for (name, _) in bound {
        out.extend_from_slice(&STRING);
        packet::put_lenenc_bytes(&mut out, name.as_bytes());
    }
    for value in bound.iter().filter_map(|(_, value)| *value) {
        packet::put_lenenc_bytes(&mut out, value.as_bytes());
    }
    out
}

fn query_with(attributes: &[(&str, Option<&str>)], sql: &str) -> (u8, Vec<u8>) {
    (code::QUERY, [&bound(true, attributes), sql.as_bytes()].concat())
}

/// COM_STMT_EXECUTE whose number of parameters is told, those of attributes among them.
fn execute_with(id: u32, parameters: &[(&str, Option<&str>)]) -> (u8, Vec<u8>) {
    const PARAMETER_COUNT_AVAILABLE: u8 = 8;
    let start = [&id.to_le_bytes()[..], &[PARAMETER_COUNT_AVAILABLE, 1, 0, 0, 0]].concat();
    (code::STMT_EXECUTE, [start, bound(false, parameters)].concat())
}

/// As the client sends a second execution: without types.
fn without_types((code, mut argument): (u8, Vec<u8>), parameters: usize) -> (u8, Vec<u8>) {
    let flag = 10 + parameters.div_ceil(8);
    argument[flag] = 0;
    argument.drain(flag + 1..flag + 1 + 3 * parameters);
    (code, argument)
}

#[tokio::test]
async fn attributes_are_offered_only_where_every_server_takes_them() {
    let stage = Stage::set("", &[]).await;

    let session = stage.session().await;

    assert_eq!(session.offered & can::QUERY_ATTRIBUTES, 0);
}

/// COM_STMT_BULK_EXECUTE: rows of values; `None` is NULL.
fn bulk(id: u32, types: bool, rows: &[&[Option<&str>]]) -> (u8, Vec<u8>) {
    const SEND_TYPES: [u8; 2] = [128, 0];
    const NULL: u8 = 1;
    let mut argument = id.to_le_bytes().to_vec();
    argument.extend_from_slice(if types { &SEND_TYPES } else { &[0, 0] });
    if types {
        rows[0].iter().for_each(|_| argument.extend_from_slice(&STRING));
    }
    for value in rows.concat() {
        match value {
            None => argument.push(NULL),
            Some(value) => {
                argument.push(0);
                packet::put_lenenc_bytes(&mut argument, value.as_bytes());
            }
        }
    }
    (code::STMT_BULK_EXECUTE, argument)
}

/// In place of an id.
const NEWEST: u32 = u32::MAX;

#[tokio::test]
async fn many_executions_in_one_are_answered_as_by_the_server() {
    let stage = Stage::set("CREATE TABLE w (x INT PRIMARY KEY, y VARCHAR(9))", &[]).await;
    let query = |text: &str| (code::QUERY, text.as_bytes().to_vec());
    let insert = || prepare("INSERT INTO w VALUES (?, ?)");
    let all = || query("SELECT * FROM w ORDER BY x");
    same_with(
        &stage,
        BASIC | can::STMT_BULK_OPERATIONS,
        vec![
            (
                "rows",
                vec![
                    insert(),
                    bulk(1, true, &[&[Some("1"), Some("one")], &[Some("2"), None]]),
                    bulk(1, false, &[&[Some("3"), Some("three")], &[Some("4"), Some("four")]]),
                    execute(1, 0, &[Some("5"), None]),
                    all(),
                    prepare("UPDATE w SET y = ? WHERE x = ?"),
                    bulk(2, true, &[&[Some("a"), Some("1")], &[Some("b"), Some("9")]]),
                    all(),
                    prepare("DELETE FROM w WHERE x = ?"),
                    bulk(3, true, &[&[Some("1")], &[Some("2")], &[Some("3")], &[Some("4")], &[Some("5")]]),
                    all(),
                ],
            ),
            (
                "a transaction",
                vec![
                    query("BEGIN"),
                    insert(),
                    bulk(1, true, &[&[Some("1"), Some("one")], &[Some("2"), None]]),
                    query("ROLLBACK"),
                    all(),
                ],
            ),
            (
                "errors",
                vec![
                    bulk(UNKNOWN, true, &[&[Some("1"), Some("one")]]),
                    insert(),
                    bulk(1, true, &[&[Some("1"), None], &[Some("1"), None], &[Some("2"), None]]),
                    query("DELETE FROM w"),
                    prepare("SELECT ?"),
                    bulk(2, true, &[&[Some("1")]]),
                    (code::STMT_BULK_EXECUTE, vec![1, 0, 0, 0, 128, 0, 254]),
                    query("SELECT 1"),
                ],
            ),
            (
                "the statement prepared last",
                vec![
                    execute(NEWEST, 0, &[]),
                    insert(),
                    execute(NEWEST, 0, &[Some("1"), Some("one")]),
                    bulk(NEWEST, true, &[&[Some("2"), Some("two")]]),
                    query("DELETE FROM w"),
                    prepare("SELECT ? + 1"),
                    execute(NEWEST, 0, &[Some("4")]),
                    execute(1, 0, &[Some("9"), None]),
                    of_statement(code::STMT_RESET, NEWEST, b""),
                    prepare("SELEC"),
                    execute(NEWEST, 0, &[Some("4")]),
                    query("DELETE FROM w"),
                ],
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn each_client_gets_the_metadata_it_understands() {
    const TYPED: &str = "CREATE TABLE typed (j JSON, p POINT, i INET6, u UUID, n INT);
         INSERT INTO typed VALUES ('{}', POINT(1, 2), '::1', '123e4567-e89b-12d3-a456-426655440000', 5)";
    let stage = Stage::set(TYPED, &["cluster.pool.size = 1"]).await;
    let script = || {
        vec![
            ("text", queries(&["SELECT * FROM typed", "SELECT 1"])),
            ("prepared", vec![prepare("SELECT *, ? FROM typed"), execute(1, 0, &[Some("a")])]),
            ("fields", vec![(code::FIELD_LIST, b"typed\0".to_vec())]),
        ]
    };
    for capabilities in [BASIC, BASIC | can::EXTENDED_METADATA, BASIC] {
        same_with(&stage, capabilities, script()).await;
    }
    // What the proxy answers itself has the same shape.
    let mut session =
        Session::connect(stage.proxy.port(), APP, "", BASIC | can::EXTENDED_METADATA).await.expect("a login");
    session.run("SELECT 1").await;
    let own = session.exchange(code::QUERY, b"SELECT @pointsman_route").await.expect("an answer");
    // Six names, what it says more of the type, and the rest, which has a fixed length.
    let rest = (0..7).fold(&own[1][1..], |rest, _| packet::lenenc_bytes(rest).expect("a name").1);
    assert_eq!((rest.len(), rest[0]), (13, 12));
}

#[tokio::test]
async fn reports_of_progress_reach_those_who_understand_them() {
    let stage = Stage::set(
        "CREATE TABLE t (id INT PRIMARY KEY); INSERT INTO t SELECT seq FROM seq_1_to_1000",
        &["cluster.pool.size = 1"],
    )
    .await;
    let with = BASIC | can::PROGRESS;
    for (capabilities, understands) in [(BASIC, false), (with, true), (BASIC, false), (with, true)] {
        let mut session =
            Session::connect(stage.proxy.port(), APP, &stage.schema, capabilities).await.expect("a login");
        session.send(code::QUERY, b"ALTER TABLE t FORCE, ALGORITHM = COPY").await;

        let mut reports = 0;
        let answer = loop {
            let frame = session.frame().await.expect("an answer");
            if !packet::is_progress(&frame[1..]) {
                break frame;
            }
            reports += 1;
        };

        assert_eq!(answer[1], packet::OK, "{answer:?}");
        assert_eq!(reports > 0, understands, "{reports} reports");
        assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "1000");
    }
}

mod on_mysql9 {
    use super::*;

    #[tokio::test]
    async fn answers_of_the_proxys_own_tell_how_strings_are_to_be_written() {
        let table = "CREATE TABLE t (x INT, UNIQUE (x)); INSERT INTO t VALUES (1), (2), (3)";
        strings_are_told_to_be_written_as_the_server_tells(&Stage::on(Make::Mysql9, table, &[]).await).await;
    }

    #[tokio::test]
    async fn query_attributes_reach_the_server_that_answers() {
        let stage = Stage::on(Make::Mysql9, "CREATE TABLE t (id INT PRIMARY KEY, word TEXT)", &[]).await;
        stage.install_attribute_function();
        const READ: &str = "SELECT mysql_query_attribute_string('n'), mysql_query_attribute_string('m')";
        let two = [("n", Some("one")), ("m", Some("INSERT INTO t VALUES (1, 'x')"))];
        same_with(
            &stage,
            BASIC | can::QUERY_ATTRIBUTES,
            vec![
                (
                    "text",
                    vec![query_with(&two, READ), query_with(&[("n", None)], READ), query_with(&[], READ)],
                ),
                (
                    "a transaction",
                    vec![
                        query_with(&two, "BEGIN"),
                        query_with(&two, "INSERT INTO t VALUES (5, mysql_query_attribute_string('n'))"),
                        query_with(&[], "SELECT * FROM t"),
                        query_with(&two, "ROLLBACK"),
                        query_with(&two, ""),
                    ],
                ),
                (
                    "settings",
                    vec![
                        query_with(&two, "SET @@sql_mode = 'ANSI_QUOTES'"),
                        query_with(&two, "SELECT \"id\" FROM t"),
                        query_with(&[], "SET NAMES latin1"),
                        query_with(&two, READ),
                    ],
                ),
                (
                    "prepared",
                    vec![
                        prepare(&format!("{READ}, ?, ?")),
                        execute_with(1, &[("", Some("a")), ("", None), ("n", Some("one"))]),
                        execute_with(1, &[("", Some("a")), ("m", Some("named"))]),
                        without_types(execute_with(1, &[("", Some("b")), ("", Some("c"))]), 2),
                        execute_with(1, &[("", Some("a"))]),
                        prepare(READ),
                        execute_with(2, &[("m", Some("two"))]),
                        execute_with(2, &[]),
                    ],
                ),
                (
                    "what cannot be read",
                    vec![
                        (code::QUERY, b"\x00\x02SELECT 1".to_vec()),
                        (code::QUERY, b"\x01\x01SELECT 1".to_vec()),
                        query_with(&[], "SELECT 1"),
                    ],
                ),
            ],
        )
        .await;
    }

    #[tokio::test]
    async fn a_statement_is_routed_by_its_text_and_not_by_its_attributes() {
        let stage = Stage::on(Make::Mysql9, "CREATE TABLE t (id INT PRIMARY KEY)", &[]).await;
        let capabilities = BASIC | can::QUERY_ATTRIBUTES;
        let mut session =
            Session::connect(stage.proxy.port(), APP, &stage.schema, capabilities).await.expect("a login");
        let number = session.number.to_string();
        let misleading = [("trace", Some("UPDATE t SET id = 1 /* pointsman: primary */"))];
        let reading = [("trace", Some("SELECT 1")), ("second", None)];

        for (attributes, sql, on_primary) in [
            (&misleading[..], "SELECT @@port", false),
            (&reading, "/* pointsman: primary */ SELECT @@port", true),
            (&reading, "SELECT @@port FOR UPDATE", true),
        ] {
            let (code, argument) = query_with(attributes, sql);
            let port: u16 =
                session.command(code, &argument).await.expect(sql).value().parse().expect("a port");
            assert_eq!(port == stage.primary_port(), on_primary, "{sql}");
        }
        stage.install_attribute_function();
        let (code, argument) = query_with(&reading, "SELECT mysql_query_attribute_string('trace')");
        assert_eq!(session.command(code, &argument).await.expect("it reads").value(), "SELECT 1");
        assert_eq!(
            stage.proxy.metric("pointsman_pins_total", &["function"]),
            0.0,
            "it leaves nothing behind"
        );
        let (code, argument) = query_with(&reading, "INSERT INTO t VALUES (1)");
        session.command(code, &argument).await.expect("it writes");
        let (code, argument) = query_with(&reading, "SELECT CONNECTION_ID() FROM t");
        assert_eq!(session.command(code, &argument).await.expect("it reads").value(), number);
        assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "1");
    }
}
