//! What a person on call types into psql and mysql.

use std::{
    process::{Command, Output},
    time::{Duration, Instant},
};

use mysql_async::prelude::Queryable;
use pointsman::demo::{Port, servers::Login};

use crate::support::{Session, Stage, client, code, drivers, eventually, wire::Batch};

/// The console's doors before a stage.
pub struct Console {
    pub stage: Stage,
    pub postgres: Port,
    pub mysql: Port,
}

/// Who may come in.
pub const ADMIN: Login = Login { name: "root", password: "open-sesame" };

const USERS: &str = "admin.users = [{ name = 'root', password = 'open-sesame' }]";

impl Console {
    pub async fn open(sql: &str, settings: &[&str]) -> Self {
        let (postgres, mysql) = (Port::claim().expect("a port"), Port::claim().expect("a port"));
        let doors = [
            format!("admin.postgres = '127.0.0.1:{}'", postgres.number()),
            format!("admin.mysql = '127.0.0.1:{}'", mysql.number()),
        ];
        let mut all: Vec<&str> = doors.iter().map(String::as_str).collect();
        all.push(USERS);
        all.extend(settings);
        Self { stage: Stage::set(sql, &all).await, postgres, mysql }
    }

    fn dsn(&self, user: &str, password: &str) -> String {
        let port = self.postgres.number();
        format!("host=127.0.0.1 port={port} user={user} password={password} dbname=whatever")
    }

    pub async fn session(&self) -> Session {
        Session::open(&self.dsn("root", "open-sesame")).await
    }

    pub fn psql(&self, command: &str) -> Output {
        let dsn = self.dsn("root", "open-sesame");
        Command::new("psql")
            .args(["-X", "-A", "-F,", &dsn, "-c", command])
            .output()
            .expect("psql is installed")
    }

    pub fn mysql(&self, password: &str, command: &str) -> Output {
        let port = format!("--port={}", self.mysql.number());
        let password = format!("--password={password}");
        let fixed = ["--no-defaults", "--host=127.0.0.1", "--user=root", "--batch", "--skip-auto-rehash"];
        Command::new("mysql")
            .args(fixed)
            .args([&port, &password, "--database=whatever", "-e", command])
            .output()
            .expect("mysql is installed")
    }

