//! Our end of a server connection: what it has, and what is due from it.

mod ask;

use std::{
    collections::{BTreeSet, VecDeque},
    io,
};

use tokio::io::AsyncWriteExt;

use self::ask::LONGEST_OWN_ANSWER;
use super::{
    done::Done,
    encode::{self, Expect},
    frame::{self, HEADER},
    frontend::{Frontend, eof},
    parameters::{self, Parameters},
    prepared::{Origin, Own, ServerStatements, Shape, Statement},
    relay::Outcome,
    settings::{Carried, Settings},
};
use crate::{
    inbox::Inbox,
    passage::{Rest, worth_keeping},
    protocol::{Fault, Forwarded, Refused, RefusedCause, Terms, Transaction},
    sql::{
        Access, Effect, Intent, PinReason,
        effects::{Discard, Scope},
    },
    stream::{Home, Stream},
};

/// Whether DISCARD SEQUENCES may share the request's transaction. It takes a snapshot, behind which
/// a transaction's modes cannot be set any more.
fn rides_ahead(intent: &Intent, terms: &Terms<'_>) -> bool {
    intent.joins && !terms.ahead_sets_modes
}

/// Whether a name means something else, or nothing, behind `effects`.
fn replaces(effects: &[Effect], name: &str) -> bool {
    effects.iter().any(|effect| match effect {
        Effect::Deallocate { name: None } | Effect::Discard(Discard::All) => true,
        other => other.replaced_name() == Some(name),
    })
}

/// The key of an unnamed statement that nobody asked for.
pub(super) const UNKNOWN_STATEMENT: u128 = u128::MAX;

/// A server connection that has logged in.
pub struct Backend {
    pub(super) stream: Stream,
    pub(super) inbox: Inbox,
    /// What is to be sent; empty between requests.
    pub(super) out: Vec<u8>,
    /// A spare buffer for the passage of an answer.
    pub(super) gathered: Vec<u8>,
    /// Of a message that had not come whole when a part of a unit ended.
    pub(super) rest: Rest,
    pub(super) expect: VecDeque<Expect>,
    /// As the last ReadyForQuery said.
    pub(super) transaction: Transaction,
    /// Something was sent since the last ReadyForQuery.
    pub(super) in_unit: bool,
    /// An error came, and the Sync that ends the skipping has not been sent.
    pub(super) skipping: bool,
    pub(super) statements: ServerStatements,
    pub(super) carried: Carried,
    pub(super) parameters: Parameters,
    /// Shared statements that are forgotten here and not yet closed there.
    retired: Vec<u32>,
    /// Shape of the last result that a question of ours was told.
    described: Option<Shape>,
    /// LISTEN: notifications are for the session that holds this connection.
    pub(super) listening: bool,
    /// The server ends this connection, or it is beyond repair.
    pub(super) closed: bool,
    /// The session that ran something here last, if it may have drawn from a sequence.
    drew: Option<u64>,
    /// Of the transaction that the last request was to commit, if it was asked for.
    pub(super) transaction_id: Option<u64>,
    /// State of unknown kind was left: only DISCARD ALL makes it another session's.
    touched: bool,
    process_id: u32,
    secret: Box<[u8]>,
    pub(super) home: Home,
}

impl Backend {
    pub(super) fn new(connected: super::login::Connected, prepared_statements: usize) -> Self {
        Self {
            stream: connected.stream,
            inbox: Inbox::with(&connected.unread),
            out: Vec::new(),
            gathered: Vec::new(),
            rest: Rest::default(),
            expect: VecDeque::new(),
            transaction: Transaction::Idle,
            in_unit: false,
            skipping: false,
            statements: ServerStatements::new(prepared_statements),
            carried: Carried::default(),
            parameters: connected.parameters.into_iter().collect(),
            retired: Vec::new(),
            described: None,
            listening: false,
            closed: false,
            drew: None,
            transaction_id: None,
            touched: false,
            process_id: connected.process_id,
            secret: connected.secret_key.into(),
            home: Home::here(),
        }
    }

    pub(super) fn process_id(&self) -> u32 {
        self.process_id
    }

    pub(super) fn secret(&self) -> &[u8] {
        &self.secret
    }

    pub(super) fn give_out(&mut self, out: Vec<u8>) {
        self.out = worth_keeping(out);
    }

