//! What a server connection lacks before the request can run on it, and what it has to tell behind it.

use std::io;

use super::Relay;
use crate::{
    mysql::{
        ROLLBACK,
        command::{Command, code},
        encode,
        insert_id::{InsertId, Settle},
        settings::quote_literal,
    },
    protocol::{Fault, Request, Transaction},
    sql::{Access, Effect, Intent, PinReason, Reason, effects::Left},
    standing::watched,
};

/// Clears what another session's statement, or an earlier one, has left: LAST_INSERT_ID(),
/// ROW_COUNT(), and the warnings, which MariaDB keeps until a statement uses a table.
const FORGET_LAST: &str = "DO (SELECT LAST_INSERT_ID(0) FROM (SELECT 1) AS nothing)";

/// Clears the warnings alone.
const FORGET_WARNINGS: &str = "DO (SELECT 1 FROM (SELECT 1) AS nothing)";

/// Makes FOUND_ROWS() what it is where nothing was asked for yet: 0.
const FORGET_FOUND: &str = "SELECT 1 FROM (SELECT 1) AS nothing WHERE FALSE";

impl Relay<'_> {
    /// Whether anything is to be done ahead of the request.
    pub(super) fn has_to_prepare(&mut self, request: &Request<Command>) -> bool {
        let names = |effect: &Effect| {
            matches!(
                effect,
                Effect::Execute { .. }
                    | Effect::Deallocate { name: Some(_) }
                    | Effect::NeedsPrevious
                    | Effect::AsksItself
            )
        };
        let unprepared = match (request.wire.code, &request.wire.statement) {
            (code::STMT_EXECUTE | code::STMT_BULK_EXECUTE, Some((_, statement))) => {
                self.backend.statements.get(statement.key).is_none()
            }
            _ => false,
        };
        unprepared
            || self.has_to_unsay(request)
            || self.has_to_forget_warnings(request)
            || self.has_to_forget_found(request)
            || !self.backend.is_at(self.frontend.carried.now())
            || !self.terms.ahead.is_empty()
            || self.terms.forget_last
            || request.intent.effects.iter().any(names)
            || self.has_to_settle_id(request)
    }

    /// Whether what may be said of the next transaction has to be taken back: if it is still this session's it
    /// is said again. A question for what the statement before left would find another one's.
    fn has_to_unsay(&self, request: &Request<Command>) -> bool {
        let asks_last = |effect: &Effect| matches!(effect, Effect::NeedsLast(_));
        let idle = self.backend.open_transaction() == Transaction::Idle;
        self.backend.said_next && idle && !request.intent.effects.iter().any(asks_last)
    }

    /// Whether warnings have to be forgotten that another session's statement, or one of ours for it, has left.
    fn has_to_forget_warnings(&self, request: &Request<Command>) -> bool {
        let is_anothers = self.backend.last_session != self.terms.session;
        let may_be_told = if self.backend.is_mariadb() {
            self.backend.warns && self.may_leave_warnings(request)
        } else {
            // To MySQL these are no statements: how many warnings there are they tell of the one before.
            matches!(request.wire.code, code::INIT_DB | code::SET_OPTION | code::FIELD_LIST)
        };
        is_anothers && may_be_told
    }

    /// Whether FOUND_ROWS() is asked for, and is of another session's rows: most writes leave it as it was. What
    /// else the statement before left would be forgotten with it, where that is asked for as well.
    fn has_to_forget_found(&self, request: &Request<Command>) -> bool {
        let mut asks = false;
        for effect in &request.intent.effects {
            match effect {
                Effect::NeedsLast(Left::Found) | Effect::AsksFoundItself => asks = true,
                Effect::NeedsLast(_) => return false,
                _ => {}
            }
        }
        asks && self.backend.found_by != Some(self.terms.session)
    }

    /// Whether LAST_INSERT_ID() has to be this session's before the request runs: it asks for it, or the
    /// answer will not tell whether it has left one.
    fn has_to_settle_id(&self, request: &Request<Command>) -> bool {
        let (id, session) = (&self.backend.insert_id, self.terms.session);
        if id.is_surely_of(session) {
            return false;
        }
        let intent = &request.intent;
        let decides = |effect: &Effect| {
            matches!(
                effect,
                Effect::NeedsPrevious
                    | Effect::AsksItself
                    | Effect::Touches
                    | Effect::Calls
                    // `SET last_insert_id = …`.
                    | Effect::Pin(PinReason::Setting)
            )
        };
        let untold = request.wire.code == code::STMT_BULK_EXECUTE
            || intent.reason == Reason::Ddl && intent.effects.contains(&Effect::DrawsSequence)
            || intent.statements > 1 && intent.access == Access::Write;
        untold || id.is_full_of(session) || intent.effects.iter().any(decides)
    }

    /// Forgets what is another session's.
    async fn settle_id(&mut self, request: &Request<Command>) -> Result<(), Fault> {
        let asks_last = |effect: &Effect| matches!(effect, Effect::NeedsLast(_));
        let asks_last = request.intent.effects.iter().any(asks_last);
        let leaves_none = only_asks(&request.intent);
        let backend = &mut *self.backend;
        let forget = match backend.insert_id.before_question(self.terms.session) {
            Settle::Nothing => false,
            // A question of ours would be the last statement: that the ids are none is rarer.
            Settle::Ask if asks_last => false,
            Settle::Forget => true,
            Settle::Ask => {
                let rows = backend.query_all("SELECT LAST_INSERT_ID()").await?;
                let value = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
                !value.is_some_and(|value| backend.insert_id.is_told(value))
            }
        };
        if forget {
            backend.query_all(FORGET_LAST).await?;
        }
        if forget || !leaves_none || !backend.insert_id.is_nobodys() {
            backend.insert_id.is_of(self.terms.session);
        }
        Ok(())
    }

    /// What must have succeeded before the request may run: the session's settings, the statements
    /// kept back, and the prepared statements that it names.
    pub(super) async fn prepare_connection(&mut self, request: &Request<Command>) -> Result<(), Fault> {
        if self.has_to_unsay(request) {
            // Where nothing is open it ends that and nothing else.
            match self.backend.query_all(ROLLBACK).await {
                // What XA has prepared is no transaction to the status, and cannot be ended so.
                Err(Fault::Refused(_)) => self.backend.touched = true,
                ended => drop(ended?),
            }
            self.backend.said_next = false;
        }
        let resets = request.wire.code == code::RESET_CONNECTION;
        if !resets {
            let wanted = self.frontend.carried.now().clone();
            self.backend.bring(&wanted).await?;
        }
        if self.has_to_settle_id(request) {
            self.settle_id(request).await?;
        }
        for statement in self.terms.ahead {
            self.backend.query_all(statement).await?;
        }
        for effect in &request.intent.effects {
            match effect {
                Effect::Execute { name } => {
                    encode::prepare_own(self.backend, self.frontend, name).await?;
                }
                Effect::Deallocate { name: Some(name) } => {
                    encode::name_own(self.backend, self.frontend, name).await?;
                }
                _ => {}
            }
        }
        let has_own_id = request.intent.effects.contains(&Effect::NeedsPrevious)
            && self.backend.insert_id.is_surely_of(self.terms.session);
        if self.terms.forget_last && !has_own_id {
            self.backend.query_all(FORGET_LAST).await?;
            self.backend.insert_id = InsertId::default();
            self.backend.found_by = None;
            self.backend.warns = false;
        } else if self.terms.forget_last || self.has_to_forget_warnings(request) {
            self.backend.query_all(FORGET_WARNINGS).await?;
            self.backend.warns = false;
        }
        if self.has_to_forget_found(request) {
            self.backend.query_all(FORGET_FOUND).await?;
        }
        if let (code::STMT_EXECUTE | code::STMT_BULK_EXECUTE, Some((_, statement))) =
            (request.wire.code, &request.wire.statement)
        {
            encode::prepare(self.backend, statement).await?;
        }
        Ok(())
    }

    /// What variables became that the server computed: from now on the session's settings.
    pub(super) async fn carry_computed(&mut self, request: &Request<Command>) -> Result<(), Fault> {
        for effect in &request.intent.effects {
            let Effect::SetComputed { name } = effect else { continue };
            if self.failed {
                break;
            }
            // The client has its answer: there is nothing to be tried again.
            let question = format!("SELECT @@SESSION.{name}");
            let rows = watched(self.terms.watch, self.backend.query_all(&question)).await;
            let rows = rows.map_err(|_| Fault::Client(io::ErrorKind::ConnectionAborted.into()))?;
            let Some(value) = rows.first().and_then(|row| row.first()?.as_deref()) else { continue };
            let statement = format!("SET SESSION {name} = {}", quote_literal(value.as_bytes()));
            let settings = self.frontend.carried.now().with(name, &statement);
            self.frontend.carried.set(settings);
            self.frontend.note_setting(name, value);
        }
        Ok(())
    }
}

/// Whether a request asks for what others left and leaves no id itself.
fn only_asks(intent: &Intent) -> bool {
    let asks = |effect: &Effect| matches!(effect, Effect::NeedsPrevious | Effect::NeedsLast(_));
    intent.statements == 1 && intent.reason == Reason::State && intent.effects.iter().all(asks)
}
