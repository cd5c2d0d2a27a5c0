//! What the engine promises, on PostgreSQL, MariaDB and MySQL from one text.

use std::time::Duration;

use pointsman::demo::servers::{APP, Login};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    both_databases,
    support::{
        both::{Engine, Meaning, Stage},
        eventually, soon,
    },
};

both_databases!(
    reads_use_replicas_and_writes_the_primary,
    a_session_reads_its_own_writes,
    a_transaction_stays_on_one_server,
    a_read_only_transaction_uses_one_replica,
    a_table_that_a_replica_has_not_replayed_is_found,
    a_hint_chooses_the_node,
    a_hint_counts_for_what_sql_has_prepared,
    few_connections_serve_many_sessions,
    settings_follow_their_session_and_no_other,
    a_temporary_table_is_its_sessions_own,
    a_temporary_table_keeps_its_connection_until_it_is_gone,
    an_error_at_the_beginning_of_a_transaction_does_what_the_servers_do,
    an_error_in_a_transaction_costs_no_temporary_table,
    a_savepoint_undoes_what_came_behind_it,
    the_route_of_the_last_statement_is_told,
    of_a_statement_that_was_refused_it_is_told_why,
    a_setting_of_the_proxys_own_takes_nothing_from_its_string,
    a_token_that_comes_with_a_read_counts,
    a_reload_applies_to_clients_that_stay,
    a_faulty_file_changes_nothing,
    a_draining_proxy_lets_transactions_end,
    what_runs_at_a_forced_end_is_cancelled,
    bytes_of_no_protocol_disturb_nobody,
    a_statement_over_its_time_is_cancelled,
    a_statement_over_its_time_is_cancelled_while_it_waits,
    a_long_transaction_that_is_never_silent_for_long_goes_on,
    a_limit_that_a_reload_sets_counts_for_who_is_silent_already,
    clients_above_the_limit_are_told_so,
    whoever_is_trusted_proves_nothing,
    the_configurations_word_on_functions_counts,
    a_reloads_word_on_functions_counts_for_who_stays,
    what_the_file_says_of_a_function_counts_where_no_statement_names_it,
);

const TABLE: &str = "CREATE TABLE t (x int)";

async fn reads_use_replicas_and_writes_the_primary(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    for _ in 0..20 {
        assert!(stage.is_replica(session.port().await));
    }
    session.value("INSERT INTO t VALUES (1)").await;
    let port: u16 = session.value("SELECT $port FROM t FOR UPDATE").await.parse().expect("a port");
    assert!(!stage.is_replica(port));
}

async fn a_session_reads_its_own_writes(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    for x in 1..=50 {
        session.value(&format!("INSERT INTO t VALUES ({x})")).await;
        assert_eq!(session.value("SELECT max(x) FROM t").await, x.to_string());
    }
}

async fn a_transaction_stays_on_one_server(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    session.value("BEGIN").await;
    let port = session.port().await;
    assert!(!stage.is_replica(port));
    session.value("INSERT INTO t VALUES (1)").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await, "1");
    assert_eq!(session.port().await, port);
    session.value("ROLLBACK").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await, "0");
}

async fn a_read_only_transaction_uses_one_replica(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    session.value("START TRANSACTION READ ONLY").await;
    let port = session.port().await;
    assert!(stage.is_replica(port));
    for _ in 0..5 {
        assert_eq!(session.port().await, port);
    }
    assert!(session.ask("INSERT INTO t VALUES (1)").await.is_err());
    session.value("ROLLBACK").await;
}

async fn a_table_that_a_replica_has_not_replayed_is_found(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &["cluster.routing.consistency = 'eventual'"]).await;
    let mut session = stage.session().await;
    for number in 0..20 {
        session.value(&format!("CREATE TABLE t{number} (x int)")).await;
        assert_eq!(session.value(&format!("SELECT count(*) FROM t{number}")).await, "0");
    }
    assert!(session.ask("SELECT * FROM never_made").await.is_err());
}

