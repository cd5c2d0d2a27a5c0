//! Clients logging in to us.

use std::{io, net::SocketAddr, sync::Arc};

use bytes::BytesMut;
use pgwire::api::auth::sasl::scram::ScramServerAuth;
use thiserror::Error;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{
    Credentials, Secret,
    scram::MockSecret,
    startup::{self, ErrorForm, Fault, Negotiate, Packet, Request, unsupported_version},
};
use crate::{
    postgres::message::{
        FrameError, GSSENC_REQUEST, SSL_REQUEST, put_fatal, put_negotiate_version, put_old_fatal,
        read_startup, released,
    },
    stream::{self, Stream},
    tls::{ALPN, ClientTls},
};

/// First byte of a TLS handshake record; no startup packet that we accept begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a listener's logins go by. Built anew at each reload of configuration or certificates.
pub struct Door {
    pub(super) tls: Arc<ClientTls>,
    pub(super) trust_loopback: bool,
    pub(super) mock: Arc<MockSecret>,
    /// The exchange without channel binding, and with it where the certificate allows that.
    pub(super) scram: ScramServerAuth,
    pub(super) scram_plus: Option<ScramServerAuth>,
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
    /// Not encrypted as it has to be, or another's certificate.
    #[error("{message}")]
    Uncertified { message: String },
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
            Self::Tls(_) | Self::Uncertified { .. } => "tls",
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
    let peer = stream::peer_of(&socket)?;
    let direct = match tls.acceptor() {
        Some(acceptor) if begins_with_tls(&socket).await? => Some(acceptor),
        _ => None,
    };
    let mut arrival = Arrival { stream: Stream::plain(socket), unread: BytesMut::new(), peer };
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
pub(super) struct Arrival {
    pub(super) stream: Stream,
    pub(super) unread: BytesMut,
    pub(super) peer: SocketAddr,
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
        let within = |_| LoginFailure::Garbage("TLS within TLS".into());
        let socket = self.stream.into_tcp().map_err(within)?;
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
        Err(self.refuse("08P01", format!("received unencrypted data after {request}")).await)
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), LoginFailure> {
        self.stream.write_all(bytes).await?;
        // TLS may keep records back until it is flushed; on a plain socket this does nothing.
        Ok(self.stream.flush().await?)
    }

    pub(super) async fn refuse(&mut self, sqlstate: &'static str, message: String) -> LoginFailure {
        self.fault(Fault::Refused { sqlstate, message, hint: None, form: ErrorForm::Fields }).await
    }

    /// Tells the client why, if it can be told, and closes.
    pub(super) async fn fault(&mut self, fault: Fault) -> LoginFailure {
        let (sqlstate, message, hint, form) = match fault {
            Fault::Garbage(what) => return LoginFailure::Garbage(what.into()),
            Fault::Refused { sqlstate, message, hint, form } => (sqlstate, message, hint, form),
        };
        let mut answer = BytesMut::new();
        match form {
            ErrorForm::Fields => put_fatal(&mut answer, sqlstate, &message, hint),
            ErrorForm::Text => put_old_fatal(&mut answer, &message),
        }
        // The client may be gone; it is refused all the same.
        if self.send(&answer).await.is_ok() {
            let _ = self.stream.shutdown().await;
        }
        LoginFailure::Refused { sqlstate, message }
    }
}
