//! Any order of messages is answered as the server itself answers it.

use std::fs;

use pointsman::demo::servers::{APP, PgOptions, ServerTls};

use crate::support::{
    Database, Proxy, Stage, cluster, eventually,
    wire::{Batch, Frame, Wire, first_columns, tags},
};

/// Sends the same batch to the primary directly and through the proxy, each on a fresh connection,
/// and returns both answers up to the last of `syncs` ReadyForQuery.
async fn both(stage: &Stage, batch: &Batch, syncs: usize) -> (Vec<Frame>, Vec<Frame>) {
    let direct = Wire::login(stage.primary_port(), APP, &stage.database.name).await;
    (answers(direct, batch, syncs).await, answers(stage.wire().await, batch, syncs).await)
}

async fn answers(mut wire: Wire, batch: &Batch, syncs: usize) -> Vec<Frame> {
    wire.send(batch).await;
    let mut frames = Vec::new();
    for _ in 0..syncs {
        frames.extend(wire.until_ready().await);
    }
    frames
}

/// Every batch with the number of its ReadyForQuery answers.
#[expect(clippy::too_many_lines, reason = "a table, an entry per habit of a client")]
fn batches() -> Vec<(&'static str, usize, Batch)> {
    let batch = Batch::new;
    vec![
        ("one read", 1, batch().query("SELECT 1")),
        ("an empty query", 1, batch().query("")),
        ("nothing but a semicolon and a comment", 1, batch().query(" ; -- nothing")),
        ("several statements", 1, batch().query("SELECT 1; SELECT 2; SELECT 3")),
        ("several statements, an error between", 1, batch().query("SELECT 1; SELECT 1/0; SELECT 3")),
        (
            "three simple queries in one flight",
            3,
            batch().query("SELECT 1").query("SELECT 1/0").query("SELECT 3"),
        ),
        ("one extended read", 1, batch().run("SELECT $1::int + 1", &["41"]).sync()),
        ("nothing but a Sync", 1, batch().sync()),
        ("three Syncs", 3, batch().sync().sync().sync()),
        ("an extended empty query", 1, batch().run("", &[]).sync()),
        ("two statements under one Sync", 1, batch().run("SELECT 1", &[]).run("SELECT 2", &[]).sync()),
        (
            "two statements under two Syncs",
            2,
            batch().run("SELECT 1", &[]).sync().run("SELECT 2", &[]).sync(),
        ),
        (
            "an error skips to the Sync",
            2,
            batch().run("SELECT 1/0", &[]).run("SELECT 2", &[]).sync().run("SELECT 3", &[]).sync(),
        ),
        ("an error in Parse", 2, batch().run("SELEC 1", &[]).sync().run("SELECT 2", &[]).sync()),
        ("an error in Bind", 2, batch().run("SELECT $1::int", &["one"]).sync().run("SELECT 2", &[]).sync()),
        ("too few parameters", 1, batch().run("SELECT $1::int", &[]).sync()),
        (
            "Bind of an unknown statement",
            2,
            batch().bind("", "unknown", &[]).sync().run("SELECT 2", &[]).sync(),
        ),
        ("Execute of an unknown portal", 1, batch().execute("unknown", 0).sync()),
        ("Describe of an unknown statement", 1, batch().describe_statement("unknown").sync()),
        ("Close of an unknown statement is no error", 1, batch().close_statement("unknown").sync()),
        (
            "Describe of both kinds",
            1,
            batch()
                .parse("s", "SELECT $1::int AS a, 'x' AS b")
                .describe_statement("s")
                .bind("p", "s", &["1"])
                .describe_portal("p")
                .execute("p", 0)
                .sync(),
        ),
        (
            "Describe of what returns nothing",
            1,
            batch().parse("s", "CREATE TEMP TABLE nothing ()").describe_statement("s").sync(),
        ),
        (
            "a portal in portions",
            1,
            batch()
                .parse("", "SELECT generate_series(1, 5)")
                .bind("p", "", &[])
                .execute("p", 2)
                .execute("p", 2)
                .execute("p", 2)
                .sync(),
        ),
        (
            "a named statement, twice, and closed",
            2,
            batch()
                .parse("s", "SELECT $1::text")
                .bind("", "s", &["a"])
                .execute("", 0)
                .sync()
                .bind("", "s", &["b"])
                .execute("", 0)
                .close_statement("s")
                .sync(),
        ),
        ("a name that is taken", 1, batch().parse("s", "SELECT 1").parse("s", "SELECT 2").sync()),
        (
            "a write and a read of it under one Sync",
            1,
            batch().run("INSERT INTO t VALUES (1)", &[]).run("SELECT count(*) > 0 FROM t", &[]).sync(),
        ),
        (
            "a transaction in one flight",
            4,
            batch().query("BEGIN").query("INSERT INTO t VALUES (1)").query("SELECT 1").query("ROLLBACK"),
        ),
        (
            "a failed transaction",
            4,
            batch().query("BEGIN").query("SELECT 1/0").query("SELECT 1").query("COMMIT"),
        ),
        (
            "savepoints",
            6,
            batch()
                .query("BEGIN")
                .query("SAVEPOINT a")
                .query("SELECT 1/0")
                .query("ROLLBACK TO a")
                .query("SELECT 1")
                .query("COMMIT"),
        ),
        (
            "what may stand before the first statement",
            6,
            batch()
                .query("BEGIN")
                .query("SET LOCAL work_mem = '7MB'")
                .query("SAVEPOINT a")
                .query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                .query("SHOW work_mem")
                .query("COMMIT"),
        ),
        (
            "an isolation level that is set too late",
            4,
            batch()
                .query("BEGIN")
                .query("SELECT 1")
                .query("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
                .query("COMMIT"),
        ),
        (
            "read-only by SET TRANSACTION",
            4,
            batch()
                .query("BEGIN")
                .query("SET TRANSACTION READ ONLY")
                .query("INSERT INTO t VALUES (1)")
                .query("ROLLBACK"),
        ),
        ("an empty transaction", 2, batch().query("BEGIN").query("COMMIT")),
        ("an empty transaction rolled back", 2, batch().query("BEGIN").query("ROLLBACK")),
        (
            "an empty transaction and a chain",
            3,
            batch().query("BEGIN").query("COMMIT AND CHAIN").query("COMMIT"),
        ),
        (
            "BEGIN's options",
            3,
            batch().query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").query("SELECT 1").query("END"),
        ),
        ("ROLLBACK TO nothing", 3, batch().query("BEGIN").query("ROLLBACK TO nothing").query("ROLLBACK")),
        ("SAVEPOINT outside a transaction", 1, batch().query("SAVEPOINT a")),
        ("SET LOCAL outside a transaction warns", 1, batch().query("SET LOCAL work_mem = '7MB'")),
        ("an unknown setting", 1, batch().query("SET no_such_setting = 1")),
        ("a faulty value", 1, batch().query("SET work_mem = 'plenty'")),
        (
            "BEGIN with statements behind it",
            2,
            batch().query("BEGIN; SELECT 1; SAVEPOINT a").query("COMMIT; SELECT 2"),
        ),
        (
            "two-phase commit",
            4,
            batch()
                .query("BEGIN")
                .query("INSERT INTO t VALUES (1)")
                .query("PREPARE TRANSACTION 'pipelining'")
                .query("ROLLBACK PREPARED 'pipelining'"),
        ),
        ("COMMIT outside a transaction warns", 1, batch().query("COMMIT")),
        ("a second BEGIN warns", 3, batch().query("BEGIN").query("BEGIN").query("COMMIT")),
        ("BEGIN with an unknown option", 1, batch().query("BEGIN nonsense")),
        (
            "extended BEGIN and COMMIT around a read",
            1,
            batch().run("BEGIN", &[]).run("SELECT 1", &[]).run("COMMIT", &[]).sync(),
        ),
        (
            "a function call",
            1,
            // abs(int4), one text argument, text result.
            batch().message(
                b'F',
                &[&1397_i32.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0, 0, 2], b"-7", &[0, 0]].concat(),
            ),
        ),
        ("a notice", 1, batch().query("DO $$ BEGIN RAISE NOTICE 'hear'; END $$")),
        ("a notice of DDL", 1, batch().query("DROP TABLE IF EXISTS missing")),
        ("a large row", 1, batch().query("SELECT repeat('x', 1000000)")),
        ("many rows", 1, batch().query("SELECT generate_series(1, 20000), 'row'")),
        ("columns of every width", 1, batch().query("SELECT NULL, '', 'a', repeat('b', 40000)")),
        ("values in text that look like messages", 1, batch().query("SELECT E'Z\\001\\005I', 'C'")),
        (
            "prepared in SQL",
            3,
            batch().query("PREPARE q AS SELECT 1").query("EXECUTE q").query("DEALLOCATE q"),
        ),
        ("an unknown one in SQL", 1, batch().query("EXECUTE nobody")),
    ]
}

