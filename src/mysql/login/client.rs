//! Clients logging in to us.

use std::{io, net::IpAddr, sync::Arc};

use subtle::ConstantTimeEq;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use zeroize::Zeroizing;

use super::{
    CACHING_SHA2, Credentials, ED25519, MAX_PACKET, NATIVE,
    response::{Response, TLS_REQUEST, flags},
    scramble::{self, ED25519_NONCE, NONCE},
    take_packet,
    vault::Vault,
    verifier::Verifier,
};
use crate::{
    inbox::Inbox,
    mysql::{
        compress::{Algorithm, Wire, ZstdLevel},
        packet::{self, capability as can, status},
        refusal::{Numbers, put_error},
    },
    refusal::{Refusal, RefusalKind},
    stream::{self, Stream},
    tls::{self, ClientTls},
};

/// caching_sha2_password: the proof was enough; the password itself is needed; the client wants the
/// key to encrypt it with.
const FAST_AUTH_SUCCESS: u8 = 3;
const FULL_AUTH: u8 = 4;
const WANTS_KEY: &[u8] = &[2];

/// What a proof may be by that comes without having been asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unasked {
    /// By the plugin and the nonce of the greeting.
    Counts,
    /// Nothing: as the servers, which ask whoever becomes another user for a proof of its own. Some clients
    /// send none before.
    Nothing,
}

/// What a client is greeted with.
pub struct Offer {
    /// As the servers', so that drivers do what they would do there.
    pub version: Box<[u8]>,
    pub capabilities: u64,
    pub collation: u8,
    /// The plugin that servers begin with.
    pub plugin: &'static str,
    pub number: u32,
}

/// What the door belongs to.
#[derive(Clone, Copy)]
pub struct House<'a> {
    pub tls: &'a ClientTls,
    pub vault: &'a Vault,
    /// Clients from this machine need not prove anything.
    pub trust_loopback: bool,
}

/// What a user must prove.
#[derive(Clone)]
pub enum Secret {
    Plain(Arc<Zeroizing<String>>),
    /// SHA1 of SHA1 of the password.
    Native([u8; 20]),
    /// What tells whether a password is right and opens no servers: the client has to send the
    /// password. `text`: as the server stores it.
    Hashed {
        text: Arc<str>,
        verifier: Arc<Verifier>,
    },
    /// No such user: the answer is the same as to a wrong password.
    Unknown,
}

impl Secret {
    /// Reads what a configuration has: `*` and 40 hexadecimal digits, caching_sha2_password's
    /// `$A$…`, or a password.
    pub fn parse(text: &str) -> Self {
        match Verifier::parse(text) {
            Some(verifier @ Verifier::Sha256Crypt { .. }) => Self::hashed(text, verifier),
            _ => Self::native(text).unwrap_or_else(|| Self::Plain(Arc::new(Zeroizing::new(text.to_owned())))),
        }
    }

    /// Reads `authentication_string` of a server: never a password, but for the empty one.
    pub fn of_server(text: &str) -> Self {
        match Verifier::parse(text) {
            Some(verifier) => Self::hashed(text, verifier),
            None if text.is_empty() => Self::parse(text),
            None => Self::native(text).unwrap_or(Self::Unknown),
        }
    }

    /// What opens servers for a user who has not proved anything. A verifier opens none.
    fn unproven(&self, user: &str, vault: &Vault) -> Credentials {
        match self {
            Self::Plain(password) => Credentials::of(password),
            Self::Hashed { text, .. } => {
                vault.password(user, text).map_or(Credentials::None, Credentials::Plain)
            }
            Self::Native(_) | Self::Unknown => Credentials::None,
        }
    }

    fn hashed(text: &str, verifier: Verifier) -> Self {
        Self::Hashed { text: text.into(), verifier: Arc::new(verifier) }
    }

    fn native(text: &str) -> Option<Self> {
        let mut verifier = [0; 20];
        hex::decode_to_slice(text.strip_prefix('*')?, &mut verifier).ok()?;
        Some(Self::Native(verifier))
    }
}

