//! What the messages of one extended batch do together.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    batch::Subject,
    prepared::{Origin, Statement},
};
use crate::sql::{Access, Effect, Intent, Reason, Tables};

/// What one extended batch does, gathered message by message.
#[derive(Default)]
pub(super) struct Unit {
    pub intent: Option<Arc<Intent>>,
    /// `intent` holds effects of a statement that is executed.
    pub counted: u32,
    pub executes: u32,
    pub bound_text: Option<Box<str>>,
    pub text: Option<Box<str>>,
    /// The unnamed statement of before this batch was meant, or has been replaced.
    pub used_unnamed: bool,
    pub defined_unnamed: bool,
    pub previous_unnamed: Option<(u128, Box<[u8]>)>,
    pub own: SmallVec<[Box<[u8]>; 0]>,
    pub effects_until: SmallVec<[(u32, u32); 0]>,
    /// Another statement is prepared or described than the one that is executed; known of one alone.
    pub others: bool,
}

impl Unit {
    /// Statements of Parse messages have names of ours on servers, those of SQL PREPARE their own.
    pub(super) fn by_name(&mut self, name: &[u8], statement: &Arc<Statement>) -> Subject {
        match statement.origin {
            Origin::Parse => Subject::Named(statement.clone()),
            Origin::Sql => {
                self.own.push(name.into());
                Subject::Plain
            }
        }
    }

    /// A name that the client has not given to any statement. Where the server connection has one of
    /// that name it is another session's, and goes first: the server's error is the answer.
    pub(super) fn nobodys(&mut self, name: &[u8]) -> Subject {
        if name.is_empty() {
            return Subject::Unnamed(None);
        }
        self.own.push(name.into());
        Subject::Plain
    }

    /// An EXECUTE is described and bound as the statement it names: without a result where the server has no such
    /// statement, also if it has one when the EXECUTE runs.
    pub(super) fn call(&mut self, intent: &Intent) {
        for effect in &intent.effects {
            if let Effect::Execute { name } = effect {
                self.own.push(name.as_bytes().into());
            }
        }
    }

    pub(super) fn add(&mut self, intent: &Arc<Intent>, executed: bool) {
        let Some(so_far) = &self.intent else {
            self.intent = Some(intent.clone());
            self.counted = u32::from(executed);
            return;
        };
        let same = Arc::ptr_eq(so_far, intent);
        match (same, executed) {
            (true, true) if self.counted == 0 => self.counted = 1,
            (true, false) => {}
            _ => {
                let concerns = if executed { self.counted == 0 } else { self.counted < 2 };
                self.others |= concerns && !same && **so_far != **intent;
                // A unit may have tens of thousands of messages: what they do is gathered in place.
                let mut all = if self.counted == 0 { bare(so_far) } else { so_far.clone() };
                self.intent = None;
                extend(Arc::make_mut(&mut all), intent, executed);
                self.intent = Some(all);
                self.counted += u32::from(executed);
            }
        }
    }

    /// Has `own` in the place of what a Bind would run: nothing of it is for a server.
    pub(super) fn instead(&mut self, prepared: &Arc<Intent>, own: Arc<Intent>) -> Arc<Intent> {
        if self.counted == 0 && self.intent.as_ref().is_some_and(|so_far| Arc::ptr_eq(so_far, prepared)) {
            self.intent = None;
        }
        own
    }

    /// A statement is executed.
    pub(super) fn execute(&mut self, intent: &Arc<Intent>) {
        self.add(intent, true);
        let effects = self.executed().len();
        if !intent.effects.is_empty()
            && let Ok(effects) = u32::try_from(effects)
        {
            self.effects_until.push((self.executes, effects));
        }
    }

    /// The effects of what has been executed so far.
    pub(super) fn executed(&self) -> &[Effect] {
        match &self.intent {
            Some(intent) if self.counted > 0 => &intent.effects,
            _ => &[],
        }
    }

