//! How clients get in and how servers are reached: built from a cluster's configuration.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{net::TcpStream, sync::Notify};
use zeroize::Zeroizing;

use super::{
    backend::Backend,
    frontend::Frontend,
    login::{
        CACHING_SHA2, Credentials, NATIVE,
        client::{self, House, LoginFailure, Offer, Secret},
        server::{self, Greeting as ServerGreeting},
        vault::Vault,
    },
    packet::capability as can,
    refusal::{Numbers, put_error},
    welcome::Greeting as Known,
};
use crate::{
    cluster::Parts,
    config,
    greetings::{Greetings, Since},
    protocol::{ConnectFault, Greeting, Identity, LoginFault, TurnedAway, VerifierSource},
    refusal::{Refusal, RefusalKind},
    tls::{self, ServerTls},
    topology::Role,
};

/// What clients are offered, as far as every server has it.
const OFFERED: u64 = EVERYBODYS | FLAVOURS | can::CONNECT_WITH_DB | can::INTERACTIVE | can::MULTI_STATEMENTS;

/// Between a client and the proxy: servers have no part in it.
const COMPRESSION: u64 = can::COMPRESS | can::ZSTD_COMPRESSION;

/// What every server connection has.
const EVERYBODYS: u64 = can::LONG_PASSWORD
    | can::LONG_FLAG
    | can::PROTOCOL_41
    | can::TRANSACTIONS
    | can::SECURE_CONNECTION
    | can::PLUGIN_AUTH
    | can::PLUGIN_AUTH_LENENC
    | can::CONNECT_ATTRS
    | can::SESSION_TRACK;

/// What a server connection must have in common with its client: it shapes answers, or what
/// statements do.
pub const FLAVOURS: u64 = can::FOUND_ROWS
    | can::ODBC
    | can::LOCAL_FILES
    | can::IGNORE_SPACE
    | can::MULTI_RESULTS
    | can::PS_MULTI_RESULTS
    | can::DEPRECATE_EOF
    | can::QUERY_ATTRIBUTES
    | can::PROGRESS
    | can::STMT_BULK_OPERATIONS
    | can::EXTENDED_METADATA;

/// What logins go by. Built anew at each reload.
pub struct Gate {
    tls: tls::ClientTls,
    trust_loopback: bool,
    /// How long a client may take to prove that it is another user.
    pub(super) login_timeout: Duration,
    users: HashMap<Arc<str>, Secret>,
    /// Asks servers for verifiers of users that the file does not list.
    source: Option<Arc<dyn VerifierSource>>,
    pub(super) shared: Arc<Shared>,
}

/// What outlives a reload.
pub struct Shared {
    /// What servers said of themselves, by address.
    profiles: Mutex<HashMap<Box<str>, Profile>>,
    known: Notify,
    numbers: AtomicU32,
    pub(super) vault: Vault,
    greetings: Greetings<GreetingKey, Known>,
    /// Servers have an `init_connect`, which sessions carry: server connections begin without.
    pub(super) has_init_connect: AtomicBool,
    /// The collation that servers begin all sessions with, where they do not heed what clients ask for.
    forced_collation: Mutex<Option<Box<str>>>,
    /// When each server process was started, by its own clock.
    started: Mutex<HashMap<Box<str>, i64>>,
}

/// User and default schema.
type GreetingKey = (Arc<str>, Option<Box<str>>);

struct Profile {
    greeting: ServerGreeting,
    is_primary: bool,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            profiles: Mutex::default(),
            known: Notify::new(),
            numbers: AtomicU32::new(rand::random::<u32>() >> 1),
            vault: Vault::default(),
            greetings: Greetings::default(),
            has_init_connect: AtomicBool::new(false),
            forced_collation: Mutex::default(),
            started: Mutex::default(),
        }
    }
}

/// Uptime is in whole seconds: two readings of one start differ by as much.
const START_TOLERANCE: i64 = 2_000_000;

impl Shared {
    /// What to greet clients with, once some server has said what it is.
    async fn offer(&self) -> Offer {
        loop {
            let known = self.known.notified();
            if let Some(offer) = self.offer_now() {
                return offer;
            }
            known.await;
        }
    }

    fn offer_now(&self) -> Option<Offer> {
        let profiles = self.profiles.lock();
        let model = profiles.values().max_by_key(|profile| profile.is_primary)?;
        let common = profiles.values().fold(u64::MAX, |all, profile| all & profile.greeting.capabilities);
        Some(Offer {
            version: model.greeting.version.as_bytes().into(),
            capabilities: OFFERED & common | COMPRESSION,
            collation: model.greeting.collation,
            plugin: if model.greeting.plugin == CACHING_SHA2 { CACHING_SHA2 } else { NATIVE },
            number: self.next_number(),
        })
    }

