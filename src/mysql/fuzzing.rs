//! Doors for `fuzz/`: what reads bytes of peers that nobody trusts, without sockets.

use std::{
    io,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    backend::Backend,
    command::code,
    compress::{Algorithm, Compressed, Wire, ZstdLevel},
    encode,
    frontend::Frontend,
    gate::{Gate, Link},
    login::{
        Credentials,
        client::Login,
        response::Response,
        scramble::NONCE,
        server::{Connected, Greeting},
        verifier::Verifier,
    },
    packet::{self, ErrPacket, OkPacket, capability as can},
    prepared::Statement,
    refusal::Numbers,
};
use crate::{
    cluster::Database,
    inbox::{Inbox, Source},
    protocol::{Identity, ReaderContext},
    sql::{Dialect, cache::Classifier, catalog::FunctionRules},
    stream::Stream,
    topology::Role,
};

/// Bytes of the statement cache: one input has a handful of statements.
const CACHE: u64 = 16 * 1024;
/// Bytes that are asked for at one time.
const LARGE: usize = 64 * 1024;
const SMALL: usize = 3;
/// Bytes of unpacked frames that are looked at.
const MOST_UNPACKED: usize = 256 * 1024;
/// Statements that the server connection keeps: few, so that they are evicted.
const KEPT: usize = 2;

/// Reads `data` as what a client sends before it is let in, and what a server greets with.
pub fn login(data: &[u8]) {
    let _ = Response::read(data);
    let _ = Response::read_change(data, can::PROTOCOL_41);
    let _ = Greeting::read(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Verifier::parse(text);
    }
}

