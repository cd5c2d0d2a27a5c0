//! MySQL and MariaDB clients logging in, by every plugin, with TLS and without.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use mysql_common::auth::plugins::{
    caching_sha2_password::scramble_sha256, mysql_native_password::scramble_native,
};
use pointsman::{
    demo::{
        mysql::MysqlCluster,
        servers::{APP, Login},
    },
    mysql::{
        command::code,
        login::server::Greeting,
        packet::{self, capability as can},
    },
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::net::TcpStream;

use crate::{
    both_makes,
    support::{
        Proxy, drivers, eventually,
        mysql::{self, BASIC, ENGINE, Make, Session, Stage},
        mysql_frames::Frame,
    },
};

both_makes!(
    a_user_of_whom_the_file_has_the_verifier_comes_in_by_the_password,
    what_the_proxy_refuses_by_itself_is_counted,
    who_becomes_another_user_without_a_plugin_is_refused,
    who_becomes_another_user_reads_what_it_wrote_before,
    a_login_finds_the_database_that_no_replica_has_heard_of,
    who_becomes_another_user_without_a_proof_is_asked_for_one,
    who_is_asked_for_a_proof_while_the_limits_change_may_still_give_it,
    what_init_connect_sets_is_set_for_every_session,
    what_servers_begin_sessions_with_hides_nothing_of_the_catalog,
    sessions_begin_with_what_was_set_for_all_since,
    a_commit_goes_on_as_the_servers_say_by_default,
    a_login_whose_character_set_no_statement_can_be_in_is_refused,
);

/// What MySQL stores of `sha2-pw`, with a salt of twenty letters.
const SHA2: Login = Login { name: "sha2", password: "sha2-pw" };
const SHA2_STORED: &str = "$A$005$abcdefghijklmnopqrst3NTMPGnuNAzxgxrt3ocSIIccknbCwlQZzKtqF.bIArB";

/// The result of a statement by MariaDB's client, or its complaint.
fn client(port: u16, login: Login, schema: &str, options: &[&str], sql: &str) -> Result<String, String> {
    let output = Command::new("mariadb")
        .args(["--no-defaults", "--protocol=tcp", "-h127.0.0.1", "-N", "-B"])
        .arg(format!("-P{port}"))
        .arg(format!("-u{}", login.name))
        .arg(format!("-p{}", login.password))
        .args(options)
        .args(["-e", sql, schema])
        .output()
        .expect("the client is installed by scripts/setup");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// As [`client`], by PyMySQL: MariaDB's client cannot encrypt a password without TLS.
fn pymysql(port: u16, login: Login, schema: &str, sql: &str) -> Result<String, String> {
    let output = Command::new(drivers::folder().join("venv/bin/python"))
        .arg(drivers::script("mysql_login.py"))
        .args([&port.to_string(), login.name, login.password, schema, sql])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("it is installed by scripts/setup");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Makes a user on every server.
fn create_user(cluster: &MysqlCluster, login: Login, how: &str) {
    let name = login.name;
    let sql =
        format!("CREATE OR REPLACE USER {name}@'%' {how}; GRANT SELECT, INSERT, CREATE ON *.* TO {name}@'%'");
    cluster.node(0).sql("", &sql).expect("root may");
    cluster.wait_until_caught_up(0).expect("replicas follow");
}

#[tokio::test]
async fn every_plugin_lets_the_right_password_in_and_no_other() {
    let stage = Stage::set("", &[]).await;
    let port = stage.proxy.port();
    let wrong = Login { password: "wrong", ..APP };
    let nobody = Login { name: "nobody", password: "wrong" };
    for plugin in ["mysql_native_password", "caching_sha2_password", "client_ed25519"] {
        let options = [format!("--default-auth={plugin}")];
        let options = [options[0].as_str()];
        let asks = |login, schema| client(port, login, schema, &options, "SELECT DATABASE()");
        assert_eq!(asks(APP, &stage.schema), Ok(stage.schema.clone()), "{plugin}");
        for login in [wrong, nobody] {
            let error = asks(login, &stage.schema).expect_err("it got in");
            let expected = format!("ERROR 1045 (28000): Access denied for user '{}'@", login.name);
            assert!(error.contains(&expected), "{plugin}: {error}");
            assert!(error.contains("(using password: YES)"), "{plugin}: {error}");
        }
        let error = asks(APP, "no_such_schema").expect_err("there is none");
        assert!(error.contains("ERROR 1049 (42000): Unknown database 'no_such_schema'"), "{plugin}: {error}");
    }
    let empty = Session::connect(port, Login { password: "", ..APP }, "", BASIC).await;
    let error = empty.err().expect("there is a password");
    assert!(error.message.ends_with("(using password: NO)"), "{}", error.message);
}

#[tokio::test]
async fn a_password_that_was_proved_once_is_needed_only_once() {
    let users = format!(
        "cluster.users = [{{ name = 'app', password = 'app-pw' }}, {{ name = 'sha2', password = '{SHA2_STORED}' }}]"
    );
    let stage = Stage::set("CREATE TABLE t (x INT)", &[&users]).await;
    create_user(stage.cluster, SHA2, "IDENTIFIED BY 'sha2-pw'");
    let port = stage.proxy.port();
    const SEND_PASSWORD: [u8; 2] = [1, 4];
    const QUICK: [u8; 2] = [1, 3];

    // Nobody has proved it: the proof tells nothing.
    assert_eq!(sha2_answer(port, SHA2).await, SEND_PASSWORD);
    let wrong = pymysql(port, Login { password: "wrong", ..SHA2 }, "", "SELECT 1");
    assert!(wrong.as_ref().is_err_and(|error| error.contains("1045")), "{wrong:?}");
    assert_eq!(sha2_answer(port, SHA2).await, SEND_PASSWORD);

    // Without TLS the client encrypts it with the key that it asks for; servers take it.
    assert_eq!(pymysql(port, SHA2, &stage.schema, "SELECT COUNT(*) FROM t"), Ok("0".into()));

    assert_eq!(sha2_answer(port, SHA2).await, QUICK);
    assert_eq!(sha2_answer(port, Login { password: "wrong", ..SHA2 }).await, SEND_PASSWORD);
    assert_eq!(pymysql(port, SHA2, &stage.schema, "SELECT CURRENT_USER()"), Ok("sha2@%".into()));
    let log = stage.proxy.log();
    assert!(!log.contains(SHA2.password) && !log.contains(SHA2_STORED), "a secret in the log");
}

/// What follows a caching_sha2_password proof.
async fn sha2_answer(port: u16, login: Login) -> Frame {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    let mut session = Session::of(stream, BASIC);
    let greeting = session.frame().await.expect("a greeting");
    let greeting = Greeting::read(&greeting[1..]).expect("it is one");
    let sent = proof_of(&greeting.nonce, login, "caching_sha2_password");
    session.write(&sent).await;
    let mut frame = session.frame().await.expect("an answer");
    if frame[1] == packet::EOF {
        // The greeting was another plugin's: the proof is for the nonce that comes now.
        let nonce: [u8; 20] = frame[frame.len() - 21..frame.len() - 1].try_into().expect("twenty bytes");
        let proof = scramble_sha256(&nonce, login.password.as_bytes()).expect("there is a password");
        let mut out = Vec::new();
        packet::put(&mut out, 3, |out| out.extend_from_slice(&proof));
        session.write(&out).await;
        frame = session.frame().await.expect("an answer");
    }
    frame[1..].to_vec()
}

fn proof_of(nonce: &[u8], login: Login, plugin: &str) -> Vec<u8> {
    let nonce: [u8; 20] = nonce.try_into().expect("twenty bytes");
    let proof = scramble_sha256(&nonce, login.password.as_bytes()).expect("there is a password");
    let mut out = Vec::new();
    packet::put(&mut out, 1, |out| {
        out.extend_from_slice(&(BASIC as u32).to_le_bytes());
        out.extend_from_slice(&(1_u32 << 24).to_le_bytes());
        out.push(45);
        out.extend_from_slice(&[0; 23]);
        out.extend_from_slice(login.name.as_bytes());
        out.push(0);
        out.push(proof.len() as u8);
        out.extend_from_slice(&proof);
        out.extend_from_slice(plugin.as_bytes());
        out.push(0);
    });
    out
}

#[tokio::test]
async fn users_of_every_plugin_are_asked_of_the_servers() {
    let cluster = Make::MariaDb.own_with(&["--plugin-load-add=auth_ed25519"]);
    let native = Login { name: "native", password: "native-pw" };
    let ed25519 = Login { name: "edward", password: "edward-pw" };
    create_user(&cluster, native, "IDENTIFIED BY 'native-pw'");
    create_user(&cluster, ed25519, "IDENTIFIED VIA ed25519 USING PASSWORD('edward-pw')");
    let query = "cluster.auth.query = 'SELECT user, authentication_string FROM mysql.user WHERE user = ?'";
    let proxy = crate::support::mysql::proxy(&cluster, &[query]).await;

    for login in [native, ed25519, ed25519] {
        let who = pymysql(proxy.port(), login, "", "SELECT CURRENT_USER()");
        assert_eq!(who, Ok(format!("{}@%", login.name)));
        for password in ["wrong", "x"] {
            let refused = pymysql(proxy.port(), Login { password, ..login }, "", "SELECT 1");
            assert!(refused.as_ref().is_err_and(|error| error.contains("1045")), "{refused:?}");
        }
    }
    let nobody = Login { name: "nobody", password: "x" };
    let refused = client(proxy.port(), nobody, "", &[], "SELECT 1");
    assert!(refused.as_ref().is_err_and(|error| error.contains("1045")), "{refused:?}");
    proxy.wait_for_log("detail=\"wrong password for user 'native'\"").await;
    proxy.wait_for_log("detail=\"there is no user 'nobody'\"").await;

    // Another password, set on the server, is the one that counts from then on.
    cluster.node(0).sql("", "SET PASSWORD FOR edward@'%' = PASSWORD('new-pw')").expect("root may");
    cluster.wait_until_caught_up(0).expect("replicas follow");
    let new = Login { password: "new-pw", ..ed25519 };
    eventually("the new password is taken", async || pymysql(proxy.port(), new, "", "SELECT 1").is_ok())
        .await;
}

#[tokio::test]
async fn a_password_that_cannot_be_looked_up_is_not_called_wrong() {
    let query = "cluster.auth.query = 'SELECT user, verifier FROM mysql.no_such_table WHERE user = ?'";
    let proxy = crate::support::mysql::proxy(Make::MariaDb.shared(), &[query]).await;
    let unlisted = Login { name: "unlisted", password: "unlisted-pw" };

    let refused = client(proxy.port(), unlisted, "", &[], "SELECT 1").expect_err("nobody could be asked");

    let told = "ERROR 1290 (HY000): The password of user 'unlisted' cannot be looked up now";
    assert!(refused.contains(told), "{refused}");
    let detail = "reason=\"unavailable\" detail=\"the password of user 'unlisted' could not be looked up: ";
    proxy.wait_for_log(detail).await;
    proxy.wait_for_log("mysql.no_such_table").await;
}

#[tokio::test]
async fn a_user_is_changed_by_the_right_password_only() {
    let users =
        "cluster.users = [{ name = 'app', password = 'app-pw' }, { name = 'other', password = 'other-pw' }]";
    let stage = Stage::set("CREATE TABLE t (x INT)", &[users]).await;
    let other = Login { name: "other", password: "other-pw" };
    create_user(stage.cluster, other, "IDENTIFIED BY 'other-pw'");

    let mut session = stage.session().await;
    session.run("SET @a = 1").await;
    session.run("CREATE TEMPORARY TABLE temp (x INT)").await;
    change_user(&mut session, other, &stage.schema).await.expect("the password is right");
    assert_eq!(session.value("SELECT CURRENT_USER()").await, "other@%");
    assert_eq!(session.value("SELECT DATABASE()").await, stage.schema);
    assert_eq!(session.run("SELECT @a").await.results[0][0][0], None);
    assert_eq!(session.error("SELECT * FROM temp").await, 1146);
    assert_eq!(session.value("SELECT CONNECTION_ID()").await, session.number.to_string());

    let wrong = Login { password: "wrong", ..APP };
    let error = change_user(&mut session, wrong, "").await.expect_err("the password is wrong");
    assert_eq!((error.errno, error.sqlstate.as_str()), (1045, "28000"), "{}", error.message);
    // As with the server, that was the end.
    assert_eq!(session.query("SELECT 1").await.expect_err("the connection ends").errno, 2013);

    let mut session = stage.session().await;
    let error = change_user(&mut session, other, "no_such_schema").await.expect_err("there is none");
    assert_eq!(error.errno, 1049);
}

/// COM_CHANGE_USER by mysql_native_password.
async fn change_user(
    session: &mut Session,
    login: Login,
    schema: &str,
) -> Result<(), crate::support::mysql::Refused> {
    let proof = scramble_native(&session.nonce, login.password.as_bytes()).expect("there is a password");
    session.send(0x11, &change_by(login, &proof, schema, "mysql_native_password")).await;
    session.prove(login).await
}

/// What follows the first byte of COM_CHANGE_USER.
fn change_by(login: Login, proof: &[u8], schema: &str, plugin: &str) -> Vec<u8> {
    let mut argument = Vec::new();
    argument.extend_from_slice(login.name.as_bytes());
    argument.extend_from_slice(&[0, proof.len() as u8]);
    argument.extend_from_slice(proof);
    argument.extend_from_slice(schema.as_bytes());
    argument.extend_from_slice(&[0, 45, 0]);
    argument.extend_from_slice(plugin.as_bytes());
    argument.push(0);
    argument
}

/// MariaDB's client library proves nothing before it was asked.
async fn who_becomes_another_user_without_a_proof_is_asked_for_one(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    let plugin = if make == Make::MariaDb { "mysql_native_password" } else { "caching_sha2_password" };
    for port in [stage.primary_port(), stage.proxy.port()] {
        let mut session = Session::connect(port, APP, "", BASIC).await.expect("it logs in");
        let mut nonces = Vec::from([session.nonce.clone()]);
        let wrong = scramble_native(b"another nonce altogeth", b"wrong").expect("there is a password");
        for proof in [&[][..], &wrong] {
            session.send(0x11, &change_by(APP, proof, &stage.schema, plugin)).await;

            let (sequence, request) = session.receive().await.expect("a question");

            assert_eq!((sequence, request[0]), (1, packet::EOF), "{port}: {request:?}");
            let (name, nonce) = packet::split_nul(&request[1..]).expect("a plugin's name");
            assert_eq!((name, nonce.len()), (plugin.as_bytes(), 21), "{port}");
            let nonce = nonce.first_chunk::<20>().expect("it is that long");
            // One plugin goes by the connection's, the other by a new one each time.
            assert_eq!(nonces.contains(&nonce.to_vec()), make == Make::MariaDb, "{port}: {nonces:?}");
            nonces.push(nonce.to_vec());
            session.write(&proof_for(make, nonce)).await;
            let (_, mut answer) = session.receive().await.expect("it is right");
            if make == Make::Mysql9 {
                assert_eq!(answer, [packet::MORE_DATA, 3], "{port}");
                (_, answer) = session.receive().await.expect("it is right");
            }
            assert_eq!(answer[0], packet::OK, "{port}");
            assert_eq!(session.value("SELECT DATABASE()").await, stage.schema, "{port}");
        }
    }
}

/// The packet that answers the question for a proof, by the plugin of [`APP`].
fn proof_for(make: Make, nonce: &[u8; 20]) -> Vec<u8> {
    let proof = match make {
        Make::MariaDb => scramble_native(nonce, APP.password.as_bytes()).expect("a password").to_vec(),
        Make::Mysql9 => scramble_sha256(nonce, APP.password.as_bytes()).expect("a password").to_vec(),
    };
    let mut out = Vec::new();
    packet::put(&mut out, 2, |out| out.extend_from_slice(&proof));
    out
}

async fn who_is_asked_for_a_proof_while_the_limits_change_may_still_give_it(make: Make) {
    let mut stage = Stage::on(make, "", &[]).await;
    let mut session = stage.session().await;
    let plugin = if make == Make::MariaDb { "mysql_native_password" } else { "caching_sha2_password" };
    session.send(0x11, &change_by(APP, &[], &stage.schema, plugin)).await;
    let (sequence, request) = session.receive().await.expect("a question");
    assert_eq!((sequence, request[0]), (1, packet::EOF), "{request:?}");
    let (_, nonce) = packet::split_nul(&request[1..]).expect("a plugin's name");
    let nonce = nonce.first_chunk::<20>().expect("it is that long");

    stage.proxy.reload(&["cluster.limits.idle_client_timeout = '1h'"]);
    stage.proxy.wait_for_log("reloaded").await;

    session.write(&proof_for(make, nonce)).await;
    let (_, mut answer) = session.receive().await.expect("it is right");
    if make == Make::Mysql9 {
        (_, answer) = session.receive().await.expect("it is right");
    }
    assert_eq!(answer[0], packet::OK);
    assert_eq!(session.value("SELECT DATABASE()").await, stage.schema);
}

async fn a_login_whose_character_set_no_statement_can_be_in_is_refused(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    let (ucs2, utf16, utf16le, utf32, filename) = ([35, 90, 128, 159], [54, 101], [56], [60, 160], [17]);
    let refused = [&ucs2[..], &utf16, &utf16le, &utf32, &filename].concat();
    for collation in refused.into_iter().chain([0, 8, 28, 33, 45, 255]) {
        let login = |port: u16| Session::connect_in(port, APP, stage.schema.as_bytes(), collation);

        let (direct, proxied) = (login(stage.primary_port()).await, login(stage.proxy.port()).await);

        assert_eq!(proxied.err(), direct.err(), "{collation}");
    }
}

async fn who_becomes_another_user_without_a_plugin_is_refused(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    let whole = change_by(APP, b"", &stage.schema, "");
    let without = &whole[..whole.len() - 1];
    for argument in [without, &without[..without.len() - 2], b"app", b"app\0\xffproof"] {
        for port in [stage.primary_port(), stage.proxy.port()] {
            let mut session = Session::open(port, APP, &stage.schema).await;

            session.send(code::CHANGE_USER, argument).await;

            let error = session.receive().await.expect_err("it is none");
            assert_eq!((error.errno, &*error.message), (1047, "Unknown command"), "{port}: {argument:?}");
            // MariaDB goes on with whom it had.
            let goes_on = session.query("SELECT 1").await.is_ok();
            assert_eq!(goes_on, make == Make::MariaDb, "{port}: {argument:?}");
        }
    }
}

async fn what_the_proxy_refuses_by_itself_is_counted(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    let errors = |kind: &str| stage.proxy.metric("pointsman_errors_total", &[&*format!("kind=\"{kind}\"")]);
    let mut session = stage.session().await;
    let no_statement = [9, 0, 0, 0, 0, 1, 0, 0, 0];
    for (command, argument, kind) in [
        (0x7F, &[][..], "protocol"),
        (code::BINLOG_DUMP, &[], "unsupported"),
        (code::STMT_EXECUTE, &no_statement, "unknown_statement"),
    ] {
        let before = errors(kind);
        session.command(command, argument).await.expect_err("it is refused");
        // The client hears of it first.
        eventually(kind, async || errors(kind) == before + 1.0).await;
    }

    let logins = || stage.proxy.metric("pointsman_logins_total", &["result=\"wrong_password\""]);
    let before = (errors("authentication"), logins());
    let wrong = Login { password: "wrong", ..APP };
    change_user(&mut session, wrong, "").await.expect_err("the password is wrong");
    let once_more = (before.0 + 1.0, before.1 + 1.0);
    eventually("it is counted", async || (errors("authentication"), logins()) == once_more).await;
}

async fn who_becomes_another_user_reads_what_it_wrote_before(make: Make) {
    let cluster = make.own();
    let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT)");
    let proxy = mysql::proxy(&cluster, &[]).await;
    let mut session = Session::open(proxy.port(), APP, &schema).await;
    cluster.pause_replay(1).expect("it pauses");
    cluster.pause_replay(2).expect("it pauses");

    session.run("INSERT INTO t VALUES (1)").await;
    for _ in 0..2 {
        change_user(&mut session, APP, &schema).await.expect("the password is right");
        assert_eq!(session.value("SELECT COUNT(*) FROM t").await, "1");
    }
}

async fn a_login_finds_the_database_that_no_replica_has_heard_of(make: Make) {
    let cluster = make.own();
    let proxy = mysql::proxy(&cluster, &[]).await;
    cluster.pause_replay(1).expect("it pauses");
    cluster.pause_replay(2).expect("it pauses");
    cluster.node(0).sql("", "CREATE DATABASE lately").expect("it may");

    let mut session = Session::open(proxy.port(), APP, "lately").await;

    assert_eq!(session.value("SELECT DATABASE()").await, "lately");
}

/// A certificate authority, and what it signs, as PEM files that servers can read.
struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names, no fault");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().expect("keys are to be had");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("the CA can be signed");
        let folder = tempfile::tempdir().expect("there is room for files");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        let authority = Self { folder, issuer };
        fs::write(authority.path("ca.pem"), authority.issuer.pem()).expect("there is room for files");
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Certificate and key for a common name that is also an alternative one.
    fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new([name.to_owned()]).expect("the test wrote it");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("keys are to be had");
        let certificate = params.signed_by(&key, &self.issuer).expect("the CA can sign");
        let paths = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        fs::write(&paths.0, certificate.pem()).expect("there is room for files");
        fs::write(&paths.1, key.serialize_pem()).expect("there is room for files");
        // The servers run as another user.
        fs::set_permissions(&paths.1, fs::Permissions::from_mode(0o644)).expect("it is ours");
        paths
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

#[tokio::test]
async fn clients_speak_tls_as_the_mode_asks() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("127.0.0.1");
    let (app, app_key) = authority.issue("app");
    let (ca, app, app_key) = (authority.path("ca.pem"), app, app_key);
    let cluster = Make::MariaDb.shared();
    let verify = [format!("--ssl-ca={}", text(&ca)), "--ssl-verify-server-cert".to_owned()];
    let certified =
        [verify[0].clone(), format!("--ssl-cert={}", text(&app)), format!("--ssl-key={}", text(&app_key))];
    let options = |list: &'static [&str]| list.iter().map(|&option| option.to_owned()).collect::<Vec<_>>();
    let plain = options(&["--skip-ssl"]);
    let users =
        "cluster.users = [{ name = 'app', password = 'app-pw' }, { name = 'sha2', password = 'sha2-pw' }]";
    // Mode, and whether clients without TLS, with it, and with a certificate of the user's get in.
    for (mode, lets_in) in [
        ("prefer", [true, true, true]),
        ("require", [false, true, true]),
        ("verify-full", [false, false, true]),
    ] {
        let settings = format!(
            "cluster.tls.client = {{ mode = '{mode}', certificate = '{}', key = '{}', ca = '{}' }}",
            text(&certificate),
            text(&key),
            text(&ca)
        );
        let proxy = Proxy::start_unready(&cluster.addresses(), &[ENGINE, users, &settings]);
        proxy.wait_for_log("role replica").await;
        for (arguments, expected) in [&plain[..], &verify, &certified].into_iter().zip(lets_in) {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let answer = client(proxy.port(), APP, "", &arguments, "SELECT 7");
            assert_eq!(answer.is_ok(), expected, "{mode} {arguments:?}: {answer:?}");
            let compressed = [&arguments[..], &["--compress"]].concat();
            let answer = client(proxy.port(), APP, "", &compressed, "SELECT REPEAT('compressed', 9000)");
            let sent = expected.then(|| "compressed".repeat(9000));
            assert_eq!(answer.ok(), sent, "{mode} {compressed:?}");
        }
        if mode == "require" {
            let refused = client(proxy.port(), APP, "", &["--skip-ssl"], "SELECT 7").expect_err("no TLS");
            assert!(refused.contains("ERROR 3159"), "{refused}");
        }
        if mode == "verify-full" {
            let arguments: Vec<&str> = certified.iter().map(String::as_str).collect();
            let stranger = Login { name: "sha2", password: "sha2-pw" };
            let refused = client(proxy.port(), stranger, "", &arguments, "SELECT 7");
            assert!(refused.as_ref().is_err_and(|error| error.contains("1045")), "{refused:?}");
            // As its own password is right, it is the certificate that keeps it out.
            proxy.wait_for_log("reason=\"tls\" detail=\"the certificate is not that of user 'sha2'").await;
        }
    }
}

#[tokio::test]
async fn passwords_are_sent_within_tls_where_there_is_tls() {
    let login = Login { name: "sha2_tls", ..SHA2 };
    let authority = Authority::new();
    let (certificate, key) = authority.issue("127.0.0.1");
    let users = format!(
        "cluster.users = [{{ name = 'sha2_tls', password = '{SHA2_STORED}' }}, {{ name = 'app', password = 'app-pw' }}]"
    );
    let tls = format!(
        "cluster.tls.client = {{ mode = 'prefer', certificate = '{}', key = '{}' }}",
        text(&certificate),
        text(&key)
    );
    let stage = Stage::set("", &[&users, &tls]).await;
    create_user(stage.cluster, login, "IDENTIFIED BY 'sha2-pw'");
    let ca = format!("--ssl-ca={}", text(&authority.path("ca.pem")));
    let options = [ca.as_str(), "--default-auth=caching_sha2_password"];

    let wrong = client(stage.proxy.port(), Login { password: "wrong", ..login }, "", &options, "SELECT 1");
    assert!(wrong.as_ref().is_err_and(|error| error.contains("1045")), "{wrong:?}");
    for _ in 0..2 {
        let who = client(stage.proxy.port(), login, "", &options, "SELECT CURRENT_USER()");
        assert_eq!(who, Ok("sha2_tls@%".to_owned()));
    }
}

/// Whether the server connection that answers the session is.
async fn is_encrypted(session: &mut Session) -> bool {
    let ask =
        "SELECT variable_value FROM information_schema.session_status WHERE variable_name = 'Ssl_cipher'";
    !session.value(ask).await.is_empty()
}

#[tokio::test]
async fn servers_are_reached_by_tls_and_checked_as_the_mode_asks() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("127.0.0.1");
    let arguments = [
        format!("--ssl-cert={}", text(&certificate)),
        format!("--ssl-key={}", text(&key)),
        format!("--ssl-ca={}", text(&authority.path("ca.pem"))),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let cluster = Make::MariaDb.own_with(&arguments);
    for (mode, encrypted) in
        [("disable", false), ("prefer", true), ("require", true), ("verify-ca", true), ("verify-full", true)]
    {
        let ca =
            if encrypted { format!(", ca = '{}'", text(&authority.path("ca.pem"))) } else { String::new() };
        let settings = format!("cluster.tls.server = {{ mode = '{mode}'{ca} }}");
        let proxy = crate::support::mysql::proxy(&cluster, &[&settings]).await;
        let mut session = Session::open(proxy.port(), APP, "").await;
        assert_eq!(is_encrypted(&mut session).await, encrypted, "{mode}");
    }

    // Connections that idle in the pools are not what a reload asks for.
    let mut proxy =
        crate::support::mysql::proxy(&cluster, &["cluster.tls.server = { mode = 'disable' }"]).await;
    let mut session = Session::open(proxy.port(), APP, "").await;
    assert!(!is_encrypted(&mut session).await);
    proxy.reload(&["cluster.tls.server = { mode = 'require' }"]);
    proxy.wait_for_log("tls.server.mode: disable").await;
    assert!(is_encrypted(&mut session).await);

    // Signed by somebody else: not this server.
    let stranger = Authority::new();
    let settings =
        format!("cluster.tls.server = {{ mode = 'verify-ca', ca = '{}' }}", text(&stranger.path("ca.pem")));
    let proxy = Proxy::start_unready(
        &cluster.addresses(),
        &[ENGINE, &settings, "cluster.limits.login_timeout = '2s'"],
    );
    assert!(Session::connect(proxy.port(), APP, "", BASIC | can::SESSION_TRACK).await.is_err());
}

/// caching_sha2_password's verifier tells whether a password is right and opens no server: the password that the
/// client shows does (hard case 24).
async fn a_user_of_whom_the_file_has_the_verifier_comes_in_by_the_password(make: Make) {
    const KEPT: Login = Login { name: "kept", password: "kept-pw" };
    let cluster = make.own();
    let create = format!("CREATE USER kept@'%' IDENTIFIED BY '{}'", KEPT.password);
    let stored = "SELECT HEX(authentication_string) FROM mysql.user WHERE user = 'kept'";
    cluster.node(0).sql("", &create).expect("root may");
    cluster.wait_until_caught_up(0).expect("replicas follow");
    let stored = hex::decode(cluster.node(0).sql("", stored).expect("root may")).expect("it is HEX");
    let stored = toml::Value::String(String::from_utf8(stored).expect("it is ASCII"));
    let app = "{ name = 'app', password = 'app-pw' }";
    let users = format!("cluster.users = [{app}, {{ name = 'kept', password = {stored} }}]");
    let proxy = crate::support::mysql::proxy(&cluster, &[&users]).await;

    for _ in 0..2 {
        assert_eq!(pymysql(proxy.port(), KEPT, "", "SELECT CURRENT_USER()"), Ok("kept@%".into()));
    }
    let wrong = pymysql(proxy.port(), Login { password: "wrong", ..KEPT }, "", "SELECT 1");
    assert!(wrong.as_ref().is_err_and(|error| error.contains("1045")), "{wrong:?}");
}

/// What `init_connect` of the test below is seen by.
const SET_AT_FIRST: &str = "SELECT CONCAT(@@time_zone, ' ', @@autocommit + 0, ' ', @@max_sort_length)";

async fn what_init_connect_sets_is_set_for_every_session(make: Make) {
    let cluster = make.own();
    let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT)");
    if make == Make::MariaDb {
        cluster.node(0).sql("", "REVOKE CONNECTION ADMIN ON *.* FROM app").expect("it has been granted");
    }
    cluster.wait_until_caught_up(0).expect("replicas follow");
    for node in cluster.nodes() {
        let init = "SET GLOBAL init_connect = 'SET time_zone = \\'+03:00\\', autocommit = 0; SET max_sort_length = 64'";
        node.sql("", init).expect("it is legal");
    }
    let proxy = Proxy::start_unready(&cluster.addresses(), &[ENGINE, "cluster.pool.size = 1"]);
    let count =
        || cluster.node(0).sql(&schema, "SELECT COUNT(*) FROM t").expect("it answers").trim().to_owned();

    for (port, before) in [(cluster.node(0).port(), 0), (proxy.port(), 1)] {
        let mut session = Session::open(port, APP, &schema).await;
        assert_eq!(session.value(SET_AT_FIRST).await, "+03:00 0 64");
        session.run("INSERT INTO t VALUES (1)").await;
        assert_eq!(count(), before.to_string(), "it is not committed");
        session.run("COMMIT").await;
        assert_eq!(count(), (before + 1).to_string());
        session.run("SET time_zone = '+01:00', autocommit = 1").await;
        session.value("SELECT GET_LOCK('mine', 0)").await;

        // Its connection is reset.
        drop(session);
        let mut session = Session::open(port, APP, &schema).await;
        assert_eq!(session.value(SET_AT_FIRST).await, "+03:00 0 64");

        session.command(code::RESET_CONNECTION, b"").await.expect("it resets");
        let own = session.value("SELECT CONCAT(@@GLOBAL.time_zone, ' 1 ', @@GLOBAL.max_sort_length)").await;
        for _ in 0..10 {
            assert_eq!(session.value(SET_AT_FIRST).await, own);
        }
    }
}

