//! Our end of a server connection: what it has.

mod ask;

use std::{collections::HashMap, io, sync::Arc};

use smallvec::SmallVec;

use super::{
    command::code,
    done::Done,
    gate::{Link, Shared},
    insert_id::InsertId,
    login::{
        Credentials,
        server::{Connected, Exchange, Greeting, UNLIKELY_COLLATION},
    },
    packet::{self, ErrPacket, capability as can, status},
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
    /// The session that was told rows here last: FOUND_ROWS() counts them.
    pub(super) found_by: Option<u64>,
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

/// What connections for questions of the proxy's own begin with, whatever the server begins sessions with: all
/// rows come, however many, of now, in UTF-8.
const OWN_QUESTIONS: &str = "SET NAMES utf8mb4 COLLATE utf8mb4_general_ci, autocommit = 1, \
 sql_select_limit = 18446744073709551615, sql_big_selects = 1";

/// One row of text columns.
pub(crate) type Row = Vec<Option<String>>;

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
            found_by: None,
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

    pub(super) fn greeting(&self) -> &Greeting {
        &self.greeting
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

    /// What every session's connection begins with: the server tells what changes in the session, and a
    /// replica's takes no writes, whoever the user is (hard case 10).
    pub(super) async fn initialise(&mut self) -> Result<(), Fault> {
        if self.role == Role::Unknown {
            self.query_all(OWN_QUESTIONS).await?;
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

    /// Finds out whether the server heeds the collation that a login asks for (it does not with
    /// `skip_character_set_client_handshake`). What `init_connect` may have set tells nothing of it.
    pub(super) async fn find_forced_collation(&mut self) -> Result<(), Fault> {
        let rows = self.query_all("SELECT @@collation_connection, @@GLOBAL.init_connect").await?;
        if let [row] = &rows[..]
            && let [Some(collation), init_connect] = &row[..]
        {
            let is_heeded = collation == UNLIKELY_COLLATION.1 || init_connect.as_deref() != Some("");
            self.shared.note_forced_collation((!is_heeded).then_some(collation));
        }
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
        self.found_by = None;
        self.locks.clear();
        self.assigned.clear();
        self.cursors.clear();
        self.said_next = false;
        self.warns = self.is_mariadb();
        self.bare = true;
        let multi_statements = self.carried.multi_statements;
        // A reset leaves the schema, but the server's own character set in the place of the schema's: it has to be
        // chosen again. And what was not understood may have chosen another one.
        let chosen = touched || self.carried.schema.is_some();
        let schema = chosen.then_some(UNKNOWN_SCHEMA);
        let fresh = Settings::default().with_schema(schema).with_multi_statements(multi_statements);
        self.carried = Arc::new(fresh);
    }

    /// Rolls back what is open and forgets all session state. The default schema stays, until the next session
    /// chooses its own.
    pub(super) async fn clean(&mut self) -> Result<(), Fault> {
        if self.busy || self.closed {
            // An answer is still on its way: nobody can tell it from the next session's.
            return Err(lost(io::ErrorKind::ConnectionAborted.into()));
        }
        self.command(code::RESET_CONNECTION, b"").await?;
        self.forget();
        self.initialise().await
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
