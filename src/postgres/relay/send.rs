//! Sends one request, and reads what the server says meanwhile.

use std::io;

use super::Relay;
use crate::{
    inbox,
    postgres::{
        backend,
        batch::{Batch, End, Kind},
        encode::{self, BatchWriter, Expect},
        frame,
        frontend::eof,
    },
    protocol::{Fault, Request, Transaction},
    sql::{Effect, PinReason},
    standing::given_up,
    stream::Outlet,
};

impl Relay<'_> {
    pub(super) async fn send_request(&mut self, request: &Request<Box<Batch>>) -> Result<(), Fault> {
        let batch = &request.wire;
        let mut out = std::mem::take(&mut self.backend.out);
        out.clear();
        let rewritten = self.encode(request, &mut out)?;
        let inbox = std::mem::take(&mut self.frontend.inbox);
        let as_sent = &inbox.data()[..batch.length];
        let mut owes_sync = false;
        if !out.is_empty() {
            if !rewritten {
                out.extend_from_slice(as_sent);
            }
            owes_sync = self.put_trailing_sync(batch, &mut out);
        }
        let result = self.send(if out.is_empty() { as_sent } else { &out }).await;
        self.frontend.inbox = inbox;
        self.backend.give_out(out);
        result?;
        match batch.end {
            End::More { tail } => {
                Box::pin(self.stream_tail(tail)).await?;
                if owes_sync { Box::pin(self.send(&frame::SYNC)).await } else { Ok(()) }
            }
            // No data may go before its COPY has begun: without one the answer is due all the same.
            End::Copy => Box::pin(self.send(&frame::FLUSH)).await,
            _ => Ok(()),
        }
    }

    /// Writes what goes ahead of the request, and the request itself where it has to be changed.
    /// Returns whether it was; nothing written at all means that it goes out as it lies there.
    fn encode(&mut self, request: &Request<Box<Batch>>, out: &mut Vec<u8>) -> Result<bool, Fault> {
        let batch = &request.wire;
        let backend = &mut *self.backend;
        backend.put_clearing(&request.intent, &self.terms, out);
        let wanted = self.frontend.carried.now();
        if backend.carried.now().hash() != wanted.hash() {
            let statements = wanted.statements_from(backend.carried.now());
            encode::put_ahead(&statements, out, &mut backend.expect);
        }
        encode::put_ahead(self.terms.ahead, out, &mut backend.expect);
        if self.terms.wants_id {
            backend.put_question_for_id(out);
        }
        for effect in &request.intent.effects {
            // What a string of several statements notifies comes within its answer.
            // Code that the proxy does not see through may listen, too.
            backend.listening |= matches!(effect, Effect::Pin(PinReason::Listen) | Effect::Touches);
        }
        backend.put_names(&request.intent.effects, self.frontend, out);
        for name in &batch.own {
            backend.put_own_name(name, self.frontend, out);
        }
        if !out.is_empty() {
            backend.statements.unnamed = Some(backend::UNKNOWN_STATEMENT);
        }
        if batch.kind == Kind::Extended {
            backend.put_retired(out);
        }
        if batch.kind != Kind::Extended {
            encode::expect_single(batch, &mut backend.expect);
            if batch.kind == Kind::Query {
                backend.statements.unnamed = None;
            }
            return Ok(false);
        }
        let mut writer = BatchWriter {
            server: &mut backend.statements,
            expect: &mut backend.expect,
            out,
            plan_key: wanted.plan_key(),
            failed: backend.transaction == Transaction::Failed,
            data: &self.frontend.inbox.data()[..batch.length],
            bound: None,
        };
        let rewritten = writer.write(batch, self.frontend);
        self.backend.skip_what_was_encoded(self.frontend);
        Ok(rewritten)
    }

    /// What goes ahead of a simple query is in the extended protocol and has no Sync of its own:
    /// an error in it skips the query up to the Sync sent behind the query. Returns whether that Sync is
    /// still to be sent, behind what of the query has not arrived.
    fn put_trailing_sync(&mut self, batch: &Batch, out: &mut Vec<u8>) -> bool {
        if batch.kind == Kind::Extended {
            return false;
        }
        self.backend.expect.push_back(Expect::Sync { forward: false });
        let is_whole = batch.end == End::Whole;
        if is_whole {
            out.extend_from_slice(&frame::SYNC);
        }
        !is_whole
    }

    /// Passes on the rest of a message that is longer than what is gathered.
    async fn stream_tail(&mut self, mut tail: usize) -> Result<(), Fault> {
        self.released = true;
        let mut inbox = self.frontend.take_inbox_behind_batch();
        let result = self.pump_tail(&mut inbox, &mut tail).await;
        self.frontend.give_inbox(inbox, tail);
        result
    }

    async fn pump_tail(&mut self, inbox: &mut inbox::Inbox, tail: &mut usize) -> Result<(), Fault> {
        while *tail > 0 {
            if inbox.is_empty() {
                self.hear(inbox).await?;
            }
            let part = inbox.len().min(*tail);
            self.send(&inbox.data()[..part]).await?;
            inbox.consume(part);
            *tail -= part;
        }
        Ok(())
    }

    /// Waits for what the client sends next of its request.
    async fn hear(&mut self, inbox: &mut inbox::Inbox) -> Result<(), Fault> {
        match self.terms.watch.attend(inbox.fill(&mut self.frontend.stream)).await {
            Some(Ok(1..)) => Ok(()),
            Some(Ok(0)) => Err(Fault::Client(eof())),
            Some(Err(error)) => Err(Fault::Client(error)),
            None => Err(self.server_lost(given_up())),
        }
    }

    /// Writes to the server; reads and hands on what it says meanwhile, so that neither waits for
    /// the other for ever.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let watch = self.terms.watch;
        if watch.is_over(false) {
            return Err(self.server_lost(given_up()));
        }
        let mut left = self.sending.begin(&self.backend.stream, bytes);
        while !left.is_empty() || self.backend.stream.is_buffered() {
            let backend = &mut *self.backend;
            match self.sending.go_on(watch, &mut left, &mut backend.inbox, &mut backend.stream).await {
                Ok(true) => break,
                Ok(false) => {
                    self.scan()?;
                    Box::pin(self.hand_on()).await?;
                }
                Err(error) if watch.is_over(false) => return Err(self.server_lost(error)),
                // What it said before it closed is still to be read.
                Err(error) => return Box::pin(self.last_words(error)).await,
            }
        }
        Ok(())
    }

    /// A write failed: the server may have said why before it closed.
    async fn last_words(&mut self, error: io::Error) -> Result<(), Fault> {
        loop {
            match self.receive().await {
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    self.scan()?;
                }
            }
        }
        if self.is_answered() {
            self.end_behind_answer();
            return Ok(());
        }
        Err(self.server_lost(error))
    }
}
