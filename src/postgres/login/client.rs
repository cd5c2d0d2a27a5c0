//! Clients logging in to us.

use std::{io, net::SocketAddr, sync::Arc};

use bytes::BytesMut;
use pgwire::{
    api::auth::sasl::scram::ScramServerAuth, error::PgWireError, messages::startup::Authentication,
};
use thiserror::Error;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{
    Credentials, Md5Hash, Secret,
    scram::{self, Keys, MockSecret, Verifier},
    startup::{self, ErrorForm, Fault, Negotiate, Packet, Request, refused, unsupported_version},
};
use crate::{
    postgres::message::{
        FrameError, GSSENC_REQUEST, MAX_PASSWORD_MESSAGE, MAX_SASL_MESSAGE, SSL_REQUEST, put_authentication,
        put_fatal, put_negotiate_version, put_old_fatal, read_frame, read_startup, released, take_cstring,
        take_u32,
    },
    stream::{self, Stream},
    tls::{self, ALPN, ClientTls, Mode},
};

/// First byte of a TLS handshake record; no startup packet that we accept begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a listener's logins go by. Built anew at each reload of configuration or certificates.
pub struct Door {
    tls: Arc<ClientTls>,
    trust_loopback: bool,
    mock: Arc<MockSecret>,
    /// The exchange without channel binding, and with it where the certificate allows that.
    scram: ScramServerAuth,
    scram_plus: Option<ScramServerAuth>,
}

impl Door {
    /// `mock` is one for the life of the process.
    pub fn new(tls: Arc<ClientTls>, trust_loopback: bool, mock: Arc<MockSecret>) -> Self {
        let mut plus = ScramServerAuth::new();
        // pgwire knows no channel binding for certificates signed with EdDSA or RSA-PSS, for which
        // RFC 5929 defines none either: such a door offers SCRAM-SHA-256 alone.
        let bound = tls.certificate_pem().is_some_and(|pem| plus.configure_certificate(pem).is_ok());
        Self { tls, trust_loopback, mock, scram: ScramServerAuth::new(), scram_plus: bound.then_some(plus) }
    }
}

/// Where a login finds what it needs.
pub trait LoginContext: Sync {
    fn door(&self) -> Arc<Door>;

    /// What is known of this user. May ask a server (`auth.query`) and so may fail.
    fn secret(&self, user: &str, database: &str) -> impl Future<Output = Result<Secret, SecretError>> + Send;
}

/// Nobody could say now whether this user exists. The reason goes to the log, not to the client.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct SecretError(pub String);

/// How a connection began.
#[derive(Debug)]
pub enum Accepted {
    Login(Box<Login>),
    Cancel(Cancel),
}

/// A client who proved who it is; AuthenticationOk has been sent, nothing after it.
#[derive(Debug)]
pub struct Login {
    pub stream: Stream,
    /// What the client sent ahead.
    pub unread: BytesMut,
    pub peer: SocketAddr,
    pub user: String,
    /// The user's name where the client named none.
    pub database: String,
    /// All other startup parameters in the client's order; `options` as sent.
    pub parameters: Vec<(String, String)>,
    /// Minor protocol version: 0, or 2 (whose cancel keys are longer than four bytes).
    pub minor: u16,
    pub credentials: Credentials,
}

/// A cancel request. The client waits until `stream` is closed.
#[derive(Debug)]
pub struct Cancel {
    pub stream: Stream,
    pub process_id: u32,
    pub key: Vec<u8>,
}

/// Why a connection did not become a session. The client has been told what the server would have
/// told it, and the connection is closed.
#[derive(Debug, Error)]
pub enum LoginFailure {
    /// Also the ordinary end of a client that has no password and goes to ask for it.
    #[error("the client closed the connection")]
    Closed,
    #[error("not a PostgreSQL client: {0}")]
    Garbage(String),
    #[error("{message}")]
    Refused { sqlstate: &'static str, message: String },
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("password authentication failed for user \"{user}\"")]
    WrongPassword { user: String },
    #[error("password authentication failed for user \"{user}\": there is no such user")]
    UnknownUser { user: String },
    #[error("the password of user \"{user}\" could not be looked up: {reason}")]
    Lookup { user: String, reason: SecretError },
    #[error(transparent)]
    Io(io::Error),
}

