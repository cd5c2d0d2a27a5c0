//! PostgreSQL statements.

use super::{super::*, asked, postgres, set};
use crate::sql::effects::{Discard, Isolation, ProxyCommand, Scope, Shown, TransactionModes};

#[test]
fn postgres_reads_go_to_a_replica() {
    for text in [
        "SELECT 1",
        "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;",
        "select count(*) from t where a between 1 and 2",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "VALUES (1), (2)",
        "TABLE t",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "EXPLAIN SELECT 1",
        "EXPLAIN (ANALYZE, BUFFERS) SELECT 1",
        "EXPLAIN ANALYZE VERBOSE SELECT 1",
        "COPY t TO STDOUT",
        "COPY public.t (a, b) TO STDOUT (FORMAT csv)",
        "COPY (SELECT 1) TO STDOUT",
        "SELECT random(), clock_timestamp(), pg_sleep(1), gen_random_uuid(), timeofday()",
        "SELECT version(), current_user, inet_server_port(), pg_backend_pid()",
        "SELECT current_setting('search_path')",
        "SELECT pg_catalog.lower('A')",
        "SELECT * FROM generate_series(1, 10) AS g(i)",
        "SELECT sum(a) OVER (PARTITION BY b ORDER BY c) FROM t",
        "SELECT coalesce(a, b), greatest(1, 2), extract(year from d), substring(a from 1 for 2) FROM t",
        "SELECT * FROM t WHERE d > now() - interval '1 day' AND x = ANY ('{1,2}')",
        "SELECT a::numeric(10,2), CAST(b AS varchar(3)) FROM t",
        "SELECT $1::int, E'it\\'s', $tag$ ; DELETE $tag$",
        "SELECT 'DELETE FROM t; COMMIT'",
        "SELECT \"update\" FROM t",
        "SELECT 1 AS update",
        "/* x */ SELECT 1 -- y",
        "SELECT 1; SELECT 2",
    ] {
        let intent = postgres(text);
        assert_eq!((intent.access, intent.reason), (Access::Read, Reason::Read), "{text}");
        assert_eq!(intent.effects, [], "{text}");
    }
}

