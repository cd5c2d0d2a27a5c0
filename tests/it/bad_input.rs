//! Whatever a client sends costs its own connection and nothing else.

use std::time::Duration;

use futures_util::future::join_all;
use proptest::{prelude::*, strategy::ValueTree};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{
    Stage, eventually,
    wire::{Batch, Wire, startup, untagged},
};

/// Clients that hang in the middle of their login at one time.
const HALF_OPEN: usize = 10_000;
/// What one of them may take in a build without optimisation.
const BYTES_PER_HALF_OPEN: u64 = 16 * 1024;

/// The proxy serves others as before.
async fn undisturbed(stage: &Stage) {
    assert_eq!(stage.session().await.value("SELECT 'as before'").await, "as before");
    assert!(!stage.proxy.log().contains("panicked"), "{}", stage.proxy.log());
}

#[tokio::test]
async fn faulty_startups_are_refused() {
    let stage = Stage::set("", &[]).await;
    let unterminated = [&196_608_i32.to_be_bytes()[..], b"user\0app"].concat();
    let faulty = [
        ("a length below its own size", Batch::new().raw(&3_i32.to_be_bytes())),
        ("a negative length", Batch::new().raw(&(-1_i32).to_be_bytes())),
        ("a huge length", Batch::new().raw(&i32::MAX.to_be_bytes()).raw(b"x")),
        ("HTTP", Batch::new().raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")),
        ("no user", startup(196_608, &[])),
        ("an unterminated option", untagged(&unterminated)),
        ("a TLS hello without TLS", Batch::new().raw(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3])),
    ];

    for (name, batch) in faulty {
        let mut wire = Wire::connect(stage.proxy.port()).await;
        wire.send(&batch).await;
        let said = wire.until_closed().await;
        assert!(said.iter().all(|frame| frame.tag == b'E'), "{name}: {said:?}");
    }
    undisturbed(&stage).await;
}

#[tokio::test]
async fn faulty_messages_end_their_connection_with_a_protocol_error() {
    let stage = Stage::set("", &[]).await;
    let faulty = [
        ("an unknown message", Batch::new().message(b'?', b"what")),
        ("a length below its own size", Batch::new().raw(b"Q").raw(&3_i32.to_be_bytes())),
        ("a negative length", Batch::new().raw(b"Q").raw(&(-5_i32).to_be_bytes())),
        ("a Query without its end", Batch::new().message(b'Q', b"SELECT 1")),
        ("a Query with something behind its end", Batch::new().message(b'Q', b"SELECT 1\0; DROP TABLE t\0")),
        ("an empty Parse", Batch::new().message(b'P', b"").sync()),
        ("a Parse that promises more types", Batch::new().message(b'P', b"\0SELECT 1\0\x7f\xff").sync()),
        ("an empty Bind", Batch::new().message(b'B', b"").sync()),
        ("a Bind that promises more parameters", Batch::new().message(b'B', b"\0\0\0\0\x7f\xff").sync()),
        ("a Bind with a lying length", Batch::new().message(b'B', b"\0\0\0\0\0\x01\x7f\xff\xff\xff").sync()),
        ("a Describe of no kind", Batch::new().message(b'D', b"X\0").sync()),
        ("an Execute without its count", Batch::new().message(b'E', b"\0").sync()),
        ("a Close of nothing", Batch::new().message(b'C', b"").sync()),
        ("a function call that ends early", Batch::new().message(b'F', b"\0")),
    ];

    for (name, batch) in faulty {
        let mut wire = stage.wire().await;
        wire.send(&batch).await;
        // PostgreSQL answers some with an error and lives on, others with a FATAL; both are fine.
        let frame = loop {
            match wire.next().await {
                Ok(frame) if frame.tag == b'1' => {}
                other => break other,
            }
        };
        let code = frame.as_ref().map(crate::support::wire::Frame::code).unwrap_or_default();
        assert!(frame.is_err() || code == "08P01" || code == "22P02" || code == "26000", "{name}: {frame:?}");
    }
    undisturbed(&stage).await;
}

#[tokio::test]
async fn a_message_longer_than_the_servers_limit_is_refused_before_it_is_read() {
    let stage = Stage::set("", &[]).await;
    let before = stage.proxy.resident_bytes();
    let mut wire = stage.wire().await;

    wire.send(&Batch::new().raw(b"Q").raw(&i32::MAX.to_be_bytes()).raw(b"SELECT 1")).await;

    let said = wire.until_closed().await;
    // PostgreSQL itself closes such a connection without a word.
    assert!(said.iter().all(|frame| frame.code() == "08P01"), "{said:?}");
    assert!(stage.proxy.resident_bytes() < before + 64 * 1024 * 1024);
    undisturbed(&stage).await;
}

