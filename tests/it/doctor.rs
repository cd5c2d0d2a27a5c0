//! `pointsman doctor` and `check --connect` before real servers with real faults.

use std::process::{Command, Output};

use pointsman::demo::{
    mysql::MysqlCluster,
    servers::{APP, MONITOR, PgCluster, PgOptions, Stop},
};
use tempfile::TempDir;

use crate::{
    both_makes,
    support::{Session, cluster, eventually, mysql::Make},
};

fn configuration(cluster: &PgCluster, monitor: &str, app_password: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let nodes = cluster.addresses();
    let text = format!(
        "[[cluster]]\nname = 'it'\nengine = 'postgres'\nlisten = ['127.0.0.1:0']\nnodes = {nodes:?}\n\
         users = [{{ name = '{}', password = '{app_password}' }}]\n\
         monitor = {{ user = '{monitor}', password = '{}' }}\n",
        APP.name, MONITOR.password
    );
    std::fs::write(folder.path().join("p.toml"), text).expect("the folder is ours");
    folder
}

fn pointsman(arguments: &[&str], folder: &TempDir) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_pointsman"))
        .args(arguments)
        .arg("-c")
        .arg(folder.path().join("p.toml"))
        .output()
        .expect("the binary was built");
    (status.code(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

/// A session of the superuser straight at a server.
async fn at(cluster: &PgCluster, node: usize) -> Session {
    let admin = pointsman::demo::servers::SUPERUSER;
    let port = cluster.node(node).port();
    Session::open(&format!(
        "host=127.0.0.1 port={port} user={} password={} dbname=postgres",
        admin.name, admin.password
    ))
    .await
}

#[tokio::test]
async fn check_connect_says_who_gets_in_where() {
    let cluster = cluster::shared();

    let (code, said) =
        pointsman(&["check", "--connect"], &configuration(cluster, MONITOR.name, APP.password));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((said.matches("ok, primary").count(), said.matches("ok, replica").count()), (1, 2), "{said}");

    let (code, said) = pointsman(&["check", "--connect"], &configuration(cluster, "stranger", APP.password));
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("the monitor's login failed: password authentication failed"), "{said}");

    let (code, said) = pointsman(&["check", "--connect"], &configuration(cluster, MONITOR.name, "wrong"));
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("user app: password authentication failed"), "{said}");
}

both_makes!(
    the_doctor_finds_what_is_wrong_with_replication,
    the_doctor_finds_semi_synchronous_replication_that_is_none,
);

/// A configuration with the servers of `cluster`.
fn mysql_configuration(cluster: &MysqlCluster) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!(
        "[[cluster]]\nname = 'it'\nengine = 'mysql'\nlisten = ['127.0.0.1:0']\nnodes = {:?}\n\
         users = [{{ name = '{}', password = '{}' }}]\nmonitor = {{ user = '{}', password = '{}' }}\n",
        cluster.addresses(),
        APP.name,
        APP.password,
        MONITOR.name,
        MONITOR.password
    );
    std::fs::write(folder.path().join("p.toml"), text).expect("the folder is ours");
    folder
}

async fn the_doctor_finds_what_is_wrong_with_replication(make: Make) {
    let cluster = make.own();
    let folder = mysql_configuration(&cluster);
    let doctor = || pointsman(&["doctor"], &folder);
    let (code, said) = pointsman(&["check", "--connect"], &folder);
    assert_eq!((code, said.matches("ok, replica").count()), (Some(0), 2), "{said}");
    let (code, said) = doctor();
    assert!(code == Some(0) && !said.contains("problem"), "{said}");

    let off = match make {
        Make::MariaDb => "SET GLOBAL read_only = 0",
        Make::Mysql9 => "SET GLOBAL super_read_only = 0; SET GLOBAL read_only = 0",
    };
    let finds = async |words: &str| eventually(words, async || doctor().1.contains(words)).await;
    cluster.node(1).sql("mysql", off).expect("it obeys");
    finds("accepts writes though it is a replica").await;
    cluster.node(1).sql("mysql", "SET GLOBAL read_only = 1").expect("it obeys");

    cluster.node(0).sql("", "REVOKE TRIGGER ON *.* FROM pointsman@'%'").expect("it obeys");
    finds("lacks TRIGGER").await;

    cluster.pause_replay(2).expect("it obeys");
    finds("it applies nothing").await;
    cluster.resume_replay(2).expect("it obeys");

    cluster.stop(0, Stop::Kill).expect("it dies");
    finds("it receives nothing (Connecting)").await;
    finds("cannot be reached").await;
    cluster.promote(1).expect("it is promoted");
    eventually("the new primary is one", async || !doctor().1.contains("no node is primary")).await;
}

