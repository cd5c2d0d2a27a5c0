//! What a request has done, also where it failed midway: a string of several statements, or a pipeline,
//! keeps what it committed before its error, and what no ROLLBACK undoes, as PREPARE and DEALLOCATE.

use super::{
    batch::{Batch, End, Kind},
    encode,
    frontend::Frontend,
    relay::Outcome,
    settings::Carried,
};
use crate::{
    protocol::Transaction,
    sql::{self, Dialect, Effect, Intent, effects::Discard},
};

/// Effects of a request, as far as its statements were answered.
#[derive(Debug)]
pub(super) enum Done {
    /// It did not fail.
    All,
    /// Its first statement failed.
    Nothing,
    /// It failed behind the statements that have these.
    Until(Vec<Effect>),
    /// It failed, and where is not known.
    Unknown,
    /// A part of a pipeline whose answers are still to come.
    Sent,
}

impl Done {
    /// Those that have come true as far as is known, in order.
    pub(super) fn effects<'a>(&'a self, intent: &'a Intent) -> &'a [Effect] {
        match self {
            Self::All | Self::Sent => &intent.effects,
            Self::Nothing | Self::Unknown => &[],
            Self::Until(done) => done,
        }
    }

    /// Whether it failed behind something.
    pub(super) fn is_part(&self) -> bool {
        matches!(self, Self::Until(_) | Self::Unknown)
    }

    /// Follows what it did to settings.
    pub(super) fn carry(&self, carried: &mut Carried, intent: &Intent, outcome: Outcome) {
        let Outcome { failed, transaction, rolled_back, had_failed } = outcome;
        match self {
            Self::Until(done) => carry_part(carried, done, transaction, had_failed),
            _ => carried.learn(&intent.effects, failed, transaction, rolled_back),
        }
    }
}

/// What stands before the end of a transaction counts as it ended; the rest, as the transaction does
/// in which the error came.
fn carry_part(carried: &mut Carried, done: &[Effect], transaction: Transaction, had_failed: bool) {
    // A BEGIN takes what stands before it in the string into its transaction.
    let done: Vec<Effect> = done
        .iter()
        .filter(|effect| !matches!(effect, Effect::Begin(_) | Effect::BeginUnknown))
        .cloned()
        .collect();
    let mut rest = &done[..];
    let mut rolled_back = had_failed;
    // From here on ROLLBACK goes back to this.
    carried.learn(&[], false, Transaction::Unit, false);
    while let Some(end) = rest.iter().position(ends_transaction) {
        let (ended, behind) = rest.split_at(end + 1);
        carried.learn(ended, false, Transaction::Idle, rolled_back);
        carried.learn(&[], false, Transaction::Unit, false);
        (rest, rolled_back) = (behind, false);
    }
    match transaction {
        // What it set comes back with ROLLBACK TO a savepoint behind it.
        Transaction::Open | Transaction::Failed => carried.learn(rest, false, transaction, false),
        Transaction::Idle | Transaction::Unit => carried.learn(&[], true, transaction, false),
    }
}

fn ends_transaction(effect: &Effect) -> bool {
    effect.ends_as_committed().is_some() || *effect == Effect::Discard(Discard::All)
}

impl Frontend {
    /// What the request did. `completed`: statements that were answered before the error; `None` where
    /// answers of an earlier part of its pipeline are among them.
    pub(super) fn done(&self, intent: &Intent, batch: &Batch, failed: bool, completed: Option<u32>) -> Done {
        if !failed {
            return if encode::answer_due(batch) { Done::All } else { Done::Sent };
        }
        match completed {
            _ if intent.effects.is_empty() => Done::Nothing,
            Some(0) => Done::Nothing,
            None => Done::Unknown,
            Some(completed) => self.done_before(intent, batch, completed),
        }
    }

    fn done_before(&self, intent: &Intent, batch: &Batch, completed: u32) -> Done {
        match batch.kind {
            Kind::Extended => {
                let of_done = batch.effects_until.iter().rfind(|(executed, _)| *executed <= completed);
                let count = of_done.map_or(0, |(_, effects)| *effects as usize);
                Done::Until(intent.effects.iter().take(count).cloned().collect())
            }
            _ => self.done_of_string(batch, completed).map_or(Done::Unknown, Done::Until),
        }
    }

    /// The effects of the first statements of a string, each read by itself.
    fn done_of_string(&self, batch: &Batch, completed: u32) -> Option<Vec<Effect>> {
        if batch.end != End::Whole {
            return None;
        }
        let text = std::str::from_utf8(self.query_text(batch)?).ok()?;
        let mut done = Vec::new();
        for statement in sql::split(text, Dialect::Postgres, batch.modes).into_iter().take(completed as usize)
        {
            let intent = self.behind(self.classify_in(batch.modes, statement.as_bytes()), &done);
            done.extend(intent.effects.iter().cloned());
        }
        Some(done)
    }
}
