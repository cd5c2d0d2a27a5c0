//! Packets: three bytes of length, a sequence number, a payload; and the few payloads that decide
//! something.
//!
//! Source: MySQL's internals manual, "Client/Server Protocol"; `mysql_com.h`.

/// Length and sequence number of a packet, in bytes.
pub const HEADER: usize = 4;

/// A payload of this many bytes goes on in the next packet.
pub const MAX_PAYLOAD: usize = 0xFF_FFFF;

/// First bytes of answers.
pub const OK: u8 = 0x00;
pub const MORE_DATA: u8 = 0x01;
pub const LOCAL_INFILE: u8 = 0xFB;
pub const EOF: u8 = 0xFE;
pub const ERR: u8 = 0xFF;

/// What a client or a server can do (`CLIENT_…`), with MariaDB's extended ones (`MARIADB_CLIENT_…`)
/// in the upper half, as there.
pub mod capability {
    /// MariaDB's servers do not have it, and take clients that have it for MySQL's: neither then
    /// speaks of the extended ones.
    pub const LONG_PASSWORD: u64 = 1;
    pub const FOUND_ROWS: u64 = 1 << 1;
    pub const LONG_FLAG: u64 = 1 << 2;
    pub const CONNECT_WITH_DB: u64 = 1 << 3;
    pub const NO_SCHEMA: u64 = 1 << 4;
    pub const COMPRESS: u64 = 1 << 5;
    pub const ODBC: u64 = 1 << 6;
    pub const LOCAL_FILES: u64 = 1 << 7;
    pub const IGNORE_SPACE: u64 = 1 << 8;
    pub const PROTOCOL_41: u64 = 1 << 9;
    pub const INTERACTIVE: u64 = 1 << 10;
    pub const SSL: u64 = 1 << 11;
    pub const TRANSACTIONS: u64 = 1 << 13;
    pub const SECURE_CONNECTION: u64 = 1 << 15;
    pub const MULTI_STATEMENTS: u64 = 1 << 16;
    pub const MULTI_RESULTS: u64 = 1 << 17;
    pub const PS_MULTI_RESULTS: u64 = 1 << 18;
    pub const PLUGIN_AUTH: u64 = 1 << 19;
    pub const CONNECT_ATTRS: u64 = 1 << 20;
    pub const PLUGIN_AUTH_LENENC: u64 = 1 << 21;
    pub const SESSION_TRACK: u64 = 1 << 23;
    pub const DEPRECATE_EOF: u64 = 1 << 24;
    pub const ZSTD_COMPRESSION: u64 = 1 << 26;
    pub const QUERY_ATTRIBUTES: u64 = 1 << 27;
    /// Reports of how far a long statement is, ahead of its answer.
    pub const PROGRESS: u64 = 1 << 32;
    /// COM_STMT_BULK_EXECUTE, and executions of the statement prepared last.
    pub const STMT_BULK_OPERATIONS: u64 = 1 << 34;
    /// Column definitions say more of types.
    pub const EXTENDED_METADATA: u64 = 1 << 35;

    /// The extended ones that belong to the lower half, as told in the filler of greetings and logins.
    pub fn with_extended(low: u32, filler: Option<&[u8; 4]>) -> u64 {
        let low = u64::from(low);
        match filler {
            Some(filler) if low & LONG_PASSWORD == 0 => low | u64::from(u32::from_le_bytes(*filler)) << 32,
            _ => low,
        }
    }

    /// What the filler of a greeting or a login has to tell of them.
    pub fn extended(capabilities: u64) -> [u8; 4] {
        if capabilities & LONG_PASSWORD == 0 { ((capabilities >> 32) as u32).to_le_bytes() } else { [0; 4] }
    }
}

