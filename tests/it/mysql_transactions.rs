//! Transactions of MySQL's sessions: where they run, what is said of them ahead, and how they end.

use pointsman::{
    demo::servers::APP,
    mysql::{command::code, packet},
};

use crate::{
    both_makes,
    support::{
        eventually,
        mysql::{Make, ONE, Session, Stage, WHERE},
    },
};

both_makes!(
    transactions_stay_on_their_server,
    a_savepoint_ahead_of_everything_keeps_its_connection,
    read_only_transactions_use_one_replica,
    what_ends_a_read_only_transaction_runs_on_the_primary,
    an_error_of_the_proxys_own_leaves_the_transaction_open,
    the_isolation_of_a_session_follows_it_by_every_name,
    what_was_said_of_a_transaction_that_never_was_is_over_with_its_end,
    the_newest_word_on_the_next_transaction_counts,
    a_commit_goes_on_as_completion_type_says,
    a_release_by_completion_type_ends_the_session,
    what_later_transactions_are_may_be_said_within_one,
    what_was_said_of_the_next_transaction_outlives_a_preparation,
    what_was_said_of_the_next_transaction_is_used_by_its_session_alone,
    a_variable_of_the_next_transaction_is_answered_as_by_the_server,
    a_user_whose_reads_all_stand_in_transactions_is_told_of_the_drivers_switch,
);

async fn a_savepoint_ahead_of_everything_keeps_its_connection(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let (mut one, mut other) = (stage.session().await, stage.session().await);
    for session in [&mut one, &mut other] {
        session.run("SET autocommit = 0").await;
    }

    one.run("SAVEPOINT a").await;
    // Of no table: the server still tells of no transaction.
    one.run("SELECT 1").await;
    other.run("INSERT INTO t VALUES (1)").await;
    one.run("INSERT INTO t VALUES (2)").await;
    one.run("ROLLBACK TO SAVEPOINT a").await;
    one.run("INSERT INTO t VALUES (3)").await;
    one.run("COMMIT").await;
    other.run("COMMIT").await;

    assert_eq!(one.value("SELECT GROUP_CONCAT(x ORDER BY x) FROM t").await, "1,3");
    one.run("COMMIT").await;
}

async fn transactions_stay_on_their_server(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", &[]).await;
    let mut session = stage.session().await;
    let primary = stage.primary_port().to_string();

    session.run("BEGIN").await;
    assert_eq!(session.value(WHERE).await, primary);
    session.run("INSERT INTO t VALUES (1)").await;
    session.run("ROLLBACK").await;
    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "0");

    session.run("SET autocommit = 0").await;
    session.run("INSERT INTO t VALUES (2)").await;
    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "1");
    assert_eq!(session.value(WHERE).await, primary);
    session.run("ROLLBACK").await;
    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "0");
    session.run("INSERT INTO t VALUES (3)").await;
    session.run("SET autocommit = 1").await;
    let mut other = stage.session().await;
    assert_eq!(other.value("/* pointsman: primary */ SELECT COUNT(*) FROM t").await, "1");
}

async fn read_only_transactions_use_one_replica(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", &[]).await;
    let mut session = stage.session().await;
    for begin in
        ["START TRANSACTION READ ONLY", "SET TRANSACTION READ ONLY; ", "SET SESSION TRANSACTION READ ONLY"]
    {
        if begin.starts_with("SET") {
            session.run(begin.trim_end_matches("; ")).await;
            session.run("BEGIN").await;
        } else {
            session.run(begin).await;
        }
        let port = session.port().await;
        assert!(stage.is_replica(port), "{begin}");
        for _ in 0..5 {
            assert_eq!(session.port().await, port, "{begin}");
        }
        // read_only is checked before the transaction's mode.
        assert!([1290, 1792].contains(&session.error("INSERT INTO t VALUES (1)").await), "{begin}");
        session.run("ROLLBACK").await;
    }
    session.run("SET SESSION TRANSACTION READ WRITE").await;
    session.run("INSERT INTO t VALUES (1)").await;
}

