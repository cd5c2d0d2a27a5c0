//! Our end of a client's connection: cuts commands out of what arrives and knows what the client
//! was told.

mod query;
mod statements;

use std::{collections::HashMap, io, sync::Arc, time::Instant};

use smallvec::SmallVec;

use super::{
    command::{self, Command, Cut, GATHERED, Tail, code},
    completion::Completion,
    compress::{Algorithm, Unreadable, Wire},
    done::Done,
    gate::Gate,
    login::{self, client::Login, response::Response, scramble::NONCE},
    packet::{self, capability as can, status, u32_le},
    prepared::{ClientStatements, OwnStatement},
    refusal::Numbers,
    settings::{Carried, NAMES},
};
use crate::{
    greetings::Since,
    inbox::Inbox,
    metrics::ClusterMetrics,
    protocol::{Fault, Identity, ReaderContext, Request, Transaction},
    refusal::{Refusal, RefusalKind},
    sql::{
        self, Access, Dialect, Effect, Intent, LexModes, Reason,
        effects::{Discard, Ending, PinReason, Whom, said_of_next},
    },
    standing::attend,
    stream::{self, Stream},
};

/// The variable that makes a session's transactions read-only.
const READ_ONLY: &str = "transaction_read_only";

/// The variable that says how COMMIT and ROLLBACK go on.
const COMPLETION: &str = "completion_type";

/// SQL PREPARE names of one client.
const MAX_OWN_STATEMENTS: usize = 4096;

/// A client that has logged in.
pub struct Frontend {
    pub(super) stream: Wire,
    pub(super) inbox: Inbox,
    pub(super) reader: Option<ReaderContext>,
    pub(super) capabilities: u64,
    pub(super) number: u32,
    nonce: [u8; NONCE],
    pub(super) user: Arc<str>,
    pub(super) statements: ClientStatements,
    /// SQL PREPARE, by name.
    pub(super) own: HashMap<Box<str>, OwnStatement>,
    pub(super) carried: Carried,
    pub(super) modes: LexModes,
    /// What a reset goes back to.
    pub(super) startup_modes: LexModes,
    pub(super) gate: Arc<Gate>,
    /// Whom COM_CHANGE_USER has made of the client.
    pub(super) renewed: Option<Identity<super::Mysql>>,
    /// What the login brought, until `welcome` has used it.
    pub(super) startup: Option<Startup>,
    /// Code, length and what is to come of the command at the front of the inbox.
    arrived: Option<(u8, usize, Option<Tail>)>,
    /// Sequence number of what we send next.
    pub(super) sequence: u8,
    /// Bytes of the current command that are still in the inbox.
    unconsumed: usize,
    /// What of the current command has not been read.
    pub(super) tail: Option<Tail>,
    /// As the server's status flag.
    pub(super) autocommit: bool,
    /// The server's status flags that tell how strings are to be written.
    pub(super) lexing: u16,
    /// How its COMMIT and ROLLBACK go on.
    pub(super) completion: Completion,
    /// What a reset, and DEFAULT, goes back to.
    pub(super) startup_completion: Completion,
    /// The transaction as the client was told last, for what is answered without asking.
    pub(super) told: Transaction,
    /// The transaction that is open is READ ONLY.
    pub(super) read_only: bool,
    /// The session's transactions are, where they do not say otherwise.
    pub(super) reads_only: bool,
    /// What SET TRANSACTION said of the next one.
    pub(super) next_read_only: Option<bool>,
    /// SET TRANSACTION has said something of it, which no server has heard yet.
    pub(super) next_said: bool,
    /// The servers are MariaDB's.
    pub(super) mariadb: bool,
    /// The server has ended its connection at the client's request: so do we.
    pub(super) leaving: bool,
    /// A cursor's statement was closed: the next request frees the connection.
    pub(super) cursor_closed: bool,
    /// Of errors, that the client takes from a server.
    pub(super) numbers: Numbers,
}

/// What the client asked for when it logged in.
#[derive(Debug)]
pub struct Startup {
    pub schema: Option<String>,
    pub collation: u8,
    pub compression: Option<Algorithm>,
    /// When nobody knew what it is to be told.
    pub unknown_since: Option<Since>,
}