#[test]
fn postgres_writes_go_to_the_primary() {
    for (text, reason) in [
        ("INSERT INTO t VALUES (1)", Reason::Dml),
        ("UPDATE t SET a = 1", Reason::Dml),
        ("DELETE FROM t", Reason::Dml),
        ("MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE", Reason::Dml),
        ("WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x", Reason::Dml),
        ("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", Reason::Dml),
        ("WITH x AS (SELECT 1) UPDATE t SET a = 1 FROM x", Reason::Dml),
        ("COPY t FROM STDIN", Reason::Dml),
        ("COPY (SELECT 1) TO '/tmp/x'", Reason::Command),
        ("COPY t TO PROGRAM 'cat'", Reason::Command),
        ("COPY (DELETE FROM t RETURNING 1) TO STDOUT", Reason::Dml),
        ("SELECT * FROM t FOR UPDATE", Reason::Lock),
        ("SELECT * FROM t FOR NO KEY UPDATE", Reason::Lock),
        ("SELECT * FROM t FOR SHARE", Reason::Lock),
        ("SELECT * FROM (SELECT * FROM t FOR UPDATE) x", Reason::Lock),
        ("SELECT * INTO u FROM t", Reason::Ddl),
        ("EXPLAIN ANALYZE DELETE FROM t", Reason::Dml),
        ("CREATE TABLE t (a int)", Reason::Ddl),
        ("ALTER TABLE t ADD b int", Reason::Ddl),
        ("DROP TABLE t", Reason::Ddl),
        ("TRUNCATE t", Reason::Ddl),
        ("GRANT SELECT ON t TO x", Reason::Ddl),
        ("VACUUM t", Reason::Ddl),
        ("REFRESH MATERIALIZED VIEW v", Reason::Ddl),
        ("LOCK TABLE t", Reason::Lock),
        ("DO $$ BEGIN END $$", Reason::Command),
        ("CALL p()", Reason::Command),
        ("NOTIFY c", Reason::Command),
        ("COMMIT PREPARED 'x'", Reason::Command),
        ("ROLLBACK PREPARED 'x'", Reason::Command),
        ("SELECT f(1)", Reason::Function),
        ("SELECT nextval('s'), f(1)", Reason::Function),
        ("SELECT public.lower('A')", Reason::Function),
        ("SELECT * FROM f(1)", Reason::Function),
        ("SELECT pg_notify('a', 'b')", Reason::Function),
        ("SELECT lo_creat(1)", Reason::Function),
        ("SELECT a OPERATOR(s.+) b FROM t", Reason::Function),
        ("SELECT query_to_xml('DELETE FROM t', true, true, '')", Reason::Function),
        ("SELECT pg_is_in_recovery()", Reason::Server),
        ("SELECT pg_current_wal_lsn()", Reason::Server),
        ("SELECT current_setting('transaction_read_only')", Reason::Server),
        ("SELECT current_setting(a) FROM t", Reason::Server),
        ("SHOW transaction_read_only", Reason::Server),
        ("SHOW in_hot_standby", Reason::Server),
        ("SELECT * FROM pg_stat_activity", Reason::Server),
        ("SELECT * FROM pg_catalog.pg_locks", Reason::Server),
        ("SELECT nextval('s')", Reason::State),
        ("SELECT currval('s')", Reason::State),
        ("SELECT pg_advisory_lock(1)", Reason::State),
        ("SELECT pg_try_advisory_xact_lock(1)", Reason::State),
        ("SELECT * FROM pg_temp.t", Reason::State),
        ("CREATE TEMP TABLE x AS SELECT 1", Reason::State),
        // What may change data says so, whatever else the statement asks for.
        ("SELECT unheard_of(nextval('s'))", Reason::Function),
        ("SELECT pg_advisory_xact_lock(1), unheard_of()", Reason::Function),
        ("SELECT unheard_of() WHERE NOT pg_is_in_recovery()", Reason::Function),
        ("CREATE TEMP TABLE x AS SELECT unheard_of()", Reason::Function),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT nextval('s'), unheard_of()", Reason::Function),
        ("WITH x AS (INSERT INTO t VALUES (1) RETURNING a) SELECT nextval('s') FROM x", Reason::Dml),
        ("SELECT 1; DELETE FROM t", Reason::Command),
        ("SELECT 'open", Reason::Unparsed),
        ("SELECT (a", Reason::Unparsed),
        ("SELECT U&\"d\\0061t\"(1)", Reason::Unparsed),
        ("FROBNICATE", Reason::Unparsed),
    ] {
        let intent = postgres(text);
        assert_eq!((intent.access, intent.reason), (Access::Write, reason), "{text}");
    }
}

const READ_ONLY: TransactionModes =
    TransactionModes { read_only: Some(true), isolation: None, deferrable: None };

#[test]
fn a_transaction_belongs_on_a_replica_that_only_reads_and_can_run_there() {
    for (text, access) in [
        ("BEGIN", Access::Write),
        ("BEGIN READ ONLY", Access::Read),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", Access::Read),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", Access::Write),
    ] {
        assert_eq!(postgres(text).access, access, "{text}");
    }
}

