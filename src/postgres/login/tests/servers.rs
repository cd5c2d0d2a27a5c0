//! A certificate authority and a PostgreSQL server for tests, in temporary folders.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use crate::tls::{Mode, Parameters};

/// A CA and certificates signed by it, as PEM files.
pub struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names, no fault");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().expect("ring makes P-256 keys");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("the CA can be signed");
        let folder = tempfile::tempdir().expect("there is room for files");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("there is room for files");
        Self { folder, issuer }
    }

    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Writes `<name>.pem` and `<name>.key`, with the name as CN and these alternative names.
    pub fn issue(&self, name: &str, alternatives: &[&str]) -> (PathBuf, PathBuf) {
        let names: Vec<_> = alternatives.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("the test wrote them");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("ring makes P-256 keys");
        let certificate = params.signed_by(&key, &self.issuer).expect("the CA can sign");
        self.write(name, &certificate.pem(), &key)
    }

    /// A certificate as `openssl req -x509` makes it: self-signed and marked as a CA.
    pub fn self_signed(&self, name: &str, alternatives: &[&str]) -> (PathBuf, PathBuf) {
        let names: Vec<_> = alternatives.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("the test wrote them");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("ring makes P-256 keys");
        let certificate = params.self_signed(&key).expect("it can be signed");
        self.write(name, &certificate.pem(), &key)
    }

    /// A certificate as the server's manual makes it: X.509 version 1, with a common name only.
    pub fn version_1(&self, name: &str, host: &str) -> (PathBuf, PathBuf) {
        let file = |extension: &str| self.folder.path().join(format!("{name}.{extension}"));
        let ca_key = self.folder.path().join("ca.key");
        fs::write(&ca_key, self.issuer.key().serialize_pem()).expect("there is room for files");
        let mut request = Command::new("openssl");
        request.args(["req", "-new", "-nodes", "-newkey", "rsa:2048", "-subj", &format!("/CN={host}")]);
        run(request.arg("-keyout").arg(file("key")).arg("-out").arg(file("csr")));
        let mut sign = Command::new("openssl");
        sign.args(["x509", "-req", "-days", "10", "-CAcreateserial", "-in"]).arg(file("csr"));
        run(sign.arg("-CA").arg(self.ca()).arg("-CAkey").arg(ca_key).arg("-out").arg(file("pem")));
        fs::set_permissions(file("key"), fs::Permissions::from_mode(0o600)).expect("it is ours");
        (file("pem"), file("key"))
    }

    fn write(&self, name: &str, certificate: &str, key: &KeyPair) -> (PathBuf, PathBuf) {
        let (file, key_file) = (format!("{name}.pem"), format!("{name}.key"));
        let (file, key_file) = (self.folder.path().join(file), self.folder.path().join(key_file));
        fs::write(&file, certificate).expect("there is room for files");
        fs::write(&key_file, key.serialize_pem()).expect("there is room for files");
        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).expect("it is ours");
        (file, key_file)
    }

    pub fn parameters(&self, mode: Mode, own: Option<(PathBuf, PathBuf)>) -> Parameters {
        let (certificate, key) = own.unzip();
        Parameters { mode, certificate, key, ca: Some(self.ca()) }
    }
}

/// A running server with one role per authentication method.
pub struct Postgres {
    pub port: u16,
    pub authority: Authority,
    folder: TempDir,
}

/// The test binary's server, while a test holds it.
static RUNNING: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());

/// Password of every role that has one.
pub const PASSWORD: &str = "sérvice pass";

const HBA: &str = "
local     all  postgres                trust
host      all  trusted    127.0.0.1/32 trust
host      all  md5_only   127.0.0.1/32 md5
host      all  clear      127.0.0.1/32 password
hostssl   all  tls_only   127.0.0.1/32 scram-sha-256
hostnossl all  tls_only   127.0.0.1/32 reject
hostnossl all  plain_only 127.0.0.1/32 scram-sha-256
hostssl   all  plain_only 127.0.0.1/32 reject
hostssl   all  certified  127.0.0.1/32 cert
host      all  all        127.0.0.1/32 scram-sha-256
";

