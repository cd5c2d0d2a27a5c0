//! Runs one request on a server connection and streams its answer to the client.
//!
//! Bytes go out of the receive buffer as they came; only headers are looked at, and the few small
//! messages that decide something. Rows are never decoded.

use std::{io, ops::Range, sync::Arc, task::Poll};

use tokio::io::AsyncWriteExt;

use super::{
    backend::Backend,
    batch::{Batch, End, Kind, Message, Subject},
    encode::{self, BatchWriter, Expect, Whose},
    frame::{self, HEADER},
    frontend::{Frontend, eof},
    parameters,
    prepared::{self, Statement},
    refusal::{self, ErrorClass},
};
use crate::{
    inbox,
    protocol::{Fault, Forwarded, MayRefuse, Refused, RefusedCause, Reply, Request, Terms, Transaction},
    sql::{Effect, PinReason},
    standing::{Step, given_up, unsent, watched},
};

/// A message that decides something is looked at whole; a longer one passes unseen. Errors quote
/// statements, descriptions have up to 1,664 columns.
const LOOKED_AT: usize = 256 * 1024;

/// Answer bytes kept back while the request could still run elsewhere.
const KEPT_BACK: usize = inbox::BUFFER;

/// One exchange in progress.
pub(super) struct Relay<'a> {
    backend: &'a mut Backend,
    frontend: &'a mut Frontend,
    terms: Terms<'a>,
    /// End of what has been looked at in the backend's inbox.
    at: usize,
    /// Start of what has been looked at and not handed on.
    from: usize,
    /// Bytes of the current message's body that have not arrived, and whether they are handed on.
    rest: usize,
    rest_forwarded: bool,
    /// Something has reached the client.
    forwarded: bool,
    sent: bool,
    /// The request has answered with more than acknowledgements: it cannot run elsewhere.
    decided: bool,
    /// A notice came first: the server has something to say about what it did.
    noticed: bool,
    /// Nothing may be kept back any more.
    released: bool,
    failed: bool,
    rolled_back: bool,
    /// The session's own settings could not be brought; the request did not run.
    setting_failed: bool,
    refused: Option<Refused>,
    /// The server is ending this connection.
    dying: bool,
    /// A BEGIN that was held back goes ahead of the request.
    began: bool,
    /// The plan of a prepared statement is out of date.
    stale_plan: bool,
}

/// What the scan of received bytes came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scan {
    /// More has to be received.
    More,
    /// All answers that were due have come.
    Done,
    /// The server waits for the client's COPY data.
    CopyIn,
}

impl<'a> Relay<'a> {
    pub(super) fn new(backend: &'a mut Backend, frontend: &'a mut Frontend, terms: &Terms<'a>) -> Self {
        Self {
            backend,
            frontend,
            terms: *terms,
            at: 0,
            from: 0,
            rest: 0,
            rest_forwarded: false,
            forwarded: false,
            sent: false,
            decided: false,
            noticed: false,
            released: matches!(terms.may_refuse, MayRefuse::No | MayRefuse::Replan),
            failed: false,
            rolled_back: false,
            setting_failed: false,
            refused: None,
            dying: false,
            began: !terms.ahead.is_empty(),
            stale_plan: false,
        }
    }

    /// Sends the request, relays the answer, and says how it ended.
    pub(super) async fn run(mut self, request: &Request<Box<Batch>>) -> Result<Reply, Fault> {
        if self.terms.watch.is_over(false) {
            return Err(unsent());
        }
        // What is rare is boxed: the future of every statement stays small.
        if self.has_settings_to_bring(request) {
            Box::pin(self.bring_settings()).await?;
        }
        if self.has_long_query_to_follow(request) {
            Box::pin(self.bring_ahead()).await?;
        }
        if !self.backend.in_unit && self.has_shapes_to_learn(request) {
            Box::pin(self.learn_shapes(request)).await?;
        }
        self.send_request(request).await?;
        self.backend.in_unit = true;
        let answered = if encode::answer_due(&request.wire) || self.dying {
            self.relay_answers().await
        } else {
            self.flush().await
        };
        if self.stale_plan {
            self.retire_stale(request);
        }
        answered?;
        self.finish(request)
    }

