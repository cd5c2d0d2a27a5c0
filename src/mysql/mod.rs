//! MySQL's and MariaDB's client/server protocol.

mod answer;
mod backend;
mod catalog;
pub mod command;
mod completion;
pub mod compress;
mod done;
mod encode;
mod frontend;
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod group;
mod insert_id;
pub mod login;
pub mod packet;
pub mod parameters;
mod prepared;
mod probe;
pub mod refusal;
mod relay;
mod settings;
mod variables;
mod welcome;

use std::{io, sync::Arc};

use tokio::net::TcpStream;

pub use self::{
    backend::Backend,
    command::Command,
    frontend::Frontend,
    gate::{Gate, Link, Shared, parts},
};
use self::{command::code, insert_id::Settle, relay::Relay};
use crate::{
    protocol::{
        self, Answer, CancelKey, ConnectFault, Fault, Greeting, Identity, Missed, Protocol, ReaderContext,
        Refused, Reply, Request, Terms, Transaction, TurnedAway, Welcomed,
    },
    refusal::Refusal,
    sql::{
        self, Dialect,
        catalog::{Catalog, FunctionRules},
        effects::{Ending, Ends, Force, ProxyCommand},
    },
    topology::{Facts, Role},
};

/// Ends what is open and nothing else, whatever the session's `completion_type`.
const ROLLBACK: &str = "ROLLBACK AND NO CHAIN NO RELEASE";

/// The protocol, as the engine names it.
pub struct Mysql;

impl Protocol for Mysql {
    const DIALECT: Dialect = Dialect::Mysql;
    const FORGETS_PREVIOUS: bool = true;
    type Wire = Command;
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

impl protocol::Frontend<Mysql> for Frontend {
    async fn login(stream: TcpStream, gate: &Arc<Gate>) -> Result<Greeting<Mysql>, TurnedAway> {
        gate::greet(stream, gate).await
    }

    async fn welcome(
        &mut self,
        context: ReaderContext,
        _key: &CancelKey,
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
        self.greet(&greeting, context).await.map(Some)
    }

    fn startup_commands(&self) -> &[ProxyCommand] {
        // The protocol has no place for any.
        &[]
    }

    fn cancel_key_length(&self) -> usize {
        // KILL names a session by its number and asks for privileges, not for a secret.
        0
    }

    fn schema(&self) -> Option<&str> {
        self.startup.as_ref()?.schema.as_deref()
    }

    fn session_number(&self) -> Option<u32> {
        Some(self.number)
    }

    fn new_identity(&mut self) -> Option<Identity<Mysql>> {
        self.renewed.take()
    }

    async fn arrives(&mut self) -> Result<bool, Fault> {
        self.await_request().await
    }

    async fn take(&mut self) -> Result<Option<Request<Command>>, Fault> {
        self.take_request().await
    }

    fn text<'a>(&'a self, request: &'a Request<Command>) -> Option<&'a str> {
        request.wire.text.as_deref()
    }

    fn raw_text<'a>(&'a self, request: &'a Request<Command>) -> &'a [u8] {
        let text = match &request.wire.statement {
            Some((_, statement)) => &statement.text,
            None => self.inbox.data().get(request.wire.text_at..request.wire.length).unwrap_or_default(),
        };
        &text[..text.len().min(TEXT_SHOWN)]
    }

    fn runs_any(&self, request: &Request<Command>) -> bool {
        request.wire.code != code::STMT_PREPARE
    }

    async fn answer(
        &mut self,
        request: &Request<Command>,
        answer: Answer<'_>,
        transaction: Transaction,
    ) -> Result<(), Fault> {
        self.recall_closed_cursor(&request.intent);
        self.answer_here(request, answer, transaction).await
    }

    async fn refuse(
        &mut self,
        request: &Request<Command>,
        refusal: &Refusal,
        transaction: Transaction,
    ) -> Result<(), Fault> {
        self.told = transaction;
        self.forget_values(&request.wire);
        self.recall_closed_cursor(&request.intent);
        let mut out = Vec::new();
        refusal::put_error(&mut out, self.sequence, refusal, self.numbers);
        self.fail_request(out).await
    }

    async fn deliver(
        &mut self,
        request: &Request<Command>,
        refused: Refused,
        transaction: Transaction,
    ) -> Result<(), Fault> {
        self.told = transaction;
        self.forget_values(&request.wire);
        self.recall_closed_cursor(&request.intent);
        // Only of a first statement are errors kept back.
        let done = self.done_before_error(request, self.modes, 0);
        self.forget_replaced(done.tried(&request.intent));
        self.fail_request(refused.raw).await
    }

    async fn farewell(&mut self, refusal: &Refusal) {
        let mut out = Vec::new();
        refusal::put_error(&mut out, self.sequence, refusal, self.numbers);
        // The client may be gone already: then there is nobody to tell.
        let _ = self.write(&out).await;
    }

