//! Looks at what the server answers: headers, and the few small packets that decide something.

use std::{io, sync::Arc};

use super::{Phase, Relay, Scan, read_only::OPTION_PREVENTS};
use crate::{
    mysql::{
        command::{Command, code},
        encode,
        packet::{
            self, Change, ErrPacket, HEADER, MAX_PAYLOAD, OkPacket, capability as can, lenenc, status,
            u16_le, u32_le,
        },
        prepared::Statement,
        refusal::{self, ErrorClass},
    },
    protocol::{Fault, MayRefuse, Refused, RefusedCause, Request, Transaction},
    sql::{Effect, Reason},
    topology::Position,
};

/// A packet that decides something is looked at whole; no server makes a longer one of these.
const LOOKED_AT: usize = 1024 * 1024;

/// What servers tell as changed although nobody set it: MariaDB of writes, MySQL of every statement.
const COUNTED: [&[u8]; 2] = [b"last_gtid", b"statement_id"];

/// ER_SERVER_SHUTDOWN.
const SERVER_SHUTDOWN: u16 = 1053;

impl Relay<'_> {
    /// Looks at everything received so far.
    pub(super) fn scan(&mut self, request: &Request<Command>) -> Result<Scan, Fault> {
        loop {
            if !self.passage.pass_rest(&self.backend.inbox) {
                return Ok(Scan::More);
            }
            if self.phase == Phase::Done && !self.continued {
                return Ok(Scan::Done);
            }
            self.pass_rows();
            let data = self.passage.unseen(&self.backend.inbox);
            let Some(header) = packet::header(data) else { return Ok(Scan::More) };
            if self.continued {
                self.continued = header.length == MAX_PAYLOAD;
                self.pass(header);
                continue;
            }
            let Some(&first) = data.get(HEADER) else {
                if header.length == 0 {
                    return Err(
                        self.server_lost(io::Error::new(io::ErrorKind::InvalidData, "an empty packet"))
                    );
                }
                return Ok(Scan::More);
            };
            if self.looks_at(first, header.length) && header.total() > data.len() {
                if header.length > LOOKED_AT {
                    return Err(self.server_lost(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "impossible packet length",
                    )));
                }
                return Ok(Scan::More);
            }
            if self.message(first, header, request)? {
                return Ok(Scan::LocalInfile);
            }
        }
    }

    /// Passes whole rows: by far the most packets of a large answer, and nothing to do for any of them.
    fn pass_rows(&mut self) {
        if self.phase != Phase::Rows || self.continued {
            return;
        }
        let data = self.passage.unseen(&self.backend.inbox);
        let (mut left, mut number) = (data, 0);
        while let Some(&[.., first]) = left.first_chunk::<{ HEADER + 1 }>()
            && let Some(header) = packet::header(left)
            && !matches!(first, packet::ERR | packet::EOF)
            && (1..MAX_PAYLOAD).contains(&header.length)
            && let Some(behind) = left.get(header.total()..)
        {
            number = header.sequence;
            left = behind;
        }
        let passed = data.len() - left.len();
        if passed > 0 {
            self.decided = true;
            self.passed = number;
            self.passage.pass(&self.backend.inbox, passed, true);
        }
    }

    /// Whether a packet decides something, and has to be there whole.
    fn looks_at(&self, first: u8, length: usize) -> bool {
        match self.phase {
            Phase::First | Phase::Prepared | Phase::ColumnsEnd => true,
            Phase::Columns { .. } | Phase::Definitions { .. } | Phase::Text => first == packet::ERR,
            Phase::Rows => first == packet::ERR || self.ends_rows(first, length),
            Phase::Done => false,
        }
    }

    /// A row may begin with the same byte only if it holds 16 MB.
    fn ends_rows(&self, first: u8, length: usize) -> bool {
        let longest = if self.backend.deprecates_eof() { MAX_PAYLOAD } else { 9 };
        first == packet::EOF && length < longest
    }

    /// Passes a packet whose end may not have arrived.
    fn pass(&mut self, header: packet::Header) {
        self.passed = header.sequence;
        self.passage.pass_message(&self.backend.inbox, header.total(), true);
    }

    /// Puts a packet of ours in the place of the one at hand.
    fn replace(&mut self, header: packet::Header, packet: &[u8]) {
        self.passed = header.sequence;
        self.passage.put(&self.backend.inbox, packet);
        self.passage.pass(&self.backend.inbox, header.total(), false);
    }

    fn packet(&self, header: packet::Header) -> &[u8] {
        &self.passage.unseen(&self.backend.inbox)[..header.total()]
    }

    fn payload(&self, header: packet::Header) -> &[u8] {
        &self.packet(header)[HEADER..]
    }

    /// Acts on one packet. `true`: the server waits for a file.
    fn message(
        &mut self,
        first: u8,
        header: packet::Header,
        request: &Request<Command>,
    ) -> Result<bool, Fault> {
        if first == packet::ERR && self.phase != Phase::Done {
            if self.backend.capabilities & can::PROGRESS != 0 && packet::is_progress(self.payload(header)) {
                self.decided = true;
                self.pass(header);
            } else {
                self.error(header);
            }
            return Ok(false);
        }
        match self.phase {
            Phase::First if first == packet::LOCAL_INFILE => {
                self.decided = true;
                self.asked = header.sequence;
                self.pass(header);
                return Ok(true);
            }
            Phase::First if first == packet::OK || (first == packet::EOF && header.length < 9) => {
                self.end_of_result(first, header, request)?;
            }
            Phase::First => {
                let columns =
                    lenenc(self.payload(header)).map(|(columns, _)| columns).filter(|columns| *columns > 0);
                let Some(left) = columns else { return Err(self.nonsense()) };
                if request.intent.reason == Reason::Dml {
                    // INSERT … RETURNING tells no id beside its rows.
                    self.backend.insert_id.is_of(self.terms.session);
                    self.told_id = true;
                }
                self.backend.found_by = Some(self.terms.session);
                self.phase = Phase::Columns { left };
                self.pass(header);
            }
            Phase::Columns { left } => {
                self.phase = match left {
                    1 if self.backend.deprecates_eof() => Phase::Rows,
                    1 => Phase::ColumnsEnd,
                    _ => Phase::Columns { left: left - 1 },
                };
                self.pass_row(header);
            }
            Phase::ColumnsEnd => {
                let Some(flags) = packet::eof_status(self.payload(header)) else {
                    return Err(self.nonsense());
                };
                if flags & status::CURSOR_EXISTS != 0 && self.asks_for_cursor(request) {
                    self.end_of_result(first, header, request)?;
                } else {
                    self.phase = Phase::Rows;
                    self.pass_end(header, flags);
                }
            }
            Phase::Rows if self.ends_rows(first, header.length) => {
                self.end_of_result(first, header, request)?
            }
            Phase::Rows => {
                self.decided = true;
                self.pass_row(header);
            }
            Phase::Prepared => self.prepared(header, request)?,
            Phase::Definitions { left } => {
                self.phase = if left == 1 { Phase::Done } else { Phase::Definitions { left: left - 1 } };
                self.pass_row(header);
            }
            Phase::Text => {
                self.phase = Phase::Done;
                self.pass_row(header);
            }
            Phase::Done => return Err(self.nonsense()),
        }
        Ok(false)
    }

    fn pass_row(&mut self, header: packet::Header) {
        self.continued = header.length == MAX_PAYLOAD;
        self.pass(header);
    }

    fn nonsense(&mut self) -> Fault {
        self.server_lost(io::Error::new(io::ErrorKind::InvalidData, "an answer that cannot be read"))
    }

    /// OK, or what stands at the end of rows.
    fn end_of_result(
        &mut self,
        first: u8,
        header: packet::Header,
        request: &Request<Command>,
    ) -> Result<(), Fault> {
        self.decided = true;
        let payload = self.payload(header);
        let is_ok = first == packet::OK || (self.backend.deprecates_eof() && header.length >= 7);
        let flags = if is_ok {
            let Some(ok) = OkPacket::read(payload) else { return Err(self.nonsense()) };
            let insert_id = ok.insert_id;
            let (status, warned, changes) = (ok.status, ok.warnings > 0, ok.changes.to_vec());
            let cut = (!changes.is_empty() && !self.frontend.tracks_session())
                .then(|| without_changes(payload, ok, header.sequence));
            self.note_changes(&changes, request);
            self.warned |= warned;
            if insert_id > 0 {
                self.backend.insert_id.told(self.terms.session, insert_id);
                self.told_id = true;
            }
            match cut {
                Some(packet) => self.replace(header, &packet),
                None => self.pass(header),
            }
            status
        } else {
            let Some(flags) = packet::eof_status(payload) else { return Err(self.nonsense()) };
            let warned = u16_le(&payload[1..]).is_some_and(|(warnings, _)| warnings > 0);
            self.warned |= warned;
            self.pass_end(header, flags);
            flags
        };
        self.note_cursor(flags, request);
        self.backend.status = flags;
        self.completed += 1;
        self.phase = if flags & status::MORE_RESULTS == 0 { Phase::Done } else { Phase::First };
        Ok(())
    }

    /// Passes an EOF packet, without the flag that only those know who track the session.
    fn pass_end(&mut self, header: packet::Header, flags: u16) {
        if flags & status::SESSION_STATE_CHANGED == 0 || self.frontend.tracks_session() {
            return self.pass(header);
        }
        let mut packet = self.packet(header).to_vec();
        let flags = flags & !status::SESSION_STATE_CHANGED;
        packet[HEADER + 3..HEADER + 5].copy_from_slice(&flags.to_le_bytes());
        self.replace(header, &packet);
    }

    /// Whether rows may wait for COM_STMT_FETCH. The flag alone does not tell: the server also sets it
    /// while a procedure has a cursor of its own open, and sends the rows of its results at once.
    fn asks_for_cursor(&self, request: &Request<Command>) -> bool {
        let Some((id, _)) = &request.wire.statement else { return false };
        self.frontend.statements.get(*id).is_some_and(|handle| handle.cursor)
    }

    /// Whether the statement has a cursor now; the server closes one behind its last row.
    fn note_cursor(&mut self, flags: u16, request: &Request<Command>) {
        let Some((id, _)) = request.wire.statement else { return };
        let frontend = &mut *self.frontend;
        let Some(handle) = frontend.statements.get_mut(id).filter(|handle| handle.cursor) else { return };
        handle.cursor = match request.wire.code {
            code::STMT_EXECUTE => flags & status::CURSOR_EXISTS != 0,
            code::STMT_FETCH => flags & status::LAST_ROW_SENT == 0,
            _ => return,
        };
        frontend.cursor_closed |= !handle.cursor;
    }

    /// Follows what the server says has changed in the session.
    fn note_changes(&mut self, changes: &[u8], request: &Request<Command>) {
        let (mut unnamed, mut named, mut set) = (false, false, false);
        for change in packet::changes(changes) {
            unnamed |= change == Change::State;
            named |= matches!(change, Change::Variable { .. } | Change::Schema(_) | Change::Gtids(_));
            set |= matches!(change, Change::Variable { name, .. } if !COUNTED.contains(&name));
            match change {
                Change::Gtids(text) | Change::Variable { name: b"last_gtid", value: text } => {
                    self.note_gtid(text)
                }
                Change::Schema(name) => self.schema = std::str::from_utf8(name).ok().map(Into::into),
                Change::Variable { name: b"sql_mode", value } => {
                    let value = String::from_utf8_lossy(value);
                    self.frontend.note_sql_mode(&value);
                    self.sql_mode = Some(value.into());
                }
                Change::Variable { name: b"character_set_client", value } => {
                    self.frontend.note_setting("character_set_client", &String::from_utf8_lossy(value));
                }
                _ => {}
            }
        }
        // A change that has a name of its own is marked a second time without one. One that the statement does not
        // account for is that of a function or trigger: whatever its body tells, nobody else is to have it.
        let changed = set || (unnamed && !named);
        self.backend.touched |= changed && !request.intent.effects.iter().any(may_change_session);
    }

    fn note_gtid(&mut self, text: &[u8]) {
        if let Ok(text) = std::str::from_utf8(text)
            && let Ok(position) = text.parse::<Position>()
        {
            self.wrote = Some(position);
        }
    }

    /// COM_STMT_PREPARE has succeeded: the client gets an id of ours.
    fn prepared(&mut self, header: packet::Header, request: &Request<Command>) -> Result<(), Fault> {
        self.decided = true;
        let mut packet = self.packet(header).to_vec();
        let numbers = || {
            let (id, rest) = u32_le(packet.get(HEADER + 1..)?)?;
            let (columns, rest) = u16_le(rest)?;
            let (parameters, _) = u16_le(rest)?;
            Some((id, columns, parameters))
        };
        let (Some((id, columns, parameters)), Some((_, statement))) = (numbers(), &request.wire.statement)
        else {
            return Err(self.nonsense());
        };
        let statement = Arc::new(Statement { parameters, ..Statement::clone(statement) });
        encode::entered(self.backend, statement.key, id);
        let own = self.frontend.statements.enter(statement.clone());
        self.prepared = Some(statement);
        packet[HEADER + 1..HEADER + 5].copy_from_slice(&own.to_le_bytes());
        self.replace(header, &packet);
        let ends = if self.backend.deprecates_eof() { 0 } else { 1 };
        let block = |count: u16| if count > 0 { u64::from(count) + ends } else { 0 };
        self.phase = match block(parameters) + block(columns) {
            0 => Phase::Done,
            left => Phase::Definitions { left },
        };
        Ok(())
    }

    /// An error ends the answer, whatever was to come.
    fn error(&mut self, header: packet::Header) {
        self.phase = Phase::Done;
        self.failed = true;
        let autocommit = self.backend.status & status::AUTOCOMMIT != 0;
        if !autocommit {
            // The statement may have begun a transaction; an error does not tell.
            self.backend.status |= status::IN_TRANSACTION;
        }
        self.backend.status &= !status::MORE_RESULTS;
        let payload = self.payload(header).to_vec();
        if let Some(error) = ErrPacket::read(&payload) {
            let class = refusal::classify(&error);
            let begins_none = refusal::precedes_tables(error.errno, self.backend.is_mariadb());
            self.begun_none = begins_none && self.backend.open_transaction() == Transaction::Idle;
            self.backend.closed |= class == ErrorClass::Stopping;
            let mut raw = Vec::with_capacity(header.total());
            packet::put(&mut raw, 1, |out| out.extend_from_slice(&payload));
            let refused = |cause| Refused { raw: raw.clone(), cause, code: error.sqlstate };
            let by_option = class == ErrorClass::Writes && error.errno == OPTION_PREVENTS;
            self.refused = self.refusal_cause(class, error.errno).map(refused);
            self.by_option = (by_option && self.is_told_read_only()).then(|| refused(RefusedCause::Writes));
        }
        if self.by_option.is_some() {
            self.passed = header.sequence;
            return self.passage.pass(&self.backend.inbox, header.total(), false);
        }
        let number = self.frontend.sequence;
        if self.passed == 0 && header.sequence != number {
            // Of a long value that went ahead, or before all was read: the client has sent more, or less, than the
            // server has counted.
            let mut packet = Vec::with_capacity(header.total());
            packet::put(&mut packet, number, |out| out.extend_from_slice(&payload));
            self.replace(header, &packet);
            self.passed = number;
            return;
        }
        self.pass(header);
    }

    /// Whether, and why, this error is kept from the client for another attempt.
    fn refusal_cause(&self, class: ErrorClass, errno: u16) -> Option<RefusedCause> {
        let may = match self.terms.may_refuse {
            MayRefuse::Any => true,
            // Two errors show that a write has had no effect: that of a server which was made read-only, and that
            // of a MySQL which stops. It is said only where no OK stands (`THD::send_kill_message`), and that
            // stands before anything is committed. MariaDB closes the connection without a word.
            MayRefuse::Stopping => {
                class == ErrorClass::Writes || (errno == SERVER_SHUTDOWN && !self.backend.is_mariadb())
            }
            MayRefuse::Replan | MayRefuse::No => false,
        };
        if self.passage.has_begun() || self.decided || !may {
            return None;
        }
        match class {
            ErrorClass::Stopping => Some(RefusedCause::Stopping),
            ErrorClass::Writes => Some(RefusedCause::Writes),
            ErrorClass::Standby => Some(RefusedCause::Standby),
            ErrorClass::MaybeStale => Some(RefusedCause::MaybeStale),
            ErrorClass::Final => None,
        }
    }
}

/// Whether changes of the session are what such a statement is for.
fn may_change_session(effect: &Effect) -> bool {
    let for_rows = matches!(effect, Effect::DrawsSequence | Effect::Calls | Effect::Ddl | Effect::Redefines);
    let asks = matches!(effect, Effect::NeedsPrevious | Effect::NeedsLast(_) | Effect::AsksConnectionId);
    !for_rows && !asks
}

/// The packet for a client that has not asked for session tracking (hard case 23).
fn without_changes(payload: &[u8], ok: OkPacket<'_>, sequence: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + ok.plain_length);
    packet::put(&mut out, sequence, |out| {
        let start = out.len();
        out.extend_from_slice(&payload[..ok.plain_length]);
        let flags = ok.status & !status::SESSION_STATE_CHANGED;
        out[start + ok.status_at..start + ok.status_at + 2].copy_from_slice(&flags.to_le_bytes());
    });
    out
}
