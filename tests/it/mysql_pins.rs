//! What keeps a MySQL session's connection: locks, user variables, and what code leaves.

use pointsman::demo::servers::{APP, MONITOR};

use crate::{
    both_makes,
    support::{
        eventually,
        mysql::{self, Make, ONE, Session, Stage},
    },
};

both_makes!(
    what_pins_stays_with_its_session,
    what_is_set_for_the_next_statement_stays_with_its_session,
    what_a_function_locks_or_sets_is_there_for_what_comes_next,
    what_a_function_asks_of_the_primary_is_asked_there,
    a_variable_has_what_a_read_only_transaction_gave_it,
    a_backup_lock_ends_with_its_session,
    what_a_new_view_locks_ends_with_its_session,
    what_a_view_locks_ends_with_its_session_whether_its_definition_is_shown_or_not,
    a_lock_is_told_to_be_the_sessions_own,
    what_stands_behind_a_comment_for_newer_servers_is_read,
    what_stands_behind_a_variable_of_an_odd_name_is_read,
);

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

/// Key caches may have any name, and one that nobody made answers as well.
async fn what_stands_behind_a_variable_of_an_odd_name_is_read(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", ONE).await;
    let name = format!("{}.lock", stage.schema);
    let mut session = stage.session().await;

    session.run(&format!(r#"SELECT @@`a b`.key_buffer_size, GET_LOCK("{name}", 0) -- `"#)).await;
    drop(session);

    let other = tokio::sync::Mutex::new(stage.session().await);
    let free = format!("/* pointsman: primary */ SELECT IS_FREE_LOCK('{name}')");
    eventually("the lock is released", async || other.lock().await.value(&free).await == "1").await;
}

/// To a server that skips it, such a comment ends in what is a string to one that does not.
async fn what_stands_behind_a_comment_for_newer_servers_is_read(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", ONE).await;
    let name = format!("{}.lock", stage.schema);
    let mut session = stage.session().await;

    let hidden = format!(r#"SELECT /*!999999 ' */ GET_LOCK("{name}", 0) -- ' */"#);
    assert_eq!(session.value(&hidden).await, "1");
    drop(session);

    let other = tokio::sync::Mutex::new(stage.session().await);
    let free = format!("/* pointsman: primary */ SELECT IS_FREE_LOCK('{name}')");
    eventually("the lock is released", async || other.lock().await.value(&free).await == "1").await;
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

async fn what_a_function_asks_of_the_primary_is_asked_there(make: Make) {
    let code = "CREATE TABLE t (x INT); INSERT INTO t VALUES (9);
        CREATE FUNCTION harmless() RETURNS INT NO SQL RETURN @@port;
        CREATE FUNCTION is_read_only() RETURNS INT NO SQL RETURN @@read_only;
        CREATE FUNCTION is_free(name VARCHAR(64)) RETURNS INT NO SQL RETURN IS_FREE_LOCK(name);
        CREATE FUNCTION gives_up() RETURNS INT NO SQL RETURN RELEASE_ALL_LOCKS();
        CREATE FUNCTION shares() RETURNS INT READS SQL DATA
        RETURN (SELECT @@port FROM t LIMIT 1 LOCK IN SHARE MODE)";
    let stage = Stage::on(make, code, &[]).await;
    let primary = stage.primary_port().to_string();
    let name = format!("{}.lock", stage.schema);
    let (mut holder, mut other) = (stage.session().await, stage.session().await);
    holder.run(&format!("SELECT GET_LOCK('{name}', 0)")).await;

    for _ in 0..6 {
        assert_eq!(other.value("SELECT is_read_only()").await, "0");
        assert_eq!(other.value(&format!("SELECT is_free('{name}')")).await, "0");
        assert_eq!(other.value("SELECT shares()").await, primary);
    }
    assert_eq!(holder.value("SELECT gives_up()").await, "1");
    let mut reader = stage.session().await;
    assert_ne!(reader.value("SELECT harmless()").await, primary);
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
