//! `pointsman doctor` and `check --connect` before real servers with real faults.

use std::{
    process::{Command, Output},
    time::Duration,
};

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
    the_doctor_finds_each_slip_of_a_set_up,
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

async fn the_doctor_finds_each_slip_of_a_set_up(make: Make) {
    let cluster = make.own();
    let folder = mysql_configuration(&cluster);
    let finds = async |words: &str| {
        eventually(words, async || pointsman(&["doctor"], &folder).1.contains(words)).await;
    };
    let set = |node: usize, sql: &str| drop(cluster.node(node).sql("", sql).expect("it obeys"));

    let id = cluster.node(1).sql("", "SELECT @@server_id").expect("it answers");
    let own = cluster.node(2).sql("", "SELECT @@server_id").expect("it answers");
    set(2, &format!("SET GLOBAL server_id = {}", id.trim()));
    finds(&format!("have the same server_id ({})", id.trim())).await;
    set(2, &format!("SET GLOBAL server_id = {}", own.trim()));

    set(0, "SET GLOBAL binlog_format = 'STATEMENT'");
    finds("binlog_format is STATEMENT").await;
    set(0, "SET GLOBAL binlog_format = 'ROW'; SET GLOBAL sync_binlog = 0");
    finds("sync_binlog is not 1").await;

    let (privilege, mend) = match make {
        Make::MariaDb => ("REPLICA MONITOR", "MariaDB: REPLICA MONITOR"),
        Make::Mysql9 => ("REPLICATION CLIENT", "GRANT REPLICATION CLIENT"),
    };
    set(0, &format!("REVOKE {privilege} ON *.* FROM pointsman@'%'"));
    finds("may not see its replication").await;
    let (code, said) = pointsman(&["check", "--connect"], &folder);
    assert!(code == Some(69) && said.contains(mend), "{said}");
    set(0, &format!("GRANT {privilege} ON *.* TO pointsman@'%'"));
    set(0, "REVOKE TRIGGER ON *.* FROM pointsman@'%'");
    eventually("check says what is missing", async || {
        let (code, said) = pointsman(&["check", "--connect"], &folder);
        code == Some(0) && said.contains("the monitor lacks TRIGGER: GRANT ")
    })
    .await;

    set(0, "SET GLOBAL read_only = 1");
    finds("no node is primary").await;
    set(0, "SET GLOBAL read_only = 0");
    if make == Make::Mysql9 {
        for mode in ["ON_PERMISSIVE", "OFF_PERMISSIVE", "OFF"] {
            set(0, &format!("SET GLOBAL gtid_mode = {mode}"));
        }
        finds("GTIDs are off").await;
    }
    cluster.promote(1).expect("it is promoted");
    finds("several nodes accept writes and replicate from nobody").await;
}

#[tokio::test]
async fn the_doctor_finds_each_slip_of_a_postgres_set_up() {
    let settings = vec![("wal_keep_size".to_owned(), "0".to_owned())];
    let cluster = cluster::own_with(PgOptions { replicas: 2, settings, ..PgOptions::default() });
    for (setting, value) in [("max_wal_senders", "2"), ("max_replication_slots", "1")] {
        cluster.node(0).set(setting, value).expect("it obeys");
    }
    cluster.restart(0, Stop::Fast).expect("it comes back");
    let folder = configuration(&cluster, MONITOR.name, APP.password);
    let finds = async |words: &str| {
        eventually(words, async || pointsman(&["doctor"], &folder).1.contains(words)).await;
    };
    for words in [
        "fsync is off: a crash corrupts it",
        "all 2 WAL senders are taken",
        "neither slots nor wal_keep_size keep WAL",
        "replication is asynchronous",
        "hot_standby_feedback is off",
    ] {
        finds(words).await;
    }
    let primary = at(&cluster, 0).await;
    primary.run("SELECT pg_create_physical_replication_slot('only')").await;
    finds("all 1 replication slots are taken").await;
    primary.run("CREATE DATABASE closed").await;
    primary.run("REVOKE CONNECT ON DATABASE closed FROM PUBLIC").await;
    finds("may not connect to closed").await;
    let (code, said) = pointsman(&["check", "--connect"], &folder);
    let grant = format!("GRANT CONNECT ON DATABASE \"closed\" TO {};", MONITOR.name);
    assert!(code == Some(0) && said.contains(&grant), "{said}");
    primary.run("ALTER SYSTEM SET synchronous_standby_names = 'ANY 2 (*)'").await;
    primary.run("SELECT pg_reload_conf()").await;
    finds("all replicas are needed for a commit (ANY 2 (*))").await;

    cluster.delay_replay(2, Duration::from_secs(60)).expect("it obeys");
    finds("it replays with a delay on purpose").await;

    // A copy of nothing here, from which nothing could be copied either, and more connections than any has.
    let settings = [("wal_level", "minimal"), ("max_wal_senders", "0")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let stranger = PgCluster::start(PgOptions { replicas: 0, settings, ..PgOptions::default() });
    let stranger = stranger.expect("it starts");
    let path = folder.path().join("p.toml");
    let text = std::fs::read_to_string(&path).expect("it is there");
    let text = text.replace("nodes = [", &format!("nodes = [{:?}, ", stranger.node(0).address()));
    std::fs::write(&path, text + "[cluster.pool]\nnode_connections = 5000\n").expect("the folder is ours");
    finds("wal_level is minimal").await;
    finds("the nodes are copies of different systems").await;
    finds("pool.node_connections is 5000, but it gives ordinary users").await;
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
    let (code, said) = pointsman(&["check", "--connect"], &folder);
    assert!(code == Some(69) && said.contains(&format!("GRANT pg_monitor TO {};", MONITOR.name)), "{said}");
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
