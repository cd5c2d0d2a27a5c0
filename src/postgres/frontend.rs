//! Our end of a client's connection: cuts requests out of what arrives and knows what the client
//! was told.

mod extended;

use std::{io, sync::Arc, time::Instant};

use smallvec::SmallVec;

use super::{
    batch::{self, Batch, Cut, End, Kind, Message, Subject},
    done::Done,
    frame::{self, HEADER},
    gate::Origins,
    parameters::Told,
    prepared::{ClientStatements, Origin, Resolved, Statement},
    relay::Outcome,
    settings::Carried,
    unit::{Unit, bare, function_call, join, with_access},
};
use crate::{
    inbox::Inbox,
    protocol::{Fault, ReaderContext, Request, Transaction},
    sql::{Access, Effect, Intent, LexModes, PinReason, Reason, effects::Discard},
    standing::attend,
    stream::{self, Stream},
};

/// A client that has logged in.
pub struct Frontend {
    pub(super) stream: Stream,
    pub(super) inbox: Inbox,
    pub(super) reader: Option<ReaderContext>,
    pub(super) statements: ClientStatements,
    pub(super) carried: Carried,
    /// What the client was told of the server's parameters.
    pub(super) told: Told,
    pub(super) modes: LexModes,
    /// Intents behind the open portals, by name; ends with the transaction.
    portals: Vec<(Box<[u8]>, Arc<Intent>)>,
    /// There are more than are followed.
    more_portals: bool,
    /// The next request, as it lies at the front of the inbox.
    arrived: Option<(Kind, usize, End)>,
    /// Bytes of a message that is being dropped.
    skip: usize,
    /// Bytes of the current request that are still in the inbox.
    unconsumed: usize,
    /// What the login brought, until `welcome` has used it.
    pub(super) startup: Option<Box<super::welcome::StartupRequest>>,
    pub(super) origins: Origins,
    /// A request was refused in mid-unit: what comes before its Sync is dropped.
    pub(super) skip_to_sync: bool,
    /// Something ran that was not read, or runs code: its connection may have prepared statements that
    /// are not among `statements`.
    unseen_names: bool,
    /// The current request is a part of a unit that goes on.
    amid_unit: bool,
    /// The search_path names the temporary schema, or may.
    pub(super) makes_temporary: bool,
    /// The search_path that the session began with does.
    pub(super) begins_temporary: bool,
}

const SEARCH_PATH: &str = "search_path";

/// Whether a search_path has the temporary schema in it.
pub(super) fn names_temporary(path: &str) -> bool {
    path.to_ascii_lowercase().contains("pg_temp")
}

fn sets_temporary_path(effects: &[Effect]) -> bool {
    effects.iter().any(
        |effect| matches!(effect, Effect::Set { name, value, .. } if &**name == SEARCH_PATH && names_temporary(value)),
    )
}

impl Frontend {
    /// A client whose login has succeeded and who has not been told so.
    pub(super) fn new(
        stream: Stream,
        unread: &[u8],
        startup: super::welcome::StartupRequest,
        origins: Origins,
    ) -> Self {
        Self {
            stream,
            inbox: Inbox::with(unread),
            reader: None,
            statements: ClientStatements::default(),
            carried: Carried::default(),
            told: Told::default(),
            modes: LexModes::default_of(crate::sql::Dialect::Postgres),
            portals: Vec::new(),
            more_portals: false,
            arrived: None,
            skip: 0,
            unconsumed: 0,
            startup: Some(Box::new(startup)),
            origins,
            skip_to_sync: false,
            unseen_names: false,
            amid_unit: false,
            makes_temporary: false,
            begins_temporary: false,
        }
    }

    /// Waits for the next request; `false`: the client has left. Dropping the future loses nothing.
    pub(super) async fn await_request(&mut self) -> Result<bool, Fault> {
        loop {
            if self.skip > 0 {
                let part = self.skip.min(self.inbox.len());
                self.inbox.consume(part);
                self.skip -= part;
            }
            if self.skip == 0 && !self.inbox.is_empty() {
                match batch::cut(self.inbox.data()).map_err(Fault::Protocol)? {
                    Cut::Short => {}
                    Cut::Skip(length) => {
                        self.skip = length;
                        continue;
                    }
                    Cut::Terminate => return Ok(false),
                    Cut::Unit { kind, length, end } => {
                        self.arrived = Some((kind, length, end));
                        return Ok(true);
                    }
                }
            }
            if self.inbox.fill(&mut self.stream).await.map_err(Fault::Client)? == 0 {
                return Ok(false);
            }
        }
    }

