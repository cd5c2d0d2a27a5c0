//! A client that speaks the protocol message by message: for pipelines, half-sent messages and
//! everything else that no driver would do.

use std::{collections::HashMap, io};

use bytes::{BufMut, Bytes, BytesMut};
use pointsman::demo::servers::Login;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::soon;

const PROTOCOL_3_0: i32 = 196_608;
const CANCEL_REQUEST: i32 = 80_877_102;

/// One message of the server: its tag and what follows the length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub tag: u8,
    pub body: Bytes,
}

/// Messages of a client, to be sent in one flight.
#[derive(Clone, Debug, Default)]
pub struct Batch(BytesMut);

/// A connection after its login.
pub struct Wire {
    stream: TcpStream,
    unread: BytesMut,
    /// The last ParameterStatus of each name.
    pub parameters: HashMap<String, String>,
    /// The body of BackendKeyData: what a CancelRequest has to name.
    pub key: Bytes,
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    /// A message of any kind, valid or not.
    pub fn message(mut self, tag: u8, body: &[u8]) -> Self {
        self.0.put_u8(tag);
        self.0.put_i32(i32::try_from(body.len() + 4).expect("tests send small messages"));
        self.0.put_slice(body);
        self
    }

    /// Bytes that need not be a message.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.put_slice(bytes);
        self
    }

    pub fn query(self, sql: &str) -> Self {
        self.message(b'Q', &zero_ended(&[sql]))
    }

    pub fn parse(self, statement: &str, sql: &str) -> Self {
        let mut body = zero_ended(&[statement, sql]);
        body.put_i16(0);
        self.message(b'P', &body)
    }

    /// Binds text parameters and asks for text results.
    pub fn bind(self, portal: &str, statement: &str, parameters: &[&str]) -> Self {
        let mut body = zero_ended(&[portal, statement]);
        body.put_i16(0);
        body.put_i16(i16::try_from(parameters.len()).expect("tests bind few parameters"));
        for parameter in parameters {
            body.put_i32(i32::try_from(parameter.len()).expect("tests bind short parameters"));
            body.put_slice(parameter.as_bytes());
        }
        body.put_i16(0);
        self.message(b'B', &body)
    }

    /// Binds nothing, and wants each of so many columns as text.
    pub fn bind_for_columns(self, portal: &str, statement: &str, columns: u16) -> Self {
        let mut body = zero_ended(&[portal, statement]);
        body.put_i32(0);
        body.put_u16(columns);
        (0..columns).for_each(|_| body.put_i16(0));
        self.message(b'B', &body)
    }

    /// Binds one `int4` in binary, as drivers do that were told the parameter's type.
    pub fn bind_int4(self, portal: &str, statement: &str, value: i32) -> Self {
        let mut body = zero_ended(&[portal, statement]);
        body.put_i16(1);
        body.put_i16(1);
        body.put_i16(1);
        body.put_i32(4);
        body.put_i32(value);
        body.put_i16(0);
        self.message(b'B', &body)
    }

    pub fn describe_statement(self, name: &str) -> Self {
        self.message(b'D', &named(b'S', name))
    }

    pub fn describe_portal(self, name: &str) -> Self {
        self.message(b'D', &named(b'P', name))
    }

    pub fn close_statement(self, name: &str) -> Self {
        self.message(b'C', &named(b'S', name))
    }

    /// Executes a portal; `rows` 0 means all of them.
    pub fn execute(self, portal: &str, rows: i32) -> Self {
        let mut body = zero_ended(&[portal]);
        body.put_i32(rows);
        self.message(b'E', &body)
    }

    /// Parse, Bind and Execute of the unnamed statement.
    pub fn run(self, sql: &str, parameters: &[&str]) -> Self {
        self.parse("", sql).bind("", "", parameters).execute("", 0)
    }

    pub fn sync(self) -> Self {
        self.message(b'S', &[])
    }

    pub fn flush(self) -> Self {
        self.message(b'H', &[])
    }

    pub fn copy_data(self, text: &str) -> Self {
        self.message(b'd', text.as_bytes())
    }

    pub fn copy_done(self) -> Self {
        self.message(b'c', &[])
    }

    pub fn copy_fail(self, why: &str) -> Self {
        self.message(b'f', &zero_ended(&[why]))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Frame {
    /// The fields of an ErrorResponse or NoticeResponse.
    pub fn field(&self, kind: u8) -> Option<String> {
        self.body
            .split(|byte| *byte == 0)
            .find(|field| field.first() == Some(&kind))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
    }

    /// The SQLSTATE of an ErrorResponse or NoticeResponse.
    pub fn code(&self) -> String {
        self.field(b'C').unwrap_or_default()
    }

    /// The columns of a DataRow in text format.
    pub fn columns(&self) -> Vec<Option<String>> {
        let mut rest = &self.body[2..];
        let mut columns = Vec::new();
        while let Some((length, tail)) = rest.split_first_chunk::<4>() {
            let length = usize::try_from(i32::from_be_bytes(*length)).ok();
            let (value, tail) = tail.split_at(length.unwrap_or(0));
            columns.push(length.map(|_| String::from_utf8_lossy(value).into_owned()));
            rest = tail;
        }
        columns
    }

    /// The text of a CommandComplete.
    pub fn command(&self) -> String {
        String::from_utf8_lossy(self.body.strip_suffix(&[0]).unwrap_or(&self.body)).into_owned()
    }
}

/// The tags of messages in a row, such as `12DCZ`.
pub fn tags(frames: &[Frame]) -> String {
    frames.iter().map(|frame| char::from(frame.tag)).collect()
}

/// The first column of every DataRow.
pub fn first_columns(frames: &[Frame]) -> Vec<String> {
    let rows = frames.iter().filter(|frame| frame.tag == b'D');
    rows.map(|row| row.columns().into_iter().next().flatten().unwrap_or_default()).collect()
}

impl Wire {
    /// Logs in with protocol 3.0; panics if the server does not let us in.
    pub async fn login(port: u16, login: Login, database: &str) -> Self {
        let options = [("user", login.name), ("database", database)];
        match Self::try_login(port, login, &options).await {
            Ok(wire) => wire,
            Err(error) => panic!("the login failed: {}", error.code()),
        }
    }

    /// Logs in with startup options of the caller's; errs with the server's ErrorResponse.
    pub async fn try_login(port: u16, login: Login, options: &[(&str, &str)]) -> Result<Self, Frame> {
        let mut wire = Self::connect(port).await;
        wire.send(&startup(PROTOCOL_3_0, options)).await;
        loop {
            let frame = wire.recv().await;
            match frame.tag {
                b'R' => wire.authenticate(&frame, login).await?,
                b'E' => return Err(frame),
                b'Z' => return Ok(wire),
                _ => wire.note(&frame),
            }
        }
    }

    /// A connection on which nothing has been said.
    pub async fn connect(port: u16) -> Self {
        let stream = soon("connect", TcpStream::connect(("127.0.0.1", port))).await.expect("it listens");
        stream.set_nodelay(true).expect("a fresh socket takes options");
        Self { stream, unread: BytesMut::new(), parameters: HashMap::new(), key: Bytes::new() }
    }

    async fn authenticate(&mut self, request: &Frame, login: Login) -> Result<(), Frame> {
        match request.body.first_chunk::<4>().map(|kind| i32::from_be_bytes(*kind)) {
            Some(0) => Ok(()),
            Some(10) => self.scram(login).await,
            kind => panic!("authentication {kind:?} is not for this client"),
        }
    }

    async fn scram(&mut self, login: Login) -> Result<(), Frame> {
        let mut scram = ScramSha256::new(login.password.as_bytes(), ChannelBinding::unsupported());
        let mut first = zero_ended(&[SCRAM_SHA_256]);
        first.put_i32(i32::try_from(scram.message().len()).expect("it is short"));
        first.put_slice(scram.message());
        self.send(&Batch::new().message(b'p', &first)).await;
        let challenge = self.expect_authentication().await?;
        scram.update(&challenge).expect("the challenge is well-formed");
        self.send(&Batch::new().message(b'p', scram.message())).await;
        let last = self.expect_authentication().await?;
        scram.finish(&last).expect("the server knows the verifier");
        Ok(())
    }

    async fn expect_authentication(&mut self) -> Result<Bytes, Frame> {
        let mut frame = self.recv().await;
        if frame.tag == b'R' { Ok(frame.body.split_off(4)) } else { Err(frame) }
    }

    pub async fn send(&mut self, batch: &Batch) {
        soon("send", self.stream.write_all(batch.bytes())).await.expect("the peer reads");
    }

    /// The next message; panics when the connection ends instead.
    pub async fn recv(&mut self) -> Frame {
        self.next().await.unwrap_or_else(|error| panic!("no message but {error}"))
    }

    /// The next message, or how the connection ended.
    pub async fn next(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(frame) = self.parse() {
                return Ok(frame);
            }
            if soon("a message", self.stream.read_buf(&mut self.unread)).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn parse(&mut self) -> Option<Frame> {
        let header = self.unread.first_chunk::<5>()?;
        let [tag, length @ ..] = *header;
        let length = usize::try_from(i32::from_be_bytes(length)).expect("servers send lengths above zero");
        if self.unread.len() <= length {
            return None;
        }
        let mut message = self.unread.split_to(length + 1).freeze();
        Some(Frame { tag, body: message.split_off(5) })
    }

    /// All messages up to ReadyForQuery, which is the last of them. ParameterStatus is noted and
    /// left out, because its moment is not fixed.
    pub async fn until_ready(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let frame = self.recv().await;
            let ready = frame.tag == b'Z';
            if frame.tag == b'S' {
                self.note(&frame);
            } else {
                frames.push(frame);
            }
            if ready {
                return frames;
            }
        }
    }

    /// Sends and reads until the first ReadyForQuery.
    pub async fn ask(&mut self, batch: &Batch) -> Vec<Frame> {
        self.send(batch).await;
        self.until_ready().await
    }

    /// Sends, and reads at the same time up to the ReadyForQuery that ends it all; the length of the answer.
    pub async fn trade(&mut self, batch: &Batch) -> usize {
        let (mut from, mut to) = self.stream.split();
        let sent = async { to.write_all(batch.bytes()).await.expect("the peer reads") };
        let read = async {
            let (mut answer, mut length) = (BytesMut::new(), 0);
            while !answer.ends_with(b"Z\0\0\0\x05I") {
                // An end in two parts is found as well.
                length += answer.len().saturating_sub(8);
                answer = answer.split_off(answer.len().saturating_sub(8));
                soon("the next bytes", from.read_buf(&mut answer)).await.expect("the peer is there");
            }
            length + answer.len()
        };
        tokio::join!(sent, read).1
    }

    /// Waits until the peer has closed the connection; returns what it said before.
    pub async fn until_closed(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Ok(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }

    /// The one byte that answers an SSLRequest or GSSENCRequest.
    pub async fn byte(&mut self) -> u8 {
        soon("a byte", self.stream.read_u8()).await.expect("it answers")
    }

    fn note(&mut self, frame: &Frame) {
        match frame.tag {
            b'S' => {
                let mut words = frame.body.split(|byte| *byte == 0).map(String::from_utf8_lossy);
                if let (Some(name), Some(value)) = (words.next(), words.next()) {
                    self.parameters.insert(name.into_owned(), value.into_owned());
                }
            }
            b'K' => self.key = frame.body.clone(),
            _ => {}
        }
    }
}

/// Asks for the cancellation of what the session with `key` runs, and waits until the peer has
/// closed the connection.
pub async fn cancel(port: u16, key: &[u8]) {
    let mut wire = Wire::connect(port).await;
    let mut body = BytesMut::new();
    body.put_i32(CANCEL_REQUEST);
    body.put_slice(key);
    wire.send(&untagged(&body)).await;
    wire.until_closed().await;
}

/// A StartupMessage of any version.
pub fn startup(version: i32, options: &[(&str, &str)]) -> Batch {
    let mut body = BytesMut::new();
    body.put_i32(version);
    for (name, value) in options {
        body.put_slice(&zero_ended(&[name, value]));
    }
    body.put_u8(0);
    untagged(&body)
}

/// A message of the startup phase: a length and a body.
pub fn untagged(body: &[u8]) -> Batch {
    let length = i32::try_from(body.len() + 4).expect("tests send small messages");
    Batch::new().raw(&length.to_be_bytes()).raw(body)
}

fn zero_ended(words: &[&str]) -> BytesMut {
    let mut bytes = BytesMut::new();
    for word in words {
        bytes.put_slice(word.as_bytes());
        bytes.put_u8(0);
    }
    bytes
}

fn named(kind: u8, name: &str) -> BytesMut {
    let mut body = BytesMut::new();
    body.put_u8(kind);
    body.put_slice(&zero_ended(&[name]));
    body
}