impl Postgres {
    /// Starts the server, or joins the one that another test has started.
    pub fn start() -> Arc<Self> {
        let mut running = RUNNING.lock();
        if let Some(server) = running.upgrade() {
            return server;
        }
        let authority = Authority::new();
        let own = authority.issue("server", &["localhost", "127.0.0.1"]);
        let server = Arc::new(Self::launch(authority, own));
        *running = Arc::downgrade(&server);
        server
    }

    /// A server of the caller's own, with this certificate and key.
    pub fn launch(authority: Authority, (certificate, key): (PathBuf, PathBuf)) -> Self {
        let folder = tempfile::tempdir().expect("there is room for files");
        give_to_server(folder.path());
        give_to_server(&key);
        let data = folder.path().join("data");
        run(server_command("initdb")
            .args(["-N", "-A", "trust", "-U", "postgres", "-E", "UTF8", "-D"])
            .arg(&data));
        fs::write(data.join("pg_hba.conf"), HBA).expect("there is room for files");

        let free = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let port = free.local_addr().expect("it is bound").port();
        drop(free);
        let options = format!(
            "-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={socket} -c fsync=off \
             -c max_connections=40 -c ssl=on -c ssl_cert_file={certificate} -c ssl_key_file={key} \
             -c ssl_ca_file={ca}",
            socket = folder.path().display(),
            certificate = certificate.display(),
            key = key.display(),
            ca = authority.ca().display(),
        );
        let log = folder.path().join("log");
        run(server_command("pg_ctl")
            .args(["start", "-w", "-o", &options, "-D"])
            .arg(&data)
            .arg("-l")
            .arg(log));
        let server = Self { port, authority, folder };
        server.create_roles();
        server
    }

    fn create_roles(&self) {
        let mut script = String::new();
        for role in ["app", "tls_only", "plain_only", "clear"] {
            script += &format!("CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}';");
        }
        script += "CREATE ROLE trusted LOGIN; CREATE ROLE certified LOGIN;";
        script +=
            &format!("SET password_encryption = md5; CREATE ROLE md5_only LOGIN PASSWORD '{PASSWORD}';");
        self.superuser(&script);
    }

    /// Runs SQL as the superuser, over the Unix socket.
    pub fn superuser(&self, sql: &str) -> String {
        let socket = self.folder.path().display().to_string();
        let port = self.port.to_string();
        run(server_command("psql").args(["-XAtq", "-h", &socket, "-p", &port, "-U", "postgres", "-c", sql]))
    }

    /// What `pg_authid` holds of a role's password.
    pub fn stored_password(&self, role: &str) -> String {
        self.superuser(&format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'"))
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let data = self.folder.path().join("data");
        run(server_command("pg_ctl").args(["stop", "-m", "immediate", "-D"]).arg(data));
    }
}

/// psql as the client; its output, or its complaint.
pub fn psql(connection: &str, sql: &str) -> Result<String, String> {
    let output = Command::new(program("psql"))
        .args(["-XAtq", connection, "-c", sql])
        .env("PGPASSWORD", PASSWORD)
        .output()
        .expect("psql is installed with the server");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// A program of the server's, run as the user `postgres` when we are root: it refuses root.
fn server_command(name: &str) -> Command {
    let mut command = match is_root() {
        true => Command::new("runuser"),
        false => Command::new(program(name)),
    };
    if is_root() {
        command.args(["-u", "postgres", "--"]).arg(program(name));
    }
    command.current_dir("/");
    command
}

fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> = versions.map(|version| version.path().join("bin").join(name)).collect();
    found.retain(|program| program.exists());
    found.sort();
    found.pop().unwrap_or_else(|| name.into())
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    #[expect(unsafe_code, reason = "the standard library does not tell the user")]
    // SAFETY: geteuid cannot fail and touches no memory.
    unsafe {
        libc::geteuid() == 0
    }
}

fn give_to_server(path: &Path) {
    if is_root() {
        let id = |flag| {
            let output = Command::new("id").args([flag, "postgres"]).output().expect("coreutils have id");
            String::from_utf8_lossy(&output.stdout).trim().parse().expect("the user postgres exists")
        };
        chown(path, Some(id("-u")), Some(id("-g"))).expect("root may");
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
