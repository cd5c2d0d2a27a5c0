//! Logging in to servers.

use std::{io, time::Duration};

use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{
    CACHING_SHA2, Credentials, NATIVE,
    scramble::{Password, Plugin, native_by_hash},
    take_packet,
};
use crate::{
    inbox::Inbox,
    mysql::command::code,
    mysql::packet::{self, ErrPacket, capability as can, split_nul, u16_le, u32_le},
    protocol::ConnectFault,
    stream::{self, Stream},
    tls::{self, ServerTls},
};

/// utf8mb4_general_ci, which every server knows; the session's own comes with its settings.
pub const COLLATION: u8 = 45;

/// Number and name of another that every server knows: nobody has servers begin all sessions with it.
pub const UNLIKELY_COLLATION: (u8, &str) = (46, "utf8mb4_bin");

/// Longest packet we take, in bytes: the protocol's own limit.
const MAX_ANSWER: u32 = 1 << 30;

/// Rounds of a login; the longest (switch, key, password) takes four.
const MAX_ROUNDS: usize = 8;

/// What a server says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    pub version: String,
    pub thread: u32,
    pub capabilities: u64,
    pub collation: u8,
    pub plugin: String,
    pub nonce: Vec<u8>,
}

impl Greeting {
    /// Reads version 10 of the handshake.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (version, rest) = split_nul(payload.strip_prefix(&[10])?)?;
        let (thread, rest) = u32_le(rest)?;
        let (nonce, rest) = rest.split_first_chunk::<8>()?;
        let (low, rest) = u16_le(rest.get(1..)?)?;
        let (&collation, rest) = rest.split_first()?;
        let (_, rest) = u16_le(rest)?;
        let (high, rest) = u16_le(rest)?;
        let low = u32::from(low) | u32::from(high) << 16;
        let (&length, rest) = rest.split_first()?;
        let (filler, rest) = rest.split_first_chunk::<10>()?;
        let capabilities = can::with_extended(low, filler.last_chunk());
        // At least 13 bytes follow, the last of them NUL.
        let length = usize::from(length).saturating_sub(8).max(13).min(rest.len());
        let (more, rest) = rest.split_at(length);
        let mut nonce = nonce.to_vec();
        nonce.extend_from_slice(more.strip_suffix(&[0]).unwrap_or(more));
        let plugin = split_nul(rest).map_or(rest, |(plugin, _)| plugin);
        let plugin = if capabilities & can::PLUGIN_AUTH == 0 { NATIVE.as_bytes() } else { plugin };
        Some(Self {
            version: String::from_utf8_lossy(version).into_owned(),
            thread,
            capabilities,
            collation,
            plugin: String::from_utf8_lossy(plugin).into_owned(),
            nonce,
        })
    }
}

/// A connection that a server has let in.
pub struct Connected {
    pub stream: Stream,
    pub inbox: Inbox,
    pub greeting: Greeting,
    /// What was agreed.
    pub capabilities: u64,
}

/// As whom, and how.
pub struct Login<'a> {
    pub user: &'a str,
    pub credentials: &'a Credentials,
    /// Wanted of the server; it gets those of them that it has.
    pub capabilities: u64,
    /// Number of the collation that it begins with, where the server heeds it.
    pub collation: u8,
    pub tls: &'a ServerTls,
}

/// Opens a connection.
///
/// # Errors
/// See [`ConnectFault`]; its raw errors are whole packets.
pub async fn connect(timeout: Duration, address: &str, login: &Login<'_>) -> Result<Connected, ConnectFault> {
    match tokio::time::timeout(timeout, dial(address, login)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectFault::Unreachable(io::ErrorKind::TimedOut.into())),
    }
}

async fn dial(address: &str, login: &Login<'_>) -> Result<Connected, ConnectFault> {
    let socket = TcpStream::connect(address).await.map_err(ConnectFault::Unreachable)?;
    stream::configure(&socket).map_err(ConnectFault::Unreachable)?;
    let mut stream = Stream::plain(socket);
    let mut inbox = Inbox::default();
    let (mut sequence, payload) = receive(&mut stream, &mut inbox).await?;
    let greeting = Greeting::read(&payload).ok_or_else(|| nonsense("not a MySQL server"))?;
    let agreed = login.capabilities & greeting.capabilities;
    if agreed & can::PROTOCOL_41 == 0 {
        return Err(nonsense("the server's protocol is older than 4.1"));
    }
    let offers_tls = greeting.capabilities & can::SSL != 0;
    let connector = login.tls.connector().filter(|_| offers_tls && login.tls.mode() != tls::Mode::Allow);
    if login.tls.mode().requires_tls() && connector.is_none() {
        return Err(nonsense("the server does not speak TLS, which the configuration requires"));
    }
    let mut capabilities = agreed & !can::SSL;
    if let Some(connector) = connector {
        capabilities |= can::SSL;
        sequence = sequence.wrapping_add(1);
        let mut request = Vec::new();
        packet::put(&mut request, sequence, |out| put_start(out, capabilities, login.collation));
        stream.write_all(&request).await.map_err(ConnectFault::Unreachable)?;
        stream = secure(stream, &inbox, connector, address).await?;
    }
    let mut exchange = Exchange { stream, inbox, sequence, credentials: login.credentials };
    exchange.log_in(&greeting, login, capabilities).await?;
    Ok(Connected { stream: exchange.stream, inbox: exchange.inbox, greeting, capabilities })
}

