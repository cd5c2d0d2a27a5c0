//! The compressed protocol on the client's side: by the servers' own clients, and by hand.

use std::{
    io::{Read, Write},
    process::Stdio,
    time::Duration,
};

use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use pointsman::{
    demo::servers::APP,
    mysql::{
        command::code,
        packet::{self, capability as can},
    },
};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    both_makes,
    support::{
        mysql::{BASIC, Make, Refused, Session, Stage, create_schema, proxy},
        soon,
    },
};

/// What the client of a make is told for each algorithm.
fn options(make: Make) -> &'static [&'static [&'static str]] {
    match make {
        Make::MariaDb => &[&["--compress"]],
        Make::Mysql9 => &[
            &["--compression-algorithms=zlib"],
            &["--compression-algorithms=zstd", "--zstd-compression-level=1"],
            &["--compression-algorithms=zstd", "--zstd-compression-level=22"],
        ],
    }
}

/// Runs a script by the make's own client, and returns what it prints.
fn client(make: Make, port: u16, schema: &str, options: &[&str], sql: &str) -> String {
    let mut command = make.flavour().client().expect("it is installed");
    command
        .args(["--protocol=tcp", "-h127.0.0.1", "-N", "-B", "--raw", "--max-allowed-packet=64M"])
        .args([format!("-P{port}"), format!("-u{}", APP.name), format!("-p{}", APP.password)])
        .args(options)
        .arg(schema)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut client = command.spawn().expect("it starts");
    let (mut input, sql) = (client.stdin.take().expect("it is piped"), sql.to_owned());
    let writer = std::thread::spawn(move || input.write_all(sql.as_bytes()));
    let output = client.wait_with_output().expect("it ends");
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{options:?}: {complaint}");
    writer.join().expect("it does not panic").expect("it reads all");
    String::from_utf8(output.stdout).expect("it prints text")
}

/// Letters that hardly get shorter.
fn noise(length: usize) -> String {
    let mut state = 88_172_645_463_325_252_u64;
    let mut out = String::with_capacity(length + 16);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.push_str(&format!("{state:016x}"));
    }
    out.truncate(length);
    out
}

both_makes!(the_servers_own_clients_notice_nothing, packets_over_sixteen_megabytes_go_through);

async fn the_servers_own_clients_notice_nothing(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (id INT PRIMARY KEY, word TEXT)", &[]).await;
    let long = noise(60_000);
    for options in options(make) {
        let script = format!(
            "SELECT 1; SELECT @@port; SELECT REPEAT('abc', 40000); DELETE FROM t;
             INSERT INTO t VALUES (1, '{long}'); SELECT word FROM t; SELECT 'the last';
             SELECT a.n FROM (SELECT 1 AS n UNION SELECT 2 UNION SELECT 3) AS a ORDER BY 1"
        );

        let printed = client(make, stage.proxy.port(), &stage.schema, options, &script);

        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(lines.len(), 8, "{options:?}: {} bytes", printed.len());
        assert!(stage.is_replica(lines[1].parse().expect("a port")), "{options:?}: {}", lines[1]);
        assert_eq!(lines[2], "abc".repeat(40_000));
        assert_eq!([&[lines[0], lines[3]], &lines[4..]].concat(), ["1", &long, "the last", "1", "2", "3"]);
    }
}

async fn packets_over_sixteen_megabytes_go_through(make: Make) {
    let cluster = make.own_with(&["--max-allowed-packet=64M"]);
    let schema = create_schema(&cluster, "CREATE TABLE big (id INT PRIMARY KEY, data LONGTEXT)");
    let mut proxy = proxy(&cluster, &[]).await;
    proxy.let_live_for(Duration::from_secs(900));
    let data = noise(0x110_0000);
    let sum = hex::encode(Sha256::digest(&data));
    let compressed: &[&str] = match make {
        Make::MariaDb => &["--compress"],
        Make::Mysql9 => &["--compression-algorithms=zstd", "--zstd-compression-level=1"],
    };
    for options in [&[], compressed] {
        let script = format!(
            "DELETE FROM big; INSERT INTO big VALUES (1, '{data}'); SELECT SHA2(data, 256) FROM big; SELECT data FROM big"
        );

        let printed = client(make, proxy.port(), &schema, options, &script);

        let (stored, read) = printed.split_once('\n').expect("two lines");
        assert_eq!(stored, sum, "{options:?}");
        assert!(read.trim_end() == data, "{options:?}: {} bytes came back", read.len());
    }
}