/// A client who proved who it is and has not been told so.
pub struct Login {
    pub stream: Wire,
    pub inbox: Inbox,
    pub user: String,
    pub schema: Option<String>,
    pub collation: u8,
    /// What was agreed.
    pub capabilities: u64,
    pub credentials: Credentials,
    /// Of the last packet, whichever side sent it.
    pub sequence: u8,
    /// By which the client proves itself again when it becomes another user.
    pub nonce: [u8; NONCE],
    /// How the connection is compressed once the client is in, if it is not yet.
    pub compression: Option<Algorithm>,
    /// Of errors, that the client takes from a server.
    pub numbers: Numbers,
}

/// Why a connection did not become a session; the client has been told.
#[derive(Debug, thiserror::Error)]
pub enum LoginFailure {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("not a MySQL client: {0}")]
    Garbage(&'static str),
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("TLS is required")]
    WithoutTls,
    #[error("compression by zstd of level {0}")]
    CompressionLevel(u8),
    #[error("wrong password for user '{user}'")]
    WrongPassword { user: String },
    #[error("there is no user '{user}'")]
    UnknownUser { user: String },
    /// The password is right.
    #[error("the certificate is not that of user '{user}'")]
    Uncertified { user: String },
    #[error("the password of user '{user}' could not be looked up: {reason}")]
    Lookup { user: String, reason: String },
}

/// Greets a client and lets it prove who it is.
///
/// # Errors
/// See [`LoginFailure`].
pub async fn accept(
    socket: TcpStream,
    offer: &Offer,
    house: House<'_>,
    secret: impl AsyncFnOnce(&str) -> Result<Secret, String>,
) -> Result<Login, LoginFailure> {
    stream::configure(&socket)?;
    let nonce = scramble::nonce::<NONCE>();
    let mut door = Door {
        peer: stream::peer_of(&socket)?.ip(),
        stream: Wire::Bare(Stream::plain(socket)),
        inbox: Inbox::default(),
        sequence: 0,
        house,
        nonce,
    };
    let acceptor = house.tls.acceptor();
    let tls_flag = if acceptor.is_some() { can::SSL } else { 0 };
    let mut greeting = Vec::new();
    packet::put(&mut greeting, 0, |out| put_greeting(out, offer, offer.capabilities | tls_flag, &nonce));
    door.stream.write_all(&greeting).await?;
    let mut payload = door.receive_first().await?;
    if payload.len() == TLS_REQUEST && u64::from(flags(&payload)) & can::SSL != 0 {
        let Some(acceptor) = acceptor else {
            return Err(LoginFailure::Garbage("asks for TLS that was not offered"));
        };
        door = door.secure(acceptor).await?;
        payload = door.receive().await?;
    } else if house.tls.mode().requires_tls() {
        door.refuse(
            3159,
            "HY000",
            "Connections using insecure transport are prohibited while TLS is required.",
        )
        .await;
        return Err(LoginFailure::WithoutTls);
    }
    let response = Response::read(&payload).ok_or(LoginFailure::Garbage("a login that cannot be read"))?;
    let capabilities = response.capabilities & offer.capabilities;
    let compression = door.compression(capabilities, response.compression_level).await?;
    let secret = door.looked_up(secret(&response.user).await, &response.user).await?;
    let credentials = door.authenticate(&response, &secret, offer.plugin, Unasked::Counts).await?;
    Ok(Login { compression, ..door.let_in(response, credentials, capabilities) })
}

/// A connection on which a client becomes another user.
pub struct Change {
    pub stream: Wire,
    pub inbox: Inbox,
    pub response: Response,
    /// That of the connection's first login: clients prove by it again.
    pub nonce: [u8; NONCE],
}

/// COM_CHANGE_USER: the client proves who it is now.
///
/// # Errors
/// See [`LoginFailure`]; as with the server, the connection ends with it.
pub async fn change_user(
    change: Change,
    house: House<'_>,
    secret: impl AsyncFnOnce(&str) -> Result<Secret, String>,
) -> Result<Login, LoginFailure> {
    let Change { stream, inbox, response, nonce } = change;
    let capabilities = response.capabilities;
    let peer = stream.stream().peer_addr()?.ip();
    let mut door = Door { stream, inbox, sequence: 0, peer, house, nonce };
    let secret = door.looked_up(secret(&response.user).await, &response.user).await?;
    let default = if response.plugin == CACHING_SHA2 { CACHING_SHA2 } else { NATIVE };
    let unasked = if capabilities & can::PLUGIN_AUTH != 0 { Unasked::Nothing } else { Unasked::Counts };
    let credentials = door.authenticate(&response, &secret, default, unasked).await?;
    Ok(door.let_in(response, credentials, capabilities))
}

