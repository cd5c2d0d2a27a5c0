//! What functions, procedures and triggers of MySQL's leave in the session that has them run.

use pointsman::demo::servers::APP;

use crate::{
    both_makes,
    support::{
        eventually,
        mysql::{Make, Session, Stage},
    },
};

both_makes!(
    what_code_sets_in_its_body_is_nobody_elses,
    a_procedure_that_leaves_nothing_keeps_no_connection,
    a_procedure_that_the_file_calls_clean_keeps_no_connection,
    the_id_that_a_procedure_left_is_its_sessions_own,
);

/// One connection for everybody; who gets none is told so soon.
const ONE: &[&str] = &["cluster.pool.size = 1", "cluster.pool.checkout_timeout = '2s'"];

/// By the connection that is there, with what was set on it.
const ASK: &str = "/* pointsman: primary */ SELECT";

/// What a body sets, where it can be seen, and what a session begins with.
const SETTINGS: [(&str, &str); 4] = [
    ("SET wait_timeout = 77", "@@wait_timeout"),
    ("SET SESSION sort_buffer_size = 65536", "@@sort_buffer_size"),
    ("SET @@div_precision_increment = 9", "@@div_precision_increment"),
    ("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", "@@transaction_isolation"),
];

fn question(make: Make, variable: &str) -> String {
    let of_make = match make {
        Make::MariaDb => variable.replace("transaction_isolation", "tx_isolation"),
        Make::Mysql9 => variable.to_owned(),
    };
    format!("{ASK} {of_make}")
}

async fn what_code_sets_in_its_body_is_nobody_elses(make: Make) {
    let mut sql = vec!["CREATE TABLE left_rows (x INT)".to_owned()];
    let mut calls = Vec::new();
    for (number, (set, variable)) in SETTINGS.into_iter().enumerate() {
        sql.push(format!(
            "CREATE FUNCTION leaves_{number}() RETURNS INT DETERMINISTIC BEGIN INSERT INTO left_rows VALUES (1); {set}; RETURN 1; END"
        ));
        sql.push(format!("CREATE PROCEDURE leaves_{number}() BEGIN {set}; END"));
        sql.push(format!("CREATE PROCEDURE has_left_{number}() CALL leaves_{number}()"));
        sql.push(format!("CREATE TABLE leaving_{number} (x INT)"));
        sql.push(format!(
            "CREATE TRIGGER leaves_{number} BEFORE INSERT ON leaving_{number} FOR EACH ROW BEGIN {set}; END"
        ));
        sql.push(format!("CREATE PROCEDURE fires_{number}() INSERT INTO leaving_{number} VALUES (1)"));
        for call in [
            format!("SELECT leaves_{number}()"),
            format!("CALL leaves_{number}()"),
            format!("CALL has_left_{number}()"),
            format!("INSERT INTO leaving_{number} VALUES (1)"),
            format!("CALL fires_{number}()"),
        ] {
            calls.push((call, question(make, variable)));
        }
    }
    let stage = Stage::on(make, &sql.join("; "), ONE).await;

    for (call, question) in calls {
        let before = stage.session().await.value(&question).await;
        let mut session = stage.session().await;
        session.run(&call).await;
        assert_ne!(session.value(&question).await, before, "{call}: it is still set for whoever called");
        drop(session);
        // The connection comes back by and by.
        let mut next = stage.session().await;
        assert_eq!(next.value(&question).await, before, "{call}");
    }
}

/// Whether another session gets the one connection while this one is there.
async fn is_free(stage: &Stage) -> bool {
    stage.session().await.query(&format!("{ASK} 1")).await.is_ok()
}

async fn pins_nothing(stage: &Stage, call: &str) -> bool {
    let pins = || stage.proxy.metric("pointsman_pins_total", &["reason=\"function\""]);
    let (before, mut session) = (pins(), stage.session().await);
    session.run(call).await;
    // What comes behind it is answered when it has been counted.
    session.value("SELECT 1").await;
    pins() == before
}

async fn a_procedure_that_leaves_nothing_keeps_no_connection(make: Make) {
    let sql = "CREATE TABLE booked (x INT, note VARCHAR(20));
        CREATE PROCEDURE books(IN given INT, IN note VARCHAR(20)) BEGIN
            DECLARE done INT DEFAULT FALSE;
            DECLARE one INT;
            DECLARE every CURSOR FOR SELECT x FROM booked;
            DECLARE CONTINUE HANDLER FOR NOT FOUND SET done = TRUE;
            SET note = CONCAT(note, '@', given), one = 1;
            START TRANSACTION;
            INSERT INTO booked VALUES (given, note);
            UPDATE booked SET x = x + one WHERE x = given;
            COMMIT;
            OPEN every; FETCH every INTO one; CLOSE every;
            SELECT COUNT(*) FROM booked;
        END;
        CREATE PROCEDURE books_twice() BEGIN CALL books(1, 'a'); CALL books(2, 'b'); END;
        CREATE PROCEDURE notes() SET @noted = 1";
    let stage = Stage::on(make, sql, ONE).await;
    eventually("the catalog clears it", async || pins_nothing(&stage, "CALL books(5, 'x')").await).await;

    let mut session = stage.session().await;
    for call in ["CALL books(1, 'x')", "CALL books_twice()"] {
        session.run(call).await;
        assert!(is_free(&stage).await, "{call}");
    }
    let read = session.value("SELECT COUNT(*) FROM booked").await;
    assert!(read.parse::<u32>().expect("a number") >= 4, "a read behind it sees what it wrote: {read}");
    session.run("CALL notes()").await;
    assert!(!is_free(&stage).await, "a variable of the session's was set");
    assert_eq!(session.value("SELECT @noted").await, "1");
}

async fn a_procedure_that_the_file_calls_clean_keeps_no_connection(make: Make) {
    let clean = [ONE, &["cluster.routing.clean_functions = ['pencils']"]].concat();
    let stage = Stage::on(make, "CREATE PROCEDURE pencils() SET @pencilled = 1", &clean).await;

    let mut session = stage.session().await;
    session.run("CALL pencils()").await;
    assert!(is_free(&stage).await);
}

async fn the_id_that_a_procedure_left_is_its_sessions_own(make: Make) {
    let sql = "CREATE TABLE numbered (id INT AUTO_INCREMENT PRIMARY KEY, x INT);
        CREATE PROCEDURE numbers() INSERT INTO numbered (x) VALUES (1)";
    let stage = Stage::on(make, sql, ONE).await;
    let mut direct = Session::open(stage.primary_port(), APP, &stage.schema).await;
    direct.run("CALL numbers()").await;
    assert_eq!(direct.value("SELECT LAST_INSERT_ID()").await, "1", "as by a statement");
    eventually("the catalog clears it", async || pins_nothing(&stage, "CALL numbers()").await).await;

    let mut session = stage.session().await;
    session.run("CALL numbers()").await;
    assert_ne!(session.value("SELECT LAST_INSERT_ID()").await, "0");
    drop(session);
    let mut other = stage.session().await;
    other.run("CALL numbers()").await;
    let (id, newest) =
        (other.value("SELECT LAST_INSERT_ID()").await, other.value("SELECT MAX(id) FROM numbered").await);
    assert_eq!(id, newest);
    drop(other);
    assert_eq!(stage.session().await.value("SELECT LAST_INSERT_ID()").await, "0");
}
