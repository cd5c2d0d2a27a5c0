//! What a session has set is there in its next statement, and never in another session's.

use crate::support::{
    Database, Proxy, Session, Stage, cluster, eventually,
    wire::{Batch, Frame, Wire, first_columns, tags},
};
use pointsman::demo::servers::APP;

/// One server connection per node: whatever a session leaves behind, the next one meets.
const ONE_CONNECTION: &[&str] = &["cluster.pool.size = 1", "cluster.routing.consistency = 'eventual'"];

#[tokio::test]
async fn a_value_with_a_backslash_stays_what_it_was() {
    let stage = Stage::set("", &["cluster.pool.size = 2"]).await;
    let (session, other) = (stage.session().await, stage.session().await);
    session.run("SET standard_conforming_strings = off").await;
    session.run(r"SET app.x = 'a\\b'").await;
    session.run("SET standard_conforming_strings = on").await;
    let mut values = std::collections::BTreeSet::new();
    for _ in 0..10 {
        values.insert(session.value("SHOW app.x").await);
        other.run("SET app.x = 'of another'").await;
    }

    assert_eq!(values.into_iter().collect::<Vec<_>>(), [r"a\b"]);
}

#[tokio::test]
async fn settings_follow_the_session_to_whatever_server_comes_next() {
    let stage = Stage::set("CREATE SCHEMA s", ONE_CONNECTION).await;
    let (one, other) = (stage.session().await, stage.session().await);

    one.run("SET search_path = s; SET work_mem = '7MB'").await;
    one.run("SET TIME ZONE 'Asia/Karachi'").await;
    one.run("SET application_name TO 'one'").await;

    for _ in 0..6 {
        for (session, path, memory, zone) in
            [(&one, "s", "7MB", "Asia/Karachi"), (&other, "\"$user\", public", "4MB", "UTC")]
        {
            for hint in ["", "/* pointsman: primary */"] {
                let sql = format!(
                    "{hint} SELECT current_setting('search_path') || '|' || current_setting('work_mem') || '|' \
                     || current_setting('timezone')"
                );
                assert_eq!(session.value(&sql).await, format!("{path}|{memory}|{zone}"), "{hint}");
            }
        }
    }
}

#[tokio::test]
async fn reset_and_rollback_bring_settings_back() {
    let stage = Stage::set("", &[]).await;
    let dsn = format!("{} options='-c work_mem=5MB'", stage.proxy.dsn(&stage.database.name));
    let session = Session::open(&dsn).await;
    let memory = "SELECT current_setting('work_mem')";
    assert_eq!(session.value(memory).await, "5MB");

    session.run("SET work_mem = '6MB'").await;
    assert_eq!(session.value(memory).await, "6MB");
    session.run("BEGIN").await;
    session.run("SET work_mem = '7MB'").await;
    assert_eq!(session.value(memory).await, "7MB");
    session.run("ROLLBACK").await;
    assert_eq!(session.value(memory).await, "6MB");
    session.run("BEGIN; SET LOCAL work_mem = '8MB'; COMMIT").await;
    assert_eq!(session.value(memory).await, "6MB");
    session.run("RESET work_mem").await;

    // Not the server's default: what the client started with.
    assert_eq!(session.value(memory).await, "5MB");
}

#[tokio::test]
async fn the_proxys_own_settings_follow_savepoints_as_the_servers_do() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let database = &stage.database.name;
    let dsn = stage.proxy.dsn(database);
    let proxy_port = format!("port={}", stage.proxy.port());
    let direct = Session::open(&dsn.replace(&proxy_port, &format!("port={}", stage.primary_port()))).await;
    let session = stage.session().await;
    // As the server's, and as the proxy's.
    let settings =
        [(&direct, "work_mem", ["5MB", "6MB"]), (&session, "pointsman.consistency", ["user", "global"])];
    for steps in [
        "BEGIN; SAVEPOINT a; SET A; ROLLBACK TO a; show; COMMIT",
        "BEGIN; INSERT; SAVEPOINT a; SET A; ROLLBACK TO SAVEPOINT a; show; COMMIT",
        "BEGIN; SET A; SAVEPOINT a; SET LOCAL B; show; ROLLBACK TO a; show; COMMIT",
        "BEGIN; SAVEPOINT a; SET A; RELEASE a; show; COMMIT",
        "BEGIN; SAVEPOINT a; SET A; SAVEPOINT a; SET B; ROLLBACK TO a; show; RELEASE a; ROLLBACK TO a; show; COMMIT",
        "SET A; BEGIN; SAVEPOINT a; RESET; show; ROLLBACK TO a; show; COMMIT",
        "BEGIN; INSERT; SAVEPOINT a; SET A; fail; ROLLBACK TO a; show; SET B; COMMIT",
        "BEGIN; SAVEPOINT a; SET A; ROLLBACK TO a; SET B; ROLLBACK",
    ] {
        let mut seen = Vec::new();
        for (session, name, values) in &settings {
            let mut shown = Vec::new();
            for step in steps.split("; ").chain(["show", "RESET"]) {
                let sql = match step {
                    "show" => {
                        let value = session.value(&format!("SHOW {name}")).await;
                        shown.push(values.iter().position(|known| *known == value));
                        continue;
                    }
                    "fail" => {
                        session.error("SELECT 1 / 0").await;
                        continue;
                    }
                    "RESET" => format!("RESET {name}"),
                    "INSERT" => "INSERT INTO t VALUES (1)".to_owned(),
                    "SET A" => format!("SET {name} = '{}'", values[0]),
                    "SET B" => format!("SET {name} = '{}'", values[1]),
                    "SET LOCAL B" => format!("SET LOCAL {name} = '{}'", values[1]),
                    of_transaction => of_transaction.to_owned(),
                };
                session.run(&sql).await;
            }
            seen.push(shown);
        }
        assert_eq!(seen[0], seen[1], "{steps}");
    }
}

