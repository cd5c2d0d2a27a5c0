//! What the server's catalog says of functions, views and tables decides where a statement runs.

use std::time::Duration;

use pointsman::demo::servers::{APP, Login, MONITOR, PgCluster, SUPERUSER};

use crate::support::{
    Database, Proxy, Session, Stage, cluster, eventually,
    link::Link,
    proxy::login_error,
    wire::{self, Batch, Wire, first_columns, tags},
};

#[tokio::test]
async fn functions_are_judged_by_the_catalog_of_their_own_database() {
    let cluster = cluster::shared();
    let reads = Database::with(
        cluster,
        "CREATE FUNCTION f() RETURNS int STABLE LANGUAGE sql AS 'SELECT inet_server_port()'",
    );
    let writes = Database::with(
        cluster,
        "CREATE TABLE t (x int);
         CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1) RETURNING inet_server_port()'",
    );
    let proxy = Proxy::start(cluster, &[]).await;
    let (reader, writer) = (proxy.session(&reads.name).await, proxy.session(&writes.name).await);

    eventually("the catalogs are read", async || {
        reader.value("SELECT f()").await != cluster.node(0).port().to_string()
    })
    .await;

    for _ in 0..10 {
        assert_ne!(reader.value("SELECT f()").await, cluster.node(0).port().to_string());
        assert_eq!(writer.value("SELECT f()").await, cluster.node(0).port().to_string());
    }
    assert_eq!(writes.errors_on_replicas(), Vec::<String>::new());
    assert_eq!(writes.ask(0, "SELECT count(*) FROM t"), "10");
}

#[tokio::test]
async fn writes_hidden_behind_views_operators_casts_and_attributes_run_on_the_primary() {
    let stage = Stage::set(
        "CREATE TABLE t (x int); INSERT INTO t VALUES (1); CREATE TABLE log (x int);
         CREATE FUNCTION note(int) RETURNS int LANGUAGE sql AS 'INSERT INTO log VALUES ($1) RETURNING x';
         CREATE FUNCTION note(t) RETURNS int LANGUAGE sql AS 'INSERT INTO log VALUES (($1).x) RETURNING x';
         CREATE VIEW v AS SELECT note(x) AS y FROM t; CREATE VIEW w AS SELECT y FROM v;
         CREATE OPERATOR !!! (RIGHTARG = int, FUNCTION = note);
         CREATE TYPE noted AS (x int);
         CREATE FUNCTION noted(int) RETURNS noted LANGUAGE sql AS 'INSERT INTO log VALUES ($1) RETURNING row(x)::noted';
         CREATE CAST (int AS noted) WITH FUNCTION noted(int)",
        &[],
    )
    .await;
    let session = stage.session().await;
    let hidden = [
        "SELECT y FROM v",
        "SELECT y FROM w",
        "SELECT !!! x FROM t",
        "SELECT t.note FROM t",
        "SELECT x::noted FROM t",
    ];

    for sql in hidden {
        for _ in 0..5 {
            session.run(sql).await;
        }
    }

    assert_eq!(stage.database.ask(0, "SELECT count(*) FROM log"), (5 * hidden.len()).to_string());
}

#[tokio::test]
async fn a_view_over_the_servers_own_functions_and_views_is_asked_as_they_are() {
    let stage = Stage::set(
        "CREATE VIEW recovering AS SELECT pg_is_in_recovery() AS x, inet_server_port() AS port;
         CREATE VIEW beyond AS SELECT x FROM recovering;
         CREATE VIEW readonly AS SELECT setting FROM pg_settings WHERE name = 'transaction_read_only';
         CREATE VIEW asks AS SELECT current_setting('transaction_read_only');
         CREATE VIEW busy AS SELECT inet_server_port() FROM pg_stat_activity;
         CREATE VIEW held AS SELECT pg_try_advisory_lock(5);
         CREATE VIEW mine AS SELECT current_setting('app.tenant', true) AS t, now(), inet_server_port() AS port",
        &[],
    )
    .await;
    let (session, other) = (stage.session().await, stage.session().await);
    let primary = stage.primary_port().to_string();

    for _ in 0..8 {
        for (sql, answer) in [
            ("SELECT x FROM recovering", "f"),
            ("SELECT x FROM beyond", "f"),
            ("SELECT * FROM readonly", "off"),
            ("SELECT * FROM asks", "off"),
            ("SELECT * FROM busy", primary.as_str()),
            ("SELECT * FROM held", "t"),
        ] {
            assert_eq!(session.value(sql).await, answer, "{sql}");
        }
        assert_eq!(other.value("SELECT * FROM held").await, "f", "a lock is one session's");
    }
    // What only computes, or asks for a setting of the session's own, any server answers.
    let reader = stage.session().await;
    for _ in 0..8 {
        assert!(stage.is_replica(reader.value("SELECT port FROM mine").await.parse().expect("a port")));
    }
}

#[tokio::test]
async fn an_aggregate_of_users_runs_where_its_functions_may() {
    let stage = Stage::set(
        "CREATE TABLE t AS SELECT generate_series(1, 3) AS x; CREATE TABLE log (x int);
         CREATE FUNCTION add(int, int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 + $2';
         CREATE AGGREGATE total(int) (sfunc = add, stype = int, initcond = 0);
         CREATE AGGREGATE bigger(int) (sfunc = int4larger, stype = int);
         CREATE FUNCTION note(int, int) RETURNS int LANGUAGE sql AS 'INSERT INTO log VALUES ($2) RETURNING x';
         CREATE AGGREGATE noted(int) (sfunc = note, stype = int)",
        &[],
    )
    .await;
    let session = stage.session().await;

    for _ in 0..8 {
        for (call, answer) in [("total(x)", "6"), ("bigger(x)", "3")] {
            let row = &session.run(&format!("SELECT {call}, inet_server_port() FROM t")).await[0];
            assert_eq!(row[0].as_deref(), Some(answer));
            assert!(
                stage.is_replica(row[1].as_deref().expect("a port").parse().expect("a number")),
                "{call}"
            );
        }
    }
    for _ in 0..8 {
        assert_eq!(session.value("SELECT noted(x) FROM t").await, "3");
    }
    assert_eq!(stage.database.errors_on_replicas(), Vec::<String>::new());
    assert_eq!(stage.database.ask(0, "SELECT count(*) FROM log"), "24");
}

#[tokio::test]
async fn a_function_made_through_the_proxy_is_known_at_once() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let session = stage.session().await;

    session
        .run("CREATE FUNCTION late() RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1) RETURNING x'")
        .await;
    for _ in 0..10 {
        session.run("SELECT late()").await;
    }

    assert_eq!(stage.database.ask(0, "SELECT count(*) FROM t"), "10");
    assert_eq!(stage.database.errors_on_replicas(), Vec::<String>::new());
}

