//! A real server: we log in to it, psql logs in to us, and both at once.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::AsyncWriteExt;

use super::{
    door::{Users, listen, relay},
    servers::{Authority, PASSWORD, Postgres, psql},
};
use crate::{
    postgres::{
        login::{
            Accepted, ConnectError, Connected, Credentials, Md5Hash, Password, Secret, Startup, connect,
            connect_within, send_cancel,
        },
        message::read_frame,
    },
    tls::{ClientTls, Mode, Parameters, ServerTls},
};

fn plain() -> Credentials {
    Credentials::Plain(Arc::new(Password::new(PASSWORD.to_owned())))
}

fn startup(user: &str) -> Startup {
    Startup { user: user.into(), database: "postgres".into(), ..Startup::default() }
}

async fn attempt(
    server: &Postgres,
    mode: Mode,
    user: &str,
    credentials: &Credentials,
) -> Result<Connected, ConnectError> {
    let own = (user == "certified").then(|| server.authority.issue("certified", &[]));
    let tls = ServerTls::build(&server.authority.parameters(mode, own)).expect("the files are there");
    connect(&server.address(), &tls, &startup(user), credentials).await
}

#[tokio::test]
async fn every_method_logs_in_where_its_proof_is_known() {
    let server = Postgres::start();
    let md5 = Credentials::Md5Hash(Md5Hash::derive("md5_only", PASSWORD));
    let table = [
        ("app", Mode::Disable, plain()),
        ("app", Mode::Prefer, plain()),
        ("app", Mode::VerifyFull, plain()),
        ("trusted", Mode::Disable, Credentials::None),
        ("md5_only", Mode::Disable, plain()),
        ("md5_only", Mode::Require, md5),
        ("clear", Mode::Require, plain()),
        ("tls_only", Mode::Allow, plain()),
        ("plain_only", Mode::Allow, plain()),
        ("plain_only", Mode::Prefer, plain()),
        ("certified", Mode::VerifyCa, Credentials::None),
    ];
    for (user, mode, credentials) in table {
        let connected = attempt(&server, mode, user, &credentials).await;
        let connected = connected.unwrap_or_else(|error| panic!("{user} {mode:?}: {error}"));
        let find =
            |name| connected.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert_eq!(find("session_authorization"), Some(user));
        assert_eq!(find("server_encoding"), Some("UTF8"));
        assert!(connected.unread.is_empty() && connected.process_id > 0 && connected.secret_key.len() == 4);
        let encrypted = mode.requires_tls() || user == "tls_only" || user == "app" && mode == Mode::Prefer;
        assert_eq!(connected.stream.is_tls(), encrypted, "{user} {mode:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_proven_is_said() {
    let server = Postgres::start();
    let wrong = Credentials::Plain(Arc::new(Password::new("wrong".to_owned())));
    let Secret::Md5(hash) = Secret::parse(&server.stored_password("md5_only")) else { panic!("no hash") };

    let refused = attempt(&server, Mode::Require, "app", &wrong).await.expect_err("the password is wrong");
    assert_eq!(refused.sqlstate(), Some("28P01"));
    let refused = attempt(&server, Mode::Disable, "tls_only", &plain()).await.expect_err("pg_hba rejects it");
    assert_eq!(refused.sqlstate(), Some("28000"));
    for (user, credentials, mode) in [
        ("app", Credentials::None, Mode::Disable),
        ("app", Credentials::Md5Hash(hash), Mode::Disable),
        ("clear", plain(), Mode::Disable),
        ("clear", Credentials::None, Mode::Require),
        ("md5_only", Credentials::None, Mode::Disable),
    ] {
        let refused = attempt(&server, mode, user, &credentials).await.expect_err("nothing is proven");
        assert!(matches!(refused, ConnectError::Credentials(_)), "{user}: {refused}");
    }
}

#[tokio::test]
async fn an_error_of_the_server_can_be_passed_on_as_it_came() {
    let server = Postgres::start();
    let startup = Startup { database: "nowhere".into(), ..startup("app") };
    let tls = ServerTls::disabled();

    let Err(ConnectError::Server(error)) = connect(&server.address(), &tls, &startup, &plain()).await else {
        panic!("there is no such database")
    };

    assert_eq!((error.severity.as_str(), error.sqlstate.as_str()), ("FATAL", "3D000"));
    assert_eq!(error.message, "database \"nowhere\" does not exist");
    let mut raw = BytesMut::from(&error.raw[..]);
    let parsed = postgres_protocol::message::backend::Message::parse(&mut raw).expect("it is well-formed");
    assert!(matches!(parsed, Some(postgres_protocol::message::backend::Message::ErrorResponse(_))));
    assert!(raw.is_empty());
}

#[tokio::test]
async fn keys_that_a_client_revealed_log_in_to_the_server() {
    let server = Postgres::start();
    let stored = server.stored_password("app");
    let users = || Users::new([("app", stored.as_str())]);
    let (door, mut results) = listen(users()).await;
    connect(&door.to_string(), &ServerTls::disabled(), &startup("app"), &plain())
        .await
        .expect("the password is right");
    let Ok(Accepted::Login(login)) = results.recv().await.unwrap() else { panic!("no login") };
    assert!(matches!(login.credentials, Credentials::ScramKeys(_)));

    for mode in [Mode::Disable, Mode::VerifyFull] {
        attempt(&server, mode, "app", &login.credentials).await.expect("the keys are the password's");
    }

    let refused = attempt(&server, Mode::Disable, "plain_only", &login.credentials).await;
    assert!(matches!(refused, Err(ConnectError::Credentials(_))), "another role has another salt");

    let port = relay(users(), server.address()).await.port();
    let who = tokio::task::spawn_blocking(move || {
        psql(&format!("host=127.0.0.1 port={port} user=app dbname=postgres"), "SELECT current_user, 1 + 1")
    });
    assert_eq!(who.await.unwrap(), Ok("app|2".into()));
}

#[tokio::test]
async fn protocol_3_2_is_asked_for_and_an_older_server_is_content() {
    let server = Postgres::start();
    let startup = Startup {
        minor: 2,
        parameters: vec![
            ("application_name".into(), "näme".into()),
            ("options".into(), "-c work_mem=1234kB".into()),
        ],
        ..startup("app")
    };
    let connected = connect(&server.address(), &ServerTls::disabled(), &startup, &plain()).await;
    let Connected { mut stream, mut unread, secret_key, .. } = connected.expect("the server knows 3.0");
    assert!(secret_key.len() >= 4);

    let mut query = BytesMut::new();
    frontend::query("SHOW work_mem", &mut query).unwrap();
    stream.write_all(&query).await.unwrap();
    let mut answer = Vec::new();
    for _ in 0..3 {
        answer.push(read_frame(&mut stream, &mut unread, 1_000).await.unwrap());
    }
    assert_eq!(&answer[1].body[..], b"\0\x01\0\0\0\x061234kB");
}

#[tokio::test]
async fn a_cancel_ends_the_running_statement() {
    let server = Postgres::start();
    for mode in [Mode::Disable, Mode::Require] {
        let Connected { mut stream, mut unread, process_id, secret_key, .. } =
            attempt(&server, mode, "app", &plain()).await.unwrap();
        let mut query = BytesMut::new();
        frontend::query("SELECT pg_sleep(60)", &mut query).unwrap();
        stream.write_all(&query).await.unwrap();
        stream.flush().await.unwrap();
        let running = || {
            server.superuser("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND state = 'active' AND usename = 'app'")
        };
        while running() == "0" {
            tokio::task::yield_now().await;
        }

        let tls = ServerTls::build(&server.authority.parameters(mode, None)).unwrap();
        send_cancel(&server.address(), &tls, process_id, &secret_key).await.unwrap();

        let answer =
            tokio::time::timeout(Duration::from_secs(10), read_frame(&mut stream, &mut unread, 1000));
        let mut frame = answer.await.expect("it is cancelled at once").unwrap();
        if frame.tag == b'T' {
            frame = read_frame(&mut stream, &mut unread, 1000).await.unwrap();
        }
        assert_eq!(frame.tag, b'E');
        assert!(memchr::memmem::find(&frame.body, b"C57014\0").is_some());
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable_and_a_silent_one_times_out() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let tls = ServerTls::disabled();
    let timeout = Duration::from_millis(50);
    let result = connect_within(timeout, &address, &tls, &startup("app"), &plain()).await;
    assert!(matches!(result, Err(ConnectError::TimedOut(_))));

    drop(silent);
    let result = connect(&address, &tls, &startup("app"), &plain()).await;
    assert!(matches!(result, Err(ConnectError::Unreachable(_))));
}

#[tokio::test]
async fn psql_logs_in_to_us_over_tls_with_channel_binding() {
    let server = Postgres::start();
    let authority = Authority::new();
    let own = authority.issue("proxy", &["127.0.0.1"]);
    let stored = server.stored_password("app");
    let parameters = Parameters { ca: None, ..authority.parameters(Mode::Require, Some(own)) };
    let users = Users::behind(ClientTls::build(&parameters).unwrap(), false, [("app", stored.as_str())]);
    let port = relay(users, server.address()).await.port();
    let ca = authority.ca().display().to_string();

    let base = format!("host=127.0.0.1 port={port} user=app dbname=postgres sslrootcert={ca}");
    let table = [
        ("sslmode=verify-full channel_binding=require", Ok("app")),
        ("sslmode=require channel_binding=disable", Ok("app")),
        ("sslmode=disable", Err("connection requires TLS")),
    ];
    for (how, expected) in table {
        let connection = format!("{base} {how}");
        let answer =
            tokio::task::spawn_blocking(move || psql(&connection, "SELECT current_user")).await.unwrap();
        match (answer, expected) {
            (Ok(answer), Ok(expected)) => assert_eq!(answer, expected, "{how}"),
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{how}: {error}"),
            (answer, _) => panic!("{how}: {answer:?}"),
        }
    }
}

#[tokio::test]
async fn a_clients_certificate_counts_only_for_the_user_it_names() {
    let authority = Authority::new();
    let own = authority.issue("proxy", &["127.0.0.1"]);
    let tls = ClientTls::build(&authority.parameters(Mode::VerifyFull, Some(own))).unwrap();
    let (door, mut results) = listen(Users::behind(tls, false, [("app", PASSWORD)])).await;
    let app = authority.issue("app", &[]);
    let stranger = Authority::new();
    let forged = stranger.issue("app", &[]);
    let table = [
        ("app", Some(app.clone()), true),
        ("other", Some(app), false),
        ("app", None, false),
        ("app", Some(forged), false),
    ];
    for (user, own, good) in table {
        let tls = ServerTls::build(&authority.parameters(Mode::VerifyFull, own)).unwrap();
        let connected = connect(&door.to_string(), &tls, &startup(user), &Credentials::None).await;
        assert_eq!(connected.is_ok(), good, "{user}: {:?}", connected.err());
        let accepted = results.recv().await.unwrap();
        assert_eq!(accepted.is_ok(), good, "{user}");
        if let Ok(Accepted::Login(login)) = accepted {
            assert!(matches!(login.credentials, Credentials::Plain(_)));
        }
    }
}

#[tokio::test]
async fn a_server_is_verified_as_far_as_the_mode_says() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let named = authority.issue("named", &["127.0.0.1"]);
    let other = authority.issue("other", &["db.example"]);
    let self_signed = authority.self_signed("itself", &["127.0.0.1"]);
    let pinned = |mode| Parameters { mode, ca: Some(self_signed.0.clone()), ..Parameters::default() };
    let unnamed = |mode| Parameters { mode, ..Parameters::default() };
    let table = [
        (&named, authority.parameters(Mode::VerifyFull, None), true),
        (&other, authority.parameters(Mode::VerifyFull, None), false),
        (&other, authority.parameters(Mode::VerifyCa, None), true),
        (&named, stranger.parameters(Mode::VerifyCa, None), false),
        (&named, stranger.parameters(Mode::Require, None), false),
        (&other, unnamed(Mode::Require), true),
        (&other, unnamed(Mode::Prefer), true),
        (&self_signed, pinned(Mode::VerifyFull), true),
        (&named, pinned(Mode::VerifyCa), false),
    ];
    for (own, parameters, good) in table {
        let (certificate, key) = own.clone();
        let ours =
            Parameters { mode: Mode::Require, certificate: Some(certificate), key: Some(key), ca: None };
        let users = Users::behind(ClientTls::build(&ours).unwrap(), false, [("app", PASSWORD)]);
        let (door, mut results) = listen(users).await;
        let tls = ServerTls::build(&parameters).unwrap();
        let connected = connect(&door.to_string(), &tls, &startup("app"), &plain()).await;
        match connected {
            Ok(connected) => assert!(good && connected.stream.is_tls(), "{own:?} {parameters:?}"),
            Err(ConnectError::Tls(why)) => assert!(!good, "{own:?} {parameters:?}: {why}"),
            Err(other) => panic!("{own:?} {parameters:?}: {other}"),
        }
        assert_eq!(results.recv().await.unwrap().is_ok(), good);
    }
}

#[tokio::test]
async fn a_certificate_made_by_the_manual_is_verified_as_libpq_does() {
    let authority = Authority::new();
    let own = authority.version_1("old", "localhost");
    let server = Postgres::launch(authority, own);
    let stranger = Authority::new();
    let unnamed = |mode| Parameters { mode, ..Parameters::default() };
    let table = [
        ("localhost", unnamed(Mode::Require), true),
        ("localhost", server.authority.parameters(Mode::VerifyCa, None), true),
        ("localhost", server.authority.parameters(Mode::VerifyFull, None), true),
        ("127.0.0.1", server.authority.parameters(Mode::VerifyFull, None), false),
        ("localhost", stranger.parameters(Mode::VerifyCa, None), false),
    ];
    for (host, parameters, good) in table {
        let tls = ServerTls::build(&parameters).unwrap();
        let address = format!("{host}:{}", server.port);
        let connected = connect(&address, &tls, &startup("app"), &plain()).await;
        match connected {
            Ok(connected) => assert!(good && connected.stream.is_tls(), "{host} {parameters:?}"),
            Err(ConnectError::Tls(why)) => assert!(!good, "{host} {parameters:?}: {why}"),
            Err(other) => panic!("{host} {parameters:?}: {other}"),
        }
    }
}
