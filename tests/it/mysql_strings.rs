//! Strings of several statements before real servers: each is read, and done, when the one before has run.

use crate::{
    both_makes,
    support::mysql::{Make, Stage},
};

both_makes!(
    what_the_server_reads_by_modes_that_a_string_set_is_no_read,
    what_stands_behind_a_body_leaves_nothing_to_others,
);

const TABLE: &str = "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT)";
/// Sessions take turns with one connection.
const ONE: &[&str] = &["cluster.pool.size = 1"];

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
