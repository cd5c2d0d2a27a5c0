//! What the engine promises when servers lag, die and change their roles, on PostgreSQL, MariaDB and MySQL from one text.

use std::time::{Duration, Instant};

use pointsman::demo::servers::Stop;
use tokio::task::JoinHandle;

use crate::{
    both_databases,
    support::{
        PATIENCE, Proxy,
        both::{Engine, Meaning, Servers, Session},
        eventually,
    },
};

both_databases!(
    a_killed_replica_fails_no_reads,
    writes_are_held_until_there_is_a_primary,
    a_replica_that_stands_still_shows_no_old_data,
    a_lagging_replica_gets_the_share_of_its_weight_and_at_max_lag_nothing,
    a_replica_that_comes_back_ramps_up,
    a_failover_under_load_fails_no_read_and_does_no_write_twice,
    an_old_primary_that_comes_back_writable_gets_nothing,
    a_write_is_acknowledged_once_its_server_has_the_role_again,
    a_write_is_not_acknowledged_where_another_gets_the_role,
    without_a_primary_writes_are_refused_after_the_hold,
    to_end_no_transaction_takes_no_primary,
    a_write_waits_for_a_connection_of_a_server_that_is_full,
    a_password_that_changes_with_a_reload_is_good_for_sessions_that_stay,
    reads_see_what_their_level_promises_while_a_replica_is_late,
    a_token_carries_a_write_to_another_proxy,
    a_global_read_sees_what_was_committed_by_a_transaction_that_goes_on,
);

const TABLE: &str = "CREATE TABLE t (x int)";

async fn a_killed_replica_fails_no_reads(engine: Engine) {
    let servers = Servers::own(engine);
    let (proxy, database) = servers.proxy(TABLE, &["cluster.routing.slow_start = '0s'"]).await;
    let mut session = servers.session(&proxy, &database).await.expect("it logs in");
    servers.stop(1, Stop::Kill);
    for _ in 0..100 {
        assert_eq!(session.port().await, servers.port(2));
    }
    servers.start(1);
    let (session, lost) = (tokio::sync::Mutex::new(session), servers.port(1));
    eventually("reads use it again", async || session.lock().await.port().await == lost).await;
}

async fn writes_are_held_until_there_is_a_primary(engine: Engine) {
    let servers = Servers::own(engine);
    let (proxy, database) = servers.proxy(TABLE, &[]).await;
    let mut session = servers.session(&proxy, &database).await.expect("it logs in");
    assert!(servers.session(&proxy, &database).await.is_ok());
    servers.stop(0, Stop::Kill);
    // Reads go on while nobody takes writes.
    assert_ne!(session.port().await, servers.port(0));
    let held = tokio::spawn(async move {
        let answer = session.ask("INSERT INTO t VALUES (1)").await;
        (session, answer)
    });
    servers.promote(1, &[2]);
    let (mut session, answer) = held.await.expect("it does not panic");
    assert_eq!(answer, Ok(String::new()));
    assert_eq!(session.value("SELECT max(x) FROM t").await, "1");
}

async fn a_write_waits_for_a_connection_of_a_server_that_is_full(engine: Engine) {
    let servers = Servers::own(engine);
    let (proxy, database) = servers.proxy(TABLE, &["cluster.pool.checkout_timeout = '30s'"]).await;
    let one = match engine {
        Engine::Postgres => "ALTER ROLE app CONNECTION LIMIT 1",
        Engine::MariaDb | Engine::Mysql9 => "ALTER USER app WITH MAX_USER_CONNECTIONS 1",
    };
    servers.on(0, &database, one);
    let mut holder = servers.session(&proxy, &database).await.expect("it logs in");
    let mut waiter = servers.session(&proxy, &database).await.expect("it logs in");
    holder.value("BEGIN").await;
    holder.value("INSERT INTO t VALUES (1)").await;

    let waiting = tokio::spawn(async move { waiter.ask("INSERT INTO t VALUES (2)").await });
    let primary = format!("node=\"{}\"", servers.address(0));
    eventually("it waits", async || proxy.metric("pointsman_pool_waiters", &[&primary]) == 1.0).await;
    holder.value("COMMIT").await;

    assert_eq!(waiting.await.expect("it does not panic"), Ok(String::new()));
    assert_eq!(servers.on(0, &database, "SELECT count(*) FROM t"), "2");
}