async fn secure(
    stream: Stream,
    inbox: &Inbox,
    connector: tokio_rustls::TlsConnector,
    address: &str,
) -> Result<Stream, ConnectFault> {
    let socket = stream.into_tcp().map_err(|_| nonsense("TLS within TLS"))?;
    if !inbox.is_empty() {
        // What came before TLS must not be taken for something that came within.
        return Err(nonsense("the server sent something ahead of TLS"));
    }
    let name = tls::server_name(address).ok_or_else(|| nonsense("the server's name is none"))?;
    let session = connector.connect(name, socket).await.map_err(ConnectFault::Unreachable)?;
    Ok(Stream::tls(session))
}

/// What a TLS request and a login begin with.
fn put_start(out: &mut Vec<u8>, capabilities: u64, collation: u8) {
    out.extend_from_slice(&(capabilities as u32).to_le_bytes());
    out.extend_from_slice(&MAX_ANSWER.to_le_bytes());
    out.push(collation);
    out.extend_from_slice(&[0; 19]);
    out.extend_from_slice(&can::extended(capabilities));
}

async fn receive(stream: &mut Stream, inbox: &mut Inbox) -> Result<(u8, Vec<u8>), ConnectFault> {
    let (sequence, payload) = take_packet(stream, inbox).await.map_err(ConnectFault::Unreachable)?;
    if payload.first() == Some(&packet::ERR) {
        return Err(refused(&payload));
    }
    Ok((sequence, payload))
}

fn refused(payload: &[u8]) -> ConnectFault {
    let Some(error) = ErrPacket::read(payload) else { return nonsense("an error that cannot be read") };
    match error.errno {
        // ER_CON_COUNT_ERROR, ER_TOO_MANY_USER_CONNECTIONS, ER_USER_LIMIT_REACHED.
        1040 | 1203 | 1226 => ConnectFault::TooMany,
        1053 | 1077 | 1079 => ConnectFault::NotReady,
        _ => {
            let mut raw = Vec::new();
            let sqlstate = String::from_utf8_lossy(&error.sqlstate);
            packet::put_err(&mut raw, 1, error.errno, &sqlstate, error.message);
            ConnectFault::Refused { raw, code: error.sqlstate }
        }
    }
}

fn nonsense(what: &'static str) -> ConnectFault {
    ConnectFault::Unreachable(io::Error::new(io::ErrorKind::InvalidData, what))
}

/// The exchange of proofs, at login and for a change of user.
pub struct Exchange<'a> {
    pub stream: Stream,
    pub inbox: Inbox,
    /// Of the packet before.
    pub sequence: u8,
    pub credentials: &'a Credentials,
}

