//! A hundred reloads while clients work.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::{Stage, eventually};

const CLIENTS: usize = 64;
const RELOADS: usize = 100;

/// What may grow while limits and caches change, in bytes.
const ROOM: u64 = 24 * 1024 * 1024;

/// Nodes, weights, users and limits of one reload, different from the last one's.
fn settings(turn: usize, stage: &Stage) -> Vec<String> {
    let nodes: Vec<String> = stage
        .cluster
        .nodes()
        .iter()
        .enumerate()
        // The replicas come and go in turn.
        .filter(|(index, _)| *index == 0 || index % 2 == turn % 2 || turn.is_multiple_of(5))
        .map(|(index, node)| {
            format!("{{ address = '{}', weight = {} }}", node.address(), 1 + (turn + index) % 3)
        })
        .collect();
    vec![
        format!("cluster.nodes = [{}]", nodes.join(", ")),
        format!(
            "cluster.users = [{{ name = 'app', password = 'app-pw' }}, {{ name = 'u{turn}', password = 'x' }}]"
        ),
        format!("cluster.limits.clients = {}", 100 + turn),
        format!("cluster.pool.size = {}", 10 + turn % 2),
        format!("cluster.routing.max_lag = '{}s'", 10 + turn),
    ]
}

#[tokio::test]
async fn a_hundred_reloads_drop_no_client_and_fail_no_statement() {
    let mut stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let session = stage.session().await;
        let (stop, answered) = (stop.clone(), answered.clone());
        clients.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                // It panics when a statement fails or the connection is lost.
                let statement = if number % 8 == 0 { "INSERT INTO t VALUES (1)" } else { "SELECT 1" };
                session.run(statement).await;
                answered.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }));
    }
    let applied =
        |stage: &Stage| stage.proxy.metric("pointsman_config_reloads_total", &["result=\"applied\""]);
    let mut resident = 0;
    for turn in 1..=RELOADS {
        let lines = settings(turn, &stage);
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        stage.proxy.reload(&lines);
        let wanted = turn as f64;
        eventually("it is applied", async || applied(&stage) >= wanted).await;
        if turn == RELOADS / 5 {
            resident = stage.proxy.resident_bytes();
        }
        if turn % 25 == 0 {
            stage.proxy.reload_text("nonsense = true");
            eventually("it is refused", async || {
                stage.proxy.metric("pointsman_config_last_reload_success", &[]) == 0.0
            })
            .await;
        }
    }
    stop.store(true, Ordering::Relaxed);

    for client in clients {
        client.await.expect("no statement failed");
    }
    assert!(answered.load(Ordering::Relaxed) > RELOADS * 10);
    let grown = stage.proxy.resident_bytes().saturating_sub(resident);
    assert!(grown < ROOM, "grown by {grown} bytes");
    let refused = stage.proxy.metric("pointsman_config_reloads_total", &["result=\"refused\""]);
    assert_eq!(refused, 4.0);
}