#[tokio::test]
async fn every_order_of_messages_is_answered_byte_for_byte_as_by_the_server() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;

    let mut differences = Vec::new();
    for (name, syncs, batch) in batches() {
        let (direct, proxied) = both(&stage, &batch, syncs).await;
        if direct != proxied {
            differences.push(format!("{name}: {} from the server, {} here", tags(&direct), tags(&proxied)));
        }
    }

    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Units that are longer than what is gathered, so that they are passed on in parts.
fn long_units() -> Vec<(&'static str, Batch)> {
    let (value, large) = ("x".repeat(3000), "y".repeat(100_000));
    let reads = |batch: Batch, count: usize| {
        (0..count).fold(batch, |batch, number| {
            batch.run(&format!("SELECT {number}, length($1)"), &[value.as_str()])
        })
    };
    let insert = "INSERT INTO t VALUES (1) RETURNING 1000";
    vec![
        ("reads, then a write", reads(Batch::new(), 40).run(insert, &[]).run("SELECT 2000", &[]).sync()),
        (
            "an error, reads, then a write",
            reads(Batch::new().run("SELECT 1/0", &[]), 30).run(insert, &[]).sync(),
        ),
        (
            "reads, an error, then a write",
            reads(Batch::new(), 40).run("SELECT 1/0", &[]).run(insert, &[]).sync(),
        ),
        (
            "a long value, then a write",
            Batch::new().run("SELECT length($1)", &[&large]).run(insert, &[]).sync(),
        ),
        (
            "a portal of a part before, then a write",
            Batch::new()
                .parse("", "SELECT length($1)")
                .bind("", "", &[&large])
                .describe_portal("")
                .execute("", 0)
                .run(insert, &[])
                .run("SELECT count(*) FROM t", &[])
                .sync(),
        ),
    ]
}