    /// The cells of a column of `SHOW …`.
    fn column(&self, what: &str, column: &str) -> Vec<String> {
        let text = String::from_utf8(self.psql(&format!("SHOW {what}")).stdout).expect("text");
        let mut lines = text.lines();
        let at = lines.next().and_then(|head| head.split(',').position(|name| name == column));
        let at = at.unwrap_or_else(|| panic!("no column {column} in {text}"));
        lines
            .filter(|line| !line.starts_with('('))
            .map(|line| line.split(',').nth(at).unwrap_or("").to_owned())
            .collect()
    }
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn both_doors_show_the_same_nodes() {
    let console = Console::open("", &[]).await;

    let head = "cluster,node,role,state,lag_seconds,lag_bytes,weight,timeline,in_use,idle,waiters";
    let psql = console.psql("SHOW NODES;");
    assert!(said(&psql).starts_with(head), "{}", said(&psql));
    let mysql = console.mysql("open-sesame", "show nodes");
    assert!(said(&mysql).replace('\t', ",").starts_with(head), "{}", said(&mysql));

    assert_eq!(console.column("NODES", "role"), ["primary", "replica", "replica"]);
    assert_eq!(said(&mysql).matches("\treplica\tup\t").count(), 2, "{}", said(&mysql));
}

#[tokio::test]
async fn every_show_answers_on_both_doors() {
    let console = Console::open("CREATE TABLE t (x int)", &["admin.recent_statements = 10"]).await;
    let session = console.stage.session().await;
    session.run("INSERT INTO t VALUES (1)").await;

    for what in [
        "POOLS",
        "CLIENTS",
        "SERVERS",
        "STATS",
        "ROUTES",
        "STATEMENTS",
        "CONFIG",
        "DATABASES",
        "LISTS",
        "EVENTS",
        "VERSION",
        "HELP",
    ] {
        let (psql, mysql) =
            (console.psql(&format!("SHOW {what}")), console.mysql("open-sesame", &format!("SHOW {what}")));
        assert!(
            psql.status.success() && psql.stdout.iter().filter(|byte| **byte == b'\n').count() > 2,
            "{what}: {}",
            said(&psql)
        );
        assert!(
            mysql.status.success() && mysql.stdout.iter().filter(|byte| **byte == b'\n').count() > 1,
            "{what}: {}",
            said(&mysql)
        );
        assert!(!said(&psql).contains("open-sesame"), "{what} shows a secret");
    }
    let pools = console.column("POOLS", "user");
    assert!(pools.contains(&"app".to_owned()), "{pools:?}");
}

#[tokio::test]
async fn the_last_statements_are_shown_without_their_literals_while_that_is_on() {
    let mut console = Console::open("CREATE TABLE t (x int, y text)", &[]).await;
    let session = console.stage.session().await;
    session.run("INSERT INTO t (y) VALUES ('hush')").await;
    let shown = |console: &Console| console.column("STATEMENTS", "statement");
    assert!(shown(&console).is_empty(), "it is off");

    console.stage.proxy.reload(&["admin.recent_statements = 4"]);
    eventually("they are kept", async || {
        session.run("SELECT 1").await;
        !shown(&console).is_empty()
    })
    .await;
    session.run("INSERT INTO t (y) VALUES ('hush')").await;
    session.run("SELECT y FROM t WHERE y = 'hush'").await;
    // Prepared, then executed.
    session.query("SELECT y FROM t WHERE y = $1", &[&"hush"]).await.expect("it answers");

    assert_eq!(
        shown(&console),
        [
            "INSERT INTO t (y) VALUES ('')",
            "SELECT y FROM t WHERE y = ''",
            "SELECT y FROM t WHERE y = $1",
            "SELECT y FROM t WHERE y = $1"
        ]
    );
    assert_eq!(console.column("STATEMENTS", "access"), ["write", "read", "read", "read"]);
    assert_eq!(console.column("STATEMENTS", "node")[0], console.stage.cluster.node(0).address());
    assert!(!said(&console.psql("SHOW STATEMENTS")).contains("hush"));

    console.stage.proxy.reload(&["admin.recent_statements = 0"]);
    eventually("they are forgotten", async || shown(&console).is_empty()).await;
}

#[tokio::test]
async fn drivers_with_the_extended_protocol_get_typed_columns() {
    let console = Console::open("", &[]).await;
    let client = client::connect(&console.dsn("root", "open-sesame")).await.expect("it lets us in");

    let rows = client.query("SHOW NODES", &[]).await.expect("it answers");

    let in_use: Vec<i64> = rows.iter().map(|row| row.get("in_use")).collect();
    assert_eq!(in_use.len(), 3);
    let weight: f64 = rows[1].get("weight");
    assert!(weight > 0.0);
}

#[tokio::test]
async fn drivers_of_mysql_come_in_and_prepare_their_commands() {
    let console = Console::open("", &[]).await;
    let options = mysql_async::OptsBuilder::default()
        .ip_or_hostname("127.0.0.1")
        .tcp_port(console.mysql.number())
        .user(Some(ADMIN.name))
        .pass(Some(ADMIN.password))
        .prefer_socket(false);
    let mut client = mysql_async::Conn::new(options).await.expect("it lets us in");
    for _ in 0..100 {
        let rows: Vec<mysql_async::Row> = client.exec("SHOW NODES", ()).await.expect("it answers");
        let in_use: Vec<i64> = rows.iter().map(|row| row.get("in_use").expect("a number")).collect();
        let weight: f64 = rows[1].get("weight").expect("a number");
        assert!(in_use.len() == 3 && weight > 0.0);
    }
    let refused = client.prep("DRAIN ?").await.err();
    assert!(format!("{refused:?}").contains("1295"), "{refused:?}");
    for number in 0..64 {
        client.prep(format!("/* {number} */ SHOW VERSION")).await.expect("there is room");
    }

    let mut command = Command::new("java");
    command.args(["-cp", "/usr/share/java/mariadb-java-client.jar"]).arg(drivers::script("JdbcConsole.java"));
    command.env("POINTSMAN_PORT", console.mysql.number().to_string());
    command.env("POINTSMAN_USER", ADMIN.name).env("POINTSMAN_PASSWORD", ADMIN.password);
    tokio::task::spawn_blocking(move || drivers::succeeds(&mut command)).await.expect("it does not panic");
}

#[tokio::test]
async fn a_database_that_there_is_not_leaves_nothing_behind() {
    let console = Console::open("", &[]).await;
    console.stage.session().await.run("SELECT 1").await;

    for number in 0..3 {
        let error = client::connect(&console.stage.proxy.dsn(&format!("nowhere_{number}"))).await.err();
        assert_eq!(error.as_ref().map(code).as_deref(), Some("3D000"));
    }

    let names = || [console.column("POOLS", "database"), console.column("DATABASES", "name")].concat();
    let is_there = |name: &str| names().iter().any(|shown| shown.starts_with(name));
    assert!(is_there(&console.stage.database.name));
    eventually("they are forgotten", async || !is_there("nowhere_")).await;
}

#[tokio::test]
async fn nobody_comes_in_without_the_password() {
    let console = Console::open("", &[]).await;

    for (user, password) in [("root", "wrong"), ("nobody", "open-sesame"), ("app", "app-pw")] {
        let error = client::connect(&console.dsn(user, password)).await.err();
        assert_eq!(error.as_ref().map(code).as_deref(), Some("28P01"), "{user}");
        let message = error.as_ref().and_then(|error| error.as_db_error()).map(|error| error.message());
        assert_eq!(message, Some(&*format!("password authentication failed for user \"{user}\"")));
    }
    let mysql = console.mysql("wrong", "SHOW NODES");
    let denied = "ERROR 1045 (28000): Access denied for user 'root' (using password: YES)";
    assert!(!mysql.status.success() && said(&mysql).contains(denied), "{}", said(&mysql));
}

#[tokio::test]
async fn the_console_is_closed_while_it_has_no_users() {
    let mut console = Console::open("", &[]).await;
    let before = console.psql("SHOW VERSION");
    assert!(before.status.success(), "{}", said(&before));

    console.stage.proxy.reload(&["admin.users = []"]);

    eventually("the doors are closed", async || {
        !console.psql("SHOW VERSION").status.success()
            && !console.mysql("open-sesame", "SHOW VERSION").status.success()
    })
    .await;
}

#[tokio::test]
async fn the_console_has_no_way_to_the_data() {
    let console = Console::open("CREATE TABLE t (x int)", &[]).await;

    for command in ["SELECT * FROM t", "INSERT INTO t VALUES (1)", "DROP TABLE t"] {
        assert!(!console.psql(command).status.success(), "{command}");
        assert!(!console.mysql("open-sesame", command).status.success(), "{command}");
    }
}

#[tokio::test]
async fn a_drained_or_banned_node_gets_nothing_new_within_a_second() {
    let console = Console::open("", &[]).await;
    let session = console.stage.session().await;
    let node = console.stage.cluster.node(1).address();
    let port = console.stage.replica_ports()[0];

    for (away, back) in [("DRAIN", "UNDRAIN"), ("BAN", "UNBAN")] {
        let done = console.psql(&format!("{away} {node}"));
        assert!(done.status.success(), "{}", said(&done));
        tokio::time::sleep(Duration::from_secs(1)).await;
        for _ in 0..50 {
            assert_ne!(session.port().await, port, "after {away}");
        }
        assert!(console.psql(&format!("{back} {node}")).status.success());
        eventually("it is used again", async || session.port().await == port).await;
    }
    for nowhere in ["nowhere:1", "nowhere", "127.0.0.1"] {
        assert!(!console.psql(&format!("DRAIN {nowhere}")).status.success(), "three nodes are on 127.0.0.1");
    }
}

#[tokio::test]
async fn a_write_is_told_that_its_primary_is_drained_or_banned() {
    let console = Console::open("CREATE TABLE t (x int)", &["cluster.failover.hold = '200ms'"]).await;
    let session = console.stage.session().await;
    let node = console.stage.cluster.node(0).address();

    for (away, back, told) in [("DRAIN", "UNDRAIN", "draining"), ("BAN", "UNBAN", "banned")] {
        assert!(console.psql(&format!("{away} {node}")).status.success());
        let refused = session.try_run("INSERT INTO t VALUES (1)").await.expect_err("nobody runs it");
        let refused = refused.as_db_error().expect("the proxy says so");
        assert_eq!(refused.code().code(), "57P03");
        assert_eq!(refused.message(), format!("the primary, {node}, is {told}"));
        assert!(console.psql(&format!("{back} {node}")).status.success());
    }
}

#[tokio::test]
async fn pause_waits_for_transactions_then_holds_and_resume_lets_go() {
    let console = Console::open("CREATE TABLE t (x int)", &[]).await;
    let (busy, other) = (console.stage.session().await, console.stage.session().await);
    busy.run("BEGIN; INSERT INTO t VALUES (1)").await;
    let admin = console.session().await;
    let pause = tokio::spawn(async move {
        admin.run("PAUSE").await;
        admin
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!pause.is_finished(), "a transaction is open");

    let held = tokio::spawn(async move {
        other.run("INSERT INTO t VALUES (3)").await;
        other.value("SELECT count(*) FROM t").await
    });
    busy.run("INSERT INTO t VALUES (2)").await;
    busy.run("COMMIT").await;
    let admin = pause.await.expect("it pauses");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!held.is_finished(), "new statements wait");
    assert_eq!(console.stage.database.ask(0, "SELECT count(*) FROM t"), "2");

    admin.run("RESUME").await;

    assert_eq!(held.await.expect("it goes on"), "3");
}

#[tokio::test]
async fn the_columns_that_others_read_are_where_they_look_for_them() {
    let console = Console::open("", &[]).await;
    console.stage.session().await.run("SELECT 1").await;
    // PgBouncer's, in its order; more may stand behind and between.
    for (what, columns) in [
        ("POOLS", "database,user,cl_active,cl_waiting,sv_active,sv_idle,maxwait,maxwait_us,pool_mode"),
        ("CLIENTS", "type,user,database,state,addr,port,connect_time,wait,wait_us,link"),
        ("SERVERS", "type,user,database,state,addr,port,link,remote_pid"),
        (
            "DATABASES",
            "name,host,port,database,force_user,pool_size,min_pool_size,reserve_pool,pool_mode,max_connections,\
             current_connections,paused,disabled",
        ),
        ("STATS", "database,total_query_count,total_query_time,total_wait_time"),
        ("STATS_TOTALS", "database,query_count,query_time,wait_time"),
        ("LISTS", "list,items"),
        ("CONFIG", "key,value,changeable"),
        ("NODES", "cluster,node,role,state,lag_seconds,lag_bytes,weight,timeline,in_use,idle,waiters"),
    ] {
        let (psql, mysql) = (
            said(&console.psql(&format!("SHOW {what}"))),
            said(&console.mysql("open-sesame", &format!("SHOW {what}"))),
        );
        let head = psql.lines().next().unwrap_or_default().to_owned();
        assert_eq!(
            mysql.lines().next().unwrap_or_default().replace('\t', ","),
            head,
            "{what} on the other door"
        );
        let mut there = head.split(',');
        for column in columns.split(',') {
            assert!(there.any(|name| name == column), "{what}: no {column}, or not in its place: {head}");
        }
    }
}

#[tokio::test]
async fn a_cluster_is_paused_and_resumed_by_its_name() {
    let console = Console::open("", &[]).await;
    let refused = |command: &str| {
        let output = console.psql(command);
        assert!(!output.status.success(), "{command}");
        said(&output)
    };

    assert!(refused("PAUSE nowhere").contains("nowhere"));
    assert!(refused("RESUME it").contains("not paused"));
    assert!(console.psql("PAUSE it").status.success());
    assert!(refused("PAUSE it").contains("already paused"));
    assert_eq!(console.stage.proxy.metric("pointsman_paused", &[]), 1.0);
    assert!(console.mysql("open-sesame", "RESUME it").status.success());
    assert_eq!(console.stage.proxy.metric("pointsman_paused", &[]), 0.0);
}

#[tokio::test]
async fn a_shutdown_that_waits_lets_transactions_end() {
    let mut console = Console::open("CREATE TABLE t (x int)", &[]).await;
    let session = console.stage.session().await;
    session.run("BEGIN; INSERT INTO t VALUES (1)").await;

    let answer = console.mysql("open-sesame", "SHUTDOWN WAIT_FOR_CLIENTS");

    assert!(answer.status.success(), "{}", said(&answer));
    console.stage.proxy.wait_for_log("SHUTDOWN in the console").await;
    assert!(console.stage.proxy.is_running());
    session.run("COMMIT").await;
    assert!(console.stage.proxy.wait().success());
    assert_eq!(console.stage.database.ask(0, "SELECT count(*) FROM t"), "1");
}

#[tokio::test]
async fn kill_ends_a_client_and_what_it_runs() {
    let console = Console::open("", &[]).await;
    let session = console.stage.session().await;
    let began = Instant::now();
    let running = tokio::spawn(async move { session.try_run("SELECT pg_sleep(60)").await });
    let id = || {
        let (ids, states) = (console.column("CLIENTS", "id"), console.column("CLIENTS", "state"));
        states.iter().position(|state| state == "active").map(|at| ids[at].clone())
    };
    eventually("it runs", async || id().is_some()).await;
    let id = id().expect("it runs for a minute");

    let killed = console.mysql("open-sesame", &format!("KILL {id}"));

    assert!(killed.status.success(), "{}", said(&killed));
    assert!(running.await.expect("no panic").is_err());
    assert!(began.elapsed() < Duration::from_secs(20));
    let told = &["kind=\"shutting_down\""];
    eventually("it is counted", async || console.stage.proxy.metric("pointsman_errors_total", told) == 1.0)
        .await;
    assert!(!console.psql("KILL 1").status.success());
}

#[tokio::test]
async fn kill_ends_a_client_that_waits_as_a_server_does() {
    let console = Console::open("", &["cluster.pool.size = 1"]).await;
    let (holder, mut waiting) = (console.stage.session().await, console.stage.wire().await);
    holder.run("BEGIN; SELECT txid_current()").await;
    waiting.send(&Batch::new().query("/* pointsman: primary */ SELECT 1")).await;
    let id = || {
        let (ids, states) = (console.column("CLIENTS", "id"), console.column("CLIENTS", "state"));
        states.iter().position(|state| state == "waiting").map(|at| ids[at].clone())
    };
    eventually("it waits", async || id().is_some()).await;

    let killed = console.psql(&format!("KILL {}", id().expect("it waits")));

    assert!(killed.status.success(), "{}", said(&killed));
    let told = waiting.until_closed().await;
    let told: Vec<_> =
        told.iter().map(|frame| (frame.field(b'S').unwrap_or_default(), frame.code())).collect();
    assert_eq!(told, [("FATAL".to_owned(), "57P01".to_owned())]);
    holder.run("COMMIT").await;
}

#[tokio::test]
async fn kill_ends_a_client_that_neither_reads_nor_goes_on() {
    let console = Console::open("CREATE TABLE t (x text)", &[]).await;
    let long = format!("INSERT INTO t VALUES ('{}')", ".".repeat(3 << 20));
    let long = Batch::new().query(&long);
    let cases = [
        ("does not read", Batch::new().query("SELECT repeat('.', 1000) FROM generate_series(1, 100000)")),
        ("has sent a part of a statement", Batch::new().raw(&long.bytes()[..2 << 20])),
        ("has sent a part of its data", Batch::new().query("COPY t FROM STDIN").copy_data("x")),
    ];
    for (what, batch) in cases {
        let mut client = console.stage.wire().await;
        client.send(&batch).await;
        let proxy = &console.stage.proxy;
        let held = || {
            let of = |port: u16| {
                let node = format!("node=\"127.0.0.1:{port}\"");
                proxy.metric("pointsman_pool_connections", &[&node, "state=\"in_use\""])
            };
            let nodes = console.stage.replica_ports().into_iter().chain([console.stage.primary_port()]);
            nodes.map(of).sum::<f64>()
        };
        eventually("a server is at it", async || held() == 1.0).await;

        let id = u32::from_be_bytes(*client.key.first_chunk().expect("a number"));
        let killed = console.psql(&format!("KILL {id}"));

        assert!(killed.status.success(), "{}", said(&killed));
        let ended = async || proxy.metric("pointsman_clients", &[]) == 0.0 && held() == 0.0;
        eventually(&format!("a client that {what} is gone"), ended).await;
    }
    assert_eq!(console.stage.database.ask(0, "SELECT count(*) FROM t"), "0");
}

#[tokio::test]
async fn reload_says_what_is_wrong_with_the_file() {
    let console = Console::open("", &[]).await;
    assert!(console.psql("RELOAD").status.success());

    console.stage.proxy.write_text("[[cluster]]\nnonsense = true\n");
    let refused = console.psql("RELOAD");

    assert!(!refused.status.success() && said(&refused).contains("nonsense"), "{}", said(&refused));
}

#[tokio::test]
async fn shutdown_ends_the_proxy() {
    let mut console = Console::open("", &[]).await;

    let said_so = console.psql("SHUTDOWN");

    assert!(said_so.status.success(), "{}", said(&said_so));
    assert!(console.stage.proxy.wait().success());
}