async fn the_doctor_finds_semi_synchronous_replication_that_is_none(make: Make) {
    let cluster = make.own_semi_synchronous();
    let folder = mysql_configuration(&cluster);
    let doctor = || pointsman(&["doctor"], &folder).1;
    let finds = async |words: &str| eventually(words, async || doctor().contains(words)).await;
    let said = doctor();
    assert!(!said.contains("problem") && !said.contains("warning"), "{said}");

    let (enabled, of_replicas) = match make {
        Make::MariaDb => ("rpl_semi_sync_master_timeout", "rpl_semi_sync_slave_enabled"),
        Make::Mysql9 => ("rpl_semi_sync_source_timeout", "rpl_semi_sync_replica_enabled"),
    };
    cluster.node(0).sql("", &format!("SET GLOBAL {enabled} = 10000")).expect("it obeys");
    finds("within 10 s is acknowledged all the same").await;
    cluster.node(2).sql("", &format!("SET GLOBAL {of_replicas} = 0")).expect("it obeys");
    finds("it acknowledges no commits").await;
    cluster.node(0).sql("", "SET GLOBAL binlog_expire_logs_seconds = 3600").expect("it obeys");
    finds("binary logs are removed after 0.0 days").await;

    cluster.stop(1, Stop::Kill).expect("it dies");
    cluster.stop(2, Stop::Kill).expect("it dies");
    finds("has fallen back to asynchronous").await;
    cluster.node(0).sql("", &format!("SET GLOBAL {enabled} = 100000000")).expect("it obeys");
    finds("commits hang").await;
}

#[tokio::test]
async fn the_doctor_finds_what_is_wrong_with_real_servers() {
    // Servers of tests do without, and the doctor would say so.
    let settings = vec![("fsync".to_owned(), "on".to_owned())];
    let cluster = cluster::own_with(PgOptions { replicas: 2, settings, ..PgOptions::default() });
    let folder = configuration(&cluster, MONITOR.name, APP.password);
    let doctor = || pointsman(&["doctor"], &folder);
    let (code, said) = doctor();
    assert!(code == Some(0) && !said.contains("problem"), "{said}");
    let primary = at(&cluster, 0).await;

    let finds = async |words: &str| {
        eventually(words, async || {
            let (code, said) = doctor();
            code == Some(69) && said.contains(words)
        })
        .await;
    };
    primary.run("ALTER SYSTEM SET synchronous_standby_names = 'gone'").await;
    primary.run("SELECT pg_reload_conf()").await;
    finds("commits wait for ever").await;
    primary.run("ALTER SYSTEM RESET synchronous_standby_names").await;
    primary.run("SELECT pg_reload_conf()").await;

    primary.run("SELECT pg_create_physical_replication_slot('forgotten', true)").await;
    eventually("the slot is found", async || doctor().1.contains("nobody uses slot forgotten")).await;

    primary.run(&format!("REVOKE pg_monitor FROM {}", MONITOR.name)).await;
    finds(&format!("GRANT pg_monitor TO {}", MONITOR.name)).await;
    primary.run(&format!("GRANT pg_monitor TO {}", MONITOR.name)).await;

    cluster.pause_replay(2).expect("it obeys");
    finds("replay is paused").await;
    cluster.resume_replay(2).expect("it obeys");

    cluster.promote(1).expect("it is promoted");
    finds("several nodes accept writes").await;

    cluster.stop(0, Stop::Kill).expect("it dies");
    finds("cannot be reached").await;
    eventually("a replica of a dead primary does not stream", async || {
        doctor().1.contains("it does not stream")
    })
    .await;
    drop(primary);
}