fn put_greeting(out: &mut Vec<u8>, offer: &Offer, capabilities: u64, nonce: &[u8; NONCE]) {
    let flags = capabilities.to_le_bytes();
    out.push(10);
    out.extend_from_slice(&offer.version);
    out.push(0);
    out.extend_from_slice(&offer.number.to_le_bytes());
    out.extend_from_slice(&nonce[..8]);
    out.push(0);
    out.extend_from_slice(&flags[..2]);
    out.push(offer.collation);
    out.extend_from_slice(&status::AUTOCOMMIT.to_le_bytes());
    out.extend_from_slice(&flags[2..4]);
    out.push(NONCE as u8 + 1);
    out.extend_from_slice(&[0; 6]);
    out.extend_from_slice(&can::extended(capabilities));
    out.extend_from_slice(&nonce[8..]);
    out.push(0);
    out.extend_from_slice(offer.plugin.as_bytes());
    out.push(0);
}

/// A client that is at the door.
struct Door<'a> {
    stream: Wire,
    inbox: Inbox,
    sequence: u8,
    peer: IpAddr,
    house: House<'a>,
    /// One for the whole life of the connection, as with servers, but for what is asked by plugins that have
    /// their own each time.
    nonce: [u8; NONCE],
}

impl Door<'_> {
    fn let_in(self, response: Response, credentials: Credentials, capabilities: u64) -> Login {
        Login {
            stream: self.stream,
            inbox: self.inbox,
            user: response.user,
            schema: response.schema,
            collation: response.collation,
            capabilities,
            credentials,
            sequence: self.sequence,
            nonce: self.nonce,
            compression: None,
            numbers: response.numbers,
        }
    }

    /// The answer to the greeting, and not a byte more: behind a request for TLS the client goes on
    /// within it at once.
    async fn receive_first(&mut self) -> Result<Vec<u8>, LoginFailure> {
        let mut header = [0; packet::HEADER];
        self.stream.read_exact(&mut header).await?;
        let Some(header) = packet::header(&header).filter(|header| header.length <= MAX_PACKET) else {
            return Err(LoginFailure::Garbage("a login that is too long"));
        };
        let mut payload = vec![0; header.length];
        self.stream.read_exact(&mut payload).await?;
        self.sequence = header.sequence;
        Ok(payload)
    }

    async fn receive(&mut self) -> Result<Vec<u8>, LoginFailure> {
        let (sequence, payload) = take_packet(&mut self.stream, &mut self.inbox).await?;
        self.sequence = sequence;
        Ok(payload)
    }

    async fn send(&mut self, payload: impl FnOnce(&mut Vec<u8>)) -> Result<(), LoginFailure> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut out = Vec::new();
        packet::put(&mut out, self.sequence, payload);
        self.stream.write_all(&out).await?;
        Ok(self.stream.flush().await?)
    }

    /// How the client wants to go on. It gets zlib where it can do both, as from the server.
    async fn compression(&mut self, capabilities: u64, level: u8) -> Result<Option<Algorithm>, LoginFailure> {
        if capabilities & can::COMPRESS != 0 {
            return Ok(Some(Algorithm::Zlib));
        }
        if capabilities & can::ZSTD_COMPRESSION == 0 {
            return Ok(None);
        }
        let Some(known) = ZstdLevel::new(level) else {
            self.refuse(3923, "HY000", "Invalid level of zstd compression").await;
            return Err(LoginFailure::CompressionLevel(level));
        };
        Ok(Some(Algorithm::Zstd(known)))
    }

    async fn refuse(&mut self, errno: u16, sqlstate: &str, message: &str) {
        let mut out = Vec::new();
        packet::put_err(&mut out, self.sequence.wrapping_add(1), errno, sqlstate, message.as_bytes());
        // A client that has gone needs no answer.
        let _ = self.stream.write_all(&out).await;
        let _ = self.stream.flush().await;
    }

    async fn secure(mut self, acceptor: tokio_rustls::TlsAcceptor) -> Result<Self, LoginFailure> {
        if !self.inbox.is_empty() {
            // What came before TLS must not be taken for something that came within.
            return Err(LoginFailure::Garbage("something ahead of TLS"));
        }
        let Wire::Bare(stream) = self.stream else {
            return Err(LoginFailure::Garbage("TLS within compression"));
        };
        let socket = stream.into_tcp().map_err(|_| LoginFailure::Garbage("TLS within TLS"))?;
        let session = acceptor.accept(socket).await.map_err(LoginFailure::Tls)?;
        self.stream = Wire::Bare(Stream::tls(session));
        Ok(self)
    }

    /// Lets the client prove that it is the user; tells it if it is not.
    async fn authenticate(
        &mut self,
        response: &Response,
        secret: &Secret,
        default: &'static str,
        unasked: Unasked,
    ) -> Result<Credentials, LoginFailure> {
        let plugin = plugin_for(secret, &response.plugin, default);
        // Some clients prove nothing by a nonce that came with another plugin's name.
        let fits = plugin != ED25519 && plugin == response.plugin && plugin == default;
        let asks = unasked == Unasked::Nothing || !fits;
        let nonce = match plugin {
            ED25519 => scramble::nonce::<ED25519_NONCE>().to_vec(),
            // As the server, which asks by a new one each time.
            CACHING_SHA2 if asks => scramble::nonce::<NONCE>().to_vec(),
            _ => self.nonce.to_vec(),
        };
        let proof = if asks { self.switch(plugin, &nonce).await? } else { response.proof.clone() };
        let credentials = self.credentials(&response.user, secret, plugin, &nonce, &proof).await?;
        let user = response.user.clone();
        let failure = match credentials {
            Some(credentials) if self.is_certified_as(&user) => return Ok(credentials),
            Some(_) => LoginFailure::Uncertified { user },
            None if matches!(secret, Secret::Unknown) => LoginFailure::UnknownUser { user },
            None => LoginFailure::WrongPassword { user },
        };
        self.deny(&response.user, !proof.is_empty()).await;
        Err(failure)
    }

    /// Tells the client where nobody could be asked for what it must prove: that is no word on its
    /// password.
    async fn looked_up(
        &mut self,
        secret: Result<Secret, String>,
        user: &str,
    ) -> Result<Secret, LoginFailure> {
        let reason = match secret {
            Ok(secret) => return Ok(secret),
            Err(reason) => reason,
        };
        let message = format!("The password of user '{user}' cannot be looked up now");
        self.tell(&Refusal::fatal(RefusalKind::NoPrimary, message)).await;
        Err(LoginFailure::Lookup { user: user.to_owned(), reason })
    }

    /// What opens servers, if the client has proved enough.
    async fn credentials(
        &mut self,
        user: &str,
        secret: &Secret,
        plugin: &str,
        nonce: &[u8],
        proof: &[u8],
    ) -> Result<Option<Credentials>, LoginFailure> {
        let credentials = if self.house.trust_loopback && self.peer.is_loopback() {
            Some(secret.unproven(user, self.house.vault))
        } else {
            // What was proved before opens servers, and the fast path.
            let known = match secret {
                Secret::Hashed { text, .. } => self.house.vault.password(user, text).map(Secret::Plain),
                _ => None,
            };
            check(known.as_ref().unwrap_or(secret), plugin, nonce, proof)
        };
        // caching_sha2_password's clients wait for a word on their proof ahead of the OK.
        if plugin == CACHING_SHA2 && !proof.is_empty() {
            if credentials.is_none() {
                return self.prove_fully(user, secret, nonce).await;
            }
            self.send(|out| out.extend_from_slice(&[packet::MORE_DATA, FAST_AUTH_SUCCESS])).await?;
        }
        Ok(credentials)
    }

    /// Whether the client's certificate, verified in the handshake, is this user's, where it has to
    /// be.
    fn is_certified_as(&self, user: &str) -> bool {
        if self.house.tls.mode() != tls::Mode::VerifyFull {
            return true;
        }
        let Stream::Tls(session) = self.stream.stream() else { return false };
        let certificate = session.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        certificate.and_then(tls::common_name).is_some_and(|name| name == user)
    }

    /// Asks for the password itself, over TLS as it is and otherwise encrypted; as the server does
    /// whenever the proof is not the one it expects. `None`: it is wrong.
    async fn prove_fully(
        &mut self,
        user: &str,
        secret: &Secret,
        nonce: &[u8],
    ) -> Result<Option<Credentials>, LoginFailure> {
        self.send(|out| out.extend_from_slice(&[packet::MORE_DATA, FULL_AUTH])).await?;
        let Some(password) = self.receive_password(nonce).await? else { return Ok(None) };
        let password = Arc::new(password);
        match secret {
            Secret::Plain(known) if bool::from(known.as_bytes().ct_eq(password.as_bytes())) => {
                Ok(Some(Credentials::Plain(known.clone())))
            }
            Secret::Hashed { text, verifier } => {
                let (verifier, sent) = (verifier.clone(), password.clone());
                let check = tokio::task::spawn_blocking(move || verifier.is_of(sent.as_bytes()));
                if !check.await.unwrap_or(false) {
                    return Ok(None);
                }
                self.house.vault.remember(user, text.clone(), password.clone());
                Ok(Some(Credentials::Plain(password)))
            }
            _ => Ok(None),
        }
    }

    /// The password that a client sends, without its NUL; `None`: nobody can read it.
    async fn receive_password(&mut self, nonce: &[u8]) -> Result<Option<Zeroizing<String>>, LoginFailure> {
        let mut payload = Zeroizing::new(self.receive().await?);
        if !self.stream.stream().is_tls() {
            let Some(key) = self.house.vault.key().await else { return Ok(None) };
            if payload.as_slice() == WANTS_KEY {
                self.send(|out| {
                    out.push(packet::MORE_DATA);
                    out.extend_from_slice(key.public.as_bytes());
                })
                .await?;
                payload = Zeroizing::new(self.receive().await?);
            }
            let Some(plain) = key.password(&payload, nonce) else { return Ok(None) };
            payload = plain;
        }
        let text = payload.strip_suffix(&[0]).and_then(|password| std::str::from_utf8(password).ok());
        Ok(text.map(|text| Zeroizing::new(text.to_owned())))
    }

    async fn switch(&mut self, plugin: &str, nonce: &[u8]) -> Result<Vec<u8>, LoginFailure> {
        self.send(|out| {
            out.push(packet::EOF);
            out.extend_from_slice(plugin.as_bytes());
            out.push(0);
            out.extend_from_slice(nonce);
            // client_ed25519 takes its nonce as it is.
            if plugin != ED25519 {
                out.push(0);
            }
        })
        .await?;
        self.receive().await
    }

    /// As the server words it.
    async fn deny(&mut self, user: &str, with_password: bool) {
        let with_password = if with_password { "YES" } else { "NO" };
        let message =
            format!("Access denied for user '{user}'@'{}' (using password: {with_password})", self.peer);
        self.tell(&Refusal::fatal(RefusalKind::Authentication, message)).await;
    }

    async fn tell(&mut self, refusal: &Refusal) {
        let mut out = Vec::new();
        put_error(&mut out, self.sequence.wrapping_add(1), refusal, Numbers::All);
        // A client that has gone needs no answer.
        let _ = self.stream.write_all(&out).await;
        let _ = self.stream.flush().await;
    }
}

