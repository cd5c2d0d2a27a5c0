//! A write that the client's own READ ONLY forbids, on a replica.
//!
//! The replica looks at its `read_only` before it looks at the transaction and refuses by that (1290). The primary
//! would refuse by the transaction (1792): the replica is made to say that, in its own words and language.

use super::Relay;
use crate::{
    mysql::packet::{ErrPacket, HEADER, status},
    protocol::{Fault, Refused},
    standing::watched,
    topology::Role,
};

/// ER_OPTION_PREVENTS_STATEMENT.
pub(super) const OPTION_PREVENTS: u16 = 1290;
/// ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION.
const READ_ONLY_TRANSACTION: u16 = 1792;

/// What `read_only` allows and READ ONLY does not. There is no such table.
const FORBIDDEN: &str = "DROP TEMPORARY TABLE IF EXISTS pointsman_read_only";

impl Relay<'_> {
    /// Whether the transaction of what the replica has refused is READ ONLY by the client's own word.
    pub(super) fn is_told_read_only(&self) -> bool {
        let within = self.backend.status & status::IN_READ_ONLY_TRANSACTION != 0;
        let alone = self.frontend.reads_only || self.frontend.next_read_only == Some(true);
        self.backend.role == Role::Replica && (within || (alone && self.backend.is_guarded()))
    }

    /// Has the replica refuse by the transaction, instead of the error that was kept back.
    pub(super) async fn say_read_only(&mut self, error: Refused) -> Result<(), Fault> {
        self.flush().await?;
        let error = self.read_only_error().await?.unwrap_or(error);
        match &mut self.refused {
            Some(refused) => (refused.raw, refused.code) = (error.raw, error.code),
            None => {
                let mut packet = error.raw;
                if let Some(number) = packet.get_mut(HEADER - 1) {
                    *number = self.passed;
                }
                self.frontend.sequence = self.passed.wrapping_add(1);
                self.frontend.write(&packet).await?;
            }
        }
        Ok(())
    }

    async fn read_only_error(&mut self) -> Result<Option<Refused>, Fault> {
        self.backend.busy = false;
        match watched(self.terms.watch, self.backend.query_all(FORBIDDEN)).await {
            Err(Fault::Refused(refused)) => {
                let says = |error: ErrPacket<'_>| error.errno == READ_ONLY_TRANSACTION;
                let said = refused.raw.get(HEADER..).and_then(ErrPacket::read).is_some_and(says);
                Ok(Some(refused).filter(|_| said))
            }
            other => other.map(|_| None),
        }
    }
}
