//! PostgreSQL's frontend/backend protocol, versions 3.0 and 3.2.

mod answer;
mod backend;
mod batch;
mod bind;
mod catalog;
mod done;
mod encode;
mod frame;
mod frontend;
#[doc(hidden)]
pub mod fuzzing;
mod gate;
pub mod login;
pub mod message;
mod parameters;
mod prepared;
mod probe;
pub mod refusal;
mod relay;
mod settings;
mod unit;
mod welcome;

use std::{io, sync::Arc, task::Poll};

use tokio::net::TcpStream;

pub use self::{
    backend::Backend,
    batch::Batch,
    frontend::Frontend,
    gate::{Gate, Link, Shared, parts},
};
use self::{
    batch::{End, Kind},
    login::Accepted,
    relay::Relay,
};
use crate::{
    protocol::{
        self, Answer, CancelKey, ConnectFault, Fault, Greeting, Identity, Missed, Protocol, ReaderContext,
        Refused, Reply, Request, Terms, Transaction, TransactionFate, TurnedAway, Welcomed,
    },
    refusal::Refusal,
    sql::{
        Dialect,
        catalog::{Catalog, FunctionRules},
        effects::{Ending, ProxyCommand},
    },
    topology::{Facts, Role},
};

/// The protocol, as the engine names it.
pub struct Postgres;

impl Protocol for Postgres {
    const DIALECT: Dialect = Dialect::Postgres;
    const FORGETS_PREVIOUS: bool = false;
    /// Boxed: a request is moved a dozen times on its way.
    type Wire = Box<Batch>;
    type Credentials = login::Credentials;
    type Gate = Gate;
    type Link = Link;
    type Frontend = Frontend;
    type Backend = Backend;

    fn configured_credentials(gate: &Gate, user: &str) -> Option<login::Credentials> {
        gate.configured_credentials(user)
    }

    fn forget_greetings(gate: &Gate) {
        gate.forget_greetings();
    }
}

impl protocol::Frontend<Postgres> for Frontend {
    async fn login(stream: TcpStream, gate: &Arc<Gate>) -> Result<Greeting<Postgres>, TurnedAway> {
        match login::accept(stream, &**gate).await {
            Ok(Accepted::Cancel(cancel)) => {
                Ok(Greeting::Cancel {
                    key: CancelKey { process: cancel.process_id, secret: cancel.key.into() },
                    // The client takes the closing of this connection for the end of the matter.
                    until: Box::new(cancel.stream),
                })
            }
            Ok(Accepted::Login(login)) => gate::greet(*login, gate).await,
            Err(failure) => Err(gate::turned_away(&failure)),
        }
    }

    async fn welcome(
        &mut self,
        context: ReaderContext,
        key: &CancelKey,
        server: Option<&mut Backend>,
    ) -> Result<Option<Welcomed>, Fault> {
        let greeting = match (self.known_greeting(), server) {
            (Some(greeting), _) => greeting,
            (None, Some(server)) => {
                let greeting = Arc::new(self.ask_greeting(server).await?);
                self.remember_greeting(&greeting);
                greeting
            }
            (None, None) => return Ok(None),
        };
        self.greet(&greeting, context, key).await.map(Some)
    }

    fn startup_commands(&self) -> &[ProxyCommand] {
        self.startup.as_ref().map_or(&[], |startup| &startup.commands)
    }

    fn cancel_key_length(&self) -> usize {
        // 256 bits with protocol 3.2; 3.0 has room for four bytes.
        if self.startup.as_ref().is_some_and(|startup| startup.minor >= 2) { 32 } else { 4 }
    }

    async fn arrives(&mut self) -> Result<bool, Fault> {
        self.await_request().await
    }

    async fn take(&mut self) -> Result<Option<Request<Box<Batch>>>, Fault> {
        self.take_request().await
    }

    fn text<'a>(&'a self, request: &'a Request<Box<Batch>>) -> Option<&'a str> {
        request.wire.text.as_deref()
    }

    fn raw_text<'a>(&'a self, request: &'a Request<Box<Batch>>) -> &'a [u8] {
        self.statement_text(&request.wire)
    }

    fn goes_on(&self, request: &Request<Box<Batch>>) -> bool {
        request.wire.kind == Kind::Extended && request.wire.end != End::Whole
    }

    fn runs_any(&self, request: &Request<Box<Batch>>) -> bool {
        request.wire.kind != Kind::Extended || request.wire.executes > 0
    }

    async fn answer(
        &mut self,
        request: &Request<Box<Batch>>,
        answer: Answer<'_>,
        transaction: Transaction,
    ) -> Result<(), Fault> {
        self.answer_here(request, answer, transaction).await
    }

    async fn refuse(
        &mut self,
        request: &Request<Box<Batch>>,
        refusal: &Refusal,
        transaction: Transaction,
    ) -> Result<(), Fault> {
        let mut out = Vec::new();
        refusal::put_error(&mut out, refusal);
        self.fail_request(&request.wire, out, transaction).await
    }

    async fn deliver(
        &mut self,
        request: &Request<Box<Batch>>,
        refused: Refused,
        transaction: Transaction,
    ) -> Result<(), Fault> {
        self.fail_request(&request.wire, refused.raw, transaction).await
    }