fn are_alike(name: &str, proxied: &[Frame], direct: &[Frame]) {
    assert_eq!((tags(proxied), first_columns(proxied)), (tags(direct), first_columns(direct)), "{name}");
}

#[tokio::test]
async fn long_units_that_come_to_write_are_answered_as_by_the_server() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    for (name, unit) in long_units() {
        stage.database.ask(0, "TRUNCATE t");
        let direct = Wire::login(stage.primary_port(), APP, &stage.database.name).await;
        let direct = answers(direct, &unit, 1).await;
        let written = stage.database.ask(0, "SELECT count(*) FROM t");
        stage.database.ask(0, "TRUNCATE t");
        let mut wire = stage.wire().await;
        wire.send(&unit).await;

        let proxied = wire.until_ready().await;

        are_alike(name, &proxied, &direct);
        assert_eq!(stage.database.ask(0, "SELECT count(*) FROM t"), written, "{name}");
        assert_eq!(first_columns(&wire.ask(&Batch::new().query("SELECT 7")).await), ["7"], "{name}");
    }
}

/// Units of which the server has answered a part before the rest is sent, in two pieces.
fn units_in_parts() -> Vec<(&'static str, [Batch; 2])> {
    let value = "x".repeat(3000);
    let parts = |batch: Batch, sql: &str| {
        (0..40).fold(batch, |batch, _| batch.run(&format!("{sql} {PART}"), &[value.as_str()]))
    };
    let echo = "SELECT $1::text";
    let insert = "INSERT INTO t VALUES (length($1))";
    let end = || Batch::new().run("INSERT INTO t VALUES (1) RETURNING 1000", &[]).sync();
    vec![
        ("rows that come in pieces", [parts(Batch::new(), echo), end()]),
        ("reads alone", [parts(Batch::new(), echo), Batch::new().run("SELECT 7", &[]).sync()]),
        ("writes", [parts(Batch::new(), insert), end()]),
        ("an error", [parts(Batch::new().run(&format!("SELECT 1/0 {PART}"), &[]), insert), end()]),
        ("rows, then an error", [parts(parts(Batch::new(), echo), "SELECT 1/(length($1) - 3000)"), end()]),
    ]
}

/// Marks statements of a unit's first part.
const PART: &str = "/* first part */";

#[tokio::test]
async fn a_unit_that_comes_in_parts_is_answered_as_by_the_server() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let waiting = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
         AND wait_event = 'ClientRead' AND query LIKE '%{PART}' AND pid <> pg_backend_pid()"
    );
    for (name, [first, rest]) in units_in_parts() {
        stage.database.ask(0, "TRUNCATE t");
        let mut direct = Wire::login(stage.primary_port(), APP, &stage.database.name).await;
        direct.send(&first).await;
        let direct = answers(direct, &rest, 1).await;
        let written = stage.database.ask(0, "SELECT count(*) FROM t");
        stage.database.ask(0, "TRUNCATE t");
        let mut wire = stage.wire().await;

        wire.send(&first).await;
        eventually("a server has answered, and waits for more", async || {
            (0..3).any(|node| stage.database.ask(node, &waiting) != "0")
        })
        .await;
        wire.send(&rest).await;
        let proxied = wire.until_ready().await;

        are_alike(name, &proxied, &direct);
        assert_eq!(stage.database.ask(0, "SELECT count(*) FROM t"), written, "{name}");
        assert_eq!(first_columns(&wire.ask(&Batch::new().query("SELECT 7")).await), ["7"], "{name}");
    }
}