    /// Settings that differ and cannot share the request's implicit transaction take a round trip
    /// of their own; the others are put ahead of the request by [`Self::send_request`].
    fn has_settings_to_bring(&self, request: &Request<Box<Batch>>) -> bool {
        let (wanted, had) = (self.frontend.carried.now(), self.backend.carried.now());
        if had.hash() == wanted.hash() {
            return false;
        }
        let joins = request.intent.joins
            && self.terms.ahead.is_empty()
            && self.backend.transaction == Transaction::Idle
            && wanted.may_join(had)
            && request.wire.end == End::Whole
            && !request
                .intent
                .effects
                .iter()
                .any(|effect| matches!(effect, Effect::Begin(_) | Effect::BeginUnknown));
        !joins
    }

    /// # Errors
    /// [`Fault::Refused`] with the server's error when one fails: the request did not run.
    async fn bring_settings(&mut self) -> Result<(), Fault> {
        let wanted = self.frontend.carried.now().clone();
        let statements = wanted.statements_from(self.backend.carried.now());
        watched(self.terms.watch, self.backend.execute_all(&statements)).await?;
        self.backend.carried.bring(&wanted);
        Ok(())
    }

    /// A query that is passed on in pieces cannot be followed by a Sync at once: what goes ahead of
    /// it takes a round trip of its own.
    fn has_long_query_to_follow(&self, request: &Request<Box<Batch>>) -> bool {
        request.wire.kind != Kind::Extended && request.wire.end != End::Whole && !self.terms.ahead.is_empty()
    }

    async fn bring_ahead(&mut self) -> Result<(), Fault> {
        watched(self.terms.watch, self.backend.execute_all(self.terms.ahead)).await?;
        self.terms.ahead = &[];
        Ok(())
    }

    /// The key of a statement whose shape the client was told and that is new to this server.
    fn unknown_shape(&self, message: &Message) -> Option<(u128, Arc<Statement>)> {
        let Subject::Named(statement) = &message.subject else { return None };
        let key = statement.key ^ u128::from(self.frontend.carried.now().plan_key());
        if self.backend.statements.shape(key).is_some() {
            return None;
        }
        let name = self.frontend.bound_name(message)?;
        self.frontend.statements.told(name)?;
        Some((key, statement.clone()))
    }

    fn has_shapes_to_learn(&self, request: &Request<Box<Batch>>) -> bool {
        request.wire.messages.iter().any(|message| self.unknown_shape(message).is_some())
    }

    /// Finds out what this server answers to such statements: a client that would decode rows by
    /// another shape must not get them.
    async fn learn_shapes(&mut self, request: &Request<Box<Batch>>) -> Result<(), Fault> {
        for message in &request.wire.messages {
            if let Some((key, statement)) = self.unknown_shape(message) {
                self.bring_settings_now().await?;
                let shape = self.backend.describe(key, &statement).await.map_err(stale_refusal)?;
                self.backend.statements.set_shape(key, shape);
            }
        }
        Ok(())
    }

    /// What is described depends on search_path and role.
    async fn bring_settings_now(&mut self) -> Result<(), Fault> {
        let wanted = self.frontend.carried.now().clone();
        let statements = wanted.statements_from(self.backend.carried.now());
        if !statements.is_empty() {
            self.backend.execute_all(&statements).await?;
            self.backend.carried.bring(&wanted);
        }
        Ok(())
    }

    /// Statements whose plans are out of date are prepared anew when they are wanted again.
    fn retire_stale(&mut self, request: &Request<Box<Batch>>) {
        let plan_key = u128::from(self.frontend.carried.now().plan_key());
        for message in &request.wire.messages {
            if let Subject::Named(statement) = &message.subject {
                self.backend.retire(statement.key ^ plan_key);
            }
        }
    }

    async fn send_request(&mut self, request: &Request<Box<Batch>>) -> Result<(), Fault> {
        let batch = &request.wire;
        let mut out = std::mem::take(&mut self.backend.out);
        out.clear();
        let rewritten = self.encode(request, &mut out)?;
        let inbox = std::mem::take(&mut self.frontend.inbox);
        let as_sent = &inbox.data()[..batch.length];
        if !out.is_empty() {
            if !rewritten {
                out.extend_from_slice(as_sent);
            }
            self.put_trailing_sync(batch, &mut out);
        }
        let result = self.send(if out.is_empty() { as_sent } else { &out }).await;
        self.frontend.inbox = inbox;
        self.backend.give_out(out);
        result?;
        match batch.end {
            End::More { tail } => Box::pin(self.stream_tail(tail)).await,
            // No data may go before its COPY has begun: without one the answer is due all the same.
            End::Copy => Box::pin(self.send(&frame::FLUSH)).await,
            _ => Ok(()),
        }
    }