    async fn farewell(&mut self, refusal: &Refusal) {
        // The client may be gone already: then there is nobody to tell.
        let _ = self.write(&welcome::fatal(refusal)).await;
    }

    async fn farewell_raw(&mut self, raw: &[u8]) {
        let _ = self.write(raw).await;
    }

    fn is_movable(&self) -> bool {
        self.stream.is_movable()
    }

    fn adopt(&mut self) -> io::Result<()> {
        self.stream.migrate()
    }

    async fn gone(&mut self) {
        self.closed().await;
    }
}

impl protocol::Backend<Postgres> for Backend {
    async fn connect(
        address: &str,
        link: &Link,
        identity: &Identity<Postgres>,
        _role: Role,
    ) -> Result<Self, ConnectFault> {
        gate::connect(address, link, identity).await
    }

    async fn exchange(
        &mut self,
        request: &Request<Box<Batch>>,
        frontend: &mut Frontend,
        terms: &Terms<'_>,
    ) -> Result<Reply, Fault> {
        if self.needs_clearing(&request.intent, terms) {
            crate::standing::watched(terms.watch, self.execute_all(&["DISCARD SEQUENCES".into()])).await?;
            self.cleared();
        }
        Relay::new(self, frontend, terms).run(request).await
    }

    async fn stirred(&mut self) {
        self.wait_for_stir().await;
    }

    async fn pass_on(&mut self, frontend: &mut Frontend) -> Result<(), Fault> {
        self.pass_asynchronous(frontend).await
    }

    fn is_fresh(&mut self) -> bool {
        if self.closed || self.in_unit || self.transaction != Transaction::Idle || !self.expect.is_empty() {
            return false;
        }
        if self.stream.is_silent() {
            return self.inbox.is_empty();
        }
        // Within TLS, or something has come: a read tells.
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match self.inbox.poll_fill(&mut context, &mut self.stream) {
            Poll::Pending => self.inbox.is_empty(),
            Poll::Ready(Ok(count)) if count > 0 => self.take_idle_messages(),
            Poll::Ready(_) => false,
        }
    }

    fn transaction(&self) -> Transaction {
        self.transaction
    }

    fn is_clean(&self) -> bool {
        !self.is_touched()
    }

    fn adopt(&mut self) -> io::Result<()> {
        self.home.move_here(&mut self.stream)
    }

    async fn reset(&mut self) -> Result<(), Fault> {
        self.clean().await
    }

    async fn settle_unit(&mut self, frontend: &mut Frontend, terms: &Terms<'_>) -> Result<bool, Fault> {
        if !self.expect.is_empty() {
            Relay::new(self, frontend, terms).settle_unit().await?;
        }
        Ok(self.skipping)
    }

    async fn finish_unit(&mut self) -> Result<(), Fault> {
        self.sync_quietly().await?;
        if self.transaction != Transaction::Idle {
            self.query_all("ROLLBACK").await?;
        }
        Ok(())
    }

    async fn ping(&mut self) -> Result<(), Fault> {
        self.query_all("").await.map(drop)
    }

    fn cancel_key(&self) -> CancelKey {
        CancelKey { process: self.process_id(), secret: self.secret().into() }
    }

    async fn cancel(
        address: &str,
        link: &Link,
        _identity: &Identity<Postgres>,
        key: &CancelKey,
        _ending: Ending,
    ) -> io::Result<()> {
        // There is one request for all; the rest of a string or a unit ends with its statement.
        login::send_cancel(address, &link.tls, key.process, &key.secret).await.map_err(io::Error::other)
    }

    async fn started(&mut self) -> Result<Option<i64>, Fault> {
        probe::started(self).await
    }

    fn transaction_id(&self) -> Option<u64> {
        self.transaction_id
    }

    async fn fate(&mut self, transaction: u64) -> Result<TransactionFate, Fault> {
        probe::fate(self, transaction).await
    }

    async fn probe(&mut self) -> Result<Facts, Missed> {
        probe::probe(self).await
    }

    async fn verifier(&mut self, query: &str, user: &str) -> Result<Option<String>, Fault> {
        let rows = self.query_with(query, user).await?;
        // The name and the verifier, as PgBouncer's auth_query; or the verifier alone.
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next_back().flatten()))
    }

    async fn catalog(&mut self, rules: &FunctionRules) -> Result<Catalog, Fault> {
        catalog::read(self, rules).await
    }
}

/// How many bytes of a request's text logs and fingerprints look at.
const TEXT_SHOWN: usize = 4096;

impl Frontend {
    /// The text of the first statement of a request, as far as it is there.
    fn statement_text<'a>(&'a self, batch: &'a Batch) -> &'a [u8] {
        let data = self.inbox.data();
        let body = match batch.kind {
            Kind::Query => batch::body(data, 0, batch.length.min(data.len())),
            Kind::FunctionCall => return b"",
            Kind::Extended => return self.unit_text(batch),
        };
        let text = frame::split_cstring(body).map_or(body, |(text, _)| text);
        &text[..text.len().min(TEXT_SHOWN)]
    }
}
