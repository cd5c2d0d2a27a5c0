//! Messages of the startup phase: bounded framing for what arrives, builders for what we send.
//!
//! Framing is our own and pgwire sees nothing that was not length-checked here: its decoders take
//! bodies from the shared buffer without looking at the message's own length, and read integers
//! from bodies that may be too short for them. Its encoders are used for what we say to clients,
//! postgres-protocol's for what we say to servers.

use std::io;

use bytes::{Buf, BufMut, BytesMut};
use pgwire::messages::{
    Message,
    response::ErrorResponse,
    startup::{Authentication, NegotiateProtocolVersion},
};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest startup packet, without its length word: the server's `MAX_STARTUP_PACKET_LENGTH`.
pub const MAX_STARTUP_PACKET: usize = 10_000;
/// Longest password message: the server's `PG_MAX_AUTH_TOKEN_LENGTH`.
pub const MAX_PASSWORD_MESSAGE: usize = 65_535;
/// Longest SASL message of a client: the server's `PG_MAX_SASL_MESSAGE_LENGTH`.
pub const MAX_SASL_MESSAGE: usize = 1_024;
/// Longest message that a server may send while we log in. The longest real ones are errors that
/// quote a setting; the server's own bound for those is far above what anybody writes.
pub const MAX_LOGIN_MESSAGE: usize = 65_536;

/// `code` of the requests that stand where a protocol version would.
pub const CANCEL_REQUEST: u32 = 80_877_102;
pub const SSL_REQUEST: u32 = 80_877_103;
pub const GSSENC_REQUEST: u32 = 80_877_104;

/// Room made for each read: a usual startup packet fits, 10,000 half-open logins stay cheap, and
/// a length costs memory only as its bytes arrive.
const READ: usize = 512;

/// One message: its type and what follows the length word.
#[derive(Debug)]
pub struct Frame {
    pub tag: u8,
    pub body: BytesMut,
}

#[derive(Debug, Error)]
pub enum FrameError {
    #[error("the peer closed the connection")]
    Closed,
    #[error("a message announces {length} bytes where at most {limit} are allowed")]
    Length { length: u32, limit: usize },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads one packet without a type byte: a startup packet or a request that stands in its place.
///
/// The body (between 4 and [`MAX_STARTUP_PACKET`] bytes) has no length word. Bytes behind it stay
/// in `buffer`. Dropping the future loses nothing that was read.
pub async fn read_startup<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut BytesMut,
) -> Result<BytesMut, FrameError> {
    fill(stream, buffer, 4).await?;
    let length = u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
    let body = (length as usize).saturating_sub(4);
    if !(4..=MAX_STARTUP_PACKET).contains(&body) {
        return Err(FrameError::Length { length, limit: MAX_STARTUP_PACKET });
    }
    fill(stream, buffer, 4 + body).await?;
    buffer.advance(4);
    Ok(buffer.split_to(body))
}

/// Reads one ordinary message whose body has at most `limit` bytes.
///
/// Bytes behind it stay in `buffer`. Dropping the future loses nothing that was read.
pub async fn read_frame<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut BytesMut,
    limit: usize,
) -> Result<Frame, FrameError> {
    fill(stream, buffer, 5).await?;
    let length = u32::from_be_bytes([buffer[1], buffer[2], buffer[3], buffer[4]]);
    if length < 4 || length as usize - 4 > limit {
        return Err(FrameError::Length { length, limit });
    }
    fill(stream, buffer, 1 + length as usize).await?;
    let tag = buffer[0];
    buffer.advance(5);
    Ok(Frame { tag, body: buffer.split_to(length as usize - 4) })
}

/// Reads until `buffer` holds at least `wanted` bytes, which the caller has bounded.
async fn fill<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut BytesMut,
    wanted: usize,
) -> Result<(), FrameError> {
    while buffer.len() < wanted {
        buffer.reserve(READ);
        if stream.read_buf(buffer).await? == 0 {
            return Err(FrameError::Closed);
        }
    }
    Ok(())
}

/// Gives an empty buffer's memory back: what outlives a login would keep it while it idles.
pub fn released(buffer: BytesMut) -> BytesMut {
    if buffer.is_empty() { BytesMut::new() } else { buffer }
}

/// Takes a NUL-terminated string off the front of `bytes`; `None` if no terminator follows.
pub fn take_cstring<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = memchr::memchr(0, bytes)?;
    let (string, rest) = (&bytes[..end], &bytes[end + 1..]);
    *bytes = rest;
    Some(string)
}

/// Takes a big-endian integer off the front of `bytes`.
pub fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_be_bytes(*head))
}

/// Appends an authentication request.
pub fn put_authentication(buffer: &mut BytesMut, message: Authentication) {
    put(buffer, &message);
}

