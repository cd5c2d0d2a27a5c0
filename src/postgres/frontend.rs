//! Our end of a client's connection: cuts requests out of what arrives and knows what the client
//! was told.

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
    sql::{
        Access, Effect, Intent, LexModes, PinReason, Reason, bound_set_config,
        effects::{Discard, ProxyCommand},
    },
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
}

/// How many portals of one transaction are followed; those of further ones count as writes.
const MAX_PORTALS: usize = 256;

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
            skip: 0,
            unconsumed: 0,
            startup: Some(Box::new(startup)),
            origins,
            skip_to_sync: false,
            unseen_names: false,
            amid_unit: false,
        }
    }

    /// Waits for the next request.
    pub(super) async fn read_request(&mut self) -> Result<Option<Request<Box<Batch>>>, Fault> {
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
                    Cut::Terminate => return Ok(None),
                    Cut::Unit { kind, length, end } => {
                        if self.skip_to_sync && kind == Kind::Extended {
                            self.skip_unit(length, end).await?;
                            continue;
                        }
                        let (length, end) = self.without_next_statement(kind, length, end);
                        self.amid_unit = kind == Kind::Extended && end != End::Whole;
                        return Ok(Some(self.request(kind, length, end)));
                    }
                }
            }
            if self.inbox.fill(&mut self.stream).await.map_err(Fault::Client)? == 0 {
                return Ok(None);
            }
        }
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

    pub(super) fn known_greeting(&self) -> Option<Arc<super::welcome::Greeting>> {
        self.origins.greeting(self.greeting_key())
    }

    pub(super) fn remember_greeting(&self, greeting: &Arc<super::welcome::Greeting>) {
        self.origins.remember(self.greeting_key(), greeting);
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
            "client_encoding" => self.modes.unreadable = is_unreadable(value),
            _ => {}
        }
    }

    /// Follows what an answered request did to what the session carries.
    pub(super) fn learn(&mut self, intent: &Intent, outcome: Outcome, done: &Done) {
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
        match kind {
            Kind::Query => self.query(batch),
            Kind::FunctionCall => Request { intent: Arc::new(function_call()), wire: batch },
            Kind::Extended => self.unit(batch),
        }
    }

    fn query(&mut self, mut batch: Box<Batch>) -> Request<Box<Batch>> {
        let body = batch::body(self.inbox.data(), 0, batch.length);
        let text = frame::split_cstring(body).map_or(body, |(text, _)| text);
        let intent = self.classify(text);
        let intent = if intent.effects.is_empty() { intent } else { self.behind(intent, &[]) };
        if intent.statements == 1 && !intent.effects.is_empty() {
            batch.text = std::str::from_utf8(text).ok().map(Into::into);
        }
        self.statements.drop_unnamed();
        Request { intent, wire: batch }
    }

    /// The text of a Query, while it is there.
    pub(super) fn query_text(&self, batch: &Batch) -> Option<&[u8]> {
        let data = self.inbox.data().get(..batch.length).filter(|_| self.unconsumed > 0)?;
        let body = batch::body(data, 0, batch.length);
        Some(frame::split_cstring(body).map_or(body, |(text, _)| text))
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

    fn unit(&mut self, mut batch: Box<Batch>) -> Request<Box<Batch>> {
        let mut unit = Unit::default();
        let mut at = 0;
        // The buffer is lent out for the time of reading it: the methods called change names only.
        let inbox = std::mem::take(&mut self.inbox);
        let data = &inbox.data()[..batch.length];
        while let Some(header) = frame::header(&data[at..]) {
            let length = header.length.min(data.len() - at);
            let whole = length == header.length;
            let body = batch::body(data, at, length);
            let subject = self.subject(header.tag, body, whole, &mut unit);
            batch.messages.push(Message { tag: header.tag, at, length, subject });
            at += length;
        }
        self.inbox = inbox;
        batch.executes = unit.executes;
        batch.text = unit.text.take();
        batch.previous_unnamed = unit.previous_unnamed.take();
        batch.own = std::mem::take(&mut unit.own);
        batch.effects_until = std::mem::take(&mut unit.effects_until);
        Request { intent: unit.finish(), wire: batch }
    }

    /// Reads one message of the extended protocol; what makes no sense is left to the server.
    fn subject(&mut self, tag: u8, body: &[u8], whole: bool, unit: &mut Unit) -> Subject {
        match tag {
            b'P' => self.parse(body, whole, unit),
            b'B' => self.bind(body, unit),
            b'D' | b'C' => match body.split_first() {
                Some((b'S', name)) => self.describe_or_close(tag, name, unit),
                // Closing a portal needs no server where there is none.
                Some((b'P', _)) if tag == b'C' => Subject::Plain,
                Some((b'P', name)) => {
                    self.describe_portal(name, unit);
                    Subject::Plain
                }
                _ => {
                    unit.add_unknown();
                    Subject::Plain
                }
            },
            b'E' => {
                let portal = frame::split_cstring(body).map_or(body, |(portal, _)| portal);
                unit.executes += 1;
                match self.portals.iter().rev().find(|(name, _)| **name == *portal) {
                    Some((_, intent)) => {
                        if unit.executes == 1 && intent.statements == 1 && !intent.effects.is_empty() {
                            unit.text = unit.bound_text.take();
                        }
                        unit.execute(&self.resolved(intent, unit));
                    }
                    None if self.more_portals => unit.add_unseen(),
                    None => unit.add_unknown(),
                }
                Subject::Plain
            }
            _ => Subject::Plain,
        }
    }

    fn parse(&mut self, body: &[u8], whole: bool, unit: &mut Unit) -> Subject {
        let Some((name, definition)) = frame::split_cstring(body) else {
            unit.add_unknown();
            return Subject::Plain;
        };
        let text = frame::split_cstring(definition).map_or(definition, |(text, _)| text);
        let intent = self.classify(text);
        unit.add(&intent, false);
        if !whole || !Statement::is_whole_parse(definition) {
            // Too long to be kept, or malformed: it goes to the server under the client's name,
            // and nothing else of this session may run elsewhere.
            unit.add_unseen();
            return Subject::Plain;
        }
        if name.is_empty() {
            if std::mem::take(&mut unit.used_unnamed)
                && let Some(Resolved::Unnamed { key, body, .. }) = self.statements.resolve(b"")
            {
                unit.previous_unnamed.get_or_insert_with(|| (key, body.into()));
            }
            unit.defined_unnamed = true;
            return Subject::Unnamed(Some(self.statements.define_unnamed(definition, intent)));
        }
        if let Some(Resolved::Named(taken)) = self.statements.resolve(name) {
            return Subject::Duplicate(taken.clone());
        }
        let statement = match shape_of_answer(&intent) {
            Some(shape) => self.origins.intern(&shape, &[&shape, &definition[text.len()..]].concat(), intent),
            None => self.origins.intern(text, definition, intent),
        };
        self.statements.expect(name, Some(statement.clone()));
        Subject::Named(statement)
    }

    fn bind(&mut self, body: &[u8], unit: &mut Unit) -> Subject {
        let names = frame::split_cstring(body)
            .and_then(|(portal, rest)| frame::split_cstring(rest).map(|(name, rest)| (portal, name, rest)));
        let Some((portal, name, values)) = names else {
            unit.add_unknown();
            return Subject::Plain;
        };
        if !name.is_empty() {
            self.renew_statements();
        }
        let (intent, subject, text) = match self.statements.resolve(name) {
            Some(Resolved::Named(statement)) => {
                let text = effect_text(&statement.intent, &statement.body);
                (statement.intent.clone(), unit.by_name(name, statement), text)
            }
            Some(Resolved::Unnamed { key, body, intent }) => {
                unit.used_unnamed |= !unit.defined_unnamed;
                (intent.clone(), Subject::Unnamed(Some(key)), effect_text(intent, body))
            }
            None => match named_in(unit.executed(), name) {
                Some(Some(inner)) => (Arc::new(inner.clone()), unit.nobodys(name), None),
                _ => {
                    unit.add_unknown();
                    return unit.nobodys(name);
                }
            },
        };
        let own = text.as_deref().and_then(|text| self.sets_own(text, &intent, values));
        let is_own = own.is_some();
        let intent = match own {
            Some(own) => unit.instead(&intent, own),
            None => intent,
        };
        // Values for a statement that has no place for any are the server's to complain of.
        unit.bound_text = text.filter(|_| is_own || !has_values(values));
        unit.add(&self.resolved(&intent, unit), false);
        self.portals.retain(|(other, _)| **other != *portal);
        if self.portals.len() < MAX_PORTALS {
            self.portals.push((portal.into(), intent));
        } else {
            self.more_portals = true;
        }
        subject
    }

    /// `SELECT set_config($1, …)` with values by which it sets what is the proxy's own: SET takes no
    /// parameters, so drivers say it this way.
    fn sets_own(&self, text: &str, intent: &Intent, values: &[u8]) -> Option<Arc<Intent>> {
        let may_set = |effect: &Effect| {
            matches!(
                effect,
                Effect::Pin(PinReason::Setting) | Effect::Proxy(ProxyCommand::SetComputed { .. })
            )
        };
        if !matches!(&intent.effects[..], [effect] if may_set(effect)) {
            return None;
        }
        let values = bound_values(values).filter(|values| !values.is_empty())?;
        let command = bound_set_config(text.as_bytes(), self.modes, &values)?;
        Some(Arc::new(Intent::of_proxy(command)))
    }

    /// A catalog that was read since, or a replica's refusal, may make other things of statements
    /// that were prepared before.
    fn renew_statements(&mut self) {
        let reader = self.reader.as_ref().expect("statements are read after the welcome");
        let catalog = reader.database.catalog();
        let (classifier, database) = (&reader.classifier, reader.database.id());
        let (modes, origins) = (self.modes, &self.origins);
        self.statements.renew(classifier.generation(&catalog), |text, statement| {
            if shape_of_answer(&statement.intent).is_some() {
                // Its text is not what the client has prepared.
                return Arc::new(statement.with(&statement.body, statement.intent.clone()));
            }
            let intent = classifier.intent(database, &catalog, modes, text, Instant::now);
            match statement.is_shared() {
                true => origins.intern(text, &statement.body, intent),
                false => Arc::new(statement.with(&statement.body, intent)),
            }
        });
    }

    fn describe_or_close(&mut self, tag: u8, body: &[u8], unit: &mut Unit) -> Subject {
        let Some((name, _)) = frame::split_cstring(body) else {
            unit.add_unknown();
            return Subject::Plain;
        };
        if tag == b'C' {
            if name.is_empty() {
                self.statements.drop_unnamed();
                return Subject::Unnamed(None);
            }
            // Closing what the client does not have is no error, and what a server has under that name
            // may be another session's.
            self.statements.expect(name, None);
            return Subject::CloseNamed;
        }
        match self.statements.resolve(name) {
            Some(Resolved::Named(statement)) => {
                unit.add(&statement.intent, false);
                unit.describe(&statement.intent);
                unit.by_name(name, statement)
            }
            Some(Resolved::Unnamed { key, intent, .. }) => {
                unit.used_unnamed |= !unit.defined_unnamed;
                unit.add(intent, false);
                unit.describe(intent);
                Subject::Unnamed(Some(key))
            }
            None => {
                unit.add_unknown();
                unit.nobodys(name)
            }
        }
    }

    fn describe_portal(&self, name: &[u8], unit: &mut Unit) {
        let name = frame::split_cstring(name).map_or(name, |(name, _)| name);
        match self.portals.iter().rev().find(|(other, _)| **other == *name) {
            Some((_, intent)) => unit.add(intent, false),
            None => unit.add_unknown(),
        }
    }

    /// The statement's name in a Bind of the current request.
    pub(super) fn bound_name(&self, message: &Message) -> Option<&[u8]> {
        if message.tag != b'B' {
            return None;
        }
        let body = batch::body(self.inbox.data(), message.at, message.length);
        let (_, rest) = frame::split_cstring(body)?;
        frame::split_cstring(rest).map(|(name, _)| name)
    }

    /// The transaction is over: its portals are gone.
    pub(super) fn close_portals(&mut self) {
        if !self.portals.is_empty() {
            self.portals.clear();
            self.more_portals = false;
        }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        stream::send(&mut self.stream, bytes).await.map_err(Fault::Client)
    }

    /// Resolves when the client has closed its side; what it sends is kept, up to a bound.
    pub(super) async fn closed(&mut self) {
        self.inbox.ended(&mut self.stream, batch::GATHERED).await;
    }
}

