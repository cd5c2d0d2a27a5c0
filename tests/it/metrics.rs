//! What the proxy tells of itself.

use std::time::Duration;

use crate::support::{Stage, eventually};

#[tokio::test]
async fn statements_are_counted_by_node_and_access() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let session = stage.session().await;
    let primary = format!("node=\"{}\"", stage.cluster.node(0).address());
    let count = |labels: &[&str]| stage.proxy.metric("pointsman_statements_total", labels);
    let (reads, writes) = (count(&["access=\"read\""]), count(&["access=\"write\"", &primary]));

    for _ in 0..10 {
        session.run("INSERT INTO t VALUES (1)").await;
    }
    for _ in 0..30 {
        session.run("SELECT 1").await;
    }

    eventually("both are counted", async || {
        count(&["access=\"read\""]) - reads == 30.0 && count(&["access=\"write\"", &primary]) - writes == 10.0
    })
    .await;
}

#[tokio::test]
async fn roles_and_lag_of_every_node_are_there() {
    let stage = Stage::set("", &[]).await;
    for (index, node) in stage.cluster.nodes().iter().enumerate() {
        let label = format!("node=\"{}\"", node.address());
        let role = if index == 0 { "role=\"primary\"" } else { "role=\"replica\"" };
        eventually(&format!("{label} is {role}"), async || {
            stage.proxy.metric("pointsman_node_role", &[&label, role]) == 1.0
        })
        .await;
        if index > 0 {
            let page = stage.proxy.http("/metrics");
            let lag = page
                .lines()
                .any(|line| line.starts_with("pointsman_replica_lag_seconds") && line.contains(&label));
            assert!(lag, "no lag of {label}");
        }
    }
}

#[tokio::test]
async fn clients_and_logins_are_counted() {
    let stage = Stage::set("", &[]).await;
    let sessions = [stage.session().await, stage.session().await];
    eventually("two clients", async || stage.proxy.metric("pointsman_clients", &[]) == 2.0).await;

    drop(sessions);

    eventually("no clients", async || stage.proxy.metric("pointsman_clients", &[]) == 0.0).await;
    assert!(stage.proxy.metric("pointsman_logins_total", &[]) >= 2.0);
}

#[tokio::test]
async fn liveness_and_readiness_have_their_pages() {
    let stage = Stage::set("", &[]).await;
    assert!(!stage.proxy.http("/healthz").is_empty());
    assert!(!stage.proxy.http("/readyz").is_empty());
    tokio::time::timeout(Duration::from_secs(5), async { stage.proxy.http("/metrics") })
        .await
        .expect("in time");
    assert!(stage.proxy.http("/metrics").contains("pointsman_build_info"));
}