async fn an_error_of_the_proxys_own_leaves_the_transaction_open(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", &[]).await;
    let mut session = stage.session().await;
    session.run("BEGIN").await;

    assert_eq!(session.error("KILL 4294967295").await, 1094);

    session.run("INSERT INTO t VALUES (1)").await;
    session.run("ROLLBACK").await;
    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "0");
}

async fn what_ends_a_read_only_transaction_runs_on_the_primary(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", &[]).await;
    for statement in [
        "CREATE TABLE made (x INT)",
        "ALTER TABLE made ADD y INT",
        "DROP TABLE made",
        "LOCK TABLES t WRITE",
        "FLUSH TABLES",
        "ANALYZE TABLE t",
        "START TRANSACTION READ WRITE",
        "COMMIT; START TRANSACTION READ WRITE",
    ] {
        let mut session = stage.session().await;
        session.run("START TRANSACTION READ ONLY").await;
        assert!(stage.is_replica(session.port().await), "{statement}");
        session.run("SELECT x FROM t").await;

        session.run(statement).await;

        session.run("INSERT INTO t VALUES (1)").await;
        session.run("COMMIT").await;
        session.run("UNLOCK TABLES").await;
        // A transaction that has read the table would hold up its change on the replica.
        let change = format!("ALTER TABLE t COMMENT = '{}'", statement.len());
        stage.cluster.node(0).sql(&stage.schema, &change).expect("it is legal");
        stage.cluster.wait_until_caught_up(0).expect("nothing is open on the replica");
    }
    let count = stage.cluster.node(0).sql(&stage.schema, "SELECT COUNT(*) FROM t").expect("it answers");
    assert_eq!(count, "8");

    // What begins without a word goes on as the server has it.
    let mut session = stage.session().await;
    session.run("START TRANSACTION READ ONLY").await;
    session.run("SELECT x FROM t").await;
    session.run("BEGIN").await;
    if make == Make::MariaDb {
        session.run("INSERT INTO t VALUES (1)").await;
    } else {
        assert!([1290, 1792].contains(&session.error("INSERT INTO t VALUES (1)").await));
    }
    session.run("COMMIT").await;
}

async fn the_isolation_of_a_session_follows_it_by_every_name(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    // MySQL has given up the old name, MariaDB has the new one from 11.1 on.
    let name = if make == Make::MariaDb { "tx_isolation" } else { "transaction_isolation" };
    for (value, level) in [
        ("'READ-COMMITTED'", "READ-COMMITTED"),
        ("\"READ-UNCOMMITTED\"", "READ-UNCOMMITTED"),
        ("1", "READ-COMMITTED"),
        ("SERIALIZABLE", "SERIALIZABLE"),
    ] {
        let mut session = stage.session().await;
        session.run(&format!("SET {name} = {value}")).await;

        let mut replicas = std::collections::HashSet::new();
        for _ in 0..40 {
            let row = session.value(&format!("SELECT CONCAT(@@port, ' ', @@{name})")).await;
            let (port, there) = row.split_once(' ').expect("two words");
            assert_eq!(there, level, "{value}");
            replicas.extend(port.parse::<u16>().ok().filter(|port| stage.is_replica(*port)));
        }

        // None can run serializable transactions.
        assert_eq!(replicas.len(), if level == "SERIALIZABLE" { 0 } else { 2 }, "{value}");
    }
}

async fn what_was_said_of_a_transaction_that_never_was_is_over_with_its_end(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let mut session = stage.session().await;
    for end in ["COMMIT", "ROLLBACK"] {
        session.run("SET TRANSACTION READ ONLY").await;
        session.run(end).await;

        session.run("BEGIN").await;
        session.run("INSERT INTO t VALUES (1)").await;
        session.run("COMMIT").await;
    }
    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "2");
}

async fn the_newest_word_on_the_next_transaction_counts(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", &[]).await;
    let (mut session, mut other) = (stage.session().await, stage.session().await);

    session.run("SET TRANSACTION ISOLATION LEVEL READ COMMITTED").await;
    session.run("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await;
    session.run("BEGIN").await;
    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "0");
    other.run("INSERT INTO t VALUES (1)").await;
    assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "0");
    session.run("COMMIT").await;

    // What the setting does not speak of stays said.
    session.run("SET TRANSACTION READ ONLY, ISOLATION LEVEL READ COMMITTED").await;
    session.run("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await;
    session.run("BEGIN").await;
    assert!([1290, 1792].contains(&session.error("INSERT INTO t VALUES (2)").await));
    session.run("ROLLBACK").await;
    session.run("INSERT INTO t VALUES (3)").await;
}