    /// Takes the request that has arrived; `None`: it is a part of a unit that has failed.
    pub(super) async fn take_request(&mut self) -> Result<Option<Request<Box<Batch>>>, Fault> {
        let Some((kind, length, end)) = self.arrived.take() else { return Ok(None) };
        if self.skip_to_sync && kind == Kind::Extended {
            self.skip_unit(length, end).await?;
            return Ok(None);
        }
        let (length, end) = self.without_next_statement(kind, length, end);
        self.amid_unit = kind == Kind::Extended && end != End::Whole;
        Ok(Some(self.request(kind, length, end)))
    }

    /// Of a unit that goes on, what belongs to earlier parts is a part of its own: what follows may have
    /// to run elsewhere.
    fn without_next_statement(&self, kind: Kind, length: usize, end: End) -> (usize, End) {
        if !self.amid_unit || kind != Kind::Extended {
            return (length, end);
        }
        match batch::behind_earlier_portals(&self.inbox.data()[..length.min(self.inbox.len())]) {
            Some(before) => (before, End::More { tail: 0 }),
            None => (length, end),
        }
    }

    /// Drops a part of a unit that has failed; its Sync is answered.
    async fn skip_unit(&mut self, length: usize, end: End) -> Result<(), Fault> {
        self.inbox.consume(length);
        match end {
            End::Whole => {
                (self.skip_to_sync, self.amid_unit) = (false, false);
                self.write(&frame::READY_IDLE).await
            }
            End::More { tail } => {
                self.skip = tail;
                Ok(())
            }
            End::Flush | End::Copy => Ok(()),
        }
    }

    pub(super) fn known_greeting(&mut self) -> Option<Arc<super::welcome::Greeting>> {
        let known = self.origins.greeting(self.greeting_key());
        if let (Err(since), Some(startup)) = (&known, &mut self.startup) {
            startup.unknown_since.get_or_insert(*since);
        }
        known.ok()
    }

    pub(super) fn remember_greeting(&self, greeting: &Arc<super::welcome::Greeting>) {
        if let Some(since) = self.startup.as_ref().and_then(|startup| startup.unknown_since) {
            self.origins.remember(self.greeting_key(), greeting, since);
        }
    }

    /// The text of the first statement of an extended batch, where it is known.
    pub(super) fn unit_text<'a>(&'a self, batch: &'a Batch) -> &'a [u8] {
        let first = batch.messages.iter().find_map(|message| match &message.subject {
            Subject::Named(statement) => Some(&*statement.body),
            Subject::Unnamed(Some(_)) => match self.statements.resolve(b"") {
                Some(Resolved::Unnamed { body, .. }) => Some(body),
                _ => None,
            },
            _ => None,
        });
        let body = first.unwrap_or_default();
        frame::split_cstring(body).map_or(body, |(text, _)| text)
    }

    /// How often something was defined anew in the session's database.
    pub(super) fn definitions(&self) -> u64 {
        self.reader.as_ref().map_or(0, |reader| reader.database.code.so_far())
    }

    /// Drops a request that has been answered.
    pub(super) fn consume(&mut self, batch: &Batch) {
        if self.unconsumed > 0 {
            self.inbox.consume(self.unconsumed);
            self.unconsumed = 0;
            if let End::More { tail } = batch.end {
                self.skip = tail;
            }
        }
    }

    /// Lends out the inbox without the current request, for what streams behind it.
    pub(super) fn take_inbox_behind_batch(&mut self) -> Inbox {
        let mut inbox = std::mem::take(&mut self.inbox);
        inbox.consume(std::mem::take(&mut self.unconsumed));
        inbox
    }

    /// Takes the inbox back; `rest` bytes of a message are still to come and mean nothing.
    pub(super) fn give_inbox(&mut self, inbox: Inbox, rest: usize) {
        self.inbox = inbox;
        self.skip = rest;
    }

    /// A ParameterStatus of a server; `false` when the client knows it already.
    pub(super) fn note_parameter(&mut self, name: &str, value: &str) -> bool {
        // The endpoint is a primary, whichever server answers.
        if name == "in_hot_standby" {
            return false;
        }
        self.note_mode(name, value);
        self.told.update(name, value)
    }

    /// Follows the parameters that say how this client's text is to be read.
    pub(super) fn note_mode(&mut self, name: &str, value: &str) {
        match name {
            "standard_conforming_strings" => self.modes.standard_strings = value == "on",
            "client_encoding" => {
                self.modes.unreadable = is_unreadable(value);
                self.modes.foreign_letters = has_foreign_letters(value, self.told.get("server_encoding"));
            }
            _ => {}
        }
    }

