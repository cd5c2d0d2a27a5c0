//! Prepared statements of both kinds over pooled server connections.

use std::collections::HashSet;

use pointsman::demo::servers::APP;

use crate::support::{
    Database, Proxy, Stage, cluster, code, eventually, ports,
    wire::{Batch, Frame, Wire, first_columns, tags},
};

#[tokio::test]
async fn a_prepared_statement_is_routed_afresh_at_every_execution() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let session = stage.session().await;
    let read = session.prepare("SELECT inet_server_port() WHERE $1::int > 0").await.expect("it is prepared");
    let write = session
        .prepare("INSERT INTO t VALUES ($1) RETURNING inet_server_port()")
        .await
        .expect("it is prepared");

    let mut read_on = HashSet::new();
    for x in 1..=40_i32 {
        read_on.extend(ports(&session.query(&read, &[&x]).await.expect("a read")));
        let wrote_on = ports(&session.query(&write, &[&x]).await.expect("a write"));
        assert_eq!(wrote_on, [stage.primary_port()]);
        if x % 10 == 0 {
            // The floor of the last write is met again.
            stage.cluster.wait_until_caught_up(0).expect("replicas follow");
            tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        }
    }

    assert!(read_on.iter().any(|port| stage.is_replica(*port)), "{read_on:?}");
}

#[tokio::test]
async fn a_prepared_statements_literals_are_read_as_its_own_session_reads_them() {
    let stage = Stage::set("", &["cluster.pool.size = 1"]).await;
    let differing = [
        ("TimeZone", ["UTC", "Asia/Karachi"], "SELECT '2020-06-01 12:00'::timestamptz AT TIME ZONE 'UTC'"),
        ("DateStyle", ["ISO, MDY", "ISO, DMY"], "SELECT '01/02/2020'::date - '2020-01-01'::date"),
        ("standard_conforming_strings", ["on", "off"], r"SELECT length('a\\b')"),
        ("transform_null_equals", ["on", "off"], "SELECT (null::int = null)::text"),
    ];
    for (setting, values, sql) in differing {
        for name in ["", "s", "of SQL"] {
            let mut answers = Vec::new();
            for port in [stage.primary_port(), stage.proxy.port()] {
                let mut wires = Vec::new();
                for value in values {
                    let mut wire = Wire::login(port, APP, &stage.database.name).await;
                    wire.ask(&Batch::new().query(&format!("SET {setting} = '{value}'"))).await;
                    wire.ask(&match name {
                        "of SQL" => Batch::new().query(&format!("PREPARE s AS {sql}")),
                        _ => Batch::new().parse(name, sql).sync(),
                    })
                    .await;
                    wires.push(wire);
                }
                for wire in &mut wires {
                    let execute = match name {
                        "of SQL" => Batch::new().query("EXECUTE s"),
                        _ => Batch::new().bind("", name, &[]).execute("", 0).sync(),
                    };
                    answers.push(first_columns(&wire.ask(&execute).await));
                }
            }
            assert_eq!(answers[..2], answers[2..], "{setting} {name:?}");
            assert_ne!(answers[0], answers[1], "{setting} makes no difference to the server");
        }
    }
}

#[tokio::test]
async fn a_time_that_is_read_off_the_clock_is_not_another_sessions() {
    let stage = Stage::set("", &["cluster.pool.size = 1"]).await;
    let sql = "SELECT 'now'::timestamptz < $1::timestamptz";
    let mut first = stage.wire().await;
    first.ask(&Batch::new().parse("s", sql).sync()).await;
    first.ask(&Batch::new().bind("", "s", &["2020-01-01"]).execute("", 0).sync()).await;
    let between = first_columns(&first.ask(&Batch::new().query("SELECT clock_timestamp()")).await).remove(0);

    let mut second = stage.wire().await;
    second.ask(&Batch::new().parse("s", sql).sync()).await;
    let answer = second.ask(&Batch::new().bind("", "s", &[&between]).execute("", 0).sync()).await;

    assert_eq!(first_columns(&answer), ["f"]);
}

#[tokio::test]
async fn a_question_to_the_proxy_can_be_prepared() {
    let stage = Stage::set("", &[]).await;
    let mut wire = stage.wire().await;
    wire.ask(&Batch::new().query("SELECT 1")).await;

    let described =
        wire.ask(&Batch::new().parse("s", "SHOW pointsman.route").describe_statement("s").sync()).await;
    let answer = wire.ask(&Batch::new().bind("", "s", &[]).execute("", 0).sync()).await;

    assert_eq!(tags(&described), "1tTZ");
    assert_eq!(tags(&answer), "2DCZ");
    assert!(first_columns(&answer)[0].contains("choice="), "{answer:?}");

    // As asyncpg asks: what was prepared for it is no statement that went anywhere.
    wire.ask(&Batch::new().query("/* pointsman: primary */ SELECT 1")).await;
    wire.ask(&Batch::new().parse("t", "SHOW pointsman.route").describe_statement("t").sync()).await;
    let answer = wire.ask(&Batch::new().bind("", "t", &[]).execute("", 0).sync()).await;
    assert!(first_columns(&answer)[0].contains("reason=hint"), "{answer:?}");

    // As asyncpg runs a text for the first time: what was prepared has chosen where it runs.
    let statement = Batch::new().parse("u", "/* pointsman: primary */ SELECT 2").describe_statement("u");
    wire.send(&statement.flush()).await;
    while wire.recv().await.tag != b'T' {}
    wire.ask(&Batch::new().bind("", "u", &[]).execute("", 0).sync()).await;
    let route = wire.ask(&Batch::new().query("SHOW pointsman.route")).await;
    assert!(first_columns(&route)[0].contains("reason=hint choice=write"), "{route:?}");
}

