//! Clients logging in to us.

use std::{io, sync::Arc};

use tokio::{io::AsyncWriteExt, net::TcpStream};
use zeroize::Zeroizing;

use super::{
    CACHING_SHA2, Credentials, ED25519, NATIVE,
    scramble::{self, ED25519_NONCE, NONCE},
    take_packet,
};
use crate::{
    inbox::Inbox,
    mysql::{
        packet::{self, capability as can, lenenc_bytes, split_nul, status, u32_le},
        refusal::put_error,
    },
    refusal::{Refusal, RefusalKind},
    stream::{self, Stream},
    tls::ClientTls,
};

/// Length of a packet that asks for TLS: what a login has before the user's name.
const TLS_REQUEST: usize = 32;

/// Length of caching_sha2_password's proof, in bytes.
const SHA2_PROOF: usize = 32;

/// caching_sha2_password: the proof was enough.
const FAST_AUTH_SUCCESS: u8 = 3;

/// What a client is greeted with.
pub struct Offer {
    /// As the servers', so that drivers do what they would do there.
    pub version: Box<[u8]>,
    pub capabilities: u32,
    pub collation: u8,
    /// The plugin that servers begin with.
    pub plugin: &'static str,
    pub number: u32,
}

/// What a user must prove.
#[derive(Clone)]
pub enum Secret {
    Plain(Arc<Zeroizing<String>>),
    /// SHA1 of SHA1 of the password.
    Native([u8; 20]),
    /// No such user: the answer is the same as to a wrong password.
    Unknown,
}

impl Secret {
    /// Reads what a configuration or a server has: `*` and 40 hexadecimal digits, or a password.
    pub fn parse(text: &str) -> Self {
        let mut verifier = [0; 20];
        match text.strip_prefix('*') {
            Some(digits) if digits.len() == 40 && hex::decode_to_slice(digits, &mut verifier).is_ok() => {
                Self::Native(verifier)
            }
            _ => Self::Plain(Arc::new(Zeroizing::new(text.to_owned()))),
        }
    }
}

/// A client who proved who it is and has not been told so.
pub struct Login {
    pub stream: Stream,
    pub inbox: Inbox,
    pub user: String,
    pub schema: Option<String>,
    pub collation: u8,
    /// What was agreed.
    pub capabilities: u32,
    pub credentials: Credentials,
    /// Of the last packet, whichever side sent it.
    pub sequence: u8,
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
    #[error("wrong password")]
    WrongPassword,
    #[error("unknown user")]
    UnknownUser,
}

/// Greets a client and lets it prove who it is.
///
/// # Errors
/// See [`LoginFailure`].
pub async fn accept(
    socket: TcpStream,
    offer: &Offer,
    tls: &ClientTls,
    secret: impl AsyncFnOnce(&str) -> Secret,
) -> Result<Login, LoginFailure> {
    stream::configure(&socket)?;
    let peer = socket.peer_addr().map_or_else(|_| "unknown".to_owned(), |peer| peer.ip().to_string());
    let mut door = Door { stream: Stream::Plain(socket), inbox: Inbox::default(), sequence: 0, peer };
    let acceptor = tls.acceptor();
    let nonce = scramble::nonce::<NONCE>();
    let tls_flag = if acceptor.is_some() { can::SSL } else { 0 };
    let mut greeting = Vec::new();
    packet::put(&mut greeting, 0, |out| put_greeting(out, offer, offer.capabilities | tls_flag, &nonce));
    door.stream.write_all(&greeting).await?;
    let mut payload = door.receive().await?;
    if payload.len() == TLS_REQUEST && flags(&payload) & can::SSL != 0 {
        let Some(acceptor) = acceptor else {
            return Err(LoginFailure::Garbage("asks for TLS that was not offered"));
        };
        door = door.secure(acceptor).await?;
        payload = door.receive().await?;
    } else if tls.mode().requires_tls() {
        door.refuse(
            3159,
            "HY000",
            "Connections using insecure transport are prohibited while TLS is required.",
        )
        .await;
        return Err(LoginFailure::WithoutTls);
    }
    let response = Response::read(&payload).ok_or(LoginFailure::Garbage("a login that cannot be read"))?;
    let secret = secret(&response.user).await;
    let credentials = door.authenticate(&response, &secret, offer.plugin, &nonce).await?;
    Ok(Login {
        stream: door.stream,
        inbox: door.inbox,
        user: response.user,
        schema: response.schema,
        collation: response.collation,
        capabilities: response.capabilities & offer.capabilities,
        credentials,
        sequence: door.sequence,
    })
}

