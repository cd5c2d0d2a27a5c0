//! Our end of a server connection: what it has, and questions of our own to it.

use std::{collections::HashMap, io, sync::Arc};

use smallvec::SmallVec;
use tokio::io::AsyncWriteExt;

use super::{
    command::code,
    done::Done,
    gate::{Link, Shared},
    insert_id::InsertId,
    login::{
        Credentials,
        server::{Connected, Exchange, Greeting},
    },
    packet::{
        self, ErrPacket, HEADER, MAX_PAYLOAD, OkPacket, capability as can, lenenc, lenenc_bytes, status,
    },
    parameters::NO_ATTRIBUTES,
    prepared::ServerStatements,
    settings::{SCHEMAS_CHARSET, Settings, Steps},
};
use crate::{
    inbox::Inbox,
    passage::worth_keeping,
    protocol::{ConnectFault, Fault, Forwarded, Identity, Refused, RefusedCause, Transaction},
    sql::{Effect, Intent, PinReason, effects::Discard},
    stream::{Home, Stream},
    topology::Role,
};

/// Rows in an answer to a question of our own: routines and views of a server.
const MOST_OWN_ROWS: usize = 1_000_000;

/// Statements with cursors that a connection tells apart.
const MAX_CURSORS: usize = 64;

/// A server connection that has logged in.
pub struct Backend {
    pub(super) stream: Stream,
    pub(super) inbox: Inbox,
    /// What is to be sent; empty between requests.
    pub(super) out: Vec<u8>,
    /// A spare buffer for the passage of an answer.
    pub(super) gathered: Vec<u8>,
    pub(super) capabilities: u64,
    pub(super) status: u16,
    pub(super) carried: Arc<Settings>,
    pub(super) statements: ServerStatements,
    /// SQL PREPARE: the hash of what is known here under a name of the clients'.
    pub(super) own: HashMap<Box<str>, u128>,
    /// Ids that are to be closed with the next command.
    pub(super) closing: Vec<u32>,
    /// An answer is on its way.
    pub(super) busy: bool,
    /// The server ends this connection, or it is beyond repair.
    pub(super) closed: bool,
    /// State of unknown kind was left: only a reset makes it another session's.
    pub(super) touched: bool,
    /// Locks that the session may have here, and gives back by a statement for all of a kind.
    locks: SmallVec<[PinReason; 2]>,
    /// User variables to which statements gave values that only the server knows.
    pub(super) assigned: SmallVec<[Box<str>; 2]>,
    /// Statements that may have a cursor open: it ends with them.
    cursors: SmallVec<[u128; 1]>,
    /// The session whose statement ran here last.
    pub(super) last_session: u64,
    /// Whose LAST_INSERT_ID() is here.
    pub(super) insert_id: InsertId,
    /// Something may be said of the next transaction, which is its session's that said it.
    pub(super) said_next: bool,
    /// MariaDB's: a statement has left warnings or an error here, and none since has used a table, which is
    /// what forgets them.
    pub(super) warns: bool,
    /// What every connection begins with was undone.
    pub(super) bare: bool,
    /// A replica's, and the session's own word has undone that its transactions are READ ONLY.
    unguarded: bool,
    pub(super) role: Role,
    pub(super) shared: Arc<Shared>,
    pub(super) address: Box<str>,
    user: Arc<str>,
    credentials: Credentials,
    greeting: Greeting,
    pub(super) home: Home,
}

/// One row of text columns.
pub(crate) type Row = Vec<Option<String>>;

/// Gets a row's payload and its number of columns; `None` for one that makes no sense, or is too much.
type TakeRow<'a> = dyn FnMut(&[u8], u64) -> Option<()> + Send + 'a;

