//! What is longer than the proxy gathers before it passes it on, on MariaDB and MySQL 9.

use pointsman::mysql::{
    command::{LONGEST_QUERY, code},
    packet::{self, MAX_PAYLOAD},
};

use crate::{
    both_makes,
    support::mysql::{Make, Session, Stage},
};

both_makes!(
    long_queries_go_where_short_ones_do_and_leave_nothing,
    what_stands_far_behind_in_a_long_statement_counts,
    a_long_statement_has_the_number_of_its_clients_connection,
    no_execution_runs_with_a_part_of_its_long_values,
    a_long_value_may_be_sent_whole,
    an_error_behind_a_statement_of_many_packets_has_the_next_number,
    a_statement_that_is_too_long_for_the_server_gets_its_error,
    an_error_for_a_long_value_answers_the_execution,
);

/// Blanks, so many that what follows them has not arrived when the statement is passed on.
fn far() -> String {
    " ".repeat(2 * LONGEST_QUERY)
}

async fn long_queries_go_where_short_ones_do_and_leave_nothing(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (n INT, x VARCHAR(20))", &[]).await;
    let mut session = stage.session().await;
    let rows: Vec<String> = (0..20_000).map(|n| format!("({n}, 'row {n}')")).collect();
    let ids: Vec<String> = (0..20_000).map(|n| n.to_string()).collect();

    let read = format!("SELECT @@port FROM DUAL WHERE 7 IN ({})", ids.join(", "));
    let read = session.value(&read).await;
    session.run(&format!("INSERT INTO t VALUES {}", rows.join(", "))).await;

    assert!(stage.is_replica(read.parse().expect("a port")), "{read}");
    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "20000");
    assert_eq!(stage.proxy.metric("pointsman_pins_total", &[]), 0.0);
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

/// Megabytes of each value: five of them are less than what is kept for a client, six are more.
const VALUE: usize = 12;

async fn no_execution_runs_with_a_part_of_its_long_values(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    let mut session = stage.session().await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(prepare_length(&mut session).await);
    }
    for id in &ids {
        send_value(&mut session, *id).await;
    }

    for id in &ids[..5] {
        assert_eq!(length(&mut session, *id).await, Ok(VALUE << 20));
    }
    assert_eq!(length(&mut session, ids[5]).await, Err(1105));
    // What was lost is forgotten with the execution that failed, or by COM_STMT_RESET.
    send_value(&mut session, ids[5]).await;
    assert_eq!(length(&mut session, ids[5]).await, Ok(VALUE << 20));
    for id in &ids {
        send_value(&mut session, *id).await;
    }
    for id in &ids {
        session.exchange(code::STMT_RESET, id).await.expect("it is answered");
    }
    send_value(&mut session, ids[5]).await;
    assert_eq!(length(&mut session, ids[5]).await, Ok(VALUE << 20));
}

/// MariaDB takes no more in a packet, by default.
const LONGEST_OF_MARIADB: usize = MAX_PAYLOAD - 8;

async fn a_long_value_may_be_sent_whole(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    let mut session = stage.session().await;
    let lengths = match make {
        Make::MariaDb => vec![LONGEST_OF_MARIADB],
        Make::Mysql9 => vec![LONGEST_OF_MARIADB, 40 << 20],
    };

    let id = prepare_length(&mut session).await;
    for expected in lengths {
        let value = [&id[..], &[0, 0], &vec![b'x'; expected]].concat();
        session.exchange(code::STMT_SEND_LONG_DATA, &value).await.expect("nothing answers");

        assert_eq!(length(&mut session, id).await, Ok(expected));
    }
}

/// An error's number among the packets, and its own.
async fn numbered_error(session: &mut Session, sql: &str) -> (u8, u16) {
    let frames = session.exchange(code::QUERY, sql.as_bytes()).await.expect("an answer");
    assert_eq!(frames[0][1], packet::ERR, "{:?}", frames[0]);
    (frames[0][0], u16::from_le_bytes([frames[0][2], frames[0][3]]))
}

