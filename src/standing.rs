//! Whether a server may go on answering on connections that are open already.
//!
//! A pool is one node in one role. When the node is fenced or loses that role the pool's standing
//! falls for good and whoever waits for an answer there is woken: nothing that arrives afterwards
//! is handed on (hard case 1). A node that comes back gets a new pool. While it is open who has the
//! primary's role, what would tell a client that its write is committed waits: the server that is
//! elected may not have it. Not so where the last primary has stopped, or has become a replica: what
//! it still says is from before that, as in any planned switchover.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::atomic::{AtomicU8, Ordering},
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::AsyncWrite;

use crate::{
    inbox::{Inbox, Source},
    protocol::{Fault, Forwarded},
    session::cancel::{Call, Entry},
};

const FENCED: u8 = 1;
const DOWN: u8 = 2;
const VACANT: u8 = 4;

/// What is known of a pool's node that concerns its open connections.
#[derive(Debug, Default)]
pub struct Standing(AtomicU8);

impl Standing {
    /// Takes the right to answer away, for good.
    pub fn fence(&self) {
        self.0.fetch_or(FENCED, Ordering::AcqRel);
    }

    /// The node does not answer probes, or does again: a request that another node could answer
    /// need not wait for it. Tells whether that is news.
    pub fn set_down(&self, down: bool) -> bool {
        self.set(DOWN, down)
    }

    /// Nobody has the primary's role for now and the server may be taking writes still, or somebody has
    /// it again.
    pub fn set_vacant(&self, vacant: bool) {
        self.set(VACANT, vacant);
    }

    fn set(&self, flag: u8, on: bool) -> bool {
        let before = if on {
            self.0.fetch_or(flag, Ordering::AcqRel)
        } else {
            self.0.fetch_and(!flag, Ordering::AcqRel)
        };
        (before & flag != 0) != on
    }

    fn has(&self, flags: u8) -> bool {
        self.0.load(Ordering::Acquire) & flags != 0
    }
}

/// The standing of the server that runs a session's request.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    standing: &'a Standing,
    entry: &'a Entry,
    /// For how long an answer that may acknowledge a write waits while nobody has the role; `None`
    /// for one that acknowledges none.
    patience: Option<Duration>,
}

impl<'a> Watch<'a> {
    /// `entry` is the session's: whoever changes a standing wakes all sessions.
    pub fn new(standing: &'a Standing, entry: &'a Entry) -> Self {
        Self { standing, entry, patience: None }
    }

    /// The answer acknowledges a write, and waits so long for somebody to have the role.
    pub fn acknowledging(self, patience: Option<Duration>) -> Self {
        Self { patience, ..self }
    }

    /// Whether the server's answer may no longer be handed on. `movable`: another node can still
    /// be asked, so that one that is down need not be waited for.
    pub fn is_over(&self, movable: bool) -> bool {
        self.standing.has(if movable { FENCED | DOWN } else { FENCED })
    }

