//! The compressed protocol: a layer beneath the packets, of frames that may hold several packets
//! or a part of one.
//!
//! A frame has three bytes of length, a sequence number of its own, three bytes of the length
//! before it was compressed, and a body; a length of 0 there says that the body is not compressed.
//! Source: `net_serv.cc` and "Compression" of MySQL's protocol documentation.
//!
//! A compressed frame is handed on when all of it has come and made sense, as by the servers: it is
//! unpacked while it arrives, and has 16 MB at most. Toward the client frames end where packets
//! end, as far as packets are short enough: clients that get packets in more than two frames are
//! not all up to it.

mod codec;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::codec::Unpacker;
pub use self::codec::{Algorithm, ZstdLevel};
use super::packet;
use crate::{
    inbox::{self, Inbox, Source},
    stream::{Outlet, Stream},
};

/// Bytes of a frame's header.
const HEADER: usize = 7;

/// What is shorter is sent as it is, as by the servers.
const SHORTEST: usize = 50;

/// Bytes that are compressed at one time: other sessions of the worker wait meanwhile, for a few
/// milliseconds.
const LONGEST: usize = 4 * inbox::BUFFER;

/// By how much room for an unpacked frame grows.
const PORTION: usize = inbox::BUFFER;

/// Buffers up to this size are kept between answers.
const KEPT: usize = 1024;

/// What a client has sent cannot be unpacked: its connection is beyond repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is damaged, or its lengths are lies.
    #[error("Couldn't uncompress communication packet")]
    Frame,
    #[error("Got packets out of order")]
    Order,
}

impl Unreadable {
    /// Whether that is what a stream's error says.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl From<Unreadable> for io::Error {
    fn from(unreadable: Unreadable) -> Self {
        Self::new(io::ErrorKind::InvalidData, unreadable)
    }
}

/// A client's connection, compressed if the client has asked for it.
pub enum Wire {
    Bare(Stream),
    /// Boxed: few connections have it.
    Compressed(Box<Compressed<Stream>>),
}

impl Wire {
    /// The same connection, compressed from here on; `inbox` has what was read ahead.
    pub fn compressed(self, algorithm: Algorithm, inbox: Inbox) -> Self {
        match self {
            Self::Bare(stream) => Self::Compressed(Box::new(Compressed::new(stream, algorithm, inbox))),
            compressed => compressed,
        }
    }

    /// What is beneath.
    pub fn stream(&self) -> &Stream {
        match self {
            Self::Bare(stream) => stream,
            Self::Compressed(compressed) => &compressed.inner,
        }
    }

    /// Whether it can go on on another worker. A compressed session stays where it is.
    pub fn is_movable(&self) -> bool {
        matches!(self, Self::Bare(stream) if stream.is_movable())
    }

    /// Moves one that can be moved to the runtime this is called in.
    ///
    /// # Errors
    /// Those of [`Stream::migrate`].
    pub fn migrate(&mut self) -> io::Result<()> {
        match self {
            Self::Bare(stream) => stream.migrate(),
            Self::Compressed(_) => Ok(()),
        }
    }

    /// Whether the sequence numbers of packets mean nothing: frames have their own.
    pub fn is_compressed(&self) -> bool {
        matches!(self, Self::Compressed(_))
    }

    /// A command has been read, and is answered next. `more`: another has arrived behind it.
    #[inline]
    pub fn begin_answer(&mut self, more: bool) {
        if let Self::Compressed(compressed) = self {
            compressed.begin_answer(more);
        }
    }
}

impl Outlet for Wire {
    #[inline]
    fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Bare(stream) => stream.write_now(bytes),
            Self::Compressed(_) => Ok(0),
        }
    }

    #[inline]
    fn entrust(&self, bytes: &[u8]) -> bool {
        matches!(self, Self::Bare(stream) if stream.entrust(bytes))
    }

    #[inline]
    fn is_buffered(&self) -> bool {
        match self {
            Self::Bare(stream) => stream.is_buffered(),
            Self::Compressed(_) => true,
        }
    }
}

impl Source for Wire {
    #[inline]
    fn poll_into(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox) -> Poll<io::Result<usize>> {
        match self {
            Self::Bare(stream) => stream.poll_into(cx, inbox),
            Self::Compressed(compressed) => inbox.poll_read(cx, &mut **compressed),
        }
    }
}

impl AsyncRead for Wire {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Bare(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Compressed(compressed) => Pin::new(&mut **compressed).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Bare(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Compressed(compressed) => Pin::new(&mut **compressed).poll_write(cx, buf),
        }
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Bare(stream) => Pin::new(stream).poll_flush(cx),
            Self::Compressed(compressed) => Pin::new(&mut **compressed).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Bare(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Compressed(compressed) => Pin::new(&mut **compressed).poll_shutdown(cx),
        }
    }
}