#[tokio::test]
async fn a_transaction_that_has_failed_answers_nothing_of_the_proxys_own_either() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let mut direct = Wire::login(stage.primary_port(), APP, &stage.database.name).await;
    let mut wire = stage.wire().await;
    let simple = |sql: &str| Batch::new().query(sql);
    let extended = |sql: &str| Batch::new().run(sql, &[]).sync();
    // As the server says it of its own settings.
    let settings = [
        ("SET work_mem = '5MB'", "SET pointsman.consistency = 'global'"),
        ("SET LOCAL work_mem = '5MB'", "SET LOCAL pointsman.consistency = 'global'"),
        ("SET work_mem = 'much'", "SET pointsman.max_lag = 'much'"),
        ("RESET work_mem", "RESET pointsman.consistency"),
        ("SHOW work_mem", "SHOW pointsman.route"),
        ("SHOW work_mem", "SHOW pointsman.position"),
        (
            "SELECT set_config('work_mem', '5MB', false)",
            "SELECT set_config('pointsman.consistency', 'user', false)",
        ),
        ("SELECT current_setting('work_mem')", "SELECT current_setting('pointsman.consistency')"),
    ];

    for begin in ["BEGIN; INSERT INTO t VALUES (1)", "BEGIN READ ONLY; SELECT 1", "BEGIN"] {
        for batch in [simple as fn(&str) -> Batch, extended] {
            for (servers, own) in settings {
                let mut told = Vec::new();
                for (session, setting) in [(&mut direct, servers), (&mut wire, own)] {
                    for sql in begin.split("; ").chain(["SELECT 1 / 0"]) {
                        session.ask(&simple(sql)).await;
                    }
                    let answer = session.ask(&batch(setting)).await;
                    let code = answer.iter().find(|frame| frame.tag == b'E').map(Frame::code);
                    told.push((tags(&answer), code));
                    session.ask(&simple("ROLLBACK")).await;
                }
                assert_eq!(told[1], told[0], "{begin}; {own}");
            }
        }
    }

    assert_eq!(first_columns(&wire.ask(&simple("SHOW pointsman.consistency")).await), ["session"]);
}

#[tokio::test]
async fn a_setting_for_a_transaction_that_is_not_open_is_warned_of_as_by_the_server() {
    let stage = Stage::set("", &[]).await;
    let mut direct = Wire::login(stage.primary_port(), APP, &stage.database.name).await;
    let mut wire = stage.wire().await;
    let warned = |frames: &[Frame]| {
        let notice = frames
            .iter()
            .find(|frame| frame.tag == b'N')
            .map(|notice| [b'S', b'V', b'C', b'M'].map(|field| notice.field(field).unwrap_or_default()));
        (tags(frames), notice)
    };
    let simple = |sql: &str| Batch::new().query(sql);
    let extended = |sql: &str| Batch::new().run(sql, &[]).sync();
    for batch in [simple as fn(&str) -> Batch, extended] {
        for how in ["", "BEGIN", "COMMIT", "SET client_min_messages = error", "RESET client_min_messages"] {
            for session in [&mut direct, &mut wire] {
                if !how.is_empty() {
                    session.ask(&simple(how)).await;
                }
            }
            let servers = warned(&direct.ask(&batch("SET LOCAL work_mem = '5MB'")).await);
            let own = warned(&wire.ask(&batch("SET LOCAL pointsman.consistency = 'global'")).await);
            assert_eq!(own, servers, "{how}");
        }
    }

    let shown = wire.ask(&simple("SHOW pointsman.consistency")).await;
    assert_eq!(first_columns(&shown), ["session"]);
    let frames = wire.ask(&simple("SELECT set_config('pointsman.consistency', 'global', true)")).await;
    assert_eq!(tags(&frames), "TDCZ");
}

