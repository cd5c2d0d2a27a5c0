//! The drivers that MySQL's apps use, with their own habits.

use std::process::{Command, Output};

use pointsman::demo::servers::APP;

use crate::support::{
    drivers,
    mysql::{Make, Stage},
};

/// Runs a program before a proxy of its own; fails with what it said when it fails.
async fn runs(command: Command) -> (Stage, Output) {
    runs_on(Stage::set("", &[]).await, command)
}

fn runs_on(stage: Stage, mut command: Command) -> (Stage, Output) {
    let replicas: Vec<String> =
        stage.cluster.nodes()[1..].iter().map(|node| node.port().to_string()).collect();
    command
        .env("POINTSMAN_ENGINE", "mysql")
        .env("POINTSMAN_PORT", stage.proxy.port().to_string())
        .env("POINTSMAN_USER", APP.name)
        .env("POINTSMAN_PASSWORD", APP.password)
        .env("POINTSMAN_DATABASE", &stage.schema)
        .env("PRIMARY_PORT", stage.primary_port().to_string())
        .env("REPLICA_PORTS", replicas.join(","))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let output = drivers::succeeds(&mut command);
    (stage, output)
}

async fn python(name: &str) {
    runs(drivers::python(name)).await;
}

#[tokio::test]
async fn pymysql_notices_nothing() {
    python("pymysql_.py").await;
}

#[tokio::test]
async fn mysql_connector_notices_nothing() {
    python("mysql_connector.py").await;
}

#[tokio::test]
async fn mysqlclient_notices_nothing() {
    python("mysqlclient_.py").await;
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
async fn mysql2_of_node_notices_nothing() {
    let mut command = Command::new("node");
    command
        .arg(drivers::script("node_mysql2.js"))
        .env("NODE_PATH", drivers::folder().join("node/node_modules"));
    runs(command).await;
}

#[tokio::test]
async fn jdbc_notices_nothing() {
    let mut command = Command::new("java");
    command.args(["-cp", "/usr/share/java/mariadb-java-client.jar"]).arg(drivers::script("JdbcMysql.java"));
    runs(command).await;
}

#[tokio::test]
async fn the_command_line_client_notices_nothing() {
    let folder = tempfile::tempdir().expect("there is room for files");
    let sourced = folder.path().join("sourced.sql");
    std::fs::write(&sourced, "SELECT 'sourced';\n").expect("the folder is ours");
    let script = std::fs::read_to_string(drivers::script("mariadb.sql")).expect("it is there");
    let script_path = folder.path().join("mariadb.sql");
    std::fs::write(&script_path, script.replace("SOURCED", &sourced.to_string_lossy()))
        .expect("the folder is ours");

    // The shell fills in what is known only when the proxy runs.
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec mariadb --no-defaults --comments --show-warnings --protocol=tcp -h127.0.0.1 -P"$POINTSMAN_PORT" -u"$POINTSMAN_USER" -p"$POINTSMAN_PASSWORD" "$POINTSMAN_DATABASE" < "$0""#]);
    command.arg(&script_path);
    let (stage, output) = runs(command).await;

    let text = String::from_utf8_lossy(&output.stdout);
    let primary = format!("primary: {}", stage.primary_port());
    for expected in ["rows: 3", "   id: 2", "title: two", "first", "second", "sourced", "kept: 3", &primary] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

mod on_mysql9 {
    use super::*;

    #[tokio::test]
    async fn the_query_attributes_of_mysql_connector_arrive() {
        let stage = Stage::on(Make::Mysql9, "", &[]).await;
        stage.install_attribute_function();
        runs_on(stage, drivers::python("mysql_attributes.py"));
    }
}
