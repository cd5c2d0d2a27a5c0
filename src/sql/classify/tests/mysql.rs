//! MySQL and MariaDB statements.

use super::{super::*, asked, mysql, set};
use crate::sql::effects::{
    Ending, Ends, Force, Isolation, Left, ProxyCommand, Scope, TransactionModes, Whom,
};

#[test]
fn mysql_reads_go_to_a_replica() {
    for text in [
        "SELECT 1",
        "SELECT `a` FROM `t` WHERE `id` = 5 LIMIT 1, 2",
        "SELECT \"it's\", 'it\\'s' # comment",
        "SELECT a FROM t -- comment",
        "SELECT 1--1",
        "SELECT @@version, @@session.sql_mode, @@port, @@server_id, @@hostname",
        "SELECT now(), rand(), uuid(), version(), database()",
        "SELECT IF(a, b, c), IFNULL(a, 0), GROUP_CONCAT(a ORDER BY b SEPARATOR ',') FROM t GROUP BY c",
        "SELECT DATE_ADD(now(), INTERVAL 1 DAY)",
        "SELECT * FROM t WHERE a IN (1, 2, 3)",
        "SELECT replace(a, 'x', 'y'), insert(a, 1, 2, 'x') FROM t",
        "SELECT * FROM information_schema.tables",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "EXPLAIN SELECT 1",
        "EXPLAIN FORMAT=JSON SELECT 1",
        "DESCRIBE t",
        "SHOW TABLES",
        "SHOW FULL COLUMNS FROM t",
        "SHOW CREATE TABLE t",
        "SHOW DATABASES LIKE 'a%'",
    ] {
        let intent = mysql(text);
        assert_eq!((intent.access, intent.reason), (Access::Read, Reason::Read), "{text}");
        assert_eq!(intent.effects, [], "{text}");
    }
}

#[test]
fn mysql_writes_go_to_the_primary() {
    for (text, reason) in [
        ("INSERT INTO t VALUES (1)", Reason::Dml),
        ("INSERT INTO t SET a = 1 ON DUPLICATE KEY UPDATE a = 2", Reason::Dml),
        ("REPLACE INTO t VALUES (1)", Reason::Dml),
        ("UPDATE t JOIN u USING (a) SET t.b = 1", Reason::Dml),
        ("DELETE t FROM t JOIN u USING (a)", Reason::Dml),
        ("LOAD DATA LOCAL INFILE 'x' INTO TABLE t", Reason::Dml),
        ("SELECT * FROM t FOR UPDATE", Reason::Lock),
        ("SELECT * FROM t LOCK IN SHARE MODE", Reason::Lock),
        ("SELECT * FROM t FOR SHARE SKIP LOCKED", Reason::Lock),
        ("LOCK TABLES t READ", Reason::Lock),
        ("SELECT f(1)", Reason::Function),
        ("SELECT db.lower('A')", Reason::Function),
        ("CALL p()", Reason::Command),
        ("DO sleep(1)", Reason::Command),
        ("SELECT /*! SQL_NO_CACHE */ 1", Reason::Command),
        ("SELECT 1 /*!50000 FOR UPDATE */", Reason::Lock),
        ("SELECT 1 /*M!100100 + 1 */", Reason::Command),
        ("SELECT 1 INTO OUTFILE '/tmp/x'", Reason::Unparsed),
        ("XA COMMIT 'x'", Reason::Command),
        ("SET GLOBAL max_connections = 5", Reason::Command),
        ("SET STATEMENT max_statement_time = 1 FOR SELECT 1", Reason::Command),
        ("FLUSH PRIVILEGES", Reason::Command),
        ("CREATE TABLE t (a int)", Reason::Ddl),
        ("GRANT SELECT ON t TO x", Reason::Ddl),
        ("ANALYZE TABLE t", Reason::Ddl),
        ("HANDLER t READ FIRST", Reason::State),
        ("SELECT @v", Reason::State),
        ("SELECT @v := 1", Reason::State),
        ("SELECT LAST_INSERT_ID()", Reason::State),
        ("SELECT GET_LOCK('a', 1)", Reason::State),
        ("SELECT SQL_CALC_FOUND_ROWS * FROM t", Reason::State),
        ("SHOW WARNINGS", Reason::State),
        ("CREATE TEMPORARY TABLE t (a int)", Reason::State),
        ("CREATE TEMPORARY TABLE t SELECT unheard_of()", Reason::Ddl),
        ("SELECT SQL_CALC_FOUND_ROWS unheard_of() FROM t", Reason::Function),
        ("SELECT unheard_of() INTO @v", Reason::Function),
        ("SELECT @@read_only", Reason::Server),
        ("SELECT @@global.super_read_only", Reason::Server),
        ("SELECT @@gtid_executed", Reason::Server),
        ("SELECT @@GLOBAL . read_only", Reason::Server),
        ("SELECT 1 INTO @v", Reason::State),
        ("WITH x AS (SELECT 1) DELETE FROM t", Reason::Dml),
        ("SELECT 1 --x; DELETE FROM t", Reason::Command),
        ("SHOW MASTER STATUS", Reason::Server),
        ("SHOW REPLICA STATUS", Reason::Server),
        ("SHOW VARIABLES LIKE 'read_only'", Reason::Server),
        ("SHOW PROCESSLIST", Reason::Server),
        ("SELECT * FROM performance_schema.threads", Reason::Server),
        ("SELECT 1; DELETE FROM t", Reason::Command),
        ("SELECT 'open", Reason::Unparsed),
    ] {
        let intent = mysql(text);
        assert_eq!((intent.access, intent.reason), (Access::Write, reason), "{text}");
    }
}

