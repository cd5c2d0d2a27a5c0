//! A hundred reloads while clients work.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::support::{Stage, eventually};

const CLIENTS: usize = 64;
/// Beside them; they stay in their TLS session while its certificate is replaced.
const TLS_CLIENTS: usize = 4;
const RELOADS: usize = 100;
/// Reloads between two certificates, and between two files that are refused.
const RENEWED: usize = 10;
const BROKEN: usize = 25;

/// The certificate and the key that the proxy shows its clients.
struct Certificate(TempDir);

impl Certificate {
    fn new() -> Self {
        let new = Self(tempfile::tempdir().expect("a folder"));
        new.renew(0);
        new
    }

    /// Replaces both files, for the name `turn-N.test`.
    fn renew(&self, turn: usize) {
        let made = rcgen::generate_simple_self_signed([format!("turn-{turn}.test")]).expect("it can be made");
        fs::write(self.file("crt"), made.cert.pem()).expect("the folder is ours");
        fs::write(self.file("key"), made.signing_key.serialize_pem()).expect("the folder is ours");
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.0.path().join(format!("proxy.{ending}"))
    }

    fn settings(&self) -> String {
        format!(
            "cluster.tls.client = {{ mode = 'allow', certificate = '{}', key = '{}' }}",
            self.file("crt").display(),
            self.file("key").display()
        )
    }
}

/// The name in the certificate that a new client is shown.
fn shown(port: u16) -> String {
    let command = format!(
        "openssl s_client -starttls postgres -connect 127.0.0.1:{port} </dev/null 2>/dev/null | \
         openssl x509 -noout -ext subjectAltName"
    );
    let output = Command::new("sh").args(["-c", &command]).output().expect("openssl is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// psql over TLS, one statement after another until `stop`; fails when one of them does.
fn work_over_tls(dsn: &str, stop: &AtomicBool) {
    let mut child = Command::new("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", &format!("{dsn} sslmode=require")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("psql is installed");
    let mut statements = child.stdin.take().expect("it is piped");
    while !stop.load(Ordering::Relaxed) {
        writeln!(statements, "SELECT count(*) FROM t;").expect("it reads on");
        thread::sleep(Duration::from_millis(20));
    }
    drop(statements);
    assert!(child.wait().expect("it ends").success(), "a statement over TLS failed");
}

/// What may grow while limits and caches change, in bytes.
const ROOM: u64 = 24 * 1024 * 1024;

/// Nodes, weights, users and limits of one reload, different from the last one's.
fn settings(turn: usize, stage: &Stage) -> Vec<String> {
    let nodes: Vec<String> = stage
        .cluster
        .nodes()
        .iter()
        .enumerate()
        // The replicas come and go in turn.
        .filter(|(index, _)| *index == 0 || index % 2 == turn % 2 || turn.is_multiple_of(5))
        .map(|(index, node)| {
            format!("{{ address = '{}', weight = {} }}", node.address(), 1 + (turn + index) % 3)
        })
        .collect();
    vec![
        format!("cluster.nodes = [{}]", nodes.join(", ")),
        format!(
            "cluster.users = [{{ name = 'app', password = 'app-pw' }}, {{ name = 'u{turn}', password = 'x' }}]"
        ),
        format!("cluster.limits.clients = {}", 100 + turn),
        format!("cluster.pool.size = {}", 10 + turn % 2),
        format!("cluster.routing.max_lag = '{}s'", 10 + turn),
    ]
}

#[tokio::test]
async fn a_hundred_reloads_drop_no_client_and_fail_no_statement() {
    let certificate = Certificate::new();
    let mut stage = Stage::set("CREATE TABLE t (x int)", &[&certificate.settings()]).await;
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let session = stage.session().await;
        let (stop, answered) = (stop.clone(), answered.clone());
        clients.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                // It panics when a statement fails or the connection is lost.
                let statement = if number % 8 == 0 { "INSERT INTO t VALUES (1)" } else { "SELECT 1" };
                session.run(statement).await;
                answered.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }));
    }
    let over_tls: Vec<_> = (0..TLS_CLIENTS)
        .map(|_| {
            let (dsn, stop) = (stage.proxy.dsn(&stage.database.name), stop.clone());
            thread::spawn(move || work_over_tls(&dsn, &stop))
        })
        .collect();
    let applied =
        |stage: &Stage| stage.proxy.metric("pointsman_config_reloads_total", &["result=\"applied\""]);
    let mut resident = 0;
    for turn in 1..=RELOADS {
        if turn % RENEWED == 0 {
            certificate.renew(turn);
        }
        let lines = settings(turn, &stage);
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        stage.proxy.reload(&lines);
        let wanted = turn as f64;
        eventually("it is applied", async || applied(&stage) >= wanted).await;
        if turn % RENEWED == 0 {
            let (name, port) = (format!("turn-{turn}.test"), stage.proxy.port());
            assert!(shown(port).contains(&name), "a new client is not shown {name}: {}", shown(port));
        }
        if turn == RELOADS / 5 {
            resident = stage.proxy.resident_bytes();
        }
        if turn % BROKEN == 0 {
            refused(&stage, &certificate, turn).await;
        }
    }
    stop.store(true, Ordering::Relaxed);

    for client in clients {
        client.await.expect("no statement failed");
    }
    for client in over_tls {
        client.join().expect("no statement failed");
    }
    assert!(answered.load(Ordering::Relaxed) > RELOADS * 10);
    let grown = stage.proxy.resident_bytes().saturating_sub(resident);
    assert!(grown < ROOM, "grown by {grown} bytes");
    let refused = stage.proxy.metric("pointsman_config_reloads_total", &["result=\"refused\""]);
    assert_eq!(refused, (RELOADS / BROKEN) as f64);
}

