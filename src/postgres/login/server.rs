//! Us logging in to servers, as the user who logged in to us.

use std::{io, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use tokio::io::AsyncWriteExt;

use super::{
    Credentials, Md5Hash, Password,
    dial::{Encryption, dial},
    scram::{self, ChannelBinding, ClientFirst, ExchangeError, Keys, ServerSignature},
};
use crate::{
    postgres::message::{Frame, FrameError, MAX_LOGIN_MESSAGE, read_frame, released, take_cstring, take_u32},
    stream::Stream,
    tls::{self, Mode, ServerTls},
};

/// Messages that a server may send until it is ready. A login has about twenty; notices and
/// settings reported by extensions add a few.
const MAX_LOGIN_MESSAGES: usize = 1_000;
/// Above this many iterations the key derivation is too long for a thread that serves others.
const MAX_INLINE_ITERATIONS: u32 = 10_000;

/// Whom to log in as and with which settings.
#[derive(Clone, Debug, Default)]
pub struct Startup {
    pub user: String,
    pub database: String,
    /// Further startup parameters, in this order.
    pub parameters: Vec<(String, String)>,
    /// Minor protocol version to ask for: 0, or 2 for cancel keys of 256 bits. A server that has
    /// only the older one is content with it.
    pub minor: u16,
}

/// A server connection that is ready for a query.
#[derive(Debug)]
pub struct Connected {
    pub stream: Stream,
    /// What came behind ReadyForQuery.
    pub unread: BytesMut,
    /// ParameterStatus, in the server's order.
    pub parameters: Vec<(String, String)>,
    pub process_id: u32,
    /// Four bytes, up to 256 with protocol 3.2.
    pub secret_key: Vec<u8>,
}

/// What a server said instead of letting us in.
#[derive(Debug, Error)]
#[error("{severity} {sqlstate}: {message}")]
pub struct ServerError {
    /// Not translated, where the server says it so.
    pub severity: String,
    pub sqlstate: String,
    pub message: String,
    /// The whole ErrorResponse, to be passed on as it came.
    pub raw: Bytes,
}

#[derive(Debug, Error)]
pub enum ConnectError {
    /// Nobody listens there, or not for us.
    #[error("cannot connect: {0}")]
    Unreachable(io::Error),
    #[error("no login within {0:?}")]
    TimedOut(Duration),
    #[error("the connection broke during the login: {0}")]
    Io(io::Error),
    #[error("TLS: {0}")]
    Tls(String),
    #[error(transparent)]
    Server(Box<ServerError>),
    /// The server asks for a proof that we cannot give.
    #[error("{0}")]
    Credentials(String),
    #[error("the server did not speak the protocol: {0}")]
    Protocol(String),
}

impl ConnectError {
    /// The server's SQLSTATE, if it was the server that refused.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server(error) => Some(&error.sqlstate),
            _ => None,
        }
    }
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<FrameError> for ConnectError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Closed => Self::Io(io::ErrorKind::UnexpectedEof.into()),
            FrameError::Length { .. } => Self::Protocol(error.to_string()),
            FrameError::Io(error) => Self::Io(error),
        }
    }
}