/// Compresses as a client does.
fn frame(sequence: u8, plain: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).expect("there is room");
    raw_frame(sequence, &encoder.finish().expect("there is room"), plain.len())
}

fn raw_frame(sequence: u8, body: &[u8], before: usize) -> Vec<u8> {
    let mut out = (body.len() as u32).to_le_bytes()[..3].to_vec();
    out.push(sequence);
    out.extend_from_slice(&(before as u32).to_le_bytes()[..3]);
    out.extend_from_slice(body);
    out
}

fn command(code: u8, argument: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    packet::put_command(&mut out, code, argument);
    out
}

/// A session that takes frames apart by itself.
struct ByHand {
    session: Session,
    plain: Vec<u8>,
    /// Of the last frame.
    sequence: u8,
}

impl ByHand {
    async fn open(stage: &Stage) -> Self {
        let capabilities = BASIC | can::COMPRESS;
        let session = Session::connect(stage.proxy.port(), APP, &stage.schema, capabilities).await;
        Self { session: session.expect("it logs in"), plain: Vec::new(), sequence: 0 }
    }

    /// The next packet, and its sequence number.
    async fn packet(&mut self) -> Option<(u8, Vec<u8>)> {
        soon("a packet", self.next_packet()).await
    }

    async fn next_packet(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((header, payload)) = packet::payload(&self.plain) {
                let packet = (header.sequence, payload.to_vec());
                self.plain.drain(..header.total());
                return Some(packet);
            }
            let mut header = [0; 7];
            self.session.stream().read_exact(&mut header).await.ok()?;
            let length = |at: usize| usize::from(header[at]) | usize::from(header[at + 1]) << 8;
            let mut body = vec![0; length(0)];
            self.session.stream().read_exact(&mut body).await.ok()?;
            self.sequence = header[3];
            if length(4) == 0 {
                self.plain.extend_from_slice(&body);
                continue;
            }
            let before = self.plain.len();
            ZlibDecoder::new(&body[..]).read_to_end(&mut self.plain).expect("it is compressed");
            assert_eq!(self.plain.len() - before, length(4), "the length that the frame names");
        }
    }

    /// The value of an answer of one row and one column, and the numbers of its packets.
    async fn value(&mut self) -> (String, Vec<u8>) {
        let mut numbers = Vec::new();
        let mut rows = Vec::new();
        for _ in 0..5 {
            let (sequence, payload) = self.packet().await.expect("an answer");
            assert_ne!(payload.first(), Some(&packet::ERR), "{payload:?}");
            numbers.push(sequence);
            rows.push(payload);
        }
        let (value, _) = packet::lenenc_bytes(&rows[3]).expect("a value");
        (String::from_utf8_lossy(value).into_owned(), numbers)
    }
}

#[tokio::test]
async fn commands_may_share_a_frame_and_a_command_may_take_many() {
    let stage = Stage::set("", &[]).await;
    let mut client = ByHand::open(&stage).await;
    let numbers = vec![1, 2, 3, 4, 5];

    let two = [command(code::QUERY, b"SELECT 'the first'"), command(code::QUERY, b"SELECT 'the second'")];
    client.session.write(&frame(0, &two.concat())).await;
    assert_eq!(client.value().await, ("the first".to_owned(), numbers.clone()));
    assert_eq!(client.sequence, 1);
    assert_eq!(client.value().await, ("the second".to_owned(), numbers.clone()));
    assert_eq!(client.sequence, 1);

    let text = command(code::QUERY, b"SELECT 'in pieces'");
    for (at, byte) in text.iter().enumerate() {
        let one = if at % 2 == 0 { frame(at as u8, &[*byte]) } else { raw_frame(at as u8, &[*byte], 0) };
        client.session.write(&one).await;
    }
    assert_eq!(client.value().await, ("in pieces".to_owned(), numbers.clone()));
    assert_eq!(usize::from(client.sequence), text.len());

    // One that takes a packet of its own and a half, and the other half with the next.
    let (early, late) = two[1].split_at(9);
    client.session.write(&frame(0, &[&two[0][..], early].concat())).await;
    assert_eq!(client.value().await.0, "the first");
    client.session.write(&frame(1, late)).await;
    assert_eq!(client.value().await.0, "the second");
    assert_eq!(client.sequence, 2);
}