#[tokio::test]
async fn a_function_made_past_the_proxy_is_known_with_the_next_reading() {
    let stage = Stage::set("CREATE TABLE t (x int)", &["cluster.monitor.catalog_refresh = '200ms'"]).await;
    for number in 0..3 {
        stage.database.ask(
            0,
            &format!(
                "CREATE FUNCTION past{number}() RETURNS int STABLE LANGUAGE sql AS 'SELECT inet_server_port()'"
            ),
        );

        eventually("the catalog is read again", async || {
            // A session that has called what nobody knows keeps its connection.
            let port = stage.session().await.value(&format!("SELECT past{number}()")).await;
            port != cluster::shared().node(0).port().to_string()
        })
        .await;
    }
}

#[tokio::test]
async fn one_sessions_serializable_default_teaches_nothing_about_others() {
    let stage = Stage::set("", &[]).await;
    let (strict, other) = (stage.session().await, stage.session().await);

    // On a standby this makes every statement fail, `SELECT 1` too.
    strict.run("SET default_transaction_isolation = 'serializable'").await;
    for _ in 0..10 {
        assert_eq!(strict.value("SELECT inet_server_port()").await, stage.primary_port().to_string());
    }

    for _ in 0..10 {
        assert!(stage.is_replica(other.port().await));
    }
}

#[tokio::test]
async fn a_sequence_is_never_read_on_a_replica_also_under_a_name_it_just_got() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let session = stage.session().await;
    // Replicas are told of 32 values at once: their `last_value` is ahead.
    for round in 0..8 {
        session.run(&format!("CREATE SEQUENCE s{round}")).await;
        session.run(&format!("SELECT nextval('s{round}')")).await;
        assert_eq!(session.value(&format!("SELECT last_value FROM s{round}")).await, "1");
        session.run(&format!("ALTER SEQUENCE s{round} RENAME TO r{round}")).await;
        assert_eq!(session.value(&format!("SELECT last_value FROM r{round}")).await, "1");
    }
}

/// Until a catalog is known, whatever a write sets off may leave state behind.
#[tokio::test]
async fn a_session_that_begins_while_a_large_catalog_is_read_keeps_no_connection() {
    let cluster = cluster::shared();
    let database = Database::with(cluster, "CREATE TABLE t (x int)");
    let proxy = Proxy::start(cluster, &[]).await;
    let name = database.name.clone();
    let slow = tokio::task::spawn_blocking(move || {
        let lock = "BEGIN; LOCK TABLE pg_trigger IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(3); COMMIT";
        cluster.node(0).sql(&name, lock).map(drop)
    });
    let locked = "SELECT count(*) FROM pg_locks WHERE relation = 'pg_trigger'::regclass AND granted
                  AND mode = 'AccessExclusiveLock'";
    eventually("the catalog takes long", async || database.ask(0, locked) == "1").await;

    let session = proxy.session(&database.name).await;
    session.run("INSERT INTO t VALUES (1)").await;

    eventually("reads use replicas", async || session.port().await != cluster.node(0).port()).await;
    assert_eq!(proxy.metric("pointsman_pins_total", &["reason=\"function\""]), 0.0);
    slow.await.expect("it does not panic").expect("it is locked");
}

#[tokio::test]
async fn a_catalog_that_may_not_be_read_is_told_of_and_waited_for_by_nobody() {
    let cluster = cluster::shared();
    let database = Database::with(cluster, "CREATE TABLE t (x int)");
    let revoke = format!("REVOKE CONNECT ON DATABASE {} FROM PUBLIC, {}", database.name, MONITOR.name);
    let grant = format!("GRANT CONNECT ON DATABASE {} TO {}", database.name, APP.name);
    database.run(&format!("RESET ROLE; {revoke}; {grant}"));
    let timeout = "cluster.monitor.timeout = '1h'";
    let proxy = Proxy::start(cluster, &[timeout]).await;

    let session = proxy.session(&database.name).await;
    session.run("INSERT INTO t VALUES (1)").await;

    proxy.wait_for_log("the catalog cannot be read").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await, "1");
}

/// As whoever owns a database may have it: names of the server's own, put before them.
#[tokio::test]
async fn the_catalog_is_read_by_nobodys_functions() {
    let cluster = cluster::shared();
    let database = Database::with(
        cluster,
        "CREATE SCHEMA theirs;
         CREATE TABLE theirs.caught (who text);
         CREATE FUNCTION theirs.split_part(text, text, int) RETURNS text LANGUAGE sql SECURITY DEFINER
             AS 'INSERT INTO theirs.caught VALUES (session_user) RETURNING $1';
         CREATE TABLE t (at timestamptz DEFAULT now())",
    );
    for sql in [
        "RESET ROLE; GRANT USAGE ON SCHEMA theirs TO PUBLIC",
        &format!("ALTER DATABASE {} SET search_path = theirs, pg_catalog, public", database.name),
    ] {
        database.run(sql);
    }
    let proxy = Proxy::start(cluster, &["cluster.routing.consistency = 'global'"]).await;

    let session = proxy.session(&database.name).await;
    session.run("INSERT INTO public.t VALUES (DEFAULT)").await;

    eventually("the catalog is read", async || session.port().await != cluster.node(0).port()).await;
    assert_eq!(session.value("SELECT count(*) FROM theirs.caught").await, "0");
}

#[tokio::test]
async fn nothing_is_said_of_catalogs_of_databases_that_there_are_not() {
    let cluster = cluster::shared();
    let proxy = Proxy::start(cluster, &["log.level = 'debug'"]).await;
    let dsn = proxy.dsn("no_such_database");

    // People are told of the second reading that fails in a row, which is made while somebody logs in.
    let attempts = (0..4).map(async |_| {
        loop {
            assert_eq!(login_error(&dsn).await, "3D000");
        }
    });
    tokio::select! {
        never = futures_util::future::join_all(attempts) => drop::<Vec<()>>(never),
        () = eventually("it was read twice", async || proxy.log().contains("and no catalog")) => {}
    }
    assert!(!proxy.log().contains("the catalog cannot be read"), "{}", proxy.log());
}