async fn a_hint_chooses_the_node(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    for _ in 0..5 {
        let port: u16 = session.value("/* pointsman: primary */ SELECT $port").await.parse().expect("a port");
        assert!(!stage.is_replica(port));
    }
}

async fn a_hint_counts_for_what_sql_has_prepared(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    let prepare = |hint: &str| match engine {
        Engine::Postgres => format!("PREPARE s AS {hint} SELECT $port"),
        _ => format!("PREPARE s FROM '{hint} SELECT $port'"),
    };
    let (primary, replica) = ("/* pointsman: primary */", "/* pointsman: replica */");
    for (prepare, execute, on_replica) in [
        (prepare(""), "EXECUTE s".to_owned(), true),
        (prepare(""), format!("{primary} EXECUTE s"), false),
        (prepare(primary), "EXECUTE s".to_owned(), false),
        (format!("{primary} {}", prepare("")), "EXECUTE s".to_owned(), false),
        // That of the execution says it last.
        (prepare(primary), format!("{replica} EXECUTE s"), true),
        (prepare(primary), "/* pointsman: max_lag=1h */ EXECUTE s".to_owned(), false),
    ] {
        session.value(&prepare).await;
        for _ in 0..3 {
            let port: u16 = session.value(&execute).await.parse().expect("a port");
            assert_eq!(stage.is_replica(port), on_replica, "{prepare}; {execute}");
        }
        session.value("DEALLOCATE PREPARE s").await;
    }
}

async fn few_connections_serve_many_sessions(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &["cluster.pool.size = 2"]).await;
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(stage.session().await);
    }
    for (x, session) in sessions.iter_mut().enumerate() {
        session.value(&format!("INSERT INTO t VALUES ({x})")).await;
        session.value("SELECT 1").await;
    }
    let count = sessions[0].value("/* pointsman: primary */ SELECT count(*) FROM t").await;
    assert_eq!(count, "20");
}

async fn settings_follow_their_session_and_no_other(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &["cluster.pool.size = 2"]).await;
    let (set, get, one, two) = match engine {
        Engine::Postgres => ("SET work_mem = ", "SHOW work_mem", "'1111kB'", "'2222kB'"),
        _ => ("SET SESSION wait_timeout = ", "SELECT @@wait_timeout", "1111", "2222"),
    };
    let mut sessions = [stage.session().await, stage.session().await];
    for (session, value) in sessions.iter_mut().zip([one, two]) {
        session.value(&format!("{set}{value}")).await;
    }
    let mut third = stage.session().await;
    for _ in 0..10 {
        for (session, value) in sessions.iter_mut().zip([one, two]) {
            assert_eq!(session.value(get).await, value.trim_matches('\''));
            session.value("INSERT INTO t VALUES (1)").await;
        }
        assert!(!["1111kB", "2222kB", "1111", "2222"].contains(&third.value(get).await.as_str()));
    }
}

async fn a_temporary_table_is_its_sessions_own(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &["cluster.pool.size = 2"]).await;
    let (mut owner, mut other) = (stage.session().await, stage.session().await);
    owner.value("CREATE TEMPORARY TABLE mine (x int)").await;
    for x in 1..=5 {
        owner.value(&format!("INSERT INTO mine VALUES ({x})")).await;
        assert_eq!(owner.value("SELECT max(x) FROM mine").await, x.to_string());
        let code = other.ask("SELECT max(x) FROM mine").await.expect_err("it is not there");
        assert!(engine.says(Meaning::NoTable, &code), "{code}");
    }
    // What pins a session to the primary keeps its reads of other things on replicas or not; both
    // are right. Its end gives the place back.
    drop(owner);
    let other = tokio::sync::Mutex::new(other);
    eventually("there is room again", async || {
        other.lock().await.ask("CREATE TEMPORARY TABLE mine (y int)").await.is_ok()
    })
    .await;
}

