//! The two algorithms, a frame at a time.

use std::{cell::RefCell, io};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use zstd::{
    bulk::Compressor,
    stream::raw::{DParameter, Decoder, Operation},
};

use super::Unreadable;

/// zlib's level; the servers' own.
const ZLIB_LEVEL: u32 = 6;

/// Logarithm of the memory that a frame of zstd may ask for, in bytes: a frame holds up to 16 MB.
const WINDOW_LOG_MAX: u32 = 24;

/// Codecs of each kind that a worker keeps for reuse. A frame that has arrived whole, as nearly
/// all have, needs one only while it is looked at.
const STOCK: usize = 2;

/// How a connection's bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Zlib,
    /// The client chooses the level.
    Zstd(ZstdLevel),
}

/// 1 to 22.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZstdLevel(u8);

impl ZstdLevel {
    /// That of clients that name none.
    pub const DEFAULT: Self = Self(3);

    pub fn new(level: u8) -> Option<Self> {
        (1..=22).contains(&level).then_some(Self(level))
    }
}

thread_local! {
    static DEFLATE: RefCell<Option<Compress>> = const { RefCell::new(None) };
    static ZSTD: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static UNPACKERS: RefCell<Vec<Unpacker>> = const { RefCell::new(Vec::new()) };
}

impl Algorithm {
    /// Compresses `plain` into `out`; `None`: it does not get shorter than `out`.
    pub fn pack(self, plain: &[u8], out: &mut [u8]) -> Option<usize> {
        match self {
            Self::Zlib => DEFLATE.with_borrow_mut(|kept| {
                let deflate = kept.get_or_insert_with(|| Compress::new(Compression::new(ZLIB_LEVEL), true));
                deflate.reset();
                let status = deflate.compress(plain, out, FlushCompress::Finish).ok()?;
                (status == flate2::Status::StreamEnd).then_some(deflate.total_out() as usize)
            }),
            Self::Zstd(ZstdLevel(level)) => ZSTD.with_borrow_mut(|kept| {
                let level = i32::from(level);
                let zstd = match kept {
                    Some(zstd) => zstd,
                    none => none.insert(Compressor::new(level).ok()?),
                };
                zstd.set_compression_level(level).ok()?;
                zstd.compress_to_buffer(plain, out).ok()
            }),
        }
    }
}

/// What turns one compressed frame back.
pub enum Unpacker {
    Zlib(Decompress),
    Zstd(Decoder<'static>),
}

/// What one step of an [`Unpacker`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub read: usize,
    pub written: usize,
    /// The frame ends behind what was read.
    pub ended: bool,
}

impl Unpacker {
    /// One that is at the beginning of a frame.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn take(algorithm: Algorithm) -> io::Result<Self> {
        let is_zlib = algorithm == Algorithm::Zlib;
        let kept = UNPACKERS.with_borrow_mut(|stock| {
            let at = stock.iter().position(|kept| matches!(kept, Self::Zlib(_)) == is_zlib)?;
            Some(stock.swap_remove(at))
        });
        match kept {
            Some(Self::Zlib(mut inflate)) => {
                inflate.reset(true);
                Ok(Self::Zlib(inflate))
            }
            Some(Self::Zstd(mut decoder)) => {
                decoder.reinit()?;
                Ok(Self::Zstd(decoder))
            }
            None if is_zlib => Ok(Self::Zlib(Decompress::new(true))),
            None => {
                let mut decoder = Decoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
                Ok(Self::Zstd(decoder))
            }
        }
    }

    /// Gives it back, wherever in a frame it is.
    pub fn give(self) {
        // At the end of a thread its stock may be gone.
        let _ = UNPACKERS.try_with(|stock| {
            let mut stock = stock.borrow_mut();
            let is_zlib = matches!(self, Self::Zlib(_));
            if stock.iter().filter(|kept| matches!(kept, Self::Zlib(_)) == is_zlib).count() < STOCK {
                stock.push(self);
            }
        });
    }

    /// Reads from `input`, writes to `output`.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn step(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<Step> {
        match self {
            Self::Zlib(inflate) => {
                let (read, written) = (inflate.total_in(), inflate.total_out());
                let status = inflate.decompress(input, output, FlushDecompress::None);
                let status = status.map_err(|_| Unreadable::Frame)?;
                Ok(Step {
                    read: (inflate.total_in() - read) as usize,
                    written: (inflate.total_out() - written) as usize,
                    ended: status == flate2::Status::StreamEnd,
                })
            }
            Self::Zstd(decoder) => {
                let status = decoder.run_on_buffers(input, output).map_err(|_| Unreadable::Frame)?;
                let (read, written) = (status.bytes_read, status.bytes_written);
                Ok(Step { read, written, ended: status.remaining == 0 })
            }
        }
    }
}
