//! Servers that do not know the password, or do not speak the protocol.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::{BufMut, BytesMut};
use pgwire::messages::startup::Authentication;
use tokio::{io::AsyncWriteExt, net::TcpListener};

use crate::{
    postgres::{
        login::{ConnectError, Credentials, Password, Startup, connect_within},
        message::{put_authentication, read_frame, read_startup, take_cstring},
    },
    tls::ServerTls,
};

/// Answers the startup packet with the first of these, and each message after it with the next;
/// `%` in one of them stands for the nonce that the client sent.
async fn fake(answers: Vec<Vec<u8>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut unread = BytesMut::new();
        read_startup(&mut socket, &mut unread).await.unwrap();
        for answer in answers {
            socket.write_all(&answer).await.unwrap();
            if read_frame(&mut socket, &mut unread, 10_000).await.is_err() {
                break;
            }
        }
    });
    address
}

fn message(message: Authentication) -> Vec<u8> {
    let mut buffer = BytesMut::new();
    put_authentication(&mut buffer, message);
    buffer.to_vec()
}

async fn attempt(address: SocketAddr) -> ConnectError {
    let credentials = Credentials::Plain(Arc::new(Password::new("secret".to_owned())));
    let startup = Startup { user: "app".into(), database: "shop".into(), ..Startup::default() };
    // A login that believes the server waits for more: better a failure than a hanging test.
    let deadline = Duration::from_secs(10);
    let tls = ServerTls::disabled();
    let result = connect_within(deadline, &address.to_string(), &tls, &startup, &credentials).await;
    result.expect_err("nobody should believe this server")
}

#[tokio::test]
async fn a_server_that_skips_its_proof_is_not_believed() {
    let sasl = || message(Authentication::SASL(vec!["SCRAM-SHA-256".into()]));
    let ready = || [message(Authentication::Ok), vec![b'Z', 0, 0, 0, 5, b'I']].concat();
    let table = [
        vec![sasl(), ready()],
        vec![sasl(), message(Authentication::SASLContinue("r=abc,s=AAAA,i=4096".into()))],
        vec![sasl(), message(Authentication::SASLFinal("v=AAAA".into()))],
        vec![message(Authentication::SASLContinue("r=abc,s=AAAA,i=1".into()))],
        vec![message(Authentication::SASL(vec!["OAUTHBEARER".into()]))],
        vec![message(Authentication::CleartextPassword)],
        vec![message(Authentication::KerberosV5)],
    ];
    for answers in table {
        let error = attempt(fake(answers.clone()).await).await;
        assert!(
            matches!(error, ConnectError::Protocol(_) | ConnectError::Credentials(_)),
            "{answers:?}: {error}"
        );
    }
}

#[tokio::test]
async fn a_server_that_knows_only_the_salt_is_not_believed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut unread = BytesMut::new();
        read_startup(&mut socket, &mut unread).await.unwrap();
        socket.write_all(&message(Authentication::SASL(vec!["SCRAM-SHA-256".into()]))).await.unwrap();
        let first = read_frame(&mut socket, &mut unread, 1_000).await.unwrap().body;
        let mut rest = &first[..];
        take_cstring(&mut rest).unwrap();
        let nonce = String::from_utf8_lossy(&rest[4..]).rsplit_once("r=").unwrap().1.to_owned();
        let challenge = format!("r={nonce}xyz,s=AAAA,i=4096");
        socket.write_all(&message(Authentication::SASLContinue(challenge.into()))).await.unwrap();
        read_frame(&mut socket, &mut unread, 1_000).await.unwrap();
        let signature = format!("v={}=", "A".repeat(43));
        socket.write_all(&message(Authentication::SASLFinal(signature.into()))).await.unwrap();
        socket.write_all(&message(Authentication::Ok)).await.unwrap();
        let _ = read_frame(&mut socket, &mut unread, 1_000).await;
    });

    let error = attempt(address).await;

    assert!(matches!(&error, ConnectError::Protocol(why) if why.contains("signature")), "{error}");
}

#[tokio::test]
async fn nonsense_and_endless_logins_are_bounded() {
    let mut huge = vec![b'S'];
    huge.put_u32(1 << 30);
    let notices = b"N\0\0\0\x05\0".repeat(5_000);
    let truncated = b"R\0\0\0\x06\0\0".to_vec();
    let short_md5 = b"R\0\0\0\x09\0\0\0\x05\0".to_vec();
    let surprising = b"T\0\0\0\x06\0\0".to_vec();
    let http = b"HTTP/1.1 400 Bad Request\r\n".to_vec();
    for answer in [huge, notices, truncated, short_md5, surprising, http] {
        let error = attempt(fake(vec![answer.clone()]).await).await;
        assert!(matches!(error, ConnectError::Protocol(_)), "{:?}: {error}", &answer[..6]);
    }
    let error = attempt(fake(vec![]).await).await;
    assert!(matches!(error, ConnectError::Io(_)), "{error}");
}