async fn a_temporary_table_keeps_its_connection_until_it_is_gone(engine: Engine) {
    let one = ["cluster.pool.size = 1", "cluster.pool.checkout_timeout = '2s'"];
    let stage = Stage::set(engine, TABLE, &one).await;
    let mut owner = stage.session().await;
    let is_free = async || stage.session().await.ask("INSERT INTO t VALUES (1)").await.is_ok();

    owner.value("CREATE TEMPORARY TABLE mine (x int)").await;
    owner.value("INSERT INTO mine VALUES (1)").await;
    assert!(!is_free().await, "it is there");
    assert_eq!(owner.value("SELECT count(*) FROM mine").await, "1");
    owner.value("DROP TABLE mine").await;
    assert!(is_free().await, "it was dropped");

    for (make, end) in match engine {
        Engine::Postgres => [
            ("CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT 1 AS x", "COMMIT"),
            ("CREATE TEMP TABLE mine AS SELECT 1 AS x", "ROLLBACK"),
        ],
        _ => [
            ("CREATE TEMPORARY TABLE mine SELECT 1 AS x", "DROP TEMPORARY TABLE mine"),
            ("CREATE TEMPORARY TABLE IF NOT EXISTS mine (x int)", "DROP TABLE t, mine"),
        ],
    } {
        for statement in ["BEGIN", make, "INSERT INTO mine VALUES (2)"] {
            owner.value(statement).await;
        }
        assert!(!is_free().await, "{make}");
        owner.value(end).await;
        if engine != Engine::Postgres {
            owner.value("COMMIT").await;
        }
        let code = owner.ask("/* pointsman: primary */ SELECT x FROM mine").await.expect_err("it is gone");
        assert!(engine.says(Meaning::NoTable, &code), "{code}");
        let free = stage.session().await.ask("/* pointsman: primary */ SELECT 1").await;
        assert_eq!(free.as_deref(), Ok("1"), "{make}; {end}");
    }
}

async fn an_error_at_the_beginning_of_a_transaction_does_what_the_servers_do(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    for begin in ["START TRANSACTION READ ONLY", "BEGIN"] {
        for faulty in ["SELECT * FROM never_made", "INSERT INTO never_made VALUES (1)"] {
            session.value(begin).await;
            assert!(session.ask(faulty).await.is_err());
            let next = session.ask("SELECT count(*) FROM t").await;
            if engine == Engine::Postgres {
                assert!(next.is_err_and(|code| code == "25P02"), "{begin}, {faulty}");
            } else {
                // A statement's error does not end a transaction there.
                assert_eq!(next.as_deref(), Ok("0"), "{begin}, {faulty}");
            }
            session.value("ROLLBACK").await;
            assert_eq!(session.value("SELECT count(*) FROM t").await, "0");
        }
    }
}

async fn an_error_in_a_transaction_costs_no_temporary_table(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    session.value("CREATE TEMPORARY TABLE mine (x int)").await;
    session.value("INSERT INTO mine VALUES (4)").await;
    for faulty in ["INSERT INTO t VALUES (1)", "SELECT * FROM never_made"] {
        session.value("START TRANSACTION READ ONLY").await;
        assert!(session.ask(faulty).await.is_err(), "{faulty}");
        session.value("ROLLBACK").await;
        assert_eq!(session.value("SELECT x FROM mine").await, "4", "{faulty}");
    }
}

async fn a_savepoint_undoes_what_came_behind_it(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    for sql in ["BEGIN", "SAVEPOINT s", "INSERT INTO t VALUES (1)", "ROLLBACK TO SAVEPOINT s"] {
        session.value(sql).await;
    }
    session.value("INSERT INTO t VALUES (2)").await;
    session.value("COMMIT").await;
    assert_eq!(session.value("SELECT sum(x) FROM t").await, "2");
}