impl Frontend {
    pub(super) fn new(login: Login, number: u32, user: Arc<str>, gate: Arc<Gate>) -> Self {
        Self {
            stream: login.stream,
            inbox: login.inbox,
            reader: None,
            capabilities: login.capabilities,
            number,
            nonce: login.nonce,
            user,
            statements: ClientStatements::default(),
            own: HashMap::new(),
            carried: Carried::default(),
            modes: LexModes::default_of(Dialect::Mysql),
            startup_modes: LexModes::default_of(Dialect::Mysql),
            gate,
            renewed: None,
            startup: Some(Startup {
                schema: login.schema,
                collation: login.collation,
                compression: login.compression,
                unknown_since: None,
            }),
            arrived: None,
            sequence: login.sequence.wrapping_add(1),
            unconsumed: 0,
            tail: None,
            autocommit: true,
            lexing: 0,
            completion: Completion::default(),
            startup_completion: Completion::default(),
            told: Transaction::Idle,
            read_only: false,
            reads_only: false,
            next_read_only: None,
            next_said: false,
            mariadb: false,
            leaving: false,
            cursor_closed: false,
            numbers: login.numbers,
        }
    }

    /// Waits for the next command; `false`: the client has left, or has to. Dropping the future loses nothing.
    pub(super) async fn await_request(&mut self) -> Result<bool, Fault> {
        loop {
            if self.leaving {
                return Ok(false);
            }
            if self.tail.is_some() {
                self.drop_tail().await?;
            }
            if self.stream.is_compressed() {
                // Only of the first packet: what follows may be another command's.
                let first = self.inbox.len().min(packet::HEADER);
                command::number(&mut self.inbox.data_mut()[..first]);
            }
            if !self.inbox.is_empty()
                && let Cut::Command { code, length, tail } =
                    command::cut(self.inbox.data()).map_err(Fault::Protocol)?
            {
                self.arrived = Some((code, length, tail));
                return Ok(code != code::QUIT);
            }
            if self.inbox.fill(&mut self.stream).await.map_err(unread)? == 0 {
                return Ok(false);
            }
        }
    }

    /// Takes the command that has arrived; answers what nobody else has to see.
    pub(super) async fn take_request(&mut self) -> Result<Option<Request<Command>>, Fault> {
        let Some((code, length, tail)) = self.arrived.take() else { return Ok(None) };
        self.sequence = packet::count(length);
        self.stream.begin_answer(self.inbox.len() > length);
        if self.stream.is_compressed() {
            command::number(&mut self.inbox.data_mut()[..length]);
        }
        self.unconsumed = length;
        self.tail = tail;
        self.request(code).await
    }

    /// Reads what is left of a command that nobody wants any more. Its answer is numbered behind all of it.
    pub(super) async fn drop_tail(&mut self) -> Result<(), Fault> {
        while let Some(mut tail) = self.tail {
            if tail.rest > 0 {
                if self.inbox.is_empty() {
                    self.hear().await?;
                }
                let part = tail.rest.min(self.inbox.len());
                self.inbox.consume(part);
                tail.rest -= part;
                self.tail = Some(tail);
            } else if tail.continues {
                let header = loop {
                    if let Some(header) = packet::header(self.inbox.data()) {
                        break header;
                    }
                    self.hear().await?;
                };
                self.inbox.consume(packet::HEADER);
                let continues = header.length == packet::MAX_PAYLOAD;
                self.tail = Some(Tail { rest: header.length, continues, next: tail.next.wrapping_add(1) });
            } else {
                self.tail = None;
                self.sequence = tail.next;
            }
        }
        Ok(())
    }

    /// Waits for more of a command.
    async fn hear(&mut self) -> Result<(), Fault> {
        let read = self.inbox.fill(&mut self.stream);
        match attend(ReaderContext::entry_of(self.reader.as_ref()), read).await.map_err(unread)? {
            0 => Err(Fault::Client(eof())),
            _ => Ok(()),
        }
    }

