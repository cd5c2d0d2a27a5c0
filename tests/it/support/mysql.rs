//! A MySQL client of the tests' own.

use mysql_common::auth::plugins::mysql_native_password::scramble_native;
use pointsman::{
    demo::servers::{APP, Login},
    mysql::{
        login::scramble::{Password, Plugin},
        packet::{self, HEADER, capability as can},
        parameters::NO_ATTRIBUTES,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub use super::mysql_servers::{ENGINE, Make, Stage, create_schema, proxy};
use super::soon;

/// Asks for the port of the server that answers.
pub const WHERE: &str = "SELECT @@port";

/// utf8mb4_general_ci.
const UTF8: u8 = 45;

/// What the tests' client can do: as PyMySQL, no session tracking and no `DEPRECATE_EOF`.
pub const BASIC: u64 = can::LONG_FLAG
    | can::PROTOCOL_41
    | can::TRANSACTIONS
    | can::SECURE_CONNECTION
    | can::PLUGIN_AUTH
    | can::MULTI_STATEMENTS
    | can::MULTI_RESULTS
    | can::PS_MULTI_RESULTS
    | can::LOCAL_FILES;

/// One connection of an app.
pub struct Session {
    pub(super) stream: TcpStream,
    pub(super) capabilities: u64,
    /// The number the greeting told.
    pub number: u32,
    pub version: String,
    /// The capabilities that the greeting told.
    pub offered: u64,
    /// That of the greeting.
    pub nonce: Vec<u8>,
}

/// An error packet, or a broken connection (errno 2013).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub errno: u16,
    pub sqlstate: String,
    pub message: String,
}

/// All results of one command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub results: Vec<Vec<Vec<Option<String>>>>,
    pub insert_id: u64,
    pub status: u16,
    /// The payload of the last OK packet.
    pub last: Vec<u8>,
}

impl Answer {
    /// The first value of the first row.
    pub fn value(&self) -> String {
        self.results.first().and_then(|rows| rows.first()?.first().cloned().flatten()).unwrap_or_default()
    }
}

impl Session {
    /// A connection on which nothing has been said.
    pub fn of(stream: TcpStream, capabilities: u64) -> Self {
        Self { stream, capabilities, number: 0, version: String::new(), offered: 0, nonce: Vec::new() }
    }

    pub async fn open(port: u16, login: Login, schema: &str) -> Self {
        Self::connect(port, login, schema, BASIC).await.unwrap_or_else(|error| panic!("login: {error:?}"))
    }

    pub async fn connect(port: u16, login: Login, schema: &str, capabilities: u64) -> Result<Self, Refused> {
        soon("a login", Self::log_in(port, login, schema.as_bytes(), (capabilities, UTF8), &[])).await
    }

    /// As [`Session::connect`], with the character set of a collation, in which the schema is named.
    pub async fn connect_in(port: u16, login: Login, schema: &[u8], collation: u8) -> Result<Self, Refused> {
        soon("a login", Self::log_in(port, login, schema, (BASIC, collation), &[])).await
    }

    /// As [`Session::connect`], asking for zstd of a level.
    pub async fn connect_at_level(port: u16, login: Login, level: u8) -> Result<Self, Refused> {
        let capabilities = BASIC | can::ZSTD_COMPRESSION;
        soon("a login", Self::log_in(port, login, b"", (capabilities, UTF8), &[level])).await
    }