#[tokio::test]
async fn a_setting_of_a_transaction_ends_with_it_however_it_was_set() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let session = stage.session().await;

    session.run("SELECT set_config('transaction_read_only', 'on', false)").await;
    session.run("INSERT INTO t VALUES (1)").await;
    session.run("BEGIN").await;
    session.run("SELECT set_config('transaction_read_only', 'on', false)").await;
    assert_eq!(session.error("INSERT INTO t VALUES (2)").await, "25006");
    session.run("ROLLBACK").await;
    session.run("INSERT INTO t VALUES (3)").await;

    assert_eq!(stage.database.ask(0, "SELECT string_agg(x::text, ',') FROM t"), "1,3");
}

#[tokio::test]
async fn roles_are_carried_and_never_leak() {
    let stage = Stage::set("", ONE_CONNECTION).await;
    let role = format!("role_of_{}", stage.database.name);
    stage.cluster.node(0).sql("postgres", &format!("CREATE ROLE {role}; GRANT {role} TO app")).expect("made");
    stage.cluster.wait_until_caught_up(0).expect("replicas follow");
    let (one, other) = (stage.session().await, stage.session().await);

    one.run(&format!("SET ROLE {role}")).await;

    for _ in 0..5 {
        assert_eq!(one.value("SELECT current_user").await, role);
        assert_eq!(other.value("SELECT current_user").await, "app");
    }
}

#[tokio::test]
async fn a_new_session_authorization_begins_without_a_role() {
    let stage = Stage::set("", ONE_CONNECTION).await;
    let (member, group) =
        (format!("member_of_{}", stage.database.name), format!("group_of_{}", stage.database.name));
    let roles = format!("CREATE ROLE {member}; CREATE ROLE {group}; GRANT {group} TO app, {member}");
    stage.cluster.node(0).sql("postgres", &roles).expect("made");
    stage.cluster.wait_until_caught_up(0).expect("replicas follow");
    let session = stage.session().await;

    session.run(&format!("SET ROLE {group}")).await;
    assert_eq!(session.value("SELECT current_user").await, group);
    session.run("RESET SESSION AUTHORIZATION").await;

    for _ in 0..5 {
        assert_eq!(session.value("SELECT current_user").await, "app");
        assert_eq!(session.value("/* pointsman: primary */ SELECT current_user").await, "app");
    }
}

#[tokio::test]
async fn a_part_of_a_setting_is_carried_as_the_whole() {
    let stage = Stage::set("", ONE_CONNECTION).await;
    let (one, other) = (stage.session().await, stage.session().await);
    one.run("SET datestyle TO 'Postgres, MDY'").await;
    other.run("SET datestyle TO ISO").await;
    one.run("SET datestyle TO dmy").await;
    other.run("SET datestyle TO ymd").await;

    for _ in 0..3 {
        for hint in ["", "/* pointsman: primary */"] {
            let style = format!("{hint} SELECT current_setting('datestyle')");
            assert_eq!(one.value(&style).await, "Postgres, DMY");
            assert_eq!(other.value(&style).await, "ISO, YMD");
        }
    }
}

/// What a client is told in answer to a string: first columns, then the error's code.
async fn told(wire: &mut Wire, string: &str) -> Vec<String> {
    let frames = wire.ask(&Batch::new().query(string)).await;
    let error = frames.iter().filter(|frame| frame.tag == b'E').map(Frame::code);
    first_columns(&frames).into_iter().chain(error).collect()
}

