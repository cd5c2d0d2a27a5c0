//! How long server connections live.

use std::time::{Duration, Instant};

use pointsman::demo::servers::APP;

use crate::support::{
    Database, Session, Stage,
    both::{Engine, Servers},
    eventually, soon,
    wire::{Batch, Wire, first_columns},
};

/// The processes on the primary that serve the user `app` in the test's database, oldest first.
fn backends(stage: &Stage) -> String {
    backends_at(&stage.database, 0)
}

fn backends_at(database: &Database<'_>, node: usize) -> String {
    let pids = "SELECT coalesce(string_agg(pid::text, ' ' ORDER BY backend_start), '') FROM pg_stat_activity
        WHERE datname = current_database() AND usename = 'app'";
    database.ask(node, pids)
}

fn count(backends: &str) -> usize {
    backends.split_whitespace().count()
}

#[tokio::test]
async fn connections_that_idle_too_long_are_closed_but_for_min_idle() {
    let settings = ["cluster.pool.min_idle = 2", "cluster.pool.idle_timeout = '500ms'"];
    let stage = Stage::set("CREATE TABLE t (x int)", &settings).await;
    let mut sessions: Vec<Session> = Vec::new();
    for _ in 0..4 {
        let session = stage.session().await;
        session.run("BEGIN; UPDATE t SET x = 1").await;
        sessions.push(session);
    }
    assert!(count(&backends(&stage)) >= 4);

    for session in &sessions {
        session.run("COMMIT").await;
    }

    eventually("two are left", async || count(&backends(&stage)) == 2).await;
    assert_eq!(sessions[0].value("SELECT 'alive'").await, "alive");
}

#[tokio::test]
async fn an_idle_connection_is_replaced_at_the_end_of_its_lifetime() {
    let settings = [
        "cluster.pool.min_idle = 1",
        "cluster.pool.idle_timeout = '0s'",
        "cluster.pool.max_lifetime = '500ms'",
    ];
    let stage = Stage::set("CREATE TABLE t (x int)", &settings).await;
    let session = stage.session().await;
    session.run("UPDATE t SET x = 1").await;
    eventually("one is kept for the next burst", async || count(&backends(&stage)) == 1).await;
    let first = backends(&stage);

    // Nobody asks for it meanwhile.
    eventually("another is in its place", async || {
        let now = backends(&stage);
        count(&now) == 1 && now != first
    })
    .await;
    assert_eq!(session.value("SELECT 'alive'").await, "alive");
}

#[tokio::test]
async fn what_is_kept_for_the_next_burst_is_taken_from_no_other_pool() {
    // One connection for two pools that want to keep one each.
    let settings = ["cluster.pool.min_idle = 1", "cluster.pool.node_connections = 1"];
    let stage = Stage::set("CREATE TABLE t (x int)", &settings).await;
    let other = Database::with(stage.cluster, "CREATE TABLE t (x int)");
    let sessions = [stage.session().await, stage.proxy.session(&other.name).await];
    for session in &sessions {
        session.run("UPDATE t SET x = 1").await;
    }
    let both = || format!("{}/{}", backends(&stage), backends_at(&other, 0));
    eventually("one of them has it", async || count(&both().replace('/', " ")) == 1).await;

    let (kept, watched) = (both(), Instant::now());
    while watched.elapsed() < Duration::from_secs(3) {
        assert_eq!(both(), kept, "nobody asked for it");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    for session in &sessions {
        session.run("UPDATE t SET x = 2").await;
    }
}

#[tokio::test]
async fn idle_connections_are_closed_while_another_node_has_none_left_to_give() {
    let settings = [
        "cluster.pool.min_idle = 1",
        "cluster.pool.idle_timeout = '500ms'",
        "cluster.pool.node_connections = 3",
    ];
    let stage = Stage::set("CREATE TABLE t (x int)", &settings).await;
    let other = Database::with(stage.cluster, "CREATE TABLE t (x int)");
    let poor = stage.proxy.session(&other.name).await;
    poor.run("UPDATE t SET x = 1").await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let session = stage.session().await;
        session.run("BEGIN; UPDATE t SET x = 1").await;
        sessions.push(session);
    }
    eventually("the other pool has none at the primary", async || count(&backends_at(&other, 0)) == 0).await;

    let node = stage.cluster.node(1).address();
    let mut reads = Vec::new();
    for _ in 0..3 {
        let session = stage.session().await;
        let read = format!("/* pointsman: node={node} */ SELECT pg_sleep(2)");
        reads.push(tokio::spawn(async move { session.run(&read).await }));
    }
    eventually("three read at once", async || count(&backends_at(&stage.database, 1)) == 3).await;
    for read in reads {
        read.await.expect("it is answered");
    }

    eventually("one of them is left", async || count(&backends_at(&stage.database, 1)) == 1).await;
}