async fn what_servers_begin_sessions_with_hides_nothing_of_the_catalog(make: Make) {
    let cluster = make.own();
    let functions = "CREATE FUNCTION earlier() RETURNS INT DETERMINISTIC RETURN 1;
        CREATE FUNCTION later() RETURNS INT DETERMINISTIC RETURN 2";
    let schema = mysql::create_schema(&cluster, functions);
    for node in cluster.nodes() {
        let begins = "SET GLOBAL sql_select_limit = 1, GLOBAL sql_big_selects = 0, GLOBAL autocommit = 0";
        node.sql("", begins).expect("it is legal");
    }
    let proxy = Proxy::start_unready(&cluster.addresses(), &[ENGINE]);
    let mut session = Session::open(proxy.port(), APP, &schema).await;
    session.run("SET autocommit = 1").await;

    for (function, returns) in [("earlier", "1"), ("later", "2")] {
        assert_eq!(session.value(&format!("SELECT {function}()")).await, returns);
        let route = session.value("SELECT @pointsman_route").await;
        assert!(route.contains("reason=read"), "{function}: {route}");
    }
}

/// `skip_character_set_client_handshake` is MySQL's as well, before 9.
#[tokio::test]
async fn where_servers_do_not_heed_what_character_set_a_login_asks_for_the_proxy_does_neither() {
    let arguments = ["--collation-server=utf8mb4_unicode_ci", "--skip-character-set-client-handshake"];
    let cluster = Make::MariaDb.own_with(&arguments);
    let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT)");
    let proxy = mysql::proxy(&cluster, &["cluster.pool.size = 1"]).await;
    let asked =
        "SELECT CONCAT_WS(' ', @@character_set_client, @@character_set_results, @@collation_connection)";

    for collation in [8, 33, 45] {
        for port in [cluster.node(0).port(), proxy.port()] {
            let open = || Session::connect_in(port, APP, schema.as_bytes(), collation);
            let (Ok(mut session), Ok(mut other)) = (open().await, open().await) else { panic!("no login") };
            other.run("SET NAMES latin1").await;
            for reset in [false, true] {
                if reset {
                    session.command(code::RESET_CONNECTION, b"").await.expect("it resets");
                }
                assert_eq!(other.value(asked).await, "latin1 latin1 latin1_swedish_ci");
                assert_eq!(
                    session.value(asked).await,
                    "utf8mb4 utf8mb4 utf8mb4_unicode_ci",
                    "{port} {collation} {reset} {:?}",
                    cluster.addresses()
                );
            }
        }
    }
}