/// What is answered without a server, or by a replica, began no transaction: rows were committed that were
/// rolled back.
async fn a_commit_goes_on_as_completion_type_says(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", ONE).await;
    let mut direct = Session::open(stage.primary_port(), APP, &stage.schema).await;
    let mut session = stage.session().await;
    const ROWS: &str = "SELECT COUNT(*) FROM t";
    let cases: [&[&str]; 7] = [
        &["SET completion_type = 1", "COMMIT", "INSERT INTO t VALUES (1)", "ROLLBACK", ROWS],
        &["SET completion_type = CHAIN", "BEGIN", "COMMIT", "INSERT INTO t VALUES (1)", "ROLLBACK", ROWS],
        &["BEGIN", "INSERT INTO t VALUES (1)", "COMMIT", "INSERT INTO t VALUES (2)", "ROLLBACK", ROWS],
        &["COMMIT AND NO CHAIN", "INSERT INTO t VALUES (3)", "ROLLBACK", ROWS],
        &["START TRANSACTION READ ONLY", ROWS, "COMMIT", ROWS, "ROLLBACK AND NO CHAIN"],
        &["PREPARE c FROM 'COMMIT'", "EXECUTE c", "INSERT INTO t VALUES (1)", "ROLLBACK", ROWS],
        &["SET completion_type = DEFAULT", "COMMIT", "INSERT INTO t VALUES (4)", "ROLLBACK", ROWS],
    ];
    let open = packet::status::IN_TRANSACTION | packet::status::IN_READ_ONLY_TRANSACTION;
    for case in cases {
        let mut told = Vec::new();
        for session in [&mut direct, &mut session] {
            session.run("TRUNCATE t").await;
            let mut answers = Vec::new();
            for sql in case {
                let answer = session.run(sql).await;
                answers.push((*sql, answer.value(), answer.status & open));
            }
            session.run("ROLLBACK AND NO CHAIN").await;
            told.push(answers);
        }
        assert_eq!(told[1], told[0]);
    }

    session.run("SET completion_type = CHAIN").await;
    session.run("COMMIT").await;
    session.run("INSERT INTO t VALUES (5)").await;
    drop(session);
    let mut next = stage.session().await;
    assert_eq!(next.value("SELECT COUNT(*) FROM t WHERE x = 5 /* pointsman: primary */").await, "0");
    next.run("INSERT INTO t VALUES (6)").await;
    drop(next);
    assert_eq!(direct.value("SELECT COUNT(*) FROM t WHERE x = 6").await, "1");
}

async fn a_release_by_completion_type_ends_the_session(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", ONE).await;
    for steps in [
        &["SET completion_type = 2", "BEGIN", "COMMIT"][..],
        &["SET completion_type = 'RELEASE'", "COMMIT NO RELEASE", "ROLLBACK"],
        &["SET completion_type = 'release'", "BEGIN", "INSERT INTO t VALUES (1)", "COMMIT"],
    ] {
        let mut session = stage.session().await;
        for sql in steps {
            session.run(sql).await;
        }
        assert_eq!(session.error("SELECT 1").await, 2013, "{steps:?}");
    }

    let mut next = stage.session().await;
    assert_eq!(next.value("SELECT COUNT(*) FROM t /* pointsman: primary */").await, "1");
    assert_eq!(next.value("SELECT @@completion_type /* pointsman: primary */").await, "NO_CHAIN");
}

/// On a replica, whose connections are read-only whatever the session says.
async fn what_later_transactions_are_may_be_said_within_one(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    for kind in ["READ WRITE", "READ ONLY"] {
        let mut session = stage.session().await;
        session.run("START TRANSACTION READ ONLY").await;
        assert!(stage.is_replica(session.port().await));
        session.run(&format!("SET SESSION TRANSACTION {kind}")).await;
        assert!(stage.is_replica(session.port().await));
        session.run("COMMIT").await;

        assert!(stage.is_replica(session.port().await));
        session.run("SET SESSION TRANSACTION READ WRITE").await;
        session.run("INSERT INTO t VALUES (1)").await;
    }
}

