//! Doors for `fuzz/`: what reads bytes of peers that nobody trusts, without sockets.

use std::{collections::VecDeque, sync::Arc};

use bytes::BytesMut;
use futures_util::FutureExt;

use super::{
    batch::Kind,
    encode::BatchWriter,
    frame,
    frontend::Frontend,
    gate::Origins,
    login::startup::{self, Request},
    message::{MAX_PASSWORD_MESSAGE, read_frame, read_startup},
    prepared::ServerStatements,
    refusal,
    welcome::StartupRequest,
};
use crate::{
    cluster::Database,
    protocol::{Fault, ReaderContext},
    sql::{Dialect, cache::Classifier, catalog::FunctionRules},
    stream::Stream,
};

/// Bytes of the statement cache: one input has a handful of statements.
const CACHE: u64 = 16 * 1024;
/// Statements that the server connection keeps: few, so that they are evicted.
const KEPT: usize = 2;

/// Reads `data` as the packets before a login and, where it is a startup packet, its options.
pub fn startup(data: &[u8]) {
    let mut buffer = BytesMut::new();
    let Some(Ok(packet)) = read_startup(&mut &*data, &mut buffer).now_or_never() else { return };
    if let Ok(Request::Startup(packet)) = startup::parse(&packet) {
        // What cannot be read is refused in words.
        let _ = StartupRequest::read(&packet.parameters, packet.minor);
    }
    let behind = data.get(4 + buffer.len()..).unwrap_or_default();
    let mut buffer = BytesMut::new();
    let _ = read_frame(&mut &*behind, &mut buffer, MAX_PASSWORD_MESSAGE).now_or_never();
}

/// Reads `data` as what a client sends after its login, and writes each request for a server.
pub fn requests(data: &[u8]) {
    let mut frontend = Frontend::new(Stream::Moving, data, StartupRequest::default(), Origins::detached());
    frontend.reader = Some(ReaderContext {
        classifier: Arc::new(Classifier::new(Dialect::Postgres, FunctionRules::default(), CACHE)),
        database: Arc::new(Database::new(1, "app".into())),
        metrics: None,
        entry: None,
    });
    let mut server = ServerStatements::new(KEPT);
    let mut expect = VecDeque::new();
    // Ends with the data: the stream that would have more fails.
    loop {
        let read = match frontend.await_request().now_or_never() {
            Some(Ok(true)) => frontend.take_request().now_or_never(),
            Some(Ok(false)) | None => return,
            Some(Err(fault)) => Some(Err(fault)),
        };
        let request = match read {
            Some(Ok(Some(request))) => request,
            Some(Ok(None)) => continue,
            Some(Err(Fault::Protocol(fault))) => {
                let mut out = Vec::new();
                refusal::put_error(&mut out, &fault);
                return assert_framed(&out);
            }
            _ => return,
        };
        if request.wire.kind == Kind::Extended {
            let mut out = Vec::new();
            let data = frontend.inbox.data()[..request.wire.length].to_vec();
            let plan_key = 0;
            let mut writer = BatchWriter {
                server: &mut server,
                expect: &mut expect,
                out: &mut out,
                plan_key,
                failed: false,
                data: &data,
                bound: None,
            };
            writer.write(&request.wire, &frontend);
        }
        frontend.consume(&request.wire);
    }
}

/// Reads `data` as an error of a server's, and as messages one behind the other.
pub fn server_messages(data: &[u8]) {
    frame::error_fields(data);
    let mut rest = data;
    while let Some(header) = frame::header(rest) {
        let Some((message, behind)) = rest.split_at_checked(header.length.max(frame::HEADER)) else { return };
        frame::error_fields(&message[frame::HEADER..]);
        rest = behind;
    }
}

/// What we write ourselves is framed, whatever it was made of.
fn assert_framed(mut out: &[u8]) {
    while !out.is_empty() {
        let header = frame::header(out).expect("a header");
        out = out.get(header.length..).expect("as long as it says");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_doors_take_good_and_bad_input() {
        let query = b"Q\0\0\0\x0dSELECT 1\0";
        let unit =
            b"P\0\0\0\x10s\0SELECT 1\0\0\0B\0\0\0\x0d\0s\0\0\0\0\0\0\0E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04";
        for data in [&query[..], unit, b"", b"Q\0\0\0\x03", &unit[..20], b"!\0\0\0\x04"] {
            requests(data);
            startup(data);
            server_messages(data);
        }
        startup(b"\0\0\0\x1a\0\x03\0\0user\0a\0options\0-c\0\0");
    }
}