#[tokio::test]
async fn a_string_that_fails_keeps_the_settings_that_it_committed() {
    let stage = Stage::set("CREATE SCHEMA s", ONE_CONNECTION).await;
    let role = format!("role_of_{}", stage.database.name);
    stage.cluster.node(0).sql("postgres", &format!("CREATE ROLE {role}; GRANT {role} TO app")).expect("made");
    stage.cluster.wait_until_caught_up(0).expect("replicas follow");
    let sets = format!("SET ROLE {role}; SET work_mem = '5MB'; SET search_path = s");
    let shows = "/* pointsman: primary */ SELECT current_user || ' ' || current_setting('work_mem') || ' ' \
                 || current_setting('search_path')";

    for fails in [
        "BEGIN; RESET ROLE; COMMIT; SELECT 1/0",
        "BEGIN; SET ROLE NONE; COMMIT; SELECT 1/0",
        "RESET work_mem; SELECT 1/0",
        "BEGIN; RESET work_mem; COMMIT; SET work_mem = '7MB'; SELECT 1/0; SET work_mem = '8MB'",
        "RESET ALL; COMMIT; SELECT 1/0",
        "SET work_mem = '6MB'; BEGIN; SET search_path = public; COMMIT; SET work_mem = '7MB'; SELECT 1/0",
        "SET work_mem = '6MB'; ROLLBACK; SET search_path = public; COMMIT; SELECT 1/0",
        "BEGIN; SET work_mem = '6MB'; SAVEPOINT p; SET work_mem = '7MB'; SELECT 1/0",
    ] {
        let mut direct = Wire::login(stage.primary_port(), APP, &stage.database.name).await;
        let (mut one, mut other) = (stage.wire().await, stage.wire().await);
        for step in [&sets, shows, fails, "ROLLBACK TO p", "COMMIT", shows] {
            let (through, straight) = (told(&mut one, step).await, told(&mut direct, step).await);
            assert_eq!(through, straight, "{step} of {fails}");
        }

        // The next on that server connection has what it sets, and nothing else.
        told(&mut other, &sets).await;
        assert_eq!(told(&mut other, shows).await, [format!("{role} 5MB s")], "behind {fails}");
    }
}

