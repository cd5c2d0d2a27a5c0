//! One connection's bytes, plain or within TLS, whichever side opened it.

mod socket;

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

pub use self::socket::{Socket, Stage};
use crate::{
    flights,
    inbox::{Inbox, Source},
    runtime,
};

/// Idle time before the kernel asks a silent peer whether it is still there: far below the hours
/// after which firewalls and NAT gateways forget a connection without telling anybody.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Unanswered questions after which the peer counts as gone.
const KEEPALIVE_RETRIES: u32 = 6;

/// A connected socket, plain or within TLS.
#[derive(Debug)]
pub enum Stream {
    Plain(Arc<Socket>),
    /// Boxed: a TLS session is a kilobyte that most connections do not have.
    Tls(Box<TlsStream<TcpStream>>),
    /// A plain socket on its way to another runtime, for the length of [`Stream::migrate`] and after
    /// that failed: it is nobody's, and every use of it fails.
    Moving,
}

fn not_connected() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

/// Where a client comes from. A socket that listens on every address knows IPv4's as mapped ones
/// (`::ffff:10.0.0.1`, RFC 4291, section 2.5.5.2); people and servers know them as they are.
///
/// # Errors
/// When the connection is gone.
pub fn peer_of(socket: &TcpStream) -> io::Result<SocketAddr> {
    let peer = socket.peer_addr()?;
    Ok(SocketAddr::new(peer.ip().to_canonical(), peer.port()))
}

/// Sets what every connection of the proxy has: no Nagle delay, and keepalive so that a peer that
/// vanished without a word is noticed after two minutes.
pub fn configure(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

impl Stream {
    /// Of a connection that has just been made.
    pub fn plain(socket: TcpStream) -> Self {
        Self::Plain(Arc::new(Socket::new(socket)))
    }

    /// Wraps a finished handshake.
    pub fn tls(session: impl Into<TlsStream<TcpStream>>) -> Self {
        Self::Tls(Box::new(session.into()))
    }

    /// The TCP socket, below TLS if there is any.
    #[inline]
    pub fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket.tcp()),
            Self::Tls(session) => Some(session.get_ref().0),
            Self::Moving => None,
        }
    }

    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        peer_of(self.socket().ok_or_else(not_connected)?)
    }

    /// Whether the reactor has noted nothing to be read; `false` where only a read tells. No system call.
    #[inline]
    pub fn is_silent(&self) -> bool {
        let Self::Plain(socket) = self else { return false };
        // Tried only if something was noted, and then any other error than this leaves the note as it is.
        let noted = socket.tcp().try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::Other.into()));
        noted.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether it can go on on another worker: a TLS session is bound to the one it began on, and so is what is
    /// still to be sent.
    pub fn is_movable(&self) -> bool {
        flights::leave();
        matches!(self, Self::Plain(socket) if Arc::strong_count(socket) == 1)
    }

    /// The TCP socket alone, to begin TLS in it.
    ///
    /// # Errors
    /// Where TLS has begun, or something is still to be sent.
    pub fn into_tcp(self) -> io::Result<TcpStream> {
        match self {
            Self::Plain(socket) => socket.into_tcp(),
            Self::Tls(_) | Self::Moving => Err(not_connected()),
        }
    }

    /// Whether the kernel took nothing of what was left to the worker last ([`Outlet::entrust`]).
    pub fn was_refused(&self) -> bool {
        matches!(self, Self::Plain(socket) if socket.stage() == Stage::Refused)
    }

    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Moves a plain socket from the runtime it was registered with to the one this is called in.
    /// A TLS session stays where it is.
    pub fn migrate(&mut self) -> io::Result<()> {
        if self.is_tls() {
            return Ok(());
        }
        if let Self::Plain(socket) = std::mem::replace(self, Self::Moving) {
            *self = Self::plain(TcpStream::from_std(socket.into_tcp()?.into_std()?)?);
        }
        Ok(())
    }
}

/// The worker whose reactor a stream is registered with.
#[derive(Debug)]
pub struct Home(usize);

impl Home {
    /// Of a stream that was opened where this is called.
    pub fn here() -> Self {
        Self(runtime::worker())
    }

    /// Moves a plain socket to this worker's reactor: a wake-up across threads costs more than
    /// registering anew.
    ///
    /// # Errors
    /// Those of [`Stream::migrate`].
    pub fn move_here(&mut self, stream: &mut Stream) -> io::Result<()> {
        let here = runtime::worker();
        if self.0 != here {
            stream.migrate()?;
            self.0 = here;
        }
        Ok(())
    }
}