/// A statement that fills so many packets, and a half.
fn filling(packets: usize) -> String {
    format!("INSERT INTO t VALUES ('{}')", "x".repeat(packets * MAX_PAYLOAD + MAX_PAYLOAD / 2))
}

async fn an_error_behind_a_statement_of_many_packets_has_the_next_number(make: Make) {
    let one = ["cluster.pool.size = 1", "cluster.pool.checkout_timeout = '200ms'"];
    let stage = Stage::on(make, "CREATE TABLE t (x LONGTEXT)", &one).await;
    let (mut session, mut other) = (stage.session().await, stage.session().await);
    other.run("BEGIN").await;
    other.run("INSERT INTO t VALUES ('')").await;

    for packets in 0..3 {
        let error = numbered_error(&mut session, &filling(packets)).await;
        assert_eq!(error, (1 + packets as u8, 1040), "no connection became free");
    }

    other.run("COMMIT").await;
    assert_eq!(other.value("SELECT COUNT(*) FROM t").await, "1");
}

async fn a_statement_that_is_too_long_for_the_server_gets_its_error(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x LONGTEXT)", &[]).await;
    // A server takes 16 MiB (MariaDB) or 64 MiB (MySQL), and reads no more.
    for packets in [5, 9] {
        let mut session = stage.session().await;

        let error = numbered_error(&mut session, &filling(packets)).await;

        assert_eq!(error, (1 + packets as u8, 1153));
        // The server has ended its connection, and what was open there is lost.
        let ended = session.query("SELECT 1").await.expect_err("the connection ends");
        assert_eq!((ended.errno, &*ended.sqlstate), (2013, ""), "said by nobody but the client: {ended:?}");
    }
    assert_eq!(stage.session().await.value("SELECT COUNT(*) FROM t").await, "0");
}

async fn an_error_for_a_long_value_answers_the_execution(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    let mut session = stage.session().await;
    let id = prepare_length(&mut session).await;
    let value = [&id[..], &[0, 0], &vec![b'x'; MAX_PAYLOAD * 2]].concat();
    session.exchange(code::STMT_SEND_LONG_DATA, &value).await.expect("nothing answers");

    let execution = [&id[..], &[0, 1, 0, 0, 0, 0, 1, BLOB, 0]].concat();
    let frames = session.exchange(code::STMT_EXECUTE, &execution).await.expect("an answer");

    assert_eq!(frames[0][0], 1, "the number that a driver waits for");
    let refused = frames[0][1] == packet::ERR;
    assert_eq!(refused, make == Make::MariaDb, "it takes 16 MiB");
    if refused {
        assert_eq!(frames[0][2..4], 1153_u16.to_le_bytes());
    }
}

/// The id of a statement that tells the length of its only parameter.
async fn prepare_length(session: &mut Session) -> [u8; 4] {
    let prepared = session.exchange(code::STMT_PREPARE, b"SELECT LENGTH(?)").await.expect("an answer");
    prepared[0][2..6].try_into().expect("four bytes")
}

/// The value of the only parameter, a megabyte at a time.
async fn send_value(session: &mut Session, id: [u8; 4]) {
    let part = [&id[..], &[0, 0], &vec![b'x'; 1 << 20]].concat();
    for _ in 0..VALUE {
        session.exchange(code::STMT_SEND_LONG_DATA, &part).await.expect("nothing answers");
    }
}

/// The type of a parameter.
const BLOB: u8 = 252;

/// The number that an execution answers, or its error.
async fn length(session: &mut Session, id: [u8; 4]) -> Result<usize, u16> {
    let argument = [&id[..], &[0, 1, 0, 0, 0, 0, 1, BLOB, 0]].concat();
    let frames = session.exchange(code::STMT_EXECUTE, &argument).await.expect("an answer");
    if frames[0][1] == packet::ERR {
        return Err(u16::from_le_bytes([frames[0][2], frames[0][3]]));
    }
    Ok(u32::from_le_bytes(frames[3][3..7].try_into().expect("four bytes")) as usize)
}