#[test]
fn transaction_control_is_recognised_in_exact_forms_only() {
    let plain = TransactionModes::default();
    let serializable = TransactionModes { isolation: Some(Isolation::Serializable), ..plain };
    for (text, effect) in [
        ("BEGIN", Effect::Begin(plain)),
        ("begin work;", Effect::Begin(plain)),
        ("BEGIN TRANSACTION", Effect::Begin(plain)),
        ("START TRANSACTION", Effect::Begin(plain)),
        ("BEGIN READ ONLY", Effect::Begin(READ_ONLY)),
        ("START TRANSACTION READ ONLY", Effect::Begin(READ_ONLY)),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", Effect::Begin(serializable)),
        (
            "BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
            Effect::Begin(TransactionModes { deferrable: Some(true), read_only: Some(true), ..serializable }),
        ),
        (
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE NOT DEFERRABLE",
            Effect::Begin(TransactionModes {
                isolation: Some(Isolation::RepeatableRead),
                read_only: Some(false),
                deferrable: Some(false),
            }),
        ),
        ("BEGIN SOMETHING", Effect::BeginUnknown),
        ("START TRANSACTION READ", Effect::BeginUnknown),
        ("COMMIT", Effect::Commit { chain: false }),
        ("END TRANSACTION", Effect::Commit { chain: false }),
        ("COMMIT WORK AND CHAIN", Effect::Commit { chain: true }),
        ("COMMIT AND NO CHAIN", Effect::Commit { chain: false }),
        ("ROLLBACK", Effect::Rollback { chain: false }),
        ("ABORT", Effect::Rollback { chain: false }),
        ("ROLLBACK AND CHAIN", Effect::Rollback { chain: true }),
        ("SAVEPOINT \"A\"", Effect::Savepoint("A".into())),
        ("SAVEPOINT A", Effect::Savepoint("a".into())),
        ("RELEASE a", Effect::Release("a".into())),
        ("RELEASE SAVEPOINT a", Effect::Release("a".into())),
        ("RELEASE savepoint", Effect::Release("savepoint".into())),
        ("ROLLBACK TO a", Effect::RollbackTo("a".into())),
        ("ROLLBACK WORK TO SAVEPOINT a", Effect::RollbackTo("a".into())),
        ("SET CONSTRAINTS ALL DEFERRED", Effect::SetConstraints),
    ] {
        let intent = postgres(text);
        assert_eq!(intent.effects, [effect], "{text}");
        assert_eq!(intent.reason, Reason::Transaction, "{text}");
        assert!(!intent.joins && !intent.plain, "{text}");
    }
    assert_eq!(postgres("PREPARE TRANSACTION 'x'").effects, [Effect::PrepareTransaction]);
    for text in ["COMMIT PREPARED 'x'", "ROLLBACK PREPARED 'x'", "COMMIT NOW", "ROLLBACK TO", "SAVEPOINT a b"]
    {
        let intent = postgres(text);
        assert_eq!((intent.access, intent.effects.len()), (Access::Write, 0), "{text}");
    }
}

#[test]
fn settings_carry_the_statement_that_sets_them_again() {
    for (text, effect) in [
        ("SET search_path = a, b", set("search_path", "a, b", "SET SESSION search_path = a, b")),
        ("SET SESSION Work_Mem TO '4MB';", set("work_mem", "'4MB'", "SET SESSION Work_Mem TO '4MB'")),
        ("SET app.tenant = '42'", set("app.tenant", "'42'", "SET SESSION app.tenant = '42'")),
        ("SET TIME ZONE 'UTC'", set("timezone", "'UTC'", "SET SESSION TIME ZONE 'UTC'")),
        ("SET TIME ZONE -5", set("timezone", "-5", "SET SESSION TIME ZONE -5")),
        ("SET NAMES 'utf8'", set("client_encoding", "'utf8'", "SET SESSION NAMES 'utf8'")),
        ("SET SCHEMA 'x'", set("search_path", "'x'", "SET SESSION SCHEMA 'x'")),
        ("SET ROLE bob", set("role", "bob", "SET SESSION ROLE bob")),
        (
            "SET SESSION AUTHORIZATION bob",
            set("session_authorization", "bob", "SET SESSION SESSION AUTHORIZATION bob"),
        ),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            set("default_transaction_read_only", "on", "SET SESSION default_transaction_read_only = on"),
        ),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            set(
                "default_transaction_isolation",
                "'serializable'",
                "SET SESSION default_transaction_isolation = 'serializable'",
            ),
        ),
        (
            "SELECT set_config('app.t', 'x', false)",
            set("app.t", "'x'", "SELECT pg_catalog.set_config('app.t', 'x', false)"),
        ),
        (
            "SELECT pg_catalog.set_config('search_path', '', false) AS x",
            set("search_path", "''", "SELECT pg_catalog.set_config('search_path', '', false)"),
        ),
        ("RESET search_path", Effect::Reset { name: "search_path".into() }),
        ("SET search_path TO DEFAULT", Effect::Reset { name: "search_path".into() }),
        ("SET TIME ZONE LOCAL", Effect::Reset { name: "timezone".into() }),
        ("RESET ROLE", Effect::Reset { name: "role".into() }),
        ("RESET SESSION AUTHORIZATION", Effect::Reset { name: "session_authorization".into() }),
        ("RESET ALL", Effect::ResetAll),
        ("SET TRANSACTION READ ONLY", Effect::SetTransaction(READ_ONLY)),
        ("SET transaction_read_only = on", Effect::SetTransaction(READ_ONLY)),
        ("DISCARD ALL", Effect::Discard(Discard::All)),
        ("DISCARD PLANS", Effect::Discard(Discard::Plans)),
        ("DEALLOCATE a", Effect::Deallocate { name: Some("a".into()) }),
        ("DEALLOCATE PREPARE ALL", Effect::Deallocate { name: None }),
        ("EXECUTE a(1, 'x')", Effect::Execute { name: "a".into() }),
    ] {
        let intent = postgres(text);
        assert_eq!(intent.effects, [effect], "{text}");
        assert_eq!((intent.access, intent.reason), (Access::Read, Reason::Session), "{text}");
    }
}

