//! What exporters made for PgBouncer make of the console.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Instant,
};

use pointsman::demo::Port;

use crate::{
    console::{ADMIN, Console},
    support::{PATIENCE, Proxy, Session, eventually},
};

/// What `scripts/exporters` has fetched.
fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("target/exporters/root/usr/bin/prometheus-pgbouncer-exporter")
}

/// The Prometheus community's `pgbouncer_exporter`, with the console for its PgBouncer.
struct Exporter {
    child: Child,
    port: Port,
    log: tempfile::NamedTempFile,
}

impl Exporter {
    /// Logs in to `database` of the console; its name is the only thing said about what to read.
    async fn start(console: &Console, database: &str) -> Self {
        let (port, log) = (Port::claim().expect("a port"), tempfile::NamedTempFile::new().expect("a file"));
        let pid_file = console.stage.proxy.config_path().with_extension("pid");
        fs::write(&pid_file, console.stage.proxy.pid().to_string()).expect("the folder is ours");
        let dsn = format!(
            "postgres://{}:{}@127.0.0.1:{}/{database}?sslmode=disable",
            ADMIN.name,
            ADMIN.password,
            console.postgres.number()
        );
        let child = Command::new(program())
            .arg(format!("--pgBouncer.connectionString={dsn}"))
            .arg(format!("--pgBouncer.pid-file={}", pid_file.display()))
            .arg(format!("--web.listen-address=127.0.0.1:{}", port.number()))
            .arg("--log.level=warn")
            .stdout(Stdio::null())
            .stderr(log.reopen().expect("the file is ours"))
            .spawn()
            .expect("it is there: scripts/exporters");
        let exporter = Self { child, port, log };
        eventually("the exporter listens", async || exporter.try_scrape().is_some()).await;
        exporter
    }

    /// What Prometheus would read; fails when that is no page of metrics.
    fn scrape(&self) -> Scrape {
        let (head, body) = self.try_scrape().expect("it listens");
        assert!(head.contains(" 200 "), "{head}\n{body}");
        let said = fs::read_to_string(self.log.path()).expect("the file is ours");
        assert_eq!(said, "", "the exporter complains");
        Scrape(body)
    }

    fn try_scrape(&self) -> Option<(String, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port.number())).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero");
        write!(stream, "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split_once("\r\n\r\n").map(|(head, body)| (head.to_owned(), body.to_owned()))
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A page of metrics.
struct Scrape(String);

impl Scrape {
    /// The value of the only series with this name and, among others, these labels.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found = self.find(name, labels);
        let [value] = found[..] else { panic!("{} of {name} {labels:?} in\n{}", found.len(), self.0) };
        value
    }

    fn find(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let series = self.0.lines().filter_map(|line| line.strip_prefix(name));
        series
            .filter(|rest| rest.starts_with(['{', ' ']) && labels.iter().all(|label| rest.contains(label)))
            .map(|rest| rest.rsplit_once(' ').expect("a value").1.parse().expect("a number"))
            .collect()
    }
}

#[tokio::test]
async fn pgbouncer_exporter_counts_statements_clients_and_connections() {
    let console = Console::open("CREATE TABLE t (x int)", &["cluster.pool.size = 1"]).await;
    let (database, began) = (console.stage.database.name.clone(), Instant::now());
    let here = [("database", &*database), ("user", "app")];
    let exporter = Exporter::start(&console, "pgbouncer").await;
    let before = exporter.scrape();
    assert_eq!(before.value("pgbouncer_up", &[]), 1.0);
    let statements =
        |page: &Scrape| page.value("pgbouncer_stats_totals_queries_pooled_total", &[("database", "it")]);
    let seconds = |page: &Scrape| {
        page.value("pgbouncer_stats_totals_queries_duration_seconds_total", &[("database", "it")])
    };

    // Seven statements, one of them of half a second; then nobody does anything.
    let (one, two) = (console.stage.session().await, console.stage.session().await);
    for _ in 0..6 {
        one.run("UPDATE t SET x = 1").await;
    }
    two.run("/* pointsman: primary */ SELECT pg_sleep(0.5)").await;

    // A statement is answered a moment before its connection is given back.
    eventually("nothing is at work", async || {
        exporter.scrape().value("pgbouncer_pools_server_active_connections", &here) == 0.0
    })
    .await;
    let idle = exporter.scrape();
    assert_eq!(statements(&idle) - statements(&before), 7.0);
    let took = seconds(&idle) - seconds(&before);
    assert!((0.5..began.elapsed().as_secs_f64()).contains(&took), "{took} seconds");
    assert_eq!(idle.value("pgbouncer_pools_client_active_connections", &here), 2.0);
    assert_eq!(idle.value("pgbouncer_pools_client_waiting_connections", &here), 0.0);
    let kept = idle.value("pgbouncer_pools_server_idle_connections", &here);
    assert!(kept >= 1.0, "{kept}");
    assert_eq!(idle.value("pgbouncer_databases_pool_size", &[("name", &database)]), 1.0);
    assert_eq!(idle.value("pgbouncer_databases_current_connections", &[("name", &database)]), kept);
    assert_eq!(idle.value("pgbouncer_databases", &[]), 1.0);
    assert!(idle.value("pgbouncer_used_clients", &[]) >= 2.0);

    // One keeps the only connection to the primary, and the other waits for it.
    one.run("BEGIN; UPDATE t SET x = 3").await;
    let waiting = tokio::spawn(async move { two.run("UPDATE t SET x = 2").await });
    eventually("one waits", async || {
        let page = exporter.scrape();
        page.value("pgbouncer_pools_client_waiting_connections", &here) == 1.0
            && page.value("pgbouncer_pools_client_active_connections", &here) == 1.0
            && page.value("pgbouncer_pools_server_active_connections", &here) == 1.0
            && page.value("pgbouncer_pools_server_idle_connections", &here) == kept - 1.0
    })
    .await;
    one.run("COMMIT").await;
    waiting.await.expect("it got its turn");
    let waited = exporter.scrape();
    let wait = "pgbouncer_stats_totals_client_wait_seconds_total";
    assert!(waited.value(wait, &[("database", "it")]) > idle.value(wait, &[("database", "it")]));
}

