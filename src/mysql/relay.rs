//! Runs one request on a server connection and streams its answer to the client.
//!
//! Bytes go out of the receive buffer as they came; only headers are looked at, and the few small
//! packets that decide something. Rows are never decoded.

use std::{io, sync::Arc};

use tokio::io::AsyncWriteExt;

use super::{
    backend::Backend,
    command::{Command, Tail, code},
    encode,
    frontend::{Frontend, eof, unread},
    packet::{
        self, Change, ErrPacket, HEADER, MAX_PAYLOAD, OkPacket, capability as can, lenenc, status, u16_le,
        u32_le,
    },
    prepared::Statement,
    refusal::{self, ErrorClass},
    settings::quote_literal,
};
use crate::{
    inbox::{self, Inbox},
    passage::Passage,
    protocol::{Fault, MayRefuse, Refused, RefusedCause, Reply, Request, Terms},
    sql::Effect,
    standing::{self, Step, watched},
    topology::Position,
};

/// A packet that decides something is looked at whole; no server makes a longer one of these.
const LOOKED_AT: usize = 1024 * 1024;

/// Clears what another session's statement, or an earlier one, has left: LAST_INSERT_ID(),
/// ROW_COUNT(), and the warnings, which MariaDB keeps until a statement uses a table.
const FORGET_LAST: &str = "DO (SELECT LAST_INSERT_ID(0) FROM (SELECT 1) AS nothing)";

/// Answer bytes kept back while the request could still run elsewhere.
const KEPT_BACK: usize = inbox::BUFFER;

/// What the next packet of an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first of an answer: OK, an error, a request for a file, or a number of columns.
    First,
    Columns {
        left: u64,
    },
    /// The EOF packet behind the columns, for those who want one.
    ColumnsEnd,
    Rows,
    /// The answer to COM_STMT_PREPARE; then the definitions of parameters and columns, each with
    /// an EOF packet behind it for those who want one.
    Prepared,
    Definitions {
        left: u64,
    },
    /// One packet without a mark.
    Text,
    Done,
}

/// One exchange in progress.
pub(super) struct Relay<'a> {
    backend: &'a mut Backend,
    frontend: &'a mut Frontend,
    terms: Terms<'a>,
    phase: Phase,
    passage: Passage,
    /// The payload goes on in the next packet.
    continued: bool,
    sent: bool,
    /// A row or a success has come: the request cannot run elsewhere.
    decided: bool,
    failed: bool,
    /// A result came with warnings.
    warned: bool,
    refused: Option<Refused>,
    wrote: Option<Position>,
    prepared: Option<Arc<Statement>>,
    /// Number of the packet by which the server asked for a file, and of those that brought it.
    asked: u8,
}

/// What the scan of received bytes came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scan {
    /// More has to be received.
    More,
    Done,
    /// The server waits for a file of the client's.
    LocalInfile,
}

impl<'a> Relay<'a> {
    pub(super) fn new(
        backend: &'a mut Backend,
        frontend: &'a mut Frontend,
        terms: &Terms<'a>,
        code: u8,
    ) -> Self {
        let phase = match code {
            code::STMT_PREPARE => Phase::Prepared,
            code::STMT_FETCH | code::FIELD_LIST => Phase::Rows,
            code::STATISTICS => Phase::Text,
            _ => Phase::First,
        };
        Self {
            passage: Passage::new(std::mem::take(&mut backend.gathered)),
            backend,
            frontend,
            terms: *terms,
            phase,
            continued: false,
            sent: false,
            decided: false,
            failed: false,
            warned: false,
            refused: None,
            wrote: None,
            prepared: None,
            asked: 0,
        }
    }

    /// Sends the request, relays the answer, and says how it ended.
    pub(super) async fn run(mut self, request: &Request<Command>) -> Result<Reply, Fault> {
        if self.terms.watch.is_over(false) {
            return Err(standing::unsent());
        }
        // What is rare is boxed: the future of every statement stays small.
        if self.has_to_prepare(request) {
            Box::pin(self.prepare_connection(request)).await?;
        }
        self.backend.last_session = self.terms.session;
        self.backend.busy = true;
        self.send_request(request).await?;
        self.relay_answers(request).await?;
        self.backend.busy = false;
        if request.intent.effects.iter().any(|effect| matches!(effect, Effect::SetComputed { .. })) {
            Box::pin(self.carry_computed(request)).await?;
        }
        self.finish(request)
    }