    /// A message that only the server can make sense of, on the connection the session keeps if it
    /// keeps one: a portal may be a cursor that SQL declared.
    pub(super) fn add_unknown(&mut self) {
        let unknown = Intent { reason: Reason::State, effects: Vec::new(), ..function_call() };
        self.add(&Arc::new(unknown), true);
    }

    /// A statement that was not seen whole: it may leave anything behind.
    pub(super) fn add_unseen(&mut self) {
        self.add(&Arc::new(Intent { reason: Reason::TooLong, ..function_call() }), true);
    }

    pub(super) fn finish(self) -> Arc<Intent> {
        match self.intent {
            Some(intent) if self.counted == 0 => bare(&intent),
            Some(mut intent) => {
                if self.others && self.counted == 1 {
                    // What those are only a server can say: none of it is answered here.
                    Arc::make_mut(&mut intent).statements += 1;
                }
                intent
            }
            // Sync, Flush, Close, Describe of portals: for whoever holds the session.
            None => Arc::new(Intent::of_session(0)),
        }
    }
}

/// The intent of preparing a statement without running it.
pub(super) fn bare(intent: &Arc<Intent>) -> Arc<Intent> {
    if intent.effects.is_empty() {
        return intent.clone();
    }
    Arc::new(Intent { effects: Vec::new(), ..Intent::clone(intent) })
}

pub(super) fn with_access(intent: &Arc<Intent>, access: Access) -> Arc<Intent> {
    if intent.access == access {
        return intent.clone();
    }
    let reason = if access == Access::Write { Reason::State } else { Reason::Read };
    Arc::new(Intent { access, reason, ..Intent::clone(intent) })
}

/// What two statements do together.
pub(super) fn join(first: &Intent, second: &Intent) -> Arc<Intent> {
    let mut joined = Intent::clone(first);
    extend(&mut joined, second, true);
    Arc::new(joined)
}

/// Makes of `joined` what it does together with a statement behind it, which is only prepared unless it is
/// `executed`.
fn extend(joined: &mut Intent, second: &Intent, executed: bool) {
    // What changes data says more than what only begins a transaction or asks the server.
    let says_more = second.reason.changes_data() && !joined.reason.changes_data();
    if second.access == Access::Write && (joined.access == Access::Read || says_more) {
        joined.access = Access::Write;
        joined.reason = second.reason;
    }
    if executed {
        joined.effects.extend(second.effects.iter().cloned());
        joined.statements += second.statements;
    } else {
        joined.statements = joined.statements.max(second.statements);
    }
    joined.plain = false;
    joined.joins &= second.joins;
    joined.by_text |= second.by_text;
    extend_tables(&mut joined.tables, &second.tables);
    if second.hints != Default::default() {
        joined.hints = second.hints.clone();
    }
}

fn extend_tables(tables: &mut Tables, more: &Tables) {
    let (Tables::Some(known), Tables::Some(more)) = (&*tables, more) else {
        *tables = Tables::All;
        return;
    };
    let mut new = more.iter().filter(|name| !known.contains(name)).peekable();
    if new.peek().is_some() {
        *tables = Tables::Some(known.iter().chain(new).cloned().collect());
    }
}

pub(super) fn function_call() -> Intent {
    Intent {
        access: Access::Write,
        reason: Reason::Function,
        effects: vec![Effect::Touches],
        tables: Tables::All,
        ..Intent::of_session(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_executions_are_gathered_in_place_and_name_a_table_once() {
        let insert = Arc::new(Intent {
            access: Access::Write,
            reason: Reason::Dml,
            effects: vec![Effect::DrawsSequence],
            tables: Tables::Some(["t".into()].into()),
            ..Intent::of_session(1)
        });
        let mut unit = Unit::default();
        unit.add(&insert, true);
        unit.add(&insert, true);
        let place = unit.intent.as_ref().map(Arc::as_ptr);

        for _ in 0..1000 {
            unit.add(&insert, false);
            unit.add(&insert, true);
        }

        assert_eq!(unit.intent.as_ref().map(Arc::as_ptr), place);
        let all = unit.finish();
        assert_eq!((all.statements, all.effects.len()), (1002, 1002));
        assert_eq!(all.tables, insert.tables);
    }
}