#[tokio::test]
async fn how_a_statement_was_routed_is_not_told_of_another_in_its_pipeline() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let mut wire = stage.wire().await;
    wire.ask(&Batch::new().parse("other", "SELECT 1 FROM t").sync()).await;
    let prepared = Batch::new().parse("s", "INSERT INTO t VALUES (1)").describe_statement("s");

    // What is only described again was routed when it was prepared.
    wire.send(&prepared.flush()).await;
    while wire.recv().await.tag != b'n' {}
    wire.send(&Batch::new().describe_statement("s").flush()).await;
    while wire.recv().await.tag != b'n' {}
    wire.ask(&Batch::new().bind("", "s", &[]).execute("", 0).sync()).await;
    let own = wire.ask(&Batch::new().query("SHOW pointsman.route")).await;

    wire.send(&Batch::new().parse("s2", "INSERT INTO t VALUES (2)").describe_statement("s2").flush()).await;
    while wire.recv().await.tag != b'n' {}
    wire.ask(&Batch::new().bind("", "other", &[]).execute("", 0).sync()).await;
    let others = wire.ask(&Batch::new().query("SHOW pointsman.route")).await;

    assert!(first_columns(&own)[0].contains("reason=dml choice=write"), "{own:?}");
    assert!(first_columns(&others)[0].contains("choice=kept"), "{others:?}");
    assert!(!first_columns(&others)[0].contains("reason=dml"), "{others:?}");
}

/// The SQLSTATE of the error among some frames.
fn error_code(frames: &[Frame]) -> String {
    frames.iter().find(|frame| frame.tag == b'E').map(Frame::code).unwrap_or_default()
}

/// SET takes no parameters, `set_config` does.
#[tokio::test]
async fn the_proxys_own_settings_are_those_of_set_config_and_current_setting() {
    let stage = Stage::set("", &[]).await;
    let mut wire = stage.wire().await;
    let get = "SELECT current_setting('pointsman.consistency')";

    let literal = "SELECT set_config('pointsman.consistency', 'eventual', false)";
    let answer = wire.ask(&Batch::new().query(literal)).await;
    assert_eq!((tags(&answer).as_str(), first_columns(&answer)), ("TDCZ", vec!["eventual".to_owned()]));
    let answer = wire.ask(&Batch::new().query(get)).await;
    assert_eq!((tags(&answer).as_str(), first_columns(&answer)), ("TDCZ", vec!["eventual".to_owned()]));

    let bound = [
        ("SELECT set_config('pointsman.consistency', $1, false)", &["user"][..]),
        ("SELECT set_config($1, $2, $3) AS set;", &["Pointsman.consistency", "global", "f"]),
        ("SELECT pg_catalog.set_config('pointsman.consistency', $1::text, false)", &["monotonic"]),
    ];
    for (at, (sql, values)) in bound.into_iter().enumerate() {
        let level = values[values.len().min(2) - 1];
        let at_once =
            Batch::new().parse("", sql).bind("", "", values).describe_portal("").execute("", 0).sync();
        let answer = wire.ask(&at_once).await;
        assert_eq!(
            (tags(&answer).as_str(), first_columns(&answer)),
            ("12TDCZ", vec![level.to_owned()]),
            "{sql}"
        );
        assert_eq!(
            first_columns(&wire.ask(&Batch::new().query("SHOW pointsman.consistency")).await),
            [level]
        );

        wire.ask(&Batch::new().query("RESET pointsman.consistency")).await;
        let name = format!("s{at}");
        wire.ask(&Batch::new().parse(&name, sql).describe_statement(&name).sync()).await;
        let answer = wire.ask(&Batch::new().bind("", &name, values).execute("", 0).sync()).await;
        assert_eq!(
            (tags(&answer).as_str(), first_columns(&answer)),
            ("2DCZ", vec![level.to_owned()]),
            "{sql}"
        );
        assert_eq!(first_columns(&wire.ask(&Batch::new().query(get)).await), [level], "{sql}");
    }

    // An unknown one is an error, or NULL where that is asked for, as the server's own.
    let missing =
        "SELECT current_setting('pointsman.x', true), current_setting('pointsman.consistency', true)";
    for batch in [Batch::new().query(missing), Batch::new().run(missing, &[]).sync()] {
        let answer = wire.ask(&batch).await;
        let row = answer.iter().find(|frame| frame.tag == b'D').map(Frame::columns);
        assert_eq!(row, Some(vec![None, Some("monotonic".to_owned())]));
    }
    for sql in ["SELECT current_setting('pointsman.x')", "SELECT current_setting('pointsman.x', false)"] {
        assert_eq!(error_code(&wire.ask(&Batch::new().query(sql)).await), "42704", "{sql}");
    }

    // What the proxy cannot read is not passed over in silence.
    for sql in
        ["SELECT set_config('pointsman.consistency', current_user, false)", "SELECT 1; SHOW pointsman.route"]
    {
        let answer = wire.ask(&Batch::new().query(sql)).await;
        assert_eq!(error_code(&answer), "0A000", "{sql}");
    }
    let wrong = Batch::new().parse("", bound[0].0).bind("", "", &["strong"]).execute("", 0).sync();
    assert_eq!(error_code(&wire.ask(&wrong).await), "22023");
    let others =
        Batch::new().parse("", "SELECT set_config($1, $2, false)").bind("", "", &["work_mem", "5MB"]);
    wire.ask(&others.execute("", 0).sync()).await;
    assert_eq!(first_columns(&wire.ask(&Batch::new().query("SHOW work_mem")).await), ["5MB"]);
}

