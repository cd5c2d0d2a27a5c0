//! COPY in both directions, and both ways of failing.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, pin_mut};

use crate::support::{
    Stage, eventually,
    wire::{Batch, first_columns, tags},
};

#[tokio::test]
async fn copy_in_and_out_carry_every_row() {
    let stage = Stage::set("CREATE TABLE t (id int, word text)", &[]).await;
    let session = stage.session().await;

    let sink = session.copy_in("COPY t FROM STDIN").await.expect("COPY begins");
    pin_mut!(sink);
    for chunk in 0..100 {
        let lines: String = (0..100).map(|line| format!("{}\tword {line}\n", chunk * 100 + line)).collect();
        sink.send(Bytes::from(lines)).await.expect("the server takes it");
    }
    assert_eq!(sink.finish().await.expect("COPY ends"), 10_000);

    let rows = session.copy_out("COPY (SELECT * FROM t ORDER BY id) TO STDOUT").await.expect("COPY begins");
    let chunks: Vec<_> = rows.collect().await;
    let bytes: usize = chunks.iter().map(|chunk| chunk.as_ref().expect("it arrives").len()).sum();
    assert_eq!(chunks.len(), 10_000);
    assert_eq!(bytes, (0..10_000).map(|id| format!("{id}\tword {}\n", id % 100).len()).sum::<usize>());
}

#[tokio::test]
async fn copy_out_of_a_read_uses_a_replica() {
    let stage = Stage::set("", &[]).await;
    let mut wire = stage.wire().await;

    let answer = wire.ask(&Batch::new().query("COPY (SELECT inet_server_port()) TO STDOUT")).await;

    assert_eq!(tags(&answer), "HdcCZ");
    let port = String::from_utf8_lossy(&answer[1].body).trim().parse().expect("a port");
    assert!(stage.is_replica(port));
}

#[tokio::test]
async fn a_copy_that_the_client_fails_leaves_nothing() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let mut wire = stage.wire().await;

    wire.send(&Batch::new().query("COPY t FROM STDIN")).await;
    assert_eq!(wire.recv().await.tag, b'G');
    let answer = wire.ask(&Batch::new().copy_data("1\n").copy_fail("changed my mind")).await;

    assert_eq!((tags(&answer).as_str(), answer[0].code().as_str()), ("EZ", "57014"));
    let count = wire.ask(&Batch::new().query("SELECT count(*) FROM t")).await;
    assert_eq!(first_columns(&count), ["0"]);
}

#[tokio::test]
async fn a_copy_that_the_server_fails_swallows_the_rest_of_the_data() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let mut wire = stage.wire().await;

    // Data goes on after the faulty line, as drivers send it, before the error is read.
    let mut batch = Batch::new().query("COPY t FROM STDIN").copy_data("not a number\n");
    for _ in 0..1000 {
        batch = batch.copy_data("2\n");
    }
    let answer = wire.ask(&batch.copy_done()).await;

    assert_eq!((tags(&answer).as_str(), answer[1].code().as_str()), ("GEZ", "22P02"));
    let alive = wire.ask(&Batch::new().query("SELECT 'alive'")).await;
    assert_eq!(first_columns(&alive), ["alive"]);
}

#[tokio::test]
async fn copy_in_the_extended_protocol_waits_for_its_data() {
    let stage = Stage::set("CREATE TABLE t (x int)", &[]).await;
    let mut wire = stage.wire().await;

    wire.send(&Batch::new().run("COPY t FROM STDIN", &[]).sync()).await;
    for tag in *b"12G" {
        assert_eq!(wire.recv().await.tag, tag);
    }
    let answer = wire.ask(&Batch::new().copy_data("1\n2\n").copy_done().sync()).await;

    assert_eq!((tags(&answer).as_str(), answer[0].command().as_str()), ("CZ", "COPY 2"));
}

#[tokio::test]
async fn a_client_that_vanishes_in_mid_copy_leaves_no_rows_and_no_busy_server() {
    let stage = Stage::set("CREATE TABLE t (x int)", &["cluster.pool.size = 1"]).await;
    let mut wire = stage.wire().await;
    wire.send(&Batch::new().query("COPY t FROM STDIN").copy_data("1\n")).await;
    assert_eq!(wire.recv().await.tag, b'G');

    drop(wire);

    // The only server connection is to be had again, and clean.
    let session = stage.session().await;
    session.run("INSERT INTO t VALUES (2)").await;
    assert_eq!(session.value("SELECT string_agg(x::text, ',') FROM t").await, "2");
}

#[tokio::test]
async fn a_client_that_vanishes_in_mid_result_frees_its_server() {
    let stage = Stage::set("", &["cluster.pool.size = 1"]).await;
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%generate_series(1, 100000000)%' \
                AND state = 'active' AND pid <> pg_backend_pid()";
    let mut wire = stage.wire().await;
    wire.send(&Batch::new().query("/* pointsman: primary */ SELECT generate_series(1, 100000000)")).await;
    assert_eq!(wire.recv().await.tag, b'T');

    drop(wire);

    eventually("the server has stopped sending", async || stage.database.ask(0, busy) == "0").await;
    assert_eq!(stage.session().await.value("/* pointsman: primary */ SELECT 1").await, "1");
}

#[tokio::test]
async fn an_error_before_copy_begins_is_an_ordinary_error() {
    let stage = Stage::set("", &[]).await;
    let mut wire = stage.wire().await;

    // As libpq does: COPY data follow without waiting, and are skipped.
    let answer = wire.ask(&Batch::new().query("COPY missing FROM STDIN").copy_data("1\n").copy_done()).await;

    assert_eq!((tags(&answer).as_str(), answer[0].code().as_str()), ("EZ", "42P01"));
    assert_eq!(first_columns(&wire.ask(&Batch::new().query("SELECT 1")).await), ["1"]);
}
