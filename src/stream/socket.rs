//! A plain TCP connection, which its owner shares with the worker's [`flights`].

use std::{
    io,
    net::Shutdown,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_util::task::AtomicWaker;
use socket2::SockRef;
use tokio::{
    io::{Interest, ReadBuf},
    net::TcpStream,
};

use crate::{flights, inbox::Inbox};

/// What is under way of what was left to the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Nothing.
    Clear,
    /// A flight leaves with the worker's next ones.
    Waiting,
    /// The kernel has not taken all of it: a task writes the rest.
    Left,
    /// The kernel has taken nothing of the last one, and never will.
    Refused,
}

/// Both directions of a connection; whoever writes by itself is put behind what was left to the worker.
#[derive(Debug)]
pub struct Socket {
    tcp: TcpStream,
    /// Read and written on the connection's worker alone.
    stage: AtomicU8,
    /// Who waits for the end of [`Stage::Left`].
    writer: AtomicWaker,
}

impl Socket {
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, stage: AtomicU8::new(Stage::Clear as u8), writer: AtomicWaker::new() }
    }

    #[inline]
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// The connection alone, if nothing of it is under way.
    ///
    /// # Errors
    /// `WouldBlock`: something is.
    pub fn into_tcp(self: Arc<Self>) -> io::Result<TcpStream> {
        flights::leave();
        Arc::into_inner(self).map(|socket| socket.tcp).ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    #[inline]
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Relaxed) {
            stage if stage == Stage::Waiting as u8 => Stage::Waiting,
            stage if stage == Stage::Left as u8 => Stage::Left,
            stage if stage == Stage::Refused as u8 => Stage::Refused,
            _ => Stage::Clear,
        }
    }

    pub fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    /// The end of [`Stage::Left`].
    pub fn end_rest(&self) {
        self.enter(Stage::Clear);
        self.writer.wake();
    }

    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let spare = buffer.initialize_unfilled();
        let count = ready!(self.poll_reading(cx, || self.read(spare)))?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }

    /// Reads once into `inbox`, which borrows no buffer before the reactor has noted something to read.
    pub fn poll_into(&self, cx: &mut Context<'_>, inbox: &mut Inbox) -> Poll<io::Result<usize>> {
        self.poll_reading(cx, || {
            inbox.attempt(|room| {
                let read = self.read(room);
                let count = *read.as_ref().unwrap_or(&0);
                (read, count)
            })
        })
    }

    #[inline]
    fn poll_reading(
        &self,
        cx: &mut Context<'_>,
        mut read: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.tcp.poll_read_ready(cx))?;
            match read() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
    }

    #[inline]
    fn read(&self, room: &mut [u8]) -> io::Result<usize> {
        self.attempt(Interest::READABLE, room.len(), || io::Read::read(&mut &*SockRef::from(&self.tcp), room))
    }

    /// Writes what can be written at once.
    ///
    /// # Errors
    /// Those of the socket; 0 where it takes nothing now.
    #[inline]
    pub fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        self.follow();
        if self.stage() == Stage::Left {
            return Ok(0);
        }
        match self.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            written => written,
        }
    }

    pub fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_settled(cx));
        self.poll_write_rest(cx, bytes)
    }

    /// As [`Self::poll_write`], for whoever writes what is ahead of everything else.
    pub fn poll_write_rest(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.tcp.poll_write_ready(cx))?;
            match self.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.attempt(Interest::WRITABLE, bytes.len(), || {
            SockRef::from(&self.tcp).send_with_flags(bytes, libc::MSG_NOSIGNAL)
        })
    }

    /// Reads or writes once, if the reactor has noted that it can be done. Less than was `wanted` is all there is,
    /// or all there is room for: the next attempt waits for the reactor instead of asking in vain.
    fn attempt(
        &self,
        interest: Interest,
        wanted: usize,
        transfer: impl FnOnce() -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut count = 0;
        let done = self.tcp.try_io(interest, || {
            count = transfer()?;
            if 0 < count && count < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match done {
            Err(error) if count == 0 => Err(error),
            _ => Ok(count),
        }
    }

    /// What goes by itself goes behind what of this connection was left to the worker.
    fn follow(&self) {
        match self.stage() {
            Stage::Waiting => flights::leave(),
            _ => flights::overtake(),
        }
    }

    /// Ready when nothing that was left to the worker is under way.
    pub fn poll_settled(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.follow();
        if self.stage() != Stage::Left {
            return Poll::Ready(());
        }
        self.writer.register(cx.waker());
        if self.stage() == Stage::Left { Poll::Pending } else { Poll::Ready(()) }
    }

    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_settled(cx));
        Poll::Ready(SockRef::from(&self.tcp).shutdown(Shutdown::Write))
    }
}