    /// Clears what an earlier session left that `intent` could see, ahead of it.
    pub(super) fn put_clearing(&mut self, intent: &Intent, terms: &Terms<'_>, out: &mut Vec<u8>) {
        if self.is_foreign_to(intent, terms) && rides_ahead(intent, terms) {
            encode::put_ahead(&["DISCARD SEQUENCES".into()], out, &mut self.expect);
            self.drew = None;
        }
    }

    /// What must happen before a request that this cannot ride ahead of.
    pub(super) fn needs_clearing(&self, intent: &Intent, terms: &Terms<'_>) -> bool {
        self.is_foreign_to(intent, terms) && !rides_ahead(intent, terms)
    }

    /// Whether the request could see sequence values of another session.
    fn is_foreign_to(&self, intent: &Intent, terms: &Terms<'_>) -> bool {
        // A read cannot see any: currval and lastval are never classified as one.
        self.drew.is_some_and(|drew| drew != terms.session)
            && intent.access == Access::Write
            && self.transaction == Transaction::Idle
    }

    pub(super) fn cleared(&mut self) {
        self.drew = None;
    }

    /// Asks ahead of a COMMIT for the id of its transaction. The server is to say it at once: its
    /// word on the COMMIT is what may get lost.
    pub(super) fn put_question_for_id(&mut self, out: &mut Vec<u8>) {
        self.transaction_id = None;
        // In a transaction that has failed the question would keep the COMMIT from being read.
        if self.transaction == Transaction::Open {
            encode::put_question_for_id(out, &mut self.expect);
        }
    }

    /// Makes statements known under clients' own names what this client's request means by them.
    pub(super) fn put_names(&mut self, effects: &[Effect], frontend: &Frontend, out: &mut Vec<u8>) {
        for (at, effect) in effects.iter().enumerate() {
            match effect {
                Effect::Execute { name } if !replaces(&effects[..at], name) => {
                    self.put_own_name(name.as_bytes(), frontend, out);
                }
                Effect::Prepare { name, .. } | Effect::Deallocate { name: Some(name) }
                    if !replaces(&effects[..at], name) =>
                {
                    self.put_taken_name(name.as_bytes(), frontend, out);
                }
                Effect::ShowsPrepared => {
                    let theirs = frontend.statements.sql_names();
                    let names: BTreeSet<Box<[u8]>> =
                        self.statements.own_names().chain(theirs).map(Into::into).collect();
                    for name in names {
                        self.put_shown_name(&name, frontend, out);
                    }
                }
                _ => {}
            }
        }
    }

    pub(super) fn put_own_name(&mut self, name: &[u8], frontend: &Frontend, out: &mut Vec<u8>) {
        match frontend.statements.get(name) {
            Some(statement) => {
                let plan_key = frontend.carried.now().plan_key();
                encode::put_own(statement, plan_key, name, &mut self.statements, out, &mut self.expect);
            }
            None => encode::put_no_own(name, &mut self.statements, out, &mut self.expect),
        }
    }

    /// For who only looks at what there is: what is there already may be what can no longer be prepared.
    fn put_shown_name(&mut self, name: &[u8], frontend: &Frontend, out: &mut Vec<u8>) {
        let theirs = frontend.statements.get(name).map(|statement| statement.key);
        let is_there = theirs.is_some() && theirs == self.statements.own(name).map(|own| own.key);
        if !is_there {
            self.put_own_name(name, frontend, out);
        }
    }

    /// For who only asks whether a name is taken. What has it may be what can no longer be prepared.
    fn put_taken_name(&mut self, name: &[u8], frontend: &Frontend, out: &mut Vec<u8>) {
        match frontend.statements.get(name) {
            Some(_) => encode::put_taken(name, &mut self.statements, out, &mut self.expect),
            None => encode::put_no_own(name, &mut self.statements, out, &mut self.expect),
        }
    }

    /// After an error: what was due up to the next Sync will not come. Returns whether the error
    /// is that of a statement of ours.
    pub(super) fn skip_to_sync(&mut self) -> bool {
        let ours = match self.expect.front() {
            // The query itself failed; what stands behind it is not skipped.
            Some(Expect::Query | Expect::FunctionCall) => return false,
            Some(Expect::Execute(whose)) => *whose != encode::Whose::Client,
            Some(Expect::Parse { forward, .. } | Expect::Bind { forward } | Expect::Close { forward }) => {
                !forward
            }
            _ => false,
        };
        while !matches!(self.expect.front(), None | Some(Expect::Sync { .. })) {
            if let Some(due) = self.expect.pop_front() {
                self.not_done(&due);
            }
        }
        self.statements.unnamed = Some(UNKNOWN_STATEMENT);
        self.skipping = self.expect.is_empty();
        ours
    }

