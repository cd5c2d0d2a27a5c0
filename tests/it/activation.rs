//! Sockets that systemd holds.

use std::{
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use pointsman::demo::{Port, Signal, servers::APP, signal};

use crate::support::{Session, cluster};

struct Activated(Child);

impl Drop for Activated {
    fn drop(&mut self) {
        signal(self.0.id(), Signal::Kill);
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_socket_that_systemd_holds_is_taken_over() {
    let cluster = cluster::shared();
    let port = Port::claim().expect("a port");
    let folder = tempfile::tempdir().expect("a folder");
    let monitor = pointsman::demo::servers::MONITOR;
    let text = format!(
        "[[cluster]]\nname = 'it'\nengine = 'postgres'\nlisten = ['127.0.0.1:{}']\nnodes = {:?}\n\
         users = [{{ name = '{}', password = '{}' }}]\nmonitor = {{ user = '{}', password = '{}' }}\n",
        port.number(),
        cluster.addresses(),
        APP.name,
        APP.password,
        monitor.name,
        monitor.password
    );
    std::fs::write(folder.path().join("p.toml"), text).expect("the folder is ours");
    // It listens, and starts the proxy when somebody connects: who came before is served as well.
    let activated = Command::new("systemd-socket-activate")
        .args(["-l", &format!("127.0.0.1:{}", port.number()), env!("CARGO_BIN_EXE_pointsman"), "run", "-c"])
        .arg(folder.path().join("p.toml"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(activated) = activated else { return eprintln!("without systemd there is nothing to test") };
    let _activated = Activated(activated);
    thread::sleep(Duration::from_millis(100));
    let dsn = format!(
        "host=127.0.0.1 port={} user={} password={} dbname=app",
        port.number(),
        APP.name,
        APP.password
    );

    let session = Session::retry(&dsn).await;

    assert_eq!(session.value("SELECT 1").await, "1");
}