/// Statements that leave state behind, a question, and the answer of a session that has none of it.
const LEAKS: [(&str, &str, &str); 29] = [
    ("SET work_mem = '9MB'", "SELECT current_setting('work_mem')", "4MB"),
    (
        "UPDATE pg_settings SET setting = '9MB' WHERE name = 'work_mem'",
        "SELECT current_setting('work_mem')",
        "4MB",
    ),
    (
        "UPDATE view_of_settings SET setting = '9MB' WHERE name = 'work_mem'",
        "SELECT current_setting('work_mem')",
        "4MB",
    ),
    ("SELECT updates_settings()", "SELECT current_setting('work_mem')", "4MB"),
    ("SELECT set_config('app.tenant', '42', false)", "SELECT current_setting('app.tenant', true)", ""),
    (
        "SELECT sets_tenant()",
        "SELECT coalesce(nullif(current_setting('app.tenant', true), ''), 'none')",
        "none",
    ),
    (
        "SELECT sets_by_the_standard()",
        "SELECT coalesce(nullif(current_setting('app.tenant', true), ''), 'none')",
        "none",
    ),
    (
        "SELECT sets_by_another()",
        "SELECT coalesce(nullif(current_setting('app.tenant', true), ''), 'none')",
        "none",
    ),
    (
        "SELECT sets_behind_a_lock()",
        "SELECT coalesce(nullif(current_setting('app.tenant', true), ''), 'none')",
        "none",
    ),
    (
        "SELECT sets_by_a_trigger()",
        "SELECT coalesce(nullif(current_setting('app.tenant', true), ''), 'none')",
        "none",
    ),
    (
        "SELECT makes_temporary()",
        "SELECT count(*) FROM pg_class WHERE relname = 'hidden' AND pg_table_is_visible(oid)",
        "0",
    ),
    (
        "TRUNCATE triggering",
        "SELECT coalesce(nullif(current_setting('app.tenant', true), ''), 'none')",
        "none",
    ),
    (
        "TRUNCATE referenced CASCADE",
        "SELECT coalesce(nullif(current_setting('app.tenant', true), ''), 'none')",
        "none",
    ),
    (
        "INSERT INTO view_of_triggering VALUES (NULL)",
        "SELECT coalesce(nullif(current_setting('app.tenant', true), ''), 'none')",
        "none",
    ),
    (
        "/* pointsman: primary */ SELECT * FROM view_that_sets",
        "SELECT coalesce(nullif(current_setting('app.tenant', true), ''), 'none')",
        "none",
    ),
    (
        "DO $$ BEGIN SET app.tenant = 42; END $$",
        "SELECT coalesce(nullif(current_setting('app.tenant', true), ''), 'none')",
        "none",
    ),
    (
        "CREATE TEMP TABLE mine (x int)",
        "SELECT count(*) FROM pg_class WHERE relname = 'mine' AND pg_table_is_visible(oid)",
        "0",
    ),
    (
        "SELECT 1 AS x INTO pg_temp.mine",
        "SELECT count(*) FROM pg_class WHERE relname = 'mine' AND pg_table_is_visible(oid)",
        "0",
    ),
    (
        "SELECT 1 AS x INTO GLOBAL TEMPORARY TABLE mine",
        "SELECT count(*) FROM pg_class WHERE relname = 'mine' AND pg_table_is_visible(oid)",
        "0",
    ),
    ("PREPARE mine AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'", "0"),
    (
        "SELECT pg_advisory_lock(77)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77",
        "0",
    ),
    ("SELECT locks()", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 78", "0"),
    (
        "PREPARE sets AS SELECT set_config('app.tenant', '42', false); EXECUTE sets",
        "SELECT coalesce(nullif(current_setting('app.tenant', true), ''), 'none')",
        "none",
    ),
    (
        "PREPARE locks AS SELECT pg_advisory_lock(79); EXECUTE locks",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 79",
        "0",
    ),
    (
        "PREPARE many AS SELECT 1; DEALLOCATE ALL; PREPARE one AS SELECT 1",
        "SELECT count(*) FROM pg_prepared_statements WHERE name IN ('one', 'many')",
        "0",
    ),
    ("LISTEN mine", "SELECT count(*) FROM pg_listening_channels()", "0"),
    (
        "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
        "SELECT count(*) FROM pg_cursors WHERE name = 'mine'",
        "0",
    ),
    ("BEGIN; INSERT INTO t VALUES (1)", "SELECT count(*) FROM t", "0"),
    ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SHOW default_transaction_read_only", "off"),
];

#[tokio::test]
async fn no_state_of_one_client_is_seen_by_the_next() {
    let stage = Stage::set(
        "CREATE TABLE t (x int); CREATE SEQUENCE s;
         CREATE FUNCTION sets_tenant() RETURNS text LANGUAGE sql AS $$SELECT set_config('app.tenant', '42', false)$$;
         CREATE FUNCTION locks() RETURNS void LANGUAGE sql AS $$SELECT pg_advisory_lock(78)$$;
         CREATE FUNCTION sets_by_the_standard() RETURNS text RETURN set_config('app.tenant', '42', false);
         CREATE FUNCTION sets_by_another() RETURNS text BEGIN ATOMIC SELECT sets_by_the_standard(); END;
         CREATE FUNCTION sets_behind_a_lock() RETURNS void LANGUAGE plpgsql AS
           $$BEGIN PERFORM 1 FROM t FOR UPDATE; SET app.tenant = 42; END$$;
         CREATE FUNCTION makes_temporary() RETURNS void LANGUAGE plpgsql AS
           $$BEGIN CREATE TABLE pg_temp.hidden (x int); END$$;
         CREATE TABLE referenced (x int PRIMARY KEY); CREATE TABLE triggering (x int REFERENCES referenced);
         CREATE VIEW view_of_triggering AS SELECT x FROM triggering;
         CREATE FUNCTION sets_stably() RETURNS text STABLE LANGUAGE plpgsql AS
           $$BEGIN RETURN set_config('app.tenant', '42', false); END$$;
         CREATE VIEW view_of_settings AS SELECT name, setting FROM pg_settings;
         CREATE FUNCTION updates_settings() RETURNS void LANGUAGE plpgsql AS
           $$BEGIN UPDATE pg_settings SET setting = '9MB' WHERE name = 'work_mem'; END$$;
         CREATE VIEW view_that_sets AS SELECT sets_stably();
         CREATE FUNCTION sets() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN SET app.tenant = 42; RETURN NULL; END$$;
         CREATE TRIGGER sets AFTER INSERT OR TRUNCATE ON triggering EXECUTE FUNCTION sets();
         CREATE FUNCTION sets_by_a_trigger() RETURNS void LANGUAGE sql AS $$INSERT INTO triggering VALUES (NULL)$$",
        ONE_CONNECTION,
    )
    .await;

    for (leave, ask, nothing) in LEAKS {
        for protocol in ["simple", "extended"] {
            let first = stage.session().await;
            if protocol == "simple" || leave.contains(';') {
                first.run(leave).await;
            } else {
                first.execute(leave, &[]).await.unwrap_or_else(|error| panic!("{leave}: {error:?}"));
            }
            first.vanish();

            let next = stage.session().await;
            let question = format!("/* pointsman: primary */ {ask}");
            eventually(&format!("nothing left of {leave} ({protocol})"), async || {
                next.value(&question).await == nothing
            })
            .await;
        }
    }
}

#[tokio::test]
async fn what_an_event_trigger_sets_is_not_the_next_sessions() {
    let cluster = cluster::shared();
    let database = Database::create(cluster);
    let triggers = "CREATE FUNCTION sets() RETURNS event_trigger LANGUAGE plpgsql AS
           $$BEGIN PERFORM set_config('app.tenant', '42', false); END$$;
         CREATE EVENT TRIGGER sets ON ddl_command_end EXECUTE FUNCTION sets()";
    cluster.node(0).sql(&database.name, triggers).expect("a superuser may");
    let proxy = Proxy::start(cluster, ONE_CONNECTION).await;
    let tenant =
        "/* pointsman: primary */ SELECT coalesce(nullif(current_setting('app.tenant', true), ''), 'none')";

    for sql in [
        "CREATE TABLE a (x int)",
        "SELECT 1 AS x INTO b",
        "CREATE TEMP TABLE c (x int)",
        "GRANT SELECT ON a TO app",
    ] {
        let first = proxy.session(&database.name).await;
        first.run(sql).await;
        assert_eq!(first.value(tenant).await, "42", "{sql}");
        first.vanish();

        let next = proxy.session(&database.name).await;
        eventually(&format!("nothing left of {sql}"), async || next.value(tenant).await == "none").await;
    }
}

#[tokio::test]
async fn the_value_of_a_sequence_is_the_sessions_own_or_the_servers_error() {
    let stage = Stage::set("CREATE TABLE t (id serial, x int)", ONE_CONNECTION).await;
    let (one, other) = (stage.session().await, stage.session().await);

    one.run("INSERT INTO t (x) VALUES (1)").await;
    assert_eq!(one.value("SELECT lastval()").await, "1");
    assert_eq!(one.value("SELECT currval('t_id_seq')").await, "1");
    drop(one);

    eventually("the server connection is free", async || {
        // 55000: not yet defined in this session; anything else is another session's value.
        other.error("SELECT lastval()").await == "55000"
    })
    .await;
}

#[tokio::test]
async fn a_session_that_keeps_its_connection_for_a_sequence_is_counted_once() {
    let stage = Stage::set("CREATE TABLE t (id serial, x int)", &[]).await;
    let session = stage.session().await;

    session.run("INSERT INTO t (x) VALUES (1)").await;
    assert_eq!(session.value("SELECT lastval()").await, "1");
    for _ in 0..2 {
        session.run("INSERT INTO t (x) VALUES (1)").await;
    }
    // What comes behind it is answered when it has been counted.
    session.run("SELECT 1").await;

    assert_eq!(stage.proxy.metric("pointsman_pins_total", &["reason=\"sequence\""]), 1.0);
}

#[tokio::test]
async fn a_temporary_table_is_there_for_its_session_while_other_reads_use_replicas() {
    let stage = Stage::set("CREATE TABLE t AS SELECT 1 AS x", &[]).await;
    let session = stage.session().await;

    session.run("CREATE TEMP TABLE mine AS SELECT 5 AS x").await;
    for _ in 0..5 {
        assert_eq!(session.value("SELECT x FROM mine").await, "5");
        assert_eq!(session.value("SELECT x FROM pg_temp.mine").await, "5");
    }

    eventually("its other reads use replicas", async || stage.is_replica(session.port().await)).await;
}

/// The ways to say that what is made without a schema is temporary.
#[tokio::test]
async fn a_table_made_where_the_temporary_schema_comes_first_is_its_sessions_alone() {
    for ways in [
        &["SET search_path = pg_temp, public", "CREATE TABLE t (x int)"][..],
        &["SET search_path = pg_temp, public; CREATE TABLE t (x int)"],
        &["SELECT set_config('search_path', 'pg_temp,public', false)", "SELECT 1 AS x INTO t"],
        &["BEGIN", "SET LOCAL search_path = pg_temp, public", "CREATE TABLE t AS SELECT 1 AS x", "COMMIT"],
    ] {
        let stage = Stage::set("CREATE TABLE t (x int)", &["cluster.pool.size = 2"]).await;
        let (session, other) = (stage.session().await, stage.session().await);

        for sql in ways {
            session.run(sql).await;
        }
        session.run("INSERT INTO t VALUES (2)").await;

        let count = "/* pointsman: primary */ SELECT count(*) FROM t WHERE x = 2";
        for _ in 0..5 {
            assert_eq!(session.value("SELECT count(*) FROM t WHERE x = 2").await, "1", "{ways:?}");
            assert_eq!(other.value(count).await, "0", "{ways:?}");
        }
        let closed = session;
        drop(closed);
        for _ in 0..5 {
            assert_eq!(other.value(count).await, "0", "{ways:?}");
        }
    }
}

/// What sessions begin with may say so, too.
#[tokio::test]
async fn a_table_made_by_a_databases_own_search_path_is_its_sessions_alone() {
    let stage = Stage::set("CREATE TABLE t (x int)", &["cluster.pool.size = 2"]).await;
    stage.database.run(&format!("ALTER DATABASE {} SET search_path = pg_temp, public", stage.database.name));
    let (session, other) = (stage.session().await, stage.session().await);

    session.run("CREATE TABLE t (x int)").await;
    session.run("INSERT INTO t VALUES (2)").await;

    let count = "/* pointsman: primary */ SELECT count(*) FROM t WHERE x = 2";
    for _ in 0..5 {
        assert_eq!(session.value("SELECT count(*) FROM t WHERE x = 2").await, "1");
        assert_eq!(other.value(count).await, "0");
    }
    drop(session);
    for _ in 0..5 {
        assert_eq!(other.value(count).await, "0");
    }
    // What a session sets itself counts instead.
    let third = stage.session().await;
    third.run("SET search_path = public").await;
    third.run("CREATE TABLE of_all (x int)").await;
    eventually("its reads use replicas", async || stage.is_replica(third.port().await)).await;
}

#[tokio::test]
async fn a_temporary_table_is_listed_in_the_catalog_of_its_session() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let session = stage.session().await;
    session.run("CREATE TEMP TABLE mine (x int)").await;
    for _ in 0..5 {
        for sql in [
            "SELECT count(*) FROM pg_class WHERE relname = 'mine' AND pg_table_is_visible(oid)",
            "SELECT count(*) FROM information_schema.tables WHERE table_name = 'mine'",
        ] {
            assert_eq!(session.value(sql).await, "1", "{sql}");
        }
    }
}