/// Status flags of OK and EOF packets (`SERVER_…`).
pub mod status {
    pub const IN_TRANSACTION: u16 = 1;
    pub const AUTOCOMMIT: u16 = 1 << 1;
    pub const MORE_RESULTS: u16 = 1 << 3;
    pub const CURSOR_EXISTS: u16 = 1 << 6;
    pub const LAST_ROW_SENT: u16 = 1 << 7;
    /// A backslash in a string is one: clients escape quotes by doubling them.
    pub const NO_BACKSLASH_ESCAPES: u16 = 1 << 9;
    pub const IN_READ_ONLY_TRANSACTION: u16 = 1 << 13;
    pub const SESSION_STATE_CHANGED: u16 = 1 << 14;
    /// MariaDB's alone: `"` begins a name.
    pub const ANSI_QUOTES: u16 = 1 << 15;
    /// How clients have to write strings.
    pub const LEXING: u16 = NO_BACKSLASH_ESCAPES | ANSI_QUOTES;
}

/// What stands at the front of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of the payload.
    pub length: usize,
    pub sequence: u8,
}

impl Header {
    /// Bytes of the packet, header included.
    pub const fn total(self) -> usize {
        HEADER + self.length
    }
}

/// Reads a header, if it has arrived.
#[inline]
pub fn header(data: &[u8]) -> Option<Header> {
    let bytes: &[u8; HEADER] = data.first_chunk()?;
    let length = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]) as usize;
    Some(Header { length, sequence: bytes[3] })
}

/// How many packets a command of so many bytes consists of, headers included: the number of its answer.
pub fn count(length: usize) -> u8 {
    // Numbers wrap around.
    (length / (MAX_PAYLOAD + HEADER) + 1) as u8
}

/// The payload of the first packet of `data`, if all of it is there.
pub fn payload(data: &[u8]) -> Option<(Header, &[u8])> {
    let header = header(data)?;
    Some((header, data.get(HEADER..header.total())?))
}

/// Appends a packet. Payloads of ours are far shorter than [`MAX_PAYLOAD`].
pub fn put(out: &mut Vec<u8>, sequence: u8, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, sequence]);
    payload(out);
    let length = out.len() - start - HEADER;
    debug_assert!(length < MAX_PAYLOAD);
    out[start..start + 3].copy_from_slice(&(length as u32).to_le_bytes()[..3]);
}

/// Appends a command of one byte and its argument, in as many packets as it takes.
pub fn put_command(out: &mut Vec<u8>, code: u8, argument: &[u8]) {
    let mut rest = argument;
    let mut sequence = 0_u8;
    let mut lead = 1;
    loop {
        let part = rest.len().min(MAX_PAYLOAD - lead);
        let length = part + lead;
        out.extend_from_slice(&(length as u32).to_le_bytes()[..3]);
        out.push(sequence);
        if lead == 1 {
            out.push(code);
        }
        out.extend_from_slice(&rest[..part]);
        rest = &rest[part..];
        if length < MAX_PAYLOAD {
            return;
        }
        sequence = sequence.wrapping_add(1);
        lead = 0;
    }
}

/// Reads a length-encoded number. `None`: cut short, or the marker of NULL or an error.
pub fn lenenc(data: &[u8]) -> Option<(u64, &[u8])> {
    let (&first, rest) = data.split_first()?;
    let width = match first {
        0..=0xFA => return Some((u64::from(first), rest)),
        0xFC => 2,
        0xFD => 3,
        0xFE => 8,
        _ => return None,
    };
    let (bytes, rest) = rest.split_at_checked(width)?;
    let mut wide = [0; 8];
    wide[..width].copy_from_slice(bytes);
    Some((u64::from_le_bytes(wide), rest))
}

pub fn lenenc_bytes(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = lenenc(data)?;
    rest.split_at_checked(usize::try_from(length).ok()?)
}

pub fn put_lenenc(out: &mut Vec<u8>, number: u64) {
    let bytes = number.to_le_bytes();
    match number {
        0..=0xFA => out.push(bytes[0]),
        0xFB..=0xFFFF => {
            out.push(0xFC);
            out.extend_from_slice(&bytes[..2]);
        }
        0x1_0000..=0xFF_FFFF => {
            out.push(0xFD);
            out.extend_from_slice(&bytes[..3]);
        }
        _ => {
            out.push(0xFE);
            out.extend_from_slice(&bytes);
        }
    }
}

