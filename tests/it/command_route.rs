//! `pointsman route` with a configuration asks the servers.

use std::process::Command;

use crate::support::Stage;

#[tokio::test]
async fn route_names_candidates_and_judges_functions_by_the_catalog() {
    let stage = Stage::set(
        "CREATE TABLE t (a int); \
         CREATE FUNCTION harmless() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'; \
         CREATE FUNCTION writing() RETURNS void LANGUAGE sql AS 'INSERT INTO t VALUES (1)'",
        &[],
    )
    .await;

    let told = Command::new(env!("CARGO_BIN_EXE_pointsman"))
        .args(["route", "--json", "--database", &stage.database.name, "-c"])
        .arg(stage.proxy.config_path())
        .args(["SELECT harmless() FROM t", "SELECT writing()", "SELECT a FROM t"])
        .output()
        .expect("the binary was built");

    let text = String::from_utf8(told.stdout).expect("JSON is UTF-8");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("one object per line")).collect();
    let accesses: Vec<_> = lines.iter().map(|line| (&line["access"], &line["reason"])).collect();
    assert_eq!(
        accesses,
        [
            (&"read".into(), &"read".into()),
            (&"write".into(), &"function".into()),
            (&"read".into(), &"read".into()),
        ]
    );
    let primary = stage.cluster.node(0).address();
    assert_eq!(lines[1]["route"]["choice"]["node"], primary.as_str());
    let candidates = lines[2]["route"]["candidates"].as_array().expect("the nodes");
    assert_eq!(candidates.len(), stage.cluster.nodes().len());
    assert!(candidates.iter().all(|candidate| candidate["state"] == "up"), "{text}");
    let replicas = candidates.iter().filter(|candidate| candidate["role"] == "replica");
    assert!(replicas.clone().count() > 0 && replicas.clone().all(|replica| replica["lag_seconds"].is_f64()));
    assert_ne!(lines[2]["route"]["choice"]["node"], primary.as_str());
}