    /// The server has skipped what this was due for.
    fn not_done(&mut self, due: &Expect) {
        match due {
            Expect::Parse { key: Some(key), .. } => self.statements.remove(*key),
            Expect::Own(name) => self.statements.doubt_own(name),
            _ => {}
        }
    }

    /// The server skips everything up to the next Sync: nothing else is due.
    pub(super) fn skip_what_was_encoded(&mut self, frontend: &mut Frontend) {
        if self.skipping {
            let mut due = std::mem::take(&mut self.expect);
            due.iter().for_each(|due| self.not_done(due));
            self.statements.unnamed = Some(UNKNOWN_STATEMENT);
            due.retain(|expect| matches!(expect, Expect::Sync { .. }));
            self.expect = due;
            frontend.statements.forget_expected();
        }
    }

    /// Follows what an answered request did to this connection.
    pub(super) fn learn(
        &mut self,
        intent: &Intent,
        outcome: Outcome,
        done: &Done,
        session: u64,
        frontend: &Frontend,
    ) {
        let wanted = frontend.carried.now();
        // What rode ahead of the request was undone with it if it failed.
        if !outcome.failed && self.carried.now().hash() != wanted.hash() {
            self.carried.bring(wanted);
        }
        done.carry(&mut self.carried, intent, outcome);
        self.carried.complete(&intent.effects, &frontend.told);
        if matches!(done, Done::Unknown | Done::Sent) {
            intent.effects.iter().for_each(|effect| self.doubt(effect));
        } else {
            done.effects(intent).iter().for_each(|effect| self.apply(effect));
        }
        for effect in &intent.effects {
            match effect {
                Effect::DrawsSequence => self.drew = Some(session),
                Effect::Ddl | Effect::Redefines => self.statements.define(),
                Effect::Touches => {
                    self.statements.define();
                    self.touched = true;
                    self.drew = Some(session);
                }
                Effect::Pin(reason) => {
                    self.listening |= *reason == PinReason::Listen;
                    self.touched = true;
                }
                // The next session is not to depend on how well the string was read.
                Effect::Set { scope: Scope::Session, .. } | Effect::Reset { .. } | Effect::ResetAll
                    if done.is_part() =>
                {
                    self.touched = true;
                }
                _ => {}
            }
        }
    }