/// A frame that has begun to arrive.
struct Frame {
    /// Bytes of the body that have not been looked at.
    rest: usize,
    /// Bytes that have not come out of it.
    expected: usize,
    /// None: the body is not compressed.
    unpacker: Option<Unpacker>,
    ended: bool,
}

/// Where the last whole packet of `data` ends, and where the one behind it will; the first
/// `rest` bytes are of one that has begun before. Both are the same where not even its length is
/// there.
fn packets(rest: usize, data: &[u8]) -> (usize, usize) {
    let (mut whole, mut end) = (0, rest);
    while end <= data.len() {
        whole = end;
        match packet::header(&data[whole..]) {
            Some(header) => end = whole + header.total(),
            None => break,
        }
    }
    (whole, end)
}

fn clear(buffer: &mut Vec<u8>) {
    buffer.clear();
    clear_unused(buffer);
}

/// An idle connection keeps no large buffers.
fn clear_unused(buffer: &mut Vec<u8>) {
    if buffer.is_empty() && buffer.capacity() > KEPT {
        *buffer = Vec::new();
    }
}

/// The compressed protocol over another stream.
pub struct Compressed<S> {
    inner: S,
    algorithm: Algorithm,
    /// Received, and not unpacked.
    inbox: Inbox,
    frame: Option<Frame>,
    /// A frame that is being unpacked, or was and has not been read.
    plain: Vec<u8>,
    /// How much of `plain` was read.
    taken: usize,
    /// Why nothing more is read.
    unreadable: Option<Unreadable>,
    /// Sequence number of the last frame received.
    received: u8,
    /// Sequence number of the next frame sent.
    next: u8,
    /// The beginning of a packet, not in a frame yet.
    held: Vec<u8>,
    /// Bytes to come of a packet that has begun in a frame.
    rest: usize,
    /// Frames that the stream beneath has not taken.
    out: Vec<u8>,
    /// How much of `out` it has.
    written: usize,
}

impl<S> Compressed<S> {
    /// `inbox` has what was read ahead.
    pub fn new(inner: S, algorithm: Algorithm, inbox: Inbox) -> Self {
        Self {
            inner,
            algorithm,
            inbox,
            frame: None,
            plain: Vec::new(),
            taken: 0,
            unreadable: None,
            received: 0,
            next: 0,
            held: Vec::new(),
            rest: 0,
            out: Vec::new(),
            written: 0,
        }
    }

    /// Frames are numbered on from a command's own. Where another command has arrived already,
    /// the last frame received is that one's, and this one's was a single one.
    fn begin_answer(&mut self, more: bool) {
        self.next = if more { 1 } else { self.received.wrapping_add(1) };
    }

