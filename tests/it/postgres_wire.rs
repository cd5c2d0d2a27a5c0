//! Every sequence of commands is answered as the server itself answers it, byte for byte, also where
//! sessions come one after another over a single server connection of each node.

use pointsman::demo::servers::{APP, PgNode};

use crate::support::{
    Session, Stage, eventually,
    wire::{Batch, Frame, Wire},
};

/// What a client sends in one flight, and up to which answer it waits.
struct Step {
    batch: Batch,
    until: Until,
}

#[derive(Clone, Copy)]
enum Until {
    /// So many ReadyForQuery.
    Ready(usize),
    /// The next message with this tag.
    Tag(u8),
}

/// What a client does, on one connection.
type Script = Vec<Step>;

/// What every script finds.
const TABLES: &str = "
    CREATE TABLE t (id serial PRIMARY KEY, v text, n int);
    CREATE TABLE many (i int);
    CREATE TABLE late (a int UNIQUE DEFERRABLE INITIALLY DEFERRED);
    CREATE FUNCTION writes(int) RETURNS int LANGUAGE plpgsql
        AS 'BEGIN INSERT INTO t (v, n) VALUES (''f'', $1); RETURN $1; END';
    CREATE FUNCTION speaks() RETURNS int LANGUAGE plpgsql
        AS 'BEGIN RAISE NOTICE ''one %'', 1; RAISE WARNING ''two''; RETURN 1; END';
    CREATE PROCEDURE commits(a int, INOUT b int) LANGUAGE plpgsql
        AS 'BEGIN INSERT INTO t (n) VALUES (a); COMMIT; b := a * 2; END';
    CREATE MATERIALIZED VIEW seen AS SELECT 1 AS a";

const BY_ID: &str = "SELECT v, n FROM t WHERE id = $1";

const CONTENT: &str = "
    TRUNCATE t, late, many RESTART IDENTITY;
    INSERT INTO t (v, n) SELECT 'v' || g, g FROM generate_series(1, 5) g;
    INSERT INTO many SELECT generate_series(1, 3000)";

fn step(batch: Batch) -> Step {
    let until = Until::Ready(ready_in(batch.bytes()));
    Step { batch, until }
}

/// The messages among `bytes` that are answered with ReadyForQuery.
fn ready_in(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Some((tag, rest)) = bytes.split_first() {
        let length = u32::from_be_bytes(rest[..4].try_into().expect("a header is whole"));
        bytes = &rest[length as usize..];
        count += usize::from(matches!(tag, b'Q' | b'S' | b'F'));
    }
    count
}

fn queries(texts: &[&str]) -> Script {
    texts.iter().map(|text| step(Batch::new().query(text))).collect()
}

fn batches(batches: Vec<Batch>) -> Script {
    batches.into_iter().map(step).collect()
}

fn new() -> Batch {
    Batch::new()
}

async fn answers(port: u16, database: &str, script: &Script) -> Vec<Vec<Frame>> {
    let mut wire = Wire::login(port, APP, database).await;
    let mut answers = Vec::new();
    for Step { batch, until } in script {
        wire.send(batch).await;
        let mut frames = Vec::new();
        match *until {
            Until::Ready(count) => {
                for _ in 0..count {
                    frames.extend(wire.until_ready().await);
                }
            }
            Until::Tag(tag) => loop {
                let frame = wire.recv().await;
                let last = frame.tag == tag;
                frames.push(frame);
                if last {
                    break;
                }
            },
        }
        answers.push(frames.into_iter().map(comparable).collect());
    }
    wire.send(&Batch::new().message(b'X', &[])).await;
    answers
}

/// Without what cannot be the same twice: the number of the process that notifies, and those of
/// tables that a script makes.
fn comparable(frame: Frame) -> Frame {
    let mut body = frame.body.to_vec();
    match frame.tag {
        b'A' => body[..4].fill(0),
        b'T' => {
            let mut at = 2;
            while let Some(name) = body.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == 0)) {
                at += name + 1;
                body[at..at + 4].fill(0);
                at += 18;
            }
        }
        _ => {}
    }
    Frame { body: body.into(), ..frame }
}

/// The content that every script finds, on every node. `servers`: the primary and its replicas.
async fn renew(servers: &[Session]) {
    let (primary, replicas) = servers.split_first().expect("there is a primary");
    primary.run(CONTENT).await;
    let written = primary.value("SELECT pg_current_wal_insert_lsn()").await;
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
    for replica in replicas {
        eventually("the replica to replay", || async { replica.value(&replayed).await == "t" }).await;
    }
}

fn dsn(node: &PgNode, database: &str) -> String {
    let port = node.port();
    format!("host=127.0.0.1 port={port} user={} password={} dbname={database}", APP.name, APP.password)
}