impl Exchange<'_> {
    async fn log_in(
        &mut self,
        greeting: &Greeting,
        login: &Login<'_>,
        capabilities: u64,
    ) -> Result<(), ConnectFault> {
        let mut plugin = self.plugin(&greeting.plugin)?;
        let proof = plugin.answer(self, &greeting.nonce)?.unwrap_or_default();
        let capabilities = capabilities | can::PLUGIN_AUTH_LENENC | can::SECURE_CONNECTION;
        let mut response = Vec::new();
        self.sequence = self.sequence.wrapping_add(1);
        packet::put(&mut response, self.sequence, |out| {
            put_start(out, capabilities, login.collation);
            out.extend_from_slice(login.user.as_bytes());
            out.push(0);
            packet::put_lenenc_bytes(out, &proof);
            if capabilities & can::PLUGIN_AUTH != 0 {
                out.extend_from_slice(plugin.name.as_bytes());
                out.push(0);
            }
            if capabilities & can::CONNECT_ATTRS != 0 {
                let mut attributes = Vec::new();
                packet::put_lenenc_bytes(&mut attributes, b"program_name");
                packet::put_lenenc_bytes(&mut attributes, b"pointsman");
                packet::put_lenenc_bytes(out, &attributes);
            }
        });
        self.stream.write_all(&response).await.map_err(ConnectFault::Unreachable)?;
        self.stream.flush().await.map_err(ConnectFault::Unreachable)?;
        self.prove(plugin, greeting.nonce.clone()).await
    }

    fn plugin(&self, name: &str) -> Result<Step, ConnectFault> {
        let by_hash = matches!(self.credentials, Credentials::NativeHash(_));
        // A plugin that we do not know is not begun with: the server then asks for the user's own.
        let name = match name {
            _ if by_hash => NATIVE,
            CACHING_SHA2 | NATIVE => name,
            _ => NATIVE,
        };
        Step::new(name, self.stream.is_tls())
    }

    /// COM_CHANGE_USER to the same user without a default schema: the server forgets all.
    ///
    /// # Errors
    /// See [`ConnectFault`].
    pub async fn log_in_again(
        &mut self,
        greeting: &Greeting,
        user: &str,
        capabilities: u64,
    ) -> Result<(), ConnectFault> {
        let mut plugin = self.plugin(&greeting.plugin)?;
        let proof = plugin.answer(self, &greeting.nonce)?.unwrap_or_default();
        let mut command = Vec::new();
        packet::put(&mut command, 0, |out| {
            out.push(code::CHANGE_USER);
            out.extend_from_slice(user.as_bytes());
            out.push(0);
            out.push(proof.len() as u8);
            out.extend_from_slice(&proof);
            out.push(0);
            out.extend_from_slice(&[COLLATION, 0]);
            out.extend_from_slice(plugin.name.as_bytes());
            out.push(0);
            if capabilities & can::CONNECT_ATTRS != 0 {
                out.push(0);
            }
        });
        self.stream.write_all(&command).await.map_err(ConnectFault::Unreachable)?;
        self.stream.flush().await.map_err(ConnectFault::Unreachable)?;
        self.prove(plugin, greeting.nonce.clone()).await
    }

    async fn prove(&mut self, mut plugin: Step, mut nonce: Vec<u8>) -> Result<(), ConnectFault> {
        for _ in 0..MAX_ROUNDS {
            let (sequence, payload) = receive(&mut self.stream, &mut self.inbox).await?;
            self.sequence = sequence;
            let answer = match payload.split_first() {
                Some((&packet::OK, _)) => return Ok(()),
                Some((&packet::MORE_DATA, data)) => plugin.more(self, &nonce, data)?,
                Some((&packet::EOF, request)) if !request.is_empty() => {
                    let (name, data) = split_nul(request).unwrap_or((request, &[]));
                    let name = String::from_utf8_lossy(name).into_owned();
                    plugin = Step::new(&name, self.stream.is_tls())?;
                    nonce = data.strip_suffix(&[0]).unwrap_or(data).to_vec();
                    Some(plugin.answer(self, &nonce)?.unwrap_or_default())
                }
                _ => return Err(nonsense("an answer that belongs to no login")),
            };
            if let Some(answer) = answer {
                let mut out = Vec::new();
                packet::put(&mut out, self.sequence.wrapping_add(1), |out| out.extend_from_slice(&answer));
                self.stream.write_all(&out).await.map_err(ConnectFault::Unreachable)?;
                self.stream.flush().await.map_err(ConnectFault::Unreachable)?;
            }
        }
        Err(nonsense("a login without end"))
    }
}

/// A plugin that is being run, and its name.
struct Step {
    name: String,
    plugin: Plugin,
}

impl Step {
    fn new(name: &str, tls: bool) -> Result<Self, ConnectFault> {
        match Plugin::named(name.as_bytes(), tls) {
            Some(plugin) => Ok(Self { name: name.to_owned(), plugin }),
            None => Err(not_possible(name)),
        }
    }

    fn answer(&mut self, exchange: &Exchange<'_>, nonce: &[u8]) -> Result<Option<Vec<u8>>, ConnectFault> {
        match exchange.credentials {
            Credentials::NativeHash(hash) if self.name == NATIVE => {
                Ok(Some(native_by_hash(nonce, hash).to_vec()))
            }
            Credentials::NativeHash(_) => Err(not_possible(&self.name)),
            _ => self.more(exchange, nonce, nonce),
        }
    }

    fn more(
        &mut self,
        exchange: &Exchange<'_>,
        nonce: &[u8],
        data: &[u8],
    ) -> Result<Option<Vec<u8>>, ConnectFault> {
        let password = match exchange.credentials {
            Credentials::Plain(password) => password.as_bytes(),
            _ => b"",
        };
        let context = Password { password, nonce, tls: exchange.stream.is_tls() };
        self.plugin.answer(&context, data).map_err(|_| nonsense("a challenge that makes no sense"))
    }
}

/// The server wants a proof that the credentials at hand cannot give.
fn not_possible(plugin: &str) -> ConnectFault {
    let mut raw = Vec::new();
    let message = format!(
        "the server asks for the plugin '{plugin}', for which the proxy does not know enough of this user"
    );
    packet::put_err(&mut raw, 1, 1045, "28000", message.as_bytes());
    ConnectFault::Refused { raw, code: *b"28000" }
}
