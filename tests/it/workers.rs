//! Sessions that go on on another worker notice nothing. In this process, where they can be told to.

use std::{path::Path, sync::Arc};

use pointsman::{
    config::Config,
    demo::{Port, servers::APP},
    runtime::Places,
    serve::Proxy,
    shutdown::Shutdown,
    sockets::Sharing,
    takeover::Legacy,
};

use crate::support::{self, Database, Session, eventually, proxy};

const SESSIONS: usize = 3;

#[tokio::test]
async fn sessions_keep_all_they_have_on_another_worker() {
    let cluster = support::cluster::shared();
    let database = Database::with(cluster, "CREATE TABLE t (id int)");
    let port = Port::claim().expect("ports are to be had");
    let settings = ["workers = 2"];
    let text = proxy::configuration(&cluster.addresses(), port.number(), 0, &settings).to_string();
    let config = Config::parse(&text, Path::new("test"), &|_| None).expect("the configuration is right");
    let shutdown = Shutdown::new();
    let running = Proxy::start(config, shutdown.clone(), Sharing::Alone, &Legacy::default())
        .await
        .expect("the port is free");
    let places = running.places().clone();
    let dsn = format!(
        "host=127.0.0.1 port={} user={} password={} dbname={}",
        port.number(),
        APP.name,
        APP.password,
        database.name
    );
    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        let session = Session::open(&dsn).await;
        session.run(&format!("SET search_path = s{number}, public")).await;
        session.run("PREPARE p AS SELECT current_setting('search_path')").await;
        sessions.push(session);
    }

    for _ in 0..3 {
        move_some(&places, &sessions).await;
        for (number, session) in sessions.iter().enumerate() {
            let own = format!("s{number}, public");
            assert_eq!(session.value("SHOW search_path").await, own);
            assert_eq!(session.value("EXECUTE p").await, own);
            session.run(&format!("INSERT INTO t VALUES ({number})")).await;
            assert_eq!(session.value(&format!("SELECT count(*) > 0 FROM t WHERE id = {number}")).await, "t");
        }
    }

    // Dropping it joins its threads, which must not hold up this runtime.
    drop(sessions);
    tokio::task::spawn_blocking(move || drop(running)).await.expect("nothing in there panics");
}

/// Has as many sessions move as there are, whichever worker each is on.
async fn move_some(places: &Arc<Places>, sessions: &[Session]) {
    let enough = places.moved() + sessions.len() as u64;
    eventually("sessions move", || async {
        places.relieve(0, 1, 1);
        places.relieve(1, 0, 1);
        for session in sessions {
            session.value("SELECT 1").await;
        }
        places.moved() >= enough
    })
    .await;
}
