//! Reaching a server: the TCP connection, the negotiation of TLS, and the cancel request, which
//! needs no more than that.

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::server::ConnectError;
use crate::{
    postgres::message::CANCEL_REQUEST,
    stream::{self, Stream},
    tls::{self, Mode, ServerTls},
};

/// What one attempt to connect asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    None,
    IfOffered,
    Required,
}

/// Connects to `host:port` and negotiates encryption.
pub async fn dial(address: &str, tls: &ServerTls, encryption: Encryption) -> Result<Stream, ConnectError> {
    let mut socket = TcpStream::connect(address).await.map_err(ConnectError::Unreachable)?;
    stream::configure(&socket)?;
    let connector = match tls.connector() {
        Some(connector) if encryption != Encryption::None => connector,
        _ => return Ok(Stream::plain(socket)),
    };
    if !ask_for_tls(&mut socket).await? {
        return match encryption {
            Encryption::Required => Err(ConnectError::Tls("the server does not support it".into())),
            _ => Ok(Stream::plain(socket)),
        };
    }
    let name = tls::server_name(address)
        .ok_or_else(|| ConnectError::Tls(format!("{address} is not a name that a certificate can have")))?;
    let session = connector.connect(name, socket).await;
    session.map(Stream::tls).map_err(|error| ConnectError::Tls(error.to_string()))
}

/// SSLRequest. Reads exactly the answer's one byte, so that nothing sent before the handshake can
/// be taken for something within it (CVE-2021-23222).
async fn ask_for_tls(socket: &mut TcpStream) -> Result<bool, ConnectError> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await?;
    match socket.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        // An error from whoever is in between or a server in distress: its text proves nothing
        // (CVE-2024-10977), so it is not read.
        b'E' => Err(ConnectError::Protocol("an error in answer to SSLRequest".into())),
        other => Err(ConnectError::Protocol(format!("{other:#04x} in answer to SSLRequest"))),
    }
}

/// Asks the server to cancel what runs under this key, and waits until it has closed the
/// connection: only then the signal has been sent.
///
/// The caller sets the deadline. Once the request is written, dropping the future does not stop it.
pub async fn send_cancel(
    address: &str,
    tls: &ServerTls,
    process_id: u32,
    key: &[u8],
) -> Result<(), ConnectError> {
    let encryption = match tls.mode() {
        Mode::Disable | Mode::Allow => Encryption::None,
        Mode::Prefer => Encryption::IfOffered,
        Mode::Require | Mode::VerifyCa | Mode::VerifyFull => Encryption::Required,
    };
    let mut stream = dial(address, tls, encryption).await?;
    let length = u32::try_from(12 + key.len()).expect("keys have at most 256 bytes");
    let mut request = BytesMut::new();
    request.put_u32(length);
    request.put_u32(CANCEL_REQUEST);
    request.put_u32(process_id);
    request.put_slice(key);
    stream.write_all(&request).await?;
    stream.flush().await?;
    // The server says nothing; an error (a reset, TLS without close_notify) is its way to close.
    let mut ignored = [0; 64];
    while matches!(stream.read(&mut ignored).await, Ok(1..)) {}
    Ok(())
}