/// How many wait for the lock on what only readings of the catalog ask for.
const READERS: &str = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
    WHERE datname = current_database() AND relation = 'pg_policy'::regclass AND NOT granted";

#[tokio::test]
async fn a_reading_of_the_catalog_that_takes_too_long_ends_on_the_server_as_well() {
    let cluster = cluster::shared();
    let database = Database::with(cluster, "CREATE TABLE t (x int)");
    let locker = Session::open(&superuser_of(&database)).await;
    locker.run("BEGIN; LOCK TABLE pg_policy IN ACCESS EXCLUSIVE MODE").await;
    let proxy = Proxy::start(cluster, &["cluster.monitor.timeout = '300ms'"]).await;

    let dsn = proxy.dsn(&database.name);
    let session = tokio::spawn(async move { Session::open(&dsn).await });
    eventually("the catalog is asked for", async || database.ask(0, READERS) == "1").await;
    proxy.wait_for_log("the catalog cannot be read").await;

    eventually("nobody asks any more", async || database.ask(0, READERS) == "0").await;
    session.await.expect("it is let in");
    locker.run("COMMIT").await;
}

/// What a session waits for at its beginning ends with the time that logins have.
#[tokio::test]
async fn a_session_that_begins_before_the_catalog_is_read_waits_no_longer_than_its_login_may_take() {
    let cluster = cluster::shared();
    let database = Database::with(cluster, "CREATE TABLE t (x int)");
    let locker = Session::open(&superuser_of(&database)).await;
    locker.run("BEGIN; LOCK TABLE pg_policy IN ACCESS EXCLUSIVE MODE").await;
    let settings = ["cluster.monitor.timeout = '60s'", "cluster.limits.login_timeout = '2s'"];
    let proxy = Proxy::start(cluster, &settings).await;

    let session = proxy.session(&database.name).await;
    session.run("INSERT INTO t VALUES (1)").await;

    assert_eq!(database.ask(0, READERS), "1", "the catalog is still being read");
    locker.run("COMMIT").await;
}

/// A way past the proxy to the primary.
fn superuser_of(database: &Database<'_>) -> String {
    let Login { name, password } = SUPERUSER;
    let port = cluster::shared().node(0).port();
    format!("host=127.0.0.1 port={port} user={name} password='{password}' dbname={}", database.name)
}

/// How a definition is changed.
#[derive(Clone, Copy, PartialEq)]
enum Change {
    ByItself,
    InTransaction,
    /// The transaction goes on as another one.
    InChain,
    /// Committed long before the string is answered.
    InString,
    /// Committed, and the answer is lost.
    InLostString,
}

/// What a function leaves behind once its definition has changed; the catalog tells of that only later.
async fn what_new_code_leaves_is_nobody_elses(how: Change) {
    let define = |body: &str| {
        format!("CREATE OR REPLACE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT {body} $$")
    };
    let cluster = cluster::shared();
    let database = Database::with(cluster, &define("'nothing'"));
    let settings = ["cluster.pool.size = 2", "cluster.monitor.catalog_refresh = '1h'"];
    let proxy = Proxy::start(cluster, &settings).await;
    let (migration, user) = (proxy.session(&database.name).await, proxy.session(&database.name).await);
    user.run("/* pointsman: primary */ SELECT f()").await;
    let dirty = define("set_config('app.tenant', '7', false)");

    let migration = match how {
        Change::ByItself => tokio::spawn(async move { migration.run(&dirty).await }).await.map(drop),
        Change::InTransaction => {
            migration.run(&format!("BEGIN; {dirty}")).await;
            // The catalog is read meanwhile, and shows what was there before.
            for table in ["a", "b"] {
                let read = || database.calls("pg_catalog.pg_trigger t WHERE t.tgrelid").on_primary();
                let before = read();
                user.run(&format!("CREATE TABLE {table} (x int)")).await;
                eventually("the catalog is read again", async || read() > before).await;
            }
            tokio::spawn(async move { migration.run("COMMIT").await }).await.map(drop)
        }
        Change::InChain => {
            migration.run(&format!("BEGIN; {dirty}")).await;
            migration.run("COMMIT AND CHAIN").await;
            user.run("/* pointsman: primary */ SELECT f()").await;
            drop(user);
            nobody_has_a_tenant(&proxy, &database, 2.0).await;
            migration.run("COMMIT").await;
            return;
        }
        Change::InLostString => {
            let string = format!("BEGIN; {dirty}; COMMIT; SELECT pg_sleep(60)");
            let sleeping = tokio::spawn(async move { migration.try_run(&string).await });
            eventually("it is committed", async || database.ask(0, "SELECT f()") == "7").await;
            let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                        WHERE datname = current_database() AND query LIKE '%pg_sleep(60)' AND pid <> pg_backend_pid()";
            assert_eq!(database.ask(0, kill), "1");
            assert!(sleeping.await.expect("it does not panic").is_err());
            user.run("/* pointsman: primary */ SELECT f()").await;
            drop(user);
            nobody_has_a_tenant(&proxy, &database, 2.0).await;
            return;
        }
        Change::InString => {
            let string = format!("BEGIN; {dirty}; COMMIT; SELECT pg_sleep(5)");
            let sleeping = tokio::spawn(async move { migration.run(&string).await });
            eventually("it is committed", async || database.ask(0, "SELECT f()") == "7").await;
            user.run("/* pointsman: primary */ SELECT f()").await;
            drop(user);
            nobody_has_a_tenant(&proxy, &database, 2.0).await;
            sleeping.await.expect("it does not panic");
            return;
        }
    };
    migration.expect("it does not panic");
    user.run("/* pointsman: primary */ SELECT f()").await;
    drop(user);

    nobody_has_a_tenant(&proxy, &database, 1.0).await;
}

