//! What an error of the server does to the request, and whether it is the client's to see.

use super::Relay;
use crate::{
    postgres::{
        encode::Expect,
        frame::{self, HEADER},
        refusal::{self, ErrorClass},
    },
    protocol::{MayRefuse, Refused, RefusedCause},
};

/// A setting's name that no server accepts any more: an extension was loaded that reserves the prefix.
const INVALID_NAME: [u8; 5] = *b"42602";

impl Relay<'_> {
    /// An error: everything up to the next Sync is skipped, what was due there does not come.
    pub(super) fn error(&mut self, header: frame::Header) {
        let data = self.passage.unseen(&self.backend.inbox);
        let length = header.length.min(data.len());
        let fields = frame::error_fields(&data[HEADER..length]);
        let replaced = match self.backend.expect.front() {
            Some(Expect::FailAs(error)) => Some(error.clone()),
            _ => None,
        };
        let ours = self.backend.skip_to_sync();
        self.failed = true;
        self.stale_plan |= fields.stale_plan;
        self.setting_failed |= ours && !self.decided;
        if ours && fields.code == INVALID_NAME {
            let error = &self.passage.unseen(&self.backend.inbox)[HEADER..length];
            self.frontend.carried.drop_named_in(error);
        }
        self.dying |= fields.fatal;
        let cause = if replaced.is_some() { None } else { self.refusal_cause(fields, ours) };
        if cause.is_none() {
            // Otherwise another attempt may name them yet.
            self.frontend.statements.forget_expected();
        }
        match (cause, replaced) {
            (Some(cause), _) if self.refused.is_none() => {
                // What the client gets if no other server is asked.
                let raw = self.passage.with_next(&self.backend.inbox, header.length);
                self.refused = Some(Refused { raw, cause, code: fields.code });
                self.pass_message(header.length, true);
            }
            (_, Some(error)) => {
                self.pass_message(header.length, false);
                self.inject(&error);
            }
            _ => self.pass_message(header.length, true),
        }
        if fields.fatal {
            self.end_by_server();
        }
    }

    /// FATAL: nothing follows. The client has its error and is told that it may go on.
    fn end_by_server(&mut self) {
        let due = self
            .backend
            .expect
            .iter()
            .any(|expect| matches!(expect, Expect::Sync { .. } | Expect::Query | Expect::FunctionCall));
        self.backend.expect.clear();
        self.backend.in_unit = !due;
        if due && self.refused.is_none() {
            // The transaction is gone with its server, but for the client it has to be ended.
            let open = self.in_transaction();
            self.inject(if open { &frame::READY_FAILED } else { &frame::READY_IDLE });
        }
    }

    /// Whether, and why, this error is kept from the client for another attempt.
    fn refusal_cause(&self, fields: frame::ErrorFields, ours: bool) -> Option<RefusedCause> {
        if self.passage.has_begun() || self.decided || self.terms.may_refuse == MayRefuse::No {
            return None;
        }
        if fields.stale_plan {
            return Some(RefusedCause::Replan);
        }
        if self.terms.may_refuse == MayRefuse::Replan {
            return None;
        }
        let class = refusal::classify(&fields.code);
        if class == ErrorClass::Stopping {
            // Only 57P01 shows that nothing was committed: 57P02 strikes anywhere.
            let harmless = self.terms.may_refuse == MayRefuse::Any || fields.code == *b"57P01";
            return (fields.fatal && harmless && !self.noticed).then_some(RefusedCause::Stopping);
        }
        if self.terms.may_refuse == MayRefuse::Stopping {
            return (class == ErrorClass::Writes && !ours).then_some(RefusedCause::Writes);
        }
        if ours {
            return Some(RefusedCause::Setting);
        }
        match class {
            ErrorClass::Writes => Some(RefusedCause::Writes),
            ErrorClass::Standby => Some(RefusedCause::Standby),
            ErrorClass::MaybeStale => Some(RefusedCause::MaybeStale),
            _ => None,
        }
    }
}
