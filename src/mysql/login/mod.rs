//! The connection phase, on both sides.

pub mod client;
pub mod response;
pub mod scramble;
pub mod server;
pub mod vault;
pub mod verifier;

use std::{io, sync::Arc};

use zeroize::Zeroizing;

use super::packet::{self, HEADER};
use crate::inbox::{Inbox, Source};

/// Longest packet of the connection phase that is read, in bytes: a client's connect attributes are
/// bounded by 64 KB in every server.
pub const MAX_PACKET: usize = 128 * 1024;

/// Plugins, by the names that clients and servers use.
pub const NATIVE: &str = "mysql_native_password";
pub const CACHING_SHA2: &str = "caching_sha2_password";
pub const ED25519: &str = "client_ed25519";

/// What opens servers for a user.
#[derive(Clone)]
pub enum Credentials {
    /// No password.
    None,
    Plain(Arc<Zeroizing<String>>),
    /// SHA1 of the password, which a client's mysql_native_password login reveals to whoever knows
    /// SHA1 of that: it opens servers by the same plugin.
    NativeHash(Arc<Zeroizing<[u8; 20]>>),
}

impl Credentials {
    /// The empty password is none.
    pub fn of(password: &Arc<Zeroizing<String>>) -> Self {
        if password.is_empty() { Self::None } else { Self::Plain(password.clone()) }
    }
}

/// Reads the next packet of the connection phase; it stays in the inbox until it is consumed.
///
/// # Errors
/// At the end of the stream and for packets that are too long.
pub async fn next_packet<S>(stream: &mut S, inbox: &mut Inbox) -> io::Result<packet::Header>
where
    S: Source,
{
    loop {
        if let Some(header) = packet::header(inbox.data()) {
            if header.length > MAX_PACKET {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "packet too long"));
            }
            if header.total() <= inbox.len() {
                return Ok(header);
            }
        }
        if inbox.fill(stream).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// As [`next_packet`], and takes the payload out of the inbox.
pub async fn take_packet<S>(stream: &mut S, inbox: &mut Inbox) -> io::Result<(u8, Vec<u8>)>
where
    S: Source,
{
    let header = next_packet(stream, inbox).await?;
    let payload = inbox.data()[HEADER..header.total()].to_vec();
    inbox.consume(header.total());
    Ok((header.sequence, payload))
}