/// COM_CHANGE_USER: the client proves who it is now. `argument` is the command without its first
/// byte. The proof that comes with it is for a nonce that may be long gone: it is asked for anew.
///
/// # Errors
/// See [`LoginFailure`]; as with the server, the connection ends with it.
pub async fn change_user(
    stream: Stream,
    inbox: Inbox,
    argument: &[u8],
    capabilities: u32,
    secret: impl AsyncFnOnce(&str) -> Secret,
) -> Result<Login, LoginFailure> {
    let peer = stream.peer_addr().map_or_else(|_| "unknown".to_owned(), |peer| peer.ip().to_string());
    let mut door = Door { stream, inbox, sequence: 0, peer };
    let change = Response::read_change(argument, capabilities)
        .ok_or(LoginFailure::Garbage("a change of user that cannot be read"))?;
    let secret = secret(&change.user).await;
    // No nonce matches: whatever the plugin is, the client is asked to begin again.
    let response = Response { plugin: String::new(), ..change };
    let plugin = if response.proof.len() == SHA2_PROOF { CACHING_SHA2 } else { NATIVE };
    let credentials = door.authenticate(&response, &secret, plugin, &[0; NONCE]).await?;
    Ok(Login {
        stream: door.stream,
        inbox: door.inbox,
        user: response.user,
        schema: response.schema,
        collation: response.collation,
        capabilities,
        credentials,
        sequence: door.sequence,
    })
}

fn flags(payload: &[u8]) -> u32 {
    u32_le(payload).map_or(0, |(flags, _)| flags)
}

fn put_greeting(out: &mut Vec<u8>, offer: &Offer, capabilities: u32, nonce: &[u8; NONCE]) {
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
    out.extend_from_slice(&flags[2..]);
    out.push(NONCE as u8 + 1);
    out.extend_from_slice(&[0; 10]);
    out.extend_from_slice(&nonce[8..]);
    out.push(0);
    out.extend_from_slice(offer.plugin.as_bytes());
    out.push(0);
}

/// What a client answers to the greeting.
#[derive(Debug, PartialEq, Eq)]
struct Response {
    capabilities: u32,
    collation: u8,
    user: String,
    proof: Vec<u8>,
    schema: Option<String>,
    plugin: String,
}

impl Response {
    fn read(payload: &[u8]) -> Option<Self> {
        let capabilities = flags(payload);
        if capabilities & can::PROTOCOL_41 == 0 {
            return None;
        }
        let collation = *payload.get(8)?;
        let (user, rest) = split_nul(payload.get(TLS_REQUEST..)?)?;
        let (proof, mut rest) = if capabilities & can::PLUGIN_AUTH_LENENC != 0 {
            lenenc_bytes(rest)?
        } else if capabilities & can::SECURE_CONNECTION != 0 {
            let (&length, rest) = rest.split_first()?;
            rest.split_at_checked(usize::from(length))?
        } else {
            split_nul(rest)?
        };
        let mut schema = None;
        if capabilities & can::CONNECT_WITH_DB != 0 && !rest.is_empty() {
            // Some clients leave out the last NUL.
            let (name, behind) = split_nul(rest).unwrap_or((rest, &[]));
            schema = Some(String::from_utf8(name.to_vec()).ok()?).filter(|name| !name.is_empty());
            rest = behind;
        }
        let mut plugin = NATIVE.to_owned();
        if capabilities & can::PLUGIN_AUTH != 0 && !rest.is_empty() {
            let (name, _) = split_nul(rest).unwrap_or((rest, &[]));
            plugin = String::from_utf8_lossy(name).into_owned();
        }
        let user = String::from_utf8(user.to_vec()).ok()?;
        Some(Self { capabilities, collation, user, proof: proof.to_vec(), schema, plugin })
    }
}

impl Response {
    fn read_change(argument: &[u8], capabilities: u32) -> Option<Self> {
        let (user, rest) = split_nul(argument)?;
        let (&length, rest) = rest.split_first()?;
        let (proof, rest) = rest.split_at_checked(usize::from(length))?;
        let (schema, rest) = split_nul(rest).unwrap_or((rest, &[]));
        let schema = Some(String::from_utf8(schema.to_vec()).ok()?).filter(|name| !name.is_empty());
        Some(Self {
            capabilities,
            collation: rest.first().copied().unwrap_or_default(),
            user: String::from_utf8(user.to_vec()).ok()?,
            proof: proof.to_vec(),
            schema,
            plugin: String::new(),
        })
    }
}

