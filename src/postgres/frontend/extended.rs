//! Reads the messages of the extended protocol, a unit at a time.

use std::{sync::Arc, time::Instant};

use super::{Frontend, named_in};
use crate::{
    postgres::{
        batch::{self, Batch, Message, Subject},
        bind, frame,
        prepared::{Origin, Resolved, Statement},
        unit::{Unit, function_call},
    },
    protocol::Request,
    sql::{Effect, Intent, PinReason, bound_set_config, effects::ProxyCommand},
};

/// How many portals of one transaction are followed; those of further ones count as writes.
const MAX_PORTALS: usize = 256;

impl Frontend {
    pub(super) fn unit(&mut self, mut batch: Box<Batch>) -> Request<Box<Batch>> {
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
        let Some((portal, name, values)) = bind::names(body) else {
            unit.add_unknown();
            return Subject::Plain;
        };
        // What this unit has prepared is judged by what is known now.
        if !name.is_empty() || !unit.defined_unnamed {
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
        if intent.effects.iter().any(|effect| matches!(effect, Effect::Execute { .. })) {
            self.renew_statements();
        }
        unit.call(&intent);
        // Values for a statement that has no place for any are the server's to complain of.
        unit.bound_text = text.filter(|_| is_own || !bind::has_values(values));
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
        let values = bind::values(values).filter(|values| !values.is_empty())?;
        let command = bound_set_config(text.as_bytes(), self.modes, &values)?;
        Some(Arc::new(Intent::of_proxy(command)))
    }

    /// A catalog that was read since, or a replica's refusal, may make other things of statements
    /// that were prepared before.
    pub(super) fn renew_statements(&mut self) {
        let reader = self.reader.as_ref().expect("statements are read after the welcome");
        let (classifier, database) = (&reader.classifier, &reader.database);
        let generation = classifier.generation(database.catalog_version());
        let (modes, origins) = (self.modes, &self.origins);
        let judge = |text: &[u8], known: &Arc<Intent>, origin| {
            if shape_of_answer(known).is_some() {
                // Its text is not what the client has prepared.
                return known.clone();
            }
            let intent = classifier.intent(database.id(), &database.catalog(), modes, text, Instant::now);
            if origin == Origin::Sql { prepared_by(&intent, known) } else { intent }
        };
        let keep = |text: &[u8], statement: &Statement, intent| match statement.origin {
            Origin::Parse if statement.is_shared() => origins.intern(text, &statement.body, intent),
            _ => Arc::new(statement.with(&statement.body, intent)),
        };
        self.statements.renew(generation, judge, keep);
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
                unit.call(&statement.intent);
                unit.by_name(name, statement)
            }
            Some(Resolved::Unnamed { key, intent, .. }) => {
                unit.used_unnamed |= !unit.defined_unnamed;
                unit.add(intent, false);
                unit.call(intent);
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
    pub(in crate::postgres) fn bound_name(&self, message: &Message) -> Option<&[u8]> {
        if message.tag != b'B' {
            return None;
        }
        let body = batch::body(self.inbox.data(), message.at, message.length);
        bind::names(body).map(|(_, name, _)| name)
    }
}

/// A statement that a server describes as the proxy describes its own answer to a question, which is asked
/// of a server when it is only prepared.
fn shape_of_answer(intent: &Intent) -> Option<Vec<u8>> {
    let [Effect::Proxy(ProxyCommand::Show { shown })] = &intent.effects[..] else { return None };
    let column = |name: &str| format!("''::text AS \"{}\"", name.replace('"', "\"\""));
    let columns: Vec<String> = shown.iter().map(|shown| column(&shown.column)).collect();
    Some(format!("SELECT {}", columns.join(", ")).into_bytes())
}

/// What the statement does that a PREPARE prepares. `known`: what it was taken for.
fn prepared_by(prepare: &Intent, known: &Intent) -> Arc<Intent> {
    let inner = prepare.effects.iter().find_map(|effect| match effect {
        Effect::Prepare { inner, .. } => Some(Intent::clone(inner)),
        _ => None,
    });
    // By other settings it may not be understood any more. Hints may have stood ahead of PREPARE.
    Arc::new(Intent { hints: known.hints.clone(), ..inner.unwrap_or_else(function_call) })
}

/// The text of one statement with effects, for what has to be sent again by itself.
fn effect_text(intent: &Intent, body: &[u8]) -> Option<Box<str>> {
    if intent.effects.is_empty() || intent.statements != 1 {
        return None;
    }
    let (text, _) = frame::split_cstring(body)?;
    std::str::from_utf8(text).ok().map(Into::into)
}
