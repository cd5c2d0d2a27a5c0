//! What a client says first, parsed. Pure; refuses what the server refuses, in its words
//! (`ProcessStartupPacket` in the server's `backend_startup.c`).

use crate::postgres::message::{CANCEL_REQUEST, GSSENC_REQUEST, SSL_REQUEST, take_cstring, take_u32};

/// Longest key of a CancelRequest: what protocol 3.2 allows.
const MAX_CANCEL_KEY: usize = 256;
/// Shortest: the key of protocol 3.0.
const MIN_CANCEL_KEY: usize = 4;
/// The protocol's only major version, and its newest minor one that we speak.
const MAJOR: u32 = 3;
const NEWEST_MINOR: u16 = 2;

/// The first packet of a connection, or the next after a negotiation.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    Ssl,
    GssEnc,
    Cancel { process_id: u32, key: Vec<u8> },
    Startup(Packet),
}

/// A startup packet that an ordinary session can begin with.
#[derive(Debug, PartialEq, Eq)]
pub struct Packet {
    pub user: String,
    /// The user's name where the client named none.
    pub database: String,
    /// Everything else, in the client's order; `options` as sent.
    pub parameters: Vec<(String, String)>,
    /// Minor version that the session will use: 0 or 2.
    pub minor: u16,
    /// What NegotiateProtocolVersion has to say, if the client asked for more than we speak.
    pub negotiate: Option<Negotiate>,
}

/// The answer to a version or to options that are not spoken here.
#[derive(Debug, PartialEq, Eq)]
pub struct Negotiate {
    pub version: u32,
    pub unknown_options: Vec<String>,
}

/// Why no session begins.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not the protocol, or so short that the server closes without a word.
    Garbage(&'static str),
    /// The client gets this FATAL error.
    Refused { sqlstate: &'static str, message: String, hint: Option<&'static str>, form: ErrorForm },
}

/// How an error must look for a client of this version to read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorForm {
    /// Fields, since 3.0.
    Fields,
    /// Text and NUL, before it.
    Text,
}

/// Parses a packet's body (without its length word).
pub fn parse(mut body: &[u8]) -> Result<Request, Fault> {
    let code = take_u32(&mut body).ok_or(Fault::Garbage("a startup packet without a version"))?;
    match code {
        SSL_REQUEST => exact(body, Request::Ssl),
        GSSENC_REQUEST => exact(body, Request::GssEnc),
        CANCEL_REQUEST => cancel(body),
        version if version >> 16 == MAJOR => startup(version, body).map(Request::Startup),
        version => Err(unsupported_version(version)),
    }
}

/// The server ignores bytes within a request's own length; nobody sends any, so we do not.
fn exact(rest: &[u8], request: Request) -> Result<Request, Fault> {
    if rest.is_empty() { Ok(request) } else { Err(Fault::Garbage("a negotiation request with a body")) }
}

fn cancel(mut body: &[u8]) -> Result<Request, Fault> {
    let process_id = take_u32(&mut body).ok_or(Fault::Garbage("a cancel request without a process id"))?;
    if !(MIN_CANCEL_KEY..=MAX_CANCEL_KEY).contains(&body.len()) {
        return Err(Fault::Garbage("a cancel request with a key of impossible length"));
    }
    Ok(Request::Cancel { process_id, key: body.to_vec() })
}

/// What the server says to a version that it does not speak.
pub fn unsupported_version(version: u32) -> Fault {
    let (major, minor) = (version >> 16, version & 0xffff);
    Fault::Refused {
        sqlstate: "0A000",
        message: format!(
            "unsupported frontend protocol {major}.{minor}: server supports 3.0 to {MAJOR}.{NEWEST_MINOR}"
        ),
        hint: None,
        form: if major < MAJOR { ErrorForm::Text } else { ErrorForm::Fields },
    }
}

fn startup(version: u32, body: &[u8]) -> Result<Packet, Fault> {
    let (mut user, mut database) = (String::new(), String::new());
    let (mut parameters, mut unknown_options) = (Vec::new(), Vec::new());
    for (name, value) in pairs(body)? {
        match name.as_str() {
            "user" => user = value,
            "database" => database = value,
            "replication" => refuse_replication(&value)?,
            _ if name.starts_with("_pq_.") => unknown_options.push(name),
            _ => parameters.push((name, value)),
        }
    }
    if user.is_empty() {
        return Err(refused("28000", "no PostgreSQL user name specified in startup packet"));
    }
    if database.is_empty() {
        database.clone_from(&user);
    }
    let asked = (version & 0xffff) as u16;
    let minor = spoken_minor(asked);
    let negotiate = (minor != asked || !unknown_options.is_empty())
        .then(|| Negotiate { version: MAJOR << 16 | u32::from(minor), unknown_options });
    Ok(Packet { user, database, parameters, minor, negotiate })
}

/// 3.1 was never released: who asks for it gets 3.0.
fn spoken_minor(asked: u16) -> u16 {
    match asked {
        0 | 1 => 0,
        _ => NEWEST_MINOR,
    }
}

/// Name and value strings up to the terminator, which must be the last byte.
fn pairs(mut body: &[u8]) -> Result<Vec<(String, String)>, Fault> {
    let layout = || refused("08P01", "invalid startup packet layout: expected terminator as last byte");
    let mut pairs = Vec::new();
    loop {
        let name = take_cstring(&mut body).ok_or_else(layout)?;
        if name.is_empty() {
            return if body.is_empty() { Ok(pairs) } else { Err(layout()) };
        }
        let value = take_cstring(&mut body).ok_or_else(layout)?;
        pairs.push((text(name)?, text(value)?));
    }
}

/// The server takes any bytes and compares them as such; names that are not UTF-8 exist nowhere
/// else in the proxy, nor in its configuration.
fn text(bytes: &[u8]) -> Result<String, Fault> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| refused("22021", "invalid byte sequence for encoding \"UTF8\" in startup packet"))
}

/// A walsender speaks another protocol after the login, and to one server only.
fn refuse_replication(value: &str) -> Result<(), Fault> {
    match parse_bool(value) {
        Some(false) => Ok(()),
        None if value != "database" => Err(Fault::Refused {
            sqlstate: "22023",
            message: format!("invalid value for parameter \"replication\": \"{value}\""),
            hint: Some("Valid values are: \"false\", 0, \"true\", 1, \"database\"."),
            form: ErrorForm::Fields,
        }),
        Some(true) | None => Err(Fault::Refused {
            sqlstate: "0A000",
            message: "replication connections do not pass through the proxy".into(),
            hint: Some("Connect to the server itself."),
            form: ErrorForm::Fields,
        }),
    }
}

/// The server's `parse_bool`: any case, unique beginnings of the words.
fn parse_bool(value: &str) -> Option<bool> {
    let value = value.to_ascii_lowercase();
    let begins = |word: &str, shortest: usize| value.len() >= shortest && word.starts_with(&value);
    if begins("true", 1) || begins("yes", 1) || value == "on" || value == "1" {
        Some(true)
    } else if begins("false", 1) || begins("no", 1) || begins("off", 2) || value == "0" {
        Some(false)
    } else {
        None
    }
}

/// A FATAL error in today's form, without a hint.
pub fn refused(sqlstate: &'static str, message: &str) -> Fault {
    Fault::Refused { sqlstate, message: message.into(), hint: None, form: ErrorForm::Fields }
}