    /// Follows what an answered request did to what the session carries.
    pub(super) fn learn(&mut self, intent: &Intent, outcome: Outcome, done: &Done) {
        self.learn_carried(intent, outcome, done);
        if !intent.effects.is_empty() || self.makes_temporary {
            // SET LOCAL is not carried.
            let is_local = self.makes_temporary && outcome.transaction != Transaction::Idle;
            self.makes_temporary = is_local || self.has_temporary_path();
        }
    }

    pub(super) fn has_temporary_path(&self) -> bool {
        self.carried.now().get(SEARCH_PATH).map_or(self.begins_temporary, names_temporary)
    }

    fn learn_carried(&mut self, intent: &Intent, outcome: Outcome, done: &Done) {
        let open = outcome.transaction != Transaction::Idle;
        done.carry(&mut self.carried, intent, outcome);
        self.carried.complete(&intent.effects, &self.told);
        if !open {
            self.close_portals();
        }
        let unseen = |effect: &Effect| matches!(effect, Effect::Touches | Effect::Pin(PinReason::Setting));
        self.unseen_names |= intent.effects.iter().any(unseen);
        if outcome.failed {
            self.statements.forget_expected();
        }
        for effect in done.effects(intent) {
            match effect {
                Effect::Prepare { name, statement, inner } => {
                    let statement =
                        Statement::new(statement.as_bytes(), Origin::Sql, Arc::new(Intent::clone(inner)));
                    self.statements.define(name.as_bytes(), Arc::new(statement));
                }
                Effect::Deallocate { name: Some(name) } => {
                    self.statements.remove(name.as_bytes());
                }
                Effect::Deallocate { name: None } | Effect::Discard(Discard::All) => {
                    self.statements.clear();
                    self.unseen_names = false;
                }
                _ => {}
            }
        }
    }

    fn request(&mut self, kind: Kind, length: usize, end: End) -> Request<Box<Batch>> {
        self.unconsumed = length;
        let batch = Box::new(Batch {
            kind,
            length,
            end,
            messages: SmallVec::new(),
            text: None,
            executes: 0,
            previous_unnamed: None,
            own: SmallVec::new(),
            effects_until: SmallVec::new(),
            modes: self.modes,
        });
        let Request { intent, wire } = match kind {
            Kind::Query => self.query(batch),
            Kind::FunctionCall => Request { intent: Arc::new(function_call()), wire: batch },
            Kind::Extended => self.unit(batch),
        };
        Request { intent: self.in_its_schema(intent), wire }
    }

    /// An intent as it is by the session's search_path: `CREATE TABLE t` makes a temporary table where the
    /// temporary schema comes first, which only the server knows.
    fn in_its_schema(&mut self, intent: Arc<Intent>) -> Arc<Intent> {
        // Also what is kept back: nobody tells of that once it has run.
        self.makes_temporary |= sets_temporary_path(&intent.effects);
        if !self.makes_temporary || !intent.effects.contains(&Effect::Ddl) {
            return intent;
        }
        let mut intent = Intent::clone(&intent);
        intent.effects.push(Effect::Pin(PinReason::TempTable));
        Arc::new(intent)
    }

    fn query(&mut self, mut batch: Box<Batch>) -> Request<Box<Batch>> {
        let intent = self.classify(query_text(&self.inbox, &batch));
        let intent = match batch.end {
            End::Whole if intent.effects.is_empty() => intent,
            End::Whole => {
                self.renew_statements();
                self.behind(intent, &[])
            }
            // Nothing that was read is relied on.
            _ => Arc::new(Intent { outdoes: false, by_text: false, ..intent.cut_off([]) }),
        };
        if batch.end == End::Whole && intent.statements == 1 && !intent.effects.is_empty() {
            batch.text = std::str::from_utf8(query_text(&self.inbox, &batch)).ok().map(Into::into);
        }
        self.statements.drop_unnamed();
        Request { intent, wire: batch }
    }

    /// The text of a Query, while it is there.
    pub(super) fn query_text(&self, batch: &Batch) -> Option<&[u8]> {
        let is_there = self.unconsumed > 0 && self.inbox.data().len() >= batch.length;
        is_there.then(|| query_text(&self.inbox, batch))
    }

    fn classify(&self, text: &[u8]) -> Arc<Intent> {
        self.classify_in(self.modes, text)
    }

    pub(super) fn classify_in(&self, modes: LexModes, text: &[u8]) -> Arc<Intent> {
        let reader = self.reader.as_ref().expect("statements are read after the welcome");
        let catalog = reader.database.catalog();
        reader.classifier.intent(reader.database.id(), &catalog, modes, text, Instant::now)
    }

    /// An intent as it is in a unit, behind what was executed there before.
    fn resolved(&self, intent: &Arc<Intent>, unit: &Unit) -> Arc<Intent> {
        if intent.effects.is_empty() { intent.clone() } else { self.behind(intent.clone(), unit.executed()) }
    }