#[test]
fn mysql_transaction_control_is_recognised_in_exact_forms_only() {
    let plain = TransactionModes::default();
    let read_only = TransactionModes { read_only: Some(true), ..plain };
    for (text, effect) in [
        ("BEGIN", Effect::Begin(plain)),
        ("BEGIN WORK", Effect::Begin(plain)),
        ("START TRANSACTION", Effect::Begin(plain)),
        ("START TRANSACTION READ ONLY", Effect::Begin(read_only)),
        ("START TRANSACTION WITH CONSISTENT SNAPSHOT", Effect::BeginUnknown),
        ("XA START 'x'", Effect::BeginUnknown),
        ("XA COMMIT 'x' ONE PHASE", Effect::CommitXa),
        ("XA COMMIT 'x'", Effect::CommitXa),
        ("COMMIT AND NO CHAIN NO RELEASE", Effect::Commit { chain: false }),
        ("ROLLBACK", Effect::Rollback { chain: false }),
        ("ROLLBACK TO a", Effect::RollbackTo("a".into())),
        ("SAVEPOINT a", Effect::Savepoint("a".into())),
    ] {
        assert_eq!(mysql(text).effects, [effect], "{text}");
    }
    assert_eq!(mysql("XA PREPARE 'x'").effects, [Effect::PrepareTransaction]);
}

#[test]
fn what_commits_implicitly_outdoes_the_transaction_before() {
    for text in [
        "CREATE TABLE t (x INT)",
        "DROP TABLE t",
        "TRUNCATE t",
        "GRANT SELECT ON t TO u",
        "SET PASSWORD = 'x'",
        "LOCK TABLES t WRITE",
        "FLUSH TABLES",
        "ANALYZE TABLE t",
        "BEGIN",
        "START TRANSACTION READ ONLY",
        "COMMIT; INSERT INTO t VALUES (1)",
        "CREATE TABLE t (x INT); SELECT 1",
    ] {
        assert!(mysql(text).outdoes, "{text}");
    }
    for text in [
        "CREATE TEMPORARY TABLE t (x INT)",
        "DROP TEMPORARY TABLE t",
        "UNLOCK TABLES",
        "CHECKSUM TABLE t",
        "XA START 'x'",
        "XA COMMIT 'x'",
        "COMMIT AND CHAIN",
        "INSERT INTO t VALUES (1)",
        "SELECT 1; CREATE TABLE t (x INT)",
    ] {
        assert!(!mysql(text).outdoes, "{text}");
    }
}