/// A session's settings in the test below, asked of one node.
fn begins(address: &str) -> String {
    format!("/* pointsman: node={address} */ SELECT CONCAT(@@autocommit + 0, ' ', @@max_sort_length)")
}

async fn sessions_begin_with_what_was_set_for_all_since(make: Make) {
    let cluster = make.own();
    let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT)");
    let primary = cluster.node(0);
    let on_primary = begins(&cluster.addresses()[0]);
    if make == Make::MariaDb {
        primary.sql("", &format!("GRANT SUPER ON *.* TO {}", APP.name)).expect("it is granted");
        cluster.wait_until_caught_up(0).expect("replicas follow");
    }
    for (refresh, past_the_proxy) in [("1h", false), ("200ms", true)] {
        let settings = ["cluster.pool.size = 1", &format!("cluster.monitor.catalog_refresh = '{refresh}'")];
        primary.sql("", "SET GLOBAL autocommit = 1, GLOBAL max_sort_length = 1024").expect("it is legal");
        let proxy = mysql::proxy(&cluster, &settings).await;
        let mut admin = Session::open(proxy.port(), APP, &schema).await;
        assert_eq!(admin.value(&on_primary).await, "1 1024");
        let read = || primary.statements().matches("FROM information_schema.triggers").count();
        let before = read();
        if past_the_proxy {
            eventually("the catalog was read once and more", async || read() > before + 1).await;
        }

        let change = "SET GLOBAL autocommit = 0, GLOBAL max_sort_length = 64";
        match past_the_proxy {
            true => drop(primary.sql("", change).expect("it is legal")),
            false => drop(admin.run(change).await),
        }

        let open = || Session::open(proxy.port(), APP, &schema);
        match past_the_proxy {
            true => {
                let has_it = async || open().await.value(&on_primary).await == "0 64";
                eventually("sessions begin with it", has_it).await;
            }
            false => assert_eq!(open().await.value(&on_primary).await, "0 64"),
        }
        let mut session = open().await;
        session.run("INSERT INTO t VALUES (1)").await;
        drop(session);
        let rows = primary.sql(&schema, "SELECT COUNT(*) FROM t").expect("it answers");
        assert_eq!(rows.trim(), "0", "it was not committed, past the proxy: {past_the_proxy}");
    }
}