#[tokio::test]
async fn two_clients_use_one_name_for_different_statements() {
    let stage = Stage::set("", &["cluster.pool.size = 1"]).await;
    let (mut one, mut other) = (stage.wire().await, stage.wire().await);
    one.ask(&Batch::new().parse("s", "SELECT 'one'").sync()).await;
    other.ask(&Batch::new().parse("s", "SELECT 'other'").sync()).await;

    for _ in 0..10 {
        let execute = Batch::new().bind("", "s", &[]).execute("", 0).sync();
        assert_eq!(first_columns(&one.ask(&execute).await), ["one"]);
        assert_eq!(first_columns(&other.ask(&execute).await), ["other"]);
    }
}

/// Ours have names on the servers as well, which any client may guess.
#[tokio::test]
async fn closing_what_a_client_does_not_have_closes_nothing_of_another() {
    let stage = Stage::set("", &["cluster.pool.size = 1"]).await;
    let (mut one, mut other) = (stage.wire().await, stage.wire().await);
    // On every server that a read may run on.
    for _ in 0..10 {
        one.ask(&Batch::new().parse("s", "SELECT 'one'").sync()).await;
        one.ask(&Batch::new().bind("", "s", &[]).execute("", 0).sync()).await;
        one.ask(&Batch::new().close_statement("s").sync()).await;
    }
    one.ask(&Batch::new().parse("s", "SELECT 'one'").sync()).await;

    for number in 1..5 {
        let close = Batch::new().close_statement(&format!("pointsman_{number}")).sync();
        assert_eq!(tags(&other.ask(&close).await), "3Z");
        for _ in 0..5 {
            let execute = Batch::new().bind("", "s", &[]).execute("", 0).sync();
            assert_eq!(first_columns(&one.ask(&execute).await), ["one"], "{number}");
        }
    }
}

/// What an attempt on a replica confirmed is confirmed again by the one that counts.
#[tokio::test]
async fn a_batch_that_is_asked_again_elsewhere_defines_its_statements_once() {
    let cluster = cluster::own();
    let database = Database::create(&cluster);
    let proxy = Proxy::start(&cluster, &[]).await;
    let mut wire = Wire::login(proxy.port(), APP, &database.name).await;
    for replica in [1, 2] {
        cluster.pause_replay(replica).expect("replay can be paused");
    }
    let new_table = "CREATE TABLE late AS SELECT 1 AS x; GRANT ALL ON late TO app";
    cluster.node(0).sql(&database.name, new_table).expect("it is made");
    for replica in [1, 2] {
        let address = format!("node=\"{}\"", cluster.node(replica).address());
        let behind = async || proxy.metric("pointsman_replica_lag_bytes", &[&address]) >= 1.0;
        eventually("the replica is known to lag", behind).await;
    }

    // A replica knows no such table, the primary knows no such quotient.
    let failing =
        Batch::new().parse("a", "SELECT 'a'").run("SELECT x / 0 FROM late", &[]).close_statement("a").sync();
    let frames = wire.ask(&failing).await;
    let error = frames.iter().find(|frame| frame.tag == b'E').expect("it fails");
    assert_eq!(error.code(), "22012");
    let execute = Batch::new().bind("", "a", &[]).execute("", 0).sync();
    assert_eq!(first_columns(&wire.ask(&execute).await), ["a"]);
    assert!(proxy.metric("pointsman_reroutes_total", &["stale"]) >= 1.0, "it was asked once");
}

