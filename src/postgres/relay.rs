//! Runs one request on a server connection and streams its answer to the client.
//!
//! Bytes go out of the receive buffer as they came; only headers are looked at, and the few small
//! messages that decide something. Rows are never decoded.

mod ahead;
mod copy;
mod errors;
mod scan;
mod send;

use std::io;

use super::{
    backend::Backend,
    batch::Batch,
    encode::{self, Expect},
    frame,
    frontend::{Frontend, eof},
};
use crate::{
    inbox,
    passage::Passage,
    protocol::{Fault, MayRefuse, Refused, Reply, Request, Terms, Transaction},
    sending::Sending,
    standing::{unsent, watched},
};

/// Answer bytes kept back while the request could still run elsewhere.
const KEPT_BACK: usize = inbox::BUFFER;

/// One exchange in progress.
pub(super) struct Relay<'a> {
    backend: &'a mut Backend,
    frontend: &'a mut Frontend,
    terms: Terms<'a>,
    passage: Passage,
    sending: Sending,
    /// The request has answered with more than acknowledgements: it cannot run elsewhere.
    decided: bool,
    /// A notice came first: the server has something to say about what it did.
    noticed: bool,
    /// Nothing may be kept back any more.
    released: bool,
    failed: bool,
    rolled_back: bool,
    /// Statements of the client's that were answered before an error, if there was one.
    completed: u32,
    /// Answers of an earlier part of a pipeline are due.
    owes_earlier: bool,
    /// The transaction had failed before the request.
    had_failed: bool,
    /// The session's own settings could not be brought; the request did not run.
    setting_failed: bool,
    refused: Option<Refused>,
    /// The server is ending this connection.
    dying: bool,
    /// A BEGIN that was held back goes ahead of the request.
    began: bool,
    /// The plan of a prepared statement is out of date.
    stale_plan: bool,
}

/// What the scan of received bytes came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scan {
    /// More has to be received.
    More,
    /// All answers that were due have come.
    Done,
    /// The server waits for the client's COPY data.
    CopyIn,
}

impl<'a> Relay<'a> {
    pub(super) fn new(backend: &'a mut Backend, frontend: &'a mut Frontend, terms: &Terms<'a>) -> Self {
        let backend_skips = backend.skipping;
        let had_failed = backend.transaction == Transaction::Failed;
        let owes_earlier = !backend.expect.is_empty();
        Self {
            passage: Passage::new(std::mem::take(&mut backend.gathered))
                .resumed(std::mem::take(&mut backend.rest)),
            backend,
            frontend,
            terms: *terms,
            sending: Sending::default(),
            decided: false,
            noticed: false,
            // What became of a COMMIT can still be answered while nothing but notices has come.
            released: matches!(terms.may_refuse, MayRefuse::No | MayRefuse::Replan) && !terms.wants_id,
            // In a unit that has failed nothing is run any more.
            failed: backend_skips,
            rolled_back: false,
            completed: 0,
            had_failed,
            owes_earlier,
            setting_failed: false,
            refused: None,
            dying: false,
            began: !terms.ahead.is_empty(),
            stale_plan: false,
        }
    }

    /// Sends the request, relays the answer, and says how it ended.
    pub(super) async fn run(&mut self, request: &Request<Box<Batch>>) -> Result<Reply, Fault> {
        if self.terms.watch.is_over(false) {
            return Err(unsent());
        }
        self.frontend.statements.begin_attempt();
        self.backend.statements.know_definitions(self.frontend.definitions());
        // What is rare is boxed: the future of every statement stays small.
        if self.has_settings_to_bring(request) {
            Box::pin(self.bring_settings()).await?;
        }
        if self.has_long_query_to_follow(request) {
            Box::pin(self.bring_ahead()).await?;
        }
        if !self.backend.in_unit && self.has_shapes_to_learn(request) {
            watched(self.terms.watch, Box::pin(self.learn_shapes(request))).await?;
        }
        self.send_request(request).await?;
        self.backend.in_unit = true;
        let answered = if encode::answer_due(&request.wire) || self.dying {
            self.relay_answers().await
        } else {
            self.flush().await
        };
        if self.stale_plan {
            self.retire_stale(request);
        }
        if matches!(answered, Err(Fault::Refused(_))) && self.backend.skipping {
            // The unit has no Sync yet: until one comes the server would skip the next attempt, too.
            watched(self.terms.watch, Box::pin(self.backend.sync_quietly())).await?;
        }
        answered?;
        self.finish(request)
    }

    /// Hands on what is due of the parts of a unit that were sent.
    pub(super) async fn settle_unit(&mut self) -> Result<(), Fault> {
        self.send(&frame::FLUSH).await?;
        self.relay_answers().await?;
        self.put_away();
        Ok(())
    }

    /// Whether all that the client waits for has come, and only the answer to a Sync of ours is due.
    /// A server that ends here has answered: a word more, and the client would take it for the
    /// answer to its next request.
    fn is_answered(&self) -> bool {
        let ours = |expect: &Expect| matches!(expect, Expect::Sync { forward: false });
        !self.setting_failed
            && self.refused.is_none()
            && !self.passage.is_amid()
            && !self.backend.expect.is_empty()
            && self.backend.expect.iter().all(ours)
    }