#[tokio::test]
async fn code_that_listens_gets_what_it_listens_for() {
    let stage = Stage::set(
        "CREATE FUNCTION listens() RETURNS void LANGUAGE plpgsql AS 'BEGIN LISTEN second; END'",
        &[],
    )
    .await;
    let mut listener = stage.wire().await;
    listener.ask(&Batch::new().query("DO 'BEGIN LISTEN first; END'")).await;
    listener.ask(&Batch::new().query("SELECT listens()")).await;
    for channel in ["first", "second"] {
        stage.database.ask(0, &format!("NOTIFY {channel}"));
        let notification = listener.recv().await;
        assert_eq!(notification.tag, b'A');
        assert!(notification.body[4..].starts_with(channel.as_bytes()));
    }
}

#[tokio::test]
async fn a_temporary_relation_is_found_whatever_names_it() {
    let stage = Stage::set("CREATE TABLE t AS SELECT 1 AS x", &[]).await;
    let session = stage.session().await;
    session.run("CREATE TEMP TABLE mine AS SELECT 5 AS x").await;

    for _ in 0..5 {
        assert_eq!(
            session.value("SELECT relpersistence FROM pg_class WHERE oid = 'mine'::regclass").await,
            "t"
        );
        assert_eq!(session.value("SELECT (pg_relation_size('mine') > 0)::text").await, "true");
        assert_eq!(session.value("SELECT ('(5)'::mine).x").await, "5");
    }
    // A view of a temporary relation is one as well, and so is it under a new name.
    session.run("CREATE VIEW seen AS SELECT x FROM mine").await;
    assert_eq!(session.value("SELECT x FROM seen").await, "5");
    session.run("ALTER TABLE mine RENAME TO yours").await;
    assert_eq!(session.value("SELECT x FROM yours").await, "5");
}

