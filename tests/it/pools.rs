//! How long server connections live.

use crate::support::{Session, Stage, eventually};

/// The processes on the primary that serve the user `app` in the test's database, oldest first.
fn backends(stage: &Stage) -> String {
    let pids = "SELECT coalesce(string_agg(pid::text, ' ' ORDER BY backend_start), '') FROM pg_stat_activity
        WHERE datname = current_database() AND usename = 'app'";
    stage.database.ask(0, pids)
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