impl Backend {
    pub(super) fn new(
        connected: Connected,
        address: &str,
        role: Role,
        link: &Link,
        identity: &Identity<super::Mysql>,
    ) -> Self {
        Self {
            stream: connected.stream,
            inbox: connected.inbox,
            out: Vec::new(),
            gathered: Vec::new(),
            capabilities: connected.capabilities,
            status: status::AUTOCOMMIT,
            carried: Arc::default(),
            statements: ServerStatements::new(link.prepared_statements),
            own: HashMap::new(),
            closing: Vec::new(),
            busy: false,
            closed: false,
            touched: false,
            locks: SmallVec::new(),
            assigned: SmallVec::new(),
            cursors: SmallVec::new(),
            last_session: 0,
            insert_id: InsertId::default(),
            said_next: false,
            warns: false,
            bare: true,
            unguarded: false,
            role,
            shared: link.shared.clone(),
            address: address.into(),
            user: identity.user.clone(),
            credentials: identity.credentials.clone(),
            greeting: connected.greeting,
            home: Home::here(),
        }
    }

    pub(super) fn thread(&self) -> u32 {
        self.greeting.thread
    }

    pub(crate) fn is_mariadb(&self) -> bool {
        self.greeting.version.contains("MariaDB")
    }

    pub(super) fn deprecates_eof(&self) -> bool {
        self.capabilities & can::DEPRECATE_EOF != 0
    }

    pub(super) fn open_transaction(&self) -> Transaction {
        if self.status & status::IN_TRANSACTION != 0 { Transaction::Open } else { Transaction::Idle }
    }

    pub(super) fn give_out(&mut self, out: Vec<u8>) {
        self.out = worth_keeping(out);
    }

    /// What every connection begins with: the server tells what changes in the session, and a
    /// replica's takes no writes, whoever the user is (hard case 10).
    pub(super) async fn initialise(&mut self) -> Result<(), Fault> {
        if self.role == Role::Unknown {
            self.bare = false;
            return Ok(());
        }
        let gtids = if self.is_mariadb() { "" } else { ", session_track_gtids = OWN_GTID" };
        let track = format!(
            "SET session_track_schema = 1, session_track_state_change = 1, session_track_system_variables = '*'{gtids}"
        );
        self.query_all(&track).await?;
        self.guard().await?;
        self.bare = false;
        Ok(())
    }

    /// What else a connection begins with cannot be said within a transaction (1766).
    async fn guard(&mut self) -> Result<(), Fault> {
        if self.role == Role::Replica {
            self.query_all("SET SESSION TRANSACTION READ ONLY").await?;
        }
        self.unguarded = false;
        Ok(())
    }

    /// Whether a replica's transactions are READ ONLY unless they say otherwise.
    pub(super) fn is_guarded(&self) -> bool {
        self.role == Role::Replica && !self.unguarded && !self.bare
    }

    /// Whether a session can leave it without a trace.
    pub(super) fn is_untouched(&self) -> bool {
        !self.touched && self.locks.is_empty() && self.cursors.is_empty()
    }

    /// Whether it needs no bringing to a session's settings.
    pub(super) fn is_at(&self, wanted: &Settings) -> bool {
        !self.bare && !self.unguarded && self.carried.hash() == wanted.hash()
    }

    /// Brings the connection to a session's settings, a step at a time: a step that fails keeps
    /// the rest from being taken, and the request from being run (hard case 12).
    pub(super) async fn bring(&mut self, wanted: &Arc<Settings>) -> Result<(), Fault> {
        if self.bare {
            self.initialise().await?;
        } else if self.unguarded {
            self.guard().await?;
        }
        if self.carried.hash() == wanted.hash() {
            return Ok(());
        }
        let steps = wanted.steps_from(&self.carried, self.role == Role::Replica);
        if steps.forget_schema {
            // Nothing but a new login forgets a schema.
            self.log_in_again().await?;
            return Box::pin(self.bring(wanted)).await;
        }
        // A step that fails leaves the connection in between: only a reset tells where.
        let touched = std::mem::replace(&mut self.touched, true);
        self.take(&steps).await?;
        self.carried = wanted.clone();
        self.touched = touched;
        Ok(())
    }

    async fn log_in_again(&mut self) -> Result<(), Fault> {
        let credentials = self.credentials.clone();
        let mut exchange = Exchange {
            stream: std::mem::replace(&mut self.stream, Stream::Moving),
            inbox: std::mem::take(&mut self.inbox),
            sequence: 0,
            credentials: &credentials,
        };
        let result = exchange.log_in_again(&self.greeting, &self.user, self.capabilities).await;
        self.stream = exchange.stream;
        self.inbox = exchange.inbox;
        match result {
            Ok(()) => {
                self.status = status::AUTOCOMMIT;
                self.carried = Arc::default();
                self.forget();
                self.carried = Arc::default();
                self.initialise().await
            }
            Err(ConnectFault::Refused { raw, code }) => {
                self.closed = true;
                Err(Fault::Refused(Refused { raw, cause: RefusedCause::Setting, code }))
            }
            Err(ConnectFault::Unreachable(error)) => Err(unsent(error)),
            Err(_) => Err(unsent(io::ErrorKind::ConnectionRefused.into())),
        }
    }

