//! Nodes found by Patroni, whose word counts: through a switchover and the leader's death, and as
//! members come and go.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use pointsman::demo::servers::APP;
use tokio::task::JoinHandle;

use crate::support::{
    Proxy, Session, code,
    patroni::{PATIENCE, Patroni},
};

/// Between two statements of a session that writes steadily.
const PACE: Duration = Duration::from_millis(20);

/// Patroni, whose steps block, for tests whose sessions must go on meanwhile.
#[derive(Clone)]
struct Shared(Arc<parking_lot::Mutex<Patroni>>);

impl Shared {
    async fn start(start: fn() -> Patroni) -> Self {
        let patroni = tokio::task::spawn_blocking(start).await.expect("Patroni starts");
        Self(Arc::new(parking_lot::Mutex::new(patroni)))
    }

    async fn with<T: Send + 'static>(&self, step: impl FnOnce(&mut Patroni) -> T + Send + 'static) -> T {
        let patroni = self.0.clone();
        tokio::task::spawn_blocking(move || step(&mut patroni.lock())).await.expect("the step succeeds")
    }

    async fn leader(&self) -> usize {
        self.with(|patroni| patroni.leader().expect("there is a leader")).await
    }

    fn address(&self, member: usize) -> String {
        format!("127.0.0.1:{}", self.0.lock().ports()[member])
    }

    /// A proxy that learns its nodes from the members there are now.
    fn proxy(&self) -> Proxy {
        let patroni = self.0.lock();
        let endpoints: Vec<_> = patroni.endpoints().iter().map(|url| format!("\"{url}\"")).collect();
        let ca = match patroni.certificate() {
            Some(file) => format!(", ca = '{}'", file.display()),
            None => String::new(),
        };
        let discovery = format!("cluster.discovery = {{ patroni = [{}]{ca} }}", endpoints.join(", "));
        let settings =
            [discovery.as_str(), "cluster.routing.slow_start = '0s'", "cluster.failover.hold = '120s'"];
        Proxy::start_unready(&[], &settings)
    }
}

/// As [`crate::support::eventually`], with the time that Patroni may take.
async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(PACE).await;
    }
}

/// Whether the proxy has this node, in this role and up.
fn is_up_as(proxy: &Proxy, address: &str, role: &str) -> bool {
    let label = format!("node=\"{address}\"");
    proxy.metric("pointsman_node_role", &[&label, &format!("role=\"{role}\"")]) == 1.0
        && proxy.metric("pointsman_node_state", &[&label, "state=\"up\""]) == 1.0
}

/// Waits until reads without a floor have used every one of these members.
async fn reads_use(proxy: &Proxy, session: &Session, patroni: &Shared, members: &[usize]) {
    for &member in members {
        let port = patroni.0.lock().ports()[member];
        let deadline = Instant::now() + PATIENCE;
        loop {
            let used = session.try_port().await;
            if used.as_ref().is_ok_and(|used| *used == port) {
                break;
            }
            if Instant::now() > deadline {
                let route = session.try_run("SHOW pointsman.route").await;
                let metrics = proxy.http("/metrics");
                let nodes: Vec<_> = metrics.lines().filter(|line| line.contains("node=")).collect();
                panic!("no read used {port}: {used:?}, {route:?}\n{}", nodes.join("\n"));
            }
            tokio::time::sleep(PACE).await;
        }
    }
}

/// Steady writes of one session until told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(usize, Vec<String>)>,
}

impl Writer {
    async fn start(proxy: &Proxy) -> Self {
        let session = proxy.session(APP.name).await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (mut written, mut failed) = (0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                // A write waits for as long as there is no leader.
                let write = session.simple_query("INSERT INTO t VALUES (1)");
                match tokio::time::timeout(PATIENCE, write).await.expect("the write is answered") {
                    Ok(_) => written += 1,
                    Err(error) => failed.push(code(&error)),
                }
                tokio::time::sleep(PACE).await;
            }
            (written, failed)
        });
        Self { stop, task }
    }

    /// How many writes succeeded, and the SQLSTATEs of those that failed.
    async fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the writer does not panic")
    }
}

#[tokio::test]
async fn nodes_found_by_patroni_survive_a_switchover_and_the_leaders_death() {
    if !Patroni::is_installed() {
        eprintln!("skipped: patroni and etcd are not installed");
        return;
    }
    let patroni = Shared::start(|| Patroni::start(3)).await;
    let proxy = patroni.proxy();
    let session = Session::retry(&proxy.dsn(APP.name)).await;
    session.run("CREATE TABLE t (x int)").await;
    let first = patroni.leader().await;
    reads_use(&proxy, &session, &patroni, &[(first + 1) % 3, (first + 2) % 3]).await;

    let writer = Writer::start(&proxy).await;
    let second = patroni
        .with(move |patroni| {
            patroni.switch_over();
            patroni.wait_for_another_leader(first);
            patroni.wait_for_replicas();
            patroni.leader().expect("there is a leader")
        })
        .await;
    let address = patroni.address(second);
    eventually("the proxy follows", async || is_up_as(&proxy, &address, "primary")).await;
    let (before, failed) = writer.end().await;
    assert_eq!(failed, Vec::<String>::new(), "the switchover failed writes");

    // Replication is asynchronous: what the next death must not lose has to be on both replicas.
    session.run("INSERT INTO t VALUES (3)").await;
    reads_use(&proxy, &session, &patroni, &[(second + 1) % 3, (second + 2) % 3]).await;
    let writer = Writer::start(&proxy).await;
    let third = patroni
        .with(move |patroni| {
            patroni.kill(second);
            patroni.wait_for_another_leader(second);
            patroni.leader().expect("there is a leader")
        })
        .await;
    let address = patroni.address(third);
    eventually("the proxy follows", async || is_up_as(&proxy, &address, "primary")).await;
    let (after, failed) = writer.end().await;
    assert!(failed.iter().all(|code| code == "08007") && failed.len() <= 1, "{failed:?}");

    // What was acknowledged before the death may be lost with the leader, nothing else.
    let count = session.value("/* pointsman: primary */ SELECT count(*) FROM t WHERE x = 1").await;
    let count: usize = count.parse().expect("a number");
    println!("acknowledged {before} and {after} writes, found {count}");
    assert!(count <= before + after + failed.len(), "something was run twice");
    assert!(count >= before, "writes from before the switchover are lost");

    patroni.with(move |patroni| patroni.start_agent(second)).await;
    let address = patroni.address(second);
    eventually("the old leader comes back as a replica", async || is_up_as(&proxy, &address, "replica"))
        .await;
}

#[tokio::test]
async fn members_that_come_and_go_are_heard_of_over_https() {
    if !Patroni::is_installed() {
        eprintln!("skipped: patroni and etcd are not installed");
        return;
    }
    let patroni = Shared::start(|| Patroni::start_with_https(1)).await;
    let proxy = patroni.proxy();
    let session = Session::retry(&proxy.dsn(APP.name)).await;
    session.run("CREATE TABLE t (x int)").await;

    patroni
        .with(|patroni| {
            patroni.add_agent();
            patroni.wait_for_replicas();
        })
        .await;
    reads_use(&proxy, &session, &patroni, &[1]).await;
    let label = format!("pointsman_node_state{{cluster=\"it\",node=\"{}\"", patroni.address(1));
    assert!(proxy.http("/metrics").contains(&label), "it has another name");

    patroni.with(|patroni| patroni.kill(1)).await;
    eventually("the proxy forgets it", async || !proxy.http("/metrics").contains(&label)).await;
    session.run("INSERT INTO t VALUES (1)").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await, "1");
}
