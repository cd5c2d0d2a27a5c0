//! What a server of MySQL lacks that the session has, or another server: roles and users that are not
//! replicated yet (hard cases 12 and 14).

use pointsman::demo::servers::{APP, Login};

use crate::{
    both_makes,
    support::{
        eventually,
        mysql::{self, BASIC, Make, Session},
    },
};

both_makes!(
    a_role_that_a_server_lacks_keeps_the_statement_from_running_there,
    a_user_that_the_replicas_do_not_know_yet_reads_from_the_primary,
);

async fn a_role_that_a_server_lacks_keeps_the_statement_from_running_there(make: Make) {
    let cluster = make.own();
    let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT); INSERT INTO t VALUES (1)");
    let proxy = mysql::proxy(&cluster, &[]).await;
    let primary = cluster.node(0);
    let on_primary = |sql: &str| primary.sql("", sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    for replica in [1, 2] {
        cluster.pause_replay(replica).expect("it pauses");
    }
    on_primary(&format!("CREATE ROLE late; GRANT late TO {}@'%'", APP.name));
    let mut session = Session::open(proxy.port(), APP, &schema).await;
    assert_ne!(session.port().await, primary.port());

    // Replicas that lack it are left as soon as the proxy knows them to be behind.
    let session_cell = tokio::sync::Mutex::new(&mut session);
    eventually("the role is found", async || session_cell.lock().await.query("SET ROLE late").await.is_ok())
        .await;
    for _ in 0..20 {
        let row = session.run("SELECT CURRENT_ROLE(), @@port FROM t").await.results[0][0].clone();
        let row: Vec<String> = row.into_iter().map(Option::unwrap_or_default).collect();
        assert!(row[0].contains("late") && row[1] == primary.port().to_string(), "{row:?}");
    }

    on_primary("DROP ROLE late");
    let own = format!(
        "SELECT id FROM information_schema.processlist WHERE user = '{}' AND db = '{schema}'",
        APP.name
    );
    for id in on_primary(&own).lines() {
        // It may have ended by itself.
        let _ = primary.sql("", &format!("KILL {id}"));
    }
    let errno = session.error("INSERT INTO t VALUES (2)").await;
    assert_eq!(errno, if make == Make::MariaDb { 1959 } else { 3530 });
    assert_eq!(primary.sql(&schema, "SELECT COUNT(*) FROM t").expect("it answers"), "1");
}

async fn a_user_that_the_replicas_do_not_know_yet_reads_from_the_primary(make: Make) {
    const FRESH: Login = Login { name: "fresh", password: "fresh-pw" };
    let cluster = make.own();
    let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT); INSERT INTO t VALUES (7)");
    let users = format!(
        "cluster.users = [{{ name = '{}', password = '{}' }}, {{ name = '{}', password = '{}' }}]",
        APP.name, APP.password, FRESH.name, FRESH.password
    );
    let proxy = mysql::proxy(&cluster, &[&users]).await;
    for replica in [1, 2] {
        cluster.pause_replay(replica).expect("it pauses");
    }
    let (name, password) = (FRESH.name, FRESH.password);
    let create = format!(
        "CREATE USER {name}@'%' IDENTIFIED BY '{password}'; GRANT SELECT ON {schema}.* TO {name}@'%'"
    );
    cluster.node(0).sql("", &create).expect("it obeys");

    let mut session =
        Session::connect(proxy.port(), FRESH, &schema, BASIC).await.expect("the primary knows it");
    for _ in 0..10 {
        let row = session.run("SELECT x, @@port FROM t").await.results[0][0].clone();
        let port = cluster.node(0).port().to_string();
        assert_eq!(row, [Some("7".to_owned()), Some(port)]);
    }

    for replica in [1, 2] {
        cluster.resume_replay(replica).expect("it resumes");
    }
    let primary = cluster.node(0).port();
    let session = tokio::sync::Mutex::new(session);
    eventually("replicas take its reads", async || session.lock().await.port().await != primary).await;
}
