//! What a client is told of a COMMIT whose answer a failover swallows (hard case 2).
//!
//! The primary waits for a synchronous standby that does not exist: a transaction is committed and
//! sent to replicas, and its client has no answer until the server dies.

use std::sync::Arc;

use pointsman::demo::servers::{PgCluster, PgOptions, Stop};
use tokio::task::JoinHandle;

use crate::support::{Database, Proxy, Session, cluster, code, eventually, link::Link};

const TABLE: &str = "CREATE TABLE t (x int)";
/// A trigger that has something to say when its transaction is committed.
const TALKS: &str = "
    CREATE FUNCTION talk() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE NOTICE 'committing'; RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER talks AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION talk()";

/// How a client sends its COMMIT.
#[derive(Clone, Copy)]
enum Sent {
    Simple,
    Extended,
}

/// A primary, a replica behind a link, and a proxy before both.
struct Stage {
    cluster: Arc<PgCluster>,
    database: String,
    link: Link,
    proxy: Proxy,
}

impl Stage {
    async fn set() -> Self {
        Self::set_with(TABLE).await
    }

    async fn set_with(sql: &str) -> Self {
        let cluster = Arc::new(cluster::own_with(PgOptions { replicas: 1, ..PgOptions::default() }));
        let database = Database::with(&cluster, sql).name;
        let link = Link::to(&cluster.node(1).address());
        let nodes = [cluster.node(0).address(), link.address()];
        let proxy = Proxy::start_unready(&nodes, &["cluster.monitor.timeout = '500ms'"]);
        proxy.wait_until_reads_use(&[cluster.node(1).port()]).await;
        Self { cluster, database, link, proxy }
    }

    /// A transaction that wrote `x` and whose COMMIT waits; the task ends with its answer: empty,
    /// or the SQLSTATE.
    async fn commit_in_vain(&self, x: u32, sent: Sent) -> JoinHandle<(String, Session)> {
        let session = self.proxy.session(&self.database).await;
        session.run("BEGIN").await;
        session.run(&format!("INSERT INTO t VALUES ({x})")).await;
        self.cluster.node(0).set("synchronous_standby_names", "nobody").expect("it can be set");
        let commit = tokio::spawn(async move {
            let result = match sent {
                Sent::Simple => session.try_run("COMMIT").await.map(drop),
                Sent::Extended => session.execute("COMMIT", &[]).await.map(drop),
            };
            (result.err().map(|error| code(&error)).unwrap_or_default(), session)
        });
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let before = self.cluster.node(0).sql("postgres", waits).expect("it answers");
        let waiting = || self.cluster.node(0).sql("postgres", waits);
        eventually("the commit waits", async || waiting().is_ok_and(|count| count > before)).await;
        commit
    }

    /// Waits until a probe, begun after the replica had replayed everything up to now, has told
    /// the proxy so: each write is made after the probe that let the read before it through.
    async fn proxy_has_asked_the_replica(&self) {
        let session = self.proxy.session(&self.database).await;
        session.run("SET synchronous_commit = local").await;
        for _ in 0..2 {
            session.run("INSERT INTO t VALUES (0)").await;
            let replica = self.cluster.node(1).port();
            eventually("the replica has it", async || session.port().await == replica).await;
        }
    }

    fn rows(&self, node: usize) -> String {
        let rows = "SELECT string_agg(x::text, ',' ORDER BY x) FROM t WHERE x > 0";
        self.cluster.node(node).sql(&self.database, rows).expect("it answers")
    }

    fn settled(&self, outcome: &str) -> f64 {
        self.proxy.metric("pointsman_commits_settled_total", &[&format!("outcome=\"{outcome}\"")])
    }
}

#[tokio::test]
async fn a_commit_that_the_new_primary_has_is_answered_as_one() {
    let stage = Stage::set().await;
    let commit = stage.commit_in_vain(1, Sent::Simple).await;
    let prepared = stage.commit_in_vain(2, Sent::Extended).await;
    stage.proxy_has_asked_the_replica().await;

    stage.cluster.stop(0, Stop::Kill).expect("it dies");
    stage.cluster.promote(1).expect("the replica takes over");

    for (commit, x) in [(commit, 1), (prepared, 2)] {
        let (code, session) = commit.await.expect("the session does not panic");
        assert_eq!(code, "", "the commit failed");
        assert_eq!(session.value(&format!("SELECT count(*) FROM t WHERE x = {x}")).await, "1");
        // The session is between transactions.
        session.run(&format!("BEGIN; INSERT INTO t VALUES ({}); COMMIT", x + 2)).await;
    }
    assert_eq!(stage.settled("committed"), 2.0);
    assert_eq!(stage.rows(1), "1,2,3,4");
}