#[test]
fn local_settings_are_told_apart() {
    for text in ["SET LOCAL a.b = 'x'", "SET LOCAL a.b TO DEFAULT"] {
        let effects = postgres(text).effects;
        let local = matches!(effects.as_slice(), [Effect::Set { scope: Scope::Local, .. }]);
        assert!(local, "{text}: {effects:?}");
    }
    assert_eq!(postgres("SELECT set_config('a.b', 'x', true)").effects, []);
    for name in ["transaction_read_only", "TRANSACTION_ISOLATION", "transaction_deferrable"] {
        let intent = postgres(&format!("SELECT set_config('{name}', 'on', false)"));
        assert_eq!((intent.access, intent.reason), (Access::Write, Reason::State), "{name}");
        assert_eq!(intent.effects, [], "{name}");
    }
}

#[test]
fn settings_that_cannot_be_sent_again_pin() {
    for text in [
        "SELECT set_config('a.b', c, false) FROM t",
        "SELECT set_config('a.b', current_user, false)",
        "SELECT set_config($1, $2, false)",
        "SELECT 1, set_config('a.b', 'c', false)",
        "SET x",
        "SET search_path FROM CURRENT",
    ] {
        let intent = postgres(text);
        assert_eq!((intent.access, intent.reason), (Access::Write, Reason::State), "{text}");
        assert_eq!(intent.effects, [Effect::Pin(PinReason::Setting)], "{text}");
    }
}

#[test]
fn what_cannot_be_carried_pins() {
    for (text, pin) in [
        ("LISTEN c", PinReason::Listen),
        ("LOAD 'auto_explain'", PinReason::Library),
        ("CREATE TEMP TABLE t (a int)", PinReason::TempTable),
        ("CREATE TEMPORARY VIEW v AS SELECT 1", PinReason::TempTable),
        ("CREATE OR REPLACE TEMP VIEW v AS SELECT 1", PinReason::TempTable),
        ("CREATE GLOBAL TEMPORARY TABLE t (a int)", PinReason::TempTable),
        ("CREATE TABLE pg_temp.t (a int)", PinReason::TempTable),
        ("SELECT * INTO TEMP t FROM u", PinReason::TempTable),
        ("SELECT * INTO LOCAL TEMP t FROM u", PinReason::TempTable),
        ("SELECT * INTO GLOBAL TEMPORARY TABLE t FROM u", PinReason::TempTable),
        ("SELECT * INTO pg_temp.t FROM u", PinReason::TempTable),
        ("SELECT * INTO TABLE pg_temp.t FROM u", PinReason::TempTable),
        ("SELECT 1 AS \"a\" INTO \"pg_temp\".t", PinReason::TempTable),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", PinReason::HoldCursor),
        ("DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT 1", PinReason::HoldCursor),
        ("SELECT pg_advisory_lock(1)", PinReason::AdvisoryLock),
        ("SELECT pg_try_advisory_lock(1) FROM t", PinReason::AdvisoryLock),
        ("SELECT pg_advisory_lock(1), (f()).*", PinReason::AdvisoryLock),
        ("CREATE TABLE t AS SELECT pg_advisory_lock(1)", PinReason::AdvisoryLock),
    ] {
        let intent = postgres(text);
        assert_eq!(intent.access, Access::Write, "{text}");
        assert!(intent.effects.contains(&Effect::Pin(pin)), "{text}: {:?}", intent.effects);
    }
    for (text, pin) in [
        ("UNLISTEN *", PinReason::Listen),
        ("SELECT pg_advisory_unlock_all()", PinReason::AdvisoryLock),
        ("CLOSE ALL", PinReason::HoldCursor),
    ] {
        assert!(postgres(text).effects.contains(&Effect::Unpin(pin)), "{text}");
    }
    assert_eq!(postgres("UNLISTEN c").effects, []);
    assert_eq!(postgres("SELECT pg_advisory_xact_lock(1)").effects, []);
}