#[tokio::test]
async fn a_connection_that_comes_back_serves_whoever_waits_in_another_pool() {
    let settings = ["cluster.pool.node_connections = 1", "cluster.pool.checkout_timeout = '60s'"];
    let stage = Stage::set("CREATE TABLE t (x int)", &settings).await;
    let other = Database::with(stage.cluster, "CREATE TABLE t (x int)");
    let (first, second) = (stage.session().await, stage.proxy.session(&other.name).await);
    first.run("BEGIN; UPDATE t SET x = 1").await;
    let waiting = tokio::spawn(async move { second.run("UPDATE t SET x = 2").await });
    eventually("it waits", async || stage.proxy.metric("pointsman_pool_waiters", &[]) == 1.0).await;

    first.run("COMMIT").await;

    soon("the other pool's turn", waiting).await.expect("it is answered");
}

#[tokio::test]
async fn clients_that_wait_for_room_on_a_node_share_the_connections_of_their_pool() {
    let stage = Stage::set("CREATE TABLE t (x int)", &["cluster.pool.node_connections = 1"]).await;
    let sessions = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()";
    let opened = || stage.database.ask(0, sessions).parse::<u32>().expect("a count");
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(stage.session().await);
    }
    let before = opened();

    let work = clients.iter().map(async |client| {
        for _ in 0..50 {
            client.run("UPDATE t SET x = 1").await;
        }
    });
    soon("they wait for each other", futures_util::future::join_all(work)).await;

    // Those of this test's own questions are among them.
    assert!(opened() - before < 20, "{} for 200 statements", opened() - before);
}

/// Its clients always wait for one of the node's connections; those of another pool have none yet.
#[tokio::test]
async fn a_pool_that_is_always_waited_for_leaves_others_their_turn() {
    let settings = [
        "cluster.pool.node_connections = 1",
        "cluster.pool.size = 1",
        "cluster.pool.checkout_timeout = '8s'",
    ];
    let stage = Stage::set("CREATE TABLE t (x int)", &settings).await;
    let other = Database::with(stage.cluster, "CREATE TABLE t (x int)");
    let late = stage.proxy.session(&other.name).await;
    let mut busy = Vec::new();
    for _ in 0..4 {
        let session = stage.session().await;
        busy.push(tokio::spawn(async move {
            loop {
                session.run("/* pointsman: primary */ SELECT pg_sleep(0.05)").await;
            }
        }));
    }
    let waiters = || stage.proxy.metric("pointsman_pool_waiters", &[]);
    eventually("they wait for each other", async || waiters() >= 2.0).await;

    for _ in 0..3 {
        late.run("UPDATE t SET x = 2").await;
    }

    assert!(busy.iter().all(|client| !client.is_finished()), "they go on");
    busy.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_database_whose_clients_have_left_can_be_renamed_copied_and_dropped() {
    let stage = Stage::set("", &[]).await;
    let session = stage.session().await;
    let name = format!("{}_left", stage.database.name);
    session.run(&format!("CREATE DATABASE {name}")).await;
    let use_it = async |name: &str| {
        let visitor = stage.proxy.session(name).await;
        visitor.run("CREATE TABLE IF NOT EXISTS t (x int)").await;
        visitor.value("SELECT count(*) FROM t").await;
    };

    use_it(&name).await;
    session.run(&format!("CREATE DATABASE {name}_2 TEMPLATE {name}")).await;
    use_it(&name).await;
    session.run(&format!("ALTER DATABASE {name} RENAME TO {name}_3")).await;
    for name in [format!("{name}_2"), format!("{name}_3")] {
        use_it(&name).await;
        session.run(&format!("DROP DATABASE {name}")).await;
    }

    let visitor = stage.proxy.session(&stage.database.name).await;
    visitor.value("SELECT 1").await;
    assert_eq!(session.error(&format!("DROP DATABASE {}", stage.database.name)).await, "55006");
    assert_eq!(visitor.value("SELECT 'alive'").await, "alive");
}

/// A place on a full server goes to whoever waits, not to a connection that serves nobody.
#[tokio::test]
async fn idle_connections_make_room_on_a_server_that_is_full() {
    let servers = Servers::own(Engine::Postgres);
    let (proxy, one) = servers.proxy("CREATE TABLE t (x int)", &[]).await;
    servers.on(0, &one, "CREATE DATABASE another OWNER app");
    let write = Batch::new().query("/* pointsman: primary */ SELECT 7");
    let mut first = Wire::login(proxy.port(), APP, &one).await;
    assert_eq!(first_columns(&first.ask(&write).await), ["7"]);
    servers.on(0, &one, "ALTER ROLE app CONNECTION LIMIT 1");
    servers.wait_until_caught_up(0);

    let mut second = Wire::login(proxy.port(), APP, "another").await;
    assert_eq!(first_columns(&second.ask(&write).await), ["7"]);
    assert_eq!(first_columns(&first.ask(&write).await), ["7"], "and back again");
}