    /// Reads the command at the front; `None`: it is dealt with.
    async fn request(&mut self, code: u8) -> Result<Option<Request<Command>>, Fault> {
        if code == code::STMT_SEND_LONG_DATA {
            self.long_data().await?;
            return Ok(None);
        }
        // Of an execution it is a few bytes.
        let argument: SmallVec<[u8; 64]> =
            SmallVec::from_slice(&command::argument(&self.inbox.data()[..self.unconsumed]));
        match code {
            code::QUERY => self.query(&argument).await,
            code::STMT_PREPARE => self.prepare(&argument).await,
            code::STMT_EXECUTE => self.execute(&argument).await,
            code::STMT_BULK_EXECUTE if self.capabilities & can::STMT_BULK_OPERATIONS != 0 => {
                self.bulk_execute(&argument).await
            }
            code::STMT_FETCH | code::STMT_RESET => self.of_statement(code, &argument).await,
            code::STMT_CLOSE => {
                let id = self.statement_id(&argument).map_or(0, |(id, _)| id);
                self.cursor_closed |= self.statements.remove(id).is_some_and(|handle| handle.cursor);
                self.consume();
                Ok(None)
            }
            code::PING => {
                self.consume();
                self.tell_done().await?;
                Ok(None)
            }
            code::INIT_DB => {
                // In a character set of the client's it is told by the server.
                let effect = Effect::UseDatabase(String::from_utf8_lossy(&argument).into());
                Ok(Some(self.plain(code, Access::Read, Reason::Session, vec![effect])))
            }
            code::FIELD_LIST => Ok(Some(self.plain(code, Access::Read, Reason::Read, Vec::new()))),
            code::STATISTICS | code::PROCESS_INFO | code::DEBUG | code::REFRESH => {
                Ok(Some(self.plain(code, Access::Write, Reason::Server, Vec::new())))
            }
            code::SET_OPTION => Ok(Some(self.plain(code, Access::Read, Reason::Session, Vec::new()))),
            code::RESET_CONNECTION => {
                let effects = vec![Effect::Discard(Discard::All)];
                Ok(Some(self.plain(code, Access::Read, Reason::Session, effects)))
            }
            code::PROCESS_KILL => {
                let Some((id, _)) = u32_le(&argument) else { return Err(malformed()) };
                let whom = Whom::Number(u64::from(id));
                let effects = vec![Effect::Kill { whom, ending: Ending::SESSION }];
                Ok(Some(self.plain(code, Access::Read, Reason::Session, effects)))
            }
            // Boxed: a login is large, and every idle client has room for what comes next.
            code::CHANGE_USER => Box::pin(self.change_user(&argument)).await,
            code::BINLOG_DUMP | code::TABLE_DUMP | code::REGISTER_SLAVE | code::BINLOG_DUMP_GTID => {
                let text = "the proxy passes on no binary log: replicate from a server itself";
                self.reject(RefusalKind::Unsupported, text.to_owned()).await?;
                Ok(None)
            }
            _ => {
                self.reject(RefusalKind::Protocol, "Unknown command".to_owned()).await?;
                Ok(None)
            }
        }
    }

    /// COM_CHANGE_USER: a login of its own, on the same connection.
    async fn change_user(&mut self, argument: &[u8]) -> Result<Option<Request<Command>>, Fault> {
        let Some(response) = Response::read_change(argument, self.capabilities) else {
            // MariaDB goes on with whom it had.
            self.leaving = !self.mariadb;
            self.reject(RefusalKind::Protocol, "Unknown command".to_owned()).await?;
            return Ok(None);
        };
        let wire = self.command(code::CHANGE_USER);
        self.consume();
        let stream = std::mem::replace(&mut self.stream, Wire::Bare(Stream::Moving));
        let inbox = std::mem::take(&mut self.inbox);
        let gate = self.gate.clone();
        let secret = async |user: &str| gate.secret(user).await;
        let nonce = self.nonce;
        let change = login::client::Change { stream, inbox, response, nonce };
        let login = login::client::change_user(change, gate.house(), secret);
        let patience = tokio::time::timeout(gate.login_timeout, login);
        let login = attend(ReaderContext::entry_of(self.reader.as_ref()), async { Ok(patience.await) }).await;
        let login = match login.map_err(Fault::Client)?.map_err(|late| Fault::Client(late.into()))? {
            Ok(login) => login,
            Err(failure) => {
                let fault = super::gate::login_fault(&failure);
                if let Some(metrics) = self.metrics() {
                    metrics.turned_away(fault);
                }
                return Err(Fault::Client(io::Error::other(failure)));
            }
        };
        self.user = login.user.as_str().into();
        self.renewed = Some(super::gate::identity(&login));
        self.stream = login.stream;
        self.inbox = login.inbox;
        self.sequence = login.sequence.wrapping_add(1);
        self.startup = Some(Startup {
            schema: login.schema,
            collation: login.collation,
            compression: None,
            unknown_since: None,
        });
        self.statements.clear();
        self.own.clear();
        self.reads_only = false;
        (self.next_read_only, self.next_said) = (None, false);
        Ok(Some(Request { intent: Arc::new(Intent::of_session(1)), wire }))
    }

    /// Whom the errors of this end are counted by.
    fn metrics(&self) -> Option<&ClusterMetrics> {
        self.reader.as_ref()?.metrics.as_deref()
    }

    pub(super) fn count(&self, kind: RefusalKind) {
        if let Some(metrics) = self.metrics() {
            metrics.error(kind.label());
        }
    }

