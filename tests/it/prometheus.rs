//! What Prometheus and Grafana make of the metrics.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use pointsman::demo::Port;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{PATIENCE, Session, Stage, eventually};

fn grafana(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("grafana").join(path)
}

fn promtool(arguments: &[&str], input: &str) {
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(grafana("prometheus"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed: scripts/setup");
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

#[test]
fn alert_rules_speak_when_they_should_and_only_then() {
    promtool(&["check", "rules", "rules/pointsman.yml"], "");
    promtool(&["test", "rules", "rules/pointsman_test.yml"], "");
    promtool(&["check", "config", "prometheus.yml"], "");
}

#[tokio::test]
async fn promtool_has_nothing_to_say_about_the_metrics() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    stage.session().await.run("INSERT INTO t VALUES (1)").await;

    promtool(&["check", "metrics"], &stage.proxy.http("/metrics"));
}

/// A Prometheus that scrapes one proxy every second.
struct Prometheus {
    child: Child,
    port: Port,
    _folder: TempDir,
}

impl Prometheus {
    fn start(target: &str) -> Self {
        let (folder, port) = (tempfile::tempdir().expect("a folder"), Port::claim().expect("a port"));
        let config = fs::read_to_string(grafana("prometheus/prometheus.yml")).expect("it is there");
        let rules = grafana("prometheus/rules/pointsman.yml");
        let config = config
            .replace("localhost:9187", target)
            .replace("5s", "1s")
            .replace("rules/pointsman.yml", rules.to_str().expect("a path of text"));
        fs::write(folder.path().join("prometheus.yml"), config).expect("the folder is ours");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{}", port.number()))
            .arg("--log.level=error")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus is installed: scripts/setup");
        Self { child, port, _folder: folder }
    }

    fn get(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port.number())).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero");
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// How many series an expression has; panics when it does not parse.
    fn series(&self, expression: &str) -> usize {
        let query = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let Some(answer) = self.get(&format!("/api/v1/query?query={query}")) else { return 0 };
        assert_eq!(answer["status"], "success", "{expression}: {}", answer["error"]);
        answer["data"]["result"].as_array().map_or(0, Vec::len)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every expression of every panel, as Grafana would send it.
fn panels() -> Vec<String> {
    let mut expressions = Vec::new();
    for entry in fs::read_dir(grafana("dashboards")).expect("it is there").flatten() {
        let text = fs::read_to_string(entry.path()).expect("it is text");
        let dashboard: Value = serde_json::from_str(&text).expect("it is JSON");
        for panel in dashboard["panels"].as_array().expect("it has panels") {
            for target in panel["targets"].as_array().expect("every panel asks for something") {
                let expression = target["expr"].as_str().expect("text");
                expressions.push(
                    expression
                        .replace("$__rate_interval", "10s")
                        .replace("$cluster", ".*")
                        .replace("$instance", ".*"),
                );
            }
        }
    }
    expressions
}

/// The selectors of an expression, such as `pointsman_node_role{role="replica"}`.
fn selectors(expression: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in expression.match_indices("pointsman_") {
        let rest = &expression[at..];
        let name = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let labels = match rest[name..].strip_prefix('{') {
            Some(labels) => labels.find('}').map_or(0, |end| end + 2),
            None => 0,
        };
        found.insert(rest[..name + labels].to_owned());
    }
    found
}

async fn work(session: Session) {
    loop {
        session.run("INSERT INTO t VALUES (1)").await;
        session.run("SELECT count(*) FROM t").await;
        for statement in ["BEGIN", "INSERT INTO t VALUES (2)", "SELECT count(*) FROM t", "COMMIT"] {
            session.run(statement).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn every_expression_of_every_panel_and_rule_returns_series() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let load = tokio::spawn(work(stage.session().await));
    let target = stage.proxy.http_url("").replace("http://", "");
    let prometheus = Prometheus::start(&target);
    eventually("it scrapes", async || {
        prometheus.series("sum(rate(pointsman_statements_total[10s])) > 0") == 1
    })
    .await;

    let panels = panels();
    assert!(panels.len() > 40, "{}", panels.len());
    for expression in &panels {
        eventually(expression, async || prometheus.series(expression) > 0).await;
    }
    eventually("the rules are evaluated", async || {
        prometheus.get("/api/v1/rules").is_some_and(|rules| rules.to_string().contains("\"health\":\"ok\""))
    })
    .await;
    let rules = prometheus.get("/api/v1/rules").expect("it answers");
    let rules = rules["data"]["groups"][0]["rules"].as_array().expect("they are loaded").clone();
    for rule in &rules {
        let expression = rule["query"].as_str().expect("text");
        assert_ne!(rule["health"], "err", "{expression}: {}", rule["lastError"]);
        for selector in selectors(expression) {
            eventually(&selector, async || prometheus.series(&selector) > 0).await;
        }
    }
    load.abort();
}