/// `completion_type` as a server's default: what is rolled back was committed else, and sessions outlived
/// their end.
async fn a_commit_goes_on_as_the_servers_say_by_default(make: Make) {
    let cluster = make.own();
    let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT) ENGINE = InnoDB");
    let set_all = |value: &str| {
        for node in 0..3 {
            let set = format!("SET GLOBAL completion_type = {value}");
            cluster.node(node).sql("", &set).expect("it is legal");
        }
    };
    const ROWS: &str = "SELECT COUNT(*) FROM t /* pointsman: primary */";
    let port: u16 = cluster.addresses()[0].rsplit(':').next().expect("a port").parse().expect("a number");

    set_all("1");
    let proxy = mysql::proxy(&cluster, &["cluster.pool.size = 1"]).await;
    let cases: [&[&str]; 4] = [
        &["COMMIT", "INSERT INTO t VALUES (1)", "ROLLBACK AND NO CHAIN", ROWS],
        &[
            "BEGIN",
            "INSERT INTO t VALUES (2)",
            "COMMIT",
            "INSERT INTO t VALUES (3)",
            "ROLLBACK AND NO CHAIN",
            ROWS,
        ],
        &["SET completion_type = 0", "COMMIT", "INSERT INTO t VALUES (4)", "ROLLBACK", ROWS],
        &[
            "SET completion_type = DEFAULT",
            "ROLLBACK",
            "INSERT INTO t VALUES (5)",
            "ROLLBACK AND NO CHAIN",
            ROWS,
        ],
    ];
    for case in cases {
        let mut told = Vec::new();
        for port in [port, proxy.port()] {
            let mut session = Session::open(port, APP, &schema).await;
            session.run("DELETE FROM t").await;
            let mut answers = Vec::new();
            for sql in case {
                let answer = session.run(sql).await;
                answers.push((*sql, answer.value(), answer.status & packet::status::IN_TRANSACTION));
            }
            told.push(answers);
        }
        assert_eq!(told[1], told[0]);
    }

    set_all("2");
    let proxy = mysql::proxy(&cluster, &["cluster.pool.size = 1"]).await;
    for end in ["COMMIT", "ROLLBACK"] {
        let mut session = Session::open(proxy.port(), APP, &schema).await;
        session.run("BEGIN").await;
        session.run("INSERT INTO t VALUES (6)").await;
        session.run(end).await;
        assert_eq!(session.error("SELECT 1").await, 2013, "{end}");
    }
    let mut next = Session::open(proxy.port(), APP, &schema).await;
    assert_eq!(next.value("SELECT COUNT(*) FROM t WHERE x = 6 /* pointsman: primary */").await, "1");
}