    /// Answers the current command with an error.
    async fn reject(&mut self, kind: RefusalKind, message: String) -> Result<(), Fault> {
        self.consume();
        self.drop_tail().await?;
        self.count(kind);
        let mut out = Vec::new();
        super::refusal::put_error(&mut out, self.sequence, &Refusal::new(kind, message), self.numbers);
        self.write(&out).await
    }

    fn command(&self, code: u8) -> Command {
        let length = self.unconsumed;
        let text_at = packet::HEADER + 1;
        Command { code, length, text_at, tail: self.tail, text: None, rewritten: None, statement: None }
    }

    fn plain(&mut self, code: u8, access: Access, reason: Reason, effects: Vec<Effect>) -> Request<Command> {
        let mut wire = self.command(code);
        wire.text = matches!(effects[..], [Effect::Discard(_)]).then(|| "RESET CONNECTION".into());
        let intent = Intent { access, reason, effects, ..Intent::of_session(1) };
        Request { intent: self.closing_cursor(Arc::new(intent)), wire }
    }

    pub(super) fn classify(&self, text: &[u8]) -> Arc<Intent> {
        self.classify_in(self.modes, text)
    }

    pub(super) fn classify_in(&self, modes: LexModes, text: &[u8]) -> Arc<Intent> {
        let reader = self.reader.as_ref().expect("statements are read after the welcome");
        let catalog = reader.database.catalog();
        reader.classifier.intent(reader.database.id(), &catalog, modes, text, Instant::now)
    }

    /// Changes whenever a statement may be judged otherwise than before.
    pub(super) fn generation(&self) -> u64 {
        let reader = self.reader.as_ref().expect("statements are read after the welcome");
        reader.classifier.generation(reader.database.catalog_version())
    }

    /// The whole text of a query, as long as it is there.
    pub(super) fn string(&self, command: &Command) -> Option<&[u8]> {
        let is_here = self.unconsumed > 0 && command.tail.is_none();
        self.inbox.data().get(command.text_at..command.length).filter(|_| is_here)
    }

    /// The connection that a closed cursor was on is free after the next request that it sees.
    fn closing_cursor(&mut self, intent: Arc<Intent>) -> Arc<Intent> {
        let unseen =
            |intent: &Intent| intent.statements == 0 || intent.effects.iter().any(Effect::is_the_proxys);
        if !self.cursor_closed || unseen(&intent) {
            return intent;
        }
        self.cursor_closed = false;
        if self.statements.has_cursor() {
            return intent;
        }
        let mut intent = Intent::clone(&intent);
        intent.effects.push(Effect::Unpin(PinReason::Cursor));
        Arc::new(intent)
    }

    /// No server has answered the request that was to free the connection: the next one is.
    pub(super) fn recall_closed_cursor(&mut self, intent: &Intent) {
        self.cursor_closed |= intent.effects.contains(&Effect::Unpin(PinReason::Cursor));
    }

    /// Status flags of an answer of ours.
    pub(super) fn status(&self, transaction: Transaction) -> u16 {
        let autocommit = if self.autocommit { status::AUTOCOMMIT } else { 0 };
        let open = match (transaction, self.read_only) {
            (Transaction::Idle, _) => 0,
            (_, false) => status::IN_TRANSACTION,
            (_, true) => status::IN_TRANSACTION | status::IN_READ_ONLY_TRANSACTION,
        };
        autocommit | open | self.lexing
    }

    /// OK to a command that no server sees.
    async fn tell_done(&mut self) -> Result<(), Fault> {
        let mut out = Vec::new();
        packet::put_ok(&mut out, 1, self.status(self.told));
        self.write(&out).await
    }

    /// Whether attributes stand ahead of its statements and parameters have names.
    pub(super) fn sends_attributes(&self) -> bool {
        self.capabilities & can::QUERY_ATTRIBUTES != 0
    }

    pub(super) fn tracks_session(&self) -> bool {
        self.capabilities & can::SESSION_TRACK != 0
    }

    /// Drops a request that has been answered.
    pub(super) fn consume(&mut self) {
        self.inbox.consume(std::mem::take(&mut self.unconsumed));
    }

    /// Lends out the inbox without the current request, for what streams behind it.
    pub(super) fn take_inbox_behind_command(&mut self) -> Inbox {
        let mut inbox = std::mem::take(&mut self.inbox);
        inbox.consume(std::mem::take(&mut self.unconsumed));
        inbox
    }

