//! What is longer than the proxy gathers before it passes it on, on MariaDB and MySQL 9.

use pointsman::mysql::command::GATHERED;

use crate::{
    both_makes,
    support::mysql::{Make, Stage},
};

both_makes!(
    what_stands_far_behind_in_a_long_statement_counts,
    a_long_statement_has_the_number_of_its_clients_connection,
);

/// Blanks, so many that what follows them has not arrived when the statement is passed on.
fn far() -> String {
    " ".repeat(4 * GATHERED)
}

async fn what_stands_far_behind_in_a_long_statement_counts(make: Make) {
    let body = "BEGIN INSERT INTO t VALUES (x); RETURN x; END";
    let tables = format!(
        "CREATE TABLE t (x INT); CREATE TABLE one (x INT); INSERT INTO one VALUES (1);
         CREATE FUNCTION keep(x INT) RETURNS INT DETERMINISTIC {body}"
    );
    let stage = Stage::on(make, &tables, &[]).await;
    let (far, lock) = (far(), format!("lock_{}", stage.schema));

    let mut session = stage.session().await;
    session.run(&format!("SELECT COUNT(*) FROM one{far} WHERE keep(7) = 7")).await;
    assert_eq!(session.value("SELECT MAX(x) FROM t").await, "7", "a function that writes");

    let mut session = stage.session().await;
    session.run(&format!("SELECT COUNT(*) FROM one{far}; INSERT INTO t VALUES (8)")).await;
    assert_eq!(session.value("SELECT MAX(x) FROM t").await, "8", "another statement");

    let mut session = stage.session().await;
    session.run(&format!("SELECT x FROM one{far} INTO @kept")).await;
    assert_eq!(session.value("SELECT @kept").await, "1", "a variable");

    let (mut session, mut other) = (stage.session().await, stage.session().await);
    session.run(&format!("SELECT COUNT(*) FROM one{far} WHERE GET_LOCK('{lock}', 1)")).await;
    assert_eq!(other.value(&format!("SELECT GET_LOCK('{lock}', 0)")).await, "0", "a lock");
}

async fn a_long_statement_has_the_number_of_its_clients_connection(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, n BIGINT)", &[]).await;
    let mut session = stage.session().await;

    session.run(&format!("INSERT INTO t (n) VALUES (CONNECTION_ID()){}, (2), (3)", far())).await;

    let told = session.number.to_string();
    assert_eq!(session.value("SELECT GROUP_CONCAT(n ORDER BY id) FROM t").await, format!("{told},2,3"));
}