    /// Writes what goes ahead of the request, and the request itself where it has to be changed.
    /// Returns whether it was; nothing written at all means that it goes out as it lies there.
    fn encode(&mut self, request: &Request<Box<Batch>>, out: &mut Vec<u8>) -> Result<bool, Fault> {
        let batch = &request.wire;
        let backend = &mut *self.backend;
        backend.put_clearing(&request.intent, &self.terms, out);
        let wanted = self.frontend.carried.now();
        if backend.carried.now().hash() != wanted.hash() {
            let statements = wanted.statements_from(backend.carried.now());
            encode::put_ahead(&statements, out, &mut backend.expect);
        }
        encode::put_ahead(self.terms.ahead, out, &mut backend.expect);
        if self.terms.wants_id {
            backend.put_question_for_id(out);
        }
        for effect in &request.intent.effects {
            // What a string of several statements notifies comes within its answer.
            backend.listening |= *effect == Effect::Pin(PinReason::Listen);
            backend.put_named(effect, self.frontend, out);
        }
        for name in &batch.own {
            backend.put_own_name(name, self.frontend, out);
        }
        if !out.is_empty() {
            backend.statements.unnamed = Some(super::backend::UNKNOWN_STATEMENT);
        }
        if batch.kind == Kind::Extended {
            backend.put_retired(out);
        }
        if batch.kind != Kind::Extended {
            encode::expect_single(batch, &mut backend.expect);
            if batch.kind == Kind::Query {
                backend.statements.unnamed = None;
            }
            return Ok(false);
        }
        let mut writer = BatchWriter {
            server: &mut backend.statements,
            expect: &mut backend.expect,
            out,
            plan_key: wanted.plan_key(),
            data: &self.frontend.inbox.data()[..batch.length],
        };
        let rewritten = writer.write(batch, self.frontend);
        self.backend.skip_what_was_encoded(self.frontend);
        Ok(rewritten)
    }

    /// What goes ahead of a simple query is in the extended protocol and has no Sync of its own:
    /// an error in it skips the query up to the Sync sent behind the query.
    fn put_trailing_sync(&mut self, batch: &Batch, out: &mut Vec<u8>) {
        if batch.kind != Kind::Extended && matches!(batch.end, End::Whole) {
            out.extend_from_slice(&frame::SYNC);
            self.backend.expect.push_back(Expect::Sync { forward: false });
        }
    }

    /// Passes on the rest of a message that is longer than what is gathered.
    async fn stream_tail(&mut self, mut tail: usize) -> Result<(), Fault> {
        self.released = true;
        let mut inbox = self.frontend.take_inbox_behind_batch();
        let result = self.pump_tail(&mut inbox, &mut tail).await;
        self.frontend.give_inbox(inbox, tail);
        result
    }

