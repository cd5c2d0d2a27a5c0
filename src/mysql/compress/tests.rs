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
    let text = "SELECT 'a text that is long enough to be compressed, twice: long enough to be compressed'";
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
                assert_eq!(Unreadable::of(&error), Some(Unreadable::Frame), "{algorithm:?} {what}: {error}");
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
        stream.read_exact(&mut read).now_or_never().expect("the bytes are at hand").expect("they make sense");
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
