//! The HTTP door: health, the API and who may see it.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Instant,
};

use pointsman::{
    admin::console::command::Show,
    demo::{
        Port,
        servers::{APP, Stop},
    },
};
use serde_json::Value;

use crate::support::{PATIENCE, Proxy, Stage, cluster, eventually};

const OPENAPI: &str = include_str!("../../src/admin/http/openapi.json");

/// Status and body of a page.
fn get(port: u16, path: &str, login: Option<&str>) -> (u16, String) {
    // The doors of the control plane open after those for clients.
    let deadline = Instant::now() + PATIENCE;
    let mut stream = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "the door is closed: {error}"),
        }
    };
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero");
    let login = login.map(|encoded| format!("Authorization: Basic {encoded}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{login}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers in UTF-8");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// Whether `value` is what the schema says. Of JSON Schema, what the file uses.
fn check(value: &Value, schema: &Value, at: &str) {
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        _ => panic!("{at}: a schema without type"),
    };
    let is = |kind: &&str| match *kind {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{at}: unknown type {other}"),
    };
    assert!(types.iter().any(is), "{at}: {value} is not {types:?}");
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        check(item, &schema["items"], &format!("{at}[{index}]"));
    }
    if let Some(object) = value.as_object() {
        for name in schema["required"].as_array().expect("it says what is required") {
            assert!(object.contains_key(name.as_str().expect("a name")), "{at}: no {name}");
        }
        for (name, value) in object {
            let schema = &schema["properties"][name];
            assert!(!schema.is_null(), "{at}: {name} is not described");
            check(value, schema, &format!("{at}.{name}"));
        }
    }
}

#[tokio::test]
async fn every_answer_of_the_api_is_as_described() {
    let stage = Stage::set(
        "CREATE TABLE t (x int)",
        &["admin.users = [{ name = 'root', password = 'hush-hush' }]", "admin.recent_statements = 10"],
    )
    .await;
    let session = stage.session().await;
    session.run("INSERT INTO t VALUES (1)").await;
    let described: Value = serde_json::from_str(OPENAPI).expect("it is JSON");
    assert_eq!(stage.proxy.http("/api/openapi.json"), OPENAPI);
    for (_, what, _) in Show::ALL {
        let path = format!("/api/v1/{}", what.to_lowercase());
        assert!(described["paths"][&path].is_object(), "{path} is not described");
    }

    for (path, item) in described["paths"].as_object().expect("it has paths") {
        let schema = &item["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        if schema.is_null() {
            continue;
        }
        let body = stage.proxy.http(path);
        assert!(!body.contains("hush-hush") && !body.contains(APP.password), "{path} shows a secret");
        let answer: Value =
            serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"));
        let empty = answer.as_array().is_some_and(Vec::is_empty);
        assert!(!empty, "{path} shows nothing");
        check(&answer, schema, path);
    }
}

#[tokio::test]
async fn ready_means_a_primary_or_reads_where_they_are_enough() {
    let free = Port::claim().expect("a port");
    let nowhere = [format!("127.0.0.1:{}", free.number())];
    let http = Port::claim().expect("a port");
    let door = format!("admin.http = '127.0.0.1:{}'", http.number());
    let _proxy = Proxy::start_unready(&nowhere, &[&door]);
    let (status, why) = get(http.number(), "/readyz", None);
    assert_eq!((status, why.contains("no primary")), (503, true), "{why}");
    assert_eq!(get(http.number(), "/healthz", None).0, 200);

    let stage = Stage::set("", &[]).await;
    assert_eq!(stage.proxy.http("/readyz"), "ready\n");
    let replicas = [stage.cluster.node(1).address()];
    let http = Port::claim().expect("a port");
    let door = format!("admin.http = '127.0.0.1:{}'", http.number());
    let eventual = "cluster.routing.consistency = 'eventual'";
    let _only_a_replica = Proxy::start_unready(&replicas, &[&door, eventual]);
    eventually("reads are enough", async || get(http.number(), "/readyz?reads", None).0 == 200).await;
    assert_eq!(get(http.number(), "/readyz", None).0, 503);
}

#[tokio::test]
async fn ready_for_reads_means_that_they_are_answered() {
    let cluster = cluster::own();
    let proxy = Proxy::start(&cluster, &[]).await;
    let (knows, http) = (proxy.http_port(), Port::claim().expect("a port"));
    cluster.stop(0, Stop::Kill).expect("it dies");
    eventually("the primary is missed", async || get(knows, "/readyz", None).0 == 503).await;

    // How far the replicas were behind is known here.
    assert_eq!(get(knows, "/readyz?reads", None).0, 200);
    assert_eq!(proxy.session("postgres").await.value("SELECT 1").await, "1");
    // And not here, so that reads wait for a primary.
    let door = format!("admin.http = '127.0.0.1:{}'", http.number());
    let late = Proxy::start_unready(&cluster.addresses(), &[&door, "cluster.failover.hold = '100ms'"]);
    late.wait_for_log("role replica").await;
    eventually("it has asked everybody", async || late.log().contains("is down")).await;
    assert_eq!(get(http.number(), "/readyz?reads", None).0, 503);
    assert_eq!(late.session("postgres").await.error("SELECT 1").await, "57P03");
}

#[tokio::test]
async fn off_loopback_the_api_asks_for_a_login() {
    let http = Port::claim().expect("a port");
    let door = format!("admin.http = '0.0.0.0:{}'", http.number());
    let _stage = Stage::set("", &[&door, "admin.users = [{ name = 'root', password = 'hush-hush' }]"]).await;
    let port = http.number();

    for path in ["/", "/api/v1/nodes", "/api/v1/stream", "/api/openapi.json"] {
        assert_eq!(get(port, path, None).0, 401, "{path}");
        // root:wrong, nobody:hush-hush
        for login in ["cm9vdDp3cm9uZw==", "bm9ib2R5Omh1c2gtaHVzaA==", "====", ""] {
            assert_eq!(get(port, path, Some(login)).0, 401, "{path}");
        }
    }
    assert_eq!(get(port, "/api/v1/nodes", Some("cm9vdDpodXNoLWh1c2g=")).0, 200);
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(get(port, path, None).0, 200, "{path} is for programs");
    }
    assert_eq!(get(port, "/api/v1/secrets", Some("cm9vdDpodXNoLWh1c2g=")).0, 404);
}

#[tokio::test]
async fn whoever_holds_connections_open_keeps_nobody_out_for_long() {
    let stage = Stage::set("", &[]).await;
    let port = stage.proxy.http_port();
    let crowd: Vec<TcpStream> =
        (0..400).filter_map(|_| TcpStream::connect(("127.0.0.1", port)).ok()).collect();
    let ended = |stream: &TcpStream| {
        stream.set_nonblocking(true).expect("it is a socket");
        // Somebody who is waited for has nothing to read.
        !matches!(stream.peek(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    };

    eventually("those beyond the bound are closed", async || {
        crowd.iter().filter(|one| ended(one)).count() > 100
    })
    .await;
    assert_eq!(stage.session().await.value("SELECT 1").await, "1");
    eventually("so are those who say nothing", async || crowd.iter().all(ended)).await;

    assert_eq!(get(port, "/healthz", None).0, 200);
}