/// Reads `data` as compressed frames, at once and in small pieces, which must come to the same;
/// and packs and unpacks it.
pub fn compressed(data: &[u8]) {
    for algorithm in [Algorithm::Zlib, Algorithm::Zstd(ZstdLevel::DEFAULT)] {
        assert_eq!(unpacked(data, algorithm, LARGE), unpacked(data, algorithm, SMALL));

        let mut frames = Vec::new();
        let mut stream =
            Compressed::new(tokio::io::join(tokio::io::empty(), &mut frames), algorithm, Inbox::default());
        let written = stream.write_all(data).now_or_never().and_then(Result::ok);
        let ended = stream.shutdown().now_or_never().and_then(Result::ok);
        assert_eq!((written, ended), (Some(()), Some(())));
        drop(stream);
        let same = &data[..data.len().min(MOST_UNPACKED)];
        assert_eq!(unpacked(&frames, algorithm, LARGE), (same.to_vec(), None));
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Source for tokio::io::Join<R, W> {
    fn poll_into(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox) -> Poll<io::Result<usize>> {
        inbox.poll_read(cx, self.reader_mut())
    }
}

/// What frames hold, and what is wrong with them.
fn unpacked(frames: &[u8], algorithm: Algorithm, step: usize) -> (Vec<u8>, Option<io::ErrorKind>) {
    let inner = tokio::io::join(frames, tokio::io::sink());
    let mut stream = Compressed::new(inner, algorithm, Inbox::default());
    let (mut all, mut part) = (Vec::new(), vec![0; step]);
    while all.len() < MOST_UNPACKED {
        match stream.read(&mut part).now_or_never().expect("a slice keeps nobody waiting") {
            Ok(0) => return (all, None),
            Ok(count) => all.extend_from_slice(&part[..count]),
            Err(error) => return (all, Some(error.kind())),
        }
    }
    all.truncate(MOST_UNPACKED);
    (all, None)
}

/// Reads `data` as the packets of a server's answers.
pub fn server_packets(mut data: &[u8]) {
    while let Some((header, payload)) = packet::payload(data) {
        if let Some(ok) = OkPacket::read(payload) {
            assert!(ok.plain_length <= payload.len() && ok.status_at + 2 <= payload.len());
            packet::changes(ok.changes).for_each(drop);
        }
        let _ = ErrPacket::read(payload);
        let _ = packet::eof_status(payload);
        data = &data[header.total()..];
    }
}

/// Reads `data` as what a client sends after its login, and writes each command for a server.
pub fn commands(data: &[u8]) {
    commands_with(data, 0);
    commands_with(data, can::QUERY_ATTRIBUTES);
    commands_with(data, can::STMT_BULK_OPERATIONS);
}

fn commands_with(data: &[u8], capabilities: u64) {
    let mut frontend = Frontend::new(client(data, capabilities), 7, "app".into(), Arc::new(Gate::detached()));
    frontend.reader = Some(ReaderContext {
        classifier: Arc::new(Classifier::new(Dialect::Mysql, FunctionRules::default(), CACHE)),
        database: Arc::new(Database::new(1, "".into())),
        metrics: None,
        entry: None,
    });
    let mut backend = server(capabilities);
    // Ends with the data: the stream that would have more fails, as does every answer of ours.
    while let Some(Ok(true)) = frontend.await_request().now_or_never() {
        let request = match frontend.take_request().now_or_never() {
            Some(Ok(Some(request))) => request,
            Some(Ok(None)) => continue,
            _ => break,
        };
        let command = &request.wire;
        if let (code::STMT_PREPARE, Some((_, statement))) = (command.code, &command.statement) {
            let parameters = statement.text.iter().filter(|byte| **byte == b'?').count();
            let id = frontend.statements.enter(Arc::new(Statement {
                settings: Arc::default(),
                parameters: u16::try_from(parameters).unwrap_or(u16::MAX),
                ..Statement::clone(statement)
            }));
            encode::entered(&mut backend, statement.key, id);
        }
        let data = frontend.inbox.data()[..command.length].to_vec();
        let mut out = Vec::new();
        if encode::command(&mut backend, &frontend, command, &data, &mut out).is_ok()
            && command.tail.is_none()
        {
            assert_framed(&out);
        }
        if command.tail.is_some() {
            return;
        }
        frontend.consume();
    }
}

fn client(data: &[u8], capabilities: u64) -> Login {
    Login {
        stream: Wire::Bare(Stream::Moving),
        inbox: Inbox::with(data),
        user: "app".to_owned(),
        schema: None,
        collation: 45,
        capabilities: can::PROTOCOL_41 | can::MULTI_STATEMENTS | can::MULTI_RESULTS | capabilities,
        credentials: Credentials::None,
        sequence: 1,
        nonce: [b'n'; NONCE],
        compression: None,
        numbers: Numbers::All,
    }
}

fn server(capabilities: u64) -> Backend {
    let greeting = Greeting {
        version: "10.11.0-MariaDB".to_owned(),
        thread: 1,
        capabilities: u64::MAX,
        collation: 45,
        plugin: String::new(),
        nonce: Vec::new(),
    };
    let connected = Connected {
        stream: Stream::Moving,
        inbox: Inbox::default(),
        greeting,
        capabilities: can::PROTOCOL_41 | can::SESSION_TRACK | capabilities,
    };
    let identity =
        Identity { user: "app".into(), database: "".into(), flavour: 0, credentials: Credentials::None };
    Backend::new(connected, "", Role::Primary, &Link::detached(KEPT), &identity)
}

/// What we write ourselves is framed, whatever it was made of.
fn assert_framed(mut out: &[u8]) {
    while !out.is_empty() {
        let header = packet::header(out).expect("a header");
        out = out.get(header.total()..).expect("as long as it says");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_doors_take_good_and_bad_input() {
        let mut session = Vec::new();
        for (code, argument) in [
            (code::QUERY, &b"SELECT CONNECTION_ID()"[..]),
            (code::QUERY, b"\x01\x01\x00\x01\xFE\x00\x01n\x01vSELECT CONNECTION_ID()"),
            (code::STMT_EXECUTE, &[1, 0, 0, 0, 8, 1, 0, 0, 0, 1, 0, 1, 3, 0, 1, b'n', 1, 0, 0, 0]),
            (code::STMT_PREPARE, b"SELECT ?, ?"),
            (code::STMT_SEND_LONG_DATA, &[1, 0, 0, 0, 0, 0, b'x']),
            (code::STMT_EXECUTE, &[1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 253, 0, 253, 0, 1, b'a', 1, b'b']),
            (code::STMT_EXECUTE, &[1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, b'a', 1, b'b']),
            (code::STMT_BULK_EXECUTE, &[1, 0, 0, 0, 128, 0, 253, 0, 253, 0, 0, 1, b'a', 1]),
            (code::STMT_BULK_EXECUTE, &[255, 255, 255, 255, 0, 0, 0, 1, b'a', 1]),
            (code::STMT_FETCH, &[1, 0, 0, 0, 9, 0, 0, 0]),
            (code::STMT_CLOSE, &[1, 0, 0, 0]),
            (code::INIT_DB, b"shop"),
            (code::CHANGE_USER, b"app\0\0shop\0"),
        ] {
            packet::put_command(&mut session, code, argument);
        }
        for length in 0..session.len() {
            commands(&session[..length]);
            login(&session[length..]);
            server_packets(&session[length..]);
            compressed(&session[length..]);
        }
        commands(&session);
        commands(b"\xff\xff\xff\0\x03");
    }
}
