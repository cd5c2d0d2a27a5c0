//! The dashboard in a real browser.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use pointsman::demo::servers::Stop;
use serde_json::{Value, json};

use crate::support::{Database, Proxy, cluster, drivers};

/// Chromium on one page.
struct Browser {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Browser {
    fn open(url: &str) -> Self {
        let mut child = Command::new("node")
            .arg(drivers::script("browser.js"))
            .arg(url)
            .env("NODE_PATH", drivers::folder().join("node/node_modules"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Node makes a pipe that it inherits non-blocking, for everybody who writes into it.
            .stderr(Stdio::null())
            .spawn()
            .expect("node is installed");
        let input = child.stdin.take().expect("it is piped");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, input, output }
    }

    fn ask(&mut self, line: &Value) -> Value {
        writeln!(self.input, "{line}").expect("the browser listens");
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("the browser answers");
        let mut answer: Value = serde_json::from_str(&answer).expect("in JSON; run scripts/setup first");
        assert!(answer["error"].is_null(), "{line}: {}", answer["error"]);
        answer["value"].take()
    }

    fn wait(&mut self, expression: &str) {
        self.ask(&json!({ "wait": expression }));
    }

    fn picture(&mut self, name: &str, width: u32, dark: bool) {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/dashboard");
        fs::create_dir_all(&folder).expect("target can be written to");
        self.ask(&json!({ "shot": folder.join(name), "width": width, "dark": dark }));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const LIVE: &str = "document.getElementById('link').textContent === 'live'";

fn state_is(state: &str) -> String {
    format!("document.getElementById('state').textContent === '{state}'")
}

/// Draws the last sample with the longest names and in every state that a node is shown in, and lists what
/// is drawn beyond its place: text beyond its node's box, text beyond its drawing, anything beyond the page.
const OVERFLOWS: &str = include_str!("../drivers/overflows.js");

/// Nothing is wider than its place, on a phone, a tablet and a desk, in the light and in the dark.
fn nothing_overflows(page: &mut Browser) {
    for (width, dark) in [(360, false), (360, true), (600, true), (1280, false)] {
        let seen = page.ask(&json!({ "read": OVERFLOWS, "width": width, "dark": dark }));
        assert_eq!(seen, json!({ "found": [], "nodes": 5, "texts": 15 }), "{width} px, dark: {dark}");
    }
}

#[tokio::test]
async fn the_dashboard_shows_lag_a_failover_and_survives_a_restart() {
    let cluster = cluster::own();
    let database = Database::with(&cluster, "CREATE TABLE t (x int)");
    let mut proxy =
        Proxy::start(&cluster, &["cluster.routing.slow_start = '0s'", "admin.recent_statements = 50"]).await;
    let mut page = Browser::open(&proxy.http_url("/"));
    page.wait(&format!("{LIVE} && {}", state_is("healthy")));
    assert_eq!(page.ask(&json!({ "read": "document.querySelectorAll('#nodes tr').length" })), 3);
    let session = proxy.session(&database.name).await;
    for _ in 0..20 {
        session.run("INSERT INTO t VALUES (1)").await;
        session.ports("SELECT inet_server_port()", 30).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    page.wait("/read read/.test(document.getElementById('c-reason').textContent)");
    page.wait("/INSERT INTO t VALUES \\(0\\)/.test(document.getElementById('statements').textContent)");
    assert_eq!(page.ask(&json!({ "read": "document.querySelectorAll('#c-lanes rect').length > 2" })), true);

    cluster.pause_replay(2).expect("it obeys");
    session.run("INSERT INTO t VALUES (1)").await;
    let behind = format!(
        "[...document.querySelectorAll('#nodes tr')].some(row => row.textContent.includes('{}') && /^[1-9][.\\d]* s$/.test(row.cells[4].textContent))",
        cluster.node(2).address()
    );
    page.wait(&behind);
    page.picture("lag.png", 1280, false);
    nothing_overflows(&mut page);
    cluster.resume_replay(2).expect("it obeys");

    drop(session);
    cluster.stop(0, Stop::Kill).expect("it dies");
    page.wait(&state_is("no primary"));
    cluster.promote(1).expect("it takes over");
    cluster.follow(2, 1).expect("it follows");
    let elected = format!(
        "[...document.querySelectorAll('#events .elected')].some(item => item.textContent.includes('{} is the primary'))",
        cluster.node(1).address()
    );
    page.wait(&elected);
    page.wait(&state_is("degraded"));
    page.picture("failover.png", 1280, true);
    page.picture("phone.png", 360, false);
    nothing_overflows(&mut page);

    proxy.restart();
    page.wait(&format!("!({LIVE})"));
    page.wait(LIVE);

    assert_eq!(page.ask(&json!({ "faults": true })), json!([]));
    let origins = page.ask(&json!({ "origins": true }));
    assert_eq!(origins, json!([proxy.http_url("").trim_end_matches('/')]), "it asks nobody else");
    let overflow = "document.documentElement.scrollWidth > document.documentElement.clientWidth";
    assert_eq!(page.ask(&json!({ "read": overflow })), json!(false), "a phone's width is enough");
}