/// Where flights of bytes go out, whatever lies between here and the socket.
pub trait Outlet: AsyncWrite + Unpin {
    /// Writes what can be written at once: 0 where nothing can, and where TLS or compression stands between.
    /// The rest is for [`AsyncWrite`]; most flights leave none, and this is half the work.
    ///
    /// # Errors
    /// Those of the socket.
    fn write_now(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Entrusts the worker with a short flight, to go out with those of others ([`flights`]); its owner goes on
    /// to wait for the other side, which says or does not say what became of it. `false`: it has to be written.
    fn entrust(&self, bytes: &[u8]) -> bool;

    /// Whether what was written waits for a flush.
    fn is_buffered(&self) -> bool;
}

/// Sends all of `bytes`, what is short with what others send.
///
/// # Errors
/// Those of the socket; of a short flight whoever reads or writes next is told.
pub async fn send(outlet: &mut impl Outlet, bytes: &[u8]) -> io::Result<()> {
    if outlet.entrust(bytes) {
        return Ok(());
    }
    let written = outlet.write_now(bytes)?;
    if written == bytes.len() {
        return Ok(());
    }
    outlet.write_all(&bytes[written..]).await?;
    if outlet.is_buffered() {
        outlet.flush().await?;
    }
    Ok(())
}

impl Outlet for Stream {
    #[inline]
    fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let Self::Plain(socket) = self else { return Ok(0) };
        socket.write_now(bytes)
    }

    #[inline]
    fn entrust(&self, bytes: &[u8]) -> bool {
        matches!(self, Self::Plain(socket) if flights::add(socket, bytes))
    }

    #[inline]
    fn is_buffered(&self) -> bool {
        self.is_tls()
    }
}

impl Source for Stream {
    #[inline]
    fn poll_into(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => socket.poll_into(cx, inbox),
            Self::Tls(session) => inbox.poll_read(cx, session),
            Self::Moving => Poll::Ready(Err(not_connected())),
        }
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => socket.poll_read(cx, buf),
            Self::Tls(session) => Pin::new(session).poll_read(cx, buf),
            Self::Moving => Poll::Ready(Err(not_connected())),
        }
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => socket.poll_write(cx, buf),
            Self::Tls(session) => {
                flights::overtake();
                Pin::new(session).poll_write(cx, buf)
            }
            Self::Moving => Poll::Ready(Err(not_connected())),
        }
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => socket.poll_settled(cx).map(Ok),
            Self::Tls(session) => Pin::new(session).poll_flush(cx),
            Self::Moving => Poll::Ready(Err(not_connected())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => socket.poll_shutdown(cx),
            Self::Tls(session) => Pin::new(session).poll_shutdown(cx),
            Self::Moving => Poll::Ready(Err(not_connected())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        runtime::{Builder, Runtime},
    };

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().expect("the system has room for an epoll")
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (ours, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn whoever_asks_for_silence_takes_nothing_away() {
        let (ours, mut theirs) = pair().await;
        let mut ours = Stream::plain(ours);
        assert!(ours.is_silent());
        theirs.write_all(b"x").await.unwrap();
        ours.socket().unwrap().readable().await.unwrap();
        assert!(!ours.is_silent() && !ours.is_silent());
        let mut text = [0; 8];
        assert_eq!(ours.read(&mut text).await.unwrap(), 1);
        assert!(ours.is_silent());
        drop(theirs);
        ours.socket().unwrap().readable().await.unwrap();
        assert!(!ours.is_silent(), "the end of the stream is something to be read");
    }

    #[tokio::test]
    async fn what_cannot_be_written_at_once_is_left() {
        let (ours, mut theirs) = pair().await;
        let ours = Stream::plain(ours);
        ours.socket().unwrap().writable().await.unwrap();
        let flight = vec![7; 1 << 20];
        let mut written = 0;
        loop {
            match ours.write_now(&flight).unwrap() {
                0 => break,
                count => written += count,
            }
        }
        assert!(written > 0);
        let mut received = vec![0; written];
        theirs.read_exact(&mut received).await.unwrap();
        drop(theirs);
        assert!(received.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_plain_socket_moves_to_another_runtime_with_its_options() {
        let (first, second) = (runtime(), runtime());
        let (mut ours, mut theirs) = first.block_on(async {
            let (ours, theirs) = pair().await;
            configure(&ours).unwrap();
            (Stream::plain(ours), theirs)
        });
        first.block_on(theirs.write_all(b"before")).unwrap();

        let moved = second.block_on(async move {
            ours.migrate().unwrap();
            let mut text = [0; 6];
            ours.read_exact(&mut text).await.unwrap();
            assert_eq!(&text, b"before");
            ours.write_all(b"after").await.unwrap();
            ours
        });

        let mut text = [0; 5];
        first.block_on(theirs.read_exact(&mut text)).unwrap();
        assert_eq!(&text, b"after");
        let _registered = second.enter();
        assert!(!moved.is_tls() && moved.socket().unwrap().nodelay().unwrap());
        assert!(SockRef::from(moved.socket().unwrap()).keepalive().unwrap());
    }
}
