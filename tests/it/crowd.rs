//! Many clients over few server connections.

use std::time::Duration;

use futures_util::future::join_all;

use crate::support::{Stage, eventually, soon};

const IDLE: usize = 5_000;
const BUSY: usize = 64;
/// What 5,000 sessions may take in a build without optimisation, buffers given back.
const BYTES_PER_IDLE_CLIENT: u64 = 10 * 1024;

#[tokio::test]
async fn five_thousand_idle_clients_and_sixty_four_busy_ones_share_twenty_connections() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let before = stage.proxy.resident_bytes();
    let mut idle = Vec::with_capacity(IDLE);
    while idle.len() < IDLE {
        idle.extend(join_all((0..50).map(|_| stage.session())).await);
    }

    let busy = join_all((0..BUSY).map(|_| stage.session())).await;
    let work = busy.iter().enumerate().map(async |(client, session)| {
        for _ in 0..20 {
            session.run(&format!("INSERT INTO t VALUES ({client})")).await;
            let own = session.value(&format!("SELECT count(*) > 0 FROM t WHERE x = {client}")).await;
            assert_eq!(own, "t");
        }
    });
    join_all(work).await;

    let connections =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND datname = current_database()";
    for node in 0..3 {
        let count: usize = stage.database.ask(node, connections).parse().expect("a count is a number");
        assert!(count <= 20, "{count} connections to node {node}");
    }
    assert_eq!(stage.database.ask(0, "SELECT count(*) FROM t"), (20 * BUSY).to_string());
    eventually("memory is bounded", async || {
        stage.proxy.resident_bytes().saturating_sub(before) / (IDLE as u64) < BYTES_PER_IDLE_CLIENT
    })
    .await;
    assert_eq!(idle[IDLE - 1].value("SELECT 1").await, "1", "an idle client is still served");
}

#[tokio::test]
async fn clients_that_wait_for_a_connection_are_served_in_their_order() {
    let stage = Stage::set("CREATE TABLE t (turn serial, client int)", &["cluster.pool.size = 1"]).await;
    let holder = stage.session().await;
    holder.run("BEGIN; SELECT txid_current()").await;

    let mut waiting = Vec::new();
    for client in 0..10 {
        let session = stage.session().await;
        waiting.push(tokio::spawn(async move {
            session.run(&format!("INSERT INTO t (client) VALUES ({client})")).await;
        }));
        // Each comes clearly after the one before.
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    holder.run("COMMIT").await;

    soon("all are served", join_all(waiting)).await;
    let order = stage.database.ask(0, "SELECT string_agg(client::text, ',' ORDER BY turn) FROM t");
    assert_eq!(order, "0,1,2,3,4,5,6,7,8,9");
}

#[tokio::test]
async fn a_client_that_waits_too_long_for_a_connection_is_told_so() {
    let stage = Stage::set("", &["cluster.pool.size = 1", "cluster.pool.checkout_timeout = '300ms'"]).await;
    let (holder, other) = (stage.session().await, stage.session().await);
    holder.run("BEGIN; SELECT txid_current()").await;

    let code = other.error("/* pointsman: primary */ SELECT 1").await;

    assert_eq!(code, "53300");
    holder.run("COMMIT").await;
    assert_eq!(other.value("/* pointsman: primary */ SELECT 1").await, "1");
}