#[tokio::test]
async fn session_advisory_locks_are_held_until_they_are_released() {
    let stage = Stage::set("", &[]).await;
    let (holder, other) = (stage.session().await, stage.session().await);

    holder.run("SELECT pg_advisory_lock(5)").await;
    for _ in 0..5 {
        holder.run("SELECT 1").await;
        assert_eq!(other.value("SELECT pg_try_advisory_lock(5)").await, "f");
    }
    assert_eq!(holder.value("SELECT pg_advisory_unlock(5)").await, "t");

    assert_eq!(other.value("SELECT pg_try_advisory_lock(5)").await, "t");
}

#[tokio::test]
async fn notifications_reach_the_session_that_listens() {
    let stage = Stage::set("", &[]).await;
    let mut listener = stage.wire().await;
    listener.ask(&Batch::new().query("LISTEN news")).await;

    stage.session().await.run("NOTIFY news, 'hear'").await;

    // Without asking: the proxy forwards what the server sends between requests.
    let news = listener.recv().await;
    assert_eq!(news.tag, b'A');
    assert!(news.body.ends_with(b"news\0hear\0"));
}

#[tokio::test]
async fn a_burst_of_notifications_reaches_the_session_that_listens() {
    const BURST: usize = 5_000;
    let stage = Stage::set("", &["workers = 1"]).await;
    let mut listener = stage.wire().await;
    listener.ask(&Batch::new().query("LISTEN news")).await;

    // They are of all lengths: what has arrived so far ends within a message's header again and again.
    let burst = format!(
        "SELECT pg_notify('news', n || ':' || repeat('.', n % 97)) FROM generate_series(1, {BURST}) AS n"
    );
    stage.session().await.run(&burst).await;

    for number in 1..=BURST {
        let news = listener.recv().await;
        let beginning = format!("news\0{number}:");
        assert!(news.body[4..].starts_with(beginning.as_bytes()), "{number}: {:?}", news.body);
    }
}

