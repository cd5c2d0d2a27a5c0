//! Cuts what a client has sent into commands.

use super::{
    packet::{self, HEADER, MAX_PAYLOAD},
    prepared::{self, Statement},
};
use crate::refusal::{Refusal, RefusalKind};
use std::sync::Arc;

/// Bytes of one command that are gathered before it is passed on in pieces. What is no longer can be
/// repeated on another node.
pub const GATHERED: usize = 64 * 1024;

/// Longest COM_QUERY that is gathered, in bytes: an INSERT of a thousand rows, or a list of ten thousand ids,
/// has to be read to its end to be told from what leaves something in its connection.
pub const LONGEST_QUERY: usize = 1024 * 1024;

/// Longest statement to be prepared, in bytes: it is kept, to be prepared again elsewhere.
pub const LONGEST_PREPARE: usize = 16 * 1024 * 1024;

/// Commands (`enum_server_command`).
pub mod code {
    pub const QUIT: u8 = 0x01;
    pub const INIT_DB: u8 = 0x02;
    pub const QUERY: u8 = 0x03;
    pub const FIELD_LIST: u8 = 0x04;
    pub const REFRESH: u8 = 0x07;
    pub const STATISTICS: u8 = 0x09;
    pub const PROCESS_INFO: u8 = 0x0A;
    pub const PROCESS_KILL: u8 = 0x0C;
    pub const DEBUG: u8 = 0x0D;
    pub const PING: u8 = 0x0E;
    pub const CHANGE_USER: u8 = 0x11;
    pub const BINLOG_DUMP: u8 = 0x12;
    pub const TABLE_DUMP: u8 = 0x13;
    pub const REGISTER_SLAVE: u8 = 0x15;
    pub const STMT_PREPARE: u8 = 0x16;
    pub const STMT_EXECUTE: u8 = 0x17;
    pub const STMT_SEND_LONG_DATA: u8 = 0x18;
    pub const STMT_CLOSE: u8 = 0x19;
    pub const STMT_RESET: u8 = 0x1A;
    pub const SET_OPTION: u8 = 0x1B;
    pub const STMT_FETCH: u8 = 0x1C;
    pub const BINLOG_DUMP_GTID: u8 = 0x1E;
    pub const RESET_CONNECTION: u8 = 0x1F;
    /// MariaDB's.
    pub const STMT_BULK_EXECUTE: u8 = 0xFA;
}

/// One request as it lies at the front of the frontend's inbox.
#[derive(Debug)]
pub struct Command {
    pub code: u8,
    /// Bytes of it in the inbox, headers included.
    pub length: usize,
    /// Where in it the text of a statement begins.
    pub text_at: usize,
    /// What has not arrived of a command that is too long to be gathered.
    pub tail: Option<Tail>,
    /// The text, when it is one statement with an effect on the session.
    pub text: Option<Box<str>>,
    /// The text that servers get, where it is another than the client's.
    pub rewritten: Option<Box<[u8]>>,
    /// COM_STMT_…: the client's id, and the statement behind it.
    pub statement: Option<(u32, Arc<Statement>)>,
}

impl Command {
    /// Whether the text that servers get can take the client's place: of what follows it the lengths
    /// of packets are told already, but for the first one's.
    pub(super) fn is_rewritable(&self) -> bool {
        match (&self.rewritten, self.tail) {
            (Some(text), Some(tail)) => !tail.continues && 1 + text.len() + tail.rest < MAX_PAYLOAD,
            _ => true,
        }
    }
}

/// The rest of a command that is passed on in pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Bytes of the packet that has begun.
    pub rest: usize,
    /// Another packet follows it.
    pub continues: bool,
    /// Its sequence number.
    pub next: u8,
}

/// What stands at the front of the inbox.
#[derive(Debug, PartialEq, Eq)]
pub enum Cut {
    /// More bytes are needed.
    Short,
    Command {
        code: u8,
        length: usize,
        tail: Option<Tail>,
    },
}

/// Finds the first command of `data`.
///
/// # Errors
/// What no server would accept.
pub fn cut(data: &[u8]) -> Result<Cut, Refusal> {
    let Some(first) = packet::header(data) else { return Ok(Cut::Short) };
    if first.sequence != 0 {
        return Err(Refusal::fatal(RefusalKind::Protocol, "Got packets out of order"));
    }
    if first.length == 0 {
        return Err(Refusal::fatal(RefusalKind::Protocol, "Malformed communication packet"));
    }
    let Some(&code) = data.get(HEADER) else { return Ok(Cut::Short) };
    let limit = match code {
        code::STMT_PREPARE => LONGEST_PREPARE,
        // Some drivers send a value whole, however long it is.
        code::STMT_SEND_LONG_DATA => prepared::MAX_LONG_DATA,
        code::QUERY => LONGEST_QUERY,
        _ => GATHERED,
    };
    let (mut at, mut next) = (0, 0_u8);
    while let Some(header) = packet::header(&data[at..]) {
        let end = at + header.total();
        let continues = header.length == MAX_PAYLOAD;
        next = next.wrapping_add(1);
        if end > data.len() {
            let tail = Tail { rest: end - data.len(), continues, next };
            return too_long(code, data.len(), limit, tail);
        }
        at = end;
        if !continues {
            return Ok(Cut::Command { code, length: at, tail: None });
        }
    }
    too_long(code, at, limit, Tail { rest: 0, continues: true, next })
}

