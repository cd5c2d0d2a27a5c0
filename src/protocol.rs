//! The seam between the shared engine and a database's protocol.
//!
//! What crosses it is plain data: [`Request`], [`Reply`], [`Refusal`], positions. Only what touches
//! a socket is behind a trait. A method earns its place by a caller in the engine and a real body
//! in every protocol.

mod faults;

use std::{future::Future, io, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;

pub use self::faults::{
    ConnectFault, Fault, Forwarded, LoginFault, Missed, Refused, RefusedCause, TurnedAway,
};
/// What a cancel request has to name, for the protocols to read and write.
pub use crate::session::cancel::CancelKey;
use crate::{
    cluster::Doubt,
    refusal::Refusal,
    sql::{
        Dialect, Effect, Intent,
        catalog::{Catalog, FunctionRules},
        effects::{Ending, ProxyCommand, TransactionModes},
    },
    standing::Watch,
    topology::{Facts, Position},
};

/// One database's wire protocol.
pub trait Protocol: Sized + Send + Sync + 'static {
    const DIALECT: Dialect;
    /// A statement that asks for what the one before left in its connection is not told when that
    /// was another session's: sessions that have written keep their connections softly.
    const FORGETS_PREVIOUS: bool;
    /// Where a request's bytes are, and what they consist of.
    type Wire: Send + Sync;
    /// What a client's login revealed that opens servers as the same user.
    type Credentials: Clone + Send + Sync;
    /// How clients are let in: users, TLS, limits. Built from a cluster's configuration.
    type Gate: Send + Sync;
    /// How servers are reached: TLS, timeouts. Built from a cluster's configuration.
    type Link: Send + Sync;
    type Frontend: Frontend<Self>;
    type Backend: Backend<Self>;

    /// What the configuration itself knows that opens servers for a user.
    fn configured_credentials(gate: &Self::Gate, user: &str) -> Option<Self::Credentials>;

    /// Servers may greet new sessions otherwise than they did: the next ones are greeted as a server says
    /// then.
    fn forget_greetings(gate: &Self::Gate);
}

/// Our end of a client's connection.
pub trait Frontend<P: Protocol>: Send + Sync + Sized {
    /// Greets and authenticates. The caller bounds its time; dropping it closes the connection.
    ///
    /// # Errors
    /// When the peer is no client or may not come in; what there was to say has been said.
    fn login(
        stream: TcpStream,
        gate: &Arc<P::Gate>,
    ) -> impl Future<Output = Result<Greeting<P>, TurnedAway>> + Send;

    /// Tells an authenticated client that it is in. Without a `server`, a connection of its user
    /// and database, only if what a server would say is known already; `None`: it is not.
    fn welcome(
        &mut self,
        context: ReaderContext,
        key: &CancelKey,
        server: Option<&mut P::Backend>,
    ) -> impl Future<Output = Result<Option<Welcomed>, Fault>> + Send;

    /// Settings of the proxy's own that the client asked for with its login.
    fn startup_commands(&self) -> &[ProxyCommand];

    /// Length in bytes of the secret in this client's cancel key.
    fn cancel_key_length(&self) -> usize;

    /// The database that a login named, where that is no part of who the client is.
    fn schema(&self) -> Option<&str> {
        None
    }

    /// The number of its session, where the protocol tells the client before it logs in.
    fn session_number(&self) -> Option<u32> {
        None
    }

    /// Waits for the next request; `false`: the client has left. Dropping the future loses nothing.
    fn arrives(&mut self) -> impl Future<Output = Result<bool, Fault>> + Send;

    /// Takes the request that has arrived. `None`: it has been answered, or its client expects no answer.
    fn take(&mut self) -> impl Future<Output = Result<Option<Request<P::Wire>>, Fault>> + Send;

    /// Whom the client has become with the request just read, if that changed its user: a session
    /// of its own, which `welcome` answers the request for.
    fn new_identity(&mut self) -> Option<Identity<P>> {
        None
    }

    /// The text of a request that is one statement with effects on the session, if it could be
    /// sent again by itself.
    fn text<'a>(&'a self, request: &'a Request<P::Wire>) -> Option<&'a str>;

    /// The beginning of a request's text, as sent: for fingerprints and what is learned.
    fn raw_text<'a>(&'a self, request: &'a Request<P::Wire>) -> &'a [u8];

    /// Whether the next request continues this one on the same server, as in a pipeline that is not
    /// synced.
    fn goes_on(&self, _request: &Request<P::Wire>) -> bool {
        false
    }

