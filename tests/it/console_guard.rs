//! Whatever is sent to the console's doors costs its own connection and nothing else.
//!
//! The packages behind the doors trust what a client says of lengths (pgwire panics) and read on in
//! memory that they have freed when packets come in one flight (opensrv-mysql): neither gets to see
//! such a thing.

use proptest::{prelude::*, strategy::ValueTree};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    console::{ADMIN, Console, said},
    support::{
        mysql::{BASIC, Session},
        soon,
        wire::{Batch, Wire, first_columns, startup, tags, untagged},
    },
};

/// COM_QUERY.
const QUERY: u8 = 0x03;

impl Console {
    async fn wire(&self) -> Wire {
        Wire::login(self.postgres.number(), ADMIN, "whatever").await
    }

    async fn mysql_session(&self) -> Session {
        Session::open(self.mysql.number(), ADMIN, "").await
    }

    /// Both doors are open as before, and so is the proxy's.
    async fn undisturbed(&self) {
        let psql = self.psql("SHOW VERSION");
        assert!(said(&psql).contains("pointsman"), "{}", said(&psql));
        let mysql = self.mysql(ADMIN.password, "SHOW VERSION");
        assert!(said(&mysql).contains("pointsman"), "{}", said(&mysql));
        assert_eq!(self.stage.session().await.value("SELECT 'as before'").await, "as before");
        assert!(!self.stage.proxy.log().contains("panicked"), "{}", self.stage.proxy.log());
    }
}

/// A packet of MySQL.
fn packet(sequence: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("tests send small packets").to_le_bytes();
    [&length[..3], &[sequence], payload].concat()
}

/// A COM_QUERY.
fn query(text: &str) -> Vec<u8> {
    packet(0, &[&[QUERY], text.as_bytes()].concat())
}

#[tokio::test]
async fn psqls_door_survives_what_lies_about_its_length_before_the_login() {
    let console = Console::open("", &[]).await;
    let mechanism = b"SCRAM-SHA-256\0";
    let lying = |length: i32| [&mechanism[..], &length.to_be_bytes()].concat();
    let faulty = [
        ("an empty SASL message", Batch::new().message(b'p', b"")),
        ("no mechanism", Batch::new().message(b'p', b"SCRAM")),
        ("a mechanism and no length", Batch::new().message(b'p', mechanism)),
        ("a length beyond the message", Batch::new().message(b'p', &lying(i32::MAX))),
        ("a length below all", Batch::new().message(b'p', &lying(-2))),
        ("no answer", Batch::new().message(b'p', &lying(-1))),
        ("a Query instead", Batch::new().query("SHOW NODES")),
        ("an empty Parse instead", Batch::new().message(b'P', b"")),
        ("a length below its own size", Batch::new().raw(b"p\0\0\0\x03")),
        ("a huge length", Batch::new().raw(b"p").raw(&i32::MAX.to_be_bytes()).raw(b"x")),
    ];

    for (name, batch) in faulty {
        let mut wire = Wire::connect(console.postgres.number()).await;
        wire.send(&startup(196_608, &[("user", ADMIN.name)])).await;
        assert_eq!(wire.recv().await.tag, b'R', "{name}");
        wire.send(&batch).await;
        let answer = wire.until_closed().await;
        assert!(answer.iter().all(|frame| frame.tag == b'E'), "{name}: {answer:?}");
    }
    for (name, batch) in [
        ("a length below its own size", Batch::new().raw(&3_i32.to_be_bytes())),
        ("a huge length", Batch::new().raw(&i32::MAX.to_be_bytes()).raw(b"x")),
        ("HTTP", Batch::new().raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")),
        ("an unterminated option", untagged(&[&196_608_i32.to_be_bytes()[..], b"user\0root"].concat())),
        ("a TLS hello", Batch::new().raw(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3])),
    ] {
        let mut wire = Wire::connect(console.postgres.number()).await;
        wire.send(&batch).await;
        let answer = wire.until_closed().await;
        assert!(answer.iter().all(|frame| frame.tag == b'E'), "{name}: {answer:?}");
    }
    console.undisturbed().await;
}

