//! tokio-postgres as the client.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::{Config, NoTls, config::ChannelBinding, error::SqlState};

use super::{
    door::{Users, listen},
    servers::Authority,
};
use crate::{
    postgres::login::{Accepted, Credentials, Keys, Login, LoginFailure, Password, Secret, Verifier},
    tls::{ALPN, ClientTls, Mode, server_name},
};

const PASSWORD: &str = "pässword with spaces";

async fn login(users: Users, user: &str, password: &str) -> (Result<(), tokio_postgres::Error>, Outcome) {
    let (address, mut results) = listen(users).await;
    let config = format!("host=127.0.0.1 port={} user={user} dbname=shop application_name=t", address.port());
    let mut config: Config = config.parse().expect("the test wrote it");
    let client = config.password(password).channel_binding(ChannelBinding::Disable).connect(NoTls).await;
    (client.map(drop), results.recv().await.expect("the listener lives"))
}

type Outcome = Result<Accepted, LoginFailure>;

fn accepted(outcome: Outcome) -> Login {
    match outcome.expect("the login succeeds") {
        Accepted::Login(login) => *login,
        Accepted::Cancel(_) => panic!("nobody cancelled"),
    }
}

#[tokio::test]
async fn a_user_with_a_plain_password_gets_in_and_lends_it_to_us() {
    let (client, outcome) = login(Users::new([("app", PASSWORD)]), "app", PASSWORD).await;

    client.expect("the password is right");
    let login = accepted(outcome);
    assert_eq!((login.user.as_str(), login.database.as_str(), login.minor), ("app", "shop", 0));
    assert!(login.parameters.contains(&("application_name".into(), "t".into())));
    assert!(matches!(login.credentials, Credentials::Plain(password) if password.text() == PASSWORD));
}

#[tokio::test]
async fn a_user_with_a_verifier_gets_in_and_reveals_the_client_key() {
    let stored = postgres_protocol::password::scram_sha_256(PASSWORD.as_bytes());
    let (client, outcome) = login(Users::new([("app", &stored)]), "app", PASSWORD).await;

    client.expect("the password is right");
    let Credentials::ScramKeys(keys) = accepted(outcome).credentials else { panic!("no keys") };
    assert_eq!(Some(keys.verifier()), Verifier::parse(&stored));
}

