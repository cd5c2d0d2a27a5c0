//! Runs one request on a server connection and streams its answer to the client.
//!
//! Bytes go out of the receive buffer as they came; only headers are looked at, and the few small
//! packets that decide something. Rows are never decoded.

mod ahead;
mod read_only;
mod scan;
mod send;

use std::{io, sync::Arc};

use super::{
    backend::Backend,
    command::{Command, code},
    done::Done,
    frontend::{Frontend, eof},
    packet::status,
    prepared::Statement,
    settings::quote_literal,
};
use crate::{
    inbox,
    passage::Passage,
    protocol::{Fault, MayRefuse, Refused, Reply, Request, Terms},
    sending::Sending,
    sql::{Effect, LexModes},
    standing,
    topology::Position,
};

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
    sending: Sending,
    /// A row or a success has come: the request cannot run elsewhere.
    decided: bool,
    failed: bool,
    /// By an error that comes before a transaction begins.
    begun_none: bool,
    /// A result came with warnings.
    warned: bool,
    refused: Option<Refused>,
    /// The error of a replica's `read_only`, in the place of which the client is to hear of its transaction.
    by_option: Option<Refused>,
    wrote: Option<Position>,
    /// An id came with the answer, or rows of what was written.
    told_id: bool,
    /// How text was read when the request came.
    modes: LexModes,
    /// Number of the last packet that was passed.
    passed: u8,
    /// Results that have come whole.
    completed: usize,
    /// The default schema and `sql_mode` as the server has told them last.
    schema: Option<Box<str>>,
    sql_mode: Option<Box<str>>,
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
            modes: frontend.modes,
            backend,
            frontend,
            terms: *terms,
            phase,
            continued: false,
            sending: Sending::default(),
            decided: false,
            failed: false,
            begun_none: false,
            warned: false,
            refused: None,
            by_option: None,
            wrote: None,
            told_id: false,
            passed: 0,
            completed: 0,
            schema: None,
            sql_mode: None,
            prepared: None,
            asked: 0,
        }
    }

    /// Sends the request, relays the answer, and says how it ended.
    pub(super) async fn run(&mut self, request: &Request<Command>) -> Result<Reply, Fault> {
        if self.terms.watch.is_over(false) {
            return Err(standing::unsent());
        }
        // What is rare is boxed: the future of every statement stays small.
        if self.has_to_prepare(request) {
            standing::watched(self.terms.watch, Box::pin(self.prepare_connection(request))).await?;
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

    /// Takes note of what the request leaves for MariaDB's SHOW WARNINGS.
    fn mind_warnings(&mut self, request: &Request<Command>) {
        let warns = self.warned || self.failed;
        if warns || !self.may_leave_warnings(request) {
            self.backend.warns = warns && self.backend.is_mariadb();
        }
    }

    /// Whether a request may leave alone the warnings of a statement before: a server forgets them for one that
    /// uses a table.
    fn may_leave_warnings(&self, request: &Request<Command>) -> bool {
        let intent = &request.intent;
        let runs = matches!(request.wire.code, code::QUERY | code::STMT_EXECUTE) && intent.statements == 1;
        !runs || intent.tables.names().is_none_or(<[_]>::is_empty)
    }

    fn server_lost(&mut self, error: io::Error) -> Fault {
        self.backend.closed = true;
        match self.refused.take() {
            Some(refused) => Fault::Refused(refused),
            None => Fault::Server {
                error,
                sent: self.sending.may_have_arrived(&self.backend.stream),
                forwarded: self.passage.forwarded(self.continued),
            },
        }
    }

    async fn relay_answers(&mut self, request: &Request<Command>) -> Result<(), Fault> {
        loop {
            match self.scan(request)? {
                Scan::Done => {
                    if let Some(error) = self.by_option.take() {
                        Box::pin(self.say_read_only(error)).await?;
                    }
                    if let Some(refused) = self.refused.take() {
                        self.passage.settle(&mut self.backend.inbox);
                        self.backend.busy = false;
                        self.mind_what_was_said(request);
                        self.mind_warnings(request);
                        let done = self.frontend.done_before_error(request, self.modes, 0);
                        self.backend.learn_own(self.frontend, &request.intent, &done);
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
            // What the proxy may have to add is numbered behind it.
            self.frontend.sequence = self.passed.wrapping_add(1);
            self.terms.begin_doubt();
            self.frontend.write(bytes).await?;
        }
        self.passage.settle(&mut self.backend.inbox);
        Ok(())
    }

    /// SET TRANSACTION ran here or ahead: until a COMMIT or ROLLBACK is seen, the next transaction may be still to
    /// come, and must not be another session's. `SET autocommit = 1`, for one, ends an open one and leaves that.
    fn mind_what_was_said(&mut self, request: &Request<Command>) {
        let effects = &request.intent.effects[..];
        let ends = matches!(effects, [Effect::Commit { chain: false } | Effect::Rollback { chain: false }]);
        if ends && !self.failed && request.intent.statements == 1 {
            self.backend.said_next = false;
            return;
        }
        let says = |effect: &Effect| matches!(effect, Effect::SetTransaction(_) | Effect::SetNext(_));
        let ahead = !self.terms.ahead.is_empty() && self.terms.ahead_sets_modes;
        self.backend.said_next |= ahead || effects.iter().any(says);
    }

    fn finish(&mut self, request: &Request<Command>) -> Result<Reply, Fault> {
        self.mind_what_was_said(request);
        self.mind_warnings(request);
        let done = match self.failed {
            false => Done::All,
            true => self.frontend.done_before_error(request, self.modes, self.completed),
        };
        let Self { backend, frontend, .. } = self;
        backend.gathered = self.passage.take_spare();
        frontend.sequence = 1;
        let command = &request.wire;
        frontend.note_next(&request.intent, &done, self.begun_none);
        frontend.learn(request, &done);
        if command.code == code::SET_OPTION && !self.failed {
            let argument = super::command::argument(frontend.inbox.data()).into_owned();
            let on = argument.first() == Some(&0);
            let settings = frontend.carried.now().with_multi_statements(on);
            frontend.carried.set(settings);
        }
        frontend.forget_values(command);
        if let Done::Until { done, .. } = &done
            && done.iter().any(|effect| matches!(effect, Effect::SetComputed { .. }))
        {
            // Whoever asks next may ask for the error: the server is asked nothing now.
            match self.sql_mode.take() {
                Some(value) => {
                    let statement = set_sql_mode(&value);
                    frontend.carried.set(frontend.carried.now().with("sql_mode", &statement));
                }
                None => backend.touched = true,
            }
        }
        let statement = command.statement.as_ref().map(|(_, statement)| statement.key);
        backend.learn(&request.intent, statement, &done, frontend.carried.now());
        let chosen = request.intent.effects.iter().rev().find_map(|effect| match effect {
            Effect::UseDatabase(name) => Some(name),
            _ => None,
        });
        // Other characters than ASCII's are read by the session's character set, and told in UTF-8.
        let is_known = !self.failed && chosen.is_some_and(|name| name.is_ascii());
        if let Some(schema) = self.schema.take().filter(|_| !is_known) {
            // Of a string that failed behind it, where no statement is undone by the error of another, or
            // of what was not understood.
            frontend.carried.set(frontend.carried.now().with_schema(Some(&schema)));
            backend.note_schema(&schema);
        }
        backend.learn_own(frontend, &request.intent, &done);
        frontend.autocommit = backend.status & status::AUTOCOMMIT != 0;
        frontend.lexing = backend.status & status::LEXING;
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
            wrote: self.wrote.take(),
            lost: false,
            begun_none: self.begun_none,
            told_id: self.told_id,
            done: done.into_part(),
        })
    }
}

/// `sql_mode` as the server has told it.
fn set_sql_mode(value: &str) -> String {
    format!("SET SESSION sql_mode = {}", quote_literal(value.as_bytes()))
}
