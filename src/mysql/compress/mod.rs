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
    inbox::{self, Inbox},
    stream::Stream,
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

    /// Whether what was written waits for a flush.
    #[inline]
    pub fn is_buffered(&self) -> bool {
        match self {
            Self::Bare(stream) => stream.is_tls(),
            Self::Compressed(_) => true,
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

impl<S: AsyncRead + Unpin> AsyncRead for Compressed<S> {
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
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const ALGORITHMS: [Algorithm; 2] = [Algorithm::Zlib, Algorithm::Zstd(ZstdLevel::DEFAULT)];

    /// What comes out of `frames`, read `step` bytes at a time, and how it ends.
    fn unpacked(algorithm: Algorithm, frames: &[u8], step: usize) -> (Vec<u8>, io::Result<()>) {
        let inner = tokio::io::join(frames, tokio::io::sink());
        let mut stream = Compressed::new(inner, algorithm, Inbox::default());
        let (mut all, mut part) = (Vec::new(), vec![0; step]);
        loop {
            match stream.read(&mut part).now_or_never().expect("the bytes are at hand") {
                Ok(0) => return (all, Ok(())),
                Ok(count) => all.extend_from_slice(&part[..count]),
                Err(error) => return (all, Err(error)),
            }
        }
    }

    fn packed(algorithm: Algorithm, parts: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        let inner = tokio::io::join(tokio::io::empty(), &mut out);
        let mut stream = Compressed::new(inner, algorithm, Inbox::default());
        for part in parts {
            stream.write_all(part).now_or_never().expect("there is room").expect("there is room");
        }
        stream.shutdown().now_or_never().expect("there is room").expect("there is room");
        drop(stream);
        out
    }

    fn frame(sequence: u8, body: &[u8], before: usize) -> Vec<u8> {
        let mut out = (body.len() as u32).to_le_bytes()[..3].to_vec();
        out.push(sequence);
        out.extend_from_slice(&(before as u32).to_le_bytes()[..3]);
        out.extend_from_slice(body);
        out
    }

    fn body(algorithm: Algorithm, plain: &[u8]) -> Vec<u8> {
        let mut out = vec![0; plain.len() + 1024];
        let length = algorithm.pack(plain, &mut out).expect("there is room");
        out.truncate(length);
        out
    }

    /// Bytes that no algorithm can shorten.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 88_172_645_463_325_252_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn what_is_written_comes_out_on_the_other_side() {
        let long = "a row of an answer; ".repeat(20_000);
        let noise = noise(100_000);
        let parts = [&b"short"[..], &[b'x'; SHORTEST - 1], &[b'x'; SHORTEST], long.as_bytes(), &noise, b""];
        for algorithm in ALGORITHMS {
            let frames = packed(algorithm, &parts);
            assert!(frames.len() < noise.len() + long.len() / 10, "{}", frames.len());
            for step in [1, 7, 1000, 1 << 20] {
                let (all, end) = unpacked(algorithm, &frames, step);
                assert!(end.is_ok() && all == parts.concat(), "{algorithm:?} by {step}: {end:?}");
            }
        }
    }

    #[test]
    fn frames_hold_parts_of_packets_and_several_and_nothing() {
        let text =
            "SELECT 'a text that is long enough to be compressed, twice: long enough to be compressed'";
        for algorithm in ALGORITHMS {
            let frames = [
                frame(0, &body(algorithm, text.as_bytes()), text.len()),
                frame(1, b"", 0),
                frame(2, b"as it is", 0),
                // Compressed though it is short.
                frame(3, &body(algorithm, b"x"), 1),
                frame(0, b"the next command", 0),
            ];
            for step in [1, 1000] {
                let (all, end) = unpacked(algorithm, &frames.concat(), step);
                assert!(end.is_ok(), "{end:?}");
                assert_eq!(String::from_utf8_lossy(&all), format!("{text}as it isxthe next command"));
            }
        }
    }

    #[test]
    fn a_frame_of_sixteen_megabytes_is_unpacked() {
        let plain = "0123456789abcdef".repeat(1 << 20);
        let plain = &plain.as_bytes()[..0xFF_FFFF];
        for algorithm in [Algorithm::Zlib, Algorithm::Zstd(ZstdLevel::new(22).expect("it is one"))] {
            let frames = frame(0, &body(algorithm, plain), plain.len());
            let (all, end) = unpacked(algorithm, &frames, 1 << 15);
            assert!(end.is_ok() && all == plain, "{algorithm:?}: {end:?}, {} bytes", all.len());
        }
    }

    #[test]
    fn frames_that_lie_give_an_error_and_no_byte_more_than_they_claim() {
        let plain = [b'x'; 400];
        for algorithm in ALGORITHMS {
            let good = body(algorithm, &plain);
            let bomb = body(algorithm, &vec![0; 0xFF_FFFF]);
            let mut damaged = good.clone();
            damaged[0] ^= 0x55;
            for (what, frames, claim) in [
                ("shorter than it claims", frame(0, &good, 401), 401),
                ("longer than it claims", frame(0, &good, 399), 399),
                ("a bomb", frame(0, &bomb, 100), 100),
                ("more behind it", frame(0, &[&good[..], b"x"].concat(), 400), 400),
                ("two in one", frame(0, &[&good[..], &good].concat(), 800), 800),
                ("cut short", frame(0, &good[..good.len() - 1], 400), 400),
                ("nothing", frame(0, b"", 400), 400),
                ("not compressed", frame(0, &plain, 400), 400),
                ("damaged", frame(0, &damaged, 400), 400),
            ] {
                // What follows is not taken for a part of it.
                let frames = [frames, frame(0, b"the next command", 0)].concat();
                for step in [1, 1000] {
                    let (all, end) = unpacked(algorithm, &frames, step);
                    let error = end.expect_err(what);
                    assert_eq!(
                        Unreadable::of(&error),
                        Some(Unreadable::Frame),
                        "{algorithm:?} {what}: {error}"
                    );
                    assert!(all.len() <= claim, "{algorithm:?} {what}: {} bytes", all.len());
                }
            }
        }
    }

    #[test]
    fn a_frame_that_is_cut_off_is_the_end_of_the_connection() {
        for algorithm in ALGORITHMS {
            let frames = frame(0, &body(algorithm, &[b'x'; 400]), 400);
            for length in 1..frames.len() {
                let (_, end) = unpacked(algorithm, &frames[..length], 1000);
                assert_eq!(end.expect_err("it is torn").kind(), io::ErrorKind::UnexpectedEof, "{length}");
            }
        }
    }

    #[test]
    fn frames_end_where_packets_do() {
        let packet = |length: usize| {
            let mut out = (length as u32).to_le_bytes().to_vec();
            out.resize(packet::HEADER + length, b'p');
            out
        };
        let ends = |pieces: usize, packets: &[Vec<u8>]| {
            let all = packets.concat();
            let parts: Vec<&[u8]> = all.chunks(pieces).collect();
            let mut frames = packed(Algorithm::Zlib, &parts);
            let (mut ends, mut at) = (Vec::new(), 0);
            while !frames.is_empty() {
                let length = |at: usize| u32::from_le_bytes([frames[at], frames[at + 1], frames[at + 2], 0]);
                let (body, before) = (length(0) as usize, length(4) as usize);
                at += if before > 0 { before } else { body };
                ends.push(at);
                frames.drain(..HEADER + body);
            }
            assert_eq!(at, all.len());
            ends
        };
        let short = [packet(10), packet(0), packet(90)];
        assert_eq!(ends(1000, &short), [112]);
        assert_eq!(ends(7, &short), [14, 18, 112]);
        assert_eq!(ends(50, &short), [18, 112]);
        // One that takes two frames and a bit, and what is ahead of it and behind.
        let long = [packet(10), packet(2 * LONGEST), packet(90)];
        let end = 2 * LONGEST + 14 + 4;
        assert_eq!(ends(1 << 20, &long), [LONGEST, 2 * LONGEST, end + 94]);
        assert_eq!(ends(1000, &long), [14, 14 + LONGEST, 14 + 2 * LONGEST, end + 94]);
    }

    #[test]
    fn frames_have_numbers_that_go_on() {
        let sent = |frames: &[u8], plain: usize, more: bool| {
            let mut out = Vec::new();
            let mut stream =
                Compressed::new(tokio::io::join(frames, &mut out), Algorithm::Zlib, Inbox::default());
            let mut read = vec![0; plain];
            stream
                .read_exact(&mut read)
                .now_or_never()
                .expect("the bytes are at hand")
                .expect("they make sense");
            stream.begin_answer(more);
            for part in [b"\x01\0\0\x01a", b"\x01\0\0\x02b"] {
                stream.write_all(part).now_or_never().expect("there is room").expect("there is room");
            }
            stream.flush().now_or_never().expect("there is room").expect("there is room");
            drop(stream);
            [out[3], out[3 + HEADER + 5]]
        };
        assert_eq!(sent(&frame(0, b"a", 0), 1, false), [1, 2]);
        assert_eq!(sent(&[frame(0, b"a", 0), frame(1, b"b", 0)].concat(), 2, false), [2, 3]);
        assert_eq!(sent(&[frame(0, b"a", 0), frame(0, b"b", 0)].concat(), 2, true), [1, 2]);

        let (_, end) = unpacked(Algorithm::Zlib, &[frame(0, b"a", 0), frame(5, b"b", 0)].concat(), 10);
        assert_eq!(Unreadable::of(&end.expect_err("it is out of order")), Some(Unreadable::Order));
    }
}