async fn what_was_said_of_the_next_transaction_outlives_a_preparation(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", &["cluster.pool.size = 2"]).await;
    let (mut session, mut other) = (stage.session().await, stage.session().await);
    for text in ["SELECT COUNT(*) FROM t FOR UPDATE", "SELECT COUNT(*) FROM t"] {
        session.run("SET TRANSACTION READ ONLY").await;
        session.exchange(code::STMT_PREPARE, text.as_bytes()).await.expect("it is prepared");

        for _ in 0..3 {
            other.run("INSERT INTO t VALUES (1)").await;
        }
        assert!([1290, 1792].contains(&session.error("INSERT INTO t VALUES (2)").await), "{text}");
        // A statement that was refused has begun none.
        session.run("SELECT COUNT(*) FROM t").await;
        session.run("INSERT INTO t VALUES (3)").await;
        for _ in 0..3 {
            other.run("INSERT INTO t VALUES (1)").await;
        }
    }

    session.run("SET TRANSACTION READ ONLY").await;
    session.command(code::RESET_CONNECTION, b"").await.expect("it resets");
    session.run("INSERT INTO t VALUES (4)").await;
}

/// MariaDB has `transaction_read_only` from 11.1 on, MySQL no `tx_read_only` any more.
async fn a_variable_of_the_next_transaction_is_answered_as_by_the_server(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT) ENGINE = InnoDB", &[]).await;
    let before: [&[&str]; 6] = [
        &[],
        &["BEGIN"],
        &["BEGIN", "SELECT COUNT(*) FROM t"],
        &["START TRANSACTION READ ONLY", "SELECT COUNT(*) FROM t"],
        &["SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"],
        &["SET autocommit = 0", "SELECT COUNT(*) FROM t"],
    ];
    let sets = [
        "SET @@transaction_read_only = 1",
        "SET @@tx_read_only = 1",
        "SET @@tx_read_only = 0",
        "SET @@transaction_read_only = 0",
        "SET @@transaction_isolation = 'SERIALIZABLE'",
        "SET @@tx_isolation = 'READ-COMMITTED'",
    ];
    let behind = ["INSERT INTO t VALUES (1)", "COMMIT", "INSERT INTO t VALUES (2)", "ROLLBACK"];

    for before in before {
        for set in sets {
            let mut told = Vec::new();
            for port in [stage.primary_port(), stage.proxy.port()] {
                let mut session = Session::open(port, APP, &stage.schema).await;
                let mut codes = Vec::new();
                for text in before.iter().chain([&set]).chain(&behind) {
                    codes.push(session.query(text).await.map(drop).map_err(|error| error.errno));
                }
                told.push(codes);
            }
            assert_eq!(told[1], told[0], "{before:?} {set}");
        }
    }
}