#[test]
fn a_variable_that_only_a_server_can_tell_is_named() {
    let diagnostics = Effect::NeedsLast(Left::Diagnostics);
    let assigns = |name: &str| Effect::Assigns { name: name.into() };
    for (text, effects) in [
        ("GET DIAGNOSTICS @N = NUMBER", vec![diagnostics.clone(), assigns("@n")]),
        ("GET DIAGNOSTICS @n = ROW_COUNT", vec![Effect::NeedsLast(Left::Counts), assigns("@n")]),
        (
            "GET DIAGNOSTICS CONDITION @c @m = MESSAGE_TEXT, @s = RETURNED_SQLSTATE",
            vec![diagnostics.clone(), assigns("@m"), assigns("@s")],
        ),
        ("GET DIAGNOSTICS @`n` = NUMBER", vec![diagnostics.clone(), Effect::Pin(PinReason::UserVariable)]),
        ("SET @w = @@warning_count", vec![assigns("@w"), diagnostics]),
        ("SET @i = LAST_INSERT_ID()", vec![assigns("@i"), Effect::NeedsPrevious]),
        ("SET @v = (SELECT 1)", vec![assigns("@v")]),
        ("SELECT @V := 1", vec![assigns("@v")]),
        ("SELECT 1, 2 INTO @v, @w", vec![assigns("@v"), assigns("@w")]),
        ("SELECT 1 INTO @`v`", vec![Effect::Pin(PinReason::UserVariable)]),
    ] {
        assert_eq!(mysql(text).effects, effects, "{text}");
    }
}

