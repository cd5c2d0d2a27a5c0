//! Servers that end a connection at the most awkward moment: when the client has its answer, and
//! the answer to a Sync of the proxy's own is still due.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::Arc,
    thread,
};

use parking_lot::Mutex;
use pointsman::demo::{
    Port,
    servers::{APP, PgCluster, PgOptions},
};

use crate::support::{
    Database, Proxy, Session, cluster, eventually,
    wire::{Batch, Frame, Wire, first_columns, tags},
};

/// What comes behind the ReadyForQuery of a command.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Silence,
    /// As `pg_terminate_backend()` has it.
    Words,
}

/// Passes a server's connections on, and ends one behind the answer to a command.
struct Cutter {
    port: Port,
    /// The command's tag and how the connection ends.
    armed: Arc<Mutex<Option<(&'static str, Ending)>>>,
}

impl Cutter {
    /// Ends with the process: the listener is a thread's.
    fn to(target: String) -> Self {
        let port = Port::claim().expect("ports are to be had");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())).expect("it is claimed");
        let armed = Arc::new(Mutex::new(None));
        let shared = armed.clone();
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let Ok(server) = TcpStream::connect(&target) else { continue };
                let (Ok(mut up), Ok(mut to_server)) = (client.try_clone(), server.try_clone()) else {
                    continue;
                };
                thread::spawn(move || {
                    let _ = std::io::copy(&mut up, &mut to_server);
                    let _ = to_server.shutdown(Shutdown::Write);
                });
                let shared = shared.clone();
                thread::spawn(move || pass_answers(server, client, &shared));
            }
        });
        Self { port, armed }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }
}

