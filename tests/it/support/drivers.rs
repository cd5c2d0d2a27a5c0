//! Where the programs of other languages are.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

/// What `scripts/setup` has installed for them.
pub fn folder() -> PathBuf {
    let folder = std::env::var_os("POINTSMAN_DRIVERS").map(PathBuf::from);
    folder.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/drivers"))
}

/// One of them.
pub fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/drivers").join(name)
}

/// A script in Python, with the drivers that were installed for it.
pub fn python(name: &str) -> Command {
    let mut command = Command::new(folder().join("venv/bin/python"));
    command.arg(script(name));
    command
}

/// What one connection of a program has written another one of it reads, as past the proxy.
pub const GLOBAL: &str = "cluster.routing.consistency = 'global'";

/// A script in PHP, which may send files.
pub fn php(name: &str) -> Command {
    let mut command = Command::new("php");
    command.args(["-d", "mysqli.allow_local_infile=1", "-d", "display_errors=stderr"]).arg(script(name));
    command
}

/// A script in Ruby, with Debian's packages.
pub fn ruby(name: &str) -> Command {
    let mut command = Command::new("ruby");
    command.arg("-W0").arg(script(name));
    command
}

/// A script in Perl, with Debian's packages.
pub fn perl(name: &str) -> Command {
    let mut command = Command::new("perl");
    command.arg(script(name));
    command
}

/// A program in Go, with Debian's packages; `scripts/setup` has compiled it once.
pub fn go(name: &str) -> Command {
    let go = folder().join("go");
    let mut command = Command::new("go");
    command.arg("run").args([script("common.go"), script(name)]);
    command.env("GO111MODULE", "off").env("CGO_ENABLED", "0");
    command.env("GOPATH", go.join("usr/share/gocode")).env("GOCACHE", go.join("cache"));
    command
}

/// Has a program use the primary itself: it is all there is.
pub fn past_the_proxy(command: &mut Command, primary: u16) {
    for name in ["POINTSMAN_PORT", "REPLICA_PORTS", "PGPORT"] {
        command.env(name, primary.to_string());
    }
}

/// Fails with the first line in which the second output is not the first one.
pub fn same(of_server: &Output, of_proxy: &Output) {
    let [of_server, of_proxy] = [of_server, of_proxy].map(|output| String::from_utf8_lossy(&output.stdout));
    assert!(of_server.lines().count() > 10, "nothing was compared: {of_server}");
    for (at, (server, proxy)) in of_server.lines().zip(of_proxy.lines()).enumerate() {
        assert_eq!(proxy, server, "line {}", at + 1);
    }
    assert_eq!(of_proxy.lines().count(), of_server.lines().count());
}

/// Runs a program; fails with what it said when it fails.
pub fn succeeds(command: &mut Command) -> Output {
    let output =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; run scripts/setup first"));
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