async fn nobody_has_a_tenant(proxy: &Proxy, database: &Database<'_>, clients: f64) {
    eventually("who had one has left", async || proxy.metric("pointsman_clients", &[]) < clients).await;
    for _ in 0..5 {
        let other = proxy.session(&database.name).await;
        let tenant = "/* pointsman: primary */ SELECT coalesce(current_setting('app.tenant', true), '')";
        assert_eq!(other.value(tenant).await, "");
    }
}

#[tokio::test]
async fn what_a_function_leaves_is_nobody_elses_right_after_it_was_replaced() {
    what_new_code_leaves_is_nobody_elses(Change::ByItself).await;
}

#[tokio::test]
async fn what_a_function_leaves_is_nobody_elses_when_a_transaction_has_replaced_it() {
    what_new_code_leaves_is_nobody_elses(Change::InTransaction).await;
}

#[tokio::test]
async fn what_a_function_leaves_is_nobody_elses_when_a_transaction_that_goes_on_has_replaced_it() {
    what_new_code_leaves_is_nobody_elses(Change::InChain).await;
}

#[tokio::test]
async fn what_a_function_leaves_is_nobody_elses_when_the_answer_of_what_replaced_it_was_lost() {
    what_new_code_leaves_is_nobody_elses(Change::InLostString).await;
}

#[tokio::test]
async fn what_a_function_leaves_is_nobody_elses_while_the_string_that_replaced_it_goes_on() {
    what_new_code_leaves_is_nobody_elses(Change::InString).await;
}

/// A proxy that reaches the primary over a link, and two sessions with a connection each to it.
async fn over_a_link(database: &Database<'_>) -> (Proxy, Link, [Session; 2]) {
    let cluster = cluster::shared();
    let link = Link::to(&cluster.node(0).address());
    let nodes: Vec<_> = [link.address()].into_iter().chain(cluster.addresses().into_iter().skip(1)).collect();
    let settings = [
        "cluster.pool.size = 2",
        "cluster.monitor.timeout = '15s'",
        "cluster.monitor.catalog_refresh = '1h'",
    ];
    let proxy = Proxy::start_unready(&nodes, &settings);
    let replicas: Vec<_> = cluster.nodes()[1..].iter().map(|node| node.port()).collect();
    proxy.wait_until_reads_use(&replicas).await;
    let sessions = [proxy.session(&database.name).await, proxy.session(&database.name).await];
    for session in &sessions {
        session.run("BEGIN; SELECT txid_current()").await;
    }
    for session in &sessions {
        session.run("COMMIT").await;
    }
    (proxy, link, sessions)
}

#[tokio::test]
async fn what_a_function_leaves_is_nobody_elses_before_the_answer_of_what_replaced_it_has_come() {
    let define = |body: &str| {
        format!("CREATE OR REPLACE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT {body} $$")
    };
    let database = Database::with(cluster::shared(), &define("'nothing'"));
    let (proxy, link, [migration, user]) = over_a_link(&database).await;
    link.delay(Duration::from_secs(3));
    let dirty = define("set_config('app.tenant', '7', false)");
    let migration = tokio::spawn(async move { migration.run(&dirty).await });
    eventually("it is committed", async || database.ask(0, "SELECT f()") == "7").await;
    link.delay(Duration::ZERO);

    user.run("/* pointsman: primary */ SELECT f()").await;
    assert!(!migration.is_finished(), "its answer is on its way");
    drop(user);

    nobody_has_a_tenant(&proxy, &database, 2.0).await;
    migration.await.expect("it does not panic");
}

#[tokio::test]
async fn what_a_default_leaves_is_nobody_elses_as_soon_as_its_client_may_tell_others_of_it() {
    let sql = "CREATE FUNCTION sets() RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant', '7', false) $$;
               CREATE TABLE t (x text, y int)";
    let database = Database::with(cluster::shared(), sql);
    let (proxy, link, [_, user]) = over_a_link(&database).await;
    let direct = Session::open(&superuser_of(&database)).await;
    direct.run("BEGIN; LOCK TABLE t IN ACCESS SHARE MODE").await;
    let mut migration = Wire::login(proxy.port(), APP, &database.name).await;
    migration.send(&Batch::new().query("ALTER TABLE t ALTER x SET DEFAULT sets()")).await;
    let waits = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND NOT granted";
    eventually("it waits", async || database.ask(0, waits) == "1").await;

    // The session waits for the end of a cancel request before it learns from the answer.
    link.hold_new();
    let (port, key) = (proxy.port(), migration.key.clone());
    let cancelled = tokio::spawn(async move { wire::cancel(port, &key).await });
    eventually("the request is on its way", async || link.held() > 0).await;
    direct.run("COMMIT").await;
    assert_eq!(tags(&migration.until_ready().await), "CZ");
    user.run("INSERT INTO t (y) VALUES (1)").await;
    drop(user);

    nobody_has_a_tenant(&proxy, &database, 2.0).await;
    link.let_in();
    cancelled.await.expect("it does not panic");
}