#[test]
fn mysql_settings_carry_the_statement_that_sets_them_again() {
    let next = TransactionModes { isolation: Some(Isolation::Serializable), ..TransactionModes::default() };
    for (text, effects) in [
        ("SET autocommit=0", vec![set("autocommit", "0", "SET SESSION autocommit = 0")]),
        ("SET @@session.sql_mode = 'ANSI'", vec![set("sql_mode", "'ANSI'", "SET SESSION sql_mode = 'ANSI'")]),
        ("SET NAMES utf8mb4", vec![set("names", "utf8mb4", "SET NAMES utf8mb4")]),
        (
            "SET NAMES utf8mb4 COLLATE utf8mb4_bin, time_zone = '+00:00'",
            vec![
                set("names", "utf8mb4 COLLATE utf8mb4_bin", "SET NAMES utf8mb4 COLLATE utf8mb4_bin"),
                set("time_zone", "'+00:00'", "SET SESSION time_zone = '+00:00'"),
            ],
        ),
        ("SET @v = 5, @W := 'x'", vec![set("@v", "5", "SET @v = 5"), set("@w", "'x'", "SET @W := 'x'")]),
        ("SET sql_mode = DEFAULT", vec![Effect::Reset { name: "sql_mode".into() }]),
        (
            "SET SESSION TRANSACTION READ ONLY",
            vec![set("transaction_read_only", "1", "SET SESSION TRANSACTION READ ONLY")],
        ),
        (
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
            vec![set(
                "transaction_isolation",
                "'READ-COMMITTED'",
                "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
            )],
        ),
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", vec![Effect::SetTransaction(next)]),
        ("SET @@transaction_isolation = 'SERIALIZABLE'", vec![Effect::SetNext(next)]),
        (
            "SET tx_isolation = 'SERIALIZABLE'",
            vec![set(
                "transaction_isolation",
                "'SERIALIZABLE'",
                "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            )],
        ),
        ("USE `Shop`", vec![Effect::UseDatabase("Shop".into())]),
        ("EXECUTE s USING @a", vec![Effect::Execute { name: "s".into() }]),
        ("DROP PREPARE s", vec![Effect::Deallocate { name: Some("s".into()) }]),
    ] {
        let intent = mysql(text);
        assert_eq!(intent.effects, effects, "{text}");
        assert_eq!((intent.access, intent.reason), (Access::Read, Reason::Session), "{text}");
    }
}

#[test]
fn variables_of_the_proxys_own_are_answered_for_where_they_stand_alone() {
    let shown = |settings: &[(&str, &str)]| {
        let shown = settings.iter().map(|&(name, column)| asked(name, column));
        Effect::Proxy(ProxyCommand::Show { shown: shown.collect() })
    };
    let misplaced = |name: &str| vec![Effect::Proxy(ProxyCommand::Misplaced { name: name.into() })];
    for (text, effects) in [
        (
            "SET @pointsman_consistency = 'global'",
            vec![Effect::Proxy(ProxyCommand::Set {
                name: "consistency".into(),
                value: "global".into(),
                scope: Scope::Session,
                column: None,
            })],
        ),
        ("SELECT @pointsman_route AS route, 1", misplaced("route")),
        ("SELECT @pointsman_position INTO @x", misplaced("position")),
        ("SELECT CONCAT(@`Pointsman_Route`)", misplaced("route")),
        ("SET @x = @pointsman_position", misplaced("position")),
        ("INSERT INTO t VALUES (@pointsman_position)", misplaced("position")),
        ("SELECT x INTO @pointsman_position FROM t", misplaced("position")),
        ("SELECT @pointsman_route", vec![shown(&[("route", "@pointsman_route")])]),
        (
            "SELECT @Pointsman_Route, @pointsman_position AS `The place` LIMIT 1",
            vec![shown(&[("route", "@Pointsman_Route"), ("position", "The place")])],
        ),
        (
            "SELECT (@pointsman_route), ((@`pointsman_position`)) 'It''s' FROM DUAL",
            vec![shown(&[("route", "(@pointsman_route)"), ("position", "It's")])],
        ),
        ("SELECT @pointsman_route AS \"X\"", vec![shown(&[("route", "X")])]),
        ("SELECT (@pointsman_route", misplaced("route")),
        ("SELECT (@pointsman_route, 1)", misplaced("route")),
        ("SELECT @pointsman_route AS", misplaced("route")),
        ("SELECT @pointsman_route 'a' 'b'", misplaced("route")),
    ] {
        let intent = mysql(text);
        assert_eq!(intent.effects, effects, "{text}");
        assert_eq!((intent.access, intent.reason), (Access::Read, Reason::Session), "{text}");
    }
}

#[test]
fn changes_of_accounts_are_told_from_other_definitions() {
    for (text, effects) in [
        ("GRANT SELECT ON *.* TO x", &[Effect::Logins][..]),
        ("REVOKE admin FROM x", &[Effect::Logins]),
        ("SET GLOBAL sql_mode = ''", &[Effect::Logins]),
        ("SET @@PERSIST.autocommit = 0", &[Effect::Logins]),
        ("SET GLOBAL TRANSACTION READ ONLY", &[Effect::Logins]),
        ("ALTER USER x ACCOUNT LOCK", &[Effect::Logins]),
        ("DROP ROLE x", &[Effect::Logins]),
        ("RENAME USER x TO y", &[Effect::Logins]),
        ("SET DEFAULT ROLE x FOR y", &[Effect::Logins]),
        ("SET PASSWORD FOR x = 'y'", &[Effect::Logins]),
        ("FLUSH PRIVILEGES", &[Effect::Logins]),
        ("GRANT SELECT ON *.* TO x; REVOKE INSERT ON *.* FROM x", &[Effect::Logins]),
        ("ALTER DATABASE x CHARACTER SET latin1", &[Effect::Ddl, Effect::Logins]),
        ("ALTER SCHEMA DEFAULT COLLATE latin1_bin", &[Effect::Ddl, Effect::Logins]),
        ("CREATE DATABASE IF NOT EXISTS x", &[Effect::Ddl, Effect::Logins]),
        ("CREATE OR REPLACE SCHEMA x", &[Effect::Ddl, Effect::Logins]),
        ("DROP DATABASE x", &[Effect::Ddl]),
        ("FLUSH TABLES", &[]),
        // No connection is theirs yet.
        ("CREATE USER x", &[Effect::Ddl]),
        ("DROP INDEX user ON t", &[Effect::Ddl]),
        ("DROP TABLE user", &[Effect::Ddl, Effect::Drops(["user".into()].into())]),
    ] {
        let intent = mysql(text);
        assert_eq!((intent.access, &intent.effects[..]), (Access::Write, effects), "{text}");
    }
}

#[test]
fn what_is_set_again_reads_the_same_in_every_mode() {
    for (text, statement) in [
        (r#"SET sql_mode = "ANSI""#, "SET SESSION sql_mode = 'ANSI'"),
        ("set character set 'latin1'", "SET CHARACTER SET 'latin1'"),
        (r#"SET NAMES "latin1" COLLATE 'latin1_bin'"#, "SET NAMES 'latin1' COLLATE 'latin1_bin'"),
        (r"SET time_zone = '\+01:00'", "SET SESSION time_zone = '+01:00'"),
    ] {
        let effects = mysql(text).effects;
        let [Effect::Set { statement: found, .. }] = &effects[..] else { panic!("{text}: {effects:?}") };
        assert_eq!(&**found, statement);
    }
    assert_eq!(mysql("SET sql_mode = 4").effects, [Effect::SetComputed { name: "sql_mode".into() }]);
}

#[test]
fn mysql_state_that_cannot_be_carried_pins() {
    for (text, pin) in [
        ("SET sql_mode = f(@@sql_mode)", PinReason::Setting),
        ("SET insert_id = 5", PinReason::Setting),
        ("SET @@session.rand_seed1 = DEFAULT", PinReason::Setting),
        (r"SET sql_mode = 'ANSI\'s'", PinReason::Setting),
        ("SET lc_messages = 'é'", PinReason::Setting),
        (r"SET ROLE 'a\'b'", PinReason::Setting),
        ("SET @é = 1", PinReason::UserVariable),
        ("LOCK TABLES t READ", PinReason::TableLock),
        ("FLUSH TABLES WITH READ LOCK", PinReason::TableLock),
        ("LOCK INSTANCE FOR BACKUP", PinReason::BackupLock),
        ("BACKUP STAGE START", PinReason::BackupLock),
        ("BACKUP LOCK t", PinReason::BackupLock),
        ("SELECT GET_LOCK('a', 1)", PinReason::NamedLock),
        ("HANDLER t OPEN", PinReason::Handler),
        ("CREATE TEMPORARY TABLE t (a int)", PinReason::TempTable),
        ("PREPARE s FROM @v", PinReason::Setting),
        ("/*!40101 SET NAMES utf8 */", PinReason::Setting),
    ] {
        let intent = mysql(text);
        assert_eq!(intent.access, Access::Write, "{text}");
        assert!(intent.effects.contains(&Effect::Pin(pin)), "{text}: {:?}", intent.effects);
    }
    for text in [
        "/*M!999999 enable the sandbox mode */ \n/*!40101 SET @saved = @@character_set_client */",
        "/*!50003 SELECT */ SET @v = 1",
        "/*!50003 nonsense */",
    ] {
        assert!(mysql(text).effects.contains(&Effect::Touches), "{text}: {:?}", mysql(text).effects);
    }
    assert!(!mysql("SELECT /*!40001 SQL_NO_CACHE */ a FROM t").effects.contains(&Effect::Touches));
    assert!(mysql("UNLOCK TABLES").effects.contains(&Effect::Unpin(PinReason::TableLock)));
    for text in ["UNLOCK INSTANCE", "BACKUP STAGE END"] {
        assert_eq!(mysql(text).effects, [Effect::Unpin(PinReason::BackupLock)], "{text}");
    }
    assert_eq!(mysql("BACKUP UNLOCK").effects, []);
    assert!(mysql("SELECT RELEASE_ALL_LOCKS()").effects.contains(&Effect::Unpin(PinReason::NamedLock)));
}

#[test]
fn a_mode_that_is_added_to_is_carried_and_another_expression_pins() {
    let computed = Effect::SetComputed { name: "sql_mode".into() };
    for text in [
        "SET sql_mode = CONCAT(@@sql_mode, ',STRICT_TRANS_TABLES')",
        "set autocommit=1, session sql_mode = concat(@@session.sql_mode,',ANSI')",
        "SET @@sql_mode = REPLACE(@@global.sql_mode, 'ONLY_FULL_GROUP_BY', '')",
    ] {
        let intent = mysql(text);
        assert!(intent.effects.contains(&computed), "{text}: {:?}", intent.effects);
        assert_eq!(intent.access, Access::Read, "{text}");
    }
    for text in
        ["SET sql_mode = (SELECT mode FROM t)", "SET sql_mode = f(@@sql_mode)", "SET wait_timeout = 1 + 1"]
    {
        assert!(mysql(text).effects.contains(&Effect::Pin(PinReason::Setting)), "{text}");
    }
}

#[test]
fn what_the_previous_statement_left_is_asked_of_its_connection() {
    for (text, asks) in [
        ("SELECT LAST_INSERT_ID()", Effect::NeedsPrevious),
        ("INSERT INTO t VALUES (LAST_INSERT_ID())", Effect::NeedsPrevious),
        ("SELECT FOUND_ROWS()", Effect::NeedsLast(Left::Found)),
        ("SELECT ROW_COUNT()", Effect::NeedsLast(Left::Counts)),
        ("SHOW WARNINGS", Effect::NeedsLast(Left::Diagnostics)),
        ("SHOW COUNT(*) ERRORS", Effect::NeedsLast(Left::Diagnostics)),
        ("SELECT @@warning_count", Effect::NeedsLast(Left::Diagnostics)),
    ] {
        assert!(mysql(text).effects.contains(&asks), "{text}");
    }
}

#[test]
fn a_string_asks_no_other_for_what_it_leaves_itself() {
    let asks = |effect: &Effect| matches!(effect, Effect::NeedsPrevious | Effect::NeedsLast(_));
    for (text, wanted) in [
        ("UPDATE t SET a = 1; SELECT ROW_COUNT()", vec![]),
        ("SELECT 1/0; SHOW WARNINGS", vec![]),
        ("SHOW WARNINGS; SHOW ERRORS", vec![Effect::NeedsLast(Left::Diagnostics); 2]),
        ("INSERT INTO t VALUES (1); SELECT LAST_INSERT_ID()", vec![]),
        ("SELECT 1; SELECT LAST_INSERT_ID()", vec![Effect::NeedsPrevious]),
        ("SELECT LAST_INSERT_ID(); INSERT INTO t VALUES (1)", vec![Effect::NeedsPrevious]),
    ] {
        let effects = mysql(text).effects;
        assert_eq!(effects.into_iter().filter(asks).collect::<Vec<_>>(), wanted, "{text}");
    }
}

#[test]
fn prepare_from_a_literal_knows_what_is_behind_it() {
    let intent = mysql("PREPARE s FROM 'DELETE FROM t WHERE a = ''x'''");
    let [Effect::Prepare { inner, .. }] = intent.effects.as_slice() else { panic!("{intent:?}") };
    assert_eq!((inner.access, inner.reason), (Access::Write, Reason::Dml));
}

#[test]
fn modes_change_how_quotes_are_read() {
    let judge = |text: &str, modes| {
        classify(text.as_bytes(), Dialect::Mysql, modes, &super::loaded(), &FunctionRules::default())
    };
    let default = LexModes::default_of(Dialect::Mysql);
    let ansi = LexModes { ansi_quotes: true, ..default };
    let no_backslash = LexModes { standard_strings: true, ..default };
    // Under NO_BACKSLASH_ESCAPES the string ends at the second quote and a DELETE follows.
    let hidden = r"SELECT '\'; DELETE FROM t; -- '";
    assert_eq!(judge(hidden, default).statements, 1);
    assert_eq!(judge(hidden, no_backslash).access, Access::Write);
    assert_eq!(judge("SELECT \"f\"(1)", ansi).reason, Reason::Function);
    assert_eq!(judge("SELECT a FROM \"t\"", ansi).access, Access::Read);
    let names = set("names", "'latin1' COLLATE 'latin1_bin'", "SET NAMES 'latin1' COLLATE 'latin1_bin'");
    for modes in [default, ansi] {
        assert_eq!(
            judge("SET NAMES `latin1` COLLATE `latin1_bin`", modes).effects,
            std::slice::from_ref(&names)
        );
    }
    let timed = judge(r#"SET time_zone = "SYSTEM", @@transaction_read_only = "on", @v = "a""#, ansi);
    let read_only = TransactionModes { read_only: Some(true), ..TransactionModes::default() };
    let effects = [
        set("time_zone", "'SYSTEM'", "SET SESSION time_zone = 'SYSTEM'"),
        Effect::SetNext(read_only),
        Effect::Assigns { name: "@v".into() },
    ];
    assert_eq!(timed.effects, effects);
    let unreadable = LexModes { unreadable: true, ..default };
    assert_eq!(judge("SELECT 'é'", unreadable).reason, Reason::Unreadable);
}

#[test]
fn a_string_is_read_only_as_far_as_it_is_known_by_which_modes() {
    for (text, reason) in [
        (r"SET sql_mode = 'NO_BACKSLASH_ESCAPES'; SELECT '\'; DELETE FROM t -- '", Reason::Command),
        (r#"SET sql_mode = 'ANSI_QUOTES'; SELECT "a" FROM t"#, Reason::Command),
        ("SET sql_mode = 'ORACLE'; SELECT 1", Reason::Command),
        ("SET sql_mode = 4; SELECT 1", Reason::Command),
        ("SET sql_mode = DEFAULT; SELECT 1", Reason::Command),
        ("SET sql_mode = @before; SELECT 1", Reason::Command),
        ("SET NAMES gbk; SELECT 1", Reason::Command),
        ("SET NAMES `gbk`; SELECT 1", Reason::Command),
        ("SET NAMES DEFAULT; SELECT 1", Reason::Command),
        (r#"SET sql_mode = 'STRICT_TRANS_TABLES'; SELECT "\\""#, Reason::Read),
        ("SET sql_mode = 'ANSI_QUOTES'; SELECT 'a' FROM t", Reason::Read),
        ("SET NAMES utf8mb4; SELECT 'é'", Reason::Read),
        ("SET time_zone = '+00:00'; SELECT \"a\"", Reason::Read),
        (r#"SELECT "a\\"; SET sql_mode = 'ANSI_QUOTES'"#, Reason::Read),
    ] {
        let intent = mysql(text);
        assert_eq!(intent.reason, reason, "{text}");
        assert_eq!(intent.effects.contains(&Effect::Touches), reason == Reason::Command, "{text}");
    }
}

#[test]
fn what_may_stand_behind_a_body_may_leave_anything() {
    for (text, touches) in [
        ("CREATE PROCEDURE p() BEGIN SELECT 1; END", false),
        ("CREATE PROCEDURE p() l: BEGIN IF 1 THEN SELECT CASE WHEN 1 THEN 2 END; END IF; END l;", false),
        ("CREATE PROCEDURE p() BEGIN CASE 1 WHEN 1 THEN BEGIN SELECT 1; END; END CASE; END", false),
        ("CREATE PROCEDURE p() BEGIN SELECT 1; END; SET time_zone = '+01:00'", true),
        ("CREATE PROCEDURE p() BEGIN SELECT 1; END; BEGIN NOT ATOMIC SELECT 1; END", true),
        ("IF TRUE THEN SET time_zone = '+01:00'; END IF", true),
    ] {
        assert_eq!(mysql(text).effects.contains(&Effect::Touches), touches, "{text}");
    }
}

#[test]
fn transaction_modes_are_said_once_each_and_with_commas() {
    let begin = |read_only| Effect::Begin(TransactionModes { read_only, ..TransactionModes::default() });
    for (text, effect) in [
        ("START TRANSACTION READ ONLY", begin(Some(true))),
        ("START TRANSACTION READ WRITE", begin(Some(false))),
        ("START TRANSACTION READ ONLY, READ WRITE", Effect::BeginUnknown),
        ("START TRANSACTION READ ONLY READ WRITE", Effect::BeginUnknown),
    ] {
        assert_eq!(mysql(text).effects, [effect], "{text}");
    }
    let faulty = mysql("SET TRANSACTION READ ONLY ISOLATION LEVEL SERIALIZABLE");
    assert!(!faulty.effects.iter().any(|effect| matches!(effect, Effect::SetTransaction(_))), "{faulty:?}");
}

#[test]
fn kill_means_a_session_of_the_proxys_or_is_the_servers_to_refuse() {
    let soft = |ends| Ending { ends, force: Force::Soft };
    let (five, itself) = (Whom::Number(5), Whom::Itself);
    for (text, whom, ending) in [
        ("KILL 5", five, Ending::SESSION),
        ("KILL CONNECTION ((+5))", five, Ending::SESSION),
        ("KILL QUERY '5'", five, Ending::STATEMENT),
        ("KILL HARD 5", five, Ending::SESSION),
        ("KILL SOFT CONNECTION 5", five, soft(Ends::Session)),
        ("KILL SOFT QUERY 5", five, soft(Ends::Statement)),
        ("KILL QUERY CONNECTION_ID()", itself, Ending::STATEMENT),
        ("KILL (connection_id ())", itself, Ending::SESSION),
        ("KILL @id", Whom::Computed, Ending::SESSION),
        ("KILL ?", Whom::Computed, Ending::SESSION),
        ("KILL (5) + 1", Whom::Computed, Ending::SESSION),
        ("KILL 5.0", Whom::Computed, Ending::SESSION),
        ("KILL -1", Whom::Computed, Ending::SESSION),
        ("KILL TRUE", Whom::Computed, Ending::SESSION),
        (
            "KILL QUERY (SELECT MAX(id) FROM information_schema.processlist)",
            Whom::Computed,
            Ending::STATEMENT,
        ),
        ("KILL USER app", Whom::Computed, Ending::SESSION),
        ("KILL SOFT QUERY USER app", Whom::Computed, soft(Ends::Statement)),
    ] {
        assert_eq!(mysql(text).effects, [Effect::Kill { whom, ending }], "{text}");
    }
    for text in ["KILL", "KILL QUERY", "KILL nonsense", "KILL QUERY ID 5", "KILL HARD QUERY ID 5"] {
        assert_eq!((mysql(text).access, mysql(text).effects), (Access::Write, vec![]), "{text}");
    }
    let immediate = mysql("EXECUTE IMMEDIATE 'KILL 5'");
    assert!(immediate.effects.iter().any(|effect| matches!(effect, Effect::Kill { .. })), "{immediate:?}");
}

#[test]
fn definitions_of_code_may_change_what_statements_run() {
    for (text, redefines) in [
        ("CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW SET @a = 1", true),
        ("CREATE OR REPLACE DEFINER = root@localhost FUNCTION f() RETURNS INT RETURN 1", true),
        ("CREATE ALGORITHM = MERGE SQL SECURITY INVOKER VIEW v AS SELECT 1", true),
        ("ALTER VIEW v AS SELECT f()", true),
        ("RENAME TABLE t TO u", true),
        ("ALTER TABLE t RENAME TO u", true),
        ("CREATE TABLE t (view INT)", false),
        ("ALTER TABLE t ADD COLUMN a INT", false),
        ("CREATE DATABASE d", false),
        ("DROP TRIGGER tr", false),
    ] {
        assert_eq!(mysql(text).effects.contains(&Effect::Redefines), redefines, "{text}");
    }
}