async fn of_a_statement_that_was_refused_it_is_told_why(engine: Engine) {
    let one = ["cluster.pool.size = 1", "cluster.pool.checkout_timeout = '300ms'"];
    let stage = Stage::set(engine, "CREATE TABLE t (x int)", &one).await;
    let (mut holder, mut session) = (stage.session().await, stage.session().await);
    let primary = "/* pointsman: primary */ SELECT 1";
    holder.value("BEGIN").await;
    holder.value("INSERT INTO t VALUES (1)").await;
    let asks = session.question("route");

    for (statement, told) in [
        (primary, "refused=pool_timeout: no connection to "),
        ("/* pointsman: node=nowhere:1 */ SELECT 1", "refused=unknown_node: "),
    ] {
        session.value("SELECT 1").await;
        assert!(session.value(&asks).await.contains("choice=replica"), "{statement}");

        session.ask(statement).await.expect_err(statement);
        let route = session.value(&asks).await;
        assert!(route.starts_with(told) && !route.contains("choice="), "{route}");

        // What only the proxy is told or asked is no statement that goes anywhere.
        let wrong = session.setting("consistency", "strong");
        session.ask(&wrong).await.expect_err("it has no such value");
        assert_eq!(session.value(&asks).await, route);
    }

    holder.value("COMMIT").await;
    session.value(primary).await;
    let route = session.value(&asks).await;
    assert!(route.contains("choice=") && !route.contains("refused"), "{route}");
}

async fn the_route_of_the_last_statement_is_told(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    session.value("SELECT 1").await;
    assert!(session.get("route").await.contains("choice=replica"));
    session.value("INSERT INTO t VALUES (1)").await;
    let route = session.get("route").await;
    assert!(route.contains(&stage.addresses()[0]) && route.contains("write"), "{route}");
}

async fn a_setting_of_the_proxys_own_takes_nothing_from_its_string(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &["cluster.routing.consistency = 'eventual'"]).await;
    let mut session = stage.session().await;
    session.value("INSERT INTO t VALUES (1)").await;
    let sets = session.setting("consistency", "global");
    for string in [format!("{sets}; DELETE FROM t WHERE x = 1"), format!("DELETE FROM t WHERE x = 2; {sets}")]
    {
        session.value("INSERT INTO t VALUES (2)").await;
        session.set("consistency", "eventual").await;
        session.value(&string).await;
        assert_eq!(session.get("consistency").await, "global", "{string}");
    }
    assert_eq!(stage.ask_primary("SELECT count(*) FROM t WHERE x = 1"), "0");
    assert_eq!(stage.ask_primary("SELECT count(*) FROM t WHERE x = 2"), "0");

    // A string whose reads may stand behind the setting is asked of the server that has all.
    let mut other = stage.session().await;
    other.value(&format!("{sets}; SELECT count(*) FROM t")).await;
    assert!(other.get("route").await.contains(&stage.addresses()[0]));

    // What only the proxy can answer is not answered by half.
    let asks = session.question("route");
    assert!(session.ask(&format!("{asks}; INSERT INTO t VALUES (3)")).await.is_err());
    assert_eq!(stage.ask_primary("SELECT count(*) FROM t"), "0");
}

async fn a_token_that_comes_with_a_read_counts(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &[]).await;
    let (mut writer, mut reader) = (stage.session().await, stage.session().await);
    writer.value("INSERT INTO t VALUES (1)").await;
    let sets = reader.setting("position", &writer.get("position").await);
    reader.value(&format!("{sets}; SELECT 1")).await;
    assert_eq!(reader.get("position").await, writer.get("position").await);
}

async fn a_reload_applies_to_clients_that_stay(engine: Engine) {
    let mut stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    assert!(stage.is_replica(session.port().await));

    let addresses = stage.addresses();
    let nodes: Vec<String> = (addresses.iter().enumerate())
        .map(|(index, address)| format!("{{ address = '{address}', weight = {} }}", f64::from(index == 0)))
        .collect();
    stage.proxy_mut().reload(&[&format!("cluster.nodes = [{}]", nodes.join(", "))]);

    let session = tokio::sync::Mutex::new(session);
    eventually("reads use the primary", async || {
        let port = session.lock().await.port().await;
        !stage.is_replica(port)
    })
    .await;
}

async fn a_faulty_file_changes_nothing(engine: Engine) {
    let mut stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;

    stage.proxy_mut().reload_text("[[cluster]]\nname = 7\nnonsense = true\n");
    stage.proxy().wait_for_log("nonsense").await;

    assert!(stage.is_replica(session.port().await));
    assert!(stage.log_in().await.is_ok());
}

