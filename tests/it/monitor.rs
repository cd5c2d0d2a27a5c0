//! How the monitor gets on with servers that do not let it in.

use pointsman::demo::servers::{APP, MONITOR, PgCluster, PgOptions};

use crate::support::{Database, Proxy, cluster, eventually};

/// The processes that serve the monitor on a node, oldest first.
fn monitors(cluster: &PgCluster, node: usize) -> String {
    let pids = format!(
        "SELECT coalesce(string_agg(pid::text, ' ' ORDER BY backend_start), '') FROM pg_stat_activity
         WHERE usename = '{}' AND datname = 'postgres'",
        MONITOR.name
    );
    cluster.node(node).sql("postgres", &pids).expect("the server answers")
}

fn superuser(cluster: &PgCluster, sql: &str) {
    cluster.node(0).sql("postgres", sql).expect("the server answers");
}

/// Without `pg_monitor` a replica tells nobody which timeline it is on.
#[tokio::test]
async fn a_monitor_that_may_not_see_what_replicas_receive_says_so() {
    let stage = cluster::shared();
    let monitor = format!("cluster.monitor = {{ user = '{}', password = '{}' }}", APP.name, APP.password);

    let proxy = Proxy::start_unready(&stage.addresses(), &[&monitor]);

    proxy.wait_for_log("role replica: its timeline is unknown").await;
    assert!(proxy.log().contains("monitor.user is no member of pg_monitor"), "{}", proxy.log());
    let session = proxy.session("app").await;
    assert_eq!(session.port().await, stage.node(0).port());
}

/// A standby answers no SELECT under SERIALIZABLE: the monitor asks by another level.
#[tokio::test]
async fn servers_that_are_serializable_by_default_are_monitored() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    for node in 0..3 {
        let by_default = "ALTER SYSTEM SET default_transaction_isolation = 'serializable'";
        for sql in [by_default, "SELECT pg_reload_conf()"] {
            cluster.node(node).sql("postgres", sql).expect("the server answers");
        }
    }
    let proxy = Proxy::start_unready(&cluster.addresses(), &[]);
    let session = proxy.session(&database.name).await;

    assert_eq!(session.value("SHOW transaction_isolation").await, "serializable");
    assert_eq!(session.port().await, cluster.node(0).port(), "a standby could not read");
    session.run("SET default_transaction_isolation = 'read committed'").await;
    eventually("replicas serve reads", async || session.port().await != cluster.node(0).port()).await;
}

/// Between two probes the monitor's connection idles.
#[tokio::test]
async fn servers_that_end_idle_sessions_leave_the_monitor_its_connections() {
    let settings = vec![("idle_session_timeout".to_owned(), "300ms".to_owned())];
    let cluster = cluster::own_with(PgOptions { replicas: 1, settings, ..PgOptions::default() });
    let proxy = Proxy::start(&cluster, &["cluster.monitor.interval = '1s'"]).await;

    let old = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = '{}' AND now() - backend_start > interval '4s'",
        MONITOR.name
    );
    for node in cluster.nodes() {
        eventually("its connection outlives some probes", async || {
            node.sql("postgres", &old).is_ok_and(|count| count == "1")
        })
        .await;
    }

    assert_eq!(failed_probes(&proxy, &cluster), 0.0);
    assert!(!proxy.log().contains("is suspect"), "{}", proxy.log());
}

/// Ends the monitor's connections to the primary.
fn cut_off_monitor(cluster: &PgCluster) {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}'";
    superuser(cluster, &sql.replace("{}", MONITOR.name));
}

fn failed_probes(proxy: &Proxy, cluster: &PgCluster) -> f64 {
    let node = format!("node=\"{}\"", cluster.node(0).address());
    proxy.metric("pointsman_probe_failures_total", &[&node])
}

#[tokio::test]
async fn a_primary_that_has_no_connection_left_for_the_monitor_takes_writes() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let proxy = Proxy::start(&cluster, &[]).await;
    let session = proxy.session(&database.name).await;
    session.run("INSERT INTO t VALUES (1)").await;

    superuser(&cluster, &format!("ALTER ROLE {} CONNECTION LIMIT 0", MONITOR.name));
    cut_off_monitor(&cluster);

    let before = failed_probes(&proxy, &cluster);
    eventually("it was refused often", async || failed_probes(&proxy, &cluster) >= before + 8.0).await;
    session.run("INSERT INTO t VALUES (2)").await;
    assert!(!proxy.log().contains("is down"), "it is alive:\n{}", proxy.log());

    superuser(&cluster, &format!("ALTER ROLE {} CONNECTION LIMIT -1", MONITOR.name));
    eventually("it is asked again", async || !monitors(&cluster, 0).is_empty()).await;
    assert_eq!(session.value("SELECT count(*) FROM t").await, "2");
}

#[tokio::test]
async fn a_reload_leaves_the_monitors_connections_alone() {
    let cluster = cluster::own();
    let mut proxy = Proxy::start(&cluster, &[]).await;
    let all = || [0, 1, 2].map(|node| monitors(&cluster, node));
    // Catalogs are read on connections of their own.
    let settled = |pids: &String| !pids.is_empty() && !pids.contains(' ');
    eventually("one each", async || all().iter().all(settled)).await;
    let before = all();

    proxy.reload(&["cluster.pool.node_connections = 7"]);

    let limit = "pointsman_pool_limit_connections";
    eventually("the bound is the new one", async || proxy.metric(limit, &[]) == 21.0).await;
    assert_eq!(all(), before);
}

#[tokio::test]
async fn a_wrong_password_of_the_monitor_after_a_reload_takes_no_node_down() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let mut proxy = Proxy::start(&cluster, &[]).await;
    let session = proxy.session(&database.name).await;

    proxy.reload(&["cluster.monitor.password = 'a slip'"]);

    proxy.wait_for_log("keeps its connection of before").await;
    assert!(proxy.log().contains("password authentication failed"), "{}", proxy.log());
    session.run("INSERT INTO t VALUES (1)").await;
    assert!(!proxy.log().contains("is down"), "{}", proxy.log());

    let right = format!("cluster.monitor.password = '{}'", MONITOR.password);
    let before = monitors(&cluster, 0);
    proxy.reload(&[&right]);
    eventually("it has logged in anew", async || {
        let now = monitors(&cluster, 0);
        !now.is_empty() && now != before
    })
    .await;
}
