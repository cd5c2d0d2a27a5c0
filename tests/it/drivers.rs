//! The drivers that apps use, with their own habits: each script asserts where its statements ran.

use std::process::{Command, Output};

use pointsman::demo::servers::APP;

use crate::support::{Stage, drivers};

/// Tells a client program where the proxy is and which port is whose.
fn environment(command: &mut Command, stage: &Stage) {
    let replicas: Vec<String> = stage.replica_ports().iter().map(u16::to_string).collect();
    command
        .env("POINTSMAN_ENGINE", "postgresql")
        .env("POINTSMAN_PORT", stage.proxy.port().to_string())
        .env("POINTSMAN_USER", APP.name)
        .env("POINTSMAN_PASSWORD", APP.password)
        .env("POINTSMAN_DATABASE", &stage.database.name)
        .env("PRIMARY_PORT", stage.primary_port().to_string())
        .env("REPLICA_PORTS", replicas.join(","))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", stage.proxy.port().to_string())
        .env("PGUSER", APP.name)
        .env("PGPASSWORD", APP.password)
        .env("PGDATABASE", &stage.database.name);
}

/// Runs a client program before a fresh database; it has to succeed, and no replica may ever have
/// been asked to write.
async fn runs(mut command: Command) -> (Stage, Output) {
    let stage = Stage::set("", &[]).await;
    let output = run(&mut command, &stage);
    no_replica_was_asked_to_write(&stage);
    (stage, output)
}

fn no_replica_was_asked_to_write(stage: &Stage) {
    let writes: Vec<String> = stage
        .database
        .errors_on_replicas()
        .into_iter()
        .filter(|line| line.contains("read-only transaction"))
        .collect();
    assert_eq!(writes, Vec::<String>::new(), "writes that replicas refused");
}

/// Runs a program twice, past the proxy and through it: it has to be told the same.
async fn told_the_same(program: impl Fn() -> Command) {
    let stage = Stage::set("", &[drivers::GLOBAL]).await;
    let mut direct = program();
    environment(&mut direct, &stage);
    drivers::past_the_proxy(&mut direct, stage.primary_port());

    let of_server = drivers::succeeds(&mut direct);
    let of_proxy = run(&mut program(), &stage);

    drivers::same(&of_server, &of_proxy);
    no_replica_was_asked_to_write(&stage);
}

fn run(command: &mut Command, stage: &Stage) -> Output {
    environment(command, stage);
    drivers::succeeds(command)
}

async fn python(name: &str) {
    runs(drivers::python(name)).await;
}

#[tokio::test]
async fn psycopg_3_notices_nothing() {
    python("psycopg3.py").await;
}

#[tokio::test]
async fn psycopg2_notices_nothing() {
    python("psycopg2_.py").await;
}

#[tokio::test]
async fn asyncpg_notices_nothing() {
    python("asyncpg_.py").await;
}

#[tokio::test]
async fn sqlalchemy_notices_nothing() {
    python("sqlalchemy_.py").await;
}

#[tokio::test]
async fn django_notices_nothing() {
    python("django_.py").await;
}

#[tokio::test]
async fn node_postgres_notices_nothing() {
    let mut command = Command::new("node");
    command.arg(drivers::script("node_pg.js")).env("NODE_PATH", drivers::folder().join("node/node_modules"));
    runs(command).await;
}

#[tokio::test]
async fn jdbc_notices_nothing() {
    let mut command = Command::new("java");
    command.args(["-cp", "/usr/share/java/postgresql.jar"]).arg(drivers::script("Jdbc.java"));
    runs(command).await;
}

#[tokio::test]
async fn the_pg_functions_of_php_notice_nothing() {
    told_the_same(|| drivers::php("pgsql.php")).await;
}

#[tokio::test]
async fn pdo_notices_nothing() {
    told_the_same(|| drivers::php("pdo.php")).await;
}

#[tokio::test]
async fn ruby_pg_notices_nothing() {
    told_the_same(|| drivers::ruby("ruby_pg.rb")).await;
}

#[tokio::test]
async fn active_record_notices_nothing() {
    told_the_same(|| drivers::ruby("active_record.rb")).await;
}

#[tokio::test]
async fn the_drivers_of_go_notice_nothing() {
    told_the_same(|| drivers::go("go_pgx.go")).await;
}

#[tokio::test]
async fn dbd_pg_notices_nothing() {
    told_the_same(|| drivers::perl("dbd_pg.pl")).await;
}

#[tokio::test]
async fn psql_notices_nothing() {
    let mut command = Command::new("psql");
    command.args(["-X", "-v", "ON_ERROR_STOP=1", "-f"]).arg(drivers::script("psql.sql"));
    let (_, output) = runs(command).await;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\"public.book\"") && text.contains("rows: 3"), "{text}");
}

#[tokio::test]
async fn pgbench_runs_in_all_three_modes_without_an_error() {
    const CLIENTS: &str = "16";
    let mut initialise = Command::new("pgbench");
    initialise.args(["-i", "-s", "2", "-q"]);
    let (stage, _) = runs(initialise).await;

    for mode in ["simple", "extended", "prepared"] {
        for script in ["tpcb-like", "select-only"] {
            let mut pgbench = Command::new("pgbench");
            pgbench.args(["-n", "-M", mode, "-b", script, "-c", CLIENTS, "-j", "2", "-t", "50"]);
            let output = run(&mut pgbench, &stage);
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("actually processed: 800/800"), "{mode} {script}: {text}");
        }
    }

    assert_eq!(stage.database.errors_on_replicas(), Vec::<String>::new());
    assert_eq!(stage.database.calls("UPDATE pgbench").on_replicas(), 0);
    let reads = stage.database.calls("SELECT abalance FROM pgbench_accounts");
    // The reads of tpcb-like stand in transactions; select-only is 3 × 800 of its own.
    assert!(reads.on_replicas() >= 2_000, "{reads:?}");
    let history = stage.database.ask(0, "SELECT count(*) = 2400 AND sum(delta) = (SELECT sum(abalance) FROM pgbench_accounts) FROM pgbench_history");
    assert_eq!(history, "t", "every transaction exactly once");
}
