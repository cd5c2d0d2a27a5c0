//! Startup packets that no client sends.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::door::{Users, listen, say};
use crate::postgres::{
    login::{
        Accepted, LoginFailure,
        startup::{ErrorForm, Fault, Negotiate, Request, parse},
    },
    message::MAX_STARTUP_PACKET,
};

fn packet(version: u32, pairs: &[&str]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for text in pairs {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    body
}

fn with_length(body: &[u8]) -> Vec<u8> {
    let mut packet = (body.len() as u32 + 4).to_be_bytes().to_vec();
    packet.extend_from_slice(body);
    packet
}

const V3_0: u32 = 3 << 16;

#[test]
fn versions_and_options_are_negotiated() {
    // Asked for, options, spoken, announced.
    let table: [(u32, &[&str], u16, Option<u32>); 7] = [
        (V3_0, &[], 0, None),
        (V3_0 + 1, &[], 0, Some(V3_0)),
        (V3_0 + 2, &[], 2, None),
        (V3_0 + 3, &[], 2, Some(V3_0 + 2)),
        (V3_0 + 9999, &[], 2, Some(V3_0 + 2)),
        (V3_0, &["_pq_.x"], 0, Some(V3_0)),
        (V3_0 + 2, &["_pq_.x", "_pq_.y"], 2, Some(V3_0 + 2)),
    ];
    for (version, options, minor, announced) in table {
        let mut pairs = vec!["user", "u"];
        options.iter().for_each(|option| pairs.extend([*option, "on"]));
        let Ok(Request::Startup(packet)) = parse(&packet(version, &pairs)) else { panic!("{version:x}") };
        assert_eq!((packet.minor, packet.parameters.len()), (minor, 0), "{version:x}");
        let unknown_options = options.iter().map(|option| (*option).to_owned()).collect();
        assert_eq!(packet.negotiate, announced.map(|version| Negotiate { version, unknown_options }));
    }
}

#[test]
fn parameters_keep_their_order_and_the_database_defaults_to_the_user() {
    let body =
        packet(V3_0, &["b", "1", "user", "u", "options", "-c a=b  -c c=\\ d", "a", "", "replication", "off"]);
    let Ok(Request::Startup(packet)) = parse(&body) else { panic!() };
    assert_eq!((packet.user.as_str(), packet.database.as_str()), ("u", "u"));
    let expected = [("b", "1"), ("options", "-c a=b  -c c=\\ d"), ("a", "")];
    assert_eq!(packet.parameters, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn what_the_server_refuses_is_refused_with_its_sqlstate() {
    let mut no_terminator = packet(V3_0, &["user", "u"]);
    no_terminator.pop();
    let mut beyond_terminator = packet(V3_0, &["user", "u"]);
    beyond_terminator.extend(b"more");
    let mut not_utf8 = packet(V3_0, &["user", "u"]);
    not_utf8[9] = 0xff;
    let table = [
        (no_terminator, "08P01"),
        (beyond_terminator, "08P01"),
        (packet(V3_0, &["user"]), "08P01"),
        (packet(V3_0, &["user", "u", "database"]), "08P01"),
        (V3_0.to_be_bytes().to_vec(), "08P01"),
        (packet(V3_0, &[]), "28000"),
        (packet(V3_0, &["user", ""]), "28000"),
        (packet(V3_0, &["database", "d"]), "28000"),
        (not_utf8, "22021"),
        (packet(V3_0, &["user", "u", "replication", "TRUE"]), "0A000"),
        (packet(V3_0, &["user", "u", "replication", "database"]), "0A000"),
        (packet(V3_0, &["user", "u", "replication", "maybe"]), "22023"),
        (packet(2 << 16, &["user", "u"]), "0A000"),
        (packet(4 << 16, &["user", "u"]), "0A000"),
        (vec![0, 0, 0, 0], "0A000"),
    ];
    for (body, expected) in table {
        match parse(&body) {
            Err(Fault::Refused { sqlstate, form, .. }) => {
                assert_eq!(sqlstate, expected, "{body:?}");
                let old = body[1] < 3;
                assert_eq!(form, if old { ErrorForm::Text } else { ErrorForm::Fields }, "{body:?}");
            }
            other => panic!("{body:?}: {other:?}"),
        }
    }
}

#[test]
fn cancel_keys_have_4_to_256_bytes() {
    for (length, good) in [(0, false), (3, false), (4, true), (32, true), (256, true), (257, false)] {
        let mut body = 80_877_102_u32.to_be_bytes().to_vec();
        body.extend(7_u32.to_be_bytes());
        body.extend(vec![1; length]);
        assert_eq!(matches!(parse(&body), Ok(Request::Cancel { process_id: 7, .. })), good, "{length}");
    }
    assert!(matches!(parse(&80_877_102_u32.to_be_bytes()), Err(Fault::Garbage(_))));
    assert!(matches!(parse(&[1, 2, 3]), Err(Fault::Garbage(_))));
}

#[test]
fn random_bodies_never_panic() {
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..20_000 {
        let mut body = vec![0; random.random_range(0..200)];
        random.fill(&mut body[..]);
        if round % 2 == 0 && body.len() >= 4 {
            body[..4].copy_from_slice(&V3_0.to_be_bytes());
        }
        let _ = parse(&body);
    }
}

#[tokio::test]
async fn lying_lengths_and_garbage_are_closed_without_a_word() {
    let (address, mut results) = listen(Users::new([("app", "secret")])).await;
    let startup = with_length(&packet(V3_0, &["user", "app"]));
    let table: [&[u8]; 10] = [
        b"",
        b"\0",
        b"\0\0\0\x07\0\0\0",
        b"\0\0\0\0\0\0\0\0",
        b"\xff\xff\xff\xff\0\0\0\0",
        b"\x7f\xff\xff\xff\0\0\0\0",
        &(MAX_STARTUP_PACKET as u32 + 5).to_be_bytes(),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        &startup[..startup.len() - 3],
    ];
    for bytes in table {
        assert_eq!(say(address, bytes).await, b"", "{bytes:?}");
        let failure = results.recv().await.unwrap().expect_err("nobody logged in");
        assert!(matches!(failure, LoginFailure::Closed | LoginFailure::Garbage(_)), "{bytes:?}: {failure}");
    }
}

#[tokio::test]
async fn the_longest_startup_packet_is_taken_and_no_longer_one() {
    let (address, mut results) = listen(Users::new([("app", "secret")])).await;
    let empty = packet(V3_0, &["user", "app", "application_name", ""]).len();
    for (length, taken) in [(MAX_STARTUP_PACKET, true), (MAX_STARTUP_PACKET + 1, false)] {
        let name = "x".repeat(length - empty);
        let body = packet(V3_0, &["user", "app", "application_name", &name]);
        assert_eq!(body.len(), length);
        let answer = say(address, &with_length(&body)).await;
        assert_eq!(answer.first() == Some(&b'R'), taken, "{length}");
        results.recv().await.unwrap().expect_err("it stops there");
    }
}

#[tokio::test]
async fn unencrypted_bytes_behind_a_negotiation_request_end_the_connection() {
    let (address, mut results) = listen(Users::new([("app", "secret")])).await;
    for code in [80_877_103_u32, 80_877_104] {
        let mut bytes = with_length(&code.to_be_bytes());
        bytes.extend(with_length(&packet(V3_0, &["user", "app"])));
        let answer = say(address, &bytes).await;
        assert_eq!(answer.first(), Some(&b'E'));
        let failure = results.recv().await.unwrap().expect_err("nobody logged in");
        assert!(matches!(failure, LoginFailure::Refused { sqlstate: "08P01", .. }), "{failure}");
    }
}

#[tokio::test]
async fn a_password_message_that_is_none_ends_the_login() {
    let (address, mut results) = listen(Users::new([("app", "secret")])).await;
    let initial = |mechanism: &str, length: i32, data: &[u8]| {
        let mut body = mechanism.as_bytes().to_vec();
        body.push(0);
        body.extend(length.to_be_bytes());
        body.extend(data);
        let mut message = vec![b'p'];
        message.extend(with_length(&body));
        message
    };
    let first = b"n,,n=,r=abc";
    let table = [
        (initial("SCRAM-SHA-256", -1, b""), true),
        (initial("SCRAM-SHA-256", 5, first), true),
        (initial("SCRAM-SHA-256", 0, b""), true),
        (initial("SCRAM-SHA-256-PLUS", 11, first), true),
        (initial("SCRAM-SHA-1", 11, first), true),
        (initial("SCRAM-SHA-256", 11, b"p,,n=,r=abc"), true),
        (initial("SCRAM-SHA-256", 11, b"n,a=x,n=,r="), true),
        (initial("SCRAM-SHA-256", 4, b"\xff\xff\xff\xff"), true),
        (b"Q\0\0\0\x0dselect 1\0".to_vec(), true),
        (b"p\0\0\0\x04".to_vec(), true),
        (b"p\0\0\0\x03".to_vec(), false),
        (b"p\x7f\xff\xff\xff".to_vec(), false),
        (b"X\0\0\0\x04".to_vec(), true),
    ];
    for (message, told) in table {
        let mut bytes = with_length(&packet(V3_0, &["user", "app"]));
        bytes.extend(&message);
        let answer = say(address, &bytes).await;
        let length = 1 + u32::from_be_bytes(answer[1..5].try_into().unwrap()) as usize;
        assert_eq!(answer.get(length) == Some(&b'E'), told, "{message:?}");
        results.recv().await.unwrap().expect_err("nobody logged in");
    }
}

#[tokio::test]
async fn random_bytes_on_the_wire_never_log_anybody_in() {
    let (address, mut results) = listen(Users::new([("app", "secret")])).await;
    let mut random = StdRng::seed_from_u64(11);
    for _ in 0..200 {
        let mut bytes = with_length(&packet(V3_0, &["user", "app"]));
        let mut tail = vec![0; random.random_range(0..300)];
        random.fill(&mut tail[..]);
        match random.random_range(0..3) {
            0 => bytes = tail,
            1 => bytes.extend(tail),
            _ => {
                let at = random.random_range(4..bytes.len());
                bytes[at] = random.random();
            }
        }
        say(address, &bytes).await;
        let result = results.recv().await.unwrap();
        assert!(!matches!(result, Ok(Accepted::Login(_))), "{bytes:?}");
    }
}
