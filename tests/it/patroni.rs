//! Nodes found by Patroni, whose word counts, through a switchover and the leader's death.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pointsman::demo::servers::APP;

use crate::support::{Proxy, Session, code, eventually, patroni::Patroni};

/// Steady writes of one session until told to stop; the SQLSTATEs of those that failed.
fn write_on(session: Session, stop: Arc<AtomicBool>) -> tokio::task::JoinHandle<(usize, Vec<String>)> {
    tokio::spawn(async move {
        let (mut written, mut failed) = (0, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            match session.try_run("INSERT INTO t VALUES (1)").await {
                Ok(_) => written += 1,
                Err(error) => failed.push(code(&error)),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        (written, failed)
    })
}

async fn reads_use_replicas(session: &Session, patroni: &Patroni, replicas: usize) {
    let leader = patroni.ports()[patroni.leader().expect("there is a leader")];
    let mut seen = std::collections::HashSet::new();
    for _ in 0..2_000 {
        if let Ok(port) = session.try_port().await
            && port != leader
        {
            seen.insert(port);
        }
        if seen.len() == replicas {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("reads used {seen:?} only");
}

/// Waits, without keeping this runtime from serving the sessions, until another member leads.
async fn until_another_leads(patroni: &Arc<parking_lot::Mutex<Patroni>>, than: usize) {
    let patroni = patroni.clone();
    let waiting = tokio::task::spawn_blocking(move || {
        for _ in 0..300 {
            if patroni.lock().leader().is_some_and(|leader| leader != than) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        false
    });
    assert!(waiting.await.expect("it does not panic"), "nobody took over");
}

#[tokio::test]
#[ignore = "passes alone, fails now and then beside other tests: not understood yet"]
async fn nodes_found_by_patroni_survive_a_switchover_and_the_leaders_death() {
    if !Patroni::is_installed() {
        eprintln!("skipped: patroni and etcd are not installed");
        return;
    }
    let patroni = Patroni::start(3).await;
    let endpoints = patroni.endpoints().iter().map(|url| format!("\"{url}\"")).collect::<Vec<_>>().join(", ");
    let discovery = format!("cluster.discovery = {{ patroni = [{endpoints}] }}");
    let proxy = Proxy::start_unready(&[], &[&discovery, "cluster.routing.slow_start = '0s'"]);
    let session = Session::retry(&proxy.dsn(APP.name)).await;
    session.run("CREATE TABLE t (x int)").await;
    reads_use_replicas(&session, &patroni, 2).await;

    let stop = Arc::new(AtomicBool::new(false));
    let writer = write_on(proxy.session(APP.name).await, stop.clone());
    let first = patroni.leader().expect("there is a leader");
    let patroni = Arc::new(parking_lot::Mutex::new(patroni));
    let switching = patroni.clone();
    tokio::task::spawn_blocking(move || switching.lock().switch_over()).await.expect("it is switched over");
    until_another_leads(&patroni, first).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    let (before, failed) = writer.await.expect("the writer does not panic");
    assert_eq!(failed, Vec::<String>::new(), "the switchover failed writes");

    // Replication is asynchronous: what the next death must not lose has to be on both replicas.
    session.run("INSERT INTO t VALUES (3)").await;
    let ports = patroni.lock().ports();
    let leader = ports[patroni.lock().leader().expect("there is a leader")];
    let seen = parking_lot::Mutex::new(std::collections::HashSet::new());
    eventually("both replicas have all of it", async || {
        if let Ok(port) = session.try_port().await
            && port != leader
        {
            seen.lock().insert(port);
        }
        seen.lock().len() == 2
    })
    .await;

    let stop = Arc::new(AtomicBool::new(false));
    let writer = write_on(proxy.session(APP.name).await, stop.clone());
    let second = patroni.lock().leader().expect("there is a leader");
    patroni.lock().kill(second);
    until_another_leads(&patroni, second).await;
    eventually("writes go on", async || session.try_run("INSERT INTO t VALUES (2)").await.is_ok()).await;
    stop.store(true, Ordering::Relaxed);
    let (after, failed) = writer.await.expect("the writer does not panic");
    assert!(failed.iter().all(|code| code == "08007") && failed.len() <= 1, "{failed:?}");

    // What was acknowledged before the death may be lost with the leader, nothing else.
    let count: usize = session
        .value("/* pointsman: primary */ SELECT count(*) FROM t WHERE x = 1")
        .await
        .parse()
        .expect("a number");
    println!("acknowledged {before} and {after} writes, found {count}");
    assert!(count <= before + after + failed.len(), "something was run twice");
    assert!(count >= before, "writes from before the switchover are lost");

    patroni.lock().start_agent(second);
    let address = format!("127.0.0.1:{}", patroni.lock().ports()[second]);
    eventually("the old leader comes back as a replica", async || {
        let label = format!("node=\"{address}\"");
        proxy.metric("pointsman_node_role", &[&label, "role=\"replica\""]) == 1.0
            && proxy.metric("pointsman_node_state", &[&label, "state=\"up\""]) == 1.0
    })
    .await;
}