impl LoginFailure {
    /// The value of a metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Garbage(_) => "garbage",
            Self::Refused { .. } => "refused",
            Self::Tls(_) => "tls",
            Self::WrongPassword { .. } => "wrong_password",
            Self::UnknownUser { .. } => "unknown_user",
            Self::Lookup { .. } => "lookup",
            Self::Io(_) => "io",
        }
    }
}

impl From<FrameError> for LoginFailure {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Closed => Self::Closed,
            // The server closes without a word on a lying length, and so do we.
            FrameError::Length { .. } => Self::Garbage(error.to_string()),
            FrameError::Io(error) => error.into(),
        }
    }
}

impl From<io::Error> for LoginFailure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                Self::Closed
            }
            _ => Self::Io(error),
        }
    }
}

/// Negotiates, reads the startup packet and authenticates.
///
/// Waits as long as the client takes: the caller sets the deadline. Dropping the future closes the
/// connection and does nothing else.
pub async fn accept<C: LoginContext>(socket: TcpStream, context: &C) -> Result<Accepted, LoginFailure> {
    let door = context.door();
    let (mut arrival, opening) = open(socket, &door.tls).await?;
    let packet = match opening {
        Opening::Startup(packet) => packet,
        Opening::Cancel { process_id, key } => {
            return Ok(Accepted::Cancel(Cancel { stream: arrival.stream, process_id, key }));
        }
    };
    if let Some(Negotiate { version, unknown_options }) = packet.negotiate {
        let mut answer = BytesMut::new();
        put_negotiate_version(&mut answer, version, unknown_options);
        arrival.send(&answer).await?;
    }
    let credentials = arrival.authenticate(&door, &packet.user, &packet.database, context).await?;
    Ok(Accepted::Login(Box::new(Login {
        stream: arrival.stream,
        unread: released(arrival.unread),
        peer: arrival.peer,
        user: packet.user,
        database: packet.database,
        parameters: packet.parameters,
        minor: packet.minor,
        credentials,
    })))
}

/// What follows the negotiation of encryption.
enum Opening {
    Startup(Packet),
    Cancel { process_id: u32, key: Vec<u8> },
}

/// Negotiates encryption and reads what follows.
async fn open(socket: TcpStream, tls: &ClientTls) -> Result<(Arrival, Opening), LoginFailure> {
    stream::configure(&socket)?;
    let peer = socket.peer_addr()?;
    let direct = match tls.acceptor() {
        Some(acceptor) if begins_with_tls(&socket).await? => Some(acceptor),
        _ => None,
    };
    let mut arrival = Arrival { stream: Stream::Plain(socket), unread: BytesMut::new(), peer };
    // Each may be asked for once, and neither within TLS: what comes again is taken for a version.
    let (mut ssl_open, mut gssenc_open) = (true, true);
    if let Some(acceptor) = direct {
        arrival = arrival.handshake(acceptor, Negotiated::Alpn).await?;
        (ssl_open, gssenc_open) = (false, false);
    }
    loop {
        match arrival.request().await? {
            Request::Startup(packet) => return Ok((arrival, Opening::Startup(packet))),
            Request::Cancel { process_id, key } => return Ok((arrival, Opening::Cancel { process_id, key })),
            Request::Ssl if ssl_open => {
                ssl_open = false;
                arrival.nothing_unread("SSL request").await?;
                match tls.acceptor() {
                    Some(acceptor) => {
                        gssenc_open = false;
                        arrival.send(b"S").await?;
                        arrival = arrival.handshake(acceptor, Negotiated::SslRequest).await?;
                    }
                    None => arrival.send(b"N").await?,
                }
            }
            Request::GssEnc if gssenc_open => {
                gssenc_open = false;
                arrival.nothing_unread("GSSAPI encryption request").await?;
                arrival.send(b"N").await?;
            }
            Request::Ssl => return Err(arrival.fault(unsupported_version(SSL_REQUEST)).await),
            Request::GssEnc => return Err(arrival.fault(unsupported_version(GSSENC_REQUEST)).await),
        }
    }
}