#[tokio::test]
async fn frames_that_make_no_sense_end_their_connection_and_no_other() {
    let stage = Stage::set("", &[]).await;
    let mut other = ByHand::open(&stage).await;
    let query = command(code::QUERY, b"SELECT 'a text that is long enough to be worth compressing'");
    let good = &frame(0, &query)[7..];
    let bomb = &frame(0, &vec![0; 0xFF_FFFF])[7..].to_vec();
    for (what, frame, message) in [
        ("too short", raw_frame(0, good, query.len() + 1), "Couldn't uncompress communication packet"),
        ("too long", raw_frame(0, good, query.len() - 1), "Couldn't uncompress communication packet"),
        ("a bomb", raw_frame(0, bomb, 30), "Couldn't uncompress communication packet"),
        ("not compressed", raw_frame(0, &query, query.len()), "Couldn't uncompress communication packet"),
        ("out of order", raw_frame(9, good, query.len()), "Got packets out of order"),
    ] {
        let mut client = ByHand::open(&stage).await;
        client.session.write(&frame).await;

        let (_, payload) = client.packet().await.unwrap_or_else(|| panic!("{what}: no answer"));
        let error = packet::ErrPacket::read(&payload).expect("it is an error");
        assert_eq!((error.errno, &error.sqlstate), (1157, b"08S01"), "{what}");
        assert_eq!(String::from_utf8_lossy(error.message), message, "{what}");
        assert_eq!(client.packet().await, None, "{what}: the connection goes on");
    }
    let mut torn = ByHand::open(&stage).await;
    torn.session.write(&frame(0, &query)[..20]).await;
    torn.session.stream().shutdown().await.expect("it is open");
    assert_eq!(torn.packet().await, None);

    other.session.write(&frame(0, &query)).await;
    assert_eq!(other.value().await.0, "a text that is long enough to be worth compressing");
}

#[tokio::test]
async fn a_bad_frame_in_the_middle_of_a_long_statement_leaves_nothing_behind() {
    let stage = Stage::set("CREATE TABLE t (word LONGTEXT)", &["cluster.pool.size = 1"]).await;
    let mut client = ByHand::open(&stage).await;
    let text = format!("INSERT INTO t VALUES ('{}')", noise(300_000));
    let long = command(code::QUERY, text.as_bytes());

    client.session.write(&frame(0, &long[..200_000])).await;
    client.session.write(&raw_frame(1, b"nothing that could be unpacked", 5000)).await;
    while client.packet().await.is_some() {}

    let mut session = stage.session().await;
    assert_eq!(session.value("/* pointsman: primary */ SELECT COUNT(*) FROM t").await, "0");
}

#[tokio::test]
async fn compression_is_offered_and_a_level_that_there_is_not_is_refused() {
    let stage = Stage::set("", &[]).await;
    let both = can::COMPRESS | can::ZSTD_COMPRESSION;
    assert_eq!(stage.session().await.offered & both, both);

    // The tests' login names no level: the default one is taken.
    let zstd = Session::connect(stage.proxy.port(), APP, "", BASIC | can::ZSTD_COMPRESSION).await;
    assert!(zstd.is_ok());
    let refused = refused_level(&stage, 0).await;
    assert_eq!(refused.errno, 3923);
    let refused = refused_level(&stage, 23).await;
    assert_eq!(refused.errno, 3923);
}

async fn refused_level(stage: &Stage, level: u8) -> Refused {
    let login = Session::connect_at_level(stage.proxy.port(), APP, level);
    login.await.err().unwrap_or_else(|| panic!("level {level} was taken"))
}
