//! The getting-started pages, followed word for word: their SQL, their file, their commands, before
//! real servers. Only what they call examples is put in: addresses, ports and the client's address.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use pointsman::demo::{
    Keeper, Port, Signal,
    servers::{PgOptions, Stop},
    signal, wait_for_exit,
};
use tempfile::TempDir;

use crate::{
    both_makes,
    support::{PATIENCE, client, cluster, eventually, mysql::Make},
};

const ADMIN_PASSWORD: &str = "of-our-own";

/// The fenced blocks of a page in one language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    let text = fs::read_to_string(path).expect("it is there");
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).filter_map(|rest| rest.split("```").next()).map(str::to_owned).collect()
}

/// A machine on which a page is followed.
struct Machine {
    folder: TempDir,
    listen: Port,
    http: Port,
    console: Port,
    /// What a page calls something, and what it is here.
    names: Vec<(&'static str, String)>,
    keeper: Keeper,
    proxy: Option<Child>,
}

impl Machine {
    /// `nodes` stand for the page's three.
    fn new(nodes: &[String], mut names: Vec<(&'static str, String)>) -> Self {
        let (listen, http, console) = (claim(), claim(), claim());
        let folder = tempfile::tempdir().expect("a folder");
        for (at, example) in ["10.0.0.1:5432", "10.0.0.2:5432", "10.0.0.3:5432"].into_iter().enumerate() {
            names.push((example, nodes[at].clone()));
        }
        for (at, example) in ["10.0.0.1:3306", "10.0.0.2:3306", "10.0.0.3:3306"].into_iter().enumerate() {
            names.push((example, nodes[at].clone()));
        }
        let file = folder.path().join("pointsman.toml");
        names.push(("/etc/pointsman/pointsman.toml", file.display().to_string()));
        names.push(("127.0.0.1:9187", format!("127.0.0.1:{}", http.number())));
        Self { folder, listen, http, console, names, keeper: keeper(), proxy: None }
    }

    /// A text of the page with what is here in place of its examples.
    fn here(&self, text: &str) -> String {
        self.names.iter().fold(text.to_owned(), |text, (example, here)| text.replace(example, here))
    }

    fn write_file(&self, toml: &str) {
        fs::write(self.file(), self.here(toml)).expect("the folder is ours");
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("pointsman.toml")
    }

    /// Runs a command line of the page in a shell that finds the binary.
    fn shell(&self, line: &str) -> Output {
        let binary = Path::new(env!("CARGO_BIN_EXE_pointsman")).parent().expect("it is in a folder");
        let path = std::env::var("PATH").unwrap_or_default();
        Command::new("bash")
            .args(["-c", &self.here(line)])
            .env("PATH", format!("{}:{path}", binary.display()))
            .env("POINTSMAN_ADMIN_PASSWORD", ADMIN_PASSWORD)
            .stdin(Stdio::null())
            .output()
            .expect("bash is there")
    }

    fn succeeds(&self, line: &str) -> String {
        let output = self.shell(line);
        let said = said(&output);
        assert!(output.status.success(), "{line}: {said}");
        said
    }

    /// `pointsman run`, as the page starts it.
    fn run(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pointsman"));
        command.args(["run", "-c"]).arg(self.file()).env("POINTSMAN_ADMIN_PASSWORD", ADMIN_PASSWORD);
        let log = fs::File::create(self.folder.path().join("log")).expect("the folder is ours");
        command.stdout(Stdio::null()).stderr(log);
        self.proxy = Some(self.keeper.spawn(command, Signal::Kill).expect("the binary was built"));
    }

    /// It is ready, and its replicas serve reads: those that never had all that the primary wrote
    /// since it was first asked have no lag yet, and with a slow disk that takes a while.
    async fn is_ready(&self) {
        let ask = |page: &str| {
            said(&self.shell(&format!("curl -fsS http://127.0.0.1:{}/{page}", self.http.number())))
        };
        eventually("it is ready", async || ask("readyz").contains("ready\n")).await;
        eventually("three nodes serve reads", async || {
            let metrics = ask("metrics");
            let weights = metrics.lines().filter(|line| line.starts_with("pointsman_node_weight{"));
            weights.filter(|line| !line.ends_with(" 0")).count() == 3
        })
        .await;
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let Some(mut proxy) = self.proxy.take() else { return };
        signal(proxy.id(), Signal::Kill);
        wait_for_exit(&mut proxy, PATIENCE);
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
        }
    }
}

fn claim() -> Port {
    Port::claim().expect("ports are to be had")
}

fn keeper() -> Keeper {
    Keeper::start().expect("threads are to be had")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn getting_started_with_postgres_is_right_word_for_word() {
    const PAGE: &str = "getting-started-postgres.md";
    let settings = vec![("fsync".to_owned(), "on".to_owned())];
    let cluster = cluster::own_with(PgOptions { replicas: 2, settings, ..PgOptions::default() });
    let at_primary = |sql: &str| cluster.node(0).sql("postgres", sql).expect("it obeys");
    // Whom the page makes, tests' servers have already; the database is the reader's own.
    for role in ["pointsman", "app"] {
        for database in ["app", "postgres"] {
            let away = format!("REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}");
            cluster.node(0).sql(database, &away).expect("it obeys");
        }
        at_primary(&format!("DROP ROLE {role}"));
    }
    at_primary("CREATE DATABASE shop");
    let mut machine = Machine::new(&cluster.addresses(), Vec::new());
    let (listen, console) = (machine.listen.number().to_string(), machine.console.number().to_string());
    machine.names.push((":6432", format!(":{listen}")));
    machine.names.push(("port=6432", format!("port={listen} password=app-secret")));
    machine.names.push((":6433", format!(":{console}")));
    machine.names.push(("port=6433", format!("port={console} password={ADMIN_PASSWORD}")));

    at_primary(&blocks(PAGE, "sql")[0]);
    cluster.wait_until_caught_up(0).expect("they replay");
    machine.write_file(&blocks(PAGE, "toml")[0]);
    let shell = blocks(PAGE, "sh");
    let checked = machine.succeeds(&shell[0]);
    assert!(checked.contains("ok, primary") && !checked.contains("problem"), "{checked}");
    let (start, look) = shell[1].split_once('\n').expect("it starts, then it looks");
    assert!(start.ends_with("pointsman run -c /etc/pointsman/pointsman.toml"), "{start}");
    machine.run();
    machine.is_ready().await;

    let seen = machine.succeeds(&format!("set -e\n{look}"));

    assert!(seen.contains("reason=read") && seen.matches("| replica | up").count() == 2, "{seen}");
    machine.succeeds(&format!("curl -fsS http://127.0.0.1:{}/ | grep -q Pointsman", machine.http.number()));
    let dsn = format!("host=127.0.0.1 port={listen} user=app password=app-secret dbname=shop");
    let session = client::Session::open(&dsn).await;

    // Then without the users' passwords.
    at_primary(&blocks(PAGE, "sql")[1]);
    at_primary("CREATE ROLE late LOGIN PASSWORD 'late-secret'");
    cluster.wait_until_caught_up(0).expect("they replay");
    let toml = blocks(PAGE, "toml");
    let without_users = toml[0].lines().filter(|line| !line.contains("app-secret"));
    machine.write_file(&format!("{}\n{}", without_users.collect::<Vec<_>>().join("\n"), toml[1]));
    signal(machine.proxy.as_ref().expect("it runs").id(), Signal::HangUp);
    let late = |port: &str, database: &str| {
        format!("host=127.0.0.1 port={port} user=late password=late-secret dbname={database}")
    };
    eventually("its verifier is asked for", async || client::connect(&late(&listen, "shop")).await.is_ok())
        .await;
    let primary = cluster.node(0).port().to_string();
    let curious = client::Session::open(&late(&primary, "postgres")).await;
    assert_eq!(curious.error("SELECT pointsman_users('app')").await, "42501", "only the monitor may ask");

    session.run("SELECT 1").await;
    cluster.stop(0, Stop::Kill).expect("it dies");
    assert_eq!(session.value("SELECT 1").await, "1", "reads never stop");
    cluster.node(1).sql("postgres", "SELECT pg_promote()").expect("it obeys");
    // It waits for the new primary, which does not let this user make tables.
    assert_eq!(session.error("CREATE TABLE t (x int)").await, "42501");
}

both_makes!(getting_started_is_right_word_for_word);

async fn getting_started_is_right_word_for_word(make: Make) {
    const PAGE: &str = "getting-started-mysql.md";
    let cluster = make.own();
    let at_primary = |sql: &str| cluster.node(0).sql("", sql).expect("it obeys");
    at_primary("CREATE DATABASE shop");
    let mut machine = Machine::new(&cluster.addresses(), vec![("10.0.0.%", "127.0.0.1".to_owned())]);
    let (listen, console) = (machine.listen.number().to_string(), machine.console.number().to_string());
    machine.names.push((":3307", format!(":{listen}")));
    machine.names.push(("-P 3307", format!("-P {listen} --skip-ssl --batch")));
    machine.names.push((":6434", format!(":{console}")));
    machine.names.push(("-P 6434", format!("-P {console} --skip-ssl --batch")));

    let sql = machine.here(&blocks(PAGE, "sql")[0]);
    let sql: String =
        sql.lines().filter(|line| !line.starts_with("--")).map(|line| format!("{line}\n")).collect();
    let (of_mysql, of_mariadb) =
        (["SHOW_ROUTINE", "ON performance_schema"].as_slice(), ["REPLICA MONITOR", "ON mysql.*"].as_slice());
    let foreign = if make == Make::MariaDb { of_mysql } else { of_mariadb };
    for statement in sql.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
        if !foreign.iter().any(|words| statement.contains(words)) {
            at_primary(statement);
        }
    }
    cluster.wait_until_caught_up(0).expect("they replay");
    machine.write_file(&blocks(PAGE, "toml")[0]);
    let shell = blocks(PAGE, "sh");
    let lines: Vec<&str> = shell[0].lines().collect();
    let [check, doctor, start, app, console] = lines[..] else { panic!("{lines:?}") };
    let checked = machine.succeeds(&format!("{check} && {doctor}"));
    assert!(checked.contains("ok, primary") && !checked.contains("problem"), "{checked}");
    assert_eq!(start, "systemctl enable --now pointsman");
    machine.run();
    machine.is_ready().await;

    // The page's `-p` asks for the password; nobody is there to type it.
    let typed = |password: &str, line: &str| format!("MYSQL_PWD={password} {}", line.replacen(" -p", "", 1));
    let routed = machine.succeeds(&typed("app-secret", app));
    assert!(routed.contains("reason=read"), "{routed}");
    let nodes = machine.succeeds(&typed(ADMIN_PASSWORD, console));
    assert_eq!(nodes.matches("\treplica\tup\t").count(), 2, "{nodes}");
}
