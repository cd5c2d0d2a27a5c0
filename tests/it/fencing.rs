//! A node that lost the primary's role gets nothing more, not even on connections that are open.

use std::time::Duration;

use pointsman::demo::{
    Port, Signal,
    servers::{APP, PgCluster, Stop},
    signal,
};

use crate::support::{
    Database, Proxy, Session,
    client::connect,
    cluster, eventually,
    link::Link,
    wire::{Batch, Wire, tags},
};

const TABLE: &str =
    "CREATE TABLE t (x int); CREATE FUNCTION calm() RETURNS int IMMUTABLE AS 'SELECT 1' LANGUAGE sql";
const OPEN: &str = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND xact_start IS NOT NULL";

/// The console for psql.
struct Console(Port);

impl Console {
    const USERS: &str = "admin.users = [{ name = 'root', password = 'secret' }]";

    fn new() -> Self {
        Self(Port::claim().expect("ports are to be had"))
    }

    fn door(&self) -> String {
        format!("admin.postgres = '127.0.0.1:{}'", self.0.number())
    }

    /// What SHOW NODES says of each node in its last column.
    async fn why(&self) -> Vec<String> {
        let dsn = format!("host=127.0.0.1 port={} user=root password=secret dbname=x", self.0.number());
        let nodes = Session::open(&dsn).await.run("SHOW NODES").await;
        nodes.iter().map(|node| node.last().cloned().flatten().unwrap_or_default()).collect()
    }
}

/// A proxy that reaches node 0, the primary, over a link, and node 1. It knows the database's catalog:
/// before, whatever is called may leave state behind, and pins its session.
async fn behind_a_link(cluster: &PgCluster, database: &Database<'_>) -> (Proxy, Link) {
    let link = Link::to(&cluster.node(0).address());
    let nodes = [link.address(), cluster.node(1).address()];
    let proxy = Proxy::start_unready(&nodes, &["cluster.monitor.timeout = '200ms'"]);
    let replica = cluster.node(1).port();
    proxy.wait_until_reads_use(&[replica]).await;
    let from = "SELECT inet_server_port() + calm() - 1";
    eventually("it knows what functions do", async || {
        proxy.session(&database.name).await.value(from).await == replica.to_string()
    })
    .await;
    (proxy, link)
}

/// Promotes node 1 while the proxy cannot reach node 0, which then is back and alive.
async fn promote_beside(cluster: &PgCluster, proxy: &Proxy, link: &Link) {
    cluster.wait_until_caught_up(0).expect("replicas follow");
    link.stall();
    cluster.promote(1).expect("a replica takes over");
    proxy.wait_for_log("failover=true").await;
    link.resume();
}

#[tokio::test]
async fn a_transaction_open_on_the_old_primary_is_ended_when_another_takes_over() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let (proxy, link) = behind_a_link(&cluster, &database).await;
    let session = proxy.session(&database.name).await;
    session.run("BEGIN").await;
    session.run("INSERT INTO t VALUES (1)").await;

    promote_beside(&cluster, &proxy, &link).await;
    let open = || cluster.node(0).sql("postgres", OPEN).expect("it answers");
    eventually("the old primary has nothing open", async || open() == "0").await;

    assert_eq!(session.error("COMMIT").await, "08006");
    session.run("INSERT INTO t VALUES (2)").await;
    assert_eq!(cluster.node(0).sql(&database.name, "SELECT count(*) FROM t").expect("it answers"), "0");
    assert_eq!(cluster.node(1).sql(&database.name, "SELECT x FROM t").expect("it answers"), "2");
}

#[tokio::test]
async fn a_session_pinned_to_the_old_primary_is_ended() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let (proxy, link) = behind_a_link(&cluster, &database).await;
    let pinned = proxy.session(&database.name).await;
    pinned.run("CREATE TEMP TABLE mine (x int)").await;

    promote_beside(&cluster, &proxy, &link).await;

    let error = pinned.error("INSERT INTO mine VALUES (1)").await;
    assert!(["08006", "connection closed"].contains(&error.as_str()), "{error}");
    proxy.session(&database.name).await.run("INSERT INTO t VALUES (2)").await;
    assert_eq!(cluster.node(0).sql(&database.name, "SELECT count(*) FROM t").expect("it answers"), "0");
}