    async fn take(&mut self, steps: &Steps) -> Result<(), Fault> {
        let (early, late) = match &steps.schema {
            Some(schema) if !schema.is_ascii() => (Some(schema), None),
            other => (None, other.as_ref()),
        };
        if let Some(schema) = early {
            self.query_all(SCHEMAS_CHARSET).await?;
            self.select_schema(schema).await?;
        }
        for statement in &steps.statements {
            self.query_all(statement).await?;
        }
        if let Some(schema) = late {
            self.select_schema(schema).await?;
        }
        if let Some(on) = steps.multi_statements {
            self.command(code::SET_OPTION, &u16::from(!on).to_le_bytes()).await?;
        }
        Ok(())
    }

    pub(super) async fn select_schema(&mut self, schema: &str) -> Result<(), Fault> {
        self.command(code::INIT_DB, schema.as_bytes()).await.map(drop)
    }

    /// A schema was selected for a session that is being welcomed.
    pub(super) fn note_schema(&mut self, schema: &str) {
        self.carried = Arc::new(self.carried.with_schema(Some(schema)));
    }

    /// Follows what an answered request, of the prepared `statement`, did to this connection.
    pub(super) fn learn(
        &mut self,
        intent: &Intent,
        statement: Option<u128>,
        done: &Done,
        now: &Arc<Settings>,
    ) {
        // What leaves state is minded wherever it stands.
        for effect in &intent.effects {
            match effect {
                Effect::Pin(PinReason::Cursor) => self.note_cursor(statement),
                Effect::Unpin(PinReason::Cursor) => self.end_cursors(),
                Effect::Pin(reason @ (PinReason::TableLock | PinReason::NamedLock)) => {
                    self.locks.retain(|lock| lock != reason);
                    self.locks.push(*reason);
                }
                Effect::Touches | Effect::Pin(_) => self.touched = true,
                Effect::Assigns { name } => self.note_assigned(name),
                Effect::Unpin(reason) if matches!(done, Done::All) => {
                    self.locks.retain(|lock| lock != reason);
                }
                _ => {}
            }
        }
        self.touched |= done.tried(intent).iter().any(sets_something);
        let mut reset = false;
        for effect in done.effects(intent) {
            match effect {
                Effect::Discard(Discard::All) => {
                    self.forget();
                    reset = true;
                }
                Effect::Set { name, .. } | Effect::Reset { name } if &**name == "transaction_read_only" => {
                    self.unguarded |= self.role == Role::Replica;
                }
                _ => {}
            }
        }
        // Behind a reset it is as it was opened, which may not be what the client's login asked for.
        if !reset && !matches!(done, Done::Nothing | Done::Unknown) {
            self.carried = now.clone();
        }
    }

    /// A statement was executed with a cursor. More than a few are not told apart: a reset closes them.
    fn note_cursor(&mut self, statement: Option<u128>) {
        match statement {
            Some(key) if self.cursors.contains(&key) => {}
            Some(key) if self.cursors.len() < MAX_CURSORS => self.cursors.push(key),
            _ => self.touched = true,
        }
    }

    /// The session has none any more; the server closes them with their statements.
    fn end_cursors(&mut self) {
        for key in std::mem::take(&mut self.cursors) {
            self.closing.extend(self.statements.remove(key));
        }
    }