    /// Whether a request runs a statement; else it prepares some at most.
    fn runs_any(&self, request: &Request<P::Wire>) -> bool;

    /// Answers a request that no server has to see, and consumes it.
    fn answer(
        &mut self,
        request: &Request<P::Wire>,
        answer: Answer<'_>,
        transaction: Transaction,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Answers a request with an error of the proxy's own, and consumes it.
    fn refuse(
        &mut self,
        request: &Request<P::Wire>,
        refusal: &Refusal,
        transaction: Transaction,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Hands over an error that a server gave and that was kept back, and consumes the request.
    fn deliver(
        &mut self,
        request: &Request<P::Wire>,
        refused: Refused,
        transaction: Transaction,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Says why the connection ends, outside of any request.
    fn farewell(&mut self, refusal: &Refusal) -> impl Future<Output = ()> + Send;

    /// As `farewell`, in a server's own words.
    fn farewell_raw(&mut self, raw: &[u8]) -> impl Future<Output = ()> + Send;

    /// Whether the connection can go on on another worker.
    fn is_movable(&self) -> bool;

    /// Moves a connection that can be moved to the calling worker.
    ///
    /// # Errors
    /// When the system does not register it there: it is closed.
    fn adopt(&mut self) -> io::Result<()>;

    /// Resolves when the client has closed its side while nothing is expected of it.
    fn gone(&mut self) -> impl Future<Output = ()> + Send;
}

/// Our end of a server connection.
pub trait Backend<P: Protocol>: Send + Sync + Sized {
    /// Opens and authenticates a connection. Dropping the future closes it.
    fn connect(
        address: &str,
        link: &P::Link,
        identity: &Identity<P>,
        role: crate::topology::Role,
    ) -> impl Future<Output = Result<Self, ConnectFault>> + Send;

    /// Runs one request and streams its answer to the client. Dropping the future leaves the
    /// connection in an unknown state: it must be closed.
    fn exchange(
        &mut self,
        request: &Request<P::Wire>,
        frontend: &mut P::Frontend,
        terms: &Terms<'_>,
    ) -> impl Future<Output = Result<Reply, Fault>> + Send;

    /// Resolves when the server says something that nobody has asked for, or has closed the
    /// connection. Dropping the future loses nothing.
    fn stirred(&mut self) -> impl Future<Output = ()> + Send;

    /// Hands on what has stirred.
    ///
    /// # Errors
    /// [`Fault::Server`] when the server has closed the connection.
    fn pass_on(&mut self, frontend: &mut P::Frontend) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Whether the connection may serve its next session: open, silent, in no transaction. Free of
    /// system calls unless the server has said something.
    fn is_fresh(&mut self) -> bool;

    /// The transaction that is open in it, as the server said last.
    fn transaction(&self) -> Transaction;

    /// Whether nothing was left in it that another session could see.
    fn is_clean(&self) -> bool;

    /// Whether a question for an id would find none of another session's in it.
    fn has_no_id_of_others(&self, _session: u64) -> bool {
        false
    }

    /// Whether its session has left something in it that is to be carried on.
    fn owes(&self) -> bool {
        false
    }

    /// Lets the session carry that, before the connection is given up. Dropping the future leaves the
    /// connection in an unknown state.
    fn hand_over(&mut self, _frontend: &mut P::Frontend) -> impl Future<Output = Result<(), Fault>> + Send {
        async { Ok(()) }
    }

    /// Moves the connection to the calling worker, where that is cheap.
    fn adopt(&mut self) -> io::Result<()>;

    /// Ends whatever is open and forgets all session state.
    fn reset(&mut self) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Hands on the answers to a pipeline's earlier parts that have not come yet. Returns whether the
    /// pipeline has failed: the server skips the rest of it.
    ///
    /// # Errors
    /// Of the connections.
    fn settle_unit(
        &mut self,
        frontend: &mut P::Frontend,
        terms: &Terms<'_>,
    ) -> impl Future<Output = Result<bool, Fault>> + Send;

    /// Ends a pipeline, or a transaction that has only read, that goes on elsewhere; the client
    /// sees nothing of it. What was asked before has been answered.
    fn finish_unit(&mut self) -> impl Future<Output = Result<(), Fault>> + Send;

    /// One empty round trip.
    fn ping(&mut self) -> impl Future<Output = Result<(), Fault>> + Send;

    /// What a cancel request has to name.
    fn cancel_key(&self) -> CancelKey;

    /// Asks the server at `address` to end what the connection of `key` is doing, and waits
    /// until it has taken the request.
    fn cancel(
        address: &str,
        link: &P::Link,
        identity: &Identity<P>,
        key: &CancelKey,
        ending: Ending,
    ) -> impl Future<Output = io::Result<()>> + Send;

    /// When the server process at the other end was started, as probes tell it in
    /// [`Incarnation::started`](crate::topology::Incarnation); `None` where it cannot be compared
    /// exactly.
    fn started(&mut self) -> impl Future<Output = Result<Option<i64>, Fault>> + Send {
        async { Ok(None) }
    }

    /// The id of the transaction that the last request was to commit, where the terms asked for it
    /// and the server told it in time.
    fn transaction_id(&self) -> Option<u64> {
        None
    }

    /// What became of a transaction of another server whose history this one has.
    fn fate(&mut self, _transaction: u64) -> impl Future<Output = Result<TransactionFate, Fault>> + Send {
        async { Ok(TransactionFate::Unknown) }
    }

    /// Role, position and identity of the server.
    fn probe(&mut self) -> impl Future<Output = Result<Facts, Missed>> + Send;

    /// Asks `query` with the user's name as its one parameter for a verifier.
    fn verifier(
        &mut self,
        query: &str,
        user: &str,
    ) -> impl Future<Output = Result<Option<String>, Fault>> + Send;

    /// Functions and relations of the database this connection is in, as `rules` have them.
    fn catalog(&mut self, rules: &FunctionRules) -> impl Future<Output = Result<Catalog, Fault>> + Send;
}

/// What a new connection turned out to be.
pub enum Greeting<P: Protocol> {
    Client {
        frontend: P::Frontend,
        identity: Identity<P>,
    },
    /// A request to cancel the statement of another connection; `until` is dropped when that is
    /// done.
    Cancel {
        key: CancelKey,
        until: Box<dyn Send>,
    },
}

/// What a session starts with.
#[derive(Debug, Default)]
pub struct Welcomed {
    /// Effective `default_transaction_isolation` and `_read_only`.
    pub defaults: TransactionModes,
    /// `autocommit = 0`: every statement begins a transaction if none is open.
    pub implicit_transactions: bool,
    pub begins: Begins,
    /// What counts as said ahead of its client's first statement; a reset takes it back.
    pub first: Vec<Effect>,
}

/// What a transaction goes by that begins within another one, which it ends, and says nothing of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Begins {
    /// That one's modes (MySQL). In PostgreSQL there is no such thing.
    #[default]
    AsBefore,
    /// The session's defaults (MariaDB).
    Anew,
}

/// Asks servers for what a user must prove (`auth.query`).
pub trait VerifierSource: Send + Sync {
    /// The verifier of `user` as text, `None` if there is no such user; the error says why nobody
    /// could be asked.
    fn verifier<'a>(
        &'a self,
        user: &'a str,
        database: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, String>>;
}

/// Who a session is toward the servers: the key of its pools, and what opens them.
pub struct Identity<P: Protocol> {
    pub user: Arc<str>,
    pub database: Arc<str>,
    /// What else server connections differ in that cannot be changed once they are open: MySQL's
    /// capability flags; of PostgreSQL those for the proxy's own questions. 0 where there is nothing.
    pub flavour: u64,
    pub credentials: P::Credentials,
}

impl<P: Protocol> Clone for Identity<P> {
    fn clone(&self) -> Self {
        Self {
            user: self.user.clone(),
            database: self.database.clone(),
            flavour: self.flavour,
            credentials: self.credentials.clone(),
        }
    }
}

/// What a frontend needs to read statements.
#[derive(Clone)]
pub struct ReaderContext {
    pub classifier: Arc<crate::sql::cache::Classifier>,
    pub database: Arc<crate::cluster::Database>,
    /// Counts what it refuses by itself.
    pub metrics: Option<Arc<crate::metrics::ClusterMetrics>>,
    /// The session: who is ended waits for its client no more.
    pub entry: Option<Arc<crate::session::cancel::Entry>>,
}

impl ReaderContext {
    /// The session of a frontend that has been welcomed.
    pub fn entry_of(reader: Option<&Self>) -> Option<&crate::session::cancel::Entry> {
        reader?.entry.as_deref()
    }
}

/// What gets one full answer.
pub struct Request<W> {
    pub intent: Arc<Intent>,
    pub wire: W,
}

/// Under which conditions a request runs.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    /// Statements the session was told succeeded and that were kept back (a lazy BEGIN): they run
    /// first; if one fails, the request gets that error and does not run.
    pub ahead: &'a [Box<str>],
    /// The savepoints among them.
    pub ahead_savepoints: &'a [Effect],
    /// What goes ahead sets modes of its transaction, which is possible only as the first thing in it.
    pub ahead_sets_modes: bool,
    /// Which errors are kept back and returned as [`Fault::Refused`], as long as nothing was
    /// forwarded.
    pub may_refuse: MayRefuse,
    /// The request is the COMMIT of a transaction that wrote: its id is wanted, in case the answer
    /// is lost.
    pub wants_id: bool,
    /// The session id: what one session left in a connection is cleared before another's request.
    pub session: u64,
    /// The connection has to forget what its last statement left there: the request asks for what
    /// this session's last statement left, and that was nothing.
    pub forget_last: bool,
    /// Others are in doubt by what it defines, at the latest from when its client may hear of it.
    pub doubt: Option<&'a Doubt>,
    /// Whether the server may still answer: asked before anything is sent and before anything
    /// received is handed on. When it may not, the exchange ends with [`Fault::Server`].
    pub watch: Watch<'a>,
}

impl<'a> Terms<'a> {
    /// For the rest of a request that was sent before: nothing goes ahead of it, and its errors are the
    /// client's.
    pub const fn of_rest(session: u64, watch: Watch<'a>) -> Self {
        Self {
            ahead: &[],
            ahead_savepoints: &[],
            ahead_sets_modes: false,
            may_refuse: MayRefuse::No,
            wants_id: false,
            session,
            forget_last: false,
            doubt: None,
            watch,
        }
    }

