//! What MySQL's sessions set is carried: variables, character sets, schemas; and what a reset leaves.

use mysql_async::prelude::Queryable;
use pointsman::{
    demo::servers::{APP, Login},
    mysql::command::code,
};

use crate::{
    both_makes,
    support::{
        eventually,
        mysql::{self, Make, ONE, Refused, Session, Stage, each_time_anew},
    },
};

both_makes!(
    settings_go_where_the_session_goes,
    what_a_session_turned_off_is_on_for_the_next_one,
    what_default_is_to_the_server_it_is_here,
    what_a_variable_was_set_to_is_read_as_it_was_then,
    a_variable_is_set_to_a_quoted_name_as_to_text,
    character_sets_are_those_that_the_server_itself_would_have,
    a_setting_that_fails_keeps_the_statement_from_running,
    a_session_without_schema_never_inherits_one,
    a_change_of_privileges_reaches_the_connections_that_pools_have,
    a_table_has_the_character_set_that_its_schema_has_now,
    what_a_session_left_does_not_change_the_schemas_character_set,
    a_slow_statement_is_logged_with_the_schema_it_ran_in,
    text_of_ascii_is_read_in_every_clients_character_set,
    a_schema_whose_name_only_its_session_reads_is_nobody_elses,
    a_schema_is_the_same_whatever_character_set_the_session_has_since,
    a_reset_gives_up_the_connection_that_an_insert_had_kept,
    a_reset_leaves_the_character_set_that_the_server_leaves,
    a_reset_ends_the_modes_by_which_text_is_read,
    a_reset_releases_the_locks_of_its_session,
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

async fn a_slow_statement_is_logged_with_the_schema_it_ran_in(make: Make) {
    let stage = Stage::on(make, "", &["log.statements_over = '100ms'"]).await;
    let mut session = stage.session().await;

    session.value("SELECT SLEEP(0.3)").await;
    stage.proxy.wait_for_log(&format!("database={} access=\"read\"", stage.schema)).await;

    session.run("USE mysql").await;
    session.value("SELECT SLEEP(0.3)").await;
    stage.proxy.wait_for_log("database=mysql access=\"read\"").await;
}