#[tokio::test]
async fn the_rest_of_a_long_statement_does_not_reach_the_old_primary() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let (proxy, link) = behind_a_link(&cluster, &database).await;
    let mut client = Wire::login(proxy.port(), APP, &database.name).await;
    let insert = format!("INSERT INTO t VALUES (1) /* {} */", ".".repeat(3 << 20));
    let insert = Batch::new().query(&insert);
    let (beginning, rest) = insert.bytes().split_at(2 << 20);
    client.send(&Batch::new().raw(beginning)).await;
    let node = format!("node=\"{}\"", link.address());
    let busy = || proxy.metric("pointsman_pool_connections", &[&node, "state=\"in_use\""]);
    eventually("it is on its way", async || busy() == 1.0).await;

    promote_beside(&cluster, &proxy, &link).await;
    client.send(&Batch::new().raw(rest)).await;

    let answer = client.until_ready().await;
    assert_eq!(answer[0].code(), "08007", "{}", tags(&answer));
    let clients = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
    eventually("the old primary has no client of ours", async || {
        cluster.node(0).sql("postgres", clients).expect("it answers") == "0"
    })
    .await;
    assert_eq!(cluster.node(0).sql(&database.name, "SELECT count(*) FROM t").expect("it answers"), "0");
    client.ask(&Batch::new().query("INSERT INTO t VALUES (2)")).await;
    assert_eq!(cluster.node(1).sql(&database.name, "SELECT x FROM t").expect("it answers"), "2");
}

#[tokio::test]
async fn a_commit_on_its_way_when_the_primary_is_replaced_is_in_doubt_and_one_not_sent_is_not_sent() {
    commits_end_when_the_primary_is_replaced(&[]).await;
}

/// What is open then is of pools that are not used any more.
#[tokio::test]
async fn a_commit_on_its_way_is_in_doubt_also_after_a_reload_has_replaced_the_pools() {
    commits_end_when_the_primary_is_replaced(&["cluster.pool.size = 7"]).await;
}