async fn a_draining_proxy_lets_transactions_end(engine: Engine) {
    let mut stage = Stage::set(engine, TABLE, &[]).await;
    let mut session = stage.session().await;
    session.value("BEGIN").await;
    session.value("INSERT INTO t VALUES (1)").await;

    stage.proxy().terminate();
    eventually("no new clients", async || stage.log_in().await.is_err()).await;
    session.value("INSERT INTO t VALUES (2)").await;
    session.value("COMMIT").await;

    assert!(stage.proxy_mut().wait().success());
    assert_eq!(stage.ask_primary("SELECT count(*) FROM t"), "2");
}

async fn what_runs_at_a_forced_end_is_cancelled(engine: Engine) {
    let sql = format!("{TABLE}; INSERT INTO t VALUES (1)");
    let mut stage = Stage::set(engine, &sql, &["shutdown_timeout = '300ms'"]).await;
    let mut session = stage.session().await;
    // On the primary, in a transaction of its own.
    let slow = "UPDATE t SET x = 2 WHERE $sleep";
    let running = tokio::spawn(async move { session.ask(slow).await });
    eventually("it runs", async || stage.runs("UPDATE t SET")).await;

    stage.proxy().terminate();

    assert!(stage.proxy_mut().wait().success());
    let code =
        soon("the client hears of it", running).await.expect("no panic").expect_err("it was cancelled");
    assert!(engine.says(Meaning::Ended, &code), "{code}");
    eventually("it runs no more", async || !stage.runs("UPDATE t SET")).await;
    assert_eq!(stage.ask_primary("SELECT x FROM t"), "1");
}

async fn bytes_of_no_protocol_disturb_nobody(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &["cluster.limits.login_timeout = '300ms'"]).await;
    let mut session = stage.session().await;
    let port = stage.proxy().port();
    let mut silent = Vec::new();
    for round in 0..60_u8 {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
        let garbage: Vec<u8> =
            (0..200_u32).map(|at| (at.wrapping_mul(31) as u8) ^ round.wrapping_mul(77)).collect();
        // The proxy may have closed it already.
        let _ = socket.write_all(&garbage[..usize::from(round) * 3]).await;
        silent.push(socket);
    }
    for mut socket in silent {
        let mut rest = Vec::new();
        // Closed in order or reset: either way it ends, and by the login's time at the latest.
        let _ = soon("it is closed", socket.read_to_end(&mut rest)).await;
    }
    assert_eq!(session.value("SELECT 1").await, "1");
    assert!(stage.log_in().await.is_ok());
    assert!(!stage.proxy().log().contains("panicked"));
}

async fn a_statement_over_its_time_is_cancelled(engine: Engine) {
    let sql = format!("{TABLE}; INSERT INTO t VALUES (1)");
    let stage = Stage::set(engine, &sql, &["cluster.limits.statement_timeout = '300ms'"]).await;
    let mut session = stage.session().await;
    let code = session.ask("SELECT x FROM t WHERE $sleep").await.expect_err("it takes too long");
    assert!(engine.says(Meaning::Cancelled, &code), "{code}");
    assert_eq!(session.value("SELECT 7").await, "7");
}

async fn a_statement_over_its_time_is_cancelled_while_it_waits(engine: Engine) {
    let settings = ["cluster.limits.statement_timeout = '300ms'", "cluster.pool.size = 1"];
    let stage = Stage::set(engine, TABLE, &settings).await;
    let (mut holder, mut waiter) = (stage.session().await, stage.session().await);
    holder.value("BEGIN").await;
    holder.value("INSERT INTO t VALUES (1)").await;

    let code = waiter.ask("INSERT INTO t VALUES (2)").await.expect_err("the connection is in use");

    assert!(engine.says(Meaning::Cancelled, &code), "{code}");
    holder.value("COMMIT").await;
    waiter.value("INSERT INTO t VALUES (3)").await;
    assert_eq!(stage.ask_primary("SELECT count(*) FROM t"), "2");
}