    /// A session's number: from 1 on, each given out once.
    fn next_number(&self) -> u32 {
        loop {
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            if number != 0 {
                return number;
            }
        }
    }

    fn note(&self, address: &str, greeting: &ServerGreeting, role: Role) {
        let mut profiles = self.profiles.lock();
        let was_primary = profiles.get(address).is_some_and(|profile| profile.is_primary);
        let is_primary = role == Role::Primary || (role == Role::Unknown && was_primary);
        profiles.insert(address.into(), Profile { greeting: greeting.clone(), is_primary });
        drop(profiles);
        self.known.notify_waiters();
    }

    pub(super) fn note_forced_collation(&self, collation: Option<&str>) {
        *self.forced_collation.lock() = collation.map(Into::into);
    }

    pub(super) fn forced_collation(&self) -> Option<Box<str>> {
        self.forced_collation.lock().clone()
    }

    pub(super) fn greeting(&self, user: &Arc<str>, schema: Option<&str>) -> Result<Arc<Known>, Since> {
        self.greetings.find(&(user.clone(), schema.map(Into::into)))
    }

    pub(super) fn remember(
        &self,
        user: &Arc<str>,
        schema: Option<&str>,
        greeting: &Arc<Known>,
        since: Since,
    ) {
        self.greetings.remember((user.clone(), schema.map(Into::into)), greeting, since);
    }

    /// The start of a server's process in microseconds, the same at every reading.
    pub(super) fn steady_start(&self, address: &str, read: i64) -> i64 {
        let mut started = self.started.lock();
        let known = started.entry(address.into()).or_insert(read);
        if (*known - read).abs() > START_TOLERANCE {
            *known = read;
        }
        *known
    }
}

/// How server connections are opened.
pub struct Link {
    pub tls: ServerTls,
    pub prepared_statements: usize,
    pub timeout: Duration,
    pub shared: Arc<Shared>,
}

impl Link {
    /// Reaches nobody.
    pub(super) fn detached(prepared_statements: usize) -> Self {
        let timeout = Duration::from_secs(1);
        Self { tls: ServerTls::disabled(), prepared_statements, timeout, shared: Arc::default() }
    }
}

impl Gate {
    /// Lets nobody in.
    pub(super) fn detached() -> Self {
        let (tls, shared) = (tls::ClientTls::disabled(), Arc::default());
        let login_timeout = Duration::ZERO;
        Self { tls, trust_loopback: false, login_timeout, users: HashMap::new(), source: None, shared }
    }

    pub(super) fn house(&self) -> House<'_> {
        House { tls: &self.tls, vault: &self.shared.vault, trust_loopback: self.trust_loopback }
    }

    /// What opens servers for a user of the configuration; `None`: only the user's own login tells.
    pub(super) fn configured_credentials(&self, user: &str) -> Option<Credentials> {
        match self.users.get(user)? {
            Secret::Plain(password) => Some(Credentials::of(password)),
            _ => None,
        }
    }

    /// What a user must prove; the error says why nobody could be asked.
    pub(super) async fn secret(&self, user: &str) -> Result<Secret, String> {
        if let Some(secret) = self.users.get(user) {
            return Ok(secret.clone());
        }
        let verifier = match &self.source {
            Some(source) => source.verifier(user, "").await?,
            None => None,
        };
        Ok(verifier.map_or(Secret::Unknown, |text| Secret::of_server(&text)))
    }

    pub(super) fn forget_greetings(&self) {
        self.shared.greetings.forget();
    }
}

/// Greets a client and turns its login into a frontend.
pub(super) async fn greet(socket: TcpStream, gate: &Arc<Gate>) -> Result<Greeting<super::Mysql>, TurnedAway> {
    let offer = gate.shared.offer().await;
    let secret = async |user: &str| gate.secret(user).await;
    let login = client::accept(socket, &offer, gate.house(), secret)
        .await
        .map_err(|failure| TurnedAway { fault: login_fault(&failure), detail: failure.to_string() })?;
    let identity = identity(&login);
    let frontend = Frontend::new(login, offer.number, identity.user.clone(), gate.clone());
    Ok(Greeting::Client { frontend, identity })
}

/// Who a client is toward the servers.
pub(super) fn identity(login: &client::Login) -> Identity<super::Mysql> {
    Identity {
        user: login.user.as_str().into(),
        // Sessions carry their default schema: pools are of all schemas, and so is the catalog.
        database: "".into(),
        flavour: login.capabilities & FLAVOURS,
        credentials: login.credentials.clone(),
    }
}