/// Appends a FATAL ErrorResponse.
pub fn put_fatal(buffer: &mut BytesMut, sqlstate: &str, message: &str, hint: Option<&str>) {
    let mut fields = vec![
        (b'S', "FATAL".to_owned()),
        (b'V', "FATAL".to_owned()),
        (b'C', sqlstate.to_owned()),
        (b'M', printable(message)),
    ];
    fields.extend(hint.map(|hint| (b'H', printable(hint))));
    put(buffer, &ErrorResponse::new(fields));
}

/// Appends an error as protocols before 3.0 had it: text and NUL.
pub fn put_old_fatal(buffer: &mut BytesMut, message: &str) {
    buffer.put_u8(b'E');
    buffer.put_slice(format!("FATAL:  {}\n\0", printable(message)).as_bytes());
}

/// Appends NegotiateProtocolVersion with the version that the session will use, as the server's
/// whole 32-bit number, and the `_pq_.` options that are not known here.
pub fn put_negotiate_version(buffer: &mut BytesMut, version: u32, unknown: Vec<String>) {
    put(buffer, &NegotiateProtocolVersion::new(version as i32, unknown));
}

/// Everything put here is bounded by [`MAX_STARTUP_PACKET`] or is our own text.
fn put<M: Message>(buffer: &mut BytesMut, message: &M) {
    message.encode(buffer).expect("texts quote at most a startup packet, far below pgwire's limits");
}

/// A NUL would end the field early and turn the rest into fields of its own.
fn printable(text: &str) -> String {
    text.replace('\0', "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_are_cut_where_they_end_whatever_the_reads() {
        let sent = b"p\0\0\0\x07abcR\0\0\0\x04S";
        for chunk in 1..sent.len() {
            let mut stream = in_chunks(sent, chunk);
            let mut buffer = BytesMut::new();
            let first = read_frame(&mut stream, &mut buffer, 3).await.unwrap();
            let second = read_frame(&mut stream, &mut buffer, 3).await.unwrap();
            assert_eq!((first.tag, &first.body[..]), (b'p', &b"abc"[..]));
            assert_eq!((second.tag, &second.body[..]), (b'R', &b""[..]));
            let third = read_frame(&mut stream, &mut buffer, 3).await;
            assert!(matches!(third, Err(FrameError::Closed)));
        }
    }

    /// A reader that gives at most `chunk` bytes at once.
    fn in_chunks(bytes: &[u8], chunk: usize) -> impl AsyncRead + Unpin {
        let chunks: Vec<io::Result<BytesMut>> = bytes.chunks(chunk).map(|part| Ok(part.into())).collect();
        tokio_util::io::StreamReader::new(futures_util::stream::iter(chunks))
    }

    #[tokio::test]
    async fn a_length_that_lies_costs_no_memory() {
        let startup_lengths: [u32; 6] = [0, 4, 7, 10_005, 1 << 31, u32::MAX];
        for length in startup_lengths {
            let mut buffer = BytesMut::new();
            let result = read_startup(&mut &length.to_be_bytes()[..], &mut buffer).await;
            assert!(matches!(result, Err(FrameError::Length { .. })), "{length}");
            assert!(buffer.capacity() <= 2 * READ);
        }
        for length in [0, 3, 65_540, u32::MAX] {
            let bytes = [&b"p"[..], &length.to_be_bytes()].concat();
            let mut buffer = BytesMut::new();
            let result = read_frame(&mut &bytes[..], &mut buffer, MAX_PASSWORD_MESSAGE).await;
            assert!(matches!(result, Err(FrameError::Length { .. })), "{length}");
            assert!(buffer.capacity() <= 2 * READ);
        }
        for bytes in [&b"p\0\0\xff\xff"[..], &b"p\0\0\xff\xffabc"[..]] {
            let mut buffer = BytesMut::new();
            let result = read_frame(&mut &*bytes, &mut buffer, MAX_PASSWORD_MESSAGE).await;
            assert!(matches!(result, Err(FrameError::Closed)));
            assert!(buffer.capacity() <= 4 * READ, "only what arrived takes room");
        }
    }

    #[test]
    fn a_nul_in_a_text_does_not_become_a_field() {
        let mut buffer = BytesMut::new();
        put_fatal(&mut buffer, "28P01", "user \"a\0Cxxxxx\"", Some("hint"));
        let fields = &buffer[5..];
        assert_eq!(fields, b"SFATAL\0VFATAL\0C28P01\0Muser \"a?Cxxxxx\"\0Hhint\0\0");
        assert_eq!(u32::from_be_bytes(buffer[1..5].try_into().unwrap()) as usize, buffer.len() - 1);
    }
}