#[tokio::test]
async fn a_user_with_an_md5_hash_gets_in() {
    let stored = postgres_protocol::password::md5(PASSWORD.as_bytes(), "app");
    let (client, outcome) = login(Users::new([("app", &stored)]), "app", PASSWORD).await;

    client.expect("the password is right");
    assert!(matches!(accepted(outcome).credentials, Credentials::Md5Hash(_)));
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_look_the_same_to_the_client() {
    let scram = postgres_protocol::password::scram_sha_256(PASSWORD.as_bytes());
    let md5 = postgres_protocol::password::md5(PASSWORD.as_bytes(), "app");
    for (user, secret) in [("app", PASSWORD), ("app", &scram), ("app", &md5), ("nobody", PASSWORD)] {
        let (client, outcome) = login(Users::new([("app", secret)]), user, "wrong").await;

        let error = client.expect_err("the password is wrong");
        let error = error.as_db_error().expect("the proxy says so");
        assert_eq!(error.code(), &SqlState::INVALID_PASSWORD);
        assert_eq!(error.message(), format!("password authentication failed for user \"{user}\""));
        match outcome.expect_err("the password is wrong") {
            LoginFailure::WrongPassword { user: failed } => {
                assert_eq!((failed.as_str(), user), ("app", "app"))
            }
            LoginFailure::UnknownUser { user: failed } => {
                assert_eq!((failed.as_str(), user), ("nobody", "nobody"))
            }
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn a_user_who_cannot_be_looked_up_is_told_that_it_is_not_the_password() {
    let (client, outcome) = login(Users::new([]), "lookup_fails", PASSWORD).await;

    let error = client.expect_err("nobody knows the password");
    assert_eq!(error.code(), Some(&SqlState::CANNOT_CONNECT_NOW));
    assert!(!error.as_db_error().unwrap().message().contains("no server answers"));
    assert!(matches!(outcome, Err(LoginFailure::Lookup { .. })));
}

#[tokio::test]
async fn loopback_is_trusted_only_where_configured() {
    let trusting = || Users::behind(ClientTls::disabled(), true, [("app", PASSWORD)]);

    let (client, outcome) = login(trusting(), "app", "whatever").await;
    client.expect("loopback is trusted");
    assert!(matches!(accepted(outcome).credentials, Credentials::Plain(_)));

    let (client, outcome) = login(trusting(), "somebody", "whatever").await;
    client.expect("loopback is trusted");
    assert!(matches!(accepted(outcome).credentials, Credentials::None));
}

#[tokio::test]
async fn a_cancel_request_hands_over_its_key() {
    let (address, mut results) = listen(Users::new([])).await;
    for key in [vec![1, 2, 3, 4], vec![7; 32], vec![9; 256]] {
        let tls = crate::tls::ServerTls::disabled();
        let cancelling = tokio::spawn({
            let key = key.clone();
            async move { crate::postgres::login::send_cancel(&address.to_string(), &tls, 4711, &key).await }
        });
        let Ok(Accepted::Cancel(cancel)) = results.recv().await.unwrap() else { panic!("no cancel") };
        assert_eq!((cancel.process_id, &cancel.key), (4711, &key));
        assert!(!cancelling.is_finished(), "the canceller waits until the connection is closed");
        drop(cancel);
        cancelling.await.unwrap().expect("a closed connection is a delivered cancel");
    }
}

#[tokio::test]
async fn encryption_is_negotiated_in_any_order_and_each_kind_once() {
    let ssl: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
    let gssenc: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 48];
    let startup: &[u8] = b"\0\0\0\x12\0\x03\0\0user\0app\0\0";
    // What is sent, one after the other's answer, and how each answer begins.
    let table: [(&[&[u8]], &[u8]); 6] = [
        (&[startup], b"R"),
        (&[ssl, startup], b"NR"),
        (&[gssenc, startup], b"NR"),
        (&[gssenc, ssl, startup], b"NNR"),
        (&[ssl, gssenc, startup], b"NNR"),
        (&[ssl, ssl], b"NE"),
    ];
    for (sent, answers) in table {
        let (address, mut results) = listen(Users::new([("app", PASSWORD)])).await;
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        for (packet, answer) in sent.iter().zip(answers) {
            socket.write_all(packet).await.unwrap();
            assert_eq!(socket.read_u8().await.unwrap(), *answer, "{sent:?}");
        }
        drop(socket);
        results.recv().await.unwrap().expect_err("it ends there");
    }
}

#[tokio::test]
async fn tls_at_once_needs_the_protocols_name() {
    let authority = Authority::new();
    let own = authority.issue("proxy", &["127.0.0.1"]);
    let tls = || ClientTls::build(&authority.parameters(Mode::Prefer, Some(own.clone()))).unwrap();
    for (names, good) in [(vec![ALPN.to_vec()], true), (vec![], false), (vec![b"http/1.1".to_vec()], false)] {
        let (address, mut results) = listen(Users::behind(tls(), true, [("app", PASSWORD)])).await;
        let socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority.ca()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = names;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let session = connector.connect(server_name("127.0.0.1:1").unwrap(), socket).await;

        if let Ok(mut session) = session {
            let _ = session.write_all(b"\0\0\0\x12\0\x03\0\0user\0app\0\0").await;
            assert_eq!(session.read_u8().await.ok(), good.then_some(b'R'));
        }
        assert_eq!(results.recv().await.unwrap().is_ok(), good);
    }
}

#[tokio::test]
async fn a_client_of_a_newer_protocol_is_told_what_we_speak() {
    let (address, mut results) = listen(Users::behind(ClientTls::disabled(), true, [])).await;
    let startup = b"\0\0\0\x1c\0\x03\x27\x0fuser\0app\0_pq_.x\0on\0\0";
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    socket.write_all(startup).await.unwrap();
    let expected = b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0R\0\0\0\x08\0\0\0\0";
    let mut answer = vec![0; expected.len()];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, expected);
    let login = accepted(results.recv().await.unwrap());
    assert_eq!((login.minor, login.database.as_str()), (2, "app"));
    assert_eq!(login.unread.capacity(), 0, "an idle client keeps no buffer");
}

#[test]
fn a_passwords_keys_are_derived_once() {
    let password = Password::new(PASSWORD.to_owned());
    let verifier = password.verifier();
    assert!(Arc::ptr_eq(&verifier, &password.verifier()));

    assert!(password.remembered_keys(b"salt", 4096).is_none());
    let keys = password.compute_keys(b"salt", 4096);
    assert!(Arc::ptr_eq(&keys, &password.remembered_keys(b"salt", 4096).unwrap()));
    assert!(password.remembered_keys(b"salt", 4097).is_none());
    assert_eq!(keys.verifier(), Keys::derive(PASSWORD, b"salt", 4096).verifier());
    for salt in 0..10_u8 {
        password.compute_keys(&[salt], 1);
    }
    assert!(password.remembered_keys(b"salt", 4096).is_none(), "few salts are remembered");
}

#[test]
fn secrets_are_told_apart_as_the_server_does() {
    assert!(matches!(Secret::parse("SCRAM-SHA-256$nonsense"), Secret::Plain(_)));
    assert!(matches!(Secret::parse("md5nonsense"), Secret::Plain(_)));
    assert!(matches!(Secret::parse(&postgres_protocol::password::md5(b"x", "y")), Secret::Md5(_)));
    assert!(matches!(Secret::parse(&postgres_protocol::password::scram_sha_256(b"x")), Secret::Scram(_)));
}
