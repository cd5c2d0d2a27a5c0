//! tokio-postgres as the client.

use std::sync::Arc;

use tokio_postgres::{Config, NoTls, config::ChannelBinding, error::SqlState};

use super::door::{Users, listen};
use crate::{
    postgres::login::{Accepted, Credentials, Keys, Login, LoginFailure, Password, Secret, Verifier},
    tls::ClientTls,
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