/// Message by message, until the one it has to end behind.
fn pass_answers(mut server: TcpStream, mut client: TcpStream, armed: &Mutex<Option<(&'static str, Ending)>>) {
    let _ = client.set_nodelay(true);
    let mut ends = None;
    while let Some(mut message) = read_message(&mut server) {
        if message[0] == b'C' {
            let mut armed = armed.lock();
            if armed.is_some_and(|(command, _)| message[5..].starts_with(command.as_bytes())) {
                ends = armed.take().map(|(_, ending)| ending);
            }
        }
        let over = message[0] == b'Z' && ends.is_some();
        if over && matches!(ends, Some(Ending::Words)) {
            // At once: what comes when the next statement has been sent is that one's answer.
            message.extend(last_words());
        }
        if client.write_all(&message).is_err() || over {
            break;
        }
    }
    for stream in [&server, &client] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn last_words() -> Vec<u8> {
    let fields = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0";
    let length = i32::try_from(fields.len() + 4).expect("it is short");
    [&b"E"[..], &length.to_be_bytes(), fields].concat()
}

fn read_message(server: &mut TcpStream) -> Option<Vec<u8>> {
    let mut message = vec![0; 5];
    server.read_exact(&mut message).ok()?;
    let length = i32::from_be_bytes([message[1], message[2], message[3], message[4]]);
    message.resize(usize::try_from(length).ok()? + 1, 0);
    server.read_exact(&mut message[5..]).ok()?;
    Some(message)
}

/// One server behind a cutter.
async fn behind_a_cutter() -> (PgCluster, String, Cutter, Proxy) {
    let cluster = cluster::own_with(PgOptions { replicas: 0, ..PgOptions::default() });
    let name = Database::with(&cluster, "CREATE TABLE t (x int)").name;
    let cutter = Cutter::to(cluster.node(0).address());
    let settings = ["cluster.tls.server = { mode = 'disable' }", "cluster.monitor.catalog_refresh = '200ms'"];
    let proxy = Proxy::start_unready(&[cutter.address()], &settings);
    drop(Session::retry(&proxy.dsn(&name)).await);
    let pins = || proxy.metric("pointsman_pins_total", &["reason=\"function\""]);
    eventually("the catalog says that the table has no triggers", async || {
        let before = pins();
        let session = proxy.session(&name).await;
        session.run("DELETE FROM t").await;
        // What comes behind it is answered when it has been counted.
        session.run("SELECT 1").await;
        pins() == before
    })
    .await;
    (cluster, name, cutter, proxy)
}

async fn ask(wire: &mut Wire, sql: &str) -> Vec<Frame> {
    wire.ask(&Batch::new().query(sql)).await
}

/// The next answers are to the next questions.
async fn is_in_step(wire: &mut Wire) {
    for number in ["42", "43"] {
        let answer = ask(wire, &format!("SELECT {number}")).await;
        assert_eq!(first_columns(&answer), [number], "{answer:?}");
    }
}

#[tokio::test]
async fn a_connection_that_ends_behind_the_answer_to_a_commit_leaves_no_second_answer() {
    let (cluster, database, cutter, proxy) = behind_a_cutter().await;
    for (x, ending) in [(1, Ending::Silence), (2, Ending::Words)] {
        let mut wire = Wire::login(proxy.port(), APP, &database).await;
        ask(&mut wire, "BEGIN").await;
        ask(&mut wire, &format!("INSERT INTO t VALUES ({x})")).await;

        // The id of its transaction is asked for ahead of it.
        *cutter.armed.lock() = Some(("COMMIT", ending));
        let answer = ask(&mut wire, "COMMIT").await;

        assert_eq!(tags(&answer), "CZ", "{ending:?}");
        assert!(cutter.armed.lock().is_none(), "nothing was cut");
        is_in_step(&mut wire).await;
        let rows = format!("SELECT count(*) FROM t WHERE x = {x}");
        assert_eq!(cluster.node(0).sql(&database, &rows).expect("it answers"), "1");
    }
}

#[tokio::test]
async fn a_connection_that_ends_behind_an_answer_ends_its_transaction_with_the_next_statement() {
    let (cluster, database, cutter, proxy) = behind_a_cutter().await;
    for (ending, codes) in [(Ending::Silence, ["08006", "08007"]), (Ending::Words, ["57P01", "57P01"])] {
        let mut wire = Wire::login(proxy.port(), APP, &database).await;
        ask(&mut wire, "BEGIN").await;

        // BEGIN goes ahead of it.
        *cutter.armed.lock() = Some(("INSERT", ending));
        let answer = ask(&mut wire, "INSERT INTO t VALUES (1)").await;
        assert_eq!(tags(&answer), "CZ", "{ending:?}");
        assert_eq!(answer[1].body[0], b'T');

        let next = ask(&mut wire, "INSERT INTO t VALUES (2)").await;
        assert_eq!(tags(&next), "EZ", "{ending:?}");
        assert!(codes.contains(&next[0].code().as_str()), "{ending:?}: {}", next[0].code());
        assert_eq!(next[1].body[0], b'E');
        let end = ask(&mut wire, "ROLLBACK").await;
        assert_eq!((tags(&end), end[1].body[0]), ("CZ".to_owned(), b'I'));
        is_in_step(&mut wire).await;
    }
    assert_eq!(cluster.node(0).sql(&database, "SELECT count(*) FROM t").expect("it answers"), "0");
}

#[tokio::test]
async fn a_connection_that_ends_behind_an_answer_with_settings_ahead_leaves_no_second_answer() {
    let (cluster, database, cutter, proxy) = behind_a_cutter().await;
    for ending in [Ending::Silence, Ending::Words] {
        let mut wire = Wire::login(proxy.port(), APP, &database).await;
        ask(&mut wire, &format!("SET application_name = 'of {ending:?}'")).await;
        // A connection of another session's: the setting goes ahead.
        *cutter.armed.lock() = Some(("INSERT", ending));
        let answer = ask(&mut wire, "INSERT INTO t VALUES (1)").await;

        assert!(tags(&answer).ends_with("CZ"), "{ending:?}: {}", tags(&answer));
        is_in_step(&mut wire).await;
    }
    assert_eq!(cluster.node(0).sql(&database, "SELECT count(*) FROM t").expect("it answers"), "2");
}
