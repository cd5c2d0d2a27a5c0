//! The drivers that MySQL's apps use, with their own habits.

use std::process::Command;

use pointsman::demo::servers::APP;

use crate::support::{drivers, mysql::Stage};

async fn python(name: &str) {
    let stage = Stage::set("", &[]).await;
    let replicas: Vec<String> =
        stage.cluster.nodes()[1..].iter().map(|node| node.port().to_string()).collect();
    let output = Command::new(drivers::folder().join("venv/bin/python"))
        .arg(drivers::script(name))
        .env("POINTSMAN_PORT", stage.proxy.port().to_string())
        .env("POINTSMAN_USER", APP.name)
        .env("POINTSMAN_PASSWORD", APP.password)
        .env("POINTSMAN_DATABASE", &stage.schema)
        .env("PRIMARY_PORT", stage.primary_port().to_string())
        .env("REPLICA_PORTS", replicas.join(","))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap_or_else(|error| panic!("{name}: {error}; run scripts/setup first"));
    assert!(
        output.status.success(),
        "{name}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn pymysql_notices_nothing() {
    python("pymysql_.py").await;
}

#[tokio::test]
async fn mysql_connector_notices_nothing() {
    python("mysql_connector.py").await;
}