#[tokio::test]
async fn psqls_door_survives_faulty_messages() {
    let console = Console::open("", &[]).await;
    let formats = b"\0\0\0\0\0\0\0\x02\0\0\0\0";
    let faulty = [
        ("an unknown message", Batch::new().message(b'?', b"what")),
        ("a length below its own size", Batch::new().raw(b"Q").raw(&3_i32.to_be_bytes())),
        ("a huge length", Batch::new().raw(b"Q").raw(&i32::MAX.to_be_bytes()).raw(b"SHOW")),
        ("a Query without its end", Batch::new().message(b'Q', b"SHOW NODES").query("SHOW NODES")),
        ("a Query with something behind", Batch::new().message(b'Q', b"SHOW NODES\0SHUTDOWN\0")),
        ("a Query of no text", Batch::new().message(b'Q', b"\xff\xfe\0")),
        ("an empty Parse", Batch::new().message(b'P', b"").sync()),
        ("a Parse that promises more types", Batch::new().message(b'P', b"\0SHOW NODES\0\x7f\xff").sync()),
        ("an empty Bind", Batch::new().message(b'B', b"").sync()),
        ("a Bind that promises more formats", Batch::new().message(b'B', b"\0\0\x7f\xff").sync()),
        ("a Bind that promises more parameters", Batch::new().message(b'B', b"\0\0\0\0\x7f\xff").sync()),
        ("a Bind with a lying length", Batch::new().message(b'B', b"\0\0\0\0\0\x01\x7f\xff\xff\xff").sync()),
        (
            "a Bind of too few formats",
            Batch::new()
                .parse("", "SHOW NODES")
                .message(b'B', formats)
                .describe_portal("")
                .execute("", 0)
                .sync(),
        ),
        ("a Describe of no kind", Batch::new().message(b'D', b"X\0").sync()),
        ("an empty Describe", Batch::new().message(b'D', b"").sync()),
        ("an Execute without its count", Batch::new().message(b'E', b"\0").sync()),
        ("a Close of nothing", Batch::new().message(b'C', b"").sync()),
        ("a function call", Batch::new().message(b'F', b"\0")),
        ("a password", Batch::new().message(b'p', b"open-sesame\0")),
        ("rows for nobody", Batch::new().copy_data("1").copy_done()),
    ];

    for (name, batch) in faulty {
        let mut wire = console.wire().await;
        wire.send(&batch).await;
        let frame = loop {
            match wire.next().await {
                Ok(frame) if matches!(frame.tag, b'1' | b'2' | b'T') => {}
                other => break other,
            }
        };
        assert_eq!(frame.as_ref().map(|frame| frame.tag).ok(), Some(b'E'), "{name}: {frame:?}");
        assert_eq!(frame.expect("it is an error").code(), "08P01", "{name}");
    }
    console.undisturbed().await;
}

#[tokio::test]
async fn psqls_door_answers_pipelines_and_pieces_whole() {
    let console = Console::open("", &[]).await;
    let mut wire = console.wire().await;

    let pipeline = (0..20).fold(Batch::new(), |batch, _| batch.query("SHOW VERSION"));
    wire.send(&pipeline).await;
    for _ in 0..20 {
        let answer = wire.until_ready().await;
        assert_eq!(tags(&answer), "TDCZ");
        assert!(first_columns(&answer)[0].starts_with("pointsman "));
    }
    let long = "x".repeat(8_000);
    let mixed = Batch::new()
        .parse("", "")
        .bind("", "", &[])
        .execute("", 0)
        .sync()
        .run("SHOW VERSION", &[&long])
        .sync()
        .query("NONSENSE")
        .query(";");
    for chunk in mixed.bytes().chunks(97) {
        wire.send(&Batch::new().raw(chunk)).await;
    }

    assert_eq!(tags(&wire.until_ready().await), "12IZ", "an empty statement");
    assert_eq!(tags(&wire.until_ready().await), "12DCZ", "a long parameter nobody asked for");
    assert_eq!(tags(&wire.until_ready().await), "EZ");
    assert_eq!(tags(&wire.until_ready().await), "IZ");
    console.undisturbed().await;
}