#[tokio::test]
async fn what_code_leaves_that_no_statement_names_is_nobody_elses() {
    let sets = "LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('app.tenant', '7', false)";
    let cases = [
        ("CREATE TABLE indexed (x int); CREATE INDEX ON indexed (sets(x))", "INSERT INTO indexed VALUES (1)"),
        (
            "CREATE TABLE parted (x int) PARTITION BY LIST (sets(x)); CREATE TABLE part PARTITION OF parted DEFAULT",
            "INSERT INTO parted VALUES (1)",
        ),
        (
            "CREATE TABLE watched (x int);
             CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER t BEFORE INSERT ON watched FOR EACH ROW WHEN (sets(NEW.x)) EXECUTE FUNCTION nothing()",
            "INSERT INTO watched VALUES (1)",
        ),
        ("CREATE DOMAIN checked AS int CHECK (sets(VALUE))", "SELECT 1::checked"),
        ("CREATE TABLE checks (x checked)", "INSERT INTO checks VALUES (1)"),
        ("CREATE TABLE arrays (x checked[])", "INSERT INTO arrays VALUES (array[1])"),
        ("CREATE VIEW behind AS SELECT x FROM checks", "INSERT INTO behind VALUES (1)"),
        (
            "CREATE DOMAIN given AS int DEFAULT number(); CREATE TABLE gives (x int, y given)",
            "INSERT INTO gives (x) VALUES (1)",
        ),
        ("CREATE FUNCTION takes(checked) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1::int'", "SELECT takes(1)"),
        (
            "CREATE FUNCTION local() RETURNS int LANGUAGE plpgsql STABLE AS 'DECLARE x checked := 1; BEGIN RETURN x; END'",
            "SELECT local()",
        ),
        (
            "CREATE FUNCTION fills(x int DEFAULT number()) RETURNS int LANGUAGE sql STABLE AS 'SELECT x'",
            "SELECT fills()",
        ),
        ("CREATE OPERATOR !!! (RIGHTARG = int, FUNCTION = sets)", "SELECT !!! 1"),
        (
            "CREATE TYPE pair AS (a int); CREATE FUNCTION number(pair) RETURNS int LANGUAGE sql STABLE AS 'SELECT number()';
             CREATE CAST (pair AS int) WITH FUNCTION number(pair)",
            "SELECT row(1)::pair::int",
        ),
    ];
    let mut sql = format!(
        "CREATE FUNCTION sets(int) RETURNS bool IMMUTABLE {sets}; RETURN true; END $$;
         CREATE FUNCTION number() RETURNS int STABLE {sets}; RETURN 1; END $$;"
    );
    for (define, _) in &cases {
        sql += define;
        sql += ";";
    }
    let cluster = cluster::shared();
    let database = Database::with(cluster, &sql);
    let proxy = Proxy::start(cluster, &["cluster.pool.size = 1"]).await;

    for (_, statement) in cases {
        let session = proxy.session(&database.name).await;
        session.run(&format!("/* pointsman: primary */ {statement}")).await;
        let tenant = session.value("/* pointsman: primary */ SELECT current_setting('app.tenant')").await;
        assert_eq!(tenant, "7", "{statement}");
        drop(session);
        nobody_has_a_tenant(&proxy, &database, 1.0).await;
    }
}

#[tokio::test]
async fn what_a_replaced_function_leaves_is_nobody_elses_however_its_call_was_prepared_before() {
    let define = |body: &str| {
        format!("CREATE OR REPLACE FUNCTION f() RETURNS text LANGUAGE sql STABLE AS $$ SELECT {body} $$")
    };
    let cluster = cluster::shared();
    let database = Database::with(cluster, &define("'nothing'"));
    let proxy = Proxy::start(cluster, &["cluster.pool.size = 2"]).await;
    let mut users = Vec::new();
    // Asked of the primary, where the function is replaced at once.
    let sql = "SELECT f(), pg_is_in_recovery()";
    for (prepare, execute) in [
        (Batch::new().query(&format!("PREPARE s AS {sql}")), Batch::new().query("EXECUTE s")),
        (Batch::new().query(&format!("PREPARE s AS {sql}")), Batch::new().run("EXECUTE s", &[]).sync()),
        (Batch::new().parse("s", sql).sync(), Batch::new().bind("", "s", &[]).execute("", 0).sync()),
        (Batch::new().parse("", sql).sync(), Batch::new().bind("", "", &[]).execute("", 0).sync()),
    ] {
        let mut user = Wire::login(proxy.port(), APP, &database.name).await;
        user.ask(&prepare).await;
        assert_eq!(first_columns(&user.ask(&execute).await), ["nothing"]);
        users.push((user, execute));
    }

    let migration = proxy.session(&database.name).await;
    migration.run(&define("set_config('app.tenant', '7', false)")).await;
    eventually("the catalog is read again", async || {
        let other = proxy.session(&database.name).await;
        other.run("/* pointsman: primary */ SELECT f()").await;
        proxy.metric("pointsman_pins_total", &["function"]) > 0.0
    })
    .await;

    while let Some((mut user, execute)) = users.pop() {
        assert_eq!(first_columns(&user.ask(&execute).await), ["7"]);
        drop(user);
        nobody_has_a_tenant(&proxy, &database, 2.0 + users.len() as f64).await;
    }
}