    /// Waits for the client, as long as the server may be used and nobody has ended the session: then `None`.
    pub async fn attend<T>(self, step: impl Future<Output = T>) -> Option<T> {
        let mut step = std::pin::pin!(step);
        std::future::poll_fn(|cx| {
            if self.poll_off(cx).is_ready() {
                return Poll::Ready(None);
            }
            step.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Whether the server gets nothing more of this session: it may not be used any more, or the session was ended.
    pub fn is_off(&self) -> bool {
        self.is_over(false) || self.entry.is_called(Call::Kill)
    }

    /// Ready when [`Self::is_off`]; registers the task's waker otherwise.
    pub fn poll_off(&self, context: &mut Context<'_>) -> Poll<()> {
        self.entry.register(context);
        if self.is_off() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ready when [`Self::is_over`]; registers the task's waker otherwise.
    pub fn poll_over(&self, context: &mut Context<'_>, movable: bool) -> Poll<()> {
        if self.is_over(movable) {
            return Poll::Ready(());
        }
        self.entry.register(context);
        if self.is_over(movable) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// What came of waiting to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Wrote(usize),
    /// The server said something first; 0 is the end of its stream.
    Read(usize),
}

impl Watch<'_> {
    /// Reads once what the server says. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Those of the stream, and [`given_up`] when the server may no longer say anything: it was
    /// fenced, or (`movable`) is down and another can be asked.
    pub async fn read<S>(self, inbox: &mut Inbox, stream: &mut S, movable: bool) -> io::Result<usize>
    where
        S: Source,
    {
        let read = std::future::poll_fn(|cx| match inbox.poll_fill(cx, stream) {
            Poll::Pending => self.poll_over(cx, movable).map(|()| Err(given_up())),
            read => read,
        })
        .await?;
        self.may_hand_on().await?;
        Ok(read)
    }

    /// Writes a part of `bytes`, or reads what the server says meanwhile: neither is to wait for the
    /// other for ever.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn write<S>(self, bytes: &[u8], inbox: &mut Inbox, stream: &mut S) -> io::Result<Step>
    where
        S: Source + AsyncWrite,
    {
        self.meanwhile(inbox, stream, |stream, cx| stream.poll_write(cx, bytes)).await
    }

    /// Has what was written, and is still within TLS, go out; or reads what the server says meanwhile.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn flush<S>(self, inbox: &mut Inbox, stream: &mut S) -> io::Result<Step>
    where
        S: Source + AsyncWrite,
    {
        self.meanwhile(inbox, stream, |stream, cx| stream.poll_flush(cx).map_ok(|()| 0)).await
    }

    async fn meanwhile<S>(
        self,
        inbox: &mut Inbox,
        stream: &mut S,
        write: impl Fn(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> io::Result<Step>
    where
        S: Source + AsyncWrite,
    {
        let step = std::future::poll_fn(|cx| {
            if let Poll::Ready(written) = write(Pin::new(&mut *stream), cx) {
                return Poll::Ready(written.map(Step::Wrote));
            }
            if self.poll_over(cx, false).is_ready() {
                return Poll::Ready(Err(given_up()));
            }
            inbox.poll_fill(cx, stream).map_ok(Step::Read)
        })
        .await?;
        if matches!(step, Step::Read(_)) {
            self.may_hand_on().await?;
        }
        Ok(step)
    }

    /// Waits until what was read may be handed on.
    async fn may_hand_on(self) -> io::Result<()> {
        if self.is_over(false) {
            return Err(given_up());
        }
        match self.patience {
            Some(patience) if self.standing.has(VACANT) => Box::pin(self.is_primary_again(patience)).await,
            _ => Ok(()),
        }
    }

    async fn is_primary_again(self, patience: Duration) -> io::Result<()> {
        let decided = std::future::poll_fn(|cx| {
            self.entry.register(cx);
            if self.is_over(false) {
                return Poll::Ready(Err(given_up()));
            }
            if self.standing.has(VACANT) { Poll::Pending } else { Poll::Ready(Ok(())) }
        });
        tokio::time::timeout(patience, decided).await.unwrap_or_else(|_| Err(given_up()))
    }
}

/// What ends a wait for a server that may no longer be used.
pub fn given_up() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the server is no longer the primary, or is down")
}

/// Waits for a session's client as long as nobody has ended the session.
///
/// # Errors
/// Those of the step, and `ConnectionAborted`.
pub async fn attend<T>(entry: Option<&Entry>, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let mut step = std::pin::pin!(step);
    std::future::poll_fn(|cx| match (step.as_mut().poll(cx), entry) {
        (Poll::Pending, Some(entry)) => {
            entry.poll_called(cx, &[Call::Kill]).map(|()| Err(io::ErrorKind::ConnectionAborted.into()))
        }
        (done, _) => done,
    })
    .await
}

/// Runs a step ahead of a request, unless the server may no longer be used.
///
/// # Errors
/// Those of the step; [`Fault::Server`] when the server was given up.
pub async fn watched<T>(watch: Watch<'_>, step: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let mut step = std::pin::pin!(step);
    std::future::poll_fn(|cx| match step.as_mut().poll(cx) {
        Poll::Pending => watch.poll_over(cx, false).map(|()| Err(unsent())),
        done => done,
    })
    .await
}

/// The same for a request of which nothing was sent.
pub fn unsent() -> Fault {
    Fault::Server { error: given_up(), sent: false, forwarded: Forwarded::Nothing }
}
