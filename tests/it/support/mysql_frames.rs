//! The packets of an answer as they are: for comparing the proxy's with a server's.

use pointsman::mysql::{
    command::code,
    packet::{self, HEADER, capability as can, lenenc, status},
};
use tokio::io::AsyncReadExt;

use super::{
    mysql::{Refused, Session},
    soon,
};

/// One packet, with its sequence number in front.
pub type Frame = Vec<u8>;

impl Session {
    /// Sends a command and returns every packet of its answer. After a [`Refused`] the connection
    /// is gone.
    pub async fn exchange(&mut self, code: u8, argument: &[u8]) -> Result<Vec<Frame>, Refused> {
        self.send(code, argument).await;
        let what = format!("{code:#04x} {}", String::from_utf8_lossy(&argument[..argument.len().min(80)]));
        let cursor = code == code::STMT_EXECUTE && argument.get(4).is_some_and(|kind| *kind != 0);
        soon(&what, self.frames_of(code, cursor)).await
    }

    /// Every packet of the answer to a command of this kind; `cursor`: it asks for one.
    async fn frames_of(&mut self, code: u8, cursor: bool) -> Result<Vec<Frame>, Refused> {
        let mut frames = Vec::new();
        match code {
            code::STMT_CLOSE | code::STMT_SEND_LONG_DATA | code::QUIT => {}
            code::STATISTICS => frames.push(self.frame().await?),
            code::STMT_PREPARE => self.prepared(&mut frames).await?,
            code::FIELD_LIST | code::STMT_FETCH => drop(self.rows(&mut frames).await?),
            _ => self.results(&mut frames, cursor).await?,
        }
        Ok(frames)
    }

    /// One packet of the protocol, which may be a part of 16 MB.
    pub async fn frame(&mut self) -> Result<Frame, Refused> {
        let broken = |error: std::io::Error| Refused {
            errno: 2013,
            sqlstate: String::new(),
            message: error.to_string(),
        };
        let mut header = [0; HEADER];
        self.stream.read_exact(&mut header).await.map_err(broken)?;
        let header = packet::header(&header).expect("four bytes");
        let mut frame = vec![header.sequence; header.length + 1];
        self.stream.read_exact(&mut frame[1..]).await.map_err(broken)?;
        Ok(frame)
    }

    async fn prepared(&mut self, frames: &mut Vec<Frame>) -> Result<(), Refused> {
        let first = self.frame().await?;
        let is_error = first[1] == packet::ERR;
        let count = |at: usize| usize::from(u16::from_le_bytes([first[at], first[at + 1]]));
        let counts = if is_error { [0, 0] } else { [count(8), count(6)] };
        frames.push(first);
        for count in counts.into_iter().filter(|count| *count > 0) {
            for _ in 0..count + usize::from(self.capabilities & can::DEPRECATE_EOF == 0) {
                frames.push(self.frame().await?);
            }
        }
        Ok(())
    }

    async fn results(&mut self, frames: &mut Vec<Frame>, cursor: bool) -> Result<(), Refused> {
        loop {
            let first = self.frame().await?;
            let flags = match first[1] {
                packet::ERR | packet::LOCAL_INFILE => None,
                packet::OK | packet::EOF => flags_of(&first[1..]),
                _ => {
                    let (columns, _) = lenenc(&first[1..]).expect("a number of columns");
                    frames.push(first);
                    for _ in 0..columns {
                        frames.push(self.frame().await?);
                    }
                    if let Some(flags) = self.columns_end(frames).await?.filter(|_| cursor) {
                        if flags & status::MORE_RESULTS == 0 {
                            return Ok(());
                        }
                        continue;
                    }
                    match self.rows(frames).await? {
                        Some(flags) if flags & status::MORE_RESULTS != 0 => continue,
                        _ => return Ok(()),
                    }
                }
            };
            frames.push(first);
            if flags.is_none_or(|flags| flags & status::MORE_RESULTS == 0) {
                return Ok(());
            }
        }
    }

    /// The EOF packet behind columns, where there is one. `Some`: a cursor of the client's has the rows.
    async fn columns_end(&mut self, frames: &mut Vec<Frame>) -> Result<Option<u16>, Refused> {
        if self.capabilities & can::DEPRECATE_EOF != 0 {
            return Ok(None);
        }
        let end = self.frame().await?;
        let flags = packet::eof_status(&end[1..]).expect("it is an EOF");
        frames.push(end);
        Ok((flags & status::CURSOR_EXISTS != 0).then_some(flags))
    }

    /// Rows and what ends them: its status flags, none for an error.
    async fn rows(&mut self, frames: &mut Vec<Frame>) -> Result<Option<u16>, Refused> {
        let mut continued = false;
        loop {
            let frame = self.frame().await?;
            let length = frame.len() - 1;
            let longest = if self.capabilities & can::DEPRECATE_EOF != 0 { packet::MAX_PAYLOAD } else { 9 };
            let ends = !continued && length > 0 && frame[1] == packet::EOF && length < longest;
            let fails = !continued && length > 0 && frame[1] == packet::ERR;
            continued = length == packet::MAX_PAYLOAD;
            frames.push(frame);
            let last = &frames.last().expect("it was pushed")[..];
            if fails {
                return Ok(None);
            }
            if ends {
                return Ok(flags_of(&last[1..]));
            }
        }
    }
}

fn flags_of(payload: &[u8]) -> Option<u16> {
    if payload[0] == packet::EOF && payload.len() < 7 {
        return packet::eof_status(payload);
    }
    Some(packet::OkPacket::read(payload).expect("it is an OK").status)
}
