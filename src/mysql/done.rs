//! What a request has done, also where it failed midway: a string of several statements keeps what those
//! before its error did, and no ROLLBACK undoes it.

use super::{
    backend::Backend,
    command::{Command, code},
    frontend::Frontend,
};
use crate::{
    protocol::Request,
    sql::{self, Dialect, Effect, Intent, LexModes},
};

/// Effects of a request, as far as its statements were answered.
#[derive(Debug)]
pub(super) enum Done {
    /// It did not fail.
    All,
    /// Its only statement failed.
    Nothing,
    /// A string: these came true, then the statement failed that has the others.
    Until { done: Vec<Effect>, failed: Vec<Effect> },
    /// A string failed, and where is not known.
    Unknown,
}

impl Done {
    /// Those that have come true as far as is known, in order.
    pub(super) fn effects<'a>(&'a self, intent: &'a Intent) -> &'a [Effect] {
        match self {
            Self::All => &intent.effects,
            Self::Nothing | Self::Unknown => &[],
            Self::Until { done, .. } => done,
        }
    }

    /// Those that were tried and may have come true in part.
    pub(super) fn tried<'a>(&'a self, intent: &'a Intent) -> &'a [Effect] {
        match self {
            Self::All => &[],
            Self::Nothing | Self::Unknown => &intent.effects,
            Self::Until { failed, .. } => failed,
        }
    }

    /// Those that came true ahead of an error.
    pub(super) fn into_part(self) -> Vec<Effect> {
        match self {
            Self::Until { done, .. } => done,
            _ => Vec::new(),
        }
    }
}

impl Frontend {
    /// What a request did that failed behind `completed` results. `modes`: by which it was read.
    pub(super) fn done_before_error(
        &self,
        request: &Request<Command>,
        modes: LexModes,
        completed: usize,
    ) -> Done {
        let intent = &request.intent;
        if intent.statements < 2 || intent.effects.is_empty() || request.wire.code != code::QUERY {
            return Done::Nothing;
        }
        self.done_of_string(request, modes, completed).unwrap_or(Done::Unknown)
    }

    /// The effects of the first statements of a string, each read by itself.
    fn done_of_string(&self, request: &Request<Command>, modes: LexModes, completed: usize) -> Option<Done> {
        let intent = &request.intent;
        if intent.effects.iter().any(|effect| matches!(effect, Effect::Touches | Effect::Calls)) {
            // It may have any number of results, or was not understood.
            return None;
        }
        let text = std::str::from_utf8(self.string(&request.wire)?).ok()?;
        let statements = sql::split(text, Dialect::Mysql, modes);
        if statements.len() != intent.statements as usize || completed >= statements.len() {
            return None;
        }
        let effects_of = |statement: &&str| self.classify_in(modes, statement.as_bytes()).effects.clone();
        let done: Vec<Effect> = statements[..completed].iter().flat_map(effects_of).collect();
        let failed = effects_of(&statements[completed]);
        let (done, failed) = (self.with_executed(&done, &[]), self.with_executed(&failed, &done));
        Some(Done::Until { done, failed })
    }
}

impl Backend {
    /// Follows SQL PREPARE and DEALLOCATE, which the client's end has followed.
    pub(super) fn learn_own(&mut self, frontend: &Frontend, intent: &Intent, done: &Done) {
        for effect in done.effects(intent) {
            self.forget_own(effect);
            if let Effect::Prepare { name, .. } = effect
                && let Some(own) = frontend.own.get(name)
            {
                self.own.insert(name.clone(), own.key);
            }
        }
        for effect in done.tried(intent) {
            self.forget_own(effect);
            if let (Effect::Prepare { name, .. }, Done::Unknown) = (effect, done) {
                // It may be there, and is not to be taken for the client's.
                self.own.insert(name.clone(), NOBODYS);
            }
        }
    }

    fn forget_own(&mut self, effect: &Effect) {
        if let Some(name) = effect.replaced_name() {
            self.own.remove(name);
        }
    }
}

/// In the place of a key: a name is taken by a statement that no session has.
pub(super) const NOBODYS: u128 = 0;