#[tokio::test]
async fn a_commit_that_got_a_notice_first_is_answered_by_its_outcome() {
    let stage = Stage::set_with(&format!("{TABLE}; {TALKS}")).await;
    let commit = stage.commit_in_vain(1, Sent::Simple).await;
    let prepared = stage.commit_in_vain(2, Sent::Extended).await;
    stage.proxy_has_asked_the_replica().await;

    stage.cluster.stop(0, Stop::Kill).expect("it dies");
    stage.cluster.promote(1).expect("the replica takes over");

    for commit in [commit, prepared] {
        let (code, session) = commit.await.expect("the session does not panic");
        assert_eq!(code, "", "the commit failed");
        assert_eq!(session.value("SELECT count(*) FROM t WHERE x IN (1, 2)").await, "2");
    }
    assert_eq!((stage.settled("committed"), stage.rows(1).as_str()), (2.0, "1,2"));
}

#[tokio::test]
async fn a_commit_that_the_new_primary_never_got_is_answered_as_rolled_back() {
    let stage = Stage::set().await;
    stage.cluster.follow_address(1, "127.0.0.1", 1).expect("it streams from nobody");
    let streams = || {
        stage
            .cluster
            .node(1)
            .sql("postgres", "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'")
    };
    eventually("the stream ends", async || streams().is_ok_and(|count| count == "0")).await;
    let commit = stage.commit_in_vain(1, Sent::Simple).await;

    stage.cluster.stop(0, Stop::Kill).expect("it dies");
    stage.cluster.promote(1).expect("the replica takes over");

    let (code, session) = commit.await.expect("the session does not panic");
    assert_eq!((code.as_str(), stage.settled("rolled_back")), ("08006", 1.0));
    session.run("INSERT INTO t VALUES (2)").await;
    assert_eq!(stage.rows(1), "2");
}

#[tokio::test]
async fn a_commit_whose_id_the_new_primary_gave_to_another_transaction_stays_in_doubt() {
    let stage = Stage::set().await;
    stage.cluster.follow_address(1, "127.0.0.1", 1).expect("it streams from nobody");
    let streams = || {
        stage
            .cluster
            .node(1)
            .sql("postgres", "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'")
    };
    eventually("the stream ends", async || streams().is_ok_and(|count| count == "0")).await;
    let commit = stage.commit_in_vain(1, Sent::Simple).await;

    // The proxy cannot reach the new primary until others have written there.
    stage.link.stall();
    stage.cluster.stop(0, Stop::Kill).expect("it dies");
    stage.cluster.promote(1).expect("the replica takes over");
    for _ in 0..50 {
        stage.cluster.node(1).sql(&stage.database, "INSERT INTO t VALUES (0)").expect("it takes writes");
    }
    stage.link.resume();

    let (code, _) = commit.await.expect("the session does not panic");
    assert_eq!((code.as_str(), stage.settled("unknown")), ("08007", 1.0));
    assert_eq!(stage.rows(1), "", "it was not committed there");
}

#[tokio::test]
async fn a_commit_whose_server_crashed_and_came_back_stays_in_doubt() {
    let stage = Stage::set().await;
    let commit = stage.commit_in_vain(1, Sent::Simple).await;

    stage.cluster.restart(0, Stop::Kill).expect("it recovers");

    let (code, _) = commit.await.expect("the session does not panic");
    assert_eq!((code.as_str(), stage.settled("unknown")), ("08007", 1.0));
}

#[tokio::test]
async fn without_the_question_for_the_id_a_lost_commit_is_in_doubt_at_once() {
    let mut stage = Stage::set().await;
    stage.proxy.reload(&["cluster.failover.commit_outcome = false"]);
    stage.proxy.wait_for_log("commit_outcome").await;
    let commit = stage.commit_in_vain(1, Sent::Simple).await;

    stage.cluster.stop(0, Stop::Kill).expect("it dies");

    let (code, _) = commit.await.expect("the session does not panic");
    assert_eq!(code, "08007");
    assert_eq!(stage.settled("unknown"), 0.0);
}
