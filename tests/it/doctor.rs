//! `pointsman doctor` and `check --connect` before real servers with real faults.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use pointsman::demo::{
    mysql::MysqlCluster,
    servers::{APP, Binaries, MONITOR, PgCluster, PgOptions, Stop},
};
use tempfile::TempDir;

use crate::{
    both_makes,
    support::{Session, cluster, eventually, link::Link, mysql::Make, patroni::Patroni},
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

pub fn pointsman(arguments: &[&str], folder: &TempDir) -> (Option<i32>, String) {
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

    // What is wrong with the monitor does not hide what is wrong with users.
    let refused = "user app: password authentication failed";
    let (_, said) = pointsman(&["check", "--connect"], &configuration(cluster, "stranger", "wrong"));
    assert_eq!(
        (said.matches("the monitor's login failed").count(), said.matches(refused).count()),
        (3, 3),
        "{said}"
    );
    let folder = configuration(cluster, APP.name, "wrong");
    let text = std::fs::read_to_string(folder.path().join("p.toml")).expect("it was written");
    std::fs::write(folder.path().join("p.toml"), text.replace(MONITOR.password, APP.password))
        .expect("the folder is ours");
    let (_, said) = pointsman(&["check", "--connect"], &folder);
    let blind = "the monitor sees too little: GRANT pg_monitor TO app;";
    assert_eq!((said.matches(blind).count(), said.matches(refused).count()), (3, 3), "{said}");
}

#[tokio::test]
async fn check_connect_says_what_is_wrong_with_the_query_for_passwords() {
    let of = |folder: TempDir, query: &str| {
        let path = folder.path().join("p.toml");
        let text = std::fs::read_to_string(&path).expect("it was written");
        std::fs::write(&path, format!("{text}auth = {{ query = {query:?} }}\n")).expect("the folder is ours");
        pointsman(&["check", "--connect"], &folder)
    };
    let postgres = || configuration(cluster::shared(), MONITOR.name, APP.password);

    let (code, said) = of(postgres(), "SELECT usename, 'md5' FROM pg_user WHERE usename = $1");
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = of(postgres(), "SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1");
    let refusal = "auth.query: permission denied for table pg_authid (42501)";
    assert_eq!((code, said.matches(refusal).count()), (Some(69), 3), "{said}");
    let (code, said) = of(
        mysql_configuration(Make::MariaDb.shared()),
        "SELECT user, verifier FROM mysql.no_such_table WHERE user = ?",
    );
    assert_eq!((code, said.matches("auth.query: ").count()), (Some(69), 3), "{said}");
}

both_makes!(
    the_doctor_finds_what_is_wrong_with_replication,
    the_doctor_finds_semi_synchronous_replication_that_is_none,
    the_doctor_finds_each_slip_of_a_set_up,
    the_doctor_finds_a_server_that_is_far_small_or_of_another_time,
    the_doctor_finds_a_server_that_nobody_can_replicate_from,
    the_doctor_finds_semi_synchronous_replication_that_protects_little,
);

/// A configuration with the servers of `cluster`.
pub fn mysql_configuration(cluster: &MysqlCluster) -> TempDir {
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
    // Its own questions are read by whatever mode the servers have.
    let cluster = make.own_with(&["--sql-mode=NO_BACKSLASH_ESCAPES,ANSI_QUOTES"]);
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
    finds("innodb_flush_log_at_trx_commit is not 1").await;
    finds("replication is asynchronous").await;

    let (slower, as_before) = match make {
        Make::MariaDb => (
            "STOP SLAVE; CHANGE MASTER TO MASTER_DELAY = 3, MASTER_USE_GTID = no; START SLAVE",
            "STOP SLAVE; CHANGE MASTER TO MASTER_DELAY = 0, MASTER_USE_GTID = slave_pos; START SLAVE",
        ),
        Make::Mysql9 => (
            "STOP REPLICA SQL_THREAD; CHANGE REPLICATION SOURCE TO SOURCE_DELAY = 3; START REPLICA SQL_THREAD",
            "STOP REPLICA SQL_THREAD; CHANGE REPLICATION SOURCE TO SOURCE_DELAY = 0; START REPLICA SQL_THREAD",
        ),
    };
    set(2, slower);
    finds("applies with a delay of 3 s").await;
    if make == Make::MariaDb {
        finds("by file and position").await;
    }
    set(2, as_before);

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

fn without_checksums(mut pg_checksums: Command, data: &Path) {
    let done =
        pg_checksums.args(["--disable", "--no-sync", "-D"]).arg(data).output().expect("it is installed");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test]
async fn the_doctor_finds_each_slip_of_a_postgres_set_up() {
    let settings = vec![("wal_keep_size".to_owned(), "0".to_owned())];
    let cluster = cluster::own_with(PgOptions { replicas: 2, settings, ..PgOptions::default() });
    for (setting, value) in
        [("max_wal_senders", "2"), ("max_replication_slots", "1"), ("wal_log_hints", "off")]
    {
        cluster.node(0).set(setting, value).expect("it obeys");
    }
    cluster.stop(0, Stop::Fast).expect("it stops");
    let checksums = Binaries::find().expect("PostgreSQL is installed").command("pg_checksums");
    without_checksums(checksums, cluster.node(0).data());
    cluster.start_node(0).expect("it comes back");
    let folder = configuration(&cluster, MONITOR.name, APP.password);
    let finds = async |words: &str| {
        eventually(words, async || pointsman(&["doctor"], &folder).1.contains(words)).await;
    };
    for words in [
        "fsync is off: a crash corrupts it",
        "all WAL senders are taken (2)",
        "neither slots nor wal_keep_size keep WAL",
        "replication is asynchronous",
        "hot_standby_feedback is off",
        "neither wal_log_hints nor checksums",
    ] {
        finds(words).await;
    }
    let primary = at(&cluster, 0).await;
    primary.run("SELECT pg_create_physical_replication_slot('only')").await;
    finds("all replication slots are taken (1)").await;
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

/// What makes a server live in another hour.
fn in_another_hour(server: &mut Command) {
    let libraries = fs::read_dir("/usr/lib").expect("it is there").flatten();
    let found =
        libraries.map(|folder| folder.path().join("faketime/libfaketime.so.1")).find(|path| path.exists());
    server
        .env("LD_PRELOAD", found.expect("libfaketime is installed; run scripts/setup first"))
        .env("FAKETIME", "+1h")
        // Only what the time is, not how it passes.
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("FAKETIME_DISABLE_SHM", "1");
}

/// Puts a text in the place of another into a configuration.
fn rewrite(folder: &TempDir, from: &str, to: &str) {
    let path = folder.path().join("p.toml");
    let text = fs::read_to_string(&path).expect("it is there");
    assert!(text.contains(from), "{text}");
    fs::write(&path, text.replace(from, to)).expect("the folder is ours");
}

/// That the doctor says none of these; on a busy machine a round trip may take long for once.
async fn finds_none(folder: &TempDir, words: &[&str]) {
    eventually("nothing of the kind is found", async || {
        let said = pointsman(&["doctor"], folder).1;
        !words.iter().any(|words| said.contains(words))
    })
    .await;
}

/// Waits until the doctor says so of this server.
async fn finds(folder: &TempDir, address: &str, words: &str) {
    let what = format!("{address}: {words}");
    eventually(&what, async || pointsman(&["doctor"], folder).1.contains(&what)).await;
}

async fn the_doctor_finds_a_server_that_is_far_small_or_of_another_time(make: Make) {
    let cluster = make.own();
    let folder = mysql_configuration(&cluster);
    finds_none(&folder, &["its clock is", "a round trip takes", "pool.size is"]).await;

    cluster.node(0).sql("", "SET GLOBAL max_connections = 20").expect("it obeys");
    let few =
        "pool.size is 20, but of the 20 connections that it gives ordinary users all pools together take 16";
    finds(&folder, &cluster.node(0).address(), few).await;

    cluster.stop(2, Stop::Fast).expect("it stops");
    cluster.start_node_with(2, in_another_hour).expect("it starts");
    let clock = format!("{}: its clock is 3", cluster.node(2).address());
    eventually("the clock", async || {
        let said = pointsman(&["doctor"], &folder).1;
        // 3,600 s, and what the question took.
        said.contains(&clock) && (said.contains("3600.") || said.contains("3599.") || said.contains("3598."))
    })
    .await;

    let link = Link::to(&cluster.node(1).address());
    link.delay(Duration::from_millis(30));
    rewrite(&folder, &cluster.node(1).address(), &link.address());
    finds(&folder, &link.address(), "a round trip takes").await;
}

async fn the_doctor_finds_a_server_that_nobody_can_replicate_from(make: Make) {
    let cluster = make.own();
    let folder = mysql_configuration(&cluster);
    let address = cluster.node(2).address();
    let restart = |arguments: &[&str]| {
        cluster.stop(2, Stop::Fast).expect("it stops");
        cluster.start_node_with(2, |server| _ = server.args(arguments)).expect("it starts");
    };

    let (updates, without_log) = match make {
        Make::MariaDb => ("--skip-log-slave-updates", &["--skip-log-bin", "--skip-log-slave-updates"][..]),
        Make::Mysql9 => ("--skip-log-replica-updates", &["--skip-log-bin"][..]),
    };
    restart(&[updates]);
    finds(&folder, &address, "it does not log what it replicates").await;
    restart(without_log);
    finds(&folder, &address, "it writes no binary log").await;

    if make == Make::Mysql9 {
        // The copy that has kept its original's identity.
        let folder_of = |node: usize| {
            PathBuf::from(cluster.node(node).sql("", "SELECT @@datadir").expect("it answers").trim())
        };
        let (original, copy) = (folder_of(1).join("auto.cnf"), folder_of(2).join("auto.cnf"));
        fs::copy(original, copy).expect("the folders are ours");
        restart(&[]);
        eventually("the same uuid", async || {
            pointsman(&["doctor"], &folder).1.contains("have the same server_uuid")
        })
        .await;
    }
}

async fn the_doctor_finds_semi_synchronous_replication_that_protects_little(make: Make) {
    let cluster = make.own_semi_synchronous();
    let folder = mysql_configuration(&cluster);
    let (primary, replica) = (cluster.node(0).address(), cluster.node(1).address());
    let set = |node: usize, sql: &str| drop(cluster.node(node).sql("", sql).expect("it obeys"));
    let prefix = match make {
        Make::MariaDb => "rpl_semi_sync_master",
        Make::Mysql9 => "rpl_semi_sync_source",
    };
    let no_replica = match make {
        Make::MariaDb => "wait_no_slave",
        Make::Mysql9 => "wait_no_replica",
    };

    set(0, &format!("SET GLOBAL {prefix}_{no_replica} = OFF"));
    finds(&folder, &primary, "with too few replicas commits wait for none of them").await;
    set(0, &format!("SET GLOBAL {prefix}_{no_replica} = ON; SET GLOBAL {prefix}_wait_point = AFTER_COMMIT"));
    finds(&folder, &primary, "commits are seen by others before a replica has them").await;
    set(0, &format!("SET GLOBAL {prefix}_wait_point = AFTER_SYNC"));

    set(1, &format!("SET GLOBAL {prefix}_enabled = ON; SET GLOBAL {prefix}_timeout = 100000000"));
    finds(&folder, &replica, "its replay waits for replicas of its own to acknowledge").await;
    set(1, &format!("SET GLOBAL {prefix}_enabled = OFF"));

    cluster.stop(2, Stop::Kill).expect("it dies");
    finds(&folder, &primary, "every acknowledging replica (1) is needed for a commit").await;
}

#[tokio::test]
async fn the_doctor_finds_a_postgres_server_that_is_far_small_or_of_another_time() {
    let settings = vec![("fsync".to_owned(), "on".to_owned())];
    let cluster = cluster::own_with(PgOptions { replicas: 2, settings, ..PgOptions::default() });
    let folder = configuration(&cluster, MONITOR.name, APP.password);
    let slips =
        ["its clock is", "a round trip takes", "pool.size is", "hot_standby = on", "full_page_writes"];
    finds_none(&folder, &slips).await;
    let addresses = cluster.addresses();

    cluster.node(0).set("full_page_writes", "off").expect("it obeys");
    finds(&folder, &addresses[0], "full_page_writes is off: a crash may corrupt pages").await;

    cluster.stop(2, Stop::Fast).expect("it stops");
    cluster.start_node_with(2, in_another_hour).expect("it starts");
    eventually("the clock", async || {
        let said = pointsman(&["doctor"], &folder).1;
        let clock = format!("{}: its clock is 3", addresses[2]);
        said.contains(&clock) && (said.contains("3600.") || said.contains("3599.") || said.contains("3598."))
    })
    .await;

    let link = Link::to(&addresses[1]);
    link.delay(Duration::from_millis(30));
    rewrite(&folder, &addresses[1], &link.address());
    finds(&folder, &link.address(), "a round trip takes").await;
    rewrite(&folder, &link.address(), &addresses[1]);

    // A replica with fewer of anything than its primary; first the primary has too few itself.
    let restart_primary = |setting: &str, value: &str| {
        cluster.node(0).set(setting, value).expect("it obeys");
        cluster.restart(0, Stop::Fast).expect("it comes back");
    };
    restart_primary("max_connections", "20");
    let few =
        "pool.size is 20, but of the 17 connections that it gives ordinary users all pools together take 13";
    finds(&folder, &addresses[0], few).await;
    restart_primary("max_connections", "500");
    let ours = cluster.node(1).sql("postgres", "SHOW max_connections").expect("it answers");
    let fewer = format!(
        "max_connections is {}, the primary's is 500: it pauses replay or does not start",
        ours.trim()
    );
    finds(&folder, &addresses[1], &fewer).await;
    restart_primary("max_prepared_transactions", "77");
    let ours = cluster.node(1).sql("postgres", "SHOW max_prepared_transactions").expect("it answers");
    let fewer = format!("max_prepared_transactions is {}, the primary's is 77", ours.trim());
    finds(&folder, &addresses[1], &fewer).await;

    cluster.stop(0, Stop::Fast).expect("it stops");
    finds(&folder, "cluster", "no node is primary").await;
}

#[tokio::test]
async fn the_doctor_finds_a_replica_that_takes_no_connections() {
    let cluster = cluster::own();
    let folder = configuration(&cluster, MONITOR.name, APP.password);
    cluster.node(2).stop(Stop::Fast).expect("it stops");
    cluster.start_node_with(2, |server| _ = server.args(["-c", "hot_standby=off"])).expect("it starts");

    let (code, said) = pointsman(&["doctor"], &folder);

    assert_eq!(code, Some(69), "{said}");
    let closed = format!("{}: the monitor cannot ask it: ", cluster.node(2).address());
    assert!(said.contains(&closed) && said.contains("takes no connections (hot_standby = off?)"), "{said}");
    assert!(said.contains("mend: see that the server runs (a replica with hot_standby = on)"), "{said}");
}

#[tokio::test]
async fn the_doctor_asks_the_servers_that_patroni_names() {
    let mut patroni = Patroni::start(3);
    patroni.wait_for_replicas();
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!(
        "[[cluster]]\nname = 'it'\nengine = 'postgres'\nlisten = ['127.0.0.1:0']\n\
         discovery = {{ patroni = {:?} }}\nusers = [{{ name = '{}', password = '{}' }}]\n\
         monitor = {{ user = '{}', password = '{}' }}\n",
        patroni.endpoints(),
        APP.name,
        APP.password,
        MONITOR.name,
        MONITOR.password
    );
    fs::write(folder.path().join("p.toml"), text).expect("the folder is ours");

    let (_, said) = pointsman(&["doctor"], &folder);
    assert!(said.starts_with("cluster it: 3 nodes asked"), "{said}");
    assert!(
        said.contains("Patroni keeps these servers") && said.contains("hot_standby_feedback is off"),
        "{said}"
    );
    let (code, said) = pointsman(&["check", "--connect"], &folder);
    assert_eq!((code, said.matches("ok, primary").count()), (Some(0), 1), "{said}");
    assert_eq!(said.matches("ok, replica").count(), 2, "{said}");

    for agent in 0..3 {
        patroni.kill(agent);
    }
    for command in [&["doctor"][..], &["check", "--connect"]] {
        let (code, said) = pointsman(command, &folder);
        assert_eq!(code, Some(69), "{said}");
        assert!(said.contains("Patroni names no nodes: http"), "{said}");
    }
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
    let kept = async |severity: &str| {
        let words = format!("{severity} {}: nobody uses slot forgotten", cluster.node(0).address());
        eventually(&words, async || doctor().1.contains(&words)).await;
    };
    kept("note").await;
    primary.run("SELECT pg_logical_emit_message(false, 'doctor', repeat('x', 70 * 1024 * 1024))").await;
    kept("warning").await;

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