    async fn pump_tail(&mut self, inbox: &mut inbox::Inbox, tail: &mut usize) -> Result<(), Fault> {
        while *tail > 0 {
            if inbox.is_empty() && inbox.fill(&mut self.frontend.stream).await.map_err(Fault::Client)? == 0 {
                return Err(Fault::Client(eof()));
            }
            let part = inbox.len().min(*tail);
            self.send(&inbox.data()[..part]).await?;
            inbox.consume(part);
            *tail -= part;
        }
        Ok(())
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
                Ok(Step::Read(_)) => {
                    self.scan()?;
                    Box::pin(self.hand_on()).await?;
                }
                Err(error) if watch.is_over(false) => return Err(self.server_lost(error)),
                // What it said before it closed is still to be read.
                Err(error) => return Box::pin(self.last_words(error)).await,
            }
        }
        if self.backend.stream.is_tls() {
            let flushed = self.backend.stream.flush().await;
            flushed.map_err(|error| self.server_lost(error))?;
        }
        Ok(())
    }

    /// A write failed: the server may have said why before it closed.
    async fn last_words(&mut self, error: io::Error) -> Result<(), Fault> {
        loop {
            match self.receive().await {
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    self.scan()?;
                }
            }
        }
        if self.is_answered() {
            self.end_behind_answer();
            return Ok(());
        }
        Err(self.server_lost(error))
    }

    /// Whether all that the client waits for has come, and only the answer to a Sync of ours is due.
    /// A server that ends here has answered: a word more, and the client would take it for the
    /// answer to its next request.
    fn is_answered(&self) -> bool {
        let ours = |expect: &Expect| matches!(expect, Expect::Sync { forward: false });
        !self.setting_failed
            && self.refused.is_none()
            && self.rest == 0
            && !self.backend.expect.is_empty()
            && self.backend.expect.iter().all(ours)
    }

    /// The connection has ended; what was open in it is found to be lost when the session goes on.
    fn end_behind_answer(&mut self) {
        self.backend.expect.clear();
        self.backend.closed = true;
    }

    fn server_lost(&mut self, error: io::Error) -> Fault {
        match self.refused.take() {
            Some(refused) => Fault::Refused(refused),
            None => Fault::Server { error, sent: self.sent, forwarded: self.reached() },
        }
    }

    fn reached(&self) -> Forwarded {
        match (self.forwarded, self.rest > 0 && self.rest_forwarded) {
            (false, _) => Forwarded::Nothing,
            (true, false) => Forwarded::Some,
            (true, true) => Forwarded::Torn,
        }
    }

    async fn relay_answers(&mut self) -> Result<(), Fault> {
        loop {
            match self.scan()? {
                Scan::Done => return self.flush().await,
                Scan::CopyIn => {
                    self.flush().await?;
                    Box::pin(self.copy_in()).await?;
                    if !self.backend.expect.contains(&Expect::Query) {
                        // In the extended protocol the server keeps its answer until the Sync,
                        // which the client sends behind its data.
                        return Ok(());
                    }
                    continue;
                }
                Scan::More => self.hand_on().await?,
            }
            match self.receive().await {
                Ok(0) | Err(_) if self.is_answered() => {
                    self.end_behind_answer();
                    return self.flush().await;
                }
                Ok(0) => {
                    if self.dying && self.failed {
                        return self.flush().await;
                    }
                    return Err(self.server_lost(eof()));
                }
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
        let movable = self.terms.may_refuse == MayRefuse::Any && !self.forwarded && !self.decided;
        let backend = &mut *self.backend;
        self.terms.watch.read(&mut backend.inbox, &mut backend.stream, movable).await
    }

    /// Hands on what may go to the client by now.
    async fn hand_on(&mut self) -> Result<(), Fault> {
        let keep = !self.released && !self.decided && self.at - self.from < KEPT_BACK;
        if keep || self.refused.is_some() { Ok(()) } else { self.flush().await }
    }

    /// Hands everything that was looked at to the client, and drops it.
    async fn flush(&mut self) -> Result<(), Fault> {
        let range = self.from..self.at;
        if !self.backend.pending.is_empty() {
            self.gather(range);
            let pending = std::mem::take(&mut self.backend.pending);
            self.forwarded = true;
            self.frontend.write(&pending).await?;
            self.backend.give_pending(pending);
        } else if !range.is_empty() {
            self.forwarded = true;
            self.frontend.write(&self.backend.inbox.data()[range]).await?;
        }
        self.backend.inbox.consume(self.at);
        self.from = 0;
        self.at = 0;
        Ok(())
    }

    /// Moves a range that was looked at behind what is to be handed on already.
    fn gather(&mut self, range: Range<usize>) {
        let backend = &mut *self.backend;
        backend.pending.extend_from_slice(&backend.inbox.data()[range]);
    }

    /// Leaves `[self.at, self.at + count)` out of what the client gets.
    fn leave_out(&mut self, count: usize) {
        if self.at > self.from {
            self.gather(self.from..self.at);
        }
        self.at += count;
        self.from = self.at;
    }

    /// Puts bytes of ours where the scan stands.
    fn inject(&mut self, bytes: &[u8]) {
        self.leave_out(0);
        self.backend.pending.extend_from_slice(bytes);
    }

    /// Looks at everything received so far.
    fn scan(&mut self) -> Result<Scan, Fault> {
        self.injections();
        loop {
            if self.rest > 0 {
                let part = self.rest.min(self.backend.inbox.len() - self.at);
                self.pass(part, self.rest_forwarded);
                self.rest -= part;
            }
            if self.backend.expect.is_empty() && self.rest == 0 {
                return self.done();
            }
            self.pass_rows();
            let data = &self.backend.inbox.data()[self.at..];
            let Some(header) = frame::header(data) else { return Ok(Scan::More) };
            if header.length < HEADER {
                return Err(
                    self.server_lost(io::Error::new(io::ErrorKind::InvalidData, "impossible message length"))
                );
            }
            if header.tag == b'E' && self.is_answered() {
                // It stays where it is, for whoever uses the connection next.
                self.backend.expect.clear();
                return self.done();
            }
            if self.looks_at(header.tag) && header.length <= LOOKED_AT && header.length > data.len() {
                return Ok(Scan::More);
            }
            if let Some(end) = self.message(header)? {
                return Ok(end);
            }
        }
    }

    /// Passes whole rows and COPY data: by far the most messages of a large answer, and nothing to
    /// do for any of them.
    fn pass_rows(&mut self) {
        let data = &self.backend.inbox.data()[self.at..];
        let mut passed = 0;
        while let Some(header) = frame::header(&data[passed..])
            && matches!(header.tag, b'D' | b'd')
            && (HEADER..=data.len() - passed).contains(&header.length)
        {
            passed += header.length;
        }
        if passed > 0 && !self.is_ours() {
            self.decided = true;
            self.at += passed;
        }
    }

    /// Messages whose body decides something.
    fn looks_at(&self, tag: u8) -> bool {
        match tag {
            b'Z' | b'E' | b'S' | b'C' => true,
            b'T' | b't' => matches!(self.backend.expect.front(), Some(Expect::DescribeStatement { .. })),
            _ => false,
        }
    }

    fn done(&mut self) -> Result<Scan, Fault> {
        if let Some(refused) = self.refused.take() {
            self.backend.inbox.consume(self.at);
            self.backend.pending.clear();
            return Err(refused.into());
        }
        Ok(Scan::Done)
    }

    fn pass(&mut self, count: usize, forward: bool) {
        if forward { self.at += count } else { self.leave_out(count) }
    }

    /// Passes a message whose end may not have arrived.
    fn pass_message(&mut self, length: usize, forward: bool) {
        let here = length.min(self.backend.inbox.len() - self.at);
        self.pass(here, forward);
        self.rest = length - here;
        self.rest_forwarded = forward;
    }

    /// Acts on one message; its body is there when its kind is looked at.
    fn message(&mut self, header: frame::Header) -> Result<Option<Scan>, Fault> {
        let mut forward = true;
        match header.tag {
            // Those whose end has not arrived, and those of statements of ours.
            b'D' | b'd' => {
                forward = !self.is_ours();
                self.decided |= forward;
                if !forward {
                    self.note_id(header);
                }
            }
            b'Z' => {
                self.ready(header)?;
                return Ok(None);
            }
            b'E' => {
                self.error(header);
                return Ok(None);
            }
            b'S' => forward = self.parameter(header),
            b'N' => self.noticed = true,
            b'A' => forward = self.frontend_listens(),
            b'1' => forward = self.parsed(),
            b'2' => forward = self.pop_forward(),
            b'3' => forward = self.closed(),
            b't' => self.typed(header),
            b'T' | b'n' => forward = self.described(header),
            b'C' | b'I' | b's' => {
                let body = self.body(header);
                self.rolled_back = header.tag == b'C' && body == b"ROLLBACK\0";
                forward = self.completed();
            }
            b'G' => {
                self.decided = true;
                self.eat_syncs();
                self.pass_message(header.length, true);
                return Ok(Some(Scan::CopyIn));
            }
            b'H' | b'c' | b'V' | b'W' => self.decided = true,
            other => {
                let error =
                    io::Error::new(io::ErrorKind::InvalidData, format!("unknown message type {other}"));
                return Err(self.server_lost(error));
            }
        }
        self.pass_message(header.length, forward);
        self.injections();
        Ok(None)
    }

    fn body(&self, header: frame::Header) -> &[u8] {
        let data = &self.backend.inbox.data()[self.at..];
        &data[HEADER..header.length.min(data.len())]
    }

    /// Whether the answers at hand are those of statements sent ahead.
    fn is_ours(&self) -> bool {
        matches!(self.backend.expect.front(), Some(Expect::Execute(Whose::Ours | Whose::Id)))
    }

    /// The answer to our question for the transaction's id: one row of one column, in text.
    fn note_id(&mut self, header: frame::Header) {
        if matches!(self.backend.expect.front(), Some(Expect::Execute(Whose::Id))) {
            let digits = self.body(header).get(6..).and_then(|digits| std::str::from_utf8(digits).ok());
            self.backend.transaction_id = digits.and_then(|digits| digits.parse().ok());
        }
    }

    /// Hands on what is due from us before the next thing due from the server.
    fn injections(&mut self) {
        while let Some(Expect::Inject { .. }) = self.backend.expect.front() {
            if let Some(Expect::Inject { bytes, named }) = self.backend.expect.pop_front() {
                self.inject(&bytes);
                if named {
                    self.frontend.statements.confirm();
                }
            }
        }
    }

    fn parsed(&mut self) -> bool {
        match self.backend.expect.front() {
            Some(Expect::Parse { forward, named, .. }) => {
                let (forward, named) = (*forward, *named);
                if named {
                    self.frontend.statements.confirm();
                }
                self.backend.expect.pop_front();
                forward
            }
            _ => true,
        }
    }

    fn pop_forward(&mut self) -> bool {
        match self.backend.expect.front() {
            Some(Expect::Bind { forward }) => {
                let forward = *forward;
                self.backend.expect.pop_front();
                forward
            }
            _ => true,
        }
    }

    fn closed(&mut self) -> bool {
        match self.backend.expect.front() {
            Some(Expect::Close { forward }) => {
                let forward = *forward;
                self.backend.expect.pop_front();
                forward
            }
            _ => true,
        }
    }

    /// ParameterDescription: the client will send its values by it.
    fn typed(&mut self, header: frame::Header) {
        let types = &self.backend.inbox.data()[self.at + HEADER..];
        let Some(types) = types.get(..header.length.saturating_sub(HEADER)) else { return };
        let Some(Expect::DescribeStatement { named: Some((name, key)) }) = self.backend.expect.front_mut()
        else {
            return;
        };
        let plan_key = u128::from(self.frontend.carried.now().plan_key());
        if let Some(typed) = self.frontend.statements.fix_types(name, *key ^ plan_key, types) {
            self.backend.statements.rename(*key, typed ^ plan_key);
            *key = typed ^ plan_key;
        }
    }

    fn described(&mut self, header: frame::Header) -> bool {
        match self.backend.expect.front() {
            Some(Expect::DescribeStatement { .. }) => {
                let whole = header.length <= self.backend.inbox.len() - self.at;
                let shape = match header.tag {
                    b'n' => Some(prepared::NO_RESULT),
                    _ if whole => prepared::shape(self.body(header)),
                    _ => None,
                };
                let expected = self.backend.expect.pop_front();
                if let (Some(Expect::DescribeStatement { named: Some((name, key)) }), Some(shape)) =
                    (expected, shape)
                {
                    self.backend.statements.set_shape(key, shape);
                    self.frontend.statements.tell(&name, shape);
                }
                true
            }
            Some(Expect::DescribePortal) => {
                self.backend.expect.pop_front();
                true
            }
            Some(Expect::Execute(Whose::Ours | Whose::Id)) => false,
            _ => true,
        }
    }

    fn completed(&mut self) -> bool {
        match self.backend.expect.front() {
            Some(Expect::Execute(whose)) => {
                let forward = *whose == Whose::Client;
                self.decided |= forward;
                self.backend.expect.pop_front();
                forward
            }
            // Of a simple query, which may have more statements.
            _ => {
                self.decided = true;
                true
            }
        }
    }

    /// Syncs that were sent before the server went into COPY mode are ignored by it.
    fn eat_syncs(&mut self) {
        self.backend.expect.retain(|expect| !matches!(expect, Expect::Sync { .. }));
    }

    fn frontend_listens(&self) -> bool {
        self.backend.listening
    }

    /// ParameterStatus: the client hears of it when it does not know it.
    fn parameter(&mut self, header: frame::Header) -> bool {
        let data = &self.backend.inbox.data()[self.at..];
        let Some((name, value)) = parameters::read(&data[..header.length.min(data.len())]) else {
            return true;
        };
        self.backend.parameters.set(name, value);
        self.frontend.note_parameter(name, value)
    }

    /// A server reports what changes on its connection; what another one has otherwise than the
    /// client was told is for us to say.
    fn tell_parameters(&mut self) {
        if self.frontend.told.knows(&self.backend.parameters) {
            return;
        }
        let mut messages = Vec::new();
        for (name, value) in self.frontend.told.missing(&self.backend.parameters) {
            if self.frontend.note_parameter(&name, &value) {
                parameters::put(&mut messages, &name, &value);
            }
        }
        self.inject(&messages);
    }

    fn ready(&mut self, header: frame::Header) -> Result<(), Fault> {
        self.backend.transaction = match self.body(header) {
            b"I" => Transaction::Idle,
            b"T" => Transaction::Open,
            b"E" => Transaction::Failed,
            _ => {
                return Err(self
                    .server_lost(io::Error::new(io::ErrorKind::InvalidData, "unknown transaction status")));
            }
        };
        self.backend.in_unit = false;
        self.backend.skipping = false;
        let forward = match self.backend.expect.pop_front() {
            // The query in front of our own Sync was skipped: its ReadyForQuery is this one.
            Some(Expect::Sync { forward }) => forward || self.setting_failed,
            _ => true,
        };
        if forward {
            self.tell_parameters();
        }
        self.pass_message(header.length, forward);
        self.injections();
        Ok(())
    }

    /// An error: everything up to the next Sync is skipped, what was due there does not come.
    fn error(&mut self, header: frame::Header) {
        let start = self.at;
        let data = &self.backend.inbox.data()[start..];
        let length = header.length.min(data.len());
        let fields = frame::error_fields(&data[HEADER..length]);
        let replaced = match self.backend.expect.front() {
            Some(Expect::FailAs(error)) => Some(error.clone()),
            _ => None,
        };
        let ours = self.backend.skip_to_sync();
        self.failed = true;
        self.stale_plan |= fields.stale_plan;
        self.setting_failed |= ours && !self.decided;
        if ours && fields.code == INVALID_NAME {
            let error = &self.backend.inbox.data()[start + HEADER..start + length];
            self.frontend.carried.drop_named_in(error);
        }
        self.dying |= fields.fatal;
        let cause = if replaced.is_some() { None } else { self.refusal_cause(fields, ours) };
        if cause.is_none() {
            // Otherwise another attempt may name them yet.
            self.frontend.statements.forget_expected();
        }
        match (cause, replaced) {
            (Some(cause), _) if self.refused.is_none() => {
                let raw = self.kept_back_with(start..start + length);
                self.refused = Some(Refused { raw, cause, code: fields.code });
                self.pass_message(header.length, true);
            }
            (_, Some(error)) => {
                self.pass_message(header.length, false);
                self.inject(&error);
            }
            _ => self.pass_message(header.length, true),
        }
        if fields.fatal {
            self.end_by_server();
        }
    }

    /// What the client would have got so far, an error at its end: what it gets if no other server
    /// is asked.
    fn kept_back_with(&self, error: Range<usize>) -> Vec<u8> {
        let data = self.backend.inbox.data();
        [&self.backend.pending, &data[self.from..error.start], &data[error]].concat()
    }

    /// Whether the client believes to be in a transaction, also where its BEGIN went just ahead.
    fn in_transaction(&self) -> bool {
        matches!(self.backend.transaction, Transaction::Open | Transaction::Failed) || self.began
    }

    /// FATAL: nothing follows. The client has its error and is told that it may go on.
    fn end_by_server(&mut self) {
        let due = self
            .backend
            .expect
            .iter()
            .any(|expect| matches!(expect, Expect::Sync { .. } | Expect::Query | Expect::FunctionCall));
        self.backend.expect.clear();
        self.backend.in_unit = !due;
        if due && self.refused.is_none() {
            // The transaction is gone with its server, but for the client it has to be ended.
            let open = self.in_transaction();
            self.inject(if open { &frame::READY_FAILED } else { &frame::READY_IDLE });
        }
    }

    /// Whether, and why, this error is kept from the client for another attempt.
    fn refusal_cause(&self, fields: frame::ErrorFields, ours: bool) -> Option<RefusedCause> {
        if self.forwarded || self.decided || self.terms.may_refuse == MayRefuse::No {
            return None;
        }
        if fields.stale_plan {
            return Some(RefusedCause::Replan);
        }
        if self.terms.may_refuse == MayRefuse::Replan {
            return None;
        }
        let class = refusal::classify(&fields.code);
        if class == ErrorClass::Stopping {
            // Only 57P01 shows that nothing was committed: 57P02 strikes anywhere.
            let harmless = self.terms.may_refuse == MayRefuse::Any || fields.code == *b"57P01";
            return (fields.fatal && harmless && !self.noticed).then_some(RefusedCause::Stopping);
        }
        if self.terms.may_refuse == MayRefuse::Stopping {
            return (class == ErrorClass::Writes && !ours).then_some(RefusedCause::Writes);
        }
        if ours {
            return Some(RefusedCause::Setting);
        }
        match class {
            ErrorClass::Writes => Some(RefusedCause::Writes),
            ErrorClass::Standby => Some(RefusedCause::Standby),
            ErrorClass::MaybeStale => Some(RefusedCause::MaybeStale),
            _ => None,
        }
    }

    /// Passes the client's COPY data on until it ends, or the server has had enough.
    async fn copy_in(&mut self) -> Result<(), Fault> {
        let mut inbox = self.frontend.take_inbox_behind_batch();
        let mut rest = 0;
        let result = self.pump_copy(&mut inbox, &mut rest).await;
        self.frontend.give_inbox(inbox, rest);
        result
    }

    async fn pump_copy(&mut self, inbox: &mut inbox::Inbox, rest: &mut usize) -> Result<(), Fault> {
        let mut last = false;
        let watch = self.terms.watch;
        loop {
            let (length, ended) = copy_part(inbox.data(), rest, &mut last, self.failed)?;
            if length > 0 {
                self.send(&inbox.data()[..length]).await?;
                inbox.consume(length);
            }
            if ended || (self.failed && *rest == 0) {
                return Ok(());
            }
            let step = std::future::poll_fn(|cx| {
                let backend = &mut *self.backend;
                if watch.poll_over(cx, false).is_ready() {
                    return Poll::Ready(Err(Side::Server(given_up())));
                }
                if let Poll::Ready(read) = backend.inbox.poll_fill(cx, &mut backend.stream) {
                    return Poll::Ready(read.map(Step::Read).map_err(Side::Server));
                }
                inbox
                    .poll_fill(cx, &mut self.frontend.stream)
                    .map(|read| read.map(Step::Wrote).map_err(Side::Client))
            })
            .await;
            match step {
                Ok(Step::Read(0)) => return Err(self.server_lost(eof())),
                Ok(Step::Read(_)) => {
                    self.scan()?;
                    self.flush().await?;
                }
                Ok(Step::Wrote(0)) => return Err(Fault::Client(eof())),
                Ok(Step::Wrote(_)) => {}
                Err(Side::Server(error)) => return Err(self.server_lost(error)),
                Err(Side::Client(error)) => return Err(Fault::Client(error)),
            }
        }
    }

    fn finish(self, request: &Request<Box<Batch>>) -> Result<Reply, Fault> {
        let open = self.in_transaction();
        let Self { backend, frontend, terms, .. } = self;
        for carried in [&mut backend.carried, &mut frontend.carried] {
            carried.learn_ahead(terms.ahead_savepoints);
        }
        let mut lost = false;
        if self.dying {
            lost = open;
            backend.closed = true;
            backend.transaction = Transaction::Idle;
        }
        let transaction = match backend.transaction {
            Transaction::Idle if backend.in_unit && !self.dying => Transaction::Unit,
            other => other,
        };
        let outcome = Outcome { failed: self.failed, rolled_back: self.rolled_back, transaction };
        backend.learn(&request.intent, outcome, self.terms.session, frontend);
        frontend.learn(&request.intent, outcome);
        frontend.consume(&request.wire);
        Ok(Reply { transaction, failed: self.failed, warned: false, wrote: None, lost })
    }
}

/// A setting's name that no server accepts any more: an extension was loaded that reserves the prefix.
const INVALID_NAME: [u8; 5] = *b"42602";

/// How a request ended, for what is carried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub failed: bool,
    /// Its last command was answered with ROLLBACK.
    pub rolled_back: bool,
    pub transaction: Transaction,
}

