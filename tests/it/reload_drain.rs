//! SIGHUP changes the configuration as a whole or not at all; SIGTERM lets work end.

use std::time::Duration;

use pointsman::demo::servers::{APP, Login};

use crate::support::{
    Stage, client, eventually,
    proxy::login_error,
    wire::{Wire, startup},
};

#[tokio::test]
async fn a_reload_applies_to_clients_that_stay() {
    let mut stage = Stage::set("", &[]).await;
    let session = stage.session().await;
    assert!(stage.is_replica(session.port().await));

    // A weight of zero for both replicas leaves the primary.
    let nodes: Vec<String> = stage
        .cluster
        .nodes()
        .iter()
        .enumerate()
        .map(|(index, node)| {
            format!("{{ address = '{}', weight = {} }}", node.address(), f64::from(index == 0))
        })
        .collect();
    stage.proxy.reload(&[&format!("cluster.nodes = [{}]", nodes.join(", "))]);

    let primary = stage.primary_port();
    eventually("reads use the primary", async || session.port().await == primary).await;
}

#[tokio::test]
async fn a_faulty_file_changes_nothing_and_is_named_in_the_log() {
    let stage = Stage::set("", &[]).await;
    let session = stage.session().await;

    stage.proxy.reload_text("[[cluster]]\nname = 7\nnonsense = true\n");

    stage.proxy.wait_for_log("nonsense").await;
    assert!(stage.is_replica(session.port().await));
    assert_eq!(stage.session().await.value("SELECT 1").await, "1");
    assert_eq!(stage.proxy.metric("pointsman_config_last_reload_success", &[]), 0.0);
}

#[tokio::test]
async fn a_reload_changes_what_is_logged() {
    let mut stage = Stage::set("", &[]).await;
    let lines = |stage: &Stage| stage.proxy.log().matches("a client did not get in").count();
    let stranger = Login { name: APP.name, password: "not-it" };
    // Logged at info, whatever becomes of it.
    let fails = async |stage: &Stage| {
        login_error(&stage.proxy.dsn_of(stranger, &stage.database.name)).await;
    };
    fails(&stage).await;
    eventually("it speaks", async || lines(&stage) == 1).await;

    stage.proxy.reload(&["log.level = 'warn'"]);
    stage.proxy.wait_for_log("reloaded: log.level").await;
    // The line stands a moment before the change.
    eventually("it is quiet", async || {
        let before = lines(&stage);
        fails(&stage).await;
        lines(&stage) == before
    })
    .await;

    stage.proxy.reload(&["log.level = 'info'"]);
    let before = lines(&stage);
    eventually("it speaks again", async || {
        fails(&stage).await;
        lines(&stage) > before
    })
    .await;
}

#[tokio::test]
async fn a_new_user_comes_in_after_a_reload_and_a_running_statement_is_not_disturbed() {
    let mut stage = Stage::set("", &[]).await;
    let session = stage.session().await;
    let admin = pointsman::demo::servers::SUPERUSER;
    let running = tokio::spawn(async move { session.value("SELECT 'undisturbed' FROM pg_sleep(1)").await });

    stage.proxy.reload(&[&format!(
        "cluster.users = [{{ name = 'app', password = 'app-pw' }}, {{ name = '{}', password = '{}' }}]",
        admin.name, admin.password
    )]);

    let dsn = stage.proxy.dsn_of(admin, &stage.database.name);
    eventually("the new user comes in", async || client::connect(&dsn).await.is_ok()).await;
    assert_eq!(running.await.expect("it does not panic"), "undisturbed");
}

#[tokio::test]
async fn sigterm_lets_open_transactions_end_and_takes_no_new_clients() {
    let mut stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let session = stage.session().await;
    session.run("BEGIN; INSERT INTO t VALUES (1)").await;

    stage.proxy.terminate();
    eventually("no new clients", async || {
        client::connect(&stage.proxy.dsn(&stage.database.name)).await.is_err()
    })
    .await;
    session.run("INSERT INTO t VALUES (2)").await;
    session.run("COMMIT").await;

    assert!(stage.proxy.wait().success());
    assert_eq!(stage.database.ask(0, "SELECT sum(x) FROM t"), "3");
}

#[tokio::test]
async fn idle_clients_are_told_that_the_proxy_ends() {
    let mut stage = Stage::set("", &[]).await;
    let mut wire = stage.wire().await;

    stage.proxy.terminate();

    let said = wire.until_closed().await;
    assert_eq!(said.last().map(|frame| frame.code()).as_deref(), Some("57P01"));
    assert!(stage.proxy.wait().success());
}

#[tokio::test]
async fn open_transactions_are_ended_after_the_shutdown_timeout() {
    let mut stage = Stage::set("CREATE TABLE t (x int)", &["shutdown_timeout = '300ms'"]).await;
    let session = stage.session().await;
    session.run("BEGIN; INSERT INTO t VALUES (1)").await;

    stage.proxy.terminate();

    assert!(stage.proxy.wait().success());
    assert!(session.try_run("COMMIT").await.is_err());
    eventually("the server has rolled back", async || {
        stage.database.ask(
            0,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'app'",
        ) == "0"
    })
    .await;
    assert_eq!(stage.database.ask(0, "SELECT count(*) FROM t"), "0");
}

#[tokio::test]
async fn a_second_sigterm_ends_at_once() {
    let mut stage = Stage::set("", &[]).await;
    let session = stage.session().await;
    session.run("BEGIN; SELECT txid_current()").await;

    stage.proxy.terminate();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(stage.proxy.is_running(), "the transaction is still open");
    stage.proxy.terminate();

    stage.proxy.wait();
}

#[tokio::test]
async fn a_node_that_a_reload_takes_away_keeps_no_connection() {
    let mut stage = Stage::set("", &["cluster.pool.min_idle = 2"]).await;
    let last = stage.cluster.nodes().len() - 1;
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'app'";
    let session = stage.session().await;
    let there = stage.cluster.node(last).port();
    eventually("it serves", async || session.port().await == there).await;
    eventually("it is warm", async || stage.database.ask(last, open) == "2").await;

    let kept: Vec<String> =
        stage.cluster.addresses()[..last].iter().map(|node| format!("'{node}'")).collect();
    stage.proxy.reload(&[&format!("cluster.nodes = [{}]", kept.join(", "))]);

    eventually("it is left alone", async || stage.database.ask(last, open) == "0").await;
    assert_ne!(session.port().await, there);
}

#[tokio::test]
async fn a_client_in_the_middle_of_its_login_is_told_that_the_proxy_ends() {
    let mut stage = Stage::set("", &["cluster.auth.trust_loopback = true"]).await;
    // One of the same kind has been greeted, so that no server has to be asked.
    drop(stage.wire().await);
    let mut wire = Wire::connect(stage.proxy.port()).await;
    // Accepted in the order of coming.
    drop(stage.wire().await);

    stage.proxy.terminate();
    eventually("it listens no more", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", stage.proxy.port())).await.is_err()
    })
    .await;
    wire.send(&startup(196_608, &[("user", APP.name), ("database", &stage.database.name)])).await;

    let said = wire.until_closed().await;
    assert_eq!(said.last().map(|frame| frame.code()).as_deref(), Some("57P01"), "{said:?}");
    assert!(stage.proxy.wait().success());
}