    /// The connection has ended; what was open in it is found to be lost when the session goes on.
    fn end_behind_answer(&mut self) {
        self.backend.expect.clear();
        self.backend.closed = true;
    }

    fn server_lost(&mut self, error: io::Error) -> Fault {
        match self.refused.take() {
            Some(refused) => Fault::Refused(refused),
            None => Fault::Server {
                error,
                sent: self.sending.may_have_arrived(&self.backend.stream),
                forwarded: self.passage.forwarded(false),
            },
        }
    }

    async fn relay_answers(&mut self) -> Result<(), Fault> {
        loop {
            match self.scan()? {
                Scan::Done => return self.flush().await,
                Scan::CopyIn => {
                    self.flush().await?;
                    Box::pin(self.copy_in()).await?;
                    if !self.backend.expect.contains(&Expect::Query) {
                        // In the extended protocol the server keeps its answer until the Sync,
                        // which the client sends behind its data.
                        return Ok(());
                    }
                    continue;
                }
                // Nobody is to see the answer before the session has learned from it: others go by what it defined.
                Scan::More if self.is_answered() => {}
                Scan::More => self.hand_on().await?,
            }
            match self.receive().await {
                Ok(0) | Err(_) if self.is_answered() => {
                    self.end_behind_answer();
                    return self.flush().await;
                }
                Ok(0) => {
                    if self.dying && self.failed {
                        return self.flush().await;
                    }
                    return Err(self.server_lost(eof()));
                }
                Ok(_) => {}
                Err(error) => return Err(self.server_lost(error)),
            }
        }
    }

    /// Waits for what the server says next.
    ///
    /// # Errors
    /// Also when the server may no longer say anything: it was fenced, or is down and another can
    /// be asked.
    async fn receive(&mut self) -> io::Result<usize> {
        let movable = self.terms.may_refuse == MayRefuse::Any && !self.passage.has_begun() && !self.decided;
        let backend = &mut *self.backend;
        self.terms.watch.read(&mut backend.inbox, &mut backend.stream, movable).await
    }

    /// Hands on what may go to the client by now.
    async fn hand_on(&mut self) -> Result<(), Fault> {
        let keep = !self.released && !self.decided && self.passage.waiting() < KEPT_BACK;
        if keep || self.refused.is_some() { Ok(()) } else { self.flush().await }
    }

    /// Hands everything that was looked at to the client, and drops it.
    async fn flush(&mut self) -> Result<(), Fault> {
        let bytes = self.passage.ready(&self.backend.inbox);
        if !bytes.is_empty() {
            self.terms.begin_doubt();
            self.frontend.write(bytes).await?;
        }
        self.passage.settle(&mut self.backend.inbox);
        Ok(())
    }

    /// Leaves the passage to whoever reads on: of a unit in parts, the answers may have stopped in mid-message.
    fn put_away(&mut self) {
        self.backend.rest = self.passage.rest();
        self.backend.gathered = self.passage.take_spare();
    }

    /// Puts bytes of ours where the scan stands.
    fn inject(&mut self, bytes: &[u8]) {
        self.passage.put(&self.backend.inbox, bytes);
    }

    /// Whether the client believes to be in a transaction, also where its BEGIN went just ahead.
    fn in_transaction(&self) -> bool {
        matches!(self.backend.transaction, Transaction::Open | Transaction::Failed) || self.began
    }

    fn finish(&mut self, request: &Request<Box<Batch>>) -> Result<Reply, Fault> {
        let open = self.in_transaction();
        let completed = (!self.owes_earlier).then_some(self.completed);
        let done = self.frontend.done(&request.intent, &request.wire, self.failed, completed);
        self.put_away();
        let Self { backend, frontend, terms, .. } = self;
        for carried in [&mut backend.carried, &mut frontend.carried] {
            carried.learn_ahead(terms.ahead_savepoints);
        }
        let mut lost = false;
        if self.dying {
            lost = open;
            backend.closed = true;
            backend.transaction = Transaction::Idle;
        }
        let transaction = match backend.transaction {
            Transaction::Idle if backend.in_unit && !self.dying => Transaction::Unit,
            other => other,
        };
        let (failed, rolled_back, had_failed) = (self.failed, self.rolled_back, self.had_failed);
        let outcome = Outcome { failed, rolled_back, transaction, had_failed };
        backend.learn(&request.intent, outcome, &done, terms.session, frontend);
        frontend.learn(&request.intent, outcome, &done);
        frontend.statements.settle();
        frontend.consume(&request.wire);
        Ok(Reply {
            transaction,
            failed: self.failed,
            warned: false,
            wrote: None,
            told_id: false,
            done: Vec::new(),
            begun_none: false,
            lost,
        })
    }
}

/// How a request ended, for what is carried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub failed: bool,
    /// Its last command was answered with ROLLBACK.
    pub rolled_back: bool,
    pub transaction: Transaction,
    /// It came in a transaction that had failed.
    pub had_failed: bool,
}