pub fn put_lenenc_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_lenenc(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Splits at the first NUL, which belongs to neither part.
pub fn split_nul(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(0, data)?;
    Some((&data[..at], &data[at + 1..]))
}

pub fn u16_le(data: &[u8]) -> Option<(u16, &[u8])> {
    let (bytes, rest) = data.split_first_chunk::<2>()?;
    Some((u16::from_le_bytes(*bytes), rest))
}

pub fn u32_le(data: &[u8]) -> Option<(u32, &[u8])> {
    let (bytes, rest) = data.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*bytes), rest))
}

/// An OK packet, or the one that ends a result set in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OkPacket<'a> {
    pub insert_id: u64,
    pub status: u16,
    pub warnings: u16,
    /// Where the status flags are in the payload.
    pub status_at: usize,
    /// Length of the payload up to the session's state changes.
    pub plain_length: usize,
    /// What changed in the session; empty without `SESSION_STATE_CHANGED`.
    pub changes: &'a [u8],
}

impl<'a> OkPacket<'a> {
    /// Reads the payload of a connection with `SESSION_TRACK`.
    pub fn read(payload: &'a [u8]) -> Option<Self> {
        let (_, rest) = lenenc(payload.get(1..)?)?;
        let (insert_id, rest) = lenenc(rest)?;
        let status_at = payload.len() - rest.len();
        let (status, rest) = u16_le(rest)?;
        let (warnings, rest) = u16_le(rest)?;
        if status & status::SESSION_STATE_CHANGED == 0 {
            let plain_length = payload.len();
            return Some(Self { insert_id, status, warnings, status_at, plain_length, changes: &[] });
        }
        let (info, rest) = lenenc_bytes(rest)?;
        // A text without length would be taken for one: a lone zero is left out, too.
        let behind = payload.len() - rest.len();
        let plain_length = if info.is_empty() { behind - 1 } else { behind };
        let (changes, _) = lenenc_bytes(rest)?;
        Some(Self { insert_id, status, warnings, status_at, plain_length, changes })
    }
}

/// The status flags of an EOF packet.
pub fn eof_status(payload: &[u8]) -> Option<u16> {
    Some(u16_le(payload.get(3..)?)?.0)
}

/// One change of session state (`enum_session_state_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    Variable {
        name: &'a [u8],
        value: &'a [u8],
    },
    Schema(&'a [u8]),
    /// Something of the session's state changed that has no type of its own.
    State,
    Gtids(&'a [u8]),
    Other,
}

/// The changes that an OK packet tells of; ends at what makes no sense.
pub fn changes(mut data: &[u8]) -> impl Iterator<Item = Change<'_>> {
    let mut variables: &[u8] = &[];
    std::iter::from_fn(move || {
        // One block of variables may hold several.
        if let Some((name, rest)) = lenenc_bytes(variables)
            && let Some((value, rest)) = lenenc_bytes(rest)
        {
            variables = rest;
            return Some(Change::Variable { name, value });
        }
        let (&kind, rest) = data.split_first()?;
        let (body, rest) = lenenc_bytes(rest)?;
        data = rest;
        Some(match kind {
            0 => {
                let (name, rest) = lenenc_bytes(body)?;
                let (value, rest) = lenenc_bytes(rest)?;
                variables = rest;
                Change::Variable { name, value }
            }
            1 => Change::Schema(lenenc_bytes(body)?.0),
            2 => Change::State,
            3 => Change::Gtids(lenenc_bytes(body.get(1..)?)?.0),
            _ => Change::Other,
        })
    })
}

/// An error packet's payload, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrPacket<'a> {
    pub errno: u16,
    pub sqlstate: [u8; 5],
    pub message: &'a [u8],
}

impl<'a> ErrPacket<'a> {
    pub fn read(payload: &'a [u8]) -> Option<Self> {
        let (errno, rest) = u16_le(payload.get(1..)?)?;
        // Before the handshake is over there is no SQLSTATE.
        match rest.split_first() {
            Some((b'#', rest)) => {
                let (sqlstate, message) = rest.split_first_chunk::<5>()?;
                Some(Self { errno, sqlstate: *sqlstate, message })
            }
            _ => Some(Self { errno, sqlstate: *b"HY000", message: rest }),
        }
    }
}

/// Whether an error packet is none, but tells how far a statement is.
pub fn is_progress(payload: &[u8]) -> bool {
    payload.starts_with(&[ERR, 0xFF, 0xFF])
}