#[tokio::test]
async fn a_write_through_the_last_of_many_portals_is_seen_by_the_next_read() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let proxy = Proxy::start(&cluster, &[]).await;
    let mut wire = Wire::login(proxy.port(), APP, &database.name).await;
    for replica in [1, 2] {
        cluster.pause_replay(replica).expect("replay can be paused");
    }
    let mut batch = Batch::new().parse("read", "SELECT 1").parse("write", "INSERT INTO t VALUES (1)");
    for portal in 0..300 {
        batch = batch.bind(&format!("p{portal}"), "read", &[]);
    }
    wire.ask(&Batch::new().query("BEGIN")).await;
    wire.ask(&batch.bind("last", "write", &[]).execute("last", 0).sync()).await;
    wire.ask(&Batch::new().query("COMMIT")).await;
    assert_eq!(first_columns(&wire.ask(&Batch::new().query("SELECT count(*) FROM t")).await), ["1"]);
}

#[tokio::test]
async fn more_statements_than_a_server_keeps_all_stay_usable() {
    let stage = Stage::set("", &["cluster.pool.size = 1", "cluster.pool.prepared_statements = 5"]).await;
    let session = stage.session().await;
    let mut statements = Vec::new();
    for x in 0..50 {
        let sql = format!("/* pointsman: primary */ SELECT {x} + $1::int");
        statements.push(session.prepare(&sql).await.expect("it is prepared"));
    }

    for _ in 0..3 {
        for (x, statement) in (0..).zip(&statements) {
            let row = session.query_one(statement, &[&1_i32]).await.expect("it is still known");
            assert_eq!(row.get::<_, i32>(0), x + 1);
        }
    }

    let kept = "SELECT count(*) FROM pg_prepared_statements";
    let kept: usize = session
        .value(&format!("/* pointsman: primary */ {kept}"))
        .await
        .parse()
        .expect("a count is a number");
    assert!(kept <= 5, "{kept} statements on the server connection");
}

#[tokio::test]
async fn sql_prepare_execute_and_deallocate_work_over_the_pool() {
    let stage = Stage::set("CREATE TABLE t (x int)", &["cluster.pool.size = 1"]).await;
    let (one, other) = (stage.session().await, stage.session().await);

    one.run("PREPARE add (int) AS INSERT INTO t VALUES ($1)").await;
    one.run("PREPARE q AS SELECT count(*) FROM t").await;
    other.run("PREPARE q AS SELECT 'other'").await;
    one.run("EXECUTE add (1)").await;

    assert_eq!(one.value("EXECUTE q").await, "1");
    assert_eq!(other.value("EXECUTE q").await, "other");
    one.run("DEALLOCATE q").await;
    assert_eq!(one.error("EXECUTE q").await, "26000");
    assert_eq!(other.value("EXECUTE q").await, "other");
}

#[tokio::test]
async fn what_is_prepared_is_shown_where_it_could_not_be_prepared_again() {
    let stage = Stage::set("CREATE SCHEMA s; CREATE TABLE s.t (x int)", &["cluster.pool.size = 1"]).await;
    let session = stage.session().await;
    session.run("SET search_path = s").await;
    session.run("/* pointsman: primary */ PREPARE p AS SELECT x FROM t").await;

    session.run("RESET search_path").await;

    let shown = "/* pointsman: primary */ SELECT name FROM pg_prepared_statements WHERE name = 'p'";
    assert_eq!(session.value(shown).await, "p");
}

#[tokio::test]
async fn deallocate_all_and_discard_all_forget_this_sessions_statements_only() {
    let stage = Stage::set("", &["cluster.pool.size = 1"]).await;
    for forget in ["DEALLOCATE ALL", "DISCARD ALL"] {
        let (mut one, mut other) = (stage.wire().await, stage.wire().await);
        one.ask(&Batch::new().parse("s", "SELECT 'one'").sync()).await;
        other.ask(&Batch::new().parse("s", "SELECT 'other'").sync()).await;

        one.ask(&Batch::new().query(forget)).await;

        let execute = Batch::new().bind("", "s", &[]).execute("", 0).sync();
        let gone = one.ask(&execute).await;
        assert_eq!((tags(&gone).as_str(), gone[0].code().as_str()), ("EZ", "26000"), "{forget}");
        assert_eq!(first_columns(&other.ask(&execute).await), ["other"], "{forget}");
    }
}

#[tokio::test]
async fn a_plan_made_stale_by_ddl_is_healed_where_the_result_keeps_its_shape() {
    let stage = Stage::set("CREATE TABLE t (a int, b int); INSERT INTO t VALUES (1, 2)", &[]).await;
    let session = stage.session().await;
    let same = session.prepare("SELECT a FROM t").await.expect("it is prepared");
    assert_eq!(session.query_one(&same, &[]).await.expect("a row").get::<_, i32>(0), 1);

    stage.session().await.run("ALTER TABLE t DROP COLUMN b; ALTER TABLE t ADD c text").await;

    assert_eq!(session.query_one(&same, &[]).await.expect("healed").get::<_, i32>(0), 1);
}