    /// The server has forgotten all session state.
    fn forget(&mut self) {
        self.statements.clear();
        self.closing.clear();
        self.own.clear();
        let touched = std::mem::take(&mut self.touched);
        self.insert_id = InsertId::default();
        self.locks.clear();
        self.assigned.clear();
        self.cursors.clear();
        self.said_next = false;
        self.warns = self.is_mariadb();
        self.bare = true;
        let multi_statements = self.carried.multi_statements;
        // A reset leaves the schema, and what was not understood may have chosen another one.
        let schema = if touched { Some(UNKNOWN_SCHEMA.into()) } else { self.carried.schema.clone() };
        let fresh =
            Settings::default().with_schema(schema.as_deref()).with_multi_statements(multi_statements);
        self.carried = Arc::new(fresh);
    }

    /// Rolls back what is open and forgets all session state but the default schema, which the next
    /// session sets anew.
    pub(super) async fn clean(&mut self) -> Result<(), Fault> {
        if self.busy || self.closed {
            // An answer is still on its way: nobody can tell it from the next session's.
            return Err(lost(io::ErrorKind::ConnectionAborted.into()));
        }
        self.command(code::RESET_CONNECTION, b"").await?;
        self.forget();
        self.initialise().await
    }

    /// Runs one statement of ours and returns its rows as text.
    ///
    /// # Errors
    /// [`Fault::Refused`] with the server's error, [`Fault::Server`] when the connection broke.
    pub(crate) async fn query_all(&mut self, sql: &str) -> Result<Vec<Row>, Fault> {
        self.command(code::QUERY, sql.as_bytes()).await
    }

    /// How many rows answer one statement of ours, whatever is in them.
    ///
    /// # Errors
    /// As [`Self::query_all`].
    pub(super) async fn count_rows(&mut self, sql: &str) -> Result<usize, Fault> {
        let mut count = 0;
        let mut take = |_: &[u8], _| {
            count += 1;
            Some(())
        };
        self.ask(code::QUERY, sql.as_bytes(), &mut take).await?;
        Ok(count)
    }

    /// Sends a command of ours and gathers its answer.
    pub(super) async fn command(&mut self, code: u8, argument: &[u8]) -> Result<Vec<Row>, Fault> {
        let mut rows = Vec::new();
        let mut take = |row: &[u8], columns| {
            rows.push(parse_row(row, columns)?);
            (rows.len() <= MOST_OWN_ROWS).then_some(())
        };
        self.ask(code, argument, &mut take).await?;
        Ok(rows)
    }

    /// Sends a command of ours and hands its rows, with their number of columns, to `take`.
    async fn ask(&mut self, code: u8, argument: &[u8], take: &mut TakeRow<'_>) -> Result<(), Fault> {
        let mut out = Vec::with_capacity(HEADER + 1 + argument.len());
        if code == code::QUERY && self.capabilities & can::QUERY_ATTRIBUTES != 0 {
            packet::put_command(&mut out, code, &[NO_ATTRIBUTES, argument].concat());
        } else {
            packet::put_command(&mut out, code, argument);
        }
        self.busy = true;
        self.stream.write_all(&out).await.map_err(lost)?;
        self.stream.flush().await.map_err(lost)?;
        self.collect(take).await?;
        self.busy = false;
        Ok(())
    }

    /// Reads the answers to one command of ours.
    async fn collect(&mut self, take: &mut TakeRow<'_>) -> Result<(), Fault> {
        loop {
            let first = self.payload().await?;
            match first.first() {
                Some(&packet::ERR) => return Err(self.refused(&first)),
                Some(&packet::OK) => self.end_by_ok(&first)?,
                Some(&packet::EOF) => self.end_rows(&first)?,
                _ => {
                    let (columns, _) = lenenc(&first).ok_or_else(garbage)?;
                    self.read_rows(columns, take).await?;
                }
            }
            if self.status & status::MORE_RESULTS == 0 {
                return Ok(());
            }
        }
    }

    async fn read_rows(&mut self, columns: u64, take: &mut TakeRow<'_>) -> Result<(), Fault> {
        let definitions = columns + u64::from(!self.deprecates_eof());
        for _ in 0..definitions {
            self.skip_packet().await?;
        }
        loop {
            let row = self.payload().await?;
            match row.first() {
                Some(&packet::ERR) => return Err(self.refused(&row)),
                Some(&packet::EOF) => return self.end_rows(&row),
                _ => take(&row, columns).ok_or_else(garbage)?,
            }
        }
    }