/// Appends an error packet.
pub fn put_err(out: &mut Vec<u8>, sequence: u8, errno: u16, sqlstate: &str, message: &[u8]) {
    put(out, sequence, |out| {
        out.push(ERR);
        out.extend_from_slice(&errno.to_le_bytes());
        out.push(b'#');
        out.extend_from_slice(sqlstate.as_bytes());
        out.extend_from_slice(message);
    });
}

/// Appends an OK packet without affected rows.
pub fn put_ok(out: &mut Vec<u8>, sequence: u8, status: u16) {
    put(out, sequence, |out| {
        out.extend_from_slice(&[OK, 0, 0]);
        out.extend_from_slice(&status.to_le_bytes());
        out.extend_from_slice(&[0, 0]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_being_written_and_read() {
        for number in [0, 1, 0xFA, 0xFB, 0xFF, 0xFFFF, 0x1_0000, 0xFF_FFFF, 0x100_0000, u64::MAX] {
            let mut out = Vec::new();
            put_lenenc(&mut out, number);
            assert_eq!(lenenc(&out), Some((number, &[][..])));
            assert_eq!(lenenc(&out[..out.len() - 1]), None);
        }
        assert_eq!(lenenc(&[0xFB]), None);
        assert_eq!(lenenc(&[0xFF, 1, 2]), None);
        assert_eq!(lenenc_bytes(&[0xFE, 255, 255, 255, 255, 255, 255, 255, 255, 1]), None);
    }

    #[test]
    fn full_packets_have_another_one_behind_them() {
        const FULL: usize = HEADER + MAX_PAYLOAD;
        for (length, packets) in
            [(HEADER + 1, 1), (FULL - 1, 1), (FULL + HEADER, 2), (3 * FULL + HEADER + 1, 4)]
        {
            assert_eq!(count(length), packets, "{length}");
        }
    }

    #[test]
    fn only_mariadb_and_its_clients_speak_of_extended_capabilities() {
        let all = capability::PROGRESS | capability::STMT_BULK_OPERATIONS | capability::PROTOCOL_41;
        let filler = capability::extended(all);
        assert_eq!(filler, [5, 0, 0, 0]);
        assert_eq!(capability::with_extended(all as u32, Some(&filler)), all);
        assert_eq!(capability::with_extended(all as u32, None), capability::PROTOCOL_41);
        let mysql = all | capability::LONG_PASSWORD;
        assert_eq!(capability::extended(mysql), [0; 4]);
        assert_eq!(capability::with_extended(mysql as u32, Some(&filler)) >> 32, 0);
    }

    #[test]
    fn a_command_of_sixteen_megabytes_takes_two_packets() {
        let mut out = Vec::new();
        put_command(&mut out, 3, &vec![b'x'; MAX_PAYLOAD - 1]);
        let first = header(&out).expect("it is there");
        assert_eq!((first.length, first.sequence), (MAX_PAYLOAD, 0));
        let second = header(&out[first.total()..]).expect("an empty one follows");
        assert_eq!((second.length, second.sequence), (0, 1));
        assert_eq!(out.len(), first.total() + second.total());
    }

    #[test]
    fn an_ok_packet_is_cut_where_the_changes_begin() {
        let mut payload = vec![OK, 1, 5];
        payload.extend_from_slice(&(status::AUTOCOMMIT | status::SESSION_STATE_CHANGED).to_le_bytes());
        payload.extend_from_slice(&[0, 0, 0]);
        let plain = payload.len();
        let changes_block = [1, 3, 2, b'd', b'b', 0, 6, 1, b'a', 3, b'1', b'2', b'3'];
        put_lenenc_bytes(&mut payload, &changes_block);

        let ok = OkPacket::read(&payload).expect("it is well-formed");
        assert_eq!((ok.insert_id, ok.plain_length), (5, plain - 1));
        let found: Vec<_> = changes(ok.changes).collect();
        assert_eq!(found, [Change::Schema(b"db"), Change::Variable { name: b"a", value: b"123" }]);
        for length in 0..payload.len() {
            // Whatever is cut off, nothing panics.
            let _ = OkPacket::read(&payload[..length]).map(|ok| changes(ok.changes).count());
        }
    }
}