async fn a_long_transaction_that_is_never_silent_for_long_goes_on(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &["cluster.limits.idle_transaction_timeout = '1s'"]).await;
    let mut session = stage.session().await;
    session.value("BEGIN").await;

    for x in 0..8 {
        session.value(&format!("INSERT INTO t VALUES ({x})")).await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    session.value("COMMIT").await;

    assert_eq!(stage.ask_primary("SELECT count(*) FROM t"), "8");
}

async fn a_limit_that_a_reload_sets_counts_for_who_is_silent_already(engine: Engine) {
    let mut stage = Stage::set(engine, TABLE, &[]).await;
    let (_idle, mut open) = (stage.session().await, stage.session().await);
    open.value("BEGIN").await;
    open.value("INSERT INTO t VALUES (1)").await;

    let limits =
        ["cluster.limits.idle_client_timeout = '300ms'", "cluster.limits.idle_transaction_timeout = '300ms'"];
    stage.proxy_mut().reload(&limits);

    eventually("nobody is left", async || stage.proxy().metric("pointsman_clients", &[]) == 0.0).await;
    assert_eq!(stage.ask_primary("SELECT count(*) FROM t"), "0");
}

async fn clients_above_the_limit_are_told_so(engine: Engine) {
    let stage = Stage::set(engine, TABLE, &["cluster.limits.clients = 3"]).await;
    eventually("nobody is left from the start", async || {
        stage.proxy().metric("pointsman_clients", &[]) == 0.0
    })
    .await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(stage.session().await);
    }
    let Err(code) = stage.log_in().await else { panic!("it got in") };
    assert!(engine.says(Meaning::TooMany, &code), "{code}");
    assert_eq!(sessions[2].value("SELECT 1").await, "1");
}

async fn whoever_is_trusted_proves_nothing(engine: Engine) {
    let wrong = Login { password: "wrong", ..APP };
    let nothing = Login { password: "", ..APP };
    let stage = Stage::set(engine, TABLE, &[]).await;
    assert!(stage.log_in_as(wrong).await.is_err());

    let stage = Stage::set(engine, TABLE, &["cluster.auth.trust_loopback = true"]).await;
    for login in [APP, wrong, nothing] {
        let mut session = stage.log_in_as(login).await.expect("it comes from this machine");
        assert!(stage.is_replica(session.port().await));
        session.value("INSERT INTO t VALUES (1)").await;
    }
    // The proxy trusts, the servers do not.
    let stranger = Login { name: "nobody_knows", password: "" };
    let entered = match stage.log_in_as(stranger).await {
        Ok(mut session) => session.ask("SELECT 1").await.is_ok(),
        Err(_) => false,
    };
    assert!(!entered);
}

async fn the_configurations_word_on_functions_counts(engine: Engine) {
    let (head, tail, fills) = match engine {
        Engine::Postgres => (
            "RETURNS int LANGUAGE sql STABLE AS",
            "'SELECT inet_server_port()'",
            "RETURNS int LANGUAGE plpgsql AS
             'BEGIN PERFORM set_config(''work_mem'', ''1MB'', false); RETURN 1; END'",
        ),
        _ => (
            "RETURNS int READS SQL DATA",
            "RETURN @@port",
            "RETURNS int NO SQL BEGIN SET @filled = 1; RETURN 1; END",
        ),
    };
    let functions = format!(
        "CREATE FUNCTION looks() {head} {tail}; CREATE FUNCTION stamps() {head} {tail};
         CREATE FUNCTION fills() {fills}; CREATE FUNCTION tidies() {fills}"
    );
    let settings = [
        "cluster.routing.write_functions = ['stamps']",
        "cluster.routing.clean_functions = ['tidies', 'stamps']",
    ];
    let stage = Stage::set(engine, &functions, &settings).await;
    let on_replica = async |call: &str| {
        let port = stage.session().await.value(&format!("SELECT {call}")).await;
        stage.is_replica(port.parse().expect("a port"))
    };
    eventually("the catalog says that it reads", async || on_replica("looks()").await).await;
    for _ in 0..10 {
        assert!(!on_replica("stamps()").await);
    }

    let pins = || stage.proxy().metric("pointsman_pins_total", &["reason=\"function\""]);
    let before = pins();
    let session = tokio::sync::Mutex::new(stage.session().await);
    let pins_behind = async |call: &str| {
        let mut session = session.lock().await;
        session.value(&format!("SELECT {call}")).await;
        // What comes behind it is answered when it has been counted.
        session.value("SELECT 1").await;
        pins()
    };
    assert_eq!(pins_behind("stamps()").await, before);
    assert_eq!(pins_behind("tidies()").await, before);
    assert_eq!(pins_behind("fills()").await, before + 1.0);
}