    /// Follows what was said of the next transaction, as the session's state does. `begun_none`: the request
    /// failed before it could begin one.
    pub(super) fn note_next(&mut self, intent: &Intent, done: &Done, begun_none: bool) {
        if !begun_none && !intent.begins_none() {
            (self.next_read_only, self.next_said) = (None, false);
        }
        let failed = !matches!(done, Done::All);
        let done = done.effects(intent);
        if done.iter().any(|effect| matches!(effect, Effect::Set { name, .. } if &**name == READ_ONLY)) {
            self.next_read_only = None;
        }
        if let Some(modes) = said_of_next(done).filter(|_| begun_none || !failed) {
            self.next_read_only = modes.read_only.or(self.next_read_only);
            self.next_said = true;
        }
    }

    /// Follows what an answered request did to what the session carries.
    pub(super) fn learn(&mut self, request: &Request<Command>, done: &Done) {
        for effect in done.effects(&request.intent) {
            if let Some(name) = effect.replaced_name() {
                self.own.remove(name);
            }
            // A statement is prepared by what stands before it.
            self.carried.learn(std::slice::from_ref(effect));
            match effect {
                Effect::Set { name, value, .. } => self.note_setting(name, value),
                Effect::Reset { name } if &**name == READ_ONLY => self.reads_only = false,
                Effect::Reset { name } if &**name == COMPLETION => self.completion = self.startup_completion,
                Effect::Pin(PinReason::Setting) if names_completion(request) => {
                    self.completion = Completion::Unknown;
                }
                Effect::Prepare { name, statement, inner } if self.own.len() < MAX_OWN_STATEMENTS => {
                    let settings = self.carried.now().clone();
                    let own =
                        OwnStatement::new(statement.clone(), Intent::clone(inner), settings, self.modes);
                    self.own.insert(name.clone(), own);
                }
                Effect::Discard(Discard::All) => {
                    self.statements.clear();
                    self.own.clear();
                    self.modes = self.startup_modes;
                    self.reads_only = false;
                    self.completion = self.startup_completion;
                    (self.next_read_only, self.next_said) = (None, false);
                }
                _ => {}
            }
        }
        self.forget_replaced(done.tried(&request.intent));
    }

    /// What had the name of a SQL PREPARE before is gone.
    pub(super) fn forget_replaced(&mut self, effects: &[Effect]) {
        for name in effects.iter().filter_map(Effect::replaced_name) {
            self.own.remove(name);
        }
    }

    /// Follows the settings that say how this client's text is to be read, and what it is told with every answer.
    pub(super) fn note_setting(&mut self, name: &str, value: &str) {
        let value = value.trim_matches(['\'', '"']).to_ascii_lowercase();
        let is_on = matches!(&*value, "1" | "on" | "true");
        match name {
            READ_ONLY => self.reads_only = is_on,
            COMPLETION => self.completion = Completion::parse(&value),
            "autocommit" => self.autocommit = is_on,
            "sql_mode" => self.note_sql_mode(&value),
            NAMES | "character set" | "character_set_client" => {
                self.modes = self.modes.with_charset(&value);
            }
            _ => {}
        }
    }

    pub(super) fn note_sql_mode(&mut self, value: &str) {
        self.modes = self.modes.with_sql_mode(value);
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let sent = stream::send(&mut self.stream, bytes);
        attend(ReaderContext::entry_of(self.reader.as_ref()), sent).await.map_err(Fault::Client)
    }

    /// Resolves when the client has closed its side; what it sends is kept, up to a bound.
    pub(super) async fn closed(&mut self) {
        self.inbox.ended(&mut self.stream, GATHERED).await;
    }
}

/// Whether it may set `completion_type`, to a value that was computed.
fn names_completion(request: &Request<Command>) -> bool {
    let modes = LexModes::default_of(Dialect::Mysql);
    request.wire.text.as_deref().is_some_and(|text| sql::says_word(text, modes, COMPLETION))
}

/// What a text without statements is where a server is to answer it.
fn no_statement(intent: &Intent) -> Arc<Intent> {
    let (hints, fingerprint) = (intent.hints.clone(), intent.fingerprint);
    Arc::new(Intent { hints, fingerprint, ..Intent::of_session(1) })
}

fn malformed() -> Fault {
    Fault::Protocol(Refusal::fatal(RefusalKind::Protocol, "Malformed communication packet"))
}

/// What a client sends cannot be read: it is gone, or its frames make no sense.
pub(super) fn unread(error: io::Error) -> Fault {
    match Unreadable::of(&error) {
        Some(why) => Fault::Protocol(Refusal::fatal(RefusalKind::Compression, why.to_string())),
        None => Fault::Client(error),
    }
}

pub(super) fn eof() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed in mid-packet")
}