/// Whether the client begins with TLS at once (`sslnegotiation=direct`, since libpq 17).
async fn begins_with_tls(socket: &TcpStream) -> Result<bool, LoginFailure> {
    let mut first = [0];
    match socket.peek(&mut first).await? {
        0 => Err(LoginFailure::Closed),
        _ => Ok(first[0] == TLS_HANDSHAKE),
    }
}

/// How a client came to speak TLS.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Negotiated {
    SslRequest,
    /// At once: it must then name the protocol, lest a confused HTTPS client is talked to.
    Alpn,
}

/// A connection that is not yet anybody's.
struct Arrival {
    stream: Stream,
    unread: BytesMut,
    peer: SocketAddr,
}

impl Arrival {
    async fn request(&mut self) -> Result<Request, LoginFailure> {
        let packet = read_startup(&mut self.stream, &mut self.unread).await?;
        match startup::parse(&packet) {
            Ok(request) => Ok(request),
            Err(fault) => Err(self.fault(fault).await),
        }
    }

    async fn handshake(self, acceptor: TlsAcceptor, how: Negotiated) -> Result<Self, LoginFailure> {
        let Stream::Plain(socket) = self.stream else {
            return Err(LoginFailure::Garbage("TLS within TLS".into()));
        };
        let session = acceptor.accept(socket).await.map_err(LoginFailure::Tls)?;
        if how == Negotiated::Alpn && session.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(LoginFailure::Garbage("TLS at once, without the ALPN name of PostgreSQL".into()));
        }
        Ok(Self { stream: Stream::tls(session), ..self })
    }

    /// Bytes sent before the handshake are not under its protection: whoever is in the middle may
    /// have put them there (CVE-2021-23214).
    async fn nothing_unread(&mut self, request: &str) -> Result<(), LoginFailure> {
        if self.unread.is_empty() {
            return Ok(());
        }
        Err(self.refuse("08P01", format!("received unencrypted data after {request}"), None).await)
    }

    async fn authenticate<C: LoginContext>(
        &mut self,
        door: &Door,
        user: &str,
        database: &str,
        context: &C,
    ) -> Result<Credentials, LoginFailure> {
        let mode = door.tls.mode();
        if mode.requires_tls() && !self.stream.is_tls() {
            return Err(self.refuse("28000", "connection requires TLS (SSL)".into(), None).await);
        }
        if mode == Mode::VerifyFull && !self.certified_as(user) {
            let message = format!("certificate authentication failed for user \"{user}\"");
            return Err(self.refuse("28000", message, None).await);
        }
        let proven =
            mode == Mode::VerifyFull || door.trust_loopback && self.peer.ip().to_canonical().is_loopback();
        let secret = match context.secret(user, database).await {
            Ok(secret) => secret,
            Err(reason) => return Err(self.no_secret(user, reason).await),
        };
        if proven {
            self.welcome(BytesMut::new()).await?;
            return Ok(secret.into_credentials());
        }
        match secret {
            Secret::Plain(password) => {
                self.scram(door, user, &password.verifier()).await?;
                Ok(Credentials::Plain(password))
            }
            Secret::Scram(verifier) => {
                let keys = self.scram(door, user, &verifier).await?;
                Ok(Credentials::ScramKeys(Arc::new(keys)))
            }
            Secret::Md5(hash) => {
                self.md5(user, &hash).await?;
                Ok(Credentials::Md5Hash(hash))
            }
            Secret::Unknown => match self.scram(door, user, &Verifier::mock(user, &door.mock)).await {
                Err(LoginFailure::WrongPassword { user }) => Err(LoginFailure::UnknownUser { user }),
                Err(failure) => Err(failure),
                // Nobody has a preimage of the mock verifier's stored key.
                Ok(_) => Err(self.wrong_password(user).await),
            },
        }
    }

    /// Whether the client's certificate, verified in the handshake, is this user's: the subject's
    /// common name, compared as `clientcert=verify-full` does.
    fn certified_as(&self, user: &str) -> bool {
        let Stream::Tls(session) = &self.stream else { return false };
        let certificate = session.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        certificate.and_then(|certificate| tls::common_name(certificate)).is_some_and(|name| name == user)
    }

    /// The whole SCRAM exchange up to AuthenticationOk; the client key is what its proof reveals.
    async fn scram(&mut self, door: &Door, user: &str, verifier: &Verifier) -> Result<Keys, LoginFailure> {
        let plus = door.scram_plus.as_ref().filter(|_| self.stream.is_tls());
        let mut mechanisms = vec![scram::SHA_256.to_owned()];
        if plus.is_some() {
            mechanisms.insert(0, scram::SHA_256_PLUS.to_owned());
        }
        self.request_authentication(Authentication::SASL(mechanisms)).await?;

        let initial = self.read_answer(MAX_SASL_MESSAGE, "SASL").await?;
        let client_first = match initial_response(&initial, plus.is_some()) {
            Ok(data) => data,
            Err(fault) => return Err(self.fault(fault).await),
        };
        let exchange = plus.unwrap_or(&door.scram);
        let begun = exchange.on_client_first_message_with_secret(client_first, verifier.for_pgwire());
        let Ok((server_first, exchange)) = begun else {
            return Err(self.fault(malformed()).await);
        };
        self.request_authentication(Authentication::SASLContinue(server_first.clone().into())).await?;

        let client_final = self.read_answer(MAX_SASL_MESSAGE, "SASL").await?;
        let server_final = match exchange.on_client_final_message(&client_final) {
            Ok(server_final) => server_final,
            Err(PgWireError::InvalidPassword(_)) => return Err(self.wrong_password(user).await),
            Err(_) => return Err(self.fault(malformed()).await),
        };
        let Some(keys) = verifier.recover(client_first, server_first.as_bytes(), &client_final) else {
            return Err(self.wrong_password(user).await);
        };
        let mut answer = BytesMut::new();
        put_authentication(&mut answer, Authentication::SASLFinal(server_final.into()));
        self.welcome(answer).await?;
        Ok(keys)
    }

    async fn md5(&mut self, user: &str, hash: &Md5Hash) -> Result<(), LoginFailure> {
        let salt: [u8; 4] = rand::random();
        self.request_authentication(Authentication::MD5Password(salt.to_vec())).await?;
        let answer = self.read_answer(MAX_PASSWORD_MESSAGE, "password").await?;
        match answer.split_last() {
            Some((0, password)) if hash.accepts(salt, password) => self.welcome(BytesMut::new()).await,
            Some((0, _)) => Err(self.wrong_password(user).await),
            _ => Err(self.refuse("08P01", "invalid password packet size".into(), None).await),
        }
    }

    /// Reads a message of type `p`, whose meaning depends on what was asked.
    async fn read_answer(&mut self, limit: usize, kind: &str) -> Result<BytesMut, LoginFailure> {
        let frame = read_frame(&mut self.stream, &mut self.unread, limit).await?;
        if frame.tag == b'p' {
            return Ok(frame.body);
        }
        let message = format!("expected {kind} response, got message type {}", frame.tag);
        Err(self.refuse("08P01", message, None).await)
    }

    async fn request_authentication(&mut self, request: Authentication) -> Result<(), LoginFailure> {
        let mut message = BytesMut::new();
        put_authentication(&mut message, request);
        self.send(&message).await
    }

    /// Sends AuthenticationOk behind what is in `answer`, in one packet.
    async fn welcome(&mut self, mut answer: BytesMut) -> Result<(), LoginFailure> {
        put_authentication(&mut answer, Authentication::Ok);
        self.send(&answer).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), LoginFailure> {
        self.stream.write_all(bytes).await?;
        // TLS may keep records back until it is flushed; on a plain socket this does nothing.
        Ok(self.stream.flush().await?)
    }

    async fn wrong_password(&mut self, user: &str) -> LoginFailure {
        let message = format!("password authentication failed for user \"{user}\"");
        match self.refuse("28P01", message, None).await {
            LoginFailure::Refused { .. } => LoginFailure::WrongPassword { user: user.to_owned() },
            failure => failure,
        }
    }

    async fn no_secret(&mut self, user: &str, reason: SecretError) -> LoginFailure {
        let message = format!("the password of user \"{user}\" cannot be looked up now");
        match self.refuse("57P03", message, None).await {
            LoginFailure::Refused { .. } => LoginFailure::Lookup { user: user.to_owned(), reason },
            failure => failure,
        }
    }

    async fn refuse(
        &mut self,
        sqlstate: &'static str,
        message: String,
        hint: Option<&'static str>,
    ) -> LoginFailure {
        self.fault(Fault::Refused { sqlstate, message, hint, form: ErrorForm::Fields }).await
    }

    /// Tells the client why, if it can be told, and closes.
    async fn fault(&mut self, fault: Fault) -> LoginFailure {
        let (sqlstate, message, hint, form) = match fault {
            Fault::Garbage(what) => return LoginFailure::Garbage(what.into()),
            Fault::Refused { sqlstate, message, hint, form } => (sqlstate, message, hint, form),
        };
        let mut answer = BytesMut::new();
        match form {
            ErrorForm::Fields => put_fatal(&mut answer, sqlstate, &message, hint),
            ErrorForm::Text => put_old_fatal(&mut answer, &message),
        }
        if let Err(failure) = self.send(&answer).await {
            return failure;
        }
        // The peer may be gone already: what it was told is told.
        let _ = self.stream.shutdown().await;
        LoginFailure::Refused { sqlstate, message }
    }
}