async fn a_reloads_word_on_functions_counts_for_who_stays(engine: Engine) {
    let function = match engine {
        Engine::Postgres => "RETURNS int LANGUAGE sql STABLE AS 'SELECT inet_server_port()'",
        _ => "RETURNS int READS SQL DATA RETURN @@port",
    };
    let mut stage = Stage::set(engine, &format!("CREATE FUNCTION looks() {function}"), &[]).await;
    let session = tokio::sync::Mutex::new(stage.session().await);
    let on_replica = async |stage: &Stage| {
        let port = session.lock().await.value("SELECT looks()").await;
        stage.is_replica(port.parse().expect("a port"))
    };
    eventually("the catalog says that it reads", async || on_replica(&stage).await).await;
    let misses =
        |stage: &Stage| stage.proxy().metric("pointsman_statement_cache_total", &["result=\"miss\""]);
    let before = misses(&stage);

    stage.proxy_mut().reload(&["cluster.routing.write_functions = ['looks']"]);

    eventually("the file says that it writes", async || !on_replica(&stage).await).await;
    assert!(misses(&stage) > before, "counters only grow");
}

async fn what_the_file_says_of_a_function_counts_where_no_statement_names_it(engine: Engine) {
    let table = "CREATE TABLE watched (x int)";
    let code = match engine {
        Engine::Postgres => {
            "CREATE FUNCTION rubs() RETURNS int LANGUAGE plpgsql AS
             'BEGIN PERFORM set_config(''work_mem'', ''1MB'', false); RETURN 1; END';
             CREATE FUNCTION on_watched() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM rubs(); RETURN NEW; END';
             CREATE TRIGGER watching BEFORE INSERT ON watched FOR EACH ROW EXECUTE FUNCTION on_watched();
             CREATE VIEW rubbed AS SELECT rubs() AS x"
        }
        _ => {
            "CREATE FUNCTION rubs() RETURNS int NO SQL BEGIN SET @rubbed = 1; RETURN 1; END;
             CREATE TRIGGER watching BEFORE INSERT ON watched FOR EACH ROW SET NEW.x = rubs();
             CREATE VIEW rubbed AS SELECT rubs() AS x; GRANT SELECT ON rubbed TO pointsman@'%'"
        }
    };
    let mut stage = Stage::set(engine, &format!("{table}; {code}"), &[]).await;
    let pins_by = async |stage: &Stage, statement: &str| {
        let mut session = stage.session().await;
        let pins = || stage.proxy().metric("pointsman_pins_total", &["reason=\"function\""]);
        let before = pins();
        session.value(statement).await;
        // What comes behind it is answered when it has been counted.
        session.value("SELECT 1").await;
        pins() - before
    };
    let all_pin = async |stage: &Stage, expected: f64| {
        pins_by(stage, "INSERT INTO watched VALUES (1)").await == expected
            && pins_by(stage, "SELECT x FROM rubbed").await == expected
    };

    eventually("the catalog tells what they leave", async || all_pin(&stage, 1.0).await).await;
    stage.proxy_mut().reload(&["cluster.routing.clean_functions = ['rubs']"]);
    eventually("they leave nothing, says the file", async || all_pin(&stage, 0.0).await).await;
    stage.proxy_mut().reload(&["cluster.routing.clean_functions = []"]);
    eventually("the file says so no more", async || all_pin(&stage, 1.0).await).await;
}
