//! A connection's receive buffer, which exists only while there is something in it.
//!
//! Ten thousand idle clients must not hold ten thousand buffers: an [`Inbox`] borrows one from its
//! worker's stock for the attempt to read, and gives it back when nothing came.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

/// Size of a buffer in the stock, in bytes: two TLS records, and the size up to which one read of
/// a loopback socket gets cheaper per byte.
pub const BUFFER: usize = 32 * 1024;

/// Buffers a worker keeps for reuse: those of the sessions that are busy at one moment, not more.
const STOCK: usize = 64;

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn take_buffer() -> Box<[u8]> {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())
}

fn give_buffer(buffer: Box<[u8]>) {
    if buffer.len() == BUFFER {
        // An inbox that outlives its thread's stock (at shutdown) just frees its buffer.
        let _ = BUFFERS.try_with(|stock| {
            let mut stock = stock.borrow_mut();
            if stock.len() < STOCK {
                stock.push(buffer);
            }
        });
    }
}

/// What an [`Inbox`] is filled from.
pub trait Source: Unpin {
    /// Reads once into `inbox`, which borrows a buffer only where there may be something to read.
    /// `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    /// Those of the stream.
    fn poll_into(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox) -> Poll<io::Result<usize>>;
}

/// Bytes received and not yet consumed.
#[derive(Default)]
pub struct Inbox {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    /// Starts with bytes that somebody else has read already.
    pub fn with(bytes: &[u8]) -> Self {
        let mut inbox = Self::default();
        if !bytes.is_empty() {
            inbox.make_room(bytes.len());
            inbox.buffer[..bytes.len()].copy_from_slice(bytes);
            inbox.end = bytes.len();
        }
        inbox
    }

    pub fn data(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// For what has to be put right before it is read.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.end]
    }

    pub fn len(&self) -> usize {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Drops the first `count` bytes; the buffer goes back when that was all.
    pub fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.len());
        self.start += count;
        if self.start >= self.end {
            self.clear();
        }
    }

    pub fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
        // A small boxed slice costs nothing; a grown one is freed, one of the stock goes back.
        give_buffer(std::mem::take(&mut self.buffer));
    }

    /// Makes room for at least `count` further bytes, by moving or growing.
    fn make_room(&mut self, count: usize) {
        if self.buffer.is_empty() {
            self.buffer = take_buffer();
        }
        if self.buffer.len() - self.end >= count {
            return;
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let needed = self.end + count;
        if needed > self.buffer.len() {
            let mut grown = vec![0; needed.next_power_of_two()].into_boxed_slice();
            grown[..self.end].copy_from_slice(&self.buffer[..self.end]);
            give_buffer(std::mem::replace(&mut self.buffer, grown));
        }
    }

    /// Reads once from `source`, growing when full. `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    /// Those of the stream.
    #[inline]
    pub fn poll_fill<S: Source>(&mut self, cx: &mut Context<'_>, source: &mut S) -> Poll<io::Result<usize>> {
        source.poll_into(cx, self)
    }

    /// As [`Self::poll_fill`], for a stream that tells only by reading whether there is anything.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<usize>> {
        self.attempt(|room| {
            let mut room = ReadBuf::new(room);
            let read = Pin::new(stream).poll_read(cx, &mut room);
            (read.map_ok(|()| room.filled().len()), room.filled().len())
        })
    }

    /// Has `read` put something into the room that is there; it returns what it came to, and how many bytes it
    /// has put.
    #[inline]
    pub fn attempt<T>(&mut self, read: impl FnOnce(&mut [u8]) -> (T, usize)) -> T {
        self.make_room(1);
        let (done, count) = read(&mut self.buffer[self.end..]);
        self.end += count;
        if self.is_empty() {
            self.clear();
        }
        done
    }

    /// Waits until something is there that nobody asked for; `false`: the stream has ended or failed.
    pub async fn stirs<S: Source>(&mut self, stream: &mut S) -> bool {
        !self.is_empty() || self.fill(stream).await.is_ok_and(|count| count > 0)
    }

    /// Resolves when the stream has ended or failed; what comes until then is kept. One that brings `bound`
    /// bytes is not read further, and does not end.
    pub async fn ended<S: Source>(&mut self, stream: &mut S, bound: usize) {
        while self.len() < bound {
            if !self.fill(stream).await.is_ok_and(|count| count > 0) {
                return;
            }
        }
        std::future::pending().await
    }

    /// Reads once from `stream`; see [`Self::poll_fill`]. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn fill<S: Source>(&mut self, stream: &mut S) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_fill(cx, stream)).await
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
impl Source for tokio::io::DuplexStream {
    fn poll_into(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox) -> Poll<io::Result<usize>> {
        inbox.poll_read(cx, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_inbox_grows_and_gives_its_buffer_back() {
        let (mut ours, theirs) = tokio::io::duplex(1 << 20);
        let sent = vec![7u8; BUFFER * 2 + 5];
        let mut theirs = theirs;
        tokio::io::AsyncWriteExt::write_all(&mut theirs, &sent).await.expect("duplex has room");

        let mut inbox = Inbox::default();
        while inbox.len() < sent.len() {
            inbox.fill(&mut ours).await.expect("duplex is open");
        }
        assert_eq!(inbox.data(), &sent[..]);

        inbox.consume(3);
        assert_eq!(inbox.len(), sent.len() - 3);
        inbox.consume(sent.len() - 3);
        assert!(inbox.buffer.is_empty());
    }
}
