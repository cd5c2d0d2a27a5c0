//! Reads COM_QUERY: what a string of statements is to the proxy.

use std::{borrow::Cow, sync::Arc};

use super::{Frontend, no_statement};
use crate::{
    mysql::{
        command::{Command, code},
        parameters,
        settings::NAMES,
    },
    protocol::{Fault, Request},
    refusal::RefusalKind,
    sql::{Access, Effect, Intent, Reason, Tables, connection_id, effects::PinReason},
};

impl Frontend {
    pub(super) async fn query(&mut self, argument: &[u8]) -> Result<Option<Request<Command>>, Fault> {
        let text_at = if self.sends_attributes() { parameters::text_at(argument) } else { Some(0) };
        let Some(text_at) = text_at else {
            self.reject(RefusalKind::Malformed, "Malformed communication packet.".to_owned()).await?;
            return Ok(None);
        };
        let (attributes, text) = argument.split_at(text_at);
        let mut wire = self.command(code::QUERY);
        wire.text_at += text_at;
        let intent = self.classify(text);
        let intent = if intent.effects.is_empty() { intent } else { self.behind(intent) };
        let intent = match () {
            () if wire.tail.is_some() => Arc::new(with_unread(&intent)),
            // What is no statement and not empty either only the server can answer, which takes a comment
            // for something and a semicolon between two for an error.
            () if intent.statements == 0 && !is_blank(text) => no_statement(&intent),
            () => intent,
        };
        if intent.statements == 1 && !intent.effects.is_empty() {
            wire.text = std::str::from_utf8(text).ok().map(Into::into);
        }
        let intent = self.completion.applied_to(intent, wire.text.as_deref(), self.modes);
        let rewritten = self.rewritten(&intent, text);
        wire.rewritten = rewritten.map(|text| [attributes, &*text].concat().into());
        if !wire.is_rewritable() {
            let text =
                "CONNECTION_ID() cannot stand in a statement of 16 MB: the proxy would have to replace it";
            self.reject(RefusalKind::Unsupported, text.to_owned()).await?;
            return Ok(None);
        }
        Ok(Some(Request { intent: self.closing_cursor(intent), wire }))
    }

    /// The text for servers, where it has to be another than the client's.
    pub(super) fn rewritten(&self, intent: &Intent, text: &[u8]) -> Option<Box<[u8]>> {
        let asks = intent.effects.contains(&Effect::AsksConnectionId);
        asks.then(|| connection_id::replace(text, self.modes, self.number).into())
    }

    /// Replaces EXECUTE by what the statement behind the name does.
    pub(super) fn behind(&self, intent: Arc<Intent>) -> Arc<Intent> {
        let [Effect::Execute { name }] = &intent.effects[..] else { return self.behind_each(intent) };
        let mut behind = match self.inner(name) {
            Some(inner) => inner,
            // Nobody knows it: the primary says so.
            None => Intent { access: Access::Write, reason: Reason::State, ..Intent::clone(&intent) },
        };
        behind.hints = intent.hints.over(&behind.hints);
        behind.effects.push(Effect::Execute { name: name.clone() });
        behind.plain = false;
        Arc::new(behind)
    }

    /// What a statement of SQL PREPARE does by what is known now, which may be more than when it was prepared.
    fn inner(&self, name: &str) -> Option<Intent> {
        let own = self.own.get(name)?;
        let prepares = self.classify_in(own.modes, own.statement.as_bytes());
        let inner = prepares.effects.iter().find_map(|effect| match effect {
            Effect::Prepare { inner, .. } => Some(Intent::clone(inner)),
            _ => None,
        });
        // They may have stood ahead of PREPARE.
        let hints = own.inner.hints.clone();
        Some(Intent { hints, ..inner.unwrap_or_else(|| Intent::clone(&own.inner)) })
    }

    /// The same of a string of several statements, which may also prepare what it executes.
    fn behind_each(&self, intent: Arc<Intent>) -> Arc<Intent> {
        if !intent.effects.iter().any(|effect| matches!(effect, Effect::Execute { .. })) {
            return intent;
        }
        let effects = self.with_executed(&intent.effects, &[]);
        let (access, reason, tables) = (Access::Write, Reason::Command, Tables::All);
        Arc::new(Intent { access, reason, tables, effects, ..Intent::clone(&intent) })
    }

    /// Effects of a string, and of what it executes. `before`: those of the statements ahead of them.
    pub(in crate::mysql) fn with_executed(&self, effects: &[Effect], before: &[Effect]) -> Vec<Effect> {
        let mut all = Vec::with_capacity(effects.len());
        for (at, effect) in effects.iter().enumerate() {
            all.push(effect.clone());
            let Effect::Execute { name } = effect else { continue };
            let earlier = effects[..at].iter().rev().chain(before.iter().rev());
            let here = earlier.into_iter().find(|one| one.replaced_name() == Some(name));
            let inner = match here {
                Some(Effect::Prepare { inner, .. }) => Some(Cow::Borrowed(&inner.effects)),
                Some(_) => None,
                None => self.inner(name).map(|inner| Cow::Owned(inner.effects)),
            };
            match inner {
                Some(inner) if !inner.iter().any(sets_reading) => all.extend(inner.into_owned()),
                // Whatever it is; and what stands behind it may be read in another way.
                _ => all.extend([Effect::DrawsSequence, Effect::Touches]),
            }
        }
        all
    }
}

/// Whether it may change how text is read.
fn sets_reading(effect: &Effect) -> bool {
    match effect {
        Effect::Set { name, .. } | Effect::Reset { name } => {
            matches!(&**name, "sql_mode" | NAMES | "character set" | "character_set_client")
        }
        Effect::SetComputed { .. } | Effect::Pin(PinReason::Setting) => true,
        _ => false,
    }
}

/// Whether there is nothing in a text, as servers see it.
fn is_blank(text: &[u8]) -> bool {
    text.iter().all(|byte| byte.is_ascii_whitespace() || *byte == b';')
}

/// What a long statement does of which the end has not been read.
fn with_unread(intent: &Intent) -> Intent {
    // A name may go on behind the part that was read.
    let named = |effect: &&Effect| matches!(effect, Effect::Temporary { .. } | Effect::Drops(_));
    let read = intent.effects.iter().filter(|effect| !named(effect));
    intent.cut_off(read.cloned())
}