    /// Replaces EXECUTE by what the statement behind the name does. `before`: effects of what runs ahead
    /// of it, and may give the name to another statement.
    pub(super) fn behind(&self, intent: Arc<Intent>, before: &[Effect]) -> Arc<Intent> {
        if !intent.effects.iter().any(|effect| matches!(effect, Effect::Execute { .. })) {
            return intent;
        }
        // Code that was not seen may have prepared what nobody knows.
        let unseen = Intent { reason: Reason::Command, ..function_call() };
        let unseen = self.unseen_names.then_some(&unseen);
        let mut found = bare(&intent);
        let mut effects = Vec::with_capacity(intent.effects.len());
        for (at, effect) in intent.effects.iter().enumerate() {
            effects.push(effect.clone());
            if let Effect::Execute { name } = effect {
                let named = named_in(&intent.effects[..at], name.as_bytes())
                    .or_else(|| named_in(before, name.as_bytes()))
                    .unwrap_or_else(|| {
                        self.statements.get(name.as_bytes()).map(|statement| &*statement.intent)
                    })
                    .or(unseen);
                found = executing(&found, named);
                effects.extend(named.iter().flat_map(|inner| inner.effects.iter().cloned()));
            }
        }
        Arc::new(Intent { effects, ..Intent::clone(&found) })
    }

    /// The transaction is over: its portals are gone.
    pub(super) fn close_portals(&mut self) {
        if !self.portals.is_empty() {
            self.portals.clear();
            self.more_portals = false;
        }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let sent = stream::send(&mut self.stream, bytes);
        attend(ReaderContext::entry_of(self.reader.as_ref()), sent).await.map_err(Fault::Client)
    }

    /// Resolves when the client has closed its side; what it sends is kept, up to a bound.
    pub(super) async fn closed(&mut self) {
        self.inbox.ended(&mut self.stream, batch::GATHERED).await;
    }
}

/// The text of a Query that is at the head of the inbox.
fn query_text<'a>(inbox: &'a Inbox, batch: &Batch) -> &'a [u8] {
    let body = batch::body(inbox.data(), 0, batch.length);
    frame::split_cstring(body).map_or(body, |(text, _)| text)
}

/// What EXECUTE does, which by itself is `execute`, of a statement.
fn executing(execute: &Arc<Intent>, named: Option<&Intent>) -> Arc<Intent> {
    // Nobody knows it: the primary says so.
    let Some(named) = named else { return with_access(execute, Access::Write) };
    let mut joined = join(execute, named);
    if joined.hints != execute.hints {
        Arc::make_mut(&mut joined).hints = execute.hints.over(&named.hints);
    }
    if joined.reason == Reason::Session {
        Arc::make_mut(&mut joined).reason = named.reason;
    }
    // EXPLAIN EXECUTE is taken for a write while nobody knows of what.
    let explains = execute.reason == Reason::Command && execute.statements == 1;
    if explains && named.access == Access::Read { with_access(&joined, Access::Read) } else { joined }
}

/// What a name stands for behind `effects`, as far as they change that: `Some(None)` is nothing.
fn named_in<'a>(effects: &'a [Effect], name: &[u8]) -> Option<Option<&'a Intent>> {
    effects.iter().rev().find_map(|effect| match effect {
        Effect::Prepare { name: given, inner, .. } if given.as_bytes() == name => Some(Some(&**inner)),
        Effect::Deallocate { name: Some(taken) } if taken.as_bytes() == name => Some(None),
        Effect::Deallocate { name: None } | Effect::Discard(Discard::All) => Some(None),
        _ => None,
    })
}

/// Encodings in which a byte of ASCII's range may be part of another character.
fn is_unreadable(encoding: &str) -> bool {
    const UNREADABLE: [&str; 7] = ["SJIS", "BIG5", "GBK", "UHC", "GB18030", "JOHAB", "SHIFT_JIS_2004"];
    UNREADABLE.contains(&encoding)
}

/// Whether clients write letters beyond ASCII in other bytes than UTF-8's, which the monitor has its names
/// in. Nothing is converted where either side is SQL_ASCII.
fn has_foreign_letters(encoding: &str, of_server: Option<&str>) -> bool {
    let as_stored = of_server == Some("SQL_ASCII") || (encoding, of_server) == ("SQL_ASCII", Some("UTF8"));
    encoding != "UTF8" && !as_stored
}

/// Where bytes of a message's body start in its batch.
pub(super) const fn body_at(message: &Message) -> usize {
    message.at + HEADER
}

pub(super) fn eof() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed in mid-message")
}