#[test]
fn cursors_stay_where_their_transaction_is() {
    for text in ["DECLARE c CURSOR FOR SELECT 1", "FETCH ALL FROM c", "MOVE c", "CLOSE c"] {
        let intent = postgres(text);
        assert_eq!((intent.access, intent.reason), (Access::Read, Reason::State), "{text}");
        assert_eq!(intent.effects[0], Effect::Cursor, "{text}");
    }
    assert_eq!(postgres("CLOSE c").effects[1..], [Effect::ClosesCursor("c".into())]);
    assert_eq!(
        postgres("DECLARE c CURSOR WITH HOLD FOR SELECT 1").effects,
        [Effect::Pin(PinReason::HoldCursor), Effect::HoldsCursor("c".into()), Effect::Cursor]
    );
    assert_eq!(postgres("DECLARE c CURSOR FOR SELECT * FROM t FOR UPDATE").access, Access::Write);
}

#[test]
fn sequences_and_unknown_code_are_reported() {
    use Effect::{DrawsSequence, NeedsPrevious, Touches};
    for (text, effects) in [
        ("INSERT INTO t VALUES (1)", vec![DrawsSequence]),
        ("COPY t FROM STDIN", vec![DrawsSequence]),
        ("UPDATE t SET a = DEFAULT", vec![DrawsSequence]),
        ("UPDATE t SET a = 1", vec![]),
        ("SELECT nextval('s')", vec![DrawsSequence]),
        ("SELECT lastval()", vec![NeedsPrevious]),
        ("INSERT INTO t VALUES (currval('s'))", vec![DrawsSequence, NeedsPrevious]),
        ("SELECT set_tenant(42)", vec![DrawsSequence, Touches]),
        ("DO $$ BEGIN PERFORM set_tenant(42); END $$", vec![DrawsSequence, Touches]),
        ("CALL p()", vec![DrawsSequence, Touches]),
        ("SELECT * FROM pg_prepared_statements", vec![Effect::ShowsPrepared]),
    ] {
        assert_eq!(postgres(text).effects, effects, "{text}");
    }
}

#[test]
fn what_sessions_begin_with_is_changed_by_these() {
    for (text, changes) in [
        ("ALTER ROLE app SET search_path = x", true),
        ("ALTER USER \"App\" RESET ALL", true),
        ("ALTER ROLE app IN DATABASE shop SET jit = off", true),
        ("ALTER DATABASE shop SET TimeZone = 'UTC'", true),
        ("ALTER DATABASE shop SET TABLESPACE fast", false),
        ("ALTER DATABASE shop OWNER TO app", false),
        ("ALTER ROLE app PASSWORD 'set'", false),
        ("ALTER TABLE t SET SCHEMA s", false),
    ] {
        assert_eq!(postgres(text).effects.contains(&Effect::Logins), changes, "{text}");
    }
}

