//! What a server connection lacks before the request can run on it: settings, what was held back, the
//! shapes of prepared statements.

use std::sync::Arc;

use super::Relay;
use crate::{
    postgres::{
        batch::{Batch, End, Kind, Subject},
        prepared::Statement,
        refusal::{self, ErrorClass},
        settings::Settings,
    },
    protocol::{Fault, Refused, RefusedCause, Request, Transaction},
    sql::Effect,
    standing::watched,
};

impl Relay<'_> {
    /// Settings that differ and cannot share the request's implicit transaction take a round trip
    /// of their own; the others are put ahead of the request by [`Self::send_request`].
    pub(super) fn has_settings_to_bring(&self, request: &Request<Box<Batch>>) -> bool {
        let (wanted, had) = (self.frontend.carried.now(), self.backend.carried.now());
        if had.hash() == wanted.hash() {
            return false;
        }
        let joins = request.intent.joins
            && self.terms.ahead.is_empty()
            && self.backend.transaction == Transaction::Idle
            && wanted.may_join(had)
            && request.wire.end == End::Whole
            && !request
                .intent
                .effects
                .iter()
                .any(|effect| matches!(effect, Effect::Begin(_) | Effect::BeginUnknown));
        !joins
    }

    /// # Errors
    /// [`Fault::Refused`] with the server's error when one fails: the request did not run.
    pub(super) async fn bring_settings(&mut self) -> Result<(), Fault> {
        let wanted = self.frontend.carried.now().clone();
        let statements = self.statements_apart(&wanted);
        watched(self.terms.watch, self.backend.execute_all(&statements)).await?;
        self.backend.carried.bring(&wanted);
        Ok(())
    }

    fn statements_apart(&self, wanted: &Settings) -> Vec<Box<str>> {
        let had = self.backend.carried.now();
        match self.backend.transaction {
            Transaction::Idle => wanted.statements_apart_from(had),
            Transaction::Unit | Transaction::Open | Transaction::Failed => wanted.statements_from(had),
        }
    }

    /// A query that is passed on in pieces cannot be followed by a Sync at once: what goes ahead of
    /// it takes a round trip of its own.
    pub(super) fn has_long_query_to_follow(&self, request: &Request<Box<Batch>>) -> bool {
        request.wire.kind != Kind::Extended && request.wire.end != End::Whole && !self.terms.ahead.is_empty()
    }

    pub(super) async fn bring_ahead(&mut self) -> Result<(), Fault> {
        watched(self.terms.watch, self.backend.execute_all(self.terms.ahead)).await?;
        self.terms.ahead = &[];
        Ok(())
    }

    /// The key of a statement whose shape the client was told and that is new to this server, or was prepared
    /// there as another one before definitions that may have made it the same.
    fn unknown_shape(&self, batch: &Batch, index: usize) -> Option<(u128, Arc<Statement>)> {
        let message = &batch.messages[index];
        let Subject::Named(statement) = &message.subject else { return None };
        let key = statement.key ^ u128::from(self.frontend.carried.now().plan_key());
        if self.backend.statements.has_current_shape(key) {
            return None;
        }
        let name = self.frontend.bound_name(message)?;
        let told = self.frontend.statements.told(name)?;
        if self.backend.statements.shape(key) == Some(told) {
            return None;
        }
        if batch.takes_any_shape(index, self.frontend.inbox.data()) {
            return None;
        }
        Some((key, statement.clone()))
    }

    pub(super) fn has_shapes_to_learn(&self, request: &Request<Box<Batch>>) -> bool {
        (0..request.wire.messages.len()).any(|index| self.unknown_shape(&request.wire, index).is_some())
    }

    /// Finds out what this server answers to such statements: a client that would decode rows by
    /// another shape must not get them.
    pub(super) async fn learn_shapes(&mut self, request: &Request<Box<Batch>>) -> Result<(), Fault> {
        for index in 0..request.wire.messages.len() {
            if let Some((key, statement)) = self.unknown_shape(&request.wire, index) {
                self.bring_settings_now().await?;
                if self.backend.statements.is_outdated(key) {
                    self.backend.retire(key);
                }
                let shape = self.backend.describe(key, &statement).await.map_err(stale_refusal)?;
                self.backend.statements.set_shape(key, shape);
            }
        }
        Ok(())
    }

    /// What is described depends on search_path and role.
    async fn bring_settings_now(&mut self) -> Result<(), Fault> {
        let wanted = self.frontend.carried.now().clone();
        let statements = self.statements_apart(&wanted);
        if !statements.is_empty() {
            self.backend.execute_all(&statements).await?;
            self.backend.carried.bring(&wanted);
        }
        Ok(())
    }

    /// Statements whose plans are out of date are prepared anew when they are wanted again.
    pub(super) fn retire_stale(&mut self, request: &Request<Box<Batch>>) {
        let plan_key = u128::from(self.frontend.carried.now().plan_key());
        for message in &request.wire.messages {
            if let Subject::Named(statement) = &message.subject {
                self.backend.retire(statement.key ^ plan_key);
            }
        }
    }
}

/// The error of a statement that could not be prepared here, as that of the request itself.
fn stale_refusal(fault: Fault) -> Fault {
    match fault {
        Fault::Refused(refused) => {
            let cause = match refusal::classify(&refused.code) {
                ErrorClass::Standby => RefusedCause::Standby,
                ErrorClass::MaybeStale => RefusedCause::MaybeStale,
                _ => RefusedCause::Setting,
            };
            Refused { cause, ..refused }.into()
        }
        other => other,
    }
}
