//! Coming in: who is let in, and what those are told who are not.

use pointsman::demo::servers::{APP, Login};

use crate::support::{
    Database, Proxy, Session, Stage,
    both::{Engine, Servers},
    client, cluster, eventually,
    proxy::login_error,
    wire::{Batch, Wire, first_columns, startup, untagged},
};

#[tokio::test]
async fn refusals_are_those_of_the_server() {
    let stage = Stage::set("", &[]).await;
    let port = stage.proxy.port();
    let dsn = |user: &str, password: &str, database: &str| {
        format!("host=127.0.0.1 port={port} user={user} password={password} dbname={database}")
    };

    assert_eq!(login_error(&dsn("app", "wrong", "app")).await, "28P01");
    assert_eq!(login_error(&dsn("app", APP.password, "nowhere")).await, "3D000");
    let unknown = login_error(&dsn("nobody_known", "x", "app")).await;
    assert!(["28P01", "28000"].contains(&unknown.as_str()), "{unknown}");

    // And others come in as before.
    assert_eq!(stage.session().await.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn the_log_tells_why_a_client_did_not_get_in() {
    let stage = Stage::set("", &["cluster.limits.clients_per_user = 1"]).await;
    let dsn = |database: &str, options: &str| format!("{} {options}", stage.proxy.dsn(database));
    let own = &stage.database.name;

    // Whoever came before may be counted for a moment yet.
    let first = async || login_error(&dsn("nowhere", "")).await == "3D000";
    eventually("nobody else is in", first).await;
    stage.proxy.wait_for_log("database \\\"nowhere\\\" does not exist (3D000)").await;
    assert_eq!(login_error(&dsn(own, "options='-c work_mem=much'")).await, "22023");
    stage.proxy.wait_for_log("reason=\"refused_by_server\" detail=\"invalid value for parameter").await;
    assert_eq!(login_error(&dsn(own, "options='-c pointsman.consistency=strong'")).await, "22023");
    stage.proxy.wait_for_log("reason=\"invalid_setting\" detail=\"invalid value for parameter").await;
    let _only = Session::retry(&dsn(own, "")).await;
    assert_eq!(login_error(&dsn(own, "")).await, "53300");
    stage.proxy.wait_for_log("reason=\"too_many_clients\" detail=\"too many connections").await;
}

#[tokio::test]
async fn a_refused_login_is_logged_without_its_password() {
    let stage = Stage::set("", &[]).await;
    let dsn =
        format!("host=127.0.0.1 port={} user=app password=hunter2secret dbname=app", stage.proxy.port());

    login_error(&dsn).await;

    stage.proxy.wait_for_log("28P01").await;
    assert!(!stage.proxy.log().contains("hunter2secret"));
    assert!(!stage.proxy.log().contains(APP.password));
}

#[tokio::test]
async fn a_login_without_the_encryption_asked_for_is_counted_as_that() {
    let mut stage = Stage::set("", &[]).await;
    let dsn = stage.proxy.dsn(&stage.database.name);
    let folder = tempfile::tempdir().expect("a folder");
    let (certificate, key) = (folder.path().join("proxy.crt"), folder.path().join("proxy.key"));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("it can be made");
    std::fs::write(&certificate, made.cert.pem()).expect("the folder is ours");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("the folder is ours");

    stage.proxy.reload(&[&format!(
        "cluster.tls.client = {{ mode = 'require', certificate = '{}', key = '{}' }}",
        certificate.display(),
        key.display()
    )]);

    eventually("it is asked for", async || client::connect(&dsn).await.is_err()).await;
    assert_eq!(login_error(&dsn).await, "28000");
    let turned_away =
        |result: &str| stage.proxy.metric("pointsman_logins_total", &[&format!("result=\"{result}\"")]);
    // The client may hear of it first.
    eventually("both are counted", async || turned_away("tls") >= 2.0).await;
    assert_eq!(turned_away("protocol"), 0.0, "{}", stage.proxy.log());
}

#[tokio::test]
async fn the_database_defaults_to_the_users_name() {
    let stage = Stage::set("", &[]).await;
    let mut wire = Wire::try_login(stage.proxy.port(), APP, &[("user", "app")]).await.expect("let in");

    let answer = wire.ask(&Batch::new().query("SELECT current_database()")).await;

    assert_eq!(first_columns(&answer), ["app"]);
}

#[tokio::test]
async fn requests_for_encryption_are_declined_in_the_same_connection() {
    const SSL_REQUEST: i32 = 80_877_103;
    const GSS_REQUEST: i32 = 80_877_104;
    let stage = Stage::set("", &[]).await;
    let mut wire = Wire::connect(stage.proxy.port()).await;

    for request in [GSS_REQUEST, SSL_REQUEST] {
        wire.send(&untagged(&request.to_be_bytes())).await;
        assert_eq!(wire.byte().await, b'N');
    }
    wire.send(&startup(196_608, &[("user", "app")])).await;

    assert_eq!(wire.recv().await.tag, b'R');
}

#[tokio::test]
async fn a_newer_minor_version_and_unknown_options_are_negotiated_down() {
    let stage = Stage::set("", &[]).await;
    let mut wire = Wire::connect(stage.proxy.port()).await;

    wire.send(&startup(0x0003_0063, &[("user", "app"), ("_pq_.unheard", "1")])).await;
    let answer = wire.recv().await;

    assert_eq!(answer.tag, b'v');
    assert!(answer.body.ends_with(b"_pq_.unheard\0"), "{answer:?}");
    assert_eq!(wire.recv().await.tag, b'R');
}

#[tokio::test]
async fn an_unknown_major_version_is_refused() {
    let stage = Stage::set("", &[]).await;
    let mut wire = Wire::connect(stage.proxy.port()).await;

    wire.send(&startup(0x0004_0000, &[("user", "app")])).await;

    let answer = wire.until_closed().await;
    assert_eq!((answer[0].tag, answer[0].code().as_str()), (b'E', "0A000"));
}

#[tokio::test]
async fn startup_options_are_settings_and_a_faulty_one_is_the_servers_error() {
    let stage = Stage::set("", &[]).await;
    let database = stage.database.name.as_str();
    let with = |options: &str| format!("{} options='{options}'", stage.proxy.dsn(database));

    let session = Session::open(&with("-c work_mem=5MB -c statement_timeout=1234")).await;
    assert_eq!(session.value("SHOW work_mem").await, "5MB");
    assert_eq!(session.value("SHOW statement_timeout").await, "1234ms");
    let session = Session::open(&with("-c pointsman.consistency=eventual")).await;
    assert_eq!(session.value("SHOW pointsman.consistency").await, "eventual");

    assert_eq!(login_error(&with("-c work_mem=plenty")).await, "22023");
    assert_eq!(login_error(&with("-c no_such_setting=1")).await, "42704");
}

#[tokio::test]
async fn a_parameter_outweighs_options_wherever_it_stands() {
    let stage = Stage::set("", &[]).await;
    // lib/pq sends both where its user asks for another encoding.
    let (own, options) = (("client_encoding", "UTF8"), ("options", "-c client_encoding=SQL_ASCII"));
    for port in [stage.primary_port(), stage.proxy.port()] {
        for [first, second] in [[own, options], [options, own]] {
            let startup = [("user", APP.name), ("database", &stage.database.name), first, second];
            let Ok(wire) = Wire::try_login(port, APP, &startup).await else { panic!("it is let in") };
            assert_eq!(wire.parameters["client_encoding"], "UTF8");
        }
    }
}

#[tokio::test]
async fn a_database_that_is_serializable_by_default_lets_clients_in() {
    let stage = Stage::set("", &[]).await;
    let name = &stage.database.name;
    stage.database.run(&format!("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"));
    for replica in [1, 2] {
        eventually("it is replayed", async || {
            stage.database.ask(replica, "SHOW default_transaction_isolation") == "serializable"
        })
        .await;
    }

    // A standby lets such sessions in, and runs nothing for them that takes a snapshot.
    for options in ["", "-c work_mem=5MB", "-c work_mem=6MB"] {
        let session = Session::open(&format!("{} options='{options}'", stage.proxy.dsn(name))).await;
        assert_eq!(session.value("SHOW default_transaction_isolation").await, "serializable");
        assert_eq!(session.value("SELECT inet_server_port()").await, stage.primary_port().to_string());
    }
}

#[tokio::test]
async fn whoever_comes_behind_a_reload_of_the_servers_is_told_their_new_settings() {
    let cluster = cluster::own();
    let database = Database::create(&cluster);
    let proxy = Proxy::start(&cluster, &["cluster.monitor.catalog_refresh = '200ms'"]).await;
    let before = Wire::login(proxy.port(), APP, &database.name).await;
    assert_eq!(before.parameters["standard_conforming_strings"], "on");

    for node in cluster.nodes() {
        for sql in ["ALTER SYSTEM SET standard_conforming_strings = off", "SELECT pg_reload_conf()"] {
            node.sql("postgres", sql).expect("the server answers");
        }
    }

    eventually("new sessions are told", async || {
        let wire = Wire::login(proxy.port(), APP, &database.name).await;
        wire.parameters["standard_conforming_strings"] == "off"
    })
    .await;
    let other = Wire::login(proxy.port(), APP, &database.name).await;
    assert_eq!(other.parameters["standard_conforming_strings"], "off");
}

#[tokio::test]
async fn a_session_that_gives_up_its_serializable_default_reads_from_every_replica() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let name = &stage.database.name;
    stage.database.run(&format!("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"));

    let committed = r"options='-c default_transaction_isolation=read\\ committed'";
    for options in ["", committed] {
        let session = Session::open(&format!("{} {options}", stage.proxy.dsn(name))).await;
        session.run("SET default_transaction_isolation = 'read committed'").await;
        session.run("INSERT INTO t VALUES (1)").await;
        // Those that have what was written serve the reads, and each over connections that are new to it.
        for replica in [1, 2] {
            let port = stage.cluster.node(replica).port();
            eventually("each replica serves reads", async || session.port().await == port).await;
        }
        for port in session.ports("SELECT inet_server_port()", 10).await {
            assert!(stage.is_replica(port), "{options}");
        }
    }
}

#[tokio::test]
async fn one_sessions_serializable_default_keeps_no_other_from_a_replica() {
    let stage = Stage::set("", &["cluster.pool.size = 1"]).await;
    let with = |options: &str| format!("{} options='{options}'", stage.proxy.dsn(&stage.database.name));
    let strict = stage.session().await;
    let other = Session::open(&with("-c work_mem=5MB")).await;
    strict.run("SET default_transaction_isolation = 'serializable'").await;

    for megabytes in 6..26 {
        // What the replica's one connection has had is undone together with what takes a snapshot.
        assert_eq!(strict.value("SHOW default_transaction_isolation").await, "serializable");
        assert!(stage.is_replica(other.port().await));
        strict.value("SHOW work_mem").await;
        Session::open(&with(&format!("-c work_mem={megabytes}MB"))).await;
    }
}

#[tokio::test]
async fn a_login_asks_the_primary_for_what_no_replica_has_heard_of() {
    let cluster = cluster::own();
    let database = Database::create(&cluster);
    let proxy = Proxy::start(&cluster, &[]).await;
    cluster.wait_until_caught_up(0).expect("it can");
    for replica in [1, 2] {
        cluster.pause_replay(replica).expect("it pauses");
    }
    cluster.node(0).sql("postgres", "CREATE ROLE lately; GRANT lately TO app").expect("it may");

    let session = Session::open(&format!("{} options='-c role=lately'", proxy.dsn(&database.name))).await;

    assert_eq!(session.value("SELECT current_user").await, "lately");
    assert_eq!(login_error(&format!("{} options='-c role=never'", proxy.dsn(&database.name))).await, "22023");
}

#[tokio::test]
async fn libpqs_target_session_attrs_finds_a_primary_here() {
    let stage = Stage::set("", &[]).await;
    for wanted in ["any", "read-write", "primary", "prefer-standby"] {
        let psql = std::process::Command::new("psql")
            .args(["-X", "-At", "-c", "SELECT 'in'"])
            .arg(format!("{} target_session_attrs={wanted}", stage.proxy.dsn(&stage.database.name)))
            .output()
            .expect("psql is installed");
        assert_eq!(String::from_utf8_lossy(&psql.stdout).trim(), "in", "{wanted}: {psql:?}");
    }
}

#[tokio::test]
async fn a_user_made_after_the_start_logs_in_where_logins_are_asked_of_the_servers() {
    let stage =
        Stage::set("", &["cluster.auth.query = 'SELECT usename, passwd FROM pg_shadow WHERE usename = $1'"])
            .await;
    let role = format!("late_{}", stage.database.name);
    let admin = |sql: &str| stage.cluster.node(0).sql("postgres", sql).expect("the superuser may");
    admin("GRANT pg_read_all_data TO pointsman; GRANT SELECT ON pg_shadow TO pointsman");
    admin(&format!("CREATE ROLE {role} LOGIN PASSWORD 'late-pw'"));
    stage.cluster.wait_until_caught_up(0).expect("replicas follow");

    let login = Login { name: Box::leak(role.clone().into_boxed_str()), password: "late-pw" };
    let session = Session::retry(&stage.proxy.dsn_of(login, &stage.database.name)).await;

    // No stored password: the servers are entered with what the client's own login revealed.
    assert_eq!(session.value("SELECT current_user").await, role);
    assert!(stage.is_replica(session.port().await));
}

#[tokio::test]
async fn many_clients_share_few_server_connections() {
    let stage = Stage::set("CREATE TABLE t (x int)", &["cluster.pool.size = 3"]).await;
    let mut sessions = Vec::new();
    for _ in 0..100 {
        sessions.push(stage.session().await);
    }

    let work = sessions.iter().map(async |session| {
        session.run("INSERT INTO t VALUES (1)").await;
        session.value("SELECT count(*) > 0 FROM t").await
    });
    let answers = futures_util::future::join_all(work).await;

    assert!(answers.iter().all(|answer| answer == "t"));
    let count =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND datname = current_database()";
    for node in 0..3 {
        let connections: u32 = stage.database.ask(node, count).parse().expect("a count is a number");
        assert!(connections <= 3, "{connections} connections to node {node}");
    }
}

#[tokio::test]
async fn a_faulty_setting_of_the_proxys_own_ends_the_login() {
    let stage = Stage::set("", &[]).await;

    for (options, code) in [
        ("-c pointsman.consistency=strong", "22023"),
        ("-c pointsman.max_lag=soon", "22023"),
        ("-c pointsman.position=yesterday", "22023"),
        ("-c pointsman.no_such_setting=1", "42704"),
    ] {
        let startup = [("user", APP.name), ("database", stage.database.name.as_str()), ("options", options)];
        let refused = Wire::try_login(stage.proxy.port(), APP, &startup).await;
        let error = refused.err().unwrap_or_else(|| panic!("{options} was let in"));
        assert_eq!((error.code().as_str(), error.field(b'S').as_deref()), (code, Some("FATAL")), "{options}");
    }
}

#[tokio::test]
async fn what_resets_a_session_resets_its_settings_of_the_proxys_own() {
    let stage = Stage::set("", &[]).await;
    let dsn = format!("{} options='-c pointsman.consistency=global'", stage.proxy.dsn(&stage.database.name));
    let session = Session::open(&dsn).await;

    for reset in
        ["RESET ALL", "DISCARD ALL", "RESET pointsman.consistency", "SET pointsman.consistency TO DEFAULT"]
    {
        session.run("SET pointsman.consistency = 'eventual'").await;
        session.run("SET pointsman.max_lag = '2s'").await;
        session.run(reset).await;

        assert_eq!(session.value("SHOW pointsman.consistency").await, "global", "{reset}");
    }
    session.run("DISCARD ALL").await;
    assert_eq!(session.value("SHOW pointsman.max_lag").await, "");
}

/// As the server's own settings do.
#[tokio::test]
async fn the_proxys_own_settings_end_with_the_transaction_they_are_for() {
    let stage = Stage::set("", &[]).await;
    let session = Session::open(&stage.proxy.dsn(&stage.database.name)).await;
    let default = session.value("SHOW pointsman.consistency").await;

    for (set, end, left) in [
        ("SET LOCAL pointsman.consistency = 'global'", "COMMIT", &*default),
        ("SET LOCAL pointsman.consistency = 'global'", "COMMIT AND CHAIN; COMMIT", &default),
        ("SET pointsman.consistency = 'global'", "ROLLBACK", &default),
        ("SET pointsman.consistency = 'global'", "COMMIT", "global"),
        ("SET LOCAL pointsman.consistency TO DEFAULT", "COMMIT", "global"),
        ("RESET pointsman.consistency", "ROLLBACK", "global"),
    ] {
        // One that a server knows of, and one that is held back.
        for inside in ["SELECT 1", ""] {
            session.run("BEGIN").await;
            session.run(inside).await;
            session.run(set).await;
            let meanwhile = if set.contains("= 'global'") { "global" } else { &default };
            assert_eq!(session.value("SHOW pointsman.consistency").await, meanwhile, "{set}");
            session.run(end).await;
            assert_eq!(session.value("SHOW pointsman.consistency").await, left, "{set}; {end} {inside}");
        }
    }
    session.run("RESET pointsman.consistency").await;
    session.run("BEGIN; SET LOCAL pointsman.consistency = 'global'").await;
    assert_eq!(session.value("SHOW pointsman.consistency").await, "global");
    session.run("COMMIT").await;
    session.run("SET LOCAL pointsman.consistency = 'global'").await;
    assert_eq!(session.value("SHOW pointsman.consistency").await, default);
}

/// SQLSTATE and severities of what `port` says to a login.
async fn refusal_of(port: u16, login: Login, database: &str) -> [Option<String>; 3] {
    let startup = [("user", login.name), ("database", database)];
    let refused = Wire::try_login(port, login, &startup).await;
    let error = refused.err().unwrap_or_else(|| panic!("{} was let in to {database}", login.name));
    [Some(error.code()), error.field(b'S'), error.field(b'V')]
}

#[tokio::test]
async fn what_keeps_a_client_out_is_as_fatal_as_the_servers_say() {
    let cluster = cluster::shared();
    let database = Database::create(cluster);
    let refused = Login { name: "refused", password: "refused-pw" };
    let admin = |sql: &str| cluster.node(0).sql("postgres", sql).expect("the superuser may");
    admin("CREATE ROLE refused NOLOGIN PASSWORD 'refused-pw'; CREATE ROLE salted LOGIN PASSWORD 'salted-pw'");
    cluster.wait_until_caught_up(0).expect("replicas follow");
    // Of the same password, with other salt than the server's: it opens no server.
    let verifier = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$62eHsN8rcuAJqbQG9T4gmapT1bEJUJVo1SAKMWn/1q0=:\
                    u22NxvVEoav5Ro2AzIvrYzRntMMRBLjkW3x9jJlCVMY=";
    let users = format!(
        "cluster.users = [{{ name = 'app', password = 'app-pw' }}, {{ name = 'refused', password = 'refused-pw' }},
         {{ name = 'salted', password = '{verifier}' }}]"
    );
    let proxy = Proxy::start(cluster, &[&users]).await;
    let direct = cluster.node(0).port();

    for (login, database) in [(APP, "nowhere"), (refused, &*database.name)] {
        assert_eq!(
            refusal_of(proxy.port(), login, database).await,
            refusal_of(direct, login, database).await,
            "{} in {database}",
            login.name
        );
    }
    let [_, severity, unlocalized] = {
        let salted = Login { name: "salted", password: "salted-pw" };
        refusal_of(proxy.port(), salted, &database.name).await
    };
    assert_eq!((severity.as_deref(), unlocalized.as_deref()), (Some("FATAL"), Some("FATAL")));
}

#[tokio::test]
async fn a_login_waits_for_a_place_on_servers_that_are_full() {
    let servers = Servers::own(Engine::Postgres);
    let Servers::Postgres(cluster) = &servers else { panic!("asked for PostgreSQL") };
    let (proxy, database) = servers.proxy("", &[]).await;
    servers.wait_until_caught_up(0);
    let mut holders = Vec::new();
    for node in 0..3 {
        holders.push(Wire::login(servers.port(node), APP, &database).await);
    }
    servers.on(0, &database, "ALTER ROLE app CONNECTION LIMIT 1");
    servers.wait_until_caught_up(0);

    let port = proxy.port();
    let waiting = tokio::spawn(async move { Wire::login(port, APP, &database).await });
    for node in 0..3 {
        eventually("it has asked everywhere", async || {
            cluster.node(node).log().contains("too many connections for role")
        })
        .await;
    }
    drop(holders);

    let mut wire = waiting.await.expect("it gets in");
    assert_eq!(first_columns(&wire.ask(&Batch::new().query("SELECT 1")).await), ["1"]);
}
