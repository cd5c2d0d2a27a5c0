//! Sessions of MySQL clients before real servers: what is carried, what pins, what is told.

use mysql_async::prelude::Queryable;
use pointsman::{
    demo::servers::{APP, Login, MONITOR},
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
        mysql::{self, BASIC, Make, Refused, Session, Stage, WHERE, create_schema},
    },
};

both_makes!(
    reads_use_replicas_and_writes_the_primary,
    reads_with_spatial_functions_use_replicas_by_old_names_and_new,
    writes_are_read_back_at_once_and_reads_return_to_replicas,
    settings_go_where_the_session_goes,
    what_a_session_turned_off_is_on_for_the_next_one,
    what_default_is_to_the_server_it_is_here,
    what_a_variable_was_set_to_is_read_as_it_was_then,
    a_variable_is_set_to_a_quoted_name_as_to_text,
    character_sets_are_those_that_the_server_itself_would_have,
    a_setting_that_fails_keeps_the_statement_from_running,
    a_session_without_schema_never_inherits_one,
    transactions_stay_on_their_server,
    a_savepoint_ahead_of_everything_keeps_its_connection,
    read_only_transactions_use_one_replica,
    what_ends_a_read_only_transaction_runs_on_the_primary,
    an_error_of_the_proxys_own_leaves_the_transaction_open,
    the_isolation_of_a_session_follows_it_by_every_name,
    what_was_said_of_a_transaction_that_never_was_is_over_with_its_end,
    a_value_for_a_parameter_that_is_not_there_fails_nobody_else,
    the_newest_word_on_the_next_transaction_counts,
    a_write_that_was_taken_for_a_read_never_happens_on_a_replica,
    several_statements_and_several_results_pass,
    what_pins_stays_with_its_session,
    what_is_set_for_the_next_statement_stays_with_its_session,
    what_a_function_locks_or_sets_is_there_for_what_comes_next,
    a_variable_has_what_a_read_only_transaction_gave_it,
    a_backup_lock_ends_with_its_session,
    what_a_new_view_locks_ends_with_its_session,
    what_a_view_locks_ends_with_its_session_whether_its_definition_is_shown_or_not,
    a_dump_is_restored,
    a_name_means_the_statement_that_was_prepared_last,
    a_prepared_statement_names_the_tables_of_its_own_sessions_schema,
    a_prepared_statement_is_read_by_its_own_sessions_settings,
    a_prepared_statement_is_judged_by_what_is_known_when_it_is_executed,
    a_commit_goes_on_as_completion_type_says,
    a_release_by_completion_type_ends_the_session,
    what_a_string_did_before_it_failed_reaches_nobody_else,
    a_statement_is_deallocated_wherever_also_when_its_table_is_gone,
    a_change_of_privileges_reaches_the_connections_that_pools_have,
    a_table_has_the_character_set_that_its_schema_has_now,
    what_a_session_left_does_not_change_the_schemas_character_set,
    a_definition_is_shown_as_it_is,
    a_slow_statement_is_logged_with_the_schema_it_ran_in,
    a_prepared_question_is_about_the_statement_before,
    text_of_ascii_is_read_in_every_clients_character_set,
    the_last_insert_id_is_the_sessions_own,
    a_session_that_keeps_its_connection_for_its_ids_is_counted_once,
    the_last_insert_id_is_told_beside_what_the_statement_before_left,
    no_last_insert_id_is_told_beside_what_a_read_left,
    an_id_that_was_given_is_the_sessions_own,
    what_draws_no_id_leaves_nobody_elses,
    a_schema_whose_name_only_its_session_reads_is_nobody_elses,
    a_schema_is_the_same_whatever_character_set_the_session_has_since,
    a_reset_gives_up_the_connection_that_an_insert_had_kept,
    a_reset_leaves_the_character_set_that_the_server_leaves,
    a_reset_ends_the_modes_by_which_text_is_read,
    a_reset_releases_the_locks_of_its_session,
    what_later_transactions_are_may_be_said_within_one,
    what_was_said_of_the_next_transaction_outlives_a_preparation,
    what_was_said_of_the_next_transaction_is_used_by_its_session_alone,
    a_variable_of_the_next_transaction_is_answered_as_by_the_server,
    warnings_are_of_the_sessions_own_statements,
    commands_that_are_no_statements_tell_of_no_other_sessions_warnings,
    found_rows_are_never_another_sessions,
    a_string_answers_what_it_asks_of_itself,
    an_insert_under_locked_tables_leaves_its_id,
    a_user_whose_reads_all_stand_in_transactions_is_told_of_the_drivers_switch,
    kill_ends_what_another_session_runs_and_the_session,
    a_lock_is_told_to_be_the_sessions_own,
    commands_of_every_kind_are_answered,
    a_statement_that_is_not_there_is_named_as_by_the_server,
    a_file_of_the_clients_is_loaded_and_long_statements_pass,
    the_proxys_own_variables_are_answered_by_it,
    the_console_shows_the_database_that_a_client_works_in,
);