async fn commits_end_when_the_primary_is_replaced(reloaded: &[&str]) {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let (mut proxy, link) = behind_a_link(&cluster, &database).await;
    let (sent, unsent) = (proxy.session(&database.name).await, proxy.session(&database.name).await);
    for (session, x) in [(&sent, 1), (&unsent, 2)] {
        session.run("BEGIN").await;
        session.run(&format!("INSERT INTO t VALUES ({x})")).await;
    }
    if !reloaded.is_empty() {
        proxy.reload(reloaded);
        proxy.wait_for_log("reloaded").await;
    }
    cluster.wait_until_caught_up(0).expect("replicas follow");

    link.stall();
    let commit = tokio::spawn(async move { sent.error("COMMIT").await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    cluster.promote(1).expect("a replica takes over");

    assert_eq!(commit.await.expect("the session does not panic"), "08007");
    assert_eq!(unsent.error("COMMIT").await, "08006");
    link.resume();
    let written = || cluster.node(0).sql(&database.name, "SELECT string_agg(x::text, ',') FROM t");
    eventually("the commit that was sent arrives", async || written().is_ok_and(|rows| rows == "1")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(written().expect("it answers"), "1", "the other one was sent too");
}

#[tokio::test]
async fn an_old_primary_that_comes_back_writable_gets_not_one_statement() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let console = Console::new();
    let proxy = Proxy::start(&cluster, &[&console.door(), Console::USERS]).await;
    let session = proxy.session(&database.name).await;
    cluster.wait_until_caught_up(0).expect("replicas follow");
    cluster.stop(0, Stop::Kill).expect("it dies");
    cluster.promote(1).expect("a replica takes over");
    cluster.follow(2, 1).expect("the other follows");
    session.run("INSERT INTO t VALUES (1)").await;

    cluster.start_node(0).expect("it comes back, and takes writes");
    proxy.wait_for_log("fenced").await;
    let old = cluster.node(0).address();
    for x in 2..20 {
        session.run(&format!("INSERT INTO t VALUES ({x})")).await;
        session.run("SELECT count(*) FROM t").await;
        session.run("/* pointsman: primary */ SELECT count(*) FROM t").await;
        session.run("BEGIN READ ONLY; SELECT count(*) FROM t; COMMIT").await;
        assert_eq!(
            session.error(&format!("/* pointsman: node={old} */ SELECT count(*) FROM t")).await,
            "42704"
        );
    }

    assert_eq!(database.calls("FROM t").0[0], 0, "it answered a read");
    assert_eq!(cluster.node(0).sql(&database.name, "SELECT count(*) FROM t").expect("it answers"), "0");
    let why = "it says it is primary on timeline 1, the newest is 2";
    assert!(proxy.log().contains(why), "{}", proxy.log());
    assert_eq!(console.why().await[0], why);
    let label = format!("node=\"{old}\"");
    assert_eq!(proxy.metric("pointsman_node_state", &[&label, "state=\"fenced\""]), 1.0);
    assert_eq!(proxy.metric("pointsman_node_role", &[&label, "role=\"primary\""]), 0.0);
}

#[tokio::test]
async fn a_restarted_proxy_remembers_who_was_elected_and_refuses_the_old_primary() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let setting = format!("cluster.failover.state_file = '{}'", folder.path().join("it.state").display());
    let settings = [setting.as_str(), "cluster.failover.hold = '1s'"];
    let mut proxy = Proxy::start(&cluster, &settings).await;
    let session = proxy.session(&database.name).await;
    cluster.wait_until_caught_up(0).expect("replicas follow");
    cluster.stop(0, Stop::Kill).expect("it dies");
    cluster.promote(1).expect("a replica takes over");
    session.run("INSERT INTO t VALUES (1)").await;
    drop(session);
    proxy.terminate();
    proxy.wait();

    // All that is left is the old primary and a replica that never heard of the new one.
    cluster.stop(1, Stop::Kill).expect("the new one dies");
    cluster.start_node(0).expect("the old one comes back, and takes writes");
    let proxy = Proxy::start_unready(&cluster.addresses(), &settings);
    proxy.wait_for_log("fenced").await;

    let session = Session::retry(&proxy.dsn(&database.name)).await;
    assert_eq!(session.error("INSERT INTO t VALUES (2)").await, "57P03");
    assert_eq!(cluster.node(0).sql(&database.name, "SELECT count(*) FROM t").expect("it answers"), "0");
}

#[tokio::test]
async fn a_promotion_beside_a_primary_that_has_more_stops_all_writes() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let console = Console::new();
    let settings = ["cluster.failover.hold = '300ms'", &console.door(), Console::USERS];
    let proxy = Proxy::start(&cluster, &settings).await;
    let session = proxy.session(&database.name).await;
    cluster.pause_replay(1).expect("replay can be paused");
    session.run("INSERT INTO t VALUES (1)").await;
    eventually("the proxy has seen it", async || !session.value("SHOW pointsman.position").await.is_empty())
        .await;

    // It is cut off first, so that it is promoted without what was acknowledged.
    cluster.follow_address(1, "127.0.0.1", 1).expect("it streams from nobody");
    cluster.resume_replay(1).expect("replay goes on");
    cluster.node(1).sql("postgres", "SELECT 1").expect("it answers");
    cluster.promote(1).expect("somebody promotes it");

    proxy.wait_for_log("stop one of them").await;
    assert_eq!(session.error("INSERT INTO t VALUES (2)").await, "57P03");
    let why = console.why().await;
    assert!(why[0].contains(&cluster.node(1).address()), "{}", why[0]);
    assert!(why[1].contains(&cluster.node(0).address()), "{}", why[1]);
    assert!(why[2].contains("stop one of them"), "{}", why[2]);
    assert!(proxy.metric("pointsman_without_primary_seconds", &[]) > 0.0);
}

