//! The servers that scripts/bench measures on and whose own tests scripts/regress and scripts/mtr run: a
//! primary and two replicas, PostgreSQL's with pgbench's tables. Prints where they are as one line of
//! JSON and runs until standard input ends.
//!
//! Usage: `bench_servers [SCALE]`, `bench_servers mysql FOLDER` with scripts/mysql9's folder, or
//! `bench_servers mariadb [OPTION…]` with options for every server

use std::{
    env,
    error::Error,
    io::{self, Read, Write},
    process::Command,
};

use pointsman::demo::{
    mysql::{Flavour, MysqlCluster, MysqlNode, MysqlOptions},
    servers::{APP, Binaries, Login, MONITOR, PgCluster, PgOptions, SUPERUSER},
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let first = arguments.next().unwrap_or_else(|| "10".to_owned());
    if first == "mysql" {
        return mysql(&arguments.next().ok_or("bench_servers mysql FOLDER")?);
    }
    if first == "mariadb" {
        return mariadb(arguments.collect());
    }
    postgres(&first)
}

fn postgres(scale: &str) -> Result<(), Box<dyn Error>> {
    let binaries = Binaries::find()?;
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let cluster = PgCluster::start(PgOptions {
        replicas: 2,
        settings: vec![
            setting("shared_buffers", "256MB"),
            setting("max_wal_size", "4GB"),
            // The servers' own book-keeping is not what is measured.
            setting("autovacuum", "off"),
            setting("max_connections", "300"),
        ],
        ..PgOptions::default()
    })?;
    let mut pgbench: Command = binaries.command("pgbench");
    pgbench.args(["-i", "-q", "-s", scale, "-h", "127.0.0.1", "-U", APP.name]);
    pgbench.args(["-p", &cluster.node(0).port().to_string(), APP.name]).env("PGPASSWORD", APP.password);
    let output = pgbench.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    cluster.wait_until_caught_up(0)?;
    let verifier = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{}'", APP.name);
    let verifier = cluster.node(0).sql("postgres", &verifier)?;
    let place = serde_json::json!({
        "nodes": cluster.addresses(),
        "app": login(APP),
        "verifier": verifier,
        "monitor": login(MONITOR),
        "superuser": login(SUPERUSER),
        "scale": scale,
        "pgbench": binaries.program("pgbench"),
    });
    serve(&place)
}

fn mysql(root: &str) -> Result<(), Box<dyn Error>> {
    // The servers' own book-keeping is not what is measured; the last of two options counts.
    let arguments = ["--general-log=0", "--innodb-buffer-pool-size=256M", "--max-connections=300"];
    let cluster = MysqlCluster::start(MysqlOptions {
        flavour: Flavour::Mysql { root: root.into() },
        replicas: 2,
        arguments: arguments.map(str::to_owned).to_vec(),
        ..MysqlOptions::default()
    })?;
    let sockets: Vec<_> = cluster.nodes().iter().map(MysqlNode::socket).collect();
    serve(&serde_json::json!({
        "nodes": cluster.addresses(),
        "sockets": sockets,
        "app": login(APP),
        "monitor": login(MONITOR),
    }))
}

fn mariadb(arguments: Vec<String>) -> Result<(), Box<dyn Error>> {
    let cluster = MysqlCluster::start(MysqlOptions { replicas: 2, arguments, ..MysqlOptions::default() })?;
    let sockets: Vec<_> = cluster.nodes().iter().map(MysqlNode::socket).collect();
    serve(&serde_json::json!({
        "nodes": cluster.addresses(),
        "sockets": sockets,
        "monitor": login(MONITOR),
        "superuser": { "user": "root", "password": "" },
    }))
}

fn login(login: Login) -> serde_json::Value {
    serde_json::json!({ "user": login.name, "password": login.password })
}

/// Tells where the servers are, and keeps them until nobody needs them any more.
fn serve(place: &serde_json::Value) -> Result<(), Box<dyn Error>> {
    writeln!(io::stdout(), "{place}")?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
