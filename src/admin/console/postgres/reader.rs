//! What a client of psql's door says, cut and read by us.
//!
//! pgwire's decoders take bodies from the buffer that they share, without looking at a message's
//! own length: a text without its end eats the next message, and a length that lies panics, before
//! any login. So pgwire gets messages that are made here, of frames that are exactly what they say
//! they are, and reads nothing by itself.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use pgwire::messages::{
    PgWireFrontendMessage as Message,
    extendedquery::{Bind, Close, Describe, Execute, Flush, Parse, Sync},
    simplequery::Query,
    startup::{PasswordMessageFamily, SASLInitialResponse, SASLResponse, Startup},
    terminate::Terminate,
};
use thiserror::Error;
use tokio::{
    io::AsyncWriteExt,
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
};

use crate::postgres::{
    login::startup::{Fault, Request, parse},
    message::{
        FrameError, MAX_SASL_MESSAGE, put_fatal, put_negotiate_version, read_frame, read_startup,
        take_cstring, take_u32,
    },
};

/// Longest message of somebody who is in; commands are far shorter.
const MAX_MESSAGE: usize = 64 * 1024;

/// Requests for encryption that may come before a startup packet: one of each kind.
const NEGOTIATIONS: usize = 2;

/// Names of statements and portals that a client may have given out and not closed.
const MAX_NAMES: usize = 1024;

/// Why nothing more is read.
#[derive(Debug, Error)]
pub enum Ended {
    #[error("{0}")]
    Protocol(&'static str),
    #[error("{message}")]
    Refused { sqlstate: &'static str, message: String },
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Nothing is wrong: there is just no session.
    #[error("the client has left")]
    Left,
}

impl From<FrameError> for Ended {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Closed => Self::Left,
            FrameError::Length { .. } => Self::Protocol("invalid message length"),
            FrameError::Io(error) => Self::Io(error),
        }
    }
}

impl Ended {
    /// The error that the client gets, if it gets one.
    pub fn last_words(&self) -> Option<BytesMut> {
        let mut out = BytesMut::new();
        match self {
            Self::Protocol(message) => put_fatal(&mut out, "08P01", message, None),
            Self::Refused { sqlstate, message } => put_fatal(&mut out, sqlstate, message, None),
            Self::Io(_) | Self::Left => return None,
        }
        Some(out)
    }
}

/// The client's half of a connection.
pub struct Reader {
    inner: OwnedReadHalf,
    buffer: BytesMut,
    /// SASL messages so far.
    proofs: usize,
    /// Names given out and not closed.
    names: usize,
}

impl Reader {
    pub fn new(inner: OwnedReadHalf) -> Self {
        Self { inner, buffer: BytesMut::new(), proofs: 0, names: 0 }
    }

    /// The startup packet; encryption is declined on the way, and a newer protocol too.
    ///
    /// # Errors
    /// When there is none.
    pub async fn startup(&mut self, writer: &mut OwnedWriteHalf) -> Result<Message, Ended> {
        for _ in 0..=NEGOTIATIONS {
            let body = read_startup(&mut self.inner, &mut self.buffer).await?;
            let packet = match parse(&body).map_err(refusal)? {
                Request::Ssl | Request::GssEnc => {
                    writer.write_all(b"N").await?;
                    continue;
                }
                // Nothing here runs long enough to be cancelled.
                Request::Cancel { .. } => return Err(Ended::Left),
                Request::Startup(packet) => packet,
            };
            if let Some(negotiate) = packet.negotiate {
                let mut out = BytesMut::new();
                put_negotiate_version(&mut out, PROTOCOL_3_0, negotiate.unknown_options);
                writer.write_all(&out).await?;
            }
            let mut startup = Startup::new();
            startup.parameters = packet.parameters.into_iter().collect();
            startup.parameters.insert("user".to_owned(), packet.user);
            startup.parameters.insert("database".to_owned(), packet.database);
            return Ok(Message::Startup(startup));
        }
        Err(Ended::Protocol("too many requests for encryption"))
    }

    /// The next answer of somebody who is not in yet.
    ///
    /// # Errors
    /// When it is none.
    pub async fn proof(&mut self) -> Result<Message, Ended> {
        let frame = read_frame(&mut self.inner, &mut self.buffer, MAX_SASL_MESSAGE).await?;
        if frame.tag != b'p' {
            return Err(Ended::Protocol("expected SASL response"));
        }
        self.proofs += 1;
        let read = if self.proofs == 1 { first_proof(&frame.body) } else { Some(proof(frame.body.freeze())) };
        read.map(Message::PasswordMessageFamily).ok_or(Ended::Protocol("malformed SASL message"))
    }

    /// The next message of somebody who is in.
    ///
    /// # Errors
    /// When it is none, or the client has left.
    pub async fn next(&mut self) -> Result<Message, Ended> {
        let frame = read_frame(&mut self.inner, &mut self.buffer, MAX_MESSAGE).await?;
        let message = read(frame.tag, &frame.body).ok_or(Ended::Protocol("invalid message format"))?;
        match &message {
            Message::Terminate(_) => return Err(Ended::Left),
            Message::Parse(Parse { name: Some(_), .. })
            | Message::Bind(Bind { portal_name: Some(_), .. }) => {
                self.names += 1;
            }
            Message::Close(Close { name: Some(_), .. }) => self.names = self.names.saturating_sub(1),
            _ => {}
        }
        if self.names > MAX_NAMES {
            return Err(Ended::Protocol("too many prepared statements and portals for the console"));
        }
        Ok(message)
    }
}

const PROTOCOL_3_0: u32 = 3 << 16;

fn refusal(fault: Fault) -> Ended {
    match fault {
        Fault::Garbage(why) => Ended::Protocol(why),
        Fault::Refused { sqlstate, message, .. } => Ended::Refused { sqlstate, message },
    }
}