fn too_long(code: u8, length: usize, limit: usize, tail: Tail) -> Result<Cut, Refusal> {
    if length < limit {
        return Ok(Cut::Short);
    }
    if matches!(code, code::QUERY | code::STMT_EXECUTE | code::STMT_BULK_EXECUTE) {
        return Ok(Cut::Command { code, length, tail: Some(tail) });
    }
    Err(Refusal::fatal(RefusalKind::Protocol, "Got a packet bigger than the proxy takes for this command"))
}

/// Numbers the packets of a command as servers want them. Clients that compress may not have: the
/// numbers that count are then those of the frames.
pub fn number(mut data: &mut [u8]) {
    let mut sequence = 0_u8;
    while let Some(header) = packet::header(data) {
        data[HEADER - 1] = sequence;
        sequence = sequence.wrapping_add(1);
        let end = header.total().min(data.len());
        data = &mut data[end..];
    }
}

/// The argument of a gathered command: its payload without the first byte. Only a command of more
/// than one packet has to be copied together.
pub fn argument(data: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    let first = packet::header(data).map_or(0, |header| header.length);
    if first < MAX_PAYLOAD {
        let end = (HEADER + first).min(data.len());
        return data.get(HEADER + 1..end).unwrap_or_default().into();
    }
    let mut joined = Vec::with_capacity(data.len());
    let mut rest = data;
    while let Some(header) = packet::header(rest) {
        let end = header.total().min(rest.len());
        joined.extend_from_slice(&rest[HEADER..end]);
        rest = &rest[end..];
    }
    joined.drain(..1);
    joined.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(code: u8, argument: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        packet::put_command(&mut out, code, argument);
        out
    }

    #[test]
    fn a_command_is_cut_when_all_of_it_has_arrived() {
        let data = command(code::QUERY, b"SELECT 1");
        for length in 0..data.len() {
            assert_eq!(cut(&data[..length]), Ok(Cut::Short), "{length}");
        }
        let mut two = data.clone();
        two.extend_from_slice(&command(code::PING, b""));
        assert_eq!(cut(&two), Ok(Cut::Command { code: code::QUERY, length: data.len(), tail: None }));
        assert_eq!(&*argument(&data), b"SELECT 1");
    }

    #[test]
    fn a_long_statement_is_passed_on_in_pieces_and_one_to_be_prepared_is_not() {
        for (code, limit) in [(code::QUERY, LONGEST_QUERY), (code::STMT_EXECUTE, GATHERED)] {
            let long = command(code, &vec![b'x'; limit * 2]);
            let tail = Tail { rest: long.len() - limit, continues: false, next: 1 };
            assert_eq!(cut(&long[..limit - 1]), Ok(Cut::Short));
            assert_eq!(cut(&long[..limit]), Ok(Cut::Command { code, length: limit, tail: Some(tail) }));
        }
        let prepare = command(code::STMT_PREPARE, &vec![b'x'; GATHERED * 2]);
        assert_eq!(cut(&prepare[..GATHERED]), Ok(Cut::Short));
        let longest = command(code::STMT_PREPARE, &vec![b'x'; LONGEST_PREPARE + 1]);
        assert!(cut(&longest[..LONGEST_PREPARE]).is_err());
    }

    #[test]
    fn what_no_server_would_take_is_refused() {
        assert!(cut(&[0, 0, 0, 0]).is_err());
        assert!(cut(&[1, 0, 0, 1, 3]).is_err());
    }

    #[test]
    fn packets_of_a_command_are_numbered_whatever_their_client_has_written() {
        let wanted = command(code::STMT_SEND_LONG_DATA, &vec![b'x'; MAX_PAYLOAD + 7]);
        let mut data = wanted.clone();
        (data[3], data[HEADER + MAX_PAYLOAD + 3]) = (7, 0);
        number(&mut data);
        assert!(data == wanted);
        number(&mut data[..MAX_PAYLOAD]);
        number(&mut data[..2]);
        assert!(data == wanted);
    }

    #[test]
    fn a_statement_of_two_packets_is_put_together() {
        let text = vec![b'x'; MAX_PAYLOAD + 7];
        let data = command(code::STMT_SEND_LONG_DATA, &text);
        assert_eq!(argument(&data).len(), text.len());
    }
}