#[tokio::test]
async fn a_plan_whose_result_changed_its_shape_fails_as_on_the_server() {
    let stage = Stage::set("CREATE TABLE t (a int); INSERT INTO t VALUES (1)", &[]).await;
    let mut wire = stage.wire().await;
    let prepare = Batch::new().parse("s", "SELECT * FROM t").describe_statement("s").bind("", "s", &[]);
    assert_eq!(tags(&wire.ask(&prepare.execute("", 0).sync()).await), "1tT2DCZ");

    stage.session().await.run("ALTER TABLE t ADD b text").await;
    stage.cluster.wait_until_caught_up(0).expect("replicas follow");

    // The client still holds the old description: two columns would be decoded wrongly.
    let answer = wire.ask(&Batch::new().bind("", "s", &[]).execute("", 0).sync()).await;
    assert_eq!((tags(&answer).as_str(), answer[0].code().as_str()), ("EZ", "0A000"));
}

/// pgjdbc describes what it binds the first time only, libpq every time, and pgx names a format for each column
/// that it knows of as well.
#[tokio::test]
async fn a_result_that_is_not_as_its_first_portals_fails_as_on_the_server_unless_it_is_described() {
    let stage = Stage::set("CREATE TABLE t (a int, b int); INSERT INTO t VALUES (1, 3)", &[]).await;
    let session = stage.session().await;
    let mut wire = stage.wire().await;
    let bind = || Batch::new().bind("", "s", &[]);
    let first = Batch::new().parse("s", "SELECT * FROM t").bind("", "s", &[]).describe_portal("");
    assert_eq!(tags(&wire.ask(&first.execute("", 0).sync()).await), "12TDCZ");

    // It is prepared on both replicas, and what comes next may ask one of them only.
    for columns in 2..12 {
        for _ in 0..10 {
            let answer = wire.ask(&bind().execute("", 0).sync()).await;
            assert_eq!(tags(&answer), "2DCZ", "as it was told last: {answer:?}");
        }
        session.run(&format!("ALTER TABLE t ADD more_{columns} text")).await;
        stage.cluster.wait_until_caught_up(0).expect("replicas follow");

        let for_each = Batch::new().bind_for_columns("", "s", columns).describe_portal("");
        for batch in [bind(), for_each] {
            let answer = wire.ask(&batch.execute("", 0).sync()).await;
            assert_eq!((tags(&answer).as_str(), answer[0].code().as_str()), ("EZ", "0A000"));
        }
        let described = wire.ask(&bind().describe_portal("").execute("", 0).sync()).await;
        assert_eq!(
            (tags(&described).as_str(), described[2].columns().len()),
            ("2TDCZ", usize::from(columns) + 1)
        );
    }
}

#[tokio::test]
async fn one_text_under_two_search_paths_reads_two_tables() {
    let stage = Stage::set(
        "CREATE SCHEMA a; CREATE SCHEMA b; CREATE TABLE a.t AS SELECT 'a' AS x; CREATE TABLE b.t AS SELECT 2 AS x, 3 AS y",
        &["cluster.pool.size = 1"],
    )
    .await;
    let (mut a, mut b) = (stage.wire().await, stage.wire().await);
    a.ask(&Batch::new().query("SET search_path = a")).await;
    b.ask(&Batch::new().query("SET search_path = b")).await;

    for wire in [&mut a, &mut b] {
        wire.ask(&Batch::new().parse("s", "SELECT * FROM t").describe_statement("s").sync()).await;
    }

    for _ in 0..10 {
        let execute = Batch::new().bind("", "s", &[]).execute("", 0).sync();
        assert_eq!(first_columns(&a.ask(&execute).await), ["a"]);
        assert_eq!(first_columns(&b.ask(&execute).await), ["2"]);
    }
}