#[tokio::test]
async fn flush_brings_answers_before_the_sync() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let mut wire = stage.wire().await;

    wire.send(&Batch::new().parse("s", "SELECT $1::int").describe_statement("s").flush()).await;
    for tag in *b"1tT" {
        assert_eq!(wire.recv().await.tag, tag);
    }
    wire.send(&Batch::new().bind("", "s", &["5"]).execute("", 0).flush()).await;
    for tag in *b"2DC" {
        assert_eq!(wire.recv().await.tag, tag);
    }
    // A write after a read that was already answered, in the same unit.
    wire.send(&Batch::new().run("INSERT INTO t VALUES (1)", &[]).flush()).await;
    for tag in *b"12C" {
        assert_eq!(wire.recv().await.tag, tag);
    }
    let rest = wire.ask(&Batch::new().run("SELECT count(*) FROM t", &[]).sync()).await;
    assert_eq!((tags(&rest).as_str(), first_columns(&rest)), ("12DCZ", vec!["1".to_owned()]));
}

/// The read itself could run anywhere.
#[tokio::test]
async fn a_pipelined_read_keeps_the_temporary_tables_of_its_session() {
    let stage = Stage::set("", &[]).await;
    let mut wire = stage.wire().await;
    wire.ask(&Batch::new().query("CREATE TEMP TABLE mine AS SELECT 7 AS x")).await;

    wire.send(&Batch::new().run("SELECT 1", &[]).flush()).await;
    for tag in *b"12DC" {
        assert_eq!(wire.recv().await.tag, tag);
    }
    assert_eq!(tags(&wire.ask(&Batch::new().sync()).await), "Z");
    assert_eq!(first_columns(&wire.ask(&Batch::new().query("SELECT x FROM mine")).await), ["7"]);
}

#[tokio::test]
async fn an_error_after_a_write_under_one_sync_undoes_it() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let mut wire = stage.wire().await;

    let batch = Batch::new().run("INSERT INTO t VALUES (1)", &[]).run("SELECT 1/0", &[]).sync();
    let answer = wire.ask(&batch).await;

    // The server folds the constant while it plans, that is at Bind.
    assert_eq!(tags(&answer), "12C1EZ");
    assert_eq!(first_columns(&wire.ask(&Batch::new().query("SELECT count(*) FROM t")).await), ["0"]);
}

#[tokio::test]
async fn what_a_pipelined_transaction_wrote_is_seen_by_later_reads() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;

    let first_is_no_write = [
        Batch::new().run("BEGIN", &[]).run("INSERT INTO t VALUES (1)", &[]).run("COMMIT", &[]),
        Batch::new().run("SHOW transaction_read_only", &[]).run("INSERT INTO t VALUES (1)", &[]),
        Batch::new().run("SELECT pg_is_in_recovery()", &[]).run("DELETE FROM t", &[]),
    ];

    for batch in first_is_no_write {
        let mut wire = stage.wire().await;
        wire.ask(&batch.sync()).await;
        let position = wire.ask(&Batch::new().query("SHOW pointsman.position")).await;
        assert_ne!(first_columns(&position), [""], "its reads are bound to nothing");
    }
}

#[tokio::test]
async fn a_long_pipeline_of_reads_and_writes_keeps_its_order() {
    const UNITS: usize = 500;
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let mut wire = stage.wire().await;

    let mut batch = Batch::new();
    for x in 0..UNITS {
        batch = batch.run("INSERT INTO t VALUES ($1)", &[&x.to_string()]).sync();
        batch = batch.run("SELECT count(*) FROM t", &[]).sync();
    }
    wire.send(&batch).await;

    for x in 0..UNITS {
        assert_eq!(tags(&wire.until_ready().await), "12CZ");
        assert_eq!(first_columns(&wire.until_ready().await), [(x + 1).to_string()]);
    }
}