    /// Begins with the next frame, if its header has arrived.
    fn begin_frame(&mut self) -> io::Result<bool> {
        let Some(header) = self.inbox.data().first_chunk::<HEADER>() else { return Ok(false) };
        let length = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], 0]) as usize;
        let (rest, sequence, expected) = (length(0), header[3], length(4));
        // What goes on is numbered on, also from our own frames; every command begins anew.
        if sequence == self.received.wrapping_add(1) || sequence == self.next {
            self.next = sequence.wrapping_add(1);
        } else if sequence != 0 {
            return Err(Unreadable::Order.into());
        }
        self.received = sequence;
        self.inbox.consume(HEADER);
        let unpacker = if expected > 0 { Some(Unpacker::take(self.algorithm)?) } else { None };
        let is_empty = rest == 0 && unpacker.is_none();
        self.frame = (!is_empty).then_some(Frame { rest, expected, unpacker, ended: false });
        Ok(true)
    }

    /// Unpacks what has arrived of a frame. `false`: more of it is needed.
    fn unpack(&mut self, frame: &mut Frame, unpacker: &mut Unpacker) -> io::Result<bool> {
        let input = &self.inbox.data()[..frame.rest.min(self.inbox.len())];
        let before = self.plain.len();
        // One byte more than it may have: that it has none there is to be seen, too.
        self.plain.resize(before + (frame.expected + 1).min(PORTION), 0);
        let step = unpacker.step(input, &mut self.plain[before..])?;
        if step.written > frame.expected {
            return Err(Unreadable::Frame.into());
        }
        self.plain.truncate(before + step.written);
        let nothing = step.read == 0 && step.written == 0;
        // It has all that there will be, or does not want what there is.
        let stuck = nothing && (input.len() == frame.rest || !input.is_empty());
        self.inbox.consume(step.read);
        frame.rest -= step.read;
        frame.expected -= step.written;
        frame.ended = step.ended;
        let done = frame.rest == 0 && frame.expected == 0;
        if (step.ended && !done) || (!step.ended && stuck) {
            return Err(Unreadable::Frame.into());
        }
        Ok(!nothing)
    }

    /// Goes on with the frame at hand. `false`: more of it is needed.
    fn go_on(&mut self, frame: &mut Frame, buf: &mut ReadBuf<'_>) -> io::Result<bool> {
        let Some(mut unpacker) = frame.unpacker.take() else {
            let part = frame.rest.min(self.inbox.len()).min(buf.remaining());
            buf.put_slice(&self.inbox.data()[..part]);
            self.inbox.consume(part);
            frame.rest -= part;
            frame.ended = frame.rest == 0;
            return Ok(part > 0);
        };
        let went_on = self.unpack(frame, &mut unpacker);
        if frame.ended || went_on.is_err() {
            unpacker.give();
        } else {
            frame.unpacker = Some(unpacker);
        }
        went_on
    }

    /// Reads into `buf` as much as can be had without the stream beneath.
    fn read_here(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let before = buf.filled().len();
        while buf.filled().len() == before {
            if let Some(mut frame) = self.frame.take() {
                let went_on = self.go_on(&mut frame, buf)?;
                self.frame = (!frame.ended).then_some(frame);
                if !went_on && self.frame.is_some() {
                    return Ok(());
                }
            } else if self.taken < self.plain.len() {
                self.take_plain(buf);
            } else if !self.begin_frame()? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn take_plain(&mut self, buf: &mut ReadBuf<'_>) {
        let left = &self.plain[self.taken..];
        let part = left.len().min(buf.remaining());
        buf.put_slice(&left[..part]);
        self.taken += part;
        if self.taken == self.plain.len() {
            self.taken = 0;
            clear(&mut self.plain);
        }
    }

    /// Takes a part of `buf`, and puts into frames what is whole packets or too long to wait for the
    /// end of one.
    fn pack(&mut self, buf: &[u8]) -> usize {
        let part = &buf[..buf.len().min(LONGEST - self.held.len())];
        if self.held.is_empty() {
            let framed = self.put_packets(part);
            self.held.extend_from_slice(&part[framed..]);
        } else {
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(part);
            let framed = self.put_packets(&held);
            held.drain(..framed);
            clear_unused(&mut held);
            self.held = held;
        }
        part.len()
    }

    /// Returns how much of `data` went into a frame.
    fn put_packets(&mut self, data: &[u8]) -> usize {
        let (whole, end) = packets(self.rest, data);
        let framed = if data.len() < LONGEST || end <= data.len() { whole } else { data.len() };
        if framed > 0 {
            self.put_frame(&data[..framed]);
            self.rest = if framed == whole { 0 } else { end - framed };
        }
        framed
    }

    fn put_frame(&mut self, plain: &[u8]) {
        let start = self.out.len();
        self.out.resize(start + HEADER + plain.len(), 0);
        let body = &mut self.out[start + HEADER..];
        let packed = if plain.len() < SHORTEST { None } else { self.algorithm.pack(plain, body) };
        let (length, before) = match packed {
            Some(length) if length < plain.len() => (length, plain.len()),
            _ => {
                body.copy_from_slice(plain);
                (plain.len(), 0)
            }
        };
        self.out.truncate(start + HEADER + length);
        let header = &mut self.out[start..start + HEADER];
        header[..3].copy_from_slice(&(length as u32).to_le_bytes()[..3]);
        header[3] = self.next;
        header[4..].copy_from_slice(&(before as u32).to_le_bytes()[..3]);
        self.next = self.next.wrapping_add(1);
    }
}

impl<S> Drop for Compressed<S> {
    fn drop(&mut self) {
        self.frame.take().and_then(|frame| frame.unpacker).into_iter().for_each(Unpacker::give);
    }
}

impl<S: AsyncWrite + Unpin> Compressed<S> {
    /// Hands over all frames.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.out.len() {
            let count = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.out[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        self.written = 0;
        clear(&mut self.out);
        Poll::Ready(Ok(()))
    }
}

impl<S: Source> AsyncRead for Compressed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if let Some(unreadable) = this.unreadable {
                return Poll::Ready(Err(unreadable.into()));
            }
            if let Err(error) = this.read_here(buf) {
                this.unreadable = Unreadable::of(&error);
                return Poll::Ready(Err(error));
            }
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if ready!(this.inbox.poll_fill(cx, &mut this.inner))? == 0 {
                let torn = this.frame.is_some() || !this.inbox.is_empty();
                let end = if torn { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) };
                return Poll::Ready(end);
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Compressed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Poll::Ready(Ok(this.pack(buf)))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let torn = std::mem::take(&mut this.held);
        if !torn.is_empty() {
            this.put_frame(&torn);
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