#[tokio::test]
async fn a_caught_up_replica_promoted_beside_a_primary_that_nobody_writes_to_takes_over() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let proxy = Proxy::start(&cluster, &[]).await;
    let session = proxy.session(&database.name).await;
    session.run("INSERT INTO t VALUES (1)").await;
    cluster.wait_until_caught_up(0).expect("replicas follow");
    // Both have been asked since.
    let replica = cluster.node(1).port();
    eventually("the replica has it", async || session.port().await == replica).await;

    cluster.promote(1).expect("somebody promotes it");
    proxy.wait_for_log("failover=true").await;
    session.run("INSERT INTO t VALUES (2)").await;

    assert_eq!(cluster.node(1).sql(&database.name, "SELECT count(*) FROM t").expect("it answers"), "2");
    assert_eq!(cluster.node(0).sql(&database.name, "SELECT count(*) FROM t").expect("it answers"), "1");
    proxy.wait_for_log("is fenced").await;
}

#[tokio::test]
async fn a_new_timeline_is_seen_before_any_checkpoint_has_written_it_down() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let (proxy, link) = behind_a_link(&cluster, &database).await;
    cluster.wait_until_caught_up(0).expect("replicas follow");
    let pid = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    let pid = cluster.node(1).sql("postgres", pid).expect("it answers").parse().expect("a process");

    signal(pid, Signal::Stop);
    promote_beside(&cluster, &proxy, &link).await;
    let written = cluster.node(1).sql("postgres", "SELECT timeline_id FROM pg_control_checkpoint()");
    let session = proxy.session(&database.name).await;
    proxy.wait_for_log("is fenced").await;
    for x in 0..10 {
        session.run(&format!("INSERT INTO t VALUES ({x})")).await;
    }
    signal(pid, Signal::Continue);

    assert_eq!(written.expect("it answers"), "1", "a checkpoint came before");
    assert_eq!(cluster.node(0).sql(&database.name, "SELECT count(*) FROM t").expect("it answers"), "0");
    assert_eq!(cluster.node(1).sql(&database.name, "SELECT count(*) FROM t").expect("it answers"), "10");
}

#[tokio::test]
async fn of_two_replicas_promoted_to_one_timeline_only_the_one_that_was_elected_gets_writes() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, TABLE);
    let proxy = Proxy::start(&cluster, &[]).await;
    let session = proxy.session(&database.name).await;
    cluster.wait_until_caught_up(0).expect("replicas follow");
    cluster.stop(0, Stop::Kill).expect("it dies");
    cluster.promote(1).expect("somebody promotes it");
    session.run("INSERT INTO t VALUES (1)").await;

    // Who saw one of them first stays with it.
    cluster.promote(2).expect("somebody promotes it");
    proxy.wait_for_log("it says it is primary on timeline 2, which belongs to").await;
    for x in 2..20 {
        session.run(&format!("INSERT INTO t VALUES ({x})")).await;
    }
    let rows = |node: usize| cluster.node(node).sql(&database.name, "SELECT count(*) FROM t");
    assert_eq!([1, 2].map(|node| rows(node).expect("it answers")), ["19", "0"]);

    // Who comes later cannot tell which is meant, until one yields.
    let late = Proxy::start_unready(&cluster.addresses(), &["cluster.failover.hold = '300ms'"]);
    late.wait_for_log("none is known to be the older").await;
    let dsn = late.dsn(&database.name);
    assert!(connect(&dsn).await.is_err(), "there is nobody to let a client in");
    cluster.stop(2, Stop::Fast).expect("it stops");
    Session::retry(&dsn).await.run("INSERT INTO t VALUES (20)").await;
    assert_eq!(cluster.node(1).sql(&database.name, "SELECT max(x) FROM t").expect("it answers"), "20");
}