/// Takes the client-first-message out of a SASLInitialResponse, after checking that its mechanism
/// was offered and that mechanism and channel binding flag go together (RFC 5802, section 6).
fn initial_response(mut body: &[u8], plus_offered: bool) -> Result<&[u8], Fault> {
    let mechanism = take_cstring(&mut body).ok_or_else(malformed)?;
    let length = take_u32(&mut body).ok_or_else(malformed)?;
    if length as usize != body.len() {
        // Also a length of -1: a mechanism without its first message, which no driver sends.
        return Err(malformed());
    }
    let plus = mechanism == scram::SHA_256_PLUS.as_bytes();
    if mechanism != scram::SHA_256.as_bytes() && !(plus && plus_offered) {
        return Err(refused("08P01", "client selected an invalid SASL authentication mechanism"));
    }
    match body.first() {
        Some(b'p') if plus => Ok(body),
        Some(b'n') if !plus => Ok(body),
        // The client can bind and believes that we can not: somebody took -PLUS off our offer.
        Some(b'y') if !plus && plus_offered => {
            Err(refused("28000", "SCRAM channel binding negotiation error"))
        }
        Some(b'y') if !plus => Ok(body),
        _ => Err(malformed()),
    }
}

fn malformed() -> Fault {
    refused("08P01", "malformed SCRAM message")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initial(mechanism: &str, first: &str) -> Vec<u8> {
        let length = (first.len() as u32).to_be_bytes();
        [mechanism.as_bytes(), b"\0", &length, first.as_bytes()].concat()
    }

    #[test]
    fn mechanism_and_channel_binding_flag_go_together() {
        let plus = scram::SHA_256_PLUS;
        let plain = scram::SHA_256;
        let bound = "p=tls-server-end-point,,n=,r=x";
        // Mechanism, message, whether -PLUS was offered, SQLSTATE of the refusal.
        let table = [
            (plain, "n,,n=,r=x", false, None),
            (plain, "n,,n=,r=x", true, None),
            (plain, "y,,n=,r=x", false, None),
            (plain, "y,,n=,r=x", true, Some("28000")),
            (plain, bound, true, Some("08P01")),
            (plus, bound, true, None),
            (plus, bound, false, Some("08P01")),
            (plus, "n,,n=,r=x", true, Some("08P01")),
            (plus, "y,,n=,r=x", true, Some("08P01")),
            (plain, "x,,n=,r=x", true, Some("08P01")),
            (plain, "", true, Some("08P01")),
        ];
        for (mechanism, first, offered, refusal) in table {
            let refused = match initial_response(&initial(mechanism, first), offered) {
                Ok(message) => {
                    assert_eq!(message, first.as_bytes());
                    None
                }
                Err(Fault::Refused { sqlstate, .. }) => Some(sqlstate),
                Err(Fault::Garbage(what)) => panic!("{what}"),
            };
            assert_eq!(refused, refusal, "{mechanism} {first} {offered}");
        }
    }
}