#[tokio::test]
async fn messages_arriving_byte_by_byte_are_understood() {
    let stage = Stage::set("", &[]).await;
    let mut wire = stage.wire().await;

    for byte in Batch::new().run("SELECT $1::text", &["slow"]).sync().query("SELECT 'done'").bytes() {
        wire.send(&Batch::new().raw(&[*byte])).await;
    }

    assert_eq!(first_columns(&wire.until_ready().await), ["slow"]);
    assert_eq!(first_columns(&wire.until_ready().await), ["done"]);
}

#[tokio::test]
async fn a_client_that_vanishes_in_mid_pipeline_disturbs_nobody() {
    let stage = Stage::set("CREATE TABLE t (x int)", &["cluster.pool.size = 1"]).await;

    for _ in 0..20 {
        let mut wire = stage.wire().await;
        let batch = Batch::new()
            .query("BEGIN")
            .run("INSERT INTO t VALUES (1)", &[])
            .run("SELECT generate_series(1, 100000)", &[])
            .sync()
            .run("SELECT 1", &[]);
        wire.send(&batch).await;
        drop(wire);
    }

    assert_eq!(stage.session().await.value("/* pointsman: primary */ SELECT count(*) FROM t").await, "0");
}

/// pg8000 runs all its statements with values so, and every COMMIT.
#[tokio::test]
async fn what_was_bound_ahead_of_a_flush_is_what_is_executed_behind_it() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let mut wire = stage.wire().await;
    wire.ask(&Batch::new().query("BEGIN")).await;
    wire.ask(&Batch::new().query("INSERT INTO t VALUES (1)")).await;

    let committed = in_parts(&mut wire, "COMMIT").await;

    assert_eq!((tags(&committed), &*committed[1].body), ("2CZ".to_owned(), &b"COMMIT\0"[..]));
    assert_eq!(stage.database.ask(0, "SELECT count(*) FROM t"), "1");
}

/// A server settles how a portal is run when it binds it: what gives no rows then gives none.
#[tokio::test]
async fn what_an_execute_names_is_there_when_it_is_bound() {
    let stage = Stage::set("CREATE TABLE t (x int)", &["cluster.pool.size = 1"]).await;
    let (mut one, mut other) = (stage.wire().await, stage.wire().await);
    one.ask(&Batch::new().query("PREPARE p AS SELECT 'one'")).await;
    other.ask(&Batch::new().query("PREPARE p AS INSERT INTO t VALUES (1)")).await;

    for count in ["1", "2", "3"] {
        assert_eq!(tags(&in_parts(&mut other, "EXECUTE p").await), "2CZ");
        assert_eq!(stage.database.ask(0, "SELECT count(*) FROM t"), count);
        let rows = in_parts(&mut one, "/* pointsman: primary */ EXECUTE p").await;
        assert_eq!(first_columns(&rows), ["one"]);
    }
}

/// Prepares a statement, binds it, and executes it in messages that are flushed one by one.
async fn in_parts(wire: &mut Wire, sql: &str) -> Vec<Frame> {
    wire.ask(&Batch::new().parse("", sql).flush().sync()).await;
    wire.send(&Batch::new().bind("", "", &[]).flush()).await;
    let mut frames = vec![wire.recv().await];
    frames.extend(wire.ask(&Batch::new().execute("", 0).flush().sync()).await);
    frames
}

#[tokio::test]
async fn a_long_pipeline_and_a_long_answer_do_not_wait_for_each_other_within_tls() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("it can be made");
    let (certificate, key) = (folder.path().join("server.crt"), folder.path().join("server.key"));
    fs::write(&certificate, made.cert.pem()).expect("the folder is ours");
    fs::write(&key, made.signing_key.serialize_pem()).expect("the folder is ours");
    let tls = Some(ServerTls { ca: certificate.clone(), certificate, key });
    let cluster = cluster::own_with(PgOptions { replicas: 0, tls, ..PgOptions::default() });
    let database = Database::create(&cluster);
    let proxy = Proxy::start(&cluster, &["cluster.tls.server.mode = 'require'"]).await;
    let mut client = Wire::login(proxy.port(), APP, &database.name).await;

    // Both are longer than what the kernel keeps of them.
    let long = 64 << 20;
    let rows = format!("SELECT repeat('.', 1024) FROM generate_series(1, {})", long >> 10);
    let value = ".".repeat(32 << 10);
    let mut batch = Batch::new().run(&rows, &[]);
    for _ in 0..long >> 15 {
        batch = batch.run("SELECT length($1)", &[&value]);
    }
    assert!(client.trade(&batch.sync()).await > long);

    assert_eq!(first_columns(&client.ask(&Batch::new().query("SELECT 'alive'")).await), ["alive"]);
}
