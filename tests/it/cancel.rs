//! A cancel request reaches the statement of its own session, and nothing else.

use std::time::Duration;

use pointsman::demo::servers::{APP, Login};

use crate::support::{
    Database, Proxy, Session, Stage, cluster, eventually,
    link::Link,
    soon,
    wire::{self, Batch, Wire, first_columns, tags},
};

fn sleepers(stage: &Stage, marker: &str) -> usize {
    let count = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%{marker}%' AND state = 'active' AND pid <> pg_backend_pid()"
    );
    (0..3).map(|node| stage.database.ask(node, &count).parse::<usize>().expect("a count")).sum()
}

#[tokio::test]
async fn a_running_statement_is_cancelled_on_the_server_that_runs_it() {
    let stage = Stage::set("", &[]).await;
    for hint in ["", "/* pointsman: primary */"] {
        let mut wire = stage.wire().await;
        wire.send(&Batch::new().query(&format!("{hint} SELECT 'mark one', pg_sleep(60)"))).await;
        eventually("it runs", async || sleepers(&stage, "mark one") == 1).await;

        wire::cancel(stage.proxy.port(), &wire.key).await;

        let answer = wire.until_ready().await;
        assert_eq!(answer[answer.len() - 2].code(), "57014", "{}", tags(&answer));
        assert_eq!(first_columns(&wire.ask(&Batch::new().query("SELECT 'alive'")).await), ["alive"]);
    }
}

#[tokio::test]
async fn a_cancel_of_an_idle_session_hits_nobody() {
    let stage = Stage::set("", &["cluster.pool.size = 1"]).await;
    let (mut busy, mut idle) = (stage.wire().await, stage.wire().await);
    idle.ask(&Batch::new().query("/* pointsman: primary */ SELECT 1")).await;

    // Both have used the one server connection to the primary; only one is using it now.
    busy.send(&Batch::new().query("/* pointsman: primary */ SELECT 'mark two', pg_sleep(1)")).await;
    eventually("it runs", async || sleepers(&stage, "mark two") == 1).await;
    wire::cancel(stage.proxy.port(), &idle.key).await;

    assert_eq!(first_columns(&busy.until_ready().await), ["mark two"]);
}

#[tokio::test]
async fn a_cancel_with_an_unknown_key_is_ignored() {
    let stage = Stage::set("", &[]).await;
    let mut wire = stage.wire().await;
    wire.send(&Batch::new().query("SELECT 'mark three', pg_sleep(1)")).await;

    let mut key = wire.key.to_vec();
    *key.last_mut().expect("a key is not empty") ^= 1;
    soon("the proxy closes the cancel connection", wire::cancel(stage.proxy.port(), &key)).await;

    assert_eq!(first_columns(&wire.until_ready().await), ["mark three"]);
}

#[tokio::test]
async fn cancelling_at_every_moment_never_hits_the_next_client() {
    let stage = Stage::set("", &["cluster.pool.size = 1"]).await;
    let (mut one, mut other) = (stage.wire().await, stage.wire().await);
    let key = one.key.clone();
    let port = stage.proxy.port();

    for round in 0..40_u64 {
        one.send(&Batch::new().query("/* pointsman: primary */ SELECT pg_sleep(0.002)")).await;
        let cancel = tokio::spawn({
            let key = key.clone();
            async move {
                tokio::time::sleep(Duration::from_micros(round * 100)).await;
                wire::cancel(port, &key).await;
            }
        });
        one.until_ready().await;
        let next = other.ask(&Batch::new().query("/* pointsman: primary */ SELECT 'mine'")).await;
        assert_eq!(first_columns(&next), ["mine"], "round {round}");
        cancel.await.expect("it does not panic");
    }
}

#[tokio::test]
async fn a_statement_that_waits_for_a_connection_can_be_cancelled() {
    let stage = Stage::set("", &["cluster.pool.size = 1"]).await;
    let (holder, mut waiting) = (stage.session().await, stage.wire().await);
    holder.run("BEGIN; SELECT txid_current()").await;
    waiting.send(&Batch::new().query("/* pointsman: primary */ SELECT 1")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;

    wire::cancel(stage.proxy.port(), &waiting.key).await;

    let answer = waiting.until_ready().await;
    assert_eq!((tags(&answer).as_str(), answer[0].code().as_str()), ("EZ", "57014"));
    holder.run("COMMIT").await;
}

#[tokio::test]
async fn a_cancel_request_that_comes_to_another_proxy_finds_its_way() {
    let stage = Stage::set("", &[]).await;
    let peer = |proxy: &Proxy| format!("cluster.peers = ['127.0.0.1:{}']", proxy.port());
    let second = Proxy::start(stage.cluster, &[&peer(&stage.proxy)]).await;
    let mut third = Proxy::start(stage.cluster, &[&peer(&second)]).await;
    // Two that know each other: the request must not go round for ever.
    let both = format!("cluster.peers = ['127.0.0.1:{}', '127.0.0.1:{}']", second.port(), third.port());
    third.reload(&[&both]);
    third.wait_for_log("peers").await;
    let mut wire = stage.wire().await;
    wire.send(&Batch::new().query("SELECT 'mark peers', pg_sleep(60)")).await;
    eventually("it runs", async || sleepers(&stage, "mark peers") == 1).await;

    // As a balancer would bring it to the third.
    soon("the request is taken", wire::cancel(third.port(), &wire.key)).await;

    let answer = wire.until_ready().await;
    assert_eq!(answer[answer.len() - 2].code(), "57014", "{}", tags(&answer));
    wire::cancel(third.port(), &[0; 8]).await;
}

#[tokio::test]
async fn a_server_that_falls_silent_while_a_cancel_request_is_on_its_way_holds_nobody_up() {
    let cluster = cluster::shared();
    let database = Database::with(cluster, "CREATE TABLE t (x int)");
    let link = Link::to(&cluster.node(0).address());
    let nodes: Vec<_> = [link.address()].into_iter().chain(cluster.addresses().into_iter().skip(1)).collect();
    let proxy = Proxy::start_unready(&nodes, &["cluster.monitor.timeout = '2s'"]);
    let replicas: Vec<_> = cluster.nodes()[1..].iter().map(|node| node.port()).collect();
    proxy.wait_until_reads_use(&replicas).await;
    let (port, Login { name, password }) = (cluster.node(0).port(), APP);
    let direct =
        format!("host=127.0.0.1 port={port} user={name} password={password} dbname={}", database.name);
    let direct = Session::open(&direct).await;
    direct.run("BEGIN; LOCK TABLE t").await;
    let mut client = Wire::login(proxy.port(), APP, &database.name).await;
    client.send(&Batch::new().query("/* pointsman: primary */ SELECT count(*) FROM t")).await;
    let waits = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND NOT granted";
    eventually("it waits", async || database.ask(0, waits) == "1").await;

    link.hold_new();
    let (port, key) = (proxy.port(), client.key.clone());
    let cancelled = tokio::spawn(async move { wire::cancel(port, &key).await });
    eventually("a cancel request is on its way", async || link.held() > 0).await;
    direct.run("COMMIT").await;
    assert_eq!(first_columns(&client.until_ready().await), ["0"]);
    link.stall();

    let answer = client.ask(&Batch::new().query("SELECT 'alive'")).await;
    assert_eq!(first_columns(&answer), ["alive"]);
    cancelled.await.expect("it does not panic");
}
