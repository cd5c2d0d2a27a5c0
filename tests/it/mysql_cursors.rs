//! Cursors of MySQL's protocol before real servers: what their end leaves, and what it does not.

use pointsman::mysql::command::code;

use crate::{
    both_makes,
    support::mysql::{Make, Session, Stage},
};

both_makes!(
    a_cursors_end_leaves_an_open_handler_where_it_is,
    the_last_insert_id_outlives_a_cursor,
    a_cursors_end_frees_the_connection_whatever_follows_it,
    the_proxy_is_asked_behind_a_cursors_end,
    a_cursor_is_the_sessions_that_opened_it,
);

const TABLE: &str =
    "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT); INSERT INTO t (x) VALUES (7), (8), (9)";

const ONE: &[&str] = &["cluster.pool.size = 1", "cluster.pool.checkout_timeout = '1s'"];

/// Opens a cursor on the first statement that the session prepares.
async fn open_cursor(session: &mut Session) {
    session.exchange(code::STMT_PREPARE, b"SELECT x FROM t ORDER BY id").await.expect("it is prepared");
    session.exchange(code::STMT_EXECUTE, &[1, 0, 0, 0, 1, 1, 0, 0, 0]).await.expect("it runs");
}

/// Fetches from it, and returns how many packets came.
async fn fetch(session: &mut Session, rows: u8) -> usize {
    session.exchange(code::STMT_FETCH, &[1, 0, 0, 0, rows, 0, 0, 0]).await.expect("rows").len()
}

/// That has no answer.
async fn close_cursor(session: &mut Session) {
    session.send(code::STMT_CLOSE, &[1, 0, 0, 0]).await;
}

/// A session that has just closed its cursor.
async fn behind_a_cursor(stage: &Stage) -> Session {
    let mut session = stage.session().await;
    open_cursor(&mut session).await;
    close_cursor(&mut session).await;
    session
}

async fn a_cursors_end_leaves_an_open_handler_where_it_is(make: Make) {
    let stage = Stage::on(make, TABLE, &[]).await;
    let mut session = stage.session().await;
    session.run("HANDLER t OPEN").await;
    open_cursor(&mut session).await;
    close_cursor(&mut session).await;
    session.run("SELECT 1").await;

    assert_eq!(session.value("HANDLER t READ FIRST").await, "1");
    assert_eq!(session.value("HANDLER t READ NEXT").await, "2");
}

async fn the_last_insert_id_outlives_a_cursor(make: Make) {
    let stage = Stage::on(make, TABLE, &[]).await;
    let mut session = stage.session().await;
    let id = session.run("INSERT INTO t (x) VALUES (10)").await.insert_id;
    open_cursor(&mut session).await;
    close_cursor(&mut session).await;

    session.run("SELECT 1").await;
    assert_eq!(session.value("SELECT LAST_INSERT_ID()").await, id.to_string());
}

async fn a_cursors_end_frees_the_connection_whatever_follows_it(make: Make) {
    let stage = Stage::on(make, TABLE, ONE).await;
    let (mut other, mut session) = (stage.session().await, behind_a_cursor(&stage).await);

    assert_eq!(session.error("SELECT nonsense FROM t").await, 1054);
    session.run("SELECT 1").await;
    other.run("INSERT INTO t (x) VALUES (1)").await;
}

async fn the_proxy_is_asked_behind_a_cursors_end(make: Make) {
    let stage = Stage::on(make, TABLE, ONE).await;
    let (mut other, mut session) = (stage.session().await, behind_a_cursor(&stage).await);

    assert_eq!(session.value("SELECT @pointsman_consistency").await, "session");
    assert_eq!(session.error("KILL 4000000000").await, 1094);
    session.run("SELECT 1").await;
    other.run("INSERT INTO t (x) VALUES (1)").await;
}

async fn a_cursor_is_the_sessions_that_opened_it(make: Make) {
    let stage = Stage::on(make, TABLE, ONE).await;
    let (mut session, mut other) = (stage.session().await, stage.session().await);
    open_cursor(&mut session).await;
    assert_eq!(fetch(&mut session, 1).await, 2);
    close_cursor(&mut session).await;
    session.run("SELECT 1").await;

    // On the same server connection, of the same text.
    open_cursor(&mut other).await;
    assert_eq!(fetch(&mut other, 2).await, 3);
    assert_eq!(fetch(&mut other, 5).await, 2);
    close_cursor(&mut other).await;
    other.run("SELECT 1").await;
    session.run("INSERT INTO t (x) VALUES (1)").await;
}
