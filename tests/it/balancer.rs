//! Several proxies behind a TCP balancer, with nothing shared but the servers: HAProxy as
//! `packaging/haproxy/haproxy.cfg` sets it up.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use pointsman::demo::{Keeper, Port, Signal, servers::APP, signal};
use tempfile::TempDir;

use crate::support::{
    Database, Proxy, Session, cluster, eventually, soon,
    wire::{self, Batch, Wire, tags},
};

struct Balancer {
    port: Port,
    child: Child,
    _folder: TempDir,
    _keeper: Keeper,
}

impl Balancer {
    fn before(proxies: &[Proxy]) -> Self {
        let port = Port::claim().expect("ports are to be had");
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/haproxy/haproxy.cfg");
        let mut config = fs::read_to_string(path).expect("it is there");
        config = config.replace("10.0.0.10:6432", &format!("127.0.0.1:{}", port.number()));
        for (number, proxy) in (11..).zip(proxies) {
            let stands = format!("10.0.0.{number}:6432 port 9187");
            assert!(config.contains(&stands), "{stands}");
            let address = format!("127.0.0.1:{} port {}", proxy.port(), proxy.http_port());
            config = config.replace(&stands, &address);
        }
        fs::write(folder.path().join("haproxy.cfg"), config).expect("the folder is ours");
        let mut command = Command::new("/usr/sbin/haproxy");
        command.arg("-f").arg(folder.path().join("haproxy.cfg")).stdout(Stdio::null()).stderr(Stdio::null());
        let keeper = Keeper::start().expect("threads are to be had");
        let child = keeper.spawn(command, Signal::Kill).expect("haproxy is installed: scripts/setup");
        Self { port, child, _folder: folder, _keeper: keeper }
    }

    async fn session(&self, database: &str) -> Session {
        let dsn = format!(
            "host=127.0.0.1 port={} user={} password={} dbname={database}",
            self.port.number(),
            APP.name,
            APP.password
        );
        Session::retry(&dsn).await
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        signal(self.child.id(), Signal::Kill);
        let _ = self.child.wait();
    }
}

/// Three proxies that know each other.
async fn three(cluster: &pointsman::demo::servers::PgCluster) -> [Proxy; 3] {
    let mut proxies = [
        Proxy::start(cluster, &[]).await,
        Proxy::start(cluster, &[]).await,
        Proxy::start(cluster, &[]).await,
    ];
    let ports = proxies.each_ref().map(Proxy::port);
    for proxy in &mut proxies {
        let others = ports.iter().filter(|port| **port != proxy.port());
        let others: Vec<String> = others.map(|port| format!("'127.0.0.1:{port}'")).collect();
        proxy.reload(&[&format!("cluster.peers = [{}]", others.join(", "))]);
        proxy.wait_for_log("peers").await;
    }
    proxies
}

#[tokio::test]
async fn three_proxies_behind_a_balancer_are_one_endpoint() {
    let cluster = cluster::shared();
    let database = Database::with(cluster, "CREATE TABLE t (x int)");
    let mut proxies = three(cluster).await;
    let balancer = Balancer::before(&proxies);

    let mut sessions = Vec::new();
    for _ in 0..6 {
        sessions.push(balancer.session(&database.name).await);
    }
    for proxy in &proxies {
        assert!(proxy.metric("pointsman_clients", &[]) >= 1.0, "every proxy has its share");
    }

    // Causality goes from one proxy to another by token.
    for x in 0..6_usize {
        let (writer, reader) = (&sessions[x], &sessions[(x + 1) % 6]);
        writer.run(&format!("INSERT INTO t VALUES ({x})")).await;
        let token = writer.value("SHOW pointsman.position").await;
        reader.run(&format!("SET pointsman.position = '{token}'")).await;
        assert_eq!(reader.value("SELECT max(x) FROM t").await, x.to_string());
    }

    // A cancel request is a connection of its own: the balancer brings it to any proxy.
    for round in 0..6 {
        let port = balancer.port.number();
        let mut wire = Wire::login(port, APP, &database.name).await;
        let mark = format!("balanced {round}");
        wire.send(&Batch::new().query(&format!("SELECT '{mark}', pg_sleep(60)"))).await;
        let runs = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE";
        eventually("it runs", async || {
            (0..3).any(|node| database.ask(node, &format!("{runs} 'SELECT ''{mark}%'")) == "1")
        })
        .await;
        soon("the request is taken", wire::cancel(port, &wire.key)).await;
        let answer = wire.until_ready().await;
        assert_eq!(answer[answer.len() - 2].code(), "57014", "{}", tags(&answer));
    }

    // One ends: its sessions too, and new ones go to the others.
    proxies[0].terminate();
    proxies[0].terminate();
    proxies[0].wait();
    for _ in 0..6 {
        let session = balancer.session(&database.name).await;
        assert_eq!(session.value("SELECT count(*) FROM t").await, "6");
    }
}