    /// What is beneath.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// `tail` stands behind everything else in the answer to the greeting.
    async fn log_in(
        port: u16,
        login: Login,
        schema: &[u8],
        (capabilities, collation): (u64, u8),
        tail: &[u8],
    ) -> Result<Self, Refused> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(broken)?;
        let mut session = Self::of(stream, capabilities);
        let (_, greeting) = session.receive().await?;
        let greeting = pointsman::mysql::login::server::Greeting::read(&greeting).expect("it is a greeting");
        (session.number, session.version) = (greeting.thread, greeting.version);
        session.offered = greeting.capabilities;
        session.nonce = greeting.nonce;
        let flags = if schema.is_empty() { capabilities } else { capabilities | can::CONNECT_WITH_DB };
        let proof = scramble_native(&session.nonce, login.password.as_bytes())
            .map_or(Vec::new(), |proof| proof.to_vec());
        let mut out = Vec::new();
        packet::put(&mut out, 1, |out| {
            out.extend_from_slice(&(flags as u32).to_le_bytes());
            out.extend_from_slice(&(1_u32 << 24).to_le_bytes());
            out.push(collation);
            out.extend_from_slice(&[0; 19]);
            out.extend_from_slice(&can::extended(flags));
            out.extend_from_slice(login.name.as_bytes());
            out.push(0);
            out.push(proof.len() as u8);
            out.extend_from_slice(&proof);
            if !schema.is_empty() {
                out.extend_from_slice(schema);
                out.push(0);
            }
            out.extend_from_slice(b"mysql_native_password\0");
            out.extend_from_slice(tail);
        });
        session.stream.write_all(&out).await.map_err(broken)?;
        session.prove(login).await?;
        Ok(session)
    }

    /// Goes on until the server is convinced: an AuthSwitchRequest asks for another plugin's proof.
    pub async fn prove(&mut self, login: Login) -> Result<(), Refused> {
        let mut plugin = None;
        loop {
            let (sequence, payload) = self.receive().await?;
            let challenge = match payload.split_first() {
                Some((&packet::OK, _)) => return Ok(()),
                Some((&packet::EOF, request)) => {
                    let (name, nonce) = packet::split_nul(request).expect("the plugin's name");
                    plugin = Plugin::named(name, false);
                    self.nonce = nonce.strip_suffix(&[0]).unwrap_or(nonce).to_vec();
                    self.nonce.clone()
                }
                Some((&packet::MORE_DATA, data)) => data.to_vec(),
                _ => panic!("not a part of a login: {payload:?}"),
            };
            let password = Password { password: login.password.as_bytes(), nonce: &self.nonce, tls: false };
            let plugin = plugin.as_mut().expect("the plugin was named");
            let Some(proof) = plugin.answer(&password, &challenge).expect("a challenge") else { continue };
            let mut out = Vec::new();
            packet::put(&mut out, sequence + 1, |out| out.extend_from_slice(&proof));
            self.stream.write_all(&out).await.map_err(broken)?;
        }
    }

    /// One packet; an error packet is the error.
    pub async fn receive(&mut self) -> Result<(u8, Vec<u8>), Refused> {
        let mut header = [0; HEADER];
        self.stream.read_exact(&mut header).await.map_err(broken)?;
        let header = packet::header(&header).expect("four bytes");
        let mut payload = vec![0; header.length];
        self.stream.read_exact(&mut payload).await.map_err(broken)?;
        if payload.first() == Some(&packet::ERR) {
            let error = packet::ErrPacket::read(&payload).expect("it is an error");
            return Err(Refused {
                errno: error.errno,
                sqlstate: String::from_utf8_lossy(&error.sqlstate).into_owned(),
                message: String::from_utf8_lossy(error.message).into_owned(),
            });
        }
        Ok((header.sequence, payload))
    }

    pub async fn send(&mut self, code: u8, argument: &[u8]) {
        let mut out = Vec::new();
        packet::put_command(&mut out, code, argument);
        self.stream.write_all(&out).await.expect("the proxy reads");
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the proxy reads");
    }

    /// Runs a string of statements.
    pub async fn query(&mut self, sql: &str) -> Result<Answer, Refused> {
        if self.capabilities & can::QUERY_ATTRIBUTES == 0 {
            return self.command(3, sql.as_bytes()).await;
        }
        self.command(3, &[NO_ATTRIBUTES, sql.as_bytes()].concat()).await
    }

    pub async fn command(&mut self, code: u8, argument: &[u8]) -> Result<Answer, Refused> {
        self.send(code, argument).await;
        let what =
            format!("command {code}: {}", String::from_utf8_lossy(&argument[..argument.len().min(200)]));
        soon(&what, self.answer()).await
    }

    /// The answer to a text command.
    pub async fn answer(&mut self) -> Result<Answer, Refused> {
        let mut answer = Answer::default();
        loop {
            let (_, payload) = self.receive().await?;
            match payload[0] {
                packet::OK => self.read_ok(payload, &mut answer),
                packet::EOF => answer.status = packet::eof_status(&payload).expect("it is an EOF"),
                _ => self.read_rows(payload[0], &mut answer).await?,
            }
            if answer.status & packet::status::MORE_RESULTS == 0 {
                return Ok(answer);
            }
        }
    }

    fn read_ok(&self, payload: Vec<u8>, answer: &mut Answer) {
        let ok = packet::OkPacket::read(&payload).expect("it is an OK");
        if self.capabilities & can::SESSION_TRACK == 0 {
            assert_eq!(
                ok.status & packet::status::SESSION_STATE_CHANGED,
                0,
                "state changes nobody asked for"
            );
        }
        (answer.insert_id, answer.status) = (ok.insert_id, ok.status);
        answer.last = payload;
    }

    async fn read_rows(&mut self, columns: u8, answer: &mut Answer) -> Result<(), Refused> {
        let deprecates_eof = self.capabilities & can::DEPRECATE_EOF != 0;
        for _ in 0..usize::from(columns) + usize::from(!deprecates_eof) {
            self.receive().await?;
        }
        let mut rows = Vec::new();
        loop {
            let (_, payload) = self.receive().await?;
            if payload[0] == packet::EOF
                && payload.len() < if deprecates_eof { packet::MAX_PAYLOAD } else { 9 }
            {
                if deprecates_eof {
                    self.read_ok(payload, answer);
                } else {
                    answer.status = packet::eof_status(&payload).expect("it is an EOF");
                }
                answer.results.push(rows);
                return Ok(());
            }
            let mut rest = &payload[..];
            let mut row = Vec::new();
            for _ in 0..columns {
                if rest[0] == 0xFB {
                    row.push(None);
                    rest = &rest[1..];
                } else {
                    let (value, behind) = packet::lenenc_bytes(rest).expect("a value");
                    row.push(Some(String::from_utf8_lossy(value).into_owned()));
                    rest = behind;
                }
            }
            rows.push(row);
        }
    }

    pub async fn run(&mut self, sql: &str) -> Answer {
        self.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    pub async fn value(&mut self, sql: &str) -> String {
        self.run(sql).await.value()
    }

    /// The error number that `sql` fails with.
    pub async fn error(&mut self, sql: &str) -> u16 {
        match self.query(sql).await {
            Ok(answer) => panic!("{sql} did not fail but answered {answer:?}"),
            Err(error) => error.errno,
        }
    }

    /// The port of the server that answers a read now.
    pub async fn port(&mut self) -> u16 {
        self.value(WHERE).await.parse().expect("a port is a number")
    }
}

fn broken(error: std::io::Error) -> Refused {
    Refused { errno: 2013, sqlstate: String::new(), message: error.to_string() }
}

/// One connection to each server, for all sessions.
pub const ONE: &[&str] = &["cluster.pool.size = 1"];

/// A client that prepares every statement before it executes it.
pub async fn each_time_anew(stage: &Stage) -> mysql_async::Conn {
    client(stage, 0).await
}

/// A client that keeps prepared statements.
pub async fn client(stage: &Stage, kept: usize) -> mysql_async::Conn {
    let options = mysql_async::OptsBuilder::default()
        .ip_or_hostname("127.0.0.1")
        .tcp_port(stage.proxy.port())
        .user(Some(APP.name))
        .pass(Some(APP.password))
        .db_name(Some(stage.schema.clone()))
        .prefer_socket(false)
        .stmt_cache_size(kept);
    mysql_async::Conn::new(options).await.expect("a login")
}