    async fn farewell_raw(&mut self, raw: &[u8]) {
        self.farewell_with(raw).await;
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

impl protocol::Backend<Mysql> for Backend {
    async fn connect(
        address: &str,
        link: &Link,
        identity: &Identity<Mysql>,
        role: Role,
    ) -> Result<Self, ConnectFault> {
        gate::connect(address, link, identity, role).await
    }

    async fn exchange(
        &mut self,
        request: &Request<Command>,
        frontend: &mut Frontend,
        terms: &Terms<'_>,
    ) -> Result<Reply, Fault> {
        Relay::new(self, frontend, terms, request.wire.code).run(request).await
    }

    async fn stirred(&mut self) {
        self.wait_for_stir().await;
    }

    async fn pass_on(&mut self, _frontend: &mut Frontend) -> Result<(), Fault> {
        Err(self.last_words())
    }

    fn is_fresh(&mut self) -> bool {
        if self.closed || self.busy || !self.is_untouched() || self.open_transaction() != Transaction::Idle {
            return false;
        }
        if !self.inbox.is_empty() {
            return false;
        }
        // A read tells what the socket's silence does not: within TLS, or once something has come.
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        self.stream.is_silent() || self.inbox.poll_fill(&mut context, &mut self.stream).is_pending()
    }

    fn transaction(&self) -> Transaction {
        self.open_transaction()
    }

    fn is_clean(&self) -> bool {
        self.is_untouched() && !self.owes()
    }

    fn has_no_id_of_others(&self, session: u64) -> bool {
        self.insert_id.before_question(session) == Settle::Nothing
    }

    fn owes(&self) -> bool {
        !self.assigned.is_empty()
    }

    async fn hand_over(&mut self, frontend: &mut Frontend) -> Result<(), Fault> {
        self.carry_assigned(frontend).await
    }

    fn adopt(&mut self) -> io::Result<()> {
        self.home.move_here(&mut self.stream)
    }

    async fn reset(&mut self) -> Result<(), Fault> {
        self.clean().await
    }

    async fn settle_unit(&mut self, _: &mut Frontend, _: &Terms<'_>) -> Result<bool, Fault> {
        // There are no pipelines that share a transaction.
        Ok(false)
    }

    async fn finish_unit(&mut self) -> Result<(), Fault> {
        if self.open_transaction() == Transaction::Idle {
            return Ok(());
        }
        self.query_all(ROLLBACK).await?;
        self.said_next = false;
        Ok(())
    }

    async fn ping(&mut self) -> Result<(), Fault> {
        self.command(code::PING, b"").await.map(drop)
    }

    fn cancel_key(&self) -> CancelKey {
        CancelKey { process: self.thread(), secret: Box::default() }
    }

    async fn cancel(
        address: &str,
        link: &Link,
        identity: &Identity<Mysql>,
        key: &CancelKey,
        ending: Ending,
    ) -> io::Result<()> {
        let connected = gate::open(address, link, identity, Role::Unknown).await;
        let mut backend = connected.map_err(|fault| io::Error::other(fault.to_string()))?;
        // 1094: it has ended by itself.
        let what = match ending.ends {
            Ends::Statement => "QUERY",
            Ends::Session => "CONNECTION",
        };
        let force = if ending.force == Force::Soft && backend.is_mariadb() { "SOFT" } else { "" };
        match backend.query_all(&format!("KILL {force} {what} {}", key.process)).await {
            Ok(_) | Err(Fault::Refused(_)) => Ok(()),
            Err(fault) => Err(io::Error::other(fault.to_string())),
        }
    }

    async fn started(&mut self) -> Result<Option<i64>, Fault> {
        probe::started(self).await
    }

    async fn probe(&mut self) -> Result<Facts, Missed> {
        probe::probe(self).await
    }

    async fn verifier(&mut self, query: &str, user: &str) -> Result<Option<String>, Fault> {
        let rows = self.query_all(&with_user(query, user)).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next_back().flatten()))
    }

    async fn catalog(&mut self, rules: &FunctionRules) -> Result<Catalog, Fault> {
        catalog::read(self, rules).await
    }
}

/// An `auth.query` with the user's name in the place of its parameter.
fn with_user(query: &str, user: &str) -> String {
    let quoted = settings::quote_literal(user.as_bytes());
    match sql::placeholders(query, Dialect::Mysql).as_deref() {
        Some([place, ..]) => [&query[..place.start], &quoted, &query[place.end..]].concat(),
        _ => query.replacen('?', &quoted, 1),
    }
}

/// How many bytes of a request's text logs and fingerprints look at.
const TEXT_SHOWN: usize = 4096;