    /// The client is about to hear of the answer, and may have others run what it tells of before the session has
    /// learned from it.
    #[inline]
    pub fn begin_doubt(&self) {
        if let Some(doubt) = self.doubt {
            doubt.begin();
        }
    }
}

/// What a server says of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionFate {
    /// Some transaction of that id was committed.
    Committed,
    /// It was rolled back, or never came here.
    RolledBack,
    Unknown,
}

/// Which of a server's errors another attempt might not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MayRefuse {
    /// The client gets whatever the server says.
    No,
    /// A statement outside of any transaction: only that a prepared plan is out of date, which is
    /// said before anything was done.
    Replan,
    /// A plain statement on the primary: only that the server is stopping, or read-only.
    Stopping,
    /// A read on a replica: also that it writes, or that this copy cannot answer it.
    Any,
}

/// How a request ended that got its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub transaction: Transaction,
    /// The answer was, or ended in, an error of the server.
    pub failed: bool,
    /// It left warnings or an error in its connection, which the next request may ask for.
    pub warned: bool,
    /// The position of what was written, where the server tells it.
    pub wrote: Option<Position>,
    /// It may have left a LAST_INSERT_ID(): an id came with the answer.
    pub told_id: bool,
    /// Of a string that failed midway: what the statements before the error did to the session, as far as
    /// no error undoes that.
    pub done: Vec<Effect>,
    /// It failed before it could begin a transaction (MySQL).
    pub begun_none: bool,
    /// The server ended the connection, and an open transaction with it; the client was told that
    /// the transaction has failed.
    pub lost: bool,
}

impl Reply {
    /// Those effects of its request that have come true.
    pub fn effects<'a>(&'a self, intent: &'a Intent) -> &'a [Effect] {
        if self.failed { &self.done } else { &intent.effects }
    }

    /// Whether an effect of its request has come true.
    pub fn has_done(&self, intent: &Intent, effect: &Effect) -> bool {
        self.effects(intent).contains(effect)
    }
}

/// A session's transaction as its server reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Transaction {
    #[default]
    Idle,
    /// A pipeline that has not reached its Sync: an implicit transaction.
    Unit,
    Open,
    Failed,
}

/// An answer the proxy gives by itself.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// As if the statement had run.
    Done,
    /// As a server answers the end of a transaction that had failed.
    RolledBack,
    /// As a server answers what would have held until the end of a transaction, where none is open.
    WithoutEffect,
    /// One row of text columns.
    Row(&'a [Column<'a>]),
}

/// A column of an answer's only row.
#[derive(Clone, Copy, Debug)]
pub struct Column<'a> {
    pub name: &'a str,
    /// `None`: NULL.
    pub value: Option<&'a str>,
}