#[test]
fn the_proxys_own_settings_are_answered_by_it() {
    let set = |name: &str, value: &str, scope| ProxyCommand::Set {
        name: name.into(),
        value: value.into(),
        scope,
        column: None,
    };
    let answered = |name: &str, value: &str, scope, column: &str| ProxyCommand::Set {
        name: name.into(),
        value: value.into(),
        scope,
        column: Some(column.into()),
    };
    let value = |name: &str, value: &str| set(name, value, Scope::Session);
    for (text, command) in [
        ("SET pointsman.consistency = 'eventual'", value("consistency", "eventual")),
        ("SET pointsman.max_lag TO '500ms'", value("max_lag", "500ms")),
        ("set session POINTSMAN.max_lag = off", value("max_lag", "off")),
        ("SET pointsman.consistency TO \"global\"", value("consistency", "global")),
        (
            "SELECT set_config('pointsman.position', 'x', false)",
            answered("position", "x", Scope::Session, "set_config"),
        ),
        (
            "SELECT set_config('pointsman.max_lag', $1, false)",
            ProxyCommand::SetComputed { name: "max_lag".into() },
        ),
        (
            "SELECT current_setting('pointsman.max_lag', true), current_setting('Pointsman.Route') AS r",
            ProxyCommand::Show {
                shown: [
                    Shown { missing_ok: true, ..asked("max_lag", "current_setting") },
                    asked("route", "r"),
                ]
                .into(),
            },
        ),
        (
            "SELECT current_setting('pointsman.x', 'no'), current_setting('pointsman.x', 'on')",
            ProxyCommand::Show {
                shown: [
                    asked("x", "current_setting"),
                    Shown { missing_ok: true, ..asked("x", "current_setting") },
                ]
                .into(),
            },
        ),
        ("SET LOCAL pointsman.consistency = 'global'", set("consistency", "global", Scope::Local)),
        ("SET LOCAL pointsman.max_lag TO DEFAULT", set("max_lag", "default", Scope::Local)),
        (
            "SELECT set_config('pointsman.max_lag', '1s', true) b",
            answered("max_lag", "1s", Scope::Local, "b"),
        ),
        ("SHOW Pointsman.route", ProxyCommand::Show { shown: [asked("route", "pointsman.route")].into() }),
        ("RESET pointsman.max_lag", ProxyCommand::Reset { name: "max_lag".into() }),
        ("SET pointsman.max_lag TO DEFAULT", ProxyCommand::Reset { name: "max_lag".into() }),
    ] {
        assert_eq!(postgres(text).effects, [Effect::Proxy(command)], "{text}");
    }
}

#[test]
fn prepare_knows_what_is_behind_it() {
    let intent = postgres("PREPARE a (int) AS DELETE FROM t WHERE b = $1;");
    let [Effect::Prepare { name, statement, inner }] = intent.effects.as_slice() else {
        panic!("{intent:?}")
    };
    assert_eq!((&**name, &**statement), ("a", "PREPARE a (int) AS DELETE FROM t WHERE b = $1"));
    assert_eq!((inner.access, inner.reason), (Access::Write, Reason::Dml));
    assert_eq!((intent.access, intent.reason), (Access::Read, Reason::Session));
    assert_eq!(postgres("EXPLAIN ANALYZE EXECUTE a").effects, [Effect::Execute { name: "a".into() }]);
    assert_eq!(
        postgres("CREATE TABLE x AS EXECUTE a").effects,
        [Effect::Ddl, Effect::Execute { name: "a".into() }]
    );
}

#[test]
fn several_statements_are_judged_together_and_in_order() {
    let intent = postgres("BEGIN; UPDATE t SET a = 1; COMMIT;");
    assert_eq!((intent.access, intent.reason, intent.statements), (Access::Write, Reason::Command, 3));
    let expected = [Effect::Begin(TransactionModes::default()), Effect::Commit { chain: false }];
    assert_eq!(intent.effects, expected);
    assert!(!intent.joins && !intent.plain);

    let intent = postgres("SET a.b = '1'; SELECT 1");
    assert_eq!((intent.access, intent.reason, intent.statements), (Access::Read, Reason::Read, 2));

    assert_eq!(postgres("SELECT 1;;").statements, 1);
    assert_eq!(postgres(" ; -- nothing\n").statements, 0);
    assert_eq!(postgres("").access, Access::Read);
}

#[test]
fn semicolons_inside_a_statement_do_not_end_it() {
    for text in [
        "CREATE RULE r AS ON INSERT TO t DO (DELETE FROM u; COMMIT; NOTIFY c)",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; COMMIT; END",
    ] {
        let intent = postgres(text);
        assert_eq!((intent.statements, intent.effects), (1, vec![Effect::Ddl, Effect::Redefines]), "{text}");
    }
}