#[tokio::test]
async fn pgbouncer_exporter_tells_of_a_pause_and_of_the_process() {
    let console = Console::open("", &[]).await;
    let session = console.stage.session().await;
    session.run("SELECT 1").await;
    let exporter = Exporter::start(&console, "pgbouncer").await;
    let paused =
        |page: &Scrape| page.value("pgbouncer_databases_paused", &[("name", &console.stage.database.name)]);
    assert_eq!(paused(&exporter.scrape()), 0.0);

    assert!(console.psql("PAUSE").status.success());

    assert_eq!(paused(&exporter.scrape()), 1.0);
    assert!(console.psql("RESUME").status.success());
    let page = exporter.scrape();
    assert_eq!(paused(&page), 0.0);
    let version = format!("pointsman {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(page.value("pgbouncer_version_info", &[("version", &version)]), 1.0);
    assert!(page.value("pgbouncer_process_resident_memory_bytes", &[]) > 1e6);
}

/// Starts the proxy anew with one more cluster before the same servers.
fn add_cluster(proxy: &mut Proxy, name: &str, port: u16) {
    let file = fs::read_to_string(proxy.config_path()).expect("it is there");
    let mut config: toml::Table = file.parse().expect("it is TOML");
    let clusters = config["cluster"].as_array_mut().expect("a list");
    let mut cluster = clusters[0].clone();
    cluster["name"] = name.into();
    cluster["listen"] = vec![format!("127.0.0.1:{port}")].into();
    clusters.push(cluster);
    proxy.write_text(&toml::to_string(&config).expect("what was TOML stays TOML"));
    proxy.restart();
}

#[tokio::test]
async fn an_exporter_is_shown_the_cluster_that_it_names_as_its_database() {
    let mut console = Console::open("", &[]).await;
    let database = console.stage.database.name.clone();
    let other = Port::claim().expect("a port");
    add_cluster(&mut console.stage.proxy, "other", other.number());
    let dsn = console.stage.proxy.dsn(&database);
    let first = Session::retry(&dsn).await;
    let port = |number: u16| format!("port={number} ");
    let dsn = dsn.replace(&port(console.stage.proxy.port()), &port(other.number()));
    let (second, third) = (Session::retry(&dsn).await, Session::retry(&dsn).await);
    for session in [&first, &second, &third] {
        session.run("SELECT 1").await;
    }

    // Both have this database and this user, which PgBouncer never has twice.
    for (cluster, clients) in [("it", 1.0), ("other", 2.0)] {
        let page = Exporter::start(&console, cluster).await.scrape();
        let here = [("database", &*database), ("user", "app")];
        assert_eq!(page.value("pgbouncer_pools_client_active_connections", &here), clients, "{cluster}");
        assert_eq!(page.value("pgbouncer_used_clients", &[]), clients, "{cluster}");
        assert_eq!(page.find("pgbouncer_stats_totals_queries_pooled_total", &[]).len(), 1, "{cluster}");
    }
    let on_mysqls_door = console.mysql("open-sesame", "USE other; SHOW STATS");
    let said = crate::console::said(&on_mysqls_door);
    assert!(said.contains("\nother\t") && !said.contains("\nit\t"), "{said}");
}