#[tokio::test]
async fn a_role_that_cannot_be_set_keeps_the_statement_from_running() {
    let stage = Stage::set("CREATE TABLE t (x int)", ONE_CONNECTION).await;
    let role = format!("gone_{}", stage.database.name);
    let admin = |sql: &str| stage.cluster.node(0).sql("postgres", sql).expect("the superuser may");
    admin(&format!("CREATE ROLE {role}; GRANT {role} TO app"));
    let (session, other) = (stage.session().await, stage.session().await);
    session.run(&format!("SET ROLE {role}")).await;
    // Another session takes the server connection, so that the role has to be set anew.
    other.run("/* pointsman: primary */ SELECT 1").await;

    admin(&format!("DROP ROLE {role}"));

    assert!(session.try_run("INSERT INTO t VALUES (1)").await.is_err());
    assert_eq!(stage.database.ask(0, "SELECT count(*) FROM t"), "0");
}

#[tokio::test]
async fn parameter_statuses_tell_the_sessions_own_settings() {
    let stage = Stage::set("", ONE_CONNECTION).await;
    let options = [
        ("user", APP.name),
        ("database", stage.database.name.as_str()),
        ("application_name", "mine"),
        ("client_encoding", "LATIN1"),
        ("TimeZone", "Asia/Karachi"),
    ];
    let wire = Wire::try_login(stage.proxy.port(), APP, &options).await.expect("the login succeeds");

    for (name, value) in [
        ("application_name", "mine"),
        ("client_encoding", "LATIN1"),
        ("TimeZone", "Asia/Karachi"),
        ("in_hot_standby", "off"),
        ("default_transaction_read_only", "off"),
        ("is_superuser", "off"),
        ("session_authorization", "app"),
    ] {
        assert_eq!(wire.parameters.get(name).map(String::as_str), Some(value), "{name}");
    }
}

#[tokio::test]
async fn a_client_knows_the_parameters_of_whichever_connection_answers_it() {
    let stage = Stage::set("", ONE_CONNECTION).await;
    let options = [("user", APP.name), ("database", stage.database.name.as_str())];
    let login = async || Wire::try_login(stage.proxy.port(), APP, &options).await.expect("it logs in");
    let (mut one, mut other) = (login().await, login().await);
    let zones = ["Asia/Karachi", "Europe/Berlin", "UTC"];

    for round in 0..9 {
        let zone = zones[round % 3];
        // The other session leaves the connection with the very value that this one sets next: the
        // server sees no change and reports none.
        other.ask(&Batch::new().query(&format!("/* pointsman: primary */ SET TIME ZONE '{zone}'"))).await;
        other.ask(&Batch::new().query("/* pointsman: primary */ SELECT 1")).await;
        one.ask(&Batch::new().query(&format!("/* pointsman: primary */ SET TIME ZONE '{zone}'"))).await;
        for hint in ["/* pointsman: primary */", ""] {
            one.ask(&Batch::new().query(&format!("{hint} SELECT 1"))).await;
            assert_eq!(one.parameters["TimeZone"], zone, "round {round} {hint}");
        }
    }
}

#[tokio::test]
async fn read_only_sessions_use_replicas_for_whole_transactions() {
    let stage = Stage::set("", &[]).await;
    let session = stage.session().await;
    session.run("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY").await;

    session.run("BEGIN").await;
    let port = session.port().await;
    assert!(stage.is_replica(port));
    assert_eq!(session.port().await, port);
    session.run("COMMIT").await;

    assert_eq!(session.error("CREATE TABLE t (x int)").await, "25006");
}

#[tokio::test]
async fn an_error_undoes_nothing_of_what_the_client_was_told_of_its_settings() {
    let stage = Stage::set("CREATE TABLE t (x int)", &["cluster.pool.size = 1"]).await;
    let (mut wire, other) = (stage.wire().await, stage.session().await);
    wire.ask(&Batch::new().query("SET client_encoding = latin1")).await;

    for failing in ["INSERT INTO nowhere VALUES (1)", "SELECT 1/0"] {
        // The connections have been another's: the setting goes ahead of the statement, and is undone with it.
        other.run("INSERT INTO t VALUES (1)").await;
        other.port().await;
        assert_eq!(tags(&wire.ask(&Batch::new().query(failing)).await), "EZ");
        assert_eq!(wire.parameters["client_encoding"], "LATIN1");

        let read = wire.ask(&Batch::new().query("SELECT U&'\\00e4'")).await;
        assert_eq!((tags(&read), &*read[1].body), ("TDCZ".to_owned(), &b"\0\x01\0\0\0\x01\xe4"[..]));
    }
}