    fn end_rows(&mut self, payload: &[u8]) -> Result<(), Fault> {
        if self.deprecates_eof() {
            return self.end_by_ok(payload);
        }
        self.status = packet::eof_status(payload).ok_or_else(garbage)?;
        Ok(())
    }

    fn end_by_ok(&mut self, payload: &[u8]) -> Result<(), Fault> {
        let ok = OkPacket::read(payload).ok_or_else(garbage)?;
        self.status = ok.status;
        self.warns |= ok.warnings > 0 && self.is_mariadb();
        Ok(())
    }

    pub(super) fn refused(&mut self, payload: &[u8]) -> Fault {
        self.busy = false;
        self.warns = self.is_mariadb();
        let Some(error) = ErrPacket::read(payload) else { return garbage() };
        let mut raw = Vec::with_capacity(HEADER + payload.len());
        packet::put(&mut raw, 1, |out| out.extend_from_slice(payload));
        Fault::Refused(Refused { raw, cause: RefusedCause::Setting, code: error.sqlstate })
    }

    /// Takes the next packet of an answer to us.
    pub(super) async fn payload(&mut self) -> Result<Vec<u8>, Fault> {
        let header = self.whole_packet().await?;
        let payload = self.inbox.data()[HEADER..header.total()].to_vec();
        self.inbox.consume(header.total());
        Ok(payload)
    }

    pub(super) async fn skip_packet(&mut self) -> Result<(), Fault> {
        let header = self.whole_packet().await?;
        self.inbox.consume(header.total());
        Ok(())
    }

    /// Waits until all of the next packet has come.
    async fn whole_packet(&mut self) -> Result<packet::Header, Fault> {
        loop {
            if let Some((header, payload)) = packet::payload(self.inbox.data()) {
                if header.length == MAX_PAYLOAD {
                    return Err(garbage());
                }
                if self.capabilities & can::PROGRESS != 0 && packet::is_progress(payload) {
                    self.inbox.consume(header.total());
                    continue;
                }
                return Ok(header);
            }
            if self.inbox.fill(&mut self.stream).await.map_err(lost)? == 0 {
                return Err(lost(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Waits until the server says something by itself, or closes.
    pub(super) async fn wait_for_stir(&mut self) {
        if !self.closed {
            self.closed = !self.inbox.stirs(&mut self.stream).await;
        }
    }

    /// What a server says unasked is why it ends the connection.
    pub(super) fn last_words(&mut self) -> Fault {
        self.closed = true;
        if let Some((_, payload)) = packet::payload(self.inbox.data())
            && let Some(error) = ErrPacket::read(payload)
            && payload.first() == Some(&packet::ERR)
        {
            let mut raw = Vec::new();
            packet::put(&mut raw, 0, |out| out.extend_from_slice(payload));
            return Fault::Refused(Refused { raw, cause: RefusedCause::Stopping, code: error.sqlstate });
        }
        lost(io::ErrorKind::UnexpectedEof.into())
    }
}

/// In the place of a schema's name: none has this one.
const UNKNOWN_SCHEMA: &str = "";

/// Whether it leaves something that a session carries.
fn sets_something(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Set { .. }
            | Effect::Reset { .. }
            | Effect::SetComputed { .. }
            | Effect::UseDatabase(_)
            | Effect::Prepare { .. }
            | Effect::Deallocate { .. }
    )
}

fn parse_row(mut data: &[u8], columns: u64) -> Option<Row> {
    let mut row = Vec::with_capacity(columns.min(64) as usize);
    for _ in 0..columns {
        if data.first() == Some(&0xFB) {
            row.push(None);
            data = &data[1..];
            continue;
        }
        let (value, rest) = lenenc_bytes(data)?;
        row.push(Some(String::from_utf8_lossy(value).into_owned()));
        data = rest;
    }
    Some(row)
}

pub(super) fn lost(error: io::Error) -> Fault {
    Fault::Server { error, sent: true, forwarded: Forwarded::Nothing }
}

/// Nothing of the request has left.
pub(super) fn unsent(error: io::Error) -> Fault {
    Fault::Server { error, sent: false, forwarded: Forwarded::Nothing }
}

pub(super) fn garbage() -> Fault {
    lost(io::Error::new(io::ErrorKind::InvalidData, "an answer that cannot be read"))
}