#[test]
fn what_needs_a_database_to_itself_says_which() {
    for (text, database) in [
        ("DROP DATABASE a", Some("a")),
        ("drop database if exists \"A b\" with (force)", Some("A b")),
        ("ALTER DATABASE a RENAME TO b", Some("a")),
        ("ALTER DATABASE a SET TABLESPACE x", Some("a")),
        ("ALTER DATABASE a SET work_mem = '1MB'", None),
        ("CREATE DATABASE a", None),
        ("CREATE DATABASE a OWNER x TEMPLATE b", Some("b")),
        ("CREATE DATABASE a WITH TEMPLATE = b", Some("b")),
        ("DROP TABLE a", None),
    ] {
        let effects = postgres(text).effects;
        let found = effects.iter().find_map(|effect| match effect {
            Effect::NeedsAlone { database } => Some(&**database),
            _ => None,
        });
        assert_eq!(found, database, "{text}");
    }
}

#[test]
fn what_runs_apart_says_so() {
    for text in [
        "VACUUM",
        "CREATE DATABASE a",
        "DROP DATABASE a",
        "CREATE INDEX CONCURRENTLY i ON t (a)",
        "REINDEX TABLE CONCURRENTLY t",
        "ALTER SYSTEM SET a = 1",
        "CALL p()",
        "DISCARD ALL",
        "BEGIN",
        "COMMIT PREPARED 'x'",
    ] {
        assert!(!postgres(text).joins, "{text}");
    }
    for text in ["SELECT 1", "INSERT INTO t VALUES (1)", "CREATE TABLE t (a int)", "SELECT f()", "TRUNCATE t"]
    {
        assert!(postgres(text).joins, "{text}");
    }
}

#[test]
fn only_local_statements_with_built_in_functions_are_plain() {
    for text in
        ["SELECT lower(a) FROM t", "INSERT INTO t VALUES (now())", "DELETE FROM t", "UPDATE t SET a = 1"]
    {
        assert!(postgres(text).plain, "{text}");
    }
    for text in [
        "SELECT f()",
        "SELECT nextval('s')",
        "SELECT 1; SELECT 2",
        "COPY t FROM STDIN",
        "EXPLAIN ANALYZE DELETE FROM t",
        "SELECT * FROM t FOR UPDATE",
        "CREATE TABLE t (a int)",
        "SELECT (",
    ] {
        assert!(!postgres(text).plain, "{text}");
    }
}

#[test]
fn hints_are_read_from_any_comment() {
    use crate::{route::Consistency, sql::hints::Target};
    let hints = |text| postgres(text).hints;
    assert_eq!(hints("/* pointsman: primary */ SELECT 1").target, Some(Target::Primary));
    assert_eq!(hints("SELECT /*pointsman:replica*/ 1").target, Some(Target::Replica));
    assert_eq!(hints("SELECT 1 -- pointsman: primary").target, Some(Target::Primary));
    let many = hints("SELECT 1 /* Pointsman: max_lag=500ms, consistency=global node=10.0.0.2:5432 what */");
    assert_eq!(many.max_lag, Some(std::time::Duration::from_millis(500)));
    assert_eq!(many.consistency, Some(Consistency::Global));
    assert_eq!(many.target, Some(Target::Node("10.0.0.2:5432".into())));
    assert_eq!(many.unknown, ["what".into()]);
    let spaced = hints("/* pointsman: max_lag = 500ms; consistency= 'global' */ SELECT 1");
    assert_eq!(
        (spaced.max_lag, spaced.consistency, spaced.unknown),
        (many.max_lag, many.consistency, vec![])
    );
    assert_eq!(hints("SELECT '/* pointsman: primary */'"), Hints::default());
    assert_eq!(hints("SELECT 1 /* pointsmanly: primary */"), Hints::default());
}

#[test]
fn a_replica_hint_vouches_for_unknown_functions_but_not_for_writes() {
    let intent = postgres("/* pointsman: replica */ SELECT f()");
    assert_eq!((intent.access, intent.reason), (Access::Read, Reason::Hint));
    for text in [
        "/* pointsman: replica */ DELETE FROM t",
        "/* pointsman: replica */ SELECT pg_advisory_lock(1)",
        "/* pointsman: replica */ SELECT nextval('s')",
        "/* pointsman: replica */ SELECT * FROM t FOR UPDATE",
        "/* pointsman: replica */ FROBNICATE",
    ] {
        assert_eq!(postgres(text).access, Access::Write, "{text}");
    }
}

#[test]
fn a_pools_reset_query_changes_no_data() {
    let reset = postgres("SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;");
    assert_eq!((reset.access, reset.reason), (Access::Write, Reason::State));
}