async fn a_replica_that_stands_still_shows_no_old_data(engine: Engine) {
    let servers = Servers::own(engine);
    let (proxy, database) = servers.proxy(TABLE, &[]).await;
    let mut session = servers.session(&proxy, &database).await.expect("it logs in");
    servers.pause_replay(1);
    servers.pause_replay(2);
    for x in 1..=10 {
        session.value(&format!("INSERT INTO t VALUES ({x})")).await;
        assert_eq!(session.value("SELECT max(x) FROM t").await, x.to_string());
        assert_eq!(session.port().await, servers.port(0));
    }
    servers.resume_replay(2);
    let (session, fresh) = (tokio::sync::Mutex::new(session), servers.port(2));
    eventually("the one that has caught up reads", async || session.lock().await.port().await == fresh).await;
}

/// Lag and weight of a node, by the proxy's own word.
fn lag_and_weight(proxy: &Proxy, address: &str) -> (f64, f64) {
    let node = format!("node=\"{address}\"");
    (proxy.metric("pointsman_replica_lag_seconds", &[&node]), proxy.metric("pointsman_node_weight", &[&node]))
}

/// How many of `count` reads of several sessions used the server at `port`.
async fn reads_on(sessions: &mut Vec<Session>, count: usize, port: u16) -> usize {
    let each = count / sessions.len();
    let tasks: Vec<JoinHandle<(Session, usize)>> = std::mem::take(sessions)
        .into_iter()
        .map(|mut session| {
            tokio::spawn(async move {
                let mut there = 0;
                for _ in 0..each {
                    there += usize::from(session.port().await == port);
                }
                (session, there)
            })
        })
        .collect();
    let mut there = 0;
    for task in tasks {
        let (session, count) = task.await.expect("sessions do not panic");
        sessions.push(session);
        there += count;
    }
    there
}

/// Sessions that only read.
async fn readers(servers: &Servers, proxy: &Proxy, database: &str) -> Vec<Session> {
    let mut sessions = Vec::new();
    for _ in 0..8 {
        sessions.push(servers.session(proxy, database).await.expect("it logs in"));
    }
    sessions
}

/// The share of 20,000 reads that a node got, and what it should have been by its weight meanwhile.
async fn share_of(sessions: &mut Vec<Session>, proxy: &Proxy, address: &str, port: u16) -> (f64, f64) {
    const CHUNKS: usize = 40;
    const CHUNK: usize = 500;
    let (mut there, mut due) = (0, 0.0);
    for _ in 0..CHUNKS {
        let (_, before) = lag_and_weight(proxy, address);
        there += reads_on(sessions, CHUNK, port).await;
        let (_, after) = lag_and_weight(proxy, address);
        let weight = f64::midpoint(before, after);
        due += weight / (1.0 + weight);
    }
    (there as f64 / (CHUNKS * CHUNK) as f64, due / CHUNKS as f64)
}