#[tokio::test]
async fn a_prepared_statement_on_a_missing_table_is_the_servers_error() {
    let stage = Stage::set("", &[]).await;
    let session = stage.session().await;

    let error = session.prepare("SELECT * FROM missing").await.expect_err("no such table");

    assert_eq!(code(&error), "42P01");
    assert_eq!(session.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn parameters_keep_the_types_the_client_was_told_on_every_server() {
    let settings = ["cluster.pool.size = 1", "cluster.routing.consistency = 'eventual'"];
    let stage = Stage::set("CREATE TABLE t (x int); INSERT INTO t VALUES (7)", &settings).await;
    let mut wire = stage.wire().await;
    let hinted = "/* pointsman: primary */ SELECT count(*) FROM t WHERE x = $1";
    for (name, sql) in [("everywhere", "SELECT count(*) FROM t WHERE x = $1"), ("there", hinted)] {
        let told = wire.ask(&Batch::new().parse(name, sql).describe_statement(name).sync()).await;
        assert_eq!(tags(&told), "1tTZ");
    }

    // From here on a server that sees the text for the first time would infer another type.
    stage.session().await.run("ALTER TABLE t ALTER x TYPE bigint").await;
    stage.cluster.wait_until_caught_up(0).expect("replicas follow");

    for round in 0..12 {
        for name in ["everywhere", "there"] {
            let execute = Batch::new().bind_int4("", name, 7).execute("", 0).sync();
            assert_eq!(first_columns(&wire.ask(&execute).await), ["1"], "round {round} {name}");
        }
    }
}

#[tokio::test]
async fn a_prepared_statement_that_a_replica_refused_is_a_write_from_then_on() {
    let stage = Stage::set(
        "CREATE TABLE t (x int); \
         CREATE FUNCTION writes() RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1) RETURNING 1'; \
         CREATE FUNCTION lies() RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN RETURN writes(); END'",
        &[],
    )
    .await;
    let mut wire = stage.wire().await;
    wire.ask(&Batch::new().parse("s", "SELECT lies()").sync()).await;

    for _ in 0..5 {
        let answer = wire.ask(&Batch::new().bind("", "s", &[]).execute("", 0).sync()).await;
        assert_eq!(first_columns(&answer), ["1"]);
    }

    assert_eq!(stage.proxy.metric("pointsman_reroutes_total", &["reason=\"writes\""]), 1.0);
}

#[tokio::test]
async fn a_name_that_one_client_gave_means_nothing_to_another() {
    let stage = Stage::set("", &["cluster.pool.size = 1"]).await;
    let owner = stage.session().await;
    owner.run("PREPARE mine AS SELECT txid_current() > 0").await;
    assert_eq!(owner.value("EXECUTE mine").await, "t");

    // On the same server connection, where the statement has that name.
    let mut other = stage.wire().await;
    for batch in [
        Batch::new().run("SELECT txid_current()", &[]).bind("", "mine", &[]).execute("", 0),
        Batch::new().run("SELECT txid_current()", &[]).describe_statement("mine"),
    ] {
        let answer = other.ask(&batch.sync()).await;
        let error = answer.iter().find(|frame| frame.tag == b'E').map(Frame::code);
        assert_eq!(error.as_deref(), Some("26000"), "{}", tags(&answer));
        assert_eq!(owner.value("EXECUTE mine").await, "t");
    }
    other.ask(&Batch::new().run("SELECT txid_current()", &[]).close_statement("mine").sync()).await;

    assert_eq!(owner.value("EXECUTE mine").await, "t");
}

/// What a client is told in answer to a string: first columns, then the error's code.
async fn told(wire: &mut Wire, string: &str) -> Vec<String> {
    let frames = wire.ask(&Batch::new().query(string)).await;
    let error = frames.iter().filter(|frame| frame.tag == b'E').map(Frame::code);
    first_columns(&frames).into_iter().chain(error).collect()
}

#[tokio::test]
async fn what_a_failed_string_prepared_and_dropped_is_as_on_the_server() {
    let stage = Stage::set("", &["cluster.pool.size = 1"]).await;
    let mut direct = Wire::login(stage.primary_port(), APP, &stage.database.name).await;
    let (mut one, mut other) = (stage.wire().await, stage.wire().await);
    let hint = "/* pointsman: primary */";
    other.ask(&Batch::new().parse("shared", &format!("{hint} SELECT 'shared'")).sync()).await;

    for string in [
        "PREPARE z AS SELECT 1; SELECT 1/0",
        "EXECUTE z",
        "DEALLOCATE z; SELECT 1/0",
        "EXECUTE z",
        "PREPARE z AS SELECT 'old'",
        "DEALLOCATE z; PREPARE z AS SELECT 'new'; SELECT 1/0; DEALLOCATE z",
        "EXECUTE z",
        "PREPARE z AS SELECT 'taken'; DEALLOCATE z",
        "EXECUTE z",
        "BEGIN; DEALLOCATE z; PREPARE z AS SELECT 'begun'; SELECT 1/0",
        "ROLLBACK",
        "EXECUTE z",
        "DEALLOCATE ALL; SELECT 1/0",
        "EXECUTE z",
        "PREPARE z AS SELECT 'left'; SELECT 1/0",
    ] {
        let string = format!("{hint} {string}");
        assert_eq!(told(&mut one, &string).await, told(&mut direct, &string).await, "{string}");
        if string.contains("BEGIN") {
            continue;
        }
        // Another session has the same server connection in between, and loses nothing by it.
        let execute = Batch::new().bind("", "shared", &[]).execute("", 0).sync();
        assert_eq!(first_columns(&other.ask(&execute).await), ["shared"], "behind {string}");
    }

    assert_eq!(told(&mut other, "EXECUTE z").await, ["26000"]);
    assert_eq!(told(&mut other, &format!("{hint} PREPARE z AS SELECT 'theirs'")).await, [""; 0]);
    assert_eq!(told(&mut other, "EXECUTE z").await, ["theirs"]);
    assert_eq!(told(&mut one, "EXECUTE z").await, ["left"]);
}

#[tokio::test]
async fn what_a_failed_pipeline_prepared_is_as_on_the_server() {
    let stage = Stage::set("", &["cluster.pool.size = 1"]).await;
    let mut direct = Wire::login(stage.primary_port(), APP, &stage.database.name).await;
    let (mut one, mut other) = (stage.wire().await, stage.wire().await);
    let run = |batch: Batch, sql: &str| batch.run(&format!("/* pointsman: primary */ {sql}"), &[]);

    for strings in [
        &["PREPARE z AS SELECT 'z'", "SELECT 1/0", "DEALLOCATE z"][..],
        &["EXECUTE z", "DEALLOCATE z", "PREPARE z AS SELECT 'new'", "SELECT 1/0", "DEALLOCATE z"],
        &["EXECUTE z"],
        &["SELECT 1", "DEALLOCATE ALL", "SELECT 1/0"],
        &["EXECUTE z"],
    ] {
        let batch = strings.iter().fold(Batch::new(), |batch, sql| run(batch, sql)).sync();
        let (through, straight) = (one.ask(&batch).await, direct.ask(&batch).await);
        assert_eq!(tags(&through), tags(&straight), "{strings:?}");
        assert_eq!(first_columns(&through), first_columns(&straight), "{strings:?}");
        assert_eq!(told(&mut other, "/* pointsman: primary */ EXECUTE z").await, ["26000"], "{strings:?}");
    }
}

/// Each string writes one row, through a statement that it prepares itself.
#[tokio::test]
async fn a_write_by_a_statement_prepared_in_the_same_string_is_seen_by_the_next_read() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let proxy = Proxy::start(&cluster, &[]).await;
    for replica in [1, 2] {
        cluster.pause_replay(replica).expect("replay can be paused");
    }
    let insert = "INSERT INTO t VALUES (1)";
    let batch = Batch::new;

    for (first, writes) in [
        ("SELECT 1", batch().query(&format!("PREPARE w AS {insert}; EXECUTE w"))),
        ("SELECT 1", batch().query(&format!("BEGIN; PREPARE w AS {insert}; EXECUTE w; COMMIT"))),
        ("PREPARE w AS SELECT 1", batch().query(&format!("DEALLOCATE w; PREPARE w AS {insert}; EXECUTE w"))),
        (
            "PREPARE w AS SELECT 1",
            batch().query(&format!("DEALLOCATE ALL; PREPARE w AS {insert}; EXECUTE w")),
        ),
        ("SELECT 1", batch().run(&format!("PREPARE w AS {insert}"), &[]).run("EXECUTE w", &[]).sync()),
        (
            "SELECT 1",
            batch().run(&format!("PREPARE w AS {insert}"), &[]).bind("", "w", &[]).execute("", 0).sync(),
        ),
    ] {
        let mut wire = Wire::login(proxy.port(), APP, &database.name).await;
        let before: u32 = database.ask(0, "SELECT count(*) FROM t").parse().expect("a count is a number");
        wire.ask(&Batch::new().query(first)).await;

        let answer = wire.ask(&writes).await;

        assert!(!answer.iter().any(|frame| frame.tag == b'E'), "{first}, {writes:?}: {answer:?}");
        for _ in 0..5 {
            let seen = told(&mut wire, "SELECT count(*) FROM t").await;
            assert_eq!(seen, [(before + 1).to_string()], "{first}, {writes:?}");
        }
    }
}

#[tokio::test]
async fn a_statement_that_could_not_be_prepared_elsewhere_is_prepared_there_when_it_can() {
    let stage = Stage::set(
        "CREATE SCHEMA a; CREATE SCHEMA b; CREATE TABLE a.t AS SELECT 'a' AS x",
        &["cluster.pool.size = 1"],
    )
    .await;
    let mut wire = stage.wire().await;
    told(&mut wire, "SET search_path = a").await;
    assert_eq!(told(&mut wire, "/* pointsman: primary */ PREPARE q AS SELECT * FROM t").await, [""; 0]);

    // On the connections to both replicas, and on the primary's, which has it.
    told(&mut wire, "SET search_path = b").await;
    for _ in 0..10 {
        assert_eq!(told(&mut wire, "EXECUTE q").await, ["42P01"]);
    }
    told(&mut wire, "SET search_path = a").await;

    for _ in 0..10 {
        assert_eq!(told(&mut wire, "EXECUTE q").await, ["a"]);
        assert_eq!(told(&mut wire, "/* pointsman: primary */ EXECUTE q").await, ["a"]);
    }
}

#[tokio::test]
async fn a_statement_whose_table_is_gone_can_be_deallocated() {
    let stage = Stage::set("CREATE TABLE gone (x int)", &["cluster.pool.size = 1"]).await;
    for (define, extended) in [("PREPARE", false), ("Parse", true)] {
        let mut wire = stage.wire().await;
        let select = "SELECT * FROM gone";
        let batch = match extended {
            true => Batch::new().parse("q", &format!("/* pointsman: primary */ {select}")).sync(),
            false => Batch::new().query(&format!("/* pointsman: primary */ PREPARE q AS {select}")),
        };
        assert!(!wire.ask(&batch).await.iter().any(|frame| frame.tag == b'E'), "{define}");

        stage.database.run("ALTER TABLE gone RENAME TO other");

        for hint in ["/* pointsman: primary */", ""] {
            // Without a hint it is a replica's, which never had the statement.
            let string =
                format!("{hint} BEGIN READ ONLY; DEALLOCATE q; PREPARE q AS SELECT 1; EXECUTE q; COMMIT");
            assert_eq!(told(&mut wire, &string).await, ["1"], "{define} {hint}");
        }
        for answer in [&[][..], &["26000"]] {
            assert_eq!(told(&mut wire, "DEALLOCATE q").await, answer, "{define}");
        }
        stage.database.run("ALTER TABLE other RENAME TO gone");
    }
}

/// Prepares the same text in front of a definition and behind it, the second time under another name.
async fn prepared_around_a_definition(mut wire: Wire, mut other: Wire, elsewhere: bool) -> Vec<String> {
    // The types of what is bound are the server's to say, and are told.
    const READ: &str = "SELECT x FROM again WHERE 1 = $1";
    let first = "DROP TABLE IF EXISTS again; CREATE TABLE again (x int); INSERT INTO again VALUES (1)";
    let second = "DROP TABLE again; CREATE TABLE again (x text); INSERT INTO again VALUES ('one')";
    let prepares = |name: &str| Batch::new().parse(name, READ).describe_statement(name).sync();
    let runs = |name: &str| Batch::new().bind("", name, &["1"]).execute("", 0).sync();
    let definer = if elsewhere { &mut other } else { &mut wire };
    definer.ask(&Batch::new().query(first)).await;
    let mut answers = Vec::new();
    for batch in [Batch::new().query("BEGIN"), prepares("a"), runs("a")] {
        answers.push(wire.ask(&batch).await);
    }
    if elsewhere {
        wire.ask(&Batch::new().query("COMMIT")).await;
        other.ask(&Batch::new().query(second)).await;
        wire.ask(&Batch::new().query("BEGIN")).await;
    } else {
        wire.ask(&Batch::new().query(second)).await;
    }
    // Who was told of the first has to prepare anew.
    for batch in [prepares("b"), runs("b"), runs("a")] {
        answers.push(wire.ask(&batch).await);
    }
    wire.ask(&Batch::new().query("ROLLBACK")).await;
    answers
        .iter()
        .map(|frames| format!("{} {:?} {}", tags(frames), first_columns(frames), error_code(frames)))
        .collect()
}

#[tokio::test]
async fn what_is_prepared_behind_a_definition_goes_by_it_within_a_transaction_too() {
    let stage = Stage::set("", &["cluster.pool.size = 2"]).await;
    for elsewhere in [false, true] {
        let (one, other) = (stage.primary_port(), stage.primary_port());
        let direct = prepared_around_a_definition(
            Wire::login(one, APP, &stage.database.name).await,
            Wire::login(other, APP, &stage.database.name).await,
            elsewhere,
        )
        .await;

        let proxied = prepared_around_a_definition(stage.wire().await, stage.wire().await, elsewhere).await;

        assert_eq!(proxied, direct, "elsewhere: {elsewhere}");
    }
}

async fn outdated_in_a_transaction(mut wire: Wire) -> Vec<String> {
    let runs = || Batch::new().bind("", "s", &[]).execute("", 0).sync();
    wire.ask(
        &Batch::new().query("DROP TABLE IF EXISTS t; CREATE TABLE t (x int); CREATE TEMP TABLE mine ()"),
    )
    .await;
    wire.ask(&Batch::new().parse("s", "SELECT x FROM t").describe_statement("s").sync()).await;
    wire.ask(&runs()).await;
    wire.ask(&Batch::new().query("ALTER TABLE t ALTER x TYPE text")).await;
    let mut answers = Vec::new();
    for batch in [Batch::new().query("BEGIN"), runs(), runs(), Batch::new().query("ROLLBACK"), runs()] {
        let frames = wire.ask(&batch).await;
        answers.push(format!("{} {}", tags(&frames), error_code(&frames)));
    }
    answers
}

/// Its session keeps the connection, on which BEGIN went ahead of the first attempt.
#[tokio::test]
async fn a_plan_that_is_out_of_date_fails_its_transaction_as_on_the_server() {
    let stage = Stage::set("", &[]).await;
    let direct = Wire::login(stage.primary_port(), APP, &stage.database.name).await;
    let direct = outdated_in_a_transaction(direct).await;

    assert_eq!(outdated_in_a_transaction(stage.wire().await).await, direct);
}
