//! Strings of several statements before real servers: each is read, and done, when the one before has run.

use pointsman::demo::servers::APP;

use crate::{
    both_makes,
    support::mysql::{Make, Session, Stage},
};

both_makes!(
    what_a_string_did_before_it_failed_stays_done,
    a_string_that_fails_leaves_names_that_it_did_not_come_to,
    a_string_turns_autocommit_off_also_where_it_fails_behind,
    what_the_server_reads_by_modes_that_a_string_set_is_no_read,
    what_stands_behind_a_body_leaves_nothing_to_others,
);

const TABLE: &str = "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT)";
/// Sessions take turns with one connection.
const ONE: &[&str] = &["cluster.pool.size = 1"];

/// A session with the primary itself.
async fn direct(stage: &Stage) -> Session {
    Session::open(stage.primary_port(), APP, &stage.schema).await
}

async fn what_a_string_did_before_it_failed_stays_done(make: Make) {
    let stage = Stage::on(make, TABLE, ONE).await;
    let mut other = stage.session().await;
    for (string, asks) in [
        ("SET @@sql_mode = 'ANSI_QUOTES'; SELECT nope", r#"SELECT @@sql_mode AS "x""#),
        (
            "SET time_zone = '+01:00'; SET time_zone = '+02:00'; SELECT nope; SET time_zone = '+03:00'",
            "SELECT @@time_zone",
        ),
        ("SET NAMES latin1; SELECT 1; SELECT nope", "SELECT @@character_set_client"),
        ("SET sql_mode = CONCAT(@@sql_mode, ',ANSI_QUOTES'); SELECT nope", "SELECT @@sql_mode"),
        ("SET @a = 5; SELECT nope", "SELECT @a"),
        ("USE information_schema; SELECT nope", "SELECT DATABASE()"),
        ("PREPARE s FROM 'SELECT 7'; SELECT nope", "EXECUTE s"),
        ("PREPARE s FROM 'SET @b = 6'; EXECUTE s; SELECT nope", "SELECT @b"),
    ] {
        let (mut session, mut server) = (stage.session().await, direct(&stage).await);
        assert_eq!(session.error(string).await, 1054, "{string}");
        assert_eq!(server.error(string).await, 1054, "{string}");
        let wanted = server.value(asks).await;
        for hint in ["", "/* pointsman: primary */ "] {
            other.run("/* pointsman: primary */ SELECT 1").await;
            assert_eq!(session.value(&format!("{hint}{asks}")).await, wanted, "{string}");
        }
    }
}

async fn a_string_that_fails_leaves_names_that_it_did_not_come_to(make: Make) {
    let stage = Stage::on(make, TABLE, ONE).await;
    let mut other = stage.session().await;
    for (string, errno) in [
        ("SELECT nope; DEALLOCATE PREPARE s", 1054),
        ("SELECT nope; PREPARE s FROM 'SELECT 8'", 1054),
        ("SET @a = 1; SELECT nope; PREPARE s FROM 'SELECT 8'", 1054),
    ] {
        let mut session = stage.session().await;
        session.run("PREPARE s FROM 'SELECT 7'").await;
        assert_eq!(session.error(string).await, errno, "{string}");
        other.run("/* pointsman: primary */ SELECT 1").await;
        assert_eq!(session.value("EXECUTE s").await, "7", "{string}");
    }

    let mut session = stage.session().await;
    session.run("PREPARE s FROM 'SELECT 7'").await;
    assert_eq!(session.error("SET @a = 1; PREPARE s FROM 'nonsense'").await, 1064);
    assert_eq!(session.error("EXECUTE s").await, 1243, "what had the name is gone");
}

async fn a_string_turns_autocommit_off_also_where_it_fails_behind(make: Make) {
    let stage = Stage::on(make, TABLE, &[]).await;
    let mut other = stage.session().await;
    for (string, fails) in
        [("SET autocommit = 0; SELECT nope", true), ("SET autocommit = 0; SELECT COUNT(*) FROM t", false)]
    {
        let mut session = stage.session().await;
        assert_eq!(session.query(string).await.is_err(), fails, "{string}");
        other.run("/* pointsman: primary */ SELECT 1").await;
        session.run("INSERT INTO t (x) VALUES (1)").await;
        session.run("ROLLBACK").await;
        assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "0", "{string}");
    }
}

async fn what_the_server_reads_by_modes_that_a_string_set_is_no_read(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT); INSERT INTO t VALUES (1)", ONE).await;
    let mut session = stage.session().await;

    session.run(r"SET sql_mode = 'NO_BACKSLASH_ESCAPES'; SELECT '\'; DELETE FROM t -- '").await;

    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "0");
    drop(session);
    let mut session = stage.session().await;
    session.run(r"SET sql_mode = 'NO_BACKSLASH_ESCAPES'; SELECT '\'; SET time_zone = '+05:00' -- '").await;
    assert_eq!(session.value("SELECT @@time_zone").await, "+05:00");
    drop(session);
    let mut next = stage.session().await;
    let asks =
        "/* pointsman: primary */ SELECT @@time_zone = @@GLOBAL.time_zone, @@sql_mode = @@GLOBAL.sql_mode";
    assert_eq!(next.run(asks).await.results[0][0], [Some("1".into()), Some("1".into())]);
}

async fn what_stands_behind_a_body_leaves_nothing_to_others(make: Make) {
    let stage = Stage::on(make, TABLE, ONE).await;
    let mut strings = vec!["CREATE PROCEDURE p() BEGIN SELECT 1; END; SET time_zone = '+07:00'"];
    if make == Make::MariaDb {
        strings.push("IF TRUE THEN SET time_zone = '+05:00'; END IF");
    }
    for string in strings {
        let mut session = stage.session().await;
        session.run(string).await;
        assert_ne!(session.value("SELECT @@time_zone").await, "+00:00", "{string}");
        drop(session);
        let mut next = stage.session().await;
        let asks = "/* pointsman: primary */ SELECT @@time_zone = @@GLOBAL.time_zone";
        assert_eq!(next.value(asks).await, "1", "{string}");
    }
}