/// A connection whose next transaction was shaped by somebody else refused every write.
async fn what_was_said_of_the_next_transaction_is_used_by_its_session_alone(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT)", ONE).await;
    let variable = if make == Make::MariaDb { "tx_read_only" } else { "transaction_read_only" };
    let of_a_list = format!("SET @a = 1, @@{variable} = 1");
    let cases: [(Option<bool>, &[&str]); 19] = [
        (Some(true), &["SET TRANSACTION READ ONLY; SELECT 1"]),
        (Some(true), &["SELECT COUNT(*) FROM t; SET TRANSACTION READ ONLY"]),
        (Some(true), &["SET TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE; SELECT 1", "DO 1"]),
        (Some(true), &[&of_a_list, "SELECT 1"]),
        (Some(true), &["SET TRANSACTION READ ONLY", "SELECT 1"]),
        (Some(true), &["SET TRANSACTION READ ONLY", "DO 1", "SHOW WARNINGS"]),
        (Some(true), &["SET TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE", "SHOW STATUS LIKE 'none'"]),
        (Some(true), &["SET TRANSACTION READ ONLY", "INSERT INTO t (x) VALUES (1)"]),
        (Some(true), &["SET TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE", "SELECT * FROM missing"]),
        (
            Some(true),
            &["SET TRANSACTION READ ONLY", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; SELECT 1"],
        ),
        (Some(false), &["SET TRANSACTION READ ONLY", "SELECT COUNT(*) FROM t"]),
        (Some(false), &["SET TRANSACTION READ ONLY; SELECT COUNT(*) FROM t"]),
        (Some(false), &["SET TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE; SELECT COUNT(*) FROM t"]),
        (Some(false), &["SET TRANSACTION READ ONLY; COMMIT"]),
        (Some(true), &["SET TRANSACTION READ ONLY; SELECT * FROM missing"]),
        (Some(false), &["SET TRANSACTION READ ONLY; CREATE TABLE t (x INT)"]),
        (Some(false), &["SET TRANSACTION READ ONLY; PREPARE p FROM 'SELECT x FROM t'; EXECUTE p"]),
        // In servers it outlives a transaction that ends so.
        (
            None,
            &[
                "SET TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE",
                "SET autocommit = 0",
                "SELECT COUNT(*) FROM t",
                "SET autocommit = 1",
            ],
        ),
        (Some(false), &["SET TRANSACTION READ ONLY; SELECT 1", "BEGIN", "SELECT 1", "COMMIT"]),
    ];
    for (port, what) in [(stage.primary_port(), "server"), (stage.proxy.port(), "proxy")] {
        for (is_to_come, texts) in cases {
            let mut session = Session::open(port, APP, &stage.schema).await;
            for text in texts {
                // Some are errors.
                let _ = session.query(text).await;
            }

            let mut other = Session::open(port, APP, &stage.schema).await;
            other.run("INSERT INTO t (x) VALUES (2)").await;

            if is_to_come == Some(true) {
                let refused = session.error("INSERT INTO t (x) VALUES (3)").await;
                assert!([1290, 1792].contains(&refused), "{what}: {texts:?}");
                session.run("SELECT COUNT(*) FROM t").await;
            }
            let goes_on = session.query("INSERT INTO t (x) VALUES (4)").await;
            assert!(is_to_come.is_none() || goes_on.is_ok(), "{what}: {texts:?}: {goes_on:?}");
        }
        let mut session = Session::open(port, APP, &stage.schema).await;
        session.run("SET TRANSACTION ISOLATION LEVEL READ COMMITTED").await;
        let id = session.run("INSERT INTO t (x) VALUES (5)").await.insert_id.to_string();
        assert_eq!(session.value("SELECT LAST_INSERT_ID()").await, id, "{what}");
        let told =
            session.exchange(code::STMT_PREPARE, b"SET TRANSACTION READ ONLY").await.expect("an answer");
        let execution = [&told[0][2..6], &[0, 1, 0, 0, 0]].concat();
        let told = session.exchange(code::STMT_EXECUTE, &execution).await.expect("an answer");
        assert_eq!(told[0][1], packet::OK, "{what}");
        Session::open(port, APP, &stage.schema).await.run("INSERT INTO t (x) VALUES (6)").await;
        let refused = session.error("INSERT INTO t (x) VALUES (7)").await;
        assert!([1290, 1792].contains(&refused), "{what}");
    }
}

/// autocommit off is what PyMySQL and mysql-connector begin with (hard case 20).
async fn a_user_whose_reads_all_stand_in_transactions_is_told_of_the_drivers_switch(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let session = tokio::sync::Mutex::new(stage.session().await);
    session.lock().await.run("SET autocommit = 0").await;
    let read = async || {
        let mut session = session.lock().await;
        for _ in 0..250 {
            assert_eq!(session.port().await, stage.primary_port());
            session.run("COMMIT").await;
        }
    };
    let told = || stage.proxy.log().matches("most reads of this user run on the primary").count();
    // The stage was waited for with any number of reads that stood alone.
    eventually("it is said", async || {
        read().await;
        told() > 0
    })
    .await;
    read().await;
    assert_eq!(told(), 1, "it is said once");
    session.lock().await.run("SET autocommit = 1").await;
    eventually("autocommit reads use replicas", async || stage.is_replica(session.lock().await.port().await))
        .await;
}