    /// What variables became that the server computed: from now on the session's settings.
    async fn carry_computed(&mut self, request: &Request<Command>) -> Result<(), Fault> {
        for effect in &request.intent.effects {
            let Effect::SetComputed { name } = effect else { continue };
            if self.failed {
                break;
            }
            // The client has its answer: there is nothing to be tried again.
            let rows = self.backend.query_all(&format!("SELECT @@SESSION.{name}")).await;
            let rows = rows.map_err(|_| Fault::Client(io::ErrorKind::ConnectionAborted.into()))?;
            let Some(value) = rows.first().and_then(|row| row.first()?.as_deref()) else { continue };
            let statement = format!("SET SESSION {name} = {}", quote_literal(value.as_bytes()));
            let settings = self.frontend.carried.now().with(name, &statement);
            self.frontend.carried.set(settings);
            self.frontend.note_setting(name, value);
        }
        Ok(())
    }

    /// Whether anything is to be done ahead of the request.
    fn has_to_prepare(&mut self, request: &Request<Command>) -> bool {
        let names = |effect: &Effect| {
            matches!(
                effect,
                Effect::Execute { .. } | Effect::Deallocate { name: Some(_) } | Effect::NeedsPrevious
            )
        };
        let unprepared = match (request.wire.code, &request.wire.statement) {
            (code::STMT_EXECUTE | code::STMT_BULK_EXECUTE, Some((_, statement))) => {
                self.backend.statements.get(statement.key).is_none()
            }
            _ => false,
        };
        unprepared
            || !self.backend.is_at(self.frontend.carried.now())
            || !self.terms.ahead.is_empty()
            || self.terms.forget_last
            || request.intent.effects.iter().any(names)
    }

    /// What must have succeeded before the request may run: the session's settings, the statements
    /// kept back, and the prepared statements that it names.
    async fn prepare_connection(&mut self, request: &Request<Command>) -> Result<(), Fault> {
        let resets = request.wire.code == code::RESET_CONNECTION;
        if !resets {
            let wanted = self.frontend.carried.now().clone();
            watched(self.terms.watch, self.backend.bring(&wanted)).await?;
        }
        for statement in self.terms.ahead {
            watched(self.terms.watch, self.backend.query_all(statement)).await?;
        }
        for effect in &request.intent.effects {
            if let Effect::Execute { name } | Effect::Deallocate { name: Some(name) } = effect {
                encode::prepare_own(self.backend, self.frontend, name).await?;
            }
        }
        let foreign = self.backend.last_session != self.terms.session;
        let asks = foreign && request.intent.effects.contains(&Effect::NeedsPrevious);
        if asks || self.terms.forget_last {
            self.backend.query_all(FORGET_LAST).await?;
        }
        if let (code::STMT_EXECUTE | code::STMT_BULK_EXECUTE, Some((_, statement))) =
            (request.wire.code, &request.wire.statement)
        {
            encode::prepare(self.backend, statement).await?;
        }
        Ok(())
    }

    async fn send_request(&mut self, request: &Request<Command>) -> Result<(), Fault> {
        let command = &request.wire;
        let mut out = std::mem::take(&mut self.backend.out);
        out.clear();
        let data = &self.frontend.inbox.data()[..command.length];
        let encoded = encode::command(self.backend, self.frontend, command, data, &mut out);
        let inbox = std::mem::take(&mut self.frontend.inbox);
        let result = match encoded {
            Ok(()) => self.send(if out.is_empty() { &inbox.data()[..command.length] } else { &out }).await,
            Err(fault) => Err(fault),
        };
        self.frontend.inbox = inbox;
        self.backend.give_out(out);
        result?;
        match command.tail {
            Some(tail) => Box::pin(self.stream_tail(tail)).await,
            None => Ok(()),
        }
    }

    /// Passes on the rest of a command that is longer than what is gathered.
    async fn stream_tail(&mut self, mut tail: Tail) -> Result<(), Fault> {
        self.decided = true;
        let mut inbox = self.frontend.take_inbox_behind_command();
        let result = self.pump_tail(&mut inbox, &mut tail).await;
        self.frontend.inbox = inbox;
        self.frontend.tail = if tail.rest == 0 && !tail.continues { None } else { Some(tail) };
        result
    }

    async fn pump_tail(&mut self, inbox: &mut Inbox, tail: &mut Tail) -> Result<(), Fault> {
        loop {
            if tail.rest == 0 {
                if !tail.continues {
                    return Ok(());
                }
                let header = self.numbered(inbox, tail.next).await?;
                let continues = header.length == MAX_PAYLOAD;
                *tail = Tail { rest: header.total(), continues, next: tail.next.wrapping_add(1) };
            }
            if inbox.is_empty() && inbox.fill(&mut self.frontend.stream).await.map_err(unread)? == 0 {
                return Err(Fault::Client(eof()));
            }
            let part = inbox.len().min(tail.rest);
            self.send(&inbox.data()[..part]).await?;
            inbox.consume(part);
            tail.rest -= part;
        }
    }