/// What EXECUTE does, which by itself is `execute`, of a statement.
fn executing(execute: &Arc<Intent>, named: Option<&Intent>) -> Arc<Intent> {
    // Nobody knows it: the primary says so.
    let Some(named) = named else { return with_access(execute, Access::Write) };
    let joined = join(execute, named, true);
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

/// Whether a Bind, from behind its names on, brings values.
fn has_values(bind: &[u8]) -> bool {
    let formats = bind.first_chunk().map_or(0, |count| usize::from(u16::from_be_bytes(*count)));
    bind.get(2 + 2 * formats..4 + 2 * formats).is_some_and(|count| count != [0, 0])
}

/// The values of a Bind, from behind its names on; `None` among them is NULL.
fn bound_values(bind: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let formats = usize::from(u16::from_be_bytes(*bind.first_chunk()?));
    let (count, mut rest) = bind.get(2 + 2 * formats..)?.split_first_chunk()?;
    let mut values = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, behind) = rest.split_first_chunk()?;
        rest = behind;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            values.push(None);
            continue;
        };
        let (value, behind) = rest.split_at_checked(length)?;
        values.push(Some(value));
        rest = behind;
    }
    Some(values)
}

/// A statement that a server describes as the proxy describes its own answer to a question, which is asked
/// of a server when it is only prepared.
fn shape_of_answer(intent: &Intent) -> Option<Vec<u8>> {
    let [Effect::Proxy(ProxyCommand::Show { shown })] = &intent.effects[..] else { return None };
    let column = |name: &str| format!("''::text AS \"{}\"", name.replace('"', "\"\""));
    let columns: Vec<String> = shown.iter().map(|shown| column(&shown.column)).collect();
    Some(format!("SELECT {}", columns.join(", ")).into_bytes())
}

/// The text of one statement with effects, for what has to be sent again by itself.
fn effect_text(intent: &Intent, body: &[u8]) -> Option<Box<str>> {
    if intent.effects.is_empty() || intent.statements != 1 {
        return None;
    }
    let (text, _) = frame::split_cstring(body)?;
    std::str::from_utf8(text).ok().map(Into::into)
}

/// Encodings in which a byte of ASCII's range may be part of another character.
fn is_unreadable(encoding: &str) -> bool {
    const UNREADABLE: [&str; 7] = ["SJIS", "BIG5", "GBK", "UHC", "GB18030", "JOHAB", "SHIFT_JIS_2004"];
    UNREADABLE.contains(&encoding)
}

/// Where bytes of a message's body start in its batch.
pub(super) const fn body_at(message: &Message) -> usize {
    message.at + HEADER
}

pub(super) fn eof() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed in mid-message")
}