#[tokio::test]
async fn sessions_that_begin_after_a_default_was_changed_have_it_wherever_they_ask() {
    let cluster = cluster::shared();
    let database = Database::create(cluster);
    let proxy = Proxy::start(cluster, &[]).await;
    let session = proxy.session(&database.name).await;
    let on_all: Vec<String> = cluster
        .addresses()
        .iter()
        .map(|address| format!("/* pointsman: node={address} */ SELECT current_setting('TimeZone')"))
        .collect();
    for sql in &on_all {
        session.value(sql).await;
    }

    for zone in ["Asia/Karachi", "Asia/Tashkent"] {
        let change = format!("ALTER DATABASE {} SET TimeZone = '{zone}'", database.name);
        session.run(&format!("BEGIN; {change}; COMMIT")).await;
        let position = session.value("SHOW pointsman.position").await;

        let new = proxy.session(&database.name).await;
        new.run(&format!("SET pointsman.position = '{position}'")).await;
        for sql in &on_all {
            assert_eq!(new.value(sql).await, zone, "{sql}");
        }
    }

    session.run(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", database.name)).await;

    let new = proxy.session(&database.name).await;
    new.run("BEGIN").await;
    assert_ne!(new.port().await, cluster.node(0).port(), "its transactions only read");
    new.run("COMMIT").await;
    assert_eq!(new.error("CREATE TABLE t (x int)").await, "25006");
}

/// A setting of the database for sessions that begin, with what shows it on every node.
fn zone_everywhere(cluster: &PgCluster) -> Vec<String> {
    let show =
        |address: String| format!("/* pointsman: node={address} */ SELECT current_setting('TimeZone')");
    cluster.addresses().into_iter().map(show).collect()
}

#[tokio::test]
async fn a_default_that_was_changed_past_the_proxy_is_known_with_the_next_reading() {
    let cluster = cluster::shared();
    let database = Database::create(cluster);
    let proxy = Proxy::start(cluster, &["cluster.monitor.catalog_refresh = '200ms'"]).await;
    let session = proxy.session(&database.name).await;
    let on_all = zone_everywhere(cluster);
    for sql in &on_all {
        session.value(sql).await;
    }
    eventually("the catalog was read once and more", async || {
        database.calls("FROM pg_catalog.pg_event_trigger").on_primary() > 1
    })
    .await;

    for zone in ["Asia/Karachi", "Asia/Tashkent"] {
        database.ask(0, &format!("ALTER DATABASE {} SET TimeZone = '{zone}'", database.name));

        for sql in &on_all {
            eventually("sessions that begin have it", async || {
                proxy.session(&database.name).await.value(sql).await == zone
            })
            .await;
        }
    }
}

/// A login asks a server what its session begins with, and the server is slow to answer: what it says is
/// of before.
#[tokio::test]
async fn what_a_session_is_told_that_began_before_a_default_was_changed_is_not_told_to_others() {
    let cluster = cluster::shared();
    let database = Database::create(cluster);
    let proxy = Proxy::start(cluster, &[]).await;
    let session = proxy.session(&database.name).await;
    let on_all = zone_everywhere(cluster);
    for sql in &on_all {
        session.value(sql).await;
    }
    // What checks this setting reads a catalog of its database.
    let options = "options='-c default_text_search_config=pg_catalog.simple'";
    let dsn = format!("{} {options}", proxy.dsn(&database.name));
    let locker = Session::open(&superuser_of(&database)).await;
    locker.run("BEGIN; LOCK TABLE pg_ts_config IN ACCESS EXCLUSIVE MODE").await;
    let locks = |node: usize, which: &str| {
        let locks = "SELECT count(*) FROM pg_locks WHERE relation = 'pg_ts_config'::regclass";
        database.ask(node, &format!("{locks} AND {which}")) != "0"
    };
    // Replicas are told of the lock with the next commit.
    database.ask(0, "SELECT pg_logical_emit_message(true, '', '')");
    eventually("it is locked everywhere", async || (0..3).all(|node| locks(node, "granted"))).await;
    let early = tokio::spawn({
        let dsn = dsn.clone();
        async move { Session::open(&dsn).await }
    });
    eventually("it waits for its greeting", async || (0..3).any(|node| locks(node, "NOT granted"))).await;

    session.run(&format!("ALTER DATABASE {} SET TimeZone = 'Asia/Karachi'", database.name)).await;
    session.run(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", database.name)).await;
    for sql in &on_all {
        eventually("every node has it", async || {
            proxy.session(&database.name).await.value(sql).await == "Asia/Karachi"
        })
        .await;
    }
    locker.run("COMMIT").await;
    early.await.expect("it is let in");

    let late = Session::open(&dsn).await;
    late.run("BEGIN").await;
    assert_ne!(late.port().await, cluster.node(0).port(), "its transactions only read");
}

#[tokio::test]
async fn a_catalog_is_read_however_little_time_statements_have() {
    let mut sql =
        "CREATE FUNCTION f() RETURNS int STABLE LANGUAGE sql AS 'SELECT inet_server_port()';".to_owned();
    for number in 0..300 {
        sql += &format!("CREATE FUNCTION f{number}() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';");
    }
    let stage = Stage::set(&sql, &[]).await;
    stage.database.run(&format!("ALTER DATABASE {} SET statement_timeout = '1ms'", stage.database.name));

    let dsn = format!("{} options='-c statement_timeout=0'", stage.proxy.dsn(&stage.database.name));
    let session = Session::open(&dsn).await;

    eventually("the catalog is read", async || {
        session.value("SELECT f()").await != stage.primary_port().to_string()
    })
    .await;
}

/// A view that leaves a setting behind, a function that only reads, in letters beyond ASCII.
const NAMED_IN_GERMAN: &str = r#"
    CREATE FUNCTION sets_tenant() RETURNS text LANGUAGE sql AS $$SELECT set_config('app.tenant', '42', false)$$;
    CREATE VIEW U&"v\00fc" AS SELECT sets_tenant() AS x;
    CREATE FUNCTION U&"r\00fc"() RETURNS int STABLE LANGUAGE sql AS 'SELECT inet_server_port()';"#;

async fn tenants(session: &Session) -> Vec<String> {
    let mut tenants = Vec::new();
    for hint in ["primary", "replica", "replica"] {
        let sql =
            format!("/* pointsman: {hint} */ SELECT coalesce(current_setting('app.tenant', true), '') AS x");
        tenants.push(session.value(&sql).await);
    }
    tenants
}

#[tokio::test]
async fn names_in_a_database_of_another_encoding_are_known() {
    let stage = Stage::set("", &["cluster.pool.size = 1", "cluster.routing.consistency = 'eventual'"]).await;
    let name = format!("{}_latin1", stage.database.name);
    let create = format!(
        "CREATE DATABASE {name} OWNER {} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
        APP.name
    );
    for (database, sql) in
        [("postgres", &*create), (&name, &format!("SET ROLE {}; {NAMED_IN_GERMAN}", APP.name))]
    {
        stage.cluster.node(0).sql(database, sql).expect("the server answers");
    }
    stage.cluster.wait_until_caught_up(0).expect("replicas replay");
    let session = stage.proxy.session(&name).await;

    let reads = r#"SELECT "rü"()"#;
    eventually("the catalog is read", async || {
        session.value(reads).await != stage.primary_port().to_string()
    })
    .await;

    for _ in 0..4 {
        let session = stage.proxy.session(&name).await;
        assert_eq!(session.value(r#"SELECT x FROM "vü""#).await, "42");
        drop(session);
        assert_eq!(tenants(&stage.proxy.session(&name).await).await, ["", "", ""]);
    }
}

#[tokio::test]
async fn names_of_a_client_of_another_encoding_are_not_taken_for_unknown_ones() {
    let settings = ["cluster.pool.size = 1", "cluster.routing.consistency = 'eventual'"];
    let stage = Stage::set(NAMED_IN_GERMAN, &settings).await;
    let other = stage.session().await;
    eventually("the catalog is read", async || {
        other.value(r#"SELECT "rü"()"#).await != stage.primary_port().to_string()
    })
    .await;

    for _ in 0..4 {
        let mut latin = stage.wire().await;
        latin.ask(&Batch::new().query("SET client_encoding = latin1")).await;
        let answer = latin.ask(&Batch::new().message(b'Q', b"SELECT x FROM \"v\xfc\"\0")).await;
        assert_eq!(tags(&answer), "TDCZ");
        drop(latin);
        assert_eq!(tenants(&other).await, ["", "", ""]);
    }
}

#[tokio::test]
async fn a_do_keeps_the_connection_if_its_body_may_leave_something() {
    let setup = "CREATE TABLE t (x int);
        CREATE FUNCTION works(given int) RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (given) RETURNING x';
        CREATE FUNCTION sets() RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN PERFORM set_config('app.tenant', '7', false); RETURN 1; END $$";
    let stage = Stage::set(setup, &["cluster.pool.size = 1"]).await;
    let pins_by = async |text: &str| {
        let session = stage.session().await;
        let pins = || stage.proxy.metric("pointsman_pins_total", &["reason=\"function\""]);
        let before = pins();
        session.run(text).await;
        session.value("SELECT 1").await;
        pins() - before
    };

    for (text, pins) in [
        ("DO $$ BEGIN INSERT INTO t VALUES (1); COMMIT; UPDATE t SET x = 2; END $$", 0.0),
        ("DO LANGUAGE plpgsql 'BEGIN PERFORM works(3); ROLLBACK; PERFORM works(4); END'", 0.0),
        (
            "DO $$ BEGIN CREATE TABLE IF NOT EXISTS u (x int); INSERT INTO u (x) VALUES (5); END $$ LANGUAGE plpgsql",
            0.0,
        ),
        ("DO $$ BEGIN PERFORM sets(); END $$", 1.0),
        ("DO $$ BEGIN SET app.tenant = '7'; END $$", 1.0),
        ("DO $$ BEGIN EXECUTE 'SET app.tenant = 7'; END $$", 1.0),
    ] {
        assert_eq!(pins_by(text).await, pins, "{text}");
    }
    let session = stage.session().await;
    let read = "/* pointsman: primary */ SELECT string_agg(x::text, ' ' ORDER BY x) FROM t";
    assert_eq!(session.value(read).await, "2 4", "they have done their work");
    assert_eq!(session.value("/* pointsman: primary */ SELECT x FROM u").await, "5");
    assert_eq!(
        session.value("/* pointsman: primary */ SELECT current_setting('app.tenant', true)").await,
        ""
    );
}

/// The server reads the strings of a body when it runs, by what was set just before.
#[tokio::test]
async fn what_a_do_sets_is_nobody_elses_however_its_strings_are_read() {
    let setup = "CREATE FUNCTION reads() RETURNS int STABLE LANGUAGE sql AS 'SELECT inet_server_port()'";
    let stage = Stage::set(setup, &["cluster.pool.size = 1"]).await;
    let other = stage.session().await;
    eventually("the catalog is read", async || {
        other.value("SELECT reads()").await != stage.primary_port().to_string()
    })
    .await;
    let hidden = r"DO $$ BEGIN PERFORM 'x\' || ' || set_config($q$app.tenant$q$, $q$7$q$, false) || 'y'; --'
         END $$";
    let string = format!("SET standard_conforming_strings = off; {hidden}");
    let tenant = "/* pointsman: primary */ SELECT current_setting('app.tenant', true)";

    let session = stage.session().await;
    session.run(&string).await;
    assert_eq!(session.value(tenant).await, "7");
    drop(session);
    assert_eq!(other.value(tenant).await, "");

    // Prepared while they were read in the other way.
    let mut wire = stage.wire().await;
    wire.ask(&Batch::new().parse("hidden", hidden).sync()).await;
    wire.ask(&Batch::new().query("SET standard_conforming_strings = off")).await;
    let answer = wire.ask(&Batch::new().bind("", "hidden", &[]).execute("", 0).sync()).await;
    assert!(tags(&answer).ends_with("CZ"), "{}", tags(&answer));
    drop(wire);
    assert_eq!(other.value(tenant).await, "");
}

/// Waits until a DO that leaves nothing keeps no connection.
async fn wait_for_catalog(stage: &Stage, session: &Session) {
    eventually("the catalog is read", async || {
        let pins = || stage.proxy.metric("pointsman_pins_total", &["reason=\"function\""]);
        let before = pins();
        session.run("DO $$ BEGIN NULL; END $$").await;
        pins() == before
    })
    .await;
}

/// No catalog tells of it before it is read again.
#[tokio::test]
async fn what_code_sets_that_a_procedure_has_replaced_is_nobody_elses() {
    let setup = "CREATE FUNCTION harmless() RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
        CREATE PROCEDURE replaces() LANGUAGE plpgsql AS $$ BEGIN
        CREATE OR REPLACE FUNCTION harmless() RETURNS text LANGUAGE sql AS
        $f$ SELECT set_config('app.tenant', '7', false) $f$; END $$";
    let stage = Stage::set(setup, &["cluster.pool.size = 1", "cluster.monitor.catalog_refresh = '1h'"]).await;
    let other = stage.session().await;
    wait_for_catalog(&stage, &other).await;

    let session = stage.session().await;
    session.run("CALL replaces()").await;
    session.run("SELECT harmless()").await;
    drop(session);

    let tenant = "/* pointsman: primary */ SELECT current_setting('app.tenant', true)";
    assert_eq!(other.value(tenant).await, "");
}

#[tokio::test]
async fn code_that_gives_up_statements_gives_up_nobody_elses() {
    let setup =
        "CREATE FUNCTION forgets() RETURNS int LANGUAGE plpgsql AS $$ BEGIN DEALLOCATE ALL; RETURN 1; END $$";
    let stage = Stage::set(setup, &["cluster.pool.size = 1"]).await;
    let other = stage.session().await;
    wait_for_catalog(&stage, &other).await;

    for code in ["SELECT forgets()", "DO $$ BEGIN DEALLOCATE ALL; END $$"] {
        let mut keeper = stage.wire().await;
        let prepare = Batch::new().parse("kept", "/* pointsman: primary */ SELECT 5").sync();
        keeper.ask(&prepare).await;
        let run = Batch::new().bind("", "kept", &[]).execute("", 0).sync();
        assert_eq!(first_columns(&keeper.ask(&run).await), ["5"]);
        let session = stage.session().await;
        session.run(code).await;
        drop(session);

        assert_eq!(first_columns(&keeper.ask(&run).await), ["5"], "{code}");
    }
}

#[tokio::test]
async fn a_function_that_asks_for_what_a_server_is_is_asked_as_the_servers_own_is() {
    let setup = "CREATE FUNCTION reads() RETURNS int STABLE LANGUAGE sql AS 'SELECT inet_server_port()';
        CREATE FUNCTION recovering() RETURNS bool STABLE LANGUAGE sql AS 'SELECT pg_is_in_recovery()';
        CREATE FUNCTION role() RETURNS text STABLE LANGUAGE plpgsql AS
        $$ BEGIN RETURN CASE WHEN recovering() THEN 'replica' ELSE 'primary' END; END $$;
        CREATE FUNCTION read_only() RETURNS text STABLE LANGUAGE sql AS
        $$ SELECT current_setting('transaction_read_only') $$;
        CREATE FUNCTION busy() RETURNS int STABLE LANGUAGE sql AS
        $$ SELECT inet_server_port() FROM pg_stat_activity LIMIT 1 $$;
        CREATE FUNCTION parsed() RETURNS bool STABLE RETURN pg_is_in_recovery();
        CREATE FUNCTION vouched() RETURNS bool STABLE LANGUAGE sql AS 'SELECT pg_is_in_recovery()';
        CREATE FUNCTION outer_vouched() RETURNS bool STABLE LANGUAGE sql AS 'SELECT vouched()'";
    let stage = Stage::set(setup, &["cluster.routing.read_functions = ['vouched']"]).await;
    let session = stage.session().await;
    let primary = stage.primary_port().to_string();
    eventually("the catalog is read", async || session.value("SELECT reads()").await != primary).await;

    for _ in 0..8 {
        for (call, answer) in [
            ("recovering()", "f"),
            ("role()", "primary"),
            ("read_only()", "off"),
            ("busy()", primary.as_str()),
            ("parsed()", "f"),
        ] {
            assert_eq!(session.value(&format!("SELECT {call}")).await, answer, "{call}");
        }
    }
    let reader = stage.session().await;
    for _ in 0..8 {
        for call in ["vouched()", "outer_vouched()"] {
            assert_eq!(reader.value(&format!("SELECT {call}")).await, "t", "{call}");
        }
    }
}

#[tokio::test]
async fn what_a_function_of_an_odd_name_sets_is_nobody_elses() {
    let setup = r#"CREATE FUNCTION "set-it"() RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant', '7', false) $$;
        CREATE FUNCTION set$it() RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant', '8', false) $$;
        CREATE FUNCTION calls() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN "set-it"(); END $$;
        CREATE FUNCTION calls_too() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN set$it(); END $$;
        CREATE FUNCTION reads() RETURNS int STABLE LANGUAGE sql AS 'SELECT inet_server_port()'"#;
    let stage = Stage::set(setup, &["cluster.pool.size = 1"]).await;
    let other = stage.session().await;
    eventually("the catalog is read", async || {
        other.value("SELECT reads()").await != stage.primary_port().to_string()
    })
    .await;

    for call in ["SELECT calls()", "SELECT calls_too()"] {
        let session = stage.session().await;
        session.run(call).await;
        drop(session);
        let tenant = "/* pointsman: primary */ SELECT current_setting('app.tenant', true)";
        assert_eq!(other.value(tenant).await, "", "{call}");
    }
}

#[tokio::test]
async fn what_a_function_sets_or_locks_is_there_for_what_comes_next_whatever_it_is_declared_as() {
    let setup = "CREATE FUNCTION reads() RETURNS int STABLE LANGUAGE plpgsql AS
        $$ DECLARE port int; BEGIN EXECUTE 'SELECT inet_server_port()' INTO port; RETURN port; END $$;
        CREATE FUNCTION tenant(text) RETURNS text STABLE LANGUAGE sql AS
        $$ SELECT set_config('app.tenant', $1, false) $$;
        CREATE FUNCTION outer_tenant(text) RETURNS text STABLE LANGUAGE sql AS $$ SELECT tenant($1) $$;
        CREATE FUNCTION locks() RETURNS bool STABLE LANGUAGE sql AS $$ SELECT pg_try_advisory_lock(4711) $$";
    let stage = Stage::set(setup, &[]).await;
    eventually("the catalog is read", async || {
        let port = stage.session().await.value("SELECT reads()").await;
        port != cluster::shared().node(0).port().to_string()
    })
    .await;

    for call in ["SELECT tenant('7')", "SELECT outer_tenant('7')"] {
        let session = stage.session().await;
        session.run(call).await;
        for _ in 0..5 {
            assert_eq!(session.value("SELECT current_setting('app.tenant', true)").await, "7", "{call}");
        }
    }
    let (first, second) = (stage.session().await, stage.session().await);
    assert_eq!(first.value("SELECT locks()").await, "t");
    for _ in 0..5 {
        assert_eq!(second.value("SELECT locks()").await, "f");
    }
}

#[tokio::test]
async fn a_procedure_keeps_the_connection_if_it_may_leave_something() {
    let setup = "CREATE TABLE t (x int);
        CREATE PROCEDURE works(given int) LANGUAGE plpgsql AS
        $$ DECLARE one int; BEGIN INSERT INTO t VALUES (given); COMMIT; one := given; UPDATE t SET x = one; END $$;
        CREATE PROCEDURE works_twice() LANGUAGE plpgsql AS $$ BEGIN CALL works(1); CALL works(2); END $$;
        CREATE FUNCTION sets() RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN PERFORM set_config('app.tenant', '7', false); RETURN 1; END $$;
        CREATE PROCEDURE has_set() LANGUAGE plpgsql AS $$ BEGIN PERFORM sets(); END $$";
    let stage = Stage::set(setup, &[]).await;
    // Counted by the time that what comes behind it is answered.
    let pins_by = async |call: &str| {
        let session = stage.session().await;
        let pins = || stage.proxy.metric("pointsman_pins_total", &["reason=\"function\""]);
        let before = pins();
        session.run(call).await;
        session.value("SELECT 1").await;
        pins() - before
    };

    for (call, pins) in [
        ("CALL works(1)", 0.0),
        ("CALL works_twice()", 0.0),
        ("CALL has_set()", 1.0),
        ("CALL works(sets())", 1.0),
    ] {
        assert_eq!(pins_by(call).await, pins, "{call}");
    }
    // Another session may read behind what these wrote.
    let read = "/* pointsman: primary */ SELECT count(*) FROM t";
    assert_eq!(stage.session().await.value(read).await, "4", "they have done their work");
}