    /// The header of the client's next packet, with the number that the server expects.
    async fn numbered(&mut self, inbox: &mut Inbox, sequence: u8) -> Result<packet::Header, Fault> {
        let header = self.client_header(inbox).await?;
        if self.frontend.stream.is_compressed() {
            inbox.data_mut()[HEADER - 1] = sequence;
        }
        Ok(header)
    }

    async fn client_header(&mut self, inbox: &mut Inbox) -> Result<packet::Header, Fault> {
        loop {
            if let Some(header) = packet::header(inbox.data()) {
                return Ok(header);
            }
            if inbox.fill(&mut self.frontend.stream).await.map_err(unread)? == 0 {
                return Err(Fault::Client(eof()));
            }
        }
    }

    /// Writes to the server; reads and hands on what it says meanwhile, so that neither waits for
    /// the other for ever.
    async fn send(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        let watch = self.terms.watch;
        while !bytes.is_empty() {
            let backend = &mut *self.backend;
            match watch.write(bytes, &mut backend.inbox, &mut backend.stream).await {
                Ok(Step::Wrote(0)) => return Err(self.server_lost(io::ErrorKind::WriteZero.into())),
                Ok(Step::Wrote(count)) => {
                    self.sent = true;
                    bytes = &bytes[count..];
                }
                Ok(Step::Read(0)) => return Err(self.server_lost(eof())),
                // An error for what is still being sent: it is read when all is.
                Ok(Step::Read(_)) => {}
                Err(error) => return Err(self.server_lost(error)),
            }
        }
        if self.backend.stream.is_tls() {
            let flushed = self.backend.stream.flush().await;
            flushed.map_err(|error| self.server_lost(error))?;
        }
        Ok(())
    }

    fn server_lost(&mut self, error: io::Error) -> Fault {
        self.backend.closed = true;
        match self.refused.take() {
            Some(refused) => Fault::Refused(refused),
            None => {
                Fault::Server { error, sent: self.sent, forwarded: self.passage.forwarded(self.continued) }
            }
        }
    }

    async fn relay_answers(&mut self, request: &Request<Command>) -> Result<(), Fault> {
        loop {
            match self.scan(request)? {
                Scan::Done => {
                    if let Some(refused) = self.refused.take() {
                        self.passage.settle(&mut self.backend.inbox);
                        self.backend.busy = false;
                        return Err(refused.into());
                    }
                    return self.flush().await;
                }
                Scan::LocalInfile => {
                    self.flush().await?;
                    Box::pin(self.local_infile()).await?;
                    continue;
                }
                Scan::More => self.hand_on().await?,
            }
            match self.receive().await {
                Ok(0) => return Err(self.server_lost(eof())),
                Ok(_) => {}
                Err(error) => return Err(self.server_lost(error)),
            }
        }
    }

    /// Waits for what the server says next.
    ///
    /// # Errors
    /// Also when the server may no longer say anything: it was fenced, or is down and another can
    /// be asked.
    async fn receive(&mut self) -> io::Result<usize> {
        let movable = self.terms.may_refuse == MayRefuse::Any && !self.passage.has_begun() && !self.decided;
        let backend = &mut *self.backend;
        self.terms.watch.read(&mut backend.inbox, &mut backend.stream, movable).await
    }

    /// Hands on what may go to the client by now.
    async fn hand_on(&mut self) -> Result<(), Fault> {
        let keep =
            self.terms.may_refuse != MayRefuse::No && !self.decided && self.passage.waiting() < KEPT_BACK;
        if keep { Ok(()) } else { self.flush().await }
    }

    /// Hands everything that was looked at to the client, and drops it.
    async fn flush(&mut self) -> Result<(), Fault> {
        let bytes = self.passage.ready(&self.backend.inbox);
        if !bytes.is_empty() {
            self.frontend.write(bytes).await?;
        }
        self.passage.settle(&mut self.backend.inbox);
        Ok(())
    }