impl From<ExchangeError> for ConnectError {
    fn from(error: ExchangeError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// [`connect`] with a deadline.
pub async fn connect_within(
    timeout: Duration,
    address: &str,
    tls: &ServerTls,
    startup: &Startup,
    credentials: &Credentials,
) -> Result<Connected, ConnectError> {
    tokio::time::timeout(timeout, connect(address, tls, startup, credentials))
        .await
        .unwrap_or(Err(ConnectError::TimedOut(timeout)))
}

/// Connects to `host:port` and logs in, up to the first ReadyForQuery.
///
/// With `allow` and `prefer` a second connection is tried where libpq tries one. Dropping the
/// future closes the connection.
pub async fn connect(
    address: &str,
    tls: &ServerTls,
    startup: &Startup,
    credentials: &Credentials,
) -> Result<Connected, ConnectError> {
    let attempt = async |encryption| {
        let stream = dial(address, tls, encryption).await.map_err(|error| (error, false))?;
        let encrypted = stream.is_tls();
        log_in(stream, startup, credentials).await.map_err(|error| (error, encrypted))
    };
    let (first, second) = match tls.mode() {
        Mode::Disable => (Encryption::None, None),
        Mode::Allow => (Encryption::None, Some(Encryption::Required)),
        Mode::Prefer => (Encryption::IfOffered, Some(Encryption::None)),
        Mode::Require | Mode::VerifyCa | Mode::VerifyFull => (Encryption::Required, None),
    };
    let (error, encrypted) = match attempt(first).await {
        Ok(connected) => return Ok(connected),
        Err(failed) => failed,
    };
    match second {
        Some(second) if worth_another(&error, encrypted, second) => match attempt(second).await {
            Ok(connected) => Ok(connected),
            // That TLS is not to be had here is less worth knowing than why we asked for it.
            Err((ConnectError::Tls(_), _)) => Err(error),
            Err((error, _)) => Err(error),
        },
        _ => Err(error),
    }
}

/// Whether the other kind of connection may succeed where this one failed: the handshake failed,
/// or pg_hba.conf has no line for this kind (28000, which a wrong password is not).
fn worth_another(error: &ConnectError, encrypted: bool, second: Encryption) -> bool {
    let other_kind = encrypted != (second == Encryption::Required);
    match error {
        ConnectError::Tls(_) => second == Encryption::None,
        ConnectError::Server(error) => other_kind && error.sqlstate == "28000",
        _ => false,
    }
}

/// Startup packet, authentication, and what the server reports until it is ready.
async fn log_in(
    stream: Stream,
    startup: &Startup,
    credentials: &Credentials,
) -> Result<Connected, ConnectError> {
    let mut login = Login { stream, unread: BytesMut::new(), messages_left: MAX_LOGIN_MESSAGES };
    login.send(&startup_packet(startup)?).await?;
    login.authenticate(&startup.user, credentials).await?;
    login.until_ready().await
}

/// postgres-protocol's builder, with the minor version set: it knows 3.0 only.
fn startup_packet(startup: &Startup) -> Result<BytesMut, ConnectError> {
    let named = [("user", startup.user.as_str()), ("database", startup.database.as_str())];
    let further = startup.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let mut packet = BytesMut::new();
    frontend::startup_message(named.into_iter().chain(further), &mut packet).map_err(unsendable)?;
    packet[6..8].copy_from_slice(&startup.minor.to_be_bytes());
    Ok(packet)
}

/// A NUL where there can be none.
fn unsendable(error: io::Error) -> ConnectError {
    ConnectError::Credentials(format!("cannot be sent to a server: {error}"))
}

/// A connection on its way to being ready.
struct Login {
    stream: Stream,
    unread: BytesMut,
    messages_left: usize,
}

/// What AuthenticationXXX asks for (the protocol's numbers).
#[derive(Debug, PartialEq, Eq)]
enum Ask<'a> {
    Ok,
    Cleartext,
    Md5([u8; 4]),
    Sasl { plain: bool, plus: bool },
    SaslContinue(&'a [u8]),
    SaslFinal(&'a [u8]),
    Other(u32),
}

impl Login {
    async fn send(&mut self, message: &[u8]) -> Result<(), ConnectError> {
        self.stream.write_all(message).await?;
        Ok(self.stream.flush().await?)
    }

    /// The next message but notices and version negotiation; an ErrorResponse is an error.
    async fn next(&mut self) -> Result<Frame, ConnectError> {
        while self.messages_left > 0 {
            self.messages_left -= 1;
            let frame = read_frame(&mut self.stream, &mut self.unread, MAX_LOGIN_MESSAGE).await?;
            match frame.tag {
                // The key that comes is as long as it is, whatever version brought it; and of the
                // `_pq_.` options we send none.
                b'N' | b'v' => {}
                b'E' => return Err(ConnectError::Server(Box::new(server_error(&frame.body)))),
                _ => return Ok(frame),
            }
        }
        Err(ConnectError::Protocol(format!("more than {MAX_LOGIN_MESSAGES} messages in a login")))
    }

    async fn next_ask(&mut self) -> Result<Frame, ConnectError> {
        let frame = self.next().await?;
        match frame.tag {
            b'R' => Ok(frame),
            tag => Err(unexpected(tag)),
        }
    }

    async fn authenticate(&mut self, user: &str, credentials: &Credentials) -> Result<(), ConnectError> {
        let frame = self.next_ask().await?;
        let answer = match ask(&frame.body)? {
            Ask::Ok => return Ok(()),
            Ask::Sasl { plain, plus } => return self.scram(plain, plus, credentials).await,
            Ask::Md5(salt) => md5_answer(user, salt, credentials)?,
            Ask::Cleartext if !self.stream.is_tls() => {
                return Err(cannot("the server asks for the password in clear text without TLS"));
            }
            Ask::Cleartext => match credentials {
                Credentials::Plain(password) => password.text().to_owned(),
                _ => return Err(cannot("the server asks for the password itself, which is not known")),
            },
            Ask::Other(method) => {
                return Err(cannot(&format!("the server asks for authentication method {method}")));
            }
            Ask::SaslContinue(_) | Ask::SaslFinal(_) => return Err(unexpected(b'R')),
        };
        let mut message = BytesMut::new();
        frontend::password_message(answer.as_bytes(), &mut message).map_err(unsendable)?;
        self.send(&message).await?;
        self.authentication_ok().await
    }

    async fn scram(
        &mut self,
        plain: bool,
        plus: bool,
        credentials: &Credentials,
    ) -> Result<(), ConnectError> {
        let (mechanism, binding) = self.mechanism(plain, plus)?;
        let first = ClientFirst::new(binding);
        let mut message = BytesMut::new();
        frontend::sasl_initial_response(mechanism, first.message().as_bytes(), &mut message)
            .map_err(unsendable)?;
        self.send(&message).await?;

        let frame = self.next_ask().await?;
        let Ask::SaslContinue(server_first) = ask(&frame.body)? else { return Err(unexpected(b'R')) };
        let challenge = first.challenge(server_first)?;
        let keys = keys_for(credentials, &challenge.salt, challenge.iterations).await?;
        let (client_final, signature) = challenge.answer(&keys);
        message.clear();
        frontend::sasl_response(client_final.as_bytes(), &mut message).map_err(unsendable)?;
        self.send(&message).await?;

        self.server_proved_itself(&signature).await?;
        self.authentication_ok().await
    }

    /// Without this, AuthenticationOk in the server's place would be believed from anybody.
    async fn server_proved_itself(&mut self, signature: &ServerSignature) -> Result<(), ConnectError> {
        let frame = self.next_ask().await?;
        let Ask::SaslFinal(server_final) = ask(&frame.body)? else { return Err(unexpected(b'R')) };
        Ok(signature.check(server_final)?)
    }

    /// The strongest mechanism that both sides can do.
    fn mechanism(&self, plain: bool, plus: bool) -> Result<(&'static str, ChannelBinding), ConnectError> {
        match (self.end_point(), plain, plus) {
            (Some(hash), _, true) => Ok((scram::SHA_256_PLUS, ChannelBinding::EndPoint(hash))),
            (Some(_), true, false) => Ok((scram::SHA_256, ChannelBinding::NotOffered)),
            (None, true, _) => Ok((scram::SHA_256, ChannelBinding::Unsupported)),
            _ => Err(cannot("the server offers no SASL mechanism that is known here")),
        }
    }

    fn end_point(&self) -> Option<Vec<u8>> {
        let Stream::Tls(session) = &self.stream else { return None };
        let certificate: &CertificateDer<'_> = session.get_ref().1.peer_certificates()?.first()?;
        tls::end_point(certificate)
    }

    async fn authentication_ok(&mut self) -> Result<(), ConnectError> {
        let frame = self.next_ask().await?;
        match ask(&frame.body)? {
            Ask::Ok => Ok(()),
            _ => Err(unexpected(b'R')),
        }
    }

    async fn until_ready(mut self) -> Result<Connected, ConnectError> {
        let mut parameters = Vec::new();
        let (mut process_id, mut secret_key) = (0, Vec::new());
        loop {
            let frame = self.next().await?;
            let mut body = &frame.body[..];
            match frame.tag {
                b'S' => {
                    let (name, value) = (take_text(&mut body)?, take_text(&mut body)?);
                    parameters.push((name, value));
                }
                b'K' => {
                    process_id = take_u32(&mut body).ok_or_else(|| unexpected(b'K'))?;
                    secret_key = body.to_vec();
                }
                b'Z' => break,
                tag => return Err(unexpected(tag)),
            }
        }
        let unread = released(self.unread);
        Ok(Connected { stream: self.stream, unread, parameters, process_id, secret_key })
    }
}

fn ask(mut body: &[u8]) -> Result<Ask<'_>, ConnectError> {
    let code = take_u32(&mut body).ok_or_else(|| unexpected(b'R'))?;
    Ok(match code {
        0 => Ask::Ok,
        3 => Ask::Cleartext,
        5 => Ask::Md5(body.try_into().map_err(|_| unexpected(b'R'))?),
        10 => {
            let (mut plain, mut plus) = (false, false);
            while let Some(mechanism) = take_cstring(&mut body) {
                plain |= mechanism == scram::SHA_256.as_bytes();
                plus |= mechanism == scram::SHA_256_PLUS.as_bytes();
            }
            Ask::Sasl { plain, plus }
        }
        11 => Ask::SaslContinue(body),
        12 => Ask::SaslFinal(body),
        other => Ask::Other(other),
    })
}

fn md5_answer(user: &str, salt: [u8; 4], credentials: &Credentials) -> Result<String, ConnectError> {
    match credentials {
        Credentials::Plain(password) => Ok(Md5Hash::derive(user, password.text()).answer(salt)),
        Credentials::Md5Hash(hash) => Ok(hash.answer(salt)),
        Credentials::ScramKeys(_) => {
            Err(cannot("the server asks for md5, and only SCRAM keys of this user are known"))
        }
        Credentials::None => Err(cannot(NOTHING_KNOWN)),
    }
}

const NOTHING_KNOWN: &str = "the server asks for a password, and none of this user is known";

async fn keys_for(
    credentials: &Credentials,
    salt: &[u8],
    iterations: u32,
) -> Result<Arc<Keys>, ConnectError> {
    match credentials {
        Credentials::Plain(password) => Ok(password_keys(password, salt, iterations).await),
        Credentials::ScramKeys(keys) if keys.fit(salt, iterations) => Ok(keys.clone()),
        Credentials::ScramKeys(_) => Err(cannot(
            "the server's SCRAM verifier is not the one that the client logged in with (another salt)",
        )),
        Credentials::Md5Hash(_) => {
            Err(cannot("the server asks for SCRAM, and only an md5 hash of this user is known"))
        }
        Credentials::None => Err(cannot(NOTHING_KNOWN)),
    }
}

async fn password_keys(password: &Arc<Password>, salt: &[u8], iterations: u32) -> Arc<Keys> {
    if let Some(keys) = password.remembered_keys(salt, iterations) {
        return keys;
    }
    if iterations <= MAX_INLINE_ITERATIONS {
        return password.compute_keys(salt, iterations);
    }
    let (owned, salt) = (password.clone(), salt.to_vec());
    tokio::task::spawn_blocking(move || owned.compute_keys(&salt, iterations))
        .await
        .expect("the derivation does not panic, and the runtime that polls this is not shut down")
}

fn cannot(why: &str) -> ConnectError {
    ConnectError::Credentials(why.to_owned())
}

fn unexpected(tag: u8) -> ConnectError {
    ConnectError::Protocol(format!("a message of type {:?} that makes no sense in a login", char::from(tag)))
}

fn take_text(body: &mut &[u8]) -> Result<String, ConnectError> {
    let bytes = take_cstring(body).ok_or_else(|| unexpected(b'S'))?;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// Reads an ErrorResponse's fields; those that are missing stay empty.
fn server_error(body: &[u8]) -> ServerError {
    let mut raw = BytesMut::with_capacity(5 + body.len());
    raw.put_u8(b'E');
    raw.put_u32(4 + u32::try_from(body.len()).expect("MAX_LOGIN_MESSAGE bounds it"));
    raw.put_slice(body);
    let mut error = ServerError {
        severity: String::new(),
        sqlstate: String::new(),
        message: String::new(),
        raw: raw.freeze(),
    };
    let mut rest = body;
    while let Some((&field, tail)) = rest.split_first() {
        rest = tail;
        if field == 0 {
            break;
        }
        let Some(value) = take_cstring(&mut rest) else { break };
        let value = String::from_utf8_lossy(value).into_owned();
        match field {
            b'V' => error.severity = value,
            b'S' if error.severity.is_empty() => error.severity = value,
            b'C' => error.sqlstate = value,
            b'M' => error.message = value,
            _ => {}
        }
    }
    error
}