#[tokio::test]
async fn mysqls_door_answers_pipelined_packets_and_pieces_one_by_one() {
    let console = Console::open("", &[]).await;
    let mut session = console.mysql_session().await;

    // In one write, so that they arrive in one read: what opensrv-mysql must not see.
    let pipeline: Vec<u8> = (0..200).flat_map(|turn| query(&format!("SELECT {turn}"))).collect();
    session.write(&pipeline).await;
    for turn in 0..200 {
        let answer = soon("an answer", session.answer()).await.expect("it answers");
        assert_eq!(answer.value(), turn.to_string());
    }
    let pieces = [query("SHOW VERSION"), query("NONSENSE"), query("SELECT 7")].concat();
    for byte in pieces.chunks(1) {
        session.write(byte).await;
    }

    let version = soon("an answer", session.answer()).await.expect("it answers").value();
    assert!(version.starts_with("pointsman "), "{version}");
    assert_eq!(soon("an answer", session.answer()).await.map_err(|error| error.errno), Err(1064));
    assert_eq!(soon("an answer", session.answer()).await.expect("it answers").value(), "7");
    console.undisturbed().await;
}

#[tokio::test]
async fn mysqls_door_closes_on_what_is_not_for_it() {
    let console = Console::open("", &[]).await;
    let faulty = [
        ("an empty packet", packet(0, b"")),
        ("a packet too long", [&[0xff, 0xff, 0xff, 0][..], b"SELECT"].concat()),
        // opensrv-mysql says OK to these.
        ("COM_CHANGE_USER", packet(0, b"\x11root\0\0\0")),
        ("COM_STMT_EXECUTE", packet(0, b"\x17\x01\0\0\0\0\x01\0\0\0\0\x01\x0f\xff\xff")),
        ("COM_STMT_SEND_LONG_DATA", packet(0, b"\x18\x01\0\0\0\0\0xxx")),
        ("COM_FIELD_LIST", packet(0, b"\x04t\0")),
        ("COM_BINLOG_DUMP", packet(0, b"\x12\0\0\0\0\0\0\x01\0\0\0")),
        ("an unknown command", packet(0, b"\xee")),
    ];

    for (name, bytes) in faulty {
        let mut session = console.mysql_session().await;
        session.write(&[&bytes[..], &query("SHOW NODES")].concat()).await;
        let answer = soon(name, session.answer()).await;
        assert_eq!(answer.map_err(|error| error.errno), Err(2013), "{name}");
    }
    // Whoever is not in gets nothing but the door's own words.
    for (name, bytes) in [
        ("a command instead of a login", query("SHOW NODES")),
        ("an empty login", packet(1, b"")),
        ("a login that ends early", packet(1, b"\x85\xa6\x3f")),
        ("a login of no end", packet(1, &[0xff; 600])),
        ("a command behind a wrong login", [packet(1, &[0x00; 64]), query("SHOW NODES")].concat()),
    ] {
        let stream = TcpStream::connect(("127.0.0.1", console.mysql.number())).await.expect("it listens");
        let mut session = Session::of(stream, BASIC);
        soon("a greeting", session.receive()).await.expect("it greets");
        session.write(&bytes).await;
        let answer = soon(name, async {
            loop {
                match session.receive().await {
                    Ok((_, payload)) => assert_ne!(payload.first(), Some(&0), "{name}: an OK"),
                    Err(error) => break error.errno,
                }
            }
        })
        .await;
        assert!([1045, 1043, 2013].contains(&answer), "{name}: {answer}");
    }
    console.undisturbed().await;
}

#[tokio::test]
async fn random_bytes_at_both_doors_disturb_nobody() {
    let console = Console::open("", &[]).await;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let bytes = proptest::collection::vec(any::<u8>(), 1..300);
    let tagged = (proptest::sample::select(b"QPBEDCSHFfdcpX".to_vec()), bytes.clone());

    for turn in 0..60 {
        let garbage = bytes.new_tree(&mut runner).expect("no filters").current();
        let (tag, body) = tagged.new_tree(&mut runner).expect("no filters").current();
        for port in [console.postgres.number(), console.mysql.number()] {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
            // It may have been closed by then.
            let _ = stream.write_all(&garbage).await;
        }
        let mut wire = Wire::connect(console.postgres.number()).await;
        wire.send(&startup(196_608, &[("user", ADMIN.name)])).await;
        wire.send(&Batch::new().message(b'p', &body).raw(&garbage)).await;
        // A login costs thousands of hashes: not every turn has one.
        if turn % 3 == 0 {
            let mut wire = console.wire().await;
            wire.send(&Batch::new().message(tag, &body).raw(&garbage)).await;
            let mut session = console.mysql_session().await;
            session.write(&packet(0, &body)).await;
            session.write(&garbage).await;
        }
    }

    console.undisturbed().await;
}