/// Writes a row every now and then until it is aborted: whoever applies late has a steady lag.
async fn keep_writing(servers: &Servers, proxy: &Proxy, database: &str) -> JoinHandle<()> {
    let mut writer = servers.session(proxy, database).await.expect("it logs in");
    tokio::spawn(async move {
        loop {
            writer.value("INSERT INTO t VALUES (1)").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
}

async fn a_lagging_replica_gets_the_share_of_its_weight_and_at_max_lag_nothing(engine: Engine) {
    const HALF: Duration = Duration::from_secs(4);
    let servers = Servers::own(engine);
    let settings = ["cluster.routing.lag_half_weight = '4s'", "cluster.routing.max_lag = '10s'"];
    let (proxy, database) = servers.proxy(TABLE, &settings).await;
    let mut sessions = readers(&servers, &proxy, &database).await;
    let (lagging, port) = (servers.address(1), servers.port(1));
    let (share, _) = share_of(&mut sessions, &proxy, &lagging, port).await;
    assert!((share - 0.5).abs() < 0.05, "nobody lags, and it got {share}");

    let writes = keep_writing(&servers, &proxy, &database).await;
    servers.delay_replay(1, HALF);
    let lag = || lag_and_weight(&proxy, &lagging).0;
    eventually("it lags by the time of half a weight", async || lag() >= HALF.as_secs_f64() * 0.9).await;
    let (lag, weight) = lag_and_weight(&proxy, &lagging);
    assert!(
        (weight - 0.5_f64.powf(lag / HALF.as_secs_f64())).abs() < 0.05,
        "a lag of {lag} s weighs {weight}"
    );
    // One in three, as long as the machine lets it keep to that lag.
    let (share, due) = share_of(&mut sessions, &proxy, &lagging, port).await;
    assert!((share - due).abs() < 0.05, "it got {share} of the reads, {due} were due");

    servers.delay_replay(1, Duration::ZERO);
    servers.pause_replay(1);
    eventually("it is beyond max_lag", async || lag_and_weight(&proxy, &lagging).1 == 0.0).await;
    assert_eq!(reads_on(&mut sessions, 200, port).await, 0);
    servers.resume_replay(1);
    eventually("it has caught up", async || lag_and_weight(&proxy, &lagging).1 > 0.8).await;
    writes.abort();
}

async fn a_replica_that_comes_back_ramps_up(engine: Engine) {
    let servers = Servers::own(engine);
    let (proxy, database) = servers.proxy(TABLE, &["cluster.routing.slow_start = '4s'"]).await;
    let mut sessions = readers(&servers, &proxy, &database).await;
    let back = servers.address(1);
    servers.stop(1, Stop::Kill);
    eventually("it is missed", async || lag_and_weight(&proxy, &back).1 == 0.0).await;
    servers.start(1);
    eventually("it is taken back", async || lag_and_weight(&proxy, &back).1 > 0.0).await;

    let (_, from) = lag_and_weight(&proxy, &back);
    let share = reads_on(&mut sessions, 400, servers.port(1)).await as f64 / 400.0;
    let (_, to) = lag_and_weight(&proxy, &back);

    assert!(from < 1.0, "it began with {from}");
    let (least, most) = (from / (1.0 + from), to / (1.0 + to));
    let tolerance = 4.0 * 0.5 / 20.0;
    assert!(share > least - tolerance && share < most + tolerance, "{share} of {least}..{most}");
    eventually("it has its whole weight again", async || lag_and_weight(&proxy, &back).1 > 0.99).await;
}

/// Writes 1, 2, 3 … each on its own table row until `until`; returns what failed and what was written.
fn write_on(
    servers: &std::sync::Arc<(Servers, Proxy, String)>,
    number: usize,
    until: &std::sync::Arc<std::sync::atomic::AtomicBool>,
) -> JoinHandle<(Vec<String>, Vec<usize>)> {
    let (servers, until) = (servers.clone(), until.clone());
    tokio::spawn(async move {
        let (stand, proxy, database) = &*servers;
        let mut session = stand.session(proxy, database).await.expect("it logs in");
        let (mut failed, mut written) = (Vec::new(), Vec::new());
        for x in 0.. {
            if until.load(std::sync::atomic::Ordering::Relaxed) {
                break;
            }
            match session.ask(&format!("INSERT INTO t VALUES ({})", number * 1_000_000 + x)).await {
                Ok(_) => written.push(x),
                Err(code) => {
                    failed.push(code);
                    if let Ok(another) = stand.session(proxy, database).await {
                        session = another;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        (failed, written)
    })
}

async fn a_failover_under_load_fails_no_read_and_does_no_write_twice(engine: Engine) {
    const WRITERS: usize = 4;
    let servers = Servers::own(engine);
    let (proxy, database) = servers.proxy(TABLE, &[]).await;
    let stand = std::sync::Arc::new((servers, proxy, database));
    let (servers, proxy, database) = &*stand;
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS).map(|number| write_on(&stand, number, &over)).collect();
    let mut reader = servers.session(proxy, database).await.expect("it logs in");
    let mut reads = async |count: usize| {
        for _ in 0..count {
            reader.value("SELECT count(*) FROM t").await;
        }
    };

    reads(50).await;
    servers.stop(0, Stop::Kill);
    reads(50).await;
    let at_failover = Instant::now();
    servers.promote(1, &[2]);
    let mut probe = servers.session(proxy, database).await.expect("it logs in");
    eventually("writes go on", async || {
        let mut fresh = servers.session(proxy, database).await.expect("it logs in");
        fresh.ask("INSERT INTO t VALUES (-1)").await.is_ok()
    })
    .await;
    assert!(at_failover.elapsed() < PATIENCE);
    reads(50).await;
    probe.value("SELECT 1").await;
    over.store(true, std::sync::atomic::Ordering::Relaxed);

    for writer in writers {
        let (failed, written) = writer.await.expect("writers do not panic");
        assert!(failed.iter().all(|code| engine.says(Meaning::Lost, code)), "{failed:?}");
        // Each had one statement on its way when the server died.
        assert!(failed.len() <= 2, "{failed:?}");
        assert!(!written.is_empty());
    }
    let twice = "SELECT count(*) FROM (SELECT x FROM t WHERE x >= 0 GROUP BY x HAVING count(*) > 1) AS d";
    assert_eq!(servers.on(1, database, twice), "0");
}

async fn an_old_primary_that_comes_back_writable_gets_nothing(engine: Engine) {
    let servers = Servers::own(engine);
    let (proxy, database) = servers.proxy(TABLE, &[]).await;
    let mut session = servers.session(&proxy, &database).await.expect("it logs in");
    servers.wait_until_caught_up(0);
    servers.stop(0, Stop::Kill);
    servers.promote(1, &[2]);
    session.value("INSERT INTO t VALUES (1)").await;

    servers.start(0);
    proxy.wait_for_log("fenced").await;
    for x in 2..20 {
        session.value(&format!("INSERT INTO t VALUES ({x})")).await;
        assert_eq!(session.value("SELECT max(x) FROM t").await, x.to_string());
        assert_ne!(session.port().await, servers.port(0));
    }

    assert_eq!(servers.on(0, &database, "SELECT count(*) FROM t"), "0");
    assert_eq!(servers.on(1, &database, "SELECT count(*) FROM t"), "19");
}

/// A write that its server has done while nobody had the role; the answer is on its way.
async fn write_without_a_primary(
    servers: &Servers,
    settings: &[&str],
) -> (Proxy, JoinHandle<Result<String, String>>, JoinHandle<Result<String, String>>) {
    let (proxy, database) = servers.proxy("CREATE TABLE t (x int PRIMARY KEY)", settings).await;
    let mut first = servers.session(&proxy, &database).await.expect("it logs in");
    let mut second = servers.session(&proxy, &database).await.expect("it logs in");
    first.value("BEGIN").await;
    first.value("INSERT INTO t VALUES (1)").await;
    let write = tokio::spawn(async move { second.ask("INSERT INTO t VALUES (1)").await });
    eventually("the second waits for the first", async || servers.has_waiter(0)).await;
    servers.lock_monitor_out(0);
    nobody_has_the_role(&proxy).await;
    let undo = tokio::spawn(async move { first.ask("ROLLBACK").await });
    let count = "SELECT count(*) FROM t";
    eventually("the second is done", async || servers.on(0, &database, count) == "1").await;
    (proxy, write, undo)
}

/// Waits until that is known to all: the metrics show it thereafter.
async fn nobody_has_the_role(proxy: &Proxy) {
    eventually("nobody has the role", async || proxy.metric("pointsman_without_primary_seconds", &[]) > 0.0)
        .await;
}

async fn a_write_is_acknowledged_once_its_server_has_the_role_again(engine: Engine) {
    let servers = Servers::own(engine);
    let (proxy, write, undo) = write_without_a_primary(&servers, &[]).await;
    assert!(!write.is_finished());
    servers.let_monitor_in(0);
    assert_eq!(write.await.expect("it does not panic"), Ok(String::new()));
    assert_eq!(undo.await.expect("it does not panic"), Ok(String::new()));
    drop(proxy);
}

async fn a_write_is_not_acknowledged_where_another_gets_the_role(engine: Engine) {
    let servers = Servers::own(engine);
    let (_proxy, write, _undo) = write_without_a_primary(&servers, &[]).await;
    servers.promote(1, &[]);
    let code = write.await.expect("it does not panic").expect_err("the new primary might not have it");
    assert!(engine.says(Meaning::Lost, &code), "{code}");
}

async fn without_a_primary_writes_are_refused_after_the_hold(engine: Engine) {
    let servers = Servers::own(engine);
    let (proxy, database) = servers.proxy(TABLE, &["cluster.failover.hold = '400ms'"]).await;
    let mut session = servers.session(&proxy, &database).await.expect("it logs in");
    servers.stop(0, Stop::Kill);
    nobody_has_the_role(&proxy).await;

    let asked = Instant::now();
    let code = session.ask("INSERT INTO t VALUES (1)").await.expect_err("nobody takes it");

    assert!(engine.says(Meaning::NoPrimary, &code), "{code}");
    assert!(asked.elapsed() >= Duration::from_millis(400), "it waited {:?}", asked.elapsed());
    assert_ne!(session.port().await, servers.port(0));
}

async fn to_end_no_transaction_takes_no_primary(engine: Engine) {
    let servers = Servers::own(engine);
    let (proxy, database) = servers.proxy(TABLE, &["cluster.failover.hold = '1s'"]).await;
    let mut session = servers.session(&proxy, &database).await.expect("it logs in");
    session.value("INSERT INTO t VALUES (1)").await;
    servers.stop(0, Stop::Kill);
    // Connection pools of drivers say it whenever a connection comes back.
    for sql in ["ROLLBACK", "COMMIT", "ROLLBACK"] {
        assert_eq!(session.ask(sql).await, Ok(String::new()), "{sql}");
    }
    assert!(session.ask("INSERT INTO t VALUES (2)").await.is_err());
}

async fn a_password_that_changes_with_a_reload_is_good_for_sessions_that_stay(engine: Engine) {
    let servers = Servers::own(engine);
    let (mut proxy, database) = servers.proxy(TABLE, &[]).await;
    let mut session = servers.session(&proxy, &database).await.expect("it logs in");
    session.value("INSERT INTO t VALUES (1)").await;
    let changes = match &servers {
        Servers::Postgres(_) => "ALTER ROLE app PASSWORD 'new-pw'",
        Servers::Mysql(_) => "ALTER USER app@'%' IDENTIFIED BY 'new-pw'",
    };
    servers.on(0, &database, changes);
    servers.wait_until_caught_up(0);

    proxy.reload(&["cluster.users = [{ name = 'app', password = 'new-pw' }]"]);
    eventually("the file is applied", async || {
        proxy.metric("pointsman_config_reloads_total", &["result=\"applied\""]) == 1.0
    })
    .await;

    for x in 2..=4 {
        for index in 0..3 {
            end_connections_of_app(&servers, index, &database);
        }
        // A server that has just ended a connection may do so behind the proxy's back.
        let _ = session.ask("SELECT 1").await;
        assert_eq!(session.ask(&format!("INSERT INTO t VALUES ({x})")).await, Ok(String::new()));
        assert_eq!(session.ask("SELECT count(*) FROM t").await, Ok(x.to_string()));
    }
}

fn end_connections_of_app(servers: &Servers, index: usize, database: &str) {
    match servers {
        Servers::Postgres(_) => {
            let ends = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'";
            servers.on(index, database, ends);
        }
        Servers::Mysql(_) => {
            let lists = "SELECT id FROM information_schema.processlist WHERE user = 'app'";
            for id in servers.on(index, database, lists).split_whitespace() {
                servers.on(index, database, &format!("KILL {id}"));
            }
        }
    }
}

async fn reads_see_what_their_level_promises_while_a_replica_is_late(engine: Engine) {
    let servers = Servers::own(engine);
    // The late one is asked as often as the other.
    let settings = ["cluster.routing.lag_half_weight = '0s'"];
    let (proxy, database) =
        servers.proxy("CREATE TABLE t (x int); INSERT INTO t VALUES (0)", &settings).await;
    servers.delay_replay(1, Duration::from_secs(2));
    let mut writer = servers.session(&proxy, &database).await.expect("it logs in");
    let mut reader = servers.session(&proxy, &database).await.expect("it logs in");

    let mut stale = 0;
    for (level, from) in [("session", 100), ("global", 200), ("eventual", 300)] {
        writer.set("consistency", level).await;
        reader.set("consistency", level).await;
        for x in from..from + 40 {
            writer.value(&format!("UPDATE t SET x = {x}")).await;
            let own = writer.value("SELECT x FROM t").await;
            let others = reader.value("SELECT x FROM t").await;
            match level {
                "session" => assert_eq!(own, x.to_string(), "{level}"),
                "global" => assert_eq!((own, others), (x.to_string(), x.to_string()), "{level}"),
                _ => stale += usize::from(others != x.to_string()),
            }
        }
    }
    assert!(stale > 0, "nothing was late: the promises were not tried");
}

async fn a_global_read_sees_what_was_committed_by_a_transaction_that_goes_on(engine: Engine) {
    let servers = Servers::own(engine);
    let settings = ["cluster.routing.consistency = 'global'"];
    let (proxy, database) = servers.proxy(TABLE, &settings).await;
    let mut writer = servers.session(&proxy, &database).await.expect("it logs in");
    let mut reader = servers.session(&proxy, &database).await.expect("it logs in");
    servers.pause_replay(1);
    servers.pause_replay(2);

    let mut ends = vec!["COMMIT AND CHAIN"];
    if engine != Engine::Postgres {
        ends.extend(["BEGIN", "START TRANSACTION READ WRITE", "CREATE TABLE made (x INT)"]);
    }
    for (x, end) in (1..).zip(ends) {
        writer.value("BEGIN").await;
        writer.value(&format!("INSERT INTO t VALUES ({x})")).await;

        writer.value(end).await;

        assert_eq!(reader.value("SELECT max(x) FROM t").await, x.to_string(), "{end}");
        writer.value("COMMIT").await;
    }
}

async fn a_token_carries_a_write_to_another_proxy(engine: Engine) {
    let servers = Servers::own(engine);
    let (proxy, database) = servers.proxy(TABLE, &[]).await;
    let other = servers.another_proxy(&[]).await;
    let mut writer = servers.session(&proxy, &database).await.expect("it logs in");
    let mut reader = servers.session(&other, &database).await.expect("it logs in");
    servers.pause_replay(1);
    servers.pause_replay(2);

    for x in 1..=5 {
        writer.value(&format!("INSERT INTO t VALUES ({x})")).await;
        let token = writer.get("position").await;
        assert!(!token.is_empty());
        reader.set("position", &token).await;
        assert_eq!(reader.value("SELECT max(x) FROM t").await, x.to_string());
    }
    servers.resume_replay(1);
    let (reader, fresh) = (tokio::sync::Mutex::new(reader), servers.port(1));
    eventually("a replica that has it reads", async || reader.lock().await.port().await == fresh).await;
}