/// The error of a statement that could not be prepared here, as that of the request itself.
fn stale_refusal(fault: Fault) -> Fault {
    match fault {
        Fault::Refused(refused) => {
            let cause = match refusal::classify(&refused.code) {
                ErrorClass::Standby => RefusedCause::Standby,
                ErrorClass::MaybeStale => RefusedCause::MaybeStale,
                _ => RefusedCause::Setting,
            };
            Refused { cause, ..refused }.into()
        }
        other => other,
    }
}

enum Side {
    Server(io::Error),
    Client(io::Error),
}

/// How much of the client's bytes belongs to its COPY, and whether the COPY ends with them.
/// `rest`: bytes of a message that have not arrived; `last`: of CopyDone or CopyFail. `finish`:
/// the server has ended the COPY, only a message that has begun is passed on.
fn copy_part(data: &[u8], rest: &mut usize, last: &mut bool, finish: bool) -> Result<(usize, bool), Fault> {
    let mut at = 0;
    loop {
        let part = (*rest).min(data.len() - at);
        at += part;
        *rest -= part;
        if *rest > 0 {
            return Ok((at, false));
        }
        if *last || finish {
            return Ok((at, *last));
        }
        let Some(header) = frame::client_header(&data[at..]).map_err(Fault::Protocol)? else {
            return Ok((at, false));
        };
        if header.tag == b'X' {
            return Err(Fault::Client(eof()));
        }
        *rest = header.length;
        *last = matches!(header.tag, b'c' | b'f');
    }
}