#[tokio::test]
async fn a_long_statement_is_streamed_and_does_not_stay_in_memory() {
    const MIB: usize = 1024 * 1024;
    let stage = Stage::set("CREATE TABLE t (x text)", &[]).await;
    let session = stage.session().await;

    for _ in 0..3 {
        let long = "x".repeat(32 * MIB);
        session.execute("INSERT INTO t VALUES ($1)", &[&long]).await.expect("it is taken");
    }

    eventually("the memory is given back", async || stage.proxy.resident_bytes() < 96 * MIB as u64).await;
    assert_eq!(session.value("SELECT sum(length(x)) FROM t").await, (3 * 32 * MIB).to_string());
}

#[tokio::test]
async fn texts_that_break_parsers_are_answered_by_the_server() {
    let stage = Stage::set("", &[]).await;
    let session = stage.session().await;

    // 54001: the server's own stack limit. What counts is that the proxy lives.
    for deep in [
        format!("SELECT {}1{}", "(".repeat(50_000), ")".repeat(50_000)),
        format!("SELECT 1{}", "+1".repeat(100_000)),
        format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(5_000)),
        format!("SELECT {}", "'".repeat(99_999)),
        format!("SELECT 1 {}", "/*".repeat(20_000)),
        format!("SELECT {}1", "-".repeat(2 * 10_000 + 1).replace("--", "- -")),
        format!("SELECT {}true", "NOT ".repeat(50_000)),
    ] {
        let _ = session.try_run(&deep).await;
    }

    undisturbed(&stage).await;
}

#[tokio::test]
async fn half_open_logins_are_ended_by_the_login_timeout() {
    let settings = ["cluster.limits.login_timeout = '5s'", "cluster.limits.clients = 12000"];
    let stage = Stage::set("", &settings).await;
    let before = stage.proxy.resident_bytes();
    let mut half_open = Vec::with_capacity(HALF_OPEN);
    while half_open.len() < HALF_OPEN {
        half_open.extend(join_all((0..100).map(|_| half_a_login(stage.proxy.port()))).await);
    }

    undisturbed(&stage).await;
    let grown = stage.proxy.resident_bytes().saturating_sub(before);
    assert!(grown / (HALF_OPEN as u64) < BYTES_PER_HALF_OPEN, "{grown} bytes for {HALF_OPEN}");

    let mut byte = [0];
    for stream in &mut half_open {
        let read = tokio::io::AsyncReadExt::read(stream, &mut byte);
        let ended = tokio::time::timeout(Duration::from_secs(20), read).await;
        assert!(ended.is_ok(), "a half-open login stayed");
    }
    undisturbed(&stage).await;
}

/// A client that begins to say something and says no more.
async fn half_a_login(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    stream.write_all(&[0, 0, 0]).await.expect("it reads");
    stream
}

#[tokio::test]
async fn clients_above_the_limit_are_told_so() {
    let stage = Stage::set("", &["cluster.limits.clients = 5"]).await;
    eventually("nobody is left from the start", async || stage.proxy.metric("pointsman_clients", &[]) == 0.0)
        .await;
    let mut sessions = Vec::new();
    for _ in 0..5 {
        sessions.push(stage.session().await);
    }

    let refused = crate::support::proxy::login_error(&stage.proxy.dsn(&stage.database.name)).await;

    assert_eq!(refused, "53300");
    assert_eq!(stage.proxy.metric("pointsman_errors_total", &["kind=\"too_many_clients\""]), 1.0);
    assert_eq!(sessions[4].value("SELECT 1").await, "1");
}

#[tokio::test]
async fn random_bytes_after_a_login_disturb_nobody() {
    let stage = Stage::set("", &[]).await;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let bytes = proptest::collection::vec(any::<u8>(), 1..200);
    let tagged = (proptest::sample::select(b"QPBEDCSHFfdcpX".to_vec()), bytes.clone());

    for _ in 0..100 {
        let garbage = bytes.new_tree(&mut runner).expect("no filters").current();
        let (tag, body) = tagged.new_tree(&mut runner).expect("no filters").current();
        let mut wire = stage.wire().await;
        wire.send(&Batch::new().message(tag, &body).raw(&garbage)).await;
        drop(wire);
        let mut wire = Wire::connect(stage.proxy.port()).await;
        wire.send(&Batch::new().raw(&garbage)).await;
    }

    undisturbed(&stage).await;
}

#[tokio::test]
async fn a_value_with_a_line_break_writes_no_line_of_the_log() {
    let stage = Stage::set("", &[]).await;
    let session = stage.session().await;

    session.error("SET pointsman.consistency = 'x\n2026-01-01T00:00:00Z  WARN pointsman: forged'").await;

    stage.proxy.wait_for_log("pointsman: forged").await;
    let log = stage.proxy.log();
    assert!(log.lines().all(|line| !line.starts_with("2026-01-01")), "{log}");
}