#[tokio::test]
async fn a_renewed_certificate_is_named_in_the_log_and_so_is_that_nothing_has_changed() {
    let certificate = Certificate::new();
    let mut stage = Stage::set("", &[&certificate.settings()]).await;

    stage.proxy.reload(&[]);
    stage.proxy.wait_for_log("reloaded: nothing has changed").await;
    certificate.renew(1);
    stage.proxy.reload(&[]);

    stage.proxy.wait_for_log("tls.client.certificate: changed").await;
    stage.proxy.wait_for_log("tls.client.key: changed").await;
}

#[tokio::test]
async fn connections_of_before_are_replaced_when_what_servers_are_checked_by_is_renewed() {
    let certificate = Certificate::new();
    let authority =
        format!("cluster.tls.server = {{ mode = 'prefer', ca = '{}' }}", certificate.file("crt").display());
    let mut stage = Stage::set("", &[&authority]).await;
    let session = stage.session().await;
    let server = async || session.value("/* pointsman: primary */ SELECT pg_backend_pid()").await;
    let before = server().await;
    stage.proxy.reload(&[]);
    stage.proxy.wait_for_log("reloaded: nothing has changed").await;
    assert_eq!(server().await, before);

    certificate.renew(1);
    stage.proxy.reload(&[]);

    eventually("another connection serves", async || server().await != before).await;
}

/// A file, or one that it names, that is broken changes nothing, and the log says why.
async fn refused(stage: &Stage, certificate: &Certificate, turn: usize) {
    let before = shown(stage.proxy.port());
    let why = if turn.is_multiple_of(2) {
        fs::write(certificate.file("key"), "no key\n").expect("the folder is ours");
        stage.proxy.reload_text(&fs::read_to_string(stage.proxy.config_path()).expect("it is there"));
        "proxy.key"
    } else {
        stage.proxy.reload_text("nonsense = true");
        "nonsense"
    };
    eventually("it is refused", async || {
        stage.proxy.metric("pointsman_config_last_reload_success", &[]) == 0.0
    })
    .await;
    let log = stage.proxy.log();
    let said =
        log.lines().rev().take_while(|line| !line.contains("reloaded: ")).any(|line| line.contains(why));
    assert!(said, "the log does not name {why}");
    assert_eq!(shown(stage.proxy.port()), before);
    // The key fits its certificate again.
    certificate.renew(turn - turn % RENEWED);
}