pub(super) fn login_fault(failure: &LoginFailure) -> LoginFault {
    match failure {
        LoginFailure::Io(_) => LoginFault::Closed,
        LoginFailure::Garbage(_) | LoginFailure::CompressionLevel(_) => LoginFault::Protocol,
        LoginFailure::Tls(_) | LoginFailure::WithoutTls | LoginFailure::Uncertified { .. } => LoginFault::Tls,
        LoginFailure::WrongPassword { .. } => LoginFault::Password,
        LoginFailure::UnknownUser { .. } => LoginFault::UnknownUser,
        LoginFailure::Lookup { .. } => LoginFault::Unavailable,
    }
}

/// A new server connection, as the user who logged in.
pub(super) async fn connect(
    address: &str,
    link: &Link,
    identity: &Identity<super::Mysql>,
    role: Role,
) -> Result<Backend, ConnectFault> {
    let mut backend = open(address, link, identity, role).await?;
    let begin = async {
        if role == Role::Unknown {
            backend.find_forced_collation().await?;
        } else if link.shared.has_init_connect.load(Ordering::Relaxed) {
            return backend.clean().await;
        }
        backend.initialise().await
    };
    match tokio::time::timeout(link.timeout, begin).await {
        Ok(Ok(())) => {}
        Ok(Err(crate::protocol::Fault::Refused(refused))) => {
            return Err(ConnectFault::Refused { raw: refused.raw, code: refused.code });
        }
        Ok(Err(crate::protocol::Fault::Server { error, .. })) => {
            return Err(ConnectFault::Unreachable(error));
        }
        _ => return Err(ConnectFault::Unreachable(std::io::ErrorKind::TimedOut.into())),
    }
    // Clients are let in from now on.
    link.shared.note(address, backend.greeting(), role);
    Ok(backend)
}

/// As [`connect`], as the server begins sessions.
pub(super) async fn open(
    address: &str,
    link: &Link,
    identity: &Identity<super::Mysql>,
    role: Role,
) -> Result<Backend, ConnectFault> {
    let flavour = identity.flavour & FLAVOURS;
    let login = server::Login {
        user: &identity.user,
        credentials: &identity.credentials,
        capabilities: EVERYBODYS | flavour,
        collation: match role {
            Role::Unknown => server::UNLIKELY_COLLATION.0,
            Role::Primary | Role::Replica => server::COLLATION,
        },
        tls: &link.tls,
    };
    let connected = server::connect(link.timeout, address, &login).await?;
    if connected.capabilities & flavour != flavour {
        return Err(cannot(&format!("the server {address} lacks what this session was promised")));
    }
    Ok(Backend::new(connected, address, role, link, identity))
}

fn cannot(message: &str) -> ConnectFault {
    let mut raw = Vec::new();
    let refusal = Refusal::new(RefusalKind::ServerLost, message.to_owned());
    // Whoever the client is.
    put_error(&mut raw, 1, &refusal, Numbers::Servers);
    ConnectFault::Refused { raw, code: *b"08S01" }
}

/// What opens servers for a user of the configuration.
fn credentials(password: Option<&config::Secret>) -> Credentials {
    let own = |password: &config::Secret| Arc::new(Zeroizing::new(password.expose().to_owned()));
    password.map_or(Credentials::None, |password| Credentials::of(&own(password)))
}

/// What a cluster is made of, from its configuration.
///
/// # Errors
/// When a certificate, key or CA cannot be used.
pub fn parts(
    config: &config::Cluster,
    shared: &Arc<Shared>,
    source: Option<Arc<dyn VerifierSource>>,
) -> Result<Parts<super::Mysql>, tls::TlsError> {
    let client = tls::ClientTls::build(&config.tls.client_parameters())?;
    let server = ServerTls::build(&config.tls.server_parameters())?;
    let users = config
        .users
        .iter()
        .filter_map(|user| Some((user.name.clone(), Secret::parse(user.password.as_ref()?.expose()))))
        .collect();
    let monitor = Identity {
        user: config.monitor.user.clone(),
        database: "".into(),
        flavour: can::DEPRECATE_EOF | can::MULTI_RESULTS,
        credentials: credentials(config.monitor.password.as_ref()),
    };
    Ok(Parts {
        gate: Gate {
            tls: client,
            trust_loopback: config.auth.trust_loopback,
            login_timeout: config.limits.login_timeout,
            users,
            source,
            shared: shared.clone(),
        },
        link: Link {
            tls: server,
            prepared_statements: config.pool.prepared_statements,
            timeout: config.pool.checkout_timeout,
            shared: shared.clone(),
        },
        monitor_identity: monitor.clone(),
        verifier_identity: monitor,
    })
}