/// A client that is at the door.
struct Door {
    stream: Stream,
    inbox: Inbox,
    sequence: u8,
    peer: String,
}

impl Door {
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
        let Stream::Plain(socket) = self.stream else { return Err(LoginFailure::Garbage("TLS within TLS")) };
        let session = acceptor.accept(socket).await.map_err(LoginFailure::Tls)?;
        self.stream = Stream::tls(session);
        Ok(self)
    }

    async fn authenticate(
        &mut self,
        response: &Response,
        secret: &Secret,
        default: &'static str,
        nonce: &[u8; NONCE],
    ) -> Result<Credentials, LoginFailure> {
        let plugin = match (secret, response.plugin.as_str()) {
            // A verifier is one of its plugin alone.
            (Secret::Native(_), _) => NATIVE,
            (_, NATIVE) => NATIVE,
            (_, CACHING_SHA2) => CACHING_SHA2,
            (_, ED25519) => ED25519,
            _ => default,
        };
        let (proof, nonce) = if plugin == ED25519 {
            let nonce = scramble::nonce::<ED25519_NONCE>();
            (self.switch(plugin, &nonce).await?, nonce.to_vec())
        } else if plugin != response.plugin {
            let nonce = scramble::nonce::<NONCE>();
            (self.switch(plugin, &nonce).await?, nonce.to_vec())
        } else {
            (response.proof.clone(), nonce.to_vec())
        };
        if let Some(credentials) = check(secret, plugin, &nonce, &proof) {
            if plugin == CACHING_SHA2 && !proof.is_empty() {
                self.send(|out| out.extend_from_slice(&[packet::MORE_DATA, FAST_AUTH_SUCCESS])).await?;
            }
            return Ok(credentials);
        }
        self.deny(&response.user, !proof.is_empty()).await;
        Err(if matches!(secret, Secret::Unknown) {
            LoginFailure::UnknownUser
        } else {
            LoginFailure::WrongPassword
        })
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
        let mut out = Vec::new();
        let refusal = Refusal::fatal(RefusalKind::Authentication, message);
        put_error(&mut out, self.sequence.wrapping_add(1), &refusal);
        let _ = self.stream.write_all(&out).await;
        let _ = self.stream.flush().await;
    }
}

/// What opens servers, if the proof is right.
fn check(secret: &Secret, plugin: &str, nonce: &[u8], proof: &[u8]) -> Option<Credentials> {
    match secret {
        Secret::Plain(password) if scramble::proves(plugin, nonce, password.as_bytes(), proof) => {
            Some(if password.is_empty() { Credentials::None } else { Credentials::Plain(password.clone()) })
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
    fn a_login_is_read_in_every_form_that_clients_use_and_never_panics() {
        let base = can::PROTOCOL_41 | can::SECURE_CONNECTION;
        for (extra, tail, schema, plugin) in [
            (0, &b"\x02ab"[..], None, NATIVE),
            (can::CONNECT_WITH_DB, b"\x02abshop\0", Some("shop"), NATIVE),
            (can::CONNECT_WITH_DB, b"\x02abshop", Some("shop"), NATIVE),
            (
                can::PLUGIN_AUTH | can::PLUGIN_AUTH_LENENC,
                b"\x02abcaching_sha2_password\0",
                None,
                CACHING_SHA2,
            ),
        ] {
            let mut payload = (base | extra).to_le_bytes().to_vec();
            payload.extend_from_slice(&[0; 28]);
            payload[8] = 33;
            payload.extend_from_slice(b"app\0");
            payload.extend_from_slice(tail);
            let response = Response::read(&payload).expect("it is a login");
            assert_eq!(
                (response.user.as_str(), response.collation, response.proof.as_slice()),
                ("app", 33, &b"ab"[..])
            );
            assert_eq!((response.schema.as_deref(), response.plugin.as_str()), (schema, plugin));
            for length in 0..payload.len() {
                let _ = Response::read(&payload[..length]);
            }
        }
    }

    #[test]
    fn a_secret_is_a_verifier_only_in_its_complete_shape() {
        assert!(matches!(Secret::parse("*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19"), Secret::Native(_)));
        assert!(matches!(Secret::parse("*2470C0C0"), Secret::Plain(_)));
        assert!(matches!(Secret::parse("*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E1x"), Secret::Plain(_)));
    }
}