/// SASLInitialResponse: a mechanism, and what it begins with.
fn first_proof(mut body: &[u8]) -> Option<PasswordMessageFamily> {
    let body = &mut body;
    let mechanism = text(body)?;
    let data = value(body)?;
    let whole = SASLInitialResponse::new(mechanism, data);
    body.is_empty().then_some(PasswordMessageFamily::SASLInitialResponse(whole))
}

fn proof(data: Bytes) -> PasswordMessageFamily {
    PasswordMessageFamily::SASLResponse(SASLResponse::new(data))
}

/// A message, if the body is what its kind says and nothing more.
fn read(tag: u8, mut body: &[u8]) -> Option<Message> {
    let body = &mut body;
    let message = match tag {
        b'Q' => Message::Query(Query::new(text(body)?)),
        b'P' => Message::Parse(Parse::new(name(body)?, text(body)?, list(body, take_u32)?)),
        b'B' => Message::Bind(Bind::new(
            name(body)?,
            name(body)?,
            list(body, format)?,
            list(body, value)?,
            list(body, format)?,
        )),
        b'D' => Message::Describe(Describe::new(kind(body)?, name(body)?)),
        b'C' => Message::Close(Close::new(kind(body)?, name(body)?)),
        b'E' => Message::Execute(Execute::new(name(body)?, i32::try_from(take_u32(body)?).ok()?)),
        b'H' => Message::Flush(Flush::new()),
        b'S' => Message::Sync(Sync::new()),
        b'X' => Message::Terminate(Terminate::new()),
        _ => return None,
    };
    body.is_empty().then_some(message)
}

fn text(body: &mut &[u8]) -> Option<String> {
    String::from_utf8(take_cstring(body)?.to_vec()).ok()
}

/// The name of a statement or portal; the unnamed one is `None`.
fn name(body: &mut &[u8]) -> Option<Option<String>> {
    text(body).map(|name| Some(name).filter(|name| !name.is_empty()))
}

/// Whether a statement or a portal is meant.
fn kind(body: &mut &[u8]) -> Option<u8> {
    let kind = body.first().copied().filter(|kind| matches!(kind, b'S' | b'P'))?;
    body.advance(1);
    Some(kind)
}

fn take_u16(body: &mut &[u8]) -> Option<u16> {
    let (head, rest) = body.split_first_chunk::<2>()?;
    *body = rest;
    Some(u16::from_be_bytes(*head))
}

/// A format code; there are two.
fn format(body: &mut &[u8]) -> Option<i16> {
    take_u16(body).filter(|code| *code <= 1).and_then(|code| i16::try_from(code).ok())
}

/// A number of elements and the elements: no room is made for more than there are.
fn list<T>(body: &mut &[u8], mut element: impl FnMut(&mut &[u8]) -> Option<T>) -> Option<Vec<T>> {
    let count = take_u16(body)?;
    let mut elements = Vec::new();
    for _ in 0..count {
        elements.push(element(body)?);
    }
    Some(elements)
}

/// A length and that many bytes, or the length -1 for nothing.
fn value(body: &mut &[u8]) -> Option<Option<Bytes>> {
    let length = take_u32(body)?;
    if length == u32::MAX {
        return Some(None);
    }
    let (head, rest) = body.split_at_checked(length as usize)?;
    let value = Bytes::copy_from_slice(head);
    *body = rest;
    Some(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_only_when_they_are_exactly_what_they_say() {
        let whole: [(u8, &[u8]); 9] = [
            (b'Q', b"SHOW NODES\0"),
            (b'P', b"\0\0\0\0"),
            (b'P', b"s\0SHOW NODES\0\0\x01\0\0\0\x19"),
            (b'B', b"\0\0\0\0\0\0\0\0"),
            (b'B', b"p\0s\0\0\x01\0\x01\0\x02\0\0\0\x01x\xff\xff\xff\xff\0\x01\0\0"),
            (b'D', b"Ss\0"),
            (b'C', b"P\0"),
            (b'E', b"\0\0\0\0\0"),
            (b'S', b""),
        ];
        for (tag, body) in whole {
            assert!(read(tag, body).is_some(), "{} {body:?}", char::from(tag));
            let more = [body, b"x"].concat();
            assert!(read(tag, &more).is_none(), "{} {more:?}", char::from(tag));
            for cut in 0..body.len() {
                assert!(read(tag, &body[..cut]).is_none(), "{} {:?}", char::from(tag), &body[..cut]);
            }
        }
        let faulty: [(u8, &[u8]); 6] = [
            (b'B', b"\0\0\0\x01\0\x02\0\0\0\0"),
            (b'B', b"\0\0\0\0\0\x01\x7f\xff\xff\xff\0\0"),
            (b'D', b"X\0"),
            (b'E', b"\0\xff\xff\xff\xff"),
            (b'Q', b"\xff\0"),
            (b'd', b"1"),
        ];
        for (tag, body) in faulty {
            assert!(read(tag, body).is_none(), "{} {body:?}", char::from(tag));
        }
    }

    #[test]
    fn a_first_proof_has_a_mechanism_and_as_much_as_it_says() {
        assert!(first_proof(b"SCRAM-SHA-256\0\0\0\0\x03n,,").is_some());
        assert!(first_proof(b"SCRAM-SHA-256\0\xff\xff\xff\xff").is_some());
        let faulty: [&[u8]; 5] =
            [b"", b"SCRAM", b"SCRAM\0", b"SCRAM\0\0\0\0\x09n,,", b"SCRAM\0\0\0\0\x01n,,"];
        for body in faulty {
            assert!(first_proof(body).is_none(), "{body:?}");
        }
    }
}
