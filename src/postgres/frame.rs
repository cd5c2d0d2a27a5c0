//! Message headers of the data phase: one byte of type, four of length.
//!
//! Source: PostgreSQL manual, "Message Formats"; limits as in the server's `SocketBackend`.

use crate::refusal::{Refusal, RefusalKind};

/// A type byte and a length word.
pub const HEADER: usize = 5;

/// Longest message the protocol allows: the server's `PQ_LARGE_MESSAGE_LIMIT`.
const LARGE: usize = 0x3fff_ffff;

/// Longest message of the kinds that carry only names: `PQ_SMALL_MESSAGE_LIMIT`.
const SMALL: usize = 10_000;

/// A message's type, and its whole length in bytes, header included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub tag: u8,
    pub length: usize,
}

/// Reads a header off the front of `data`; `None` when it is not all there yet.
#[inline]
pub fn header(data: &[u8]) -> Option<Header> {
    let &[tag, a, b, c, d, ..] = data else { return None };
    Some(Header { tag, length: u32::from_be_bytes([a, b, c, d]) as usize + 1 })
}

/// Reads a client's header and holds it against the server's own bounds.
///
/// # Errors
/// What the server would say to a message of that type or length.
pub fn client_header(data: &[u8]) -> Result<Option<Header>, Refusal> {
    let Some(found) = header(data) else { return Ok(None) };
    let limit = match found.tag {
        b'Q' | b'P' | b'B' | b'F' | b'd' => LARGE,
        b'C' | b'D' | b'E' | b'H' | b'S' | b'X' | b'c' | b'f' | b'p' => SMALL,
        other => {
            return Err(Refusal::fatal(
                RefusalKind::Protocol,
                format!("invalid frontend message type {other}"),
            ));
        }
    };
    if found.length < HEADER || found.length - 1 > limit {
        return Err(Refusal::fatal(RefusalKind::Protocol, "invalid message length"));
    }
    Ok(Some(found))
}

/// Splits a NUL-terminated string off the front of `body`.
#[inline]
pub fn split_cstring(body: &[u8]) -> Option<(&[u8], &[u8])> {
    // Most names of portals and statements are empty: a call of memchr costs more.
    let end = if *body.first()? == 0 { 0 } else { memchr::memchr(0, body)? };
    Some((&body[..end], &body[end + 1..]))
}

/// Appends a message whose body `write` appends.
pub fn put(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = u32::try_from(out.len() - at).expect("bodies are bounded by the messages they came from");
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends text and its terminating NUL.
pub fn put_cstring(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text);
    out.push(0);
}

pub const SYNC: [u8; 5] = [b'S', 0, 0, 0, 4];
pub const FLUSH: [u8; 5] = [b'H', 0, 0, 0, 4];
pub const READY_IDLE: [u8; 6] = [b'Z', 0, 0, 0, 5, b'I'];
pub const READY_FAILED: [u8; 6] = [b'Z', 0, 0, 0, 5, b'E'];
pub const PARSE_COMPLETE: [u8; 5] = [b'1', 0, 0, 0, 4];
pub const BIND_COMPLETE: [u8; 5] = [b'2', 0, 0, 0, 4];
pub const CLOSE_COMPLETE: [u8; 5] = [b'3', 0, 0, 0, 4];
pub const NO_DATA: [u8; 5] = [b'n', 0, 0, 0, 4];

/// Appends Parse, Bind and Execute of a statement without parameters and results, in the unnamed portal.
pub fn put_execute(out: &mut Vec<u8>, sql: &str) {
    put_execute_in(out, b"", sql);
}

/// As [`put_execute`], in a portal of that name.
pub fn put_execute_in(out: &mut Vec<u8>, portal: &[u8], sql: &str) {
    put(out, b'P', |out| {
        out.push(0);
        put_cstring(out, sql.as_bytes());
        out.extend_from_slice(&[0, 0]);
    });
    put(out, b'B', |out| {
        put_cstring(out, portal);
        // Of the unnamed statement; no formats, no parameters.
        out.extend_from_slice(&[0; 7]);
    });
    put(out, b'E', |out| {
        put_cstring(out, portal);
        out.extend_from_slice(&[0; 4]);
    });
}

/// Appends a simple Query.
pub fn put_query(out: &mut Vec<u8>, sql: &str) {
    put(out, b'Q', |out| put_cstring(out, sql.as_bytes()));
}

/// The SQLSTATE and the severity (never translated) of an ErrorResponse's body.
pub fn error_fields(mut body: &[u8]) -> ErrorFields {
    let mut fields = ErrorFields { code: *b"XX000", fatal: false, stale_plan: false };
    while let [kind, rest @ ..] = body {
        let Some((value, rest)) = split_cstring(rest) else { break };
        match kind {
            b'C' => {
                if let Ok(code) = value.try_into() {
                    fields.code = code;
                }
            }
            b'V' => fields.fatal = value != b"ERROR",
            // Texts are translated; the routine's name is not.
            b'R' => fields.stale_plan = value == b"RevalidateCachedQuery",
            _ => {}
        }
        body = rest;
    }
    fields
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorFields {
    pub code: [u8; 5],
    /// FATAL or PANIC: the server closes the connection behind it.
    pub fatal: bool,
    /// "cached plan must not change result type".
    pub stale_plan: bool,
}