/// The plugin by which a user proves the password.
fn plugin_for(secret: &Secret, offered: &str, default: &'static str) -> &'static str {
    match (secret, offered) {
        // A verifier is one of its plugin alone.
        (Secret::Native(_), _) => NATIVE,
        (Secret::Hashed { .. }, _) => CACHING_SHA2,
        (_, NATIVE) => NATIVE,
        (_, CACHING_SHA2) => CACHING_SHA2,
        (_, ED25519) => ED25519,
        _ => default,
    }
}

/// What opens servers, if the proof is right.
fn check(secret: &Secret, plugin: &str, nonce: &[u8], proof: &[u8]) -> Option<Credentials> {
    match secret {
        Secret::Plain(password) if scramble::proves(plugin, nonce, password.as_bytes(), proof) => {
            Some(Credentials::of(password))
        }
        Secret::Native(verifier) => {
            let hash = scramble::native_hash(nonce, verifier, proof)?;
            Some(Credentials::NativeHash(Arc::new(Zeroizing::new(hash))))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_a_verifier_only_in_its_complete_shape() {
        assert!(matches!(Secret::parse("*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19"), Secret::Native(_)));
        assert!(matches!(Secret::parse("*2470C0C0"), Secret::Plain(_)));
        assert!(matches!(Secret::parse("*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E1x"), Secret::Plain(_)));
    }
}