async fn the_console_shows_the_database_that_a_client_works_in(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let mut session = stage.session().await;
    let shown = || {
        let clients: Vec<serde_json::Value> =
            serde_json::from_str(&stage.proxy.http("/api/v1/clients")).expect("it is JSON");
        clients.iter().map(|client| client["database"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    session.run("SELECT 1").await;
    eventually("the one that it logged in to", async || shown() == [stage.schema.clone()]).await;

    session.run("USE information_schema").await;

    eventually("the one that it went to", async || shown() == ["information_schema"]).await;
    assert_eq!(session.error("USE no_such_database").await, 1049);
    assert_eq!(shown(), ["information_schema"]);
}

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

async fn settings_go_where_the_session_goes(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let mut session = stage.session().await;
    let mut other = stage.session().await;
    session.run("SET SESSION sql_mode = 'ANSI_QUOTES', wait_timeout = 77").await;
    session.run("SET NAMES latin1").await;
    session.run("SET @a = 5").await;
    other.run("SET NAMES utf8mb4").await;

    for _ in 0..10 {
        let row = session
            .run("SELECT @@sql_mode, @@wait_timeout, @@character_set_client, \"x\" FROM (SELECT 1 AS x) y")
            .await;
        let row: Vec<_> = row.results[0][0].iter().map(|value| value.clone().unwrap_or_default()).collect();
        assert_eq!(row, ["ANSI_QUOTES", "77", "latin1", "1"]);
        let row = other.run("SELECT @@wait_timeout, @@character_set_client").await;
        assert_ne!(row.results[0][0][0].as_deref(), Some("77"));
        assert_eq!(row.results[0][0][1].as_deref(), Some("utf8mb4"));
    }
    assert_eq!(session.value("SELECT @a").await, "5");
    assert_eq!(other.run("SELECT @a").await.results[0][0][0], None);
    session.run("SET wait_timeout = DEFAULT").await;
    assert_ne!(session.value("SELECT @@wait_timeout").await, "77");
}

/// Whatever can be turned on and off, `foreign_key_checks` among it: MySQL's DEFAULT leaves that off.
async fn what_a_session_turned_off_is_on_for_the_next_one(make: Make) {
    let stage = Stage::on(make, "", ONE).await;
    let primary = |what: &str| format!("/* pointsman: primary */ SELECT {what}");
    let listed = stage.session().await.run("SHOW GLOBAL VARIABLES").await;
    let mut turned = 0;

    for row in &listed.results[0] {
        let [Some(name), Some(value)] = &row[..] else { continue };
        let other = match &**value {
            "ON" => "OFF",
            "OFF" => "ON",
            _ => continue,
        };
        let mut session = stage.session().await;
        if session.query(&format!("SET SESSION {name} = {other}")).await.is_err()
            || session.query(&primary("1")).await.is_err()
        {
            continue;
        }
        session.send(code::QUIT, b"").await;

        turned += 1;
        let mut next = stage.session().await;
        let (had, has) = (format!("@@GLOBAL.{name}"), format!("@@SESSION.{name}"));
        assert_eq!(next.value(&primary(&has)).await, next.value(&primary(&had)).await, "{name}");
    }

    assert!(turned > 20, "{turned}");
}

async fn what_default_is_to_the_server_it_is_here(make: Make) {
    let stage = Stage::on(make, "", ONE).await;
    let sets = "SET foreign_key_checks = DEFAULT, SESSION unique_checks = DEFAULT";
    let asks = "/* pointsman: primary */ SELECT @@foreign_key_checks + @@unique_checks";
    let mut direct = Session::open(stage.primary_port(), APP, "").await;
    let (mut session, mut next) = (stage.session().await, stage.session().await);

    direct.run(sets).await;
    session.run(sets).await;

    assert_eq!(session.value(asks).await, direct.value(asks).await);
    assert_eq!(next.value(asks).await, "2");
}

/// In double quotes under ANSI_QUOTES, in backticks in every mode.
async fn a_variable_is_set_to_a_quoted_name_as_to_text(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", ONE).await;
    let mut direct = Session::open(stage.primary_port(), APP, "").await;
    let (mut session, mut other) = (stage.session().await, stage.session().await);
    let asked = "SELECT @@character_set_client, @@character_set_results, @@collation_connection, @@lc_time_names, \
                 @@time_zone, @@sql_mode, @@autocommit";
    let primary = format!("/* pointsman: primary */ {asked}");

    for set in [
        r#"SET character_set_results = "utf8mb3""#,
        r#"SET NAMES "latin1" COLLATE "latin1_bin""#,
        r#"SET lc_time_names = "de_DE", SESSION time_zone = `SYSTEM`"#,
        "SET CHARACTER SET `utf8mb4`",
        r#"SET @@session.autocommit = "off", sql_mode = "ANSI""#,
        "SET autocommit = `ON`",
    ] {
        for session in [&mut direct, &mut session] {
            session.run("SET SESSION sql_mode = 'ANSI_QUOTES'").await;
            session.run(set).await;
        }
        // Whoever comes in between leaves the connections as new.
        other.run("SELECT 1").await;
        other.run("/* pointsman: primary */ SELECT 1").await;
        let has = direct.run(asked).await.results;
        assert_eq!(session.run(asked).await.results, has, "{set}");
        assert_eq!(session.run(&primary).await.results, has, "{set}");
    }

    assert_eq!(stage.proxy.metric("pointsman_pins_total", &["setting"]), 0.0);
    // To anything else it is a column.
    assert_eq!(session.error(r#"SET @v = "word""#).await, 1054);
    assert_eq!(
        session.error(r#"SET wait_timeout = "77""#).await,
        direct.error(r#"SET wait_timeout = "77""#).await
    );
}

/// Variables are set again on every connection that the session comes to.
async fn what_a_variable_was_set_to_is_read_as_it_was_then(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", ONE).await;
    let in_another_mode =
        ["SET sql_mode = 'NO_BACKSLASH_ESCAPES'", "SET sql_mode = 'ANSI_QUOTES'", "SET NAMES latin1"];
    let mut others = Vec::new();
    for setting in in_another_mode {
        let mut other = stage.session().await;
        other.run(setting).await;
        others.push(other);
    }
    let set = [
        "SET @role = 'user', @b = 1",
        // What a client that escapes by backslashes makes of a name with a quote in it.
        r"SET @name = 'O\', @role = 0x61646d696e -- '",
        r#"SET @quoted = "it's", @line = 'line\nline', @path = 'c:\\dir'"#,
        "SET @accent = 'é'",
        r#"SET SESSION lc_time_names = "de_DE", time_zone = "+01:00""#,
    ];
    let asked = "SELECT @role, @b, @name, @quoted, HEX(@line), @path, HEX(@accent), CHARSET(@accent), \
                 @@lc_time_names, @@time_zone, @@sql_mode, @@character_set_client FROM DUAL";

    for since in ["SET @c = 1", "SET sql_mode = 'NO_BACKSLASH_ESCAPES'", "SET sql_mode = '', NAMES latin1"] {
        let mut session = stage.session().await;
        let mut direct = Session::open(stage.primary_port(), APP, &stage.schema).await;
        for session in [&mut session, &mut direct] {
            session.run("SET sql_mode = ''").await;
            for statement in set {
                session.run(statement).await;
            }
            session.run(since).await;
        }
        let expected = direct.run(asked).await.results;
        for other in &mut others {
            other.run("SELECT COUNT(*) FROM t FOR UPDATE").await;
            assert_eq!(session.run(asked).await.results, expected, "behind {since}");
        }
    }
}

async fn character_sets_are_those_that_the_server_itself_would_have(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", ONE).await;
    let mut other = stage.session().await;
    other.run("SET NAMES latin1").await;
    let settings: [&[&str]; 7] = [
        &["SET character_set_client = utf8mb4", "SET NAMES latin1"],
        &["SET NAMES latin1", "SET character_set_results = utf8mb4"],
        &["SET NAMES latin1", "SET character_set_results = utf8mb4", "SET character_set_results = DEFAULT"],
        &[
            "SET character_set_results = NULL",
            "SET collation_connection = utf8mb4_bin",
            "SET NAMES 'utf8mb4'",
        ],
        &["SET collation_connection = utf8mb4_bin", "SET character_set_connection = latin1"],
        &["SET character_set_connection = latin1", "SET collation_connection = \"utf8mb4_bin\""],
        &[
            "SET CHARACTER SET latin1",
            "SET NAMES utf8mb4 COLLATE utf8mb4_bin, character_set_results = latin1",
        ],
    ];
    let asked = "SELECT CONCAT_WS(' ', @@character_set_client, @@character_set_results, @@collation_connection) \
                 FROM t RIGHT JOIN (SELECT 1) AS one ON x = 1 LIMIT 1 FOR UPDATE";
    for statements in settings {
        let mut session = stage.session().await;
        let mut direct = Session::open(stage.primary_port(), APP, &stage.schema).await;
        for statement in statements {
            session.run(statement).await;
            direct.run(statement).await;
        }
        let expected = direct.value(asked).await;
        for _ in 0..2 {
            assert_eq!(other.value(asked).await, "latin1 latin1 latin1_swedish_ci", "behind {statements:?}");
            assert_eq!(session.value(asked).await, expected, "{statements:?}");
        }
    }
}

async fn a_setting_that_fails_keeps_the_statement_from_running(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let mut session = stage.session().await;
    assert_eq!(session.error("SET SESSION sql_mode = 'NO_SUCH_MODE'").await, 1231);
    assert_eq!(session.error("SET SESSION no_such_variable = 1").await, 1193);
    assert_eq!(session.value("SELECT 1").await, "1");
    assert_eq!(session.error("USE no_such_schema").await, 1049);
    assert_eq!(session.value("SELECT DATABASE()").await, stage.schema);
}

async fn a_session_without_schema_never_inherits_one(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    for round in 0..5 {
        let mut with = Session::open(stage.proxy.port(), APP, "").await;
        let mut without = Session::open(stage.proxy.port(), APP, "").await;
        with.run(&format!("USE {}", stage.schema)).await;
        for _ in 0..5 {
            assert_eq!(with.value("SELECT DATABASE()").await, stage.schema, "round {round}");
            assert_eq!(without.run("SELECT DATABASE()").await.results[0][0][0], None, "round {round}");
        }
        assert_eq!(without.error("SELECT * FROM t").await, 1046);
    }
}

async fn a_schema_whose_name_only_its_session_reads_is_nobody_elses(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", ONE).await;
    let name = format!("{}_é", stage.schema);
    stage.session().await.run(&format!("CREATE DATABASE `{name}`")).await;
    let latin1 = [stage.schema.as_bytes(), b"_\xe9"].concat();
    let asks = "/* pointsman: primary */ SELECT HEX(CONVERT(DATABASE() USING utf8mb4))";
    let use_statement = [&b"USE `"[..], &latin1, b"`"].concat();
    for (command, argument) in [(code::INIT_DB, &latin1), (code::QUERY, &use_statement)] {
        let mut session = stage.session().await;
        session.run("SET NAMES latin1").await;

        session.command(command, argument).await.expect("it is there");

        assert_eq!(session.value(asks).await, hex::encode_upper(&name), "{command}");
        drop(session);
        assert_eq!(stage.session().await.value(asks).await, hex::encode_upper(&stage.schema), "{command}");
    }
    // What was not understood may have chosen one as well.
    let mut session = stage.session().await;
    session.run(&format!("SET sql_mode = 'ANSI_QUOTES'; SELECT 1 AS \"a\"; USE `{name}`")).await;
    assert_eq!(session.value(asks).await, hex::encode_upper(&name));
    drop(session);
    assert_eq!(stage.session().await.value(asks).await, hex::encode_upper(&stage.schema));
}

async fn a_schema_is_the_same_whatever_character_set_the_session_has_since(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", ONE).await;
    let name = format!("{}_é", stage.schema);
    let latin1 = [stage.schema.as_bytes(), b"_\xe9"].concat();
    stage.session().await.run(&format!("CREATE DATABASE `{name}`")).await;
    stage.cluster.wait_until_caught_up(0).expect("nothing stops it");
    const ASKS: [&str; 2] = [
        "SELECT CONCAT(HEX(CONVERT(DATABASE() USING utf8mb4)), @@character_set_client) FROM (SELECT 1) AS one FOR UPDATE",
        "SELECT CONCAT(HEX(CONVERT(DATABASE() USING utf8mb4)), @@character_set_client)",
    ];
    let by_use = |name: &[u8]| [b"USE `", name, b"`"].concat();
    for port in [stage.primary_port(), stage.proxy.port()] {
        for (before, named, since) in [
            ("utf8mb4", name.as_bytes(), "latin1"),
            ("utf8mb4", name.as_bytes(), "utf8mb4"),
            ("latin1", &latin1, "utf8mb4"),
            ("latin1", &latin1, "latin1"),
        ] {
            for (command, argument) in [(code::INIT_DB, named.to_vec()), (code::QUERY, by_use(named))] {
                let (mut session, mut other) =
                    (Session::open(port, APP, "").await, Session::open(port, APP, &stage.schema).await);
                session.run(&format!("SET NAMES {before}")).await;
                session.command(command, &argument).await.expect("it is there");
                session.run(&format!("SET NAMES {since}")).await;
                other.run("SET NAMES latin1").await;

                for asks in [ASKS, ASKS].concat() {
                    let told = other.value(asks).await;
                    assert_eq!(told, format!("{}latin1", hex::encode_upper(&stage.schema)), "{port}");
                    let told = session.value(asks).await;
                    assert_eq!(told, format!("{}{since}", hex::encode_upper(&name)), "{port}: {before}");
                }
            }
        }
        // latin1_swedish_ci and utf8mb4_general_ci.
        for (named, collation) in [(&latin1[..], 8), (name.as_bytes(), 45)] {
            let mut session = Session::connect_in(port, APP, named, collation).await.expect("it is there");
            let told = session.value("SELECT HEX(CONVERT(DATABASE() USING utf8mb4))").await;
            assert_eq!(told, hex::encode_upper(&name), "{port}: {collation}");
        }
        let other = Session::connect_in(port, APP, name.as_bytes(), 8).await.err().expect("there is none");
        assert_eq!(other.errno, 1049, "{port}");
    }
}

async fn a_savepoint_ahead_of_everything_keeps_its_connection(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let (mut one, mut other) = (stage.session().await, stage.session().await);
    for session in [&mut one, &mut other] {
        session.run("SET autocommit = 0").await;
    }

    one.run("SAVEPOINT a").await;
    // Of no table: the server still tells of no transaction.
    one.run("SELECT 1").await;
    other.run("INSERT INTO t VALUES (1)").await;
    one.run("INSERT INTO t VALUES (2)").await;
    one.run("ROLLBACK TO SAVEPOINT a").await;
    one.run("INSERT INTO t VALUES (3)").await;
    one.run("COMMIT").await;
    other.run("COMMIT").await;

    assert_eq!(one.value("SELECT GROUP_CONCAT(x ORDER BY x) FROM t").await, "1,3");
    one.run("COMMIT").await;
}

async fn transactions_stay_on_their_server(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", &[]).await;
    let mut session = stage.session().await;
    let primary = stage.primary_port().to_string();

    session.run("BEGIN").await;
    assert_eq!(session.value(WHERE).await, primary);
    session.run("INSERT INTO t VALUES (1)").await;
    session.run("ROLLBACK").await;
    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "0");

    session.run("SET autocommit = 0").await;
    session.run("INSERT INTO t VALUES (2)").await;
    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "1");
    assert_eq!(session.value(WHERE).await, primary);
    session.run("ROLLBACK").await;
    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "0");
    session.run("INSERT INTO t VALUES (3)").await;
    session.run("SET autocommit = 1").await;
    let mut other = stage.session().await;
    assert_eq!(other.value("/* pointsman: primary */ SELECT COUNT(*) FROM t").await, "1");
}

async fn read_only_transactions_use_one_replica(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", &[]).await;
    let mut session = stage.session().await;
    for begin in
        ["START TRANSACTION READ ONLY", "SET TRANSACTION READ ONLY; ", "SET SESSION TRANSACTION READ ONLY"]
    {
        if begin.starts_with("SET") {
            session.run(begin.trim_end_matches("; ")).await;
            session.run("BEGIN").await;
        } else {
            session.run(begin).await;
        }
        let port = session.port().await;
        assert!(stage.is_replica(port), "{begin}");
        for _ in 0..5 {
            assert_eq!(session.port().await, port, "{begin}");
        }
        // read_only is checked before the transaction's mode.
        assert!([1290, 1792].contains(&session.error("INSERT INTO t VALUES (1)").await), "{begin}");
        session.run("ROLLBACK").await;
    }
    session.run("SET SESSION TRANSACTION READ WRITE").await;
    session.run("INSERT INTO t VALUES (1)").await;
}

async fn an_error_of_the_proxys_own_leaves_the_transaction_open(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", &[]).await;
    let mut session = stage.session().await;
    session.run("BEGIN").await;

    assert_eq!(session.error("KILL 4294967295").await, 1094);

    session.run("INSERT INTO t VALUES (1)").await;
    session.run("ROLLBACK").await;
    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "0");
}

async fn what_ends_a_read_only_transaction_runs_on_the_primary(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", &[]).await;
    for statement in [
        "CREATE TABLE made (x INT)",
        "ALTER TABLE made ADD y INT",
        "DROP TABLE made",
        "LOCK TABLES t WRITE",
        "FLUSH TABLES",
        "ANALYZE TABLE t",
        "START TRANSACTION READ WRITE",
        "COMMIT; START TRANSACTION READ WRITE",
    ] {
        let mut session = stage.session().await;
        session.run("START TRANSACTION READ ONLY").await;
        assert!(stage.is_replica(session.port().await), "{statement}");
        session.run("SELECT x FROM t").await;

        session.run(statement).await;

        session.run("INSERT INTO t VALUES (1)").await;
        session.run("COMMIT").await;
        session.run("UNLOCK TABLES").await;
        // A transaction that has read the table would hold up its change on the replica.
        let change = format!("ALTER TABLE t COMMENT = '{}'", statement.len());
        stage.cluster.node(0).sql(&stage.schema, &change).expect("it is legal");
        stage.cluster.wait_until_caught_up(0).expect("nothing is open on the replica");
    }
    let count = stage.cluster.node(0).sql(&stage.schema, "SELECT COUNT(*) FROM t").expect("it answers");
    assert_eq!(count, "8");

    // What begins without a word goes on as the server has it.
    let mut session = stage.session().await;
    session.run("START TRANSACTION READ ONLY").await;
    session.run("SELECT x FROM t").await;
    session.run("BEGIN").await;
    if make == Make::MariaDb {
        session.run("INSERT INTO t VALUES (1)").await;
    } else {
        assert!([1290, 1792].contains(&session.error("INSERT INTO t VALUES (1)").await));
    }
    session.run("COMMIT").await;
}

async fn the_isolation_of_a_session_follows_it_by_every_name(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    // MySQL has given up the old name, MariaDB has the new one from 11.1 on.
    let name = if make == Make::MariaDb { "tx_isolation" } else { "transaction_isolation" };
    for (value, level) in [
        ("'READ-COMMITTED'", "READ-COMMITTED"),
        ("\"READ-UNCOMMITTED\"", "READ-UNCOMMITTED"),
        ("1", "READ-COMMITTED"),
        ("SERIALIZABLE", "SERIALIZABLE"),
    ] {
        let mut session = stage.session().await;
        session.run(&format!("SET {name} = {value}")).await;

        let mut replicas = std::collections::HashSet::new();
        for _ in 0..40 {
            let row = session.value(&format!("SELECT CONCAT(@@port, ' ', @@{name})")).await;
            let (port, there) = row.split_once(' ').expect("two words");
            assert_eq!(there, level, "{value}");
            replicas.extend(port.parse::<u16>().ok().filter(|port| stage.is_replica(*port)));
        }

        // None can run serializable transactions.
        assert_eq!(replicas.len(), if level == "SERIALIZABLE" { 0 } else { 2 }, "{value}");
    }
}

async fn what_was_said_of_a_transaction_that_never_was_is_over_with_its_end(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let mut session = stage.session().await;
    for end in ["COMMIT", "ROLLBACK"] {
        session.run("SET TRANSACTION READ ONLY").await;
        session.run(end).await;

        session.run("BEGIN").await;
        session.run("INSERT INTO t VALUES (1)").await;
        session.run("COMMIT").await;
    }
    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "2");
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

async fn the_newest_word_on_the_next_transaction_counts(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", &[]).await;
    let (mut session, mut other) = (stage.session().await, stage.session().await);

    session.run("SET TRANSACTION ISOLATION LEVEL READ COMMITTED").await;
    session.run("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await;
    session.run("BEGIN").await;
    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "0");
    other.run("INSERT INTO t VALUES (1)").await;
    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "0");
    session.run("COMMIT").await;

    // What the setting does not speak of stays said.
    session.run("SET TRANSACTION READ ONLY, ISOLATION LEVEL READ COMMITTED").await;
    session.run("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await;
    session.run("BEGIN").await;
    assert!([1290, 1792].contains(&session.error("INSERT INTO t VALUES (2)").await));
    session.run("ROLLBACK").await;
    session.run("INSERT INTO t VALUES (3)").await;
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

/// What is answered without a server, or by a replica, began no transaction: rows were committed that were
/// rolled back.
async fn a_commit_goes_on_as_completion_type_says(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", ONE).await;
    let mut direct = Session::open(stage.primary_port(), APP, &stage.schema).await;
    let mut session = stage.session().await;
    const ROWS: &str = "SELECT COUNT(*) FROM t";
    let cases: [&[&str]; 7] = [
        &["SET completion_type = 1", "COMMIT", "INSERT INTO t VALUES (1)", "ROLLBACK", ROWS],
        &["SET completion_type = CHAIN", "BEGIN", "COMMIT", "INSERT INTO t VALUES (1)", "ROLLBACK", ROWS],
        &["BEGIN", "INSERT INTO t VALUES (1)", "COMMIT", "INSERT INTO t VALUES (2)", "ROLLBACK", ROWS],
        &["COMMIT AND NO CHAIN", "INSERT INTO t VALUES (3)", "ROLLBACK", ROWS],
        &["START TRANSACTION READ ONLY", ROWS, "COMMIT", ROWS, "ROLLBACK AND NO CHAIN"],
        &["PREPARE c FROM 'COMMIT'", "EXECUTE c", "INSERT INTO t VALUES (1)", "ROLLBACK", ROWS],
        &["SET completion_type = DEFAULT", "COMMIT", "INSERT INTO t VALUES (4)", "ROLLBACK", ROWS],
    ];
    let open = packet::status::IN_TRANSACTION | packet::status::IN_READ_ONLY_TRANSACTION;
    for case in cases {
        let mut told = Vec::new();
        for session in [&mut direct, &mut session] {
            session.run("TRUNCATE t").await;
            let mut answers = Vec::new();
            for sql in case {
                let answer = session.run(sql).await;
                answers.push((*sql, answer.value(), answer.status & open));
            }
            session.run("ROLLBACK AND NO CHAIN").await;
            told.push(answers);
        }
        assert_eq!(told[1], told[0]);
    }

    session.run("SET completion_type = CHAIN").await;
    session.run("COMMIT").await;
    session.run("INSERT INTO t VALUES (5)").await;
    drop(session);
    let mut next = stage.session().await;
    assert_eq!(next.value("SELECT COUNT(*) FROM t WHERE x = 5 /* pointsman: primary */").await, "0");
    next.run("INSERT INTO t VALUES (6)").await;
    drop(next);
    assert_eq!(direct.value("SELECT COUNT(*) FROM t WHERE x = 6").await, "1");
}

async fn a_release_by_completion_type_ends_the_session(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", ONE).await;
    for steps in [
        &["SET completion_type = 2", "BEGIN", "COMMIT"][..],
        &["SET completion_type = 'RELEASE'", "COMMIT NO RELEASE", "ROLLBACK"],
        &["SET completion_type = 'release'", "BEGIN", "INSERT INTO t VALUES (1)", "COMMIT"],
    ] {
        let mut session = stage.session().await;
        for sql in steps {
            session.run(sql).await;
        }
        assert_eq!(session.error("SELECT 1").await, 2013, "{steps:?}");
    }

    let mut next = stage.session().await;
    assert_eq!(next.value("SELECT COUNT(*) FROM t /* pointsman: primary */").await, "1");
    assert_eq!(next.value("SELECT @@completion_type /* pointsman: primary */").await, "NO_CHAIN");
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

/// One connection to each server, for all sessions.
const ONE: &[&str] = &["cluster.pool.size = 1"];

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

/// A client that prepares every statement before it executes it.
async fn each_time_anew(stage: &Stage) -> mysql_async::Conn {
    client(stage, 0).await
}

/// A client that keeps prepared statements.
async fn client(stage: &Stage, kept: usize) -> mysql_async::Conn {
    let options = mysql_async::OptsBuilder::default()
        .ip_or_hostname("127.0.0.1")
        .tcp_port(stage.proxy.port())
        .user(Some(APP.name))
        .pass(Some(APP.password))
        .db_name(Some(stage.schema.clone()))
        .prefer_socket(false)
        .stmt_cache_size(kept);
    mysql_async::Conn::new(options).await.expect("a login")
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

/// A server looks at global privileges, and those on the schema in use, when a connection is opened or
/// says USE.
async fn a_change_of_privileges_reaches_the_connections_that_pools_have(make: Make) {
    const CLERK: Login = Login { name: "clerk", password: "clerk-pw" };
    const CHIEF: Login = Login { name: "chief", password: "chief-pw" };
    let cluster = make.own();
    let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT); INSERT INTO t VALUES (7)");
    let create = |login: &Login| format!("CREATE USER {}@'%' IDENTIFIED BY '{}'", login.name, login.password);
    for sql in [&create(&CLERK), &create(&CHIEF), "GRANT ALL ON *.* TO chief@'%' WITH GRANT OPTION"] {
        cluster.node(0).sql("", sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    cluster.wait_until_caught_up(0).expect("replicas follow");
    let user = |login: Login| format!("{{ name = '{}', password = '{}' }}", login.name, login.password);
    let users = format!("cluster.users = [{}, {}, {}]", user(APP), user(CLERK), user(CHIEF));
    let proxy = mysql::proxy(&cluster, &[&users]).await;
    let mut chief = Session::open(proxy.port(), CHIEF, "").await;
    let questions = [format!("SELECT x FROM {schema}.t"), format!("UPDATE {schema}.t SET x = 7")];
    let refused = |answer: Result<_, Refused>| answer.err().map(|refused| refused.errno);

    for (change, expected) in [
        ("FLUSH PRIVILEGES", Some(1142)),
        ("GRANT SELECT, UPDATE ON *.* TO clerk@'%'", None),
        ("REVOKE SELECT, UPDATE ON *.* FROM clerk@'%'", Some(1142)),
    ] {
        chief.run(change).await;
        let position = chief.value("SELECT @pointsman_position").await;
        // A session may have kept a connection for what its last write left there.
        let mut clerk = Session::open(proxy.port(), CLERK, "").await;
        clerk.run(&format!("SET @pointsman_position = '{position}'")).await;
        for _ in 0..20 {
            for question in &questions {
                assert_eq!(refused(clerk.query(question).await), expected, "{change}: {question}");
            }
        }
    }
}

/// MariaDB creates tables by the character set that the schema had when its connection chose it.
async fn a_table_has_the_character_set_that_its_schema_has_now(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    let schema = &stage.schema;
    let mut admin = Session::open(stage.proxy.port(), APP, "").await;
    let changes = [
        format!("ALTER DATABASE {schema} CHARACTER SET ascii"),
        format!("DROP DATABASE {schema}; CREATE DATABASE {schema} CHARACTER SET latin1"),
    ];

    for (change, expected) in changes.iter().zip(["ascii", "latin1"]) {
        // Both connections have chosen the schema before it is changed.
        open_at_once(&stage, 2).await;
        admin.run(change).await;

        let mut sessions = open_at_once(&stage, 2).await;
        for (number, session) in sessions.iter_mut().enumerate() {
            assert_eq!(session.value("SELECT @@character_set_database").await, expected, "{change}");
            session.run(&format!("CREATE TABLE t{number} (x CHAR(1))")).await;
            let set = format!(
                "SELECT character_set_name FROM information_schema.columns
                 WHERE table_schema = '{schema}' AND table_name = 't{number}'"
            );
            assert_eq!(session.value(&set).await, expected, "{change}");
        }
    }
}

/// LOAD DATA and SET CHARACTER SET go by it.
async fn what_a_session_left_does_not_change_the_schemas_character_set(make: Make) {
    let stage = Stage::on(make, "", &["cluster.pool.size = 1"]).await;
    stage.session().await.run(&format!("ALTER DATABASE {} CHARACTER SET latin1", stage.schema)).await;
    let shown = "SELECT @@character_set_database FOR UPDATE";
    let lock = format!("SELECT GET_LOCK('{}', 1)", stage.schema);

    for (left, own) in [(&*lock, "latin1"), ("SET character_set_database = ascii", "ascii")] {
        let mut session = stage.session().await;
        session.run(left).await;
        assert_eq!(session.value(shown).await, own, "{left}");
        drop(session);

        let mut next = stage.session().await;
        assert_eq!(next.value(shown).await, "latin1", "{left}");
    }
}

/// Sessions that have had connections of their own to the primary, all at one moment.
async fn open_at_once(stage: &Stage, count: usize) -> Vec<Session> {
    let mut sessions = Vec::new();
    for _ in 0..count {
        let mut session = stage.session().await;
        session.run("BEGIN").await;
        session.run("SELECT 1 FOR UPDATE").await;
        sessions.push(session);
    }
    for session in &mut sessions {
        session.run("COMMIT").await;
    }
    sessions
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

async fn what_pins_stays_with_its_session(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &["cluster.pool.size = 3"]).await;
    let mut session = stage.session().await;
    let mut other = stage.session().await;

    session.run("CREATE TEMPORARY TABLE temp (x INT)").await;
    session.run("INSERT INTO temp VALUES (4)").await;
    session.run("SET @v := (SELECT 40 + 2)").await;
    session.run("SELECT GET_LOCK('pointsman', 1)").await;

    for _ in 0..3 {
        assert_eq!(session.value("SELECT x FROM temp").await, "4");
        assert_eq!(session.value("SELECT @v").await, "42");
        assert_eq!(other.error("SELECT x FROM temp").await, 1146);
        assert_eq!(other.run("SELECT @v").await.results[0][0][0], None);
        assert_eq!(other.value("SELECT GET_LOCK('pointsman', 0)").await, "0");
    }
    drop(session);
    let other = tokio::sync::Mutex::new(other);
    eventually("the lock ends with its session", async || {
        other.lock().await.value("SELECT GET_LOCK('pointsman', 0)").await == "1"
    })
    .await;
}

async fn what_is_set_for_the_next_statement_stays_with_its_session(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT)", ONE).await;
    let insert = "INSERT INTO t (x) VALUES (1)";
    let settings = [
        "rand_seed1 = 5",
        "SESSION rand_seed2 = 6",
        "last_insert_id = 700",
        "@@identity = 800",
        "insert_id = 900",
    ];
    for (id, setting) in (1..).zip(settings) {
        let mut session = stage.session().await;
        session.run(&format!("SET {setting}")).await;
        session.run("SELECT COUNT(*) FROM t FOR UPDATE").await;
        drop(session);
        let mut other = stage.session().await;
        assert_eq!(other.run(insert).await.insert_id, id, "behind {setting}");
        assert_eq!(other.value("SELECT LAST_INSERT_ID()").await, id.to_string(), "behind {setting}");
    }

    let mut session = stage.session().await;
    session.run("SET insert_id = 100").await;
    assert_eq!(session.run(insert).await.insert_id, 100);
    assert_eq!(session.run(insert).await.insert_id, 101);
    session.run("SET last_insert_id = 7").await;
    assert_eq!(session.value("SELECT LAST_INSERT_ID()").await, "7");
    let mut direct = Session::open(stage.primary_port(), APP, &stage.schema).await;
    for seed in ["SET rand_seed1 = 5, rand_seed2 = 7", "SELECT RAND()", "SELECT RAND()"] {
        assert_eq!(session.value(seed).await, direct.value(seed).await);
    }
}

/// The catalog tells of a definition only a moment after it was made.
async fn what_a_new_view_locks_ends_with_its_session(make: Make) {
    let view = "CREATE VIEW v AS SELECT 1 AS locked";
    let stage = Stage::on(make, view, &["cluster.monitor.catalog_refresh = '1h'"]).await;
    let mut migration = stage.session().await;
    let mut user = stage.session().await;
    let name = format!("{}.lock", stage.schema);
    let look = "/* pointsman: primary */ SELECT locked FROM v";
    user.run(look).await;

    migration.run(&format!("CREATE OR REPLACE VIEW v AS SELECT GET_LOCK('{name}', 0) AS locked")).await;
    assert_eq!(user.value(look).await, "1");
    drop(user);

    let other = tokio::sync::Mutex::new(stage.session().await);
    let free = format!("/* pointsman: primary */ SELECT IS_FREE_LOCK('{name}')");
    eventually("the lock is released", async || other.lock().await.value(&free).await == "1").await;
}

/// Servers show a view's definition only to those who may read from it.
async fn what_a_view_locks_ends_with_its_session_whether_its_definition_is_shown_or_not(make: Make) {
    let code = "CREATE FUNCTION takes(name VARCHAR(64)) RETURNS INT NO SQL RETURN GET_LOCK(name, 0);
        CREATE VIEW shown AS SELECT GET_LOCK(CONCAT(DATABASE(), 'shown'), 0) AS locked;
        CREATE VIEW hidden AS SELECT takes(CONCAT(DATABASE(), 'hidden')) AS locked;
        CREATE VIEW inner_one AS SELECT GET_LOCK(CONCAT(DATABASE(), 'outer_one'), 0) AS locked;
        CREATE VIEW outer_one AS SELECT locked FROM inner_one";
    let schema = mysql::create_schema(make.shared(), code);
    for view in ["shown", "inner_one", "outer_one"] {
        let grant = format!("GRANT SELECT ON {schema}.{view} TO {}@'%'", MONITOR.name);
        make.shared().node(0).sql("", &grant).expect("it is granted");
    }
    make.shared().wait_until_caught_up(0).expect("replicas follow");
    let proxy = mysql::proxy(make.shared(), ONE).await;

    for view in ["shown", "hidden", "outer_one"] {
        let mut user = Session::open(proxy.port(), APP, &schema).await;
        assert_eq!(user.value(&format!("/* pointsman: primary */ SELECT locked FROM {view}")).await, "1");
        drop(user);

        let other = tokio::sync::Mutex::new(Session::open(proxy.port(), APP, &schema).await);
        let free = format!("/* pointsman: primary */ SELECT IS_FREE_LOCK('{schema}{view}')");
        eventually("the lock is released", async || other.lock().await.value(&free).await == "1").await;
    }
}

/// It reads, as far as anybody's tables go; a replica's locks and variables would be of no use to anybody.
async fn what_a_function_locks_or_sets_is_there_for_what_comes_next(make: Make) {
    let code = "CREATE FUNCTION takes(name VARCHAR(64)) RETURNS INT NO SQL RETURN GET_LOCK(name, 0);
        CREATE FUNCTION keeps(it INT) RETURNS INT DETERMINISTIC RETURN (@kept := it);
        CREATE FUNCTION kept() RETURNS INT NO SQL RETURN @kept;
        CREATE VIEW keeping AS SELECT keeps(8) AS x;
        CREATE TABLE t (x INT);
        INSERT INTO t VALUES (9)";
    let schema = mysql::create_schema(make.shared(), code);
    let grant = format!("GRANT SELECT ON {schema}.keeping TO {}@'%'", MONITOR.name);
    make.shared().node(0).sql("", &grant).expect("it is granted");
    make.shared().wait_until_caught_up(0).expect("replicas follow");
    let proxy = mysql::proxy(make.shared(), &[]).await;
    let mut one = Session::open(proxy.port(), APP, &schema).await;
    let mut other = Session::open(proxy.port(), APP, &schema).await;

    for round in 0..6 {
        one.run(&format!("SELECT keeps({round})")).await;
        assert_eq!(one.value("SELECT @kept").await, round.to_string());
        one.run("SELECT x FROM keeping").await;
        assert_eq!(one.value("SELECT @kept").await, "8");
        one.run("SELECT x FROM t INTO @kept").await;
        assert_eq!(one.value("SELECT kept()").await, "9");
        let lock = format!("SELECT takes('{schema}{round}')");
        assert_eq!((one.value(&lock).await, other.value(&lock).await), ("1".into(), "0".into()));
    }
}

/// A replica runs the transaction; the primary is asked for the variable behind it.
async fn a_variable_has_what_a_read_only_transaction_gave_it(make: Make) {
    let code = "CREATE TABLE t (x INT); INSERT INTO t VALUES (9);
        CREATE PROCEDURE finds(OUT found INT) READS SQL DATA SELECT x + 1 INTO found FROM t";
    let stage = Stage::on(make, code, &[]).await;
    let read_only: &[&str] = &["SET SESSION TRANSACTION READ ONLY", "SET autocommit = 0"];
    for (before, after) in [
        (&["START TRANSACTION READ ONLY"][..], &["COMMIT"][..]),
        (&["START TRANSACTION READ ONLY", "SELECT x FROM t"], &["ROLLBACK"]),
        (read_only, &[]),
        (read_only, &["COMMIT"]),
        (&["SET TRANSACTION READ ONLY"], &[]),
        (
            &["START TRANSACTION READ ONLY"],
            &["START TRANSACTION READ WRITE", "INSERT INTO t VALUES (@v)", "ROLLBACK"],
        ),
        (&["START TRANSACTION READ ONLY"], &["CREATE TABLE IF NOT EXISTS u (x INT)"]),
    ] {
        for (assigns, value) in [
            ("SELECT 3 INTO @v", "3"),
            ("SELECT x FROM t INTO @v", "9"),
            ("SELECT @v := CONCAT('0', x) FROM t", "09"),
            ("SET @v = (SELECT x + 0.5 FROM t)", "9.5"),
            ("CALL finds(@v)", "10"),
        ] {
            let mut session = stage.session().await;
            for statement in before.iter().chain(&[assigns]).chain(after) {
                session.run(statement).await;
            }
            assert_eq!(session.value("SELECT @v").await, value, "{before:?} {assigns} {after:?}");
        }
    }
}

async fn a_backup_lock_ends_with_its_session(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let mut session = stage.session().await;
    let mut other = stage.session().await;
    session.run(if make == Make::MariaDb { "BACKUP LOCK t" } else { "LOCK INSTANCE FOR BACKUP" }).await;
    other.run("SET SESSION lock_wait_timeout = 1").await;
    assert_eq!(other.error("ALTER TABLE t ADD COLUMN y INT").await, 1205);
    assert!(stage.is_replica(session.port().await), "reads need no lock");

    drop(session);

    let other = tokio::sync::Mutex::new(other);
    eventually("the lock ends", async || {
        other.lock().await.query("ALTER TABLE t ADD COLUMN y INT").await.is_ok()
    })
    .await;
    let mut session = other.into_inner();
    let (lock, unlock) = match make {
        Make::MariaDb => ("BACKUP STAGE START", "BACKUP STAGE END"),
        Make::Mysql9 => ("LOCK INSTANCE FOR BACKUP", "UNLOCK INSTANCE"),
    };
    session.run(lock).await;
    session.run(unlock).await;
    stage.session().await.run("ALTER TABLE t ADD COLUMN z INT").await;
}

/// Half of a character may look like a quote or a backslash in these, but not before its first half.
async fn text_of_ascii_is_read_in_every_clients_character_set(make: Make) {
    const BIG5: u8 = 1;
    const SJIS: u8 = 13;
    const GBK: u8 = 28;
    const CP932: u8 = 95;
    const WRITE: &str = "REPLACE INTO t VALUES (1)";
    let stage = Stage::on(make, "CREATE TABLE t (x INT PRIMARY KEY)", &[]).await;
    let pins = || stage.proxy.metric("pointsman_pins_total", &["reason=\"function\""]);
    eventually("the catalog says that the table has no triggers", async || {
        let before = pins();
        let mut session = stage.session().await;
        session.run(WRITE).await;
        // What comes behind it is answered when it has been counted.
        session.run("SELECT 1").await;
        pins() == before
    })
    .await;
    let before = pins();
    for collation in [BIG5, SJIS, GBK, CP932] {
        let login = Session::connect_in(stage.proxy.port(), APP, stage.schema.as_bytes(), collation).await;
        let mut session = login.unwrap_or_else(|error| panic!("{collation}: {error:?}"));

        for _ in 0..5 {
            assert!(stage.is_replica(session.port().await), "{collation}");
        }
        assert_eq!(session.value("SELECT CONNECTION_ID()").await, session.number.to_string(), "{collation}");
        session.run("SET @pointsman_consistency = 'global'").await;
        assert_eq!(session.value("SELECT @pointsman_consistency").await, "global", "{collation}");
        session.run(WRITE).await;
        assert_eq!(session.value("SELECT x FROM t").await, "1", "{collation}");
        assert_eq!(pins(), before, "{collation}");
    }

    let login = Session::connect_in(stage.proxy.port(), APP, stage.schema.as_bytes(), GBK).await;
    let mut session = login.expect("a login");
    // To who knows no GBK, a backslash ahead of the quote.
    let answer =
        session.command(code::QUERY, b"SELECT '\x95\x5c', @@port").await.expect("it is one character");
    let port = answer.results[0][0][1].clone().expect("a port");
    assert_eq!(port, stage.primary_port().to_string());
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

async fn a_lock_is_told_to_be_the_sessions_own(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    let (mut session, mut other) = (stage.session().await, stage.session().await);
    let lock = format!("{}-{:?}", stage.schema, make);
    let asked = format!("SELECT IS_USED_LOCK('{lock}') = CONNECTION_ID()");
    assert_eq!(session.run(&asked).await.results[0][0][0], None);

    session.run(&format!("SELECT GET_LOCK('{lock}', 1)")).await;

    assert_eq!(session.value(&asked).await, "1");
    assert_eq!(other.value(&asked).await, "0");
    other.run("BEGIN").await;
    assert_eq!(other.value(&asked).await, "0");
    session.run(&format!("DO RELEASE_LOCK('{lock}')")).await;
    assert_eq!(session.run(&asked).await.results[0][0][0], None);
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

/// Pools of the clients' reset what they hand out: who writes through one reads on replicas all the same.
async fn a_reset_leaves_the_character_set_that_the_server_leaves(make: Make) {
    const LATIN1: u8 = 8;
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let mut left = Vec::new();
    for port in [stage.primary_port(), stage.proxy.port()] {
        let mut session =
            Session::connect_in(port, APP, stage.schema.as_bytes(), LATIN1).await.expect("a login");
        session.run("SET NAMES utf8mb4, SESSION wait_timeout = 1000").await;
        session.command(code::RESET_CONNECTION, b"").await.expect("it resets");
        let asked =
            "SELECT CONCAT_WS(' ', @@character_set_client, @@collation_connection, @@character_set_results)";
        left.push(session.value(asked).await);
        session.run("INSERT INTO t VALUES (1)").await;
        left.push(session.value(asked).await);
    }
    assert_eq!(left[..2], left[2..]);
}

async fn a_reset_ends_the_modes_by_which_text_is_read(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    let mut session = stage.session().await;
    session.run("SET SESSION sql_mode = 'ANSI_QUOTES'").await;
    session.command(code::RESET_CONNECTION, b"").await.expect("it resets");

    // By the former mode the name would end behind the backslash, and nothing make sense.
    let port = session.value(r#"SELECT REPLACE(CONCAT(@@port, "\""), '"', '')"#).await;
    assert!(stage.is_replica(port.parse().expect("a port")), "{port}");
}

async fn a_reset_gives_up_the_connection_that_an_insert_had_kept(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT)", &[]).await;
    let mut session = stage.session().await;
    session.run("INSERT INTO t (x) VALUES (7)").await;
    session.command(0x1F, b"").await.expect("COM_RESET_CONNECTION");
    assert_eq!(session.value("SELECT LAST_INSERT_ID()").await, "0");

    let session = tokio::sync::Mutex::new(session);
    eventually("a read-only transaction runs on a replica", async || {
        let mut session = session.lock().await;
        session.run("START TRANSACTION READ ONLY").await;
        let port = session.port().await;
        session.run("COMMIT").await;
        stage.is_replica(port)
    })
    .await;
}

async fn a_reset_releases_the_locks_of_its_session(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let (mut session, mut other) = (stage.session().await, stage.session().await);
    assert_eq!(session.value(&format!("SELECT GET_LOCK('{}', 1)", stage.schema)).await, "1");

    session.command(code::RESET_CONNECTION, b"").await.expect("it resets");

    assert_eq!(other.value(&format!("SELECT GET_LOCK('{}', 0)", stage.schema)).await, "1");
}

/// On a replica, whose connections are read-only whatever the session says.
async fn what_later_transactions_are_may_be_said_within_one(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    for kind in ["READ WRITE", "READ ONLY"] {
        let mut session = stage.session().await;
        session.run("START TRANSACTION READ ONLY").await;
        assert!(stage.is_replica(session.port().await));
        session.run(&format!("SET SESSION TRANSACTION {kind}")).await;
        assert!(stage.is_replica(session.port().await));
        session.run("COMMIT").await;

        assert!(stage.is_replica(session.port().await));
        session.run("SET SESSION TRANSACTION READ WRITE").await;
        session.run("INSERT INTO t VALUES (1)").await;
    }
}

async fn what_was_said_of_the_next_transaction_outlives_a_preparation(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", &["cluster.pool.size = 2"]).await;
    let (mut session, mut other) = (stage.session().await, stage.session().await);
    for text in ["SELECT COUNT(*) FROM t FOR UPDATE", "SELECT COUNT(*) FROM t"] {
        session.run("SET TRANSACTION READ ONLY").await;
        session.exchange(code::STMT_PREPARE, text.as_bytes()).await.expect("it is prepared");

        for _ in 0..3 {
            other.run("INSERT INTO t VALUES (1)").await;
        }
        assert!([1290, 1792].contains(&session.error("INSERT INTO t VALUES (2)").await), "{text}");
        // A statement that was refused has begun none.
        session.run("SELECT COUNT(*) FROM t").await;
        session.run("INSERT INTO t VALUES (3)").await;
        for _ in 0..3 {
            other.run("INSERT INTO t VALUES (1)").await;
        }
    }

    session.run("SET TRANSACTION READ ONLY").await;
    session.command(code::RESET_CONNECTION, b"").await.expect("it resets");
    session.run("INSERT INTO t VALUES (4)").await;
}

/// MariaDB has `transaction_read_only` from 11.1 on, MySQL no `tx_read_only` any more.
async fn a_variable_of_the_next_transaction_is_answered_as_by_the_server(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", &[]).await;
    let before: [&[&str]; 6] = [
        &[],
        &["BEGIN"],
        &["BEGIN", "SELECT COUNT(*) FROM t"],
        &["START TRANSACTION READ ONLY", "SELECT COUNT(*) FROM t"],
        &["SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"],
        &["SET autocommit = 0", "SELECT COUNT(*) FROM t"],
    ];
    let sets = [
        "SET @@transaction_read_only = 1",
        "SET @@tx_read_only = 1",
        "SET @@tx_read_only = 0",
        "SET @@transaction_read_only = 0",
        "SET @@transaction_isolation = 'SERIALIZABLE'",
        "SET @@tx_isolation = 'READ-COMMITTED'",
    ];
    let behind = ["INSERT INTO t VALUES (1)", "COMMIT", "INSERT INTO t VALUES (2)", "ROLLBACK"];

    for before in before {
        for set in sets {
            let mut told = Vec::new();
            for port in [stage.primary_port(), stage.proxy.port()] {
                let mut session = Session::open(port, APP, &stage.schema).await;
                let mut codes = Vec::new();
                for text in before.iter().chain([&set]).chain(&behind) {
                    codes.push(session.query(text).await.map(drop).map_err(|error| error.errno));
                }
                told.push(codes);
            }
            assert_eq!(told[1], told[0], "{before:?} {set}");
        }
    }
}

/// A connection whose next transaction was shaped by somebody else refused every write.
async fn what_was_said_of_the_next_transaction_is_used_by_its_session_alone(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT)", ONE).await;
    let variable = if make == Make::MariaDb { "tx_read_only" } else { "transaction_read_only" };
    let of_a_list = format!("SET @a = 1, @@{variable} = 1");
    let cases: [(Option<bool>, &[&str]); 19] = [
        (Some(true), &["SET TRANSACTION READ ONLY; SELECT 1"]),
        (Some(true), &["SELECT COUNT(*) FROM t; SET TRANSACTION READ ONLY"]),
        (Some(true), &["SET TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE; SELECT 1", "DO 1"]),
        (Some(true), &[&of_a_list, "SELECT 1"]),
        (Some(true), &["SET TRANSACTION READ ONLY", "SELECT 1"]),
        (Some(true), &["SET TRANSACTION READ ONLY", "DO 1", "SHOW WARNINGS"]),
        (Some(true), &["SET TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE", "SHOW STATUS LIKE 'none'"]),
        (Some(true), &["SET TRANSACTION READ ONLY", "INSERT INTO t (x) VALUES (1)"]),
        (Some(true), &["SET TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE", "SELECT * FROM missing"]),
        (
            Some(true),
            &["SET TRANSACTION READ ONLY", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; SELECT 1"],
        ),
        (Some(false), &["SET TRANSACTION READ ONLY", "SELECT COUNT(*) FROM t"]),
        (Some(false), &["SET TRANSACTION READ ONLY; SELECT COUNT(*) FROM t"]),
        (Some(false), &["SET TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE; SELECT COUNT(*) FROM t"]),
        (Some(false), &["SET TRANSACTION READ ONLY; COMMIT"]),
        (Some(true), &["SET TRANSACTION READ ONLY; SELECT * FROM missing"]),
        (Some(false), &["SET TRANSACTION READ ONLY; CREATE TABLE t (x INT)"]),
        (Some(false), &["SET TRANSACTION READ ONLY; PREPARE p FROM 'SELECT x FROM t'; EXECUTE p"]),
        // In servers it outlives a transaction that ends so.
        (
            None,
            &[
                "SET TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE",
                "SET autocommit = 0",
                "SELECT COUNT(*) FROM t",
                "SET autocommit = 1",
            ],
        ),
        (Some(false), &["SET TRANSACTION READ ONLY; SELECT 1", "BEGIN", "SELECT 1", "COMMIT"]),
    ];
    for (port, what) in [(stage.primary_port(), "server"), (stage.proxy.port(), "proxy")] {
        for (is_to_come, texts) in cases {
            let mut session = Session::open(port, APP, &stage.schema).await;
            for text in texts {
                // Some are errors.
                let _ = session.query(text).await;
            }

            let mut other = Session::open(port, APP, &stage.schema).await;
            other.run("INSERT INTO t (x) VALUES (2)").await;

            if is_to_come == Some(true) {
                let refused = session.error("INSERT INTO t (x) VALUES (3)").await;
                assert!([1290, 1792].contains(&refused), "{what}: {texts:?}");
                session.run("SELECT COUNT(*) FROM t").await;
            }
            let goes_on = session.query("INSERT INTO t (x) VALUES (4)").await;
            assert!(is_to_come.is_none() || goes_on.is_ok(), "{what}: {texts:?}: {goes_on:?}");
        }
        let mut session = Session::open(port, APP, &stage.schema).await;
        session.run("SET TRANSACTION ISOLATION LEVEL READ COMMITTED").await;
        let id = session.run("INSERT INTO t (x) VALUES (5)").await.insert_id.to_string();
        assert_eq!(session.value("SELECT LAST_INSERT_ID()").await, id, "{what}");
        let told =
            session.exchange(code::STMT_PREPARE, b"SET TRANSACTION READ ONLY").await.expect("an answer");
        let execution = [&told[0][2..6], &[0, 1, 0, 0, 0]].concat();
        let told = session.exchange(code::STMT_EXECUTE, &execution).await.expect("an answer");
        assert_eq!(told[0][1], packet::OK, "{what}");
        Session::open(port, APP, &stage.schema).await.run("INSERT INTO t (x) VALUES (6)").await;
        let refused = session.error("INSERT INTO t (x) VALUES (7)").await;
        assert!([1290, 1792].contains(&refused), "{what}");
    }
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

/// autocommit off is what PyMySQL and mysql-connector begin with (hard case 20).
async fn a_user_whose_reads_all_stand_in_transactions_is_told_of_the_drivers_switch(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let session = tokio::sync::Mutex::new(stage.session().await);
    session.lock().await.run("SET autocommit = 0").await;
    let read = async || {
        let mut session = session.lock().await;
        for _ in 0..250 {
            assert_eq!(session.port().await, stage.primary_port());
            session.run("COMMIT").await;
        }
    };
    let told = || stage.proxy.log().matches("most reads of this user run on the primary").count();
    // The stage was waited for with any number of reads that stood alone.
    eventually("it is said", async || {
        read().await;
        told() > 0
    })
    .await;
    read().await;
    assert_eq!(told(), 1, "it is said once");
    session.lock().await.run("SET autocommit = 1").await;
    eventually("autocommit reads use replicas", async || stage.is_replica(session.lock().await.port().await))
        .await;
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

async fn the_proxys_own_variables_are_answered_by_it(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let mut session = stage.session().await;
    session.run("SET @pointsman_consistency = 'eventual'").await;
    assert_eq!(session.value("SELECT @pointsman_consistency").await, "eventual");
    for text in [
        "SELECT @pointsman_consistency AS level, 1",
        "SELECT @pointsman_route INTO @x",
        "SET @x = @pointsman_position",
        "SELECT x FROM t WHERE x = @pointsman_position",
        "SELECT 1; SELECT @pointsman_route, 1",
    ] {
        assert_eq!(session.error(text).await, 1235, "{text}: to a server it is NULL");
    }
    session.run("PREPARE p FROM 'SELECT @pointsman_route, ?'").await;
    assert_eq!(session.error("EXECUTE p USING @x").await, 1235);
    let told = session.exchange(code::STMT_PREPARE, b"SELECT @pointsman_route, 1").await.expect("an answer");
    let execution = [&told[0][2..6], &[0, 1, 0, 0, 0]].concat();
    let told = session.exchange(code::STMT_EXECUTE, &execution).await.expect("an answer");
    assert_eq!(told[0][1..4], [0xff, 0xd3, 0x04], "it is 1235");
    session.run("SELECT 1").await;
    assert!(session.value("SELECT @pointsman_route").await.contains("choice=replica"));
    session.run("INSERT INTO t VALUES (1)").await;
    let position = session.value("SELECT @pointsman_position").await;
    let both = "SELECT @pointsman_position, @pointsman_consistency AS Level LIMIT 1";
    let answer = session.query(both).await.expect("it is answered");
    assert_eq!(answer.results, [[[Some(position), Some("eventual".to_owned())]]]);

    for (set, get) in [
        ("SET @`pointsman_consistency` := 'user'", "SELECT @pointsman_consistency level"),
        ("SET @'Pointsman_consistency' = 'user'", "SELECT @`pointsman_consistency` FROM DUAL LIMIT 1"),
    ] {
        session.run("SET @pointsman_consistency = DEFAULT").await;
        session.run(set).await;
        assert_eq!(session.value(get).await, "user", "{set} {get}");
    }
    as_it_may_be_written(&stage).await;
    // What only a server could compute is not passed over in silence.
    assert_eq!(session.error("SET @pointsman_consistency = CONCAT('glo', 'bal')").await, 1235);

    let mut client = each_time_anew(&stage).await;
    client.exec_drop("SET @pointsman_consistency = ?", ("global",)).await.expect("it is bound");
    let level: Vec<String> = client.query("SELECT @pointsman_consistency").await.expect("it is shown");
    assert_eq!(level, ["global"]);
    let wrong = client.exec_drop("SET @pointsman_consistency = ?", ("strong",)).await;
    assert!(format!("{wrong:?}").contains("1231"), "{wrong:?}");
    client.exec_drop("SET @pointsman_consistency = ?", (Option::<String>::None,)).await.expect("as NULL");
    client.query_drop("/* pointsman: primary */ SELECT 1").await.expect("it answers");
    let route: Vec<String> = client.exec("SELECT @pointsman_route", ()).await.expect("it is shown");
    assert!(route[0].contains("reason=hint"), "{route:?}");
    client.query_drop("SET @pointsman_max_lag = '2s'").await.expect("it is set");
    let both = "SELECT @pointsman_consistency AS `The level`, @pointsman_max_lag";
    let rows: [Vec<mysql_async::Row>; 2] =
        [client.query(both).await.expect("as text"), client.exec(both, ()).await.expect("prepared")];
    for row in rows.into_iter().map(|mut rows| rows.remove(0)) {
        assert_eq!(row.columns_ref()[1].name_str(), "@pointsman_max_lag");
        assert_eq!(mysql_async::from_row::<(String, String)>(row), ("session".to_owned(), "2s".to_owned()));
    }
    assert_eq!(session.error("SET @pointsman_consistency = 'nonsense'").await, 1231);
    // Neither make has the other's positions: no replica would ever have reached one.
    let anothers = match make {
        Make::Mysql9 => "0-1-5",
        Make::MariaDb => "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5",
    };
    assert_eq!(session.error(&format!("SET @pointsman_position = '{anothers}'")).await, 1231);
    assert_eq!(session.error("").await, 1065);
}

/// Columns are called what the server calls them.
async fn as_it_may_be_written(stage: &Stage) {
    let mut client = each_time_anew(stage).await;
    for mode in ["''", "'ANSI_QUOTES'"] {
        client.query_drop(format!("SET sql_mode = {mode}, @v = 'session'")).await.expect("it is set");
        for question in [
            "SELECT @v",
            "SELECT (@v), @`v`",
            "SELECT ( (@v ) ) FROM DUAL",
            "SELECT @v AS 'x'",
            "SELECT @v 'It''s', (@v) AS 'y'",
            "SELECT @v 'another'",
            "SELECT @v \"X\", @v AS \"a\"\"b\"",
            "SELECT (@v) `a``b`, @v AS Z LIMIT 1",
        ] {
            let own =
                question.replace("@v", "@pointsman_consistency").replace("@`v", "@`pointsman_consistency");
            let mut answers = Vec::new();
            for text in [question, &own] {
                let row: mysql_async::Row = client.query_first(text).await.expect(text).expect("a row");
                let columns = row.columns();
                let names =
                    columns.iter().map(|column| column.name_str().replace("pointsman_consistency", "v"));
                let names: Vec<String> = names.collect();
                answers.push((names, row.unwrap()));
            }
            assert_eq!(answers[1], answers[0], "{mode}: {own}");
        }
        let beside = client.query_drop("SELECT (@pointsman_consistency), (1)").await;
        assert!(format!("{beside:?}").contains("1235"), "{beside:?}");
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

async fn a_slow_statement_is_logged_with_the_schema_it_ran_in(make: Make) {
    let stage = Stage::on(make, "", &["log.statements_over = '100ms'"]).await;
    let mut session = stage.session().await;

    session.value("SELECT SLEEP(0.3)").await;
    stage.proxy.wait_for_log(&format!("database={} access=\"read\"", stage.schema)).await;

    session.run("USE mysql").await;
    session.value("SELECT SLEEP(0.3)").await;
    stage.proxy.wait_for_log("database=mysql access=\"read\"").await;
}