    /// Takes note of what has come true.
    fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Discard(Discard::All) => {
                self.statements.clear();
                self.forget_left_state();
            }
            Effect::Discard(Discard::Sequences) => self.drew = None,
            Effect::Deallocate { name: None } => self.statements.clear(),
            Effect::Deallocate { name: Some(name) } => self.statements.remove_own(name.as_bytes()),
            Effect::Prepare { name, statement, .. } => {
                let key = Statement::key_of(statement.as_bytes(), Origin::Sql);
                let plan_key = self.carried.now().plan_key();
                self.statements.set_own(name.as_bytes(), Own { key, plan_key });
            }
            _ => {}
        }
    }

    /// Takes note of what may have come true.
    fn doubt(&mut self, effect: &Effect) {
        match effect {
            Effect::Prepare { name, .. } | Effect::Deallocate { name: Some(name) } => {
                self.statements.doubt_own(name.as_bytes());
            }
            Effect::Deallocate { name: None } | Effect::Discard(Discard::All) => {
                let numbers = self.statements.doubt();
                self.retired.extend(numbers);
            }
            _ => return,
        }
        self.touched = true;
    }

    fn forget_left_state(&mut self) {
        self.touched = false;
        self.drew = None;
        self.listening = false;
    }

    /// Whether only [`Self::clean`] makes it another session's.
    pub(super) fn is_touched(&self) -> bool {
        self.touched || self.listening
    }

    /// Rolls back what is open and forgets all session state, in one round trip.
    pub(super) async fn clean(&mut self) -> Result<(), Fault> {
        if self.in_unit || self.closed || !self.expect.is_empty() {
            // Answers are still on their way: nobody can tell them from the next session's.
            return Err(lost(eof()));
        }
        if self.transaction != Transaction::Idle {
            self.query_all("ROLLBACK").await?;
        }
        self.query_all("DISCARD ALL").await?;
        self.statements.clear();
        self.carried = Carried::new(Settings::default());
        self.forget_left_state();
        Ok(())
    }

    /// Ends a pipeline that is continued on another connection: its Sync, and all that comes up to
    /// the ReadyForQuery, of which the client sees nothing. What it was to see has come.
    pub(super) async fn sync_quietly(&mut self) -> Result<(), Fault> {
        self.expect.clear();
        self.stream.write_all(&frame::SYNC).await.map_err(lost)?;
        self.in_unit = false;
        self.skipping = false;
        match self.collect().await {
            Ok(_) | Err(Fault::Refused(_)) if !self.closed => Ok(()),
            Ok(_) => Err(lost(eof())),
            Err(fault) => Err(fault),
        }
    }

    /// What came while the connection was idle: parameters and notices are nobody's loss.
    /// Returns whether the connection may still be used.
    pub(super) fn take_idle_messages(&mut self) -> bool {
        while let Some(header) = frame::header(self.inbox.data()) {
            if header.length < HEADER || header.length > self.inbox.len() {
                return false;
            }
            match header.tag {
                b'S' => self.note_parameter(header.length),
                b'N' | b'A' => {}
                _ => return false,
            }
            self.inbox.consume(header.length);
        }
        self.inbox.is_empty()
    }

    /// Forgets a shared statement; the server is told with the next request.
    pub(super) fn retire(&mut self, key: u128) {
        if let Some(number) = self.statements.retire(key) {
            self.retired.push(number);
        }
    }

    /// Closes statements that were retired, ahead of the next request.
    pub(super) fn put_retired(&mut self, out: &mut Vec<u8>) {
        for number in std::mem::take(&mut self.retired) {
            encode::put_close_number(number, out, &mut self.expect);
        }
    }

    fn note_parameter(&mut self, length: usize) {
        if let Some((name, value)) = parameters::read(&self.inbox.data()[..length]) {
            self.parameters.set(name, value);
        }
    }

    /// Waits until the server says something by itself, or closes. What it says of a unit of which more is to
    /// come is the answer to that, and waits for the next part.
    pub(super) async fn wait_for_stir(&mut self) {
        if self.in_unit && !self.expect.is_empty() {
            return std::future::pending().await;
        }
        // Of a message whose header has not come whole there is nothing to hand on yet.
        while !self.closed && frame::header(self.inbox.data()).is_none() {
            self.closed = !self.inbox.fill(&mut self.stream).await.is_ok_and(|count| count > 0);
        }
    }

    /// Hands on what the server has said while nobody asked anything.
    pub(super) async fn pass_asynchronous(&mut self, frontend: &mut Frontend) -> Result<(), Fault> {
        while let Some(header) = frame::header(self.inbox.data()) {
            if !(HEADER..=LONGEST_OWN_ANSWER).contains(&header.length) {
                return Err(lost(io::Error::new(io::ErrorKind::InvalidData, "impossible message length")));
            }
            if self.whole_message().await?.is_none() {
                return Err(lost(eof()));
            }
            let forward = match header.tag {
                b'A' => self.listening,
                b'S' => {
                    self.note_parameter(header.length);
                    let read = parameters::read(&self.inbox.data()[..header.length]);
                    read.is_none_or(|(name, value)| frontend.note_parameter(name, value))
                }
                b'N' => true,
                b'E' => return Err(self.farewell_of_server(header.length)),
                _ => return Err(lost(io::Error::new(io::ErrorKind::InvalidData, "answer to nothing"))),
            };
            if forward {
                let message = self.inbox.data()[..header.length].to_vec();
                frontend.write(&message).await?;
            }
            self.inbox.consume(header.length);
        }
        if self.closed { Err(lost(eof())) } else { Ok(()) }
    }

    /// The server ends the connection and says why.
    fn farewell_of_server(&mut self, length: usize) -> Fault {
        self.closed = true;
        let raw = self.inbox.data()[..length].to_vec();
        let code = frame::error_fields(&raw[HEADER..]).code;
        self.inbox.consume(length);
        Fault::Refused(Refused { raw, cause: RefusedCause::Stopping, code })
    }
}

/// One row of text columns.
pub(super) type Row = Vec<Option<String>>;

pub(super) fn lost(error: io::Error) -> Fault {
    Fault::Server { error, sent: true, forwarded: Forwarded::Nothing }
}