/// Compares the answers of the primary and of the proxy to each script.
async fn same(scripts: Vec<(&str, Script)>) {
    let stage = Stage::set(TABLES, &["cluster.pool.size = 1"]).await;
    let mut servers = Vec::new();
    for node in stage.cluster.nodes() {
        servers.push(Session::open(&dsn(node, &stage.database.name)).await);
    }
    let mut wrong = Vec::new();
    for (what, script) in &scripts {
        renew(&servers).await;
        let of_server = answers(stage.primary_port(), &stage.database.name, script).await;
        renew(&servers).await;
        let of_proxy = answers(stage.proxy.port(), &stage.database.name, script).await;
        for (at, (of_server, of_proxy)) in of_server.iter().zip(&of_proxy).enumerate() {
            if of_server != of_proxy {
                let (server, proxy) = (shown(of_server), shown(of_proxy));
                wrong.push(format!("{what}, step {at}:\n  server: {server}\n  proxy:  {proxy}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn shown(frames: &[Frame]) -> String {
    let each = |frame: &Frame| match frame.tag {
        b'E' | b'N' => {
            let message = frame.field(b'M').unwrap_or_default();
            format!("{}({} {message})", char::from(frame.tag), frame.code())
        }
        tag => format!("{}({:?})", char::from(tag), frame.body.slice(..frame.body.len().min(60))),
    };
    frames.iter().take(30).map(each).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn queries_and_their_errors_are_the_servers() {
    let long = format!("SELECT {}", (0..1600).map(|n| format!("{n} AS c{n}")).collect::<Vec<_>>().join(","));
    let too_long = format!("SELECT {}", vec!["1"; 1700].join(","));
    same(vec![
        ("nothing", queries(&["", ";;", "-- nothing", "/* nothing */;"])),
        ("several", queries(&["SELECT 1; SELECT 2; SELECT 3", "SELECT 1; SELECT 1/0; SELECT 3"])),
        ("several, a write", queries(&["INSERT INTO t (v) VALUES ('a'); SELECT count(*) FROM t"])),
        (
            "several, undone",
            queries(&["INSERT INTO t (v) VALUES ('z'); SELECT 1/0", "SELECT count(*) FROM t"]),
        ),
        (
            "several, half committed",
            queries(&[
                "INSERT INTO t (v) VALUES ('a'); BEGIN; INSERT INTO t (v) VALUES ('b'); SELECT 1/0; COMMIT",
                "SELECT 1",
                "ROLLBACK",
                "SELECT count(*) FROM t",
            ]),
        ),
        (
            "a transaction in one string",
            queries(&["BEGIN; INSERT INTO t (v) VALUES ('a'); COMMIT", "SELECT count(*) FROM t"]),
        ),
        ("comments", queries(&["SELECT 1 -- x", "/* a */ SELECT /* b /* c */ */ 1", "SELECT 1; -- x", " SELECT 1;; "])),
        (
            "errors",
            queries(&[
                "SELCT",
                "SELECT * FROM nobody",
                "SELECT nobody FROM t",
                "SELECT nobody(1)",
                "SELECT 'a'::int",
                "SELECT 1 +",
                "(((",
                "SELECT $1",
                "INSERT INTO t (id) VALUES (1)",
            ]),
        ),
        (
            "what does not end",
            queries(&["SELECT 'a", "SELECT \"a", "SELECT /* a", "SELECT $$a", "SELECT e'\\", "SELECT u&'\\zzzz'"]),
        ),
        (
            "codes that mean something to the proxy",
            queries(&[
                "DO $$BEGIN RAISE EXCEPTION USING ERRCODE = '25006', MESSAGE = 'mine'; END$$",
                "DO $$BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END$$",
                "DO $$BEGIN RAISE EXCEPTION USING ERRCODE = '57P01'; END$$",
                "SELECT 1",
            ]),
        ),
        ("notices", queries(&["SELECT speaks()", "DO $$BEGIN RAISE NOTICE 'a'; END$$", "SELECT speaks() FROM t"])),
        ("functions and procedures", queries(&["SELECT writes(3)", "SELECT count(*) FROM t", "CALL commits(1, 2)", "SELECT count(*) FROM t", "BEGIN", "CALL commits(1, 2)", "ROLLBACK"])),
        (
            "values of many types",
            queries(&["SELECT array[1, 2], row(1, 'a'), '{\"a\": 1}'::jsonb, interval '1 day', 1.5::numeric, true, null, '\\x01'::bytea"]),
        ),
        ("rows without columns", queries(&["SELECT", "SELECT FROM t", "TABLE t", "VALUES (1), (2)"])),
        ("large answers", queries(&["SELECT i FROM many ORDER BY 1", "SELECT repeat('x', 100000)", &long, &too_long])),
        ("text that is not UTF-8", batches(vec![new().message(b'Q', b"SELECT '\xff\xfe'\0"), new().message(b'Q', b"SELECT \xff\0"), new().query("SELECT 'é'")])),
        (
            "data definition",
            queries(&[
                "CREATE TABLE made (a int)",
                "INSERT INTO made VALUES (1)",
                "SELECT * FROM made",
                "ALTER TABLE made ADD b text",
                "SELECT * FROM made",
                "DROP TABLE made",
                "SELECT * FROM made",
                "DROP TABLE IF EXISTS made",
            ]),
        ),
        (
            "what only looks like a read",
            queries(&[
                "WITH a AS (INSERT INTO t (v) VALUES ('x') RETURNING id) SELECT * FROM a",
                "SELECT count(*) FROM t",
                "SELECT n FROM t ORDER BY 1 FOR UPDATE",
                "SELECT 1 AS a INTO TEMP made",
                "SELECT * FROM made",
                "EXPLAIN (COSTS OFF) INSERT INTO t (v) VALUES (1)",
                "REFRESH MATERIALIZED VIEW seen",
                "SELECT * FROM seen",
                "VACUUM t; SELECT 1",
                "VACUUM t",
            ]),
        ),
    ])
    .await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table, an entry per habit of a client")]
async fn transactions_are_answered_as_by_the_server() {
    same(vec![
        (
            "two BEGINs and two COMMITs",
            queries(&["BEGIN", "BEGIN", "SELECT 1", "COMMIT", "COMMIT", "ROLLBACK"]),
        ),
        ("a failed one", queries(&["BEGIN", "SELECT 1/0", "SELECT 1", "SAVEPOINT a", "COMMIT", "SELECT 1"])),
        (
            "savepoints",
            queries(&[
                "BEGIN",
                "SAVEPOINT a",
                "SAVEPOINT b",
                "SELECT 1/0",
                "ROLLBACK TO b",
                "INSERT INTO t (v) VALUES ('q')",
                "ROLLBACK TO a",
                "SELECT count(*) FROM t",
                "RELEASE a",
                "RELEASE a",
                "ROLLBACK",
            ]),
        ),
        ("savepoints outside", queries(&["SAVEPOINT a", "RELEASE a", "ROLLBACK TO a"])),
        (
            "a chain",
            queries(&[
                "BEGIN ISOLATION LEVEL REPEATABLE READ",
                "COMMIT AND CHAIN",
                "SHOW transaction_isolation",
                "ROLLBACK AND CHAIN",
                "SELECT 1",
                "COMMIT AND NO CHAIN",
            ]),
        ),
        (
            "read only",
            queries(&[
                "BEGIN READ ONLY",
                "SELECT 1",
                "INSERT INTO t (v) VALUES ('x')",
                "ROLLBACK",
                "BEGIN TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE, DEFERRABLE",
                "SELECT 1",
                "COMMIT",
            ]),
        ),
        ("faulty options", queries(&["BEGIN ISOLATION LEVEL nothing", "BEGIN nothing", "SELECT 1"])),
        (
            "SERIALIZABLE behind another session's insert",
            queries(&[
                "BEGIN ISOLATION LEVEL SERIALIZABLE",
                "INSERT INTO t (v) VALUES ('x')",
                "SELECT 1",
                "COMMIT",
            ]),
        ),
        (
            "REPEATABLE READ by SET TRANSACTION",
            queries(&[
                "BEGIN",
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
                "INSERT INTO t (v) VALUES ('x')",
                "COMMIT",
            ]),
        ),
        (
            "READ WRITE",
            queries(&[
                "SET default_transaction_read_only = on",
                "BEGIN READ WRITE",
                "INSERT INTO t (v) VALUES ('x')",
                "COMMIT",
                "INSERT INTO t (v) VALUES ('x')",
            ]),
        ),
        (
            "serializable by default",
            queries(&[
                "SET default_transaction_isolation = serializable",
                "SELECT 1",
                "BEGIN",
                "SELECT 1",
                "SHOW transaction_isolation",
                "COMMIT",
            ]),
        ),
        (
            "SET TRANSACTION outside and late",
            queries(&[
                "SET TRANSACTION READ ONLY",
                "BEGIN",
                "SELECT 1",
                "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
                "ROLLBACK",
            ]),
        ),
        (
            "constraints that are checked late",
            queries(&[
                "BEGIN",
                "INSERT INTO late VALUES (1), (1)",
                "COMMIT",
                "BEGIN",
                "SET CONSTRAINTS ALL IMMEDIATE",
                "INSERT INTO late VALUES (1), (1)",
                "ROLLBACK",
                "SET CONSTRAINTS ALL DEFERRED",
            ]),
        ),
        (
            "two-phase commit",
            queries(&[
                "BEGIN",
                "INSERT INTO t (v) VALUES ('z')",
                "PREPARE TRANSACTION 'wire'",
                "COMMIT PREPARED 'wire'",
                "ROLLBACK PREPARED 'wire'",
                "BEGIN",
                "PREPARE TRANSACTION 'wire'",
                "ROLLBACK PREPARED 'wire'",
            ]),
        ),
        ("locks", queries(&["LOCK t", "BEGIN", "LOCK TABLE t IN SHARE MODE", "COMMIT"])),
        ("BEGIN in two strings", queries(&["BEGIN; SELECT 1", "SELECT 2; COMMIT"])),
        ("START and END", queries(&["START TRANSACTION", "SELECT 1", "END", "BEGIN", "ABORT"])),
    ])
    .await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table, an entry per habit of a client")]
async fn settings_are_answered_as_by_the_server() {
    same(vec![
        (
            "set and reset",
            queries(&[
                "SET work_mem = '3MB'",
                "SHOW work_mem",
                "RESET work_mem",
                "SHOW work_mem",
                "SET work_mem TO DEFAULT",
            ]),
        ),
        (
            "faulty ones",
            queries(&[
                "SET work_mem = abc",
                "SHOW work_mem",
                "SET nothing = 1",
                "SHOW nothing",
                "SET search_path FROM CURRENT",
            ]),
        ),
        ("undone", queries(&["BEGIN", "SET work_mem = '3MB'", "SHOW work_mem", "ROLLBACK", "SHOW work_mem"])),
        (
            "undone to a savepoint ahead of the first statement",
            queries(&[
                "BEGIN",
                "SAVEPOINT a",
                "SET work_mem = '5MB'",
                "SAVEPOINT a",
                "SET work_mem = '6MB'",
                "ROLLBACK TO a",
                "SHOW work_mem",
                "RELEASE a",
                "ROLLBACK TO a",
                "COMMIT",
                "SHOW work_mem",
                "SELECT 1",
                "SHOW work_mem",
            ]),
        ),
        (
            "undone to a savepoint",
            queries(&[
                "BEGIN",
                "SET work_mem = '3MB'",
                "SAVEPOINT a",
                "SET work_mem = '5MB'",
                "ROLLBACK TO a",
                "SHOW work_mem",
                "COMMIT",
                "SHOW work_mem",
            ]),
        ),
        (
            "local",
            queries(&[
                "SET LOCAL work_mem = '3MB'",
                "BEGIN",
                "SET LOCAL work_mem = '3MB'",
                "SHOW work_mem",
                "SAVEPOINT a",
                "SET LOCAL work_mem = '5MB'",
                "ROLLBACK TO a",
                "SHOW work_mem",
                "COMMIT",
                "SHOW work_mem",
            ]),
        ),
        (
            "set_config",
            queries(&[
                "SELECT set_config('work_mem', '7MB', false)",
                "SHOW work_mem",
                "SELECT set_config('nothing', '7MB', false)",
            ]),
        ),
        (
            "set_config as the first thing of a transaction",
            queries(&[
                "BEGIN",
                "SELECT set_config('app.tenant', '42', true)",
                "SELECT current_setting('app.tenant')",
                "COMMIT",
                "BEGIN READ ONLY",
                "SELECT set_config('work_mem', '4096kB', true) AS it",
                "SHOW work_mem",
                "COMMIT",
            ]),
        ),
        (
            "the same, extended",
            batches(vec![
                new().run("BEGIN", &[]).sync(),
                new()
                    .parse("", "SELECT set_config('app.tenant', $1, true)")
                    .describe_statement("")
                    .bind("", "", &["42"])
                    .execute("", 0)
                    .sync(),
                new().run("SELECT current_setting('app.tenant')", &[]).sync(),
                new().run("COMMIT", &[]).sync(),
            ]),
        ),
        (
            "time zones",
            queries(&[
                "SET TIME ZONE 'Europe/Berlin'",
                "SELECT '2020-01-01 00:00+00'::timestamptz",
                "SET timezone = 0",
                "SHOW timezone",
                "SET TIME ZONE INTERVAL '+3' HOUR TO MINUTE",
                "SHOW timezone",
                "SET TIME ZONE LOCAL",
                "SHOW TIME ZONE",
            ]),
        ),
        (
            "dates",
            queries(&[
                "SET datestyle TO 'German'",
                "SELECT '2020-02-01'::date",
                "SET datestyle = 'ISO, DMY'",
                "SELECT '01/02/2020'::date",
            ]),
        ),
        (
            "encodings",
            queries(&[
                "SET NAMES 'latin1'",
                "RESET client_encoding",
                "SHOW client_encoding",
                "SET client_encoding = 'nothing'",
                "SET client_encoding = 'utf8'",
            ]),
        ),
        (
            "encodings whose bytes look like ASCII",
            batches(vec![
                new().query("SET client_encoding = 'SJIS'"),
                new().message(b'Q', b"SELECT '\x83\x5c'; SELECT 2\0"),
                new().query("SET client_encoding = 'GBK'"),
                new().message(b'Q', b"SELECT '\xd5\x5c'\0"),
                new().message(b'Q', b"SELECT '\xd5\x27, 2 --'\0"),
            ]),
        ),
        (
            "backslashes",
            queries(&[
                "SET standard_conforming_strings = off",
                "SELECT 'a\\'b'",
                "SELECT 'a\\\\'",
                "SET standard_conforming_strings = on",
                "SELECT 'a\\'",
            ]),
        ),
        ("the seed of random numbers", queries(&["SET seed TO 0.5", "SELECT random()", "SELECT random()"])),
        (
            "the seed by its function",
            queries(&["SELECT setseed(0.5)", "SELECT random()", "SELECT random() FROM t"]),
        ),
        (
            "roles",
            queries(&[
                "SET ROLE NONE",
                "SET ROLE nobody",
                "SELECT current_user, session_user",
                "SET SESSION AUTHORIZATION postgres",
                "RESET SESSION AUTHORIZATION",
                "SET LOCAL ROLE app",
            ]),
        ),
        (
            "all",
            queries(&[
                "SET work_mem = '3MB'",
                "RESET ALL",
                "SHOW work_mem",
                "DISCARD ALL",
                "BEGIN",
                "DISCARD ALL",
                "ROLLBACK",
            ]),
        ),
        (
            "read-only from now on",
            queries(&[
                "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
                "SELECT 1",
                "INSERT INTO t (v) VALUES ('x')",
                "SHOW transaction_read_only",
                "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
                "INSERT INTO t (v) VALUES ('x')",
            ]),
        ),
        (
            "extended",
            batches(vec![
                new().run("SET work_mem = '2MB'", &[]).run("SHOW work_mem", &[]).sync(),
                new()
                    .parse("", "SHOW work_mem")
                    .describe_statement("")
                    .bind("", "", &[])
                    .describe_portal("")
                    .execute("", 0)
                    .sync(),
                new().run("SET work_mem = $1", &["1MB"]).sync(),
                new().run("SELECT set_config($1, $2, false)", &["work_mem", "5MB"]).sync(),
                new().query("SHOW work_mem"),
            ]),
        ),
    ])
    .await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table, an entry per habit of a client")]
async fn session_state_is_answered_as_by_the_server() {
    same(vec![
        (
            "prepared in SQL",
            queries(&[
                "PREPARE p AS SELECT $1::int",
                "EXECUTE p(3)",
                "EXECUTE p('x')",
                "EXECUTE p",
                "PREPARE p AS SELECT 1",
                "DEALLOCATE p",
                "EXECUTE p(1)",
                "DEALLOCATE p",
                "DEALLOCATE ALL",
            ]),
        ),
        (
            "prepared and rolled back",
            queries(&[
                "BEGIN",
                "PREPARE p AS SELECT 1",
                "ROLLBACK",
                "EXECUTE p",
                "PREPARE q AS SELCT 1",
                "EXECUTE q",
            ]),
        ),
        (
            "a prepared write",
            queries(&[
                "PREPARE p(text) AS INSERT INTO t (v) VALUES ($1) RETURNING id",
                "EXECUTE p('a')",
                "EXPLAIN EXECUTE p('c')",
            ]),
        ),
        (
            "cursors",
            queries(&[
                "DECLARE c CURSOR FOR SELECT 1",
                "BEGIN",
                "DECLARE c CURSOR FOR SELECT n FROM t ORDER BY 1",
                "FETCH 2 FROM c",
                "MOVE 1 IN c",
                "FETCH ALL c",
                "CLOSE c",
                "FETCH c",
                "ROLLBACK",
            ]),
        ),
        (
            "a cursor WITH HOLD",
            queries(&[
                "DECLARE c CURSOR WITH HOLD FOR SELECT n FROM t ORDER BY 1",
                "FETCH 2 c",
                "SELECT 1",
                "FETCH 2 c",
                "CLOSE c",
                "CLOSE c",
            ]),
        ),
        (
            "WHERE CURRENT OF",
            queries(&[
                "BEGIN",
                "DECLARE c CURSOR FOR SELECT n FROM t ORDER BY 1 FOR UPDATE",
                "FETCH c",
                "UPDATE t SET n = 99 WHERE CURRENT OF c",
                "COMMIT",
                "SELECT max(n) FROM t",
            ]),
        ),
        (
            "temporary tables",
            queries(&[
                "CREATE TEMP TABLE x (a int)",
                "INSERT INTO x VALUES (1)",
                "CREATE TEMP TABLE x (a int)",
                "SELECT * FROM x",
                "DISCARD TEMP",
                "SELECT * FROM x",
            ]),
        ),
        (
            "sequences",
            queries(&[
                "SELECT lastval()",
                "INSERT INTO t (v) VALUES ('a')",
                "SELECT lastval()",
                "SELECT currval('t_id_seq')",
                "SELECT nextval('t_id_seq')",
                "SELECT lastval()",
            ]),
        ),
        (
            "notifications",
            queries(&["LISTEN a", "NOTIFY a, 'x'", "SELECT pg_notify('a', 'y')", "UNLISTEN a", "NOTIFY a"]),
        ),
        (
            "notifications in one string",
            queries(&["LISTEN a; NOTIFY a, '1'; NOTIFY a, '2'", "SELECT 1", "UNLISTEN *"]),
        ),
        (
            "notifications in a transaction",
            queries(&[
                "BEGIN",
                "LISTEN b",
                "NOTIFY b",
                "SELECT 1",
                "COMMIT",
                "SELECT 1",
                "BEGIN",
                "UNLISTEN b",
                "ROLLBACK",
                "NOTIFY b",
            ]),
        ),
        (
            "advisory locks",
            queries(&[
                "SELECT pg_advisory_lock(1)",
                "SELECT pg_try_advisory_lock(1)",
                "SELECT pg_advisory_unlock(1)",
                "SELECT pg_advisory_unlock(1)",
                "SELECT pg_advisory_unlock(1)",
                "SELECT pg_advisory_unlock_all()",
            ]),
        ),
        (
            "large objects",
            queries(&[
                "SELECT lo_create(77777)",
                "BEGIN",
                "SELECT lo_open(77777, 131072)",
                "COMMIT",
                "SELECT lo_unlink(77777)",
            ]),
        ),
    ])
    .await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table, an entry per habit of a client")]
async fn extended_sequences_are_answered_as_by_the_server() {
    same(vec![
        (
            "a name over several units",
            batches(vec![
                new().parse("a", "SELECT $1::text").sync(),
                new().bind("", "a", &["x"]).execute("", 0).sync(),
                new().parse("a", "SELECT 2").sync(),
                new().close_statement("a").sync(),
                new().bind("", "a", &["x"]).execute("", 0).sync(),
            ]),
        ),
        (
            "errors in the middle",
            batches(vec![
                new()
                    .run("SELECT 1", &[])
                    .run("SELECT 1/0", &[])
                    .run("SELECT 3", &[])
                    .sync()
                    .run("SELECT 4", &[])
                    .sync(),
                new().run("SELCT", &[]).sync().run("SELECT 1/0", &[]).sync().run("SELECT 2", &[]).sync(),
                new().parse("a", "SELECT 1").run("SELECT 1/0", &[]).close_statement("a").sync(),
                new().bind("", "a", &[]).execute("", 0).sync(),
            ]),
        ),
        (
            "a statement that is described behind what begins or ends a transaction",
            batches(vec![
                new().run("BEGIN", &[]).parse("s", BY_ID).describe_statement("s").sync(),
                new().bind("", "s", &["2"]).execute("", 0).run("COMMIT", &[]).sync(),
                new().query("BEGIN").run("SAVEPOINT a", &[]).describe_statement("s").sync(),
                new().query("INSERT INTO t (n) VALUES (7)").query("ROLLBACK TO a").query("ROLLBACK"),
                new().query("BEGIN").run("COMMIT", &[]).describe_statement("s").sync(),
                new().run("BEGIN", &[]).parse("other", "SELCT").sync(),
                new().query("SELECT 1").query("ROLLBACK"),
            ]),
        ),
        (
            "a statement that is described ahead of what begins a transaction, and behind nothing",
            batches(vec![
                new().parse("s", BY_ID).describe_statement("s").run("BEGIN READ ONLY", &[]).sync(),
                new()
                    .run("SET LOCAL work_mem = '1MB'", &[])
                    .parse("t", "TABLE t")
                    .describe_statement("t")
                    .sync(),
                new().bind("", "s", &["3"]).execute("", 0).sync().query("SHOW work_mem").query("COMMIT"),
                new().parse("", "").parse("u", "SELECT 1").describe_statement("u").sync(),
            ]),
        ),
        (
            "a statement outlives the transaction it was prepared in",
            batches(vec![
                new().query("BEGIN").parse("a", "SELECT 1").sync(),
                new().query("ROLLBACK").bind("", "a", &[]).execute("", 0).sync(),
            ]),
        ),
        (
            "portals over Syncs",
            batches(vec![
                new().parse("", "SELECT n FROM t ORDER BY 1").bind("p", "", &[]).execute("p", 2).sync(),
                new().execute("p", 2).sync(),
                new().query("BEGIN"),
                new().parse("", "SELECT n FROM t ORDER BY 1").bind("p", "", &[]).execute("p", 2).sync(),
                new().execute("p", 2).sync(),
                new().query("FETCH 1 FROM p"),
                new().query("COMMIT"),
                new().execute("p", 2).sync(),
            ]),
        ),
        (
            "transactions in pipelines",
            batches(vec![
                new().run("BEGIN", &[]).run("INSERT INTO t (v) VALUES ('h')", &[]).run("COMMIT", &[]).sync(),
                new().query("SELECT count(*) FROM t"),
                new().run("BEGIN", &[]).run("SELECT 1/0", &[]).sync(),
                new().query("SELECT 1"),
                new().query("ROLLBACK"),
                new().run("SELECT 1", &[]).run("BEGIN", &[]).run("SELECT 1", &[]).sync(),
                new().run("SAVEPOINT s", &[]).run("SELECT 1/0", &[]).sync(),
                new().run("ROLLBACK TO s", &[]).run("RELEASE s", &[]).run("COMMIT", &[]).sync(),
                new()
                    .run("INSERT INTO t (v) VALUES ('k')", &[])
                    .run("COMMIT", &[])
                    .run("SELECT 1/0", &[])
                    .sync(),
                new().query("SELECT count(*) FROM t"),
            ]),
        ),
        (
            "BEGIN prepared and described",
            batches(vec![
                new().parse("b", "BEGIN").describe_statement("b").sync(),
                new().bind("", "b", &[]).describe_portal("").execute("", 0).sync(),
                new().bind("", "b", &[]).execute("", 0).sync(),
                new().run("COMMIT", &[]).sync(),
                new().parse("", "BEGIN").bind("", "", &["a value"]).execute("", 0).sync(),
                new().query("SELECT 1"),
            ]),
        ),
        (
            "reads, then a write, in one unit",
            batches(vec![
                new()
                    .run("SELECT count(*) FROM t", &[])
                    .run("INSERT INTO t (v) VALUES ('h')", &[])
                    .run("SELECT count(*) FROM t", &[])
                    .sync(),
                new().run("INSERT INTO t (v) VALUES ('h')", &[]).run("SELECT 1/0", &[]).sync(),
                new().query("SELECT count(*) FROM t"),
            ]),
        ),
        (
            "reads, then a write, with Flush between",
            vec![
                Step { batch: new().run("SELECT count(*) FROM t", &[]).flush(), until: Until::Tag(b'C') },
                Step {
                    batch: new().run("INSERT INTO t (v) VALUES ('h')", &[]).flush(),
                    until: Until::Tag(b'C'),
                },
                Step { batch: new().run("SELECT 1/0", &[]).flush(), until: Until::Tag(b'E') },
                step(new().run("SELECT 1", &[]).sync().query("SELECT count(*) FROM t")),
            ],
        ),
        (
            "a simple query within a unit",
            batches(vec![
                new().run("SELECT 1", &[]).query("SELECT 2").run("SELECT 3", &[]).sync(),
                new().parse("", "SELECT 1").sync().query("SELECT 2").bind("", "", &[]).execute("", 0).sync(),
            ]),
        ),
        (
            "named by SQL, run by messages, and the other way round",
            batches(vec![
                new().query("PREPARE a AS SELECT $1::int"),
                new().describe_statement("a").bind("", "a", &["4"]).execute("", 0).sync(),
                new().close_statement("a").sync(),
                new().query("EXECUTE a(1)"),
                new().parse("b", "SELECT $1::int").sync(),
                new().query("EXECUTE b(4)"),
                new().query("DEALLOCATE b"),
                new().bind("", "b", &["4"]).execute("", 0).sync(),
            ]),
        ),
        (
            "rows of writes in portions",
            batches(vec![
                new()
                    .parse("", "INSERT INTO t (v) VALUES ('a'), ('b'), ('c') RETURNING id")
                    .bind("", "", &[])
                    .execute("", 1)
                    .execute("", 1)
                    .execute("", 5)
                    .sync(),
            ]),
        ),
        (
            "VACUUM among others",
            batches(vec![
                new().run("VACUUM t", &[]).sync(),
                new().run("SELECT 1", &[]).run("VACUUM t", &[]).sync(),
            ]),
        ),
        (
            "notices and notifications",
            batches(vec![
                new().run("SELECT speaks()", &[]).sync(),
                new().run("LISTEN q", &[]).sync(),
                new().run("NOTIFY q, 'a'", &[]).sync(),
            ]),
        ),
        (
            "function calls",
            batches(vec![
                new().message(b'F', &[0, 0, 0x05, 0x25, 0, 0, 0, 1, 0, 0, 0, 3, b'a', b'b', b'c', 0, 0]),
                new().message(b'F', &[0x05, 0, 0, 0, 0, 0, 0, 0, 0, 0]).query("SELECT 1"),
                new()
                    .query("BEGIN")
                    .message(b'F', &[0, 0, 0x05, 0x25, 0, 0, 0, 1, 0, 0, 0, 3, b'a', b'b', b'c', 0, 0])
                    .query("COMMIT"),
            ]),
        ),
    ])
    .await;
}

#[tokio::test]
async fn copies_are_answered_as_by_the_server() {
    let copy = || new().query("COPY t (v) FROM STDIN");
    let extended = || new().run("COPY t (v) FROM STDIN", &[]);
    let once = |batch| Step { batch, until: Until::Ready(1) };
    same(vec![
        ("out", queries(&["COPY (SELECT 1, 2) TO STDOUT", "COPY t TO STDOUT (FORMAT csv, HEADER)", "COPY t (id) TO STDOUT BINARY", "COPY nobody TO STDOUT", "COPY t FROM '/nowhere'", "COPY t TO PROGRAM 'cat'"])),
        ("in, on request", vec![
            Step { batch: copy(), until: Until::Tag(b'G') },
            once(new().copy_data("a\nb\n").copy_done()),
            step(new().query("SELECT count(*) FROM t")),
        ]),
        ("in, unasked", vec![once(copy().copy_data("a\nb\n").copy_done()), step(new().query("SELECT count(*) FROM t"))]),
        ("in, failed by the client", vec![once(copy().copy_data("a\n").copy_fail("no")), step(new().query("SELECT count(*) FROM t"))]),
        ("in, failed by the server", vec![once(new().query("COPY t (n) FROM STDIN").copy_data("a\n").copy_data("b\n").copy_done()), step(new().query("SELECT 1"))]),
        ("in, with Syncs among the data", vec![once(copy().copy_data("a\n").sync().flush().copy_data("c\n").copy_done()), step(new().query("SELECT count(*) FROM t"))]),
        ("two in one string", vec![
            once(new().query("SELECT 5; COPY t (v) FROM STDIN; SELECT 6; COPY t (v) FROM STDIN; SELECT count(*) FROM t").copy_data("a\n").copy_done().copy_data("b\n").copy_done()),
        ]),
        ("in a transaction", vec![step(new().query("BEGIN")), once(copy().copy_data("a\n").copy_done()), step(new().query("ROLLBACK")), step(new().query("SELECT count(*) FROM t"))]),
        ("extended, on request", vec![
            Step { batch: extended().flush(), until: Until::Tag(b'G') },
            step(new().copy_data("a\n").copy_done().sync()),
            step(new().query("SELECT count(*) FROM t")),
        ]),
        ("extended, unasked", vec![step(extended().copy_data("a\n").copy_done().sync()), step(new().query("SELECT count(*) FROM t"))]),
        ("extended, unasked and failed", vec![step(extended().copy_fail("no").sync()), step(new().query("SELECT count(*) FROM t"))]),
        ("extended, with a Sync ahead of the data", vec![once(extended().sync().copy_data("a\n").copy_done().sync()), step(new().query("SELECT count(*) FROM t"))]),
        ("data for no COPY", vec![
            step(new().copy_data("abc").copy_done().copy_fail("x").query("SELECT 1")),
            step(new().run("SELECT 1", &[]).copy_data("abc").copy_done().run("SELECT 2", &[]).sync()),
            step(new().run("SELECT 1/0", &[]).copy_data("abc").copy_done().run("SELECT 2", &[]).sync().query("SELECT 3")),
        ]),
    ])
    .await;
}

/// `length(text)`, called by its number.
fn call_of_length(length: usize) -> Batch {
    let (function, no_formats, one) = ([0, 0, 0x05, 0x25], [0, 0], [0, 1]);
    let size = u32::try_from(length).expect("it is short enough").to_be_bytes();
    let value = "x".repeat(length);
    new().message(b'F', &[&function[..], &no_formats, &one, &size, value.as_bytes(), &[0, 0]].concat())
}

fn query_of_length(length: usize) -> String {
    format!("SELECT length('{}')", "x".repeat(length))
}

/// Around what is gathered of a FunctionCall and of a Query.
const LENGTHS: [usize; 5] = [64 << 10, 100_000, (1 << 20) - 100, 1 << 20, 3 << 20];

fn of_each_length(script: impl Fn(usize) -> Vec<Batch>) -> Script {
    batches(LENGTHS.iter().flat_map(|length| script(*length)).collect())
}

/// A Query, a FunctionCall: each is answered at its own end, however many pieces it is passed on in.
#[tokio::test]
async fn what_is_longer_than_is_gathered_is_answered_as_by_the_server() {
    let (text, call) = (query_of_length, call_of_length);
    let rows = (0..20_000).map(|n| format!("('row {n}', {n})")).collect::<Vec<_>>().join(", ");
    let insert = format!("INSERT INTO t (v, n) VALUES {rows} RETURNING id");
    let blanks = " ".repeat(3 << 20);
    let error = format!("SELECT 1/0{blanks}");
    same(vec![
        ("queries", of_each_length(|n| vec![new().query(&text(n)), new().query("SELECT 1")])),
        ("calls", of_each_length(|n| vec![call(n), new().query("SELECT 1"), call(n).query("SELECT 2")])),
        (
            "in one flight",
            of_each_length(|n| vec![new().query(&text(n)).query("SELECT 1").run("SELECT $1", &["a"]).sync()]),
        ),
        (
            "in a transaction",
            of_each_length(|n| {
                vec![new().query("BEGIN"), call(n), new().query(&text(n)), new().query("COMMIT")]
            }),
        ),
        ("begins one", queries(&["BEGIN", &text(3 << 20), "SAVEPOINT s", "COMMIT", "SELECT 1"])),
        ("an error", queries(&[&error, "SELECT 1", &format!("SELEC{blanks}"), "SELECT 1"])),
        (
            "in a failed transaction",
            queries(&["BEGIN", "SELECT 1/0", &text(100_000), &text(3 << 20), "ROLLBACK", "SELECT 1"]),
        ),
        ("rows", queries(&[&insert, "SELECT count(*), max(n) FROM t", "SELECT lastval()"])),
        ("a copy", queries(&[&format!("COPY t (v) TO STDOUT{blanks}"), "SELECT 1"])),
    ])
    .await;
}

#[tokio::test]
async fn what_stands_far_behind_in_a_long_query_counts() {
    let blanks = " ".repeat(3 << 20);
    let write = format!("SELECT 1;{blanks} INSERT INTO t (n) VALUES (8)");
    let begin = format!("SELECT 1;{blanks} BEGIN");
    let settings = format!("SET work_mem = '5MB';{blanks} SET DateStyle = German; PREPARE kept AS SELECT 1");
    let (day, reset) = ("SELECT '2024-02-03'::date", "RESET DateStyle");
    same(vec![
        ("a write", queries(&[&write, "SELECT max(n) FROM t"])),
        ("a transaction", queries(&[&begin, "DELETE FROM t", "ROLLBACK", "SELECT count(*) FROM t"])),
        ("settings", queries(&[&settings, day, "EXECUTE kept", "SHOW work_mem", reset, day])),
        ("nothing is left of them", queries(&[day, "EXECUTE kept", "SHOW work_mem"])),
        ("settings of before", queries(&["SET DateStyle = German", &format!("{day}{blanks}"), day])),
    ])
    .await;
}