    /// Looks at everything received so far.
    fn scan(&mut self, request: &Request<Command>) -> Result<Scan, Fault> {
        loop {
            if !self.passage.pass_rest(&self.backend.inbox) {
                return Ok(Scan::More);
            }
            if self.phase == Phase::Done && !self.continued {
                return Ok(Scan::Done);
            }
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
        self.passage.pass_message(&self.backend.inbox, header.total(), true);
    }

    /// Puts a packet of ours in the place of the one at hand.
    fn replace(&mut self, header: packet::Header, packet: &[u8]) {
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
                encode::learn_own(self.backend, &request.intent, true);
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
            let (status, warned, changes) = (ok.status, ok.warnings > 0, ok.changes.to_vec());
            let cut = (!changes.is_empty() && !self.frontend.tracks_session())
                .then(|| without_changes(payload, ok, header.sequence));
            self.note_changes(&changes, request);
            self.warned |= warned;
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
        let (mut unnamed, mut named) = (false, false);
        for change in packet::changes(changes) {
            unnamed |= change == Change::State;
            named |= matches!(change, Change::Variable { .. } | Change::Schema(_) | Change::Gtids(_));
            match change {
                Change::Gtids(text) | Change::Variable { name: b"last_gtid", value: text } => {
                    self.note_gtid(text)
                }
                Change::Variable { name: b"sql_mode", value } => {
                    self.frontend.note_sql_mode(&String::from_utf8_lossy(value));
                }
                Change::Variable { name: b"character_set_client", value } => {
                    self.frontend.note_setting("character_set_client", &String::from_utf8_lossy(value));
                }
                _ => {}
            }
        }
        // A change that has a name of its own is marked a second time without one.
        self.backend.touched |= unnamed && !named && request.intent.effects.is_empty();
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
        let statement = Arc::new(Statement {
            text: statement.text.clone(),
            schema: statement.schema.clone(),
            key: statement.key,
            intent: statement.intent.clone(),
            parameters,
        });
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
            self.backend.closed |= class == ErrorClass::Stopping;
            if let Some(cause) = self.refusal_cause(class) {
                let mut raw = Vec::with_capacity(header.total());
                packet::put(&mut raw, 1, |out| out.extend_from_slice(&payload));
                self.refused = Some(Refused { raw, cause, code: error.sqlstate });
            }
        }
        self.pass(header);
    }

    /// Whether, and why, this error is kept from the client for another attempt.
    fn refusal_cause(&self, class: ErrorClass) -> Option<RefusedCause> {
        // A write that a stopping server ended may have been committed: it is not sent again.
        if self.passage.has_begun() || self.decided || self.terms.may_refuse != MayRefuse::Any {
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

    /// Passes the client's file on, up to the empty packet that ends it.
    async fn local_infile(&mut self) -> Result<(), Fault> {
        let mut inbox = self.frontend.take_inbox_behind_command();
        let result = self.pump_file(&mut inbox).await;
        self.frontend.inbox = inbox;
        result
    }

    async fn pump_file(&mut self, inbox: &mut Inbox) -> Result<(), Fault> {
        loop {
            self.asked = self.asked.wrapping_add(1);
            let header = self.numbered(inbox, self.asked).await?;
            let mut rest = header.total();
            while rest > 0 {
                if inbox.is_empty() && inbox.fill(&mut self.frontend.stream).await.map_err(unread)? == 0 {
                    return Err(Fault::Client(eof()));
                }
                let part = inbox.len().min(rest);
                self.send(&inbox.data()[..part]).await?;
                inbox.consume(part);
                rest -= part;
            }
            if header.length == 0 {
                return Ok(());
            }
        }
    }

    fn finish(self, request: &Request<Command>) -> Result<Reply, Fault> {
        let Self { backend, frontend, passage, .. } = self;
        backend.gathered = passage.into_spare();
        let command = &request.wire;
        frontend.learn(request, self.failed);
        if command.code == code::SET_OPTION && !self.failed {
            let argument = super::command::argument(frontend.inbox.data()).into_owned();
            let on = argument.first() == Some(&0);
            let settings = frontend.carried.now().with_multi_statements(on);
            frontend.carried.set(settings);
        }
        if let (code::STMT_EXECUTE, Some((id, _))) = (command.code, &command.statement) {
            frontend.statements.forget_long_data(*id);
        }
        backend.learn(&request.intent, self.failed, frontend.carried.now());
        encode::learn_own(backend, &request.intent, self.failed);
        frontend.autocommit = backend.status & status::AUTOCOMMIT != 0;
        frontend.read_only = backend.status & status::IN_READ_ONLY_TRANSACTION != 0;
        frontend.consume();
        if !self.failed && request.intent.effects.contains(&Effect::Leave) {
            backend.closed = true;
            frontend.leaving = true;
        }
        let transaction = backend.open_transaction();
        frontend.told = transaction;
        Ok(Reply {
            transaction,
            failed: self.failed,
            warned: self.warned || self.failed,
            wrote: self.wrote,
            lost: false,
        })
    }
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
